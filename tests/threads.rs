//! Real threads on one store: nothing is lost, nothing is torn, nothing piles up.
//!
//! These tests race; they do not sleep, and what they assert holds in every interleaving.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use sessile::{Error, ManualClock, Options, Policy, Store, Time, Transaction};

const THREADS: u64 = 8;

/// Both engines, each with a container of its own and the directory to keep.
fn stores() -> Vec<(Store, Option<tempfile::TempDir>)> {
    let directory = tempfile::tempdir().unwrap();
    let on_disk = Store::open(directory.path().join("store")).unwrap();
    vec![(Store::memory().unwrap(), None), (on_disk, Some(directory))]
}

fn race(work: impl Fn(u64) + Sync) {
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let work = &work;
            scope.spawn(move || work(thread));
        }
    });
}

/// 8 threads add to one counter of one session, and write an attribute each: all is kept.
#[test]
fn eight_writers_of_one_session_lose_nothing() {
    const WRITES: u64 = 1_000;
    for (store, _directory) in stores() {
        let shop = store.container_with("shop", Policy::new()).unwrap();
        store.transact(|txn| txn.create(&shop, "ada").map(|_| ())).unwrap();
        race(|_| {
            for _ in 0..WRITES {
                let add = store.transact(|txn| txn.get(&shop, "ada")?.unwrap().add("n", 1));
                assert_eq!(add.unwrap().attempts, 1, "merging writes never conflict");
            }
        });
        race(|thread| {
            for n in 1..=WRITES {
                let write = store.transact(|txn| {
                    txn.get(&shop, "ada")?.unwrap().insert(&format!("own{thread}"), n)
                });
                assert_eq!(write.unwrap().attempts, 1, "they write different attributes");
            }
        });
        let txn = store.begin().unwrap();
        let ada = txn.get(&shop, "ada").unwrap().unwrap();
        assert_eq!(ada.get::<u64>("n").unwrap(), Some(THREADS * WRITES));
        for thread in 0..THREADS {
            assert_eq!(ada.get::<u64>(&format!("own{thread}")).unwrap(), Some(WRITES));
        }
    }
}

/// A transaction that somebody else's commit has already passed by.
fn overtaken(store: &Store, done: &AtomicBool) -> Transaction {
    let txn = store.begin().unwrap();
    while store.stats().revision == txn.revision().get() && !done.load(Ordering::Relaxed) {
        thread::yield_now();
    }
    txn
}

/// Money moves between sessions while others look at all of them: no sum is ever wrong.
#[test]
fn a_snapshot_never_shows_half_a_transfer() {
    const ACCOUNTS: u64 = 10;
    const EACH: i64 = 100;
    for (store, _directory) in stores() {
        let bank = store.container_with("bank", Policy::new()).unwrap();
        let open = store.transact(|txn| {
            (0..ACCOUNTS).try_for_each(|n| txn.create(&bank, n.to_string())?.insert("money", EACH))
        });
        open.unwrap();
        let done = AtomicBool::new(false);
        let looked = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let txn = overtaken(&store, &done);
                        let (mut sum, mut seen) = (0, 0);
                        for account in txn.iter(&bank).unwrap() {
                            sum += account.unwrap().get::<i64>("money").unwrap().unwrap();
                            seen += 1;
                        }
                        assert_eq!((sum, seen), (EACH * ACCOUNTS as i64, ACCOUNTS));
                        assert_eq!(txn.len(&bank).unwrap(), ACCOUNTS);
                        looked.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            race(|thread| {
                for n in 0..200 {
                    let (from, to) = ((thread + n) % ACCOUNTS, (thread * 3 + n * 7) % ACCOUNTS);
                    let transfer = store.transact(|txn| {
                        txn.get(&bank, from.to_string())?.unwrap().add("money", -1)?;
                        txn.get(&bank, to.to_string())?.unwrap().add("money", 1)
                    });
                    transfer.unwrap();
                }
            });
            done.store(true, Ordering::Relaxed);
        });
        assert!(looked.load(Ordering::Relaxed) > 0);
    }
}

