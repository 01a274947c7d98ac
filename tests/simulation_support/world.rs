//! One client on a simulated disk: what it does, what it knows, and what it therefore expects.
//!
//! A world is a store, the model of what it should hold, and a clock that only the world turns.
//! Before and after every commit a mark goes into the disk's record: which states a power cut at
//! this point may leave.
//!
//! ```text
//!   commit begins          acknowledged                    a relaxed one
//!       |   write   sync        |                     |   write      |
//!   ----+---------------------- + --------------------+--------------+------
//!   [4] |        [4, 5]         |        [5]          |    [5, 6]    |  [5, 6]
//! ```
//!
//! The same for ends. From the acknowledgement of the commit until the listener has been called an end
//! is *owed*: the next process must tell it. Then it may tell it again, until that is acknowledged too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sessile::{
    Clock, CommitId, Container, Durability, EndReason, Error, Fate, Key, LimitKind, ManualClock,
    Options, Policy, SessionId, Store, Time,
};

use super::disk::{Image, SimDisk};
use super::intent::Intent;
use super::life::Deed;
use super::model::{ContainerState, Ends, Seen, State, Trouble, look};
use super::outcome::{Prediction, Refusal};

/// What a client knows at some point of a disk's record.
#[derive(Clone, Debug)]
pub(crate) struct Knowledge {
    /// The states that a power cut may leave now, oldest first, by their number in the history.
    pub(crate) allowed: Arc<[usize]>,
    /// Sessions whose end may be under way.
    pub(crate) may_end: Arc<BTreeSet<SessionId>>,
    /// Sessions of whose end nobody was told, and somebody must be.
    pub(crate) owed: Arc<BTreeSet<SessionId>>,
    /// Sessions of whose end nobody must be told again.
    pub(crate) acknowledged: Arc<BTreeSet<SessionId>>,
    pub(crate) now: Time,
    /// The greatest number of a commit that was acknowledged.
    pub(crate) revision: u64,
}

pub(crate) type Disk = SimDisk<Knowledge>;

/// How a store is opened.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) segment_bytes: u64,
    pub(crate) memory_max: usize,
    /// How many batches the log may be ahead of the tables when it need not be.
    pub(crate) fold_every: u64,
    /// How far the clock may jump ahead and be believed; any distance if nothing is said.
    pub(crate) clock_ahead_max: Option<Duration>,
}

impl Default for Setup {
    fn default() -> Self {
        Setup { segment_bytes: 4096, memory_max: 1 << 20, fold_every: 1, clock_ahead_max: None }
    }
}

/// What happens next.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Makes a container, or changes its settings.
    Container {
        name: &'static str,
        policy: Policy,
    },
    /// Begins a transaction in a slot; the one that was there is given up.
    Begin(usize),
    Act {
        slot: usize,
        container: &'static str,
        key: &'static str,
        deed: Deed,
    },
    /// Ends all sessions of a principal.
    EndAll {
        slot: usize,
        container: &'static str,
        principal: &'static str,
    },
    SetPolicy {
        slot: usize,
        container: &'static str,
        policy: Policy,
    },
    /// Commits; without a durability it is what the containers say.
    Commit {
        slot: usize,
        durability: Option<Durability>,
    },
    Advance {
        secs: u64,
    },
    Sweep,
    Fold,
    /// Closes the store and opens it again.
    Reopen,
    /// Kills the process and starts another one.
    Kill,
}

/// The directory of every simulated store; the one above it is there already.
pub(crate) const DIRECTORY: &str = "/sessions";

/// When every simulation begins: the start of a slice.
pub(crate) const START: Time = Time::from_secs(1_000_000_800);

/// How long to wait for a store that has met a failure. It takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// A transaction for each slot.
const SLOTS: usize = 3;

/// Ends that listeners were told of, in their order.
type Told = Arc<Mutex<Vec<(SessionId, EndReason)>>>;

/// Something that was begun, and that nobody knows the end of.
#[derive(Clone, Debug)]
struct Doubt {
    commit: Option<CommitId>,
    /// The number of the state that it leads to.
    after: usize,
    ends: Ends,
    may_end: BTreeSet<SessionId>,
}

