//! What clients do to a session, and what a transaction makes of one.

use std::collections::BTreeSet;
use std::time::Duration;

use sessile::{EndReason, Key, Policy, Rule, Session, SessionId, Time, Value};

use super::model::{
    Attribute, Attributes, ContainerState, Principal, SessionState, Trouble, plus_secs, slice_end,
};
use super::outcome::{Departure, Outcome, Refusal};

/// One thing that a client does to the session under a key.
#[derive(Clone, Debug)]
pub(crate) enum Deed {
    /// Looks it up, and makes it if it is absent.
    Visit,
    Put(String, Value),
    /// Sets an attribute that lapses after so many seconds.
    Lend(String, Value, u64),
    Add(String, i64),
    Append(String, i64),
    RemoveAttribute(String),
    Clear,
    /// Takes an attribute that holds a text.
    Take(String),
    /// Leaves a number to be shown once.
    Flash(i64),
    /// Shows those that were left.
    Show,
    /// Gives it a timeout of its own in seconds, or that of the policy.
    Timeout(Option<u64>),
    /// Says whose it is, and on which device.
    Bind(&'static str, &'static str),
    Unbind,
    /// Ends the others of its principal.
    EndOthers,
    End,
    /// Ends it, if it is there, and makes another one.
    Renew,
    /// Has it go on under another key.
    Rotate(&'static str),
}

/// How many items a list keeps.
pub(crate) const APPEND_MAX: usize = 5;

/// How many values to be shown once wait at the most.
pub(crate) const FLASHES_MAX: usize = 100;

/// A change of the attributes, as it is remembered until the commit.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Sets it, until a time, or removes it.
    Put(String, Option<Value>, Option<Time>),
    Add(String, i64),
    Append(String, i64, usize),
    Clear,
}

/// A session as a transaction changes it.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) base: SessionState,
    pub(crate) is_new: bool,
    changes: Vec<Change>,
    modified: Option<Time>,
    touch: Option<(Time, Time)>,
    pub(crate) is_ended: bool,
    /// It was found, and goes on under this key, as this session.
    pub(crate) rotated: Option<(Key, SessionId)>,
    /// Attributes that were read; that were taken; and that were read before they were written.
    reads: BTreeSet<String>,
    required: BTreeSet<String>,
    checked: BTreeSet<String>,
    /// Attributes that were set or removed, and whether all were.
    puts: BTreeSet<String>,
    is_cleared: bool,
    pub(crate) timeout: Option<Option<u64>>,
    pub(crate) principal: Option<Option<Principal>>,
    /// The other sessions of this principal end.
    pub(crate) ends_others: Option<String>,
    /// It ends as one of this principal's.
    pub(crate) ended_with: Option<String>,
}

impl Life {
    /// What a snapshot holds, without the attributes that have lapsed.
    pub(crate) fn found(base: &SessionState, now: Time) -> Self {
        Life {
            base: base.lasting(now),
            is_new: false,
            changes: Vec::new(),
            modified: None,
            touch: None,
            is_ended: false,
            rotated: None,
            reads: BTreeSet::new(),
            required: BTreeSet::new(),
            checked: BTreeSet::new(),
            puts: BTreeSet::new(),
            is_cleared: false,
            timeout: None,
            principal: None,
            ends_others: None,
            ended_with: None,
        }
    }

    pub(crate) fn created(id: SessionId, policy: &Policy, now: Time) -> Self {
        let base = SessionState::new(id, policy, now);
        Life { is_new: true, ..Life::found(&base, now) }
    }

    /// Which session the transaction sees it as.
    pub(crate) fn id(&self) -> SessionId {
        self.rotated.as_ref().map_or(self.base.id, |(_, id)| *id)
    }

    /// The times as the transaction sees them, and whose session it is.
    fn times(&self) -> SessionState {
        let mut times = self.base.clone();
        if let Some((slice_end, last_accessed)) = self.touch {
            (times.slice_end, times.last_accessed) = (slice_end, last_accessed);
        }
        times.timeout = self.timeout.unwrap_or(times.timeout);
        if let Some(principal) = &self.principal {
            times.principal.clone_from(principal);
        }
        times
    }

    pub(crate) fn principal(&self) -> Option<String> {
        self.times().principal.map(|principal| principal.name)
    }

    /// A longer timeout holds from the commit on.
    pub(crate) fn is_live(&self, policy: &Policy, now: Time) -> bool {
        let times = self.times();
        let before = SessionState { timeout: self.base.timeout, ..times.clone() };
        let was_live = self.is_new || before.is_live(policy, now);
        !self.is_ended && was_live && times.is_live(policy, now)
    }

    pub(crate) fn access(&mut self, policy: &Policy, now: Time) {
        const LAG_SECS: u64 = 30;
        let times = self.times();
        let is_old = now > plus_secs(times.last_accessed, LAG_SECS);
        let last_accessed = if is_old { now } else { times.last_accessed };
        let later = (times.slice_end.max(slice_end(now, policy)), last_accessed);
        if later != (times.slice_end, times.last_accessed) {
            self.touch = Some(later);
        }
    }

