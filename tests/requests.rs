//! What the store does for a request whose handler cannot run again, and whose thread must not wait.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::time::Duration;

use sessile::{
    AttributeMerge, Conflict, ConflictReason, Container, Error, Event, ManualClock, Options,
    Policy, Report, Resolution, Rule, Store, Time, Value,
};
use tokio::runtime::Builder;

fn open(policy: Policy) -> (Store, Container, ManualClock) {
    let clock = ManualClock::new(Time::from_secs(1_000_000_800));
    let decline = |_: &AttributeMerge<'_>| Resolution::<Option<Value>>::Decline;
    let options =
        Options::new().clock(clock.clone()).sweep_every(None).resolver("decline", decline);
    let store = options.memory().unwrap();
    let visitors = store.container_with("visitors", policy.timeout_mins(20)).unwrap();
    store.transact(|txn| txn.create(&visitors, "ada")?.insert("page", 1)).unwrap();
    (store, visitors, clock)
}

/// Two requests read and write one attribute; the second to commit is to win.
fn race(policy: Policy) -> (Store, Container, Result<Report, Error>) {
    let (store, visitors, _) = open(policy);
    let txn = store.begin().unwrap();
    txn.win_conflicts().unwrap();
    let session = txn.get(&visitors, "ada").unwrap().unwrap();
    session.update("page", |page: &mut u32| *page += 1).unwrap();
    let other = |page: &mut u32| *page += 10;
    store.transact(|txn| txn.get_or_create(&visitors, "ada")?.update("page", other)).unwrap();
    let done = txn.commit();
    (store, visitors, done)
}

fn page(store: &Store, visitors: &Container) -> Option<u32> {
    let txn = store.begin().unwrap();
    txn.peek(visitors, "ada").unwrap().unwrap().get("page").unwrap()
}

#[test]
fn the_later_commit_wins_where_nothing_else_decides() {
    for (rule, left, overruled) in [
        (Rule::Checked, 2, true),
        (Rule::resolver("decline"), 2, true),
        (Rule::LastWriter, 2, false),
        (Rule::FirstWriter, 11, false),
        (Rule::Sum, 12, false),
        (Rule::Max, 11, false),
    ] {
        let (store, visitors, done) = race(Policy::new().default_rule(rule.clone()));
        let merged = &done.unwrap().merged[0];
        assert_eq!(page(&store, &visitors), Some(left), "{rule:?}");
        assert_eq!(merged.overruled.is_empty(), !overruled, "{rule:?}");
        assert_eq!(store.stats().overruled, u64::from(overruled), "{rule:?}");
    }
    let (store, visitors, done) = race(Policy::new().default_rule(Rule::Reject));
    let refused = matches!(done, Err(Error::Conflict(Conflict { reason: ConflictReason::Attribute(name), .. })) if name == "page");
    assert!(refused);
    assert_eq!(page(&store, &visitors), Some(11));
}

#[test]
fn who_wins_is_told() {
    let (store, visitors, _) = open(Policy::new());
    let events = store.events();
    let txn = store.begin().unwrap();
    txn.win_conflicts().unwrap();
    let session = txn.get(&visitors, "ada").unwrap().unwrap();
    session.clear().unwrap();
    session.update("page", |page: &mut u32| *page += 1).unwrap();
    session.insert("theme", "dark").unwrap();
    store.transact(|txn| txn.get_or_create(&visitors, "ada")?.insert("theme", "light")).unwrap();
    txn.commit().unwrap();
    assert_eq!(events.try_iter().count(), 0, "blind writes take turns");

    let txn = store.begin().unwrap();
    txn.win_conflicts().unwrap();
    let session = txn.get(&visitors, "ada").unwrap().unwrap();
    assert_eq!(session.keys().unwrap(), ["page", "theme"]);
    session.clear().unwrap();
    store.transact(|txn| txn.get_or_create(&visitors, "ada")?.insert("theme", "blue")).unwrap();
    txn.commit().unwrap();
    let told = events.try_iter().find_map(|event| match event {
        Event::Overruled { container, session, attributes } => {
            Some((container, session, attributes))
        }
        _ => None,
    });
    let (container, session, attributes) = told.unwrap();
    assert_eq!((&*container, &*attributes), ("visitors", &["theme".to_owned()][..]));
    assert_eq!(session, sessile::Key::from("ada").fingerprint());
}

