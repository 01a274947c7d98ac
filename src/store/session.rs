//! A handle to one session within one transaction.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::model::attribute::{Counts, Gathers, Holds, Named, Takes};
use crate::model::attributes::Stamped;
use crate::model::clock::Time;
use crate::model::container::Place;
use crate::model::draft::Life;
use crate::model::key::Key;
use crate::model::policy::Policy;
use crate::model::session::SessionId;
use crate::model::value::{Amount, Op, Value};
use crate::store::workspace::Workspace;

/// One session within one transaction: one generation of its key, whoever takes the key later.
///
/// A handle is cheap to clone, may be shared between threads, and ends with its transaction. What
/// is written through it becomes true when the transaction commits.
///
/// # What is a read
///
/// Two transactions that write the same attribute conflict only if the second has *read* it
/// before. [`get`](Session::get), [`value`](Session::value), [`contains`](Session::contains),
/// [`take`](Session::take), [`update`](Session::update) and [`entry`](Session::entry) read one
/// attribute; [`keys`](Session::keys), [`len`](Session::len), [`is_empty`](Session::is_empty) and
/// [`iter`](Session::iter) read them all. Everything else reads nothing, and neither does reading back
/// what this transaction wrote.
///
/// # Errors
///
/// Every call but [`key`](Session::key), [`id`](Session::id), [`is_valid`](Session::is_valid) and
/// [`invalidate`](Session::invalidate) fails with [`Error::Ended`] if this transaction has ended
/// the session or its time is over; and like all calls on a transaction, with
/// [`Error::TransactionOver`], [`Error::SnapshotTooOld`] and the errors of the storage.
#[derive(Clone)]
pub struct Session {
    pub(crate) workspace: Arc<Workspace>,
    pub(crate) place: Place,
    id: SessionId,
}

impl Session {
    pub(crate) fn new(workspace: Arc<Workspace>, place: Place, id: SessionId) -> Self {
        Session { workspace, place, id }
    }

    /// What the session is filed under.
    pub fn key(&self) -> &Key {
        &self.place.1
    }

    /// Which generation of the key this is.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Whether the session lives and the transaction too.
    pub fn is_valid(&self) -> bool {
        self.with(|_, _| ()).is_ok()
    }

    /// Reads an attribute; `None` if it is absent. It is named by an [`Attribute`](crate::Attribute),
    /// which says what it holds, or by text, as in every call.
    ///
    /// What happens if it holds no `T` is for the policy to say: see
    /// [`OnMismatch`](crate::OnMismatch).
    ///
    /// # Errors
    ///
    /// [`Error::Type`] if it is no `T`, and those of every call.
    pub fn get<T: DeserializeOwned>(&self, name: impl Holds<T>) -> Result<Option<T>, Error> {
        Ok(self.read(name.name())?.map(|(value, _)| value))
    }

