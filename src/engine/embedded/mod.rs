//! Sessions in a directory: redb tables.
//!
//! A batch is one redb transaction, two-phase and with quick repair, so that a store whose process
//! was killed opens in milliseconds whatever its size. Nothing outside this folder names a
//! type of redb's.

mod directory;
pub(crate) mod disk;
mod records;
mod tables;

use std::path::Path;
use std::sync::Arc;

use crate::engine::{Batch, Engine, OnCheckpoint, Recovered};
use crate::error::Error;

pub(crate) use directory::Mode;
pub(crate) use tables::FORMAT;

pub(crate) struct Embedded {
    tables: tables::Tables,
    on_checkpoint: OnCheckpoint,
}

impl Embedded {
    pub(crate) fn open(path: &Path, mode: Mode) -> Result<(Self, Recovered), Error> {
        let (tables, recovered) = tables::Tables::open(path, mode)?;
        let embedded = Embedded { tables, on_checkpoint: Box::new(|_, _| unreachable!()) };
        Ok((embedded, recovered))
    }
}

impl Engine for Embedded {
    fn on_checkpoint(&mut self, callback: OnCheckpoint) {
        self.on_checkpoint = callback;
    }

    fn apply(&self, batch: &Batch) -> Result<(), Error> {
        self.tables.write(batch)?;
        (self.on_checkpoint)(Arc::new(self.tables.view()?), batch.revision);
        Ok(())
    }

    fn close(&self) -> Result<(), Error> {
        self.tables.close()
    }
}
