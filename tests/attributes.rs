//! Typed attributes, values that are no longer what is expected, and values that are read once.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::thread;

use proptest::prelude::*;
use serde::{Deserialize, Deserializer};
use sessile::{
    Attribute, Container, EndReason, Error, OnMismatch, Options, Policy, Resolution, Rule, Session,
    Store, Transaction, Value,
};

const COUNT: Attribute<u64> = Attribute::new("count");
const NAME: Attribute<String> = Attribute::new("name");
const LIST: Attribute<Vec<u8>> = Attribute::new("list");
const SET: Attribute<BTreeSet<String>> = Attribute::new("set");

fn store(policy: Policy) -> (Store, Container) {
    let store = Options::new().sweep_every(None).memory().unwrap();
    let container = store.container_with("visitors", policy).unwrap();
    store.transact(|txn| txn.create(&container, "ada").map(drop)).unwrap();
    (store, container)
}

/// A transaction and its session.
fn open(store: &Store, container: &Container) -> (Transaction, Session) {
    let txn = store.begin().unwrap();
    let session = txn.get(container, "ada").unwrap().unwrap();
    (txn, session)
}

fn conflicts(done: Result<sessile::Report, Error>) -> bool {
    done.is_err_and(|error| error.is_retryable())
}

#[test]
fn constants_and_text_name_the_same_attribute() {
    let (store, container) = store(Policy::new());
    let (_txn, session) = open(&store, &container);
    let owned = "count".to_owned();
    let shared: Arc<str> = "count".into();
    let (lent, ada) = (&"count", "Ada".to_owned());

    session.insert(COUNT, 1).unwrap();
    assert_eq!(session.get::<u64>("count").unwrap(), Some(1));
    session.insert(&COUNT, 2).unwrap();
    assert_eq!(session.get::<u64>(&owned).unwrap(), Some(2));
    session.insert(&owned, 3).unwrap();
    assert_eq!(session.get(&COUNT).unwrap(), Some(3));
    session.add(COUNT, 1).unwrap();
    session.max(COUNT, 7).unwrap();
    session.min(COUNT, 6).unwrap();
    session.set_if_absent(COUNT, 9).unwrap();
    session.update(COUNT, |count| *count *= 10).unwrap();
    session.require(COUNT).unwrap();
    assert_eq!(session.get::<u64>(&shared).unwrap(), Some(60));
    assert_eq!(session.value(COUNT).unwrap(), session.value(lent).unwrap());
    assert!(session.contains(COUNT).unwrap());
    assert_eq!(session.entry(COUNT).or_insert(5).unwrap(), 60);
    assert_eq!(session.take(COUNT).unwrap(), Some(60));
    assert_eq!(session.entry(&COUNT).or_insert_with(|| 5).unwrap(), 5);
    session.remove(COUNT).unwrap();
    assert!(!session.contains(&COUNT).unwrap());

    session.insert(NAME, "Ada").unwrap();
    session.insert(NAME, &ada).unwrap();
    session.insert(&NAME, &ada).unwrap();
    session.union(LIST, 2).unwrap();
    session.append(&LIST, 1, 9).unwrap();
    session.add(&COUNT, -1).unwrap();
    session.remove(COUNT).unwrap();
    session.union(SET, "b").unwrap();
    session.union(SET, "a".to_owned()).unwrap();
    session.union(&SET, &ada).unwrap();
    assert_eq!(session.get(SET).unwrap().map(|set| set.len()), Some(3));
    session.remove(SET).unwrap();
    assert_eq!(session.get(LIST).unwrap(), Some(vec![2, 1]));
    assert_eq!(session.keys().unwrap(), ["list", "name"]);
    assert_eq!(NAME.clone().name(), "name");
    assert_eq!(format!("{NAME:?}"), "Attribute(\"name\")");
}

