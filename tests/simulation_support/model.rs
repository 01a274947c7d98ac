//! What a store should hold: plain maps, and what a transaction makes of them.
//!
//! Written down a second time, as simply as can be, from what the documentation promises; nothing
//! here asks the store how it does it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use sessile::{
    Container, Durability, Error, Key, Policy, Session, SessionId, Store, Time, Transaction, Value,
};

/// A committed state.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct State {
    pub(crate) containers: BTreeMap<String, ContainerState>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ContainerState {
    pub(crate) policy: Policy,
    /// Those that have not ended, whether their time is over or not.
    pub(crate) sessions: BTreeMap<Key, Arc<SessionState>>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SessionState {
    pub(crate) id: SessionId,
    pub(crate) created: Time,
    pub(crate) last_accessed: Time,
    pub(crate) last_modified: Option<Time>,
    pub(crate) slice_end: Time,
    pub(crate) attributes: BTreeMap<String, Value>,
}

/// What a client sees at some time: live sessions only.
pub(crate) type Seen = BTreeMap<String, (Policy, BTreeMap<Key, SeenSession>)>;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SeenSession {
    id: SessionId,
    created: Time,
    last_accessed: Time,
    last_modified: Option<Time>,
    expires: Option<Time>,
    attributes: BTreeMap<String, Value>,
}

fn plus_secs(time: Time, secs: u64) -> Time {
    Time::from_micros(time.as_micros().saturating_add(secs.saturating_mul(1_000_000)))
}

fn slice_end(now: Time, policy: &Policy) -> Time {
    let period = policy.period_secs;
    Time::from_secs((now.as_secs() / period).saturating_add(1).saturating_mul(period))
}

impl SessionState {
    pub(crate) fn expires(&self, policy: &Policy) -> Option<Time> {
        (policy.timeout_secs > 0).then(|| plus_secs(self.slice_end, policy.timeout_secs))
    }

    pub(crate) fn is_live(&self, policy: &Policy, now: Time) -> bool {
        self.expires(policy).is_none_or(|expires| now < expires)
    }
}

impl ContainerState {
    /// A longer timeout wakes nobody: whose time was over ends before it takes effect.
    pub(crate) fn set_policy(&mut self, policy: &Policy, now: Time) {
        let lifetime = |policy: &Policy| match policy.timeout_secs {
            0 => u64::MAX,
            secs => secs,
        };
        if lifetime(policy) > lifetime(&self.policy) {
            let before = &self.policy;
            self.sessions.retain(|_, session| session.is_live(before, now));
        }
        self.policy = policy.clone();
    }
}

impl State {
    pub(crate) fn seen(&self, now: Time) -> Seen {
        let live = |container: &ContainerState| {
            let sessions = container.sessions.iter();
            let live = sessions.filter(|(_, session)| session.is_live(&container.policy, now));
            live.map(|(key, session)| {
                let seen = SeenSession {
                    id: session.id,
                    created: session.created,
                    last_accessed: session.last_accessed,
                    last_modified: session.last_modified,
                    expires: session.expires(&container.policy),
                    attributes: session.attributes.clone(),
                };
                (key.clone(), seen)
            })
            .collect()
        };
        let containers = self.containers.iter();
        containers.map(|(name, it)| (name.clone(), (it.policy.clone(), live(it)))).collect()
    }

    /// Those whose time is over and whose end was not committed yet.
    pub(crate) fn due(&self, now: Time) -> BTreeSet<SessionId> {
        let all = self.containers.values().flat_map(|container| {
            container.sessions.values().map(|session| (&container.policy, session))
        });
        all.filter(|(policy, session)| !session.is_live(policy, now))
            .map(|(_, session)| session.id)
            .collect()
    }

    pub(crate) fn unended(&self) -> BTreeSet<SessionId> {
        let containers = self.containers.values();
        containers.flat_map(|it| it.sessions.values()).map(|session| session.id).collect()
    }

    /// The state without these sessions.
    pub(crate) fn without(&self, ended: &BTreeSet<SessionId>) -> State {
        let mut state = self.clone();
        for container in state.containers.values_mut() {
            container.sessions.retain(|_, session| !ended.contains(&session.id));
        }
        state
    }
}

/// All that a fresh transaction shows, checked against what it says in other words.
pub(crate) fn look(store: &Store) -> Result<Seen, Trouble> {
    let txn = store.begin()?;
    let mut seen = Seen::new();
    for container in store.containers() {
        let mut sessions = BTreeMap::new();
        for session in txn.iter(&container)? {
            let session = session?;
            sessions.insert(session.key().clone(), seen_session(&session)?);
        }
        let keys = txn.keys(&container)?.collect::<Result<Vec<_>, _>>()?;
        if !keys.iter().eq(sessions.keys()) {
            return Err("keys and sessions of a container differ".into());
        }
        let len = txn.len(&container)?;
        if len != sessions.len() as u64 {
            return Err(format!("{} sessions in a container of {len}", sessions.len()).into());
        }
        seen.insert(container.name().to_owned(), (txn.policy(&container)?, sessions));
    }
    Ok(seen)
}

fn seen_session(session: &Session) -> Result<SeenSession, Error> {
    Ok(SeenSession {
        id: session.id(),
        created: session.created()?,
        last_accessed: session.last_accessed()?,
        last_modified: session.last_modified()?,
        expires: session.expires()?,
        attributes: session.iter()?.collect(),
    })
}

/// Why a case is a violation.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The store gave an error where it should not have.
    Error(Error),
    Violation(String),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Trouble::Error(error)
    }
}

