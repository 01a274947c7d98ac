//! Whoever steals the files of a store, a backup or an export cannot come as anybody: no token is in them,
//! however it might be written down.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use sessile::{
    Container, Error, ExportOptions, Key, ManualClock, Options, Policy, Store, Time, Token,
};

/// How a token may be written down. Half a token is enough to be found.
const ENCODINGS: [&str; 8] =
    ["raw", "raw, last half", "hex", "HEX", "base64", "base64url", "LE i128", "LE i128, last half"];

fn encoded(token: &Token) -> [Vec<u8>; 8] {
    let text = token.expose();
    let bytes = URL_SAFE_NO_PAD.decode(&text).unwrap();
    let (first, last) = bytes.split_at(16);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let little = |half: &[u8]| half.iter().rev().copied().collect::<Vec<_>>();
    [
        // A big-endian number is the bytes themselves.
        first.to_vec(),
        last.to_vec(),
        hex.clone().into_bytes(),
        hex.to_uppercase().into_bytes(),
        STANDARD_NO_PAD.encode(&bytes).into_bytes(),
        text.into_bytes(),
        little(first),
        little(last),
    ]
}

/// Finds tokens in bytes.
struct Scan {
    /// Whether an encoding begins with these two bytes.
    begins: Vec<bool>,
    /// By the first eight bytes: the whole, and how it is encoded.
    patterns: HashMap<[u8; 8], Vec<(Vec<u8>, &'static str)>>,
    /// What was looked at.
    bytes: usize,
    artefacts: usize,
}

impl Scan {
    fn new(tokens: &[Token]) -> Self {
        let mut patterns: HashMap<_, Vec<_>> = HashMap::new();
        let mut begins = vec![false; 1 << 16];
        for token in tokens {
            for (pattern, encoding) in encoded(token).into_iter().zip(ENCODINGS) {
                begins[usize::from(u16::from_be_bytes([pattern[0], pattern[1]]))] = true;
                let head: [u8; 8] = pattern[..8].try_into().unwrap();
                patterns.entry(head).or_default().push((pattern, encoding));
            }
        }
        Scan { begins, patterns, bytes: 0, artefacts: 0 }
    }

    /// The encodings of tokens that stand in some bytes.
    fn hits(&mut self, bytes: &[u8]) -> Vec<&'static str> {
        self.bytes += bytes.len();
        self.artefacts += 1;
        let mut hits = Vec::new();
        for (at, head) in bytes.windows(8).enumerate() {
            if !self.begins[usize::from(u16::from_be_bytes([head[0], head[1]]))] {
                continue;
            }
            for (pattern, encoding) in self.patterns.get(head).into_iter().flatten() {
                if bytes[at..].starts_with(pattern) {
                    hits.push(*encoding);
                }
            }
        }
        hits
    }

    /// The same for all files of a directory, with the names of the files.
    fn hits_in(&mut self, directory: &Path) -> Vec<String> {
        let mut hits = Vec::new();
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let found = self.hits(&fs::read(&path).unwrap());
            let shown = |encoding| format!("{}: {encoding}", path.display());
            hits.extend(found.into_iter().map(shown));
            hits.extend(
                self.hits(path.to_string_lossy().as_bytes()).into_iter().map(str::to_owned),
            );
        }
        hits
    }
}

fn tokens(count: usize) -> Vec<Token> {
    (0..count).map(|_| Token::random().unwrap()).collect()
}

