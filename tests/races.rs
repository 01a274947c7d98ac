//! Sessions that end in every way there is, while others go on using them.
//!
//! Small histories are enumerated: two or three transactions on two sessions, each of which saves,
//! rotates, logs out, ends all sessions of a principal or all others, logs in once more (which evicts,
//! where a limit says so), or comes with a key that has perhaps been given up or ended. They begin and
//! commit in every interleaving, and at any moment all time may run out, with a sweep behind it or
//! without. What `rotation.rs` does for one session under one key, this does for all ends at once.
//!
//! The oracle is a map of generations and a few lines for each act. It does not say who must be evicted
//! (`lifetimes.rs` and `principals.rs` do), but how many, and of whom. After every step everybody is
//! looked for: by key, by handle, in lists, and by principal.
//!
//! `SESSILE_SIMULATION=ci` (or `record`) plays all of them; without it the longest are left out.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]
#![expect(clippy::print_stdout, reason = "the test tells what it did")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use sessile::{
    AtLimit, ConflictReason, Container, EndReason, Error, Key, ManualClock, Options, Policy,
    Report, Session, SessionId, Store, Time, Transaction,
};

const PERIOD: u64 = 20;
const TIMEOUT: u64 = 60;

/// What a transaction does. Sessions `A` and `B` are there from the start.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    /// Writes to a session: an attribute of its own, and a count.
    Save(usize),
    /// Gives a session a key that nobody has had.
    Rotate(usize),
    /// Gives a session the key that `Visit` comes with.
    Take(usize),
    Logout(usize),
    /// Ends all sessions of the principal.
    EndAll,
    /// Ends those beside this one.
    EndOthers(usize),
    /// A new session of the principal.
    Login,
    /// Comes with the first key of a session, adopts what lies there, or begins anew.
    Return(usize),
    /// The same with a key that nobody has had in the beginning.
    Visit,
}

use Act::{EndAll, EndOthers, Login, Logout, Return, Rotate, Save, Take, Visit};

const A: usize = 0;
const B: usize = 1;

/// What is known of one generation of a key.
#[derive(Clone, Debug)]
struct Generation {
    key: String,
    /// Which of the sessions it goes back to, if to one that was there from the start.
    line: Option<usize>,
    is_bound: bool,
    count: u64,
    saved: BTreeSet<usize>,
    end: Option<EndReason>,
    /// Where it was rotated to.
    next: Option<SessionId>,
}

/// All that has happened in one history.
#[derive(Clone, Debug, Default)]
struct Model {
    generations: BTreeMap<SessionId, Generation>,
    /// Keys that nobody may take.
    given_up: BTreeSet<String>,
    /// How often all time has run out.
    expired: usize,
}

impl Model {
    fn live(&self) -> impl Iterator<Item = (&SessionId, &Generation)> {
        self.generations.iter().filter(|(_, generation)| generation.end.is_none())
    }

    fn at(&self, key: &str) -> Option<SessionId> {
        self.live().find(|(_, generation)| generation.key == key).map(|(id, _)| *id)
    }

    /// As what a session goes on that somebody has found, if it does.
    fn forwarded(&self, mut id: SessionId) -> Option<SessionId> {
        while let Some(next) = self.generations[&id].next {
            id = next;
        }
        self.generations[&id].end.is_none().then_some(id)
    }

    fn end(&mut self, id: SessionId, reason: EndReason) {
        let generation = self.generations.get_mut(&id).unwrap();
        assert_eq!(generation.end.replace(reason), None, "{id:?} has ended twice");
    }
}

/// What a transaction is about to do, in words that need no store.
enum Wish {
    Save(SessionId),
    /// The generation that goes, and the one that comes.
    Move(SessionId, SessionId, String),
    Logout(SessionId),
    EndAll,
    EndOthers(SessionId),
    Create(SessionId, Generation),
}

struct Client {
    txn: Transaction,
    /// How often all time had run out when it began.
    expired: usize,
    wishes: Vec<Wish>,
    /// Handles, for the time after.
    handles: Vec<Session>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Begin(usize),
    Commit(usize),
    /// All time that anybody was promised so far runs out.
    Expire,
    Sweep,
}

/// What is in force.
#[derive(Clone, Copy, Debug)]
struct Setting {
    /// Whether `B` is the principal's as well.
    both_bound: bool,
    /// How many sessions the container may have, and how many the principal. 0: as many as there are.
    limit: usize,
    principal_limit: usize,
}

