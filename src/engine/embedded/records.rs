//! The bytes of sessions and containers: bincode, and nothing else in the crate knows it.
//!
//! The fixed shapes below *are* the format (see `format.md`); the model's types are made of them
//! and may change freely. What is read is treated as hostile: sizes are bounded, and bytes that do
//! not decode to the end are [`Error::Corrupt`].

use std::collections::BTreeMap;
use std::sync::Arc;

use bincode::config::{self, Config};
use bincode::{BorrowDecode, Decode, Encode};
use twox_hash::XxHash3_64;

use super::generation::Dated;
use crate::engine::{Commit, SessionChange};
use crate::error::Error;
use crate::model::attributes::{Attributes, Stamped};
use crate::model::clock::Time;
use crate::model::container::{ContainerId, ContainerState, Place};
use crate::model::key::Key;
use crate::model::policy::{AtLimit, Durability, OnMismatch, Policy, Rule};
use crate::model::session::{Extras, Name, Principal, Record, Revision, SessionId};
use crate::model::value::Value;

/// No record may claim to be larger, whatever its length fields say.
const BYTES_MAX: usize = 1 << 30;

/// Little-endian, integers of variable length.
fn format() -> impl Config {
    config::standard().with_limit::<BYTES_MAX>()
}

/// A session.
#[derive(Encode, BorrowDecode)]
struct SessionBytes<'a> {
    id: u128,
    revision: u64,
    created: u64,
    times: TimesBytes,
    extras: Option<ExtrasBytes<'a>>,
    /// As they lie in memory: see `model/attributes.rs`.
    attributes: &'a [u8],
}

/// What a touch may change.
#[derive(Encode, Decode)]
struct TimesBytes {
    last_accessed: u64,
    last_modified: Option<u64>,
    slice_end: u64,
    bucket: u64,
}

/// What only some sessions have.
#[derive(Encode, BorrowDecode)]
struct ExtrasBytes<'a> {
    timeout_secs: Option<u64>,
    /// Name and note.
    principal: Option<(&'a str, &'a str)>,
    lapses: Vec<(&'a str, u64)>,
}

#[derive(Encode, BorrowDecode)]
struct AttributeBytes<'a> {
    name: &'a str,
    revision: u64,
    value: &'a [u8],
}

/// What a commit made of one session, in the log.
#[derive(Encode, BorrowDecode)]
enum EntryBytes<'a> {
    /// It was created.
    Put { container: u32, key: &'a [u8], session: SessionBytes<'a> },
    /// It was changed: these times, these extras if they are others, these attributes, and without
    /// those.
    Change {
        container: u32,
        key: &'a [u8],
        id: u128,
        times: TimesBytes,
        extras: Option<Option<ExtrasBytes<'a>>>,
        set: Vec<AttributeBytes<'a>>,
        removed: Vec<&'a str>,
    },
    /// It has ended.
    End { container: u32, key: &'a [u8], id: u128 },
}

/// A commit in the log.
#[derive(Encode, BorrowDecode)]
struct CommitBytes<'a> {
    revision: u64,
    sessions: Vec<EntryBytes<'a>>,
    containers: Vec<(u32, ContainerBytes)>,
}

/// What the tables hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(super) struct Meta {
    /// Every commit up to here is in the tables.
    pub folded: u64,
    /// The store's time, in microseconds.
    pub time: u64,
    pub epoch: u64,
    /// The store was closed, and everything is in the tables.
    pub clean: bool,
    /// The last revision of each earlier epoch that was recovered, the newest last.
    pub epochs: Vec<(u64, u64)>,
    /// The current epoch began after this revision. None up to here is given to a commit again:
    /// commits of earlier epochs that are lost may have had it.
    pub begun: u64,
}

