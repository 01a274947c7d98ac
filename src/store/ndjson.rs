//! The lines of an export, as they are written and as they are read.
//!
//! ```text
//!   {"kind":"store","sessile":1,"redacted":false}
//!   {"kind":"container","name":"visitors","policy":{"timeout_secs":1200,...}}
//!   {"kind":"session","key":"616461","created":...,"data":{"name":"Ada","visits":3}}
//!   ...
//!   {"kind":"end","containers":1,"sessions":1,"digest":"sha256:..."}
//! ```
//!
//! Containers stand in the order of their names and sessions in that of their keys, names of attributes
//! in theirs. Times are microseconds since 1970-01-01 UTC. The digest is of all bytes before its line.
//! There is one way to write a state down, so two exports are the same bytes if they say the same. What
//! belongs to one store alone is left out: numbers of commits, ids of sessions, where a session is filed.
//!
//! What is read is treated as hostile: each line has a largest size, and no message repeats what is in
//! one.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read as _, Write};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::Error;
use crate::model::attributes::{Attributes, Stamped};
use crate::model::clock::Time;
use crate::model::key::Key;
use crate::model::policy::Policy;
use crate::model::portable::{Portable, hex, unhex};
use crate::model::session::{Name, Principal, Record, Revision};

/// The format of exports. It counts formats, not releases.
const EXPORT: u32 = 1;

/// A session has at most a quarter of it.
const LINE_BYTES_MAX: u64 = 1 << 30;

/// One line.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Line {
    /// The first.
    Store {
        sessile: u32,
        /// It shows what sessions look like, and cannot be imported.
        redacted: bool,
    },
    /// The sessions that follow are in this one.
    Container {
        name: String,
        policy: Box<Policy>,
    },
    Session(Box<Entry>),
    /// The last.
    End {
        containers: u64,
        sessions: u64,
        digest: String,
    },
}

/// A session.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// In hex; where it is redacted the fingerprint.
    key: String,
    created: u64,
    accessed: u64,
    modified: Option<u64>,
    /// Until when the last access counts as one of now: the timeout runs from then on.
    slice_end: u64,
    /// For readers; what is imported expires by the policy it comes under.
    #[serde(default)]
    expires: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout_secs: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    principal: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    /// Attributes that do not last as long as the session.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    lapses: BTreeMap<String, u64>,
    data: BTreeMap<String, Portable>,
}

impl Line {
    pub(crate) fn first(redacted: bool) -> Self {
        Line::Store { sessile: EXPORT, redacted }
    }
}

impl Entry {
    /// What is to be said of a session; of attributes that are `wanted`.
    pub(crate) fn of(
        key: &Key,
        record: &Record,
        policy: &Policy,
        redacted: bool,
        wanted: impl Fn(&str) -> bool,
    ) -> Self {
        let extras = record.extras.as_deref().cloned().unwrap_or_default();
        let value = if redacted { Portable::Redacted } else { Portable::Whole };
        let attributes = record.attributes.iter().filter(|(name, _)| wanted(name));
        let lapses = extras.lapses.iter().filter(|(name, _)| wanted(name));
        let (principal, note) = match extras.principal {
            Some(Principal { name, .. }) if redacted => {
                (Some(Key::from(&*name).fingerprint()), None)
            }
            Some(Principal { name, note }) => (Some(name.to_string()), Some(note.to_string())),
            None => (None, None),
        };
        Entry {
            key: if redacted { key.fingerprint() } else { hex(key.as_bytes()) },
            created: record.created.as_micros(),
            accessed: record.last_accessed.as_micros(),
            modified: record.last_modified.map(Time::as_micros),
            slice_end: record.slice_end.as_micros(),
            expires: record.expiry(policy).map(Time::as_micros),
            timeout_secs: extras.timeout_secs,
            principal,
            note,
            lapses: lapses.map(|(name, until)| (name.to_string(), until.as_micros())).collect(),
            data: attributes.map(|(name, a)| (name.to_owned(), value(a.value))).collect(),
        }
    }

