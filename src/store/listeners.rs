//! Tells those who asked that a session has started or ended.
//!
//! A start is told inside the transaction that creates the session. An end is told after the commit
//! that caused it is durable, by one thread, in the order of the commits: exactly once while the
//! process lives. Nothing that a listener does stops the store: it may fail, panic, take its time,
//! and use the store itself.

use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, ThreadId};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde::de::DeserializeOwned;

use crate::model::attribute::Holds;
use crate::model::clock::Time;
use crate::model::key::Key;
use crate::model::session::{Record, SessionId};
use crate::model::value::Value;
use crate::store::events::Event;
use crate::store::{Session, Store, Transaction, lock};

/// Why a session's life is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EndReason {
    /// Somebody ended it: [`Session::invalidate`], [`Transaction::remove`].
    Invalidated,
    /// Nobody used it for longer than the timeout, or it had lived as long as it may.
    Expired,
    /// It made room for another one: see [`AtLimit::EvictOldest`](crate::AtLimit::EvictOldest).
    Evicted,
    /// It goes on under another key, as another generation.
    Rotated,
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EndReason::Invalidated => "invalidated",
            EndReason::Expired => "expired",
            EndReason::Evicted => "evicted",
            EndReason::Rotated => "rotated",
        })
    }
}

/// A session as it was when it ended.
pub struct EndedSession {
    pub(crate) container: Arc<str>,
    pub(crate) key: Key,
    pub(crate) record: Arc<Record>,
    /// When its time would have been over, for the order of delivery.
    pub(crate) expiry: u64,
    pub(crate) listener: Option<String>,
}

impl EndedSession {
    /// The name of its container.
    pub fn container(&self) -> &str {
        &self.container
    }

    /// Its key.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Which generation of the key it was.
    pub fn id(&self) -> SessionId {
        self.record.id
    }

    /// When it was created.
    pub fn created(&self) -> Time {
        self.record.created
    }

    /// When it was last accessed, give or take 30 s.
    pub fn last_accessed(&self) -> Time {
        self.record.last_accessed
    }

    /// When one of its attributes was last written.
    pub fn last_modified(&self) -> Option<Time> {
        self.record.last_modified
    }

    /// The last value of an attribute; `None` if it is absent or no `T`.
    pub fn get<T: DeserializeOwned>(&self, name: impl Holds<T>) -> Option<T> {
        self.record.attributes.get(name.name())?.value.to()
    }

    /// Its attributes, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Value)> {
        self.record.attributes.iter().map(|(name, attribute)| (name, attribute.value))
    }
}

impl fmt::Debug for EndedSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndedSession({} in {})", self.key.fingerprint(), self.container)
    }
}

/// What a listener returns when it fails.
pub type ListenerError = Box<dyn std::error::Error + Send + Sync>;

pub(crate) type OnStart = dyn Fn(&Transaction, &Session) -> Result<(), ListenerError> + Send + Sync;
pub(crate) type OnEnd =
    dyn Fn(&Store, &EndedSession, EndReason) -> Result<(), ListenerError> + Send + Sync;

/// The listeners that the application registered at open, by name.
#[derive(Clone, Default)]
pub(crate) struct Registered {
    pub on_start: BTreeMap<String, Arc<OnStart>>,
    pub on_end: BTreeMap<String, Arc<OnEnd>>,
}

/// Calls a listener and turns whatever goes wrong into an event.
pub(crate) fn call(
    name: &str,
    listener: impl FnOnce() -> Result<(), ListenerError>,
) -> Result<(), Event> {
    let failed = |panicked| Event::ListenerFailed { listener: name.to_owned(), panicked };
    match catch_unwind(AssertUnwindSafe(|| listener().is_ok())) {
        Ok(true) => Ok(()),
        Ok(false) => Err(failed(false)),
        Err(panic) => {
            // Its payload may panic when it is dropped.
            mem::forget(panic);
            Err(failed(true))
        }
    }
}

/// Ends on their way to their listeners.
pub(crate) struct Ends {
    queue: Mutex<Option<Sender<EndBatch>>>,
    progress: Mutex<Progress>,
    delivered: Condvar,
}

#[derive(Default)]
struct Progress {
    committed: u64,
    delivered: u64,
    /// The thread that delivers, once it runs. It must not wait for itself.
    courier: Option<ThreadId>,
}

impl Progress {
    fn is_of_this_thread(&self) -> bool {
        self.courier == Some(thread::current().id())
    }
}

/// The ends of one batch of commits, in the order of delivery.
pub(crate) type EndBatch = Vec<(Arc<EndedSession>, EndReason)>;
pub(crate) type EndsReceiver = Receiver<EndBatch>;

impl Ends {
    pub(crate) fn new() -> (Self, EndsReceiver) {
        let (sender, receiver) = unbounded();
        let ends = Ends {
            queue: Mutex::new(Some(sender)),
            progress: Mutex::default(),
            delivered: Condvar::new(),
        };
        (ends, receiver)
    }

    /// Counts ends that have become durable, before anybody can see them.
    pub(crate) fn expect(&self, ends: &EndBatch) {
        lock(&self.progress).committed += ends.len() as u64;
    }

    /// Queues ends that have been counted and may now be seen. The queue itself has no bound, because
    /// the committer must not wait for a listener that waits for the committer; who *causes* ends is
    /// held up instead (see [`Core::submit`](crate::store::core::Core::submit)).
    pub(crate) fn send(&self, ends: EndBatch) {
        if ends.is_empty() {
            return;
        }
        if let Some(queue) = &*lock(&self.queue) {
            queue.send(ends).expect("the courier outlives the queue");
        }
    }

    pub(crate) fn pending(&self) -> u64 {
        let progress = lock(&self.progress);
        progress.committed - progress.delivered
    }

    /// Returns when every end committed so far has been delivered; at once on the thread that
    /// delivers, which would wait for itself.
    pub(crate) fn settle(&self) {
        let progress = lock(&self.progress);
        if progress.is_of_this_thread() {
            return;
        }
        let target = progress.committed;
        let settled = self.delivered.wait_while(progress, |progress| progress.delivered < target);
        drop(settled.expect("nothing panics while it is held"));
    }

    /// Waits until fewer than `max` ends are pending; false if that takes longer than `budget`. True
    /// at once on the thread that delivers, which would wait for itself.
    pub(crate) fn wait_below(&self, max: u64, budget: Duration) -> bool {
        let progress = lock(&self.progress);
        if progress.is_of_this_thread() {
            return true;
        }
        let full = |progress: &mut Progress| progress.committed - progress.delivered >= max;
        let (_progress, wait) = self
            .delivered
            .wait_timeout_while(progress, budget, full)
            .expect("nothing panics while it is held");
        !wait.timed_out()
    }

    /// No more ends will come.
    pub(crate) fn close(&self) {
        lock(&self.queue).take();
    }

    /// Delivers until the queue is closed and empty.
    pub(crate) fn deliver(
        &self,
        queue: &EndsReceiver,
        deliver: impl Fn(&Arc<EndedSession>, EndReason),
        delivered: impl Fn(),
    ) {
        lock(&self.progress).courier = Some(thread::current().id());
        for ends in queue {
            for (session, reason) in &ends {
                deliver(session, *reason);
                lock(&self.progress).delivered += 1;
                self.delivered.notify_all();
                delivered();
            }
        }
    }
}
