//! The settings of a container: when sessions expire, how many there may be, how writes merge.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, LimitKind};
use crate::model::key::Key;
use crate::model::session::Size;
use crate::model::value::Value;

/// What happens when two transactions write the same attribute from the same base.
///
/// Merging writes ([`Session::add`](crate::Session::add) and its kin) need no rule: they never
/// conflict. A rule is asked about plain writes, and only when the attribute has changed since the
/// transaction's snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Rule {
    /// A blind write takes effect after the one that is stored; a write of what was read before
    /// conflicts, so that no update is lost. The default.
    #[default]
    Checked,
    /// The later commit wins, even over an update it has not seen.
    LastWriter,
    /// The first commit stays.
    FirstWriter,
    /// What each writer added to its base is added up. Numbers.
    Sum,
    /// The greater of both. Numbers or strings.
    Max,
    /// The lesser of both. Numbers or strings.
    Min,
    /// Sets are joined, and what a writer took out is taken out. Lists.
    Union,
    /// What each writer appended is kept, in the order of the commits, and of it the last so many.
    Append(usize),
    /// The second writer always conflicts, even if it wrote blindly.
    Reject,
    /// A resolver of the application, registered under this name at open.
    Resolver(Cow<'static, str>),
}

impl Rule {
    /// The rule to ask the resolver of this name: for constants.
    pub const fn resolver(name: &'static str) -> Self {
        Rule::Resolver(Cow::Borrowed(name))
    }
}

/// When a commit is acknowledged.
///
/// One that ends a session or sets a policy is always [`Immediate`](Durability::Immediate), and one that
/// does no more than note that sessions were used always [`Relaxed`](Durability::Relaxed).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// As soon as it is written: it survives the end of the process, and that of the machine from
    /// at most [`Options::sync_delay`](crate::Options::sync_delay) later on.
    Relaxed,
    /// When it is on the disk: it survives anything. The default.
    #[default]
    Immediate,
}

/// What happens at a limit of live sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AtLimit {
    /// The new one is refused. The default.
    #[default]
    Reject,
    /// The one that would expire first ends, to make room: it was not used for the longest time, unless
    /// it has a timeout of its own. One that the transaction itself has used is spared. One that is
    /// bound to a principal makes room for that principal's sessions only.
    EvictOldest,
}

/// What happens when an attribute holds something else than is asked for, as it may after the
/// application has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OnMismatch {
    /// The call fails with [`Error::Type`]. The default.
    #[default]
    Error,
    /// The attribute is removed, and the call finds it absent.
    Drop,
    /// The session ends, and the call fails with [`Error::Ended`]: its visitor
    /// begins anew. [`Store::transact`](crate::Store::transact) runs its closure again, which then finds
    /// no session.
    NewSession,
}

/// The settings of a container, stored with it.
///
/// ```
/// use sessile::{Policy, Rule};
///
/// let policy = Policy::new()
///     .timeout_mins(30)
///     .limit(100_000)
///     .rule("theme", Rule::LastWriter);
/// assert_eq!(policy.timeout_secs, 1800);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Policy {
    /// Seconds a session lives after its last access, at least. Zero: for ever. Must be a whole
    /// multiple of the period.
    pub timeout_secs: u64,
    /// Seconds a session lives after its creation, at most, however often it is used; rounded up to
    /// the end of a period. Zero: as long as it is used.
    pub absolute_timeout_secs: u64,
    /// How many seconds before a session expires [`Event::Expiring`](crate::Event::Expiring) tells of
    /// it. Zero: never. It is not told of sessions that do not live longer than that to begin with, or
    /// that are nearer to their end when the setting changes.
    pub warn_secs: u64,
    /// The length of a timeslice in seconds. A session lives up to one period longer than its
    /// timeout; in return, accesses within one slice cost one write, or one in 30 s if the slice is
    /// longer.
    pub period_secs: u64,
    /// How many live sessions there may be. Zero: no limit.
    pub limit: u64,
    /// What happens when another session is created there.
    pub at_limit: AtLimit,
    /// How many live sessions one principal may have. Zero: no limit.
    pub principal_limit: u64,
    /// What happens when another session is bound to that principal.
    pub at_principal_limit: AtLimit,
    /// For how many seconds after a rotation the old key still leads to the session. Zero: it is dead
    /// at once.
    pub rotation_grace_secs: u64,
    /// How many bytes the names and encoded values of a session's attributes may have; 256 MiB at
    /// the most.
    pub session_bytes_max: usize,
    /// How many attributes a session may have; 1,048,576 at the most.
    pub attributes_max: usize,
    /// How deep lists and maps may lie in each other in a value; 128 at the most.
    pub depth_max: usize,
    /// How many bytes a key may have; 1,024 at the most.
    pub key_bytes_max: usize,
    /// When a commit that changes sessions here is acknowledged, unless there is no choice: see
    /// [`Durability`].
    pub durability: Durability,
    /// The merge rules of attributes, by name.
    pub rules: BTreeMap<String, Rule>,
    /// The merge rule of every other attribute.
    pub default_rule: Rule,
    /// A resolver for whole sessions that replaces the merge by attributes: registered at open
    /// under this name, or `zope_last_modified`, which is always there.
    pub resolver: Option<String>,
    /// The listener, registered at open under this name, that is told of new sessions.
    pub on_start: Option<String>,
    /// The listener, registered at open under this name, that is told of ended sessions.
    pub on_end: Option<String>,
    /// What happens when an attribute holds something else than is asked for.
    pub on_mismatch: OnMismatch,
}

