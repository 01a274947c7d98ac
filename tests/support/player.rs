//! Plays the commands of a script against the public API, and keeps what they print.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::mem;
use std::time::Duration;

use serde_json::Value as Json;
use sessile::{
    ClockTrouble, Conflict, ConflictReason, Container, Error, Event, Key, Policy, PrincipalSession,
    Receiver, Report, ResolverTrouble, Savepoint, Session, SessionId, Store, Time, Transaction,
};
use tempfile::TempDir;

use crate::application::{Ending, Heard, START, ScriptClock, ending, open};
use crate::notation::{amount, attribute, listed, number, policy, shown, since, text, times};

/// Where a script is played.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Engine {
    Memory,
    Embedded,
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
pub(crate) struct Player {
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
    pub(crate) fn new(engine: Engine) -> Self {
        let clock = ScriptClock::new();
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

    /// What was printed since this was asked last.
    pub(crate) fn printed(&mut self) -> Vec<String> {
        mem::take(&mut self.out)
    }

    fn say(&mut self, text: impl Into<String>) {
        self.out.push(text.into());
    }

    pub(crate) fn command(&mut self, line: &str) {
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
        let gate = self.clock.shut();
        let batches = self.store.stats().batches;
        let mut commits = VecDeque::new();
        for who in who {
            let txn = self.clients.get_mut(*who).and_then(|client| client.txn.take());
            commits.push_back((who, txn.expect("each has begun").commit_async()));
            if commits.len() == 1 {
                gate.wait();
            }
        }
        gate.open();
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
                Event::Expiring { container, key, id, expires } => {
                    let key = self.key(container, &text(key.as_bytes()));
                    format!("{key} #{} expires {}", self.generation(*id), since(*expires))
                }
                Event::ListenerFailed { listener, panicked: false } => {
                    format!("listener {listener} failed")
                }
                Event::ListenerFailed { listener, panicked: true } => {
                    format!("listener {listener} panicked")
                }
                Event::EndGivenUp(session, reason) => {
                    format!("gave up: {}", self.ending(&ending(session, *reason)))
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
                Event::RotatedKeyUsed { container, session } => {
                    format!("an old key of {} was used", self.key(container, &self.keys[session]))
                }
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
        // Who closes a store acknowledges the ends that were told: in memory, too, that is a commit.
        self.store.settle();
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
            ["end_all_of", principal] => {
                txn.end_all_of(&self.container(""), principal)?;
                String::new()
            }
            ["sessions_of", principal] => {
                let sessions = txn.sessions_of(&self.container(""), principal)?;
                let shown = |s: &PrincipalSession| match &*s.note {
                    "" => text(s.key.as_bytes()),
                    note => format!("{} ({note})", text(s.key.as_bytes())),
                };
                let sessions: Vec<_> = sessions.iter().map(shown).collect();
                format!("{principal}: {}", listed(&sessions))
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
            ("timeout", []) => match session.timeout()? {
                Some(timeout) => format!("{key}: timeout {}", timeout.as_secs()),
                None => format!("{key}: no timeout of its own"),
            },
            ("set_timeout", [secs]) => {
                let secs = (*secs != "none").then(|| Duration::from_secs(number(secs)));
                session.set_timeout(secs)?;
                String::new()
            }
            ("insert_for", [secs, word]) => {
                let (name, value) = attribute(word);
                session.insert_for(name, value, Duration::from_secs(number(secs)))?;
                String::new()
            }
            ("update", [word]) => {
                let (name, more) = attribute(word);
                let more = more.as_i64().expect("a number");
                session.update(name, |n: &mut i64| *n += more)?;
                String::new()
            }
            ("times", []) => format!("{key} {}", times(&session)?),
            ("rotate", [to]) => {
                let session = session.rotate(self.place(to).1)?;
                let shown = self.session(&session);
                let client = self.clients.get_mut(who).expect("it has begun");
                client.handles.insert((*to).to_owned(), session);
                shown
            }
            ("bind", [principal, note @ ..]) => {
                session.bind(principal, &note.join(" "))?;
                String::new()
            }
            ("unbind", []) => {
                session.unbind()?;
                String::new()
            }
            ("end_others", []) => {
                session.end_others()?;
                String::new()
            }
            ("principal", []) => {
                let principal = session.principal()?;
                format!("{key}: {}", principal.unwrap_or_else(|| "nobody's".to_owned()))
            }
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
                match (reason, stored) {
                    (
                        ConflictReason::Attribute(_) | ConflictReason::Resolver { .. },
                        Some(stored),
                    ) => format!("conflict on {key}: {reason} (read at {base}, now {stored})"),
                    _ => format!("conflict on {key}: {reason}"),
                }
            }
            Error::Exists { container, session } => {
                format!("{} exists", self.key(container, &self.keys[session]))
            }
            Error::RotatedKey { container, session } => {
                format!("{} was given up", self.key(container, &self.keys[session]))
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
        self.keys.insert(Key::from(key).fingerprint(), key.to_owned());
        (self.container(container), key.to_owned())
    }

    /// The container of this name, or else the first.
    fn container(&self, name: &str) -> Container {
        let found = self.containers.iter().find(|container| container.name() == name);
        found.unwrap_or(&self.containers[0]).clone()
    }
}
