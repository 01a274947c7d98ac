//! What would be too large: transactions, batches, and what is kept in memory.

use sessile::{Error, LimitKind, ManualClock, Policy, Time};

use crate::fragile::Operation;
use crate::{Place, got, put, putting, shop, verdict};

/// A transaction must fit into the log. One that does not is refused alone, and nothing of it is
/// written; those that do not fit together become several batches.
#[test]
fn a_transaction_must_fit_into_the_log() {
    const SEGMENT: u64 = 16 << 10;
    let place = Place::new();
    let store = place.options().segment_bytes(SEGMENT).open(&place.path).unwrap();
    let shop = shop(&store);
    let writing = |key: &str, bytes: usize| {
        let txn = putting(&store, &shop, key, 1);
        txn.get(&shop, key).unwrap().unwrap().insert("ballast", "x".repeat(bytes)).unwrap();
        txn
    };
    let written = || place.disk.count(Operation::Write, "log-");
    for bytes in [SEGMENT, SEGMENT / 2, 100 * SEGMENT / 3] {
        let before = written();
        let error = writing("ada", bytes as usize).commit().unwrap_err();
        let Error::Limit { limit: LimitKind::TransactionBytes, max } = error else {
            panic!("{error:?}")
        };
        assert!(max > SEGMENT / 3 && max < SEGMENT / 2, "{max}");
        assert_eq!((written(), got(&store, &shop, "ada")), (before, None));
    }
    // It may be a transaction of many small ones, too.
    let many = store.transact(|txn| {
        (0..200).try_for_each(|n: u64| txn.create(&shop, format!("many {n}")).map(|_| ()))
    });
    assert!(matches!(many, Err(Error::Limit { limit: LimitKind::TransactionBytes, .. })));
    assert_eq!(store.begin().unwrap().len(&shop).unwrap(), 0);

    // As large as may be, one after the other and all at once.
    let large = SEGMENT as usize / 5 * 2;
    put(&store, &shop, "first", 1).unwrap();
    for n in (0..10).chain(0..10) {
        writing(&n.to_string(), large).commit().unwrap();
    }
    let batches = store.stats().batches;
    let gate = place.disk.gate(Operation::Sync, "log-");
    let held = putting(&store, &shop, "first", 2).commit_async();
    gate.wait();
    let queued: Vec<_> = (10..40)
        .map(|n: u64| {
            let bytes = if n.is_multiple_of(7) { SEGMENT as usize } else { large };
            (n, writing(&n.to_string(), bytes).commit_async())
        })
        .collect();
    gate.open();
    verdict(held).unwrap();
    for (n, commit) in queued {
        match verdict(commit) {
            Ok(_) => assert!(n % 7 != 0),
            Err(Error::Limit { limit: LimitKind::TransactionBytes, .. }) => assert!(n % 7 == 0),
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(store.stats().batches >= batches + 13, "no more than two fit into one");
    store.close().unwrap();
    let store = place.open();
    let shop = store.container("shop").unwrap();
    for n in 0..40 {
        let there = n < 10 || n % 7 != 0;
        assert_eq!(got(&store, &shop, &n.to_string()), there.then_some(1));
    }
}

/// A sweep is cut into commits that fit into the log, however small it is and however large the
/// sessions are: those that live are only filed anew.
#[test]
fn a_sweep_fits_into_the_log() {
    for (segment, sessions, bytes) in [(4 << 10, 100, 0), (256 << 10, 40, 20_000)] {
        let place = Place::new();
        let clock = ManualClock::new(Time::from_secs(1_000_000_800));
        let options = place.options().segment_bytes(segment).clock(clock.clone());
        let store = options.open(&place.path).unwrap();
        let minutes = |minutes| Policy::new().timeout_mins(minutes);
        let shop = store.container_with("shop", minutes(20)).unwrap();
        for n in 0..sessions {
            let txn = putting(&store, &shop, &n.to_string(), n);
            let ada = txn.get(&shop, n.to_string()).unwrap().unwrap();
            ada.insert("ballast", "x".repeat(bytes)).unwrap();
            txn.commit().unwrap();
        }
        // Everybody lives on, in another bucket.
        clock.advance_secs(19 * 60);
        for n in 0..sessions {
            store.transact(|txn| txn.contains(&shop, n.to_string())).unwrap();
        }
        clock.advance_secs(60 + 20);
        let swept = store.sweep().unwrap();
        assert_eq!((swept.examined, swept.ended), (sessions, 0));
        assert_eq!(store.sweep().unwrap().examined, 0);
        // And in an earlier one.
        store.container_with("shop", minutes(10)).unwrap();
        let swept = store.sweep().unwrap();
        assert_eq!((swept.examined, swept.ended), (sessions, 0));
        assert_eq!(store.sweep().unwrap().examined, 0);
        clock.advance_secs(20 * 60);
        let swept = store.sweep().unwrap();
        assert_eq!((swept.examined, swept.ended), (sessions, sessions));
        assert_eq!(store.begin().unwrap().len(&shop).unwrap(), 0);
    }
}
