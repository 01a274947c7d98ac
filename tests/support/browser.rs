//! A browser, as far as a server can tell: it keeps cookies, and sends them back.

use std::collections::BTreeMap;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::header::{COOKIE, SET_COOKIE};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use tower_service::Service;

/// A browser, or a window of one: clones do not share their cookies.
#[derive(Clone)]
pub(crate) struct Browser {
    app: Router,
    pub(crate) cookies: BTreeMap<String, String>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Page {
    /// The cookies that were set, as they were written.
    pub(crate) fn set_cookies(&self) -> Vec<&str> {
        self.all(SET_COOKIE.as_str())
    }

    /// All values of a header.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.headers.get_all(name).iter().map(|value| value.to_str().expect("ASCII")).collect()
    }
}

impl Browser {
    pub(crate) fn new(app: &Router) -> Self {
        Browser { app: app.clone(), cookies: BTreeMap::new() }
    }

    /// Asks for a page, and keeps its cookies.
    pub(crate) async fn get(&mut self, path: &str) -> Page {
        let page = self.send(Method::GET, path).await;
        self.keep(&page);
        page
    }

    /// Asks for a page; its cookies wait to be [kept](Browser::keep).
    pub(crate) async fn send(&self, method: Method, path: &str) -> Page {
        let cookies: Vec<_> =
            self.cookies.iter().map(|(n, value)| format!("{n}={value}")).collect();
        let mut request = Request::builder().method(method).uri(path);
        if !cookies.is_empty() {
            request = request.header(COOKIE, cookies.join("; "));
        }
        let request = request.body(Body::empty()).expect("a request");
        let response = self.app.clone().call(request).await.expect("a router always answers");
        let (head, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.expect("a body");
        let text = String::from_utf8(body.to_vec()).expect("text");
        Page { status: head.status, headers: head.headers, text }
    }

    /// Keeps the cookies of a page, and removes what it removes.
    pub(crate) fn keep(&mut self, page: &Page) {
        for cookie in page.set_cookies() {
            let (pair, attributes) = cookie.split_once(';').unwrap_or((cookie, ""));
            let (name, value) = pair.split_once('=').expect("a name and a value");
            let attributes = attributes.to_ascii_lowercase();
            match attributes.contains("max-age=0") || attributes.contains(" 1971 ") {
                true => self.cookies.remove(name),
                false => self.cookies.insert(name.to_owned(), value.to_owned()),
            };
        }
    }
}
