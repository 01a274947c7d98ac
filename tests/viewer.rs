//! Looking into a store from outside: whatever state it is in, one committed state of it is seen, and
//! nothing in its directory is changed. And what is wrong with it is found.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::SystemTime;

use redb::{ReadableTable as _, TableDefinition};
use sessile::{
    Checked, Error, ManualClock, Options, Policy, Problem, Store, StoreState, Time, Transaction,
    Value, ViewedAttribute, Viewer,
};

const START: Time = Time::from_secs(1_700_000_000);

fn options() -> Options {
    Options::new().clock(ManualClock::new(START)).sweep_every(None).segment_bytes(16 << 10)
}

/// A store with some sessions in two containers: most in the tables, some in the log only.
fn fill(store: &Store) {
    let policy = Policy::new().timeout_mins(20);
    let shop = store.container_with("shop", policy.clone()).unwrap();
    let desk = store.container_with("desk", policy.timeout_secs(0)).unwrap();
    for n in 0..600 {
        let create = |key: String| {
            store.transact(|txn| {
                let session = txn.create(&shop, &key)?;
                session.insert("name", format!("visitor {n}"))?;
                session.insert("n", n)
            })
        };
        create(format!("visitor {n:03}")).unwrap();
    }
    store.transact(|txn| txn.create(&desk, "clerk")?.insert("open", true)).unwrap();
    store.fold().unwrap();
    // Changed, ended, ended and created anew, and new, since the fold.
    store.transact(|txn| txn.get(&shop, "visitor 007")?.unwrap().insert("n", 1_000)).unwrap();
    store.transact(|txn| txn.remove(&shop, "visitor 008")).unwrap();
    store.transact(|txn| txn.remove(&shop, "visitor 300")).unwrap();
    store.transact(|txn| txn.create(&shop, "visitor 300")?.insert("n", 3_000)).unwrap();
    store.transact(|txn| txn.create(&shop, "visitor 9")?.insert("n", 9_000)).unwrap();
}

type Sessions = BTreeMap<(String, Vec<u8>), BTreeMap<String, Value>>;

/// What the application sees.
fn within(store: &Store) -> Sessions {
    let txn = store.begin().unwrap();
    let mut all = Sessions::new();
    for container in store.containers() {
        for session in txn.iter(&container).unwrap() {
            let session = session.unwrap();
            let place = (container.name().to_owned(), session.key().as_bytes().to_vec());
            all.insert(place, session.iter().unwrap().collect());
        }
    }
    all
}

/// What is seen from outside. Each session is found by its key too.
fn without(viewer: &Viewer) -> Sessions {
    let mut all = Sessions::new();
    for container in viewer.containers() {
        let mut count = 0;
        for session in viewer.sessions(&container.name).unwrap() {
            let session = session.unwrap();
            let attributes: Vec<_> = session.attributes().collect();
            assert_eq!(attributes.len(), session.attribute_count());
            let found = viewer.session(&container.name, session.key()).unwrap().unwrap();
            assert_eq!(found.attributes().collect::<Vec<_>>(), attributes);
            assert_eq!((found.id(), found.revision()), (session.id(), session.revision()));
            let attributes = attributes.into_iter().map(|a| (a.name, a.value));
            let place = (container.name.clone(), session.key().as_bytes().to_vec());
            assert!(all.insert(place, attributes.collect()).is_none(), "a session is seen twice");
            count += 1;
        }
        assert_eq!(count, container.count);
    }
    assert_eq!(viewer.damaged(), 0);
    all
}

/// The directory and every file in it: what they hold, and when they were changed.
fn contents(path: &Path) -> BTreeMap<String, (Vec<u8>, SystemTime)> {
    let changed = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let mut found = BTreeMap::from([(String::new(), (Vec::new(), changed(path)))]);
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        found.insert(name, (fs::read(entry.path()).unwrap(), changed(&entry.path())));
    }
    found
}

