//! Runs of a workload in which an operation of the disk fails.

use sessile::Error;

use super::chance::Chance;
use super::disk::{Fault, FaultKind};
use super::model::Trouble;
use super::suite::Suite;
use super::verify::commit_something;
use super::workload;
use super::world::{Setup, Step, World};

/// What to do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// The store gets over it by itself.
    Wait,
    /// The process is killed and started again.
    Restart,
}

/// A workload in which something fails.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) seed: u64,
    pub(crate) steps: Vec<Step>,
}

impl Run {
    pub(crate) fn new(seed: u64, transactions: usize) -> Self {
        Run { seed, steps: workload::steps(&mut Chance::new(seed), transactions) }
    }

    fn begin(&self) -> World {
        let fold_every = if self.seed.is_multiple_of(2) { 1 } else { 4 };
        let setup = Setup { memory_max: 32 << 10, fold_every, ..Setup::default() };
        World::empty(setup, self.seed, true)
    }

    /// How it goes when nothing fails.
    pub(crate) fn without_faults(&self) -> Result<World, Trouble> {
        let mut world = self.begin();
        world.open()?;
        self.steps.iter().try_for_each(|step| world.play(step))?;
        Ok(world)
    }

    /// Plays the steps while a fault is armed. Every error must say what it is; after the fault is
    /// cleared the store that is open goes on, shows what the model says, and what it says of the
    /// `fate` of a commit is true. After `more` is given, that many commits follow the failure, and
    /// nothing else.
    pub(crate) fn with(
        &self,
        suite: &Suite,
        fault: &Fault,
        remedy: Remedy,
        more: Option<i64>,
    ) -> Result<World, Trouble> {
        let mut world = self.begin();
        world.disk.set_fault(Some(fault.clone()));
        let mut patience = if fault.sticky { fault.seed % 3 } else { 0 };
        let mut steps = self.steps.iter();
        let (mut opening, mut later) = (true, 0);
        loop {
            let (what, done) = match opening {
                true => ("open".to_owned(), world.open()),
                false => match steps.next() {
                    Some(step) => (format!("{step:?}"), world.play(step)),
                    None => break,
                },
            };
            opening = false;
            let Err(trouble) = done else { continue };
            let at = |trouble: Trouble| Trouble::from(format!("{what}: {trouble}"));
            let error = match trouble {
                Trouble::Error(error) if world.disk.failed() > 0 => error,
                trouble => return Err(at(trouble)),
            };
            let word = what.split([' ', '(']).next().unwrap_or_default();
            match kind(&error, fault) {
                Some(kind) => suite.outcome(format!("{kind} of {word}")),
                None => return Err(at(error.into())),
            }
            world.give_up();
            if world.store.is_some() {
                match world.glance() {
                    Err(Trouble::Error(error)) if kind(&error, fault).is_some() => {}
                    glanced => glanced.map_err(at)?,
                }
                if patience > 0 && world.is_sure() {
                    patience -= 1;
                    continue;
                }
            }
            // The store may have to meet once what has failed behind everybody's back.
            later += 1;
            if later > 2 {
                return Err(at("the store goes on failing".into()));
            }
            world.disk.set_fault(None);
            if world.store.is_some() && remedy == Remedy::Restart {
                world.kill();
            }
            if world.store.is_none() {
                world.open().map_err(at)?;
            }
            world.resume().map_err(at)?;
            world.check().map_err(at)?;
            if let Some(more) = more {
                for n in 0..more {
                    if world.state().containers.len() > 2 {
                        commit_something(&mut world, n).map_err(at)?;
                    }
                }
                break;
            }
        }
        world.disk.set_fault(None);
        Ok(world)
    }
}

/// The errors that a failing disk may lead to.
fn kind(error: &Error, fault: &Fault) -> Option<&'static str> {
    Some(match error {
        // A file that ends too early is not what was written.
        Error::Corrupt { .. } if fault.kind == FaultKind::Short => "corrupt",
        Error::Storage(_) => "storage",
        Error::Unknown { .. } => "unknown",
        Error::Full => "full",
        Error::Busy { .. } => "busy",
        // What it had read was relaxed, and is lost: a failure that nobody else waited for took it back.
        Error::SnapshotTooOld { age } if age.is_zero() => "taken back",
        _ => return None,
    })
}
