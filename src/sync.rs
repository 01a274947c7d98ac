//! What the threads of a store share and wait with: the standard library's, nearly always.
//!
//! Built with `--cfg shuttle` it is that of [shuttle](https://docs.rs/shuttle), which runs all threads of
//! a test on one, and decides at every lock, wait and atomic operation who goes on: by chance, by a
//! seed, again and again. `tests/schedules.rs` explores the store so. What never has a thread waiting in
//! the middle of it, such as counters and the channel of events, need not come from here.

#[cfg(not(shuttle))]
pub(crate) use {
    crossbeam_channel as channel,
    std::sync::{Condvar, Mutex, MutexGuard, RwLock, atomic},
    std::thread,
};

#[cfg(shuttle)]
pub(crate) use shuttle::{
    sync::{Condvar, Mutex, MutexGuard, RwLock, atomic},
    thread,
};

/// Tells threads apart.
#[cfg(not(shuttle))]
pub(crate) fn number_of_this_thread() -> usize {
    static NEXT: atomic::AtomicUsize = atomic::AtomicUsize::new(0);
    std::thread_local! {
        static NUMBER: usize = NEXT.fetch_add(1, atomic::Ordering::Relaxed);
    }
    NUMBER.with(|number| *number)
}

/// Tells threads apart: the same in every run.
#[cfg(shuttle)]
pub(crate) fn number_of_this_thread() -> usize {
    thread::current().id().into()
}

/// As much of `crossbeam_channel` as the store waits with. As with everything of shuttle's, no time
/// passes: who waits with a limit waits until it gets something.
#[cfg(shuttle)]
pub(crate) mod channel {
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::time::Duration;

    pub(crate) use crossbeam_channel::{
        RecvError, RecvTimeoutError, SendError, SendTimeoutError, TrySendError,
    };
    use shuttle::sync::{Condvar, Mutex, MutexGuard};

    pub(crate) fn bounded<T>(max: usize) -> (Sender<T>, Receiver<T>) {
        let state = State { waiting: VecDeque::new(), max, senders: 1, has_receiver: true };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        (Sender(Arc::clone(&shared)), Receiver(shared))
    }

    struct Shared<T> {
        state: Mutex<State<T>>,
        changed: Condvar,
    }

    struct State<T> {
        waiting: VecDeque<T>,
        max: usize,
        senders: usize,
        has_receiver: bool,
    }

    impl<T> Shared<T> {
        fn lock(&self) -> MutexGuard<'_, State<T>> {
            self.state.lock().expect("nothing panics while it is held")
        }
    }

    pub(crate) struct Sender<T>(Arc<Shared<T>>);

    impl<T> Sender<T> {
        pub(crate) fn send(&self, value: T) -> Result<(), SendError<T>> {
            let is_full =
                |state: &mut State<T>| state.has_receiver && state.waiting.len() >= state.max;
            let room = self.0.changed.wait_while(self.0.lock(), is_full);
            let mut state = room.expect("nothing panics while it is held");
            if !state.has_receiver {
                return Err(SendError(value));
            }
            state.waiting.push_back(value);
            drop(state);
            self.0.changed.notify_all();
            Ok(())
        }

        pub(crate) fn send_timeout(
            &self,
            value: T,
            _: Duration,
        ) -> Result<(), SendTimeoutError<T>> {
            self.send(value).map_err(|SendError(value)| SendTimeoutError::Disconnected(value))
        }

        pub(crate) fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
            let mut state = self.0.lock();
            if !state.has_receiver {
                return Err(TrySendError::Disconnected(value));
            }
            if state.waiting.len() >= state.max {
                return Err(TrySendError::Full(value));
            }
            state.waiting.push_back(value);
            drop(state);
            self.0.changed.notify_all();
            Ok(())
        }

        pub(crate) fn len(&self) -> usize {
            self.0.lock().waiting.len()
        }
    }

    impl<T> Clone for Sender<T> {
        fn clone(&self) -> Self {
            self.0.lock().senders += 1;
            Sender(Arc::clone(&self.0))
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            self.0.lock().senders -= 1;
            self.0.changed.notify_all();
        }
    }

    pub(crate) struct Receiver<T>(Arc<Shared<T>>);

    impl<T> Receiver<T> {
        pub(crate) fn recv(&self) -> Result<T, RecvError> {
            let is_empty = |state: &mut State<T>| state.senders > 0 && state.waiting.is_empty();
            let some = self.0.changed.wait_while(self.0.lock(), is_empty);
            let value = some.expect("nothing panics while it is held").waiting.pop_front();
            self.0.changed.notify_all();
            value.ok_or(RecvError)
        }

        pub(crate) fn recv_timeout(&self, _: Duration) -> Result<T, RecvTimeoutError> {
            self.recv().map_err(|RecvError| RecvTimeoutError::Disconnected)
        }

        /// What waits now.
        pub(crate) fn try_iter(&self) -> impl Iterator<Item = T> + '_ {
            std::iter::from_fn(|| {
                let value = self.0.lock().waiting.pop_front()?;
                self.0.changed.notify_all();
                Some(value)
            })
        }

        /// What comes, until nothing more will.
        pub(crate) fn into_iter(self) -> impl Iterator<Item = T> {
            std::iter::from_fn(move || self.recv().ok())
        }
    }

    impl<T> Drop for Receiver<T> {
        fn drop(&mut self) {
            let left = {
                let mut state = self.0.lock();
                state.has_receiver = false;
                std::mem::take(&mut state.waiting)
            };
            self.0.changed.notify_all();
            drop(left);
        }
    }
}
