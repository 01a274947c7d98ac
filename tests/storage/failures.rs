//! The commit log cannot be written, or not be synced.
//!
//! Whoever was in the batch is told that it is unknown what became of it. Nothing of it is seen, reads
//! go on, commits fail at once, and as soon as the disk works the store finds out and goes on: what
//! it says then of those commits is what is there, then and ever after.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sessile::{
    CommitId, Durability, Error, Event, Fate, ManualClock, Options, Policy, Revision, Store, Time,
};

use crate::fragile::{Fault, Operation};
use crate::{Place, cause, got, now, put, putting, seen, shop, until, verdict, wait_for};

/// A disk that fails in one way, and whether the batch that meets it turns out to be durable.
fn failures() -> [(Fault, bool); 5] {
    let write = || Fault::on(Operation::Write, "log-");
    // The sync of the batch before comes through.
    let sync = || Fault::on(Operation::Sync, "log-").after(1);
    [
        (write(), false),
        (write().tears(), false),
        (sync(), true),
        (sync().loses(), false),
        (sync().loses().times(1), false),
    ]
}

fn recovered(event: &Event) -> Option<Revision> {
    match event {
        Event::StorageRecovered { durable } => Some(*durable),
        _ => None,
    }
}

fn options(place: &Place, told: &Arc<AtomicU64>) -> Options {
    let told = Arc::clone(told);
    place.options().on_end("count", move |_, session, _| {
        assert_eq!(session.get::<u64>("n"), Some(7));
        told.fetch_add(1, Ordering::SeqCst);
        Ok(())
    })
}

#[test]
fn commits_in_doubt_are_told_so_and_have_one_fate() {
    for (fault, is_durable) in failures() {
        println!("{fault:?}");
        let place = Place::new();
        let told = Arc::default();
        let store = options(&place, &told).open(&place.path).unwrap();
        let shop = store.container_with("shop", Policy::new().on_end("count")).unwrap();
        put(&store, &shop, "ada", 1).unwrap();
        put(&store, &shop, "bob", 7).unwrap();
        let before = store.begin().unwrap();
        let events = store.events();

        // One batch is held while the next one gathers.
        let gate = place.disk.gate(Operation::Sync, "log-");
        let first = putting(&store, &shop, "ada", 2).commit_async();
        gate.wait();
        let end = store.begin().unwrap();
        end.remove(&shop, "bob").unwrap();
        let doubtful = [
            putting(&store, &shop, "ada", 3).commit_async(),
            putting(&store, &shop, "cy", 3).commit_async(),
            end.commit_async(),
        ];
        place.disk.breaks(fault.clone());
        gate.open();
        let last = verdict(first).unwrap().revision;
        let commits = doubtful.map(|commit| match verdict(commit) {
            Err(Error::Unknown { commit, .. }) => commit,
            other => panic!("{other:?}"),
        });
        assert!(commits.is_sorted() && commits[0].revision > last);
        let said = wait_for(&events, |event| match event {
            Event::StorageFailed { error } => Some(error.clone()),
            _ => None,
        });
        assert!(said.contains("told to fail"), "{said}");

        if !fault.passes() {
            // Nothing of it is seen, reads go on, commits fail at once.
            assert_eq!(store.stats().revision, last.get());
            for (txn, ada) in [(&before, 1), (&store.begin().unwrap(), 2)] {
                assert_eq!(seen(txn, &shop, "ada"), Some(ada));
                assert_eq!(seen(txn, &shop, "bob"), Some(7));
                assert_eq!(seen(txn, &shop, "cy"), None);
                assert_eq!(txn.len(&shop).unwrap(), 2);
            }
            for commit in commits {
                assert_eq!(store.fate(commit), Fate::Pending);
            }
            for n in 0..20 {
                let since = now();
                let error = put(&store, &shop, "ada", n).unwrap_err();
                assert!(matches!(error, Error::Storage(_)) && !error.is_retryable(), "{error:?}");
                assert!(since.elapsed() < Duration::from_secs(1));
            }
            assert_eq!(told.load(Ordering::SeqCst), 0);
            place.disk.mend();
        }
        let since = now();
        let durable = wait_for(&events, recovered);
        assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());

        let check = |store: &Store| check(store, commits, is_durable);
        check(&store);
        assert_eq!(durable >= commits[2].revision, is_durable);
        store.settle();
        assert_eq!(told.load(Ordering::SeqCst), u64::from(is_durable));
        assert_eq!((store.stats().storage_failures, store.stats().recoveries), (1, 1));
        // What an old snapshot saw it still sees, and the old failure is no failure of its own.
        assert_eq!(seen(&before, &shop, "ada"), Some(1));
        drop(before);

        // A machine that dies now, before anything else happens, changes nothing of it.
        check(&Store::open(place.crash()).unwrap());
        let next = put(&store, &shop, "dora", 4).unwrap().revision;
        assert!(next > commits[2].revision, "{next} was used already");
        check(&Store::open(place.crash()).unwrap());
        store.close().unwrap();
        for _ in 0..2 {
            let store = options(&place, &told).open(&place.path).unwrap();
            check(&store);
            let shop = store.container("shop").unwrap();
            assert_eq!(got(&store, &shop, "dora"), Some(4));
            assert!(put(&store, &shop, "dora", 4).unwrap().revision > next);
            store.settle();
        }
        assert_eq!(told.load(Ordering::SeqCst), u64::from(is_durable), "an end is told once");
    }
}

