//! The shop of `examples/` in a real browser: two tabs, another device, and a server that dies.
//!
//! What [`program`](../program.rs) counts from outside is looked at here as people see it. Nothing is left
//! to chance that need not be: to have two requests under way at once the shop is stopped (SIGSTOP) while
//! both tabs send theirs, and goes on when both are waiting.
//!
//! It needs Chromium and its driver, and is skipped where they are missing.

#![cfg(unix)]
#![expect(clippy::print_stdout, reason = "the test tells what it did")]
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

#[path = "support/chromium.rs"]
mod chromium;
#[path = "support/example.rs"]
mod example;
#[path = "support/http.rs"]
mod http;
#[path = "support/shop.rs"]
mod shop;

use std::io::{self, Write};
use std::process::Command;

use chromium::{Browser, Driver};
use http::Client;
use shop::{COOKIE, Shop};
use tempfile::TempDir;

const LAPTOP: &str = "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0";
const PHONE: &str = "Mozilla/5.0 (Linux; Android 16) Chrome/148.0 Mobile";

const SKIPPED: &str =
    "skipped: no chromium and chromedriver; apt-get install chromium chromium-driver";

/// How often two requests meet, of each kind.
const ROUNDS: usize = 6;

/// The shop, and what is the same before and after it dies.
struct World {
    shop: Shop,
    dir: TempDir,
}

impl World {
    fn url(&self) -> String {
        format!("http://{}/", self.shop.addr)
    }

    /// Kills the shop, and starts it again on the same store and port.
    fn kill_and_restart(&mut self) {
        self.shop.stop();
        self.shop = Shop::start_at(self.dir.path(), self.shop.addr);
    }

    /// Does something while the shop answers nobody.
    fn while_it_waits(&self, work: impl FnOnce()) {
        let signal = |name: &str| {
            // Every shell can do that; the program `kill` is not everywhere.
            let command = format!("kill -{name} {}", self.shop.pid());
            assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
        };
        signal("STOP");
        work();
        signal("CONT");
    }

    /// What the shop says about the session that a cookie means; `null` if it means none.
    fn session(&self, cookie: &str) -> String {
        let cookie = format!("{COOKIE}={cookie}");
        let response = Client::new(self.shop.addr).send("GET", "/session", &cookie, &[]).unwrap();
        assert_eq!(response.status, 200);
        response.body
    }

    /// Logs in by the form of the first tab, and has all tabs show what is there then: the new cookie.
    fn login(&self, browser: &mut Browser, name: &str) -> String {
        browser.send(0, "/login", &[("name", name)], 0);
        let page = browser.arrive(0);
        assert!(page.contains(&format!("Welcome, {name}.")), "{page}");
        self.see(browser, name);
        browser.cookie(COOKIE).unwrap()
    }

    /// Looks at the page anew in both tabs: what the last says. It must be `name` who is welcome.
    fn see(&self, browser: &mut Browser, name: &str) -> String {
        let pages = [0, 1].map(|tab| browser.go(tab, &self.url()));
        for page in &pages {
            assert!(page.contains(&format!("Welcome, {name}.")), "{page}");
            assert_eq!(page.contains("Log out"), name != "stranger", "{page}");
        }
        let [_, page] = pages;
        page
    }
}

