//! The disk of the operating system, made to fail.
//!
//! A [`Fault`] meets operations of one kind on files of one kind: a few of them or, until the disk is
//! [mended](FragileDisk::mend), all. What becomes of them:
//!
//! - an operation fails and has done nothing;
//! - a write fails half way;
//! - a sync fails, and what was written since the last one is gone. That is what happens on Linux: the
//!   pages are marked clean, and dropped some day. Until then reading shows them.
//!
//! A [`Gate`] keeps operations waiting instead. And the disk may be [full](FragileDisk::fill): what is
//! written has its place and can be written again, but nothing else can. To lengthen a file takes no
//! room, as on the file systems of Linux.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock, RwLockWriteGuard};
use std::time::Duration;

use sessile::{Access, Disk, DiskFile, FileKind, LocalDisk};

/// What room is counted in, as file systems do.
const BLOCK: u64 = 4_096;

/// How long to wait for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Read,
    Write,
    SetLen,
    Sync,
    Remove,
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    /// How the names of the files begin.
    files: &'static str,
    operation: Operation,
    /// How many operations come through before.
    spared: u64,
    /// How many meet the fault then.
    left: u64,
    damage: Damage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    /// Nothing is done.
    None,
    /// Half of what is written is.
    Torn,
    /// What was not synced goes.
    Lost,
}

impl Fault {
    /// Every operation of this kind on these files fails.
    pub(crate) fn on(operation: Operation, files: &'static str) -> Self {
        Fault { files, operation, spared: 0, left: u64::MAX, damage: Damage::None }
    }

    /// Some come through first.
    pub(crate) fn after(self, spared: u64) -> Self {
        Fault { spared, ..self }
    }

    /// Some fail, and the others come through.
    pub(crate) fn times(self, left: u64) -> Self {
        Fault { left, ..self }
    }

    /// A write leaves half of its bytes.
    pub(crate) fn tears(self) -> Self {
        Fault { damage: Damage::Torn, ..self }
    }

    /// A sync loses what it was to make durable.
    pub(crate) fn loses(self) -> Self {
        Fault { damage: Damage::Lost, ..self }
    }

    /// What it does to an operation that it is meant for.
    fn strike(&mut self) -> Option<(io::Error, Damage)> {
        if self.spared > 0 {
            self.spared -= 1;
            return None;
        }
        self.left -= 1;
        Some((io::Error::other("the disk was told to fail"), self.damage))
    }

    /// Whether it passes by itself.
    pub(crate) fn passes(&self) -> bool {
        self.left < u64::MAX
    }
}

#[derive(Clone, Default)]
pub(crate) struct FragileDisk {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Held for reading while something changes on the disk.
    still: RwLock<()>,
}

#[derive(Default)]
struct State {
    faults: Vec<Fault>,
    gates: Vec<(u64, &'static str, Operation)>,
    gates_ever: u64,
    /// Who stands before a gate: how many of each.
    standing: HashMap<u64, u64>,
    /// Every operation there ever was on a file of this name.
    counts: Vec<(String, Operation)>,
    /// How many blocks there are for what is written; `None`: enough.
    free: Option<usize>,
    /// The blocks of each file that have been written.
    blocks: HashMap<PathBuf, HashSet<u64>>,
    /// What lies under the unsynced writes to the log, for the day that a sync fails.
    unsynced: HashMap<PathBuf, Vec<(u64, Vec<u8>)>>,
}

/// Keeps operations waiting until it is opened, or dropped.
pub(crate) struct Gate {
    shared: Arc<Shared>,
    id: u64,
}

impl FragileDisk {
    pub(crate) fn breaks(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Whether every fault has met as many operations as it was to.
    pub(crate) fn is_spent(&self) -> bool {
        self.state().faults.iter().all(|fault| fault.left == 0)
    }

    /// Nothing fails any more, and there is room.
    pub(crate) fn mend(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.free = None;
    }

    /// So many blocks of 4 KiB are left, and what files give back.
    pub(crate) fn fill(&self, free: usize) {
        self.state().free = Some(free);
    }

    pub(crate) fn gate(&self, operation: Operation, files: &'static str) -> Gate {
        let mut state = self.state();
        state.gates_ever += 1;
        let id = state.gates_ever;
        state.gates.push((id, files, operation));
        Gate { shared: Arc::clone(&self.shared), id }
    }

    /// How many operations of this kind there have been on such files, failed ones included.
    pub(crate) fn count(&self, operation: Operation, files: &str) -> usize {
        count(&self.state(), operation, files)
    }

    /// Returns when there have been so many.
    pub(crate) fn wait_for(&self, operation: Operation, files: &str, wanted: usize) {
        let few = |state: &mut State| count(state, operation, files) < wanted;
        let waited = self.shared.changed.wait_timeout_while(self.state(), PATIENCE, few);
        let timed_out = waited.unwrap().1.timed_out();
        assert!(!timed_out, "no {operation:?} of {files}");
    }

    /// Nothing changes on the disk as long as this is held.
    pub(crate) fn stand_still(&self) -> RwLockWriteGuard<'_, ()> {
        self.shared.still.write().unwrap()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    /// Lets an operation through its gates, counts it, and says what is wrong with it.
    fn meet(&self, operation: Operation, path: &Path) -> Option<(io::Error, Damage)> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut state = self.state();
        let gate =
            state.gates.iter().find(|(_, files, op)| *op == operation && name.starts_with(files));
        if let Some((id, ..)) = gate.copied() {
            *state.standing.entry(id).or_default() += 1;
            self.shared.changed.notify_all();
            let closed = |state: &mut State| state.gates.iter().any(|(gate, ..)| *gate == id);
            state = self.shared.changed.wait_while(state, closed).unwrap();
        }
        let meant = |fault: &&mut Fault| {
            fault.operation == operation && name.starts_with(fault.files) && fault.left > 0
        };
        let met = state.faults.iter_mut().find(meant).and_then(Fault::strike);
        state.counts.push((name, operation));
        self.shared.changed.notify_all();
        met
    }

