//! What did we not think of? A store on a disk that loses power, fails, lies and rots.
//!
//! Clients made of a seed use a store through its public API on a simulated disk, which writes down
//! every operation. Each point of that record is a power cut, in many variants; each operation may
//! fail; each byte may rot. What is left is opened and compared with a plain model:
//!
//! **Every commit that was acknowledged is there, and the one in flight is there entirely or not at
//! all; nothing else.**
//!
//! ```text
//!   steps of a seed ---> World ---> Store ---> SimDisk ---> record of operations and marks
//!                          |                                      |
//!                        model                         Platter: images of power cuts
//!                          |                                      |
//!                          +----------> verify <------------------+
//! ```
//!
//! The fault model is stated at the top of `simulation_support/disk.rs`. Each test is one row of a
//! table of faults, prints how many cases it ran, and fails if they are fewer than its floor.
//! `SESSILE_SIMULATION` is `test` (the default, a tenth), `ci` or `record`. A failure prints the
//! `SESSILE_SEED` that shows it again.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

mod simulation_support;

use std::collections::BTreeSet;
use std::sync::Arc;

use simulation_support::backups::{Left, Story};
use simulation_support::chance::Chance;
use simulation_support::compactions::{self, History};
use simulation_support::disk::{Fault, FaultKind, Image, Op};
use simulation_support::faults::{Remedy, Run};
use simulation_support::rot::{self, Outcome, Rot, Victim};
use simulation_support::suite::{Size, Suite};
use simulation_support::verify::{Case, Plan, commit_something, live_on};
use simulation_support::workload::{self, exhaustive};
use simulation_support::world::{DIRECTORY, Disk, START, Setup, Step, World};

/// A case, and the seed that it was made of.
type Found = (u64, Case);

/// The run of a seed. What goes wrong in it before any power is cut is a violation as well.
fn run(suite: &Suite, seed: u64, transactions: usize) -> World {
    let (world, trouble) = match workload::run(seed, transactions, true) {
        Ok(world) => (world, None),
        Err((trouble, world)) => (world, Some(trouble)),
    };
    suite.case(seed, || "the workload".to_owned(), || trouble.map_or(Ok(()), Err));
    suite.tally_all(&world.happened);
    world
}

/// G-R1: the power is cut after every operation of a workload. And G-R22: whoever's end nobody was told
/// of by then is told of by the next process, and nobody who lives.
#[test]
fn power_cuts() {
    let size = Size::get();
    let suite = Suite::new("G-R1", "power cuts", "power_cuts", size.of(150_000, 1_000_000));
    let transactions = if size == Size::Test { 12 } else { 30 };
    let make = |send: &mut dyn FnMut(Found)| {
        for seed in suite.seeds() {
            let world = run(&suite, seed, transactions);
            let plan = Plan { start: &Image::default(), lies: 0, cuts: 8, every: 1, from: 0 };
            let images = plan.cut(&world, &mut Chance::new(seed), |case| send((seed, case)));
            suite.count(images);
        }
    };
    suite.run(make, |(seed, case)| {
        let ends = suite.case(seed, || case.what.clone(), || case.verify());
        let [owed, inherited] = ends.unwrap_or_default();
        suite.tally("ends owed and told", owed);
        suite.tally("ends told by the next process", inherited);
    });
    suite.finish();
}

/// What must have happened to sessions for anything to be shown of it.
const LIVES: [&str; 20] = [
    "attributes lapsed",
    "bindings refused at the limit of a principal",
    "changes that followed a rotation",
    "conflicts",
    "creations refused at the limit of a container",
    "ends by a timeout of their own",
    "ends by an absolute timeout",
    "ends by principal",
    "ends by principal of a session that nobody had seen",
    "ends by the timeout",
    "evictions",
    "evictions for a principal",
    "keys refused that were given up",
    "keys that led on in the time of grace",
    "refusals at the limit of a container",
    "refusals at the limit of a principal",
    "rotations",
    "takes that came too late",
    "values shown",
    "workloads",
];

