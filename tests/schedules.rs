//! The threads of the store in schedules that chance would not come upon: see `src/sync.rs`.
//!
//! `RUSTFLAGS="--cfg shuttle" cargo test --test schedules` runs all threads of a store and three of its
//! clients' on one thread, and decides at every lock, wait and atomic operation who goes on: at random,
//! or so that bugs which take few changes of thread at the wrong moments are found for sure with a known
//! probability (PCT, Burckhardt et al. 2010). A failure prints the schedule, and what to do with it.
//!
//! In every schedule: what was acknowledged is there, once; what has ended stays ended, and is told once;
//! nobody who waits is forgotten, for shuttle fails where all threads wait.

#![cfg(shuttle)]
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]
#![expect(clippy::print_stdout, reason = "the test tells what it did")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sessile::{
    ConflictReason, Container, EndReason, Error, ManualClock, Options, Policy, SessionId, Store,
    Time, Transaction,
};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner, thread};

/// How many schedules of each kind.
fn schedules() -> usize {
    match std::env::var("SESSILE_SIMULATION").as_deref() {
        Ok("record") => 50_000,
        Ok("ci") => 5_000,
        _ => 1_000,
    }
}

/// Explores a history, at random and with few changes of thread.
fn explore(history: impl Fn() + Clone + Send + Sync + 'static) {
    let seed = std::env::var("SESSILE_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    run(RandomScheduler::new_from_seed(seed, schedules()), history.clone());
    run(PctScheduler::new_from_seed(seed, 3, schedules()), history);
}

fn run(scheduler: impl Scheduler + 'static, history: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    (config.stack_size, config.silence_warnings) = (1 << 18, true);
    let ran = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&ran);
    Runner::new(scheduler, config).run(move || {
        history();
        count.fetch_add(1, Ordering::Relaxed);
    });
    let ran = ran.load(Ordering::Relaxed);
    println!("{ran} schedules");
    assert_eq!(ran, schedules() as u64);
}

type Told = Arc<std::sync::Mutex<Vec<(SessionId, EndReason)>>>;

/// A store with one session of `ada`'s.
fn store(queue_max: usize) -> (Store, Container, ManualClock, Told) {
    let (clock, told) = (ManualClock::new(Time::from_secs(1_000_000_000)), Told::default());
    let note = Arc::clone(&told);
    let options = Options::new().clock(clock.clone()).seed(1).sweep_every(None);
    let options = options.queue_max(queue_max).on_end("note", move |_, session, reason| {
        note.lock().unwrap().push((session.id(), reason));
        Ok(())
    });
    let store = options.memory().unwrap();
    let policy = Policy::new().timeout_secs(60).period_secs(20).on_end("note");
    let shop = store.container_with("shop", policy).unwrap();
    store.transact(|txn| txn.create(&shop, "a")?.bind("ada", "")).unwrap();
    (store, shop, clock, told)
}

fn count(txn: &Transaction, shop: &Container, key: &str) -> Option<u64> {
    let session = txn.peek(shop, key).unwrap()?;
    Some(session.get::<u64>("count").unwrap().unwrap_or_default())
}

