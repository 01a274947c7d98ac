//! What the store's listeners are told, and what the trace's callbacks do about it.
//!
//! A trace sets a callback for creations and one for ends. The store has two listeners, registered
//! once; which callback they play is up to the connection that works, because the settings of a
//! trace are part of its transactions (`adapter.rs`).

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use serde::Deserialize;
use serde_json::{Map, Value as Json};
use sessile::{
    Container, Error, Key, ListenerError, Options, Policy, Session, Store, Transaction, Value,
};

use super::format::{Event, Notification};

/// What a callback does when it is called.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Callback {
    /// There is none, or none that can be called.
    #[default]
    None,
    Record,
    Set,
    Raise,
    Create,
    Invalidate,
}

impl<'de> Deserialize<'de> for Callback {
    fn deserialize<D: serde::Deserializer<'de>>(name: D) -> Result<Self, D::Error> {
        Ok(match Option::<String>::deserialize(name)?.as_deref() {
            None | Some("missing_path" | "not_callable") => Callback::None,
            Some("record") => Callback::Record,
            Some("record_and_set") => Callback::Set,
            Some("record_and_raise" | "record_and_raise_msg") => Callback::Raise,
            Some("record_and_create") => Callback::Create,
            Some("record_and_invalidate") => Callback::Invalidate,
            Some(name) => return Err(serde::de::Error::custom(format!("callback {name:?}"))),
        })
    }
}

/// What the listeners share with the adapter.
#[derive(Default)]
pub(crate) struct Listening {
    state: Mutex<State>,
    /// The container of the trace, once it is made.
    pub container: OnceLock<Container>,
}

#[derive(Default)]
struct State {
    on_add: Callback,
    on_del: Callback,
    told: Vec<Notification>,
}

const ON_START: &str = "on_add";
const ON_END: &str = "on_del";
const MADE: &str = "made-by-callback";

/// Registers the listeners. The store must not keep alive what holds a container of the store.
pub(crate) fn register(options: Options, listening: Weak<Listening>) -> Options {
    let ends = Weak::clone(&listening);
    options
        // The original calls a callback once, whatever comes of it.
        .end_attempts(1)
        .on_start(ON_START, move |txn, session| match listening.upgrade() {
            Some(listening) => listening.added(txn, session),
            None => Ok(()),
        })
        .on_end(ON_END, move |store, session, _| match ends.upgrade() {
            Some(listening) => {
                let data = data(session.iter().map(|(name, value)| (name, value.clone())));
                listening.deleted(store, session.key(), data)
            }
            None => Ok(()),
        })
}

/// Names the listeners in a policy.
pub(crate) fn named(policy: Policy) -> Policy {
    policy.on_start(ON_START).on_end(ON_END)
}

impl Listening {
    /// Sets which callbacks are in force.
    pub(crate) fn play(&self, on_add: Callback, on_del: Callback) {
        let mut state = self.lock();
        (state.on_add, state.on_del) = (on_add, on_del);
    }

    /// What was told since this was asked last.
    pub(crate) fn take(&self) -> Vec<Notification> {
        std::mem::take(&mut self.lock().told)
    }

    /// Puts back, in front of what was told since, what was taken before.
    pub(crate) fn put_back(&self, told: Vec<Notification>) {
        self.lock().told.splice(..0, told);
    }

    /// Runs inside the transaction that creates the session.
    fn added(&self, txn: &Transaction, session: &Session) -> Result<(), ListenerError> {
        let callback = self.lock().on_add;
        if callback == Callback::None {
            return Ok(());
        }
        let token = token(session.key());
        self.tell(Notification {
            event: Event::Add,
            token: token.clone(),
            data: data(session.iter()?),
            valid: session.is_valid(),
        });
        match callback {
            Callback::None | Callback::Record => {}
            Callback::Set => session.insert("from_callback", "add")?,
            Callback::Raise => return Err("the callback raises".into()),
            Callback::Create if token == MADE => {}
            Callback::Create => self.create(txn, &token)?,
            Callback::Invalidate => session.invalidate()?,
        }
        Ok(())
    }

    /// Runs after the end is durable. What has ended can be neither changed nor ended again.
    fn deleted(&self, store: &Store, key: &Key, data: Json) -> Result<(), ListenerError> {
        let callback = self.lock().on_del;
        if callback == Callback::None {
            return Ok(());
        }
        let token = token(key);
        self.tell(Notification { event: Event::Del, token: token.clone(), data, valid: false });
        match callback {
            Callback::None | Callback::Record | Callback::Set | Callback::Invalidate => {}
            Callback::Raise => return Err("the callback raises".into()),
            Callback::Create => {
                store.transact(|txn| self.create(txn, &token))?;
            }
        }
        Ok(())
    }

    fn create(&self, txn: &Transaction, origin: &str) -> Result<(), Error> {
        let container = self.container.get().expect("it is made before the first session");
        txn.get_or_create(container, MADE)?.insert("origin", origin)
    }

    fn tell(&self, notification: Notification) {
        self.lock().told.push(notification);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The text of a key. One that is no text is the hash of a token (`request.rs`), and shown as hex.
pub(crate) fn token(key: &Key) -> String {
    let hex = || key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    String::from_utf8(key.as_bytes().to_vec()).unwrap_or_else(|_| hex())
}

/// The attributes of a session as a JSON object.
pub(crate) fn data<N: Into<String>>(attributes: impl Iterator<Item = (N, Value)>) -> Json {
    let json = |value: Value| value.to::<Json>().expect("values were made of JSON");
    attributes.map(|(name, value)| (name.into(), json(value))).collect::<Map<_, _>>().into()
}
