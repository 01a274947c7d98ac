//! The directory of a store: who may open it, and what counts as one.
//!
//! ```text
//! sessions/            mode 0700
//!   lock               held while the store is open: the process and the start of its machine
//!   creating           empty; there from the first step of making a store to the last
//!   sessile            the marker: its presence makes the directory a store
//!   sessions.redb  log-0  log-1  reserve
//!   aside-*            what an attempt to make a store left when it was cut off
//! ```
//!
//! A store is made in an order that a power cut may interrupt anywhere: `creating` is durable before
//! anything else exists, everything else before the marker is, and the marker before `creating`
//! goes. So there are three answers and no fourth: with the marker it is a store; with `creating`
//! alone it never was one, and is begun again; with neither it must be empty, or it is somebody
//! else's and left alone, for to take a mistyped path or a lost file for a new store would end every
//! session there is.
//!
//! What is refused stays as it is, to the byte: all is looked at before the lock is taken, as even
//! that leaves a file. It is looked at again under the lock, and only then changed.

use std::ffi::OsString;
use std::fs::{self, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;

use twox_hash::XxHash3_64;

use super::disk::{Access, Disk, DiskFile, FileKind};
use crate::error::Error;

/// What this version writes and reads. It counts formats, not releases.
pub(crate) const FORMAT: u32 = 1;

const LOCK: &str = "lock";
const CREATING: &str = "creating";
const MARKER: &str = "sessile";
const MARKER_IN_THE_MAKING: &str = "sessile.new";
const ASIDE: &str = "aside-";

/// The marker and the lock file have less.
const TEXT_BYTES_MAX: u64 = 256;

/// What to do about a store that is or is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Open it; make it if the directory is absent or empty.
    Open,
    /// Make it; an error if there is one.
    Create,
}

/// What tells one store from another, so that a log is never taken for that of another store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoreId(pub(super) u128);

/// The directory of a store, locked for as long as this lives.
#[derive(Debug)]
pub(super) struct Directory {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    id: StoreId,
    is_new: bool,
    machine_restarted: bool,
    /// `None` for who only looks.
    lock: Option<Lock>,
}

