//! Plays a trace and compares every step with what is expected of it.
//!
//! Most of this is equality by value. Three things are not:
//!
//! - *Ids.* The trace numbers sessions, the store has ids of its own. The two are matched as they
//!   appear, one to one, and only a contradiction is a failure.
//! - *Choices.* A step may have several good answers.
//! - *Ends.* The original tells of an end within the step that causes it, sessile once the end is
//!   committed. So an end that is expected of a step that deletes, invalidates or creates is
//!   *owed*, and may be told at any step up to that connection's next commit:
//!
//! ```text
//!   container.delete   expected: del      told: nothing     owed: del
//!   session.set        expected: nothing  told: nothing     owed: del
//!   commit             expected: nothing  told: del         owed: nothing
//! ```
//!
//! A commit that succeeds while an end is owed is a failure; an abort forgives what is owed, and
//! what is told then is too much.

use std::collections::BTreeMap;
use std::fmt;

use cookie::Cookie;
use serde_json::{Map, Value as Json, json};

use super::adapter::{Adapter, Engine, Mode};
use super::connection::OWN_ID;
use super::format::{Choice, Event, Expectation, Notification, OPTIONAL, Step, Trace, Wanted};
use super::request::{OWN_BID, each_text};
use super::steps::{Answer, Failure, observation};

/// In front of the numbers that the trace gives to ids that are made.
const BID: &str = "<bid:";

/// A trace that has passed.
pub(crate) struct Played {
    /// How many of its steps were left out.
    pub optional_steps: usize,
}

/// The first step that differs.
#[derive(Debug)]
pub(crate) struct Difference {
    step: String,
    expected: String,
    got: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { step, expected, got } = self;
        write!(f, "{step}\n    expected {expected}\n    got      {}", got.replace("\\u0000", ""))
    }
}

/// Plays a trace from its first step to its last, or to the first that differs.
pub(crate) fn play(trace: &Trace, engine: Engine, mode: Mode) -> Result<Played, Difference> {
    let opening = |error| Difference {
        step: "before the first step".to_owned(),
        expected: "a store".to_owned(),
        got: format!("{error:?}"),
    };
    let mut adapter = Adapter::open(&trace.config, engine, mode).map_err(opening)?;
    let mut judge =
        Judge { mode, ids: Ids::default(), owed: Vec::new(), savepoints: BTreeMap::new() };
    let mut optional_steps = 0;
    for (i, step) in trace.steps.iter().enumerate() {
        if OPTIONAL.contains(&&*step.op) {
            optional_steps += 1;
            continue;
        }
        let answer = adapter.step(&step.conn, &step.op, &judge.ids.own_args(&step.args));
        let (told, aside) = adapter.told();
        let expected = match mode {
            Mode::Modern => trace.expectation(i),
            Mode::Mirror => &trace.observed[i],
        };
        let differs = |problem: Option<String>| Difference {
            step: format!("step {i}: {} {} {}", step.conn, step.op, json!(step.args)),
            expected: problem.unwrap_or_else(|| expected.text.to_string()),
            got: describe(&answer, &told),
        };
        if adapter.now() != step.at {
            return Err(differs(Some(format!("the clock at {}", step.at))));
        }
        judge.judge(i, step, expected, &answer, &told, &aside).map_err(differs)?;
    }
    Ok(Played { optional_steps })
}

fn describe(answer: &Answer, told: &[Notification]) -> String {
    let mut text = match observation(answer) {
        Ok(observation) => observation.to_string(),
        Err(nonsense) => format!("{nonsense:?}"),
    };
    for Notification { event, token, data, .. } in told {
        text += &format!(", {event:?} {token:?} {data}");
    }
    text
}

/// What is known of a trace between two steps.
struct Judge {
    mode: Mode,
    ids: Ids,
    owed: Vec<Owed>,
    /// The steps that made the savepoints of each connection.
    savepoints: BTreeMap<(String, String), usize>,
}

/// Ends that a step should have caused and that were not told yet.
#[derive(Clone)]
struct Owed {
    conn: String,
    step: usize,
    /// One of these is what remains to be told.
    choices: Vec<Vec<Notification>>,
}

