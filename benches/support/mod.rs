//! What the benchmarks have in common: the sessions, the clients, the accounts, the lines printed.
//!
//! Three rules. All engines run in one process, one after the other and round after round, with the
//! same sequence of sessions, because disks and machines differ more from minute to minute than
//! engines do from each other: compare within a run only. Work that an engine puts off is charged
//! to it: bytes and processor time are counted until a pause after the slice is over. And what is
//! compared is durable, or fast, in the same sense for all.
//!
//! People read the table on stderr. Programs read stdout, one JSON object a line.

#![allow(dead_code, reason = "each benchmark uses its part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use bincode::config::{self, Config};
use redb::TableDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sessile::{Clock, Container, Policy, Store, SystemClock, Time};

/// What the command line asks for. What it does not ask for, the benchmark decides.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arguments {
    /// Smaller and shorter: to see that it works, not to quote.
    pub(crate) quick: bool,
    pub(crate) clients: Option<usize>,
    pub(crate) sessions: Option<usize>,
    /// How long a slice is, in seconds; then there is one round.
    pub(crate) seconds: Option<u64>,
    /// The names of the engines, separated by commas.
    pub(crate) engines: Option<String>,
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<(bool, Self), String> {
        let (mut parsed, mut wanted) = (Arguments::default(), false);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("`{argument}` needs a value"));
            let number =
                |value: String| value.parse().map_err(|_| format!("`{value}` is no number"));
            match argument.as_str() {
                "--bench" => wanted = true,
                "--quick" => parsed.quick = true,
                "--clients" => parsed.clients = Some(number(value()?)? as usize),
                "--sessions" => parsed.sessions = Some(number(value()?)? as usize),
                "--seconds" => parsed.seconds = Some(number(value()?)?),
                "--engines" => parsed.engines = Some(value()?),
                _ => return Err(format!("unknown argument `{argument}`")),
            }
        }
        Ok((wanted, parsed))
    }
}

/// Runs a benchmark if `cargo bench` asks for it; `cargo test --benches` does not.
pub(crate) fn main(usage: &str, run: impl FnOnce(Arguments) -> io::Result<()>) -> ExitCode {
    let (wanted, arguments) = match Arguments::parse(std::env::args().skip(1)) {
        Ok(parsed) => parsed,
        Err(trouble) => {
            say(format_args!("{trouble}\n{usage}"));
            return ExitCode::from(2);
        }
    };
    if !wanted {
        say(format_args!("nothing to test here\n{usage}"));
        return ExitCode::SUCCESS;
    }
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Says something to people.
pub(crate) fn say(words: std::fmt::Arguments<'_>) {
    // Nobody listening is no reason to stop.
    let _ = writeln!(io::stderr(), "{words}");
}

/// One engine at one number of clients, as programs read it. What could not be measured is absent.
#[derive(Debug, Serialize)]
pub(crate) struct Cell {
    pub(crate) bench: &'static str,
    pub(crate) engine: &'static str,
    /// Which of the sessions were asked for, where that was varied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) set: Option<&'static str>,
    pub(crate) clients: usize,
    pub(crate) sessions: usize,
    pub(crate) ops_per_s: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bytes_per_op: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_us_per_op: Option<f64>,
}

impl Cell {
    pub(crate) fn print(&self) -> io::Result<()> {
        writeln!(io::stdout(), "{}", serde_json::to_string(self)?)
    }
}

/// What was done in some time.
#[derive(Debug, Default)]
pub(crate) struct Slice {
    pub(crate) ops: u64,
    pub(crate) took: Duration,
    /// How long single operations took.
    pub(crate) latencies: Vec<Duration>,
    pub(crate) spent: Spent,
}

impl Slice {
    pub(crate) fn ops_per_s(&self) -> f64 {
        self.ops as f64 / self.took.as_secs_f64()
    }
}

/// Makes one cell of the slices of several rounds: the median of the rates, the percentiles of
/// all latencies, the mean of what was spent.
pub(crate) fn cell(
    bench: &'static str,
    engine: &'static str,
    at: (usize, usize),
    slices: &[Slice],
) -> Cell {
    let (clients, sessions) = at;
    let mut rates: Vec<_> = slices.iter().map(Slice::ops_per_s).collect();
    rates.sort_by(f64::total_cmp);
    let mut latencies: Vec<_> = slices.iter().flat_map(|slice| &slice.latencies).collect();
    latencies.sort();
    let percentile = |percent: usize| {
        let at = (latencies.len() * percent / 100).min(latencies.len().saturating_sub(1));
        latencies.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    };
    let ops = slices.iter().map(|slice| slice.ops).sum::<u64>().max(1) as f64;
    let mean = |of: fn(&Spent) -> Option<u64>| {
        let all: Option<u64> = slices.iter().map(|slice| of(&slice.spent)).sum();
        all.map(|all| rounded(all as f64 / ops))
    };
    Cell {
        bench,
        engine,
        set: None,
        clients,
        sessions,
        ops_per_s: rates.get(rates.len() / 2).copied().map_or(0.0, rounded),
        p50_us: rounded(percentile(50)),
        p99_us: rounded(percentile(99)),
        bytes_per_op: mean(|spent| spent.bytes),
        cpu_us_per_op: mean(|spent| spent.cpu_us),
    }
}

/// More digits would claim more than is known.
pub(crate) fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

/// One client's own way to do one operation.
pub(crate) type Client<'a> = Box<dyn FnMut(&mut Random) + 'a>;

/// Lets so many clients do one operation after the other, each on a thread of its own. Every
/// `sample`th is timed.
pub(crate) fn drive<'a>(
    clients: usize,
    time: Duration,
    sample: u64,
    client: &(dyn Fn() -> Client<'a> + Sync),
) -> Slice {
    let clock = SystemClock::new();
    let start = Barrier::new(clients);
    // Each looks at the clock itself: under a real-time scheduler nobody else might get to run.
    let serve = |n: usize| {
        let (mut operate, mut random) = (client(), Random::new(n as u64));
        let (mut ops, mut latencies) = (0u64, Vec::new());
        start.wait();
        let begun = clock.elapsed();
        loop {
            let since = clock.elapsed();
            if since - begun >= time {
                return (ops, latencies, begun, since);
            }
            operate(&mut random);
            latencies.push(clock.elapsed() - since);
            (1..sample).for_each(|_| operate(&mut random));
            ops += sample;
        }
    };
    let serve = &serve;
    let before = Spent::until_now();
    let mut slice = thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|n| scope.spawn(move || serve(n))).collect();
        let mut slice = Slice::default();
        let (mut first, mut last) = (Duration::MAX, Duration::ZERO);
        for thread in threads {
            let (ops, latencies, begun, ended) = thread.join().expect("clients do not panic");
            slice.ops += ops;
            slice.latencies.extend(latencies);
            (first, last) = (first.min(begun), last.max(ended));
        }
        // Until the last has been answered.
        slice.took = last - first;
        slice
    });
    thread::sleep(time / 4);
    slice.spent = Spent::until_now().since(&before);
    slice
}

