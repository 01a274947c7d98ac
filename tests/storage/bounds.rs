//! What would be too large: transactions, batches, and what is kept in memory.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use sessile::{Durability, Error, Key, LimitKind, ManualClock, Policy, Time, Transaction};

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

/// Far more sessions than may be in memory: those that nobody uses are let go of, and read again when
/// somebody does. Transactions that live through all of it see the same all the while.
#[test]
fn sessions_are_let_go_of_and_read_again() {
    const SESSIONS: u64 = 2_000;
    const BYTES: usize = 1_000;
    const MEMORY: usize = 512 << 10;
    /// What one round may add before somebody looks.
    const SLACK: usize = 64 << 10;
    let seed = seed();
    let place = Place::new();
    let options = place.options().segment_bytes(256 << 10).memory_max(MEMORY);
    let store = options.open(&place.path).unwrap();
    let shop = store.container_with("shop", Policy::new().durability(Durability::Relaxed)).unwrap();
    let key = |n: u64| format!("{n:05}");
    for n in 0..SESSIONS {
        let txn = putting(&store, &shop, &key(n), 0);
        let session = txn.get(&shop, key(n)).unwrap().unwrap();
        session.insert("ballast", "x".repeat(BYTES)).unwrap();
        txn.commit().unwrap();
    }
    let is_within = || {
        store.fold().unwrap();
        // The next commit lets go of what the fold has settled.
        put(&store, &shop, &key(0), 0).unwrap();
        let stats = store.stats();
        let bytes = stats.resident_bytes as usize;
        assert!(bytes <= MEMORY + SLACK, "{bytes} bytes in memory (SESSILE_SEED={seed})");
        assert!(stats.resident_sessions < SESSIONS / 2, "{stats}");
    };
    is_within();

    // Two numbers move between pairs of sessions; the sum of all is zero in every snapshot.
    let most = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    let moved = |txn: &Transaction, n: u64| {
        let session = txn.peek(&shop, key(n)).unwrap().unwrap();
        session.get::<i64>("moved").unwrap().unwrap_or(0)
    };
    thread::scope(|scope| {
        for thread in 0..3 {
            let mut chance = StdRng::seed_from_u64(seed + thread);
            let (store, shop, most) = (&store, &shop, &most);
            let (done, moved) = (&done, &moved);
            scope.spawn(move || {
                for _ in 0..60 {
                    let old = store.begin().unwrap();
                    let probe: Vec<_> = (0..20).map(|_| chance.random_range(0..SESSIONS)).collect();
                    let seen: Vec<_> = probe.iter().map(|n| moved(&old, *n)).collect();
                    for _ in 0..10 {
                        let pair = [(); 2].map(|()| chance.random_range(0..SESSIONS));
                        let by = chance.random_range(1..100i64);
                        let transfer = store.transact(|txn| {
                            txn.get(shop, key(pair[0]))?.unwrap().add("moved", by)?;
                            txn.get(shop, key(pair[1]))?.unwrap().add("moved", -by)
                        });
                        transfer.unwrap();
                    }
                    let again: Vec<_> = probe.iter().map(|n| moved(&old, *n)).collect();
                    assert_eq!(seen, again, "SESSILE_SEED={seed}");
                    if chance.random_ratio(1, 10) {
                        let sum: i64 = (0..SESSIONS).map(|n| moved(&old, n)).sum();
                        assert_eq!(sum, 0, "SESSILE_SEED={seed}");
                        assert_eq!(old.len(shop).unwrap(), SESSIONS, "SESSILE_SEED={seed}");
                        let keys = old.keys(shop).unwrap().map(Result::unwrap);
                        assert!(keys.eq((0..SESSIONS).map(|n| Key::from(key(n)))));
                    }
                    most.fetch_max(store.stats().resident_bytes, Ordering::Relaxed);
                }
                done.store(true, Ordering::Relaxed);
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                store.fold().unwrap();
            }
        });
    });
    let (most, folds) = (most.into_inner(), store.stats().folds);
    println!("{folds} folds, at most {most} bytes in memory (SESSILE_SEED={seed})");
    assert!(folds > 20);
    // What is not in the tables yet cannot be let go of, nor what an old transaction may ask for.
    assert!(most as usize <= 3 * MEMORY, "{most} bytes in memory (SESSILE_SEED={seed})");
    is_within();
    store.close().unwrap();
    let store = place.open();
    let shop = store.container("shop").unwrap();
    let txn = store.begin().unwrap();
    assert_eq!(txn.len(&shop).unwrap(), SESSIONS);
    let sessions = txn.iter(&shop).unwrap().map(Result::unwrap);
    let sum: i64 = sessions.map(|session| session.get::<i64>("moved").unwrap().unwrap_or(0)).sum();
    assert_eq!(sum, 0, "SESSILE_SEED={seed}");
}

