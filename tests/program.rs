//! The shop of `examples/`, from outside: a real process, real requests, a real kill.
//!
//! Everything below the cookie is somebody else's business here. Clients talk HTTP to the program
//! and write down what they know; in the middle of it the program is killed (SIGKILL: nothing is
//! flushed, nobody is asked), started again on the same directory, and asked what it remembers:
//!
//! ```text
//!   sharer 0 --\                       visit, add a fruit, write a note
//!   sharer 1 ---+--> one session       visit, add a fruit
//!   sharer 2 --/                       ...
//!
//!   guest ------\                      add a fruit    log in      log out
//!                +--> many sessions                     ||           ||       || races with
//!   second tab -/                                  add, visit     add, visit
//! ```
//!
//! A request is *acknowledged* when the last byte of its answer has arrived. Its change must be
//! there after every restart. A request that was under way when the program died is *in doubt*: its
//! change is there entirely or not at all, and what it turned out to be holds from then on. Nothing
//! else may be there: no fruit that nobody sent, no visit too many, no session that was ended.
//!
//! Nothing sleeps: the program is ready when it says so, and dies after so many acknowledged
//! requests.

#![expect(clippy::print_stdout, reason = "the test tells what it did")]
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

#[path = "support/example.rs"]
mod example;
#[path = "support/http.rs"]
mod http;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use http::{Client, Response};
use sessile::{Policy, Store, Token};

const ROUNDS: usize = 4;
const SHARERS: usize = 4;
const GUESTS: usize = 2;

/// After how many acknowledged requests the program dies. Sharers spend a third of theirs on fruit,
/// so that no cart ever reaches the shop's limit of 1,000.
const ACKNOWLEDGED: usize = 600;

/// How long to wait for the program or its answers before something must be wrong.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn what_was_acknowledged_survives_kills() {
    let dir = tempfile::tempdir().unwrap();
    let mut shared = Known::default();
    let mut lives = Lives::default();
    let mut in_flight = 0;

    for round in 1..=ROUNDS {
        let shop = Shop::start(dir.path());
        let seen = recall(&shop, &mut shared, &mut lives);
        let load = shop.kill_under_load(round, &shared.cookie);
        for share in load.shares {
            shared.learn(share);
        }
        lives.extend(load.lives);
        in_flight += load.in_flight;
        println!(
            "round {round}: {seen} changes found again, lost 0; {} requests acknowledged; \
             killed with {} in flight; {} sessions kept so far, {} ended, {} in doubt",
            load.acknowledged,
            load.in_flight,
            lives.kept.len() + 1,
            lives.gone.len(),
            lives.unsure.len(),
        );
    }

    let shop = Shop::start(dir.path());
    let seen = recall(&shop, &mut shared, &mut lives);
    drop(shop);

    // With nobody else in the store: sessions lie under their tokens' keys, and there are no others
    // but those whose cookie was in an answer that never arrived.
    let store = Store::open(dir.path()).unwrap();
    let visitors = store.container_with("visitors", Policy::new().timeout_mins(20)).unwrap();
    let txn = store.begin().unwrap();
    let key = |cookie: &str| cookie.parse::<Token>().unwrap().key();
    for known in lives.kept.iter().chain([&shared]) {
        assert!(txn.peek(&visitors, key(&known.cookie)).unwrap().is_some());
    }
    for cookie in &lives.gone {
        assert!(txn.peek(&visitors, key(cookie)).unwrap().is_none(), "an ended session is back");
    }
    let (len, kept) = (txn.len(&visitors).unwrap() as usize, lives.kept.len() + 1);
    assert!((kept..=kept + in_flight).contains(&len), "{len} sessions, of which {kept} known");
    println!(
        "at last: {seen} changes found again, lost 0; {} ended sessions stayed so",
        lives.gone.len()
    );
}

