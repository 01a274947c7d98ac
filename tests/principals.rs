//! The sessions of a principal: listed, ended together, kept within a limit.
//!
//! The index itself is checked against random histories in `store/principals.rs`; here stand the
//! promises that a user reads, one each.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]
#![expect(clippy::print_stdout, reason = "the test tells what it did")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;

use sessile::{
    AtLimit, Conflict, ConflictReason, Container, EndReason, Error, LimitKind, ManualClock,
    Options, Policy, Store, Time, Transaction, Viewer,
};

fn policy() -> Policy {
    Policy::new().timeout_secs(600).period_secs(20)
}

fn store(policy: Policy) -> (Store, Container, ManualClock) {
    let clock = ManualClock::new(Time::from_secs(1_000_000_000));
    let options = Options::new().clock(clock.clone()).seed(3).sweep_every(None);
    let store = options.memory().unwrap();
    let shop = store.container_with("shop", policy).unwrap();
    (store, shop, clock)
}

fn log_in(store: &Store, shop: &Container, key: &str, principal: &str) -> Result<(), Error> {
    store.transact(|txn| txn.create(shop, key)?.bind(principal, key)).map(|_| ())
}

/// The keys of a principal's sessions; each has its key for a note.
fn of(txn: &Transaction, shop: &Container, principal: &str) -> Vec<String> {
    let sessions = txn.sessions_of(shop, principal).unwrap();
    let note = |session: sessile::PrincipalSession| {
        assert_eq!(session.key.as_bytes(), session.note.as_bytes());
        session.note
    };
    sessions.into_iter().map(note).collect()
}

#[test]
fn everything_that_is_the_principals_at_the_commit_ends() {
    let (store, shop, _) = store(policy());
    for key in ["laptop", "phone", "tablet"] {
        log_in(&store, &shop, key, "ada").unwrap();
    }
    log_in(&store, &shop, "bobs", "bob").unwrap();
    let txn = store.begin().unwrap();
    txn.end_all_of(&shop, "ada").unwrap();
    assert_eq!(of(&txn, &shop, "ada"), [""; 0]);
    assert!(txn.get(&shop, "phone").unwrap().is_none());
    // One that is bound after the call stays, and it alone.
    txn.create(&shop, "anew").unwrap().bind("ada", "anew").unwrap();

    // Meanwhile one session ends by itself, one is rotated, one comes, and one becomes somebody else's.
    store.transact(|txn| txn.remove(&shop, "laptop")).unwrap();
    let rotate = |txn: &Transaction| txn.get(&shop, "phone")?.ok_or(Error::Ended)?.rotate("phone2");
    store.transact(|txn| rotate(txn)?.bind("ada", "phone2")).unwrap();
    log_in(&store, &shop, "thief", "ada").unwrap();
    let give = |txn: &Transaction| txn.get(&shop, "tablet")?.ok_or(Error::Ended);
    store.transact(|txn| give(txn)?.bind("bob", "tablet")).unwrap();
    let late = store.begin().unwrap();
    late.get(&shop, "thief").unwrap().unwrap().insert("loot", 1).unwrap();

    let report = txn.commit().unwrap();
    let ended = report.ended.iter().map(|ended| (ended.key.as_bytes(), ended.reason));
    let ended: BTreeSet<_> =
        ended.map(|(key, reason)| (key.to_vec(), reason.to_string())).collect();
    let wanted = ["phone2", "thief"].map(|key| (key.as_bytes().to_vec(), "invalidated".to_owned()));
    assert_eq!(ended, BTreeSet::from(wanted));
    let after = store.begin().unwrap();
    assert_eq!(of(&after, &shop, "ada"), ["anew"]);
    assert_eq!(of(&after, &shop, "bob"), ["bobs", "tablet"]);
    let reason = ConflictReason::Ended;
    assert!(
        matches!(late.commit(), Err(Error::Conflict(Conflict { reason: r, .. })) if r == reason)
    );
}

#[test]
fn what_ends_others_must_live_itself() {
    let (store, shop, _) = store(policy());
    log_in(&store, &shop, "laptop", "ada").unwrap();
    log_in(&store, &shop, "phone", "ada").unwrap();
    let txn = store.begin().unwrap();
    txn.get(&shop, "laptop").unwrap().unwrap().end_others().unwrap();
    assert_eq!(of(&txn, &shop, "ada"), ["laptop"]);
    log_in(&store, &shop, "thief", "ada").unwrap();
    let moved = store.begin().unwrap();
    moved.get(&shop, "phone").unwrap().unwrap().end_others().unwrap();
    // The one that stays is rotated on the way: it still is the one that stays.
    let rotate =
        |txn: &Transaction| txn.get(&shop, "laptop")?.ok_or(Error::Ended)?.rotate("laptop2");
    store.transact(|txn| rotate(txn)?.bind("ada", "laptop2")).unwrap();
    assert_eq!(txn.commit().unwrap().ended.len(), 2);
    assert_eq!(of(&store.begin().unwrap(), &shop, "ada"), ["laptop2"]);
    // That of the other one has ended, and it ends nobody any more.
    assert!(moved.commit().is_err_and(|error| error.is_retryable()));
    assert_eq!(of(&store.begin().unwrap(), &shop, "ada"), ["laptop2"]);
}

