//! Random histories of three clients, played on both engines.
//!
//! Each history is a list of steps: transactions that begin, read, write, end sessions, commit or
//! abort, in any interleaving, while the clock moves, policies change, sweeps run and the store is
//! reopened. The engines must say the same at every step, and after every step:
//!
//! - a snapshot has not changed, whatever was committed since it began;
//! - the length of a container is the number of sessions that a walk finds;
//! - every acknowledged increment is in the counter of its session, and no other.
//!
//! At the end of every history all time runs out: every session that was ever committed has then
//! ended, and its end was told exactly once.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use sessile::{
    Container, Error, Key, ManualClock, Options, Policy, Session, SessionId, Store, Time,
    Transaction,
};

const CLIENTS: usize = 3;
const KEYS: [&str; 4] = ["ada", "bob", "cy", ""];
const ATTRIBUTES: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Debug)]
enum Step {
    Client(usize, Action),
    Advance(u64),
    Sweep,
    Reopen,
}

#[derive(Clone, Debug)]
enum Action {
    Begin,
    Commit,
    Abort,
    GetOrCreate(usize),
    Create(usize),
    Contains(usize),
    Insert(usize, usize, u8),
    Update(usize, usize),
    Remove(usize, usize),
    Add(usize),
    Invalidate(usize),
    Names(usize),
    Policy { timeout: u64, limit: u64 },
}

