//! Pages for those who want to know more than how to use it.

#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[doc = include_str!("format.md")]
pub mod format {}

#[doc = include_str!("design.md")]
pub mod design {}

#[doc = include_str!("observability.md")]
pub mod observability {}

#[doc = include_str!("security.md")]
pub mod security {}
