//! Where the files of a store lie: everything that the engine asks of an operating system.
//!
//! [`LocalDisk`] is the real one. The trait is there for tests: a disk that loses what was not
//! synced, tears a write, fails an operation or kills its process on the way can stand below the
//! commit log and the tables at once, and sees every operation in its order.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Arc;

use redb::StorageBackend;
use redb::backends::FileBackend;

use crate::error::Error;

/// Files and directories, as a store uses them.
///
/// What is promised of it is little: see "What we assume of the disk" in
/// [`docs::format`](crate::docs::format).
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// What lies at a path; a symbolic link is not followed. `None`: nothing.
    ///
    /// # Errors
    ///
    /// Those of the operating system, as for all calls here.
    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>>;

    /// The names in a directory, in any order.
    ///
    /// # Errors
    ///
    /// As for [`kind`](Disk::kind).
    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>>;

    /// Makes a directory that only its owner may enter. The one above it exists.
    ///
    /// # Errors
    ///
    /// As for [`kind`](Disk::kind).
    fn create_directory(&self, path: &Path) -> io::Result<()>;

    /// Opens a file.
    ///
    /// # Errors
    ///
    /// As for [`kind`](Disk::kind).
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames a file within a directory, in one step; what was there under the new name goes. A
    /// directory is renamed to what is no name yet.
    ///
    /// # Errors
    ///
    /// As for [`kind`](Disk::kind).
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    ///
    /// As for [`kind`](Disk::kind).
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    ///
    /// As for [`kind`](Disk::kind).
    fn sync_directory(&self, path: &Path) -> io::Result<()>;

    /// Whether only its owner may open a file, or enter a directory. A disk that knows no owners says
    /// yes.
    ///
    /// # Errors
    ///
    /// As for [`kind`](Disk::kind).
    fn is_private(&self, path: &Path) -> io::Result<bool> {
        let _ = path;
        Ok(true)
    }
}

/// An open file.
#[expect(clippy::len_without_is_empty, reason = "nobody asks")]
pub trait DiskFile: fmt::Debug + Send + Sync + 'static {
    /// How many bytes it has.
    ///
    /// # Errors
    ///
    /// Those of the operating system, as for all calls here.
    fn len(&self) -> io::Result<u64>;

    /// Fills `bytes` with what lies at `offset`.
    ///
    /// # Errors
    ///
    /// As for [`len`](DiskFile::len); [`io::ErrorKind::UnexpectedEof`] if the file ends before.
    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`; the file grows if it must.
    ///
    /// # Errors
    ///
    /// As for [`len`](DiskFile::len). What was written then is unknown.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Cuts the file off, or lengthens it with zeros.
    ///
    /// # Errors
    ///
    /// As for [`len`](DiskFile::len).
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes the bytes and the length durable.
    ///
    /// # Errors
    ///
    /// As for [`len`](DiskFile::len). What is durable then is unknown, and stays so: a second sync
    /// that succeeds says nothing about what the first one was to make durable.
    fn sync(&self) -> io::Result<()>;

    /// The operating system's file, if it is one: the locks that keep other processes out are taken
    /// on it. Without it nobody is kept out.
    fn file(&self) -> Option<&File>;
}

/// What lies at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, a device, a pipe, a socket.
    Other,
}

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// One that exists, for reading.
    Read,
    /// One that exists, for reading and writing.
    Write,
    /// A new one, for reading and writing, that only its owner may open. An error if there is one.
    Create,
}

/// The operating system's files.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalDisk;

impl Disk for LocalDisk {
    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>> {
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_file() => Ok(Some(FileKind::File)),
            Ok(found) if found.is_dir() => Ok(Some(FileKind::Directory)),
            Ok(_) => Ok(Some(FileKind::Other)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        let mut builder = DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(path)?;
        // Whatever the umask has taken away.
        #[cfg(unix)]
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        Ok(())
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(access != Access::Read).create_new(access == Access::Create);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(path)?;
        #[cfg(unix)]
        if access == Access::Create {
            file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        }
        // A second handle on the same open file: it has a portable way to read and write anywhere.
        let bytes = FileBackend::new(file.try_clone()?).map_err(io::Error::other)?;
        Ok(Arc::new(LocalFile { file, bytes }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    /// Elsewhere than on Unix directories cannot be synced.
    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        match cfg!(unix) {
            true => File::open(path)?.sync_all(),
            false => Ok(()),
        }
    }

    #[cfg(unix)]
    fn is_private(&self, path: &Path) -> io::Result<bool> {
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::symlink_metadata(path)?.permissions());
        Ok(mode & 0o077 == 0)
    }
}

#[derive(Debug)]
struct LocalFile {
    file: File,
    bytes: FileBackend,
}

impl DiskFile for LocalFile {
    fn len(&self) -> io::Result<u64> {
        self.bytes.len()
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.bytes.read(offset, bytes)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.bytes.write(offset, bytes)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.bytes.sync_data()
    }

    fn file(&self) -> Option<&File> {
        Some(&self.file)
    }
}

/// An error of the operating system, with the path that it is about.
pub(super) fn at(path: &Path, error: io::Error) -> Error {
    Error::storage(io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// What a small file holds; of a larger one, which is none of ours, no more than is needed to know.
pub(super) fn start_of(file: &dyn DiskFile) -> io::Result<Vec<u8>> {
    // The marker and the lock file have less.
    const BYTES_MAX: u64 = 256;
    let mut bytes = vec![0; file.len()?.min(BYTES_MAX) as usize];
    file.read(0, &mut bytes)?;
    Ok(bytes)
}
