//! Changes + stored state = new state, or a conflict.
//!
//! Three states meet in a merge:
//!
//! ```text
//!              base          what the transaction's snapshot held
//!             /    \
//!       stored      proposed = base + changes
//!             \    /
//!             merged         stored + changes, where rules and resolvers allow
//! ```
//!
//! The merge is by attribute. Each attribute carries the revision that last wrote it, so whether
//! somebody else wrote it meanwhile is one comparison: *its stored revision, or absence, is not the
//! base's*. Where nobody did, the transaction's write simply holds. Where somebody did, a merging
//! write is applied to what is stored, and for a plain write the rule of the attribute decides.
//!
//! Everything here is a pure function of its arguments. Resolvers are called under `catch_unwind`:
//! whatever goes wrong inside one, the outcome is a conflict.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::error::{ConflictReason, Error};
use crate::model::attribute::Holds;
use crate::model::attributes::{Attributes, Edits, Stamped};
use crate::model::change::{Changes, Write, merge_all};
use crate::model::clock::Time;
use crate::model::policy::{Policy, Rule};
use crate::model::session::{Name, Record, Revision};
use crate::model::value::{self, Value};

/// The three states of one attribute, for a resolver. Absent is `None`.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct AttributeMerge<'a> {
    /// The name of the attribute.
    pub name: &'a str,
    /// What the transaction's snapshot held.
    pub base: Option<&'a Value>,
    /// What is stored now.
    pub stored: Option<&'a Value>,
    /// What the transaction wants there.
    pub proposed: Option<&'a Value>,
}

/// The three states of one session, for a resolver.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SessionMerge<'a> {
    /// What the transaction's snapshot held.
    pub base: SessionState<'a>,
    /// What is stored now.
    pub stored: SessionState<'a>,
    /// What the transaction wants there.
    pub proposed: SessionState<'a>,
}

/// One state of a session.
#[derive(Clone, Copy)]
pub struct SessionState<'a>(&'a Record);

impl SessionState<'_> {
    /// The value of an attribute; `None` if it is absent or no `T`.
    pub fn get<T: DeserializeOwned>(&self, name: impl Holds<T>) -> Option<T> {
        self.value(name.name())?.to()
    }

    /// The encoded value of an attribute.
    pub fn value(&self, name: &str) -> Option<Value> {
        self.0.attributes.get(name).map(|attribute| attribute.value)
    }

    /// The names of the attributes, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.attributes.names()
    }

    /// When the session was created.
    pub fn created(&self) -> Time {
        self.0.created
    }

    /// When it was last accessed, give or take 30 s.
    pub fn last_accessed(&self) -> Time {
        self.0.last_accessed
    }

    /// When one of its attributes was last written.
    pub fn last_modified(&self) -> Option<Time> {
        self.0.last_modified
    }
}

impl fmt::Debug for SessionState<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionState({}, {} attributes)", self.0.revision, self.0.attributes.len())
    }
}

/// What a resolver answers: one of the three states, another one, or that it cannot say.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Resolution<T> {
    /// As it was before either of them.
    Base,
    /// What is stored stays.
    Stored,
    /// What the transaction wants.
    Proposed,
    /// This instead.
    New(T),
    /// No answer: the transaction conflicts.
    Decline,
}

