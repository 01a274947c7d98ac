//! Ends what has expired, and files anew what was filed too late.
//!
//! A client of the committer like any other: it looks through the expiry index, asks for sessions
//! to be ended a batch at a time, and leaves the judgement to the committer. Between two batches
//! everybody else gets their turn.

use std::ops::AddAssign;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::error::Error;
use crate::model::container::ContainerId;
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

/// Sweeps until nothing is due. Trouble in one container does not keep others from being swept.
pub(crate) fn sweep(core: &Core) -> Result<Swept, Error> {
    let mut swept = Swept::default();
    let mut trouble = Ok(());
    for state in core.versions.containers() {
        for done in [refile(core, state.id), sweep_container(core, state.id)] {
            match done {
                Ok(done) => swept += done,
                Err(error) => trouble = trouble.and(Err(error)),
            }
        }
    }
    trouble.map(|()| swept)
}

fn sweep_container(core: &Core, id: ContainerId) -> Result<Swept, Error> {
    let mut swept = Swept::default();
    let mut from = Some(first_row());
    while let Some(start) = from {
        core.check_open()?;
        let (rows, next) = core.versions.due(id, core.now().as_secs(), &start, BATCH)?;
        from = next;
        // A page holds what is in memory too: no batch may stall the others.
        for rows in rows.chunks(BATCH) {
            let work = Work::Sweep { container: id, rows: rows.to_vec() };
            swept += submit(core, work, rows.len())?;
        }
    }
    Ok(swept)
}

/// Files anew what a shorter timeout has left in too late a bucket. A crash in between leaves the
/// place to go on from in the container.
fn refile(core: &Core, id: ContainerId) -> Result<Swept, Error> {
    let mut swept = Swept::default();
    loop {
        // Container and sessions are those of one snapshot: what was filed before the timeout was
        // shortened is among the sessions, and what was filed after it needs no filing.
        let snapshot = core.begin()?;
        let state = core.container(id, &snapshot);
        let Some(from) = state.refile_from.clone() else { return Ok(swept) };
        let pinned = core.versions.pin(id, snapshot.revision());
        let (keys, next) = pinned.keys(id, &from, BATCH)?;
        drop((pinned, snapshot));
        let (examined, policy) = (keys.len(), state.policy_revision);
        swept += submit(core, Work::Refile { container: id, policy, from, keys, next }, examined)?;
    }
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
