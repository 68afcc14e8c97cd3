//! `ttalloc`: everything but running a program. Called as `ttalloc-run`, it is that.

use std::path::Path;
use std::process::ExitCode;

use ttalloc::cli;

fn main() -> ExitCode {
    let name = std::env::args_os().next();
    match name.as_deref().map(Path::new).and_then(Path::file_name) {
        Some(name) if name == cli::RUN => cli::run::main(),
        _ => cli::tools::main(),
    }
}