impl Owed {
    fn may_be_nothing(&self) -> bool {
        self.choices.iter().any(Vec::is_empty)
    }
}

/// A choice that a step agrees with, and what that means for the steps that follow.
struct Agreed {
    ids: Ids,
    owed: Vec<Owed>,
    /// Ends expected of this step and not told yet.
    remains: Vec<Notification>,
}

impl Judge {
    /// Compares a step; the error says what was expected if that was not the step's expectation.
    fn judge(
        &mut self,
        i: usize,
        step: &Step,
        expected: &Expectation,
        answer: &Answer,
        told: &[Notification],
        aside: &[Notification],
    ) -> Result<(), Option<String>> {
        if let Err(Failure::Nonsense(problem)) = answer {
            return Err(Some(format!("a step that can be done: {problem}")));
        }
        self.forgive(step, answer);
        for notification in aside {
            pay(&mut self.owed, notification);
        }
        let Some(choices) = &expected.choices else {
            for notification in told {
                pay(&mut self.owed, notification);
            }
            // What it did is unknown, so nothing is demanded.
            self.owed.retain(|owed| !ends_transaction(step) || owed.conn != step.conn);
            return Ok(());
        };
        let agreed: Vec<_> =
            choices.iter().filter_map(|choice| self.agree(step, choice, answer, told)).collect();
        let remains = agreed.iter().map(|agreed| agreed.remains.clone()).collect();
        let Some(first) = agreed.into_iter().next() else { return Err(None) };
        (self.ids, self.owed) = (first.ids, first.owed);
        self.owed.push(Owed { conn: step.conn.clone(), step: i, choices: remains });
        self.owed.retain(|owed| owed.choices.iter().any(|choice| !choice.is_empty()));
        self.note_savepoint(i, step);
        if step.op == "commit" && answer.is_ok() {
            self.collect(&step.conn)?;
        }
        Ok(())
    }

    /// Whether a step agrees with one of its choices.
    fn agree(
        &self,
        step: &Step,
        choice: &Choice,
        answer: &Answer,
        told: &[Notification],
    ) -> Option<Agreed> {
        let mut ids = self.ids.clone();
        let outcome = match (&choice.outcome, answer) {
            (Wanted::Error(wanted), Err(Failure::Kind(kind))) => wanted == kind,
            (Wanted::Result(wanted), Ok(result)) if has_own_order(step, wanted) => {
                ids.equal(&in_own_order(wanted), &in_own_order(result))
            }
            (Wanted::Result(wanted), Ok(result)) if step.op == "response.cookies" => {
                ids.equal(&each_text(wanted, &instant), &each_text(result, &instant))
            }
            (Wanted::Result(wanted), Ok(result)) if step.op == "response.set_cookie" => {
                ids.equal(&as_sets(wanted), &as_sets(result))
            }
            (Wanted::Result(wanted), Ok(result)) => ids.equal(wanted, result),
            (Wanted::Containing(wanted), Ok(Json::Object(result))) => ids.contained(wanted, result),
            _ => false,
        };
        let deferrable = self.mode == Mode::Modern && may_end_later(step);
        let (late, remains) = align(told, &choice.notifications, deferrable)?;
        let mut owed = self.owed.clone();
        let paid = late.iter().all(|notification| pay(&mut owed, notification));
        (outcome && paid).then_some(Agreed { ids, owed, remains })
    }

    /// What is owed for a transaction that ends without a commit will never be told.
    fn forgive(&mut self, step: &Step, answer: &Answer) {
        let conn = &step.conn;
        match &*step.op {
            "commit" if answer.is_ok() => {}
            "rollback" if answer.is_ok() => {
                let name = step.args["savepoint"].as_str().unwrap_or_default();
                if let Some(at) = self.savepoints.get(&(conn.clone(), name.to_owned())) {
                    self.owed.retain(|owed| owed.conn != *conn || owed.step < *at);
                }
            }
            _ if ends_transaction(step) => self.owed.retain(|owed| owed.conn != *conn),
            _ => {}
        }
    }

