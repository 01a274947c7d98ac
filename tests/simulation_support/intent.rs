//! A transaction, and what it means to do: everything is done twice, in the transaction and here, and
//! what the transaction answers must be what is expected here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sessile::{
    AtLimit, Container, Error, Key, LimitKind, Policy, Session, SessionId, Store, Time, Transaction,
};

use super::life::{Deed, Life};
use super::model::{Principal, State, Trouble, plus_secs};
use super::outcome::Place;

pub(crate) struct Intent {
    pub(crate) txn: Transaction,
    pub(crate) base: Arc<State>,
    pub(crate) lives: BTreeMap<Place, Vec<Life>>,
    pub(crate) policies: BTreeMap<String, Policy>,
    /// Principals of whom all sessions end.
    pub(crate) ended: BTreeSet<(String, String)>,
    /// What has been shown to it that is to be shown once.
    pub(crate) shown: Vec<i64>,
    /// What is to be counted.
    pub(crate) happened: Vec<&'static str>,
}

/// Where a session has gone, as which, and until when its old key leads there.
struct Gone {
    from: SessionId,
    key: Key,
    id: SessionId,
    grace: Time,
}

impl Intent {
    pub(crate) fn begin(store: &Store, base: Arc<State>) -> Result<Self, Error> {
        Ok(Intent {
            txn: store.begin()?,
            base,
            lives: BTreeMap::new(),
            policies: BTreeMap::new(),
            ended: BTreeSet::new(),
            shown: Vec::new(),
            happened: Vec::new(),
        })
    }

    /// Does something; `now` is the store's time.
    pub(crate) fn act(
        &mut self,
        container: &Container,
        key: &Key,
        deed: &Deed,
        now: Time,
    ) -> Result<(), Trouble> {
        let name = container.name().to_owned();
        if !self.base.containers.contains_key(&name) {
            return Err("a container that its transaction does not know".into());
        }
        if let Deed::End | Deed::Renew = deed {
            let found = self.reach(&name, key, now);
            let ended = self.txn.remove(container, key)?;
            if ended != found.is_some() {
                return Err("an end of a session that is not there, or the reverse".into());
            }
            if let Some(at) = found {
                self.live(&name, &at, now).is_ended = true;
            }
            if let Deed::End = deed {
                return Ok(());
            }
        }
        let found = self.reach(&name, key, now);
        let is_given_up = found.is_none() && self.gone(&name, key, now).is_some();
        let is_full = found.is_none() && !is_given_up && self.is_full(&name, now);
        let session = match self.txn.get_or_create(container, key) {
            Err(Error::RotatedKey { .. }) if is_given_up => {
                self.happened.push("keys refused that were given up");
                return Ok(());
            }
            Err(Error::Limit { limit: LimitKind::Sessions, .. }) if is_full => {
                self.happened.push("creations refused at the limit of a container");
                return Ok(());
            }
            Ok(_) if is_given_up => return Err("a session under a key that was given up".into()),
            Ok(_) if is_full => return Err("a session more in a container that is full".into()),
            found => found?,
        };
        let at = found.clone().unwrap_or_else(|| key.clone());
        if *session.key() != at {
            return Err("a session under another key".into());
        }
        if at != *key {
            self.happened.push("keys that led on in the time of grace");
        }
        let policy = self.policy(&name);
        if found.is_some() {
            let life = self.live(&name, &at, now);
            if life.id() != session.id() {
                return Err("another session under the key".into());
            }
            life.access(&policy, now);
        } else {
            let life = Life::created(session.id(), &policy, now);
            self.lives.entry((name.clone(), at.clone())).or_default().push(life);
        }
        match deed {
            Deed::Rotate(to) => self.rotate(&name, &at, &Key::from(*to), &session, now)?,
            Deed::Bind(principal, note) => {
                self.bind(&name, &at, principal, note, &session, now)?;
            }
            Deed::Unbind => {
                session.unbind()?;
                self.live(&name, &at, now).principal = Some(None);
            }
            Deed::EndOthers => {
                session.end_others()?;
                let life = self.live(&name, &at, now);
                if let Some(principal) = life.principal() {
                    life.ends_others = Some(principal.clone());
                    let id = life.id();
                    self.end_sessions_of(&name, &principal, Some(id), now);
                }
            }
            Deed::Timeout(timeout) => {
                session.set_timeout(timeout.map(Duration::from_secs))?;
                self.live(&name, &at, now).timeout = Some(*timeout);
            }
            deed => {
                let shown = self.live(&name, &at, now).change(&session, deed, now)?;
                self.shown.extend(shown);
            }
        }
        Ok(())
    }

