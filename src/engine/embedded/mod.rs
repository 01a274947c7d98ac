//! Sessions in a directory: the commit log, and redb tables behind it.
//!
//! ```text
//!             apply                        fold                     checkpoint
//!  batches  --------->  log (active)    --------->  tables  ------------------> view
//!                       in memory too:              in the background, sorted
//!                       what is not in the tables   by key, in small transactions
//! ```
//!
//! A batch is durable when it is in the log: one sequential write, one sync. A log is no place to
//! look for a session, so what it holds is kept in memory too, as final states, until a *fold* has
//! moved them into the tables. Then the segment of the log is free again. A fold is due when a
//! segment is full, when what is kept in memory reaches half of its budget, and every so often.
//!
//! Nothing outside this folder names a type of redb's.

mod backend;
pub(crate) mod backup;
pub(crate) mod check;
mod directory;
pub(crate) mod disk;
mod fold;
mod generation;
mod lock;
mod log;
mod marker;
mod records;
mod recovery;
mod tables;
pub(crate) mod viewing;
#[cfg(test)]
mod watched;

use crate::sync::thread::JoinHandle;
use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use crate::engine::{Batch, Engine, Failure, Gauges, Listener, Notice, Recovered, Taken};
use crate::error::{Error, LimitKind};
use crate::model::clock::Time;
use crate::model::container::Place;
use crate::model::session::Revision;
use crate::threads;

use directory::Directory;
pub(crate) use directory::Mode;
use disk::Disk;
use generation::{Frozen, Generation};
use log::{HEADER_BYTES, Log, Segment};
pub(crate) use marker::FORMAT;
use marker::StoreId;
use tables::Tables;

/// How the engine is to work.
#[derive(Debug)]
pub(crate) struct Settings {
    pub disk: Arc<dyn Disk>,
    /// The size of one of the two segments of the log.
    pub segment_bytes: u64,
    /// What may lie in memory that is not in the tables yet.
    pub dirty_bytes_max: usize,
    /// Verify all pages of the tables before they are used.
    pub verify: bool,
    /// Fold on the committer's thread, after every so many batches, so that a simulation is the same
    /// each time.
    pub fold_inline: Option<u64>,
    /// Drawn for the case that the store is new.
    pub id: u128,
}

pub(crate) struct Embedded {
    shared: Arc<Shared>,
    folder: Mutex<Option<JoinHandle<()>>>,
}

/// What the committer and the thread that folds have in common.
struct Shared {
    settings: Settings,
    directory: Arc<Directory>,
    tables: Tables,
    state: Mutex<State>,
    /// Something was frozen, or folded, or the end has come.
    changed: Condvar,
    listener: OnceLock<Arc<dyn Listener>>,
    met: Arc<Met>,
    folds: AtomicU64,
    folding: AtomicBool,
    /// Held while the tables' file is written: by a fold, or a compaction. True if it has a name that may
    /// not be durable.
    writing: Mutex<bool>,
    fold_failures: AtomicU64,
    recoveries: AtomicU64,
    /// How often there was an occasion to fold on the committer's thread.
    occasions: AtomicU64,
    /// What was replayed, if the store was not closed the last time: batches and sessions. Then what
    /// lies in the tables is worth a look.
    replayed: Option<(u64, u64)>,
    /// How it stood after the last batch: who wants to know need not wait for the disk, which may
    /// stand still under the lock of the state.
    levels: Mutex<Levels>,
}

/// How much lies in the log.
#[derive(Clone, Copy, Debug, Default)]
struct Levels {
    log_bytes: u64,
    dirty_sessions: usize,
    dirty_bytes: usize,
    failed: bool,
    stalled: bool,
    full: bool,
}

/// What is not in the tables yet, and where it lies.
struct State {
    log: Log,
    /// Those before the log's, as the tables have them: they cannot always be asked.
    epochs: Vec<(u64, u64)>,
    /// The segment that is not in use.
    free: Option<Segment>,
    /// The number of the next new segment.
    next_segment: u64,
    /// Written, and not known to be durable.
    pending: Vec<Batch>,
    /// Durable in the active segment.
    active: Generation,
    /// Durable in segments that are full.
    frozen: VecDeque<Arc<Frozen>>,
    /// A write or a sync of the log has failed, and this is why.
    failed: Option<Error>,
    /// The tables cannot be written at the moment, and this is why.
    stalled: Option<Error>,
    /// A read of the tables has failed: they must be opened again.
    unreadable: bool,
    /// Somebody waits for everything to be folded.
    closing: bool,
    /// Used for each batch.
    buffer: Vec<u8>,
}

