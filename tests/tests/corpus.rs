//! The inputs that the fuzzer found worth keeping, and what once failed, each run once more.

#![allow(clippy::unwrap_used, reason = "a test that can't go on says so")]

#[path = "../fuzz/inputs.rs"]
mod inputs;

use std::fs;
use std::path::Path;

fn run(target: &str, input: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("the corpus is there") {
        let path = entry.expect("it can be listed").path();
        println!("{}", path.display());
        input(&fs::read(&path).expect("it can be read"));
        count += 1;
    }
    assert!(count >= 10, "{count} inputs in {}", folder.display());
}

#[test]
fn rings() {
    run("ring", inputs::ring);
}

#[test]
fn records() {
    run("record", inputs::record);
}
