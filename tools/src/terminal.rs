//! What commands write on: a page on stdout, and a bar on stderr while something takes time.
//!
//! Colour and bars are for terminals. In a pipe, with `NO_COLOR` or `TERM=dumb` there are only
//! letters, so that what a command prints can be kept, searched and compared.

use std::env;
use std::fmt;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use clap::ColorChoice;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::format::printable;

/// Stdout, with colour where that is wanted.
pub(crate) struct Page {
    out: Stdout,
    is_terminal: bool,
    colour: bool,
}

/// How a piece of text is to look. Without colour all look the same, so words must say it too.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Look {
    Heading,
    Good,
    Bad,
    Faint,
}

impl Page {
    pub(crate) fn stdout(choice: ColorChoice) -> Self {
        let out = io::stdout();
        let is_terminal = out.is_terminal();
        let colour = match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => {
                let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
                is_terminal && !no_color && !is_dumb()
            }
        };
        Page { out, is_terminal, colour }
    }

    /// Whether people read it, and no program.
    pub(crate) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Writes a line, and says so at once: what is found is seen while the next is sought.
    pub(crate) fn line(&mut self, line: impl fmt::Display) -> io::Result<()> {
        writeln!(self.out, "{line}")?;
        self.out.flush()
    }

    /// Writes many lines, which nobody waits for one by one.
    pub(crate) fn lines(&mut self, lines: impl IntoIterator<Item = String>) -> io::Result<()> {
        let mut out = BufWriter::new(self.out.lock());
        for line in lines {
            out.write_all(line.as_bytes())?;
            out.write_all(b"\n")?;
        }
        out.flush()
    }

    /// Begins a part of the page.
    pub(crate) fn heading(&mut self, heading: &str) -> io::Result<()> {
        let heading = self.look(Look::Heading, heading);
        self.line(format_args!("\n{heading}"))
    }

    /// A text with a look. Pad it before: what is added here has no width.
    pub(crate) fn look(&self, look: Look, text: impl fmt::Display) -> String {
        let code = match look {
            Look::Heading => "1",
            Look::Good => "32",
            Look::Bad => "31",
            Look::Faint => "2",
        };
        match self.colour {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_string(),
        }
    }
}

/// A bar on stderr, if that is a terminal. It goes away when it is dropped.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    pub(crate) fn new(task: &'static str, length: u64) -> Self {
        let target = match is_dumb() {
            true => ProgressDrawTarget::hidden(),
            // Hidden by itself where stderr is no terminal.
            false => ProgressDrawTarget::stderr(),
        };
        let style = ProgressStyle::with_template("  {msg:<24} {bar:32} {pos}/{len}")
            .expect("the template is well formed");
        let bar = ProgressBar::with_draw_target(Some(length), target).with_style(style);
        Bar(bar.with_message(task))
    }

    pub(crate) fn advance(&self, steps: u64) {
        self.0.inc(steps);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Says on stderr what went wrong, and why, and what to do about it if that is known.
pub(crate) fn complain(error: &anyhow::Error, advice: Option<&str>) {
    // Paths are in it, and a path may hold anything.
    let mut text = format!("error: {}\n", printable(&format!("{error:#}")));
    if let Some(advice) = advice {
        text += &format!("  {advice}\n");
    }
    // If nobody hears it, the exit code says it.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Says something on stderr that is no failure.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn is_dumb() -> bool {
    env::var_os("TERM").is_some_and(|term| term == "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_colour_there_are_only_letters() {
        let page = Page::stdout(ColorChoice::Never);
        assert_eq!(page.look(Look::Good, "0 lost"), "0 lost");
        let page = Page::stdout(ColorChoice::Always);
        assert_eq!(page.look(Look::Good, "0 lost"), "\x1b[32m0 lost\x1b[0m");
    }
}
