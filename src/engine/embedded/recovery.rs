//! Opening a store: what the log holds beyond the tables is replayed into memory.
//!
//! After a clean end there is nothing to replay, and the segments are used again. After any other,
//! the chain of batches is followed from what is folded to its end. Its states are kept in memory and
//! folded in the background, while the store serves: opening takes as long as reading the log does.
//!
//! ```text
//!   epoch 7   | batch | batch | batch |  ?  |            ? in doubt: was it synced?
//!                             |       |
//!                          durable   end of the chain
//!   epoch 8                           |  ?  | new batches ...       in a new segment
//! ```
//!
//! What follows the last batch that a later one calls durable was read, but that proves
//! nothing: after a failed sync the operating system may show what is not on the disk. So it is
//! written again into a new segment and synced before anybody sees it. No old segment is written again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, OnceLock};

use super::directory::Directory;
use super::disk::Access;
use super::generation::{Dated, Frozen, Generation};
use super::log::{self, HEADER_BYTES, Header, Link, Log, Segment};
use super::marker::StoreId;
use super::records::{self, Meta, Replay};
use super::tables::{self, Tables, TablesView};
use super::{Met, Settings, Shared, State};
use crate::engine::{Recovered, View};
use crate::error::Error;
use crate::model::clock::Time;
use crate::model::container::{ContainerId, ContainerState, Place};
use crate::model::session::{Record, Revision, SessionId};

const RESERVE: &str = "reserve";
/// What a full disk leaves for ending sessions: redb writes some pages for each. Less where the log is
/// small.
const RESERVE_BYTES: u64 = 8 << 20;

/// How many epochs are remembered: who asks what became of a commit asks soon.
const EPOCHS_MAX: usize = 1_024;

/// No store counts so far. A number beyond it was not counted, and there would be none after it.
const COUNTED_MAX: u64 = 1 << 62;

/// No segment is larger; a file that claims to be is none of ours.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// Makes the files of a new store.
pub(super) fn make(directory: &Directory, segment_bytes: u64) -> Result<(), Error> {
    Tables::create(directory)?;
    for number in [0, 1] {
        Segment::create(directory, number, segment_bytes)?;
    }
    directory.sync()
}

