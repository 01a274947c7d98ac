//! The redb tables: the checkpoint behind the commit log.
//!
//! The tables are those of `format.md`. A session's row and its one row in `buckets` are written
//! by the same redb transaction. A fold is several transactions, and only the last one says, in
//! `meta`, that everything up to a revision is here: until then the log is still needed, and after a
//! crash it is replayed over what the first ones have written.
//!
//! redb gives up a database after the first failure of its file, so the tables can be opened
//! [again](Tables::reopen) within the life of the store. And it may panic over damaged pages: here is
//! the boundary that a panic does not cross.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{
    Builder, ConcurrencyMode, Database, ReadOnlyDatabase, ReadOnlyTable, ReadTransaction,
    ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction,
};

use super::Met;
use super::backend::Backend;
use super::directory::Directory;
use super::disk::{Access, DiskFile};
use super::records::{self, Meta};
use crate::engine::{Found, View, successor};
use crate::error::Error;
use crate::model::container::{ContainerId, ContainerState, Place};
use crate::model::key::Key;
use crate::model::session::Record;

const SESSIONS: TableDefinition<'_, (u32, &[u8]), &[u8]> = TableDefinition::new("sessions");
const BUCKETS: TableDefinition<'_, (u32, u64, &[u8]), ()> = TableDefinition::new("buckets");
const CONTAINERS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("containers");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

pub(super) const DATABASE: &str = "sessions.redb";
/// What a compaction writes before it is that.
pub(super) const DATABASE_IN_THE_MAKING: &str = "sessions.redb.new";
const META_STORE: &str = "store";

/// How much of the file redb may keep in memory; its own default is a gibibyte.
const CACHE_BYTES: usize = 64 << 20;

/// How many sessions one redb transaction writes: larger ones are cheaper for each session, and
/// keep the disk from the commit log for longer at a time.
const CHUNK: usize = 2_000;

/// How many rows one copies where nobody waits for the disk.
const COPIED: usize = 50_000;

/// redb has an error type for each of its steps. Above this folder they all mean the same.
macro_rules! storage {
    ($result:expr) => {
        $result.map_err(|error| super::tables::storage_error(error.into()))
    };
}
pub(super) use storage;

pub(super) fn storage_error(error: redb::Error) -> Error {
    match error {
        redb::Error::Corrupted(reason) => Error::Corrupt { table: DATABASE, reason },
        redb::Error::TableDoesNotExist(name) => {
            Error::Corrupt { table: DATABASE, reason: format!("it has no table `{name}`") }
        }
        redb::Error::DatabaseClosed => Error::Closed,
        error => Error::storage(error),
    }
}

/// Whether a failure means that the disk is full: that passes when somebody makes room.
pub(super) fn is_full(error: &Error) -> bool {
    matches!(kind(error), Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
}

/// What the operating system said, if it was that.
fn kind(error: &Error) -> Option<io::ErrorKind> {
    let Error::Storage(cause) = error else { return None };
    match (cause.downcast_ref::<redb::Error>(), cause.downcast_ref::<io::Error>()) {
        (Some(redb::Error::Io(error)), _) | (_, Some(error)) => Some(error.kind()),
        _ => None,
    }
}

/// Runs what redb may panic in, over a file that is damaged.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Error::Corrupt { table: DATABASE, reason: "redb panicked over it".to_owned() })
    })
}

pub(super) struct Tables {
    directory: Arc<Directory>,
    /// `None` once closed, and while it cannot be opened again.
    open: Mutex<Option<Open>>,
}

struct Open {
    database: Database,
    meta: Meta,
    keeper: Arc<Keeper>,
}

/// Keeps a database whose place another has taken for as long as there are views of it.
#[derive(Default)]
struct Keeper(Mutex<Option<Database>>);

// redb, once it has panicked, panics again when it is let go of.
impl Drop for Keeper {
    fn drop(&mut self) {
        let database = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        let open = self.open.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(open)));
    }
}

impl Tables {
    /// Makes the tables of a new store.
    pub(super) fn create(directory: &Directory) -> Result<(), Error> {
        let file = directory.open_file(DATABASE, Access::Create)?;
        let database = open(file, false)?;
        let txn = begin_write(&database)?;
        {
            storage!(txn.open_table(SESSIONS))?;
            storage!(txn.open_table(BUCKETS))?;
            storage!(txn.open_table(CONTAINERS))?;
            let meta = Meta { clean: true, ..Meta::default() };
            put_meta(&txn, &meta)?;
        }
        storage!(txn.commit())?;
        storage!(database.close())
    }

