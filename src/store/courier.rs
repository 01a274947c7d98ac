//! Tells ends to their listeners: in order, again where a listener fails, and notes who was told.
//!
//! ```text
//!   left behind by an earlier process --+
//!                                       v
//!   commits ---> queue -----------> the courier ---> listener ---> told ---> acknowledged,
//!                                       ^               |                    many in one commit
//!                                       +-- postponed --+ fails
//!                                           1 s, 2 s, 4 s ... until it is given up
//! ```
//!
//! One thread does all of it, so a listener is never called twice at a time, and a slow one holds up
//! the others, but no commit. First come the ends that an earlier process has left behind on the disk
//! (`ends.rs`), a page at a time, then those of this process in the order of their commits. One that
//! fails is tried again later and lets the others pass.
//!
//! An end counts as told when its listener has returned, and is acknowledged by a commit of its own,
//! like everything that changes the store: now and then, and when the store is closed. So without a
//! crash each end is told once, and after one those are told again that were told in the last moment.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::model::container::ContainerId;
use crate::model::key::Key;
use crate::model::session::{Record, Revision};
use crate::store::commit::{self, Work};
use crate::store::core::Core;
use crate::store::ends::{self, ENDS};
use crate::store::events::Event;
use crate::store::listeners::{self, EndReason, EndedSession};
use crate::store::pinned::Pinned;
use crate::store::stats::Counters;
use crate::store::{Store, lock};
use crate::sync::thread::{self, ThreadId};
use crate::sync::{Condvar, Mutex};

/// The ends of one batch of commits, in the order of delivery.
pub(crate) type EndBatch = Vec<(Arc<EndedSession>, EndReason)>;

/// Ends on their way to their listeners.
pub(crate) struct Ends {
    state: Mutex<State>,
    /// There is something for the courier to do.
    called: Condvar,
    /// The courier has done something.
    progress: Condvar,
}

#[derive(Default)]
struct State {
    /// Those of this process that were not told yet, in the order of their commits.
    queue: VecDeque<End>,
    /// Those whose listener has failed, by the elapsed time at which it gets another chance.
    postponed: BTreeMap<(Duration, u64), End>,
    /// How many there have been, to tell those of one moment apart.
    postponements: u64,
    /// From when on to go on with what an earlier process has left behind; `None`: there is no more.
    backlog: Option<Duration>,
    /// Told, and still written down.
    told: Vec<Key>,
    /// How many ends this process has committed, and how many of them have been tried once.
    committed: u64,
    tried: u64,
    /// Ends in memory that were neither told nor given up.
    pending: u64,
    closed: bool,
    /// The thread that delivers, once it runs. It must not wait for itself.
    courier: Option<ThreadId>,
}

#[derive(Clone)]
struct End {
    session: Arc<EndedSession>,
    reason: EndReason,
    /// How often its listener has failed.
    failures: u32,
}

/// What the courier does next.
enum Task {
    First(End),
    /// Once more, for one that was postponed to here.
    Again((Duration, u64), End),
    Backlog,
}

impl State {
    fn is_of_this_thread(&self) -> bool {
        self.courier == Some(thread::current().id())
    }

    /// When the first of those that were postponed is due.
    fn next_chance(&self) -> Option<Duration> {
        self.postponed.first_key_value().map(|((at, _), _)| *at)
    }
}

impl Ends {
    /// `tells`: whether anybody is to be told by this process.
    pub(crate) fn new(tells: bool) -> Self {
        let state = State { backlog: tells.then_some(Duration::ZERO), ..State::default() };
        Ends { state: Mutex::new(state), called: Condvar::new(), progress: Condvar::new() }
    }

    /// Counts ends that have become durable, before anybody can see them.
    pub(crate) fn expect(&self, ends: &EndBatch) {
        let mut state = lock(&self.state);
        state.committed += ends.len() as u64;
        state.pending += ends.len() as u64;
    }

    /// Queues ends that have been counted and may now be seen. The queue itself has no bound, because
    /// the committer must not wait for a listener that waits for the committer; who *causes* ends is
    /// held up instead (see [`Core::submit`]).
    pub(crate) fn send(&self, ends: EndBatch) {
        if ends.is_empty() {
            return;
        }
        let end = |(session, reason)| End { session, reason, failures: 0 };
        lock(&self.state).queue.extend(ends.into_iter().map(end));
        self.called.notify_one();
    }

    /// How many ends in memory await their listener.
    pub(crate) fn pending(&self) -> u64 {
        lock(&self.state).pending
    }

