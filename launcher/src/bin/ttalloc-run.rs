//! `ttalloc-run`: runs a program and reports what it did with the memory of its chips.

fn main() -> std::process::ExitCode {
    ttalloc::cli::run::main()
}
