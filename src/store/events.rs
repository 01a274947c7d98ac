//! What happened, for those who prefer to receive.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::model::clock::ClockTrouble;
use crate::model::merge::ResolverTrouble;
use crate::model::session::Revision;
use crate::store::listeners::{EndReason, EndedSession};
use crate::store::lock;

/// Something that happened in a store. No event holds a token; an ended session's data are behind
/// its methods, not in its `Debug`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A session has ended, and the end is durable.
    Ended(Arc<EndedSession>, EndReason),
    /// A listener failed or panicked; the store went on.
    ListenerFailed {
        /// The name it was registered under.
        listener: String,
        /// Whether it panicked.
        panicked: bool,
    },
    /// A policy names a listener that was not registered at open; it was ignored.
    ListenerMissing {
        /// The name that the policy gives.
        listener: String,
    },
    /// A policy's resolver had no answer; the transaction conflicted.
    ResolverFailed {
        /// The name that the policy gives.
        resolver: String,
        /// Why.
        trouble: ResolverTrouble,
    },
    /// The wall clock jumped; the store's time did not.
    Clock(ClockTrouble),
    /// Transactions lived too long; their next use gets
    /// [`Error::SnapshotTooOld`](crate::Error::SnapshotTooOld).
    SnapshotsGivenUp {
        /// How many.
        count: usize,
        /// The age that is allowed.
        age_max: Duration,
    },
    /// A write or a sync of the commit log failed. Commits fail until the store has found out what is
    /// durable; it goes on trying.
    StorageFailed {
        /// What the storage said.
        error: String,
    },
    /// The store goes on after a failure.
    StorageRecovered {
        /// The last commit that is durable.
        durable: Revision,
    },
    /// After an unclean end the commit log was replayed.
    Replayed {
        /// How many batches of commits were found.
        batches: u64,
        /// How many sessions they had changed.
        sessions: u64,
    },
    /// What is in the commit log cannot be moved into the tables at the moment. Commits go on until
    /// the log is full; the store goes on trying.
    FoldFailed {
        /// What went wrong.
        error: String,
    },
    /// The tables have been being written for so long: perhaps somebody who views the store from
    /// another process has been stopped while it held a lock. Commits go on until the log is full.
    FoldStalled {
        /// How long.
        since: Duration,
    },
    /// The bytes of a session on the disk are damaged. It is absent from now on.
    Damaged {
        /// The name of the container.
        container: String,
        /// The fingerprint of the session's key.
        session: String,
    },
    /// A container's count is not the number of its sessions.
    Miscounted {
        /// The name of the container.
        container: String,
    },
    /// The housekeeper could not do its work; it will try again.
    SweepFailed {
        /// What it was told.
        error: String,
    },
}

/// How many events wait for one subscriber before the next is dropped.
const CAPACITY: usize = 1_024;

/// Those who receive. A slow one loses events, and nobody waits for it.
#[derive(Default)]
pub(crate) struct Events(Mutex<Vec<Sender<Event>>>);

impl Events {
    pub(crate) fn subscribe(&self) -> Receiver<Event> {
        let (sender, receiver) = bounded(CAPACITY);
        lock(&self.0).push(sender);
        receiver
    }

    pub(crate) fn send(&self, event: &Event, dropped: &AtomicU64) {
        lock(&self.0).retain(|subscriber| match subscriber.try_send(event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                dropped.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        });
    }
}
