//! Where it lies: a batch of transactions in, durable when it returns.
//!
//! This is the seam. Above it are merging, snapshots, limits and expiry; below it are bytes and
//! disks. An engine is told *results* (this session is now that record), never operations, so that
//! doing them twice is harmless. It is cut at batches, not at single keys, because an engine on
//! another machine must be able to answer a batch in one round trip.
//!
//! Deliberately absent: conflicts. Both engines here have one writer, the committer above, which
//! has judged every transaction before it hands over the batch.

pub(crate) mod embedded;
pub(crate) mod memory;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::Error;
use crate::model::clock::Time;
use crate::model::container::{ContainerId, ContainerState, Place};
use crate::model::key::Key;
use crate::model::session::{Record, Revision};

/// What one transaction leaves behind.
#[derive(Clone, Debug)]
pub(crate) struct Commit {
    pub revision: Revision,
    /// The session at each place is now this; `None`: it has ended.
    pub sessions: Vec<(Place, Option<Arc<Record>>)>,
    pub containers: Vec<Arc<ContainerState>>,
}

/// Transactions that become durable together, in this order.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// The store's time, to go on from after a restart.
    pub time: Time,
    /// The last commit that is durable with this batch.
    pub revision: Revision,
    pub commits: Vec<Commit>,
}

impl Batch {
    /// The last state that the batch gives to each session, by place.
    fn sessions(&self) -> BTreeMap<&Place, Option<&Arc<Record>>> {
        let sessions = self.commits.iter().flat_map(|commit| &commit.sessions);
        sessions.map(|(place, record)| (place, record.as_ref())).collect()
    }
}

/// What an engine found when it was opened.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub view: Arc<dyn View>,
    pub revision: Revision,
    /// The latest time in the store.
    pub time: Time,
    pub containers: Vec<ContainerState>,
}

/// Called by the engine when a newer view holds everything up to a revision. The store puts its
/// current view and forgets the versions that only the older view needed, in one step.
pub(crate) type OnCheckpoint = Box<dyn Fn(Arc<dyn View>, Revision) + Send + Sync>;

/// A place where committed sessions lie.
pub(crate) trait Engine: Send + Sync {
    /// Called once, before the first batch.
    fn on_checkpoint(&mut self, callback: OnCheckpoint);

    /// Makes a batch durable, all of it or nothing. After an error it may be either.
    fn apply(&self, batch: &Batch) -> Result<(), Error>;

    /// Ends the engine. Everything applied is durable already; what is reported is trouble.
    fn close(&self) -> Result<(), Error>;
}

/// One unchanging state of the tables. Keep it for a short time: it keeps space from being reused.
pub(crate) trait View: std::fmt::Debug + Send + Sync {
    fn read(&self, place: &Place) -> Result<Option<Arc<Record>>, Error>;

    /// Up to `max` sessions of a container in the order of their keys, from `from` on.
    fn scan(
        &self,
        container: ContainerId,
        from: &Key,
        max: usize,
    ) -> Result<Vec<(Key, Arc<Record>)>, Error>;

    /// Up to `max` rows of the expiry index in the order of bucket and key: those of buckets up to
    /// `until`, from the row `from` on.
    fn due(
        &self,
        container: ContainerId,
        until: u64,
        from: &(u64, Key),
        max: usize,
    ) -> Result<Vec<(u64, Key)>, Error>;
}

/// The first key after `key`.
pub(crate) fn successor(key: &Key) -> Key {
    Key::from([key.as_bytes(), &[0]].concat())
}
