//! What becomes of one key under what one transaction wants of it: a pure function.
//!
//! In this order: has the session ended meanwhile, are the transaction's own touches in, has its
//! time run out, has what was required changed, is it to end, and only then the merge.

use std::sync::Arc;

use crate::error::{Conflict, ConflictReason, Error};
use crate::model::clock::Time;
use crate::model::container::ContainerState;
use crate::model::draft::{Draft, Life};
use crate::model::key::Key;
use crate::model::merge::{Refusal, Resolvers, Rules, merge, require};
use crate::model::policy::Policy;
use crate::model::session::{Name, Record, Revision, Size};
use crate::store::listeners::EndReason;
use crate::store::outcome::MergedSession;

/// Everything that a verdict depends on besides the session itself.
#[derive(Clone, Copy)]
pub(crate) struct Circumstances<'a> {
    /// The container with the policy that the transaction sets, if it sets one.
    pub container: &'a ContainerState,
    /// The policy in force before this commit: it says whether what is stored has expired.
    pub before: &'a Policy,
    /// The key was given up, and nobody may take it.
    pub is_given_up: bool,
    pub resolvers: &'a Resolvers,
    /// See [`Rules::later_wins`].
    pub later_wins: bool,
    pub now: Time,
    /// The number of the commit, if it comes to one.
    pub revision: Revision,
}

/// What becomes of one key.
#[derive(Debug)]
pub(crate) struct Judgement {
    pub record: Option<Arc<Record>>,
    pub ends: Vec<(Arc<Record>, EndReason)>,
    pub created: u64,
    pub merged: Option<MergedSession>,
    pub departs: Option<Departure>,
}

/// A session on its way to another key.
#[derive(Debug)]
pub(crate) struct Departure {
    pub key: Key,
    /// As it arrives.
    pub record: Record,
    /// As it was last where it leaves.
    pub left: Arc<Record>,
    /// The revision that the transaction had read.
    pub base: Revision,
}

/// Why a transaction cannot be committed.
#[derive(Debug)]
pub(crate) enum Objection {
    Refused(Error),
    /// The session has expired: it is to be ended, and the transaction conflicts.
    Expired(Error),
}

/// What becomes of a key where `stored` is now. What has lapsed of it is not there any more.
pub(crate) fn judge(
    draft: &Draft,
    stored: Option<Arc<Record>>,
    key: &Key,
    circumstances: Circumstances<'_>,
) -> Result<Judgement, Objection> {
    let lasting = stored.as_ref().map(|record| record.lapsed(circumstances.now));
    let record = lasting.clone();
    let mut judgement =
        Judgement { record, ends: Vec::new(), created: 0, merged: None, departs: None };
    for life in &draft.lives {
        match life.created_here {
            true => create(life, &mut judgement, key, circumstances)?,
            false => change(life, &mut judgement, key, circumstances)?,
        }
    }
    // That alone is no change: it goes with the next one.
    if let (Some(left), Some(lasting)) = (&judgement.record, &lasting)
        && Arc::ptr_eq(left, lasting)
    {
        judgement.record = stored;
    }
    Ok(judgement)
}

/// A session that the transaction has created.
fn create(
    life: &Life,
    judgement: &mut Judgement,
    key: &Key,
    circumstances: Circumstances<'_>,
) -> Result<(), Objection> {
    let Circumstances { container, before, is_given_up, now, revision, .. } = circumstances;
    let policy = &*container.policy;
    let refuse = |reason, stored: Option<&Arc<Record>>| {
        let base = life.base.revision;
        Err(Objection::Refused(conflict(reason, base, stored, key, container)))
    };
    match judgement.record.take() {
        Some(other) if other.is_expired(before, now) => {
            judgement.ends.push((other, EndReason::Expired));
        }
        Some(other) => return refuse(ConflictReason::Exists, Some(&other)),
        None if is_given_up => return refuse(ConflictReason::Exists, None),
        None => {}
    }
    let mut record = life.proposed(revision);
    record.file(policy, now);
    policy.check_size(Size::default(), record.size()).map_err(Objection::Refused)?;
    let record = Arc::new(record);
    if life.ended {
        judgement.ends.push((record, EndReason::Invalidated));
    } else if record.is_expired(policy, now) {
        // Born so long ago that nobody would ever see it: begin again.
        return refuse(ConflictReason::Ended, None);
    } else {
        judgement.record = Some(record);
    }
    judgement.created += 1;
    Ok(())
}

