//! How to open a store.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::embedded::disk::{Disk, LocalDisk};
use crate::engine::embedded::{Embedded, Mode, Settings};
use crate::engine::memory::Memory;
use crate::error::Error;
use crate::model::clock::{Clock, SystemClock};
use crate::model::merge::{AttributeMerge, Resolution, Resolvers, SessionMerge};
use crate::model::value::Value;
use crate::store::chance::Chance;
use crate::store::core::Bounds;
use crate::store::listeners::{EndReason, EndedSession, ListenerError, Registered};
use crate::store::{Session, Store, Transaction};

/// How to open a store: bounds, clock, and the application's resolvers and listeners.
///
/// Policies name resolvers and listeners; here is the code behind the names. A policy whose
/// resolver is not registered conflicts where it would be asked; a missing listener is ignored and
/// reported as an [`Event`](crate::Event).
///
/// ```
/// use sessile::{Options, Policy};
///
/// let store = Options::new()
///     .on_end("farewell", |_store, session, reason| {
///         eprintln!("{session:?} {reason}");
///         Ok(())
///     })
///     .memory()?;
/// let visitors = store.container_with("visitors", Policy::new().on_end("farewell"))?;
/// # Ok::<(), sessile::Error>(())
/// ```
pub struct Options {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) clock_ahead_max: Option<Duration>,
    pub(crate) seed: Option<u64>,
    pub(crate) sweep_every: Option<Duration>,
    pub(crate) bounds: Bounds,
    pub(crate) resolvers: Resolvers,
    pub(crate) listeners: Registered,
    pub(crate) disk: Arc<dyn Disk>,
    segment_bytes: u64,
    verify: bool,
    fold_inline: Option<u64>,
    #[cfg(feature = "tracing")]
    pub(crate) trace_sessions: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

impl Options {
    /// The defaults; each setter names its own.
    pub fn new() -> Self {
        Options {
            clock: Arc::new(SystemClock::new()),
            clock_ahead_max: None,
            seed: None,
            sweep_every: Some(Duration::from_secs(1)),
            bounds: Bounds {
                queue_max: 1_024,
                wait_budget: Duration::from_secs(5),
                snapshot_age_max: Duration::from_secs(60),
                version_bytes_max: 256 << 20,
                ends_pending_max: 65_536,
                end_attempts: 5,
                sync_delay: Duration::from_millis(100),
                resident_bytes_max: 256 << 20,
            },
            resolvers: Resolvers::default(),
            listeners: Registered::default(),
            disk: Arc::new(LocalDisk),
            segment_bytes: 64 << 20,
            verify: false,
            fold_inline: None,
            #[cfg(feature = "tracing")]
            trace_sessions: false,
        }
    }

    /// Opens the store in a directory, and makes it, with the directories above it, if it is absent
    /// or empty.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyOpen`], [`Error::NotAStore`], [`Error::Format`], [`Error::Corrupt`],
    /// [`Error::Storage`], [`Error::Random`]. Whatever lies there is left as it is.
    pub fn open(self, path: impl AsRef<Path>) -> Result<Store, Error> {
        self.embedded(path.as_ref(), Mode::Open)
    }

    /// Makes a store in a directory that is absent or empty.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyThere`] if there is one, and as for [`open`](Options::open).
    pub fn create(self, path: impl AsRef<Path>) -> Result<Store, Error> {
        self.embedded(path.as_ref(), Mode::Create)
    }

    /// A store in memory: the same in everything, and gone with the process.
    ///
    /// # Errors
    ///
    /// [`Error::Random`], and [`Error::Storage`] if no thread can be started.
    pub fn memory(self) -> Result<Store, Error> {
        let (engine, recovered) = Memory::open();
        Store::start(self, engine, recovered)
    }

    fn embedded(self, path: &Path, mode: Mode) -> Result<Store, Error> {
        let options = self;
        let settings = Settings {
            disk: Arc::clone(&options.disk),
            segment_bytes: options.segment_bytes,
            dirty_bytes_max: options.bounds.resident_bytes_max,
            verify: options.verify,
            fold_inline: options.fold_inline,
            id: Chance::new(options.seed)?.session_id().0,
        };
        let (engine, recovered) = Embedded::open(path, mode, settings)?;
        Store::start(options, engine, recovered)
    }

    /// Where the time comes from. Default: the operating system.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// How far the wall clock may jump ahead and be believed. Default: what the clock says, which
    /// is 24 hours for [`SystemClock`] and any distance for [`ManualClock`](crate::ManualClock).
    pub fn clock_ahead_max(mut self, max: Duration) -> Self {
        self.clock_ahead_max = Some(max);
        self
    }

