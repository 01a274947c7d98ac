//! The oracle: what a store makes of an image, and whether it may.
//!
//! **Every commit that was acknowledged is there, and the one in flight is there entirely or not at
//! all; nothing else.** Of relaxed commits a beginning is there, at least up to the last one that
//! was immediate. And the store lives on: it ends exactly who is due, three more commits work, and
//! a reopen shows them.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use sessile::{Durability, Error, Policy, Problem, SessionId, Value};

use super::chance::Chance;
use super::disk::{Image, Op};
use super::life::Deed;
use super::model::{Seen, SeenContainer, State, Trouble, look_and_count};
use super::platter::{Cut, Platter};
use super::world::{Disk, Knowledge, Setup, Step, World};

/// A power cut that is to be looked at.
pub(crate) struct Case {
    pub(crate) image: Image,
    /// All that a client may know at that point.
    pub(crate) knowledge: Vec<Knowledge>,
    pub(crate) history: Arc<Vec<Arc<State>>>,
    /// The states that were known to be durable once, in their order.
    pub(crate) durable: Arc<[usize]>,
    pub(crate) setup: Setup,
    pub(crate) seed: u64,
    /// Where it is from.
    pub(crate) what: String,
}

impl Case {
    /// The states that are allowed under everything that a client knows, whether those whose end is
    /// under way have ended or not.
    fn allowed(&self) -> Vec<Arc<State>> {
        let may_end = self.may_end();
        let (first, others) = self.knowledge.split_first().expect("a client knows something");
        let is_same = |a: usize, b: usize| {
            let (a, b) = (&self.history[a], &self.history[b]);
            Arc::ptr_eq(a, b) || a.without(&may_end) == b.without(&may_end)
        };
        let everywhere = |nth: &&usize| {
            others.iter().all(|other| other.allowed.iter().any(|other| is_same(**nth, *other)))
        };
        first.allowed.iter().filter(everywhere).map(|nth| Arc::clone(&self.history[*nth])).collect()
    }

    fn may_end(&self) -> BTreeSet<SessionId> {
        self.knowledge.iter().flat_map(|it| it.may_end.iter().copied()).collect()
    }

    fn last(&self) -> &Knowledge {
        self.knowledge.last().expect("a client knows something")
    }

    /// A world on the image, not opened yet.
    pub(crate) fn world(&self, traced: bool) -> World {
        let disk = Disk::new(self.image.clone(), traced);
        let (setup, now, allowed) = (self.setup.clone(), self.last().now, self.allowed());
        let mut world = World::found(disk, setup, self.seed, now, allowed, self.may_end());
        world.revision = self.last().revision;
        let owed = self.knowledge.iter().flat_map(|it| it.owed.iter().copied());
        world.owed = owed.collect();
        world.acknowledged = Arc::clone(&self.last().acknowledged);
        world.mark(&BTreeSet::new());
        world
    }

    /// Opens the image.
    pub(crate) fn recover(&self, traced: bool) -> Result<World, Trouble> {
        let mut world = self.world(traced);
        world.open()?;
        world.settle_ends()?;
        Ok(world)
    }

    /// Opens the image and lives on. Returns how many ends were owed, and how many were told at once.
    pub(crate) fn verify(&self) -> Result<[u64; 2], Trouble> {
        let mut world = self.world(false);
        let owed = world.owed.len() as u64;
        world.open()?;
        let inherited = world.inherited;
        world.settle_ends()?;
        live_on(&mut world, &mut Chance::new(self.seed))?;
        Ok([owed, inherited])
    }

