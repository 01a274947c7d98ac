//! A transaction: an unchanging snapshot, and all that is to change, kept in memory until commit.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::{Error, LimitKind};
use crate::model::clock::Time;
use crate::model::container::{ContainerId, ContainerState, Place};
use crate::model::draft::{Draft, Life};
use crate::model::key::Key;
use crate::model::policy::Policy;
use crate::model::session::{Record, Revision, SessionId};
use crate::store::commit::{Intent, PolicyChange, Request, Work};
use crate::store::container::Container;
use crate::store::core::Core;
use crate::store::events::Event;
use crate::store::listeners;
use crate::store::listing::{Keys, Listing, Sessions};
use crate::store::lock;
use crate::store::outcome::{Commit, Report, slot};
use crate::store::session::Session;
use crate::store::snapshots::Snapshot;
use crate::store::stats::Counters;

/// A consistent view of all containers, and changes that become true together or not at all.
///
/// Data come from the snapshot taken at [`Store::begin`](crate::Store::begin): reads are repeatable,
/// and what this transaction wrote is visible to it. Whether a session still lives is asked of the
/// clock at the call. Dropping a transaction aborts it.
///
/// ```
/// # use sessile::{Policy, Store};
/// # let store = Store::memory()?;
/// let visitors = store.container_with("visitors", Policy::new())?;
///
/// let txn = store.begin()?;
/// let session = txn.create(&visitors, "ada")?;
/// session.insert("name", "Ada")?;
/// assert_eq!(txn.len(&visitors)?, 1);
/// assert_eq!(store.begin()?.len(&visitors)?, 0); // not committed yet
/// txn.commit()?;
/// assert_eq!(store.begin()?.len(&visitors)?, 1);
/// # Ok::<(), sessile::Error>(())
/// ```
pub struct Transaction {
    inner: Arc<Inner>,
    /// Listeners are lent a transaction that is not theirs to end.
    lent: bool,
}

/// What a transaction and its handles share.
pub(crate) struct Inner {
    pub core: Arc<Core>,
    pub snapshot: Snapshot,
    state: Mutex<State>,
}

struct State {
    over: bool,
    drafts: BTreeMap<Place, Draft>,
    policies: BTreeMap<ContainerId, Arc<Policy>>,
    /// The containers as the snapshot shows them, once they were asked for.
    containers: BTreeMap<ContainerId, Arc<ContainerState>>,
    savepoints: Vec<Saved>,
    /// How many start listeners are running inside each other.
    starting: usize,
}

struct Saved {
    id: u64,
    drafts: BTreeMap<Place, Draft>,
    policies: BTreeMap<ContainerId, Arc<Policy>>,
}

/// A point within a transaction to go back to: see [`Transaction::savepoint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Savepoint(u64);

/// Start listeners that create sessions start listeners. Deeper than this is taken for a loop.
const STARTING_MAX: usize = 16;

impl Transaction {
    pub(crate) fn begin(core: Arc<Core>) -> Result<Self, Error> {
        let snapshot = core.begin()?;
        let state = State {
            over: false,
            drafts: BTreeMap::new(),
            policies: BTreeMap::new(),
            containers: BTreeMap::new(),
            savepoints: Vec::new(),
            starting: 0,
        };
        let inner = Arc::new(Inner { core, snapshot, state: Mutex::new(state) });
        Ok(Transaction { inner, lent: false })
    }

    /// The revision of the snapshot.
    pub fn revision(&self) -> Revision {
        self.inner.snapshot.revision()
    }

    /// The live session under a key. This is an access: it lengthens the session's life.
    ///
    /// # Errors
    ///
    /// Like all calls on a transaction: [`Error::TransactionOver`], [`Error::SnapshotTooOld`],
    /// [`Error::Stranger`], and [`Error::Corrupt`] or [`Error::Storage`] if the store cannot be read.
    pub fn get(
        &self,
        container: &Container,
        key: impl Into<Key>,
    ) -> Result<Option<Session>, Error> {
        let place = self.place(container, key)?;
        self.inner
            .with_draft(&place, |draft, policy, now| {
                let life = draft.live_mut(policy, now)?;
                life.access(policy, now);
                Some(life.base.id)
            })
            .map(|id| id.map(|id| self.session(place, id)))
    }

    /// The live session under a key; a new one if there is none. An access.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`] if the container is full, and as for [`get`](Transaction::get).
    pub fn get_or_create(
        &self,
        container: &Container,
        key: impl Into<Key>,
    ) -> Result<Session, Error> {
        let key = key.into();
        match self.get(container, &key)? {
            Some(session) => Ok(session),
            None => self.create(container, key),
        }
    }

