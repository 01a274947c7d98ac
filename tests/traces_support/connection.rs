//! One connection of a trace: its current transaction, and what outlives it.
//!
//! A connection always has a current transaction, so another is begun whenever one is committed or
//! aborted. Handles outlive transactions: one is attached again when it is used next, and it may
//! turn out that its session is gone.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};
use sessile::{Container, Error, Policy, Savepoint, Session, SessionId, Transaction};

use super::adapter::Mode;
use super::clock::FakeClock;
use super::listening::{Callback, data, token};
use super::steps::{Answer, Args, Failure, done, kind, unknown};

/// In front of the ids of sessions in results: the trace has its own numbers for them.
pub(crate) const OWN_ID: &str = "\0session ";

/// A connection, as it was opened or begun last.
pub(crate) struct Connection {
    pub txn: Transaction,
    /// Whether the transaction has done anything.
    pub used: bool,
    pub view: View,
    pub savepoints: BTreeMap<String, (Savepoint, View)>,
    handles: BTreeMap<String, Handle>,
    /// How many transactions came before.
    turn: usize,
}

#[derive(Clone)]
struct Handle {
    session: Session,
    /// The transaction it is attached to.
    turn: usize,
}

/// What a step works on.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub mode: Mode,
    pub clock: &'a FakeClock,
    pub container: &'a Container,
}

/// The settings that the original's container has and sessile's has not. They are part of
/// transactions like the others: changed, committed, taken back, and conflicted about.
#[derive(Clone, Copy)]
pub(crate) struct Extras {
    pub on_add: Callback,
    pub on_del: Callback,
    pub inband: bool,
}

/// The extras as they were committed last.
#[derive(Clone, Copy)]
pub(crate) struct Committed {
    pub extras: Extras,
    pub versions: Versions,
}

/// How often settings were committed.
#[derive(Clone, Copy, Default)]
pub(crate) struct Versions {
    pub extras: usize,
    pub policy: usize,
}

/// What a transaction sees of the settings.
#[derive(Clone, Copy)]
pub(crate) struct View {
    pub extras: Extras,
    pub changed_extras: bool,
    pub changed_policy: bool,
    base: Versions,
}

impl View {
    pub(crate) fn of(committed: Committed) -> Self {
        let Committed { extras, versions } = committed;
        View { extras, changed_extras: false, changed_policy: false, base: versions }
    }

    /// To the original all settings are one object. That two changed the policy the store finds
    /// out for itself.
    pub(crate) fn conflicts(&self, now: Versions) -> bool {
        let extras = now.extras != self.base.extras;
        let policy = now.policy != self.base.policy;
        self.changed_extras && (extras || policy) || self.changed_policy && extras
    }
}

impl Connection {
    pub(crate) fn open(txn: Transaction, view: View) -> Self {
        let (savepoints, handles) = (BTreeMap::new(), BTreeMap::new());
        Connection { txn, used: false, view, savepoints, handles, turn: 0 }
    }

    /// Goes on with another transaction; the one before. Savepoints are kept, so that the store
    /// can say that they are spoiled.
    pub(crate) fn begin(&mut self, txn: Transaction, view: View) -> Transaction {
        self.turn += 1;
        self.used = false;
        self.view = view;
        std::mem::replace(&mut self.txn, txn)
    }