#[derive(Encode, Decode)]
struct ContainerBytes {
    name: String,
    policy_revision: u64,
    count: u64,
    refile_from: Option<Vec<u8>>,
    timeout_secs: u64,
    absolute_timeout_secs: u64,
    warn_secs: u64,
    period_secs: u64,
    limit: u64,
    evicts_at_limit: bool,
    principal_limit: u64,
    evicts_at_principal_limit: bool,
    rotation_grace_secs: u64,
    session_bytes_max: u64,
    attributes_max: u64,
    depth_max: u64,
    key_bytes_max: u64,
    relaxed: bool,
    rules: BTreeMap<String, RuleBytes>,
    default_rule: RuleBytes,
    resolver: Option<String>,
    on_start: Option<String>,
    on_end: Option<String>,
    on_mismatch: MismatchBytes,
}

#[derive(Encode, Decode)]
enum MismatchBytes {
    Error,
    Drop,
    NewSession,
}

#[derive(Encode, Decode)]
enum RuleBytes {
    Checked,
    LastWriter,
    FirstWriter,
    Sum,
    Max,
    Min,
    Union,
    Append(u64),
    Reject,
    Resolver(String),
}

impl TimesBytes {
    fn of(record: &Record) -> Self {
        TimesBytes {
            last_accessed: record.last_accessed.as_micros(),
            last_modified: record.last_modified.map(Time::as_micros),
            slice_end: record.slice_end.as_micros(),
            bucket: record.bucket,
        }
    }

    fn set(&self, record: &mut Record) {
        record.last_accessed = Time::from_micros(self.last_accessed);
        record.last_modified = self.last_modified.map(Time::from_micros);
        record.slice_end = Time::from_micros(self.slice_end);
        record.bucket = self.bucket;
    }
}

impl AttributeBytes<'_> {
    fn attribute(&self) -> Stamped {
        Stamped { value: Value::from_bytes(self.value), revision: Revision(self.revision) }
    }
}

impl<'a> SessionBytes<'a> {
    fn of(record: &'a Record) -> Self {
        SessionBytes {
            id: record.id.0,
            revision: record.revision.0,
            created: record.created.as_micros(),
            times: TimesBytes::of(record),
            extras: ExtrasBytes::of(record),
            attributes: record.attributes.as_bytes(),
        }
    }

    fn record(&self, table: &'static str) -> Result<Record, Error> {
        let attributes = Attributes::from_bytes(self.attributes)
            .ok_or_else(|| corrupt(table, "attributes cannot be decoded"))?;
        let mut record = Record {
            id: SessionId(self.id),
            revision: Revision(self.revision),
            created: Time::from_micros(self.created),
            last_accessed: Time::default(),
            last_modified: None,
            slice_end: Time::default(),
            bucket: 0,
            attributes,
            extras: None,
        };
        self.times.set(&mut record);
        if let Some(extras) = &self.extras {
            extras.set(&mut record);
        }
        Ok(record)
    }
}

