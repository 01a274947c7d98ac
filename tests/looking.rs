//! Looking into a store: what is found by filters, in a transaction and from outside.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::sync::mpsc;
use std::time::Duration;

use sessile::{
    EndReason, EndedSession, Error, ExportOptions, Filter, ImportOptions, Imported, Key, LimitKind,
    ManualClock, OnConflict, Options, Policy, Store, Time, Transaction, Viewer,
};

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

const CANARY: &str = "CANARY-7d1f";

fn exported(store: &Store, options: &ExportOptions) -> String {
    let mut lines = Vec::new();
    store.export(&mut lines, options).unwrap();
    String::from_utf8(lines).unwrap()
}

/// What happens where a live session is in the way is what was asked for, all of it or nothing of it.
#[test]
fn what_is_in_the_way_of_an_import_is_dealt_with() {
    let clock = ManualClock::new(START);
    let policy = || Policy::new().timeout_mins(20).on_end("farewell");
    let (told, ends) = mpsc::channel();
    let options = |clock: &ManualClock| {
        let told = told.clone();
        options(clock).on_end("farewell", move |_, session: &EndedSession, reason| {
            told.send((session.get::<String>("from").unwrap(), reason)).unwrap();
            Ok(())
        })
    };
    let put = |store: &Store, key: &str, from: &str| {
        let visitors = store.container_with("visitors", policy()).unwrap();
        store.transact(|txn| txn.create(&visitors, key)?.insert("from", from)).unwrap();
    };
    let there = options(&clock).memory().unwrap();
    put(&there, "both, newer there", "there");
    let here = || {
        let store = options(&clock).memory().unwrap();
        put(&store, "both, newer here", "here");
        store
    };
    let stores: [Store; 4] = std::array::from_fn(|_| here());
    clock.advance_secs(60);
    put(&there, "only there", "there");
    put(&there, "both, newer here", "there");
    clock.advance_secs(60);
    for store in &stores {
        put(store, "both, newer there", "here");
    }
    let lines = exported(&there, &ExportOptions::new());
    let choices = [OnConflict::Fail, OnConflict::Skip, OnConflict::Replace, OnConflict::Newer];
    let expected = [None, Some((1, 0, 2)), Some((1, 2, 0)), Some((1, 1, 1))];
    for ((store, on_conflict), expected) in stores.iter().zip(choices).zip(expected) {
        let import = ImportOptions::new().on_conflict(on_conflict);
        let dry = store.import(lines.as_bytes(), &import.dry_run());
        let done = store.import(lines.as_bytes(), &import);
        let counts = |done: &Imported| (done.created, done.replaced, done.skipped);
        assert_eq!(dry.as_ref().ok().map(counts), expected, "{on_conflict:?}");
        assert_eq!(done.as_ref().ok().map(counts), expected, "{on_conflict:?}");
        let visitors = store.container("visitors").unwrap();
        let txn = store.begin().unwrap();
        if expected.is_none() {
            assert!(matches!(done, Err(Error::Exists { .. })));
            assert_eq!(txn.len(&visitors).unwrap(), 2);
        } else {
            assert_eq!(txn.len(&visitors).unwrap(), 3);
        }
        store.settle();
        let replaced = expected.map_or(0, |(_, replaced, _)| replaced);
        for _ in 0..replaced {
            assert_eq!(ends.try_recv().unwrap(), ("here".to_owned(), EndReason::Invalidated));
        }
        assert!(ends.try_recv().is_err());
    }
    let newer = &stores[3];
    let visitors = newer.container("visitors").unwrap();
    let txn = newer.begin().unwrap();
    let from = |key| {
        let session = txn.peek(&visitors, key).unwrap().unwrap();
        session.get::<String>("from").unwrap().unwrap()
    };
    assert_eq!(from("both, newer there"), "here");
    assert_eq!(from("both, newer here"), "there");
}

/// A log that takes less than a batch of sessions takes fewer at a time.
#[test]
fn a_small_log_takes_in_large_sessions() {
    let clock = ManualClock::new(START);
    let there = options(&clock).memory().unwrap();
    let visitors = there.container_with("visitors", Policy::new()).unwrap();
    for n in 0..90 {
        let fill = |txn: &Transaction| {
            txn.create(&visitors, format!("{n}"))?.insert("n", "x".repeat(2_000))
        };
        there.transact(fill).unwrap();
    }
    let lines = exported(&there, &ExportOptions::new());
    let directory = tempfile::tempdir().unwrap();
    let small = Options::new().clock(clock.clone()).segment_bytes(32 << 10);
    let here = small.open(directory.path().join("store")).unwrap();
    assert_eq!(here.import(lines.as_bytes(), &ImportOptions::new()).unwrap().created, 90);
    assert_eq!(exported(&here, &ExportOptions::new()), lines);
}

/// For a bug report: nothing that sessions hold, and nobody's key.
#[test]
fn what_is_redacted_shows_no_secret() {
    let store = options(&ManualClock::new(START)).memory().unwrap();
    let visitors = store.container_with("visitors", Policy::new()).unwrap();
    let fill = |txn: &Transaction| {
        let session = txn.create(&visitors, CANARY)?;
        session.insert("name", CANARY)?;
        session.insert("nested", [[CANARY]])
    };
    store.transact(fill).unwrap();
    let lines = exported(&store, &ExportOptions::new().redacted());
    assert!(!lines.contains(CANARY), "{lines}");
    assert!(!lines.contains(&CANARY.bytes().map(|b| format!("{b:02x}")).collect::<String>()));
    assert!(lines.contains(&Key::from(CANARY).fingerprint()) && lines.contains("\"a list\""));
    let refused = store.import(lines.as_bytes(), &ImportOptions::new()).unwrap_err();
    assert!(matches!(refused, Error::Import { line: 1, .. }), "{refused}");
    let without = exported(&store, &ExportOptions::new().without("name"));
    assert!(!without.contains("\"name\":\"CANARY") && without.contains(CANARY));
}

