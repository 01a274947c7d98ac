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
//! `commit`, `abort`, `savepoint s`, `rollback s`, or all at once `a: transact get alice n; insert
//! alice n=2`, where `meanwhile b: commit` lets another client in, on the first attempt only, and
//! `always b: …` on each. What is
//! called on a transaction or a session has the name it has in the API. An argument more makes the
//! difference: `get alice` is an access, `get alice n` reads an attribute. A handle is kept under the
//! key (or another name: `get alice as old`) and a key without one is looked at by `peek`, which is
//! no access.
//!
//! Sessions are numbered in the order in which they are printed (`alice #1`), times are seconds
//! since the script began (`+20`), and nothing random is shown. The header `# engines: embedded`
//! keeps a script to one engine. `SESSILE_SCRIPT=limits` plays only what has this in its path, and
//! `SESSILE_BLESS=1` writes what was printed into the scripts: read the diff as if it were code.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver as Go, Sender as Arrived, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::Duration;
use std::{env, fs, mem, panic};

use serde_json::Value as Json;
use sessile::{
    Amount, AttributeMerge, Clock, ClockTrouble, Conflict, ConflictReason, Container, EndReason,
    EndedSession, Error, Event, ManualClock, Options, Policy, Receiver, Report, Resolution,
    ResolverTrouble, Rule, Savepoint, Session, SessionId, SessionMerge, Store, Time, Transaction,
    Value,
};
use tempfile::TempDir;