#[test]
fn a_limit_that_refuses_holds_in_a_race() {
    let (store, shop, clock) = store(policy().principal_limit(2));
    log_in(&store, &shop, "laptop", "ada").unwrap();
    let (left, right) = (store.begin().unwrap(), store.begin().unwrap());
    for (txn, key) in [(&left, "phone"), (&right, "tablet")] {
        txn.create(&shop, key).unwrap().bind("ada", key).unwrap();
    }
    left.commit().unwrap();
    let is_limit = |error: Error| {
        matches!(error, Error::Limit { limit: LimitKind::PrincipalSessions, max: 2 })
    };
    assert!(right.commit().is_err_and(is_limit));
    assert!(log_in(&store, &shop, "watch", "ada").is_err_and(is_limit));
    // A note may be changed, and others may come.
    store.transact(|txn| txn.get(&shop, "phone")?.unwrap().bind("ada", "phone")).unwrap();
    log_in(&store, &shop, "bobs", "bob").unwrap();
    // What has expired takes up no room, swept or not.
    clock.advance_secs(620);
    log_in(&store, &shop, "watch", "ada").unwrap();
    assert_eq!(of(&store.begin().unwrap(), &shop, "ada"), ["watch"]);
}

#[test]
fn a_limit_that_evicts_ends_the_one_used_least_lately() {
    let policy = policy().principal_limit(2).at_principal_limit(AtLimit::EvictOldest);
    let (store, shop, clock) = store(policy);
    log_in(&store, &shop, "laptop", "ada").unwrap();
    clock.advance_secs(60);
    log_in(&store, &shop, "phone", "ada").unwrap();
    clock.advance_secs(60);
    store.transact(|txn| txn.get(&shop, "laptop").map(|_| ())).unwrap();
    let report = store.transact(|txn| txn.create(&shop, "tablet")?.bind("ada", "tablet")).unwrap();
    let ended: Vec<_> = report.ended.iter().map(|e| (e.key.as_bytes(), e.reason)).collect();
    assert_eq!(ended, [("phone".as_bytes(), EndReason::Evicted)]);
    assert_eq!(of(&store.begin().unwrap(), &shop, "ada"), ["laptop", "tablet"]);
    // Three at once: nobody is left to make room.
    let three = store.transact(|txn| {
        ["a", "b", "c"].iter().try_for_each(|key| txn.create(&shop, *key)?.bind("ada", key))
    });
    assert!(matches!(three, Err(Error::Limit { limit: LimitKind::PrincipalSessions, .. })));
}

#[test]
fn names_and_notes_have_a_limit() {
    let (store, shop, _) = store(policy());
    let long = "x".repeat(1_025);
    for (principal, note) in [(&*long, ""), ("ada", &*long)] {
        let bind = store.transact(|txn| txn.create(&shop, "laptop")?.bind(principal, note));
        assert!(matches!(bind, Err(Error::Limit { limit: LimitKind::PrincipalBytes, .. })));
    }
    log_in(&store, &shop, &long[..200], &long[1..]).unwrap();
    assert_eq!(store.begin().unwrap().sessions_of(&shop, &long[1..]).unwrap().len(), 1);
}

#[test]
fn a_savepoint_takes_all_of_it_back() {
    let (store, shop, _) = store(policy());
    log_in(&store, &shop, "laptop", "ada").unwrap();
    let txn = store.begin().unwrap();
    let savepoint = txn.savepoint().unwrap();
    txn.end_all_of(&shop, "ada").unwrap();
    txn.create(&shop, "phone").unwrap().bind("bob", "phone").unwrap();
    txn.rollback(savepoint).unwrap();
    assert_eq!(of(&txn, &shop, "ada"), ["laptop"]);
    assert_eq!(of(&txn, &shop, "bob"), [""; 0]);
    txn.commit().unwrap();
    assert_eq!(of(&store.begin().unwrap(), &shop, "ada"), ["laptop"]);
}