/// All of the batch is there, or nothing of it, as the store says.
fn check(store: &Store, commits: [CommitId; 3], is_durable: bool) {
    let shop = store.container("shop").unwrap();
    let (fate, ada, bob, cy) = match is_durable {
        true => (Fate::Committed, 3, None, Some(3)),
        false => (Fate::NotCommitted, 2, Some(7), None),
    };
    for commit in commits {
        assert_eq!(store.fate(commit), fate);
    }
    assert_eq!(got(store, &shop, "ada"), Some(ada));
    assert_eq!(got(store, &shop, "bob"), bob);
    assert_eq!(got(store, &shop, "cy"), cy);
}

/// Whoever sweeps while nobody knows whether an end is durable is not told that all is well; and once
/// a sweep has come to an end, so has everybody who was due.
#[test]
fn ends_in_doubt_are_due_until_their_fate_is_known() {
    for is_lost in [true, false] {
        let (place, told) = (Place::new(), Arc::default());
        let clock = ManualClock::new(Time::from_secs(1_000_000_800));
        let store = options(&place, &told).clock(clock.clone()).open(&place.path).unwrap();
        let shop = store.container_with("shop", Policy::new().on_end("count")).unwrap();
        put(&store, &shop, "bob", 7).unwrap();
        for is_folded in [false, true] {
            let before = told.load(Ordering::SeqCst);
            put(&store, &shop, "bob", 7).unwrap();
            if is_folded {
                store.fold().unwrap();
            }
            clock.advance_secs(10_000);
            let fault = Fault::on(Operation::Sync, "log-");
            place.disk.breaks(if is_lost { fault.loses() } else { fault });
            assert!(matches!(store.sweep(), Err(Error::Unknown { .. })));
            for _ in 0..3 {
                assert!(matches!(store.sweep(), Err(Error::Storage(_))));
            }
            place.disk.mend();
            until("the store goes on", || store.sweep().is_ok());
            store.settle();
            assert_eq!(told.load(Ordering::SeqCst), before + 1);
        }
    }
}