/// Whatever the policy says of it, and only for writes that it comes with.
#[test]
fn the_rule_of_an_attribute_goes_before_that_of_the_policy() {
    const SUM: Attribute<i64> = Attribute::new("n").rule(Rule::Sum);
    const MINE: Attribute<i64> = Attribute::new("n").rule(Rule::resolver("zero"));
    let store =
        Options::new().resolver("zero", |_| Resolution::New(Value::of(&0))).memory().unwrap();
    let policy = Policy::new().rule("n", Rule::Reject);
    let container = store.container_with("visitors", policy).unwrap();
    let race = |first: &dyn Fn(&Session), second: &dyn Fn(&Session)| {
        let start = |session: Session| session.insert("n", 10);
        store.transact(|txn| start(txn.get_or_create(&container, "ada")?)).unwrap();
        let ((one, ada), (two, same)) = (open(&store, &container), open(&store, &container));
        first(&ada);
        second(&same);
        one.commit().unwrap();
        two.commit().ok()?;
        open(&store, &container).1.get(SUM).unwrap()
    };
    let plus = |n| move |session: &Session| session.update(SUM, |count| *count += n).unwrap();
    let plain = |session: &Session| session.insert("n", 1).unwrap();
    assert_eq!(race(&plus(1), &plus(2)), Some(13));
    assert_eq!(race(&plain, &plus(2)), Some(3));
    assert_eq!(race(&plus(2), &plain), None);
    assert_eq!(race(&plus(2), &|session| session.insert(MINE, 5).unwrap()), Some(0));
    // Once it was named the rule holds for what this transaction writes there.
    assert_eq!(race(&plus(1), &|session| (plus(2)(session), plain(session)).1), Some(2));
}

/// What a transaction wrote, and at which of it somebody else was too.
#[test]
fn where_two_met_is_told() {
    let (store, container) = store(Policy::new());
    let ((one, ada), (two, same)) = (open(&store, &container), open(&store, &container));
    ada.add(COUNT, 1).unwrap();
    ada.insert("theirs", 1).unwrap();
    same.add(COUNT, 1).unwrap();
    same.insert(NAME, "Ada").unwrap();
    one.commit().unwrap();
    let merged = two.commit().unwrap().merged;
    assert_eq!(merged[0].attributes, ["count", "name"]);
    assert_eq!(merged[0].contended, ["count"]);
    let heat = store.heat();
    assert_eq!(heat.len(), 1);
    assert_eq!((heat[0].attribute.as_deref(), heat[0].merges), (Some("count"), 1));
}

#[test]
fn a_value_that_is_no_longer_expected_is_an_error() {
    let (store, container) = store(Policy::new());
    let (txn, session) = open(&store, &container);
    session.insert("count", "many").unwrap();
    let told = |error: Error| match &error {
        Error::Type { attribute, found, expected } => {
            assert_eq!((&**attribute, *found, *expected), ("count", "a string", "u64"));
        }
        other => panic!("{other:?}"),
    };
    told(session.get(COUNT).unwrap_err());
    told(session.take(COUNT).unwrap_err());
    told(session.update(COUNT, |_| ()).unwrap_err());
    told(session.entry(COUNT).or_insert(1).unwrap_err());
    txn.commit().unwrap();
    assert_eq!(open(&store, &container).1.get::<String>("count").unwrap().unwrap(), "many");
}

#[test]
fn a_value_that_is_no_longer_expected_is_dropped() {
    let (store, container) = store(Policy::new().on_mismatch(OnMismatch::Drop));
    let spoil = || {
        let spoil = |session: Session| session.insert("count", "many");
        store.transact(|txn| spoil(txn.get_or_create(&container, "ada")?)).unwrap();
    };
    let calls: [fn(&Session) -> Option<u64>; 4] = [
        |session| session.get(COUNT).unwrap(),
        |session| session.take(COUNT).unwrap(),
        |session| Some(session.update(COUNT, |count| *count += 1).map(|()| 1).unwrap()),
        |session| Some(session.entry(COUNT).or_insert(1).unwrap()),
    ];
    for (call, left) in calls.iter().zip([None, None, Some(1), Some(1)]) {
        spoil();
        let (txn, session) = open(&store, &container);
        assert_eq!(call(&session), left);
        txn.commit().unwrap();
        assert_eq!(open(&store, &container).1.get(COUNT).unwrap(), left);

        // Dropping is a change of the transaction: what is dropped with it stays.
        spoil();
        let (txn, session) = open(&store, &container);
        call(&session);
        drop((txn, session));
        assert_eq!(open(&store, &container).1.get::<String>("count").unwrap().unwrap(), "many");

        // Somebody writes something better meanwhile: it is not dropped.
        let (txn, session) = open(&store, &container);
        call(&session);
        store.transact(|txn| txn.get_or_create(&container, "ada")?.insert(COUNT, 7)).unwrap();
        assert!(conflicts(txn.commit()));
        assert_eq!(open(&store, &container).1.get(COUNT).unwrap(), Some(7));
    }
}