impl Directory {
    /// Locks it and finds the store in it, or begins one with the id `new_id`.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        path: &Path,
        mode: Mode,
        new_id: StoreId,
    ) -> Result<Self, Error> {
        let path = absolute(path)?;
        if look(&*disk, &path, mode)? == Found::Nothing {
            make_directory(&*disk, &path)?;
        }
        let lock = Some(lock(&*disk, &path)?);
        let found = look(&*disk, &path, mode)?;
        let mut directory =
            Directory { id: new_id, is_new: true, machine_restarted: false, lock, disk, path };
        let before = directory.last_start();
        directory.note(&before)?;
        match found {
            Found::Store(id) => {
                directory.id = id;
                directory.is_new = false;
                directory.machine_restarted = start_of_machine() != Some(before);
                // The process that made the store may have been killed before the marker's name
                // was durable.
                if directory.kind(CREATING)?.is_some() {
                    directory.end_creation()?;
                }
            }
            Found::Nothing | Found::Creating => directory.begin()?,
        }
        Ok(directory)
    }

    /// Finds a store to look at, whoever has it open. Nothing is locked, made or written, now or
    /// later.
    pub(super) fn find(disk: Arc<dyn Disk>, path: &Path) -> Result<Self, Error> {
        let path = absolute(path)?;
        match look(&*disk, &path, Mode::Open)? {
            Found::Store(id) => Ok(Directory {
                disk,
                path,
                id,
                is_new: false,
                machine_restarted: false,
                lock: None,
            }),
            Found::Creating => Err(not_a_store(&path, "the making of it was not finished".into())),
            Found::Nothing => Err(not_a_store(&path, "there is nothing".into())),
        }
    }

    /// Whether the store is being made: [`finish`](Self::finish) has still to be called, once its
    /// files are made and synced.
    pub(super) fn is_new(&self) -> bool {
        self.is_new
    }

    /// Makes the directory a store.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        let marker = self.open_file(MARKER_IN_THE_MAKING, Access::Create)?;
        let written = marker.write(0, marker_text(self.id).as_bytes()).and_then(|()| marker.sync());
        written.map_err(|error| at(&self.path.join(MARKER_IN_THE_MAKING), error))?;
        // The names of the other files are to be durable before that of the marker may be.
        self.sync()?;
        self.rename(MARKER_IN_THE_MAKING, MARKER)?;
        self.end_creation()?;
        self.is_new = false;
        self.checked()
    }

    /// What tells this store from another.
    pub(super) fn id(&self) -> StoreId {
        self.id
    }

    /// Whether the machine was started anew since the store was last known to be whole, or nobody
    /// knows: then what was written may be damaged.
    pub(super) fn machine_restarted(&self) -> bool {
        self.machine_restarted
    }

    /// The store has been checked: the next process need not, unless the machine is started anew.
    /// To be called when it has been opened. A process that is killed while it checks leaves the
    /// checking to the next.
    pub(super) fn checked(&self) -> Result<(), Error> {
        // Never synced: an older text, or none, says that the machine was started anew. It was.
        self.note(start_of_machine().as_deref().unwrap_or("unknown"))
    }

    /// Opens a regular file; whatever else lies there is refused.
    pub(super) fn open_file(&self, name: &str, access: Access) -> Result<Arc<dyn DiskFile>, Error> {
        open_file(&*self.disk, &self.path, name, access)
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), Error> {
        let file = self.path.join(name);
        self.disk.remove(&file).map_err(|error| at(&file, error))
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        let file = self.path.join(from);
        self.disk.rename(&file, &self.path.join(to)).map_err(|error| at(&file, error))
    }

    /// Makes durable which files there are.
    pub(super) fn sync(&self) -> Result<(), Error> {
        self.disk.sync_directory(&self.path).map_err(|error| at(&self.path, error))
    }

    /// The names of all files, in their order.
    pub(super) fn names(&self) -> Result<Vec<String>, Error> {
        let names = self.disk.list(&self.path).map_err(|error| at(&self.path, error))?;
        let mut names: Vec<_> =
            names.into_iter().filter_map(|name| name.into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Lets others in, although handles of the store may live on. The files must be closed.
    pub(super) fn release(&self) {
        self.lock().release();
    }

    /// The process that has the store open, or had it open last, if it has said so.
    pub(super) fn process(&self) -> Option<u32> {
        let lock = self.open_file(LOCK, Access::Read).ok()?;
        line_of_lock(&*lock, 0)?.parse().ok()
    }

    /// The files of the store that are there, in the order of their names, with their lengths.
    pub(super) fn files(&self) -> Result<Vec<(String, u64)>, Error> {
        let mut files = Vec::new();
        for name in self.names()?.into_iter().filter(|name| is_ours(name)) {
            // Who has the store open may remove a file at any time.
            let Ok(file) = self.open_file(&name, Access::Read) else { continue };
            let len = file.len().map_err(|error| self.failed(&name, error))?;
            files.push((name, len));
        }
        Ok(files)
    }

    /// An error of the operating system about one of the files.
    pub(super) fn failed(&self, name: &str, error: io::Error) -> Error {
        at(&self.path.join(name), error)
    }

    /// Begins a store, or begins again where an attempt was cut off: what that left is kept, but
    /// under names that no store uses.
    fn begin(&self) -> Result<(), Error> {
        let access = match self.kind(CREATING)? {
            Some(_) => Access::Write,
            None => Access::Create,
        };
        // Synced even if it is there: the process that made it may have been killed before it did.
        let creating = self.open_file(CREATING, access)?;
        creating.sync().map_err(|error| at(&self.path.join(CREATING), error))?;
        self.sync()?;
        for name in self.disk.list(&self.path).map_err(|error| at(&self.path, error))? {
            let is_aside = name.to_str().is_some_and(|name| name.starts_with(ASIDE));
            if name != LOCK && name != CREATING && !is_aside {
                let mut aside = OsString::from(ASIDE);
                aside.push(&name);
                let (from, to) = (self.path.join(&name), self.path.join(aside));
                self.disk.rename(&from, &to).map_err(|error| at(&from, error))?;
            }
        }
        Ok(())
    }

    /// The marker is there, and is to stay.
    fn end_creation(&self) -> Result<(), Error> {
        self.sync()?;
        sync_above(&*self.disk, &self.path)?;
        self.remove(CREATING)
    }

    fn kind(&self, name: &str) -> Result<Option<FileKind>, Error> {
        kind(&*self.disk, &self.path, name)
    }

    /// Writes into the lock file whose it is, and at which start of the machine the store was whole.
    fn note(&self, start: &str) -> Result<(), Error> {
        let text = format!("{}\n{start}\n", process::id());
        // Cut off last: where the disk is full, what is overwritten has its place already.
        let lock = &self.lock().file;
        let written = lock.write(0, text.as_bytes());
        written
            .and_then(|()| lock.set_len(text.len() as u64))
            .map_err(|error| at(&self.path.join(LOCK), error))
    }

    /// At which start of the machine the store was last whole; empty if that is not known.
    fn last_start(&self) -> String {
        line_of_lock(&*self.lock().file, 1).unwrap_or_default()
    }

    fn lock(&self) -> &Lock {
        self.lock.as_ref().expect("who only looks changes nothing")
    }
}

/// What lies at a path, other than what is refused.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// No directory, or one with nothing but a lock in it.
    Nothing,
    /// A store in the making, or an attempt at one.
    Creating,
    Store(StoreId),
}

/// Files are opened as long as the store is open, and the process may change its directory. A slash at
/// the end would follow a symbolic link.
fn absolute(path: &Path) -> Result<PathBuf, Error> {
    let path = std::path::absolute(path).map_err(|error| at(path, error))?;
    Ok(path.components().collect())
}

