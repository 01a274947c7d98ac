//! What a store should hold: plain maps.
//!
//! Written down a second time, as simply as can be, from what the documentation promises; nothing
//! here asks the store how it does it. What a transaction does to one session is in `life.rs`, what it
//! sees and wants in `intent.rs`, and what its commit makes of all that in `outcome.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use sessile::{
    Container, EndReason, Error, Key, Policy, Session, SessionId, Store, Time, Transaction, Value,
};

use super::workload::{KEYS, PRINCIPALS};

/// Sessions that end, and why.
pub(crate) type Ends = BTreeMap<SessionId, EndReason>;

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
    /// Where those have gone whose keys were given up.
    pub(crate) forwards: BTreeMap<Key, Forward>,
}

/// The session `from` goes on under `key`, as `id`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Forward {
    pub(crate) from: SessionId,
    pub(crate) key: Key,
    pub(crate) id: SessionId,
    /// Until then the old key leads to the session.
    pub(crate) grace: Time,
    /// Nobody may take the old key until this second is over.
    pub(crate) until: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SessionState {
    pub(crate) id: SessionId,
    pub(crate) created: Time,
    pub(crate) last_accessed: Time,
    pub(crate) last_modified: Option<Time>,
    pub(crate) slice_end: Time,
    pub(crate) attributes: Attributes,
    /// A timeout of its own in seconds; zero: none.
    pub(crate) timeout: Option<u64>,
    pub(crate) principal: Option<Principal>,
}

pub(crate) type Attributes = BTreeMap<String, Attribute>;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attribute {
    pub(crate) value: Value,
    /// Which commit has written it.
    pub(crate) version: u64,
    /// When it is gone, if it does not last as long as the session.
    pub(crate) until: Option<Time>,
}

/// Whose session it is, and the note on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Principal {
    pub(crate) name: String,
    pub(crate) note: String,
}

/// What a client sees at some time: live sessions only.
pub(crate) type Seen = BTreeMap<String, SeenContainer>;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SeenContainer {
    pub(crate) policy: Policy,
    pub(crate) sessions: BTreeMap<Key, SeenSession>,
    /// Keys that nobody may take, because they were given up.
    pub(crate) given_up: BTreeSet<Key>,
    /// Where keys lead that were given up a moment ago.
    pub(crate) led: BTreeMap<Key, SessionId>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SeenSession {
    id: SessionId,
    created: Time,
    last_accessed: Time,
    last_modified: Option<Time>,
    expires: Option<Time>,
    timeout: Option<u64>,
    principal: Option<Principal>,
    attributes: BTreeMap<String, Value>,
}

pub(crate) fn plus_secs(time: Time, secs: u64) -> Time {
    Time::from_micros(time.as_micros().saturating_add(secs.saturating_mul(1_000_000)))
}

pub(crate) fn slice_end(now: Time, policy: &Policy) -> Time {
    let period = policy.period_secs;
    Time::from_secs((now.as_secs() / period).saturating_add(1).saturating_mul(period))
}

impl SessionState {
    pub(crate) fn new(id: SessionId, policy: &Policy, now: Time) -> Self {
        SessionState {
            id,
            created: now,
            last_accessed: now,
            last_modified: None,
            slice_end: slice_end(now, policy),
            attributes: Attributes::new(),
            timeout: None,
            principal: None,
        }
    }

    pub(crate) fn expires(&self, policy: &Policy) -> Option<Time> {
        self.idle_until(policy).into_iter().chain(self.absolute_end(policy)).min()
    }

    fn idle_until(&self, policy: &Policy) -> Option<Time> {
        let timeout = self.timeout.unwrap_or(policy.timeout_secs);
        (timeout > 0).then(|| plus_secs(self.slice_end, timeout))
    }

    /// The end of the period in which its absolute lifetime is over.
    fn absolute_end(&self, policy: &Policy) -> Option<Time> {
        let (lifetime, period) = (policy.absolute_timeout_secs, policy.period_secs);
        let end = plus_secs(self.created, lifetime).as_micros().div_ceil(1_000_000);
        (lifetime > 0).then(|| Time::from_secs(end.div_ceil(period).saturating_mul(period)))
    }

    /// What has ended it, if its time is over.
    pub(crate) fn outlived(&self, policy: &Policy) -> &'static str {
        match (self.absolute_end(policy), self.timeout) {
            (Some(end), _) if self.expires(policy) == Some(end) => "ends by an absolute timeout",
            (_, Some(_)) => "ends by a timeout of their own",
            _ => "ends by the timeout",
        }
    }

    pub(crate) fn is_of(&self, principal: &str) -> bool {
        self.principal.as_ref().is_some_and(|theirs| theirs.name == principal)
    }

    /// The attributes that have not lapsed.
    pub(crate) fn values(&self, now: Time) -> BTreeMap<String, Value> {
        let lasting = self.attributes.iter().filter(|(_, it)| it.lasts(now));
        lasting.map(|(name, it)| (name.clone(), it.value.clone())).collect()
    }

    /// Without the attributes whose time is over.
    pub(crate) fn lasting(&self, now: Time) -> Self {
        let mut session = self.clone();
        session.attributes.retain(|_, attribute| attribute.lasts(now));
        session
    }

    pub(crate) fn is_live(&self, policy: &Policy, now: Time) -> bool {
        self.expires(policy).is_none_or(|expires| now < expires)
    }
}

