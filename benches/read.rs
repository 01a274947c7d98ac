//! How many reads a second?
//!
//! Each client does what a request does that only looks: begin, get a session, read one attribute
//! as a `String`, drop the transaction. On one thread and on two, over 100,000 sessions of some 400
//! bytes in ten attributes: all of them at random, or 1,000 that have just been written (`hot`).
//!
//! | engine | what it is |
//! |---|---|
//! | `sessile` | this crate, default settings |
//! | `redb-naive` | what one writes by hand: `begin_read`, `open_table`, `get`, decode the record, decode the attribute |
//! | `map-limit` | no store at all: a map behind 256 locks, a lookup, decode the attribute |
//!
//! ```text
//! cargo bench --bench read                # a minute; one JSON line a cell on stdout
//! cargo bench --bench read -- --quick     # smaller, seconds: not to be quoted
//! ```
//!
//! One read in sixteen is timed; timing all would cost as much as the fastest of them.

mod support;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redb::ReadableDatabase;
use sessile::Error;

use support::{
    Arguments, Cell, Client, READ, Record, SESSIONS, SET, Sessile, Slice, attributes, cell, decode,
    drive, filled_redb, key, page, say,
};

const USAGE: &str = "usage: cargo bench --bench read [-- --quick]";

const CLIENTS: [usize; 2] = [1, 2];
const SETS: [&str; 2] = ["all", "hot"];
const HOT: usize = 1_000;
const SAMPLE: u64 = 16;

fn main() -> ExitCode {
    support::main(USAGE, run)
}

fn run(Arguments { quick, .. }: Arguments) -> io::Result<()> {
    let (sessions, rounds, time) = match quick {
        true => (20_000, 1, Duration::from_millis(500)),
        false => (100_000, 3, Duration::from_secs(2)),
    };
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    say(format_args!("filling: {sessions} sessions"));
    let engines: [Box<dyn Engine>; 3] = [
        Box::new(Sessile::filled(directory.path(), sessions)),
        Box::new(InRedb::new(directory.path(), sessions)),
        Box::new(Map::new(sessions)),
    ];
    let columns: Vec<_> = CLIENTS.iter().flat_map(|n| SETS.map(|set| (*n, set))).collect();
    let mut slices: Vec<Vec<Slice>> = Vec::new();
    slices.resize_with(columns.len() * engines.len(), Vec::new);
    for round in 1..=rounds {
        for (at, (clients, set)) in columns.iter().enumerate() {
            say(format_args!("round {round} of {rounds}: {clients} clients, {set} sessions"));
            let asked = if *set == "hot" { HOT } else { sessions };
            for (engine, slices) in engines.iter().zip(&mut slices[at * engines.len()..]) {
                if *set == "hot" {
                    engine.write(HOT);
                }
                slices.push(drive(*clients, time, SAMPLE, &|| engine.client(asked)));
            }
        }
    }
    let cells: Vec<Cell> = slices
        .iter()
        .enumerate()
        .map(|(at, slices)| {
            let ((clients, set), engine) = (columns[at / 3], engines[at % 3].name());
            let cell = cell("read", engine, (clients, sessions), slices);
            Cell { set: Some(set), bytes_per_op: None, ..cell }
        })
        .collect();
    show(&cells, sessions);
    cells.iter().try_for_each(Cell::print)
}

/// The table for people.
fn show(cells: &[Cell], sessions: usize) {
    say(format_args!("\nreads of one attribute, {sessions} sessions of some 400 bytes"));
    say(format_args!(
        "{:<12}{:>8}{:>6}{:>12}{:>10}{:>10}",
        "engine", "clients", "set", "reads/s", "p50 µs", "p99 µs"
    ));
    for cells in cells.chunks(3) {
        for cell in cells {
            say(format_args!(
                "{:<12}{:>8}{:>6}{:>12.0}{:>10.2}{:>10.2}",
                cell.engine,
                cell.clients,
                cell.set.unwrap_or("-"),
                cell.ops_per_s,
                cell.p50_us,
                cell.p99_us,
            ));
        }
        let [sessile, naive, limit] = cells else { continue };
        say(format_args!(
            "  sessile is {:.2} times redb-naive, {:.0} % of the limit\n",
            sessile.ops_per_s / naive.ops_per_s,
            100.0 * sessile.ops_per_s / limit.ops_per_s,
        ));
    }
}

