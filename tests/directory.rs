//! What may lie at the path of a store, and what becomes of it: a store is opened, an empty place
//! becomes one, and everything else is refused and left as it is.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::fs;
use std::path::Path;

use sessile::{Error, Options, Policy, Store};

/// Refused, and every byte still there.
fn refused(path: &Path, wanted: impl Fn(&Error) -> bool) {
    let before = contents(path);
    for create in [false, true] {
        let opened = if create { Store::create(path) } else { Store::open(path) };
        let error = opened.expect_err("this is no store");
        let fine = wanted(&error) || create && matches!(error, Error::AlreadyThere { .. });
        assert!(fine, "{error:?}");
    }
    assert!(contents(path) == before, "what was refused was changed");
}

/// The files at a path, the lock aside: it is made to look, and holds nothing.
fn contents(path: &Path) -> Vec<(String, Vec<u8>)> {
    if path.is_file() {
        return vec![(String::new(), fs::read(path).unwrap())];
    }
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    let mut found: Vec<_> = entries
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            let bytes = fs::read(entry.path()).unwrap_or_default();
            (name, bytes)
        })
        .filter(|(name, _)| name != "lock")
        .collect();
    found.sort();
    found
}

#[test]
fn an_absent_or_empty_directory_becomes_a_store() {
    let directory = tempfile::tempdir().unwrap();
    for path in ["absent", "absent/and/deep", "empty"] {
        let path = directory.path().join(path);
        if path.ends_with("empty") {
            fs::create_dir(&path).unwrap();
        }
        let store = Store::open(&path).unwrap();
        store.container_with("shop", Policy::new()).unwrap();
        store.close().unwrap();
        assert!(matches!(Store::create(&path), Err(Error::AlreadyThere { .. })));
        assert!(Store::open(&path).unwrap().container("shop").is_ok());
    }
}

#[test]
fn what_is_no_store_is_refused_and_left_alone() {
    let not_a_store = |error: &Error| matches!(error, Error::NotAStore { .. });
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);

    fs::write(path("file"), "a file").unwrap();
    refused(&path("file"), not_a_store);

    fs::create_dir(path("foreign")).unwrap();
    fs::write(path("foreign/thesis.tex"), "months of work").unwrap();
    refused(&path("foreign"), not_a_store);

    for (name, bytes) in
        [("empty", &b""[..]), ("text", b"This is no database. ".repeat(500).as_slice())]
    {
        fs::create_dir(path(name)).unwrap();
        fs::write(path(name).join("sessions.redb"), bytes).unwrap();
        refused(&path(name), not_a_store);
    }

    fs::create_dir_all(path("odd/sessions.redb")).unwrap();
    refused(&path("odd"), not_a_store);

    // A database, but not one of ours.
    fs::create_dir(path("other")).unwrap();
    drop(redb::Database::create(path("other/sessions.redb")).unwrap());
    refused(&path("other"), not_a_store);
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    Store::open(&path).unwrap().close().unwrap();
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    let database = redb::Database::open(path.join("sessions.redb")).unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(meta).unwrap().insert("format", 7).unwrap();
    txn.commit().unwrap();
    drop(database);
    refused(&path, |error| matches!(error, Error::Format { found: 7, supported: 1 }));
}

#[test]
fn a_store_is_open_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = Store::open(&path).unwrap();
    for _ in 0..2 {
        assert!(matches!(Store::open(&path), Err(Error::AlreadyOpen { .. })));
    }
    // A clone is the same store; the last one closes it.
    let clone = store.clone();
    drop(store);
    assert!(matches!(Store::open(&path), Err(Error::AlreadyOpen { .. })));
    drop(clone);
    Store::open(&path).unwrap();
}

/// A crash during creation leaves a database in the making: the next attempt begins again.
#[test]
fn a_creation_that_was_cut_off_begins_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    for left in [&b""[..], b"half a database"] {
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("lock"), "").unwrap();
        fs::write(path.join("sessions.redb.new"), left).unwrap();
        let store = Store::create(&path).unwrap();
        store.container_with("shop", Policy::new()).unwrap();
        store.close().unwrap();
        assert!(!path.join("sessions.redb.new").exists());
        fs::remove_dir_all(&path).unwrap();
    }
}

#[cfg(unix)]
#[test]
fn sessions_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let _store = Store::open(&path).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join("sessions.redb")), 0o600);
    assert_eq!(mode(&path.join("lock")), 0o600);
}

/// Time goes on where it stopped: what has been seen to expire stays expired.
#[test]
fn a_clock_that_is_set_back_between_two_runs_revives_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let clock = sessile::ManualClock::new(sessile::Time::from_secs(1_000_000_800));
    let open = || Options::new().clock(clock.clone()).sweep_every(None).open(&path).unwrap();
    let store = open();
    let shop = store.container_with("shop", Policy::new().timeout_mins(1)).unwrap();
    store.transact(|txn| txn.create(&shop, "ada").map(|_| ())).unwrap();
    clock.advance_secs(80);
    assert_eq!(store.begin().unwrap().len(&shop).unwrap(), 0);
    // Nothing was committed since, and no sweep has ended her.
    store.close().unwrap();
    clock.set(sessile::Time::from_secs(1_000_000_800));
    let store = open();
    let shop = store.container("shop").unwrap();
    assert!(store.begin().unwrap().peek(&shop, "ada").unwrap().is_none());
    assert_eq!(store.sweep().unwrap().ended, 1);
}
