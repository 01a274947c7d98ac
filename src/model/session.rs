//! A session as it is stored: named values, each with the revision that wrote it.

use std::collections::BTreeMap;
use std::fmt;
use std::iter::Sum;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::attributes::{Attributes, Edits};
use crate::model::clock::Time;
use crate::model::policy::Policy;
use crate::model::timeslice::{self, Touch};
use crate::model::value::Value;

/// The number of a commit. It grows, and no number is used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub(crate) u64);

impl Revision {
    /// The plain number.
    pub fn get(self) -> u64 {
        self.0
    }

    pub(crate) fn next(self) -> Revision {
        Revision(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// What tells one commit of a store from every other, failed ones included: see
/// [`Store::fate`](crate::Store::fate).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitId {
    /// Every time that the store begins anew, by being opened or after a failure, is an epoch.
    pub epoch: u64,
    /// The number that the commit has, or would have had.
    pub revision: Revision,
}

/// `epoch.revision`, such as `3.r17`.
impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.revision)
    }
}

/// What tells one generation of a key from the next: 128 random bits, never reused, no secret.
///
/// Its text has 32 hexadecimal digits, and goes into forms and JSON as a string: a list of devices names
/// them by it.
///
/// ```
/// use serde::Deserialize;
/// use sessile::SessionId;
///
/// #[derive(Deserialize)]
/// struct LogOut {
///     device: SessionId,
/// }
///
/// let json = r#"{"device": "00000000000000000000000000c0ffee"}"#;
/// let form: LogOut = serde_json::from_str(json)?;
/// assert_eq!(form.device.to_string(), "00000000000000000000000000c0ffee");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub(crate) u128);

impl SessionId {
    /// The id of which this is the text; `None` if it is none's.
    pub(crate) fn from_hex(hex: &str) -> Option<Self> {
        u128::from_str_radix(hex, 16).ok().map(SessionId)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({self})")
    }
}

impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Of the one text that an id has.
impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let id = SessionId::from_hex(&text).filter(|id| id.to_string() == text);
        id.ok_or_else(|| D::Error::custom("not the id of a session: 32 hexadecimal digits"))
    }
}

/// The name of an attribute, shared by every version of the session that has it.
pub(crate) type Name = Arc<str>;

/// One session as one commit left it. Shared and never changed: a change makes another.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Record {
    pub id: SessionId,
    /// The last commit that changed anything here, touches included.
    pub revision: Revision,
    pub created: Time,
    /// For show: rewritten only when more than 30 s old.
    pub last_accessed: Time,
    pub last_modified: Option<Time>,
    /// The end of the timeslice of the last access. It alone decides expiry.
    pub slice_end: Time,
    /// The bucket that holds this session: an expiry in seconds, or [`timeslice::NEVER`].
    // Invariant: never later than the expiry under the policy that the session was filed by.
    pub bucket: u64,
    pub attributes: Attributes,
    /// What only some sessions have; `None` if this one has nothing of it.
    pub extras: Option<Arc<Extras>>,
}

/// What only some sessions have: apart from the rest, so that the others do not pay for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Extras {
    /// A timeout of its own in seconds, instead of the policy's; zero: none.
    pub timeout_secs: Option<u64>,
    /// Whose session it is.
    pub principal: Option<Principal>,
    /// Until when attributes last that do not last as long as the session.
    pub lapses: BTreeMap<Name, Time>,
}

/// Whose session it is, and where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Principal {
    pub name: Arc<str>,
    /// The application's note on the device.
    pub note: Arc<str>,
}

impl Record {
    /// Whether the session's time is over under `policy`.
    pub(crate) fn is_expired(&self, policy: &Policy, now: Time) -> bool {
        self.expiry(policy).is_some_and(|expiry| expiry <= now)
    }

    /// When the session's time is over under `policy`; `None`: never.
    pub(crate) fn expiry(&self, policy: &Policy) -> Option<Time> {
        timeslice::expiry(self.slice_end, self.created, self.timeout_secs(), policy)
    }

    /// The timeout of its own, if it has one.
    pub(crate) fn timeout_secs(&self) -> Option<u64> {
        self.extras.as_ref()?.timeout_secs
    }

    pub(crate) fn principal(&self) -> Option<&Principal> {
        self.extras.as_ref()?.principal.as_ref()
    }

    /// Until when an attribute lasts, if not as long as the session.
    pub(crate) fn until(&self, name: &str) -> Option<Time> {
        self.extras.as_ref()?.lapses.get(name).copied()
    }

