//! How a suite counts, complains and says how to see a failure again.

use std::collections::BTreeMap;
use std::io::Write;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::{env, thread};

use crossbeam_channel::bounded;

use super::model::Trouble;

/// How large the suites are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// What `cargo test` runs.
    Test,
    /// What has to pass before anything lands.
    Ci,
    /// A long run whose figures are written down.
    Record,
}

impl Size {
    pub(crate) fn get() -> Self {
        match env::var("SESSILE_SIMULATION").as_deref() {
            Ok("record") => Size::Record,
            Ok("ci") => Size::Ci,
            Ok("test") | Err(_) => Size::Test,
            Ok(other) => panic!("SESSILE_SIMULATION is test, ci or record, not {other}"),
        }
    }

    /// The floor of a suite: so many cases, a tenth of them in a test.
    pub(crate) fn of(self, ci: u64, record: u64) -> u64 {
        match self {
            Size::Test => ci / 10,
            Size::Ci => ci,
            Size::Record => record,
        }
    }
}

/// Verifies cases on this many threads, besides the one that makes them.
const WORKERS: usize = 2;

/// How many failures are described. The others are counted.
const DESCRIBED_MAX: usize = 5;

/// After so many failures the rest is left out.
const VIOLATIONS_MAX: usize = 20;

/// One row of the table of faults.
pub(crate) struct Suite {
    row: &'static str,
    name: &'static str,
    test: &'static str,
    floor: u64,
    cases: AtomicU64,
    violations: Mutex<Vec<String>>,
    /// How cases ended, by what is said of them.
    outcomes: Mutex<BTreeMap<String, u64>>,
}

impl Suite {
    /// `test` is the name of the test function, `floor` the least number of cases.
    pub(crate) fn new(
        row: &'static str,
        name: &'static str,
        test: &'static str,
        floor: u64,
    ) -> Self {
        hush_redb();
        Suite {
            row,
            name,
            test,
            floor,
            cases: AtomicU64::new(0),
            violations: Mutex::default(),
            outcomes: Mutex::default(),
        }
    }

    pub(crate) fn count(&self, cases: u64) {
        self.cases.fetch_add(cases, Ordering::Relaxed);
    }

    pub(crate) fn cases(&self) -> u64 {
        self.cases.load(Ordering::Relaxed)
    }

    /// Notes how a case ended.
    pub(crate) fn outcome(&self, outcome: impl Into<String>) {
        self.tally(outcome, 1);
    }

    /// Notes that something happened so many times more.
    pub(crate) fn tally(&self, outcome: impl Into<String>, count: u64) {
        *self.outcomes.lock().unwrap().entry(outcome.into()).or_default() += count;
    }

    /// Notes what has happened in a world.
    pub(crate) fn tally_all(&self, happened: &BTreeMap<&'static str, u64>) {
        happened.iter().for_each(|(what, count)| self.tally(*what, *count));
    }

    /// Runs one case: what goes wrong in it, and every panic, is a violation.
    pub(crate) fn case<T>(
        &self,
        seed: u64,
        what: impl Fn() -> String,
        case: impl FnOnce() -> Result<T, Trouble>,
    ) -> Option<T> {
        if self.has_failed() {
            return None;
        }
        let complaint = match catch_unwind(AssertUnwindSafe(case)) {
            Ok(Ok(done)) => return Some(done),
            Ok(Err(trouble)) => trouble.to_string(),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or(panic.downcast_ref::<&str>().copied());
                format!("a panic: {}", text.unwrap_or("of something else"))
            }
        };
        let mut violations = self.violations.lock().unwrap();
        violations.push(complaint.clone());
        if violations.len() <= DESCRIBED_MAX {
            say(&format!(
                "simulation: {} {}: {}: {complaint}\n  again: SESSILE_SEED={seed} SESSILE_SIMULATION={} \
                 cargo test --test simulation {}",
                self.row,
                self.name,
                what(),
                match Size::get() {
                    Size::Test => "test",
                    Size::Ci => "ci",
                    Size::Record => "record",
                },
                self.test,
            ));
        }
        None
    }

    pub(crate) fn has_enough(&self) -> bool {
        self.cases() >= self.floor || self.has_failed()
    }

    /// Whether it is no use to go on.
    fn has_failed(&self) -> bool {
        self.violations.lock().unwrap().len() >= VIOLATIONS_MAX
    }

    /// The seeds to go through: one after the other until there are enough cases, or the one that
    /// is to be seen again.
    pub(crate) fn seeds(&self) -> impl Iterator<Item = u64> {
        self.seeds_while(|| !self.has_enough())
    }

    /// The same as long as somebody wants more.
    pub(crate) fn seeds_while(&self, goes_on: impl Fn() -> bool) -> impl Iterator<Item = u64> {
        let number = |name| env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
        let again = number("SESSILE_SEED");
        let first = number("SESSILE_SIMULATION_FROM").unwrap_or(1);
        let mut next = again.unwrap_or(first);
        std::iter::from_fn(move || {
            let seed = next;
            next += 1;
            let goes_on = match again {
                Some(again) => seed == again,
                None => goes_on(),
            };
            goes_on.then_some(seed)
        })
    }

    /// Makes cases on this thread and verifies them on others.
    pub(crate) fn run<C: Send>(
        &self,
        make: impl FnOnce(&mut dyn FnMut(C)),
        verify: impl Fn(C) + Send + Sync,
    ) {
        let (send, receive) = bounded::<C>(64);
        thread::scope(|scope| {
            for _ in 0..WORKERS {
                let (receive, verify) = (receive.clone(), &verify);
                scope.spawn(move || receive.iter().for_each(verify));
            }
            make(&mut |case| send.send(case).expect("the verifiers wait for more"));
            drop(send);
        });
    }

    /// Says what was done, and fails if that was too little or anything went wrong.
    pub(crate) fn finish(self) {
        self.finish_with(&[]);
    }

    /// The same, and fails if one of these has never happened: nothing would have been shown of it.
    pub(crate) fn finish_with(self, wanted: &[&str]) {
        let violations = self.violations.into_inner().unwrap();
        let cases = self.cases.into_inner();
        say(&format!(
            "simulation: {} {}: {cases} cases, {} violations",
            self.row,
            self.name,
            violations.len()
        ));
        let outcomes = self.outcomes.into_inner().unwrap();
        if !outcomes.is_empty() {
            let outcomes: Vec<_> = outcomes.iter().map(|(what, n)| format!("{n} {what}")).collect();
            say(&format!("simulation: {}   {}", self.row, outcomes.join(", ")));
        }
        assert!(violations.is_empty(), "{} violations, first: {}", violations.len(), violations[0]);
        let is_whole = env::var("SESSILE_SEED").is_err();
        let missing: Vec<_> = wanted.iter().filter(|it| !outcomes.contains_key(**it)).collect();
        assert!(!is_whole || missing.is_empty(), "never happened: {missing:?}");
        assert!(!is_whole || cases >= self.floor, "{cases} cases are less than {}", self.floor);
    }
}

/// Prints in spite of the test harness, which would keep it for failures.
fn say(text: &str) {
    // Nobody reads it if standard error is closed.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// redb may panic on damaged pages, which the store turns into an error. Those panics are not
/// printed; all others are.
fn hush_redb() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            let of_redb = panic.location().is_some_and(|place| place.file().contains("/redb-"));
            if !of_redb {
                usual(panic);
            }
        }));
    });
}
