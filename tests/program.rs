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
//!   guest ------\                      visit, add a fruit    log in      log out
//!                +--> many sessions                           ||           ||     || races with
//!   second tab -/                                        add, visit     add, visit
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
#[path = "support/shop.rs"]
mod shop;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;

use http::{Client, Response};
use sessile::{Policy, Store, Token};
use shop::{COOKIE, PATIENCE, Shop};

const ROUNDS: usize = 4;
const SHARERS: usize = 4;
const GUESTS: usize = 2;

/// After how many acknowledged requests the program dies. Sharers spend a third of theirs on fruit,
/// so that no cart ever reaches the shop's limit of 1,000.
const ACKNOWLEDGED: usize = 600;

#[test]
fn what_was_acknowledged_survives_kills() {
    let dir = tempfile::tempdir().unwrap();
    let mut shared = Known::default();
    let mut lives = Lives::default();
    let mut in_flight = 0;

    for round in 1..=ROUNDS {
        let shop = Shop::start(dir.path());
        let seen = recall(&shop, &mut shared, &mut lives);
        let load = shop.kill_under_load(round, &shared);
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
    // A token for forms, of somebody else's session.
    let other = begin(&mut client);
    let csrf = &*View::of(&mut client, &other).unwrap().csrf;

    let planted = Token::random().unwrap().expose();
    let almost = format!("{}=", &planted);
    let long = "A".repeat(4_000);
    for cookie in [&*planted, "", "guest", "\"", "../../etc/passwd", &almost, &long, &planted[1..]]
    {
        let header = format!("other=1; {COOKIE}={cookie}; session_id={planted}");
        // What means no session is taken away, be it a token or nonsense.
        let away = Some("");
        // Looking makes no session.
        let response = client.send("GET", "/session", &header, &[]).unwrap();
        assert_eq!((response.status, response.cookie(COOKIE)), (200, away), "{cookie:?}");
        // Nor does a form that the shop has not given to this visitor.
        for (path, field) in FORMS {
            let form = [(*field, NOBODYS), ("csrf", csrf)];
            let response = client.send("POST", path, &header, &form).unwrap();
            assert_eq!((response.status, response.cookie(COOKIE)), (403, away), "{path}");
        }
        // The page makes one, under a token of the shop's own.
        let response = client.send("GET", "/", &header, &[]).unwrap();
        let given = response.cookie(COOKIE).expect("a new visitor gets a token").to_owned();
        assert_eq!((response.status, given.len()), (200, 43));
        assert_ne!(given, cookie);
        assert!(View::of(&mut client, &given).is_some());
        assert_eq!(View::of(&mut client, cookie), None, "{cookie:?} was adopted");
    }
    // A visitor without a cookie who only looks gets none.
    assert_eq!(client.send("GET", "/session", "", &[]).unwrap().cookie(COOKIE), None);
}

/// The id of no session, which is good for every field.
const NOBODYS: &str = "00000000000000000000000000000000";

/// Every form of the shop, with a field that it has.
const FORMS: &[(&str, &str)] = &[
    ("/cart", "fruit"),
    ("/note", "note"),
    ("/login", "name"),
    ("/logout", "no"),
    ("/logout-device", "device"),
    ("/logout-everywhere", "no"),
];

#[test]
fn a_form_of_another_site_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let shop = Shop::start(dir.path());
    let mut client = Client::new(shop.addr);
    let [ada, ada_too, eve] = [(); 3].map(|()| begin(&mut client));
    let [ada, _] = [ada, ada_too].map(|guest| login(&mut client, &guest, &[("name", "ada")]));
    let before = View::of(&mut client, &ada).unwrap();
    assert_eq!(before.devices.len(), 2);

    let header = format!("{COOKIE}={ada}");
    let theirs = View::of(&mut client, &eve).unwrap().csrf;
    let device = before.devices.iter().find(|device| !device.is_here).unwrap().id.clone();
    for (path, field) in FORMS {
        let value = if *field == "device" { &*device } else { NOBODYS };
        let forms = [vec![(*field, value)], vec![(*field, value), ("csrf", &*theirs)]];
        for form in forms {
            let response = client.send("POST", path, &header, &form).unwrap();
            assert_eq!((response.status, response.cookie(COOKIE)), (403, None), "{path}");
        }
    }
    let View { csrf, .. } = &before;
    let after = View::of(&mut client, &ada).unwrap();
    assert_eq!(View { csrf: csrf.clone(), ..after }, before);
    // The pages have the token that makes the difference, in every form.
    for cookie in [&ada, &eve] {
        let page = client.send("GET", "/", &format!("{COOKIE}={cookie}"), &[]).unwrap().body;
        let count = |what: &str| page.matches(what).count();
        assert!(count("<form") >= 4);
        assert_eq!(count("<form"), count(r#"<input type="hidden" name="csrf""#));
    }
}

#[test]
fn a_login_is_safe_from_fixation() {
    let dir = tempfile::tempdir().unwrap();
    let shop = Shop::start(dir.path());
    let (mut attacker, mut victim) = (Client::new(shop.addr), Client::new(shop.addr));

    // The attacker has a session of the shop's own and gets the victim to use its token.
    let response = attacker.send("GET", "/", "", &[]).unwrap();
    let attributes = response.header("set-cookie").unwrap().split_once("; ").unwrap().1;
    assert_eq!(attributes, "HttpOnly; SameSite=Lax; Secure; Path=/");
    assert_eq!(response.header("cache-control"), Some("no-store"));
    let planted = response.cookie(COOKIE).unwrap().to_owned();
    assert_eq!(post(&mut attacker, "/cart", &planted, &[("fruit", "lemon")]).status, 303);
    let stale = View::of(&mut attacker, &planted).unwrap().csrf;
    let header = format!("{COOKIE}={planted}");
    assert_eq!(victim.send("GET", "/", &header, &[]).unwrap().status, 200);
    let token = login(&mut victim, &planted, &[("name", "<Ada> & \"co\"")]);

    assert_ne!(token, planted);
    assert_eq!(View::of(&mut attacker, &planted), None, "the planted token still opens a session");
    let view = View::of(&mut victim, &token).unwrap();
    assert_eq!(
        (view.cart, view.visits),
        (vec!["lemon".to_owned()], 2),
        "the cart was not carried over"
    );
    let page = victim.send("GET", "/", &format!("{COOKIE}={token}"), &[]).unwrap();
    assert!(page.body.contains("Welcome, &lt;Ada&gt; &amp; &quot;co&quot;."));
    // What the attacker does with the old token is refused. For a while nobody begins a session with it
    // either: the cookie of a visitor who is late would take the place of that of the login.
    let form = [("fruit", "lime"), ("csrf", &*stale)];
    assert_eq!(attacker.send("POST", "/cart", &header, &form).unwrap().status, 403);
    let response = attacker.send("GET", "/", &header, &[]).unwrap();
    assert_eq!((response.status, response.cookie(COOKIE)), (409, None));
    assert_eq!(View::of(&mut victim, &token).unwrap().cart, ["lemon"]);

    // A logout in one tab is a quiet farewell in the other.
    let csrf = View::of(&mut victim, &token).unwrap().csrf;
    assert_eq!(post(&mut victim, "/logout", &token, &[]).cookie(COOKIE), Some(""));
    let header = format!("{COOKIE}={token}");
    let mut look = |method: &str, path: &str, form: &[(&str, &str)]| {
        let response = victim.send(method, path, &header, form).unwrap();
        (response.status, response.cookie(COOKIE).unwrap().to_owned())
    };
    assert_eq!(look("GET", "/session", &[]), (200, String::new()));
    assert_eq!(look("POST", "/logout", &[("csrf", &csrf)]), (403, String::new()));
    let (status, given) = look("GET", "/", &[]);
    assert!(status == 200 && given.len() == 43 && given != token);
}

#[test]
fn a_logout_everywhere_ends_the_sessions_of_one_user() {
    let dir = tempfile::tempdir().unwrap();
    let shop = Shop::start(dir.path());
    let mut client = Client::new(shop.addr);
    let [phone, laptop, tablet, other] = ["ada", "ada", "ada", "grace"].map(|name| {
        let guest = begin(&mut client);
        login(&mut client, &guest, &[("name", name)])
    });
    let devices = View::of(&mut client, &phone).unwrap().devices;
    assert_eq!(devices.iter().map(|d| d.is_here).collect::<Vec<_>>(), [true, false, false]);

    // What the login has to say is said once.
    let header = format!("{COOKIE}={laptop}");
    let mut page = || client.send("GET", "/", &header, &[]).unwrap().body;
    assert_eq!([page(), page()].map(|page| page.contains("You are logged in.")), [true, false]);

    let are_in = |client: &mut Client| {
        [&phone, &laptop, &tablet, &other].map(|cookie| View::of(client, cookie).is_some())
    };
    // Nobody ends a device of somebody else's.
    let end = [("device", &*devices[2].id)];
    assert_eq!(post(&mut client, "/logout-device", &other, &end).status, 303);
    assert_eq!(are_in(&mut client), [true, true, true, true]);
    assert_eq!(post(&mut client, "/logout-device", &laptop, &end).status, 303);
    assert_eq!(are_in(&mut client), [true, true, false, true]);

    let response = post(&mut client, "/logout-everywhere", &laptop, &[]);
    assert_eq!(response.cookie(COOKIE), Some(""));
    assert_eq!(are_in(&mut client), [false, false, false, true]);
}

#[test]
fn who_wants_to_be_remembered_has_a_cookie_that_lasts() {
    let dir = tempfile::tempdir().unwrap();
    let shop = Shop::start(dir.path());
    let mut client = Client::new(shop.addr);
    for (form, lasts) in
        [(vec![("name", "ada")], false), (vec![("name", "ada"), ("remember", "on")], true)]
    {
        let guest = begin(&mut client);
        let response = post(&mut client, "/login", &guest, &form);
        assert_eq!(response.header("set-cookie").unwrap().contains("Expires="), lasts);
    }
    drop(shop);
    let store = Store::open(dir.path()).unwrap();
    let txn = store.begin().unwrap();
    let sessions = txn.sessions_of(&store.container("visitors").unwrap(), "ada").unwrap();
    let lives = sessions
        .iter()
        .map(|session| (session.expires.unwrap().as_secs() - session.created.as_secs()) / 86_400);
    assert_eq!(lives.collect::<Vec<_>>(), [0, 30]);
}

/// Visits the page as somebody new: the cookie.
fn begin(client: &mut Client) -> String {
    let response = client.send("GET", "/", "", &[]).unwrap();
    response.cookie(COOKIE).expect("a new visitor gets a token").to_owned()
}

/// Sends a form that a page of the shop's has shown to this visitor.
fn post(client: &mut Client, path: &str, cookie: &str, form: &[(&str, &str)]) -> Response {
    let csrf = View::of(client, cookie).expect("the visitor has a session").csrf;
    let form: Vec<_> = form.iter().copied().chain([("csrf", &*csrf)]).collect();
    client.send("POST", path, &format!("{COOKIE}={cookie}"), &form).unwrap()
}

/// Logs a visitor in: the cookie they have then.
fn login(client: &mut Client, cookie: &str, form: &[(&str, &str)]) -> String {
    let response = post(client, "/login", cookie, form);
    response.cookie(COOKIE).expect("a login gives a token").to_owned()
}

/// Asks the program for every session that the clients know of: how many changes were found again.
fn recall(shop: &Shop, shared: &mut Known, lives: &mut Lives) -> usize {
    let mut client = Client::new(shop.addr);
    let mut complaints = Vec::new();
    if shared.cookie.is_empty() {
        *shared = Known::begun(&client.send("GET", "/", "", &[]).unwrap());
        shared.csrf = View::of(&mut client, &shared.cookie).unwrap().csrf;
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
    /// What its forms have in their hidden field.
    csrf: String,
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
    /// The session had ended, or had another token. The visit made another if the cookie is not empty; a
    /// form makes none, nor does a visit that was under way during a login.
    Ended(String),
}

impl Known {
    /// The session that a visit without one has made.
    fn begun(response: &Response) -> Self {
        let cookie = response.cookie(COOKIE).expect("a new visitor gets a token").to_owned();
        Known { cookie, visits: 1, ..Known::default() }
    }

    fn visit(&mut self, browser: &mut Browser<'_>) -> Option<Answer> {
        self.doubt.visits += 1;
        let answer = browser.answer("GET", "/", self, &[])?;
        self.doubt.visits -= 1;
        self.visits += usize::from(matches!(answer, Answer::Written));
        Some(answer)
    }

    fn add(&mut self, browser: &mut Browser<'_>, fruit: &str) -> Option<Answer> {
        self.doubt.cart.insert(fruit.to_owned());
        let answer = browser.answer("POST", "/cart", self, &[("fruit", fruit)])?;
        self.doubt.cart.remove(fruit);
        if let Answer::Written = answer {
            self.cart.insert(fruit.to_owned());
        }
        Some(answer)
    }

    fn write(&mut self, browser: &mut Browser<'_>, note: &str) -> Option<Answer> {
        self.doubt.note = Some(note.to_owned());
        let answer = browser.answer("POST", "/note", self, &[("note", note)])?;
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
        let View { name, visits, note, csrf, .. } = view;
        *self = Known {
            cookie: std::mem::take(&mut self.cookie),
            csrf,
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
    devices: Vec<Device>,
    visits: usize,
    cart: Vec<String>,
    note: Option<String>,
    /// Another text each time.
    csrf: String,
}

#[derive(Debug, PartialEq, serde::Deserialize)]
struct Device {
    id: String,
    is_here: bool,
}

impl View {
    fn of(client: &mut Client, cookie: &str) -> Option<Self> {
        let response = client.send("GET", "/session", &format!("{COOKIE}={cookie}"), &[]).unwrap();
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
        match self.client.send(method, path, &format!("{COOKIE}={cookie}"), form) {
            Ok(response) => {
                let is_refused =
                    response.status == 409 || method == "POST" && response.status == 403;
                assert!(
                    response.status < 400 || is_refused,
                    "{method} {path}: {}",
                    response.status
                );
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

    /// Sends a request of this session, with a token for forms.
    fn answer(
        &mut self,
        method: &str,
        path: &str,
        Known { cookie, csrf, .. }: &Known,
        form: &[(&str, &str)],
    ) -> Option<Answer> {
        let form: Vec<_> = form.iter().copied().chain([("csrf", &**csrf)]).collect();
        let response = self.send(method, path, cookie, &form)?;
        let given = response.cookie(COOKIE);
        if [403, 409].contains(&response.status) {
            assert!(given.is_none_or(str::is_empty), "what is refused begins no session");
            return Some(Answer::Ended(String::new()));
        }
        Some(given.map_or(Answer::Written, |other| Answer::Ended(other.to_owned())))
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
        let mut guest = Known::begun(&browser.send("GET", "/", "", &[])?);
        let added = browser.look(&guest.cookie).and_then(|view| {
            guest.csrf = view.expect("a visit makes a session").csrf;
            guest.add(browser, &fruit)
        });
        let Some(added) = added else {
            lives.kept.push(guest);
            return None;
        };
        assert!(matches!(added, Answer::Written), "a session is gone");

        let name = format!("guest {n}");
        let login = race(browser, "/login", &[("name", &name)], tab, &mut guest, lives);
        let Some(login) = login else {
            lives.unsure.push(guest);
            return None;
        };
        let cookie = login.cookie(COOKIE).expect("a login gives a token").to_owned();
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
    let (cookie, csrf) = (known.cookie.clone(), known.csrf.clone());
    let form: Vec<_> = form.iter().copied().chain([("csrf", &*csrf)]).collect();
    let together = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            let fruit = known.cart.first().expect("a fruit made this session").clone();
            together.wait();
            for n in 0..3 {
                let fruit = format!("{fruit}{path}-{n}");
                known.add(tab, &fruit)?;
                // Too late for this session: a new visitor, who has been here once.
                if let Answer::Ended(cookie) = known.visit(tab)? {
                    if !cookie.is_empty() {
                        lives.kept.push(Known { cookie, visits: 1, ..Known::default() });
                    }
                    break;
                }
            }
            Some(())
        });
        together.wait();
        browser.send("POST", path, &cookie, &form)
    })
}

/// What the clients know after the program was killed.
struct Load {
    shares: Vec<Known>,
    lives: Lives,
    acknowledged: usize,
    in_flight: usize,
}

impl Shop {
    /// Lets all clients loose and kills the program in the middle of it.
    fn kill_under_load(mut self, round: usize, shared: &Known) -> Load {
        let fate = Fate::default();
        let (sender, acknowledged) = mpsc::channel();
        let browser = || Browser {
            client: Client::new(self.addr),
            fate: &fate,
            acknowledged: sender.clone(),
        };
        let mut browsers: Vec<_> = (0..SHARERS + 2 * GUESTS).map(|_| browser()).collect();
        let guests = browsers.split_off(SHARERS);
        let Known { cookie, csrf, .. } = shared.clone();
        let mut shares = vec![Known { cookie, csrf, ..Known::default() }; SHARERS];
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
}
