//! Looking into a store from outside, without changing a byte of it.
//!
//! ```text
//!   tables   | rows ... folded |               one snapshot, folded up to f
//!   log                        | f+1 ... e |   what came later, as a chain of batches
//!                                         ^
//!                             the state that is seen
//! ```
//!
//! A store that is closed, or in use by another process, is read through a snapshot of redb's, which
//! may be taken while the other one writes. One whose process died is repaired by redb first, in
//! memory ([`CopyOnWrite`]), and its file has to stay what it was for as long as it is read.
//!
//! **Why it is one committed state.** Nothing is locked but the snapshot, so whoever has the store
//! open may commit, fold, and use a segment again between any two steps here, which are: take the
//! snapshot; read the segments; ask again up to where the tables are folded, f'. The log is accepted
//! if its batches follow each other without a gap from f or before to an end e >= f'.
//!
//! - No gap: the snapshot's rows are of f, or of a fold that was not done with them; then they are of
//!   commits that were in the log before the snapshot was taken. Replaying every commit from f to e
//!   over them gives the state after e, as in a recovery.
//! - Nothing that was committed before the segments were read is missing. Say a batch after e was
//!   whole by then. A segment is written again, or removed, only when everything in it is folded; as
//!   e >= f', neither this batch nor any between e and it was folded when f' was read, so all of them
//!   lay untouched where they were while the segments were read. They would have been found.
//!
//! Otherwise it moved too fast, and everything begins again. A batch that is just being written is a
//! torn tail, as it would be in a recovery; one that is written and not synced yet is seen, as if the
//! process had been killed there. A gap is a loss only if it is found twice, with nothing folded
//! meanwhile: segments are read one after the other, and the later one may be newer.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use redb::{Database, DatabaseError, ReadOnlyDatabase, ReadTransaction, ReadableDatabase};

use super::Met;
use super::backend::CopyOnWrite;
use super::directory::Directory;
use super::disk::{Access, Disk, DiskFile};
use super::generation::Dated;
use super::marker::FORMAT;
use super::records::Meta;
use super::recovery::{self, Batches};
use super::tables::{self, DATABASE, TablesView, storage};
use crate::engine::{View, successor};
use crate::error::Error;
use crate::model::clock::Time;
use crate::model::container::{ContainerId, ContainerState, Place};
use crate::model::key::Key;
use crate::model::session::{Record, Revision};

/// How often to begin again, each time after a pause twice as long: one second in all.
const ATTEMPTS_MAX: u32 = 10;

/// What is known of a store before its sessions are looked at.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ViewedStore {
    /// Whether somebody has it open.
    pub state: StoreState,
    /// The format of its files; see [`FORMAT`](crate::FORMAT).
    pub format: u32,
    /// The last commit that is seen.
    pub revision: Revision,
    /// The last commit of which the tables say that it is in them.
    pub folded: Revision,
    /// How often the store has begun anew: by being opened, or after a failure.
    pub epoch: u64,
    /// The store's time at the last commit.
    pub time: Time,
    /// Batches of commits that are in the log only.
    pub log_batches: u64,
    /// The bytes that they take up there.
    pub log_bytes: u64,
    /// Sessions that those commits changed or ended.
    pub log_sessions: u64,
    /// The files of the store, with their lengths in bytes.
    pub files: Vec<(String, u64)>,
}

/// Whether somebody has a store open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreState {
    /// It was closed.
    Closed,
    /// A process has it open.
    InUse {
        /// Which one, if it has said so.
        process: Option<u32>,
    },
    /// The process that had it open has gone without closing it. Nothing is lost by that: whoever
    /// opens the store next goes on from what is seen here.
    Died {
        /// Which one it was, if it has said so.
        process: Option<u32>,
    },
}

/// One committed state of a store.
pub(crate) struct Viewing {
    store: ViewedStore,
    pub containers: BTreeMap<ContainerId, Arc<ContainerState>>,
    /// What the log says, over the tables.
    newer: BTreeMap<Place, Dated>,
    tables: Seen,
}

/// Sessions in the order of their keys, and where to go on.
pub(crate) type Page = (Vec<(Key, Arc<Record>)>, Option<Key>);

