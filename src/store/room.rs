//! Who makes room in a full container: the sessions in the order in which they would expire.
//!
//! The expiry index has them in the order of their *buckets*, and a bucket says only that a session
//! does not expire before: accesses move the expiry, and not the bucket. So rows of the index are looked
//! at from the front. Each leads to a record, which says when its session expires, and what was looked
//! at is kept in that order. The first of it goes as soon as no row in front of it is left:
//!
//! ```text
//!   the index    | 80 | 80 | 100 |  160 |  200 | ...
//!   looked at      |    |     |
//!                  v    v     v
//!   expires       180  140   220        140 is before 160: this one goes
//! ```
//!
//! The committer keeps this from batch to batch and tells it of every change, so that it goes on where
//! it was. A session is looked at once more before it goes, because it may have been used since. The
//! work for one creation has a bound, and so has the memory. Where very many sessions are in use and
//! filed early, they are reached, and the first of those goes that were looked at.
//!
//! After a timeout was shortened buckets may be too late for a while, and say nothing at all. Then rows
//! are made of the keys, as if everybody were filed at the beginning of time.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::error::Error;
use crate::model::clock::Time;
use crate::model::key::Key;
use crate::model::policy::Policy;
use crate::model::session::{Record, Revision};
use crate::model::timeslice;
use crate::store::pinned::{Page, Row, first_row};

/// What the committer knows of the sessions of one container that may have to make room.
#[derive(Debug)]
pub(crate) struct Room {
    /// The policy that the expiries were computed under.
    policy: Revision,
    /// Rows of the index that were not looked at.
    rows: BTreeSet<Row>,
    /// Those before this one are known; `None`: all.
    known_to: Option<Row>,
    /// What was looked at, by the time of its expiry and of its last access.
    ranked: BTreeSet<(Rank, Key)>,
    /// Rows are made of the keys: buckets were not to be relied on when this was made.
    by_key: bool,
    /// Some that were looked at were too many to be kept in mind.
    has_forgotten: bool,
    /// How many rows are read at once.
    page: usize,
}

/// What is found under a key.
pub(crate) enum Look {
    /// A session that may make room.
    Candidate(Arc<Record>),
    /// One that must not make room for who asks now.
    Spared,
    /// None, or one that must not make room as long as nothing changes.
    Gone,
}

/// The order in which sessions go. Those that never expire go by their last access.
type Rank = (u64, u64);

/// How many records are looked at for one transaction, besides those of the sessions that go.
const LOOKS: usize = 4_096;

/// How many rows are read at once: rarely, because that looks through all that is in memory.
pub(crate) const PAGE: usize = 1_024;

/// How many pages of rows are kept in mind, and how many of what was looked at.
const ROWS_MAX: usize = 4;
const RANKED_MAX: usize = 64;

impl Room {
    pub(crate) fn new(policy: Revision, by_key: bool, page: usize) -> Self {
        let (rows, ranked, known_to) = (BTreeSet::new(), BTreeSet::new(), Some(first_row()));
        Room { policy, rows, known_to, ranked, by_key, has_forgotten: false, page }
    }

    /// Whether it was made under this policy.
    pub(crate) fn is_of(&self, policy: Revision) -> bool {
        self.policy == policy
    }

    /// Whether it is to be given rows made of the keys.
    pub(crate) fn is_by_key(&self) -> bool {
        self.by_key
    }

    /// The row of a session.
    pub(crate) fn row(by_key: bool, key: &Key, record: &Record) -> Row {
        (if by_key { 0 } else { record.bucket }, key.clone())
    }

    /// Takes note of a change of a session.
    pub(crate) fn note(&mut self, key: &Key, before: Option<&Record>, after: Option<&Record>) {
        let Some(after) = after else { return };
        let is_new = before.is_none_or(|before| {
            (before.bucket, &before.extras) != (after.bucket, &after.extras)
                || before.id != after.id
        });
        let row = Self::row(self.by_key, key, after);
        if is_new && self.known_to.as_ref().is_none_or(|to| row < *to) {
            self.rows.insert(row);
        }
        // Nothing is lost by forgetting the last: they are read again.
        if self.rows.len() > ROWS_MAX * self.page {
            let cut = self.rows.iter().nth(self.page).cloned().expect("there are more");
            drop(self.rows.split_off(&cut));
            self.known_to = Some(cut);
        }
    }

