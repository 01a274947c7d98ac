//! What happened, for those who prefer to receive.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::model::clock::{ClockTrouble, Time};
use crate::model::key::Key;
use crate::model::merge::ResolverTrouble;
use crate::model::session::{Revision, SessionId};
use crate::store::listeners::{EndReason, EndedSession};
use crate::store::lock;
use crate::sync::Mutex;

/// Something that happened in a store. No event holds a token; an ended session's data are behind
/// its methods, not in its `Debug`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A session has ended, and the end is durable.
    Ended(Arc<EndedSession>, EndReason),
    /// A session expires soon, unless it is used: told once for each time that its end comes so near, to
    /// within how often the store [sweeps](crate::Options::sweep_every). See
    /// [`Policy::warn_secs`](crate::Policy).
    Expiring {
        /// The name of the container.
        container: String,
        /// What the session is filed under.
        key: Key,
        /// Which generation of the key it is.
        id: SessionId,
        /// When its time is over.
        expires: Time,
    },
    /// The listener of this end has failed as often as it may: it is not called for it any more. See
    /// [`Options::end_attempts`](crate::Options::end_attempts).
    EndGivenUp(Arc<EndedSession>, EndReason),
    /// So many events would stand here, and do not: this subscriber was too slow to receive them.
    Dropped {
        /// How many.
        count: u64,
    },
    /// A listener failed or panicked; the store went on.
    ListenerFailed {
        /// The name it was registered under.
        listener: String,
        /// Whether it panicked.
        panicked: bool,
    },
    /// A policy names a listener that was not registered at open; it was ignored.
    ListenerMissing {
        /// The name that the policy gives.
        listener: String,
    },
    /// A policy's resolver had no answer; the transaction conflicted.
    ResolverFailed {
        /// The name that the policy gives.
        resolver: String,
        /// Why.
        trouble: ResolverTrouble,
    },
    /// A commit won where it would have conflicted, because [it was
    /// to](crate::Transaction::win_conflicts): what others had written to these attributes meanwhile, and
    /// this one had not seen, is lost. Give them a rule, write them with a merging call, or in
    /// [`Store::transact`](crate::Store::transact).
    Overruled {
        /// The name of the container.
        container: String,
        /// The fingerprint of the session's key.
        session: String,
        /// The names of the attributes.
        attributes: Vec<String>,
    },
    /// The wall clock jumped; the store's time did not.
    Clock(ClockTrouble),
    /// Transactions lived too long; their next use gets
    /// [`Error::SnapshotTooOld`](crate::Error::SnapshotTooOld).
    SnapshotsGivenUp {
        /// How many.
        count: usize,
        /// The age that is allowed.
        age_max: Duration,
    },
    /// A write or a sync of the commit log failed. Commits fail until the store has found out what is
    /// durable; it goes on trying.
    StorageFailed {
        /// What the storage said.
        error: String,
    },
    /// The store goes on after a failure.
    StorageRecovered {
        /// The last commit that is durable.
        durable: Revision,
    },
    /// After an unclean end the commit log was replayed.
    Replayed {
        /// How many batches of commits were found.
        batches: u64,
        /// How many sessions they had changed.
        sessions: u64,
    },
    /// What is in the commit log cannot be moved into the tables at the moment. Commits go on until
    /// the log is full; the store goes on trying.
    FoldFailed {
        /// What went wrong.
        error: String,
    },
    /// The tables have been being written for so long: perhaps somebody who views the store from
    /// another process has been stopped while it held a lock. Commits go on until the log is full.
    FoldStalled {
        /// How long.
        since: Duration,
    },
    /// The bytes of a session on the disk are damaged. It is absent from now on.
    Damaged {
        /// The name of the container.
        container: String,
        /// The fingerprint of the session's key.
        session: String,
    },
    /// A container's count was not the number of its sessions. It is corrected, unless its records cannot
    /// be counted.
    Miscounted {
        /// The name of the container.
        container: String,
    },
    /// Somebody has come with a key that was [given up](crate::Session::rotate) for another one, after
    /// the time of grace. Perhaps it was stolen before: end the session, or look closer. A visitor who
    /// went offline at the wrong moment looks the same.
    RotatedKeyUsed {
        /// The name of the container.
        container: String,
        /// The fingerprint of the session's new key.
        session: String,
    },
    /// A request came with a token that means no session: it has expired or ended, or was made up. The
    /// visitor counts as new, and the token is never used for anything.
    UnknownToken {
        /// The name of the container.
        container: String,
    },
    /// A request came with several tokens, so it counts as having none. Perhaps somebody has planted a
    /// cookie for another path or domain of the site ("cookie tossing").
    AmbiguousToken {
        /// The name of the container.
        container: String,
    },
    /// Others than the owner may open a file of the store, or enter its directory: somebody has let them.
    /// It is told of when the store is opened, and stays as it is.
    Exposed {
        /// The path.
        path: PathBuf,
    },
    /// The housekeeper could not do its work; it will try again.
    SweepFailed {
        /// What it was told.
        error: String,
    },
}

