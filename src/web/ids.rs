//! Which token a request carries, and how the answer hands it out.
//!
//! ```text
//!            Cookie      \                                           /  Set-Cookie
//!   request  form, query  >  Ids::read  ->  RequestIds  ->  answer  <   encoded URLs
//!            path        /                                           \  hidden fields
//! ```
//!
//! Reading is a pure function of the settings and the head of a request, and takes time in proportion to
//! its length. Whatever is not exactly a [`Token`] counts as nothing. What contradicts itself counts as
//! nothing too: a second, different token is most likely not the visitor's own (*cookie tossing*).

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cookie::Cookie;
use http::{HeaderMap, HeaderValue, header};

use crate::web::cookie::CookieSettings;
use crate::web::url;
use crate::{Error, Time, Token};

/// Where a request may carry its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// A cookie.
    Cookies,
    /// The query of the URL, or a form that was sent urlencoded. Links with a token in them are passed on,
    /// and end up in logs: only where cookies cannot be had.
    Form,
    /// The first two segments of the path: the name, and the token. The same holds.
    Url,
}

/// Where the token of a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It was made for this request.
    New,
    /// A cookie.
    Cookie,
    /// The query or a form.
    Form,
    /// The path.
    Url,
}

impl From<Namespace> for Source {
    fn from(namespace: Namespace) -> Self {
        match namespace {
            Namespace::Cookies => Source::Cookie,
            Namespace::Form => Source::Form,
            Namespace::Url => Source::Url,
        }
    }
}

/// What to make of a request that carries different tokens in different namespaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Disagreement {
    /// It carries none: [`RequestIds::ambiguity`] says so.
    #[default]
    NoId,
    /// It carries that of the namespace that comes first. This is weaker: with forms in front, a link from
    /// elsewhere puts a visitor into another session than their own. The original did so.
    FirstNamespace,
}

/// Why a request that carries tokens has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ambiguity {
    /// Two different ones in one namespace: two cookies of one name, say.
    Within(Namespace),
    /// Different ones in two namespaces.
    Between(Namespace, Namespace),
}

/// Where [`RequestIds::encode_url`] puts the token. Each needs its [`Namespace`] to be read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UrlStyle {
    /// Into the query: [`Namespace::Form`].
    Query,
    /// In front of the path: [`Namespace::Url`].
    Path,
}

/// The head of a request, and its form if there is one.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The path of the URL, as it was sent.
    pub path: &'a str,
    /// The query of the URL, as it was sent.
    pub query: Option<&'a str>,
    /// The body, if it is urlencoded and the caller has it.
    pub form: Option<&'a [u8]>,
    /// Whether the request came over an encrypted connection.
    pub https: bool,
}

/// Where the token of a request is looked for, and how it is handed out: the settings. Cheap to clone.
///
/// ```
/// use sessile::web::{CookieSettings, Ids, Namespace};
///
/// let ids = Ids::new(); // what a new program should use: cookies, and nothing else
///
/// let shop = CookieSettings::builder().name("shop").path("/shop").build()?;
/// let ids = Ids::new().cookie(shop).namespaces([Namespace::Cookies, Namespace::Form]);
/// # Ok::<(), sessile::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Ids(Arc<Settings>);

#[derive(Clone, Debug)]
struct Settings {
    cookie: CookieSettings,
    namespaces: Vec<Namespace>,
    auto_url_encoding: bool,
    on_disagreement: Disagreement,
    behind_tls_proxy: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            cookie: CookieSettings::default(),
            namespaces: vec![Namespace::Cookies],
            auto_url_encoding: false,
            on_disagreement: Disagreement::default(),
            behind_tls_proxy: false,
        }
    }
}

impl Ids {
    /// Tokens in cookies, with the [default settings](CookieSettings::default).
    pub fn new() -> Self {
        Self::default()
    }

    /// The settings of the cookie. Its name is that of the form field and of the URL segment, too.
    pub fn cookie(self, cookie: CookieSettings) -> Self {
        self.with(|settings| settings.cookie = cookie)
    }

    /// Where tokens are looked for, in this order. Without cookies none are set.
    pub fn namespaces(self, namespaces: impl IntoIterator<Item = Namespace>) -> Self {
        self.with(|settings| settings.namespaces = namespaces.into_iter().collect())
    }

    /// Whether [`RequestIds::link`] puts the token into the path. Needs [`Namespace::Url`].
    pub fn auto_url_encoding(self, auto: bool) -> Self {
        self.with(|settings| settings.auto_url_encoding = auto)
    }

