//! Why a store could not do what it was asked.

use std::error::Error as StdError;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::model::merge::ResolverTrouble;
use crate::model::session::{CommitId, Revision};

/// Why a store could not do what it was asked, grouped by what to do next.
///
/// A missing session is no error: it is `None`. No message holds a token, a key or a value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another transaction got there first. Begin again, and commit again;
    /// [`Store::transact`](crate::Store::transact) does so by itself.
    #[error(transparent)]
    Conflict(#[from] Conflict),

    /// The session that this handle means has ended: it was invalidated, or its time is over. Get
    /// another, and treat its visitor as new.
    #[error("the session has ended")]
    Ended,

    /// [`Transaction::create`](crate::Transaction::create) found a live session under the key. Use
    /// `get_or_create`, or another key.
    #[error("session {session} exists in container {container}")]
    Exists {
        /// The name of the container.
        container: String,
        /// The fingerprint of the session's key.
        session: String,
    },

    /// The key was given up for another one, by [`Session::rotate`](crate::Session::rotate), and nobody
    /// may come with it any more. Treat its bearer as new: with another key.
    #[error("key {session} of container {container} was given up for another one")]
    RotatedKey {
        /// The name of the container.
        container: String,
        /// The fingerprint of the key.
        session: String,
    },

    /// The transaction was committed or dropped, and its handles with it. Begin another, and see
    /// [`Transaction::reattach`](crate::Transaction::reattach).
    #[error("the transaction is over")]
    TransactionOver,

    /// The transaction lived too long: what it read would have to be kept for it alone. Begin
    /// again, and do less in one transaction. After a failure of the storage it may have read what was
    /// acknowledged as [relaxed](crate::Durability::Relaxed) and is lost: begin again.
    #[error("the snapshot is too old after {age:?}")]
    SnapshotTooOld {
        /// How long the transaction had been living when it was given up.
        age: Duration,
    },

    /// The savepoint belongs to another transaction, or a rollback to an earlier one spoiled it.
    #[error("the savepoint is gone")]
    Savepoint,

    /// A limit of the container's policy. Nothing was written, and the transaction stays usable:
    /// end sessions, store less, or raise the setting, which the message names.
    #[error("the limit of {max} {limit} is reached{}", set_by(*.limit))]
    Limit {
        /// Which limit.
        limit: LimitKind,
        /// Its value in force.
        max: u64,
    },

    /// The attribute holds something else than was asked for, perhaps from an older release of the
    /// application. Read it as what it is, or remove it.
    #[error("attribute `{attribute}` holds {found}, not {expected}")]
    Type {
        /// The name of the attribute.
        attribute: String,
        /// What is stored.
        found: &'static str,
        /// What was asked for.
        expected: &'static str,
    },

    /// The value cannot be encoded as MessagePack; its `Serialize` said why, and that text may hold
    /// the value, so it is not repeated here.
    #[error("the value for attribute `{attribute}` cannot be encoded")]
    Encode {
        /// The name of the attribute.
        attribute: String,
    },

    /// The settings of a container contradict each other. Nothing was changed.
    #[error("not a policy: {reason}")]
    Policy {
        /// Which settings, and why.
        reason: String,
    },

    /// The store has no container of this name. Make it with
    /// [`container_with`](crate::Store::container_with).
    #[error("there is no container {name:?}")]
    NoContainer {
        /// The name that was asked for.
        name: String,
    },

    /// The container or handle belongs to another store. Nothing was done.
    #[error("the handle belongs to another store")]
    Stranger,

    /// The text is no token: not 43 characters of base64url. Treat its bearer as new.
    #[error("not a token")]
    Token,

    /// The request has no token. Ask for one to be made:
    /// [`RequestIds::get_or_create`](crate::web::RequestIds::get_or_create).
    #[cfg(feature = "web")]
    #[error("the request has no token")]
    NoToken,

    /// The settings of a cookie contradict each other or a browser's rules, or a cookie was asked for where
    /// none are used. Change what the reason names.
    #[cfg(feature = "web")]
    #[error("not a cookie: {reason}")]
    Cookie {
        /// What is wrong.
        reason: String,
    },

    /// The store is doing all it can. Try later, or shed load. From a [`Viewer`](crate::Viewer): it
    /// changes faster than it can be looked at, or was opened while it was; look again.
    #[error("the store is busy: {}", busy(*.queued, .waited))]
    Busy {
        /// How many commits are queued; none, if that is not the trouble.
        queued: usize,
        /// How long this one tried.
        waited: Duration,
    },

    /// The disk is full, and the store keeps what room it has left for ending sessions. Make room: the
    /// store goes on by itself.
    #[error("the disk is full: only ending sessions works until there is room")]
    Full,

    /// The storage failed in the middle of this commit: it took effect, or it did not. The store goes
    /// on by itself as soon as the storage works; then [`Store::fate`](crate::Store::fate) tells.
    #[error("the storage failed during commit {commit}: it may have taken effect")]
    Unknown {
        /// What to ask about.
        commit: CommitId,
        /// What failed.
        #[source]
        cause: Arc<dyn StdError + Send + Sync>,
    },

    /// The store was closed. Open it again.
    #[error("the store is closed")]
    Closed,

    /// The closure of [`Store::transact`](crate::Store::transact) gave up. Nothing was written.
    #[error("the transaction was given up")]
    Aborted(#[source] Box<dyn StdError + Send + Sync>),

    /// Another process, or another part of this one, has the store open. Use that one.
    #[error("the store at {} is open already{}", path.display(), by(.pid))]
    AlreadyOpen {
        /// The directory of the store.
        path: PathBuf,
        /// The process that has it open, if it has said so.
        pid: Option<u32>,
    },

    /// There is a store already. Open it instead of creating it.
    #[error("there is a store at {} already", path.display())]
    AlreadyThere {
        /// The directory of the store.
        path: PathBuf,
    },

    /// What lies at the path is no store of sessile's, and it was left alone. Check the path.
    #[error("{} is no sessile store: {reason}", path.display())]
    NotAStore {
        /// The path that was given.
        path: PathBuf,
        /// What is there instead.
        reason: String,
    },

    /// The store was written by a version of sessile that this one cannot read. Use that one.
    #[error("the store has format {found}, and this version reads {supported}")]
    Format {
        /// The format of the store.
        found: u32,
        /// The format that this version reads.
        supported: u32,
    },

    /// The bytes on disk are not what sessile wrote. Restore a backup.
    #[error("corrupt {table}: {reason}")]
    Corrupt {
        /// Where.
        table: &'static str,
        /// What is wrong; never the bytes themselves.
        reason: String,
    },

    /// What is to be imported is no export, or is not what was exported any more. The lines before this
    /// one may have been imported.
    #[error("line {line} of the import: {reason}")]
    Import {
        /// Which line, counted from one.
        line: u64,
        /// What is wrong with it; never what is in it.
        reason: &'static str,
    },

    /// The storage below failed. Nothing was written; later it may work again.
    #[error("the storage failed")]
    Storage(#[source] Arc<dyn StdError + Send + Sync>),

    /// A cookie was to be set when the answer was on its way already: begin the session, or log in, before
    /// that.
    #[error("the answer is on its way: no token can be given to the visitor any more")]
    Answered,

    /// A handler asked for the session of a request that has none: the route lacks its layer.
    #[error(
        "no sessile::web::SessionLayer on this route: add `.layer(SessionLayer::new(&store, &container))`"
    )]
    NoSessionLayer,

    /// The operating system gave no random numbers. Do not go on without them.
    #[error("the operating system's random generator failed: {0}")]
    Random(String),
}

