//! Rotation: a session goes on under another key, and everybody who has found it under the old one
//! either reaches it or is told.
//!
//! Small histories are enumerated: two or three transactions on one session, each of which saves,
//! rotates, logs out or reads and writes back, begun and committed in every interleaving, while its time
//! may run out at any moment. A plain model says what each commit must answer. After every commit exactly
//! one of the keys is valid, or none after an end; nothing that was saved is lost or doubled; and every
//! generation has ended once, for the right reason.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]
#![expect(clippy::print_stdout, reason = "the test tells what it did")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sessile::{
    ConflictReason, Container, EndReason, Error, Event, Key, ManualClock, Options, Policy,
    Receiver, Session, SessionId, Store, Time, Transaction,
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

/// A store with one session, `ada`, and what happens in it.
fn one_session(policy: Policy) -> (Store, Container, ManualClock, Receiver<Event>) {
    let clock = ManualClock::new(Time::from_secs(1_000_000_000));
    let options = Options::new().clock(clock.clone()).seed(9).sweep_every(None);
    let store = options.memory().unwrap();
    let shop = store.container_with("shop", policy).unwrap();
    store.transact(|txn| txn.create(&shop, "ada")?.insert("name", "Ada")).unwrap();
    let events = store.events();
    (store, shop, clock, events)
}

fn policy() -> Policy {
    Policy::new().timeout_secs(TIMEOUT).period_secs(PERIOD)
}

fn found(txn: &Transaction, shop: &Container, key: &str) -> Session {
    txn.get(shop, key).unwrap().expect("it lives")
}

fn rotate(store: &Store, shop: &Container, from: &str, to: &str) {
    store.transact(|txn| found(txn, shop, from).rotate(to).map(|_| ())).unwrap();
}

fn used(events: &Receiver<Event>) -> Vec<String> {
    let used = |event| match event {
        Event::RotatedKeyUsed { container, session } if container == "shop" => Some(session),
        _ => None,
    };
    events.try_iter().filter_map(used).collect()
}

#[test]
fn the_old_key_leads_to_the_session_in_the_time_of_grace() {
    let (store, shop, clock, events) = one_session(policy().rotation_grace_secs(10));
    let txn = store.begin().unwrap();
    let first = found(&txn, &shop, "ada");
    let (id, created) = (first.id(), first.created().unwrap());
    let second = first.rotate("ada2").unwrap();
    // Within the transaction too.
    assert_eq!(found(&txn, &shop, "ada").id(), second.id());
    txn.commit().unwrap();
    clock.advance_secs(9);
    rotate(&store, &shop, "ada", "ada3");

    let txn = store.begin().unwrap();
    let third = found(&txn, &shop, "ada");
    assert_eq!(third.key().as_bytes(), b"ada3");
    assert!(third.id() != id && third.id() != second.id());
    assert_eq!((third.created().unwrap(), third.key()), (created, &Key::from("ada3")));
    assert_eq!(third.get::<String>("name").unwrap().as_deref(), Some("Ada"));
    assert!(txn.contains(&shop, "ada2").unwrap());
    assert_eq!(txn.get_or_create(&shop, "ada").unwrap().id(), third.id());
    assert!(matches!(txn.create(&shop, "ada"), Err(Error::RotatedKey { .. })));
    assert_eq!((txn.len(&shop).unwrap(), txn.keys(&shop).unwrap().count()), (1, 1));
    drop(txn);

    // One second later the first key is dead, and the second, which was given up later, is not.
    clock.advance_secs(1);
    used(&events);
    let txn = store.begin().unwrap();
    assert!(txn.get(&shop, "ada").unwrap().is_none() && txn.peek(&shop, "ada").unwrap().is_none());
    assert!(!txn.remove(&shop, "ada").unwrap());
    assert_eq!(used(&events), [Key::from("ada2").fingerprint()], "told once in a transaction");
    assert!(matches!(txn.get_or_create(&shop, "ada"), Err(Error::RotatedKey { .. })));
    assert_eq!(found(&txn, &shop, "ada2").id(), third.id());
    assert_eq!(used(&events), [""; 0]);
    drop(txn);
    // Who logs out with an old key that still leads somewhere has logged out.
    assert!(store.transact(|txn| txn.remove(&shop, "ada2")).unwrap().value);
    assert!(store.begin().unwrap().is_empty(&shop).unwrap());
    // What has taken its place under the new key is somebody else.
    store.transact(|txn| txn.create(&shop, "ada3").map(|_| ())).unwrap();
    assert!(store.begin().unwrap().get(&shop, "ada2").unwrap().is_none());
}