    /// Reads an attribute as it is encoded; `None` if it is absent.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn value(&self, name: impl Named) -> Result<Option<Value>, Error> {
        self.with(|life, _| life.read(name.name()))
    }

    /// Whether there is an attribute of this name. A read.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn contains(&self, name: impl Named) -> Result<bool, Error> {
        Ok(self.value(name)?.is_some())
    }

    /// Sets an attribute to any serde value. Reads nothing: without a read before it this is a
    /// *blind* write, and of two of those the later commit wins.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`], [`Error::Limit`], and those of every call.
    pub fn insert<V: Serialize>(&self, name: impl Takes<V>, value: V) -> Result<(), Error> {
        let value = encode(name.name(), &value)?;
        self.put(name, Some(value), |_, _| None)
    }

    /// The same for a while: after that time the attribute is absent, as if it had been removed. To
    /// [`insert`](Session::insert) it again makes it last as long as the session; an
    /// [`update`](Session::update) or a merging write changes the value and not its time.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use sessile::{Error, ManualClock, Options, Policy, Time};
    /// let clock = ManualClock::new(Time::from_secs(1_000_000_000));
    /// let store = Options::new().clock(clock.clone()).memory()?;
    /// let visitors = store.container_with("visitors", Policy::new().timeout_mins(20))?;
    /// store.transact(|txn| {
    ///     let session = txn.get_or_create(&visitors, "ada")?;
    ///     session.insert_for("code", 271_828, Duration::from_secs(120))
    /// })?;
    ///
    /// clock.advance_secs(120);
    /// let txn = store.begin()?;
    /// let session = txn.get(&visitors, "ada")?.ok_or(Error::Ended)?;
    /// assert_eq!(session.get::<u32>("code")?, None);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// A transaction goes on seeing what it saw at first. If it has read the attribute, and writes or
    /// [requires](Session::require) it when its time is over, it conflicts.
    ///
    /// # Errors
    ///
    /// As for [`insert`](Session::insert).
    pub fn insert_for<V: Serialize>(
        &self,
        name: impl Takes<V>,
        value: V,
        time: Duration,
    ) -> Result<(), Error> {
        let value = encode(name.name(), &value)?;
        self.put(name, Some(value), |_, now| Some(now.plus(time)))
    }

    /// Sets an attribute to a value that is encoded already.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`], and those of every call.
    pub fn insert_value(&self, name: impl Named, value: Value) -> Result<(), Error> {
        self.put(name, Some(value), |_, _| None)
    }

    /// Removes an attribute. Reads nothing.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn remove(&self, name: impl Named) -> Result<(), Error> {
        self.put(name, None, |_, _| None)
    }

    /// Reads an attribute and removes it. Of two transactions that take it exactly one gets it, whatever
    /// rule or resolver the policy has: the other conflicts, and run again finds it gone.
    ///
    /// # Errors
    ///
    /// [`Error::Type`] if it is no `T`, in which case it stays; and those of every call.
    pub fn take<T: DeserializeOwned>(&self, name: impl Holds<T>) -> Result<Option<T>, Error> {
        let name = name.name();
        while let Some((value, read)) = self.read(name)? {
            let require = |life: &mut Life| {
                if !life.changes.owns(name) {
                    life.required.insert(name.into());
                }
            };
            // Another thread that has a handle, too, may have been faster.
            if self.remove_read(name, &read, require)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// Reads an attribute, or its default, changes it, and writes it back; if it lasts for a while only,
    /// it lasts no longer for that. A concurrent change of the attribute is a conflict, so that none is
    /// lost.
    ///
    /// ```
    /// # use sessile::{Policy, Store};
    /// # let store = Store::memory()?;
    /// # let carts = store.container_with("carts", Policy::new())?;
    /// store.transact(|txn| {
    ///     let session = txn.get_or_create(&carts, "ada")?;
    ///     session.update("cart", |cart: &mut Vec<String>| cart.push("tea".to_owned()))
    /// })?;
    /// # Ok::<(), sessile::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Type`], [`Error::Encode`], [`Error::Limit`], and those of every call.
    pub fn update<T: DeserializeOwned + Serialize + Default>(
        &self,
        name: impl Holds<T>,
        change: impl FnOnce(&mut T),
    ) -> Result<(), Error> {
        let mut value = self.read(name.name())?.map(|(value, _)| value).unwrap_or_default();
        change(&mut value);
        let value = encode(name.name(), &value)?;
        self.put(name, Some(value), |until, _| until)
    }

    /// One attribute, to be filled if it is absent. A read.
    ///
    /// ```
    /// # use sessile::{Policy, Store};
    /// # let store = Store::memory()?;
    /// # let visitors = store.container_with("visitors", Policy::new())?;
    /// # let txn = store.begin()?;
    /// # let session = txn.create(&visitors, "ada")?;
    /// let theme = session.entry("theme").or_insert("light".to_owned())?;
    /// assert_eq!(theme, "light");
    /// assert_eq!(session.entry("theme").or_insert("dark".to_owned())?, "light");
    /// # Ok::<(), sessile::Error>(())
    /// ```
    pub fn entry<N: Named>(&self, name: N) -> Entry<'_, N> {
        Entry { session: self, name }
    }

    /// Sets several attributes, to values of one type. An empty iterator writes nothing, and leaves
    /// `last_modified` alone.
    ///
    /// # Errors
    ///
    /// As for [`insert`](Session::insert); nothing is written then.
    pub fn extend<K: AsRef<str>, T: Serialize>(
        &self,
        attributes: impl IntoIterator<Item = (K, T)>,
    ) -> Result<(), Error> {
        let mut encoded = Vec::new();
        for (name, value) in attributes {
            let value = encode(name.as_ref(), &value)?;
            encoded.push((name, value));
        }
        if encoded.is_empty() {
            return self.with(|_, _| ());
        }
        let names: Vec<_> = encoded.iter().map(|(name, _)| name.as_ref().to_owned()).collect();
        self.write(&names, |life, now| {
            for (name, value) in encoded {
                life.changes.put(name.as_ref(), Some(value), &life.reads, now);
            }
            true
        })
        .map(|_| ())
    }

    /// Removes every attribute that is stored at commit.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn clear(&self) -> Result<(), Error> {
        self.with(|life, now| life.changes.clear(&life.reads, now))
    }

    /// Adds to a number; absent counts as zero. Merges with concurrent additions.
    ///
    /// # Errors
    ///
    /// [`Error::Type`] if the attribute is no number or the sum cannot be stored, [`Error::Limit`],
    /// and those of every call.
    pub fn add(&self, name: impl Counts, amount: impl Into<Amount>) -> Result<(), Error> {
        self.merge(name, Op::Add(amount.into()), "a number with room for the sum")
    }

    /// Raises a number or string to `value` if it is less or absent. Merges.
    ///
    /// # Errors
    ///
    /// [`Error::Type`] if the two cannot be compared, [`Error::Encode`], [`Error::Limit`], and those
    /// of every call.
    pub fn max<V: Serialize>(&self, name: impl Takes<V>, value: V) -> Result<(), Error> {
        let value = encode(name.name(), &value)?;
        self.merge(name, Op::Max(value), "two numbers or two strings")
    }

    /// Lowers a number or string to `value` if it is greater or absent. Merges.
    ///
    /// # Errors
    ///
    /// [`Error::Type`] if the two cannot be compared, [`Error::Encode`], [`Error::Limit`], and those
    /// of every call.
    pub fn min<V: Serialize>(&self, name: impl Takes<V>, value: V) -> Result<(), Error> {
        let value = encode(name.name(), &value)?;
        self.merge(name, Op::Min(value), "two numbers or two strings")
    }

    /// Puts an item into a set: a list without duplicates, in an order of its own. Merges.
    ///
    /// # Errors
    ///
    /// [`Error::Type`] if the attribute is no list, [`Error::Encode`], [`Error::Limit`], and those
    /// of every call.
    pub fn union<I: Serialize>(&self, name: impl Gathers<I>, item: I) -> Result<(), Error> {
        let items = vec![encode(name.name(), &item)?];
        self.merge(name, Op::Union(items), "a list")
    }

    /// Appends an item to a list and keeps the last `cap` items. Merges: concurrent items are all
    /// kept, in the order of the commits.
    ///
    /// # Errors
    ///
    /// [`Error::Type`] if the attribute is no list, [`Error::Encode`], [`Error::Limit`], and those
    /// of every call.
    pub fn append<I: Serialize>(
        &self,
        name: impl Gathers<I>,
        item: I,
        cap: usize,
    ) -> Result<(), Error> {
        let items = vec![encode(name.name(), &item)?];
        self.merge(name, Op::Append { items, cap }, "a list")
    }

    /// Sets an attribute unless it is there. Merges: of two, the first commit stays.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`], [`Error::Limit`], and those of every call.
    pub fn set_if_absent<V: Serialize>(&self, name: impl Takes<V>, value: V) -> Result<(), Error> {
        let value = encode(name.name(), &value)?;
        self.merge(name, Op::SetIfAbsent(value), "anything")
    }

    /// The names of the attributes, in order. Reads them all.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn keys(&self) -> Result<Vec<String>, Error> {
        let names = self.with(|life, _| life.read_names())?;
        Ok(names.iter().map(|name| name.to_string()).collect())
    }

    /// How many attributes there are. Reads them all.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn len(&self) -> Result<usize, Error> {
        self.with(|life, _| life.read_names().len())
    }

    /// Whether there are no attributes. Reads them all.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.len()? == 0)
    }

    /// The attributes, in the order of their names. Reads them all.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn iter(&self) -> Result<impl Iterator<Item = (String, Value)> + use<>, Error> {
        let attributes = self.with(|life, _| life.read_all())?;
        let owned = |(name, attribute): (&str, Stamped)| (name.to_owned(), attribute.value);
        Ok(attributes.iter().map(owned).collect::<Vec<_>>().into_iter())
    }

    /// Makes the commit fail if the attribute has changed by then, although it is not written
    /// here: for a decision that rests on it.
    ///
    /// An end may rest on it as well. Where a session is replaced by another one, as at a login,
    /// this keeps what others write meanwhile from being lost with it:
    ///
    /// ```
    /// # use sessile::{Error, Policy, Store};
    /// # let store = Store::memory()?;
    /// # let visitors = store.container_with("visitors", Policy::new())?;
    /// # store.transact(|txn| txn.create(&visitors, "guest")?.add("apples", 1))?;
    /// let txn = store.begin()?;
    /// let guest = txn.get(&visitors, "guest")?.ok_or(Error::Ended)?;
    /// guest.require("apples")?;
    /// txn.create(&visitors, "ada")?.insert("apples", guest.get::<u32>("apples")?)?;
    /// guest.invalidate()?;
    ///
    /// // Somebody puts another apple into the cart that is being moved.
    /// store.transact(|txn| txn.get_or_create(&visitors, "guest")?.add("apples", 1))?;
    /// assert!(txn.commit().is_err_and(|error| error.is_retryable()));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn require(&self, name: impl Named) -> Result<(), Error> {
        self.with(|life, _| {
            life.required.insert(name.name().into());
        })
    }

    /// Ends the session; does nothing if it has ended or expired.
    ///
    /// # Errors
    ///
    /// Those of every call but [`Error::Ended`].
    pub fn invalidate(&self) -> Result<(), Error> {
        match self.with(|life, _| life.ended = true) {
            Ok(()) | Err(Error::Ended) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives the session a timeout of its own in place of the policy's, rounded up to whole seconds;
    /// zero: it does not expire by not being used. `None` gives it that of the policy again. The
    /// policy's absolute timeout holds all the same.
    ///
    /// A timeout counts from the last access, and setting it is none. A longer one holds from the commit
    /// on. Of two transactions that set it the later commit wins.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use sessile::{Error, Policy, Store};
    /// # let store = Store::memory()?;
    /// let visitors = store.container_with("visitors", Policy::new().timeout_mins(20))?;
    /// store.transact(|txn| {
    ///     let session = txn.create(&visitors, "ada")?;
    ///     session.set_timeout(Duration::from_secs(30 * 86_400)) // "remember me"
    /// })?;
    ///
    /// let txn = store.begin()?;
    /// let session = txn.get(&visitors, "ada")?.ok_or(Error::Ended)?;
    /// assert_eq!(session.timeout()?, Some(Duration::from_secs(30 * 86_400)));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn set_timeout(&self, timeout: impl Into<Option<Duration>>) -> Result<(), Error> {
        let secs = |time: Duration| time.as_secs().saturating_add((time.subsec_nanos() > 0).into());
        let timeout = timeout.into().map(secs);
        self.with(|life, _| life.changes.timeout = Some(timeout))
    }

    /// The timeout of its own, if it has one; zero: it does not expire by not being used.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn timeout(&self) -> Result<Option<Duration>, Error> {
        self.with(|life, _| life.timeout_secs().map(Duration::from_secs))
    }

    /// Notes that the session is used, for show: `last_accessed` only. Its life is lengthened by
    /// [`Transaction::get`](crate::Transaction::get).
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn touch(&self) -> Result<(), Error> {
        self.with(|life, now| life.touch(now))
    }

    /// When the session was created.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn created(&self) -> Result<Time, Error> {
        self.with(|life, _| life.base.created)
    }

    /// When it was last accessed: rewritten only when more than 30 s old.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn last_accessed(&self) -> Result<Time, Error> {
        self.with(|life, _| life.last_accessed())
    }

    /// When one of its attributes was last written; `None` if none ever was.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn last_modified(&self) -> Result<Option<Time>, Error> {
        self.with(|life, _| life.last_modified())
    }

    /// When its time will be over if nobody accesses it any more; `None`: never.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn expires(&self) -> Result<Option<Time>, Error> {
        self.with_policy(|life, policy, _| life.expires(policy))
    }

    /// Sets an attribute, or removes it. The closure is told until when what is there lasts, and the
    /// time, and says until when this is to last: as long as the session, if it says nothing.
    fn put(
        &self,
        name: impl Named,
        value: Option<Value>,
        until: impl FnOnce(Option<Time>, Time) -> Option<Time>,
    ) -> Result<(), Error> {
        let (name, rule) = (name.name(), name.rule());
        self.write(&[name], |life, now| {
            let until = until(life.changes.until(&life.base, name), now);
            life.changes.put(name, value, &life.reads, now);
            life.changes.last(name, until);
            rule.into_iter().for_each(|rule| life.changes.rule(name, rule));
            true
        })
        .map(|_| ())
    }

    fn merge(&self, name: impl Named, op: Op, expected: &'static str) -> Result<(), Error> {
        let name = name.name();
        let fits = self.write(&[name], |life, now| {
            // What is seen must fit, but seeing it is no read.
            life.changes.merge(name, op, &life.base.attributes, now)
        })?;
        if fits {
            return Ok(());
        }
        let found = self.with(|life, _| life.changes.value(&life.base.attributes, name))?;
        let found = found.map_or("nothing", |value| value.kind());
        Err(Error::Type { attribute: name.to_owned(), found, expected })
    }

    /// Writes under these names, and takes it back if a limit is passed.
    fn write<N: AsRef<str>>(
        &self,
        names: &[N],
        work: impl FnOnce(&mut Life, Time) -> bool,
    ) -> Result<bool, Error> {
        self.with_policy(|life, policy, now| {
            let write = |name: &N| life.changes.writes.get(name.as_ref()).cloned();
            let before: Vec<_> = names.iter().map(write).collect();
            let modified = life.changes.modified;
            let size = life.changes.size(&life.base.attributes);
            let done = work(life, now);
            let value = |name: &N| life.changes.value(&life.base.attributes, name.as_ref());
            let written = names.iter().filter_map(value);
            let depth = written.map(|value| policy.check_depth(&value)).find(Result::is_err);
            let within = depth.unwrap_or_else(|| {
                policy.check_size(size, life.changes.size(&life.base.attributes))
            });
            if within.is_err() {
                for (name, before) in names.iter().zip(before) {
                    life.changes.undo(name.as_ref(), before, modified);
                }
            }
            within.map(|()| done)
        })?
    }

    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Life, Time) -> T) -> Result<T, Error> {
        self.with_policy(|life, _, now| work(life, now))
    }

    pub(crate) fn with_policy<T>(
        &self,
        work: impl FnOnce(&mut Life, &Policy, Time) -> T,
    ) -> Result<T, Error> {
        self.workspace.with_draft(&self.place, |draft, policy, now| {
            let life = draft.generation(self.id).filter(|life| life.is_live(policy, now));
            Ok(work(life.ok_or(Error::Ended)?, policy, now))
        })?
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({})", self.place.1.fingerprint())
    }
}

