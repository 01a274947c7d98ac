//! The program that is killed: it opens a store, says what it finds there, and lets its clients
//! loose when it is told to.
//!
//! It is the test's own executable, run again with a [`Job`] in its environment. It reads commands
//! from its standard input, a line each, and exits when that ends, so that it never outlives the
//! test; it writes what it has to say to its standard output, a line each, beside what the test
//! harness prints there. A deed is said to be done after its commit has returned, never before.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sessile::{
    Container, Durability, Error, Event, Key, Options, Policy, Session, Store, Transaction,
};

use super::deeds::{Attributes, CLIENTS, Deed, LATEST, Seen, Sessions, deed};
use super::points::{Point, Wire};
use crate::watched::Watched;

/// The environment variable that makes the test the program.
pub(crate) const JOB: &str = "SESSILE_KILL_CHILD";

/// What begins a line of the program's: the test harness writes to the same pipe.
pub(crate) const PROMPT: &str = "> ";

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub store: PathBuf,
    pub seed: u64,
    /// Where to stand still.
    pub point: Option<Point>,
    /// The size of a segment of the log; the default if there is none.
    pub segment_bytes: Option<u64>,
    /// How many of the clients do not wait for the sync.
    pub relaxed: usize,
    /// Whether to look at the sessions, too, that only lie there.
    pub thorough: bool,
    /// Whether to verify all of the tables.
    pub verify: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Makes sessions that only lie there.
    Fill(Range<u64>),
    /// Lets the clients go on, each after so many deeds.
    Go(Vec<u64>),
    /// Closes the store under its clients.
    Close,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Said {
    /// The store is open, and this is in it. An operation of the point's kind was met so often.
    Open {
        seen: Box<Seen>,
        met: u64,
    },
    /// Somebody else has it open; it took so long to find out.
    AlreadyOpen {
        path: PathBuf,
        pid: Option<u32>,
        micros: u64,
    },
    Filled,
    /// A client has done its nth deed, and its session expires by itself at this time.
    Done {
        client: usize,
        n: u64,
        expires: Option<u64>,
    },
    /// A listener was told of an end.
    Ended {
        key: String,
        reason: String,
    },
    /// It stands at the point.
    Point,
    Closed,
    Failed(String),
}

/// Says something, whole, or exits: nobody listens any more.
fn say(said: &Said) {
    let line = format!("{PROMPT}{}\n", serde_json::to_string(said).unwrap());
    let mut stdout = io::stdout().lock();
    if stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()).is_err() {
        std::process::exit(0);
    }
}

fn stand() -> ! {
    say(&Said::Point);
    loop {
        thread::park();
    }
}

/// Runs the program until it is killed, or until its standard input ends.
pub(crate) fn run(job: &str) {
    let job: Job = serde_json::from_str(job).unwrap();
    // The test harness has begun a line.
    println!();
    let commands = commands();
    match work(&job, &commands) {
        Ok(()) => {}
        Err(error) => say(&failed(&error)),
    }
    // Until it is killed, or nobody is there any more.
    while commands.recv().is_ok() {}
}

/// The commands as they come. When there are no more, the program is at its end.
#[expect(clippy::disallowed_methods, reason = "a thread of this program's, not of the store's")]
fn commands() -> Receiver<Command> {
    let (sender, commands) = mpsc::channel();
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            let _ = sender.send(serde_json::from_str(&line).unwrap());
        }
        std::process::exit(0);
    });
    commands
}