impl Attribute {
    pub(crate) fn lasts(&self, now: Time) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

impl Forward {
    fn is_kept(&self, now: Time) -> bool {
        now.as_secs() <= self.until
    }
}

impl ContainerState {
    pub(crate) fn new(policy: Policy) -> Self {
        ContainerState { policy, sessions: BTreeMap::new(), forwards: BTreeMap::new() }
    }

    /// Where the session of a key has gone that nobody may take.
    pub(crate) fn forward(&self, key: &Key, now: Time) -> Option<&Forward> {
        self.forwards.get(key).filter(|forward| forward.is_kept(now))
    }

    /// Where a key leads to in the time of grace: the next one, as long as it lasts, and so on.
    fn leads_to(&self, key: &Key, now: Time) -> Option<SessionId> {
        let (mut key, mut id) = (key, None);
        loop {
            let live = self.sessions.get(key).filter(|it| it.is_live(&self.policy, now));
            if let Some(session) = live.filter(|it| id.is_none_or(|id| it.id == id)) {
                return id.map(|_| session.id);
            }
            let forward = self.forward(key, now).filter(|it| now < it.grace)?;
            if id.is_some_and(|id| forward.from != id) {
                return None;
            }
            (key, id) = (&forward.key, Some(forward.id));
        }
    }

    /// Where the session `id` lies that was found under `key`: there, or where its keys lead to. The
    /// last sweep has forgotten those that were not to be kept any more.
    pub(crate) fn gone_to(
        &self,
        key: &Key,
        id: SessionId,
        swept: Time,
    ) -> Option<(Key, SessionId)> {
        let (mut key, mut id) = (key.clone(), id);
        while self.sessions.get(&key).is_none_or(|session| session.id != id) {
            let forward = self.forwards.get(&key).filter(|forward| forward.is_kept(swept))?;
            if forward.from != id {
                return None;
            }
            (key, id) = (forward.key.clone(), forward.id);
        }
        Some((key, id))
    }

    /// Other settings wake nobody: whose time was over ends before they take effect.
    pub(crate) fn set_policy(&mut self, policy: &Policy, now: Time) {
        let before = &self.policy;
        self.sessions.retain(|_, it| it.is_live(before, now) || !it.is_live(policy, now));
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
                    timeout: session.timeout,
                    principal: session.principal.clone(),
                    attributes: session.values(now),
                };
                (key.clone(), seen)
            })
            .collect()
        };
        let seen = |it: &ContainerState| {
            let leads = |key: Key| it.leads_to(&key, now).map(|id| (key, id));
            let is_kept = |key: &&Key| it.forward(key, now).is_some();
            SeenContainer {
                policy: it.policy.clone(),
                sessions: live(it),
                given_up: it.forwards.keys().filter(is_kept).cloned().collect(),
                led: KEYS.map(Key::from).into_iter().filter_map(leads).collect(),
            }
        };
        self.containers.iter().map(|(name, it)| (name.clone(), seen(it))).collect()
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

    /// A session that has not ended, and the settings that it lives under.
    pub(crate) fn find(&self, id: SessionId) -> Option<(&SessionState, &Policy)> {
        let found = |it: &&Arc<SessionState>| it.id == id;
        let mut containers = self.containers.values();
        containers.find_map(|it| Some((&**it.sessions.values().find(found)?, &it.policy)))
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
    let (seen, miscounted) = look_and_count(store)?;
    match miscounted.first() {
        Some((_, found, len)) => Err(format!("{found} sessions in a container of {len}").into()),
        None => Ok(seen),
    }
}