    /// Up to `wanted` sessions that are to make room, in their order. `read_page` reads rows of the index
    /// from one on, `read` the session that lies under a key now, if it may go.
    pub(crate) fn choose(
        &mut self,
        wanted: usize,
        policy: &Policy,
        read_page: impl Fn(&Row, usize) -> Result<Page<Row, Row>, Error>,
        mut read: impl FnMut(&Key) -> Look,
    ) -> Result<Vec<Key>, Error> {
        let (mut chosen, mut spared) = (Vec::new(), Vec::new());
        for look in 0..LOOKS + wanted {
            if chosen.len() == wanted {
                break;
            }
            self.read_rows(&read_page)?;
            let first = self.ranked.first().map(|((expiry, _), _)| *expiry);
            let bucket = self.rows.first().map(|(bucket, _)| *bucket);
            let is_first = match (first, bucket) {
                // Half of the looks are for those that may have been used since they were looked at.
                (Some(first), Some(bucket)) => first < bucket || look >= LOOKS / 2,
                (first, _) => first.is_some(),
            };
            let next = match is_first {
                true => self.ranked.pop_first().map(|(rank, key)| (Some(rank), key)),
                false => self.rows.pop_first().map(|(_, key)| (None, key)),
            };
            let Some((rank, key)) = next else { break };
            match read(&key) {
                _ if chosen.contains(&key) => {}
                Look::Candidate(record) if rank == Some(rank_of(&record, policy)) => {
                    chosen.push(key);
                }
                Look::Candidate(record) => {
                    self.ranked.insert((rank_of(&record, policy), key));
                }
                Look::Spared => spared.push(key),
                Look::Gone => {}
            }
        }
        // The commit may come to nothing. Next time they are the first to be looked at.
        let again = chosen.iter().cloned().chain(spared);
        self.rows.extend(again.map(|key| (0, key)));
        while self.ranked.len() > RANKED_MAX * self.page {
            self.ranked.pop_last();
            self.has_forgotten = true;
        }
        Ok(chosen)
    }

    /// Reads more rows, unless there are some or none are left.
    fn read_rows(
        &mut self,
        read_page: impl Fn(&Row, usize) -> Result<Page<Row, Row>, Error>,
    ) -> Result<(), Error> {
        if self.rows.is_empty() && self.ranked.is_empty() && std::mem::take(&mut self.has_forgotten)
        {
            self.known_to = Some(first_row());
        }
        while self.rows.is_empty()
            && let Some(from) = &self.known_to
        {
            let (rows, next) = read_page(from, self.page)?;
            self.rows.extend(rows);
            self.known_to = next;
        }
        Ok(())
    }
}