/// Opens the files of a store.
pub(super) fn open(
    directory: Arc<Directory>,
    settings: Settings,
) -> Result<(Shared, Recovered), Error> {
    // Of a compaction that was cut off; mostly there is none.
    let _ = directory.remove(tables::DATABASE_IN_THE_MAKING);
    let tables = open_tables(&directory, settings.verify)?;
    let met = Arc::<Met>::default();
    let meta = tables.meta()?;
    let folded = Revision(meta.folded);
    let view = tables.view(Arc::clone(&met))?;

    let segments = segments(&directory, Access::Write)?;
    let batches = Batches::read(directory.id(), &segments, folded, &directory)?;
    let last = batches.chain.last().map_or(0, |(header, ..)| header.link.revision.0);
    let counted = [meta.folded, meta.begun, meta.epoch, batches.epoch, last];
    if counted.iter().any(|number| *number > COUNTED_MAX) {
        return Err(records::corrupt("meta", "a number is greater than any can be"));
    }
    let replayed = batches.replay(&view, &tables.containers()?, folded)?;
    let clean = meta.clean && batches.chain.is_empty();

    let log_room: u64 = segments.iter().map(|segment| segment.len).sum();
    let mut next_segment = segments.last().map_or(0, |segment| segment.number + 1);
    // Where a write or a sync may have failed, nothing is written again.
    let mut reusable: Vec<_> = match clean {
        true => {
            let whole = segments.iter().filter(|segment| segment.len == settings.segment_bytes);
            whole.take(2).cloned().collect()
        }
        false => Vec::new(),
    };
    let mut provide = |len: u64| -> Result<Segment, Error> {
        if let Some(segment) = reusable.pop() {
            return Ok(segment);
        }
        let segment = new_segment(&directory, next_segment, len);
        next_segment += 1;
        segment
    };
    let epoch = batches.epoch.max(meta.epoch) + 1;
    let active =
        provide(settings.segment_bytes).or_else(|error| match tables::is_full(&error) {
            // A short one will do for ends, in a half of what was set aside for them. The other half is for
            // the tables.
            true => {
                give_up_reserve(&directory);
                provide(reserve_bytes(settings.segment_bytes) / 2)
            }
            false => Err(error),
        })?;
    // The second one can wait, unless everything is to happen in a fixed order.
    let free = match clean || settings.fold_inline.is_some() {
        true => match provide(settings.segment_bytes) {
            Err(error) if tables::is_full(&error) => None,
            provided => Some(provided?),
        },
        false => None,
    };
    let mut log = Log::new(directory.id(), epoch, active, batches.durable());
    batches.rewrite(&mut log)?;
    let durable = log.durable.revision;
    // No number is used twice, and the log can have held as many commits as bytes, for those that
    // are lost.
    let used = durable.max(Revision(meta.begun));
    let revision = match clean {
        true => used,
        false => Revision(used.0 + log_room.max(2 * settings.segment_bytes)),
    };
    let note = || {
        tables.set_meta(|meta| {
            meta.clean = false;
            note_epoch(meta, (meta.epoch, durable), epoch, revision);
        })
    };
    note().or_else(|error| match tables::is_full(&error) {
        true => {
            give_up_reserve(&directory);
            tables.reopen().and_then(|()| note())
        }
        false => Err(error),
    })?;

    let in_use = [Some(log.active.number), free.as_ref().map(|free| free.number)];
    let is_old = |segment: &Segment| !in_use.contains(&Some(segment.number));
    let old: Vec<_> = segments.into_iter().filter(is_old).collect();
    let Replayed { generation, containers, .. } = replayed;
    let changed = generation.sessions.len() as u64;
    let recovered = Recovered {
        // The one from before has ended if the tables were opened again.
        view: Arc::new(tables.view(Arc::clone(&met))?),
        folded,
        sessions: generation
            .sessions
            .iter()
            .map(|(place, (revision, record))| (place.clone(), *revision, record.clone()))
            .collect(),
        containers: containers.into_values().map(Arc::unwrap_or_clone).collect(),
        revision,
        time: generation.time.max(Time::from_micros(meta.time)),
    };
    let mut frozen = VecDeque::new();
    if !batches.chain.is_empty() {
        frozen.push_back(Arc::new(Frozen {
            generation,
            log_bytes: batches.log_bytes(),
            segments: old,
            reusable: false,
        }));
    } else {
        old.iter().try_for_each(|old| directory.remove(&Segment::name(old.number)))?;
    }
    let state = State {
        log,
        epochs: tables.meta()?.epochs,
        free,
        next_segment,
        pending: Vec::new(),
        active: Generation::default(),
        frozen,
        failed: None,
        stalled: None,
        unreadable: false,
        closing: false,
        buffer: Vec::new(),
    };
    directory.checked()?;
    let shared = Shared {
        settings,
        directory,
        tables,
        state: Mutex::new(state),
        changed: Condvar::new(),
        listener: OnceLock::new(),
        met,
        folds: 0.into(),
        folding: false.into(),
        writing: Mutex::new(false),
        fold_failures: 0.into(),
        recoveries: 0.into(),
        occasions: 0.into(),
        levels: Mutex::default(),
        replayed: (!clean).then_some((batches.chain.len() as u64, changed)),
    };
    Ok((shared, recovered))
}

/// Opens the tables, and verifies all of them where there is reason to.
fn open_tables(directory: &Arc<Directory>, verify: bool) -> Result<Tables, Error> {
    if verify {
        return Tables::open(Arc::clone(directory), true);
    }
    let tables = match Tables::open(Arc::clone(directory), false) {
        Err(Error::Corrupt { .. }) => return Tables::open(Arc::clone(directory), true),
        tables => tables?,
    };
    // After the end of a process the file is what was written. After that of a machine it need not be.
    if directory.machine_restarted() && !tables.meta()?.clean {
        tables.close()?;
        return Tables::open(Arc::clone(directory), true);
    }
    Ok(tables)
}

/// Makes a segment, durably.
pub(super) fn new_segment(directory: &Directory, number: u64, len: u64) -> Result<Segment, Error> {
    let made = Segment::create(directory, number, len)
        .and_then(|segment| directory.sync().map(|()| segment));
    if made.is_err() {
        // What there is of it only takes up room.
        let _ = directory.remove(&Segment::name(number));
    }
    made
}

/// The files of the log, in the order of their numbers.
pub(super) fn segments(directory: &Directory, access: Access) -> Result<Vec<Segment>, Error> {
    let names = directory.names()?;
    let mut numbers: Vec<_> = names.iter().filter_map(|name| Segment::number(name)).collect();
    numbers.sort_unstable();
    let open = |number: u64| {
        let name = Segment::name(number);
        let file = directory.open_file(&name, access)?;
        let len = file.len().map_err(|error| directory.failed(&name, error))?;
        match len > SEGMENT_BYTES_MAX {
            true => Err(records::corrupt("log", "a segment is longer than any can be")),
            false => Ok(Segment { number, file, len }),
        }
    };
    numbers.into_iter().map(open).collect()
}

