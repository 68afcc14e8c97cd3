//! The soak for a short while; `src/bin/soak` says how it goes on for longer.

use std::process::{Command, Output};

/// Runs it with some options.
fn soak(options: &[&str]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_soak")).args(options).output();
    let output = output.expect("the soak can be run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    (output, text)
}

#[test]
fn what_goes_in_comes_out() {
    let (output, text) = soak(&["--seconds", "8"]);
    assert!(output.status.success());
    assert!(text.trim_end().ends_with("all of it adds up"));
}

#[test]
fn a_record_that_is_lost_is_missed() {
    let (output, text) = soak(&["--rounds", "1", "--lose-one", "--seed", "3"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("FAILED: record 1 of writer"), "{text}");
    assert!(text.contains("soak --rounds 1 --seed 3 "), "{text}");
}

#[test]
fn nonsense_in_the_ring_harms_nobody() {
    let (output, _) = soak(&["--seconds", "4", "--hostile"]);
    assert!(output.status.success());
}