    /// Opens what a disk has left whose last syncs have lied: a commit may be missing for each, and
    /// the damage may be noticed, but no state may be there that never was. Returns what happened.
    pub(crate) fn verify_lies(&self, lies: usize) -> Result<&'static str, Trouble> {
        match self.live_with_lies(lies) {
            // It is noticed when a page is read.
            Err(Trouble::Error(Error::Corrupt { .. })) => Ok("corrupt"),
            lived => lived,
        }
    }

    fn live_with_lies(&self, lies: usize) -> Result<&'static str, Trouble> {
        let mut world = self.world(false);
        (world.owed, world.acknowledged) = Default::default();
        let seed = self.seed;
        let store = match world.options().open(super::world::DIRECTORY) {
            Ok(store) => world.store.insert(store),
            Err(Error::Corrupt { .. }) => return Ok("corrupt"),
            // Names may be lost too.
            Err(Error::NotAStore { .. }) => return Ok("no store"),
            Err(error) => return Err(error.into()),
        };
        let ((seen, miscounted), now) = match look_and_count(store) {
            // Nobody has looked there before.
            Err(Trouble::Error(Error::Corrupt { .. })) => return Ok("corrupt"),
            seen => (seen?, store.now()),
        };
        let newest = *self.last().allowed.iter().max().expect("there is always a state");
        let sees = |nth: usize| self.history[nth].seen(now);
        let found: Vec<_> = (0..=newest).filter(|nth| sees(*nth) == seen).collect();
        let Some(last) = found.last().copied() else {
            // The simulated machine is never started anew, so the tables need not have been verified.
            let damaged = store.stats().damaged_sessions;
            return match damaged > 0 && (0..=newest).any(|nth| lacks(&sees(nth), &seen, damaged)) {
                true => Ok("damaged sessions, told"),
                false => Err("a state that never was".into()),
            };
        };
        // One sync may be that of several commits, but all of them but the last are relaxed.
        let durable = self.durable.iter().copied().filter(|nth| *nth > last);
        let since: Vec<_> = std::iter::once(last).chain(durable).map(sees).collect();
        let lost = since.windows(2).filter(|pair| pair[0] != pair[1]).count();
        if lost > lies {
            return Err(format!("{lost} commits lost to {lies} lies").into());
        }
        // The count may be that of another state than the sessions. Whoever asks is told.
        if let Some((name, ..)) = miscounted.first() {
            let is_told = |problem: &Problem| matches!(problem, Problem::Count { container, .. } if container == name);
            return match store.check()?.problems.iter().any(is_told) {
                true => Ok("a wrong count, told"),
                false => Err(format!("a wrong count of {name}, of which nobody is told").into()),
            };
        }
        // Some of these look the same, but differ in who has been seen to expire.
        world.allowed = (0..found.len()).collect();
        world.history = found.iter().map(|nth| Arc::clone(&self.history[*nth])).collect();
        world.unsettled = self.history.iter().flat_map(|state| state.due(now)).collect();
        // Which numbers were used is among what was lost.
        world.revision = 0;
        // And who was told of whom.
        world.store().settle();
        world.hear()?;
        world.settle_ends()?;
        live_on(&mut world, &mut Chance::new(seed))?;
        Ok(if lost > 0 { "commits lost" } else { "nothing lost" })
    }
}

/// Whether what is seen is a state but for some sessions that are absent, so many at the most.
fn lacks(state: &Seen, seen: &Seen, damaged: u64) -> bool {
    let mut absent = 0;
    let is_of = |(name, seen): (&String, &SeenContainer)| {
        state.get(name).is_some_and(|state| {
            absent += state.sessions.len().saturating_sub(seen.sessions.len());
            let same = |(key, session)| state.sessions.get(key) == Some(session);
            state.policy == seen.policy && seen.sessions.iter().all(same)
        })
    };
    state.len() == seen.len() && seen.iter().all(is_of) && absent as u64 <= damaged
}

/// Three commits, a reopen, and the end of time.
pub(crate) fn live_on(world: &mut World, chance: &mut Chance) -> Result<(), Trouble> {
    let policy = Policy::new().period_secs(20).timeout_secs(40).on_end("record");
    for name in ["desk", "shop"] {
        if world.store().container(name).is_err() {
            world.play(&Step::Container { name, policy: policy.clone() })?;
        }
    }
    for n in 0..3 {
        commit_something(world, n)?;
    }
    match chance.below(8) {
        0 => world.play(&Step::Fold).and_then(|()| world.play(&Step::Reopen))?,
        1 => world.play(&Step::Reopen)?,
        // Faster by far.
        _ => world.play(&Step::Kill)?,
    }
    world.play(&Step::Advance { secs: 10_000_000 })?;
    world.check()?;
    world.sweep()?;
    world.check_index()?;
    world.check()
}