/// One person with two devices, and a third evicts one.
const DEVICES: Setting = Setting { both_bound: true, limit: 0, principal_limit: 2 };

/// A full container: one that is somebody's and one that is nobody's, and whoever comes evicts.
const FULL: Setting = Setting { both_bound: false, limit: 2, principal_limit: 1 };

type Told = Arc<Mutex<BTreeMap<SessionId, Vec<EndReason>>>>;

#[derive(Debug, Default)]
struct Counts {
    histories: u64,
    commits: u64,
    conflicts: u64,
    ends: BTreeMap<String, u64>,
}

struct World {
    setting: Setting,
    store: Store,
    shop: Container,
    clock: ManualClock,
    told: Told,
    counts: Counts,
}

const ADA: &str = "ada";

impl World {
    fn new(setting: Setting, open: impl FnOnce(Options) -> Store) -> Self {
        let told = Told::default();
        let clock = ManualClock::new(Time::from_secs(1_000_000_000));
        let options = Options::new().clock(clock.clone()).seed(11).sweep_every(None);
        let store = open(options.on_end("note", {
            let told = Arc::clone(&told);
            move |_, session, reason| {
                told.lock().unwrap().entry(session.id()).or_default().push(reason);
                Ok(())
            }
        }));
        let policy = Policy::new().timeout_secs(TIMEOUT).period_secs(PERIOD).on_end("note");
        let policy = policy.limit(setting.limit as u64).at_limit(AtLimit::EvictOldest);
        let policy = policy.principal_limit(setting.principal_limit as u64);
        let policy = policy.at_principal_limit(AtLimit::EvictOldest);
        let shop = store.container_with("shop", policy).unwrap();
        World { setting, store, shop, clock, told, counts: Counts::default() }
    }

    /// A key of the current history.
    fn key(&self, name: &str) -> Key {
        Key::from(format!("{}/{name}", self.counts.histories))
    }

    fn play(&mut self, programs: &[Vec<Act>], steps: &[Step]) {
        self.counts.histories += 1;
        let mut model = Model::default();
        for line in [A, B] {
            let is_bound = line == A || self.setting.both_bound;
            let txn = self.store.begin().unwrap();
            let (id, generation) = self.create(&txn, &first_key(line), Some(line), is_bound);
            txn.commit().unwrap();
            model.generations.insert(id, generation);
        }
        let mut clients: Vec<Option<Client>> = programs.iter().map(|_| None).collect();
        let mut handles = Vec::new();
        for step in steps {
            match *step {
                Step::Begin(at) => {
                    let client = self.begin(at, &programs[at], &model);
                    handles.extend(client.handles.iter().cloned());
                    clients[at] = Some(client);
                }
                Step::Commit(at) => {
                    let client = clients[at].take().unwrap();
                    self.commit(at, client, &mut model);
                }
                Step::Expire => {
                    self.clock.advance_secs(TIMEOUT + PERIOD + 1);
                    let live: Vec<_> = model.live().map(|(id, _)| *id).collect();
                    live.into_iter().for_each(|id| model.end(id, EndReason::Expired));
                    // It is known that long what became of them.
                    model.given_up.clear();
                    model.expired += 1;
                }
                Step::Sweep => drop(self.store.sweep().unwrap()),
            }
            self.check(&model, &handles);
        }
        self.conclude(&model);
    }

    /// Every generation has ended once and for the right reason, but for those that live; and those are
    /// put out of the way of the next history.
    fn conclude(&mut self, model: &Model) {
        self.store.sweep().unwrap();
        self.store.settle();
        let told = std::mem::take(&mut *self.told.lock().unwrap());
        let ends = |(id, generation): (&SessionId, &Generation)| Some((*id, vec![generation.end?]));
        let wanted: BTreeMap<_, _> = model.generations.iter().filter_map(ends).collect();
        assert_eq!(told, wanted);
        for reason in wanted.into_values().flatten() {
            *self.counts.ends.entry(reason.to_string()).or_default() += 1;
        }
        self.store
            .transact(|txn| {
                let removed = |(_, left): (_, &Generation)| {
                    txn.remove(&self.shop, self.key(&left.key)).map(|removed| assert!(removed))
                };
                model.live().try_for_each(removed)
            })
            .unwrap();
        self.store.settle();
        self.told.lock().unwrap().clear();
    }

