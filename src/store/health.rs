//! Whether a store does what it is there for, and if not, why.
//!
//! For a probe: it is asked every few seconds, writes nothing, and waits for nobody who writes. What it
//! finds is put together from counters, and from a few rows at the front of the expiry index.

use std::fmt;
use std::sync::atomic::Ordering;

use serde::Serialize;

use crate::error::Error;
use crate::model::clock::Time;
use crate::store::core::Core;
use crate::store::pinned::first_row;

/// How a store is: see [`Store::health`](crate::Store::health).
///
/// ```
/// # use sessile::Store;
/// let store = Store::memory()?;
/// let health = store.health();
/// assert!(health.ready && health.troubles.is_empty(), "{health}");
/// # Ok::<(), sessile::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Health {
    /// Whether commits are taken, and made durable: the answer to a readiness probe.
    pub ready: bool,
    /// The newest commit that is seen.
    pub revision: u64,
    /// The newest commit that is on the disk.
    pub durable: u64,
    /// How many seconds ago something was last committed; `None`: not since the store was opened.
    pub last_commit_secs: Option<u64>,
    /// Sessions that have not ended, in all containers. Some may have expired and await the sweep.
    pub sessions: u64,
    /// For how many seconds the session has been waiting for its end whose time was over first.
    pub sweep_lag_secs: u64,
    /// Commits that wait for the committer, and how many may.
    pub queued: u64,
    /// See [`Options::queue_max`](crate::Options::queue_max).
    pub queue_max: u64,
    /// The bytes of the store's files.
    pub file_bytes: u64,
    /// What is wrong, or may soon be.
    pub troubles: Vec<Trouble>,
}

/// Something that is wrong with a store, or may soon be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "trouble", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Trouble {
    /// The store was closed. Not ready.
    Closed,
    /// A write or a sync of the commit log has failed; the store is recovering. Not ready.
    StorageFailed,
    /// The disk is full: only ending sessions works. Not ready.
    Full,
    /// As many commits wait as may. Not ready.
    Overloaded,
    /// The commit log cannot be moved into the tables; commits go on until it is full.
    FoldFails,
    /// The tables cannot be read at the moment: sessions that are not in memory cannot be had.
    Unreadable,
    /// Sessions have expired and are not ended in time.
    SweepBehind {
        /// For how many seconds the first of them has been waiting.
        secs: u64,
    },
    /// As many ends await their listener as may before sweeps wait.
    ListenersBehind {
        /// How many.
        ends: u64,
    },
    /// Sessions were found damaged since the store was opened, and are absent. Restore a backup.
    Damaged {
        /// How many.
        sessions: u64,
    },
}

impl Trouble {
    /// Whether nothing but ends is committed meanwhile.
    pub fn stops_commits(&self) -> bool {
        use Trouble::{Closed, Full, Overloaded, StorageFailed};
        matches!(self, Closed | StorageFailed | Full | Overloaded)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Closed => f.write_str("the store is closed"),
            Trouble::StorageFailed => f.write_str("the commit log failed, and is being recovered"),
            Trouble::Full => f.write_str("the disk is full: only ending sessions works"),
            Trouble::Overloaded => f.write_str("as many commits wait as may"),
            Trouble::FoldFails => f.write_str("the commit log cannot be moved into the tables"),
            Trouble::Unreadable => f.write_str("the tables cannot be read"),
            Trouble::SweepBehind { secs } => {
                write!(f, "a session that has expired awaits its end for {secs} s")
            }
            Trouble::ListenersBehind { ends } => write!(f, "{ends} ends await their listener"),
            Trouble::Damaged { sessions } => write!(f, "{sessions} sessions are damaged"),
        }
    }
}

/// The verdict, then one trouble a line.
impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at r{}", if self.ready { "ready" } else { "not ready" }, self.revision)?;
        self.troubles.iter().try_for_each(|trouble| write!(f, "\n{trouble}"))
    }
}

/// A sweep that is later than this is behind: it comes every second, and a batch of it is soon done.
const SWEEP_LAG_MAX_SECS: u64 = 60;

/// How many rows of a container's index are looked at. Those of sessions that were used since they were
/// filed say nothing; if there are none but such, the sweep that files them anew is late by little.
const ROWS: usize = 64;

