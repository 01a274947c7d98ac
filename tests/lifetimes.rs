//! The lives of sessions and attributes, against models that say what a person would expect.
//!
//! Each history is a list of random steps, with the clock turned by hand, on both engines. The models
//! know nothing of buckets and slices: they ask a session when it expires, and remember.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use sessile::{
    AtLimit, Container, EndReason, Error, Event, Key, LimitKind, ManualClock, Options, Policy,
    Receiver, SessionId, Store, Time, Transaction,
};
use tempfile::TempDir;

const KEYS: [&str; 6] = ["ada", "bob", "cy", "dee", "eve", "flo"];

/// A store on one of the engines.
struct World {
    directory: Option<TempDir>,
    clock: ManualClock,
    opened: u64,
    store: Store,
    events: Receiver<Event>,
    shop: Container,
}

impl World {
    fn new(on_disk: bool, policy: Policy) -> Self {
        let directory = on_disk.then(|| tempfile::tempdir().unwrap());
        let clock = ManualClock::new(Time::from_secs(1_000_000_800));
        let store = open(directory.as_ref(), &clock, 1);
        let shop = store.container_with("shop", policy).unwrap();
        let events = store.events();
        World { directory, clock, opened: 1, store, events, shop }
    }

    /// What is in memory would be gone.
    fn reopen(&mut self) {
        if self.directory.is_some() {
            self.store.clone().close().unwrap();
            self.opened += 1;
            self.store = open(self.directory.as_ref(), &self.clock, self.opened);
            self.shop = self.store.container("shop").unwrap();
            self.events = self.store.events();
        }
    }

    /// Every live session, with when it expires and was last accessed.
    fn living(&self) -> BTreeMap<Key, (SessionId, Option<Time>)> {
        let txn = self.store.begin().unwrap();
        let sessions = txn.iter(&self.shop).unwrap().map(|session| {
            let session = session.unwrap();
            (session.key().clone(), (session.id(), session.expires().unwrap()))
        });
        sessions.collect()
    }
}

fn open(directory: Option<&TempDir>, clock: &ManualClock, seed: u64) -> Store {
    let options = Options::new().segment_bytes(16 << 10).clock(clock.clone()).seed(seed);
    match directory {
        None => options.sweep_every(None).memory(),
        Some(directory) => options.sweep_every(None).open(directory.path().join("store")),
    }
    .unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Create(usize),
    Get(usize),
    Peek(usize),
    Timeout(usize, Option<u64>),
    End(usize),
    Advance(u64),
    Sweep,
    Fold,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..KEYS.len();
    prop_oneof![
        6 => key.clone().prop_map(Step::Create),
        5 => key.clone().prop_map(Step::Get),
        2 => key.clone().prop_map(Step::Peek),
        3 => (key.clone(), proptest::option::of(0u64..150)).prop_map(|(k, t)| Step::Timeout(k, t)),
        1 => key.prop_map(Step::End),
        6 => (0u64..40).prop_map(Step::Advance),
        3 => Just(Step::Sweep),
        1 => Just(Step::Fold),
        1 => Just(Step::Reopen),
    ]
}

