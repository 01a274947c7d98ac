//! When a session's time is over: Zope's arithmetic, to the second.
//!
//! Time is cut into slices of `period` seconds, p. An access in a slice promises life until the
//! *end* of that slice plus the timeout T, whenever in the slice it happened:
//!
//! ```text
//!        p       p       p
//!    |---x---|-------|-------|--- … ---|-------|
//!        ^   ^                         ^
//!        |   slice_end                 expiry = slice_end + T
//!        last access
//! ```
//!
//! So a session lives longer than T after its last access and at most T + p, never less, and all
//! accesses within one slice are one: the record is rewritten once a slice (and within a long one at
//! most once in 30 s, for `last_accessed`), not once a request.
//!
//! The record keeps `slice_end`, not the slice, so that a period that is changed later does not
//! shorten what was promised. `last_accessed` is for show and lags by up to 30 s; expiring by it
//! would be wrong, and a property test below keeps it from happening.
//!
//! A session may have a timeout of its own in place of the policy's. An absolute lifetime L ends it,
//! however often it is used, at the first end of a slice from `created + L` on.
//!
//! The expiry index files each session under one *bucket*, the second of its expiry as it was when
//! the session was filed. Accesses move the expiry, never the bucket: the sweep that reaches the
//! bucket looks at the record and files it anew. That is why a touch costs nothing in the index. If
//! the policy wants a warning before the expiry, the bucket is the second of the warning, until the
//! sweep has come upon it and files the session at its expiry. So it costs something in the index for
//! sessions that are not used any more, and for one that is used after the warning and has another
//! warning coming before the expiry that it was filed at.

use crate::model::clock::Time;
use crate::model::policy::Policy;
use crate::model::session::Record;

/// The bucket of sessions that never expire.
pub(crate) const NEVER: u64 = u64::MAX;

/// How old `last_accessed` may grow before an access rewrites it, from Zope's `WRITEGRANULARITY`.
const LAST_ACCESSED_LAG_SECS: u64 = 30;

/// What an access leaves behind. Two of them merge by the later times and never conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Touch {
    pub slice_end: Time,
    pub last_accessed: Time,
}

/// The end of the timeslice that `now` lies in.
pub(crate) fn slice_end(now: Time, policy: &Policy) -> Time {
    let period = policy.period_secs.max(1);
    Time::from_secs((now.as_secs() / period).saturating_add(1).saturating_mul(period))
}

/// When a session's time is over: when the promise made by an access in the slice that ends at
/// `slice_end` runs out, and at the end of the slice in which its absolute lifetime does. It may have a
/// `timeout` of its own.
pub(crate) fn expiry(
    slice_end: Time,
    created: Time,
    timeout: Option<u64>,
    policy: &Policy,
) -> Option<Time> {
    let timeout = timeout.unwrap_or(policy.timeout_secs);
    let idle = (timeout > 0).then(|| slice_end.plus_secs(timeout));
    let lifetime = policy.absolute_timeout_secs;
    let absolute = (lifetime > 0).then(|| round_up(created.plus_secs(lifetime), policy));
    [idle, absolute].into_iter().flatten().min()
}

/// The earliest end of a slice that is not before `time`.
fn round_up(time: Time, policy: &Policy) -> Time {
    let (period, secs) = (policy.period_secs.max(1), time.as_micros().div_ceil(1_000_000));
    Time::from_secs(secs.div_ceil(period).saturating_mul(period))
}

/// The bucket of a session that expires then: where the sweep is to come upon it.
pub(crate) fn bucket(expiry: Option<Time>, policy: &Policy, now: Time) -> u64 {
    let Some(expiry) = expiry.map(Time::as_secs) else { return NEVER };
    match expiry.checked_sub(policy.warn_secs) {
        // Earlier, to be warned of.
        Some(warning) if now.as_secs() < warning => warning,
        _ => expiry,
    }
}

