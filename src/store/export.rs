//! Writing sessions down for other programs, and for other stores.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;

use serde::Serialize;

use crate::error::Error;
use crate::store::filter::Filter;
use crate::store::ndjson::{Entry, Line, Writer};
use crate::store::whole::{Still, Whole};
use crate::store::{Store, Viewer};

/// What is to be exported, and how.
///
/// ```
/// # use sessile::{ExportOptions, Filter, ImportOptions, Policy, Store};
/// # let store = Store::memory()?;
/// # let visitors = store.container_with("visitors", Policy::new())?;
/// store.transact(|txn| txn.create(&visitors, "ada")?.insert("name", "Ada"))?;
///
/// let mut lines = Vec::new();
/// let of_ada = Filter::new().equals("name", "Ada")?;
/// let exported = store.export(&mut lines, &ExportOptions::new().filter(of_ada))?;
/// assert_eq!(exported.sessions, 1);
///
/// let other = Store::memory()?;
/// let imported = other.import(&lines[..], &ImportOptions::new())?;
/// assert_eq!(imported.created, 1);
/// # Ok::<(), sessile::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    containers: Option<BTreeSet<String>>,
    filter: Filter,
    without: BTreeSet<String>,
    redacted: bool,
}

impl ExportOptions {
    /// Every live session of every container, with everything in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only this container, and others that are named so.
    pub fn container(mut self, name: impl Into<String>) -> Self {
        self.containers.get_or_insert_default().insert(name.into());
        self
    }

    /// Only sessions that pass a filter.
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// Leaves an attribute out. May be said of several.
    pub fn without(mut self, attribute: impl Into<String>) -> Self {
        self.without.insert(attribute.into());
        self
    }

    /// For a bug report: fingerprints in place of keys and principals, no notes, and of values their
    /// kind and size only. It cannot be imported.
    pub fn redacted(mut self) -> Self {
        self.redacted = true;
        self
    }
}

/// What was exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Exported {
    /// The last commit that is in it.
    pub revision: u64,
    /// How many containers.
    pub containers: u64,
    /// How many sessions.
    pub sessions: u64,
    /// How many bytes were written.
    pub bytes: u64,
    /// The digest of all lines before the last, which holds it. Two exports of one digest say the same.
    pub digest: String,
    /// How many sessions are known to be missing because their records are damaged.
    pub damaged: u64,
}

impl fmt::Display for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Exported { containers, sessions, bytes, .. } = self;
        write!(f, "{sessions} sessions of {containers} containers, {bytes} bytes")
    }
}

impl Store {
    /// Writes one committed state as lines of JSON: containers with their settings, and sessions with
    /// all that is theirs. [`import`](Store::import) reads them. What the store keeps for itself is left
    /// out: keys that were rotated away, and ends that are still to be told.
    ///
    /// Keys are written in hex. For web sessions they are hashes, and let nobody in; but what sessions
    /// hold is private, so keep the file from others.
    ///
    /// It may go on for as long as it takes; commits go on meanwhile, and are not in it.
    ///
    /// # Errors
    ///
    /// [`Error::NoContainer`], and [`Error::Storage`] if what is written cannot be, or the store not be
    /// read: then what was written lacks its last line, and nobody takes it for whole.
    pub fn export(&self, out: impl Write, options: &ExportOptions) -> Result<Exported, Error> {
        export(&Still::durable(&self.core)?, out, options)
    }
}

impl Viewer {
    /// Writes what is seen as lines of JSON; see [`Store::export`].
    ///
    /// # Errors
    ///
    /// As for [`Store::export`], and [`Error::Busy`] if the store was opened meanwhile.
    pub fn export(&self, out: impl Write, options: &ExportOptions) -> Result<Exported, Error> {
        export(&**self.viewing(), out, options)
    }
}

