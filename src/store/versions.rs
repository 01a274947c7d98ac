//! What each living snapshot may see.
//!
//! The tables below hold one state, the newest. Whoever began earlier sees an older one, so a
//! commit first puts what it replaces, and what it replaces it with, into this map:
//!
//! ```text
//!   revision    3      5            8
//!   snapshot           |---- S ----------->   S = 5
//!   session   [r3]---[r5]---------[r8]
//!                      ^ what S sees: the newest version not newer than 5
//! ```
//!
//! A point read asks the map, then the newest view, then the map again: a commit that came between
//! the first two has put its pre-image here *before* it touched the tables. A scan pins a view and
//! the map's sessions under the lock in which the view is exchanged.
//!
//! Every version but the newest is dropped as soon as no snapshot needs it, and the newest as soon
//! as the view holds it too: an idle store keeps nothing here.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::ops::{Bound, ControlFlow};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use crate::engine::{Commit, View, successor};
use crate::error::Error;
use crate::model::clock::Time;
use crate::model::container::{ContainerId, ContainerState, Place};
use crate::model::key::Key;
use crate::model::policy::Policy;
use crate::model::session::{Record, Revision};
use crate::store::lock;

/// The states of one thing, each from the revision on that is beside it.
#[derive(Debug)]
struct History<T>(VecDeque<(Revision, T)>);

impl<T: Clone> History<T> {
    fn at(&self, snapshot: Revision) -> Option<&T> {
        self.0.iter().rev().find(|(from, _)| *from <= snapshot).map(|(_, state)| state)
    }

    fn newest(&self) -> &T {
        &self.0.back().expect("a history is never empty").1
    }

    /// Drops what nobody who began at `oldest` or later can see.
    fn forget_before(&mut self, oldest: Revision, mut dropped: impl FnMut(&T)) {
        while self.0.get(1).is_some_and(|(next, _)| *next <= oldest) {
            dropped(&self.0.pop_front().expect("there are two").1);
        }
    }
}

type Session = Option<Arc<Record>>;
type Shard = HashMap<Place, History<Session>>;

/// A row of the expiry index: bucket and key.
pub(crate) type Row = (u64, Key);

/// Some of what a walk finds, and where it goes on, if anywhere.
type Page<T, From> = (Vec<T>, Option<From>);

/// How many locks the sessions are spread over.
const SHARDS: usize = 64;

pub(crate) struct Versions {
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
    /// Which session got a new version when, oldest first: where to look for what can be dropped.
    written: Mutex<VecDeque<(Revision, Place)>>,
    /// The revision of the first of those; the greatest number if there is none.
    oldest_written: AtomicU64,
    /// What the versions weigh.
    bytes: AtomicUsize,
    containers: RwLock<BTreeMap<ContainerId, History<Arc<ContainerState>>>>,
    /// The newest view, and the revision up to which it holds everything.
    checkpoint: RwLock<(Arc<dyn View>, Revision)>,
}

/// A consistent state to scan: a view, and what must be taken from elsewhere.
pub(crate) struct Pinned {
    pub view: Arc<dyn View>,
    /// The sessions of one container that the view does not show as the snapshot should see them.
    pub sessions: BTreeMap<Key, Session>,
}

impl Pinned {
    /// The session under a key as the snapshot sees it.
    pub(crate) fn read(&self, container: ContainerId, key: &Key) -> Result<Session, Error> {
        match self.sessions.get(key) {
            Some(session) => Ok(session.clone()),
            None => self.view.read(&(container, key.clone())),
        }
    }

    /// Some sessions from `from` on, in the order of their keys, and where to go on, if anywhere.
    pub(crate) fn scan(
        &self,
        container: ContainerId,
        from: &Key,
        max: usize,
    ) -> Result<Page<(Key, Arc<Record>), Key>, Error> {
        let rows = self.view.scan(container, from, max)?;
        let next = rows.get(max - 1).map(|(last, _)| successor(last));
        let until = next.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let mut found: BTreeMap<Key, Arc<Record>> = rows.into_iter().collect();
        for (key, session) in self.sessions.range((Bound::Included(from.clone()), until)) {
            match session {
                Some(record) => found.insert(key.clone(), Arc::clone(record)),
                None => found.remove(key),
            };
        }
        Ok((found.into_iter().collect(), next))
    }

    /// The keys of those, whether their records can be read or not.
    pub(crate) fn keys(
        &self,
        container: ContainerId,
        from: &Key,
        max: usize,
    ) -> Result<Page<Key, Key>, Error> {
        let rows = self.view.keys(container, from, max)?;
        let next = rows.get(max - 1).map(successor);
        let until = next.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let here = self.sessions.range((Bound::Included(from.clone()), until));
        let mut found: BTreeSet<Key> = rows.into_iter().collect();
        found.extend(here.map(|(key, _)| key.clone()));
        Ok((found.into_iter().collect(), next))
    }

