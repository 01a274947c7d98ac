//! Corners: what careful reading found, and what must stay found.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::io::{self, BufReader, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sessile::{
    ConflictReason, Container, Error, Event, ExportOptions, ImportOptions, Key, ManualClock,
    Options, Policy, Resolution, Rule, Session, Store, Time, Transaction,
};

fn manual() -> (ManualClock, Options) {
    let clock = ManualClock::new(Time::from_secs(1_000_000_800));
    (clock.clone(), Options::new().clock(clock).sweep_every(None))
}

/// A store with one session, `ada`, whose attribute `x` is 1.
fn with_ada(options: Options, policy: Policy) -> (Store, Container) {
    let store = options.memory().unwrap();
    let shop = store.container_with("shop", policy).unwrap();
    store.transact(|txn| txn.create(&shop, "ada")?.insert("x", 1)).unwrap();
    (store, shop)
}

fn insert(store: &Store, shop: &Container, name: &str, value: i64) {
    store.transact(|txn| txn.get(shop, "ada")?.unwrap().insert(name, value)).unwrap();
}

fn x(store: &Store, shop: &Container) -> Option<i64> {
    let txn = store.begin().unwrap();
    txn.peek(shop, "ada").unwrap().unwrap().get("x").unwrap()
}

/// After a clear there is nothing to see but one's own doing, so looking at it is no read.
#[test]
fn listing_what_a_clear_has_left_is_no_read() {
    let (store, shop) = with_ada(manual().1, Policy::new());
    let check = |work: &dyn Fn(&Transaction)| {
        let txn = store.begin().unwrap();
        work(&txn);
        insert(&store, &shop, "x", 2);
        txn.commit().unwrap();
    };
    check(&|txn| {
        let ada = txn.get(&shop, "ada").unwrap().unwrap();
        ada.clear().unwrap();
        ada.insert("a", 1).unwrap();
        assert_eq!(ada.keys().unwrap(), ["a"]);
        ada.clear().unwrap();
    });
    check(&|txn| {
        let ada = txn.get(&shop, "ada").unwrap().unwrap();
        let before = txn.savepoint().unwrap();
        ada.clear().unwrap();
        assert!(ada.is_empty().unwrap());
        txn.rollback(before).unwrap();
        ada.insert("x", 9).unwrap();
    });
}

/// What a clear removes and an insert sets again is one write, and its rule is asked about it once.
#[test]
fn a_clear_and_an_insert_are_one_write_to_a_rule() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let proposed = Arc::clone(&asked);
    let options = manual().1.resolver("mine", move |merge| {
        proposed.lock().unwrap().push(merge.proposed.and_then(|value| value.to::<i64>()));
        Resolution::Proposed
    });
    let (store, shop) = with_ada(options, Policy::new());
    for (rule, expected) in [(Rule::Sum, 11 + 5), (Rule::Max, 11), (Rule::resolver("mine"), 6)] {
        store.container_with("shop", Policy::new().rule("x", rule)).unwrap();
        insert(&store, &shop, "x", 1);
        let txn = store.begin().unwrap();
        let ada = txn.get(&shop, "ada").unwrap().unwrap();
        let seen: i64 = ada.get("x").unwrap().unwrap();
        ada.clear().unwrap();
        ada.insert("x", seen + 5).unwrap();
        insert(&store, &shop, "x", 11);
        txn.commit().unwrap();
        assert_eq!(x(&store, &shop), Some(expected));
    }
    assert_eq!(*asked.lock().unwrap(), [Some(6)]);
    // A read before the clear still makes it a read-modify-write.
    store.container_with("shop", Policy::new()).unwrap();
    let txn = store.begin().unwrap();
    let ada = txn.get(&shop, "ada").unwrap().unwrap();
    ada.get::<i64>("x").unwrap();
    ada.clear().unwrap();
    ada.insert("x", 0).unwrap();
    insert(&store, &shop, "x", 11);
    let Err(Error::Conflict(conflict)) = txn.commit() else { panic!("no conflict") };
    assert_eq!(conflict.reason, ConflictReason::Attribute("x".to_owned()));
}

/// A merging write that makes no difference is none: it makes nobody else conflict.
#[test]
fn a_merging_write_without_effect_makes_nobody_conflict() {
    let (store, shop) = with_ada(manual().1, Policy::new());
    let txn = store.begin().unwrap();
    txn.get(&shop, "ada").unwrap().unwrap().update("x", |x: &mut i64| *x += 1).unwrap();
    let idle = store.transact(|txn| {
        let ada = txn.get(&shop, "ada")?.unwrap();
        ada.set_if_absent("x", 5)?;
        ada.max("x", 0)
    });
    idle.unwrap();
    txn.commit().unwrap();
    assert_eq!(x(&store, &shop), Some(2));
}