    /// The attributes that do not last as long as the session.
    pub(crate) fn lapses(&self) -> BTreeMap<Name, Time> {
        self.extras.as_ref().map(|extras| extras.lapses.clone()).unwrap_or_default()
    }

    /// Changes what only some sessions have.
    pub(crate) fn set_extras(&mut self, change: impl FnOnce(&mut Extras)) {
        let mut extras = self.extras.as_deref().cloned().unwrap_or_default();
        change(&mut extras);
        if self.extras.as_deref() != Some(&extras) {
            self.extras = (extras != Extras::default()).then(|| Arc::new(extras));
        }
    }

    /// The session without the attributes whose time is over.
    pub(crate) fn lapsed(self: &Arc<Self>, now: Time) -> Arc<Self> {
        let lapses = self.extras.as_ref().map(|extras| &extras.lapses);
        let over = |lapses: &BTreeMap<Name, Time>| lapses.values().any(|until| *until <= now);
        if !lapses.is_some_and(over) {
            return Arc::clone(self);
        }
        let mut record = Record::clone(self);
        let mut gone = Edits::new();
        record.set_extras(|extras| {
            extras.lapses.retain(|name, until| {
                let stays = *until > now;
                if !stays {
                    gone.insert(Arc::clone(name), None);
                }
                stays
            });
        });
        record.attributes = record.attributes.edited(&gone);
        Arc::new(record)
    }

    /// Notes an access that another transaction made: the later time holds.
    pub(crate) fn touch(&mut self, touch: Touch) {
        self.slice_end = self.slice_end.max(touch.slice_end);
        self.last_accessed = self.last_accessed.max(touch.last_accessed);
    }

    /// Files the session under the bucket of its expiry, or of the warning before it.
    pub(crate) fn file(&mut self, policy: &Policy, now: Time) {
        self.bucket = timeslice::bucket(self.expiry(policy), policy, now);
    }

    /// Files it earlier, if it is filed later than it should be. One that had another expiry before is
    /// to be told of at once, if a warning is due.
    pub(crate) fn file_earlier(&mut self, before: Option<Time>, policy: &Policy, now: Time) {
        let expiry = self.expiry(policy);
        let bucket = match expiry != before && timeslice::warns(expiry, policy, now) {
            true => now.as_secs(),
            false => timeslice::bucket(expiry, policy, now),
        };
        self.bucket = self.bucket.min(bucket);
    }

    /// About what it takes up in memory.
    pub(crate) fn weight(&self) -> usize {
        const RECORD: usize = 184; // with both allocations
        RECORD + self.attributes.as_bytes().len() + self.extras.as_ref().map_or(0, |e| e.weight())
    }

    /// What the session weighs against its limits.
    pub(crate) fn size(&self) -> Size {
        self.attributes.size()
    }
}

impl Extras {
    /// Until when an attribute lasts; `None`: as long as the session.
    pub(crate) fn set_lapse(&mut self, name: &Name, until: Option<Time>) {
        match until {
            Some(until) => self.lapses.insert(Arc::clone(name), until),
            None => self.lapses.remove(name),
        };
    }

    /// About what they take up in memory, and never less than encoded.
    pub(crate) fn weight(&self) -> usize {
        let principal = self.principal.as_ref().map_or(0, |p| p.name.len() + p.note.len());
        let lapses = self.lapses.keys().map(|name| 40 + name.len()).sum::<usize>();
        96 + principal + lapses
    }
}

/// What a session weighs against its limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub attributes: usize,
    /// Of names and encoded values.
    pub bytes: usize,
}

impl Size {
    /// The weight of one attribute.
    pub(crate) fn of(name: &str, value: &Value) -> Self {
        Size { attributes: 1, bytes: name.len() + value.as_bytes().len() }
    }
}

impl Size {
    /// The weight with one attribute changed.
    pub(crate) fn changed(self, before: Option<Size>, after: Option<Size>) -> Self {
        let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
        Size {
            attributes: self.attributes + after.attributes - before.attributes,
            bytes: self.bytes + after.bytes - before.bytes,
        }
    }
}

impl Sum for Size {
    fn sum<I: Iterator<Item = Size>>(sizes: I) -> Self {
        sizes.fold(Size::default(), |sum, size| Size {
            attributes: sum.attributes + size.attributes,
            bytes: sum.bytes + size.bytes,
        })
    }
}
