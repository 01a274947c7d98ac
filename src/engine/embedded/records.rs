//! The bytes of sessions and containers: bincode, and nothing else in the crate knows it.
//!
//! The fixed shapes below *are* the format (see `format.md`); the model's types are made of them
//! and may change freely. What is read is treated as hostile: sizes are bounded, and bytes that do
//! not decode to the end are [`Error::Corrupt`].

use std::collections::BTreeMap;
use std::sync::Arc;

use bincode::config::{self, Config};
use bincode::{Decode, Encode};

use crate::error::Error;
use crate::model::clock::Time;
use crate::model::container::{ContainerId, ContainerState};
use crate::model::key::Key;
use crate::model::policy::{Policy, Rule};
use crate::model::session::{Attribute, Record, Revision, SessionId};
use crate::model::value::Value;

/// No record may claim to be larger, whatever its length fields say.
const BYTES_MAX: usize = 1 << 30;

/// Little-endian, integers of variable length.
fn format() -> impl Config {
    config::standard().with_limit::<BYTES_MAX>()
}

/// A session. The bucket comes first and has a fixed size: the index is kept by it alone.
#[derive(Encode, Decode)]
struct SessionBytes {
    bucket: [u8; 8],
    id: u128,
    revision: u64,
    created: u64,
    last_accessed: u64,
    last_modified: Option<u64>,
    slice_end: u64,
    attributes: Vec<AttributeBytes>,
}

#[derive(Encode, Decode)]
struct AttributeBytes {
    name: String,
    revision: u64,
    value: Vec<u8>,
}

#[derive(Encode, Decode)]
struct ContainerBytes {
    name: String,
    policy_revision: u64,
    count: u64,
    refile_from: Option<Vec<u8>>,
    timeout_secs: u64,
    period_secs: u64,
    limit: u64,
    session_bytes_max: u64,
    attributes_max: u64,
    key_bytes_max: u64,
    rules: BTreeMap<String, RuleBytes>,
    default_rule: RuleBytes,
    resolver: Option<String>,
    on_start: Option<String>,
    on_end: Option<String>,
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

pub(super) fn encode_session(record: &Record) -> Vec<u8> {
    let attribute = |(name, attribute): (&Arc<str>, &Attribute)| AttributeBytes {
        name: name.to_string(),
        revision: attribute.revision.0,
        value: attribute.value.as_bytes().to_vec(),
    };
    encode(SessionBytes {
        bucket: record.bucket.to_le_bytes(),
        id: record.id.0,
        revision: record.revision.0,
        created: record.created.as_micros(),
        last_accessed: record.last_accessed.as_micros(),
        last_modified: record.last_modified.map(Time::as_micros),
        slice_end: record.slice_end.as_micros(),
        attributes: record.attributes.iter().map(attribute).collect(),
    })
}

pub(super) fn decode_session(bytes: &[u8]) -> Result<Record, Error> {
    let bytes: SessionBytes = decode(bytes, "sessions")?;
    let attribute = |attribute: AttributeBytes| {
        let value = Value::from_bytes(&attribute.value);
        (attribute.name.into(), Attribute { value, revision: Revision(attribute.revision) })
    };
    Ok(Record {
        id: SessionId(bytes.id),
        revision: Revision(bytes.revision),
        created: Time::from_micros(bytes.created),
        last_accessed: Time::from_micros(bytes.last_accessed),
        last_modified: bytes.last_modified.map(Time::from_micros),
        slice_end: Time::from_micros(bytes.slice_end),
        bucket: u64::from_le_bytes(bytes.bucket),
        attributes: bytes.attributes.into_iter().map(attribute).collect(),
    })
}

/// The bucket of an encoded session.
pub(super) fn bucket(session: &[u8]) -> Result<u64, Error> {
    match session.first_chunk() {
        Some(bucket) => Ok(u64::from_le_bytes(*bucket)),
        None => Err(corrupt("sessions", "a record is cut off")),
    }
}

pub(super) fn encode_container(state: &ContainerState) -> Vec<u8> {
    let policy = &*state.policy;
    encode(ContainerBytes {
        name: state.name.to_string(),
        policy_revision: state.policy_revision.0,
        count: state.count,
        refile_from: state.refile_from.as_ref().map(|key| key.as_bytes().to_vec()),
        timeout_secs: policy.timeout_secs,
        period_secs: policy.period_secs,
        limit: policy.limit,
        session_bytes_max: policy.session_bytes_max as u64,
        attributes_max: policy.attributes_max as u64,
        key_bytes_max: policy.key_bytes_max as u64,
        rules: policy.rules.iter().map(|(name, rule)| (name.clone(), rule.into())).collect(),
        default_rule: (&policy.default_rule).into(),
        resolver: policy.resolver.clone(),
        on_start: policy.on_start.clone(),
        on_end: policy.on_end.clone(),
    })
}

pub(super) fn decode_container(id: u32, bytes: &[u8]) -> Result<ContainerState, Error> {
    let bytes: ContainerBytes = decode(bytes, "containers")?;
    let policy = Policy {
        timeout_secs: bytes.timeout_secs,
        period_secs: bytes.period_secs,
        limit: bytes.limit,
        session_bytes_max: size(bytes.session_bytes_max),
        attributes_max: size(bytes.attributes_max),
        key_bytes_max: size(bytes.key_bytes_max),
        rules: bytes.rules.into_iter().map(|(name, rule)| (name, rule.into())).collect(),
        default_rule: bytes.default_rule.into(),
        resolver: bytes.resolver,
        on_start: bytes.on_start,
        on_end: bytes.on_end,
    };
    if policy.validate().is_err() {
        return Err(corrupt("containers", "the policy contradicts itself"));
    }
    Ok(ContainerState {
        id: ContainerId(id),
        name: bytes.name.into(),
        policy: Arc::new(policy),
        policy_revision: Revision(bytes.policy_revision),
        count: bytes.count,
        refile_from: bytes.refile_from.map(Key::from),
    })
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
            Rule::Resolver(name) => RuleBytes::Resolver(name.clone()),
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
            RuleBytes::Resolver(name) => Rule::Resolver(name),
        }
    }
}

