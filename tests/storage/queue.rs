//! Who waits in the queue, or for room in it, while the storage fails: everybody is answered, and what
//! came to nothing leaves nothing behind.

use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use sessile::{Commit, Container, Error, Event, LimitKind, ManualClock, Policy, Rule, Store, Time};

use crate::fragile::{Fault, Operation};
use crate::{PATIENCE, Place, got, put, putting, shop, until, verdict, wait_for};

fn poll(commit: &mut Commit, waker: &Waker) -> Poll<Result<sessile::Report, Error>> {
    Pin::new(commit).poll(&mut Context::from_waker(waker))
}

/// A container that is refused in a batch with others is none, and nobody gets another one under its
/// name.
#[test]
fn a_container_that_is_refused_leaves_no_name() {
    let place = Place::new();
    let store = place.options().segment_bytes(4 << 10).open(&place.path).unwrap();
    let shop = shop(&store);
    let rule = |policy: Policy, n: u64| policy.rule(format!("attribute {n}"), Rule::Sum);
    let large = (0..100).fold(Policy::new(), rule);
    let gate = place.disk.gate(Operation::Sync, "log-");
    let held = putting(&store, &shop, "ada", 1).commit_async();
    gate.wait();
    let beside = putting(&store, &shop, "bob", 1).commit_async();
    thread::scope(|scope| {
        let made = scope.spawn(|| store.container_with("large", large));
        until("both are queued", || store.stats().queued == 2);
        gate.open();
        let limit = LimitKind::TransactionBytes;
        let refused = made.join().unwrap();
        assert!(matches!(&refused, Err(Error::Limit { limit: l, .. }) if *l == limit));
    });
    verdict(held).unwrap();
    verdict(beside).unwrap();
    let absent = store.container("large");
    assert!(matches!(absent, Err(Error::NoContainer { .. })), "{absent:?}");
    store.container_with("other", Policy::new()).unwrap();
    assert_eq!(store.containers().len(), 2);
}

/// A sweep that began while a container was in doubt goes on when there is none.
#[test]
fn a_sweep_does_not_stumble_over_a_container_that_came_to_nothing() {
    let place = Place::new();
    let clock = ManualClock::new(Time::from_secs(1_000_000_800));
    let store = place.options().clock(clock.clone()).open(&place.path).unwrap();
    let shop = shop(&store);
    put(&store, &shop, "ada", 1).unwrap();
    clock.advance_secs(100_000);
    let gate = place.disk.gate(Operation::Sync, "log-");
    thread::scope(|scope| {
        let made = scope.spawn(|| store.container_with("new", Policy::new()));
        gate.wait();
        let swept = scope.spawn(|| store.sweep());
        until("the sweep is queued", || store.stats().queued == 1);
        place.disk.breaks(Fault::on(Operation::Sync, "log-").loses().times(1));
        gate.open();
        assert!(matches!(made.join().unwrap(), Err(Error::Unknown { .. })));
        assert_eq!(swept.join().expect("it does not panic").unwrap().ended, 1);
    });
    assert!(matches!(store.container("new"), Err(Error::NoContainer { .. })));
}

struct Told(mpsc::Sender<()>);

impl Wake for Told {
    fn wake(self: Arc<Self>) {
        // Who is told more often than he listens is told.
        let _ = self.0.send(());
    }
}

/// A task that found the queue full is woken when it is emptied, also by a failure.
#[test]
fn a_task_without_room_is_told_of_a_failure() {
    let place = Place::new();
    let store = place.options().queue_max(1).open(&place.path).unwrap();
    let shop = shop(&store);
    put(&store, &shop, "ada", 1).unwrap();
    let gate = place.disk.gate(Operation::Sync, "log-");
    let held = putting(&store, &shop, "ada", 2).commit_async();
    gate.wait();
    let queued = putting(&store, &shop, "bob", 2).commit_async();
    let mut waiting = putting(&store, &shop, "cy", 2).commit_async();
    let (told, tells) = mpsc::channel();
    let waker = Waker::from(Arc::new(Told(told)));
    assert!(poll(&mut waiting, &waker).is_pending());
    place.disk.breaks(Fault::on(Operation::Sync, "log-"));
    gate.open();
    assert!(matches!(verdict(held), Err(Error::Unknown { .. })));
    assert!(matches!(verdict(queued), Err(Error::Storage(_))));
    let failed = loop {
        tells.recv_timeout(PATIENCE).expect("whoever waits for room is told that there is some");
        if let Poll::Ready(verdict) = poll(&mut waiting, &waker) {
            break verdict;
        }
    };
    assert!(matches!(failed, Err(Error::Storage(_))), "{failed:?}");
    place.disk.mend();
}

