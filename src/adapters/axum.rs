//! Extractors for handlers of axum, and its answers to errors.
//!
//! ```
//! use axum::Router;
//! use axum::routing::get;
//! use sessile::web::{Session, SessionLayer};
//! use sessile::{Error, Policy, Store};
//!
//! async fn visits(session: Session) -> Result<String, Error> {
//!     session.add("visits", 1)?;
//!     Ok(format!("visit {}", session.get::<u64>("visits")?.unwrap_or_default()))
//! }
//!
//! # let store = Store::memory()?;
//! let visitors = store.container_with("visitors", Policy::new().timeout_mins(20))?;
//! let app: Router =
//!     Router::new().route("/", get(visits)).layer(SessionLayer::new(&store, &visitors));
//! # Ok::<(), Error>(())
//! ```

use axum_core::extract::FromRequestParts;
use axum_core::response::{IntoResponse, Response};
use http::request::Parts;

use crate::Error;
use crate::web::{Failed, Session, SessionData, Stored, answer_to};

/// Looks the session up.
impl<S: Sync, R: 'static> FromRequestParts<S> for Session<R> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        Session::load(&parts.extensions).await
    }
}

/// Looks the session up, and reads what the application keeps in it.
impl<S: Sync, T: SessionData, R: 'static> FromRequestParts<S> for Stored<T, R> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        Stored::of(Session::load(&parts.extensions).await?)
    }
}

/// The status of [`SessionLayer::on_error`](crate::web::SessionLayer::on_error), and the reason of the
/// status as the body: what went wrong is for the log, not for the visitor.
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (head, ()) = answer_to(&self).into_parts();
        let reason = match &self {
            // Said to the programmer, who has forgotten it.
            Error::NoSessionLayer => self.to_string(),
            _ => head.status.canonical_reason().unwrap_or_default().to_owned(),
        };
        let mut answer = (head.status, head.headers, reason).into_response();
        answer.extensions_mut().insert(Failed);
        answer
    }
}