    /// Opens the tables; with `check` every page is verified first.
    pub(super) fn open(directory: Arc<Directory>, check: bool) -> Result<Self, Error> {
        let open = guarded(|| Open::of(&directory, check))?;
        Ok(Tables { directory, open: Mutex::new(Some(open)) })
    }

    /// Opens the tables again after a failure.
    pub(super) fn reopen(&self) -> Result<(), Error> {
        let mut open = self.guard();
        // What there was to say was said when it failed.
        let _ = open.take().map(|open| guarded(|| storage!(open.database.close())));
        *open = Some(guarded(|| Open::of(&self.directory, false))?);
        Ok(())
    }

    /// Whether they could not be opened again the last time, or the store is closed.
    pub(super) fn is_closed(&self) -> bool {
        self.guard().is_none()
    }

    pub(super) fn meta(&self) -> Result<Meta, Error> {
        self.with(|open| Ok(open.meta.clone()))
    }

    /// Changes what is said of the store, durably.
    pub(super) fn set_meta(&self, change: impl FnOnce(&mut Meta)) -> Result<(), Error> {
        self.write(change, |_| Ok(()))
    }

    pub(super) fn containers(&self) -> Result<Vec<ContainerState>, Error> {
        self.with(|open| read_containers(&storage!(open.database.begin_read())?))
    }

    /// Writes final states, sorted by place, and says that everything up to them is here.
    pub(super) fn fold<'a>(
        &self,
        sessions: &[(&'a Place, Option<&'a Arc<Record>>)],
        containers: impl Iterator<Item = &'a Arc<ContainerState>>,
        change: impl FnOnce(&mut Meta),
    ) -> Result<(), Error> {
        let mut chunks = sessions.chunks(CHUNK).peekable();
        while let Some(chunk) = chunks.next_if(|chunk| chunk.len() == CHUNK) {
            self.with(|open| {
                let txn = begin_write(&open.database)?;
                put_sessions(&txn, chunk)?;
                storage!(txn.commit())
            })?;
        }
        self.write(change, |txn| {
            put_sessions(txn, chunks.next().unwrap_or_default())?;
            let mut table = storage!(txn.open_table(CONTAINERS))?;
            for state in containers {
                storage!(table.insert(state.id.0, &*records::encode_container(state)))?;
            }
            Ok(())
        })
    }

    /// Writes something, and with it what is changed in `meta`.
    fn write(
        &self,
        change: impl FnOnce(&mut Meta),
        rows: impl FnOnce(&WriteTransaction) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.with(|open| {
            let mut meta = open.meta.clone();
            change(&mut meta);
            let txn = begin_write(&open.database)?;
            rows(&txn)?;
            put_meta(&txn, &meta)?;
            storage!(txn.commit())?;
            open.meta = meta;
            Ok(())
        })
    }

    pub(super) fn view(&self, met: Arc<Met>) -> Result<TablesView, Error> {
        self.with(|open| {
            let view = TablesView::of(&storage!(open.database.begin_read())?, met)?;
            Ok(TablesView { _keeper: Some(Arc::clone(&open.keeper)), ..view })
        })
    }

    /// Writes every row again, into a file that takes the place of the old one: how large that was and is.
    /// Nothing is to be folded meanwhile, nor before the name of the new one is durable. Views of the old
    /// one stay.
    pub(super) fn compact(&self) -> Result<(u64, u64), Error> {
        // Of an attempt that was cut off.
        let _ = self.directory.remove(DATABASE_IN_THE_MAKING);
        let compacted = self.copy().and_then(|new| self.exchange(new));
        if compacted.is_err() {
            let _ = self.directory.remove(DATABASE_IN_THE_MAKING);
        }
        compacted.map_err(|error| match error {
            Error::Closed => reopened(),
            error => error,
        })
    }

    /// A new file with the same rows, but without `meta`.
    fn copy(&self) -> Result<Database, Error> {
        let old = self.with(|open| storage!(open.database.begin_read()))?;
        guarded(|| {
            let new =
                open(self.directory.open_file(DATABASE_IN_THE_MAKING, Access::Create)?, false)?;
            copy_rows(&old, &new, SESSIONS)?;
            copy_rows(&old, &new, BUCKETS)?;
            copy_rows(&old, &new, CONTAINERS)?;
            Ok(new)
        })
    }

    fn exchange(&self, mut new: Database) -> Result<(u64, u64), Error> {
        let len = |name| {
            let file = self.directory.open_file(name, Access::Read)?;
            file.len().map_err(|error| self.directory.failed(name, error))
        };
        let mut current = self.guard();
        let meta = current.as_ref().ok_or(Error::Closed)?.meta.clone();
        guarded(|| {
            let txn = begin_write(&new)?;
            put_meta(&txn, &meta)?;
            storage!(txn.commit())?;
            // There is hardly anything to move; but the end of the file is cut off.
            storage!(new.compact().map_err(redb::Error::from))?;
            storage!(new.close())
        })?;
        let file = self.directory.open_file(DATABASE_IN_THE_MAKING, Access::Write)?;
        file.sync().map_err(|error| self.directory.failed(DATABASE_IN_THE_MAKING, error))?;
        let sizes = (len(DATABASE)?, len(DATABASE_IN_THE_MAKING)?);
        self.directory.rename(DATABASE_IN_THE_MAKING.as_ref(), DATABASE.as_ref())?;
        let old = current.take();
        if let Some(Open { database, keeper, .. }) = old {
            *keeper.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(database);
        }
        // If it cannot be opened now, that is tried again.
        *current = Some(guarded(|| Open::of(&self.directory, false))?);
        Ok(sizes)
    }

    pub(super) fn close(&self) -> Result<(), Error> {
        let open = self.guard().take();
        open.map_or(Ok(()), |open| guarded(|| storage!(open.database.close())))
    }

    fn guard(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, work: impl FnOnce(&mut Open) -> Result<T, Error>) -> Result<T, Error> {
        let mut open = self.guard();
        let open = open.as_mut().ok_or(Error::Closed)?;
        guarded(|| work(open))
    }
}

