//! The real runtime in tests: releases of ttnn on mock chips.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use ttalloc::demo::cluster::Cluster;
use ttalloc::demo::python::{self, Runtime};
use ttalloc::demo::set_up;

use crate::{Run, finish, programs};

/// Whether the real runtime can be had here: yes, or why not. Where `CI` is set it must be.
pub fn available() -> Result<(), String> {
    static FOUND: OnceLock<Result<(), String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| match python::find() {
        Ok(_) => Ok(()),
        Err(why) => {
            assert!(std::env::var_os("CI").is_none(), "CI is set, but the tests can't run: {why}");
            Err(why.to_string())
        }
    });
    found.clone()
}

/// The runtime of a release, installed if need be.
///
/// # Panics
/// If it can't be installed.
pub fn runtime(release: &str) -> Runtime {
    match python::prepare(release) {
        Ok(runtime) => runtime,
        Err(why) => panic!("ttnn {release} can't be installed: {why}"),
    }
}

/// Runs a Python program on mock chips under `ttalloc-run`, in a new folder.
pub fn run_python(
    runtime: &Runtime,
    cluster: Cluster,
    arguments: &[&OsStr],
    prepare: impl FnOnce(&mut Command),
) -> Run {
    run_python_with(&[], runtime, cluster, arguments, prepare)
}

/// The same with options for `ttalloc-run`.
pub fn run_python_with(
    options: &[&str],
    runtime: &Runtime,
    cluster: Cluster,
    arguments: &[&OsStr],
    prepare: impl FnOnce(&mut Command),
) -> Run {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let mut command = with_own_shm(&programs().run);
    command.args(options);
    command.arg(&runtime.python).args(arguments).stdin(Stdio::null());
    set_up(&mut command, runtime, cluster, folder.path()).expect("the descriptor can be written");
    prepare(&mut command);
    finish(command, folder)
}

/// A command that runs `program` with a /dev/shm of its own, where the system allows that: the runtime
/// keeps its counters there, never removes them, and gets slower with every process in them.
pub fn with_own_shm(program: &Path) -> Command {
    const WITH_OWN_SHM: &str = "mount -t tmpfs tmpfs /dev/shm && exec \"$@\"";
    if !has_namespaces() {
        return Command::new(program);
    }
    let mut command = Command::new("unshare");
    command.args(["-Urm", "sh", "-c", WITH_OWN_SHM, "sh"]).arg(program);
    command
}

fn has_namespaces() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(|| {
        let try_it = "mount -t tmpfs tmpfs /dev/shm";
        let status = Command::new("unshare")
            .args(["-Urm", "sh", "-c", try_it])
            .stderr(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    })
}
