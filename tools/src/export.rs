//! `sessile export`: sessions as lines of JSON.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use serde_json::json;
use sessile::{Error, ExportOptions, Exported, Viewer};
use tempfile::NamedTempFile;

use crate::Answer;
use crate::filters::Filters;
use crate::format::{json_line, plural, size, thousands};
use crate::store::{self, Source};
use crate::table::{self, Cell};
use crate::terminal::{self, Page};

pub(crate) const HELP: &str = "\
One committed state: a line for each container and for each session, and a last one with a digest, so
that a file that was cut off or changed is noticed. Keys are written in hex; for web sessions they are
hashes, and let nobody in. What sessions hold is private: a file is made for its owner alone.

Examples:
  sessile export ./sessions -o monday.ndjson
  sessile export ./sessions --container visitors --has cart | jq .data
  sessile export ./sessions --redact -o for-a-bug-report.ndjson";

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: Source,

    /// The file to write to; `-` is stdout.
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    output: PathBuf,

    /// Leave this attribute out.
    #[arg(long, value_name = "ATTRIBUTE")]
    without: Vec<String>,

    /// Say of values only what they are, and show no keys: it cannot be imported.
    #[arg(long)]
    redact: bool,

    #[command(flatten)]
    filters: Filters,
}

pub(crate) fn run(page: &mut Page, arguments: &Arguments) -> Result<Answer> {
    let Arguments { source, output, .. } = arguments;
    if output.as_os_str() == "-" {
        if page.is_terminal() && !arguments.redact {
            terminal::say("what sessions hold is private; --output writes it to a file");
        }
        // What was written cannot be taken back, so there is no second attempt.
        let viewer = store::again_if_busy(|| Viewer::open(&source.path))?;
        let exported = viewer.export(io::stdout().lock(), &arguments.options())?;
        terminal::say(&plural(exported.sessions, "session", "sessions"));
        return Ok(Answer::Yes);
    }
    let exported = source.look(|viewer| arguments.write(viewer, output))?;
    match source.json {
        true => page.lines([json_line(&json!({
            "store": store::path_json(&source.path),
            "file": store::path_json(output),
            "revision": exported.revision,
            "containers": exported.containers,
            "sessions": exported.sessions,
            "bytes": exported.bytes,
            "digest": exported.digest,
            "damaged": exported.damaged,
        }))])?,
        false => table::print_facts(
            page,
            &[
                ("file", Cell::text(&output.to_string_lossy())),
                ("containers", Cell::both(thousands(exported.containers), exported.containers)),
                ("sessions", Cell::both(thousands(exported.sessions), exported.sessions)),
                ("bytes", Cell::both(size(exported.bytes), exported.bytes)),
                ("digest", Cell::text(&exported.digest)),
            ],
        )?,
    }
    Ok(Answer::Yes)
}

impl Arguments {
    fn options(&self) -> ExportOptions {
        let mut options = ExportOptions::new().filter(self.filters.filter());
        if let Some(name) = &self.filters.container {
            options = options.container(name);
        }
        if self.redact {
            options = options.redacted();
        }
        self.without.iter().fold(options, ExportOptions::without)
    }

    /// Writes a file that is there when it is whole.
    fn write(&self, viewer: &Viewer, path: &Path) -> Result<Exported, Error> {
        let storage = |error: io::Error| {
            Error::Storage(std::sync::Arc::new(io::Error::new(
                error.kind(),
                format!("{}: {error}", path.display()),
            )))
        };
        let above = path.parent().filter(|above| !above.as_os_str().is_empty());
        let file = NamedTempFile::new_in(above.unwrap_or(Path::new("."))).map_err(storage)?;
        make_private(file.as_file()).map_err(storage)?;
        let exported = viewer.export(&file, &self.options())?;
        file.as_file().sync_all().map_err(storage)?;
        file.persist(path).map_err(|error| storage(error.error))?;
        Ok(exported)
    }
}

/// Whatever the umask has taken away.
fn make_private(file: &File) -> io::Result<()> {
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let _ = file;
    Ok(())
}
