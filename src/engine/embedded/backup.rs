//! Making a store that holds one state of another.
//!
//! ```text
//!   x.incomplete/   lock  creating  backup  sessions.redb ...      while it is made
//!   x.incomplete/   lock  backup  sessions.redb  sessile           a whole store, all of it synced
//!   x/                                                             renamed, and that synced
//! ```
//!
//! It is made beside the name that it gets, in the order in which every store is made, and renamed when
//! it is whole. So under that name there is nothing or a backup, whatever happens. What an attempt left
//! that was cut off is removed by the next; the file `backup` tells it from a store of that name.
//!
//! A backup is a store like any other, with an id of its own: a log of the original is none of its. It
//! has no log until it is opened, and goes on from the number of the commit that it holds.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Mode;
use super::directory::{ASIDE, Directory, absolute};
use super::disk::{Access, Disk, at};
use super::lock::LOCK;
use super::marker::{MARKER, StoreId};
use super::tables::Tables;
use crate::error::Error;
use crate::model::clock::Time;
use crate::model::container::{ContainerState, Place};
use crate::model::session::{Record, Revision};

/// There while a backup is made, and afterwards to say what it is one of.
const NOTE: &str = "backup";

/// A backup in the making.
pub(crate) struct Backup {
    disk: Arc<dyn Disk>,
    /// Where it is made, and where it is to be.
    from: PathBuf,
    to: PathBuf,
    id: StoreId,
    directory: Arc<Directory>,
    tables: Tables,
}

/// What a backup is one of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    pub revision: Revision,
    pub time: Time,
    pub epoch: u64,
}

impl Backup {
    /// Begins one at a path where nothing lies.
    pub(crate) fn begin(disk: Arc<dyn Disk>, path: &Path, id: u128) -> Result<Self, Error> {
        let (to, id) = (absolute(path)?, StoreId(id));
        let name = to.file_name().ok_or_else(|| at(&to, not_a_name()))?;
        let mut beside = name.to_owned();
        beside.push(".incomplete");
        let from = to.with_file_name(beside);
        check_free(&*disk, &to)?;
        let directory = Arc::new(begin(&disk, &from, id)?);
        Tables::create(&directory)?;
        let tables = Tables::open(Arc::clone(&directory), false)?;
        Ok(Backup { disk, from, to, id, directory, tables })
    }

    /// Puts some of what it is to hold into it.
    pub(crate) fn put(&self, rows: &[(Place, Arc<Record>)]) -> Result<(), Error> {
        let rows: Vec<_> = rows.iter().map(|(place, record)| (place, Some(record))).collect();
        self.tables.fold(&rows, [].iter(), |_| {})
    }

    /// Makes it a store under its name; how large it is.
    pub(crate) fn finish(
        self,
        containers: &[Arc<ContainerState>],
        origin: Origin,
    ) -> Result<u64, Error> {
        let Backup { disk, from, to, id, directory, tables } = self;
        tables.fold(&[], containers.iter(), |meta| {
            meta.folded = origin.revision.0;
            meta.begun = origin.revision.0;
            meta.time = origin.time.as_micros();
            meta.epoch = origin.epoch;
            meta.clean = true;
        })?;
        tables.close()?;
        drop(tables);
        let mut directory = Arc::into_inner(directory).expect("only the tables had it too");
        debug_assert_eq!(directory.id(), id);
        directory.finish()?;
        let bytes = directory.files()?.into_iter().map(|(_, bytes)| bytes).sum();
        // Elsewhere than on Unix nothing is renamed that is open.
        drop(directory);
        check_free(&*disk, &to)?;
        disk.rename(&from, &to).map_err(|error| at(&to, error))?;
        let above = to.parent().unwrap_or(&to);
        disk.sync_directory(above).map_err(|error| at(above, error))?;
        Ok(bytes)
    }
}

/// Begins the directory that it is made in, without what another attempt has left.
fn begin(disk: &Arc<dyn Disk>, path: &Path, id: StoreId) -> Result<Directory, Error> {
    let mut directory = Directory::open(Arc::clone(disk), path, Mode::Open, id)?;
    if !directory.is_new() {
        let names = directory.names()?;
        if !names.iter().any(|name| name == NOTE) {
            return Err(Error::AlreadyThere { path: path.to_owned() });
        }
        // It was whole, and not renamed. The marker goes last: as long as it is there all of this is done
        // again if it is cut off.
        let others = |name: &&String| ![LOCK, MARKER].contains(&name.as_str());
        names.iter().filter(others).try_for_each(|name| directory.remove(name))?;
        directory.remove(MARKER)?;
        drop(directory);
        directory = Directory::open(Arc::clone(disk), path, Mode::Create, id)?;
    }
    // What was not whole has been moved aside.
    let aside = |name: &&String| name.starts_with(ASIDE);
    directory.names()?.iter().filter(aside).try_for_each(|name| directory.remove(name))?;
    let note = directory.open_file(NOTE, Access::Create)?;
    note.sync().map_err(|error| directory.failed(NOTE, error))?;
    Ok(directory)
}

fn check_free(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    match disk.kind(path).map_err(|error| at(path, error))? {
        None => Ok(()),
        Some(_) => Err(Error::AlreadyThere { path: path.to_owned() }),
    }
}

fn not_a_name() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidInput, "this is no name for a directory")
}
