//! Does the steps of a trace through the public API, like a stranger.
//!
//! The housekeeper is off: what has expired ends when the original's operations would have ended it
//! on the way (*in-band*), and when a step asks for it. Whoever was told of an end was told within
//! the step that committed it, because each step waits until everybody has been told.
//!
//! Two things the original's container has and sessile's has not are kept here, as [`Extras`]: the
//! callbacks by their names, and whether housekeeping is in-band.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value as Json, json};
use sessile::{Container, Error, Options, Policy, Store, Transaction};
use tempfile::TempDir;

use super::clock::FakeClock;
use super::connection::{Committed, Connection, Extras, Place, Versions, View};
use super::format::{BodyStep, Config, Notification, Request};
use super::listening::{self, Listening};
use super::request::Web;
use super::steps::{Answer, Args, Failure, kind, observation, unknown};

/// Where the sessions lie.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Engine {
    Memory,
    Embedded,
}

/// What the store is compared with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mode {
    /// What a better store should do.
    Modern,
    /// What the original did. Concurrent writes are settled by its rule.
    Mirror,
}

/// These look for expired sessions first, unless that is turned off. Settings do not, nor do
/// `len` and `peek`.
const HOUSEKEEPING: [&str; 9] =
    ["new", "new_or_existing", "get", "get_item", "has_key", "delete", "keys", "items", "values"];

/// A store under a trace.
pub(crate) struct Adapter {
    mode: Mode,
    clock: FakeClock,
    connections: BTreeMap<String, Connection>,
    committed: Committed,
    listening: Arc<Listening>,
    /// What was told in steps that came in between and report nothing.
    aside: Vec<Notification>,
    container: Container,
    /// The requests, if the trace has any.
    web: Option<Web>,
    /// Where containers are made to see whether they can be.
    scratch: Option<Store>,
    store: Store,
    _directory: Option<TempDir>,
}

impl Adapter {
    /// A store with one container, and connection `A`.
    pub(crate) fn open(config: &Config, engine: Engine, mode: Mode) -> Result<Self, Error> {
        let clock = FakeClock::new(config.clock);
        let listening = Arc::new(Listening::default());
        let options = Options::new()
            .segment_bytes(64 << 10)
            .clock(clock.manual.clone())
            .clock_ahead_max(Duration::MAX)
            .sweep_every(None);
        let options = listening::register(options, Arc::downgrade(&listening));
        let (store, directory) = match engine {
            Engine::Memory => (options.memory()?, None),
            Engine::Embedded => {
                let directory = tempfile::tempdir().map_err(Error::aborted)?;
                (options.open(directory.path().join("sessions"))?, Some(directory))
            }
        };
        let settings = &config.container;
        let policy = unbounded(Policy::new())
            .timeout_mins(settings.timeout_minutes)
            .period_secs(settings.period_seconds)
            .limit(settings.limit);
        let policy = match mode {
            Mode::Modern => policy,
            Mode::Mirror => policy.resolver("zope_last_modified"),
        };
        let container = store.container_with("session_data", listening::named(policy))?;
        listening.container.get_or_init(|| container.clone());
        let extras = Extras {
            on_add: settings.on_add,
            on_del: settings.on_del,
            inband: settings.inband_housekeeping,
        };
        let data = config.session_data_manager.as_ref();
        let ids = config.browser_id_manager.as_ref();
        let web = ids.map(|ids| Web::new(ids, data, &store)).transpose()?;
        let mut adapter = Adapter {
            mode,
            clock,
            connections: BTreeMap::new(),
            committed: Committed { extras, versions: Versions::default() },
            listening,
            aside: Vec::new(),
            container,
            web,
            scratch: None,
            store,
            _directory: directory,
        };
        adapter.connect("A")?;
        Ok(adapter)
    }

    /// The reading of the clock.
    pub(crate) fn now(&self) -> f64 {
        self.clock.now
    }

    /// What was told since this was asked last: to whom it may concern, and in between.
    pub(crate) fn told(&mut self) -> (Vec<Notification>, Vec<Notification>) {
        let told = (self.listening.take(), std::mem::take(&mut self.aside));
        let Some(web) = &self.web else { return told };
        let conceal = |mut notification: Notification| {
            let text = web.tokens.conceal(&json!(notification.token));
            notification.token = text.as_str().unwrap_or_default().to_owned();
            notification.data = web.tokens.conceal(&notification.data);
            notification
        };
        let conceal = |told: Vec<Notification>| told.into_iter().map(conceal).collect();
        (conceal(told.0), conceal(told.1))
    }