fn export(whole: &impl Whole, out: impl Write, options: &ExportOptions) -> Result<Exported, Error> {
    let ExportOptions { containers: wanted, filter, without, redacted } = options;
    let mut containers = whole.containers();
    containers.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(wanted) = wanted {
        let is_there = |name: &&String| containers.iter().any(|state| *state.name == ***name);
        if let Some(name) = wanted.iter().find(|name| !is_there(name)) {
            return Err(Error::NoContainer { name: name.clone() });
        }
        containers.retain(|state| wanted.contains(&*state.name));
    }
    let now = whole.now();
    let mut out = Writer::new(BufWriter::new(out));
    out.line(&Line::first(*redacted))?;
    let mut sessions = 0;
    for state in &containers {
        let policy = &*state.policy;
        let (name, settings) = (state.name.to_string(), Box::new(policy.clone()));
        out.line(&Line::Container { name, policy: settings })?;
        whole.each(state.id, &mut |key, record| {
            if filter.matches(&record, policy, now) {
                let is_wanted = |name: &str| !without.contains(name);
                let record = record.lapsed(now);
                let entry = Entry::of(&key, &record, policy, *redacted, is_wanted);
                out.line(&Line::Session(Box::new(entry)))?;
                sessions += 1;
            }
            Ok(ControlFlow::Continue(()))
        })?;
    }
    let containers = containers.len() as u64;
    let (bytes, digest) = out.end(containers, sessions)?;
    let (revision, damaged) = (whole.revision().get(), whole.damaged());
    Ok(Exported { revision, containers, sessions, bytes, digest, damaged })
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::option;
    use proptest::prelude::*;

    use super::*;
    use crate::error::LimitKind;
    use crate::model::attributes::Stamped;
    use crate::model::clock::{ManualClock, Time};
    use crate::model::key::Key;
    use crate::model::policy::{AtLimit, Durability, Policy, Rule};
    use crate::model::portable::tests::value;
    use crate::model::session::{Principal, Record, Revision};
    use crate::store::{ImportOptions, OnConflict, Options};

    const START: u64 = 1_000_000;

    fn store(clock: &ManualClock) -> Store {
        Options::new().clock(clock.clone()).sweep_every(None).seed(7).memory().unwrap()
    }

    fn policy() -> impl Strategy<Value = Policy> {
        let rule = prop_oneof![
            Just(Rule::Sum),
            (0usize..9).prop_map(Rule::Append),
            Just(Rule::Resolver("zoë".into())),
        ];
        (0u64..4, btree_map("[a-c]{1,2}", rule, 0..3), any::<bool>()).prop_map(
            |(slices, rules, odd)| {
                let policy = Policy::new().timeout_secs(20 * slices);
                let policy = match odd {
                    true => policy.on_end("bye").durability(Durability::Relaxed),
                    false => policy.absolute_timeout_secs(7).at_limit(AtLimit::EvictOldest),
                };
                Policy { rules, ..policy }
            },
        )
    }

    /// Any session: used lately or long ago, bound or not, with attributes that may have lapsed.
    fn record() -> impl Strategy<Value = Record> {
        let extras = (
            option::of(0u64..90),
            option::of((".{0,4}", ".{0,4}")),
            btree_map("[a-d]", 0u64..99, 0..3),
        );
        let times = (0u64..99_000_000, 0u64..99_000_000, option::of(0u64..99_000_000), 0u64..99);
        let attributes = btree_map("[a-d]|.{0,5}", value(), 0..5);
        (times, extras, attributes).prop_map(
            |((created, accessed, modified, slice_end), extras, attributes)| {
                let time = |micros| Time::from_micros(START * 1_000_000 - 50_000_000 + micros);
                let attribute = |(name, value): (String, _)| {
                    (name.into(), Stamped { value, revision: Revision(9) })
                };
                let mut record = Record {
                    created: time(created),
                    last_accessed: time(accessed),
                    last_modified: modified.map(time),
                    slice_end: time(slice_end * 1_000_000),
                    attributes: attributes.into_iter().map(attribute).collect(),
                    ..Record::default()
                };
                let (timeout_secs, principal, lapses) = extras;
                let attributes = record.attributes.clone();
                record.set_extras(|extras| {
                    extras.timeout_secs = timeout_secs;
                    extras.principal = principal
                        .map(|(name, note)| Principal { name: name.into(), note: note.into() });
                    let lapse = |(name, secs): (String, u64)| (name.into(), time(secs * 1_000_000));
                    extras.lapses = lapses.into_iter().map(lapse).collect();
                    extras.lapses.retain(|name, _| attributes.get(name).is_some());
                });
                record
            },
        )
    }

    fn exported(store: &Store) -> (Vec<u8>, Exported) {
        let mut lines = Vec::new();
        let exported = store.export(&mut lines, &ExportOptions::new()).unwrap();
        (lines, exported)
    }

    /// A container, and what of its sessions is to survive.
    type Kept = (String, Policy, Vec<(Key, Record)>);

    fn kept(store: &Store) -> Vec<Kept> {
        let still = Still::of(&store.core).unwrap();
        let mut all = Vec::new();
        for state in still.containers() {
            let mut sessions = Vec::new();
            let now = still.now();
            still
                .each(state.id, &mut |key, record| {
                    let (id, revision, bucket) = Default::default();
                    let mut record =
                        Record { id, revision, bucket, ..(*record.lapsed(now)).clone() };
                    let at_zero = |(name, a): (&str, Stamped)| {
                        (name.into(), Stamped { revision: Revision(0), ..a })
                    };
                    record.attributes = record.attributes.iter().map(at_zero).collect();
                    if !record.is_expired(&state.policy, now) {
                        sessions.push((key, record));
                    }
                    Ok(ControlFlow::Continue(()))
                })
                .unwrap();
            all.push((state.name.to_string(), (*state.policy).clone(), sessions));
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// What nobody could have bound is not bound by an import.
    #[test]
    fn a_principal_whose_name_is_too_long_is_not_taken_in() {
        let store = store(&ManualClock::new(Time::from_secs(START)));
        let shop = store.container_with("shop", Policy::new()).unwrap();
        let taken_in = |bytes: (usize, usize)| {
            let time = Time::from_secs(START);
            let mut record = Record { created: time, slice_end: time, ..Record::default() };
            let principal =
                Principal { name: "n".repeat(bytes.0).into(), note: "n".repeat(bytes.1).into() };
            record.set_extras(|extras| extras.principal = Some(principal));
            store.transact(|txn| txn.take_in(&shop, &"ada".into(), &record, OnConflict::Replace))
        };
        for too_long in [(1_025, 0), (1, 1_025)] {
            let refused = taken_in(too_long).map(|_| ());
            assert!(matches!(refused, Err(Error::Limit { limit: LimitKind::PrincipalBytes, .. })));
        }
        assert!(taken_in((1_024, 1_024)).is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// What is exported and imported again is the same, and is exported as the same bytes: every
        /// kind of value, principals, timeouts, lapses, settings. What has expired stays behind.
        #[test]
        fn what_is_imported_is_exported_to_the_byte(
            containers in btree_map(
                ".{0,3}",
                (policy(), btree_map(vec(any::<u8>(), 0..4), record(), 0..6)),
                0..4,
            ),
            later in 0u64..60,
        ) {
            let clock = ManualClock::new(Time::from_secs(START));
            let original = store(&clock);
            for (name, (policy, sessions)) in containers {
                let container = original.container_with(&name, policy).unwrap();
                original
                    .transact(|txn| {
                        for (key, record) in &sessions {
                            txn.take_in(&container, &key.clone().into(), record, OnConflict::Fail)?;
                        }
                        Ok(())
                    })
                    .unwrap();
            }
            // Some expire, and some attributes lapse.
            clock.advance_secs(later);
            let (lines, report) = exported(&original);
            let copy = store(&clock);
            let dry = copy.import(&lines[..], &ImportOptions::new().dry_run()).unwrap();
            prop_assert!(copy.containers().is_empty());
            let imported = copy.import(&lines[..], &ImportOptions::new()).unwrap();
            prop_assert_eq!(dry, imported);
            prop_assert_eq!((imported.created, imported.containers), (report.sessions, report.containers));
            prop_assert_eq!(kept(&copy), kept(&original));
            let (again, second) = exported(&copy);
            prop_assert_eq!(String::from_utf8(again).unwrap(), String::from_utf8(lines).unwrap());
            prop_assert_eq!(second.digest, report.digest);
        }

        /// Whatever is cut off or changed is noticed.
        #[test]
        fn what_is_not_whole_is_noticed(
            record in record(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let clock = ManualClock::new(Time::from_secs(START));
            let store = store(&clock);
            let visitors = store.container_with("visitors", Policy::new().timeout_secs(0)).unwrap();
            let put = |txn: &crate::Transaction| {
                txn.take_in(&visitors, &"ada".into(), &record, OnConflict::Fail).map(|_| ())
            };
            store.transact(put).unwrap();
            let (lines, _) = exported(&store);
            let options = ImportOptions::new().on_conflict(OnConflict::Skip).dry_run();
            prop_assert!(store.import(&lines[..], &options).is_ok());
            // All but the end of the last line matters.
            let at = at.index(lines.len() - 1);
            let is_refused = |lines: &[u8]| match store.import(lines, &options) {
                Err(Error::Import { .. } | Error::Format { .. }) => true,
                other => panic!("{other:?}"),
            };
            prop_assert!(is_refused(&lines[..at]));
            let mut changed = lines.clone();
            changed[at] = if changed[at] == byte { byte ^ 1 } else { byte };
            prop_assert!(is_refused(&changed));
            let twice = [&lines[..], &lines[..]].concat();
            prop_assert!(is_refused(&twice));
        }
    }
}
