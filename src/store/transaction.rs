//! A transaction: an unchanging snapshot, and all that is to change, kept in memory until commit.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, LimitKind};
use crate::model::clock::Time;
use crate::model::container::{ContainerId, Place};
use crate::model::draft::{Draft, Life};
use crate::model::forward::{self, Forward};
use crate::model::key::Key;
use crate::model::policy::{AtLimit, Durability, Policy};
use crate::model::session::{Record, Revision, SessionId};
use crate::model::token::Token;
use crate::store::commit::{Intent, Request, Work};
use crate::store::container::Container;
use crate::store::door::Door;
use crate::store::events::Event;
use crate::store::filter::Filter;
use crate::store::import::{Arrival, OnConflict};
use crate::store::listeners;
use crate::store::listing::{Keys, Listing, Sessions};
use crate::store::observe;
use crate::store::outcome::{Commit, Report, Watched, slot};
use crate::store::principals::{self, PrincipalSession};
use crate::store::readers;
use crate::store::session::Session;
use crate::store::stats::Counters;
use crate::store::workspace::Workspace;

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
    workspace: Arc<Workspace>,
    /// Listeners are lent a transaction that is not theirs to end.
    lent: bool,
}

/// A point within a transaction to go back to: see [`Transaction::savepoint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Savepoint(u64);

/// Start listeners that create sessions start listeners. Deeper than this is taken for a loop.
const STARTING_MAX: usize = 16;

impl Transaction {
    pub(crate) fn begin(door: Arc<Door>) -> Result<Self, Error> {
        let workspace = Arc::new(Workspace::new(door)?);
        Ok(Transaction { workspace, lent: false })
    }

    /// The revision of the snapshot.
    pub fn revision(&self) -> Revision {
        self.workspace.snapshot.revision()
    }

