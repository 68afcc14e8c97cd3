//! The command lines of the two programs.

pub mod run;
pub mod tools;

/// The name under which `ttalloc` is `ttalloc-run`, so that the demo needs no second program.
pub const RUN: &str = "ttalloc-run";