/// What those who read the tables meet.
#[derive(Default)]
struct Met {
    /// Sessions whose rows are damaged: each is told of once.
    damaged: Mutex<BTreeSet<Place>>,
    count: AtomicU64,
    listener: OnceLock<Arc<dyn Listener>>,
    shared: OnceLock<Weak<Shared>>,
}

impl Met {
    /// More than these are counted, not named.
    const NAMED_MAX: usize = 4_096;

    /// A read has failed, and redb answers nothing more after that. The tables are opened again, but
    /// not on this thread: it may hold what the exchange of the view waits for.
    fn failure(&self) {
        if let Some(shared) = self.shared.get().and_then(Weak::upgrade) {
            shared.lock().unreadable = true;
            shared.changed.notify_all();
        }
    }

    /// Whether views that have ended are exchanged by themselves.
    fn is_looked_after(&self) -> bool {
        let shared = self.shared.get().and_then(Weak::upgrade);
        shared.is_some_and(|shared| shared.settings.fold_inline.is_none())
    }

    fn damage(&self, place: Place) {
        let mut places = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        if places.len() >= Self::NAMED_MAX || !places.insert(place.clone()) {
            return;
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        if let Some(listener) = self.listener.get() {
            listener.notice(Notice::Damaged(place));
        }
    }
}

/// What a batch may weigh that is to take up so many bytes.
fn weight(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX).saturating_sub(HEADER_BYTES + log::SECTOR as usize)
}

impl Embedded {
    pub(crate) fn open(
        path: &Path,
        mode: Mode,
        settings: Settings,
    ) -> Result<(Self, Recovered), Error> {
        let id = StoreId(settings.id);
        let mut directory = Directory::open(Arc::clone(&settings.disk), path, mode, id)?;
        if directory.is_new() {
            recovery::make(&directory, settings.segment_bytes)?;
            directory.finish()?;
        }
        let (shared, recovered) = recovery::open(Arc::new(directory), settings)?;
        Ok((Embedded { shared: Arc::new(shared), folder: Mutex::default() }, recovered))
    }
}