#[test]
fn a_cookie_that_means_no_session_is_never_adopted() {
    let dir = tempfile::tempdir().unwrap();
    let shop = Shop::start(dir.path());
    let mut client = Client::new(shop.addr);

    let planted = Token::random().unwrap().expose();
    let almost = format!("{}=", &planted);
    let long = "A".repeat(4_000);
    for cookie in [&*planted, "", "guest", "\"", "../../etc/passwd", &almost, &long, &planted[1..]]
    {
        let header = format!("other=1; session={cookie}; session_id={planted}");
        // Looking makes no session, and takes the cookie away.
        for path in ["/", "/session"] {
            let response = client.send("GET", path, &header, &[]).unwrap();
            assert_eq!(
                (response.status, response.cookie("session")),
                (200, Some("")),
                "{cookie:?}"
            );
        }
        // Whatever makes one makes it under a token of the shop's own.
        for (path, field) in [("/cart", "fruit"), ("/note", "note"), ("/login", "name")] {
            let response = client.send("POST", path, &header, &[(field, "x")]).unwrap();
            let given = response.cookie("session").expect("a new visitor gets a token").to_owned();
            assert_eq!((response.status, given.len()), (303, 43));
            assert_ne!(given, cookie);
            assert!(View::of(&mut client, &given).is_some());
        }
        assert_eq!(client.send("POST", "/logout", &header, &[]).unwrap().status, 303);
        assert_eq!(View::of(&mut client, cookie), None, "{cookie:?} was adopted");
    }
    // A visitor without a cookie who only looks gets none.
    assert_eq!(client.send("GET", "/", "", &[]).unwrap().cookie("session"), None);
}

#[test]
fn a_login_is_safe_from_fixation() {
    let dir = tempfile::tempdir().unwrap();
    let shop = Shop::start(dir.path());
    let (mut attacker, mut victim) = (Client::new(shop.addr), Client::new(shop.addr));

    // The attacker has a session of the shop's own and gets the victim to use its token.
    let response = attacker.send("POST", "/cart", "", &[("fruit", "lemon")]).unwrap();
    let attributes = response.header("set-cookie").unwrap().split_once("; ").unwrap().1;
    assert_eq!(attributes, "HttpOnly; SameSite=Lax; Path=/");
    assert_eq!(response.header("cache-control"), Some("no-store"));
    let planted = response.cookie("session").unwrap().to_owned();
    let header = format!("session={planted}");
    assert_eq!(victim.send("GET", "/", &header, &[]).unwrap().status, 200);
    let response = victim.send("POST", "/login", &header, &[("name", "<Ada> & \"co\"")]).unwrap();
    let token = response.cookie("session").unwrap().to_owned();

    assert_ne!(token, planted);
    assert_eq!(View::of(&mut attacker, &planted), None, "the planted token still opens a session");
    let view = View::of(&mut victim, &token).unwrap();
    assert_eq!(
        (view.cart, view.visits),
        (vec!["lemon".to_owned()], 1),
        "the cart was not carried over"
    );
    let page = victim.send("GET", "/", &format!("session={token}"), &[]).unwrap();
    assert!(page.body.contains("Welcome, &lt;Ada&gt; &amp; &quot;co&quot;."));
    // What the attacker does with the old token is done by a new visitor.
    let response = attacker.send("POST", "/cart", &header, &[("fruit", "lime")]).unwrap();
    assert_ne!(response.cookie("session"), Some(&*planted));
    assert_eq!(View::of(&mut victim, &token).unwrap().cart, ["lemon"]);

    // A logout in one tab is a quiet farewell in the other.
    let header = format!("session={token}");
    assert_eq!(victim.send("POST", "/logout", &header, &[]).unwrap().cookie("session"), Some(""));
    for (method, path) in [("GET", "/"), ("GET", "/session"), ("POST", "/logout")] {
        let response = victim.send(method, path, &header, &[]).unwrap();
        assert!(response.status < 400);
        assert_eq!(response.cookie("session"), Some(""));
    }
}

