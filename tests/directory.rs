//! What may lie at the path of a store, and what becomes of it: a store is opened, an empty place
//! becomes one, and everything else is refused and left as it is. And who may come in: one process,
//! and only the owner of the sessions.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]
#![expect(clippy::print_stdout, reason = "the test tells what it did")]

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fs;
use std::path::Path;

use sessile::{Error, Options, Policy, Store, Viewer};

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

fn is_not_a_store(error: &Error) -> bool {
    matches!(error, Error::NotAStore { .. })
}

/// The files at a path. Of the lock only that it is there: whoever tries a store writes into it.
fn contents(path: &Path) -> BTreeMap<String, Vec<u8>> {
    if path.is_file() {
        return BTreeMap::from([(String::new(), fs::read(path).unwrap())]);
    }
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    let read = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        let bytes = match name.as_str() {
            "lock" => Vec::new(),
            _ => fs::read(entry.path()).unwrap_or_default(),
        };
        (name, bytes)
    };
    entries.map(read).collect()
}

/// A store with ada in it.
fn make(path: &Path) {
    let store = Store::open(path).unwrap();
    let shop = store.container_with("shop", Policy::new()).unwrap();
    store.transact(|txn| txn.create(&shop, "ada").map(|_| ())).unwrap();
    store.close().unwrap();
}

fn has_ada(store: &Store) -> bool {
    let shop = store.container("shop").unwrap();
    store.begin().unwrap().peek(&shop, "ada").unwrap().is_some()
}

#[test]
fn an_absent_or_empty_directory_becomes_a_store() {
    let directory = tempfile::tempdir().unwrap();
    for path in ["absent", "absent/and/deep", "empty"] {
        let path = directory.path().join(path);
        if path.ends_with("empty") {
            fs::create_dir(&path).unwrap();
        }
        make(&path);
        assert!(matches!(Store::create(&path), Err(Error::AlreadyThere { .. })));
        assert!(has_ada(&Store::open(&path).unwrap()));
    }
}

#[test]
fn what_is_no_store_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);

    fs::write(path("file"), "a file").unwrap();
    refused(&path("file"), is_not_a_store);

    fs::create_dir(path("foreign")).unwrap();
    fs::write(path("foreign/thesis.tex"), "months of work").unwrap();
    refused(&path("foreign"), is_not_a_store);

    for bytes in [&b""[..], b"\x89PNG\r\n\x1a\n", b"SQLite format 3\0", b"sessile\nformat 1\n"] {
        fs::create_dir_all(path("marked")).unwrap();
        fs::write(path("marked/sessile"), bytes).unwrap();
        refused(&path("marked"), is_not_a_store);
    }

    // All of a store but its marker.
    make(&path("lost"));
    fs::remove_file(path("lost/sessile")).unwrap();
    refused(&path("lost"), is_not_a_store);

    #[cfg(unix)]
    {
        make(&path("store"));
        std::os::unix::fs::symlink(path("store"), path("link")).unwrap();
        refused(&path("link"), is_not_a_store);
        assert!(has_ada(&Store::open(path("store")).unwrap()));
    }
}

/// The marker promises sessions, so what is in their place is never begun anew.
#[test]
fn a_store_whose_tables_are_lost_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    make(&path);
    let tables = path.join("sessions.redb");
    let whole = fs::read(&tables).unwrap();
    let other = directory.path().join("other");
    drop(redb::Database::create(&other).unwrap());

    let is_refusal =
        |error: &Error| is_not_a_store(error) || matches!(error, Error::Corrupt { .. });
    for bytes in [&b""[..], &b"No database. ".repeat(500), &fs::read(other).unwrap()] {
        fs::write(&tables, bytes).unwrap();
        refused(&path, is_refusal);
    }
    fs::remove_file(&tables).unwrap();
    refused(&path, is_refusal);
    fs::create_dir(&tables).unwrap();
    refused(&path, is_refusal);

    fs::remove_dir(&tables).unwrap();
    fs::write(&tables, whole).unwrap();
    assert!(has_ada(&Store::open(&path).unwrap()));
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    make(&path);
    let marker = path.join("sessile");
    let newer = fs::read_to_string(&marker).unwrap().replace("format 1", "format 7");
    fs::write(&marker, newer).unwrap();
    refused(&path, |error| matches!(error, Error::Format { found: 7, supported: 1 }));
}