/// Sessions come and go under a scan: it shows those of its snapshot, all of them, once.
#[test]
fn a_scan_sees_one_state_while_sessions_come_and_go() {
    for (store, _directory) in stores() {
        let shop = store.container_with("shop", Policy::new()).unwrap();
        // Exactly one of each pair lives, at every revision.
        const PAIRS: u64 = 400;
        let open = store.transact(|txn| {
            (0..PAIRS).try_for_each(|n| txn.create(&shop, format!("{n}-even")).map(|_| ()))
        });
        open.unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let txn = overtaken(&store, &done);
                    let mut pairs: Vec<u64> = Vec::new();
                    for key in txn.keys(&shop).unwrap() {
                        let key = String::from_utf8(key.unwrap().as_bytes().to_vec()).unwrap();
                        pairs.push(key.split('-').next().unwrap().parse().unwrap());
                    }
                    pairs.sort_unstable();
                    assert!(pairs.into_iter().eq(0..PAIRS));
                }
            });
            race(|thread| {
                for round in 0..40 {
                    let pair = (thread * 50 + round) % PAIRS;
                    let swap = store.transact(|txn| {
                        let (even, odd) = (format!("{pair}-even"), format!("{pair}-odd"));
                        let (gone, new) = match txn.remove(&shop, &even)? {
                            true => (even, odd),
                            false => (odd, even),
                        };
                        txn.remove(&shop, gone)?;
                        txn.create(&shop, new).map(|_| ())
                    });
                    swap.unwrap();
                }
            });
            done.store(true, Ordering::Relaxed);
        });
    }
}

#[test]
fn concurrent_creations_do_not_overshoot_the_limit() {
    const LIMIT: u64 = 50;
    for (store, _directory) in stores() {
        let shop = store.container_with("shop", Policy::new().limit(LIMIT)).unwrap();
        let created = AtomicU64::new(0);
        race(|thread| {
            for n in 0..20 {
                match store.transact(|txn| txn.create(&shop, format!("{thread}/{n}")).map(|_| ())) {
                    Ok(_) => {
                        created.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(Error::Limit { max, .. }) => assert_eq!(max, LIMIT),
                    Err(error) => panic!("{error}"),
                }
            }
        });
        assert_eq!(created.into_inner(), LIMIT);
        assert_eq!(store.begin().unwrap().len(&shop).unwrap(), LIMIT);
    }
}

/// Logout races with writes: after it is acknowledged nobody sees the session again.
#[test]
fn an_ended_session_never_comes_back() {
    for (store, _directory) in stores() {
        let shop = store.container_with("shop", Policy::new()).unwrap();
        for n in 0..50 {
            let key = n.to_string();
            store.transact(|txn| txn.create(&shop, &key).map(|_| ())).unwrap();
            race(|thread| {
                if thread == 0 {
                    let logout = store.transact(|txn| txn.remove(&shop, &key));
                    assert!(logout.unwrap().value);
                    assert!(store.begin().unwrap().peek(&shop, &key).unwrap().is_none());
                    return;
                }
                for _ in 0..5 {
                    let write = store.transact(|txn| match txn.get(&shop, &key)? {
                        Some(session) => session.add("n", 1).map(|()| true),
                        None => Ok(false),
                    });
                    write.expect("a conflict is retried, and then nobody is there");
                }
            });
            assert!(!store.begin().unwrap().contains(&shop, &key).unwrap());
        }
    }
}

/// Ends are told exactly once, however they race: sweeps, removals and creations over the dead.
#[test]
fn racing_ends_are_told_once() {
    for on_disk in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let clock = ManualClock::new(Time::from_secs(1_000));
        let told = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&told);
        let options = Options::new().clock(clock.clone()).sweep_every(None).on_end(
            "record",
            move |_, session, _| {
                record.lock().unwrap().push(session.id());
                Ok(())
            },
        );
        let store = match on_disk {
            true => options.open(directory.path().join("store")).unwrap(),
            false => options.memory().unwrap(),
        };
        let policy = Policy::new().timeout_secs(20).on_end("record");
        let shop = store.container_with("shop", policy).unwrap();
        let mut created = Vec::new();
        for _ in 0..5 {
            let made = store.transact(|txn| {
                (0..100)
                    .map(|n| txn.create(&shop, n.to_string()).map(|session| session.id()))
                    .collect::<Result<Vec<_>, Error>>()
            });
            created.extend(made.unwrap().value);
            clock.advance_secs(10);
            let live = store.transact(|txn| txn.remove(&shop, "7")).unwrap();
            assert!(live.value);
            clock.advance_secs(60);
            race(|thread| match thread {
                0..4 => {
                    store.sweep().unwrap();
                }
                _ => {
                    for n in 0..100 {
                        assert!(!store.begin().unwrap().contains(&shop, n.to_string()).unwrap());
                    }
                }
            });
        }
        store.settle();
        let mut told = told.lock().unwrap().clone();
        told.sort();
        created.sort();
        assert_eq!(told, created);
    }
}