impl Open {
    fn of(directory: &Directory, check: bool) -> Result<Self, Error> {
        // To open a database is to write to it: look first, so that what is not ours stays as it is.
        look(directory).map_err(|error| match kind(&error) {
            Some(io::ErrorKind::UnexpectedEof) => {
                Error::Corrupt { table: DATABASE, reason: "it is cut off".to_owned() }
            }
            _ => error,
        })?;
        let database = open(directory.open_file(DATABASE, Access::Write)?, check)?;
        let meta = read_meta(&storage!(database.begin_read())?)?;
        Ok(Open { database, meta, keeper: Arc::default() })
    }
}

fn look(directory: &Directory) -> Result<(), Error> {
    match open_read_only(directory)? {
        Some(database) => read_meta(&storage!(database.begin_read())?).map(|_| ()),
        None => Ok(()),
    }
}

pub(super) fn read_meta(txn: &ReadTransaction) -> Result<Meta, Error> {
    let meta = storage!(txn.open_table(META))?;
    let row = storage!(meta.get(META_STORE))?;
    let row = row.ok_or_else(|| records::corrupt("meta", "its row is missing"))?;
    records::decode_meta(row.value())
}

pub(super) fn read_containers(txn: &ReadTransaction) -> Result<Vec<ContainerState>, Error> {
    let mut containers = Vec::new();
    for row in storage!(storage!(txn.open_table(CONTAINERS))?.iter())? {
        let (id, state) = storage!(row)?;
        containers.push(records::decode_container(id.value(), state.value())?);
    }
    Ok(containers)
}

/// `None`: its process was killed, and it must be repaired before anybody can look.
pub(super) fn open_read_only(directory: &Directory) -> Result<Option<ReadOnlyDatabase>, Error> {
    let file = directory.open_file(DATABASE, Access::Read)?;
    match builder(&file).open_read_only_with_backend(backend(file)?) {
        Ok(database) => Ok(Some(database)),
        Err(redb::DatabaseError::RepairAborted) => Ok(None),
        Err(error) => Err(refusal(error)),
    }
}

