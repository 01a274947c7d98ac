//! `sessile stats`, `ls`, `show` and `check` as people and scripts meet them: on stores that are
//! closed, in use, or left behind, which they find and leave as they are.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::Value as Json;
use sessile::{Error, Key, ManualClock, Options, Policy, Rule, Store, Time};
use tempfile::TempDir;

/// Stands in all keys and values of the stores here; whoever shows one of them shows it.
const CANARY: &str = "CANARY-7d1f";

/// Later than any clock on a wall, so that the store's time is the time.
const START: Time = Time::from_secs(4_100_000_000);

const COMMANDS: [&str; 4] = ["stats", "ls", "show", "check"];

fn options(clock: &ManualClock) -> Options {
    Options::new().clock(clock.clone()).sweep_every(None).segment_bytes(64 << 10)
}

/// Three guests, two of them expired; two members, who never expire. Some are in the tables and
/// some in the log only.
fn fill(path: &Path) -> Store {
    let clock = ManualClock::new(START);
    let store = options(&clock).open(path).unwrap();
    let policy = Policy::new().timeout_mins(20).limit(1_000).rule("theme", Rule::LastWriter);
    let guests = store.container_with("guests", policy).unwrap();
    let members = store.container_with("members", Policy::new().timeout_secs(0)).unwrap();
    let create = |container, name: &str| {
        store
            .transact(|txn| {
                let session = txn.create(container, format!("{name} {CANARY}"))?;
                session.insert("name", format!("{CANARY} of {name}"))?;
                session.insert("basket", [CANARY, "tea"])?;
                session.insert("visits", 3)
            })
            .unwrap();
    };
    create(&guests, "early");
    create(&members, "ada");
    store.fold().unwrap();
    clock.advance_secs(10);
    create(&guests, "second");
    clock.advance_secs(30 * 60);
    create(&guests, "late");
    create(&members, "bob");
    store
}

fn fingerprint(name: &str) -> String {
    Key::from(format!("{name} {CANARY}")).fingerprint()
}

/// A process that has filled a store and has it open.
struct Process(Child);

const PATH: &str = "SESSILE_TEST_PATH";

impl Process {
    fn start(path: &Path) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "uses_a_store", "--ignored", "--nocapture"]).env(PATH, path);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("store: open")));
        Process(child)
    }
}

