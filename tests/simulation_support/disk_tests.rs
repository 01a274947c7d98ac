//! The simulated disk does what it says, and no more; and redb on it lives through power cuts.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

use redb::{Database, ReadableDatabase, StorageBackend, TableDefinition};
use sessile::{Access, Disk, DiskFile};

use super::chance::Chance;
use super::content::SECTOR;
use super::disk::{Fault, FaultKind, Image, Op, SimDisk};
use super::platter::{Cut, Platter};

fn path(name: &str) -> PathBuf {
    Path::new("/").join(name)
}

fn bytes_of(image: &Image, name: &str) -> Option<Vec<u8>> {
    let content = image.content(image.find(&path(name)).ok()?);
    let mut bytes = vec![0; content.len() as usize];
    content.read(0, &mut bytes);
    Some(bytes)
}

fn images(disk: &SimDisk, cuts: &[Cut]) -> Vec<Image> {
    let mut platter = Platter::new(&Image::default());
    disk.trace().iter().for_each(|op| platter.apply(op));
    let mut chance = Chance::new(1);
    let images = (0..200).flat_map(|_| cuts).map(|cut| platter.image(*cut, &mut chance));
    images.collect()
}

/// What all these power cuts leave of a file.
fn outcomes(disk: &SimDisk, cuts: &[Cut], name: &str) -> BTreeSet<Option<Vec<u8>>> {
    images(disk, cuts).iter().map(|image| bytes_of(image, name)).collect()
}

fn shared_file(disk: &SimDisk, name: &str) -> Arc<dyn DiskFile> {
    let file = disk.open(&path(name), Access::Create).unwrap();
    disk.sync_directory(Path::new("/")).unwrap();
    file
}

#[test]
fn what_was_synced_stays_and_the_rest_shows_any_version() {
    let disk = SimDisk::new(Image::default(), true);
    let file = shared_file(&disk, "file");
    file.write(0, &[1; 2 * SECTOR]).unwrap();
    file.sync().unwrap();
    assert_eq!(outcomes(&disk, &Cut::ALL, "file"), [Some(vec![1; 2 * SECTOR])].into());

    // The second sector is written twice.
    file.write(SECTOR as u64, &[2; SECTOR]).unwrap();
    file.write(SECTOR as u64, &[3; SECTOR]).unwrap();
    let show = |n| Some([[1; SECTOR], [n; SECTOR]].concat());
    assert_eq!(outcomes(&disk, &[Cut::Nothing], "file"), [show(1)].into());
    assert_eq!(outcomes(&disk, &[Cut::Everything], "file"), [show(3)].into());
    let all = [show(1), show(2), show(3)].into();
    assert_eq!(outcomes(&disk, &[Cut::Pages], "file"), all);
    assert!(outcomes(&disk, &[Cut::Sectors], "file").is_superset(&all));

    // A torn write is the head of the new bytes and the tail of the old ones, or the reverse.
    let torn = outcomes(&disk, &[Cut::Torn], "file");
    assert!(torn.len() > 20);
    for bytes in torn.into_iter().flatten() {
        assert_eq!(bytes[..SECTOR], [1; SECTOR]);
        let mut seen = bytes[SECTOR..].to_vec();
        seen.dedup();
        assert!(seen.len() <= 2, "{seen:?}");
    }
    let garbage = outcomes(&disk, &[Cut::Garbage], "file");
    assert!(garbage.contains(&show(0)), "a sector of zeros");
    assert!(garbage.into_iter().flatten().all(|bytes| bytes[..SECTOR] == [1; SECTOR]));
}

#[test]
fn lengths_and_names_are_lost_without_a_sync() {
    let disk = SimDisk::new(Image::default(), true);
    let file = disk.open(&path("new"), Access::Create).unwrap();
    file.write(0, b"here").unwrap();
    file.sync().unwrap();
    // Synced, but nobody knows under what name.
    assert_eq!(
        outcomes(&disk, &Cut::ALL, "new"),
        [None, Some(b"here".to_vec())].into(),
        "the name is not durable"
    );
    disk.rename(&path("new"), &path("named")).unwrap();
    let either: BTreeSet<_> = images(&disk, &[Cut::Sectors])
        .iter()
        .map(|image| (bytes_of(image, "new").is_some(), bytes_of(image, "named").is_some()))
        .collect();
    assert_eq!(either, [(false, false), (true, false), (false, true)].into());
    disk.sync_directory(Path::new("/")).unwrap();
    assert_eq!(outcomes(&disk, &Cut::ALL, "named"), [Some(b"here".to_vec())].into());

    file.set_len(2).unwrap();
    let lens = outcomes(&disk, &Cut::ALL, "named");
    assert_eq!(lens, [Some(b"here".to_vec()), Some(b"he".to_vec())].into());
    disk.remove(&path("named")).unwrap();
    assert!(outcomes(&disk, &[Cut::Nothing], "named").contains(&Some(b"here".to_vec())));
    assert_eq!(outcomes(&disk, &[Cut::Everything], "named"), [None].into());
}