/// Those who were taken from the queue with a batch that fails, and did not fit into it, are not kept
/// waiting for the end of the failure.
#[test]
fn those_behind_a_batch_that_fails_are_answered_at_once() {
    let place = Place::new();
    let store = place.options().segment_bytes(4 << 10).open(&place.path).unwrap();
    let shop = shop(&store);
    put(&store, &shop, "ada", 1).unwrap();
    let gate = place.disk.gate(Operation::Sync, "log-");
    let held = putting(&store, &shop, "ada", 2).commit_async();
    gate.wait();
    let commits: Vec<_> = (0..6)
        .map(|n| {
            let txn = putting(&store, &shop, &n.to_string(), n);
            let session = txn.get(&shop, n.to_string()).unwrap().unwrap();
            session.insert("ballast", "x".repeat(1_000)).unwrap();
            txn.commit_async()
        })
        .collect();
    place.disk.breaks(Fault::on(Operation::Sync, "log-").after(1));
    gate.open();
    verdict(held).unwrap();
    let verdicts: Vec<_> = commits.into_iter().map(|commit| verdict(commit).unwrap_err()).collect();
    let unknown = verdicts.iter().take_while(|error| matches!(error, Error::Unknown { .. }));
    let unknown = unknown.count();
    assert!((1..6).contains(&unknown), "they do not fit into one batch");
    assert!(verdicts[unknown..].iter().all(|error| matches!(error, Error::Storage(_))));
    place.disk.mend();
}

/// Commits without end, each from where the verdict on the one before is told.
struct Insistent {
    store: Store,
    shop: Container,
    commit: Mutex<Option<Commit>>,
    done: mpsc::Sender<()>,
    own: Weak<Insistent>,
}

impl Insistent {
    fn again(&self) {
        let waker = Waker::from(self.own.upgrade().unwrap());
        let mut commit = self.commit.lock().unwrap();
        loop {
            let mut next = commit
                .take()
                .unwrap_or_else(|| putting(&self.store, &self.shop, "ada", 9).commit_async());
            match poll(&mut next, &waker) {
                Poll::Pending => {
                    *commit = Some(next);
                    return;
                }
                Poll::Ready(Err(Error::Unknown { .. } | Error::Storage(_))) => {}
                Poll::Ready(verdict) => {
                    assert!(verdict.is_ok(), "{verdict:?}");
                    self.done.send(()).unwrap();
                    return;
                }
            }
        }
    }
}

impl Wake for Insistent {
    fn wake(self: Arc<Self>) {
        self.again();
    }
}

/// However insistent those are who want to commit, the store finds the time to recover.
#[test]
fn requests_that_keep_coming_do_not_put_off_the_recovery() {
    let place = Place::new();
    let store = place.open();
    let shop = shop(&store);
    put(&store, &shop, "ada", 1).unwrap();
    let events = store.events();
    // The second one is that of the first attempt to go on.
    place.disk.breaks(Fault::on(Operation::Sync, "log-").times(2));
    let (done, is_done) = mpsc::channel();
    let insistent = Arc::new_cyclic(|own| Insistent {
        store: store.clone(),
        shop: shop.clone(),
        commit: Mutex::default(),
        done,
        own: Weak::clone(own),
    });
    insistent.again();
    is_done.recv_timeout(PATIENCE).expect("the store goes on");
    wait_for(&events, |event| matches!(event, Event::StorageRecovered { .. }).then_some(()));
    assert_eq!(got(&store, &shop, "ada"), Some(9));
}

/// Drops what it keeps when it is woken, as an executor does that is gone already.
struct Forsaken(Mutex<Option<Store>>);

impl Wake for Forsaken {
    fn wake(self: Arc<Self>) {
        drop(self.0.lock().unwrap().take());
    }
}

/// The last handle of a store may go on a thread of the store's own: it is closed all the same.
#[test]
fn a_store_may_be_dropped_by_whom_it_wakes() {
    for others in [0, 50] {
        let place = Place::new();
        let store = place.open();
        let shop = shop(&store);
        put(&store, &shop, "ada", 0).unwrap();
        let gate = place.disk.gate(Operation::Sync, "log-");
        let held = putting(&store, &shop, "ada", 1).commit_async();
        gate.wait();
        let mut last = putting(&store, &shop, "ada", 2).commit_async();
        let others: Vec<_> =
            (0..others).map(|n| putting(&store, &shop, &n.to_string(), n).commit_async()).collect();
        let waker = Waker::from(Arc::new(Forsaken(Mutex::new(Some(store)))));
        assert!(poll(&mut last, &waker).is_pending());
        gate.open();
        verdict(held).unwrap();
        others.into_iter().for_each(|commit| drop(verdict(commit).unwrap()));
        until("it is closed", || place.options().open(&place.path).is_ok());
        let store = place.open();
        assert_eq!(got(&store, &store.container("shop").unwrap(), "ada"), Some(2));
    }
}

struct Panicking;

impl Wake for Panicking {
    fn wake(self: Arc<Self>) {
        panic!("the executor is broken");
    }
}

/// A task that cannot be woken is nobody else's trouble.
#[test]
fn a_waker_that_panics_stops_nobody() {
    let place = Place::new();
    let store = place.options().queue_max(1).open(&place.path).unwrap();
    let shop = shop(&store);
    put(&store, &shop, "ada", 0).unwrap();
    let waker = Waker::from(Arc::new(Panicking));
    let gate = place.disk.gate(Operation::Sync, "log-");
    let held = putting(&store, &shop, "ada", 1).commit_async();
    gate.wait();
    // One is woken by its verdict, and one because there is room.
    let mut commits = ["bob", "cy"].map(|key| putting(&store, &shop, key, 1).commit_async());
    commits.iter_mut().for_each(|commit| assert!(poll(commit, &waker).is_pending()));
    gate.open();
    verdict(held).unwrap();
    commits.into_iter().for_each(|commit| drop(verdict(commit).unwrap()));
    put(&store, &shop, "ada", 2).unwrap();
    store.close().unwrap();
}
