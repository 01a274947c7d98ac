//! The shop of `examples/` as a program that runs. Dropping it kills it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::example;

/// How long to wait for the program or its answers before something must be wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What the shop calls its cookie.
#[allow(dead_code, reason = "a real browser finds out by itself")]
pub(crate) const COOKIE: &str = "__Host-session";

pub(crate) struct Shop {
    child: Child,
    pub(crate) addr: SocketAddr,
}

impl Shop {
    /// Starts the program on a port that is free, and returns when it is ready.
    pub(crate) fn start(dir: &Path) -> Self {
        Shop::start_at(dir, ([127, 0, 0, 1], 0).into())
    }

    pub(crate) fn start_at(dir: &Path, addr: SocketAddr) -> Self {
        let mut command = Command::new(example::built("shop"));
        command.arg(dir).arg(addr.to_string()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut shop = Shop { child, addr };
        let (sender, ready) = mpsc::channel();
        let line = thread::scope(|scope| {
            scope.spawn(move || {
                let mut line = String::new();
                sender.send(stdout.read_line(&mut line).map(|_| line))
            });
            let line = ready.recv_timeout(PATIENCE);
            if line.is_err() {
                // The reader above ends with the program.
                shop.stop();
            }
            line
        });
        let line = line.expect("the program is ready in time").unwrap();
        let addr = line.trim().strip_prefix("listening on http://");
        shop.addr = addr.unwrap_or_else(|| panic!("{line:?}")).parse().unwrap();
        shop
    }

    /// The number of its process, for signals.
    #[allow(dead_code, reason = "not every test sends some")]
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the program as hard as the system can.
    pub(crate) fn stop(&mut self) {
        // It fails where the program is dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.stop();
    }
}
