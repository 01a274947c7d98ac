//! The command as people and scripts meet it: what it prints, how it ends, what it leaves behind.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use sessile::{Clock, SystemClock};

/// The command, with a directory of its own for what is temporary.
fn sessile(temporary: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    command.env("TMPDIR", temporary).env("TMP", temporary).env("TEMP", temporary);
    command.stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    let temporary = tempfile::tempdir().expect("there is room for an empty directory");
    sessile(temporary.path()).args(arguments).output().expect("the command is built")
}

fn is_empty(directory: &Path) -> bool {
    directory.read_dir().expect("it is there").next().is_none()
}

#[test]
fn the_demo_loses_nothing_and_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let clock = SystemClock::new();
    let Output { status, stdout, stderr } = sessile(temporary.path()).arg("demo").output().unwrap();
    let took = clock.elapsed();
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());

    assert_eq!(status.code(), Some(0), "{stdout}{stderr}");
    assert!(took < Duration::from_secs(60), "a tour that takes {took:?} is none");
    for (what, of) in [
        ("concurrent writes lost", "0 of 600"),
        ("ended sessions that came back", "0 of 32"),
        ("ends that no listener heard of", "0 of 2,500"),
        ("sessions missing or changed after the restart", "0 of 7,500"),
    ] {
        let line = stdout.lines().find(|line| line.contains(what)).unwrap();
        assert!(line.ends_with(&format!(" {of}")), "{line}");
    }
    assert!(!stdout.contains('\x1b'), "colour in a pipe");
    assert_eq!(stderr, "", "nothing to say, and no bar in a pipe");
    assert!(is_empty(temporary.path()), "the store is removed");
}

#[test]
fn a_reader_that_has_seen_enough_ends_the_demo_quietly() {
    let temporary = tempfile::tempdir().unwrap();
    let mut child = sessile(temporary.path())
        .arg("demo")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("sessile "), "{line}");
    // The reader is gone, and most of the output is yet to come.
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(String::from_utf8(stderr).unwrap(), "");
    assert!(is_empty(temporary.path()), "the store is removed");
}

#[test]
fn the_version_names_the_format() {
    let Output { status, stdout, .. } = run(&["--version"]);
    let expected =
        format!("sessile {} (store format {})\n", env!("CARGO_PKG_VERSION"), sessile::FORMAT);
    assert_eq!(String::from_utf8(stdout).unwrap(), expected);
    assert_eq!(status.code(), Some(0));
}

#[test]
fn every_help_has_examples() {
    for arguments in [&["--help"][..], &["help", "demo"], &["demo", "--help"]] {
        let Output { status, stdout, .. } = run(arguments);
        let help = String::from_utf8(stdout).unwrap();
        assert!(help.contains("Examples:\n  sessile demo"), "{help}");
        assert!(help.contains("xit code"), "{help}");
        assert_eq!(status.code(), Some(0));
    }
    for command in ["stats", "ls", "show", "check", "backup", "export", "import", "compact"] {
        let Output { status, stdout, .. } = run(&["help", command]);
        let help = String::from_utf8(stdout).unwrap();
        assert!(help.contains(&format!("Examples:\n  sessile {command} ")), "{help}");
        assert!(help.contains("--json"), "{help}");
        assert_eq!(status.code(), Some(0));
    }
}

#[test]
fn wrong_usage_is_2_and_says_so_on_stderr() {
    for arguments in
        [&["dmeo"][..], &["demo", "--fast"], &["demo", "sessions"], &[], &["ls"], &["show", "x"]]
    {
        let Output { status, stdout, stderr } = run(arguments);
        assert_eq!(status.code(), Some(2), "{arguments:?}");
        assert!(stdout.is_empty() && !stderr.is_empty(), "{arguments:?}");
    }
}

/// Where nothing can be written the failure is 6, and a sentence.
#[test]
#[cfg(unix)]
fn a_failure_is_6_and_a_sentence() {
    let output = sessile(Path::new("/nowhere/at/all")).arg("demo").output().unwrap();
    assert_eq!(output.status.code(), Some(6));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{stderr}");
}