/// A session that the transaction has found.
fn change(
    life: &Life,
    judgement: &mut Judgement,
    key: &Key,
    circumstances: Circumstances<'_>,
) -> Result<(), Objection> {
    let Circumstances { container, before, resolvers, later_wins, now, revision, .. } =
        circumstances;
    let policy = &*container.policy;
    let base = life.base.revision;
    let conflict = |reason, stored| conflict(reason, base, stored, key, circumstances.container);
    let Some(stored) = judgement.record.as_ref().filter(|record| record.id == life.base.id) else {
        return match life.demands() {
            true => {
                let error = conflict(ConflictReason::Ended, judgement.record.as_ref());
                Err(Objection::Refused(error))
            }
            // Touches of what has ended are dropped.
            false => Ok(()),
        };
    };
    let mut touched = Record::clone(stored);
    if let Some(touch) = life.touch {
        touched.touch(touch);
    }
    if touched.is_expired(before, now) {
        return match life.demands() {
            true => Err(Objection::Expired(conflict(ConflictReason::Ended, Some(stored)))),
            // An access that came too late to help: it ends here, and takes up no more room.
            false => {
                judgement
                    .ends
                    .extend(judgement.record.take().map(|gone| (gone, EndReason::Expired)));
                Ok(())
            }
        };
    }
    let refused = |refusal| match refusal {
        Refusal::Conflict(reason) => Objection::Refused(conflict(reason, Some(stored))),
        Refusal::Limit(error) => Objection::Refused(error),
    };
    require(&life.base, &touched, &life.required).map_err(refused)?;
    if let Some(principal) = &life.ended_with
        && touched.principal().is_none_or(|theirs| theirs.name != *principal)
    {
        return match life.demands() {
            // What else it wants of the session it wanted of one that ends.
            true => Err(Objection::Refused(conflict(ConflictReason::Ended, Some(stored)))),
            false => Ok(()),
        };
    }
    if life.ended {
        // An end beats every write that came before it, and its own writes show in the last data.
        life.changes.apply_to(&mut touched, revision);
        judgement.ends.push((Arc::new(touched), EndReason::Invalidated));
        judgement.record = None;
        return Ok(());
    }
    let rules = Rules { policy, resolvers, later_wins };
    let merged = merge(&life.base, &touched, &life.changes, rules, revision).map_err(refused)?;
    let mut record = merged.record;
    if let Some(principal) = &life.principal {
        record.set_extras(|extras| extras.principal.clone_from(principal));
    }
    // An attribute that has lapsed meanwhile was changed by nobody.
    if !merged.names.is_empty() && stored.revision != life.base.revision {
        let text = |name: &Name| name.to_string();
        judgement.merged = Some(MergedSession {
            container: container.name.to_string(),
            key: life.rotated.as_ref().map_or(key, |rotation| &rotation.key).clone(),
            base: life.base.revision,
            stored: stored.revision,
            attributes: merged.names.iter().map(text).collect(),
            contended: merged.contended.iter().map(text).collect(),
            overruled: merged.overruled.iter().map(text).collect(),
        });
    }
    if let Some(rotation) = &life.rotated {
        let left = Arc::new(Record { revision, ..record });
        let mut record = Record { id: rotation.id, ..Record::clone(&left) };
        // As under the old key: a warning may still be due.
        record.file_earlier(touched.expiry(policy), policy, now);
        judgement.ends.push((Arc::clone(&left), EndReason::Rotated));
        judgement.record = None;
        let (key, base) = (rotation.key.clone(), life.base.revision);
        judgement.departs = Some(Departure { key, record, left, base });
        return Ok(());
    }
    if record != **stored {
        let mut record = Record { revision, ..record };
        record.file_earlier(touched.expiry(policy), policy, now);
        judgement.record = Some(Arc::new(record));
    }
    Ok(())
}