    pub(crate) fn container_step(&mut self, op: &str, args: Args<'_>, at: Place<'_>) -> Answer {
        // What is to be done for that is done by now, and was not this transaction's.
        if op == "housekeep" {
            return Ok(Json::Null);
        }
        self.used = true;
        let (txn, container) = (&self.txn, at.container);
        match op {
            "new" => {
                let session = txn.create(container, args.key("key")?)?;
                self.bind(args, Some(session))
            }
            "new_or_existing" => {
                let session = txn.get_or_create(container, args.key("key")?)?;
                self.bind(args, Some(session))
            }
            "get" => {
                let session = txn.get(container, args.key("key")?)?;
                self.bind(args, session)
            }
            "get_item" => {
                let session = txn.get(container, args.key("key")?)?;
                self.bind(args, Some(session.ok_or_else(|| kind("KeyError"))?))
            }
            "has_key" => Ok(json!(txn.contains(container, args.key("key")?)?)),
            "delete" => match txn.remove(container, args.key("key")?)? {
                true => Ok(Json::Null),
                false => Err(kind("KeyError")),
            },
            "len" => Ok(json!(txn.len(container)?)),
            "keys" => {
                let keys: Result<Vec<_>, _> = txn.keys(container)?.collect();
                Ok(keys?.iter().map(token).collect())
            }
            "items" => list(txn, container, |session| {
                Ok(json!([token(session.key()), data(session.iter()?)]))
            }),
            "values" => list(txn, container, |session| Ok(data(session.iter()?))),
            "peek" => {
                let info = |session: Result<Session, Error>| {
                    let session = session?;
                    Ok((token(session.key()), info(&session, at.clock)?))
                };
                let infos: Result<Map<_, _>, Error> = txn.iter(container)?.map(info).collect();
                Ok(infos?.into())
            }
            _ => self.settings_step(op, args, at),
        }
    }

    pub(crate) fn session_step(&mut self, op: &str, args: Args<'_>, at: Place<'_>) -> Answer {
        let clock = at.clock;
        self.used = true;
        let (session, live) = self.handle(args.text("session")?)?;
        match op {
            // These have an answer for what has ended, too.
            "id" => Ok(describe_id(&session)),
            "token" => Ok(json!(token(session.key()))),
            "is_valid" => Ok(json!(live && session.is_valid())),
            "invalidate" if !live => Ok(Json::Null),
            "invalidate" => done(session.invalidate()),
            _ if !live => Err(Error::Ended.into()),
            "get" => Ok(session.get(args.text("key")?)?.unwrap_or_else(|| args.json("default"))),
            "get_item" => session.get::<Json>(args.text("key")?)?.ok_or_else(|| kind("KeyError")),
            "has_key" => Ok(json!(session.contains(args.text("key")?)?)),
            "set" => done(session.insert(args.text("key")?, args.json("value"))),
            "delete" => match session.contains(args.text("key")?)? {
                true => done(session.remove(args.text("key")?)),
                false => Err(kind("KeyError")),
            },
            "clear" => done(session.clear()),
            "update" => match args.json("values") {
                Json::Object(values) => done(session.extend(values)),
                _ => Err(kind("TypeError")),
            },
            "keys" => Ok(json!(session.keys()?)),
            "values" => Ok(session.iter()?.map(|(_, value)| value.to::<Json>()).collect()),
            "items" => {
                Ok(session.iter()?.map(|(name, value)| json!([name, value.to::<Json>()])).collect())
            }
            "len" => Ok(json!(session.len()?)),
            "created" => Ok(json!(clock.reading(session.created()?))),
            "last_accessed" => Ok(json!(clock.reading(session.last_accessed()?))),
            "last_modified" => Ok(json!(session.last_modified()?.map(|time| clock.reading(time)))),
            "touch" => done(session.touch()),
            "info" => Ok(info(&session, clock)?),
            "append_in_place" => match session.get::<Json>(args.text("key")?)? {
                Some(Json::Array(mut copy)) => {
                    copy.push(args.json("value"));
                    Ok(Json::Null)
                }
                _ => Err(kind("AttributeError")),
            },
            _ => unknown(op),
        }
    }

    /// The session as a result, and bound to a handle if the step says so.
    pub(crate) fn bind(&mut self, args: Args<'_>, session: Option<Session>) -> Answer {
        let result = session.as_ref().map_or(Json::Null, describe);
        if let Some(name) = args.0.get("as").and_then(Json::as_str) {
            match session {
                Some(session) => self.hold(name, session),
                None => drop(self.handles.remove(name)),
            }
        }
        Ok(result)
    }

    /// Binds a session to a handle.
    pub(crate) fn hold(&mut self, name: &str, session: Session) {
        self.handles.insert(name.to_owned(), Handle { session, turn: self.turn });
    }