/// A transaction that lives too long is told so, and what was kept for it goes.
#[test]
fn an_old_snapshot_is_given_up_instead_of_growing_without_bound() {
    let store = Options::new().version_bytes_max(100_000).memory().unwrap();
    let shop = store.container_with("shop", Policy::new()).unwrap();
    let write = |n: u64| {
        let value = vec![n; 1_000];
        store.transact(|txn| txn.get_or_create(&shop, "ada")?.insert("blob", &value)).unwrap();
    };
    write(0);
    let old = store.begin().unwrap();
    let seen = old.get(&shop, "ada").unwrap().unwrap();
    for n in 0..200 {
        write(n);
    }
    assert!(store.stats().version_bytes < 200_000, "{}", store.stats().version_bytes);
    assert!(matches!(seen.get::<Vec<u64>>("blob"), Err(Error::SnapshotTooOld { .. })));
    assert!(matches!(old.commit(), Err(Error::SnapshotTooOld { .. })));
    assert_eq!(store.stats().snapshots_given_up, 1);
}

/// Versions go with the last snapshot that needs them, without waiting for another commit.
#[test]
fn an_idle_store_keeps_no_versions() {
    for (store, _directory) in stores() {
        let shop = store.container_with("shop", Policy::new()).unwrap();
        let write = |n: u64| store.transact(|txn| txn.get_or_create(&shop, "ada")?.insert("n", n));
        write(0).unwrap();
        let (older, old) = (store.begin().unwrap(), store.begin().unwrap());
        write(1).unwrap();
        let young = store.begin().unwrap();
        write(2).unwrap();
        let seen = |txn: &Transaction| {
            txn.peek(&shop, "ada").unwrap().unwrap().get::<u64>("n").unwrap().unwrap()
        };
        assert_eq!((seen(&older), seen(&old), seen(&young)), (0, 0, 1));
        drop(young);
        drop(older);
        assert_eq!((store.stats().versions, seen(&old)), (2, 0));
        drop(old);
        assert_eq!((store.stats().versions, store.stats().version_bytes), (0, 0));
    }
}

/// A committer that is held up fills the queue: who comes then is told that the store is busy.
#[test]
fn a_full_queue_says_busy() {
    let (held, hold) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let store = Options::new()
        .queue_max(1)
        .wait_budget(Duration::from_millis(20))
        .resolver("hold", move |_| {
            // No resolver should wait; this one stands for a slow disk.
            held.send(()).unwrap();
            released.lock().unwrap().recv().unwrap();
            sessile::Resolution::Stored
        })
        .memory()
        .unwrap();
    let rule = sessile::Rule::resolver("hold");
    let shop = store.container_with("shop", Policy::new().rule("a", rule)).unwrap();
    store.transact(|txn| txn.create(&shop, "ada")?.insert("a", 0)).unwrap();
    let write = |n: u64| {
        let txn = store.begin().unwrap();
        txn.get(&shop, "ada").unwrap().unwrap().insert("a", n).unwrap();
        txn
    };
    let (first, second, third, fourth) = (write(1), write(2), write(3), write(4));
    first.commit().unwrap();
    thread::scope(|scope| {
        let holding = scope.spawn(|| second.commit().unwrap());
        hold.recv().unwrap();
        // The committer is held; the queue has room for one.
        let queued = third.commit_async();
        assert!(matches!(fourth.commit(), Err(Error::Busy { queued: 1, .. })));
        drop(queued);
        release.send(()).unwrap();
        release.send(()).unwrap();
        holding.join().unwrap();
    });
    assert_eq!(store.stats().busy, 1);
}

/// The smallest executor there is: it counts how often a future asks to be polled.
struct Flag(thread::Thread, AtomicU64);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let flag = Arc::new(Flag(thread::current(), AtomicU64::new(0)));
    let waker = Waker::from(Arc::clone(&flag));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => {
                while flag.1.swap(0, Ordering::SeqCst) == 0 {
                    thread::park();
                }
            }
        }
    }
}