impl Error {
    /// Wraps an error of the application's, for closures given to
    /// [`Store::transact`](crate::Store::transact) that want to give up.
    pub fn aborted(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Error::Aborted(error.into())
    }

    /// Whether the same transaction, begun again, may well succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Conflict(_) | Error::SnapshotTooOld { .. } => true,
            // Waiting may help, running the closure again at once does not.
            Error::Busy { .. } => false,
            // The commit may have reached the disk; doing it twice could be wrong.
            Error::Unknown { .. } => false,
            // What is broken or full does not get better by trying at once.
            Error::Storage(_) | Error::Full => false,
            Error::Ended
            | Error::Exists { .. }
            | Error::RotatedKey { .. }
            | Error::TransactionOver
            | Error::Savepoint
            | Error::Limit { .. }
            | Error::Type { .. }
            | Error::Encode { .. }
            | Error::Policy { .. }
            | Error::NoContainer { .. }
            | Error::Stranger
            | Error::Token
            | Error::Closed
            | Error::Aborted(_)
            | Error::AlreadyOpen { .. }
            | Error::AlreadyThere { .. }
            | Error::NotAStore { .. }
            | Error::Format { .. }
            | Error::Corrupt { .. }
            | Error::Import { .. }
            | Error::Answered
            | Error::NoSessionLayer
            | Error::Random(_) => false,
            #[cfg(feature = "web")]
            Error::NoToken | Error::Cookie { .. } => false,
        }
    }

    /// One word for each kind of error, for logs and figures. It stays the same when a message is worded
    /// anew.
    pub fn kind(&self) -> &'static str {
        match self {
            Error::Conflict(_) => "conflict",
            Error::Ended => "ended",
            Error::Exists { .. } => "exists",
            Error::RotatedKey { .. } => "rotated_key",
            Error::TransactionOver => "transaction_over",
            Error::SnapshotTooOld { .. } => "snapshot_too_old",
            Error::Savepoint => "savepoint",
            Error::Limit { .. } => "limit",
            Error::Type { .. } => "type",
            Error::Encode { .. } => "encode",
            Error::Policy { .. } => "policy",
            Error::NoContainer { .. } => "no_container",
            Error::Stranger => "stranger",
            Error::Token => "token",
            #[cfg(feature = "web")]
            Error::NoToken => "no_token",
            #[cfg(feature = "web")]
            Error::Cookie { .. } => "cookie",
            Error::Busy { .. } => "busy",
            Error::Full => "full",
            Error::Unknown { .. } => "unknown",
            Error::Closed => "closed",
            Error::Aborted(_) => "aborted",
            Error::AlreadyOpen { .. } => "already_open",
            Error::AlreadyThere { .. } => "already_there",
            Error::NotAStore { .. } => "not_a_store",
            Error::Format { .. } => "format",
            Error::Corrupt { .. } => "corrupt",
            Error::Storage(_) => "storage",
            Error::Import { .. } => "import",
            Error::Answered => "answered",
            Error::NoSessionLayer => "no_session_layer",
            Error::Random(_) => "random",
        }
    }

    /// The same failure of the storage, for another who asks.
    pub(crate) fn share(&self) -> Self {
        match self {
            Error::Full => Error::Full,
            Error::Limit { limit, max } => Error::Limit { limit: *limit, max: *max },
            Error::Storage(cause) => Error::Storage(Arc::clone(cause)),
            Error::Corrupt { table, reason } => Error::Corrupt { table, reason: reason.clone() },
            _ => Error::Closed,
        }
    }

    /// What the storage said.
    pub(crate) fn cause(&self) -> Arc<dyn StdError + Send + Sync> {
        match self {
            Error::Storage(cause) => Arc::clone(cause),
            other => Arc::new(other.share()),
        }
    }

    pub(crate) fn storage(error: impl StdError + Send + Sync + 'static) -> Self {
        Error::Storage(Arc::new(error))
    }
}

