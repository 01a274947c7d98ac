//! Ends what has expired, and files anew what was filed too late.
//!
//! A client of the committer like any other: it looks through the expiry index, asks for sessions
//! to be ended a batch at a time, and leaves the judgement to the committer. Between two batches
//! everybody else gets their turn.

use std::ops::AddAssign;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::error::Error;
use crate::model::container::ContainerState;
use crate::store::commit::Work;
use crate::store::core::Core;
use crate::store::events::Event;
use crate::store::outcome::Report;
use crate::store::versions::first_row;

/// How many sessions one commit of the housekeeper looks at.
const BATCH: usize = 256;

/// What a sweep has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Swept {
    /// Sessions that were looked at because their bucket was due or might be too late.
    pub examined: u64,
    /// Those of them that had expired and have ended now.
    pub ended: u64,
}

impl AddAssign for Swept {
    fn add_assign(&mut self, other: Self) {
        self.examined += other.examined;
        self.ended += other.ended;
    }
}

/// Sweeps until nothing is due.
pub(crate) fn sweep(core: &Core) -> Result<Swept, Error> {
    let mut swept = Swept::default();
    for state in core.versions.containers() {
        swept += refile(core, &state)?;
        swept += sweep_container(core, &state)?;
    }
    Ok(swept)
}

fn sweep_container(core: &Core, state: &ContainerState) -> Result<Swept, Error> {
    let mut swept = Swept::default();
    let mut from = Some(first_row());
    while let Some(start) = from {
        let pinned = core.versions.pin(state.id, core.snapshots.published());
        let (rows, next) = pinned.due(state.id, core.now().as_secs(), &start, BATCH)?;
        drop(pinned);
        from = next;
        // A page holds what is in memory too: no batch may stall the others.
        for rows in rows.chunks(BATCH) {
            let work = Work::Sweep { container: state.id, rows: rows.to_vec() };
            swept += submit(core, work, rows.len())?;
        }
    }
    Ok(swept)
}

/// Files anew what a shorter timeout has left in too late a bucket. A crash in between leaves the
/// place to go on from in the container.
fn refile(core: &Core, state: &ContainerState) -> Result<Swept, Error> {
    let mut swept = Swept::default();
    let mut from = state.refile_from.clone();
    while let Some(start) = from {
        let pinned = core.versions.pin(state.id, core.snapshots.published());
        let (rows, next) = pinned.scan(state.id, &start, BATCH)?;
        drop(pinned);
        let keys: Vec<_> = rows.into_iter().map(|(key, _)| key).collect();
        let examined = keys.len();
        let work = Work::Refile { container: state.id, from: start, keys, next: next.clone() };
        swept += submit(core, work, examined)?;
        from = next;
    }
    Ok(swept)
}

fn submit(core: &Core, work: Work, examined: usize) -> Result<Swept, Error> {
    let Report { ended, .. } = core.submit(work)?;
    Ok(Swept { examined: examined as u64, ended: ended.len() as u64 })
}

/// Sweeps every so often, until `stop` is closed.
pub(crate) fn run(core: &Core, every: Duration, stop: &Receiver<()>) {
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(every) {
        core.there_is_room();
        core.tidy();
        match sweep(core) {
            Ok(_) | Err(Error::Closed) => {}
            Err(error) => core.event(&Event::SweepFailed { error: error.to_string() }),
        }
    }
}
