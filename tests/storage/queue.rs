//! Who waits in the queue, or for room in it, while the storage fails: everybody is answered, and what
//! came to nothing leaves nothing behind.

use std::thread;

use sessile::{Error, LimitKind, ManualClock, Policy, Rule, Time};

use crate::fragile::{Fault, Operation};
use crate::{Place, put, putting, shop, until, verdict};

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
