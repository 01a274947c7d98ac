//! What clients do, made of a seed.

use std::collections::BTreeSet;
use std::time::Duration;

use sessile::{AtLimit, Clock, Durability, Policy, Rule, Time, Value};

use super::chance::Chance;
use super::life::Deed;
use super::model::Trouble;
use super::world::{Setup, Step, World};

pub(crate) const CONTAINERS: [&str; 3] = ["club", "desk", "shop"];
pub(crate) const KEYS: [&str; 8] = ["", "ada", "bob", "cy", "dan", "eve", "fay", "gil"];
pub(crate) const PRINCIPALS: [&str; 2] = ["user-1", "user-2"];

/// How a store is opened in the run of this seed.
pub(crate) fn setup(chance: &mut Chance) -> Setup {
    Setup {
        segment_bytes: *chance.pick(&[4096, 4096, 4096, 4096, 8192, 16_384, 65_536]),
        memory_max: *chance.pick(&[64 << 10, 1 << 20]),
        fold_every: *chance.pick(&[1, 1, 4, 16]),
        clock_ahead_max: None,
    }
}

/// Settings of a container. Short times, so that sessions expire in the middle of everything.
pub(crate) fn policy(chance: &mut Chance) -> Policy {
    let period = *chance.pick(&[1, 10, 20]);
    let slices = *chance.pick(&[0, 1, 2, 6]);
    let mut policy =
        Policy::new().period_secs(period).timeout_secs(period * slices).on_end("record");
    let at_limit = |chance: &mut Chance| *chance.pick(&[AtLimit::Reject, AtLimit::EvictOldest]);
    if chance.one_in(3) {
        policy = policy.absolute_timeout_secs(20 + chance.below(200));
    }
    if chance.one_in(2) {
        policy = policy.limit(2 + chance.below(4)).at_limit(at_limit(chance));
        if slices == 0 {
            // Who never expires goes by the slice of the last access. Nobody can see that, and a power cut
            // may have lost it.
            policy = policy.at_limit(AtLimit::Reject);
        }
    }
    if chance.one_in(2) {
        policy = policy.principal_limit(1 + chance.below(2)).at_principal_limit(at_limit(chance));
    }
    if chance.one_in(3) {
        policy = policy.rotation_grace_secs(1 + chance.below(40));
    }
    if chance.one_in(2) {
        policy = policy.default_rule(Rule::LastWriter);
    }
    if chance.one_in(4) { policy.durability(Durability::Relaxed) } else { policy }
}

/// One thing to be done to a session.
pub(crate) fn deed(chance: &mut Chance) -> Deed {
    let name = |chance: &mut Chance| (*chance.pick(&["x", "y", "z"])).to_owned();
    let principal = |chance: &mut Chance| *chance.pick(&PRINCIPALS);
    match chance.below(42) {
        0 => Deed::Visit,
        1..=6 => Deed::Put(name(chance), value(chance)),
        7..=10 => Deed::Add("n".to_owned(), chance.below(100) as i64),
        11..=12 => Deed::Append("l".to_owned(), chance.below(100) as i64),
        13 => Deed::RemoveAttribute(name(chance)),
        14 => Deed::Clear,
        15..=16 => Deed::End,
        17..=18 => Deed::Renew,
        19..=22 => Deed::Rotate(KEYS[chance.index(KEYS.len())]),
        23..=24 => Deed::Lend(name(chance), value(chance), 1 + chance.below(40)),
        25 => {
            let n = Value::of(&1_000).expect("a number can be encoded");
            Deed::Lend("n".to_owned(), n, 1 + chance.below(40))
        }
        26..=28 => Deed::Take(name(chance)),
        29..=30 => Deed::Flash((chance.number() >> 1) as i64),
        31..=32 => Deed::Show,
        33..=34 => Deed::Timeout(*chance.pick(&[None, Some(0), Some(5), Some(30), Some(300)])),
        35..=39 => {
            let (whose, device) = (principal(chance), *chance.pick(&["phone", "laptop"]));
            Deed::Bind(whose, device)
        }
        40 => Deed::Unbind,
        _ => Deed::EndOthers,
    }
}

fn value(chance: &mut Chance) -> Value {
    let len = match chance.below(6) {
        0 => 200 + chance.below(800),
        _ => chance.below(12),
    };
    let text: String = (0..len).map(|_| (b'a' + chance.below(26) as u8) as char).collect();
    Value::of(&text).expect("text can be encoded")
}

fn durability(chance: &mut Chance) -> Option<Durability> {
    match chance.below(8) {
        0..=1 => Some(Durability::Relaxed),
        2..=4 => Some(Durability::Immediate),
        _ => None,
    }
}

