//! `ttalloc`: everything but running a program.
fn main() {
    ttalloc::demo::compiler::install(std::path::Path::new(&std::env::args().nth(1).unwrap()))
        .unwrap();
}