    fn create(
        &self,
        txn: &Transaction,
        key: &str,
        line: Option<usize>,
        is_bound: bool,
    ) -> (SessionId, Generation) {
        let session = txn.create(&self.shop, self.key(key)).unwrap();
        session.add("count", 1).unwrap();
        if is_bound {
            session.bind(ADA, "").unwrap();
        }
        let (count, saved, end, next) = (1, BTreeSet::new(), None, None);
        (session.id(), Generation { key: key.to_owned(), line, is_bound, count, saved, end, next })
    }

    /// Begins a transaction that comes with the keys which are valid now, and does all that it wants.
    fn begin(&self, at: usize, program: &[Act], model: &Model) -> Client {
        // Some of them come in a later timeslice.
        self.clock.advance_secs(7);
        let txn = self.store.begin().unwrap();
        let (mut wishes, mut handles) = (Vec::new(), Vec::new());
        // As the transaction sees it.
        let mut model = model.clone();
        for (nth, act) in program.iter().enumerate() {
            let fresh = format!("{at}.{nth}");
            let found = |line: usize| -> Option<Session> {
                let mut live = model.live();
                let (id, generation) = live.find(|(_, live)| live.line == Some(line))?;
                let session = txn.get(&self.shop, self.key(&generation.key)).unwrap()?;
                assert_eq!(session.id(), *id);
                Some(session)
            };
            let save = |session: &Session| {
                session.insert(&format!("of{at}"), at).unwrap();
                session.add("count", 1).unwrap();
                Wish::Save(session.id())
            };
            let mut keep = |session: &Session| handles.push(session.clone());
            let wish = match *act {
                Save(line) => found(line).map(|session| {
                    keep(&session);
                    save(&session)
                }),
                Rotate(line) | Take(line) => found(line).and_then(|session| {
                    let key = if let Take(_) = act { VISITORS.to_owned() } else { fresh };
                    let moved = match session.rotate(self.key(&key)) {
                        Ok(moved) => moved,
                        Err(Error::Exists { .. }) => {
                            assert!(model.at(&key).is_some());
                            return None;
                        }
                        Err(Error::RotatedKey { .. }) => {
                            assert!(model.given_up.contains(&key));
                            return None;
                        }
                        Err(error) => panic!("{error}"),
                    };
                    keep(&moved);
                    Some(Wish::Move(session.id(), moved.id(), key))
                }),
                Logout(line) => found(line).map(|session| {
                    session.invalidate().unwrap();
                    Wish::Logout(session.id())
                }),
                EndAll => {
                    txn.end_all_of(&self.shop, ADA).unwrap();
                    assert_eq!(txn.sessions_of(&self.shop, ADA).unwrap(), []);
                    Some(Wish::EndAll)
                }
                EndOthers(line) => {
                    let is_bound = |session: &Session| session.principal().unwrap().is_some();
                    found(line).filter(is_bound).map(|session| {
                        session.end_others().unwrap();
                        Wish::EndOthers(session.id())
                    })
                }
                Login => {
                    let (id, generation) = self.create(&txn, &fresh, None, true);
                    Some(Wish::Create(id, generation))
                }
                Return(_) | Visit => {
                    let line = if let Return(line) = act { Some(*line) } else { None };
                    let key = line.map_or(VISITORS.to_owned(), first_key);
                    match (model.at(&key), txn.get_or_create(&self.shop, self.key(&key))) {
                        (Some(id), Ok(session)) => {
                            assert_eq!(session.id(), id, "somebody else has been adopted");
                            keep(&session);
                            Some(save(&session))
                        }
                        (None, Ok(session)) => {
                            assert!(!model.given_up.contains(&key), "a key that was given up");
                            assert!(session.is_empty().unwrap(), "something is left of {key}");
                            session.add("count", 1).unwrap();
                            let (saved, is_bound) = (BTreeSet::new(), false);
                            let (count, end, next) = (1, None, None);
                            let new = Generation { key, line, is_bound, count, saved, end, next };
                            Some(Wish::Create(session.id(), new))
                        }
                        (None, Err(Error::RotatedKey { .. })) => {
                            assert!(model.given_up.contains(&key));
                            None
                        }
                        (_, Err(error)) => panic!("{error}"),
                    }
                }
            };
            if let Some(wish) = wish {
                follow(&mut model, at, false, &wish).unwrap();
                wishes.push(wish);
            }
        }
        Client { txn, expired: model.expired, wishes, handles }
    }

