//! Where a session has gone whose key was rotated.
//!
//! A rotation gives a session another key and another id, in one commit, and leaves a *forward* under
//! the old key, among the store's own notes:
//!
//! ```text
//!   before           sessions  A -> session 1
//!   after            sessions  B -> session 2     notes  A: session 1 is B's session 2 now
//! ```
//!
//! It answers three questions. A transaction that had found session 1 and commits later: where does it
//! lie now? Whoever comes with key A in the time of grace: where does it lie now? Whoever comes with
//! key A after that: has this key been given up, so that nobody may come with it? So it is kept for as
//! long as the session would have lived without another access, and until then nobody can create a
//! session under A.

use serde::{Deserialize, Serialize};

use crate::model::attributes::{Attributes, Stamped};
use crate::model::clock::Time;
use crate::model::key::Key;
use crate::model::policy::Policy;
use crate::model::session::{Record, SessionId};
use crate::model::value::Value;

/// What is written down under the old key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Forward {
    /// The session that lay there.
    pub from: SessionId,
    /// Under which key it goes on, and as which session.
    pub key: Key,
    pub id: SessionId,
    /// When that was.
    pub since: Time,
    /// Until then the old key leads to it.
    pub grace: Time,
}

/// How many rotations one after the other are followed.
pub(crate) const HOPS_MAX: usize = 32;

/// The one attribute of a forward.
const NAME: &str = "forward";

/// Its value: key, id, and end of the grace in microseconds.
#[derive(Serialize, Deserialize)]
struct Written(String, String, u64);

impl Forward {
    /// The note of the rotation.
    pub(crate) fn record(&self, old: &Record, policy: &Policy) -> Record {
        const MONTH_SECS: u64 = 30 * 24 * 60 * 60;
        let lives = match old.timeout_secs().unwrap_or(policy.timeout_secs) {
            0 => MONTH_SECS,
            timeout => timeout.saturating_add(policy.period_secs),
        };
        let until = self.since.plus_secs(lives).max(self.grace);
        let written = Written(self.key.to_hex(), self.id.to_string(), self.grace.as_micros());
        let value = Value::of(&written).expect("text and numbers can be encoded");
        let attribute = Stamped { value, revision: old.revision };
        Record {
            id: self.from,
            revision: old.revision,
            created: self.since,
            last_accessed: self.since,
            last_modified: None,
            slice_end: until,
            bucket: until.as_secs().saturating_add(1),
            attributes: Attributes::from_iter([(NAME.into(), attribute)]),
            extras: None,
        }
    }

    /// What a note says; `None` if it is no note of a rotation.
    pub(crate) fn of(record: &Record) -> Option<Self> {
        let Written(key, id, grace) = record.attributes.get(NAME)?.value.to()?;
        Some(Forward {
            from: record.id,
            key: Key::from_hex(&key)?,
            id: SessionId::from_hex(&id)?,
            since: record.created,
            grace: Time::from_micros(grace),
        })
    }
}

/// Whether a note still keeps its key from being taken. The sweep removes it later.
pub(crate) fn is_kept(record: &Record, now: Time) -> bool {
    now.as_secs() < record.bucket
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::draft::Life;
    use crate::model::session::Revision;

    proptest! {
        /// What is written down is read, and kept as long as it may be needed.
        #[test]
        fn a_note_says_what_was_noted(
            key in any::<Vec<u8>>(), ids in any::<(u128, u128)>(),
            timeout in 0u64..5, grace in 0u64..200, now in 0u64..1_000, wait in 0u64..400,
        ) {
            let policy = Policy::new().period_secs(20).timeout_secs(20 * timeout);
            let now = Time::from_secs(now);
            let old = Life::created(SessionId(ids.0), now, &policy).proposed(Revision(7));
            let (from, id) = (old.id, SessionId(ids.1));
            let (since, grace) = (now, now.plus_secs(grace));
            let forward = Forward { from, key: key.into(), id, since, grace };
            let record = forward.record(&old, &policy);
            prop_assert_eq!(Forward::of(&record), Some(forward.clone()));
            let later = now.plus_secs(wait);
            if later < forward.grace || old.expiry(&policy).is_none_or(|expiry| later < expiry) {
                prop_assert!(is_kept(&record, later));
            }
        }
    }
}
