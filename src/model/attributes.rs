//! The attributes of a session, in one piece of memory: encoded as the tables hold them, and decoded
//! one at a time, on use.
//!
//! ```text
//!   | count | where 1 | where 2 | ... | revision | name length | name | value | revision | ...
//!     u32     u32       u32             u64        u32                  ^ attribute 1
//! ```
//!
//! Numbers are little-endian, offsets count from the beginning, and the attributes follow each other
//! without gaps in the order of their names, so that one is found by halving. A map of names and values
//! would take four times the memory and an allocation for each of them; this takes one for a session,
//! and a value that is given out is a part of it.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::model::session::{Name, Revision, Size};
use crate::model::value::Value;

/// A value with the revision that last wrote it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stamped {
    pub value: Value,
    pub revision: Revision,
}

/// The attributes of one session. Shared and never changed: [`edited`](Self::edited) makes others.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Attributes(Option<Arc<[u8]>>);

/// New attributes by name; `None`: it is removed.
pub(crate) type Edits = BTreeMap<Name, Option<Stamped>>;

/// The name of an attribute that was changed, by which commit, and its value.
pub(crate) type Changed<'a> = (&'a str, Revision, &'a [u8]);

/// Of a name's length and a revision.
const HEAD: usize = 12;

/// One attribute where it lies.
#[derive(Clone, Copy)]
struct Part<'a> {
    name: &'a str,
    revision: Revision,
    value: &'a [u8],
    /// Where the value ends in its block.
    end: usize,
}

impl Attributes {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |block| number(block, 0))
    }

    /// Whether both are one and the same, not only equal.
    pub(crate) fn is(&self, other: &Attributes) -> bool {
        match (&self.0, &other.0) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        }
    }

    /// The encoded attributes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }

    /// Takes encoded attributes over; `None` if they are not what [`as_bytes`](Self::as_bytes) gives.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Attributes(None));
        }
        let count = bytes.len().checked_sub(4).map(|_| number(bytes, 0))?;
        let mut end = count.checked_mul(4)?.checked_add(4)?;
        let mut before: Option<&str> = None;
        if count == 0 || end > bytes.len() {
            return None;
        }
        for at in 0..count {
            let start = number(bytes, 4 + 4 * at);
            let next = if at + 1 < count { number(bytes, 8 + 4 * at) } else { bytes.len() };
            let part = bytes.get(start..next).filter(|part| start == end && part.len() >= HEAD)?;
            let name = part[HEAD..].get(..number(part, 8))?;
            let name = std::str::from_utf8(name).ok()?;
            if before.is_some_and(|before| before >= name) {
                return None;
            }
            (before, end) = (Some(name), next);
        }
        Some(Attributes(Some(bytes.into())))
    }

    /// What they weigh against the limits of a session.
    pub(crate) fn size(&self) -> Size {
        let attributes = self.len();
        let bytes = self.as_bytes().len().saturating_sub(4 + (4 + HEAD) * attributes);
        Size { attributes, bytes }
    }

    pub(crate) fn get(&self, name: &str) -> Option<Stamped> {
        let part = self.find(name)?;
        Some(self.attribute(&part))
    }

    /// The revision that wrote an attribute.
    pub(crate) fn revision(&self, name: &str) -> Option<Revision> {
        self.find(name).map(|part| part.revision)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.parts().map(|part| part.name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, Stamped)> {
        self.parts().map(|part| (part.name, self.attribute(&part)))
    }

    /// The values alone, without their revisions.
    pub(crate) fn values(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.parts().map(|part| (part.name, part.value))
    }

    /// These attributes with some of them replaced.
    pub(crate) fn edited(&self, edits: &Edits) -> Self {
        let mut parts = Vec::with_capacity(self.len() + edits.len());
        // Both are in the order of their names.
        let mut own = self.parts().peekable();
        for (name, attribute) in edits {
            while let Some(part) = own.next_if(|part| *part.name < **name) {
                parts.push(part);
            }
            own.next_if(|part| *part.name == **name);
            if let Some(Stamped { value, revision }) = attribute {
                let value = value.as_bytes();
                parts.push(Part { name, revision: *revision, value, end: 0 });
            }
        }
        parts.extend(own);
        Self::of(&parts)
    }

    /// What makes these of `before`: the attributes that are new or other, and the names of those that
    /// are gone.
    pub(crate) fn changed_since<'a>(
        &'a self,
        before: &'a Attributes,
    ) -> (Vec<Changed<'a>>, Vec<&'a str>) {
        let (mut set, mut removed) = (Vec::new(), Vec::new());
        // Both are in the order of their names.
        let mut old = before.parts().peekable();
        for new in self.parts() {
            while let Some(gone) = old.next_if(|old| old.name < new.name) {
                removed.push(gone.name);
            }
            let same = old.next_if(|old| old.name == new.name);
            if same.is_none_or(|same| (same.revision, same.value) != (new.revision, new.value)) {
                set.push((new.name, new.revision, new.value));
            }
        }
        removed.extend(old.map(|old| old.name));
        (set, removed)
    }

    /// Puts the parts, in the order of their names, into one piece.
    fn of(parts: &[Part<'_>]) -> Self {
        if parts.is_empty() {
            return Attributes(None);
        }
        let weight = |part: &Part<'_>| 4 + HEAD + part.name.len() + part.value.len();
        let length = 4 + parts.iter().map(weight).sum::<usize>();
        let number = |n: usize| u32::try_from(n).expect("a session has far less than 4 GiB");
        let mut block = Vec::with_capacity(length);
        block.extend_from_slice(&number(parts.len()).to_le_bytes());
        let mut at = 4 + 4 * parts.len();
        for part in parts {
            block.extend_from_slice(&number(at).to_le_bytes());
            at += weight(part) - 4;
        }
        for part in parts {
            block.extend_from_slice(&part.revision.0.to_le_bytes());
            block.extend_from_slice(&number(part.name.len()).to_le_bytes());
            block.extend_from_slice(part.name.as_bytes());
            block.extend_from_slice(part.value);
        }
        debug_assert_eq!(block.len(), length);
        Attributes(Some(block.into()))
    }

    fn find(&self, name: &str) -> Option<Part<'_>> {
        let block = self.as_bytes();
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match bytes_of(block, middle).1.cmp(name.as_bytes()) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Some(part(block, middle)),
                Ordering::Greater => high = middle,
            }
        }
        None
    }

    fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let block = self.as_bytes();
        (0..self.len()).map(|at| part(block, at))
    }

    fn attribute(&self, part: &Part<'_>) -> Stamped {
        let block = self.0.as_ref().expect("it has a part");
        let value = Value::part(Arc::clone(block), part.end - part.value.len()..part.end);
        Stamped { value, revision: part.revision }
    }
}

