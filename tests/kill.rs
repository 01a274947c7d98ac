//! Kills real processes that use real stores, again and again, and looks what is left.
//!
//! ```text
//!   the test                            the program (this executable, run again)
//!      |   start, with a job                |
//!      | ---------------------------------> |  opens the store, looks at all of it
//!      |   what is in it                    |
//!      | <--------------------------------- |
//!   compare with what must be there         |
//!      |   go on                            |
//!      | ---------------------------------> |  8 clients commit
//!      |   client 3 has done deed 217       |
//!      | <--------------------------------- |  said after the commit has returned
//!      |                                    |
//!      | == SIGKILL ======================> x     and again, on the same directory
//! ```
//!
//! What must be there: every deed that was said to be done, and of each client at most the one that
//! it had under way; nothing else. Sessions that were ended stay ended, and sums are exact; a session
//! with a new key has that key only. And when a process serves, listeners have been told of every end
//! before it, by that process or an earlier one, and of no other. The
//! deeds of a client follow from the seed (`kill_support/deeds.rs`), so that the test knows every
//! byte of every session without having been told.
//!
//! Programs die at random moments, after a random number of deeds, while they open the store, while
//! they close it, and at named points: just before or just after a certain write, sync, rename of
//! theirs (`kill_support/points.rs`). A store ages: it lives through all kills of a run, with
//! segments of the log so small that the log is folded into the tables all the time.
//!
//! A kill proves nothing about power cuts: what was written stays, synced or not. Those are the
//! simulation's business.
//!
//! `SESSILE_SIMULATION=test|ci|record` says how much is done, `SESSILE_SEED=…` repeats the chance
//! of a run; when exactly a kill strikes is for the operating system to say.

#![expect(clippy::print_stdout, reason = "the test tells what it did")]
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

mod kill_support;
#[path = "support/watched.rs"]
mod watched;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;

use kill_support::deeds::{CLIENTS, Client, Seen, compare, compare_ends};
use kill_support::points::{Part, Phase, Point};
use kill_support::process::{Process, Told};
use kill_support::program::{self, Command, JOB, Job, Said};
use watched::{Operation, Side};

/// The program, if this executable was started as one.
#[test]
#[ignore = "the other tests run it"]
fn program() {
    if let Ok(job) = std::env::var(JOB) {
        program::run(&job);
    }
}

/// How much is done.
#[derive(Clone, Copy)]
struct Size {
    /// Kills at random moments, and how many deeds are done in the course of them.
    kills: u64,
    deeds: u64,
    /// Kills at each named point.
    kills_each: u64,
    /// Sessions that only lie in the stores.
    still: u64,
    /// How often somebody else tries to open a store.
    intrusions: u64,
}

fn size() -> Size {
    match std::env::var("SESSILE_SIMULATION").as_deref() {
        Err(_) | Ok("test") => {
            Size { kills: 10, deeds: 1_000, kills_each: 1, still: 2_000, intrusions: 3 }
        }
        Ok("ci") => {
            Size { kills: 100, deeds: 20_000, kills_each: 5, still: 20_000, intrusions: 50 }
        }
        Ok("record") => {
            Size { kills: 1_000, deeds: 200_000, kills_each: 200, still: 20_000, intrusions: 50 }
        }
        Ok(other) => panic!("SESSILE_SIMULATION={other}: it is test, ci or record"),
    }
}

fn seed() -> u64 {
    let seed = std::env::var("SESSILE_SEED").map(|seed| seed.parse().expect("a seed is a number"));
    let seed = seed.unwrap_or_else(|_| rand::make_rng::<StdRng>().random());
    println!("SESSILE_SEED={seed}"); // shown if it fails
    seed
}

/// Where stores are made: on the disk, and in memory if there is such a file system.
fn places() -> Vec<PathBuf> {
    let memory = Some(PathBuf::from("/dev/shm")).filter(|path| path.is_dir());
    [PathBuf::from(env!("CARGO_TARGET_TMPDIR"))].into_iter().chain(memory).collect()
}

