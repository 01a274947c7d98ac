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

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::mem;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::engine::{Batch, Commit, Engine, Failure, SessionChange, Taken};
use crate::error::{Conflict, ConflictReason, Error, LimitKind};
use crate::model::clock::{Clock, SystemClock, Time};
use crate::model::container::{ContainerId, ContainerState, Place};
use crate::model::draft::Draft;
use crate::model::key::Key;
use crate::model::policy::{Durability, Policy};
use crate::model::session::{CommitId, Record, Revision};
use crate::model::timeslice;
use crate::store::core::Core;
use crate::store::events::Event;
use crate::store::judge::{Circumstances, Objection, judge};
use crate::store::listeners::{EndBatch, EndReason, EndedSession};
use crate::store::outcome::{EndedInfo, MergedSession, Reply, Report};
use crate::store::stats::Counters;

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
}

impl Work {
    /// How many ends may be pending for this to be queued. What ends many sessions waits first. Any
    /// transaction may come upon an expired session and end it, but has far more room: neither a
    /// logout nor a visit should have to wait for a slow listener.
    pub(crate) fn ends_pending_max(&self, bound: u64) -> u64 {
        match self {
            Work::Sweep { .. } | Work::Refile { .. } => bound,
            Work::Transaction(intent) if intent.ends() > 1 => bound,
            Work::Transaction(_) | Work::Make { .. } => bound.saturating_mul(16),
        }
    }
}

/// What a transaction wants.
pub(crate) struct Intent {
    /// What the transaction saw.
    pub snapshot: Revision,
    pub drafts: BTreeMap<Place, Draft>,
    pub policies: BTreeMap<ContainerId, PolicyChange>,
    /// When it is to be acknowledged, if the transaction has said so.
    pub durability: Option<Durability>,
}

pub(crate) struct PolicyChange {
    pub policy: Arc<Policy>,
    /// The policy that the transaction saw.
    pub base: Revision,
}

impl Intent {
    /// How many sessions it ends by request.
    fn ends(&self) -> usize {
        self.drafts.values().flat_map(|draft| &draft.lives).filter(|life| life.ended).count()
    }

    /// Whether it does nothing but end sessions, and so makes room.
    fn only_ends(&self) -> bool {
        let ends = |draft: &Draft| draft.lives.iter().all(|life| life.ended && !life.created_here);
        self.policies.is_empty() && self.drafts.values().all(ends)
    }