/// When every script begins: the edge of a slice for any period that divides an hour by three.
const START: u64 = 1_000_000_800;

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
        writeln!(std::io::stdout(), "scripts: {good} passed, {bad} failed ({engine:?})")
            .expect("there is a stdout");
        failed += bad;
    }
    assert_eq!(failed, 0, "scripts failed");
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Engine {
    Memory,
    Embedded,
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
                let done = panic::catch_unwind(panic::AssertUnwindSafe(|| player.command(command)));
                assert!(done.is_ok(), "{place}: `{command}` makes no sense, or the store panicked");
            }
            let mut printed = mem::take(&mut player.out);
            if printed.is_empty() {
                printed.push("ok".to_owned());
            }
            if printed != *output {
                let (expected, found) = (output.join("\n  "), printed.join("\n  "));
                eprintln_all(&format!("{place}\nexpected:\n  {expected}\nfound:\n  {found}\n"));
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

fn eprintln_all(text: &str) {
    writeln!(std::io::stderr(), "{text}").expect("there is a stderr");
}

/// A clock that tests turn by hand, and at which the committer can be held up.
#[derive(Clone, Debug)]
struct ScriptClock {
    hands: ManualClock,
    player: ThreadId,
    /// The next of the store's threads to ask for the time says so, and waits.
    gate: Arc<Mutex<Option<(Arrived<()>, Go<()>)>>>,
}

impl Clock for ScriptClock {
    fn wall(&self) -> Time {
        if thread::current().id() != self.player {
            let gate = self.gate.lock().expect("nothing panics while it is held").take();
            if let Some((arrived, go)) = gate {
                arrived.send(()).expect("the player waits for it");
                go.recv().expect("the player lets it go");
            }
        }
        self.hands.wall()
    }

    fn elapsed(&self) -> Duration {
        self.hands.elapsed()
    }
}

/// What listeners have heard and not yet been asked about.
#[derive(Clone, Default)]
struct Heard {
    starts: Arc<Mutex<Vec<(String, SessionId)>>>,
    ends: Arc<Mutex<Vec<(Ending, String)>>>,
    /// Where `create_other` and `use_store` leave a note.
    audit: Arc<Mutex<Option<Container>>>,
}

/// Who ended and why, without anything that is numbered when it is printed.
type Ending = (String, String, SessionId, EndReason);

fn ending(session: &EndedSession, reason: EndReason) -> Ending {
    (session.container().to_owned(), text(session.key().as_bytes()), session.id(), reason)
}

/// The application's resolvers and listeners, by the names that scripts give in their policies.
fn options(heard: &Heard) -> Options {
    let strings = |merge: &AttributeMerge<'_>| {
        let string = |value: Option<&Value>| value?.to::<String>();
        Some(format!("{}+{}", string(merge.stored)?, string(merge.proposed)?))
    };
    let both = |merge: &SessionMerge<'_>| {
        let all = [merge.stored, merge.proposed].map(|state| {
            let value = |name: &str| state.value(name).expect("it was named").clone();
            state.names().map(|name| (name.to_owned(), value(name))).collect::<Vec<_>>()
        });
        Resolution::New(all.into_iter().flatten().collect())
    };
    let (started, ended, audit, note) =
        (heard.starts.clone(), heard.ends.clone(), heard.audit.clone(), heard.audit.clone());
    let lock = |slot: &Mutex<Option<Container>>| slot.lock().expect("no panic").clone();
    Options::new()
        .resolver("concat", move |merge| match strings(merge) {
            Some(joined) => Resolution::New(Value::of(&joined)),
            None => Resolution::Decline,
        })
        .resolver("decline", |_| Resolution::Decline)
        // Unlike `panic!` this prints nothing.
        .resolver("panic", |_| panic::resume_unwind(Box::new("scripted")))
        .session_resolver("both", both)
        .session_resolver("base", |_| Resolution::Base)
        .session_resolver("decline", |_| Resolution::Decline)
        .session_resolver("panic", |_| panic::resume_unwind(Box::new("scripted")))
        .on_start("record", move |_, session| {
            let start = (text(session.key().as_bytes()), session.id());
            started.lock().expect("no panic").push(start);
            Ok(())
        })
        .on_start("fill", |_, session| Ok(session.insert("theme", "light")?))
        .on_start("fail", |_, session| {
            session.insert("half", "done")?;
            Err("scripted".into())
        })
        .on_start("panic", |_, session| {
            session.insert("half", "done")?;
            panic::resume_unwind(Box::new("scripted"))
        })
        .on_start("end_it", |_, session| Ok(session.invalidate()?))
        .on_start("create_other", move |txn, session| {
            let audit = lock(&audit).ok_or("a script that wants this makes a container `audit`")?;
            let other = txn.create(&audit, format!("{}-twin", text(session.key().as_bytes())))?;
            Ok(other.insert("of", text(session.key().as_bytes()))?)
        })
        .on_end("record", move |_, session, reason| {
            let attributes = session.iter().map(|(name, value)| (name.to_owned(), value.clone()));
            let ending = ending(session, reason);
            ended.lock().expect("no panic").push((ending, shown(attributes)));
            Ok(())
        })
        .on_end("fail", |_, _, _| Err("scripted".into()))
        .on_end("panic", |_, _, _| panic::resume_unwind(Box::new("scripted")))
        .on_end("use_store", move |store, session, reason| {
            let audit = lock(&note).ok_or("a script that wants this makes a container `audit`")?;
            let line = format!("{} {reason}", text(session.key().as_bytes()));
            store.transact(|txn| txn.get_or_create(&audit, "log")?.append("lines", &line, 9))?;
            Ok(())
        })
}

/// Somebody who owns a transaction, and the handles that they were given.
#[derive(Default)]
struct Client {
    txn: Option<Transaction>,
    handles: BTreeMap<String, Session>,
    /// Those of transactions that are over.
    earlier: BTreeMap<String, Session>,
    savepoints: BTreeMap<String, Savepoint>,
}

/// One script being played on one engine.
struct Player {
    dir: Option<TempDir>,
    clock: ScriptClock,
    heard: Heard,
    opened: u64,
    store: Store,
    events: Receiver<Event>,
    containers: Vec<Container>,
    clients: BTreeMap<String, Client>,
    /// The key behind each fingerprint, for errors show no keys.
    keys: BTreeMap<String, String>,
    generations: Vec<SessionId>,
    out: Vec<String>,
}

impl Player {
    fn new(engine: Engine) -> Self {
        let clock = ScriptClock {
            hands: ManualClock::new(Time::from_secs(START)),
            player: thread::current().id(),
            gate: Arc::default(),
        };
        let dir = match engine {
            Engine::Memory => None,
            Engine::Embedded => Some(tempfile::tempdir().expect("a directory")),
        };
        let (heard, opened) = (Heard::default(), 1);
        let store = open(dir.as_ref(), &clock, &heard, opened);
        let events = store.events();
        Player {
            dir,
            clock,
            heard,
            opened,
            store,
            events,
            containers: Vec::new(),
            clients: BTreeMap::new(),
            keys: BTreeMap::new(),
            generations: Vec::new(),
            out: Vec::new(),
        }
    }

