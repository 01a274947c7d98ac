//! What the commands that look into a store have in common.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use serde_json::{Value as Json, json};
use sessile::{Error, Options, Store, StoreState, Time, Viewer};

use crate::format::utc;

/// The store, and how to print what is found in it.
#[derive(Args)]
pub(crate) struct Source {
    /// The directory of the store.
    #[arg(value_name = "STORE")]
    pub path: PathBuf,

    /// Print one JSON document.
    #[arg(long)]
    pub json: bool,
}

impl Source {
    /// Reads something from one state of the store.
    ///
    /// Everything is read before anything is printed: a pager may keep us waiting for hours, and
    /// must not keep the store from using its space again.
    pub(crate) fn look<T>(&self, read: impl Fn(&Viewer) -> Result<T, Error>) -> Result<T> {
        Ok(again_if_busy(|| Viewer::open(&self.path).and_then(|viewer| read(&viewer)))?)
    }
}

/// The application may open a store of which the process had died while we look at it.
pub(crate) fn again_if_busy<T>(look: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
    const ATTEMPTS_MAX: u32 = 3;
    let mut attempt = 1;
    loop {
        match look() {
            Err(Error::Busy { .. }) if attempt < ATTEMPTS_MAX => attempt += 1,
            looked => return looked,
        }
    }
}

/// Opens a store to change it. One that is not there is not made.
pub(crate) fn change(path: &Path) -> Result<Store, Error> {
    again_if_busy(|| Viewer::open(path))?;
    change_or_create(path)
}

/// The same, but it is made if it is not there. What has expired is left to its application, and so is
/// telling of ends: it has the listeners.
pub(crate) fn change_or_create(path: &Path) -> Result<Store, Error> {
    Options::new().sweep_every(None).leave_ends().open(path)
}

/// The names of the containers to look into: this one, or all.
pub(crate) fn containers(viewer: &Viewer, only: Option<&String>) -> Vec<String> {
    match only {
        Some(name) => vec![name.clone()],
        None => viewer.containers().into_iter().map(|container| container.name).collect(),
    }
}

/// Whether somebody has the store open, in a few words.
pub(crate) fn state(state: StoreState) -> String {
    let by = |process: Option<u32>| match process {
        Some(process) => format!("process {process}"),
        None => "a process".to_owned(),
    };
    match state {
        StoreState::Closed => "closed".to_owned(),
        StoreState::InUse { process } => format!("in use by {}", by(process)),
        StoreState::Died { process } => {
            format!("not closed: {} died; the next to open it goes on from here", by(process))
        }
        _ => "unknown".to_owned(),
    }
}

/// The same for programs.
pub(crate) fn state_json(state: StoreState) -> Json {
    match state {
        StoreState::InUse { process } => json!({ "is": "in use", "process": process }),
        StoreState::Died { process } => json!({ "is": "died", "process": process }),
        StoreState::Closed => json!({ "is": "closed" }),
        _ => json!({ "is": "unknown" }),
    }
}

pub(crate) fn path_json(path: &Path) -> Json {
    path.to_string_lossy().into()
}

/// A time, or `null`.
pub(crate) fn time_json(time: impl Into<Option<Time>>) -> Json {
    time.into().map(utc).into()
}

/// What the operating system said, if the storage failed because of it.
pub(crate) fn os_error(error: &Error) -> Option<io::ErrorKind> {
    let Error::Storage(cause) = error else { return None };
    // Behind the pointer: the error that it is to is not what `source` gives.
    cause.downcast_ref::<io::Error>().map(io::Error::kind)
}

/// The exit code of a failure, and what to do next.
pub(crate) fn advice(error: &anyhow::Error) -> (u8, Option<&'static str>) {
    let is_denied = |error: &Error| os_error(error) == Some(io::ErrorKind::PermissionDenied);
    match error.downcast_ref::<Error>() {
        Some(Error::Busy { .. }) => (3, Some("try again; nothing is wrong with it")),
        Some(Error::AlreadyOpen { .. }) => (
            3,
            Some("only one process may change a store; stats, ls, show, export and backup work"),
        ),
        Some(Error::AlreadyThere { .. }) => (6, Some("name a directory that is not there yet")),
        Some(Error::Exists { .. }) => (6, Some("`--on-conflict` says what to do then")),
        Some(Error::NotAStore { .. }) => {
            (4, Some("name the directory that the application opens as its store"))
        }
        Some(Error::Format { .. }) => (4, Some("use the version of sessile that wrote it")),
        Some(Error::NoContainer { .. }) => (6, Some("`sessile stats` shows which there are")),
        Some(Error::Corrupt { .. }) => {
            (6, Some("`sessile check` finds out what else is damaged; then restore a backup"))
        }
        Some(error) if is_denied(error) => {
            (6, Some("only its owner may look into it: be the user that the application runs as"))
        }
        _ => (6, None),
    }
}
