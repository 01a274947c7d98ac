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

use std::path::PathBuf;
use std::sync::Arc;

use crate::error::Error;
use crate::model::clock::Time;
use crate::model::container::{ContainerId, ContainerState, Place};
use crate::model::key::Key;
use crate::model::policy::Rule;
use crate::model::session::{Record, Revision, Size};

/// What one transaction leaves behind.
#[derive(Clone, Debug)]
pub(crate) struct Commit {
    pub revision: Revision,
    pub sessions: Vec<SessionChange>,
    pub containers: Vec<Arc<ContainerState>>,
}

/// What one commit makes of one session.
#[derive(Clone, Debug)]
pub(crate) struct SessionChange {
    pub place: Place,
    /// What this commit found here; so that an engine may keep the difference alone.
    pub before: Option<Arc<Record>>,
    /// The session is now this; `None`: it has ended.
    pub after: Option<Arc<Record>>,
}

/// Transactions that become durable together, in this order.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// The store's time, to go on from after a restart.
    pub time: Time,
    pub commits: Vec<Commit>,
    /// It does nothing but end sessions: what room is left is for this.
    pub only_ends: bool,
}

impl SessionChange {
    /// About as many bytes as it takes to write this down, and never fewer.
    pub(crate) fn weight(&self) -> usize {
        let names = |record: &Record| record.attributes.names().map(|name| 8 + name.len()).sum();
        let attributes = match (&self.before, &self.after) {
            (_, None) => 0,
            // Mostly it was only used.
            (Some(old), Some(new)) if old.attributes.is(&new.attributes) && old.id == new.id => 0,
            // The store's own notes may be long, and change a little each time.
            (Some(old), Some(new)) if !self.place.0.is_container() && old.id == new.id => {
                let (set, removed) = new.attributes.changed_since(&old.attributes);
                let set = set.iter().map(|(name, _, value)| 24 + name.len() + value.len());
                set.chain(removed.iter().map(|name| 8 + name.len())).sum()
            }
            // At worst all that it had is gone, and all that it has is new.
            (old, Some(new)) => {
                let Size { attributes, bytes } = new.size();
                bytes + 24 * attributes + old.as_deref().map_or(0, names)
            }
        };
        let extras = match (&self.before, &self.after) {
            (Some(old), Some(new)) if old.extras == new.extras && old.id == new.id => 0,
            (_, after) => {
                let extras = after.as_ref().and_then(|after| after.extras.as_ref());
                extras.map_or(0, |extras| extras.weight())
            }
        };
        128 + self.place.1.as_bytes().len() + attributes + extras
    }
}

impl Commit {
    /// About as many bytes as it takes to write this down, and never fewer.
    pub(crate) fn weight(&self) -> usize {
        let container = |state: &Arc<ContainerState>| {
            let policy = &state.policy;
            let rule = |rule: &Rule| match rule {
                Rule::Resolver(name) => 32 + name.len(),
                _ => 32,
            };
            let rules = policy.rules.iter().map(|(name, what)| name.len() + rule(what));
            let names = [&policy.resolver, &policy.on_start, &policy.on_end];
            let names = names.into_iter().flatten().map(String::len).chain([state.name.len()]);
            let from = state.refile_from.as_ref().map_or(0, |key| key.as_bytes().len());
            320 + from + rule(&policy.default_rule) + rules.sum::<usize>() + names.sum::<usize>()
        };
        let sessions: usize = self.sessions.iter().map(SessionChange::weight).sum();
        16 + sessions + self.containers.iter().map(container).sum::<usize>()
    }
}

impl Batch {
    /// The last commit in it.
    pub(crate) fn revision(&self) -> Revision {
        self.commits.last().map_or(Revision::default(), |commit| commit.revision)
    }
}

/// What an engine found when it was opened.
pub(crate) struct Recovered {
    pub view: Arc<dyn View>,
    /// Everything up to here is in the view.
    pub folded: Revision,
    /// What is not, with the commit that left it so.
    pub sessions: Vec<(Place, Revision, Option<Arc<Record>>)>,
    pub containers: Vec<ContainerState>,
    /// Numbers up to this one may have been used.
    pub revision: Revision,
    /// The latest time in the store.
    pub time: Time,
}

/// Why a batch was not applied.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nothing of it was written, and the engine goes on. [`Error::Full`]: it may take a part of it.
    Refused(Error),
    /// It may be durable or not. The engine does nothing more until it has [recovered](Engine::recover).
    Unknown(Error),
}

impl Failure {
    /// Why, for one who has committed nothing.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Failure::Refused(error) | Failure::Unknown(error) => error,
        }
    }
}

/// What became of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Everything up to here is durable, and nothing after it.
    pub durable: Revision,
    /// Numbers up to this one have been used.
    pub used: Revision,
}

/// What an engine tells of its own accord.
pub(crate) trait Listener: Send + Sync {
    /// A newer view holds everything up to a revision. The store puts its current view and forgets
    /// the versions that only the older view needed, in one step.
    fn checkpoint(&self, view: Arc<dyn View>, revision: Revision);

    fn notice(&self, notice: Notice);
}

/// Trouble, and its end.
#[derive(Debug)]
pub(crate) enum Notice {
    /// The log was replayed after an unclean end.
    Recovered { batches: u64, sessions: u64 },
    /// The tables cannot be written; it will be tried again.
    FoldFailed(Error),
    /// A session's record is damaged: it is absent from now on.
    Damaged(Place),
    /// A container's count is not that of its sessions: there are so many more, or fewer, or nobody can
    /// tell (0).
    Miscounted { container: ContainerId, uncounted: i64 },
    /// Others than the owner may open a file of the store, or enter its directory.
    Exposed(PathBuf),
}