pub(crate) struct World {
    pub(crate) disk: Disk,
    pub(crate) setup: Setup,
    pub(crate) clock: ManualClock,
    pub(crate) store: Option<Store>,
    told: Told,
    /// Whose end this process has been told of, or nobody must be told of again.
    ended: BTreeSet<SessionId>,
    pub(crate) owed: BTreeSet<SessionId>,
    pub(crate) acknowledged: Arc<BTreeSet<SessionId>>,
    /// How many ends this process did not write down, because the log is so small.
    unwritten: u64,
    /// How many ends were told by the process after the one that they were committed by.
    pub(crate) inherited: u64,
    /// Every state that was ever expected, those that came to nothing included.
    pub(crate) history: Vec<Arc<State>>,
    /// Those that a power cut may leave now. The last one is what the store shows.
    pub(crate) allowed: Vec<usize>,
    slots: Vec<Option<Intent>>,
    doubt: Option<Doubt>,
    /// Whose end was under way when the disk was found.
    pub(crate) unsettled: BTreeSet<SessionId>,
    /// The greatest number of a commit that was acknowledged.
    pub(crate) revision: u64,
    /// When this was last swept.
    swept: Time,
    /// What was shown that is to be shown once.
    shown: BTreeSet<i64>,
    /// How often what has happened.
    pub(crate) happened: BTreeMap<&'static str, u64>,
    /// So that session ids differ from process to process.
    seed: u64,
}

impl World {
    /// A world on a disk that somebody else has left in one of these states.
    pub(crate) fn found(
        disk: Disk,
        setup: Setup,
        seed: u64,
        now: Time,
        allowed: Vec<Arc<State>>,
        unsettled: BTreeSet<SessionId>,
    ) -> Self {
        let world = World {
            disk,
            setup,
            clock: ManualClock::new(now),
            store: None,
            told: Told::default(),
            ended: BTreeSet::new(),
            owed: BTreeSet::new(),
            acknowledged: Arc::default(),
            unwritten: 0,
            inherited: 0,
            allowed: (0..allowed.len()).collect(),
            history: allowed,
            slots: (0..SLOTS).map(|_| None).collect(),
            doubt: None,
            unsettled,
            revision: 0,
            swept: Time::default(),
            shown: BTreeSet::new(),
            happened: BTreeMap::new(),
            seed,
        };
        world.mark(&BTreeSet::new());
        world
    }

    /// An empty disk.
    pub(crate) fn empty(setup: Setup, seed: u64, traced: bool) -> Self {
        let disk = Disk::new(Image::default(), traced);
        World::found(disk, setup, seed, START, vec![Arc::default()], BTreeSet::new())
    }

    pub(crate) fn store(&self) -> &Store {
        self.store.as_ref().expect("the world is open")
    }

    /// What the store shows.
    pub(crate) fn state(&self) -> Arc<State> {
        Arc::clone(&self.history[self.newest()])
    }

    fn newest(&self) -> usize {
        *self.allowed.last().expect("there is always a state")
    }

    pub(crate) fn options(&mut self) -> Options {
        self.seed = self.seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let told = Arc::clone(&self.told);
        Options::new()
            .disk(self.disk.clone())
            .segment_bytes(self.setup.segment_bytes)
            .memory_max(self.setup.memory_max)
            .fold_inline(self.setup.fold_every)
            .sweep_every(None)
            // Of a clock that the world turns: only `resume` does.
            .sync_delay(Duration::from_millis(1))
            .clock(self.clock.clone())
            .clock_ahead_max(self.setup.clock_ahead_max.unwrap_or(Duration::MAX))
            .seed(self.seed)
            .on_end("record", move |_, session, reason| {
                told.lock().unwrap().push((session.id(), reason));
                Ok(())
            })
    }

    /// Opens the store and looks which of the allowed states it shows.
    pub(crate) fn open(&mut self) -> Result<(), Trouble> {
        self.ended = BTreeSet::clone(&self.acknowledged);
        self.unwritten = 0;
        self.store = Some(self.options().open(Path::new(DIRECTORY))?);
        let inherited = self.inherit()?;
        self.check_index()?;
        // What it shows it has made durable.
        self.allowed = self.recognize()?;
        let (state, now) = (self.state(), self.store().now());
        let live = &state.unended() - &state.due(now);
        if let Some(id) = live.intersection(&inherited).next() {
            return Err(format!("the end of {id} was told, and it lives").into());
        }
        self.mark(&BTreeSet::new());
        Ok(())
    }