    fn say(&mut self, text: impl Into<String>) {
        self.out.push(text.into());
    }

    fn command(&mut self, line: &str) {
        if let Some((who, rest)) = line.split_once(": ").filter(|(who, _)| !who.contains(' ')) {
            return self.client(who, rest);
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match &words[..] {
            ["container", name, settings @ ..] => {
                let made = self.store.container_with(name, policy(Policy::new(), settings));
                let made = match made {
                    Ok(made) => made,
                    Err(error) => return self.say(format!("{name}: {error}")),
                };
                if *name == "audit" {
                    *self.heard.audit.lock().expect("no panic") = Some(made.clone());
                }
                if self.containers.iter().all(|other| other.name() != *name) {
                    self.containers.push(made);
                }
                self.say(format!("{name}: r{}", self.store.stats().revision));
            }
            ["dump", options @ ..] => self.dump(options),
            ["together", who @ ..] => self.together(who),
            ["advance", secs] => self.clock.hands.advance_secs(number(secs)),
            ["set", secs] => {
                let secs: i64 = secs.parse().expect("seconds from the start");
                self.clock.hands.set(Time::from_secs(START.saturating_add_signed(secs)));
            }
            ["elapse", secs] => self.clock.hands.elapse(Duration::from_secs(number(secs))),
            ["accept_clock"] => self.store.accept_clock(),
            ["sweep"] => {
                let swept = self.store.sweep().expect("nothing stands in its way");
                self.say(format!("sweep: examined {}, ended {}", swept.examined, swept.ended));
            }
            ["settle"] => {
                self.store.settle();
                let ends = mem::take(&mut *self.heard.ends.lock().expect("no panic"));
                for (ending, attributes) in &ends {
                    let line = format!("{} {attributes}", self.ending(ending));
                    self.say(line);
                }
                if ends.is_empty() {
                    self.say("no end was recorded");
                }
            }
            ["events"] => self.events(),
            ["reopen"] => self.reopen(),
            _ => panic!("no such command: {line}"),
        }
    }

    /// What a transaction sees that begins now.
    fn dump(&mut self, options: &[&str]) {
        let container = self.container(options.first().copied().unwrap_or("times"));
        let txn = self.store.begin().expect("the store is open");
        let len = txn.len(&container).expect("it can be read");
        self.say(format!("{} at {}, length {len}", container.name(), txn.revision()));
        for session in txn.iter(&container).expect("it can be read") {
            let session = session.expect("it can be read");
            let mut line = format!("  {}", self.session(&session));
            write!(line, " {}", shown(session.iter().expect("it lives"))).expect("a String");
            if options.contains(&"times") {
                write!(line, " {}", times(&session).expect("it lives")).expect("a String");
            }
            self.say(line);
        }
    }

    /// Holds the committer up at the first commit, until the others are queued.
    fn together(&mut self, who: &[&str]) {
        let (arrived, arrival) = channel();
        let (go, wait) = channel();
        *self.clock.gate.lock().expect("no panic") = Some((arrived, wait));
        let batches = self.store.stats().batches;
        let mut commits = VecDeque::new();
        for who in who {
            let txn = self.clients.get_mut(*who).and_then(|client| client.txn.take());
            commits.push_back((who, txn.expect("each has begun").commit_async()));
            if commits.len() == 1 {
                arrival.recv_timeout(Duration::from_secs(60)).expect("the first writes something");
            }
        }
        go.send(()).expect("the committer waits");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        for (who, commit) in commits {
            let report = runtime.block_on(commit);
            self.report(who, report);
        }
        assert!(self.store.stats().batches <= batches + 2, "more batches than two");
    }

    fn events(&mut self) {
        self.store.settle();
        let events: Vec<Event> = self.events.try_iter().collect();
        for event in &events {
            let line = match event {
                Event::Ended(session, reason) => self.ending(&ending(session, *reason)),
                Event::ListenerFailed { listener, panicked: false } => {
                    format!("listener {listener} failed")
                }
                Event::ListenerFailed { listener, panicked: true } => {
                    format!("listener {listener} panicked")
                }
                Event::ListenerMissing { listener } => format!("listener {listener} is missing"),
                Event::ResolverFailed { resolver, trouble } => match trouble {
                    ResolverTrouble::Missing => format!("resolver {resolver} is missing"),
                    ResolverTrouble::Panicked => format!("resolver {resolver} panicked"),
                    ResolverTrouble::Declined => format!("resolver {resolver} declined"),
                    _ => panic!("an unknown trouble"),
                },
                Event::Clock(ClockTrouble::Ahead(by)) => format!("the clock is ahead by {by:?}"),
                Event::Clock(ClockTrouble::Behind(by)) => format!("the clock is behind by {by:?}"),
                Event::SnapshotsGivenUp { count, .. } => format!("snapshots given up: {count}"),
                other => panic!("an unknown event: {other:?}"),
            };
            self.say(format!("event: {line}"));
        }
        if events.is_empty() {
            self.say("no events");
        }
    }

    /// Closes the store and opens it again. A store in memory would be gone, so it stays.
    fn reopen(&mut self) {
        self.clients.clear();
        if self.dir.is_some() {
            let names: Vec<_> = self.containers.iter().map(|c| c.name().to_owned()).collect();
            self.containers.clear();
            self.heard.audit.lock().expect("no panic").take();
            self.store.clone().close().expect("nothing stands in its way");
            // Another seed, or ids would be used twice.
            self.opened += 1;
            self.store = open(self.dir.as_ref(), &self.clock, &self.heard, self.opened);
            self.events = self.store.events();
            let found = |name: &String| self.store.container(name).expect("it was made");
            self.containers = names.iter().map(found).collect();
            let audit = self.containers.iter().find(|c| c.name() == "audit").cloned();
            *self.heard.audit.lock().expect("no panic") = audit;
        }
        self.say(format!("reopened at r{}", self.store.stats().revision));
    }

    /// What a client says.
    fn client(&mut self, who: &str, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[0] {
            "begin" => {
                let txn = self.store.begin().expect("the store is open");
                self.forget_handles(who);
                self.clients.get_mut(who).expect("just met").txn = Some(txn);
            }
            "commit" => {
                let txn = self.clients.get_mut(who).and_then(|client| client.txn.take());
                let report = txn.expect("it has begun").commit();
                self.report(who, report);
            }
            "abort" => self.clients.get_mut(who).expect("it has begun").txn = None,
            "transact" => {
                let (_, work) = line.split_once(' ').expect("something to do");
                let mut attempt = 0;
                let report = self.store.clone().transact(|txn| {
                    attempt += 1;
                    self.forget_handles(who);
                    for step in work.split("; ") {
                        match step.split_once(' ') {
                            Some(("meanwhile", other)) if attempt == 1 => self.command(other),
                            Some(("meanwhile", _)) => {}
                            Some(("always", other)) => self.command(other),
                            _ => self.step(who, Some(txn), step)?,
                        }
                    }
                    Ok(())
                });
                self.report(who, report);
            }
            _ => {
                let client = self.clients.get_mut(who).expect("it has begun");
                let txn = client.txn.take();
                if let Err(error) = self.step(who, txn.as_ref(), line) {
                    let line = format!("{who}: {}", self.meaning(&error));
                    self.say(line);
                }
                self.clients.get_mut(who).expect("it has begun").txn = txn;
            }
        }
    }

    fn forget_handles(&mut self, who: &str) {
        let client = self.clients.entry(who.to_owned()).or_default();
        client.earlier.append(&mut client.handles);
    }

    /// One call, and what it has to say.
    fn step(&mut self, who: &str, txn: Option<&Transaction>, line: &str) -> Result<(), Error> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match txn.map(|txn| self.on_transaction(who, txn, &words)) {
            Some(Ok(None)) | None => self.on_session(who, txn, &words),
            Some(answer) => answer,
        };
        let starts = mem::take(&mut *self.heard.starts.lock().expect("no panic"));
        for (key, id) in starts {
            let line = format!("told of {key} #{}", self.generation(id));
            self.say(line);
        }
        let answer = answer?.unwrap_or_else(|| panic!("no such call: {line}"));
        if !answer.is_empty() {
            self.say(format!("{who}: {answer}"));
        }
        Ok(())
    }

