//! What ttalloc costs, against a run without it in the same session: `cargo bench`.
//!
//! 1. A hook when nothing is tracked: a function that does nothing, called through the PLT of a C
//!    program, with and without the preload library.
//! 2. An allocate/free pair of the real runtime on mock chips, alone, with the preload library and no
//!    ring, and under `ttalloc-run`.
//!
//! The variants take turns, so that a busy machine slows all of them alike. A figure is that of the
//! fastest block of all turns: what else the machine does can only add to it.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ttalloc::demo::cluster::{Arch, Cluster};
use ttalloc::demo::python::RELEASE;
use ttalloc::demo::set_up;
use ttalloc_tests::programs;
use ttalloc_tests::real::{available, runtime, with_own_shm};

const TURNS: usize = 8;
const BLOCKS: &str = "15";
const PAIRS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/pairs.py");

/// A library with one of the hooked functions, which does nothing, and a program that calls it.
const LIBRARY: &str =
    "void clear(void *allocator) __asm__(\"_ZN2tt8tt_metal13AllocatorImpl5clearEv\");
void clear(void *allocator) { (void)allocator; __asm__ volatile(\"\"); }
";
const PROGRAM: &str = "#include <stdio.h>
#include <time.h>
void clear(void *allocator) __asm__(\"_ZN2tt8tt_metal13AllocatorImpl5clearEv\");
static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}
int main(void) {
    const int calls = 20000000;
    for (int block = 0; block < 5; block++) {
        double start = now();
        for (int call = 0; call < calls; call++) clear(0);
        printf(\"%f\\n\", (now() - start) / calls);
    }
    return 0;
}
";

fn main() {
    let machine = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = machine.lines().find(|line| line.starts_with("model name")).unwrap_or("unknown");
    println!("{model}");
    hook_without_a_ring();
    match available() {
        Ok(()) => [1, 8, 32].into_iter().for_each(pair),
        Err(why) => println!("no pairs on the real runtime: {why}"),
    }
}

fn hook_without_a_ring() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("clear.c"), LIBRARY).expect("a file can be written");
    std::fs::write(at("main.c"), PROGRAM).expect("a file can be written");
    compile(
        &[OsStr::new("-shared"), "-fPIC".as_ref(), at("clear.c").as_os_str()],
        &at("libclear.so"),
    );
    let rpath = format!("-Wl,-rpath,{}", folder.path().display());
    compile(
        &[at("main.c").as_os_str(), at("libclear.so").as_os_str(), rpath.as_ref()],
        &at("program"),
    );
    let alone = || Command::new(at("program"));
    let preloaded = || {
        let mut command = alone();
        command.env("LD_PRELOAD", &programs().shim);
        command
    };
    let [alone, preloaded] = measure([&alone, &preloaded]);
    println!(
        "call of a hooked function, no ring: {preloaded:.2} ns, {alone:.2} ns without ttalloc: {:+.2} ns",
        preloaded - alone
    );
}

fn compile(arguments: &[&OsStr], output: &Path) {
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let status = Command::new(compiler).arg("-O2").args(arguments).arg("-o").arg(output).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "a C compiler is needed (cc, or name one in CC)"
    );
}

fn pair(chips: u32) {
    let cluster = Cluster::of(Arch::Wormhole, chips).expect("a mesh of that size");
    let runtime = runtime(RELEASE);
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    for counters in [true, false] {
        let command = |program: &Path, first: Option<&PathBuf>| {
            let mut command = with_own_shm(program);
            command.args(first).arg(PAIRS);
            command.args([cluster.rows.to_string(), cluster.columns.to_string()]).arg(BLOCKS);
            set_up(&mut command, &runtime, cluster, folder.path())
                .expect("the descriptor is written");
            if !counters {
                command.env("TT_METAL_SHM_TRACKING_DISABLED", "1");
            }
            command
        };
        let alone = || command(&runtime.python, None);
        let preloaded = || {
            let mut command = alone();
            command.env("LD_PRELOAD", &programs().shim);
            command
        };
        let tracked = || {
            let mut command = command(&programs().run, Some(&runtime.python));
            command.stderr(Stdio::null());
            command
        };
        let [alone, preloaded, tracked] = measure([&alone, &preloaded, &tracked]);
        println!(
            "allocate/free pair on {chips} chip(s), the runtime's own counters {}: {alone:.0} ns; preloaded, no ring: {:+.0} ns ({:.3}); under ttalloc-run: {:+.0} ns ({:.3})",
            if counters { "on" } else { "off" },
            preloaded - alone,
            preloaded / alone,
            tracked - alone,
            tracked / alone,
        );
    }
}

/// The nanoseconds that each variant prints: the fewest of all turns.
fn measure<const N: usize>(variants: [&dyn Fn() -> Command; N]) -> [f64; N] {
    let mut figures = [f64::INFINITY; N];
    for _ in 0..TURNS {
        for (variant, figure) in variants.iter().zip(&mut figures) {
            *figure = figure.min(fastest(variant()));
        }
    }
    figures
}

fn fastest(mut command: Command) -> f64 {
    let mut child = command.stdout(Stdio::piped()).spawn().expect("the program starts");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let figures = lines.map_while(Result::ok).filter_map(|line| line.parse().ok());
    let fastest = figures.fold(f64::INFINITY, f64::min);
    assert!(child.wait().is_ok_and(|status| status.success()), "{command:?} failed");
    fastest
}
