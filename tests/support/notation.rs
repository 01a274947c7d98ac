//! How scripts write settings and values, and how they are shown what a store holds.

use serde_json::Value as Json;
use sessile::{Amount, AtLimit, Error, Policy, Rule, Session, Time, Value};

use crate::application::START;

/// Settings as scripts write them: `timeout=60`, `rule.theme=LastWriter`, `on_end=record`.
pub(crate) fn policy(policy: Policy, settings: &[&str]) -> Policy {
    settings.iter().fold(policy, |policy, setting| {
        let (name, value) = setting.split_once('=').expect("name=value");
        match name {
            "timeout" => policy.timeout_secs(number(value)),
            "absolute" => policy.absolute_timeout_secs(number(value)),
            "warn" => policy.warn_secs(number(value)),
            "period" => policy.period_secs(number(value)),
            "limit" => policy.limit(number(value)),
            "at_limit" => policy.at_limit(at_limit(value)),
            "principal_limit" => policy.principal_limit(number(value)),
            "at_principal_limit" => policy.at_principal_limit(at_limit(value)),
            "grace" => policy.rotation_grace_secs(number(value)),
            "depth" => policy.depth_max(number(value) as usize),
            "bytes" => policy.session_bytes_max(number(value) as usize),
            "attributes" => policy.attributes_max(number(value) as usize),
            "key_bytes" => policy.key_bytes_max(number(value) as usize),
            "default" => policy.default_rule(rule(value)),
            "resolver" => policy.resolver(value),
            "on_start" => policy.on_start(value),
            "on_end" => policy.on_end(value),
            _ => policy.rule(name.strip_prefix("rule.").expect("a setting"), rule(value)),
        }
    })
}

fn at_limit(text: &str) -> AtLimit {
    match text {
        "Reject" => AtLimit::Reject,
        "EvictOldest" => AtLimit::EvictOldest,
        _ => panic!("nothing to do at a limit: {text}"),
    }
}

fn rule(text: &str) -> Rule {
    let (name, argument) = text.split_once('(').unwrap_or((text, ")"));
    let argument = argument.strip_suffix(')').expect("a closing parenthesis");
    match name {
        "Checked" => Rule::Checked,
        "LastWriter" => Rule::LastWriter,
        "FirstWriter" => Rule::FirstWriter,
        "Sum" => Rule::Sum,
        "Max" => Rule::Max,
        "Min" => Rule::Min,
        "Union" => Rule::Union,
        "Append" => Rule::Append(number(argument) as usize),
        "Reject" => Rule::Reject,
        "Resolver" => Rule::Resolver(argument.to_owned().into()),
        _ => panic!("no such rule: {text}"),
    }
}

/// `apples=2`: a name and a JSON value.
pub(crate) fn attribute(word: &str) -> (&str, Json) {
    let (name, value) = word.split_once('=').expect("name=value");
    (name, serde_json::from_str(value).expect("a JSON value"))
}

pub(crate) fn amount(value: &Json) -> Amount {
    match value.as_i64() {
        Some(n) => n.into(),
        None => value.as_f64().expect("a number").into(),
    }
}

pub(crate) fn number(text: &str) -> u64 {
    text.parse().expect("a number")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("scripts have keys of text")
}

pub(crate) fn listed(names: &[String]) -> String {
    match names {
        [] => "nothing".to_owned(),
        names => names.join(", "),
    }
}

/// Attributes as people read them: `{apples: 2, pears: 1}`.
pub(crate) fn shown(attributes: impl Iterator<Item = (String, Value)>) -> String {
    let pair = |(name, value): (String, Value)| {
        format!("{name}: {}", value.to::<Json>().expect("scripts write JSON"))
    };
    format!("{{{}}}", attributes.map(pair).collect::<Vec<_>>().join(", "))
}

/// A time, in seconds since the script began.
pub(crate) fn since(time: Time) -> String {
    format!("+{}", time.since(Time::from_secs(START)).as_secs())
}

/// The times of a session.
pub(crate) fn times(session: &Session) -> Result<String, Error> {
    let or_never = |time: Option<Time>| time.map_or("never".to_owned(), since);
    Ok(format!(
        "created {}, accessed {}, modified {}, expires {}",
        since(session.created()?),
        since(session.last_accessed()?),
        or_never(session.last_modified()?),
        or_never(session.expires()?),
    ))
}
