//! What a transaction and its handles share: the snapshot, and all that is to change.
//!
//! Everything goes through one lock, so that handles may be used from several threads. It is held
//! while a session is read, and never while somebody else's code runs.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::Error;
use crate::model::clock::Time;
use crate::model::container::{ContainerId, ContainerState, Kind, Place};
use crate::model::draft::{Draft, Life, Rotation};
use crate::model::forward::{self, Forward};
use crate::model::key::Key;
use crate::model::policy::{Durability, Policy};
use crate::model::principals;
use crate::model::session::{Name, Record, Revision, SessionId};
use crate::store::commit::{Intent, PolicyChange};
use crate::store::core::Core;
use crate::store::door::Door;
use crate::store::filter::Filter;
use crate::store::lock;
use crate::store::observe;
use crate::store::snapshots::Snapshot;
use crate::store::versions::Policies;
use crate::sync::{Mutex, MutexGuard};

pub(crate) struct Workspace {
    pub door: Arc<Door>,
    pub snapshot: Snapshot,
    /// The snapshot was let go of before the transaction was over.
    released: AtomicBool,
    /// The policies as the snapshot shows them.
    policies: Arc<Policies>,
    state: Mutex<State>,
}

/// What a transaction has done so far.
#[derive(Default)]
pub(crate) struct State {
    over: bool,
    /// The store's time at the call that holds the lock.
    pub now: Time,
    changes: Changes,
    /// The containers as the snapshot shows them, once they were asked for.
    containers: BTreeMap<ContainerId, Arc<ContainerState>>,
    savepoints: Vec<(u64, Changes)>,
    /// When the commit is to be acknowledged, if the transaction has said so.
    pub durability: Option<Durability>,
    /// How many start listeners are running inside each other.
    pub starting: usize,
    /// Whether it was told of a key that was given up: once is enough.
    pub told_of_rotated: bool,
    /// It wins conflicts at attributes that no rule resolves.
    pub later_wins: bool,
}

#[derive(Clone, Default)]
struct Changes {
    drafts: BTreeMap<Place, Draft>,
    /// Those that it has set.
    policies: BTreeMap<ContainerId, Set>,
    /// Those of whom all sessions end.
    principals: BTreeSet<(ContainerId, Name)>,
}

/// A policy that this transaction has set.
#[derive(Clone)]
struct Set {
    policy: Arc<Policy>,
    /// The same, as it decides who lives within this transaction: a longer timeout holds from the
    /// commit on, because what has expired must not become valid again.
    meanwhile: Arc<Policy>,
}

impl Workspace {
    pub(crate) fn new(door: Arc<Door>) -> Result<Self, Error> {
        let snapshot = door.begin()?;
        let policies = door.policies(snapshot.revision());
        let released = AtomicBool::new(false);
        Ok(Workspace { door, snapshot, released, policies, state: Mutex::default() })
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.door
    }

