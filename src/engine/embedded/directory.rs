//! The directory of a store: who may open it, and what counts as one.
//!
//! ```text
//! sessions/                mode 0700
//!   lock                   held while the store is open
//!   sessions.redb          mode 0600; its presence makes the directory a store
//!   sessions.redb.new      a store in the making; renamed when it is whole and synced
//! ```
//!
//! An empty directory is a store to be. Any other without `sessions.redb` is somebody else's and
//! is left alone: to take a mistyped path for a new store would end every session there is.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

use redb::{Builder, Database, DatabaseError, ReadOnlyDatabase, StorageError};

use crate::error::Error;

const LOCK: &str = "lock";
const DATABASE: &str = "sessions.redb";
const IN_THE_MAKING: &str = "sessions.redb.new";

/// What to do about a store that is or is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Open it; make it if the directory is absent or empty.
    Open,
    /// Make it; an error if there is one.
    Create,
}

/// Opens the database of a store, which `fill` fills if there is none yet and `identify` knows for
/// ours if there is, and locks the directory for as long as the file that is returned lives.
pub(super) fn open(
    path: &Path,
    mode: Mode,
    builder: &Builder,
    fill: impl FnOnce(&Database) -> Result<(), Error>,
    identify: impl FnOnce(&ReadOnlyDatabase) -> Result<(), Error>,
) -> Result<(Database, File), Error> {
    let not_a_store =
        |reason: &str| Error::NotAStore { path: path.to_owned(), reason: reason.to_owned() };
    let there = is_there(path, &not_a_store)?;
    if there && mode == Mode::Create {
        return Err(Error::AlreadyThere { path: path.to_owned() });
    }
    if !there {
        make_directory(path)?;
    }
    let lock = lock(path)?;
    // Asked again under the lock: another process may have made the store since.
    if !is_there(path, &not_a_store)? {
        make(path, builder, fill)?;
    }
    let file = path.join(DATABASE);
    if fs::metadata(&file).map_err(|error| at(&file, error))?.len() == 0 {
        // redb would take it for a new database.
        return Err(not_a_store("sessions.redb is empty"));
    }
    // To open a database is to write to it: look first, so that what is refused stays as it is.
    match builder.open_read_only(&file) {
        Ok(database) => identify(&database)?,
        // Its process was killed. It must be repaired before anybody can look.
        Err(DatabaseError::RepairAborted) => {}
        Err(error) => return Err(refusal(path, error)),
    }
    let database = builder.open(&file).map_err(|error| refusal(path, error))?;
    Ok((database, lock))
}

/// Whether a store lies at the path; an error if something else does.
fn is_there(path: &Path, not_a_store: &dyn Fn(&str) -> Error) -> Result<bool, Error> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(not_a_store("it is no directory"));
        }
        Err(error) => return Err(at(path, error)),
    };
    match fs::symlink_metadata(path.join(DATABASE)) {
        Ok(found) if found.is_file() => return Ok(true),
        Ok(_) => return Err(not_a_store("sessions.redb is no regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(at(path, error)),
    }
    for entry in entries {
        let name = entry.map_err(|error| at(path, error))?.file_name();
        if name != LOCK && name != IN_THE_MAKING {
            return Err(not_a_store("the directory holds other files and no sessions.redb"));
        }
    }
    Ok(false)
}

/// Makes the database of a new store. It gets its name when it is whole, so that a crash leaves
/// either a store or an attempt that the next one replaces.
fn make(
    path: &Path,
    builder: &Builder,
    fill: impl FnOnce(&Database) -> Result<(), Error>,
) -> Result<(), Error> {
    let attempt = path.join(IN_THE_MAKING);
    match fs::remove_file(&attempt) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&attempt, error)),
        _ => {}
    }
    private_file().create_new(true).open(&attempt).map_err(|error| at(&attempt, error))?;
    let database = builder.create(&attempt).map_err(|error| refusal(path, error))?;
    fill(&database)?;
    database.close().map_err(Error::storage)?;
    fs::rename(&attempt, path.join(DATABASE)).map_err(|error| at(path, error))?;
    sync_directory(path)
}

/// Makes a directory and those above it, each of them private and durable.
fn make_directory(path: &Path) -> Result<(), Error> {
    let absent =
        path.ancestors().take_while(|above| !above.as_os_str().is_empty() && !above.exists());
    let absent: Vec<_> = absent.collect();
    private_directory().create(path).map_err(|error| at(path, error))?;
    for made in absent {
        match made.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent)?,
            _ => sync_directory(Path::new("."))?,
        }
    }
    Ok(())
}

/// Makes durable what names a directory holds. Elsewhere than on Unix directories cannot be synced.
fn sync_directory(path: &Path) -> Result<(), Error> {
    if cfg!(unix) {
        File::open(path).and_then(|it| it.sync_all()).map_err(|error| at(path, error))?;
    }
    Ok(())
}

/// An error of the operating system, with the path that it is about.
fn at(path: &Path, error: io::Error) -> Error {
    Error::storage(io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn lock(path: &Path) -> Result<File, Error> {
    let lock =
        private_file().create(true).open(path.join(LOCK)).map_err(|error| at(path, error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Error::AlreadyOpen { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(at(path, error)),
    }
}

/// What redb's refusal to open a database means.
fn refusal(path: &Path, error: DatabaseError) -> Error {
    let not_a_store = |reason: String| Error::NotAStore { path: path.to_owned(), reason };
    match error {
        DatabaseError::DatabaseAlreadyOpen => Error::AlreadyOpen { path: path.to_owned() },
        DatabaseError::UpgradeRequired(version) => {
            not_a_store(format!("sessions.redb has redb's file format {version}"))
        }
        DatabaseError::Storage(StorageError::Io(error))
            if error.kind() == io::ErrorKind::InvalidData =>
        {
            not_a_store("sessions.redb is no redb database".to_owned())
        }
        DatabaseError::Storage(StorageError::Corrupted(reason)) => {
            Error::Corrupt { table: DATABASE, reason }
        }
        error => Error::storage(error),
    }
}

/// Sessions are private: only the owner may enter.
fn private_directory() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
}

fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}
