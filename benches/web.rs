//! How many requests a second, and what does a session cost?
//!
//! The counter application on axum, over loopback: `GET /` adds one to a counter of the session and shows
//! it, `GET /look` shows it and changes nothing. The router is the same for all; so is the load, by `wrk`.
//!
//! | engine | what it is |
//! |---|---|
//! | `sessile` | `SessionLayer` above a store on disk, default settings: an answer is sent when the commit is durable |
//! | `none` | no sessions at all: a counter of the process |
//! | `tower-sessions` | tower-sessions and its `MemoryStore`: read, add one, insert; nothing survives the process |
//! | `sessile-look`, `tower-sessions-look` | the same layers, and the page that only looks |
//!
//! Each connection is a visitor with a cookie of its own, who has come once before. `wrk` is given a thread
//! for each connection, because a thread is what it can give a cookie to; it then sends the same bytes again
//! and again, so that its interpreter of Lua is not what is measured. Servers are threads of this process,
//! two for each engine: while one is measured the others have nothing to do, so that a process for each
//! would change nothing but make the store's counters harder to ask for. Their processor time is counted
//! without that of `wrk`, which is a process of its own; server and load share the machine all the same.
//!
//! ```text
//! apt-get install wrk
//! cargo bench --bench web                # some minutes; one JSON line a cell on stdout
//! cargo bench --bench web -- --quick     # under a minute: not to be quoted
//! chrt -f 10 cargo bench --bench web     # on Linux, where others use the machine too
//! ```
//!
//! At the end the visitors' counters are asked for and added up. `wrk` stops with requests under way, at
//! most one a connection, so that there may be so many more than it has seen answers. Fewer would be
//! updates that were acknowledged and lost; for sessile that ends the benchmark.

mod support;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use serde::{Deserialize, Serialize};
use sessile::web::SessionLayer;
use sessile::{Error, Policy, Store};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tower_sessions::{MemoryStore, SessionManagerLayer};

use support::{Arguments, COUNTED, Spent, rounded, say};

const USAGE: &str = "usage: cargo bench --bench web [-- [--quick] [--clients N] [--seconds N] [--engines NAME,NAME]]";

const CONNECTIONS: [usize; 3] = [1, 16, 64];

/// What is measured, in the order in which it is: the server, and the page that is asked for.
const ENGINES: [(&str, &str); 5] = [
    ("sessile", "/"),
    ("none", "/"),
    ("tower-sessions", "/"),
    ("sessile-look", "/look"),
    ("tower-sessions-look", "/look"),
];

/// What `wrk` is told: a cookie for each of its threads, and to end with one line for programs.
const SCRIPT: &str = r#"
local threads = 0

function setup(thread)
   threads = threads + 1
   thread:set("number", threads)
end

function init(arguments)
   wrk.headers["Cookie"] = arguments[number]
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      '\n{"requests":%d,"micros":%d,"p50_us":%d,"p99_us":%d,"errors":%d}\n',
      summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
      errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"#;

fn main() -> ExitCode {
    support::main(USAGE, run)
}

fn run(arguments: Arguments) -> io::Result<()> {
    let (rounds, seconds) = match (arguments.quick, arguments.seconds) {
        (_, Some(seconds)) => (1, seconds),
        (true, None) => (1, 1),
        (false, None) => (3, 3),
    };
    let connections = arguments.clients.map_or(CONNECTIONS.to_vec(), |clients| vec![clients]);
    let wanted = |name: &str| match &arguments.engines {
        Some(engines) => engines.split(',').any(|engine| engine == name),
        None => true,
    };
    let engines: Vec<_> = ENGINES.into_iter().filter(|(name, _)| wanted(name)).collect();
    // Not the directory for temporary files: that may lie in memory.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let load = Load::new(directory.path())?;
    let most = connections.iter().copied().max().unwrap_or(0);
    let mut sites = [
        Site::serve("sessile", sessile(directory.path()), most)?,
        Site::serve("none", none(), most)?,
        Site::serve("tower-sessions", tower_sessions(), most)?,
    ];
    let mut slices: Vec<Vec<Slice>> = Vec::new();
    slices.resize_with(connections.len() * engines.len(), Vec::new);
    for round in 1..=rounds {
        for (at, connections) in connections.iter().enumerate() {
            say(format_args!("round {round} of {rounds}: {connections} connections"));
            for ((name, page), slices) in engines.iter().zip(&mut slices[at * engines.len()..]) {
                let site = sites.iter_mut().find(|site| name.starts_with(site.name));
                let site = site.expect("each engine is one of the sites");
                slices.push(load.on(site, page, *connections, seconds)?);
            }
        }
    }
    sites.iter().try_for_each(Site::check)?;
    let cells: Vec<_> = slices
        .iter()
        .enumerate()
        .map(|(at, slices)| {
            Requests::of(engines[at % engines.len()].0, connections[at / engines.len()], slices)
        })
        .collect();
    show(&cells, engines.len());
    cells.iter().try_for_each(|cell| writeln!(io::stdout(), "{}", serde_json::to_string(cell)?))
}

