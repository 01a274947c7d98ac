//! Requests of a trace: the ids that they carry, and the sessions behind them.
//!
//! The original's browser id manager is sessile's [`Ids`], its session data manager [`RequestSessions`].
//! What they would refuse today is asked for here: that the order of the namespaces decides, and that an
//! unknown token is adopted.
//!
//! A container files sessions under hashes, so that texts are no keys of its any more. [`Tokens`] knows
//! which hash belongs to which id of the trace, in both directions.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderValue, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};
use sessile::web::{
    CookieSettings, Disagreement, Ids, Namespace, RequestHead, RequestIds, RequestSessions,
    SameSite, UnknownToken, UrlStyle,
};
use sessile::{Clock, Error, Session, Store, Time, Token};

use super::clock::FakeClock;
use super::connection::Connection;
use super::listening;
use super::steps::{Answer, Args, Failure, done, kind, unknown};

/// In front of the number of an id that was made, in results: the trace has its own numbers for them.
pub(crate) const OWN_BID: &str = "\0<bid:";

/// Where the container lies in the original's tree of objects.
const FOLDER: &str = "/temp_folder/";
const HOST: &str = "www.example.com";
const MANAGER_ERROR: &str = "BrowserIdManagerErr";
const DATA_ERROR: &str = "SessionDataManagerErr";

/// How ids are looked for and handed out.
#[derive(Clone, Deserialize, Serialize)]
pub(crate) struct BrowserIds {
    name: String,
    namespaces: Vec<Space>,
    cookie_path: String,
    cookie_domain: String,
    cookie_life_days: f64,
    cookie_secure: bool,
    cookie_http_only: bool,
    auto_url_encoding: bool,
    cookie_same_site: Option<String>,
}

#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Space {
    Cookies,
    Form,
    Url,
}

/// Where the sessions of requests lie.
#[derive(Deserialize)]
pub(crate) struct SessionData {
    container_path: String,
    request_name: String,
}

/// What a trace has besides a container: requests.
pub(crate) struct Web {
    settings: BrowserIds,
    ids: Ids,
    data: Option<Data>,
    requests: BTreeMap<String, Request>,
    pub tokens: Tokens,
}

struct Data {
    path: String,
    name: String,
    /// `None`: nothing lies at the path.
    sessions: Option<RequestSessions>,
}

struct Request {
    ids: RequestIds,
    https: bool,
    /// The cookie as it would have been set in 1970, and when it was set: the original dates it then.
    cookie: Vec<HeaderValue>,
    cookie_set: Time,
    /// An id that was planted, and is no token.
    planted: Option<String>,
    /// Whether the request has its session by name.
    has_session: bool,
}

/// The handle of the session that a request has by name.
const NAMED: &str = "\0request";

impl Web {
    pub(crate) fn new(
        settings: &BrowserIds,
        data: Option<&SessionData>,
        store: &Store,
    ) -> Result<Self, Error> {
        let data = data.map(|data| Data {
            path: data.container_path.clone(),
            name: data.request_name.clone(),
            sessions: sessions_at(&data.container_path, store),
        });
        let (settings, tokens) = (settings.clone(), Tokens::new()?);
        let ids = settings.ids()?;
        Ok(Web { settings, ids, data, requests: BTreeMap::new(), tokens })
    }

    /// Whether a step makes the original look into the container.
    pub(crate) fn reaches(&self, conn: &str, op: &str, args: Args<'_>) -> bool {
        let Some(Data { name, sessions: Some(_), .. }) = &self.data else { return false };
        let request = self.requests.get(conn);
        let has_token = request.is_some_and(|request| request.ids.token().is_some());
        match op {
            "request.session" => {
                args.text_or("name", "SESSION").is_ok_and(|asked| asked == name)
                    && request.is_some_and(|request| !request.has_session)
            }
            "sdm.get_session_data" => has_token || args.flag_or("create", true) == Ok(true),
            "sdm.has_session_data" | "sdm.clear" => has_token,
            "sdm.get_by_key" => true,
            _ => false,
        }
    }

