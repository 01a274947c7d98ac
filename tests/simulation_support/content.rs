//! The bytes of a file, cheap to copy: pages are shared until one copy of them is written to, and
//! pages of zeros take no room.

use std::sync::{Arc, OnceLock};

use twox_hash::XxHash3_64;

/// What an operating system caches and writes back at once.
pub(crate) const PAGE: usize = 4096;

/// What a disk writes at once, at the most.
pub(crate) const SECTOR: usize = 512;

pub(crate) type Sector = [u8; SECTOR];

static ZEROS: [u8; PAGE] = [0; PAGE];

#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    len: u64,
    /// One for each page up to the end of the file; `None`: zeros.
    pages: Arc<Vec<Option<Arc<Page>>>>,
}

#[derive(Debug)]
struct Page {
    bytes: [u8; PAGE],
    hash: OnceLock<u64>,
}

impl Clone for Page {
    /// A copy is made to be changed.
    fn clone(&self) -> Self {
        Page { bytes: self.bytes, hash: OnceLock::new() }
    }
}

impl Content {
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `bytes` with what lies at `offset`; zeros where the file has ended.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) {
        for (page, within, part) in parts(offset, bytes.len()) {
            let bytes = &mut bytes[part];
            match self.pages.get(page).and_then(Option::as_ref) {
                Some(page) => bytes.copy_from_slice(&page.bytes[within..within + bytes.len()]),
                None => bytes.fill(0),
            }
        }
    }

    /// Puts `bytes` at `offset`; the file grows if it must.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.len = self.len.max(offset + bytes.len() as u64);
        let count = usize::try_from(self.len.div_ceil(PAGE as u64)).unwrap();
        let pages = Arc::make_mut(&mut self.pages);
        if pages.len() < count {
            pages.resize(count, None);
        }
        for (page, within, part) in parts(offset, bytes.len()) {
            let bytes = &bytes[part];
            let page = &mut pages[page];
            // Comparing slices is fast even in a build for debugging.
            if page.is_none() && bytes == &ZEROS[..bytes.len()] {
                continue;
            }
            let empty = || Arc::new(Page { bytes: [0; PAGE], hash: OnceLock::new() });
            let page = Arc::make_mut(page.get_or_insert_with(empty));
            page.bytes[within..within + bytes.len()].copy_from_slice(bytes);
            page.hash.take();
        }
    }

    /// Cuts the file off, or lengthens it with zeros.
    pub(crate) fn set_len(&mut self, len: u64) {
        let pages = Arc::make_mut(&mut self.pages);
        pages.resize(usize::try_from(len.div_ceil(PAGE as u64)).unwrap(), None);
        let within = usize::try_from(len % PAGE as u64).unwrap();
        if within > 0 && len < self.len {
            let last = pages.last_mut().expect("a file that ends within a page has one");
            if let Some(page) = last {
                let page = Arc::make_mut(page);
                page.bytes[within..].fill(0);
                page.hash.take();
            }
        }
        self.len = len;
    }

    pub(crate) fn sector(&self, index: u64) -> Sector {
        let mut sector = [0; SECTOR];
        self.read(index * SECTOR as u64, &mut sector);
        sector
    }

    /// Replaces what of a sector lies before the end of the file.
    pub(crate) fn set_sector(&mut self, index: u64, sector: &Sector) {
        let start = index * SECTOR as u64;
        let room = self.len.saturating_sub(start).min(SECTOR as u64);
        if room > 0 {
            self.write(start, &sector[..usize::try_from(room).unwrap()]);
        }
    }

    /// Equal for files that are equal.
    pub(crate) fn hash(&self, into: &mut Hash) {
        into.add(self.len);
        for (index, page) in self.pages.iter().enumerate() {
            let Some(page) = page else { continue };
            let hash = *page.hash.get_or_init(|| match page.bytes == ZEROS {
                true => 0,
                false => XxHash3_64::oneshot(&page.bytes),
            });
            if hash != 0 {
                into.add(index as u64);
                into.add(hash);
            }
        }
    }
}

/// The pages that a range touches: number of the page, where in it, and which part of the range.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
    let start = usize::try_from(offset).unwrap();
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == len {
            return None;
        }
        let (page, within) = ((start + at) / PAGE, (start + at) % PAGE);
        let part = at..len.min(at + PAGE - within);
        at = part.end;
        Some((page, within, part))
    })
}

/// Folds numbers into one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hash(pub u64);

impl Hash {
    pub(crate) fn add(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }

    pub(crate) fn add_bytes(&mut self, bytes: &[u8]) {
        self.add(XxHash3_64::oneshot(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation_support::chance::Chance;

    fn hash(content: &Content) -> u64 {
        let mut hash = Hash::default();
        content.hash(&mut hash);
        hash.0
    }

    /// Against a plain vector, with copies that must not change.
    #[test]
    fn content_is_a_vector_of_bytes() {
        let mut chance = Chance::new(1);
        let (mut content, mut plain) = (Content::default(), Vec::new());
        let mut copies = Vec::new();
        for step in 0..2_000 {
            let offset = chance.below(20_000);
            match chance.below(4) {
                0 => {
                    content.set_len(offset);
                    plain.resize(offset as usize, 0);
                }
                kind => {
                    let fill = if kind == 1 { 0 } else { step as u8 };
                    let bytes = vec![fill; chance.below(9_000) as usize];
                    let end = offset as usize + bytes.len();
                    plain.resize(plain.len().max(end), 0);
                    plain[offset as usize..end].copy_from_slice(&bytes);
                    content.write(offset, &bytes);
                }
            }
            if step % 100 == 0 {
                copies.push((content.clone(), plain.clone(), hash(&content)));
            }
            assert_eq!(content.len(), plain.len() as u64);
        }
        copies.push((content.clone(), plain, hash(&content)));
        for (content, plain, before) in copies {
            let mut bytes = vec![7; plain.len()];
            content.read(0, &mut bytes);
            assert!(bytes == plain);
            assert_eq!(hash(&content), before);
            // The same bytes have the same hash, however they came about.
            let mut other = Content::default();
            other.write(0, &plain);
            assert_eq!(hash(&other), before);
            let Some(last) = plain.len().checked_sub(1) else { continue };
            other.write(last as u64, &[plain[last] ^ 1]);
            assert_ne!(hash(&other), before);
        }
    }
}
