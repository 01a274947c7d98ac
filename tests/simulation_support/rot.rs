//! Bytes that rot: in the files of a store that was closed or killed, and under one that is open.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use sessile::{Container, Durability, Error, Key, Session, Store, Value};

use super::chance::Chance;
use super::content::{Content, PAGE, SECTOR};
use super::disk::{Image, Node};
use super::life::Deed;
use super::model::{State, Trouble};
use super::workload::{self, CONTAINERS};
use super::world::{DIRECTORY, Disk, START, Setup, Step, World};

/// A store with enough in it for some pages of every kind, and the states that it may be in.
pub(crate) struct Victim {
    pub(crate) image: Image,
    /// The oldest first; the last one is that before the damage.
    pub(crate) states: Vec<Arc<State>>,
    /// Those that were folded and are over.
    past: Vec<Arc<State>>,
    pub(crate) setup: Setup,
}

impl Victim {
    /// A store that was closed, or killed with some commits in its log only.
    pub(crate) fn new(seed: u64, was_closed: bool) -> Result<Self, Trouble> {
        let mut chance = Chance::new(seed);
        let setup = Setup { segment_bytes: 16_384, memory_max: 64 << 10, ..Setup::default() };
        let mut world = World::empty(setup.clone(), seed, false);
        world.open()?;
        for name in CONTAINERS {
            // Nobody expires here, and there are many.
            let policy = workload::policy(&mut chance).timeout_secs(0).absolute_timeout_secs(0);
            let policy = policy.limit(0);
            world.play(&Step::Container { name, policy })?;
        }
        let (mut states, mut past) = (Vec::new(), Vec::new());
        for n in 0..40 {
            if n == 30 {
                world.play(&Step::Fold)?;
                past.append(&mut states);
            }
            world.play(&Step::Begin(0))?;
            for _ in 0..6 {
                let container = CONTAINERS[chance.index(CONTAINERS.len())];
                let (key, text) = (KEYS[chance.index(KEYS.len())], "x".repeat(chance.index(400)));
                let value = Value::of(&(n, text)).expect("text can be encoded");
                let deed = Deed::Put((*chance.pick(&["a", "b", "c"])).to_owned(), value);
                world.play(&Step::Act { slot: 0, container, key, deed })?;
            }
            states.push(world.state());
            world.play(&Step::Commit { slot: 0, durability: Some(Durability::Immediate) })?;
        }
        states.push(world.state());
        if was_closed {
            world.close()?;
            past.extend(states.drain(..states.len() - 1));
        }
        Ok(Victim { image: world.disk.image(), states, past, setup })
    }

    /// Those of its files that hold something: name, node, and the size of a unit of its.
    pub(crate) fn files(&self) -> Vec<(String, Node, usize)> {
        let files = self.image.files(Path::new(DIRECTORY)).into_iter();
        let files = files.filter_map(|(name, node)| {
            let name = name.into_string().expect("names are ASCII");
            match name.as_str() {
                "sessions.redb" => Some((name, node, PAGE)),
                "sessile" => Some((name, node, SECTOR)),
                log if log.starts_with("log-") => Some((name, node, SECTOR)),
                _ => None,
            }
        });
        files.collect()
    }

    fn world(&self, image: Image) -> World {
        let (disk, setup) = (Disk::new(image, false), self.setup.clone());
        World::found(disk, setup, 1, START, vec![Arc::default()], BTreeSet::new())
    }
}

/// Many keys, so that the tables have more than one page.
const KEYS: [&str; 60] = {
    const ALL: &str = "000102030405060708091011121314151617181920212223242526272829\
                       303132333435363738394041424344454647484950515253545556575859";
    let mut keys = [""; 60];
    let mut n = 0;
    while n < 60 {
        keys[n] = ALL.split_at(2 * n).1.split_at(2).0;
        n += 1;
    }
    keys
};

/// What is made after the damage.
const NEW_KEYS: [&str; 2] = ["new", "newer"];

/// What happens to a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rot {
    Bit(u64),
    Zeros(u64),
    Noise(u64),
    /// One unit becomes the copy of another.
    Copy {
        from: u64,
        to: u64,
    },
    Swap(u64, u64),
    /// The end is cut off.
    Cut(u64),
}

