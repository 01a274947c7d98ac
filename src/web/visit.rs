//! One request's visit to the store: what all handles of its session share.
//!
//! It is *opened* when somebody asks for the session, with a transaction that has let go of its snapshot,
//! because a handler may take its time; it may be opened again in the middle, after a commit; and it is
//! *finished* when the handler has answered:
//!
//! ```text
//!   the handler ...                            what is committed      the cookie
//!   answered                                   everything             of a new token; sent again in time
//!   failed                                     a logout, at most      as it was
//!   was overtaken by an end elsewhere          nothing                removed
//!   met a token that means nothing             -                      removed
//!   met one that did until a moment ago        -                      left alone: the new one may be there
//! ```

use std::marker::PhantomData;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Extensions, HeaderValue};

use crate::web::ids::{RequestIds, Source};
use crate::web::layer::{Conflicts, Failures, Settings};
use crate::{ConflictReason, Error, Event, Savepoint, Session, Time, Token, Transaction};

/// What all handles of one request's session share.
pub(super) struct Visit {
    pub(super) settings: Arc<Settings>,
    /// Whether the request lengthens the session's life.
    is_activity: bool,
    state: Mutex<State>,
}

/// What lies among a request's extensions.
struct Extension<R>(Arc<Visit>, PhantomData<fn() -> R>);

impl<R> Clone for Extension<R> {
    fn clone(&self) -> Self {
        Extension(Arc::clone(&self.0), PhantomData)
    }
}

struct State {
    ids: RequestIds,
    /// Somebody has looked: the answer is for this visitor alone.
    looked: bool,
    /// The head of the answer is made: there are no more cookies.
    answered: bool,
    /// A session of this request's has ended.
    ended: bool,
    /// The visitor's cookie means no session.
    is_void: bool,
    /// It did until a moment ago: the session has another token, and the visitor may have that by now.
    is_late: bool,
    open: Option<Open>,
}

/// A transaction under way.
pub(super) struct Open {
    txn: Transaction,
    session: Option<Session>,
    /// As the request found it.
    found: Option<Session>,
    begun: Begun,
    rotated: bool,
}

/// What a session is begun for.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Why {
    Write,
    /// The visitor is somebody else from now on, whatever became of the session before.
    Login,
}

/// A point to go back to.
pub(super) struct Begun {
    before: Savepoint,
    ids: RequestIds,
}

impl Visit {
    pub(super) fn new(settings: &Arc<Settings>, ids: RequestIds, is_activity: bool) -> Arc<Self> {
        let (looked, answered, ended, is_void, is_late, open) = Default::default();
        let state = Mutex::new(State { ids, looked, answered, ended, is_void, is_late, open });
        Arc::new(Visit { settings: Arc::clone(settings), is_activity, state })
    }