/// One engine at one number of connections, as programs read it.
#[derive(Debug, Serialize)]
struct Requests {
    bench: &'static str,
    engine: &'static str,
    connections: usize,
    requests_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    /// Processor time of the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_us_per_request: Option<f64>,
}

impl Requests {
    /// The medians of several rounds, and the mean of what was spent.
    fn of(engine: &'static str, connections: usize, slices: &[Slice]) -> Self {
        let median = |of: fn(&Slice) -> f64| {
            let mut all: Vec<_> = slices.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            all.get(all.len() / 2).copied().map_or(0.0, rounded)
        };
        let requests = slices.iter().map(|slice| slice.answers.requests).sum::<u64>().max(1) as f64;
        let cpu: Option<u64> = slices.iter().map(|slice| slice.spent.cpu_us).sum();
        Requests {
            bench: "web",
            engine,
            connections,
            requests_per_s: median(|slice| {
                slice.answers.requests as f64 * 1e6 / slice.answers.micros as f64
            }),
            p50_us: median(|slice| slice.answers.p50_us),
            p99_us: median(|slice| slice.answers.p99_us),
            cpu_us_per_request: cpu.map(|cpu| rounded(cpu as f64 / requests)),
        }
    }
}

/// The table for people.
fn show(cells: &[Requests], engines: usize) {
    say(format_args!("\nrequests over loopback, each connection a visitor"));
    say(format_args!(
        "{:<22}{:>12}{:>12}{:>10}{:>10}{:>14}",
        "engine", "connections", "requests/s", "p50 µs", "p99 µs", "cpu µs each"
    ));
    for cells in cells.chunks(engines.max(1)) {
        for cell in cells {
            say(format_args!(
                "{:<22}{:>12}{:>12.0}{:>10.0}{:>10.0}{:>14}",
                cell.engine,
                cell.connections,
                cell.requests_per_s,
                cell.p50_us,
                cell.p99_us,
                cell.cpu_us_per_request.map_or("-".into(), |cpu| format!("{cpu:.1}")),
            ));
        }
        let rate = |name| cells.iter().find(|c| c.engine == name).map(|c| c.requests_per_s);
        for (left, right) in [
            ("sessile", "none"),
            ("sessile", "tower-sessions"),
            ("sessile-look", "none"),
            ("sessile-look", "tower-sessions-look"),
        ] {
            if let (Some(ours), Some(theirs)) = (rate(left), rate(right)) {
                say(format_args!("  {left} is {:.2} times {right}", ours / theirs));
            }
        }
        say(format_args!(""));
    }
}

/// What was answered in some time.
struct Slice {
    answers: Answers,
    spent: Spent,
}

/// What the [script](SCRIPT) says in the end.
#[derive(Debug, Deserialize)]
struct Answers {
    requests: u64,
    micros: u64,
    p50_us: f64,
    p99_us: f64,
    errors: u64,
}

/// Where the load comes from.
struct Load {
    script: PathBuf,
}

impl Load {
    fn new(directory: &Path) -> io::Result<Self> {
        let found = Command::new("wrk").arg("--version").output();
        if found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            let trouble = "`wrk` is not installed: apt-get install wrk";
            return Err(io::Error::new(io::ErrorKind::NotFound, trouble));
        }
        let script = directory.join("visitors.lua");
        fs::write(&script, SCRIPT)?;
        Ok(Load { script })
    }

    /// Asks for a page for so many seconds, over so many connections.
    fn on(&self, site: &mut Site, page: &str, connections: usize, secs: u64) -> io::Result<Slice> {
        let before = Spent::until_now();
        let output = Command::new("wrk")
            .args([format!("-t{connections}"), format!("-c{connections}"), format!("-d{secs}s")])
            .args(["--timeout", "30s", "--script"])
            .arg(&self.script)
            .arg(format!("http://{}{page}", site.address))
            .arg("--")
            .args(&site.cookies[..connections])
            .stderr(Stdio::inherit())
            .output()?;
        let spent = Spent::until_now().since(&before);
        let said = String::from_utf8_lossy(&output.stdout);
        let answers = said.lines().find_map(|line| serde_json::from_str::<Answers>(line).ok());
        let answers = answers.filter(|answers| output.status.success() && answers.errors == 0);
        let answers = answers.ok_or_else(|| {
            io::Error::other(format!("not every request to {} was answered: {said}", site.name))
        })?;
        if page == "/" {
            site.counted += answers.requests;
            site.under_way += connections as u64;
        }
        Ok(Slice { answers, spent })
    }
}

