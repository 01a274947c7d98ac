//! `sessile backup`, `export`, `import` and `compact`, and the filters of `ls`, as people and scripts
//! meet them.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value as Json;
use sessile::{Key, ManualClock, Options, Policy, Store, Time};
use tempfile::TempDir;

/// Stands in all keys and values; whoever shows one of them shows it.
const CANARY: &str = "CANARY-7d1f";

/// Later than any clock on a wall, so that the store's time is the time.
const START: Time = Time::from_secs(4_100_000_000);

/// A store in use: `ada` with a cart, `bob` without one, ten minutes later.
fn fill(path: &Path) -> Store {
    let clock = ManualClock::new(START);
    let options = Options::new().clock(clock.clone()).sweep_every(None).segment_bytes(64 << 10);
    let store = options.open(path).unwrap();
    let visitors = store.container_with("visitors", Policy::new().timeout_mins(20)).unwrap();
    store
        .transact(|txn| {
            let session = txn.create(&visitors, format!("ada {CANARY}"))?;
            session.insert("cart", [CANARY, "tea"])?;
            session.insert("country", "uk")
        })
        .unwrap();
    clock.advance_secs(600);
    let bob = |txn: &sessile::Transaction| {
        txn.create(&visitors, format!("bob {CANARY}"))?.insert("country", "de")
    };
    store.transact(bob).unwrap();
    store
}

fn fingerprint(name: &str) -> String {
    Key::from(format!("{name} {CANARY}")).fingerprint()
}

fn sessile<'a>(arguments: impl IntoIterator<Item = &'a dyn AsRef<std::ffi::OsStr>>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs it to an end of this code; what it prints on stdout and on stderr.
fn run(arguments: &[&dyn AsRef<std::ffi::OsStr>], code: i32) -> (String, String) {
    let Output { status, stdout, stderr } = sessile(arguments.iter().copied()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(stdout), text(stderr));
    assert_eq!(status.code(), Some(code), "{stdout}{stderr}");
    assert!(!stderr.contains(CANARY), "{stderr}");
    (stdout, stderr)
}

fn json(text: &str) -> Json {
    serde_json::from_str(text).unwrap()
}

