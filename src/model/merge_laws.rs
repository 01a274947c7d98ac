//! The laws of merging, each a property over random sessions, histories and transactions.
//!
//! *base* is a random session. *stored* is base after another transaction. *mine* is what this one
//! wants: steps through the same calls that a session handle makes, reads included.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::model::draft::Life;
use crate::model::session::SessionId;
use crate::model::value::Op;

/// One call on a session handle.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Read(usize),
    ReadNames,
    Insert(usize, i64),
    Remove(usize),
    Clear,
    Merge(usize, Merging),
}

/// A merging write. Each has attributes of its own, so that kinds never clash.
#[derive(Clone, Debug)]
pub(crate) enum Merging {
    Add(i64),
    Max(i64),
    Min(i64),
    Union(i64),
    Append(i64),
}

/// How many plain attributes there are; merging ones are named after their kind.
const PLAIN: usize = 5;

fn plain(index: usize) -> String {
    format!("plain{index}")
}

impl Merging {
    fn name(&self, index: usize) -> String {
        let kind = match self {
            Merging::Add(_) => "add",
            Merging::Max(_) => "max",
            Merging::Min(_) => "min",
            Merging::Union(_) => "union",
            Merging::Append(_) => "append",
        };
        format!("{kind}{index}")
    }

    fn op(&self) -> Op {
        match self {
            Merging::Add(n) => Op::Add((*n).into()),
            Merging::Max(n) => Op::Max(value(*n)),
            Merging::Min(n) => Op::Min(value(*n)),
            Merging::Union(n) => Op::Union(vec![value(*n)]),
            Merging::Append(n) => Op::Append { items: vec![value(*n)], cap: 1_000 },
        }
    }
}

fn value(n: i64) -> Value {
    Value::of(&n).expect("an integer")
}

fn merging() -> impl Strategy<Value = Merging> {
    let number = -50i64..50;
    prop_oneof![
        number.clone().prop_map(Merging::Add),
        number.clone().prop_map(Merging::Max),
        number.clone().prop_map(Merging::Min),
        number.clone().prop_map(Merging::Union),
        number.prop_map(Merging::Append),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..PLAIN).prop_map(Step::Read),
        1 => Just(Step::ReadNames),
        6 => (0..PLAIN, any::<i64>()).prop_map(|(name, n)| Step::Insert(name, n)),
        3 => (0..PLAIN).prop_map(Step::Remove),
        1 => Just(Step::Clear),
        4 => (0..2usize, merging()).prop_map(|(name, merging)| Step::Merge(name, merging)),
    ]
}

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 0..10)
}

/// Only merging writes.
fn merging_steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0..2usize, merging()).prop_map(|(name, merging)| Step::Merge(name, merging));
    proptest::collection::vec(step, 0..8)
}

/// Makes the calls, with the clock at `now`.
pub(crate) fn made(base: &Record, steps: &[Step], now: u64) -> Life {
    let now = Time::from_secs(now);
    let mut life = Life::found(Arc::new(base.clone()));
    for step in steps {
        match step {
            Step::Read(name) => {
                life.read(&plain(*name));
            }
            Step::ReadNames => {
                life.read_names();
            }
            Step::Insert(name, n) => {
                life.changes.put(&plain(*name), Some(value(*n)), &life.reads, now);
            }
            Step::Remove(name) => life.changes.put(&plain(*name), None, &life.reads, now),
            Step::Clear => life.changes.clear(&life.reads, now),
            Step::Merge(name, merging) => {
                let base = &life.base.attributes;
                assert!(life.changes.merge(&merging.name(*name), merging.op(), base, now));
            }
        }
    }
    life
}

fn empty() -> Record {
    Record {
        id: SessionId(1),
        revision: Revision(1),
        created: Time::from_secs(1),
        last_accessed: Time::from_secs(1),
        last_modified: None,
        slice_end: Time::from_secs(20),
        bucket: 80,
        attributes: Attributes::new(),
        extras: None,
    }
}

