//! Looking into a store, whoever has it open.

use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::embedded::check::{self, Checked, Problem};
use crate::engine::embedded::disk::LocalDisk;
use crate::engine::embedded::viewing::{ViewedStore, Viewing};
use crate::error::Error;
use crate::model::clock::{Clock as _, SystemClock, Time};
use crate::model::container::ContainerState;
use crate::model::key::Key;
use crate::model::policy::Policy;
use crate::model::session::{Record, Revision, SessionId};
use crate::model::value::Value;
use crate::store::check::check_meaning;
use crate::store::filter::Filter;

/// One committed state of a store, looked at from outside.
///
/// The store may be closed, or open in this or another process, which goes on committing; or its
/// process may have died. Nothing in its directory is changed or made, not even a time stamp other
/// than that of the last access, and nobody is kept from opening it. Everything that was committed
/// before the viewer was opened is seen, what came later is not.
///
/// Keep it for a short time. While a store is in use, what a viewer sees keeps space in its files from
/// being used again. And if a store whose process had died is opened while it is looked at, the
/// viewer says [`Error::Busy`] from then on: open another.
///
/// ```
/// use sessile::{Policy, Store, Viewer};
///
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("sessions");
/// let store = Store::open(&path)?;
/// let visitors = store.container_with("visitors", Policy::new().timeout_mins(20))?;
/// store.transact(|txn| txn.create(&visitors, "ada")?.insert("name", "Ada Lovelace"))?;
///
/// // Perhaps in another process:
/// let viewer = Viewer::open(&path)?;
/// for session in viewer.sessions("visitors")? {
///     let session = session?;
///     assert_eq!(session.key().as_bytes(), b"ada");
///     assert!(session.attributes().all(|attribute| attribute.name == "name"));
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Viewer {
    viewing: Arc<Viewing>,
    /// When it was opened: which attributes have lapsed is asked of this.
    now: Time,
}

impl Viewer {
    /// Looks at the store in a directory.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] if the store changes too fast to be looked at, or is being opened by a process
    /// that repairs it: try again. [`Error::NotAStore`], [`Error::Format`], [`Error::Corrupt`],
    /// [`Error::Storage`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let viewing = Viewing::open(Arc::new(LocalDisk), path.as_ref())?;
        // The store's time never goes back.
        let now = SystemClock::new().wall().max(viewing.store().time);
        Ok(Viewer { viewing: Arc::new(viewing), now })
    }

    /// Checks everything in a store that can be checked without changing it. It reads all of it.
    ///
    /// # Errors
    ///
    /// What keeps from checking, as for [`open`](Viewer::open). What is damaged is a
    /// [problem](Checked::problems).
    pub fn check(path: impl AsRef<Path>) -> Result<Checked, Error> {
        let mut checked = check::check(Arc::new(LocalDisk), path.as_ref())?;
        let is_file = |problem: &Problem| matches!(problem, Problem::File { .. });
        if !checked.problems.iter().any(is_file) {
            check_meaning(&*Viewer::open(path)?.viewing, &mut checked)?;
        }
        Ok(checked)
    }

    /// What is known of the store itself.
    pub fn store(&self) -> &ViewedStore {
        self.viewing.store()
    }

    /// The containers, in the order in which they were made.
    pub fn containers(&self) -> Vec<ViewedContainer> {
        let viewed = |state: &Arc<ContainerState>| ViewedContainer {
            name: state.name.to_string(),
            policy: Policy::clone(&state.policy),
            count: state.count,
        };
        self.viewing.containers.values().map(viewed).collect()
    }

    /// The session under a key, expired or not.
    ///
    /// # Errors
    ///
    /// [`Error::NoContainer`]; [`Error::Busy`], [`Error::Corrupt`], [`Error::Storage`].
    pub fn session(
        &self,
        container: &str,
        key: impl Into<Key>,
    ) -> Result<Option<ViewedSession>, Error> {
        let container = self.container(container)?;
        let place = (container.id, key.into());
        let record = self.viewing.read(&place)?;
        Ok(record.map(|record| ViewedSession::new(place.1, &record, &container.policy, self.now)))
    }

    /// Walks through all sessions of a container, expired ones too, in the order of their keys. Those
    /// of which the record is damaged are left out, and [counted](Viewer::damaged).
    ///
    /// # Errors
    ///
    /// [`Error::NoContainer`]. On the way as for [`session`](Viewer::session); then it ends.
    pub fn sessions(&self, container: &str) -> Result<ViewedSessions, Error> {
        let container = Arc::clone(self.container(container)?);
        let (page, next) = (VecDeque::new(), Some(Key::from("")));
        let (viewing, now) = (Arc::clone(&self.viewing), self.now);
        Ok(ViewedSessions { viewing, container, now, filter: None, page, next })
    }

    /// Walks through the sessions of a container that pass a filter at `now`, as
    /// [`sessions`](Viewer::sessions) does through all.
    ///
    /// # Errors
    ///
    /// As for [`sessions`](Viewer::sessions).
    pub fn find(
        &self,
        container: &str,
        filter: Filter,
        now: Time,
    ) -> Result<ViewedSessions, Error> {
        let sessions = self.sessions(container)?;
        Ok(ViewedSessions { filter: Some((filter, now)), ..sessions })
    }

    /// The time by which sessions are to be judged here: that of the wall clock, but not before the
    /// store's.
    pub fn now(&self) -> Time {
        SystemClock::new().wall().max(self.store().time)
    }

    /// How many sessions were left out so far because their record is damaged.
    pub fn damaged(&self) -> u64 {
        self.viewing.damaged()
    }

    pub(crate) fn viewing(&self) -> &Arc<Viewing> {
        &self.viewing
    }

    fn container(&self, name: &str) -> Result<&Arc<ContainerState>, Error> {
        let mut containers = self.viewing.containers.values();
        containers
            .find(|state| &*state.name == name)
            .ok_or_else(|| Error::NoContainer { name: name.to_owned() })
    }
}

