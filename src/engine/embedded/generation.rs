//! What is in the log and not in the tables, as final states.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::log::Segment;
use crate::engine::Batch;
use crate::model::clock::Time;
use crate::model::container::{ContainerId, ContainerState, Place};
use crate::model::session::{Record, Revision};

/// A session, and the commit that left it so; without a record if it has ended.
pub(super) type Dated = (Revision, Option<Arc<Record>>);

/// The last states that a stretch of the log gives to sessions and containers.
#[derive(Debug, Default)]
pub(super) struct Generation {
    pub sessions: HashMap<Place, Dated>,
    pub containers: BTreeMap<ContainerId, Arc<ContainerState>>,
    /// The last commit of the stretch.
    pub last: Revision,
    pub time: Time,
    /// What the sessions weigh, about.
    pub bytes: usize,
}

/// A generation that gets no more, and is to be folded.
#[derive(Debug)]
pub(super) struct Frozen {
    pub generation: Generation,
    /// How much of the log it takes up.
    pub log_bytes: u64,
    /// Where it lies in the log.
    pub segments: Vec<Segment>,
    /// Whether the segments may be written again: not after a failure, and not after a crash that
    /// may have been one.
    pub reusable: bool,
}

impl Generation {
    /// Takes in a batch that is durable.
    pub(super) fn take_in(&mut self, batch: Batch) {
        self.time = self.time.max(batch.time);
        for commit in batch.commits {
            self.last = commit.revision;
            for change in commit.sessions {
                self.put(change.place, commit.revision, change.after);
            }
            self.containers.extend(commit.containers.into_iter().map(|state| (state.id, state)));
        }
    }

    pub(super) fn put(&mut self, place: Place, revision: Revision, record: Option<Arc<Record>>) {
        self.bytes += weight(&record);
        if let Some((_, old)) = self.sessions.insert(place, (revision, record)) {
            self.bytes -= weight(&old);
        }
    }

    /// What it holds, in the order of the tables, so that neighbours share a page.
    pub(super) fn sorted(&self) -> Vec<(&Place, Option<&Arc<Record>>)> {
        let states = self.sessions.iter().map(|(place, (_, record))| (place, record.as_ref()));
        let mut sorted: Vec<_> = states.collect();
        sorted.sort_unstable_by_key(|(place, _)| *place);
        sorted
    }
}

/// What a state takes up in memory, estimated: the map's entry and the record's.
fn weight(record: &Option<Arc<Record>>) -> usize {
    const ENTRY: usize = 160;
    ENTRY + record.as_ref().map_or(0, |record| record.weight())
}
