//! What the features `tracing` and `metrics` show, and what they do not.
//!
//! Both are global to a process, so one test does everything, under a subscriber and a recorder of its
//! own that write down whatever they are told.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

#[allow(dead_code, reason = "it can do more than is asked of it here")]
#[path = "support/browser.rs"]
mod browser;

use std::collections::BTreeMap;
use std::fmt::{Debug, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::Method;
use axum::routing::get;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use sessile::web::{Session, SessionLayer};
use sessile::{
    Container, Error, Key as SessionKey, ManualClock, Options, Policy, Report, Store, Time, Token,
    Transaction,
};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};

use browser::Browser;

/// Stands in keys and values; whoever shows one of them shows it.
const CANARY: &str = "CANARY-7d1f";

/// Spans and events, a line each: level, name, fields.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

/// Appends fields to a line.
struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {}={value:?}", field.name()).unwrap();
    }
}

impl Subscriber for Seen {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "sessile"
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut lines = self.0.lock().unwrap();
        let mut line = format!("{} {}", span.metadata().level(), span.metadata().name());
        span.record(&mut Fields(&mut line));
        lines.push(line);
        Id::from_u64(lines.len() as u64)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        let mut lines = self.0.lock().unwrap();
        values.record(&mut Fields(&mut lines[span.into_u64() as usize - 1]));
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = format!("{} {}", event.metadata().level(), event.metadata().name());
        event.record(&mut Fields(&mut line));
        self.0.lock().unwrap().push(line);
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

impl Seen {
    /// The lines since the last time.
    fn take(&self) -> Vec<String> {
        // A line that is written to later on must keep its place.
        let mut lines = self.0.lock().unwrap();
        let taken = lines.iter().filter(|line| !line.is_empty()).cloned().collect();
        lines.iter_mut().for_each(String::clear);
        taken
    }
}

/// Figures by name and labels: counters, the bits of gauges, and what histograms were told.
#[derive(Clone, Default)]
struct Figures {
    numbers: Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>,
    samples: Arc<Mutex<BTreeMap<String, Arc<Samples>>>>,
    described: Arc<Mutex<Vec<String>>>,
}

#[derive(Default)]
struct Samples(Mutex<Vec<f64>>);

impl metrics::HistogramFn for Samples {
    fn record(&self, value: f64) {
        self.0.lock().unwrap().push(value);
    }
}

fn name(key: &Key) -> String {
    let labels = key.labels().map(|label| format!(" {}={}", label.key(), label.value()));
    key.name().to_owned() + &labels.collect::<String>()
}

impl Figures {
    fn number(&self, key: &Key) -> Arc<AtomicU64> {
        Arc::clone(self.numbers.lock().unwrap().entry(name(key)).or_default())
    }

    fn counted(&self, name: &str) -> u64 {
        self.numbers.lock().unwrap().get(name).map_or(0, |number| number.load(Ordering::Relaxed))
    }