/// Of the simulated disk, where it was to work.
impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Trouble::Violation(error.to_string())
    }
}

impl From<&str> for Trouble {
    fn from(text: &str) -> Self {
        Trouble::Violation(text.to_owned())
    }
}

impl From<String> for Trouble {
    fn from(text: String) -> Self {
        Trouble::Violation(text)
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trouble::Error(error) => {
                write!(f, "{error}")?;
                let mut cause = std::error::Error::source(error);
                while let Some(error) = cause {
                    write!(f, ": {error}")?;
                    cause = error.source();
                }
                Ok(())
            }
            Trouble::Violation(text) => f.write_str(text),
        }
    }
}

/// One thing that a client does to the session under a key.
#[derive(Clone, Debug)]
pub(crate) enum Deed {
    /// Looks it up, and makes it if it is absent.
    Visit,
    Put(String, Value),
    Add(String, i64),
    Append(String, i64),
    RemoveAttribute(String),
    Clear,
    End,
    /// Ends it, if it is there, and makes another one.
    Renew,
}

/// How many items a list keeps.
const APPEND_MAX: usize = 5;

/// A session as a transaction changes it.
#[derive(Clone, Debug)]
struct Life {
    base: SessionState,
    is_new: bool,
    deeds: Vec<Deed>,
    modified: Option<Time>,
    touch: Option<(Time, Time)>,
    is_ended: bool,
}

/// A transaction, and what it means to do.
pub(crate) struct Intent {
    pub(crate) txn: Transaction,
    base: Arc<State>,
    lives: BTreeMap<(String, Key), Vec<Life>>,
    policies: BTreeMap<String, Policy>,
}

/// What a commit should do.
pub(crate) struct Prediction {
    /// `None`: it conflicts.
    pub(crate) state: Option<State>,
    /// Whom it ends because somebody wanted it.
    pub(crate) invalidated: BTreeSet<SessionId>,
    /// Who may end on this occasion, their time being over.
    pub(crate) may_end: BTreeSet<SessionId>,
    /// It may be lost in a power cut although it was acknowledged: it changes nothing but times of
    /// access, or wanted no more.
    pub(crate) is_relaxed: bool,
}

impl Intent {
    pub(crate) fn begin(store: &Store, base: Arc<State>) -> Result<Self, Error> {
        let (lives, policies) = (BTreeMap::new(), BTreeMap::new());
        Ok(Intent { txn: store.begin()?, base, lives, policies })
    }

