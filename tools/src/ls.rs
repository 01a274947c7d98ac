//! `sessile ls`: the sessions of a store, one a line.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde_json::{Value as Json, json};
use sessile::{Error, Key, Time, ViewedSession, Viewer};

use crate::Answer;
use crate::filters::Filters;
use crate::format::{self, hex, json_line, plural, printable, relative, size, thousands, utc};
use crate::store::{self, Source, time_json};
use crate::table::{self, Cell};
use crate::terminal::Page;

pub(crate) const HELP: &str = "\
Sessions are named by the fingerprint of their key, because a key may be a secret; --reveal shows
the keys. Listing a session is no access: it lives no longer by it.

Examples:
  sessile ls ./sessions --container visitors --limit 20
  sessile ls ./sessions --principal ada --idle 12h
  sessile ls ./sessions --has cart --where country=de
  sessile ls ./sessions --expired        what awaits the sweep
  sessile ls ./sessions | cut -f2        the fingerprints";

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: Source,

    /// No more than so many.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,

    /// Show the keys.
    #[arg(long)]
    reveal: bool,

    #[command(flatten)]
    filters: Filters,
}

pub(crate) fn run(page: &mut Page, arguments: &Arguments) -> Result<Answer> {
    let source = &arguments.source;
    let (now, listed) = source.look(|viewer| arguments.read(viewer))?;
    if source.json {
        let sessions = listed.iter().map(|session| json_line(&session.json(now)));
        page.lines(json_list("sessions", sessions))?;
        return Ok(Answer::Yes);
    }
    const NAMES: [&str; 8] = [
        "container",
        "session",
        "created",
        "accessed",
        "expires",
        "attributes",
        "bytes",
        "principal",
    ];
    table::print(page, &NAMES, listed.iter().map(|session| session.cells(now)))?;
    if page.is_terminal() {
        page.line(plural(listed.len() as u64, "session", "sessions"))?;
    }
    Ok(Answer::Yes)
}

impl Arguments {
    fn read(&self, viewer: &Viewer) -> Result<(Time, Vec<Listed>), Error> {
        let now = viewer.now();
        let names = store::containers(viewer, self.filters.container.as_ref());
        let limit = self.limit.unwrap_or(usize::MAX);
        let mut listed = Vec::new();
        for name in names {
            let sessions = viewer.find(&name, self.filters.filter(), now)?;
            let name: Arc<str> = name.into();
            for session in sessions {
                if listed.len() == limit {
                    return Ok((now, listed));
                }
                listed.push(Listed::of(&name, &session?, self.reveal));
            }
        }
        Ok((now, listed))
    }
}

/// What is shown of a session without its attributes.
pub(crate) struct Listed {
    container: Arc<str>,
    fingerprint: String,
    /// If it may be shown.
    key: Option<Key>,
    created: Time,
    last_accessed: Time,
    last_modified: Option<Time>,
    expires: Option<Time>,
    principal: Option<String>,
    /// A timeout of its own.
    timeout: Option<Duration>,
    revision: u64,
    attributes: usize,
    bytes: usize,
}

impl Listed {
    pub(crate) fn of(container: &Arc<str>, session: &ViewedSession, reveal: bool) -> Self {
        Listed {
            container: Arc::clone(container),
            fingerprint: session.key().fingerprint(),
            key: reveal.then(|| session.key().clone()),
            created: session.created(),
            last_accessed: session.last_accessed(),
            last_modified: session.last_modified(),
            expires: session.expires(),
            principal: session.principal().map(str::to_owned),
            timeout: session.timeout(),
            revision: session.revision().get(),
            attributes: session.attribute_count(),
            bytes: session.bytes(),
        }
    }

    /// Its container and its fingerprint.
    pub(crate) fn name(&self) -> String {
        format!("  {}  {}", self.fingerprint, printable(&self.container))
    }

    fn cells(&self, now: Time) -> Vec<Cell> {
        let name = match &self.key {
            Some(key) => Cell::text(&format::key(key)),
            None => Cell::text(&self.fingerprint),
        };
        vec![
            Cell::text(&self.container),
            name,
            time_cell(self.created, now),
            time_cell(self.last_accessed, now),
            time_cell(self.expires, now),
            Cell::figure(thousands(self.attributes as u64), self.attributes),
            Cell::figure(size(self.bytes as u64), self.bytes),
            Cell::text(self.principal.as_deref().unwrap_or_default()),
        ]
    }

    /// What there is to say of it, one fact a line.
    pub(crate) fn facts(&self, now: Time) -> Vec<(&'static str, Cell)> {
        let mut facts = vec![
            ("container", Cell::text(&self.container)),
            ("session", Cell::text(&self.fingerprint)),
        ];
        facts.extend(self.key.as_ref().map(|key| ("key", Cell::text(&format::key(key)))));
        let principal = self.principal.as_ref();
        facts.extend(principal.map(|principal| ("principal", Cell::text(principal))));
        facts.extend([
            ("revision", Cell::both(format_args!("r{}", self.revision), self.revision)),
            ("created", time_cell(self.created, now)),
            ("accessed", time_cell(self.last_accessed, now)),
            ("modified", time_cell(self.last_modified, now)),
            ("expires", time_cell(self.expires, now)),
        ]);
        facts.extend(self.timeout.map(|timeout| ("timeout", timeout_cell(timeout))));
        facts
    }

    pub(crate) fn json(&self, now: Time) -> Json {
        let mut json = json!({
            "container": &*self.container,
            "fingerprint": self.fingerprint,
            "created": utc(self.created),
            "last_accessed": utc(self.last_accessed),
            "last_modified": time_json(self.last_modified),
            "expires": time_json(self.expires),
            "expired": self.expires.is_some_and(|expires| expires <= now),
            "principal": self.principal,
            "revision": self.revision,
            "attribute_count": self.attributes,
            "bytes": self.bytes,
        });
        if let Some(timeout) = self.timeout {
            json["timeout_secs"] = timeout.as_secs().into();
        }
        if let Some(key) = &self.key {
            // A key is any bytes. If they are a text it is there, too.
            json["key_hex"] = hex(key.as_bytes()).into();
            json["key"] = std::str::from_utf8(key.as_bytes()).ok().into();
        }
        json
    }
}

/// A session's own timeout.
fn timeout_cell(timeout: Duration) -> Cell {
    match timeout.is_zero() {
        true => Cell::both("none", 0),
        false => Cell::both(format::span(timeout), timeout.as_secs()),
    }
}

pub(crate) fn time_cell(time: impl Into<Option<Time>>, now: Time) -> Cell {
    match time.into() {
        Some(time) => Cell::both(relative(time, now), utc(time)),
        None => Cell::both("never", ""),
    }
}

/// A document with one list in it, line by line: it may be a long one.
fn json_list(name: &str, items: impl Iterator<Item = String>) -> impl Iterator<Item = String> {
    let mut items = items.peekable();
    let mut begins = Some(format!("{{\"{name}\":["));
    let mut ends = Some("]}".to_owned());
    std::iter::from_fn(move || {
        if let Some(begins) = begins.take() {
            return Some(begins);
        }
        match items.next() {
            Some(item) if items.peek().is_some() => Some(item + ","),
            Some(item) => Some(item),
            None => ends.take(),
        }
    })
}
