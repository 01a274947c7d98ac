//! A running [`program`](super::program), as the test sees it.

use std::io::{BufRead, BufReader, Write};
use std::process::{self, Child, ChildStdin, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::program::{Command, JOB, Job, PROMPT, Said};

/// How long to wait for a program before something must be wrong.
const PATIENCE: Duration = Duration::from_secs(180);

/// Ends that programs were told of, by key, and why; a gap where one was started.
pub(crate) type Told = Arc<Mutex<Vec<Option<(String, String)>>>>;

/// A program that was started. Dropping it kills it.
pub(crate) struct Process {
    child: Child,
    stdin: ChildStdin,
    said: Receiver<Said>,
}

impl Process {
    /// Starts this test's executable as the program: `program` is the test that runs it, `told` gets
    /// the ends that it says it was told of, before anything that it says after them.
    pub(crate) fn start(program: &str, job: &Job, told: &Told) -> Self {
        let mut command = process::Command::new(std::env::current_exe().unwrap());
        command.args([program, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env(JOB, serde_json::to_string(job).unwrap());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let said = listen(BufReader::new(child.stdout.take().unwrap()), Arc::clone(told));
        Process { child, stdin, said }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Gives a command. One that is dead does not hear it.
    pub(crate) fn tell(&mut self, command: &Command) {
        let line = serde_json::to_string(command).unwrap();
        let _ = writeln!(self.stdin, "{line}");
    }

    /// What it says next.
    pub(crate) fn hear(&self) -> Said {
        self.hear_within(PATIENCE).expect("a program says something in time")
    }

    /// What it says next, if it says something in time.
    pub(crate) fn hear_within(&self, time: Duration) -> Option<Said> {
        match self.said.recv_timeout(time) {
            Ok(Said::Failed(error)) => panic!("the program failed: {error}"),
            Ok(said) => Some(said),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("the program died by itself"),
        }
    }

    /// Kills it, as hard as the system can: what it has said until then.
    pub(crate) fn kill(mut self) -> Vec<Said> {
        self.end();
        // The pipe holds what was written to it, and then it ends.
        let said: Vec<_> = self.said.iter().collect();
        for said in &said {
            assert!(!matches!(said, Said::Failed(_)), "the program failed: {said:?}");
        }
        said
    }

    fn end(&mut self) {
        // It fails where the program is dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Reads what a program says until its pipe ends.
#[expect(clippy::disallowed_methods, reason = "a thread of the test's, which ends with the pipe")]
fn listen(mut stdout: impl BufRead + Send + 'static, told: Told) -> Receiver<Said> {
    let (sender, said) = mpsc::channel();
    told.lock().unwrap().push(None);
    thread::spawn(move || {
        let mut line = String::new();
        // A line that the program did not finish was not said.
        while stdout.read_line(&mut line).unwrap() > 0 && line.ends_with('\n') {
            if let Some(said) = line.strip_prefix(PROMPT) {
                match serde_json::from_str(said).expect("a line of the program's") {
                    Said::Ended { key, reason } => told.lock().unwrap().push(Some((key, reason))),
                    said => drop(sender.send(said)),
                }
            }
            line.clear();
        }
    });
    said
}