/// A commit that changes several sessions of two containers.
pub(crate) fn commit_something(world: &mut World, n: i64) -> Result<(), Trouble> {
    let value = Value::of("afterwards").expect("text can be encoded");
    let deeds = [
        ("desk", "ada", Deed::Put("x".to_owned(), value)),
        ("shop", "bob", Deed::Add("n".to_owned(), n)),
        ("shop", "cy", if n % 3 == 1 { Deed::Renew } else { Deed::Visit }),
    ];
    world.play(&Step::Begin(0))?;
    for (container, key, deed) in deeds {
        world.play(&Step::Act { slot: 0, container, key, deed })?;
    }
    world.play(&Step::Commit { slot: 0, durability: Some(Durability::Immediate) })
}

/// Walks through the record of a world: for each operation, and the beginning, the platter as it
/// is then and what a client may know.
pub(crate) fn walk(
    start: &Image,
    lies: usize,
    trace: &[Op<Knowledge>],
    mut point: impl FnMut(usize, &Platter, &[Knowledge]),
) {
    let mut platter = Platter::new(start).lies(lies);
    let mut at = 0;
    let mut known = Vec::new();
    loop {
        // The marks between two operations: a power cut may come between any of them.
        while let Some(Op::Mark(knowledge)) = trace.get(at) {
            known.push(knowledge.clone());
            at += 1;
        }
        if !known.is_empty() {
            point(at, &platter, &known);
        }
        let Some(op) = trace.get(at) else { return };
        platter.apply(op);
        at += 1;
        known.drain(..known.len().saturating_sub(1));
    }
}

/// Which power cuts of a record are to be looked at.
pub(crate) struct Plan<'a> {
    pub(crate) start: &'a Image,
    pub(crate) lies: usize,
    /// How many of the eight kinds for each operation, chosen by chance.
    pub(crate) cuts: usize,
    /// Every so many operations.
    pub(crate) every: u64,
    /// From this operation on.
    pub(crate) from: usize,
}

impl Plan<'_> {
    /// The power cuts in what a world has recorded, those whose images are equal once. Returns how
    /// many images there were.
    pub(crate) fn cut(
        &self,
        world: &World,
        chance: &mut Chance,
        mut each: impl FnMut(Case),
    ) -> u64 {
        let history = Arc::new(world.history.clone());
        let (mut images, mut cases) = (HashSet::new(), HashSet::new());
        let mut durable = Vec::new();
        walk(self.start, self.lies, &world.disk.trace(), |at, platter, knowledge| {
            let floors = knowledge.iter().filter_map(|it| it.allowed.iter().copied().min());
            durable.extend(floors);
            durable.dedup();
            if at < self.from || !chance.one_in(self.every) {
                return;
            }
            let mut kinds = Cut::ALL.to_vec();
            while kinds.len() > self.cuts {
                kinds.swap_remove(chance.index(kinds.len()));
            }
            for cut in kinds {
                let image = platter.image(cut, chance);
                let hash = image.hash();
                images.insert(hash);
                // The same image is another case once more was acknowledged.
                let known: Vec<_> = knowledge.iter().map(|it| Arc::clone(&it.allowed)).collect();
                if cases.insert((hash, known)) {
                    each(Case {
                        image,
                        knowledge: knowledge.to_vec(),
                        history: Arc::clone(&history),
                        durable: durable.as_slice().into(),
                        setup: world.setup.clone(),
                        seed: chance.number(),
                        what: format!("{cut:?} after operation {at}"),
                    });
                }
            }
        });
        images.len() as u64
    }
}