/// A place where committed sessions lie.
pub(crate) trait Engine: Send + Sync {
    /// Called once, before the first batch.
    fn start(&self, listener: Arc<dyn Listener>) -> Result<(), Error>;

    /// Writes a batch down, all of it or nothing, and makes it durable with all before it, if that is
    /// wanted now.
    fn apply(&self, batch: Batch, durable: bool) -> Result<(), Failure>;

    /// Makes durable what was applied.
    fn sync(&self) -> Result<(), Failure>;

    /// After an unknown failure: finds out what is durable, and goes on from there.
    fn recover(&self) -> Result<Taken, Error>;

    /// Which of the times it has gone on is this?
    fn epoch(&self) -> u64;

    /// Whether a commit of an epoch is durable; `None` if nobody knows, yet or any more.
    fn is_durable(&self, epoch: u64, revision: Revision) -> Option<bool>;

    /// The greatest [weight](Commit::weight) of a commit; a batch may have twice as much.
    fn weight_max(&self) -> usize;

    /// How much a batch may weigh if it is not [for ends only](Batch::only_ends), where there is no
    /// hope of more room.
    fn room(&self) -> usize;

    /// Brings the view up to date, now.
    fn fold(&self) -> Result<(), Error>;

    /// Gives back the space in its files that nothing lies in: how many bytes they had, and have.
    fn compact(&self) -> Result<(u64, u64), Error>;

    fn gauges(&self) -> Gauges;

    /// What its files take up.
    fn file_bytes(&self) -> u64;

    /// Ends the engine. Everything durable is durable already; what is reported is trouble.
    fn close(&self, time: Time) -> Result<(), Error>;
}

/// How an engine stands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gauges {
    pub log_bytes: u64,
    pub dirty_sessions: usize,
    pub dirty_bytes: usize,
    pub folds: u64,
    /// One is being done.
    pub folding: bool,
    /// The log has failed, and is not recovered yet.
    pub failed: bool,
    /// The tables cannot be written at the moment.
    pub stalled: bool,
    /// And of the log nothing is left but what is kept for ends.
    pub full: bool,
    pub fold_failures: u64,
    pub recoveries: u64,
    pub damaged: u64,
}

/// A row of the tables; without a record if that is damaged.
pub(crate) type Found = (Key, Option<Arc<Record>>);

/// One unchanging state of the tables. Keep it for a short time: it keeps space from being reused.
pub(crate) trait View: std::fmt::Debug + Send + Sync {
    /// Whether it can show nothing any more, and another one is about to take its place.
    fn has_ended(&self) -> bool {
        false
    }

    fn read(&self, place: &Place) -> Result<Option<Arc<Record>>, Error>;

    /// Up to `max` sessions of a container in the order of their keys, from `from` on. One whose
    /// record is damaged has none.
    fn scan(&self, container: ContainerId, from: &Key, max: usize) -> Result<Vec<Found>, Error>;

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

    use super::embedded::disk::LocalDisk;
    use super::embedded::{Embedded, Mode, Settings};
    use super::memory::Memory;
    use super::*;
    use crate::model::attributes::Attributes;
    use crate::model::session::SessionId;

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
                    extras: None,
                })
            });
            let place = (ContainerId(container), Key::from(vec![key; key.into()]));
            SessionChange { place, before: None, after: record }
        };
        Commit {
            revision: Revision(revision),
            sessions: puts.iter().map(session).collect(),
            containers: Vec::new(),
        }
    }

    struct Newest(Mutex<(Arc<dyn View>, Revision)>);

    impl Listener for Newest {
        fn checkpoint(&self, view: Arc<dyn View>, revision: Revision) {
            *self.0.lock().unwrap() = (view, revision);
        }

        fn notice(&self, notice: Notice) {
            panic!("{notice:?}");
        }
    }

    /// Plays batches and checks each view that comes of one against plain maps.
    fn check(engine: &dyn Engine, first: Arc<dyn View>, batches: &[Vec<Vec<Put>>]) {
        let newest = Arc::new(Newest(Mutex::new((first, Revision(0)))));
        engine.start(Arc::clone(&newest) as Arc<dyn Listener>).expect("a thread");
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
            for change in commits.iter().flat_map(|commit| &commit.sessions) {
                match &change.after {
                    Some(record) => expected.insert(change.place.clone(), Arc::clone(record)),
                    None => expected.remove(&change.place),
                };
            }
            engine
                .apply(Batch { time: Time::from_secs(9), commits, only_ends: false }, true)
                .expect("the disk is fine");
            engine.fold().expect("the disk is fine");
            let (view, at) = newest.0.lock().unwrap().clone();
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
            let whole = |(key, record)| (key, Option::<Arc<Record>>::expect(record, "undamaged"));
            found.extend(page.into_iter().map(whole));
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
            check(&memory, recovered.view, &batches);
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("store");
            let settings = Settings {
                disk: Arc::new(LocalDisk),
                segment_bytes: 8 << 10,
                dirty_bytes_max: 1 << 20,
                verify: false,
                fold_inline: None,
                id: 1,
            };
            let opened = Embedded::open(&path, Mode::Open, settings);
            let (embedded, recovered) = opened.expect("a new store");
            check(&embedded, recovered.view, &batches);
            embedded.close(Time::from_secs(9)).expect("the disk is fine");
        }
    }
}
