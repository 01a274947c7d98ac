//! `sessile compact`: space that a store does not need goes back to the disk.

use anyhow::Result;
use serde_json::json;
use sessile::Compacted;

use crate::Answer;
use crate::format::{json_line, size};
use crate::store::{self, Source};
use crate::table::{self, Cell};
use crate::terminal::Page;

pub(crate) const HELP: &str = "\
The store must not be in use: an application that has it open compacts it itself. As much room is
needed meanwhile as it takes up afterwards. A compact copy, of a store in use too, is `sessile backup`.

Examples:
  sessile compact ./sessions";

pub(crate) fn run(page: &mut Page, source: &Source) -> Result<Answer> {
    let store = store::change(&source.path)?;
    let compacted = store.compact();
    store.close()?;
    let Compacted { before, after, .. } = compacted?;
    if source.json {
        page.lines([json_line(&json!({
            "store": store::path_json(&source.path),
            "bytes_before": before,
            "bytes_after": after,
        }))])?;
        return Ok(Answer::Yes);
    }
    let saved = 100 - (100 * after).checked_div(before).unwrap_or(100).min(100);
    table::print_facts(
        page,
        &[
            ("before", Cell::both(size(before), before)),
            ("after", Cell::both(size(after), after)),
            ("saved", Cell::both(format_args!("{saved} %"), before.saturating_sub(after))),
        ],
    )?;
    Ok(Answer::Yes)
}