/// G-R23: long workloads with all that can happen to a session, where nothing is wrong with the disk,
/// and a few power cuts.
#[test]
fn lives() {
    let size = Size::get();
    let suite = Suite::new("G-R23", "lives", "lives", size.of(1_000, 10_000));
    let make = |send: &mut dyn FnMut(u64)| {
        for seed in suite.seeds() {
            suite.count(1);
            send(seed);
        }
    };
    suite.run(make, |seed| {
        let world = run(&suite, seed, 60);
        suite.outcome("workloads");
        let plan = Plan { start: &Image::default(), lies: 0, cuts: 1, every: 300, from: 0 };
        plan.cut(&world, &mut Chance::new(seed), |case| {
            suite.case(seed, || case.what.clone(), || case.verify());
        });
    });
    suite.finish_with(&LIVES);
}

/// G-R8: the power is cut while a backup is made, after every operation.
#[test]
fn power_cuts_during_a_backup() {
    let size = Size::get();
    let test = "power_cuts_during_a_backup";
    let suite = Suite::new("G-R8", "power cuts during a backup", test, size.of(20_000, 50_000));
    type Found = (u64, Arc<Story>, Left);
    let make = |send: &mut dyn FnMut(Found)| {
        for seed in suite.seeds() {
            let story = suite.case(seed, || "the backup".to_owned(), || Story::new(seed));
            let Some(story) = story.map(Arc::new) else { continue };
            let images = story.cuts(4, &mut Chance::new(seed));
            suite.count(images.len() as u64);
            images.into_iter().for_each(|left| send((seed, Arc::clone(&story), left)));
        }
    };
    suite.run(make, |(seed, story, left)| {
        let what = left.0.clone();
        suite.case(seed, || what.clone(), || story.verify(left, seed));
    });
    suite.finish();
}

/// G-R8: an operation fails while a backup is made.
#[test]
fn failures_during_a_backup() {
    let size = Size::get();
    let test = "failures_during_a_backup";
    let suite = Suite::new("G-R8", "failures during a backup", test, size.of(3_000, 10_000));
    suite.run(
        |send: &mut dyn FnMut(u64)| suite.seeds().for_each(|seed| (suite.count(1), send(seed)).1),
        |seed| {
            let fail = || Story::fail(seed, &mut Chance::new(seed));
            match suite.case(seed, || "a failure".to_owned(), fail) {
                Some(true) => suite.outcome("failed"),
                Some(false) => suite.outcome("made all the same"),
                None => {}
            }
        },
    );
    suite.finish();
}

/// G-R8: the power is cut while the tables are compacted, and after, when the log is used again.
#[test]
fn power_cuts_during_a_compaction() {
    let size = Size::get();
    let test = "power_cuts_during_a_compaction";
    let suite = Suite::new("G-R8", "power cuts during a compaction", test, size.of(20_000, 50_000));
    type Found = (u64, (String, Vec<String>, Image));
    let make = |send: &mut dyn FnMut(Found)| {
        for seed in suite.seeds() {
            let history = suite.case(seed, || "the store".to_owned(), || History::new(seed));
            let Some(history) = history else { continue };
            let images = history.cuts(2, &mut Chance::new(seed));
            suite.count(images.len() as u64);
            images.into_iter().for_each(|left| send((seed, left)));
        }
    };
    suite.run(make, |(seed, (what, may_hold, image))| {
        let verify = || compactions::verify(&may_hold, image, seed);
        suite.case(seed, || what.clone(), verify);
    });
    suite.finish();
}

/// G-R8: an operation fails while the tables are compacted.
#[test]
fn failures_during_a_compaction() {
    let size = Size::get();
    let test = "failures_during_a_compaction";
    let suite = Suite::new("G-R8", "failures during a compaction", test, size.of(3_000, 10_000));
    suite.run(
        |send: &mut dyn FnMut(u64)| suite.seeds().for_each(|seed| (suite.count(1), send(seed)).1),
        |seed| match suite.case(seed, || "a failure".to_owned(), || compactions::fail(seed)) {
            Some(true) => suite.outcome("failed"),
            Some(false) => suite.outcome("done all the same"),
            None => {}
        },
    );
    suite.finish();
}

/// G-R2: the power is cut while a store recovers from a power cut, and again while it recovers from
/// that. What was served once is not lost any more, acknowledged or not.
#[test]
fn power_cuts_during_recovery() {
    let size = Size::get();
    let test = "power_cuts_during_recovery";
    let suite = Suite::new("G-R2", "power cuts during recovery", test, size.of(20_000, 100_000));
    let make = |send: &mut dyn FnMut(Found)| {
        for seed in suite.seeds() {
            let world = run(&suite, seed, 12);
            let plan = Plan { start: &Image::default(), lies: 0, cuts: 1, every: 60, from: 0 };
            plan.cut(&world, &mut Chance::new(seed), |case| send((seed, case)));
        }
    };
    suite.run(make, |(seed, case)| {
        if !suite.has_enough() {
            again(&suite, seed, &case, 2);
        }
    });
    suite.finish();
}

