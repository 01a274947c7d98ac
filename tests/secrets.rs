//! Tokens, keys and values never show in a `Debug`, a message or an error.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

#[allow(dead_code, reason = "it can do more than is asked of it here")]
#[path = "support/browser.rs"]
mod browser;

use std::any::type_name;
use std::collections::BTreeSet;
use std::error::Error as _;
use std::fmt::{Debug, Display};
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Path as Segment;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::routing::get;
use sessile::web::{
    Ambiguity, Conflicts, CookieSettings, Disagreement, Failed, Failures, Ids, Namespace,
    RequestHead, RequestSessions, SameSite, Session, SessionData, SessionLayer, Source, Stored,
    UnknownToken, UrlStyle,
};
use sessile::{Error, ManualClock, Options, Policy, Rule, Store, Time, Token, Value, Viewer};
use tower_layer::Layer as _;

use browser::Browser;

/// Stands in keys and values; whoever shows one of them shows it.
const CANARY: &str = "CANARY-7d1f";

#[derive(Default)]
struct Shown(String, BTreeSet<&'static str>);

impl Shown {
    fn debug<T: Debug>(&mut self, it: &T) {
        self.0 += &format!("{it:?}\n{it:#?}\n");
        self.1.insert(type_name::<T>());
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

/// G-S10, S35: what a request carries in cookie, form, URL and session is shown by nothing that handles it.
#[tokio::test]
async fn what_requests_carry_is_not_shown() {
    let shown = Arc::new(Mutex::new(Shown::default()));
    let mut secrets = heads(&mut shown.lock().unwrap());
    secrets.extend(handlers(&shown).await);

    let shown = shown.lock().unwrap();
    for secret in &secrets {
        assert!(!shown.0.contains(secret), "{secret} is shown: {}", shown.0);
    }
    // The canaries would have been seen: what is no secret stands beside them.
    assert!(secrets.len() > 15 && shown.0.contains("`secret`") && shown.0.contains("Sensitive"));
    for name in types_of_web() {
        let is_it =
            |shown: &&'static str| shown.split('<').next().is_some_and(|it| it.ends_with(&name));
        assert!(shown.1.iter().any(is_it), "no `{name}` was looked at");
    }
}

/// The public types in `src/web` that have a `Debug`.
fn types_of_web() -> Vec<String> {
    let mut names = Vec::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/web");
    for file in folder.read_dir().unwrap() {
        let source = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for line in source.lines() {
            let item = line.strip_prefix("pub struct ").or(line.strip_prefix("pub enum "));
            let name = item.and_then(|item| item.split(|c: char| !c.is_alphanumeric()).next());
            // A request's head, of which the layer sees no more than this, is not to be shown at all.
            names
                .extend(name.filter(|name| *name != "RequestHead").map(|name| format!("::{name}")));
        }
    }
    assert!(names.len() > 15, "{names:?}");
    names
}

/// Shows what is made of the heads of requests, and tells which secrets they had.
fn heads(shown: &mut Shown) -> Vec<String> {
    let store = Store::memory().unwrap();
    let visitors = store.container_with("visitors", Policy::new()).unwrap();
    let tokens = [(); 4].map(|()| Token::random().unwrap());
    let [cookie, query, form, path] = tokens.each_ref().map(Token::expose);
    let builder = CookieSettings::builder().name("sid").same_site(SameSite::Strict);
    shown.debug(&builder);
    let settings = builder.build().unwrap();
    shown.debug(&settings);
    shown.debug(&settings.same_site().unwrap());
    let namespaces = [Namespace::Cookies, Namespace::Form, Namespace::Url];
    shown.debug(&(Namespace::Form, UrlStyle::Path, UnknownToken::Replace));
    shown.debug(&namespaces[0]);
    shown.debug(&UrlStyle::Query);
    shown.debug(&UnknownToken::Adopt);
    let mut secrets = vec![CANARY.to_owned()];
    for how in [Disagreement::NoId, Disagreement::FirstNamespace] {
        shown.debug(&how);
        let ids = Ids::new().cookie(settings.clone()).namespaces(namespaces).on_disagreement(how);
        let ids = ids.auto_url_encoding(true);
        shown.debug(&ids);
        // Each of them by itself, two and all together, and what is none.
        for carried in 0..32 {
            let is = |bit: u32| carried & 1 << bit != 0;
            let mut headers = HeaderMap::new();
            if is(0) {
                let cookie = HeaderValue::from_str(&format!("sid={cookie}; sid={CANARY}")).unwrap();
                headers.append(header::COOKIE, cookie);
            }
            let fields = [(1, &query), (2, &form)].map(|(bit, token)| {
                if is(bit) { format!("sid={token}") } else { format!("sid={CANARY}") }
            });
            let path = if is(3) { format!("/sid/{path}/{CANARY}") } else { format!("/{CANARY}") };
            let form = is(4).then(|| fields[1].as_bytes());
            let (headers, query) = (&headers, Some(&*fields[0]));
            let head = RequestHead { headers, path: &path, query, form, https: true };
            let mut read = ids.read(&head);
            shown.debug(&read);
            shown.debug(&read.token());
            read.source().iter().for_each(|source| shown.debug::<Source>(source));
            read.ambiguity().iter().for_each(|why| shown.debug::<Ambiguity>(why));
            read.encode_url("/cart", UrlStyle::Query, true).unwrap();
            secrets.push(read.get_or_create().unwrap().expose());
            shown.debug(&read);
            shown.debug(&read.set_cookies(Time::from_secs(1_000)));
            let forced = Token::random().unwrap();
            secrets.push(forced.expose());
            read.force_cookie(forced).unwrap();
            shown.debug(&read);
            shown.debug(&read.set_cookies(Time::from_secs(1_000)));
            read.flush_cookie().unwrap();
            shown.debug(&read);
        }
        let none = Ids::new().namespaces([Namespace::Form]);
        let head = HeaderMap::new();
        let (path, query) = ("/", Some(CANARY));
        let mut read =
            none.read(&RequestHead { headers: &head, path, query, form: None, https: true });
        shown.error(&read.flush_cookie().unwrap_err());
        shown.error(&read.encode_url(CANARY, UrlStyle::Query, false).unwrap_err());
    }
    // A setting is the program's own; that it is wrong is said without it all the same.
    shown.error(&CookieSettings::builder().name(format!("{CANARY};")).build().unwrap_err());
    shown.error(&CookieSettings::builder().path(format!("/{CANARY};")).build().unwrap_err());
    shown.error(&CookieSettings::builder().domain(format!("{CANARY};")).build().unwrap_err());
    let sessions = RequestSessions::new(&visitors);
    shown.debug(&sessions);
    shown.debug(&sessions.by_key());
    secrets.extend([cookie, query, form, path]);
    secrets
}

#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Secret(String);

impl SessionData for Secret {
    const NAME: &str = "secret";
}

/// Shows what handlers and the layer around them have, and tells which secrets there were.
async fn handlers(shown: &Arc<Mutex<Shown>>) -> Vec<String> {
    let store = Options::new().sweep_every(None).memory().unwrap();
    let events = store.events();
    let policy = Policy::new().session_bytes_max(1_000).attributes_max(5).principal_limit(2);
    let visitors = store.container_with("visitors", policy).unwrap();
    let secrets = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(shown);
    let layer = SessionLayer::new(&store, &visitors).on_conflict(Conflicts::Refuse);
    let layer = layer.on_error(move |error| {
        told.lock().unwrap().error(error);
        sessile::web::answer_to(error)
    });
    {
        let mut shown = shown.lock().unwrap();
        shown.debug(&layer);
        shown.debug(&layer.layer(()));
        shown.debug(&(Conflicts::LaterWins, Failures::Discard));
        shown.debug(&Conflicts::Refuse);
        shown.debug(&Failures::Commit);
        shown.debug(&Failed);
    }
    let (seen, kept) = (Arc::clone(shown), Arc::clone(&secrets));
    let fill = async move |session: Session, mut stored: Stored<Secret>| {
        seen.lock().unwrap().debug(&session);
        stored.0 = CANARY.to_owned();
        stored.save()?;
        session.login(CANARY, CANARY).await?;
        session.flash(CANARY)?;
        kept.lock().unwrap().push(session.csrf_token()?);
        let mut shown = seen.lock().unwrap();
        shown.debug(&session);
        shown.debug(&stored);
        shown.debug(&session.value("secret")?);
        shown.error(&session.get::<u64>("secret").unwrap_err());
        shown.error(&session.add("secret", 1).unwrap_err());
        shown.error(&session.union("secret", CANARY).unwrap_err());
        shown.error(&session.insert("secret", CANARY.repeat(1_000)).unwrap_err());
        let many = (0..9).map(|n| session.insert(&format!("{n}"), CANARY));
        shown.error(&many.collect::<Result<Vec<_>, _>>().unwrap_err());
        (1..9).try_for_each(|n| session.remove(&format!("{n}")))?;
        let forged = session.csrf_token()?;
        shown.debug(&session.is_csrf_token(&forged[1..])?);
        Ok::<_, Error>("filled")
    };
    let seen = Arc::clone(shown);
    let devices = async move |session: Session| {
        let devices = session.devices().await?;
        let errors = [
            session.take::<u64>("secret").await.err(),
            session.flashes::<u64>().await.err(),
            session.login(&CANARY.repeat(1_000), "").await.err(),
        ];
        let mut shown = seen.lock().unwrap();
        shown.debug(&devices);
        errors.iter().flatten().for_each(|error| shown.error(error));
        Err::<(), _>(Error::aborted("on purpose"))
    };
    let other = store.clone();
    let beside = visitors.clone();
    // It conflicts with what another has committed meanwhile, or with an end.
    let race = async move |session: Session, Segment(how): Segment<String>| {
        let key = session.key()?.expect("it was filled");
        session.get::<String>("secret")?;
        session.insert("secret", format!("{CANARY}!"))?;
        session.renew()?;
        other.transact(|txn| match &*how {
            "end" => txn.remove(&beside, &key).map(drop),
            _ => txn.get_or_create(&beside, &key)?.insert("secret", format!("{CANARY}?")),
        })?;
        Ok::<_, Error>(())
    };
    let app = Router::new()
        .route("/fill", get(fill))
        .route("/devices", get(devices))
        .route("/race/{how}", get(race))
        .layer(layer);
    let mut browser = Browser::new(&app);
    let mut planted = browser.clone();
    for cookie in [CANARY.to_owned(), Token::random().unwrap().expose()] {
        secrets.lock().unwrap().push(cookie.clone());
        planted.cookies.insert("__Host-session".to_owned(), format!("{cookie}; a=b"));
        let page = planted.send(Method::GET, "/devices").await;
        shown.lock().unwrap().debug(&page);
    }
    let twice = [(); 2].map(|()| Token::random().unwrap().expose());
    planted.cookies.insert("__Host-session".into(), twice.join("; __Host-session="));
    let page = planted.send(Method::GET, "/devices").await;
    shown.lock().unwrap().debug(&page);
    secrets.lock().unwrap().extend(twice);
    let page = browser.get("/fill").await;
    assert_eq!((page.status.as_u16(), &*page.text), (200, "filled"));
    for path in ["/devices", "/race/write", "/race/end"] {
        secrets.lock().unwrap().push(browser.cookies["__Host-session"].clone());
        let page = browser.send(Method::GET, path).await;
        assert_ne!(page.status.as_u16(), 200, "{path}");
        shown.lock().unwrap().debug(&page);
    }
    store.settle();
    let told: Vec<_> = events.try_iter().collect();
    assert!(told.len() >= 3, "{told:?}");
    shown.lock().unwrap().debug(&told);
    std::mem::take(&mut *secrets.lock().unwrap())
}