/// The attribute at a place in the order. The block was made or checked here.
fn part(block: &[u8], at: usize) -> Part<'_> {
    let (revision, name, value, end) = bytes_of(block, at);
    let revision = Revision(u64::from_le_bytes(*revision));
    let name = std::str::from_utf8(name).expect("it was checked");
    Part { name, revision, value, end }
}

/// Its revision, name and value, and where that ends.
fn bytes_of(block: &[u8], at: usize) -> (&[u8; 8], &[u8], &[u8], usize) {
    let start = number(block, 4 + 4 * at);
    let end = if at + 1 < number(block, 0) { number(block, 8 + 4 * at) } else { block.len() };
    let part = &block[start..end];
    let (name, value) = part[HEAD..].split_at(number(part, 8));
    (part.first_chunk().expect("it was checked"), name, value, end)
}

fn number(bytes: &[u8], at: usize) -> usize {
    let number = bytes[at..].first_chunk().expect("it was checked");
    u32::from_le_bytes(*number) as usize
}

impl FromIterator<(Name, Stamped)> for Attributes {
    fn from_iter<I: IntoIterator<Item = (Name, Stamped)>>(attributes: I) -> Self {
        let edits = attributes.into_iter().map(|(name, attribute)| (name, Some(attribute)));
        Self::new().edited(&edits.collect())
    }
}

impl fmt::Debug for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute() -> impl Strategy<Value = Stamped> {
        (any::<i64>(), any::<u64>()).prop_map(|(value, revision)| Stamped {
            value: Value::of(&value).expect("a number"),
            revision: Revision(revision),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        /// They are what a map of them would be, whatever is done to them.
        #[test]
        fn attributes_are_a_map(
            steps in proptest::collection::vec(
                proptest::collection::btree_map("[a-cé]{0,3}", proptest::option::of(attribute()), 0..5),
                0..8,
            ),
        ) {
            let (mut attributes, mut map) = (Attributes::new(), BTreeMap::new());
            for step in steps {
                let edits: Edits = step.into_iter().map(|(name, new)| (name.into(), new)).collect();
                attributes = attributes.edited(&edits);
                for (name, new) in edits {
                    match new {
                        Some(new) => map.insert(name, new),
                        None => map.remove(&name),
                    };
                }
            }
            let shown = |(name, stamped): (&Name, &Stamped)| (name.to_string(), stamped.clone());
            let expected: Vec<_> = map.iter().map(shown).collect();
            let found: Vec<_> = attributes.iter().map(|(name, a)| (name.to_owned(), a)).collect();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(attributes.len(), map.len());
            let sizes = map.iter().map(|(name, attribute)| Size::of(name, &attribute.value));
            prop_assert_eq!(attributes.size(), sizes.sum());
            for name in ["", "a", "b", "zz", "é"] {
                prop_assert_eq!(attributes.get(name), map.get(name).cloned());
                prop_assert_eq!(attributes.revision(name), map.get(name).map(|a| a.revision));
            }
            let again = Attributes::from_bytes(attributes.as_bytes());
            prop_assert_eq!(again, Some(attributes));
        }

        /// What is taken over can be used, and is as it would be made here: there are no two ways to
        /// write the same attributes.
        #[test]
        fn any_bytes_are_attributes_or_refused(
            map in proptest::collection::btree_map("[a-c]{0,3}", attribute(), 0..5),
            at in any::<prop::sample::Index>(), byte in any::<u8>(), noise in any::<Vec<u8>>(),
        ) {
            let made: Attributes = map.into_iter().map(|(name, a)| (name.into(), a)).collect();
            let mut bytes = made.as_bytes().to_vec();
            let at = at.index(bytes.len() + 1);
            let cut = bytes[..at].to_vec();
            bytes.get_mut(at).into_iter().for_each(|there| *there = byte);
            for bytes in [bytes, cut, noise] {
                if let Some(taken) = Attributes::from_bytes(&bytes) {
                    let again = taken.iter().map(|(name, a)| (name.into(), a)).collect();
                    prop_assert_eq!(taken, again);
                }
            }
        }
    }
}
