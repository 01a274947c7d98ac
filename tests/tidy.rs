//! Reads the sources and keeps them what `architecture.md` says they are.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::fs;
use std::path::{Path, PathBuf};

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
