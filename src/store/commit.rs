//! Validate, merge, hand to the engine, publish: the one way to change a store.
//!
//! Clients put what they want into a bounded queue and wait. One thread, the committer, takes all
//! that is queued and makes one batch of it:
//!
//! ```text
//!   clients           committer                                engine      clients
//!   ------->  queue   judge each   stage      apply ---------> durable
//!   ------->  =====>  against the  pre-images                     |
//!   ------->          state now    in the map  publish <----------+
//!                        |                        |
//!                        +-- conflicts fail alone +-- replies ------------> awake
//!                                                 +-- ends to the courier
//! ```
//!
//! *Judge*: the committer knows the newest state, which earlier transactions of the same batch are
//! part of. It takes one time for the batch, applies a transaction's touches, asks whether what it
//! writes has ended or expired meanwhile, and merges (`model/merge.rs`). A transaction that cannot
//! be merged gets its conflict and leaves nothing behind; the others do not notice.
//!
//! *Stage*: before the engine is told anything, the map of versions holds what is replaced, so that
//! a reader who looks while the tables change still finds what its snapshot saw.
//!
//! *Publish*: only now do new transactions see the batch. Nothing is visible before it is durable, or
//! before it is written, if all that is in it is content with that.
//!
//! *Failure*: when a write or a sync fails, nobody knows what is durable. The clients of the batch
//! are told so, with the number to ask about, and nothing more is committed until the engine has
//! found out. What it finds is published or taken back, and committing goes on.
//!
//! Housekeeping goes the same way: a sweep is a client that asks for sessions to be ended, and
//! the committer looks for itself whether their time is really over.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::engine::{self, Batch, Engine, Failure, Taken};
use crate::error::{ConflictReason, Error};
use crate::model::clock::{Clock, SystemClock};
use crate::model::container::{ContainerId, ContainerState, Place};
use crate::model::draft::Draft;
use crate::model::key::Key;
use crate::model::policy::{Durability, Policy};
use crate::model::session::{CommitId, Name, Revision};
use crate::store::core::Core;
use crate::store::courier::EndBatch;
use crate::store::events::Event;
use crate::store::listeners::EndReason;
use crate::store::lock;
use crate::store::observe;
use crate::store::outcome::{MergedSession, Reply, Report, slot};
use crate::store::round::{Rooms, Round};
use crate::store::stats::Counters;
use crate::sync::channel::{Receiver, RecvTimeoutError, SendError, Sender, bounded};
use crate::sync::thread;
use crate::threads;

/// Something for the committer to do.
pub(crate) struct Request {
    pub work: Work,
    pub reply: Reply,
}

pub(crate) enum Work {
    Transaction(Intent),
    /// Makes a container, if there is none of this name.
    Make {
        name: Arc<str>,
        policy: Arc<Policy>,
    },
    /// Ends what has expired of these rows of the expiry index, and files the rest anew.
    Sweep {
        container: ContainerId,
        rows: Vec<(u64, Key)>,
    },
    /// The same for sessions whose buckets may be too late. They lie from the key `from` on, and
    /// `next` says where those lie that are not among them.
    Refile {
        container: ContainerId,
        /// The policy that they were looked at under.
        policy: Revision,
        from: Key,
        keys: Vec<Key>,
        next: Option<Key>,
    },
    /// These ends need not be written down any more.
    Acknowledge {
        ends: Vec<Key>,
    },
    /// A container has so many sessions more than it says, or fewer.
    Recount {
        container: ContainerId,
        uncounted: i64,
    },
}

impl Work {
    /// How many ends may be pending for this to be queued. What ends many sessions waits first. Any
    /// transaction may come upon an expired session and end it, but has far more room: neither a
    /// logout nor a visit should have to wait for a slow listener.
    pub(crate) fn ends_pending_max(&self, bound: u64) -> u64 {
        match self {
            Work::Sweep { .. } | Work::Refile { .. } => bound,
            Work::Transaction(intent) if intent.ends_many() => bound,
            Work::Transaction(_) | Work::Make { .. } => bound.saturating_mul(16),
            Work::Acknowledge { .. } | Work::Recount { .. } => u64::MAX,
        }
    }
}

