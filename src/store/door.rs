//! The way into an open store, one for each share of the threads.
//!
//! A transaction keeps the core alive and looks up policies. If all of them counted their references
//! to one core, and looked under one lock, threads that do nothing but read would wait for each other's
//! cache lines all the time. So there are several doors, each with a count and a lock of its own, and a
//! thread always takes the same.

use std::ops::Deref;
use std::sync::Arc;

use crate::model::session::Revision;
use crate::store::core::Core;
use crate::store::lock;
use crate::store::snapshots::{SHARDS, shard_of_this_thread};
use crate::store::versions::Policies;
use crate::sync::Mutex;

/// All doors of a store.
#[derive(Clone)]
pub(crate) struct Doors(Arc<[Arc<Door>]>);

/// One of them. Far enough from the others that threads do not take turns with a cache line.
#[repr(align(128))]
pub(crate) struct Door {
    core: Arc<Core>,
    /// The policies that were looked up last, and the snapshot they were looked up for.
    policies: Mutex<(Revision, Arc<Policies>)>,
}

impl Doors {
    pub(crate) fn new(core: &Arc<Core>) -> Self {
        let door = || Door { core: Arc::clone(core), policies: Mutex::default() };
        Doors((0..SHARDS).map(|_| Arc::new(door())).collect())
    }

    /// That of this thread.
    pub(crate) fn door(&self) -> &Arc<Door> {
        &self.0[shard_of_this_thread()]
    }
}

impl Door {
    /// The policies as a snapshot shows them.
    pub(crate) fn policies(&self, snapshot: Revision) -> Arc<Policies> {
        let mut last = lock(&self.policies);
        if !self.core.versions.have_same_policies(last.0, snapshot) {
            // Each door has a copy, because a reference to a shared one would be counted in one place.
            *last = (snapshot, Arc::new(self.core.versions.policies(snapshot)));
        }
        Arc::clone(&last.1)
    }
}

impl Deref for Door {
    type Target = Arc<Core>;

    fn deref(&self) -> &Arc<Core> {
        &self.core
    }
}