    /// Does a step, in which tokens stand under the names that the trace has for them.
    pub(crate) fn step(&mut self, conn: &str, op: &str, args: &Map<String, Json>) -> Answer {
        let Some(web) = &self.web else { return self.plain_step(conn, op, Args(args)) };
        let Json::Object(args) = web.tokens.reveal(&Json::Object(args.clone())) else {
            return unknown(op);
        };
        let answer = self.plain_step(conn, op, Args(&args));
        match &self.web {
            Some(web) => answer.map(|result| web.tokens.conceal(&result)),
            None => answer,
        }
    }

    fn plain_step(&mut self, conn: &str, op: &str, args: Args<'_>) -> Answer {
        match op.split_once('.') {
            None if op == "advance_clock" => {
                self.clock.advance(args.number("seconds")?);
                return Ok(json!(self.clock.now));
            }
            Some(("conn", "open")) => {
                self.connect(conn)?;
                return Ok(Json::Null);
            }
            _ => {}
        }
        let Extras { on_add, on_del, inband } = self.connection(conn)?.view.extras;
        self.listening.play(on_add, on_del);
        match op.split_once('.') {
            None => self.transaction_step(conn, op, args),
            Some(("conn", "close")) => {
                self.connections.remove(conn);
                Ok(Json::Null)
            }
            Some(("container", "create")) => self.create_container(args),
            Some(("container", op)) => {
                if op == "housekeep" || inband && HOUSEKEEPING.contains(&op) {
                    self.housekeep(conn)?;
                }
                let (connection, place) = self.place(conn)?;
                connection.container_step(op, args, place)
            }
            Some(("session", op)) => {
                let (connection, place) = self.place(conn)?;
                connection.session_step(op, args, place)
            }
            Some(("request" | "response" | "bid" | "sdm", _)) => {
                if inband && self.web.as_ref().is_some_and(|web| web.reaches(conn, op, args)) {
                    self.housekeep(conn)?;
                }
                let Adapter { connections, web: Some(web), store, clock, .. } = self else {
                    return unknown(op);
                };
                let connection = connections.get_mut(conn).ok_or_else(|| not_open(conn))?;
                web.step((conn, connection), op, args, (store, clock))
            }
            Some(_) => unknown(op),
        }
    }

    fn connection(&mut self, name: &str) -> Result<&mut Connection, Failure> {
        Ok(self.place(name)?.0)
    }

    /// A connection, and what it works on.
    fn place(&mut self, name: &str) -> Result<(&mut Connection, Place<'_>), Failure> {
        let connection = self.connections.get_mut(name).ok_or_else(|| not_open(name))?;
        let Adapter { mode, clock, container, .. } = self;
        Ok((connection, Place { mode: *mode, clock, container }))
    }

    /// Opens a connection, or opens it again.
    fn connect(&mut self, name: &str) -> Result<(), Error> {
        let connection = Connection::open(self.store.begin()?, View::of(self.committed));
        self.connections.insert(name.to_owned(), connection);
        Ok(())
    }

    /// Drops a connection's transaction and begins another; the one that was dropped.
    fn begin(&mut self, conn: &str) -> Result<Transaction, Failure> {
        let (txn, view) = (self.store.begin()?, View::of(self.committed));
        Ok(self.connection(conn)?.begin(txn, view))
    }

    /// Ends what has expired. A transaction that has not begun its work need not be kept from
    /// seeing that.
    fn housekeep(&mut self, conn: &str) -> Result<(), Failure> {
        let swept = self.store.sweep()?;
        self.settle();
        if swept.ended > 0 && !self.connection(conn)?.used {
            self.begin(conn)?;
        }
        Ok(())
    }

    /// Waits until every end is told, and those that telling has caused.
    fn settle(&self) {
        while self.store.stats().ends_pending > 0 {
            self.store.settle();
        }
    }