/// The fold meets the failure, not a commit: before a segment of the log is left, all that was
/// acknowledged without a sync must be durable.
#[test]
fn a_sync_that_fails_between_two_segments_is_a_failure_of_the_log() {
    for is_lost in [true, false] {
        let place = Place::new();
        let store = place.options().sync_delay(Duration::MAX).open(&place.path).unwrap();
        let policy = Policy::new().durability(Durability::Relaxed);
        let shop = store.container_with("shop", policy).unwrap();
        put(&store, &shop, "ada", 1).unwrap();
        store.fold().unwrap();
        put(&store, &shop, "ada", 2).unwrap();
        let events = store.events();
        let fault = Fault::on(Operation::Sync, "log-");
        place.disk.breaks(if is_lost { fault.loses() } else { fault });

        let error = store.fold().unwrap_err();
        assert!(matches!(error, Error::Storage(_)), "{error:?}");
        // Whoever commits next is told what is wrong, at once and as long as it is.
        let first = put(&store, &shop, "ada", 3).unwrap_err();
        assert!(matches!(first, Error::Unknown { .. } | Error::Storage(_)), "{first:?}");
        assert!(cause(&first).contains("told to fail"), "{}", cause(&first));
        for n in 4..10 {
            let error = put(&store, &shop, "ada", n).unwrap_err();
            assert!(matches!(error, Error::Storage(_)), "{error:?}");
            assert!(cause(&error).contains("told to fail"), "{}", cause(&error));
        }
        assert!(matches!(store.fold(), Err(Error::Storage(_))));
        place.disk.mend();
        wait_for(&events, recovered);
        let n = if is_lost { 1 } else { 2 };
        assert_eq!(got(&store, &shop, "ada"), Some(n));
        if let Error::Unknown { commit, .. } = first {
            assert_eq!(store.fate(commit), Fate::NotCommitted);
        }
        store.fold().unwrap();
        assert_eq!(got(&store, &shop, "ada"), Some(n));
        store.close().unwrap();
        let store = place.open();
        assert_eq!(got(&store, &store.container("shop").unwrap(), "ada"), Some(n));
    }
}

/// The same where the commit that does not fit any more is the one that leaves the segment.
#[test]
fn a_commit_that_finds_its_segment_full_and_unsynced_is_in_doubt() {
    let place = Place::new();
    let options = place.options().segment_bytes(8 << 10).sync_delay(Duration::MAX);
    let store = options.open(&place.path).unwrap();
    let policy = Policy::new().durability(Durability::Relaxed);
    let shop = store.container_with("shop", policy).unwrap();
    put(&store, &shop, "ada", 0).unwrap();
    store.fold().unwrap();
    let events = store.events();
    place.disk.breaks(Fault::on(Operation::Sync, "log-").loses().times(1));
    let (n, error) = (1..).find_map(|n| Some((n, put(&store, &shop, "ada", n).err()?))).unwrap();
    let Error::Unknown { commit, .. } = error else { panic!("{error:?}") };
    assert_eq!(n, (8 << 10) / 512 + 1, "each commit takes up a sector");
    let durable = wait_for(&events, recovered);
    assert!(durable < commit.revision);
    assert_eq!(store.fate(commit), Fate::NotCommitted);
    assert_eq!(got(&store, &shop, "ada"), Some(0), "all of it is taken back");
    assert!(put(&store, &shop, "ada", 5).unwrap().revision > commit.revision);
    store.close().unwrap();
    let store = place.open();
    assert_eq!(store.fate(commit), Fate::NotCommitted);
    assert_eq!(got(&store, &store.container("shop").unwrap(), "ada"), Some(5));
}

/// A store that is closed before its disk works again says so. What is in doubt then, the next open
/// finds out.
#[test]
fn a_store_may_be_closed_while_its_log_fails() {
    for is_lost in [true, false] {
        let place = Place::new();
        let store = place.open();
        let shop = shop(&store);
        put(&store, &shop, "ada", 1).unwrap();
        let fault = Fault::on(Operation::Sync, "log-");
        place.disk.breaks(if is_lost { fault.loses() } else { fault });
        let Err(Error::Unknown { commit, .. }) = put(&store, &shop, "ada", 2) else {
            panic!("the disk is broken")
        };
        assert_eq!(store.fate(commit), Fate::Pending);
        let since = now();
        let error = store.close().unwrap_err();
        assert!(matches!(error, Error::Storage(_)), "{error:?}");
        assert!(since.elapsed() < Duration::from_secs(5));
        assert!(place.options().open(&place.path).is_err(), "the disk is still broken");

        place.disk.mend();
        for _ in 0..2 {
            let store = place.open();
            let shop = store.container("shop").unwrap();
            let (fate, n) = if is_lost { (Fate::NotCommitted, 1) } else { (Fate::Committed, 2) };
            assert_eq!((store.fate(commit), got(&store, &shop, "ada")), (fate, Some(n)));
            assert!(put(&store, &shop, "bob", 1).unwrap().revision > commit.revision);
            store.close().unwrap();
        }
    }
}

