//! Threads that read for tasks of an executor, so that none of its threads waits for the disk.
//!
//! A session that is in memory is looked up at once, wherever the task runs. For one that is not, the
//! look-up becomes a job of one of a few threads, which are started by the first job and end with the
//! store.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Poll, Waker};

use crate::error::Error;
use crate::store::core::Core;
use crate::store::lock;
use crate::store::outcome::wake;
use crate::sync::Mutex;
use crate::sync::channel::{Sender, TrySendError, bounded};
use crate::sync::thread::JoinHandle;
use crate::threads;

/// How many there are. They wait for the disk, not for a processor.
const READERS: usize = if cfg!(shuttle) { 2 } else { 4 };

/// How many jobs wait before the next one is refused.
const JOBS_MAX: usize = 4_096;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(crate) struct Readers(Mutex<State>);

#[derive(Default)]
struct State {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    stopped: bool,
}

impl Readers {
    /// Queues a job, and starts the threads if it is the first one.
    fn queue(&self, core: &Core, job: Job) -> Result<(), Error> {
        let mut state = lock(&self.0);
        if state.stopped {
            return Err(Error::Closed);
        }
        if state.jobs.is_none() {
            let (sender, jobs) = bounded::<Job>(JOBS_MAX);
            let jobs = Arc::new(jobs);
            for _ in 0..READERS {
                let jobs = Arc::clone(&jobs);
                let read = move || {
                    while let Ok(job) = jobs.recv() {
                        job();
                    }
                };
                let thread = threads::spawn("read", read)?;
                // What a job drops there may be the last handle of the store.
                lock(&core.threads).push(thread.thread().id());
                state.threads.push(thread);
            }
            state.jobs = Some(sender);
        }
        let jobs = state.jobs.as_ref().expect("it was just made");
        jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => {
                Error::Busy { queued: JOBS_MAX, waited: std::time::Duration::ZERO }
            }
            TrySendError::Disconnected(_) => Error::Closed,
        })
    }

    /// Finishes the jobs that wait, and ends the threads.
    pub(crate) fn stop(&self) {
        let State { jobs, threads, .. } =
            std::mem::replace(&mut *lock(&self.0), State { stopped: true, ..State::default() });
        drop(jobs);
        for thread in threads {
            // A panic there is caught before it can end the thread.
            let _ = thread.join();
        }
    }
}

/// What a job leaves for the task that waits for it.
struct Slot<T> {
    answer: Option<Result<T, Error>>,
    waker: Option<Waker>,
}

/// Does something on one of the threads, and answers with what comes of it.
pub(crate) async fn run<T: Send + 'static>(
    core: &Core,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let slot = Arc::new(Mutex::new(Slot { answer: None, waker: None }));
    let theirs = Arc::clone(&slot);
    let job = move || {
        // A job is the application's closure, perhaps.
        let answer = catch_unwind(AssertUnwindSafe(work))
            .unwrap_or_else(|_| Err(Error::aborted("it panicked")));
        let waker = {
            let mut slot = lock(&theirs);
            slot.answer = Some(answer);
            slot.waker.take()
        };
        waker.into_iter().for_each(wake);
    };
    core.readers.queue(core, Box::new(job))?;
    poll_fn(move |context| {
        let mut slot = lock(&slot);
        match slot.answer.take() {
            Some(answer) => Poll::Ready(answer),
            None => {
                slot.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    })
    .await
}
