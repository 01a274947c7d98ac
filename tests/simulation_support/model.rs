//! What a store should hold: plain maps, and what a transaction makes of them.
//!
//! Written down a second time, as simply as can be, from what the documentation promises; nothing
//! here asks the store how it does it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use sessile::{
    Container, Durability, EndReason, Error, Key, Policy, Session, SessionId, Store, Time,
    Transaction, Value,
};

use super::workload::KEYS;

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
    from: SessionId,
    key: Key,
    id: SessionId,
    /// Nobody may take the old key until this second is over.
    until: u64,
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
pub(crate) type Seen = BTreeMap<String, SeenContainer>;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SeenContainer {
    pub(crate) policy: Policy,
    pub(crate) sessions: BTreeMap<Key, SeenSession>,
    /// Keys that nobody may take, because they were given up.
    pub(crate) given_up: BTreeSet<Key>,
}

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

impl Forward {
    fn is_kept(&self, now: Time) -> bool {
        now.as_secs() <= self.until
    }
}

impl ContainerState {
    pub(crate) fn new(policy: Policy) -> Self {
        ContainerState { policy, sessions: BTreeMap::new(), forwards: BTreeMap::new() }
    }

    fn is_given_up(&self, key: &Key, now: Time) -> bool {
        self.forwards.get(key).is_some_and(|forward| forward.is_kept(now))
    }