impl Viewing {
    pub(crate) fn open(disk: Arc<dyn Disk>, path: &Path) -> Result<Self, Error> {
        let directory = Directory::find(disk, path)?;
        let (tables, log) = see(&directory)?;
        let log = log?;
        let store = ViewedStore {
            state: tables.state(&directory),
            format: FORMAT,
            revision: log.end,
            folded: Revision(tables.meta.folded),
            epoch: log.epoch.max(tables.meta.epoch),
            time: log.time.max(Time::from_micros(tables.meta.time)),
            log_batches: log.batches,
            log_bytes: log.bytes,
            log_sessions: log.sessions.len() as u64,
            files: directory.files()?,
        };
        Ok(Viewing { store, containers: log.containers, newer: log.sessions, tables })
    }

    pub(crate) fn store(&self) -> &ViewedStore {
        &self.store
    }

    /// How many sessions were found damaged so far.
    pub(crate) fn damaged(&self) -> u64 {
        self.tables.met.count.load(Ordering::Relaxed)
    }

    pub(crate) fn read(&self, place: &Place) -> Result<Option<Arc<Record>>, Error> {
        if let Some((_, newer)) = self.newer.get(place) {
            return Ok(newer.clone());
        }
        let record = self.tables.view.read(place);
        // Looked at after the row was read, whatever came of it.
        self.tables.check_unchanged()?;
        record
    }

    /// The sessions of a container from a key on, about `max` of them.
    pub(crate) fn page(
        &self,
        container: ContainerId,
        from: &Key,
        max: usize,
    ) -> Result<Page, Error> {
        let rows = self.tables.view.scan(container, from, max);
        self.tables.check_unchanged()?;
        let rows = rows?;
        let next = rows.get(max - 1).map(|(last, _)| successor(last));
        let mut page: BTreeMap<Key, Option<Arc<Record>>> = rows.into_iter().collect();
        for ((owner, key), (_, record)) in self.newer.range((container, from.clone())..) {
            if *owner != container || next.as_ref().is_some_and(|next| key >= next) {
                break;
            }
            page.insert(key.clone(), record.clone());
        }
        let sessions = page.into_iter().filter_map(|(key, record)| Some((key, record?)));
        Ok((sessions.collect(), next))
    }
}

/// The tables of a store in one snapshot.
pub(super) struct Seen {
    pub meta: Meta,
    pub containers: Vec<ContainerState>,
    pub view: TablesView,
    met: Arc<Met>,
    // Last, for what is above reads through it.
    source: Source,
}

/// What the log says beyond them.
pub(super) struct Beyond {
    end: Revision,
    epoch: u64,
    time: Time,
    pub batches: u64,
    bytes: u64,
    pub containers: BTreeMap<ContainerId, Arc<ContainerState>>,
    pub sessions: BTreeMap<Place, Dated>,
}

/// A state of the store. The log alone may be damaged.
type Sight = (Seen, Result<Beyond, Error>);

/// Looks until the store stands still for long enough.
pub(super) fn see(directory: &Directory) -> Result<Sight, Error> {
    let mut waited = Duration::ZERO;
    let mut said = None;
    for attempt in 0..ATTEMPTS_MAX {
        if attempt > 0 {
            let pause = Duration::from_millis(1 << attempt);
            thread::sleep(pause);
            waited += pause;
        }
        let seen = try_to_see(directory);
        let trouble = match &seen {
            Ok(None) => None,
            Ok(Some((_, Ok(_)))) => return Ok(seen?.expect("it was there a moment ago")),
            Ok(Some((_, Err(error)))) | Err(error) => Some(error.to_string()),
        };
        // Whatever went wrong may have gone wrong because somebody changed the files just then.
        if trouble.is_some() && trouble == said {
            return Ok(seen?.expect("there is trouble with something"));
        }
        said = trouble;
    }
    Err(Error::Busy { queued: 0, waited })
}

/// `None` if it moved meanwhile.
fn try_to_see(directory: &Directory) -> Result<Option<Sight>, Error> {
    let Some(source) = Source::open(directory)? else { return Ok(None) };
    let met = Arc::<Met>::default();
    let seen = tables::guarded(|| {
        let txn = source.begin_read()?;
        let (meta, containers) = (tables::read_meta(&txn)?, tables::read_containers(&txn)?);
        let view = TablesView::of(&txn, Arc::clone(&met))?;
        Ok((meta, containers, view))
    });
    if !source.is_unchanged()? {
        return Ok(None);
    }
    let (meta, containers, view) = seen?;
    let beyond = look_beyond(directory, &meta, &containers, &view);
    let folded = match tables::guarded(|| source.folded())? {
        Some(folded) => folded,
        None => Revision(meta.folded),
    };
    let is_current = match &beyond {
        Ok(beyond) => folded <= beyond.end,
        Err(_) => folded.0 == meta.folded,
    };
    let is_current = is_current && source.is_unchanged()?;
    Ok(is_current.then(|| (Seen { meta, containers, view, met, source }, beyond)))
}

