//! What the parts of an open store share.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock, Weak};
use std::task::Waker;
use std::time::Duration;

use crate::engine::embedded::disk::Disk;
use crate::engine::{Engine, Listener, Notice, View};
use crate::error::Error;
use crate::model::clock::{Clock, StoreTime, Time};
use crate::model::container::{ContainerId, ContainerState, Kind};
use crate::model::key::Key;
use crate::model::merge::Resolvers;
use crate::model::session::Revision;
use crate::store::chance::Chance;
use crate::store::commit::{Request, Work};
use crate::store::courier::Ends;
use crate::store::events::{Event, Events};
use crate::store::heat::Heat;
use crate::store::listeners::Registered;
use crate::store::lock;
use crate::store::observe;
use crate::store::outcome::{Report, slot, wake};
use crate::store::pinned::walk;
use crate::store::readers::Readers;
use crate::store::snapshots::{Held, Snapshot, Snapshots};
use crate::store::stats::{Counters, Stats};
use crate::store::versions::Versions;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::channel::{SendTimeoutError, Sender, TrySendError};
use crate::sync::thread::{self, ThreadId};
use crate::sync::{Mutex, RwLock};

/// How much is allowed to pile up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub queue_max: usize,
    pub wait_budget: Duration,
    pub snapshot_age_max: Duration,
    pub version_bytes_max: usize,
    pub ends_pending_max: u64,
    /// How often a listener of ends is called at the most for one of them.
    pub end_attempts: u32,
    pub resident_bytes_max: usize,
    /// How long what is written may stay without a sync.
    pub sync_delay: Duration,
}

pub(crate) struct Core {
    pub engine: Arc<dyn Engine>,
    /// Where the files of the store lie, and its backups.
    pub disk: Arc<dyn Disk>,
    pub clock: Arc<dyn Clock>,
    pub time: StoreTime,
    pub chance: Chance,
    pub bounds: Bounds,
    pub versions: Versions,
    pub snapshots: Snapshots,
    pub names: RwLock<BTreeMap<Arc<str>, ContainerId>>,
    pub resolvers: Resolvers,
    pub listeners: Registered,
    pub ends: Ends,
    pub events: Events,
    pub counters: Counters,
    pub heat: Heat,
    pub readers: Readers,
    /// Whether spans and events say which session it was.
    #[cfg(feature = "tracing")]
    pub trace_sessions: bool,
    /// `None` once the store is closed.
    pub queue: RwLock<Option<Sender<Request>>>,
    /// The same, for those who only ask.
    pub closed: AtomicBool,
    /// Tasks that found the queue full.
    pub without_room: Mutex<Vec<Waker>>,
    pub anyone_without_room: AtomicBool,
    /// Whether a key was ever rotated: where none was, nobody need look where it leads to.
    pub forwards: AtomicBool,
    /// Snapshots after the first and before the second of each pair have seen what was taken back.
    pub revoked: RwLock<Vec<(Revision, Revision)>>,
    /// The threads of the store on which what is not its own may run: they must not wait for themselves.
    pub threads: Mutex<Vec<ThreadId>>,
    /// The failure of the storage that was not over when the store was closed.
    pub fence: OnceLock<Error>,
}

impl Core {
    /// The store's time: never goes back.
    pub(crate) fn now(&self) -> Time {
        self.times().0
    }

    /// The store's time, and what has elapsed.
    pub(crate) fn times(&self) -> (Time, Duration) {
        let (now, elapsed, trouble) = self.time.read(&*self.clock);
        if let Some(trouble) = trouble {
            self.event(&Event::Clock(trouble));
        }
        (now, elapsed)
    }

    pub(crate) fn event(&self, event: &Event) {
        observe::event(self, event);
        self.events.send(event, &self.counters.events_dropped);
    }

    /// A snapshot for a transaction, which releases it.
    pub(crate) fn begin(&self) -> Result<Snapshot, Error> {
        self.check_open()?;
        Ok(self.snapshots.register(self.clock.elapsed()))
    }