#[test]
fn what_was_acknowledged_survives_kills_at_random_moments() {
    let (size, seed) = (size(), seed());
    let places = places();
    let mut tally = Tally::default();
    for (number, place) in places.iter().enumerate() {
        let mut aging = Aging::new(place, seed.wrapping_add(number as u64), &mut tally);
        aging.fill(size.still);
        let share = |all: u64| all * (number as u64 + 1) / places.len() as u64;
        while aging.tally.kills < share(size.kills) || aging.tally.deeds < share(size.deeds) {
            aging.die_at_random();
        }
        aging.close();
    }
    println!("{tally} (at random moments, SESSILE_SEED={seed})");
    tally.check_restarts();
}

/// What a program does when it is killed.
type Named = (Operation, Part);

/// Points in the life of a program that serves its clients, folds what is full, and folds what it
/// has recovered; and up to which time it dies at them, so that no run takes long.
const SERVING: [(Named, u64); 8] = [
    ((Operation::Write, Part::Log), 100),
    ((Operation::Sync, Part::Log), 100),
    ((Operation::Write, Part::OtherLog), 4),
    ((Operation::Write, Part::Tables), 60),
    ((Operation::Sync, Part::Tables), 15),
    ((Operation::Create, Part::Log), 1),
    ((Operation::Remove, Part::Log), 1),
    ((Operation::SyncDirectory, Part::Rest), 1),
];

/// Points on the way of one that recovers what another has left.
const RECOVERY: [Named; 6] = [
    (Operation::Create, Part::Log),
    (Operation::Write, Part::Log),
    (Operation::Sync, Part::Log),
    (Operation::SyncDirectory, Part::Rest),
    (Operation::Write, Part::Tables),
    (Operation::Sync, Part::Tables),
];

/// Points on the way of one that makes a store.
const CREATION: [Named; 14] = [
    (Operation::MakeDirectory, Part::Rest),
    (Operation::SyncDirectory, Part::Rest),
    (Operation::Create, Part::Rest),
    (Operation::Write, Part::Rest),
    (Operation::Sync, Part::Rest),
    (Operation::Rename, Part::Rest),
    (Operation::Remove, Part::Rest),
    (Operation::Create, Part::Tables),
    (Operation::Write, Part::Tables),
    (Operation::Lengthen, Part::Tables),
    (Operation::Sync, Part::Tables),
    (Operation::Create, Part::Log),
    (Operation::Write, Part::Log),
    (Operation::Sync, Part::Log),
];

#[test]
fn what_was_acknowledged_survives_kills_at_every_named_point() {
    let (size, seed) = (size(), seed());
    let mut tally = Tally::default();
    let sides = [Side::Before, Side::After];
    let points = sides.len() * (SERVING.len() + RECOVERY.len() + CREATION.len());
    let places = places();
    for (number, place) in (0..).zip(places.iter().take(size.kills_each as usize)) {
        let mut aging = Aging::new(place, seed.wrapping_add(number), &mut tally);
        aging.fill(size.still / 10);
        // The first place gets the odd ones.
        for _ in (number..size.kills_each).step_by(places.len()) {
            for side in sides {
                SERVING.into_iter().for_each(|(named, most)| aging.die_serving(named, side, most));
                RECOVERY.into_iter().for_each(|named| aging.die_recovering(named, side));
                CREATION.into_iter().for_each(|named| aging.die_creating(named, side));
            }
        }
        aging.close();
    }
    println!("{tally} (at {points} points, {} times each, SESSILE_SEED={seed})", size.kills_each);
    tally.check_restarts();
}

/// A store is open in one process, and free as soon as that is gone, however it went.
#[test]
fn a_second_process_is_refused_and_a_dead_one_keeps_nobody_out() {
    let (size, seed) = (size(), seed());
    let mut tally = Tally::default();
    let mut refusals = Vec::new();
    for place in places() {
        let mut aging = Aging::new(&place, seed, &mut tally);
        for _ in 0..size.intrusions {
            let owner = aging.serve();
            let intruder = aging.start(None);
            match intruder.hear() {
                Said::AlreadyOpen { path, pid, micros } => {
                    assert_eq!((path, pid), (aging.store(), Some(owner.id())));
                    refusals.push(micros);
                }
                said => panic!("{said:?}"),
            }
            drop(intruder);
            aging.kill(owner);
        }
        aging.close();
    }
    refusals.sort_unstable();
    let (count, p50) = (refusals.len(), refusals[refusals.len() / 2]);
    let slowest = refusals[count - 1];
    println!("kill: {count} refusals, p50 {p50} us, slowest {slowest} us (SESSILE_SEED={seed})");
    // The machine may be busy with other things now and then, but not half of the time.
    assert!(p50 < 50_000, "it takes too long to be refused");
}

