//! Which snapshots live, and how old they are.
//!
//! Every begin and every end of a transaction passes here, so the registry is spread over shards
//! that threads pick once: no lock is shared by all. The oldest living snapshot decides which
//! versions may go. One that lives too long, or for whose sake too much is kept, is *given up*: it
//! gets an error at its next use, instead of memory without bound.

use std::ops::Deref;
use std::time::Duration;

use crate::model::session::Revision;
use crate::store::lock;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{self, Mutex};

/// How many locks the snapshots are spread over.
pub(crate) const SHARDS: usize = 16;

#[derive(Default)]
pub(crate) struct Snapshots {
    shards: [Shard; SHARDS],
    published: AtomicU64,
    durable: AtomicU64,
    /// How many times snapshots have been given up: who finds none since it began was not.
    given_up: AtomicU64,
}

/// Far enough from its neighbours that threads do not take turns with a cache line.
#[derive(Default)]
#[repr(align(128))]
struct Shard(Mutex<Registered>);

#[derive(Default)]
struct Registered {
    next: u64,
    living: Vec<Living>,
}

struct Living {
    /// Its number within the shard, never used twice.
    number: u64,
    revision: Revision,
    begun: Duration,
}

/// A registered snapshot. What it may see is kept until it is released or given up.
pub(crate) struct Snapshot {
    shard: usize,
    number: u64,
    revision: Revision,
    /// On the clock of elapsed time.
    begun: Duration,
    /// How many times snapshots had been given up.
    given_up: u64,
}

impl Snapshot {
    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn begun(&self) -> Duration {
        self.begun
    }
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

    /// Registers a snapshot of what is published. It is to be [released](Snapshots::release).
    pub(crate) fn register(&self, begun: Duration) -> Snapshot {
        let shard = shard_of_this_thread();
        let mut registered = lock(&self.shards[shard].0);
        // Read under the lock: who looks for the oldest snapshot after this finds it.
        let revision = self.published();
        let given_up = self.given_up.load(Ordering::Acquire);
        let number = registered.next;
        registered.next += 1;
        registered.living.push(Living { number, revision, begun });
        Snapshot { shard, number, revision, begun, given_up }
    }

    /// The same, until it is dropped.
    pub(crate) fn hold(&self, begun: Duration) -> Held<'_> {
        Held { snapshots: self, snapshot: self.register(begun) }
    }

    /// Ends a snapshot's life; nothing is kept for it any more.
    pub(crate) fn release(&self, snapshot: &Snapshot) {
        let living = &mut lock(&self.shards[snapshot.shard].0).living;
        // Most that end are among the last that began.
        if let Some(at) = living.iter().rposition(|living| living.number == snapshot.number) {
            living.swap_remove(at);
        }
    }

    /// Whether what a snapshot saw may be gone. Ask after a read, not before.
    pub(crate) fn is_given_up(&self, snapshot: &Snapshot) -> bool {
        if self.given_up.load(Ordering::Acquire) == snapshot.given_up {
            return false;
        }
        let living = &lock(&self.shards[snapshot.shard].0).living;
        living.iter().all(|living| living.number != snapshot.number)
    }

    /// The revision of the oldest living snapshot, or what is published if there is none.
    pub(crate) fn oldest(&self) -> Revision {
        // Published first: a snapshot registered after its shard was read is not older than this.
        let published = self.published();
        let oldest = |shard: &Shard| lock(&shard.0).living.iter().map(|l| l.revision).min();
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
            let living = &mut lock(&shard.0).living;
            let before = living.len();
            living.retain(|living| !which(living));
            given_up += before - living.len();
        }
        if given_up > 0 {
            // Before what they saw is dropped: who reads that it is gone reads this too.
            self.given_up.fetch_add(1, Ordering::AcqRel);
        }
        given_up
    }

    /// How many snapshots live.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(&shard.0).living.len()).sum()
    }
}

/// A snapshot that is released when this is dropped.
pub(crate) struct Held<'a> {
    snapshots: &'a Snapshots,
    snapshot: Snapshot,
}

impl Deref for Held<'_> {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.snapshot
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.snapshots.release(&self.snapshot);
    }
}

/// A number below [`SHARDS`] that differs between threads, as far as there are so many.
pub(crate) fn shard_of_this_thread() -> usize {
    sync::number_of_this_thread() % SHARDS
}
