//! `sessile backup`: a copy of a store that is a store.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::Answer;
use crate::format::{json_line, size, thousands};
use crate::store::{self, Source};
use crate::table::{self, Cell};
use crate::terminal::Page;

pub(crate) const HELP: &str = "\
One committed state, whoever has the store open and goes on committing. Nothing may lie at the
DIRECTORY yet; it appears there when all of it is on the disk, and only its owner may open it. To
restore it, put it in the place of the store when that is closed.

Examples:
  sessile backup ./sessions ./backups/monday
  sessile backup ./sessions ./smaller       a compact copy";

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: Source,

    /// Where the backup is to be.
    directory: PathBuf,
}

pub(crate) fn run(page: &mut Page, arguments: &Arguments) -> Result<Answer> {
    let Arguments { source, directory } = arguments;
    let backup = source.look(|viewer| viewer.backup_to(directory))?;
    if source.json {
        page.lines([json_line(&json!({
            "store": store::path_json(&source.path),
            "backup": store::path_json(directory),
            "revision": backup.revision,
            "containers": backup.containers,
            "sessions": backup.sessions,
            "bytes": backup.bytes,
            "damaged": backup.damaged,
        }))])?;
        return Ok(Answer::Yes);
    }
    let number = |n: u64| Cell::both(thousands(n), n);
    let mut facts = vec![
        ("backup", Cell::text(&directory.to_string_lossy())),
        ("revision", Cell::both(format_args!("r{}", backup.revision), backup.revision)),
        ("containers", number(backup.containers)),
        ("sessions", number(backup.sessions)),
        ("bytes", Cell::both(size(backup.bytes), backup.bytes)),
    ];
    if backup.damaged > 0 {
        facts.push(("damaged", number(backup.damaged)));
    }
    table::print_facts(page, &facts)?;
    Ok(Answer::Yes)
}