/// One attribute, to be filled if it is absent; made by [`Session::entry`].
#[derive(Debug)]
pub struct Entry<'a, N> {
    session: &'a Session,
    name: N,
}

impl<N: Named> Entry<'_, N> {
    /// The value; this one, which is inserted, if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Type`], [`Error::Encode`], [`Error::Limit`], and those of every call.
    pub fn or_insert<T: DeserializeOwned + Serialize>(self, value: T) -> Result<T, Error>
    where
        N: Holds<T>,
    {
        self.or_insert_with(|| value)
    }

    /// The value; what the closure makes, which is inserted, if there is none.
    ///
    /// # Errors
    ///
    /// As for [`or_insert`](Entry::or_insert).
    pub fn or_insert_with<T: DeserializeOwned + Serialize>(
        self,
        make: impl FnOnce() -> T,
    ) -> Result<T, Error>
    where
        N: Holds<T>,
    {
        if let Some((value, _)) = self.session.read(self.name.name())? {
            return Ok(value);
        }
        let value = make();
        let encoded = encode(self.name.name(), &value)?;
        self.session.put(self.name, Some(encoded), |_, _| None)?;
        Ok(value)
    }
}

fn encode<T: Serialize + ?Sized>(name: &str, value: &T) -> Result<Value, Error> {
    Value::of(value).ok_or_else(|| Error::Encode { attribute: name.to_owned() })
}