/// Cuts the power in the recovery from a power cut, `depth` deep.
fn again(suite: &Suite, seed: u64, case: &Case, depth: u32) {
    let what = || case.what.clone();
    let recovered = suite.case(seed, what, || {
        let mut world = case.recover(true)?;
        if world.store().containers().len() > 2 {
            commit_something(&mut world, 1)?;
        }
        world.play(&Step::Fold)?;
        Ok(world)
    });
    let Some(world) = recovered else { return };
    let mut chance = Chance::new(case.seed);
    let plan = Plan { start: &case.image, lies: 0, cuts: 2, every: 1, from: 0 };
    let images = plan.cut(&world, &mut chance.fork(), |nested| {
        let nested = Case { what: format!("{}, then {}", case.what, nested.what), ..nested };
        if depth > 0 && chance.one_in(100) {
            again(suite, seed, &nested, depth - 1);
        } else {
            suite.case(seed, || nested.what.clone(), || nested.verify());
        }
    });
    suite.count(images);
}

/// G-R3: everything that two, or three, of eleven things to do can lead to, from one small store.
#[test]
fn small_workloads() {
    let size = Size::get();
    let deep = size != Size::Test;
    let floor = if deep { 35_000 } else { 1_000 };
    let suite = Suite::new("G-R3", "small workloads", "small_workloads", floor);
    let begin = exhaustive::begin();
    let telling = exhaustive::telling();
    let sequences = [telling.clone(), exhaustive::sequences(if deep { 3 } else { 2 })].concat();
    let make = |send: &mut dyn FnMut(Found)| {
        let seeds = suite.seeds_while(|| true).take_while(|seed| *seed <= sequences.len() as u64);
        for seed in seeds {
            let steps = &sequences[seed as usize - 1];
            let disk = Disk::new(begin.image.clone(), true);
            let state = vec![Arc::clone(&begin.state)];
            let mut world =
                World::found(disk, Setup::default(), seed, begin.now, state, BTreeSet::new());
            let play = || {
                world.open()?;
                for step in steps.iter().flatten() {
                    world.play(step).and_then(|()| world.check())?;
                }
                Ok(())
            };
            suite.case(seed, || format!("{steps:?}"), play);
            let (cuts, every) = match (seed <= telling.len() as u64, deep) {
                (true, _) => (8, 1),
                (false, true) => (2, 1),
                (false, false) => (1, 2),
            };
            let plan = Plan { start: &begin.image, lies: 0, cuts, every, from: 0 };
            let images = plan.cut(&world, &mut Chance::new(seed), |case| send((seed, case)));
            suite.count(images);
        }
    };
    suite.run(make, |(seed, case)| {
        suite.case(seed, || case.what.clone(), || case.verify());
    });
    suite.finish();
}

/// G-R4: each operation fails, reads included, in every way, once and from then on.
#[test]
fn io_errors() {
    let size = Size::get();
    let suite = Suite::new("G-R4", "I/O errors", "io_errors", size.of(5_000, 25_000));
    let make = |send: &mut dyn FnMut((Arc<Run>, Fault))| {
        for seed in suite.seeds() {
            let run = Arc::new(Run::new(seed, 6));
            let world = suite.case(seed, || "no faults".to_owned(), || run.without_faults());
            let Some(world) = world else { continue };
            let operations = world.disk.operations();
            // A test tries every so many of them, another one in each run.
            let every = if size == Size::Test { 37 } else { 1 };
            for nth in 0..operations * 12 {
                if (nth + seed) % every == 0 {
                    let kind = FaultKind::ALL[(nth % 6) as usize];
                    let (from, sticky) = (nth / 12, nth / 6 % 2 == 1);
                    send((
                        Arc::clone(&run),
                        Fault { kind, from, sticky, kept: nth % 9, seed: nth },
                    ));
                }
            }
        }
    };
    suite.run(make, |(run, fault)| {
        suite.count(1);
        suite.case(
            run.seed,
            || format!("{fault:?}"),
            || {
                let mut world = run.with(&suite, &fault, Remedy::Wait, None)?;
                world.resume()?;
                live_on(&mut world, &mut Chance::new(fault.seed))
            },
        );
    });
    suite.finish();
}

