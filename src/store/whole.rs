//! One committed state of a whole store, to be read from one end to the other: for exports, backups and
//! checks.
//!
//! That of an open store is *pinned*, all containers of one snapshot at once. From then on nothing that
//! is committed touches it, and it needs no snapshot: however long the reading takes, it is not given up,
//! and no version is kept for it but those that are pinned. What it does keep is space in the tables'
//! file, which grows meanwhile where folds cannot use it again.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::engine::embedded::viewing::Viewing;
use crate::error::Error;
use crate::model::clock::{Clock as _, SystemClock, Time};
use crate::model::container::{ContainerId, ContainerState, Kind, Place};
use crate::model::key::Key;
use crate::model::session::{Record, Revision};
use crate::store::core::Core;
use crate::store::pinned::Pinned;

const PAGE: usize = 512;

/// Some sessions in the order of their keys, and where to go on, if anywhere.
pub(crate) type Page = (Vec<(Key, Arc<Record>)>, Option<Key>);

/// One committed state.
pub(crate) trait Whole {
    /// The last commit in it.
    fn revision(&self) -> Revision;

    /// The time by which it is judged who lives.
    fn now(&self) -> Time;

    fn containers(&self) -> Vec<Arc<ContainerState>>;

    /// Sessions, or the store's own notes, from a key on.
    fn page(&self, id: ContainerId, from: &Key) -> Result<Page, Error>;

    /// One session, or note.
    fn read(&self, place: &Place) -> Result<Option<Arc<Record>>, Error>;

    /// How many sessions are absent because their records are damaged, as far as was read.
    fn damaged(&self) -> u64;

    /// Shows everything that lies under a number, in the order of the keys, until there was enough.
    fn each(
        &self,
        id: ContainerId,
        visit: &mut dyn FnMut(Key, Arc<Record>) -> Result<ControlFlow<()>, Error>,
    ) -> Result<(), Error> {
        let mut from = Some(Key::from(""));
        while let Some(start) = from {
            let (found, next) = self.page(id, &start)?;
            for (key, record) in found {
                if visit(key, record)?.is_break() {
                    return Ok(());
                }
            }
            from = next;
        }
        Ok(())
    }
}

/// The numbers under which the store's own notes may lie.
pub(crate) fn notes(containers: &[Arc<ContainerState>]) -> impl Iterator<Item = ContainerId> {
    let ids = [ContainerId::STORE].into_iter().chain(containers.iter().map(|state| state.id));
    ids.flat_map(|id| Kind::ALL.map(|kind| id.of(kind)))
}

/// A state of an open store.
pub(crate) struct Still<'a> {
    core: &'a Core,
    revision: Revision,
    now: Time,
    containers: Vec<Arc<ContainerState>>,
    pinned: BTreeMap<ContainerId, Pinned>,
}

impl<'a> Still<'a> {
    /// What is committed now.
    pub(crate) fn of(core: &'a Core) -> Result<Self, Error> {
        let snapshot = core.hold()?;
        let (revision, now) = (snapshot.revision(), core.now());
        let ids = core.versions.policies(revision).into_keys();
        let containers: Vec<_> = ids.map(|id| core.container(id, &snapshot)).collect();
        let pin = |id| (id, core.versions.pin(id, revision));
        let ids = containers.iter().map(|state| state.id).chain(notes(&containers));
        let pinned = ids.map(pin).collect();
        match core.snapshots.is_given_up(&snapshot) {
            false => Ok(Still { core, revision, now, containers, pinned }),
            true => Err(Error::SnapshotTooOld { age: core.bounds.snapshot_age_max }),
        }
    }

    /// Everything that is pinned, by number.
    pub(crate) fn pinned(&self) -> impl Iterator<Item = &Pinned> {
        self.pinned.values()
    }

    /// The same, once nothing can take it back: see [`Durability::Relaxed`](crate::Durability).
    pub(crate) fn durable(core: &'a Core) -> Result<Self, Error> {
        let still = Still::of(core)?;
        if core.snapshots.durable() < still.revision {
            // It syncs the log first, and after a failure there nothing that was seen counts.
            core.engine.fold()?;
            core.check_revoked(still.revision)?;
        }
        Ok(still)
    }
}

impl Whole for Still<'_> {
    fn revision(&self) -> Revision {
        self.revision
    }

    fn now(&self) -> Time {
        self.now
    }

    fn containers(&self) -> Vec<Arc<ContainerState>> {
        self.containers.clone()
    }

    fn page(&self, id: ContainerId, from: &Key) -> Result<Page, Error> {
        match self.pinned.get(&id) {
            Some(pinned) => pinned.scan(id, from, PAGE),
            None => Ok((Vec::new(), None)),
        }
    }

    fn read(&self, place: &Place) -> Result<Option<Arc<Record>>, Error> {
        match self.pinned.get(&place.0) {
            Some(pinned) => pinned.read(place.0, &place.1),
            None => Ok(None),
        }
    }

    fn damaged(&self) -> u64 {
        self.core.engine.gauges().damaged
    }
}

impl Whole for Viewing {
    fn revision(&self) -> Revision {
        self.store().revision
    }

    fn now(&self) -> Time {
        SystemClock::new().wall().max(self.store().time)
    }

    fn containers(&self) -> Vec<Arc<ContainerState>> {
        self.containers.values().cloned().collect()
    }

    fn page(&self, id: ContainerId, from: &Key) -> Result<Page, Error> {
        Viewing::page(self, id, from, PAGE)
    }

    fn read(&self, place: &Place) -> Result<Option<Arc<Record>>, Error> {
        Viewing::read(self, place)
    }

    fn damaged(&self) -> u64 {
        Viewing::damaged(self)
    }
}
