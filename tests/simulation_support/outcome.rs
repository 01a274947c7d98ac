//! What a commit makes of everything that a transaction wants.
//!
//! First each session where it lies, then those that go elsewhere, then the principals, then the room
//! in full containers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sessile::{AtLimit, Durability, EndReason, Key, LimitKind, Policy, SessionId, Time};

use super::intent::Intent;
use super::life::Life;
use super::model::{ContainerState, Ends, Forward, SessionState, State, plus_secs};

/// What a commit should do.
pub(crate) struct Prediction {
    pub(crate) verdict: Result<State, Refusal>,
    /// Whom it ends because somebody wanted it, or to make room.
    pub(crate) ends: Ends,
    /// Who may end on this occasion, their time being over.
    pub(crate) may_end: BTreeSet<SessionId>,
    /// It may be lost in a power cut although it was acknowledged: it changes nothing but times of
    /// access, or wanted no more.
    pub(crate) is_relaxed: bool,
    /// What is to be counted.
    pub(crate) happened: Vec<&'static str>,
}

/// Why a commit comes to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The session has ended meanwhile, there is another one, or others were faster.
    Conflict,
    /// What it has taken others have taken, or changed.
    Taken,
    Limit(LimitKind),
}

impl Refusal {
    fn word(self) -> &'static str {
        match self {
            Refusal::Conflict => "conflicts",
            Refusal::Taken => "takes that came too late",
            Refusal::Limit(LimitKind::PrincipalSessions) => "refusals at the limit of a principal",
            Refusal::Limit(_) => "refusals at the limit of a container",
        }
    }
}

/// A session on its way to another key.
pub(crate) struct Departure {
    pub(crate) key: Key,
    pub(crate) id: SessionId,
    pub(crate) session: SessionState,
}

/// A container and a key in it.
pub(crate) type Place = (String, Key);

/// What a commit has made so far.
pub(crate) struct Outcome {
    state: State,
    ends: Ends,
    pub(crate) may_end: BTreeSet<SessionId>,
    /// How many sessions were created where.
    pub(crate) created: BTreeMap<String, u64>,
    /// Whether it creates any.
    pub(crate) is_creating: bool,
    /// What it has changed or looked at: nobody there makes room.
    spared: BTreeSet<Place>,
    /// The number of the commit.
    pub(crate) version: u64,
    pub(crate) happened: Vec<&'static str>,
}

impl Outcome {
    pub(crate) fn container(&mut self, name: &str) -> &mut ContainerState {
        self.state.containers.get_mut(name).expect("containers stay")
    }

    pub(crate) fn put(&mut self, name: &str, key: &Key, session: SessionState, is_changed: bool) {
        if is_changed {
            self.container(name).sessions.insert(key.clone(), Arc::new(session));
        }
        self.spared.insert((name.to_owned(), key.clone()));
    }

    pub(crate) fn end(&mut self, name: &str, key: &Key, id: SessionId, reason: EndReason) {
        self.container(name).sessions.remove(key);
        self.ends.insert(id, reason);
        self.spared.insert((name.to_owned(), key.clone()));
    }

    /// Files a session under its new key; `before` is the container before the commit.
    fn arrive(
        &mut self,
        (name, from): Place,
        departure: Departure,
        before: &ContainerState,
        now: Time,
    ) -> Result<(), Refusal> {
        const MONTH_SECS: u64 = 30 * 24 * 60 * 60;
        let Departure { key, id, session } = departure;
        let container = self.container(&name);
        let lies = container.sessions.get(&key).cloned();
        let is_taken = lies.as_ref().is_some_and(|it| it.is_live(&before.policy, now));
        if is_taken || before.forward(&key, now).is_some() {
            return Err(Refusal::Conflict);
        }
        let policy = &container.policy;
        let lives = match session.timeout.unwrap_or(policy.timeout_secs) {
            0 => MONTH_SECS,
            timeout => timeout + policy.period_secs,
        };
        let grace = plus_secs(now, policy.rotation_grace_secs);
        let until = plus_secs(now, lives).max(grace).as_secs();
        let forward = Forward { from: session.id, key: key.clone(), id, grace, until };
        container.forwards.insert(from, forward);
        self.may_end.extend(lies.map(|it| it.id));
        self.put(&name, &key, SessionState { id, ..session }, true);
        self.happened.push("rotations");
        Ok(())
    }

    /// The sessions of a principal as they are by now.
    fn sessions_of(&self, name: &str, principal: &str) -> Vec<(Key, Arc<SessionState>)> {
        let sessions = self.state.containers[name].sessions.iter();
        let theirs = sessions.filter(|(_, session)| session.is_of(principal));
        theirs.map(|(key, session)| (key.clone(), Arc::clone(session))).collect()
    }