/// Runs something that must leave everything at the path as it is.
fn untouched<T>(path: &Path, look: impl FnOnce() -> T) -> T {
    let before = contents(path);
    let seen = look();
    let after = contents(path);
    assert!(before.keys().eq(after.keys()), "{:?} became {:?}", before.keys(), after.keys());
    for (name, file) in before {
        assert!(file == after[&name], "{name:?} was changed");
    }
    seen
}

fn check(path: &Path) -> Checked {
    untouched(path, || Viewer::check(path)).unwrap()
}

#[test]
fn a_closed_store_is_seen() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = options().open(&path).unwrap();
    fill(&store);
    let expected = within(&store);
    let revision = store.stats().revision;
    store.close().unwrap();

    let viewer = untouched(&path, || {
        let viewer = Viewer::open(&path).unwrap();
        assert_eq!(without(&viewer), expected);
        viewer
    });
    let seen = viewer.store();
    assert_eq!(seen.state, StoreState::Closed);
    assert_eq!((seen.revision.get(), seen.folded.get()), (revision, revision));
    assert_eq!((seen.log_batches, seen.log_bytes, seen.log_sessions), (0, 0, 0));
    assert_eq!((seen.format, seen.epoch, seen.time), (sessile::FORMAT, 1, START));
    let names: Vec<_> = seen.files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["lock", "log-0", "log-1", "reserve", "sessile", "sessions.redb"]);

    let ada = viewer.session("shop", "visitor 007").unwrap().unwrap();
    assert_eq!((ada.created(), ada.last_accessed()), (START, START));
    assert_eq!(ada.last_modified(), Some(START));
    let expires = Time::from_secs(START.as_secs() + 20 + 20 * 60);
    assert_eq!(ada.expires(), Some(expires));
    assert!(!ada.is_expired(START) && ada.is_expired(expires));
    let size = |a: ViewedAttribute| a.name.len() + a.value.as_bytes().len();
    assert_eq!(ada.bytes(), ada.attributes().map(size).sum::<usize>());
    assert_eq!(viewer.session("desk", "clerk").unwrap().unwrap().expires(), None);
    assert!(viewer.session("desk", "visitor 007").unwrap().is_none());
    assert!(matches!(viewer.sessions("attic"), Err(Error::NoContainer { .. })));

    let checked = check(&path);
    assert_eq!(checked.problems, []);
    assert!(checked.pages);
    assert_eq!((checked.containers, checked.records, checked.index_rows), (2, 601, 601));
}

/// The one who has it open goes on, and what it has committed is seen at once.
#[test]
fn a_store_in_use_is_seen() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = options().open(&path).unwrap();
    fill(&store);
    let viewer = untouched(&path, || {
        let viewer = Viewer::open(&path).unwrap();
        assert_eq!(without(&viewer), within(&store));
        viewer
    });
    let process = Some(std::process::id());
    assert_eq!(viewer.store().state, StoreState::InUse { process });
    assert!(viewer.store().folded < viewer.store().revision);
    assert_eq!((viewer.store().log_batches, viewer.store().log_sessions), (5, 4));

    let seen = without(&viewer);
    let shop = store.container("shop").unwrap();
    store.transact(|txn| txn.create(&shop, "zoe").map(|_| ())).unwrap();
    assert!(without(&viewer) == seen, "a view does not change");
    store.fold().unwrap();
    assert!(without(&viewer) == seen, "a view does not change");
    assert_eq!(without(&Viewer::open(&path).unwrap()), within(&store));

    let checked = check(&path);
    assert_eq!(checked.problems, []);
    assert!(!checked.pages, "somebody writes to them");
    assert_eq!(checked.state, Some(StoreState::InUse { process }));
    store.close().unwrap();
    assert!(without(&viewer) == seen, "a view does not change");
}

