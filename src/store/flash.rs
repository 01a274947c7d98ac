//! Values that are shown once: "your order is on its way", after the redirect that follows it.
//!
//! They wait in a list under one name. To leave one there is a merging write, which never conflicts; to
//! read them is to [`take`](Session::take) them all. So of two requests that read them at the same time
//! exactly one shows them, and one that is left while they are being read is shown the next time.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::store::session::Session;

/// How many wait at the most.
const FLASHES_MAX: usize = 100;

impl Session {
    /// The name of the attribute in which flash values wait: a list of them, listed and counted like every
    /// other attribute.
    pub const FLASHES: &str = "_flashes";

    /// Leaves a value for the next request that asks for [`flashes`](Session::flashes). Merges: those of
    /// concurrent requests are all kept, in the order of the commits; of more than 100 the last.
    ///
    /// ```
    /// # use sessile::{Policy, Store};
    /// # let store = Store::memory()?;
    /// # let visitors = store.container_with("visitors", Policy::new())?;
    /// store.transact(|txn| txn.get_or_create(&visitors, "ada")?.flash("Saved."))?;
    ///
    /// let shown = store.transact(|txn| txn.get_or_create(&visitors, "ada")?.flashes::<String>())?;
    /// assert_eq!(shown.value, ["Saved."]);
    /// let shown = store.transact(|txn| txn.get_or_create(&visitors, "ada")?.flashes::<String>())?;
    /// assert!(shown.value.is_empty());
    /// # Ok::<(), sessile::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Encode`], [`Error::Limit`], and those of every call.
    pub fn flash(&self, value: impl Serialize) -> Result<(), Error> {
        self.append(Self::FLASHES, value, FLASHES_MAX)
    }

    /// Takes the flash values that wait, the oldest first. Of two requests that do so at the same time
    /// exactly one gets them: the other conflicts, and run again finds none. Where there are none
    /// nothing is written.
    ///
    /// Show them when the transaction has been committed: before that they may be another's.
    ///
    /// # Errors
    ///
    /// [`Error::Type`] if one of them is no `T`, in which case they stay; and those of every call.
    pub fn flashes<T: DeserializeOwned>(&self) -> Result<Vec<T>, Error> {
        Ok(self.take::<Vec<T>>(Self::FLASHES)?.unwrap_or_default())
    }
}
