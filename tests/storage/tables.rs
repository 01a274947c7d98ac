//! The tables cannot be written or read, or the disk is full.
//!
//! The commit log goes on without them for as long as it has room. So nobody who commits is told, only
//! those who ask for events, until there is no room left: then ending sessions still works.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use sessile::{Container, Durability, Error, Event, Key, Options, Policy, Store, Transaction};

use crate::fragile::{Fault, FragileDisk, Operation};
use crate::{Place, cause, copy_directory, got, now, put, putting, seen, shop, until, verdict};

const TABLES: &str = "sessions.redb";

/// Sessions that take up some room: each is this large.
const BALLAST: usize = 8_000;

fn key(n: u64) -> String {
    format!("{n:06}")
}

fn putting_large(store: &Store, shop: &Container, n: u64) -> Transaction {
    let txn = putting(store, shop, &key(n), n);
    txn.get(shop, key(n)).unwrap().unwrap().insert("ballast", "x".repeat(BALLAST)).unwrap();
    txn.set_durability(Durability::Relaxed).unwrap();
    txn
}

fn fill(store: &Store, sessions: Range<u64>) {
    let shop = store.container("shop").unwrap();
    sessions.for_each(|n| putting_large(store, &shop, n).commit().map(|_| ()).unwrap());
}

/// How often a failed fold was told of since, and nothing else was.
fn told(events: &sessile::Receiver<Event>) -> usize {
    let is_fold = |event| match event {
        Event::FoldFailed { error } => assert!(error.contains("told to fail"), "{error}"),
        other => panic!("{other:?}"),
    };
    events.try_iter().map(is_fold).count()
}

#[test]
fn commits_go_on_while_the_tables_cannot_be_written() {
    for operation in [Operation::Write, Operation::Sync, Operation::SetLen] {
        println!("{operation:?}");
        let place = Place::new();
        let options = || place.options().segment_bytes(4 << 20);
        let store = options().open(&place.path).unwrap();
        shop(&store);
        fill(&store, 0..200);
        store.close().unwrap();
        // None of those is in memory.
        let store = options().open(&place.path).unwrap();
        let shop = store.container("shop").unwrap();
        fill(&store, 200..400);
        let events = store.events();
        let (folds, failures) = (store.stats().folds, store.stats().fold_failures);
        place.disk.breaks(Fault::on(operation, TABLES));

        for _ in 0..2 {
            let error = store.fold().unwrap_err();
            assert!(matches!(error, Error::Storage(_)), "{error:?}");
            assert!(cause(&error).contains("told to fail"), "{}", cause(&error));
            fill(&store, 200..300);
        }
        assert!(store.stats().fold_failures > failures + 1);
        assert_eq!(told(&events), 1, "it is told once");
        assert_eq!((store.stats().folds, store.stats().storage_failures), (folds, 0));
        // What is not in the tables is read from memory, and what is there is there, or an error.
        let has = |n: u64| Ok(store.begin()?.peek(&shop, key(n))?.is_some());
        assert!((200..400).all(|n| has(n).unwrap()));
        for n in 0..200 {
            assert!(matches!(has(n), Ok(true) | Err(Error::Storage(_))), "{:?}", has(n));
        }

        place.disk.mend();
        store.fold().unwrap();
        assert!(store.stats().folds > folds);
        assert!((0..400).all(|n| has(n).unwrap()));
        assert_eq!(store.begin().unwrap().len(&shop).unwrap(), 400);
        assert_eq!(told(&events), 0);
        // The next time it is told again.
        fill(&store, 400..1_000);
        place.disk.breaks(Fault::on(operation, TABLES));
        assert!(store.fold().is_err());
        assert_eq!(told(&events), 1);
        place.disk.mend();
        store.close().unwrap();
        let store = place.open();
        let shop = store.container("shop").unwrap();
        let txn = store.begin().unwrap();
        let found = txn.keys(&shop).unwrap().map(Result::unwrap);
        assert!(found.eq((0..1_000).map(|n| Key::from(key(n)))));
    }
}