    /// Seeds the generator of session ids and back-off, so that a test can be run again. Default:
    /// the operating system's randomness. Ids are no secrets, but guessable ones help nobody.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// How often the housekeeper looks for expired sessions; `None`: never, call
    /// [`Store::sweep`]. Default: every second. Sessions expire on time either way; this is about
    /// when their end is told and their space comes back.
    pub fn sweep_every(mut self, every: impl Into<Option<Duration>>) -> Self {
        self.sweep_every = every.into().map(|every| every.max(Duration::from_millis(1)));
        self
    }

    /// How many commits may wait for the committer: 1 to 1,048,576. Default: 1,024.
    pub fn queue_max(mut self, commits: usize) -> Self {
        self.bounds.queue_max = commits.clamp(1, 1 << 20);
        self
    }

    /// How long a commit tries to get into the full queue before it is [`Error::Busy`]. Default:
    /// 5 seconds.
    pub fn wait_budget(mut self, budget: Duration) -> Self {
        self.bounds.wait_budget = budget;
        self
    }

    /// How old a transaction may become before it is [`Error::SnapshotTooOld`]. Default: 60 s.
    pub fn snapshot_age_max(mut self, age: Duration) -> Self {
        self.bounds.snapshot_age_max = age;
        self
    }

    /// How much memory may be kept for the sake of old transactions, in bytes, before the oldest
    /// is [`Error::SnapshotTooOld`]. Default: 256 MiB.
    pub fn version_bytes_max(mut self, bytes: usize) -> Self {
        self.bounds.version_bytes_max = bytes;
        self
    }

    /// How much memory the sessions in use may take up, about, in bytes. Default: 256 MiB. Of what is
    /// committed and not in the tables yet, half as much starts a fold, and as much makes commits
    /// wait. The rest is for sessions that were read lately.
    pub fn memory_max(mut self, bytes: usize) -> Self {
        self.bounds.resident_bytes_max = bytes;
        self
    }

