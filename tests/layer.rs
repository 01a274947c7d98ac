//! A session for each request: looked up when it is asked for, committed before the answer, and never
//! the wrong one. The real layer in a router of axum, without a network.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]
#![expect(clippy::print_stdout, reason = "the test tells what it did")]

#[path = "support/browser.rs"]
mod browser;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use axum::response::IntoResponse;
use axum::routing::get;
use sessile::web::{
    Conflicts, CookieSettings, Failures, Ids, Namespace, Session, SessionData, SessionLayer, Stored,
};
use sessile::{
    Container, EndReason, Error, Event, ManualClock, Options, Policy, Rule, SessionId, Store, Time,
};
use tokio::sync::Barrier;
use tower_layer::Layer;

use browser::{Browser, Page};

/// A store with a container, and the layer above it.
struct Site {
    store: Store,
    visitors: Container,
    clock: ManualClock,
}

impl Site {
    fn new() -> Self {
        Site::with(Policy::new())
    }

    fn with(policy: Policy) -> Self {
        let clock = ManualClock::new(Time::from_secs(1_000_000_800));
        let store = Options::new().clock(clock.clone()).sweep_every(None).memory().unwrap();
        let visitors = store.container_with("visitors", policy.timeout_mins(20)).unwrap();
        Site { store, visitors, clock }
    }

    fn layer(&self) -> SessionLayer {
        SessionLayer::new(&self.store, &self.visitors)
    }

    fn browser(&self, routes: Router) -> Browser {
        Browser::new(&routes.layer(self.layer()))
    }

    /// Sees to it that all is committed that nobody has waited for: times of access.
    fn settle(&self) {
        let aside = self.store.container_with("aside", Policy::new()).unwrap();
        self.store.transact(|txn| txn.get_or_create(&aside, "n")?.add("n", 1)).unwrap();
    }

    fn len(&self) -> u64 {
        self.store.begin().unwrap().len(&self.visitors).unwrap()
    }
}

const COOKIE: &str = "__Host-session";

/// Routes that most tests need.
fn routes() -> Router {
    Router::new()
        .route("/plain", get(async || "no session"))
        .route(
            "/look",
            get(async |s: Session| s.get::<String>("name").map(Option::unwrap_or_default)),
        )
        .route("/set/{name}/{value}", get(set))
        .route("/get/{name}", get(read))
        .route("/add", get(async |s: Session| s.add("visits", 1)))
        .route(
            "/login/{user}",
            get(async |s: Session, Path(u): Path<String>| s.login(&u, "device").await),
        )
        .route("/renew", get(async |s: Session| s.renew()))
        .route("/logout", get(async |s: Session| s.logout()))
        .route("/logout-everywhere", get(async |s: Session| s.logout_everywhere().await))
        .route("/logout-others", get(async |s: Session| s.logout_others().await))
        .route("/whoami", get(async |s: Session| s.principal().map(Option::unwrap_or_default)))
        .route("/flash/{text}", get(async |s: Session, Path(text): Path<String>| s.flash(text)))
        .route(
            "/flashes",
            get(async |s: Session| Ok::<_, Error>(s.flashes::<String>().await?.join(","))),
        )
}

async fn set(session: Session, Path((name, value)): Path<(String, String)>) -> Result<(), Error> {
    session.insert(&name, value)
}

async fn read(session: Session, Path(name): Path<String>) -> Result<String, Error> {
    Ok(session.get::<String>(&name)?.unwrap_or_else(|| "-".to_owned()))
}

#[tokio::test]
async fn who_only_looks_leaves_nothing() {
    let site = Site::new();
    let mut browser = site.browser(routes());
    let before = site.store.stats();
    let page = browser.get("/plain").await;
    assert_eq!((page.all("vary"), page.all("cache-control")), (vec![], vec![]));
    // Not even a look at the store.
    assert_eq!(site.store.stats(), before);
    let page = browser.get("/look").await;
    assert_eq!((page.status, &*page.text), (StatusCode::OK, ""));
    assert_eq!((page.all("vary"), page.all("cache-control")), (vec!["Cookie"], vec!["private"]));
    assert!(page.set_cookies().is_empty());
    assert_eq!((site.len(), site.store.stats().commits), (0, before.commits));
}

