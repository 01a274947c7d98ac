//! The `sessile` command.
//!
//! One command, one file; here are only the command line, the exit codes and what all commands do
//! alike. What a command found goes to stdout, talk and progress go to stderr. A reader that has
//! seen enough (`sessile demo | head`) ends the command quietly.

mod demo;
mod terminal;

use std::io;
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::{ColorChoice, Parser, Subcommand};

use crate::terminal::Page;

static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} (store format {})", env!("CARGO_PKG_VERSION"), sessile::FORMAT));

const EXAMPLES: &str = "\
Examples:
  sessile demo             a tour on a temporary store, over in seconds
  sessile demo > tour.txt  the same without colour and progress
  sessile help demo        what the tour does

Exit codes:
    0  done
    1  the answer is no: the demo lost something
    2  the command line is wrong
    6  reading, writing or something else failed
  130  interrupted";

/// Shows what the session store sessile does.
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
    let answer = match command {
        Command::Demo => demo::run(&mut page),
    };
    match answer {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Err(error) if nobody_reads(&error) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::complain(&error);
            ExitCode::from(6)
        }
    }
}

/// Whether the failure is that the reader of our output has gone.
fn nobody_reads(error: &anyhow::Error) -> bool {
    let is_pipe = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(is_pipe))
}