/// What the process has spent, where the operating system tells.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    /// Bytes given to the operating system to write. What it says it gave to the disk is of no use:
    /// one byte in a page of 2 MiB counts as 2 MiB there.
    pub(crate) bytes: Option<u64>,
    /// Processor time of all threads, to 10 ms.
    pub(crate) cpu_us: Option<u64>,
}

impl Spent {
    pub(crate) fn until_now() -> Self {
        Spent { bytes: written(), cpu_us: cpu() }
    }

    pub(crate) fn since(&self, before: &Spent) -> Self {
        let minus = |a: Option<u64>, b: Option<u64>| Some(a?.saturating_sub(b?));
        Spent { bytes: minus(self.bytes, before.bytes), cpu_us: minus(self.cpu_us, before.cpu_us) }
    }
}

fn written() -> Option<u64> {
    let io = fs::read_to_string("/proc/self/io").ok()?;
    io.lines().find_map(|line| line.strip_prefix("wchar: "))?.trim().parse().ok()
}

fn cpu() -> Option<u64> {
    // Linux counts in hundredths of a second here, whatever its timer does.
    const TICK_US: u64 = 10_000;
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold anything; utime and stime are the 12th and 13th after it.
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().ok());
    Some(ticks.sum::<Option<u64>>()? * TICK_US)
}

/// A sequence of numbers that look random and are the same in every run (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// The key of the nth session: 32 bytes, as the hash of a token has.
pub(crate) fn key(n: usize) -> [u8; 32] {
    let mut random = Random::new(n as u64 ^ 0x5e55_11e5);
    let mut key = [0; 32];
    key.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&random.next().to_le_bytes()));
    key
}

/// The attribute that is read.
pub(crate) const READ: &str = "name";
/// The attribute that is counted up.
pub(crate) const COUNTED: &str = "visits";
/// The attribute that is set.
pub(crate) const SET: &str = "last_page";

/// What is set: about as long as it was.
pub(crate) fn page(n: u64) -> String {
    format!("/catalogue/section-{:02}/article-{:04}", n % 100, n % 10_000)
}

