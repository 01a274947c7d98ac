//! Whose session it is, and under which key: what changes at a login.
//!
//! A handle only notes what is wanted. At the commit `rotation.rs` files the session under its new key,
//! and `principals.rs` ends what is ended with it.

use std::sync::Arc;

use crate::error::{Error, LimitKind};
use crate::model::container::Place;
use crate::model::key::Key;
use crate::model::policy::AtLimit;
use crate::model::session::Principal;
use crate::model::token::Token;
use crate::store::principals;
use crate::store::session::Session;

impl Session {
    /// Says whose session this is: a principal, such as a user, by the name that the application has for
    /// it, and a note by which people tell their devices apart. The last commit that says so wins. The
    /// principal's sessions can be [listed](crate::Transaction::sessions_of) and
    /// [ended](crate::Transaction::end_all_of) together.
    ///
    /// [`Policy::principal_limit`](crate::Policy) says how many live sessions a principal may have in
    /// the container. At the limit this fails, or, with
    /// [`EvictOldest`](crate::AtLimit::EvictOldest), the commit ends the one that was not used for the
    /// longest time.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`] if the principal has as many sessions as it may, or if name or note have more
    /// than 1,024 bytes; and those of every call.
    pub fn bind(&self, principal: &str, note: &str) -> Result<(), Error> {
        principals::check_bytes(principal, note)?;
        let policy = self.workspace.settings(self.place.0)?;
        let max = policy.principal_limit;
        let is_theirs = self.principal()?.is_some_and(|theirs| theirs == principal);
        if max > 0 && policy.at_principal_limit == AtLimit::Reject && !is_theirs {
            let sessions = self.workspace.sessions_of(self.place.0, principal)?;
            if sessions.len() as u64 >= max {
                return Err(Error::Limit { limit: LimitKind::PrincipalSessions, max });
            }
        }
        let principal = Principal { name: principal.into(), note: note.into() };
        self.with(|life, _| life.principal = Some(Some(principal)))
    }

