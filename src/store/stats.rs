//! What the store has been doing.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that the layers tick. Reading them takes no lock.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub commits: AtomicU64,
    pub batches: AtomicU64,
    pub merges: AtomicU64,
    pub conflicts: AtomicU64,
    pub retries: AtomicU64,
    pub busy: AtomicU64,
    pub started: AtomicU64,
    pub ended: AtomicU64,
    pub expired: AtomicU64,
    pub listener_failures: AtomicU64,
    pub snapshots_given_up: AtomicU64,
    pub events_dropped: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// What a store has been doing since it was opened, and how it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// The newest revision.
    pub revision: u64,
    /// Transactions committed.
    pub commits: u64,
    /// Batches they were made durable in.
    pub batches: u64,
    /// Sessions into which concurrent changes were merged.
    pub merges: u64,
    /// Commits refused because of a conflict.
    pub conflicts: u64,
    /// Attempts that `transact` made after the first.
    pub retries: u64,
    /// Commits refused because the queue stayed full.
    pub busy: u64,
    /// Sessions created.
    pub started: u64,
    /// Sessions ended, for whatever reason.
    pub ended: u64,
    /// Those of them whose time was over.
    pub expired: u64,
    /// Listeners that failed or panicked.
    pub listener_failures: u64,
    /// Transactions that lived too long.
    pub snapshots_given_up: u64,
    /// Events that a subscriber did not take in time.
    pub events_dropped: u64,
    /// Living snapshots.
    pub snapshots: usize,
    /// Sessions with versions in memory.
    pub versioned_sessions: usize,
    /// What those versions weigh, about.
    pub version_bytes: usize,
    /// Commits that wait for the committer.
    pub queued: usize,
    /// Ends that await their listener.
    pub ends_pending: u64,
}

/// One `name value` a line.
impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("revision", self.revision),
            ("commits", self.commits),
            ("batches", self.batches),
            ("merges", self.merges),
            ("conflicts", self.conflicts),
            ("retries", self.retries),
            ("busy", self.busy),
            ("started", self.started),
            ("ended", self.ended),
            ("expired", self.expired),
            ("listener_failures", self.listener_failures),
            ("snapshots_given_up", self.snapshots_given_up),
            ("events_dropped", self.events_dropped),
            ("snapshots", self.snapshots as u64),
            ("versioned_sessions", self.versioned_sessions as u64),
            ("version_bytes", self.version_bytes as u64),
            ("queued", self.queued as u64),
            ("ends_pending", self.ends_pending),
        ];
        rows.iter().try_for_each(|(name, value)| writeln!(f, "{name:<20}{value:>14}"))
    }
}
