//! A simulated disk, below the commit log and the tables at once.
//!
//! While a store runs on it, it is a perfect one with a page cache: what was written is read back.
//! It writes down every operation that changes something, in one order, with marks in between
//! (`Mark`) that say what the client knew by then. What a power cut would have left at any point of
//! that record is made of it afterwards (`platter.rs`), as often as one likes.
//!
//! # The faults
//!
//! - **Synced bytes stay.** Of the rest every sector of 512 bytes, or every page of 4096, shows
//!   independently any of its versions since the last sync of its file that succeeded, or a cut
//!   write: one that is torn at a byte.
//! - A sector is zeros or garbage only where a write to it was not synced.
//! - A length that was changed since the last sync may be the old or the new one.
//! - **A name is durable once its directory was synced.** Before that each creation, renaming and
//!   removal may have happened or not, whatever became of the others. A synced file has no name
//!   for that reason alone.
//! - An operation may fail, once or from then on ([`Fault`]). What a failed write has written is
//!   chance: nothing, some of it, or all.
//! - **A failed sync loses all or some of what it was to make durable, and the page cache does not
//!   know**: reads still show it, and later syncs succeed without making it durable. Names are
//!   another matter, because file systems keep a journal of them: after a failed sync of a directory
//!   a later one makes them durable.
//! - A lying sync returns `Ok` and makes nothing durable (`Platter::lies`).
//! - Any byte may change, at rest or under a running store ([`SimDisk::damage`]).
//!
//! What is *not* simulated: two processes on one disk, and a byte that is written half.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sessile::{Access, Disk, DiskFile, FileKind};

use super::chance::Chance;
use super::content::{Content, Hash};

/// A file or directory, whatever its name.
pub(crate) type Node = usize;

pub(crate) const ROOT: Node = 0;

/// What a node holds.
#[derive(Clone, Debug)]
pub(crate) enum Held {
    Directory(BTreeMap<OsString, Node>),
    File(Content),
}

/// Everything that lies on a disk. A copy costs next to nothing.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) nodes: Vec<Held>,
}

impl Default for Image {
    fn default() -> Self {
        Image { nodes: vec![Held::Directory(BTreeMap::new())] }
    }
}

impl Image {
    /// A disk with an empty directory.
    pub(crate) fn with_directory(path: &str) -> Self {
        let name = path.trim_start_matches('/').into();
        let root = Held::Directory([(name, 1)].into());
        Image { nodes: vec![root, Held::Directory(BTreeMap::new())] }
    }