impl<'a> ExtrasBytes<'a> {
    fn of(record: &'a Record) -> Option<Self> {
        let Extras { timeout_secs, principal, lapses } = record.extras.as_deref()?;
        let lapse = |(name, until): (&'a Name, &Time)| (&**name, until.as_micros());
        Some(ExtrasBytes {
            timeout_secs: *timeout_secs,
            principal: principal.as_ref().map(|principal| (&*principal.name, &*principal.note)),
            lapses: lapses.iter().map(lapse).collect(),
        })
    }

    fn set(&self, record: &mut Record) {
        let principal =
            |(name, note): (&str, &str)| Principal { name: name.into(), note: note.into() };
        let lapse = |(name, until): &(&str, u64)| ((*name).into(), Time::from_micros(*until));
        record.set_extras(|extras| {
            *extras = Extras {
                timeout_secs: self.timeout_secs,
                principal: self.principal.map(principal),
                lapses: self.lapses.iter().map(lapse).collect(),
            };
        });
    }
}

/// Appends a commit to the body of a batch.
pub(super) fn encode_commit(commit: &Commit, batch: &mut Vec<u8>) {
    let container = |state: &Arc<ContainerState>| (state.id.0, ContainerBytes::of(state));
    let bytes = CommitBytes {
        revision: commit.revision.0,
        sessions: commit.sessions.iter().map(entry).collect(),
        containers: commit.containers.iter().map(container).collect(),
    };
    encode(bytes, batch);
}

fn entry(change: &SessionChange) -> EntryBytes<'_> {
    let (container, key) = (change.place.0.0, change.place.1.as_bytes());
    match (&change.before, &change.after) {
        (Some(before), Some(after)) if before.id == after.id => {
            let (set, removed) = after.attributes.changed_since(&before.attributes);
            let bytes = |(name, revision, value): (_, Revision, _)| AttributeBytes {
                name,
                revision: revision.0,
                value,
            };
            EntryBytes::Change {
                container,
                key,
                id: after.id.0,
                times: TimesBytes::of(after),
                extras: (after.extras != before.extras).then(|| ExtrasBytes::of(after)),
                set: set.into_iter().map(bytes).collect(),
                removed,
            }
        }
        (_, Some(after)) => EntryBytes::Put { container, key, session: SessionBytes::of(after) },
        (before, None) => {
            let id = before.as_ref().map_or(0, |before| before.id.0);
            EntryBytes::End { container, key, id }
        }
    }
}

/// The commits in the body of a batch, done to what is known of each session.
pub(super) fn replay(mut body: &[u8], replay: &mut impl Replay) -> Result<(), Error> {
    while !body.is_empty() {
        let (commit, read): (CommitBytes<'_>, usize) =
            bincode::borrow_decode_from_slice(body, format())
                .map_err(|_| corrupt("log", "a commit cannot be decoded"))?;
        body = &body[read..];
        let revision = Revision(commit.revision);
        for entry in &commit.sessions {
            let (place, id) = entry.place();
            let stored = replay.session(&place)?;
            // What is in the tables already may be newer than the log says here.
            if stored.as_ref().is_some_and(|(newest, _)| *newest >= revision) {
                continue;
            }
            let stored = stored.and_then(|(_, record)| record).filter(|record| record.id == id);
            let record = match (entry, stored) {
                (EntryBytes::Put { session, .. }, _) => Some(Arc::new(session.record("log")?)),
                (EntryBytes::End { .. }, _) => None,
                (EntryBytes::Change { times, extras, set, removed, .. }, Some(stored)) => {
                    let mut record = Record::clone(&stored);
                    record.revision = revision;
                    times.set(&mut record);
                    match extras {
                        Some(Some(extras)) => extras.set(&mut record),
                        Some(None) => record.extras = None,
                        None => {}
                    }
                    let set = set.iter().map(|set| (set.name.into(), Some(set.attribute())));
                    let removed = removed.iter().map(|name| ((*name).into(), None));
                    record.attributes = record.attributes.edited(&removed.chain(set).collect());
                    Some(Arc::new(record))
                }
                // Its end is in the tables already, or it is missing there.
                (EntryBytes::Change { .. }, None) => {
                    replay.missing(&place, id);
                    continue;
                }
            };
            replay.put(place, id, revision, record);
        }
        for (id, container) in commit.containers {
            replay.container(container.state(id)?);
        }
    }
    Ok(())
}

/// What is known while the log is replayed.
pub(super) trait Replay {
    /// The newest state of a session, and the revision that it is from; `None` if there never was
    /// one as far as is known.
    fn session(&mut self, place: &Place) -> Result<Option<Dated>, Error>;
    fn put(&mut self, place: Place, id: SessionId, revision: Revision, record: Option<Arc<Record>>);
    /// A session was changed that is not there.
    fn missing(&mut self, place: &Place, id: SessionId);
    fn container(&mut self, state: ContainerState);
}

impl EntryBytes<'_> {
    fn place(&self) -> (Place, SessionId) {
        let (container, key, id) = match self {
            EntryBytes::Put { container, key, session } => (container, key, session.id),
            EntryBytes::Change { container, key, id, .. } => (container, key, *id),
            EntryBytes::End { container, key, id } => (container, key, *id),
        };
        ((ContainerId(*container), Key::from(*key)), SessionId(id))
    }
}

