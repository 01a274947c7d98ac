//! `sessile import`: sessions from lines of JSON.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use serde_json::json;
use sessile::{ImportOptions, Imported, OnConflict, Store};

use crate::Answer;
use crate::format::{json_line, thousands};
use crate::store::{self, Source};
use crate::table::{self, Cell};
use crate::terminal::Page;

pub(crate) const HELP: &str = "\
Containers that are missing are made with the settings in the file; those that are there keep theirs.
Sessions keep their times, principals and timeouts; what has expired is left out. The store must not be
in use. A file is read to its end before anything is changed, so that nothing comes of one that was cut
off; stdin cannot be.

Examples:
  sessile import ./sessions monday.ndjson --dry-run
  sessile import ./copy monday.ndjson --create
  sessile export ./here | sessile import ./there - --on-conflict newer";

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: Source,

    /// The file to read; `-` is stdin.
    file: PathBuf,

    /// What to do where a live session has the key of one that is imported.
    #[arg(long, value_name = "WHAT", default_value = "fail")]
    on_conflict: Choice,

    /// Make the store if there is none.
    #[arg(long)]
    create: bool,

    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Choice {
    /// Give up.
    Fail,
    /// Keep the one that is there.
    Skip,
    /// End the one that is there.
    Replace,
    /// Keep the one that was used later.
    Newer,
}

pub(crate) fn run(page: &mut Page, arguments: &Arguments) -> Result<Answer> {
    let Arguments { source, on_conflict, create, dry_run, .. } = arguments;
    let options = ImportOptions::new().on_conflict(match on_conflict {
        Choice::Fail => OnConflict::Fail,
        Choice::Skip => OnConflict::Skip,
        Choice::Replace => OnConflict::Replace,
        Choice::Newer => OnConflict::Newer,
    });
    // Before a store is made for it.
    let lines = arguments.lines()?;
    let store = match create {
        true => store::change_or_create(&source.path)?,
        false => store::change(&source.path)?,
    };
    let imported = arguments.import(&store, lines, options, *dry_run);
    store.close()?;
    print(page, source, &imported?, *dry_run)?;
    Ok(Answer::Yes)
}

impl Arguments {
    fn lines(&self) -> Result<Box<dyn BufRead>> {
        if self.file.as_os_str() == "-" {
            return Ok(Box::new(io::stdin().lock()));
        }
        let file = File::open(&self.file);
        let file = file.with_context(|| format!("cannot open {}", self.file.display()))?;
        Ok(Box::new(BufReader::new(file)))
    }

    fn import(
        &self,
        store: &Store,
        lines: Box<dyn BufRead>,
        options: ImportOptions,
        dry_run: bool,
    ) -> Result<Imported> {
        if dry_run || self.file.as_os_str() != "-" {
            let would = store.import(lines, &options.dry_run())?;
            if dry_run {
                return Ok(would);
            }
            return Ok(store.import(self.lines()?, &options)?);
        }
        Ok(store.import(lines, &options)?)
    }
}

fn print(page: &mut Page, source: &Source, imported: &Imported, dry_run: bool) -> Result<()> {
    let Imported { containers, created, replaced, skipped, expired, .. } = *imported;
    if source.json {
        page.lines([json_line(&json!({
            "store": store::path_json(&source.path),
            "dry_run": dry_run,
            "containers": containers,
            "created": created,
            "replaced": replaced,
            "skipped": skipped,
            "expired": expired,
        }))])?;
        return Ok(());
    }
    let number = |n: u64| Cell::both(thousands(n), n);
    table::print_facts(
        page,
        &[
            ("store", Cell::text(&source.path.to_string_lossy())),
            ("containers", number(containers)),
            ("created", number(created)),
            ("replaced", number(replaced)),
            ("skipped", number(skipped)),
            ("expired", number(expired)),
        ],
    )?;
    if dry_run && page.is_terminal() {
        page.line("nothing was changed")?;
    }
    Ok(())
}
