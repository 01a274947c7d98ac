//! How many commits a second, when everybody waits for the disk?
//!
//! Each client does what a request does: begin, get a session, read one attribute, change another
//! (every other time a counter, else a string), commit, and go on when the commit is durable. At 1,
//! 8, 32 and 128 clients, over 100,000 sessions of some 400 bytes in ten attributes, chosen at
//! random:
//!
//! | engine | what it is |
//! |---|---|
//! | `sessile` | this crate, default settings |
//! | `redb-naive` | what one writes by hand: one redb transaction per update, redb's defaults; a record table and a bucket table |
//! | `redb-group` | the next best: one committer that puts all queued updates into one redb transaction |
//! | `log-limit` | no store at all: the same clients, a committer that writes what is queued to a preallocated file and calls fdatasync, once per batch |
//!
//! `log-limit` is how fast anything can be that makes a commit durable in one sequential write.
//!
//! ```text
//! cargo bench --bench commit                # minutes; one JSON line a cell on stdout
//! cargo bench --bench commit -- --quick     # smaller, under a minute: not to be quoted
//! chrt -f 10 cargo bench --bench commit     # on Linux: a busy scheduler adds milliseconds
//! # for a minute, a million sessions, against the rate of the fold by itself:
//! cargo bench --bench commit -- --clients 128 --sessions 1000000 --seconds 60 \
//!     --engines sessile,log-limit,fold-alone
//! ```
//!
//! At the end the counters are added up: an update that was acknowledged and is not there would be
//! worth more than any figure, and ends the benchmark.

mod support;

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use redb::{ReadableDatabase, ReadableTable};
use sessile::{Clock, Error, SystemClock};

use support::{
    Arguments, BUCKETS, COUNTED, Cell, Client, READ, Random, Record, SESSIONS, SET, Sessile, Slice,
    cell, decode, drive, encode, filled_redb, key, page, say,
};

const USAGE: &str = "usage: cargo bench --bench commit [-- [--quick] [--clients N] [--sessions N] [--seconds N] [--engines NAME,NAME]]";

const CLIENTS: [usize; 4] = [1, 8, 32, 128];

fn main() -> ExitCode {
    support::main(USAGE, run)
}

fn run(arguments: Arguments) -> io::Result<()> {
    let (sessions, mut rounds, mut time) = match arguments.quick {
        true => (20_000, 1, Duration::from_millis(800)),
        false => (100_000, 3, Duration::from_secs(2)),
    };
    let sessions = arguments.sessions.unwrap_or(sessions);
    if let Some(seconds) = arguments.seconds {
        (rounds, time) = (1, Duration::from_secs(seconds));
    }
    // What is remembered of each operation must not be what grows.
    let sample = if time > Duration::from_secs(60) { 100 } else { 1 };
    let clients = arguments.clients.map_or(CLIENTS.to_vec(), |clients| vec![clients]);
    let wanted = |name: &str| match &arguments.engines {
        Some(engines) => engines.split(',').any(|engine| engine == name),
        None => true,
    };
    // Not the directory for temporary files: that may lie in memory.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    say(format_args!("filling: {sessions} sessions"));
    let mut engines: Vec<Box<dyn Engine>> = Vec::new();
    if wanted("sessile") {
        engines.push(Box::new(InSessile::new(directory.path(), sessions)));
    }
    if wanted("redb-naive") {
        engines.push(Box::new(InRedb::new(directory.path(), sessions)));
    }
    if wanted("redb-group") {
        engines.push(Box::new(Group::new(directory.path(), sessions)));
    }
    if wanted("log-limit") {
        engines.push(Box::new(Log::new(directory.path())?));
    }
    let mut slices: Vec<Vec<Slice>> = Vec::new();
    slices.resize_with(clients.len() * engines.len(), Vec::new);
    for round in 1..=rounds {
        for (at, clients) in clients.iter().enumerate() {
            say(format_args!("round {round} of {rounds}: {clients} clients"));
            for (engine, slices) in engines.iter().zip(&mut slices[at * engines.len()..]) {
                slices.push(drive(*clients, time, sample, &|| engine.client(sessions)));
            }
        }
    }
    engines.iter_mut().for_each(|engine| engine.check(sessions));
    let cells: Vec<Cell> = slices
        .iter()
        .enumerate()
        .map(|(at, slices)| {
            let engine = engines[at % engines.len()].name();
            cell("commit", engine, (clients[at / engines.len()], sessions), slices)
        })
        .collect();
    show(&cells, engines.len(), sessions);
    if wanted("fold-alone") && arguments.engines.is_some() {
        fold_alone(directory.path(), sessions, time)?;
    }
    cells.iter().try_for_each(Cell::print)
}

