//! Rotation: a session goes on under another key, and everybody who has found it under the old one
//! either reaches it or is told.
//!
//! Small histories are enumerated: two or three transactions on one session, each of which saves,
//! rotates, logs out or reads and writes back, begun and committed in every interleaving, while its time
//! may run out at any moment. A plain model says what each commit must answer. After every commit exactly
//! one of the keys is valid, or none after an end; nothing that was saved is lost or doubled; and every
//! generation has ended once, for the right reason.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use sessile::{
    ConflictReason, Container, EndReason, Error, Key, ManualClock, Options, Policy, Session,
    SessionId, Store, Time, Transaction,
};

const PERIOD: u64 = 20;
const TIMEOUT: u64 = 60;

/// What one transaction does, one after the other.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    /// Writes an attribute of its own, and counts.
    Save,
    /// Reads a number and writes it back.
    Update,
    Rotate,
    Logout,
}

use Act::{Logout, Rotate, Save, Update};

#[derive(Clone, Copy, Debug)]
enum Step {
    Begin(usize),
    Commit(usize),
    /// All time that anybody was promised so far runs out.
    Expire,
}

type Told = Arc<Mutex<BTreeMap<SessionId, Vec<EndReason>>>>;

struct World {
    store: Store,
    shop: Container,
    clock: ManualClock,
    told: Told,
    histories: u64,
    commits: u64,
    conflicts: u64,
}

/// What the session is, as far as the model goes.
#[derive(Clone, Debug, Default)]
struct Model {
    /// The number of its key; `None`: it has ended.
    key: Option<u64>,
    /// How many keys it has had.
    generations: usize,
    /// The keys that were given up.
    given_up: BTreeSet<u64>,
    saved: BTreeSet<String>,
    count: u64,
    updates: u64,
}

struct Client {
    txn: Transaction,
    /// As it was when this one began.
    seen: Model,
    /// The handle it goes on with.
    session: Session,
}

impl World {
    fn new() -> Self {
        let told = Told::default();
        let clock = ManualClock::new(Time::from_secs(1_000_000_000));
        let store = Options::new()
            .clock(clock.clone())
            .seed(7)
            .sweep_every(None)
            .on_end("note", {
                let told = Arc::clone(&told);
                move |_, session, reason| {
                    told.lock().unwrap().entry(session.id()).or_default().push(reason);
                    Ok(())
                }
            })
            .memory()
            .unwrap();
        let policy = Policy::new().timeout_secs(TIMEOUT).period_secs(PERIOD).on_end("note");
        let shop = store.container_with("shop", policy).unwrap();
        World { store, shop, clock, told, histories: 0, commits: 0, conflicts: 0 }
    }

    /// A key of the current history.
    fn key(&self, number: u64) -> Key {
        Key::from(format!("{}/{number}", self.histories))
    }

    /// Plays one history and checks it at every commit.
    fn play(&mut self, programs: &[&[Act]], steps: &[Step]) {
        self.histories += 1;
        let mut keys = 1;
        let mut model = Model { key: Some(0), generations: 1, ..Model::default() };
        self.store.transact(|txn| txn.create(&self.shop, self.key(0)).map(|_| ())).unwrap();
        let mut clients: Vec<Option<Client>> = programs.iter().map(|_| None).collect();
        for step in steps {
            match *step {
                Step::Begin(at) => {
                    clients[at] = self.begin(at, programs[at], &model, &mut keys);
                }
                Step::Commit(at) => {
                    let Some(client) = clients[at].take() else { continue };
                    self.commit(at, programs[at], client, &mut model);
                }
                Step::Expire => {
                    self.clock.advance_secs(TIMEOUT + PERIOD);
                    model.key = None;
                }
            }
            self.check(&model, keys);
        }
        // Each generation has ended once, but for the one that lives.
        self.store.sweep().unwrap();
        self.store.settle();
        let told = std::mem::take(&mut *self.told.lock().unwrap());
        let rotated = |ends: &&Vec<EndReason>| ***ends == [EndReason::Rotated];
        let (rotated, other): (Vec<_>, Vec<_>) = told.values().partition(rotated);
        assert_eq!(rotated.len() + 1, model.generations, "each rotation ends a generation");
        assert_eq!(other.len(), usize::from(model.key.is_none()), "{other:?}");
        assert!(other.iter().all(|ends| ends.len() == 1), "{other:?}");
        // What is left of it must not be in the way of the next.
        if let Some(key) = model.key {
            let remove = self.store.transact(|txn| txn.remove(&self.shop, self.key(key)));
            assert!(remove.unwrap().value);
            self.store.settle();
            self.told.lock().unwrap().clear();
        }
    }

    /// Begins a transaction that comes with the key which is valid now, and does all that it wants.
    fn begin(&self, at: usize, program: &[Act], model: &Model, keys: &mut u64) -> Option<Client> {
        // Some of them come in a later timeslice.
        self.clock.advance_secs(7);
        let txn = self.store.begin().unwrap();
        let session = txn.get(&self.shop, self.key(model.key?)).unwrap();
        let mut session = session.expect("it has not ended");
        for act in program {
            match act {
                Save => {
                    session.insert(&format!("of{at}"), at).unwrap();
                    session.add("count", 1).unwrap();
                }
                Update => session.update("updates", |n: &mut u64| *n += 1).unwrap(),
                Rotate => {
                    let before = session.clone();
                    session = session.rotate(self.key(*keys)).unwrap();
                    *keys += 1;
                    assert!(!before.is_valid() && session.is_valid());
                    assert!(txn.get(&self.shop, before.key()).unwrap().is_none());
                    assert_eq!(txn.len(&self.shop).unwrap(), 1);
                }
                Logout => session.invalidate().unwrap(),
            }
        }
        Some(Client { txn, seen: model.clone(), session })
    }