    /// Sessions in buckets up to `until`: the rows of the index that hold, and where to go on. The
    /// first call gives those in memory too, so that together nothing is missing or twice.
    pub(crate) fn due(
        &self,
        container: ContainerId,
        until: u64,
        from: &Row,
        max: usize,
    ) -> Result<Page<Row, Row>, Error> {
        let mut rows = self.view.due(container, until, from, max)?;
        let next = rows.get(max - 1).map(|(bucket, key)| (*bucket, successor(key)));
        rows.retain(|(_, key)| !self.sessions.contains_key(key));
        if *from == first_row() {
            let bucket = |(key, session): (&Key, &Session)| {
                Some((session.as_ref()?.bucket, key.clone())).filter(|(bucket, _)| *bucket <= until)
            };
            rows.extend(self.sessions.iter().filter_map(bucket));
            rows.sort();
        }
        Ok((rows, next))
    }

    /// Shows every key of a container whose session may have expired under `policy`, until `visit`
    /// has seen enough. The index tells, unless buckets may be too late: then it is every key.
    pub(crate) fn suspects(
        &self,
        state: &ContainerState,
        policy: &Policy,
        now: Time,
        mut visit: impl FnMut(Key) -> Result<ControlFlow<()>, Error>,
    ) -> Result<(), Error> {
        const PAGE: usize = 256;
        if state.refile_from.is_some() || policy.lifetime_secs() < state.policy.lifetime_secs() {
            let page = |from: &Key| self.keys(state.id, from, PAGE);
            walk(Key::from(""), page, visit)
        } else {
            let page = |from: &Row| self.due(state.id, now.as_secs(), from, PAGE);
            walk(first_row(), page, |(_, key)| visit(key))
        }
    }
}

/// Goes through page after page, until `visit` has seen enough.
fn walk<T, From>(
    first: From,
    page: impl Fn(&From) -> Result<Page<T, From>, Error>,
    mut visit: impl FnMut(T) -> Result<ControlFlow<()>, Error>,
) -> Result<(), Error> {
    let mut from = Some(first);
    while let Some(start) = from {
        let (found, next) = page(&start)?;
        for one in found {
            if visit(one)?.is_break() {
                return Ok(());
            }
        }
        from = next;
    }
    Ok(())
}

/// Where the expiry index begins.
pub(crate) fn first_row() -> Row {
    (0, Key::from(""))
}

impl Versions {
    pub(crate) fn new(
        view: Arc<dyn View>,
        revision: Revision,
        containers: Vec<ContainerState>,
    ) -> Self {
        let first = |state: ContainerState| {
            (state.id, History(VecDeque::from([(revision, Arc::new(state))])))
        };
        Versions {
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            written: Mutex::default(),
            oldest_written: AtomicU64::new(u64::MAX),
            bytes: AtomicUsize::new(0),
            containers: RwLock::new(containers.into_iter().map(first).collect()),
            checkpoint: RwLock::new((view, revision)),
        }
    }

    /// The session at a place as of a snapshot that is registered.
    pub(crate) fn read(&self, place: &Place, snapshot: Revision) -> Result<Session, Error> {
        let versioned = || self.shard(place).get(place).and_then(|h| h.at(snapshot).cloned());
        if let Some(session) = versioned() {
            return Ok(session);
        }
        let stored = self.view().read(place)?;
        // A commit that changed the row in between has left the state before it in the map.
        Ok(versioned().unwrap_or(stored))
    }

    /// The session at a place as the last commit left it. For the committer alone.
    pub(crate) fn newest(&self, place: &Place) -> Result<Session, Error> {
        let versioned = self.shard(place).get(place).map(|history| history.newest().clone());
        match versioned {
            Some(session) => Ok(session),
            None => self.view().read(place),
        }
    }

    /// Pins what a scan of a container needs to see the snapshot, whatever is committed meanwhile.
    pub(crate) fn pin(&self, container: ContainerId, snapshot: Revision) -> Pinned {
        // While this is held no view is exchanged, so nothing that the view lacks is dropped.
        let checkpoint = self.checkpoint.read().expect("nothing panics while it is held");
        let mut sessions = BTreeMap::new();
        for shard in &self.shards {
            for (place, history) in lock(shard).iter().filter(|(place, _)| place.0 == container) {
                // A session created after the snapshot has no version that it may see.
                let session = history.at(snapshot).cloned().flatten();
                sessions.insert(place.1.clone(), session);
            }
        }
        Pinned { view: Arc::clone(&checkpoint.0), sessions }
    }

    /// A container as of a snapshot; as it was first if it is younger than the snapshot.
    pub(crate) fn container(
        &self,
        id: ContainerId,
        snapshot: Revision,
    ) -> Option<Arc<ContainerState>> {
        let containers = self.containers.read().expect("nothing panics while it is held");
        let history = containers.get(&id)?;
        let first = || history.0.front().map(|(_, state)| state);
        history.at(snapshot).or_else(first).cloned()
    }

