//! Folding: what the log holds moves into the tables, in the background.
//!
//! A frozen generation is written in the order of its keys, a few thousand sessions a transaction,
//! the revision it reaches up to with the last of them. Then the view is exchanged, and the segments
//! that held it are free. A failure here fences nothing: commits go on as long as the log has room,
//! and the tables are opened again and the fold tried again until it succeeds. If the disk is full,
//! the reserve is given up first: redb needs free pages even to delete.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::generation::Frozen;
use super::tables::{self, TablesView, Unreadable};
use super::{Segment, Shared, State, recovery};
use crate::engine::{Failure, Notice, View, successor};
use crate::error::Error;
use crate::model::clock::Time;
use crate::model::container::{ContainerId, ContainerState, Kind};
use crate::model::key::Key;
use crate::model::session::Revision;

/// How long what is committed stays out of the tables at most, as long as nothing stands in the way.
/// It bounds what a recovery has to replay in a store that sees few commits.
const FOLD_EVERY: Duration = Duration::from_secs(30);

/// How long to wait after a failed attempt. Well below a second: when space is free again, the
/// store is to be in full service within one.
const RETRY_EVERY: Duration = Duration::from_millis(250);

impl Shared {
    /// Folds what is frozen, until the engine is closed.
    pub(super) fn run(&self) {
        if self.replayed.is_some() {
            // An unfinished walk is no loss: who reads a record looks at it too.
            let _ = self.fold_and_provide().and_then(|()| self.verify());
        }
        loop {
            // A fold does so itself.
            let readable = self.front().map_or_else(|| self.look_after(), |_| Ok(()));
            // Trouble has been told of; the next attempt is as good as any.
            if self.fold_and_provide().is_ok() {
                self.provide_reserve();
            }
            let state = self.lock();
            if state.closing {
                return;
            }
            let again = state.stalled.is_some() || readable.is_err();
            let wait = if again { RETRY_EVERY } else { FOLD_EVERY };
            let idle = |state: &mut State| {
                !state.closing && !state.unreadable && (again || state.frozen.is_empty())
            };
            let woken = self.changed.wait_timeout_while(state, wait, idle);
            let (mut state, timeout) = woken.unwrap_or_else(PoisonError::into_inner);
            let works = state.stalled.is_none() && state.failed.is_none();
            if timeout.timed_out() && works && state.log.used() > 0 {
                // A failure here is one of the log's: whoever commits next meets it.
                let _ = state.freeze();
            }
        }
    }

    pub(super) fn fold_if_inline(&self) {
        let Some(every) = self.settings.fold_inline else { return };
        // It has been told of, and is tried again later.
        let _ = self.look_after().and_then(|()| {
            let occasions = self.occasions.fetch_add(1, Ordering::Relaxed) + 1;
            if occasions.is_multiple_of(every) { self.fold_frozen() } else { Ok(()) }
        });
    }

    /// Opens the tables again where reads fail.
    fn look_after(&self) -> Result<(), Error> {
        let unreadable = std::mem::take(&mut self.lock().unreadable);
        match unreadable || self.tables.is_closed() {
            true => self.reopen(),
            false => Ok(()),
        }
    }

    pub(super) fn fold_and_provide(&self) -> Result<(), Error> {
        self.fold_frozen().and_then(|()| self.provide())
    }

    /// Folds everything that is frozen.
    pub(super) fn fold_frozen(&self) -> Result<(), Error> {
        while let Some(frozen) = self.front() {
            self.folding.store(true, Ordering::Relaxed);
            let folded = self.fold_one(&frozen);
            self.folding.store(false, Ordering::Relaxed);
            if let Err(error) = folded {
                return Err(self.stall(error));
            }
        }
        Ok(())
    }

