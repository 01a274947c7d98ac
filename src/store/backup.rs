//! Copies of a store that are stores: one committed state, made while others commit.

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::engine::embedded::backup::{self, Origin};
use crate::engine::embedded::disk::{Disk, LocalDisk};
use crate::error::Error;
use crate::model::container::ContainerState;
use crate::store::chance::Chance;
use crate::store::observe;
use crate::store::whole::{Still, Whole, notes};
use crate::store::{Store, Viewer};

/// What a backup holds: see [`Store::backup_to`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Backup {
    /// The last commit that is in it. Everything up to it is, and nothing after it.
    pub revision: u64,
    /// How many containers.
    pub containers: u64,
    /// How many sessions that have not ended.
    pub sessions: u64,
    /// What its files take up.
    pub bytes: u64,
    /// How many sessions are missing because their records are damaged.
    pub damaged: u64,
}

impl fmt::Display for Backup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Backup { revision, containers, sessions, bytes, .. } = self;
        write!(f, "r{revision}: {sessions} sessions of {containers} containers, {bytes} bytes")
    }
}

impl Store {
    /// Makes a store at `path` that holds what is committed now, while others commit: one state, as a
    /// transaction that begins now would see it, with everything that the store keeps for itself.
    ///
    /// Nothing may lie at the path. The backup is made beside it, in a directory of that name with
    /// `.incomplete` behind it, and renamed when all of it is on the disk; so nobody ever finds half of
    /// one. Only its owner may open it. It has the size of what is in it: this compacts, too.
    ///
    /// To restore it, open it; or, when the store is closed, put it in its place. It is another store
    /// then: what was committed after the backup never was, and sessions that have ended since are there.
    ///
    /// ```
    /// # use sessile::{Policy, Store};
    /// # let directory = tempfile::tempdir()?;
    /// # let path = directory.path().join("sessions");
    /// let store = Store::open(&path)?;
    /// let visitors = store.container_with("visitors", Policy::new())?;
    /// store.transact(|txn| txn.create(&visitors, "ada").map(|_| ()))?;
    ///
    /// let backup = store.backup_to(directory.path().join("monday"))?;
    /// assert_eq!(backup.sessions, 1);
    ///
    /// let monday = Store::open(directory.path().join("monday"))?;
    /// assert!(monday.begin()?.contains(&monday.container("visitors")?, "ada")?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyThere`], also if somebody else makes a backup of that name; [`Error::Storage`].
    /// What is left of one that failed is removed by the next of its name.
    pub fn backup_to(&self, path: impl AsRef<Path>) -> Result<Backup, Error> {
        let watch = observe::backup(&self.core);
        let backup = self.make_backup(path.as_ref());
        watch.backed_up(&backup);
        backup
    }

    fn make_backup(&self, path: &Path) -> Result<Backup, Error> {
        let still = Still::durable(&self.core)?;
        let origin = Origin {
            revision: still.revision(),
            time: still.now(),
            // Asked for after the state was taken: a later one has none of these numbers in it.
            epoch: self.core.engine.epoch(),
        };
        let id = self.core.chance.session_id().0;
        back_up(&still, Arc::clone(&self.core.disk), path, id, origin)
    }
}

impl Viewer {
    /// Makes a store at `path` that holds what is seen; see [`Store::backup_to`].
    ///
    /// # Errors
    ///
    /// As for [`Store::backup_to`]; [`Error::Busy`] if the store was opened meanwhile, and
    /// [`Error::Random`].
    pub fn backup_to(&self, path: impl AsRef<Path>) -> Result<Backup, Error> {
        let store = self.store();
        let origin = Origin { revision: store.revision, time: store.time, epoch: store.epoch };
        let id = Chance::new(None)?.session_id().0;
        back_up(&**self.viewing(), Arc::new(LocalDisk), path.as_ref(), id, origin)
    }
}

/// How many rows are put in at a time.
const ROWS: usize = 2_000;

fn back_up(
    whole: &impl Whole,
    disk: Arc<dyn Disk>,
    path: &Path,
    id: u128,
    origin: Origin,
) -> Result<Backup, Error> {
    let backup = backup::Backup::begin(disk, path, id)?;
    let mut containers = Vec::new();
    let mut rows = Vec::new();
    let mut copy = |id| {
        let mut count = 0;
        whole.each(id, &mut |key, record| {
            count += 1;
            rows.push(((id, key), record));
            if rows.len() == ROWS {
                backup.put(&rows)?;
                rows.clear();
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok::<_, Error>(count)
    };
    notes(&whole.containers()).try_for_each(|id| copy(id).map(|_| ()))?;
    for state in whole.containers() {
        let count = copy(state.id)?;
        // What is damaged is missing here, and is not counted.
        containers.push(Arc::new(ContainerState { count, ..ContainerState::clone(&state) }));
    }
    backup.put(&rows)?;
    let bytes = backup.finish(&containers, origin)?;
    Ok(Backup {
        revision: origin.revision.get(),
        containers: containers.len() as u64,
        sessions: containers.iter().map(|state| state.count).sum(),
        bytes,
        damaged: whole.damaged(),
    })
}