/// A row of `sessions`: checksum and bucket in eight bytes each, then the session.
pub(super) fn encode_session(place: &Place, record: &Record) -> Vec<u8> {
    let seed = seed(place.0, place.1.as_bytes());
    row(seed, &record.bucket.to_le_bytes(), SessionBytes::of(record))
}

pub(super) fn decode_session(
    container: ContainerId,
    key: &[u8],
    row: &[u8],
) -> Result<Record, Error> {
    let body = unseal(seed(container, key), row, "sessions")?;
    let (bucket, body) =
        body.split_first_chunk().ok_or_else(|| corrupt("sessions", "a row is cut off"))?;
    let record = decode::<SessionBytes<'_>>(body, "sessions")?.record("sessions")?;
    match record.bucket == u64::from_le_bytes(*bucket) {
        true => Ok(record),
        false => Err(corrupt("sessions", "a row contradicts itself")),
    }
}

/// The bucket of a row of `sessions`; `None` if the row is damaged.
pub(super) fn bucket(place: &Place, row: &[u8]) -> Option<u64> {
    let body = unseal(seed(place.0, place.1.as_bytes()), row, "sessions").ok()?;
    body.first_chunk().map(|bucket| u64::from_le_bytes(*bucket))
}

/// What binds a row to its place: a row that turns up elsewhere is as wrong as a changed one.
fn seed(container: ContainerId, key: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(container.0.into(), key)
}

/// A row: checksum, what may stand before the record, and the record.
fn row(seed: u64, head: &[u8], record: impl Encode) -> Vec<u8> {
    let mut row = vec![0; 8];
    row.extend_from_slice(head);
    encode(record, &mut row);
    seal(seed, row)
}

/// Fills in the checksum, for which the first eight bytes of a row are left free.
fn seal(seed: u64, mut row: Vec<u8>) -> Vec<u8> {
    let checksum = XxHash3_64::oneshot_with_seed(seed, &row[8..]);
    row[..8].copy_from_slice(&checksum.to_le_bytes());
    row
}

/// The bytes behind the checksum, if it is right.
fn unseal<'a>(seed: u64, row: &'a [u8], table: &'static str) -> Result<&'a [u8], Error> {
    let (checksum, body) =
        row.split_first_chunk().ok_or_else(|| corrupt(table, "a row is cut off"))?;
    match XxHash3_64::oneshot_with_seed(seed, body) == u64::from_le_bytes(*checksum) {
        true => Ok(body),
        false => Err(corrupt(table, "a row's checksum is wrong")),
    }
}

/// The one row of `meta`.
pub(super) fn encode_meta(meta: &Meta) -> Vec<u8> {
    row(META_SEED, &[], meta)
}

pub(super) fn decode_meta(row: &[u8]) -> Result<Meta, Error> {
    decode(unseal(META_SEED, row, "meta")?, "meta")
}

// Rows of other tables are no rows of these.
const META_SEED: u64 = 0x6d65_7461;
const CONTAINERS_SEED: u64 = 0x636f_6e74;

pub(super) fn encode_container(state: &ContainerState) -> Vec<u8> {
    row(CONTAINERS_SEED + u64::from(state.id.0), &[], ContainerBytes::of(state))
}

pub(super) fn decode_container(id: u32, row: &[u8]) -> Result<ContainerState, Error> {
    let body = unseal(CONTAINERS_SEED + u64::from(id), row, "containers")?;
    decode::<ContainerBytes>(body, "containers")?.state(id)
}

