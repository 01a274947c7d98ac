//! A handle to sessions under one policy.

use std::fmt;
use std::sync::Arc;

use crate::model::container::ContainerId;
use crate::store::core::Core;

/// Sessions under one policy; made by [`Store::container_with`](crate::Store::container_with).
/// Cheap to clone, valid in every transaction of its store.
#[derive(Clone)]
pub struct Container {
    pub(crate) core: Arc<Core>,
    pub(crate) id: ContainerId,
    pub(crate) name: Arc<str>,
}

impl Container {
    /// The name of the container.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Container({:?})", self.name)
    }
}