/// What a transaction wants.
pub(crate) struct Intent {
    /// What the transaction saw.
    pub snapshot: Revision,
    /// Of what, if it has looked up anything after it let go of the snapshot.
    pub later: Vec<Revision>,
    pub drafts: BTreeMap<Place, Draft>,
    pub policies: BTreeMap<ContainerId, PolicyChange>,
    /// Principals of whom all sessions end, those too that the transaction has not seen.
    pub principals: BTreeSet<(ContainerId, Name)>,
    /// When it is to be acknowledged, if the transaction has said so.
    pub durability: Option<Durability>,
    /// It wins conflicts at attributes that no rule resolves.
    pub later_wins: bool,
}

pub(crate) struct PolicyChange {
    pub policy: Arc<Policy>,
    /// The policy that the transaction saw.
    pub base: Revision,
}

impl Intent {
    /// Whether it ends more than one session by request.
    fn ends_many(&self) -> bool {
        let lives = || self.drafts.values().flat_map(|draft| &draft.lives);
        let ends_others =
            lives().any(|life| life.ends_others.is_some()) || !self.principals.is_empty();
        ends_others || lives().filter(|life| life.ended).count() > 1
    }

    /// Whether it does nothing but end sessions, and so makes room.
    pub(crate) fn only_ends(&self) -> bool {
        let ends = |draft: &Draft| draft.lives.iter().all(|life| life.ended && !life.created_here);
        self.policies.is_empty() && self.drafts.values().all(ends)
    }

    /// When it is to be acknowledged: at the strictest level of what it changes.
    pub(crate) fn durability(
        &self,
        containers: &BTreeMap<ContainerId, Arc<ContainerState>>,
    ) -> Durability {
        let level = |(place, draft): (&Place, &Draft)| match draft.demands() {
            true => self.durability.unwrap_or(containers[&place.0].policy.durability),
            // Touches ride along.
            false => Durability::Relaxed,
        };
        match self.policies.is_empty() {
            true => self.drafts.iter().map(level).max().unwrap_or_default(),
            false => Durability::Immediate,
        }
    }
}

/// How many requests become one batch at the most.
const BATCH_MAX: usize = 1_024;

/// How long the committer waits for a batch to become as large as the last one. Those who were
/// answered together come back together: without the wait they would part into two groups that wait
/// for each other's batch (measured: 1.3 to 1.6 times the commits at eight clients).
/// Where schedules are explored no time passes.
const GATHER: Duration = Duration::from_micros(if cfg!(shuttle) { 0 } else { 120 });

/// How many clients the committer wakes itself. Where there are more another thread does it meanwhile
/// (measured: 1.17 times the commits at 128 clients, and a little at 32).
const ANSWERED_HERE_MAX: usize = 16;

/// How long to wait between two attempts to go on after a failure: at first, and at most.
const RECOVER_EVERY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(250));

/// The committer: one thread of its own.
struct Committer<'a> {
    core: &'a Core,
    engine: &'a dyn Engine,
    queue: &'a Receiver<Request>,
    /// Measures the gathering, whatever clock the store has.
    stopwatch: SystemClock,
    /// How many requests the last batch was made of.
    last: usize,
    /// When what is written and not synced must be.
    sync_by: Option<Duration>,
    /// About what it keeps in memory: each state of each session in it, in case that it is lost.
    unsynced_bytes: usize,
    /// Wakes many clients, while the next batch is made.
    answers: Sender<Verdicts>,
    /// Who makes room in full containers.
    rooms: Rooms,
}

/// Clients, and what they are told.
type Verdicts = Vec<(Reply, Result<Report, Error>)>;

