//! What a cookie may look like, and what is set when.

use std::time::Duration;

use cookie::Cookie;
use http::HeaderValue;
use sessile::web::{CookieBuilder, CookieSettings, Ids, Namespace, RequestIds, SameSite};
use sessile::{Error, Time, Token};

use super::{Asked, ids, named, say};

const NOW: Time = Time::from_secs(1_000_000_800);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What is wrong with settings.
fn refused(builder: CookieBuilder) -> String {
    match builder.build() {
        Err(Error::Cookie { reason }) => reason,
        other => panic!("not refused: {other:?}"),
    }
}

fn builder() -> CookieBuilder {
    CookieSettings::builder()
}

/// The answer to a first visit.
fn set(cookie: CookieSettings) -> HeaderValue {
    let mut ids = Asked::new().read(&Ids::new().cookie(cookie));
    ids.get_or_create().unwrap();
    ids.set_cookies(NOW).remove(0)
}

fn texts(ids: &RequestIds) -> Vec<String> {
    ids.set_cookies(NOW).iter().map(|cookie| cookie.to_str().unwrap().to_owned()).collect()
}

#[derive(Clone, Copy, Debug)]
enum Field {
    Name,
    Path,
    Domain,
}

impl Field {
    /// What is valid, and has a place in front, in the middle and at the end for another byte.
    fn around(self) -> [&'static str; 3] {
        match self {
            Field::Name => ["", "se", "ss"],
            Field::Path => ["/", "a", "b"],
            Field::Domain => ["", "www.exam", "ple.com"],
        }
    }

    /// What RFC 6265 and the original both allow.
    fn allows(self, byte: u8, position: usize) -> bool {
        match self {
            Field::Name => byte.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}&".contains(&byte),
            Field::Path => byte.is_ascii_graphic() && !b";,<>&".contains(&byte),
            Field::Domain => match byte {
                b'.' => position == 0 || position == 1,
                b'-' => position == 1,
                _ => byte.is_ascii_alphanumeric(),
            },
        }
    }
}

/// Every byte in every field at three positions: it is refused, or it comes back.
#[test]
fn what_is_valid_comes_back_and_nothing_else_is_there() {
    let (mut cases, mut valid) = (0, 0);
    for field in [Field::Name, Field::Path, Field::Domain] {
        for byte in 0..=255u8 {
            for position in 0..3 {
                let [front, left, right] = field.around();
                // As text a byte beyond ASCII is two.
                let c = char::from(byte);
                let text = match position {
                    0 => format!("{front}{c}{left}{right}"),
                    1 => format!("{front}{left}{c}{right}"),
                    _ => format!("{front}{left}{right}{c}"),
                };
                let built = match field {
                    Field::Name => builder().name(&text),
                    Field::Path => builder().name("session").path(&text),
                    Field::Domain => builder().name("session").domain(&text),
                }
                .build();
                let allowed = field.allows(byte, position);
                assert_eq!(built.is_ok(), allowed, "{field:?} {text:?}: {built:?}");
                cases += 1;
                let Ok(settings) = built else { continue };
                valid += 1;
                let header = set(settings.clone());
                let parsed = Cookie::parse(header.to_str().unwrap()).unwrap();
                assert_eq!(parsed.name(), settings.name());
                assert!(parsed.value().parse::<Token>().is_ok());
                assert_eq!(parsed.path(), settings.path());
                let bare = |domain: &str| domain.trim_start_matches('.').to_owned();
                assert_eq!(parsed.domain().map(bare), settings.domain().map(bare));
                let domain = settings.domain().map(|domain| format!("; Domain={domain}"));
                assert!(header.to_str().unwrap().contains(&domain.unwrap_or_default()));
                assert_eq!((parsed.secure(), parsed.http_only()), (Some(true), Some(true)));
                assert_eq!(parsed.same_site(), Some(cookie::SameSite::Lax));
                assert_eq!((parsed.expires(), parsed.max_age()), (None, None));
                // And comes back from a browser.
                let sent = format!("{}={}", parsed.name(), parsed.value());
                let ids = Asked::new().cookie(sent).read(&Ids::new().cookie(settings));
                assert!(ids.is_from_cookie().unwrap());
            }
        }
    }
    say(&format!("{cases} cases: {valid} are valid and come back, the others are refused"));
    assert_eq!(cases, 2_304);
}

#[test]
fn names_that_are_none() {
    let long = "n".repeat(5 << 10);
    for name in
        ["", ";", "a;b", "a=b", "a\rb", "a\nb", "a b", "a\tb", "a\u{7f}", "a\0b", "é", &long]
    {
        refused(builder().name(name));
    }
    // With a token in it a browser keeps it.
    let longest = "n".repeat(4_096 - 43);
    assert_eq!(
        set(builder().name(&longest).build().unwrap()).len(),
        4_096 + "=; HttpOnly; SameSite=Lax; Secure; Path=/".len()
    );
    refused(builder().name(longest + "n"));
}

