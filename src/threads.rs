//! The one place where threads are started.

use crate::error::Error;
use crate::sync::thread::{Builder, JoinHandle};

/// Starts a thread that carries its task in its name.
#[expect(clippy::disallowed_methods, reason = "the one place")]
pub(crate) fn spawn(
    task: &str,
    work: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    Builder::new().name(format!("sessile-{task}")).spawn(work).map_err(Error::storage)
}