    /// What to make of a request that carries different tokens.
    pub fn on_disagreement(self, on_disagreement: Disagreement) -> Self {
        self.with(|settings| settings.on_disagreement = on_disagreement)
    }

    /// Says that visitors reach the program through a proxy that encrypts, whatever the connection is that
    /// requests come in by. Otherwise `Secure` cookies go out on encrypted connections only.
    pub fn behind_tls_proxy(self, behind: bool) -> Self {
        self.with(|settings| settings.behind_tls_proxy = behind)
    }

    /// The settings of the cookie.
    pub fn cookie_settings(&self) -> &CookieSettings {
        &self.0.cookie
    }

    /// Whether tokens are looked for there.
    pub fn uses(&self, namespace: Namespace) -> bool {
        self.0.namespaces.contains(&namespace)
    }

    /// What a request says about its token.
    pub fn read(&self, request: &RequestHead<'_>) -> RequestIds {
        let mut ids = RequestIds {
            ids: self.clone(),
            held: None,
            claims: false,
            ambiguity: None,
            path: request.path.into(),
            https: request.https,
            outgoing: None,
            lifetime: None,
        };
        let name = self.0.cookie.name();
        let mut first: Option<(Token, Namespace)> = None;
        for &namespace in &self.0.namespaces {
            let found = match namespace {
                Namespace::Cookies => Found::in_cookies(name, request.headers),
                Namespace::Form => Found::in_forms(name, request),
                Namespace::Url => {
                    let (found, rest) = Found::in_path(name, request.path);
                    ids.path = rest.into();
                    found
                }
            };
            ids.claims |= found.claims;
            let is_settled = self.0.on_disagreement == Disagreement::FirstNamespace;
            if is_settled && (first.is_some() || ids.ambiguity.is_some()) {
                continue;
            }
            if found.differ {
                ids.ambiguity = Some(Ambiguity::Within(namespace));
            }
            match (&first, found.token) {
                (Some((other, before)), Some(token)) if *other != token => {
                    ids.ambiguity = Some(Ambiguity::Between(*before, namespace));
                }
                (None, Some(token)) => first = Some((token, namespace)),
                _ => {}
            }
        }
        if ids.ambiguity.is_none() {
            ids.held = first.map(|(token, namespace)| (token, namespace.into()));
        }
        ids
    }

    fn with(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        set(Arc::make_mut(&mut self.0));
        self
    }
}

/// What one namespace brings.
#[derive(Default)]
struct Found {
    /// Anything under our name.
    claims: bool,
    /// The first token under our name.
    token: Option<Token>,
    /// Whether there is another one.
    differ: bool,
}

impl Found {
    fn of<V: AsRef<str>>(values: impl Iterator<Item = V>) -> Self {
        let mut found = Found::default();
        for value in values {
            found.claims = true;
            let Ok(token) = value.as_ref().parse::<Token>() else { continue };
            if *found.token.get_or_insert_with(|| token.clone()) != token {
                found.differ = true;
                break;
            }
        }
        found
    }

    fn in_cookies(name: &str, headers: &HeaderMap) -> Self {
        let texts: Vec<_> = headers.get_all(header::COOKIE).iter().map(text).collect();
        let cookies = texts.iter().flat_map(|text| Cookie::split_parse(&**text)).flatten();
        Found::of(
            cookies.filter(|cookie| cookie.name() == name).map(|cookie| cookie.value().to_owned()),
        )
    }

    fn in_forms(name: &str, request: &RequestHead<'_>) -> Self {
        let texts = [request.query.map(str::as_bytes), request.form];
        let pairs = texts.into_iter().flatten().flat_map(form_urlencoded::parse);
        Found::of(pairs.filter(|(found, _)| found == name).map(|(_, value)| value))
    }

    /// Also the path that is left for the program: one with nonsense in the place of a token is no page's.
    fn in_path<'a>(name: &str, path: &'a str) -> (Self, &'a str) {
        let Some((value, rest)) = url::claim(path, name) else { return (Found::default(), path) };
        let found = Found::of([value].into_iter());
        let rest = match (&found.token, rest) {
            (None, _) => path,
            (Some(_), "") => "/",
            (Some(_), rest) => rest,
        };
        (found, rest)
    }
}