    /// Listens to what this process has to tell of the ones before it.
    fn inherit(&mut self) -> Result<BTreeSet<SessionId>, Trouble> {
        let (owed, failed) = (std::mem::take(&mut self.owed), self.disk.failed());
        // From now on they may have been told.
        self.mark(&BTreeSet::new());
        self.store().settle();
        let inherited: BTreeSet<_> = self.hear()?.into_iter().map(|(id, _)| id).collect();
        self.inherited += inherited.len() as u64;
        self.owed = &owed - &inherited;
        if self.disk.failed() == failed {
            self.check_owed()?;
            self.acknowledged = Arc::new(self.ended.clone());
        }
        Ok(inherited)
    }

    fn check_owed(&self) -> Result<(), Trouble> {
        match self.owed.first() {
            Some(id) => Err(format!("nobody was told of the end of {id}").into()),
            None => Ok(()),
        }
    }

    /// What listeners were told since they were last asked.
    pub(crate) fn hear(&mut self) -> Result<Vec<(SessionId, EndReason)>, Trouble> {
        let told = std::mem::take(&mut *self.told.lock().unwrap());
        match told.iter().find(|(id, _)| !self.ended.insert(*id)) {
            Some((id, _)) => Err(format!("the end of {id} was told twice").into()),
            None => Ok(told),
        }
    }

    /// Which of the allowed states the store shows: several, if they look the same.
    fn recognize(&self) -> Result<Vec<usize>, Trouble> {
        let (now, seen) = (self.store().now(), look(self.store())?);
        let is_seen = |nth: &usize| self.history[*nth].seen(now) == seen;
        let found: Vec<_> = self.allowed.iter().copied().filter(is_seen).collect();
        if found.is_empty() {
            return Err(self.nothing_matches(&seen, now).into());
        }
        Ok(found)
    }

    fn nothing_matches(&self, seen: &Seen, now: Time) -> String {
        let mut text = format!("none of the {} allowed states is there", self.allowed.len());
        for nth in &self.allowed {
            let difference = difference(&self.history[*nth].seen(now), seen);
            text += &format!("\n  not state {nth}: {difference}");
        }
        let others = self.history.iter().enumerate().filter(|(_, state)| state.seen(now) == *seen);
        others.for_each(|(nth, _)| text += &format!("\n  but it is state {nth}"));
        text
    }

    /// Says in the disk's record what a power cut may leave from now on.
    pub(crate) fn mark(&self, may_end: &BTreeSet<SessionId>) {
        let mut may_end = may_end | &self.unsettled;
        may_end.extend(self.doubt.iter().flat_map(|doubt| &doubt.may_end));
        self.disk.mark(Knowledge {
            allowed: self.allowed.as_slice().into(),
            may_end: Arc::new(may_end),
            owed: Arc::new(self.owed.clone()),
            acknowledged: Arc::clone(&self.acknowledged),
            revision: self.revision,
            now: self.store.as_ref().map_or(self.clock.wall(), Store::now),
        });
    }

    /// A commit that leads to this state is under way.
    fn begun(&mut self, state: State, ends: &Ends, may_end: &BTreeSet<SessionId>) {
        self.history.push(Arc::new(state));
        self.allowed.push(self.history.len() - 1);
        self.doubt = Some(Doubt {
            commit: None,
            after: self.history.len() - 1,
            ends: ends.clone(),
            may_end: may_end.clone(),
        });
        self.mark(may_end);
    }

    /// It is done; `is_durable`: no power cut takes it back.
    fn done(&mut self, is_durable: bool) {
        if is_durable {
            self.allowed.drain(..self.allowed.len() - 1);
        }
        self.doubt = None;
        self.mark(&BTreeSet::new());
    }

    /// It came to nothing.
    fn refused(&mut self) {
        self.allowed.pop();
        self.doubt = None;
        self.mark(&BTreeSet::new());
    }