struct Fixture {
    directory: TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = fill(&directory.path().join("store"));
        Fixture { directory, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

#[test]
fn ls_takes_filters() {
    let fixture = Fixture::new();
    let store = fixture.path("store");
    let listed = |filters: &[&dyn AsRef<std::ffi::OsStr>]| {
        let arguments: [&dyn AsRef<std::ffi::OsStr>; 3] = [&"ls", &store, &"--json"];
        let (stdout, _) = run(&[&arguments[..], filters].concat(), 0);
        let sessions = json(&stdout)["sessions"].as_array().unwrap().clone();
        sessions.iter().map(|s| s["fingerprint"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (ada, bob) = (&*fingerprint("ada"), &*fingerprint("bob"));
    assert_eq!(listed(&[]), [ada, bob]);
    assert_eq!(listed(&[&"--older", &"9m"]), [ada]);
    assert_eq!(listed(&[&"--idle", &"1h"]), [""; 0]);
    assert_eq!(listed(&[&"--expires-in", &"11m"]), [ada]);
    assert_eq!(listed(&[&"--has", &"cart"]), [ada]);
    assert_eq!(listed(&[&"--where", &"country=de"]), [bob]);
    let cart = format!("cart=[\"{CANARY}\",\"tea\"]");
    assert_eq!(listed(&[&"--where", &cart, &"--container", &"visitors"]), [ada]);
    assert_eq!(listed(&[&"--new"]), [ada, bob]);
    assert_eq!(listed(&[&"--principal", &"nobody"]), [""; 0]);
    for wrong in ["--older=soon", "--where=country", "--has"] {
        run(&[&"ls", &store, &wrong], 2);
    }
}

#[test]
fn what_is_exported_is_imported() {
    let fixture = Fixture::new();
    let (store, file) = (fixture.path("store"), fixture.path("all.ndjson"));
    let (there, copy) = (fixture.path("there"), fixture.path("copy"));
    let (stdout, _) = run(&[&"export", &store, &"-o", &file, &"--json"], 0);
    assert_eq!((&json(&stdout)["sessions"], stdout.contains(CANARY)), (&2.into(), false));
    let lines = fs::read_to_string(&file).unwrap();
    assert_eq!(lines.lines().count(), 1 + 1 + 2 + 1);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }
    // On stdout the same, and a word on stderr.
    let (stdout, stderr) = run(&[&"export", &store], 0);
    assert_eq!((&stdout, stderr.as_str()), (&lines, "2 sessions\n"));

    // A store is made only if that is said.
    let (_, stderr) = run(&[&"import", &there, &file], 4);
    assert!(!there.exists(), "{stderr}");
    let (stdout, _) = run(&[&"import", &there, &file, &"--create", &"--json"], 0);
    let (created, dry_run) = (&json(&stdout)["created"], &json(&stdout)["dry_run"]);
    assert_eq!((created, dry_run), (&2.into(), &false.into()));
    run(&[&"export", &there, &"-o", &copy], 0);
    assert_eq!(fs::read_to_string(&copy).unwrap(), lines);

    // Who is there is in the way.
    let (_, stderr) = run(&[&"import", &there, &file], 6);
    assert!(stderr.contains("--on-conflict"), "{stderr}");
    let (stdout, _) = run(&[&"import", &there, &file, &"--on-conflict", &"skip"], 0);
    assert!(stdout.contains("skipped\t2"), "{stdout}");
    let dry: [&dyn AsRef<std::ffi::OsStr>; 4] =
        [&"--on-conflict", &"replace", &"--dry-run", &"--json"];
    let (stdout, _) = run(&[&[&"import" as &dyn AsRef<_>, &there, &file], &dry[..]].concat(), 0);
    assert_eq!(json(&stdout)["replaced"], 2);

    // Of a file that was cut off nothing comes; from stdin, what came before.
    let cut = fixture.path("cut.ndjson");
    fs::write(&cut, &lines[..lines.len() - 20]).unwrap();
    let other = fixture.path("other");
    let (_, stderr) = run(&[&"import", &other, &cut, &"--create"], 6);
    assert!(stderr.contains("line 5 of the import: it is cut off"), "{stderr}");
    let (stdout, _) = run(&[&"ls", &other, &"--json"], 0);
    assert!(json(&stdout)["sessions"].as_array().unwrap().is_empty(), "{stdout}");
    let mut child = sessile([&"import" as &dyn AsRef<_>, &other, &"-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let (stdout, _) = run(&[&"export", &other], 0);
    assert_eq!(stdout, lines);

    // Nobody changes a store that is in use.
    let (_, stderr) = run(&[&"import", &store, &file], 3);
    assert!(stderr.contains("is open already (process"), "{stderr}");
    run(&[&"compact", &store], 3);
    run(&[&"compact", &fixture.path("nothing")], 4);
    drop(fixture.store);
}

#[test]
fn what_is_redacted_shows_nothing() {
    let fixture = Fixture::new();
    let store = fixture.path("store");
    let hex: String = CANARY.bytes().map(|byte| format!("{byte:02x}")).collect();
    let (stdout, _) = run(&[&"export", &store, &"--redact"], 0);
    assert!(!stdout.contains(CANARY) && !stdout.contains(&hex), "{stdout}");
    assert!(stdout.contains(&fingerprint("ada")), "{stdout}");
    let (stdout, _) = run(&[&"export", &store, &"--without", &"cart", &"--has", &"cart"], 0);
    assert!(!stdout.contains(CANARY) && stdout.contains("\"country\":\"uk\""), "{stdout}");
    // A reader that has seen enough of more than a pipe holds ends it quietly.
    let visitors = fixture.store.container("visitors").unwrap();
    for n in 0..40 {
        let create = |txn: &sessile::Transaction| {
            txn.create(&visitors, format!("{n}"))?.insert("x", "x".repeat(5_000))
        };
        fixture.store.transact(create).unwrap();
    }
    let mut child = sessile([&"export" as &dyn AsRef<_>, &store])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_backup_of_a_store_in_use_is_a_store() {
    let fixture = Fixture::new();
    let (store, monday) = (fixture.path("store"), fixture.path("backups/monday"));
    let (stdout, stderr) = run(&[&"backup", &store, &monday, &"--json"], 0);
    let revision = fixture.store.stats().revision;
    assert_eq!(
        (&json(&stdout)["sessions"], &json(&stdout)["revision"]),
        (&2.into(), &revision.into())
    );
    assert_eq!(stderr, "");
    let all = |path: &Path| run(&[&"export", &path], 0).0;
    assert_eq!(all(&monday), all(&store));
    run(&[&"check", &monday], 0);
    let (_, stderr) = run(&[&"backup", &store, &monday], 6);
    assert!(stderr.contains("there is a store at") && stderr.contains("not there yet"), "{stderr}");
    let (stdout, _) = run(&[&"compact", &monday, &"--json"], 0);
    let bytes = |name: &str| json(&stdout)[name].as_u64().unwrap();
    assert!(bytes("bytes_after") <= bytes("bytes_before"));
    assert_eq!(all(&monday), all(&store));
}