#[test]
fn a_store_is_open_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = Store::open(&path).unwrap();
    let is_ours = |error: Error| match error {
        Error::AlreadyOpen { pid, .. } => assert_eq!(pid, Some(std::process::id())),
        other => panic!("{other:?}"),
    };
    for _ in 0..2 {
        is_ours(Store::open(&path).unwrap_err());
    }
    // A clone is the same store; the last one closes it.
    let clone = store.clone();
    drop(store);
    is_ours(Store::open(&path).unwrap_err());
    drop(clone);
    Store::open(&path).unwrap();
}

/// Afterwards the directory may be another process's: handles that live on touch nothing in it.
#[test]
fn a_store_that_was_closed_leaves_its_directory_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    for _ in 0..3 {
        let store = Options::new().segment_bytes(64 << 10).open(&path).unwrap();
        let shop = store.container_with("shop", Policy::new()).unwrap();
        store.transact(|txn| txn.get_or_create(&shop, "ada")?.add("n", 1)).unwrap();
        let events = store.events();
        let clone = store.clone();
        store.close().unwrap();
        let closed = contents(&path);
        clone.close().unwrap();
        drop(shop);
        assert!(contents(&path) == closed, "a closed store was changed");
        assert_eq!(events.try_iter().count(), 0);
        // A log that was filled once is used again.
        assert!(closed.contains_key("log-0") && closed.contains_key("log-1"));
    }
}

/// A crash while a store is made leaves an attempt: the next one begins again, and keeps it aside.
#[test]
fn a_creation_that_was_cut_off_begins_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    for left in [&b""[..], b"half a database"] {
        fs::create_dir_all(&path).unwrap();
        for (name, bytes) in [("lock", &b""[..]), ("creating", b""), ("sessions.redb", left)] {
            fs::write(path.join(name), bytes).unwrap();
        }
        Store::create(&path).unwrap().close().unwrap();
        assert!(!path.join("creating").exists());
        assert_eq!(fs::read(path.join("aside-sessions.redb")).unwrap(), left);
        make(&path);
        assert!(has_ada(&Store::open(&path).unwrap()));
        fs::remove_dir_all(&path).unwrap();
    }
}

/// What needs a second process: it is this test's own program, told to open a store.
#[cfg(unix)]
mod processes {
    use std::env;
    use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
    use std::os::unix::process::CommandExt as _;
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    /// The number of `nobody`. The superuser may read and write everything: where the tests are
    /// his, the process is somebody else's.
    const NOBODY: u32 = 65_534;

    const PATH: &str = "SESSILE_TEST_PATH";

    /// A process that opens the store, says what came of it, and keeps it until it is let go.
    struct Process {
        child: Child,
        said: String,
    }

    impl Process {
        fn start(program: &Path, path: &Path, umask: &str, user: Option<u32>) -> Self {
            Self::run("processes::opens_a_store", program, path, umask, user)
        }

        fn run(deed: &str, program: &Path, path: &Path, umask: &str, user: Option<u32>) -> Self {
            let mut command = Command::new("sh");
            command
                .args(["-c", "umask \"$1\" && shift && exec \"$@\"", "sh", umask])
                .arg(program)
                .args(["--exact", deed, "--ignored", "--nocapture"])
                .env(PATH, path)
                .current_dir("/")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            if let Some(user) = user {
                command.uid(user);
            }
            let mut child = command.spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
            let said =
                lines.find_map(|line| Some(line.unwrap().split_once("store: ")?.1.to_owned()));
            Process { child, said: said.expect("the process says what came of it") }
        }

        /// It closes the store and goes.
        fn end(mut self) -> String {
            drop(self.child.stdin.take());
            assert!(self.child.wait().unwrap().success());
            self.said
        }

        /// `kill -9`.
        fn kill(mut self) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }

    #[test]
    #[ignore = "it is run by the others, in processes of their own"]
    fn opens_a_store() {
        let Some(path) = env::var_os(PATH) else { return };
        let opened = Store::open(PathBuf::from(path));
        let said = opened.as_ref().map(|store| {
            let shop = store.container_with("shop", Policy::new()).unwrap();
            store.transact(|txn| txn.get_or_create(&shop, "ada").map(|_| ())).unwrap();
            "open".to_owned()
        });
        say(said);
    }

    #[test]
    #[ignore = "it is run by another one, in a process of its own"]
    fn looks_into_a_store() {
        let Some(path) = env::var_os(PATH) else { return };
        let viewer = Viewer::open(PathBuf::from(path));
        let ada = |viewer: &Viewer| viewer.session("shop", "ada").unwrap().is_some();
        say(viewer.as_ref().map(|viewer| format!("ada is there: {}", ada(viewer))));
    }