fn action() -> impl Strategy<Value = Action> {
    let key = 0..KEYS.len();
    let attribute = 0..ATTRIBUTES.len();
    prop_oneof![
        6 => Just(Action::Begin),
        8 => Just(Action::Commit),
        1 => Just(Action::Abort),
        6 => key.clone().prop_map(Action::GetOrCreate),
        2 => key.clone().prop_map(Action::Create),
        1 => key.clone().prop_map(Action::Contains),
        4 => (key.clone(), attribute.clone(), any::<u8>()).prop_map(|(k, a, v)| Action::Insert(k, a, v)),
        3 => (key.clone(), attribute.clone()).prop_map(|(k, a)| Action::Update(k, a)),
        2 => (key.clone(), attribute).prop_map(|(k, a)| Action::Remove(k, a)),
        5 => key.clone().prop_map(Action::Add),
        2 => key.clone().prop_map(Action::Invalidate),
        1 => key.prop_map(Action::Names),
        4 => (0u64..4, 0u64..5).prop_map(|(slices, limit)| Action::Policy { timeout: slices * 20, limit }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (0..CLIENTS, action()).prop_map(|(client, action)| Step::Client(client, action)),
        4 => (1u64..50).prop_map(Step::Advance),
        1 => Just(Step::Sweep),
        1 => Just(Step::Reopen),
    ]
}

/// What a walk through a container shows.
type Dump = BTreeMap<Key, (SessionId, Vec<(String, Vec<u8>)>)>;

struct Client {
    txn: Transaction,
    /// What the snapshot showed at first, until this client writes.
    first: Option<Dump>,
    created: Vec<SessionId>,
    added: Vec<SessionId>,
}

struct World {
    directory: Option<tempfile::TempDir>,
    clock: ManualClock,
    opened: u64,
    store: Option<Store>,
    container: Option<Container>,
    clients: Vec<Option<Client>>,
    committed: BTreeSet<SessionId>,
    increments: BTreeMap<SessionId, u64>,
    ended: Arc<Mutex<Vec<SessionId>>>,
}

impl World {
    fn new(on_disk: bool) -> Self {
        let mut world = World {
            directory: on_disk.then(|| tempfile::tempdir().unwrap()),
            clock: ManualClock::new(Time::from_secs(1_000_000_800)),
            opened: 0,
            store: None,
            container: None,
            clients: (0..CLIENTS).map(|_| None).collect(),
            committed: BTreeSet::new(),
            increments: BTreeMap::new(),
            ended: Arc::default(),
        };
        world.open();
        let policy = Policy::new().timeout_secs(40).period_secs(20).on_end("record");
        let store = world.store.as_ref().unwrap();
        world.container = Some(store.container_with("shop", policy).unwrap());
        world
    }

    fn open(&mut self) {
        self.opened += 1;
        let ended = Arc::clone(&self.ended);
        let options = Options::new()
            .segment_bytes(16 << 10)
            .clock(self.clock.clone())
            // A seed that is used again after a reopen would give the same ids again.
            .seed(self.opened)
            .sweep_every(None)
            .on_end("record", move |_, session, _| {
                ended.lock().unwrap().push(session.id());
                Ok(())
            });
        let store = match &self.directory {
            Some(directory) => options.open(directory.path().join("store")),
            None => options.memory(),
        };
        self.store = Some(store.unwrap());
    }

    fn play(&mut self, step: &Step) -> String {
        let said = match step {
            Step::Client(client, action) => self.act(*client, action),
            Step::Advance(secs) => {
                self.clock.advance_secs(*secs);
                String::new()
            }
            Step::Sweep => {
                let swept = self.store.as_ref().unwrap().sweep().unwrap();
                format!("{} ended", swept.ended)
            }
            Step::Reopen => {
                // The memory engine forgets everything; only the transactions are given up there.
                self.clients.iter_mut().for_each(|client| *client = None);
                if self.directory.is_some() {
                    let before = dump(&self.begin(), self.container());
                    self.store.take().unwrap().close().unwrap();
                    self.open();
                    let container = self.store.as_ref().unwrap().container("shop").unwrap();
                    self.container = Some(container);
                    assert_eq!(dump(&self.begin(), self.container()), before, "after reopening");
                }
                String::new()
            }
        };
        self.check();
        said
    }

    fn container(&self) -> &Container {
        self.container.as_ref().unwrap()
    }

    fn begin(&self) -> Transaction {
        self.store.as_ref().unwrap().begin().unwrap()
    }

    fn act(&mut self, client: usize, action: &Action) -> String {
        if let Action::Begin = action {
            let txn = self.begin();
            let first = Some(dump(&txn, self.container()));
            let (created, added) = (Vec::new(), Vec::new());
            self.clients[client] = Some(Client { txn, first, created, added });
            return String::new();
        }
        let Some(mut it) = self.clients[client].take() else { return "no transaction".to_owned() };
        match action {
            Action::Commit => {
                let verdict = it.txn.commit();
                if verdict.is_ok() {
                    self.committed.extend(&it.created);
                    for id in it.added {
                        *self.increments.entry(id).or_default() += 1;
                    }
                }
                match verdict {
                    Ok(report) => {
                        let ended = report.ended.iter().map(|end| (&end.key, end.reason));
                        let ended: Vec<_> = ended.collect();
                        let merged = report.merged.iter().map(|it| (&it.key, &it.attributes));
                        format!("{:?} {ended:?}", merged.collect::<Vec<_>>())
                    }
                    Err(error) => without_revisions(&error),
                }
            }
            Action::Abort => String::new(),
            _ => {
                let said = within(&mut it, self.container(), action);
                self.clients[client] = Some(it);
                match said {
                    Ok(said) => said,
                    Err(error) => without_revisions(&error),
                }
            }
        }
    }

    fn check(&self) {
        let fresh = self.begin();
        let seen = dump(&fresh, self.container());
        for (key, (id, attributes)) in &seen {
            let n = attributes.iter().find(|(name, _)| name == "n");
            let n = n.map_or(0, |(_, value)| u64::from(value[0]));
            let expected = self.increments.get(id).copied().unwrap_or(0);
            assert_eq!(n, expected, "increments of {key:?}");
        }
        for client in self.clients.iter().flatten() {
            let Some(first) = &client.first else { continue };
            let now = dump(&client.txn, self.container());
            // What has expired since is gone; nothing else has changed.
            for (key, session) in &now {
                assert_eq!(first.get(key), Some(session), "a snapshot has changed");
            }
        }
    }

    /// All time runs out.
    fn finish(mut self) {
        self.clients.clear();
        let policy = Policy::new().timeout_secs(40).period_secs(20).on_end("record");
        let store = self.store.take().unwrap();
        let container = store.container_with("shop", policy).unwrap();
        self.clock.advance_secs(1_000);
        store.sweep().unwrap();
        store.settle();
        assert_eq!(store.begin().unwrap().len(&container).unwrap(), 0);
        let stats = store.close().unwrap();
        assert_eq!((stats.versions, stats.version_bytes), (0, 0), "versions are left");
        let mut ended = self.ended.lock().unwrap().clone();
        ended.sort();
        assert_eq!(ended, self.committed.into_iter().collect::<Vec<_>>(), "ends told");
    }
}

/// What an error says. Revisions differ: ends are acknowledged by commits of the store's own, when their
/// listeners have returned.
fn without_revisions(error: &Error) -> String {
    let text = error.to_string();
    text.split(" (read at ").next().unwrap_or_default().to_owned()
}

/// One step inside a transaction.
fn within(it: &mut Client, container: &Container, action: &Action) -> Result<String, Error> {
    it.first = None;
    let txn = &it.txn;
    let get = |key: usize| txn.get(container, KEYS[key]);
    let on = |key: usize, work: &dyn Fn(&Session) -> Result<(), Error>| match get(key)? {
        Some(session) => work(&session).map(|()| "done".to_owned()),
        None => Ok("absent".to_owned()),
    };
    match action {
        Action::Begin | Action::Commit | Action::Abort => unreachable!("done outside"),
        Action::GetOrCreate(key) => {
            let known = txn.peek(container, KEYS[*key])?.is_some();
            let session = txn.get_or_create(container, KEYS[*key])?;
            if !known {
                it.created.push(session.id());
            }
            Ok(if known { "found" } else { "created" }.to_owned())
        }
        Action::Create(key) => {
            let session = txn.create(container, KEYS[*key])?;
            it.created.push(session.id());
            Ok("created".to_owned())
        }
        Action::Contains(key) => Ok(txn.contains(container, KEYS[*key])?.to_string()),
        Action::Insert(key, a, value) => on(*key, &|session| session.insert(ATTRIBUTES[*a], value)),
        Action::Update(key, a) => {
            on(*key, &|session| session.update(ATTRIBUTES[*a], |n: &mut u8| *n = n.wrapping_add(1)))
        }
        Action::Remove(key, a) => on(*key, &|session| session.remove(ATTRIBUTES[*a])),
        Action::Add(key) => match get(*key)? {
            Some(session) => {
                session.add("n", 1)?;
                it.added.push(session.id());
                Ok("added".to_owned())
            }
            None => Ok("absent".to_owned()),
        },
        Action::Invalidate(key) => on(*key, &|session| session.invalidate()),
        Action::Names(key) => match get(*key)? {
            Some(session) => Ok(format!("{:?}", session.keys()?)),
            None => Ok("absent".to_owned()),
        },
        Action::Policy { timeout, limit } => {
            let policy = txn.policy(container)?.timeout_secs(*timeout).limit(*limit);
            txn.set_policy(container, policy).map(|()| String::new())
        }
    }
}

/// All that a transaction sees, which must be as many as it says.
fn dump(txn: &Transaction, container: &Container) -> Dump {
    let mut seen = Dump::new();
    for session in txn.iter(container).unwrap() {
        let session = session.unwrap();
        let attributes = session.iter().unwrap();
        let attributes = attributes.map(|(name, value)| (name, value.as_bytes().to_vec()));
        seen.insert(session.key().clone(), (session.id(), attributes.collect()));
    }
    assert_eq!(txn.len(container).unwrap(), seen.len() as u64, "the length");
    seen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn engines_agree_and_nothing_is_lost(steps in proptest::collection::vec(step(), 1..100)) {
        let mut memory = World::new(false);
        let mut disk = World::new(true);
        for (at, step) in steps.iter().enumerate() {
            let (a, b) = (memory.play(step), disk.play(step));
            prop_assert_eq!(a, b, "step {}: {:?}", at, step);
        }
        memory.finish();
        disk.finish();
    }
}