#[test]
fn a_value_that_is_no_longer_expected_ends_the_session() {
    let ended = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&ended);
    let store = Options::new()
        .on_end("tell", move |_, session, reason| {
            told.lock().unwrap().push((session.id(), session.iter().count(), reason));
            Ok(())
        })
        .memory()
        .unwrap();
    let policy = Policy::new().on_mismatch(OnMismatch::NewSession).on_end("tell");
    let container = store.container_with("visitors", policy).unwrap();
    let spoiled = || {
        let create = |session: Session| session.insert("count", "many").map(|()| session.id());
        store.transact(|txn| txn.remove(&container, "ada")).unwrap();
        let id = store.transact(|txn| create(txn.create(&container, "ada")?)).unwrap().value;
        store.settle();
        ended.lock().unwrap().clear();
        id
    };
    let visit = |txn: &Transaction| {
        let session = txn.get_or_create(&container, "ada")?;
        session.insert("seen", true)?;
        session.update(COUNT, |count| *count += 1)?;
        Ok(session.id())
    };

    // The closure runs again, in a new session; nothing of the first attempt is left.
    for run_async in [false, true] {
        let id = spoiled();
        let report = match run_async {
            false => store.transact(visit).unwrap(),
            true => tokio::runtime::Runtime::new()
                .unwrap()
                .block_on(store.transact_async(visit))
                .unwrap(),
        };
        assert_ne!(report.value, id);
        assert_eq!(report.attempts, 2);
        assert_eq!(open(&store, &container).1.get(COUNT).unwrap(), Some(1));
        store.settle();
        assert_eq!(*ended.lock().unwrap(), [(id, 1, EndReason::Invalidated)]);
    }

    // Even if it has been given another key before that was seen.
    let id = spoiled();
    let report = store.transact(|txn| {
        let session = txn.get_or_create(&container, "ada")?.rotate("lovelace")?;
        session.update(COUNT, |count| *count += 1)?;
        session.rotate("ada")?.insert("seen", true)
    });
    assert_eq!(report.unwrap().attempts, 2);
    assert_ne!(open(&store, &container).1.id(), id);
    store.settle();
    assert_eq!(ended.lock().unwrap()[0], (id, 1, EndReason::Invalidated));

    // In a transaction of one's own the end is one of its changes.
    let id = spoiled();
    let (txn, session) = open(&store, &container);
    assert!(matches!(session.get(COUNT), Err(Error::Ended)));
    assert!(!session.is_valid());
    drop(txn);
    let (txn, session) = open(&store, &container);
    assert_eq!(session.id(), id);
    assert!(matches!(session.take(COUNT), Err(Error::Ended)));
    let session = txn.get_or_create(&container, "ada").unwrap();
    session.insert(COUNT, 5).unwrap();
    assert_eq!(txn.commit().unwrap().ended[0].id, id);
    assert_eq!(open(&store, &container).1.get(COUNT).unwrap(), Some(5));

    // Somebody writes something better meanwhile: there is nothing to end.
    let id = spoiled();
    let (txn, session) = open(&store, &container);
    assert!(matches!(session.get(COUNT), Err(Error::Ended)));
    store.transact(|txn| txn.get_or_create(&container, "ada")?.insert(COUNT, 7)).unwrap();
    assert!(conflicts(txn.commit()));
    assert_eq!(open(&store, &container).1.id(), id);

    // While a closure runs, too.
    let id = spoiled();
    let mut first = true;
    let report = store.transact(|txn| {
        let session = txn.get_or_create(&container, "ada")?;
        if std::mem::take(&mut first) {
            store.transact(|txn| txn.get_or_create(&container, "ada")?.insert(COUNT, 7))?;
        }
        session.update(COUNT, |count| *count += 1)?;
        Ok(session.id())
    });
    assert_eq!(report.unwrap().value, id);
    assert_eq!(open(&store, &container).1.get(COUNT).unwrap(), Some(8));

    // What ends for another reason does not run again, nor what finds its own mistake every time.
    let mut runs = 0;
    let own = store.transact(|txn| {
        runs += 1;
        txn.remove(&container, "ada")?;
        let session = txn.create(&container, "ada")?;
        session.insert("count", "many")?;
        session.get(COUNT)
    });
    assert!(matches!(own, Err(Error::Ended)));
    assert_eq!(runs, 1);
    assert_eq!(open(&store, &container).1.get(COUNT).unwrap(), Some(8));
}

