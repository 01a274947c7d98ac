//! The redb tables: what is written in one transaction, and what a view of them shows.
//!
//! The tables are those of `format.md`. A session's row and its one row in `buckets` are written by the same redb transaction, and so
//! is the count of its container.

use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{
    Database, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};

use super::directory::{self, Mode};
use super::records;
use crate::engine::{Batch, Recovered, View};
use crate::error::Error;
use crate::model::clock::Time;
use crate::model::container::{ContainerId, Place};
use crate::model::key::Key;
use crate::model::session::{Record, Revision};

const SESSIONS: TableDefinition<'_, (u32, &[u8]), &[u8]> = TableDefinition::new("sessions");
const BUCKETS: TableDefinition<'_, (u32, u64, &[u8]), ()> = TableDefinition::new("buckets");
const CONTAINERS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("containers");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// What this version writes and reads. It counts formats, not releases.
pub(crate) const FORMAT: u32 = 1;

const META_FORMAT: &str = "format";
const META_REVISION: &str = "revision";
const META_TIME: &str = "time";

/// How much of the file redb may keep in memory; its own default is a gibibyte.
const CACHE_BYTES: usize = 64 << 20;

/// redb has an error type for each of its steps. Above this folder they all mean the same.
macro_rules! storage {
    ($result:expr) => {
        $result.map_err(|error| storage_error(redb::Error::from(error)))
    };
}

fn storage_error(error: redb::Error) -> Error {
    match error {
        redb::Error::Corrupted(reason) => Error::Corrupt { table: "sessions.redb", reason },
        redb::Error::DatabaseClosed => Error::Closed,
        error => Error::storage(error),
    }
}

pub(super) struct Tables {
    /// The database, and the lock that keeps other processes out; `None` once closed.
    open: Mutex<Option<(Database, File)>>,
}

impl Tables {
    pub(super) fn open(path: &Path, mode: Mode) -> Result<(Self, Recovered), Error> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let (database, lock) =
            directory::open(path, mode, &builder, create, |database| identify(database, path))?;
        // Once more: one that needed a repair could not be looked at before.
        identify(&database, path)?;
        let tables = Tables { open: Mutex::new(Some((database, lock))) };
        let recovered = tables.recover()?;
        Ok((tables, recovered))
    }

    fn recover(&self) -> Result<Recovered, Error> {
        let (meta, containers) = self.with(|database| {
            let txn = storage!(database.begin_read())?;
            Ok((storage!(txn.open_table(META))?, storage!(txn.open_table(CONTAINERS))?))
        })?;
        let mut found = Vec::new();
        for row in storage!(containers.iter())? {
            let (id, state) = storage!(row)?;
            found.push(records::decode_container(id.value(), state.value())?);
        }
        Ok(Recovered {
            view: Arc::new(self.view()?),
            revision: Revision(number(&meta, META_REVISION)?),
            time: Time::from_micros(number(&meta, META_TIME)?),
            containers: found,
        })
    }

    /// Writes a batch in one transaction, durable on return.
    pub(super) fn write(&self, batch: &Batch) -> Result<(), Error> {
        self.with(|database| {
            let txn = begin_write(database)?;
            {
                let mut sessions = storage!(txn.open_table(SESSIONS))?;
                let mut buckets = storage!(txn.open_table(BUCKETS))?;
                // In the order of the keys, so that neighbours share a page.
                for (place, record) in batch.sessions() {
                    let (container, key) = (place.0.0, place.1.as_bytes());
                    let old = match record {
                        Some(record) => {
                            let bytes = records::encode_session(record);
                            storage!(sessions.insert((container, key), &*bytes))?
                        }
                        None => storage!(sessions.remove((container, key)))?,
                    };
                    let old = old.map(|old| records::bucket(old.value())).transpose()?;
                    let new = record.map(|record| record.bucket);
                    if old != new {
                        if let Some(bucket) = old {
                            storage!(buckets.remove((container, bucket, key)))?;
                        }
                        if let Some(bucket) = new {
                            storage!(buckets.insert((container, bucket, key), ()))?;
                        }
                    }
                }
                let mut containers = storage!(txn.open_table(CONTAINERS))?;
                for state in batch.commits.iter().flat_map(|commit| &commit.containers) {
                    let bytes = records::encode_container(state);
                    storage!(containers.insert(state.id.0, &*bytes))?;
                }
                let mut meta = storage!(txn.open_table(META))?;
                storage!(meta.insert(META_REVISION, batch.revision.0))?;
                storage!(meta.insert(META_TIME, batch.time.as_micros()))?;
            }
            storage!(txn.commit())
        })
    }

    pub(super) fn view(&self) -> Result<TablesView, Error> {
        self.with(|database| {
            let txn = storage!(database.begin_read())?;
            Ok(TablesView {
                sessions: storage!(txn.open_table(SESSIONS))?,
                buckets: storage!(txn.open_table(BUCKETS))?,
            })
        })
    }

    pub(super) fn close(&self) -> Result<(), Error> {
        let open = self.guard().take();
        match open {
            // The lock is let go of last.
            Some((database, _lock)) => storage!(database.close()),
            None => Ok(()),
        }
    }

    /// redb may panic on damaged pages; the lock is no worse for it.
    fn guard(&self) -> MutexGuard<'_, Option<(Database, File)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, Error>) -> Result<T, Error> {
        let open = self.guard();
        let (database, _) = open.as_ref().ok_or(Error::Closed)?;
        work(database)
    }
}