    /// Calls on a transaction; `None` if it is none of them.
    fn on_transaction(
        &mut self,
        who: &str,
        txn: &Transaction,
        words: &[&str],
    ) -> Result<Option<String>, Error> {
        // Handles may be kept under another name than the key's.
        let (words, name) = match words {
            [words @ .., "as", name] => (words, Some(*name)),
            _ => (words, None),
        };
        Ok(Some(match *words {
            ["get" | "peek" | "create" | "get_or_create" | "reattach", key]
            | ["create", key, ..] => {
                let (container, id) = self.place(key);
                let found = match words[0] {
                    "get" => txn.get(&container, id)?,
                    "peek" => txn.peek(&container, id)?,
                    "create" => Some(txn.create(&container, id)?),
                    "get_or_create" => Some(txn.get_or_create(&container, id)?),
                    _ => txn.reattach(&self.clients[who].earlier[key])?,
                };
                let Some(session) = found else { return Ok(Some(format!("no {key}"))) };
                for (name, value) in words[2..].iter().map(|word| attribute(word)) {
                    session.insert(name, value)?;
                }
                let shown = self.session(&session);
                let client = self.clients.get_mut(who).expect("it has begun");
                client.handles.insert(name.unwrap_or(key).to_owned(), session);
                shown
            }
            ["contains", key] => {
                let (container, id) = self.place(key);
                match txn.contains(&container, id)? {
                    true => format!("{key} is there"),
                    false => format!("no {key}"),
                }
            }
            ["remove", key] => {
                let (container, id) = self.place(key);
                match txn.remove(&container, id)? {
                    true => format!("removed {key}"),
                    false => format!("no {key}"),
                }
            }
            ["len"] => {
                let container = self.container("");
                format!("{}: length {}", container.name(), txn.len(&container)?)
            }
            ["keys"] => {
                let container = self.container("");
                let keys: Result<Vec<_>, Error> = txn.keys(&container)?.collect();
                let keys: Vec<_> = keys?.iter().map(|key| text(key.as_bytes())).collect();
                format!("{}: {}", container.name(), listed(&keys))
            }
            ["policy"] => {
                let (container, policy) = (self.container(""), txn.policy(&self.container(""))?);
                let Policy { timeout_secs, period_secs, limit, .. } = policy;
                let name = container.name();
                format!("{name}: timeout {timeout_secs}, period {period_secs}, limit {limit}")
            }
            ["set_policy", ref settings @ ..] => {
                let container = self.container("");
                txn.set_policy(&container, policy(txn.policy(&container)?, settings))?;
                String::new()
            }
            ["savepoint", name] => {
                let savepoint = txn.savepoint()?;
                let client = self.clients.get_mut(who).expect("it has begun");
                client.savepoints.insert(name.to_owned(), savepoint);
                String::new()
            }
            ["rollback", name] => {
                txn.rollback(self.clients[who].savepoints[name])?;
                String::new()
            }
            _ => return Ok(None),
        }))
    }

