//! Which sessions are meant: by whose they are, by their age, by what they hold.
//!
//! One kind of filter, wherever sessions are sought: in a transaction, from outside, for an export, on
//! the command line. Whether a session passes is a question to its record alone, so looking is no
//! access and no read.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::error::Error;
use crate::model::clock::Time;
use crate::model::policy::Policy;
use crate::model::session::Record;
use crate::model::value::Value;

/// Which sessions are meant: those that all of it is true of. Without more said, every live one.
///
/// ```
/// # use sessile::{Filter, Policy, Store};
/// # let store = Store::memory()?;
/// # let carts = store.container_with("carts", Policy::new())?;
/// store.transact(|txn| txn.create(&carts, "ada")?.insert("country", "uk"))?;
/// store.transact(|txn| txn.create(&carts, "emmy")?.insert("country", "de"))?;
///
/// let british = Filter::new().equals("country", "uk")?;
/// let txn = store.begin()?;
/// for session in txn.find(&carts, british)? {
///     assert_eq!(session?.key().as_bytes(), b"ada");
/// }
/// # Ok::<(), sessile::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    expired: bool,
    principal: Option<String>,
    older_than: Option<Duration>,
    idle_for: Option<Duration>,
    expires_within: Option<Duration>,
    unvisited: bool,
    attributes: Vec<(String, Option<Value>)>,
}

impl Filter {
    /// Every live session.
    pub fn new() -> Self {
        Self::default()
    }

    /// Those that have expired and await the sweep, in place of the live ones. Transactions see none of
    /// them.
    pub fn expired(mut self) -> Self {
        self.expired = true;
        self
    }

    /// Those that are bound to this principal.
    pub fn principal(mut self, name: impl Into<String>) -> Self {
        self.principal = Some(name.into());
        self
    }

    /// Those that were created longer ago than this.
    pub fn older_than(mut self, age: Duration) -> Self {
        self.older_than = Some(age);
        self
    }

    /// Those that were not used for longer than this, to within 30 seconds.
    pub fn idle_for(mut self, time: Duration) -> Self {
        self.idle_for = Some(time);
        self
    }

    /// Those whose time is over by then, unless they are used meanwhile.
    pub fn expires_within(mut self, time: Duration) -> Self {
        self.expires_within = Some(time);
        self
    }

    /// New ones: those that nobody has come back to since they were created, to within 30 seconds.
    pub fn unvisited(mut self) -> Self {
        self.unvisited = true;
        self
    }

    /// Those that have an attribute of this name. May be said of several.
    pub fn has(mut self, attribute: impl Into<String>) -> Self {
        self.attributes.push((attribute.into(), None));
        self
    }

    /// Those of which an attribute has this value: the same number, text, list, map. May be said of
    /// several.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`].
    pub fn equals(
        self,
        attribute: impl Into<String>,
        value: impl Serialize,
    ) -> Result<Self, Error> {
        let attribute = attribute.into();
        match Value::of(&value) {
            Some(value) => Ok(self.equals_value(attribute, value)),
            None => Err(Error::Encode { attribute }),
        }
    }

    /// The same for a value that is encoded already.
    pub fn equals_value(mut self, attribute: impl Into<String>, value: Value) -> Self {
        self.attributes.push((attribute.into(), Some(value)));
        self
    }

    pub(crate) fn matches(&self, record: &Arc<Record>, policy: &Policy, now: Time) -> bool {
        let expiry = record.expiry(policy);
        let is_over = |since: Time, time: Option<Duration>| {
            time.is_none_or(|time| since < now && now.since(since) > time)
        };
        let principal = || record.principal().map(|principal| &*principal.name);
        let is_soon = |time: Duration| expiry.is_some_and(|expiry| expiry.since(now) <= time);
        expiry.is_some_and(|expiry| expiry <= now) == self.expired
            && is_over(record.created, self.older_than)
            && is_over(record.last_accessed, self.idle_for)
            && self.expires_within.is_none_or(is_soon)
            && (!self.unvisited || record.last_accessed == record.created)
            && self.principal.as_ref().is_none_or(|name| principal() == Some(name))
            && self.holds(record, now)
    }

    /// Whether its attributes are those that are meant. What has lapsed is absent.
    fn holds(&self, record: &Arc<Record>, now: Time) -> bool {
        if self.attributes.is_empty() {
            return true;
        }
        let attributes = &record.lapsed(now).attributes;
        self.attributes.iter().all(|(name, wanted)| match (attributes.get(name), wanted) {
            (Some(found), Some(wanted)) => found.value == *wanted,
            (found, _) => found.is_some(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::attributes::{Attributes, Stamped};
    use crate::model::session::{Principal, Revision, SessionId};
    use crate::model::timeslice;

    fn record() -> Arc<Record> {
        let attribute =
            |value: u64| Stamped { value: Value::of(&value).unwrap(), revision: Revision(1) };
        let attributes: Attributes =
            [("n".into(), attribute(5)), ("short".into(), attribute(6))].into_iter().collect();
        let mut record = Record {
            id: SessionId(1),
            revision: Revision(1),
            created: Time::from_secs(1_000),
            last_accessed: Time::from_secs(1_100),
            last_modified: None,
            slice_end: Time::from_secs(1_120),
            bucket: timeslice::NEVER,
            attributes,
            extras: None,
        };
        record.set_extras(|extras| {
            extras.principal = Some(Principal { name: "ada".into(), note: "phone".into() });
            extras.lapses.insert("short".into(), Time::from_secs(1_200));
        });
        Arc::new(record)
    }

    #[test]
    fn each_condition_is_one_of_its_own() {
        let policy = Policy::new().timeout_secs(600); // it expires at 1720
        let passes =
            |filter: Filter, now: u64| filter.matches(&record(), &policy, Time::from_secs(now));
        let secs = Duration::from_secs;
        let all = Filter::new;
        for (filter, now, expected) in [
            (all(), 1_719, true),
            (all(), 1_720, false),
            (all().expired(), 1_719, false),
            (all().expired(), 1_720, true),
            (all().principal("ada"), 1_150, true),
            (all().principal("ad"), 1_150, false),
            (all().older_than(secs(150)), 1_150, false),
            (all().older_than(secs(149)), 1_150, true),
            (all().idle_for(secs(50)), 1_150, false),
            (all().idle_for(secs(49)), 1_150, true),
            (all().idle_for(secs(0)), 1_050, false),
            (all().expires_within(secs(569)), 1_150, false),
            (all().expires_within(secs(570)), 1_150, true),
            (all().unvisited(), 1_150, false),
            (all().has("n"), 1_150, true),
            (all().has("m"), 1_150, false),
            (all().has("short"), 1_199, true),
            (all().has("short"), 1_200, false),
            (all().has("n").has("m"), 1_150, false),
            (all().equals("n", 5).unwrap(), 1_150, true),
            (all().equals("n", 6).unwrap(), 1_150, false),
            (all().equals("n", "5").unwrap(), 1_150, false),
            (all().equals("m", 5).unwrap(), 1_150, false),
        ] {
            assert_eq!(passes(filter.clone(), now), expected, "{filter:?} at {now}");
        }
        let forever = Policy::new().timeout_secs(0);
        let soon = all().expires_within(secs(u64::MAX));
        assert!(!soon.matches(&record(), &forever, Time::from_secs(1_150)));
    }
}
