//! A disk that stands still: commits wait, and neither memory nor anybody's patience runs out.
//!
//! The disk is the real one, with a gate before the sync of the commit log. While it is closed the
//! committer stands there, and everything behind it piles up, within bounds.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

#[path = "support/watched.rs"]
mod watched;

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use sessile::{Commit, Container, Error, Options, Policy, Report, Store};
use watched::{Observer, Operation, Side, Watched};

/// How long to wait for what must not take long.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    closed: bool,
    /// Somebody stands before it.
    met: bool,
}

impl Gate {
    fn close(&self) {
        *self.state.lock().unwrap() = State { closed: true, met: false };
    }

    fn open(&self) {
        self.state.lock().unwrap().closed = false;
        self.changed.notify_all();
    }

    /// Returns when somebody stands before the closed gate.
    fn wait(&self) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |state| !state.met).unwrap());
    }
}

/// Lets a store that fails its test be closed.
struct Opener<'a>(&'a Gate);

impl Drop for Opener<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

impl Observer for Gate {
    fn meets(&self, side: Side, operation: Operation, path: &Path) {
        let log = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log-"));
        if !log || (side, operation) != (Side::Before, Operation::Sync) {
            return;
        }
        let mut state = self.state.lock().unwrap();
        state.met = state.closed;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |state| state.closed).unwrap());
    }
}

/// A store behind a gate, with one session.
fn store(gate: &Arc<Gate>, path: &Path, options: Options) -> (Store, Container) {
    let disk = Watched(Arc::clone(gate) as _);
    let store = options.disk(disk).segment_bytes(1 << 20).sweep_every(None).open(path).unwrap();
    let shop = store.container_with("shop", Policy::new()).unwrap();
    store.transact(|txn| txn.create(&shop, "ada").map(|_| ())).unwrap();
    (store, shop)
}

/// Commits one more visit, without waiting for it.
fn visit(store: &Store, shop: &Container, n: u64) -> Commit {
    let txn = store.begin().unwrap();
    let ada = txn.get(shop, "ada").unwrap().unwrap();
    ada.add("visits", 1).unwrap();
    ada.union("who", n).unwrap();
    txn.commit_async()
}

/// The verdict on a commit, if there is one.
fn verdict(commit: &mut Commit) -> Option<Result<Report, Error>> {
    match Pin::new(commit).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(verdict) => Some(verdict),
        Poll::Pending => None,
    }
}

/// Who visited, by what is on the disk.
fn visitors(path: &Path) -> Vec<u64> {
    let store = Store::open(path).unwrap();
    let txn = store.begin().unwrap();
    let ada = txn.peek(&store.container("shop").unwrap(), "ada").unwrap().unwrap();
    let who = ada.get::<Vec<u64>>("who").unwrap().unwrap_or_default();
    assert_eq!(ada.get::<u64>("visits").unwrap().unwrap_or(0), who.len() as u64);
    who
}

/// The store is dropped, not closed, while commits are under way: each of them is told what became
/// of it, and that is what became of it.
#[test]
fn a_store_that_is_dropped_leaves_no_commit_in_doubt() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let gate = Arc::default();
    let (store, shop) = store(&gate, &path, Options::new());
    let _opener = Opener(&gate);

    gate.close();
    let mut commits = vec![visit(&store, &shop, 0)];
    gate.wait();
    commits.extend((1..200).map(|n| visit(&store, &shop, n)));
    let (dropped, drops) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            drop(store);
            dropped.send(()).unwrap();
        });
        let waits = drops.recv_timeout(Duration::from_millis(50));
        assert!(waits.is_err(), "it is gone, and commits are under way");
        gate.open();
        drops.recv_timeout(PATIENCE).expect("the store is gone in time");
    });
    let mut durable = Vec::new();
    for (n, commit) in (0..).zip(&mut commits) {
        match verdict(commit).expect("no commit is left without a verdict") {
            Ok(_) => durable.push(n),
            Err(Error::Closed) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(visitors(&path), durable);
    assert_eq!(durable.first(), Some(&0), "the one that was under way");
}

/// A queue that is full stays as it is: whoever comes then is told so, soon, and leaves nothing
/// behind. Reads go on, and what was queued is committed when the disk moves again.
#[test]
fn a_stalled_disk_makes_the_store_busy() {
    const QUEUE_MAX: u64 = 64;
    const PRODUCERS: usize = 64;
    const REFUSED: usize = PRODUCERS * 16;
    const BYTES: usize = 100_000;
    let budget = Duration::from_millis(10);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let gate = Arc::default();
    let options = Options::new().queue_max(QUEUE_MAX as usize).wait_budget(budget);
    let (store, shop) = store(&gate, &path, options);
    let _opener = Opener(&gate);

    gate.close();
    let mut commits = vec![visit(&store, &shop, 0)];
    gate.wait();
    while store.stats().queued < QUEUE_MAX {
        commits.push(visit(&store, &shop, commits.len() as u64));
    }
    let before = resident_bytes();
    thread::scope(|scope| {
        for _ in 0..PRODUCERS {
            scope.spawn(|| {
                for _ in 0..REFUSED / PRODUCERS {
                    let txn = store.begin().unwrap();
                    let ada = txn.get(&shop, "ada").unwrap().expect("reads go on");
                    ada.insert("ballast", "x".repeat(BYTES)).unwrap();
                    match txn.commit() {
                        Err(Error::Busy { queued, waited, .. }) => {
                            assert!(queued as u64 <= QUEUE_MAX, "{queued} are queued");
                            assert!(waited >= budget && waited < PATIENCE, "waited {waited:?}");
                        }
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
    });
    let stats = store.stats();
    assert_eq!((stats.queued, stats.busy), (QUEUE_MAX, REFUSED as u64));
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < REFUSED * BYTES / 2, "grown by {grown} bytes");

    gate.open();
    for commit in &mut commits {
        while verdict(commit).map(Result::unwrap).is_none() {
            thread::yield_now();
        }
    }
    drop(shop);
    store.close().unwrap();
    assert!(visitors(&path).into_iter().eq(0..commits.len() as u64));
}

/// How much memory this process has, where the operating system says so: its pages have 4 KiB.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or(0) * 4_096
}