    /// Calls on a session; `None` if it is none of them.
    fn on_session(
        &mut self,
        who: &str,
        txn: Option<&Transaction>,
        words: &[&str],
    ) -> Result<Option<String>, Error> {
        let [call, key, rest @ ..] = words else { return Ok(None) };
        let session = match (self.clients[who].handles.get(*key), txn) {
            (Some(session), _) => Some(session.clone()),
            (None, Some(txn)) => {
                let (container, id) = self.place(key);
                txn.peek(&container, id)?
            }
            (None, None) => panic!("{who} has no transaction and no handle of {key}"),
        };
        let Some(session) = session else { return Ok(Some(format!("no {key}"))) };
        let said = |name: &str, value: Option<Json>| match value {
            Some(value) => format!("{name} = {value}"),
            None => format!("no {name}"),
        };
        Ok(Some(match (*call, rest) {
            ("get", [name]) => said(name, session.get(name)?),
            ("take", [name]) => said(name, session.take(name)?),
            ("has", [name]) => match session.contains(name)? {
                true => format!("has {name}"),
                false => format!("no {name}"),
            },
            ("keys", []) => format!("{key}: {}", listed(&session.keys()?)),
            ("len", []) => format!("{key}: length {}", session.len()?),
            ("times", []) => format!("{key} {}", times(&session)?),
            ("is_valid", []) => match session.is_valid() {
                true => format!("{key} is valid"),
                false => format!("{key} is not valid"),
            },
            (_, names) => {
                match *call {
                    "remove" => names.iter().try_for_each(|name| session.remove(name)),
                    "require" => names.iter().try_for_each(|name| session.require(name)),
                    "clear" => session.clear(),
                    "touch" => session.touch(),
                    "invalidate" => session.invalidate(),
                    "extend" => session.extend(names.iter().map(|word| attribute(word))),
                    write => {
                        names.iter().map(|word| attribute(word)).try_for_each(|(name, value)| {
                            match write {
                                "insert" => session.insert(name, value),
                                "add" => session.add(name, amount(&value)),
                                "max" => session.max(name, value),
                                "min" => session.min(name, value),
                                "union" => session.union(name, value),
                                "append" => session.append(name, value, 3),
                                "set_if_absent" => session.set_if_absent(name, value),
                                _ => panic!("no such call: {words:?}"),
                            }
                        })
                    }
                }?;
                String::new()
            }
        }))
    }

