//! The `sessile` command.
//!
//! One command, one file; here are only the command line, the exit codes and what all commands do
//! alike. What a command found goes to stdout, talk and progress go to stderr. A reader that has
//! seen enough (`sessile demo | head`) ends the command quietly.

mod backup;
mod check;
mod compact;
mod demo;
mod export;
mod filters;
mod format;
mod import;
mod ls;
mod show;
mod stats;
mod store;
mod table;
mod terminal;

use std::io;
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::{ColorChoice, Parser, Subcommand};

use crate::terminal::Page;

static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} (store format {})", env!("CARGO_PKG_VERSION"), sessile::FORMAT));

const EXAMPLES: &str = "\
A store may be closed, in use, or left behind by a process that died: stats, ls, show, check, export
and backup look into it all the same, and change nothing. Only import and compact change a store, and
only one that is not in use. In a pipe fields are separated by tabs.

Examples:
  sessile demo                a tour on a temporary store, over in seconds
  sessile stats ./sessions    how many sessions, how old, how large
  sessile ls ./sessions       which
  sessile show ./sessions 9f3a --reveal
  sessile check ./sessions    whether everything in it is as it should be
  sessile backup ./sessions ./backups/monday
  sessile export ./sessions --has cart | jq .data

Exit codes:
    0  done
    1  the answer is no: a problem, no such session or several, the demo lost something
    2  the command line is wrong
    3  the store is in use, or changes too fast to be looked at
    4  not a sessile store, or of a format that this version does not know
    6  reading, writing or something else failed
  130  interrupted";

/// Looks into session stores of sessile, and shows what it does.
#[derive(Parser)]
#[command(name = "sessile", version = VERSION.as_str(), after_help = EXAMPLES)]
#[command(arg_required_else_help = true)]
struct CommandLine {
    /// Whether to use colour; `auto` heeds NO_COLOR and leaves pipes alone.
    #[arg(long, value_name = "WHEN", default_value = "auto", global = true)]
    color: ColorChoice,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Takes a tour on a temporary store.
    ///
    /// Fills it with 10,000 sessions, lets eight writers race for one of them, logs visitors out
    /// while they are being written for, lets sessions expire, restarts the store, and counts at
    /// every step what is left. Beside it runs what loses: load, change, save the whole session.
    #[command(after_help = demo::HELP)]
    Demo,

    /// Shows how many sessions a store has, how old and how large they are, and its settings.
    #[command(after_help = stats::HELP)]
    Stats(store::Source),

    /// Lists the sessions of a store, one a line.
    #[command(after_help = ls::HELP)]
    Ls(ls::Arguments),

    /// Shows one session and its attributes.
    #[command(after_help = show::HELP)]
    Show(show::Arguments),

    /// Checks a store: does everything in it say the same?
    #[command(after_help = check::HELP)]
    Check(store::Source),

    /// Makes a copy of a store that is a store: one committed state, of one in use too.
    #[command(after_help = backup::HELP)]
    Backup(backup::Arguments),

    /// Writes sessions as lines of JSON, with all that is theirs.
    #[command(after_help = export::HELP)]
    Export(export::Arguments),

    /// Takes in what was exported.
    #[command(after_help = import::HELP)]
    Import(import::Arguments),

    /// Gives space that a store does not need back to the disk.
    #[command(after_help = compact::HELP)]
    Compact(store::Source),
}

/// How a command that ran to its end has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Yes,
    No,
}

fn main() -> ExitCode {
    let CommandLine { color, command } = CommandLine::parse();
    let mut page = Page::stdout(color);
    let answer = match &command {
        Command::Demo => demo::run(&mut page),
        Command::Stats(source) => stats::run(&mut page, source),
        Command::Ls(arguments) => ls::run(&mut page, arguments),
        Command::Show(arguments) => show::run(&mut page, arguments),
        Command::Check(source) => check::run(&mut page, source),
        Command::Backup(arguments) => backup::run(&mut page, arguments),
        Command::Export(arguments) => export::run(&mut page, arguments),
        Command::Import(arguments) => import::run(&mut page, arguments),
        Command::Compact(source) => compact::run(&mut page, source),
    };
    match answer {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Err(error) if nobody_reads(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let (code, advice) = store::advice(&error);
            terminal::complain(&error, advice);
            ExitCode::from(code)
        }
    }
}

/// Whether the failure is that the reader of our output has gone.
fn nobody_reads(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref() {
        Some(error) => store::os_error(error),
        None => cause.downcast_ref().map(io::Error::kind),
    };
    error.chain().any(|cause| kind(cause) == Some(io::ErrorKind::BrokenPipe))
}
