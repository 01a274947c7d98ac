//! Which token a request carries: tables, arbitrary bytes, and how long it takes to say.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use sessile::web::{Ambiguity, Disagreement, Ids, Namespace, RequestIds, Source};
use sessile::{Clock, SystemClock, Token};

use super::{ALL, Asked, ids, say, token};

/// The tokens of the tables.
struct Names(Token, Token);

impl Names {
    fn new() -> Self {
        Names(Token::random().unwrap(), Token::random().unwrap())
    }

    /// The bytes that a text of a table stands for.
    fn bytes(&self, text: &str) -> Vec<u8> {
        let (a, b) = (self.0.expose(), self.1.expose());
        let text = text
            .replace("{A}", &a)
            .replace("{A1}", &a[1..])
            .replace("{A-}", &a[..42])
            .replace("{B}", &b);
        let mut pieces = text.split("\\x");
        let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
        for piece in pieces {
            bytes.push(u8::from_str_radix(&piece[..2], 16).unwrap());
            bytes.extend(piece[2..].bytes());
        }
        bytes
    }

    /// The same, as text.
    fn text(&self, text: &str) -> String {
        String::from_utf8(self.bytes(text)).unwrap()
    }

    /// What a request was found to carry, in the words of the table.
    fn describe(&self, found: &RequestIds) -> String {
        let source = match found.source() {
            Some(Source::Cookie) => "cookie",
            Some(Source::Form) => "form",
            Some(Source::Url) => "url",
            Some(Source::New) => "new",
            None => "",
        };
        match (found.token(), found.ambiguity(), found.claims()) {
            (Some(token), None, true) if *token == self.0 => format!("A {source}"),
            (Some(token), None, true) if *token == self.1 => format!("B {source}"),
            (None, Some(_), true) => "ambiguous".to_owned(),
            (None, None, true) => "nonsense".to_owned(),
            (None, None, false) => "nothing".to_owned(),
            other => format!("{other:?}"),
        }
    }
}