    pub(crate) fn names(&self, directory: Node) -> io::Result<&BTreeMap<OsString, Node>> {
        match &self.nodes[directory] {
            Held::Directory(names) => Ok(names),
            Held::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn names_mut(&mut self, directory: Node) -> io::Result<&mut BTreeMap<OsString, Node>> {
        match &mut self.nodes[directory] {
            Held::Directory(names) => Ok(names),
            Held::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    pub(crate) fn content(&self, file: Node) -> &Content {
        match &self.nodes[file] {
            Held::File(content) => content,
            Held::Directory(_) => panic!("a directory has no bytes"),
        }
    }

    pub(crate) fn content_mut(&mut self, file: Node) -> &mut Content {
        match &mut self.nodes[file] {
            Held::File(content) => content,
            Held::Directory(_) => panic!("a directory has no bytes"),
        }
    }

    pub(crate) fn find(&self, path: &Path) -> io::Result<Node> {
        let mut node = ROOT;
        for part in path.components() {
            match part {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => {
                    let found = self.names(node)?.get(name);
                    node = *found.ok_or(io::ErrorKind::NotFound)?;
                }
                _ => return Err(io::ErrorKind::InvalidInput.into()),
            }
        }
        Ok(node)
    }

    /// The directory that a path lies in, and its name there.
    fn place<'a>(&self, path: &'a Path) -> io::Result<(Node, &'a OsStr)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        Ok((self.find(path.parent().unwrap_or(Path::new("")))?, name))
    }

    /// The files in a directory, by name.
    pub(crate) fn files(&self, path: &Path) -> Vec<(OsString, Node)> {
        let Ok(names) = self.find(path).and_then(|node| self.names(node)) else {
            return Vec::new();
        };
        let names = names.iter().filter(|(_, node)| matches!(self.nodes[**node], Held::File(_)));
        names.map(|(name, node)| (name.clone(), *node)).collect()
    }

    /// Equal for disks that show the same names and bytes.
    pub(crate) fn hash(&self) -> u64 {
        let mut hash = Hash::default();
        self.hash_node(ROOT, &mut hash);
        hash.0
    }

    fn hash_node(&self, node: Node, hash: &mut Hash) {
        match &self.nodes[node] {
            Held::File(content) => content.hash(hash),
            Held::Directory(names) => {
                for (name, node) in names {
                    hash.add_bytes(name.as_encoded_bytes());
                    self.hash_node(*node, hash);
                }
                hash.add(names.len() as u64);
            }
        }
    }
}

/// What changed a disk, or what a client knew.
#[derive(Clone, Debug)]
pub(crate) enum Op<M> {
    /// A new file or directory got a name.
    Make {
        directory: Node,
        name: OsString,
        node: Node,
        is_directory: bool,
    },
    Write {
        file: Node,
        offset: u64,
        bytes: Arc<[u8]>,
    },
    SetLen {
        file: Node,
        len: u64,
    },
    Rename {
        directory: Node,
        from: OsString,
        to: OsString,
        node: Node,
    },
    Remove {
        directory: Node,
        name: OsString,
        node: Node,
    },
    /// A file's bytes, or a directory's names, are durable.
    Sync {
        node: Node,
    },
    /// They are not, and nobody will try again: of every `kept` of 8 sectors that many made it.
    SyncFailed {
        node: Node,
        kept: u64,
        seed: u64,
    },
    Mark(M),
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// EIO, of any operation.
    Broken,
    /// ENOSPC, of what needs room.
    Full,
    /// EDQUOT, of what needs room.
    Quota,
    /// EINTR, of any operation.
    Interrupted,
    /// A read or write that stops in the middle.
    Short,
    /// EIO of a sync.
    Sync,
}

impl FaultKind {
    pub(crate) const ALL: [FaultKind; 6] = [
        FaultKind::Broken,
        FaultKind::Full,
        FaultKind::Quota,
        FaultKind::Interrupted,
        FaultKind::Short,
        FaultKind::Sync,
    ];
}

/// An operation that is to fail.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    /// The first operation of its kind from this one on.
    pub(crate) from: u64,
    /// And every one after it, until the fault is cleared.
    pub(crate) sticky: bool,
    /// How many of 8 sectors a failed sync has made durable all the same.
    pub(crate) kept: u64,
    /// What is left of the operation that fails.
    pub(crate) seed: u64,
}

/// Which faults an operation can meet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Look,
    Read,
    Write { grows: bool },
    Change { grows: bool },
    Sync,
}

/// A disk that can be given to a store; clones are the same disk.
pub(crate) struct SimDisk<M = ()> {
    shared: Arc<Mutex<Shared<M>>>,
    /// The process that uses it. Once that is killed, its files are no use.
    process: u64,
}

struct Shared<M> {
    image: Image,
    process: u64,
    trace: Option<Vec<Op<M>>>,
    operations: u64,
    /// Which of them were syncs.
    syncs: Vec<u64>,
    fault: Option<Fault>,
    /// How many operations have failed.
    failed: u64,
    chance: Chance,
}

impl<M: Clone + Send + 'static> SimDisk<M> {
    /// A disk that holds this, and writes down what happens to it if `traced`.
    pub(crate) fn new(image: Image, traced: bool) -> Self {
        let shared = Shared {
            image,
            process: 0,
            trace: traced.then(Vec::new),
            operations: 0,
            syncs: Vec::new(),
            fault: None,
            failed: 0,
            chance: Chance::new(0),
        };
        SimDisk { shared: Arc::new(Mutex::new(shared)), process: 0 }
    }

    /// The disk for the next process. The files that the ones before it hold are no use any more:
    /// whatever they still do has no effect.
    pub(crate) fn kill(&self) -> Self {
        let mut shared = self.lock();
        shared.process += 1;
        SimDisk { shared: Arc::clone(&self.shared), process: shared.process }
    }

    /// Puts a mark into the record.
    pub(crate) fn mark(&self, mark: M) {
        if let Some(trace) = &mut self.lock().trace {
            trace.push(Op::Mark(mark));
        }
    }

    /// What is written down so far.
    pub(crate) fn trace(&self) -> Vec<Op<M>> {
        self.lock().trace.clone().unwrap_or_default()
    }

    /// What reads show now.
    pub(crate) fn image(&self) -> Image {
        self.lock().image.clone()
    }