#[test]
fn a_failed_sync_loses_bytes_behind_the_back_of_the_cache() {
    let disk = SimDisk::new(Image::default(), true);
    let file = shared_file(&disk, "file");
    file.write(0, &[1; SECTOR]).unwrap();
    file.sync().unwrap();
    file.write(0, &[2; SECTOR]).unwrap();
    let fault = Fault { kind: FaultKind::Sync, from: 0, sticky: false, kept: 0, seed: 1 };
    disk.set_fault(Some(fault));
    assert!(file.sync().is_err());
    // From here on the disk says that all is well.
    file.sync().unwrap();
    let mut read = [0; SECTOR];
    file.read(0, &mut read).unwrap();
    assert_eq!(read, [2; SECTOR]);
    assert_eq!(outcomes(&disk, &Cut::ALL, "file"), [Some(vec![1; SECTOR])].into());
    // What is written anew is written back.
    file.write(0, &[2; SECTOR]).unwrap();
    file.sync().unwrap();
    assert_eq!(outcomes(&disk, &Cut::ALL, "file"), [Some(vec![2; SECTOR])].into());
}

#[test]
fn lying_syncs_make_nothing_durable_until_later_ones_do() {
    let disk = SimDisk::new(Image::default(), true);
    let file = shared_file(&disk, "file");
    for n in 1..=4 {
        file.write(0, &[n; SECTOR]).unwrap();
        file.sync().unwrap();
    }
    for lies in 0..4 {
        let mut platter = Platter::new(&Image::default()).lies(lies);
        disk.trace().iter().for_each(|op| platter.apply(op));
        let image = platter.image(Cut::Nothing, &mut Chance::new(1));
        assert_eq!(bytes_of(&image, "file"), Some(vec![4 - lies as u8; SECTOR]));
        let image = platter.image(Cut::Everything, &mut Chance::new(1));
        assert_eq!(bytes_of(&image, "file"), Some(vec![4; SECTOR]));
    }
}

#[test]
fn every_kind_of_fault_is_met_once_or_from_then_on() {
    for kind in FaultKind::ALL {
        for sticky in [false, true] {
            let disk = SimDisk::<()>::new(Image::default(), true);
            let file = disk.open(&path("file"), Access::Create).unwrap();
            disk.set_fault(Some(Fault { kind, from: 0, sticky, kept: 0, seed: 1 }));
            let mut met = 0;
            for n in 1..10 {
                let ends_at = disk.image().content(1).len();
                met += u32::from(file.write(ends_at, &[n]).is_err());
                met += u32::from(file.sync().is_err());
            }
            assert_eq!(met > 1, sticky, "{kind:?}");
            assert!(met > 0, "{kind:?}");
            disk.set_fault(None);
            file.write(0, b"fine").unwrap();
        }
    }
}

#[test]
fn a_killed_process_writes_no_more() {
    let disk = SimDisk::<()>::new(Image::default(), true);
    let file = disk.open(&path("file"), Access::Create).unwrap();
    file.write(0, b"one").unwrap();
    let next = disk.kill();
    assert!(file.write(0, b"two").is_err());
    assert!(disk.open(&path("file"), Access::Read).is_err());
    let file = next.open(&path("file"), Access::Read).unwrap();
    let mut read = [0; 3];
    file.read(0, &mut read).unwrap();
    assert_eq!(&read, b"one");
}

