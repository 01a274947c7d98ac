//! The lock file: it is locked while a process has the store open, and says in two lines which one,
//! and at which start of the machine the store was last known to be whole.

use std::fs::{self, TryLockError};
use std::io;
use std::path::Path;
use std::process;
use std::sync::Arc;

use super::disk::{self, DiskFile};
use crate::error::Error;

/// The name of the file.
pub(super) const LOCK: &str = "lock";

/// The lock file, locked. The operating system lets go of it when the process dies, so a file that
/// was left behind blocks nobody.
#[derive(Debug)]
pub(super) struct Lock {
    file: Arc<dyn DiskFile>,
    pid: u32,
}

impl Lock {
    /// Locks the file of the store in `directory`.
    pub(super) fn take(file: Arc<dyn DiskFile>, directory: &Path) -> Result<Self, Error> {
        match file.file().map_or(Ok(()), |file| file.try_lock()) {
            Ok(()) => Ok(Lock { file, pid: process::id() }),
            Err(error) => Err(not_locked(directory, error, &*file)),
        }
    }

    /// Writes down whose it is, and at which start of the machine the store was whole.
    pub(super) fn note(&self, start: &str) -> io::Result<()> {
        let text = format!("{}\n{start}\n", process::id());
        // Cut off last: where the disk is full, what is overwritten has its place already.
        self.file.write(0, text.as_bytes())?;
        self.file.set_len(text.len() as u64)
    }

    /// At which start of the machine the store was last whole; empty if that is not known.
    pub(super) fn last_start(&self) -> String {
        line(&*self.file, 1).unwrap_or_default()
    }

    /// To close the file is not enough: a process that is just being started has it, too, and lets
    /// go of it only when it runs its own program. But one that was forked must not unlock what is
    /// its parent's.
    pub(super) fn release(&self) {
        if let Some(file) = self.file.file().filter(|_| self.pid == process::id()) {
            // If it fails, there is still the end of the process.
            let _ = file.unlock();
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.release();
    }
}

/// The process that has locked the file, or did so last, if it has said so.
pub(super) fn owner(file: &dyn DiskFile) -> Option<u32> {
    line(file, 0)?.parse().ok()
}

/// What the operating system calls the time since the machine was started; `None` if it does not.
pub(super) fn start_of_machine() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

fn not_locked(directory: &Path, error: TryLockError, file: &dyn DiskFile) -> Error {
    match error {
        TryLockError::WouldBlock => {
            Error::AlreadyOpen { path: directory.to_owned(), pid: owner(file) }
        }
        // Without a lock two processes could write to one store.
        TryLockError::Error(error) => Error::storage(io::Error::new(
            error.kind(),
            format!(
                "{} cannot be locked on this file system: {error}",
                directory.join(LOCK).display()
            ),
        )),
    }
}

/// A line of the file. Nothing depends on it but what is told, and how much is checked: what
/// cannot be read is not there.
fn line(file: &dyn DiskFile, number: usize) -> Option<String> {
    let text = String::from_utf8(disk::start_of(file).ok()?).ok()?;
    // The last one may be cut off.
    text.split_inclusive('\n').nth(number)?.strip_suffix('\n').map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::embedded::disk::{Access, Disk, LocalDisk};

    fn file(directory: &Path) -> Arc<dyn DiskFile> {
        let path = directory.join(LOCK);
        let access = if path.exists() { Access::Write } else { Access::Create };
        LocalDisk.open(&path, access).unwrap()
    }

    #[test]
    fn a_file_that_cannot_be_locked_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let unsupported = TryLockError::Error(io::ErrorKind::Unsupported.into());
        let Error::Storage(cause) = not_locked(path, unsupported, &*file(path)) else {
            panic!("it was taken for another store's")
        };
        let wanted = format!("{}/lock cannot be locked on this file system", path.display());
        assert!(cause.to_string().starts_with(&wanted), "{cause}");
    }

    /// A process that is just being started has all files of this one for a moment.
    #[test]
    fn a_lock_that_was_let_go_of_is_free_whoever_has_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let take = || Lock::take(file(path), path);
        let lock = take().unwrap();
        let inherited = lock.file.file().unwrap().try_clone().unwrap();
        drop(lock);
        let mut lock = take().unwrap();
        drop(inherited);

        // A forked one has them for good, and what it does with them is not done to ours.
        let inherited = lock.file.file().unwrap().try_clone().unwrap();
        lock.pid += 1;
        drop(lock);
        assert!(matches!(take(), Err(Error::AlreadyOpen { .. })));
        drop(inherited);
        take().unwrap();
    }
}