/// Runs until the queue is closed and empty.
pub(crate) fn run(core: &Core, engine: &dyn Engine, queue: &Receiver<Request>) {
    let stopwatch = SystemClock::new();
    let (answers, answering) = bounded::<Verdicts>(1);
    let waker = threads::spawn("answer", move || {
        let verdicts = answering.into_iter().flatten();
        verdicts.for_each(|(reply, verdict)| reply.send(verdict));
    });
    if let Ok(waker) = &waker {
        lock(&core.threads).push(waker.thread().id());
    }
    let mut committer = Committer {
        core,
        engine,
        queue,
        stopwatch,
        last: 1,
        sync_by: None,
        unsynced_bytes: 0,
        answers,
        rooms: Rooms::default(),
    };
    let mut requests = VecDeque::new();
    while committer.gather(&mut requests) {
        core.there_is_room();
        while !requests.is_empty() {
            committer.commit(&mut requests);
        }
        core.tidy();
    }
    if committer.sync_by.is_some() {
        let _ = committer.sync();
    }
    drop(committer);
    if let Ok(waker) = waker {
        // A panic there is a bug that has been printed already.
        let _ = waker.join();
    }
}

/// Does what is left to do when the committer has ended and nobody waits for a verdict.
pub(crate) fn finish(core: &Core, works: Vec<Work>) {
    if works.is_empty() || core.fence.get().is_some() {
        return;
    }
    let (sender, queue) = bounded(works.len());
    for work in works {
        let request = Request { work, reply: slot().0 };
        sender.send(request).expect("there is room for all of them");
    }
    drop(sender);
    run(core, &*core.engine, &queue);
}