/// What is promised to happen once happens once, and what has ended stays ended.
#[test]
fn some_conflicts_nobody_wins() {
    type Work = fn(&sessile::Session) -> Result<(), Error>;
    let take: Work = |session| session.take::<u32>("page").map(drop);
    let require: Work = |session| session.require("page");
    let write: Work = |session| session.insert("page", 5);
    for (mine, theirs) in [(take, take), (require, write)] {
        let (store, visitors, _) = open(Policy::new());
        let txn = store.begin().unwrap();
        txn.win_conflicts().unwrap();
        mine(&txn.get(&visitors, "ada").unwrap().unwrap()).unwrap();
        store.transact(|txn| theirs(&txn.get_or_create(&visitors, "ada")?)).unwrap();
        assert!(matches!(txn.commit(), Err(Error::Conflict(_))));
    }
    let (store, visitors, _) = open(Policy::new());
    let txn = store.begin().unwrap();
    txn.win_conflicts().unwrap();
    write(&txn.get(&visitors, "ada").unwrap().unwrap()).unwrap();
    store.transact(|txn| txn.remove(&visitors, "ada")).unwrap();
    let done = txn.commit();
    assert!(
        matches!(done, Err(Error::Conflict(conflict)) if conflict.reason == ConflictReason::Ended)
    );
    assert!(store.begin().unwrap().peek(&visitors, "ada").unwrap().is_none());
}

#[test]
fn a_snapshot_that_is_let_go_of_keeps_nothing_and_never_ages() {
    let (store, visitors, clock) = open(Policy::new());
    let txn = store.begin().unwrap();
    let session = txn.get(&visitors, "ada").unwrap().unwrap();
    txn.release_snapshot().unwrap();
    txn.release_snapshot().unwrap();
    assert_eq!(store.stats().snapshots, 0);
    for n in 0..100 {
        store.transact(|txn| txn.get_or_create(&visitors, "ada")?.insert("n", n)).unwrap();
    }
    store.transact(|txn| txn.create(&visitors, "eve")?.insert("page", 3)).unwrap();
    assert!(store.stats().versions < 10, "nothing is kept for it");
    clock.elapse(Duration::from_secs(180));

    // What was looked up stays as it was seen, what is looked up now is seen as it is.
    assert_eq!(session.get::<u32>("n").unwrap(), None);
    let eve = txn.get(&visitors, "eve").unwrap().unwrap();
    assert_eq!(eve.get::<u32>("page").unwrap(), Some(3));
    assert!(matches!(txn.len(&visitors), Err(Error::SnapshotTooOld { .. })));
    assert!(matches!(txn.keys(&visitors), Err(Error::SnapshotTooOld { .. })));
    let (_, token) = txn.create_with_token(&visitors).unwrap();
    session.insert("page", 2).unwrap();
    eve.insert("page", 4).unwrap();
    txn.commit().unwrap();
    assert_eq!(page(&store, &visitors), Some(2));
    assert!(store.begin().unwrap().contains(&visitors, &token).unwrap());

    // A conflict is found all the same.
    let txn = store.begin().unwrap();
    let session = txn.get(&visitors, "ada").unwrap().unwrap();
    txn.release_snapshot().unwrap();
    session.update("n", |n: &mut u32| *n += 1).unwrap();
    store.transact(|txn| txn.get_or_create(&visitors, "ada")?.insert("n", 0)).unwrap();
    assert!(matches!(txn.commit(), Err(Error::Conflict(_))));
}

#[test]
fn times_of_access_are_no_changes() {
    let (store, visitors, clock) = open(Policy::new());
    clock.advance_secs(60);
    let txn = store.begin().unwrap();
    let session = txn.get(&visitors, "ada").unwrap().unwrap();
    session.get::<u32>("page").unwrap();
    assert!(!txn.has_changes().unwrap());
    session.insert("page", 2).unwrap();
    assert!(txn.has_changes().unwrap());
    let txn = store.begin().unwrap();
    txn.create_with_token(&visitors).unwrap();
    assert!(txn.has_changes().unwrap());
    let txn = store.begin().unwrap();
    txn.end_all_of(&visitors, "nobody").unwrap();
    assert!(txn.has_changes().unwrap());
}