/// What happened in all.
#[derive(Default)]
struct Tally {
    kills: u64,
    deeds: u64,
    lost: u64,
    phantom: u64,
    /// Ends that listeners were told of, and how many of them by a process that came later.
    ends: u64,
    inherited: u64,
    restarts_micros: Vec<u64>,
    /// Where the segments of the log had the default size: a new one is filled first.
    large_restarts_micros: Vec<u64>,
}

impl Tally {
    /// Of a few restarts a busy machine may delay the slowest; of many, not one in a hundred.
    fn check_restarts(&self) {
        let percentile = if self.restarts_micros.len() < 500 { 50 } else { 99 };
        let micros = at_percentile(&self.restarts_micros, percentile);
        assert!(micros < 1_000_000, "a restart takes too long");
    }
}

fn at_percentile(all: &[u64], percentile: usize) -> u64 {
    let mut all = all.to_vec();
    all.sort_unstable();
    all.get(all.len().saturating_sub(1) * percentile / 100).copied().unwrap_or(0)
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Tally { kills, deeds, lost, phantom, ends, inherited, .. } = self;
        let millis = |all: &[u64], percentile| at_percentile(all, percentile) as f64 / 1_000.0;
        let (small, large) = (&self.restarts_micros, &self.large_restarts_micros);
        write!(
            f,
            "kill: {kills} kills, {deeds} acknowledgements, {lost} lost, {phantom} phantom, \
             {ends} ends told, {inherited} by the next process, restart p50 {:.1} ms p99 {:.1} ms",
            millis(small, 50),
            millis(small, 99),
        )?;
        if !large.is_empty() {
            let p50 = millis(large, 50);
            write!(f, ", {} with the default log p50 {p50:.1} ms", large.len())?;
        }
        Ok(())
    }
}

/// A store that lives through many kills, and what is known about it.
struct Aging<'a> {
    directory: TempDir,
    seed: u64,
    chance: StdRng,
    clients: Vec<Client>,
    still: u64,
    /// No client of the next process waits for a sync, so that it leaves much in doubt.
    relaxed: bool,
    /// It is about to be closed for good: everything is looked at.
    closing: bool,
    /// How many processes have said that they opened it, and how many were started since.
    starts: (u64, u64),
    /// Whether a process died while it made the store: what it left is moved aside.
    cut_off: bool,
    /// Whether the latest process had segments of the default size.
    large: bool,
    /// The ends that listeners were told of.
    told: Told,
    /// How many of them were counted.
    heard: u64,
    /// How the latest processes were started and died, for whoever looks for a fault.
    lives: Vec<String>,
    tally: &'a mut Tally,
}

impl<'a> Aging<'a> {
    fn new(place: &Path, seed: u64, tally: &'a mut Tally) -> Self {
        Aging {
            directory: tempfile::tempdir_in(place).unwrap(),
            seed,
            chance: StdRng::seed_from_u64(seed),
            clients: vec![Client::default(); CLIENTS],
            still: 0,
            relaxed: false,
            closing: false,
            starts: (0, 0),
            cut_off: false,
            large: false,
            told: Told::default(),
            heard: 0,
            lives: Vec::new(),
            tally,
        }
    }

    fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    fn start(&mut self, point: Option<Point>) -> Process {
        let segment_bytes = match self.chance.random_range(0..64) {
            // Points are met sooner where folds are many.
            _ if point.is_some() => Some(64 << 10),
            // The default, which takes its time to make.
            0 => None,
            n => Some((64 << 10) << (2 * (n % 3))),
        };
        let relaxed = match self.relaxed {
            true => CLIENTS,
            false => [0, 0, CLIENTS / 2, CLIENTS][self.chance.random_range(0..4)],
        };
        let thorough = self.closing || self.chance.random_ratio(1, 8);
        let (store, seed, verify) = (self.store(), self.seed, self.closing);
        let job = Job { store, seed, point, segment_bytes, relaxed, thorough, verify };
        self.starts.1 += 1;
        self.large = segment_bytes.is_none();
        self.lives.push(format!("{segment_bytes:?} bytes, {relaxed} relaxed, {point:?}"));
        Process::start("program", &job, &self.told)
    }