#[expect(clippy::disallowed_methods, reason = "a restart is measured in real time")]
fn work(job: &Job, commands: &Receiver<Command>) -> Result<(), Error> {
    let start = Instant::now();
    let micros = || u64::try_from(start.elapsed().as_micros()).unwrap();
    let wire = Arc::new(Wire::new(job.point, stand));
    let mut options = Options::new().sweep_every(Duration::from_millis(50)).verify(job.verify);
    if let Some(bytes) = job.segment_bytes {
        options = options.segment_bytes(bytes);
    }
    options = options.on_end("tell", |_, session, reason| {
        say(&Said::Ended { key: name(session.key()), reason: format!("{reason:?}") });
        Ok(())
    });
    let store = match options.disk(Watched(Arc::clone(&wire) as _)).open(&job.store) {
        Ok(store) => store,
        Err(Error::AlreadyOpen { path, pid, .. }) => {
            say(&Said::AlreadyOpen { path, pid, micros: micros() });
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let met = wire.serve();
    let events = store.events();
    let containers = Containers::of(&store)?;
    let starts = store.transact(|txn| {
        let session = txn.get_or_create(&containers.common, "starts")?;
        session.add("n", 1)?;
        Ok(session.get("n")?.unwrap_or(0))
    })?;
    let restart_micros = micros();
    // What the ones before it have left to tell.
    store.settle();
    let seen =
        Seen { restart_micros, starts: starts.value, ..containers.see(&store, job.thorough)? };
    say(&Said::Open { seen: Box::new(seen), met });

    thread::scope(|scope| {
        scope.spawn(|| events.iter().for_each(|event| complain(&event)));
        for command in commands {
            let done = match command {
                Command::Fill(numbers) => containers.fill(&store, numbers).map(|()| Said::Filled),
                Command::Go(done) => {
                    for (client, done) in done.into_iter().enumerate() {
                        let relaxed = client + job.relaxed >= CLIENTS;
                        let (store, containers) = (&store, &containers);
                        scope.spawn(move || {
                            containers.go_on(store, job.seed, client, done, relaxed)
                        });
                    }
                    continue;
                }
                Command::Close => store.clone().close().map(|_| Said::Closed),
            };
            say(&done.unwrap_or_else(|error| failed(&error)));
        }
    });
    Ok(())
}

/// Tells of what must not happen here.
fn complain(event: &Event) {
    match event {
        Event::Damaged { .. }
        | Event::Miscounted { .. }
        | Event::StorageFailed { .. }
        | Event::FoldFailed { .. }
        | Event::SweepFailed { .. } => say(&Said::Failed(format!("{event:?}"))),
        _ => {}
    }
}

fn failed(error: &Error) -> Said {
    Said::Failed(format!("{error}: {error:?}"))
}

struct Containers {
    own: Container,
    journals: Container,
    /// What all clients use. Its sessions are in another timeslice every second.
    common: Container,
    passing: Container,
    still: Container,
    /// Sessions that are bound to clients.
    bound: Container,
}

impl Containers {
    fn of(store: &Store) -> Result<Self, Error> {
        let container = |name: &str, policy| match store.container(name) {
            Err(Error::NoContainer { .. }) => store.container_with(name, policy),
            found => found,
        };
        let lasting = Policy::new().timeout_secs(0);
        Ok(Containers {
            own: container("own", lasting.clone())?,
            journals: container("journals", lasting.clone())?,
            common: container("common", Policy::new().timeout_secs(86_400).period_secs(1))?,
            passing: container("passing", Policy::new().timeout_secs(1).period_secs(1))?,
            bound: container("bound", lasting.clone().on_end("tell"))?,
            still: container("still", lasting)?,
        })
    }

    /// What is in the store.
    fn see(&self, store: &Store, thorough: bool) -> Result<Seen, Error> {
        let txn = store.begin()?;
        let number = |name: &str| match txn.peek(&self.common, "all")? {
            Some(session) => Ok(session.get(name)?.unwrap_or(0)),
            None => Ok::<u64, Error>(0),
        };
        let before = store.now().as_micros();
        let passing_len = txn.len(&self.passing)?;
        let mut passing = BTreeMap::new();
        for session in txn.iter(&self.passing)? {
            let session = session?;
            // It may expire while it is being looked at.
            if let Ok(Some(expires)) = session.expires() {
                passing.insert(name(session.key()), expires.as_micros());
            }
        }
        let mut still = None;
        if thorough {
            let numbers = txn.iter(&self.still)?.map(|session| session?.get::<u64>("n"));
            still = Some(numbers.map(|n| Ok(n?.unwrap_or(0))).collect::<Result<_, Error>>()?);
        }
        let mut bound_to = BTreeMap::new();
        for client in 0..CLIENTS {
            let principal = client.to_string();
            let sessions = txn.sessions_of(&self.bound, &principal)?.into_iter();
            bound_to.insert(principal, sessions.map(|session| name(&session.key)).collect());
        }
        let bound = txn.keys(&self.bound)?.map(|key| Ok(name(&key?))).collect::<Result<_, Error>>();
        Ok(Seen {
            bound: bound?,
            bound_to,
            now: (before, store.now().as_micros()),
            own: all(&txn, &self.own)?,
            own_len: txn.len(&self.own)?,
            own_limit: txn.policy(&self.own)?.limit,
            journals: all(&txn, &self.journals)?,
            journals_len: txn.len(&self.journals)?,
            total: number("deeds")?,
            hot: number("hot")?,
            passing,
            passing_len,
            still,
            still_len: txn.len(&self.still)?,
            ..Seen::default()
        })
    }

    fn fill(&self, store: &Store, numbers: Range<u64>) -> Result<(), Error> {
        for first in numbers.clone().step_by(50) {
            store.transact(|txn| {
                for n in first..numbers.end.min(first + 50) {
                    let session = txn.create(&self.still, format!("{n:08}"))?;
                    session.insert("n", n)?;
                    session.insert("text", "it lies there ".repeat(12))?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// One client, until the store is closed or the program killed.
    fn go_on(&self, store: &Store, seed: u64, client: usize, done: u64, relaxed: bool) {
        for n in done + 1.. {
            let deed = deed(seed, client, n);
            let did = again(|| store.transact(|txn| self.perform(txn, client, n, &deed, relaxed)));
            match did {
                Ok(report) => say(&Said::Done { client, n, expires: report.value }),
                Err(Error::Closed) => return,
                Err(error) => return say(&failed(&error)),
            }
            if n % 16 == 0 {
                // Nothing but a look, which lengthens a session's life. Nobody counts on it.
                let _ = store.transact(|txn| txn.contains(&self.common, "all"));
            }
        }
    }

    /// The nth deed of a client; when its session expires, if it does so by itself.
    fn perform(
        &self,
        txn: &Transaction,
        client: usize,
        n: u64,
        deed: &Deed,
        relaxed: bool,
    ) -> Result<Option<u64>, Error> {
        if relaxed {
            txn.set_durability(Durability::Relaxed)?;
        }
        let common = txn.get_or_create(&self.common, "all")?;
        common.add("deeds", 1)?;
        let journal = txn.get_or_create(&self.journals, client.to_string())?;
        journal.add("count", 1)?;
        journal.add("sum", n)?;
        journal.append("latest", n, LATEST)?;
        match deed {
            Deed::Write { key, text } => {
                let session = txn.get_or_create(&self.own, key)?;
                session.insert("n", n)?;
                session.insert("text", text)?;
                session.add("writes", 1)?;
            }
            Deed::End { key } => {
                txn.remove(&self.own, key)?;
            }
            Deed::Move { from, to } => {
                txn.remove(&self.own, from)?;
                txn.get_or_create(&self.own, to)?.insert("moved", n)?;
            }
            Deed::Pass { key } => {
                let expires = txn.create(&self.passing, key)?.expires()?;
                return Ok(expires.map(|time| time.as_micros()));
            }
            Deed::Update => common.update("hot", |hot: &mut u64| *hot += 1)?,
            Deed::LogIn { key } => {
                txn.create(&self.bound, key)?.bind(&client.to_string(), "")?;
            }
            Deed::Rotate { key } => {
                let sessions = txn.sessions_of(&self.bound, &client.to_string())?;
                if let Some(oldest) = sessions.into_iter().map(|session| session.key).min() {
                    let session = txn.get(&self.bound, oldest)?.ok_or(Error::Ended)?;
                    session.rotate(key)?;
                }
            }
            Deed::LogOut => txn.end_all_of(&self.bound, &client.to_string())?,
            Deed::Limit { limit } => {
                let policy = txn.policy(&self.own)?.limit(*limit);
                txn.set_policy(&self.own, policy)?;
            }
        }
        Ok(None)
    }
}

/// Tries until it is clear that nothing was written, or that everything was.
fn again<T>(mut work: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    loop {
        match work() {
            Err(error) if error.is_retryable() || matches!(error, Error::Busy { .. }) => {}
            done => return done,
        }
    }
}

/// All sessions of a container. A walk and a look at each of them must show the same.
fn all(txn: &Transaction, container: &Container) -> Result<Sessions, Error> {
    let attributes = |session: &Session| {
        let names = session.keys()?.into_iter();
        let value = |name: String| Ok((name.clone(), session.get(&name)?.unwrap_or_default()));
        names.map(value).collect::<Result<Attributes, Error>>()
    };
    let mut walked = Sessions::new();
    for session in txn.iter(container)? {
        let session = session?;
        walked.insert(name(session.key()), attributes(&session)?);
    }
    let mut seen = Sessions::new();
    for key in txn.keys(container)? {
        let key = key?;
        if let Some(session) = txn.peek(container, &key)? {
            seen.insert(name(&key), attributes(&session)?);
        }
    }
    match walked == seen {
        true => Ok(walked),
        false => Err(Error::aborted("a walk and a look do not show the same")),
    }
}

fn name(key: &Key) -> String {
    String::from_utf8_lossy(key.as_bytes()).into_owned()
}
