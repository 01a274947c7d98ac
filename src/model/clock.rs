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

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

    fn plus(self, elapsed: Duration) -> Self {
        Time(self.0.saturating_add(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)))
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
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.0.elapsed_micros.fetch_add(micros, Ordering::SeqCst);
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
    last: Time,
    last_elapsed: Duration,
    ahead_max: Duration,
    /// In trouble now, so that one jump is one event.
    troubled: bool,
}

impl StoreTime {
    /// At open the wall clock is believed, unless the store has seen a later time.
    pub(crate) fn new(stored: Time, wall: Time, elapsed: Duration, ahead_max: Duration) -> Self {
        StoreTime { last: stored.max(wall), last_elapsed: elapsed, ahead_max, troubled: false }
    }

    /// The store's time for these readings, and what to report, if anything.
    pub(crate) fn read(&mut self, wall: Time, elapsed: Duration) -> (Time, Option<ClockTrouble>) {
        let expected = self.last.plus(elapsed.saturating_sub(self.last_elapsed));
        let (now, trouble) = if wall > expected.plus(self.ahead_max) {
            (expected, Some(ClockTrouble::Ahead(wall.since(expected))))
        } else if wall.plus(BEHIND_TOLERANCE) < expected {
            (expected, Some(ClockTrouble::Behind(expected.since(wall))))
        } else {
            (self.last.max(wall), None)
        };
        // A time that stands still leaves elapsed time to add up.
        if now > self.last || trouble.is_some() {
            (self.last, self.last_elapsed) = (now, elapsed);
        }
        let report = trouble.filter(|_| !self.troubled);
        self.troubled = trouble.is_some();
        (now, report)
    }

    /// Believes the wall clock, however far ahead it is.
    pub(crate) fn accept(&mut self, wall: Time, elapsed: Duration) {
        (self.last, self.last_elapsed) = (self.last.max(wall), elapsed);
        self.troubled = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_clock_set_back_lets_time_run_on() {
        let mut time = StoreTime::new(Time(0), Time::from_secs(1_000), secs(0), DAY);
        let (now, trouble) = time.read(Time::from_secs(400), secs(5));
        assert_eq!(now, Time::from_secs(1_005));
        assert_eq!(trouble, Some(ClockTrouble::Behind(secs(605))));
        assert_eq!(time.read(Time::from_secs(402), secs(7)), (Time::from_secs(1_007), None));
        assert_eq!(time.read(Time::from_secs(1_008), secs(8)), (Time::from_secs(1_008), None));
    }

    #[test]
    fn a_clock_far_ahead_is_believed_only_when_told_so() {
        let mut time = StoreTime::new(Time(0), Time::from_secs(1_000), secs(0), DAY);
        let year = Time::from_secs(1_000 + 365 * 86_400);
        let (now, trouble) = time.read(year, secs(5));
        assert_eq!(now, Time::from_secs(1_005));
        assert!(matches!(trouble, Some(ClockTrouble::Ahead(_))));
        time.accept(year, secs(6));
        assert_eq!(time.read(year, secs(6)), (year, None));
    }

    #[test]
    fn a_day_ahead_is_adopted() {
        let mut time = StoreTime::new(Time(0), Time::from_secs(1_000), secs(0), DAY);
        let tomorrow = Time::from_secs(1_000 + 86_400);
        assert_eq!(time.read(tomorrow, secs(0)), (tomorrow, None));
    }

    proptest! {
        /// Small jumps matter as much as wild ones: a clock that lags by a few seconds is no
        /// trouble, and yet time must not follow it back.
        #[test]
        fn store_time_never_goes_back(
            stored in any::<u64>(),
            readings in proptest::collection::vec(
                (prop_oneof![any::<u64>().prop_map(Err), (-20i64..20).prop_map(Ok)], 0u64..9_000_000),
                1..50,
            ),
        ) {
            let mut elapsed = Duration::ZERO;
            let mut time = StoreTime::new(Time(stored), Time(0), elapsed, DAY);
            let mut last = Time(stored);
            for (reading, more) in readings {
                elapsed += Duration::from_micros(more);
                let wall = match reading {
                    Ok(secs) => last.0.saturating_add_signed(secs * 1_000_000),
                    Err(anywhere) => anywhere,
                };
                let (now, _) = time.read(Time(wall), elapsed);
                prop_assert!(now >= last);
                last = now;
            }
        }
    }
}