/// The steps of a workload: transactions over several sessions and containers, some of them open at
/// the same time, and everything that happens around them.
pub(crate) fn steps(chance: &mut Chance, transactions: usize) -> Vec<Step> {
    let mut steps: Vec<_> =
        CONTAINERS.map(|name| Step::Container { name, policy: policy(chance) }).into();
    let place = |chance: &mut Chance| {
        (CONTAINERS[chance.index(CONTAINERS.len())], KEYS[chance.index(KEYS.len())])
    };
    let act = |slot, (container, key), chance: &mut Chance| match chance.below(24) {
        0 => {
            let principal = *chance.pick(&PRINCIPALS);
            Step::EndAll { slot, container, principal }
        }
        _ => Step::Act { slot, container, key, deed: deed(chance) },
    };
    let mut done = 0;
    while done < transactions {
        match chance.below(25) {
            // One after the other.
            0..=9 => {
                steps.push(Step::Begin(0));
                for _ in 0..1 + chance.below(5) {
                    let place = place(chance);
                    steps.push(act(0, place, chance));
                }
                steps.push(Step::Commit { slot: 0, durability: durability(chance) });
                done += 1;
            }
            // Two at once.
            10..=13 => {
                steps.extend([Step::Begin(1), Step::Begin(2)]);
                // Half of the time they meet.
                let (met, meet) = (place(chance), chance.one_in(2));
                for _ in 0..2 + chance.below(6) {
                    let slot = 1 + chance.index(2);
                    let elsewhere = place(chance);
                    let place = if meet && !chance.one_in(4) { met } else { elsewhere };
                    steps.push(act(slot, place, chance));
                }
                let mut slots = [1, 2];
                if chance.one_in(2) {
                    slots.reverse();
                }
                for slot in slots {
                    steps.push(Step::Commit { slot, durability: durability(chance) });
                    match chance.below(8) {
                        0 => steps.push(Step::Advance { secs: 1 + chance.below(15) }),
                        1 => steps.push(Step::Sweep),
                        _ => {}
                    }
                }
                done += 2;
            }
            23 => {
                steps.extend(race(place(chance), chance));
                done += 3;
            }
            14 => {
                let container = CONTAINERS[chance.index(CONTAINERS.len())];
                steps.push(Step::Begin(0));
                steps.push(Step::SetPolicy { slot: 0, container, policy: policy(chance) });
                let other = CONTAINERS.iter().find(|other| **other != container);
                let other = other.expect("there are several");
                for _ in 0..chance.below(3) {
                    let key = KEYS[chance.index(KEYS.len())];
                    steps.push(Step::Act { slot: 0, container: other, key, deed: deed(chance) });
                }
                steps.push(Step::Commit { slot: 0, durability: durability(chance) });
                done += 1;
            }
            15..=17 => steps.push(Step::Advance { secs: 1 + chance.below(15) }),
            18 => steps.push(Step::Advance { secs: 30 + chance.below(100) }),
            19..=20 => steps.push(Step::Sweep),
            21 => steps.push(Step::Fold),
            22 if chance.one_in(2) => steps.push(Step::Reopen),
            24 if chance.one_in(2) => steps.push(Step::Kill),
            _ => {}
        }
    }
    steps
}

/// Two transactions that want something of one session at the same time, of which both cannot have it,
/// after another one has seen to it that it is there.
fn race(
    (container, key): (&'static str, &'static str),
    chance: &mut Chance,
) -> impl Iterator<Item = Step> {
    let act = |slot, deed| Step::Act { slot, container, key, deed };
    let name = "x".to_owned();
    let principal = *chance.pick(&PRINCIPALS);
    let key_at_all = |chance: &mut Chance| KEYS[chance.index(KEYS.len())];
    let to = [key_at_all(chance), key_at_all(chance)];
    let there = [
        Step::Begin(0),
        act(0, Deed::Put(name.clone(), value(chance))),
        act(0, Deed::Flash((chance.number() >> 1) as i64)),
        Step::Commit { slot: 0, durability: durability(chance) },
    ];
    let bind = |slot| act(slot, Deed::Bind(principal, "tablet"));
    let rotate = |slot| act(slot, Deed::Rotate(to[slot - 1]));
    let end_all = |slot| Step::EndAll { slot, container, principal };
    let wanted = match chance.below(9) {
        0 | 1 => vec![act(1, Deed::Take(name.clone())), act(2, Deed::Take(name))],
        2 => vec![act(1, Deed::Show), act(2, Deed::Show)],
        3 => vec![rotate(1), rotate(2)],
        4 => vec![rotate(1), act(2, Deed::Put(name, value(chance)))],
        5 => vec![act(1, Deed::End), rotate(2)],
        6 => vec![bind(1), end_all(2)],
        7 => vec![rotate(1), end_all(2)],
        // Another session is to have the key that this one gives up meanwhile.
        _ => {
            let other = Step::Act { slot: 2, container, key: to[1], deed: Deed::Rotate(key) };
            vec![rotate(1), act(2, Deed::End), other]
        }
    };
    let mut slots = [1, 2];
    if chance.one_in(2) {
        slots.reverse();
    }
    let commits = slots.map(|slot| Step::Commit { slot, durability: durability(chance) });
    let begins = [Step::Begin(1), Step::Begin(2)];
    there.into_iter().chain(begins).chain(wanted).chain(commits)
}

