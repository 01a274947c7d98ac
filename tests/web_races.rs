//! Two or three requests of one visitor at the same time, in every order that they can come in.
//!
//! A request has three steps: it finds its session, it does something, it commits and answers. Every pair of
//! deeds is played in every interleaving of those steps, and the answers reach the browser in every
//! order. However they meet:
//!
//! - what was logged out is gone, whatever was saved, and whoever logged in meanwhile;
//! - otherwise everything that was acknowledged is there, and the browser has the cookie for it;
//! - what is taken is taken by one;
//! - the token of before a login is worth nothing after it: who comes late with it reads nothing, and is
//!   refused what would begin another session, unless it is a login itself.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]
#![expect(clippy::print_stdout, reason = "how many histories there were is worth knowing")]

#[path = "support/browser.rs"]
mod browser;

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{Method, StatusCode};
use axum::routing::get;
use sessile::web::{Session, SessionLayer};
use sessile::{Container, Error, Options, Policy, Store, Token};
use tokio::runtime::Builder;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use browser::{Browser, Page};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Deed {
    Look,
    Save,
    Add,
    Transact,
    Take,
    Login,
    Logout,
    LogoutEverywhere,
    /// The handler fails after it.
    FailSaving,
    FailAfterLogout,
}

use Deed::*;

const DEEDS: [Deed; 10] =
    [Look, Save, Add, Transact, Take, Login, Logout, LogoutEverywhere, FailSaving, FailAfterLogout];

impl Deed {
    fn ends(self) -> bool {
        matches!(self, Logout | LogoutEverywhere | FailAfterLogout)
    }

    async fn be_done(self, session: &Session, name: &str) -> Result<String, Error> {
        match self {
            Look => return Ok(session.get::<String>("origin")?.unwrap_or_default()),
            Save => session.insert(name, "saved")?,
            Add => session.add("sum", 1)?,
            Transact => session.transact(|session| session.insert(name, "saved")).await?,
            Take => return Ok(session.take::<String>("code").await?.unwrap_or_default()),
            Login => session.login("ada", "again").await?,
            Logout => session.logout()?,
            LogoutEverywhere => session.logout_everywhere().await?,
            FailSaving => {
                session.insert(name, "saved")?;
                return Err(Error::aborted("on purpose"));
            }
            FailAfterLogout => {
                session.logout()?;
                return Err(Error::aborted("on purpose"));
            }
        }
        Ok(String::new())
    }
}

/// Whether a login was committed before a request came, or before it did its deed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Late {
    No,
    Come,
    Overtaken,
}

/// Where a request waits until the test lets it go on.
#[derive(Clone)]
struct Gate {
    reached: UnboundedSender<()>,
    go: Arc<tokio::sync::Mutex<UnboundedReceiver<()>>>,
}

impl Gate {
    async fn pause(&self) {
        self.reached.send(()).unwrap();
        self.go.lock().await.recv().await.unwrap();
    }
}

type Gates = Arc<Mutex<Vec<(Deed, Gate)>>>;

async fn request(
    State(gates): State<Gates>,
    session: Session,
    Path(who): Path<usize>,
) -> Result<String, Error> {
    let (deed, gate) = gates.lock().unwrap()[who].clone();
    gate.pause().await;
    let done = deed.be_done(&session, &format!("by{who}")).await;
    gate.pause().await;
    done
}

struct Site {
    store: Store,
    visitors: Container,
    app: Router,
    gates: Gates,
}

impl Site {
    fn new() -> Self {
        let store = Options::new().sweep_every(None).memory().unwrap();
        let visitors = store.container_with("visitors", Policy::new()).unwrap();
        let gates = Gates::default();
        let app = Router::new()
            .route(
                "/begin",
                get(async |s: Session| {
                    s.login("ada", "here").await?;
                    s.insert("origin", "us")?;
                    s.insert("code", "1234")
                }),
            )
            .route("/look", get(async |s: Session| Look.be_done(&s, "").await))
            .route("/whoami", get(async |s: Session| s.principal().map(Option::unwrap_or_default)))
            .route("/request/{who}", get(request))
            .with_state(Arc::clone(&gates))
            .layer(SessionLayer::new(&store, &visitors));
        Site { store, visitors, app, gates }
    }