    /// The live session under a key. This is an access: it lengthens the session's life.
    ///
    /// In the time of [grace](Policy::rotation_grace_secs) after a [rotation](Session::rotate) the old
    /// key leads to the session too: the handle has the [new one](Session::key).
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
        self.reach(self.place(container, key)?, Life::access)
    }

    /// The same as a future: a session that is in memory is there at once, and one that is not is read on
    /// a thread of the store's, so that no thread of the executor waits for the disk.
    ///
    /// ```
    /// # use sessile::{Policy, Store};
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// # let store = Store::memory()?;
    /// # let visitors = store.container_with("visitors", Policy::new())?;
    /// let txn = store.begin()?;
    /// assert!(txn.get_async(&visitors, "ada").await?.is_none());
    /// # Ok::<(), sessile::Error>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get); [`Error::Busy`] if too many wait to be read.
    pub async fn get_async(
        &self,
        container: &Container,
        key: impl Into<Key>,
    ) -> Result<Option<Session>, Error> {
        self.reach_async(self.place(container, key)?, Life::access).await
    }

    async fn reach_async(
        &self,
        place: Place,
        work: impl Fn(&mut Life, &Policy, Time) + Send + 'static,
    ) -> Result<Option<Session>, Error> {
        if self.workspace.door.versions.is_resident(&place) {
            return self.reach(place, work);
        }
        let lent = Transaction { workspace: Arc::clone(&self.workspace), lent: true };
        readers::run(self.workspace.core(), move || lent.reach(place, work)).await
    }

    /// When a key was given up for another one by a [rotation](Session::rotate), as long as that is known:
    /// whoever comes with it shortly after was under way, and is not to be taken for somebody who was
    /// logged out.
    ///
    /// ```
    /// # use sessile::{Error, Policy, Store};
    /// # let store = Store::memory()?;
    /// # let visitors = store.container_with("visitors", Policy::new())?;
    /// # store.transact(|txn| txn.create(&visitors, "old")?.insert("cart", ["tea"]))?;
    /// store.transact(|txn| txn.get(&visitors, "old")?.ok_or(Error::Ended)?.rotate("new").map(drop))?;
    /// let txn = store.begin()?;
    /// assert!(txn.given_up(&visitors, "old")?.is_some_and(|when| when <= store.now()));
    /// assert!(txn.given_up(&visitors, "new")?.is_none());
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get).
    pub fn given_up(
        &self,
        container: &Container,
        key: impl Into<Key>,
    ) -> Result<Option<Time>, Error> {
        let forward = self.workspace.forward(&self.place(container, key)?)?;
        Ok(forward.map(|forward| forward.since))
    }

    /// The live session under a key; a new one if there is none. An access.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`] if the container is full, [`Error::RotatedKey`] if the key was given up for
    /// another one, and as for [`get`](Transaction::get).
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
    /// [`Error::Exists`] if a live session has the key, [`Error::RotatedKey`] if it was given up for
    /// another one, [`Error::Limit`] if the container is full or the key too long (the transaction
    /// stays usable), and as for [`get`](Transaction::get).
    pub fn create(&self, container: &Container, key: impl Into<Key>) -> Result<Session, Error> {
        let place = self.place(container, key)?;
        self.workspace.settings(place.0)?.check_key(&place.1)?;
        let named = || (container.name.to_string(), place.1.fingerprint());
        let is_taken = |draft: &mut Draft, policy: &Policy, now| draft.live(policy, now).is_some();
        if self.workspace.with_draft(&place, is_taken)? {
            let (container, session) = named();
            return Err(Error::Exists { container, session });
        }
        if let Some(forward) = self.workspace.forward(&place)? {
            self.is_over(&place, &forward)?;
            let (container, session) = named();
            return Err(Error::RotatedKey { container, session });
        }
        self.start(container, place)
    }

    /// A new session under a new random [`Token`], which goes to the visitor. That is nobody's yet, so
    /// nothing is read for it.
    ///
    /// ```
    /// # use sessile::{Policy, Store};
    /// # let store = Store::memory()?;
    /// # let visitors = store.container_with("visitors", Policy::new())?;
    /// let token = store.transact(|txn| {
    ///     let (session, token) = txn.create_with_token(&visitors)?;
    ///     session.insert("cart", ["tea"])?;
    ///     Ok(token)
    /// })?.value;
    /// assert!(store.begin()?.contains(&visitors, &token)?);
    /// # Ok::<(), sessile::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Random`], [`Error::Limit`] if the container is full, and as for
    /// [`get`](Transaction::get).
    pub fn create_with_token(&self, container: &Container) -> Result<(Session, Token), Error> {
        let token = Token::random()?;
        let place = self.place(container, &token)?;
        self.workspace.assume_absent(&place)?;
        Ok((self.start(container, place)?, token))
    }

    /// Begins the life of a session at a place where none is.
    fn start(&self, container: &Container, place: Place) -> Result<Session, Error> {
        let policy = self.workspace.settings(place.0)?;
        let taken = || Error::Exists {
            container: container.name.to_string(),
            session: place.1.fingerprint(),
        };
        // Otherwise the commit makes room, or says that there is none.
        let is_limited = policy.limit > 0 && policy.at_limit == AtLimit::Reject;
        if is_limited
            && !self.workspace.is_released()
            && self.len_at_most(container, policy.limit)? >= policy.limit
        {
            return Err(Error::Limit { limit: LimitKind::Sessions, max: policy.limit });
        }
        let id = self.workspace.door.chance.session_id();
        self.workspace.with_draft(&place, |draft, policy, now| {
            // Another thread with a handle of this transaction may have been faster.
            if draft.live(policy, now).is_some() {
                return Err(taken());
            }
            draft.lives.push(Life::created(id, now, policy));
            Ok(())
        })??;
        let session = self.session(place, id);
        if let Some(listener) = &policy.on_start {
            self.tell_start(listener, &session)?;
        }
        Ok(session)
    }

    /// Takes in a session that comes from elsewhere. Nobody is told of its start.
    pub(crate) fn take_in(
        &self,
        container: &Container,
        key: &Key,
        record: &Record,
        on_conflict: OnConflict,
    ) -> Result<Arrival, Error> {
        let place = self.place(container, key)?;
        let policy = self.workspace.settings(place.0)?;
        policy.check_key(key)?;
        record.attributes.iter().try_for_each(|(_, found)| policy.check_depth(&found.value))?;
        record.principal().map_or(Ok(()), |p| principals::check_bytes(&p.name, &p.note))?;
        if self.workspace.forward(&place)?.is_some() {
            // Whoever has it gave it up.
            return match on_conflict {
                OnConflict::Fail => {
                    let (container, session) = (container.name().to_owned(), key.fingerprint());
                    Err(Error::RotatedKey { container, session })
                }
                _ => Ok(Arrival::Skipped),
            };
        }
        let life = Life::taken_in(self.workspace.door.chance.session_id(), record);
        self.workspace.with_draft(&place, |draft, policy, now| {
            if record.is_expired(policy, now) {
                return Ok(Arrival::Expired);
            }
            let mut arrival = Arrival::Created;
            if let Some(here) = draft.live_mut(policy, now) {
                let is_newer = here.last_accessed() < record.last_accessed;
                match on_conflict {
                    OnConflict::Replace => {}
                    OnConflict::Newer if is_newer => {}
                    OnConflict::Skip | OnConflict::Newer => return Ok(Arrival::Skipped),
                    OnConflict::Fail => {
                        let (container, session) = (container.name(), key.fingerprint());
                        return Err(Error::Exists { container: container.to_owned(), session });
                    }
                }
                here.ended = true;
                arrival = Arrival::Replaced;
            }
            draft.lives.push(life);
            Ok(arrival)
        })?
    }

    /// Whether a live session has the key. An access, like [`get`](Transaction::get).
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get).
    pub fn contains(&self, container: &Container, key: impl Into<Key>) -> Result<bool, Error> {
        Ok(self.get(container, key)?.is_some())
    }

    /// The live session under a key, without an access: for requests that are no activity of its
    /// visitor's, such as polling. Neither does anything done with the handle lengthen its life.
    ///
    /// ```
    /// # use sessile::{Error, Policy, Store};
    /// # let store = Store::memory()?;
    /// # let visitors = store.container_with("visitors", Policy::new())?;
    /// # store.transact(|txn| txn.create(&visitors, "ada").map(|_| ()))?;
    /// let txn = store.begin()?;
    /// let session = txn.peek(&visitors, "ada")?.ok_or(Error::Ended)?;
    /// let expires = session.expires()?;
    /// session.insert("polled", true)?;
    /// assert_eq!(session.expires()?, expires);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get).
    pub fn peek(
        &self,
        container: &Container,
        key: impl Into<Key>,
    ) -> Result<Option<Session>, Error> {
        self.reach(self.place(container, key)?, |_, _, _| ())
    }

    /// The same as a future, like [`get_async`](Transaction::get_async).
    ///
    /// # Errors
    ///
    /// As for [`get_async`](Transaction::get_async).
    pub async fn peek_async(
        &self,
        container: &Container,
        key: impl Into<Key>,
    ) -> Result<Option<Session>, Error> {
        self.reach_async(self.place(container, key)?, |_, _, _| ()).await
    }

    /// Ends the live session under a key, if there is one.
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get).
    pub fn remove(&self, container: &Container, key: impl Into<Key>) -> Result<bool, Error> {
        let found = self.reach(self.place(container, key)?, |life, _, _| life.ended = true)?;
        Ok(found.is_some())
    }

    /// Ends the session of a key, wherever [rotations](Session::rotate) have put it since: for a logout that
    /// was under way during a login, with the key of before. Nothing of the session is shown. False if it has
    /// ended, or the key was given up too long ago.
    ///
    /// ```
    /// # use sessile::{Error, Policy, Store};
    /// # let store = Store::memory()?;
    /// # let visitors = store.container_with("visitors", Policy::new())?;
    /// # store.transact(|txn| txn.create(&visitors, "old")?.insert("cart", ["tea"]))?;
    /// store.transact(|txn| txn.get(&visitors, "old")?.ok_or(Error::Ended)?.rotate("new").map(drop))?;
    /// assert!(!store.transact(|txn| txn.remove(&visitors, "old"))?.value);
    /// assert!(store.transact(|txn| txn.remove_rotated(&visitors, "old"))?.value);
    /// assert!(!store.begin()?.contains(&visitors, "new")?);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get).
    pub fn remove_rotated(
        &self,
        container: &Container,
        key: impl Into<Key>,
    ) -> Result<bool, Error> {
        let end = |life: &mut Life, _: &Policy, _| life.ended = true;
        let found = self.follow(self.place(container, key)?, end, |_, _| Ok(false))?;
        Ok(found.is_some())
    }

    /// Finds the generation that a handle of an earlier transaction means, without an access;
    /// `None` if that session is gone, whoever has its key now.
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get).
    pub fn reattach(&self, handle: &Session) -> Result<Option<Session>, Error> {
        if !Arc::ptr_eq(handle.workspace.core(), self.workspace.core()) {
            return Err(Error::Stranger);
        }
        let place = handle.place.clone();
        let found = self.workspace.with_draft(&place, |draft, policy, now| {
            draft.live(policy, now).is_some_and(|life| life.base.id == handle.id())
        })?;
        Ok(found.then(|| self.session(place, handle.id())))
    }

    /// The live sessions of a [principal](Session::bind), the oldest first: what a page shows that is
    /// headed "where you are logged in". No access and no read.
    ///
    /// ```
    /// # use sessile::{Policy, Store};
    /// # let store = Store::memory()?;
    /// # let visitors = store.container_with("visitors", Policy::new())?;
    /// store.transact(|txn| txn.create(&visitors, "laptop")?.bind("ada", "Firefox"))?;
    /// store.transact(|txn| txn.create(&visitors, "phone")?.bind("ada", "the app"))?;
    ///
    /// let txn = store.begin()?;
    /// let devices = txn.sessions_of(&visitors, "ada")?;
    /// assert_eq!(devices.iter().map(|device| &*device.note).collect::<Vec<_>>(), ["Firefox", "the app"]);
    /// # Ok::<(), sessile::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get).
    pub fn sessions_of(
        &self,
        container: &Container,
        principal: &str,
    ) -> Result<Vec<PrincipalSession>, Error> {
        let id = self.container_id(container)?;
        let policy = self.workspace.policy(id)?;
        let shown = |(key, record): (Key, Record)| PrincipalSession {
            key,
            id: record.id,
            created: record.created,
            last_accessed: record.last_accessed,
            note: record.principal().map_or(String::new(), |principal| principal.note.to_string()),
            expires: record.expiry(&policy),
        };
        let found = self.workspace.sessions_of(id, principal)?;
        let mut sessions: Vec<_> = found.into_iter().map(shown).collect();
        sessions.sort_by(|a, b| (a.created, &a.key).cmp(&(b.created, &b.key)));
        Ok(sessions)
    }

    /// Ends all sessions of a [principal](Session::bind), as they are at the commit: those too that
    /// were bound after this transaction began, and no conflict comes of one that has ended by itself.
    /// What this transaction binds to the principal after this call stays.
    /// [`Report::ended`](crate::Report) lists them.
    ///
    /// ```
    /// # use sessile::{Policy, Store};
    /// # let store = Store::memory()?;
    /// # let visitors = store.container_with("visitors", Policy::new())?;
    /// # store.transact(|txn| txn.create(&visitors, "laptop")?.bind("ada", "Firefox"))?;
    /// # store.transact(|txn| txn.create(&visitors, "phone")?.bind("ada", "the app"))?;
    /// let report = store.transact(|txn| txn.end_all_of(&visitors, "ada"))?;
    /// assert_eq!(report.ended.len(), 2);
    /// # Ok::<(), sessile::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get).
    pub fn end_all_of(&self, container: &Container, principal: &str) -> Result<(), Error> {
        let id = self.container_id(container)?;
        self.workspace.end_sessions_of(id, principal, None)
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
        let (drafted, own) = self.workspace.count_drafts(id)?;
        let mut counted = self.workspace.container(id)?.count.saturating_sub(drafted);
        if counted + own >= enough || enough == u64::MAX {
            counted = counted.saturating_sub(Listing::new(&self.workspace, id)?.expired()?);
        }
        Ok(counted + own)
    }

    /// The keys of the live sessions, in order, a page at a time. Listing is no access and no read.
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get); the iterator's items may fail the same way.
    pub fn keys(&self, container: &Container) -> Result<Keys, Error> {
        Ok(Keys(Listing::new(&self.workspace, self.container_id(container)?)?))
    }

    /// The live sessions, in the order of their keys, a page at a time. No access and no read.
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get); the iterator's items may fail the same way.
    pub fn iter(&self, container: &Container) -> Result<Sessions, Error> {
        Ok(Sessions(Listing::new(&self.workspace, self.container_id(container)?)?))
    }

    /// The live sessions that pass a filter, in the order of their keys, a page at a time. What this
    /// transaction has changed counts. No access and no read, so others may change what it was chosen by
    /// before this transaction commits: [`Session::require`] what matters.
    ///
    /// ```
    /// # use sessile::{Filter, Policy, Store};
    /// # use std::time::Duration;
    /// # let store = Store::memory()?;
    /// # let visitors = store.container_with("visitors", Policy::new())?;
    /// let abandoned = Filter::new().has("cart").idle_for(Duration::from_secs(600));
    /// store.transact(|txn| {
    ///     txn.find(&visitors, abandoned.clone())?.try_for_each(|session| session?.add("reminded", 1))
    /// })?;
    /// # Ok::<(), sessile::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get); the iterator's items may fail the same way.
    pub fn find(&self, container: &Container, filter: Filter) -> Result<Sessions, Error> {
        let listing = Listing::new(&self.workspace, self.container_id(container)?)?;
        Ok(Sessions(listing.passing(filter)))
    }

    /// The settings of a container, those that this transaction has set included.
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get).
    pub fn policy(&self, container: &Container) -> Result<Policy, Error> {
        let policy = self.workspace.settings(self.container_id(container)?)?;
        Ok(Policy::clone(&policy))
    }

    /// Changes the settings of a container. Its sessions stay: what they were promised holds, and
    /// the new timeout counts from their last access. A longer timeout holds from the commit on;
    /// what has expired by then stays expired.
    ///
    /// Two transactions that change the settings of one container conflict.
    ///
    /// # Errors
    ///
    /// [`Error::Policy`] if the settings contradict each other, and as for
    /// [`get`](Transaction::get).
    pub fn set_policy(&self, container: &Container, policy: Policy) -> Result<(), Error> {
        policy.validate()?;
        self.workspace.set_policy(self.container_id(container)?, policy)
    }

    /// Says when this commit is to be acknowledged, whatever the containers say: the strictest of
    /// [`Policy::durability`] holds otherwise. For some kinds of commits there is no choice: see
    /// [`Durability`].
    ///
    /// ```
    /// # use sessile::{Durability, Policy, Store};
    /// # let store = Store::memory()?;
    /// # let visitors = store.container_with("visitors", Policy::new())?;
    /// let txn = store.begin()?;
    /// txn.get_or_create(&visitors, "ada")?.insert("scrolled_to", 1_240)?;
    /// txn.set_durability(Durability::Relaxed)?; // may be lost if the machine dies within 100 ms
    /// txn.commit()?;
    /// # Ok::<(), sessile::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get).
    pub fn set_durability(&self, durability: Durability) -> Result<(), Error> {
        self.workspace.lock()?.durability = Some(durability);
        Ok(())
    }

    /// Lets this commit win where an attribute that it has read and written was written by others
    /// meanwhile, and no rule, resolver or merging write makes one value of the two: what they wrote there
    /// is lost, instead of this commit. For work that cannot run again, such as what a request has done
    /// when its answer is there; everything else belongs into
    /// [`Store::transact`](crate::Store::transact).
    ///
    /// It is [told](crate::Event::Overruled) and [counted](crate::Stats::overruled). A session that has
    /// ended, what was [required](Session::require) or [taken](Session::take), and an attribute whose
    /// rule is [`Reject`](crate::Rule::Reject) conflict all the same.
    ///
    /// ```
    /// # use sessile::{Error, Policy, Store};
    /// # let store = Store::memory()?;
    /// # let visitors = store.container_with("visitors", Policy::new())?;
    /// # store.transact(|txn| txn.create(&visitors, "ada")?.insert("page", 1))?;
    /// let txn = store.begin()?;
    /// txn.win_conflicts()?;
    /// let session = txn.get(&visitors, "ada")?.ok_or(Error::Ended)?;
    /// session.update("page", |page: &mut u32| *page += 1)?;
    /// store.transact(|txn| txn.get_or_create(&visitors, "ada")?.insert("page", 7))?;
    ///
    /// let report = txn.commit()?;
    /// assert_eq!(report.merged[0].overruled, ["page"]);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get).
    pub fn win_conflicts(&self) -> Result<(), Error> {
        self.workspace.lock()?.later_wins = true;
        Ok(())
    }

    /// Whether there is anything to commit but times of access, which ride along with other commits and
    /// need not be waited for.
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get).
    pub fn has_changes(&self) -> Result<bool, Error> {
        self.workspace.has_changes()
    }

    /// Lets go of the snapshot, so that the transaction may live as long as it likes, and nothing is kept
    /// in memory for it: for work that waits for others, such as a request that streams.
    ///
    /// Sessions that were looked up stay as they were seen. One that is looked up from now on is seen as it
    /// is then, so two of them may show different states. Lists and
    /// [`len`](Transaction::len) fail with [`Error::SnapshotTooOld`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use sessile::{Error, ManualClock, Options, Policy, Time};
    /// # let clock = ManualClock::new(Time::from_secs(1_000_000_000));
    /// # let store = Options::new().clock(clock.clone()).memory()?;
    /// # let visitors = store.container_with("visitors", Policy::new().timeout_mins(20))?;
    /// # store.transact(|txn| txn.create(&visitors, "ada")?.insert("page", 1))?;
    /// let txn = store.begin()?;
    /// let session = txn.get(&visitors, "ada")?.ok_or(Error::Ended)?;
    /// txn.release_snapshot()?;
    /// # clock.elapse(Duration::from_secs(600));
    /// // Ten minutes later, when a snapshot would long have been given up:
    /// session.insert("page", 2)?;
    /// txn.commit()?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get).
    pub fn release_snapshot(&self) -> Result<(), Error> {
        self.workspace.release()
    }

    /// Marks a point to go back to.
    ///
    /// ```
    /// # use sessile::{Policy, Store};
    /// # let store = Store::memory()?;
    /// # let carts = store.container_with("carts", Policy::new())?;
    /// let txn = store.begin()?;
    /// let cart = txn.create(&carts, "ada")?;
    /// cart.insert("fruit", "apple")?;
    /// let before = txn.savepoint()?;
    /// cart.insert("fruit", "durian")?;
    /// txn.rollback(before)?;
    /// assert_eq!(cart.get::<String>("fruit")?.as_deref(), Some("apple"));
    /// # Ok::<(), sessile::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`get`](Transaction::get).
    pub fn savepoint(&self) -> Result<Savepoint, Error> {
        self.workspace.save().map(Savepoint)
    }

    /// Undoes what was changed since the savepoint. Savepoints after it are gone, it itself stays.
    /// What was read stays read, and can still conflict.
    ///
    /// # Errors
    ///
    /// [`Error::Savepoint`] if it is gone, and as for [`get`](Transaction::get).
    pub fn rollback(&self, savepoint: Savepoint) -> Result<(), Error> {
        self.workspace.restore(savepoint.0)
    }

    /// Makes everything true, durably, or nothing; blocks until it is known.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`], [`Error::SnapshotTooOld`]: begin again. [`Error::Limit`]: a limit that
    /// concurrent commits have exhausted. [`Error::Busy`]: the queue stayed full. [`Error::Full`]: so
    /// did the disk. [`Error::Closed`], [`Error::Corrupt`], [`Error::Storage`]: nothing was written.
    /// [`Error::Unknown`]: ask [`Store::fate`](crate::Store::fate). After all of them the transaction
    /// is over.
    pub fn commit(self) -> Result<Report, Error> {
        self.commit_attempt(false)
    }

    /// Commits; says whether it is run again if it is refused.
    pub(crate) fn commit_attempt(self, again: bool) -> Result<Report, Error> {
        self.submit(self.workspace.finish(), again)
    }

    /// The same as a future: awaiting it blocks no thread and needs no particular executor.
    pub fn commit_async(self) -> Commit {
        self.commit_attempt_async(false)
    }

    /// The same as [`commit_attempt`](Self::commit_attempt), as a future.
    pub(crate) fn commit_attempt_async(self, again: bool) -> Commit {
        self.submit_async(self.workspace.finish(), again)
    }

    /// Commits nothing but the end of those sessions that ended because of what they hold: see
    /// `mismatch.rs`.
    pub(crate) fn end_unreadable(self) -> Result<Report, Error> {
        self.submit(self.workspace.finish_unreadable(), true)
    }

    /// The same as a future.
    pub(crate) fn end_unreadable_async(self) -> Commit {
        self.submit_async(self.workspace.finish_unreadable(), true)
    }

    fn submit(
        &self,
        finished: Result<Option<Intent>, Error>,
        again: bool,
    ) -> Result<Report, Error> {
        let core = self.workspace.core();
        match finished? {
            Some(intent) => {
                let watch = observe::commit(core, &intent);
                let verdict = core.submit(Work::Transaction(intent));
                watch.committed(core, &verdict, again);
                verdict
            }
            None => Ok(Report::nothing(self.revision())),
        }
    }

    fn submit_async(&self, finished: Result<Option<Intent>, Error>, again: bool) -> Commit {
        match finished {
            Ok(Some(intent)) => {
                let core = Arc::clone(self.workspace.core());
                let watch = observe::commit(&core, &intent);
                let watched = Watched { core: Arc::clone(&core), watch, again };
                let (reply, waiting) = slot();
                let request = Request { work: Work::Transaction(intent), reply };
                Commit::queue(core, request, waiting, watched)
            }
            Ok(None) => Commit::decided(Ok(Report::nothing(self.revision()))),
            Err(error) => Commit::decided(Err(error)),
        }
    }

    /// Tells a listener of a new session, inside this transaction. If it fails, what it changed is
    /// rolled back and the session stays.
    fn tell_start(&self, name: &str, session: &Session) -> Result<(), Error> {
        let core = self.workspace.core();
        let Some(listener) = core.listeners.on_start.get(name) else {
            core.event(&Event::ListenerMissing { listener: name.to_owned() });
            return Ok(());
        };
        let before = self.workspace.save()?;
        let told = if self.workspace.lock()?.starting >= STARTING_MAX {
            Err(Event::ListenerFailed { listener: name.to_owned(), panicked: false })
        } else {
            self.workspace.lock()?.starting += 1;
            let lent = Transaction { workspace: Arc::clone(&self.workspace), lent: true };
            let told = listeners::call(name, || listener(&lent, session));
            self.workspace.lock()?.starting -= 1;
            told
        };
        if let Err(event) = told {
            Counters::add(&core.counters.listener_failures, 1);
            core.event(&event);
            self.workspace.restore(before)?;
        }
        self.workspace.forget(before)
    }

    /// The live session under a key, or under the one that it was rotated to, as long as the grace
    /// lasts.
    fn reach(
        &self,
        place: Place,
        work: impl Fn(&mut Life, &Policy, Time),
    ) -> Result<Option<Session>, Error> {
        self.follow(place, work, |place, forward| self.is_over(place, forward))
    }

    /// The live session under a key, or under the one that it was rotated to, unless `is_over` says that it
    /// is too late for that.
    fn follow(
        &self,
        mut place: Place,
        work: impl Fn(&mut Life, &Policy, Time),
        is_over: impl Fn(&Place, &Forward) -> Result<bool, Error>,
    ) -> Result<Option<Session>, Error> {
        let mut wanted = None;
        for _ in 0..forward::HOPS_MAX {
            let found = self.workspace.with_draft(&place, |draft, policy, now| {
                let is_wanted = |life: &&mut Life| wanted.is_none_or(|id| life.base.id == id);
                let life = draft.live_mut(policy, now).filter(is_wanted)?;
                work(life, policy, now);
                Some(life.base.id)
            })?;
            if let Some(id) = found {
                return Ok(Some(self.session(place, id)));
            }
            let forward = self.workspace.forward(&place)?;
            let Some(forward) = forward.filter(|f| wanted.is_none_or(|id| f.from == id)) else {
                return Ok(None);
            };
            if is_over(&place, &forward)? {
                return Ok(None);
            }
            (place.1, wanted) = (forward.key, Some(forward.id));
        }
        Ok(None)
    }

    /// Whether somebody has come too late with a key that was given up: once in a transaction that is
    /// told.
    fn is_over(&self, place: &Place, forward: &Forward) -> Result<bool, Error> {
        if self.workspace.door.now() < forward.grace {
            return Ok(false);
        }
        let container = self.workspace.container(place.0)?.name.to_string();
        if !std::mem::replace(&mut self.workspace.lock()?.told_of_rotated, true) {
            let session = forward.key.fingerprint();
            self.workspace.door.event(&Event::RotatedKeyUsed { container, session });
        }
        Ok(true)
    }

    fn place(&self, container: &Container, key: impl Into<Key>) -> Result<Place, Error> {
        Ok((self.container_id(container)?, key.into()))
    }

    fn container_id(&self, container: &Container) -> Result<ContainerId, Error> {
        match Arc::ptr_eq(&container.core, self.workspace.core()) {
            true => Ok(container.id),
            false => Err(Error::Stranger),
        }
    }

    fn session(&self, place: Place, id: SessionId) -> Session {
        Session::new(Arc::clone(&self.workspace), place, id)
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.lent {
            self.workspace.end();
        }
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transaction(at {})", self.revision())
    }
}