/// Looks what lies at a path and changes nothing.
fn look(disk: &dyn Disk, path: &Path, mode: Mode) -> Result<Found, Error> {
    let refuse = |reason: &str| Err(not_a_store(path, reason.to_owned()));
    match disk.kind(path) {
        Ok(Some(FileKind::Directory)) => {}
        Ok(Some(FileKind::File)) => return refuse("it is a file and no directory"),
        Ok(Some(FileKind::Other)) => {
            return refuse("it is a symbolic link, or a device, and no directory");
        }
        Ok(None) => return Ok(Found::Nothing),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return refuse("what lies above it is no directory");
        }
        Err(error) => return Err(at(path, error)),
    }
    // Another process may be making a store meanwhile. The order matters: whoever sees a file of
    // its, and then no `creating`, comes late enough to see the marker.
    let names = disk.list(path).map_err(|error| at(path, error))?;
    for name in names.iter().filter_map(|name| name.to_str()).filter(|name| is_ours(name)) {
        // A pipe would block whoever opens it, and a link lead out of the directory.
        if kind(disk, path, name)?.is_some_and(|kind| kind != FileKind::File) {
            return Err(not_regular(path, name));
        }
    }
    let creating = kind(disk, path, CREATING)?.is_some();
    if kind(disk, path, MARKER)?.is_some() {
        let marker = open_file(disk, path, MARKER, Access::Read)?;
        let text = start_of(&*marker).map_err(|error| at(&path.join(MARKER), error))?;
        let id = read_marker(&text).map_err(|refusal| match refusal {
            Refusal::Format(found) => Error::Format { found, supported: FORMAT },
            Refusal::Not(reason) => not_a_store(path, format!("`{MARKER}` {reason}")),
        })?;
        return match mode {
            Mode::Open => Ok(Found::Store(id)),
            Mode::Create => Err(Error::AlreadyThere { path: path.to_owned() }),
        };
    }
    if creating {
        return match disk.open(&path.join(CREATING), Access::Read).and_then(|file| file.len()) {
            Ok(0) => Ok(Found::Creating),
            Ok(_) => refuse("`creating` is not empty, and there is no `sessile`"),
            // Whoever was making the store has finished just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Creating),
            Err(error) => Err(at(&path.join(CREATING), error)),
        };
    }
    match names.iter().all(|name| name == LOCK) {
        true => Ok(Found::Nothing),
        false => refuse("the directory holds other files and no `sessile`"),
    }
}

/// Whether a store's file may have this name.
fn is_ours(name: &str) -> bool {
    [LOCK, CREATING, MARKER, "sessions.redb", "reserve"].contains(&name) || name.starts_with("log-")
}

/// The text of the marker. People may read it; [`read_marker`] takes nothing else.
fn marker_text(id: StoreId) -> String {
    let text = format!("{MARKER}\nformat {FORMAT}\nstore {:032x}\n", id.0);
    let check = XxHash3_64::oneshot(text.as_bytes());
    format!("{text}check {check:016x}\n")
}

/// Why a marker is refused.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// It has another format.
    Format(u32),
    /// It is none: "`sessile` ..."
    Not(&'static str),
}

/// The id in a marker. The format is read before the checksum is asked for: what comes after it is
/// another format's business.
fn read_marker(text: &[u8]) -> Result<StoreId, Refusal> {
    const BEGINNING: &str = "sessile\nformat ";
    const CUT_OFF: Refusal = Refusal::Not("is cut off");
    const FOREIGN: Refusal = Refusal::Not("was written by another program");
    const DAMAGED: Refusal = Refusal::Not("is damaged");
    if text.is_empty() {
        return Err(Refusal::Not("is empty"));
    }
    let Some(rest) = text.strip_prefix(BEGINNING.as_bytes()) else {
        return Err(if BEGINNING.as_bytes().starts_with(text) { CUT_OFF } else { FOREIGN });
    };
    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else { return Err(CUT_OFF) };
    let format = str::from_utf8(&rest[..end]).ok().and_then(|format| format.parse().ok());
    match format {
        Some(FORMAT) => {}
        Some(found) => return Err(Refusal::Format(found)),
        None => return Err(DAMAGED),
    }
    let id = rest[end..].strip_prefix(b"\nstore ").and_then(|rest| rest.get(..32));
    let id = id.and_then(|id| str::from_utf8(id).ok());
    let id = id.and_then(|id| u128::from_str_radix(id, 16).ok()).map(StoreId);
    let wanted = marker_text(id.unwrap_or(StoreId(0)));
    match id {
        Some(id) if wanted.as_bytes() == text => Ok(id),
        _ if text.len() < wanted.len() => Err(CUT_OFF),
        _ => Err(DAMAGED),
    }
}

/// The lock file, locked. The operating system lets go of it when the process dies, so a file that
/// was left behind blocks nobody.
#[derive(Debug)]
struct Lock {
    file: Arc<dyn DiskFile>,
    pid: u32,
}

impl Lock {
    /// To close the file is not enough: a process that is just being started has it, too, and lets
    /// go of it only when it runs its own program. But one that was forked must not unlock what is
    /// its parent's.
    fn release(&self) {
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

fn lock(disk: &dyn Disk, path: &Path) -> Result<Lock, Error> {
    let name = path.join(LOCK);
    let file = match disk.open(&name, Access::Create) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            open_file(disk, path, LOCK, Access::Write)?
        }
        made => made.map_err(|error| at(&name, error))?,
    };
    match file.file().map_or(Ok(()), |file| file.try_lock()) {
        Ok(()) => Ok(Lock { file, pid: process::id() }),
        Err(error) => Err(not_locked(path, error, &*file)),
    }
}

fn not_locked(path: &Path, error: TryLockError, file: &dyn DiskFile) -> Error {
    match error {
        TryLockError::WouldBlock => {
            let pid = line_of_lock(file, 0).and_then(|line| line.parse().ok());
            Error::AlreadyOpen { path: path.to_owned(), pid }
        }
        // Without a lock two processes could write to one store.
        TryLockError::Error(error) => Error::storage(io::Error::new(
            error.kind(),
            format!("{} cannot be locked on this file system: {error}", path.join(LOCK).display()),
        )),
    }
}