fn size(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

fn encode(value: impl Encode) -> Vec<u8> {
    bincode::encode_to_vec(value, format()).expect("a Vec takes every byte")
}

fn decode<T: Decode<()>>(bytes: &[u8], table: &'static str) -> Result<T, Error> {
    match bincode::decode_from_slice(bytes, format()) {
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
        (any::<u128>(), any::<u64>(), any::<u64>(), times, attributes).prop_map(
            |(id, revision, bucket, times, attributes)| Record {
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
                        (name.into(), Attribute { value, revision: Revision(revision) })
                    })
                    .collect(),
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn sessions_survive_encoding(record in record()) {
            let bytes = encode_session(&record);
            prop_assert_eq!(bucket(&bytes).expect("long enough"), record.bucket);
            prop_assert_eq!(decode_session(&bytes).expect("just encoded"), record);
        }

        #[test]
        fn any_bytes_are_a_record_or_corrupt(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for result in [decode_session(&bytes).err(), decode_container(1, &bytes).err()] {
                let fine = matches!(result, None | Some(Error::Corrupt { .. }));
                prop_assert!(fine);
            }
        }

        /// Bytes that are nearly right get further than random ones.
        #[test]
        fn a_damaged_record_is_a_record_or_corrupt(
            record in record(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let mut bytes = encode_session(&record);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let cut = bytes[..at].to_vec();
            for result in [decode_session(&bytes).err(), decode_session(&cut).err()] {
                let fine = matches!(result, None | Some(Error::Corrupt { .. }));
                prop_assert!(fine);
            }
        }
    }

    #[test]
    fn containers_survive_encoding() {
        let policy = Policy::new()
            .timeout_secs(120)
            .period_secs(30)
            .limit(7)
            .rule("a", Rule::Append(5))
            .rule("b", Rule::Resolver("mine".to_owned()))
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
}
