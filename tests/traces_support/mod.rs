//! What it takes to play a trace: reading it, doing its steps, listening, judging.

pub(crate) mod adapter;
pub(crate) mod format;
pub(crate) mod judge;
pub(crate) mod listening;
