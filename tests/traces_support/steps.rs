//! What goes into a step and what comes out of it, in the words of the traces.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json, json};
use sessile::{Error, Key, LimitKind, Token};

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

/// An answer as it is written in a trace.
pub(crate) fn observation(answer: &Answer) -> Result<Json, Failure> {
    match answer {
        Ok(result) => Ok(json!({ "result": result })),
        Err(Failure::Kind(kind)) => Ok(json!({ "error": kind })),
        Err(nonsense) => Err(nonsense.clone()),
    }
}

/// The arguments of a step.
#[derive(Clone, Copy)]
pub(crate) struct Args<'a>(pub &'a Map<String, Json>);

impl<'a> Args<'a> {
    pub(crate) fn json(self, name: &str) -> Json {
        self.0.get(name).cloned().unwrap_or_default()
    }

    pub(crate) fn text(self, name: &str) -> Result<&'a str, Failure> {
        self.0.get(name).and_then(Json::as_str).ok_or_else(|| kind("TypeError"))
    }

    pub(crate) fn text_or(self, name: &str, default: &'a str) -> Result<&'a str, Failure> {
        if self.0.contains_key(name) { self.text(name) } else { Ok(default) }
    }

    pub(crate) fn flag_or(self, name: &str, default: bool) -> Result<bool, Failure> {
        if self.0.contains_key(name) { self.parsed(name) } else { Ok(default) }
    }

    /// What a container files a session under: a text, or the hash of a token.
    pub(crate) fn key(self, name: &str) -> Result<Key, Failure> {
        let text = self.text(name)?;
        Ok(text.parse::<Token>().map_or_else(|_| text.into(), |token| token.key()))
    }

    pub(crate) fn number(self, name: &str) -> Result<f64, Failure> {
        self.0.get(name).and_then(Json::as_f64).ok_or_else(|| kind("TypeError"))
    }

    /// A whole number that is not negative.
    pub(crate) fn whole(self, name: &str) -> Result<u64, Failure> {
        let value = self.json(name);
        match (value.as_u64(), value.as_i64()) {
            (Some(number), _) => Ok(number),
            (None, Some(_)) => Err(kind("ValueError")),
            (None, None) => Err(kind("TypeError")),
        }
    }

    pub(crate) fn whole_or(self, name: &str, default: u64) -> Result<u64, Failure> {
        if self.0.contains_key(name) { self.whole(name) } else { Ok(default) }
    }

    pub(crate) fn parsed<T: DeserializeOwned>(self, name: &str) -> Result<T, Failure> {
        serde_json::from_value(self.json(name)).map_err(nonsense)
    }

    pub(crate) fn parsed_or<T: DeserializeOwned + Default>(self, name: &str) -> Result<T, Failure> {
        if self.0.contains_key(name) { self.parsed(name) } else { Ok(T::default()) }
    }

    pub(crate) fn all<T: DeserializeOwned>(self) -> Result<T, Failure> {
        serde_json::from_value(Json::Object(self.0.clone())).map_err(nonsense)
    }
}

pub(crate) fn done(result: Result<(), Error>) -> Answer {
    Ok(result.map(|()| Json::Null)?)
}

pub(crate) fn unknown(op: &str) -> Answer {
    Err(Failure::Nonsense(format!("unknown operation {op}")))
}

fn nonsense(error: serde_json::Error) -> Failure {
    Failure::Nonsense(error.to_string())
}

pub(crate) fn kind(kind: &str) -> Failure {
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
            Error::NoToken | Error::Token | Error::Cookie { .. } => kind("BrowserIdManagerErr"),
            // Kinds that no trace knows: never what is expected.
            other => kind(&format!("{other:?}")),
        }
    }
}