/// The table for people.
fn show(cells: &[Cell], engines: usize, sessions: usize) {
    let row = |cell: &Cell| {
        let optional = |number: Option<f64>| number.map_or("-".into(), |n| format!("{n:.0}"));
        say(format_args!(
            "{:<12}{:>8}{:>12.0}{:>10.0}{:>10.0}{:>12}{:>12}",
            cell.engine,
            cell.clients,
            cell.ops_per_s,
            cell.p50_us,
            cell.p99_us,
            optional(cell.bytes_per_op),
            optional(cell.cpu_us_per_op),
        ));
    };
    say(format_args!("\ndurable commits, {sessions} sessions of some 400 bytes"));
    say(format_args!(
        "{:<12}{:>8}{:>12}{:>10}{:>10}{:>12}{:>12}",
        "engine", "clients", "commits/s", "p50 µs", "p99 µs", "bytes each", "cpu µs each"
    ));
    for cells in cells.chunks(engines.max(1)) {
        cells.iter().for_each(row);
        let rate = |name: &str| cells.iter().find(|cell| cell.engine == name).map(|c| c.ops_per_s);
        if let (Some(sessile), Some(naive)) = (rate("sessile"), rate("redb-naive")) {
            say(format_args!("  sessile is {:.1} times redb-naive", sessile / naive));
        }
        if let (Some(sessile), Some(limit)) = (rate("sessile"), rate("log-limit")) {
            say(format_args!("  sessile is {:.0} % of the limit\n", 100.0 * sessile / limit));
        }
    }
}

/// Something that makes updates durable.
trait Engine: Sync {
    fn name(&self) -> &'static str;

    /// A client that makes one update of one of so many sessions at each call.
    fn client(&self, sessions: usize) -> Client<'_>;

    /// Panics if an acknowledged update is missing.
    fn check(&mut self, sessions: usize);
}

struct InSessile {
    sessile: Sessile,
    counted: AtomicU64,
}

impl InSessile {
    fn new(directory: &Path, sessions: usize) -> Self {
        InSessile { sessile: Sessile::filled(directory, sessions), counted: AtomicU64::new(0) }
    }
}

impl Engine for InSessile {
    fn name(&self) -> &'static str {
        "sessile"
    }

    fn client(&self, sessions: usize) -> Client<'_> {
        let Sessile { store, container } = &self.sessile;
        Box::new(move |random| {
            let (n, counts) = (random.below(sessions), random.next().is_multiple_of(2));
            let mut update = || -> Result<(), Error> {
                let txn = store.begin()?;
                let session = txn.get(container, key(n))?.expect("sessions live for 20 minutes");
                let _: Option<String> = session.get(READ)?;
                match counts {
                    true => session.add(COUNTED, 1)?,
                    false => session.insert(SET, page(random.next()))?,
                }
                txn.commit().map(|_| ())
            };
            update().expect("nothing here conflicts");
            self.counted.fetch_add(u64::from(counts), Ordering::Relaxed);
        })
    }

    fn check(&mut self, sessions: usize) {
        let Sessile { store, container } = &self.sessile;
        let count = |n: usize| -> Result<u64, Error> {
            let txn = store.begin()?;
            let session = txn.get(container, key(n))?.expect("sessions live for 20 minutes");
            Ok(session.get(COUNTED)?.unwrap_or(0))
        };
        let stored: u64 = (0..sessions).map(|n| count(n).expect("sessile works")).sum();
        assert_eq!(stored, self.counted.load(Ordering::Relaxed), "sessile lost updates");
    }
}

struct InRedb {
    database: redb::Database,
    counted: AtomicU64,
}

impl InRedb {
    fn new(directory: &Path, sessions: usize) -> Self {
        InRedb { database: filled_redb(directory, sessions), counted: AtomicU64::new(0) }
    }