    /// Takes room for what is to be written, as far as there was nothing.
    fn take(&self, path: &Path, offset: u64, bytes: usize) -> io::Result<()> {
        let mut state = self.state();
        let State { free, blocks, .. } = &mut *state;
        let blocks = blocks.entry(path.to_owned()).or_default();
        let wanted = offset / BLOCK..(offset + bytes as u64).div_ceil(BLOCK);
        let new = wanted.clone().filter(|block| !blocks.contains(block)).count();
        if let Some(free) = free {
            *free = free.checked_sub(new).ok_or(io::ErrorKind::StorageFull)?;
        }
        blocks.extend(wanted);
        Ok(())
    }

    /// What another process has left has its room.
    fn find(&self, path: &Path, len: u64) {
        let blocks = 0..len.div_ceil(BLOCK);
        self.state().blocks.entry(path.to_owned()).or_insert_with(|| blocks.collect());
    }

    /// Gives back the room of what lies beyond the end of a file.
    fn give_back(&self, path: &Path, len: u64) {
        let mut state = self.state();
        let Some(blocks) = state.blocks.get_mut(path) else { return };
        let before = blocks.len();
        blocks.retain(|block| *block < len.div_ceil(BLOCK));
        let given = before - blocks.len();
        state.free = state.free.map(|free| free + given);
    }
}

fn count(state: &State, operation: Operation, files: &str) -> usize {
    let meant = |(name, op): &&(String, Operation)| *op == operation && name.starts_with(files);
    state.counts.iter().filter(meant).count()
}

impl Gate {
    /// Returns when somebody stands before it.
    pub(crate) fn wait(&self) {
        let nobody = |state: &mut State| !state.standing.contains_key(&self.id);
        let state = self.shared.state.lock().unwrap();
        let waited = self.shared.changed.wait_timeout_while(state, PATIENCE, nobody);
        let timed_out = waited.unwrap().1.timed_out();
        assert!(!timed_out, "nobody came to the gate");
    }

    /// Lets everybody through.
    pub(crate) fn open(self) {}
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap().gates.retain(|(id, ..)| *id != self.id);
        self.shared.changed.notify_all();
    }
}

impl fmt::Debug for FragileDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FragileDisk")
    }
}

impl Disk for FragileDisk {
    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>> {
        LocalDisk.kind(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        LocalDisk.list(directory)
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        LocalDisk.create_directory(path)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        if access == Access::Create
            && let Some((error, _)) = self.meet(Operation::Create, path)
        {
            return Err(error);
        }
        let _moving = self.shared.still.read().unwrap();
        let file = LocalDisk.open(path, access)?;
        self.find(path, file.len()?);
        Ok(Arc::new(FragileFile { file, path: path.to_owned(), disk: self.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let _moving = self.shared.still.read().unwrap();
        LocalDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if let Some((error, _)) = self.meet(Operation::Remove, path) {
            return Err(error);
        }
        let _moving = self.shared.still.read().unwrap();
        self.find(path, LocalDisk.open(path, Access::Read)?.len()?);
        LocalDisk.remove(path)?;
        self.give_back(path, 0);
        Ok(())
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        LocalDisk.sync_directory(path)
    }
}

#[derive(Debug)]
struct FragileFile {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    disk: FragileDisk,
}

impl FragileFile {
    fn is_of_the_log(&self) -> bool {
        self.path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log-"))
    }

    fn write_through(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let _moving = self.disk.shared.still.read().unwrap();
        let (len, end) = (self.file.len()?, offset + bytes.len() as u64);
        self.disk.take(&self.path, offset, bytes.len())?;
        if self.is_of_the_log() {
            let mut before = vec![0; (len.min(end).saturating_sub(offset)) as usize];
            self.file.read(offset, &mut before)?;
            let mut state = self.disk.state();
            state.unsynced.entry(self.path.clone()).or_default().push((offset, before));
        }
        self.file.write(offset, bytes)
    }
}

impl DiskFile for FragileFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        match self.disk.meet(Operation::Read, &self.path) {
            Some((error, _)) => Err(error),
            None => self.file.read(offset, bytes),
        }
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        match self.disk.meet(Operation::Write, &self.path) {
            Some((error, damage)) => {
                if damage == Damage::Torn {
                    self.write_through(offset, &bytes[..bytes.len() / 2])?;
                }
                Err(error)
            }
            None => self.write_through(offset, bytes),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if let Some((error, _)) = self.disk.meet(Operation::SetLen, &self.path) {
            return Err(error);
        }
        let _moving = self.disk.shared.still.read().unwrap();
        self.file.set_len(len)?;
        self.disk.give_back(&self.path, len);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let met = self.disk.meet(Operation::Sync, &self.path);
        if met.is_none() {
            self.file.sync()?;
        }
        let _moving = self.disk.shared.still.read().unwrap();
        // What was not synced now never will be.
        let unsynced = self.disk.state().unsynced.remove(&self.path).unwrap_or_default();
        let Some((error, damage)) = met else { return Ok(()) };
        if damage == Damage::Lost {
            for (offset, before) in unsynced.iter().rev() {
                self.file.write(*offset, before)?;
            }
        }
        Err(error)
    }

    fn file(&self) -> Option<&File> {
        self.file.file()
    }
}
