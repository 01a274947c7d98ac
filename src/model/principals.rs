//! Which sessions a principal has: a row for each among the store's own notes.
//!
//! It lies under the principal's name and has an attribute for each of its sessions: their key, and
//! which generation of it. It is written in the commit that binds a session, gives it another key or
//! ends it, so it is never wrong, and whoever wants all sessions of somebody reads one row. Where none
//! is left there is no row.

use std::collections::BTreeMap;

use crate::model::attributes::{Attributes, Stamped};
use crate::model::clock::Time;
use crate::model::container::{ContainerId, Kind, Place};
use crate::model::key::Key;
use crate::model::session::{Record, Revision, SessionId};
use crate::model::timeslice;
use crate::model::value::Value;

/// What becomes of the sessions of a principal: bound, or not any more.
pub(crate) type Bindings = BTreeMap<Key, Option<SessionId>>;

/// Where the row of a principal lies.
pub(crate) fn place(container: ContainerId, principal: &str) -> Place {
    (container.of(Kind::Principals), Key::from(principal))
}

/// The sessions in a row.
pub(crate) fn sessions(row: &Record) -> impl Iterator<Item = (Key, SessionId)> {
    row.attributes.iter().filter_map(|(name, id)| {
        let id: String = id.value.to()?;
        Some((Key::from_hex(name)?, SessionId::from_hex(&id)?))
    })
}

/// The row with these changes; `None` if nothing is left of it.
pub(crate) fn edited(
    row: Option<&Record>,
    bindings: Bindings,
    revision: Revision,
    now: Time,
) -> Option<Record> {
    let new = || Record {
        // A number of its own is enough: two rows under one name do not begin in one commit.
        id: SessionId(revision.0.into()),
        revision,
        created: now,
        last_accessed: now,
        last_modified: None,
        slice_end: now,
        bucket: timeslice::NEVER,
        attributes: Attributes::new(),
        extras: None,
    };
    let mut row = Record { revision, ..row.cloned().unwrap_or_else(new) };
    let edits = bindings.into_iter().map(|(key, id)| {
        let value = id.map(|id| Value::of(&id.to_string()).expect("text can be encoded"));
        (key.to_hex().into(), value.map(|value| Stamped { value, revision }))
    });
    row.attributes = row.attributes.edited(&edits.collect());
    (row.attributes.len() > 0).then_some(row)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A row is a map of keys to sessions, and goes with the last of them.
        #[test]
        fn a_row_is_a_map(
            steps in proptest::collection::vec(
                proptest::collection::btree_map(
                    proptest::collection::vec(any::<u8>(), 0..3).prop_map(Key::from),
                    any::<Option<u128>>().prop_map(|id| id.map(SessionId)),
                    0..4,
                ),
                0..6,
            ),
        ) {
            let (mut row, mut map) = (None, BTreeMap::new());
            for (step, revision) in steps.into_iter().zip(1..) {
                for (key, id) in &step {
                    match id {
                        Some(id) => map.insert(key.clone(), *id),
                        None => map.remove(key),
                    };
                }
                row = edited(row.as_ref(), step, Revision(revision), Time::from_secs(revision));
                prop_assert_eq!(row.is_none(), map.is_empty());
                let found: BTreeMap<_, _> = row.iter().flat_map(sessions).collect();
                prop_assert_eq!(&found, &map);
            }
        }
    }
}