#[test]
fn a_logout_everywhere_ends_the_sessions_of_one_user() {
    let dir = tempfile::tempdir().unwrap();
    let shop = Shop::start(dir.path());
    let mut client = Client::new(shop.addr);
    let mut login = |name: &str| {
        let response = client.send("POST", "/login", "", &[("name", name)]).unwrap();
        response.cookie("session").expect("a login gives a token").to_owned()
    };
    let [phone, laptop, other] = ["ada", "ada", "grace"].map(&mut login);
    assert_eq!(View::of(&mut client, &phone).unwrap().devices.len(), 2);

    // What the login has to say is said once.
    let header = format!("session={laptop}");
    let mut page = || client.send("GET", "/", &header, &[]).unwrap().body;
    assert_eq!([page(), page()].map(|page| page.contains("You are logged in.")), [true, false]);

    let response = client.send("POST", "/logout-everywhere", &header, &[]).unwrap();
    assert_eq!(response.cookie("session"), Some(""));
    assert_eq!(
        [&phone, &laptop, &other].map(|cookie| View::of(&mut client, cookie).is_some()),
        [false, false, true]
    );
}

/// Asks the program for every session that the clients know of: how many changes were found again.
fn recall(shop: &Shop, shared: &mut Known, lives: &mut Lives) -> usize {
    let mut client = Client::new(shop.addr);
    let mut complaints = Vec::new();
    if shared.cookie.is_empty() {
        let response = client.send("POST", "/cart", "", &[("fruit", "0-first-0")]).unwrap();
        *shared = Known::created(&response, "0-first-0");
    }
    let mut seen = 0;
    for cookie in &lives.gone {
        if View::of(&mut client, cookie).is_some() {
            complaints.push("an ended session is back".to_owned());
        }
    }
    for mut known in std::mem::take(&mut lives.unsure) {
        match View::of(&mut client, &known.cookie) {
            Some(view) => {
                seen += known.compare(view, &mut complaints);
                lives.kept.push(known);
            }
            None => lives.gone.push(known.cookie),
        }
    }
    for known in lives.kept.iter_mut().chain([shared]) {
        match View::of(&mut client, &known.cookie) {
            Some(view) => seen += known.compare(view, &mut complaints),
            None => complaints.push(format!("a session is gone: {known:?}")),
        }
    }
    assert!(complaints.is_empty(), "{} complaints: {complaints:#?}", complaints.len());
    seen
}

/// What the clients know of one session: what was acknowledged, and what is in doubt.
#[derive(Clone, Debug, Default)]
struct Known {
    cookie: String,
    name: Option<String>,
    visits: usize,
    cart: BTreeSet<String>,
    note: Option<String>,
    doubt: Doubt,
}

#[derive(Clone, Debug, Default)]
struct Doubt {
    visits: usize,
    cart: BTreeSet<String>,
    note: Option<String>,
}

/// What became of a request that writes to a session.
enum Answer {
    Written,
    /// The session had ended. The request made another if the cookie is not empty.
    Ended(String),
}

impl Known {
    /// The session that a request without one has made by adding a fruit.
    fn created(response: &Response, fruit: &str) -> Self {
        let cookie = response.cookie("session").expect("a new visitor gets a token").to_owned();
        Known { cookie, cart: [fruit.to_owned()].into(), ..Known::default() }
    }

    fn visit(&mut self, browser: &mut Browser<'_>) -> Option<Answer> {
        self.doubt.visits += 1;
        let answer = browser.answer("GET", "/", &self.cookie, &[])?;
        self.doubt.visits -= 1;
        self.visits += usize::from(matches!(answer, Answer::Written));
        Some(answer)
    }

    fn add(&mut self, browser: &mut Browser<'_>, fruit: &str) -> Option<Answer> {
        self.doubt.cart.insert(fruit.to_owned());
        let answer = browser.answer("POST", "/cart", &self.cookie, &[("fruit", fruit)])?;
        self.doubt.cart.remove(fruit);
        if let Answer::Written = answer {
            self.cart.insert(fruit.to_owned());
        }
        Some(answer)
    }

