//! The storage fails while a session is given another key, or ended with the others of its principal:
//! all of it has happened, or nothing.

use std::path::Path;

use sessile::{Container, Error, Event, Fate, ManualClock, Policy, Store, Time, Transaction};

use crate::fragile::{Fault, Operation};
use crate::{Place, wait_for};

/// The keys under which there is a session, and those that the principal's row has.
fn keys(store: &Store) -> (Vec<String>, Vec<String>) {
    let text = |key: &[u8]| String::from_utf8(key.to_vec()).unwrap();
    let shop = store.container("shop").unwrap();
    let txn = store.begin().unwrap();
    let listed = txn.keys(&shop).unwrap().map(|key| text(key.unwrap().as_bytes()));
    let valid = |key: &&String| txn.peek(&shop, *key).unwrap().is_some();
    let known = ["guest", "ada", "phone"].map(str::to_owned);
    let listed: Vec<_> = listed.collect();
    assert_eq!(listed.len(), known.iter().filter(valid).count());
    let bound = txn.sessions_of(&shop, "ada").unwrap();
    let mut bound: Vec<_> = bound.iter().map(|session| text(session.key.as_bytes())).collect();
    bound.sort();
    assert_eq!(store.check().unwrap().problems, []);
    (listed, bound)
}

fn faults() -> [Fault; 5] {
    let write = || Fault::on(Operation::Write, "log-");
    let sync = || Fault::on(Operation::Sync, "log-");
    [write(), write().tears(), sync(), sync().loses(), sync().loses().times(1)]
}

#[test]
fn a_rotation_in_doubt_has_happened_or_not() {
    type Work = fn(&Transaction, &Container) -> Result<(), Error>;
    let rotate: Work =
        |txn, shop| txn.get(shop, "guest")?.ok_or(Error::Ended)?.rotate("ada").map(|_| ());
    let end_others: Work =
        |txn, shop| txn.get(shop, "guest")?.ok_or(Error::Ended)?.rotate("ada")?.end_others();
    let end_all: Work = |txn, shop| txn.end_all_of(shop, "ada");
    let mut fates = [0, 0];
    for (work, after) in [(rotate, &["ada", "phone"][..]), (end_others, &["ada"]), (end_all, &[])] {
        for fault in faults() {
            let place = Place::new();
            let store = place.open();
            let shop = store.container_with("shop", Policy::new()).unwrap();
            for key in ["guest", "phone"] {
                store.transact(|txn| txn.create(&shop, key)?.bind("ada", "")).unwrap();
            }
            let late = store.begin().unwrap();
            late.get(&shop, "guest").unwrap().unwrap().insert("late", 1).unwrap();
            let events = store.events();
            place.disk.breaks(fault);
            let commit = match store.transact(|txn| work(txn, &shop)) {
                Err(Error::Unknown { commit, .. }) => commit,
                other => panic!("{other:?}"),
            };
            place.disk.mend();
            wait_for(&events, |event| {
                matches!(event, Event::StorageRecovered { .. }).then_some(())
            });
            let happened = match store.fate(commit) {
                Fate::Committed => true,
                Fate::NotCommitted => false,
                other => panic!("{other:?}"),
            };
            fates[usize::from(happened)] += 1;
            let expected = if happened { after } else { &["guest", "phone"] };
            let expected: Vec<_> = expected.iter().map(|key| (*key).to_owned()).collect();
            let expected = (expected.clone(), expected);
            assert_eq!(keys(&store), expected);
            // Whoever had found it before reaches it, or is told that it has ended.
            let reached = late.commit();
            assert_eq!(reached.is_ok(), !happened || !after.is_empty(), "{reached:?}");
            assert_eq!(keys(&store), expected);
            let crashed = Store::open(place.crash()).unwrap();
            assert_eq!(keys(&crashed), expected);
        }
    }
    assert!(fates.iter().all(|count| *count > 0), "{fates:?}");
}

/// The tables still have what the log has taken away. What lies behind that is found all the same.
#[test]
fn a_key_that_was_given_up_is_known_after_a_crash() {
    let (place, clock) = (Place::new(), ManualClock::new(Time::from_secs(1_000_000_000)));
    let open = |path: &Path| place.options().clock(clock.clone()).open(path).unwrap();
    let store = open(&place.path);
    let shop = store.container_with("shop", Policy::new().timeout_secs(60)).unwrap();
    let rotate = |from: &str, to: &str| {
        let rotate = |txn: &Transaction| txn.get_or_create(&shop, from)?.rotate(to).map(|_| ());
        let create = |txn: &Transaction| txn.create(&shop, from).map(|_| ());
        store.transact(create).and_then(|_| store.transact(rotate)).unwrap();
    };
    (0..100).for_each(|n| rotate(&format!("a{n}"), &format!("b{n}")));
    clock.advance_secs(70);
    rotate("guest", "ada");
    store.fold().unwrap();
    // Those of the beginning need not be known any more.
    clock.advance_secs(40);
    store.sweep().unwrap();

    let crashed = open(&place.crash());
    let shop = crashed.container("shop").unwrap();
    let txn = crashed.begin().unwrap();
    assert!(txn.create(&shop, "a0").is_ok());
    let refused = txn.create(&shop, "guest");
    assert!(matches!(refused, Err(Error::RotatedKey { .. })), "{refused:?}");
}
