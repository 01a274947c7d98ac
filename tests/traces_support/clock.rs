//! The clock of a trace: floating-point seconds, added up as the original did.
//!
//! A store counts microseconds, so each reading is remembered by its microsecond. All times that a
//! session has are readings of this clock, and so they come back exactly.

use std::collections::BTreeMap;

use sessile::{ManualClock, Time};

/// A clock that only `advance_clock` moves, forward or back.
pub(crate) struct FakeClock {
    pub now: f64,
    pub manual: ManualClock,
    readings: BTreeMap<Time, f64>,
}

impl FakeClock {
    pub(crate) fn new(now: f64) -> Self {
        let manual = ManualClock::new(time(now));
        FakeClock { now, manual, readings: [(time(now), now)].into() }
    }

    pub(crate) fn advance(&mut self, seconds: f64) {
        self.now += seconds;
        self.manual.set(time(self.now));
        self.readings.insert(time(self.now), self.now);
    }

    /// The reading at a time of the store's; one that never was if there is none.
    pub(crate) fn reading(&self, time: Time) -> f64 {
        self.readings.get(&time).copied().unwrap_or(-1.0)
    }
}

fn time(seconds: f64) -> Time {
    Time::from_micros((seconds * 1e6).round() as u64)
}