    fn write(&mut self, browser: &mut Browser<'_>, note: &str) -> Option<Answer> {
        self.doubt.note = Some(note.to_owned());
        let answer = browser.answer("POST", "/note", &self.cookie, &[("note", note)])?;
        self.doubt.note = None;
        if let Answer::Written = answer {
            self.note = Some(note.to_owned());
        }
        Some(answer)
    }

    /// Adds what another client of the same session knows.
    fn learn(&mut self, other: Known) {
        self.visits += other.visits;
        self.cart.extend(other.cart);
        self.note = other.note.or(self.note.take());
        self.doubt.visits += other.doubt.visits;
        self.doubt.cart.extend(other.doubt.cart);
        self.doubt.note = other.doubt.note.or(self.doubt.note.take());
    }

    /// Compares with what the program remembers, which ends all doubt: how much was as it should.
    fn compare(&mut self, view: View, complaints: &mut Vec<String>) -> usize {
        let before = complaints.len();
        let mut expect = |holds: bool, what: &str| {
            if !holds {
                complaints.push(format!("{what}: {view:?}, known: {self:?}"));
            }
        };
        let cart: BTreeSet<_> = view.cart.iter().cloned().collect();
        let possible: BTreeSet<_> = self.cart.union(&self.doubt.cart).cloned().collect();
        expect(view.name == self.name, "another name");
        expect(view.visits >= self.visits, "a visit was lost");
        expect(view.visits <= self.visits + self.doubt.visits, "a visit too many");
        expect(cart.is_superset(&self.cart), "a fruit was lost");
        expect(cart.is_subset(&possible), "a fruit that nobody added");
        expect(cart.len() == view.cart.len(), "a fruit was added twice");
        expect(is_in_order(&view.cart), "a client's fruit are not in its order");
        let noted = view.note == self.note || (view.note == self.doubt.note && view.note.is_some());
        expect(noted, "another note");
        let View { name, visits, note, .. } = view;
        *self = Known {
            cookie: std::mem::take(&mut self.cookie),
            name,
            visits,
            cart,
            note,
            doubt: Doubt::default(),
        };
        if complaints.len() > before { 0 } else { self.visits + self.cart.len() }
    }
}

/// Fruit are called `round-client-number`. A client's next request follows the answer to its last.
fn is_in_order(cart: &[String]) -> bool {
    let mut last = BTreeMap::new();
    cart.iter().all(|fruit| {
        let (client, number) = fruit.rsplit_once('-').expect("a fruit of this test's");
        let number = number.parse::<usize>().expect("a number");
        last.insert(client, number).is_none_or(|last| last < number)
    })
}

/// What the program says about a session.
#[derive(Debug, PartialEq, serde::Deserialize)]
struct View {
    name: Option<String>,
    devices: Vec<String>,
    visits: usize,
    cart: Vec<String>,
    note: Option<String>,
}

impl View {
    fn of(client: &mut Client, cookie: &str) -> Option<Self> {
        let response = client.send("GET", "/session", &format!("session={cookie}"), &[]).unwrap();
        assert_eq!(response.status, 200);
        serde_json::from_str(&response.body).unwrap()
    }
}

/// Sessions that come and go.
#[derive(Default)]
struct Lives {
    kept: Vec<Known>,
    /// Their end was under way when the program died: there with all they had, or gone.
    unsure: Vec<Known>,
    gone: Vec<String>,
}

impl Lives {
    fn extend(&mut self, other: Lives) {
        self.kept.extend(other.kept);
        self.unsure.extend(other.unsure);
        self.gone.extend(other.gone);
    }
}

/// A client that knows that the program will be killed.
struct Browser<'a> {
    client: Client,
    fate: &'a Fate,
    acknowledged: Sender<()>,
}

#[derive(Default)]
struct Fate {
    killed: AtomicBool,
    in_flight: AtomicUsize,
}