    fn samples(&self, name: &str) -> Vec<f64> {
        let samples = self.samples.lock().unwrap();
        samples.get(name).map_or(Vec::new(), |samples| samples.0.lock().unwrap().clone())
    }
}

impl Recorder for Figures {
    fn describe_counter(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
        self.described.lock().unwrap().push(key.as_str().to_owned());
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.describe_counter(key, unit, text);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.describe_counter(key, unit, text);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.number(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.number(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        let samples = Arc::clone(self.samples.lock().unwrap().entry(name(key)).or_default());
        Histogram::from_arc(samples)
    }
}

fn open(trace_sessions: bool) -> (Store, Container, ManualClock) {
    let clock = ManualClock::new(Time::from_secs(1_000));
    let store = Options::new()
        .clock(clock.clone())
        .sweep_every(None)
        .trace_sessions(trace_sessions)
        .end_attempts(1)
        .on_end("fail", |_, _, _| Err(CANARY.into()))
        .memory()
        .unwrap();
    let policy = Policy::new().timeout_secs(60).period_secs(20).on_end("fail");
    let shop = store.container_with("shop", policy).unwrap();
    (store, shop, clock)
}

/// Two transactions of one session of which the first is committed; the second one's verdict.
fn race(store: &Store, work: impl Fn(&Transaction) -> Result<(), Error>) -> Result<Report, Error> {
    let (one, two) = (store.begin()?, store.begin()?);
    work(&one).and_then(|()| work(&two))?;
    one.commit()?;
    two.commit()
}

#[test]
fn what_happens_is_shown_and_secrets_are_not() {
    let (seen, figures) = (Seen::default(), Figures::default());
    tracing::subscriber::set_global_default(seen.clone()).unwrap();
    metrics::set_global_recorder(figures.clone()).unwrap_or_else(|_| panic!("there is another"));

    let (store, shop, clock) = open(false);
    let ada = SessionKey::from(CANARY);
    assert_eq!(figures.described.lock().unwrap().len(), 10);
    seen.take();

    // A session is created.
    let create = |txn: &Transaction| txn.create(&shop, &ada)?.insert("text", CANARY);
    store.transact(create).unwrap();
    let mut all = seen.take();
    assert_eq!(
        all,
        [
            "DEBUG sessile.load sessile.outcome=\"absent\"",
            "DEBUG sessile.commit sessile.keys_changed=1 sessile.outcome=\"clean\"",
        ]
    );
    let bytes = "text".len() + 1 + CANARY.len();
    assert_eq!(figures.samples("sessile_session_size_bytes"), [bytes as f64]);
    assert_eq!(figures.counted("sessile_sessions_created_total"), 1);
    assert_eq!(figures.counted("sessile_commits_total outcome=clean"), 1);

    // Two changes of one attribute are merged.
    race(&store, |txn| txn.get_or_create(&shop, &ada)?.add("visits", 1)).unwrap();
    let lines = seen.take();
    assert_eq!(
        lines[3..],
        [
            "DEBUG sessile.commit sessile.keys_changed=1 sessile.outcome=\"merged\"",
            "DEBUG sessile.merged message=merged with concurrent changes container=shop \
             attributes=[\"visits\"] contended=[\"visits\"]",
        ]
    );
    all.extend(lines);

    // Two changes of what was read conflict.
    let again = format!("{CANARY} again");
    let append = |text: &mut String| text.push('!');
    race(&store, |txn| txn.get_or_create(&shop, &ada)?.update("text", append)).unwrap_err();
    let lines = seen.take();
    assert_eq!(
        lines[3..],
        [
            "DEBUG sessile.commit sessile.keys_changed=1 sessile.outcome=\"rejected\" \
             error.type=\"conflict\"",
            "WARN sessile.rejected message=a commit was refused container=shop \
             reason=attribute `text` changed",
        ]
    );
    all.extend(lines);

    // What is run again is not refused for good, whoever waits for it.
    for run_async in [false, true] {
        let mut first = true;
        let work = |txn: &Transaction| {
            let session = txn.get_or_create(&shop, &ada)?;
            session.value("text")?;
            if std::mem::take(&mut first) {
                store.transact(|txn| txn.get_or_create(&shop, &ada)?.insert("text", "other"))?;
            }
            session.insert("text", &again)
        };
        match run_async {
            false => store.transact(work).unwrap(),
            true => {
                let runtime = tokio::runtime::Runtime::new().unwrap();
                runtime.block_on(store.transact_async(work)).unwrap()
            }
        };
        let lines = seen.take();
        let outcomes = lines.iter().filter(|line| line.contains("sessile.commit"));
        let outcome = |line: &String| line.split('"').nth(1).unwrap().to_owned();
        let outcomes: Vec<_> = outcomes.map(outcome).collect();
        assert_eq!(outcomes, ["clean", "retried", "clean"]);
        assert!(!lines.iter().any(|line| line.contains("rejected")));
        all.extend(lines);
    }

    // The session expires, and its listener fails.
    clock.advance_secs(200);
    store.sweep().unwrap();
    store.settle();
    let mut lines = seen.take();
    lines.sort();
    assert_eq!(
        lines,
        [
            "DEBUG sessile.sweep sessile.examined=1 sessile.ended=1",
            "ERROR sessile.end_given_up message=the listener of an end is given up \
             container=\"shop\" reason=expired",
            "ERROR sessile.hook_failed message=a listener failed hook=fail panicked=false",
        ]
    );
    all.extend(lines);
    assert_eq!(figures.counted("sessile_sessions_ended_total reason=expired"), 1);
    assert_eq!(figures.counted("sessile_sessions container=shop"), 0);
    let lag = f64::from_bits(figures.counted("sessile_sweep_lag_seconds"));
    assert_eq!(lag, 120.0); // it was due at 1,080
    for (outcome, count) in [("clean", 7), ("merged", 1), ("rejected", 1), ("retried", 2)] {
        let name = format!("sessile_commits_total outcome={outcome}");
        assert_eq!(figures.counted(&name), count, "{name}");
    }
    let durations = figures.samples("sessile_commit_duration_seconds");
    assert_eq!(durations.len(), 11);
    let loads = all.iter().filter(|line| line.contains("sessile.load")).count();
    assert_eq!(figures.samples("sessile_load_duration_seconds").len(), loads);

    // Where they met is counted without the features, too.
    let heat = store.heat().into_iter().map(|heat| (heat.attribute, heat.conflicts, heat.merges));
    let named = |name: &str, conflicts, merges| (Some(name.to_owned()), conflicts, merges);
    assert_eq!(heat.collect::<Vec<_>>(), [named("text", 3, 0), named("visits", 0, 1)]);

    // A backup is made.
    let directory = tempfile::tempdir().unwrap();
    let stored = Options::new().sweep_every(None).open(directory.path().join("store")).unwrap();
    seen.take();
    let backup = stored.backup_to(directory.path().join("backup")).unwrap();
    stored.backup_to(directory.path().join("backup")).unwrap_err();
    let bytes = backup.bytes;
    assert_eq!(
        seen.take(),
        [
            &format!(
                "DEBUG sessile.backup sessile.revision=0 sessile.sessions=0 sessile.bytes={bytes}"
            ),
            "DEBUG sessile.backup error.type=\"already_there\"",
        ]
    );
    stored.sweep().unwrap();
    let size = f64::from_bits(figures.counted("sessile_store_size_bytes"));
    assert!(size > bytes as f64, "a backup has no log: {size} {bytes}");
    all.extend(seen.take());

    // Somebody has let others read what it holds.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        stored.close().unwrap();
        let tables = directory.path().join("store/sessions.redb");
        std::fs::set_permissions(&tables, std::fs::Permissions::from_mode(0o644)).unwrap();
        seen.take();
        let stored = Options::new().open(directory.path().join("store")).unwrap();
        let told: Vec<_> =
            seen.take().into_iter().filter(|line| line.contains("Exposed")).collect();
        let [line] = &told[..] else { panic!("{told:?}") };
        assert!(line.starts_with("WARN sessile.trouble "), "{line}");
        assert!(line.contains("sessions.redb"), "{line}");
        drop(stored);
    }

    // Nothing so far has said who it was.
    store.transact(create).unwrap();
    store
        .transact(|txn| txn.get_or_create(&shop, &ada)?.rotate(format!("{CANARY}!")).map(drop))
        .unwrap();
    assert!(store.begin().unwrap().get(&shop, &ada).unwrap().is_none());
    let lines = seen.take();
    assert!(
        lines.contains(
            &"WARN sessile.rotated_key_used message=a key was used that its session has given up \
          container=\"shop\""
                .to_owned()
        )
    );
    all.extend(lines);
    let old = ada.fingerprint();
    let ada = SessionKey::from(format!("{CANARY}!"));
    store.transact(|txn| txn.remove(&shop, &ada)).unwrap();
    store.settle();
    all.extend(seen.take());
    assert_eq!(figures.counted("sessile_sessions_ended_total reason=invalidated"), 1);
    assert!(!all.iter().any(|line| line.contains(CANARY)), "{all:#?}");
    for id in [&old, &ada.fingerprint()] {
        assert!(!all.iter().any(|line| line.contains(id)), "{all:#?}");
    }
    let names = figures.numbers.lock().unwrap().keys().cloned().collect::<String>();
    assert!(!names.contains(CANARY) && !names.contains(&ada.fingerprint()), "{names}");

    // Nor do requests, whatever they carry.
    let (lines, secrets) = requests(&seen);
    for secret in &secrets {
        assert!(!lines.iter().any(|line| line.contains(secret)), "{secret}: {lines:#?}");
    }
    let named = |name: &str| lines.iter().filter(|line| line.contains(name)).count();
    assert_eq!(named("sessile.unknown_token"), 1, "{lines:#?}");
    assert_eq!(
        (named("sessile.ambiguous_token"), named("sessile.overruled")),
        (1, 1),
        "{lines:#?}"
    );
    assert_eq!(figures.counted("sessile_unknown_tokens_total"), 1);
    let names = figures.numbers.lock().unwrap().keys().cloned().collect::<String>();
    assert!(!secrets.iter().any(|secret| names.contains(secret)), "{names}");

    // Unless it is to.
    let (store, shop, _) = open(true);
    seen.take();
    store.transact(|txn| txn.create(&shop, &ada)?.insert("text", CANARY)).unwrap();
    race(&store, |txn| txn.get_or_create(&shop, &ada)?.update("text", append)).unwrap_err();
    let lines = seen.take();
    let id = format!("session.id={:?}", ada.fingerprint());
    assert!(lines.iter().all(|line| line.contains(&id)), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("sessile.rejected")), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains(CANARY)), "{lines:#?}");
}