    /// How many operations there were, reads and those that failed included.
    pub(crate) fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Which of them were syncs.
    pub(crate) fn syncs(&self) -> Vec<u64> {
        self.lock().syncs.clone()
    }

    /// How many of them failed.
    pub(crate) fn failed(&self) -> u64 {
        self.lock().failed
    }

    /// Arms a fault, or clears it.
    pub(crate) fn set_fault(&self, fault: Option<Fault>) {
        let mut shared = self.lock();
        shared.chance = Chance::new(fault.as_ref().map_or(0, |fault| fault.seed));
        shared.fault = fault;
    }

    /// Changes bytes behind everybody's back.
    pub(crate) fn damage(&self, damage: impl FnOnce(&mut Image)) {
        damage(&mut self.lock().image);
    }

    fn lock(&self) -> MutexGuard<'_, Shared<M>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an operation: an error if it fails, with what chance makes of it.
    fn step(&self, class: Class) -> io::Result<(MutexGuard<'_, Shared<M>>, Option<io::Error>)> {
        let mut shared = self.lock();
        if shared.process != self.process {
            return Err(io::Error::other("the process that opened this was killed"));
        }
        let now = shared.operations;
        shared.operations += 1;
        if class == Class::Sync {
            shared.syncs.push(now);
        }
        let Some(fault) = &shared.fault else { return Ok((shared, None)) };
        let grows = matches!(class, Class::Write { grows: true } | Class::Change { grows: true });
        let short = matches!(class, Class::Read | Class::Write { .. });
        let (is_met, error) = match fault.kind {
            FaultKind::Broken => (true, io::Error::other("input/output error")),
            FaultKind::Full => (grows, io::ErrorKind::StorageFull.into()),
            FaultKind::Quota => (grows, io::ErrorKind::QuotaExceeded.into()),
            FaultKind::Interrupted => (true, io::ErrorKind::Interrupted.into()),
            FaultKind::Short if class == Class::Read => (true, io::ErrorKind::UnexpectedEof.into()),
            FaultKind::Short => (short, io::ErrorKind::WriteZero.into()),
            FaultKind::Sync => (class == Class::Sync, io::Error::other("input/output error")),
        };
        if now < fault.from || !is_met {
            return Ok((shared, None));
        }
        if !fault.sticky {
            // It has happened. What a failed sync keeps is still to be read from it.
            let once = Fault { from: u64::MAX, ..fault.clone() };
            shared.fault = Some(once);
        }
        shared.failed += 1;
        Ok((shared, Some(error)))
    }
}

impl<M> Shared<M> {
    fn record(&mut self, op: Op<M>) {
        if let Some(trace) = &mut self.trace {
            trace.push(op);
        }
    }

    fn make(&mut self, directory: Node, name: &OsStr, held: Held) -> io::Result<Node> {
        let node = self.image.nodes.len();
        let is_directory = matches!(held, Held::Directory(_));
        let names = self.image.names_mut(directory)?;
        if names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        names.insert(name.to_owned(), node);
        self.image.nodes.push(held);
        self.record(Op::Make { directory, name: name.to_owned(), node, is_directory });
        Ok(node)
    }

    fn sync_failed(&mut self, node: Node) {
        let kept = self.fault.as_ref().map_or(0, |fault| fault.kept);
        let seed = self.chance.number();
        self.record(Op::SyncFailed { node, kept, seed });
    }
}