    /// Updates sessions in one transaction: a page is set, or else a counter goes up.
    fn update(
        &self,
        updates: impl Iterator<Item = (usize, Option<u64>)>,
    ) -> Result<(), redb::Error> {
        let txn = self.database.begin_write()?;
        {
            let (mut sessions, mut buckets) = (txn.open_table(SESSIONS)?, txn.open_table(BUCKETS)?);
            for (n, set) in updates {
                let key = key(n);
                let stored = sessions.get(&key[..])?.map(|row| Record::decoded(row.value()));
                let mut record = stored.expect("nobody removes sessions");
                let bucket = record.bucket;
                record.access();
                let _: Option<String> = record.attributes.get(READ).map(|bytes| decode(bytes));
                match set {
                    None => {
                        let visits = record.attributes.get(COUNTED);
                        let visits = visits.map_or(0, |bytes| decode::<u64>(bytes)) + 1;
                        record.attributes.insert(COUNTED.to_owned(), encode(&visits));
                    }
                    Some(n) => {
                        record.attributes.insert(SET.to_owned(), encode(&page(n)));
                    }
                }
                sessions.insert(&key[..], &record.encoded()[..])?;
                if record.bucket != bucket {
                    buckets.remove((bucket, &key[..]))?;
                    buckets.insert((record.bucket, &key[..]), ())?;
                }
            }
        }
        Ok(txn.commit()?)
    }

    /// All that was counted.
    fn sum(&self) -> u64 {
        let sum = || -> Result<u64, redb::Error> {
            let sessions = self.database.begin_read()?.open_table(SESSIONS)?;
            let mut sum = 0;
            for row in sessions.iter()? {
                sum += decode::<u64>(&Record::decoded(row?.1.value()).attributes[COUNTED]);
            }
            Ok(sum)
        };
        sum().expect("redb works")
    }
}

impl Engine for InRedb {
    fn name(&self) -> &'static str {
        "redb-naive"
    }

    fn client(&self, sessions: usize) -> Client<'_> {
        Box::new(move |random| {
            let (n, counts) = (random.below(sessions), random.next().is_multiple_of(2));
            let set = (!counts).then(|| random.next());
            self.update([(n, set)].into_iter()).expect("redb works");
            self.counted.fetch_add(u64::from(counts), Ordering::Relaxed);
        })
    }

    fn check(&mut self, _sessions: usize) {
        assert_eq!(self.sum(), self.counted.load(Ordering::Relaxed), "redb-naive lost updates");
    }
}

/// Which session, the page that is set if any, and whom to tell.
type Update = (usize, Option<u64>, Sender<()>);

/// Group commit into redb: the clients of `log-limit`, and one redb transaction per batch.
struct Group {
    queue: Option<Sender<Update>>,
    committer: Option<JoinHandle<u64>>,
    counted: AtomicU64,
}

impl Group {
    #[expect(clippy::disallowed_methods, reason = "a committer of the benchmark's own")]
    fn new(directory: &Path, sessions: usize) -> Self {
        let directory = directory.join("group");
        std::fs::create_dir(&directory).expect("the directory is new");
        let redb = InRedb::new(&directory, sessions);
        let (queue, queued) = bounded(BATCH_MAX);
        let committer = thread::spawn(move || {
            let mut batch: Vec<Update> = Vec::new();
            while let Ok(first) = queued.recv() {
                batch.push(first);
                batch.extend(queued.try_iter().take(BATCH_MAX - 1));
                let updates = batch.iter().map(|(n, set, _)| (*n, *set));
                redb.update(updates).expect("redb works");
                batch.drain(..).for_each(|(.., client)| client.send(()).expect("it waits"));
            }
            redb.sum()
        });
        Group { queue: Some(queue), committer: Some(committer), counted: AtomicU64::new(0) }
    }
}

impl Engine for Group {
    fn name(&self) -> &'static str {
        "redb-group"
    }

    fn client(&self, sessions: usize) -> Client<'_> {
        let queue = self.queue.as_ref().expect("the store is open");
        let (reply, durable) = bounded(1);
        Box::new(move |random| {
            let (n, counts) = (random.below(sessions), random.next().is_multiple_of(2));
            let set = (!counts).then(|| random.next());
            queue.send((n, set, reply.clone())).expect("the committer runs");
            durable.recv().expect("the committer answers");
            self.counted.fetch_add(u64::from(counts), Ordering::Relaxed);
        })
    }

    fn check(&mut self, _sessions: usize) {
        drop(self.queue.take());
        let stored = self.committer.take().map(|committer| committer.join().expect("no panic"));
        assert_eq!(stored, Some(self.counted.load(Ordering::Relaxed)), "redb-group lost updates");
    }
}

