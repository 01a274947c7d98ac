//! The commit log: the sequential file that makes a commit durable.
//!
//! ```text
//!   log-0  | batch | batch |  batch  | ... stale |      full: being folded
//!   log-1  | batch | batch | <- next  ... stale  |      active
//! ```
//!
//! A *segment* is a file that was filled with zeros before it was used, because a file that grows
//! is synced more slowly. A batch is one write that begins at a multiple of [`SECTOR`], and one sync:
//! no sector that holds an acknowledged commit is ever written again until it has been folded, so
//! a write that is torn damages nothing but itself.
//!
//! Every batch names the one before it by its checksum and its last revision. So a chain of batches
//! can be followed through any number of segments, whatever else lies in them: what was written in
//! an earlier use of a segment, or in an earlier epoch, does not belong to the chain.
//!
//! *Epochs* count how often the chain was taken up again: at every open, and after every failure of
//! the storage. The first batch of an epoch follows the last batch of the one before that is known to
//! be durable. What came after that has been read back, but reading back proves nothing: it is
//! written again, as the first batches of the new epoch.

use std::collections::HashMap;
use std::sync::Arc;

use twox_hash::XxHash3_64;

use super::directory::Directory;
use super::disk::{Access, DiskFile};
use super::marker::StoreId;
use crate::error::Error;
use crate::model::clock::Time;
use crate::model::session::Revision;

/// What a torn write may damage: the unit of disks that write the least at once.
pub(super) const SECTOR: u64 = 512;

const MAGIC: [u8; 8] = *b"sessile\x01";

/// Of a batch's header; `format.md` has the fields.
pub(super) const HEADER_BYTES: usize = 96;

/// The last batch of a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Link {
    pub revision: Revision,
    pub checksum: u64,
}

/// What a batch says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub epoch: u64,
    pub first: Revision,
    /// This batch, as the next one names it.
    pub link: Link,
    pub predecessor: Link,
    /// What was known to be durable when the batch was written.
    pub durable: Revision,
    pub time: Time,
    /// Of header and body, in bytes.
    pub length: usize,
}

impl Header {
    /// Puts the header in front of a body, for which the first bytes of `batch` are left free.
    fn seal(&mut self, store: StoreId, batch: &mut [u8]) {
        self.length = batch.len();
        let fields: [&[u8]; 9] = [
            &store.0.to_le_bytes(),
            &self.epoch.to_le_bytes(),
            &self.first.0.to_le_bytes(),
            &self.link.revision.0.to_le_bytes(),
            &self.predecessor.checksum.to_le_bytes(),
            &self.predecessor.revision.0.to_le_bytes(),
            &self.durable.0.to_le_bytes(),
            &self.time.as_micros().to_le_bytes(),
            &(batch.len() as u64).to_le_bytes(),
        ];
        batch[..8].copy_from_slice(&MAGIC);
        let mut at = 16;
        for field in fields {
            batch[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        }
        debug_assert_eq!(at, HEADER_BYTES);
        self.link.checksum = XxHash3_64::oneshot(&batch[16..]);
        batch[8..16].copy_from_slice(&self.link.checksum.to_le_bytes());
    }

    /// The batch at the beginning of these bytes, if there is a whole and sound one of this store.
    pub(super) fn parse(store: StoreId, bytes: &[u8]) -> Option<Header> {
        let (head, _) = bytes.split_at_checked(HEADER_BYTES)?;
        let number = |at: usize| {
            let field = head[at..at + 8].try_into().expect("eight bytes were cut out");
            u64::from_le_bytes(field)
        };
        let length = usize::try_from(number(88)).ok()?;
        let owner = u128::from(number(16)) | u128::from(number(24)) << 64;
        if head[..8] != MAGIC || owner != store.0 || length < HEADER_BYTES {
            return None;
        }
        let checksum = number(8);
        if XxHash3_64::oneshot(bytes.get(16..length)?) != checksum {
            return None;
        }
        Some(Header {
            epoch: number(32),
            first: Revision(number(40)),
            link: Link { revision: Revision(number(48)), checksum },
            predecessor: Link { checksum: number(56), revision: Revision(number(64)) },
            durable: Revision(number(72)),
            time: Time::from_micros(number(80)),
            length,
        })
    }
}

/// How many bytes a batch of this length takes up in a segment.
pub(super) fn padded(length: usize) -> u64 {
    (length as u64).next_multiple_of(SECTOR)
}

/// One file of the log.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub number: u64,
    pub file: Arc<dyn DiskFile>,
    /// In bytes, as it was made or found.
    pub len: u64,
}

impl Segment {
    pub(super) fn name(number: u64) -> String {
        format!("log-{number}")
    }

    /// The number in a file's name, if it is one of the log.
    pub(super) fn number(name: &str) -> Option<u64> {
        let number: u64 = name.strip_prefix("log-")?.parse().ok()?;
        (Self::name(number) == name && number < u64::MAX).then_some(number)
    }

    /// Makes a segment, filled and synced. The directory has still to be.
    pub(super) fn create(directory: &Directory, number: u64, len: u64) -> Result<Self, Error> {
        let name = Self::name(number);
        let file = directory.open_file(&name, Access::Create)?;
        fill(&*file, len).map_err(|error| directory.failed(&name, error))?;
        Ok(Segment { number, file, len })
    }
}

/// Fills a new file with zeros, so that its blocks are there when they are needed.
pub(super) fn fill(file: &dyn DiskFile, len: u64) -> std::io::Result<()> {
    let zeros = vec![0; len.min(1 << 20) as usize];
    let mut at = 0;
    while at < len {
        let part = zeros.len().min((len - at) as usize);
        file.write(at, &zeros[..part])?;
        at += part as u64;
    }
    file.sync()
}