/// Something that sessions can be read from.
trait Engine: Sync {
    fn name(&self) -> &'static str;

    /// A client that reads an attribute of one of the first so many sessions at each call.
    fn client(&self, sessions: usize) -> Client<'_>;

    /// Writes to the first so many sessions, so that whoever keeps what is new has them.
    fn write(&self, sessions: usize);
}

impl Engine for Sessile {
    fn name(&self) -> &'static str {
        "sessile"
    }

    fn client(&self, sessions: usize) -> Client<'_> {
        Box::new(move |random| {
            let n = random.below(sessions);
            let read = || -> Result<Option<String>, Error> {
                let txn = self.store.begin()?;
                let session = txn.get(&self.container, key(n))?;
                session.expect("sessions live for 20 minutes").get(READ)
            };
            assert!(read().expect("sessile works").is_some());
        })
    }

    fn write(&self, sessions: usize) {
        let write = |txn: &sessile::Transaction| {
            (0..sessions).try_for_each(|n| {
                let session = txn.get(&self.container, key(n))?;
                session.expect("sessions live for 20 minutes").insert(SET, page(n as u64))
            })
        };
        self.store.transact(write).expect("nobody else writes");
    }
}

struct InRedb(redb::Database);

impl InRedb {
    fn new(directory: &Path, sessions: usize) -> Self {
        InRedb(filled_redb(directory, sessions))
    }
}

impl Engine for InRedb {
    fn name(&self) -> &'static str {
        "redb-naive"
    }

    fn client(&self, sessions: usize) -> Client<'_> {
        Box::new(move |random| {
            let n = random.below(sessions);
            let read = || -> Result<Option<String>, redb::Error> {
                let sessions = self.0.begin_read()?.open_table(SESSIONS)?;
                let row = sessions.get(&key(n)[..])?;
                let record = row.map(|row| Record::decoded(row.value()));
                Ok(record.and_then(|record| record.attributes.get(READ).map(|bytes| decode(bytes))))
            };
            assert!(read().expect("redb works").is_some());
        })
    }

    // All are in its cache, written or not.
    fn write(&self, _sessions: usize) {}
}

const SHARDS: usize = 256;

type Shard = Mutex<HashMap<[u8; 32], Arc<BTreeMap<&'static str, Vec<u8>>>>>;

struct Map(Vec<Shard>);

impl Map {
    fn new(sessions: usize) -> Self {
        let map = Map((0..SHARDS).map(|_| Shard::default()).collect());
        for n in 0..sessions {
            let mut shard = map.shard(&key(n)).lock().expect("nothing panics while it is held");
            shard.insert(key(n), Arc::new(attributes(n)));
        }
        map
    }

    // Keys are random, so any byte of theirs spreads them.
    fn shard(&self, key: &[u8; 32]) -> &Shard {
        &self.0[usize::from(key[0]) % SHARDS]
    }
}

impl Engine for Map {
    fn name(&self) -> &'static str {
        "map-limit"
    }

    fn client(&self, sessions: usize) -> Client<'_> {
        Box::new(move |random| {
            let key = key(random.below(sessions));
            let shard = self.shard(&key).lock().expect("nothing panics while it is held");
            let session = shard.get(&key).map(Arc::clone);
            drop(shard);
            let read = session.and_then(|session| session.get(READ).map(|v| decode::<String>(v)));
            assert!(read.is_some());
        })
    }

    fn write(&self, _sessions: usize) {}
}
