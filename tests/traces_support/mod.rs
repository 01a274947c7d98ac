//! What it takes to play a trace: reading it, doing its steps, listening, judging.

pub(crate) mod adapter;
mod clock;
mod connection;
pub(crate) mod format;
pub(crate) mod judge;
mod listening;
mod request;
mod steps;