/// What is known of principals and of keys that were given up is there after a restart, folded or not.
#[test]
fn all_of_it_outlives_the_process() {
    for folds in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let store = Store::open(&path).unwrap();
        let shop = store.container_with("shop", policy()).unwrap();
        for key in ["laptop", "phone"] {
            log_in(&store, &shop, key, "ada").unwrap();
        }
        let rotate =
            |txn: &Transaction| txn.get(&shop, "phone")?.ok_or(Error::Ended)?.rotate("phone2");
        store.transact(|txn| rotate(txn)?.bind("ada", "phone2")).unwrap();
        if folds {
            store.fold().unwrap();
        }
        store.close().unwrap();
        let checked = Viewer::check(&path).unwrap();
        assert_eq!(checked.problems, []);

        let store = Store::open(&path).unwrap();
        let shop = store.container("shop").unwrap();
        let txn = store.begin().unwrap();
        assert_eq!(of(&txn, &shop, "ada"), ["laptop", "phone2"]);
        assert!(matches!(txn.get_or_create(&shop, "phone"), Err(Error::RotatedKey { .. })));
        drop(txn);
        let report = store.transact(|txn| txn.end_all_of(&shop, "ada")).unwrap();
        assert_eq!(report.ended.len(), 2);
        assert!(store.begin().unwrap().is_empty(&shop).unwrap());
    }
}

/// A thousand sessions end in one commit while 64 threads write to them: none comes back.
#[test]
fn a_thousand_sessions_end_under_64_threads() {
    const SESSIONS: usize = 1_000;
    const THREADS: usize = 64;
    let directory = tempfile::tempdir().unwrap();
    let on_disk = Store::open(directory.path().join("store")).unwrap();
    for store in [Store::memory().unwrap(), on_disk] {
        let shop = store.container_with("shop", policy()).unwrap();
        let keys: Vec<String> = (0..SESSIONS).map(|n| format!("session {n}")).collect();
        let create = store.transact(|txn| {
            keys.iter().try_for_each(|key| txn.create(&shop, key)?.bind("ada", key))
        });
        create.unwrap();
        let (writing, done) = (Barrier::new(THREADS + 1), AtomicBool::new(false));
        let (written, refused, last) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::new(0));
        let revision = thread::scope(|scope| {
            for thread in 0..THREADS {
                let (store, shop, keys) = (&store, &shop, &keys);
                let (writing, done, written, refused, last) =
                    (&writing, &done, &written, &refused, &last);
                scope.spawn(move || {
                    let mut waits = true;
                    for n in (0..).map(|n| (thread * 31 + n * 7) % SESSIONS) {
                        let txn = store.begin().unwrap();
                        let Some(session) = txn.get(shop, &keys[n]).unwrap() else { break };
                        session.add("n", 1).unwrap();
                        if thread % 4 == 0 && n % 3 == 0 {
                            session.bind("ada", &keys[n]).unwrap();
                        }
                        if std::mem::take(&mut waits) {
                            writing.wait();
                        }
                        match txn.commit() {
                            Ok(report) => {
                                written.fetch_add(1, Ordering::Relaxed);
                                let mut last = last.lock().unwrap();
                                *last = (*last).max(report.revision.get());
                            }
                            Err(Error::Conflict(conflict)) => {
                                assert_eq!(conflict.reason, ConflictReason::Ended);
                                refused.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(error) => panic!("{error}"),
                        }
                        if done.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                });
            }
            writing.wait();
            let report = store.transact(|txn| txn.end_all_of(&shop, "ada")).unwrap();
            assert_eq!((report.ended.len(), report.attempts), (SESSIONS, 1));
            // From now on nobody finds one.
            let txn = store.begin().unwrap();
            assert!(txn.is_empty(&shop).unwrap());
            done.store(true, Ordering::Relaxed);
            report.revision.get()
        });
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
        println!("{} writes, {} refused", count(&written), count(&refused));
        assert!(*last.lock().unwrap() < revision, "a write came after the end");
        assert!(count(&written) + count(&refused) >= THREADS as u64);
        let txn = store.begin().unwrap();
        assert!(txn.is_empty(&shop).unwrap() && txn.keys(&shop).unwrap().next().is_none());
        assert_eq!(txn.sessions_of(&shop, "ada").unwrap(), []);
        assert!(keys.iter().all(|key| txn.peek(&shop, key).unwrap().is_none()));
        let stats = store.stats();
        assert_eq!((stats.started, stats.ended), (SESSIONS as u64, SESSIONS as u64));
    }
}

/// Somebody else's session does not end with those of a principal, whatever was written to it.
#[test]
fn who_has_become_somebody_else_stays() {
    let store = Options::new().seed(1).sweep_every(None).memory().unwrap();
    let shop = store.container_with("shop", Policy::new()).unwrap();
    for writes in [false, true] {
        store.transact(|txn| txn.get_or_create(&shop, "s")?.bind("ada", "")).unwrap();
        let txn = store.begin().unwrap();
        if writes {
            txn.get(&shop, "s").unwrap().unwrap().insert("n", 1).unwrap();
        }
        txn.end_all_of(&shop, "ada").unwrap();
        store.transact(|txn| txn.get_or_create(&shop, "s")?.bind("bob", "")).unwrap();
        let done = txn.commit();
        assert_eq!(done.is_err_and(|error| error.is_retryable()), writes);
        assert_eq!(store.begin().unwrap().sessions_of(&shop, "bob").unwrap().len(), 1);
    }
}
