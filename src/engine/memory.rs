//! Sessions in memory: the same semantics without a disk, for tests and for sessions that may go.
//!
//! The tables are persistent maps in the sense of functional programming: a view is a clone in
//! constant time that later changes do not touch.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rpds::{RedBlackTreeMapSync, RedBlackTreeSetSync};

use crate::engine::{Batch, Engine, Failure, Found, Gauges, Listener, Recovered, Taken, View};
use crate::error::Error;
use crate::model::clock::Time;
use crate::model::container::{ContainerId, Place};
use crate::model::key::Key;
use crate::model::session::{Record, Revision};
use crate::sync::Mutex;

/// The tables of one store.
#[derive(Clone, Default)]
struct Tables {
    sessions: RedBlackTreeMapSync<Place, Arc<Record>>,
    buckets: RedBlackTreeSetSync<(ContainerId, u64, Key)>,
}

#[derive(Default)]
pub(crate) struct Memory {
    tables: Mutex<Tables>,
    listener: OnceLock<Arc<dyn Listener>>,
}

impl Memory {
    pub(crate) fn open() -> (Self, Recovered) {
        let recovered = Recovered {
            view: Arc::new(Tables::default()),
            folded: Revision::default(),
            sessions: Vec::new(),
            containers: Vec::new(),
            revision: Revision::default(),
            time: Time::default(),
        };
        (Memory::default(), recovered)
    }
}

/// Memory does not fail, is never full, and a batch is as durable as it gets when it is applied.
impl Engine for Memory {
    fn start(&self, listener: Arc<dyn Listener>) -> Result<(), Error> {
        // Called once: nobody has set it.
        let _ = self.listener.set(listener);
        Ok(())
    }

    fn apply(&self, batch: Batch, _durable: bool) -> Result<(), Failure> {
        let revision = batch.revision();
        let view = {
            let mut tables = self.tables.lock().expect("nothing panics while it is held");
            for change in batch.commits.iter().flat_map(|commit| &commit.sessions) {
                tables.put(&change.place, change.after.as_ref());
            }
            tables.clone()
        };
        if let Some(listener) = self.listener.get() {
            listener.checkpoint(Arc::new(view), revision);
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn recover(&self) -> Result<Taken, Error> {
        unreachable!("memory does not fail")
    }

    fn epoch(&self) -> u64 {
        1
    }

    fn is_durable(&self, _epoch: u64, _revision: Revision) -> Option<bool> {
        None
    }

    fn weight_max(&self) -> usize {
        usize::MAX
    }

    fn room(&self) -> usize {
        usize::MAX
    }

    fn fold(&self) -> Result<(), Error> {
        Ok(())
    }

    fn compact(&self) -> Result<(u64, u64), Error> {
        Ok((0, 0))
    }

    fn gauges(&self) -> Gauges {
        Gauges::default()
    }

    fn file_bytes(&self) -> u64 {
        0
    }

    fn close(&self, _time: Time) -> Result<(), Error> {
        Ok(())
    }
}

impl Tables {
    fn put(&mut self, place: &Place, record: Option<&Arc<Record>>) {
        let (container, key) = place;
        if let Some(old) = self.sessions.get(place) {
            self.buckets.remove_mut(&(*container, old.bucket, key.clone()));
        }
        match record {
            Some(record) => {
                self.buckets.insert_mut((*container, record.bucket, key.clone()));
                self.sessions.insert_mut(place.clone(), Arc::clone(record));
            }
            None => {
                self.sessions.remove_mut(place);
            }
        }
    }
}

impl View for Tables {
    fn read(&self, place: &Place) -> Result<Option<Arc<Record>>, Error> {
        Ok(self.sessions.get(place).cloned())
    }

    fn scan(&self, container: ContainerId, from: &Key, max: usize) -> Result<Vec<Found>, Error> {
        let rows = self.sessions.range((container, from.clone())..);
        let rows = rows.take_while(|((c, _), _)| *c == container).take(max);
        Ok(rows.map(|((_, key), record)| (key.clone(), Some(Arc::clone(record)))).collect())
    }

    fn due(
        &self,
        container: ContainerId,
        until: u64,
        from: &(u64, Key),
        max: usize,
    ) -> Result<Vec<(u64, Key)>, Error> {
        let rows = self.buckets.range((container, from.0, from.1.clone())..);
        let rows = rows.take_while(|(c, bucket, _)| *c == container && *bucket <= until).take(max);
        Ok(rows.map(|(_, bucket, key)| (*bucket, key.clone())).collect())
    }
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tables({} sessions)", self.sessions.size())
    }
}