    /// A snapshot for the store's own use, released when it is dropped.
    pub(crate) fn hold(&self) -> Result<Held<'_>, Error> {
        self.check_open()?;
        Ok(self.snapshots.hold(self.clock.elapsed()))
    }

    /// An error once the store is closed.
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        match self.closed.load(Ordering::Acquire) {
            false => Ok(()),
            true => Err(Error::Closed),
        }
    }

    /// Whether this thread ends with the store.
    pub(crate) fn is_own_thread(&self) -> bool {
        lock(&self.threads).contains(&thread::current().id())
    }

    /// Takes no more commits; those that are queued are finished.
    pub(crate) fn refuse(&self) {
        self.closed.store(true, Ordering::Release);
        drop(self.queue.write().expect("nothing panics while it is held").take());
    }

    pub(crate) fn container(&self, id: ContainerId, snapshot: &Snapshot) -> Arc<ContainerState> {
        let state = self.versions.container(id, snapshot.revision());
        state.expect("a handle is made of a container that exists, and none is ever removed")
    }

    pub(crate) fn has_forwards(&self) -> bool {
        self.forwards.load(Ordering::Acquire)
    }

    /// Looks whether a key was rotated before the store was opened.
    pub(crate) fn find_forwards(&self) {
        const PAGE: usize = 64;
        let found = self.versions.containers().iter().any(|state| {
            let notes = state.id.of(Kind::Rotated);
            let pinned = self.versions.pin(notes, self.snapshots.published());
            let mut is_one_there = false;
            // The tables may still have notes that the log has taken away, and others behind them.
            let looked = walk(
                Key::from(""),
                |from| pinned.keys(notes, from, PAGE),
                |_| {
                    is_one_there = true;
                    Ok(ControlFlow::Break(()))
                },
            );
            // Whoever cannot tell looks.
            is_one_there || looked.is_err()
        });
        self.forwards.store(found, Ordering::Release);
    }

    /// Takes back what was seen and is lost: it had been acknowledged before it was durable.
    pub(crate) fn revoke(&self, durable: Revision, used: Revision) {
        self.revoked.write().expect("nothing panics while it is held").push((durable, used));
        let given_up = self.snapshots.give_up_newer_than(durable);
        Counters::add(&self.counters.snapshots_given_up, given_up);
    }

    /// An error if a transaction has seen what was taken back.
    pub(crate) fn check_revoked(&self, snapshot: Revision) -> Result<(), Error> {
        let revoked = self.revoked.read().expect("nothing panics while it is held");
        match revoked.iter().any(|(durable, used)| *durable < snapshot && snapshot < *used) {
            true => Err(Error::SnapshotTooOld { age: Duration::ZERO }),
            false => Ok(()),
        }
    }

    /// Gives up snapshots that are too old or cost too much, and drops what nobody sees any more.
    pub(crate) fn tidy(&self) {
        let age_max = self.bounds.snapshot_age_max;
        let mut given_up = match self.clock.elapsed().checked_sub(age_max) {
            Some(deadline) => self.snapshots.give_up_older_than(deadline),
            None => 0,
        };
        self.forget();
        let oldest = self.snapshots.oldest().min(self.snapshots.durable());
        self.versions.forget_containers(oldest);
        while self.versions.replaced().1 > self.bounds.version_bytes_max {
            match self.snapshots.give_up_oldest() {
                0 => break,
                count => given_up += count,
            }
            self.forget();
        }
        if given_up > 0 {
            Counters::add(&self.counters.snapshots_given_up, given_up);
            self.event(&Event::SnapshotsGivenUp { count: given_up, age_max });
        }
    }

    /// Drops the versions that nobody sees any more.
    pub(crate) fn forget(&self) {
        self.versions.forget(self.snapshots.oldest(), self.snapshots.durable());
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
            waiting.into_iter().for_each(wake);
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

    pub(crate) fn queued(&self) -> usize {
        let queue = self.queue.read().expect("nothing panics while it is held");
        queue.as_ref().map_or(0, Sender::len)
    }

    pub(crate) fn stats(&self) -> Stats {
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        let (resident_sessions, resident_bytes) = self.versions.resident();
        let (versions, version_bytes) = self.versions.replaced();
        let gauges = self.engine.gauges();
        Stats {
            revision: self.snapshots.published().get(),
            sessions: self.sessions(),
            commits: count(&counters.commits),
            batches: count(&counters.batches),
            merges: count(&counters.merges),
            conflicts: count(&counters.conflicts),
            overruled: count(&counters.overruled),
            unknown_tokens: count(&counters.unknown_tokens),
            ambiguous_tokens: count(&counters.ambiguous_tokens),
            retries: count(&counters.retries),
            busy: count(&counters.busy),
            started: count(&counters.started),
            ended: count(&counters.ended),
            expired: count(&counters.expired),
            rotated: count(&counters.rotated),
            evicted: count(&counters.evicted),
            warned: count(&counters.warned),
            listener_failures: count(&counters.listener_failures),
            dead_letters: count(&counters.dead_letters),
            ends_unwritten: count(&counters.ends_unwritten),
            snapshots_given_up: count(&counters.snapshots_given_up),
            events_dropped: count(&counters.events_dropped),
            snapshots: self.snapshots.len() as u64,
            resident_sessions: resident_sessions as u64,
            resident_bytes: resident_bytes as u64,
            versions: versions as u64,
            version_bytes: version_bytes as u64,
            queued: self.queued() as u64,
            ends_pending: self.ends.pending(),
            log_bytes: gauges.log_bytes,
            dirty_sessions: gauges.dirty_sessions as u64,
            dirty_bytes: gauges.dirty_bytes as u64,
            folds: gauges.folds,
            fold_failures: gauges.fold_failures,
            storage_failures: count(&counters.storage_failures),
            recoveries: gauges.recoveries,
            damaged_sessions: gauges.damaged,
        }
    }
}

/// The store as the engine sees it: it does not keep the store alive.
pub(crate) struct Told(pub Weak<Core>);

impl Listener for Told {
    fn checkpoint(&self, view: Arc<dyn View>, revision: Revision) {
        if let Some(core) = self.0.upgrade() {
            core.versions.checkpoint(view, revision, core.snapshots.oldest());
        }
    }

    fn notice(&self, notice: Notice) {
        let Some(core) = self.0.upgrade() else { return };
        let name = |id: ContainerId| {
            let containers = core.versions.containers();
            let found = containers.iter().find(|state| state.id == id.container());
            found.map_or(String::new(), |state| state.name.to_string())
        };
        core.event(&match notice {
            Notice::Recovered { batches, sessions } => Event::Replayed { batches, sessions },
            Notice::FoldFailed(error) => {
                let error = error.cause().to_string();
                Event::FoldFailed { error }
            }
            Notice::Damaged((container, key)) => {
                Event::Damaged { container: name(container), session: key.fingerprint() }
            }
            Notice::Miscounted { container, uncounted } => {
                if uncounted != 0 {
                    // The engine must not wait for the committer. If there is no room, or no store any more,
                    // the next one to open it finds out again.
                    let work = Work::Recount { container, uncounted };
                    let _ = core.try_submit(Request { work, reply: slot().0 });
                }
                Event::Miscounted { container: name(container) }
            }
            Notice::Exposed(path) => Event::Exposed { path },
        });
    }
}
