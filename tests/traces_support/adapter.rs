//! Does the steps of a trace through the public API, like a stranger.
//!
//! A *connection* of a trace always has a current transaction, so here it holds one and begins
//! another whenever it commits or aborts. A *handle* of a trace outlives transactions, so it is
//! attached again when it is used next; it may turn out that its session is gone.
//!
//! Two things the original's container has and sessile's has not are kept here: the callbacks by
//! their names, and whether operations do housekeeping on the way (*in-band*). Both are settings
//! that a transaction changes, commits, takes back, and conflicts about.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json, json};
use sessile::{
    Container, Error, LimitKind, ManualClock, Options, Policy, Savepoint, Session, SessionId,
    Store, Time, Transaction,
};
use tempfile::TempDir;

use super::format::{BodyStep, Config, Notification, Request};
use super::listening::{self, Callback, Listening, data, token};

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

/// What a step came to.
pub(crate) type Answer = Result<Json, Failure>;

/// Why a step gave no result.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Failure {
    /// An error of this kind, which may well be what is expected.
    Kind(String),
    /// The step makes no sense, whatever is expected of it.
    Nonsense(String),
}

/// In front of the ids of sessions in results: the trace has its own numbers for them.
pub(crate) const OWN_ID: &str = "\0session ";

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
    /// Where containers are made to see whether they can be.
    scratch: Option<Store>,
    store: Store,
    _directory: Option<TempDir>,
}

struct Connection {
    txn: Transaction,
    /// How many transactions came before.
    turn: usize,
    /// Whether the transaction has done anything.
    used: bool,
    handles: BTreeMap<String, Handle>,
    savepoints: BTreeMap<String, (Savepoint, View)>,
    view: View,
}

struct Handle {
    session: Session,
    /// The transaction it is attached to.
    turn: usize,
}

/// The settings that the original's container has and sessile's has not.
#[derive(Clone, Copy)]
struct Extras {
    on_add: Callback,
    on_del: Callback,
    inband: bool,
}

/// What a transaction sees of the settings.
#[derive(Clone, Copy)]
struct View {
    extras: Extras,
    changed_extras: bool,
    changed_policy: bool,
    base: Versions,
}

/// How often settings were committed.
#[derive(Clone, Copy, Default)]
struct Versions {
    extras: usize,
    policy: usize,
}

struct Committed {
    extras: Extras,
    versions: Versions,
}

impl View {
    fn of(committed: &Committed) -> Self {
        let Committed { extras, versions } = *committed;
        View { extras, changed_extras: false, changed_policy: false, base: versions }
    }

    /// To the original all settings are one object. That two changed the policy the store finds
    /// out for itself.
    fn conflicts(&self, now: Versions) -> bool {
        let extras = now.extras != self.base.extras;
        let policy = now.policy != self.base.policy;
        self.changed_extras && (extras || policy) || self.changed_policy && extras
    }
}