    /// A new session.
    ///
    /// Two transactions that create a session under one key at the same time conflict; they are
    /// never merged.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`] if a live session has the key, [`Error::Limit`] if the container is full
    /// or the key too long (the transaction stays usable), and as for [`get`](Transaction::get).
    pub fn create(&self, container: &Container, key: impl Into<Key>) -> Result<Session, Error> {
        let place = self.place(container, key)?;
        let (state, policy) = self.inner.policy(place.0)?;
        policy.check_key(&place.1)?;
        let exists = |draft: &mut Draft, policy: &Policy, now| draft.live(policy, now).is_some();
        if self.inner.with_draft(&place, exists)? {
            return Err(Error::Exists {
                container: state.name.to_string(),
                session: place.1.fingerprint(),
            });
        }
        if policy.limit > 0 && self.len_at_most(container, policy.limit)? >= policy.limit {
            return Err(Error::Limit { limit: LimitKind::Sessions, max: policy.limit });
        }
        let id = self.inner.core.chance.session_id();
        self.inner.with_draft(&place, |draft, policy, now| {
            draft.lives.push(Life::created(id, now, policy));
        })?;
        let session = self.session(place, id);
        if let Some(listener) = &policy.on_start {
            self.tell_start(listener, &session)?;
        }
        Ok(session)
    }

