//! sessile

#![forbid(unsafe_code)]

mod engine;
mod error;
mod model;
mod store;

pub use crossbeam_channel::Receiver;
pub use error::{Conflict, ConflictReason, Error, LimitKind};
pub use model::clock::{Clock, ClockTrouble, ManualClock, SystemClock, Time};
pub use model::key::Key;
pub use model::merge::{AttributeMerge, Resolution, ResolverTrouble, SessionMerge, SessionState};
pub use model::policy::{Policy, Rule};
pub use model::session::{Revision, SessionId};
pub use model::token::Token;
pub use model::value::{Amount, Value};
pub use store::{
    Commit, Container, EndReason, EndedInfo, EndedSession, Event, Keys, ListenerError,
    MergedSession, Options, Report, Savepoint, Session, Sessions, Stats, Store, Swept, Transaction,
};
