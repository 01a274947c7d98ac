//! An end as it is written down, until its listener was told of it.
//!
//! ```text
//!   commit 7              ada ---> gone
//!                   end 7 | 0 ---> her last data, and why
//!                                   |
//!                                   +--> listener     told, and some time later acknowledged:
//!   commit 12       end 7 | 0 ---> gone
//! ```
//!
//! It is a row of the store's own among the sessions (see `model/container.rs`), made by the commit
//! that ends the session: so it is there if and only if the end is, whatever happens to the machine.
//! Its key is the number of that commit and the place among its ends, so who walks through all of
//! them goes in the order in which they are to be told. A crash between the telling and the
//! acknowledgement leaves the row behind, and the listener is told again.
//!
//! The row has the times and the id of the session. All else lies in attributes of the row, those of
//! the session in one piece, so that no name can be taken twice.

use std::sync::Arc;

use crate::model::attributes::{Attributes, Edits, Stamped};
use crate::model::container::{ContainerId, Kind};
use crate::model::key::Key;
use crate::model::session::{Record, Revision};
use crate::model::timeslice;
use crate::model::value::Value;
use crate::store::listeners::{EndReason, EndedSession};

/// Where all of them lie.
pub(crate) const ENDS: ContainerId = ContainerId::STORE.of(Kind::Ends);

const ATTRIBUTES: &str = "attributes";
const CONTAINER: &str = "container";
const KEY: &str = "key";
const LISTENER: &str = "listener";
const REASON: &str = "reason";

/// The key of the nth end of a commit.
pub(crate) fn key(revision: Revision, nth: u32) -> Key {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&revision.0.to_be_bytes());
    key[8..].copy_from_slice(&nth.to_be_bytes());
    Key::from(&key)
}

/// The first key of a commit later than this one.
pub(crate) fn after(revision: Revision) -> Key {
    key(revision.next(), 0)
}

/// What is written down of an end, for the listener of this name.
pub(crate) fn record(
    session: &EndedSession,
    container: ContainerId,
    listener: &str,
    reason: EndReason,
    revision: Revision,
) -> Record {
    let mut edits = Edits::new();
    let mut put = |name: &str, value| {
        edits.insert(name.into(), Some(Stamped { value, revision }));
    };
    let text = |text: &str| Value::of(text).expect("a text can be encoded");
    let attributes = session.record.attributes.as_bytes();
    if !attributes.is_empty() {
        put(ATTRIBUTES, Value::of_bytes(attributes));
    }
    put(CONTAINER, Value::of(&container.0).expect("a number can be encoded"));
    put(KEY, Value::of_bytes(session.key.as_bytes()));
    put(LISTENER, text(listener));
    put(REASON, text(word(reason)));
    let mut record = Record::clone(&session.record);
    record.revision = revision;
    // Nobody comes upon it by its time.
    record.bucket = timeslice::NEVER;
    record.attributes = Attributes::new().edited(&edits);
    // Attributes of the row do not lapse; those of the session that have are gone.
    record.set_extras(|extras| extras.lapses.clear());
    record
}

/// The end that was written down so; `None` if it was not by this version.
pub(crate) fn session(
    row: Key,
    record: &Arc<Record>,
    name: impl FnOnce(ContainerId) -> Option<Arc<str>>,
) -> Option<(EndedSession, EndReason)> {
    let value = |name| Some(record.attributes.get(name)?.value);
    let attributes = match value(ATTRIBUTES) {
        Some(bytes) => Attributes::from_bytes(bytes.to_bytes()?)?,
        None => Attributes::new(),
    };
    let session = EndedSession {
        container: name(ContainerId(value(CONTAINER)?.to()?))?,
        key: Key::from(value(KEY)?.to_bytes()?),
        listener: Some(value(LISTENER)?.to()?),
        record: Arc::new(Record { attributes, ..Record::clone(record) }),
        row: Some(row),
    };
    Some((session, reason(&value(REASON)?.to::<String>()?)?))
}

fn word(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Invalidated => "invalidated",
        EndReason::Expired => "expired",
        EndReason::Evicted => "evicted",
        EndReason::Rotated => "rotated",
    }
}

fn reason(word: &str) -> Option<EndReason> {
    match word {
        "invalidated" => Some(EndReason::Invalidated),
        "expired" => Some(EndReason::Expired),
        "evicted" => Some(EndReason::Evicted),
        "rotated" => Some(EndReason::Rotated),
        _ => None,
    }
}
