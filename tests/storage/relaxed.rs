//! Commits that are acknowledged before they are synced: when they are synced, and what is taken back
//! if that fails.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::Duration;

use sessile::{
    Container, Durability, Error, Event, ManualClock, Options, Policy, Revision, Store, Time,
};

use crate::fragile::{Fault, Operation};
use crate::{Place, got, put, putting, seen, verdict, wait_for};

/// Longer than any test takes: nothing is synced because time has gone by, unless it is told to.
const HOUR: Duration = Duration::from_secs(3_600);

fn options(place: &Place, clock: &ManualClock, delay: Duration) -> Options {
    place.options().clock(clock.clone()).sync_delay(delay)
}

fn clock() -> ManualClock {
    ManualClock::new(Time::from_secs(1_000_000_800))
}

fn relaxed(store: &Store, name: &str) -> Container {
    store.container_with(name, Policy::new().durability(Durability::Relaxed)).unwrap()
}

fn syncs(place: &Place) -> usize {
    place.disk.count(Operation::Sync, "log-")
}

/// How often the log is written and synced meanwhile.
fn written_and_synced(place: &Place, work: impl FnOnce()) -> (usize, usize) {
    let counts = || (place.disk.count(Operation::Write, "log-"), syncs(place));
    let before = counts();
    work();
    let after = counts();
    (after.0 - before.0, after.1 - before.1)
}

#[test]
fn what_is_relaxed_is_seen_at_once_and_synced_when_its_time_has_come() {
    let (place, clock) = (Place::new(), clock());
    let delay = Duration::from_millis(2);
    let store = options(&place, &clock, delay).open(&place.path).unwrap();
    let shop = relaxed(&store, "shop");
    let done = written_and_synced(&place, || {
        for n in 1..=100 {
            put(&store, &shop, "ada", n).unwrap();
            assert_eq!(got(&store, &shop, "ada"), Some(n));
        }
    });
    assert_eq!(done, (100, 0), "no time has gone by");
    let before = syncs(&place);
    clock.elapse(delay);
    place.disk.wait_for(Operation::Sync, "log-", before + 1);
    // Once is enough.
    clock.elapse(delay);
    store.close().unwrap();
    assert_eq!(syncs(&place), before + 1);
}

/// Commits that keep coming do not put it off.
#[test]
fn what_is_relaxed_is_synced_in_time_however_busy_the_store_is() {
    let (place, clock) = (Place::new(), clock());
    let store = options(&place, &clock, HOUR).open(&place.path).unwrap();
    let shop = relaxed(&store, "shop");
    put(&store, &shop, "ada", 1).unwrap();
    let before = syncs(&place);
    for n in 0..4 {
        clock.elapse(HOUR / 4);
        put(&store, &shop, "ada", n).unwrap();
    }
    place.disk.wait_for(Operation::Sync, "log-", before + 1);
}

/// What may be taken back is kept, each state of it: so it is synced earlier if it becomes much.
#[test]
fn what_is_not_synced_does_not_pile_up_in_memory() {
    const MEMORY: usize = 1 << 20;
    let (place, clock) = (Place::new(), clock());
    let options = options(&place, &clock, HOUR).memory_max(MEMORY).segment_bytes(1 << 20);
    let store = options.open(&place.path).unwrap();
    let shop = relaxed(&store, "shop");
    store.transact(|txn| txn.create(&shop, "ada")?.insert("ballast", "x".repeat(50_000))).unwrap();
    let mut most = 0;
    let done = written_and_synced(&place, || {
        for _ in 0..200 {
            store.transact(|txn| txn.get(&shop, "ada")?.unwrap().add("n", 1)).unwrap();
            most = most.max(store.stats().version_bytes);
        }
    });
    assert_eq!(done.0, 200);
    assert!((20..150).contains(&done.1), "{} syncs", done.1);
    assert!(most < MEMORY as u64 / 4, "{most} bytes of what may be taken back");
}

