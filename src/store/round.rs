//! One batch in the making: each request is judged against the newest state, which what was judged
//! before it in the same batch is part of.
//!
//! Nothing here waits, writes or is seen by others; what comes out is a list of commits, and a
//! verdict for each request. What becomes of one key under one transaction is decided in `judge.rs`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::engine::{Commit, Engine, SessionChange};
use crate::error::{Conflict, ConflictReason, Error, LimitKind};
use crate::model::clock::Time;
use crate::model::container::{ContainerId, ContainerState, Place};
use crate::model::draft::Draft;
use crate::model::key::Key;
use crate::model::policy::{AtLimit, Durability, Policy};
use crate::model::session::{Record, Revision};
use crate::model::timeslice;
use crate::store::commit::{Intent, Work};
use crate::store::core::Core;
use crate::store::courier::EndBatch;
use crate::store::ends::{self, ENDS};
use crate::store::events::Event;
use crate::store::judge::{Circumstances, Objection, judge};
use crate::store::listeners::{EndReason, EndedSession};
use crate::store::outcome::{EndedInfo, MergedSession, Report};
use crate::store::pinned::{Page, Row, first_row};
use crate::store::room::{self, Look, Room};

/// One batch in the making: the newest state, with what the transactions judged so far have done.
pub(crate) struct Round<'a> {
    pub(super) core: &'a Core,
    pub now: Time,
    /// The revision of the last commit.
    pub revision: Revision,
    pub commits: Vec<Commit>,
    /// The sessions that were looked at, as the batch has left them so far.
    sessions: HashMap<Place, Option<Arc<Record>>>,
    pub(super) containers: BTreeMap<ContainerId, Arc<ContainerState>>,
    pub ended: EndBatch,
    /// Those of them that are not written down although a listener is to be told.
    pub unwritten: usize,
    /// Sessions that expire soon.
    pub warnings: Vec<Event>,
    /// Who makes room in full containers.
    pub rooms: Rooms,
    /// Whether sessions of a container may have expired, for those that it was asked of: it takes a
    /// look at the index.
    due: BTreeMap<ContainerId, bool>,
    pub started: usize,
    pub made: Vec<(Arc<str>, ContainerId)>,
    /// The strictest level that a commit asks for.
    pub durability: Durability,
    /// What the commits weigh, and what a batch may.
    weight: usize,
    weight_max: usize,
    /// A request asked for more than is left, and is to be judged again when the batch is written.
    pub has_overflowed: bool,
    /// What it may weigh with more in it than ends: less where the disk is full.
    room: usize,
    /// Whether there is nothing but ends in it, none of them written down.
    pub only_ends: bool,
}

/// Who makes room in containers that were full.
pub(crate) type Rooms = BTreeMap<ContainerId, Room>;

/// What a commit is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It ends sessions, and so makes room.
    Ends,
    Any,
}

/// What one transaction would do, before it is accepted.
#[derive(Default)]
pub(super) struct Outcome {
    /// The store's own notes among them.
    pub sessions: Vec<(Place, Option<Arc<Record>>)>,
    pub containers: BTreeMap<ContainerId, ContainerState>,
    pub ends: Vec<(Place, Arc<Record>, EndReason)>,
    pub warnings: Vec<Event>,
    pub created: BTreeMap<ContainerId, u64>,
    pub merged: Vec<MergedSession>,
    /// Whoever asked for it can ask for less at a time.
    is_divisible: bool,
}

impl<'a> Round<'a> {
    pub(crate) fn new(core: &'a Core, engine: &dyn Engine, rooms: Rooms) -> Self {
        let containers = core.versions.containers();
        Round {
            core,
            now: core.now(),
            revision: core.snapshots.published(),
            commits: Vec::new(),
            sessions: HashMap::new(),
            containers: containers.into_iter().map(|state| (state.id, state)).collect(),
            ended: Vec::new(),
            unwritten: 0,
            warnings: Vec::new(),
            rooms,
            due: BTreeMap::new(),
            started: 0,
            made: Vec::new(),
            durability: Durability::Relaxed,
            weight: 0,
            weight_max: engine.weight_max(),
            has_overflowed: false,
            room: engine.room(),
            only_ends: true,
        }
    }

    /// Whether the batch gets no more. Where room is short there has been enough for what is in it:
    /// more would take from that.
    pub(crate) fn is_full(&self) -> bool {
        let is_short = self.room < usize::MAX && !self.only_ends;
        self.weight > self.weight_max || is_short
    }