/// A store in which sessions lived in every way, under a thousand tokens and those they were given later.
fn lived_in(path: &Path, known: &mut Vec<Token>) -> (Store, Container) {
    let clock = ManualClock::new(Time::from_secs(1_000));
    let options = Options::new().segment_bytes(64 << 10).clock(clock.clone()).sweep_every(None);
    let store = options.on_end("tell", |_, _, _| Err("not yet".into())).open(path).unwrap();
    let policy = Policy::new().timeout_mins(20).on_end("tell");
    let visitors = store.container_with("visitors", policy).unwrap();
    for (i, token) in known.clone().iter().enumerate() {
        let fresh = Token::random().unwrap();
        store
            .transact(|txn| {
                let session = txn.create(&visitors, token)?;
                session.insert("cart", ["tea"])?;
                session.bind(&format!("user {}", i % 50), "Firefox")
            })
            .unwrap();
        if i % 5 == 0 {
            let find = |txn: &sessile::Transaction| txn.get(&visitors, token)?.ok_or(Error::Ended);
            store.transact(|txn| find(txn)?.rotate(&fresh)?.add("logins", 1)).unwrap();
            known.push(fresh);
        }
        if i % 10 == 1 {
            store.transact(|txn| txn.remove(&visitors, token)).unwrap();
        }
        clock.advance_secs(if i == 300 { 7_200 } else { 1 });
    }
    store.sweep().unwrap();
    store.transact(|txn| txn.end_all_of(&visitors, "user 7")).unwrap();
    (store, visitors)
}

#[test]
fn no_token_is_in_what_can_be_stolen() {
    let directory = tempfile::tempdir().unwrap();
    let [open, monday, compacted] =
        ["store", "monday", "tuesday"].map(|name| directory.path().join(name));
    let mut known = tokens(1_000);
    let (store, visitors) = lived_in(&open, &mut known);
    let mut scan = Scan::new(&known);
    let mut hits = scan.hits_in(&open);

    store.backup_to(&monday).unwrap();
    hits.extend(scan.hits_in(&monday));
    let mut lines = Vec::new();
    let exported = store.export(&mut lines, &ExportOptions::new()).unwrap();
    hits.extend(scan.hits(&lines).into_iter().map(|encoding| format!("export: {encoding}")));
    let shown = format!(
        "{store:?} {visitors:?} {} {:?}",
        store.stats(),
        store.events().try_iter().collect::<Vec<_>>()
    );
    hits.extend(
        scan.hits(shown.as_bytes()).into_iter().map(|encoding| format!("shown: {encoding}")),
    );
    store.compact().unwrap();
    store.backup_to(&compacted).unwrap();
    hits.extend(scan.hits_in(&open));
    hits.extend(scan.hits_in(&compacted));
    store.close().unwrap();
    hits.extend(scan.hits_in(&open));

    let Scan { bytes, artefacts, .. } = scan;
    let (tokens, sessions) = (known.len(), exported.sessions);
    let text = format!(
        "{tokens} tokens in {} encodings are in none of {artefacts} artefacts of {bytes} bytes, \
         {sessions} sessions\n",
        ENCODINGS.len()
    );
    io::stdout().write_all(text.as_bytes()).unwrap();
    assert!(sessions > 300, "the export is not empty: {sessions}");
    assert_eq!(hits, <[String; 0]>::default());
}

/// The scan finds what is there: a token that is a key or a value, in each encoding, in the files, the
/// backup and the export.
#[test]
fn a_token_that_is_there_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let known = tokens(3);
    for (encoding, i) in ENCODINGS.into_iter().zip(0..) {
        for as_key in [true, false] {
            let path = directory.path().join(format!("{i} {as_key}"));
            let store = Options::new().segment_bytes(64 << 10).open(&path).unwrap();
            let shop = store.container_with("shop", Policy::new()).unwrap();
            let planted = &encoded(&known[1])[i];
            store
                .transact(|txn| match as_key {
                    true => txn.create(&shop, Key::from(&planted[..])).map(drop),
                    // Numbers would be written as numbers, one by one.
                    false => txn.create(&shop, "ada")?.insert("token", Bytes(planted)),
                })
                .unwrap();
            let mut scan = Scan::new(&known);
            let name = format!("{encoding}, as key: {as_key}");
            assert!(!scan.hits_in(&path).is_empty(), "in the log: {name}");
            let backup = path.with_extension("backup");
            store.backup_to(&backup).unwrap();
            assert!(!scan.hits_in(&backup).is_empty(), "in a backup: {name}");
            store.close().unwrap();
            let tables = fs::read(path.join("sessions.redb")).unwrap();
            assert!(!scan.hits(&tables).is_empty(), "in the tables: {name}");
        }
    }
}

/// Written as they are.
struct Bytes<'a>(&'a [u8]);

impl serde::Serialize for Bytes<'_> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(self.0)
    }
}