/// The rows of a table: what is no comment.
fn rows(table: &'static str) -> impl Iterator<Item = &'static str> {
    table.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

#[test]
fn requests_carry_what_the_table_says() {
    let names = Names::new();
    let mut cases = 0;
    for row in rows(include_str!("requests.txt")) {
        let (request, expected) = row.rsplit_once("=>").unwrap();
        let mut parts = request.split(" | ");
        let spaces = parts.next().unwrap().trim_end_matches('|').trim();
        let namespaces = spaces.chars().map(|c| match c.to_ascii_lowercase() {
            'c' => Namespace::Cookies,
            'f' => Namespace::Form,
            'u' => Namespace::Url,
            other => panic!("{other} is no namespace"),
        });
        let mut settings = ids(namespaces);
        if spaces.contains(|c: char| c.is_ascii_uppercase()) {
            settings = settings.on_disagreement(Disagreement::FirstNamespace);
        }
        let mut asked = Asked::new();
        for part in parts.map(str::trim).filter(|part| !part.is_empty()) {
            let (kind, value) = part.split_once(':').unwrap();
            let value = value.trim_start();
            asked = match kind {
                "cookie" => asked.cookie(names.bytes(value)),
                "query" => asked.query(names.text(value)),
                "form" => asked.form(names.bytes(value)),
                "path" => asked.path(names.text(value)),
                other => panic!("{other} is no part of a request"),
            };
        }
        assert_eq!(names.describe(&asked.read(&settings)), expected.trim(), "{row}");
        cases += 1;
    }
    say(&format!("{cases} requests carry what they should"));
    assert!(cases > 140, "{cases}");
}

#[test]
fn tokens_are_spelt_in_one_way() {
    let names = Names::new();
    let mut cases = 0;
    for row in rows(include_str!("spellings.txt")) {
        let mut columns = row.split_whitespace();
        let spelling = columns.next().unwrap().replace("EMPTY", "");
        for (namespace, expected) in ALL.into_iter().zip(columns) {
            let source = match expected {
                "yes" if spelling.contains("{A}") => {
                    format!("A {}", ["cookie", "form", "url"][namespace as usize])
                }
                "yes" => "a token".to_owned(),
                "no" => "nonsense".to_owned(),
                _ => continue,
            };
            let bytes = names.bytes(&spelling);
            let asked = match namespace {
                Namespace::Cookies => Asked::new().cookie([b"session=", &bytes[..]].concat()),
                Namespace::Form => Asked::new().form([b"session=", &bytes[..]].concat()),
                Namespace::Url => Asked::new()
                    .path(format!("/session/{}/page", String::from_utf8(bytes).unwrap())),
            };
            let found = asked.read(&ids([namespace]));
            match found.token() {
                Some(token) if source == "a token" => assert_eq!(token.expose(), spelling),
                _ => assert_eq!(names.describe(&found), source, "{namespace:?} {row}"),
            }
            cases += 1;
        }
    }
    say(&format!("{cases} spellings are what they should be"));
    assert!(cases > 250, "{cases}");
}

/// What is ambiguous says why.
#[test]
fn an_ambiguity_names_its_namespaces() {
    let [a, b] = [(); 2].map(|()| Token::random().unwrap().expose());
    let within = Asked::new().cookie(format!("session={a}; session={b}"));
    let found = within.read(&ids(ALL));
    assert_eq!(found.ambiguity(), Some(Ambiguity::Within(Namespace::Cookies)));
    let between = Asked::new().cookie(format!("session={a}")).query(format!("session={b}"));
    let found = between.read(&ids([Namespace::Form, Namespace::Url, Namespace::Cookies]));
    let expected = Ambiguity::Between(Namespace::Form, Namespace::Cookies);
    assert_eq!(found.ambiguity(), Some(expected));
    for mut found in [within.read(&ids(ALL)), between.read(&ids(ALL))] {
        assert!(found.token().is_none() && found.source().is_none() && found.is_new().is_err());
        assert!(![&a, &b].contains(&&found.get_or_create().unwrap().expose()));
        assert!(found.is_new().unwrap());
    }
}

/// The path is the program's, but for a token in front of it.
#[test]
fn a_token_is_taken_off_the_path() {
    let token = Token::random().unwrap().expose();
    for (asked, left) in [
        ("/session/{A}/folder/doc", "/folder/doc"),
        ("/session/{A}/", "/"),
        ("/session/{A}", "/"),
        ("/session/{A}/session/{A}/doc", "/session/{A}/doc"),
        ("/session/{A}//doc", "//doc"),
        ("/session/nonsense/folder/doc", "/session/nonsense/folder/doc"),
        ("/folder/session/{A}/doc", "/folder/session/{A}/doc"),
        ("/folder/doc", "/folder/doc"),
        ("/", "/"),
        ("*", "*"),
        ("", ""),
    ] {
        let [path, left] = [asked, left].map(|path| path.replace("{A}", &token));
        assert_eq!(Asked::new().path(&path).read(&ids([Namespace::Url])).path(), left);
        // Also where something else decides about the token.
        let other = format!("session={}", Token::random().unwrap().expose());
        let asked = Asked::new().path(&path).cookie(other);
        for which in [Disagreement::NoId, Disagreement::FirstNamespace] {
            assert_eq!(asked.read(&ids(ALL).on_disagreement(which)).path(), left, "{which:?}");
        }
        assert_eq!(Asked::new().path(&path).read(&ids([Namespace::Cookies])).path(), path);
    }
}

/// How many requests of each kind are made up.
fn cases() -> u32 {
    match std::env::var("SESSILE_SIMULATION").as_deref() {
        Ok("ci") => 100_000,
        _ => 10_000,
    }
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: cases(), ..ProptestConfig::default() }
}

/// Our cookies in a header as somebody would find them who knows nothing but the grammar.
fn cookies_in(header: &[u8]) -> Vec<Vec<u8>> {
    fn trimmed(bytes: &[u8]) -> &[u8] {
        let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
        let start = bytes.iter().position(|byte| !is_blank(byte)).unwrap_or(bytes.len());
        let end = bytes.iter().rposition(|byte| !is_blank(byte)).map_or(start, |end| end + 1);
        &bytes[start..end]
    }
    let pair = |pair: &[u8]| {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        let is_ours = trimmed(&pair[..equals]) == b"session";
        is_ours.then(|| trimmed(&pair[equals + 1..]).to_vec())
    };
    header.split(|byte| *byte == b';').filter_map(pair).collect()
}

/// What may stand in a header.
fn is_header(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == b'\t' || *byte >= 32 && *byte != 127)
}