    /// Returns when the listener of every end so far has been called, those again that have failed and
    /// whose next chance has come by `now`; at once on the thread that delivers, which would wait for
    /// itself.
    pub(crate) fn settle(&self, now: Duration) {
        let state = lock(&self.state);
        if state.is_of_this_thread() {
            return;
        }
        let target = state.committed;
        // The clock may have been turned.
        self.called.notify_one();
        let goes_on = |state: &mut State| {
            let is_due = |at: Option<Duration>| at.is_some_and(|at| at <= now);
            state.tried < target || is_due(state.backlog) || is_due(state.next_chance())
        };
        drop(self.progress.wait_while(state, goes_on).expect("nothing panics while it is held"));
    }

    /// Waits until fewer than `max` ends are pending; false if that takes longer than `budget`. True
    /// at once on the thread that delivers, which would wait for itself.
    pub(crate) fn wait_below(&self, max: u64, budget: Duration) -> bool {
        let state = lock(&self.state);
        if state.is_of_this_thread() {
            return true;
        }
        let (_state, wait) = self
            .progress
            .wait_timeout_while(state, budget, |state| state.pending >= max)
            .expect("nothing panics while it is held");
        !wait.timed_out()
    }

    /// The store is about to be closed: what an earlier process left behind stays for the next one.
    pub(crate) fn leave_backlog(&self) {
        lock(&self.state).backlog = None;
        self.progress.notify_all();
    }

    /// No more ends will come.
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.called.notify_one();
    }

    /// The next thing to do, once there is one; `None` when there will be none.
    fn next(&self, core: &Core) -> Option<Task> {
        let postponed_max = core.bounds.ends_pending_max as usize;
        let mut state = lock(&self.state);
        loop {
            let now = core.clock.elapsed();
            let due = state.postponed.first_key_value().filter(|((at, _), _)| *at <= now);
            if let Some((at, end)) = due.filter(|_| !state.closed) {
                return Some(Task::Again(*at, end.clone()));
            }
            if state.backlog.is_some_and(|at| at <= now) {
                if state.postponed.len() < postponed_max {
                    return Some(Task::Backlog);
                }
                // Those on the disk take up no memory.
                state.backlog = state.next_chance();
                self.progress.notify_all();
            }
            if let Some(end) = state.queue.pop_front() {
                return Some(Task::First(end));
            }
            if state.closed {
                return None;
            }
            state = match state.next_chance().into_iter().chain(state.backlog).min() {
                Some(at) => {
                    let wait = self.called.wait_timeout(state, at.saturating_sub(now));
                    wait.expect("nothing panics while it is held").0
                }
                None => self.called.wait(state).expect("nothing panics while it is held"),
            };
        }
    }
}

/// Delivers until there is nothing to deliver and the store is closed. Up to `found` the store was
/// committed to before this process.
pub(crate) fn run(store: &Store, found: Revision) {
    let core = &*store.core;
    lock(&core.ends.state).courier = Some(thread::current().id());
    let courier = Courier { store, core };
    let mut backlog = Backlog::new(found);
    while let Some(task) = core.ends.next(core) {
        match task {
            Task::First(end) => courier.tell(end, |state| state.tried += 1),
            Task::Again(at, end) => courier.tell(end, |state| {
                state.postponed.remove(&at);
            }),
            Task::Backlog => courier.go_on(&mut backlog),
        }
        core.there_is_room();
    }
    let left = mem::take(&mut lock(&core.ends.state).postponed);
    core.ends.progress.notify_all();
    // The others will be found by the next process.
    left.into_values()
        .filter(|end| end.session.row.is_none())
        .for_each(|end| courier.give_up(&end));
}

/// How long to wait before a listener that has failed so often is called again.
fn delay(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.saturating_sub(1).min(16))
}

/// How many ends are told before they are acknowledged without anybody having asked for it.
const TOLD_MAX: usize = 256;

struct Courier<'a> {
    store: &'a Store,
    core: &'a Core,
}