/// Zope's defaults: 20 minutes, cut into slices of 20 seconds, without a limit.
impl Default for Policy {
    fn default() -> Self {
        Policy {
            timeout_secs: 20 * 60,
            absolute_timeout_secs: 0,
            warn_secs: 0,
            period_secs: 20,
            limit: 0,
            at_limit: AtLimit::Reject,
            principal_limit: 0,
            at_principal_limit: AtLimit::Reject,
            rotation_grace_secs: 0,
            session_bytes_max: 1 << 20,
            attributes_max: 1_000,
            depth_max: 64,
            key_bytes_max: 255,
            durability: Durability::Immediate,
            rules: BTreeMap::new(),
            default_rule: Rule::Checked,
            resolver: None,
            on_start: None,
            on_end: None,
            on_mismatch: OnMismatch::Error,
        }
    }
}

impl Policy {
    /// The default settings.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the timeout in minutes; zero: sessions never expire.
    pub fn timeout_mins(self, mins: u64) -> Self {
        self.timeout_secs(mins.saturating_mul(60))
    }

    /// Sets the timeout in seconds; zero: sessions never expire.
    pub fn timeout_secs(mut self, secs: u64) -> Self {
        self.timeout_secs = secs;
        self
    }

    /// Sets for how many hours a session lives after its creation, at most; zero: as long as it is
    /// used.
    pub fn absolute_timeout_hours(self, hours: u64) -> Self {
        self.absolute_timeout_secs(hours.saturating_mul(3_600))
    }

    /// Sets for how many seconds a session lives after its creation, at most; zero: as long as it is
    /// used.
    pub fn absolute_timeout_secs(mut self, secs: u64) -> Self {
        self.absolute_timeout_secs = secs;
        self
    }

    /// Sets how many seconds before a session expires it is told of; zero: never.
    pub fn warn_secs(mut self, secs: u64) -> Self {
        self.warn_secs = secs;
        self
    }

    /// Sets the length of a timeslice.
    pub fn period_secs(mut self, secs: u64) -> Self {
        self.period_secs = secs;
        self
    }

    /// Sets how many live sessions there may be; zero: no limit.
    pub fn limit(mut self, sessions: u64) -> Self {
        self.limit = sessions;
        self
    }

    /// Sets what happens when another session is created at the limit.
    pub fn at_limit(mut self, at_limit: AtLimit) -> Self {
        self.at_limit = at_limit;
        self
    }

    /// Sets how many live sessions one principal may have; zero: no limit.
    pub fn principal_limit(mut self, sessions: u64) -> Self {
        self.principal_limit = sessions;
        self
    }

    /// Sets what happens when another session is bound to a principal at that limit.
    pub fn at_principal_limit(mut self, at_limit: AtLimit) -> Self {
        self.at_principal_limit = at_limit;
        self
    }

    /// Sets for how long after a rotation the old key still leads to the session; zero: it does not.
    pub fn rotation_grace_secs(mut self, secs: u64) -> Self {
        self.rotation_grace_secs = secs;
        self
    }

    /// Sets how many bytes a session's attributes may have.
    pub fn session_bytes_max(mut self, bytes: usize) -> Self {
        self.session_bytes_max = bytes;
        self
    }

    /// Sets how many attributes a session may have.
    pub fn attributes_max(mut self, attributes: usize) -> Self {
        self.attributes_max = attributes;
        self
    }

    /// Sets how deep lists and maps may lie in each other in a value.
    pub fn depth_max(mut self, depth: usize) -> Self {
        self.depth_max = depth;
        self
    }

    /// Sets how many bytes a key may have.
    pub fn key_bytes_max(mut self, bytes: usize) -> Self {
        self.key_bytes_max = bytes;
        self
    }

    /// Sets when a commit that changes sessions here is acknowledged.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Sets the merge rule of one attribute.
    pub fn rule(mut self, attribute: impl Into<String>, rule: Rule) -> Self {
        self.rules.insert(attribute.into(), rule);
        self
    }

    /// Sets the merge rule of every attribute that has none of its own.
    pub fn default_rule(mut self, rule: Rule) -> Self {
        self.default_rule = rule;
        self
    }

    /// Sets the resolver for whole sessions.
    pub fn resolver(mut self, name: impl Into<String>) -> Self {
        self.resolver = Some(name.into());
        self
    }