#[test]
fn a_key_that_was_given_up_can_be_taken_when_nobody_can_have_it_any_more() {
    for timeout in [TIMEOUT, 0] {
        let (store, shop, clock, events) = one_session(policy().timeout_secs(timeout));
        rotate(&store, &shop, "ada", "ada2");
        let lives = if timeout == 0 { 30 * 24 * 60 * 60 } else { TIMEOUT + PERIOD };
        clock.advance_secs(lives);
        let txn = store.begin().unwrap();
        assert!(matches!(txn.create(&shop, "ada"), Err(Error::RotatedKey { .. })));
        assert_eq!(used(&events).len(), 1);
        drop(txn);
        clock.advance_secs(1);
        let swept = store.sweep().unwrap();
        assert_eq!(swept.ended, u64::from(timeout > 0), "notes are no sessions");
        assert!(store.begin().unwrap().get(&shop, "ada").unwrap().is_none());
        assert_eq!(used(&events), [""; 0]);
        store.transact(|txn| txn.create(&shop, "ada").map(|_| ())).unwrap();
    }
}

/// Of two sessions that a transaction has changed one goes where the other one has left, when that key
/// need not be kept any more. To each goes what was wanted of it.
#[test]
fn what_was_wanted_of_one_session_does_not_go_to_another() {
    let (store, shop, clock, _) = one_session(policy().timeout_secs(1).period_secs(1));
    store.transact(|txn| txn.create(&shop, "bob").map(|_| ())).unwrap();
    let slow = store.begin().unwrap();
    found(&slow, &shop, "ada").insert("whose", "Ada's").unwrap();
    found(&slow, &shop, "bob").insert("whose", "Bob's").unwrap();
    rotate(&store, &shop, "bob", "bob2");
    for _ in 0..3 {
        clock.advance_secs(1);
        store.transact(|txn| txn.get(&shop, "ada").map(|_| ())).unwrap();
        store.transact(|txn| txn.get(&shop, "bob2").map(|_| ())).unwrap();
    }
    rotate(&store, &shop, "ada", "bob");
    slow.commit().unwrap();
    let txn = store.begin().unwrap();
    for (key, whose) in [("bob", "Ada's"), ("bob2", "Bob's")] {
        let session = found(&txn, &shop, key);
        assert_eq!(session.get::<String>("whose").unwrap().as_deref(), Some(whose));
    }
}

#[test]
fn what_is_in_the_way_of_a_rotation_is_said() {
    let (store, shop, _, _) = one_session(policy().limit(2));
    store.transact(|txn| txn.create(&shop, "bob").map(|_| ())).unwrap();
    let txn = store.begin().unwrap();
    let ada = found(&txn, &shop, "ada");
    for key in ["bob", "ada"] {
        assert!(matches!(ada.rotate(key), Err(Error::Exists { .. })));
    }
    assert!(matches!(ada.rotate("x".repeat(256)), Err(Error::Limit { .. })));
    let bob = found(&txn, &shop, "bob").rotate("bob2").unwrap();
    assert!(matches!(ada.rotate("bob"), Err(Error::RotatedKey { .. })));
    // The keys in between were never anybody's.
    let bob = bob.rotate("bob3").unwrap().rotate("bob4").unwrap();
    assert!(ada.rotate("bob2").unwrap().is_valid() && !ada.is_valid());
    let fresh = txn.create(&shop, "carl");
    assert!(matches!(fresh, Err(Error::Limit { .. })), "a rotation makes no room");
    bob.insert("name", "Bob").unwrap();
    let report = txn.commit().unwrap();
    let reasons: Vec<_> = report.ended.iter().map(|ended| ended.reason).collect();
    assert_eq!(reasons, [EndReason::Rotated; 2]);
    let stats = store.stats();
    assert_eq!((stats.started, stats.ended, stats.rotated), (2, 0, 2));

    // A limit that was lowered does not keep sessions from being rotated.
    let fewer = policy().limit(1);
    store.transact(|txn| txn.set_policy(&shop, fewer.clone())).unwrap();
    rotate(&store, &shop, "bob4", "bob5");
    // Somebody has taken the key meanwhile.
    let txn = store.begin().unwrap();
    found(&txn, &shop, "bob5").rotate("bob6").unwrap();
    store.transact(|txn| found(txn, &shop, "bob2").rotate("bob6").map(|_| ())).unwrap();
    let exists = |error| matches!(error, Error::Conflict(c) if c.reason == ConflictReason::Exists);
    assert!(txn.commit().is_err_and(exists));
    // Or given it up.
    let txn = store.begin().unwrap();
    found(&txn, &shop, "bob5").rotate("bob6").unwrap_err();
    found(&txn, &shop, "bob5").rotate("bob7").unwrap();
    rotate(&store, &shop, "bob6", "bob7");
    rotate(&store, &shop, "bob7", "bob8");
    assert!(txn.commit().is_err_and(exists));
}

