//! A trace as it lies in its file, read strictly: a file that says something unknown is no trace.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value as Json};

use super::listening::Callback;
use super::request::{BrowserIds, SessionData};

/// Operations that a store may leave out.
pub(crate) const OPTIONAL: [&str; 4] =
    ["container.slice_of", "container.buckets", "bid.format", "bid.timestamp"];

/// One recorded scenario.
#[derive(Deserialize)]
pub(crate) struct Trace {
    pub name: String,
    pub area: String,
    pub config: Config,
    pub steps: Vec<Step>,
    pub observed: Vec<Expectation>,
    pub wart: bool,
    pub modern: Option<Modern>,
}

#[derive(Deserialize)]
pub(crate) struct Config {
    pub clock: f64,
    pub container: Settings,
    pub browser_id_manager: Option<BrowserIds>,
    pub session_data_manager: Option<SessionData>,
}

/// How the container is set up.
#[derive(Deserialize)]
pub(crate) struct Settings {
    pub timeout_minutes: u64,
    pub period_seconds: u64,
    pub limit: u64,
    pub on_add: Callback,
    pub on_del: Callback,
    pub inband_housekeeping: bool,
}

#[derive(Deserialize)]
pub(crate) struct Step {
    pub op: String,
    pub conn: String,
    pub args: Map<String, Json>,
    pub at: f64,
}

/// What is expected of a better store where the original has a wart.
#[derive(Deserialize)]
pub(crate) struct Modern {
    pub observed: BTreeMap<usize, Expectation>,
}

/// What is expected of a step.
#[derive(Deserialize)]
#[serde(try_from = "Json")]
pub(crate) struct Expectation {
    /// One of these; `None`: whatever it does is fine.
    pub choices: Option<Vec<Choice>>,
    /// The same as it was written, for people.
    pub text: Json,
}

pub(crate) struct Choice {
    pub outcome: Wanted,
    pub notifications: Vec<Notification>,
}

pub(crate) enum Wanted {
    Result(Json),
    /// An object that has at least these pairs.
    Containing(Map<String, Json>),
    Error(String),
}

/// One call of a callback. Recorded ends have a `valid` too, which nobody compares.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(crate) struct Notification {
    pub event: Event,
    pub token: String,
    pub data: Json,
    #[serde(default)]
    pub valid: bool,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Event {
    Add,
    Del,
}

/// One step of a `transact`.
#[derive(Deserialize)]
pub(crate) struct BodyStep {
    pub op: String,
    /// Named by interfering steps only.
    pub conn: Option<String>,
    pub args: Map<String, Json>,
}

/// The arguments of a `transact`.
#[derive(Deserialize)]
pub(crate) struct Request {
    pub body: Vec<BodyStep>,
    /// What comes in between in each attempt.
    #[serde(default)]
    pub interfere: Vec<Vec<BodyStep>>,
    #[serde(default = "three")]
    pub max_retries: usize,
}

fn three() -> usize {
    3
}

/// The traces of a directory, in the order of their names.
pub(crate) fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

impl Trace {
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
        let trace: Trace = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        trace.check()?;
        Ok(trace)
    }

    /// What a better store should do at a step.
    pub(crate) fn expectation(&self, i: usize) -> &Expectation {
        let better = self.modern.as_ref().and_then(|modern| modern.observed.get(&i));
        better.unwrap_or(&self.observed[i])
    }

    /// The last step that is compared with anything.
    pub(crate) fn last_compared(&self) -> Option<usize> {
        (0..self.steps.len()).rev().find(|&i| {
            self.expectation(i).choices.is_some() && !OPTIONAL.contains(&&*self.steps[i].op)
        })
    }

    /// Expects something else of a step.
    pub(crate) fn expect(&mut self, i: usize, text: Json) {
        let expectation = Expectation::try_from(text).expect("this is an expectation");
        match self.modern.as_mut().and_then(|modern| modern.observed.get_mut(&i)) {
            Some(better) => *better = expectation,
            None => self.observed[i] = expectation,
        }
    }

    fn check(&self) -> Result<(), String> {
        let (steps, observed) = (self.steps.len(), self.observed.len());
        if steps == 0 || steps != observed {
            return Err(format!("{steps} steps, {observed} observations"));
        }
        match &self.modern {
            Some(modern) => match modern.observed.keys().find(|i| **i >= steps) {
                Some(i) => Err(format!("an expectation of step {i} of {steps}")),
                None => Ok(()),
            },
            None if self.wart => Err("a wart, and nothing better".to_owned()),
            None => Ok(()),
        }
    }
}

impl TryFrom<Json> for Expectation {
    type Error = String;

    fn try_from(text: Json) -> Result<Self, String> {
        let choices = if text.get("ignore") == Some(&Json::Bool(true)) {
            None
        } else if let Some(Json::Array(choices)) = text.get("any_of") {
            let choices: Result<Vec<_>, _> =
                choices.iter().cloned().map(Choice::try_from).collect();
            Some(choices?)
        } else {
            Some(vec![Choice::try_from(text.clone())?])
        };
        match &choices {
            Some(choices) if choices.is_empty() => Err("nothing to choose from".to_owned()),
            _ => Ok(Expectation { choices, text }),
        }
    }
}

impl TryFrom<Json> for Choice {
    type Error = String;

    fn try_from(text: Json) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Raw {
            #[serde(default, deserialize_with = "present")]
            result: Option<Json>,
            result_contains: Option<Map<String, Json>>,
            error: Option<String>,
            #[serde(default)]
            notifications: Vec<Notification>,
        }
        // A result of null is a result.
        fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Json>, D::Error> {
            Json::deserialize(value).map(Some)
        }
        let raw = Raw::deserialize(&text).map_err(|error| format!("{error} in {text}"))?;
        let outcome = match (raw.result, raw.result_contains, raw.error) {
            (Some(result), None, None) => Wanted::Result(result),
            (None, Some(pairs), None) => Wanted::Containing(pairs),
            (None, None, Some(kind)) => Wanted::Error(kind),
            _ => return Err(format!("no observation: {text}")),
        };
        Ok(Choice { outcome, notifications: raw.notifications })
    }
}
