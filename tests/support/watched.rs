//! The disk of the operating system, with an observer.
//!
//! The observer is told of every operation that changes something, before it is done and after, on
//! the thread that does it: it may count, or keep that thread waiting.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sessile::{Access, Disk, DiskFile, FileKind, LocalDisk};

/// What a store does with its directory and the files in it; to look and to read is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Operation {
    MakeDirectory,
    Create,
    Write,
    Lengthen,
    Sync,
    Rename,
    Remove,
    SyncDirectory,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Side {
    Before,
    After,
}

/// Someone who is told of every operation.
pub(crate) trait Observer: Send + Sync + 'static {
    fn meets(&self, side: Side, operation: Operation, path: &Path);
}

/// The disk of the operating system, under observation.
#[derive(Clone)]
pub(crate) struct Watched(pub Arc<dyn Observer>);

impl Watched {
    fn run<T>(
        &self,
        operation: Operation,
        path: &Path,
        work: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        self.0.meets(Side::Before, operation, path);
        let done = work()?;
        self.0.meets(Side::After, operation, path);
        Ok(done)
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watched")
    }
}

impl Disk for Watched {
    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>> {
        LocalDisk.kind(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        LocalDisk.list(directory)
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.run(Operation::MakeDirectory, path, || LocalDisk.create_directory(path))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let open = || LocalDisk.open(path, access);
        let file = match access {
            Access::Create => self.run(Operation::Create, path, open)?,
            Access::Read | Access::Write => open()?,
        };
        Ok(Arc::new(WatchedFile { file, path: path.to_owned(), disk: self.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run(Operation::Rename, to, || LocalDisk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.run(Operation::Remove, path, || LocalDisk.remove(path))
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.run(Operation::SyncDirectory, path, || LocalDisk.sync_directory(path))
    }
}

#[derive(Debug)]
struct WatchedFile {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    disk: Watched,
}

impl DiskFile for WatchedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, bytes)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.run(Operation::Write, &self.path, || self.file.write(offset, bytes))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.run(Operation::Lengthen, &self.path, || self.file.set_len(len))
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.run(Operation::Sync, &self.path, || self.file.sync())
    }

    fn file(&self) -> Option<&File> {
        self.file.file()
    }
}