    /// Writes the tables again without the space that nothing lies in. Folds wait for it, commits as soon
    /// as the log is full.
    ///
    /// Nothing is folded into the new file before its name is durable: after a power cut the old one
    /// may be there again, and what was folded since is no more in the log.
    pub(super) fn compact(&self) -> Result<(u64, u64), Error> {
        let mut is_doubtful = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.lock().closing {
            return Err(Error::Closed);
        }
        self.look_after()?;
        let compacted = self.tables.compact();
        // Even after a failure: the file may have got its name.
        *is_doubtful = true;
        let synced = self.directory.sync();
        *is_doubtful = synced.is_err();
        let done = synced.and(compacted).and_then(|sizes| self.checkpoint().map(|()| sizes));
        if done.is_err() {
            // It has its name and could not be opened, or a file could not be read, of which redb answers
            // nothing more: they are opened again.
            self.lock().unreadable = true;
            self.changed.notify_all();
        }
        done
    }

    fn front(&self) -> Option<Arc<Frozen>> {
        self.lock().frozen.front().cloned()
    }

    fn fold_one(&self, frozen: &Arc<Frozen>) -> Result<(), Error> {
        let generation = &frozen.generation;
        let mut is_doubtful = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.front().is_some_and(|front| Arc::ptr_eq(&front, frozen)) {
            // Somebody else, who folds on a thread of their own, has done so meanwhile.
            return Ok(());
        }
        if *is_doubtful {
            self.directory.sync()?;
            *is_doubtful = false;
        }
        self.look_after()?;
        self.tables.fold(&generation.sorted(), generation.containers.values(), |meta| {
            meta.folded = meta.folded.max(generation.last.0);
            meta.time = meta.time.max(generation.time.as_micros());
        })?;
        self.folds.fetch_add(1, Ordering::Relaxed);
        self.checkpoint()?;
        let mut state = self.lock();
        state.frozen.pop_front();
        state.stalled = None;
        let mut old = frozen.segments.clone();
        if frozen.reusable && state.free.is_none() {
            // A short one was for the time that the disk was full.
            state.free = old.pop_if(|old| old.len == self.settings.segment_bytes);
        }
        drop(state);
        self.changed.notify_all();
        // Whatever happens to them now, everything in them is in the tables.
        old.iter().for_each(|segment| {
            let _ = self.directory.remove(&Segment::name(segment.number));
        });
        Ok(())
    }

    /// Exchanges the view for the newest one.
    fn checkpoint(&self) -> Result<(), Error> {
        let folded = Revision(self.tables.meta()?.folded);
        let view = self.tables.view(Arc::clone(&self.met))?;
        if let Some(listener) = self.listener.get() {
            listener.checkpoint(Arc::new(view), folded);
        }
        Ok(())
    }

    /// After a failed fold: tells of it once, makes room, and lets readers have tables that work.
    fn stall(&self, error: Error) -> Error {
        self.fold_failures.fetch_add(1, Ordering::Relaxed);
        if tables::is_full(&error) {
            recovery::give_up_reserve(&self.directory);
        }
        let before = self.lock().stalled.replace(error.share());
        if before.is_none()
            && let Some(listener) = self.listener.get()
        {
            listener.notice(Notice::FoldFailed(error.share()));
        }
        // Those who wait for room are told.
        self.changed.notify_all();
        // redb answers nothing more after a failure.
        let _ = self.reopen();
        error
    }

    /// Opens the tables again, and gives those who read a view that works or says why not.
    fn reopen(&self) -> Result<(), Error> {
        let reopened = self.tables.reopen().and_then(|()| self.checkpoint());
        if let (Err(error), Some(listener)) = (&reopened, self.listener.get()) {
            listener.checkpoint(Arc::new(Unreadable(error.share())), Revision::default());
        }
        reopened
    }

    /// Sets space aside for the day that the disk is full. If it is full now, later will do.
    pub(super) fn provide_reserve(&self) {
        let _ = recovery::provide_reserve(&self.directory, self.settings.segment_bytes);
    }