/// A header's text. What is no ASCII is no token either, and must not be taken for a blank around one.
fn text(value: &HeaderValue) -> Cow<'_, str> {
    match value.to_str() {
        Ok(text) => text.into(),
        Err(_) => {
            let ascii = |&byte: &u8| {
                if byte.is_ascii() { byte.into() } else { char::REPLACEMENT_CHARACTER }
            };
            value.as_bytes().iter().map(ascii).collect()
        }
    }
}

/// What a request says about its token, and what becomes of it until the answer is sent.
#[derive(Clone)]
pub struct RequestIds {
    ids: Ids,
    held: Option<(Token, Source)>,
    claims: bool,
    ambiguity: Option<Ambiguity>,
    path: Arc<str>,
    https: bool,
    outgoing: Option<Outgoing>,
    /// How long the cookie lasts, if not as long as the settings say.
    lifetime: Option<Duration>,
}

/// The cookie of the answer.
#[derive(Clone, Debug)]
enum Outgoing {
    Set(Token),
    Remove,
}

impl RequestIds {
    /// The token, if there is one.
    pub fn token(&self) -> Option<&Token> {
        self.held.as_ref().map(|(token, _)| token)
    }

    /// Where the token comes from, if there is one.
    pub fn source(&self) -> Option<Source> {
        self.held.as_ref().map(|(_, source)| *source)
    }

    /// Whether the token was made for this request.
    ///
    /// # Errors
    ///
    /// [`Error::NoToken`] if there is none.
    pub fn is_new(&self) -> Result<bool, Error> {
        self.is_from(Source::New)
    }

    /// Whether the token comes from a cookie.
    ///
    /// # Errors
    ///
    /// [`Error::NoToken`] if there is none.
    pub fn is_from_cookie(&self) -> Result<bool, Error> {
        self.is_from(Source::Cookie)
    }

    /// Whether the token comes from the query or a form.
    ///
    /// # Errors
    ///
    /// [`Error::NoToken`] if there is none.
    pub fn is_from_form(&self) -> Result<bool, Error> {
        self.is_from(Source::Form)
    }

    /// Whether the token comes from the path.
    ///
    /// # Errors
    ///
    /// [`Error::NoToken`] if there is none.
    pub fn is_from_url(&self) -> Result<bool, Error> {
        self.is_from(Source::Url)
    }

    /// Whether the request brought anything under our name, be it nonsense.
    pub fn claims(&self) -> bool {
        self.claims
    }

    /// Why the request has no token although it carries some.
    pub fn ambiguity(&self) -> Option<Ambiguity> {
        self.ambiguity
    }

    /// The path without the token: what the program should look for.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The token; a new one from the operating system if there is none, which the cookie hands out.
    ///
    /// # Errors
    ///
    /// [`Error::Random`] if the operating system gives none. There still is no token then.
    pub fn get_or_create(&mut self) -> Result<&Token, Error> {
        if self.held.is_none() {
            self.replace(Token::random()?);
        }
        self.token().ok_or(Error::NoToken)
    }

    /// The session has another token from now on, as after a [rotation](crate::Session::rotate), which the
    /// cookie hands out.
    pub fn replace(&mut self, token: Token) {
        self.queue(Outgoing::Set(token.clone()));
        self.held = Some((token, Source::New));
    }

    /// How long cookies of this answer last, instead of what the settings say: for a visitor who is to be
    /// remembered longer than others. At most 400 days.
    pub fn set_lifetime(&mut self, lifetime: Option<Duration>) {
        self.lifetime = lifetime;
    }

    /// Sends the cookie again, so that its lifetime begins anew.
    pub fn renew_cookie(&mut self) {
        if let Some(token) = self.token().cloned() {
            self.queue(Outgoing::Set(token));
        }
    }

    /// Has the browser remove the cookie. The request keeps its token.
    ///
    /// # Errors
    ///
    /// [`Error::Cookie`] if cookies are no namespace.
    pub fn flush_cookie(&mut self) -> Result<(), Error> {
        self.needs_cookies()?;
        self.queue(Outgoing::Remove);
        Ok(())
    }

    /// Has the browser keep this token. The request keeps its own.
    ///
    /// # Errors
    ///
    /// [`Error::Cookie`] if cookies are no namespace.
    pub fn force_cookie(&mut self, token: Token) -> Result<(), Error> {
        self.needs_cookies()?;
        self.queue(Outgoing::Set(token));
        Ok(())
    }

