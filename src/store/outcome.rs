//! How a commit's verdict reaches the one who waits for it, with or without blocking a thread.

use std::future::Future;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::error::Error;
use crate::model::key::Key;
use crate::model::session::{Revision, SessionId};
use crate::store::commit::Request;
use crate::store::core::Core;
use crate::store::listeners::EndReason;
use crate::store::lock;
use crate::store::observe::Watch;
use crate::sync::{Condvar, Mutex};

/// What a commit did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report<T = ()> {
    /// What the closure of [`Store::transact`](crate::Store::transact) returned.
    pub value: T,
    /// The number of this commit. Where nothing was written, it is that of the newest commit it was
    /// checked against.
    pub revision: Revision,
    /// The sessions that others had changed meanwhile, and what was merged into them.
    pub merged: Vec<MergedSession>,
    /// The sessions that ended in this commit.
    pub ended: Vec<EndedInfo>,
    /// How often the closure ran; 1 for a commit without one.
    pub attempts: u32,
}

/// A session that others had changed since this transaction's snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MergedSession {
    /// The name of the container.
    pub container: String,
    /// The session's key.
    pub key: Key,
    /// The revision this transaction had read.
    pub base: Revision,
    /// The revision it was merged with.
    pub stored: Revision,
    /// The attributes that this transaction wrote, in order.
    pub attributes: Vec<String>,
    /// Those of them that others had changed meanwhile, so that a rule, a resolver or the order of the
    /// commits has decided.
    pub contended: Vec<String>,
    /// Those of them that would have been a conflict, if this transaction had not been [to
    /// win](crate::Transaction::win_conflicts): what others had written there is lost.
    pub overruled: Vec<String>,
}

/// A session that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndedInfo {
    /// The name of the container.
    pub container: String,
    /// The session's key.
    pub key: Key,
    /// Which generation of the key.
    pub id: SessionId,
    /// Why.
    pub reason: EndReason,
}

impl Report {
    /// A commit that had nothing to write.
    pub(crate) fn nothing(revision: Revision) -> Self {
        Report { value: (), revision, merged: Vec::new(), ended: Vec::new(), attempts: 1 }
    }

    pub(crate) fn with<T>(self, value: T, attempts: u32) -> Report<T> {
        let Report { value: (), revision, merged, ended, .. } = self;
        Report { value, revision, merged, ended, attempts }
    }
}

type Verdict = Result<Report, Error>;

#[derive(Default)]
struct Slot {
    state: Mutex<SlotState>,
    decided: Condvar,
}

#[derive(Default)]
struct SlotState {
    verdict: Option<Verdict>,
    waker: Option<Waker>,
}

/// The committer's end: takes one verdict. Dropped without one, it says that the store is closed.
pub(crate) struct Reply(Option<Arc<Slot>>);

/// The other end.
pub(crate) struct Waiting(Arc<Slot>);

pub(crate) fn slot() -> (Reply, Waiting) {
    let slot = Arc::<Slot>::default();
    (Reply(Some(Arc::clone(&slot))), Waiting(slot))
}

impl Reply {
    pub(crate) fn send(mut self, verdict: Verdict) {
        self.decide(verdict);
    }

    fn decide(&mut self, verdict: Verdict) {
        let Some(slot) = self.0.take() else { return };
        let waker = {
            let mut state = lock(&slot.state);
            state.verdict = Some(verdict);
            state.waker.take()
        };
        slot.decided.notify_one();
        waker.into_iter().for_each(wake);
    }
}

/// Wakes a task. If its executor panics over that, nobody else has to do with it.
pub(crate) fn wake(waker: Waker) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| waker.wake())) {
        // Its payload may panic when it is dropped.
        mem::forget(panic);
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.decide(Err(Error::Closed));
    }
}

impl Waiting {
    /// Blocks this thread until the verdict is there.
    pub(crate) fn wait(self) -> Verdict {
        let mut state = lock(&self.0.state);
        loop {
            if let Some(verdict) = state.verdict.take() {
                return verdict;
            }
            state = self.0.decided.wait(state).expect("nothing panics while it is held");
        }
    }

    fn poll(&self, context: &Context<'_>) -> Poll<Verdict> {
        let mut state = lock(&self.0.state);
        match state.verdict.take() {
            Some(verdict) => Poll::Ready(verdict),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// A commit that is awaited instead of waited for; made by
/// [`Transaction::commit_async`](crate::Transaction::commit_async).
///
/// It needs no particular executor. It is queued by that call, not by the first poll, unless the
/// queue is full. Dropping it does not take the commit back: it may take effect all the same.
#[must_use = "a commit that is not awaited may fail unseen"]
pub struct Commit {
    state: State,
    /// Dropped with it, if nobody awaits the verdict.
    watch: Option<Watched>,
}

/// A commit that is watched until its verdict is there.
pub(crate) struct Watched {
    pub core: Arc<Core>,
    pub watch: Watch,
    /// Whether it is run again if it is refused.
    pub again: bool,
}

enum State {
    /// The queue was full: tried again at each poll, until this reading of elapsed time.
    Full {
        core: Arc<Core>,
        request: Box<Request>,
        since: Duration,
        waiting: Waiting,
    },
    Queued(Waiting),
    Decided(Verdict),
    Taken,
}

impl Commit {
    pub(crate) fn decided(verdict: Verdict) -> Self {
        Commit { state: State::Decided(verdict), watch: None }
    }

    pub(crate) fn queue(
        core: Arc<Core>,
        request: Request,
        waiting: Waiting,
        watch: Watched,
    ) -> Self {
        let state = match core.try_submit(request) {
            Ok(None) => State::Queued(waiting),
            Ok(Some(request)) => {
                let since = core.clock.elapsed();
                State::Full { core, request: Box::new(request), since, waiting }
            }
            Err(error) => State::Decided(Err(error)),
        };
        Commit { state, watch: Some(watch) }
    }

    fn poll_verdict(&mut self, context: &Context<'_>) -> Poll<Verdict> {
        loop {
            match mem::replace(&mut self.state, State::Taken) {
                State::Taken => return Poll::Ready(Err(Error::TransactionOver)),
                State::Decided(verdict) => return Poll::Ready(verdict),
                State::Queued(waiting) => {
                    let poll = waiting.poll(context);
                    if poll.is_pending() {
                        self.state = State::Queued(waiting);
                    }
                    return poll;
                }
                State::Full { core, request, since, waiting } => {
                    // Before the attempt, so that room made after it wakes this task.
                    core.call_when_there_is_room(context.waker());
                    match core.try_submit(*request) {
                        Ok(None) => self.state = State::Queued(waiting),
                        Err(error) => return Poll::Ready(Err(error)),
                        Ok(Some(request)) => {
                            if let Some(busy) = core.busy_since(since) {
                                return Poll::Ready(Err(busy));
                            }
                            let request = Box::new(request);
                            self.state = State::Full { core, request, since, waiting };
                            return Poll::Pending;
                        }
                    }
                }
            }
        }
    }
}

impl Future for Commit {
    type Output = Verdict;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Verdict> {
        let poll = self.poll_verdict(context);
        if let Poll::Ready(verdict) = &poll
            && let Some(Watched { core, watch, again }) = self.watch.take()
        {
            watch.committed(&core, verdict, again);
        }
        poll
    }
}