/// A line of the lock file. Nothing depends on it but what is told, and how much is checked: what
/// cannot be read is not there.
fn line_of_lock(lock: &dyn DiskFile, line: usize) -> Option<String> {
    let text = String::from_utf8(start_of(lock).ok()?).ok()?;
    // The last one may be cut off.
    text.split_inclusive('\n').nth(line)?.strip_suffix('\n').map(str::to_owned)
}

/// What the operating system calls the time since the machine was started; `None` if it does not.
fn start_of_machine() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

/// What a small file holds; of a larger one, which is none of ours, no more than is needed to know.
fn start_of(file: &dyn DiskFile) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; file.len()?.min(TEXT_BYTES_MAX) as usize];
    file.read(0, &mut bytes)?;
    Ok(bytes)
}

fn open_file(
    disk: &dyn Disk,
    path: &Path,
    name: &str,
    access: Access,
) -> Result<Arc<dyn DiskFile>, Error> {
    if access != Access::Create {
        match kind(disk, path, name)? {
            Some(FileKind::File) => {}
            Some(_) => return Err(not_regular(path, name)),
            None => return Err(not_a_store(path, format!("`{name}` is missing"))),
        }
    }
    let file = path.join(name);
    disk.open(&file, access).map_err(|error| at(&file, error))
}

fn kind(disk: &dyn Disk, path: &Path, name: &str) -> Result<Option<FileKind>, Error> {
    let file = path.join(name);
    disk.kind(&file).map_err(|error| at(&file, error))
}

/// Makes a directory and those above it, from the top: each is durable before the next is made.
fn make_directory(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    let Some(above) = path.parent() else { return Ok(()) };
    if disk.kind(path).map_err(|error| at(path, error))?.is_some() {
        // The process that made it may have been killed before it was durable.
        return sync_above(disk, path);
    }
    make_directory(disk, above)?;
    match disk.create_directory(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(at(path, error)),
        _ => disk.sync_directory(above).map_err(|error| at(above, error)),
    }
}

/// Makes the name of a directory durable, in the one above it. One that may not be read is not
/// ours, and neither is it to see that what lies in it is durable.
fn sync_above(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    let Some(above) = path.parent() else { return Ok(()) };
    match disk.sync_directory(above) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        synced => synced.map_err(|error| at(above, error)),
    }
}

fn not_a_store(path: &Path, reason: String) -> Error {
    Error::NotAStore { path: path.to_owned(), reason }
}

fn not_regular(path: &Path, name: &str) -> Error {
    not_a_store(path, format!("`{name}` is no regular file"))
}