    fn note_savepoint(&mut self, i: usize, step: &Step) {
        if let ("savepoint", Some(name)) = (&*step.op, step.args.get("as").and_then(Json::as_str)) {
            self.savepoints.insert((step.conn.clone(), name.to_owned()), i);
        }
    }

    /// After a commit nothing may be owed.
    fn collect(&mut self, conn: &str) -> Result<(), Option<String>> {
        match self.owed.iter().find(|owed| owed.conn == conn && !owed.may_be_nothing()) {
            Some(Owed { step, choices, .. }) => {
                Err(Some(format!("that the end of step {step} is told by now: {choices:?}")))
            }
            None => {
                self.owed.retain(|owed| owed.conn != conn);
                Ok(())
            }
        }
    }
}

/// Whether an end that this step causes may be told later.
fn may_end_later(step: &Step) -> bool {
    let ends = ["container.delete", "session.invalidate"];
    let creates = ["container.new", "container.new_or_existing"];
    let creates_for_a_request = ["sdm.get_session_data", "request.session"];
    [&ends[..], &creates, &creates_for_a_request].concat().contains(&&*step.op)
}

fn ends_transaction(step: &Step) -> bool {
    matches!(&*step.op, "commit" | "abort" | "begin" | "conn.open" | "conn.close" | "transact")
}

/// Matches what was told with what is expected, in order. Left over are ends that must have been
/// owed, and expected ends that come later.
fn align(
    told: &[Notification],
    wanted: &[Notification],
    deferrable: bool,
) -> Option<(Vec<Notification>, Vec<Notification>)> {
    let (mut late, mut remains) = (Vec::new(), Vec::new());
    let mut wanted = wanted.iter();
    for notification in told {
        let mut ahead = wanted.clone();
        match ahead.position(|wanted| is_same(wanted, notification)) {
            Some(skipped) => {
                remains.extend(wanted.by_ref().take(skipped).cloned());
                wanted = ahead;
            }
            None => late.push(notification.clone()),
        }
    }
    remains.extend(wanted.cloned());
    let ends = |notifications: &[Notification]| {
        notifications.iter().all(|notification| notification.event == Event::Del)
    };
    let fits = ends(&late) && ends(&remains) && (deferrable || remains.is_empty());
    fits.then_some((late, remains))
}

/// Takes an end off what is owed; false if it was not. What must come goes before what may.
fn pay(owed: &mut [Owed], told: &Notification) -> bool {
    let holds = |choice: &Vec<Notification>| choice.iter().any(|end| is_same(end, told));
    let creditor = |must: bool| {
        move |owed: &&mut Owed| owed.may_be_nothing() != must && owed.choices.iter().any(holds)
    };
    let found = match owed.iter_mut().find(creditor(true)) {
        Some(found) => Some(found),
        None => owed.iter_mut().find(creditor(false)),
    };
    let Some(found) = found else { return false };
    found.choices.retain(holds);
    for choice in &mut found.choices {
        let at = choice.iter().position(|end| is_same(end, told));
        choice.remove(at.expect("the others were dropped"));
    }
    true
}

/// Whether two callback calls are the same; what has ended may or may not call itself valid.
fn is_same(wanted: &Notification, told: &Notification) -> bool {
    wanted.event == told.event
        && wanted.token == told.token
        && Ids::default().equal(&wanted.data, &told.data)
        && (wanted.event == Event::Del || wanted.valid == told.valid)
}

/// The numbers of the trace and the ids of the store, matched.
#[derive(Clone, Default)]
struct Ids {
    own: BTreeMap<String, String>,
    recorded: BTreeMap<String, String>,
}

impl Ids {
    /// Whether two values are equal, ids by what they mean and numbers by value.
    fn equal(&mut self, wanted: &Json, got: &Json) -> bool {
        match (wanted, got) {
            (Json::String(recorded), Json::String(own)) if own.starts_with(OWN_ID) => {
                recorded.starts_with('#') && self.pair(recorded, own)
            }
            (Json::String(recorded), Json::String(own)) => self.same_text(recorded, own),
            (Json::Number(wanted), Json::Number(got)) => {
                wanted == got
                    || (wanted.is_f64() || got.is_f64()) && wanted.as_f64() == got.as_f64()
            }
            (Json::Array(wanted), Json::Array(got)) => {
                wanted.len() == got.len() && wanted.iter().zip(got).all(|(w, g)| self.equal(w, g))
            }
            (Json::Object(wanted), Json::Object(got)) => {
                wanted.len() == got.len() && self.contained(wanted, got)
            }
            _ => wanted == got,
        }
    }

