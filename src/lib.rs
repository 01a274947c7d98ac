//! sessile keeps sessions: what a site remembers about each visitor, on disk, in transactions,
//! through restarts, and without losing one of two changes that were made at once.
//!
//! Two requests of one visitor run at the same time. Both read the session as it was, both change
//! it, both commit, and both changes hold:
//!
//! ```
//! use sessile::{Policy, Store};
//!
//! # let directory = tempfile::tempdir()?;
//! # let directory = directory.path().join("sessions");
//! let store = Store::open(&directory)?; // a directory; made if absent
//! let visitors = store.container_with("visitors", Policy::new().timeout_mins(20))?;
//! store.transact(|txn| txn.create(&visitors, "ada")?.insert("name", "Ada"))?;
//!
//! let (left, right) = (store.begin()?, store.begin()?); // two tabs
//! let ada = left.get(&visitors, "ada")?.expect("just created");
//! ada.insert("theme", "dark")?;
//! ada.add("visits", 1)?;
//! let ada = right.get(&visitors, "ada")?.expect("just created");
//! ada.insert("cart", ["tea"])?;
//! ada.add("visits", 1)?;
//! left.commit()?;
//! let report = right.commit()?; // merged, attribute by attribute
//! assert_eq!(report.merged[0].attributes, ["cart", "visits"]);
//!
//! let txn = store.begin()?;
//! let ada = txn.get(&visitors, "ada")?.expect("still there");
//! assert_eq!(ada.keys()?, ["cart", "name", "theme", "visits"]);
//! assert_eq!(ada.get::<u32>("visits")?, Some(2));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The parts
//!
//! A [`Store`] holds [`Container`]s: sessions under one [`Policy`], which says when they expire,
//! how many there may be, and how writes merge. A [`Transaction`] sees one unchanging state of all
//! of them. It gives out [`Session`] handles, by the [`Key`] that a session is filed under (for the
//! web: the hash of the [`Token`] that a visitor carries), and commits everything or nothing.
//! An [`Attribute`] names one value of a session together with its type, and perhaps a [`Rule`].
//! [`Store::transact`] does the same in a closure and runs it again on a [`Conflict`]. A [`Viewer`] looks
//! into a store from outside, whoever has it open, and changes nothing; the `sessile` command uses it.
//! Copies are made while others commit: [`Store::backup_to`] makes a store, [`Store::export`] lines of JSON.
//!
//! # What a session can do
//!
//! - Go on under another key, as at every login: [`Session::rotate`].
//! - Be somebody's: [`Session::bind`], [`Transaction::sessions_of`]; "log out everywhere" is
//!   [`Transaction::end_all_of`], and [`Session::end_others`] after a change of the password.
//! - Live longer than others: [`Session::set_timeout`], "remember me".
//! - Hold what lasts for a while ([`Session::insert_for`]) and what is shown once ([`Session::flash`]).
//!
//! # What is guaranteed
//!
//! - **No lost update.** Changes of different attributes of one session are merged. For one
//!   attribute, merging writes ([`Session::add`] and its kin) never conflict; of two blind writes
//!   the later commit wins; a write of what was read before conflicts if it has changed since,
//!   unless a [`Rule`] or a resolver knows better.
//! - **What is taken is taken once**: of two transactions that [`take`](Session::take) a value, or the
//!   [`flashes`](Session::flashes), one commits.
//! - **An ended session never comes back.** Whoever writes to it gets a conflict; its touches are
//!   dropped; a session that is created under its key later is another one.
//! - **A session that is given another key is valid under exactly one of them**, at any moment and after
//!   any crash: [`Session::rotate`]. All sessions of a user [end together](Transaction::end_all_of), those
//!   of a login that came a moment before too.
//! - **A snapshot never changes**, whatever is committed while it lives, scans included.
//! - **What was acknowledged is durable**, and nothing is visible before it is, unless the policy says
//!   [`Durability::Relaxed`]; when a session was last used is always noted so. If the storage fails in
//!   the middle of a commit, that is said ([`Error::Unknown`]), and [`Store::fate`] tells what became of
//!   it: the store recovers by itself.
//! - **Damage is found**, never taken for data: every row and every batch has a checksum of its own.
//! - **A session lives longer than its timeout T after its last access, and at most T plus one
//!   period**, by the store's time: it never goes back, and believes a wall clock that is ahead by
//!   up to a day. Expired sessions leave by themselves. A session may have a timeout of its own
//!   ([`Session::set_timeout`]), all of them an absolute one
//!   ([`Policy::absolute_timeout_secs`](Policy#structfield.absolute_timeout_secs)), and an attribute may
//!   last for a while only ([`Session::insert_for`]).
//! - **Every end is told** to the listener of its container, after it is durable, in the order of the
//!   commits: once, or again after a crash. A listener that fails is called again, a few times.
//! - **The limit of a container counts live sessions only** and cannot be overshot; [`AtLimit`] says
//!   whether the new session is refused or an old one makes room.
//!
//! # What is not
//!
//! - *Write skew*: what is read and not written is not validated. [`Session::require`] validates an
//!   attribute by name.
//! - A store belongs to one process at a time (others may look), and a container stays in its store for good.
//! - *Telling of an end twice, never*: a crash right after a listener was told may come before that is
//!   noted. Then it is told again.
//! - A directory that is copied while its store is in use is no backup: [`Store::backup_to`] makes one.
//!
//! # On the web
//!
//! With the feature `axum` (or `web`, for any framework on `http` and `tower`) a layer gives each request its
//! session, commits it before the answer is sent, and takes care of the cookie:
//!
//! ```no_run
//! use axum::{Router, routing::get};
//! use sessile::web::{Session, SessionLayer};
//! use sessile::{Error, Policy, Store};
//!
//! async fn visits(session: Session) -> Result<String, Error> {
//!     session.add("visits", 1)?;
//!     Ok(format!("visit {}", session.get::<u64>("visits")?.unwrap_or_default()))
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let store = Store::open("sessions")?;
//!     let visitors = store.container_with("visitors", Policy::new().timeout_mins(20))?;
//!     let app = Router::new().route("/", get(visits)).layer(SessionLayer::new(&store, &visitors));
//!     Ok(axum::serve(tokio::net::TcpListener::bind("127.0.0.1:8080").await?, app).await?)
//! }
//! ```
//!
//! # Features
//!
//! All are off by default.
//!
//! - `web`: tokens in cookies, forms and URLs, and a tower layer. `axum`: its extractors.
//! - `tracing` shows spans and events, `metrics` counters, gauges and histograms:
//!   [`docs::observability`] lists their names.
//!
//! # The map
//!
//! [`docs::architecture`] is the way into the code, [`docs::format`] the bytes on disk,
//! [`docs::design`] the questions a thoughtful reader asks, [`docs::observability`] what can be watched,
//! [`docs::security`] who may want a session, and what is done about it.
//! In the source, `model` says what the words mean, `store` how things change, `engine` where they lie.

