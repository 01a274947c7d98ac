//! Checking a store from outside: does everything in it say the same?
//!
//! The chain of the log; each row of the tables against its checksum and its bytes; the expiry index
//! against the sessions, both ways; the counts of the containers against what the tables and the log
//! hold together; and, unless somebody is writing to it, redb's own file page by page. Nothing is
//! repaired, and nothing is changed: see [`super::viewing`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use redb::ReadableTable;

use super::directory::Directory;
use super::disk::Disk;
use super::records;
use super::tables::{self, storage};
use super::viewing::{self, Beyond, Seen, StoreState};
use crate::error::Error;
use crate::model::container::ContainerId;
use crate::model::key::Key;

/// What [`Viewer::check`](crate::Viewer::check) or [`Store::check`](crate::Store::check) looked at, and
/// what was wrong with it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Checked {
    /// Whether somebody has the store open; `None` if it is too damaged to tell.
    pub state: Option<StoreState>,
    /// Batches of the log that follow what the tables hold, and were replayed.
    pub log_batches: u64,
    /// Containers that were counted.
    pub containers: u64,
    /// Records of sessions in the tables that were verified.
    pub records: u64,
    /// Rows of the expiry index that were compared with their sessions.
    pub index_rows: u64,
    /// Whether every page of the tables' file was verified: not while somebody writes to it.
    pub pages: bool,
    /// What is wrong. Of more than 1,000 problems the first are here.
    pub problems: Vec<Problem>,
    /// How many more there are.
    pub more_problems: u64,
}

/// Something in a store that is not as sessile left it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// A file cannot be read as what it is. Restore a backup.
    File {
        /// Which part of the store.
        part: &'static str,
        /// What is wrong with it; never the bytes themselves.
        reason: String,
    },
    /// The record of a session is damaged. The session is absent, others are served.
    Record {
        /// The name of the container.
        container: String,
        /// The fingerprint of the session's key.
        session: String,
    },
    /// A session is not in the expiry index where its record says: nobody would ever end it.
    Unfiled {
        /// The name of the container.
        container: String,
        /// The fingerprint of the session's key.
        session: String,
    },
    /// The expiry index has a row that is no session's, or not that of its record.
    Stray {
        /// The name of the container.
        container: String,
        /// The fingerprint of the session's key.
        session: String,
    },
    /// A session is filed in the expiry index under a time after its own: it would end too late.
    Late {
        /// The name of the container.
        container: String,
        /// The fingerprint of the session's key.
        session: String,
    },
    /// A session is not in the row of its principal: who ends all sessions of that one misses it.
    Unlisted {
        /// The name of the container.
        container: String,
        /// The fingerprint of the session's key.
        session: String,
    },
    /// The row of a principal has a session that there is not, or that is somebody else's.
    Mislisted {
        /// The name of the container.
        container: String,
        /// The fingerprint of the session's key.
        session: String,
    },
    /// A container says that it has more sessions, or fewer, than there are.
    Count {
        /// The name of the container.
        container: String,
        /// What it says.
        noted: u64,
        /// What there are.
        found: u64,
    },
    /// There are sessions of a container that there is not.
    Homeless {
        /// How many.
        sessions: u64,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::File { part, reason } => write!(f, "{part}: {reason}"),
            Problem::Record { container, session } => {
                write!(f, "session {session} of {container:?}: its record is damaged")
            }
            Problem::Unfiled { container, session } => {
                write!(f, "session {session} of {container:?}: it is not in the expiry index")
            }
            Problem::Stray { container, session } => write!(
                f,
                "session {session} of {container:?}: the expiry index has a row that is not its own"
            ),
            Problem::Late { container, session } => {
                write!(
                    f,
                    "session {session} of {container:?}: it is filed too late in the expiry index"
                )
            }
            Problem::Unlisted { container, session } => {
                write!(f, "session {session} of {container:?}: it is not in its principal's row")
            }
            Problem::Mislisted { container, session } => {
                write!(f, "session {session} of {container:?}: a principal has it who should not")
            }
            Problem::Count { container, noted, found } => {
                write!(f, "{container:?} says that it has {noted} sessions, and it has {found}")
            }
            Problem::Homeless { sessions } => {
                write!(f, "{sessions} sessions are in a container that there is not")
            }
        }
    }
}

const PROBLEMS_MAX: usize = 1_000;

/// How many rows are read between two looks at whether the file is still the same.
const ROWS: u64 = 1_024;

pub(crate) fn check(disk: Arc<dyn Disk>, path: &Path) -> Result<Checked, Error> {
    let directory = Directory::find(disk, path)?;
    let mut checked = Checked::default();
    match viewing::see(&directory) {
        Ok((seen, beyond)) => {
            checked.state = Some(seen.state(&directory));
            checked.contents(&seen, beyond)?;
        }
        Err(error) => checked.note_error(error)?,
    }
    // What was seen is let go of: it holds space that a fold could use.
    if !matches!(checked.state, Some(StoreState::InUse { .. })) {
        checked.pages(&directory)?;
    }
    Ok(checked)
}

impl Checked {
    pub(crate) fn note(&mut self, problem: Problem) {
        match self.problems.len() < PROBLEMS_MAX {
            true => self.problems.push(problem),
            false => self.more_problems += 1,
        }
    }

    /// What is damaged is a problem, everything else keeps from checking.
    fn note_error(&mut self, error: Error) -> Result<(), Error> {
        match error {
            Error::Corrupt { table, reason } => {
                let problem = Problem::File { part: table, reason };
                // Some are met twice.
                if !self.problems.contains(&problem) {
                    self.note(problem);
                }
                Ok(())
            }
            error => Err(error),
        }
    }