pub(crate) fn conflict(
    reason: ConflictReason,
    base: Revision,
    stored: Option<&Arc<Record>>,
    key: &Key,
    container: &ContainerState,
) -> Error {
    Error::Conflict(Conflict {
        reason,
        container: container.name.to_string(),
        session: key.fingerprint(),
        base,
        stored: stored.map(|record| record.revision),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::container::ContainerId;
    use crate::model::merge::laws;
    use crate::model::policy::Rule;

    use crate::model::session::SessionId;
    use crate::model::timeslice;
    use crate::model::value::Value;

    fn container(policy: Policy) -> ContainerState {
        ContainerState {
            id: ContainerId(1),
            name: "shop".into(),
            policy: Arc::new(policy),
            policy_revision: Revision(1),
            count: 1,
            refile_from: None,
        }
    }

    fn judged(
        lives: Vec<Life>,
        stored: Option<Record>,
        policy: Policy,
        now: u64,
    ) -> Result<Judgement, Objection> {
        let circumstances = Circumstances {
            before: &policy,
            container: &container(policy.clone()),
            is_given_up: false,
            resolvers: &Resolvers::default(),
            later_wins: false,
            now: Time::from_secs(now),
            revision: Revision(9),
        };
        judge(&Draft { lives }, stored.map(Arc::new), &Key::from("ada"), circumstances)
    }

    fn is_conflict(result: &Result<Judgement, Objection>, wanted: ConflictReason) -> bool {
        matches!(result, Err(Objection::Refused(Error::Conflict(c))) if c.reason == wanted)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Whatever was written before it, under whatever rule, an end takes effect; and whoever
        /// writes after it conflicts.
        #[test]
        fn an_end_beats_everything(
            base in laws::base(), theirs in laws::steps(), mine in laws::steps(),
            reject in any::<bool>(),
        ) {
            let rule = if reject { Rule::Reject } else { Rule::Checked };
            let policy = Policy::new().default_rule(rule);
            let theirs = laws::made(&base, &theirs, 3);
            let stored = laws::merged(&base, &base, &theirs, 3).expect("alone");

            let mut ending = laws::made(&base, &mine, 4);
            ending.ended = true;
            let result = judged(vec![ending.clone()], Some(stored.clone()), policy.clone(), 5);
            let result = result.expect("an end needs nobody's leave");
            prop_assert!(result.record.is_none());
            prop_assert_eq!(result.ends.len(), 1);
            prop_assert_eq!(result.ends[0].1, EndReason::Invalidated);

            let late = laws::made(&base, &mine, 6);
            let wants = late.demands();
            let result = judged(vec![late], None, policy.clone(), 7);
            if wants {
                prop_assert!(is_conflict(&result, ConflictReason::Ended));
            } else {
                prop_assert!(result.expect("touches are dropped").record.is_none());
            }
            // Ended twice: the second conflicts, so that one end is one end.
            let twice = judged(vec![ending.clone()], None, policy.clone(), 7);
            prop_assert!(is_conflict(&twice, ConflictReason::Ended));
            // A new generation under the key is somebody else.
            let mut other = stored;
            other.id = SessionId(2);
            let stranger = judged(vec![ending], Some(other), policy, 7);
            prop_assert!(is_conflict(&stranger, ConflictReason::Ended));
        }

        /// A transaction's own touches are in before its session is judged; without them it has
        /// expired, is to be ended, and the transaction conflicts.
        #[test]
        fn touches_are_applied_before_expiry_is_judged(
            base in laws::base(), timeout in 1u64..10, access in 0u64..300, wait in 0u64..300,
        ) {
            let policy = Policy::new().period_secs(20).timeout_secs(timeout * 20);
            let mut life = Life::found(Arc::new(base.clone()));
            // While it lives.
            let access = access % (base.slice_end.as_secs() + timeout * 20);
            let accessed = Time::from_secs(access);
            life.access(&policy, accessed);
            life.changes.put("n", None, &life.reads, accessed);
            let slice_end = timeslice::slice_end(accessed, &policy).max(base.slice_end);
            let alive = access + wait < slice_end.as_secs() + timeout * 20;
            match judged(vec![life], Some(base), policy, access + wait) {
                Ok(result) => {
                    prop_assert!(alive);
                    prop_assert_eq!(result.record.expect("it lives").slice_end, slice_end);
                }
                Err(Objection::Expired(_)) => prop_assert!(!alive),
                Err(other) => prop_assert!(false, "{:?}", other),
            }
        }
    }

    /// A session with attributes some of which last for a while.
    fn lapsing(untils: &[u64]) -> Record {
        let mut life = Life::created(SessionId(1), Time::from_secs(5), &Policy::new());
        for (n, until) in untils.iter().enumerate() {
            let until = (*until > 0).then(|| Time::from_secs(*until));
            let value = Value::of(&n);
            life.changes.put(&n.to_string(), value, &life.reads, Time::from_secs(5));
            life.changes.last(&n.to_string(), until);
        }
        let mut record = life.proposed(Revision(2));
        record.file(&Policy::new(), Time::from_secs(5));
        record
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Whatever is changed, the session is filed where the sweep comes upon it in time: not after
        /// its expiry, nor after the warning, if that is still to come.
        #[test]
        fn a_session_is_never_filed_too_late(
            own in any::<Option<u16>>(), other in proptest::option::of(proptest::option::of(0u64..400)),
            warn in 0u64..200, absolute in 0u64..400, access in any::<bool>(), wait in 0u64..300,
        ) {
            let policy = Policy::new().period_secs(20).timeout_secs(100).warn_secs(warn)
                .absolute_timeout_secs(absolute);
            let mut record = lapsing(&[]);
            record.set_extras(|extras| extras.timeout_secs = own.map(u64::from));
            record.file(&policy, record.created);
            let now = record.created.plus_secs(wait);
            let mut life = Life::found(Arc::new(record.clone()));
            if record.is_expired(&policy, now) {
                return Ok(());
            }
            if access {
                life.access(&policy, now);
            }
            life.changes.timeout = other;
            let result = judged(vec![life], Some(record.clone()), policy.clone(), now.as_secs());
            let after = result.expect("it lives").record.expect("it lives");
            if let Some(expiry) = after.expiry(&policy).map(Time::as_secs) {
                prop_assert!(after.bucket <= expiry);
                let warning = expiry.saturating_sub(warn);
                prop_assert!(after.bucket <= warning.max(now.as_secs()) || after.bucket == record.bucket);
            }
            prop_assert_eq!(after.timeout_secs(), other.unwrap_or(own.map(u64::from)));
            // An access alone costs nothing in the index, unless it puts the next warning before the
            // expiry that was filed.
            prop_assert!(other.is_some() || 2 * warn > 100 || after.bucket == record.bucket);
        }

        /// What has lapsed is absent for every judgement, and goes with the next change; that alone is
        /// no change.
        #[test]
        fn what_has_lapsed_is_not_there(
            untils in proptest::collection::vec(0u64..30, 0..4), now in 6u64..30, at in 0usize..4,
            reads in any::<bool>(), writes in any::<bool>(), ends in any::<bool>(),
        ) {
            let stored = lapsing(&untils);
            let lasts = |n: usize| untils.get(n).is_some_and(|until| *until == 0 || *until > now);
            let mut life = Life::found(Arc::new(stored.clone()));
            let name = at.to_string();
            if reads {
                life.read(&name);
            }
            if writes {
                let value = Value::of(&true);
                life.changes.put(&name, value, &life.reads, Time::from_secs(now));
            }
            life.ended = ends;
            let result = judged(vec![life], Some(stored.clone()), Policy::new(), now);
            let changed = at < untils.len() && !lasts(at);
            if reads && writes && changed && !ends {
                let changed = ConflictReason::Attribute(name);
                prop_assert!(is_conflict(&result, changed));
                return Ok(());
            }
            let result = result.expect("nobody else is there");
            prop_assert!(result.merged.is_none());
            let after = match ends {
                true => Arc::clone(&result.ends[0].0),
                false => result.record.expect("it lives"),
            };
            if !ends && !writes {
                prop_assert_eq!(&*after, &stored);
                return Ok(());
            }
            for n in 0..4 {
                let is_there = lasts(n) || (writes && n == at);
                prop_assert_eq!(after.attributes.get(&n.to_string()).is_some(), is_there);
            }
            let lapses = after.lapses();
            for (n, until) in untils.iter().enumerate() {
                let lapses = lapses.get(&*n.to_string());
                let stays = lasts(n) && *until > 0 && !(writes && n == at);
                prop_assert_eq!(lapses.copied(), stays.then(|| Time::from_secs(*until)));
            }
        }
    }

    #[test]
    fn a_live_session_under_the_key_stops_a_creation() {
        let policy = Policy::new().period_secs(20).timeout_secs(60);
        let id = SessionId;
        let life = |n, now| Life::created(id(n), Time::from_secs(now), &policy);
        let first = judged(vec![life(1, 5)], None, policy.clone(), 5).expect("nobody is there");
        let stored = Record::clone(&first.record.expect("created"));
        assert_eq!((first.created, stored.bucket), (1, 80));

        let second = judged(vec![life(2, 79)], Some(stored.clone()), policy.clone(), 79);
        assert!(is_conflict(&second, ConflictReason::Exists));
        let third = judged(vec![life(2, 79)], Some(stored), policy.clone(), 80).expect("expired");
        assert_eq!(third.ends[0].1, EndReason::Expired);
        assert_eq!(third.record.expect("created").id, id(2));
    }

    #[test]
    fn a_session_created_too_long_ago_is_not_stored_dead() {
        let policy = Policy::new().period_secs(1).timeout_secs(1);
        let life = Life::created(SessionId(1), Time::from_secs(5), &policy);
        let result = judged(vec![life], None, policy, 60);
        assert!(is_conflict(&result, ConflictReason::Ended));
    }
}