/// A container, how many sessions are in it, and how many it says there are.
pub(crate) type Miscounted = (String, u64, u64);

/// The same, and what was miscounted.
pub(crate) fn look_and_count(store: &Store) -> Result<(Seen, Vec<Miscounted>), Trouble> {
    let txn = store.begin()?;
    let (mut seen, mut miscounted) = (Seen::new(), Vec::new());
    for container in store.containers() {
        let name = container.name().to_owned();
        let mut principals = principals(&txn, &container)?;
        let mut sessions = BTreeMap::new();
        for session in txn.iter(&container)? {
            let session = session?;
            let principal = principals.remove(&session.id());
            if session.principal()?.as_ref() != principal.as_ref().map(|it| &it.name) {
                return Err("a session and the list of its principal differ".into());
            }
            sessions.insert(session.key().clone(), seen_session(&session, principal)?);
        }
        if !principals.is_empty() {
            return Err("a principal has sessions that are not there".into());
        }
        let keys = txn.keys(&container)?.collect::<Result<Vec<_>, _>>()?;
        if !keys.iter().eq(sessions.keys()) {
            return Err("keys and sessions of a container differ".into());
        }
        let (found, len) = (sessions.len() as u64, txn.len(&container)?);
        if found != len {
            miscounted.push((name.clone(), found, len));
        }
        let (policy, led) = (txn.policy(&container)?, led(&txn, &container)?);
        let given_up = BTreeSet::new();
        seen.insert(name, SeenContainer { policy, sessions, given_up, led });
    }
    // At last, because it makes sessions. In the same transaction, because a store that gets over a
    // failure may change meanwhile.
    for container in store.containers() {
        if let Some(seen) = seen.get_mut(container.name()) {
            seen.given_up = given_up(&txn, &container)?;
        }
    }
    Ok((seen, miscounted))
}

/// Whose sessions they are, by the lists of principals.
fn principals(
    txn: &Transaction,
    container: &Container,
) -> Result<BTreeMap<SessionId, Principal>, Error> {
    let mut found = BTreeMap::new();
    for name in PRINCIPALS {
        for session in txn.sessions_of(container, name)? {
            let principal = Principal { name: name.to_owned(), note: session.note };
            found.insert(session.id, principal);
        }
    }
    Ok(found)
}

/// The keys under which nobody can make a session.
fn given_up(txn: &Transaction, container: &Container) -> Result<BTreeSet<Key>, Error> {
    let mut keys = BTreeSet::new();
    for key in KEYS.map(Key::from) {
        match txn.create(container, &key) {
            Ok(_) | Err(Error::Exists { .. } | Error::Limit { .. }) => {}
            Err(Error::RotatedKey { .. }) => drop(keys.insert(key)),
            Err(error) => return Err(error),
        }
    }
    Ok(keys)
}

/// Where keys lead that are none of their sessions' any more.
fn led(txn: &Transaction, container: &Container) -> Result<BTreeMap<Key, SessionId>, Error> {
    let mut led = BTreeMap::new();
    for key in KEYS.map(Key::from) {
        if let Some(session) = txn.peek(container, &key)?.filter(|it| *it.key() != key) {
            led.insert(key, session.id());
        }
    }
    Ok(led)
}

fn seen_session(session: &Session, principal: Option<Principal>) -> Result<SeenSession, Error> {
    Ok(SeenSession {
        id: session.id(),
        created: session.created()?,
        last_accessed: session.last_accessed()?,
        last_modified: session.last_modified()?,
        expires: session.expires()?,
        timeout: session.timeout()?.map(|timeout| timeout.as_secs()),
        principal,
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
