//! Ends are told to their listeners by this process or by the next one.
//!
//! A process that dies is a copy of what it would leave behind now. What it was about to tell, the next
//! one tells; what it has told and acknowledged, nobody tells again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sessile::{
    Container, EndReason, Error, Event, ManualClock, Options, Policy, SessionId, Stats, Store, Time,
};

use crate::{Place, copy_directory, put, putting, until};

/// Who was told of, in which order, with a number of theirs.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<(String, EndReason, u64)>>>);

impl Told {
    fn take(&self) -> Vec<(String, EndReason, u64)> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    fn keys(&self) -> Vec<String> {
        self.take().into_iter().map(|(key, ..)| key).collect()
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

fn listening(options: Options, told: &Told) -> Options {
    let told = told.clone();
    options.on_end("tell", move |_, session, reason| {
        let key = String::from_utf8(session.key().as_bytes().to_vec()).unwrap();
        told.0.lock().unwrap().push((key, reason, session.get("n").unwrap()));
        Ok(())
    })
}

/// A store whose listener waits until the other side is dropped, and fails then. That goes before the
/// store, which would wait for it.
fn stuck(place: &Place, options: Options) -> (Store, Sender<()>) {
    let (release, released) = mpsc::channel();
    let released = Mutex::new(released);
    let options = options.on_end("tell", move |_, _, _| Ok(released.lock().unwrap().recv()?));
    (options.open(&place.path).unwrap(), release)
}

fn container(store: &Store, name: &str) -> Container {
    store.container_with(name, Policy::new().timeout_secs(0).on_end("tell")).unwrap()
}

fn logout(store: &Store, shop: &Container, key: &str) {
    assert!(store.transact(|txn| txn.remove(shop, key)).unwrap().value);
}

/// What a listener at this place is told when the store is opened, and closed again.
fn told_at(place: &Place) -> Vec<String> {
    let told = Told::default();
    let store = listening(place.options(), &told).open(&place.path).unwrap();
    store.settle();
    store.close().unwrap();
    told.keys()
}

/// Another process finds what this one would leave behind if it died now.
fn crashed(place: &Place) -> Place {
    let copy = Place::new();
    copy_directory(&place.crash(), &copy.path);
    copy
}

#[test]
fn an_end_that_nobody_was_told_of_is_told_by_the_next_process() {
    for is_folded in [false, true] {
        let place = Place::new();
        let (store, release) = stuck(&place, place.options().end_attempts(1));
        let (shop, club) = (container(&store, "shop"), container(&store, "club"));
        let mut expected = Vec::new();
        // More than a page of them, and those of two containers by turns.
        for n in 0..300 {
            let (container, key) = if n % 3 == 0 { (&club, "cy") } else { (&shop, "ada") };
            let key = format!("{key}{n}");
            put(&store, container, &key, n).unwrap();
            logout(&store, container, &key);
            expected.push((key, EndReason::Invalidated, n));
        }
        if is_folded {
            store.fold().unwrap();
        }
        assert_eq!(store.stats().ends_pending, 300);
        let copy = crashed(&place);
        drop(release);

        let told = Told::default();
        let store = listening(copy.options(), &told).open(&copy.path).unwrap();
        store.settle();
        assert_eq!(told.take(), expected);
        // What it was told of is done with, however this one ends.
        assert_eq!(told_at(&crashed(&copy)), [""; 0]);
        store.close().unwrap();
        assert_eq!(told_at(&copy), [""; 0]);
    }
}

#[test]
fn what_was_told_in_the_last_moment_is_told_again_after_a_crash_and_only_then() {
    let (place, told) = (Place::new(), Told::default());
    let store = listening(place.options(), &told).open(&place.path).unwrap();
    let shop = container(&store, "shop");
    for (n, key) in (0..).zip(["ada", "bob", "cy"]) {
        put(&store, &shop, key, n).unwrap();
    }
    logout(&store, &shop, "ada");
    until("she is told of", || told.len() == 1);
    let before = crashed(&place);
    store.settle();
    let after = crashed(&place);
    logout(&store, &shop, "bob");
    until("he is told of", || told.len() == 2);
    drop((shop, store));
    assert_eq!(told.keys(), ["ada", "bob"]);
    assert_eq!(told_at(&place), [""; 0], "dropping a store closes it");
    assert_eq!(told_at(&before), ["ada"]);
    assert_eq!(told_at(&after), [""; 0]);
}

/// The last data, the times and the generation are those of the session, and its own names are not in
/// the way of what is written beside them.
#[test]
fn an_end_that_is_read_again_says_the_same() {
    type Said = (SessionId, String, EndReason, Option<Time>, [Time; 2], Vec<(String, Vec<u8>)>);
    let names = ["attributes", "container", "key", "listener", "reason", "", "n"];
    let hear = |options: Options, fails: bool| {
        let said = Arc::new(Mutex::new(Vec::<Said>::new()));
        let heard = Arc::clone(&said);
        let options = options.on_end("tell", move |_, session, reason| {
            let attributes = session.iter();
            heard.lock().unwrap().push((
                session.id(),
                format!("{} {:?}", session.container(), session.key().as_bytes()),
                reason,
                session.last_modified(),
                [session.created(), session.last_accessed()],
                attributes.map(|(name, value)| (name.into(), value.as_bytes().into())).collect(),
            ));
            if fails { Err("later".into()) } else { Ok(()) }
        });
        (options, said)
    };
    let place = Place::new();
    let clock = ManualClock::new(Time::from_secs(1_000_000_800));
    let (options, first) = hear(place.options().clock(clock.clone()), true);
    let store = options.open(&place.path).unwrap();
    let shop = store.container_with("shop", Policy::new().timeout_secs(60).on_end("tell")).unwrap();
    let made = store.transact(|txn| {
        txn.create(&shop, "nothing")?;
        let session = txn.create(&shop, vec![0xff; 100])?;
        names.iter().try_for_each(|name| session.insert(name, format!("{name}!")))
    });
    made.unwrap();
    clock.advance_secs(45);
    store.transact(|txn| txn.remove(&shop, "nothing")).unwrap();
    clock.advance_secs(100);
    assert_eq!(store.sweep().unwrap().ended, 1);
    store.settle();
    store.close().unwrap();
    let (options, second) = hear(place.options(), false);
    let store = options.open(&place.path).unwrap();
    store.settle();
    let first = first.lock().unwrap();
    assert_eq!(*second.lock().unwrap(), *first);
    assert_eq!(first[1].5.len(), names.len());
    assert_eq!([first[0].2, first[1].2], [EndReason::Invalidated, EndReason::Expired]);
}

/// A release that has dropped a listener: nobody is to be told, now or later.
#[test]
fn an_end_whose_listener_is_gone_is_done_with() {
    let place = Place::new();
    let (store, release) = stuck(&place, place.options());
    let shop = container(&store, "shop");
    put(&store, &shop, "ada", 1).unwrap();
    logout(&store, &shop, "ada");
    let copy = crashed(&place);
    drop(release);
    let store = copy.open();
    store.settle();
    assert_eq!(store.stats().listener_failures, 0);
    store.close().unwrap();
    assert_eq!(told_at(&copy), [""; 0]);
    // Where there is none to begin with, nothing is written down.
    let store = copy.open();
    let shop = store.container("shop").unwrap();
    put(&store, &shop, "bob", 1).unwrap();
    logout(&store, &shop, "bob");
    let crashed = crashed(&copy);
    assert_eq!(told_at(&crashed), [""; 0]);
}

/// A listener fails: others are told meanwhile, it gets its chances at doubling distances, and then the
/// end is given up.
#[test]
fn a_listener_that_fails_is_called_again_and_then_given_up() {
    let (place, told) = (Place::new(), Told::default());
    let clock = ManualClock::new(Time::from_secs(1_000_000_800));
    let calls = Arc::new(Mutex::new(Vec::new()));
    let (called, turned) = (Arc::clone(&calls), clock.clone());
    let options = listening(place.options().clock(clock.clone()), &told);
    let options = options.on_end("fail", move |_, session, _| {
        let secs = sessile::Clock::elapsed(&turned).as_secs();
        called.lock().unwrap().push((session.get::<u64>("n").unwrap(), secs));
        if secs % 2 == 0 {
            panic!("a listener may panic")
        }
        Err("not now".into())
    });
    let store = options.open(&place.path).unwrap();
    let events = store.events();
    let shop = container(&store, "shop");
    let trap = store.container_with("trap", Policy::new().on_end("fail")).unwrap();
    for (n, container) in (1..).zip([&trap, &shop, &trap]) {
        put(&store, container, "ada", n).unwrap();
        logout(&store, container, "ada");
        if n == 2 {
            store.settle();
            assert_eq!(told.keys(), ["ada"], "nobody waits for one that fails");
            clock.elapse(Duration::from_secs(1));
        }
    }
    for _ in 0..40 {
        store.settle();
        clock.elapse(Duration::from_secs(1));
    }
    let calls = std::mem::take(&mut *calls.lock().unwrap());
    let of = |wanted: u64| -> Vec<_> {
        calls.iter().filter(|(n, _)| *n == wanted).map(|(_, secs)| *secs).collect()
    };
    assert_eq!(of(1), [0, 1, 3, 7, 15]);
    assert_eq!(of(3), [1, 2, 4, 8, 16]);
    let Stats { dead_letters, listener_failures, ends_pending, .. } = store.stats();
    assert_eq!((dead_letters, listener_failures, ends_pending), (2, 10, 0));
    let given_up: Vec<_> = events.try_iter().filter_map(given_up).collect();
    assert_eq!(given_up, [1, 3]);
    store.close().unwrap();
    assert_eq!(told_at(&place), [""; 0], "given up is given up");
}

fn given_up(event: Event) -> Option<u64> {
    match event {
        Event::EndGivenUp(session, EndReason::Invalidated) => session.get("n"),
        _ => None,
    }
}

/// Nobody waits for the next chance of a listener when the store is closed: it comes with the next open.
#[test]
fn a_store_may_be_closed_while_a_listener_is_to_be_called_again() {
    let place = Place::new();
    let failing = || place.options().on_end("tell", |_, _, _| Err("not now".into()));
    let store = failing().open(&place.path).unwrap();
    let shop = container(&store, "shop");
    put(&store, &shop, "ada", 1).unwrap();
    logout(&store, &shop, "ada");
    drop(shop);
    for _ in 0..2 {
        let stats = store.clone().close().unwrap();
        assert_eq!((stats.listener_failures, stats.dead_letters), (1, 0));
    }
    // Nor does the number of attempts go on.
    for _ in 0..6 {
        let store = failing().open(&place.path).unwrap();
        store.settle();
        let stats = store.close().unwrap();
        assert_eq!((stats.listener_failures, stats.dead_letters), (1, 0));
    }
    assert_eq!(told_at(&place), ["ada"]);
    assert_eq!(told_at(&place), [""; 0]);
}

/// A listener ends other sessions, those too that it finds when it is told of what was left behind.
#[test]
fn listeners_may_end_others() {
    let (place, told) = (Place::new(), Told::default());
    let (store, release) = stuck(&place, place.options());
    let shop = container(&store, "shop");
    for n in 0..20 {
        put(&store, &shop, &n.to_string(), n).unwrap();
    }
    logout(&store, &shop, "0");
    let copy = crashed(&place);
    drop(release);
    let heard = told.clone();
    let chain = copy.options().on_end("tell", move |store, session, reason| {
        let n: u64 = session.get("n").ok_or("it has a number")?;
        heard.0.lock().unwrap().push((n.to_string(), reason, n));
        let shop = store.container("shop")?;
        store.transact(|txn| txn.remove(&shop, (n + 1).to_string()))?;
        Ok(())
    });
    let store = chain.open(&copy.path).unwrap();
    until("all are told of", || told.len() == 20);
    store.close().unwrap();
    assert!(told.keys().into_iter().eq((0..20).map(|n| n.to_string())));
    assert_eq!(told_at(&copy), [""; 0]);
}

/// Far more was left behind than may be pending: it stays on the disk until it is its turn, and keeps
/// nobody waiting.
#[test]
fn what_was_left_behind_takes_no_room_in_memory() {
    const LEFT: u64 = 600;
    let place = Place::new();
    let (store, release) = stuck(&place, place.options());
    let shop = container(&store, "shop");
    for n in 0..LEFT {
        put(&store, &shop, &n.to_string(), n).unwrap();
        logout(&store, &shop, &n.to_string());
    }
    let (slow, failing) = (crashed(&place), crashed(&place));
    drop(release);

    // A listener that is stuck.
    let told = Told::default();
    let (release, released) = mpsc::channel::<()>();
    let (released, heard) = (Mutex::new(released), told.clone());
    let options = slow.options().ends_pending_max(10).on_end("tell", move |_, session, reason| {
        let _ = released.lock().unwrap().recv();
        let n: u64 = session.get("n").ok_or("it has a number")?;
        heard.0.lock().unwrap().push((n.to_string(), reason, n));
        Ok(())
    });
    let store = options.open(&slow.path).unwrap();
    let shop = store.container("shop").unwrap();
    for n in LEFT..LEFT + 100 {
        put(&store, &shop, &n.to_string(), n).unwrap();
        logout(&store, &shop, &n.to_string());
    }
    assert!(store.stats().ends_pending <= 101, "{}", store.stats().ends_pending);
    drop(release);
    store.settle();
    assert!(told.keys().into_iter().eq((0..LEFT + 100).map(|n| n.to_string())));
    store.close().unwrap();
    assert_eq!(told_at(&slow), [""; 0]);

    // One that fails: what waits for its next chance is as much as may be pending.
    let clock = ManualClock::new(Time::from_secs(1_000_000_800));
    let options = failing.options().clock(clock.clone()).ends_pending_max(10).end_attempts(2);
    let options = options.on_end("tell", |_, _, _| Err("not now".into()));
    let store = options.open(&failing.path).unwrap();
    for _ in 0..LEFT / 10 {
        store.settle();
        assert_eq!(store.stats().ends_pending, 10);
        clock.elapse(Duration::from_secs(1));
    }
    store.settle();
    let stats = store.stats();
    assert_eq!((stats.ends_pending, stats.dead_letters), (0, LEFT));
    assert_eq!(stats.listener_failures, 2 * LEFT);
    store.close().unwrap();
    assert_eq!(told_at(&failing), [""; 0]);
}

/// A store with much left behind is closed without waiting for all of it to be told.
#[test]
fn closing_leaves_what_was_left_behind() {
    let place = Place::new();
    let (store, release) = stuck(&place, place.options());
    let shop = container(&store, "shop");
    for n in 0..20 {
        put(&store, &shop, &n.to_string(), n).unwrap();
        logout(&store, &shop, &n.to_string());
    }
    let copy = crashed(&place);
    drop(release);
    let (told, (in_time, is_time)) = (Told::default(), mpsc::channel::<()>());
    let (is_time, heard) = (Mutex::new(is_time), told.clone());
    let closing = Arc::new(AtomicBool::new(false));
    let closed = Arc::clone(&closing);
    let options = copy.options().on_end("tell", move |store, session, reason| {
        if heard.len() == 5 {
            is_time.lock().unwrap().recv()?;
            // Whoever closes it goes as far as to wait for this listener.
            while !closed.load(Ordering::SeqCst) || store.stats().ends_pending > 1 {
                std::thread::yield_now();
            }
        }
        let n: u64 = session.get("n").ok_or("it has a number")?;
        heard.0.lock().unwrap().push((n.to_string(), reason, n));
        Ok(())
    });
    let store = options.open(&copy.path).unwrap();
    until("some are told of", || told.len() == 5);
    in_time.send(()).unwrap();
    closing.store(true, Ordering::SeqCst);
    store.close().unwrap();
    let first = told.keys();
    let all: Vec<_> = first.iter().cloned().chain(told_at(&copy)).collect();
    assert!(all.into_iter().eq((0..20).map(|n| n.to_string())));
    assert!(first.len() < 20, "it may have told one or two more, but not all");
}

/// On a disk that is full sessions end all the same, and are told of. What cannot be written down is
/// counted.
#[test]
fn a_full_disk_takes_ends_that_it_cannot_write_down() {
    let (place, told) = (Place::new(), Told::default());
    let options = place.options().segment_bytes(256 << 10).snapshot_age_max(Duration::MAX);
    let store = listening(options, &told).open(&place.path).unwrap();
    let shop = container(&store, "shop");
    let write = |key: &str, n: u64, bytes: usize| {
        let txn = putting(&store, &shop, key, n);
        txn.get(&shop, key).unwrap().unwrap().insert("ballast", "x".repeat(bytes)).unwrap();
        txn.commit()
    };
    for n in 0..20 {
        write(&n.to_string(), n, 3_000).unwrap();
    }
    store.fold().unwrap();
    let reserve = place.path.join("reserve");
    until("the reserve is there", || reserve.exists());
    place.disk.fill(0);
    for bytes in [4_000, 0] {
        let is_full = |n: u64| match write(&format!("ballast {bytes} {n}"), n, bytes) {
            Ok(_) => false,
            Err(Error::Full) => !reserve.exists() && store.fold().is_err(),
            Err(error) => panic!("{error:?}"),
        };
        assert!((0..10_000).any(is_full));
    }
    for n in 0..20 {
        logout(&store, &shop, &n.to_string());
    }
    store.settle();
    assert_eq!(store.stats().ends_unwritten, 20);
    assert!(told.keys().into_iter().eq((0..20).map(|n| n.to_string())));

    place.disk.mend();
    until("everything works", || write("ballast", 0, 4_000).is_ok());
    logout(&store, &shop, "ballast");
    assert_eq!(store.stats().ends_unwritten, 20);
    store.close().unwrap();
    assert_eq!(told.keys(), ["ballast"]);
    assert_eq!(told_at(&place), [""; 0]);
}

/// To forget what was told makes room. So it is done on a full disk too, and nobody is told twice.
#[test]
fn a_full_disk_takes_acknowledgements() {
    let (place, told) = (Place::new(), Told::default());
    let options = place.options().segment_bytes(256 << 10).sweep_every(None);
    let store = listening(options, &told).open(&place.path).unwrap();
    let shop = container(&store, "shop");
    let write = |key: &str, bytes: usize| {
        let txn = putting(&store, &shop, key, 1);
        txn.get(&shop, key).unwrap().unwrap().insert("ballast", "x".repeat(bytes)).unwrap();
        txn.commit()
    };
    (0..20).for_each(|n| drop(write(&n.to_string(), 0).unwrap()));
    store.fold().unwrap();
    let reserve = place.path.join("reserve");
    until("the reserve is there", || reserve.exists());
    (0..20).for_each(|n| logout(&store, &shop, &n.to_string()));
    until("they are told", || told.len() == 20);
    place.disk.fill(0);
    for bytes in [4_000, 0] {
        let is_full = |n: u64| match write(&format!("ballast {bytes} {n}"), bytes) {
            Ok(_) => false,
            Err(Error::Full) => !reserve.exists() && store.fold().is_err(),
            Err(error) => panic!("{error:?}"),
        };
        assert!((0..10_000).any(is_full));
    }
    // What it could not move into the tables is in the log.
    let _ = store.close();
    place.disk.mend();
    assert_eq!(told_at(&place), [""; 0]);
}

/// A sweep whose ends do not fit into one commit with what is written down of them takes several. One
/// that is too large by itself goes without.
#[test]
fn ends_that_are_large_are_written_down_in_several_commits() {
    let place = Place::new();
    let clock = ManualClock::new(Time::from_secs(1_000_000_800));
    let options = place.options().segment_bytes(16 << 10).clock(clock.clone());
    let (store, release) = stuck(&place, options);
    let policy = Policy::new().timeout_secs(60).on_end("tell");
    let shop = store.container_with("shop", policy).unwrap();
    for n in 0..30 {
        let txn = putting(&store, &shop, &n.to_string(), n);
        // The last one leaves no room for a name and a number.
        let bytes = if n < 29 { 2_000 } else { 6_600 };
        let session = txn.get(&shop, n.to_string()).unwrap().unwrap();
        session.insert("ballast", "x".repeat(bytes)).unwrap();
        txn.commit().unwrap();
    }
    clock.advance_secs(1_000);
    let before = store.stats().commits;
    assert_eq!(store.sweep().unwrap().ended, 30);
    assert!(store.stats().commits > before + 8);
    assert_eq!(store.stats().ends_unwritten, 1);
    let copy = crashed(&place);
    drop(release);
    let mut told = told_at(&copy);
    told.sort_by_key(|n| n.parse::<u64>().unwrap());
    assert!(told.into_iter().eq((0..29).map(|n| n.to_string())));
}

/// Settings that keep sessions for longer end those that have expired first. What is written down of them
/// counts too when a batch gets no more.
#[test]
fn what_is_written_down_of_ends_may_be_more_than_a_batch() {
    let (place, told) = (Place::new(), Told::default());
    let clock = ManualClock::new(Time::from_secs(1_000_000_800));
    let options = place.options().segment_bytes(16 << 10).clock(clock.clone());
    let store = listening(options, &told).open(&place.path).unwrap();
    let policy = |minutes| Policy::new().timeout_mins(minutes).on_end("tell");
    let shops: Vec<_> = (0..3)
        .map(|n: u64| store.container_with(&format!("shop {n}"), policy(20)).unwrap())
        .collect();
    for shop in &shops {
        for n in 0..2 {
            let txn = putting(&store, shop, &n.to_string(), n);
            let session = txn.get(shop, n.to_string()).unwrap().unwrap();
            session.insert("ballast", "x".repeat(2_800)).unwrap();
            txn.commit().unwrap();
        }
    }
    clock.advance_secs(3_600);
    let settings = store.begin().unwrap();
    shops.iter().for_each(|shop| settings.set_policy(shop, policy(120)).unwrap());
    settings.commit().unwrap();
    store.settle();
    assert_eq!((told.len(), store.stats().expired, store.stats().ends_unwritten), (6, 6, 0));
}