/// A timeout that is shortened in the transaction that relies on it.
#[test]
fn a_shorter_timeout_holds_within_its_own_transaction() {
    let (clock, options) = manual();
    let store = options.memory().unwrap();
    let long = Policy::new().timeout_mins(60).limit(2);
    let short = long.clone().timeout_mins(1);
    let shop = store.container_with("shop", long).unwrap();
    let fill = store.transact(|txn| {
        txn.create(&shop, "ada")?;
        txn.create(&shop, "bob").map(|_| ())
    });
    fill.unwrap();
    clock.advance_secs(600);
    // Under the shorter timeout both are dead: there is room for another.
    let change = store.transact(|txn| {
        txn.set_policy(&shop, short.clone())?;
        assert_eq!(txn.len(&shop)?, 0);
        txn.create(&shop, "cy").map(|_| ())
    });
    assert_eq!(change.unwrap().attempts, 1);
    assert_eq!(store.begin().unwrap().len(&shop).unwrap(), 1);
}

/// A session that is written while its timeout is shortened beyond its life: it was alive when it
/// was written, so the commit stands, and then its time is over.
#[test]
fn a_write_before_the_timeout_is_shortened_stands() {
    let (clock, options) = manual();
    let (store, shop) = with_ada(options, Policy::new().timeout_mins(60));
    clock.advance_secs(600);
    let change = store.transact(|txn| {
        txn.peek(&shop, "ada")?.unwrap().insert("x", 2)?;
        txn.set_policy(&shop, Policy::new().timeout_mins(1))
    });
    assert_eq!(change.unwrap().attempts, 1);
    assert!(store.begin().unwrap().peek(&shop, "ada").unwrap().is_none());
    assert_eq!(store.sweep().unwrap().ended, 1);
}

/// More sessions than one page of a walk holds, by the index and by the records.
#[test]
fn walks_go_on_after_their_first_page() {
    const SESSIONS: u64 = 600;
    let (clock, options) = manual();
    let store = options.memory().unwrap();
    let policy = Policy::new().timeout_mins(10);
    let shop = store.container_with("shop", policy.clone()).unwrap();
    let fill = store.transact(|txn| {
        (0..SESSIONS).try_for_each(|n| txn.create(&shop, n.to_string()).map(|_| ()))
    });
    fill.unwrap();
    let count = || {
        let txn = store.begin().unwrap();
        let keys: Result<Vec<Key>, Error> = txn.keys(&shop).unwrap().collect();
        (txn.len(&shop).unwrap(), keys.unwrap().len())
    };
    assert_eq!(count(), (SESSIONS, 600));
    clock.advance_secs(300);
    store.container_with("shop", policy.clone().timeout_mins(1)).unwrap();
    assert_eq!(count(), (0, 0));
    store.container_with("shop", policy.clone()).unwrap();
    // The longer timeout has ended every one of them.
    assert_eq!((store.stats().ended, count()), (SESSIONS, (0, 0)));

    store
        .transact(|txn| {
            (0..SESSIONS).try_for_each(|n| txn.create(&shop, n.to_string()).map(|_| ()))
        })
        .unwrap();
    clock.advance_secs(1_000);
    assert_eq!(count(), (0, 0));
}

/// A key of 32 characters is no hash: its first ones are not for show.
#[test]
fn a_fingerprint_shows_nothing_of_a_key_that_is_text() {
    let key = Key::from("550e8400e29b41d4a716446655440000");
    assert!(!format!("{key:?}").contains("35353065"), "{key:?}");
    let token = sessile::Token::random().unwrap();
    let head: String = token.key().as_bytes()[..4].iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(token.key().fingerprint(), head);
}

#[test]
fn any_bound_of_the_queue_is_taken() {
    for commits in [0, 1, usize::MAX] {
        let store = Options::new().queue_max(commits).memory().unwrap();
        store.container_with("shop", Policy::new()).unwrap();
    }
}

/// One record that cannot be read stops neither the sweep nor its container.
#[test]
fn a_damaged_record_keeps_no_other_session_alive() {
    const SESSIONS: redb::TableDefinition<'_, (u32, &[u8]), &[u8]> =
        redb::TableDefinition::new("sessions");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let (clock, _) = manual();
    let open = || Options::new().clock(clock.clone()).sweep_every(None).open(&path).unwrap();
    let policy = Policy::new().timeout_secs(40).limit(2);
    let store = open();
    for name in ["a", "b"] {
        let container = store.container_with(name, policy.clone().timeout_secs(80)).unwrap();
        let fill = store.transact(|txn| {
            txn.create(&container, "1")?;
            txn.create(&container, "2").map(|_| ())
        });
        fill.unwrap();
    }
    store.close().unwrap();

    let database = redb::Database::open(path.join("sessions.redb")).unwrap();
    let txn = database.begin_write().unwrap();
    {
        let mut sessions = txn.open_table(SESSIONS).unwrap();
        let place = (1, &b"1"[..]);
        let record = redb::ReadableTable::get(&sessions, place).unwrap().unwrap();
        let damaged = [record.value(), b"!"].concat();
        drop(record);
        sessions.insert(place, &*damaged).unwrap();
    }
    txn.commit().unwrap();
    drop(database);

    let store = open();
    let (a, b) = (store.container("a").unwrap(), store.container("b").unwrap());
    let events = store.events();
    assert!(store.begin().unwrap().peek(&a, "1").unwrap().is_none());
    assert_eq!(store.stats().damaged_sessions, 1);
    let event = events.try_recv().unwrap();
    assert!(matches!(event, Event::Damaged { container, .. } if container == "a"));
    // Shortened, so that all records must be walked through.
    store.transact(|txn| txn.set_policy(&a, policy.clone())).unwrap();
    clock.advance_secs(600);
    assert_eq!(store.sweep().unwrap().ended, 3);
    assert_eq!(store.begin().unwrap().len(&b).unwrap(), 0);
    store.container_with("a", policy.timeout_secs(400)).unwrap();
}