    /// Plays these deeds; `order` says whose step is next.
    async fn play(&self, deeds: &[Deed], order: &[usize]) -> Vec<Page> {
        let mut browser = Browser::new(&self.app);
        browser.get("/begin").await;
        let first: Token = browser.cookies["__Host-session"].parse().unwrap();

        let mut controls = Vec::new();
        let mut gates = Vec::new();
        for deed in deeds {
            let (reached, at_gate) = unbounded_channel();
            let (go, going) = unbounded_channel();
            let go_on = Arc::new(tokio::sync::Mutex::new(going));
            gates.push((*deed, Gate { reached, go: go_on }));
            controls.push((at_gate, go));
        }
        *self.gates.lock().unwrap() = gates;
        let mut running: Vec<_> = deeds.iter().map(|_| None).collect();
        let mut pages: Vec<Option<Page>> = deeds.iter().map(|_| None).collect();
        // Who has come, or was still to do its deed, after a login was committed, with the token of before.
        let mut late = vec![Late::No; deeds.len()];
        let logged_in = |pages: &[Option<Page>]| {
            let is_login = |(deed, page): (&Deed, &Option<Page>)| {
                *deed == Login && page.as_ref().is_some_and(|page| page.status.is_success())
            };
            deeds.iter().zip(pages).any(is_login)
        };
        let mut steps = vec![0; deeds.len()];
        for who in order.iter().copied() {
            let (at_gate, go) = &mut controls[who];
            match steps[who] {
                0 => {
                    if logged_in(&pages) {
                        late[who] = Late::Come;
                    }
                    let browser = browser.clone();
                    let path = format!("/request/{who}");
                    running[who] =
                        Some(tokio::spawn(async move { browser.send(Method::GET, &path).await }));
                    at_gate.recv().await.unwrap();
                }
                1 => {
                    if logged_in(&pages) && late[who] == Late::No {
                        late[who] = Late::Overtaken;
                    }
                    go.send(()).unwrap();
                    at_gate.recv().await.unwrap();
                }
                _ => {
                    go.send(()).unwrap();
                    pages[who] = Some(running[who].take().unwrap().await.unwrap());
                }
            }
            steps[who] += 1;
        }
        let pages: Vec<Page> = pages.into_iter().flatten().collect();
        self.judge(deeds, &pages, &late, &browser, &first).await;
        pages
    }

    async fn judge(
        &self,
        deeds: &[Deed],
        pages: &[Page],
        late: &[Late],
        before: &Browser,
        first: &Token,
    ) {
        let status: Vec<_> = pages.iter().map(|page| page.status.as_u16()).collect();
        let what = format!("{deeds:?}, {status:?}, late: {late:?}");
        let done = |who: usize| pages[who].status == StatusCode::OK;
        let whose = |wanted: &dyn Fn(Deed) -> bool| -> Vec<usize> {
            let counts = |who: &usize| match (late[*who], deeds[*who]) {
                (Late::Come, _) | (Late::Overtaken, Transact | Take) => false,
                (_, deed) => wanted(deed),
            };
            (0..deeds.len()).filter(counts).collect()
        };
        for who in 0..deeds.len() {
            let logged_out = deeds.iter().any(|deed| deed.ends());
            let expected: &[StatusCode] = match deeds[who] {
                // After a logout there may be nothing left to be late for: then it is somebody new.
                Save | Add | Transact if late[who] == Late::Come && logged_out => {
                    &[StatusCode::CONFLICT, StatusCode::OK]
                }
                Save | Add | Transact | FailSaving if late[who] == Late::Come => {
                    &[StatusCode::CONFLICT]
                }
                Look | Take | Login | Logout | LogoutEverywhere if late[who] == Late::Come => {
                    &[StatusCode::OK]
                }
                Transact | Take if late[who] == Late::Overtaken => {
                    &[StatusCode::CONFLICT, StatusCode::OK]
                }
                FailSaving | FailAfterLogout => &[StatusCode::INTERNAL_SERVER_ERROR],
                // Of two logins one is refused, and so is one that a logout has come before.
                Login => &[StatusCode::OK, StatusCode::CONFLICT],
                _ => &[StatusCode::OK],
            };
            assert!(expected.contains(&pages[who].status), "{what}");
        }
        // Those that are ours, whatever their key is by now.
        let txn = self.store.begin().unwrap();
        let ours: Vec<_> = txn
            .iter(&self.visitors)
            .unwrap()
            .map(Result::unwrap)
            .filter(|session| session.contains("origin").unwrap())
            .collect();
        let takers =
            whose(&|deed| deed == Take).into_iter().filter(|who| pages[*who].text == "1234");
        let takers = takers.count();
        assert!(takers <= 1, "{what}: taken {takers} times");

        // A logout holds, however late it comes.
        if deeds.iter().any(|deed| deed.ends()) {
            assert!(ours.is_empty(), "{what}: it is back");
        } else {
            let [session] = &ours[..] else { panic!("{what}: {} sessions", ours.len()) };
            for who in whose(&|deed| matches!(deed, Save | Transact)) {
                let name = format!("by{who}");
                assert_eq!(
                    session.get::<String>(&name).unwrap().as_deref(),
                    Some("saved"),
                    "{what}"
                );
            }
            for who in whose(&|deed| deed == FailSaving) {
                assert!(!session.contains(&format!("by{who}")).unwrap(), "{what}");
            }
            let sum = session.get::<usize>("sum").unwrap().unwrap_or_default();
            assert_eq!(sum, whose(&|deed| deed == Add).len(), "{what}");
            let logins = whose(&|deed| deed == Login);
            let succeeded = logins.iter().filter(|who| done(**who)).count();
            assert_eq!(succeeded, logins.len().min(1), "{what}");
            assert_eq!(*session.key() == first.key(), logins.is_empty(), "{what}");
            let wanted = usize::from(!whose(&|deed| deed == Take).is_empty());
            assert_eq!(takers, wanted, "{what}");
            assert_eq!(session.contains("code").unwrap(), wanted == 0, "{what}");
        }
        drop(txn);
        // The answers arrive in some order.
        for order in permutations(pages.len()) {
            let mut browser = before.clone();
            order.iter().for_each(|who| browser.keep(&pages[*who]));
            let seen = browser.get("/look").await.text;
            let again = (0..deeds.len()).any(|who| late[who] == Late::Come && deeds[who] == Login);
            let wanted = if ours.is_empty() { "" } else { "us" };
            if seen != wanted && again {
                // Who logs in when the session has gone on without them begins another one.
                assert_eq!(browser.get("/whoami").await.text, "ada", "{what}, as {order:?}");
            } else {
                assert_eq!(seen, wanted, "{what}, arriving as {order:?}");
            }
        }
        // Whoever else has the first token has what it opens, or nothing.
        let seen = before.clone().get("/look").await.text;
        let opens = ours.iter().any(|session| *session.key() == first.key());
        assert_eq!(seen == "us", opens, "{what}");
    }
}

