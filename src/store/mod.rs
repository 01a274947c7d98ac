//! How it changes: together, once, durably.
//!
//! Containers, transactions, snapshots, the merge at commit, limits, expiry, listeners. Deliberately
//! absent: where the bytes lie (that is `engine`), and cookies (that is a web layer's).

mod backup;
mod chance;
mod check;
mod commit;
mod compact;
mod container;
mod core;
mod courier;
mod door;
mod ends;
mod events;
mod export;
mod filter;
mod flash;
mod health;
mod heat;
mod housekeeper;
mod identity;
mod import;
mod judge;
mod listeners;
mod listing;
mod mismatch;
mod ndjson;
mod observe;
mod options;
mod outcome;
mod pinned;
mod principals;
mod readers;
mod room;
mod rotation;
mod round;
mod session;
mod snapshots;
mod stats;
mod transaction;
mod versions;
mod viewer;
mod whole;
mod workspace;

use std::collections::BTreeMap;
use std::fmt;
use std::future::{self, Future};
use std::path::Path;
use std::sync::{Arc, OnceLock, PoisonError};

use crossbeam_channel::Receiver;

use crate::engine::{Engine, Recovered};
use crate::error::Error;
use crate::model::clock::{StoreTime, Time};
use crate::model::container::ContainerId;
use crate::model::policy::Policy;
use crate::model::session::CommitId;
use crate::store::chance::Chance;
use crate::store::commit::Work;
use crate::store::core::{Core, Told};
use crate::store::courier::Ends;
use crate::store::door::Doors;
use crate::store::heat::Heat;
use crate::store::readers::Readers;
use crate::store::snapshots::Snapshots;
use crate::store::stats::Counters;
use crate::store::versions::Versions;
use crate::sync::channel::{Sender, bounded};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Mutex, MutexGuard, RwLock};
use crate::threads;

pub use backup::Backup;
pub use compact::Compacted;
pub use container::Container;
pub use events::Event;
pub use export::{ExportOptions, Exported};
pub use filter::Filter;
pub use health::{Health, Trouble};
pub use heat::AttributeHeat;
pub use housekeeper::Swept;
pub use import::{ImportOptions, Imported, OnConflict};
pub use listeners::{EndReason, EndedSession, ListenerError};
pub use listing::{Keys, Sessions};
pub use options::Options;
pub use outcome::{Commit, EndedInfo, MergedSession, Report};
pub use principals::PrincipalSession;
pub use session::{Entry, Session};
pub use stats::Stats;
pub use transaction::{Savepoint, Transaction};
pub use viewer::{ViewedAttribute, ViewedContainer, ViewedSession, ViewedSessions, Viewer};

/// A session store. Cheap to clone; all clones are one store, closed with the last of them.
///
/// ```
/// use sessile::{Policy, Store};
///
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("sessions");
/// let store = Store::open(&path)?;
/// let visitors = store.container_with("visitors", Policy::new().timeout_mins(20))?;
///
/// let report = store.transact(|txn| {
///     let session = txn.get_or_create(&visitors, "ada")?;
///     session.insert("name", "Ada Lovelace")?;
///     session.add("visits", 1)
/// })?;
/// assert_eq!(report.attempts, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Store {
    core: Arc<Core>,
    doors: Doors,
    /// Keeps the threads going. `None` in the hands of a listener: it may use the store, but does
    /// not keep it open.
    running: Option<Arc<Running>>,
}

/// An open store with its threads. Dropping it closes the store.
struct Running {
    core: Arc<Core>,
    /// Held by who stops the store until it has stopped: a second one waits, and finds nothing.
    threads: Mutex<Threads>,
}

#[derive(Default)]
struct Threads {
    /// Dropped to stop the housekeeper.
    housekeeping: Option<Sender<()>>,
    housekeeper: Option<JoinHandle<()>>,
    committer: Option<JoinHandle<()>>,
    courier: Option<JoinHandle<()>>,
}