    fn report(&mut self, who: &str, report: Result<Report, Error>) {
        let line = match report {
            Ok(report) => {
                let mut more = Vec::new();
                for merged in &report.merged {
                    let key = self.key(&merged.container, &text(merged.key.as_bytes()));
                    let (base, stored, names) = (merged.base, merged.stored, &merged.attributes);
                    more.push(format!(
                        "merged {key}: base {base}, stored {stored}, {}",
                        listed(names)
                    ));
                }
                for ended in &report.ended {
                    let key = text(ended.key.as_bytes());
                    more.push(self.ending(&(ended.container.clone(), key, ended.id, ended.reason)));
                }
                if report.attempts > 1 {
                    more.push(format!("{} attempts", report.attempts));
                }
                match more.is_empty() {
                    true => report.revision.to_string(),
                    false => format!("{} ({})", report.revision, more.join("; ")),
                }
            }
            Err(error) => self.meaning(&error),
        };
        self.say(format!("{who}: {line}"));
    }

    /// An error in the words of the script.
    fn meaning(&self, error: &Error) -> String {
        match error {
            Error::Conflict(Conflict { reason: ConflictReason::Policy, container, .. }) => {
                format!("conflict on the settings of {container}")
            }
            Error::Conflict(Conflict { reason, container, session, base, stored, .. }) => {
                let key = self.key(container, &self.keys[session]);
                match reason {
                    ConflictReason::Attribute(_) | ConflictReason::Resolver(_) => {
                        format!("conflict on {key}: {reason} (read at {base}, now {stored})")
                    }
                    _ => format!("conflict on {key}: {reason}"),
                }
            }
            Error::Exists { container, session } => {
                format!("{} exists", self.key(container, &self.keys[session]))
            }
            other => other.to_string(),
        }
    }

    fn ending(&mut self, (container, key, id, reason): &Ending) -> String {
        let key = self.key(container, key);
        format!("ended {key} #{} ({reason})", self.generation(*id))
    }

    fn session(&mut self, session: &Session) -> String {
        format!("{} #{}", text(session.key().as_bytes()), self.generation(session.id()))
    }

    fn generation(&mut self, id: SessionId) -> usize {
        let known = self.generations.iter().position(|known| *known == id);
        let at = known.unwrap_or_else(|| {
            self.generations.push(id);
            self.generations.len() - 1
        });
        at + 1
    }

    /// A key as scripts write it.
    fn key(&self, container: &str, key: &str) -> String {
        match container == self.containers[0].name() {
            true => key.to_owned(),
            false => format!("{container}/{key}"),
        }
    }

