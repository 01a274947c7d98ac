//! What the parts of an open store share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::task::Waker;
use std::time::Duration;

use crossbeam_channel::{SendTimeoutError, Sender, TrySendError};

use crate::error::Error;
use crate::model::clock::{Clock, StoreTime, Time};
use crate::model::container::{ContainerId, ContainerState};
use crate::model::merge::Resolvers;
use crate::store::chance::Chance;
use crate::store::commit::{Request, Work};
use crate::store::events::{Event, Events};
use crate::store::listeners::{Ends, Registered};
use crate::store::lock;
use crate::store::outcome::{Report, slot};
use crate::store::snapshots::{Snapshot, Snapshots};
use crate::store::stats::{Counters, Stats};
use crate::store::versions::Versions;

/// How much is allowed to pile up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub queue_max: usize,
    pub wait_budget: Duration,
    pub snapshot_age_max: Duration,
    pub version_bytes_max: usize,
    pub ends_pending_max: u64,
}

pub(crate) struct Core {
    pub clock: Arc<dyn Clock>,
    pub time: Mutex<StoreTime>,
    pub chance: Chance,
    pub bounds: Bounds,
    pub versions: Versions,
    pub snapshots: Arc<Snapshots>,
    pub names: RwLock<BTreeMap<Arc<str>, ContainerId>>,
    pub resolvers: Resolvers,
    pub listeners: Registered,
    pub ends: Ends,
    pub events: Events,
    pub counters: Counters,
    /// `None` once the store is closed.
    pub queue: RwLock<Option<Sender<Request>>>,
    /// Tasks that found the queue full.
    pub without_room: Mutex<Vec<Waker>>,
    pub anyone_without_room: AtomicBool,
    /// The failure of the storage that ended all committing.
    pub fence: OnceLock<Error>,
}

impl Core {
    /// The store's time: never goes back.
    pub(crate) fn now(&self) -> Time {
        let (now, trouble) = lock(&self.time).read(self.clock.wall(), self.clock.elapsed());
        if let Some(trouble) = trouble {
            self.event(&Event::Clock(trouble));
        }
        now
    }

    pub(crate) fn event(&self, event: &Event) {
        self.events.send(event, &self.counters.events_dropped);
    }

    pub(crate) fn begin(&self) -> Result<Snapshot, Error> {
        self.check_open()?;
        Ok(self.snapshots.register(self.clock.elapsed()))
    }

    pub(crate) fn check_open(&self) -> Result<(), Error> {
        match &*self.queue.read().expect("nothing panics while it is held") {
            Some(_) => Ok(()),
            None => Err(Error::Closed),
        }
    }

    /// Takes no more commits; those that are queued are finished.
    pub(crate) fn refuse(&self) {
        drop(self.queue.write().expect("nothing panics while it is held").take());
    }

    pub(crate) fn container(&self, id: ContainerId, snapshot: &Snapshot) -> Arc<ContainerState> {
        let state = self.versions.container(id, snapshot.revision());
        state.expect("a handle is made of a container that exists, and none is ever removed")
    }

    /// Gives up snapshots that are too old or cost too much, and drops what nobody sees any more.
    pub(crate) fn tidy(&self) {
        let age_max = self.bounds.snapshot_age_max;
        let mut given_up = match self.clock.elapsed().checked_sub(age_max) {
            Some(deadline) => self.snapshots.give_up_older_than(deadline),
            None => 0,
        };
        self.versions.forget(self.snapshots.oldest());
        self.versions.forget_containers(self.snapshots.oldest());
        while self.versions.bytes() > self.bounds.version_bytes_max {
            match self.snapshots.give_up_oldest() {
                0 => break,
                count => given_up += count,
            }
            self.versions.forget(self.snapshots.oldest());
        }
        if given_up > 0 {
            Counters::add(&self.counters.snapshots_given_up, given_up);
            self.event(&Event::SnapshotsGivenUp { count: given_up, age_max });
        }
    }

    /// Queues work and blocks until its verdict is there.
    pub(crate) fn submit(&self, work: Work) -> Result<Report, Error> {
        let since = self.clock.elapsed();
        let budget = self.bounds.wait_budget;
        if !self.may_end(&work, budget) {
            return Err(self.busy(since));
        }
        let (reply, waiting) = slot();
        let sent = {
            let queue = self.queue.read().expect("nothing panics while it is held").clone();
            queue.ok_or(Error::Closed)?.send_timeout(Request { work, reply }, budget)
        };
        match sent {
            Ok(()) => waiting.wait(),
            Err(SendTimeoutError::Timeout(_)) => Err(self.busy(since)),
            Err(SendTimeoutError::Disconnected(_)) => Err(Error::Closed),
        }
    }

    /// Queues work if there is room; gives it back if there is none.
    pub(crate) fn try_submit(&self, request: Request) -> Result<Option<Request>, Error> {
        if !self.may_end(&request.work, Duration::ZERO) {
            return Ok(Some(request));
        }
        let queue = self.queue.read().expect("nothing panics while it is held").clone();
        match queue.ok_or(Error::Closed)?.try_send(request) {
            Ok(()) => Ok(None),
            Err(TrySendError::Full(request)) => Ok(Some(request)),
            Err(TrySendError::Disconnected(_)) => Err(Error::Closed),
        }
    }

    /// Whether the listeners keep up, so that work which ends sessions may be queued.
    fn may_end(&self, work: &Work, budget: Duration) -> bool {
        self.ends.wait_below(work.ends_pending_max(self.bounds.ends_pending_max), budget)
    }

    /// Wakes a task when the queue has been emptied next.
    pub(crate) fn call_when_there_is_room(&self, waker: &Waker) {
        let mut waiting = lock(&self.without_room);
        if !waiting.iter().any(|other| other.will_wake(waker)) {
            waiting.push(waker.clone());
        }
        self.anyone_without_room.store(true, Ordering::Release);
    }

    pub(crate) fn there_is_room(&self) {
        if self.anyone_without_room.swap(false, Ordering::AcqRel) {
            let waiting = std::mem::take(&mut *lock(&self.without_room));
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    /// The error for one who has been waiting since then, if that is too long.
    pub(crate) fn busy_since(&self, since: Duration) -> Option<Error> {
        let waited = self.clock.elapsed().saturating_sub(since);
        (waited >= self.bounds.wait_budget).then(|| self.busy(since))
    }

    fn busy(&self, since: Duration) -> Error {
        Counters::add(&self.counters.busy, 1);
        let waited = self.clock.elapsed().saturating_sub(since);
        Error::Busy { queued: self.queued(), waited }
    }

    fn queued(&self) -> usize {
        let queue = self.queue.read().expect("nothing panics while it is held");
        queue.as_ref().map_or(0, Sender::len)
    }

    pub(crate) fn stats(&self) -> Stats {
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        Stats {
            revision: self.snapshots.published().get(),
            commits: count(&counters.commits),
            batches: count(&counters.batches),
            merges: count(&counters.merges),
            conflicts: count(&counters.conflicts),
            retries: count(&counters.retries),
            busy: count(&counters.busy),
            started: count(&counters.started),
            ended: count(&counters.ended),
            expired: count(&counters.expired),
            listener_failures: count(&counters.listener_failures),
            snapshots_given_up: count(&counters.snapshots_given_up),
            events_dropped: count(&counters.events_dropped),
            snapshots: self.snapshots.len(),
            versioned_sessions: self.versions.len(),
            version_bytes: self.versions.bytes(),
            queued: self.queued(),
            ends_pending: self.ends.pending(),
        }
    }
}
