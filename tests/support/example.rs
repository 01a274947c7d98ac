//! Finds the programs of `examples/` for tests that run them.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The program of `examples/` of this name. `cargo test` has built it beside the test; `cargo test
/// --test …` has not, so it is built here, which costs nothing where it is fresh.
pub(crate) fn built(name: &str) -> PathBuf {
    let test = env::current_exe().expect("a test has a path");
    let built = test.parent().and_then(Path::parent).expect("the test lies in deps");
    let mut build = Command::new(env!("CARGO"));
    build.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet", "--example", name]);
    if built.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().expect("cargo runs").success(), "the example does not build");
    built.join("examples").join(format!("{name}{}", env::consts::EXE_SUFFIX))
}