    /// When it is to be acknowledged: at the strictest level of what it changes.
    fn durability(&self, containers: &BTreeMap<ContainerId, Arc<ContainerState>>) -> Durability {
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
const GATHER: Duration = Duration::from_micros(60);

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
}

/// Runs until the queue is closed and empty.
pub(crate) fn run(core: &Core, engine: &dyn Engine, queue: &Receiver<Request>) {
    let stopwatch = SystemClock::new();
    let mut committer = Committer { core, engine, queue, stopwatch, last: 1, sync_by: None };
    let mut requests = VecDeque::new();
    while committer.gather(&mut requests) {
        core.there_is_room();
        while !requests.is_empty() {
            committer.commit(&mut requests);
        }
        core.tidy();
    }
    if committer.sync_by.is_some() {
        committer.sync();
    }
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
            if requests.len() >= self.last || self.stopwatch.elapsed() - since > GATHER {
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
            match self.queue.recv_timeout(self.core.bounds.sync_delay) {
                Ok(request) => return Some(request),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if self.core.clock.elapsed() >= sync_by => {
                    self.sync()
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn sync(&mut self) {
        self.sync_by = None;
        match caught(|| self.engine.sync()) {
            Ok(()) => self.core.snapshots.sync(self.core.snapshots.published()),
            Err(Failure::Refused(error) | Failure::Unknown(error)) => {
                self.recover(&error, None);
            }
        }
    }

    /// Makes one batch of as many requests as fit in, and answers them.
    fn commit(&mut self, requests: &mut VecDeque<Request>) {
        let (core, engine) = (self.core, self.engine);
        let mut round = Round::new(core, engine);
        let mut verdicts = Vec::with_capacity(requests.len());
        while let Some(Request { work, reply }) = requests.pop_front() {
            verdicts.push((reply, round.judge(work)));
            if round.weight > round.weight_max / 2 {
                break;
            }
        }
        let Round { now, commits, ended, started, revision, made, durability, .. } = round;
        if commits.is_empty() {
            return answer(core, verdicts);
        }
        commits.iter().for_each(|commit| core.versions.stage(commit));
        let count = commits.len();
        let durable = durability == Durability::Immediate || !ended.is_empty();
        let epoch = engine.epoch();
        let written = caught(|| engine.apply(Batch { time: now, commits }, durable));
        let effects = Effects { revision, count, ended, started, made };
        match written {
            Ok(()) => {
                match durable {
                    true => {
                        core.snapshots.sync(revision);
                        self.sync_by = None;
                    }
                    false => {
                        let delay = core.bounds.sync_delay;
                        self.sync_by
                            .get_or_insert_with(|| core.clock.elapsed().saturating_add(delay));
                    }
                }
                effects.publish(core, revision);
                answer(core, verdicts);
            }
            Err(Failure::Refused(error)) => {
                core.versions.unstage(core.snapshots.published());
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
                self.recover(&error, Some(effects));
            }
        }
    }

    /// After a failure that leaves unknown what is durable: finds out, as soon as the storage lets
    /// itself be asked. Until then reads go on, and commits fail at once.
    fn recover(&mut self, error: &Error, failed: Option<Effects>) {
        let core = self.core;
        self.sync_by = None;
        Counters::add(&core.counters.storage_failures, 1);
        core.event(&Event::StorageFailed { error: error.to_string() });
        let (mut pause, most) = RECOVER_EVERY;
        let taken = loop {
            let recovered = catch_unwind(AssertUnwindSafe(|| self.engine.recover()));
            if let Ok(Ok(taken)) = recovered {
                break taken;
            }
            let since = self.stopwatch.elapsed();
            loop {
                let left = pause.saturating_sub(self.stopwatch.elapsed() - since);
                match self.queue.recv_timeout(left) {
                    Ok(request) => request.reply.send(Err(error.share())),
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
        let used = used.max(published).max(failed_at);
        if durable < published {
            // What was acknowledged before it was durable, and has been seen.
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

/// What a batch does besides its records, once it is published.
struct Effects {
    /// That of its last commit.
    revision: Revision,
    count: usize,
    ended: EndBatch,
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
        Counters::add(&counters.batches, 1);
        Counters::add(&counters.commits, self.count);
        Counters::add(&counters.started, self.started);
        Counters::add(&counters.ended, self.ended.len());
        let expired = self.ended.iter().filter(|(_, reason)| *reason == EndReason::Expired).count();
        Counters::add(&counters.expired, expired);
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

fn answer(core: &Core, verdicts: Vec<(Reply, Result<Report, Error>)>) {
    for (reply, verdict) in verdicts {
        match &verdict {
            Ok(report) => Counters::add(&core.counters.merges, report.merged.len()),
            Err(Error::Conflict(conflict)) => {
                Counters::add(&core.counters.conflicts, 1);
                if let ConflictReason::Resolver { name, trouble } = &conflict.reason {
                    let (resolver, trouble) = (name.clone(), *trouble);
                    core.event(&Event::ResolverFailed { resolver, trouble });
                }
            }
            Err(_) => {}
        }
        reply.send(verdict);
    }
}

/// One batch in the making: the newest state, with what the transactions judged so far have done.
struct Round<'a> {
    core: &'a Core,
    now: Time,
    /// The revision of the last commit.
    revision: Revision,
    commits: Vec<Commit>,
    /// The sessions that were looked at, as the batch has left them so far.
    sessions: HashMap<Place, Option<Arc<Record>>>,
    containers: BTreeMap<ContainerId, Arc<ContainerState>>,
    ended: EndBatch,
    started: usize,
    made: Vec<(Arc<str>, ContainerId)>,
    /// The strictest level that a commit asks for.
    durability: Durability,
    /// What the commits weigh, and what a batch may.
    weight: usize,
    weight_max: usize,
    /// The disk is full: only ends are let in.
    nearly_full: bool,
}

/// What one transaction would do, before it is accepted.
#[derive(Default)]
struct Outcome {
    sessions: Vec<(Place, Option<Arc<Record>>)>,
    containers: BTreeMap<ContainerId, ContainerState>,
    ends: Vec<(Place, Arc<Record>, EndReason)>,
    created: BTreeMap<ContainerId, u64>,
    merged: Vec<MergedSession>,
}

impl<'a> Round<'a> {
    fn new(core: &'a Core, engine: &dyn Engine) -> Self {
        let containers = core.versions.containers();
        Round {
            core,
            now: core.now(),
            revision: core.snapshots.published(),
            commits: Vec::new(),
            sessions: HashMap::new(),
            containers: containers.into_iter().map(|state| (state.id, state)).collect(),
            ended: Vec::new(),
            started: 0,
            made: Vec::new(),
            durability: Durability::Relaxed,
            weight: 0,
            weight_max: engine.weight_max(),
            nearly_full: engine.is_nearly_full(),
        }
    }

    fn judge(&mut self, work: Work) -> Result<Report, Error> {
        let mut durability = Durability::Immediate;
        let outcome = match work {
            Work::Transaction(intent) => {
                if self.nearly_full && !intent.only_ends() {
                    return Err(Error::Full);
                }
                self.core.check_revoked(intent.snapshot)?;
                durability = intent.durability(&self.containers);
                self.judge_transaction(&intent)?
            }
            Work::Make { .. } | Work::Refile { .. } if self.nearly_full => return Err(Error::Full),
            Work::Make { name, policy } => self.make(name, policy),
            Work::Sweep { container, rows } => {
                let policy = Arc::clone(&self.containers[&container].policy);
                let mut outcome = Outcome::default();
                for (bucket, key) in rows {
                    let filed_here = |record: &Record| record.bucket == bucket;
                    self.sweep(&mut outcome, (container, key), &policy, filed_here);
                }
                outcome
            }
            Work::Refile { container, policy: revision, from, keys, next } => {
                let mut state = ContainerState::clone(&self.containers[&container]);
                let policy = Arc::clone(&state.policy);
                let mut outcome = Outcome::default();
                // Otherwise the policy has changed again, and the walk begins anew.
                if state.policy_revision == revision && state.refile_from.as_ref() == Some(&from) {
                    for key in keys {
                        let late = |record: &Record| {
                            record.bucket > timeslice::bucket(record.slice_end, &policy)
                        };
                        self.sweep(&mut outcome, (container, key), &policy, late);
                    }
                    state.refile_from = next;
                    outcome.containers.insert(container, state);
                }
                outcome
            }
        };
        let before = self.commits.len();
        let report = self.accept(outcome)?;
        if self.commits.len() > before {
            self.durability = self.durability.max(durability);
        }
        Ok(report)
    }

    fn judge_transaction(&mut self, intent: &Intent) -> Result<Outcome, Error> {
        for (id, change) in &intent.policies {
            let state = &self.containers[id];
            if state.policy_revision != change.base {
                return Err(Error::Conflict(Conflict {
                    reason: ConflictReason::Policy,
                    container: state.name.to_string(),
                    session: "-".to_owned(),
                    base: change.base,
                    stored: Some(state.policy_revision),
                }));
            }
            // What has expired never becomes valid again, swept or not: it ends before the longer
            // timeout takes effect.
            if state.policy.lifetime_secs() < change.policy.lifetime_secs() {
                let policy = Arc::clone(&state.policy);
                let mut ends = Outcome::default();
                self.end_due(&mut ends, *id, &policy, &BTreeMap::new(), u64::MAX)?;
                self.accept(ends)?;
            }
        }
        let revision = self.revision.next();
        let mut outcome = Outcome::default();
        for (id, change) in &intent.policies {
            let mut state = ContainerState::clone(&self.containers[id]);
            state.set_policy(Arc::clone(&change.policy), revision);
            outcome.containers.insert(*id, state);
        }
        for (place, draft) in &intent.drafts {
            let stored = self.session(place)?;
            let before = Arc::clone(&self.containers[&place.0]);
            let circumstances = Circumstances {
                container: outcome.containers.get(&place.0).unwrap_or(&before),
                before: &before.policy,
                resolvers: &self.core.resolvers,
                now: self.now,
                revision,
            };
            let judgement = judge(draft, stored.clone(), &place.1, circumstances);
            let judgement = judgement.map_err(|objection| match objection {
                Objection::Refused(error) => error,
                Objection::Expired(error) => {
                    // Its end is no part of the transaction that found it.
                    let mut end = Outcome::default();
                    self.sweep(&mut end, place.clone(), &before.policy, |_| true);
                    match self.accept(end) {
                        Ok(_) => error,
                        Err(error) => error,
                    }
                }
            })?;
            if judgement.record != stored {
                outcome.sessions.push((place.clone(), judgement.record));
            }
            let end = |(record, reason)| (place.clone(), record, reason);
            outcome.ends.extend(judgement.ends.into_iter().map(end));
            outcome.merged.extend(judgement.merged);
            if judgement.created > 0 {
                *outcome.created.entry(place.0).or_default() += judgement.created;
            }
        }
        for id in outcome.created.keys().copied().collect::<Vec<_>>() {
            let state = outcome.containers.get(&id).unwrap_or(&self.containers[&id]);
            let policy = Arc::clone(&state.policy);
            let limit = policy.limit;
            let excess = counted(&self.containers[&id], &outcome).saturating_sub(limit);
            if limit == 0 || excess == 0 {
                continue;
            }
            // Make room by ending what is due.
            self.end_due(&mut outcome, id, &policy, &intent.drafts, excess)?;
            if counted(&self.containers[&id], &outcome) > limit {
                return Err(Error::Limit { limit: LimitKind::Sessions, max: limit });
            }
        }
        Ok(outcome)
    }

    /// Ends up to `wanted` sessions that have expired under `policy`, without those in `except`.
    /// One that cannot be read is left alone: it must not keep others from ending.
    fn end_due(
        &mut self,
        outcome: &mut Outcome,
        id: ContainerId,
        policy: &Policy,
        except: &BTreeMap<Place, Draft>,
        wanted: u64,
    ) -> Result<(), Error> {
        let state = Arc::clone(&self.containers[&id]);
        let pinned = self.core.versions.pin(id, self.core.snapshots.published());
        let (now, wanted) = (self.now, usize::try_from(wanted).unwrap_or(usize::MAX));
        let enough = outcome.ends.len().saturating_add(wanted);
        pinned.suspects(&state, policy, now, |key| {
            let place = (id, key);
            if !except.contains_key(&place) {
                self.sweep(outcome, place, policy, |record| record.is_expired(policy, now));
            }
            Ok(match outcome.ends.len() >= enough {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
        })
    }

    fn make(&mut self, name: Arc<str>, policy: Arc<Policy>) -> Outcome {
        let mut outcome = Outcome::default();
        if self.containers.values().all(|state| state.name != name) {
            let last = self.containers.keys().next_back().map_or(0, |id| id.0);
            let id = ContainerId(last + 1);
            self.made.push((Arc::clone(&name), id));
            let state = ContainerState {
                id,
                name,
                policy,
                policy_revision: self.revision.next(),
                count: 0,
                refile_from: None,
            };
            outcome.containers.insert(id, state);
        }
        outcome
    }

    /// Ends the session at a place if its time is over; files it anew if it lives and is `due`.
    /// One that cannot be read is left alone: it must not keep others from ending.
    fn sweep(
        &mut self,
        outcome: &mut Outcome,
        place: Place,
        policy: &Policy,
        due: impl Fn(&Record) -> bool,
    ) {
        let Ok(Some(record)) = self.session(&place) else { return };
        if !due(&record) {
            return;
        }
        if record.is_expired(policy, self.now) {
            outcome.sessions.push((place.clone(), None));
            outcome.ends.push((place, record, EndReason::Expired));
        } else {
            let mut filed = Record::clone(&record);
            filed.file(policy);
            filed.revision = self.revision.next();
            if filed.bucket != record.bucket {
                outcome.sessions.push((place, Some(Arc::new(filed))));
            }
        }
    }

    /// The session at a place as the batch has left it so far.
    fn session(&mut self, place: &Place) -> Result<Option<Arc<Record>>, Error> {
        if let Some(session) = self.sessions.get(place) {
            return Ok(session.clone());
        }
        let session = self.core.versions.newest(place)?;
        self.sessions.insert(place.clone(), session.clone());
        Ok(session)
    }

    /// Makes an outcome part of the batch.
    fn accept(&mut self, mut outcome: Outcome) -> Result<Report, Error> {
        let mut containers = mem::take(&mut outcome.containers);
        let ended = outcome.ends.iter().map(|(place, ..)| place.0);
        for id in ended.chain(outcome.created.keys().copied()) {
            let unchanged = || ContainerState::clone(&self.containers[&id]);
            containers.entry(id).or_insert_with(unchanged);
        }
        if outcome.sessions.is_empty() && containers.is_empty() {
            return Ok(Report::nothing(self.revision));
        }
        for state in containers.values_mut() {
            state.count = counted(state, &outcome);
        }
        let change = |(place, after): (Place, Option<Arc<Record>>)| {
            let before = self.sessions.get(&place).expect("what is changed was looked at").clone();
            SessionChange { place, before, after }
        };
        let commit = Commit {
            revision: self.revision.next(),
            sessions: mem::take(&mut outcome.sessions).into_iter().map(change).collect(),
            containers: containers.values().cloned().map(Arc::new).collect(),
        };
        let weight = commit.weight();
        if weight > self.weight_max {
            let max = self.weight_max as u64;
            return Err(Error::Limit { limit: LimitKind::TransactionBytes, max });
        }
        self.weight += weight;
        self.revision = commit.revision;
        let mut report = Report::nothing(self.revision);
        report.merged = outcome.merged;
        let mut ended = Vec::new();
        for (place, record, reason) in outcome.ends {
            let state = &containers[&place.0];
            report.ended.push(EndedInfo {
                container: state.name.to_string(),
                key: place.1.clone(),
                id: record.id,
                reason,
            });
            let session = EndedSession {
                container: Arc::clone(&state.name),
                key: place.1,
                expiry: timeslice::bucket(record.slice_end, &state.policy),
                listener: state.policy.on_end.clone(),
                record,
            };
            ended.push((Arc::new(session), reason));
        }
        ended.sort_by(|(a, _), (b, _)| (a.expiry, &a.key).cmp(&(b.expiry, &b.key)));
        self.ended.extend(ended);
        self.started += outcome.created.values().sum::<u64>() as usize;
        for change in &commit.sessions {
            self.sessions.insert(change.place.clone(), change.after.clone());
        }
        for state in &commit.containers {
            self.containers.insert(state.id, Arc::clone(state));
        }
        self.commits.push(commit);
        Ok(report)
    }
}

/// How many sessions a container has after an outcome: ends count before creations.
fn counted(state: &ContainerState, outcome: &Outcome) -> u64 {
    let ended = outcome.ends.iter().filter(|(place, ..)| place.0 == state.id).count() as u64;
    let created = outcome.created.get(&state.id).copied().unwrap_or(0);
    (state.count + created).saturating_sub(ended)
}