    /// Does something, in the transaction and in the model; `now` is the store's time.
    pub(crate) fn act(
        &mut self,
        container: &Container,
        key: &Key,
        deed: &Deed,
        now: Time,
    ) -> Result<(), Trouble> {
        let name = container.name().to_owned();
        let Some(before) = self.base.containers.get(&name) else {
            return Err("a container that its transaction does not know".into());
        };
        let policy = self.policies.get(&name).unwrap_or(&before.policy).clone();
        let found = before.sessions.get(key);
        let lives = self.lives.entry((name, key.clone())).or_insert_with(|| {
            let life = |base: &Arc<SessionState>| Life {
                base: SessionState::clone(base),
                is_new: false,
                deeds: Vec::new(),
                modified: None,
                touch: None,
                is_ended: false,
            };
            found.map(life).into_iter().collect()
        });
        if let Deed::End | Deed::Renew = deed {
            let ended = self.txn.remove(container, key)?;
            let live = lives.last_mut().filter(|life| life.is_live(&policy, now));
            if ended != live.is_some() {
                return Err("an end of a session that is not there, or the reverse".into());
            }
            if let Some(life) = live {
                life.is_ended = true;
            }
            if let Deed::End = deed {
                return Ok(());
            }
        }
        let session = self.txn.get_or_create(container, key)?;
        match lives.last_mut().filter(|life| life.is_live(&policy, now)) {
            Some(life) => {
                if life.base.id != session.id() {
                    return Err("another session under the key".into());
                }
                life.access(&policy, now);
            }
            None => lives.push(Life {
                base: SessionState {
                    id: session.id(),
                    created: now,
                    last_accessed: now,
                    last_modified: None,
                    slice_end: slice_end(now, &policy),
                    attributes: BTreeMap::new(),
                },
                is_new: true,
                deeds: Vec::new(),
                modified: None,
                touch: None,
                is_ended: false,
            }),
        }
        match deed {
            Deed::Visit | Deed::Renew | Deed::End => return Ok(()),
            Deed::Put(name, value) => session.insert_value(name, value.clone())?,
            Deed::Add(name, n) => session.add(name, *n)?,
            Deed::Append(name, n) => session.append(name, n, APPEND_MAX)?,
            Deed::RemoveAttribute(name) => session.remove(name)?,
            Deed::Clear => session.clear()?,
        }
        let life = lives.last_mut().expect("found or just made");
        life.deeds.push(deed.clone());
        life.modified = Some(now);
        Ok(())
    }

    pub(crate) fn set_policy(
        &mut self,
        container: &Container,
        policy: Policy,
    ) -> Result<(), Trouble> {
        self.txn.set_policy(container, policy.clone())?;
        let before = self.base.containers.get(container.name());
        if before.is_some_and(|before| before.policy != policy)
            || self.policies.contains_key(container.name())
        {
            self.policies.insert(container.name().to_owned(), policy);
        }
        Ok(())
    }

    /// What a commit should make of `stored`.
    pub(crate) fn predict(
        &self,
        stored: &State,
        durability: Option<Durability>,
        now: Time,
    ) -> Prediction {
        let mut state = Some(stored.clone());
        let mut invalidated = BTreeSet::new();
        let touched = self.lives.keys().map(|(name, _)| name).chain(self.policies.keys());
        let touched: BTreeSet<_> = touched.collect();
        let mut may_end = BTreeSet::new();
        for name in touched {
            let Some(container) = stored.containers.get(name) else { continue };
            let sessions = container.sessions.values();
            let over = sessions.filter(|session| !session.is_live(&container.policy, now));
            may_end.extend(over.map(|session| session.id));
        }
        for (name, policy) in &self.policies {
            let unchanged = self.base.containers[name].policy == stored.containers[name].policy;
            match &mut state {
                Some(state) if unchanged => {
                    let container = state.containers.get_mut(name);
                    container.expect("containers stay").set_policy(policy, now);
                }
                _ => state = None,
            }
        }
        let mut is_relaxed = self.policies.is_empty();
        for ((name, key), lives) in &self.lives {
            let before = &stored.containers[name].policy;
            if !lives.iter().any(Life::has_effect) {
                continue;
            }
            for life in lives {
                let level = durability.unwrap_or(before.durability);
                is_relaxed &= level == Durability::Relaxed || !life.is_new && !life.demands();
                if let Some(it) = &mut state
                    && life.apply(it, name, key, before, now, &mut invalidated).is_err()
                {
                    state = None;
                }
            }
        }
        // An end is for good.
        is_relaxed &= invalidated.is_empty();
        Prediction { state, invalidated, may_end, is_relaxed }
    }
}