    /// Ends the sessions of a principal, but `kept` and those that the transaction has bound to it.
    fn end_bound(
        &mut self,
        name: &str,
        principal: &str,
        kept: Option<&Place>,
        bound: &BTreeMap<Place, String>,
        circumstances: (&Policy, Time),
    ) {
        for (key, session) in self.sessions_of(name, principal) {
            let place = (name.to_owned(), key);
            if kept == Some(&place) || bound.get(&place).is_some_and(|to| to == principal) {
                continue;
            }
            if session.is_live(circumstances.0, circumstances.1) {
                self.happened.push("ends by principal of a session that nobody had seen");
                self.end(name, &place.1, session.id, EndReason::Invalidated);
            } else {
                self.container(name).sessions.remove(&place.1);
            }
        }
    }

    /// Sees to it that a principal has no more sessions than it may.
    fn make_room_for(
        &mut self,
        name: &str,
        principal: &str,
        bound: &BTreeMap<Place, String>,
        circumstances: (&Policy, Time),
    ) -> Result<(), Refusal> {
        let policy = self.container(name).policy.clone();
        let max = policy.principal_limit;
        if max == 0 {
            return Ok(());
        }
        let mut sessions = self.sessions_of(name, principal);
        for (key, _) in
            sessions.extract_if(.., |(_, it)| !it.is_live(circumstances.0, circumstances.1))
        {
            self.container(name).sessions.remove(&key);
        }
        let excess = sessions.len().saturating_sub(max as usize);
        if excess == 0 {
            return Ok(());
        }
        let is_other = |(key, _): &(Key, _)| !bound.contains_key(&(name.to_owned(), key.clone()));
        sessions.retain(is_other);
        if policy.at_principal_limit == AtLimit::Reject || sessions.len() < excess {
            return Err(Refusal::Limit(LimitKind::PrincipalSessions));
        }
        // The one that was not used for the longest time.
        sessions.sort_by_key(|(key, it)| (it.slice_end, it.last_accessed, it.created, key.clone()));
        for (key, session) in sessions.into_iter().take(excess) {
            self.happened.push("evictions for a principal");
            self.end(name, &key, session.id, EndReason::Evicted);
        }
        Ok(())
    }

    /// Makes room for what was created in a container, `before` being how many sessions were there.
    fn make_room(&mut self, name: &str, before: u64, now: Time) -> Result<(), Refusal> {
        let policy = self.container(name).policy.clone();
        let limit = policy.limit;
        let sessions = self.container(name).sessions.clone();
        let mut excess = (sessions.len() as u64).saturating_sub(limit);
        if limit == 0 || excess == 0 {
            return Ok(());
        }
        let place = |key: &Key| (name.to_owned(), key.clone());
        let (live, over): (Vec<_>, Vec<_>) = sessions
            .iter()
            .filter(|(key, _)| !self.spared.contains(&place(key)))
            .partition(|(_, session)| session.is_live(&policy, now));
        // Whoever's time is over goes first.
        excess = excess.saturating_sub(over.len() as u64);
        let mut most = limit;
        if policy.at_limit == AtLimit::EvictOldest {
            // Where the limit was lowered nobody is refused as long as it does not become more.
            most = limit.max(before);
            let mut others: Vec<_> =
                live.into_iter().filter(|(_, session)| session.principal.is_none()).collect();
            others.sort_by_key(|(key, it)| {
                let expires = it.expires(&policy).unwrap_or(Time::from_micros(u64::MAX));
                (expires, it.slice_end, (*key).clone())
            });
            for (key, session) in others.into_iter().take(excess as usize) {
                self.happened.push("evictions");
                self.end(name, key, session.id, EndReason::Evicted);
                excess -= 1;
            }
        }
        if limit + excess > most {
            return Err(Refusal::Limit(LimitKind::Sessions));
        }
        Ok(())
    }
}

/// A number that no other commit has.
fn version() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

