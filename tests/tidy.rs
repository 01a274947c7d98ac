//! Reads the sources and keeps them what `architecture.md` says they are, and what is said of the tests true.

#![expect(clippy::print_stdout, reason = "a test says what it could not do")]
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The files with Rust in them in a folder of the repository, and in those below.
fn files_in(folder: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => walk(&path, found),
                false if path.extension().is_some_and(|ending| ending == "rs") => found.push(path),
                false => {}
            }
        }
    }
    let mut files = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut files);
    files.sort();
    files
}

/// Every source file of the library with the code in it: comments and tests are left out.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = files_in("src");
    let code = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let code = lines.collect::<Vec<_>>().join("\n");
        (path.strip_prefix(&root).unwrap().to_owned(), code)
    };
    files.into_iter().filter(|path| !path.ends_with("merge_laws.rs")).map(code).collect()
}

/// Fails for every file outside `allowed` whose code has one of the words.
fn only_in(allowed: &[&str], words: &[&str]) {
    let sources = sources();
    assert!(
        words.iter().any(|word| sources.iter().any(|(_, code)| code.contains(word))),
        "{words:?} stand nowhere: this test has nothing to keep"
    );
    for (path, code) in sources {
        let is_allowed = allowed.iter().any(|prefix| path.starts_with(prefix));
        for word in words.iter().filter(|_| !is_allowed) {
            assert!(!code.contains(word), "{} must not say `{word}`", path.display());
        }
    }
}

#[test]
fn layers_look_down() {
    only_in(&["store", "lib.rs"], &["crate::store", "store::"]);
    only_in(&["store", "engine"], &["crate::engine"]);
    only_in(&["web", "adapters", "lib.rs"], &["crate::web", "mod web"]);
    only_in(&["adapters", "lib.rs"], &["axum_core::", "mod adapters"]);
    uses_what_is_public("web", "web::");
    // What `web` shows to others is what it says with `pub use`.
    uses_what_is_public("adapters", "web::{");
}

/// Fails for every mention of the crate in a folder that neither begins so nor is a name that `lib.rs`
/// gives to users.
fn uses_what_is_public(folder: &str, own: &str) {
    let mut mentions = 0;
    for (path, code) in sources().into_iter().filter(|(path, _)| path.starts_with(folder)) {
        for used in code.split("crate::").skip(1) {
            let names = used.strip_prefix('{').and_then(|used| used.split('}').next());
            let is_type = used.starts_with(|c: char| c.is_ascii_uppercase());
            let is_public = names.map_or(is_type, |names| !names.contains("::"));
            let line = used.lines().next().unwrap_or_default();
            assert!(is_public || used.starts_with(own), "{}: crate::{line}", path.display());
            mentions += 1;
        }
    }
    assert!(mentions > 0, "{folder} mentions nothing: this test has nothing to keep");
}

#[test]
fn libraries_stay_behind_their_boundaries() {
    only_in(&["engine/embedded"], &["redb::"]);
    only_in(&["engine/embedded/records.rs"], &["bincode::"]);
    only_in(&["engine/embedded"], &["twox_hash::"]);
    only_in(&["model/value.rs"], &["rmp_serde::"]);
    only_in(&["model/value.rs", "model/portable.rs"], &["rmpv::"]);
    only_in(&["engine/memory.rs"], &["rpds::"]);
    only_in(&["store/observe.rs"], &["tracing::", "metrics::"]);
    only_in(&["web"], &["use cookie::", "form_urlencoded::", "percent_encoding::"]);
}

#[test]
fn time_chance_and_threads_have_one_place_each() {
    only_in(&["model/clock.rs"], &["SystemTime::now", "Instant::now"]);
    only_in(&["store/chance.rs"], &["StdRng"]);
    only_in(&["store/chance.rs", "model/token.rs"], &["SysRng", "use rand"]);
    only_in(&["threads.rs"], &["thread::{Builder", "thread::Builder", "thread::spawn"]);
}

#[test]
fn the_store_changes_in_one_place() {
    only_in(&["store/commit.rs", "engine"], &["engine.apply", ".stage("]);
}

/// Most files can be read in one sitting.
#[test]
fn files_are_short() {
    for (path, code) in sources() {
        let lines = code.lines().count();
        assert!(lines <= 600, "{} has {lines} lines of code", path.display());
    }
}

/// Otherwise `tests/schedules.rs` would explore less than it says.
#[test]
fn the_store_waits_with_what_sync_says() {
    for (path, code) in sources().into_iter().filter(|(path, _)| path.starts_with("store")) {
        for line in code.lines().filter(|line| line.starts_with("use std::sync")) {
            let waits = ["Mutex", "RwLock", "Condvar"].iter().any(|word| line.contains(word));
            assert!(!waits, "{}: `{line}` comes from crate::sync", path.display());
        }
    }
    // Of the channels only that of events, which nobody waits with.
    only_in(&["sync.rs", "store/events.rs", "store/mod.rs", "lib.rs"], &["crossbeam_channel"]);
}

/// The names of the tests in a file of this repository.
fn tests_in(path: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path));
    let text = text.unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut found = BTreeSet::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        is_test |= ["#[test]", "#[tokio::test]"].contains(&line);
        let line = line.strip_prefix("async ").unwrap_or(line);
        if let Some((name, _)) = line.strip_prefix("fn ").and_then(|rest| rest.split_once('('))
            && std::mem::take(&mut is_test)
        {
            found.insert(name.to_owned());
        }
    }
    found
}

