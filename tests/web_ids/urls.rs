//! Tokens in URLs and in hidden fields.

use proptest::prelude::*;
use sessile::web::{Ids, Namespace, RequestIds, UrlStyle};
use sessile::{Error, Token};

use super::{ALL, Asked, ids, named, say, token};

fn with_token(ids: &Ids) -> (RequestIds, String) {
    let mut request = Asked::new().read(ids);
    let token = request.get_or_create().unwrap().expose();
    (request, token)
}

#[test]
fn urls_carry_the_token() {
    let (mut request, token) = with_token(&ids(ALL));
    let old = Token::random().unwrap().expose();
    let cases = [
        // The URL, with the token in its query, in its path.
        ("/a", "/a?session={T}", "/session/{T}/a"),
        ("", "?session={T}", "/session/{T}"),
        ("/", "/?session={T}", "/session/{T}/"),
        ("a/b", "a/b?session={T}", "/session/{T}/a/b"),
        ("/a?", "/a?session={T}", "/session/{T}/a?"),
        ("?x=1", "?x=1&session={T}", "/session/{T}?x=1"),
        ("#top", "?session={T}#top", "/session/{T}#top"),
        ("/m?a=1", "/m?a=1&session={T}", "/session/{T}/m?a=1"),
        ("/m?a=1&b=%202#x", "/m?a=1&b=%202&session={T}#x", "/session/{T}/m?a=1&b=%202#x"),
        ("/m#x?y", "/m?session={T}#x?y", "/session/{T}/m#x?y"),
        ("/m?a#x#y", "/m?a&session={T}#x#y", "/session/{T}/m?a#x#y"),
        ("/m?&&", "/m?&&&session={T}", "/session/{T}/m?&&"),
        ("/p;v=1?q", "/p;v=1?q&session={T}", "/session/{T}/p;v=1?q"),
        ("/m?u=http://x.y/z", "/m?u=http://x.y/z&session={T}", "/session/{T}/m?u=http://x.y/z"),
        ("/m/http://x", "/m/http://x?session={T}", "/session/{T}/m/http://x"),
        ("http://h", "http://h?session={T}", "http://h/session/{T}"),
        ("http://h?q", "http://h?q&session={T}", "http://h/session/{T}?q"),
        ("http://h#f", "http://h?session={T}#f", "http://h/session/{T}#f"),
        ("https://h:8080/x/", "https://h:8080/x/?session={T}", "https://h:8080/session/{T}/x/"),
        ("//h/x", "//h/x?session={T}", "//h/session/{T}/x"),
        ("svn+ssh://h/x", "svn+ssh://h/x?session={T}", "svn+ssh://h/session/{T}/x"),
        ("/é?ü=ß#ö", "/é?ü=ß&session={T}#ö", "/session/{T}/é?ü=ß#ö"),
        // A token that was there gives way.
        ("/a?session={OLD}", "/a?session={T}", "/session/{T}/a?session={OLD}"),
        (
            "/a?b=1&session={OLD}&c=2",
            "/a?b=1&c=2&session={T}",
            "/session/{T}/a?b=1&session={OLD}&c=2",
        ),
        (
            "/a?sess%69on=x&sessions=y",
            "/a?sessions=y&session={T}",
            "/session/{T}/a?sess%69on=x&sessions=y",
        ),
        ("/session/{OLD}/a", "/session/{OLD}/a?session={T}", "/session/{T}/a"),
        ("http://h/session/{OLD}", "http://h/session/{OLD}?session={T}", "http://h/session/{T}"),
        ("/session/wide/a", "/session/wide/a?session={T}", "/session/{T}/session/wide/a"),
    ];
    for (url, query, path) in cases {
        let fill = |text: &str| text.replace("{T}", &token).replace("{OLD}", &old);
        for (style, expected) in [(UrlStyle::Query, query), (UrlStyle::Path, path)] {
            let encoded = request.encode_url(&fill(url), style, false).unwrap();
            assert_eq!(encoded, fill(expected), "{url:?} {style:?}");
            assert_eq!(
                request.encode_url(&encoded, style, false).unwrap(),
                encoded,
                "twice is once"
            );
        }
    }
    say(&format!("{} URLs in two styles", cases.len()));
}

