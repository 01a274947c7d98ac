//! What a program keeps in a session, as a type of its own.

use std::fmt;
use std::ops::{Deref, DerefMut};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::web::session::Session;

/// Something that a program keeps in sessions, under a name of its own.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use sessile::web::{SessionData, Stored};
/// use sessile::Error;
///
/// #[derive(Default, Serialize, Deserialize)]
/// struct Cart {
///     items: Vec<String>,
/// }
///
/// impl SessionData for Cart {
///     const NAME: &str = "cart";
/// }
///
/// async fn add_tea(mut cart: Stored<Cart>) -> Result<(), Error> {
///     cart.items.push("tea".to_owned());
///     cart.save()
/// }
/// ```
pub trait SessionData: Serialize + DeserializeOwned + Default {
    /// The name of the attribute.
    const NAME: &str;
}

/// [Something](SessionData) that a program keeps in the session of this request: the default, if it is not
/// there yet. An extractor of axum.
///
/// It was read, so [saving](Stored::save) it is a read-modify-write of the whole value: of two requests that
/// save at the same time the later one wins, and that is [told](crate::Event::Overruled). What several
/// requests change at once is better kept in attributes of its own, which merge.
pub struct Stored<T, R = ()> {
    value: T,
    session: Session<R>,
}

impl<T: SessionData, R: 'static> Stored<T, R> {
    /// Reads it from a session.
    ///
    /// # Errors
    ///
    /// [`Error::Type`] if something else is stored under the name, and those of a
    /// [`Session`].
    pub fn of(session: Session<R>) -> Result<Self, Error> {
        let value = session.get(T::NAME)?.unwrap_or_default();
        Ok(Stored { value, session })
    }

    /// Writes it to the session.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`], [`Error::Limit`], and those of a [`Session`].
    pub fn save(&self) -> Result<(), Error> {
        self.session.insert(T::NAME, &self.value)
    }

    /// The session that it is kept in.
    pub fn session(&self) -> &Session<R> {
        &self.session
    }
}

impl<T, R> Deref for Stored<T, R> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T, R> DerefMut for Stored<T, R> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

/// Without the value.
impl<T, R> fmt::Debug for Stored<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stored").field("session", &self.session).finish_non_exhaustive()
    }
}