fn rank_of(record: &Record, policy: &Policy) -> Rank {
    let expiry = record.expiry(policy).map_or(timeslice::NEVER, Time::as_secs);
    (expiry, record.slice_end.as_secs())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::model::attributes::Attributes;
    use crate::model::session::{Principal, SessionId};

    #[derive(Clone, Debug)]
    enum Step {
        Create(u8, u64),
        Touch(u8, u64),
        /// A sweep comes upon it.
        File(u8),
        Shorten(u8),
        Bind(u8, bool),
        End(u8),
        Choose {
            wanted: usize,
            spared: u8,
            commits: bool,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        let key = 0u8..24;
        prop_oneof![
            6 => (key.clone(), 0u64..50).prop_map(|(key, slice)| Step::Create(key, slice)),
            4 => (key.clone(), 0u64..90).prop_map(|(key, more)| Step::Touch(key, more)),
            2 => key.clone().prop_map(Step::File),
            1 => key.clone().prop_map(Step::Shorten),
            1 => (key.clone(), any::<bool>()).prop_map(|(key, bound)| Step::Bind(key, bound)),
            1 => key.clone().prop_map(Step::End),
            4 => (1usize..4, key, any::<bool>())
                .prop_map(|(wanted, spared, commits)| Step::Choose { wanted, spared, commits }),
        ]
    }

    fn key(n: u8) -> Key {
        Key::from(&[n])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// It is always those that would expire first of all who may go, wherever they are filed.
        #[test]
        fn those_go_that_would_expire_first(
            by_key in any::<bool>(), steps in proptest::collection::vec(step(), 1..80),
        ) {
            let (policy, now) = (Policy::new().period_secs(1).timeout_secs(100), Time::default());
            let mut sessions: BTreeMap<Key, Arc<Record>> = BTreeMap::new();
            let mut room = Room::new(Revision(1), by_key, 2);
            let mut ids = 0;
            for step in steps {
                let mut change = |n: u8, work: &dyn Fn(&mut Record)| {
                    let Some(before) = sessions.get(&key(n)).cloned() else { return };
                    let mut after = Record::clone(&before);
                    work(&mut after);
                    room.note(&key(n), Some(&before), Some(&after));
                    sessions.insert(key(n), Arc::new(after));
                };
                match step {
                    Step::Create(n, slice) => {
                        ids += 1;
                        let mut record = Record {
                            id: SessionId(ids),
                            revision: Revision(1),
                            created: now,
                            last_accessed: now,
                            last_modified: None,
                            slice_end: Time::from_secs(slice),
                            bucket: 0,
                            attributes: Attributes::new(),
                            extras: None,
                        };
                        record.file(&policy, now);
                        if by_key {
                            record.bucket += 1_000;
                        }
                        let before = sessions.insert(key(n), Arc::new(record.clone()));
                        room.note(&key(n), before.as_deref(), Some(&record));
                    }
                    Step::Touch(n, more) => change(n, &|record| {
                        record.slice_end = record.slice_end.plus_secs(more);
                    }),
                    Step::File(n) => change(n, &|record| record.file(&policy, now)),
                    Step::Shorten(n) => change(n, &|record| {
                        record.set_extras(|extras| extras.timeout_secs = Some(10));
                        record.file_earlier(None, &policy, now);
                    }),
                    Step::Bind(n, bound) => change(n, &|record| record.set_extras(|extras| {
                        let principal = Principal { name: "ada".into(), note: "".into() };
                        extras.principal = bound.then_some(principal);
                    })),
                    Step::End(n) => {
                        let before = sessions.remove(&key(n));
                        room.note(&key(n), before.as_deref(), None);
                    }
                    Step::Choose { wanted, spared, commits } => {
                        let page = |from: &Row, max: usize| {
                            let rows = sessions.iter().map(|(key, record)| Room::row(by_key, key, record));
                            let rows: BTreeSet<Row> = rows.filter(|row| row >= from).collect();
                            let next = rows.iter().nth(max).cloned();
                            Ok((rows.into_iter().take(max).collect(), next))
                        };
                        let look = |found: &Key| match sessions.get(found) {
                            _ if *found == key(spared) => Look::Spared,
                            Some(record) if record.principal().is_none() => Look::Candidate(Arc::clone(record)),
                            _ => Look::Gone,
                        };
                        let chosen = room.choose(wanted, &policy, page, look).expect("no disk");
                        let may_go = sessions.iter().filter(|(found, record)| {
                            **found != key(spared) && record.principal().is_none()
                        });
                        let mut order: Vec<_> =
                            may_go.map(|(key, record)| (rank_of(record, &policy), key.clone())).collect();
                        order.sort();
                        let expected: Vec<Key> =
                            order.into_iter().map(|(_, key)| key).take(wanted).collect();
                        prop_assert_eq!(&chosen, &expected);
                        for key in chosen.iter().filter(|_| commits) {
                            let before = sessions.remove(key);
                            room.note(key, before.as_deref(), None);
                        }
                    }
                }
            }
        }
    }
}