    fn transaction_step(&mut self, conn: &str, op: &str, args: Args<'_>) -> Answer {
        match op {
            "begin" | "abort" => {
                self.begin(conn)?;
            }
            "commit" => return self.commit(conn),
            "savepoint" => {
                let connection = self.connection(conn)?;
                let name = args.text("as")?.to_owned();
                let savepoint = connection.txn.savepoint()?;
                connection.savepoints.insert(name, (savepoint, connection.view));
                connection.used = true;
            }
            "rollback" => {
                let connection = self.connection(conn)?;
                let found = connection.savepoints.get(args.text("savepoint")?);
                let (savepoint, view) = *found.ok_or(Error::Savepoint)?;
                connection.txn.rollback(savepoint)?;
                connection.view = view;
            }
            "transact" => return self.transact(conn, &args.all()?),
            _ => return unknown(op),
        }
        Ok(Json::Null)
    }

    fn commit(&mut self, conn: &str) -> Answer {
        let view = self.connection(conn)?.view;
        let txn = self.begin(conn)?;
        let done = if view.conflicts(self.committed.versions) {
            Err(kind("ConflictError"))
        } else {
            txn.commit().map_err(Failure::from)
        };
        if done.is_ok() {
            self.committed.versions.policy += usize::from(view.changed_policy);
            if view.changed_extras {
                self.committed.versions.extras += 1;
                self.committed.extras = view.extras;
            }
        }
        self.settle();
        // The one that was begun above has not seen this commit.
        self.begin(conn)?;
        done.map(|_| json!("committed"))
    }

    /// Runs a request as the publisher does: again, when it conflicts.
    fn transact(&mut self, conn: &str, request: &Request) -> Answer {
        let mut attempt = 0;
        loop {
            attempt += 1;
            self.begin(conn)?;
            let mut observed = Vec::new();
            let mut outcome = Ok(json!("committed"));
            for step in &request.body {
                let answer = self.step(conn, &step.op, &step.args);
                observed.push(observation(&answer)?);
                if answer.is_err() {
                    outcome = answer;
                    break;
                }
            }
            if let Some(steps) = request.interfere.get(attempt - 1) {
                self.interfere(steps)?;
            }
            if outcome.is_ok() {
                outcome = self.step(conn, "commit", &Map::new());
            }
            let conflict = outcome == Err(kind("ConflictError"));
            if conflict && attempt <= request.max_retries {
                continue;
            }
            if outcome.is_err() {
                self.begin(conn)?;
            }
            let outcome = match outcome {
                Ok(committed) => committed,
                Err(Failure::Kind(kind)) => json!(kind),
                Err(nonsense) => return Err(nonsense),
            };
            return Ok(json!({ "attempts": attempt, "outcome": outcome, "body": observed }));
        }
    }

    /// What others do while a request runs. It does not fail, and what is told is not the
    /// request's.
    fn interfere(&mut self, steps: &[BodyStep]) -> Result<(), Failure> {
        let told = self.listening.take();
        for step in steps {
            let conn = step.conn.as_deref();
            let conn = conn.ok_or_else(|| Failure::Nonsense("nobody interferes".to_owned()))?;
            self.step(conn, &step.op, &step.args)
                .map_err(|failure| Failure::Nonsense(format!("{} failed: {failure:?}", step.op)))?;
        }
        self.aside.append(&mut self.listening.take());
        self.listening.put_back(told);
        Ok(())
    }

    /// Whether a container could be made with such settings.
    fn create_container(&mut self, args: Args<'_>) -> Answer {
        let minutes = args.whole("timeout_minutes")?;
        let period = args.whole_or("period_seconds", 20)?;
        let limit = args.whole_or("limit", 0)?;
        let policy = Policy::new().timeout_mins(minutes).period_secs(period).limit(limit);
        if self.scratch.is_none() {
            let options = Options::new()
                .segment_bytes(64 << 10)
                .clock(self.clock.manual.clone())
                .sweep_every(None);
            self.scratch = Some(options.memory()?);
        }
        let store = self.scratch.as_ref().expect("it was just made");
        let name = format!("container {}", store.containers().len());
        let container = store.container_with(&name, policy)?;
        let policy = store.begin()?.policy(&container)?;
        Ok(json!({
            "timeout_minutes": policy.timeout_secs / 60,
            "period_seconds": policy.period_secs,
            "limit": policy.limit,
        }))
    }
}

fn not_open(name: &str) -> Failure {
    Failure::Nonsense(format!("connection {name} is not open"))
}

/// The original had no bounds for these.
fn unbounded(policy: Policy) -> Policy {
    policy.session_bytes_max(1 << 28).attributes_max(1 << 20).key_bytes_max(1_024)
}