    /// It failed. What the error says decides whether there is a doubt.
    fn failed(&mut self, error: Error) -> Trouble {
        match &error {
            Error::Unknown { commit, .. } => {
                if let Some(doubt) = &mut self.doubt {
                    doubt.commit = Some(*commit);
                }
            }
            // The promise of all others is that nothing of it was written. Whoever was found to have
            // expired on the way may have ended.
            _ => {
                let may_end = self.doubt.iter().flat_map(|doubt| &doubt.may_end);
                self.unsettled.extend(may_end);
                self.refused();
            }
        }
        error.into()
    }

    /// Takes what listeners were told meanwhile out of the model: the ends that somebody wanted
    /// must be these, and whoever else ended must have been among those that `may_end`. Whose end
    /// is `durable`, it is known of.
    fn take_ends(
        &mut self,
        ends: &Ends,
        may_end: &BTreeSet<SessionId>,
        durable: &BTreeSet<SessionId>,
    ) -> Result<BTreeSet<SessionId>, Trouble> {
        let (late, failed) = (self.owed.clone(), self.disk.failed());
        let unwritten = self.store().stats().ends_unwritten;
        if std::mem::replace(&mut self.unwritten, unwritten) == unwritten {
            self.owed.extend(durable);
            self.mark(may_end);
        }
        // They are told, and not acknowledged yet.
        while self.store().stats().ends_pending > 0 {
            thread::yield_now();
        }
        self.owed.clone_from(&late);
        self.mark(may_end);
        self.store().settle();
        let told = self.hear()?;
        self.owed.retain(|id| !self.ended.contains(id));
        if self.disk.failed() == failed {
            self.acknowledged = Arc::new(self.ended.clone());
        }
        let told = told.into_iter().filter(|(id, _)| !late.contains(id));
        let (expired, wanted): (Ends, Ends) =
            told.partition(|(_, reason)| *reason == EndReason::Expired);
        let expired: BTreeSet<_> = expired.into_keys().collect();
        self.mark(if expired.is_empty() { &expired } else { may_end });
        if wanted != *ends {
            return Err(format!("ended: {wanted:?}, wanted: {ends:?}").into());
        }
        if let Some(id) = expired.difference(may_end).next() {
            return Err(format!("{id} was told to have expired, and it had not").into());
        }
        Ok(expired)
    }

    /// Corrects the newest state: these have ended too.
    fn expired(&mut self, ended: &BTreeSet<SessionId>) {
        if !ended.is_empty() {
            let before = self.state();
            let found = ended.iter().filter_map(|id| before.find(*id));
            let why: Vec<_> = found.map(|(session, policy)| session.outlived(policy)).collect();
            self.count(&why);
            let state = before.without(ended);
            self.history.push(Arc::new(state));
            // Ends are told when they are durable, and with them everything before.
            self.allowed = vec![self.history.len() - 1];
            self.mark(&BTreeSet::new());
        }
    }

    /// Compares what the store shows with the model.
    pub(crate) fn check(&self) -> Result<(), Trouble> {
        let now = self.store().now();
        let (expected, seen) = (self.state().seen(now), look(self.store())?);
        match expected == seen {
            true => Ok(()),
            false => Err(difference(&expected, &seen).into()),
        }
    }

    /// Records, expiry index and counts agree, as the tables and the log have them.
    pub(crate) fn check_index(&self) -> Result<(), Trouble> {
        match self.store().check()?.problems.first() {
            Some(problem) => Err(format!("not sound: {problem:?}").into()),
            None => Ok(()),
        }
    }

    fn container(&self, name: &str) -> Result<Container, Error> {
        self.store().container(name)
    }