/// Far more commits are awaited than the queue has room for, by a few threads.
#[test]
fn commits_can_be_awaited() {
    let store = Options::new().queue_max(2).memory().unwrap();
    let shop = store.container_with("shop", Policy::new()).unwrap();
    store.transact(|txn| txn.create(&shop, "ada").map(|_| ())).unwrap();
    race(|_| {
        let commits: Vec<_> = (0..100)
            .map(|_| {
                let txn = store.begin().unwrap();
                txn.get(&shop, "ada").unwrap().unwrap().add("n", 1).unwrap();
                txn.commit_async()
            })
            .collect();
        for commit in commits {
            block_on(commit).unwrap();
        }
    });
    let txn = store.begin().unwrap();
    let ada = txn.get(&shop, "ada").unwrap().unwrap();
    assert_eq!(ada.get::<u64>("n").unwrap(), Some(100 * THREADS));
    drop(txn);
    let nothing = block_on(store.begin().unwrap().commit_async()).unwrap();
    assert_eq!(nothing.revision.get(), store.stats().revision);
}

/// Closing finishes what is queued; whoever comes later is told.
#[test]
fn closing_drains_and_then_refuses() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = Store::open(&path).unwrap();
    let shop = store.container_with("shop", Policy::new()).unwrap();
    let queued: Vec<_> = (0..100)
        .map(|n: u64| {
            let txn = store.begin().unwrap();
            txn.create(&shop, n.to_string()).unwrap();
            txn.commit_async()
        })
        .collect();
    let late = store.begin().unwrap();
    late.create(&shop, "late").unwrap();
    let other = store.clone();
    store.close().unwrap();
    for commit in queued {
        block_on(commit).unwrap();
    }
    assert!(matches!(late.commit(), Err(Error::Closed)));
    assert!(matches!(other.begin(), Err(Error::Closed)));
    let again = Store::open(&path).unwrap();
    let shop = again.container("shop").unwrap();
    assert_eq!(again.begin().unwrap().len(&shop).unwrap(), 100);
}

/// Listeners that do what they should not: the store goes on.
#[test]
fn listeners_may_do_as_they_please() {
    let store = Options::new()
        .on_end("use", |store, session, _| {
            // Use the store, wait for what this thread itself delivers, close it.
            let graves = store.container("graves")?;
            store.transact(|txn| txn.get_or_create(&graves, session.key()).map(|_| ()))?;
            store.settle();
            Err("and fail".into())
        })
        .on_end("panic", |_, _, _| panic!("a listener may panic"))
        .end_attempts(1)
        .memory()
        .unwrap();
    let events = store.events();
    store.container_with("graves", Policy::new()).unwrap();
    let shop = store.container_with("shop", Policy::new().on_end("use")).unwrap();
    let trap = store.container_with("trap", Policy::new().on_end("panic")).unwrap();
    for container in [&shop, &trap] {
        for n in 0..10 {
            let life = store.transact(|txn| txn.create(container, n.to_string())?.invalidate());
            life.unwrap();
        }
    }
    store.settle();
    assert_eq!(store.stats().listener_failures, 20);
    assert_eq!(store.stats().ends_pending, 0);
    let graves = store.container("graves").unwrap();
    assert_eq!(store.begin().unwrap().len(&graves).unwrap(), 10);
    let failed = events
        .try_iter()
        .filter(|event| matches!(event, sessile::Event::ListenerFailed { .. }))
        .count();
    assert_eq!(failed, 20);
}

/// Two handles close at once: the queued commits are finished, their ends told, and nobody hangs.
#[test]
fn two_may_close_at_once() {
    for _ in 0..5 {
        const SESSIONS: u64 = 500;
        let directory = tempfile::tempdir().unwrap();
        let told = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&told);
        let options = Options::new().queue_max(10_000).sweep_every(None).on_end("count", {
            move |_, _, _| {
                count.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
        });
        let store = options.open(directory.path().join("store")).unwrap();
        let shop = store.container_with("shop", Policy::new().on_end("count")).unwrap();
        let fill = store.transact(|txn| {
            (0..SESSIONS).try_for_each(|n| txn.create(&shop, n.to_string()).map(|_| ()))
        });
        fill.unwrap();
        let queued: Vec<_> = (0..SESSIONS)
            .map(|n| {
                let txn = store.begin().unwrap();
                txn.remove(&shop, n.to_string()).unwrap();
                txn.commit_async()
            })
            .collect();
        let (left, right) = (store.clone(), store.clone());
        thread::scope(|scope| {
            let closing = [scope.spawn(|| left.close()), scope.spawn(|| right.close())];
            for close in closing {
                close.join().unwrap().unwrap();
            }
        });
        for commit in queued {
            block_on(commit).unwrap();
        }
        store.settle();
        assert_eq!(told.load(Ordering::SeqCst), SESSIONS);
    }
}