#[test]
fn a_session_that_was_just_created_only_changes_its_key() {
    let (store, shop, _, _) = one_session(policy());
    let txn = store.begin().unwrap();
    let bob = txn.create(&shop, "bob").unwrap();
    bob.insert("name", "Bob").unwrap();
    bob.rotate("bob2").unwrap().add("n", 1).unwrap();
    assert!(!bob.is_valid());
    assert_eq!(txn.commit().unwrap().ended, []);
    let txn = store.begin().unwrap();
    assert_eq!(found(&txn, &shop, "bob2").keys().unwrap(), ["n", "name"]);
    assert!(txn.create(&shop, "bob").is_ok());
}

/// A rollback undoes a rotation, and what was read behind it stays read.
/// The one who sweeps comes upon a session that expires soon under its new key as under the old one.
#[test]
fn who_is_to_be_warned_is_warned_under_the_new_key() {
    for timeout in [None, Some(Duration::from_secs(5))] {
        let (store, shop, clock, events) = one_session(policy().warn_secs(30));
        if timeout.is_none() {
            // The warning is due, and nobody has swept yet.
            clock.advance_secs(PERIOD + TIMEOUT - 25);
        }
        let rotated = store.transact(|txn| {
            let session = txn.peek(&shop, "ada")?.ok_or(Error::Ended)?;
            if timeout.is_some() {
                session.set_timeout(timeout)?;
            }
            Ok(session.rotate("b")?.id())
        });
        let rotated = rotated.unwrap().value;
        let warned = || {
            store.sweep().unwrap();
            let warning = |event| match event {
                Event::Expiring { id, .. } => Some(id),
                _ => None,
            };
            events.try_iter().filter_map(warning).collect::<Vec<_>>()
        };
        assert_eq!(warned(), [rotated], "with a timeout of {timeout:?}");
        // Once is enough, whatever its key is.
        store.transact(|txn| txn.peek(&shop, "b")?.ok_or(Error::Ended)?.rotate("c")).unwrap();
        assert_eq!(warned(), []);
    }
}

#[test]
fn a_rollback_undoes_a_rotation() {
    let (store, shop, _, _) = one_session(policy());
    for rotated_before in [false, true] {
        let key = if rotated_before { "ada2" } else { "ada" };
        let txn = store.begin().unwrap();
        let mut session = found(&txn, &shop, "ada");
        if rotated_before {
            session = session.rotate(key).unwrap();
        }
        let before = txn.savepoint().unwrap();
        let later = session.rotate("ada3").unwrap();
        assert_eq!(later.get::<u64>("n").unwrap(), None);
        txn.rollback(before).unwrap();
        assert!(session.is_valid() && !later.is_valid());
        session.insert("n", 1).unwrap();
        store.transact(|txn| found(txn, &shop, "ada").insert("n", 2)).unwrap();
        let is_read = |error| {
            let reason = ConflictReason::Attribute("n".to_owned());
            matches!(error, Error::Conflict(conflict) if conflict.reason == reason)
        };
        assert!(txn.commit().is_err_and(is_read));
        store.transact(|txn| found(txn, &shop, "ada").remove("n")).unwrap();
    }
}