/// Whoever logs out everywhere is logged out of what was imported, too.
#[test]
fn what_is_imported_is_known_to_its_principal() {
    let clock = ManualClock::new(START);
    let there = options(&clock).memory().unwrap();
    let visitors = there.container_with("visitors", Policy::new()).unwrap();
    for key in ["phone", "laptop", "gone"] {
        let bind = |txn: &Transaction| {
            let session = txn.create(&visitors, key)?;
            session.insert("nested", [[[1]]])?;
            session.bind("ada", key)
        };
        there.transact(bind).unwrap();
    }
    there.transact(|txn| txn.remove(&visitors, "gone")).unwrap();
    there
        .transact(|txn| txn.get(&visitors, "phone")?.unwrap().rotate("new phone").map(|_| ()))
        .unwrap();
    assert!(there.check().unwrap().problems.is_empty());
    let lines = exported(&there, &ExportOptions::new().filter(Filter::new().principal("ada")));

    let here = options(&clock).memory().unwrap();
    here.import(lines.as_bytes(), &ImportOptions::new()).unwrap();
    assert!(here.check().unwrap().problems.is_empty());
    let visitors = here.container("visitors").unwrap();
    let notes = |txn: &Transaction| {
        let sessions = txn.sessions_of(&visitors, "ada").unwrap();
        sessions.into_iter().map(|session| session.note).collect::<Vec<_>>()
    };
    assert_eq!(notes(&here.begin().unwrap()), ["laptop", "phone"]);
    let replace = ImportOptions::new().on_conflict(OnConflict::Replace);
    assert_eq!(here.import(lines.as_bytes(), &replace).unwrap().replaced, 2);
    assert!(here.check().unwrap().problems.is_empty());
    assert_eq!(notes(&here.begin().unwrap()), ["laptop", "phone"]);
    here.transact(|txn| txn.end_all_of(&visitors, "ada").map(|_| ())).unwrap();
    assert!(here.begin().unwrap().is_empty(&visitors).unwrap());
    assert!(here.check().unwrap().problems.is_empty());

    // A key that was given up does not come back with what was exported before.
    here.transact(|txn| txn.create(&visitors, "laptop").map(|_| ())).unwrap();
    let rotate =
        |txn: &Transaction| txn.get(&visitors, "laptop")?.unwrap().rotate("new").map(|_| ());
    here.transact(rotate).unwrap();
    let imported = here.import(lines.as_bytes(), &replace).unwrap();
    assert_eq!((imported.created, imported.skipped), (1, 1));
    assert!(!here.begin().unwrap().contains(&visitors, "laptop").unwrap());
    let refused = here.import(lines.as_bytes(), &ImportOptions::new()).unwrap_err();
    assert!(matches!(refused, Error::RotatedKey { .. }), "{refused}");

    // A limit of theirs holds.
    let limited = options(&clock).memory().unwrap();
    let visitors = limited.container_with("visitors", Policy::new().principal_limit(1)).unwrap();
    let refused = limited.import(lines.as_bytes(), &ImportOptions::new()).unwrap_err();
    assert!(
        matches!(refused, Error::Limit { limit: LimitKind::PrincipalSessions, .. }),
        "{refused}"
    );
    // And so does one of values.
    limited.transact(|txn| txn.set_policy(&visitors, Policy::new().depth_max(2))).unwrap();
    let refused = limited.import(lines.as_bytes(), &ImportOptions::new()).unwrap_err();
    assert!(matches!(refused, Error::Limit { limit: LimitKind::Depth, .. }), "{refused}");
}

/// A backup has what the store keeps for itself: forwards of rotated keys, principals, ends to be told.
#[test]
fn a_backup_has_the_notes_of_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let clock = ManualClock::new(START);
    let store = options(&clock).leave_ends().open(path("store")).unwrap();
    let policy = Policy::new().on_end("farewell").rotation_grace_secs(60);
    let visitors = store.container_with("visitors", policy).unwrap();
    let fill = |txn: &Transaction| {
        txn.create(&visitors, "old")?.bind("ada", "phone")?;
        txn.create(&visitors, "short").map(|_| ())
    };
    store.transact(fill).unwrap();
    store.transact(|txn| txn.get(&visitors, "old")?.unwrap().rotate("new").map(|_| ())).unwrap();
    store.transact(|txn| txn.remove(&visitors, "short")).unwrap();
    store.settle();
    store.backup_to(path("backup")).unwrap();
    store.close().unwrap();
    for name in ["store", "backup"] {
        let (told, ends) = mpsc::channel();
        let store = options(&clock).on_end("farewell", move |_, session: &EndedSession, _| {
            told.send(session.key().clone()).unwrap();
            Ok(())
        });
        let store = store.open(path(name)).unwrap();
        store.settle();
        assert_eq!(ends.try_iter().collect::<Vec<_>>(), ["old", "short"].map(Key::from), "{name}");
        let visitors = store.container("visitors").unwrap();
        let txn = store.begin().unwrap();
        assert_eq!(txn.peek(&visitors, "old").unwrap().unwrap().key(), &Key::from("new"));
        assert_eq!(txn.sessions_of(&visitors, "ada").unwrap()[0].note, "phone");
        assert!(store.check().unwrap().problems.is_empty());
        drop(txn);
        store.close().unwrap();
        assert!(Viewer::check(path(name)).unwrap().problems.is_empty());
    }
}