impl Rot {
    /// Some kind of rot in unit `nth` of a file that has `units` of them.
    pub(crate) fn of_unit(nth: u64, units: u64, size: usize, chance: &mut Chance) -> Self {
        match chance.below(8) {
            0 => Rot::Zeros(nth),
            1 => Rot::Noise(nth),
            2 => Rot::Copy { from: chance.below(units), to: nth },
            3 => Rot::Swap(nth, chance.below(units)),
            4 => Rot::Cut(nth * size as u64),
            _ => Rot::Bit((nth * size as u64 + chance.below(size as u64)) * 8 + chance.below(8)),
        }
    }

    /// How many of the last commits may be missing silently: each batch proves those before it, so only
    /// the last one can be taken for one that was cut off in the middle, and what it proves with it.
    pub(crate) fn lost_max(self) -> usize {
        match self {
            Rot::Bit(_) | Rot::Zeros(_) | Rot::Noise(_) | Rot::Copy { .. } => 1,
            Rot::Swap(..) => 2,
            Rot::Cut(_) => usize::MAX,
        }
    }

    pub(crate) fn apply(self, content: &mut Content, size: usize, chance: &mut Chance) {
        let unit = |content: &Content, nth: u64| {
            let mut bytes = vec![0; size];
            content.read(nth * size as u64, &mut bytes);
            bytes
        };
        let len = content.len();
        match self {
            Rot::Bit(bit) => {
                let mut byte = [0];
                content.read(bit / 8, &mut byte);
                content.write(bit / 8, &[byte[0] ^ 1 << (bit % 8)]);
            }
            Rot::Zeros(nth) => content.write(nth * size as u64, &vec![0; size]),
            Rot::Noise(nth) => {
                let noise: Vec<_> = (0..size).map(|_| chance.number() as u8).collect();
                content.write(nth * size as u64, &noise);
            }
            Rot::Copy { from, to } => {
                let bytes = unit(content, from);
                content.write(to * size as u64, &bytes);
            }
            Rot::Swap(one, other) => {
                let (a, b) = (unit(content, one), unit(content, other));
                content.write(one * size as u64, &b);
                content.write(other * size as u64, &a);
            }
            Rot::Cut(at) => return content.set_len(at),
        }
        content.set_len(len);
    }
}

/// What became of a damaged store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Whole,
    /// An earlier state is there: the end of the log is lost, which is what a power cut in the last
    /// commits would have left too. So many commits are missing.
    Earlier(usize),
    /// An error says so at open.
    Refused,
    /// An error says so when it is read.
    Unreadable,
    /// Sessions are missing, and that is reported.
    Reported,
    /// Sessions are missing, and who does not ask for the pages to be verified is not told.
    Silent,
    /// The same, of sessions that show what they were once: a page that is out of date stands in the
    /// place of a newer one.
    Stale,
}

impl Outcome {
    /// For counting.
    pub(crate) fn word(self) -> String {
        match self {
            Outcome::Earlier(_) => "earlier".to_owned(),
            other => format!("{other:?}").to_lowercase(),
        }
    }
}

/// Opens a damaged store and looks. No value may be there that was not there before; what is missing
/// must be.
pub(crate) fn examine(victim: &Victim, image: Image, verify: bool) -> Result<Outcome, Trouble> {
    let mut world = victim.world(image);
    let store = match world.options().verify(verify).open(DIRECTORY) {
        Ok(store) => world.store.insert(store),
        Err(error) => return refused(error),
    };
    let outcome = victim.read(store)?;
    // Whatever it is, writing to it is no worse.
    let container = match store.container(CONTAINERS[0]) {
        Ok(container) => container,
        Err(_) => return Ok(outcome.max(Outcome::Reported)),
    };
    match store.transact(|txn| txn.get_or_create(&container, NEW_KEYS[0])?.insert("a", 1)) {
        Ok(_) => Ok(outcome),
        Err(error) => refused(error).map(|_| outcome.max(Outcome::Unreadable)),
    }
}

fn refused(error: Error) -> Result<Outcome, Trouble> {
    match error {
        Error::Corrupt { .. }
        | Error::NotAStore { .. }
        | Error::Format { .. }
        | Error::Storage(_) => Ok(Outcome::Refused),
        error => Err(error.into()),
    }
}