fn look_beyond(
    directory: &Directory,
    meta: &Meta,
    containers: &[ContainerState],
    view: &TablesView,
) -> Result<Beyond, Error> {
    let folded = Revision(meta.folded);
    let segments = recovery::segments(directory, Access::Read)?;
    let batches = Batches::read(directory.id(), &segments, folded, directory)?;
    let replayed = batches.replay(view, containers, folded)?;
    let generation = replayed.generation;
    Ok(Beyond {
        end: generation.last,
        epoch: batches.epoch,
        time: generation.time,
        batches: batches.chain.len() as u64,
        bytes: batches.log_bytes(),
        containers: replayed.containers,
        sessions: generation.sessions.into_iter().collect(),
    })
}

impl Seen {
    /// Whether somebody has the store open.
    pub(super) fn state(&self, directory: &Directory) -> StoreState {
        let process = directory.process();
        match &self.source {
            Source::Snapshot(_) if self.meta.clean => StoreState::Closed,
            // Opened for writing, redb would say so.
            Source::Snapshot(_) if matches!(Source::repaired(directory), Ok(None)) => {
                StoreState::InUse { process }
            }
            _ => StoreState::Died { process },
        }
    }

    /// What was read so far was what is said to be, or somebody has opened the store meanwhile.
    pub(super) fn check_unchanged(&self) -> Result<(), Error> {
        match self.source.is_unchanged()? {
            true => Ok(()),
            false => Err(Error::Busy { queued: 0, waited: Duration::ZERO }),
        }
    }

    /// Whether redb finds its file whole, every page of it; `None` if somebody writes to it.
    pub(super) fn verify(directory: &Directory) -> Result<Option<bool>, Error> {
        tables::guarded(|| {
            let Some(mut source) = Source::repaired(directory)? else { return Ok(None) };
            let Source::Repaired { database, .. } = &mut source else { return Ok(None) };
            let is_whole = database.check_integrity().map_err(tables::refusal);
            match source.is_unchanged()? {
                true => is_whole.map(Some),
                false => Ok(None),
            }
        })
    }
}

/// Where the tables are read from.
enum Source {
    /// A snapshot keeps what it needs from being written over, for as long as it is held.
    Snapshot(ReadOnlyDatabase),
    /// Nobody has the store open, so redb had to repair what it sees. As long as the header is the
    /// same there was no commit, and no page of the last one is written over before the next.
    Repaired { database: Database, file: Arc<dyn DiskFile>, header: Vec<u8> },
}

/// redb's header, which every commit changes.
const HEADER_BYTES: usize = 320;

fn header(file: &dyn DiskFile) -> Result<Vec<u8>, Error> {
    let mut header = vec![0; HEADER_BYTES];
    let read = file.read(0, &mut header);
    read.map_err(|error| tables::refusal(redb::StorageError::Io(error).into()))?;
    Ok(header)
}

impl Source {
    /// `None` if it is not clear at the moment whether somebody has the store open.
    fn open(directory: &Directory) -> Result<Option<Self>, Error> {
        match tables::guarded(|| tables::open_read_only(directory))? {
            Some(database) => Ok(Some(Source::Snapshot(database))),
            None => Source::repaired(directory),
        }
    }

    /// `None` if somebody writes to the file.
    fn repaired(directory: &Directory) -> Result<Option<Self>, Error> {
        let file = directory.open_file(DATABASE, Access::Read)?;
        // An empty file has none, and redb would make it a database.
        let header = header(&*file)?;
        let opened = tables::guarded(|| {
            let backend = CopyOnWrite::new(tables::backend(Arc::clone(&file))?);
            let backend = backend.map_err(Error::storage)?;
            Ok(tables::builder(&file).create_with_backend(backend))
        });
        match opened {
            Ok(Ok(database)) => Ok(Some(Source::Repaired { database, file, header })),
            Ok(Err(DatabaseError::DatabaseAlreadyOpen)) => Ok(None),
            _ if self::header(&*file)? != header => Ok(None),
            Ok(Err(error)) => Err(tables::refusal(error)),
            Err(error) => Err(error),
        }
    }