    /// Commits, and compares the answer with the one that the oracle would give.
    fn commit(&mut self, at: usize, client: Client, model: &mut Model) {
        self.counts.commits += 1;
        let Client { txn, expired, wishes, .. } = client;
        let mut after = model.clone();
        let is_late = expired != model.expired;
        let wanted = wishes.iter().try_for_each(|wish| follow(&mut after, at, is_late, wish));
        let report = match (txn.commit(), wanted) {
            (Ok(report), Ok(())) => report,
            (Err(Error::Conflict(conflict)), Err(reason)) if conflict.reason == reason => {
                self.counts.conflicts += 1;
                return;
            }
            (committed, wanted) => panic!("{committed:?} instead of {wanted:?}"),
        };
        let creates = wishes.iter().any(|wish| matches!(wish, Wish::Create(..)));
        let own: BTreeSet<SessionId> = wishes.iter().filter_map(|wish| own(&after, wish)).collect();
        self.evict(&mut after, &report, creates, &own);
        // What the commit says that it has ended, it has, and nothing else has ended; but for those whose
        // time was over, and whom nobody has met yet.
        let told: BTreeMap<_, _> = report.ended.iter().map(|end| (end.id, end.reason)).collect();
        assert_eq!(told.len(), report.ended.len(), "ended twice");
        let is_new = |id: &SessionId| model.generations.get(id).is_none_or(|g| g.end.is_none());
        for (id, generation) in &after.generations {
            match told.get(id) {
                Some(reason) => assert_eq!(Some(*reason), generation.end),
                None => assert!(generation.end.is_none() || !is_new(id), "{id:?} ended unseen"),
            }
        }
        *model = after;
    }

    /// Takes the word of a commit for who was evicted, if they may be, and are as many as must be.
    fn evict(&self, after: &mut Model, report: &Report, creates: bool, own: &BTreeSet<SessionId>) {
        let bound = |model: &Model| model.live().filter(|(_, live)| live.is_bound).count();
        let excess = |count: usize, limit: usize| match limit > 0 && creates {
            true => count.saturating_sub(limit),
            false => 0,
        };
        let of_principal = excess(bound(after), self.setting.principal_limit);
        let mut anybody = 0;
        for evicted in report.ended.iter().filter(|ended| ended.reason == EndReason::Evicted) {
            assert!(!own.contains(&evicted.id), "it makes room for itself");
            anybody += usize::from(!after.generations[&evicted.id].is_bound);
            after.end(evicted.id, EndReason::Evicted);
        }
        let evicted =
            report.ended.iter().filter(|ended| ended.reason == EndReason::Evicted).count();
        assert_eq!(evicted - anybody, of_principal, "evicted for the principal");
        let over = excess(after.live().count() + anybody, self.setting.limit);
        assert_eq!(anybody, over, "evicted for the container");
    }

    /// What everybody sees who looks now.
    fn check(&self, model: &Model, handles: &[Session]) {
        let txn = self.store.begin().unwrap();
        let names = model.generations.values().map(|generation| &*generation.key);
        for name in names.chain([VISITORS]).collect::<BTreeSet<_>>() {
            let session = txn.peek(&self.shop, self.key(name)).unwrap();
            let id = model.at(name);
            assert_eq!(session.as_ref().map(Session::id), id, "under {name}");
            let (Some(session), Some(id)) = (session, id) else { continue };
            let Generation { is_bound, count, saved, .. } = &model.generations[&id];
            assert_eq!(session.principal().unwrap().is_some(), *is_bound);
            assert_eq!(session.get::<u64>("count").unwrap(), Some(*count), "under {name}");
            let names = session.keys().unwrap().into_iter().filter(|name| name.starts_with("of"));
            assert!(names.eq(saved.iter().map(|at| format!("of{at}"))));
        }
        for handle in handles {
            let id = handle.id();
            let lives = model.generations.get(&id).is_some_and(|found| found.end.is_none());
            assert_eq!(txn.reattach(handle).unwrap().is_some(), lives);
        }
        let live: BTreeSet<_> = model.live().map(|(id, _)| *id).collect();
        let listed = txn.iter(&self.shop).unwrap().map(|session| session.unwrap().id());
        assert_eq!(listed.collect::<BTreeSet<_>>(), live);
        assert_eq!(txn.len(&self.shop).unwrap(), live.len() as u64);
        let of_ada = txn.sessions_of(&self.shop, ADA).unwrap();
        let bound = model.live().filter(|(_, live)| live.is_bound).map(|(id, _)| *id);
        let found: BTreeSet<_> = of_ada.iter().map(|session| session.id).collect();
        assert_eq!(found, bound.collect());
    }
}