#[test]
fn people_lose_nothing_and_nobody_is_logged_in_again() {
    let Some(driver) = Driver::start() else {
        // Past what catches the output of tests that pass.
        let _ = writeln!(io::stderr(), "{SKIPPED}");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let shop = Shop::start(dir.path());
    let mut world = World { shop, dir };
    let mut laptop = Browser::start(&driver, 2, LAPTOP);

    let cookie = a_planted_cookie_is_worth_nothing_after_the_login(&world, &mut laptop);
    println!("a planted cookie: worth nothing after the login; a flash: shown once");
    two_tabs_change_the_session_at_once(&mut world, &mut laptop);
    assert_eq!(laptop.cookie(COOKIE).unwrap(), cookie);
    println!("{ROUNDS} times two tabs at once, and as many kills: nothing lost, still logged in");
    a_save_that_meets_a_logout_brings_nobody_back(&mut world, &mut laptop);
    println!("{ROUNDS} times a logout while the other tab saves: nobody is logged in again");
    let mut phone = Browser::start(&driver, 2, PHONE);
    one_device_ends_another(&mut world, &mut laptop, &mut phone);
    println!("one device, and everywhere: ended from another browser, after a kill too");
}

fn a_planted_cookie_is_worth_nothing_after_the_login(
    world: &World,
    browser: &mut Browser,
) -> String {
    let mut attacker = Client::new(world.shop.addr);
    let page = attacker.send("GET", "/", "", &[]).unwrap();
    let planted = page.cookie(COOKIE).unwrap();
    browser.go(0, &world.url());
    browser.plant(COOKIE, planted);
    world.see(browser, "stranger");
    // Two visits are the browser's, and the first the attacker's: it uses the session that was planted.
    assert!(world.session(planted).contains(r#""visits":3"#), "{}", world.session(planted));

    browser.send(0, "/login", &[("name", "Ada")], 0);
    let page = browser.arrive(0);
    assert!(page.contains("Welcome, Ada.") && page.contains("You are logged in."), "{page}");
    let page = world.see(browser, "Ada");
    assert!(!page.contains("You are logged in."), "{page}");
    assert!(page.contains("Firefox on Linux") && page.contains("this one"), "{page}");
    let cookie = browser.cookie(COOKIE).unwrap();
    assert_ne!(cookie, planted);
    assert_eq!(world.session(planted), "null");
    cookie
}

fn two_tabs_change_the_session_at_once(world: &mut World, browser: &mut Browser) {
    for round in 1..=ROUNDS {
        let [apple, pear] = ["apple", "pear"].map(|fruit| format!("{fruit}-{round}"));
        let note = format!("note-{round}");
        world.while_it_waits(|| {
            browser.send(0, "/cart", &[("fruit", &apple)], 0);
            // Different things at once, and the same thing.
            match round % 2 {
                0 => browser.send(1, "/note", &[("note", &note)], 0),
                _ => browser.send(1, "/cart", &[("fruit", &pear)], 0),
            }
        });
        for tab in [0, 1] {
            browser.arrive(tab);
        }
        world.kill_and_restart();
        let page = world.see(browser, "Ada");
        for before in 1..=round {
            assert!(page.contains(&format!("1 × apple-{before}")), "round {round}: {page}");
            let pear = format!("1 × pear-{before}");
            assert_eq!(page.contains(&pear), before % 2 == 1, "round {round}: {page}");
        }
        assert!(round % 2 == 1 || page.contains(&note), "round {round}: {page}");
    }
}

fn a_save_that_meets_a_logout_brings_nobody_back(world: &mut World, browser: &mut Browser) {
    for round in 1..=ROUNDS {
        let page = world.see(browser, if round == 1 { "Ada" } else { "stranger" });
        assert_eq!(page.contains("× apple"), round == 1, "{page}");
        if round > 1 {
            world.login(browser, "Ada");
        }
        let cookie = browser.cookie(COOKIE).unwrap();
        assert!(world.session(&cookie).contains("Ada"));
        let note = format!("late-{round}");
        world.while_it_waits(|| match round % 2 {
            0 => {
                browser.send(0, "/logout", &[], 0);
                browser.send(1, "/note", &[("note", &note)], 3);
            }
            _ => {
                browser.send(1, "/note", &[("note", &note)], 3);
                browser.send(0, "/logout", &[], 0);
            }
        });
        for tab in [0, 1] {
            browser.arrive(tab);
        }
        for is_restarted in [false, true] {
            if is_restarted {
                world.kill_and_restart();
            }
            let page = world.see(browser, "stranger");
            assert!(!page.contains("late-"), "{page}");
            assert_eq!(world.session(&cookie), "null", "the session is there again");
        }
    }
}

fn one_device_ends_another(world: &mut World, laptop: &mut Browser, phone: &mut Browser) {
    phone.go(0, &world.url());
    let at_home = world.login(laptop, "Ada");
    let first = world.login(phone, "Ada");
    let page = world.see(laptop, "Ada");
    assert!(page.contains("Firefox on Linux") && page.contains("Chrome on Android"), "{page}");

    // A button beside the other device.
    laptop.send(1, "/logout-device", &[], 0);
    let page = laptop.arrive(1);
    assert!(page.contains("That device is logged out."), "{page}");
    assert!(!page.contains("Chrome on Android"), "{page}");
    world.see(phone, "stranger");
    world.see(laptop, "Ada");
    assert_eq!(world.session(&first), "null");

    let second = world.login(phone, "Ada");
    phone.send(1, "/logout-everywhere", &[], 0);
    assert!(phone.arrive(1).contains("Welcome, stranger."));
    for is_restarted in [false, true] {
        if is_restarted {
            world.kill_and_restart();
        }
        world.see(laptop, "stranger");
        world.see(phone, "stranger");
        assert_eq!([&at_home, &second].map(|cookie| world.session(cookie)), ["null", "null"]);
    }
}