    fn commit(&mut self, at: usize, program: &[Act], client: Client, model: &mut Model) {
        self.commits += 1;
        let Client { txn, seen, session } = client;
        let has = |act| program.contains(&act);
        let moves = has(Rotate) && !has(Logout);
        let wanted = if program.is_empty() {
            None
        } else if model.key.is_none() || (moves && model.key != seen.key) {
            Some(ConflictReason::Ended)
        } else if has(Update) && !has(Logout) && model.updates != seen.updates {
            Some(ConflictReason::Attribute("updates".to_owned()))
        } else {
            None
        };
        let committed = txn.commit();
        match (&committed, &wanted) {
            (Ok(_), None) => {}
            (Err(Error::Conflict(conflict)), Some(reason)) if conflict.reason == *reason => {
                assert!(committed.as_ref().is_err_and(Error::is_retryable));
                self.conflicts += 1;
                return;
            }
            _ => panic!("{committed:?} instead of {wanted:?}"),
        }
        if has(Save) && !has(Logout) {
            model.saved.insert(format!("of{at}"));
            model.count += program.iter().filter(|act| **act == Save).count() as u64;
        }
        if has(Update) && !has(Logout) {
            model.updates += 1;
        }
        if moves {
            let name = String::from_utf8(session.key().as_bytes().to_vec()).unwrap();
            let key = name.split('/').next_back().map(|number| number.parse().unwrap());
            model.given_up.extend(std::mem::replace(&mut model.key, key));
            model.generations += 1;
        }
        if has(Logout) {
            model.key = None;
        }
    }

    /// What everybody sees who looks now.
    fn check(&self, model: &Model, keys: u64) {
        let txn = self.store.begin().unwrap();
        let valid = (0..keys).filter(|n| txn.peek(&self.shop, self.key(*n)).unwrap().is_some());
        assert_eq!(valid.collect::<Vec<_>>(), Vec::from_iter(model.key));
        assert_eq!(txn.len(&self.shop).unwrap(), u64::from(model.key.is_some()));
        assert_eq!(txn.keys(&self.shop).unwrap().count(), usize::from(model.key.is_some()));
        let Some(key) = model.key else { return };
        let session = txn.peek(&self.shop, self.key(key)).unwrap().unwrap();
        let number = |name| session.get::<u64>(name).unwrap().unwrap_or_default();
        assert_eq!((number("count"), number("updates")), (model.count, model.updates));
        let saved = session.keys().unwrap().into_iter().filter(|name| name.starts_with("of"));
        assert_eq!(saved.collect::<BTreeSet<_>>(), model.saved);
        // Nobody can take a key that was given up.
        for number in (0..keys).filter(|number| *number != key) {
            let taken = txn.create(&self.shop, self.key(number));
            let refused = matches!(taken, Err(Error::RotatedKey { .. }));
            assert_eq!(refused, model.given_up.contains(&number), "{taken:?}");
        }
    }
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

/// Every way to choose one for each of the clients.
fn choices<T: Copy>(of: &[T], clients: usize) -> Vec<Vec<T>> {
    (0..clients).fold(vec![Vec::new()], |chosen, _| {
        let longer =
            |chosen: &Vec<T>| of.iter().map(|one| [&chosen[..], &[*one]].concat()).collect();
        chosen.iter().flat_map(|chosen: &Vec<T>| -> Vec<Vec<T>> { longer(chosen) }).collect()
    })
}

fn explore(programs: &[&[Act]], clients: usize) -> (u64, u64, u64) {
    let mut world = World::new();
    for chosen in choices(programs, clients) {
        for steps in interleavings(clients) {
            for expire in 0..=steps.len() {
                let mut steps = steps.clone();
                // Once without, once at each place but the first: nobody would find anything then.
                if expire > 0 {
                    steps.insert(expire, Step::Expire);
                }
                world.play(&chosen, &steps);
            }
        }
    }
    (world.histories, world.commits, world.conflicts)
}

#[test]
fn three_transactions_in_every_interleaving() {
    let programs: [&[Act]; 5] = [&[], &[Save], &[Update], &[Rotate], &[Logout]];
    let (histories, commits, conflicts) = explore(&programs, 3);
    println!("{histories} histories, {commits} commits, {conflicts} conflicts");
    assert!(histories >= 13_000 && conflicts >= 5_000, "the test has shrunk");
}

#[test]
fn two_transactions_that_do_more_in_every_interleaving() {
    let programs: [&[Act]; 10] = [
        &[],
        &[Save],
        &[Logout],
        &[Save, Rotate],
        &[Rotate, Save],
        &[Update, Rotate],
        &[Rotate, Update],
        &[Save, Rotate, Update, Rotate, Save],
        &[Rotate, Logout],
        &[Save, Logout],
    ];
    let (histories, commits, conflicts) = explore(&programs, 2);
    println!("{histories} histories, {commits} commits, {conflicts} conflicts");
    assert!(histories >= 1_500 && conflicts >= 300, "the test has shrunk");
}