    /// Does a step of a connection.
    pub(crate) fn step(
        &mut self,
        (conn, connection): (&str, &mut Connection),
        op: &str,
        args: Args<'_>,
        (store, clock): (&Store, &FakeClock),
    ) -> Answer {
        match op.split_once('.') {
            Some(("request", "start")) => return self.start(conn, args),
            Some(("bid", "config")) => return Ok(self.settings.describe(&self.ids)),
            Some(("bid", "configure")) => return self.configure(args),
            Some(("bid", "well_formed")) => {
                let candidates: Vec<String> = args.parsed("candidates")?;
                return Ok(candidates.iter().map(|id| id.parse::<Token>().is_ok()).collect());
            }
            Some(("sdm", "set_container_path")) => return self.set_path(args, store),
            Some(("sdm", "container_path")) => return Ok(json!(self.data()?.path)),
            Some(("sdm", "has_container")) => return Ok(json!(self.data()?.sessions.is_some())),
            _ => {}
        }
        let nonsense = || Failure::Nonsense(format!("{op} without a request"));
        let request = self.requests.get_mut(conn).ok_or_else(nonsense)?;
        let answer = match op.split_once('.') {
            Some(("request", "tamper")) => request.tamper(&self.ids, args),
            Some(("request", "generated_url")) => request.generated_url(args),
            Some(("request", "session")) => match &self.data {
                Some(data) => request.session(data, connection, args),
                None => Err(kind("KeyError")),
            },
            Some(("response", op)) => request.response_step(op),
            Some(("bid", op)) => request.id_step(op, args),
            Some(("sdm", op)) => match &self.data {
                Some(data) => request.data_step(op, args, data, connection),
                None => Err(Failure::Nonsense("there are no sessions".to_owned())),
            },
            _ => unknown(op),
        };
        let cookie = request.ids.set_cookies(Time::default());
        if cookie != request.cookie {
            (request.cookie, request.cookie_set) = (cookie, clock.manual.wall());
        }
        if let (Ok(true), Some(token)) = (request.ids.is_new(), request.ids.token()) {
            self.tokens.note(token);
        }
        answer
    }

    fn data(&mut self) -> Result<&mut Data, Failure> {
        self.data.as_mut().ok_or_else(|| Failure::Nonsense("there are no sessions".to_owned()))
    }

    fn start(&mut self, conn: &str, args: Args<'_>) -> Answer {
        let path = args.text_or("path", "/")?;
        let form: BTreeMap<String, String> = args.parsed_or("form")?;
        let cookies: BTreeMap<String, String> = args.parsed_or("cookies")?;
        let https = args.flag_or("https", false)?;
        let mut headers = HeaderMap::new();
        for (name, value) in cookies {
            headers.append(header::COOKIE, cookie(&name, &value)?);
        }
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let (query, form) = (Some(args.text_or("query", "")?), Some(body.as_bytes()));
        let ids = self.ids.read(&RequestHead { headers: &headers, path, query, form, https });
        let published = published(ids.path());
        let status = if published.is_some() { 200 } else { 404 };
        let (cookie, cookie_set) = (Vec::new(), Time::default());
        let request = Request { ids, https, cookie, cookie_set, planted: None, has_session: false };
        self.requests.insert(conn.to_owned(), request);
        Ok(json!({ "status": status, "published": published }))
    }

    /// Changes one setting, if the whole is valid then.
    fn configure(&mut self, args: Args<'_>) -> Answer {
        let Ok(Json::Object(mut settings)) = serde_json::to_value(&self.settings) else {
            return Err(Failure::Nonsense("settings are an object".to_owned()));
        };
        for (name, value) in args.0 {
            if settings.insert(name.clone(), value.clone()).is_none() {
                return Err(Failure::Nonsense(format!("there is no setting {name}")));
            }
        }
        let settings: BrowserIds =
            serde_json::from_value(settings.into()).map_err(|_| kind(MANAGER_ERROR))?;
        self.ids = settings.ids()?;
        self.settings = settings;
        Ok(Json::Null)
    }