impl World {
    /// Does one step; whether the session was there, or is now.
    fn play(&mut self, step: &Step) -> Result<bool, Error> {
        let shop = &self.shop;
        let on = |key: &usize, work: &dyn Fn(&sessile::Session) -> Result<(), Error>| {
            let done = self.store.transact(|txn| match txn.peek(shop, KEYS[*key])? {
                Some(session) => work(&session).map(|()| true),
                None => Ok(false),
            });
            done.map(|report| report.value)
        };
        match step {
            Step::Create(key) => {
                match self.store.transact(|txn| txn.create(shop, KEYS[*key]).map(drop)) {
                    Err(Error::Exists { .. }) => Ok(false),
                    done => done.map(|_| true),
                }
            }
            Step::Get(key) => {
                self.store.transact(|txn| txn.contains(shop, KEYS[*key])).map(|report| report.value)
            }
            Step::Peek(key) => on(key, &|_| Ok(())),
            Step::Timeout(key, secs) => {
                on(key, &|session| session.set_timeout(secs.map(Duration::from_secs)))
            }
            Step::End(key) => on(key, &|session| session.invalidate()),
            Step::Advance(secs) => {
                self.clock.advance_secs(*secs);
                Ok(true)
            }
            Step::Sweep => self.store.sweep().map(|_| true),
            Step::Fold => self.store.fold().map(|()| true),
            Step::Reopen => {
                self.reopen();
                Ok(true)
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// An access lengthens a life, a peek does not; what is over is over for everybody at once, and
    /// what the sweep ends is what was over.
    #[test]
    fn only_an_access_lengthens_a_life(
        steps in proptest::collection::vec(step(), 1..40), on_disk in any::<bool>(),
        absolute in 0u64..200,
    ) {
        let policy = Policy::new().period_secs(20).timeout_secs(60).absolute_timeout_secs(absolute);
        let mut world = World::new(on_disk, policy);
        let mut over: BTreeSet<SessionId> = BTreeSet::new();
        for step in &steps {
            let before = world.living();
            world.play(step).unwrap();
            let after = world.living();
            let now = world.clock_time();
            for (key, (id, expires)) in &before {
                let same = after.get(key).filter(|(other, _)| other == id);
                let is_meant = |n: &usize| Key::from(KEYS[*n]) == *key;
                match (step, same) {
                    (Step::Get(n), Some((_, then))) if is_meant(n) => prop_assert!(
                        then.unwrap_or(Time::from_micros(u64::MAX)) >= expires.unwrap_or_default()
                    ),
                    (Step::Timeout(n, _), _) if is_meant(n) => {}
                    (Step::End(n), same) if is_meant(n) => prop_assert_eq!(same, None),
                    (_, Some((_, then))) => prop_assert_eq!(then, expires),
                    (_, None) => prop_assert!(expires.is_some_and(|expires| expires <= now)),
                }
                if same.is_none() {
                    over.insert(*id);
                }
            }
            prop_assert!(after.values().all(|(id, _)| !over.contains(id)), "somebody came back");
        }
        world.clock.advance_secs(10_000);
        world.store.sweep().unwrap();
        // Only those are left that never expire.
        let stats = world.store.stats();
        let left = world.living();
        prop_assert!(left.values().all(|(_, expires)| expires.is_none()));
        prop_assert!(world.opened > 1 || stats.started == stats.ended + left.len() as u64);
    }

    /// Somebody is warned of each expiry that comes near, once, and of no other.
    #[test]
    fn each_expiry_that_comes_near_is_told_once(
        steps in proptest::collection::vec(step(), 1..40), on_disk in any::<bool>(),
        warn in 1u64..60, absolute in proptest::option::of(100u64..300),
    ) {
        // A session lives longer than the warning to begin with.
        let policy = Policy::new().period_secs(20).timeout_secs(60).warn_secs(warn)
            .absolute_timeout_secs(absolute.unwrap_or(0));
        let mut world = World::new(on_disk, policy);
        // As long as nobody gives it a timeout that is shorter.
        let is_short = |step: &Step| matches!(step, Step::Timeout(_, Some(secs @ 1..)) if *secs <= warn);
        let is_exact = absolute.is_none() && !steps.iter().any(is_short);
        let mut told: BTreeSet<(SessionId, Time)> = BTreeSet::new();
        for step in &steps {
            world.play(step).unwrap();
            if let Step::Advance(_) | Step::Timeout(..) = step {
                world.store.sweep().unwrap();
            }
            let now = world.clock_time();
            let living = world.living();
            // One that was moved away and has come back is another.
            let now_due: BTreeMap<_, _> = living.values().copied().collect();
            told.retain(|(id, expires)| now_due.get(id).is_none_or(|due| *due == Some(*expires)));
            for event in world.events.try_iter() {
                let Event::Expiring { key, id, expires, .. } = event else { continue };
                prop_assert_eq!(living.get(&key), Some(&(id, Some(expires))), "what is told is true");
                prop_assert!(expires > now && expires.as_secs() - warn <= now.as_secs(), "too early");
                prop_assert!(told.insert((id, expires)), "told twice");
            }
            for (id, expires) in living.values() {
                let is_near = expires.is_some_and(|expires| expires.as_secs() - warn <= now.as_secs());
                let is_told = expires.is_some_and(|expires| told.contains(&(*id, expires)));
                // What has just been used is looked at by the next sweep.
                let was_swept = matches!(step, Step::Advance(_) | Step::Timeout(..) | Step::Sweep);
                prop_assert!(!is_told || is_near);
                // An access so near to the absolute end that it puts it off by less than the warning
                // is noticed by the sweep that comes upon the end that it was before.
                let is_exact = is_exact && was_swept;
                prop_assert!(!is_exact || is_told == is_near, "{expires:?} at {now:?}");
            }
        }
    }

    /// The container never holds more than its limit, and who makes room would have expired first.
    #[test]
    fn who_makes_room_would_have_expired_first(
        steps in proptest::collection::vec(step(), 1..60), on_disk in any::<bool>(), limit in 1u64..5,
    ) {
        let policy = Policy::new().period_secs(5).timeout_secs(60).limit(limit)
            .at_limit(AtLimit::EvictOldest);
        let mut world = World::new(on_disk, policy);
        for step in &steps {
            let before = world.living();
            let evicted = world.store.stats().evicted;
            world.play(step).unwrap();
            let after = world.living();
            prop_assert!(after.len() as u64 <= limit);
            world.store.settle();
            let ended = world.events.try_iter().filter_map(|event| match event {
                Event::Ended(session, EndReason::Evicted) => Some(session.key().clone()),
                _ => None,
            });
            let ended: Vec<Key> = ended.collect();
            if matches!(step, Step::Reopen) {
                continue;
            }
            prop_assert_eq!(world.store.stats().evicted - evicted, ended.len() as u64);
            let Step::Create(n) = step else {
                prop_assert!(ended.is_empty());
                continue;
            };
            let created = !before.contains_key(&Key::from(KEYS[*n]));
            let is_full = created && before.len() as u64 == limit;
            prop_assert_eq!(ended.len(), usize::from(is_full));
            let last = Time::from_micros(u64::MAX);
            let expires = |key: &Key| before[key].1.unwrap_or(last);
            for gone in &ended {
                prop_assert!(before.keys().all(|other| expires(gone) <= expires(other)));
                prop_assert!(!after.contains_key(gone));
            }
        }
    }
}

impl World {
    fn clock_time(&self) -> Time {
        self.store.now()
    }
}

#[derive(Clone, Debug)]
enum Writing {
    Insert(usize, i64),
    InsertFor(usize, i64, u64),
    Remove(usize),
    Update(usize),
    Add(usize, i64),
    SetIfAbsent(usize, i64),
    Clear,
    Advance(u64),
    Fold,
    Reopen,
}

const ATTRIBUTES: [&str; 3] = ["a", "b", "c"];

fn writing() -> impl Strategy<Value = Writing> {
    let name = 0..ATTRIBUTES.len();
    prop_oneof![
        3 => (name.clone(), -9i64..9).prop_map(|(name, n)| Writing::Insert(name, n)),
        6 => (name.clone(), -9i64..9, 0u64..30).prop_map(|(a, n, t)| Writing::InsertFor(a, n, t)),
        2 => name.clone().prop_map(Writing::Remove),
        2 => name.clone().prop_map(Writing::Update),
        2 => (name.clone(), -9i64..9).prop_map(|(name, n)| Writing::Add(name, n)),
        2 => (name, -9i64..9).prop_map(|(name, n)| Writing::SetIfAbsent(name, n)),
        1 => Just(Writing::Clear),
        6 => (1u64..15).prop_map(Writing::Advance),
        1 => Just(Writing::Fold),
        1 => Just(Writing::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Attributes are a map whose entries may have a time at which they are gone. Several writes may
    /// be of one transaction.
    #[test]
    fn attributes_last_as_long_as_they_should(
        transactions in proptest::collection::vec(proptest::collection::vec(writing(), 1..4), 1..20),
        on_disk in any::<bool>(),
    ) {
        let policy = Policy::new().period_secs(20).timeout_secs(0);
        let mut world = World::new(on_disk, policy);
        world.store.transact(|txn| txn.create(&world.shop, "ada").map(drop)).unwrap();
        let mut model: BTreeMap<&str, (i64, Option<Time>)> = BTreeMap::new();
        for steps in &transactions {
            let now = world.clock_time();
            model.retain(|_, (_, until)| until.is_none_or(|until| until > now));
            let txn = world.store.begin().unwrap();
            let session = txn.peek(&world.shop, "ada").unwrap().unwrap();
            for step in steps {
                match step {
                    Writing::Insert(name, n) => {
                        session.insert(ATTRIBUTES[*name], n).unwrap();
                        model.insert(ATTRIBUTES[*name], (*n, None));
                    }
                    Writing::InsertFor(name, n, secs) => {
                        session.insert_for(ATTRIBUTES[*name], n, Duration::from_secs(*secs)).unwrap();
                        let until = Time::from_secs(now.as_secs() + secs);
                        model.insert(ATTRIBUTES[*name], (*n, Some(until)));
                    }
                    Writing::Remove(name) => {
                        session.remove(ATTRIBUTES[*name]).unwrap();
                        model.remove(ATTRIBUTES[*name]);
                    }
                    Writing::Update(name) => {
                        session.update(ATTRIBUTES[*name], |n: &mut i64| *n += 1).unwrap();
                        model.entry(ATTRIBUTES[*name]).or_insert((0, None)).0 += 1;
                    }
                    Writing::Add(name, n) => {
                        session.add(ATTRIBUTES[*name], *n).unwrap();
                        model.entry(ATTRIBUTES[*name]).or_insert((0, None)).0 += n;
                    }
                    Writing::SetIfAbsent(name, n) => {
                        session.set_if_absent(ATTRIBUTES[*name], n).unwrap();
                        model.entry(ATTRIBUTES[*name]).or_insert((*n, None));
                    }
                    Writing::Clear => {
                        session.clear().unwrap();
                        model.clear();
                    }
                    Writing::Advance(_) | Writing::Fold | Writing::Reopen => {}
                }
                let seen: BTreeMap<_, i64> =
                    session.iter().unwrap().map(|(name, value)| (name, value.to().unwrap())).collect();
                let expected = model.iter().map(|(name, (n, _))| (name.to_string(), *n));
                prop_assert_eq!(seen, expected.collect());
            }
            // The clock stands still meanwhile, so that nothing that was read lapses.
            txn.commit().unwrap();
            for step in steps {
                match step {
                    Writing::Advance(secs) => world.clock.advance_secs(*secs),
                    Writing::Fold => world.store.fold().unwrap(),
                    Writing::Reopen => world.reopen(),
                    _ => {}
                }
            }
        }
    }
}

/// A store with a container for two.
fn small() -> World {
    let policy = Policy::new().period_secs(20).timeout_secs(60).limit(2);
    World::new(false, policy.at_limit(AtLimit::EvictOldest))
}

/// Fills it with `a`, which is Ada's, and `b`, which is used later.
fn fill(world: &World) {
    let create = |key: &str| world.store.transact(|txn| txn.create(&world.shop, key).map(drop));
    create("a").unwrap();
    world
        .store
        .transact(|txn| txn.peek(&world.shop, "a")?.ok_or(Error::Ended)?.bind("ada", ""))
        .unwrap();
    world.clock.advance_secs(70);
    create("b").unwrap();
}

/// What is somebody's own makes room for nobody else.
#[test]
fn what_belongs_to_somebody_stays() {
    let world = small();
    fill(&world);
    let create =
        |key: &str| world.store.transact(|txn| txn.create(&world.shop, key)?.bind("bob", ""));
    let report = create("c").unwrap();
    assert_eq!(report.ended[0].key, Key::from("b"));
    assert_eq!(report.ended[0].reason, EndReason::Evicted);
    let refused = create("d").map(|_| ());
    assert!(
        matches!(refused, Err(Error::Limit { limit: LimitKind::Sessions, max: 2 })),
        "{refused:?}"
    );
    // Until it is nobody's any more, or its time is over.
    let freed =
        world.store.transact(|txn| txn.peek(&world.shop, "c")?.ok_or(Error::Ended)?.unbind());
    freed.unwrap();
    assert_eq!(create("d").unwrap().ended[0].key, Key::from("c"));
    world.clock.advance_secs(10);
    let report = create("e").unwrap();
    assert_eq!(report.ended[0].key, Key::from("a"));
    assert_eq!(report.ended[0].reason, EndReason::Expired);
}

/// What a transaction ends without having seen it, and has expired, makes room once.
#[test]
fn one_end_makes_room_for_one() {
    let world = small();
    let txn = world.store.begin().unwrap();
    fill(&world);
    world.clock.advance_secs(10);
    txn.end_all_of(&world.shop, "ada").unwrap();
    txn.create(&world.shop, "c").unwrap();
    txn.create(&world.shop, "d").unwrap();
    let ended: Vec<_> = txn.commit().unwrap().ended.into_iter().map(|end| end.key).collect();
    assert_eq!(ended, [Key::from("a"), Key::from("b")]);
    assert_eq!(world.living().len(), 2);
    assert_eq!(world.store.begin().unwrap().len(&world.shop).unwrap(), 2);
}

/// What the transaction has used makes no room for what it creates, even if the use left no trace.
#[test]
fn what_the_transaction_has_used_stays() {
    let world = small();
    let create = |txn: &Transaction, key| txn.create(&world.shop, key).map(drop);
    world.store.transact(|txn| create(txn, "a").and_then(|()| create(txn, "b"))).unwrap();
    let report = world.store.transact(|txn| {
        // In the same slice, so that the session stays as it is.
        assert!(txn.contains(&world.shop, "a")?);
        create(txn, "c")
    });
    let ended: Vec<_> = report.unwrap().ended.into_iter().map(|end| end.key).collect();
    assert_eq!(ended, [Key::from("b")]);
}

/// After the timeout was shortened the one that would expire first makes room, filed anew or not.
#[test]
fn who_would_expire_first_under_a_shorter_timeout_makes_room() {
    let world = small();
    let policy = Policy::new().period_secs(20).limit(2).at_limit(AtLimit::EvictOldest);
    let timeout = |secs| world.store.container_with("shop", policy.clone().timeout_secs(secs));
    timeout(600).unwrap();
    let create = |txn: &Transaction, key| txn.create(&world.shop, key);
    let own = |txn: &Transaction| create(txn, "a")?.set_timeout(Duration::from_secs(300));
    world.store.transact(|txn| own(txn).and_then(|()| create(txn, "b").map(drop))).unwrap();
    timeout(60).unwrap();
    let report = world.store.transact(|txn| create(txn, "c").map(drop)).unwrap();
    let ended: Vec<_> = report.ended.into_iter().map(|end| end.key).collect();
    assert_eq!(ended, [Key::from("b")]);
}