/// Tells threads to end, even when a test fails that waits for them.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Two writers move money, guests come and go, and the log is folded all the time.
#[test]
fn what_is_seen_of_a_busy_store_is_one_committed_state() {
    const ACCOUNTS: usize = 20;
    const MONEY: i64 = 1_000;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    // Eight commits fill a segment.
    let store = options().segment_bytes(4 << 10).open(&path).unwrap();
    let bank = store.container_with("bank", Policy::new()).unwrap();
    let hall = store.container_with("hall", Policy::new()).unwrap();
    for n in 0..ACCOUNTS {
        let open =
            |txn: &_| Transaction::create(txn, &bank, format!("{n:02}"))?.insert("money", MONEY);
        store.transact(open).unwrap();
    }

    let (enough, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
    let done = || enough.load(Ordering::Relaxed);
    let acknowledge = |revision: sessile::Revision| {
        acknowledged.fetch_max(revision.get(), Ordering::SeqCst);
    };
    thread::scope(|scope| {
        for step in [1, 7] {
            let (store, bank, acknowledge, done) = (&store, &bank, &acknowledge, &done);
            scope.spawn(move || {
                for n in 0.. {
                    let (from, to) = (n * step % ACCOUNTS, (n * step + 3) % ACCOUNTS);
                    let report = store.transact(|txn| {
                        txn.get(bank, format!("{from:02}"))?.unwrap().add("money", -7)?;
                        txn.get(bank, format!("{to:02}"))?.unwrap().add("money", 7)
                    });
                    acknowledge(report.unwrap().revision);
                    if done() {
                        break;
                    }
                }
            });
        }
        let (store, hall, acknowledge, done) = (&store, &hall, &acknowledge, &done);
        scope.spawn(move || {
            for n in 0u64.. {
                let report = store.transact(|txn| {
                    let guest = txn.create(hall, format!("{n:08}"))?;
                    guest.insert("coat", "x".repeat(200))?;
                    if n >= 30 {
                        txn.remove(hall, format!("{:08}", n - 30))?;
                    }
                    Ok(())
                });
                acknowledge(report.unwrap().revision);
                if done() {
                    break;
                }
            }
        });
        let _stop = Stop(&enough);
        let (mut views, mut busy, mut checks) = (0, 0, 0);
        let mut last = 0;
        while views < 200 || store.stats().folds < 30 {
            let before = acknowledged.load(Ordering::SeqCst);
            let viewer = match Viewer::open(&path) {
                Ok(viewer) => viewer,
                Err(Error::Busy { .. }) => {
                    busy += 1;
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            let revision = viewer.store().revision.get();
            assert!(revision >= before.max(last), "commit {before} was acknowledged: {viewer:?}");
            last = revision;
            // `without` counts too.
            let seen = without(&viewer);
            let money = seen.iter().filter(|((container, _), _)| container == "bank");
            let money = money.map(|(_, attributes)| attributes["money"].to::<i64>().unwrap());
            assert_eq!(money.sum::<i64>(), ACCOUNTS as i64 * MONEY);
            let guests: Vec<u64> = seen
                .keys()
                .filter(|(container, _)| container == "hall")
                .map(|(_, key)| std::str::from_utf8(key).unwrap().parse().unwrap())
                .collect();
            assert!(guests.len() <= 30);
            assert!(guests.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{guests:?}");
            views += 1;
            if views % 10 == 0 {
                match Viewer::check(&path) {
                    Ok(checked) => {
                        assert_eq!(checked.problems, []);
                        checks += 1;
                    }
                    Err(Error::Busy { .. }) => busy += 1,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        assert!(busy <= 20, "{busy} times too busy");
        assert!(checks >= 10);
    });
}

/// What needs a second process: it is this test's own program, told to use a store.
mod processes {
    use std::env;
    use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};

    use super::*;

    const PATH: &str = "SESSILE_TEST_PATH";

    /// A process that has filled a store, and has it open.
    struct Process {
        child: Child,
    }

    impl Process {
        fn start(path: &Path) -> Self {
            let mut command = Command::new(env::current_exe().unwrap());
            command.args(["--exact", "processes::uses_a_store", "--ignored", "--nocapture"]);
            command.env(PATH, path).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap().contains("store: open")));
            Process { child }
        }

        /// `kill -9`. Its number.
        fn kill(mut self) -> u32 {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
            self.child.id()
        }
    }

    #[test]
    #[ignore = "it is run by the others, in processes of their own"]
    fn uses_a_store() {
        let Some(path) = env::var_os(PATH) else { return };
        let store = options().open(PathBuf::from(path)).unwrap();
        fill(&store);
        let mut stdout = io::stdout();
        writeln!(stdout, "store: open").unwrap();
        stdout.flush().unwrap();
        io::stdin().read_to_end(&mut Vec::new()).unwrap();
    }

    /// What a store is that was filled here, by the same steps.
    fn expected() -> Sessions {
        let store = options().memory().unwrap();
        fill(&store);
        within(&store)
    }

    #[test]
    fn a_store_whose_process_died_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let process = Process::start(&path);
        let pid = process.child.id();
        let viewer = untouched(&path, || Viewer::open(&path)).unwrap();
        assert_eq!(viewer.store().state, StoreState::InUse { process: Some(pid) });
        assert_eq!(without(&viewer), expected());

        process.kill();
        assert_eq!(without(&viewer), expected(), "who looked goes on looking");
        drop(viewer);
        for _ in 0..2 {
            let viewer = untouched(&path, || {
                let viewer = Viewer::open(&path).unwrap();
                assert_eq!(without(&viewer), expected());
                viewer
            });
            assert_eq!(viewer.store().state, StoreState::Died { process: Some(pid) });
            assert_eq!((viewer.store().log_batches, viewer.store().log_sessions), (5, 4));
        }
        let checked = check(&path);
        assert_eq!(checked.problems, []);
        assert!(checked.pages);
        assert_eq!(checked.state, Some(StoreState::Died { process: Some(pid) }));

        // What was seen is what is there.
        let store = options().open(&path).unwrap();
        assert_eq!(within(&store), expected());
    }

    /// Not even for a moment: an application that starts again must not find its store in use.
    #[test]
    fn who_looks_at_a_dead_store_keeps_nobody_from_opening_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        Process::start(&path).kill();
        let viewer = Viewer::open(&path).unwrap();
        assert!(matches!(viewer.store().state, StoreState::Died { .. }));
        let mut sessions = viewer.sessions("shop").unwrap();
        sessions.next().unwrap().unwrap();

        let store = options().open(&path).unwrap();
        let shop = store.container("shop").unwrap();
        for n in 0..20 {
            store.transact(|txn| txn.create(&shop, format!("new {n}")).map(|_| ())).unwrap();
            store.fold().unwrap();
        }
        // Pages that it would read are another commit's by now. It says so, and shows none of them.
        assert!(sessions.any(|session| matches!(session, Err(Error::Busy { .. }))));
        assert!(matches!(viewer.session("desk", "clerk"), Err(Error::Busy { .. })));
        assert_eq!(without(&Viewer::open(&path).unwrap()), within(&store));
    }

    /// The first batches after the fold are lost, and those after them prove that they were there.
    #[test]
    fn a_hole_in_the_log_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        Process::start(&path).kill();
        let healthy = Viewer::open(&path).unwrap();
        let folded = healthy.store().folded;
        drop(healthy);
        // The segment in use was switched to by the fold: it begins with the first batch after it.
        let mut newest = None;
        for log in ["log-0", "log-1"].map(|name| path.join(name)) {
            let bytes = fs::read(&log).unwrap();
            let revision = u64::from_le_bytes(bytes[40..48].try_into().unwrap());
            newest = newest.max(Some((revision, log)));
        }
        let (first, log) = newest.unwrap();
        assert_eq!(first, folded.get() + 1);
        let mut bytes = fs::read(&log).unwrap();
        bytes[600] ^= 1;
        fs::write(&log, bytes).unwrap();

        let error = untouched(&path, || Viewer::open(&path)).unwrap_err();
        assert!(matches!(error, Error::Corrupt { table: "log", .. }), "{error}");
        let checked = check(&path);
        let [Problem::File { part: "log", reason }] = &checked.problems[..] else {
            panic!("{:?}", checked.problems);
        };
        assert!(reason.starts_with(&format!("commits after r{}", first)), "{reason}");
        assert!(checked.records > 0, "the tables are checked all the same");
    }
}

const SESSIONS: TableDefinition<'_, (u32, &[u8]), &[u8]> = TableDefinition::new("sessions");
const BUCKETS: TableDefinition<'_, (u32, u64, &[u8]), ()> = TableDefinition::new("buckets");
const CONTAINERS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("containers");

/// A closed store in which something was changed with redb, and what is wrong with it then.
fn problems_after(damage: impl FnOnce(&redb::WriteTransaction)) -> Vec<Problem> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = options().open(&path).unwrap();
    fill(&store);
    store.close().unwrap();
    let database = redb::Database::open(path.join("sessions.redb")).unwrap();
    let txn = database.begin_write().unwrap();
    damage(&txn);
    txn.commit().unwrap();
    drop(database);
    let checked = check(&path);
    assert!(checked.pages);
    assert_eq!(checked.more_problems, 0);
    checked.problems
}

