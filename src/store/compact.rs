//! Giving space back to the disk.

use std::fmt;

use serde::Serialize;

use crate::error::Error;
use crate::store::Store;

/// What a compaction came to: see [`Store::compact`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Compacted {
    /// The bytes of the tables before.
    pub before: u64,
    /// And after.
    pub after: u64,
}

impl fmt::Display for Compacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} bytes", self.before, self.after)
    }
}

impl Store {
    /// Writes the tables again, without the space in their file that nothing lies in, while others commit.
    /// A store uses such space again by itself; this is for one that has become much smaller, and gives it
    /// back to the disk. As much is needed there meanwhile as the store takes up afterwards.
    ///
    /// Commits go on as long as they fit into the log, and wait for the rest of it then. Whatever
    /// happens on the way, the store has the old file or the new one.
    ///
    /// ```
    /// # use sessile::{Policy, Store};
    /// # let directory = tempfile::tempdir()?;
    /// # let store = Store::open(directory.path().join("sessions"))?;
    /// let compacted = store.compact()?;
    /// assert!(compacted.after <= compacted.before);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the tables cannot be read, or the new ones not be written.
    pub fn compact(&self) -> Result<Compacted, Error> {
        self.core.check_open()?;
        let (before, after) = self.core.engine.compact()?;
        Ok(Compacted { before, after })
    }
}