impl Courier<'_> {
    /// Calls the listener of an end, and takes note of what came of it.
    fn tell(&self, mut end: End, note: impl FnOnce(&mut State)) {
        let core = self.core;
        if core.bounds.end_attempts == 0 {
            // It stays written down for those who tell.
            let mut state = lock(&core.ends.state);
            note(&mut state);
            state.pending -= 1;
            drop(state);
            return core.ends.progress.notify_all();
        }
        let again = match self.call(&end) {
            true => false,
            false => {
                end.failures += 1;
                let gives_up = end.failures >= core.bounds.end_attempts;
                if gives_up {
                    self.give_up(&end);
                }
                !gives_up
            }
        };
        let mut state = lock(&core.ends.state);
        if let (false, Some(row)) = (again, &end.session.row) {
            state.told.push(row.clone());
            if state.told.len().is_multiple_of(TOLD_MAX) {
                drop(state);
                // If it fails they stay told, and it is tried again with the next so many.
                let _ = acknowledge(core);
                state = lock(&core.ends.state);
            }
        }
        note(&mut state);
        if again {
            let at = core.clock.elapsed().saturating_add(delay(end.failures));
            state.postponements += 1;
            let at = (at, state.postponements);
            state.postponed.insert(at, end);
        } else {
            state.pending -= 1;
        }
        drop(state);
        core.ends.progress.notify_all();
    }

    /// Whether nothing went wrong.
    fn call(&self, End { session, reason, failures }: &End) -> bool {
        let core = self.core;
        if *failures == 0 {
            core.event(&Event::Ended(Arc::clone(session), *reason));
        }
        let Some(name) = &session.listener else { return true };
        let Some(listener) = core.listeners.on_end.get(name) else {
            core.event(&Event::ListenerMissing { listener: name.clone() });
            return true;
        };
        let called = listeners::call(name, || listener(self.store, session, *reason));
        if let Err(event) = &called {
            Counters::add(&core.counters.listener_failures, 1);
            core.event(event);
        }
        called.is_ok()
    }

    fn give_up(&self, End { session, reason, .. }: &End) {
        Counters::add(&self.core.counters.dead_letters, 1);
        self.core.event(&Event::EndGivenUp(Arc::clone(session), *reason));
    }

    /// Tells one of those that an earlier process has left behind.
    fn go_on(&self, backlog: &mut Backlog) {
        let found = backlog.next(self.core);
        let mut state = lock(&self.core.ends.state);
        match found {
            Ok(Some(end)) => {
                state.pending += 1;
                drop(state);
                return self.tell(end, |_| {});
            }
            Ok(None) => state.backlog = None,
            // The tables may be opened again meanwhile.
            Err(_) => {
                let later = self.core.clock.elapsed().saturating_add(delay(1));
                state.backlog = state.backlog.map(|_| later);
            }
        }
        drop(state);
        self.core.ends.progress.notify_all();
    }
}

/// What earlier processes have left behind, in the order of the commits.
struct Backlog {
    page: VecDeque<(Key, Arc<Record>)>,
    /// Where the next page begins, if there is one.
    from: Option<Key>,
    /// Those from here on are this process's own.
    until: Key,
    /// How many a page holds.
    page_max: usize,
}

impl Backlog {
    /// About what a page weighs. Small ends come in large pages: each of them looks at everything that
    /// is not in the tables yet.
    const PAGE_BYTES: usize = 4 << 20;

    fn new(found: Revision) -> Self {
        Backlog {
            page: VecDeque::new(),
            from: Some(Key::from("")),
            until: ends::after(found),
            page_max: 256,
        }
    }

    fn next(&mut self, core: &Core) -> Result<Option<End>, Error> {
        loop {
            let Some((key, record)) = self.page.pop_front() else {
                let Some(from) = &self.from else { return Ok(None) };
                let mut pinned = core.versions.pin(ENDS, core.snapshots.published());
                let scan = |pinned: &Pinned| pinned.scan(ENDS, from, self.page_max);
                let (page, next) = pinned.look(&core.versions, scan)?;
                let weight: usize = page.iter().map(|(_, record)| record.weight()).sum();
                let each = weight / page.len().max(1);
                self.page_max = (Self::PAGE_BYTES / each.max(1)).clamp(16, 8_192);
                let own = page.partition_point(|(key, _)| *key < self.until);
                self.from = next.filter(|_| own == page.len());
                self.page = page.into_iter().take(own).collect();
                continue;
            };
            let name = |id: ContainerId| {
                let state = core.versions.container(id, core.snapshots.published());
                state.map(|state| Arc::clone(&state.name))
            };
            if let Some((session, reason)) = ends::session(key, &record, name) {
                return Ok(Some(End { session: Arc::new(session), reason, failures: 0 }));
            }
        }
    }
}

/// How many are acknowledged in one commit at the most, for it has to fit into the log.
fn at_once(core: &Core) -> usize {
    (core.engine.weight_max() / 256).clamp(1, TOLD_MAX)
}

/// Acknowledges what was told.
pub(crate) fn acknowledge(core: &Core) -> Result<(), Error> {
    loop {
        let ends: Vec<_> = {
            let told = &mut lock(&core.ends.state).told;
            let count = told.len().min(at_once(core));
            told.drain(..count).collect()
        };
        if ends.is_empty() {
            return Ok(());
        }
        let again = ends.clone();
        if let Err(error) = core.submit(Work::Acknowledge { ends }) {
            lock(&core.ends.state).told.extend(again);
            return Err(error);
        }
    }
}

/// Acknowledges the last ones, when nobody else commits any more.
pub(crate) fn acknowledge_last(core: &Core) {
    let told = mem::take(&mut lock(&core.ends.state).told);
    let works = told.chunks(at_once(core)).map(|ends| Work::Acknowledge { ends: ends.to_vec() });
    commit::finish(core, works.collect());
}
