//! Sessions in memory: the same semantics without a disk, for tests and for sessions that may go.
//!
//! The tables are persistent maps in the sense of functional programming: a view is a clone in
//! constant time that later changes do not touch.

use std::fmt;
use std::sync::{Arc, Mutex};

use rpds::{RedBlackTreeMapSync, RedBlackTreeSetSync};

use crate::engine::{Batch, Engine, OnCheckpoint, Recovered, View};
use crate::error::Error;
use crate::model::clock::Time;
use crate::model::container::{ContainerId, Place};
use crate::model::key::Key;
use crate::model::session::{Record, Revision};

/// The tables of one store.
#[derive(Clone, Default)]
struct Tables {
    sessions: RedBlackTreeMapSync<Place, Arc<Record>>,
    buckets: RedBlackTreeSetSync<(ContainerId, u64, Key)>,
}

pub(crate) struct Memory {
    tables: Mutex<Tables>,
    on_checkpoint: OnCheckpoint,
}

impl Memory {
    pub(crate) fn open() -> (Self, Recovered) {
        let memory =
            Memory { tables: Mutex::default(), on_checkpoint: Box::new(|_, _| unreachable!()) };
        let recovered = Recovered {
            view: Arc::new(Tables::default()),
            revision: Revision::default(),
            time: Time::default(),
            containers: Vec::new(),
        };
        (memory, recovered)
    }
}

impl Engine for Memory {
    fn on_checkpoint(&mut self, callback: OnCheckpoint) {
        self.on_checkpoint = callback;
    }

    fn apply(&self, batch: &Batch) -> Result<(), Error> {
        let view = {
            let mut tables = self.tables.lock().expect("nothing panics while it is held");
            for (place, record) in batch.sessions() {
                tables.put(place, record);
            }
            tables.clone()
        };
        (self.on_checkpoint)(Arc::new(view), batch.revision);
        Ok(())
    }

    fn close(&self) -> Result<(), Error> {
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

    fn scan(
        &self,
        container: ContainerId,
        from: &Key,
        max: usize,
    ) -> Result<Vec<(Key, Arc<Record>)>, Error> {
        let rows = self.sessions.range((container, from.clone())..);
        let rows = rows.take_while(|((c, _), _)| *c == container).take(max);
        Ok(rows.map(|((_, key), record)| (key.clone(), Arc::clone(record))).collect())
    }

    fn keys(&self, container: ContainerId, from: &Key, max: usize) -> Result<Vec<Key>, Error> {
        Ok(self.scan(container, from, max)?.into_iter().map(|(key, _)| key).collect())
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