impl Victim {
    /// Reads every session of a damaged store, one by one and in a walk.
    pub(crate) fn read(&self, store: &Store) -> Result<Outcome, Trouble> {
        let states = &self.states;
        let newest = states.last().expect("there is a state");
        let (mut outcome, mut count) = (Outcome::Whole, 0);
        // Of a log that is cut off at its end an earlier state may be left, as a whole.
        let mut possible = vec![true; states.len()];
        let mut compare = |container: &Container, key: &Key, found: Attributes| {
            let is_in = |state: &Arc<State>| {
                let sessions = state.containers.get(container.name()).map(|it| &it.sessions);
                let session = sessions.and_then(|sessions| sessions.get(key));
                session.is_some_and(|session| session.values(START) == found)
            };
            let states = states.iter().zip(&mut possible);
            states.for_each(|(state, possible)| *possible &= is_in(state));
            if possible.contains(&true) {
                return Ok(Outcome::Whole);
            }
            match self.past.iter().any(is_in) || self.states.iter().any(is_in) {
                true => Ok(Outcome::Stale),
                false => Err(Trouble::from("a value that never was")),
            }
        };
        let txn = store.begin()?;
        for (name, expected) in &newest.containers {
            let Ok(container) = store.container(name) else { continue };
            for key in expected.sessions.keys() {
                let read = txn.peek(&container, key).and_then(|it| it.map(attributes).transpose());
                outcome = outcome.max(match read {
                    Ok(None) => Outcome::Whole,
                    Ok(Some(found)) => {
                        count += 1;
                        compare(&container, key, found)?
                    }
                    Err(error) => unreadable(error)?,
                });
            }
            for session in txn.iter(&container)? {
                let read = session.and_then(|it| Ok((it.key().clone(), attributes(it)?)));
                outcome = outcome.max(match read {
                    Ok((key, _)) if NEW_KEYS.iter().any(|new| new.as_bytes() == key.as_bytes()) => {
                        Outcome::Whole
                    }
                    Ok((key, found)) => compare(&container, &key, found)?,
                    Err(error) => unreadable(error)?,
                });
            }
        }
        let is_there = |(nth, state): (usize, &Arc<State>)| {
            let sessions = state.containers.values().map(|container| container.sessions.len());
            possible[nth] && count == sessions.sum::<usize>()
        };
        let is_told = outcome == Outcome::Unreadable || store.stats().damaged_sessions > 0;
        Ok(match states.iter().enumerate().rev().position(is_there) {
            _ if outcome == Outcome::Stale => Outcome::Stale,
            Some(0) => outcome,
            Some(lost) => outcome.max(Outcome::Earlier(lost)),
            None if is_told => outcome.max(Outcome::Reported),
            None => Outcome::Silent,
        })
    }
}

/// Opens a store, lets some of its bytes rot, and reads, writes and folds.
pub(crate) fn while_open(victim: &Victim, chance: &mut Chance) -> Result<Outcome, Trouble> {
    let mut world = victim.world(victim.image.clone());
    let store = world.options().open(DIRECTORY)?;
    let store = world.store.insert(store);
    let before = match chance.one_in(2) {
        // Some of it is in memory then.
        true => victim.read(store)?,
        false => Outcome::Whole,
    };
    world.disk.damage(|image| {
        for (_, node, size) in victim.files() {
            let content = image.content_mut(node);
            let units = content.len() / size as u64;
            for _ in 0..units.div_ceil(8) {
                let nth = chance.below(units);
                let rot = match chance.below(3) {
                    0 => Rot::Zeros(nth),
                    1 => Rot::Noise(nth),
                    _ => Rot::Bit(chance.below(content.len() * 8)),
                };
                rot.apply(content, size, chance);
            }
        }
    });
    let mut outcome = before.max(victim.read(store)?);
    let write = |key: &str| {
        let container = store.container(CONTAINERS[0])?;
        store.transact(|txn| txn.get_or_create(&container, key)?.insert("a", 1))
    };
    for key in NEW_KEYS {
        if let Err(error) = write(key) {
            outcome = outcome.max(unreadable(error)?);
        }
        if let Err(error) = store.fold() {
            outcome = outcome.max(unreadable(error)?);
        }
    }
    Ok(outcome.max(victim.read(store)?))
}

fn unreadable(error: Error) -> Result<Outcome, Trouble> {
    refused(error).map(|_| Outcome::Unreadable)
}

type Attributes = BTreeMap<String, Value>;

fn attributes(session: Session) -> Result<Attributes, Error> {
    Ok(session.iter()?.collect())
}
