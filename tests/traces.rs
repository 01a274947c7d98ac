//! Does sessile do what the original does, and better where the original does badly?
//!
//! Each file of `tests/traces/` is one scenario recorded from the original software: steps, and
//! what was observed at each. `tests/traces/FORMAT.md` says what they mean. Here they are played
//! against the public API, on both engines, and every step is judged:
//!
//! ```text
//!   format.rs       a file: steps, observations, what a better store should do instead
//!   adapter.rs      a step -> calls of the API -> a result or a kind of error
//!     connection.rs   ... of one connection: its transaction, handles, savepoints, settings
//!     request.rs      ... of its requests: ids, cookies, URLs, the sessions behind them
//!     steps.rs        ... from and to the words of the traces
//!     clock.rs        ... at a time of the trace's own
//!   listening.rs    what the listeners were told meanwhile
//!   judge.rs        does that match what is expected of the step?
//! ```
//!
//! `traces` plays all of them in *modern* mode: where the original has a wart, the trace says what
//! is expected of a better store. `mirror` shows that the original can be mirrored all the same:
//! with the resolver `zope_last_modified` the traces of concurrent writes match what was recorded.
//! `a_wrong_observation_is_found` shows that this is not because everything matches.
//!
//! `SESSILE_TRACES=dir cargo test --test traces` plays the traces of another directory. Areas that
//! sessile does not have yet are counted as skipped, never as passed.

mod traces_support;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use traces_support::adapter::{Engine, Mode};
use traces_support::format::{self, OPTIONAL, Step, Trace};
use traces_support::judge::{self, Played};

/// The areas of the format, and whether they are played.
const AREAS: [(&str, bool); 8] = [
    ("timeouts", true),
    ("limits", true),
    ("notifications", true),
    ("session_objects", true),
    ("transactions", true),
    ("conflicts", true),
    ("browser_id", true),
    ("session_data_manager", true),
];

/// The traces that match what was recorded under the original's rule for concurrent writes, as
/// the beginnings of their names.
const MIRRORED: [&str; 4] = [
    "conflicts-diff-keys-",
    "conflicts-same-key-",
    "conflicts-three-writers",
    "conflicts-lost-counter",
];

#[test]
fn traces() {
    let directory = std::env::var_os("SESSILE_TRACES").map_or_else(shipped, PathBuf::from);
    let mut table = Table::default();
    for (path, trace) in load(&directory) {
        match trace {
            Ok(trace) => table.play(&trace, Mode::Modern),
            Err(problem) => table.problems.push(format!("{}: {problem}", path.display())),
        }
    }
    table.print(&AREAS, "");
    assert!(table.is_clean(), "some traces failed; see the table above");
}

#[test]
fn mirror() {
    let mut table = Table::default();
    let mut found = [0; MIRRORED.len()];
    for (path, trace) in load(&shipped()) {
        let trace = trace.unwrap_or_else(|problem| panic!("{}: {problem}", path.display()));
        if let Some(i) = MIRRORED.iter().position(|name| trace.name.starts_with(name)) {
            found[i] += 1;
            table.play(&trace, Mode::Mirror);
        }
    }
    assert!(!found.contains(&0), "traces to mirror are missing: found {found:?} of {MIRRORED:?}");
    table.print(&[("conflicts", true)], " in mirror mode");
    assert!(table.is_clean(), "some traces were not mirrored; see the table above");
}

/// What the last step of any trace comes to makes a difference.
#[test]
fn a_wrong_observation_is_found() {
    for (path, trace) in load(&shipped()) {
        let mut trace = trace.unwrap_or_else(|problem| panic!("{}: {problem}", path.display()));
        if !AREAS.contains(&(&trace.area, true)) {
            continue;
        }
        let Some(last) = trace.last_compared() else {
            let optional = |step: &Step| OPTIONAL.contains(&&*step.op);
            assert!(trace.steps.iter().all(optional), "{} compares nothing", trace.name);
            continue;
        };
        trace.expect(last, serde_json::json!({ "error": "of no kind" }));
        let name = &trace.name;
        let difference = judge::play(&trace, Engine::Memory, Mode::Modern).err();
        let difference = difference.unwrap_or_else(|| panic!("{name} passed")).to_string();
        assert!(difference.starts_with(&format!("step {last}:")), "{name}: {difference}");
    }
}

/// The directory of the traces that come with the sources.
fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces")
}

/// The traces of a directory, in the order of their names. There must be one.
fn load(directory: &Path) -> Vec<(PathBuf, Result<Trace, String>)> {
    let files = format::files(directory)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", directory.display()));
    assert!(!files.is_empty(), "no traces in {}", directory.display());
    let read = |path: PathBuf| {
        let trace = Trace::read(&path);
        (path, trace)
    };
    files.into_iter().map(read).collect()
}

/// How the traces of each area have fared.
#[derive(Default)]
struct Table {
    areas: BTreeMap<String, Tally>,
    /// What was no trace of a known area.
    problems: Vec<String>,
}

#[derive(Default)]
struct Tally {
    passed: usize,
    skipped: usize,
    optional_steps: usize,
    /// The traces that failed, and how they did on each engine.
    failed: BTreeMap<String, Vec<String>>,
}

impl Table {
    /// Plays a trace on both engines.
    fn play(&mut self, trace: &Trace, mode: Mode) {
        let Some((_, played)) = AREAS.iter().find(|(area, _)| *area == trace.area) else {
            return self.problems.push(format!("{}: unknown area {:?}", trace.name, trace.area));
        };
        let tally = self.areas.entry(trace.area.clone()).or_default();
        if !played {
            tally.skipped += 1;
            return;
        }
        let mut failures = Vec::new();
        let mut skipped = 0;
        for engine in [Engine::Memory, Engine::Embedded] {
            match judge::play(trace, engine, mode) {
                Ok(Played { optional_steps }) => skipped = optional_steps,
                Err(failure) => failures.push(format!("{engine:?}: {failure}")),
            }
        }
        tally.optional_steps += skipped;
        if failures.is_empty() {
            tally.passed += 1;
        } else {
            tally.failed.insert(trace.name.clone(), failures);
        }
    }

    fn is_clean(&self) -> bool {
        self.problems.is_empty() && self.areas.values().all(|tally| tally.failed.is_empty())
    }

    /// Prints past libtest, which would keep the table of a test that passes to itself.
    fn print(&self, areas: &[(&str, bool)], mode: &str) {
        let mut lines = String::from("\n");
        let none = Tally::default();
        for (area, played) in areas {
            let tally = self.areas.get(*area).unwrap_or(&none);
            lines += &format!("{area}{mode}: {}\n", tally.summary(*played));
            for (name, failures) in &tally.failed {
                for failure in failures {
                    lines += &format!("  {name}, {failure}\n");
                }
            }
        }
        for problem in &self.problems {
            lines += &format!("{problem}\n");
        }
        // One call, so that two tests do not print into each other.
        write!(io::stdout().lock(), "{lines}").expect("standard output takes text");
    }
}

impl Tally {
    fn summary(&self, played: bool) -> String {
        let Tally { passed, failed, skipped, optional_steps } = self;
        let counts = format!("{passed} passed, {} failed, {skipped} skipped", failed.len());
        match (played, optional_steps) {
            (false, _) => format!("{counts} (not yet)"),
            (true, 0) => counts,
            (true, 1) => format!("{counts} (1 optional step skipped)"),
            (true, steps) => format!("{counts} ({steps} optional steps skipped)"),
        }
    }
}