    /// The session of a handle as a result, whatever became of it, and bound to another handle if the
    /// step says so.
    pub(crate) fn bind_again(&mut self, args: Args<'_>, name: &str) -> Answer {
        let result = describe(&self.handle(name)?.0);
        if let Some(other) = args.0.get("as").and_then(Json::as_str) {
            let handle = self.handles[name].clone();
            self.handles.insert(other.to_owned(), handle);
        }
        Ok(result)
    }

    /// The session that a handle means, and whether this transaction has it.
    fn handle(&mut self, name: &str) -> Result<(Session, bool), Failure> {
        let Connection { txn, turn, handles, .. } = self;
        let handle = handles.get_mut(name).ok_or_else(|| kind("there is no such handle"))?;
        if handle.turn == *turn {
            return Ok((handle.session.clone(), true));
        }
        match txn.reattach(&handle.session)? {
            Some(session) => {
                *handle = Handle { session: session.clone(), turn: *turn };
                Ok((session, true))
            }
            // Gone for now: the end that this transaction sees may be taken back.
            None => Ok((handle.session.clone(), false)),
        }
    }

    fn settings_step(&mut self, op: &str, args: Args<'_>, at: Place<'_>) -> Answer {
        let before = self.txn.policy(at.container)?;
        let extras = &mut self.view.extras;
        match op {
            "limit" => return Ok(json!(before.limit)),
            "timeout" => {
                let (minutes, period) = (before.timeout_secs / 60, before.period_secs);
                return Ok(json!({ "minutes": minutes, "period_seconds": period }));
            }
            "inband" => return Ok(json!(extras.inband)),
            "set_limit" => {
                let limit = args.whole("limit")?;
                return self.set_policy(at.container, &before, before.clone().limit(limit));
            }
            "set_timeout" => {
                // A better store keeps the period that it has.
                let default = if at.mode == Mode::Modern { before.period_secs } else { 20 };
                let minutes = args.whole("minutes")?;
                let period = args.whole_or("period_seconds", default)?;
                let after = before.clone().timeout_mins(minutes).period_secs(period);
                return self.set_policy(at.container, &before, after);
            }
            "set_on_add" => extras.on_add = args.parsed("callback")?,
            "set_on_del" => extras.on_del = args.parsed("callback")?,
            "set_inband" => extras.inband = args.parsed("enabled")?,
            _ => return unknown(op),
        }
        self.view.changed_extras = true;
        Ok(Json::Null)
    }

    fn set_policy(&mut self, container: &Container, before: &Policy, after: Policy) -> Answer {
        let changes = *before != after;
        self.txn.set_policy(container, after)?;
        self.view.changed_policy |= changes;
        Ok(Json::Null)
    }
}

fn list(
    txn: &Transaction,
    container: &Container,
    describe: impl Fn(Session) -> Result<Json, Error>,
) -> Answer {
    let described: Result<Vec<_>, _> =
        txn.iter(container)?.map(|session| describe(session?)).collect();
    Ok(described?.into())
}

fn info(session: &Session, clock: &FakeClock) -> Result<Json, Error> {
    Ok(json!({
        "token": token(session.key()),
        "id": own_id(session.id()),
        "created": clock.reading(session.created()?),
        "last_accessed": clock.reading(session.last_accessed()?),
        "last_modified": session.last_modified()?.map(|time| clock.reading(time)),
        "valid": session.is_valid(),
        "data": data(session.iter()?),
    }))
}

fn describe(session: &Session) -> Json {
    json!({ "token": token(session.key()), "id": own_id(session.id()) })
}

fn describe_id(session: &Session) -> Json {
    let id = session.id().to_string();
    let second = session.created().map(|time| time.as_secs().to_string());
    json!({
        "id": own_id(session.id()),
        "digits_only": id.bytes().all(|byte| byte.is_ascii_digit()),
        "starts_with_creation_second": second.is_ok_and(|second| id.starts_with(&second)),
        "equals_token": id == token(session.key()),
    })
}

fn own_id(id: SessionId) -> String {
    format!("{OWN_ID}{id}")
}
