//! The only place that asks for the time.
//!
//! A [`Clock`] has two readings. The *wall clock* dates sessions and decides expiry. *Elapsed time*
//! measures how long something took (the age of a snapshot, a wait) and turning the wall clock does
//! not move it.
//!
//! Neither is the store's time. [`StoreTime`] makes that of both, so that an expired session never
//! becomes valid again whatever somebody does to the clock:
//!
//! ```text
//!                  behind: event     adopted       ahead: event
//!   wall clock  ------------------|--------------|---------------->
//!                                last         expected + 24 h
//!   store time  runs on with      follows the    runs on with
//!               elapsed time      wall clock     elapsed time, until a
//!                                                reopen or accept_clock
//! ```
//!
//! Every read of a session asks for the time, on every thread. So the wall clock is not looked at each
//! time: for a millisecond after a look, store time is the time of that look plus the time elapsed since.
//! That takes one reading of a clock and no lock.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const MICROS: u64 = 1_000_000;

/// A point in time: microseconds since 1970-01-01 UTC. Arithmetic saturates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// The time so many seconds after 1970-01-01 UTC.
    pub const fn from_secs(secs: u64) -> Self {
        Time(secs.saturating_mul(MICROS))
    }

    /// The time so many microseconds after 1970-01-01 UTC.
    pub const fn from_micros(micros: u64) -> Self {
        Time(micros)
    }

    /// Whole seconds since 1970-01-01 UTC, rounded down.
    pub const fn as_secs(self) -> u64 {
        self.0 / MICROS
    }

    /// Microseconds since 1970-01-01 UTC.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero if it is not.
    pub const fn since(self, earlier: Time) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    pub(crate) const fn plus_secs(self, secs: u64) -> Self {
        Time(self.0.saturating_add(secs.saturating_mul(MICROS)))
    }

    pub(crate) fn plus(self, elapsed: Duration) -> Self {
        Time(self.0.saturating_add(micros(elapsed)))
    }
}

impl From<SystemTime> for Time {
    /// Times before 1970 become 1970.
    fn from(time: SystemTime) -> Self {
        Time(0).plus(time.duration_since(UNIX_EPOCH).unwrap_or_default())
    }
}

impl From<Time> for SystemTime {
    /// Times that the system cannot express become 1970.
    fn from(time: Time) -> Self {
        UNIX_EPOCH.checked_add(Duration::from_micros(time.0)).unwrap_or(UNIX_EPOCH)
    }
}

/// Seconds since 1970-01-01 UTC, with the fraction where there is one.
impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 % MICROS {
            0 => write!(f, "{}", self.as_secs()),
            fraction => {
                let digits = format!("{fraction:06}");
                write!(f, "{}.{}", self.as_secs(), digits.trim_end_matches('0'))
            }
        }
    }
}

/// Where a store gets its time from. Use [`SystemClock`], or [`ManualClock`] in tests.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// What the clock on the wall shows. May jump, in both directions.
    fn wall(&self) -> Time;

    /// How long this clock has been running. Never goes back, and does not jump with the wall.
    fn elapsed(&self) -> Duration;

    /// How far the wall clock may jump ahead and be believed, unless
    /// [`Options::clock_ahead_max`](crate::Options::clock_ahead_max) says otherwise: 24 hours.
    fn ahead_max(&self) -> Duration {
        Duration::from_secs(24 * 60 * 60)
    }

    /// For how long after a look at the wall clock elapsed time may stand in for it: not at all, unless
    /// the two run evenly and looking is dear.
    fn wall_every(&self) -> Duration {
        Duration::ZERO
    }
}