/// The container of a session, and the fingerprint of its key.
fn named(container: &str, key: &str) -> (String, String) {
    (container.to_owned(), sessile::Key::from(key).fingerprint())
}

/// The one row of the index that a session has.
fn bucket_of(txn: &redb::WriteTransaction, key: &str) -> (u32, u64) {
    let buckets = txn.open_table(BUCKETS).unwrap();
    let rows = buckets.iter().unwrap().map(|row| row.unwrap().0);
    let rows = rows.filter(|row| row.value().2 == key.as_bytes());
    let rows: Vec<_> = rows.map(|row| (row.value().0, row.value().1)).collect();
    assert_eq!(rows.len(), 1);
    rows[0]
}

#[test]
fn nothing_is_wrong_with_what_was_not_damaged() {
    assert_eq!(problems_after(|_| {}), []);
}

#[test]
fn a_session_that_nobody_would_end_is_found() {
    let (container, session) = named("shop", "visitor 123");
    let problems = problems_after(|txn| {
        let (id, bucket) = bucket_of(txn, "visitor 123");
        let mut buckets = txn.open_table(BUCKETS).unwrap();
        buckets.remove((id, bucket, &b"visitor 123"[..])).unwrap().unwrap();
    });
    assert_eq!(problems, [Problem::Unfiled { container, session }]);
}

