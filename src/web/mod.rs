//! Tokens in requests, and the session of a request, for any HTTP framework.
//!
//! ```text
//!   cookie.rs   settings of a cookie, valid once they are made
//!   ids.rs      which token a request carries, and how the answer hands it out
//!   url.rs      ... in a URL
//!   data.rs     the session that the token means, in a transaction
//!
//!   layer.rs    a tower layer: a session for each request, committed before the answer
//!   session.rs  what its handlers work with, with csrf.rs and stored.rs
//!   visit.rs    what becomes of it until the answer is made
//! ```
//!
//! Mostly a program adds a [`SessionLayer`] and asks for a [`Session`] in its handlers. The rest is for those
//! who have another framework, or want a session in a transaction of their own.
//!
//! A visitor's token travels in a cookie, unless the program says that forms or URLs may carry it too.
//! [`Ids`] holds the settings; [`Ids::read`] looks at the head of a request; [`RequestIds`] is what the
//! request said and what becomes of it; [`RequestSessions`] finds or makes the session.
//!
//! ```
//! use http::{HeaderMap, HeaderValue, header};
//! use sessile::web::{Ids, RequestHead, RequestSessions};
//! use sessile::{Policy, Store, Time};
//!
//! # let store = Store::memory()?;
//! let visitors = store.container_with("visitors", Policy::new())?;
//! let (ids, sessions) = (Ids::new(), RequestSessions::new(&visitors));
//!
//! // A visitor comes for the first time.
//! let headers = HeaderMap::new();
//! let head = RequestHead { headers: &headers, path: "/", query: None, form: None, https: true };
//! let mut first = ids.read(&head);
//! store.transact(|txn| {
//!     let session = sessions.session(txn, &mut first, true)?.expect("it was to be created");
//!     session.add("visits", 1)
//! })?;
//! let cookies = first.set_cookies(Time::from_secs(1_000_000_000));
//! let cookie = cookies[0].to_str()?;
//! assert!(cookie.starts_with("__Host-session=") && cookie.contains("; HttpOnly; SameSite=Lax; Secure"));
//!
//! // And again.
//! let (sent, _) = cookie.split_once(';').expect("attributes follow");
//! let headers = HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(sent)?)]);
//! let mut second = ids.read(&RequestHead { headers: &headers, ..head });
//! let visits = store.transact(|txn| {
//!     let session = sessions.session(txn, &mut second, true)?.expect("it was to be created");
//!     session.add("visits", 1)?;
//!     session.get::<u64>("visits")
//! })?;
//! assert_eq!(visits.value, Some(2));
//! assert!(second.set_cookies(Time::from_secs(1_000_000_010)).is_empty()); // the visitor has it already
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Parsing and formatting is done by the crates `cookie`, `form_urlencoded` and `percent-encoding`. Time is
//! an argument. No part of this knows a server, and none waits.

mod cookie;
mod csrf;
mod data;
mod ids;
mod layer;
mod session;
mod stored;
mod url;
mod visit;

pub use cookie::{CookieBuilder, CookieSettings, SameSite};
pub use data::{ByKey, RequestSessions, UnknownToken};
pub use ids::{Ambiguity, Disagreement, Ids, Namespace, RequestHead, RequestIds, Source, UrlStyle};
pub use layer::{Conflicts, Failed, Failures, SessionLayer, SessionService, answer_to};
pub use session::Session;
pub use stored::{SessionData, Stored};