/// The table names tests, and then the file that they are in. Files that hold no tests are read by one.
#[test]
fn the_tests_that_meet_faults_are_there() {
    let table = include_str!("FAULTS.md");
    let mut rows = BTreeSet::new();
    let mut named = 0;
    for line in table.lines().filter(|line| line.starts_with("| G-") || line.starts_with("| S")) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [row, _, expected, tests] = cells[..] else { panic!("four cells: {line}") };
        assert!(rows.insert(row), "{row} is there twice");
        assert!(!expected.is_empty() && tests.contains("` in `"), "{row} has no test");
        let mut names = Vec::new();
        for quoted in tests.split('`').skip(1).step_by(2) {
            if !quoted.contains('/') {
                names.push(quoted);
                continue;
            }
            let there = tests_in(quoted);
            for name in names.drain(..) {
                assert!(there.contains(name), "{row}: {quoted} has no test `{name}`");
                named += 1;
            }
        }
        assert!(names.is_empty(), "{row}: in which file is {names:?}?");
    }
    let kinds = "1 2 3 4 5 6 7 8 9 10 11a 13 14 15 17".split(' ').map(|row| format!("G-R{row}"));
    let attacks = "1 2 3 4 7 8 9 10 12 13".split(' ').map(|row| format!("G-S{row}"));
    let wanted = kinds.chain(attacks).chain((1..=38).map(|case| format!("S{case:02}")));
    let missing: Vec<_> = wanted.filter(|row| !rows.contains(row.as_str())).collect();
    assert!(missing.is_empty() && named > 60, "{missing:?} missing, {named} tests named");
}

/// Otherwise nobody would notice that `tests/planted/run` has nothing to plant any more.
#[test]
fn planted_faults_can_still_be_planted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = fs::read_dir(root.join("tests/planted")).unwrap();
    let files = files.map(|file| file.unwrap().path());
    let patches: Vec<_> =
        files.filter(|file| file.extension().is_some_and(|it| it == "patch")).collect();
    assert!(patches.len() >= 24, "{} faults", patches.len());
    for patch in &patches {
        let text = fs::read_to_string(patch).unwrap();
        let words: Vec<_> = text.lines().next().unwrap_or_default().split(' ').collect();
        let ["Caught", "by:", "cargo", "test", "--test", binary, "--", "--exact", test] = words[..]
        else {
            panic!("{} does not begin with its test", patch.display());
        };
        let file = match test.split_once("::") {
            Some((module, _)) => format!("tests/{binary}/{module}.rs"),
            None => format!("tests/{binary}.rs"),
        };
        let name = test.rsplit("::").next().unwrap();
        assert!(tests_in(&file).contains(name), "{}: no test `{test}`", patch.display());
    }
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.args(arguments).current_dir(root).stdout(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if !git(&["ls-files", "--error-unmatch", "tests/planted/run"]) {
        println!("this is no checkout, or there is no git: nobody looks whether patches apply");
        return;
    }
    for patch in &patches {
        let applies = git(&["apply", "--check", patch.to_str().unwrap()]);
        assert!(applies, "{} does not apply any more: make it again", patch.display());
    }
}

/// G-S15: each point of `security.md` is covered, and each test that it names is one.
#[test]
fn what_security_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = Vec::new();
    for file in ["src", "tests", "tools"].into_iter().flat_map(files_in) {
        let text = fs::read_to_string(file).unwrap();
        let marks = ["#[test]", "#[tokio::test]"];
        for after in marks.into_iter().flat_map(|mark| text.split(mark).skip(1)) {
            let name = after.split("fn ").nth(1).and_then(|name| name.split('(').next());
            tests.extend(name.map(str::to_owned));
        }
    }
    let page = fs::read_to_string(root.join("src/docs/security.md")).unwrap();
    let mut points = Vec::new();
    for line in page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| point")) {
        let columns: Vec<_> = line.trim_matches('|').split('|').collect();
        let [point, _, covered] = columns[..] else {
            panic!("three columns: {line}");
        };
        for name in covered.split('`').skip(1).step_by(2) {
            let is_there = match name.contains('/') {
                true => root.join("tests").join(name).is_file(),
                false => tests.iter().any(|test| test == name),
            };
            assert!(is_there, "{}: there is no `{name}`", point.trim());
        }
        let paragraph = covered.split('"').nth(1).map(|title| format!("\n*{title}.*"));
        let is_above = paragraph.is_some_and(|title| page.contains(&title));
        let is_covered = covered.contains('`') || covered.contains("the application") || is_above;
        assert!(is_covered, "{}: covered by nothing", point.trim());
        points.extend(point.split_whitespace().next().map(str::to_owned));
    }
    // All of ASVS 5.0 V7 and V3.3.
    let sections =
        [("7.1", 3), ("7.2", 4), ("7.3", 2), ("7.4", 5), ("7.5", 3), ("7.6", 2), ("3.3", 5)];
    for (section, count) in sections {
        for n in 1..=count {
            assert!(points.contains(&format!("{section}.{n}")), "{section}.{n} is missing");
        }
    }
    assert_eq!(points.len(), 24 + 26);
}