    pub(crate) fn judge(&mut self, work: &Work) -> Result<Report, Error> {
        let (mut durability, mut kind) = (Durability::Immediate, Kind::Any);
        let (before, mut refiled) = (self.commits.len(), Vec::new());
        let outcome = match work {
            Work::Transaction(intent) => {
                self.core.check_revoked(intent.snapshot)?;
                intent.later.iter().try_for_each(|seen| self.core.check_revoked(*seen))?;
                durability = intent.durability(&self.containers);
                if intent.only_ends() {
                    kind = Kind::Ends;
                }
                self.judge_transaction(intent)?
            }
            Work::Make { name, policy } => self.make(name, policy),
            Work::Sweep { container, rows } if !container.is_container() => {
                (durability, kind) = (Durability::Relaxed, Kind::Ends);
                self.prune(*container, rows)?
            }
            Work::Sweep { container, rows } => {
                let policy = Arc::clone(&self.containers[container].policy);
                let mut outcome = Outcome { is_divisible: rows.len() > 1, ..Outcome::default() };
                for (bucket, key) in rows {
                    let filed_here = |record: &Record| record.bucket == *bucket;
                    self.sweep(&mut outcome, (*container, key.clone()), &policy, filed_here);
                }
                kind = Kind::Ends;
                outcome
            }
            Work::Refile { container, policy: revision, from, keys, next } => {
                let state = Arc::clone(&self.containers[container]);
                let (policy, now) = (Arc::clone(&state.policy), self.now);
                let mut outcome = Outcome { is_divisible: keys.len() > 1, ..Outcome::default() };
                // Otherwise the policy has changed again, and the walk begins anew.
                if state.policy_revision == *revision && state.refile_from.as_ref() == Some(from) {
                    for key in keys {
                        let late = |record: &Record| {
                            record.bucket > timeslice::bucket(record.expiry(&policy), &policy, now)
                        };
                        self.sweep(&mut outcome, (*container, key.clone()), &policy, late);
                    }
                    // The place to go on from is noted by itself: a session may have only just fitted
                    // into a commit.
                    refiled = self.accept(outcome, kind)?.ended;
                    outcome = Outcome::default();
                    let mut state = ContainerState::clone(&self.containers[container]);
                    state.refile_from = next.clone();
                    outcome.containers.insert(*container, state);
                }
                outcome
            }
            Work::Acknowledge { ends } => {
                let mut outcome = Outcome::default();
                for key in ends {
                    let place = (ENDS, key.clone());
                    // An attempt that failed may have succeeded.
                    if let Ok(Some(_)) = self.session(&place) {
                        outcome.sessions.push((place, None));
                    }
                }
                // It makes room, and what is not forgotten is told again.
                kind = Kind::Ends;
                outcome
            }
            Work::Recount { container, uncounted } => {
                // What was committed since was counted, so the difference is the same.
                let mut state = ContainerState::clone(&self.containers[container]);
                state.count = state.count.saturating_add_signed(*uncounted);
                let containers = [(*container, state)].into();
                Outcome { containers, ..Outcome::default() }
            }
        };
        let mut report = self.accept(outcome, kind)?;
        report.ended.append(&mut refiled);
        // A transaction that finds things as it wants them to be rests on who has made them so.
        if self.commits.len() > before || matches!(work, Work::Transaction(_)) {
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
            if state.policy.is_outlived_under(&change.policy) {
                let policy = Arc::clone(&state.policy);
                let mut ends = Outcome::default();
                self.end_due(&mut ends, *id, &policy, &BTreeMap::new(), u64::MAX)?;
                self.accept(ends, Kind::Ends)?;
            }
        }
        let revision = self.revision.next();
        let mut outcome = Outcome::default();
        let mut departures = Vec::new();
        let forwarded = self.forwarded(&intent.drafts)?;
        let drafts = forwarded.as_ref().unwrap_or(&intent.drafts);
        for (id, change) in &intent.policies {
            let mut state = ContainerState::clone(&self.containers[id]);
            state.set_policy(Arc::clone(&change.policy), revision);
            outcome.containers.insert(*id, state);
        }
        for (place, draft) in drafts {
            let stored = match forwarded.is_some() {
                // It says what lay elsewhere.
                true => self.session(place)?,
                false => self.session_found(place, draft, intent.snapshot)?,
            };
            let is_given_up =
                draft.lives.iter().any(|life| life.created_here) && self.is_given_up(place)?;
            let before = Arc::clone(&self.containers[&place.0]);
            let circumstances = Circumstances {
                container: outcome.containers.get(&place.0).unwrap_or(&before),
                before: &before.policy,
                is_given_up,
                resolvers: &self.core.resolvers,
                later_wins: intent.later_wins,
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
                    match self.accept(end, Kind::Ends) {
                        Ok(_) => error,
                        Err(error) => error,
                    }
                }
            })?;
            if judgement.record != stored {
                outcome.sessions.push((place.clone(), judgement.record));
            }
            departures.extend(judgement.departs.map(|departure| (place.clone(), departure)));
            let end = |(record, reason)| (place.clone(), record, reason);
            outcome.ends.extend(judgement.ends.into_iter().map(end));
            outcome.merged.extend(judgement.merged);
            if judgement.created > 0 {
                *outcome.created.entry(place.0).or_default() += judgement.created;
            }
        }
        for (from, departure) in departures {
            self.arrive(from, departure, &mut outcome)?;
        }
        self.settle_principals(intent, drafts, &mut outcome)?;
        for id in outcome.created.keys().copied().collect::<Vec<_>>() {
            self.make_room(&mut outcome, id, drafts)?;
        }
        Ok(outcome)
    }

    /// Makes room for what an outcome creates in a container, if that is full. Sessions that have
    /// drafts are spared.
    fn make_room(
        &mut self,
        outcome: &mut Outcome,
        id: ContainerId,
        drafts: &BTreeMap<Place, Draft>,
    ) -> Result<(), Error> {
        let before = Arc::clone(&self.containers[&id]);
        let state = outcome.containers.get(&id).unwrap_or(&before);
        let (policy, policy_revision) = (Arc::clone(&state.policy), state.policy_revision);
        let (limit, is_late) = (policy.limit, state.refile_from.is_some());
        let excess = |outcome: &Outcome| counted(&before, outcome).saturating_sub(limit);
        if limit == 0 || excess(outcome) == 0 {
            return Ok(());
        }
        // What is due comes first.
        if self.is_anyone_due(&before, &policy)? {
            self.end_due(outcome, id, &policy, drafts, excess(outcome))?;
        }
        let mut allowed = limit;
        if policy.at_limit == AtLimit::EvictOldest && excess(outcome) > 0 {
            // Where the limit was lowered the container shrinks little by little.
            allowed = limit.max(before.count);
            let most = counted(&before, outcome).saturating_sub(allowed) + SHRINK;
            let wanted = usize::try_from(excess(outcome).min(most)).unwrap_or(usize::MAX);
            let room = self.rooms.remove(&id).filter(|room| room.is_of(policy_revision));
            let room = room.unwrap_or_else(|| Room::new(policy_revision, is_late, room::PAGE));
            self.evict(outcome, id, &policy, room, drafts, wanted)?;
        }
        match counted(&before, outcome) > allowed {
            true => Err(Error::Limit { limit: LimitKind::Sessions, max: limit }),
            false => Ok(()),
        }
    }

    /// Ends those of a container that would expire first, without those that have drafts.
    fn evict(
        &mut self,
        outcome: &mut Outcome,
        id: ContainerId,
        policy: &Policy,
        mut room: Room,
        drafts: &BTreeMap<Place, Draft>,
        wanted: usize,
    ) -> Result<(), Error> {
        // What the transaction has done besides its drafts is done.
        let changed: BTreeSet<&Place> = outcome.sessions.iter().map(|(place, _)| place).collect();
        let look = |key: &Key| {
            let place = (id, key.clone());
            if drafts.contains_key(&place) || changed.contains(&place) {
                return Look::Spared;
            }
            let session = match self.sessions.get(&place) {
                Some(session) => session.clone(),
                None => self.core.versions.newest(&place).unwrap_or_default(),
            };
            match session {
                Some(record) if record.is_expired(policy, self.now) => Look::Candidate(record),
                // It is somebody's, and does not go for the sake of anybody.
                Some(record) if record.principal().is_some() => Look::Gone,
                Some(record) => Look::Candidate(record),
                None => Look::Gone,
            }
        };
        let by_key = room.is_by_key();
        let page = |from: &Row, max| {
            let (mut rows, next) = match by_key {
                true => self.keys_as_rows(id, from, max)?,
                false => self.core.versions.filed(id, from, max)?,
            };
            let is_here = |row: &Row| row >= from && next.as_ref().is_none_or(|next| row < next);
            let here = self.sessions.iter().filter(|((container, _), _)| *container == id);
            let row = |((_, key), session): (&Place, &Option<Arc<Record>>)| {
                Some(Room::row(by_key, key, session.as_ref()?)).filter(is_here)
            };
            rows.extend(here.filter_map(row));
            Ok((rows, next))
        };
        let chosen = room.choose(wanted, policy, page, look)?;
        self.rooms.insert(id, room);
        for key in chosen {
            let place = (id, key);
            let Some(record) = self.session(&place)? else { continue };
            let reason = match record.is_expired(policy, self.now) {
                true => EndReason::Expired,
                false => EndReason::Evicted,
            };
            outcome.sessions.push((place.clone(), None));
            outcome.ends.push((place, record, reason));
        }
        Ok(())
    }

    /// The keys of a container as rows of the index, all of them at the beginning of time.
    fn keys_as_rows(
        &self,
        id: ContainerId,
        (_, from): &Row,
        max: usize,
    ) -> Result<Page<Row, Row>, Error> {
        let pinned = self.core.versions.pin(id, self.core.snapshots.published());
        let (keys, next) = pinned.keys(id, from, max)?;
        Ok((keys.into_iter().map(|key| (0, key)).collect(), next.map(|key| (0, key))))
    }

    /// Whether somebody may have expired under `policy`: mostly nobody has, and that is seen at once.
    fn is_anyone_due(&mut self, state: &ContainerState, policy: &Policy) -> Result<bool, Error> {
        if state.refile_from.is_some() || policy.is_outlived_under(&state.policy) {
            return Ok(true);
        }
        if let Some(is_due) = self.due.get(&state.id) {
            return Ok(*is_due);
        }
        let (published, now) = (self.core.snapshots.published(), self.now.as_secs());
        let (rows, next) = self.core.versions.due(state.id, published, now, &first_row(), 1)?;
        let is_due = !rows.is_empty() || next.is_some();
        self.due.insert(state.id, is_due);
        Ok(is_due)
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
        // What the transaction has done besides its drafts must not be done again.
        let changed = outcome.sessions.iter().map(|(place, _)| place.clone());
        let changed: BTreeSet<_> = changed.collect();
        pinned.suspects(&state, policy, now, |key| {
            let place = (id, key);
            if !except.contains_key(&place) && !changed.contains(&place) {
                self.sweep(outcome, place, policy, |record| record.is_expired(policy, now));
            }
            Ok(match outcome.ends.len() >= enough {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
        })
    }

    fn make(&self, name: &Arc<str>, policy: &Arc<Policy>) -> Outcome {
        let mut outcome = Outcome::default();
        if self.containers.values().all(|state| state.name != *name) {
            let last = self.containers.keys().next_back().map_or(0, |id| id.0);
            let id = ContainerId(last + 1);
            let state = ContainerState {
                id,
                name: Arc::clone(name),
                policy: Arc::clone(policy),
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
            let mut filed = Record::clone(&record.lapsed(self.now));
            filed.file(policy, self.now);
            filed.revision = self.revision.next();
            if filed.bucket == record.bucket {
                return;
            }
            // Filed at its expiry now, so that it is told of once.
            let expiry = filed.expiry(policy);
            if let Some(expires) = expiry.filter(|_| timeslice::warns(expiry, policy, self.now)) {
                outcome.warnings.push(Event::Expiring {
                    container: self.containers[&place.0].name.to_string(),
                    key: place.1.clone(),
                    id: filed.id,
                    expires,
                });
            }
            outcome.sessions.push((place, Some(Arc::new(filed))));
        }
    }

    /// The session at a place as the batch has left it so far.
    pub(super) fn session(&mut self, place: &Place) -> Result<Option<Arc<Record>>, Error> {
        if let Some(session) = self.sessions.get(place) {
            return Ok(session.clone());
        }
        let session = self.core.versions.newest(place)?;
        self.sessions.insert(place.clone(), session.clone());
        Ok(session)
    }

    /// The same, for a transaction that has found a session there.
    fn session_found(
        &mut self,
        place: &Place,
        draft: &Draft,
        snapshot: Revision,
    ) -> Result<Option<Arc<Record>>, Error> {
        let found = draft.lives.first().filter(|_| draft.has_base());
        let (Some(life), false) = (found, self.sessions.contains_key(place)) else {
            return self.session(place);
        };
        let session = self.core.versions.newest_since(place, &life.base, snapshot)?;
        self.sessions.insert(place.clone(), session.clone());
        Ok(session)
    }

    /// Makes an outcome part of the batch.
    fn accept(&mut self, mut outcome: Outcome, kind: Kind) -> Result<Report, Error> {
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
        let mut sessions = mem::take(&mut outcome.sessions).into_iter().map(change).collect();
        self.note_principals(&mut sessions)?;
        let mut commit = Commit {
            revision: self.revision.next(),
            sessions,
            containers: containers.values().cloned().map(Arc::new).collect(),
        };
        let mut weight = commit.weight();
        let max = self.weight_max as u64;
        let too_much = || Err(Error::Limit { limit: LimitKind::TransactionBytes, max });
        if weight > self.weight_max {
            return too_much();
        }
        // Only after other commits of the same request: before it there is room for one, however large.
        let batch_max = self.weight_max.saturating_mul(2);
        self.has_overflowed = self.weight + weight > batch_max;
        if self.has_overflowed || kind != Kind::Ends && self.weight + weight > self.room {
            return Err(Error::Full);
        }
        let mut report = Report::nothing(commit.revision);
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
            let record = record.lapsed(self.now);
            let expiry = record.expiry(&state.policy).map_or(timeslice::NEVER, Time::as_secs);
            let session = EndedSession {
                container: Arc::clone(&state.name),
                key: place.1,
                listener: state.policy.on_end.clone(),
                record,
                row: None,
            };
            ended.push((expiry, place.0, session, reason));
        }
        // In the order in which they are told.
        ended.sort_by(|(a, _, one, _), (b, _, other, _)| (a, &one.key).cmp(&(b, &other.key)));
        let (mut written, mut unwritten) = (false, 0);
        for (nth, (_, id, session, reason)) in (0..).zip(&mut ended) {
            let Some(row) = self.written_end(*id, session, *reason, commit.revision, nth) else {
                continue;
            };
            let heavier = weight + row.weight();
            if heavier > self.weight_max && outcome.is_divisible {
                return too_much();
            }
            if heavier > self.weight_max || self.weight + heavier > self.room {
                // An end needs nobody's leave.
                unwritten += 1;
                continue;
            }
            if self.weight + heavier > batch_max {
                self.has_overflowed = true;
                return Err(Error::Full);
            }
            (weight, written) = (heavier, true);
            session.row = Some(row.place.1.clone());
            commit.sessions.push(row);
        }
        self.ended
            .extend(ended.into_iter().map(|(_, _, session, reason)| (Arc::new(session), reason)));
        self.unwritten += unwritten;
        self.only_ends &= kind == Kind::Ends && !written;
        self.weight += weight;
        self.revision = commit.revision;
        self.started += outcome.created.values().sum::<u64>() as usize;
        self.warnings.append(&mut outcome.warnings);
        for change in &commit.sessions {
            let SessionChange { place: (id, key), before, after } = change;
            if let Some(room) = self.rooms.get_mut(id) {
                room.note(key, before.as_deref(), after.as_deref());
            }
            self.sessions.insert(change.place.clone(), change.after.clone());
        }
        for state in &commit.containers {
            if self.containers.insert(state.id, Arc::clone(state)).is_none() {
                self.made.push((Arc::clone(&state.name), state.id));
            }
        }
        self.commits.push(commit);
        Ok(report)
    }

    /// What is to be written down of an end, if there is a listener to be told.
    fn written_end(
        &self,
        container: ContainerId,
        session: &EndedSession,
        reason: EndReason,
        revision: Revision,
        nth: u32,
    ) -> Option<SessionChange> {
        let listener = session.listener.as_ref()?;
        // Nobody would ever hear of it, unless this process leaves the telling to others.
        if self.core.bounds.end_attempts > 0 {
            self.core.listeners.on_end.get(listener)?;
        }
        let record = ends::record(session, container, listener, reason, revision);
        let place = (ENDS, ends::key(revision, nth));
        Some(SessionChange { place, before: None, after: Some(Arc::new(record)) })
    }
}

/// How many more sessions than need be one commit ends in a container that is over its limit.
const SHRINK: u64 = 64;

/// How many sessions a container has after an outcome: ends count before creations. A rotation is
/// neither.
fn counted(state: &ContainerState, outcome: &Outcome) -> u64 {
    let is_one_less = |(place, _, reason): &&(Place, Arc<Record>, EndReason)| {
        place.0 == state.id && *reason != EndReason::Rotated
    };
    let ended = outcome.ends.iter().filter(is_one_less).count() as u64;
    let created = outcome.created.get(&state.id).copied().unwrap_or(0);
    state.count.saturating_add(created).saturating_sub(ended)
}
