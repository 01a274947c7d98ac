//! A token in a URL: in the query, or as the first two segments of the path.
//!
//! ```text
//!   query   https://example.com/shop/cart?page=2&session=TOKEN#end
//!   path    https://example.com/session/TOKEN/shop/cart?page=2#end
//! ```
//!
//! Everything else in the URL stays as it was written, byte by byte.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::Token;

/// What is not escaped in a name: neither a query nor a path gives a meaning to these.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The parts of a URL, or of a reference to one.
struct Parts<'a> {
    /// Scheme and host, as in `https://example.com`; empty in a reference.
    origin: &'a str,
    path: &'a str,
    query: Option<&'a str>,
    /// With its `#`; empty if there is none.
    fragment: &'a str,
}

impl<'a> Parts<'a> {
    fn of(url: &'a str) -> Self {
        let (url, fragment) = url.split_at(url.find('#').unwrap_or(url.len()));
        let (url, query) = match url.split_once('?') {
            Some((url, query)) => (url, Some(query)),
            None => (url, None),
        };
        let is_scheme = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
        };
        let host = match url.split_once("//") {
            Some(("", _)) => Some(2),
            Some((scheme, _)) if scheme.strip_suffix(':').is_some_and(is_scheme) => {
                Some(scheme.len() + 2)
            }
            _ => None,
        };
        let end = |host: usize| url[host..].find('/').map_or(url.len(), |length| host + length);
        let (origin, path) = url.split_at(host.map_or(0, end));
        Parts { origin, path, query, fragment }
    }
}

/// What the first two segments of a path say, if the first is the name, and the path after them.
pub(super) fn claim<'a>(path: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let (first, rest) = path.strip_prefix('/')?.split_once('/')?;
    if !percent_decode_str(first).eq(name.bytes()) {
        return None;
    }
    Some(rest.split_at(rest.find('/').unwrap_or(rest.len())))
}

/// Puts a token into the query. One that was there is replaced: two would contradict each other.
pub(super) fn with_query(url: &str, name: &str, token: &Token) -> String {
    let Parts { origin, path, query, fragment } = Parts::of(url);
    let is_ours = |pair: &&str| {
        form_urlencoded::parse(pair.as_bytes()).next().is_some_and(|(found, _)| found == name)
    };
    let others: Vec<_> =
        query.unwrap_or_default().split('&').filter(|pair| !is_ours(pair)).collect();
    let (others, name) = (others.join("&"), utf8_percent_encode(name, ESCAPED));
    let separator = if others.is_empty() { "" } else { "&" };
    format!("{origin}{path}?{others}{separator}{name}={}{fragment}", token.expose())
}

/// Puts a token in front of the path, in place of one that was there.
pub(super) fn with_path(url: &str, name: &str, token: &Token) -> String {
    let Parts { origin, path, query, fragment } = Parts::of(url);
    let path = match claim(path, name) {
        Some((value, rest)) if value.parse::<Token>().is_ok() => rest,
        _ => path,
    };
    let slash = if path.is_empty() || path.starts_with('/') { "" } else { "/" };
    let (question, query) = query.map_or(("", ""), |query| ("?", query));
    let name = utf8_percent_encode(name, ESCAPED);
    format!("{origin}/{name}/{}{slash}{path}{question}{query}{fragment}", token.expose())
}