#[test]
fn the_limit_of_tokens_is_judged_at_the_commit() {
    let (store, visitors, _) = open(Policy::new().limit(2));
    let early = store.begin().unwrap();
    early.release_snapshot().unwrap();
    early.create_with_token(&visitors).unwrap();
    store.transact(|txn| txn.create_with_token(&visitors).map(drop)).unwrap();
    assert!(matches!(early.commit(), Err(Error::Limit { .. })));
    let late = store.begin().unwrap();
    assert!(matches!(late.create_with_token(&visitors), Err(Error::Limit { .. })));
}

/// The thread of the executor is never the one that reads.
#[test]
fn what_is_not_in_memory_is_read_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sessions");
    let store = Store::open(&path).unwrap();
    let visitors = store.container_with("visitors", Policy::new()).unwrap();
    store.transact(|txn| txn.create(&visitors, "ada")?.insert("page", 1)).unwrap();
    drop(visitors);
    store.close().unwrap();
    let store = Store::open(&path).unwrap();
    let visitors = store.container("visitors").unwrap();
    Builder::new_current_thread().build().unwrap().block_on(async {
        let txn = store.begin().unwrap();
        let session = txn.get_async(&visitors, "ada").await.unwrap().unwrap();
        assert_eq!(session.get::<u32>("page").unwrap(), Some(1));
        assert!(txn.get_async(&visitors, "eve").await.unwrap().is_none());
        assert!(txn.peek_async(&visitors, "ada").await.unwrap().is_some());

        let here = std::thread::current().id();
        let there = store.spawn(|| Ok(std::thread::current().id())).await.unwrap();
        assert_ne!(here, there);
        let panicked = store.spawn(|| -> Result<(), Error> { panic!("on purpose") }).await;
        assert!(matches!(panicked, Err(Error::Aborted(_))));
        let works = store.spawn(|| Ok(7)).await;
        assert_eq!(works.unwrap(), 7);

        let theirs = visitors.clone();
        let add =
            move |txn: &sessile::Transaction| txn.get_or_create(&theirs, "ada")?.add("page", 1);
        assert_eq!(store.spawn_transact(add).await.unwrap().attempts, 1);
        store.clone().close().unwrap();
        assert!(matches!(store.spawn(|| Ok(7)).await, Err(Error::Closed)));
    });
}

/// What others have changed is found by the commit even if it is not in memory any more.
#[test]
fn what_was_folded_and_forgotten_meanwhile_is_looked_up() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options::new().segment_bytes(64 << 10).memory_max(64 << 10).sweep_every(None);
    let store = options.open(directory.path().join("sessions")).unwrap();
    let visitors = store.container_with("visitors", Policy::new()).unwrap();
    let fill = |from: u32| {
        for n in from..from + 400 {
            let key = n.to_string();
            let note = "x".repeat(400);
            store
                .transact(|txn| txn.get_or_create(&visitors, &key)?.insert("note", &note))
                .unwrap();
        }
        store.fold().unwrap();
    };
    store.transact(|txn| txn.create(&visitors, "ada")?.insert("page", 1)).unwrap();
    store.transact(|txn| txn.create(&visitors, "eve")?.insert("page", 1)).unwrap();
    let began = || {
        let txn = store.begin().unwrap();
        for key in ["ada", "eve"] {
            let session = txn.get(&visitors, key).unwrap().unwrap();
            session.update("page", |page: &mut u32| *page += 1).unwrap();
        }
        txn.release_snapshot().unwrap();
        txn
    };
    let (changed, alone) = (began(), began());
    store.transact(|txn| txn.get_or_create(&visitors, "eve")?.insert("page", 7)).unwrap();
    fill(0);
    fill(1_000);
    assert!(store.stats().resident_sessions < 300, "most of them are not in memory");
    assert!(matches!(changed.commit(), Err(Error::Conflict(_))));
    store.transact(|txn| txn.get_or_create(&visitors, "eve")?.insert("page", 1)).unwrap();
    assert!(matches!(alone.commit(), Err(Error::Conflict(_))));
    let txn = began();
    fill(2_000);
    txn.commit().unwrap();
    let page = |key: &str| {
        let txn = store.begin().unwrap();
        txn.peek(&visitors, key).unwrap().unwrap().get::<u32>("page").unwrap()
    };
    assert_eq!((page("ada"), page("eve")), (Some(2), Some(2)));
}