    /// The size of each of the two segments of the commit log, in bytes: 4 KiB to 1 GiB, a multiple of
    /// 512. Default: 64 MiB. A larger log means fewer writes for sessions that are changed often, and
    /// more to replay after a crash. No transaction may leave behind more than fits into half of one.
    /// Both are filled when the store is made, so that it takes up as much from the start, and up to
    /// 8 MiB more for the day that the disk is full.
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes.clamp(4 << 10, 1 << 30).next_multiple_of(512);
        self
    }

    /// How long what is acknowledged may stay without being synced, where that is allowed: see
    /// [`Durability::Relaxed`](crate::Durability). Default: 100 ms.
    pub fn sync_delay(mut self, delay: Duration) -> Self {
        self.bounds.sync_delay = delay;
        self
    }

    /// Whether every page of the tables is verified before the store is used: half a second for a
    /// million sessions, or more. Default: only after the machine has died, and where something is
    /// wrong.
    pub fn verify(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Where the files lie: a disk of a test's own that fails when it is told to. Default:
    /// [`LocalDisk`].
    pub fn disk(mut self, disk: impl Disk) -> Self {
        self.disk = Arc::new(disk);
        self
    }

    /// Whether spans and events for `tracing` say which session it was, by the fingerprint of its key in
    /// the field `session.id`. Default: no, because what a visitor does can then be followed in the
    /// logs.
    #[cfg(feature = "tracing")]
    pub fn trace_sessions(mut self, trace: bool) -> Self {
        self.trace_sessions = trace;
        self
    }

    /// Moves the commit log into the tables on the committer's thread and not in the background, after
    /// so many batches, so that a simulated disk sees the same operations each time.
    #[doc(hidden)]
    pub fn fold_inline(mut self, every: u64) -> Self {
        self.fold_inline = Some(every);
        self
    }

    /// How many ends may await slow listeners before sweeps and the ending of many sessions at once
    /// wait; other transactions wait at sixteen times as many. Default: 65,536.
    pub fn ends_pending_max(mut self, ends: u64) -> Self {
        self.bounds.ends_pending_max = ends.max(1);
        self
    }

    /// How often a listener of ends is called at the most for one end, as long as it fails or panics.
    /// Default: 5. Between two attempts there are 1, 2, 4 seconds and so on, in which later ends are
    /// told. Then the end is given up: [`Event::EndGivenUp`](crate::Event::EndGivenUp).
    pub fn end_attempts(mut self, attempts: u32) -> Self {
        self.bounds.end_attempts = attempts.max(1);
        self
    }

    /// Tells nobody of ends in this process: they stay written down for one that has the listeners. For
    /// tools that change the store of an application.
    pub fn leave_ends(mut self) -> Self {
        self.bounds.end_attempts = 0;
        self
    }

    /// Registers a resolver for attributes whose policy has [`Rule::Resolver`](crate::Rule) with
    /// this name. It must be a pure function: it runs on the committer's thread, perhaps more than
    /// once, and must not use the store.
    ///
    /// ```
    /// use sessile::{Options, Policy, Resolution, Rule, Value};
    ///
    /// // Of two drafts of a letter keep the longer one.
    /// let store = Options::new()
    ///     .resolver("longer", |merge| {
    ///         let length = |value: Option<&Value>| value.map_or(0, |v| v.as_bytes().len());
    ///         match length(merge.stored) > length(merge.proposed) {
    ///             true => Resolution::Stored,
    ///             false => Resolution::Proposed,
    ///         }
    ///     })
    ///     .memory()?;
    /// let policy = Policy::new().rule("letter", Rule::resolver("longer"));
    /// let desks = store.container_with("desks", policy)?;
    /// store.transact(|txn| txn.create(&desks, "ada").map(|_| ()))?;
    ///
    /// let (left, right) = (store.begin()?, store.begin()?);
    /// left.get_or_create(&desks, "ada")?.insert("letter", "Dear Charles,")?;
    /// right.get_or_create(&desks, "ada")?.insert("letter", "Dear")?;
    /// left.commit()?;
    /// right.commit()?;
    /// let txn = store.begin()?;
    /// let letter = txn.get_or_create(&desks, "ada")?.get::<String>("letter")?;
    /// assert_eq!(letter.as_deref(), Some("Dear Charles,"));
    /// # Ok::<(), sessile::Error>(())
    /// ```
    pub fn resolver(
        mut self,
        name: impl Into<String>,
        resolve: impl Fn(&AttributeMerge<'_>) -> Resolution<Option<Value>> + Send + Sync + 'static,
    ) -> Self {
        self.resolvers.attributes.insert(name.into(), Arc::new(resolve));
        self
    }

    /// Registers a resolver for whole sessions, for policies with a
    /// [`resolver`](crate::Policy::resolver) of this name. It must be a pure function: it runs on
    /// the committer's thread, perhaps more than once, and must not use the store.
    pub fn session_resolver(
        mut self,
        name: impl Into<String>,
        resolve: impl Fn(&SessionMerge<'_>) -> Resolution<BTreeMap<String, Value>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.resolvers.sessions.insert(name.into(), Arc::new(resolve));
        self
    }

    /// Registers a listener that runs inside the transaction that creates a session, and may use
    /// it: fill the session, end it, create others. If it fails, what it changed is rolled back and
    /// the session stays. It runs again when the transaction is run again.
    pub fn on_start(
        mut self,
        name: impl Into<String>,
        listener: impl Fn(&Transaction, &Session) -> Result<(), ListenerError> + Send + Sync + 'static,
    ) -> Self {
        self.listeners.on_start.insert(name.into(), Arc::new(listener));
        self
    }

    /// Registers a listener that runs once a session's end is durable, on a thread of the store's, in
    /// the order of the commits.
    ///
    /// Each end is told once, whether the store was closed and opened in between or not. After a crash
    /// the next process tells those that nobody was told of, and those once more that were told in the
    /// last moment: a listener that must not do something twice recognizes the session by its
    /// [id](EndedSession::id). One that fails or panics is called again; see
    /// [`end_attempts`](Options::end_attempts). Where there is no room for writing an end down, on a
    /// full disk, it takes effect all the same, and a crash may keep it from being told; see
    /// [`Stats::ends_unwritten`](crate::Stats::ends_unwritten).
    ///
    /// ```
    /// use std::sync::mpsc;
    ///
    /// use sessile::{EndReason, Options, Policy};
    ///
    /// let (gone, farewells) = mpsc::channel();
    /// let store = Options::new()
    ///     .on_end("farewell", move |_store, session, reason| {
    ///         Ok(gone.send((session.get::<String>("name"), reason))?)
    ///     })
    ///     .memory()?;
    /// let visitors = store.container_with("visitors", Policy::new().on_end("farewell"))?;
    /// store.transact(|txn| txn.create(&visitors, "ada")?.insert("name", "Ada"))?;
    /// store.transact(|txn| txn.remove(&visitors, "ada"))?;
    /// store.settle();
    /// assert_eq!(farewells.try_recv()?, (Some("Ada".to_owned()), EndReason::Invalidated));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_end(
        mut self,
        name: impl Into<String>,
        listener: impl Fn(&Store, &EndedSession, EndReason) -> Result<(), ListenerError>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.listeners.on_end.insert(name.into(), Arc::new(listener));
        self
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("clock", &self.clock)
            .field("sweep_every", &self.sweep_every)
            .field("bounds", &self.bounds)
            .finish_non_exhaustive()
    }
}