/// The key that `Visit` comes with.
const VISITORS: &str = "visitor";

fn first_key(line: usize) -> String {
    ["a", "b"][line].to_owned()
}

/// The session that a wish is about, as the commit has left it.
fn own(after: &Model, wish: &Wish) -> Option<SessionId> {
    match wish {
        Wish::EndAll => None,
        Wish::Create(id, _) | Wish::Move(_, id, _) => Some(*id),
        Wish::Save(id) | Wish::Logout(id) | Wish::EndOthers(id) => after.forwarded(*id),
    }
}

/// What becomes of one wish at the commit.
fn follow(model: &mut Model, at: usize, is_late: bool, wish: &Wish) -> Result<(), ConflictReason> {
    let ended = || ConflictReason::Ended;
    let end_bound = |model: &mut Model, but: Option<SessionId>| {
        let bound = model.live().filter(|(id, live)| live.is_bound && Some(**id) != but);
        let bound: Vec<_> = bound.map(|(id, _)| *id).collect();
        bound.into_iter().for_each(|id| model.end(id, EndReason::Invalidated));
    };
    match wish {
        Wish::Save(id) => {
            let id = model.forwarded(*id).ok_or_else(ended)?;
            let generation = model.generations.get_mut(&id).unwrap();
            generation.count += 1;
            generation.saved.insert(at);
        }
        Wish::Move(from, to, key) => {
            // Of two rotations the first wins.
            if model.generations[from].end.is_some() {
                return Err(ended());
            }
            if model.at(key).is_some() || model.given_up.contains(key) {
                return Err(ConflictReason::Exists);
            }
            let old = model.generations[from].clone();
            model.end(*from, EndReason::Rotated);
            model.generations.get_mut(from).unwrap().next = Some(*to);
            model.given_up.insert(old.key.clone());
            model.generations.insert(*to, Generation { key: key.clone(), ..old });
        }
        Wish::Logout(id) => {
            let id = model.forwarded(*id).ok_or_else(ended)?;
            model.end(id, EndReason::Invalidated);
        }
        Wish::EndAll => end_bound(model, None),
        Wish::EndOthers(id) => {
            let id = model.forwarded(*id).ok_or_else(ended)?;
            end_bound(model, Some(id));
        }
        Wish::Create(id, generation) => {
            if model.at(&generation.key).is_some() || model.given_up.contains(&generation.key) {
                return Err(ConflictReason::Exists);
            }
            // It would have expired before anybody has seen it.
            if is_late {
                return Err(ended());
            }
            model.generations.insert(*id, generation.clone());
        }
    }
    Ok(())
}

/// Every order of beginning and committing so many transactions, of which the first begins first: to
/// exchange two of them is to exchange what they do.
fn interleavings(clients: usize) -> Vec<Vec<Step>> {
    fn go(open: &mut Vec<u8>, steps: &mut Vec<Step>, found: &mut Vec<Vec<Step>>) {
        if open.iter().all(|state| *state == 2) {
            found.push(steps.clone());
        }
        for at in 0..open.len() {
            let step = match open[at] {
                0 if open[..at].contains(&0) => continue,
                0 => Step::Begin(at),
                1 => Step::Commit(at),
                _ => continue,
            };
            open[at] += 1;
            steps.push(step);
            go(open, steps, found);
            steps.pop();
            open[at] -= 1;
        }
    }
    let mut found = Vec::new();
    go(&mut vec![0; clients], &mut Vec::new(), &mut found);
    found
}

/// What time does in a history.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Passing {
    Nothing,
    /// It runs out once, at every place, swept at once and not.
    RunsOut,
}

/// The steps of all histories of so many transactions.
fn histories(clients: usize, time: Passing) -> Vec<Vec<Step>> {
    let mut found = Vec::new();
    for steps in interleavings(clients) {
        let last = if time == Passing::RunsOut { steps.len() } else { 0 };
        for place in 1..=last {
            for ends in [&[Step::Expire][..], &[Step::Expire, Step::Sweep]] {
                let mut steps = steps.clone();
                steps.splice(place..place, ends.iter().copied());
                found.push(steps);
            }
        }
        found.push(steps);
    }
    found
}