impl Browser<'_> {
    /// Sends a request; `None` if the program was killed before it answered.
    fn send(
        &mut self,
        method: &str,
        path: &str,
        cookie: &str,
        form: &[(&str, &str)],
    ) -> Option<Response> {
        match self.client.send(method, path, &format!("session={cookie}"), form) {
            Ok(response) => {
                assert!(response.status < 400, "{method} {path}: {}", response.status);
                // Nobody counts any more once the program is killed.
                let _ = self.acknowledged.send(());
                Some(response)
            }
            Err(error) => {
                let killed = self.fate.killed.load(Ordering::SeqCst);
                assert!(killed, "{method} {path}: {error}, and the program was not killed");
                self.fate.in_flight.fetch_add(1, Ordering::SeqCst);
                None
            }
        }
    }

    fn answer(
        &mut self,
        method: &str,
        path: &str,
        cookie: &str,
        form: &[(&str, &str)],
    ) -> Option<Answer> {
        let response = self.send(method, path, cookie, form)?;
        Some(match response.cookie("session") {
            None => Answer::Written,
            Some(other) => Answer::Ended(other.to_owned()),
        })
    }

    fn look(&mut self, cookie: &str) -> Option<Option<View>> {
        let response = self.send("GET", "/session", cookie, &[])?;
        Some(serde_json::from_str(&response.body).unwrap())
    }
}

/// Uses the session that all sharers use, until the program dies. No answer may be without what
/// this client knows.
fn share(browser: &mut Browser<'_>, known: &mut Known, round: usize, me: usize) -> Option<()> {
    for n in 1.. {
        let fruit = format!("{round}-s{me}-{n}");
        let answers = [
            known.add(browser, &fruit)?,
            known.visit(browser)?,
            // Only one client writes the note, so that it knows which one is the last.
            if me == 0 { known.write(browser, &fruit)? } else { known.visit(browser)? },
        ];
        assert!(
            answers.iter().all(|answer| matches!(answer, Answer::Written)),
            "a session is gone"
        );
        if n % 8 == 0 {
            let view = browser.look(&known.cookie)?.expect("nobody ends this session");
            assert!(view.visits >= known.visits, "own visits are missing");
            assert!(
                known.cart.iter().all(|fruit| view.cart.contains(fruit)),
                "own fruit is missing"
            );
        }
    }
    None
}

/// A guest fills a cart, logs in and mostly logs out, again and again, while a second tab goes on
/// using the session that is being given another token or ended.
fn come_and_go(
    browser: &mut Browser<'_>,
    tab: &mut Browser<'_>,
    lives: &mut Lives,
    round: usize,
    me: usize,
) -> Option<()> {
    for n in 1.. {
        let fruit = format!("{round}-g{me}.{n}-0");
        let response = browser.send("POST", "/cart", "", &[("fruit", &fruit)])?;
        let mut guest = Known::created(&response, &fruit);

        let name = format!("guest {n}");
        let login = race(browser, "/login", &[("name", &name)], tab, &mut guest, lives);
        let Some(login) = login else {
            lives.unsure.push(guest);
            return None;
        };
        let cookie = login.cookie("session").expect("a login gives a token").to_owned();
        lives.gone.push(guest.cookie);
        let mut user = Known { cookie, name: Some(name), ..guest };
        let Some(seen) = browser.look(&user.cookie) else {
            lives.kept.push(user);
            return None;
        };
        let mut complaints = Vec::new();
        user.compare(seen.expect("a login makes a session"), &mut complaints);
        assert!(complaints.is_empty(), "after a login: {complaints:#?}");

        if n % 3 == 0 {
            lives.kept.push(user);
            continue;
        }
        let logout = race(browser, "/logout", &[], tab, &mut user, lives);
        let Some(_) = logout else {
            lives.unsure.push(user);
            return None;
        };
        lives.gone.push(user.cookie.clone());
        assert_eq!(browser.look(&user.cookie)?, None, "a logout without effect");
    }
    None
}