fn open(file: Arc<dyn DiskFile>, check: bool) -> Result<Database, Error> {
    let mut builder = builder(&file);
    builder.set_check_integrity_on_open(check);
    builder.create_with_backend(backend(file)?).map_err(refusal)
}

/// Others may read while this process writes, if they can be kept from reading at the wrong moment.
pub(super) fn builder(file: &Arc<dyn DiskFile>) -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    if file.file().is_some() {
        builder.set_concurrency_mode(ConcurrencyMode::SingleWriter);
    }
    builder
}

pub(super) fn backend(file: Arc<dyn DiskFile>) -> Result<Backend, Error> {
    Backend::new(file).map_err(Error::storage)
}

pub(super) fn refusal(error: redb::DatabaseError) -> Error {
    match error {
        redb::DatabaseError::Storage(redb::StorageError::Io(error))
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            Error::Corrupt { table: DATABASE, reason: "it is no redb database".to_owned() }
        }
        error => storage_error(redb::Error::from(error)),
    }
}

fn reopened() -> Error {
    Error::storage(io::Error::other("the tables were opened again meanwhile"))
}

/// Copies a table, whatever is in its rows.
fn copy_rows<K: redb::Key + 'static, V: redb::Value + 'static>(
    old: &ReadTransaction,
    new: &Database,
    table: TableDefinition<'_, K, V>,
) -> Result<(), Error> {
    let old = storage!(old.open_table(table))?;
    let mut rows = storage!(old.iter())?.peekable();
    loop {
        let txn = begin_write(new)?;
        {
            let mut table = storage!(txn.open_table(table))?;
            for row in rows.by_ref().take(COPIED) {
                let (key, value) = storage!(row)?;
                storage!(table.insert(key.value(), value.value()))?;
            }
        }
        storage!(txn.commit())?;
        if rows.peek().is_none() {
            return Ok(());
        }
    }
}

// Never a one-phase commit: a failed sync, a reopen and a power cut can leave such a file
// unopenable. Quick repair saves the allocator's state, so that opening after a crash needs no walk
// through the whole file.
fn begin_write(database: &Database) -> Result<WriteTransaction, Error> {
    let mut txn = storage!(database.begin_write())?;
    txn.set_two_phase_commit(true);
    txn.set_quick_repair(true);
    Ok(txn)
}

fn put_meta(txn: &WriteTransaction, meta: &Meta) -> Result<(), Error> {
    let mut table = storage!(txn.open_table(META))?;
    storage!(table.insert(META_STORE, &*records::encode_meta(meta)))?;
    Ok(())
}

fn put_sessions(
    txn: &WriteTransaction,
    rows: &[(&Place, Option<&Arc<Record>>)],
) -> Result<(), Error> {
    let mut sessions = storage!(txn.open_table(SESSIONS))?;
    let mut buckets = storage!(txn.open_table(BUCKETS))?;
    for (place, record) in rows {
        let (container, key) = (place.0.0, place.1.as_bytes());
        let old = match record {
            Some(record) => {
                let row = records::encode_session(place, record);
                storage!(sessions.insert((container, key), &*row))?
            }
            None => storage!(sessions.remove((container, key)))?,
        };
        let new = record.map(|record| record.bucket);
        let old = match old.map(|old| records::bucket(place, old.value())) {
            Some(None) => {
                remove_strays(&mut buckets, container, key)?;
                None
            }
            old => old.flatten(),
        };
        if old != new {
            if let Some(bucket) = old {
                storage!(buckets.remove((container, bucket, key)))?;
            }
            if let Some(bucket) = new {
                storage!(buckets.insert((container, bucket, key), ()))?;
            }
        }
    }
    Ok(())
}

/// Removes a session's rows of the index, wherever they are: its record was damaged, and does not
/// say.
fn remove_strays(
    buckets: &mut Table<'_, (u32, u64, &'static [u8]), ()>,
    container: u32,
    key: &[u8],
) -> Result<(), Error> {
    let all = (container, 0, &[][..])..;
    storage!(buckets.retain_in(all, |(owner, _, other), ()| owner != container || other != key))
}

/// A page has got into another's place. Its rows would be missed, and a walk might never end.
const OUT_OF_ORDER: &str = "rows are out of order";