    fn set_path(&mut self, args: Args<'_>, store: &Store) -> Answer {
        let path = args.text("path").map_err(|_| kind(DATA_ERROR))?;
        if !path.chars().all(|c| c.is_ascii_alphanumeric() || "-_~,. /".contains(c)) {
            return Err(kind(DATA_ERROR));
        }
        let data = self.data()?;
        data.path = path.to_owned();
        data.sessions = sessions_at(path, store);
        Ok(Json::Null)
    }
}

impl BrowserIds {
    fn ids(&self) -> Result<Ids, Error> {
        let same_site = match self.cookie_same_site.as_deref() {
            None | Some("") => None,
            Some("Strict") => Some(SameSite::Strict),
            Some("Lax") => Some(SameSite::Lax),
            Some("None") => Some(SameSite::None),
            Some(_) => return Err(refused("there is no such SameSite")),
        };
        if self.cookie_life_days < 0.0 {
            return Err(refused("nothing lasts less than not at all"));
        }
        let cookie = CookieSettings::builder()
            .name(&self.name)
            .path(&self.cookie_path)
            .domain(&self.cookie_domain)
            .lifetime_days(self.cookie_life_days as u64)
            .secure(self.cookie_secure)
            .http_only(self.cookie_http_only)
            .same_site(same_site)
            .build()?;
        let namespace = |space: &Space| match space {
            Space::Cookies => Namespace::Cookies,
            Space::Form => Namespace::Form,
            Space::Url => Namespace::Url,
        };
        Ok(Ids::new()
            .cookie(cookie)
            .namespaces(self.namespaces.iter().map(namespace))
            .auto_url_encoding(self.auto_url_encoding)
            .on_disagreement(Disagreement::FirstNamespace))
    }

    /// The settings, those of the cookie as sessile has them.
    fn describe(&self, ids: &Ids) -> Json {
        let cookie = ids.cookie_settings();
        let days = cookie.lifetime().map_or(0, |lifetime| lifetime.as_secs() / (24 * 60 * 60));
        json!({
            "name": cookie.name(),
            "namespaces": self.namespaces,
            "cookie_path": cookie.path().unwrap_or_default(),
            "cookie_domain": cookie.domain().unwrap_or_default(),
            "cookie_life_days": days,
            "cookie_secure": cookie.secure(),
            "cookie_http_only": cookie.http_only(),
            "cookie_same_site": cookie.same_site().map(|same_site| format!("{same_site:?}")),
            "auto_url_encoding": self.auto_url_encoding,
        })
    }
}

impl Request {
    /// Plants an id, as if the request had carried it.
    fn tamper(&mut self, ids: &Ids, args: Args<'_>) -> Answer {
        let id = args.text("bid")?;
        if id.parse::<Token>().is_err() {
            self.planted = Some(id.to_owned());
            return Ok(Json::Null);
        }
        let name = ids.cookie_settings().name();
        let headers = HeaderMap::from_iter([(header::COOKIE, cookie(name, id)?)]);
        let path = format!("/{name}/{id}{}", self.ids.path());
        let query = Some(format!("{name}={id}"));
        self.ids = ids.read(&RequestHead {
            headers: &headers,
            path: &path,
            query: query.as_deref(),
            form: None,
            https: self.https,
        });
        self.planted = None;
        Ok(Json::Null)
    }

    fn generated_url(&mut self, args: Args<'_>) -> Answer {
        let scheme = if self.https { "https" } else { "http" };
        Ok(json!(self.ids.link(&format!("{scheme}://{HOST}{}", args.text("path")?))?))
    }