impl Store {
    /// Opens the store in a directory, and makes it if the directory is absent or empty. For
    /// everything else see [`Options`].
    ///
    /// # Errors
    ///
    /// See [`Options::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Options::new().open(path)
    }

    /// Makes a store in a directory that is absent or empty.
    ///
    /// # Errors
    ///
    /// See [`Options::create`].
    pub fn create(path: impl AsRef<Path>) -> Result<Self, Error> {
        Options::new().create(path)
    }

    /// A store in memory, gone with the process.
    ///
    /// # Errors
    ///
    /// See [`Options::memory`].
    pub fn memory() -> Result<Self, Error> {
        Options::new().memory()
    }

    fn start(
        options: Options,
        engine: impl Engine + 'static,
        recovered: Recovered,
    ) -> Result<Self, Error> {
        let Recovered { view, folded, sessions, containers, revision, time } = recovered;
        let clock = options.clock;
        let ahead_max = options.clock_ahead_max.unwrap_or_else(|| clock.ahead_max());
        let time = StoreTime::new(time, &*clock, ahead_max);
        let snapshots = Snapshots::default();
        snapshots.sync(revision);
        snapshots.publish(revision);
        let (queue, requests) = bounded(options.bounds.queue_max);
        let names: BTreeMap<_, _> =
            containers.iter().map(|state| (Arc::clone(&state.name), state.id)).collect();
        let resident = options.bounds.resident_bytes_max;
        let core = Arc::new(Core {
            engine: Arc::new(engine),
            disk: options.disk,
            clock,
            time,
            chance: Chance::new(options.seed)?,
            bounds: options.bounds,
            versions: Versions::new(view, folded, sessions, containers, resident),
            snapshots,
            names: RwLock::new(names),
            resolvers: options.resolvers,
            listeners: options.listeners,
            ends: Ends::new(options.bounds.end_attempts > 0),
            events: events::Events::default(),
            counters: Counters::default(),
            heat: Heat::default(),
            readers: Readers::default(),
            #[cfg(feature = "tracing")]
            trace_sessions: options.trace_sessions,
            queue: RwLock::new(Some(queue)),
            closed: false.into(),
            without_room: Mutex::default(),
            anyone_without_room: false.into(),
            forwards: false.into(),
            revoked: RwLock::default(),
            threads: Mutex::default(),
            fence: OnceLock::new(),
        });
        observe::describe();
        core.find_forwards();
        core.engine.start(Arc::new(Told(Arc::downgrade(&core))))?;
        let running = Arc::new(Running { core, threads: Mutex::new(Threads::default()) });
        // From here on dropping `running` ends what has been started.
        let mut threads = lock(&running.threads);
        let core = Arc::clone(&running.core);
        threads.committer =
            Some(threads::spawn("commit", move || commit::run(&core, &*core.engine, &requests))?);
        let core = Arc::clone(&running.core);
        let doors = Doors::new(&core);
        let lent = Store { core, doors: doors.clone(), running: None };
        threads.courier = Some(threads::spawn("courier", move || courier::run(&lent, revision))?);
        if let Some(every) = options.sweep_every {
            let (stop, stopped) = bounded(0);
            let core = Arc::clone(&running.core);
            threads.housekeeping = Some(stop);
            threads.housekeeper = Some(threads::spawn("housekeeper", move || {
                housekeeper::run(&core, every, &stopped)
            })?);
        }
        let Threads { housekeeper, committer, courier, .. } = &*threads;
        let own = [housekeeper, committer, courier].into_iter().flatten();
        lock(&running.core.threads).extend(own.map(|thread| thread.thread().id()));
        drop(threads);
        Ok(Store { core: Arc::clone(&running.core), doors, running: Some(running) })
    }

    /// The container of this name, with the policy that is stored.
    ///
    /// # Errors
    ///
    /// [`Error::NoContainer`] if there is none.
    pub fn container(&self, name: &str) -> Result<Container, Error> {
        let names = self.core.names.read().expect("nothing panics while it is held");
        match names.get_key_value(name) {
            Some((name, id)) => Ok(self.handle(name, *id)),
            None => Err(Error::NoContainer { name: name.to_owned() }),
        }
    }

    /// The container of this name with this policy: made if there is none, its policy stored if
    /// it differs.
    ///
    /// # Errors
    ///
    /// [`Error::Policy`] if the settings contradict each other or the name is longer than 255
    /// bytes, and those of a commit.
    pub fn container_with(&self, name: &str, policy: Policy) -> Result<Container, Error> {
        policy.validate()?;
        if name.len() > NAME_BYTES_MAX {
            let reason = format!("the name of a container has at most {NAME_BYTES_MAX} bytes");
            return Err(Error::Policy { reason });
        }
        let container = match self.container(name) {
            Ok(container) => container,
            Err(Error::NoContainer { .. }) => {
                let policy = Arc::new(policy.clone());
                self.core.submit(Work::Make { name: name.into(), policy })?;
                self.container(name)?
            }
            Err(error) => return Err(error),
        };
        self.transact(|txn| txn.set_policy(&container, policy.clone()))?;
        Ok(container)
    }

    /// The containers of the store, by name.
    pub fn containers(&self) -> Vec<Container> {
        let names = self.core.names.read().expect("nothing panics while it is held");
        names.iter().map(|(name, id)| self.handle(name, *id)).collect()
    }

    fn handle(&self, name: &Arc<str>, id: ContainerId) -> Container {
        Container { core: Arc::clone(&self.core), id, name: Arc::clone(name) }
    }

    /// Begins a transaction on what is committed now.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub fn begin(&self) -> Result<Transaction, Error> {
        Transaction::begin(Arc::clone(self.doors.door()))
    }

    /// Runs a closure in a transaction and commits it. On a conflict the closure **runs again** on
    /// what is committed then: four attempts in all, after a short random wait. So it should have
    /// no effect but on the transaction.
    ///
    /// ```
    /// # use sessile::{Error, Policy, Store};
    /// # let store = Store::memory()?;
    /// # let carts = store.container_with("carts", Policy::new())?;
    /// let report = store.transact(|txn| {
    ///     let session = txn.get_or_create(&carts, "ada")?;
    ///     session.update("cart", |cart: &mut Vec<u32>| cart.push(7))?;
    ///     session.get::<Vec<u32>>("cart")
    /// })?;
    /// assert_eq!(report.value, Some(vec![7]));
    ///
    /// // An error of your own gives up, and nothing is written.
    /// let given_up = store.transact(|txn| -> Result<(), Error> {
    ///     txn.remove(&carts, "ada")?;
    ///     Err(Error::aborted("changed my mind"))
    /// });
    /// assert!(matches!(given_up, Err(Error::Aborted(_))));
    /// assert_eq!(store.begin()?.len(&carts)?, 1);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What the closure returns, and what [`Transaction::commit`] returns after the last attempt.
    pub fn transact<T>(
        &self,
        mut work: impl FnMut(&Transaction) -> Result<T, Error>,
    ) -> Result<Report<T>, Error> {
        let mut attempt = 1;
        loop {
            let txn = self.begin()?;
            let snapshot = txn.revision();
            let done = match work(&txn) {
                Ok(value) => {
                    txn.commit_attempt(attempt < ATTEMPTS_MAX).map(|report| (value, report))
                }
                Err(Error::Ended) => Err(mismatch::ended(txn.end_unreadable(), snapshot)),
                Err(error) => Err(error),
            };
            match done {
                Ok((value, report)) => return Ok(report.with(value, attempt)),
                Err(error) if self.runs_again(&error, attempt) => {
                    thread::sleep(self.core.chance.back_off(attempt));
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// [`transact`](Store::transact) for async code: the closure runs where the future is polled,
    /// and the commit is awaited, which blocks no thread and needs no particular executor. There is
    /// no pause between attempts but the commit itself.
    ///
    /// ```
    /// # use sessile::{Policy, Store};
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// # let store = Store::memory()?;
    /// # let visitors = store.container_with("visitors", Policy::new())?;
    /// let report = store.transact_async(|txn| {
    ///     txn.get_or_create(&visitors, "ada")?.add("visits", 1)
    /// });
    /// assert_eq!(report.await?.attempts, 1);
    /// # Ok::<(), sessile::Error>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`transact`](Store::transact).
    pub async fn transact_async<T>(
        &self,
        mut work: impl FnMut(&Transaction) -> Result<T, Error>,
    ) -> Result<Report<T>, Error> {
        self.attempts(|txn| {
            let done = work(&txn);
            future::ready(Ok((txn, done)))
        })
        .await
    }

    /// [`transact_async`](Store::transact_async) for closures that look up what may not be in memory, such
    /// as all sessions of a principal: they run on a thread of the store's, so that no thread of the
    /// executor waits for the disk.
    ///
    /// ```
    /// # use sessile::{Policy, Store};
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// # let store = Store::memory()?;
    /// # let visitors = store.container_with("visitors", Policy::new())?;
    /// let here = visitors.clone();
    /// let report = store.spawn_transact(move |txn| txn.end_all_of(&here, "ada")).await?;
    /// assert!(report.ended.is_empty());
    /// # Ok::<(), sessile::Error>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`transact`](Store::transact); [`Error::Busy`] if too many closures wait, and
    /// [`Error::Aborted`] if this one panics.
    pub async fn spawn_transact<T: Send + 'static>(
        &self,
        work: impl Fn(&Transaction) -> Result<T, Error> + Send + Sync + 'static,
    ) -> Result<Report<T>, Error> {
        let work = Arc::new(work);
        self.attempts(|txn| {
            let work = Arc::clone(&work);
            readers::run(&self.core, move || {
                let done = work(&txn);
                Ok((txn, done))
            })
        })
        .await
    }

    /// Does something that may wait for the disk on a thread of the store's, so that no thread of an
    /// executor waits: a look-up in a transaction that is under way, or a look into an older backup.
    ///
    /// ```
    /// # use sessile::{Policy, Store};
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// # let store = Store::memory()?;
    /// # let visitors = store.container_with("visitors", Policy::new())?;
    /// let txn = store.begin()?;
    /// let devices = store.spawn(move || txn.sessions_of(&visitors, "ada")).await?;
    /// assert!(devices.is_empty());
    /// # Ok::<(), sessile::Error>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What the closure returns; [`Error::Busy`] if too many wait, [`Error::Aborted`] if this one panics,
    /// and [`Error::Closed`].
    pub async fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        readers::run(&self.core, work).await
    }

    /// Tells those who receive what has happened above the store.
    #[cfg(feature = "web")]
    pub(crate) fn tell(&self, event: &Event) {
        match event {
            Event::UnknownToken { .. } => Counters::add(&self.core.counters.unknown_tokens, 1),
            Event::AmbiguousToken { .. } => Counters::add(&self.core.counters.ambiguous_tokens, 1),
            _ => {}
        }
        self.core.event(event);
    }

    /// Commits what `run` has done in a transaction, again and again as long as it conflicts.
    async fn attempts<T, F>(
        &self,
        mut run: impl FnMut(Transaction) -> F,
    ) -> Result<Report<T>, Error>
    where
        F: Future<Output = Result<(Transaction, Result<T, Error>), Error>>,
    {
        let mut attempt = 1;
        loop {
            let txn = self.begin()?;
            let snapshot = txn.revision();
            let (txn, done) = run(txn).await?;
            // The transaction is over before its commit is awaited.
            let done = match done {
                Ok(value) => {
                    let commit = txn.commit_attempt_async(attempt < ATTEMPTS_MAX);
                    commit.await.map(|report| (value, report))
                }
                Err(Error::Ended) => {
                    Err(mismatch::ended(txn.end_unreadable_async().await, snapshot))
                }
                Err(error) => Err(error),
            };
            match done {
                Ok((value, report)) => return Ok(report.with(value, attempt)),
                Err(error) if self.runs_again(&error, attempt) => attempt += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether a transaction that failed so gets another attempt.
    fn runs_again(&self, error: &Error, attempt: u32) -> bool {
        let again = error.is_retryable() && attempt < ATTEMPTS_MAX;
        if again {
            Counters::add(&self.core.counters.retries, 1);
        }
        again
    }

    /// Ends what has expired, now. The housekeeper does the same every so often.
    ///
    /// # Errors
    ///
    /// Those of a commit.
    pub fn sweep(&self) -> Result<Swept, Error> {
        self.core.check_open()?;
        housekeeper::sweep(&self.core)
    }

    /// The store's time: that of the wall clock, but it never goes back. Compare it with
    /// [`Session::expires`].
    pub fn now(&self) -> Time {
        self.core.now()
    }

    /// What became of a commit that ended in [`Error::Unknown`]: known as soon as the store goes on,
    /// and after it has been closed and opened again too.
    pub fn fate(&self, commit: CommitId) -> Fate {
        let engine = &self.core.engine;
        match engine.is_durable(commit.epoch, commit.revision) {
            // The engine knows it first. Who is told that a commit took effect is to see it too.
            Some(_) if commit.revision > self.core.snapshots.published() => Fate::Pending,
            Some(true) => Fate::Committed,
            Some(false) => Fate::NotCommitted,
            None if commit.epoch == engine.epoch() => Fate::Pending,
            None => Fate::Forgotten,
        }
    }

    /// Moves what is in the commit log into the tables, now, and returns when that is done. The store
    /// does so by itself, and when it is closed; this is for tests.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] or [`Error::Full`] if the tables cannot be written. Nothing is lost by it.
    pub fn fold(&self) -> Result<(), Error> {
        self.core.check_open()?;
        self.core.engine.fold()
    }

    /// Returns when every end committed so far has been told to its listener, those too that an earlier
    /// process has left behind, and that is noted: a crash from now on does not make them told again. It
    /// does not wait for the next attempt where a listener has failed. Within a listener of ends it
    /// returns at once.
    pub fn settle(&self) {
        self.core.ends.settle(self.core.clock.elapsed());
        // A thread of the store's would wait for itself.
        if !self.core.is_own_thread() {
            // If it fails they may be told again after a crash, and who commits next hears why.
            let _ = courier::acknowledge(&self.core);
        }
    }

    /// What happens from now on. Of more than 1,024 events that wait to be received, the newer are
    /// dropped and counted in [`Stats::events_dropped`]; nobody waits for a receiver. In their place it
    /// is told how many are missing ([`Event::Dropped`]), as soon as there is room for that.
    pub fn events(&self) -> Receiver<Event> {
        self.core.events.subscribe()
    }

    /// What the store has been doing, and how it stands. Takes no part in commits.
    pub fn stats(&self) -> Stats {
        self.core.stats()
    }

    /// Where transactions have met since the store was opened, the hottest attributes first: what is at
    /// the top wants a [`Rule`](crate::Rule) or a merging write.
    ///
    /// ```
    /// # use sessile::{Policy, Store};
    /// # let store = Store::memory()?;
    /// # let visitors = store.container_with("visitors", Policy::new())?;
    /// # store.transact(|txn| txn.create(&visitors, "ada").map(drop))?;
    /// let (left, right) = (store.begin()?, store.begin()?);
    /// for txn in [&left, &right] {
    ///     txn.get_or_create(&visitors, "ada")?.update("visits", |visits: &mut u64| *visits += 1)?;
    /// }
    /// left.commit()?;
    /// assert!(right.commit().is_err()); // `add` would have merged
    /// let hottest = &store.heat()[0];
    /// assert_eq!(hottest.attribute.as_deref(), Some("visits"));
    /// assert_eq!((hottest.conflicts, hottest.merges), (1, 0));
    /// # Ok::<(), sessile::Error>(())
    /// ```
    pub fn heat(&self) -> Vec<AttributeHeat> {
        self.core.heat.show()
    }

    /// Whether the store does what it is there for, and if not, why. It writes nothing and waits for
    /// nobody who writes.
    pub fn health(&self) -> Health {
        self.core.health()
    }

    /// Believes the wall clock, however far ahead it has jumped; see
    /// [`Event::Clock`](crate::Event). Sessions that it makes expire will have expired.
    pub fn accept_clock(&self) {
        self.core.time.accept(&*self.core.clock);
    }

    /// Closes the store: commits that are queued are finished, ends are told, the files are closed.
    /// Those whose listener has failed, and is to be called again, are told when the store is opened
    /// next. Whoever uses the store afterwards gets [`Error::Closed`]; a transaction that lives may
    /// still see what it has read. Dropping the last handle does the same without the report. Within a
    /// listener it only refuses further commits; who opened the store still closes it.
    ///
    /// # Errors
    ///
    /// What the storage reports. Everything that was acknowledged is durable all the same, but for
    /// the last of what was [relaxed](crate::Durability::Relaxed).
    pub fn close(self) -> Result<Stats, Error> {
        match &self.running {
            Some(running) => running.stop()?,
            None => self.core.refuse(),
        }
        Ok(self.stats())
    }
}

/// What became of a commit: see [`Store::fate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It took effect, and is durable.
    Committed,
    /// It never took effect, and never will.
    NotCommitted,
    /// The store has not found out yet. Ask again.
    Pending,
    /// It is too long ago: the store has begun anew 1,024 times since, or is another one.
    Forgotten,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store(at {})", self.core.snapshots.published())
    }
}

impl Running {
    fn stop(&self) -> Result<(), Error> {
        if self.core.is_own_thread() {
            self.core.refuse();
            return Ok(());
        }
        let mut threads = lock(&self.threads);
        std::mem::take(&mut *threads).stop(&self.core)
    }
}

impl Threads {
    /// Ends the threads in the order in which they feed each other, and closes the files.
    fn stop(self, core: &Core) -> Result<(), Error> {
        let Threads { housekeeping, housekeeper, committer, courier } = self;
        drop(housekeeping);
        join(housekeeper);
        core.readers.stop();
        // Listeners may still use the store for what has ended so far.
        core.ends.leave_backlog();
        core.ends.settle(core.clock.elapsed());
        core.refuse();
        join(committer);
        core.ends.close();
        join(courier);
        courier::acknowledge_last(core);
        // What has been seen to expire must stay expired, even if the clock is set back meanwhile.
        core.engine.close(core.now())?;
        core.fence.get().map_or(Ok(()), |error| Err(error.share()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let threads = std::mem::take(&mut *lock(&self.threads));
        let core = Arc::clone(&self.core);
        let is_own_thread = core.is_own_thread();
        // Nobody is left to be told.
        let stop = move || drop(threads.stop(&core));
        match is_own_thread {
            // A listener, or a task that was woken, had the last handle: this thread cannot wait for
            // itself.
            true => drop(threads::spawn("close", stop)),
            false => stop(),
        }
    }
}

fn join(thread: Option<JoinHandle<()>>) {
    if let Some(thread) = thread {
        // A panic there is a bug that has been printed already.
        let _ = thread.join();
    }
}

const NAME_BYTES_MAX: usize = 255;

/// How often the closure of a transaction runs at the most: as often as with Zope's publisher.
const ATTEMPTS_MAX: u32 = 4;

/// Locks what no panic can leave half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
