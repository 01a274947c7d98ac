//! Tokens, keys and values never show in a `Debug`, a message or an error.

use std::error::Error as _;
use std::fmt::{Debug, Display};

use sessile::{Error, ManualClock, Options, Policy, Rule, Time, Token, Value, Viewer};

/// Stands in keys and values; whoever shows one of them shows it.
const CANARY: &str = "CANARY-7d1f";

#[derive(Default)]
struct Shown(String);

impl Shown {
    fn debug(&mut self, it: &dyn Debug) {
        self.0 += &format!("{it:?}\n{it:#?}\n");
    }

    fn display(&mut self, it: &dyn Display) {
        self.0 += &format!("{it}\n");
    }

    fn error(&mut self, error: &Error) {
        self.debug(error);
        self.display(error);
        let mut cause = error.source();
        while let Some(error) = cause {
            self.0 += &format!("{error:?}\n{error}\n");
            cause = error.source();
        }
    }
}

#[test]
fn secrets_are_not_shown() {
    let mut shown = Shown::default();
    let clock = ManualClock::new(Time::from_secs(1_000));
    let store = Options::new()
        .clock(clock.clone())
        .sweep_every(None)
        .resolver("decline", |merge| {
            assert!(!format!("{merge:?}").contains(CANARY));
            sessile::Resolution::Decline
        })
        .session_resolver("look", |merge| {
            assert!(!format!("{merge:?}").contains(CANARY));
            sessile::Resolution::Decline
        })
        .on_end("fail", |_, session, _| {
            assert!(!format!("{session:?}").contains(CANARY));
            Err(CANARY.into())
        })
        .end_attempts(1)
        .memory()
        .unwrap();
    let events = store.events();
    let policy = Policy::new()
        .limit(1)
        .session_bytes_max(200)
        .rule("declined", Rule::resolver("decline"))
        .on_end("fail");
    let shop = store.container_with("shop", policy).unwrap();
    let open = store.transact(|txn| {
        let session = txn.create(&shop, CANARY)?;
        session.insert("text", CANARY)?;
        session.insert("declined", CANARY)
    });
    shown.debug(&open.unwrap());

    let txn = store.begin().unwrap();
    let session = txn.get(&shop, CANARY).unwrap().unwrap();
    shown.debug(&store);
    shown.debug(&shop);
    shown.debug(&txn);
    shown.debug(&session);
    shown.debug(session.key());
    shown.debug(&session.value("text").unwrap());
    shown.debug(&session.iter().unwrap().collect::<Vec<_>>());
    shown.debug(&Value::of(CANARY));
    shown.debug(&txn.keys(&shop).unwrap().collect::<Vec<_>>());
    shown.debug(&txn.iter(&shop).unwrap().collect::<Vec<_>>());
    // serde's own message would quote the value.
    shown.error(&session.get::<u64>("text").unwrap_err());
    shown.error(&session.add("text", 1).unwrap_err());
    shown.error(&session.max("text", 1).unwrap_err());
    shown.error(&session.union("text", CANARY).unwrap_err());
    shown.error(&session.insert("text", CANARY.repeat(100)).unwrap_err());
    shown.error(&txn.create(&shop, CANARY).unwrap_err());
    shown.error(&txn.create(&shop, format!("{CANARY}2")).unwrap_err());
    shown.error(&txn.create(&shop, CANARY.repeat(100)).unwrap_err());

    // Conflicts: on an attribute, by a resolver, on an end.
    let write = |name: &str, read: bool| {
        let txn = store.begin().unwrap();
        let session = txn.get(&shop, CANARY).unwrap().unwrap();
        if read {
            session.value(name).unwrap();
        }
        session.insert(name, format!("{CANARY}!")).unwrap();
        txn
    };
    for name in ["text", "declined"] {
        let late = write(name, true);
        write(name, false).commit().unwrap();
        shown.error(&late.commit().unwrap_err());
    }
    let late = write("text", true);
    shown.debug(&store.transact(|txn| txn.remove(&shop, CANARY)).unwrap());
    shown.error(&late.commit().unwrap_err());
    store.settle();
    shown.debug(&events.try_iter().collect::<Vec<_>>());
    shown.display(&store.stats());

    let token = Token::random().unwrap();
    shown.debug(&token);
    shown.debug(&token.key());
    shown.error(&format!("{CANARY}{}", token.expose()).parse::<Token>().unwrap_err());

    assert!(!shown.0.contains(CANARY), "{}", shown.0);
    assert!(!shown.0.contains(&token.expose()));
    // The canary would have been seen: the names of attributes and the fingerprints are there.
    assert!(shown.0.contains("`text`") && shown.0.contains(&token.key().fingerprint()));
}

/// Who looks from outside is shown no more.
#[test]
fn a_viewer_shows_no_secrets() {
    let mut shown = Shown::default();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = Options::new().open(&path).unwrap();
    let shop = store.container_with("shop", Policy::new()).unwrap();
    store.transact(|txn| txn.create(&shop, CANARY)?.insert("text", CANARY)).unwrap();
    store.close().unwrap();

    let viewer = Viewer::open(&path).unwrap();
    shown.debug(&viewer);
    shown.debug(viewer.store());
    shown.debug(&viewer.containers());
    shown.debug(&viewer.sessions("shop").unwrap());
    let session = viewer.session("shop", CANARY).unwrap().unwrap();
    shown.debug(&session);
    shown.debug(&session.attributes().collect::<Vec<_>>());
    shown.error(&viewer.session("attic", CANARY).unwrap_err());
    drop(viewer);

    // Damaged wherever the canary stands, so that all that can be wrong with it is told.
    let tables = path.join("sessions.redb");
    let mut bytes = std::fs::read(&tables).unwrap();
    let canary = CANARY.as_bytes();
    let places: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(canary)).collect();
    places.iter().step_by(2).for_each(|at| bytes[at + canary.len()] ^= 1);
    std::fs::write(&tables, bytes).unwrap();
    let checked = Viewer::check(&path).unwrap();
    assert!(!checked.problems.is_empty());
    shown.debug(&checked);
    checked.problems.iter().for_each(|problem| shown.display(problem));

    assert!(!shown.0.contains(CANARY), "{}", shown.0);
    assert!(shown.0.contains("text") && shown.0.contains(&session.key().fingerprint()));
}