/// Under whatever rule, and whoever resolves: one of two takes it, and the other finds it gone.
#[test]
fn one_of_two_takes_it() {
    let policies = [
        Policy::new(),
        Policy::new().default_rule(Rule::LastWriter),
        Policy::new().default_rule(Rule::FirstWriter),
        Policy::new().default_rule(Rule::Union),
        Policy::new().default_rule(Rule::Reject),
        Policy::new().resolver("zope_last_modified"),
    ];
    for policy in policies {
        let (store, container) = store(policy);
        let write = |txn: &Transaction| {
            let ada = txn.get_or_create(&container, "ada")?;
            ada.insert(NAME, "for you")?;
            ada.flash("saved")
        };
        let takes: [fn(&Session) -> Option<String>; 2] =
            [|session| session.take(NAME).unwrap(), |session| session.flashes().unwrap().pop()];
        for take in takes {
            store.transact(write).unwrap();
            let ((one, ada), (two, same)) = (open(&store, &container), open(&store, &container));
            assert!(take(&ada).is_some() && take(&same).is_some());
            one.commit().unwrap();
            assert!(conflicts(two.commit()));
            let (txn, ada) = open(&store, &container);
            assert_eq!(take(&ada), None);
            // Where there is nothing to take nothing is written, and nobody conflicts.
            assert_eq!(txn.commit().unwrap().revision, store.begin().unwrap().revision());
        }
    }
}

/// What is left while others read is shown the next time; what was left by the reader is read too.
#[test]
fn a_flash_that_is_left_meanwhile_is_not_lost() {
    let (store, container) = store(Policy::new());
    let flash = |text| store.transact(|txn| txn.get_or_create(&container, "ada")?.flash(text));
    flash("one").unwrap();
    let (txn, session) = open(&store, &container);
    assert_eq!(session.flashes::<String>().unwrap(), ["one"]);
    flash("two").unwrap();
    assert!(conflicts(txn.commit()));

    let ((txn, session), (other, same)) = (open(&store, &container), open(&store, &container));
    session.flash("three").unwrap();
    same.flash("four").unwrap();
    assert_eq!(session.flashes::<String>().unwrap(), ["one", "two", "three"]);
    txn.commit().unwrap();
    other.commit().unwrap();
    assert_eq!(open(&store, &container).1.flashes::<String>().unwrap(), ["four"]);

    (0..200).for_each(|_| flash("more").map(drop).unwrap());
    assert_eq!(open(&store, &container).1.flashes::<String>().unwrap().len(), 100);
    // Of another type: they stay.
    let (_txn, session) = open(&store, &container);
    assert!(matches!(session.flashes::<u64>(), Err(Error::Type { .. })));
    assert_eq!(session.flashes::<String>().unwrap().len(), 100);
}

#[derive(Clone, Debug)]
enum Step {
    Begin,
    Flash,
    Flashes,
    Commit,
    Abort,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => Just(Step::Begin),
        3 => Just(Step::Flash),
        2 => Just(Step::Flashes),
        2 => Just(Step::Commit),
        1 => Just(Step::Abort),
    ]
}