    /// Whether a live session has the key. An access, like [`get`](Transaction::get).
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get).
    pub fn contains(&self, container: &Container, key: impl Into<Key>) -> Result<bool, Error> {
        Ok(self.get(container, key)?.is_some())
    }

    /// The live session under a key, without an access: looking does not lengthen its life.
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get).
    pub fn peek(
        &self,
        container: &Container,
        key: impl Into<Key>,
    ) -> Result<Option<Session>, Error> {
        let place = self.place(container, key)?;
        let id = self.inner.with_draft(&place, |draft, policy, now| {
            draft.live(policy, now).map(|life| life.base.id)
        })?;
        Ok(id.map(|id| self.session(place, id)))
    }

    /// Ends the live session under a key, if there is one.
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get).
    pub fn remove(&self, container: &Container, key: impl Into<Key>) -> Result<bool, Error> {
        let place = self.place(container, key)?;
        self.inner.with_draft(&place, |draft, policy, now| match draft.live_mut(policy, now) {
            Some(life) => {
                life.ended = true;
                true
            }
            None => false,
        })
    }

    /// Finds the generation that a handle of an earlier transaction means, without an access;
    /// `None` if that session is gone, whoever has its key now.
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get).
    pub fn reattach(&self, handle: &Session) -> Result<Option<Session>, Error> {
        if !Arc::ptr_eq(&handle.inner.core, &self.inner.core) {
            return Err(Error::Stranger);
        }
        let place = handle.place.clone();
        let found = self.inner.with_draft(&place, |draft, policy, now| {
            draft.live(policy, now).is_some_and(|life| life.base.id == handle.id())
        })?;
        Ok(found.then(|| self.session(place, handle.id())))
    }

    /// How many live sessions a container has: those of the snapshot that have not expired by now,
    /// and what this transaction created and ended.
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get).
    pub fn len(&self, container: &Container) -> Result<u64, Error> {
        self.len_at_most(container, u64::MAX)
    }

    /// Whether a container has no live session.
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get).
    pub fn is_empty(&self, container: &Container) -> Result<bool, Error> {
        Ok(self.len(container)? == 0)
    }

    /// The exact length where the store's count may have reached `enough`; the count, which is
    /// never less, where it has not.
    fn len_at_most(&self, container: &Container, enough: u64) -> Result<u64, Error> {
        let id = self.container_id(container)?;
        let state = self.inner.container(id)?;
        let (mut counted, own) = {
            let drafts = self.inner.lock()?;
            let (mut counted, mut own) = (state.count, 0);
            let policy = drafts.policies.get(&id).unwrap_or(&state.policy);
            let now = self.inner.core.now();
            for (_, draft) in drafts.drafts.iter().filter(|(place, _)| place.0 == id) {
                counted -= u64::from(draft.has_base()).min(counted);
                own += u64::from(draft.live(policy, now).is_some());
            }
            (counted, own)
        };
        if counted + own >= enough || enough == u64::MAX {
            counted -= Listing::new(&self.inner, id)?.expired()?.min(counted);
        }
        Ok(counted + own)
    }

    /// The keys of the live sessions, in order, a page at a time. Listing is no access and no read.
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get); the iterator's items may fail the same way.
    pub fn keys(&self, container: &Container) -> Result<Keys, Error> {
        Ok(Keys(Listing::new(&self.inner, self.container_id(container)?)?))
    }

    /// The live sessions, in the order of their keys, a page at a time. No access and no read.
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get); the iterator's items may fail the same way.
    pub fn iter(&self, container: &Container) -> Result<Sessions, Error> {
        Ok(Sessions(Listing::new(&self.inner, self.container_id(container)?)?))
    }

    /// The settings of a container, those that this transaction has set included.
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get).
    pub fn policy(&self, container: &Container) -> Result<Policy, Error> {
        let (_, policy) = self.inner.policy(self.container_id(container)?)?;
        Ok(Policy::clone(&policy))
    }

    /// Changes the settings of a container. Its sessions stay: what they were promised holds, and
    /// the new timeout counts from their last access.
    ///
    /// Two transactions that change the settings of one container conflict.
    ///
    /// # Errors
    ///
    /// [`Error::Policy`] if the settings contradict each other, and as for
    /// [`get`](Transaction::get).
    pub fn set_policy(&self, container: &Container, policy: Policy) -> Result<(), Error> {
        policy.validate()?;
        let id = self.container_id(container)?;
        let stored = self.inner.container(id)?;
        let mut state = self.inner.lock()?;
        // What is set to what it was is no change.
        match *stored.policy == policy {
            true => state.policies.remove(&id),
            false => state.policies.insert(id, Arc::new(policy)),
        };
        Ok(())
    }

    /// Marks a point to go back to.
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get).
    pub fn savepoint(&self) -> Result<Savepoint, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut state = self.inner.lock()?;
        let saved = Saved { id, drafts: state.drafts.clone(), policies: state.policies.clone() };
        state.savepoints.push(saved);
        Ok(Savepoint(id))
    }

    /// Undoes what was changed since the savepoint. Savepoints after it are gone, it itself stays.
    /// What was read stays read, and can still conflict.
    ///
    /// # Errors
    ///
    /// [`Error::Savepoint`] if it is gone, and as for [`get`](Transaction::get).
    pub fn rollback(&self, savepoint: Savepoint) -> Result<(), Error> {
        let mut state = self.inner.lock()?;
        let at = state.savepoints.iter().position(|saved| saved.id == savepoint.0);
        let at = at.ok_or(Error::Savepoint)?;
        state.savepoints.truncate(at + 1);
        let mut drafts = state.savepoints[at].drafts.clone();
        state.policies = state.savepoints[at].policies.clone();
        for (place, later) in std::mem::take(&mut state.drafts) {
            let draft = drafts.entry(place).or_insert_with(|| {
                let base = later.lives.first().filter(|life| !life.created_here);
                Draft::new(base.map(|life| Arc::clone(&life.base)))
            });
            draft.keep_reads(&later);
        }
        state.drafts = drafts;
        Ok(())
    }

    /// Makes everything true, durably, or nothing; blocks until it is known.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`]: begin again. [`Error::Limit`]: a limit that concurrent commits have
    /// exhausted. [`Error::Busy`]: the queue stayed full. [`Error::Storage`]: unknown. After all
    /// of them the transaction is over.
    pub fn commit(self) -> Result<Report, Error> {
        match self.inner.finish()? {
            Some(intent) => self.inner.core.submit(Work::Transaction(intent)),
            None => Ok(Report::nothing(self.revision())),
        }
    }

    /// The same as a future: awaiting it blocks no thread and needs no particular executor.
    pub fn commit_async(self) -> Commit {
        match self.inner.finish() {
            Ok(Some(intent)) => {
                let (reply, waiting) = slot();
                let request = Request { work: Work::Transaction(intent), reply };
                Commit::queue(Arc::clone(&self.inner.core), request, waiting)
            }
            Ok(None) => Commit::decided(Ok(Report::nothing(self.revision()))),
            Err(error) => Commit::decided(Err(error)),
        }
    }

    /// Tells a listener of a new session, inside this transaction. If it fails, what it changed is
    /// rolled back and the session stays.
    fn tell_start(&self, name: &str, session: &Session) -> Result<(), Error> {
        let core = &self.inner.core;
        let Some(listener) = core.listeners.on_start.get(name) else {
            core.event(&Event::ListenerMissing { listener: name.to_owned() });
            return Ok(());
        };
        let Savepoint(before) = self.savepoint()?;
        let told = if self.inner.lock()?.starting >= STARTING_MAX {
            Err(Event::ListenerFailed { listener: name.to_owned(), panicked: false })
        } else {
            self.inner.lock()?.starting += 1;
            let lent = Transaction { inner: Arc::clone(&self.inner), lent: true };
            let told = listeners::call(name, || listener(&lent, session));
            self.inner.lock()?.starting -= 1;
            told
        };
        if let Err(event) = told {
            Counters::add(&core.counters.listener_failures, 1);
            core.event(&event);
            self.rollback(Savepoint(before))?;
        }
        let mut state = self.inner.lock()?;
        state.savepoints.retain(|saved| saved.id < before);
        Ok(())
    }

    fn place(&self, container: &Container, key: impl Into<Key>) -> Result<Place, Error> {
        Ok((self.container_id(container)?, key.into()))
    }

    fn container_id(&self, container: &Container) -> Result<ContainerId, Error> {
        match Arc::ptr_eq(&container.core, &self.inner.core) {
            true => Ok(container.id),
            false => Err(Error::Stranger),
        }
    }

    fn session(&self, place: Place, id: SessionId) -> Session {
        Session::new(Arc::clone(&self.inner), place, id)
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.lent {
            // Handles may outlive it; they find that it is over.
            self.inner.state().over = true;
            self.inner.release();
        }
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transaction(at {})", self.revision())
    }
}

