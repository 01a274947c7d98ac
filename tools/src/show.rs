//! `sessile show`: one session, with its attributes.

use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use serde_json::{Value as Json, json};
use sessile::{Error, Key, Time, ViewedAttribute, ViewedSession, Viewer};

use crate::Answer;
use crate::format::{json_line, json_of, key_of_hex, kind, size, utc};
use crate::ls::{Listed, time_cell};
use crate::store::{self, Source};
use crate::table::{self, Cell};
use crate::terminal::{self, Page};

pub(crate) const HELP: &str = "\
ID is a session's key, or the beginning of its fingerprint as `sessile ls` shows it. A key that is
no text is written 0x and its bytes. Values and the key are hidden; --reveal shows them, values as
JSON. The exit code is 1 if there is no such session, or more than one.

Examples:
  sessile show ./sessions 9f3a
  sessile show ./sessions ada --container visitors --reveal";

/// What stands in place of a value.
const HIDDEN: &str = "•••";

/// Of more sessions than this that are meant, the first are named.
const NAMED_MAX: usize = 10;

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: Source,

    /// The session's key, or the beginning of its fingerprint.
    id: String,

    /// The session's container, if several have one of this ID.
    #[arg(long, value_name = "NAME")]
    container: Option<String>,

    /// Show the key, and what the attributes hold.
    #[arg(long)]
    reveal: bool,
}

pub(crate) fn run(page: &mut Page, arguments: &Arguments) -> Result<Answer> {
    let Arguments { source, reveal, .. } = arguments;
    let (now, found) = source.look(|viewer| arguments.read(viewer))?;
    let (listed, attributes) = match &found[..] {
        [Found { listed, attributes }] => (listed, attributes),
        [] => {
            terminal::say("no session has this key, or a fingerprint that begins so");
            terminal::say("  `sessile ls` shows the fingerprints");
            return Ok(Answer::No);
        }
        several => {
            terminal::say(
                "several sessions are meant; say more of the fingerprint, or --container",
            );
            for found in several.iter().take(NAMED_MAX) {
                terminal::say(&found.listed.name());
            }
            return Ok(Answer::No);
        }
    };
    if source.json {
        let mut json = listed.json(now);
        let attributes = attributes.iter().map(|attribute| attribute_json(attribute, *reveal));
        json["attributes"] = attributes.collect();
        page.lines([json_line(&json)])?;
        return Ok(Answer::Yes);
    }
    table::print_facts(page, &listed.facts(now))?;
    page.lines([String::new()])?;
    // Most sessions have none that lasts for a while only.
    let lapses = attributes.iter().any(|attribute| attribute.until.is_some());
    let cells = |attribute: &ViewedAttribute| {
        let mut cells = attribute_cells(attribute, *reveal);
        if lapses {
            cells.insert(4, attribute.until.map_or(Cell::text(""), |until| time_cell(until, now)));
        }
        cells
    };
    let mut names = vec!["attribute", "kind", "bytes", "revision", "value"];
    if lapses {
        names.insert(4, "until");
    }
    table::print(page, &names, attributes.iter().map(cells))?;
    if page.is_terminal() && !reveal && !attributes.is_empty() {
        page.line("values are hidden; --reveal shows them")?;
    }
    Ok(Answer::Yes)
}

/// A session that may be meant.
struct Found {
    listed: Listed,
    attributes: Vec<ViewedAttribute>,
}

impl Arguments {
    /// The sessions of this key; or else those whose fingerprint begins so.
    fn read(&self, viewer: &Viewer) -> Result<(Time, Vec<Found>), Error> {
        let now = viewer.now();
        let names = store::containers(viewer, self.container.as_ref());
        let found = |name: &str, session: &ViewedSession| Found {
            listed: Listed::of(&Arc::from(name), session, self.reveal),
            attributes: session.attributes().collect(),
        };
        let mut all = Vec::new();
        let keys = [Some(Key::from(&self.id)), key_of_hex(&self.id)];
        for name in &names {
            for key in keys.iter().flatten() {
                if let Some(session) = viewer.session(name, key)? {
                    all.push(found(name, &session));
                }
            }
        }
        let prefix = self.id.to_ascii_lowercase();
        let is_prefix = prefix.bytes().all(|byte| byte.is_ascii_hexdigit()) && !prefix.is_empty();
        if !all.is_empty() || !is_prefix {
            return Ok((now, all));
        }
        for name in &names {
            for session in viewer.sessions(name)? {
                let session = session?;
                if session.key().fingerprint().starts_with(&prefix) {
                    all.push(found(name, &session));
                }
                if all.len() > NAMED_MAX {
                    return Ok((now, all));
                }
            }
        }
        Ok((now, all))
    }
}

fn attribute_cells(attribute: &ViewedAttribute, reveal: bool) -> Vec<Cell> {
    let value = &attribute.value;
    let bytes = value.as_bytes().len();
    let shown = match json_of(value) {
        _ if !reveal => HIDDEN.to_owned(),
        Some(json) => json_line(&json),
        None => String::new(),
    };
    vec![
        Cell::text(&attribute.name),
        Cell::text(kind(value)),
        Cell::figure(size(bytes as u64), bytes),
        Cell::figure(attribute.revision, attribute.revision.get()),
        Cell::printed(shown),
    ]
}

fn attribute_json(attribute: &ViewedAttribute, reveal: bool) -> Json {
    let value = &attribute.value;
    let mut json = json!({
        "name": attribute.name,
        "kind": kind(value),
        "bytes": value.as_bytes().len(),
        "revision": attribute.revision.get(),
    });
    if let Some(until) = attribute.until {
        json["until"] = utc(until).into();
    }
    if reveal {
        json["value"] = json_of(value).unwrap_or_default();
    }
    json
}