    fn begin_read(&self) -> Result<ReadTransaction, Error> {
        match self {
            Source::Snapshot(database) => storage!(database.begin_read()),
            Source::Repaired { database, .. } => storage!(database.begin_read()),
        }
    }

    /// Up to where the tables are folded by now; `None` if nobody folds.
    fn folded(&self) -> Result<Option<Revision>, Error> {
        match self {
            Source::Snapshot(database) => {
                let meta = tables::read_meta(&storage!(database.begin_read())?)?;
                Ok(Some(Revision(meta.folded)))
            }
            Source::Repaired { .. } => Ok(None),
        }
    }

    fn is_unchanged(&self) -> Result<bool, Error> {
        match self {
            Source::Snapshot(_) => Ok(true),
            Source::Repaired { file, header, .. } => Ok(self::header(&**file)? == *header),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::Write as _;
    use std::path::PathBuf;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::engine::embedded::disk::LocalDisk;
    use crate::engine::embedded::watched::Watched;
    use crate::engine::embedded::{Embedded, Mode, Settings};
    use crate::engine::{Batch, Commit, Engine, Listener, Notice, SessionChange, View};
    use crate::model::attributes::Attributes;
    use crate::model::session::SessionId;

    struct Deaf;

    impl Listener for Deaf {
        fn checkpoint(&self, _: Arc<dyn View>, _: Revision) {}

        fn notice(&self, notice: Notice) {
            panic!("{notice:?}");
        }
    }

    /// A store of which eight commits fill a segment.
    fn open(path: &Path, fold_inline: bool) -> Embedded {
        let settings = Settings {
            disk: Arc::new(LocalDisk),
            segment_bytes: 4 << 10,
            dirty_bytes_max: 1 << 20,
            verify: false,
            fold_inline: fold_inline.then_some(1),
            id: 1,
        };
        Embedded::open(path, Mode::Open, settings).unwrap().0
    }

    fn engine(path: &Path) -> Arc<Embedded> {
        let engine = open(path, true);
        engine.start(Arc::new(Deaf)).unwrap();
        Arc::new(engine)
    }

    /// The nth commit creates the nth session.
    fn commit(engine: &Embedded, n: u64, durable: bool) {
        let record = Arc::new(Record {
            id: SessionId(n.into()),
            revision: Revision(n),
            created: Time::from_secs(n),
            last_accessed: Time::from_secs(n),
            last_modified: None,
            slice_end: Time::from_secs(n),
            bucket: n,
            attributes: Attributes::new(),
            extras: None,
        });
        let place = (ContainerId(1), Key::from(vec![n as u8]));
        let change = SessionChange { place, before: None, after: Some(record) };
        let (sessions, containers) = (vec![change], Vec::new());
        let commits = vec![Commit { revision: Revision(n), sessions, containers }];
        let batch = Batch { time: Time::from_secs(n), commits, only_ends: false };
        engine.apply(batch, durable).unwrap();
    }

    /// The directory has been listed for the log, when the tables have been seen.
    const LISTED: &str = "kind log-";
    /// A file of the log is to be opened.
    const OPENS_LOG: &str = "open log-";

    /// Looks at the store in a directory. Something happens before each step that begins so.
    fn look(
        path: &Path,
        step: &'static str,
        event: impl FnMut() + Send + 'static,
    ) -> Result<Viewing, Error> {
        let (event, has_snapshot) = (Mutex::new(event), AtomicBool::default());
        let disk = Watched::new(path, move |told| {
            let kind = told.split(' ').next().unwrap();
            assert!(
                ["kind", "list", "open", "len", "read"].contains(&kind),
                "who looks changes nothing: {told}"
            );
            if told == format!("open {DATABASE}") {
                has_snapshot.store(true, Ordering::Relaxed);
            }
            if told.starts_with(step) && has_snapshot.load(Ordering::Relaxed) {
                (event.lock().unwrap())();
            }
            Ok(())
        });
        Viewing::open(disk, path)
    }

    /// Three commits; then somebody looks, and in the middle of it something happens, once. The
    /// revision that is seen in the end, of which all sessions are there.
    fn looking(
        step: &'static str,
        durable: bool,
        event: impl FnOnce(&Embedded, PathBuf) + Send + 'static,
    ) -> u64 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let engine = engine(&path);
        (1..=3).for_each(|n| commit(&engine, n, durable));
        let (other, its_path, mut event) = (Arc::clone(&engine), path.clone(), Some(event));
        let happened = Arc::<AtomicBool>::default();
        let told = Arc::clone(&happened);
        let viewing = look(&path, step, move || {
            if let Some(event) = event.take() {
                event(&other, its_path.clone());
                told.store(true, Ordering::Relaxed);
            }
        });
        let viewing = viewing.unwrap();
        assert!(happened.load(Ordering::Relaxed));
        let (page, next) = viewing.page(ContainerId(1), &Key::from(""), 100).unwrap();
        assert!(next.is_none());
        let revision = viewing.store().revision.0;
        let keys = page.iter().map(|(key, _)| u64::from(key.as_bytes()[0]));
        assert!(keys.eq(1..=revision), "not all of {revision}: {page:?}");
        engine.close(Time::from_secs(9)).unwrap();
        revision
    }

    #[test]
    fn a_commit_meanwhile_is_seen() {
        assert_eq!(looking(OPENS_LOG, true, |engine, _| commit(engine, 4, true)), 4);
    }

    #[test]
    fn a_fold_meanwhile_changes_nothing() {
        assert_eq!(looking(OPENS_LOG, true, |engine, _| engine.fold().unwrap()), 3);
    }

    /// What was in it is in the tables by now, and not in those that were seen.
    #[test]
    fn a_segment_that_is_used_again_meanwhile_is_noticed() {
        let seen = looking(OPENS_LOG, true, |engine, _| {
            engine.fold().unwrap();
            commit(engine, 4, true);
            engine.fold().unwrap();
            commit(engine, 5, true);
        });
        assert_eq!(seen, 5);
    }

    /// Here no batch proves that others are missing: none was synced by itself, and the one that is
    /// being written over them is not there yet.
    #[test]
    fn a_segment_that_is_just_being_used_again_is_noticed() {
        let seen = looking(OPENS_LOG, false, |engine, path| {
            engine.fold().unwrap();
            let log = path.join("log-1");
            assert!(fs::read(&log).unwrap().starts_with(b"sessile"), "the batches are there");
            OpenOptions::new().write(true).open(log).unwrap().write_all(&[7; 512]).unwrap();
        });
        assert_eq!(seen, 3);
    }

    #[test]
    fn a_segment_that_is_removed_meanwhile_is_noticed() {
        let seen = looking(LISTED, true, |engine, path| {
            engine.fold().unwrap();
            let log = path.join("log-1");
            assert!(fs::read(&log).unwrap().starts_with(b"sessile"), "the batches are there");
            fs::remove_file(log).unwrap();
        });
        assert_eq!(seen, 3);
    }

    /// One segment is read, and only then the batches come that lead from it to the other one.
    #[test]
    fn a_gap_that_is_none_is_looked_at_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        // Nothing is folded.
        let engine = open(&path, false);
        (1..=3).for_each(|n| commit(&engine, n, true));
        let (log, moved) = (path.join("log-1"), path.join("moved"));
        let earlier = fs::read(&log).unwrap();
        (4..=9).for_each(|n| commit(&engine, n, true));
        // At the first look it is what it was, at the second what it is.
        let mut looks = 0;
        let viewing = look(&path, "open log-1", move || {
            looks += 1;
            match looks {
                1 => {
                    fs::rename(&log, &moved).unwrap();
                    fs::write(&log, &earlier).unwrap();
                }
                2 => fs::rename(&moved, &log).unwrap(),
                _ => {}
            }
        });
        let viewing = viewing.unwrap();
        assert_eq!(viewing.store().revision, Revision(9));
        engine.close(Time::from_secs(9)).unwrap();
    }

    /// Each look finds that the one before was overtaken: it gives up instead of going on for ever.
    #[test]
    fn a_store_that_never_stands_still_is_busy() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let engine = engine(&path);
        (1..=3).for_each(|n| commit(&engine, n, true));
        let (other, mut next) = (Arc::clone(&engine), 4);
        let seen = look(&path, OPENS_LOG, move || {
            for _ in 0..2 {
                other.fold().unwrap();
                commit(&other, next, true);
                next += 1;
            }
        });
        match seen.map(|viewing| viewing.store().clone()) {
            Err(Error::Busy { queued: 0, waited }) => assert!(waited > Duration::from_secs(1)),
            other => panic!("{other:?}"),
        }
        engine.close(Time::from_secs(9)).unwrap();
    }
}