    /// The state of a transaction that is not over and whose snapshot holds.
    pub(crate) fn lock(&self) -> Result<MutexGuard<'_, State>, Error> {
        let mut state = lock(&self.state);
        if state.over {
            return Err(Error::TransactionOver);
        }
        let (now, elapsed) = self.door.times();
        let age = elapsed.saturating_sub(self.snapshot.begun());
        if age >= self.door.bounds.snapshot_age_max && !self.is_released() {
            return Err(Error::SnapshotTooOld { age });
        }
        self.check()?;
        state.now = now;
        Ok(state)
    }

    /// Lets go of the snapshot. What was looked up stays as it was seen.
    pub(crate) fn release(&self) -> Result<(), Error> {
        // Not while another thread looks something up.
        let state = self.lock()?;
        if !self.released.swap(true, Ordering::AcqRel) {
            drop(state);
            self.let_go();
        }
        Ok(())
    }

    pub(crate) fn is_released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }

    /// What the snapshot holds at a place; what is committed now, if it was let go of.
    fn look_up(&self, place: &Place) -> Result<Option<Arc<Record>>, Error> {
        if self.is_released() {
            let snapshot = self.door.hold()?;
            return self.door.versions.read(place, snapshot.revision());
        }
        let read = self.door.versions.read(place, self.snapshot.revision())?;
        self.check()?;
        Ok(read)
    }

    /// The revision that a scan reads at. There is none once the snapshot was let go of.
    pub(crate) fn scanned(&self) -> Result<Revision, Error> {
        match self.is_released() {
            false => Ok(self.snapshot.revision()),
            true => Err(self.too_old()),
        }
    }

    /// Takes it for granted that nothing lies at a place. If something does, the commit finds it.
    pub(crate) fn assume_absent(&self, place: &Place) -> Result<(), Error> {
        let mut state = self.lock()?;
        state.changes.drafts.entry(place.clone()).or_insert_with(|| Draft::new(None));
        Ok(())
    }

    /// An error if what the snapshot saw may be gone. Ask after a read.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match !self.is_released() && self.door.snapshots.is_given_up(&self.snapshot) {
            true => Err(self.too_old()),
            false => Ok(()),
        }
    }

    fn too_old(&self) -> Error {
        let age = self.door.clock.elapsed().saturating_sub(self.snapshot.begun());
        Error::SnapshotTooOld { age }
    }

    /// A container as the snapshot shows it.
    pub(crate) fn container(&self, id: ContainerId) -> Result<Arc<ContainerState>, Error> {
        Ok(Arc::clone(self.lock()?.container(self, id)))
    }

    /// The policy that decides who lives within this transaction.
    pub(crate) fn policy(&self, id: ContainerId) -> Result<Arc<Policy>, Error> {
        let state = &mut *self.lock()?;
        Ok(Arc::clone(self.meanwhile(&state.changes.policies, &mut state.containers, id)))
    }

    /// The policy that this transaction has set, or the stored one.
    pub(crate) fn settings(&self, id: ContainerId) -> Result<Arc<Policy>, Error> {
        let mut state = self.lock()?;
        let set = state.changes.policies.get(&id).map(|set| Arc::clone(&set.policy));
        Ok(set.unwrap_or_else(|| Arc::clone(&state.container(self, id).policy)))
    }

    pub(crate) fn set_policy(&self, id: ContainerId, policy: Policy) -> Result<(), Error> {
        let mut state = self.lock()?;
        let stored = Arc::clone(&state.container(self, id).policy);
        // What is set to what it was is no change.
        if *stored == policy {
            state.changes.policies.remove(&id);
            return Ok(());
        }
        let meanwhile = Arc::new(policy.no_longer_than(&stored));
        let set = Set { policy: Arc::new(policy), meanwhile };
        state.changes.policies.insert(id, set);
        Ok(())
    }

    /// Works on what this transaction has done to a key so far.
    pub(crate) fn with_draft<T>(
        &self,
        place: &Place,
        work: impl FnOnce(&mut Draft, &Policy, Time) -> T,
    ) -> Result<T, Error> {
        let state = &mut *self.lock()?;
        let State { changes: Changes { drafts, policies, .. }, containers, now, .. } = state;
        let policy = self.meanwhile(policies, containers, place.0);
        let draft = match drafts.get_mut(place) {
            Some(draft) => draft,
            None => {
                let watch = observe::load(&self.door, place);
                let read = self.look_up(place);
                watch.loaded(&self.door, &read);
                let base = read?.map(|record| record.lapsed(*now));
                drafts.entry(place.clone()).or_insert(Draft::new(base))
            }
        };
        Ok(work(draft, policy, *now))
    }

    /// The session that this transaction sees under a key of which `base` is in the snapshot,
    /// without making a draft of it.
    pub(crate) fn sees(
        &self,
        place: &Place,
        base: Option<&Arc<Record>>,
    ) -> Result<Option<SessionId>, Error> {
        let State { changes, containers, now, .. } = &mut *self.lock()?;
        let policy = self.meanwhile(&changes.policies, containers, place.0);
        Ok(match changes.drafts.get(place) {
            Some(draft) => draft.live(policy, *now).map(|life| life.base.id),
            None => base.filter(|record| !record.is_expired(policy, *now)).map(|record| record.id),
        })
    }

    /// The same, if it passes a filter.
    pub(crate) fn sees_passing(
        &self,
        place: &Place,
        base: Option<&Arc<Record>>,
        filter: &Filter,
    ) -> Result<Option<SessionId>, Error> {
        let State { changes, containers, now, .. } = &mut *self.lock()?;
        let policy = self.meanwhile(&changes.policies, containers, place.0);
        let record = match changes.drafts.get(place) {
            Some(draft) => {
                let life = draft.live(policy, *now);
                life.map(|life| Arc::new(life.proposed(life.base.revision)))
            }
            None => base.filter(|record| !record.is_expired(policy, *now)).cloned(),
        };
        let passing = record.filter(|record| filter.matches(record, policy, *now));
        Ok(passing.map(|record| record.id))
    }

    /// The keys of a container that have drafts.
    pub(crate) fn drafted(&self, id: ContainerId) -> Result<BTreeSet<Key>, Error> {
        let state = self.lock()?;
        let drafts = state.changes.drafts.keys().filter(|place| place.0 == id);
        Ok(drafts.map(|place| place.1.clone()).collect())
    }

    /// How many of a container's sessions have drafts: of those that the snapshot holds, and of
    /// those that this transaction sees.
    pub(crate) fn count_drafts(&self, id: ContainerId) -> Result<(u64, u64), Error> {
        let State { changes, containers, now, .. } = &mut *self.lock()?;
        let policy = self.meanwhile(&changes.policies, containers, id);
        let drafts = changes.drafts.iter().filter(|(place, _)| place.0 == id);
        Ok(drafts.fold((0, 0), |(found, seen), (_, draft)| {
            let sees = draft.live(policy, *now).is_some();
            (found + u64::from(draft.has_base()), seen + u64::from(sees))
        }))
    }

    /// Files the session `id` under another key, as the session `new`.
    pub(crate) fn rotate(
        &self,
        from: &Place,
        id: SessionId,
        to: &Place,
        new: SessionId,
    ) -> Result<(), Error> {
        // Both drafts are there from now on.
        self.with_draft(to, |_, _, _| ())?;
        self.with_draft(from, |_, _, _| ())?;
        let State { changes, containers, now, .. } = &mut *self.lock()?;
        let policy = self.meanwhile(&changes.policies, containers, to.0);
        let draft = |place| changes.drafts.get(place).expect("it was just made");
        let lives = draft(from).live(policy, *now).is_some_and(|life| life.base.id == id);
        if !lives {
            return Err(Error::Ended);
        }
        if draft(to).live(policy, *now).is_some() {
            let container = self.door.container(to.0, &self.snapshot).name.to_string();
            return Err(Error::Exists { container, session: to.1.fingerprint() });
        }
        let rotation = Rotation { key: to.1.clone(), id: new };
        let drafts = &mut changes.drafts;
        let departs = drafts.get_mut(from).and_then(|d| d.depart(id, &from.1, rotation.clone()));
        let life = departs.expect("it lives there");
        // It may have been rotated here before. Then nobody else has ever seen the key between.
        if let Some(key) = &life.came_from
            && let Some(draft) = drafts.get_mut(&(to.0, key.clone()))
        {
            draft.lives.iter_mut().for_each(|life| {
                life.rotated = life.rotated.take().map(|_| rotation.clone());
            });
        }
        drafts.get_mut(to).expect("it was just made").lives.push(life);
        Ok(())
    }

    /// Where the session of a key has gone, if that was given up for another one.
    pub(crate) fn forward(&self, place: &Place) -> Result<Option<Forward>, Error> {
        let State { changes, containers, now, .. } = &mut *self.lock()?;
        let stayed = changes.drafts.get(place).and_then(|draft| draft.lives.last());
        if let Some((stayed, Rotation { key, id })) =
            stayed.and_then(|life| Some((life, life.rotated.clone()?)))
        {
            let policy = self.meanwhile(&changes.policies, containers, place.0);
            let (since, grace) = (*now, now.plus_secs(policy.rotation_grace_secs));
            return Ok(Some(Forward { from: stayed.base.id, key, id, since, grace }));
        }
        if !self.door.has_forwards() {
            return Ok(None);
        }
        let note = (place.0.of(Kind::Rotated), place.1.clone());
        let note = self.look_up(&note)?;
        let kept = note.filter(|record| forward::is_kept(record, *now));
        Ok(kept.and_then(|record| Forward::of(&record)))
    }

    /// The live sessions of a principal, in the order of their keys, without attributes.
    pub(crate) fn sessions_of(
        &self,
        id: ContainerId,
        principal: &str,
    ) -> Result<Vec<(Key, Record)>, Error> {
        let row = self.look_up(&principals::place(id, principal))?;
        let mut keys = self.drafted(id)?;
        keys.extend(row.iter().flat_map(|row| principals::sessions(row)).map(|(key, _)| key));
        let mut sessions = Vec::new();
        for key in keys {
            let place = (id, key);
            let base = self.look_up(&place)?;
            let State { changes, containers, now, .. } = &mut *self.lock()?;
            let policy = self.meanwhile(&changes.policies, containers, id);
            let found = Draft::new(base);
            let draft = changes.drafts.get(&place).unwrap_or(&found);
            let session = draft.live(policy, *now).map(Life::times);
            let is_theirs =
                |record: &Record| record.principal().is_some_and(|p| *p.name == *principal);
            sessions.extend(session.filter(is_theirs).map(|record| (place.1, record)));
        }
        Ok(sessions)
    }

    /// Ends the sessions of a principal that this transaction sees, and at the commit all others; or
    /// only those that it sees, without one that keeps them in mind.
    pub(crate) fn end_sessions_of(
        &self,
        id: ContainerId,
        principal: &str,
        keeper: Option<SessionId>,
    ) -> Result<(), Error> {
        for (key, session) in self.sessions_of(id, principal)? {
            if keeper != Some(session.id) {
                self.with_draft(&(id, key), |draft, policy, now| {
                    let life = draft.live_mut(policy, now).filter(|l| l.base.id == session.id);
                    if let Some(life) = life {
                        (life.ended, life.ended_with) = (true, Some(principal.into()));
                    }
                })?;
            }
        }
        if keeper.is_none() {
            self.lock()?.changes.principals.insert((id, principal.into()));
        }
        Ok(())
    }

    /// Remembers what has been changed so far; the number to come back to it by.
    pub(crate) fn save(&self) -> Result<u64, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock()?;
        let saved = state.changes.clone();
        state.savepoints.push((id, saved));
        Ok(id)
    }

    /// Goes back. What was read since stays read.
    pub(crate) fn restore(&self, id: u64) -> Result<(), Error> {
        let mut state = self.lock()?;
        let at = state.savepoints.iter().position(|(saved, _)| *saved == id);
        let at = at.ok_or(Error::Savepoint)?;
        state.savepoints.truncate(at + 1);
        let saved = state.savepoints[at].1.clone();
        let given_up = mem::replace(&mut state.changes, saved);
        let drafts = &mut state.changes.drafts;
        for (place, later) in &given_up.drafts {
            let draft = drafts.entry(place.clone()).or_insert_with(|| {
                let base = later.lives.first().filter(|life| !life.created_here);
                Draft::new(base.map(|life| Arc::clone(&life.base)))
            });
            draft.keep_reads(later);
        }
        // What was rotated since, or to another key, lies elsewhere now.
        for (place, later) in &given_up.drafts {
            for later in &later.lives {
                let Some(key) = &later.came_from else { continue };
                let from = (place.0, key.clone());
                let here = |place: &Place, life: &Life| match &life.came_from {
                    Some(key) => place.0 == from.0 && *key == from.1,
                    None => *place == from && !life.created_here,
                };
                let lives = drafts.iter_mut().flat_map(|(place, draft)| {
                    draft.lives.iter_mut().filter(move |life| here(place, life))
                });
                lives.for_each(|life| life.keep_reads(later));
            }
        }
        Ok(())
    }

    /// Forgets a savepoint and those after it.
    pub(crate) fn forget(&self, id: u64) -> Result<(), Error> {
        self.lock()?.savepoints.retain(|(saved, _)| *saved < id);
        Ok(())
    }

    /// The policy that decides who lives within this transaction. `set` and `containers` are those of
    /// the state, which is locked.
    fn meanwhile<'a>(
        &'a self,
        set: &'a BTreeMap<ContainerId, Set>,
        containers: &'a mut BTreeMap<ContainerId, Arc<ContainerState>>,
        id: ContainerId,
    ) -> &'a Arc<Policy> {
        match (set.get(&id), self.policies.get(&id)) {
            (Some(set), _) => &set.meanwhile,
            (None, Some(policy)) => policy,
            // It is younger than the snapshot.
            (None, None) => {
                let read = || self.door.container(id, &self.snapshot);
                &containers.entry(id).or_insert_with(read).policy
            }
        }
    }

    /// Whether it wants more than to note accesses.
    pub(crate) fn has_changes(&self) -> Result<bool, Error> {
        let Changes { drafts, policies, principals } = &self.lock()?.changes;
        let changes = |life: &Life| life.created_here || life.demands();
        let any = drafts.values().flat_map(|draft| &draft.lives).any(changes);
        Ok(any || !policies.is_empty() || !principals.is_empty())
    }

    /// Ends the transaction; what it wants, if that is anything.
    pub(crate) fn finish(&self) -> Result<Option<Intent>, Error> {
        self.finish_with(self.lock()?)
    }

    /// Ends the transaction, and wants nothing of it but the end of those sessions in which it found
    /// what it could not read.
    pub(crate) fn finish_unreadable(&self) -> Result<Option<Intent>, Error> {
        let mut state = self.lock()?;
        state.changes.policies.clear();
        state.changes.principals.clear();
        gather(&mut state.changes.drafts);
        state.changes.drafts.retain(|_, draft| {
            draft.lives.retain(|life| life.unreadable.is_some() && !life.created_here);
            for life in &mut draft.lives {
                // What the closure made of them meanwhile is not to be seen in their last data.
                let required = life.unreadable.clone().into_iter().collect();
                *life = Life { ended: true, required, ..Life::found(Arc::clone(&life.base)) };
            }
            !draft.lives.is_empty()
        });
        self.finish_with(state)
    }

    fn finish_with(&self, mut state: MutexGuard<'_, State>) -> Result<Option<Intent>, Error> {
        let Changes { mut drafts, policies, principals } = mem::take(&mut state.changes);
        gather(&mut drafts);
        // What was used makes no room for what is created, even if the use leaves no trace.
        let creates = drafts.values().any(Draft::creates);
        drafts.retain(|_, draft| draft.has_effect() || creates && draft.has_base());
        let change = |(id, set): (ContainerId, Set)| {
            let base = state.container(self, id).policy_revision;
            (id, PolicyChange { policy: set.policy, base })
        };
        let policies: BTreeMap<_, _> = policies.into_iter().map(change).collect();
        self.check()?;
        // Under the same lock: what another thread writes from now on fails, and is not lost.
        state.over = true;
        let State { durability, later_wins, .. } = *state;
        drop(state);
        self.let_go();
        let nothing = drafts.is_empty() && policies.is_empty() && principals.is_empty();
        let snapshot = self.snapshot.revision();
        let later = match self.is_released() {
            true => {
                let lives = drafts.values().flat_map(|draft| &draft.lives);
                lives.map(|life| life.base.revision).collect()
            }
            false => Vec::new(),
        };
        let intent =
            Intent { snapshot, later, drafts, policies, principals, durability, later_wins };
        Ok((!nothing).then_some(intent))
    }

    /// Ends the transaction, unless it is over: handles find that it is.
    pub(crate) fn end(&self) {
        let was_over = mem::replace(&mut lock(&self.state).over, true);
        if !was_over {
            self.let_go();
        }
    }

    /// Lets go of the snapshot, and of the versions that were kept for it alone.
    fn let_go(&self) {
        self.door.snapshots.release(&self.snapshot);
        if self.door.versions.are_kept_for(self.snapshot.revision()) {
            self.door.forget();
        }
    }
}

/// Puts what is to change of sessions with new keys where they lie until the commit.
fn gather(drafts: &mut BTreeMap<Place, Draft>) {
    let mut come = Vec::new();
    for ((container, _), draft) in drafts.iter_mut() {
        for life in draft.lives.extract_if(.., |life| life.came_from.is_some()) {
            come.extend(life.came_from.clone().map(|key| ((*container, key), life)));
        }
    }
    for (from, life) in come {
        drafts.get_mut(&from).expect("it has come from there").take_back(life);
    }
}

impl State {
    fn container(&mut self, workspace: &Workspace, id: ContainerId) -> &Arc<ContainerState> {
        let read = || workspace.door.container(id, &workspace.snapshot);
        self.containers.entry(id).or_insert_with(read)
    }
}
