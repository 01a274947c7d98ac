//! A tower layer: a session for each request, committed before the answer is on its way.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{CACHE_CONTROL, RETRY_AFTER, SET_COOKIE, VARY};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, request};
use tower_layer::Layer;
use tower_service::Service;

use crate::web::ids::{Ids, RequestHead};
use crate::web::visit::Visit;
use crate::{Container, Error, Store};

/// Gives each request a [`Session`](crate::web::Session): a layer for any service that speaks `http`, such as a router of
/// axum.
///
/// - A request whose handler does not ask for its session costs a look at its cookies, and nothing else.
/// - Changes are committed when the handler has answered, **before** the head of the answer is sent; who
///   only looked waits for nothing.
/// - The cookie is set when there is a new token: for a new session, and at a login. One that lasts is sent
///   again in time, one that means nothing any more is removed.
/// - An answer that depends on a session says so to caches (`Vary: Cookie`, `Cache-Control`).
///
/// ```
/// use sessile::web::SessionLayer;
/// use sessile::{Policy, Store};
///
/// # let store = Store::memory()?;
/// let visitors = store.container_with("visitors", Policy::new().timeout_mins(20))?;
/// let layer = SessionLayer::new(&store, &visitors);
/// # let layer: SessionLayer = layer;
/// # Ok::<(), sessile::Error>(())
/// ```
///
/// # If something goes wrong
///
/// A handler that fails has changed nothing ([`on_failure`](SessionLayer::on_failure)), with one exception: a
/// logout holds. It fails if it answers with a status of 500 or more, an [`Error`], or anything that is marked
/// as [`Failed`], and so does a service with an error of its own. Where a commit fails, the
/// answer is not that of the handler but 503, 409 or 500 without a body
/// ([`on_error`](SessionLayer::on_error)). If the session was ended meanwhile, elsewhere, the answer goes
/// out, and the cookie is removed.
///
/// # Several sessions
///
/// A program may have several layers, one for visitors and one for the back office: give them types of
/// their own, and cookies of different names.
///
/// ```
/// # use sessile::web::{CookieSettings, Ids, SessionLayer};
/// # use sessile::{Policy, Store};
/// struct Office; // then a handler asks for a `Session<Office>`
///
/// # let store = Store::memory()?;
/// # let staff = store.container_with("staff", Policy::new())?;
/// let ids = Ids::new().cookie(CookieSettings::builder().name("__Host-office").build()?);
/// let layer = SessionLayer::<Office>::of(&store, &staff).ids(ids);
/// # Ok::<(), sessile::Error>(())
/// ```
pub struct SessionLayer<R = ()> {
    settings: Arc<Settings>,
    realm: PhantomData<fn() -> R>,
}

/// What becomes of an attribute that a handler has read and written, if another request has written it
/// meanwhile and no rule makes one value of the two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Conflicts {
    /// The later commit wins that attribute, and the store [tells](crate::Event::Overruled) of it.
    #[default]
    LaterWins,
    /// Nothing of the request is committed, and the answer is 409 (Conflict): for clients that ask again.
    Refuse,
}

/// What becomes of the changes of a handler that fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failures {
    /// They are given up, but for a logout.
    #[default]
    Discard,
    /// They are committed all the same.
    Commit,
}

/// Marks an answer, among its extensions, as that of a handler that has failed, whatever its status is:
/// see [`SessionLayer`](SessionLayer#if-something-goes-wrong). An [`Error`] that is returned is marked so.
///
/// ```
/// use sessile::web::Failed;
///
/// let mut answer = http::Response::new("That name is taken."); // and nothing of the form is kept
/// *answer.status_mut() = http::StatusCode::CONFLICT;
/// answer.extensions_mut().insert(Failed);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

type OnError = dyn Fn(&Error) -> Response<()> + Send + Sync;
type IsActivity = dyn Fn(&request::Parts) -> bool + Send + Sync;

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) store: Store,
    pub(crate) container: Container,
    pub(crate) ids: Ids,
    pub(crate) conflicts: Conflicts,
    pub(crate) failures: Failures,
    on_error: Arc<OnError>,
    is_activity: Option<Arc<IsActivity>>,
}

impl SessionLayer {
    /// Sessions of a container, and a cookie with [today's settings](crate::web::CookieSettings::default).
    pub fn new(store: &Store, container: &Container) -> Self {
        SessionLayer::of(store, container)
    }
}

impl<R: 'static> SessionLayer<R> {
    /// The same for one of [several](SessionLayer#several-sessions) layers.
    pub fn of(store: &Store, container: &Container) -> Self {
        let settings = Settings {
            store: store.clone(),
            container: container.clone(),
            ids: Ids::new(),
            conflicts: Conflicts::default(),
            failures: Failures::default(),
            on_error: Arc::new(answer_to),
            is_activity: None,
        };
        SessionLayer { settings: Arc::new(settings), realm: PhantomData }
    }

    /// Where the visitor's token is looked for, and what the cookie is like. Of forms the layer sees the
    /// query, not the body. To have tokens in paths put the layer around the router, not into it: it takes
    /// them out before anybody looks for a route.
    #[must_use]
    pub fn ids(self, ids: Ids) -> Self {
        self.with(|settings| settings.ids = ids)
    }

    /// What becomes of attributes that two requests have read and written at the same time.
    #[must_use]
    pub fn on_conflict(self, conflicts: Conflicts) -> Self {
        self.with(|settings| settings.conflicts = conflicts)
    }

    /// What becomes of the changes of a handler that fails.
    #[must_use]
    pub fn on_failure(self, failures: Failures) -> Self {
        self.with(|settings| settings.failures = failures)
    }

    /// The answer to a request whose changes could not be committed, without a body. By default it is
    /// [`answer_to`].
    #[must_use]
    pub fn on_error(self, answer: impl Fn(&Error) -> Response<()> + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.on_error = Arc::new(answer))
    }

    /// Which requests are activity of the visitor's, and so lengthen the session's life. By default all that
    /// ask for the session; a page that polls by itself should not keep a session alive.
    ///
    /// ```
    /// # use sessile::web::SessionLayer;
    /// # use sessile::{Policy, Store};
    /// # let store = Store::memory()?;
    /// # let visitors = store.container_with("visitors", Policy::new())?;
    /// let layer = SessionLayer::new(&store, &visitors)
    ///     .is_activity(|request| request.uri.path() != "/news");
    /// # Ok::<(), sessile::Error>(())
    /// ```
    #[must_use]
    pub fn is_activity(
        self,
        is_activity: impl Fn(&request::Parts) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.is_activity = Some(Arc::new(is_activity)))
    }

    fn with(self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Arc::unwrap_or_clone(self.settings);
        change(&mut settings);
        SessionLayer { settings: Arc::new(settings), realm: PhantomData }
    }
}

