//! `sessile check`: does everything in a store say the same?

use anyhow::Result;
use serde_json::{Value as Json, json};
use sessile::{Checked, Problem, Viewer};

use crate::Answer;
use crate::format::{json_line, plural, printable, thousands};
use crate::store::{self, Source};
use crate::table::{self, Cell};
use crate::terminal::{Look, Page};

pub(crate) const HELP: &str = "\
Checked are the chain of the commit log, every record against its checksum, the expiry index
against the sessions and the sessions against the index, the same of principals and their sessions,
the counts of the containers, and, unless the store is in use, every page of the tables. Nothing is
repaired. The exit code is 1 if something is wrong. RECORDS and INDEX ROWS are those of the tables;
what was committed lately may be in LOG BATCHES only.

Examples:
  sessile check ./sessions
  sessile check ./sessions --json | jq .problems";

pub(crate) fn run(page: &mut Page, source: &Source) -> Result<Answer> {
    let checked = store::again_if_busy(|| Viewer::check(&source.path))?;
    match source.json {
        true => page.lines([json_line(&report_json(&checked, source))])?,
        false => print(page, &checked, source)?,
    }
    Ok(match checked.problems.is_empty() {
        true => Answer::Yes,
        false => Answer::No,
    })
}

fn print(page: &mut Page, checked: &Checked, source: &Source) -> Result<()> {
    let number = |n: u64| Cell::both(thousands(n), n);
    let state = checked.state.map_or("unknown".to_owned(), store::state);
    let pages = match checked.pages {
        true => Cell::both("verified", "verified"),
        false => Cell::both("not verified: the store is in use", "not verified"),
    };
    table::print_facts(
        page,
        &[
            ("store", Cell::text(&source.path.to_string_lossy())),
            ("state", Cell::text(&state)),
            ("log_batches", number(checked.log_batches)),
            ("containers", number(checked.containers)),
            ("records", number(checked.records)),
            ("index_rows", number(checked.index_rows)),
            ("pages", pages),
        ],
    )?;
    let count = checked.problems.len() as u64 + checked.more_problems;
    if !page.is_terminal() {
        let problems = checked.problems.iter();
        let problems =
            problems.map(|problem| format!("problem\t{}", printable(&problem.to_string())));
        page.lines(problems.chain([format!("problems\t{count}")]))?;
        return Ok(());
    }
    page.lines([String::new()])?;
    page.lines(checked.problems.iter().map(|problem| printable(&problem.to_string())))?;
    if checked.more_problems > 0 {
        page.line(format_args!("and {} more", thousands(checked.more_problems)))?;
    }
    let (look, verdict) = match count {
        0 => (Look::Good, "nothing is wrong".to_owned()),
        count => (Look::Bad, plural(count, "problem", "problems")),
    };
    page.line(page.look(look, verdict))?;
    Ok(())
}

fn report_json(checked: &Checked, source: &Source) -> Json {
    json!({
        "store": store::path_json(&source.path),
        "state": checked.state.map(store::state_json),
        "log_batches": checked.log_batches,
        "containers": checked.containers,
        "records": checked.records,
        "index_rows": checked.index_rows,
        "pages_verified": checked.pages,
        "problems": checked.problems.iter().map(problem_json).collect::<Json>(),
        "more_problems": checked.more_problems,
    })
}

fn problem_json(problem: &Problem) -> Json {
    let session = |kind, container: &str, session: &str| json!({ "kind": kind, "container": container, "fingerprint": session });
    let mut json = match problem {
        Problem::File { part, reason } => {
            json!({ "kind": "file", "part": part, "reason": reason })
        }
        Problem::Record { container, session: s } => session("record", container, s),
        Problem::Unfiled { container, session: s } => session("unfiled", container, s),
        Problem::Stray { container, session: s } => session("stray", container, s),
        Problem::Unlisted { container, session: s } => session("unlisted", container, s),
        Problem::Mislisted { container, session: s } => session("mislisted", container, s),
        Problem::Late { container, session: s } => session("late", container, s),
        Problem::Count { container, noted, found } => {
            json!({ "kind": "count", "container": container, "noted": noted, "found": found })
        }
        Problem::Homeless { sessions } => json!({ "kind": "homeless", "sessions": sessions }),
        _ => json!({ "kind": "other" }),
    };
    json["text"] = problem.to_string().into();
    json
}