#[test]
fn rows_of_the_index_that_are_nobodys_are_found() {
    // One of a session that there is not, and a second one of a session that there is.
    let problems = problems_after(|txn| {
        let (id, bucket) = bucket_of(txn, "visitor 123");
        let mut buckets = txn.open_table(BUCKETS).unwrap();
        buckets.insert((id, bucket, &b"nobody"[..]), ()).unwrap();
        buckets.insert((id, bucket + 1, &b"visitor 123"[..]), ()).unwrap();
    });
    let stray = |key| {
        let (container, session) = named("shop", key);
        Problem::Stray { container, session }
    };
    assert_eq!(problems, [stray("nobody"), stray("visitor 123")]);
}

#[test]
fn a_wrong_count_is_found() {
    let problems = problems_after(|txn| {
        let (id, bucket) = bucket_of(txn, "visitor 123");
        let mut buckets = txn.open_table(BUCKETS).unwrap();
        buckets.remove((id, bucket, &b"visitor 123"[..])).unwrap().unwrap();
        let mut sessions = txn.open_table(SESSIONS).unwrap();
        sessions.remove((id, &b"visitor 123"[..])).unwrap().unwrap();
    });
    let container = "shop".to_owned();
    assert_eq!(problems, [Problem::Count { container, noted: 600, found: 599 }]);
}

#[test]
fn sessions_of_no_container_are_found() {
    let problems = problems_after(|txn| {
        let (id, _) = bucket_of(txn, "clerk");
        txn.open_table(CONTAINERS).unwrap().remove(id).unwrap().unwrap();
    });
    assert_eq!(problems, [Problem::Homeless { sessions: 1 }]);
}

#[test]
fn a_damaged_container_is_found() {
    let problems = problems_after(|txn| {
        let (id, _) = bucket_of(txn, "clerk");
        let mut containers = txn.open_table(CONTAINERS).unwrap();
        let mut row = containers.get(id).unwrap().unwrap().value().to_vec();
        row[20] ^= 1;
        containers.insert(id, &row[..]).unwrap();
    });
    let [Problem::File { part: "containers", .. }] = &problems[..] else { panic!("{problems:?}") };
}