#[tokio::test]
async fn the_first_write_begins_a_session() {
    let site = Site::new();
    let mut browser = site.browser(routes());
    let page = browser.get("/set/name/Ada").await;
    let [cookie] = page.set_cookies()[..] else { panic!("one cookie") };
    assert!(cookie.starts_with("__Host-session="), "{cookie}");
    for attribute in ["Path=/", "HttpOnly", "Secure", "SameSite=Lax"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    assert_eq!(page.all("cache-control"), ["no-store"]);
    assert_eq!(site.len(), 1);
    let page = browser.get("/look").await;
    assert_eq!((&*page.text, page.set_cookies().len()), ("Ada", 0));
    // What is stored does not let anybody in.
    let token: sessile::Token = browser.cookies[COOKIE].parse().unwrap();
    let txn = site.store.begin().unwrap();
    let keys = txn.keys(&site.visitors).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
    assert_eq!(keys, [token.key()]);
}

/// Two handlers that have both looked before either commits.
async fn meet(browser: &Browser, left: &str, right: &str) -> (Page, Page) {
    tokio::join!(browser.send(Method::GET, left), browser.send(Method::GET, right))
}

fn meeting(routes: Router, barrier: &Arc<Barrier>) -> Router {
    async fn set_late(
        State(barrier): State<Arc<Barrier>>,
        session: Session,
        Path((name, value)): Path<(String, String)>,
    ) -> Result<String, Error> {
        let before = session.get::<String>(&name)?.unwrap_or_default();
        session.insert(&name, value)?;
        barrier.wait().await;
        Ok(before)
    }
    async fn logout_late(
        State(barrier): State<Arc<Barrier>>,
        session: Session,
    ) -> Result<(), Error> {
        session.logout()?;
        barrier.wait().await;
        Ok(())
    }
    async fn flashes_late(
        State(barrier): State<Arc<Barrier>>,
        session: Session,
    ) -> Result<String, Error> {
        barrier.wait().await;
        Ok(session.flashes::<String>().await?.join(","))
    }
    async fn login_late(
        State(barrier): State<Arc<Barrier>>,
        session: Session,
    ) -> Result<(), Error> {
        session.login("ada", "device").await?;
        barrier.wait().await;
        Ok(())
    }
    let late = Router::new()
        .route("/late/set/{name}/{value}", get(set_late))
        .route("/late/logout", get(logout_late))
        .route("/late/login", get(login_late))
        .route("/late/flashes", get(flashes_late))
        .with_state(Arc::clone(barrier));
    routes.merge(late)
}

#[tokio::test]
async fn what_two_requests_write_is_merged() {
    let site = Site::new();
    let mut browser = site.browser(meeting(routes(), &Arc::new(Barrier::new(2))));
    browser.get("/set/name/Ada").await;
    let (left, right) = meet(&browser, "/late/set/cart/tea", "/late/set/theme/dark").await;
    assert_eq!((left.status, right.status), (StatusCode::OK, StatusCode::OK));
    for (name, value) in [("name", "Ada"), ("cart", "tea"), ("theme", "dark")] {
        assert_eq!(browser.get(&format!("/get/{name}")).await.text, value);
    }
    assert_eq!(site.store.stats().merges, 1);
}

#[tokio::test]
async fn of_two_that_cannot_be_merged_the_later_wins_and_that_is_told() {
    let site = Site::new();
    let mut browser = site.browser(meeting(routes(), &Arc::new(Barrier::new(2))));
    browser.get("/set/page/1").await;
    let events = site.store.events();
    let (left, right) = meet(&browser, "/late/set/page/2", "/late/set/page/3").await;
    assert_eq!((left.status, right.status), (StatusCode::OK, StatusCode::OK));
    let told = |event: Event| match event {
        Event::Overruled { attributes, .. } => Some(attributes),
        _ => None,
    };
    let told: Vec<_> = events.try_iter().filter_map(told).collect();
    assert_eq!(told, [["page"]]);
    assert_eq!(site.store.stats().overruled, 1);
}

#[tokio::test]
async fn conflicts_may_be_refused() {
    let site = Site::new();
    let routes = meeting(routes(), &Arc::new(Barrier::new(2)));
    let mut browser = Browser::new(&routes.layer(site.layer().on_conflict(Conflicts::Refuse)));
    browser.get("/set/page/1").await;
    let (left, right) = meet(&browser, "/late/set/page/2", "/late/set/page/3").await;
    let mut seen = [left.status, right.status];
    seen.sort();
    assert_eq!(seen, [StatusCode::OK, StatusCode::CONFLICT]);
}

/// S32: a save that comes after the logout.
#[tokio::test]
async fn an_ended_session_never_comes_back() {
    let site = Site::new();
    for _ in 0..50 {
        let mut browser = site.browser(meeting(routes(), &Arc::new(Barrier::new(2))));
        browser.get("/set/name/Ada").await;
        let old = browser.clone();
        let (saved, out) = meet(&browser, "/late/set/cart/tea", "/late/logout").await;
        assert_eq!((saved.status, out.status), (StatusCode::OK, StatusCode::OK));
        assert_eq!(site.len(), 0);
        let late = old.send(Method::GET, "/set/cart/tea").await;
        // Whoever comes with the cookie later is somebody new.
        assert_ne!(late.set_cookies()[0].split(['=', ';']).nth(1), Some(&*old.cookies[COOKIE]));
        browser.keep(&out);
        assert!(browser.cookies.is_empty());
        let store = &site.store;
        store.transact(|txn| txn.remove(&site.visitors, late_key(&late))).unwrap();
    }
}

fn late_key(page: &Page) -> sessile::Key {
    let token = page.set_cookies()[0].split(['=', ';']).nth(1).unwrap();
    token.parse::<sessile::Token>().unwrap().key()
}

#[tokio::test]
async fn a_save_that_meets_a_logout_removes_the_cookie() {
    let site = Site::new();
    let mut browser = site.browser(routes().route(
        "/slow",
        get({
            let (store, visitors) = (site.store.clone(), site.visitors.clone());
            async move |session: Session| {
                session.insert("cart", "tea")?;
                let key = session.key()?.unwrap();
                store.transact(|txn| txn.remove(&visitors, &key))?;
                Ok::<_, Error>("done")
            }
        }),
    ));
    browser.get("/set/name/Ada").await;
    let page = browser.get("/slow").await;
    assert_eq!((page.status, &*page.text), (StatusCode::OK, "done"));
    assert!(browser.cookies.is_empty(), "{page:?}");
    assert_eq!(site.len(), 0);
}

#[tokio::test]
async fn a_login_gives_a_new_token_and_keeps_the_rest() {
    let site = Site::new();
    let mut browser = site.browser(routes());
    browser.get("/set/cart/tea").await;
    let planted = browser.clone();
    browser.get("/login/ada").await;
    assert_ne!(planted.cookies, browser.cookies);
    assert_eq!(browser.get("/get/cart").await.text, "tea");
    assert_eq!(browser.get("/whoami").await.text, "ada");
    // Who has planted the old one has nothing; and a request that was late does not lose the new cookie.
    let page = planted.send(Method::GET, "/get/cart").await;
    assert_eq!((&*page.text, page.set_cookies().len()), ("-", 0));
    assert_eq!(site.len(), 1);
    // A visitor without a session may log in as well.
    let mut other = site.browser(routes());
    other.get("/login/eve").await;
    assert_eq!(other.get("/whoami").await.text, "eve");
}

#[tokio::test]
async fn of_two_logins_at_once_one_is_refused_and_keeps_the_others_cookie() {
    let site = Site::new();
    let mut browser = site.browser(meeting(routes(), &Arc::new(Barrier::new(2))));
    browser.get("/set/cart/tea").await;
    let (left, right) = meet(&browser, "/late/login", "/late/login").await;
    let mut seen = [left.status, right.status];
    seen.sort();
    assert_eq!(seen, [StatusCode::OK, StatusCode::CONFLICT]);
    browser.keep(&left);
    browser.keep(&right);
    assert_eq!(browser.get("/get/cart").await.text, "tea");
    assert_eq!(browser.get("/whoami").await.text, "ada");
}

#[tokio::test]
async fn a_flash_is_shown_once() {
    let site = Site::new();
    for _ in 0..20 {
        let mut browser = site.browser(meeting(routes(), &Arc::new(Barrier::new(2))));
        browser.get("/flash/saved").await;
        let (left, right) = meet(&browser, "/late/flashes", "/late/flashes").await;
        let mut seen = [left.text, right.text];
        seen.sort();
        assert_eq!(seen, ["", "saved"]);
        assert_eq!(browser.get("/flashes").await.text, "");
    }
}

#[tokio::test]
async fn what_is_taken_commits_what_came_before() {
    let site = Site::new();
    let app = routes().route(
        "/take",
        get(async |session: Session| {
            session.insert("step", "taken")?;
            let code = session.take::<String>("code").await?;
            assert_eq!(session.get::<String>("code")?, None);
            // It is committed although the handler fails.
            Err::<(), _>(Error::aborted(code.unwrap()))
        }),
    );
    let mut browser = site.browser(app);
    browser.get("/set/code/1234").await;
    assert_eq!(browser.get("/take").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(browser.get("/get/code").await.text, "-");
    assert_eq!(browser.get("/get/step").await.text, "taken");
}

#[tokio::test]
async fn a_closure_runs_again_where_a_handler_cannot() {
    let site = Site::new();
    async fn spend(session: Session) -> Result<String, Error> {
        let spent = session.transact(|session| {
            let credit: u64 = session.get("credit")?.unwrap_or(3);
            session.insert("credit", credit.saturating_sub(1))?;
            Ok(credit > 0)
        });
        Ok(spent.await?.to_string())
    }
    let mut browser = site.browser(routes().route("/spend", get(spend)));
    browser.get("/set/name/Ada").await;
    let one = || browser.send(Method::GET, "/spend");
    let (a, b, c, d, e) = tokio::join!(one(), one(), one(), one(), one());
    let spent = [a, b, c, d, e].iter().filter(|page| page.text == "true").count();
    assert_eq!(spent, 3);
    // A visitor without a session gets one.
    let mut other = site.browser(Router::new().route("/spend", get(spend)));
    assert_eq!(other.get("/spend").await.text, "true");
    assert_eq!(other.cookies.len(), 1);
}

fn failing() -> Router {
    async fn fail(session: Session, Path(how): Path<String>) -> Result<(), Error> {
        match &*how {
            // An answer below 500, and a failure all the same.
            "limit" => {
                session.insert("name", "Eve")?;
                return session.insert("large", vec![7; 2 << 20]);
            }
            "write" => session.insert("name", "Eve")?,
            "login" => session.login("eve", "device").await?,
            "logout" => session.logout()?,
            _ => {}
        }
        Err(Error::aborted("on purpose"))
    }
    routes().route("/fail/{how}", get(fail))
}

#[tokio::test]
async fn a_handler_that_fails_has_changed_nothing_but_a_logout() {
    let site = Site::new();
    let mut browser = site.browser(failing());
    // Nobody gets a cookie for what is not stored.
    let page = browser.get("/fail/write").await;
    assert_eq!((page.status, page.set_cookies().len()), (StatusCode::INTERNAL_SERVER_ERROR, 0));
    assert_eq!(site.len(), 0);
    browser.get("/set/name/Ada").await;
    let before = browser.cookies.clone();
    assert_eq!(
        browser.send(Method::GET, "/fail/limit").await.status,
        StatusCode::PAYLOAD_TOO_LARGE
    );
    for how in ["write", "login", "limit"] {
        browser.get(&format!("/fail/{how}")).await;
        assert_eq!(browser.cookies, before, "{how}");
        assert_eq!(browser.get("/look").await.text, "Ada", "{how}");
        assert_eq!(browser.get("/whoami").await.text, "", "{how}");
    }
    browser.get("/fail/logout").await;
    assert!(browser.cookies.is_empty());
    assert_eq!(site.len(), 0);

    let mut browser = Browser::new(&failing().layer(site.layer().on_failure(Failures::Commit)));
    browser.get("/fail/write").await;
    assert_eq!(browser.get("/look").await.text, "Eve");
}

#[tokio::test]
async fn a_commit_that_fails_is_the_answer() {
    let site = Site::with(Policy::new().session_bytes_max(200));
    let app = routes()
        .route("/large", get(async |s: Session| s.insert("large", vec![7u8; 1_000])))
        .route(
            "/two/{name}",
            get(async |s: Session, Path(name): Path<String>| s.insert(&name, "x".repeat(120))),
        );
    let mut browser = site.browser(app.clone());
    assert_eq!(browser.get("/large").await.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(browser.cookies.is_empty());
    // Each fits, and both do not: the second is told so.
    browser.get("/set/name/Ada").await;
    let closed = site.store.clone();
    let layer = site.layer().on_error(|error| {
        let mut answer = Response::new(());
        *answer.status_mut() = StatusCode::IM_A_TEAPOT;
        let kind = HeaderValue::from_static(error.kind());
        answer.headers_mut().insert(HeaderName::from_static("x-kind"), kind);
        answer
    });
    let close = move || {
        closed.clone().close().unwrap();
    };
    let app = app.route(
        "/close",
        get(async move |s: Session| {
            s.insert("name", "Eve")?;
            close();
            Ok::<_, Error>("done")
        }),
    );
    let mut other = Browser::new(&app.layer(layer));
    other.cookies = browser.cookies.clone();
    let page = other.get("/close").await;
    assert_eq!((page.status, &*page.text), (StatusCode::IM_A_TEAPOT, ""));
    assert_eq!(page.all("x-kind"), ["closed"]);
}

/// S22, G-S2: a token that means nothing is replaced and leaves nothing.
#[tokio::test]
async fn unknown_tokens_are_never_adopted() {
    let site = Site::new();
    let events = site.store.events();
    let mut browser = site.browser(routes());
    let made_up = sessile::Token::random().unwrap();
    browser.cookies.insert(COOKIE.to_owned(), made_up.expose());
    let page = browser.get("/look").await;
    assert_eq!((&*page.text, site.len()), ("", 0));
    assert!(browser.cookies.is_empty(), "what means nothing is removed");
    let unknown = |event: &Event| matches!(event, Event::UnknownToken { .. });
    assert_eq!(events.try_iter().filter(unknown).count(), 1);
    assert_eq!(site.store.stats().unknown_tokens, 1);

    browser.cookies.insert(COOKIE.to_owned(), made_up.expose());
    browser.get("/set/name/Ada").await;
    assert_ne!(browser.cookies[COOKIE], made_up.expose());
    assert!(!site.store.begin().unwrap().contains(&site.visitors, &made_up).unwrap());
    // Expired is as good as unknown.
    let old = browser.cookies.clone();
    site.clock.advance_secs(3_600);
    browser.get("/set/name/Eve").await;
    assert_ne!(browser.cookies, old);
    // Nonsense is nothing, and does not get in the way.
    for nonsense in ["", "guest", "'; DROP TABLE", "%00", "\"quoted\""] {
        let mut browser = site.browser(routes());
        browser.cookies.insert(COOKIE.to_owned(), nonsense.to_owned());
        let mut looking = browser.clone();
        looking.get("/look").await;
        assert!(looking.cookies.is_empty(), "{nonsense:?} stays");
        let page = browser.get("/set/name/Ada").await;
        assert_eq!(page.status, StatusCode::OK);
        assert_eq!(browser.cookies[COOKIE].len(), 43);
    }
}

/// S25: two cookies of one name.
#[tokio::test]
async fn two_tokens_are_none() {
    let site = Site::new();
    let mut browser = site.browser(routes());
    browser.get("/set/name/Ada").await;
    let events = site.store.events();
    let tossed = format!(
        "{}; {COOKIE}={}",
        browser.cookies[COOKIE],
        sessile::Token::random().unwrap().expose()
    );
    let mut victim = browser.clone();
    victim.cookies.insert(COOKIE.to_owned(), tossed);
    let page = victim.send(Method::GET, "/look").await;
    assert_eq!(page.text, "");
    let ambiguous = |event: &Event| matches!(event, Event::AmbiguousToken { .. });
    assert_eq!(events.try_iter().filter(ambiguous).count(), 1);
    assert_eq!(browser.get("/look").await.text, "Ada");
}

#[tokio::test]
async fn all_sessions_of_a_user_end_together() {
    let site = Site::new();
    let app = routes()
        .route(
            "/devices",
            get(async |s: Session| {
                let devices = s.devices().await?;
                let here = s.id()?;
                let named =
                    devices.iter().map(|d| if Some(d.id) == here { "here" } else { "there" });
                Ok::<_, Error>(named.collect::<Vec<_>>().join(","))
            }),
        )
        .route(
            "/end-first",
            get(async |s: Session| {
                let first = s.devices().await?[0].id;
                Ok::<_, Error>(s.logout_device(first).await?.to_string())
            }),
        )
        .route(
            "/end/{device}",
            get(async |s: Session, Path(device): Path<SessionId>| {
                s.logout_device(device).await.map(|ended| ended.to_string())
            }),
        );
    let app = app.layer(site.layer());
    let mut devices: Vec<_> = (0..4).map(|_| Browser::new(&app)).collect();
    for device in &mut devices {
        site.clock.advance_secs(1);
        device.get("/login/ada").await;
    }
    let mut eve = Browser::new(&app);
    eve.get("/login/eve").await;
    assert_eq!(devices[1].get("/devices").await.text, "there,here,there,there");
    assert_eq!(eve.get("/devices").await.text, "here");

    // One of them, from another.
    assert_eq!(devices[3].get("/end-first").await.text, "true");
    assert_eq!(devices[0].get("/whoami").await.text, "");
    assert_eq!(devices[3].get("/devices").await.text, "there,there,here");
    // Nobody ends what is somebody else's, whom they can name as a form would.
    let theirs = site.store.begin().unwrap().sessions_of(&site.visitors, "eve").unwrap()[0].id;
    let end = format!("/end/{theirs}");
    assert_eq!(devices[3].get(&end).await.text, "false");
    assert_eq!(eve.get(&end).await.text, "true");
    let digits = theirs.to_string();
    for none in ["0", &digits[1..], &format!("0{digits}"), &format!("+{}", &digits[1..]), "x"] {
        let page = eve.get(&format!("/end/{none}")).await;
        assert_eq!(page.status, StatusCode::BAD_REQUEST, "{none}");
    }
    eve.get("/login/eve").await;

    devices[1].get("/logout-others").await;
    let mut who = Vec::new();
    for device in &mut devices[1..] {
        who.push(device.get("/whoami").await.text);
    }
    assert_eq!(who, ["ada", "", ""]);
    devices[2].get("/login/ada").await;
    let page = devices[2].get("/logout-everywhere").await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(devices[2].cookies.is_empty());
    assert_eq!(devices[1].get("/whoami").await.text, "");
    assert_eq!(eve.get("/whoami").await.text, "eve");
    assert_eq!(site.len(), 1);
}

#[tokio::test]
async fn a_cookie_that_lasts_is_sent_again_in_time() {
    let site = Site::with(Policy::new().timeout_mins(20));
    let cookie = CookieSettings::builder().lifetime_days(4).build().unwrap();
    let layer = site.layer().ids(Ids::new().cookie(cookie));
    let policy = Policy::new().timeout_secs(40 * 86_400);
    site.store.transact(|txn| txn.set_policy(&site.visitors, policy.clone())).unwrap();
    let mut browser = Browser::new(&routes().layer(layer));
    let page = browser.get("/set/name/Ada").await;
    assert!(
        page.set_cookies()[0].contains("Expires=") || page.set_cookies()[0].contains("Max-Age=")
    );
    let mut sent = 0;
    for hour in 0..(10 * 24) {
        site.clock.advance_secs(3_600);
        site.settle();
        let again = browser.get("/look").await.set_cookies().len();
        sent += again;
        assert!(again == 0 || hour % 24 < 24);
    }
    // Each quarter of its four days, and not with every answer.
    assert_eq!(sent, 10);
}

#[tokio::test]
async fn who_is_remembered_keeps_the_cookie() {
    let site = Site::new();
    let month = Duration::from_secs(30 * 86_400);
    let app = routes()
        .route("/remember", get(async move |s: Session| s.set_timeout(month)))
        .route("/forget", get(async |s: Session| s.set_timeout(None)));
    let mut browser = site.browser(app);
    let lasts = |page: &Page| {
        let cookies = page.set_cookies();
        cookies.first().map(|cookie| cookie.contains("Expires=") || cookie.contains("Max-Age="))
    };
    assert_eq!(lasts(&browser.get("/login/ada").await), Some(false));
    assert_eq!(lasts(&browser.get("/remember").await), Some(true));
    site.clock.advance_secs(20 * 86_400);
    let page = browser.get("/whoami").await;
    assert_eq!((&*page.text, lasts(&page)), ("ada", Some(true)));
    site.settle();
    assert_eq!(lasts(&browser.get("/whoami").await), None);
    // A login in between does not make it forget.
    assert_eq!(lasts(&browser.get("/renew").await), Some(true));
    assert_eq!(lasts(&browser.get("/forget").await), Some(false));
    site.clock.advance_secs(3_600);
    assert_eq!(browser.get("/whoami").await.text, "");
}

#[tokio::test]
async fn a_page_that_polls_keeps_nobody_alive() {
    let site = Site::new();
    let layer = site.layer().is_activity(|request| request.uri.path() != "/look");
    let mut browser = Browser::new(&routes().layer(layer));
    browser.get("/set/name/Ada").await;
    for _ in 0..12 {
        site.clock.advance_secs(60);
        assert_eq!(browser.get("/look").await.text, "Ada");
        site.settle();
    }
    site.clock.advance_secs(10 * 60);
    assert_eq!(browser.get("/look").await.text, "");
    browser.get("/set/name/Ada").await;
    for _ in 0..12 {
        site.settle();
        site.clock.advance_secs(5 * 60);
        assert_eq!(browser.get("/get/name").await.text, "Ada");
    }
}

/// What a WebSocket does: it goes on when the answer is on its way.
#[tokio::test]
async fn a_conversation_goes_on_after_the_answer() {
    let site = Site::new();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let sender = Arc::new(std::sync::Mutex::new(Some(sender)));
    let app = routes().route(
        "/talk",
        get(async move |s: Session| {
            s.insert("name", "Ada")?;
            let _ = sender.lock().unwrap().take().unwrap().send(s.clone());
            Ok::<_, Error>(())
        }),
    );
    let mut browser = site.browser(app);
    browser.get("/talk").await;
    let session = receiver.await.unwrap();
    assert!(matches!(session.insert("said", 1), Err(Error::TransactionOver)));
    session.reload().await.unwrap();
    session.add("said", 1).unwrap();
    session.commit().await.unwrap();
    browser.get("/set/name/Eve").await;
    assert_eq!(session.get::<String>("name").unwrap().as_deref(), Some("Ada"));
    // Hours later, and nothing was kept for it.
    assert_eq!(site.store.stats().snapshots, 0);
    site.clock.elapse(Duration::from_secs(600));
    session.add("said", 1).unwrap();
    session.commit().await.unwrap();
    assert_eq!(session.get::<String>("name").unwrap().as_deref(), Some("Eve"));
    assert_eq!(session.get::<u32>("said").unwrap(), Some(2));
    // No cookie can be set any more.
    assert!(matches!(session.renew(), Err(Error::Answered)));
    assert!(matches!(session.login("ada", "").await, Err(Error::Answered)));
    browser.get("/logout").await;
    session.add("said", 1).unwrap();
    assert!(matches!(session.commit().await, Err(Error::Conflict(_))));
    assert!(!session.exists().unwrap());
    assert!(matches!(session.insert("name", "Ada"), Err(Error::Answered)));
    assert_eq!(site.len(), 0);
}

#[tokio::test]
async fn forms_have_tokens() {
    let site = Site::new();
    let app = routes().route("/form", get(async |s: Session| s.csrf_token())).route(
        "/check/{token}",
        get(async |s: Session, Path(token): Path<String>| {
            s.is_csrf_token(&token).map(|it_is| it_is.to_string())
        }),
    );
    let (mut ada, mut eve) = (site.browser(app.clone()), site.browser(app));
    let token = ada.get("/form").await.text;
    assert_eq!(ada.cookies.len(), 1, "a session is needed to tell whose it is");
    let other = ada.get("/form").await.text;
    assert_ne!(token, other);
    let theirs = eve.get("/form").await.text;
    for (text, good) in [(&token, "true"), (&other, "true"), (&theirs, "false")] {
        assert_eq!(ada.get(&format!("/check/{text}")).await.text, good);
    }
    ada.get("/login/ada").await;
    assert_eq!(ada.get(&format!("/check/{token}")).await.text, "false");
    let mut nobody = eve.clone();
    nobody.cookies.clear();
    assert_eq!(nobody.get(&format!("/check/{theirs}")).await.text, "false");
}

/// For browsers without cookies: the token goes through links and forms, and is taken out before routing.
#[tokio::test]
async fn tokens_travel_in_links_too() {
    let site = Site::new();
    let app = routes()
        .route("/page", get(async |s: Session| s.link("/look?a=1")))
        .route("/form", get(async |s: Session| s.hidden_field()));
    let cookie = CookieSettings::builder().name("sid").build().unwrap();
    let ids = Ids::new().cookie(cookie).namespaces([Namespace::Url, Namespace::Form]);
    let layer = site.layer().ids(ids.auto_url_encoding(true));
    let browser = Browser::new(&Router::new().fallback_service(layer.layer(app)));
    let page = browser.send(Method::GET, "/page").await;
    assert!(page.set_cookies().is_empty());
    assert!(page.text.starts_with("/sid/") && page.text.ends_with("/look?a=1"), "{}", page.text);
    let in_path = page.text.strip_suffix("/look?a=1").unwrap();
    let page = browser.send(Method::GET, &format!("{in_path}/set/name/Ada")).await;
    assert_eq!(page.status, StatusCode::OK);
    assert_eq!(browser.send(Method::GET, &format!("{in_path}/look?a=1")).await.text, "Ada");
    // The same in a query, as a form sends it.
    let field = browser.send(Method::GET, &format!("{in_path}/form")).await.text;
    let token = in_path.strip_prefix("/sid/").unwrap();
    assert!(field.contains(&format!("name=\"sid\" value=\"{token}\"")), "{field}");
    assert_eq!(browser.send(Method::GET, &format!("/look?sid={token}")).await.text, "Ada");
    assert_eq!(browser.send(Method::GET, "/look").await.text, "");
    assert_eq!(site.len(), 1);
    // Where cookies carry it links are left alone.
    let plain = site.browser(routes().route("/page", get(async |s: Session| s.link("/look"))));
    assert_eq!(plain.send(Method::GET, "/page").await.text, "/look");
    assert_eq!(site.len(), 1);
}

#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Cart {
    items: Vec<String>,
}

impl SessionData for Cart {
    const NAME: &str = "cart";
}

#[tokio::test]
async fn a_type_of_the_programs_own_is_kept() {
    let site = Site::new();
    let app = routes()
        .route(
            "/buy/{item}",
            get(async |mut cart: Stored<Cart>, Path(item): Path<String>| {
                cart.items.push(item);
                cart.save()
            }),
        )
        .route("/cart", get(async |cart: Stored<Cart>| cart.items.join(",")));
    let mut browser = site.browser(app);
    assert_eq!(browser.get("/cart").await.text, "");
    assert_eq!(site.len(), 0);
    browser.get("/buy/tea").await;
    browser.get("/buy/milk").await;
    assert_eq!(browser.get("/cart").await.text, "tea,milk");
    // It is something else now.
    browser.get("/set/cart/none").await;
    assert_eq!(browser.get("/cart").await.status, StatusCode::INTERNAL_SERVER_ERROR);
}

struct Office;

#[tokio::test]
async fn two_layers_have_two_sessions() {
    let site = Site::new();
    let staff = site.store.container_with("staff", Policy::new()).unwrap();
    let cookie = CookieSettings::builder().name("__Host-office").build().unwrap();
    let office = SessionLayer::<Office>::of(&site.store, &staff).ids(Ids::new().cookie(cookie));
    let app = routes()
        .route(
            "/office",
            get(async |s: Session<Office>, visitor: Session| {
                s.add("visits", 1)?;
                visitor.insert("name", "Ada")
            }),
        )
        .route("/office-logout", get(async |s: Session<Office>| s.logout()));
    let mut browser = Browser::new(&app.layer(site.layer()).layer(office));
    browser.get("/office").await;
    assert_eq!(browser.cookies.keys().collect::<Vec<_>>(), ["__Host-office", COOKIE]);
    browser.get("/office-logout").await;
    assert_eq!(browser.get("/look").await.text, "Ada");
    assert_eq!(site.store.begin().unwrap().len(&staff).unwrap(), 0);
}

#[tokio::test]
async fn without_its_layer_a_route_says_what_is_missing() {
    let mut browser = Browser::new(&routes());
    let page = browser.get("/look").await;
    assert_eq!(page.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(page.text.contains("`.layer(SessionLayer::new(&store, &container))`"), "{}", page.text);
}

/// G-S13: whatever is asked of a session, caches are told that the answer depends on it.
#[tokio::test]
async fn caches_are_told_by_every_accessor() {
    let site = Site::new();
    type Work = fn(&Session) -> Result<(), Error>;
    let all: [(&str, Work); 32] = [
        ("id", |s| s.id().map(drop)),
        ("exists", |s| s.exists().map(drop)),
        ("key", |s| s.key().map(drop)),
        ("get", |s| s.get::<u32>("a").map(drop)),
        ("value", |s| s.value("a").map(drop)),
        ("contains", |s| s.contains("a").map(drop)),
        ("keys", |s| s.keys().map(drop)),
        ("len", |s| s.len().map(drop)),
        ("is_empty", |s| s.is_empty().map(drop)),
        ("principal", |s| s.principal().map(drop)),
        ("created", |s| s.created().map(drop)),
        ("expires", |s| s.expires().map(drop)),
        ("insert", |s| s.insert("a", 1)),
        ("insert_for", |s| s.insert_for("a", 1, Duration::from_secs(1))),
        ("remove", |s| s.remove("a")),
        ("clear", |s| s.clear()),
        ("update", |s| s.update("a", |a: &mut u32| *a += 1)),
        ("add", |s| s.add("a", 1)),
        ("max", |s| s.max("a", 1)),
        ("min", |s| s.min("a", 1)),
        ("union", |s| s.union("b", 1)),
        ("append", |s| s.append("b", 1, 5)),
        ("set_if_absent", |s| s.set_if_absent("a", 1)),
        ("flash", |s| s.flash("a")),
        ("set_timeout", |s| s.set_timeout(Duration::from_secs(60))),
        ("renew", |s| s.renew()),
        ("logout", |s| s.logout()),
        ("csrf_token", |s| s.csrf_token().map(drop)),
        ("is_csrf_token", |s| s.is_csrf_token("a").map(drop)),
        ("link", |s| s.link("/a").map(drop)),
        ("hidden_field", |s| s.hidden_field().map(drop)),
        ("nothing", |_| Ok(())),
    ];
    let mut app = Router::new();
    for (name, work) in all {
        let handler = async move |session: Session| work(&session).map(|()| "done");
        app = app.route(&format!("/{name}"), get(handler));
        let public = async move |session: Session| {
            work(&session)?;
            let headers = [("cache-control", "public, max-age=600"), ("vary", "Accept, cookie")];
            Ok::<_, Error>((headers, "done").into_response())
        };
        app = app.route(&format!("/public/{name}"), get(public));
    }
    // Every method of the session is here.
    let source = include_str!("../src/web/session.rs");
    let methods = source.matches("    pub fn ").count();
    assert_eq!(methods, all.len() - 1, "a method that is not on the list");
    let mut browser = site.browser(app);
    for (name, _) in all {
        for known in [false, true] {
            if !known {
                browser.cookies.clear();
            }
            let page = browser.get(&format!("/{name}")).await;
            assert_eq!((page.status, page.all("vary")), (StatusCode::OK, vec!["Cookie"]), "{name}");
            let wanted = if page.set_cookies().is_empty() { "private" } else { "no-store" };
            assert_eq!(page.all("cache-control"), [wanted], "{name}");
            let page = browser.get(&format!("/public/{name}")).await;
            assert_eq!(page.all("vary"), ["Accept, cookie"], "{name}");
            if !page.set_cookies().is_empty() {
                assert_eq!(page.all("cache-control"), ["no-store"], "{name}");
            }
        }
    }
}

/// How often the crowd comes: a million times in `.ci/run`.
fn crowd() -> usize {
    match std::env::var("SESSILE_SIMULATION").as_deref() {
        Ok("ci" | "record") => 1_000_000,
        _ => 20_000,
    }
}

/// G-S9, S33: who writes nothing costs nothing, however often.
#[tokio::test]
async fn a_crowd_that_only_looks_leaves_nothing() {
    let site = Site::with(Policy::new().limit(10));
    let mut browser = site.browser(routes());
    browser.get("/login/ada").await;
    let before = site.store.stats();
    let mut anonymous = site.browser(routes());
    for n in 0..crowd() {
        let path = ["/look", "/logout", "/flashes", "/whoami"][n % 4];
        let page = anonymous.get(path).await;
        assert_eq!((page.status, page.set_cookies().len()), (StatusCode::OK, 0));
    }
    let after = site.store.stats();
    assert_eq!((site.len(), after.commits, after.started), (1, before.commits, before.started));
    println!("{} requests of visitors who only looked, 0 records", crowd());
}

/// G-S9: nor do those who write get more than they may have, or put out who is logged in.
#[tokio::test]
async fn a_crowd_that_writes_gets_no_more_than_there_is_room_for() {
    let site = Site::with(Policy::new().limit(10));
    let mut browser = site.browser(routes());
    browser.get("/login/ada").await;
    let anonymous = site.browser(routes());
    let mut refused = 0;
    for _ in 0..crowd() {
        let page = anonymous.send(Method::GET, "/add").await;
        refused += usize::from(page.status == StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(page.set_cookies().is_empty(), page.status != StatusCode::OK);
    }
    assert_eq!((site.len(), refused), (10, crowd() - 9));
    assert_eq!(browser.get("/whoami").await.text, "ada");
    println!("{} requests of visitors who wrote a byte, 9 records, {refused} refused", crowd());
}

/// Lists in each other, so many.
struct Nested(u32);

impl serde::Serialize for Nested {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            0 => serializer.serialize_unit(),
            depth => serializer.collect_seq([Nested(depth - 1)]),
        }
    }
}

/// S34: too many attributes, too long ones, and too deep ones are refused before anything is written.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "a value that deep needs a deep stack to encode itself"
)]
fn what_is_too_large_is_refused_before_it_is_written() {
    let deep = std::thread::Builder::new().stack_size(256 << 20);
    let played = deep.spawn(|| {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(too_large())
    });
    played.unwrap().join().unwrap();
}