/// Everything that a transaction may have wanted of a session reaches it after several rotations.
#[test]
fn what_was_found_long_ago_is_forwarded() {
    let (store, shop, clock, _) = one_session(policy());
    let begin = || {
        let txn = store.begin().unwrap();
        let session = found(&txn, &shop, "ada");
        (txn, session)
    };
    let (written, session) = begin();
    session.insert("theme", "dark").unwrap();
    let (cleared, session) = begin();
    session.clear().unwrap();
    let (required, session) = begin();
    session.require("name").unwrap();
    session.insert("theme", "light").unwrap();
    let (ended, session) = begin();
    session.invalidate().unwrap();
    let (late, session) = begin();
    session.insert("loot", 1).unwrap();
    clock.advance_secs(PERIOD);
    let (touched, _) = begin();
    for n in 2..10 {
        let key = |n: u64| if n == 1 { "ada".to_owned() } else { format!("ada{n}") };
        rotate(&store, &shop, &key(n - 1), &key(n));
    }
    written.commit().unwrap();
    touched.commit().unwrap();
    let txn = store.begin().unwrap();
    let session = txn.peek(&shop, "ada9").unwrap().unwrap();
    assert_eq!(session.keys().unwrap(), ["name", "theme"]);
    cleared.commit().unwrap();
    let changed = |error| matches!(error, Error::Conflict(conflict) if conflict.reason == ConflictReason::Attribute("name".to_owned()));
    assert!(required.commit().is_err_and(changed));
    let report = ended.commit().unwrap();
    assert_eq!(report.ended[0].key.as_bytes(), b"ada9");
    assert_eq!(report.ended[0].reason, EndReason::Invalidated);
    assert!(late.commit().is_err_and(|error| error.is_retryable()));
    assert!(store.begin().unwrap().is_empty(&shop).unwrap());
}

/// Visitors write with whatever key they know while the session is rotated again and again: in every
/// snapshot exactly one key is valid, and every write that was acknowledged is there.
#[test]
fn eight_threads_write_while_the_session_is_rotated() {
    const ROTATIONS: u64 = 200;
    let directory = tempfile::tempdir().unwrap();
    let on_disk = Store::open(directory.path().join("store")).unwrap();
    for store in [Store::memory().unwrap(), on_disk] {
        let shop = store.container_with("shop", Policy::new()).unwrap();
        store.transact(|txn| txn.create(&shop, "0").map(|_| ())).unwrap();
        let (newest, written, done) =
            (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let txn = store.begin().unwrap();
                        let key = newest.load(Ordering::Acquire).to_string();
                        let Some(session) = txn.get(&shop, key).unwrap() else { continue };
                        session.add("n", 1).unwrap();
                        txn.commit().expect("it is forwarded");
                        written.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let txn = store.begin().unwrap();
                    let known = newest.load(Ordering::Acquire);
                    let keys: Vec<_> = txn.keys(&shop).unwrap().map(Result::unwrap).collect();
                    let valid = |n: &u64| txn.peek(&shop, n.to_string()).unwrap().is_some();
                    let valid: Vec<_> = (0..=known + 1).filter(valid).collect();
                    assert_eq!((keys.len(), valid.len()), (1, 1));
                    assert_eq!(keys[0].as_bytes(), valid[0].to_string().as_bytes());
                }
            });
            for n in 1..=ROTATIONS {
                rotate(&store, &shop, &(n - 1).to_string(), &n.to_string());
                newest.store(n, Ordering::Release);
            }
            done.store(true, Ordering::Relaxed);
        });
        let txn = store.begin().unwrap();
        let session = found(&txn, &shop, &ROTATIONS.to_string());
        assert_eq!(session.get("n").unwrap(), Some(written.load(Ordering::Relaxed)));
        assert!(written.into_inner() > 0);
    }
}

/// A key that was taken and given up since the transaction began is nobody's to rotate to.
#[test]
fn a_key_that_was_given_up_meanwhile_is_not_taken_by_a_rotation() {
    let (store, shop, ..) = one_session(policy());
    store.transact(|txn| txn.create(&shop, "x").map(drop)).unwrap();
    let late = store.begin().unwrap();
    found(&late, &shop, "x").rotate("y").unwrap();
    store.transact(|txn| txn.create(&shop, "y").map(drop)).unwrap();
    rotate(&store, &shop, "y", "z");
    let refused = late.commit();
    assert!(
        matches!(refused, Err(Error::Conflict(conflict)) if conflict.reason == ConflictReason::Exists)
    );
    let txn = store.begin().unwrap();
    assert!(txn.peek(&shop, "y").unwrap().is_none());
    assert!(txn.peek(&shop, "x").unwrap().is_some() && txn.peek(&shop, "z").unwrap().is_some());
}
