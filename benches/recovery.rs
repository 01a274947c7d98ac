//! How long until a store serves again?
//!
//! A store of a million sessions of some 400 bytes, all in the tables, and after that so many commits
//! that the log is about full, as it was left by
//!
//! | ending | what happened | what the open does |
//! |---|---|---|
//! | `clean` | the store was closed | nothing is left in the log |
//! | `killed` | its process was killed | reads the log |
//! | `power` | the machine has been started again since | verifies every page of the tables too |
//!
//! ```text
//! cargo bench --bench recovery                # some minutes, most of them to fill the store
//! cargo bench --bench recovery -- --quick     # 50,000 sessions
//! ```

mod support;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use sessile::{Clock, Durability, Error, Store, SystemClock};

use support::{Arguments, Random, SET, Sessile, key, page, say};

const USAGE: &str = "usage: cargo bench --bench recovery [-- [--quick] [--sessions N]]";

/// So many commits of one attribute, each in a batch of its own: a sector of the log. A fold comes first
/// if they do not fit.
const COMMITS: usize = 120_000;

/// One opening, as programs read it.
#[derive(Debug, Serialize)]
struct Line {
    bench: &'static str,
    ending: &'static str,
    sessions: usize,
    log_bytes: u64,
    open_ms: f64,
    first_commit_ms: f64,
}

fn main() -> ExitCode {
    support::main(USAGE, run)
}

fn run(Arguments { quick, sessions, .. }: Arguments) -> io::Result<()> {
    let sessions = sessions.unwrap_or(if quick { 50_000 } else { 1_000_000 });
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    say(format_args!("filling: {sessions} sessions"));
    let sessile = Sessile::filled(directory.path(), sessions);
    sessile.store.fold().map_err(io::Error::other)?;
    let commits = if quick { COMMITS / 20 } else { COMMITS };
    say(format_args!("{commits} commits more"));
    write(&sessile, sessions, commits).map_err(io::Error::other)?;
    let log_bytes = sessile.store.stats().log_bytes;
    let original = directory.path().join("sessile");
    let [killed, power] = ["killed", "power"].map(|ending| directory.path().join(ending));
    copy(&original, &killed)?;
    copy(&original, &power)?;
    // The machine's name for this start of it, which the lock file holds, will be another one.
    let lock = fs::read_to_string(original.join("lock"))?;
    let other = lock.lines().map(|line| line.split('-').rev().collect::<Vec<_>>().join("-") + "\n");
    fs::write(power.join("lock"), other.collect::<String>())?;
    sessile.store.close().map_err(io::Error::other)?;
    say(format_args!(
        "\n{sessions} sessions of some 400 bytes, {commits} commits after the last fold"
    ));
    say(format_args!(
        "{:<10}{:>12}{:>12}{:>18}",
        "ending", "log bytes", "open ms", "first commit ms"
    ));
    for (ending, path, log_bytes) in
        [("clean", &original, 0), ("killed", &killed, log_bytes), ("power", &power, log_bytes)]
    {
        let (open, first) = open(path).map_err(io::Error::other)?;
        let millis = |time: Duration| (time.as_secs_f64() * 1e5).round() / 1e2;
        let line = Line {
            bench: "recovery",
            ending,
            sessions,
            log_bytes,
            open_ms: millis(open),
            first_commit_ms: millis(first),
        };
        let Line { open_ms, first_commit_ms, .. } = line;
        say(format_args!("{ending:<10}{log_bytes:>12}{open_ms:>12}{first_commit_ms:>18}"));
        writeln!(io::stdout(), "{}", serde_json::to_string(&line)?)?;
    }
    Ok(())
}

fn write(sessile: &Sessile, sessions: usize, commits: usize) -> Result<(), Error> {
    let mut random = Random::new(1);
    for _ in 0..commits {
        let txn = sessile.store.begin()?;
        let session = txn.get_or_create(&sessile.container, key(random.below(sessions)))?;
        session.insert(SET, page(random.next()))?;
        txn.set_durability(Durability::Relaxed)?;
        txn.commit()?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// How long it takes to open a store, and to commit something there.
fn open(path: &Path) -> Result<(Duration, Duration), Error> {
    let clock = SystemClock::new();
    let begun = clock.elapsed();
    let store = Store::open(path)?;
    let opened = clock.elapsed();
    let container = store.container("sessions")?;
    store.transact(|txn| txn.get_or_create(&container, key(0))?.insert(SET, page(7)))?;
    let committed = clock.elapsed();
    drop(store);
    Ok((opened - begun, committed - opened))
}
