//! The library of `hardware/`, with which mock chips take the paths that only hardware takes.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::standin::Compiler;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/hardware/hardware.cpp");
const FLAGS: [&str; 4] = ["-std=c++20", "-O1", "-fPIC", "-shared"];

/// The library, for LD_PRELOAD: compiled when first asked for, and kept in the folder `cache` for later
/// runs.
///
/// # Panics
/// If it does not compile.
pub fn library(compiler: &Compiler, cache: &Path) -> PathBuf {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    let compile = || {
        let mut hasher = DefaultHasher::new();
        compiler.identity().hash(&mut hasher);
        (FLAGS, fs::read(SOURCE).expect("the source can be read")).hash(&mut hasher);
        let path = cache.join(format!("hardware-{:016x}.so", hasher.finish()));
        if path.exists() {
            return path;
        }
        // Under its name only when it is whole; another process may be compiling the same.
        let unfinished = path.with_extension(std::process::id().to_string());
        let mut command = compiler.command();
        command.args(FLAGS).arg(SOURCE).arg("-ldl").arg("-o").arg(&unfinished);
        let output = command.output().expect("the compiler starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{SOURCE} does not compile: {command:?}\n{errors}");
        fs::rename(&unfinished, &path).expect("a compiled file can be renamed");
        path
    };
    LIBRARY.get_or_init(compile).clone()
}