impl ContainerBytes {
    fn of(state: &ContainerState) -> Self {
        let policy = &*state.policy;
        ContainerBytes {
            name: state.name.to_string(),
            policy_revision: state.policy_revision.0,
            count: state.count,
            refile_from: state.refile_from.as_ref().map(|key| key.as_bytes().to_vec()),
            timeout_secs: policy.timeout_secs,
            absolute_timeout_secs: policy.absolute_timeout_secs,
            warn_secs: policy.warn_secs,
            period_secs: policy.period_secs,
            limit: policy.limit,
            evicts_at_limit: policy.at_limit == AtLimit::EvictOldest,
            principal_limit: policy.principal_limit,
            evicts_at_principal_limit: policy.at_principal_limit == AtLimit::EvictOldest,
            rotation_grace_secs: policy.rotation_grace_secs,
            session_bytes_max: policy.session_bytes_max as u64,
            attributes_max: policy.attributes_max as u64,
            depth_max: policy.depth_max as u64,
            key_bytes_max: policy.key_bytes_max as u64,
            relaxed: policy.durability == Durability::Relaxed,
            rules: policy.rules.iter().map(|(name, rule)| (name.clone(), rule.into())).collect(),
            default_rule: (&policy.default_rule).into(),
            resolver: policy.resolver.clone(),
            on_start: policy.on_start.clone(),
            on_end: policy.on_end.clone(),
            on_mismatch: match policy.on_mismatch {
                OnMismatch::Error => MismatchBytes::Error,
                OnMismatch::Drop => MismatchBytes::Drop,
                OnMismatch::NewSession => MismatchBytes::NewSession,
            },
        }
    }

    fn state(self, id: u32) -> Result<ContainerState, Error> {
        let at_limit = |evicts| if evicts { AtLimit::EvictOldest } else { AtLimit::Reject };
        let policy = Policy {
            timeout_secs: self.timeout_secs,
            absolute_timeout_secs: self.absolute_timeout_secs,
            warn_secs: self.warn_secs,
            period_secs: self.period_secs,
            limit: self.limit,
            at_limit: at_limit(self.evicts_at_limit),
            principal_limit: self.principal_limit,
            at_principal_limit: at_limit(self.evicts_at_principal_limit),
            rotation_grace_secs: self.rotation_grace_secs,
            session_bytes_max: size(self.session_bytes_max),
            attributes_max: size(self.attributes_max),
            depth_max: size(self.depth_max),
            key_bytes_max: size(self.key_bytes_max),
            durability: match self.relaxed {
                true => Durability::Relaxed,
                false => Durability::Immediate,
            },
            rules: self.rules.into_iter().map(|(name, rule)| (name, rule.into())).collect(),
            default_rule: self.default_rule.into(),
            resolver: self.resolver,
            on_start: self.on_start,
            on_end: self.on_end,
            on_mismatch: match self.on_mismatch {
                MismatchBytes::Error => OnMismatch::Error,
                MismatchBytes::Drop => OnMismatch::Drop,
                MismatchBytes::NewSession => OnMismatch::NewSession,
            },
        };
        if policy.validate().is_err() {
            return Err(corrupt("containers", "the policy contradicts itself"));
        }
        Ok(ContainerState {
            id: ContainerId(id),
            name: self.name.into(),
            policy: Arc::new(policy),
            policy_revision: Revision(self.policy_revision),
            count: self.count,
            refile_from: self.refile_from.map(Key::from),
        })
    }
}

impl From<&Rule> for RuleBytes {
    fn from(rule: &Rule) -> Self {
        match rule {
            Rule::Checked => RuleBytes::Checked,
            Rule::LastWriter => RuleBytes::LastWriter,
            Rule::FirstWriter => RuleBytes::FirstWriter,
            Rule::Sum => RuleBytes::Sum,
            Rule::Max => RuleBytes::Max,
            Rule::Min => RuleBytes::Min,
            Rule::Union => RuleBytes::Union,
            Rule::Append(cap) => RuleBytes::Append(*cap as u64),
            Rule::Reject => RuleBytes::Reject,
            Rule::Resolver(name) => RuleBytes::Resolver(name.to_string()),
        }
    }
}