/// Resolves one attribute: a pure function, called again whenever a commit is judged again.
pub(crate) type AttributeResolver =
    dyn Fn(&AttributeMerge<'_>) -> Resolution<Option<Value>> + Send + Sync;

/// Resolves one session. The answer replaces all its attributes.
pub(crate) type SessionResolver =
    dyn Fn(&SessionMerge<'_>) -> Resolution<BTreeMap<String, Value>> + Send + Sync;

/// The resolvers that the application registered at open, by name.
#[derive(Clone, Default)]
pub(crate) struct Resolvers {
    pub attributes: BTreeMap<String, Arc<AttributeResolver>>,
    pub sessions: BTreeMap<String, Arc<SessionResolver>>,
}

/// The name of the shipped resolver for whole sessions.
pub(crate) const ZOPE_LAST_MODIFIED: &str = "zope_last_modified";

/// What Zope does: the state with the greatest `last_modified` replaces the whole session; none
/// counts as the beginning of time, and of equals the first of base, stored, proposed holds.
fn zope_last_modified(merge: &SessionMerge<'_>) -> Resolution<BTreeMap<String, Value>> {
    let time = |state: &SessionState<'_>| state.last_modified().unwrap_or_default();
    let (base, stored, proposed) = (time(&merge.base), time(&merge.stored), time(&merge.proposed));
    if base >= stored && base >= proposed {
        Resolution::Base
    } else if stored >= proposed {
        Resolution::Stored
    } else {
        Resolution::Proposed
    }
}

/// Why a merge found no new state.
#[derive(Debug)]
pub(crate) enum Refusal {
    Conflict(ConflictReason),
    /// The merged session is too large. Trying again will not make it smaller.
    Limit(Error),
}

/// What kept a resolver from answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResolverTrouble {
    /// It was not registered when the store was opened.
    Missing,
    /// It panicked.
    Panicked,
    /// It declined.
    Declined,
}

/// The new state of a session.
#[derive(Debug)]
pub(crate) struct Merged {
    pub record: Record,
    /// The attributes this transaction wrote while others had changed the session.
    pub names: Vec<Name>,
    /// Those of them that others had changed.
    pub contended: Vec<Name>,
    /// Those of them that would have been a conflict, had this commit not been to win.
    pub overruled: BTreeSet<Name>,
}

/// Everything that a merge depends on besides the three states.
#[derive(Clone, Copy)]
pub(crate) struct Rules<'a> {
    pub policy: &'a Policy,
    pub resolvers: &'a Resolvers,
    /// Where no rule resolves a conflict at an attribute, this commit wins. A rule that rejects is one.
    pub later_wins: bool,
}

/// Refuses if one of these attributes has changed, although the transaction does not write it.
pub(crate) fn require(
    base: &Record,
    stored: &Record,
    required: &BTreeSet<Name>,
) -> Result<(), Refusal> {
    match required.iter().find(|name| version(stored, name) != version(base, name)) {
        Some(name) => Err(Refusal::Conflict(ConflictReason::Attribute(name.to_string()))),
        None => Ok(()),
    }
}

/// Applies `changes`, made on `base`, to what is stored now.
///
/// Both records are of one generation; touches and ends are settled before.
pub(crate) fn merge(
    base: &Record,
    stored: &Record,
    changes: &Changes,
    rules: Rules<'_>,
    revision: Revision,
) -> Result<Merged, Refusal> {
    // Mostly nobody else was there, and that is seen at a glance.
    let alone = base.attributes.is(&stored.attributes);
    let changed = |name: &str| !alone && version(stored, name) != version(base, name);
    if changes.is_empty() {
        let (names, contended, overruled) = Default::default();
        return Ok(Merged { record: stored.clone(), names, contended, overruled });
    }
    let names = || base.attributes.names().chain(stored.attributes.names());
    let mut overruled = BTreeSet::new();

    let mut record = stored.clone();
    record.revision = revision;
    record.last_modified = stored.last_modified.max(changes.modified);
    record.set_extras(|extras| changes.apply_extras(extras));
    let stamp = |value| Stamped { value, revision };
    match &rules.policy.resolver {
        Some(resolver) => {
            let mut proposed = Record { extras: base.extras.clone(), ..stored.clone() };
            (proposed.attributes, proposed.last_modified) =
                (base.attributes.clone(), base.last_modified);
            changes.apply_to(&mut proposed, revision);
            let differs = |state: &Record| {
                state.last_modified != base.last_modified
                    || !state.attributes.values().eq(base.attributes.values())
            };
            let (attributes, lapses) = match (differs(stored), differs(&proposed)) {
                (true, true) => ask_session(resolver, rules, base, stored, &proposed, revision)?,
                (true, false) => (stored.attributes.clone(), stored.lapses()),
                (false, _) => (proposed.attributes.clone(), proposed.lapses()),
            };
            record.attributes = attributes;
            record.set_extras(|extras| extras.lapses = lapses);
        }
        None => {
            let mut edits = Edits::new();
            // Until when what this transaction put there lasts. Merging writes change nothing of that.
            let mut untils: BTreeMap<Name, Option<Time>> = BTreeMap::new();
            let is_kept = |left: &Option<Stamped>| {
                left.as_ref().is_some_and(|left| left.revision != revision)
            };
            let mut put = |name: &str, mine: Plain<'_>| {
                if !changed(name) {
                    return Ok(mine.value.cloned().map(stamp));
                }
                match by_rule(name, base, stored, mine, rules, revision) {
                    Err(Refusal::Conflict(_))
                        if rules.later_wins && !mine.is_rejected(name, rules) =>
                    {
                        overruled.insert(name.into());
                        Ok(mine.value.cloned().map(stamp))
                    }
                    decided => decided,
                }
            };
            if let Some(reads) = &changes.clear {
                // A clear is a removal of every attribute that is stored and not set again.
                let set =
                    |name: &&str| matches!(changes.writes.get(*name), Some(Write::Put { .. }));
                for name in names().filter(|name| !set(name)) {
                    let gone = Plain { value: None, checked: reads.contains(name), rule: None };
                    let left = put(name, gone)?;
                    if !is_kept(&left) {
                        untils.insert(name.into(), None);
                    }
                    edits.insert(name.into(), left);
                }
            }
            for (name, write) in &changes.writes {
                let left = match write {
                    Write::Put { value, checked, rule, until } => {
                        let cleared = changes.clear.as_ref();
                        let checked = *checked || cleared.is_some_and(|reads| reads.contains(name));
                        let mine = Plain { value: value.as_ref(), checked, rule: rule.as_ref() };
                        let left = put(name, mine)?;
                        if !is_kept(&left) {
                            untils.insert(Arc::clone(name), until.filter(|_| left.is_some()));
                        }
                        left
                    }
                    Write::Merge(ops) => {
                        let cleared = edits.get(name).cloned();
                        let current = cleared.unwrap_or_else(|| stored.attributes.get(name));
                        let before = current.as_ref().map(|attribute| &attribute.value);
                        let value = merge_all(ops, before).ok_or_else(|| {
                            Refusal::Conflict(ConflictReason::Attribute(name.to_string()))
                        })?;
                        // What makes no difference is no write: it must not make others conflict.
                        match current {
                            Some(same) if value.as_ref() == Some(&same.value) => Some(same),
                            _ => value.map(stamp),
                        }
                    }
                };
                edits.insert(Arc::clone(name), left);
            }
            record.attributes = stored.attributes.edited(&edits);
            record.set_extras(|extras| {
                untils.iter().for_each(|(name, until)| extras.set_lapse(name, *until));
            });
        }
    }
    rules.policy.check_size(stored.size(), record.size()).map_err(Refusal::Limit)?;

    let names = match !alone && names().any(changed) {
        true => written(base, stored, changes),
        false => Vec::new(),
    };
    let contended = names.iter().filter(|name| changed(name)).cloned().collect();
    Ok(Merged { record, names, contended, overruled })
}