    fn contained(&mut self, wanted: &Map<String, Json>, got: &Map<String, Json>) -> bool {
        wanted.iter().all(|(key, wanted)| {
            let mut keys = got.keys();
            let own = keys.find(|own| *own == key || self.clone().same_text(key, own));
            own.is_some_and(|own| self.same_text(key, own) && self.equal(wanted, &got[own]))
        })
    }

    /// Whether two texts are the same but for the numbers of the ids that were made.
    fn same_text(&mut self, recorded: &str, own: &str) -> bool {
        let mut pieces = own.split(OWN_BID);
        let mut rest = pieces.next().and_then(|piece| recorded.strip_prefix(piece));
        for piece in pieces {
            let recorded = rest.and_then(|rest| rest.strip_prefix(BID)?.split_once('>'));
            let (Some((number, after)), Some((own, piece))) = (recorded, piece.split_once('>'))
            else {
                return false;
            };
            if !self.pair(&format!("{BID}{number}>"), &format!("{OWN_BID}{own}>")) {
                return false;
            }
            rest = after.strip_prefix(piece);
        }
        rest == Some("")
    }

    /// Arguments with the ids that were made under their own numbers.
    fn own_args(&self, args: &Map<String, Json>) -> Map<String, Json> {
        let bids = || self.own.iter().filter(|(recorded, _)| recorded.starts_with(BID));
        let own = |text: &str| {
            bids().fold(text.to_owned(), |text, (recorded, own)| text.replace(recorded, own))
        };
        match bids().next() {
            Some(_) => {
                args.iter().map(|(name, arg)| (name.clone(), each_text(arg, &own))).collect()
            }
            None => args.clone(),
        }
    }

    fn pair(&mut self, recorded: &str, own: &str) -> bool {
        let mine = self.own.entry(recorded.to_owned()).or_insert_with(|| own.to_owned());
        let theirs = self.recorded.entry(own.to_owned()).or_insert_with(|| recorded.to_owned());
        mine == own && theirs == recorded
    }
}

/// Whether what is listed comes in an order of our own: that of texts as another language writes them, or
/// of keys that are hashes.
fn has_own_order(step: &Step, wanted: &Json) -> bool {
    let is_list = ["container.keys", "container.items", "container.values"].contains(&&*step.op);
    let text = wanted.to_string();
    step.op == "session.values" || is_list && (text.contains(BID) || text.contains("<good:"))
}

/// Values of a session come in the order of their texts, which two languages write differently.
fn in_own_order(values: &Json) -> Json {
    let mut values = values.as_array().cloned().unwrap_or_default();
    values.sort_by_key(Json::to_string);
    values.into()
}

/// `Set-Cookie` headers, each as its cookie and the set of its attributes.
fn as_sets(headers: &Json) -> Json {
    let set = |header: &Json| {
        let mut parts = header.as_str().unwrap_or_default().split("; ");
        let cookie = parts.next();
        let lower = |part: &str| match part.split_once('=') {
            Some((name, value)) => format!("{}={}", name.to_ascii_lowercase(), instant(value)),
            None => part.to_ascii_lowercase(),
        };
        let mut attributes: Vec<_> = parts.map(lower).collect();
        attributes.sort();
        json!([cookie, attributes])
    };
    headers.as_array().map_or(Json::Null, |headers| headers.iter().map(set).collect())
}