/// A disk that fails again and again, at any operation, while commits go on: whatever was acknowledged
/// is there, whatever is said of the others is true, and the directory does not fill with what failed.
#[test]
fn a_store_outlives_many_failures() {
    let place = Place::new();
    let store = place.options().segment_bytes(16 << 10).open(&place.path).unwrap();
    let shop = shop(&store);
    put(&store, &shop, "ada", 0).unwrap();
    let events = store.events();
    let (mut last, mut fates) = (0, Vec::new());
    for round in 1..=60 {
        let operation = [Operation::Write, Operation::Sync][round % 2];
        let fault = Fault::on(operation, "log-").times(1 + round as u64 % 3);
        place.disk.breaks(match round % 4 {
            0 => fault.tears(),
            1 => fault.loses(),
            _ => fault,
        });
        let n = round as u64;
        match put(&store, &shop, "ada", n) {
            Err(Error::Unknown { commit, .. }) => {
                wait_for(&events, recovered);
                let fate = store.fate(commit);
                assert_ne!(fate, Fate::Pending);
                fates.push((commit, fate));
                last = if fate == Fate::Committed { n } else { last };
            }
            // It met who was making a new segment.
            Ok(_) => last = n,
            Err(error) => panic!("{error:?}"),
        }
        place.disk.mend();
        assert_eq!(got(&store, &shop, "ada"), Some(last));
        if round % 5 == 0 {
            last = 1_000 + n;
            put(&store, &shop, "ada", last).unwrap();
        }
    }
    let count = |wanted: Fate| fates.iter().filter(|(_, fate)| *fate == wanted).count();
    let (there, gone) = (count(Fate::Committed), count(Fate::NotCommitted));
    println!("{there} commits in doubt were durable, {gone} were not");
    assert!(there > 3 && gone > 15, "the faults met nobody");
    store.fold().unwrap();
    let log = |name: &str| name.starts_with("log-");
    let names = || fs::read_dir(&place.path).unwrap().map(|entry| entry.unwrap().file_name());
    until("two segments are left", || names().filter(|n| log(&n.to_string_lossy())).count() == 2);
    store.close().unwrap();
    let store = place.open();
    assert_eq!(got(&store, &store.container("shop").unwrap(), "ada"), Some(last));
    for (commit, fate) in fates {
        assert_eq!(store.fate(commit), fate);
    }
}

/// What became of a commit is known, whatever becomes of the tables then.
#[test]
fn a_fate_does_not_depend_on_the_tables() {
    let place = Place::new();
    let store = place.open();
    let shop = shop(&store);
    put(&store, &shop, "ada", 1).unwrap();
    let events = store.events();
    place.disk.breaks(Fault::on(Operation::Sync, "log-").loses().times(1));
    let Err(Error::Unknown { commit, .. }) = put(&store, &shop, "ada", 2) else {
        panic!("the disk is broken")
    };
    wait_for(&events, recovered);
    store.fold().unwrap();
    assert_eq!(store.fate(commit), Fate::NotCommitted);
    put(&store, &shop, "ada", 3).unwrap();
    place.disk.breaks(Fault::on(Operation::Sync, "sessions.redb"));
    place.disk.breaks(Fault::on(Operation::Read, "sessions.redb"));
    assert!(store.fold().is_err());
    for _ in 0..100 {
        assert_eq!(store.fate(commit), Fate::NotCommitted);
    }
    place.disk.mend();
    store.fold().unwrap();
    assert_eq!(store.fate(commit), Fate::NotCommitted);
    let other = store.clone();
    store.close().unwrap();
    assert_eq!(other.fate(commit), Fate::NotCommitted);
}