impl Core {
    pub(crate) fn health(&self) -> Health {
        let now = self.now();
        let gauges = self.engine.gauges();
        let (queued, queue_max) = (self.queued() as u64, self.bounds.queue_max as u64);
        let overdue = self.overdue(now);
        let sweep_lag_secs =
            overdue.as_ref().map_or(0, |since| since.map_or(0, |since| now.since(since).as_secs()));
        let ends = self.ends.pending();
        let possible = [
            (self.check_open().is_err(), Trouble::Closed),
            (gauges.failed, Trouble::StorageFailed),
            (gauges.full, Trouble::Full),
            (queued >= queue_max, Trouble::Overloaded),
            (gauges.stalled, Trouble::FoldFails),
            (matches!(overdue, Err(ref e) if !matches!(e, Error::Closed)), Trouble::Unreadable),
            (sweep_lag_secs > SWEEP_LAG_MAX_SECS, Trouble::SweepBehind { secs: sweep_lag_secs }),
            (ends >= self.bounds.ends_pending_max, Trouble::ListenersBehind { ends }),
            (gauges.damaged > 0, Trouble::Damaged { sessions: gauges.damaged }),
        ];
        let troubles: Vec<_> =
            possible.into_iter().filter_map(|(is_so, trouble)| is_so.then_some(trouble)).collect();
        let last_commit = Time::from_micros(self.counters.last_commit.load(Ordering::Relaxed));
        Health {
            ready: !troubles.iter().any(Trouble::stops_commits),
            revision: self.snapshots.published().get(),
            durable: self.snapshots.durable().get(),
            last_commit_secs: (last_commit > Time::default())
                .then(|| now.since(last_commit).as_secs()),
            sessions: self.sessions(),
            sweep_lag_secs,
            queued,
            queue_max,
            file_bytes: self.engine.file_bytes(),
            troubles,
        }
    }

    /// How many sessions have not ended.
    pub(crate) fn sessions(&self) -> u64 {
        self.versions.containers().iter().map(|state| state.count).sum()
    }

    /// Since when the session has been expired that was the first to expire and has not ended.
    pub(crate) fn overdue(&self, now: Time) -> Result<Option<Time>, Error> {
        let snapshot = self.hold()?;
        let mut first = None;
        for state in self.versions.containers() {
            let (id, published) = (state.id, snapshot.revision());
            let (rows, _) = self.versions.due(id, published, now.as_secs(), &first_row(), ROWS)?;
            for (_, key) in rows.into_iter().take(ROWS) {
                let record = self.versions.read(&(id, key), published)?;
                let expiry = record.and_then(|record| record.expiry(&state.policy));
                if let Some(expiry) = expiry.filter(|expiry| *expiry <= now) {
                    first = Some(first.map_or(expiry, |first: Time| first.min(expiry)));
                    break;
                }
            }
        }
        Ok(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::clock::ManualClock;
    use crate::model::policy::Policy;
    use crate::store::Options;

    #[test]
    fn a_sweep_that_does_not_come_is_told_of() {
        let clock = ManualClock::new(Time::from_secs(1_000_000));
        let store = Options::new().clock(clock.clone()).sweep_every(None).memory().unwrap();
        let policy = Policy::new().period_secs(10).timeout_secs(60);
        let visitors = store.container_with("visitors", policy).unwrap();
        store.transact(|txn| txn.create(&visitors, "ada").map(|_| ())).unwrap();
        clock.advance_secs(50);
        // Its row stays where it was; nobody is overdue for that.
        store.transact(|txn| txn.get(&visitors, "ada").map(|_| ())).unwrap();
        clock.advance_secs(30);
        let health = store.health();
        assert_eq!((health.sweep_lag_secs, health.sessions), (0, 1));
        assert_eq!(health.last_commit_secs, Some(30));
        clock.advance_secs(40 + 61);
        let health = store.health();
        assert_eq!(health.troubles, [Trouble::SweepBehind { secs: 61 }]);
        assert!(health.ready, "who is behind still takes commits");
        store.sweep().unwrap();
        let health = store.health();
        assert_eq!((health.sessions, health.sweep_lag_secs), (0, 0));
        assert!(health.troubles.is_empty());
    }

    #[test]
    fn a_store_that_is_closed_is_not_ready() {
        let store = Options::new().memory().unwrap();
        let other = store.clone();
        store.close().unwrap();
        let health = other.health();
        assert_eq!((health.ready, &health.troubles[..]), (false, &[Trouble::Closed][..]));
        assert_eq!(health.to_string(), "not ready at r0\nthe store is closed");
    }
}