/// The chance of a run: that of `SESSILE_SEED=…`, or another one each time.
fn seed() -> u64 {
    match std::env::var("SESSILE_SEED") {
        Ok(seed) => seed.parse().expect("a seed is a number"),
        Err(_) => rand::make_rng::<StdRng>().random(),
    }
}

/// Settings that keep sessions for longer end those that have expired first. However many these are in
/// all containers together, nobody is refused for it.
#[test]
fn what_ends_before_new_settings_may_be_more_than_a_batch() {
    let place = Place::new();
    let clock = ManualClock::new(Time::from_secs(1_000_000_800));
    let options = place.options().segment_bytes(16 << 10).clock(clock.clone());
    let store = options.open(&place.path).unwrap();
    let policy = |minutes| Policy::new().timeout_mins(minutes).key_bytes_max(1_000);
    let shops: Vec<_> = (0..3)
        .map(|n: u64| store.container_with(&format!("shop {n}"), policy(20)).unwrap())
        .collect();
    for shop in &shops {
        (0..6).for_each(|n| put(&store, shop, &format!("{n:0>1000}"), n).map(|_| ()).unwrap());
    }
    clock.advance_secs(3_600);
    put(&store, &shops[0], "ada", 1).unwrap();
    let gate = place.disk.gate(Operation::Sync, "log-");
    let held = putting(&store, &shops[0], "ada", 2).commit_async();
    gate.wait();
    let settings = store.begin().unwrap();
    shops.iter().for_each(|shop| settings.set_policy(shop, policy(120)).unwrap());
    let settings = settings.commit_async();
    let beside = putting(&store, &shops[0], "bob", 2).commit_async();
    gate.open();
    verdict(held).unwrap();
    verdict(settings).unwrap();
    verdict(beside).unwrap();
    let txn = store.begin().unwrap();
    let found: Vec<_> = shops.iter().map(|shop| txn.len(shop).unwrap()).collect();
    assert_eq!(found, [2, 0, 0]);
    assert_eq!(store.stats().expired, 18);
}

/// A session that has only just fitted into a commit is filed anew all the same, without what has lapsed
/// of it.
#[test]
fn the_largest_session_is_filed_anew() {
    let (place, clock) = (Place::new(), ManualClock::new(Time::from_secs(1_000_000_000)));
    let options = place.options().segment_bytes(4_096).clock(clock.clone());
    let store = options.open(&place.path).unwrap();
    let timeout = |secs| store.container_with("shop", Policy::new().timeout_secs(secs)).unwrap();
    let shop = timeout(600);
    let minute = Duration::from_secs(60);
    store.transact(|txn| txn.create(&shop, "ada")?.insert_for("code", 1, minute)).unwrap();
    let put =
        |txn: &Transaction, len| txn.get_or_create(&shop, "ada")?.insert("x", "x".repeat(len));
    assert!((0..4_096).rev().any(|len| store.transact(|txn| put(txn, len)).is_ok()));
    clock.advance_secs(60);
    timeout(120);
    store.sweep().unwrap();
    assert_eq!(store.check().unwrap().problems, []);
}