    pub(crate) fn play(&mut self, step: &Step) -> Result<(), Trouble> {
        match step {
            Step::Container { name, policy } => self.make_container(name, policy)?,
            Step::Begin(slot) => {
                self.slots[*slot] = None;
                self.slots[*slot] = Some(Intent::begin(self.store(), self.state())?);
            }
            // Its container could not be made.
            Step::Act { container, .. }
            | Step::EndAll { container, .. }
            | Step::SetPolicy { container, .. }
                if !self.state().containers.contains_key(*container) => {}
            Step::Act { slot, container, key, deed } => {
                let (now, container) = (self.store().now(), self.container(container)?);
                if let Some(intent) = &mut self.slots[*slot] {
                    intent.act(&container, &Key::from(*key), deed, now)?;
                }
            }
            Step::EndAll { slot, container, principal } => {
                let (now, container) = (self.store().now(), self.container(container)?);
                if let Some(intent) = &mut self.slots[*slot] {
                    intent.end_all_of(&container, principal, now)?;
                }
            }
            Step::SetPolicy { slot, container, policy } => {
                let container = self.container(container)?;
                if let Some(intent) = &mut self.slots[*slot] {
                    intent.set_policy(&container, policy.clone())?;
                }
            }
            Step::Commit { slot, durability } => {
                if let Some(intent) = self.slots[*slot].take() {
                    self.commit(intent, *durability)?;
                }
            }
            Step::Advance { secs } => {
                self.clock.advance_secs(*secs);
                self.mark(&BTreeSet::new());
            }
            Step::Sweep => {
                self.sweep()?;
            }
            Step::Fold => {
                self.store().fold()?;
                self.done(true);
            }
            Step::Reopen => {
                self.close()?;
                self.open()?;
            }
            Step::Kill => {
                self.kill();
                // What was written survives its process, synced or not. Until the store is open
                // again a power cut may still take it back: the record says so.
                self.allowed.drain(..self.allowed.len() - 1);
                self.open()?;
            }
        }
        Ok(())
    }

    /// Closes the store, which makes everything durable.
    pub(crate) fn close(&mut self) -> Result<(), Trouble> {
        self.give_up();
        self.store.take().expect("the world is open").close()?;
        self.acknowledged = Arc::new(self.ended.clone());
        self.done(true);
        Ok(())
    }

    /// Ends the process without a word, and makes the disk fit for the next one.
    pub(crate) fn kill(&mut self) {
        self.give_up();
        self.disk = self.disk.kill();
        // It is dead already: whatever it does now has no effect.
        drop(self.store.take());
        self.told.lock().unwrap().clear();
        // Whatever ended in the last moment the next process tells when it is opened.
        if let Some(doubt) = &mut self.doubt {
            doubt.ends.clear();
        }
    }

    /// Drops all transactions.
    pub(crate) fn give_up(&mut self) {
        self.slots.fill_with(|| None);
    }

    fn make_container(&mut self, name: &str, policy: &Policy) -> Result<(), Trouble> {
        let (state, now) = (self.state(), self.store().now());
        if state.containers.get(name).is_some_and(|before| before.policy == *policy) {
            self.store().container_with(name, policy.clone())?;
            return Ok(());
        }
        let mut after = State::clone(&state);
        let new = || ContainerState::new(policy.clone());
        after.containers.entry(name.to_owned()).or_insert_with(new).set_policy(policy, now);
        let may_end = state.due(now);
        self.begun(after, &Ends::new(), &may_end);
        if let Err(error) = self.store().container_with(name, policy.clone()) {
            return Err(self.failed(error));
        }
        self.done(true);
        let expired = self.take_ends(&Ends::new(), &may_end, &BTreeSet::new())?;
        self.expired(&expired);
        Ok(())
    }

    /// Commits, and expects what the model says.
    fn commit(&mut self, intent: Intent, durability: Option<Durability>) -> Result<(), Trouble> {
        let now = self.store().now();
        let Prediction { verdict, ends, may_end, is_relaxed, happened } =
            intent.predict(&self.state(), durability, self.swept, now);
        let refusal = verdict.as_ref().err().copied();
        let state = verdict.unwrap_or_else(|_| State::clone(&self.state()));
        self.begun(state, &ends, &may_end);
        if let Some(durability) = durability {
            intent.txn.set_durability(durability)?;
        }
        let ended = match intent.txn.commit() {
            Ok(_) if let Some(refusal) = refusal => {
                return Err(format!("a commit that should be refused was not: {refusal:?}").into());
            }
            Ok(report) => {
                let revision = report.revision.get();
                let [.., before, after] = self.allowed[..] else { panic!("both are allowed") };
                if revision <= self.revision && self.history[before] != self.history[after] {
                    return Err(format!("commit {revision} after {}", self.revision).into());
                }
                self.revision = self.revision.max(revision);
                self.done(!is_relaxed);
                if let Some(n) = intent.shown.iter().find(|n| !self.shown.insert(**n)) {
                    return Err(format!("{n} was shown twice").into());
                }
                self.count(&vec!["values shown"; intent.shown.len()]);
                self.count(&happened);
                ends
            }
            Err(error) if is_refused(&error, refusal) => {
                self.refused();
                if refusal.is_some() {
                    self.count(&happened);
                }
                Ends::new()
            }
            Err(error) => return Err(self.failed(error)),
        };
        let durable = ended.keys().copied().collect();
        let expired = self.take_ends(&ended, &may_end, &durable)?;
        self.expired(&expired);
        Ok(())
    }