impl Intent {
    /// What a commit should make of `stored`, `swept` being the time of the last sweep.
    pub(crate) fn predict(
        &self,
        stored: &State,
        durability: Option<Durability>,
        swept: Time,
        now: Time,
    ) -> Prediction {
        let (lives, followed) = self.forwarded(stored, swept);
        let mut outcome = Outcome {
            state: stored.clone(),
            ends: Ends::new(),
            may_end: BTreeSet::new(),
            created: BTreeMap::new(),
            is_creating: lives.values().flatten().any(|life| life.is_new),
            spared: BTreeSet::new(),
            version: version(),
            happened: vec!["changes that followed a rotation"; followed],
        };
        let touched = lives.keys().map(|(name, _)| name).chain(self.policies.keys());
        let touched = touched.chain(self.ended.iter().map(|(name, _)| name));
        let touched: BTreeSet<_> = touched.collect();
        let over = |state: &State| {
            let containers = touched.iter().filter_map(|name| state.containers.get(*name));
            let over = containers.flat_map(|it| {
                let over = it.sessions.values().filter(|session| !session.is_live(&it.policy, now));
                over.map(|session| session.id)
            });
            over.collect::<BTreeSet<_>>()
        };
        outcome.may_end = over(stored);
        let verdict = self.settle(&lives, stored, &mut outcome, now);
        outcome.may_end.extend(over(&outcome.state));

        let mut is_relaxed = self.policies.is_empty() && verdict.is_ok();
        for ((name, _), lives) in &lives {
            let level = durability.unwrap_or(stored.containers[name].policy.durability);
            let is_demanding = lives.iter().any(|life| life.is_new || life.demands());
            is_relaxed &= level == Durability::Relaxed || !is_demanding;
        }
        let Outcome { state, mut ends, may_end, mut happened, .. } = outcome;
        if let Err(refusal) = &verdict {
            ends.clear();
            happened = vec![refusal.word()];
        }
        happened.extend(&self.happened);
        // An end is for good.
        is_relaxed &= ends.is_empty();
        let verdict = verdict.map(|()| state);
        Prediction { verdict, ends, may_end, is_relaxed, happened }
    }

    fn settle(
        &self,
        lives: &BTreeMap<Place, Vec<Life>>,
        stored: &State,
        outcome: &mut Outcome,
        now: Time,
    ) -> Result<(), Refusal> {
        for (name, policy) in &self.policies {
            if self.base.containers[name].policy != stored.containers[name].policy {
                return Err(Refusal::Conflict);
            }
            outcome.container(name).set_policy(policy, now);
        }
        let mut departures = Vec::new();
        for ((name, key), lives) in lives {
            outcome.spared.insert((name.clone(), key.clone()));
            for life in lives {
                let departure = life.apply(outcome, name, key, &stored.containers[name], now)?;
                departures.extend(departure.map(|it| ((name.clone(), key.clone()), it)));
            }
        }
        for (from, departure) in departures {
            let before = &stored.containers[&from.0];
            outcome.arrive(from, departure, before, now)?;
        }
        self.settle_principals(lives, stored, outcome, now)?;
        for name in outcome.created.clone().keys() {
            let before = stored.containers[name].sessions.len() as u64;
            outcome.make_room(name, before, now)?;
        }
        Ok(())
    }

    fn settle_principals(
        &self,
        lives: &BTreeMap<Place, Vec<Life>>,
        stored: &State,
        outcome: &mut Outcome,
        now: Time,
    ) -> Result<(), Refusal> {
        let circumstances = |name: &str| (&stored.containers[name].policy, now);
        let (mut bound, mut gained, mut keepers) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        for ((name, key), lives) in lives {
            let Some(life) = lives.last().filter(|life| !life.is_ended) else { continue };
            let lies = life.rotated.as_ref().map_or(key, |(to, _)| to);
            let place = (name.clone(), lies.clone());
            if let Some(Some(principal)) = &life.principal {
                let before = stored.containers[name].sessions.get(key);
                let before = before.filter(|before| before.id == life.base.id);
                if before.is_none_or(|before| !before.is_of(&principal.name)) {
                    gained.insert((name.clone(), principal.name.clone()));
                }
                bound.insert(place.clone(), principal.name.clone());
            }
            keepers.extend(life.ends_others.clone().map(|principal| (place, principal)));
        }
        for (name, principal) in &self.ended {
            outcome.end_bound(name, principal, None, &bound, circumstances(name));
        }
        for (kept, principal) in keepers {
            let circumstances = circumstances(&kept.0);
            outcome.end_bound(&kept.0, &principal, Some(&kept), &bound, circumstances);
        }
        for (name, principal) in gained {
            outcome.make_room_for(&name, &principal, &bound, circumstances(&name))?;
        }
        Ok(())
    }

    /// What it wants of sessions, where those lie now, and of how many that is another place.
    fn forwarded(&self, stored: &State, swept: Time) -> (BTreeMap<Place, Vec<Life>>, usize) {
        let mut lives = self.lives.clone();
        lives.retain(|_, lives| !lives.is_empty());
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
        let followed = gone.iter().filter(|(_, life)| life.demands()).count();
        for (place, life) in gone {
            lives.entry(place).or_default().insert(0, life);
        }
        (lives, followed)
    }
}