    /// `alice` is a key in the first container, `carts/alice` in that of this name.
    fn place(&mut self, word: &str) -> (Container, String) {
        let (container, key) = word.split_once('/').unwrap_or(("", word));
        self.keys.insert(sessile::Key::from(key).fingerprint(), key.to_owned());
        (self.container(container), key.to_owned())
    }

    /// The container of this name, or else the first.
    fn container(&self, name: &str) -> Container {
        let found = self.containers.iter().find(|container| container.name() == name);
        found.unwrap_or(&self.containers[0]).clone()
    }
}

fn open(dir: Option<&TempDir>, clock: &ScriptClock, heard: &Heard, seed: u64) -> Store {
    let options = options(heard).clock(clock.clone()).seed(seed).sweep_every(None);
    let opened = match dir {
        None => options.memory(),
        Some(dir) => options.open(dir.path()),
    };
    opened.expect("it can be opened")
}

/// Settings as scripts write them: `timeout=60`, `rule.theme=LastWriter`, `on_end=record`.
fn policy(policy: Policy, settings: &[&str]) -> Policy {
    settings.iter().fold(policy, |policy, setting| {
        let (name, value) = setting.split_once('=').expect("name=value");
        match name {
            "timeout" => policy.timeout_secs(number(value)),
            "period" => policy.period_secs(number(value)),
            "limit" => policy.limit(number(value)),
            "bytes" => policy.session_bytes_max(number(value) as usize),
            "attributes" => policy.attributes_max(number(value) as usize),
            "key_bytes" => policy.key_bytes_max(number(value) as usize),
            "default" => policy.default_rule(rule(value)),
            "resolver" => policy.resolver(value),
            "on_start" => policy.on_start(value),
            "on_end" => policy.on_end(value),
            _ => policy.rule(name.strip_prefix("rule.").expect("a setting"), rule(value)),
        }
    })
}

fn rule(text: &str) -> Rule {
    let (name, argument) = text.split_once('(').unwrap_or((text, ")"));
    let argument = argument.strip_suffix(')').expect("a closing parenthesis");
    match name {
        "Checked" => Rule::Checked,
        "LastWriter" => Rule::LastWriter,
        "FirstWriter" => Rule::FirstWriter,
        "Sum" => Rule::Sum,
        "Max" => Rule::Max,
        "Min" => Rule::Min,
        "Union" => Rule::Union,
        "Append" => Rule::Append(number(argument) as usize),
        "Reject" => Rule::Reject,
        "Resolver" => Rule::Resolver(argument.to_owned()),
        _ => panic!("no such rule: {text}"),
    }
}

/// `apples=2`: a name and a JSON value.
fn attribute(word: &str) -> (&str, Json) {
    let (name, value) = word.split_once('=').expect("name=value");
    (name, serde_json::from_str(value).expect("a JSON value"))
}

fn amount(value: &Json) -> Amount {
    match value.as_i64() {
        Some(n) => n.into(),
        None => value.as_f64().expect("a number").into(),
    }
}

fn number(text: &str) -> u64 {
    text.parse().expect("a number")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("scripts have keys of text")
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "nothing".to_owned(),
        names => names.join(", "),
    }
}

/// Attributes as people read them: `{apples: 2, pears: 1}`.
fn shown(attributes: impl Iterator<Item = (String, Value)>) -> String {
    let pair = |(name, value): (String, Value)| {
        format!("{name}: {}", value.to::<Json>().expect("scripts write JSON"))
    };
    format!("{{{}}}", attributes.map(pair).collect::<Vec<_>>().join(", "))
}

/// The times of a session, in seconds since the script began.
fn times(session: &Session) -> Result<String, Error> {
    let since = |time: Time| format!("+{}", time.since(Time::from_secs(START)).as_secs());
    let or_never = |time: Option<Time>| time.map_or("never".to_owned(), since);
    Ok(format!(
        "created {}, accessed {}, modified {}, expires {}",
        since(session.created()?),
        since(session.last_accessed()?),
        or_never(session.last_modified()?),
        or_never(session.expires()?),
    ))
}
