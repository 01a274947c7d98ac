//! Taking in what was exported.
//!
//! A client of the committer like any other: sessions are put into transactions, some hundred at a
//! time, and judged there against what is stored. Each is a new generation of its key, with the times
//! and the attributes of the old one, so that no handle of a session that ended meets it again.

use std::fmt;
use std::io::BufRead;
use std::mem;
use std::ops::AddAssign;

use serde::Serialize;

use crate::error::{Error, LimitKind};
use crate::model::key::Key;
use crate::model::session::Record;
use crate::store::ndjson::{Line, Reader};
use crate::store::{Container, Store, Transaction};

/// How to take in what was exported.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImportOptions {
    on_conflict: OnConflict,
    dry_run: bool,
}

/// What happens where a live session has the key of one that is imported. A key that was rotated away
/// stays away: it is left out, or the import fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnConflict {
    /// The import fails. The default.
    #[default]
    Fail,
    /// The one that is there stays.
    Skip,
    /// The one that is there ends, as if it had been invalidated.
    Replace,
    /// The one that was used later is kept; if that cannot be told, the one that is there.
    Newer,
}

impl ImportOptions {
    /// Takes in everything, and fails where a live session is in the way.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says what happens where a live session is in the way.
    pub fn on_conflict(mut self, on_conflict: OnConflict) -> Self {
        self.on_conflict = on_conflict;
        self
    }

    /// Reads and checks everything, says what would happen, and changes nothing.
    pub fn dry_run(mut self) -> Self {
        self.dry_run = true;
        self
    }
}

/// What was imported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Imported {
    /// Containers that were made, with the settings that came with them. Those that were there keep
    /// theirs.
    pub containers: u64,
    /// Sessions that took a free key.
    pub created: u64,
    /// Sessions that took the place of another.
    pub replaced: u64,
    /// Sessions that were left out for one that was there.
    pub skipped: u64,
    /// Sessions that were left out because they have expired.
    pub expired: u64,
}

impl AddAssign for Imported {
    fn add_assign(&mut self, other: Self) {
        self.containers += other.containers;
        self.created += other.created;
        self.replaced += other.replaced;
        self.skipped += other.skipped;
        self.expired += other.expired;
    }
}

impl fmt::Display for Imported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Imported { containers, created, replaced, skipped, expired } = self;
        write!(f, "{created} sessions created, {replaced} replaced, {skipped} skipped, ")?;
        write!(f, "{expired} expired; {containers} containers made")
    }
}

/// What comes of one session.
pub(crate) enum Arrival {
    Created,
    Replaced,
    Skipped,
    Expired,
}

impl Store {
    /// Takes in what [`export`](Store::export) wrote. Containers that are missing are made. Sessions keep
    /// their times, principals and timeouts, and get ids of their own; what has expired is left out.
    /// Listeners are told of sessions that are replaced, and not of those that come.
    ///
    /// It is no transaction: what was read when something goes wrong has been committed, some hundred
    /// sessions at a time. Do a [dry run](ImportOptions::dry_run) first to be sure of the lines.
    ///
    /// # Errors
    ///
    /// [`Error::Import`] if the lines were cut off or changed, or are no export. [`Error::Format`] if
    /// another version wrote them. [`Error::Exists`], [`Error::Limit`], and those of a commit.
    pub fn import(&self, from: impl BufRead, options: &ImportOptions) -> Result<Imported, Error> {
        let mut lines = Reader::new(from)?;
        let mut import = Import::new(self, *options);
        let (mut containers, mut sessions) = (0, 0);
        while let Some(line) = lines.next(containers, sessions)? {
            match line {
                Line::Container { name, policy } => {
                    import.flush()?;
                    if import.name.replace(name.clone()).is_some_and(|before| before >= name) {
                        return Err(lines.wrong("a container is out of order"));
                    }
                    containers += 1;
                    import.last = None;
                    import.container = match self.container(&name) {
                        Ok(container) => Some(container),
                        Err(Error::NoContainer { .. }) => {
                            import.done.containers += 1;
                            match options.dry_run {
                                true => policy.validate().map(|()| None)?,
                                false => Some(self.container_with(&name, *policy)?),
                            }
                        }
                        Err(error) => return Err(error),
                    };
                }
                Line::Session(entry) => {
                    sessions += 1;
                    let session = entry.session();
                    let (key, record) =
                        session.ok_or_else(|| lines.wrong("a session cannot be read"))?;
                    if import.name.is_none() {
                        return Err(lines.wrong("a session is in no container"));
                    }
                    if import.last.as_ref().is_some_and(|last| *last >= key) {
                        return Err(lines.wrong("a session is out of order"));
                    }
                    import.last = Some(key.clone());
                    import.add(key, record)?;
                }
                Line::Store { .. } | Line::End { .. } => {
                    unreachable!("the reader keeps them to itself")
                }
            }
        }
        import.flush()?;
        Ok(import.done)
    }
}

/// An import under way.
struct Import<'a> {
    store: &'a Store,
    options: ImportOptions,
    done: Imported,
    /// The container whose sessions are read.
    name: Option<String>,
    /// `None` if it would be made.
    container: Option<Container>,
    /// The key that was read last.
    last: Option<Key>,
    /// What is still to be put in, and how many bytes that is.
    waiting: Vec<(Key, Record)>,
    bytes: usize,
}

/// How much is put in with one commit, if the log is not too small.
const SESSIONS: usize = 256;
const BYTES: usize = 4 << 20;

impl<'a> Import<'a> {
    fn new(store: &'a Store, options: ImportOptions) -> Self {
        Import {
            store,
            options,
            done: Imported::default(),
            name: None,
            container: None,
            last: None,
            waiting: Vec::new(),
            bytes: 0,
        }
    }

    fn add(&mut self, key: Key, record: Record) -> Result<(), Error> {
        self.bytes += record.weight();
        self.waiting.push((key, record));
        match self.waiting.len() >= SESSIONS || self.bytes >= BYTES {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.bytes = 0;
        let waiting = mem::take(&mut self.waiting);
        let Some(container) = &self.container else {
            self.done.created += waiting.len() as u64;
            return Ok(());
        };
        let (mut rest, mut most) = (&waiting[..], waiting.len());
        while !rest.is_empty() {
            let (some, later) = rest.split_at(most.min(rest.len()));
            match self.put(container, some) {
                Err(Error::Limit { limit: LimitKind::TransactionBytes, .. }) if some.len() > 1 => {
                    most = some.len() / 2;
                }
                done => {
                    self.done += done?;
                    rest = later;
                }
            }
        }
        Ok(())
    }

    fn put(&self, container: &Container, some: &[(Key, Record)]) -> Result<Imported, Error> {
        let put = |txn: &Transaction| {
            let mut done = Imported::default();
            for (key, record) in some {
                *match txn.take_in(container, key, record, self.options.on_conflict)? {
                    Arrival::Created => &mut done.created,
                    Arrival::Replaced => &mut done.replaced,
                    Arrival::Skipped => &mut done.skipped,
                    Arrival::Expired => &mut done.expired,
                } += 1;
            }
            Ok(done)
        };
        match self.options.dry_run {
            true => put(&self.store.begin()?),
            false => Ok(self.store.transact(put)?.value),
        }
    }
}