    /// Says that this is nobody's session any more.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn unbind(&self) -> Result<(), Error> {
        self.with(|life, _| life.principal = Some(None))
    }

    /// Whose session this is; `None`: nobody's. No read.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn principal(&self) -> Result<Option<String>, Error> {
        self.with(|life, _| life.times().principal().map(|principal| principal.name.to_string()))
    }

    /// Ends the other sessions of this one's [principal](Session::bind), as they are at the commit:
    /// what a change of the password does. See
    /// [`end_all_of`](crate::Transaction::end_all_of). If this one has ended by then, that is a
    /// conflict; if it is nobody's, nothing happens.
    ///
    /// ```
    /// # use sessile::{Error, Policy, Store, Token};
    /// # let store = Store::memory()?;
    /// # let visitors = store.container_with("visitors", Policy::new())?;
    /// # let (cookie, fresh) = (Token::random()?, Token::random()?);
    /// # store.transact(|txn| txn.create(&visitors, "phone")?.bind("ada", "the app"))?;
    /// # store.transact(|txn| txn.create(&visitors, &cookie)?.bind("ada", "Firefox"))?;
    /// store.transact(|txn| {
    ///     let session = txn.get(&visitors, &cookie)?.ok_or(Error::Ended)?;
    ///     session.rotate(&fresh)?.end_others()
    /// })?;
    /// assert_eq!(store.begin()?.sessions_of(&visitors, "ada")?.len(), 1);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub fn end_others(&self) -> Result<(), Error> {
        let Some(principal) = self.principal()? else { return Ok(()) };
        self.with(|life, _| life.ends_others = Some((&*principal).into()))?;
        self.workspace.end_sessions_of(self.place.0, &principal, Some(self.id()))
    }

    /// Files the session under another key; the returned handle goes on with it.
    ///
    /// Do so whenever a visitor becomes somebody else, above all at a login: who knew the old key, or had
    /// made the visitor use it, knows the session no longer. The session keeps its attributes and times,
    /// and becomes another [generation](Session::id); the old one ends, with the reason
    /// [`Rotated`](crate::EndReason). All of it happens in one commit: at no moment, and after no crash,
    /// do both keys lead to the session, or none. What concurrent transactions change that have found it
    /// under the old key reaches it all the same; of two that rotate it, one
    /// [conflicts](crate::ConflictReason::Ended).
    ///
    /// Whoever comes with the old key gets `None`; [in the time of
    /// grace](crate::Policy::rotation_grace_secs), which the policy may give to requests that are on their way,
    /// the session under its new key. After that it is [told](crate::Event::RotatedKeyUsed). Nobody can
    /// create a session under the old key for as long as the session would have lived without another
    /// access, or the grace lasts.
    ///
    /// ```
    /// # use sessile::{Error, Policy, Store, Token};
    /// # let store = Store::memory()?;
    /// # let visitors = store.container_with("visitors", Policy::new())?;
    /// # let (cookie, fresh) = (Token::random()?, Token::random()?);
    /// # store.transact(|txn| txn.create(&visitors, &cookie)?.insert("cart", ["tea"]))?;
    /// // A visitor logs in.
    /// store.transact(|txn| {
    ///     let session = txn.get(&visitors, &cookie)?.ok_or(Error::Ended)?.rotate(&fresh)?;
    ///     session.insert("name", "Ada")
    /// })?;
    ///
    /// let txn = store.begin()?;
    /// assert!(txn.get(&visitors, &cookie)?.is_none());
    /// let session = txn.get(&visitors, &fresh)?.ok_or(Error::Ended)?;
    /// assert_eq!(session.keys()?, ["cart", "name"]);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Exists`] if a live session has the new key, [`Error::RotatedKey`] if that was given up
    /// itself, [`Error::Limit`] if it is too long, and those of every call.
    pub fn rotate(&self, key: impl Into<Key>) -> Result<Session, Error> {
        let place = (self.place.0, key.into());
        self.workspace.settings(place.0)?.check_key(&place.1)?;
        if self.workspace.forward(&place)?.is_some() {
            let container = self.workspace.container(place.0)?.name.to_string();
            return Err(Error::RotatedKey { container, session: place.1.fingerprint() });
        }
        self.move_to(place)
    }

    /// [Files](Session::rotate) the session under a new random [`Token`]: that is nobody's yet, so nothing
    /// is read for it.
    ///
    /// ```
    /// # use sessile::{Error, Policy, Store};
    /// # let store = Store::memory()?;
    /// # let visitors = store.container_with("visitors", Policy::new())?;
    /// let (guest, cookie) = store.transact(|txn| {
    ///     let (session, token) = txn.create_with_token(&visitors)?;
    ///     Ok((session.id(), token))
    /// })?.value;
    /// let fresh = store.transact(|txn| {
    ///     let session = txn.get(&visitors, &cookie)?.ok_or(Error::Ended)?;
    ///     Ok(session.rotate_token()?.1)
    /// })?.value;
    ///
    /// let txn = store.begin()?;
    /// assert!(txn.get(&visitors, &cookie)?.is_none());
    /// assert_ne!(txn.get(&visitors, &fresh)?.ok_or(Error::Ended)?.id(), guest);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Random`], and those of every call.
    pub fn rotate_token(&self) -> Result<(Session, Token), Error> {
        let token = Token::random()?;
        let place = (self.place.0, token.key());
        self.workspace.assume_absent(&place)?;
        Ok((self.move_to(place)?, token))
    }

    fn move_to(&self, place: Place) -> Result<Session, Error> {
        let id = self.workspace.door.chance.session_id();
        self.workspace.rotate(&self.place, self.id(), &place, id)?;
        Ok(Session::new(Arc::clone(&self.workspace), place, id))
    }
}