#[test]
fn the_strictest_level_holds() {
    let (place, clock) = (Place::new(), clock());
    let store = options(&place, &clock, HOUR).open(&place.path).unwrap();
    let (fast, safe) =
        (relaxed(&store, "fast"), store.container_with("safe", Policy::new()).unwrap());
    for key in ["ada", "bob", "cy"] {
        put(&store, &fast, key, 1).unwrap();
        put(&store, &safe, key, 1).unwrap();
    }
    let check = |what: &str, synced: bool, work: &dyn Fn() -> Result<Revision, Error>| {
        let done = written_and_synced(&place, || {
            work().unwrap();
        });
        assert_eq!(done, (1, usize::from(synced)), "{what}");
    };
    let both = || {
        let txn = putting(&store, &fast, "ada", 2);
        txn.get(&safe, "ada").unwrap().unwrap().insert("n", 2).unwrap();
        txn
    };
    let set = |txn: sessile::Transaction, durability| {
        txn.set_durability(durability).unwrap();
        Ok(txn.commit()?.revision)
    };
    check("a write", true, &|| Ok(put(&store, &safe, "ada", 2)?.revision));
    check("a relaxed write", false, &|| Ok(put(&store, &fast, "ada", 2)?.revision));
    check("one of each", true, &|| Ok(both().commit()?.revision));
    check("a transaction that may wait", false, &|| set(both(), Durability::Relaxed));
    check("one that may not", true, &|| {
        set(putting(&store, &fast, "ada", 3), Durability::Immediate)
    });
    check("an end", true, &|| {
        let txn = store.begin()?;
        txn.remove(&fast, "bob")?;
        set(txn, Durability::Relaxed)
    });
    check("settings", true, &|| {
        let txn = store.begin()?;
        txn.set_policy(&fast, Policy::new().limit(9).durability(Durability::Relaxed))?;
        set(txn, Durability::Relaxed)
    });
    // Accesses ride along, whatever the container says.
    clock.advance_secs(60);
    check("an access", false, &|| {
        let txn = store.begin()?;
        txn.get(&safe, "ada")?.expect("she is there");
        Ok(txn.commit()?.revision)
    });
    check("a check of what was read", true, &|| {
        clock.advance_secs(60);
        let txn = store.begin()?;
        txn.get(&safe, "ada")?.expect("she is there").require("n")?;
        Ok(txn.commit()?.revision)
    });
    // Who comes back after his time gets another session: that is an end, too.
    clock.advance_secs(3_600);
    check("an end by time", true, &|| Ok(put(&store, &fast, "ada", 4)?.revision));
}

/// An immediate commit makes durable all that was written before it.
#[test]
fn an_immediate_commit_takes_the_others_along() {
    let (place, clock) = (Place::new(), clock());
    let store = options(&place, &clock, HOUR).open(&place.path).unwrap();
    let (fast, safe) =
        (relaxed(&store, "fast"), store.container_with("safe", Policy::new()).unwrap());
    put(&store, &fast, "ada", 1).unwrap();
    put(&store, &safe, "ada", 1).unwrap();
    put(&store, &fast, "bob", 1).unwrap();
    let events = store.events();
    place.disk.breaks(Fault::on(Operation::Sync, "log-").loses().times(1));
    let lost = put(&store, &safe, "bob", 1);
    assert!(matches!(lost, Err(Error::Unknown { .. })), "{lost:?}");
    wait_for(&events, |event| matches!(event, Event::StorageRecovered { .. }).then_some(()));
    let all = [(&fast, "ada"), (&safe, "ada"), (&fast, "bob"), (&safe, "bob")];
    assert_eq!(all.map(|(shop, key)| got(&store, shop, key)), [Some(1), Some(1), None, None]);
}

/// A sync that fails takes back what was seen: whoever has seen it is told so, whether his transaction
/// lives or waits to be committed.
#[test]
fn what_was_seen_too_early_is_revoked() {
    for is_lost in [true, false] {
        let (place, clock) = (Place::new(), clock());
        let delay = Duration::from_millis(2);
        let store = options(&place, &clock, delay).open(&place.path).unwrap();
        let (fast, safe) =
            (relaxed(&store, "fast"), store.container_with("safe", Policy::new()).unwrap());
        put(&store, &fast, "ada", 1).unwrap();
        put(&store, &safe, "ada", 1).unwrap();
        let events = store.events();
        let older = store.begin().unwrap();
        put(&store, &fast, "ada", 2).unwrap();
        let seen_too_early = put(&store, &fast, "bob", 2).unwrap().revision;
        let younger = store.begin().unwrap();
        assert_eq!(younger.revision(), seen_too_early);
        // It writes elsewhere what it makes of what it has seen.
        let dependent = store.begin().unwrap();
        let bob = seen(&dependent, &fast, "bob").unwrap();
        dependent.get(&safe, "ada").unwrap().unwrap().insert("n", bob + 1).unwrap();

        let gate = place.disk.gate(Operation::Sync, "log-");
        clock.elapse(delay);
        gate.wait();
        let dependent = dependent.commit_async();
        let fault = Fault::on(Operation::Sync, "log-").times(1);
        place.disk.breaks(if is_lost { fault.loses() } else { fault });
        gate.open();
        let durable = wait_for(&events, |event| match event {
            Event::StorageRecovered { durable } => Some(*durable),
            _ => None,
        });
        assert_eq!(durable < seen_too_early, is_lost);
        let dependent = verdict(dependent);
        match is_lost {
            true => {
                assert!(matches!(dependent, Err(Error::SnapshotTooOld { .. })), "{dependent:?}");
                let late = younger.peek(&fast, "ada");
                assert!(matches!(late, Err(Error::SnapshotTooOld { .. })), "{late:?}");
                assert!(matches!(younger.commit(), Err(Error::SnapshotTooOld { .. })));
            }
            false => {
                dependent.unwrap();
                assert_eq!(seen(&younger, &fast, "ada"), Some(2));
                younger.commit().unwrap();
            }
        }
        assert_eq!(seen(&older, &fast, "ada"), Some(1));
        assert_eq!(seen(&older, &fast, "bob"), None);
        older.get(&safe, "ada").unwrap().unwrap().insert("old", true).unwrap();
        older.commit().unwrap();
        let expected = if is_lost { (Some(1), None, Some(1)) } else { (Some(2), Some(2), Some(3)) };
        let check = |store: &Store| {
            let [fast, safe] = ["fast", "safe"].map(|name| store.container(name).unwrap());
            let found =
                (got(store, &fast, "ada"), got(store, &fast, "bob"), got(store, &safe, "ada"));
            assert_eq!(found, expected);
        };
        check(&store);
        assert_eq!(store.begin().unwrap().len(&fast).unwrap(), 1 + u64::from(!is_lost));
        let next = put(&store, &fast, "cy", 1).unwrap().revision;
        assert!(next > seen_too_early, "{next} has been used");
        assert_eq!(store.stats().snapshots, 0);
        check(&options(&place, &clock, HOUR).open(place.crash()).unwrap());
        store.close().unwrap();
        check(&options(&place, &clock, HOUR).open(&place.path).unwrap());
    }
}

