//! What the words mean: plain values and pure functions.
//!
//! Nothing here knows a file, a thread or a store. Time and chance come in as arguments, and every
//! decision that the layers above make (does this conflict, has that expired) is made here, where a
//! test can ask it directly.

pub(crate) mod attribute;
pub(crate) mod attributes;
pub(crate) mod change;
pub(crate) mod clock;
pub(crate) mod container;
pub(crate) mod draft;
pub(crate) mod forward;
pub(crate) mod key;
pub(crate) mod merge;
pub(crate) mod policy;
pub(crate) mod portable;
pub(crate) mod principals;
pub(crate) mod session;
pub(crate) mod timeslice;
pub(crate) mod token;
pub(crate) mod value;