/// `kill -9`.
impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
#[ignore = "it is run by the others, in processes of their own"]
fn uses_a_store() {
    let Some(path) = env::var_os(PATH) else { return };
    let _store = fill(&PathBuf::from(path));
    let mut stdout = io::stdout();
    writeln!(stdout, "store: open").unwrap();
    stdout.flush().unwrap();
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// A store, and what else has to live as long as it is looked at.
struct Fixture {
    _directory: TempDir,
    path: PathBuf,
    process: Option<Process>,
}

impl Fixture {
    fn new(make: impl FnOnce(&Path) -> Option<Process>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let process = make(&path);
        Fixture { _directory: directory, path, process }
    }

    fn closed() -> Self {
        Fixture::new(|path| {
            fill(path).close().unwrap();
            None
        })
    }

    fn in_use() -> Self {
        Fixture::new(|path| Some(Process::start(path)))
    }

    fn left_behind() -> Self {
        Fixture::new(|path| {
            drop(Process::start(path));
            None
        })
    }
}

fn sessile(arguments: &[&str], path: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    let (name, rest) = arguments.split_first().unwrap();
    command.arg(name).arg(path).args(rest).stdin(Stdio::null());
    command
}

/// Runs a command that must leave everything at the path as it is.
fn run(arguments: &[&str], path: &Path) -> (Option<i32>, String, String) {
    let before = contents(path);
    let Output { status, stdout, stderr } = sessile(arguments, path).output().unwrap();
    let after = contents(path);
    assert!(before.keys().eq(after.keys()), "{arguments:?} made or removed a file");
    for (name, file) in before {
        assert!(file == after[&name], "{arguments:?} changed {name:?}");
    }
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// What a command prints that ends well and has nothing to say besides.
fn output(arguments: &[&str], path: &Path) -> String {
    let (code, stdout, stderr) = run(arguments, path);
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{arguments:?}: {stdout}");
    for line in stdout.lines() {
        assert!(line.chars().all(|letter| !letter.is_control() || letter == '\t'), "{line:?}");
    }
    stdout
}

fn json(arguments: &[&str], path: &Path) -> Json {
    serde_json::from_str(&output(&[arguments, &["--json"]].concat(), path)).unwrap()
}

/// A directory and every file in it: what they hold, and when they were changed.
fn contents(path: &Path) -> BTreeMap<String, (Vec<u8>, Option<SystemTime>)> {
    let changed = |path: &Path| fs::metadata(path).ok().and_then(|data| data.modified().ok());
    let mut found = BTreeMap::from([(String::new(), (Vec::new(), changed(path)))]);
    for entry in fs::read_dir(path).into_iter().flatten() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        found.insert(name, (fs::read(entry.path()).unwrap(), changed(&entry.path())));
    }
    found
}

/// The fields of a table for programs, by the names in its first line.
fn table(text: &str) -> Vec<BTreeMap<&str, &str>> {
    let mut lines = text.lines().map(|line| line.split('\t'));
    let names: Vec<_> = lines.next().unwrap().collect();
    lines.map(|fields| names.iter().copied().zip(fields).collect()).collect()
}

/// Everything that the four commands say of the fixture, whatever state it is in.
fn looks_into(fixture: &Fixture, state: &str) {
    let path = &fixture.path;
    let stats = json(&["stats"], path);
    assert_eq!(stats["state"]["is"], state);
    assert_eq!(stats["format"], sessile::FORMAT);
    let total = &stats["total"];
    assert_eq!(
        (&total["live"], &total["expired"], &total["never_expire"]),
        (&3.into(), &2.into(), &2.into())
    );
    // 10 s and half an hour after their last access; sessions live 20 minutes and up to 20 s.
    assert!((580..=610).contains(&total["sweep_lag_secs"].as_u64().unwrap()), "{total}");
    assert_eq!(total["age_secs"]["max"], 1_810);
    let [guests, members] = &stats["containers"].as_array().unwrap()[..] else { panic!("{stats}") };
    assert_eq!(
        (&guests["name"], &guests["live"], &guests["count"]),
        (&"guests".into(), &1.into(), &3.into())
    );
    assert_eq!(guests["settings"]["timeout_secs"], 1_200);
    assert_eq!(guests["settings"]["rules"]["theme"], "LastWriter");
    assert_eq!((&members["live"], &members["sweep_lag_secs"]), (&2.into(), &Json::Null));
    let text = output(&["stats"], path);
    let parts: Vec<_> = text.split("\n\n").collect();
    assert!(
        parts[0].contains(&format!(
            "\nstate\t{}",
            match state {
                "died" => "not closed: process",
                state => state,
            }
        )),
        "{text}"
    );
    let rows = table(parts[1]);
    assert_eq!((rows[2]["container"], rows[2]["live"], rows[2]["expired"]), ("(all)", "3", "2"));

    let sessions = json(&["ls"], path);
    let listed = |sessions: &Json| -> Vec<String> {
        let sessions = sessions["sessions"].as_array().unwrap().iter();
        sessions.map(|session| session["fingerprint"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(listed(&sessions), ["late", "ada", "bob"].map(fingerprint));
    assert_eq!(sessions["sessions"][0]["attribute_count"], 3);
    assert_eq!(sessions["sessions"][1]["expires"], Json::Null);
    assert_eq!(sessions["sessions"][1]["created"], "2099-12-03T16:53:20Z");
    let expired = json(&["ls", "--expired"], path);
    assert_eq!(listed(&expired), ["early", "second"].map(fingerprint));
    assert_eq!(listed(&json(&["ls", "--limit", "2"], path)), ["late", "ada"].map(fingerprint));
    let members = json(&["ls", "--container", "members", "--reveal"], path);
    assert_eq!(members["sessions"][1]["key"], format!("bob {CANARY}"));
    let text = output(&["ls"], path);
    let rows = table(&text);
    assert_eq!(rows.len(), 3);
    assert_eq!((rows[0]["container"], rows[0]["session"]), ("guests", &*fingerprint("late")));

    let ada = fingerprint("ada");
    let shown = json(&["show", &ada[..5]], path);
    assert_eq!(
        (&shown["container"], &shown["fingerprint"]),
        (&"members".into(), &ada.clone().into())
    );
    let name = &shown["attributes"][1];
    assert_eq!(
        (&name["name"], &name["kind"], &name["value"]),
        (&"name".into(), &"string".into(), &Json::Null)
    );
    let by_key = json(&["show", &format!("ada {CANARY}"), "--reveal"], path);
    assert_eq!(by_key["attributes"][0]["value"], Json::from(vec![CANARY, "tea"]));
    assert_eq!(by_key["attributes"][2]["value"], 3);
    let text = output(&["show", &ada, "--reveal"], path);
    assert!(text.contains(&format!("basket\tlist\t17\t4\t[\"{CANARY}\",\"tea\"]\n")), "{text}");

    let checked = json(&["check"], path);
    assert_eq!(checked["problems"], Json::from(Vec::<Json>::new()));
    assert_eq!(checked["pages_verified"], state != "in use");
    assert!(output(&["check"], path).ends_with("problems\t0\n"));

    // Nothing secret without being asked for it.
    for command in COMMANDS {
        for json in [&[][..], &["--json"]] {
            let arguments = match command {
                "show" => [&["show", &ada], json].concat(),
                command => [&[command], json].concat(),
            };
            assert!(!output(&arguments, path).contains("CANARY"), "{arguments:?}");
        }
    }
}

#[test]
fn a_closed_store_is_looked_into() {
    looks_into(&Fixture::closed(), "closed");
}

#[test]
fn a_store_in_use_is_looked_into() {
    let fixture = Fixture::in_use();
    looks_into(&fixture, "in use");
    let process = fixture.process.as_ref().unwrap().0.id();
    assert_eq!(json(&["stats"], &fixture.path)["state"]["process"], process);
}

#[test]
fn a_store_left_behind_is_looked_into() {
    let fixture = Fixture::left_behind();
    looks_into(&fixture, "died");
    // And it opens as if nobody had.
    let store = Options::new().open(&fixture.path).unwrap();
    let members = store.container("members").unwrap();
    assert_eq!(store.begin().unwrap().len(&members).unwrap(), 2);
}

/// Tells a thread to end, even when a test fails that waits for it.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Pairs come and go in one commit each, so there are as many at any time.
#[test]
fn what_is_counted_of_a_busy_store_is_one_state() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = options(&ManualClock::new(START)).segment_bytes(8 << 10).open(&path).unwrap();
    let halls = ["left", "right"].map(|name| store.container_with(name, Policy::new()).unwrap());
    let come = |n: u64| {
        store.transact(|txn| {
            for hall in &halls {
                txn.create(hall, format!("{n:08}"))?;
                if n >= 10 {
                    txn.remove(hall, format!("{:08}", n - 10))?;
                }
            }
            Ok(())
        })
    };
    (0..10).for_each(|n| drop(come(n).unwrap()));
    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 10.. {
                come(n).unwrap();
                if enough.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let _stop = Stop(&enough);
        let mut last = 0;
        let mut looks = 0;
        while looks < 20 || store.stats().folds < 5 {
            let Output { status, stdout, stderr } =
                sessile(&["stats", "--json"], &path).output().unwrap();
            assert_eq!(status.code(), Some(0), "{}", String::from_utf8_lossy(&stderr));
            let stats: Json = serde_json::from_slice(&stdout).unwrap();
            assert_eq!(stats["total"]["live"], 20);
            assert_eq!(stats["containers"][0]["live"], 10);
            let revision = stats["revision"].as_u64().unwrap();
            assert!(revision >= last);
            last = revision;
            looks += 1;
        }
    });
}

#[test]
fn a_session_is_shown_by_what_it_is_called() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = options(&ManualClock::new(START)).open(&path).unwrap();
    let shop = store.container_with("shop", Policy::new()).unwrap();
    let desk = store.container_with("desk", Policy::new()).unwrap();
    let create = |container, key: &Key, name: &str| {
        store.transact(|txn| txn.create(container, key)?.insert("name", name)).unwrap();
    };
    create(&shop, &Key::from("ada"), "Ada of the shop");
    create(&desk, &Key::from("ada"), "Ada of the desk");
    create(&desk, &Key::from(vec![0xff, 0x00, 0x10]), "Bytes");
    // Thousands, so that beginnings of fingerprints are shared.
    for first in (0..2_000).step_by(100) {
        store
            .transact(|txn| {
                (first..first + 100).try_for_each(|n| txn.create(&shop, format!("{n}")).map(drop))
            })
            .unwrap();
    }
    store.close().unwrap();

    let name = |arguments: &[&str]| {
        let shown = json(&[&["show"], arguments, &["--reveal"]].concat(), &path);
        shown["attributes"][0]["value"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(name(&["ada", "--container", "shop"]), "Ada of the shop");
    assert_eq!(name(&["0xff0010"]), "Bytes");
    let bytes = Key::from(vec![0xff, 0x00, 0x10]).fingerprint();
    assert_eq!(name(&[&bytes.to_uppercase()]), "Bytes");
    // A whole key comes before the beginning of a fingerprint.
    assert_eq!(json(&["show", "7"], &path)["fingerprint"], Key::from("7").fingerprint());

    for (id, said) in
        [("ada", "several sessions"), ("f", "several sessions"), ("nobody", "no session")]
    {
        let (code, stdout, stderr) = run(&["show", id], &path);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{id}");
        assert!(stderr.starts_with(said) && stderr.lines().count() > 1, "{stderr}");
        assert!(stderr.lines().count() < 15, "{stderr}");
    }
    let (code, _, stderr) = run(&["ls", "--container", "attic"], &path);
    assert_eq!(code, Some(6));
    assert!(stderr.contains("no container \"attic\""), "{stderr}");
}

/// What lasts for a while only is shown with its time, and not when that is over.
#[test]
fn what_lasts_for_a_while_is_shown() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let clock = ManualClock::new(START);
    let store = options(&clock).open(&path).unwrap();
    let shop = store.container_with("shop", Policy::new()).unwrap();
    store
        .transact(|txn| {
            let session = txn.create(&shop, "ada")?;
            session.set_timeout(Duration::from_secs(86_400))?;
            session.insert_for("code", 1, Duration::from_secs(60))?;
            session.insert_for("offer", 2, Duration::from_secs(600))?;
            session.insert("name", "Ada")
        })
        .unwrap();
    clock.advance_secs(60);
    // So that the store's time is known outside.
    store.transact(|txn| txn.create(&shop, "bob").map(drop)).unwrap();
    store.close().unwrap();

    let shown = json(&["show", "ada"], &path);
    assert_eq!(shown["timeout_secs"], 86_400);
    let attributes: Vec<_> = shown["attributes"].as_array().unwrap().iter().collect();
    assert_eq!(attributes.iter().map(|a| &a["name"]).collect::<Vec<_>>(), ["name", "offer"]);
    assert_eq!(attributes[0].get("until"), None);
    assert_eq!(attributes[1]["until"], "2099-12-03T17:03:20Z");
    let text = output(&["show", "ada"], &path);
    assert!(text.contains("timeout\t86400"), "{text}");
    assert!(text.contains("revision\tuntil\tvalue"), "{text}");
    let plain = output(&["show", "bob"], &path);
    assert!(!plain.contains("timeout") && !plain.contains("until"), "{plain}");
}

/// What terminals obey, in every place where a stranger may have written it.
#[test]
fn a_terminal_is_told_nothing_by_what_a_store_holds() {
    const HOSTILE: &str = "a\u{1b}]52;c;eA==\u{7}\r\n\t\u{9b}31m\u{202e}\u{200d}\u{7f}z";
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(format!("store {HOSTILE}"));
    let store = options(&ManualClock::new(START)).open(&path).unwrap();
    let policy = Policy::new().rule(HOSTILE, Rule::LastWriter).on_end(HOSTILE);
    let container = store.container_with(HOSTILE, policy).unwrap();
    store
        .transact(|txn| {
            let session = txn.create(&container, HOSTILE)?;
            session.insert(HOSTILE, BTreeMap::from([(HOSTILE, HOSTILE)]))
        })
        .unwrap();
    store.close().unwrap();
    let is_safe = |text: &str| {
        let hidden = ['\u{202e}', '\u{200d}', '\u{7f}'];
        !text.contains(hidden) && text.chars().all(|c| !c.is_control() || "\n\t".contains(c))
    };
    for arguments in
        [&["stats"][..], &["ls", "--reveal"], &["show", HOSTILE, "--reveal"], &["check"]]
    {
        let text = output(arguments, &path);
        assert!(is_safe(&text) && text.contains("\\u{1b}]52"), "{text:?}");
        let json = output(&[arguments, &["--json"]].concat(), &path);
        assert!(is_safe(&json), "{json:?}");
        assert!(serde_json::from_str::<Json>(&json).unwrap().to_string().contains("\\u001b]52"));
    }
    let shown = json(&["show", HOSTILE, "--reveal"], &path);
    assert_eq!((&shown["key"], &shown["container"]), (&HOSTILE.into(), &HOSTILE.into()));
    assert_eq!(shown["attributes"][0]["value"][HOSTILE], HOSTILE);
    fs::remove_file(path.join("sessile")).unwrap();
    let (code, _, stderr) = run(&["stats"], &path);
    assert_eq!(code, Some(4));
    assert!(is_safe(&stderr) && stderr.lines().count() == 2, "{stderr:?}");
}

#[test]
fn damage_is_found_and_told() {
    let fixture = Fixture::closed();
    let tables = fixture.path.join("sessions.redb");
    let mut bytes = fs::read(&tables).unwrap();
    let value = format!("{CANARY} of ada");
    let places: Vec<_> =
        (0..bytes.len()).filter(|at| bytes[*at..].starts_with(value.as_bytes())).collect();
    places.iter().for_each(|at| bytes[*at] ^= 1);
    fs::write(&tables, bytes).unwrap();

    let (code, stdout, stderr) = run(&["check"], &fixture.path);
    assert_eq!((code, stderr.as_str()), (Some(1), ""), "{stdout}");
    let record =
        format!("problem\tsession {} of \"members\": its record is damaged", fingerprint("ada"));
    assert!(stdout.contains(&record) && stdout.ends_with("problems\t2\n"), "{stdout}");
    assert!(!stdout.contains(CANARY));
    let (code, stdout, _) = run(&["check", "--json"], &fixture.path);
    let checked: Json = serde_json::from_str(&stdout).unwrap();
    assert_eq!(code, Some(1));
    assert_eq!(checked["problems"][0]["kind"], "record");
    assert_eq!(checked["problems"][1]["kind"], "file");
    // The others are looked at all the same.
    let stats = json(&["stats"], &fixture.path);
    assert_eq!((&stats["damaged"], &stats["total"]["live"]), (&1.into(), &2.into()));
}

/// Each is told with what to do next, and nothing is made.
#[test]
fn what_cannot_be_looked_into_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir(path("empty")).unwrap();
    fs::create_dir(path("foreign")).unwrap();
    fs::write(path("foreign/thesis.tex"), "months of work").unwrap();
    for name in ["newer", "damaged"] {
        fill(&path(name)).close().unwrap();
    }
    let marker = fs::read_to_string(path("newer/sessile")).unwrap();
    fs::write(path("newer/sessile"), marker.replace("format 1", "format 7")).unwrap();
    fs::write(path("damaged/sessions.redb"), "no tables").unwrap();

    for (name, code, said, advice) in [
        ("absent", 4, "is no sessile store: there is nothing", "name the directory"),
        ("empty", 4, "is no sessile store", "name the directory"),
        ("foreign", 4, "is no sessile store", "name the directory"),
        ("newer", 4, "the store has format 7, and this version reads 1", "use the version"),
        ("damaged", 6, "corrupt sessions.redb", "sessile check"),
    ] {
        for command in COMMANDS {
            let arguments = if command == "show" { &["show", "ada"][..] } else { &[command] };
            let (found, stdout, stderr) = run(arguments, &path(name));
            if (name, command) == ("damaged", "check") {
                assert_eq!(found, Some(1), "{stderr}");
                assert!(stdout.contains("problem\tsessions.redb: it is no redb database"));
                continue;
            }
            assert_eq!((found, stdout.as_str()), (Some(code), ""), "{name}: {stderr}");
            let [what, next] = stderr.lines().collect::<Vec<_>>()[..] else { panic!("{stderr}") };
            assert!(what.starts_with("error: ") && what.contains(said), "{stderr}");
            assert!(next.contains(advice), "{stderr}");
        }
    }
    assert!(!path("absent").exists());
}

#[test]
fn a_reader_that_has_seen_enough_ends_a_list_quietly() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = options(&ManualClock::new(START)).segment_bytes(1 << 20).open(&path).unwrap();
    let shop = store.container_with("shop", Policy::new()).unwrap();
    // More than a pipe holds.
    for first in (0..5_000).step_by(500) {
        let create = |txn: &sessile::Transaction| -> Result<(), Error> {
            (first..first + 500).try_for_each(|n| txn.create(&shop, format!("{n}")).map(drop))
        };
        store.transact(create).unwrap();
    }
    store.close().unwrap();
    for arguments in [&["ls"][..], &["ls", "--json"]] {
        let mut command = sessile(arguments, &path);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("container\t") || line.starts_with('{'), "{line}");
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        assert_eq!((status.code(), stderr.len()), (Some(0), 0), "{arguments:?}");
    }
}
