//! Backups that are made while others commit, and who may open them.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use sessile::{Durability, Error, Options, Policy, Revision, Store, Viewer};

/// What a store holds: by container and key, the only attribute.
type Content = BTreeMap<(String, String), u64>;

fn content(store: &Store) -> Content {
    let txn = store.begin().unwrap();
    let mut content = Content::new();
    for container in store.containers() {
        for session in txn.iter(&container).unwrap() {
            let session = session.unwrap();
            let key = String::from_utf8(session.key().as_bytes().to_vec()).unwrap();
            let n = session.get("n").unwrap().unwrap();
            content.insert((container.name().to_owned(), key), n);
        }
    }
    content
}

/// What one commit made of which sessions; `None`: it ended them.
type Written = (Revision, Vec<(String, String)>, Option<u64>);

/// Four writers change sessions of two containers in one transaction each, and write down which commit
/// did what. Every backup that is made meanwhile is what they had written down by its commit: nothing
/// of a later one, and nothing missing.
#[test]
fn a_backup_under_load_is_one_commit() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    // Small, so that it is folded and its segments are used again all the time.
    let options = || Options::new().segment_bytes(64 << 10).memory_max(256 << 10);
    let store = options().open(path("store")).unwrap();
    // So many that commits fall between looking at the first and at the last of them.
    let relaxed = || Policy::new().durability(Durability::Relaxed);
    let container = |n| store.container_with(&format!("{n:02}"), relaxed()).unwrap();
    let containers: Vec<_> = (0..40).map(container).collect();
    let (first, last) = (&containers[0], &containers[39]);
    let written: Mutex<Vec<Written>> = Mutex::default();
    let stop = AtomicBool::new(false);
    let backups = thread::scope(|scope| {
        for writer in 0..4u64 {
            let (store, written, stop) = (&store, &written, &stop);
            scope.spawn(move || {
                for n in (0u64..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                    // Keys of its own, so that what it writes down needs no merging.
                    let key = format!("{writer}-{}", n % 50);
                    // Which is not relaxed.
                    let ends = n % 70 == 3;
                    let containers = if n % 3 == 0 { vec![last] } else { vec![first, last] };
                    let report = store
                        .transact(|txn| {
                            for container in &containers {
                                match ends {
                                    true => drop(txn.remove(container, &key)?),
                                    false => {
                                        txn.get_or_create(container, &key)?.insert("n", n)?;
                                    }
                                }
                            }
                            Ok(())
                        })
                        .unwrap();
                    let of = |container: &&sessile::Container| {
                        (container.name().to_owned(), key.clone())
                    };
                    let places = containers.iter().map(of).collect();
                    written.lock().unwrap().push((report.revision, places, (!ends).then_some(n)));
                }
            });
        }
        let backups: Vec<_> = (0..12)
            .map(|n| {
                let before = store.stats().revision;
                let backup = store.backup_to(path(&format!("backup-{n}"))).unwrap();
                assert!(backup.revision >= before, "what was committed before is in it");
                let checked = store.check().unwrap();
                assert!(checked.problems.is_empty(), "{checked:?}");
                backup
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        backups
    });
    let mut written = written.into_inner().unwrap();
    // Of one writer they are in order; those of one number wrote nothing, or are of one commit.
    written.sort_by_key(|(revision, ..)| *revision);
    assert!(backups[0].revision < backups[11].revision, "nobody wrote meanwhile");
    for (n, backup) in backups.iter().enumerate() {
        let mut expected = Content::new();
        for (_, places, n) in written.iter().take_while(|(r, ..)| r.get() <= backup.revision) {
            for place in places {
                match n {
                    Some(n) => expected.insert(place.clone(), *n),
                    None => expected.remove(place),
                };
            }
        }
        let path = path(&format!("backup-{n}"));
        let viewer = Viewer::open(&path).unwrap();
        assert_eq!(viewer.store().revision.get(), backup.revision);
        let counts = viewer.containers().iter().map(|container| container.count).sum::<u64>();
        assert_eq!((counts, backup.sessions), (expected.len() as u64, expected.len() as u64));
        drop(viewer);
        let checked = Viewer::check(&path).unwrap();
        assert!(checked.problems.is_empty() && checked.pages, "{checked:?}");
        assert_eq!(content(&options().open(&path).unwrap()), expected, "backup {n}: {backup}");
    }
    // The original goes on.
    store.transact(|txn| txn.get_or_create(first, "last").map(|_| ())).unwrap();
}

/// A backup is a store of its own: it goes on by itself, can be backed up, and is no copy of the id.
#[test]
fn a_backup_is_a_store() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let memory = Store::memory().unwrap();
    let visitors = memory.container_with("visitors", Policy::new()).unwrap();
    memory.transact(|txn| txn.create(&visitors, "ada")?.insert("n", 1)).unwrap();
    memory.backup_to(path("deep/one")).unwrap();
    Viewer::open(path("deep/one")).unwrap().backup_to(path("two")).unwrap();
    let two = Store::open(path("two")).unwrap();
    let visitors = two.container("visitors").unwrap();
    let report = two.transact(|txn| txn.get_or_create(&visitors, "ada")?.insert("n", 2)).unwrap();
    assert!(report.revision > memory.begin().unwrap().revision());
    let (three, both) = (two.backup_to(path("three")).unwrap(), two.backup_to(path("two")));
    assert_eq!(three.revision, report.revision.get());
    assert!(matches!(both, Err(Error::AlreadyThere { .. })), "{both:?}");
    let id = |name: &str| fs::read_to_string(path(name).join("sessile")).unwrap();
    assert!(id("deep/one") != id("two") && id("two") != id("three"));
    // A store of somebody's is none that is left over.
    Store::create(path("four.incomplete")).unwrap().close().unwrap();
    let four = two.backup_to(path("four"));
    assert!(matches!(four, Err(Error::AlreadyThere { .. })), "{four:?}");
    Viewer::open(path("four.incomplete")).unwrap();
    let in_use = Store::create(path("five.incomplete")).unwrap();
    let five = two.backup_to(path("five"));
    assert!(matches!(five, Err(Error::AlreadyOpen { .. })), "{five:?}");
    drop(in_use);
}

/// Whatever the umask is, a backup is its owner's.
#[test]
#[cfg(unix)]
fn a_backup_is_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    for umask in ["000", "022", "077", "777"] {
        let path = directory.path().join(umask);
        let script = format!("umask {umask}; exec \"$0\" --exact makes_a_backup --ignored");
        let mut child = Command::new("sh");
        child.arg("-c").arg(script).arg(std::env::current_exe().unwrap()).env(PATH, &path);
        let output = child.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700, "umask {umask}");
        let mut names = Vec::new();
        for file in path.read_dir().unwrap() {
            let file = file.unwrap().path();
            assert_eq!(mode(&file), 0o600, "umask {umask}: {}", file.display());
            names.push(file.file_name().unwrap().to_str().unwrap().to_owned());
        }
        names.sort();
        assert_eq!(names, ["backup", "lock", "sessile", "sessions.redb"]);
    }
}

const PATH: &str = "SESSILE_TEST_PATH";

#[test]
#[ignore = "it is run by another, in a process of its own"]
fn makes_a_backup() {
    let Some(path) = std::env::var_os(PATH) else { return };
    Store::memory().unwrap().backup_to(path).unwrap();
}