/// G-S10: requests whose tokens are good, unknown, too many and nonsense. What was seen of them, and what
/// must not be.
fn requests(seen: &Seen) -> (Vec<String>, Vec<String>) {
    let (store, shop, _) = open(false);
    let inside = (store.clone(), shop.clone());
    let fill = async |session: Session| {
        session.insert("text", CANARY)?;
        session.login(CANARY, CANARY).await?;
        session.csrf_token()
    };
    // Another commits meanwhile what this one has read.
    let overrule = async move |session: Session| {
        let (store, shop) = &inside;
        let key = session.key()?.expect("it was filled");
        session.get::<String>("text")?;
        session.insert("text", format!("{CANARY}!"))?;
        store.transact(|txn| txn.get_or_create(shop, &key)?.insert("text", "other"))?;
        Ok::<_, Error>(())
    };
    let app = Router::new()
        .route("/fill", get(fill))
        .route("/overrule", get(overrule))
        .route("/look", get(async |session: Session| session.exists().map(|is| is.to_string())))
        .layer(SessionLayer::new(&store, &shop));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut browser = Browser::new(&app);
        seen.take();
        let csrf = browser.get("/fill").await.text;
        let token = browser.cookies["__Host-session"].clone();
        let page = browser.get(&format!("/overrule?csrf={csrf}&id={token}")).await;
        assert_eq!(page.status, 200);
        let mut secrets = vec![CANARY.to_owned(), csrf, token];
        let unknown = [(); 3].map(|()| Token::random().unwrap().expose());
        for cookie in [&unknown[0], &unknown[1..].join("; __Host-session="), CANARY] {
            browser.cookies.insert("__Host-session".to_owned(), cookie.to_owned());
            assert_eq!(browser.send(Method::GET, "/look").await.text, "false");
        }
        secrets.extend(unknown);
        store.settle();
        (seen.take(), secrets)
    })
}
