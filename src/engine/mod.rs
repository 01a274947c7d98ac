//! Where it lies: a batch of transactions in, durable when it returns.
//!
//! This is the seam. Above it are merging, snapshots, limits and expiry; below it are bytes and
//! disks. An engine is told *results* (this session is now that record), never operations, so that
//! doing them twice is harmless. It is cut at batches, not at single keys, because an engine on
//! another machine must be able to answer a batch in one round trip.
//!
//! Deliberately absent: conflicts. Both engines here have one writer, the committer above, which
//! has judged every transaction before it hands over the batch.

pub(crate) mod embedded;
pub(crate) mod memory;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::Error;
use crate::model::clock::Time;
use crate::model::container::{ContainerId, ContainerState, Place};
use crate::model::key::Key;
use crate::model::session::{Record, Revision};

/// What one transaction leaves behind.
#[derive(Clone, Debug)]
pub(crate) struct Commit {
    pub revision: Revision,
    /// The session at each place is now this; `None`: it has ended.
    pub sessions: Vec<(Place, Option<Arc<Record>>)>,
    pub containers: Vec<Arc<ContainerState>>,
}

/// Transactions that become durable together, in this order.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// The store's time, to go on from after a restart.
    pub time: Time,
    /// The last commit that is durable with this batch.
    pub revision: Revision,
    pub commits: Vec<Commit>,
}

impl Batch {
    /// The last state that the batch gives to each session, by place.
    fn sessions(&self) -> BTreeMap<&Place, Option<&Arc<Record>>> {
        let sessions = self.commits.iter().flat_map(|commit| &commit.sessions);
        sessions.map(|(place, record)| (place, record.as_ref())).collect()
    }
}

/// What an engine found when it was opened.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub view: Arc<dyn View>,
    pub revision: Revision,
    /// The latest time in the store.
    pub time: Time,
    pub containers: Vec<ContainerState>,
}

/// Called by the engine when a newer view holds everything up to a revision. The store puts its
/// current view and forgets the versions that only the older view needed, in one step.
pub(crate) type OnCheckpoint = Box<dyn Fn(Arc<dyn View>, Revision) + Send + Sync>;

/// A place where committed sessions lie.
pub(crate) trait Engine: Send + Sync {
    /// Called once, before the first batch.
    fn on_checkpoint(&mut self, callback: OnCheckpoint);

    /// Makes a batch durable, all of it or nothing. After an error it may be either.
    fn apply(&self, batch: &Batch) -> Result<(), Error>;

    /// Ends the engine. Everything applied is durable already; what is reported is trouble.
    fn close(&self) -> Result<(), Error>;
}

/// One unchanging state of the tables. Keep it for a short time: it keeps space from being reused.
pub(crate) trait View: std::fmt::Debug + Send + Sync {
    fn read(&self, place: &Place) -> Result<Option<Arc<Record>>, Error>;

    /// Up to `max` sessions of a container in the order of their keys, from `from` on.
    fn scan(
        &self,
        container: ContainerId,
        from: &Key,
        max: usize,
    ) -> Result<Vec<(Key, Arc<Record>)>, Error>;

    /// The keys of those, whether their records can be read or not.
    fn keys(&self, container: ContainerId, from: &Key, max: usize) -> Result<Vec<Key>, Error>;

    /// Up to `max` rows of the expiry index in the order of bucket and key: those of buckets up to
    /// `until`, from the row `from` on.
    fn due(
        &self,
        container: ContainerId,
        until: u64,
        from: &(u64, Key),
        max: usize,
    ) -> Result<Vec<(u64, Key)>, Error>;
}