/// Checks what was found in cookies against what is there.
fn check_cookies(headers: &[Vec<u8>], found: &RequestIds) -> Result<(), TestCaseError> {
    let values: Vec<_> = headers.iter().flat_map(|header| cookies_in(header)).collect();
    let text = |value: &Vec<u8>| String::from_utf8(value.clone()).ok();
    let mut tokens: Vec<Token> =
        values.iter().filter_map(text).filter_map(|text| text.parse().ok()).collect();
    tokens.dedup();
    prop_assert_eq!(found.claims(), !values.is_empty());
    prop_assert_eq!(found.ambiguity().is_some(), tokens.len() > 1);
    prop_assert_eq!(found.token(), tokens.first().filter(|_| tokens.len() == 1));
    Ok(())
}

/// Bytes of which some mean something.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![any::<u8>(), proptest::sample::select(&b";=& \t\"%/session,#?"[..])];
    const WORDS: [&[u8]; 10] = [
        b"session=",
        b"session",
        b"; session=",
        b"&session=",
        b"/session/",
        b"=",
        b"; ",
        b"%3d",
        b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        b"__________________________________________8",
    ];
    let words = proptest::sample::select(&WORDS[..]);
    let piece = prop_oneof![vec(byte, 0..8), words.prop_map(<[u8]>::to_vec)];
    vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// A change of some bytes: one is another, some are gone, some come twice.
fn mutated(mut bytes: Vec<u8>, changes: &[(u8, prop::sample::Index, u8)]) -> Vec<u8> {
    for (kind, at, byte) in changes {
        let at = at.index(bytes.len() + 1);
        let next = (at + usize::from(byte % 50)).min(bytes.len());
        match kind % 5 {
            0 if at < bytes.len() => bytes[at] = *byte,
            1 => bytes.insert(at, *byte),
            2 => drop(bytes.drain(at..next)),
            3 => {
                let twice = bytes[at..next].to_vec();
                bytes.splice(at..at, twice);
            }
            _ => bytes.insert(at, b";= \t\""[usize::from(byte % 5)]),
        }
    }
    bytes
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_bytes_are_a_request(
        cookies in vec(any_bytes(), 0..3), query in any_bytes(), form in any_bytes(), path in any_bytes(),
    ) {
        let cookies: Vec<_> = cookies.into_iter().filter(|cookie| is_header(cookie)).collect();
        let asked = cookies.iter().fold(Asked::new(), |asked, cookie| asked.cookie(cookie));
        check_cookies(&cookies, &asked.read(&ids([Namespace::Cookies])))?;
        let (query, path) = (String::from_utf8_lossy(&query), String::from_utf8_lossy(&path));
        let asked = asked.query(query).form(form).path(path.clone());
        for first in [Disagreement::NoId, Disagreement::FirstNamespace] {
            let found = asked.read(&ids(ALL).on_disagreement(first));
            // What is said holds together, and every part of it says the same alone.
            prop_assert!(found.token().is_none() || found.ambiguity().is_none());
            prop_assert!(found.claims() || found.token().is_none() && found.ambiguity().is_none());
            prop_assert_eq!(found.token().is_some(), found.source().is_some());
            prop_assert!(path.ends_with(found.path()) || found.path() == "/");
            let alone = ALL.map(|namespace| asked.read(&ids([namespace])));
            prop_assert_eq!(found.claims(), alone.iter().any(RequestIds::claims));
            let agree = alone.iter().filter_map(RequestIds::token).all(|token| Some(token) == found.token());
            if first == Disagreement::NoId {
                prop_assert!(agree || found.ambiguity().is_some());
            } else {
                let decides = alone.iter().find(|alone| alone.token().is_some() || alone.ambiguity().is_some());
                prop_assert_eq!(found.token(), decides.and_then(RequestIds::token));
            }
        }
    }

    #[test]
    fn a_mutated_cookie_is_no_token(
        bits in any::<[[u8; 32]; 2]>(),
        changes in vec((any::<u8>(), any::<prop::sample::Index>(), any::<u8>()), 0..4),
        alone in any::<bool>(),
    ) {
        let [mine, other] = bits.map(|bits| token(bits).expose());
        let good = match alone {
            true => format!("theme=dark; session={mine}; lang=de"),
            false => format!("session={mine};session={other}"),
        };
        let mut header = mutated(good.into_bytes(), &changes);
        header.retain(|byte| is_header(&[*byte]));
        let found = Asked::new().cookie(&header).read(&ids([Namespace::Cookies]));
        check_cookies(&[header], &found)?;
    }

    /// A token among other fields is found, whatever they are.
    #[test]
    fn a_token_in_a_form_is_found(
        bits in any::<[u8; 32]>(),
        fields in vec((".{0,6}", ".{0,6}"), 0..6),
        at in any::<prop::sample::Index>(),
        in_query in any::<bool>(),
    ) {
        let mut fields: Vec<_> = fields.into_iter().filter(|(name, _)| name != "session").collect();
        let token = token(bits);
        fields.insert(at.index(fields.len() + 1), ("session".to_owned(), token.expose()));
        let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let asked = if in_query { Asked::new().query(form) } else { Asked::new().form(form) };
        let found = asked.read(&ids(ALL));
        prop_assert_eq!(found.token(), Some(&token));
        prop_assert_eq!(found.source(), Some(Source::Form));
    }
}