/// How many events wait for one subscriber before the next is dropped.
const CAPACITY: usize = 1_024;

/// Those who receive. A slow one loses events, is told so, and nobody waits for it.
#[derive(Default)]
pub(crate) struct Events(Mutex<Vec<Subscriber>>);

struct Subscriber {
    sender: Sender<Event>,
    /// Events that it has lost and was not told of.
    dropped: u64,
}

impl Events {
    pub(crate) fn subscribe(&self) -> Receiver<Event> {
        let (sender, receiver) = bounded(CAPACITY);
        lock(&self.0).push(Subscriber { sender, dropped: 0 });
        receiver
    }

    pub(crate) fn send(&self, event: &Event, dropped: &AtomicU64) {
        lock(&self.0).retain_mut(|subscriber| {
            let sent = subscriber.tell_dropped().and_then(|()| {
                let sent = subscriber.sender.try_send(event.clone());
                sent.map_err(|error| error.is_full())
            });
            if sent == Err(true) {
                subscriber.dropped += 1;
                dropped.fetch_add(1, Ordering::Relaxed);
            }
            sent != Err(false)
        });
    }

    /// Tells those who have lost events and have room for this one again.
    pub(crate) fn tell_dropped(&self) {
        lock(&self.0).retain_mut(|subscriber| subscriber.tell_dropped() != Err(false));
    }
}

impl Subscriber {
    /// Says in the place of the events that are missing that they are; the error says whether there is
    /// no room, or else nobody who receives.
    fn tell_dropped(&mut self) -> Result<(), bool> {
        if self.dropped > 0 {
            let event = Event::Dropped { count: self.dropped };
            self.sender.try_send(event).map_err(|error| error.is_full())?;
            self.dropped = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_slow_is_told_what_is_missing_in_its_place() {
        let (events, dropped) = (Events::default(), AtomicU64::new(0));
        let (slow, quick) = (events.subscribe(), events.subscribe());
        let send = |n: usize| {
            let event = Event::SnapshotsGivenUp { count: n, age_max: Duration::ZERO };
            events.send(&event, &dropped);
        };
        let told = |receiver: &Receiver<Event>| match receiver.try_recv() {
            Ok(Event::SnapshotsGivenUp { count, .. }) => Some(count as i64),
            Ok(Event::Dropped { count }) => Some(-(count as i64)),
            _ => None,
        };
        for n in 0..CAPACITY + 10 {
            send(n);
            assert_eq!(told(&quick), Some(n as i64));
        }
        assert_eq!(dropped.load(Ordering::Relaxed), 10);
        // There is room for the news, and not for the event besides.
        assert_eq!(told(&slow), Some(0));
        send(5_000);
        assert_eq!(told(&quick), Some(5_000));
        (1..CAPACITY as i64).for_each(|n| assert_eq!(told(&slow), Some(n)));
        assert_eq!(told(&slow), Some(-10));
        assert_eq!(told(&slow), None);
        // The one that came meanwhile is told of when something happens, or soon.
        events.tell_dropped();
        assert_eq!(told(&slow), Some(-1));
        send(6_000);
        assert_eq!((told(&slow), told(&quick)), (Some(6_000), Some(6_000)));
        assert_eq!((told(&slow), told(&quick)), (None, None));
        drop(slow);
        send(7_000);
        assert_eq!(lock(&events.0).len(), 1);
    }
}