    /// Does something to the attributes, in the transaction and here. Gives what was shown.
    pub(crate) fn change(
        &mut self,
        session: &Session,
        deed: &Deed,
        now: Time,
    ) -> Result<Vec<i64>, Trouble> {
        let until = |secs| Some(plus_secs(now, secs));
        let change = match deed {
            Deed::Put(name, value) => {
                session.insert_value(name, value.clone())?;
                Change::Put(name.clone(), Some(value.clone()), None)
            }
            Deed::Lend(name, value, secs) => {
                let time = Duration::from_secs(*secs);
                match value.to::<String>() {
                    Some(text) => session.insert_for(name, text, time)?,
                    None => session.insert_for(name, value.to::<i64>(), time)?,
                }
                Change::Put(name.clone(), Some(value.clone()), until(*secs))
            }
            Deed::Add(name, n) => {
                session.add(name, *n)?;
                Change::Add(name.clone(), *n)
            }
            Deed::Append(name, n) => {
                session.append(name, n, APPEND_MAX)?;
                Change::Append(name.clone(), *n, APPEND_MAX)
            }
            Deed::Flash(n) => {
                session.flash(n)?;
                Change::Append(Session::FLASHES.to_owned(), *n, FLASHES_MAX)
            }
            Deed::RemoveAttribute(name) => {
                session.remove(name)?;
                Change::Put(name.clone(), None, None)
            }
            Deed::Clear => {
                session.clear()?;
                Change::Clear
            }
            Deed::Take(name) => {
                let wanted = self.read(name).and_then(|value| value.to::<String>());
                if session.take::<String>(name)? != wanted {
                    return Err("another attribute was taken than was there".into());
                }
                match wanted {
                    Some(_) => self.taken(name),
                    None => return Ok(Vec::new()),
                }
            }
            Deed::Show => {
                let wanted = self.read(Session::FLASHES);
                let wanted = wanted.and_then(|value| value.to::<Vec<i64>>());
                let shown = session.flashes::<i64>()?;
                if Some(&shown) != wanted.as_ref() && !(shown.is_empty() && wanted.is_none()) {
                    return Err("others are shown than were left".into());
                }
                if wanted.is_some() {
                    let change = self.taken(Session::FLASHES);
                    self.note(change, now);
                }
                return Ok(shown);
            }
            _ => return Ok(Vec::new()),
        };
        self.note(change, now);
        Ok(Vec::new())
    }

    /// Reads an attribute as the transaction sees it.
    fn read(&mut self, name: &str) -> Option<Value> {
        if !self.owns(name) {
            self.reads.insert(name.to_owned());
        }
        let mut attributes = self.base.attributes.clone();
        self.changes.iter().for_each(|change| apply(change, &mut attributes, 0));
        attributes.remove(name).map(|attribute| attribute.value)
    }

    /// Whether all that the transaction sees under the name is its own doing.
    fn owns(&self, name: &str) -> bool {
        self.puts.contains(name) || self.is_cleared
    }

    /// What was taken must not have been changed by anybody.
    fn taken(&mut self, name: &str) -> Change {
        if !self.owns(name) {
            self.required.insert(name.to_owned());
        }
        Change::Put(name.to_owned(), None, None)
    }

    fn note(&mut self, change: Change, now: Time) {
        match &change {
            Change::Put(name, ..) => {
                if !self.owns(name) && self.reads.contains(name) {
                    self.checked.insert(name.clone());
                }
                self.puts.insert(name.clone());
            }
            Change::Clear => {
                self.checked.extend(self.reads.iter().cloned());
                self.puts.clear();
                self.is_cleared = true;
            }
            Change::Add(..) | Change::Append(..) => {}
        }
        self.changes.push(change);
        self.modified = Some(now);
    }

    /// Whether it matters that the session still lives at commit.
    pub(crate) fn demands(&self) -> bool {
        let ends = self.is_ended && self.ended_with.is_none() || self.ends_others.is_some();
        let changes = !self.changes.is_empty() || self.timeout.is_some();
        ends || changes || self.principal.is_some() || self.rotated.is_some()
    }

    pub(crate) fn has_effect(&self) -> bool {
        self.is_new || self.is_ended || self.demands() || self.touch.is_some()
    }