/// Our own checksum, where redb's is right.
#[test]
fn a_damaged_record_is_found() {
    let (container, session) = named("shop", "visitor 123");
    let problems = problems_after(|txn| {
        let (id, _) = bucket_of(txn, "visitor 123");
        let mut sessions = txn.open_table(SESSIONS).unwrap();
        let place = (id, &b"visitor 123"[..]);
        let mut row = sessions.get(place).unwrap().unwrap().value().to_vec();
        *row.last_mut().unwrap() ^= 1;
        sessions.insert(place, &row[..]).unwrap();
    });
    assert_eq!(problems, [Problem::Record { container, session }]);
}

/// A byte that changed on the disk: redb's checksum finds it, ours says whose it was, and the others
/// are seen.
#[test]
fn a_byte_that_changed_on_the_disk_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = options().open(&path).unwrap();
    fill(&store);
    store.close().unwrap();
    let tables = path.join("sessions.redb");
    let mut bytes = fs::read(&tables).unwrap();
    let value = b"visitor 123";
    // Keys, names, older pages: wherever it stands.
    let places: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(value)).collect();
    for at in &places {
        bytes[at + value.len() - 1] ^= 0x80;
    }
    assert!(!places.is_empty());
    fs::write(&tables, bytes).unwrap();

    let checked = check(&path);
    let is_file = |p: &&Problem| matches!(p, Problem::File { part: "sessions.redb", .. });
    assert_eq!(checked.problems.iter().filter(is_file).count(), 1, "{:?}", checked.problems);
    assert!(checked.problems.iter().any(|p| matches!(p, Problem::Record { .. })));
    assert!(checked.records >= 590);
    let viewer = Viewer::open(&path).unwrap();
    let seen = viewer.sessions("shop").unwrap().map(Result::unwrap).count() as u64;
    assert_eq!(seen + viewer.damaged(), 600);
    assert!(viewer.damaged() > 0);
}

/// What is no store is refused, and nothing is made: no directory, no lock.
#[test]
fn what_is_no_store_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir(path("empty")).unwrap();
    fs::create_dir(path("foreign")).unwrap();
    fs::write(path("foreign/thesis.tex"), "months of work").unwrap();
    fs::create_dir(path("begun")).unwrap();
    fs::write(path("begun/creating"), "").unwrap();
    fs::write(path("file"), "a file").unwrap();
    options().create(path("newer")).unwrap().close().unwrap();
    let marker = fs::read_to_string(path("newer/sessile")).unwrap();
    fs::write(path("newer/sessile"), marker.replace("format 1", "format 7")).unwrap();
    options().create(path("without tables")).unwrap().close().unwrap();
    fs::remove_file(path("without tables/sessions.redb")).unwrap();
    options().create(path("empty tables")).unwrap().close().unwrap();
    fs::write(path("empty tables/sessions.redb"), "").unwrap();

    for name in ["absent", "empty", "foreign", "begun", "file", "newer", "without tables"] {
        let names = || fs::read_dir(directory.path()).unwrap().count();
        let before = names();
        let look =
            || (Viewer::open(path(name)).unwrap_err(), Viewer::check(path(name)).unwrap_err());
        let (opened, checked) = match path(name).is_dir() {
            true => untouched(&path(name), look),
            false => look(),
        };
        assert_eq!(opened.to_string(), checked.to_string());
        match name {
            "newer" => assert!(matches!(opened, Error::Format { found: 7, .. })),
            _ => assert!(matches!(opened, Error::NotAStore { .. }), "{name}: {opened}"),
        }
        assert_eq!(names(), before);
    }
    // A file that redb would make a database of.
    let path = path("empty tables");
    let error = untouched(&path, || Viewer::open(&path)).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    let problems = check(&path).problems;
    let [Problem::File { part: "sessions.redb", .. }] = &problems[..] else {
        panic!("{problems:?}")
    };
}
