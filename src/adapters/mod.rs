//! Frameworks that sessile fits into. They use the public API only, like a stranger.

#[cfg(feature = "axum")]
mod axum;
