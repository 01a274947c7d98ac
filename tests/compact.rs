//! A compaction gives space back, and nobody notices it otherwise.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use sessile::{Options, Policy, Store, Viewer};

#[test]
fn what_was_given_up_goes_back_to_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = Options::new().segment_bytes(1 << 20).open(&path).unwrap();
    let visitors = store.container_with("visitors", Policy::new()).unwrap();
    let key = |n: u32| n.wrapping_mul(0x9e37_79b9).to_be_bytes();
    for chunk in 0..20 {
        let create = |txn: &sessile::Transaction| {
            (chunk * 250..chunk * 250 + 250).try_for_each(|n| {
                txn.create(&visitors, &key(n))?.insert("filling", "x".repeat(500))
            })
        };
        store.transact(create).unwrap();
    }
    for chunk in 0..10 {
        let range = chunk * 490..chunk * 490 + 490;
        let end = |txn: &sessile::Transaction| {
            range.clone().try_for_each(|n| txn.remove(&visitors, &key(n)).map(|_| ()))
        };
        store.transact(end).unwrap();
    }
    store.fold().unwrap();
    // What is read from the file that goes stays readable.
    let txn = store.begin().unwrap();
    let mut walk = txn.iter(&visitors).unwrap();
    walk.next().unwrap().unwrap();
    let bytes = || fs::metadata(path.join("sessions.redb")).unwrap().len();
    let before = bytes();
    let compacted = store.compact().unwrap();
    assert_eq!((compacted.before, compacted.after), (before, bytes()));
    assert!(compacted.after < compacted.before / 4, "{compacted}");
    assert_eq!(walk.filter(|session| session.is_ok()).count(), 99);
    drop(txn);
    store.transact(|txn| txn.get_or_create(&visitors, "last").map(|_| ())).unwrap();
    assert_eq!(store.begin().unwrap().len(&visitors).unwrap(), 101);
    store.close().unwrap();
    let checked = Viewer::check(&path).unwrap();
    assert!(checked.problems.is_empty() && checked.pages, "{checked:?}");
    assert_eq!(checked.records, 101);
}

/// Writers, readers of what is not in memory, backups and somebody who looks from outside go on while
/// the file beneath them is exchanged again and again.
#[test]
fn nobody_notices_a_compaction() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    // Hardly anything stays in memory, and it is folded all the time.
    let options = || Options::new().segment_bytes(32 << 10).memory_max(64 << 10);
    let store = options().open(&path).unwrap();
    let visitors = store.container_with("visitors", Policy::new()).unwrap();
    let fill = |from: u32| {
        store.transact(|txn| {
            (from..from + 50)
                .try_for_each(|n| txn.create(&visitors, &n.to_be_bytes())?.insert("n", 0))
        })
    };
    (0..6).for_each(|chunk| drop(fill(chunk * 50).unwrap()));
    let stop = AtomicBool::new(false);
    let goes_on = || !stop.load(Ordering::Relaxed);
    let written = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut written = 0u32;
            while goes_on() {
                let key = (written % 300).to_be_bytes();
                store.transact(|txn| txn.get(&visitors, &key)?.unwrap().add("n", 1)).unwrap();
                written += 1;
            }
            written
        });
        scope.spawn(|| {
            while goes_on() {
                let txn = store.begin().unwrap();
                let sum = |session: Result<sessile::Session, _>| session?.get::<u32>("n");
                let sums: Result<Vec<_>, _> = txn.iter(&visitors).unwrap().map(sum).collect();
                assert_eq!(sums.unwrap().len(), 300);
            }
        });
        scope.spawn(|| {
            for n in (0..).take_while(|_| goes_on()) {
                let backup = store.backup_to(directory.path().join(format!("{n}"))).unwrap();
                assert_eq!((backup.sessions, backup.damaged), (300, 0));
            }
        });
        scope.spawn(|| {
            while goes_on() {
                match Viewer::open(&path) {
                    Ok(viewer) => {
                        assert_eq!(
                            viewer.sessions("visitors").unwrap().map(Result::unwrap).count(),
                            300
                        );
                    }
                    Err(sessile::Error::Busy { .. }) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
        });
        for _ in 0..40 {
            store.compact().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    let total = |store: &Store| {
        let txn = store.begin().unwrap();
        let n = |session: Result<sessile::Session, _>| session.unwrap().get::<u32>("n").unwrap();
        txn.iter(&visitors_of(store)).unwrap().filter_map(n).sum::<u32>()
    };
    assert_eq!(total(&store), written);
    assert!(written > 40, "{written} commits are not much meanwhile");
    drop(visitors);
    store.close().unwrap();
    assert_eq!(total(&options().open(&path).unwrap()), written);
}

fn visitors_of(store: &Store) -> sessile::Container {
    store.container("visitors").unwrap()
}