pub(crate) fn merged(
    base: &Record,
    stored: &Record,
    mine: &Life,
    revision: u64,
) -> Result<Record, Refusal> {
    merged_under(&Policy::new(), base, stored, mine, revision)
}

fn merged_under(
    policy: &Policy,
    base: &Record,
    stored: &Record,
    mine: &Life,
    revision: u64,
) -> Result<Record, Refusal> {
    let resolvers = Resolvers::default();
    let rules = Rules { policy, resolvers: &resolvers, later_wins: false };
    merge(base, stored, &mine.changes, rules, Revision(revision)).map(|merged| merged.record)
}

/// A session to start from.
pub(crate) fn base() -> impl Strategy<Value = Record> {
    steps().prop_map(|steps| {
        merged(&empty(), &empty(), &made(&empty(), &steps, 2), 2).expect("nobody else is there")
    })
}

/// The names that a transaction writes; those of a clear are whatever is stored.
fn written_names(mine: &Life, stored: &Record) -> BTreeSet<Name> {
    let cleared = mine.changes.clear.iter().flat_map(|_| stored.attributes.names());
    let cleared = cleared.map(Name::from);
    mine.changes.writes.keys().cloned().chain(cleared).collect()
}

fn shown(record: &Record) -> BTreeMap<Name, Value> {
    record.attributes.iter().map(|(name, a)| (name.into(), a.value)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_is_not_written_keeps_the_stored_value(
        base in base(), theirs in steps(), mine in steps(),
    ) {
        let stored = merged(&base, &base, &made(&base, &theirs, 3), 3).expect("alone");
        let mine = made(&base, &mine, 4);
        if let Ok(result) = merged(&base, &stored, &mine, 4) {
            let written = written_names(&mine, &stored);
            for name in stored.attributes.names().chain(result.attributes.names()) {
                if !written.contains(name) {
                    prop_assert_eq!(result.attributes.get(name), stored.attributes.get(name));
                }
            }
        }
    }

    #[test]
    fn disjoint_edits_both_hold_in_either_order(
        base in base(), split in proptest::bits::u8::ANY, a in steps(), b in steps(),
    ) {
        // Each attribute belongs to one of the two. Reads may cross over: nothing they read and
        // write themselves is changed by the other.
        let own = |steps: Vec<Step>, side: bool| -> Vec<Step> {
            let mine = |name: &usize| (split >> name & 1 == 1) == side;
            steps.into_iter().filter(|step| match step {
                Step::Insert(name, _) | Step::Remove(name) => mine(name),
                Step::Merge(name, _) => (*name == 0) == side,
                Step::Clear => false,
                Step::Read(_) | Step::ReadNames => true,
            }).collect()
        };
        let a = made(&base, &own(a, true), 3);
        let b = made(&base, &own(b, false), 3);
        let in_order = |first: &Life, second: &Life| {
            let stored = merged(&base, &base, first, 3).expect("alone");
            merged(&base, &stored, second, 4).expect("they are disjoint")
        };
        let (ab, ba) = (in_order(&a, &b), in_order(&b, &a));
        prop_assert_eq!(shown(&ab), shown(&ba));
        for (life, result) in [(&a, &ab), (&b, &ab), (&a, &ba), (&b, &ba)] {
            let (result, proposed) = (shown(result), shown(&life.proposed(Revision(9))));
            for name in life.changes.writes.keys() {
                prop_assert_eq!(result.get(name), proposed.get(name));
            }
        }
    }

    /// A commit that is to win never conflicts, leaves what the plain merge leaves where that finds
    /// something, and loses nothing but what it says.
    #[test]
    fn who_is_to_win_loses_nothing_else(base in base(), theirs in steps(), mine in steps()) {
        let stored = merged(&base, &base, &made(&base, &theirs, 3), 3).expect("alone");
        let mine = made(&base, &mine, 4);
        let (policy, resolvers) = (Policy::new(), Resolvers::default());
        let rules = Rules { policy: &policy, resolvers: &resolvers, later_wins: true };
        let Merged { record, overruled, .. } =
            merge(&base, &stored, &mine.changes, rules, Revision(4)).expect("it wins");
        match merged(&base, &stored, &mine, 4) {
            Ok(plain) => {
                prop_assert!(overruled.is_empty());
                prop_assert_eq!(record, plain);
            }
            Err(_) => {
                prop_assert!(!overruled.is_empty());
                let (left, wanted) = (shown(&record), shown(&mine.proposed(Revision(4))));
                for name in &overruled {
                    prop_assert_eq!(left.get(name), wanted.get(name));
                }
                let written = written_names(&mine, &stored);
                for (name, value) in shown(&stored).iter().filter(|(n, _)| !written.contains(*n)) {
                    prop_assert_eq!(left.get(name), Some(value));
                }
            }
        }
    }

    #[test]
    fn merging_writes_commute(base in base(), a in merging_steps(), b in merging_steps()) {
        let (a, b) = (made(&base, &a, 3), made(&base, &b, 3));
        let in_order = |first: &Life, second: &Life| {
            let stored = merged(&base, &base, first, 3).expect("alone");
            merged(&base, &stored, second, 4).expect("merging writes never conflict")
        };
        let (ab, ba) = (in_order(&a, &b), in_order(&b, &a));
        let (ab, ba) = (shown(&ab), shown(&ba));
        prop_assert_eq!(ab.keys().collect::<Vec<_>>(), ba.keys().collect::<Vec<_>>());
        for (name, value) in ab {
            if name.starts_with("append") {
                // Lists keep the order of the commits; what is in them is the same.
                let sorted = |value: &Value| {
                    let mut list = value.to::<Vec<i64>>().expect("a list");
                    list.sort_unstable();
                    list
                };
                prop_assert_eq!(sorted(&value), sorted(&ba[&name]));
            } else {
                prop_assert_eq!(&value, &ba[&name]);
            }
        }
    }

    #[test]
    fn a_read_modify_write_of_a_changed_attribute_conflicts(
        base in base(), theirs in any::<Option<i64>>(), mine in any::<Option<i64>>(),
        name in 0..PLAIN, all in any::<bool>(), before in steps(),
    ) {
        let write = |n: Option<i64>| n.map_or(Step::Remove(name), |n| Step::Insert(name, n));
        // To remove what is not there is no change.
        let theirs = theirs.or((base.attributes.get(&plain(name)).is_none()).then_some(0));
        let stored = merged(&base, &base, &made(&base, &[write(theirs)], 3), 3).expect("alone");
        // Whatever else it does before, as long as it does not write the attribute.
        let mut steps: Vec<Step> = before.into_iter().filter(|step| match step {
            Step::Insert(other, _) | Step::Remove(other) => *other != name,
            Step::Clear => false,
            Step::Read(_) | Step::ReadNames | Step::Merge(..) => true,
        }).collect();
        steps.push(if all { Step::ReadNames } else { Step::Read(name) });
        steps.push(write(mine));
        let result = merged(&base, &stored, &made(&base, &steps, 4), 4);
        let expected = ConflictReason::Attribute(plain(name));
        prop_assert!(matches!(result, Err(Refusal::Conflict(reason)) if reason == expected));
    }

    #[test]
    fn of_blind_writes_the_later_commit_wins(
        base in base(), theirs in steps(), mine in steps(),
    ) {
        let stored = merged(&base, &base, &made(&base, &theirs, 3), 3).expect("alone");
        let blind: Vec<Step> = mine
            .into_iter()
            .filter(|step| matches!(step, Step::Insert(..) | Step::Remove(_) | Step::Clear))
            .collect();
        let mine = made(&base, &blind, 4);
        let result = merged(&base, &stored, &mine, 4).expect("blind writes never conflict");
        let (result, proposed) = (shown(&result), shown(&mine.proposed(Revision(4))));
        for name in written_names(&mine, &stored) {
            prop_assert_eq!(result.get(&name), proposed.get(&name));
        }
    }

    #[test]
    fn merging_with_the_base_gives_what_was_proposed(base in base(), mine in steps()) {
        let mine = made(&base, &mine, 3);
        let result = merged(&base, &base, &mine, 3).expect("nobody else is there");
        prop_assert_eq!(shown(&result), shown(&mine.proposed(Revision(3))));
        prop_assert_eq!(result.last_modified, mine.proposed(Revision(3)).last_modified);
    }

    #[test]
    fn a_transaction_that_changes_nothing_leaves_what_is_stored(
        base in base(), theirs in steps(), reads in steps(),
    ) {
        let stored = merged(&base, &base, &made(&base, &theirs, 3), 3).expect("alone");
        let reads: Vec<Step> = reads
            .into_iter()
            .filter(|step| matches!(step, Step::Read(_) | Step::ReadNames))
            .collect();
        let result = merged(&base, &stored, &made(&base, &reads, 4), 4).expect("only reads");
        prop_assert_eq!(result, stored);
    }

    /// A merged session is within its limits, or no larger than what is stored: one that is too
    /// large because a limit was lowered may shrink.
    #[test]
    fn limits_hold_after_a_merge(
        base in base(), theirs in steps(), mine in steps(), attributes in 0usize..8, bytes in 0usize..80,
    ) {
        let policy = Policy::new().attributes_max(attributes).session_bytes_max(bytes);
        let stored = merged(&base, &base, &made(&base, &theirs, 3), 3).expect("alone");
        let mine = made(&base, &mine, 4);
        let within = |record: &Record| {
            let (size, before) = (record.size(), stored.size());
            size.attributes <= attributes.max(before.attributes)
                && size.bytes <= bytes.max(before.bytes)
        };
        match merged_under(&policy, &base, &stored, &mine, 4) {
            Ok(result) => prop_assert!(within(&result)),
            Err(Refusal::Limit(_)) => {
                prop_assert!(!within(&merged(&base, &stored, &mine, 4).expect("without limits")));
            }
            Err(_) => {}
        }
    }

    /// The rules of attributes: what two plain writers from one base leave.
    #[test]
    fn rules_say_what_two_plain_writers_leave(
        b in -99i64..99, theirs in -99i64..99, mine in -99i64..99, checked in any::<bool>(),
    ) {
        let name: Name = "n".into();
        let put = |base: &Record, n: i64, checked: bool, now| {
            let mut life = Life::found(Arc::new(base.clone()));
            if checked {
                life.read(&name);
            }
            life.changes.put(&name, Some(value(n)), &life.reads, Time::from_secs(now));
            life
        };
        let base = merged(&empty(), &empty(), &put(&empty(), b, false, 2), 2).expect("alone");
        let stored = merged(&base, &base, &put(&base, theirs, false, 3), 3).expect("alone");
        for (rule, expected) in [
            (Rule::Checked, (!checked).then_some(mine)),
            (Rule::LastWriter, Some(mine)),
            (Rule::FirstWriter, Some(theirs)),
            (Rule::Sum, Some(theirs + mine - b)),
            (Rule::Max, Some(theirs.max(mine))),
            (Rule::Min, Some(theirs.min(mine))),
            (Rule::Union, None),
            (Rule::Append(3), None),
            (Rule::Reject, None),
            (Rule::resolver("missing"), None),
        ] {
            let found = |policy: &Policy, life: &Life| {
                let merged = merged_under(policy, &base, &stored, life, 4).ok()?;
                Some(merged.attributes.get(&name).expect("it is there").value)
            };
            let mut life = put(&base, mine, checked, 4);
            let policy = Policy::new().rule("n", rule.clone());
            prop_assert_eq!(found(&policy, &life), expected.map(value), "{:?}", rule);
            // A rule that comes with the write goes before the policy's.
            life.changes.rule(&name, &rule);
            for other in [Rule::Reject, Rule::FirstWriter, Rule::Max] {
                let policy = Policy::new().rule("n", other);
                prop_assert_eq!(found(&policy, &life), expected.map(value), "{:?}", rule);
            }
        }
    }
}
