//! A disk for tests: that of the operating system, and somebody who is told of each step before it is
//! taken, and may refuse it.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::disk::{Access, Disk, DiskFile, FileKind, LocalDisk};

/// The disk of the operating system, watched.
pub(super) struct Watched {
    below: String,
    watch: Watch,
}

type Watch = Arc<dyn Fn(&str) -> io::Result<()> + Send + Sync>;

impl Watched {
    /// Files in `below` are told by their names, other paths in full.
    pub(super) fn new(
        below: &Path,
        watch: impl Fn(&str) -> io::Result<()> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let below = format!("{}/", std::path::absolute(below).unwrap().display());
        Arc::new(Watched { below, watch: Arc::new(watch) })
    }

    fn name(&self, path: &Path) -> String {
        let path = path.to_str().unwrap();
        path.strip_prefix(&self.below).unwrap_or(path).to_owned()
    }

    fn step(&self, what: &str, path: &Path) -> io::Result<()> {
        (self.watch)(&format!("{what} {}", self.name(path)))
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watched")
    }
}

impl Disk for Watched {
    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>> {
        self.step("kind", path)?;
        LocalDisk.kind(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        self.step("list", directory)?;
        LocalDisk.list(directory)
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.step("create-directory", path)?;
        LocalDisk.create_directory(path)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        self.step(if access == Access::Create { "create" } else { "open" }, path)?;
        let file = LocalDisk.open(path, access)?;
        let (name, watch) = (self.name(path), Arc::clone(&self.watch));
        Ok(Arc::new(WatchedFile { file, name, watch }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(&format!("rename {}", self.name(from)), to)?;
        LocalDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step("remove", path)?;
        LocalDisk.remove(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.step("sync-directory", path)?;
        LocalDisk.sync_directory(path)
    }
}

struct WatchedFile {
    file: Arc<dyn DiskFile>,
    name: String,
    watch: Watch,
}

impl WatchedFile {
    fn step(&self, what: &str) -> io::Result<()> {
        (self.watch)(&format!("{what} {}", self.name))
    }
}

impl fmt::Debug for WatchedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WatchedFile")
    }
}

impl DiskFile for WatchedFile {
    fn len(&self) -> io::Result<u64> {
        self.step("len")?;
        self.file.len()
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.step("read")?;
        self.file.read(offset, bytes)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.step("write")?;
        self.file.write(offset, bytes)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.step("set-len")?;
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.step("sync")?;
        self.file.sync()
    }

    fn file(&self) -> Option<&File> {
        self.file.file()
    }
}
