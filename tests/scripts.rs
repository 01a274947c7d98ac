//! Golden scripts: what does a person see?
//!
//! Beside the recorded traces, which say how the original behaved, these are our own histories:
//! `tests/scripts/<folder>/<name>`, each a story that can be read without this file. The runner
//! plays every script on both engines, in memory and in a directory, and wants the same output
//! from both.
//!
//! A script is a row of blocks with a blank line between them. Lines that begin with `#` tell the
//! story; then come commands, then `---`, then all that the commands printed, or `ok`:
//!
//! ```text
//! # Two tabs put fruit into one basket. The attributes differ, so both stay.
//! a: begin
//! b: begin
//! a: insert alice apples=2
//! b: insert alice pears=1
//! a: commit
//! b: commit
//! ---
//! a: r3
//! b: r4 (merged alice: base r2, stored r3, pears)
//! ```
//!
//! Every script begins with its containers; the first one is meant where none is named.
//!
//! | about the store | |
//! |---|---|
//! | `container shop timeout=60 period=20 …` | makes it, or stores these settings; prints the revision |
//! | `dump [shop] [times]` | what a transaction that begins now sees |
//! | `together a b c` | commits in this order; all but the first are one batch |
//! | `advance 20`, `set +50`, `elapse 60` | turns the wall clock, lets elapsed time go by: seconds |
//! | `accept_clock`, `sweep`, `settle`, `events`, `reopen` | as in the API; `settle` prints what listeners heard |
//!
//! Everything else is said by a *client* (`a`, `b`, …), who owns at most one transaction: `a: begin`,
//! `a: commit`, `a: abort`, or all at once `a: transact get alice n; insert alice n=2`, where
//! `meanwhile b: commit` lets another client in, on the first attempt only, and `always b: …` on each.
//! What is called on a transaction or a session has the name it has in the API, and an argument more
//! makes the difference: `get alice` is an access, `get alice n` reads an attribute. A handle is kept
//! under the key (or another name: `get alice as old`), and a key without one is looked at by `peek`,
//! which is no access. `append` has a cap of 3.
//!
//! Sessions are numbered in the order in which they are printed (`alice #1`), times are seconds
//! since the script began (`+20`), and nothing random is shown. The header `# engines: embedded`
//! keeps a script to one engine. `SESSILE_SCRIPT=limits` plays only what has this in its path, and
//! `SESSILE_BLESS=1` writes what was printed into the scripts: read the diff as if it were code.

#[path = "support/application.rs"]
mod application;
#[path = "support/notation.rs"]
mod notation;
#[path = "support/player.rs"]
mod player;

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use player::{Engine, Player};

#[test]
fn scripts() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let wanted = env::var("SESSILE_SCRIPT").unwrap_or_default();
    let bless = env::var_os("SESSILE_BLESS").is_some();
    let mut paths = Vec::new();
    for folder in fs::read_dir(&root).expect("the folder of scripts can be read") {
        let files = fs::read_dir(folder.expect("an entry").path()).expect("only folders lie there");
        paths.extend(files.map(|file| file.expect("an entry").path()));
    }
    paths.retain(|path| {
        path.strip_prefix(&root).is_ok_and(|p| p.to_string_lossy().contains(&wanted))
    });
    paths.sort();
    assert!(!paths.is_empty(), "no script has `{wanted}` in its path");

    let mut failed = 0;
    for engine in [Engine::Memory, Engine::Embedded] {
        let (mut good, mut bad) = (0, 0);
        for path in &paths {
            let mut script = Script::read(path);
            if script.only.is_some_and(|only| only != engine) {
                continue;
            }
            match script.play(engine) {
                true => good += 1,
                // The second engine has to agree with what the first one wrote.
                false if bless && (engine == Engine::Memory || script.only.is_some()) => {
                    fs::write(path, script.text()).expect("the script can be written");
                    good += 1;
                }
                false => bad += 1,
            }
        }
        // Not `println!`, which libtest would keep to itself.
        writeln!(io::stdout(), "scripts: {good} passed, {bad} failed ({engine:?})")
            .expect("there is a stdout");
        failed += bad;
    }
    assert_eq!(failed, 0, "scripts failed");
}

/// A script, block by block.
struct Script {
    path: PathBuf,
    only: Option<Engine>,
    blocks: Vec<Block>,
}

struct Block {
    /// The line of the file that it begins in.
    line: usize,
    input: Vec<String>,
    output: Vec<String>,
}

impl Script {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).expect("a script is text");
        let lines: Vec<&str> = text.lines().collect();
        let mut blocks = Vec::new();
        let mut at = 0;
        for part in lines.split(|line| line.is_empty()) {
            let cut = part.iter().position(|line| *line == "---");
            let cut = cut.unwrap_or_else(|| panic!("{}:{}: no ---", path.display(), at + 1));
            let owned = |lines: &[&str]| lines.iter().map(|line| line.to_string()).collect();
            let (input, output) = (owned(&part[..cut]), owned(&part[cut + 1..]));
            blocks.push(Block { line: at + 1, input, output });
            at += part.len() + 1;
        }
        let only = lines.contains(&"# engines: embedded").then_some(Engine::Embedded);
        Script { path: path.to_owned(), only, blocks }
    }

    /// Plays the script; whether all it printed is what it should print. Holds afterwards what was
    /// printed.
    fn play(&mut self, engine: Engine) -> bool {
        let mut player = Player::new(engine);
        let mut same = true;
        for Block { line, input, output } in &mut self.blocks {
            let place = format!("{}:{line} on {engine:?}", self.path.display());
            for command in input.iter().filter(|line| !line.starts_with('#')) {
                let done = catch_unwind(AssertUnwindSafe(|| player.command(command)));
                assert!(done.is_ok(), "{place}: `{command}` makes no sense, or the store panicked");
            }
            let mut printed = player.printed();
            if printed.is_empty() {
                printed.push("ok".to_owned());
            }
            if printed != *output {
                let (expected, found) = (output.join("\n  "), printed.join("\n  "));
                let report = format!("{place}\nexpected:\n  {expected}\nfound:\n  {found}\n");
                writeln!(io::stderr(), "{report}").expect("there is a stderr");
                same = false;
            }
            *output = printed;
        }
        same
    }

    fn text(&self) -> String {
        let block =
            |b: &Block| [b.input.join("\n"), "---".to_owned(), b.output.join("\n")].join("\n");
        self.blocks.iter().map(block).collect::<Vec<_>>().join("\n\n") + "\n"
    }
}