    /// The `Set-Cookie` headers of the answer: one, or none. They are marked as sensitive.
    ///
    /// A `Secure` cookie is not sent over a connection that anybody could listen to: see
    /// [`Ids::behind_tls_proxy`].
    pub fn set_cookies(&self, now: Time) -> Vec<HeaderValue> {
        let Settings { cookie, behind_tls_proxy, .. } = &*self.ids.0;
        let is_safe = self.https || *behind_tls_proxy || !cookie.secure();
        let outgoing = self.outgoing.iter().filter(|_| is_safe);
        let header = |outgoing: &Outgoing| match outgoing {
            Outgoing::Set(token) => cookie.set(token, self.lifetime, now),
            Outgoing::Remove => cookie.remove(),
        };
        outgoing.map(header).collect()
    }

    /// A URL with the token in it, in place of one that was there. Everything else stays as it is; what
    /// HTML would have escaped is left to the template. For URLs of this program only: whoever gets the
    /// request gets the token.
    ///
    /// ```
    /// # use sessile::web::{CookieSettings, Ids, RequestHead, UrlStyle};
    /// # let head = RequestHead { headers: &http::HeaderMap::new(), path: "/", query: None, form: None, https: true };
    /// # let cookie = CookieSettings::builder().name("sid").build()?;
    /// # let mut ids = Ids::new().cookie(cookie).read(&head);
    /// let url = ids.encode_url("/cart?page=2#end", UrlStyle::Query, true)?;
    /// assert_eq!(url, format!("/cart?page=2&sid={}#end", ids.get_or_create()?.expose()));
    /// let url = ids.encode_url("/cart?page=2#end", UrlStyle::Path, true)?;
    /// assert_eq!(url, format!("/sid/{}/cart?page=2#end", ids.get_or_create()?.expose()));
    /// # Ok::<(), sessile::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoToken`] if there is none and `create` is off, otherwise as for
    /// [`get_or_create`](RequestIds::get_or_create).
    pub fn encode_url(
        &mut self,
        url: &str,
        style: UrlStyle,
        create: bool,
    ) -> Result<String, Error> {
        if create {
            self.get_or_create()?;
        }
        let token = self.token().ok_or(Error::NoToken)?;
        let name = self.ids.0.cookie.name();
        Ok(match style {
            UrlStyle::Query => url::with_query(url, name, token),
            UrlStyle::Path => url::with_path(url, name, token),
        })
    }

    /// A URL as pages should link to it: with the token in its path under
    /// [`auto_url_encoding`](Ids::auto_url_encoding), as it is otherwise. For URLs of this program only.
    ///
    /// # Errors
    ///
    /// As for [`get_or_create`](RequestIds::get_or_create).
    pub fn link(&mut self, url: &str) -> Result<String, Error> {
        match self.ids.0.auto_url_encoding && self.ids.uses(Namespace::Url) {
            true => self.encode_url(url, UrlStyle::Path, true),
            false => Ok(url.to_owned()),
        }
    }

    /// The field by which a form carries the token, as HTML.
    ///
    /// # Errors
    ///
    /// As for [`get_or_create`](RequestIds::get_or_create).
    pub fn hidden_field(&mut self) -> Result<String, Error> {
        let token = self.get_or_create()?.expose();
        let name = escaped(self.ids.0.cookie.name());
        Ok(format!(r#"<input type="hidden" name="{name}" value="{token}" />"#))
    }

    fn is_from(&self, source: Source) -> Result<bool, Error> {
        self.source().map(|from| from == source).ok_or(Error::NoToken)
    }

    fn queue(&mut self, outgoing: Outgoing) {
        if self.ids.uses(Namespace::Cookies) {
            self.outgoing = Some(outgoing);
        }
    }

    fn needs_cookies(&self) -> Result<(), Error> {
        match self.ids.uses(Namespace::Cookies) {
            true => Ok(()),
            false => Err(Error::Cookie { reason: "cookies are no namespace".to_owned() }),
        }
    }
}

/// Text between double quotes in HTML.
fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut html, c| {
        match c {
            '&' => html += "&amp;",
            '<' => html += "&lt;",
            '>' => html += "&gt;",
            '"' => html += "&quot;",
            '\'' => html += "&#39;",
            c => html.push(c),
        }
        html
    })
}

/// Leaves the path out: tokens may stand in it where nobody looks for them.
impl fmt::Debug for RequestIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestIds")
            .field("held", &self.held)
            .field("ambiguity", &self.ambiguity)
            .field("outgoing", &self.outgoing)
            .finish_non_exhaustive()
    }
}