/// The part of the log that is not folded.
pub(super) struct Batches {
    store: StoreId,
    /// Each batch, the segment that it is in, and where.
    pub chain: Vec<(Header, Segment, usize)>,
    folded: Link,
    /// The greatest epoch of any batch.
    pub epoch: u64,
}

impl Batches {
    /// Follows the chain through the segments.
    pub(super) fn read(
        store: StoreId,
        segments: &[Segment],
        folded: Revision,
        directory: &Directory,
    ) -> Result<Self, Error> {
        let mut found = Vec::new();
        for segment in segments {
            let mut bytes = vec![0; segment.len as usize];
            let read = segment.file.read(0, &mut bytes);
            read.map_err(|error| directory.failed(&Segment::name(segment.number), error))?;
            let batches = log::scan(store, &bytes);
            found.extend(batches.into_iter().map(|batch| (batch.header, segment, batch.at)));
        }
        let headers: Vec<_> = found.iter().map(|(header, ..)| *header).collect();
        let chain = log::chain(folded, &headers).map_err(|end| {
            let reason = format!(
                "commits after {end} are missing, and later ones prove that they were acknowledged"
            );
            Error::Corrupt { table: "log", reason }
        })?;
        let batch = |at: usize| {
            let (header, segment, at) = &found[at];
            (*header, Segment::clone(segment), *at)
        };
        let chain: Vec<_> = chain.into_iter().map(batch).collect();
        let before = chain.first().map(|(header, ..)| header.predecessor);
        let folded = before.unwrap_or(Link { revision: folded, checksum: 0 });
        let epoch = headers.iter().map(|header| header.epoch).max().unwrap_or(0);
        Ok(Batches { store, chain, folded, epoch })
    }

    /// How much of the log it takes up.
    pub(super) fn log_bytes(&self) -> u64 {
        self.chain.iter().map(|(header, ..)| log::padded(header.length)).sum()
    }

    /// The last batch that another one calls durable.
    fn durable(&self) -> Link {
        let durable = self.chain.last().map_or(self.folded.revision, |(last, ..)| last.durable);
        let links = self.chain.iter().map(|(header, ..)| header.link);
        links.take_while(|link| link.revision <= durable).last().unwrap_or(self.folded)
    }

    /// Writes again what is in doubt, and makes it durable.
    fn rewrite(&self, log: &mut Log) -> Result<(), Error> {
        let durable = log.durable.revision;
        let doubtful = self.chain.iter().filter(|(header, ..)| header.link.revision > durable);
        let again = doubtful.map(|batch| Ok((batch.0, self.bytes(batch)?)));
        let again = again.collect::<Result<_, Error>>()?;
        log.append_again(again).map_err(Error::storage)?;
        match log.is_synced() {
            true => Ok(()),
            false => log.sync().map_err(Error::storage),
        }
    }

    /// The bytes of a batch. They are checked again: they were read twice.
    fn bytes(&self, (header, segment, at): &(Header, Segment, usize)) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; header.length];
        segment.file.read(*at as u64, &mut bytes).map_err(Error::storage)?;
        match Header::parse(self.store, &bytes) == Some(*header) {
            true => Ok(bytes),
            false => Err(records::corrupt("log", "a batch is not what it was a moment ago")),
        }
    }

    /// What the chain makes of sessions and containers.
    pub(super) fn replay(
        &self,
        view: &TablesView,
        containers: &[ContainerState],
        folded: Revision,
    ) -> Result<Replayed, Error> {
        let containers = containers.iter().map(|state| (state.id, Arc::new(state.clone())));
        let mut replaying = Replaying {
            view,
            generation: Generation { last: folded, ..Generation::default() },
            missing: BTreeSet::new(),
        };
        for batch in &self.chain {
            let (header, ..) = batch;
            records::replay(&self.bytes(batch)?[HEADER_BYTES..], &mut replaying)?;
            let generation = &mut replaying.generation;
            generation.last = header.link.revision;
            generation.time = generation.time.max(header.time);
        }
        let Replaying { generation, missing, .. } = replaying;
        missing.into_iter().for_each(|(place, _)| view.note_damage(place));
        let mut all: BTreeMap<_, _> = containers.collect();
        all.extend(generation.containers.iter().map(|(id, state)| (*id, Arc::clone(state))));
        Ok(Replayed { generation, containers: all })
    }
}

/// What the store is, with the log taken into account.
pub(super) struct Replayed {
    pub generation: Generation,
    pub containers: BTreeMap<ContainerId, Arc<ContainerState>>,
}

struct Replaying<'a> {
    view: &'a TablesView,
    generation: Generation,
    /// Sessions that were changed and are not there. Their end must follow: it is in the tables
    /// already, and so is the absence.
    missing: BTreeSet<(Place, SessionId)>,
}