/// Whoever begins while it is taken back sees all of it or nothing, like everybody else.
#[test]
fn what_is_taken_back_is_never_seen_in_part() {
    const SESSIONS: u64 = 500;
    let (place, clock) = (Place::new(), clock());
    let delay = Duration::from_millis(2);
    let options = options(&place, &clock, delay).segment_bytes(1 << 20);
    let store = options.open(&place.path).unwrap();
    let shop = relaxed(&store, "shop");
    let set = |n: u64| {
        let all = store.transact(|txn| {
            (0..SESSIONS)
                .try_for_each(|key| txn.get_or_create(&shop, key.to_string())?.insert("n", n))
        });
        all.unwrap();
    };
    set(0);
    store.fold().unwrap();
    let events = store.events();
    let looked = AtomicU64::new(0);
    let (stop, stopped) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let look = || {
            let txn = store.begin().unwrap();
            let n = |key: u64| {
                let session = txn.peek(&shop, key.to_string())?;
                session.expect("nobody ends it").get::<u64>("n")
            };
            let seen: Result<Vec<_>, _> = [0, SESSIONS - 1, 0].map(n).into_iter().collect();
            match seen {
                Ok(seen) => assert!(seen.iter().all(|n| *n == seen[0]), "{seen:?}"),
                Err(error) => assert!(matches!(error, Error::SnapshotTooOld { .. })),
            }
            looked.fetch_add(1, Ordering::Relaxed);
        };
        scope.spawn(move || {
            while stopped.try_recv() == Err(TryRecvError::Empty) {
                look();
            }
        });
        // Dropped, whatever happens: then the other one stops.
        let _stop = stop;
        for n in 1..=30 {
            set(n);
            place.disk.breaks(Fault::on(Operation::Sync, "log-").loses());
            clock.elapse(delay);
            wait_for(&events, |event| matches!(event, Event::StorageFailed { .. }).then_some(()));
            place.disk.mend();
            wait_for(&events, |event| {
                matches!(event, Event::StorageRecovered { .. }).then_some(())
            });
            assert_eq!(got(&store, &shop, "0"), Some(0));
        }
    });
    assert!(looked.into_inner() > 30);
}

/// Who is told that a session is nobody's, durably, is told so for good, whoever has made it so.
#[test]
fn who_finds_things_as_wanted_waits_until_they_are_durable() {
    let (place, clock) = (Place::new(), clock());
    let store = options(&place, &clock, HOUR).open(&place.path).unwrap();
    let shop = relaxed(&store, "shop");
    store.transact(|txn| txn.create(&shop, "ada")?.bind("ada", "")).unwrap();
    let unbind = |durability| {
        let txn = store.begin().unwrap();
        txn.set_durability(durability).unwrap();
        txn.peek(&shop, "ada").unwrap().unwrap().unbind().unwrap();
        txn.commit()
    };
    let done = |durability| written_and_synced(&place, || drop(unbind(durability).unwrap()));
    assert_eq!(done(Durability::Relaxed), (1, 0));
    assert_eq!(done(Durability::Relaxed), (0, 0));
    assert_eq!(done(Durability::Immediate), (0, 1));
    assert_eq!(done(Durability::Immediate), (0, 0), "there is nothing to be synced any more");

    put(&store, &shop, "ada", 1).unwrap();
    place.disk.breaks(Fault::on(Operation::Sync, "log-").times(1));
    assert!(matches!(unbind(Durability::Immediate), Err(Error::Storage(_))));
}