    /// The session by its name, made when it is asked for first.
    fn session(&mut self, data: &Data, connection: &mut Connection, args: Args<'_>) -> Answer {
        if args.text_or("name", "SESSION")? != data.name {
            return Err(kind("KeyError"));
        }
        if self.has_session {
            return connection.bind_again(args, NAMED);
        }
        let session = self.made(data, connection, true)?;
        if let Some(session) = &session {
            self.has_session = true;
            connection.hold(NAMED, session.clone());
        }
        connection.bind(args, session)
    }

    /// The session of the request; where no container is, the original makes an id all the same.
    fn made(
        &mut self,
        data: &Data,
        connection: &mut Connection,
        create: bool,
    ) -> Result<Option<Session>, Failure> {
        self.planted()?;
        connection.used = true;
        match &data.sessions {
            Some(sessions) => Ok(sessions.session(&connection.txn, &mut self.ids, create)?),
            None if create => Ok(self.ids.get_or_create().map(|_| None)?),
            None => Ok(None),
        }
    }

    fn response_step(&self, op: &str) -> Answer {
        let cookies = self.ids.set_cookies(self.cookie_set);
        let texts = cookies.iter().map(|cookie| cookie.to_str().expect("cookies are ASCII"));
        match op {
            "set_cookie" => Ok(texts.collect()),
            "cookies" => Ok(texts.map(attributes).collect::<Map<_, _>>().into()),
            _ => unknown(op),
        }
    }

    fn id_step(&mut self, op: &str, args: Args<'_>) -> Answer {
        if op == "has" {
            return Ok(json!(self.planted.is_none() && self.ids.token().is_some()));
        }
        self.planted()?;
        match op {
            "get" => match args.flag_or("create", true)? {
                true => Ok(json!(self.ids.get_or_create()?.expose())),
                false => Ok(json!(self.ids.token().map(Token::expose))),
            },
            "is_new" => Ok(json!(self.ids.is_new()?)),
            "is_from_cookie" => Ok(json!(self.ids.is_from_cookie()?)),
            "is_from_form" => Ok(json!(self.ids.is_from_form()?)),
            "is_from_url" => Ok(json!(self.ids.is_from_url()?)),
            "flush_cookie" => done(self.ids.flush_cookie()),
            "force_cookie" => done(self.ids.force_cookie(args.text("bid")?.parse()?)),
            "hidden_field" => Ok(json!(self.ids.hidden_field()?)),
            "encode_url" => {
                let style = match args.text_or("style", "querystring")? {
                    "querystring" => UrlStyle::Query,
                    "inline" => UrlStyle::Path,
                    style => return Err(Failure::Nonsense(format!("style {style}"))),
                };
                let create = args.flag_or("create", true)?;
                Ok(json!(self.ids.encode_url(args.text("url")?, style, create)?))
            }
            _ => unknown(op),
        }
    }

    fn data_step(
        &mut self,
        op: &str,
        args: Args<'_>,
        data: &Data,
        connection: &mut Connection,
    ) -> Answer {
        if op == "get_session_data" {
            let session = self.made(data, connection, args.flag_or("create", true)?)?;
            return connection.bind(args, session);
        }
        self.planted()?;
        connection.used = true;
        let Some(sessions) = &data.sessions else {
            return Ok(if op == "has_session_data" { json!(false) } else { Json::Null });
        };
        let txn = &connection.txn;
        match op {
            "has_session_data" => Ok(json!(sessions.has(txn, &self.ids)?)),
            "clear" => done(sessions.clear(txn, &self.ids).map(drop)),
            "get_by_key" => {
                let session = sessions.by_key().get(txn, args.key("key")?)?;
                connection.bind(args, session)
            }
            _ => unknown(op),
        }
    }

    /// What is no token can only be planted here, around sessile: its ids hold nothing else.
    fn planted(&self) -> Result<(), Failure> {
        match &self.planted {
            Some(id) => Ok(id.parse::<Token>().map(drop)?),
            None => Ok(()),
        }
    }
}

