//! The session of a request: looked up when it is asked for, changed in memory, committed once.
//!
//! ```text
//!   request      handler                                   answer
//!   cookie  -->  load .. get, insert, login ..  -->  commit, then the head with its cookie
//!                 |                                    |
//!                 reads the store, once                waits for the disk, once; not if only looked at
//! ```
//!
//! A handler has answered when its changes are committed, so it cannot run again: where others have
//! written the same attribute meanwhile, and no rule makes one value of the two, the later commit wins
//! that attribute, and the store [tells](crate::Event::Overruled) of it. What must be done exactly once
//! ([`take`](Session::take), [`flashes`](Session::flashes)) commits when it is called, and so does
//! [`transact`](Session::transact), whose closure may run again.
//!
//! Nothing here waits for the disk on a thread of the executor: a session that is not in memory is read
//! by a thread of the store's, and commits are awaited.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use http::Extensions;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::web::csrf;
use crate::web::ids::{Namespace, RequestIds};
use crate::web::layer::Settings;
use crate::web::visit::{Visit, Why};
use crate::{
    Amount, Counts, Error, Gathers, Holds, Key, Named, PrincipalSession, SessionId, Takes, Time,
    Transaction, Value,
};

/// The session of the request, as its handler sees it: changes are seen at once, and committed when the
/// handler has answered, before the answer is on its way.
///
/// A visitor who has no session reads nothing from it, and nothing is stored for one who only looks. The
/// first write begins a session, with a new token in the cookie.
///
/// Handles are cheap to clone, and those of one request are one session. With several
/// [layers](crate::web::SessionLayer) in one program, `R` says whose it is.
///
/// ```
/// use sessile::{Error, web::Session};
///
/// async fn add_to_cart(session: Session, fruit: String) -> Result<usize, Error> {
///     session.append("cart", fruit, 100)?;
///     Ok(session.get::<Vec<String>>("cart")?.unwrap_or_default().len())
/// }
/// ```
///
/// # Errors
///
/// Calls fail as those of [`sessile::Session`](crate::Session) do, which say more about each. A request that
/// was under way while its session got another token, as at a login, finds none; for a minute its writes fail
/// with [`Error::RotatedKey`], because a session of its own would take the place of that of the login. After
/// the answer is on its way, as in a handler of a WebSocket, they fail with [`Error::TransactionOver`] until
/// [`reload`](Session::reload) has begun anew.
pub struct Session<R = ()> {
    visit: Arc<Visit>,
    realm: PhantomData<fn() -> R>,
}

