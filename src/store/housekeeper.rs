//! Ends what has expired, and files anew what was filed too late.
//!
//! A client of the committer like any other: it looks through the expiry index, asks for sessions
//! to be ended a batch at a time, and leaves the judgement to the committer. Between two batches
//! everybody else gets their turn.

use std::ops::AddAssign;
use std::time::Duration;

use crate::engine::Gauges;
use crate::error::{Error, LimitKind};
use crate::model::container::{ContainerId, Kind};
use crate::store::commit::Work;
use crate::store::core::Core;
use crate::store::courier;
use crate::store::events::Event;
use crate::store::observe;
use crate::store::outcome::Report;
use crate::store::pinned::first_row;
use crate::sync::channel::{Receiver, RecvTimeoutError};

/// How many sessions one commit of the housekeeper looks at: so many, if the log is not too small.
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
    let watch = observe::sweep(core);
    let swept = sweep_all(core);
    watch.swept(core, &swept);
    swept
}

fn sweep_all(core: &Core) -> Result<Swept, Error> {
    let mut swept = Swept::default();
    let mut trouble = Ok(());
    // Those with a name: one that is still in doubt may come to nothing.
    let names = core.names.read().expect("nothing panics while it is held").clone();
    for id in names.into_values() {
        for done in [refile(core, id), sweep_container(core, id)] {
            match done {
                Ok(done) => swept += done,
                Err(error) => trouble = trouble.and(Err(error)),
            }
        }
        if core.has_forwards() {
            // These are no sessions.
            trouble = trouble.and(sweep_container(core, id.of(Kind::Rotated)).map(|_| ()));
        }
    }
    trouble.map(|()| swept)
}

fn sweep_container(core: &Core, id: ContainerId) -> Result<Swept, Error> {
    let mut swept = Swept::default();
    let (mut from, mut most) = (Some(first_row()), BATCH);
    while let Some(start) = from {
        core.check_open()?;
        let (published, now) = (core.snapshots.published(), core.now().as_secs());
        let (rows, next) = core.versions.due(id, published, now, &start, most)?;
        from = next;
        // A page holds what is in memory too: no batch may stall the others.
        for rows in rows.chunks(most) {
            let work = Work::Sweep { container: id, rows: rows.to_vec() };
            match submit(core, work, rows.len()) {
                Err(error) if is_too_much(&error) && most > 1 => {
                    (from, most) = (Some(start), most / 2);
                    break;
                }
                done => swept += done?,
            }
        }
    }
    Ok(swept)
}

/// Files anew what a shorter timeout has left in too late a bucket. A crash in between leaves the
/// place to go on from in the container.
fn refile(core: &Core, id: ContainerId) -> Result<Swept, Error> {
    let (mut swept, mut most) = (Swept::default(), BATCH);
    loop {
        // Container and sessions are those of one snapshot: what was filed before the timeout was
        // shortened is among the sessions, and what was filed after it needs no filing.
        let snapshot = core.hold()?;
        let state = core.container(id, &snapshot);
        let Some(from) = state.refile_from.clone() else { return Ok(swept) };
        let pinned = core.versions.pin(id, snapshot.revision());
        let (mut keys, mut next) = pinned.keys(id, &from, most)?;
        drop((pinned, snapshot));
        // Here, too, a page holds what is in memory.
        if let Some(after) = keys.get(most) {
            next = Some(after.clone());
            keys.truncate(most);
        }
        let (examined, policy) = (keys.len(), state.policy_revision);
        match submit(core, Work::Refile { container: id, policy, from, keys, next }, examined) {
            Err(error) if is_too_much(&error) && most > 1 => most /= 2,
            done => swept += done?,
        }
    }
}

/// Whether a commit was larger than the log takes: fewer sessions at a time may be not.
fn is_too_much(error: &Error) -> bool {
    matches!(error, Error::Limit { limit: LimitKind::TransactionBytes, .. })
}

fn submit(core: &Core, work: Work, examined: usize) -> Result<Swept, Error> {
    let Report { ended, .. } = core.submit(work)?;
    Ok(Swept { examined: examined as u64, ended: ended.len() as u64 })
}

/// Sweeps every so often, until `stop` is closed.
pub(crate) fn run(core: &Core, every: Duration, stop: &Receiver<()>) {
    let mut fold = Fold::default();
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(every) {
        core.there_is_room();
        core.tidy();
        core.events.tell_dropped();
        // What comes of it is for those to hear who commit: it is tried again.
        let _ = courier::acknowledge(core);
        if let Some(since) = fold.stalled(core.engine.gauges(), core.clock.elapsed()) {
            core.event(&Event::FoldStalled { since });
        }
        match sweep(core) {
            Ok(_) | Err(Error::Closed) => {}
            Err(error) => core.event(&Event::SweepFailed { error: error.to_string() }),
        }
    }
}

/// The fold that is being done, and since when that has been seen.
#[derive(Default)]
struct Fold {
    seen: Option<(u64, Duration)>,
    told: bool,
}

impl Fold {
    /// No fold takes as long as this unless it waits for somebody.
    const LONG: Duration = Duration::from_secs(15);

    /// How long one fold has been going on, if that is to be told.
    fn stalled(&mut self, gauges: Gauges, now: Duration) -> Option<Duration> {
        let same = self.seen.filter(|(fold, _)| gauges.folding && *fold == gauges.folds);
        let Some((_, since)) = same else {
            *self = Fold { seen: gauges.folding.then_some((gauges.folds, now)), told: false };
            return None;
        };
        let long = now.saturating_sub(since);
        let tell = long >= Self::LONG && !std::mem::replace(&mut self.told, long >= Self::LONG);
        tell.then_some(long)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fold_that_takes_long_is_told_of_once() {
        let mut fold = Fold::default();
        let mut at = |folds, folding, secs| {
            fold.stalled(Gauges { folds, folding, ..Gauges::default() }, Duration::from_secs(secs))
        };
        assert_eq!([at(0, false, 1), at(0, true, 2), at(0, true, 16)], [None; 3]);
        assert_eq!(at(0, true, 17), Some(Duration::from_secs(15)));
        assert_eq!([at(0, true, 40), at(1, true, 41), at(1, true, 50)], [None; 3]);
        assert_eq!(at(1, true, 56), Some(Duration::from_secs(15)));
    }
}