/// The sessions at a path of the original's, if there is a container.
fn sessions_at(path: &str, store: &Store) -> Option<RequestSessions> {
    let container = store.container(path.strip_prefix(FOLDER)?).ok()?;
    Some(RequestSessions::new(&container).unknown_token(UnknownToken::Adopt))
}

/// What is found at a path of the original's site.
fn published(path: &str) -> Option<&'static str> {
    let segments: Vec<_> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    Some(match segments[..] {
        [] | ["index_html"] => "/index_html",
        ["folder"] | ["folder", "index_html"] => "/folder/index_html",
        ["folder", "doc"] => "/folder/doc",
        _ => return None,
    })
}

fn cookie(name: &str, value: &str) -> Result<HeaderValue, Failure> {
    const UNRESERVED: &percent_encoding::AsciiSet =
        &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    let text = format!("{name}={}", utf8_percent_encode(value, UNRESERVED));
    HeaderValue::try_from(text).map_err(|error| Failure::Nonsense(error.to_string()))
}

/// The name of a cookie, and its value and attributes.
fn attributes(text: &str) -> (String, Json) {
    let mut parts = text.split("; ");
    let (name, value) = parts.next().and_then(|pair| pair.split_once('=')).unwrap_or_default();
    let mut attributes = Map::from_iter([("value".to_owned(), json!(value))]);
    for part in parts {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name, json!(value)),
            None => (part, json!(true)),
        };
        attributes.insert(name.to_ascii_lowercase(), value);
    }
    (name.to_owned(), attributes.into())
}

fn refused(reason: &str) -> Error {
    Error::Cookie { reason: reason.to_owned() }
}

/// The ids of a trace: four that it may use at will, and those that were made since.
pub(crate) struct Tokens {
    good: Vec<Token>,
    made: Vec<Token>,
}

impl Tokens {
    fn new() -> Result<Self, Error> {
        let good = (0..4).map(|_| Token::random()).collect::<Result<_, _>>()?;
        Ok(Tokens { good, made: Vec::new() })
    }

    fn note(&mut self, token: &Token) {
        if !self.good.contains(token) && !self.made.contains(token) {
            self.made.push(token.clone());
        }
    }

    /// Each token, and what it is called.
    fn named(&self) -> impl Iterator<Item = (&Token, String)> {
        let good = self.good.iter().zip(1..).map(|(token, n)| (token, format!("<good:{n}>")));
        let made = self.made.iter().zip(1..).map(|(token, n)| (token, format!("{OWN_BID}{n}>")));
        good.chain(made)
    }

    /// Puts tokens in place of their names.
    pub(crate) fn reveal(&self, json: &Json) -> Json {
        each_text(json, &|text| {
            self.named().fold(text.to_owned(), |text, (token, name)| {
                if text.contains(&name) { text.replace(&name, &token.expose()) } else { text }
            })
        })
    }

    /// Puts names in place of tokens, and of the keys that sessions are filed under.
    pub(crate) fn conceal(&self, json: &Json) -> Json {
        each_text(json, &|text| {
            self.named().fold(text.to_owned(), |text, (token, name)| {
                text.replace(&token.expose(), &name).replace(&listening::token(&token.key()), &name)
            })
        })
    }
}

/// The same value with other texts, those of names in objects included.
pub(crate) fn each_text(json: &Json, change: &impl Fn(&str) -> String) -> Json {
    match json {
        Json::String(text) => change(text).into(),
        Json::Array(items) => items.iter().map(|item| each_text(item, change)).collect(),
        Json::Object(pairs) => {
            let pair = |(name, value): (&String, _)| (change(name), each_text(value, change));
            pairs.iter().map(pair).collect::<Map<_, _>>().into()
        }
        other => other.clone(),
    }
}