#[test]
fn paths_and_domains_that_are_none() {
    for path in
        ["a", "a/b", "/;Secure", "/a b", "/a,b", "/a&b", "/<x>", "/\r\nX: y", "/é", "\0", " /"]
    {
        refused(builder().name("session").path(path));
    }
    refused(builder().name("session").path(format!("/{}", "p".repeat(1_024))));
    for domain in [
        ".com",
        "com",
        "a;b",
        "localhost",
        "..com",
        "a..b.com",
        ".example..com",
        "www.example.com.",
        ".example.com;",
        "-a.example.com",
        "a-.example.com",
        "www.exa mple.com",
        "www.exämple.com",
        ".",
        "..",
        "...",
        "www.example.com/",
        "http://www.example.com",
        "www.example.com:80",
        "[::1].a.b",
    ] {
        refused(builder().name("session").domain(domain));
    }
    refused(builder().name("session").domain(format!("{}.example.com", "l".repeat(64))));
    refused(builder().name("session").domain("a.".repeat(1_024) + "com"));
    let reason = refused(builder().name("session").domain("example.com"));
    assert_eq!(reason, "a domain has two dots, as in `.example.com` or `www.example.com`");
    for domain in [".example.com", "www.example.com", ".a.b.c", "a-b.c.d1", ".EXAMPLE.com"] {
        let settings = builder().name("session").domain(domain).build().unwrap();
        assert_eq!(settings.domain(), Some(domain));
    }
    let bare = builder().path("").domain("").build().unwrap();
    assert_eq!((bare.path(), bare.domain()), (None, None));
    let header = set(bare);
    let header = header.to_str().unwrap();
    assert!(!header.contains("Path") && !header.contains("Domain"), "{header}");
}

#[test]
fn prefixes_hold_in_any_case_of_letters() {
    for name in ["__Host-a", "__host-a", "__HOST-a", "__hOsT-", "__Host-Http-a"] {
        refused(builder().name(name).secure(false).same_site(None));
        refused(builder().name(name).domain(".example.com"));
        refused(builder().name(name).domain("www.example.com"));
        for path in ["/a", "", "//"] {
            refused(builder().name(name).path(path));
        }
        builder().name(name).build().unwrap();
    }
    for name in ["__Secure-a", "__secure-a", "__SECURE-"] {
        refused(builder().name(name).secure(false));
        builder().name(name).domain(".example.com").path("/a").build().unwrap();
    }
    for name in ["__Host", "__Hosta", "_Host-a", "a__Host-", "__Secure"] {
        builder().name(name).secure(false).domain(".example.com").path("/a").build().unwrap();
    }
    refused(builder().name("a").same_site(SameSite::None).secure(false));
    builder().name("a").same_site(SameSite::None).build().unwrap();
}

/// Who names nothing gets the strongest name that the other settings allow.
#[test]
fn the_name_is_chosen_by_what_is_allowed() {
    let name = |builder: CookieBuilder| builder.build().unwrap().name().to_owned();
    assert_eq!(name(builder()), "__Host-session");
    assert_eq!(name(builder().secure(false)), "session");
    assert_eq!(name(builder().domain(".example.com")), "session");
    assert_eq!(name(builder().path("/shop")), "session");
}

#[test]
fn lifetimes_are_clamped_and_dates_hold() {
    let lifetime = |builder: CookieBuilder| builder.build().unwrap().lifetime();
    for days in
        [400, 401, 100_000, u64::MAX / 86_400, u64::MAX / 86_400 + 1, i64::MAX as u64, u64::MAX]
    {
        assert_eq!(lifetime(builder().lifetime_days(days)), Some(400 * DAY), "{days}");
    }
    assert_eq!(lifetime(builder().lifetime(Duration::MAX)), Some(400 * DAY));
    assert_eq!(
        lifetime(builder().lifetime(400 * DAY - Duration::from_secs(1))).unwrap().as_secs(),
        34_559_999
    );
    // What is less than a second would be over before it arrives.
    for nothing in [Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(999)] {
        assert_eq!(lifetime(builder().lifetime(nothing)), None);
    }
    assert_eq!(lifetime(builder().lifetime_days(3).lifetime_days(0)), None);

    let ids = Ids::new().cookie(builder().lifetime_days(3).build().unwrap());
    let mut first = Asked::new().read(&ids);
    first.get_or_create().unwrap();
    for (now, date) in [
        (NOW, "Wed, 12 Sep 2001 02:00:00 GMT"),
        (Time::from_secs(0), "Sun, 04 Jan 1970 00:00:00 GMT"),
        (Time::from_secs(253_402_300_799), "Fri, 31 Dec 9999 23:59:59 GMT"),
        (Time::from_secs(u64::MAX), "Fri, 31 Dec 9999 23:59:59 GMT"),
        (Time::from_micros(u64::MAX), "Fri, 31 Dec 9999 23:59:59 GMT"),
    ] {
        let cookie = first.set_cookies(now).remove(0);
        let cookie = cookie.to_str().unwrap();
        assert!(cookie.ends_with(&format!("; Expires={date}")), "{cookie}");
    }
}