impl Replay for Replaying<'_> {
    fn session(&mut self, place: &Place) -> Result<Option<Dated>, Error> {
        if let Some(known) = self.generation.sessions.get(place) {
            return Ok(Some(known.clone()));
        }
        let stored = self.view.read(place)?;
        Ok(stored.map(|record| (record.revision, Some(record))))
    }

    fn put(
        &mut self,
        place: Place,
        id: SessionId,
        revision: Revision,
        record: Option<Arc<Record>>,
    ) {
        if record.is_none() {
            self.missing.remove(&(place.clone(), id));
        }
        self.generation.put(place, revision, record);
    }

    fn missing(&mut self, place: &Place, id: SessionId) {
        self.missing.insert((place.clone(), id));
    }

    fn container(&mut self, state: ContainerState) {
        self.generation.containers.insert(state.id, Arc::new(state));
    }
}

/// After a failure of the log within the life of the store: writes what is in doubt again, in another
/// segment, and goes on there.
pub(super) fn rewrite(
    directory: &Directory,
    failed: &Log,
    segment: Segment,
    epoch: u64,
) -> Result<Log, Error> {
    let old = std::slice::from_ref(&failed.active);
    let mut batches = Batches::read(directory.id(), old, failed.durable.revision, directory)?;
    // What was synced is known here; what the chain says of it may be older.
    batches.folded = failed.durable;
    // Even if nothing is to be written again: who commits next is not to be the one who finds out that
    // the disk does not work yet.
    let probe = segment.file.write(0, &[0; log::SECTOR as usize]);
    probe.and_then(|()| segment.file.sync()).map_err(Error::storage)?;
    let mut log = Log::new(directory.id(), epoch, segment, failed.durable);
    batches.rewrite(&mut log)?;
    Ok(log)
}

/// Notes with which commit an epoch ended, and that the next one begins after the number `used`. An
/// attempt to do so before, of which nobody knows what became, does not count.
pub(super) fn note_epoch(
    meta: &mut Meta,
    (ended, durable): (u64, Revision),
    epoch: u64,
    used: Revision,
) {
    meta.begun = meta.begun.max(used.0);
    meta.epochs.retain(|(earlier, _)| *earlier < ended);
    meta.epochs.push((ended, durable.0));
    let excess = meta.epochs.len().saturating_sub(EPOCHS_MAX);
    meta.epochs.drain(..excess);
    meta.epoch = epoch;
}

/// Makes the file whose space is given up when the disk is full.
pub(super) fn provide_reserve(directory: &Directory, segment_bytes: u64) -> Result<(), Error> {
    if directory.names()?.iter().any(|name| name == RESERVE) {
        return Ok(());
    }
    let file = directory.open_file(RESERVE, Access::Create)?;
    let filled = log::fill(&*file, reserve_bytes(segment_bytes));
    if filled.is_err() {
        give_up_reserve(directory);
    }
    filled.map_err(|error| directory.failed(RESERVE, error))
}

fn reserve_bytes(segment_bytes: u64) -> u64 {
    RESERVE_BYTES.min(segment_bytes)
}

/// Gives its space to those who need it now.
pub(super) fn give_up_reserve(directory: &Directory) {
    // If there is none, there is none to be had.
    let _ = directory.remove(RESERVE);
}

#[cfg(test)]
mod tests {
    use super::super::disk::LocalDisk;
    use super::super::{Embedded, Mode};
    use super::*;

    /// What comes next after a number that nobody has counted is not looked for.
    #[test]
    fn numbers_that_no_store_comes_to_are_corrupt() {
        let above = tempfile::tempdir().unwrap();
        let changes: [fn(&mut Meta); 3] =
            [|meta| meta.folded = u64::MAX, |meta| meta.begun = u64::MAX, |meta| meta.epoch = !0];
        for (n, change) in changes.into_iter().enumerate() {
            let path = above.path().join(n.to_string());
            let open = || {
                let settings = Settings {
                    disk: Arc::new(LocalDisk),
                    segment_bytes: 8 << 10,
                    dirty_bytes_max: 1 << 20,
                    verify: false,
                    fold_inline: None,
                    id: 1,
                };
                Embedded::open(&path, Mode::Open, settings).map(|_| ())
            };
            open().unwrap();
            let directory =
                Directory::open(Arc::new(LocalDisk), &path, Mode::Open, StoreId(2)).unwrap();
            let tables = Tables::open(Arc::new(directory), false).unwrap();
            tables.set_meta(change).unwrap();
            tables.close().unwrap();
            drop(tables);
            let error = open().unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
        }
    }
}