    /// Every container as the last commit left it.
    pub(crate) fn containers(&self) -> Vec<Arc<ContainerState>> {
        let containers = self.containers.read().expect("nothing panics while it is held");
        containers.values().map(|history| Arc::clone(history.newest())).collect()
    }

    /// Puts what a commit replaces, which is what was there `before`, and what it replaces it with. Nobody sees the latter until its
    /// revision is published.
    pub(crate) fn stage(&self, commit: &Commit, before: impl Fn(&Place) -> Session) {
        let mut written = lock(&self.written);
        for (place, session) in &commit.sessions {
            let mut shard = self.shard(place);
            let history = shard.entry(place.clone()).or_insert_with(|| {
                let before = before(place);
                let from = before.as_ref().map_or(Revision::default(), |record| record.revision);
                self.weigh(&before, true);
                History(VecDeque::from([(from, before)]))
            });
            self.weigh(session, true);
            history.0.push_back((commit.revision, session.clone()));
            written.push_back((commit.revision, place.clone()));
        }
        self.note_oldest(&written);
        drop(written);
        if !commit.containers.is_empty() {
            let mut containers = self.containers.write().expect("nothing panics while it is held");
            for state in &commit.containers {
                let version = (commit.revision, Arc::clone(state));
                let history = containers.entry(state.id).or_insert(History(VecDeque::new()));
                history.0.push_back(version);
            }
        }
    }

    /// Takes back everything newer than `published`: the batch that staged it has failed.
    pub(crate) fn unstage(&self, published: Revision) {
        let written = lock(&self.written);
        for (_, place) in written.iter().rev().take_while(|(revision, _)| *revision > published) {
            if let Some(history) = self.shard(place).get_mut(place) {
                while history.0.back().is_some_and(|(from, _)| *from > published) {
                    let (_, session) = history.0.pop_back().expect("it was looked at");
                    self.weigh(&session, false);
                }
            }
        }
        drop(written);
        let mut containers = self.containers.write().expect("nothing panics while it is held");
        containers.retain(|_, history| {
            history.0.retain(|(from, _)| *from <= published);
            !history.0.is_empty()
        });
    }

    /// Exchanges the view for one that holds everything up to `revision`.
    pub(crate) fn checkpoint(&self, view: Arc<dyn View>, revision: Revision) {
        let mut checkpoint = self.checkpoint.write().expect("nothing panics while it is held");
        *checkpoint = (view, revision);
    }

    /// Drops every version of a session that neither a snapshot from `oldest` on nor the tables need.
    pub(crate) fn forget(&self, oldest: Revision) {
        // Held to the end, so that no scan pins a view and misses what is dropped here.
        let checkpoint = self.checkpoint.read().expect("nothing panics while it is held");
        let safe = oldest.min(checkpoint.1);
        let mut written = lock(&self.written);
        while written.front().is_some_and(|(revision, _)| *revision <= safe) {
            let (_, place) = written.pop_front().expect("it was looked at");
            let mut shard = self.shard(&place);
            let Some(history) = shard.get_mut(&place) else { continue };
            history.forget_before(safe, |session| self.weigh(session, false));
            if history.0.len() == 1 && history.0[0].0 <= safe {
                self.weigh(history.newest(), false);
                shard.remove(&place);
            }
        }
        self.note_oldest(&written);
    }

    fn note_oldest(&self, written: &VecDeque<(Revision, Place)>) {
        let oldest = written.front().map_or(u64::MAX, |(revision, _)| revision.0);
        self.oldest_written.store(oldest, Ordering::Release);
    }

    /// The same for containers, whose newest state always stays.
    pub(crate) fn forget_containers(&self, oldest: Revision) {
        let mut containers = self.containers.write().expect("nothing panics while it is held");
        containers.values_mut().for_each(|history| history.forget_before(oldest, |_| {}));
    }

    /// Whether a snapshot may be what keeps the oldest versions: one atomic load, for the many
    /// that end and do not matter.
    pub(crate) fn are_kept_for(&self, snapshot: Revision) -> bool {
        let oldest = self.oldest_written.load(Ordering::Acquire);
        oldest != u64::MAX && snapshot.0 < oldest
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How many sessions have versions here.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    pub(crate) fn view(&self) -> Arc<dyn View> {
        Arc::clone(&self.checkpoint.read().expect("nothing panics while it is held").0)
    }

    fn shard(&self, place: &Place) -> MutexGuard<'_, Shard> {
        let shard = self.hasher.hash_one(place) as usize % SHARDS;
        lock(&self.shards[shard])
    }

    fn weigh(&self, session: &Session, more: bool) {
        // The map's own share of a version, estimated: an entry, a queue slot, two counters.
        const OVERHEAD: usize = 200;
        let bytes = OVERHEAD + session.as_ref().map_or(0, |record| record.size().bytes);
        match more {
            true => self.bytes.fetch_add(bytes, Ordering::Relaxed),
            false => self.bytes.fetch_sub(bytes, Ordering::Relaxed),
        };
    }
}
