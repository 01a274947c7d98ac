//! Chromium without a screen, told what to do through WebDriver.
//!
//! That is HTTP and JSON (<https://www.w3.org/TR/webdriver2>), of which half a dozen commands are used
//! here. [`http`](crate::http) does that already, and a crate for it would bring forty others.
//!
//! Commands do not wait for pages. A page is *left* by the script that goes elsewhere, and *there* when
//! another has been loaded, so that what is seen is never what was there before.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::Client;

/// How long to wait for a page, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// As root, in a container, and without a word to anybody.
const FLAGS: &str = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run \
                     --disable-background-networking --disable-component-update --disable-sync \
                     --disable-dev-shm-usage";

/// The program that commands browsers. Dropping it kills it.
pub(crate) struct Driver {
    child: Child,
    addr: SocketAddr,
    /// It would end if nobody could hear it any more.
    _stdout: BufReader<ChildStdout>,
}

impl Driver {
    /// Starts it; `None` where it, or Chromium, is not installed.
    pub(crate) fn start() -> Option<Self> {
        let mut version = Command::new("chromium");
        version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().ok()?;
        let mut command = Command::new("chromedriver");
        let mut child = command.arg("--port=0").stdout(Stdio::piped()).spawn().ok()?;
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let port = loop {
            let mut line = String::new();
            assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "chromedriver ended");
            let port = line.trim().strip_prefix("ChromeDriver was started successfully on port ");
            if let Some(port) = port {
                break port.trim_end_matches('.').parse::<u16>().unwrap();
            }
        };
        Some(Driver { child, addr: ([127, 0, 0, 1], port).into(), _stdout: stdout })
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // It fails where it is dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A browser with a profile of its own. Dropping it ends it.
pub(crate) struct Browser {
    client: Client,
    session: String,
    /// The handles of its tabs.
    tabs: Vec<String>,
    _profile: TempDir,
}

impl Browser {
    /// Starts a browser that has this many tabs, and calls itself `agent`.
    pub(crate) fn start(driver: &Driver, tabs: usize, agent: &str) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut args: Vec<_> = FLAGS.split_whitespace().map(str::to_owned).collect();
        args.push(format!("--user-data-dir={}", profile.path().display()));
        args.push(format!("--user-agent={agent}"));
        let wanted = json!({ "pageLoadStrategy": "none", "goog:chromeOptions": { "args": args } });
        let client = Client::new(driver.addr);
        let mut browser =
            Browser { client, session: String::new(), tabs: Vec::new(), _profile: profile };
        let wanted = json!({ "capabilities": { "alwaysMatch": wanted } });
        let begun = browser.command("POST", "", &wanted).unwrap();
        browser.session = format!("/{}", begun["sessionId"].as_str().unwrap());
        let first = browser.command("GET", "/window", &Value::Null).unwrap();
        browser.tabs.push(first.as_str().unwrap().to_owned());
        while browser.tabs.len() < tabs {
            let tab = browser.command("POST", "/window/new", &json!({ "type": "tab" })).unwrap();
            browser.tabs.push(tab["handle"].as_str().unwrap().to_owned());
        }
        browser
    }

    /// Gives a command; an error if it was not understood or cannot be done now.
    fn command(&mut self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let path = format!("/session{}{path}", self.session);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let headers = "Content-Type: application/json\r\n";
        let response = self.client.exchange(method, &path, headers, &body).unwrap();
        let mut answer: Value = serde_json::from_str(&response.body).unwrap();
        match response.status {
            200 => Ok(answer["value"].take()),
            status => Err(format!("{status} {}: {}", path, answer["value"]["message"])),
        }
    }

    /// Runs a script in a tab.
    fn run(&mut self, tab: usize, script: &str, args: &Value) -> Result<Value, String> {
        let handle = json!({ "handle": self.tabs[tab] });
        self.command("POST", "/window", &handle)?;
        self.command("POST", "/execute/sync", &json!({ "script": script, "args": args }))
    }

    /// Goes to a page: what it says.
    pub(crate) fn go(&mut self, tab: usize, url: &str) -> String {
        let script = "window.isLeft = true; location.assign(arguments[0])";
        self.run(tab, script, &json!([url])).unwrap();
        self.arrive(tab)
    }

    /// Fills a form in and sends it, and does not wait for the answer. Before that the page sends the same
    /// form by itself, `saves` times, as one does that saves while its visitor is typing.
    pub(crate) fn send(&mut self, tab: usize, action: &str, fields: &[(&str, &str)], saves: usize) {
        let script = r#"
            const [action, fields, saves] = arguments;
            const form = [...document.forms].find(form =>
                form.getAttribute('action') === action
                && fields.every(([name]) => form.querySelector(`input[name="${name}"]`)));
            for (const [name, value] of fields) form.elements[name].value = value;
            const body = new URLSearchParams(new FormData(form));
            for (let n = 0; n < saves; n++)
                fetch(action, { method: 'POST', body, redirect: 'manual', keepalive: true });
            window.isLeft = true;
            form.requestSubmit(form.querySelector('button'));
        "#;
        self.run(tab, script, &json!([action, fields, saves])).unwrap();
    }

    /// Waits until the page that was asked for is there: what it says.
    pub(crate) fn arrive(&mut self, tab: usize) -> String {
        let script = "return window.isLeft || document.readyState !== 'complete' ? null \
                      : document.body.innerText + '\\n' \
                        + [...document.querySelectorAll('input[name=note]')].map(i => i.value)";
        #[expect(clippy::disallowed_methods, reason = "a browser needs real time")]
        let begun = Instant::now();
        loop {
            // There is no page to ask while one takes the place of another.
            let seen = self.run(tab, script, &json!([]));
            if let Ok(Value::String(text)) = &seen {
                return text.clone();
            }
            assert!(begun.elapsed() < PATIENCE, "no page comes: {seen:?}");
            // Not to prove anything, but to leave the machine to the browser.
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The value of a cookie, those that scripts do not see included.
    pub(crate) fn cookie(&mut self, name: &str) -> Option<String> {
        let cookie = self.command("GET", &format!("/cookie/{name}"), &Value::Null).ok()?;
        cookie["value"].as_str().map(str::to_owned)
    }

    /// Puts a cookie into the browser, as only somebody who has a hand on it can.
    pub(crate) fn plant(&mut self, name: &str, value: &str) {
        let cookie = json!({ "name": name, "value": value, "path": "/", "secure": true });
        self.command("POST", "/cookie", &json!({ "cookie": cookie })).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It fails where the browser is dead already.
        let _ = self.command("DELETE", "", &Value::Null);
    }
}
