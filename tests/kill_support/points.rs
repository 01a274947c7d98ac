//! Named points: where a program stands still until it is killed.
//!
//! A [`Point`] is one operation of a program's on its disk, say the third write to the tables. A
//! [`Wire`] counts the operations of that kind and holds the thread that does the nth: *before*, and
//! the operation will never have happened, or *after*, and nobody will have been told that it has.
//! Other threads go on, as they do when a real kill meets a program.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::watched::{Observer, Operation, Side};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Part {
    /// A segment of the commit log.
    Log,
    /// The same, where a program that serves begins to write to another one than before.
    OtherLog,
    /// The redb tables.
    Tables,
    /// Whatever else lies in the directory, and the directory.
    Rest,
}

/// When a program does what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// It opens a store: makes it, or recovers it.
    Opening,
    /// It serves clients.
    Serving,
}

/// One operation of a program's life.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Point {
    pub phase: Phase,
    pub side: Side,
    pub operation: Operation,
    pub part: Part,
    /// Which of them in this phase: the first is 1.
    pub nth: u64,
}

/// Waits for the operation of a point, and stands still there.
pub(crate) struct Wire {
    point: Option<Point>,
    stand: fn() -> !,
    serving: AtomicBool,
    met: AtomicU64,
    last_log: Mutex<PathBuf>,
}

impl Wire {
    pub(crate) fn new(point: Option<Point>, stand: fn() -> !) -> Self {
        let (serving, met, last_log) = Default::default();
        Wire { point, stand, serving, met, last_log }
    }

    /// From here on the program serves. How often an operation of the point's kind was met so far.
    pub(crate) fn serve(&self) -> u64 {
        self.serving.store(true, Ordering::SeqCst);
        self.met.load(Ordering::SeqCst)
    }

    fn phase(&self) -> Phase {
        match self.serving.load(Ordering::SeqCst) {
            true => Phase::Serving,
            false => Phase::Opening,
        }
    }

    /// Which part of the store a file is. A write to the log makes it the last one.
    fn part(&self, side: Side, operation: Operation, path: &Path) -> Part {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match name {
            "sessions.redb" => Part::Tables,
            log if log.starts_with("log-") => {
                let mut last = self.last_log.lock().unwrap();
                let other = operation == Operation::Write && *last != path;
                if other && side == Side::After {
                    *last = path.to_owned();
                }
                if other && self.phase() == Phase::Serving { Part::OtherLog } else { Part::Log }
            }
            _ => Part::Rest,
        }
    }
}

impl Observer for Wire {
    fn meets(&self, side: Side, operation: Operation, path: &Path) {
        let Some(point) = self.point else { return };
        let (phase, part) = (self.phase(), self.part(side, operation, path));
        let here = (phase, side, operation, part);
        if here == (point.phase, point.side, point.operation, point.part)
            && self.met.fetch_add(1, Ordering::SeqCst) + 1 == point.nth
        {
            (self.stand)();
        }
    }
}