/// A world in which all of this has happened, from the creation of the store on.
#[expect(clippy::result_large_err, reason = "the world is what is looked at next")]
pub(crate) fn run(seed: u64, transactions: usize, traced: bool) -> Result<World, (Trouble, World)> {
    let mut chance = Chance::new(seed);
    let mut world = World::empty(setup(&mut chance), seed, traced);
    let steps = steps(&mut chance, transactions);
    let mut play = || {
        world.open()?;
        for (nth, step) in steps.iter().enumerate() {
            let played = world.play(step).and_then(|()| world.check());
            played.map_err(|trouble| format!("step {nth}, {step:?}: {trouble}"))?;
        }
        Ok(())
    };
    match play() {
        Ok(()) => Ok(world),
        Err(trouble) => Err((trouble, world)),
    }
}

/// What a clock may show.
fn turn(chance: &mut Chance, world: &World) {
    const HOUR: i64 = 3_600;
    const YEARS: i64 = 10 * 366 * 24 * HOUR;
    let wall = world.clock.wall().as_secs() as i64;
    let wall = match chance.below(12) {
        0..=2 => wall,
        3 => wall + 1,
        4 => wall - 1,
        5 => wall + HOUR,
        6 => wall - HOUR,
        7 => wall + YEARS,
        8 => wall - YEARS,
        9 => 0,
        10 => world.store.as_ref().map_or(wall, |store| store.now().as_secs() as i64),
        // The year 30,000 or so.
        _ => 900_000_000_000,
    };
    world.clock.set(Time::from_secs(wall.max(0) as u64));
    if chance.one_in(3) {
        world.clock.elapse(Duration::from_secs(chance.below(40)));
    }
}

/// Turns the clock at every step of a workload. The model knows who lives by the store's time; so
/// what is looked for here is that the store's time never goes back, and what comes of it if it did.
pub(crate) fn turn_clocks(seed: u64) -> Result<(), Trouble> {
    let mut chance = Chance::new(seed);
    let mut setup = setup(&mut chance);
    // Half of the stores do not believe a clock that is too far ahead.
    setup.clock_ahead_max = chance.one_in(2).then_some(Duration::from_secs(24 * 3_600));
    let mut world = World::empty(setup, seed, false);
    world.open()?;
    for name in CONTAINERS {
        world.play(&Step::Container { name, policy: policy(&mut chance) })?;
    }
    let (mut now, mut gone) = (world.store().now(), BTreeSet::new());
    for _ in 0..20 {
        world.play(&Step::Begin(0))?;
        for _ in 0..4 {
            let container = CONTAINERS[chance.index(CONTAINERS.len())];
            let key = KEYS[chance.index(KEYS.len())];
            world.play(&Step::Act { slot: 0, container, key, deed: deed(&mut chance) })?;
        }
        world.play(&Step::Commit { slot: 0, durability: Some(Durability::Immediate) })?;
        turn(&mut chance, &world);
        world.check()?;
        gone.extend(world.state().due(world.store().now()));
        match chance.below(6) {
            0..=2 => drop(world.sweep()?),
            // A store that is closed keeps its time; one that is killed, that of its last commit.
            3 => {
                now = now.max(world.store().now());
                world.close()?;
                turn(&mut chance, &world);
                world.open()?;
            }
            4 => {
                gone.extend(world.sweep()?);
                let committed = world.state();
                world.play(&Step::Container {
                    name: CONTAINERS[0],
                    policy: policy(&mut chance).limit(1_000 + chance.below(1_000)),
                })?;
                now = now.max(world.store().now());
                drop(committed);
                world.kill();
                turn(&mut chance, &world);
                world.allowed.drain(..world.allowed.len() - 1);
                world.open()?;
            }
            _ => world.store().accept_clock(),
        }
        let later = world.store().now();
        if later < now {
            return Err(format!("the store's time went back from {now} to {later}").into());
        }
        now = later;
        world.check()?;
        let live = world.state().unended();
        let live = &live - &world.state().due(now);
        if let Some(id) = gone.intersection(&live).next() {
            return Err(format!("{id} had expired, and lives").into());
        }
    }
    Ok(())
}

/// Small workloads, all of them.
pub(crate) mod exhaustive {
    use std::sync::Arc;

