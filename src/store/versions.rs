//! The sessions in memory: what each living snapshot may see, and what was used lately.
//!
//! The tables below hold one state, that of the last checkpoint. What was committed since is only
//! here, and so is what older snapshots see:
//!
//! ```text
//!   revision    3      5            8
//!   snapshot           |---- S ----------->   S = 5
//!   session   [r3]---[r5]---------[r8]
//!                      ^ what S sees: the newest version not newer than 5
//! ```
//!
//! A version that a newer one has replaced goes as soon as no snapshot sees it, and the newer one is
//! durable. The newest version of a session stays at least until a checkpoint holds it. From then on
//! it is *settled*: it stays as long as there is memory for it, and goes if it has not been read
//! since it was looked at last (CLOCK, Corbató 1968). So sessions in use are read without the tables.
//!
//! A point read asks the map, then the newest view. A scan pins the view and the sessions that are
//! not settled, under the lock in which the view is exchanged.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use crate::engine::{Commit, View, successor};
use crate::error::Error;
use crate::model::container::{ContainerId, ContainerState, Place};
use crate::model::policy::Policy;
use crate::model::session::{Record, Revision};
use crate::model::timeslice::NEVER;
use crate::store::lock;
use crate::store::pinned::{Page, Pinned, Row, first_row};
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard, RwLock};

/// The states of one thing, each from the revision on that is beside it.
#[derive(Debug)]
struct History<T> {
    newest: (Revision, T),
    /// Those before it, oldest first.
    older: VecDeque<(Revision, T)>,
}

impl<T: Clone> History<T> {
    fn new(from: Revision, state: T) -> Self {
        History { newest: (from, state), older: VecDeque::new() }
    }

    fn at(&self, snapshot: Revision) -> Option<&T> {
        let states = [&self.newest].into_iter().chain(self.older.iter().rev());
        states.into_iter().find(|(from, _)| *from <= snapshot).map(|(_, state)| state)
    }

    fn push(&mut self, from: Revision, state: T) {
        self.older.push_back(std::mem::replace(&mut self.newest, (from, state)));
    }

    /// Takes the newest state back; `None` if it is the only one.
    fn pop(&mut self) -> Option<T> {
        let before = self.older.pop_back()?;
        Some(std::mem::replace(&mut self.newest, before).1)
    }

    /// Drops what nobody who began at `oldest` or later can see.
    fn forget_before(&mut self, oldest: Revision, mut dropped: impl FnMut(&T)) {
        while !self.older.is_empty() {
            let next = self.older.get(1).map_or(self.newest.0, |(next, _)| *next);
            if next > oldest {
                return;
            }
            self.older.pop_front().into_iter().for_each(|(_, state)| dropped(&state));
        }
    }
}

pub(crate) type Session = Option<Arc<Record>>;

/// The policies of all containers.
pub(crate) type Policies = BTreeMap<ContainerId, Arc<Policy>>;

/// A session in memory.
struct Resident {
    history: History<Session>,
    /// Read since it was looked at last.
    used: bool,
    /// Among those of the shard that are not settled.
    listed: bool,
}

struct Shard {
    sessions: HashMap<Hashed, Resident, BuildHasherDefault<AsHashed>>,
    /// Those that the view may not show as every snapshot should see them.
    unsettled: Vec<Hashed>,
    /// No bucket of those is earlier.
    earliest: u64,
}

impl Default for Shard {
    fn default() -> Self {
        Shard { sessions: HashMap::default(), unsettled: Vec::new(), earliest: NEVER }
    }
}

impl Shard {
    /// Lists a session that is not settled any more.
    fn list(&mut self, place: Hashed, session: &Session) {
        self.unsettled.push(place);
        self.note_bucket(session);
    }

    fn note_bucket(&mut self, session: &Session) {
        let bucket = session.as_ref().map_or(NEVER, |record| record.bucket);
        self.earliest = self.earliest.min(bucket);
    }
}

/// A place with its hash: taken once to find both the shard and the session in it.
#[derive(Clone, PartialEq, Eq)]
struct Hashed {
    hash: u64,
    place: Place,
}

impl Hash for Hashed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Takes a hash for what it is.
#[derive(Default)]
struct AsHashed(u64);