mod engine;
mod error;
mod model;
mod store;
mod sync;
mod threads;

#[cfg(feature = "axum")]
mod adapters;
pub mod docs;
#[cfg(feature = "web")]
pub mod web;

pub use crossbeam_channel::Receiver;
pub use engine::embedded::check::{Checked, Problem};
pub use engine::embedded::disk::{Access, Disk, DiskFile, FileKind, LocalDisk};
pub use engine::embedded::viewing::{StoreState, ViewedStore};
pub use error::{Conflict, ConflictReason, Error, LimitKind};
pub use model::attribute::{Attribute, Counts, Gathers, Holds, Named, Takes};
pub use model::clock::{Clock, ClockTrouble, ManualClock, SystemClock, Time};
pub use model::key::Key;
pub use model::merge::{AttributeMerge, Resolution, ResolverTrouble, SessionMerge, SessionState};
pub use model::policy::{AtLimit, Durability, OnMismatch, Policy, Rule};
pub use model::session::{CommitId, Revision, SessionId};
pub use model::token::Token;
pub use model::value::{Amount, Value};
pub use store::{
    AttributeHeat, Backup, Commit, Compacted, Container, EndReason, EndedInfo, EndedSession, Entry,
    Event, ExportOptions, Exported, Fate, Filter, Health, ImportOptions, Imported, Keys,
    ListenerError, MergedSession, OnConflict, Options, PrincipalSession, Report, Savepoint,
    Session, Sessions, Stats, Store, Swept, Transaction, Trouble, ViewedAttribute, ViewedContainer,
    ViewedSession, ViewedSessions, Viewer,
};

/// The format of the stores that this version makes and reads. It counts formats, not releases.
pub const FORMAT: u32 = engine::embedded::FORMAT;

/// The README's examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