/// A fold of many sessions is several transactions, of which only the last one says that all of it is
/// there. Whichever of them fails, the log has what is missing when the process dies after that.
#[test]
fn a_fold_that_is_cut_off_is_done_again() {
    const SESSIONS: u64 = 5_000;
    let place = Place::new();
    let options = |place: &Place| place.options().segment_bytes(4 << 20);
    let store = options(&place).open(&place.path).unwrap();
    let shop = shop(&store);
    let mut spared = 0;
    loop {
        let put_all = |txn: &Transaction| {
            let mut keys = (0..SESSIONS).map(key);
            keys.try_for_each(|key| txn.get_or_create(&shop, key)?.insert("n", spared))
        };
        store.transact(put_all).unwrap();
        place.disk.breaks(Fault::on(Operation::Sync, TABLES).after(spared));
        let folded = store.fold();
        let copy = place.crash();
        place.disk.mend();
        if folded.is_ok() {
            break;
        }
        store.fold().unwrap();
        let left = Options::new().segment_bytes(4 << 20).open(&copy).unwrap();
        let shop = left.container("shop").unwrap();
        let txn = left.begin().unwrap();
        assert_eq!(txn.len(&shop).unwrap(), SESSIONS);
        assert!((0..SESSIONS).all(|n| seen(&txn, &shop, &key(n)) == Some(spared)));
        spared += 1;
    }
    println!("a fold has {spared} syncs");
    assert!(spared >= 6, "it was one transaction");
}

/// One read of the tables that fails fails nobody: they are opened again, and it is read again. If
/// reading goes on failing, those who need the tables are told, and nobody else.
#[test]
fn a_read_that_fails_once_is_done_again() {
    // More than redb keeps in memory: in a debug build it reads everything when it is opened.
    const SESSIONS: u64 = 100;
    const BYTES: usize = 900_000;
    let place = Place::new();
    let options = || place.options().segment_bytes(64 << 20).memory_max(8 << 20);
    let store = options().open(&place.path).unwrap();
    let shop = shop(&store);
    for n in 0..SESSIONS {
        let txn = putting(&store, &shop, &key(n), n);
        txn.get(&shop, key(n)).unwrap().unwrap().insert("ballast", "x".repeat(BYTES)).unwrap();
        txn.set_durability(Durability::Relaxed).unwrap();
        txn.commit().unwrap();
    }
    store.close().unwrap();
    let store = options().open(&place.path).unwrap();
    let shop = store.container("shop").unwrap();
    put(&store, &shop, "ada", 1).unwrap();
    let all = || (0..SESSIONS).cycle();
    for round in 0..10 {
        let since = now();
        place.disk.breaks(Fault::on(Operation::Read, TABLES).times(1));
        // Some pages are in memory already.
        for n in all().skip(round * 10).take_while(|_| !place.disk.is_spent()) {
            assert_eq!(got(&store, &shop, &key(n)), Some(n));
        }
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        place.disk.mend();
        // A walk meets it too.
        place.disk.breaks(Fault::on(Operation::Read, TABLES).after(30).times(1));
        let txn = store.begin().unwrap();
        assert_eq!(txn.keys(&shop).unwrap().map(Result::unwrap).count() as u64, SESSIONS + 1);
        assert!(place.disk.is_spent(), "the walk read nothing");
        place.disk.mend();
    }
    place.disk.breaks(Fault::on(Operation::Read, TABLES));
    let failed = all().find_map(|n| store.begin().unwrap().peek(&shop, key(n)).err()).unwrap();
    assert!(matches!(failed, Error::Storage(_)), "{failed:?}");
    for n in 0..100 {
        put(&store, &shop, "ada", n).unwrap();
        assert_eq!(got(&store, &shop, "ada"), Some(n));
    }
    place.disk.mend();
    until("everything can be read", || {
        (0..SESSIONS).all(|n| matches!(store.begin().unwrap().peek(&shop, key(n)), Ok(Some(_))))
    });
    assert_eq!(store.stats().storage_failures, 0, "the log is fine");
}

