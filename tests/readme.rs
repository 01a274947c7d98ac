//! The README's quickstarts are `examples/counter.rs` and `examples/quickstart.rs`, to the letter, and do what
//! it says.

use std::fs;
use std::path::Path;
use std::process::Command;

#[path = "support/example.rs"]
mod example;

#[test]
fn the_quickstarts_run_as_they_stand_in_the_readme() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    for name in ["counter", "quickstart"] {
        let example = fs::read_to_string(root.join(format!("examples/{name}.rs"))).unwrap();
        let program = &example[example.find("use ").unwrap()..];
        assert!(readme.contains(program), "README.md must show examples/{name}.rs");
        let lines = program.lines().filter(|line| !line.is_empty()).count();
        assert!(lines <= 15, "a quickstart of {lines} lines");
    }
    let directory = tempfile::tempdir().unwrap();
    let quickstart = example::built("quickstart");
    for _ in 0..2 {
        let run = Command::new(&quickstart).current_dir(&directory).status().unwrap();
        assert!(run.success());
    }
    let store = sessile::Store::open(directory.path().join("sessions")).unwrap();
    let visitors = store.container("visitors").unwrap();
    let txn = store.begin().unwrap();
    let ada = txn.get(&visitors, "ada").unwrap().unwrap();
    assert_eq!(ada.get::<u64>("visits").unwrap(), Some(2));
}