/// Panics whatever is done with it.
struct Trap;

impl Serialize for Trap {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("it was to be encoded")
    }
}

impl<'de> Deserialize<'de> for Trap {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        panic!("it was to be decoded")
    }
}

impl Default for Trap {
    fn default() -> Self {
        panic!("it was to be made")
    }
}

impl Read for Trap {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        panic!("it was to be read")
    }
}

impl Write for Trap {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        panic!("it was to be written")
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A number that cannot be let go of.
#[derive(Serialize)]
struct Sticky(i64);

impl Drop for Sticky {
    fn drop(&mut self) {
        panic!("it was to be dropped")
    }
}

/// Users bring code with them: values, closures, readers and writers. Whatever of it panics takes with it
/// what it was called for and nothing else. (Resolvers and listeners: `scripts/conflicts` and
/// `scripts/listeners`; wakers: `storage`.)
#[test]
fn what_panics_takes_nothing_along() {
    type Site = (&'static str, fn(&Store, &Container));
    fn visit(store: &Store, shop: &Container, visit: impl Fn(&Session) -> Result<(), Error>) {
        let visited = store.transact(|txn| {
            let ada = txn.get(shop, "ada")?.unwrap();
            ada.insert("x", 0)?;
            visit(&ada)
        });
        visited.map(|_| ()).unwrap();
    }
    let sites: [Site; 12] = [
        ("encode", |store, shop| visit(store, shop, |ada| ada.insert("trap", Trap))),
        ("append", |store, shop| visit(store, shop, |ada| ada.append("list", Trap, 3))),
        ("decode", |store, shop| visit(store, shop, |ada| ada.get::<Trap>("y").map(|_| ()))),
        ("default", |store, shop| visit(store, shop, |ada| ada.update("none", |_: &mut Trap| ()))),
        ("drop", |store, shop| visit(store, shop, |ada| ada.insert("z", Sticky(1)))),
        ("update", |store, shop| {
            visit(store, shop, |ada| ada.update("y", |_: &mut i64| panic!("a change")));
        }),
        ("entry", |store, shop| {
            visit(store, shop, |ada| {
                ada.entry("none").or_insert_with(|| -> i64 { panic!("a value") }).map(|_| ())
            });
        }),
        ("extend", |store, shop| {
            let pairs = || (0..).map(|n| if n < 2 { ("z", n) } else { panic!("an iterator") });
            visit(store, shop, |ada| ada.extend(pairs()));
        }),
        ("closure", |store, shop| visit(store, shop, |_| panic!("a transaction"))),
        ("open", |store, shop| {
            let txn = store.begin().unwrap();
            txn.get(shop, "ada").unwrap().unwrap().invalidate().unwrap();
            txn.create(shop, "bob").unwrap();
            panic!("between begin and commit");
        }),
        ("export", |store, _| drop(store.export(Trap, &ExportOptions::new()))),
        ("import", |store, _| {
            let mut whole = Vec::new();
            store.export(&mut whole, &ExportOptions::new()).unwrap();
            let cut_off = whole.len() - 10;
            let from = BufReader::with_capacity(16, whole[..cut_off].chain(Trap));
            drop(store.import(from, &ImportOptions::new()));
        }),
    ];
    let directory = tempfile::tempdir().unwrap();
    for options in [None, Some(directory.path().join("store"))] {
        let store = match options {
            None => Options::new().memory(),
            Some(path) => Options::new().segment_bytes(64 << 10).open(path),
        };
        let store = store.unwrap();
        let shop = store.container_with("shop", Policy::new()).unwrap();
        store.transact(|txn| txn.create(&shop, "ada")?.insert("y", 7)).unwrap();
        let mut n = 0;
        for (name, site) in sites.iter().flat_map(|site| [site; 3]) {
            n += 1;
            insert(&store, &shop, "x", n);
            let revision = store.stats().revision;
            let panicked = catch_unwind(AssertUnwindSafe(|| site(&store, &shop)));
            assert!(panicked.is_err(), "nothing panics in {name}");
            assert_eq!(store.stats().revision, revision, "{name} has changed something");
            assert_eq!(store.stats().snapshots, 0, "{name} leaves a snapshot");
            let txn = store.begin().unwrap();
            assert_eq!(txn.len(&shop).unwrap(), 1);
            let ada = txn.peek(&shop, "ada").unwrap().unwrap();
            assert_eq!(ada.get::<i64>("x").unwrap(), Some(n), "after {name}");
            assert_eq!(ada.keys().unwrap(), ["x", "y"]);
        }
        store.close().unwrap();
    }
}