impl Adapter {
    /// A store with one container, and connection `A`.
    pub(crate) fn open(config: &Config, engine: Engine, mode: Mode) -> Result<Self, Error> {
        let clock = FakeClock::new(config.clock);
        let listening = Arc::new(Listening::default());
        let options = Options::new()
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
        let mut adapter = Adapter {
            mode,
            clock,
            connections: BTreeMap::new(),
            committed: Committed { extras, versions: Versions::default() },
            listening,
            aside: Vec::new(),
            container,
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
        (self.listening.take(), std::mem::take(&mut self.aside))
    }

    /// Does a step.
    pub(crate) fn step(&mut self, conn: &str, op: &str, args: &Map<String, Json>) -> Answer {
        let args = Args(args);
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
        let view = self.connection(conn)?.view;
        self.listening.play(view.extras.on_add, view.extras.on_del);
        match op.split_once('.') {
            None => self.transaction_step(conn, op, args),
            Some(("conn", "close")) => {
                self.connections.remove(conn);
                Ok(Json::Null)
            }
            Some(("container", "create")) => self.create_container(args),
            Some(("container", op)) => {
                if op == "housekeep" || view.extras.inband && HOUSEKEEPING.contains(&op) {
                    self.housekeep(conn)?;
                }
                self.container_step(conn, op, args)
            }
            Some(("session", op)) => self.session_step(conn, op, args),
            Some(_) => unknown(op),
        }
    }

    fn connection(&mut self, name: &str) -> Result<&mut Connection, Failure> {
        let nonsense = || Failure::Nonsense(format!("connection {name} is not open"));
        self.connections.get_mut(name).ok_or_else(nonsense)
    }

    /// Opens a connection, or opens it again.
    fn connect(&mut self, name: &str) -> Result<(), Error> {
        let connection = Connection {
            txn: self.store.begin()?,
            turn: 0,
            used: false,
            handles: BTreeMap::new(),
            savepoints: BTreeMap::new(),
            view: View::of(&self.committed),
        };
        self.connections.insert(name.to_owned(), connection);
        Ok(())
    }

    /// Drops a connection's transaction and begins another; the one that was dropped.
    fn begin(&mut self, conn: &str) -> Result<Transaction, Failure> {
        let (next, view) = (self.store.begin()?, View::of(&self.committed));
        let connection = self.connection(conn)?;
        connection.turn += 1;
        connection.used = false;
        connection.view = view;
        Ok(std::mem::replace(&mut connection.txn, next))
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
        // A conflict drops the transaction like an abort.
        let mut done = Err(kind("ConflictError"));
        if !view.conflicts(self.committed.versions) {
            done = self.begin(conn)?.commit().map_err(Failure::from);
        }
        if done.is_ok() {
            self.committed.versions.policy += usize::from(view.changed_policy);
            if view.changed_extras {
                self.committed.versions.extras += 1;
                self.committed.extras = view.extras;
            }
        }
        self.settle();
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

    fn container_step(&mut self, conn: &str, op: &str, args: Args<'_>) -> Answer {
        let (clock, mode, container) = (self.clock.clone(), self.mode, self.container.clone());
        let connection = self.connection(conn)?;
        connection.used = true;
        let txn = &connection.txn;
        match op {
            "new" => {
                let session = txn.create(&container, args.text("key")?)?;
                connection.bind(args, Some(session))
            }
            "new_or_existing" => {
                let session = txn.get_or_create(&container, args.text("key")?)?;
                connection.bind(args, Some(session))
            }
            "get" => {
                let session = txn.get(&container, args.text("key")?)?;
                connection.bind(args, session)
            }
            "get_item" => {
                let session = txn.get(&container, args.text("key")?)?;
                connection.bind(args, Some(session.ok_or_else(|| kind("KeyError"))?))
            }
            "has_key" => Ok(json!(txn.contains(&container, args.text("key")?)?)),
            "delete" => match txn.remove(&container, args.text("key")?)? {
                true => Ok(Json::Null),
                false => Err(kind("KeyError")),
            },
            "len" => Ok(json!(txn.len(&container)?)),
            "keys" => {
                let keys: Result<Vec<_>, _> = txn.keys(&container)?.collect();
                Ok(keys?.iter().map(token).collect())
            }
            "items" => list(txn, &container, |session| {
                Ok(json!([token(session.key()), data(session.iter()?)]))
            }),
            "values" => list(txn, &container, |session| Ok(data(session.iter()?))),
            "peek" => {
                let info = |session: Result<Session, Error>| {
                    let session = session?;
                    Ok((token(session.key()), info(&session, &clock)?))
                };
                let infos: Result<Map<_, _>, Error> = txn.iter(&container)?.map(info).collect();
                Ok(infos?.into())
            }
            "housekeep" => Ok(Json::Null),
            _ => connection.settings_step(op, args, &container, mode),
        }
    }

    /// Whether a container could be made with such settings.
    fn create_container(&mut self, args: Args<'_>) -> Answer {
        let minutes = args.whole("timeout_minutes")?;
        let period = args.whole_or("period_seconds", 20)?;
        let limit = args.whole_or("limit", 0)?;
        let policy = Policy::new().timeout_mins(minutes).period_secs(period).limit(limit);
        if self.scratch.is_none() {
            let options = Options::new().clock(self.clock.manual.clone()).sweep_every(None);
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

    fn session_step(&mut self, conn: &str, op: &str, args: Args<'_>) -> Answer {
        let clock = self.clock.clone();
        let connection = self.connection(conn)?;
        connection.used = true;
        let (session, live) = connection.handle(args.text("session")?)?;
        match op {
            // These have an answer for what has ended, too.
            "id" => Ok(describe_id(&session)),
            "token" => Ok(json!(token(session.key()))),
            "is_valid" => Ok(json!(live && session.is_valid())),
            "invalidate" if !live => Ok(Json::Null),
            "invalidate" => done(session.invalidate()),
            _ if !live => Err(Error::Ended.into()),
            "get" => Ok(session.get(args.text("key")?)?.unwrap_or_else(|| args.json("default"))),
            "get_item" => session.get::<Json>(args.text("key")?)?.ok_or_else(|| kind("KeyError")),
            "has_key" => Ok(json!(session.contains(args.text("key")?)?)),
            "set" => done(session.insert(args.text("key")?, args.json("value"))),
            "delete" => match session.contains(args.text("key")?)? {
                true => done(session.remove(args.text("key")?)),
                false => Err(kind("KeyError")),
            },
            "clear" => done(session.clear()),
            "update" => match args.json("values") {
                Json::Object(values) => done(session.extend(values)),
                _ => Err(kind("TypeError")),
            },
            "keys" => Ok(json!(session.keys()?)),
            "values" => Ok(session.iter()?.map(|(_, value)| value.to::<Json>()).collect()),
            "items" => {
                Ok(session.iter()?.map(|(name, value)| json!([name, value.to::<Json>()])).collect())
            }
            "len" => Ok(json!(session.len()?)),
            "created" => Ok(json!(clock.reading(session.created()?))),
            "last_accessed" => Ok(json!(clock.reading(session.last_accessed()?))),
            "last_modified" => Ok(json!(session.last_modified()?.map(|time| clock.reading(time)))),
            "touch" => done(session.touch()),
            "info" => Ok(info(&session, &clock)?),
            "append_in_place" => match session.get::<Json>(args.text("key")?)? {
                Some(Json::Array(mut copy)) => {
                    copy.push(args.json("value"));
                    Ok(Json::Null)
                }
                _ => Err(kind("AttributeError")),
            },
            _ => unknown(op),
        }
    }
}

impl Connection {
    /// The session as a result, and bound to a handle if the step says so.
    fn bind(&mut self, args: Args<'_>, session: Option<Session>) -> Answer {
        let described = |session: &Session| json!({ "token": token(session.key()), "id": own_id(session.id()) });
        let result = session.as_ref().map_or(Json::Null, described);
        if let Some(name) = args.0.get("as").and_then(Json::as_str) {
            match session {
                Some(session) => {
                    self.handles.insert(name.to_owned(), Handle { session, turn: self.turn });
                }
                None => {
                    self.handles.remove(name);
                }
            }
        }
        Ok(result)
    }

    /// The session that a handle means, and whether this transaction has it.
    fn handle(&mut self, name: &str) -> Result<(Session, bool), Failure> {
        let Connection { txn, turn, handles, .. } = self;
        let handle = handles.get_mut(name).ok_or_else(|| kind("there is no such handle"))?;
        if handle.turn == *turn {
            return Ok((handle.session.clone(), true));
        }
        match txn.reattach(&handle.session)? {
            Some(session) => {
                *handle = Handle { session: session.clone(), turn: *turn };
                Ok((session, true))
            }
            // Gone for now: the end that this transaction sees may be taken back.
            None => Ok((handle.session.clone(), false)),
        }
    }

    fn settings_step(
        &mut self,
        op: &str,
        args: Args<'_>,
        container: &Container,
        mode: Mode,
    ) -> Answer {
        let before = self.txn.policy(container)?;
        let extras = &mut self.view.extras;
        match op {
            "limit" => return Ok(json!(before.limit)),
            "timeout" => {
                let (minutes, period) = (before.timeout_secs / 60, before.period_secs);
                return Ok(json!({ "minutes": minutes, "period_seconds": period }));
            }
            "inband" => return Ok(json!(extras.inband)),
            "set_limit" => {
                let limit = args.whole("limit")?;
                return self.set_policy(container, &before, before.clone().limit(limit));
            }
            "set_timeout" => {
                // A better store keeps the period that it has.
                let default = if mode == Mode::Modern { before.period_secs } else { 20 };
                let minutes = args.whole("minutes")?;
                let period = args.whole_or("period_seconds", default)?;
                let after = before.clone().timeout_mins(minutes).period_secs(period);
                return self.set_policy(container, &before, after);
            }
            "set_on_add" => extras.on_add = args.parsed("callback")?,
            "set_on_del" => extras.on_del = args.parsed("callback")?,
            "set_inband" => extras.inband = args.parsed("enabled")?,
            _ => return unknown(op),
        }
        self.view.changed_extras = true;
        Ok(Json::Null)
    }

    fn set_policy(&mut self, container: &Container, before: &Policy, after: Policy) -> Answer {
        let changes = *before != after;
        self.txn.set_policy(container, after)?;
        self.view.changed_policy |= changes;
        Ok(Json::Null)
    }
}

/// The clock of a trace. Its readings are floating-point seconds, added up as the original did;
/// the store knows microseconds, so each reading is remembered by those.
#[derive(Clone)]
struct FakeClock {
    now: f64,
    manual: ManualClock,
    readings: BTreeMap<Time, f64>,
}

impl FakeClock {
    fn new(now: f64) -> Self {
        let manual = ManualClock::new(time(now));
        FakeClock { now, manual, readings: [(time(now), now)].into() }
    }

    fn advance(&mut self, seconds: f64) {
        self.now += seconds;
        self.manual.set(time(self.now));
        self.readings.insert(time(self.now), self.now);
    }

    /// All times that a session has are readings of this clock.
    fn reading(&self, time: Time) -> f64 {
        self.readings.get(&time).copied().unwrap_or(f64::NAN)
    }
}

fn time(seconds: f64) -> Time {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
    let micros = (seconds * 1e6).round() as u64;
    Time::from_micros(micros)
}

/// The arguments of a step.
#[derive(Clone, Copy)]
struct Args<'a>(&'a Map<String, Json>);

impl<'a> Args<'a> {
    fn json(self, name: &str) -> Json {
        self.0.get(name).cloned().unwrap_or_default()
    }

    fn text(self, name: &str) -> Result<&'a str, Failure> {
        self.0.get(name).and_then(Json::as_str).ok_or_else(|| kind("TypeError"))
    }

    fn number(self, name: &str) -> Result<f64, Failure> {
        self.0.get(name).and_then(Json::as_f64).ok_or_else(|| kind("TypeError"))
    }

    /// A whole number that is not negative.
    fn whole(self, name: &str) -> Result<u64, Failure> {
        let value = self.json(name);
        match (value.as_u64(), value.as_i64()) {
            (Some(number), _) => Ok(number),
            (None, Some(_)) => Err(kind("ValueError")),
            (None, None) => Err(kind("TypeError")),
        }
    }

    fn whole_or(self, name: &str, default: u64) -> Result<u64, Failure> {
        if self.0.contains_key(name) { self.whole(name) } else { Ok(default) }
    }

    fn parsed<T: DeserializeOwned>(self, name: &str) -> Result<T, Failure> {
        serde_json::from_value(self.json(name)).map_err(nonsense)
    }

    fn all<T: DeserializeOwned>(self) -> Result<T, Failure> {
        serde_json::from_value(Json::Object(self.0.clone())).map_err(nonsense)
    }
}

/// The original had no bounds for these.
fn unbounded(policy: Policy) -> Policy {
    policy.session_bytes_max(usize::MAX).attributes_max(usize::MAX).key_bytes_max(1_024)
}

fn list(
    txn: &Transaction,
    container: &Container,
    describe: impl Fn(Session) -> Result<Json, Error>,
) -> Answer {
    let described: Result<Vec<_>, _> =
        txn.iter(container)?.map(|session| describe(session?)).collect();
    Ok(described?.into())
}

fn info(session: &Session, clock: &FakeClock) -> Result<Json, Error> {
    Ok(json!({
        "token": token(session.key()),
        "id": own_id(session.id()),
        "created": clock.reading(session.created()?),
        "last_accessed": clock.reading(session.last_accessed()?),
        "last_modified": session.last_modified()?.map(|time| clock.reading(time)),
        "valid": session.is_valid(),
        "data": data(session.iter()?),
    }))
}

fn describe_id(session: &Session) -> Json {
    let id = session.id().to_string();
    let second = session.created().map(|time| time.as_secs().to_string());
    json!({
        "id": own_id(session.id()),
        "digits_only": id.bytes().all(|byte| byte.is_ascii_digit()),
        "starts_with_creation_second": second.is_ok_and(|second| id.starts_with(&second)),
        "equals_token": id == token(session.key()),
    })
}

fn own_id(id: SessionId) -> String {
    format!("{OWN_ID}{id}")
}

/// An answer as it is written in a trace.
pub(crate) fn observation(answer: &Answer) -> Result<Json, Failure> {
    match answer {
        Ok(result) => Ok(json!({ "result": result })),
        Err(Failure::Kind(kind)) => Ok(json!({ "error": kind })),
        Err(nonsense) => Err(nonsense.clone()),
    }
}

fn done(result: Result<(), Error>) -> Answer {
    Ok(result.map(|()| Json::Null)?)
}

fn unknown(op: &str) -> Answer {
    Err(Failure::Nonsense(format!("unknown operation {op}")))
}

fn nonsense(error: serde_json::Error) -> Failure {
    Failure::Nonsense(error.to_string())
}

fn kind(kind: &str) -> Failure {
    Failure::Kind(kind.to_owned())
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Exists { .. } => kind("KeyError"),
            Error::Limit { limit: LimitKind::Sessions, .. } => kind("MaxTransientObjectsExceeded"),
            Error::Conflict(_) => kind("ConflictError"),
            Error::Ended => kind("SessionGone"),
            Error::Savepoint => kind("InvalidSavepointRollback"),
            Error::Policy { .. } => kind("ValueError"),
            // Kinds that no trace knows: never what is expected.
            other => kind(&format!("{other:?}")),
        }
    }
}