impl Hasher for AsHashed {
    fn write(&mut self, _: &[u8]) {
        unreachable!("what is hashed is one number");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// How many locks the sessions are spread over.
const SHARDS: usize = 64;

/// How many views are asked for a session, if one after the other ends.
const FETCHES_MAX: u32 = 3;

/// How long to wait for a view in place of one that has ended. The tables are opened again meanwhile.
const EXCHANGE_MAX: Duration = Duration::from_secs(1);

pub(crate) struct Versions {
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
    /// Which session got a new version when, oldest first: where to look for what can be dropped.
    written: Mutex<VecDeque<(Revision, Hashed)>>,
    /// The revision of the first of those; the greatest number if there is none.
    oldest_written: AtomicU64,
    /// How many versions have been replaced and are kept, and what they weigh.
    replaced: AtomicUsize,
    replaced_bytes: AtomicUsize,
    /// What the newest versions weigh, those of settled sessions by themselves, and what they may.
    resident_bytes: AtomicUsize,
    settled_bytes: AtomicUsize,
    resident_bytes_max: usize,
    /// Where to look next for sessions to let go of.
    hand: AtomicUsize,
    containers: RwLock<BTreeMap<ContainerId, History<Arc<ContainerState>>>>,
    /// The last commit that has made a container or changed a policy, if only for a moment.
    policies_changed: AtomicU64,
    /// The newest view, and the revision up to which it holds everything.
    checkpoint: RwLock<(Arc<dyn View>, Revision)>,
    /// For those who wait for another view.
    exchange: (Mutex<()>, Condvar),
}

impl Versions {
    pub(crate) fn new(
        view: Arc<dyn View>,
        folded: Revision,
        sessions: Vec<(Place, Revision, Session)>,
        containers: Vec<ContainerState>,
        resident_bytes_max: usize,
    ) -> Self {
        let first = |state: ContainerState| (state.id, History::new(folded, Arc::new(state)));
        let versions = Versions {
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            written: Mutex::default(),
            oldest_written: AtomicU64::new(u64::MAX),
            replaced: AtomicUsize::new(0),
            replaced_bytes: AtomicUsize::new(0),
            resident_bytes: AtomicUsize::new(0),
            settled_bytes: AtomicUsize::new(0),
            resident_bytes_max,
            hand: AtomicUsize::new(0),
            containers: RwLock::new(containers.into_iter().map(first).collect()),
            // Later than a snapshot of nothing, so that the first look is a look.
            policies_changed: AtomicU64::new(1),
            checkpoint: RwLock::new((view, folded)),
            exchange: Default::default(),
        };
        for (place, revision, session) in sessions {
            let place = versions.hashed(&place);
            let mut shard = versions.shard(&place);
            versions.add(&versions.resident_bytes, &session);
            shard.list(place.clone(), &session);
            let history = History::new(revision, session);
            shard.sessions.insert(place, Resident { history, used: true, listed: true });
        }
        versions
    }

    /// The session at a place as of a snapshot that is registered.
    pub(crate) fn read(&self, place: &Place, snapshot: Revision) -> Result<Session, Error> {
        let place = self.hashed(place);
        if let Some(resident) = self.shard(&place).sessions.get_mut(&place) {
            // Written only if it changes, because others read it too.
            if !resident.used {
                resident.used = true;
            }
            if let Some(session) = resident.history.at(snapshot) {
                return Ok(session.clone());
            }
        }
        self.fetch(&place, |history| history.at(snapshot).cloned())
    }

    /// Whether a session lies at a place, and in memory.
    pub(crate) fn is_resident(&self, place: &Place) -> bool {
        let place = self.hashed(place);
        let shard = self.shard(&place);
        shard.sessions.get(&place).is_some_and(|resident| resident.history.newest.1.is_some())
    }

    /// The session at a place as the last commit left it. For the committer alone.
    pub(crate) fn newest(&self, place: &Place) -> Result<Session, Error> {
        let place = self.hashed(place);
        if let Some(resident) = self.shard(&place).sessions.get(&place) {
            return Ok(resident.history.newest.1.clone());
        }
        self.fetch(&place, |history| Some(history.newest.1.clone()))
    }

    /// The same for who knows what a snapshot saw there: mostly it is that, and nothing is read.
    ///
    /// All that was committed since the checkpoint is in memory. So what is not there has not changed
    /// since, and if the checkpoint is not newer than the snapshot, not since that either.
    pub(crate) fn newest_since(
        &self,
        place: &Place,
        seen: &Arc<Record>,
        snapshot: Revision,
    ) -> Result<Session, Error> {
        let place = self.hashed(place);
        if let Some(resident) = self.shard(&place).sessions.get(&place) {
            return Ok(resident.history.newest.1.clone());
        }
        // Asked after the look: one that came in between would hold what is not in memory any more.
        let folded = self.checkpoint.read().expect("nothing panics while it is held").1;
        match folded <= snapshot {
            true => Ok(Some(Arc::clone(seen))),
            false => self.fetch(&place, |history| Some(history.newest.1.clone())),
        }
    }

    /// Reads a session from the tables, and keeps it.
    fn fetch(
        &self,
        place: &Hashed,
        choose: impl Fn(&History<Session>) -> Option<Session>,
    ) -> Result<Session, Error> {
        let mut attempt = 1;
        loop {
            // As long as this is held the view stays the newest, so what is read is not outdated: a
            // commit that has changed the session since is here, because no view holds it.
            let checkpoint = self.checkpoint.read().expect("nothing panics while it is held");
            let stored = match checkpoint.0.read(&place.place) {
                Ok(stored) => stored,
                Err(error) => {
                    let view = Arc::clone(&checkpoint.0);
                    drop(checkpoint);
                    if attempt == FETCHES_MAX || !self.is_exchanged(&view) {
                        return Err(error);
                    }
                    attempt += 1;
                    continue;
                }
            };
            let mut shard = self.shard(place);
            let known = shard.sessions.get(place);
            if let Some(session) = known.and_then(|resident| choose(&resident.history)) {
                return Ok(session);
            }
            if let (Some(record), None, false) = (&stored, known, self.is_full_of_unsettled()) {
                self.add(&self.resident_bytes, &stored);
                self.add(&self.settled_bytes, &stored);
                let history = History::new(record.revision, stored.clone());
                let resident = Resident { history, used: true, listed: false };
                shard.sessions.insert(place.clone(), resident);
            }
            drop((shard, checkpoint));
            self.evict();
            return Ok(stored);
        }
    }

    /// Whether a view has ended and another one is there, for which it waits a little.
    pub(crate) fn is_exchanged(&self, view: &Arc<dyn View>) -> bool {
        let is_newest = || {
            let newest = self.checkpoint.read().expect("nothing panics while it is held");
            Arc::ptr_eq(&newest.0, view)
        };
        let (waiting, exchanged) = &self.exchange;
        let wait = |waiting| exchanged.wait_timeout_while(waiting, EXCHANGE_MAX, |()| is_newest());
        view.has_ended()
            && !wait(lock(waiting)).expect("nothing panics while it is held").1.timed_out()
    }

    /// Pins what a scan of a container needs to see the snapshot, whatever is committed meanwhile.
    pub(crate) fn pin(&self, container: ContainerId, snapshot: Revision) -> Pinned {
        // While this is held no view is exchanged, so nothing that the view lacks is dropped.
        let checkpoint = self.checkpoint.read().expect("nothing panics while it is held");
        let mut sessions = BTreeMap::new();
        for shard in &self.shards {
            let shard = lock(shard);
            for place in shard.unsettled.iter().filter(|hashed| hashed.place.0 == container) {
                // A session created after the snapshot has no version that it may see.
                let history = shard.sessions.get(place).map(|resident| &resident.history);
                let session = history.and_then(|history| history.at(snapshot).cloned().flatten());
                sessions.insert(place.place.1.clone(), session);
            }
        }
        Pinned { container, snapshot, view: Arc::clone(&checkpoint.0), sessions }
    }

    /// Sessions in buckets up to `until` as of `published`: rows of the index, and where to go on. For
    /// the sweep alone, which is judged again when it is committed. Whose end is under way is among
    /// them: it may come to nothing, and a sweep returns when it has come to an end.
    pub(crate) fn due(
        &self,
        container: ContainerId,
        published: Revision,
        until: u64,
        from: &Row,
        max: usize,
    ) -> Result<Page<Row, Row>, Error> {
        let checkpoint = self.checkpoint.read().expect("nothing panics while it is held");
        let mut rows = checkpoint.0.due(container, until, from, max)?;
        let next = rows.get(max - 1).map(|(bucket, key)| (*bucket, successor(key)));
        rows.retain(|(bucket, key)| {
            let place = self.hashed(&(container, key.clone()));
            let shard = self.shard(&place);
            shard.sessions.get(&place).is_none_or(|resident| {
                let session = resident.history.at(published).and_then(Option::as_ref);
                session.is_some_and(|session| session.bucket == *bucket)
            })
        });
        if *from == first_row() {
            // Nearly always nobody here is due.
            for shard in self.shards.iter().map(lock).filter(|shard| shard.earliest <= until) {
                for place in shard.unsettled.iter().filter(|hashed| hashed.place.0 == container) {
                    let history = shard.sessions.get(place).map(|resident| &resident.history);
                    let session = history.and_then(|history| history.at(published)?.as_ref());
                    let bucket = session.map(|session| session.bucket);
                    rows.extend(bucket.filter(|b| *b <= until).map(|b| (b, place.place.1.clone())));
                }
            }
            rows.sort();
            rows.dedup();
        }
        Ok((rows, next))
    }

    /// The first rows of the expiry index from `from` on as the last commit left them, and where to go
    /// on. For the committer alone.
    pub(crate) fn filed(
        &self,
        container: ContainerId,
        from: &Row,
        max: usize,
    ) -> Result<Page<Row, Row>, Error> {
        let checkpoint = self.checkpoint.read().expect("nothing panics while it is held");
        let mut rows = checkpoint.0.due(container, NEVER, from, max)?;
        let mut next = rows.get(max - 1).map(|(bucket, key)| (*bucket, successor(key)));
        rows.retain(|(bucket, key)| {
            let place = self.hashed(&(container, key.clone()));
            let shard = self.shard(&place);
            shard.sessions.get(&place).is_none_or(|resident| {
                resident.history.newest.1.as_ref().is_some_and(|session| session.bucket == *bucket)
            })
        });
        for shard in self.shards.iter().map(lock) {
            for place in shard.unsettled.iter().filter(|hashed| hashed.place.0 == container) {
                let newest = shard.sessions.get(place).map(|resident| &resident.history.newest.1);
                let bucket = newest.and_then(|session| Some(session.as_ref()?.bucket));
                let row = bucket.map(|bucket| (bucket, place.place.1.clone()));
                rows.extend(
                    row.filter(|row| row >= from && next.as_ref().is_none_or(|next| row < next)),
                );
            }
        }
        rows.sort();
        rows.dedup();
        if let Some(after) = rows.get(max) {
            next = Some(after.clone());
            rows.truncate(max);
        }
        Ok((rows, next))
    }

    /// A container as of a snapshot; as it was first if it is younger than the snapshot.
    pub(crate) fn container(
        &self,
        id: ContainerId,
        snapshot: Revision,
    ) -> Option<Arc<ContainerState>> {
        let containers = self.containers.read().expect("nothing panics while it is held");
        let history = containers.get(&id)?;
        let first = || history.older.front().unwrap_or(&history.newest);
        Some(Arc::clone(history.at(snapshot).unwrap_or_else(|| &first().1)))
    }

    /// The policies as of a snapshot.
    pub(crate) fn policies(&self, snapshot: Revision) -> Policies {
        let containers = self.containers.read().expect("nothing panics while it is held");
        let policy = |(id, history): (&ContainerId, &History<Arc<ContainerState>>)| {
            Some((*id, Arc::clone(&history.at(snapshot)?.policy)))
        };
        containers.iter().filter_map(policy).collect()
    }

    /// Whether two snapshots show the same policies, as far as one atomic load can tell.
    pub(crate) fn have_same_policies(&self, one: Revision, other: Revision) -> bool {
        self.policies_changed.load(Ordering::Acquire) <= one.min(other).0
    }

    /// Every container as the last commit left it.
    pub(crate) fn containers(&self) -> Vec<Arc<ContainerState>> {
        let containers = self.containers.read().expect("nothing panics while it is held");
        containers.values().map(|history| Arc::clone(&history.newest.1)).collect()
    }

    /// Puts what a commit makes of sessions behind what it replaces. Nobody sees it until its revision
    /// is published.
    pub(crate) fn stage(&self, commit: &Commit) {
        let mut written = lock(&self.written);
        for change in &commit.sessions {
            let (place, session) = (self.hashed(&change.place), change.after.clone());
            let mut shard = self.shard(&place);
            let shard = &mut *shard;
            self.add(&self.resident_bytes, &session);
            let resident = match shard.sessions.get_mut(&place) {
                Some(resident) => {
                    let (_, before) = &resident.history.newest;
                    self.take(&self.resident_bytes, before);
                    if !resident.listed {
                        self.take(&self.settled_bytes, before);
                    }
                    self.replace(before);
                    resident.history.push(commit.revision, session);
                    resident
                }
                None => {
                    let before = change.before.clone();
                    self.replace(&before);
                    let from =
                        before.as_ref().map_or(Revision::default(), |record| record.revision);
                    let mut history = History::new(from, before);
                    history.push(commit.revision, session);
                    let resident = Resident { history, used: true, listed: false };
                    shard.sessions.entry(place.clone()).or_insert(resident)
                }
            };
            if !std::mem::replace(&mut resident.listed, true) {
                shard.unsettled.push(place.clone());
            }
            // Until the end is published, a sweep finds it.
            shard.note_bucket(if change.after.is_some() { &change.after } else { &change.before });
            written.push_back((commit.revision, place));
        }
        self.note_oldest(&written);
        drop(written);
        if !commit.containers.is_empty() {
            let mut containers = self.containers.write().expect("nothing panics while it is held");
            if commit.containers.iter().any(|state| state.policy_revision == commit.revision) {
                self.policies_changed.store(commit.revision.0, Ordering::Release);
            }
            for state in &commit.containers {
                match containers.get_mut(&state.id) {
                    Some(history) => history.push(commit.revision, Arc::clone(state)),
                    None => {
                        let history = History::new(commit.revision, Arc::clone(state));
                        containers.insert(state.id, history);
                    }
                }
            }
        }
    }

    /// Takes back everything newer than `durable`: the batch that staged it has failed.
    pub(crate) fn unstage(&self, durable: Revision) {
        let mut written = lock(&self.written);
        while written.back().is_some_and(|(revision, _)| *revision > durable) {
            let Some((_, place)) = written.pop_back() else { break };
            let mut shard = self.shard(&place);
            let Some(resident) = shard.sessions.get_mut(&place) else { continue };
            if resident.history.newest.0 > durable
                && let Some(session) = resident.history.pop()
            {
                self.take(&self.resident_bytes, &session);
                let (_, before) = &resident.history.newest;
                self.drop_replaced(before);
                self.add(&self.resident_bytes, before);
            }
        }
        self.note_oldest(&written);
        drop(written);
        let mut containers = self.containers.write().expect("nothing panics while it is held");
        containers.retain(|_, history| {
            while history.newest.0 > durable {
                if history.pop().is_none() {
                    return false;
                }
            }
            true
        });
    }

    /// Exchanges the view for one that holds everything up to `revision`.
    pub(crate) fn checkpoint(&self, view: Arc<dyn View>, revision: Revision, oldest: Revision) {
        let mut checkpoint = self.checkpoint.write().expect("nothing panics while it is held");
        *checkpoint = (view, revision);
        drop(checkpoint);
        let settled = revision.min(oldest);
        for shard in &self.shards {
            let mut shard = lock(shard);
            let Shard { sessions, unsettled, earliest } = &mut *shard;
            *earliest = NEVER;
            unsettled.retain(|place| {
                let Some(resident) = sessions.get_mut(place) else { return false };
                let (from, session) = &resident.history.newest;
                if *from > settled || !resident.history.older.is_empty() {
                    // The newest may come to nothing.
                    let older = resident.history.older.iter().map(|(_, session)| session);
                    let buckets = older.chain([session]).flatten().map(|record| record.bucket);
                    *earliest = buckets.min().unwrap_or(NEVER).min(*earliest);
                    return true;
                }
                resident.listed = false;
                self.add(&self.settled_bytes, session);
                if session.is_none() {
                    self.take(&self.settled_bytes, session);
                    self.take(&self.resident_bytes, session);
                    sessions.remove(place);
                }
                false
            });
        }
        let (waiting, exchanged) = &self.exchange;
        drop(lock(waiting));
        exchanged.notify_all();
    }

    /// Drops every version that has been replaced by one that is durable, and that no snapshot from
    /// `oldest` on sees.
    pub(crate) fn forget(&self, oldest: Revision, durable: Revision) {
        let safe = oldest.min(durable);
        let mut written = lock(&self.written);
        while written.front().is_some_and(|(revision, _)| *revision <= safe) {
            let Some((_, place)) = written.pop_front() else { break };
            if let Some(resident) = self.shard(&place).sessions.get_mut(&place) {
                resident.history.forget_before(safe, |session| self.drop_replaced(session));
            }
        }
        self.note_oldest(&written);
        drop(written);
        self.evict();
    }

    /// Lets go of settled sessions until the rest is within its bounds.
    fn evict(&self) {
        let bytes = || self.resident_bytes.load(Ordering::Relaxed);
        let too_many = || bytes() > self.resident_bytes_max && !self.is_full_of_unsettled();
        // Once round to take the marks away, and once more.
        for _ in 0..2 * SHARDS {
            if !too_many() {
                return;
            }
            let next = self.hand.fetch_add(1, Ordering::Relaxed) % SHARDS;
            lock(&self.shards[next]).sessions.retain(|_, resident| {
                // All that may go, not only as much as must: to look through a shard is dear.
                let stays = resident.listed || std::mem::take(&mut resident.used);
                if !stays {
                    self.take(&self.settled_bytes, &resident.history.newest.1);
                    self.take(&self.resident_bytes, &resident.history.newest.1);
                }
                stays
            });
        }
    }

    /// Whether to look for settled sessions is not worth the while: there are few, and all others must
    /// stay until the next checkpoint.
    fn is_full_of_unsettled(&self) -> bool {
        let few = self.resident_bytes_max / 32;
        let bytes = |bytes: &AtomicUsize| bytes.load(Ordering::Relaxed);
        bytes(&self.resident_bytes) > self.resident_bytes_max && bytes(&self.settled_bytes) < few
    }

    fn note_oldest(&self, written: &VecDeque<(Revision, Hashed)>) {
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

    /// What is kept for the sake of old snapshots: how many versions, and what they weigh.
    pub(crate) fn replaced(&self) -> (usize, usize) {
        let count = self.replaced.load(Ordering::Relaxed);
        (count, self.replaced_bytes.load(Ordering::Relaxed))
    }

    /// How many sessions are in memory, and what they weigh.
    pub(crate) fn resident(&self) -> (usize, usize) {
        let count = self.shards.iter().map(|shard| lock(shard).sessions.len()).sum();
        (count, self.resident_bytes.load(Ordering::Relaxed))
    }

    fn hashed(&self, place: &Place) -> Hashed {
        Hashed { hash: self.hasher.hash_one(place), place: place.clone() }
    }

    fn shard(&self, place: &Hashed) -> MutexGuard<'_, Shard> {
        // Neither the lowest bits nor the highest: the map looks at those.
        lock(&self.shards[(place.hash >> 40) as usize % SHARDS])
    }

    fn replace(&self, session: &Session) {
        self.replaced.fetch_add(1, Ordering::Relaxed);
        self.add(&self.replaced_bytes, session);
    }

    fn drop_replaced(&self, session: &Session) {
        self.replaced.fetch_sub(1, Ordering::Relaxed);
        self.take(&self.replaced_bytes, session);
    }

    fn add(&self, bytes: &AtomicUsize, session: &Session) {
        bytes.fetch_add(weight(session), Ordering::Relaxed);
    }

    fn take(&self, bytes: &AtomicUsize, session: &Session) {
        bytes.fetch_sub(weight(session), Ordering::Relaxed);
    }
}

/// What a version takes up, estimated: its place in the map, and its record.
fn weight(session: &Session) -> usize {
    const PLACE: usize = 200;
    PLACE + session.as_ref().map_or(0, |record| record.weight())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::SessionChange;
    use crate::engine::memory::Memory;
    use crate::model::attributes::Attributes;
    use crate::model::clock::Time;
    use crate::model::key::Key;
    use crate::model::session::SessionId;

    fn filed(revision: u64, bucket: u64, before: &Session) -> Commit {
        let record = Arc::new(Record {
            id: SessionId(1),
            revision: Revision(revision),
            created: Time::from_secs(1),
            last_accessed: Time::from_secs(1),
            last_modified: None,
            slice_end: Time::from_secs(1),
            bucket,
            attributes: Attributes::new(),
            extras: None,
        });
        let place = (ContainerId(1), Key::from("ada"));
        let change = SessionChange { place, before: before.clone(), after: Some(record) };
        Commit { revision: Revision(revision), sessions: vec![change], containers: Vec::new() }
    }

    /// A commit in doubt that files a session later hides it from no sweep, whenever the view is
    /// exchanged.
    #[test]
    fn what_is_in_doubt_hides_nobody_who_is_due() {
        let (_memory, recovered) = Memory::open();
        let view = recovered.view;
        let first = Revision(1);
        let versions =
            Versions::new(Arc::clone(&view), Revision(0), Vec::new(), Vec::new(), 1 << 20);
        let created = filed(1, 50, &None);
        versions.stage(&created);
        versions.stage(&filed(2, 100, &created.sessions[0].after));
        versions.checkpoint(view, Revision(0), first);
        let due = || versions.due(ContainerId(1), first, 60, &first_row(), 9).unwrap().0;
        let ada = vec![(50, Key::from("ada"))];
        assert_eq!(due(), ada);
        versions.unstage(first);
        assert_eq!(due(), ada);
    }
}