impl<M: Clone + Send + 'static> Disk for SimDisk<M> {
    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>> {
        let (shared, error) = self.step(Class::Look)?;
        error.map_or(Ok(()), Err)?;
        match shared.image.find(path) {
            Ok(node) => Ok(Some(match shared.image.nodes[node] {
                Held::File(_) => FileKind::File,
                Held::Directory(_) => FileKind::Directory,
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        let (shared, error) = self.step(Class::Look)?;
        error.map_or(Ok(()), Err)?;
        let node = shared.image.find(directory)?;
        Ok(shared.image.names(node)?.keys().cloned().collect())
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        let (mut shared, error) = self.step(Class::Change { grows: true })?;
        error.map_or(Ok(()), Err)?;
        let (directory, name) = shared.image.place(path)?;
        shared.make(directory, name, Held::Directory(BTreeMap::new())).map(|_| ())
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let class = match access {
            Access::Create => Class::Change { grows: true },
            Access::Read | Access::Write => Class::Look,
        };
        let (mut shared, error) = self.step(class)?;
        error.map_or(Ok(()), Err)?;
        let node = match access {
            Access::Create => {
                let (directory, name) = shared.image.place(path)?;
                shared.make(directory, name, Held::File(Content::default()))?
            }
            Access::Read | Access::Write => shared.image.find(path)?,
        };
        if let Held::Directory(_) = shared.image.nodes[node] {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let disk = SimDisk { shared: Arc::clone(&self.shared), process: self.process };
        Ok(Arc::new(SimFile { disk, node, access }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (mut shared, error) = self.step(Class::Change { grows: false })?;
        error.map_or(Ok(()), Err)?;
        let (directory, from) = shared.image.place(from)?;
        let (other, to) = shared.image.place(to)?;
        assert_eq!(directory, other, "a store renames within a directory");
        let names = shared.image.names_mut(directory)?;
        let node = names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        names.insert(to.to_owned(), node);
        let (from, to) = (from.to_owned(), to.to_owned());
        shared.record(Op::Rename { directory, from, to, node });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let (mut shared, error) = self.step(Class::Change { grows: false })?;
        error.map_or(Ok(()), Err)?;
        let (directory, name) = shared.image.place(path)?;
        let node = shared.image.find(path)?;
        if let Held::Directory(_) = shared.image.nodes[node] {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        shared.image.names_mut(directory)?.remove(name);
        shared.record(Op::Remove { directory, name: name.to_owned(), node });
        Ok(())
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let (mut shared, error) = self.step(Class::Sync)?;
        let node = shared.image.find(path)?;
        shared.image.names(node)?;
        if let Some(error) = error {
            shared.sync_failed(node);
            return Err(error);
        }
        shared.record(Op::Sync { node });
        Ok(())
    }
}

impl<M> Clone for SimDisk<M> {
    fn clone(&self) -> Self {
        SimDisk { shared: Arc::clone(&self.shared), process: self.process }
    }
}

impl<M> fmt::Debug for SimDisk<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimDisk")
    }
}

struct SimFile<M> {
    disk: SimDisk<M>,
    node: Node,
    access: Access,
}

impl<M: Clone + Send + 'static> SimFile<M> {
    fn check_writable(&self) -> io::Result<()> {
        match self.access {
            Access::Read => Err(io::ErrorKind::PermissionDenied.into()),
            Access::Write | Access::Create => Ok(()),
        }
    }
}

impl<M: Clone + Send + 'static> DiskFile for SimFile<M> {
    fn len(&self) -> io::Result<u64> {
        let (shared, error) = self.disk.step(Class::Look)?;
        error.map_or(Ok(()), Err)?;
        Ok(shared.image.content(self.node).len())
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let (shared, error) = self.disk.step(Class::Read)?;
        error.map_or(Ok(()), Err)?;
        let content = shared.image.content(self.node);
        if content.len() < offset + bytes.len() as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        content.read(offset, bytes);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check_writable()?;
        let grows = {
            let shared = self.disk.lock();
            shared.image.content(self.node).len() < offset + bytes.len() as u64
        };
        let (mut shared, error) = self.disk.step(Class::Write { grows })?;
        let mut written = bytes;
        if error.is_some() {
            let cut = shared.chance.index(bytes.len() + 1);
            written = match shared.chance.below(3) {
                0 => &[],
                1 => &bytes[..cut],
                _ => bytes,
            };
        }
        if !written.is_empty() {
            shared.image.content_mut(self.node).write(offset, written);
            shared.record(Op::Write { file: self.node, offset, bytes: written.into() });
        }
        error.map_or(Ok(()), Err)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        let grows = {
            let shared = self.disk.lock();
            shared.image.content(self.node).len() < len
        };
        let (mut shared, error) = self.disk.step(Class::Change { grows })?;
        if error.is_none() || shared.chance.one_in(2) {
            shared.image.content_mut(self.node).set_len(len);
            shared.record(Op::SetLen { file: self.node, len });
        }
        error.map_or(Ok(()), Err)
    }

    fn sync(&self) -> io::Result<()> {
        let (mut shared, error) = self.disk.step(Class::Sync)?;
        if let Some(error) = error {
            shared.sync_failed(self.node);
            return Err(error);
        }
        shared.record(Op::Sync { node: self.node });
        Ok(())
    }

    fn file(&self) -> Option<&File> {
        None
    }
}

impl<M> fmt::Debug for SimFile<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimFile({})", self.node)
    }
}