/// Refuses a database that is none of ours, or of another format.
fn identify(database: &impl ReadableDatabase, path: &Path) -> Result<(), Error> {
    let txn = storage!(database.begin_read())?;
    let meta = txn.open_table(META);
    if let Err(redb::TableError::TableDoesNotExist(_)) = meta {
        return Err(Error::NotAStore {
            path: path.to_owned(),
            reason: "sessions.redb has no table `meta`".to_owned(),
        });
    }
    let format = u32::try_from(number(&storage!(meta)?, META_FORMAT)?).unwrap_or(u32::MAX);
    match format {
        FORMAT => Ok(()),
        found => Err(Error::Format { found, supported: FORMAT }),
    }
}

fn number(meta: &ReadOnlyTable<&'static str, u64>, name: &str) -> Result<u64, Error> {
    let row = storage!(meta.get(name))?;
    row.map(|n| n.value()).ok_or_else(|| records::corrupt("meta", &format!("`{name}` is missing")))
}

/// Makes the tables of a new store.
fn create(database: &Database) -> Result<(), Error> {
    let txn = begin_write(database)?;
    {
        storage!(txn.open_table(SESSIONS))?;
        storage!(txn.open_table(BUCKETS))?;
        storage!(txn.open_table(CONTAINERS))?;
        let mut meta = storage!(txn.open_table(META))?;
        storage!(meta.insert(META_FORMAT, u64::from(FORMAT)))?;
        storage!(meta.insert(META_REVISION, 0))?;
        storage!(meta.insert(META_TIME, 0))?;
    }
    storage!(txn.commit())
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

pub(super) struct TablesView {
    sessions: ReadOnlyTable<(u32, &'static [u8]), &'static [u8]>,
    buckets: ReadOnlyTable<(u32, u64, &'static [u8]), ()>,
}

impl TablesView {
    /// Up to `max` rows of one container, in the order of their keys.
    fn rows<T>(
        &self,
        container: ContainerId,
        from: &Key,
        max: usize,
        row: impl Fn(&[u8], &[u8]) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let mut found = Vec::new();
        for next in storage!(self.sessions.range((container.0, from.as_bytes())..))?.take(max) {
            let (place, record) = storage!(next)?;
            let (owner, key) = place.value();
            if owner != container.0 {
                break;
            }
            found.push(row(key, record.value())?);
        }
        Ok(found)
    }
}

impl View for TablesView {
    fn read(&self, place: &Place) -> Result<Option<Arc<Record>>, Error> {
        let row = storage!(self.sessions.get((place.0.0, place.1.as_bytes())))?;
        row.map(|row| records::decode_session(row.value()).map(Arc::new)).transpose()
    }

    fn scan(
        &self,
        container: ContainerId,
        from: &Key,
        max: usize,
    ) -> Result<Vec<(Key, Arc<Record>)>, Error> {
        self.rows(container, from, max, |key, record| {
            Ok((Key::from(key), Arc::new(records::decode_session(record)?)))
        })
    }

    fn keys(&self, container: ContainerId, from: &Key, max: usize) -> Result<Vec<Key>, Error> {
        self.rows(container, from, max, |key, _| Ok(Key::from(key)))
    }

    fn due(
        &self,
        container: ContainerId,
        until: u64,
        from: &(u64, Key),
        max: usize,
    ) -> Result<Vec<(u64, Key)>, Error> {
        let mut found = Vec::new();
        let from = (container.0, from.0, from.1.as_bytes());
        for row in storage!(self.buckets.range(from..))?.take(max) {
            let (row, ()) = storage!(row).map(|(row, nothing)| (row, nothing.value()))?;
            let (owner, bucket, key) = row.value();
            if owner != container.0 || bucket > until {
                break;
            }
            found.push((bucket, Key::from(key)));
        }
        Ok(found)
    }
}

impl fmt::Debug for TablesView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TablesView")
    }
}