/// How long it takes to read a request.
fn time(asked: &Asked, ids: &Ids) -> Duration {
    let clock = SystemClock::new();
    std::hint::black_box(asked.read(ids));
    clock.elapsed()
}

/// Sixteen times as much takes sixteen times as long, or two hundred and fifty-six times if something is
/// looked at again for each of its parts.
#[test]
fn time_is_in_proportion_to_length() {
    let token = Token::random().unwrap().expose();
    let (ours, others) = (format!("session={token}; "), "a=b; ".to_owned());
    let fill = |piece: &str, bytes: usize| piece.repeat(bytes / piece.len());
    let cookie = |text: String| Asked::new().cookie(text);
    let kinds: [(&str, &dyn Fn(usize) -> Asked); 12] = [
        ("other cookies", &|bytes| cookie(fill(&others, bytes))),
        ("our cookie again and again", &|bytes| cookie(fill(&ours, bytes))),
        ("our cookie behind others", &|bytes| cookie(fill(&others, bytes) + &ours)),
        ("nonsense under our name", &|bytes| cookie(fill("session=x;", bytes))),
        ("one long value", &|bytes| cookie(format!("session={}", "A".repeat(bytes)))),
        ("one long name", &|bytes| cookie("A".repeat(bytes))),
        ("semicolons", &|bytes| cookie(";".repeat(bytes))),
        ("equals signs", &|bytes| cookie("=".repeat(bytes))),
        ("blanks", &|bytes| cookie(" ".repeat(bytes))),
        ("no ASCII", &|bytes| cookie(fill("é=ü; ", bytes))),
        ("fields", &|bytes| {
            Asked::new().query(fill("a=%20b&", bytes)).form(fill("session=%41&", bytes))
        }),
        ("a long path", &|bytes| Asked::new().path(format!("/session/{}", fill("A/%41", bytes)))),
    ];
    let ids = ids(ALL);
    for (kind, asked) in kinds {
        let [short, long] = [4 << 10, 64 << 10].map(asked);
        let mut times = Vec::new();
        // Whatever else the machine does makes it look worse, never better.
        let is_in_proportion = (0..10).any(|_| {
            times = [&short, &long].map(|asked| time(asked, &ids)).to_vec();
            times[1] < times[0] * 80 + Duration::from_micros(200)
        });
        say(&format!("{kind}: {:?} for 4 KiB, {:?} for 64 KiB", times[0], times[1]));
        assert!(is_in_proportion, "{kind}: {times:?}");
    }
    // Ten thousand pairs, in one header and in as many.
    let pairs = Asked::new().cookie("session=x; ".repeat(9_999) + &ours).read(&ids);
    assert_eq!(pairs.token().unwrap().expose(), token);
    let headers = (0..10_000).fold(Asked::new(), |asked, _| asked.cookie("a=b"));
    assert_eq!(headers.cookie(&ours).read(&ids).token().unwrap().expose(), token);
}

/// A thousand times the same is still one; the other one among them is noticed, wherever it stands.
#[test]
fn one_that_differs_is_noticed_anywhere() {
    let [mine, other] = [(); 2].map(|()| format!("session={}", Token::random().unwrap().expose()));
    for at in 0..1_000 {
        let mut pairs = vec![&*mine; 1_000];
        let asked = Asked::new().cookie(pairs.join("; "));
        assert!(asked.read(&ids(ALL)).token().is_some());
        pairs[at] = &other;
        let found = Asked::new().cookie(pairs.join("; ")).read(&ids(ALL));
        assert_eq!((found.token(), found.ambiguity().is_some()), (None, true), "{at}");
    }
}
