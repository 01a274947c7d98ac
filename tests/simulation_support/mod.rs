//! What the simulation is made of, from the bottom up.

pub(crate) mod backups;
pub(crate) mod chance;
pub(crate) mod compactions;
pub(crate) mod content;
pub(crate) mod disk;
mod disk_tests;
pub(crate) mod faults;
pub(crate) mod intent;
pub(crate) mod life;
pub(crate) mod model;
pub(crate) mod outcome;
pub(crate) mod platter;
pub(crate) mod rot;
pub(crate) mod suite;
pub(crate) mod verify;
pub(crate) mod workload;
pub(crate) mod world;