fn busy(queued: usize, waited: &Duration) -> String {
    match queued {
        0 => "it changed while it was looked at".to_owned(),
        _ => format!("{queued} commits wait, gave up after {waited:?}"),
    }
}

fn set_by(limit: LimitKind) -> String {
    limit.setting().map_or(String::new(), |setting| format!(" (set by `{setting}`)"))
}

fn by(pid: &Option<u32>) -> String {
    pid.map_or(String::new(), |pid| format!(" (process {pid})"))
}

/// Why a commit was refused although nothing is wrong with it: another transaction came first.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "conflict on session {session} in container {container}: {reason} (read at {base}{})",
    now(.stored)
)]
#[non_exhaustive]
pub struct Conflict {
    /// What went wrong.
    pub reason: ConflictReason,
    /// The name of the container.
    pub container: String,
    /// The fingerprint of the session's key; `-` where the container itself is in conflict.
    pub session: String,
    /// The revision this transaction had read.
    pub base: Revision,
    /// The revision that is stored now; `None` if nothing is.
    pub stored: Option<Revision>,
}

fn now(stored: &Option<Revision>) -> String {
    stored.map_or(String::new(), |stored| format!(", now {stored}"))
}

/// What two transactions could not agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConflictReason {
    /// The attribute of this name was read and written here, and written elsewhere meanwhile.
    Attribute(String),
    /// The session has ended meanwhile.
    Ended,
    /// Both created a session under one key.
    Exists,
    /// Both changed the settings of the container.
    Policy,
    /// A resolver had no answer.
    Resolver {
        /// The name that the policy gives.
        name: String,
        /// Why.
        trouble: ResolverTrouble,
    },
}