/// The first key after `key`.
pub(crate) fn successor(key: &Key) -> Key {
    Key::from([key.as_bytes(), &[0]].concat())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::embedded::{Embedded, Mode};
    use super::memory::Memory;
    use super::*;
    use crate::model::session::{Attributes, SessionId};

    /// One session of one container is put into a bucket, or ended.
    type Put = (u32, u8, Option<u64>);

    fn commit(revision: u64, puts: &[Put]) -> Commit {
        let session = |&(container, key, bucket): &Put| {
            let record = bucket.map(|bucket| {
                Arc::new(Record {
                    id: SessionId(revision.into()),
                    revision: Revision(revision),
                    created: Time::from_secs(1),
                    last_accessed: Time::from_secs(1),
                    last_modified: None,
                    slice_end: Time::from_secs(1),
                    bucket,
                    attributes: Attributes::new(),
                })
            });
            ((ContainerId(container), Key::from(vec![key; key.into()])), record)
        };
        Commit {
            revision: Revision(revision),
            sessions: puts.iter().map(session).collect(),
            containers: Vec::new(),
        }
    }

    /// Plays batches and checks each view that comes of one against plain maps.
    fn check(mut engine: impl Engine, first: Arc<dyn View>, batches: &[Vec<Vec<Put>>]) {
        let newest = Arc::new(Mutex::new((first, Revision(0))));
        let view = Arc::clone(&newest);
        engine.on_checkpoint(Box::new(move |newer, revision| {
            *view.lock().unwrap() = (newer, revision);
        }));
        let mut expected: BTreeMap<Place, Arc<Record>> = BTreeMap::new();
        let mut revision = 0;
        let mut views = Vec::new();
        for puts in batches {
            let commits: Vec<_> = puts
                .iter()
                .map(|puts| {
                    revision += 1;
                    commit(revision, puts)
                })
                .collect();
            for (place, record) in commits.iter().flat_map(|commit| &commit.sessions) {
                match record {
                    Some(record) => expected.insert(place.clone(), Arc::clone(record)),
                    None => expected.remove(place),
                };
            }
            let batch = Batch { time: Time::from_secs(9), revision: Revision(revision), commits };
            engine.apply(&batch).expect("the disk is fine");
            let (view, at) = newest.lock().unwrap().clone();
            assert_eq!(at, Revision(revision));
            views.push((view, expected.clone()));
        }
        // Each view shows its own state, now that there are later ones.
        for (view, expected) in views {
            for container in [ContainerId(1), ContainerId(2)] {
                let own = expected.iter().filter(|((owner, _), _)| *owner == container);
                let rows: BTreeMap<Key, Arc<Record>> =
                    own.map(|((_, key), record)| (key.clone(), Arc::clone(record))).collect();
                assert_eq!(scan(&*view, container), rows);
                let index = rows.iter().map(|(key, record)| (record.bucket, key.clone()));
                assert_eq!(due(&*view, container, u64::MAX), index.clone().collect());
                let until = index.filter(|(bucket, _)| *bucket <= 5).collect();
                assert_eq!(due(&*view, container, 5), until);
            }
            for (place, record) in &expected {
                assert_eq!(view.read(place).expect("the disk is fine").as_ref(), Some(record));
            }
        }
    }

    fn scan(view: &dyn View, container: ContainerId) -> BTreeMap<Key, Arc<Record>> {
        let (mut found, mut from) = (BTreeMap::new(), Key::from(""));
        loop {
            let page = view.scan(container, &from, 3).expect("the disk is fine");
            let Some((last, _)) = page.last() else { return found };
            from = successor(last);
            found.extend(page);
        }
    }

    fn due(view: &dyn View, container: ContainerId, until: u64) -> BTreeSet<(u64, Key)> {
        let (mut found, mut from) = (BTreeSet::new(), (0, Key::from("")));
        loop {
            let page = view.due(container, until, &from, 3).expect("the disk is fine");
            let Some((bucket, key)) = page.last() else { return found };
            from = (*bucket, successor(key));
            found.extend(page);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        /// Rows and index agree, views do not change, and both engines are the same.
        #[test]
        fn the_index_is_that_of_the_rows(
            batches in proptest::collection::vec(
                proptest::collection::vec(
                    proptest::collection::vec((1u32..3, 0u8..6, proptest::option::of(0u64..9)), 0..5),
                    1..4,
                ),
                1..8,
            ),
        ) {
            let (memory, recovered) = Memory::open();
            check(memory, recovered.view, &batches);
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("store");
            let (embedded, recovered) = Embedded::open(&path, Mode::Open).expect("a new store");
            check(embedded, recovered.view, &batches);
        }
    }
}