    /// Tells the other process, and waits until it has heard enough.
    fn say(said: Result<String, &Error>) {
        let said = said.unwrap_or_else(|error| match error.source() {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        });
        let mut stdout = io::stdout();
        writeln!(stdout, "store: {said}").unwrap();
        stdout.flush().unwrap();
        io::stdin().read_to_end(&mut Vec::new()).unwrap();
    }

    #[test]
    fn another_process_is_told_who_has_the_store() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let program = env::current_exe().unwrap();
        let process = Process::start(&program, &path, "022", None);
        assert_eq!(process.said, "open");
        let mut took = Vec::new();
        for _ in 0..20 {
            #[expect(clippy::disallowed_methods, reason = "how long a refusal takes is real time")]
            let now = Instant::now;
            let start = now();
            match Store::open(&path) {
                Err(Error::AlreadyOpen { pid, .. }) => assert_eq!(pid, Some(process.child.id())),
                other => panic!("{other:?}"),
            }
            took.push(now() - start);
        }
        // The machine may be busy; the store may not wait.
        assert!(took.iter().min() < Some(&Duration::from_millis(50)), "{took:?}");

        // It dies with the store open: what it committed is there, and its lock blocks nobody.
        process.kill();
        let store = Store::open(&path).unwrap();
        assert!(has_ada(&store));
        let other = Process::start(&program, &path, "022", None).end();
        let wanted = format!("is open already (process {})", std::process::id());
        assert!(other.ends_with(&wanted), "{other}");
    }

    #[test]
    fn sessions_are_private_whatever_the_umask() {
        let directory = tempfile::tempdir().unwrap();
        let program = env::current_exe().unwrap();
        for umask in ["000", "022", "077", "277"] {
            let path = directory.path().join(umask).join("store");
            let process = Process::start(&program, &path, umask, None);
            assert_eq!(process.said, "open");
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode(path.parent().unwrap()), 0o700, "umask {umask}");
            assert_eq!(mode(&path), 0o700, "umask {umask}");
            let files = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
            let files: Vec<_> = files.collect();
            assert!(files.len() >= 3, "{files:?}");
            for file in files {
                assert_eq!(mode(&file), 0o600, "umask {umask}, {}", file.display());
            }
            assert_eq!(process.end(), "open");
        }
    }

    /// G-S12, S38: whatever the umask, and whatever somebody has done to the files meanwhile: what is made is
    /// for the owner alone; what leads elsewhere is refused; what was opened to others stays, and is theirs
    /// to decide who did it.
    #[test]
    fn who_may_come_in() {
        const FILES: [&str; 5] = ["sessile", "lock", "sessions.redb", "log-0", "reserve"];
        let directory = tempfile::tempdir().unwrap();
        let is_root = fs::metadata(directory.path()).unwrap().uid() == 0;
        let program = env::current_exe().unwrap();
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let mut cases = 0;
        for umask in ["000", "022", "077"] {
            let path = directory.path().join(umask);
            let open = || Process::start(&program, &path, umask, None).end();
            let is_private = || {
                let files = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
                files.map(|file| (mode(&file), file)).for_each(|(mode, file)| {
                    assert_eq!(mode, 0o600, "umask {umask}: {}", file.display());
                });
            };

            // A new one, in a directory that is there and that others may write to.
            fs::create_dir(&path).unwrap();
            set(&path, 0o770);
            assert_eq!(open(), "open");
            assert_eq!(mode(&path), 0o770, "it is somebody else's");
            is_private();
            cases += 1;
            // In one of its own.
            fs::remove_dir_all(&path).unwrap();
            assert_eq!(open(), "open");
            assert_eq!(mode(&path), 0o700);
            is_private();
            cases += 1;

            // What others may read stays so, and nothing that is made beside it is like it.
            for name in FILES {
                set(&path.join(name), 0o644);
                assert_eq!(open(), "open");
                assert_eq!(mode(&path.join(name)), 0o644, "umask {umask}: {name}");
                set(&path.join(name), 0o600);
                is_private();
                cases += 1;
            }

            // A symbolic link in the place of a file, or of the directory.
            let aside = directory.path().join("aside");
            for name in FILES {
                fs::rename(path.join(name), &aside).unwrap();
                std::os::unix::fs::symlink(&aside, path.join(name)).unwrap();
                let said = open();
                assert!(said.contains("is no sessile store"), "umask {umask}: {name}: {said}");
                fs::rename(&aside, path.join(name)).unwrap();
                cases += 1;
            }
            fs::rename(&path, &aside).unwrap();
            std::os::unix::fs::symlink(&aside, &path).unwrap();
            let said = open();
            assert!(said.contains("is no sessile store"), "umask {umask}: {said}");
            fs::remove_file(&path).unwrap();
            fs::rename(&aside, &path).unwrap();
            cases += 1;

            // A hard link is the file itself: it is as private as that.
            fs::hard_link(path.join("sessions.redb"), &aside).unwrap();
            assert_eq!(open(), "open");
            assert_eq!(mode(&aside), 0o600, "umask {umask}");
            fs::remove_file(&aside).unwrap();
            cases += 1;

            // Somebody else, whom the directory keeps out, or lets in to files that do.
            if is_root {
                let other = directory.path().join("program");
                fs::copy(&program, &other).unwrap();
                set(&other, 0o755);
                set(directory.path(), 0o755);
                for mode in [0o700, 0o777] {
                    set(&path, mode);
                    let said = Process::start(&other, &path, umask, Some(NOBODY)).end();
                    assert!(said.contains("Permission denied"), "umask {umask}: {said}");
                    cases += 1;
                }
                set(&path, 0o700);
            }
            assert_eq!(open(), "open");
        }
        println!("permissions: {cases} cases");
        assert!(cases >= if is_root { 48 } else { 42 }, "{cases} cases");
    }

    /// Each is told by what the operating system says, with the path; nothing is changed or begun.
    #[test]
    fn what_the_operating_system_refuses_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let user = (fs::metadata(directory.path()).unwrap().uid() == 0).then_some(NOBODY);
        chown(directory.path(), user, None).unwrap();
        // Where the tests are built nobody else may be allowed to look.
        let program = directory.path().join("program");
        fs::copy(env::current_exe().unwrap(), &program).unwrap();
        set(&program, 0o755);
        let open = |path: &Path| Process::start(&program, path, "022", user).end();

        let path = directory.path().join("store");
        assert_eq!(open(&path), "open");
        for (name, mode, refused) in [
            ("sessile", 0o000, true),
            ("sessile", 0o400, false),
            ("lock", 0o000, true),
            ("lock", 0o400, true),
            ("sessions.redb", 0o000, true),
            ("sessions.redb", 0o400, true),
        ] {
            let file = path.join(name);
            set(&file, mode);
            let before = contents(&path);
            let said = open(&path);
            let wanted = match refused {
                true => format!("the storage failed: {}: Permission denied", file.display()),
                false => "open".to_owned(),
            };
            assert!(said.starts_with(&wanted), "{name} {mode:o}: {said}");
            assert!(!refused || contents(&path) == before, "{name} {mode:o}");
            set(&file, 0o600);
        }
        // Who may only read cannot open it, and may look.
        let files = || fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
        files().for_each(|file| set(&file, 0o400));
        set(&path, 0o500);
        let before = contents(&path);
        assert!(open(&path).ends_with("Permission denied (os error 13)"));
        let look = "processes::looks_into_a_store";
        assert_eq!(Process::run(look, &program, &path, "022", user).end(), "ada is there: true");
        assert!(contents(&path) == before, "to look has changed something");
        files().for_each(|file| set(&file, 0o600));
        set(&path, 0o000);
        let said = open(&path);
        let wanted = format!("the storage failed: {}: Permission denied", path.display());
        assert!(said.starts_with(&wanted), "{said}");
        set(&path, 0o700);
        assert_eq!(open(&path), "open");

        // A directory that may only be read: an empty one in it is no store yet, an absent one none.
        let read_only = directory.path().join("read-only");
        fs::create_dir(&read_only).unwrap();
        chown(&read_only, user, None).unwrap();
        set(&read_only, 0o500);
        for (path, wanted) in [(&read_only, "lock"), (&read_only.join("store"), "")] {
            let wanted = path.join(wanted);
            let wanted = wanted.display().to_string();
            let said = open(path);
            let wanted =
                format!("the storage failed: {}: Permission denied", wanted.trim_end_matches('/'));
            assert!(said.starts_with(&wanted), "{said}");
            assert_eq!(fs::read_dir(&read_only).unwrap().count(), 0);
        }
        set(&read_only, 0o700);
    }
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