    pub(super) fn put_among<R: 'static>(self: &Arc<Self>, extensions: &mut Extensions) {
        extensions.insert(Extension::<R>(Arc::clone(self), PhantomData));
    }

    pub(super) fn among<R: 'static>(extensions: &Extensions) -> Option<Arc<Self>> {
        extensions.get::<Extension<R>>().map(|extension| Arc::clone(&extension.0))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No panic can leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks the session up, if that was not done.
    pub(super) async fn load(&self) -> Result<(), Error> {
        let is_first = {
            let mut state = self.state();
            !mem::replace(&mut state.looked, true)
        };
        if is_first && self.state().ids.ambiguity().is_some() {
            let container = self.settings.container.name().to_owned();
            self.settings.store.tell(&Event::AmbiguousToken { container });
        }
        let is_open = self.state().open.is_some();
        if is_open { Ok(()) } else { self.look_up().await }
    }

    /// Begins a transaction, and looks up in it what the request's token means.
    pub(super) async fn look_up(&self) -> Result<(), Error> {
        let Settings { store, container, conflicts, .. } = &*self.settings;
        let token = self.state().ids.token().cloned();
        let mut txn = store.begin()?;
        if *conflicts == Conflicts::LaterWins {
            txn.win_conflicts()?;
        }
        let (mut session, mut is_late) = (None, false);
        // Something stands in the token's place that is none.
        let mut is_void = token.is_none() && self.is_nonsense();
        if let Some(token) = &token {
            session = txn.peek_async(container, token).await?;
            match &session {
                Some(session) => self.access(&txn, session)?,
                None => {
                    let (container, key) = (container.clone(), token.key());
                    let given_up = move || Ok((txn.given_up(&container, &key)?, txn));
                    let (since, looked) = store.spawn(given_up).await?;
                    let is_recent = |since: Time| store.now().since(since) < LATE;
                    is_late = since.is_some_and(is_recent);
                    (txn, is_void) = (looked, !is_late);
                }
            }
        }
        txn.release_snapshot()?;
        let before = txn.savepoint()?;
        let mut state = self.state();
        if token.is_some() && is_void && !state.is_void && !state.ended {
            store.tell(&Event::UnknownToken { container: container.name().to_owned() });
        }
        (state.is_void, state.is_late) = (is_void, is_late);
        let (found, begun) = (session.clone(), Begun { before, ids: state.ids.clone() });
        // Another handle may have been faster; then this one's look counts for nothing.
        state.open.get_or_insert(Open { txn, session, found, begun, rotated: false });
        Ok(())
    }

    fn is_nonsense(&self) -> bool {
        let ids = &self.state().ids;
        ids.claims() && ids.ambiguity().is_none()
    }

    /// Notes that the visitor is here. A cookie that lasts is sent again in time, so that it goes on to
    /// last as long as they keep coming.
    fn access(&self, txn: &Transaction, session: &Session) -> Result<(), Error> {
        let Settings { store, container, ids, .. } = &*self.settings;
        let own = session.timeout()?.filter(|timeout| !timeout.is_zero());
        self.state().ids.set_lifetime(own);
        if !self.is_activity {
            return Ok(());
        }
        let last = session.last_accessed()?;
        txn.get(container, session.key())?;
        let lifetime = own.or(ids.cookie_settings().lifetime());
        if lifetime.is_some_and(|lifetime| is_cookie_due(last, store.now(), lifetime)) {
            self.state().ids.renew_cookie();
        }
        Ok(())
    }

    pub(super) fn stored(&self) -> Result<Option<Session>, Error> {
        let state = self.state();
        Ok(state.open.as_ref().ok_or(Error::TransactionOver)?.session.clone())
    }

    pub(super) fn token(&self) -> Option<Token> {
        self.state().ids.token().cloned()
    }

    pub(super) fn with_ids<T>(&self, work: impl FnOnce(&mut RequestIds) -> T) -> T {
        work(&mut self.state().ids)
    }

    /// The session, and if it was begun for this, what to go back to.
    pub(super) fn stored_or_new(&self, why: Why) -> Result<(Session, Option<Begun>), Error> {
        let State { open, ids, answered, is_late, .. } = &mut *self.state();
        let open = open.as_mut().ok_or(Error::TransactionOver)?;
        if let Some(session) = &open.session {
            return Ok((session.clone(), None));
        }
        if *is_late && why == Why::Write {
            return Err(self.late(ids.token()));
        }
        if *answered {
            return Err(Error::Answered);
        }
        let begun = Begun { before: open.txn.savepoint()?, ids: ids.clone() };
        let (session, token) = open.txn.create_with_token(&self.settings.container)?;
        ids.replace(token);
        open.session = Some(session.clone());
        Ok((session, Some(begun)))
    }

    /// A request that was under way while its session got another token. What it writes must not go into a
    /// session of its own, whose cookie would take the place of the new one.
    fn late(&self, token: Option<&Token>) -> Error {
        let container = self.settings.container.name().to_owned();
        let session = token.map_or_else(String::new, |token| token.key().fingerprint());
        Error::RotatedKey { container, session }
    }

    pub(super) fn undo(&self, begun: Begun) -> Result<(), Error> {
        let State { open, ids, .. } = &mut *self.state();
        let open = open.as_mut().ok_or(Error::TransactionOver)?;
        open.txn.rollback(begun.before)?;
        (open.session, *ids) = (None, begun.ids);
        Ok(())
    }

    pub(super) fn rotate(&self, session: &Session) -> Result<Session, Error> {
        let State { open, ids, answered, .. } = &mut *self.state();
        let open = open.as_mut().ok_or(Error::TransactionOver)?;
        if *answered {
            return Err(Error::Answered);
        }
        let (session, token) = session.rotate_token()?;
        ids.replace(token);
        (open.rotated, open.session) = (true, Some(session.clone()));
        Ok(session)
    }

    pub(super) fn renew_cookie(&self, lifetime: Option<Duration>) -> Result<(), Error> {
        let State { ids, answered, .. } = &mut *self.state();
        match answered {
            true => Err(Error::Answered),
            false => {
                ids.set_lifetime(lifetime);
                ids.renew_cookie();
                Ok(())
            }
        }
    }

    pub(super) fn end(&self) -> Result<(), Error> {
        let mut state = self.state();
        let open = state.open.as_mut().ok_or(Error::TransactionOver)?;
        if let Some(session) = open.session.take() {
            session.invalidate()?;
        }
        state.ended = true;
        Ok(())
    }

    /// The session has ended by another transaction.
    pub(super) fn has_ended(&self) {
        let mut state = self.state();
        (state.ended, state.open) = (true, None);
    }

    /// Ends the transaction, without a commit.
    pub(super) fn close(&self) -> Option<Open> {
        self.state().open.take()
    }

    /// Commits what was changed so far.
    pub(super) async fn flush(&self) -> Result<(), Error> {
        let Some(open) = self.close() else { return Ok(()) };
        let Open { txn, begun, .. } = open;
        if !txn.has_changes()? {
            // Times of access ride along, and nobody waits for them.
            drop(txn.commit_async());
            return Ok(());
        }
        let done = txn.commit_async().await.map(drop);
        if done.is_err() {
            // What the visitor would come with is not stored.
            self.state().ids = begun.ids;
        }
        done
    }

    pub(super) async fn transact<T: Send>(
        &self,
        create: bool,
        work: impl Fn(&Session) -> Result<T, Error> + Send,
    ) -> Result<Option<T>, Error> {
        let had_one = self.stored()?.is_some();
        self.flush().await?;
        let Settings { store, container, .. } = &*self.settings;
        let (token, answered, is_late) = {
            let State { ids, answered, is_late, .. } = &*self.state();
            (ids.token().cloned(), *answered, *is_late)
        };
        let done = store.transact_async(|txn| {
            let found = token.as_ref().map(|token| txn.peek(container, token)).transpose()?;
            if let Some(session) = found.flatten() {
                return Ok(Some((work(&session)?, None)));
            }
            // It may have been given another token since the request has found it. Whoever began under the
            // old one must not read what came after a login.
            let is_late = match (&token, had_one) {
                (Some(token), true) => txn.given_up(container, token)?.is_some(),
                _ => create && is_late,
            };
            match create {
                _ if is_late => Err(self.late(token.as_ref())),
                true if answered => Err(Error::Answered),
                true => {
                    let (session, token) = txn.create_with_token(container)?;
                    Ok(Some((work(&session)?, Some(token))))
                }
                false => Ok(None),
            }
        });
        let done = done.await.map(|report| report.value);
        if let Ok(Some((_, Some(token)))) = &done {
            self.state().ids.replace(token.clone());
        }
        // The handler goes on with what is stored, whatever came of it.
        let looked_up = self.look_up().await;
        let done = done?.map(|(value, _)| value);
        looked_up.map(|()| done)
    }

    /// Commits what the handler has done, if that may be; an error must be the answer then.
    pub(super) async fn finish(&self, failed: bool) -> Result<(), Error> {
        let Some(mut open) = self.close() else {
            self.answer();
            return Ok(());
        };
        if failed && self.settings.failures == Failures::Discard {
            open.txn.rollback(open.begun.before)?;
            open.rotated = false;
            let mut state = self.state();
            state.ids = open.begun.ids.clone();
            // A logout holds, whatever comes after it.
            if state.ended
                && let Some(session) = &open.found
            {
                session.invalidate()?;
            }
            open.session = open.found.clone().filter(|_| !state.ended);
        }
        let (is_there, rotated) = (open.session.is_some(), open.rotated);
        let found = open.found.is_some();
        {
            let mut state = self.state();
            state.open = Some(open);
        }
        let done = match self.logged_out_late(is_there) {
            Some(token) => {
                let Settings { store, container, .. } = &*self.settings;
                let (container, key) = (container.clone(), token.key());
                let end = move |txn: &Transaction| txn.remove_rotated(&container, &key);
                store.spawn_transact(end).await.map(drop)
            }
            None => self.flush().await,
        };
        let mut state = self.state();
        let done = match done {
            // Somebody has ended it meanwhile. That is nothing that the visitor should hear of.
            Err(Error::Conflict(conflict))
                if conflict.reason == ConflictReason::Ended && found && !rotated =>
            {
                state.ended = true;
                state.flush_cookie();
                Ok(())
            }
            Ok(()) if !is_there && state.has_cookie() && (state.ended || state.is_void) => {
                state.flush_cookie();
                Ok(())
            }
            done => done,
        };
        drop(state);
        self.answer();
        done
    }

    /// The token of a visitor who logs out with one that was given up a moment ago: what they mean is the
    /// session that it was given up for.
    fn logged_out_late(&self, is_there: bool) -> Option<Token> {
        let State { ids, ended, is_late, .. } = &*self.state();
        ids.token().filter(|_| *ended && *is_late && !is_there).cloned()
    }

    fn answer(&self) {
        self.state().answered = true;
    }

    /// What the head of the answer says: whether the session was looked at, and which cookies are set.
    pub(super) fn head(&self) -> (bool, Vec<HeaderValue>) {
        let state = self.state();
        (state.looked, state.ids.set_cookies(self.settings.store.now()))
    }
}

impl State {
    /// Whether the browser has a cookie of ours, or would get one with this answer.
    fn has_cookie(&self) -> bool {
        self.ids.claims() || self.ids.source() == Some(Source::New)
    }

    fn flush_cookie(&mut self) {
        // Where cookies are no namespace there is none to be removed.
        let _ = self.ids.flush_cookie();
    }
}

/// For how long after a rotation a request that comes with the old token counts as one that was under way.
/// After that it is a visitor whom the new one never reached.
const LATE: Duration = Duration::from_secs(60);

/// Whether a cookie that lasts for `lifetime` is to be sent again to a visitor who was here at `last`.
///
/// Time is cut into quarters of the lifetime, and the first access in each sends it again. So a visitor
/// who comes back has at least three quarters of it left, and nothing is remembered for that.
fn is_cookie_due(last: Time, now: Time, lifetime: Duration) -> bool {
    let quarter = (lifetime.as_secs() / 4).max(1);
    last.as_secs() / quarter != now.as_secs() / quarter
}
