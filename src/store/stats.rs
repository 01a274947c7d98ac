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
    pub overruled: AtomicU64,
    pub unknown_tokens: AtomicU64,
    pub ambiguous_tokens: AtomicU64,
    pub retries: AtomicU64,
    pub busy: AtomicU64,
    pub started: AtomicU64,
    pub ended: AtomicU64,
    pub expired: AtomicU64,
    pub rotated: AtomicU64,
    pub evicted: AtomicU64,
    pub warned: AtomicU64,
    pub listener_failures: AtomicU64,
    pub dead_letters: AtomicU64,
    pub ends_unwritten: AtomicU64,
    pub snapshots_given_up: AtomicU64,
    pub events_dropped: AtomicU64,
    pub storage_failures: AtomicU64,
    /// When something was last committed, in microseconds; zero: not yet.
    pub last_commit: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// Each name stands once: it is a field, and a line when the whole is shown.
macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What a store has been doing since it was opened, and how it stands.
        #[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// One `name value` a line.
        impl fmt::Display for Stats {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $(writeln!(f, "{:<20}{:>14}", stringify!($name), self.$name)?;)*
                Ok(())
            }
        }
    };
}

stats! {
    /// The newest revision.
    revision,
    /// Sessions that have not ended. Some may have expired and await the sweep.
    sessions,
    /// Transactions committed.
    commits,
    /// Batches they were made durable in.
    batches,
    /// Sessions into which concurrent changes were merged.
    merges,
    /// Commits refused because of a conflict.
    conflicts,
    /// Attributes at which a commit won that would have conflicted: see
    /// [`Transaction::win_conflicts`](crate::Transaction::win_conflicts).
    overruled,
    /// Requests whose token meant no session: see [`Event::UnknownToken`](crate::Event::UnknownToken).
    unknown_tokens,
    /// Requests that brought several tokens: see
    /// [`Event::AmbiguousToken`](crate::Event::AmbiguousToken).
    ambiguous_tokens,
    /// Attempts that `transact` made after the first.
    retries,
    /// Commits refused because the queue stayed full.
    busy,
    /// Sessions created.
    started,
    /// Sessions ended, for whatever reason.
    ended,
    /// Those of them whose time was over.
    expired,
    /// Those of them that made room for others.
    evicted,
    /// Warnings that a session expires soon.
    warned,
    /// Sessions that were given another key.
    rotated,
    /// Listeners that failed or panicked, each time.
    listener_failures,
    /// Ends that no listener took although it was called as often as it may be: see
    /// [`Event::EndGivenUp`](crate::Event::EndGivenUp).
    dead_letters,
    /// Ends that were not written down for their listeners, because the disk was full or the commit
    /// too large with them. They are told all the same, unless there is a crash before.
    ends_unwritten,
    /// Transactions that lived too long, or had read what a failure of the storage took back.
    snapshots_given_up,
    /// Events that a subscriber did not take in time.
    events_dropped,
    /// Living snapshots.
    snapshots,
    /// Sessions in memory.
    resident_sessions,
    /// What they weigh, about, in bytes.
    resident_bytes,
    /// Replaced versions that are kept for the sake of old snapshots.
    versions,
    /// What they weigh, about, in bytes.
    version_bytes,
    /// Commits that wait for the committer.
    queued,
    /// Ends that await their listener; of those that an earlier process has left behind on the disk only
    /// the next.
    ends_pending,
    /// Bytes of the commit log that are not in the tables yet.
    log_bytes,
    /// Sessions that were changed since they were last written to the tables.
    dirty_sessions,
    /// What those weigh, about, in bytes.
    dirty_bytes,
    /// How often the commit log was moved into the tables.
    folds,
    /// How often that failed, and was tried again.
    fold_failures,
    /// Writes and syncs of the commit log that failed.
    storage_failures,
    /// How often the store went on after such a failure.
    recoveries,
    /// Sessions found damaged on the disk, and absent since.
    damaged_sessions,
}