    /// Starts a program and waits until it serves.
    fn serve(&mut self) -> Process {
        let process = self.start(None);
        let said = process.hear();
        assert!(matches!(said, Said::Open { .. }), "{said:?}");
        self.note(said);
        process
    }

    fn go_on(&self) -> Command {
        Command::Go(self.clients.iter().map(|client| client.done).collect())
    }

    fn note(&mut self, said: Said) {
        match said {
            Said::Open { seen, .. } => self.compare(&seen),
            Said::Done { client, n, expires } => {
                let did = &mut self.clients[client];
                assert_eq!(n, did.done + 1, "client {client} is out of step");
                did.does(self.seed, client, expires);
                self.tally.deeds += 1;
            }
            Said::Point | Said::Closed | Said::Filled => {}
            Said::AlreadyOpen { .. } | Said::Ended { .. } | Said::Failed(_) => panic!("{said:?}"),
        }
    }

    fn kill(&mut self, process: Process) {
        let said = process.kill();
        self.lives.push(format!("killed; of {} lines the last: {:?}", said.len(), said.last()));
        said.into_iter().for_each(|said| self.note(said));
        self.tally.kills += 1;
    }

    /// What a new process found, against what must be there.
    fn compare(&mut self, seen: &Seen) {
        let mut wrong = compare(&mut self.clients, self.seed, seen);
        let (known, since) = self.starts;
        if seen.starts <= known || seen.starts > known + since {
            wrong.complaints.push(format!("{} starts, not {since} after {known}", seen.starts));
        }
        self.starts = (seen.starts, 0);
        let still = self.still;
        if seen.still.as_ref().is_some_and(|found| !found.iter().copied().eq(0..still)) {
            wrong.complaints.push("some of the sessions that lie there are others".to_owned());
        }
        if seen.still_len != still {
            wrong.complaints.push(format!("{} sessions lie there, not {still}", seen.still_len));
        }
        let told = self.told.lock().unwrap().clone();
        wrong.complaints.extend(compare_ends(&self.clients, &told));
        let now = told.iter().rev().take_while(|told| told.is_some()).count() as u64;
        self.tally.inherited += now;
        self.tally.ends += told.iter().flatten().count() as u64 - self.heard;
        self.heard = told.iter().flatten().count() as u64;
        wrong.complaints.extend(self.strange_files());
        self.tally.lost += wrong.lost;
        self.tally.phantom += wrong.phantom;
        match self.large {
            true => self.tally.large_restarts_micros.push(seen.restart_micros),
            false => self.tally.restarts_micros.push(seen.restart_micros),
        }
        if !wrong.complaints.is_empty() {
            // A session may be long.
            let short = |text: &String| text.chars().take(300).collect::<String>();
            let complaints: Vec<_> = wrong.complaints.iter().map(short).collect();
            let lives: Vec<_> = self.lives.iter().rev().take(8).rev().map(short).collect();
            let (tally, seed) = (&*self.tally, self.seed);
            panic!("{tally}, the store's seed is {seed}: {complaints:#?} after {lives:#?}");
        }
    }

    fn fill(&mut self, still: u64) {
        let mut process = self.serve();
        // A few at a time, so that the program is heard of.
        for first in (0..still).step_by(1_000) {
            process.tell(&Command::Fill(first..still.min(first + 1_000)));
            assert!(matches!(process.hear(), Said::Filled));
        }
        self.still = still;
        self.kill(process);
    }

    /// A program dies while it opens the store, serves, or closes it.
    fn die_at_random(&mut self) {
        match self.chance.random_range(0..8) {
            0 => {
                let process = self.start(None);
                let micros = self
                    .chance
                    .random_range(0..=2 * at_percentile(&self.tally.restarts_micros, 50));
                self.note_within(&process, micros);
                self.kill(process);
            }
            1 => self.die_after_deeds(Some(Command::Close)),
            _ => self.die_after_deeds(None),
        }
    }

