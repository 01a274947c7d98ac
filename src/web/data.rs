//! The sessions of requests: a container behind the tokens that requests carry.

use crate::web::ids::{RequestIds, Source};
use crate::{Container, Error, Key, Session, Token, Transaction};

/// What becomes of a token that means no session, when one is to be created.
///
/// Its session may have expired, been ended, or gone on under another key. Or there never was one: anybody
/// can make up a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownToken {
    /// The session gets a new token, and nothing is ever stored under the old one.
    #[default]
    Replace,
    /// The session is created under it. Do not: who makes a visitor come with a token of their choice
    /// shares the session with them (*session fixation*). The original did so. It is here for programs
    /// that must behave like it, and a key that was [rotated](Session::rotate) away is not adopted even so.
    Adopt,
}

/// Finds and makes the sessions of requests, in one container.
///
/// It is a cheap handle. Several containers may stand behind one token: see
/// [`beside`](RequestSessions::beside). The [module](crate::web) has an example.
#[derive(Clone, Debug)]
pub struct RequestSessions {
    container: Container,
    beside: Vec<Container>,
    unknown_token: UnknownToken,
}

impl RequestSessions {
    /// The sessions of a container.
    pub fn new(container: &Container) -> Self {
        RequestSessions {
            container: container.clone(),
            beside: Vec::new(),
            unknown_token: UnknownToken::default(),
        }
    }

    /// Says that another container has sessions under the same tokens: whoever has a session there is
    /// known here, and a session created here gets the same token.
    ///
    /// ```
    /// # use sessile::web::{Ids, RequestHead, RequestSessions};
    /// # use sessile::{Policy, Store};
    /// # let store = Store::memory()?;
    /// let (carts, tastes) =
    ///     (store.container_with("carts", Policy::new())?, store.container_with("tastes", Policy::new())?);
    /// let in_carts = RequestSessions::new(&carts).beside(&tastes);
    /// let in_tastes = RequestSessions::new(&tastes).beside(&carts);
    /// # let head = RequestHead { headers: &http::HeaderMap::new(), path: "/", query: None, form: None, https: true };
    /// # let mut ids = Ids::new().read(&head);
    /// # store.transact(|txn| {
    /// let cart = in_carts.session(txn, &mut ids, true)?;
    /// let taste = in_tastes.session(txn, &mut ids, true)?;
    /// # assert_eq!(cart.unwrap().key(), taste.unwrap().key());
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), sessile::Error>(())
    /// ```
    pub fn beside(mut self, container: &Container) -> Self {
        self.beside.push(container.clone());
        self
    }

    /// What becomes of a token that means no session.
    pub fn unknown_token(mut self, unknown_token: UnknownToken) -> Self {
        self.unknown_token = unknown_token;
        self
    }

    /// The container.
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// The session of a request. An access. If there is none, `create` says whether there is to be one:
    /// under the request's token, if that was made for this request or is known
    /// [beside](RequestSessions::beside), otherwise under a [new one](UnknownToken), which
    /// [`set_cookies`](RequestIds::set_cookies) hands out.
    ///
    /// Within [`Store::transact`](crate::Store::transact) the token that the first attempt made serves the
    /// next ones too.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`] if the container is full, [`Error::Random`], and as for
    /// [`Transaction::get`].
    pub fn session(
        &self,
        txn: &Transaction,
        ids: &mut RequestIds,
        create: bool,
    ) -> Result<Option<Session>, Error> {
        if let Some(session) = self.find(txn, ids)? {
            return Ok(Some(session));
        }
        if !create {
            return Ok(None);
        }
        if let Some(token) = ids.token()
            && self.is_trusted(txn, ids, token)?
        {
            match txn.create(&self.container, token) {
                Err(Error::RotatedKey { .. }) => {}
                created => return created.map(Some),
            }
        }
        let token = Token::random()?;
        let session = txn.create(&self.container, &token)?;
        ids.replace(token);
        Ok(Some(session))
    }

    /// Whether the request has a session. An access.
    ///
    /// # Errors
    ///
    /// As for [`Transaction::get`].
    pub fn has(&self, txn: &Transaction, ids: &RequestIds) -> Result<bool, Error> {
        Ok(self.find(txn, ids)?.is_some())
    }

    /// Empties the session of the request; it goes on under its token. An access. `false`: there is none,
    /// and nothing was done.
    ///
    /// # Errors
    ///
    /// As for [`Session::clear`].
    pub fn clear(&self, txn: &Transaction, ids: &RequestIds) -> Result<bool, Error> {
        match self.find(txn, ids)? {
            Some(session) => session.clear().map(|()| true),
            None => Ok(false),
        }
    }

    /// Access to any session of the container, whoever sent the request. It is a right of its own: lend it
    /// to what needs it, and the session of the request to the rest.
    pub fn by_key(&self) -> ByKey<'_> {
        ByKey(self)
    }

    /// Whether a token without a session here may get one.
    fn is_trusted(
        &self,
        txn: &Transaction,
        ids: &RequestIds,
        token: &Token,
    ) -> Result<bool, Error> {
        if ids.source() == Some(Source::New) || self.unknown_token == UnknownToken::Adopt {
            return Ok(true);
        }
        let key = token.key();
        for container in &self.beside {
            // In the time of grace after a rotation the old key leads to a session, too.
            if txn.peek(container, &key)?.is_some_and(|session| *session.key() == key) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn find(&self, txn: &Transaction, ids: &RequestIds) -> Result<Option<Session>, Error> {
        ids.token().map_or(Ok(None), |token| txn.get(&self.container, token))
    }
}

/// The sessions of a container by their keys. See [`RequestSessions::by_key`].
#[derive(Clone, Copy, Debug)]
pub struct ByKey<'a>(&'a RequestSessions);

impl ByKey<'_> {
    /// The live session under a key. An access. None is ever created.
    ///
    /// # Errors
    ///
    /// As for [`Transaction::get`].
    pub fn get(&self, txn: &Transaction, key: impl Into<Key>) -> Result<Option<Session>, Error> {
        txn.get(&self.0.container, key)
    }
}