/// Every way to choose one program for each of the clients.
fn choices(of: &[Vec<Act>], clients: usize) -> Vec<Vec<Vec<Act>>> {
    (0..clients).fold(vec![Vec::new()], |chosen, _| {
        let longer = |chosen: Vec<Vec<Act>>| {
            of.iter().map(move |one| [chosen.clone(), vec![one.clone()]].concat())
        };
        chosen.into_iter().flat_map(longer).collect()
    })
}

fn explore(world: &mut World, programs: &[Vec<Act>], clients: usize, time: Passing) {
    let histories = histories(clients, time);
    for chosen in choices(programs, clients) {
        for steps in &histories {
            let playing = Playing(&chosen, steps);
            world.play(&chosen, steps);
            std::mem::forget(playing);
        }
    }
}

/// Says what was being played when a check failed.
struct Playing<'a>(&'a [Vec<Act>], &'a [Step]);

impl Drop for Playing<'_> {
    fn drop(&mut self) {
        println!("in the history of {:?}: {:?}", self.0, self.1);
    }
}

fn single(acts: &[Act]) -> Vec<Vec<Act>> {
    acts.iter().map(|act| vec![*act]).collect()
}

const ALL: [Act; 10] = [
    Save(A),
    Save(B),
    Rotate(A),
    Take(B),
    Logout(A),
    EndAll,
    EndOthers(A),
    Login,
    Return(A),
    Visit,
];

/// Those that end, those that must not bring back, and nothing twice.
const FEW: [Act; 6] = [Save(A), Rotate(A), Logout(A), EndAll, Login, Return(A)];

fn plays_all() -> bool {
    matches!(std::env::var("SESSILE_SIMULATION").as_deref(), Ok("ci" | "record"))
}

fn report(what: &str, counts: &Counts, floor: u64) {
    let Counts { histories, commits, conflicts, ends } = counts;
    println!("{what}: {histories} histories, {commits} commits, {conflicts} conflicts, {ends:?}");
    assert!(*histories >= floor && conflicts * 10 >= *commits, "the test has shrunk");
    assert_eq!(ends.len(), 4, "each kind of end");
    assert!(ends.values().all(|ends| *ends >= floor / 20), "the test has shrunk");
}

fn in_memory(setting: Setting) -> World {
    World::new(setting, |options| options.memory().unwrap())
}

fn three_transactions(what: &str, setting: Setting) {
    let mut world = in_memory(setting);
    // Somebody wants a key that another one gets, and gives up, meanwhile.
    explore(&mut world, &single(&[Take(B), Rotate(B), Visit]), 3, Passing::Nothing);
    let floor = match plays_all() {
        true => {
            explore(&mut world, &single(&ALL), 3, Passing::RunsOut);
            190_000
        }
        false => {
            explore(&mut world, &single(&FEW), 3, Passing::Nothing);
            explore(&mut world, &single(&ALL), 2, Passing::RunsOut);
            explore(&mut world, &single(&[Save(A), Logout(A), Login]), 3, Passing::RunsOut);
            11_500
        }
    };
    report(what, &world.counts, floor);
}

#[test]
fn one_person_with_two_devices() {
    three_transactions("devices", DEVICES);
}

#[test]
fn a_full_container() {
    three_transactions("full", FULL);
}

/// Two transactions that do two things each: all of it, or nothing.
#[test]
fn two_things_at_once() {
    let pairs = [
        [Save(A), Save(B)],
        [Rotate(A), Save(B)],
        [Rotate(A), Take(B)],
        [Logout(A), Save(B)],
        [Logout(A), Login],
        [Login, Visit],
        [Save(B), EndOthers(A)],
        [EndAll, Login],
        [EndAll, Visit],
        [Rotate(A), Visit],
        [Save(B), Return(A)],
    ];
    let mut programs: Vec<_> = pairs.iter().map(|pair| pair.to_vec()).collect();
    programs.extend(single(&[Save(A), Logout(A), EndAll, Return(A)]));
    let mut world = in_memory(DEVICES);
    explore(&mut world, &programs, 2, Passing::RunsOut);
    report("pairs", &world.counts, 6_000);
}