/// G-R5: a sync fails and loses what it was to make durable, while the page cache knows nothing of
/// it. The store gets over it, or its process is restarted; then come some commits, and the power
/// is cut.
#[test]
fn failed_syncs() {
    let size = Size::get();
    let suite = Suite::new("G-R5", "failed syncs", "failed_syncs", size.of(1_000, 5_000));
    let make = |send: &mut dyn FnMut((Arc<Run>, Fault, Remedy, i64))| {
        for seed in suite.seeds() {
            let run = Arc::new(Run::new(seed, 10));
            let world = suite.case(seed, || "no faults".to_owned(), || run.without_faults());
            let Some(world) = world else { continue };
            for (nth, from) in world.disk.syncs().into_iter().enumerate() {
                let nth = nth as u64 + seed;
                for (kept, remedy) in [(0, Remedy::Wait), (nth % 9, Remedy::Restart)] {
                    let fault =
                        Fault { kind: FaultKind::Sync, from, sticky: false, kept, seed: nth };
                    let more = (nth % 9) as i64;
                    send((Arc::clone(&run), fault, remedy, more));
                }
            }
        }
    };
    suite.run(make, |(run, fault, remedy, more)| {
        let what = || format!("{fault:?}, {remedy:?}, then {more} commits");
        suite.count(1);
        let world = suite.case(run.seed, what, || run.with(&suite, &fault, remedy, Some(more)));
        let Some(world) = world else { return };
        let trace = world.disk.trace();
        let from = trace.iter().position(|op| matches!(op, Op::SyncFailed { .. })).unwrap_or(0);
        let mut chance = Chance::new(fault.seed);
        // At every so many points after the failure, and at the end.
        let plan = Plan { start: &Image::default(), lies: 0, cuts: 1, every: 8, from };
        let check = |case: Case| {
            let what = || format!("{}, {}", what(), case.what);
            suite.case(run.seed, what, || case.verify());
        };
        plan.cut(&world, &mut chance, check);
        let plan = Plan { cuts: 8, every: 1, from: trace.len(), ..plan };
        plan.cut(&world, &mut chance, check);
    });
    suite.finish();
}

/// G-R6: the last one to four syncs before a power cut have lied.
#[test]
fn lying_syncs() {
    let size = Size::get();
    let suite = Suite::new("G-R6", "lying syncs", "lying_syncs", size.of(1_000, 10_000));
    let make = |send: &mut dyn FnMut((u64, usize, Case))| {
        for seed in suite.seeds() {
            let world = run(&suite, seed, 12);
            for lies in 1..=4 {
                let plan = Plan { start: &Image::default(), lies, cuts: 1, every: 12, from: 0 };
                let images =
                    plan.cut(&world, &mut Chance::new(seed), |case| send((seed, lies, case)));
                suite.count(images);
            }
        }
    };
    suite.run(make, |(seed, lies, case)| {
        let what = || format!("{lies} lies, {}", case.what);
        if let Some(outcome) = suite.case(seed, what, || case.verify_lies(lies)) {
            suite.outcome(outcome);
        }
    });
    suite.finish();
}