impl<R> Clone for SessionLayer<R> {
    fn clone(&self) -> Self {
        SessionLayer { settings: Arc::clone(&self.settings), realm: PhantomData }
    }
}

impl<R> fmt::Debug for SessionLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionLayer({})", self.settings.container.name())
    }
}

impl<S, R: 'static> Layer<S> for SessionLayer<R> {
    type Service = SessionService<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        SessionService { inner, layer: self.clone() }
    }
}

/// A service whose requests have sessions; made by [`SessionLayer`].
pub struct SessionService<S, R = ()> {
    inner: S,
    layer: SessionLayer<R>,
}

impl<S: Clone, R> Clone for SessionService<S, R> {
    fn clone(&self) -> Self {
        SessionService { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<S: fmt::Debug, R> fmt::Debug for SessionService<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionService").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, R, B, A> Service<Request<B>> for SessionService<S, R>
where
    S: Service<Request<B>, Response = Response<A>>,
    S::Future: Send + 'static,
    S::Error: Send,
    A: Default + Send,
    R: 'static,
{
    type Response = Response<A>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<A>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let settings = &self.layer.settings;
        let (mut parts, body) = request.into_parts();
        let ids = settings.ids.read(&RequestHead {
            headers: &parts.headers,
            path: parts.uri.path(),
            query: parts.uri.query(),
            form: None,
            // Who is asked for a `Secure` cookie speaks TLS, or somebody in front does.
            https: true,
        });
        // Behind this layer nobody sees a token in the path.
        if ids.path() != parts.uri.path() {
            parts.uri = with_path(&parts.uri, ids.path());
        }
        let is_activity = settings.is_activity.as_ref().is_none_or(|is| is(&parts));
        let visit = Visit::new(settings, ids, is_activity);
        visit.put_among::<R>(&mut parts.extensions);
        let answer = self.inner.call(Request::from_parts(parts, body));
        Box::pin(async move {
            let answer = answer.await;
            let has_failed = |answer: &Response<A>| {
                answer.status().is_server_error() || answer.extensions().get::<Failed>().is_some()
            };
            let failed = answer.as_ref().map_or(true, has_failed);
            let done = visit.finish(failed).await;
            let mut answer = match (answer, done) {
                (Ok(answer), Ok(())) => answer,
                (Ok(_), Err(error)) => (visit.settings.on_error)(&error).map(|()| A::default()),
                // The service's own error goes before the store's.
                (Err(error), _) => return Err(error),
            };
            let (looked, cookies) = visit.head();
            if looked {
                say_so(answer.headers_mut(), cookies);
            }
            Ok(answer)
        })
    }
}

/// The same with another path; with the one that it has, if that is none.
fn with_path(uri: &Uri, path: &str) -> Uri {
    let path = uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = path.parse().ok().or(parts.path_and_query);
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}

/// Says in the head of an answer that it depends on a session.
fn say_so(headers: &mut HeaderMap, cookies: Vec<HeaderValue>) {
    let varies = |value: &HeaderValue| {
        value.to_str().is_ok_and(|value| {
            value
                .split(',')
                .map(str::trim)
                .any(|name| name == "*" || name.eq_ignore_ascii_case("cookie"))
        })
    };
    if !headers.get_all(VARY).iter().any(varies) {
        headers.append(VARY, HeaderValue::from_static("Cookie"));
    }
    if !cookies.is_empty() {
        // A cache that kept it would give one visitor's session to another.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    } else {
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("private"));
    }
    for cookie in cookies {
        headers.append(SET_COOKIE, cookie);
    }
}

/// What to answer if the store could not do what was asked of it: 409 for a conflict, 503 with `Retry-After`
/// if it may be tried again soon, 413 if a session would be too large, and 500 for everything else.
///
/// ```
/// let busy = sessile::Error::Full;
/// assert_eq!(sessile::web::answer_to(&busy).status(), 503);
/// ```
pub fn answer_to(error: &Error) -> Response<()> {
    let (status, is_soon) = match error {
        Error::Conflict(_) | Error::Exists { .. } | Error::RotatedKey { .. } => {
            (StatusCode::CONFLICT, false)
        }
        Error::Busy { .. }
        | Error::Full
        | Error::Storage(_)
        | Error::Unknown { .. }
        | Error::SnapshotTooOld { .. } => (StatusCode::SERVICE_UNAVAILABLE, true),
        Error::Limit { limit, .. } if limit.is_of_one_session() => {
            (StatusCode::PAYLOAD_TOO_LARGE, false)
        }
        Error::Limit { .. } => (StatusCode::SERVICE_UNAVAILABLE, true),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, false),
    };
    let mut answer = Response::new(());
    *answer.status_mut() = status;
    if is_soon {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}