/// The instant of a date in the form of HTTP, and any other text as it is. Which day of the week that was
/// is not compared: the original did not know.
fn instant(text: &str) -> String {
    let is_date = text.len() == 29 && text.ends_with(" GMT") && text.get(3..5) == Some(", ");
    let has_blanks = [7, 11, 16].iter().all(|at| text.as_bytes().get(*at) == Some(&b' '));
    let cookie = Cookie::parse(format!("name=value; Expires={text}"));
    match cookie.ok().and_then(|cookie| cookie.expires_datetime()) {
        Some(instant) if is_date && has_blanks => format!("instant {}", instant.unix_timestamp()),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trace of steps on one container whose sessions live for a minute and whose ends are
    /// recorded: operation, arguments, what is expected.
    fn trace(steps: &[(&str, Json, Json)]) -> Trace {
        let step = |(op, args, _): &(&str, Json, Json)| {
            let (conn, op) = op.split_once(' ').expect("a connection, then an operation");
            json!({ "op": op, "conn": conn, "args": args, "at": 1_000 })
        };
        let steps_json: Vec<_> = steps.iter().map(step).collect();
        let observed: Vec<_> = steps.iter().map(|(_, _, expected)| expected).collect();
        let container = json!({
            "timeout_minutes": 1, "period_seconds": 20, "limit": 0,
            "on_add": null, "on_del": "record", "inband_housekeeping": true,
        });
        let trace = json!({
            "name": "test", "area": "notifications", "wart": false,
            "config": { "clock": 1_000, "container": container },
            "steps": steps_json, "observed": observed,
        });
        serde_json::from_value(trace).expect("this is a trace")
    }

    /// The step that differs, if one does.
    fn differs(steps: &[(&str, Json, Json)]) -> Option<String> {
        play(&trace(steps), Engine::Memory, Mode::Modern).err().map(|difference| difference.step)
    }

    fn new(id: &str) -> (&'static str, Json, Json) {
        let result = json!({ "result": { "token": "t", "id": id } });
        ("A container.new", json!({ "key": "t", "as": "s" }), result)
    }

    fn commit() -> (&'static str, Json, Json) {
        ("A commit", json!({}), json!({ "result": "committed" }))
    }

    fn plain(op: &'static str) -> (&'static str, Json, Json) {
        (op, json!({ "key": "t", "session": "s", "as": "p", "savepoint": "p" }), nothing())
    }

    fn nothing() -> Json {
        json!({ "result": null })
    }

    fn told() -> Json {
        json!({
            "result": null,
            "notifications": [{ "event": "del", "token": "t", "data": {}, "valid": true }],
        })
    }

    fn delete(expected: Json) -> (&'static str, Json, Json) {
        ("A container.delete", json!({ "key": "t" }), expected)
    }

    #[test]
    fn an_end_may_be_told_by_the_commit() {
        assert_eq!(differs(&[new("#1"), commit(), delete(told()), commit()]), None);
        let either = json!({ "any_of": [nothing(), told()] });
        assert_eq!(differs(&[new("#1"), commit(), delete(either), commit()]), None);
    }

    #[test]
    fn an_end_that_nobody_expects_is_too_much() {
        let step = differs(&[new("#1"), commit(), delete(nothing()), commit()]);
        assert_eq!(step.as_deref(), Some("step 3: A commit {}"));
    }

    #[test]
    fn an_end_that_is_never_told_is_missed() {
        // The session is not the one that ended, so that end stays owed.
        let mut other = told();
        other["notifications"][0]["token"] = json!("other");
        let step = differs(&[new("#1"), delete(other), commit()]);
        assert_eq!(step.as_deref(), Some("step 2: A commit {}"));
        let off = ("A container.set_on_del", json!({ "callback": null }), nothing());
        let step = differs(&[new("#1"), off, delete(told()), commit()]);
        assert_eq!(step.as_deref(), Some("step 3: A commit {}"));
    }

    #[test]
    fn an_abort_forgives_an_end() {
        for abort in ["A abort", "A begin", "A conn.open"] {
            let steps = [new("#1"), commit(), delete(told()), plain(abort), commit()];
            assert_eq!(differs(&steps), None, "{abort}");
        }
        let (savepoint, rollback) = (plain("A savepoint"), plain("A rollback"));
        let steps = [new("#1"), commit(), savepoint, delete(told()), rollback, commit()];
        assert_eq!(differs(&steps), None);
    }

    #[test]
    fn ids_are_matched_one_to_one() {
        assert_eq!(differs(&[new("#7"), delete(told()), new("#3")]), None);
        let step = differs(&[new("#7"), delete(told()), new("#7")]);
        assert!(step.is_some_and(|step| step.starts_with("step 2")));
        let get = |id: &str| {
            let expected = json!({ "result": { "token": "t", "id": id } });
            ("A container.get", json!({ "key": "t" }), expected)
        };
        assert_eq!(differs(&[new("#7"), get("#7")]), None);
        assert!(differs(&[new("#7"), get("#8")]).is_some());
    }

    #[test]
    fn made_ids_are_matched_within_texts() {
        let made = |n| format!("a {OWN_BID}{n}> b");
        let mut ids = Ids::default();
        assert!(ids.same_text("a <bid:5> b", &made(1)) && ids.same_text("a <bid:5> b", &made(1)));
        assert!(!ids.clone().same_text("a <bid:5> b", &made(2)));
        assert!(!ids.clone().same_text("a <bid:6> b", &made(1)));
        assert!(ids.same_text("a <bid:6> b", &made(3)));
        for other in ["a <bid:5> b.", "a <bid:5>", ".a <bid:5> b", "a <good:5> b", "a  b", ""] {
            assert!(!ids.clone().same_text(other, &made(1)), "{other}");
        }
        let args = json!({ "path": "/<bid:6>/<bid:9>", "cookies": { "sid": "<bid:5>" } });
        let own = ids.own_args(args.as_object().expect("an object"));
        let own_five = json!(format!("{OWN_BID}1>"));
        assert_eq!(
            (&own["path"], &own["cookies"]["sid"]),
            (&json!(format!("/{OWN_BID}3>/<bid:9>")), &own_five)
        );
    }

    #[test]
    fn cookies_are_compared_by_what_they_mean() {
        let same = |a: &str, b: &str| as_sets(&json!([a])) == as_sets(&json!([b]));
        let monday = "a=b; path=/P; secure; expires=Mon, 10 May 1971 11:59:00 GMT";
        assert!(same(monday, "a=b; Secure; Expires=Sun, 10 May 1971 11:59:00 GMT; Path=/P"));
        for other in [
            "A=b; path=/P; secure; expires=Mon, 10 May 1971 11:59:00 GMT",
            "a=b; path=/p; secure; expires=Mon, 10 May 1971 11:59:00 GMT",
            "a=b; path=/P; expires=Mon, 10 May 1971 11:59:00 GMT",
            "a=b; path=/P; secure; expires=Mon, 10 May 1971 11:59:01 GMT",
            "a=b; path=/P; secure; expires=Mon, 10-May-1971 11:59:00 GMT",
            "a=b; path=/P; secure; expires=Mon, 10 May 1971 11:59:00 GMT; HttpOnly",
        ] {
            assert!(!same(monday, other), "{other}");
        }
    }

    #[test]
    fn settings_are_part_of_transactions() {
        fn set(op: &str) -> (&str, Json, Json) {
            (op, json!({ "callback": null, "enabled": true, "limit": 9 }), nothing())
        }
        let conflict = || ("B commit", json!({}), json!({ "error": "ConflictError" }));
        let settings = ["container.set_on_add", "container.set_inband", "container.set_limit"];
        for (mine, theirs) in settings.iter().flat_map(|m| settings.iter().map(move |t| (m, t))) {
            let (mine, theirs) = (format!("A {mine}"), format!("B {theirs}"));
            let steps = [plain("B conn.open"), set(&mine), set(&theirs), commit(), conflict()];
            assert_eq!(differs(&steps), None, "{mine}, {theirs}");
        }
        let off = ("A container.set_inband", json!({ "enabled": false }), nothing());
        let on = ("A container.inband", json!({}), json!({ "result": true }));
        assert_eq!(differs(&[off, plain("A abort"), on]), None);
    }

    #[test]
    fn what_makes_no_sense_fails_whatever_is_expected() {
        for step in ["A container.frobnicate", "A frobnicate", "A request.start", "B abort"] {
            assert!(differs(&[(step, json!({}), json!({ "ignore": true }))]).is_some(), "{step}");
        }
    }
}