/// Adds once; whether it was acknowledged. What is refused is refused because the session has ended.
fn add(store: &Store, shop: &Container) -> Result<bool, Error> {
    let txn = store.begin()?;
    let Some(session) = txn.get(shop, "a")? else { return Ok(false) };
    let added = session.add("count", 1).and_then(|()| txn.commit());
    match added {
        Ok(_) => Ok(true),
        Err(Error::Ended) => Ok(false),
        Err(Error::Conflict(conflict)) => {
            assert_eq!(conflict.reason, ConflictReason::Ended);
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Runs the works at the same time.
fn together<T: Send + 'static>(works: Vec<Box<dyn FnOnce() -> T + Send>>) -> Vec<T> {
    let threads: Vec<_> = works.into_iter().map(|work| thread::spawn(work)).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// Nothing that three threads count is lost, whether it is added or read and written back, and the queue
/// has room for one.
#[test]
fn no_count_is_lost() {
    explore(|| {
        let (store, shop, ..) = store(1);
        let work = |updates: bool| -> Box<dyn FnOnce() + Send> {
            let (store, shop) = (store.clone(), shop.clone());
            Box::new(move || {
                let change = |txn: &Transaction| {
                    let session = txn.get(&shop, "a")?.ok_or(Error::Ended)?;
                    match updates {
                        true => session.update("count", |n: &mut u64| *n += 1),
                        false => session.add("count", 1),
                    }
                };
                let before = store.begin().unwrap().revision();
                let report = store.transact(change).unwrap();
                assert!(report.revision > before);
                // Who was answered sees it.
                let txn = store.begin().unwrap();
                assert!(txn.revision() >= report.revision);
                assert!(count(&txn, &shop, "a").unwrap() >= 1);
            })
        };
        together(vec![work(false), work(true), work(false)]);
        assert_eq!(count(&store.begin().unwrap(), &shop, "a"), Some(3));
        assert_eq!(store.close().unwrap().commits, 5);
    });
}

/// Tasks that wait until the queue has room are woken when it has: none waits for ever.
#[test]
fn no_task_is_forgotten() {
    explore(|| {
        let (store, shop, ..) = store(1);
        let work = || -> Box<dyn FnOnce() + Send> {
            let (store, shop) = (store.clone(), shop.clone());
            Box::new(move || {
                for _ in 0..2 {
                    let add = |txn: &Transaction| {
                        txn.get(&shop, "a")?.ok_or(Error::Ended)?.add("count", 1)
                    };
                    shuttle::future::block_on(store.transact_async(add)).unwrap();
                }
            })
        };
        together(vec![work(), work(), work()]);
        assert_eq!(count(&store.begin().unwrap(), &shop, "a"), Some(6));
    });
}

/// What a transaction sees stands still, while others commit and what nobody sees any more is dropped.
#[test]
fn a_snapshot_stands_still() {
    explore(|| {
        let (store, shop, ..) = store(8);
        let writing: Box<dyn FnOnce() + Send> = {
            let (store, shop) = (store.clone(), shop.clone());
            Box::new(move || {
                (0..2).for_each(|_| assert!(add(&store, &shop).unwrap()));
                assert!(store.transact(|txn| txn.remove(&shop, "a")).unwrap().value);
            })
        };
        let reading = || -> Box<dyn FnOnce() + Send> {
            let (store, shop) = (store.clone(), shop.clone());
            Box::new(move || {
                let txn = store.begin().unwrap();
                // Each of them looks elsewhere.
                let listed = txn.iter(&shop).unwrap().count() as u64;
                let bound = txn.sessions_of(&shop, "ada").unwrap().len() as u64;
                let seen = count(&txn, &shop, "a");
                assert_eq!((listed, bound), (seen.is_some().into(), seen.is_some().into()));
                let stored = txn.len(&shop).unwrap();
                assert_eq!(stored, listed);
                let revision = txn.revision();
                drop(txn);
                let later = store.begin().unwrap();
                assert!(later.revision() >= revision);
                assert!(count(&later, &shop, "a").is_none_or(|count| Some(count) >= seen));
            })
        };
        together(vec![writing, reading(), reading()]);
    });
}

/// How a session may end.
type End = fn(&Store, &Container, &ManualClock) -> Option<EndReason>;

fn log_out(store: &Store, shop: &Container, _: &ManualClock) -> Option<EndReason> {
    assert!(store.transact(|txn| txn.remove(shop, "a")).unwrap().value);
    Some(EndReason::Invalidated)
}

fn end_all(store: &Store, shop: &Container, _: &ManualClock) -> Option<EndReason> {
    assert_eq!(store.transact(|txn| txn.end_all_of(shop, "ada")).unwrap().ended.len(), 1);
    Some(EndReason::Invalidated)
}

fn expire(store: &Store, _: &Container, clock: &ManualClock) -> Option<EndReason> {
    clock.advance_secs(81);
    store.sweep().unwrap();
    Some(EndReason::Expired)
}

fn rotate(store: &Store, shop: &Container, _: &ManualClock) -> Option<EndReason> {
    let rotated =
        store.transact(|txn| txn.get(shop, "a")?.ok_or(Error::Ended)?.rotate("b").map(|_| ()));
    rotated.unwrap();
    Some(EndReason::Rotated)
}

/// Two threads write while a third ends the session: from then on nobody finds it, no write that was
/// acknowledged before is missing from what the listener is told, and none comes after it.
#[test]
fn an_end_is_final() {
    for end in [log_out as End, end_all, expire] {
        explore(move || {
            let (store, shop, clock, told) = store(8);
            let work = || -> Box<dyn FnOnce() -> u64 + Send> {
                let (store, shop) = (store.clone(), shop.clone());
                Box::new(move || (0..2).filter(|_| add(&store, &shop).unwrap()).count() as u64)
            };
            let ending: Box<dyn FnOnce() -> u64 + Send> = {
                let (store, shop) = (store.clone(), shop.clone());
                Box::new(move || {
                    let reason = end(&store, &shop, &clock).unwrap();
                    let txn = store.begin().unwrap();
                    assert!(txn.get(&shop, "a").unwrap().is_none(), "it has come back");
                    assert_eq!(txn.sessions_of(&shop, "ada").unwrap(), []);
                    assert!(txn.is_empty(&shop).unwrap());
                    store.settle();
                    let told = told.lock().unwrap();
                    assert!(told.len() == 1 && told[0].1 == reason, "{told:?}");
                    0
                })
            };
            together(vec![work(), work(), ending]);
            let txn = store.begin().unwrap();
            assert!(txn.get(&shop, "a").unwrap().is_none());
            drop(txn);
            let stats = store.close().unwrap();
            assert_eq!((stats.sessions, stats.ended), (0, 1));
        });
    }
}

/// A session is rotated under two writers: exactly one of its keys is valid whenever anybody looks, and
/// what was acknowledged went with it.
#[test]
fn a_rotation_takes_everything_along() {
    explore(|| {
        let (store, shop, clock, told) = store(8);
        let work = || -> Box<dyn FnOnce() -> u64 + Send> {
            let (store, shop) = (store.clone(), shop.clone());
            Box::new(move || {
                let added = u64::from(add(&store, &shop).unwrap());
                let txn = store.begin().unwrap();
                let valid = ["a", "b"].map(|key| count(&txn, &shop, key));
                assert_eq!(valid.iter().flatten().count(), 1, "{valid:?}");
                assert!(valid.into_iter().flatten().next() >= Some(added));
                added
            })
        };
        let rotating: Box<dyn FnOnce() -> u64 + Send> = {
            let (store, shop) = (store.clone(), shop.clone());
            Box::new(move || {
                rotate(&store, &shop, &clock);
                let txn = store.begin().unwrap();
                assert!(txn.peek(&shop, "a").unwrap().is_none());
                assert!(matches!(txn.create(&shop, "a"), Err(Error::RotatedKey { .. })));
                0
            })
        };
        let added: u64 = together(vec![work(), work(), rotating]).into_iter().sum();
        let txn = store.begin().unwrap();
        assert_eq!((count(&txn, &shop, "a"), count(&txn, &shop, "b")), (None, Some(added)));
        drop(txn);
        store.settle();
        assert_eq!(told.lock().unwrap().len(), 1);
    });
}

/// A store is closed while it is committed to: everybody is answered, what was acknowledged is counted,
/// and nothing is accepted afterwards.
#[test]
fn a_closed_store_answers_everybody() {
    explore(|| {
        let (store, shop, ..) = store(1);
        let work = || -> Box<dyn FnOnce() -> u64 + Send> {
            let (store, shop) = (store.clone(), shop.clone());
            Box::new(move || match add(&store, &shop) {
                Ok(added) => u64::from(added),
                Err(Error::Closed) => 0,
                Err(error) => panic!("{error}"),
            })
        };
        let closing: Box<dyn FnOnce() -> u64 + Send> = {
            let store = store.clone();
            Box::new(move || {
                let left = store.clone();
                let before = store.close().unwrap();
                assert!(matches!(left.begin(), Err(Error::Closed)));
                assert!(matches!(left.sweep(), Err(Error::Closed)));
                let after = left.stats();
                assert_eq!((after.commits, after.queued), (before.commits, 0));
                0
            })
        };
        let added: u64 = together(vec![work(), work(), closing]).into_iter().sum();
        // The container and the session came first.
        assert_eq!(store.stats().commits, 2 + added);
    });
}

/// A task that has asked a thread of the store's is answered, whatever becomes of the store.
#[test]
fn who_waits_for_a_reader_is_answered() {
    explore(|| {
        let (store, shop, ..) = store(4);
        let reads = {
            let (store, shop) = (store.clone(), shop.clone());
            thread::spawn(move || {
                shuttle::future::block_on(async {
                    let txn = store.begin()?;
                    // Nobody is there, so it is not in memory either.
                    let found = txn.get_async(&shop, "b").await?;
                    assert!(found.is_none());
                    store.spawn_transact(move |txn| txn.end_all_of(&shop, "ada")).await
                })
            })
        };
        let writes = {
            let (store, shop) = (store.clone(), shop.clone());
            thread::spawn(move || add(&store, &shop))
        };
        let closes = thread::spawn(move || store.close().map(drop));
        let read = reads.join().unwrap();
        assert!(matches!(read, Ok(_) | Err(Error::Closed)), "{read:?}");
        drop(writes.join().unwrap());
        closes.join().unwrap().unwrap();
    });
}