impl Engine for Embedded {
    fn start(&self, listener: Arc<dyn Listener>) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        // Called once: nobody has set them.
        let _ = shared.met.shared.set(Arc::downgrade(&shared));
        let _ = shared.met.listener.set(Arc::clone(&listener));
        if let Some((batches, sessions)) = shared.replayed {
            listener.notice(Notice::Recovered { batches, sessions });
        }
        // Whoever cannot be asked is no reason not to go on.
        for path in shared.directory.exposed().unwrap_or_default() {
            listener.notice(Notice::Exposed(path));
        }
        let _ = shared.listener.set(listener);
        if shared.settings.fold_inline.is_some() {
            shared.provide_reserve();
            shared.fold_if_inline();
            return Ok(());
        }
        let folder = threads::spawn("fold", move || shared.run())?;
        *self.folder.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder);
        Ok(())
    }

    fn apply(&self, batch: Batch, durable: bool) -> Result<(), Failure> {
        self.shared.apply(batch, durable)?;
        self.shared.fold_if_inline();
        Ok(())
    }

    fn sync(&self) -> Result<(), Failure> {
        self.shared.lock().sync()
    }

    fn recover(&self) -> Result<Taken, Error> {
        let taken = self.shared.recover()?;
        self.shared.fold_if_inline();
        Ok(taken)
    }

    fn epoch(&self) -> u64 {
        self.shared.lock().log.epoch
    }

    fn is_durable(&self, epoch: u64, revision: Revision) -> Option<bool> {
        let state = self.shared.lock();
        if epoch == state.log.epoch {
            return (revision <= state.log.durable.revision).then_some(true);
        }
        let (_, last) = state.epochs.iter().find(|(other, _)| *other == epoch)?;
        Some(revision.0 <= *last)
    }

    fn weight_max(&self) -> usize {
        let Shared { settings: Settings { segment_bytes, .. }, .. } = &*self.shared;
        weight(segment_bytes - self.shared.kept()) / 2
    }

    fn room(&self) -> usize {
        let state = self.shared.lock();
        let dirty = state.active.bytes + state.frozen_bytes();
        match (&state.stalled, &state.free) {
            (Some(_), _) if dirty >= self.shared.settings.dirty_bytes_max => 0,
            (Some(_), None) => weight(state.log.room().saturating_sub(self.shared.kept())),
            _ => usize::MAX,
        }
    }

    fn fold(&self) -> Result<(), Error> {
        self.shared.fold_all()
    }

    fn compact(&self) -> Result<(u64, u64), Error> {
        self.shared.compact()
    }

    fn gauges(&self) -> Gauges {
        let mut levels = self.shared.levels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(state) = self.shared.state.try_lock() {
            *levels = state.levels();
        }
        let Levels { log_bytes, dirty_sessions, dirty_bytes, failed, stalled, full } = *levels;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Gauges {
            log_bytes,
            dirty_sessions,
            dirty_bytes,
            folds: count(&self.shared.folds),
            folding: self.shared.folding.load(Ordering::Relaxed),
            failed,
            stalled,
            full,
            fold_failures: count(&self.shared.fold_failures),
            recoveries: count(&self.shared.recoveries),
            damaged: count(&self.shared.met.count),
        }
    }

    fn file_bytes(&self) -> u64 {
        let files = self.shared.directory.files().unwrap_or_default();
        files.into_iter().map(|(_, bytes)| bytes).sum()
    }

    fn close(&self, time: Time) -> Result<(), Error> {
        let folder = self.folder.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Only once: afterwards the directory may be somebody else's.
        if std::mem::replace(&mut self.shared.lock().closing, true) {
            return Ok(());
        }
        self.shared.changed.notify_all();
        if let Some(folder) = folder {
            // A panic there is a bug that has been printed already.
            let _ = folder.join();
        }
        self.shared.close(time)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, batch: Batch, durable: bool) -> Result<(), Failure> {
        let Some(first) = batch.commits.first().map(|commit| commit.revision) else {
            return Ok(());
        };
        let mut state = self.lock();
        let mut bytes = std::mem::take(&mut state.buffer);
        bytes.clear();
        bytes.resize(HEADER_BYTES, 0);
        batch.commits.iter().for_each(|commit| records::encode_commit(commit, &mut bytes));
        let length = log::padded(bytes.len());
        if length > self.settings.segment_bytes {
            let max = self.settings.segment_bytes;
            return Err(Failure::Refused(Error::Limit { limit: LimitKind::TransactionBytes, max }));
        }
        let kept = if batch.only_ends { 0 } else { self.kept() };
        state = self.make_room(state, length, kept)?;
        let (last, time) = (batch.revision(), batch.time);
        state.pending.push(batch);
        let written = state.log.append(first, last, time, &mut bytes);
        state.buffer = bytes;
        written.map_err(|error| state.fail(error))?;
        if durable {
            state.sync()?;
        }
        *self.levels.lock().unwrap_or_else(PoisonError::into_inner) = state.levels();
        Ok(())
    }

    /// How much of the last segment is for ends, so that logging out works when nothing else does.
    fn kept(&self) -> u64 {
        self.settings.segment_bytes / 16
    }

    /// Waits until a batch of this length fits into the active segment, and what it changes into
    /// memory. Of the last segment so much is kept.
    fn make_room<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        length: u64,
        kept: u64,
    ) -> Result<MutexGuard<'a, State>, Failure> {
        loop {
            if let Some(error) = &state.failed {
                // The fold met it first, perhaps while this waited.
                return Err(Failure::Unknown(error.share()));
            }
            let frozen = state.frozen_bytes();
            let (active, max) = (state.active.bytes, self.settings.dirty_bytes_max);
            let kept = if state.free.is_none() { kept } else { 0 };
            let fits = state.log.room() >= length + kept;
            // When the tables cannot be written, only ends come this far, and they are small.
            let too_much = active + frozen >= max && frozen > 0 && state.stalled.is_none();
            if fits && !too_much && (active < max / 2 || state.free.is_none()) {
                return Ok(state);
            }
            if !too_much && state.free.is_some() {
                state.freeze()?;
                self.changed.notify_all();
                continue;
            }
            if self.settings.fold_inline.is_some() {
                drop(state);
                self.fold_and_provide().map_err(Failure::Refused)?;
                state = self.lock();
            } else if state.stalled.is_some() || state.closing {
                return Err(Failure::Refused(Error::Full));
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// After a failure of the log: reads back what may be durable or not, writes it again where
    /// nothing has failed, and goes on there.
    fn recover(&self) -> Result<Taken, Error> {
        let mut state = self.lock();
        let used = state.log.last().revision;
        let state = &mut *state;
        let segment = match state.free.take() {
            Some(segment) => segment,
            None => {
                state.next_segment += 1;
                self.new_segment(state.next_segment - 1)?
            }
        };
        let epoch = state.log.epoch + 1;
        let taken = recovery::rewrite(&self.directory, &state.log, segment.clone(), epoch)
            .and_then(|log| {
                let ended = (state.log.epoch, log.durable.revision);
                let note = || {
                    let note = |meta: &mut _| recovery::note_epoch(meta, ended, epoch, used);
                    self.tables.set_meta(note)
                };
                note().or_else(|_| {
                    // The tables may have failed with the same disk. Their views have ended with them.
                    state.unreadable = true;
                    self.tables.reopen().and_then(|()| note())
                })?;
                Ok((log, self.tables.meta()?.epochs))
            });
        let log = match taken {
            Ok((log, epochs)) => {
                state.epochs = epochs;
                log
            }
            Err(error) => {
                // It is never written again. Left behind, it holds nothing that is missed.
                let _ = self.directory.remove(&Segment::name(segment.number));
                return Err(error);
            }
        };
        let durable = log.durable.revision;
        let failed = std::mem::replace(&mut state.log, log);
        for batch in std::mem::take(&mut state.pending) {
            if batch.revision() <= durable {
                state.active.take_in(batch);
            }
        }
        state.freeze_as(failed.used(), vec![failed.active], false);
        state.failed = None;
        self.recoveries.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_all();
        Ok(Taken { durable, used: used.max(durable) })
    }

    fn new_segment(&self, number: u64) -> Result<Segment, Error> {
        recovery::new_segment(&self.directory, number, self.settings.segment_bytes)
    }
}

impl State {
    fn levels(&self) -> Levels {
        let generations = self.frozen.iter().map(|frozen| &frozen.generation).chain([&self.active]);
        let frozen = self.frozen.iter().map(|frozen| frozen.log_bytes);
        Levels {
            log_bytes: self.log.used() + frozen.sum::<u64>(),
            dirty_sessions: generations.map(|generation| generation.sessions.len()).sum(),
            dirty_bytes: self.active.bytes + self.frozen_bytes(),
            failed: self.failed.is_some(),
            stalled: self.stalled.is_some(),
            full: self.stalled.is_some() && self.free.is_none(),
        }
    }

    /// What is kept in memory of what is full.
    fn frozen_bytes(&self) -> usize {
        self.frozen.iter().map(|frozen| frozen.generation.bytes).sum()
    }

    fn sync(&mut self) -> Result<(), Failure> {
        if let Some(error) = &self.failed {
            return Err(Failure::Unknown(error.share()));
        }
        self.log.sync().map_err(|error| self.fail(error))?;
        for batch in std::mem::take(&mut self.pending) {
            self.active.take_in(batch);
        }
        Ok(())
    }

    /// Notes that the log has failed.
    fn fail(&mut self, error: std::io::Error) -> Failure {
        let error = Error::storage(error);
        self.failed = Some(error.share());
        Failure::Unknown(error)
    }

    /// Goes on in the free segment. What the other one holds is to be folded.
    fn freeze(&mut self) -> Result<(), Failure> {
        if !self.log.is_synced() {
            self.sync()?;
        }
        let Some(free) = self.free.take() else { return Ok(()) };
        let log_bytes = self.log.used();
        let full = self.log.switch(free);
        self.freeze_as(log_bytes, vec![full], true);
        Ok(())
    }

    /// What the segments hold is to be folded.
    fn freeze_as(&mut self, log_bytes: u64, segments: Vec<Segment>, reusable: bool) {
        let mut generation = std::mem::take(&mut self.active);
        generation.last = generation.last.max(self.log.durable.revision);
        self.frozen.push_back(Arc::new(Frozen { generation, log_bytes, segments, reusable }));
    }
}