    use sessile::{Durability, Policy, Time, Value};

    use super::super::disk::Image;
    use super::super::life::Deed;
    use super::super::model::State;
    use super::super::world::{Setup, Step, World};

    /// Where they begin: a store that was closed.
    pub(crate) struct Begin {
        pub(crate) image: Image,
        pub(crate) state: Arc<State>,
        pub(crate) now: Time,
    }

    fn short() -> Policy {
        Policy::new().period_secs(10).timeout_secs(20).on_end("record")
    }

    fn act(slot: usize, container: &'static str, key: &'static str, deed: Deed) -> Step {
        Step::Act { slot, container, key, deed }
    }

    fn put(text: &str) -> Deed {
        Deed::Put("x".to_owned(), Value::of(text).expect("text can be encoded"))
    }

    fn commit(slot: usize, durability: Durability) -> Step {
        Step::Commit { slot, durability: Some(durability) }
    }

    pub(crate) fn begin() -> Begin {
        let mut world = World::empty(Setup::default(), 0, false);
        world.open().expect("an empty disk");
        let steps = [
            Step::Container { name: "desk", policy: short().timeout_secs(0) },
            Step::Container { name: "shop", policy: short() },
            Step::Begin(0),
            act(0, "desk", "ada", put("one")),
            act(0, "shop", "ada", put("one")),
            act(0, "shop", "bob", Deed::Add("n".to_owned(), 1)),
            commit(0, Durability::Immediate),
        ];
        for step in steps {
            world.play(&step).expect("nothing is wrong with this disk");
        }
        world.close().expect("nothing is wrong with this disk");
        Begin { image: world.disk.image(), state: world.state(), now: super::super::world::START }
    }

    /// Eleven things to do.
    fn deeds() -> Vec<Vec<Step>> {
        use Durability::{Immediate, Relaxed};
        let longer = short().timeout_secs(100);
        vec![
            vec![
                Step::Begin(0),
                act(0, "desk", "cy", put("new")),
                act(0, "shop", "cy", put("new")),
                commit(0, Immediate),
            ],
            vec![
                Step::Begin(0),
                act(0, "desk", "ada", put("two")),
                act(0, "shop", "ada", put("two")),
                commit(0, Immediate),
            ],
            vec![
                Step::Begin(1),
                Step::Begin(2),
                act(1, "shop", "bob", Deed::Add("n".to_owned(), 10)),
                act(2, "shop", "bob", Deed::Add("n".to_owned(), 100)),
                commit(1, Relaxed),
                commit(2, Immediate),
            ],
            vec![
                Step::Begin(0),
                act(0, "shop", "ada", Deed::End),
                act(0, "desk", "ada", put("three")),
                commit(0, Relaxed),
            ],
            vec![Step::Begin(0), act(0, "shop", "bob", Deed::Renew), commit(0, Immediate)],
            vec![
                Step::Begin(1),
                Step::Begin(2),
                act(1, "shop", "bob", Deed::Add("n".to_owned(), 1_000)),
                act(2, "shop", "bob", Deed::Rotate("dan")),
                commit(2, Immediate),
                commit(1, Relaxed),
            ],
            vec![
                Step::Begin(0),
                act(0, "shop", "ada", put("four")),
                act(0, "desk", "bob", put("four")),
                commit(0, Relaxed),
            ],
            vec![Step::Advance { secs: 35 }, Step::Sweep],
            vec![
                Step::Begin(0),
                Step::SetPolicy { slot: 0, container: "shop", policy: longer },
                act(0, "desk", "ada", put("five")),
                commit(0, Immediate),
            ],
            vec![Step::Fold],
            vec![Step::Kill],
        ]
    }

    /// Sequences that only few power cuts tell something about: in the recovery at their end several commits
    /// are in doubt that must stay, all of them.
    pub(crate) fn telling() -> Vec<Vec<Vec<Step>>> {
        let deeds = deeds();
        let sequences: [&[usize]; 2] = [&[2, 9], &[5, 5, 0, 9]];
        let sequence = |numbers: &[usize]| numbers.iter().map(|nth| deeds[*nth].clone()).collect();
        sequences.map(sequence).into()
    }

    /// All sequences of up to so many of them.
    pub(crate) fn sequences(len: usize) -> Vec<Vec<Vec<Step>>> {
        let mut all: Vec<Vec<Vec<Step>>> = Vec::new();
        let mut last = vec![Vec::new()];
        for _ in 0..len {
            let longer = |before: &Vec<Vec<Step>>| {
                deeds()
                    .into_iter()
                    .map(|deed| [before.clone(), vec![deed]].concat())
                    .collect::<Vec<_>>()
            };
            last = last.iter().flat_map(longer).collect();
            all.extend(last.iter().cloned());
        }
        all
    }
}
