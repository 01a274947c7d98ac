//! `sessile demo`: a tour that ends by itself.
//!
//! It makes a temporary store, does to it what a busy site does, only all at once, and counts what
//! is left. Beside it runs what most session libraries do, in memory and with the same requests:
//! load the whole session, change it, save it whole; the last one wins.
//!
//! ```text
//!   fill      10,000 sessions, in two containers with timeouts of their own
//!   race      8 writers on one session: notes of their own, a counter, a basket
//!   log out   while two other requests are still writing to the session
//!   expire    turn the clock by half an hour, and listen to what ends
//!   restart   close, open, compare every session
//! ```
//!
//! Everything printed was counted or measured in this run. Only the half hour is not waited for:
//! the store gets a clock that can be turned.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sessile::{
    Clock, ConflictReason, Container, Error, Options, Policy, Session, Store, SystemClock, Time,
    Transaction, Value,
};

use crate::Answer;
use crate::format::{duration, rate, size, thousands};
use crate::terminal::{Bar, Look, Page};

pub(crate) const HELP: &str = "\
The store lies in the directory for temporary files and is removed at the end. Nothing else is
touched. The exit code is 1 if anything was lost.

Examples:
  sessile demo
  TMPDIR=/var/tmp sessile demo    on another disk";

const SESSIONS: usize = 10_000;
/// How many sessions one transaction of the filling makes.
const PORTION: usize = 250;
const WRITERS: usize = 8;
const ROUNDS: usize = 25;
const LOGOUTS: usize = 32;
/// What a request takes between reading a session and writing it, about: a page is made.
const THINKING: Duration = Duration::from_millis(1);
const HALF_AN_HOUR: u64 = 30 * 60;

pub(crate) fn run(page: &mut Page) -> Result<Answer> {
    let directory = tempfile::Builder::new().prefix("sessile-demo-").tempdir()?;
    let path = directory.path().join("sessions");
    let clock = TurnedClock::default();
    let title = format!("sessile {}", env!("CARGO_PKG_VERSION"));
    let title = page.look(Look::Heading, title);
    page.line(format_args!("{title}: a tour on a temporary store, {}", path.display()))?;

    let site = Site::open(&path, &clock)?;
    fill(page, &site, &path)?;
    let race = race(page, &site)?;
    let returned = log_out(page, &site)?;
    let missed = expire(page, &site)?;
    let gone = restart(page, site, &path)?;

    page.heading("In all")?;
    let verdicts = [
        ("concurrent writes lost", race.lost(), race.written()),
        ("ended sessions that came back", returned, LOGOUTS as u64),
        ("ends that no listener heard of", missed, guests()),
        ("sessions missing or changed after the restart", gone, members()),
    ];
    for (what, count, of) in verdicts {
        let look = if count == 0 { Look::Good } else { Look::Bad };
        let count = page.look(look, format_args!("{:>7}", thousands(count)));
        page.line(format_args!("  {what:<46}{count} of {}", thousands(of)))?;
    }
    let took = clock.system.elapsed();
    directory.close().context("the temporary store could not be removed")?;
    page.line(format_args!("  The tour took {}; its store is removed.", duration(took)))?;

    page.heading("What to try next")?;
    page.line("  cargo test                               every promise above, and more")?;
    page.line("  cargo run --example shop -- ./sessions   a shop that you can kill and restart")?;
    page.line("  cargo bench --bench commit               commits a second on your disk")?;
    page.line("  README.md                                what sessile guarantees, and how")?;
    Ok(match verdicts.iter().all(|(_, count, _)| *count == 0) {
        true => Answer::Yes,
        false => Answer::No,
    })
}

/// The store of a site, with its two kinds of visitors.
struct Site {
    store: Store,
    members: Container,
    guests: Container,
    clock: TurnedClock,
    heard: Arc<AtomicU64>,
}

impl Site {
    fn open(path: &Path, clock: &TurnedClock) -> Result<Self, Error> {
        let heard = Arc::<AtomicU64>::default();
        let counter = Arc::clone(&heard);
        let store = Options::new()
            .clock(clock.clone())
            // The tour sweeps by hand, to see what there was to sweep.
            .sweep_every(None)
            .on_end("farewell", move |_store, session, _reason| {
                // A listener sees the last data of the session.
                let name: Option<String> = session.get("name");
                counter.fetch_add(u64::from(name.is_some()), Ordering::Relaxed);
                Ok(())
            })
            .open(path)?;
        let day = Policy::new().timeout_mins(24 * 60);
        let members = store.container_with("members", day)?;
        let short = Policy::new().timeout_mins(20).on_end("farewell");
        let guests = store.container_with("guests", short)?;
        Ok(Site { store, members, guests, clock: clock.clone(), heard })
    }