impl Committer<'_> {
    /// Waits for requests, and for a moment for more of them; false if there will be none.
    fn gather(&mut self, requests: &mut VecDeque<Request>) -> bool {
        match self.next() {
            Some(first) => requests.push_back(first),
            None => return false,
        }
        let since = self.stopwatch.elapsed();
        loop {
            requests.extend(self.queue.try_iter().take(BATCH_MAX - requests.len()));
            if requests.len() >= self.last || self.stopwatch.elapsed() - since >= GATHER {
                self.last = requests.len();
                return true;
            }
            thread::yield_now();
        }
    }

    /// The next request, and meanwhile what has to be synced in time.
    fn next(&mut self) -> Option<Request> {
        loop {
            let Some(sync_by) = self.sync_by else { return self.queue.recv().ok() };
            // Asked first: requests that keep coming must not put it off.
            let left = sync_by.saturating_sub(self.core.clock.elapsed());
            if left.is_zero() {
                // Nobody waits for it; who has seen what is lost is told.
                let _ = self.sync();
                continue;
            }
            match self.queue.recv_timeout(left) {
                Ok(request) => return Some(request),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Makes durable what is written; an error if that failed, when it is known what is.
    fn sync(&mut self) -> Result<(), Error> {
        (self.sync_by, self.unsynced_bytes) = (None, 0);
        match caught(|| self.engine.sync()) {
            Ok(()) => {
                self.core.snapshots.sync(self.core.snapshots.published());
                Ok(())
            }
            Err(Failure::Refused(error) | Failure::Unknown(error)) => {
                self.recover(&error, None);
                Err(error)
            }
        }
    }

    /// Makes one batch of as many requests as fit in, and answers them.
    fn commit(&mut self, requests: &mut VecDeque<Request>) {
        let (core, engine) = (self.core, self.engine);
        let mut round = Round::new(core, engine, mem::take(&mut self.rooms));
        let mut works = Vec::with_capacity(requests.len());
        let mut verdicts = Vec::with_capacity(requests.len());
        while let Some(Request { work, reply }) = requests.pop_front() {
            let verdict = round.judge(&work);
            if round.has_overflowed {
                requests.push_front(Request { work, reply });
                break;
            }
            verdicts.push((reply, verdict));
            works.push(work);
            if round.is_full() {
                break;
            }
        }
        let Round { now, commits, ended, unwritten, warnings, started, revision, made, .. } = round;
        let Round { durability, only_ends, has_overflowed, rooms, .. } = round;
        if commits.is_empty() {
            self.rooms = rooms;
            let rests_on_more = durability == Durability::Immediate && self.sync_by.is_some();
            return match if rests_on_more { self.sync() } else { Ok(()) } {
                Ok(()) => self.answer(verdicts),
                Err(error) => {
                    verdicts.into_iter().for_each(|(reply, _)| reply.send(Err(error.share())));
                }
            };
        }
        commits.iter().for_each(|commit| core.versions.stage(commit));
        observe::written(&commits);
        let count = commits.len();
        self.unsynced_bytes += commits.iter().map(bytes_kept).sum::<usize>();
        let too_much = self.unsynced_bytes > core.bounds.resident_bytes_max / 8;
        let durable = durability == Durability::Immediate || !ended.is_empty() || too_much;
        let epoch = engine.epoch();
        let written = caught(|| engine.apply(Batch { time: now, commits, only_ends }, durable));
        let effects = Effects { revision, count, ended, unwritten, warnings, started, made };
        match written {
            Ok(()) => {
                self.rooms = rooms;
                match durable {
                    true => {
                        core.snapshots.sync(revision);
                        (self.sync_by, self.unsynced_bytes) = (None, 0);
                    }
                    false => {
                        let delay = core.bounds.sync_delay;
                        self.sync_by
                            .get_or_insert_with(|| core.clock.elapsed().saturating_add(delay));
                    }
                }
                effects.publish(core, revision);
                self.answer(verdicts);
            }
            Err(Failure::Refused(Error::Full)) if !only_ends => {
                core.versions.unstage(core.snapshots.published());
                // The disk has become full meanwhile: now each of them is asked whether it may still.
                for (work, (reply, _)) in works.into_iter().zip(verdicts).rev() {
                    requests.push_front(Request { work, reply });
                }
            }
            Err(Failure::Refused(error)) => {
                core.versions.unstage(core.snapshots.published());
                // Some of it was for the one who is to be judged again.
                if has_overflowed && let Some(request) = requests.pop_front() {
                    request.reply.send(Err(error.share()));
                }
                // Those who wanted nothing written are as unlucky: they may have seen the batch.
                verdicts.into_iter().for_each(|(reply, _)| reply.send(Err(error.share())));
            }
            Err(Failure::Unknown(error)) => {
                for (reply, verdict) in verdicts {
                    reply.send(Err(match verdict {
                        Ok(report) if report.revision > core.snapshots.published() => {
                            let commit = CommitId { epoch, revision: report.revision };
                            Error::Unknown { commit, cause: error.cause() }
                        }
                        _ => error.share(),
                    }));
                }
                // Nor are those who did not fit into the batch to wait until the failure is over.
                requests.drain(..).for_each(|request| request.reply.send(Err(error.share())));
                self.recover(&error, Some(effects));
            }
        }
    }

    /// Tells clients what became of their requests. To wake a thread takes longer than to judge what
    /// it wants, so where there are many, another thread does it.
    fn answer(&self, verdicts: Verdicts) {
        for (_, verdict) in &verdicts {
            self.core.heat.count(verdict);
            match verdict {
                Ok(report) => {
                    Counters::add(&self.core.counters.merges, report.merged.len());
                    self.tell_overruled(&report.merged);
                }
                Err(Error::Conflict(conflict)) => {
                    Counters::add(&self.core.counters.conflicts, 1);
                    if let ConflictReason::Resolver { name, trouble } = &conflict.reason {
                        let (resolver, trouble) = (name.clone(), *trouble);
                        self.core.event(&Event::ResolverFailed { resolver, trouble });
                    }
                }
                Err(_) => {}
            }
        }
        let here = match verdicts.len() <= ANSWERED_HERE_MAX {
            true => verdicts,
            // It may be gone, or not have come: then there is only this thread.
            false => match self.answers.send(verdicts) {
                Ok(()) => return,
                Err(SendError(verdicts)) => verdicts,
            },
        };
        here.into_iter().for_each(|(reply, verdict)| reply.send(verdict));
    }

    /// Tells whose writes are lost because a later commit was to win.
    fn tell_overruled(&self, merged: &[MergedSession]) {
        for session in merged.iter().filter(|session| !session.overruled.is_empty()) {
            Counters::add(&self.core.counters.overruled, session.overruled.len());
            self.core.event(&Event::Overruled {
                container: session.container.clone(),
                session: session.key.fingerprint(),
                attributes: session.overruled.clone(),
            });
        }
    }

    /// After a failure that leaves unknown what is durable: finds out, as soon as the storage lets
    /// itself be asked. Until then reads go on, and commits fail at once.
    fn recover(&mut self, error: &Error, failed: Option<Effects>) {
        let core = self.core;
        (self.sync_by, self.unsynced_bytes) = (None, 0);
        Counters::add(&core.counters.storage_failures, 1);
        core.event(&Event::StorageFailed { error: error.cause().to_string() });
        let (mut pause, most) = RECOVER_EVERY;
        let taken = loop {
            let recovered = catch_unwind(AssertUnwindSafe(|| self.engine.recover()));
            if let Ok(Ok(taken)) = recovered {
                break taken;
            }
            let since = self.stopwatch.elapsed();
            loop {
                let left = pause.saturating_sub(self.stopwatch.elapsed() - since);
                // Asked first: requests that keep coming must not put off the next attempt.
                if left.is_zero() {
                    break;
                }
                match self.queue.recv_timeout(left) {
                    Ok(request) => {
                        core.there_is_room();
                        request.reply.send(Err(error.share()));
                    }
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => {
                        core.fence.get_or_init(|| error.share());
                        return;
                    }
                }
            }
            pause = most.min(2 * pause);
        };
        let Taken { durable, used } = taken;
        let published = core.snapshots.published();
        let failed_at = failed.as_ref().map_or(published, |failed| failed.revision);
        let mut used = used.max(published).max(failed_at);
        if durable < published {
            // What was acknowledged before it was durable, and has been seen. Who has seen all of it
            // must not look like one who begins after this.
            used = used.next();
            // Who begins from now on sees what stays, while the rest is taken back.
            core.snapshots.publish(durable);
            core.revoke(durable, used);
        }
        core.versions.unstage(durable);
        core.snapshots.sync(used);
        match failed {
            Some(effects) if effects.revision <= durable => effects.publish(core, used),
            _ => core.snapshots.publish(used),
        }
        core.event(&Event::StorageRecovered { durable });
    }
}

/// What a commit keeps in memory until it is durable.
fn bytes_kept(commit: &engine::Commit) -> usize {
    commit.sessions.iter().filter_map(|change| Some(change.after.as_ref()?.weight())).sum()
}

/// What a batch does besides its records, once it is published.
struct Effects {
    /// That of its last commit.
    revision: Revision,
    count: usize,
    ended: EndBatch,
    unwritten: usize,
    warnings: Vec<Event>,
    started: usize,
    made: Vec<(Arc<str>, ContainerId)>,
}

impl Effects {
    fn publish(self, core: &Core, revision: Revision) {
        if !self.made.is_empty() {
            core.names.write().expect("nothing panics while it is held").extend(self.made);
        }
        core.ends.expect(&self.ended);
        core.snapshots.publish(revision);
        let counters = &core.counters;
        counters.last_commit.store(core.now().as_micros(), Ordering::Relaxed);
        Counters::add(&counters.batches, 1);
        Counters::add(&counters.commits, self.count);
        Counters::add(&counters.started, self.started);
        let count = |wanted| self.ended.iter().filter(|(_, reason)| *reason == wanted).count();
        let rotated = count(EndReason::Rotated);
        // What is rotated goes on.
        Counters::add(&counters.ended, self.ended.len() - rotated);
        Counters::add(&counters.ends_unwritten, self.unwritten);
        Counters::add(&counters.expired, count(EndReason::Expired));
        Counters::add(&counters.evicted, count(EndReason::Evicted));
        Counters::add(&counters.rotated, rotated);
        Counters::add(&counters.warned, self.warnings.len());
        observe::published(self.started, &self.ended);
        self.warnings.iter().for_each(|warning| core.event(warning));
        core.ends.send(self.ended);
    }
}

/// An engine that panics, as a database on damaged pages may, has failed.
fn caught(work: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let reason = "it panicked during a commit".to_owned();
        Err(Failure::Unknown(Error::Corrupt { table: "engine", reason }))
    })
}