/// What the nth session holds at first: some 400 bytes in ten attributes, with their names.
pub(crate) fn attributes(n: usize) -> BTreeMap<&'static str, Vec<u8>> {
    let mut random = Random::new(n as u64);
    let n = n as u64;
    BTreeMap::from([
        ("agent", encode(&format!("Mozilla/5.0 (X11; Linux x86_64; rv:{}.0)", 100 + n % 40))),
        ("basket", encode(&vec![n % 1_000, n % 77, n % 5_000])),
        ("currency", encode(&"EUR")),
        ("email", encode(&format!("visitor.{n}@example.org"))),
        ("form", encode(&format!("{:016x}{:016x}", random.next(), random.next()))),
        (SET, encode(&page(n))),
        (READ, encode(&format!("Visitor number {n}"))),
        ("referrer", encode(&format!("https://example.org/search?q={:x}", random.next()))),
        ("roles", encode(&["reader", "customer", "reviewer"])),
        (COUNTED, encode(&0u64)),
    ])
}

/// How all engines write an attribute: MessagePack.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("strings and numbers can be encoded")
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> T {
    rmp_serde::from_slice(bytes).expect("it was encoded as that")
}

/// Sessions in sessile, with default settings.
pub(crate) struct Sessile {
    pub(crate) store: Store,
    pub(crate) container: Container,
}

impl Sessile {
    pub(crate) fn filled(directory: &Path, sessions: usize) -> Self {
        let store = Store::create(directory.join("sessile")).expect("the directory is new");
        let container =
            store.container_with("sessions", Policy::new()).expect("the policy is sound");
        let all: Vec<_> = (0..sessions).collect();
        for some in all.chunks(500) {
            let fill = |txn: &sessile::Transaction| {
                some.iter().try_for_each(|n| {
                    let session = txn.create(&container, key(*n))?;
                    for (name, bytes) in attributes(*n) {
                        match name {
                            "basket" => session.insert(name, decode::<Vec<u64>>(&bytes))?,
                            "roles" => session.insert(name, decode::<Vec<String>>(&bytes))?,
                            COUNTED => session.insert(name, decode::<u64>(&bytes))?,
                            _ => session.insert(name, decode::<String>(&bytes))?,
                        }
                    }
                    Ok(())
                })
            };
            store.transact(fill).expect("nobody else writes");
        }
        Sessile { store, container }
    }
}

/// A session as somebody would keep it who writes their own store on redb.
#[derive(Debug, bincode::Encode, bincode::Decode)]
pub(crate) struct Record {
    pub(crate) created: u64,
    pub(crate) last_accessed: u64,
    /// The slice of time that the session is filed under.
    pub(crate) bucket: u64,
    pub(crate) attributes: BTreeMap<String, Vec<u8>>,
}

pub(crate) const SESSIONS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("sessions");
pub(crate) const BUCKETS: TableDefinition<'_, (u64, &[u8]), ()> = TableDefinition::new("buckets");

/// How long a slice of time is: as in sessile's default policy.
const PERIOD_SECS: u64 = 20;

impl Record {
    pub(crate) fn new(n: usize) -> Self {
        let attributes = attributes(n);
        let owned = |(name, value): (&str, Vec<u8>)| (name.to_owned(), value);
        let mut record = Record {
            created: 0,
            last_accessed: 0,
            bucket: 0,
            attributes: attributes.into_iter().map(owned).collect(),
        };
        record.access();
        record.created = record.last_accessed;
        record
    }

    pub(crate) fn access(&mut self) {
        let now: Time = SystemClock::new().wall();
        self.last_accessed = now.as_micros();
        self.bucket = now.as_secs() / PERIOD_SECS;
    }

    pub(crate) fn encoded(&self) -> Vec<u8> {
        bincode::encode_to_vec(self, format()).expect("a Vec takes every byte")
    }

    pub(crate) fn decoded(bytes: &[u8]) -> Self {
        bincode::decode_from_slice(bytes, format()).expect("it was encoded as that").0
    }
}

fn format() -> impl Config {
    config::standard()
}

/// The same sessions in redb with its default settings: a table of records, and one of buckets for
/// finding what has expired.
pub(crate) fn filled_redb(directory: &Path, sessions: usize) -> redb::Database {
    let database =
        redb::Database::create(directory.join("naive.redb")).expect("the directory is new");
    let all: Vec<_> = (0..sessions).collect();
    for some in all.chunks(5_000) {
        let fill = || -> Result<(), redb::Error> {
            let txn = database.begin_write()?;
            {
                let (mut table, mut buckets) =
                    (txn.open_table(SESSIONS)?, txn.open_table(BUCKETS)?);
                for n in some {
                    let (key, record) = (key(*n), Record::new(*n));
                    table.insert(&key[..], &record.encoded()[..])?;
                    buckets.insert((record.bucket, &key[..]), ())?;
                }
            }
            Ok(txn.commit()?)
        };
        fill().expect("redb works");
    }
    database
}