/// Every image of random writes is made of what was written, and each sector of it is either
/// durable or a version since.
#[test]
fn images_hold_nothing_but_versions() {
    let sectors = |bytes: &[u8]| bytes.chunks(SECTOR).map(<[u8]>::to_vec).collect::<Vec<_>>();
    for seed in 0..30 {
        let mut chance = Chance::new(seed);
        let disk = SimDisk::new(Image::default(), true);
        let file = shared_file(&disk, "file");
        file.set_len(64 * SECTOR as u64).unwrap();
        file.sync().unwrap();
        let mut allowed: BTreeMap<usize, BTreeSet<Vec<u8>>> = BTreeMap::new();
        for n in 0..40 {
            let start = chance.below(60);
            let range: Range<u64> = start..start + 1 + chance.below(4);
            let len = (range.end - range.start) as usize * SECTOR;
            file.write(range.start * SECTOR as u64, &vec![n; len]).unwrap();
            if chance.one_in(8) {
                file.sync().unwrap();
                allowed.clear();
            }
            let now = bytes_of(&disk.image(), "file").unwrap();
            for (sector, bytes) in sectors(&now).into_iter().enumerate() {
                allowed.entry(sector).or_default().insert(bytes);
            }
            let mut platter = Platter::new(&Image::default());
            disk.trace().iter().for_each(|op| platter.apply(op));
            let cuts = [Cut::Nothing, Cut::Everything, Cut::Pages, Cut::Header, Cut::OneLost];
            for cut in cuts {
                let image = platter.image(cut, &mut chance);
                let shown = bytes_of(&image, "file").unwrap();
                for (sector, bytes) in sectors(&shown).into_iter().enumerate() {
                    // Before the first write after a sync, the durable version is the last one.
                    let versions = &allowed[&sector];
                    let is_durable = platter_durable(&platter, sector) == bytes;
                    assert!(is_durable || versions.contains(&bytes), "{cut:?} of seed {seed}");
                }
            }
        }
    }
}

fn platter_durable(platter: &Platter, sector: usize) -> Vec<u8> {
    let image = platter.image(Cut::Nothing, &mut Chance::new(0));
    let bytes = bytes_of(&image, "file").unwrap();
    bytes[sector * SECTOR..(sector + 1) * SECTOR].to_vec()
}

struct Backend(Arc<dyn DiskFile>);

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Backend")
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

const NUMBERS: TableDefinition<'_, u64, u64> = TableDefinition::new("numbers");

/// Each commit writes its number to some rows: they are all of one commit, whatever is left.
fn redb_after(lies: usize) -> (usize, usize) {
    const COMMITS: u64 = 6;
    let disk: SimDisk<u64> = SimDisk::new(Image::default(), true);
    let file = disk.open(&path("numbers"), Access::Create).unwrap();
    disk.sync_directory(Path::new("/")).unwrap();
    let open =
        |file| Database::builder().set_cache_size(1 << 16).create_with_backend(Backend(file));
    let database = open(file).unwrap();
    for n in 1..=COMMITS {
        let mut txn = database.begin_write().unwrap();
        txn.set_two_phase_commit(true);
        txn.set_quick_repair(true);
        let mut table = txn.open_table(NUMBERS).unwrap();
        (0..200).for_each(|row| drop(table.insert(row, n).unwrap()));
        drop(table);
        txn.commit().unwrap();
        disk.mark(n);
    }
    let mut platter = Platter::new(&Image::default()).lies(lies);
    let mut chance = Chance::new(1);
    let mut acknowledged = None;
    let (mut checked, mut lost) = (0, 0);
    for op in disk.trace() {
        platter.apply(&op);
        if let Op::Mark(n) = op {
            acknowledged = Some(n);
        }
        let Some(acknowledged) = acknowledged else { continue };
        for cut in Cut::ALL {
            checked += 1;
            let disk = SimDisk::<()>::new(platter.image(cut, &mut chance), false);
            let found = || {
                let database = open(disk.open(&path("numbers"), Access::Write).ok()?).ok()?;
                let table = database.begin_read().ok()?.open_table(NUMBERS).ok()?;
                let rows = (0..200).map(|row| table.get(row).ok()?.map(|n| n.value()));
                let rows = rows.collect::<Option<BTreeSet<_>>>()?;
                (rows.len() == 1).then(|| rows.first().copied()).flatten()
            };
            // redb panics on some of what a lying disk leaves.
            let found = catch_unwind(AssertUnwindSafe(found)).unwrap_or(None);
            let found = found.filter(|n| [acknowledged, acknowledged + 1].contains(n));
            lost += usize::from(found.is_none());
        }
    }
    (checked, lost)
}

#[test]
fn redb_lives_through_power_cuts() {
    let (checked, lost) = redb_after(0);
    assert!(checked > 500, "{checked}");
    assert_eq!(lost, 0, "of {checked}");
}