pub(super) struct TablesView {
    pub sessions: ReadOnlyTable<(u32, &'static [u8]), &'static [u8]>,
    pub buckets: ReadOnlyTable<(u32, u64, &'static [u8]), ()>,
    ended: AtomicBool,
    met: Arc<Met>,
    // Last, for what is above reads from it.
    _keeper: Option<Arc<Keeper>>,
}

impl TablesView {
    pub(super) fn of(txn: &ReadTransaction, met: Arc<Met>) -> Result<Self, Error> {
        Ok(TablesView {
            sessions: storage!(txn.open_table(SESSIONS))?,
            buckets: storage!(txn.open_table(BUCKETS))?,
            ended: AtomicBool::new(false),
            met,
            _keeper: None,
        })
    }

    /// Reads something. The first failure is the end of the view: redb answers nothing more.
    fn look<T>(&self, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let failed = |error| {
            self.ended.store(true, Ordering::Release);
            match error {
                Error::Closed => reopened(),
                Error::Storage(_) => {
                    self.met.failure();
                    error
                }
                error => error,
            }
        };
        guarded(work).map_err(failed)
    }

    /// A session of which the row is damaged is absent, and told of.
    fn decode(&self, container: ContainerId, key: &[u8], row: &[u8]) -> Option<Arc<Record>> {
        match records::decode_session(container, key, row) {
            Ok(record) => Some(Arc::new(record)),
            Err(_) => {
                self.note_damage((container, Key::from(key)));
                None
            }
        }
    }

    pub(super) fn note_damage(&self, place: Place) {
        self.met.damage(place);
    }
}

impl View for TablesView {
    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire) && self.met.is_looked_after()
    }

    fn read(&self, place: &Place) -> Result<Option<Arc<Record>>, Error> {
        self.look(|| {
            let key = place.1.as_bytes();
            let row = storage!(self.sessions.get((place.0.0, key)))?;
            Ok(row.and_then(|row| self.decode(place.0, key, row.value())))
        })
    }

    fn scan(&self, container: ContainerId, from: &Key, max: usize) -> Result<Vec<Found>, Error> {
        self.look(|| {
            let mut found = Vec::new();
            let mut least = from.clone();
            for next in storage!(self.sessions.range((container.0, from.as_bytes())..))? {
                let (place, row) = storage!(next)?;
                let (owner, key) = place.value();
                if owner > container.0 || found.len() == max {
                    break;
                }
                let record = self.decode(ContainerId(owner), key, row.value());
                let is_here = owner == container.0 && *key >= *least.as_bytes();
                if is_here && record.is_some() {
                    least = successor(&Key::from(key));
                }
                match record {
                    record if is_here => found.push((Key::from(key), record)),
                    Some(_) => return Err(records::corrupt("sessions", OUT_OF_ORDER)),
                    // What is damaged may be its key.
                    None => {}
                }
            }
            Ok(found)
        })
    }

    fn due(
        &self,
        container: ContainerId,
        until: u64,
        from: &(u64, Key),
        max: usize,
    ) -> Result<Vec<(u64, Key)>, Error> {
        self.look(|| {
            let mut found = Vec::new();
            let from = (container.0, from.0, from.1.as_bytes());
            for row in storage!(self.buckets.range(from..))? {
                let (row, _) = storage!(row)?;
                let (owner, bucket, key) = row.value();
                if (owner, bucket, key) < from {
                    // A page has got into another's place. A walk must not begin again.
                    continue;
                }
                if owner != container.0 || bucket > until || found.len() == max {
                    break;
                }
                found.push((bucket, Key::from(key)));
            }
            Ok(found)
        })
    }
}

impl fmt::Debug for TablesView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TablesView")
    }
}

/// What there is to be seen while the tables cannot be opened.
#[derive(Debug)]
pub(super) struct Unreadable(pub(super) Error);

impl View for Unreadable {
    fn read(&self, _: &Place) -> Result<Option<Arc<Record>>, Error> {
        Err(self.0.share())
    }

    fn scan(&self, _: ContainerId, _: &Key, _: usize) -> Result<Vec<Found>, Error> {
        Err(self.0.share())
    }

    fn due(
        &self,
        _: ContainerId,
        _: u64,
        _: &(u64, Key),
        _: usize,
    ) -> Result<Vec<(u64, Key)>, Error> {
        Err(self.0.share())
    }
}
