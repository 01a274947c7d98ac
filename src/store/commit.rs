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
//! *Publish*: only now do new transactions see the batch. Nothing is visible before it is durable.
//!
//! Housekeeping goes the same way: a sweep is a client that asks for sessions to be ended, and
//! the committer looks for itself whether their time is really over.

use std::collections::BTreeMap;
use std::mem;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crossbeam_channel::Receiver;

use crate::engine::{Batch, Commit, Engine};
use crate::error::{Conflict, ConflictReason, Error, LimitKind};
use crate::model::clock::Time;
use crate::model::container::{ContainerId, ContainerState, Place};
use crate::model::draft::Draft;
use crate::model::key::Key;
use crate::model::policy::Policy;
use crate::model::session::{Record, Revision};
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
    pub drafts: BTreeMap<Place, Draft>,
    pub policies: BTreeMap<ContainerId, PolicyChange>,
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
}

/// How many requests become one batch at the most.
const BATCH_MAX: usize = 1_024;

/// Runs until the queue is closed and empty.
pub(crate) fn run(core: &Core, engine: &dyn Engine, queue: &Receiver<Request>) {
    while let Ok(first) = queue.recv() {
        let mut requests = vec![first];
        requests.extend(queue.try_iter().take(BATCH_MAX - 1));
        core.there_is_room();
        commit(core, engine, requests);
        core.tidy();
    }
    // What has been seen to expire must stay expired, even if the clock is set back meanwhile.
    if core.fence.get().is_none() {
        let (time, revision) = (core.now(), core.snapshots.published());
        if let Err(error) = apply(engine, &Batch { time, revision, commits: Vec::new() }) {
            core.fence.get_or_init(|| error);
        }
    }
}

/// Hands a batch to the engine. One that panics, as a database on damaged pages may, has failed.
fn apply(engine: &dyn Engine, batch: &Batch) -> Result<(), Error> {
    catch_unwind(AssertUnwindSafe(|| engine.apply(batch))).unwrap_or_else(|_| {
        Err(Error::Corrupt { table: "engine", reason: "it panicked during a commit".to_owned() })
    })
}

/// Makes one batch of the requests and answers them.
fn commit(core: &Core, engine: &dyn Engine, requests: Vec<Request>) {
    if let Some(error) = core.fence.get() {
        return requests.into_iter().for_each(|request| request.reply.send(Err(error.share())));
    }
    let mut round = Round::new(core);
    let verdicts: Vec<_> =
        requests.into_iter().map(|Request { work, reply }| (reply, round.judge(work))).collect();
    let Round { now, commits, sessions, ended, started, revision, made, .. } = round;
    if !commits.is_empty() {
        for commit in &commits {
            core.versions.stage(commit, |place| sessions[place].before.clone());
        }
        let batch = Batch { time: now, revision, commits };
        if let Err(error) = apply(engine, &batch) {
            core.versions.unstage(core.snapshots.published());
            let error = core.fence.get_or_init(|| error);
            // Those who wanted nothing written are as unlucky: they may have seen the batch.
            return verdicts.into_iter().for_each(|(reply, _)| reply.send(Err(error.share())));
        }
        if !made.is_empty() {
            core.names.write().expect("nothing panics while it is held").extend(made);
        }
        core.ends.expect(&ended);
        core.snapshots.publish(revision);
        let counters = &core.counters;
        Counters::add(&counters.batches, 1);
        Counters::add(&counters.commits, batch.commits.len());
        Counters::add(&counters.started, started);
        Counters::add(&counters.ended, ended.len());
        let expired = ended.iter().filter(|(_, reason)| *reason == EndReason::Expired).count();
        Counters::add(&counters.expired, expired);
        core.ends.send(ended);
    }
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
    /// The sessions that were looked at.
    sessions: BTreeMap<Place, Looked>,
    containers: BTreeMap<ContainerId, Arc<ContainerState>>,
    ended: EndBatch,
    started: usize,
    made: Vec<(Arc<str>, ContainerId)>,
}

/// A session as it was before the batch, and as the batch has left it so far.
struct Looked {
    before: Option<Arc<Record>>,
    now: Option<Arc<Record>>,
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
    fn new(core: &'a Core) -> Self {
        let containers = core.versions.containers();
        Round {
            core,
            now: core.now(),
            revision: core.snapshots.published(),
            commits: Vec::new(),
            sessions: BTreeMap::new(),
            containers: containers.into_iter().map(|state| (state.id, state)).collect(),
            ended: Vec::new(),
            started: 0,
            made: Vec::new(),
        }
    }

    fn judge(&mut self, work: Work) -> Result<Report, Error> {
        let outcome = match work {
            Work::Transaction(intent) => self.judge_transaction(&intent)?,
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
        Ok(self.accept(outcome))
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
                self.accept(ends);
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
                    self.accept(end);
                    error
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
        if let Some(looked) = self.sessions.get(place) {
            return Ok(looked.now.clone());
        }
        let session = self.core.versions.newest(place)?;
        let looked = Looked { before: session.clone(), now: session.clone() };
        self.sessions.insert(place.clone(), looked);
        Ok(session)
    }

    /// Makes an outcome part of the batch.
    fn accept(&mut self, mut outcome: Outcome) -> Report {
        let mut containers = mem::take(&mut outcome.containers);
        let ended = outcome.ends.iter().map(|(place, ..)| place.0);
        for id in ended.chain(outcome.created.keys().copied()) {
            let unchanged = || ContainerState::clone(&self.containers[&id]);
            containers.entry(id).or_insert_with(unchanged);
        }
        if outcome.sessions.is_empty() && containers.is_empty() {
            return Report::nothing(self.revision);
        }
        self.revision = self.revision.next();
        for state in containers.values_mut() {
            state.count = counted(state, &outcome);
        }
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
        for (place, session) in &outcome.sessions {
            let looked = self.sessions.get_mut(place);
            looked.expect("what is changed was looked at").now = session.clone();
        }
        let containers: Vec<_> = containers.into_values().map(Arc::new).collect();
        for state in &containers {
            self.containers.insert(state.id, Arc::clone(state));
        }
        let sessions = outcome.sessions;
        self.commits.push(Commit { revision: self.revision, sessions, containers });
        report
    }
}

/// How many sessions a container has after an outcome: ends count before creations.
fn counted(state: &ContainerState, outcome: &Outcome) -> u64 {
    let ended = outcome.ends.iter().filter(|(place, ..)| place.0 == state.id).count() as u64;
    let created = outcome.created.get(&state.id).copied().unwrap_or(0);
    (state.count + created).saturating_sub(ended)
}