/// A plain write of an attribute.
#[derive(Clone, Copy)]
struct Plain<'a> {
    /// `None`: it is removed.
    value: Option<&'a Value>,
    checked: bool,
    /// Goes before the policy's.
    rule: Option<&'a Rule>,
}

impl<'a> Plain<'a> {
    fn rule(&self, name: &str, rules: Rules<'a>) -> &'a Rule {
        self.rule.unwrap_or_else(|| rules.policy.rule_of(name))
    }

    fn is_rejected(&self, name: &str, rules: Rules<'a>) -> bool {
        *self.rule(name, rules) == Rule::Reject
    }
}

/// A plain write of an attribute that somebody else has written meanwhile: what its rule says.
fn by_rule(
    name: &str,
    base: &Record,
    stored: &Record,
    mine: Plain<'_>,
    rules: Rules<'_>,
    revision: Revision,
) -> Result<Option<Stamped>, Refusal> {
    let (before, kept) = (base.attributes.get(name), stored.attributes.get(name));
    let base = before.as_ref().map(|attribute| &attribute.value);
    let stored = kept.as_ref().map(|attribute| &attribute.value);
    let stamp = |value: Value| Stamped { value, revision };
    let conflict = || Refusal::Conflict(ConflictReason::Attribute(name.to_string()));
    let rule = mine.rule(name, rules);
    let Plain { value: mine, checked, .. } = mine;
    match rule {
        Rule::Checked if checked => Err(conflict()),
        Rule::Checked | Rule::LastWriter => Ok(mine.cloned().map(stamp)),
        Rule::FirstWriter => Ok(kept),
        Rule::Reject => Err(conflict()),
        Rule::Resolver(resolver) => {
            let refuse = |trouble| no_answer(resolver, trouble);
            let resolve = rules.resolvers.attributes.get(&**resolver);
            let resolve = resolve.ok_or_else(|| refuse(ResolverTrouble::Missing))?;
            let states = AttributeMerge { name, base, stored, proposed: mine };
            match call(resolver, || resolve(&states))? {
                Resolution::Decline => Err(refuse(ResolverTrouble::Declined)),
                Resolution::Base => Ok(base.cloned().map(stamp)),
                Resolution::Stored => Ok(kept),
                Resolution::Proposed => Ok(mine.cloned().map(stamp)),
                Resolution::New(value) => {
                    let value = value.map(|value| rules.policy.check_depth(&value).map(|()| value));
                    Ok(value.transpose().map_err(Refusal::Limit)?.map(stamp))
                }
            }
        }
        rule => match mine {
            Some(mine) => combine(rule, base, stored, mine)
                .map(|value| Some(stamp(value)))
                .ok_or_else(conflict),
            // A rule that makes one value of two has nothing to say about a removal.
            None if checked => Err(conflict()),
            None => Ok(None),
        },
    }
}

/// One value of two; `None` if these two cannot be combined so.
fn combine(
    rule: &Rule,
    base: Option<&Value>,
    stored: Option<&Value>,
    mine: &Value,
) -> Option<Value> {
    let extreme = |wanted| value::extreme(stored.unwrap_or(mine), mine, wanted);
    match rule {
        Rule::Sum => value::sum(base, stored, mine),
        Rule::Max => extreme(Ordering::Greater),
        Rule::Min => extreme(Ordering::Less),
        Rule::Union => value::union(base, stored, mine),
        Rule::Append(cap) => value::append(base, stored, mine, *cap),
        Rule::Checked | Rule::LastWriter | Rule::FirstWriter | Rule::Reject | Rule::Resolver(_) => {
            None
        }
    }
}

/// The attributes, and until when they last, that the resolver for sessions wants.
fn ask_session(
    resolver: &str,
    rules: Rules<'_>,
    base: &Record,
    stored: &Record,
    proposed: &Record,
    revision: Revision,
) -> Result<(Attributes, BTreeMap<Name, Time>), Refusal> {
    let refuse = |trouble| no_answer(resolver, trouble);
    let states = SessionMerge {
        base: SessionState(base),
        stored: SessionState(stored),
        proposed: SessionState(proposed),
    };
    let answer = match rules.resolvers.sessions.get(resolver) {
        Some(resolve) => call(resolver, || resolve(&states))?,
        None if resolver == ZOPE_LAST_MODIFIED => zope_last_modified(&states),
        None => return Err(refuse(ResolverTrouble::Missing)),
    };
    let restamp = |state: &Record| {
        let stamped = |(name, was): (&str, Stamped)| (name.into(), Stamped { revision, ..was });
        (state.attributes.iter().map(stamped).collect(), state.lapses())
    };
    match answer {
        Resolution::Base => Ok(restamp(base)),
        Resolution::Stored => Ok(restamp(stored)),
        Resolution::Proposed => Ok(restamp(proposed)),
        Resolution::New(values) => {
            let mut attributes = Edits::new();
            for (name, value) in values {
                rules.policy.check_depth(&value).map_err(Refusal::Limit)?;
                attributes.insert(name.into(), Some(Stamped { value, revision }));
            }
            // Each lasts as long as in the proposed state, or as in the stored one if it is new to that.
            let until = |name: &Name| match proposed.attributes.revision(name) {
                Some(_) => proposed.until(name),
                None => stored.until(name),
            };
            let lapses = attributes.keys().filter_map(|name| Some((name.clone(), until(name)?)));
            let lapses = lapses.collect();
            Ok((Attributes::new().edited(&attributes), lapses))
        }
        Resolution::Decline => Err(refuse(ResolverTrouble::Declined)),
    }
}

/// Calls a resolver. A panic in it is no answer.
fn call<T>(resolver: &str, resolve: impl FnOnce() -> T) -> Result<T, Refusal> {
    catch_unwind(AssertUnwindSafe(resolve)).map_err(|panic| {
        // Its payload may panic when it is dropped.
        mem::forget(panic);
        no_answer(resolver, ResolverTrouble::Panicked)
    })
}

fn no_answer(resolver: &str, trouble: ResolverTrouble) -> Refusal {
    Refusal::Conflict(ConflictReason::Resolver { name: resolver.to_owned(), trouble })
}

/// The revision that wrote an attribute, or its absence.
fn version(record: &Record, name: &str) -> Option<Revision> {
    record.attributes.revision(name)
}

/// The names that `changes` writes, those of a clear included.
fn written(base: &Record, stored: &Record, changes: &Changes) -> Vec<Name> {
    let all = || base.attributes.names().chain(stored.attributes.names()).map(Name::from);
    let cleared = changes.clear.iter().flat_map(|_| all());
    let mut names: Vec<Name> = changes.writes.keys().cloned().chain(cleared).collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
#[path = "merge_laws.rs"]
pub(crate) mod laws;