    /// Sets the listener that is told of new sessions.
    pub fn on_start(mut self, listener: impl Into<String>) -> Self {
        self.on_start = Some(listener.into());
        self
    }

    /// Sets the listener that is told of ended sessions.
    pub fn on_end(mut self, listener: impl Into<String>) -> Self {
        self.on_end = Some(listener.into());
        self
    }

    /// Sets what happens when an attribute holds something else than is asked for.
    pub fn on_mismatch(mut self, on_mismatch: OnMismatch) -> Self {
        self.on_mismatch = on_mismatch;
        self
    }

    /// Whether under `other` some session may live longer than under this one.
    pub(crate) fn is_outlived_under(&self, other: &Policy) -> bool {
        let [own, others] = [self, other].map(Policy::lifetimes);
        own.0 < others.0 || own.1 < others.1 || (own.1 != u64::MAX && own.2 != others.2)
    }

    /// This policy, except that no session lives longer than under `other`.
    pub(crate) fn no_longer_than(&self, other: &Policy) -> Policy {
        let shorter = |one, other| match (one, other) {
            (0, secs) | (secs, 0) => secs,
            (one, other) => u64::min(one, other),
        };
        let absolute_timeout_secs =
            shorter(self.absolute_timeout_secs, other.absolute_timeout_secs);
        Policy {
            timeout_secs: shorter(self.timeout_secs, other.timeout_secs),
            absolute_timeout_secs,
            // Another one would round up to later.
            period_secs: if absolute_timeout_secs > 0 {
                other.period_secs
            } else {
                self.period_secs
            },
            ..self.clone()
        }
    }

    /// The timeouts as numbers that can be compared: the greater, the longer sessions live. And the
    /// period, to the end of which the second one is rounded up.
    fn lifetimes(&self) -> (u64, u64, u64) {
        let number = |secs| if secs == 0 { u64::MAX } else { secs };
        (number(self.timeout_secs), number(self.absolute_timeout_secs), self.period_secs)
    }

    pub(crate) fn rule_of(&self, attribute: &str) -> &Rule {
        self.rules.get(attribute).unwrap_or(&self.default_rule)
    }

    /// Refuses settings that mean nothing.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let refuse = |reason| Err(Error::Policy { reason });
        if self.period_secs == 0 {
            return refuse("the period must be at least one second".to_owned());
        }
        if !self.timeout_secs.is_multiple_of(self.period_secs) {
            return refuse(format!(
                "the timeout of {} s is no whole multiple of the period of {} s; set period_secs too",
                self.timeout_secs, self.period_secs
            ));
        }
        if self.depth_max > DEPTH_MAX {
            return refuse(format!("values nested deeper than {DEPTH_MAX} cannot be stored"));
        }
        if self.key_bytes_max > KEY_BYTES_MAX {
            return refuse(format!("keys of more than {KEY_BYTES_MAX} bytes cannot be stored"));
        }
        if self.attributes_max > ATTRIBUTES_MAX {
            return refuse(format!("more than {ATTRIBUTES_MAX} attributes cannot be stored"));
        }
        if self.session_bytes_max > SESSION_BYTES_MAX {
            return refuse(format!(
                "sessions of more than {SESSION_BYTES_MAX} bytes cannot be stored"
            ));
        }
        Ok(())
    }

    pub(crate) fn check_key(&self, key: &Key) -> Result<(), Error> {
        check(LimitKind::KeyBytes, key.as_bytes().len(), self.key_bytes_max)
    }

    /// Refuses a value in which lists and maps lie deeper in each other than they may.
    pub(crate) fn check_depth(&self, value: &Value) -> Result<(), Error> {
        check(LimitKind::Depth, value.depth(), self.depth_max)
    }

    /// Refuses a session that has grown beyond a limit. One that is too large because the limit was
    /// lowered may shrink.
    pub(crate) fn check_size(&self, before: Size, after: Size) -> Result<(), Error> {
        if after.attributes > before.attributes {
            check(LimitKind::Attributes, after.attributes, self.attributes_max)?;
        }
        if after.bytes > before.bytes {
            check(LimitKind::SessionBytes, after.bytes, self.session_bytes_max)?;
        }
        Ok(())
    }
}

/// What a policy may allow at the most: an index row must stay far below a database page's limits.
const KEY_BYTES_MAX: usize = 1_024;

const ATTRIBUTES_MAX: usize = 1 << 20;

/// Decoding recurses.
const DEPTH_MAX: usize = 128;

/// The same for sessions: far below what a record may claim to be when it is read.
const SESSION_BYTES_MAX: usize = 1 << 28;

fn check(limit: LimitKind, found: usize, max: usize) -> Result<(), Error> {
    if found <= max {
        return Ok(());
    }
    Err(Error::Limit { limit, max: u64::try_from(max).unwrap_or(u64::MAX) })
}
