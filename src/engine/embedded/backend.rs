//! redb's file, by way of the [`Disk`](super::disk::Disk) that everything else goes through: to be
//! written, or to be looked at and not touched.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

use super::disk::DiskFile;

#[derive(Debug)]
pub(super) struct Backend {
    file: Arc<dyn DiskFile>,
    /// Takes redb's byte-range locks, where the file is one of the operating system's.
    locks: Option<FileBackend>,
}

impl Backend {
    pub(super) fn new(file: Arc<dyn DiskFile>) -> io::Result<Self> {
        let locks =
            file.file().map(|file| FileBackend::new(file.try_clone()?).map_err(io::Error::other));
        Ok(Backend { locks: locks.transpose()?, file })
    }

    fn locks(&self) -> Result<&FileBackend, BackendError> {
        self.locks.as_ref().ok_or(BackendError::Unsupported)
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.locks.as_ref().map_or(Ok(()), StorageBackend::close)
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.locks()?.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.locks()?.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.locks()?.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.locks()?.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.locks()?.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.locks()?.query_lock_range(start, end)
    }
}

/// redb's file as it is, with what redb writes to it kept in memory: so redb can repair what a killed
/// process left, and the file stays what it is.
///
/// No lock is taken either, only asked for: whoever looks at a store must not keep its application
/// from opening it. A process that has it open for writing is found so. One that opens it later is
/// not; whoever reads here has to see to it that the file is still what it was when he began.
pub(super) struct CopyOnWrite {
    file: Backend,
    written: Mutex<Written>,
}

/// What differs from the file.
struct Written {
    len: u64,
    /// Where the file was cut off, or ends: behind it are zeros, until they are written.
    cut: u64,
    pages: HashMap<u64, Vec<u8>>,
}

/// The unit of what is kept: redb's own.
const PAGE: usize = 4_096;

impl CopyOnWrite {
    pub(super) fn new(file: Backend) -> io::Result<Self> {
        let len = file.len()?;
        let written = Written { len, cut: len, pages: HashMap::new() };
        Ok(CopyOnWrite { file, written: Mutex::new(written) })
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What lies in the file, which may end before.
    fn read_file(&self, offset: u64, out: &mut [u8], cut: u64) -> io::Result<()> {
        let (there, behind) =
            out.split_at_mut(cut.saturating_sub(offset).min(out.len() as u64) as usize);
        behind.fill(0);
        match there.is_empty() {
            true => Ok(()),
            false => self.file.read(offset, there),
        }
    }
}

/// The stretches of a range by the pages that they lie in: page, place in it, place in the range.
fn stretches(
    offset: u64,
    len: usize,
) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let position = offset + at as u64;
        let within = (position % PAGE as u64) as usize;
        let stretch = at..len.min(at + PAGE - within);
        at = stretch.end;
        (!stretch.is_empty()).then_some((position / PAGE as u64, within, stretch))
    })
}

impl fmt::Debug for CopyOnWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CopyOnWrite")
    }
}

impl StorageBackend for CopyOnWrite {
    fn len(&self) -> io::Result<u64> {
        Ok(self.written().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let written = self.written();
        if offset.saturating_add(out.len() as u64) > written.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (page, within, stretch) in stretches(offset, out.len()) {
            let position = offset + stretch.start as u64;
            let part = &mut out[stretch];
            match written.pages.get(&page) {
                Some(bytes) => part.copy_from_slice(&bytes[within..within + part.len()]),
                None => self.read_file(position, part, written.cut)?,
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut written = self.written();
        let (last, within) = (len / PAGE as u64, (len % PAGE as u64) as usize);
        if len < written.len {
            written.pages.retain(|page, _| page * (PAGE as u64) < len);
            written.pages.entry(last).and_modify(|bytes| bytes[within..].fill(0));
            written.cut = written.cut.min(len);
        }
        written.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = self.written();
        for (page, within, stretch) in stretches(offset, data.len()) {
            if !written.pages.contains_key(&page) {
                let mut bytes = vec![0; PAGE];
                self.read_file(page * PAGE as u64, &mut bytes, written.cut)?;
                written.pages.insert(page, bytes);
            }
            let part = &data[stretch];
            written.pages.entry(page).and_modify(|bytes| {
                bytes[within..within + part.len()].copy_from_slice(part);
            });
        }
        written.len = written.len.max(offset + data.len() as u64);
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    /// For writing, which nobody else may do at the same time.
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        Ok(!self.file.query_lock_range(start, end)?)
    }

    fn try_lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        self.file.locks().map(|_| true)
    }

    fn lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        self.file.locks().map(|_| ())
    }

    fn lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        self.file.locks().map(|_| ())
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        self.file.locks().map(|_| ())
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::engine::embedded::disk::{Access, Disk, LocalDisk};

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        SetLen(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        // Few places and sizes, about the edges of pages.
        let near =
            (0u64..4, -3i64..4).prop_map(|(page, by)| (page * 4_096).saturating_add_signed(by));
        let bytes = prop_oneof![1usize..6, 4_090usize..4_100]
            .prop_flat_map(|len| any::<u8>().prop_map(move |byte| vec![byte; len]));
        prop_oneof![
            (near.clone(), bytes).prop_map(|(at, bytes)| Step::Write(at, bytes)),
            near.prop_map(Step::SetLen),
        ]
    }

    proptest! {
        /// It reads like a file that was written to, and the file is what it was.
        #[test]
        fn what_is_written_is_read_and_the_file_stays(
            len in 0usize..10_000,
            steps in proptest::collection::vec(step(), 0..12),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("file");
            let original: Vec<u8> = (0..len).map(|n| (n % 251) as u8 + 1).collect();
            fs::write(&path, &original).unwrap();
            let file = LocalDisk.open(&path, Access::Read).unwrap();
            let backend = CopyOnWrite::new(Backend::new(file).unwrap()).unwrap();
            let mut model = original.clone();
            for step in steps {
                match step {
                    Step::Write(at, bytes) => {
                        backend.write(at, &bytes).unwrap();
                        let (at, end) = (at as usize, at as usize + bytes.len());
                        model.resize(model.len().max(end), 0);
                        model[at..end].copy_from_slice(&bytes);
                    }
                    Step::SetLen(len) => {
                        backend.set_len(len).unwrap();
                        model.resize(len as usize, 0);
                    }
                }
                let mut read = vec![0xff; backend.len().unwrap() as usize];
                backend.read(0, &mut read).unwrap();
                prop_assert!(read == model);
                let mut tail = vec![0xff; read.len().min(5_000)];
                backend.read((read.len() - tail.len()) as u64, &mut tail).unwrap();
                prop_assert!(tail == model[model.len() - tail.len()..]);
                prop_assert!(backend.read(1, &mut read).is_err() || read.is_empty());
            }
            prop_assert!(fs::read(&path).unwrap() == original);
        }
    }
}