/// The disk fills up, and is given room again, many times over.
#[test]
fn a_full_disk_takes_ends_and_then_everything_again() {
    const LOOPS: u64 = 20;
    const SEGMENT: u64 = 256 << 10;
    let place = Place::new();
    let reserve = place.path.join("reserve");
    let store = place.options().segment_bytes(SEGMENT).open(&place.path).unwrap();
    let shop = shop(&store);
    fill(&store, 0..60);
    store.fold().unwrap();
    let (mut taken, mut waited) = (0, Vec::new());
    for round in 1..=LOOPS {
        until("the reserve is there", || reserve.exists());
        store.settle();
        let events = store.events();
        place.disk.fill(0);

        // The log goes on until it is nearly full, and then it is for ends, however large the last
        // batch was. The reserve may have been enough for a fold or two.
        let (mut next, mut fresh, mut no_hope) = (1_000 * round, Vec::new(), false);
        let mut kept = 0;
        loop {
            let batch: Vec<_> = (next..next + 8).collect();
            let commits: Vec<_> =
                batch.iter().map(|n| putting_large(&store, &shop, *n).commit_async()).collect();
            next += 8;
            let before = fresh.len();
            for (n, commit) in batch.into_iter().zip(commits) {
                match verdict(commit) {
                    Ok(_) => fresh.push(n),
                    Err(Error::Full) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
            if fresh.len() > before {
                no_hope = false;
            } else if no_hope {
                break;
            } else {
                let has_failed = store.fold().is_err();
                kept += usize::from(has_failed && reserve.exists());
                assert!(kept < 20, "a full disk keeps its reserve");
                no_hope = has_failed && !reserve.exists();
            }
        }
        taken += fresh.len();
        let told: Vec<_> = events.try_iter().collect();
        let is_of_the_disk = |event: &Event| match event {
            Event::FoldFailed { error } => error.contains("no storage space"),
            _ => false,
        };
        assert!(!told.is_empty() && told.iter().all(is_of_the_disk), "{told:?}");
        // What is smaller may still have found room.
        let small = |n: u64| matches!(put(&store, &shop, "small", n), Err(Error::Full));
        assert!((0..100).any(small));
        let refused = [
            putting_large(&store, &shop, 0).commit().unwrap_err(),
            put(&store, &shop, "small", 0).unwrap_err(),
            store.container_with("other", Policy::new()).unwrap_err(),
            store.container_with("shop", Policy::new().limit(9_999)).unwrap_err(),
        ];
        assert!(refused.iter().all(|error| matches!(error, Error::Full)), "{refused:?}");
        assert!(refused.iter().all(|error| !error.is_retryable()));
        // A sixteenth of a segment is for these.
        let live = fresh.split_off((SEGMENT / 16 / 512) as usize);
        for n in fresh {
            let session = store.transact(|txn| match n % 2 {
                0 => txn.remove(&shop, key(n)),
                _ => txn.get(&shop, key(n))?.unwrap().invalidate().map(|()| true),
            });
            assert!(session.unwrap().value);
            assert_eq!(got(&store, &shop, &key(n)), None);
        }
        let all = || (0..60).chain(live.iter().copied());
        assert!(all().all(|n| got(&store, &shop, &key(n)) == Some(n)), "reads go on");
        assert!(!reserve.exists(), "it was given up");

        place.disk.mend();
        let (since, failures) = (now(), store.stats().fold_failures);
        until("everything works", || putting_large(&store, &shop, 0).commit().is_ok());
        waited.push(since.elapsed());
        store.fold().unwrap();
        // One attempt may have been under way.
        let failures = store.stats().fold_failures - failures;
        assert!(failures <= 1, "{failures} attempts failed although there was room");
        assert!(all().all(|n| got(&store, &shop, &key(n)) == Some(n)));
        store.transact(|txn| txn.remove(&shop, "small")).unwrap();
        for chunk in live.chunks(100) {
            let end = |txn: &Transaction| {
                chunk.iter().try_for_each(|n| txn.remove(&shop, key(*n)).map(|_| ()))
            };
            store.transact(end).unwrap();
        }
        assert_eq!(store.begin().unwrap().len(&shop).unwrap(), 60);
    }
    // The store waits a quarter of a second between two attempts. The machine may be busy, but not each time.
    waited.sort();
    println!("{taken} commits while the disk was full; full service again after {waited:?}");
    assert!(waited[0] < Duration::from_secs(1));
    assert_eq!((store.stats().storage_failures, store.stats().recoveries), (0, 0));
    store.close().unwrap();
    let store = place.open();
    let shop = store.container("shop").unwrap();
    assert_eq!(store.begin().unwrap().keys(&shop).unwrap().count(), 60);
}

/// A process dies while the disk is full. The next one finds no room for a segment of its own, and is opened
/// all the same, with what was set aside: it shows what there is, ends sessions, and takes everything again
/// as soon as there is room.
#[test]
fn a_store_that_died_on_a_full_disk_is_opened() {
    const SEGMENT: u64 = 256 << 10;
    let place = Place::new();
    let store = place.options().segment_bytes(SEGMENT).open(&place.path).unwrap();
    let the_shop = shop(&store);
    let reserve = |path: &Path| path.join("reserve").exists();
    until("the reserve is there", || reserve(&place.path));
    fill(&store, 0..20);
    store.fold().unwrap();
    fill(&store, 20..30);
    let copy = place.crash();

    let disk = FragileDisk::default();
    disk.fill(0);
    let options = || place.options().disk(disk.clone()).segment_bytes(SEGMENT);
    let store = options().open(&copy).unwrap();
    assert!(!reserve(&copy), "it was given up");
    let has = |store: &Store, n: u64| got(store, &the_shop_of(store), &key(n)) == Some(n);
    assert!((0..30).all(|n| has(&store, n)));
    for n in 0..10 {
        let logout = |txn: &Transaction| txn.remove(&the_shop_of(&store), key(n));
        assert!(store.transact(logout).unwrap().value);
    }
    assert!((0..30).all(|n| has(&store, n) == (n >= 10)));
    disk.mend();
    until("everything works", || {
        putting_large(&store, &the_shop_of(&store), 99).commit().is_ok() && store.fold().is_ok()
    });
    until("the reserve is made again", || reserve(&copy));
    let dead = place.directory.path().join("dead");
    copy_directory(&copy, &dead);
    store.close().unwrap();
    // Nothing is left of the short segment.
    let log = |entry: fs::DirEntry| {
        let is_log = entry.file_name().to_string_lossy().starts_with("log-");
        is_log.then(|| entry.metadata().unwrap().len())
    };
    let segments = fs::read_dir(&copy).unwrap().filter_map(|entry| log(entry.unwrap()));
    assert!(segments.inspect(|len| println!("{len} bytes")).all(|len| len == SEGMENT));
    for path in [copy, dead] {
        let store = options().open(path).unwrap();
        assert!((0..30).all(|n| has(&store, n) == (n >= 10)) && has(&store, 99));
    }
    drop(the_shop);
}

fn the_shop_of(store: &Store) -> Container {
    store.container("shop").unwrap()
}

/// A batch that finds no room is asked for its parts: who logs out is let in.
#[test]
fn a_logout_does_not_share_the_fate_of_its_batch() {
    const SEGMENT: u64 = 64 << 10;
    let place = Place::new();
    let store = place.options().segment_bytes(SEGMENT).open(&place.path).unwrap();
    let shop = shop(&store);
    put(&store, &shop, "ada", 1).unwrap();
    store.fold().unwrap();
    // Nobody knows yet that the tables cannot be written.
    let fold = place.disk.gate(Operation::Write, TABLES);
    let large = (BALLAST as u64 + 500).next_multiple_of(512);
    let room = || 2 * SEGMENT - store.stats().log_bytes;
    let mut next = 0;
    while room() > SEGMENT / 16 + large {
        putting_large(&store, &shop, next).commit().unwrap();
        next += 1;
    }
    fold.wait();

    let held = place.disk.gate(Operation::Write, "log-");
    let small = putting(&store, &shop, "small", 1).commit_async();
    held.wait();
    let visit = putting_large(&store, &shop, next).commit_async();
    let logout = store.begin().unwrap();
    assert!(logout.remove(&shop, "ada").unwrap());
    let logout = logout.commit_async();
    place.disk.breaks(Fault::on(Operation::Write, TABLES));
    held.open();
    verdict(small).unwrap();
    fold.open();
    assert!(matches!(verdict(visit), Err(Error::Full)));
    verdict(logout).unwrap();
    assert_eq!(got(&store, &shop, "ada"), None);
    place.disk.mend();
    store.fold().unwrap();
    assert_eq!(store.begin().unwrap().len(&shop).unwrap(), next + 1);
}

/// Where there is no hope of more room, what makes some is let in beside what takes the last of it.
#[test]
fn ends_do_not_take_from_the_room_of_their_batch() {
    const SEGMENT: u64 = 64 << 10;
    let place = Place::new();
    let store = place.options().segment_bytes(SEGMENT).open(&place.path).unwrap();
    let shop = store.container_with("shop", Policy::new().key_bytes_max(1_000)).unwrap();
    let long = |n: u64| format!("{n:0>1000}");
    let names: Vec<_> = (0..3).map(long).chain((0..10).map(key)).collect();
    // They are in memory: the tables cannot be read either when they cannot be opened again.
    names.iter().for_each(|name| put(&store, &shop, name, 1).map(|_| ()).unwrap());
    place.disk.breaks(Fault::on(Operation::Write, TABLES));
    assert!(store.fold().is_err());
    let before = store.stats().log_bytes;
    // What the last segment has for others than ends.
    let room = || SEGMENT - SEGMENT / 16 - (store.stats().log_bytes - before);
    for n in (2..).take_while(|_| room() > 20_000) {
        putting_large(&store, &shop, n).commit().unwrap();
    }
    let held = place.disk.gate(Operation::Write, "log-");
    let small = putting(&store, &shop, &key(0), 2).commit_async();
    held.wait();
    let visit = store.begin().unwrap();
    let ballast = "x".repeat(room() as usize - 512 - 1_200);
    visit.get(&shop, key(1)).unwrap().unwrap().insert("ballast", ballast).unwrap();
    let visit = visit.commit_async();
    let logouts = [0, 1, 2].map(|n| {
        let logout = store.begin().unwrap();
        assert!(logout.remove(&shop, long(n)).unwrap());
        logout.commit_async()
    });
    held.open();
    verdict(small).unwrap();
    verdict(visit).unwrap();
    logouts.into_iter().for_each(|logout| assert!(verdict(logout).is_ok()));
    place.disk.mend();
    store.fold().unwrap();
    assert_eq!(store.begin().unwrap().len(&shop).unwrap(), 10);
}