    /// The container of the nth visitor.
    fn container(&self, n: usize) -> &Container {
        if is_guest(n) { &self.guests } else { &self.members }
    }
}

/// Every fourth visitor is a guest, whom a site forgets sooner.
fn is_guest(n: usize) -> bool {
    n % 4 == 3
}

fn guests() -> u64 {
    (0..SESSIONS).filter(|n| is_guest(*n)).count() as u64
}

fn members() -> u64 {
    SESSIONS as u64 - guests()
}

fn key(n: usize) -> String {
    format!("visitor {n}")
}

/// What the nth visitor's session holds: some 400 bytes in ten attributes.
fn attributes(n: usize) -> [(&'static str, String); 10] {
    let page = |m: usize| format!("/catalogue/section-{}/article-{}", m % 17, m % 1_009);
    [
        ("agent", format!("Mozilla/5.0 (X11; Linux x86_64; rv:{}.0)", 100 + n % 40)),
        ("basket", format!("{} pears, {} apples", n % 5, n % 7)),
        ("currency", ["EUR", "CHF", "GBP", "USD"][n % 4].to_owned()),
        ("email", format!("visitor.{n}@example.org")),
        ("form", format!("{:032x}", n as u128 * 0x9e37_79b9_7f4a_7c15)),
        ("language", ["en", "de", "fr", "it", "es"][n % 5].to_owned()),
        ("last_page", page(n)),
        ("name", format!("Visitor number {n}")),
        ("referrer", page(n * 31)),
        ("theme", ["light", "dark"][n % 2].to_owned()),
    ]
}

fn fill(page: &mut Page, site: &Site, path: &Path) -> Result<()> {
    page.heading("Fill the store")?;
    let since = site.clock.elapsed();
    let next = AtomicUsize::new(0);
    {
        let bar = Bar::new("filling", SESSIONS as u64);
        together(WRITERS, |_| -> Result<(), Error> {
            loop {
                let first = next.fetch_add(PORTION, Ordering::Relaxed);
                if first >= SESSIONS {
                    return Ok(());
                }
                let visitors = first..SESSIONS.min(first + PORTION);
                let steps = visitors.len() as u64;
                site.store.transact(|txn| {
                    visitors.clone().try_for_each(|n| {
                        txn.create(site.container(n), key(n))?.extend(attributes(n))
                    })
                })?;
                bar.advance(steps);
            }
        })?;
    }
    let took = site.clock.elapsed() - since;
    page.line(format_args!(
        "  {} sessions of 10 attributes in {}: {} a second, {PORTION} to a transaction",
        thousands(SESSIONS as u64),
        duration(took),
        rate(SESSIONS as u64, took),
    ))?;
    let txn = site.store.begin()?;
    page.line(format_args!(
        "  {} members who may rest for a day, {} guests for 20 minutes; {} on disk",
        thousands(txn.len(&site.members)?),
        thousands(txn.len(&site.guests)?),
        size(bytes_in(path)?),
    ))?;
    Ok(())
}

/// What one request of the race writes.
#[derive(Clone, Copy)]
enum Wish {
    /// A note under a name of its own, and a visit counted.
    Note,
    /// Something more in the basket.
    Basket,
}

/// Requests take from half of that to one and a half, so that they do not march in step.
fn think(writer: usize, step: usize) {
    let tenths = (writer * 7 + step * 3) % 11;
    thread::sleep(THINKING / 2 + THINKING * u32::try_from(tenths).unwrap_or(0) / 10);
}

/// What a raced-for session holds at the end, by kind of write.
struct Kept {
    notes: u64,
    visits: u64,
    basket: u64,
}

struct Race {
    expected: u64,
    sessile: Kept,
    last_writer: Kept,
}

impl Race {
    /// How many writes of each kind there were, and how many either store has kept.
    fn rows(&self) -> [(&'static str, u64, u64); 3] {
        let Race { sessile, last_writer, .. } = self;
        [
            ("notes, each under its own name", sessile.notes, last_writer.notes),
            ("one counter,  add(\"visits\", 1)", sessile.visits, last_writer.visits),
            ("one basket,   update(\"basket\", push)", sessile.basket, last_writer.basket),
        ]
    }

    fn written(&self) -> u64 {
        self.rows().len() as u64 * self.expected
    }

    fn lost(&self) -> u64 {
        // Too much is as wrong as too little.
        self.rows().iter().map(|(_, kept, _)| kept.abs_diff(self.expected)).sum()
    }
}

fn race(page: &mut Page, site: &Site) -> Result<Race> {
    page.heading("Race: eight writers, one session, all at once")?;
    let create = |txn: &Transaction| txn.create(&site.members, "raced for").map(|_| ());
    site.store.transact(create)?;
    let before = site.store.stats();
    let since = site.clock.elapsed();
    let sessile = race_in_sessile(site)?;
    let took = site.clock.elapsed() - since;
    let after = site.store.stats();
    let last_writer = race_for_the_whole();
    let race = Race { expected: (WRITERS * ROUNDS) as u64, sessile, last_writer };

    let names = format!("  {:<38}{:>15}{:>21}", "", "sessile", "last writer wins");
    page.line(page.look(Look::Faint, names))?;
    let columns = format!("  {:<38}{:>8}{:>7}{:>14}{:>7}", "", "kept", "lost", "kept", "lost");
    page.line(page.look(Look::Faint, columns))?;
    let lost = |page: &Page, kept: u64| {
        let look = if kept == race.expected { Look::Good } else { Look::Bad };
        page.look(look, format_args!("{:>7}", kept.abs_diff(race.expected)))
    };
    for (what, ours, theirs) in race.rows() {
        let (our_loss, their_loss) = (lost(page, ours), lost(page, theirs));
        page.line(format_args!("  {what:<38}{ours:>8}{our_loss}{theirs:>14}{their_loss}"))?;
    }
    page.line(format_args!(
        "  {} transactions in {}: {} were merged with others, {} conflicts ran again",
        thousands(after.commits - before.commits),
        duration(took),
        thousands(after.merges - before.merges),
        thousands(after.conflicts - before.conflicts),
    ))?;
    page.line(
        "  (last writer wins: the same requests on a map in memory, loaded and saved whole)",
    )?;
    Ok(race)
}

fn race_in_sessile(site: &Site) -> Result<Kept> {
    let bar = Bar::new("racing", (2 * WRITERS * ROUNDS) as u64);
    let start = Barrier::new(WRITERS);
    together(WRITERS, |writer| {
        start.wait();
        for round in 0..ROUNDS {
            for wish in [Wish::Note, Wish::Basket] {
                // The visitor clicks: others' requests come in between, too.
                think(writer, round + 5);
                let request = |txn: &Transaction| {
                    let session = txn.get(&site.members, "raced for")?.ok_or(Error::Ended)?;
                    think(writer, round);
                    write(&session, wish, &format!("{writer}.{round}"))
                };
                // Patience: `transact` makes four attempts, and here are seven others.
                while let Err(error) = site.store.transact(request) {
                    if !error.is_retryable() {
                        return Err(error);
                    }
                }
                bar.advance(1);
            }
        }
        Ok(())
    })?;
    let txn = site.store.begin()?;
    let session = txn.get(&site.members, "raced for")?.ok_or(Error::Ended)?;
    let notes = session.keys()?.iter().filter(|name| name.starts_with("note ")).count();
    let basket: Vec<String> = session.get("basket")?.unwrap_or_default();
    let distinct: BTreeSet<_> = basket.iter().collect();
    ensure!(distinct.len() == basket.len(), "something is in the basket twice");
    let visits = session.get("visits")?.unwrap_or(0);
    Ok(Kept { notes: notes as u64, visits, basket: basket.len() as u64 })
}

fn write(session: &Session, wish: Wish, item: &str) -> Result<(), Error> {
    match wish {
        Wish::Note => {
            session.insert(&format!("note {item}"), "seen")?;
            session.add("visits", 1)
        }
        Wish::Basket => {
            session.update("basket", |basket: &mut Vec<String>| basket.push(item.to_owned()))
        }
    }
}

/// A session as a library keeps it that loads and saves all of it.
#[derive(Clone, Default)]
struct Whole {
    notes: BTreeSet<String>,
    visits: u64,
    basket: Vec<String>,
}

fn race_for_the_whole() -> Kept {
    let stored = Mutex::new(Whole::default());
    let start = Barrier::new(WRITERS);
    let load = || stored.lock().expect("no writer panics").clone();
    let save = |session| *stored.lock().expect("no writer panics") = session;
    together(WRITERS, |writer| {
        start.wait();
        for round in 0..ROUNDS {
            for wish in [Wish::Note, Wish::Basket] {
                think(writer, round + 5);
                let mut session = load();
                think(writer, round);
                match wish {
                    Wish::Note => {
                        session.notes.insert(format!("{writer}.{round}"));
                        session.visits += 1;
                    }
                    Wish::Basket => session.basket.push(format!("{writer}.{round}")),
                }
                save(session);
            }
        }
        Ok::<(), std::convert::Infallible>(())
    })
    .unwrap_or_else(|never| match never {});
    let Whole { notes, visits, basket } = load();
    Kept { notes: notes.len() as u64, visits, basket: basket.len() as u64 }
}

fn log_out(page: &mut Page, site: &Site) -> Result<u64> {
    page.heading("Log out while two other requests are still writing")?;
    site.store.transact(|txn| {
        (0..LOGOUTS).try_for_each(|n| txn.create(&site.members, leaver(n)).map(|_| ()))
    })?;
    let start = Barrier::new(3 * LOGOUTS);
    let late = together(3 * LOGOUTS, |thread| {
        let (visitor, role) = (leaver(thread / 3), thread % 3);
        start.wait();
        match role {
            0 => {
                thread::sleep(2 * THINKING);
                site.store.transact(|txn| txn.remove(&site.members, &visitor))?;
                Ok(0)
            }
            _ => write_until_gone(site, &visitor),
        }
    })?;
    let late: u64 = late.iter().sum();
    let txn = site.store.begin()?;
    let mut returned = 0;
    for n in 0..LOGOUTS {
        returned += u64::from(txn.peek(&site.members, leaver(n))?.is_some());
    }
    let theirs = log_out_of_the_whole();
    let ours = page.look(if returned == 0 { Look::Good } else { Look::Bad }, returned);
    page.line(format_args!(
        "  {LOGOUTS} visitors logged out. {late} writes came too late and were refused."
    ))?;
    page.line(format_args!("  Sessions that came back to life: {ours}"))?;
    let theirs = page.look(if theirs == 0 { Look::Good } else { Look::Bad }, theirs);
    page.line(format_args!("  With last writer wins: {theirs} of {LOGOUTS}"))?;
    Ok(returned)
}

fn leaver(n: usize) -> String {
    format!("leaver {n}")
}

/// Serves requests of a visitor until one finds no session; how many writes came after the end.
fn write_until_gone(site: &Site, visitor: &str) -> Result<u64, Error> {
    let mut late = 0;
    loop {
        // What `transact` does, opened up to count.
        let txn = site.store.begin()?;
        let Some(session) = txn.get(&site.members, visitor)? else { return Ok(late) };
        thread::sleep(THINKING);
        session.insert("last_page", "/account")?;
        match txn.commit() {
            Ok(_) => {}
            Err(Error::Conflict(conflict)) => {
                late += u64::from(conflict.reason == ConflictReason::Ended);
            }
            Err(error) => return Err(error),
        }
    }
}

/// The same with sessions that are saved whole: how many are there after their end.
fn log_out_of_the_whole() -> u64 {
    let stored: Mutex<BTreeMap<usize, Whole>> =
        Mutex::new((0..LOGOUTS).map(|n| (n, Whole::default())).collect());
    let sessions = || stored.lock().expect("no thread panics");
    let start = Barrier::new(3 * LOGOUTS);
    together(3 * LOGOUTS, |thread| {
        let (visitor, role) = (thread / 3, thread % 3);
        start.wait();
        match role {
            0 => {
                thread::sleep(2 * THINKING);
                sessions().remove(&visitor);
            }
            // Three requests each: a session that is back would be written to for ever.
            _ => {
                for _ in 0..3 {
                    let Some(mut session) = sessions().get(&visitor).cloned() else { break };
                    thread::sleep(THINKING);
                    session.notes.insert("/account".to_owned());
                    sessions().insert(visitor, session);
                }
            }
        }
        Ok::<(), std::convert::Infallible>(())
    })
    .unwrap_or_else(|never| match never {});
    sessions().len() as u64
}

fn expire(page: &mut Page, site: &Site) -> Result<u64> {
    page.heading("Expire: turn the clock by half an hour")?;
    let before = site.store.begin()?.len(&site.guests)?;
    site.clock.turn(HALF_AN_HOUR);
    // Nobody has swept yet: expiry is judged when somebody looks.
    let live = site.store.begin()?.len(&site.guests)?;
    let on_disk = site.store.stats().started - site.store.stats().ended;
    let since = site.clock.elapsed();
    let swept = site.store.sweep()?;
    site.store.settle();
    let took = site.clock.elapsed() - since;
    let heard = site.heard.load(Ordering::Relaxed);
    page.line(format_args!(
        "  Guests: {} before, {} at once after; {} sessions still on disk",
        thousands(before),
        thousands(live),
        thousands(on_disk),
    ))?;
    page.line(format_args!(
        "  A sweep ended {} in {}; their listener was told of {}, each with its last data",
        thousands(swept.ended),
        duration(took),
        thousands(heard),
    ))?;
    ensure!(live == 0, "{live} guests live after their time");
    Ok(heard.abs_diff(guests()))
}

fn restart(page: &mut Page, site: Site, path: &Path) -> Result<u64> {
    page.heading("Restart: close, open, compare every session")?;
    let clock = site.clock.clone();
    let since = clock.elapsed();
    let Site { store, members: container, guests, heard, .. } = site;
    drop((container, guests, heard));
    store.close()?;
    let closed = clock.elapsed();
    let site = Site::open(path, &clock)?;
    let opened = clock.elapsed();

    let txn = site.store.begin()?;
    let mut same = 0;
    {
        let bar = Bar::new("comparing", SESSIONS as u64);
        for n in 0..SESSIONS {
            let found = txn.peek(site.container(n), key(n))?;
            same += u64::from(found.is_some_and(|session| is_nth(&session, n)));
            bar.advance(1);
        }
    }
    let compared = clock.elapsed();
    let (there, ended) = (txn.len(&site.members)?, txn.len(&site.guests)?);
    page.line(format_args!(
        "  Closed in {}, opened in {}, compared in {}",
        duration(closed - since),
        duration(opened - closed),
        duration(compared - opened),
    ))?;
    page.line(format_args!(
        "  {} of {} members unchanged, and the session that was raced for; {} guests",
        thousands(same),
        thousands(members()),
        thousands(ended),
    ))?;
    // One more lives: the session that was raced for. Those who logged out do not.
    let strays = there.abs_diff(members() + 1) + ended;
    drop(txn);
    site.store.close()?;
    Ok(same.abs_diff(members()) + strays)
}

/// Whether a session holds exactly what the nth visitor's should.
fn is_nth(session: &Session, n: usize) -> bool {
    let expected = attributes(n).map(|(name, value)| (name.to_owned(), Value::of(&value)));
    session.iter().is_ok_and(|found| found.map(|(name, value)| (name, Some(value))).eq(expected))
}

fn bytes_in(directory: &Path) -> io::Result<u64> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
}

/// Runs `work` on so many threads at once; what they found, or the first failure.
fn together<T: Send, E: Send>(
    threads: usize,
    work: impl Fn(usize) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|n| scope.spawn(move || work(n))).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    })
}

/// The operating system's clocks, and a wall clock that can be turned ahead.
#[derive(Clone, Debug, Default)]
struct TurnedClock {
    system: Arc<SystemClock>,
    ahead_secs: Arc<AtomicU64>,
}

impl TurnedClock {
    fn turn(&self, secs: u64) {
        self.ahead_secs.fetch_add(secs, Ordering::Relaxed);
    }
}

impl Clock for TurnedClock {
    fn wall(&self) -> Time {
        let ahead = self.ahead_secs.load(Ordering::Relaxed) * 1_000_000;
        Time::from_micros(self.system.wall().as_micros() + ahead)
    }

    fn elapsed(&self) -> Duration {
        self.system.elapsed()
    }
}