impl Inner {
    /// The state of a transaction that is not over and whose snapshot holds.
    fn lock(&self) -> Result<std::sync::MutexGuard<'_, State>, Error> {
        let state = self.state();
        if state.over {
            return Err(Error::TransactionOver);
        }
        self.check_age()?;
        Ok(state)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// An error if what the snapshot saw may be gone. A read asks afterwards.
    pub(crate) fn check_age(&self) -> Result<(), Error> {
        let age = self.core.clock.elapsed().saturating_sub(self.snapshot.begun());
        match self.snapshot.is_given_up() || age >= self.core.bounds.snapshot_age_max {
            true => Err(Error::SnapshotTooOld { age }),
            false => Ok(()),
        }
    }

    pub(crate) fn container(&self, id: ContainerId) -> Result<Arc<ContainerState>, Error> {
        let mut state = self.lock()?;
        let read = || self.core.container(id, &self.snapshot);
        Ok(Arc::clone(state.containers.entry(id).or_insert_with(read)))
    }

    /// A container, and the policy that this transaction sees.
    pub(crate) fn policy(
        &self,
        id: ContainerId,
    ) -> Result<(Arc<ContainerState>, Arc<Policy>), Error> {
        let container = self.container(id)?;
        let own = self.lock()?.policies.get(&id).cloned();
        let policy = own.unwrap_or_else(|| Arc::clone(&container.policy));
        Ok((container, policy))
    }

    /// Works on what this transaction has done to a key so far.
    pub(crate) fn with_draft<T>(
        &self,
        place: &Place,
        work: impl FnOnce(&mut Draft, &Policy, Time) -> T,
    ) -> Result<T, Error> {
        let (_, policy) = self.policy(place.0)?;
        let mut state = self.lock()?;
        let draft = match state.drafts.get_mut(place) {
            Some(draft) => draft,
            None => {
                let base = self.core.versions.read(place, self.snapshot.revision())?;
                self.check_age()?;
                state.drafts.entry(place.clone()).or_insert(Draft::new(base))
            }
        };
        Ok(work(draft, &policy, self.core.now()))
    }

    /// The session that this transaction sees under a key of which `base` is in the snapshot,
    /// without making a draft of it.
    pub(crate) fn sees(
        &self,
        place: &Place,
        base: Option<&Arc<Record>>,
        policy: &Policy,
    ) -> Result<Option<SessionId>, Error> {
        let state = self.lock()?;
        let now = self.core.now();
        Ok(match state.drafts.get(place) {
            Some(draft) => draft.live(policy, now).map(|life| life.base.id),
            None => base.filter(|record| !record.is_expired(policy, now)).map(|record| record.id),
        })
    }

    /// The keys of a container that have drafts.
    pub(crate) fn drafted(&self, id: ContainerId) -> Result<Vec<Key>, Error> {
        let state = self.lock()?;
        let drafts = state.drafts.keys().filter(|place| place.0 == id);
        Ok(drafts.map(|place| place.1.clone()).collect())
    }

    /// Ends the transaction; what it wants, if that is anything.
    fn finish(&self) -> Result<Option<Intent>, Error> {
        let mut state = self.lock()?;
        state.over = true;
        let mut drafts = std::mem::take(&mut state.drafts);
        drafts.retain(|_, draft| draft.has_effect());
        let policies = std::mem::take(&mut state.policies);
        let change = |(id, policy)| {
            let base = self.core.container(id, &self.snapshot).policy_revision;
            (id, PolicyChange { policy, base })
        };
        let policies: BTreeMap<_, _> = policies.into_iter().map(change).collect();
        drop(state);
        self.release();
        let nothing = drafts.is_empty() && policies.is_empty();
        Ok((!nothing).then_some(Intent { drafts, policies }))
    }

    /// Lets go of the snapshot, and of the versions that were kept for it alone.
    fn release(&self) {
        self.snapshot.release();
        if self.snapshot.revision() < self.core.snapshots.published() {
            self.core.versions.forget(self.core.snapshots.oldest());
        }
    }
}