/// Names may have characters that URLs and HTML give a meaning to.
#[test]
fn names_are_escaped() {
    let name = "a+b%41#'`";
    let ids = named(name).namespaces(ALL);
    let (mut request, token) = with_token(&ids);
    let field = request.hidden_field().unwrap();
    let expected = format!(r#"<input type="hidden" name="a+b%41#&#39;`" value="{token}" />"#);
    assert_eq!(field, expected);
    let query = request.encode_url("/x", UrlStyle::Query, false).unwrap();
    assert_eq!(query, format!("/x?a%2Bb%2541%23%27%60={token}"));
    let path = request.encode_url("/x", UrlStyle::Path, false).unwrap();
    assert_eq!(path, format!("/a%2Bb%2541%23%27%60/{token}/x"));

    let (_, query) = query.split_once('?').unwrap();
    for asked in [Asked::new().query(query), Asked::new().path(path)] {
        assert_eq!(asked.read(&ids).token(), request.token());
    }
}

#[test]
fn a_url_makes_a_token_when_it_is_to() {
    let mut request = Asked::new().read(&ids([Namespace::Form]));
    for style in [UrlStyle::Query, UrlStyle::Path] {
        assert!(matches!(request.encode_url("/", style, false), Err(Error::NoToken)));
    }
    assert!(request.token().is_none());
    let url = request.encode_url("/", UrlStyle::Query, true).unwrap();
    let token = request.token().unwrap().expose();
    assert_eq!(url, format!("/?session={token}"));
    assert!(request.is_new().unwrap());
    assert!(request.hidden_field().unwrap().contains(&token));
}

#[test]
fn links_carry_the_token_where_that_is_automatic() {
    let auto = ids([Namespace::Url]).auto_url_encoding(true);
    let (mut request, token) = with_token(&auto);
    assert_eq!(request.link("/a").unwrap(), format!("/session/{token}/a"));
    // Not where nobody would read it, and not where nobody asked for it.
    for plain in [ids([Namespace::Cookies]).auto_url_encoding(true), ids([Namespace::Url])] {
        let mut request = Asked::new().read(&plain);
        assert_eq!(request.link("/a").unwrap(), "/a");
        assert!(request.token().is_none());
    }
}

proptest! {
    /// A token that was put into a URL is read from it, and nothing else of the URL is lost.
    #[test]
    fn what_is_put_into_a_url_is_read_from_it(
        bits in any::<[u8; 32]>(),
        path in "(/[a-z%;:@.]{1,5}){0,4}/?", query in proptest::option::of("[a-z0-9=&%+;/?]{0,20}"), fragment in "(#.{0,5})?",
    ) {
        let query = query.map_or(String::new(), |query| format!("?{query}"));
        let url = format!("{path}{query}{fragment}");
        // What carries something under our name by itself is another test's.
        prop_assume!(!url.contains("session"));
        let ids = ids([Namespace::Form, Namespace::Url]);
        let mut request = Asked::carrying(&token(bits), Namespace::Form).read(&ids);
        let token = token(bits).expose();
        for (style, from_url) in [(UrlStyle::Query, false), (UrlStyle::Path, true)] {
            let encoded = request.encode_url(&url, style, false).unwrap();
            let seen = encoded.split('#').next().unwrap_or_default();
            let (path_seen, query_seen) = match seen.split_once('?') {
                Some((path, query)) => (path, Some(query.to_owned())),
                None => (seen, None),
            };
            let asked = Asked { query: query_seen, ..Asked::new().path(path_seen) };
            let found = asked.read(&ids);
            prop_assert_eq!(found.token(), request.token(), "{}", encoded);
            prop_assert_eq!(found.is_from_url().unwrap(), from_url);
            let without = encoded.replace(&format!("session={token}"), "").replace(&format!("/session/{token}"), "");
            let bare = |url: &str| url.replace(['?', '&'], "");
            prop_assert_eq!(bare(&without), bare(&url));
        }
    }
}
