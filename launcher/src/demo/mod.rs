//! The demo: the real runtime on mock chips, under `ttalloc-run`, with nothing but a Python at hand.

pub mod cluster;
mod compiler;
pub mod python;

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use self::cluster::Cluster;
use self::python::Runtime;

/// The workload: a few tensors and an op on every chip.
const WORKLOAD: &str = include_str!("workload.py");

/// Runs the demo's workload on `cluster` under the launcher, which is the program `ttalloc` by another
/// name, in the folder `folder` and with `options` for the launcher.
pub fn run(
    runtime: &Runtime,
    cluster: Cluster,
    ttalloc: &Path,
    folder: &Path,
    options: &[&OsStr],
) -> io::Result<ExitStatus> {
    let workload = folder.join("workload.py");
    std::fs::write(&workload, WORKLOAD)?;
    let mut command = Command::new(ttalloc);
    command.arg0(crate::cli::RUN).args(options).arg(&runtime.python).arg(&workload);
    command.arg(cluster.rows.to_string()).arg(cluster.columns.to_string());
    set_up(&mut command, runtime, cluster, folder)?;
    command.status()
}

/// Sets `command` up to use the runtime on mock chips, with everything that it writes below `folder`.
pub fn set_up(
    command: &mut Command,
    runtime: &Runtime,
    cluster: Cluster,
    folder: &Path,
) -> io::Result<()> {
    let descriptor = folder.join("cluster.yaml");
    std::fs::write(&descriptor, cluster.descriptor())?;
    command
        .env("TT_METAL_MOCK_CLUSTER_DESC_PATH", descriptor)
        .env("TT_METAL_CACHE", kernel_cache(runtime))
        .env("TT_LOGGER_LEVEL", "error")
        // ttnn's Python side logs through loguru.
        .env("LOGURU_LEVEL", "WARNING")
        // Among the processes of one machine Open MPI would keep a file of 16 MiB in /dev/shm each.
        .env("OMPI_MCA_btl", "self")
        .current_dir(folder);
    Ok(())
}

/// Where the runtime keeps compiled kernels: per release, since the stand-in compiler's are no others'.
fn kernel_cache(runtime: &Runtime) -> PathBuf {
    runtime.folder.join("kernels")
}