impl<R: 'static> Session<R> {
    pub(super) fn of(visit: &Arc<Visit>) -> Self {
        Session { visit: Arc::clone(visit), realm: PhantomData }
    }

    /// The session of a request, by what the [layer](crate::web::SessionLayer) has put among its
    /// extensions. Looks it up, unless somebody has done so before.
    ///
    /// # Errors
    ///
    /// [`Error::NoSessionLayer`], and those of a look-up.
    pub async fn load(extensions: &Extensions) -> Result<Self, Error> {
        let visit = Visit::among::<R>(extensions).ok_or(Error::NoSessionLayer)?;
        visit.load().await?;
        Ok(Session::of(&visit))
    }

    /// Which generation of which session this is; `None` as long as there is none.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn id(&self) -> Result<Option<SessionId>, Error> {
        self.read(|session| Ok(Some(session.id())))
    }

    /// Whether the visitor has a session.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn exists(&self) -> Result<bool, Error> {
        Ok(self.visit.stored()?.is_some())
    }

    /// What the session is filed under: for [`Store::begin`](crate::Store::begin) and what else the store
    /// can do. `None` as long as there is no session, or before what has given it another key is committed.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn key(&self) -> Result<Option<Key>, Error> {
        self.read(|session| Ok(Some(session.key().clone())))
    }

    /// Reads an attribute; `None` if it is absent: [`get`](crate::Session::get).
    ///
    /// # Errors
    ///
    /// [`Error::Type`] if it is no `T`, and those of every call.
    pub fn get<T: DeserializeOwned>(&self, name: impl Holds<T>) -> Result<Option<T>, Error> {
        self.read(|session| session.get(name))
    }

    /// Reads an attribute as it is encoded; `None` if it is absent.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn value(&self, name: impl Named) -> Result<Option<Value>, Error> {
        self.read(|session| session.value(name))
    }

    /// Whether there is an attribute of this name.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn contains(&self, name: impl Named) -> Result<bool, Error> {
        self.read(|session| session.contains(name))
    }

    /// The names of the attributes, in order.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn keys(&self) -> Result<Vec<String>, Error> {
        self.read(|session| session.keys())
    }

    /// How many attributes there are.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn len(&self) -> Result<usize, Error> {
        self.read(|session| session.len())
    }

    /// Whether there are no attributes.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.len()? == 0)
    }

    /// Whose session this is: who has [logged in](Session::login).
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn principal(&self) -> Result<Option<String>, Error> {
        self.read(|session| session.principal())
    }

    /// When the session was created.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn created(&self) -> Result<Option<Time>, Error> {
        self.read(|session| session.created().map(Some))
    }

    /// When its time will be over if the visitor does not come back; `None`: never, or there is none.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn expires(&self) -> Result<Option<Time>, Error> {
        self.read(|session| session.expires())
    }

    /// Sets an attribute to any serde value: [`insert`](crate::Session::insert).
    ///
    /// # Errors
    ///
    /// [`Error::Encode`], [`Error::Limit`], and those of every call.
    pub fn insert<V: Serialize>(&self, name: impl Takes<V>, value: V) -> Result<(), Error> {
        self.write(|session| session.insert(name, value))
    }

    /// The same for a while: [`insert_for`](crate::Session::insert_for).
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
        self.write(|session| session.insert_for(name, value, time))
    }

    /// Removes an attribute.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn remove(&self, name: impl Named) -> Result<(), Error> {
        self.read(|session| session.remove(name))
    }

    /// Removes all attributes. The session stays: see [`logout`](Session::logout).
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn clear(&self) -> Result<(), Error> {
        self.read(|session| session.clear())
    }

    /// Reads an attribute, the default if it is absent, and writes it back changed. If another request
    /// has changed it meanwhile the later commit wins: prefer [`add`](Session::add) and its kin, which
    /// merge, or [`transact`](Session::transact), which runs again.
    ///
    /// # Errors
    ///
    /// [`Error::Type`], [`Error::Encode`], [`Error::Limit`], and those of every call.
    pub fn update<T: DeserializeOwned + Serialize + Default>(
        &self,
        name: impl Holds<T>,
        change: impl FnOnce(&mut T),
    ) -> Result<(), Error> {
        self.write(|session| session.update(name, change))
    }

    /// Adds to a number; absent counts as zero. Merges with what other requests add.
    ///
    /// # Errors
    ///
    /// [`Error::Type`], [`Error::Limit`], and those of every call.
    pub fn add(&self, name: impl Counts, amount: impl Into<Amount>) -> Result<(), Error> {
        self.write(|session| session.add(name, amount))
    }

    /// Raises a number or string to `value` if it is less or absent. Merges.
    ///
    /// # Errors
    ///
    /// [`Error::Type`], [`Error::Encode`], [`Error::Limit`], and those of every call.
    pub fn max<V: Serialize>(&self, name: impl Takes<V>, value: V) -> Result<(), Error> {
        self.write(|session| session.max(name, value))
    }

    /// Lowers a number or string to `value` if it is greater or absent. Merges.
    ///
    /// # Errors
    ///
    /// As for [`max`](Session::max).
    pub fn min<V: Serialize>(&self, name: impl Takes<V>, value: V) -> Result<(), Error> {
        self.write(|session| session.min(name, value))
    }

    /// Puts an item into a set: a list without duplicates. Merges.
    ///
    /// # Errors
    ///
    /// [`Error::Type`], [`Error::Encode`], [`Error::Limit`], and those of every call.
    pub fn union<I: Serialize>(&self, name: impl Gathers<I>, item: I) -> Result<(), Error> {
        self.write(|session| session.union(name, item))
    }

    /// Appends an item to a list and keeps the last `cap` items. Merges: those of all requests are kept.
    ///
    /// # Errors
    ///
    /// As for [`union`](Session::union).
    pub fn append<I: Serialize>(
        &self,
        name: impl Gathers<I>,
        item: I,
        cap: usize,
    ) -> Result<(), Error> {
        self.write(|session| session.append(name, item, cap))
    }

    /// Sets an attribute unless it is there. Merges: of two, the first commit stays.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`], [`Error::Limit`], and those of every call.
    pub fn set_if_absent<V: Serialize>(&self, name: impl Takes<V>, value: V) -> Result<(), Error> {
        self.write(|session| session.set_if_absent(name, value))
    }

    /// Leaves a value for the next request that shows [`flashes`](Session::flashes), after a redirect.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`], [`Error::Limit`], and those of every call.
    pub fn flash(&self, value: impl Serialize) -> Result<(), Error> {
        self.write(|session| session.flash(value))
    }

    /// Gives the session a timeout of its own, and the cookie as long a life, so that it outlives the
    /// browser: "remember me". `None` takes that back. See
    /// [`set_timeout`](crate::Session::set_timeout).
    ///
    /// ```
    /// # use std::time::Duration;
    /// use sessile::{Error, web::Session};
    ///
    /// async fn login(session: Session, name: &str, remember_me: bool) -> Result<(), Error> {
    ///     // The password was right.
    ///     session.login(name, "Firefox on Linux").await?;
    ///     if remember_me {
    ///         session.set_timeout(Duration::from_secs(30 * 86_400))?;
    ///     }
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Answered`] if the cookie would come too late, and those of every call.
    pub fn set_timeout(&self, timeout: impl Into<Option<Duration>>) -> Result<(), Error> {
        let timeout = timeout.into();
        self.write(|session| session.set_timeout(timeout))?;
        self.visit.renew_cookie(timeout.filter(|timeout| !timeout.is_zero()))
    }

    /// Takes the flash values that wait, the oldest first: of two requests that do so at the same time
    /// exactly one gets them. **Commits**, with all that the handler has changed so far, unless there are
    /// none.
    ///
    /// # Errors
    ///
    /// [`Error::Type`] if one of them is no `T`, and those of [`transact`](Session::transact).
    pub async fn flashes<T: DeserializeOwned + Send>(&self) -> Result<Vec<T>, Error> {
        let flashes = self.take::<Vec<T>>(crate::Session::FLASHES).await?;
        Ok(flashes.unwrap_or_default())
    }

    /// Reads an attribute and removes it: of two requests that do so at the same time exactly one gets it.
    /// **Commits**, with all that the handler has changed so far, unless it is absent.
    ///
    /// # Errors
    ///
    /// [`Error::Type`] if it is no `T`, in which case it stays; and those of
    /// [`transact`](Session::transact).
    pub async fn take<T: DeserializeOwned + Send>(
        &self,
        name: impl Holds<T>,
    ) -> Result<Option<T>, Error> {
        if !self.contains(name.name())? {
            return Ok(None);
        }
        let name = name.name().to_owned();
        let taken = self.visit.transact(false, |session| session.take::<T>(&name)).await?;
        Ok(taken.flatten())
    }

    /// Runs a closure on the session as it is stored, **commits** it at once, and runs it again on a
    /// conflict: for what must not be decided by who comes later. What the handler has changed so far is
    /// committed before it. A visitor without a session gets one.
    ///
    /// ```
    /// use sessile::{Error, web::Session};
    ///
    /// async fn pay(session: Session, price: u64) -> Result<bool, Error> {
    ///     session.transact(|session| {
    ///         let credit: u64 = session.get("credit")?.unwrap_or_default();
    ///         let Some(rest) = credit.checked_sub(price) else { return Ok(false) };
    ///         session.insert("credit", rest)?;
    ///         Ok(true)
    ///     }).await
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// What the closure returns, and those of [`Transaction::commit`](crate::Transaction::commit).
    pub async fn transact<T: Send>(
        &self,
        work: impl Fn(&crate::Session) -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        Ok(self.visit.transact(true, work).await?.expect("it is created where it is absent"))
    }

    /// Commits what was changed so far, and goes on with what is stored then: in the middle of an answer
    /// that streams, or of a conversation over a WebSocket.
    ///
    /// # Errors
    ///
    /// Those of [`Transaction::commit`](crate::Transaction::commit). The changes are given up then.
    pub async fn commit(&self) -> Result<(), Error> {
        let done = self.visit.flush().await;
        let looked_up = self.visit.look_up().await;
        done.and(looked_up)
    }

    /// Gives up what was changed and not committed, and goes on with what is stored now.
    ///
    /// # Errors
    ///
    /// Those of a look-up.
    pub async fn reload(&self) -> Result<(), Error> {
        drop(self.visit.close());
        self.visit.look_up().await
    }

    /// Makes this the session of a user, by the name that the application has for them, and gives it a
    /// new token: who knew the old one, or had planted it, knows it no longer. It keeps its attributes.
    /// `note` tells the user's devices apart, for people.
    ///
    /// It is the application that asks for the password, before.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`] if the user has as many sessions as the
    /// [policy](crate::Policy::principal_limit) allows, [`Error::Answered`] if the cookie would come too
    /// late, and those of every call.
    pub async fn login(&self, principal: &str, note: &str) -> Result<(), Error> {
        let session = self.rotate()?;
        let (principal, note) = (principal.to_owned(), note.to_owned());
        // It may count the sessions of the user, which need not be in memory.
        self.visit.settings.store.spawn(move || session.bind(&principal, &note)).await
    }

    /// Gives the session a new token, whenever what its visitor may do has changed. The old one is worth
    /// nothing once the answer is on its way. A visitor without a session gets one.
    ///
    /// # Errors
    ///
    /// [`Error::Answered`] if the cookie would come too late, and those of every call.
    pub fn renew(&self) -> Result<(), Error> {
        self.rotate().map(drop)
    }

    fn rotate(&self) -> Result<crate::Session, Error> {
        match self.visit.stored_or_new(Why::Login)? {
            (session, Some(_)) => Ok(session),
            (session, None) => self.visit.rotate(&session),
        }
    }

    /// Ends the session: nobody ever sees it again, and the cookie is removed. It ends even if the handler
    /// fails after this. What is written after it begins another session.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn logout(&self) -> Result<(), Error> {
        self.visit.end()
    }

    /// Ends all sessions of the user, this one too, and those of a login that is under way elsewhere.
    /// **Commits** that at once; what else the handler has changed of the session goes with it.
    ///
    /// # Errors
    ///
    /// Those of [`Transaction::commit`](crate::Transaction::commit), and those of every call.
    pub async fn logout_everywhere(&self) -> Result<(), Error> {
        let Some(principal) = self.principal()? else { return self.logout() };
        let Settings { store, container, .. } = &*self.visit.settings;
        let container = container.clone();
        store.spawn_transact(move |txn| txn.end_all_of(&container, &principal)).await?;
        self.visit.has_ended();
        self.visit.look_up().await
    }

    /// Ends the other sessions of the user, as a change of the password should. **Commits**, with all
    /// that the handler has changed so far.
    ///
    /// # Errors
    ///
    /// Those of [`transact`](Session::transact).
    pub async fn logout_others(&self) -> Result<(), Error> {
        self.visit.flush().await?;
        self.visit.look_up().await?;
        let Some(key) = self.key()? else { return Ok(()) };
        let Settings { store, container, .. } = &*self.visit.settings;
        let container = container.clone();
        let others = move |txn: &Transaction| {
            txn.peek(&container, &key)?.map_or(Ok(()), |session| session.end_others())
        };
        store.spawn_transact(others).await.map(drop)
    }

    /// Where the user is logged in, the oldest session first: all that are stored, this one included if it
    /// is. Compare with [`id`](Session::id). Empty for who has not logged in.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub async fn devices(&self) -> Result<Vec<PrincipalSession>, Error> {
        let Some(principal) = self.principal()? else { return Ok(Vec::new()) };
        let Settings { store, container, .. } = &*self.visit.settings;
        let (txn, container) = (store.begin()?, container.clone());
        store.spawn(move || txn.sessions_of(&container, &principal)).await
    }

    /// Ends one of the user's other sessions; false if it is not there, or not theirs. **Commits** that at
    /// once.
    ///
    /// # Errors
    ///
    /// Those of [`Transaction::commit`](crate::Transaction::commit), and those of every call.
    pub async fn logout_device(&self, device: SessionId) -> Result<bool, Error> {
        let Some(principal) = self.principal()? else { return Ok(false) };
        let Settings { store, container, .. } = &*self.visit.settings;
        let container = container.clone();
        let end = move |txn: &Transaction| {
            let theirs = txn.sessions_of(&container, &principal)?;
            match theirs.into_iter().find(|theirs| theirs.id == device) {
                Some(theirs) => txn.remove(&container, theirs.key),
                None => Ok(false),
            }
        };
        Ok(store.spawn_transact(end).await?.value)
    }

    /// A token for the forms of a page, against requests that another site makes in the visitor's name
    /// (CSRF): put it into a hidden field, and [check](Session::is_csrf_token) it when the form comes back.
    ///
    /// It is made of the session's token, is another text each time, and holds until the session gets
    /// another token, as at a [login](Session::login). A visitor without a session gets one.
    ///
    /// # Errors
    ///
    /// [`Error::Random`], [`Error::Answered`], and those of every call.
    pub fn csrf_token(&self) -> Result<String, Error> {
        self.visit.stored_or_new(Why::Write)?;
        let token = self.visit.token().ok_or(Error::Ended)?;
        csrf::token(&token)
    }

    /// Whether this is a token that [`csrf_token`](Session::csrf_token) has made for this session.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn is_csrf_token(&self, text: &str) -> Result<bool, Error> {
        let is_there = self.exists()?;
        let token = self.visit.token().filter(|_| is_there);
        Ok(token.is_some_and(|token| csrf::is_token(text, &token)))
    }

    /// A URL of this program as a page should link to it: with the token in it, if that does not travel in
    /// cookies. See [`RequestIds::link`]. A visitor without a session gets one then.
    ///
    /// # Errors
    ///
    /// [`Error::Answered`], and those of every call.
    pub fn link(&self, url: &str) -> Result<String, Error> {
        match self.visit.settings.ids.uses(Namespace::Url) {
            true => self.carried(|ids| ids.link(url)),
            false => Ok(url.to_owned()),
        }
    }

    /// The field by which a form carries the token, as HTML, where that does not travel in cookies:
    /// [`RequestIds::hidden_field`]. A visitor without a session gets one. The layer sees it in forms that are
    /// sent with GET; those that are posted are their handlers' to read.
    ///
    /// # Errors
    ///
    /// [`Error::Answered`], and those of every call.
    pub fn hidden_field(&self) -> Result<String, Error> {
        self.carried(RequestIds::hidden_field)
    }

    fn carried<T>(
        &self,
        work: impl FnOnce(&mut RequestIds) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.visit.stored_or_new(Why::Write)?;
        self.visit.with_ids(work)
    }

    /// What goes with the session where there is one; nothing where there is none.
    fn read<T: Default>(
        &self,
        work: impl FnOnce(&crate::Session) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.visit.stored()?.map_or_else(|| Ok(T::default()), |session| work(&session))
    }

    /// What goes with the session; a new one where there is none.
    fn write<T>(&self, work: impl FnOnce(&crate::Session) -> Result<T, Error>) -> Result<T, Error> {
        let (session, new) = self.visit.stored_or_new(Why::Write)?;
        let done = work(&session);
        if done.is_err() {
            // Nobody gets a session for what was refused.
            new.map_or(Ok(()), |begun| self.visit.undo(begun))?;
        }
        done
    }
}

impl<R> Clone for Session<R> {
    fn clone(&self) -> Self {
        Session { visit: Arc::clone(&self.visit), realm: PhantomData }
    }
}

impl<R> fmt::Debug for Session<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.visit.stored() {
            Ok(Some(session)) => write!(f, "{session:?}"),
            _ => f.write_str("Session(none)"),
        }
    }
}