/// How fast sorted sessions can be written into redb as a fold writes them: what a store cannot
/// outrun for long if every commit is of another session.
fn fold_alone(directory: &Path, sessions: usize, time: Duration) -> io::Result<()> {
    const GENERATION: usize = 250_000;
    const CHUNK: usize = 2_000;
    let directory = directory.join("fold");
    std::fs::create_dir(&directory)?;
    drop(filled_redb(&directory, sessions));
    // As much of it in memory as the store keeps.
    let database = redb::Builder::new().set_cache_size(64 << 20).open(directory.join("naive.redb"));
    let database = database.expect("it was made just now");
    let (clock, mut random, mut rows) = (SystemClock::new(), Random::new(1), 0u64);
    let (row, since) = (Record::new(1).encoded(), clock.elapsed());
    while clock.elapsed() - since < time {
        let some: std::collections::BTreeMap<_, _> =
            (0..GENERATION).map(|_| random.below(sessions)).map(|n| (key(n), n)).collect();
        for chunk in some.into_keys().collect::<Vec<_>>().chunks(CHUNK) {
            let write = || -> Result<(), redb::Error> {
                let mut txn = database.begin_write()?;
                txn.set_two_phase_commit(true);
                txn.set_quick_repair(true);
                {
                    let mut table = txn.open_table(SESSIONS)?;
                    for key in chunk {
                        table.insert(&key[..], &row[..])?;
                    }
                }
                Ok(txn.commit()?)
            };
            write().expect("redb works");
            rows += chunk.len() as u64;
        }
    }
    let took = clock.elapsed() - since;
    let rate = rows as f64 / took.as_secs_f64();
    say(format_args!("fold-alone: {rate:.0} sessions/s"));
    Cell {
        bench: "commit",
        engine: "fold-alone",
        set: None,
        clients: 1,
        sessions,
        ops_per_s: rate,
        p50_us: 0.0,
        p99_us: 0.0,
        bytes_per_op: None,
        cpu_us_per_op: None,
    }
    .print()
}

/// What is left when there is no store: batches, written and synced.
struct Log {
    queue: Option<Sender<Sender<()>>>,
    committer: Option<JoinHandle<()>>,
}

/// What a commit of one attribute takes in a log: a key, a name, a value, a revision, a checksum.
const ENTRY_BYTES: usize = 128;
const HEADER_BYTES: usize = 64;
const LOG_BYTES: usize = 64 << 20;
/// How many commits become one batch at the most, as in sessile.
const BATCH_MAX: usize = 1_024;
/// How long the committer waits for a batch to become as large as the last one.
const GATHER: Duration = Duration::from_micros(60);

impl Log {
    #[expect(clippy::disallowed_methods, reason = "a committer of the benchmark's own")]
    fn new(directory: &Path) -> io::Result<Self> {
        let path = directory.join("log");
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        // Written, not only reserved: a file that grows is synced more slowly.
        file.write_all(&vec![1; LOG_BYTES])?;
        file.sync_all()?;
        let (queue, queued) = bounded(BATCH_MAX);
        let committer = thread::spawn(move || commit(file, &queued).expect("the disk works"));
        Ok(Log { queue: Some(queue), committer: Some(committer) })
    }
}

fn commit(mut file: File, queued: &Receiver<Sender<()>>) -> io::Result<()> {
    let clock = SystemClock::new();
    let bytes = vec![2; HEADER_BYTES + BATCH_MAX * ENTRY_BYTES];
    let (mut batch, mut last, mut at) = (Vec::new(), 0, 0);
    while let Ok(first) = queued.recv() {
        batch.push(first);
        let since = clock.elapsed();
        loop {
            batch.extend(queued.try_iter().take(BATCH_MAX - batch.len()));
            if batch.len() >= last || clock.elapsed() - since > GATHER {
                break;
            }
            thread::yield_now();
        }
        last = batch.len();
        let length = HEADER_BYTES + batch.len() * ENTRY_BYTES;
        if at + length > LOG_BYTES {
            at = 0;
        }
        file.seek(SeekFrom::Start(at as u64))?;
        file.write_all(&bytes[..length])?;
        file.sync_data()?;
        at += length;
        batch.drain(..).for_each(|client| client.send(()).expect("the client waits"));
    }
    Ok(())
}

impl Engine for Log {
    fn name(&self) -> &'static str {
        "log-limit"
    }

    fn client(&self, _sessions: usize) -> Client<'_> {
        let queue = self.queue.as_ref().expect("the log is open");
        let (reply, durable) = bounded(1);
        Box::new(move |_| {
            queue.send(reply.clone()).expect("the committer runs");
            durable.recv().expect("the committer answers");
        })
    }

    fn check(&mut self, _sessions: usize) {}
}

impl Drop for Log {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(committer) = self.committer.take() {
            // A panic there has been printed already.
            let _ = committer.join();
        }
    }
}
