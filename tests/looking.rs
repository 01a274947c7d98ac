//! Looking into a store: what is found by filters, in a transaction and from outside.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::time::Duration;

use sessile::{Filter, Key, ManualClock, Options, Policy, Store, Time, Transaction, Viewer};

const START: Time = Time::from_secs(4_100_000_000);

fn options(clock: &ManualClock) -> Options {
    Options::new().clock(clock.clone()).sweep_every(None).segment_bytes(256 << 10)
}

fn keys(txn: &Transaction, container: &sessile::Container, filter: Filter) -> Vec<String> {
    let text = |key: &Key| String::from_utf8(key.as_bytes().to_vec()).unwrap();
    let found = txn.find(container, filter).unwrap();
    found.map(|session| text(session.unwrap().key())).collect()
}

/// A transaction finds what it would see: the snapshot, with what it has changed itself.
#[test]
fn a_transaction_finds_what_it_sees() {
    let clock = ManualClock::new(START);
    let store = options(&clock).memory().unwrap();
    let visitors = store.container_with("visitors", Policy::new()).unwrap();
    for (key, n) in [("a", 1), ("b", 1), ("c", 2), ("d", 1)] {
        store.transact(|txn| txn.create(&visitors, key)?.insert("n", n)).unwrap();
    }
    let ones = || Filter::new().equals("n", 1).unwrap();
    let txn = store.begin().unwrap();
    store.transact(|txn| txn.create(&visitors, "later")?.insert("n", 1)).unwrap();
    txn.get(&visitors, "a").unwrap().unwrap().insert("n", 7).unwrap();
    txn.get(&visitors, "c").unwrap().unwrap().insert("n", 1).unwrap();
    txn.remove(&visitors, "d").unwrap();
    txn.create(&visitors, "e").unwrap().insert("n", 1).unwrap();
    assert_eq!(keys(&txn, &visitors, ones()), ["b", "c", "e"]);
    // To find is no read: what was found by is changed meanwhile, and nobody conflicts.
    store.transact(|txn| txn.get(&visitors, "b")?.unwrap().insert("n", 9)).unwrap();
    txn.get(&visitors, "b").unwrap().unwrap().insert("seen", true).unwrap();
    txn.commit().unwrap();
    assert_eq!(keys(&store.begin().unwrap(), &visitors, ones()), ["c", "e", "later"]);
}

/// Nor is it an access: who is found lives no longer by it.
#[test]
fn what_is_found_outside_is_what_is_found_inside() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let clock = ManualClock::new(START);
    let store: Store = options(&clock).open(&path).unwrap();
    let visitors = store.container_with("visitors", Policy::new().timeout_mins(20)).unwrap();
    store.transact(|txn| txn.create(&visitors, "early")?.insert("cart", ["tea"])).unwrap();
    store.fold().unwrap();
    clock.advance_secs(15 * 60);
    store.transact(|txn| txn.create(&visitors, "late")?.insert("cart", ["tea"])).unwrap();
    store.transact(|txn| txn.create(&visitors, "empty").map(|_| ())).unwrap();
    let viewer = Viewer::open(&path).unwrap();
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let filters = [
        (Filter::new(), vec!["early", "empty", "late"]),
        (Filter::new().has("cart"), vec!["early", "late"]),
        (Filter::new().older_than(minutes(10)), vec!["early"]),
        (Filter::new().expires_within(minutes(10)), vec!["early"]),
        (Filter::new().has("cart").unvisited().idle_for(minutes(1)), vec!["early"]),
        (Filter::new().equals("cart", ["tea"]).unwrap(), vec!["early", "late"]),
        (Filter::new().expired(), vec![]),
    ];
    let outside = |filter: &Filter, now| {
        let found = viewer.find("visitors", filter.clone(), now).unwrap();
        let text = |key: &Key| String::from_utf8(key.as_bytes().to_vec()).unwrap();
        found.map(|session| text(session.unwrap().key())).collect::<Vec<_>>()
    };
    for (filter, expected) in filters {
        assert_eq!(keys(&store.begin().unwrap(), &visitors, filter.clone()), expected);
        assert_eq!(outside(&filter, store.now()), expected, "{filter:?}");
    }
    clock.advance_secs(6 * 60);
    assert_eq!(outside(&Filter::new().expired(), store.now()), ["early"]);
    assert_eq!(keys(&store.begin().unwrap(), &visitors, Filter::new()), ["empty", "late"]);
}