#[test]
fn a_new_program_gets_what_is_safe_today() {
    let mut first = Asked::new().read(&Ids::new());
    let token = first.get_or_create().unwrap().expose();
    let expected = format!("__Host-session={token}; HttpOnly; SameSite=Lax; Secure; Path=/");
    assert_eq!(texts(&first), [expected]);
    assert!(first.set_cookies(NOW)[0].is_sensitive());
    assert!(!format!("{:?}", first.set_cookies(NOW)).contains(&token));
}

/// A cookie is set when there is something new to say, and then the last word counts.
#[test]
fn cookies_are_set_when_there_is_something_to_say() {
    let (mine, other) = (Token::random().unwrap(), Token::random().unwrap());
    let asked = Asked::carrying(&mine, Namespace::Cookies);
    let ids = ids([Namespace::Cookies]);
    let attributes = "; HttpOnly; SameSite=Lax; Secure; Path=/";
    let set = |token: &Token| format!("session={}{attributes}", token.expose());
    let removed = format!("session=deleted{attributes}; Expires=Mon, 10 May 1971 11:59:00 GMT");

    let mut request = asked.read(&ids);
    assert!(texts(&request).is_empty());
    request.get_or_create().unwrap();
    assert!(texts(&request).is_empty(), "the visitor has it already");
    request.renew_cookie();
    assert_eq!(texts(&request), [set(&mine)]);
    request.flush_cookie().unwrap();
    assert_eq!(texts(&request), [&*removed]);
    assert_eq!(request.token(), Some(&mine));
    request.force_cookie(other.clone()).unwrap();
    assert_eq!(texts(&request), [set(&other)]);
    assert_eq!(request.token(), Some(&mine));
    assert!(request.is_from_cookie().unwrap());
    request.replace(other.clone());
    assert_eq!(texts(&request), [set(&other)]);
    assert_eq!(request.token(), Some(&other));
    assert!(request.is_new().unwrap() && !request.is_from_cookie().unwrap());

    // Without a token there is nothing to renew, and something to remove.
    let mut request = Asked::new().read(&ids);
    request.renew_cookie();
    assert!(texts(&request).is_empty());
    request.flush_cookie().unwrap();
    assert_eq!(texts(&request), [removed]);
    // What is removed is what was set: browsers go by name, domain and path.
    let cookie = builder().name("a").domain(".example.com").path("/shop").build().unwrap();
    let mut request = Asked::new().read(&Ids::new().cookie(cookie));
    request.flush_cookie().unwrap();
    assert!(texts(&request)[0].contains("; Path=/shop; Domain=.example.com; "), "{request:?}");
}

#[test]
fn without_the_namespace_no_cookie_is_set() {
    let ids = ids([Namespace::Form]);
    let mut request = Asked::new().read(&ids);
    request.get_or_create().unwrap();
    request.renew_cookie();
    request.replace(Token::random().unwrap());
    assert!(request.set_cookies(NOW).is_empty());
    for refused in [request.flush_cookie(), request.force_cookie(Token::random().unwrap())] {
        assert!(matches!(refused, Err(Error::Cookie { .. })), "{refused:?}");
    }
    assert!(request.set_cookies(NOW).is_empty());
}

#[test]
fn secure_cookies_keep_to_encrypted_connections() {
    let open = CookieSettings::builder().secure(false).build().unwrap();
    for (settings, https, sent) in [
        (Ids::new(), true, 1),
        (Ids::new(), false, 0),
        (Ids::new().behind_tls_proxy(true), false, 1),
        (Ids::new().cookie(open), false, 1),
    ] {
        let asked = if https { Asked::new() } else { Asked::new().http() };
        let mut request = asked.read(&settings);
        assert!(request.get_or_create().is_ok());
        assert_eq!(request.set_cookies(NOW).len(), sent, "{settings:?}");
        request.flush_cookie().unwrap();
        assert_eq!(request.set_cookies(NOW).len(), sent, "{settings:?}");
    }
}

/// Two id managers in one program keep out of each other's way.
#[test]
fn two_names_are_two_visitors() {
    let (shop, blog) = (named("shop"), named("blog"));
    let (mine, other) = (Token::random().unwrap(), Token::random().unwrap());
    let cookies = format!("shop={}; blog={}", mine.expose(), other.expose());
    let asked = Asked::new().cookie(cookies);
    assert_eq!(asked.read(&shop).token(), Some(&mine));
    assert_eq!(asked.read(&blog).token(), Some(&other));
    assert!(!asked.read(&named("attic")).claims());
}