/// G-R9: bits flip and pages are lost in the files of a store that was closed, or killed.
#[test]
fn rotten_files() {
    let size = Size::get();
    let suite = Suite::new("G-R9", "rotten files", "rotten_files", size.of(20_000, 20_000));
    let make = |send: &mut dyn FnMut((u64, Arc<Victim>, String, Rot))| {
        for seed in suite.seeds() {
            let victim =
                suite.case(seed, || "no rot".to_owned(), || Victim::new(seed, seed % 2 == 1));
            let Some(victim) = victim.map(Arc::new) else { continue };
            let mut chance = Chance::new(seed);
            for (name, node, unit) in victim.files() {
                let len = victim.image.content(node).len();
                let mut send = |rot| send((seed, Arc::clone(&victim), name.clone(), rot));
                // Every bit of what everything else hangs on; a test tries every so many of them, and
                // comes to a store that was killed too.
                let header = if name.starts_with("log-") { 0 } else { len.min(512) };
                let every = if size == Size::Test { 16 } else { 1 };
                let bits = (0..header * 8).filter(|bit| (bit + seed) % every == 0);
                bits.map(Rot::Bit).for_each(&mut send);
                let units = len.div_ceil(unit as u64);
                for nth in 0..units {
                    (0..4).for_each(|_| send(Rot::of_unit(nth, units, unit, &mut chance)));
                }
            }
        }
    };
    suite.run(make, |(seed, victim, name, rot)| {
        suite.count(1);
        let mut chance = Chance::new(seed);
        let examined = suite.case(
            seed,
            || format!("{rot:?} of {name}"),
            || {
                let mut image = victim.image.clone();
                let (_, node, unit) =
                    victim.files().into_iter().find(|file| file.0 == name).expect("it was listed");
                rot.apply(image.content_mut(node), unit, &mut chance);
                let outcome = rot::examine(&victim, image.clone(), chance.one_in(4))?;
                if let Outcome::Earlier(lost) = outcome
                    && lost > rot.lost_max()
                {
                    return Err(format!("{lost} commits are missing, and nobody is told").into());
                }
                // redb looks for a key without verifying the pages on its way. Who asks for all of
                // them to be verified is told.
                if outcome >= Outcome::Silent {
                    let verified = rot::examine(&victim, image, true)?;
                    if verified >= Outcome::Silent {
                        return Err(format!("{outcome:?}, and verified: {verified:?}").into());
                    }
                }
                Ok(outcome)
            },
        );
        if let Some(outcome) = examined {
            suite.outcome(outcome.word());
        }
    });
    suite.finish();
}

/// G-R10: bytes rot under a store that is open. Nobody ever reads a wrong value.
#[test]
fn rot_while_open() {
    let size = Size::get();
    let suite = Suite::new("G-R10", "rot while open", "rot_while_open", size.of(1_000, 5_000));
    let make = |send: &mut dyn FnMut((u64, Arc<Victim>, u64))| {
        for seed in suite.seeds() {
            let victim =
                suite.case(seed, || "no rot".to_owned(), || Victim::new(seed, seed % 2 == 1));
            let Some(victim) = victim.map(Arc::new) else { continue };
            (0..100).for_each(|nth| send((seed, Arc::clone(&victim), nth)));
        }
    };
    suite.run(make, |(seed, victim, nth)| {
        suite.count(1);
        let outcome = suite.case(
            seed,
            || format!("store {nth}"),
            || rot::while_open(&victim, &mut Chance::new(seed ^ nth << 32)),
        );
        if let Some(outcome) = outcome {
            suite.outcome(format!("{outcome:?}").to_lowercase());
        }
    });
    suite.finish();
}

/// G-R11a: the power is cut while a store is made. The next start finds none, or an empty one that
/// is whole.
#[test]
fn creation() {
    let size = Size::get();
    let suite = Suite::new("G-R11a", "creation", "creation", size.of(20_000, 50_000));
    let make = |send: &mut dyn FnMut(Found)| {
        for seed in suite.seeds() {
            let mut chance = Chance::new(seed);
            // The directory may be there, and empty.
            let start =
                if seed % 2 == 0 { Image::default() } else { Image::with_directory(DIRECTORY) };
            let disk = Disk::new(start.clone(), true);
            let setup = workload::setup(&mut chance);
            let mut world =
                World::found(disk, setup, seed, START, vec![Arc::default()], BTreeSet::new());
            suite.case(seed, || "no power cut".to_owned(), || world.open());
            let plan = Plan { start: &start, lies: 0, cuts: 8, every: 1, from: 0 };
            let images = plan.cut(&world, &mut chance, |case| send((seed, case)));
            suite.count(images);
        }
    };
    suite.run(make, |(seed, case)| {
        // Some of them are cut off again.
        if case.seed % 64 == 0 {
            again(&suite, seed, &case, 0);
        }
        suite.case(seed, || case.what.clone(), || case.verify());
    });
    suite.finish();
}

/// G-R14: the clock is turned forward and back, by a second and by centuries, around every sweep
/// and between runs. Nobody who has expired comes back, and no end is told twice.
#[test]
fn clocks() {
    let size = Size::get();
    let suite = Suite::new("G-R14", "clocks", "clocks", size.of(1_000, 10_000));
    let make = |send: &mut dyn FnMut(u64)| {
        for seed in suite.seeds() {
            suite.count(1);
            send(seed);
        }
    };
    suite.run(make, |seed| {
        suite.case(seed, || "the clock".to_owned(), || workload::turn_clocks(seed));
    });
    suite.finish();
}