/// The session has ended meanwhile, or there is another one.
struct Conflicts;

impl Life {
    /// The times as the transaction sees them.
    fn times(&self) -> (Time, Time) {
        self.touch.unwrap_or((self.base.slice_end, self.base.last_accessed))
    }

    fn is_live(&self, policy: &Policy, now: Time) -> bool {
        let slice_end = self.times().0;
        let over = plus_secs(slice_end, policy.timeout_secs);
        !self.is_ended && (policy.timeout_secs == 0 || now < over)
    }

    fn access(&mut self, policy: &Policy, now: Time) {
        const LAG_SECS: u64 = 30;
        let times = self.times();
        let is_old = now > plus_secs(times.1, LAG_SECS);
        let later = (times.0.max(slice_end(now, policy)), if is_old { now } else { times.1 });
        if later != times {
            self.touch = Some(later);
        }
    }

    /// Whether it matters that the session still lives at commit.
    fn demands(&self) -> bool {
        self.is_ended || !self.deeds.is_empty()
    }

    fn has_effect(&self) -> bool {
        self.is_new || self.demands() || self.touch.is_some()
    }

    fn apply(
        &self,
        state: &mut State,
        name: &str,
        key: &Key,
        before: &Policy,
        now: Time,
        invalidated: &mut BTreeSet<SessionId>,
    ) -> Result<(), Conflicts> {
        let container = state.containers.get_mut(name).ok_or(Conflicts)?;
        let policy = container.policy.clone();
        let stored = container.sessions.get(key).cloned();
        let mut session = match (self.is_new, stored) {
            (true, Some(other)) if other.is_live(before, now) => return Err(Conflicts),
            (true, _) => {
                container.sessions.remove(key);
                self.base.clone()
            }
            (false, Some(stored)) if stored.id == self.base.id => SessionState::clone(&stored),
            (false, _) => return if self.demands() { Err(Conflicts) } else { Ok(()) },
        };
        if let Some((slice_end, last_accessed)) = self.touch {
            session.slice_end = session.slice_end.max(slice_end);
            session.last_accessed = session.last_accessed.max(last_accessed);
        }
        if !session.is_live(if self.is_new { &policy } else { before }, now) && !self.is_ended {
            if self.is_new || self.demands() {
                return Err(Conflicts);
            }
            container.sessions.remove(key);
            return Ok(());
        }
        if !self.is_new && !session.is_live(before, now) {
            return Err(Conflicts);
        }
        if self.is_ended {
            invalidated.insert(session.id);
            container.sessions.remove(key);
            return Ok(());
        }
        for deed in &self.deeds {
            apply(deed, &mut session.attributes);
        }
        session.last_modified = session.last_modified.max(self.modified);
        container.sessions.insert(key.clone(), Arc::new(session));
        Ok(())
    }
}

fn apply(deed: &Deed, attributes: &mut BTreeMap<String, Value>) {
    let value = |value: &dyn Fn() -> Option<Value>| value().expect("it can be encoded");
    match deed {
        Deed::Visit | Deed::End | Deed::Renew => {}
        Deed::Put(name, value) => {
            attributes.insert(name.clone(), value.clone());
        }
        Deed::Add(name, n) => {
            let before = attributes.get(name).and_then(Value::to::<i64>).unwrap_or(0);
            attributes.insert(name.clone(), value(&|| Value::of(&(before + n))));
        }
        Deed::Append(name, n) => {
            let mut list = attributes.get(name).and_then(Value::to::<Vec<i64>>).unwrap_or_default();
            list.push(*n);
            let rest = list.len().saturating_sub(APPEND_MAX);
            attributes.insert(name.clone(), value(&|| Value::of(&list[rest..])));
        }
        Deed::RemoveAttribute(name) => {
            attributes.remove(name);
        }
        Deed::Clear => attributes.clear(),
    }
}