    /// A program dies after a random number of deeds.
    fn die_after_deeds(&mut self, last: Option<Command>) {
        let mut process = self.serve();
        process.tell(&self.go_on());
        for _ in 0..self.chance.random_range(0..600) {
            let said = process.hear();
            self.note(said);
        }
        last.into_iter().for_each(|command| process.tell(&command));
        let micros = self.chance.random_range(0..3_000);
        self.note_within(&process, micros);
        self.kill(process);
    }

    /// Waits so long, or until something is said.
    fn note_within(&mut self, process: &Process, micros: u64) {
        if let Some(said) = process.hear_within(Duration::from_micros(micros)) {
            self.note(said);
        }
    }

    /// A program dies at a point while it serves. One that has nothing to fold when it begins does
    /// not come to all of them; then the next one does.
    fn die_serving(&mut self, (operation, part): Named, side: Side, most: u64) {
        for _ in 0..40 {
            let (phase, nth) = (Phase::Serving, self.chance.random_range(1..=most));
            let mut process = self.start(Some(Point { phase, side, operation, part, nth }));
            for _ in 0..5_000 {
                let said = process.hear();
                let is_open = matches!(said, Said::Open { .. });
                let is_there = matches!(said, Said::Point);
                self.note(said);
                if is_there {
                    return self.kill(process);
                }
                if is_open {
                    process.tell(&self.go_on());
                }
            }
            self.kill(process);
        }
        panic!("nobody passes {side:?} {operation:?} {part:?}");
    }

    /// A program dies at a point while it recovers what one before it has left.
    fn die_recovering(&mut self, named: Named, side: Side) {
        let mut most = 16;
        loop {
            // Otherwise it recovers what another one has left that died in the same way.
            if self.chance.random_ratio(2, 3) {
                self.relaxed = true;
                self.die_after_deeds(None);
                self.relaxed = false;
            }
            match self.die_opening(named, side, most) {
                None => return,
                Some(met) => most = met,
            }
        }
    }

    /// A program dies at a point while it makes a store; the next one makes it all the same.
    fn die_creating(&mut self, named: Named, side: Side) {
        let mut most = 16;
        loop {
            let place = self.directory.path().parent().unwrap();
            let mut fresh = Aging::new(place, self.chance.random(), &mut *self.tally);
            match fresh.die_opening(named, side, most) {
                None => {
                    fresh.cut_off = true;
                    fresh.die_after_deeds(None);
                    return fresh.close();
                }
                Some(met) => most = met,
            }
        }
    }

    /// A program dies at a point while it opens the store, unless it meets fewer such: so many.
    fn die_opening(&mut self, (operation, part): Named, side: Side, most: u64) -> Option<u64> {
        let (phase, nth) = (Phase::Opening, self.chance.random_range(1..=most));
        let process = self.start(Some(Point { phase, side, operation, part, nth }));
        let said = process.hear();
        let met = match said {
            Said::Point => None,
            Said::Open { met, .. } => {
                assert!(met > 0, "nobody passes {side:?} {operation:?} {part:?}");
                Some(met)
            }
            ref said => panic!("{said:?}"),
        };
        self.note(said);
        self.kill(process);
        met
    }

    /// Closes it as one should, and looks once more.
    fn close(mut self) {
        for _ in 0..2 {
            self.closing = true;
            let mut process = self.serve();
            process.tell(&Command::Close);
            assert!(matches!(process.hear(), Said::Closed));
        }
    }

    /// Files that have no business in the directory of an open store.
    fn strange_files(&self) -> Vec<String> {
        let names = fs::read_dir(self.store()).unwrap().map(|it| it.unwrap().file_name());
        let names = names.map(|name| name.into_string().unwrap());
        names
            .filter(|name| !["lock", "sessile", "sessions.redb", "reserve"].contains(&&**name))
            .filter(|name| !name.starts_with("log-"))
            .filter(|name| !(self.cut_off && name.starts_with("aside-")))
            .map(|name| format!("there is a file {name}"))
            .collect()
    }
}