    fn count(&mut self, happened: &[&'static str]) {
        for what in happened {
            *self.happened.entry(what).or_default() += 1;
        }
    }

    /// Sweeps, and expects the end of everything that is due.
    pub(crate) fn sweep(&mut self) -> Result<BTreeSet<SessionId>, Trouble> {
        let may_end = self.state().due(self.store().now());
        self.mark(&may_end);
        let swept = match self.store().sweep() {
            Ok(swept) => swept,
            Err(error) => {
                // Some of it may have been done.
                self.unsettled.extend(may_end);
                return Err(error.into());
            }
        };
        let expired = self.take_ends(&Ends::new(), &may_end, &may_end)?;
        if expired != may_end || swept.ended != may_end.len() as u64 {
            let missing: Vec<_> = may_end.difference(&expired).collect();
            return Err(format!("a sweep did not end {missing:?}").into());
        }
        self.expired(&expired);
        self.swept = self.store().now();
        Ok(expired)
    }

    /// Sweeps a store that was found: those who are due in every state that it may be in must end,
    /// unless their end was under way, and nobody who is not due in any. From then on it is known
    /// in which state it is.
    pub(crate) fn settle_ends(&mut self) -> Result<(), Trouble> {
        let now = self.store().now();
        let due = self.allowed.iter().flat_map(|nth| self.history[*nth].due(now));
        let due = due.collect();
        self.mark(&due);
        self.store().sweep()?;
        self.settle(&Ends::new())
    }

    fn settle(&mut self, ends: &Ends) -> Result<(), Trouble> {
        let now = self.store().now();
        let due: Vec<_> = self.allowed.iter().map(|nth| self.history[*nth].due(now)).collect();
        let mut any: BTreeSet<_> = due.iter().flatten().copied().collect();
        any.extend(&self.unsettled);
        let ended = self.take_ends(ends, &any, &ends.keys().copied().collect())?;
        let is_due = |id: &SessionId| due.iter().all(|due| due.contains(id));
        let must = any.iter().filter(|id| is_due(id) && !self.unsettled.contains(id));
        if let Some(id) = must.into_iter().find(|id| !ended.contains(id)) {
            return Err(format!("a sweep after the recovery did not end {id}").into());
        }
        // Whoever of them did not end now has ended before.
        let state = self.state().without(&self.state().due(now));
        self.allowed.pop();
        if !ended.is_empty() {
            // Ends are told when they are durable, and with them everything before.
            self.allowed.clear();
        }
        self.history.push(Arc::new(state));
        self.allowed.push(self.history.len() - 1);
        self.doubt = None;
        self.unsettled.clear();
        self.mark(&BTreeSet::new());
        Ok(())
    }

    /// Whether everything that was begun is known to be done or not.
    pub(crate) fn is_sure(&self) -> bool {
        self.doubt.is_none() && self.unsettled.is_empty()
    }

    /// Looks at a store whose disk is broken: it shows what the model says, or fails.
    pub(crate) fn glance(&self) -> Result<(), Trouble> {
        let now = self.store().now();
        match look(self.store()) {
            Ok(seen) if self.allowed.iter().any(|nth| self.history[*nth].seen(now) == seen) => {
                Ok(())
            }
            Ok(seen) => Err(self.nothing_matches(&seen, now).into()),
            Err(trouble) => Err(trouble),
        }
    }

    /// After an error, when the disk works again: waits until the store does, asks what became of
    /// the commit in doubt, and compares that with what the store shows.
    pub(crate) fn resume(&mut self) -> Result<(), Trouble> {
        self.give_up();
        // What was acknowledged before it was durable may be lost, and is shown again.
        self.shown.clear();
        let now = self.store().now();
        // Whoever is due may end in what follows.
        let due = self.allowed.iter().flat_map(|nth| self.history[*nth].due(now));
        let due: Vec<_> = due.collect();
        self.unsettled.extend(due);
        let mut ends = Ends::new();
        if let Some(doubt) = self.doubt.take() {
            self.unsettled.extend(doubt.may_end);
            let wanted = |fate: &Fate| *fate != Fate::Pending;
            let fate = |commit| self.wait_for(|store| Ok(store.fate(commit)), wanted);
            match doubt.commit.map(fate).transpose()? {
                Some(Fate::Committed) => {
                    self.allowed = vec![doubt.after];
                    ends = doubt.ends;
                }
                Some(Fate::NotCommitted) => self.allowed.retain(|nth| *nth != doubt.after),
                Some(fate) => return Err(format!("the fate of a commit is {fate:?}").into()),
                None => {}
            }
        }
        self.mark(&BTreeSet::new());
        // Whatever waits to be synced is due.
        self.clock.elapse(Duration::from_secs(1));
        // Where everything happens on the threads of clients, this opens tables again that have failed.
        self.wait_for(Store::fold, |()| true)?;
        self.wait_for(Store::sweep, |_| true)?;
        // What it shows need not be durable: it may have been relaxed.
        let newest = *self.recognize()?.last().expect("one at least");
        self.allowed.retain(|nth| *nth <= newest);
        self.settle(&ends)?;
        self.check_owed()
    }

    /// Asks until the answer is as wanted, and no failure of the storage.
    #[expect(clippy::disallowed_methods, reason = "the store goes on by itself, in real time")]
    fn wait_for<T>(
        &self,
        ask: impl Fn(&Store) -> Result<T, Error>,
        is_wanted: impl Fn(&T) -> bool,
    ) -> Result<T, Trouble> {
        let since = Instant::now();
        loop {
            let trouble = match ask(self.store()) {
                Ok(answer) if is_wanted(&answer) => return Ok(answer),
                Ok(_) => Trouble::from("a store does not get over a failure"),
                Err(error @ (Error::Storage(_) | Error::Full | Error::Busy { .. })) => error.into(),
                Err(error) => return Err(error.into()),
            };
            if since.elapsed() > PATIENCE {
                return Err(trouble);
            }
            thread::yield_now();
        }
    }
}

/// Whether an error is what was expected of a commit. It may always be too much for a segment.
fn is_refused(error: &Error, refusal: Option<Refusal>) -> bool {
    match error {
        Error::Limit { limit: LimitKind::TransactionBytes, .. } => true,
        Error::Limit { limit, .. } => refusal == Some(Refusal::Limit(*limit)),
        Error::Conflict(_) => matches!(refusal, Some(Refusal::Conflict | Refusal::Taken)),
        _ => false,
    }
}

impl Drop for World {
    /// Nobody waits for a store that is not looked at any more to be closed.
    fn drop(&mut self) {
        self.disk.kill();
    }
}

/// Says in which session two views differ, without their values.
fn difference(expected: &Seen, seen: &Seen) -> String {
    for (name, expected) in expected {
        let Some(other) = seen.get(name) else {
            return format!("container {name} is missing");
        };
        if expected.policy != other.policy {
            return format!("container {name} has other settings");
        }
        for (key, session) in &expected.sessions {
            let text = String::from_utf8_lossy(key.as_bytes());
            match other.sessions.get(key) {
                None => return format!("{name}/{text} is missing"),
                Some(other) if other != session => {
                    return format!("{name}/{text} is {other:?}, not {session:?}");
                }
                Some(_) => {}
            }
        }
        let is_known = |key: &&Key| expected.sessions.contains_key(*key);
        if let Some(key) = other.sessions.keys().find(|key| !is_known(key)) {
            return format!("{name}/{} is there", String::from_utf8_lossy(key.as_bytes()));
        }
        if expected.led != other.led {
            return format!("keys of {name} lead elsewhere in the time of grace");
        }
        if let Some(key) = (&expected.given_up ^ &other.given_up).first() {
            let text = String::from_utf8_lossy(key.as_bytes());
            return match expected.given_up.contains(key) {
                true => format!("anybody may take {name}/{text}, which was given up"),
                false => format!("nobody may take {name}/{text}"),
            };
        }
    }
    match seen.keys().find(|name| !expected.contains_key(*name)) {
        Some(name) => format!("container {name} is there"),
        None => "nothing differs".to_owned(),
    }
}