async fn too_large() {
    async fn fill(session: Session, Path(how): Path<String>) -> Result<(), Error> {
        match &*how {
            "many" => (0..100_000).try_for_each(|n| session.insert(&format!("{n}"), n)),
            "large" => session.insert("large", "x".repeat(100 << 20)),
            "deep" => session.insert("deep", Nested(65)),
            _ => session.insert("deeper", Nested(10_000)),
        }
    }
    let site = Site::new();
    let app = routes().route("/fill/{how}", get(fill)).route(
        "/len",
        get(async |session: Session| session.len().map(|attributes| attributes.to_string())),
    );
    let mut browser = site.browser(app.clone());
    for known in [false, true] {
        if known {
            browser.get("/set/name/Ada").await;
        }
        let before = site.store.stats().commits;
        for how in ["large", "deep", "deeper"] {
            let page = browser.get(&format!("/fill/{how}")).await;
            let seen = (page.status, page.set_cookies().len());
            assert_eq!(seen, (StatusCode::PAYLOAD_TOO_LARGE, 0), "{how} {known}");
        }
        assert_eq!((site.len(), site.store.stats().commits), (u64::from(known), before));
    }
    // Of many the first too many is refused, and of a handler that fails nothing is kept.
    let mut other = site.browser(app);
    assert_eq!(other.get("/fill/many").await.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!((&*other.get("/len").await.text, site.len()), ("0", 1));
    assert_eq!(browser.get("/look").await.text, "Ada");
}

/// A rule says more than the layer.
#[tokio::test]
async fn rules_hold_for_requests_too() {
    let site = Site::with(Policy::new().rule("page", Rule::FirstWriter).rule("pay", Rule::Reject));
    let mut browser = site.browser(meeting(routes(), &Arc::new(Barrier::new(2))));
    browser.get("/set/page/1").await;
    browser.get("/set/pay/1").await;
    let (left, right) = meet(&browser, "/late/set/page/2", "/late/set/page/3").await;
    assert_eq!((left.status, right.status), (StatusCode::OK, StatusCode::OK));
    assert_eq!(site.store.stats().overruled, 0);
    let (left, right) = meet(&browser, "/late/set/pay/2", "/late/set/pay/3").await;
    let mut seen = [left.status, right.status];
    seen.sort();
    assert_eq!(seen, [StatusCode::OK, StatusCode::CONFLICT]);
}

/// Whoever goes away in the middle has done nothing.
#[tokio::test]
async fn a_request_that_is_given_up_changes_nothing() {
    let site = Site::new();
    let app = routes().route(
        "/hang",
        get(async |s: Session| {
            s.insert("name", "Eve")?;
            std::future::pending::<()>().await;
            Ok::<_, Error>(())
        }),
    );
    let mut browser = site.browser(app);
    browser.get("/set/name/Ada").await;
    let hang = browser.send(Method::GET, "/hang");
    assert!(tokio::time::timeout(Duration::from_millis(20), hang).await.is_err());
    assert_eq!(browser.get("/look").await.text, "Ada");
    assert_eq!(site.store.stats().snapshots, 0);
}

#[tokio::test]
async fn ends_are_told_with_their_reasons() {
    let site = Site::new();
    let events = site.store.events();
    let mut browser = site.browser(routes());
    browser.get("/set/name/Ada").await;
    browser.get("/login/ada").await;
    browser.get("/logout").await;
    site.store.settle();
    let reasons: Vec<_> = events
        .try_iter()
        .filter_map(|event| match event {
            Event::Ended(_, reason) => Some(reason),
            _ => None,
        })
        .collect();
    assert_eq!(reasons, [EndReason::Rotated, EndReason::Invalidated]);
}