/// Whether somebody is to be told now that a session expires then.
pub(crate) fn warns(expiry: Option<Time>, policy: &Policy, now: Time) -> bool {
    let Some(expiry) = expiry.map(Time::as_secs) else { return false };
    let warning = expiry.saturating_sub(policy.warn_secs);
    (warning..expiry).contains(&now.as_secs())
}

/// What an access at `now` changes of `record`, if it changes anything.
pub(crate) fn access(record: &Record, policy: &Policy, now: Time) -> Option<Touch> {
    let touch = Touch {
        slice_end: record.slice_end.max(slice_end(now, policy)),
        last_accessed: last_accessed(record.last_accessed, now),
    };
    (touch.slice_end != record.slice_end || touch.last_accessed != record.last_accessed)
        .then_some(touch)
}

/// `last_accessed` after an access at `now`.
pub(crate) fn last_accessed(before: Time, now: Time) -> Time {
    if now > before.plus_secs(LAST_ACCESSED_LAG_SECS) { now } else { before }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::attributes::Attributes;
    use crate::model::session::{Revision, SessionId};

    fn record(now: Time, policy: &Policy) -> Record {
        let mut record = Record {
            id: SessionId(1),
            revision: Revision(1),
            created: now,
            last_accessed: now,
            last_modified: None,
            slice_end: slice_end(now, policy),
            bucket: 0,
            attributes: Attributes::new(),
            extras: None,
        };
        record.file(policy, now);
        record
    }

    fn policy(period: u64, slices: u64) -> Policy {
        Policy::new().period_secs(period).timeout_secs(period * slices)
    }

    /// One step of a session's life: wait this many milliseconds, then do this.
    #[derive(Clone, Debug)]
    enum Step {
        Access,
        Change { period: u64, slices: u64 },
    }

    fn step() -> impl Strategy<Value = (u64, Step)> {
        let what = prop_oneof![
            3 => Just(Step::Access),
            1 => (1u64..40, 0u64..6).prop_map(|(period, slices)| Step::Change { period, slices }),
        ];
        (0u64..60_000, what)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// After the last access a session lives longer than T and at most T + p: T of the policy
        /// in force when it is judged, p of the policy in force when it was accessed.
        #[test]
        fn a_life_lasts_more_than_t_and_at_most_t_plus_p(
            start in 0u64..4_000_000_000_000,
            period in 1u64..40,
            slices in 0u64..6,
            steps in proptest::collection::vec(step(), 0..30),
        ) {
            let mut now = Time::from_micros(start * 1_000);
            let mut policy = policy(period, slices);
            let mut record = record(now, &policy);
            let mut accessed = (now, policy.period_secs);
            for (millis, step) in steps {
                now = Time::from_micros(now.as_micros() + millis * 1_000);
                match step {
                    // An ended session cannot be accessed.
                    Step::Access if record.is_expired(&policy, now) => break,
                    Step::Access => {
                        if let Some(touch) = access(&record, &policy, now) {
                            record.touch(touch);
                        }
                        // Slices of an older policy may reach further: a promise is kept.
                        let promised = record.slice_end.as_micros() - now.as_micros();
                        accessed = (now, policy.period_secs.max(promised.div_ceil(1_000_000)));
                    }
                    Step::Change { period, slices } => policy = self::policy(period, slices),
                }
            }
            // The second it ends is the second it is said to end, not one instant later.
            if let Some(expiry) = record.expiry(&policy) {
                prop_assert!(record.is_expired(&policy, expiry));
                let before = Time::from_micros(expiry.as_micros() - 1);
                prop_assert!(!record.is_expired(&policy, before));
            }
            let (accessed, period) = accessed;
            let (t, p) = (policy.timeout_secs, period);
            if t == 0 {
                prop_assert!(!record.is_expired(&policy, Time::from_micros(u64::MAX)));
            } else {
                prop_assert!(!record.is_expired(&policy, accessed.plus_secs(t)));
                prop_assert!(record.is_expired(&policy, accessed.plus_secs(t + p)));
            }
        }

        /// Whichever is first ends a session: its own timeout in place of the policy's, counted from the
        /// last access, or the absolute one, counted from its creation. None is early, nor later than
        /// the end of a slice.
        #[test]
        fn the_first_of_the_timeouts_ends_a_session(
            (period, slices, absolute) in (1u64..40, 0u64..6, 0u64..400), own in any::<Option<u8>>(),
            start in 0u64..4_000_000_000, waits in proptest::collection::vec(0u64..90, 0..8),
        ) {
            let policy = policy(period, slices).absolute_timeout_secs(absolute);
            let created = Time::from_micros(start * 1_000 + 1);
            let mut record = record(created, &policy);
            record.set_extras(|extras| extras.timeout_secs = own.map(u64::from));
            let mut accessed = created;
            for wait in waits {
                let now = accessed.plus_secs(wait);
                if record.is_expired(&policy, now) {
                    break;
                }
                if let Some(touch) = access(&record, &policy, now) {
                    record.touch(touch);
                }
                accessed = now;
            }
            let idle = own.map_or(policy.timeout_secs, u64::from);
            let ends = |from: Time, secs: u64| {
                (secs > 0).then(|| (from.plus_secs(secs), from.plus_secs(secs + period)))
            };
            let bounds = [ends(accessed, idle), ends(created, absolute)];
            let earliest = bounds.iter().flatten().map(|(earliest, _)| *earliest).min();
            let latest = bounds.iter().flatten().map(|(_, latest)| *latest).min();
            let expiry = record.expiry(&policy);
            prop_assert_eq!(expiry.is_some(), latest.is_some());
            prop_assert!(expiry >= earliest);
            prop_assert!(expiry <= latest);
            prop_assert_eq!(expiry.map_or(0, |expiry| expiry.as_micros() % (1_000_000)), 0);
        }

        /// The lag of `last_accessed` does not shorten a life: an access that advances the slice
        /// lengthens it even where `last_accessed` stays.
        #[test]
        fn an_access_in_a_later_slice_lengthens_the_life(
            start in 0u64..4_000_000_000,
            (period, wait) in (1u64..=30).prop_flat_map(|period| (Just(period), period..=30)),
        ) {
            let policy = policy(period, 40);
            let mut record = record(Time::from_secs(start), &policy);
            let before = record.clone();
            // Within the lag, and in a later slice because a whole period has passed.
            let now = Time::from_secs(start + wait);
            record.touch(access(&record, &policy, now).expect("a later slice"));
            prop_assert_eq!(record.last_accessed, before.last_accessed);
            prop_assert!(record.expiry(&policy) > before.expiry(&policy));
        }

        /// Touches merge: in either order the later times hold.
        #[test]
        fn touches_commute(a in 0u64..1_000, b in 0u64..1_000, c in 0u64..1_000, d in 0u64..1_000) {
            let touch = |slice, last| Touch {
                slice_end: Time::from_secs(slice),
                last_accessed: Time::from_secs(last),
            };
            let base = record(Time::from_secs(500), &policy(20, 3));
            let (mut left, mut right) = (base.clone(), base);
            left.touch(touch(a, b));
            left.touch(touch(c, d));
            right.touch(touch(c, d));
            right.touch(touch(a, b));
            prop_assert_eq!(left, right);
        }
    }

    #[test]
    fn the_ends_of_time_do_not_panic() {
        for micros in [0, 1, u64::MAX - 1, u64::MAX] {
            for policy in [policy(1, 0), policy(20, 60), policy(u64::MAX / 2, 1)] {
                let now = Time::from_micros(micros);
                let record = record(now, &policy);
                record.is_expired(&policy, now);
                access(&record, &policy, Time::from_micros(u64::MAX));
            }
        }
    }
}