    /// The session that it says, as far as it is said; `None` if the key is none.
    pub(crate) fn session(self) -> Option<(Key, Record)> {
        let attribute = |(name, value): (String, Portable)| match value {
            Portable::Whole(value) => {
                Some((Name::from(name), Stamped { value, revision: Revision::default() }))
            }
            Portable::Redacted(_) => None,
        };
        let attributes: Option<Attributes> = self.data.into_iter().map(attribute).collect();
        let mut record = Record {
            created: Time::from_micros(self.created),
            last_accessed: Time::from_micros(self.accessed),
            last_modified: self.modified.map(Time::from_micros),
            slice_end: Time::from_micros(self.slice_end),
            attributes: attributes?,
            ..Record::default()
        };
        let (principal, note) = (self.principal, self.note.unwrap_or_default());
        let has = |name: &String| record.attributes.get(name).is_some();
        let lapses = self.lapses.into_iter().filter(|(name, _)| has(name));
        let lapses = lapses.map(|(name, until)| (name.into(), Time::from_micros(until))).collect();
        record.set_extras(|extras| {
            extras.timeout_secs = self.timeout_secs;
            extras.principal =
                principal.map(|name| Principal { name: name.into(), note: note.into() });
            extras.lapses = lapses;
        });
        Some((Key::from(unhex(&self.key)?), record))
    }
}

/// Lines that are written, and their digest.
pub(crate) struct Writer<W> {
    out: W,
    digest: Sha256,
    line: Vec<u8>,
    pub bytes: u64,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(out: W) -> Self {
        Writer { out, digest: Sha256::new(), line: Vec::new(), bytes: 0 }
    }

    pub(crate) fn line(&mut self, line: &Line) -> Result<(), Error> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, line).expect("every line can be said in JSON");
        self.line.push(b'\n');
        self.digest.update(&self.line);
        self.bytes += self.line.len() as u64;
        self.out.write_all(&self.line).map_err(Error::storage)
    }

    /// Writes the last line; the digest in it.
    pub(crate) fn end(mut self, containers: u64, sessions: u64) -> Result<(u64, String), Error> {
        let digest = digest(&self.digest);
        self.line(&Line::End { containers, sessions, digest: digest.clone() })?;
        self.out.flush().map_err(Error::storage)?;
        Ok((self.bytes, digest))
    }
}

fn digest(digest: &Sha256) -> String {
    format!("sha256:{}", hex(&digest.clone().finalize()))
}

/// Lines that are read.
pub(crate) struct Reader<R> {
    from: R,
    digest: Sha256,
    line: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Reader<R> {
    /// Reads the first line.
    pub(crate) fn new(from: R) -> Result<Self, Error> {
        /// What every format has in common.
        #[derive(Deserialize)]
        struct First {
            kind: String,
            sessile: u32,
        }
        let mut reader = Reader { from, digest: Sha256::new(), line: Vec::new(), number: 0 };
        reader.read()?;
        let first = serde_json::from_slice::<First>(&reader.line);
        let first = first.ok().filter(|first| first.kind == "store");
        match first.map(|first| first.sessile) {
            Some(EXPORT) => {}
            Some(found) => return Err(Error::Format { found, supported: EXPORT }),
            None => return Err(reader.wrong("it is no export of sessile's")),
        }
        match reader.parse()? {
            Line::Store { redacted: false, .. } => {
                reader.digest.update(&reader.line);
                Ok(reader)
            }
            _ => Err(reader.wrong("it is redacted, and says not enough")),
        }
    }

    /// The next line but the last; that is checked. The error of a line is that of the export.
    pub(crate) fn next(&mut self, containers: u64, sessions: u64) -> Result<Option<Line>, Error> {
        self.read()?;
        if self.line.is_empty() {
            return Err(self.wrong("it is cut off"));
        }
        match self.parse()? {
            Line::Store { .. } => Err(self.wrong("a second one begins")),
            Line::End { containers: c, sessions: s, digest: d } => {
                if (c, s) != (containers, sessions) || d != digest(&self.digest) {
                    return Err(self.wrong("what came before is not what was exported"));
                }
                self.read()?;
                match self.line.is_empty() {
                    true => Ok(None),
                    false => Err(self.wrong("something follows the end")),
                }
            }
            line => {
                self.digest.update(&self.line);
                Ok(Some(line))
            }
        }
    }

    fn read(&mut self) -> Result<(), Error> {
        self.line.clear();
        self.number += 1;
        let read = (&mut self.from).take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line);
        match read {
            Ok(read) if read as u64 == LINE_BYTES_MAX => Err(self.wrong("it is too long")),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(self.wrong("it cannot be read"))
            }
            Err(error) => Err(Error::storage(error)),
        }
    }

    fn parse(&self) -> Result<Line, Error> {
        // What serde says may show what is there.
        serde_json::from_slice(&self.line).map_err(|error| match error.classify() {
            serde_json::error::Category::Eof => self.wrong("it is cut off"),
            serde_json::error::Category::Syntax => self.wrong("it is no JSON"),
            _ => self.wrong("it says what this version does not know"),
        })
    }

    /// An error about the line that was read last.
    pub(crate) fn wrong(&self, reason: &'static str) -> Error {
        Error::Import { line: self.number, reason }
    }
}