    /// What a commit makes of it where it lies, `before` being the container before the commit.
    pub(crate) fn apply(
        &self,
        outcome: &mut Outcome,
        name: &str,
        key: &Key,
        before: &ContainerState,
        now: Time,
    ) -> Result<Option<Departure>, Refusal> {
        let is_given_up = before.forward(key, now).is_some();
        let container = outcome.container(name);
        let policy = container.policy.clone();
        let stored = container.sessions.get(key).cloned();
        let mut session = match (self.is_new, stored) {
            (true, Some(other)) if other.is_live(&before.policy, now) => {
                return Err(Refusal::Conflict);
            }
            (true, None) if is_given_up => return Err(Refusal::Conflict),
            (true, other) => {
                // It was over, if only by a timeout that this transaction has set.
                outcome.may_end.extend(other.map(|other| other.id));
                outcome.container(name).sessions.remove(key);
                *outcome.created.entry(name.to_owned()).or_default() += 1;
                self.base.clone()
            }
            (false, Some(stored)) if stored.id == self.base.id => stored.lasting(now),
            (false, _) if self.demands() => return Err(Refusal::Conflict),
            (false, _) => return Ok(None),
        };
        let found = session.clone();
        let lapsed = before.sessions.get(key).filter(|it| !self.is_new && it.id == session.id);
        let lapsed = lapsed.map_or(0, |it| it.attributes.len() - session.attributes.len());
        outcome.happened.extend((0..lapsed).map(|_| "attributes lapsed"));
        if let Some((slice_end, last_accessed)) = self.touch {
            session.slice_end = session.slice_end.max(slice_end);
            session.last_accessed = session.last_accessed.max(last_accessed);
        }
        if !self.is_new {
            if !session.is_live(&before.policy, now) {
                // It came too late.
                if self.demands() {
                    return Err(Refusal::Conflict);
                }
                if self.has_effect() || outcome.is_creating {
                    outcome.container(name).sessions.remove(key);
                }
                return Ok(None);
            }
            self.check_reads(&session, &policy)?;
            if self.ended_with.as_ref().is_some_and(|principal| !session.is_of(principal)) {
                return if self.demands() { Err(Refusal::Conflict) } else { Ok(None) };
            }
        }
        if self.is_ended {
            if self.ended_with.is_some() {
                outcome.happened.push("ends by principal");
            }
            outcome.end(name, key, session.id, EndReason::Invalidated);
            return Ok(None);
        }
        let version = outcome.version;
        self.changes.iter().for_each(|change| apply(change, &mut session.attributes, version));
        session.last_modified = session.last_modified.max(self.modified);
        session.timeout = self.timeout.unwrap_or(session.timeout);
        if let Some(principal) = &self.principal {
            session.principal.clone_from(principal);
        }
        if self.is_new && !session.is_live(&policy, now) {
            return Err(Refusal::Conflict);
        }
        if let Some((to, id)) = &self.rotated {
            outcome.end(name, key, session.id, EndReason::Rotated);
            return Ok(Some(Departure { key: to.clone(), id: *id, session }));
        }
        // That attributes have lapsed is noted with the next change.
        outcome.put(name, key, session.clone(), self.is_new || session != found);
        Ok(None)
    }

    /// Refuses if others have changed what it has taken, or read and then written.
    fn check_reads(&self, stored: &SessionState, policy: &Policy) -> Result<(), Refusal> {
        let version = |it: &SessionState, name: &str| it.attributes.get(name).map(|it| it.version);
        let is_changed = |name: &String| version(stored, name) != version(&self.base, name);
        if self.required.iter().any(is_changed) {
            return Err(Refusal::Taken);
        }
        // Who ends it, and whose later write holds, cares for what it has taken only.
        let cares = !self.is_ended && policy.default_rule == Rule::Checked;
        match cares && self.checked.iter().any(is_changed) {
            true => Err(Refusal::Conflict),
            false => Ok(()),
        }
    }
}

fn apply(change: &Change, attributes: &mut Attributes, version: u64) {
    let written = |value: Option<Value>, until| {
        let value = value.expect("it can be encoded");
        Attribute { value, version, until }
    };
    match change {
        Change::Put(name, Some(value), until) => {
            attributes.insert(name.clone(), written(Some(value.clone()), *until));
        }
        Change::Put(name, None, _) => {
            attributes.remove(name);
        }
        // What merges changes a value, and not until when it lasts. What makes no difference is no write.
        Change::Add(name, n) => {
            let stored = attributes.get(name);
            let before = stored.and_then(|it| it.value.to::<i64>());
            let until = stored.and_then(|it| it.until);
            let after = before.unwrap_or(0) + n;
            if before != Some(after) {
                attributes.insert(name.clone(), written(Value::of(&after), until));
            }
        }
        Change::Append(name, n, max) => {
            let stored = attributes.get(name);
            let before = stored.and_then(|it| it.value.to::<Vec<i64>>());
            let until = stored.and_then(|it| it.until);
            let mut list = before.clone().unwrap_or_default();
            list.push(*n);
            list.drain(..list.len().saturating_sub(*max));
            if before.as_ref() != Some(&list) {
                attributes.insert(name.clone(), written(Value::of(&list), until));
            }
        }
        Change::Clear => attributes.clear(),
    }
}