impl fmt::Display for ConflictReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConflictReason::Attribute(name) => write!(f, "attribute `{name}` changed"),
            ConflictReason::Ended => f.write_str("the session has ended"),
            ConflictReason::Exists => f.write_str("another one was created"),
            ConflictReason::Policy => f.write_str("its settings changed"),
            ConflictReason::Resolver { name, .. } => write!(f, "resolver `{name}` found no answer"),
        }
    }
}

/// A limit of a container's [`Policy`](crate::Policy).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitKind {
    /// `limit`: live sessions in the container.
    Sessions,
    /// `session_bytes_max`: bytes of a session's attributes.
    SessionBytes,
    /// `attributes_max`: attributes of a session.
    Attributes,
    /// `depth_max`: lists and maps in each other in a value.
    Depth,
    /// `key_bytes_max`: bytes of a key.
    KeyBytes,
    /// `principal_limit`: live sessions of a principal in the container.
    PrincipalSessions,
    /// Bytes of a principal's name, or of its note.
    PrincipalBytes,
    /// Bytes of everything that one transaction leaves behind: it must fit into half a segment of
    /// the commit log. See [`Options::segment_bytes`](crate::Options::segment_bytes).
    TransactionBytes,
}

impl LimitKind {
    /// The setting that says how much is allowed: a field of [`Policy`](crate::Policy), or a call of
    /// [`Options`](crate::Options). `None`: the amount is fixed.
    pub fn setting(self) -> Option<&'static str> {
        Some(match self {
            LimitKind::Sessions => "limit",
            LimitKind::SessionBytes => "session_bytes_max",
            LimitKind::Attributes => "attributes_max",
            LimitKind::Depth => "depth_max",
            LimitKind::KeyBytes => "key_bytes_max",
            LimitKind::PrincipalSessions => "principal_limit",
            LimitKind::PrincipalBytes => return None,
            LimitKind::TransactionBytes => "segment_bytes",
        })
    }
}

#[cfg(feature = "web")]
impl LimitKind {
    /// Whether it bounds what is in one session, and not how many there are.
    pub(crate) fn is_of_one_session(self) -> bool {
        match self {
            LimitKind::SessionBytes
            | LimitKind::Attributes
            | LimitKind::Depth
            | LimitKind::KeyBytes
            | LimitKind::PrincipalBytes
            | LimitKind::TransactionBytes => true,
            LimitKind::Sessions | LimitKind::PrincipalSessions => false,
        }
    }
}

impl fmt::Display for LimitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LimitKind::Sessions => "sessions in a container",
            LimitKind::SessionBytes => "bytes in a session",
            LimitKind::Attributes => "attributes in a session",
            LimitKind::Depth => "lists and maps in each other",
            LimitKind::KeyBytes => "bytes in a key",
            LimitKind::PrincipalSessions => "sessions of a principal",
            LimitKind::PrincipalBytes => "bytes in a principal's name or note",
            LimitKind::TransactionBytes => "bytes in a transaction",
        })
    }
}
