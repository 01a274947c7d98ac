//! Tells those who asked that a session has started or ended.
//!
//! A start is told inside the transaction that creates the session. An end is told after the commit
//! that caused it is durable, by one thread, in the order of the commits (`courier.rs`): once, or
//! again after a crash. Nothing that a listener does stops the store: it may fail, panic, take its
//! time, and use the store itself.

use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::model::attribute::Holds;
use crate::model::clock::Time;
use crate::model::key::Key;
use crate::model::session::{Record, SessionId};
use crate::model::value::Value;
use crate::store::events::Event;
use crate::store::{Session, Store, Transaction};

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
    /// It goes on under another key, as another generation: [`Session::rotate`].
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
    pub(crate) listener: Option<String>,
    /// Where its end is written down, if it is.
    pub(crate) row: Option<Key>,
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

    /// Whose session it was, if anybody's.
    pub fn principal(&self) -> Option<&str> {
        self.record.principal().map(|principal| &*principal.name)
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
