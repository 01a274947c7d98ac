//! A backup is there, and whole, or it is not: whenever the power is cut, whatever fails.

use std::path::Path;

use sessile::{Disk as _, Error, ExportOptions, ManualClock, Options, Policy, Store};

use super::chance::Chance;
use super::disk::{Fault, FaultKind, Image, SimDisk};
use super::model::Trouble;
use super::platter::{Cut, Platter};
use super::world::START;

const ORIGINAL: &str = "/sessions";
const COPY: &str = "/monday";
const INCOMPLETE: &str = "/monday.incomplete";

/// A store on a disk, and what was backed up of it.
pub(crate) struct Story {
    disk: SimDisk,
    store: Store,
    /// What the store holds.
    digest: String,
    /// The operations of the disk during the backup: the first of the record, the first of all, and
    /// those after it.
    from: (usize, u64),
    until: (usize, u64),
}

fn options(disk: SimDisk, seed: u64) -> Options {
    let clock = ManualClock::new(START);
    let options = Options::new().disk(disk).clock(clock).sweep_every(None).seed(seed);
    options.segment_bytes(16 << 10).fold_inline(1)
}

/// What a power cut has left: in words, whether the backup had been acknowledged, and the disk.
pub(crate) type Left = (String, bool, Image);

/// What a store holds: two of one digest hold the same.
pub(crate) fn digest(store: &Store) -> Result<String, Error> {
    let exported = store.export(std::io::sink(), &ExportOptions::new())?;
    Ok(format!("{} sessions, {}", exported.sessions, exported.digest))
}

impl Story {
    /// A store with a past, some of it in the log only.
    pub(crate) fn new(seed: u64) -> Result<Self, Trouble> {
        let mut chance = Chance::new(seed);
        let disk = SimDisk::new(Image::default(), true);
        let store = options(disk.clone(), seed).open(ORIGINAL)?;
        let containers = [
            store.container_with("visitors", Policy::new())?,
            store.container_with("members", Policy::new().timeout_secs(0))?,
        ];
        for n in 0..5 + chance.below(30) {
            let key = format!("{}", chance.below(12));
            let container = chance.pick(&containers);
            store.transact(|txn| match chance.below(5) {
                0 => txn.remove(container, &key).map(|_| ()),
                size => {
                    let session = txn.get_or_create(container, &key)?;
                    session.insert("n", n)?;
                    session.insert("filling", "x".repeat(30 * size as usize))
                }
            })?;
            if chance.one_in(10) {
                store.fold()?;
            }
        }
        let from = (disk.trace().len(), disk.operations());
        let digest = digest(&store)?;
        let mut story = Story { disk, store, digest, from, until: from };
        if chance.one_in(3) {
            story.leave_something(&mut chance)?;
        }
        story.from = (story.disk.trace().len(), story.disk.operations());
        let backup = story.store.backup_to(COPY)?;
        story.until = (story.disk.trace().len(), story.disk.operations());
        story.commit()?;
        if backup.damaged > 0 {
            return Err("nothing is damaged here".into());
        }
        Ok(story)
    }

    /// An attempt that fails somewhere.
    fn leave_something(&mut self, chance: &mut Chance) -> Result<(), Trouble> {
        let from = self.disk.operations() + chance.below(60);
        let fault =
            Fault { kind: FaultKind::Broken, from, sticky: false, kept: 0, seed: chance.number() };
        self.disk.set_fault(Some(fault));
        let failed = self.store.backup_to(COPY);
        self.disk.set_fault(None);
        if failed.is_ok() {
            self.disk.rename(Path::new(COPY), Path::new("/sunday"))?;
            self.disk.sync_directory(Path::new("/"))?;
        }
        // What it read from may have ended.
        self.commit()?;
        self.digest = digest(&self.store)?;
        Ok(())
    }

    fn commit(&self) -> Result<(), Trouble> {
        let visitors = self.store.container("visitors")?;
        self.store.transact(|txn| txn.get_or_create(&visitors, "later")?.add("n", 1))?;
        Ok(())
    }

    /// What power cuts leave at each moment of the backup, and a little later.
    pub(crate) fn cuts(&self, cuts: usize, chance: &mut Chance) -> Vec<Left> {
        let mut platter = Platter::new(&Image::default());
        let mut images = Vec::new();
        for (at, op) in self.disk.trace().iter().enumerate() {
            platter.apply(op);
            if at + 1 < self.from.0 {
                continue;
            }
            for _ in 0..cuts {
                let cut = *chance.pick(&Cut::ALL);
                let is_done = at + 1 >= self.until.0;
                let what = format!("{cut:?} after {at} of {}..{}", self.from.0, self.until.0);
                images.push((what, is_done, platter.image(cut, chance)));
            }
        }
        images
    }

    /// What a power cut left: a whole backup, or none; and there can be another one.
    pub(crate) fn verify(&self, (_, is_done, image): Left, seed: u64) -> Result<(), Trouble> {
        let disk = SimDisk::new(image, false);
        let is_there = disk.kind(Path::new(COPY))?.is_some();
        if is_there {
            let copy = options(disk.clone(), seed).open(COPY)?;
            let found = digest(&copy)?;
            if found != self.digest {
                return Err(format!("the backup has {found}, not {}", self.digest).into());
            }
            let visitors = copy.container("visitors")?;
            copy.transact(|txn| txn.get_or_create(&visitors, "later").map(|_| ()))?;
            copy.close()?;
        } else if is_done {
            return Err("a backup that was acknowledged is gone".into());
        }
        let store = options(disk.clone(), seed + 1).open(ORIGINAL)?;
        again(&store, &disk, is_there)
    }

    /// An operation fails in the middle of a backup: it fails, or it is whole, and there can be another.
    pub(crate) fn fail(seed: u64, chance: &mut Chance) -> Result<bool, Trouble> {
        let story = Story::new(seed)?;
        let (disk, store) = (&story.disk, &story.store);
        let digest = digest(store)?;
        disk.rename(Path::new(COPY), Path::new("/tuesday"))?;
        let length = story.until.1 - story.from.1;
        let kind = *chance.pick(&FaultKind::ALL);
        let from = disk.operations() + chance.below(length);
        let (sticky, kept) = (chance.one_in(2), chance.below(9));
        disk.set_fault(Some(Fault { kind, from, sticky, kept, seed: chance.number() }));
        let backup = store.backup_to(COPY);
        disk.set_fault(None);
        let is_there = disk.kind(Path::new(COPY))?.is_some();
        if is_there {
            let copy = options(disk.clone(), seed).open(COPY)?;
            if self::digest(&copy)? != digest {
                return Err(format!("{kind:?} at {from}: the backup is another").into());
            }
        } else if backup.is_ok() {
            return Err(format!("{kind:?} at {from}: there is no backup").into());
        }
        story.commit()?;
        again(store, disk, is_there)?;
        Ok(backup.is_err())
    }
}

/// Makes a backup where there may be one, and looks at it.
fn again(store: &Store, disk: &SimDisk, is_there: bool) -> Result<(), Trouble> {
    let wanted = digest(store)?;
    match (store.backup_to(COPY), is_there) {
        (Ok(_), false) => {}
        (Err(Error::AlreadyThere { .. }), true) => return Ok(()),
        (other, _) => return Err(format!("another backup: {other:?}").into()),
    }
    if disk.kind(Path::new(INCOMPLETE))?.is_some() {
        return Err("something is left of an attempt".into());
    }
    let found = digest(&options(disk.clone(), 3).open(COPY)?)?;
    match found == wanted {
        true => Ok(()),
        false => Err(format!("another backup has {found}, not {wanted}").into()),
    }
}
