//! What ttalloc costs, against a run without it in the same session: `cargo bench`.
//!
//! 1. A hook when nothing is tracked: a function that does nothing, called through the PLT of a C
//!    program, with and without the preload library.
//! 2. An allocate/free pair of the real runtime on mock chips, alone, with the preload library and no
//!    ring, and under `ttalloc-run`.
//!
//! The variants take turns, so that a busy machine slows all of them alike. A turn's figure is that of
//! its fastest block. What a variant adds is the median over the turns of its difference to the run
//! alone in the same turn; the quartiles beside it show what the machine's noise leaves of that.

use std::ffi::OsStr;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ttalloc::demo::cluster::{Arch, Cluster};
use ttalloc::demo::python::RELEASE;
use ttalloc::demo::set_up;
use ttalloc_tests::programs;
use ttalloc_tests::real::{available, runtime, with_own_shm};

const TURNS: usize = 12;
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
    println!("call of a function: {:.2} ns\n    hooked, no ring: {preloaded}", alone.ns);
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
        let state = if counters { "on" } else { "off" };
        println!(
            "allocate/free pair, {chips} chip(s), the runtime's counters {state}: {:.0} ns",
            alone.ns
        );
        println!("    preloaded, no ring: {preloaded}");
        println!("    under ttalloc-run:  {tracked}");
    }
}

/// What a variant costs.
struct Cost {
    /// The median of its turns, in nanoseconds.
    ns: f64,
    /// Quartiles of what it adds to the first variant in the same turn, in nanoseconds.
    added: [f64; 3],
    /// The median of its ratio to the first variant in the same turn.
    ratio: f64,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [low, middle, high] = self.added;
        write!(f, "{middle:+.1} ns ({low:+.1} to {high:+.1}), ratio {:.3}", self.ratio)
    }
}

/// The costs of the variants, of which the first is the program alone.
fn measure<const N: usize>(variants: [&dyn Fn() -> Command; N]) -> [Cost; N] {
    let turns: Vec<[f64; N]> =
        (0..TURNS).map(|_| variants.map(|variant| fastest(variant()))).collect();
    std::array::from_fn(|at| {
        let sorted = |figure: &dyn Fn(&[f64; N]) -> f64| {
            let mut figures: Vec<_> = turns.iter().map(figure).collect();
            figures.sort_by(f64::total_cmp);
            figures
        };
        let added = sorted(&|turn| turn[at] - turn[0]);
        Cost {
            ns: sorted(&|turn| turn[at])[TURNS / 2],
            added: [added[TURNS / 4], added[TURNS / 2], added[TURNS * 3 / 4]],
            ratio: sorted(&|turn| turn[at] / turn[0])[TURNS / 2],
        }
    })
}

fn fastest(mut command: Command) -> f64 {
    let mut child = command.stdout(Stdio::piped()).spawn().expect("the program starts");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let figures = lines.map_while(Result::ok).filter_map(|line| line.parse().ok());
    let fastest = figures.fold(f64::INFINITY, f64::min);
    assert!(child.wait().is_ok_and(|status| status.success()), "{command:?} failed");
    fastest
}