    /// Checks what the tables and the log say.
    fn contents(&mut self, seen: &Seen, beyond: Result<Beyond, Error>) -> Result<(), Error> {
        let beyond = match beyond {
            Ok(beyond) => Some(beyond),
            Err(error) => {
                self.note_error(error)?;
                None
            }
        };
        let containers = seen.containers.iter();
        let mut names: BTreeMap<_, _> =
            containers.map(|state| (state.id.0, Arc::clone(&state.name))).collect();
        if let Some(beyond) = &beyond {
            let containers = beyond.containers.iter();
            names.extend(containers.map(|(id, state)| (id.0, Arc::clone(&state.name))));
        }
        let found = tables::guarded(|| self.rows(seen, &names));
        seen.check_unchanged()?;
        match (found, beyond) {
            (Ok(found), Some(beyond)) => self.counts(seen, &beyond, found),
            // A fold may be half done. Without the log nobody knows how much of it.
            (Ok(_), None) => Ok(()),
            (Err(error), _) => self.note_error(error),
        }
    }

    /// Lets redb verify its own file.
    fn pages(&mut self, directory: &Directory) -> Result<(), Error> {
        match Seen::verify(directory) {
            Ok(Some(is_whole)) => {
                self.pages = true;
                if !is_whole {
                    let reason = "its pages do not verify".to_owned();
                    self.note(Problem::File { part: tables::DATABASE, reason });
                }
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error) => self.note_error(error),
        }
    }

    /// Looks at every row of the tables, and counts the sessions of each container.
    ///
    /// The two tables agree in every state of redb's, in the middle of a fold too, so this does not
    /// ask the log.
    fn rows(
        &mut self,
        seen: &Seen,
        names: &BTreeMap<u32, Arc<str>>,
    ) -> Result<BTreeMap<u32, u64>, Error> {
        let name = |id: u32| {
            let name = names.get(&ContainerId(id).container().0);
            name.map_or(String::new(), |name| name.to_string())
        };
        let (mut found, mut sound, mut damaged) = (BTreeMap::new(), 0u64, 0);
        for row in storage!(seen.view.sessions.iter())? {
            let (place, row) = storage!(row)?;
            let (container, key) = place.value();
            if ContainerId(container).is_container() {
                *found.entry(container).or_insert(0) += 1;
            }
            match records::decode_session(ContainerId(container), key, row.value()) {
                Ok(_) => sound += 1,
                Err(_) => {
                    damaged += 1;
                    let session = Key::from(key).fingerprint();
                    self.note(Problem::Record { container: name(container), session });
                }
            }
            if (sound + damaged).is_multiple_of(ROWS) {
                seen.check_unchanged()?;
            }
        }
        self.records = sound;

        // Each session has one record with one bucket. So if as many rows of the index agree with a
        // sound record as there are, every one of those is filed.
        let mut filed = 0;
        for row in storage!(seen.view.buckets.iter())? {
            let (row, _) = storage!(row)?;
            let (container, bucket, key) = row.value();
            let place = (ContainerId(container), Key::from(key));
            let record = storage!(seen.view.sessions.get((container, key)))?;
            match record.map(|record| records::bucket(&place, record.value())) {
                Some(Some(other)) if other == bucket => filed += 1,
                // Nobody knows whether it is the right one.
                Some(None) => {}
                _ => {
                    let session = place.1.fingerprint();
                    self.note(Problem::Stray { container: name(container), session });
                }
            }
            self.index_rows += 1;
            if self.index_rows.is_multiple_of(ROWS) {
                seen.check_unchanged()?;
            }
        }
        if filed == sound {
            return Ok(found);
        }
        for row in storage!(seen.view.sessions.iter())? {
            let (place, row) = storage!(row)?;
            let (container, key) = place.value();
            let place = (ContainerId(container), Key::from(key));
            let Some(bucket) = records::bucket(&place, row.value()) else { continue };
            if storage!(seen.view.buckets.get((container, bucket, key)))?.is_none() {
                let session = place.1.fingerprint();
                self.note(Problem::Unfiled { container: name(container), session });
            }
        }
        Ok(found)
    }

    /// Compares what the containers say with what there is, the log taken into account.
    fn counts(
        &mut self,
        seen: &Seen,
        beyond: &Beyond,
        mut found: BTreeMap<u32, u64>,
    ) -> Result<(), Error> {
        self.log_batches = beyond.batches;
        // The store's own notes are not counted.
        let sessions =
            beyond.sessions.iter().filter(|((container, _), _)| container.is_container());
        for ((container, key), (_, record)) in sessions {
            let row = tables::guarded(|| {
                Ok(storage!(seen.view.sessions.get((container.0, key.as_bytes())))?.is_some())
            });
            seen.check_unchanged()?;
            let count = found.entry(container.0).or_insert(0);
            match (row?, record) {
                (false, Some(_)) => *count += 1,
                (true, None) => *count -= 1,
                _ => {}
            }
        }
        for state in beyond.containers.values() {
            self.containers += 1;
            let found = found.remove(&state.id.0).unwrap_or_default();
            if found != state.count {
                let container = state.name.to_string();
                self.note(Problem::Count { container, noted: state.count, found });
            }
        }
        match found.into_values().sum() {
            0 => {}
            sessions => self.note(Problem::Homeless { sessions }),
        }
        Ok(())
    }
}