impl From<RuleBytes> for Rule {
    fn from(rule: RuleBytes) -> Self {
        match rule {
            RuleBytes::Checked => Rule::Checked,
            RuleBytes::LastWriter => Rule::LastWriter,
            RuleBytes::FirstWriter => Rule::FirstWriter,
            RuleBytes::Sum => Rule::Sum,
            RuleBytes::Max => Rule::Max,
            RuleBytes::Min => Rule::Min,
            RuleBytes::Union => Rule::Union,
            RuleBytes::Append(cap) => Rule::Append(size(cap)),
            RuleBytes::Reject => Rule::Reject,
            RuleBytes::Resolver(name) => Rule::Resolver(name.into()),
        }
    }
}

fn size(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

fn encode(record: impl Encode, bytes: &mut Vec<u8>) {
    bincode::encode_into_std_write(record, bytes, format()).expect("a Vec takes every byte");
}

fn decode<'a, T: BorrowDecode<'a, ()>>(bytes: &'a [u8], table: &'static str) -> Result<T, Error> {
    match bincode::borrow_decode_from_slice(bytes, format()) {
        Ok((value, read)) if read == bytes.len() => Ok(value),
        Ok(_) => Err(corrupt(table, "bytes follow a record")),
        // bincode's own message may quote the bytes.
        Err(_) => Err(corrupt(table, "a record cannot be decoded")),
    }
}

pub(super) fn corrupt(table: &'static str, reason: &str) -> Error {
    Error::Corrupt { table, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> impl Strategy<Value = Record> {
        let attribute = (".*", any::<u64>(), any::<i64>());
        let times = (any::<u64>(), any::<u64>(), any::<Option<u64>>(), any::<u64>());
        let attributes = proptest::collection::vec(attribute, 0..8);
        let lapses = proptest::collection::btree_map(".*", any::<u64>(), 0..3);
        let extras = (any::<Option<u64>>(), any::<Option<(String, String)>>(), lapses);
        (any::<u128>(), any::<u64>(), any::<u64>(), times, attributes, extras).prop_map(
            |(id, revision, bucket, times, attributes, (timeout_secs, principal, lapses))| {
                let mut record = Record {
                    id: SessionId(id),
                    revision: Revision(revision),
                    bucket,
                    created: Time::from_micros(times.0),
                    last_accessed: Time::from_micros(times.1),
                    last_modified: times.2.map(Time::from_micros),
                    slice_end: Time::from_micros(times.3),
                    attributes: attributes
                        .into_iter()
                        .map(|(name, revision, value)| {
                            let value = Value::of(&value).expect("an integer");
                            (name.into(), Stamped { value, revision: Revision(revision) })
                        })
                        .collect(),
                    extras: None,
                };
                let lapse = |(name, until): (String, u64)| (name.into(), Time::from_micros(until));
                record.set_extras(|extras| {
                    *extras = Extras {
                        timeout_secs,
                        principal: principal
                            .map(|(name, note)| Principal { name: name.into(), note: note.into() }),
                        lapses: lapses.into_iter().map(lapse).collect(),
                    };
                });
                record
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn sessions_survive_encoding(record in record()) {
            let row = encode_session(&place(), &record);
            prop_assert_eq!(bucket(&place(), &row), Some(record.bucket));
            prop_assert_eq!(decode(&row).expect("just encoded"), record);
            // It is bound to its place.
            prop_assert!(decode_session(ContainerId(2), b"ada", &row).is_err());
            prop_assert!(decode_session(ContainerId(1), b"bob", &row).is_err());
        }

        #[test]
        fn any_bytes_are_corrupt(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            // With the right checksum they get further.
            let sealed = seal(seed(ContainerId(1), b"ada"), [vec![0; 8], bytes.clone()].concat());
            let container = seal(CONTAINERS_SEED + 1, [vec![0; 8], bytes.clone()].concat());
            let meta = seal(META_SEED, [vec![0; 8], bytes.clone()].concat());
            let mut replayed = Sessions::default();
            for result in [
                decode(&bytes).err(),
                decode(&sealed).err(),
                decode_container(1, &container).err(),
                decode_meta(&meta).err(),
                replay(&bytes, &mut replayed).err(),
            ] {
                let fine = matches!(result, None | Some(Error::Corrupt { .. }));
                prop_assert!(fine);
            }
        }

        /// A changed byte, and a cut, are always found out.
        #[test]
        fn a_damaged_record_is_corrupt(
            record in record(), at in any::<prop::sample::Index>(), change in 1u8..,
        ) {
            let mut row = encode_session(&place(), &record);
            let at = at.index(row.len());
            let cut = row[..at].to_vec();
            row[at] ^= change;
            for result in [decode(&row), decode(&cut)] {
                let corrupt = matches!(result, Err(Error::Corrupt { .. }));
                prop_assert!(corrupt);
            }
        }

        /// What the log says of a history is what the history left, wherever the tables stand, and
        /// however often it is replayed.
        #[test]
        fn a_replayed_log_gives_what_was_committed(
            records in proptest::collection::vec(proptest::option::of(record()), 1..8),
            known in any::<prop::sample::Index>(),
        ) {
            let mut states: Vec<Option<Arc<Record>>> = vec![None];
            let mut body = Vec::new();
            for (at, record) in records.into_iter().enumerate() {
                let before = states[at].clone();
                let revision = Revision(at as u64 + 1);
                let after = record.map(|mut record| {
                    record.revision = revision;
                    // Now and then the same generation goes on, with what it had.
                    if let (Some(before), 0..3) = (&before, at % 4) {
                        record.id = before.id;
                        record.created = before.created;
                        let kept = before.attributes.iter().skip(1).map(|(n, a)| (n.into(), Some(a)));
                        record.attributes = record.attributes.edited(&kept.collect());
                    }
                    Arc::new(record)
                });
                let change = SessionChange { place: place(), before, after: after.clone() };
                let sessions = if states[at].is_none() && after.is_none() { vec![] } else { vec![change] };
                let commit = Commit { revision, sessions, containers: vec![] };
                let before = body.len();
                encode_commit(&commit, &mut body);
                prop_assert!(body.len() - before <= commit.weight());
                states.push(after);
            }
            let at = known.index(states.len());
            let mut replayed = Sessions::default();
            if let Some(record) = &states[at] {
                replayed.known = Some((record.revision, Some(Arc::clone(record))));
            }
            for _ in 0..2 {
                replay(&body, &mut replayed).expect("just encoded");
                let last = replayed.known.clone().and_then(|(_, record)| record);
                prop_assert_eq!(&last, states.last().expect("the first"));
            }
        }
    }

    /// One session, as a replay knows it.
    #[derive(Default)]
    struct Sessions {
        known: Option<Dated>,
    }

    impl Replay for Sessions {
        fn session(&mut self, _: &Place) -> Result<Option<Dated>, Error> {
            Ok(self.known.clone())
        }

        fn put(&mut self, _: Place, _: SessionId, at: Revision, record: Option<Arc<Record>>) {
            self.known = Some((at, record));
        }

        fn missing(&mut self, _: &Place, _: SessionId) {}

        fn container(&mut self, _: ContainerState) {}
    }

    fn place() -> Place {
        (ContainerId(1), Key::from("ada"))
    }

    fn decode(row: &[u8]) -> Result<Record, Error> {
        decode_session(ContainerId(1), b"ada", row)
    }

    #[test]
    fn containers_survive_encoding() {
        let policy = Policy::new()
            .timeout_secs(120)
            .absolute_timeout_secs(1_000)
            .warn_secs(20)
            .period_secs(30)
            .limit(7)
            .at_limit(AtLimit::EvictOldest)
            .principal_limit(3)
            .rotation_grace_secs(2)
            .depth_max(9)
            .on_mismatch(OnMismatch::Drop)
            .rule("a", Rule::Append(5))
            .rule("b", Rule::resolver("mine"))
            .default_rule(Rule::Reject)
            .resolver("zope_last_modified")
            .on_end("mail");
        let state = ContainerState {
            id: ContainerId(3),
            name: "visitors".into(),
            policy: Arc::new(policy),
            policy_revision: Revision(9),
            count: 12,
            refile_from: Some(Key::from("m")),
        };
        let bytes = encode_container(&state);
        assert_eq!(decode_container(3, &bytes).expect("just encoded"), state);
    }

    /// What takes up the most for its weight: many attributes with long numbers, many rules, long names.
    #[test]
    fn nothing_weighs_less_than_it_takes_up() {
        let weigh = |sessions: Vec<SessionChange>, containers: Vec<Arc<ContainerState>>| {
            let commit = Commit { revision: Revision(u64::MAX), sessions, containers };
            let mut body = Vec::new();
            encode_commit(&commit, &mut body);
            assert!(body.len() <= commit.weight(), "{} > {}", body.len(), commit.weight());
        };
        let revision = Revision(u64::MAX);
        let record = |names: std::ops::Range<u64>| {
            let long: Arc<str> = "n".repeat(500).into();
            let lapses =
                names.clone().map(|n| (format!("{n:0250}").into(), Time::from_micros(u64::MAX)));
            let extras = Extras {
                timeout_secs: Some(u64::MAX),
                principal: Some(Principal { name: Arc::clone(&long), note: long }),
                lapses: lapses.collect(),
            };
            let value = Value::of(&0).expect("a number");
            let attribute = Stamped { value, revision };
            let edits = names.map(|n| (format!("{n:0250}").into(), Some(attribute.clone())));
            Some(Arc::new(Record {
                id: SessionId(u128::MAX),
                revision,
                created: Time::from_micros(u64::MAX),
                last_accessed: Time::from_micros(u64::MAX),
                last_modified: Some(Time::from_micros(u64::MAX)),
                slice_end: Time::from_micros(u64::MAX),
                bucket: u64::MAX - 1,
                attributes: Attributes::new().edited(&edits.collect()),
                extras: Some(Arc::new(extras)),
            }))
        };
        let place = (ContainerId(u32::MAX), Key::from("k".repeat(1_000)));
        let full = record(0..1_000);
        let changes = [
            (None, full.clone()),
            (full.clone(), full.clone()),
            (full.clone(), record(0..0)),
            (full.clone(), record(500..1_500)),
            (full, None),
        ];
        for (before, after) in changes {
            weigh(vec![SessionChange { place: place.clone(), before, after }], vec![]);
        }

        let name = || "n".repeat(1_000);
        let numbers = Policy::new().timeout_secs(u64::MAX - 1).period_secs(u64::MAX - 1);
        let plain = numbers.limit(u64::MAX).default_rule(Rule::Append(usize::MAX));
        let named = plain.clone().resolver(name()).on_start(name()).on_end(name());
        let many = |rule: &dyn Fn() -> Rule| {
            (0..100).fold(plain.clone(), |policy, n| policy.rule(format!("{n}{}", name()), rule()))
        };
        let policies = [
            named.default_rule(Rule::Resolver(name().into())),
            many(&|| Rule::Append(usize::MAX)),
            many(&|| Rule::Resolver(name().into())),
            plain,
        ];
        for policy in policies {
            let state = ContainerState {
                id: ContainerId(u32::MAX),
                name: name().into(),
                policy: Arc::new(policy),
                policy_revision: revision,
                count: u64::MAX,
                refile_from: Some(Key::from(name())),
            };
            weigh(vec![], vec![Arc::new(state)]);
        }
    }
}