/// An error of the operating system, with the path that it is about.
fn at(path: &Path, error: io::Error) -> Error {
    Error::storage(io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsString;
    use std::fs::File;
    use std::sync::Mutex;

    use tempfile::TempDir;

    use super::*;
    use crate::engine::embedded::disk::LocalDisk;

    const ID: StoreId = StoreId(0x00aa_55f0_1234_5678_9abc_def0_8765_4321);
    const OTHER: StoreId = StoreId(7);

    fn open(path: &Path) -> Result<Directory, Error> {
        Directory::open(Arc::new(LocalDisk), path, Mode::Open, OTHER)
    }

    /// A whole store: what its files hold is no business of the directory.
    fn make(disk: Arc<dyn Disk>, path: &Path) -> Result<Directory, Error> {
        let mut directory = Directory::open(disk, path, Mode::Open, ID)?;
        if directory.is_new() {
            for name in ["sessions.redb", "log-0"] {
                let file = directory.open_file(name, Access::Create)?;
                let written = file.write(0, name.as_bytes()).and_then(|()| file.sync());
                written.map_err(|error| at(path, error))?;
            }
            directory.finish()?;
        }
        Ok(directory)
    }

    fn store() -> (TempDir, PathBuf) {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("store");
        make(Arc::new(LocalDisk), &path).unwrap();
        (above, path)
    }

    /// Everything below a path, with its bytes; links and the like by what they are.
    fn contents(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let entry = |path: &Path| {
            let kind = fs::symlink_metadata(path).unwrap().file_type();
            match kind.is_file() {
                true => fs::read(path).unwrap(),
                false => format!("{kind:?}").into_bytes(),
            }
        };
        found.insert(path.to_owned(), entry(path));
        if fs::symlink_metadata(path).unwrap().is_dir() {
            for below in fs::read_dir(path).unwrap() {
                found.extend(contents(&below.unwrap().path()));
            }
        }
        found
    }

    /// Refused in either mode, for this reason; and nothing was changed or made, not even a lock.
    fn refused(path: &Path, wanted: &str) {
        let before = contents(path);
        for mode in [Mode::Open, Mode::Create] {
            match Directory::open(Arc::new(LocalDisk), path, mode, OTHER) {
                Err(Error::NotAStore { path: said, reason }) => {
                    assert_eq!((said.as_path(), reason.as_str()), (path, wanted));
                }
                other => panic!("{other:?} instead of: {wanted}"),
            }
        }
        assert_eq!(contents(path), before);
    }

    /// What the operating system refuses with.
    fn os_error(error: Error) -> io::ErrorKind {
        match error {
            Error::Storage(cause) => cause.downcast_ref::<io::Error>().unwrap().kind(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_store_keeps_its_id() {
        let above = tempfile::tempdir().unwrap();
        for path in ["absent", "absent/and/deep", "empty", "with a lock only", "slash/"] {
            let path = above.path().join(path);
            if path.ends_with("empty") {
                fs::create_dir(&path).unwrap();
            }
            if path.ends_with("with a lock only") {
                fs::create_dir(&path).unwrap();
                fs::write(path.join(LOCK), "4242\nold\n").unwrap();
            }
            let directory = make(Arc::new(LocalDisk), &path).unwrap();
            assert!(!directory.is_new() && !directory.machine_restarted());
            assert_eq!(directory.id(), ID);
            assert_eq!(directory.names().unwrap(), ["lock", "log-0", "sessile", "sessions.redb"]);
            drop(directory);
            let directory = open(&path).unwrap();
            assert!(!directory.is_new());
            assert_eq!(directory.machine_restarted(), start_of_machine().is_none());
            assert_eq!(directory.id(), ID);
            let again = Directory::open(Arc::new(LocalDisk), &path, Mode::Create, OTHER);
            assert!(matches!(again, Err(Error::AlreadyThere { .. })));
        }
    }

    #[test]
    fn what_is_no_store_is_refused_and_left_alone() {
        let above = tempfile::tempdir().unwrap();
        let path = |name: &str| above.path().join(name);

        fs::write(path("file"), "a file").unwrap();
        refused(&path("file"), "it is a file and no directory");

        fs::create_dir(path("foreign")).unwrap();
        fs::write(path("foreign/thesis.tex"), "months of work").unwrap();
        refused(&path("foreign"), "the directory holds other files and no `sessile`");

        // Everything of a store but its marker: it was lost, and a new one would bury the rest.
        for left in ["sessions.redb", "log-0", "aside-log-0", "sessile.new"] {
            let path = path(&format!("only {left}"));
            fs::create_dir(&path).unwrap();
            fs::write(path.join(left), "bytes").unwrap();
            refused(&path, "the directory holds other files and no `sessile`");
        }

        fs::create_dir(path("creation")).unwrap();
        fs::write(path("creation/creating"), "a chapter").unwrap();
        fs::write(path("creation/genesis"), "another").unwrap();
        refused(&path("creation"), "`creating` is not empty, and there is no `sessile`");
    }

    #[test]
    fn a_file_above_is_no_place_for_a_store() {
        let above = tempfile::tempdir().unwrap();
        fs::write(above.path().join("file"), "a file").unwrap();
        let before = contents(above.path());
        match open(&above.path().join("file/store")) {
            Err(Error::NotAStore { reason, .. }) => {
                assert_eq!(reason, "what lies above it is no directory");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(contents(above.path()), before);
    }

    /// None of these is opened: a pipe would block for ever.
    #[cfg(unix)]
    #[test]
    fn only_regular_files_are_opened() {
        use std::os::unix::fs::symlink;
        use std::os::unix::net::UnixListener;
        use std::process::Command;

        let (above, path) = store();
        let link = above.path().join("link");
        symlink(&path, &link).unwrap();
        refused(&link, "it is a symbolic link, or a device, and no directory");
        let with_slash = open(Path::new(&format!("{}/", link.display())));
        assert!(matches!(with_slash, Err(Error::NotAStore { .. })), "{with_slash:?}");

        let elsewhere = above.path().join("elsewhere");
        for name in ["lock", "creating", "sessile", "sessions.redb", "log-0", "log-17", "reserve"] {
            let file = path.join(name);
            let kept = above.path().join("kept");
            let was_there = fs::rename(&file, &kept).is_ok();
            let reason = format!("`{name}` is no regular file");
            fs::copy(&kept, &elsewhere).ok();

            symlink(&elsewhere, &file).unwrap();
            refused(&path, &reason);
            fs::remove_file(&file).unwrap();

            symlink("nowhere", &file).unwrap();
            refused(&path, &reason);
            fs::remove_file(&file).unwrap();

            assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
            refused(&path, &reason);
            fs::remove_file(&file).unwrap();

            let socket = UnixListener::bind(&file).unwrap();
            refused(&path, &reason);
            fs::remove_file(&file).unwrap();
            drop(socket);

            fs::create_dir(&file).unwrap();
            refused(&path, &reason);
            fs::remove_dir(&file).unwrap();

            if was_there {
                fs::rename(&kept, &file).unwrap();
            }
        }
        // Whatever else the engine may open, too.
        let directory = open(&path).unwrap();
        fs::create_dir(path.join("other")).unwrap();
        for access in [Access::Read, Access::Write] {
            match directory.open_file("other", access) {
                Err(Error::NotAStore { reason, .. }) => {
                    assert_eq!(reason, "`other` is no regular file");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_lost_file_is_not_made_again() {
        let (_above, path) = store();
        fs::remove_file(path.join("log-0")).unwrap();
        let directory = open(&path).unwrap();
        for access in [Access::Read, Access::Write] {
            match directory.open_file("log-0", access) {
                Err(Error::NotAStore { reason, .. }) => assert_eq!(reason, "`log-0` is missing"),
                other => panic!("{other:?}"),
            }
        }
        assert!(!path.join("log-0").exists());
    }

    #[test]
    fn the_marker_is_what_the_documentation_shows() {
        let (_above, path) = store();
        let text = fs::read_to_string(path.join(MARKER)).unwrap();
        assert!(text.contains("\nstore 00aa55f0123456789abcdef087654321\n"), "{text}");
        let documented = include_str!("../../docs/format.md");
        assert!(documented.contains(&format!("```text\n{text}```\n")), "{text}");
    }

    #[test]
    fn a_damaged_marker_is_refused_with_its_reason() {
        let (_above, path) = store();
        let marker = path.join(MARKER);
        let whole = fs::read(&marker).unwrap();
        fs::write(&marker, "").unwrap();
        refused(&path, "`sessile` is empty");
        for len in 1..whole.len() {
            fs::write(&marker, &whole[..len]).unwrap();
            refused(&path, "`sessile` is cut off");
        }
        for foreign in [&b"\x89PNG\r\n\x1a\n"[..], b"SQLite format 3\0", b"sessile is a word"] {
            fs::write(&marker, foreign).unwrap();
            refused(&path, "`sessile` was written by another program");
        }
        fs::write(&marker, [&whole[..], b"and more"].concat()).unwrap();
        refused(&path, "`sessile` is damaged");
        fs::write(&marker, [&whole[..], &[b'\n'; 100_000]].concat()).unwrap();
        refused(&path, "`sessile` is damaged");
        // No more of it is read than one of ours has: this would not fit into memory.
        File::options().write(true).open(&marker).unwrap().set_len(1 << 42).unwrap();
        let opened = open(&path);
        assert!(matches!(opened, Err(Error::NotAStore { .. })), "{opened:?}");
        fs::write(&marker, &whole).unwrap();
        assert_eq!(open(&path).unwrap().id(), ID);
    }

    /// Whichever byte is whatever other byte: no marker but the one that was written is read.
    #[test]
    fn no_byte_of_the_marker_may_change() {
        let whole = marker_text(ID);
        assert_eq!(read_marker(whole.as_bytes()), Ok(ID));
        for place in 0..whole.len() {
            for byte in 0..=u8::MAX {
                let mut changed = whole.clone().into_bytes();
                changed[place] = byte;
                if changed != whole.as_bytes() {
                    assert!(read_marker(&changed).is_err(), "byte {place} is {byte}");
                }
            }
        }
    }

    #[test]
    fn a_newer_format_is_told_apart_and_left_alone() {
        let (_above, path) = store();
        for rest in ["store none\n", "", "another layout\nand no checksum"] {
            fs::write(path.join(MARKER), format!("sessile\nformat 2\n{rest}")).unwrap();
            let before = contents(&path);
            for mode in [Mode::Open, Mode::Create] {
                let opened = Directory::open(Arc::new(LocalDisk), &path, mode, OTHER);
                let refused = matches!(opened, Err(Error::Format { found: 2, supported: FORMAT }));
                assert!(refused, "{opened:?}");
            }
            assert_eq!(contents(&path), before);
        }
    }

    #[test]
    fn a_store_is_open_once() {
        let (_above, path) = store();
        let directory = open(&path).unwrap();
        for _ in 0..2 {
            match open(&path) {
                Err(error @ Error::AlreadyOpen { pid, .. }) => {
                    assert_eq!(pid, Some(process::id()));
                    let wanted = format!("is open already (process {})", process::id());
                    assert!(error.to_string().ends_with(&wanted), "{error}");
                }
                other => panic!("{other:?}"),
            }
        }
        drop(directory);
        open(&path).unwrap();
    }

    /// A process that is just being started has all files of this one for a moment.
    #[test]
    fn a_store_that_was_closed_is_not_open_elsewhere() {
        let (_above, path) = store();
        let directory = open(&path).unwrap();
        let inherited = directory.lock().file.file().unwrap().try_clone().unwrap();
        drop(directory);
        let mut directory = open(&path).unwrap();
        drop(inherited);

        // A forked one has them for good, and what it does with them is not done to ours.
        let inherited = directory.lock().file.file().unwrap().try_clone().unwrap();
        directory.lock.as_mut().unwrap().pid += 1;
        drop(directory);
        assert!(matches!(open(&path), Err(Error::AlreadyOpen { .. })));
        drop(inherited);
        open(&path).unwrap();
    }

    /// It holds a text, but nobody holds it.
    #[test]
    fn a_lock_file_that_was_left_behind_blocks_nobody() {
        let (_above, path) = store();
        for text in ["1\nyesterday\n", "", "\0\0\0\0", "nonsense", "x".repeat(100_000).as_str()] {
            fs::write(path.join(LOCK), text).unwrap();
            assert!(open(&path).unwrap().machine_restarted(), "{text}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_locked_is_refused() {
        let (_above, path) = store();
        let file = LocalDisk.open(&path.join(LOCK), Access::Write).unwrap();
        let unsupported = TryLockError::Error(io::ErrorKind::Unsupported.into());
        let Error::Storage(cause) = not_locked(&path, unsupported, &*file) else {
            panic!("it was taken for another store's")
        };
        let wanted = format!("{}/lock cannot be locked on this file system", path.display());
        assert!(cause.to_string().starts_with(&wanted), "{cause}");
    }

    #[test]
    fn a_new_start_of_the_machine_is_known_until_the_store_was_checked() {
        let (_above, path) = store();
        // Where it is not known, every start may be a new one.
        let unknown = start_of_machine().is_none();
        assert_eq!(open(&path).unwrap().machine_restarted(), unknown);
        fs::write(path.join(LOCK), "1\nthe day before yesterday\n").unwrap();
        // The first process is killed before it has checked anything.
        assert!(open(&path).unwrap().machine_restarted());
        let directory = open(&path).unwrap();
        assert!(directory.machine_restarted());
        directory.checked().unwrap();
        drop(directory);
        assert_eq!(open(&path).unwrap().machine_restarted(), unknown);
    }

    #[test]
    fn what_was_left_of_a_creation_is_moved_aside() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("store");
        fs::create_dir(&path).unwrap();
        let write = |name: &str, text: &str| fs::write(path.join(name), text).unwrap();
        write(CREATING, "");
        write("aside-log-0", "from the attempt before");
        write("log-0", "from the last attempt");
        write("sessions.redb", "half a database");
        write("sessile.new", "sess");
        let directory = make(Arc::new(LocalDisk), &path).unwrap();
        assert_eq!(directory.id(), ID);
        let read = |name: &str| fs::read_to_string(path.join(name)).unwrap();
        assert_eq!(read("aside-log-0"), "from the last attempt");
        assert_eq!(read("aside-sessions.redb"), "half a database");
        assert_eq!(read("aside-sessile.new"), "sess");
        assert_eq!(read("sessions.redb"), "sessions.redb");
        assert_eq!(directory.names().unwrap().len(), 3 + 4);
    }

    #[test]
    fn a_store_that_is_finished_is_not_made_again() {
        let (_above, path) = store();
        fs::write(path.join(CREATING), "").unwrap();
        let directory = open(&path).unwrap();
        assert_eq!(directory.id(), ID);
        assert_eq!(directory.names().unwrap(), ["lock", "log-0", "sessile", "sessions.redb"]);
    }

    /// The process dies before each of its steps in turn, twice in a row.
    #[test]
    fn a_creation_that_was_cut_off_begins_again() {
        let steps = |path: &Path, limit: usize| {
            let seen = Arc::new(Mutex::new(0));
            let count = Arc::clone(&seen);
            let disk = Watched::new(path, move |_| {
                let mut count = count.lock().unwrap();
                *count += 1;
                if *count > limit { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
            });
            let made = make(disk, path).is_ok();
            (made, *seen.lock().unwrap())
        };
        let fresh = || {
            let above = tempfile::tempdir().unwrap();
            let path = above.path().join("a/b");
            (above, path)
        };
        let (_above, path) = fresh();
        let (made, all) = steps(&path, usize::MAX);
        assert!(made && all > 35, "{all} steps");
        let mut cases = 0;
        for first in 0..all {
            for second in [first / 2, first, usize::MAX] {
                let (_above, path) = fresh();
                assert!(!steps(&path, first).0, "a failure at step {first} was not told");
                let had_marker = path.join(MARKER).exists();
                steps(&path, second);
                let directory = make(Arc::new(LocalDisk), &path).unwrap();
                assert_eq!(directory.id(), ID);
                let names = directory.names().unwrap();
                let names: Vec<_> = names.iter().filter(|name| !name.starts_with(ASIDE)).collect();
                assert_eq!(names, ["lock", "log-0", "sessile", "sessions.redb"]);
                assert_eq!(fs::read(path.join("log-0")).unwrap(), b"log-0");
                // What was a store stays it, and is not begun again.
                assert!(!had_marker || !path.join("aside-log-0").exists(), "step {first}");
                cases += 1;
            }
        }
        assert!(cases > 110, "{cases} cases");
    }

    /// What a power cut may undo is what was not synced: this order leaves it nothing to spoil.
    #[test]
    fn a_store_is_made_in_an_order_that_survives_power_cuts() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("a/b");
        let made_with = |path: &Path| {
            let seen = Arc::new(Mutex::new(Vec::new()));
            let steps = Arc::clone(&seen);
            let disk = Watched::new(above.path(), move |step| {
                if !["kind", "list", "len", "read"].contains(&step.split(' ').next().unwrap()) {
                    steps.lock().unwrap().push(step.to_owned());
                }
                Ok(())
            });
            make(disk, path).unwrap();
            seen.lock().unwrap().join("\n").replace(&format!("{}/", above.path().display()), "")
        };
        let above_all = above.path().parent().unwrap().display();
        let directories = format!(
            "sync-directory {above_all}
create-directory a
sync-directory {}
create-directory a/b
sync-directory a
",
            above.path().display()
        );
        let files = "write a/b/lock
set-len a/b/lock
create a/b/creating
sync a/b/creating
sync-directory a/b
create a/b/sessions.redb
write a/b/sessions.redb
sync a/b/sessions.redb
create a/b/log-0
write a/b/log-0
sync a/b/log-0
create a/b/sessile.new
write a/b/sessile.new
sync a/b/sessile.new
sync-directory a/b
rename a/b/sessile.new a/b/sessile
sync-directory a/b
sync-directory a
remove a/b/creating
write a/b/lock
set-len a/b/lock";
        assert_eq!(made_with(&path), format!("{directories}create a/b/lock\n{files}"));

        // Begun again, by a process that cannot know what the one before had synced.
        for name in ["sessile", "log-0"] {
            fs::remove_file(path.join(name)).unwrap();
        }
        fs::write(path.join(CREATING), "").unwrap();
        let again = files.replace(
            "create a/b/creating\nsync a/b/creating\nsync-directory a/b\n",
            "open a/b/creating\nopen a/b/creating\nsync a/b/creating\nsync-directory a/b
rename a/b/sessions.redb a/b/aside-sessions.redb\n",
        );
        // `creating` is looked into once before the lock and once under it.
        let (looked, again) = ("open a/b/creating\n", again.replacen("open a/b/creating\n", "", 1));
        let found = made_with(&path);
        assert_eq!(found, format!("{looked}create a/b/lock\nopen a/b/lock\n{looked}{again}"));

        // Finished, by a process that was killed before its last steps.
        fs::write(path.join(CREATING), "").unwrap();
        let found = made_with(&path);
        let wanted = "\nsync-directory a/b\nsync-directory a\nremove a/b/creating";
        assert!(found.ends_with(wanted), "{found}");

        // One directory is there, perhaps not durably; the other is to be made.
        let deep = above.path().join("a/c");
        let found = made_with(&deep);
        let wanted = format!(
            "sync-directory {}\ncreate-directory a/c\nsync-directory a\n",
            above.path().display()
        );
        assert!(found.starts_with(&wanted), "{found}");
    }

    /// What the operating system refuses is told as it is, with the path, and nothing is begun.
    #[test]
    fn what_may_not_be_read_or_written_is_told() {
        let (_above, path) = store();
        let denied =
            |what: &'static str, kind: io::ErrorKind| {
                let disk = Watched::new(&path, move |step| {
                    if step.contains(what) { Err(kind.into()) } else { Ok(()) }
                });
                let before = contents(&path);
                let error = Directory::open(disk, &path, Mode::Open, OTHER).unwrap_err();
                assert_eq!(contents(&path), before);
                let Error::Storage(cause) = &error else { panic!("{error:?}") };
                assert!(cause.to_string().starts_with(path.to_str().unwrap()), "{cause}");
                os_error(error)
            };
        let permission = io::ErrorKind::PermissionDenied;
        for what in ["kind sessile", "open sessile", "read sessile", "open lock", "list", "store"] {
            assert_eq!(denied(what, permission), permission, "{what}");
        }
        let read_only = io::ErrorKind::ReadOnlyFilesystem;
        assert_eq!(denied("write lock", read_only), read_only);
        // An empty directory on a disk that may only be read is no store, and not taken for one.
        fs::remove_dir_all(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(denied("create lock", read_only), read_only);
    }

    /// An owner may own a directory without being allowed to look around above it.
    #[test]
    fn a_directory_above_that_may_not_be_read_is_no_obstacle() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("store");
        fs::create_dir(&path).unwrap();
        let parent = format!("sync-directory {}", above.path().display());
        let refusing = |kind: io::ErrorKind| {
            let parent = parent.clone();
            Watched::new(&path, move |step| if step == parent { Err(kind.into()) } else { Ok(()) })
        };
        let failed = make(refusing(io::ErrorKind::StorageFull), &path).unwrap_err();
        assert_eq!(os_error(failed), io::ErrorKind::StorageFull);
        fs::remove_dir_all(&path).unwrap();
        fs::create_dir(&path).unwrap();
        make(refusing(io::ErrorKind::PermissionDenied), &path).unwrap();
    }

    /// Another process makes the store while this one looks: it is seen as one or the other.
    #[test]
    fn a_store_that_is_finished_while_one_looks_is_a_store() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("store");
        let whole = above.path().join("whole");
        drop(make(Arc::new(LocalDisk), &whole).unwrap());
        for moment in 0..20 {
            fs::create_dir(&path).unwrap();
            for name in ["lock", "creating", "log-0", "sessions.redb"] {
                fs::write(path.join(name), "").unwrap();
            }
            let (from, to) = (whole.clone(), path.clone());
            let count = Mutex::new(0);
            let disk = Watched::new(&path, move |_| {
                let mut count = count.lock().unwrap();
                if *count == moment {
                    fs::copy(from.join(MARKER), to.join(MARKER)).unwrap();
                    fs::remove_file(to.join(CREATING)).unwrap();
                }
                *count += 1;
                Ok(())
            });
            match look(&*disk, &path, Mode::Open) {
                Ok(Found::Store(ID) | Found::Creating) => {}
                other => panic!("{other:?} at moment {moment}"),
            }
            fs::remove_dir_all(&path).unwrap();
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_store_is_private_and_one_that_is_less_so_stays_as_it_is() {
        use std::os::unix::fs::PermissionsExt as _;
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("deep/store");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        drop(make(Arc::new(LocalDisk), &path).unwrap());
        assert_eq!((mode(&above.path().join("deep")), mode(&path)), (0o700, 0o700));
        for name in ["lock", "sessile", "sessions.redb", "log-0"] {
            assert_eq!(mode(&path.join(name)), 0o600, "{name}");
        }
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        set(&path, 0o755);
        set(&path.join("sessile"), 0o644);
        drop(open(&path).unwrap());
        assert_eq!((mode(&path), mode(&path.join("sessile"))), (0o755, 0o644));
    }

    #[test]
    fn a_store_stays_where_it_is_when_the_process_goes_elsewhere() {
        let above = tempfile::tempdir_in(".").unwrap();
        let relative = Path::new(above.path().file_name().unwrap()).join("store");
        let directory = make(Arc::new(LocalDisk), &relative).unwrap();
        assert_eq!(directory.path, std::path::absolute(&relative).unwrap());
    }

    /// The local disk, and somebody who is told of each step before it is taken, and may refuse it.
    struct Watched {
        below: String,
        watch: Watch,
    }

    type Watch = Arc<dyn Fn(&str) -> io::Result<()> + Send + Sync>;

    impl Watched {
        /// Files in `below` are told by their names, other paths in full.
        fn new(
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

    impl std::fmt::Debug for Watched {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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

    impl std::fmt::Debug for WatchedFile {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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
}