impl fmt::Debug for Viewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Viewer(at {})", self.store().revision)
    }
}

/// A container, as a [`Viewer`] sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ViewedContainer {
    /// Its name.
    pub name: String,
    /// Its settings.
    pub policy: Policy,
    /// How many sessions have not ended. Some may have expired and await the sweep.
    pub count: u64,
}

/// A session, as a [`Viewer`] sees it. Looking at it is no access: it lives no longer by it.
pub struct ViewedSession {
    key: Key,
    record: Arc<Record>,
    expires: Option<Time>,
}

impl ViewedSession {
    fn new(key: Key, record: &Arc<Record>, policy: &Policy, now: Time) -> Self {
        let expires = record.expiry(policy);
        ViewedSession { key, record: record.lapsed(now), expires }
    }

    /// What it is filed under. Perhaps a secret: show people its
    /// [fingerprint](Key::fingerprint).
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Its id.
    pub fn id(&self) -> SessionId {
        self.record.id
    }

    /// The last commit that changed anything of it, accesses included.
    pub fn revision(&self) -> Revision {
        self.record.revision
    }

    /// When it was created.
    pub fn created(&self) -> Time {
        self.record.created
    }

    /// When it was last accessed, to within 30 seconds.
    pub fn last_accessed(&self) -> Time {
        self.record.last_accessed
    }

    /// When an attribute was last written, if ever.
    pub fn last_modified(&self) -> Option<Time> {
        self.record.last_modified
    }

    /// The timeout of its own, if it has one in place of the container's; zero: none.
    pub fn timeout(&self) -> Option<Duration> {
        self.record.timeout_secs().map(Duration::from_secs)
    }

    /// When its time is over, or was; `None`: never.
    pub fn expires(&self) -> Option<Time> {
        self.expires
    }

    /// Whether its time is over at `now`.
    pub fn is_expired(&self, now: Time) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    /// The principal that it is bound to, if it is.
    pub fn principal(&self) -> Option<&str> {
        self.record.principal().map(|principal| &*principal.name)
    }

    /// The application's note on the device that it was bound with.
    pub fn principal_note(&self) -> Option<&str> {
        self.record.principal().map(|principal| &*principal.note)
    }

    /// The timeout of its own in seconds, if it has one; zero: it is never too long unused.
    pub fn timeout_secs(&self) -> Option<u64> {
        self.record.timeout_secs()
    }

    /// How many attributes it has.
    pub fn attribute_count(&self) -> usize {
        self.record.size().attributes
    }

    /// The bytes of the names and encoded values of its attributes: what
    /// [`session_bytes_max`](Policy::session_bytes_max) bounds.
    pub fn bytes(&self) -> usize {
        self.record.size().bytes
    }

    /// Its attributes, in the order of their names, without those whose time was over when the viewer
    /// was opened.
    pub fn attributes(&self) -> impl Iterator<Item = ViewedAttribute> {
        self.record.attributes.iter().map(|(name, attribute)| ViewedAttribute {
            name: name.to_owned(),
            value: attribute.value,
            revision: attribute.revision,
            until: self.record.until(name),
        })
    }
}

/// Shows what identifies it, and no attributes.
impl fmt::Debug for ViewedSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ViewedSession({}, {})", self.key().fingerprint(), self.revision())
    }
}

/// An attribute, as a [`Viewer`] sees it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ViewedAttribute {
    /// Its name.
    pub name: String,
    /// Its value; `Debug` shows the kind only.
    pub value: Value,
    /// The commit that last wrote it.
    pub revision: Revision,
    /// Until when it lasts, if not as long as the session.
    pub until: Option<Time>,
}

const PAGE: usize = 256;

/// The sessions of a container; see [`Viewer::sessions`] and [`Viewer::find`].
pub struct ViewedSessions {
    viewing: Arc<Viewing>,
    container: Arc<ContainerState>,
    now: Time,
    filter: Option<(Filter, Time)>,
    page: VecDeque<(Key, Arc<Record>)>,
    /// Where the next page begins; `None` once the walk has ended.
    next: Option<Key>,
}

impl Iterator for ViewedSessions {
    type Item = Result<ViewedSession, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, record)) = self.page.pop_front() {
                let policy = &self.container.policy;
                let passes = |(filter, now): &(Filter, Time)| filter.matches(&record, policy, *now);
                if !self.filter.as_ref().is_none_or(passes) {
                    continue;
                }
                return Some(Ok(ViewedSession::new(key, &record, policy, self.now)));
            }
            let from = self.next.take()?;
            match self.viewing.page(self.container.id, &from, PAGE) {
                Ok((page, next)) => (self.page, self.next) = (page.into(), next),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl fmt::Debug for ViewedSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ViewedSessions")
    }
}