    /// Where the session `id` lies that was found under `key`: there, or where its keys lead to. The
    /// last sweep has forgotten those that were not to be kept any more.
    fn gone_to(&self, key: &Key, id: SessionId, swept: Time) -> Option<(Key, SessionId)> {
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
        let seen = |it: &ContainerState| SeenContainer {
            policy: it.policy.clone(),
            sessions: live(it),
            given_up: it.forwards.keys().filter(|key| it.is_given_up(key, now)).cloned().collect(),
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
        let (name, policy) = (container.name().to_owned(), txn.policy(&container)?);
        let given_up = given_up(&store.begin()?, &container)?;
        seen.insert(name, SeenContainer { policy, sessions, given_up });
    }
    Ok(seen)
}

/// The keys under which nobody can make a session.
fn given_up(txn: &Transaction, container: &Container) -> Result<BTreeSet<Key>, Error> {
    let mut keys = BTreeSet::new();
    for key in KEYS.map(Key::from) {
        match txn.create(container, &key) {
            Ok(_) | Err(Error::Exists { .. }) => {}
            Err(Error::RotatedKey { .. }) => drop(keys.insert(key)),
            Err(error) => return Err(error),
        }
    }
    Ok(keys)
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
    /// Has it go on under another key.
    Rotate(&'static str),
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
    /// It was found, and goes on under this key, as this session.
    rotated: Option<(Key, SessionId)>,
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
    pub(crate) ends: Ends,
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
        self.look_up(&name, key);
        if let Deed::End | Deed::Renew = deed {
            let ended = self.txn.remove(container, key)?;
            let live = self.live(&name, key, &policy, now);
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
        let is_given_up = self.is_given_up(&name, key, now);
        let session = match self.txn.get_or_create(container, key) {
            Err(Error::RotatedKey { .. }) if is_given_up => return Ok(()),
            Ok(_) if is_given_up => return Err("a session under a key that was given up".into()),
            found => found?,
        };
        let life = match self.live(&name, key, &policy, now) {
            Some(life) => {
                if life.id() != session.id() {
                    return Err("another session under the key".into());
                }
                life.access(&policy, now);
                life
            }
            None => {
                let base = SessionState {
                    id: session.id(),
                    created: now,
                    last_accessed: now,
                    last_modified: None,
                    slice_end: slice_end(now, &policy),
                    attributes: BTreeMap::new(),
                };
                let lives = self.lives.entry((name.clone(), key.clone())).or_default();
                lives.push(Life { is_new: true, ..Life::found(base) });
                lives.last_mut().expect("it was just made")
            }
        };
        match deed {
            Deed::Visit | Deed::Renew | Deed::End => return Ok(()),
            Deed::Put(name, value) => session.insert_value(name, value.clone())?,
            Deed::Add(name, n) => session.add(name, *n)?,
            Deed::Append(name, n) => session.append(name, n, APPEND_MAX)?,
            Deed::RemoveAttribute(name) => session.remove(name)?,
            Deed::Clear => session.clear()?,
            Deed::Rotate(to) => return self.rotate(&name, key, &Key::from(*to), &session, now),
        }
        life.deeds.push(deed.clone());
        life.modified = Some(now);
        Ok(())
    }

    fn rotate(
        &mut self,
        name: &str,
        from: &Key,
        to: &Key,
        session: &Session,
        now: Time,
    ) -> Result<(), Trouble> {
        let policy = self.base.containers[name].policy.clone();
        self.look_up(name, to);
        let is_given_up = self.is_given_up(name, to, now);
        let is_taken = self.live(name, to, &policy, now).is_some();
        let id = match session.rotate(to) {
            Err(Error::RotatedKey { .. }) if is_given_up => return Ok(()),
            Err(Error::Exists { .. }) if is_taken && !is_given_up => return Ok(()),
            Ok(_) if is_given_up || is_taken => {
                return Err("a rotation to a key that nobody may take".into());
            }
            rotated => rotated?.id(),
        };
        let life = self.live(name, from, &policy, now).expect("it was just found");
        if !life.is_new {
            life.rotated = Some((to.clone(), id));
            return Ok(());
        }
        // Nobody else has ever seen it.
        let lives = self.lives.get_mut(&(name.to_owned(), from.clone()));
        let life = lives.and_then(Vec::pop).expect("the last one is the one that lives");
        let base = SessionState { id, ..life.base };
        let lives = self.lives.entry((name.to_owned(), to.clone())).or_default();
        lives.push(Life { base, ..life });
        Ok(())
    }

    /// Notes what the snapshot holds under a key.
    fn look_up(&mut self, name: &str, key: &Key) {
        let found = self.base.containers[name].sessions.get(key);
        let life = |base: &Arc<SessionState>| Life::found(SessionState::clone(base));
        let lives = self.lives.entry((name.to_owned(), key.clone()));
        lives.or_insert_with(|| found.map(life).into_iter().collect());
    }

    /// The session that the transaction sees under a key.
    fn live(&mut self, name: &str, key: &Key, policy: &Policy, now: Time) -> Option<&mut Life> {
        let lies_here = |at: &Key, life: &Life| match &life.rotated {
            Some((to, _)) => to == key,
            None => at == key,
        };
        let lives = self.lives.iter_mut().filter(|((container, _), _)| container == name);
        let here = lives
            .flat_map(|((_, at), lives)| lives.iter_mut().filter(move |life| lies_here(at, life)));
        here.filter(|life| life.is_live(policy, now)).last()
    }

    /// Whether a key was given up before the transaction began, or by itself.
    fn is_given_up(&self, name: &str, key: &Key, now: Time) -> bool {
        let lives = self.lives.get(&(name.to_owned(), key.clone()));
        let last = lives.and_then(|lives| lives.last());
        last.is_some_and(|life| life.rotated.is_some())
            || self.base.containers[name].is_given_up(key, now)
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

    /// What a commit should make of `stored`, `swept` being the time of the last sweep.
    pub(crate) fn predict(
        &self,
        stored: &State,
        durability: Option<Durability>,
        swept: Time,
        now: Time,
    ) -> Prediction {
        let mut state = Some(stored.clone());
        let (mut ends, mut departures) = (Ends::new(), Vec::new());
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
        for ((name, key), lives) in self.forwarded(stored, swept) {
            let before = &stored.containers[&name];
            for life in lives {
                let level = durability.unwrap_or(before.policy.durability);
                is_relaxed &= level == Durability::Relaxed || !life.is_new && !life.demands();
                if let Some(it) = &mut state {
                    match life.apply(it, &name, &key, before, now, &mut ends) {
                        Ok(departure) => {
                            departures.extend(departure.map(|it| (name.clone(), key.clone(), it)));
                        }
                        Err(Conflicts) => state = None,
                    }
                }
            }
        }
        for (name, from, departure) in departures {
            if let Some(it) = &mut state {
                let before = &stored.containers[&name];
                let container = it.containers.get_mut(&name).expect("containers stay");
                if departure.arrive(container, from, before, now).is_err() {
                    state = None;
                }
            }
        }
        // An end is for good.
        is_relaxed &= ends.is_empty();
        Prediction { state, ends, may_end, is_relaxed }
    }

    /// What it wants of sessions, where those lie now.
    fn forwarded(&self, stored: &State, swept: Time) -> BTreeMap<(String, Key), Vec<Life>> {
        let mut lives = self.lives.clone();
        lives.retain(|_, lives| lives.iter().any(Life::has_effect));
        let mut gone = Vec::new();
        for ((name, key), lives) in &mut lives {
            let Some(first) = lives.first().filter(|life| !life.is_new && life.rotated.is_none())
            else {
                continue;
            };
            let now = stored.containers[name].gone_to(key, first.base.id, swept);
            if let Some((to, id)) = now.filter(|(to, _)| to != key) {
                let mut life = lives.remove(0);
                life.base.id = id;
                gone.push(((name.clone(), to), life));
            }
        }
        for (place, life) in gone {
            lives.entry(place).or_default().insert(0, life);
        }
        lives
    }
}

/// The session has ended meanwhile, or there is another one.
struct Conflicts;

/// A session on its way to another key.
struct Departure {
    key: Key,
    id: SessionId,
    session: SessionState,
}

impl Departure {
    /// `before` is the container before the commit.
    fn arrive(
        self,
        container: &mut ContainerState,
        from: Key,
        before: &ContainerState,
        now: Time,
    ) -> Result<(), Conflicts> {
        const MONTH_SECS: u64 = 30 * 24 * 60 * 60;
        let Departure { key, id, session } = self;
        let lies = container.sessions.get(&key);
        let is_taken = lies.is_some_and(|other| other.is_live(&before.policy, now));
        if is_taken || before.is_given_up(&key, now) {
            return Err(Conflicts);
        }
        let lives = match container.policy.timeout_secs {
            0 => MONTH_SECS,
            timeout => timeout + container.policy.period_secs,
        };
        let until = plus_secs(now, lives).as_secs();
        let forward = Forward { from: session.id, key: key.clone(), id, until };
        container.forwards.insert(from, forward);
        container.sessions.insert(key, Arc::new(SessionState { id, ..session }));
        Ok(())
    }
}

impl Life {
    fn found(base: SessionState) -> Self {
        Life {
            base,
            is_new: false,
            deeds: Vec::new(),
            modified: None,
            touch: None,
            is_ended: false,
            rotated: None,
        }
    }

    /// Which session the transaction sees it as.
    fn id(&self) -> SessionId {
        self.rotated.as_ref().map_or(self.base.id, |(_, id)| *id)
    }

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
        self.is_ended || !self.deeds.is_empty() || self.rotated.is_some()
    }

    fn has_effect(&self) -> bool {
        self.is_new || self.demands() || self.touch.is_some()
    }

    fn apply(
        &self,
        state: &mut State,
        name: &str,
        key: &Key,
        before: &ContainerState,
        now: Time,
        ends: &mut Ends,
    ) -> Result<Option<Departure>, Conflicts> {
        let is_given_up = before.is_given_up(key, now);
        let before = &before.policy;
        let container = state.containers.get_mut(name).ok_or(Conflicts)?;
        let policy = container.policy.clone();
        let stored = container.sessions.get(key).cloned();
        let mut session = match (self.is_new, stored) {
            (true, Some(other)) if other.is_live(before, now) => return Err(Conflicts),
            (true, None) if is_given_up => return Err(Conflicts),
            (true, _) => {
                container.sessions.remove(key);
                self.base.clone()
            }
            (false, Some(stored)) if stored.id == self.base.id => SessionState::clone(&stored),
            (false, _) => return if self.demands() { Err(Conflicts) } else { Ok(None) },
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
            return Ok(None);
        }
        if !self.is_new && !session.is_live(before, now) {
            return Err(Conflicts);
        }
        if self.is_ended {
            ends.insert(session.id, EndReason::Invalidated);
            container.sessions.remove(key);
            return Ok(None);
        }
        for deed in &self.deeds {
            apply(deed, &mut session.attributes);
        }
        session.last_modified = session.last_modified.max(self.modified);
        if let Some((to, id)) = &self.rotated {
            ends.insert(session.id, EndReason::Rotated);
            container.sessions.remove(key);
            return Ok(Some(Departure { key: to.clone(), id: *id, session }));
        }
        container.sessions.insert(key.clone(), Arc::new(session));
        Ok(None)
    }
}

fn apply(deed: &Deed, attributes: &mut BTreeMap<String, Value>) {
    let value = |value: &dyn Fn() -> Option<Value>| value().expect("it can be encoded");
    match deed {
        Deed::Visit | Deed::End | Deed::Renew | Deed::Rotate(_) => {}
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
