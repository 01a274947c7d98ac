//! The parts of `kill.rs`, in reading order: what clients do and what a store holds then
//! (`deeds`), the program that does it (`program`), where it stands still to be killed (`points`),
//! and the other end of its pipes (`process`).

pub(crate) mod deeds;
pub(crate) mod points;
pub(crate) mod process;
pub(crate) mod program;