/// A listener may close the store it is lent: no more commits are taken, and who opened it closes.
#[test]
fn a_listener_may_close_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = Options::new()
        .on_end("close", |store, _, _| Ok(store.clone().close().map(|_| ())?))
        .open(&path)
        .unwrap();
    let shop = store.container_with("shop", Policy::new().on_end("close")).unwrap();
    store.transact(|txn| txn.create(&shop, "ada")?.invalidate()).unwrap();
    store.settle();
    assert!(matches!(store.begin(), Err(Error::Closed)));
    assert_eq!(store.close().unwrap().listener_failures, 0);
    Store::open(&path).unwrap();
}

/// The last handle is dropped while a listener works: its ends are told and the store is closed.
#[test]
fn dropping_the_last_handle_waits_for_listeners() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let told = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&told);
    let (started, start) = mpsc::channel();
    let store = Options::new()
        .on_end("work", move |store, _, _| {
            let _ = started.send(());
            // Something that takes its time.
            store.container_with("log", Policy::new())?;
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
        .open(&path)
        .unwrap();
    let shop = store.container_with("shop", Policy::new().on_end("work")).unwrap();
    let end = store
        .transact(|txn| (0..50).try_for_each(|n| txn.create(&shop, n.to_string())?.invalidate()));
    end.unwrap();
    start.recv().unwrap();
    drop((shop, store));
    assert_eq!(told.load(Ordering::SeqCst), 50);
    Store::open(&path).unwrap();
}

/// A handle on another thread writes while its transaction commits: what was taken is committed.
#[test]
fn a_write_that_races_with_its_commit_is_committed_or_refused() {
    let store = Store::memory().unwrap();
    let shop = store.container_with("shop", Policy::new()).unwrap();
    store.transact(|txn| txn.create(&shop, "ada").map(|_| ())).unwrap();
    for round in 0..2_000u64 {
        let txn = store.begin().unwrap();
        let ada = txn.get(&shop, "ada").unwrap().unwrap();
        ada.insert("n", round * 1_000).unwrap();
        let (writer, both) = (ada.clone(), Barrier::new(2));
        let last = thread::scope(|scope| {
            let writing = scope.spawn(|| {
                both.wait();
                (1..1_000)
                    .map(|n| round * 1_000 + n)
                    .take_while(|n| writer.insert("n", n).is_ok())
                    .last()
                    .unwrap_or(round * 1_000)
            });
            both.wait();
            txn.commit().unwrap();
            writing.join().unwrap()
        });
        let txn = store.begin().unwrap();
        let ada = txn.peek(&shop, "ada").unwrap().unwrap();
        assert_eq!(ada.get::<u64>("n").unwrap(), Some(last));
    }
}

/// A listener that is stuck: visitors come and go for long, but not without bound.
#[test]
fn ends_do_not_pile_up_without_bound() {
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let clock = ManualClock::new(Time::from_secs(1_000));
    let store = Options::new()
        .clock(clock.clone())
        .sweep_every(None)
        .wait_budget(Duration::from_millis(1))
        .ends_pending_max(10)
        .on_end("stuck", move |_, _, _| Ok(released.lock().unwrap().recv()?))
        .end_attempts(1)
        .memory()
        .unwrap();
    let policy = Policy::new().timeout_secs(20).on_end("stuck");
    let shop = store.container_with("shop", policy).unwrap();
    let visit = |n: u64| {
        clock.advance_secs(100);
        store.transact(|txn| txn.get_or_create(&shop, (n % 2).to_string()).map(|_| ()))
    };
    let served = (0..1_000).take_while(|n| visit(*n).is_ok()).count();
    assert!((100..500).contains(&served), "{served}");
    assert!(matches!(visit(0), Err(Error::Busy { .. })));
    assert!(store.stats().ends_pending <= 170, "{}", store.stats().ends_pending);
    drop(release);
    store.settle();
    visit(0).unwrap();
}
