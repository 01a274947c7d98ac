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

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{self, Access, Disk, DiskFile, FileKind, at};
use super::lock::{self, LOCK, Lock, start_of_machine};
use super::marker::{self, FORMAT, MARKER, Refusal, StoreId};
use crate::error::Error;

const CREATING: &str = "creating";
const MARKER_IN_THE_MAKING: &str = "sessile.new";
pub(super) const ASIDE: &str = "aside-";

/// What to do about a store that is or is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Open it; make it if the directory is absent or empty.
    Open,
    /// Make it; an error if there is one.
    Create,
}

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
        let mut directory = Directory::unlocked(disk, path, new_id)?;
        if directory.look(mode)? == Found::Nothing {
            make_directory(&*directory.disk, &directory.path)?;
        }
        directory.lock = Some(Lock::take(directory.lock_file()?, &directory.path)?);
        let found = directory.look(mode)?;
        let before = directory.lock().last_start();
        directory.note(&before)?;
        match found {
            Found::Store(id) => {
                directory.id = id;
                directory.machine_restarted = start_of_machine() != Some(before);
                // The process that made the store may have been killed before the marker's name
                // was durable.
                if directory.kind(CREATING)?.is_some() {
                    directory.end_creation()?;
                }
            }
            Found::Nothing | Found::Creating => {
                directory.is_new = true;
                directory.begin()?;
            }
        }
        Ok(directory)
    }

    /// Finds a store to look at, whoever has it open. Nothing is locked, made or written, now or
    /// later.
    pub(super) fn find(disk: Arc<dyn Disk>, path: &Path) -> Result<Self, Error> {
        let directory = Directory::unlocked(disk, path, StoreId(0))?;
        match directory.look(Mode::Open)? {
            Found::Store(id) => Ok(Directory { id, ..directory }),
            Found::Creating => Err(directory.refusal("the making of it was not finished")),
            Found::Nothing => Err(directory.refusal("there is nothing")),
        }
    }

    /// A directory of which nothing is known yet.
    fn unlocked(disk: Arc<dyn Disk>, path: &Path, id: StoreId) -> Result<Self, Error> {
        let path = absolute(path)?;
        Ok(Directory { disk, path, id, is_new: false, machine_restarted: false, lock: None })
    }

    /// Whether the store is being made: [`finish`](Self::finish) has still to be called, once its
    /// files are made and synced.
    pub(super) fn is_new(&self) -> bool {
        self.is_new
    }

    /// Makes the directory a store.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        let marker = self.open_file(MARKER_IN_THE_MAKING, Access::Create)?;
        let written = marker.write(0, marker::text_of(self.id).as_bytes());
        let written = written.and_then(|()| marker.sync());
        written.map_err(|error| self.failed(MARKER_IN_THE_MAKING, error))?;
        // The names of the other files are to be durable before that of the marker may be.
        self.sync()?;
        self.rename(MARKER_IN_THE_MAKING.as_ref(), MARKER.as_ref())?;
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
        if access != Access::Create {
            match self.kind(name)? {
                Some(FileKind::File) => {}
                Some(_) => return Err(self.not_regular(name)),
                None => return Err(self.refusal(&format!("`{name}` is missing"))),
            }
        }
        let file = self.path.join(name);
        self.disk.open(&file, access).map_err(|error| at(&file, error))
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), Error> {
        let file = self.path.join(name);
        self.disk.remove(&file).map_err(|error| at(&file, error))
    }

    /// Makes durable which files there are.
    pub(super) fn sync(&self) -> Result<(), Error> {
        self.disk.sync_directory(&self.path).map_err(|error| at(&self.path, error))
    }

    /// The names of all files, in their order.
    pub(super) fn names(&self) -> Result<Vec<String>, Error> {
        let names = self.list()?.into_iter();
        let mut names: Vec<_> = names.filter_map(|name| name.into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Lets others in, although handles of the store may live on. The files must be closed.
    pub(super) fn release(&self) {
        self.lock().release();
    }

    /// The process that has the store open, or had it open last, if it has said so.
    pub(super) fn process(&self) -> Option<u32> {
        lock::owner(&*self.open_file(LOCK, Access::Read).ok()?)
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

    /// What others than its owner may open or enter: the directory, and the files of the store in it.
    pub(super) fn exposed(&self) -> Result<Vec<PathBuf>, Error> {
        let names = self.names()?.into_iter().filter(|name| is_ours(name));
        let paths = names.map(|name| self.path.join(name));
        let mut exposed = Vec::new();
        for path in [self.path.clone()].into_iter().chain(paths) {
            if !self.disk.is_private(&path).map_err(|error| at(&path, error))? {
                exposed.push(path);
            }
        }
        Ok(exposed)
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
        creating.sync().map_err(|error| self.failed(CREATING, error))?;
        self.sync()?;
        for name in self.list()? {
            let is_aside = name.to_str().is_some_and(|name| name.starts_with(ASIDE));
            if name != LOCK && name != CREATING && !is_aside {
                let mut aside = OsString::from(ASIDE);
                aside.push(&name);
                self.rename(&name, &aside)?;
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

    pub(super) fn rename(&self, from: &OsStr, to: &OsStr) -> Result<(), Error> {
        let file = self.path.join(from);
        self.disk.rename(&file, &self.path.join(to)).map_err(|error| at(&file, error))
    }

    fn list(&self) -> Result<Vec<OsString>, Error> {
        self.disk.list(&self.path).map_err(|error| at(&self.path, error))
    }

    fn kind(&self, name: &str) -> Result<Option<FileKind>, Error> {
        let file = self.path.join(name);
        self.disk.kind(&file).map_err(|error| at(&file, error))
    }

    /// The lock file, made if there is none.
    fn lock_file(&self) -> Result<Arc<dyn DiskFile>, Error> {
        match self.disk.open(&self.path.join(LOCK), Access::Create) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.open_file(LOCK, Access::Write)
            }
            made => made.map_err(|error| self.failed(LOCK, error)),
        }
    }

    /// Writes into the lock file whose it is, and at which start of the machine the store was whole.
    fn note(&self, start: &str) -> Result<(), Error> {
        self.lock().note(start).map_err(|error| self.failed(LOCK, error))
    }

    fn lock(&self) -> &Lock {
        self.lock.as_ref().expect("who only looks changes nothing")
    }

    /// Looks what lies there and changes nothing.
    fn look(&self, mode: Mode) -> Result<Found, Error> {
        let refuse = |reason: &str| Err(self.refusal(reason));
        match self.disk.kind(&self.path) {
            Ok(Some(FileKind::Directory)) => {}
            Ok(Some(FileKind::File)) => return refuse("it is a file and no directory"),
            Ok(Some(FileKind::Other)) => {
                return refuse("it is a symbolic link, or a device, and no directory");
            }
            Ok(None) => return Ok(Found::Nothing),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return refuse("what lies above it is no directory");
            }
            Err(error) => return Err(at(&self.path, error)),
        }
        // Another process may be making a store meanwhile. The order matters: whoever sees a file of
        // its, and then no `creating`, comes late enough to see the marker.
        let names = self.list()?;
        for name in names.iter().filter_map(|name| name.to_str()).filter(|name| is_ours(name)) {
            // A pipe would block whoever opens it, and a link lead out of the directory.
            if self.kind(name)?.is_some_and(|kind| kind != FileKind::File) {
                return Err(self.not_regular(name));
            }
        }
        let creating = self.kind(CREATING)?.is_some();
        if self.kind(MARKER)?.is_some() {
            let marker = self.open_file(MARKER, Access::Read)?;
            let text = disk::start_of(&*marker).map_err(|error| self.failed(MARKER, error))?;
            let id = marker::read(&text).map_err(|refusal| match refusal {
                Refusal::Format(found) => Error::Format { found, supported: FORMAT },
                Refusal::Not(reason) => self.refusal(&format!("`{MARKER}` {reason}")),
            })?;
            return match mode {
                Mode::Open => Ok(Found::Store(id)),
                Mode::Create => Err(Error::AlreadyThere { path: self.path.clone() }),
            };
        }
        if creating {
            let file = self.disk.open(&self.path.join(CREATING), Access::Read);
            return match file.and_then(|file| file.len()) {
                Ok(0) => Ok(Found::Creating),
                Ok(_) => refuse("`creating` is not empty, and there is no `sessile`"),
                // Whoever was making the store has finished just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Creating),
                Err(error) => Err(self.failed(CREATING, error)),
            };
        }
        match names.iter().all(|name| name == LOCK) {
            true => Ok(Found::Nothing),
            false => refuse("the directory holds other files and no `sessile`"),
        }
    }

    fn refusal(&self, reason: &str) -> Error {
        Error::NotAStore { path: self.path.clone(), reason: reason.to_owned() }
    }

    fn not_regular(&self, name: &str) -> Error {
        self.refusal(&format!("`{name}` is no regular file"))
    }
}

/// Files are opened as long as the store is open, and the process may change its own directory. A slash
/// at the end would follow a symbolic link.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, Error> {
    let path = std::path::absolute(path).map_err(|error| at(path, error))?;
    Ok(path.components().collect())
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

/// Whether a store's file may have this name.
fn is_ours(name: &str) -> bool {
    [LOCK, CREATING, MARKER, "sessions.redb", "reserve"].contains(&name) || name.starts_with("log-")
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::{self, File};
    use std::process;
    use std::sync::Mutex;

    use tempfile::TempDir;

    use super::*;
    use crate::engine::embedded::disk::LocalDisk;
    use crate::engine::embedded::watched::Watched;

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
            match Directory::unlocked(disk, &path, OTHER).unwrap().look(Mode::Open) {
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
}
