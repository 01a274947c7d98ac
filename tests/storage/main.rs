//! The storage fails: what users are told, what they still can do, and what is true afterwards.
//!
//! Real stores in real directories, on a disk that fails when it is told to (`fragile.rs`):
//!
//! ```text
//!   failures.rs   the commit log cannot be written or synced: commits in doubt, and recovery
//!   tables.rs     the tables cannot be read or written, or the disk is full
//!   ends.rs       ends whose listeners were not told yet when a process died
//!   relaxed.rs    commits that are acknowledged before they are synced
//!   queue.rs      who waits while the log fails
//!   bounds.rs     memory, transactions and queues that would be too large
//!   rotation.rs   a session that is given another key meanwhile
//!   damage.rs     bytes that have changed behind the store's back
//! ```
//!
//! Nothing sleeps. What takes real time, because the store waits between two attempts, is waited for
//! by its event.

#![expect(clippy::print_stdout, reason = "the test tells what it did")]
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

mod bounds;
mod damage;
mod ends;
mod failures;
#[path = "../support/fragile.rs"]
mod fragile;
mod queue;
mod relaxed;
mod rotation;
mod tables;

use std::error::Error as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use fragile::FragileDisk;
use sessile::{
    Commit, Container, Error, Event, Options, Policy, Receiver, Report, Store, Transaction,
};
use tempfile::TempDir;

/// How long to wait for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A place for a store, on a disk that may fail.
struct Place {
    path: PathBuf,
    disk: FragileDisk,
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Place { path: directory.path().join("store"), disk: FragileDisk::default(), directory }
    }

    /// Small segments, and no housekeeper: nothing is committed that the test does not commit.
    fn options(&self) -> Options {
        Options::new().disk(self.disk.clone()).segment_bytes(64 << 10).sweep_every(None)
    }

    fn open(&self) -> Store {
        self.options().open(&self.path).unwrap()
    }

    /// What `kill -9` would leave now: a copy.
    fn crash(&self) -> PathBuf {
        let others = fs::read_dir(self.directory.path()).unwrap().count();
        let copy = self.directory.path().join(format!("crash-{others}"));
        let _still = self.disk.stand_still();
        copy_directory(&self.path, &copy);
        copy
    }
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Writes a number into a session, which is made if there is none.
fn put(store: &Store, shop: &Container, key: &str, n: u64) -> Result<Report, Error> {
    putting(store, shop, key, n).commit()
}

fn putting(store: &Store, shop: &Container, key: &str, n: u64) -> Transaction {
    let txn = store.begin().unwrap();
    txn.get_or_create(shop, key).unwrap().insert("n", n).unwrap();
    txn
}

/// The number in a session; `None` if there is no session.
fn got(store: &Store, shop: &Container, key: &str) -> Option<u64> {
    seen(&store.begin().unwrap(), shop, key)
}

fn seen(txn: &Transaction, shop: &Container, key: &str) -> Option<u64> {
    let session = txn.peek(shop, key).unwrap()?;
    Some(session.get("n").unwrap().expect("every session has a number"))
}

fn shop(store: &Store) -> Container {
    store.container_with("shop", Policy::new()).unwrap()
}

/// The verdict on a commit, once it is there.
fn verdict(mut commit: Commit) -> Result<Report, Error> {
    let since = now();
    loop {
        match Pin::new(&mut commit).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(verdict) => return verdict,
            Poll::Pending => assert!(since.elapsed() < PATIENCE, "there is no verdict"),
        }
        thread::yield_now();
    }
}

/// What the operating system said.
fn cause(error: &Error) -> String {
    error.source().map(ToString::to_string).unwrap_or_default()
}

/// Waits for an event, and forgets those before it.
fn wait_for<T>(events: &Receiver<Event>, wanted: impl Fn(&Event) -> Option<T>) -> T {
    loop {
        let event = events.recv_timeout(PATIENCE).expect("the event comes");
        if let Some(found) = wanted(&event) {
            return found;
        }
    }
}

/// Waits for what no event tells of.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "it never came true: {what}");
        thread::yield_now();
    }
}

#[expect(clippy::disallowed_methods, reason = "how long a store takes to come back is real time")]
fn now() -> Instant {
    Instant::now()
}
