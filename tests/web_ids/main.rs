//! Tokens in requests: what is believed, what is handed out, and what nobody can make us believe.
//!
//! ```text
//!   requests.rs     which token a request carries: a table, and arbitrary bytes
//!   requests.txt    ... the table
//!   cookies.rs      what a cookie may look like, byte by byte, and what is set when
//!   urls.rs         tokens in URLs and forms
//!   sessions.rs     the session of a request, and tokens that mean none
//!   randomness.rs   tokens are all different, and no bit of them is likelier than the other
//! ```

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

mod cookies;
mod randomness;
mod requests;
mod sessions;
mod urls;

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue, header};
use sessile::Token;
use sessile::web::{CookieSettings, Ids, Namespace, RequestHead, RequestIds};

/// All namespaces, in an order.
const ALL: [Namespace; 3] = [Namespace::Cookies, Namespace::Form, Namespace::Url];

/// A request over an encrypted connection, until somebody says otherwise.
#[derive(Clone, Debug)]
struct Asked {
    headers: HeaderMap,
    path: String,
    query: Option<String>,
    form: Option<Vec<u8>>,
    https: bool,
}

impl Asked {
    fn new() -> Self {
        let (headers, path) = (HeaderMap::new(), "/".to_owned());
        Asked { headers, path, query: None, form: None, https: true }
    }

    /// Adds a `Cookie` header.
    fn cookie(mut self, header: impl AsRef<[u8]>) -> Self {
        let value = HeaderValue::from_bytes(header.as_ref()).unwrap();
        self.headers.append(header::COOKIE, value);
        self
    }

    fn query(mut self, query: impl Into<String>) -> Self {
        self.query = Some(query.into());
        self
    }

    fn form(mut self, form: impl Into<Vec<u8>>) -> Self {
        self.form = Some(form.into());
        self
    }

    fn path(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    fn http(mut self) -> Self {
        self.https = false;
        self
    }

    /// The request that carries a token there, under the name `session`.
    fn carrying(token: &Token, namespace: Namespace) -> Self {
        let token = token.expose();
        match namespace {
            Namespace::Cookies => Asked::new().cookie(format!("session={token}")),
            Namespace::Form => Asked::new().query(format!("session={token}")),
            Namespace::Url => Asked::new().path(format!("/session/{token}/page")),
        }
    }

    fn read(&self, ids: &Ids) -> RequestIds {
        ids.read(&RequestHead {
            headers: &self.headers,
            path: &self.path,
            query: self.query.as_deref(),
            form: self.form.as_deref(),
            https: self.https,
        })
    }
}

/// Prints past libtest, which would keep the figures of a test that passes to itself.
fn say(text: &str) {
    io::stdout().write_all(format!("{text}\n").as_bytes()).unwrap();
}

/// A token of these bits.
fn token(bits: [u8; 32]) -> Token {
    URL_SAFE_NO_PAD.encode(bits).parse().unwrap()
}

/// Ids under the name `session`.
fn ids(namespaces: impl IntoIterator<Item = Namespace>) -> Ids {
    named("session").namespaces(namespaces)
}

fn named(name: &str) -> Ids {
    Ids::new().cookie(CookieSettings::builder().name(name).build().unwrap())
}
