//! Which snapshots live, and how old they are.
//!
//! Every begin and every end of a transaction passes here, so the registry is spread over shards
//! that threads pick once: no lock is shared by all. The oldest living snapshot decides which
//! versions may go. One that lives too long, or for whose sake too much is kept, is *given up*: it
//! gets an error at its next use, instead of memory without bound.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::model::session::Revision;
use crate::store::lock;

/// How many locks the snapshots are spread over.
const SHARDS: usize = 16;

#[derive(Default)]
pub(crate) struct Snapshots {
    shards: [Mutex<Vec<Arc<Living>>>; SHARDS],
    published: AtomicU64,
    durable: AtomicU64,
}

struct Living {
    revision: Revision,
    /// On the clock of elapsed time.
    begun: Duration,
    given_up: AtomicBool,
}

/// A registered snapshot. What it may see is kept until this is dropped or given up.
pub(crate) struct Snapshot {
    registry: Arc<Snapshots>,
    living: Arc<Living>,
    shard: usize,
    released: AtomicBool,
}

impl Snapshots {
    /// The revision that a transaction beginning now would see.
    pub(crate) fn published(&self) -> Revision {
        Revision(self.published.load(Ordering::Acquire))
    }

    /// From now on transactions see everything up to `revision`.
    pub(crate) fn publish(&self, revision: Revision) {
        self.published.store(revision.0, Ordering::Release);
    }

    /// The last commit that nothing can take back.
    pub(crate) fn durable(&self) -> Revision {
        Revision(self.durable.load(Ordering::Acquire))
    }

    /// From now on everything up to `revision` is durable.
    pub(crate) fn sync(&self, revision: Revision) {
        self.durable.store(revision.0, Ordering::Release);
    }

    /// Registers a snapshot of what is published.
    pub(crate) fn register(self: &Arc<Self>, now: Duration) -> Snapshot {
        let shard = shard_of_this_thread() % self.shards.len();
        let mut living = lock(&self.shards[shard]);
        // Read under the lock: who looks for the oldest snapshot after this finds it.
        let revision = self.published();
        let snapshot = Arc::new(Living { revision, begun: now, given_up: AtomicBool::new(false) });
        living.push(Arc::clone(&snapshot));
        let (registry, released) = (Arc::clone(self), AtomicBool::new(false));
        Snapshot { registry, living: snapshot, shard, released }
    }

    /// The revision of the oldest living snapshot, or what is published if there is none.
    pub(crate) fn oldest(&self) -> Revision {
        // Published first: a snapshot registered after its shard was read is not older than this.
        let published = self.published();
        let oldest = |shard: &Mutex<Vec<Arc<Living>>>| lock(shard).iter().map(|l| l.revision).min();
        self.shards.iter().filter_map(oldest).min().map_or(published, |r| r.min(published))
    }

    /// Gives up every snapshot that began at or before `deadline`; how many there were.
    pub(crate) fn give_up_older_than(&self, deadline: Duration) -> usize {
        self.give_up(|living| living.begun <= deadline)
    }

    /// Gives up the snapshots of the oldest revision; how many there were.
    pub(crate) fn give_up_oldest(&self) -> usize {
        let oldest = self.oldest();
        match oldest < self.published() {
            true => self.give_up(|living| living.revision == oldest),
            false => 0,
        }
    }

    /// Gives up every snapshot that has seen more than `revision`.
    pub(crate) fn give_up_newer_than(&self, revision: Revision) -> usize {
        self.give_up(|living| living.revision > revision)
    }

    fn give_up(&self, which: impl Fn(&Living) -> bool) -> usize {
        let mut given_up = 0;
        for shard in &self.shards {
            lock(shard).retain(|living| {
                let out = which(living);
                if out {
                    living.given_up.store(true, Ordering::Release);
                    given_up += 1;
                }
                !out
            });
        }
        given_up
    }

    /// How many snapshots live.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }
}

impl Snapshot {
    pub(crate) fn revision(&self) -> Revision {
        self.living.revision
    }

    pub(crate) fn begun(&self) -> Duration {
        self.living.begun
    }

    /// Ends the snapshot's life early; nothing is kept for it any more.
    pub(crate) fn release(&self) {
        if self.released.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut shard = lock(&self.registry.shards[self.shard]);
        if let Some(at) = shard.iter().position(|living| Arc::ptr_eq(living, &self.living)) {
            shard.swap_remove(at);
        }
    }

    /// Whether what this snapshot saw may be gone. Ask after a read, not before.
    pub(crate) fn is_given_up(&self) -> bool {
        self.living.given_up.load(Ordering::Acquire)
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.release();
    }
}

/// A number that differs between threads, as far as there are shards.
fn shard_of_this_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed));
    }
    SHARD.get()
}