    /// Ends all sessions of a principal.
    pub(crate) fn end_all_of(
        &mut self,
        container: &Container,
        principal: &str,
        now: Time,
    ) -> Result<(), Trouble> {
        self.txn.end_all_of(container, principal)?;
        self.end_sessions_of(container.name(), principal, None, now);
        self.ended.insert((container.name().to_owned(), principal.to_owned()));
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

    fn rotate(
        &mut self,
        name: &str,
        from: &Key,
        to: &Key,
        session: &Session,
        now: Time,
    ) -> Result<(), Trouble> {
        self.look_up(name, to, now);
        let is_given_up = self.gone(name, to, now).is_some();
        let is_taken = self.find(name, to, now).is_some();
        let id = match session.rotate(to) {
            Err(Error::RotatedKey { .. }) if is_given_up => return Ok(()),
            Err(Error::Exists { .. }) if is_taken && !is_given_up => return Ok(()),
            Ok(_) if is_given_up || is_taken => {
                return Err("a rotation to a key that nobody may take".into());
            }
            rotated => rotated?.id(),
        };
        let life = self.live(name, from, now);
        if !life.is_new {
            life.rotated = Some((to.clone(), id));
            return Ok(());
        }
        // Nobody else has ever seen it.
        let lives = self.lives.get_mut(&(name.to_owned(), from.clone()));
        let mut life = lives.and_then(Vec::pop).expect("the last one is the one that lives");
        life.base.id = id;
        self.lives.entry((name.to_owned(), to.clone())).or_default().push(life);
        Ok(())
    }

    fn bind(
        &mut self,
        name: &str,
        key: &Key,
        principal: &str,
        note: &str,
        session: &Session,
        now: Time,
    ) -> Result<(), Trouble> {
        let policy = self.policy(name);
        let max = policy.principal_limit as usize;
        let is_theirs = self.live(name, key, now).principal().is_some_and(|it| it == principal);
        let is_limited = max > 0 && policy.at_principal_limit == AtLimit::Reject && !is_theirs;
        let is_full = is_limited && self.sessions_of(name, principal, now).len() >= max;
        match session.bind(principal, note) {
            Err(Error::Limit { limit: LimitKind::PrincipalSessions, .. }) if is_full => {
                self.happened.push("bindings refused at the limit of a principal");
                return Ok(());
            }
            Ok(()) if is_full => return Err("a principal has more sessions than it may".into()),
            bound => bound?,
        }
        let principal = Principal { name: principal.to_owned(), note: note.to_owned() };
        self.live(name, key, now).principal = Some(Some(principal));
        Ok(())
    }

    /// Ends the sessions of a principal that the transaction sees, but for one.
    fn end_sessions_of(&mut self, name: &str, principal: &str, kept: Option<SessionId>, now: Time) {
        for (key, id) in self.sessions_of(name, principal, now) {
            if kept != Some(id) {
                self.look_up(name, &key, now);
                let life = self.live(name, &key, now);
                (life.is_ended, life.ended_with) = (true, Some(principal.to_owned()));
            }
        }
    }

    /// Notes what the snapshot holds under a key.
    fn look_up(&mut self, name: &str, key: &Key, now: Time) {
        let found = self.base.containers[name].sessions.get(key);
        let lives = self.lives.entry((name.to_owned(), key.clone()));
        lives.or_insert_with(|| found.map(|base| Life::found(base, now)).into_iter().collect());
    }

    /// Where the live session is that a key leads to, if it leads to one.
    fn reach(&mut self, name: &str, key: &Key, now: Time) -> Option<Key> {
        let (mut key, mut wanted) = (key.clone(), None);
        loop {
            self.look_up(name, &key, now);
            let found = self.find(name, &key, now).map(|life| life.id());
            if found.is_some() && wanted.is_none_or(|id| found == Some(id)) {
                return Some(key);
            }
            let gone = self.gone(name, &key, now)?;
            if wanted.is_some_and(|id| gone.from != id) || now >= gone.grace {
                return None;
            }
            (key, wanted) = (gone.key, Some(gone.id));
        }
    }

    /// The session that the transaction sees under a key.
    fn find(&mut self, name: &str, key: &Key, now: Time) -> Option<&mut Life> {
        let policy = self.policy(name);
        let lies_here = |at: &Key, life: &Life| match &life.rotated {
            Some((to, _)) => to == key,
            None => at == key,
        };
        let lives = self.lives.iter_mut().filter(|((container, _), _)| container == name);
        let here = lives
            .flat_map(|((_, at), lives)| lives.iter_mut().filter(move |life| lies_here(at, life)));
        here.filter(|life| life.is_live(&policy, now)).last()
    }

    /// The same, which is there.
    fn live(&mut self, name: &str, key: &Key, now: Time) -> &mut Life {
        self.find(name, key, now).expect("it was just found")
    }

    /// Where the session of a key has gone that was given up, before the transaction began or by itself.
    fn gone(&self, name: &str, key: &Key, now: Time) -> Option<Gone> {
        let last = self.lives.get(&(name.to_owned(), key.clone())).and_then(|lives| lives.last());
        if let Some((to, id)) = last.and_then(|life| life.rotated.clone()) {
            let from = last.map(|life| life.base.id)?;
            let grace = plus_secs(now, self.policy(name).rotation_grace_secs);
            return Some(Gone { from, key: to, id, grace });
        }
        let forward = self.base.containers[name].forward(key, now)?;
        let (from, key, id, grace) = (forward.from, forward.key.clone(), forward.id, forward.grace);
        Some(Gone { from, key, id, grace })
    }

    /// The settings as the transaction sees them. It changes no sessions of a container that it
    /// gives others.
    fn policy(&self, name: &str) -> Policy {
        self.policies.get(name).unwrap_or(&self.base.containers[name].policy).clone()
    }

    /// The live sessions that the transaction sees in a container.
    fn seen(&self, name: &str, now: Time) -> Vec<(Key, Life)> {
        let policy = self.policy(name);
        let lives = self.lives.iter().filter(|((container, _), _)| container == name);
        let own = lives.flat_map(|((_, at), lives)| {
            let lies = move |life: &Life| life.rotated.as_ref().map_or(at, |(to, _)| to).clone();
            lives.iter().map(move |life| (lies(life), life.clone()))
        });
        let is_own = |key: &Key| self.lives.contains_key(&(name.to_owned(), key.clone()));
        let others = self.base.containers[name].sessions.iter().filter(|(key, _)| !is_own(key));
        let others = others.map(|(key, base)| (key.clone(), Life::found(base, now)));
        own.chain(others).filter(|(_, life)| life.is_live(&policy, now)).collect()
    }

    fn sessions_of(&self, name: &str, principal: &str, now: Time) -> Vec<(Key, SessionId)> {
        let seen = self.seen(name, now).into_iter();
        let theirs = seen.filter(|(_, life)| life.principal().is_some_and(|it| it == principal));
        theirs.map(|(key, life)| (key, life.id())).collect()
    }

    /// Whether nobody can create a session more.
    fn is_full(&self, name: &str, now: Time) -> bool {
        let policy = self.policy(name);
        let is_limited = policy.limit > 0 && policy.at_limit == AtLimit::Reject;
        is_limited && self.seen(name, now).len() as u64 >= policy.limit
    }
}