/// The operating system's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// Elapsed time starts now.
    #[expect(clippy::disallowed_methods, reason = "the one place")]
    pub fn new() -> Self {
        SystemClock { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place")]
    fn wall(&self) -> Time {
        Time::from(SystemTime::now())
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// A millisecond: that is how late a jump of the wall clock may be noticed.
    fn wall_every(&self) -> Duration {
        Duration::from_millis(1)
    }
}

/// A clock that tests turn by hand, and that is believed however far it is turned forward. Clones
/// show the same time.
///
/// ```
/// use sessile::{Clock, ManualClock, Time};
///
/// let clock = ManualClock::new(Time::from_secs(1_000_000_800));
/// clock.advance_secs(20);
/// assert_eq!(clock.wall(), Time::from_secs(1_000_000_820));
/// ```
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<ManualReadings>);

#[derive(Debug)]
struct ManualReadings {
    wall: AtomicU64,
    elapsed_micros: AtomicU64,
}

impl ManualClock {
    /// A clock that shows `wall` until it is turned.
    pub fn new(wall: Time) -> Self {
        ManualClock(Arc::new(ManualReadings {
            wall: AtomicU64::new(wall.0),
            elapsed_micros: AtomicU64::new(0),
        }))
    }

    /// Sets the wall clock, forward or back.
    pub fn set(&self, wall: Time) {
        self.0.wall.store(wall.0, Ordering::SeqCst);
    }

    /// Turns the wall clock forward.
    pub fn advance_secs(&self, secs: u64) {
        self.set(self.wall().plus_secs(secs));
    }

    /// Lets elapsed time go by; the wall clock stays.
    pub fn elapse(&self, time: Duration) {
        self.0.elapsed_micros.fetch_add(micros(time), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> Time {
        Time(self.0.wall.load(Ordering::SeqCst))
    }

    fn elapsed(&self) -> Duration {
        Duration::from_micros(self.0.elapsed_micros.load(Ordering::SeqCst))
    }

    fn ahead_max(&self) -> Duration {
        Duration::MAX
    }
}

/// How far the wall clock may fall behind before it is reported. Clocks that are slewed lag a bit.
const BEHIND_TOLERANCE: Duration = Duration::from_secs(10);

/// What is wrong with the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockTrouble {
    /// It jumped further ahead than is believed. See [`Store::accept_clock`](crate::Store::accept_clock).
    Ahead(Duration),
    /// It lies behind the time that the store has seen already.
    Behind(Duration),
}

/// The store's time: made of both readings of a clock, it never goes back.
#[derive(Debug)]
pub(crate) struct StoreTime {
    course: Mutex<Course>,
    /// What the course has published, for those who read without the lock: a time of the store, and
    /// the elapsed time at which it was that time, both in microseconds.
    at: AtomicU64,
    /// [`NOTHING`] if nothing is published.
    since: AtomicU64,
    /// Odd while the two are changed, and another one afterwards: who finds it changed has read
    /// halves of two pairs.
    turn: AtomicU64,
    every: u64,
}

const NOTHING: u64 = u64::MAX;

/// How the store's time came about, and goes on.
#[derive(Clone, Debug)]
struct Course {
    last: Time,
    /// The elapsed time at which it was that time, in whole microseconds.
    since: Duration,
    ahead_max: Duration,
    /// For so long after `since` the time is `last` and what has elapsed, if it is `even`.
    every: Duration,
    /// Store time and wall clock run evenly, as far as one look can tell.
    even: bool,
    /// In trouble now, so that one jump is one event.
    troubled: bool,
}

impl StoreTime {
    /// At open the wall clock is believed, unless the store has seen a later time.
    pub(crate) fn new(stored: Time, clock: &dyn Clock, ahead_max: Duration) -> Self {
        let every = clock.wall_every();
        let course = Course::new(stored.max(clock.wall()), clock.elapsed(), ahead_max, every);
        StoreTime {
            course: Mutex::new(course),
            at: AtomicU64::new(0),
            since: AtomicU64::new(NOTHING),
            turn: AtomicU64::new(0),
            every: micros(every),
        }
    }

    /// The store's time and the elapsed time now, and what to report, if anything.
    pub(crate) fn read(&self, clock: &dyn Clock) -> (Time, Duration, Option<ClockTrouble>) {
        if self.every > 0 {
            let elapsed = clock.elapsed();
            if let Some(now) = self.published(micros(elapsed)) {
                return (now, elapsed, None);
            }
        }
        // Before the lock, because a clock is somebody else's code. And in this order: store time may lag
        // behind a wall clock that was looked at in the middle of a long pause, and catches up. It must
        // not run ahead.
        let (wall, elapsed) = (clock.wall(), clock.elapsed());
        let mut course = self.lock();
        let (now, trouble) = course.read(wall, Duration::from_micros(micros(elapsed)));
        self.publish(&course);
        (now, elapsed, trouble)
    }

    /// Believes the wall clock, however far ahead it is.
    pub(crate) fn accept(&self, clock: &dyn Clock) {
        let (wall, elapsed) = (clock.wall(), clock.elapsed());
        let mut course = self.lock();
        course.accept(wall, Duration::from_micros(micros(elapsed)));
        self.publish(&course);
    }

    /// What the course would say at that elapsed time, if it does not depend on the wall clock.
    fn published(&self, elapsed: u64) -> Option<Time> {
        let turn = self.turn.load(Ordering::Acquire);
        let (at, since) = (self.at.load(Ordering::Relaxed), self.since.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let whole = turn.is_multiple_of(2) && self.turn.load(Ordering::Relaxed) == turn;
        let run = elapsed.checked_sub(since).filter(|run| whole && *run < self.every)?;
        Some(Time(at.saturating_add(run)))
    }

    /// Under the lock of the course, so there is one at a time.
    fn publish(&self, course: &Course) {
        let turn = self.turn.load(Ordering::Relaxed);
        let since = if course.even { micros(course.since) } else { NOTHING };
        if self.every == 0 {
            return;
        }
        self.turn.store(turn + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.at.store(course.last.0, Ordering::Relaxed);
        self.since.store(since, Ordering::Relaxed);
        self.turn.store(turn + 2, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Course> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Course {
    fn new(last: Time, elapsed: Duration, ahead_max: Duration, every: Duration) -> Self {
        let since = Duration::from_micros(micros(elapsed));
        Course { last, since, ahead_max, every, even: false, troubled: false }
    }

    /// The store's time for these readings, and what to report, if anything.
    fn read(&mut self, wall: Time, elapsed: Duration) -> (Time, Option<ClockTrouble>) {
        let run = elapsed.saturating_sub(self.since);
        if self.even && run < self.every {
            return (self.last.plus(run), None);
        }
        // What was told since the last look was earlier than this.
        let told = if self.even { self.last.plus(self.every) } else { self.last };
        let expected = self.last.plus(run);
        let (now, trouble) = if wall > expected.plus(self.ahead_max) {
            (expected, Some(ClockTrouble::Ahead(wall.since(expected))))
        } else if wall.plus(BEHIND_TOLERANCE) < expected {
            (expected, Some(ClockTrouble::Behind(expected.since(wall))))
        } else {
            (told.max(wall), None)
        };
        // A time that stands still leaves elapsed time to add up.
        if now > self.last || trouble.is_some() {
            (self.last, self.since) = (now, elapsed);
            // Ahead of a wall clock that lags a bit, time must wait for it.
            self.even = now == wall || trouble.is_some();
        }
        let report = trouble.filter(|_| !self.troubled);
        self.troubled = trouble.is_some();
        (now, report)
    }

    fn accept(&mut self, wall: Time, elapsed: Duration) {
        let told = if self.even { self.last.plus(self.every) } else { self.last };
        (self.last, self.since) = (told.max(wall), elapsed);
        (self.even, self.troubled) = (false, false);
    }
}

/// Half a million years are enough.
fn micros(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn course(every: Duration) -> Course {
        Course::new(Time::from_secs(1_000), secs(0), DAY, every)
    }

    #[test]
    fn a_clock_set_back_lets_time_run_on() {
        let mut time = course(secs(0));
        let (now, trouble) = time.read(Time::from_secs(400), secs(5));
        assert_eq!(now, Time::from_secs(1_005));
        assert_eq!(trouble, Some(ClockTrouble::Behind(secs(605))));
        assert_eq!(time.read(Time::from_secs(402), secs(7)), (Time::from_secs(1_007), None));
        assert_eq!(time.read(Time::from_secs(1_008), secs(8)), (Time::from_secs(1_008), None));
    }

    #[test]
    fn a_clock_far_ahead_is_believed_only_when_told_so() {
        let mut time = course(secs(0));
        let year = Time::from_secs(1_000 + 365 * 86_400);
        let (now, trouble) = time.read(year, secs(5));
        assert_eq!(now, Time::from_secs(1_005));
        assert!(matches!(trouble, Some(ClockTrouble::Ahead(_))));
        time.accept(year, secs(6));
        assert_eq!(time.read(year, secs(6)), (year, None));
    }

    #[test]
    fn a_day_ahead_is_adopted() {
        let tomorrow = Time::from_secs(1_000 + 86_400);
        assert_eq!(course(secs(0)).read(tomorrow, secs(0)), (tomorrow, None));
    }

    #[test]
    fn the_wall_clock_is_looked_at_every_so_often() {
        let mut time = course(secs(2));
        let at = Time::from_secs;
        assert_eq!(time.read(at(1_001), secs(1)).0, at(1_001));
        assert_eq!(time.read(at(1_600), secs(2)).0, at(1_002), "nobody looked");
        assert_eq!(time.read(at(1_600), secs(3)).0, at(1_600));
        // Set back by a bit: time waits for the wall clock, and looks until it has come.
        assert_eq!(time.read(at(1_598), secs(5)).0, at(1_602));
        assert_eq!(time.read(at(1_599), secs(6)).0, at(1_602));
        assert_eq!(time.read(at(1_603), secs(10)).0, at(1_603));
        assert_eq!(time.read(at(1_999), secs(11)).0, at(1_604));
    }

    /// A clock turned by hand that is looked at every so often.
    #[derive(Debug)]
    struct Seldom(ManualClock, Duration);

    impl Clock for Seldom {
        fn wall(&self) -> Time {
            self.0.wall()
        }

        fn elapsed(&self) -> Duration {
            self.0.elapsed()
        }

        fn wall_every(&self) -> Duration {
            self.1
        }
    }

    proptest! {
        /// Small jumps matter as much as wild ones: a clock that lags by a few seconds is no
        /// trouble, and yet time must not follow it back. And who reads without the lock reads what
        /// they would have read under it.
        #[test]
        fn store_time_never_goes_back(
            stored in any::<u64>(),
            every in prop_oneof![Just(0u64), Just(1_000), 0u64..20_000_000],
            readings in proptest::collection::vec(
                (
                    prop_oneof![
                        any::<u64>().prop_map(Err), (-20i64..20).prop_map(Ok), (-1i64..2).prop_map(Ok),
                    ],
                    prop_oneof![0u64..9_000_000, 0u64..2_000],
                    0u8..20,
                ),
                1..80,
            ),
        ) {
            let clock = Seldom(ManualClock::new(Time(0)), Duration::from_micros(every));
            let time = StoreTime::new(Time(stored), &clock, DAY);
            let mut course = Course::new(Time(stored), secs(0), DAY, clock.1);
            let mut last = Time(stored);
            for (reading, more, choice) in readings {
                clock.0.elapse(Duration::from_micros(more));
                clock.0.set(Time(match reading {
                    Ok(secs) => last.0.saturating_add_signed(secs * 1_000_000),
                    Err(anywhere) => anywhere,
                }));
                if choice == 0 {
                    time.accept(&clock);
                    course.accept(clock.wall(), clock.elapsed());
                }
                let (now, elapsed, trouble) = time.read(&clock);
                prop_assert_eq!((now, trouble), course.read(clock.wall(), clock.elapsed()));
                prop_assert_eq!(elapsed, clock.elapsed());
                prop_assert!(now >= last);
                last = now;
            }
        }
    }

    /// Who asks after somebody else has been told the time is not told an earlier one.
    #[test]
    fn store_time_goes_back_on_no_thread() {
        let clock = SystemClock::new();
        let time = StoreTime::new(Time(0), &clock, DAY);
        let latest = AtomicU64::new(0);
        let ask = || {
            for _ in 0..200_000 {
                let before = latest.load(Ordering::SeqCst);
                let now = time.read(&clock).0.0;
                assert!(now >= before, "{now} after {before}");
                latest.fetch_max(now, Ordering::SeqCst);
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(ask))));
        let lag = clock.wall().since(Time(latest.into_inner()));
        assert!(lag < secs(1), "{lag:?} behind the wall clock");
    }
}