/// All orders of `steps` steps of each of `n`.
fn interleavings(n: usize, steps: usize) -> Vec<Vec<usize>> {
    fn go(left: &mut [usize], path: &mut Vec<usize>, all: &mut Vec<Vec<usize>>) {
        if left.iter().all(|left| *left == 0) {
            all.push(path.clone());
        }
        for who in 0..left.len() {
            if left[who] > 0 {
                left[who] -= 1;
                path.push(who);
                go(left, path, all);
                path.pop();
                left[who] += 1;
            }
        }
    }
    let mut all = Vec::new();
    go(&mut vec![steps; n], &mut Vec::new(), &mut all);
    all
}

fn permutations(n: usize) -> Vec<Vec<usize>> {
    interleavings(n, 1)
}

/// Plays all of them; `every` so many.
fn play(combinations: &[Vec<Deed>], every: usize) -> usize {
    Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let site = Site::new();
        let (mut played, mut nth) = (0, 0);
        for deeds in combinations {
            for order in interleavings(deeds.len(), 3) {
                nth += 1;
                if nth % every == 0 {
                    site.play(deeds, &order).await;
                    played += 1;
                    let all = |txn: &sessile::Transaction| txn.end_all_of(&site.visitors, "ada");
                    site.store.transact(all).unwrap();
                }
            }
        }
        played
    })
}

#[test]
fn two_requests_in_every_interleaving() {
    let pairs: Vec<_> = DEEDS.iter().flat_map(|a| DEEDS.iter().map(|b| vec![*a, *b])).collect();
    let played = play(&pairs, 1);
    println!("two requests: {played} histories, 0 violations");
    assert_eq!(played, 2_000);
}

#[test]
fn three_requests_in_some_interleavings() {
    let deeds = [Save, Take, Login, Logout, LogoutEverywhere];
    let triples: Vec<_> = (0..deeds.len().pow(3))
        .map(|n| vec![deeds[n % 5], deeds[n / 5 % 5], deeds[n / 25]])
        .collect();
    // 210,000 in all.
    let every = if std::env::var_os("SESSILE_SIMULATION").is_some_and(|size| size == "ci") {
        7
    } else {
        101
    };
    let played = play(&triples, every);
    println!("three requests: {played} histories, 0 violations");
    assert!(played >= 2_000);
}
