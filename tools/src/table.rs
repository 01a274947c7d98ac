//! Tables: in columns for people, separated by tabs for programs.

use std::fmt;
use std::io;

use unicode_width::UnicodeWidthStr;

use crate::format::printable;
use crate::terminal::{Look, Page};

/// One field, as people read it and as programs do.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    people: String,
    programs: String,
    is_figure: bool,
}

impl Cell {
    /// The same for both.
    pub(crate) fn text(text: &str) -> Self {
        Cell::printed(printable(text))
    }

    /// What is printable already.
    pub(crate) fn printed(text: String) -> Self {
        Cell { people: text.clone(), programs: text, is_figure: false }
    }

    /// `people` read it their way.
    pub(crate) fn both(people: impl fmt::Display, programs: impl fmt::Display) -> Self {
        let (people, programs) = (people.to_string(), programs.to_string());
        Cell { people: printable(&people), programs: printable(&programs), is_figure: false }
    }

    /// A number, which stands to the right.
    pub(crate) fn figure(people: impl fmt::Display, programs: impl fmt::Display) -> Self {
        Cell { is_figure: true, ..Self::both(people, programs) }
    }

    /// There is nothing to say.
    pub(crate) fn none() -> Self {
        Self::figure("-", "")
    }
}

/// Prints rows under the names of their columns. The rows are made twice where columns have to be as
/// wide as what is in them.
pub(crate) fn print<R>(page: &mut Page, names: &[&str], rows: R) -> io::Result<()>
where
    R: Iterator<Item = Vec<Cell>> + Clone,
{
    if !page.is_terminal() {
        let programs = |row: Vec<Cell>| {
            row.into_iter().map(|cell| cell.programs).collect::<Vec<_>>().join("\t")
        };
        return page.lines([names.join("\t")].into_iter().chain(rows.map(programs)));
    }
    let titles: Vec<_> = names.iter().map(|name| name.replace('_', " ").to_uppercase()).collect();
    let mut columns: Vec<_> = titles.iter().map(|title| (title.width(), false)).collect();
    for row in rows.clone() {
        for ((width, is_figures), cell) in columns.iter_mut().zip(row) {
            *width = cell.people.width().max(*width);
            *is_figures |= cell.is_figure;
        }
    }
    let line = |cells: &mut dyn Iterator<Item = String>| {
        let mut line = String::new();
        for (cell, (width, is_figures)) in cells.zip(&columns) {
            let space = " ".repeat(width - cell.width().min(*width));
            match is_figures {
                true => line.extend([space, cell]),
                false => line.extend([cell, space]),
            }
            line.push_str("  ");
        }
        line.truncate(line.trim_end().len());
        line
    };
    let title = page.look(Look::Faint, line(&mut titles.into_iter()));
    let rows = rows.map(|row| line(&mut row.into_iter().map(|cell| cell.people)));
    page.lines([title].into_iter().chain(rows))
}

/// Prints what is known, one fact a line.
pub(crate) fn print_facts(page: &mut Page, facts: &[(&str, Cell)]) -> io::Result<()> {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let is_terminal = page.is_terminal();
    page.lines(facts.iter().map(|(name, cell)| match is_terminal {
        true => format!("{:<width$}  {}", name.replace('_', " "), cell.people),
        false => format!("{name}\t{}", cell.programs),
    }))
}
