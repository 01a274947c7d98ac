//! A compaction changes nothing that a client could see, whenever the power is cut and whatever fails.

use sessile::{Error, ManualClock, Options, Policy, Store};

use super::backups::digest;
use super::chance::Chance;
use super::disk::{Fault, FaultKind, Image, SimDisk};
use super::model::Trouble;
use super::platter::{Cut, Platter};
use super::world::START;

const STORE: &str = "/sessions";

/// What a store held when, and the record of its disk.
pub(crate) struct History {
    disk: SimDisk,
    /// From this length of the record on the store held that.
    held: Vec<(usize, String)>,
    /// Where the first compaction begins.
    from: usize,
}

fn options(disk: SimDisk, seed: u64) -> Options {
    let clock = ManualClock::new(START);
    let options = Options::new().disk(disk).clock(clock).sweep_every(None).seed(seed);
    // The log is small, so that segments are used again soon.
    options.segment_bytes(8 << 10).fold_inline(1 + seed % 5)
}

fn change(store: &Store, chance: &mut Chance) -> Result<(), Error> {
    let visitors = store.container("visitors")?;
    let members = store.container("members")?;
    store.transact(|txn| {
        let key = format!("{}", chance.below(15));
        match chance.below(4) {
            0 => txn.remove(&visitors, &key).map(|_| ()),
            // There is one, under one key at a time.
            1 => match txn.keys(&members)?.next() {
                Some(key) => {
                    let session = txn.get(&members, key?)?.expect("it was just listed");
                    session.rotate(format!("{:x}", chance.number())).map(|_| ())
                }
                None => txn.create(&members, "first").map(|_| ()),
            },
            _ => {
                let filling = "x".repeat(200 * chance.below(6) as usize);
                txn.get_or_create(&visitors, &key)?.insert("filling", filling)
            }
        }
    })?;
    Ok(())
}

impl History {
    /// Commits, folds and compactions, as chance has it.
    pub(crate) fn new(seed: u64) -> Result<Self, Trouble> {
        let mut chance = Chance::new(seed);
        let disk = SimDisk::new(Image::default(), true);
        let store = options(disk.clone(), seed).open(STORE)?;
        for name in ["visitors", "members"] {
            store.container_with(name, Policy::new())?;
        }
        for _ in 0..10 + chance.below(20) {
            change(&store, &mut chance)?;
        }
        let mut held = vec![(disk.trace().len(), digest(&store)?)];
        let from = disk.trace().len();
        for _ in 0..2 {
            store.compact()?;
            for _ in 0..chance.below(8) {
                change(&store, &mut chance)?;
                held.push((disk.trace().len(), digest(&store)?));
            }
            if chance.one_in(2) {
                store.fold()?;
            }
        }
        if chance.one_in(2) {
            store.close()?;
        }
        Ok(History { disk, held, from })
    }

    /// What power cuts leave: in words, what the store may hold, and the disk.
    pub(crate) fn cuts(
        &self,
        cuts: usize,
        chance: &mut Chance,
    ) -> Vec<(String, Vec<String>, Image)> {
        let mut platter = Platter::new(&Image::default());
        let mut images = Vec::new();
        for (at, op) in self.disk.trace().iter().enumerate() {
            platter.apply(op);
            if at < self.from {
                continue;
            }
            // What was acknowledged, and what was about to be.
            let known = self.held.iter().take_while(|(len, _)| *len <= at + 1).count();
            let held = self.held[known - 1..].iter().take(2);
            let may_hold: Vec<_> = held.map(|(_, digest)| digest.clone()).collect();
            for _ in 0..cuts {
                let cut = *chance.pick(&Cut::ALL);
                let what = format!("{cut:?} after {at}");
                images.push((what, may_hold.clone(), platter.image(cut, chance)));
            }
        }
        images
    }
}

/// What a power cut left is what was there; and it can be compacted, and goes on.
pub(crate) fn verify(may_hold: &[String], image: Image, seed: u64) -> Result<(), Trouble> {
    let disk = SimDisk::new(image, false);
    let store = options(disk.clone(), seed).open(STORE)?;
    let found = digest(&store)?;
    if !may_hold.contains(&found) {
        return Err(format!("there is {found}, not one of {may_hold:?}").into());
    }
    let left = disk.image().files(STORE.as_ref());
    if left.iter().any(|(name, _)| name == "sessions.redb.new") {
        return Err("something is left of a compaction".into());
    }
    store.compact()?;
    if digest(&store)? != found {
        return Err("another compaction has changed something".into());
    }
    change(&store, &mut Chance::new(seed))?;
    let found = digest(&store)?;
    store.close()?;
    match digest(&options(disk, seed).open(STORE)?)? == found {
        true => Ok(()),
        false => Err("what was committed after it is gone".into()),
    }
}

/// An operation fails in the middle of a compaction: nothing is lost, and it can be done again.
pub(crate) fn fail(seed: u64) -> Result<bool, Trouble> {
    let chance = &mut Chance::new(seed);
    let disk = SimDisk::new(Image::default(), false);
    let store = options(disk.clone(), seed).open(STORE)?;
    for name in ["visitors", "members"] {
        store.container_with(name, Policy::new())?;
    }
    for _ in 0..20 {
        change(&store, chance)?;
    }
    let before = disk.operations();
    store.compact()?;
    let length = disk.operations() - before;
    let (kind, from) = (*chance.pick(&FaultKind::ALL), disk.operations() + chance.below(length));
    let (sticky, kept) = (chance.one_in(2), chance.below(9));
    let held = digest(&store)?;
    disk.set_fault(Some(Fault { kind, from, sticky, kept, seed: chance.number() }));
    let failed = store.compact().is_err();
    disk.set_fault(None);
    // This opens again what has failed, where everything happens on the threads of clients.
    store.fold()?;
    let visitors = store.container("visitors")?;
    store.transact(|txn| txn.get_or_create(&visitors, "after").map(|_| ()))?;
    store.transact(|txn| txn.remove(&visitors, "after").map(|_| ()))?;
    store.fold()?;
    if digest(&store)? != held {
        return Err(format!("{kind:?} at {from}: it holds something else").into());
    }
    store.compact()?;
    store.close()?;
    match digest(&options(disk, seed).open(STORE)?)? == held {
        true => Ok(failed),
        false => Err(format!("{kind:?} at {from}: it holds something else now").into()),
    }
}
