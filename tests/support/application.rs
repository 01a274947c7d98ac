//! The application behind the scripts: its clock, its resolvers, its listeners.

use std::panic;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::Duration;

use sessile::{
    AttributeMerge, Clock, Container, EndReason, EndedSession, ManualClock, Options, Resolution,
    SessionId, SessionMerge, Store, Time, Value,
};
use tempfile::TempDir;

use crate::notation::{shown, text};

/// When every script begins: the edge of a slice for every period that divides 20 minutes.
pub(crate) const START: u64 = 1_000_000_800;

/// Opens the store of a script, in memory or in a directory.
pub(crate) fn open(dir: Option<&TempDir>, clock: &ScriptClock, heard: &Heard, seed: u64) -> Store {
    let options = options(heard).clock(clock.clone()).seed(seed).sweep_every(None);
    let opened = match dir {
        None => options.memory(),
        Some(dir) => options.open(dir.path()),
    };
    opened.expect("it can be opened")
}

/// What listeners have heard and not yet been asked about.
#[derive(Clone, Default)]
pub(crate) struct Heard {
    pub starts: Arc<Mutex<Vec<(String, SessionId)>>>,
    pub ends: Arc<Mutex<Vec<(Ending, String)>>>,
    /// Where `create_other` and `use_store` leave a note.
    pub audit: Arc<Mutex<Option<Container>>>,
}

/// Who ended and why, without anything that is numbered when it is printed.
pub(crate) type Ending = (String, String, SessionId, EndReason);

pub(crate) fn ending(session: &EndedSession, reason: EndReason) -> Ending {
    (session.container().to_owned(), text(session.key().as_bytes()), session.id(), reason)
}

/// The application's resolvers and listeners, by the names that scripts give in their policies.
fn options(heard: &Heard) -> Options {
    let strings = |merge: &AttributeMerge<'_>| {
        let string = |value: Option<&Value>| value?.to::<String>();
        Some(format!("{}+{}", string(merge.stored)?, string(merge.proposed)?))
    };
    let both = |merge: &SessionMerge<'_>| {
        let all = [merge.stored, merge.proposed].map(|state| {
            let value = |name: &str| state.value(name).expect("it was named").clone();
            state.names().map(|name| (name.to_owned(), value(name))).collect::<Vec<_>>()
        });
        Resolution::New(all.into_iter().flatten().collect())
    };
    let (started, ended, audit, note) =
        (heard.starts.clone(), heard.ends.clone(), heard.audit.clone(), heard.audit.clone());
    let lock = |slot: &Mutex<Option<Container>>| slot.lock().expect("no panic").clone();
    Options::new()
        .segment_bytes(64 << 10)
        .resolver("concat", move |merge| match strings(merge) {
            Some(joined) => Resolution::New(Value::of(&joined)),
            None => Resolution::Decline,
        })
        .resolver("decline", |_| Resolution::Decline)
        // Unlike `panic!` this prints nothing.
        .resolver("panic", |_| panic::resume_unwind(Box::new("scripted")))
        .session_resolver("both", both)
        .session_resolver("base", |_| Resolution::Base)
        .session_resolver("decline", |_| Resolution::Decline)
        .session_resolver("panic", |_| panic::resume_unwind(Box::new("scripted")))
        .on_start("record", move |_, session| {
            let start = (text(session.key().as_bytes()), session.id());
            started.lock().expect("no panic").push(start);
            Ok(())
        })
        .on_start("fill", |_, session| Ok(session.insert("theme", "light")?))
        .on_start("fail", |_, session| {
            session.insert("half", "done")?;
            Err("scripted".into())
        })
        .on_start("panic", |_, session| {
            session.insert("half", "done")?;
            panic::resume_unwind(Box::new("scripted"))
        })
        .on_start("end_it", |_, session| Ok(session.invalidate()?))
        .on_start("create_other", move |txn, session| {
            let audit = lock(&audit).ok_or("a script that wants this makes a container `audit`")?;
            let other = txn.create(&audit, format!("{}-twin", text(session.key().as_bytes())))?;
            Ok(other.insert("of", text(session.key().as_bytes()))?)
        })
        .on_end("record", move |_, session, reason| {
            let attributes = session.iter().map(|(name, value)| (name.to_owned(), value.clone()));
            let ending = ending(session, reason);
            ended.lock().expect("no panic").push((ending, shown(attributes)));
            Ok(())
        })
        .on_end("fail", |_, _, _| Err("scripted".into()))
        .on_end("panic", |_, _, _| panic::resume_unwind(Box::new("scripted")))
        .on_end("use_store", move |store, session, reason| {
            let audit = lock(&note).ok_or("a script that wants this makes a container `audit`")?;
            let line = format!("{} {reason}", text(session.key().as_bytes()));
            store.transact(|txn| txn.get_or_create(&audit, "log")?.append("lines", &line, 9))?;
            Ok(())
        })
}

/// A clock that is turned by hand, and at which the committer can be held up.
#[derive(Clone, Debug)]
pub(crate) struct ScriptClock {
    pub hands: ManualClock,
    player: ThreadId,
    gate: Arc<Mutex<Option<Gate>>>,
}

/// Where the next of the store's threads that asks for the time says so, and waits.
#[derive(Debug)]
struct Gate {
    arrived: Sender<()>,
    go: Receiver<()>,
}

/// The other side of a gate.
pub(crate) struct Keeper {
    arrival: Receiver<()>,
    go: Sender<()>,
}

impl ScriptClock {
    pub(crate) fn new() -> Self {
        let hands = ManualClock::new(Time::from_secs(START));
        ScriptClock { hands, player: thread::current().id(), gate: Arc::default() }
    }

    /// Shuts the gate behind the next batch: the committer asks for the time at its beginning.
    pub(crate) fn shut(&self) -> Keeper {
        let ((arrived, arrival), (open, go)) = (channel(), channel());
        *self.gate.lock().expect("nothing panics while it is held") = Some(Gate { arrived, go });
        Keeper { arrival, go: open }
    }
}

impl Keeper {
    pub(crate) fn wait(&self) {
        let minute = Duration::from_secs(60);
        self.arrival.recv_timeout(minute).expect("the first commit has something to write");
    }

    pub(crate) fn open(self) {
        self.go.send(()).expect("the committer waits");
    }
}

impl Clock for ScriptClock {
    fn wall(&self) -> Time {
        if thread::current().id() != self.player {
            let gate = self.gate.lock().expect("nothing panics while it is held").take();
            if let Some(Gate { arrived, go }) = gate {
                arrived.send(()).expect("the keeper waits for it");
                go.recv().expect("the keeper opens");
            }
        }
        self.hands.wall()
    }

    fn elapsed(&self) -> Duration {
        self.hands.elapsed()
    }
}