/// A client with what it has left and been shown in its transaction.
struct Client {
    txn: Transaction,
    session: Session,
    left: Vec<usize>,
    shown: Vec<usize>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever interleaving of clients, and whatever rule: what a committed transaction left is shown by
    /// exactly one committed transaction, or still waits.
    #[test]
    fn every_flash_is_shown_once(
        steps in proptest::collection::vec((0..3usize, step()), 0..60),
        rule in proptest::sample::select(vec![
            Rule::Checked, Rule::LastWriter, Rule::FirstWriter, Rule::Append(5), Rule::Reject,
        ]),
    ) {
        let (store, container) = store(Policy::new().default_rule(rule));
        let mut clients = [None, None, None];
        let (mut left, mut shown) = (BTreeSet::new(), Vec::new());
        for (number, (who, step)) in steps.into_iter().enumerate() {
            let client = &mut clients[who];
            match (step, client.as_mut()) {
                (Step::Begin, _) => {
                    let (txn, session) = open(&store, &container);
                    *client = Some(Client { txn, session, left: Vec::new(), shown: Vec::new() });
                }
                (Step::Abort, _) => *client = None,
                (Step::Flash, Some(client)) => {
                    client.session.flash(number).unwrap();
                    client.left.push(number);
                }
                (Step::Flashes, Some(client)) => {
                    client.shown.extend(client.session.flashes::<usize>().unwrap());
                }
                (Step::Commit, Some(_)) => {
                    let Client { txn, left: its, shown: its_shown, .. } = client.take().unwrap();
                    match txn.commit() {
                        Ok(_) => {
                            left.extend(its);
                            shown.extend(its_shown);
                        }
                        Err(error) => prop_assert!(error.is_retryable(), "{}", error),
                    }
                }
                (_, None) => {}
            }
        }
        let (_txn, session) = open(&store, &container);
        shown.extend(session.flashes::<usize>().unwrap());
        prop_assert_eq!(shown.len(), left.len(), "{:?} {:?}", shown, left);
        prop_assert_eq!(shown.into_iter().collect::<BTreeSet<_>>(), left);
    }
}

#[test]
fn every_flash_is_shown_once_whoever_asks_at_the_same_time() {
    const EACH: usize = 50; // fewer than are kept, all together
    let (store, container) = store(Policy::new());
    let ask = || loop {
        match store.transact(|txn| txn.get_or_create(&container, "ada")?.flashes::<usize>()) {
            Ok(report) => return report.value,
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    };
    let mut shown: Vec<usize> = thread::scope(|scope| {
        let leaving = (0..2).map(|who| {
            let (store, container) = (&store, &container);
            let flash =
                move |n| store.transact(|txn| txn.get_or_create(container, "ada")?.flash(n));
            scope.spawn(move || {
                for n in 0..EACH {
                    flash(who * EACH + n).unwrap();
                }
                Vec::new()
            })
        });
        let leaving: Vec<_> = leaving.collect();
        let asking = (0..2).map(|_| scope.spawn(|| (0..EACH).flat_map(|_| ask()).collect()));
        let threads: Vec<_> = leaving.into_iter().chain(asking.collect::<Vec<_>>()).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<usize>>()
    });
    shown.extend(ask());
    shown.sort_unstable();
    assert_eq!(shown, (0..2 * EACH).collect::<Vec<_>>());
}

/// A number whose decoding does something else first, once: what another thread with the same handle
/// might be doing at that moment. The application's code runs under no lock.
struct Meddling(u64);

thread_local! {
    static MEDDLE: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
}

impl<'de> Deserialize<'de> for Meddling {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if let Some(meddle) = MEDDLE.take() {
            meddle();
        }
        u64::deserialize(deserializer).map(Meddling)
    }
}

#[test]
fn what_changes_while_it_is_decoded_is_seen() {
    let take = |policy: Policy, was: Value, meddle: fn(&Session)| {
        let (store, container) = store(policy);
        let (_txn, session) = open(&store, &container);
        session.insert_value("n", was).unwrap();
        let same = session.clone();
        MEDDLE.set(Some(Box::new(move || meddle(&same))));
        let taken = session.take::<Meddling>("n").map(|taken| taken.map(|n| n.0));
        (taken, session.is_valid() && session.contains("n").unwrap())
    };
    let [good, bad] = [Value::of(&1).unwrap(), Value::of("one").unwrap()];
    let write = |session: &Session| session.insert("n", 2).unwrap();
    let remove = |session: &Session| session.remove("n").unwrap();
    assert!(matches!(take(Policy::new(), good.clone(), |_| ()), (Ok(Some(1)), false)));
    assert!(matches!(take(Policy::new(), good.clone(), write), (Ok(Some(2)), false)));
    assert!(matches!(take(Policy::new(), good, remove), (Ok(None), false)));
    let drop = Policy::new().on_mismatch(OnMismatch::Drop);
    assert!(matches!(take(drop.clone(), bad.clone(), |_| ()), (Ok(None), false)));
    assert!(matches!(take(drop, bad.clone(), write), (Ok(Some(2)), false)));
    let end = Policy::new().on_mismatch(OnMismatch::NewSession);
    assert!(matches!(take(end.clone(), bad.clone(), |_| ()), (Err(Error::Ended), false)));
    assert!(matches!(take(end, bad, write), (Ok(Some(2)), false)));
}
