//! Can we still read old files? Stores of each format, clean and crashed, are opened and compared.
//!
//! `tests/fixtures/format-1` was made by `cargo test --test formats -- --ignored`, which makes the
//! fixtures of the present format anew. Do that for a new format only, beside the old ones.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use sessile::{FORMAT, ManualClock, Options, Policy, Rule, Store, Time};

const START: u64 = 1_000_000_800;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1")
}

fn open(path: &Path) -> Store {
    let clock = ManualClock::new(Time::from_secs(START + 60));
    let options = Options::new().clock(clock).sweep_every(None).seed(7).segment_bytes(4 << 10);
    options.fold_inline(1).open(path).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "expected" && entry.file_name() != "lock" {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// All that a store holds, as people read it.
fn dump(store: &Store) -> String {
    let mut dump = String::new();
    let txn = store.begin().unwrap();
    for container in store.containers() {
        let policy = txn.policy(&container).unwrap();
        let (name, length) = (container.name(), txn.len(&container).unwrap());
        writeln!(dump, "{name}: {length} sessions, {policy:?}").unwrap();
        for session in txn.iter(&container).unwrap() {
            let session = session.unwrap();
            let (created, expires) = (session.created().unwrap(), session.expires().unwrap());
            let key = String::from_utf8_lossy(session.key().as_bytes()).into_owned();
            writeln!(dump, "  {key} {} {created} {expires:?}", session.id()).unwrap();
            for (name, value) in session.iter().unwrap() {
                writeln!(dump, "    {name} = {:02x?}", value.as_bytes()).unwrap();
            }
        }
    }
    dump
}

/// Makes what the fixtures hold: sessions in the tables, and after that more in the log.
fn fill(store: &Store) {
    let policy = Policy::new().rule("theme", Rule::LastWriter).limit(50);
    let shop = store.container_with("shop", policy).unwrap();
    let long = store.container_with("for ever", Policy::new().timeout_secs(0)).unwrap();
    let sessions = ["ada", "bob", "carol", "a key of more than thirty-two bytes, not a hash"];
    for (n, key) in sessions.into_iter().enumerate() {
        let fill = store.transact(|txn| {
            let session = txn.create(&shop, key)?;
            session.insert("name", key)?;
            session.insert("basket", vec![n, 7])?;
            session.add("visits", 1)?;
            txn.get_or_create(&long, "all")?.union("keys", key)
        });
        fill.unwrap();
    }
    store.fold().unwrap();
    let more = store.transact(|txn| {
        txn.remove(&shop, "bob")?;
        let ada = txn.get_or_create(&shop, "ada")?;
        ada.remove("basket")?;
        ada.insert("theme", "dark")?;
        ada.add("visits", 1)?;
        txn.create(&shop, "dave")?.insert("name", "Dave")
    });
    more.unwrap();
}

#[test]
#[ignore = "makes the fixtures of the present format anew"]
fn make() {
    assert_eq!(FORMAT, 1, "a new format gets fixtures of its own");
    let directory = tempfile::tempdir().unwrap();
    for (name, is_clean) in [("clean", true), ("crashed", false)] {
        let (path, fixture) = (directory.path().join(name), fixtures().join(name));
        let store = open(&path);
        fill(&store);
        let expected = dump(&store);
        let _ = fs::remove_dir_all(&fixture);
        fs::create_dir_all(fixture.parent().unwrap()).unwrap();
        if is_clean {
            store.close().unwrap();
            copy(&path, &fixture);
        } else {
            // What a process leaves behind that is killed now.
            copy(&path, &fixture);
            store.close().unwrap();
        }
        fs::write(fixture.join("expected"), expected).unwrap();
    }
}

#[test]
fn stores_of_format_1_are_read_and_go_on() {
    for name in ["clean", "crashed"] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        copy(&fixtures().join(name), &path);
        let expected = fs::read_to_string(fixtures().join(name).join("expected")).unwrap();
        for _ in 0..2 {
            let store = open(&path);
            assert_eq!(dump(&store), expected, "{name}");
            store.close().unwrap();
        }
        let store = open(&path);
        let shop = store.container("shop").unwrap();
        store.transact(|txn| txn.create(&shop, "eve").map(|_| ())).unwrap();
        store.close().unwrap();
        assert!(dump(&open(&path)).contains("eve"));
    }
}