    /// Provides the segment that the next switch needs, if none will become free by folding.
    fn provide(&self) -> Result<(), Error> {
        let mut state = self.lock();
        let waits = state.failed.is_some() || state.closing;
        if state.free.is_some() || !state.frozen.is_empty() || waits {
            return Ok(());
        }
        let number = state.next_segment;
        state.next_segment += 1;
        drop(state);
        let segment = self.new_segment(number).map_err(|error| self.stall(error))?;
        let mut state = self.lock();
        state.stalled = None;
        if state.free.is_none() {
            state.free = Some(segment);
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Folds everything that is committed by now.
    pub(super) fn fold_all(&self) -> Result<(), Error> {
        if self.settings.fold_inline.is_some() {
            // Nobody else does.
            self.look_after()?;
        }
        let mut is_frozen = false;
        let failures = || self.fold_failures.load(Ordering::Relaxed);
        let before = failures();
        loop {
            let mut state = self.lock();
            is_frozen |= state.log.used() == 0;
            if let Some(error) = &state.failed {
                return Err(error.share());
            }
            if state.closing {
                return Err(Error::Closed);
            }
            if !is_frozen && state.free.is_some() {
                state.freeze().map_err(Failure::into_error)?;
                is_frozen = true;
                self.changed.notify_all();
            }
            if is_frozen && state.frozen.is_empty() {
                return Ok(());
            }
            if self.settings.fold_inline.is_some() {
                drop(state);
                self.fold_and_provide()?;
                continue;
            }
            match &state.stalled {
                Some(error) if failures() > before => return Err(error.share()),
                // What failed before somebody asked is tried again soon.
                _ => drop(self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)),
            }
        }
    }

    /// Folds the rest, and notes that there is nothing left in the log. The thread that folds has
    /// ended.
    pub(super) fn close(&self, time: Time) -> Result<(), Error> {
        let mut state = self.lock();
        let mut failed = state.failed.is_some();
        if !failed && !state.log.is_synced() {
            failed = state.sync().is_err();
        }
        let log_bytes = state.log.used();
        // Both segments stay for the next open, which need not fill new ones.
        state.freeze_as(log_bytes, Vec::new(), true);
        drop(state);
        let folded =
            self.fold_frozen().or_else(|_| self.fold_frozen()).and_then(|()| match failed {
                // What came after the last sync is for the next open to find out.
                true => Ok(()),
                false => self.tables.set_meta(|meta| {
                    meta.clean = true;
                    meta.time = meta.time.max(time.as_micros());
                }),
            });
        let closed = folded.and(self.tables.close());
        self.directory.release();
        closed
    }

    /// After an unclean end: looks at every record, so that what is damaged is known before somebody
    /// misses it, and counts. What is committed meanwhile is folded meanwhile: the walk may take long.
    fn verify(&self) -> Result<(), Error> {
        const PAGE: usize = 256;
        // Nobody folds between the two.
        let containers = self.tables.containers()?;
        let view = self.tables.view(Arc::clone(&self.met))?;
        for state in &containers {
            let uncounted = match self.count(&view, state.id, PAGE) {
                Ok(found) if found == state.count => continue,
                Ok(found) => found.wrapping_sub(state.count).cast_signed(),
                // Nobody knows how many there are.
                Err(Error::Corrupt { .. }) => 0,
                Err(error) => return Err(error),
            };
            if let Some(listener) = self.listener.get() {
                listener.notice(Notice::Miscounted { container: state.id, uncounted });
            }
        }
        // The store's own notes are read too, and counted by nobody.
        let beside = |state: &ContainerState| {
            [Kind::Rotated, Kind::Principals].map(|kind| state.id.of(kind))
        };
        let notes = containers.iter().flat_map(beside).chain([ContainerId::STORE.of(Kind::Ends)]);
        for id in notes {
            self.count(&view, id, PAGE)?;
        }
        Ok(())
    }

    /// How many sessions a container has in a view.
    fn count(&self, view: &TablesView, id: ContainerId, page: usize) -> Result<u64, Error> {
        let (mut count, mut from) = (0, Key::from(""));
        loop {
            if self.lock().closing {
                return Err(Error::Closed);
            }
            self.fold_and_provide()?;
            // Reading them is what notes those that are damaged.
            let rows = view.scan(id, &from, page)?;
            count += rows.len() as u64;
            match rows.get(page - 1) {
                Some((last, _)) => from = successor(last),
                None => return Ok(count),
            }
        }
    }
}