/// A server with its visitors.
struct Site {
    name: &'static str,
    address: SocketAddr,
    /// What each visitor sends.
    cookies: Vec<String>,
    /// How many increments were acknowledged.
    counted: u64,
    /// How many more there may be, whose answers nobody has waited for.
    under_way: u64,
    _runtime: Runtime,
}

impl Site {
    /// Serves it, and lets each visitor come once.
    fn serve(name: &'static str, app: Router, visitors: usize) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        runtime.spawn(async move { axum::serve(listener, app).await });
        let cookie = |_| {
            let answer = ask(address, "/", "")?;
            let set = answer.lines().find_map(|line| line.strip_prefix("set-cookie: "));
            Ok(set.and_then(|set| set.split(';').next()).unwrap_or_default().to_owned())
        };
        let cookies = (0..visitors).map(cookie).collect::<io::Result<Vec<_>>>()?;
        let (counted, under_way) = (visitors as u64, 0);
        Ok(Site { name, address, cookies, counted, under_way, _runtime: runtime })
    }

    /// Adds the visitors' counters up.
    fn check(&self) -> io::Result<()> {
        let count = |cookie: &String| -> io::Result<u64> {
            let answer = ask(self.address, "/look", cookie)?;
            let count = answer.rsplit("\r\n").next().and_then(|count| count.parse().ok());
            count.ok_or_else(|| io::Error::other(format!("{} does not count", self.name)))
        };
        let counts = self.cookies.iter().map(count).collect::<io::Result<Vec<_>>>()?;
        // Without sessions all visitors see the one counter that there is.
        let stored = match self.name {
            "none" => counts.first().copied().unwrap_or(0),
            _ => counts.iter().sum(),
        };
        let Site { name, counted, under_way, .. } = self;
        say(format_args!(
            "{name}: {counted} increments acknowledged, up to {under_way} more under way, {stored} there"
        ));
        let is_sound = (*counted..=counted + under_way).contains(&stored);
        assert!(is_sound || *name != "sessile", "sessile lost updates, or made some up");
        Ok(())
    }
}

/// Asks for a page by hand.
fn ask(address: SocketAddr, page: &str, cookie: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    let cookie = if cookie.is_empty() { String::new() } else { format!("Cookie: {cookie}\r\n") };
    write!(stream, "GET {page} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n{cookie}\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.starts_with("HTTP/1.1 200") {
        true => Ok(answer),
        false => Err(io::Error::other(format!("{page} was not answered: {answer}"))),
    }
}

fn sessile(directory: &Path) -> Router {
    async fn count(session: sessile::web::Session) -> Result<String, Error> {
        session.add(COUNTED, 1)?;
        look(session).await
    }
    async fn look(session: sessile::web::Session) -> Result<String, Error> {
        Ok(session.get::<u64>(COUNTED)?.unwrap_or_default().to_string())
    }
    let store = Store::create(directory.join("sessile")).expect("the directory is new");
    let visitors = store.container_with("visitors", Policy::new()).expect("the policy is sound");
    Router::new()
        .route("/", get(count))
        .route("/look", get(look))
        .layer(SessionLayer::new(&store, &visitors))
}

fn none() -> Router {
    type Count = State<Arc<AtomicU64>>;
    async fn count(State(count): Count) -> String {
        (count.fetch_add(1, Ordering::Relaxed) + 1).to_string()
    }
    async fn look(State(count): Count) -> String {
        count.load(Ordering::Relaxed).to_string()
    }
    Router::new()
        .route("/", get(count))
        .route("/look", get(look))
        .with_state(Arc::<AtomicU64>::default())
}

fn tower_sessions() -> Router {
    async fn count(session: tower_sessions::Session) -> Result<String, StatusCode> {
        let count = session.get::<u64>(COUNTED).await.map_err(failed)?.unwrap_or_default() + 1;
        session.insert(COUNTED, count).await.map_err(failed)?;
        Ok(count.to_string())
    }
    async fn look(session: tower_sessions::Session) -> Result<String, StatusCode> {
        let count = session.get::<u64>(COUNTED).await.map_err(failed)?;
        Ok(count.unwrap_or_default().to_string())
    }
    fn failed(_: tower_sessions::session::Error) -> StatusCode {
        StatusCode::INTERNAL_SERVER_ERROR
    }
    Router::new()
        .route("/", get(count))
        .route("/look", get(look))
        .layer(SessionManagerLayer::new(MemoryStore::default()))
}