/// A sound batch somewhere in a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub header: Header,
    /// Where it lies in its segment.
    pub at: usize,
}

/// All sound batches in a segment's bytes, those of earlier uses included. A bad one is stepped over:
/// whether that is a torn tail or a loss is seen by what comes after it.
pub(super) fn scan(store: StoreId, bytes: &[u8]) -> Vec<Found> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        at += match Header::parse(store, &bytes[at..]) {
            Some(header) => {
                found.push(Found { header, at });
                padded(header.length) as usize
            }
            None => SECTOR as usize,
        };
    }
    found
}

/// The chain that continues what is folded: the places of its batches in `found`, in order.
///
/// # Errors
///
/// The revision after which something is missing that a later batch proves to have been durable.
pub(super) fn chain(folded: Revision, found: &[Header]) -> Result<Vec<usize>, Revision> {
    // Of two that follow the same batch the later epoch holds: it has written again what was in
    // doubt in the one before.
    let mut followers: HashMap<Link, usize> = HashMap::with_capacity(found.len());
    let mut first = None;
    for (at, batch) in found.iter().enumerate() {
        let later = |other: &usize| found[*other].epoch > batch.epoch;
        if batch.link.revision <= folded {
            continue;
        }
        if batch.predecessor.revision <= folded && !first.as_ref().is_some_and(later) {
            first = Some(at);
        }
        if !followers.get(&batch.predecessor).is_some_and(later) {
            followers.insert(batch.predecessor, at);
        }
    }
    let mut chain = Vec::new();
    let mut next = first;
    while let Some(at) = next {
        chain.push(at);
        let last = &found[at];
        next = followers.get(&last.link).copied();
        next = next
            .filter(|at| found[*at].epoch >= last.epoch && found[*at].first > last.link.revision);
    }
    let end = chain.last().map_or(folded, |at| found[*at].link.revision);
    // Batches that were not synced may be lost in any order. Others may not.
    match found.iter().any(|batch| batch.first > end && batch.durable > end) {
        true => Err(end),
        false => Ok(chain),
    }
}

/// The end of the log that is being written.
#[derive(Debug)]
pub(super) struct Log {
    store: StoreId,
    pub epoch: u64,
    pub active: Segment,
    /// Where the next batch goes.
    at: u64,
    last: Link,
    /// Everything up to here is synced.
    pub durable: Link,
}

impl Log {
    /// Takes up a chain in an empty segment.
    pub(super) fn new(store: StoreId, epoch: u64, active: Segment, last: Link) -> Self {
        Log { store, epoch, active, at: 0, last, durable: last }
    }

    /// Where the next batch goes.
    pub(super) fn used(&self) -> u64 {
        self.at
    }

    /// How many bytes are left in the active segment.
    pub(super) fn room(&self) -> u64 {
        self.active.len.saturating_sub(self.at)
    }

    /// The last batch.
    pub(super) fn last(&self) -> Link {
        self.last
    }

    pub(super) fn is_synced(&self) -> bool {
        self.durable == self.last
    }

    /// Writes a batch whose body stands behind [`HEADER_BYTES`] free ones. There must be room.
    pub(super) fn append(
        &mut self,
        first: Revision,
        last: Revision,
        time: Time,
        batch: &mut Vec<u8>,
    ) -> std::io::Result<()> {
        let at = self.seal(first, last, time, batch);
        self.active.file.write(at, batch)
    }

    /// Writes batches of an earlier epoch again, so that all of them are found afterwards or none:
    /// the first is written when the others are durable, and without it nothing leads to them. If
    /// this is cut off, the batches as they were still hold.
    pub(super) fn append_again(&mut self, batches: Vec<(Header, Vec<u8>)>) -> std::io::Result<()> {
        let seal = |(header, mut batch): (Header, Vec<u8>)| {
            let at = self.seal(header.first, header.link.revision, header.time, &mut batch);
            (at, batch)
        };
        let sealed: Vec<_> = batches.into_iter().map(seal).collect();
        let Some((first, others)) = sealed.split_first() else { return Ok(()) };
        for (at, batch) in others {
            self.active.file.write(*at, batch)?;
        }
        if !others.is_empty() {
            self.active.file.sync()?;
        }
        self.active.file.write(first.0, &first.1)
    }

    /// Makes a batch the last one of the chain: where it is to be written.
    fn seal(&mut self, first: Revision, last: Revision, time: Time, batch: &mut Vec<u8>) -> u64 {
        let mut header = Header {
            epoch: self.epoch,
            first,
            link: Link { revision: last, checksum: 0 },
            predecessor: self.last,
            durable: self.durable.revision,
            time,
            length: batch.len(),
        };
        header.seal(self.store, batch);
        // The rest of the last sector is written too: what lay there is no business of the disk's.
        batch.resize(padded(batch.len()) as usize, 0);
        self.last = header.link;
        let at = self.at;
        self.at += batch.len() as u64;
        at
    }

    /// Makes everything written so far durable.
    pub(super) fn sync(&mut self) -> std::io::Result<()> {
        self.active.file.sync()?;
        self.durable = self.last;
        Ok(())
    }

    /// Goes on in another segment; the one that was active until now. Everything must be synced.
    pub(super) fn switch(&mut self, next: Segment) -> Segment {
        self.at = 0;
        std::mem::replace(&mut self.active, next)
    }
}