/// Ends a session, or the use of its cookie, by posting to `path`, while the second tab writes to it: the answer to the post.
fn race(
    browser: &mut Browser<'_>,
    path: &str,
    form: &[(&str, &str)],
    tab: &mut Browser<'_>,
    known: &mut Known,
    lives: &mut Lives,
) -> Option<Response> {
    let cookie = known.cookie.clone();
    let together = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            let fruit = known.cart.first().expect("a fruit made this session").clone();
            together.wait();
            for n in 0..3 {
                let fruit = format!("{fruit}{path}-{n}");
                match known.add(tab, &fruit)? {
                    Answer::Written => {}
                    // Too late for this session: a new visitor, who has this fruit and nothing else.
                    Answer::Ended(cookie) => {
                        let cart = [fruit].into();
                        lives.kept.push(Known { cookie, cart, ..Known::default() });
                        break;
                    }
                }
                known.visit(tab)?;
            }
            Some(())
        });
        together.wait();
        browser.send("POST", path, &cookie, form)
    })
}

/// The program. Dropping it kills it.
struct Shop {
    child: Child,
    addr: SocketAddr,
}

/// What the clients know after the program was killed.
struct Load {
    shares: Vec<Known>,
    lives: Lives,
    acknowledged: usize,
    in_flight: usize,
}

impl Shop {
    /// Starts the program and returns when it is ready.
    fn start(dir: &Path) -> Self {
        let mut command = Command::new(example::built("shop"));
        command.arg(dir).arg("127.0.0.1:0").stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut shop = Shop { child, addr: ([127, 0, 0, 1], 0).into() };
        let (sender, ready) = mpsc::channel();
        let line = thread::scope(|scope| {
            scope.spawn(move || {
                let mut line = String::new();
                sender.send(stdout.read_line(&mut line).map(|_| line))
            });
            let line = ready.recv_timeout(PATIENCE);
            if line.is_err() {
                // The reader above ends with the program.
                shop.stop();
            }
            line
        });
        let line = line.expect("the program is ready in time").unwrap();
        let addr = line.trim().strip_prefix("listening on http://");
        shop.addr = addr.unwrap_or_else(|| panic!("{line:?}")).parse().unwrap();
        shop
    }

    /// Lets all clients loose and kills the program in the middle of it.
    fn kill_under_load(mut self, round: usize, shared: &str) -> Load {
        let fate = Fate::default();
        let (sender, acknowledged) = mpsc::channel();
        let browser = || Browser {
            client: Client::new(self.addr),
            fate: &fate,
            acknowledged: sender.clone(),
        };
        let mut browsers: Vec<_> = (0..SHARERS + 2 * GUESTS).map(|_| browser()).collect();
        let guests = browsers.split_off(SHARERS);
        let mut shares = vec![Known { cookie: shared.to_owned(), ..Known::default() }; SHARERS];
        let mut guests_lives: Vec<_> = (0..GUESTS).map(|_| Lives::default()).collect();
        let mut pairs = guests.into_iter();
        drop(sender);

        thread::scope(|scope| {
            for (me, (mut browser, known)) in browsers.into_iter().zip(&mut shares).enumerate() {
                scope.spawn(move || share(&mut browser, known, round, me));
            }
            for (me, lives) in guests_lives.iter_mut().enumerate() {
                let mut pair = || pairs.next().expect("two browsers for each guest");
                let (mut browser, mut tab) = (pair(), pair());
                scope.spawn(move || come_and_go(&mut browser, &mut tab, lives, round, me));
            }
            for _ in 0..ACKNOWLEDGED {
                // An error means that clients have panicked, and they have said why.
                if acknowledged.recv_timeout(PATIENCE).is_err() {
                    break;
                }
            }
            fate.killed.store(true, Ordering::SeqCst);
            self.stop();
        });
        let mut lives = Lives::default();
        guests_lives.into_iter().for_each(|guest| lives.extend(guest));
        let acknowledged = ACKNOWLEDGED + acknowledged.try_iter().count();
        Load { shares, lives, acknowledged, in_flight: fate.in_flight.into_inner() }
    }

    /// Kills the program as hard as the system can.
    fn stop(&mut self) {
        // It fails where the program is dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.stop();
    }
}
