//! ttalloc's figures against the real runtime's own, at every checkpoint of every scenario.
//!
//! A case is a release on a cluster of mock chips. It runs `workloads/scenarios.py` under `ttalloc-run`,
//! which ends in a forked process at each checkpoint, after it printed what the runtime says. The
//! report's figures for that process must be the same.
//!
//! `workloads/hardware.py` does likewise, with the library of `hardware/` preloaded, by which mock chips
//! take the paths that only hardware takes.

#![allow(clippy::panic, reason = "a test that can't go on says so")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;
use ttalloc::demo::cluster::{Arch, Cluster};
use ttalloc::ledger::MemoryType;
use ttalloc::programs::BufferKind;
use ttalloc::report::{CrossCheck, CrossCheckState, Exit, HookEngine, Program, Report};
use ttalloc_tests::real::{available, run_python_with, runtime};
use ttalloc_tests::standin::Compiler;
use ttalloc_tests::{Run, hardware};

/// The releases, with their eras.
const RELEASES: [(&str, &str); 4] =
    [("0.66.0", "B"), ("0.76.0", "B"), ("0.80.0", "C"), ("0.81.1", "C")];
/// The clusters.
const CLUSTERS: [(Arch, u32); 5] = [
    (Arch::Wormhole, 1),
    (Arch::Wormhole, 8),
    (Arch::Wormhole, 32),
    (Arch::Blackhole, 1),
    (Arch::Blackhole, 8),
];
const SCENARIOS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/scenarios.py");
const CLOSING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/closing.py");
const ENDINGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/endings.py");
/// How many checkpoints the scenarios have together.
const CHECKPOINTS: usize = 42;

const HARDWARE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/hardware.py");
/// The scenarios of that, and how many checkpoints each has.
const ON_HARDWARE: [(&str, usize); 9] = [
    ("programs", 7),
    ("leaks", 6),
    ("traces", 7),
    ("sub_devices", 8),
    ("captures", 8),
    ("l1_small", 7),
    ("families", 6),
    ("no_events", 10),
    ("states", 8),
];
const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/programs.py");
/// The one that needs the mode HYBRID, which there is from 0.70.1 on.
const PER_CORE: (&str, usize) = ("per_core", 7);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = available().err();
    if let Some(why) = &missing {
        eprintln!("\nTHE TESTS ON THE REAL RUNTIME ARE IGNORED: {why}\n");
    }
    let no_compiler = Compiler::find().err();
    if let Some(why) = &no_compiler {
        eprintln!("\nTHE TESTS ON HARDWARE'S PATHS NEED A C++ COMPILER, AND ARE IGNORED: {why}\n");
        if std::env::var_os("CI").is_some() {
            return ExitCode::FAILURE;
        }
    }
    let mut trials = cases();
    let on_hardware = cases_on_hardware().into_iter();
    trials.extend(on_hardware.map(|trial| trial.with_ignored_flag(no_compiler.is_some())));
    if missing.is_some() {
        trials = trials.into_iter().map(|trial| trial.with_ignored_flag(true)).collect();
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn cases() -> Vec<Trial> {
    let mut cases = Vec::new();
    for (release, era) in RELEASES {
        for (arch, chips) in CLUSTERS {
            for counters in [true, false] {
                let Some(cluster) = Cluster::of(arch, chips) else { continue };
                let with = if counters { "counters" } else { "no_counters" };
                let name = format!("equal::{release}::{arch:?}_{chips}::{with}").to_lowercase();
                let case = move || agrees_with_the_runtime(release, era, cluster, counters, "auto");
                cases.push(Trial::test(name, case));
            }
        }
        // No release needs it, but all of their functions can be patched.
        let case = move || {
            let cluster = Cluster::of(Arch::Wormhole, 8).ok_or("no such cluster")?;
            agrees_with_the_runtime(release, era, cluster, true, "inline")
        };
        cases.push(Trial::test(format!("patched::{release}"), case));
    }
    for (release, _) in RELEASES {
        let case = move || reconciled(release);
        cases.push(Trial::test(format!("reconciled::{release}"), case));
    }
    for (release, _) in RELEASES {
        for name in ["ends", "forks", "two_processes"] {
            let case = move || match name {
                "ends" => ends(release),
                "forks" => forks(release),
                _ => two_processes(release),
            };
            cases.push(Trial::test(format!("{name}::{release}"), case));
        }
    }
    for release in ["0.76.0", "0.81.1"] {
        let case = move || cross_check(release);
        cases.push(Trial::test(format!("cross_check::{release}"), case));
    }
    cases.push(Trial::test("cross_check_without_counters", no_counters));
    cases.push(Trial::test("alone_in_its_process", one_process_a_run));
    cases.push(Trial::test("failed_allocations_are_counted", failures));
    cases.push(Trial::test("planned_buffers_take_nothing", planned));
    cases.push(Trial::test("what_was_left_at_close", left_at_close));
    cases.push(Trial::test("two_records_a_tensor", two_records_a_tensor));
    cases
}

/// The cases that need the library of `hardware/`.
fn cases_on_hardware() -> Vec<Trial> {
    let mut cases = Vec::new();
    for (release, era) in RELEASES {
        // A single Blackhole chip would tell nothing more, and take time.
        for (arch, chips) in CLUSTERS.into_iter().filter(|&one| one != (Arch::Blackhole, 1)) {
            let Some(cluster) = Cluster::of(arch, chips) else { continue };
            let of = |what: &str| format!("{what}::{release}::{arch:?}_{chips}").to_lowercase();
            let case = move || agrees_on_hardware(release, era, cluster);
            cases.push(Trial::test(of("hardware"), case));
            cases.push(Trial::test(of("programs"), move || agrees_on_programs(release, cluster)));
            if release != "0.66.0" {
                let case = move || agrees_per_core(release, era, cluster);
                cases.push(Trial::test(of("per_core"), case));
            }
        }
    }
    cases
}

fn scenario(
    release: &str,
    cluster: Cluster,
    arguments: &[&str],
    prepare: impl FnOnce(&mut Command),
) -> Run {
    workload(SCENARIOS, &[], release, cluster, arguments, prepare)
}

fn workload(
    script: &str,
    options: &[&str],
    release: &str,
    cluster: Cluster,
    arguments: &[&str],
    prepare: impl FnOnce(&mut Command),
) -> Run {
    let (rows, columns) = (cluster.rows.to_string(), cluster.columns.to_string());
    let all = [&[script, &rows, &columns], arguments].concat();
    let all: Vec<_> = all.into_iter().map(OsStr::new).collect();
    run_python_with(options, &runtime(release), cluster, &all, prepare)
}

/// The same with the library that lets mock chips do as hardware does.
fn on_hardware(
    script: &str,
    release: &str,
    cluster: Cluster,
    arguments: &[&str],
    prepare: impl FnOnce(&mut Command),
) -> Result<Run, Failed> {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = hardware::library(&Compiler::find()?, cache);
    Ok(workload(script, &[], release, cluster, arguments, |command| {
        command.env("LD_PRELOAD", library);
        prepare(command);
    }))
}

fn agrees_with_the_runtime(
    release: &str,
    era: &str,
    cluster: Cluster,
    counters: bool,
    engine: &str,
) -> Result<(), Failed> {
    let run = scenario(release, cluster, &["all"], |command| {
        command.env("TTALLOC_ENGINE", engine);
        if !counters {
            command.env("TT_METAL_SHM_TRACKING_DISABLED", "1");
        }
    });
    let expected = if engine == "inline" { HookEngine::Inline } else { HookEngine::Preload };
    agrees(&run, era, CHECKPOINTS, expected)
}

fn agrees_on_hardware(release: &str, era: &str, cluster: Cluster) -> Result<(), Failed> {
    let names: Vec<_> = ON_HARDWARE.iter().map(|(name, _)| *name).collect();
    let run =
        on_hardware(HARDWARE, release, cluster, &[&["all"], names.as_slice()].concat(), |_| {})?;
    let checkpoints = ON_HARDWARE.iter().map(|(_, checkpoints)| checkpoints).sum();
    agrees(&run, era, checkpoints, HookEngine::Preload)
}

fn agrees_per_core(release: &str, era: &str, cluster: Cluster) -> Result<(), Failed> {
    let (name, checkpoints) = PER_CORE;
    let run = on_hardware(HARDWARE, release, cluster, &["all", name], |command| {
        command.env("TT_METAL_ALLOCATOR_MODE_HYBRID", "1");
    })?;
    agrees(&run, era, checkpoints, HookEngine::Preload)
}

/// Holds a run against all that it printed, `checkpoints` lines.
fn agrees(run: &Run, era: &str, checkpoints: usize, engine: HookEngine) -> Result<(), Failed> {
    if !run.output.status.success() {
        return Err(run.describe().into());
    }
    let said = printed(run)?;
    if said.len() != checkpoints {
        return Err(format!("{} checkpoints instead of {checkpoints}", said.len()).into());
    }
    let mut wrong = Vec::new();
    for books in &said {
        let pid = books["pid"].as_u64().ok_or("no pid")? as u32;
        let at = format!("{} at \"{}\"", books["scenario"], books["checkpoint"]);
        compare(run.report(), pid, books, &mut |what| wrong.push(format!("{at}: {what}")));
        let process = run.report().processes.iter().find(|process| process.pid == pid);
        let found = process.and_then(|process| process.runtime.as_ref()?.era.as_deref());
        if found != Some(era) {
            wrong.push(format!("{at}: era {found:?} instead of {era}"));
        }
        let runtime = process.and_then(|process| process.runtime.as_ref()).ok_or("no runtime")?;
        let is_refused = |symbol: &str| runtime.refused.iter().any(|one| one.symbol == symbol);
        for hook in runtime.hooks.iter().filter(|hook| hook.engine != engine) {
            // What can't be patched is interposed, and said to be.
            if engine == HookEngine::Preload || !is_refused(&hook.symbol) {
                wrong.push(format!("{at}: {hook:?}"));
            }
        }
    }
    integrity(run.report(), &mut |what| wrong.push(what));
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// The same without forks: one process, one report.
fn one_process_a_run() -> Result<(), Failed> {
    let cluster = Cluster::of(Arch::Wormhole, 8).ok_or("no cluster")?;
    for (name, number) in [("aliases", "3"), ("reopening", "4"), ("submeshes", "2"), ("mixed", "1")]
    {
        let run = scenario("0.81.1", cluster, &[name, number], |_| {});
        let said = printed(&run)?;
        let [books] = said.as_slice() else { return Err(run.describe().into()) };
        let mut wrong = Vec::new();
        let report = run.report();
        compare(report, report.processes[0].pid, books, &mut |what| wrong.push(what));
        integrity(report, &mut |what| wrong.push(what));
        if report.exit != Exit::Code(0) || report.processes.len() != 1 {
            wrong.push(format!("{:?}, {} processes", report.exit, report.processes.len()));
        }
        if !wrong.is_empty() {
            return Err(format!("{name} {number}: {}", wrong.join("\n")).into());
        }
    }
    Ok(())
}

fn failures() -> Result<(), Failed> {
    let cluster = Cluster::of(Arch::Wormhole, 8).ok_or("no cluster")?;
    let run = scenario("0.81.1", cluster, &["failures", "1"], |_| {});
    let devices = &run.report().devices;
    assert_eq!(devices.len(), 8);
    for device in devices {
        for memory in &device.memory {
            let expected = match memory.kind {
                MemoryType::Dram | MemoryType::L1 => 2,
                _ => 0,
            };
            assert_eq!(memory.failed, expected, "{} of chip {}", memory.kind, device.chip);
        }
    }
    Ok(())
}

/// Buffers of a capture that dispatches nothing are neither allocations nor placements.
fn planned() -> Result<(), Failed> {
    for (release, _) in RELEASES {
        let cluster = Cluster::of(Arch::Wormhole, 8).ok_or("no cluster")?;
        let run = scenario(release, cluster, &["planned", "0"], |_| {});
        let report = run.report();
        assert_eq!(report.integrity.external_placements, 0, "{release}");
        assert_eq!(report.devices[0].memory[0].allocations, 1, "{release}");
    }
    Ok(())
}

/// The scenario leaves two tensors in DRAM and one in L1 when the device closes, on every chip.
fn left_at_close() -> Result<(), Failed> {
    for (release, _) in RELEASES {
        let cluster = Cluster::of(Arch::Blackhole, 8).ok_or("no cluster")?;
        let run = scenario(release, cluster, &["reopening", "1"], |_| {});
        assert_eq!(run.report().devices.len(), 8);
        for device in &run.report().devices {
            for memory in &device.memory {
                let expected = match memory.kind {
                    MemoryType::Dram => 2,
                    MemoryType::L1 => 1,
                    _ => 0,
                };
                let left = memory.live_at_close.map(|left| left.buffers);
                assert_eq!(left, Some(expected), "{release}: {} of {}", memory.kind, device.chip);
                assert_eq!(memory.live.buffers, 0);
                assert_eq!(memory.released, expected);
                assert_eq!(memory.allocations, memory.frees + memory.released);
            }
        }
    }
    Ok(())
}

/// The allocators are asked at every close and every failure, say what the books say, and what they say
/// of their room is what `get_memory_view` says.
fn reconciled(release: &str) -> Result<(), Failed> {
    for (arch, chips) in CLUSTERS.into_iter().filter(|&(_, chips)| chips < 32) {
        let cluster = Cluster::of(arch, chips).ok_or("no cluster")?;
        let (rows, columns) = (cluster.rows.to_string(), cluster.columns.to_string());
        let arguments = [CLOSING, &rows, &columns].map(OsStr::new);
        let run = run_python_with(&[], &runtime(release), cluster, &arguments, |_| {});
        let said = printed(&run)?;
        let [said] = said.as_slice() else { return Err(run.describe().into()) };
        let report = run.report();
        let found = &report.integrity.reconciled;
        let failures = said["failures"].as_array().ok_or("no failures")?;
        let in_threads = number(&said["in_threads"]);
        let alone = number(&said["closed"]) + failures.len() as u64;
        let at = format!("{release} on {chips} of {arch:?}: {found:?}");
        assert_eq!(found.compared + found.skipped, alone + in_threads, "{at}");
        assert_eq!((found.agreed, found.differed), (found.compared, 0), "{at}");
        // Only what happened while two threads allocated may be skipped.
        assert!(found.compared >= alone, "{at}");
        assert!(report.integrity.complete, "{:?}", report.integrity.problems);
        assert_eq!(report.failures.len() as u64, failures.len() as u64 + in_threads);
        for (ours, theirs) in report.failures.iter().zip(failures) {
            let said =
                (theirs["type"].as_str(), number(&theirs["free"]), number(&theirs["largest"]));
            let kind = ours.kind.to_string();
            let rooms = (ours.free_bytes_per_bank, ours.largest_free_block_per_bank);
            assert_eq!((Some(&*kind), rooms), (said.0, (Some(said.1), Some(said.2))), "{at}");
        }
    }
    Ok(())
}

fn cross_checked(
    release: &str,
    scenario: [&str; 2],
    prepare: impl FnOnce(&mut Command),
) -> Result<(Run, CrossCheck), Failed> {
    let cluster = Cluster::of(Arch::Wormhole, 8).ok_or("no cluster")?;
    let run = workload(SCENARIOS, &["--cross-check"], release, cluster, &scenario, prepare);
    let check = run.report().integrity.cross_check.clone().ok_or("no cross-check")?;
    Ok((run, check))
}

/// The runtime's own counters say the same, but where they are known not to.
fn cross_check(release: &str) -> Result<(), Failed> {
    // Two types of memory on eight chips, open at the end; the second after ops and their programs.
    for scenario in [["interleaved", "1"], ["ops", "3"], ["interleaved", "3"]] {
        let (run, check) = cross_checked(release, scenario, |_| {})?;
        let counts = (check.state, check.compared, check.agreed, check.differed);
        assert_eq!(counts, (CrossCheckState::Compared, 16, 16, 0), "{scenario:?}: {check:?}");
        assert!(run.report().devices.iter().all(|device| device.memory[0].live.bytes > 0));
        let said = "ttalloc: cross-check: 16 of 16 figures agree with tt-metal's own counters";
        assert!(run.stderr().contains(said), "{}", run.stderr());
    }
    // A process that has closed its devices has given its counters back.
    let (run, check) = cross_checked(release, ["reopening", "1"], |_| {})?;
    assert_eq!((check.compared, check.agreed), (16, 16), "{check:?}");
    assert!(run.report().devices.iter().all(|device| device.memory[0].live.bytes == 0));
    // Planned buffers are counted, and what a submesh leaves behind.
    for (scenario, reason) in
        [(["planned", "0"], "only planned"), (["submeshes", "3"], "all at once")]
    {
        let (run, check) = cross_checked(release, scenario, |_| {})?;
        assert!(check.differed > 0, "{scenario:?}: {check:?}");
        assert_eq!(check.differences.len() as u64, check.differed);
        for one in &check.differences {
            assert!(one.counter_bytes > one.bytes, "{one:?}");
            assert!(one.reasons.iter().any(|why| why.contains(reason)), "{one:?}");
        }
        assert!(run.stderr().contains("ttalloc: cross-check: process"), "{}", run.stderr());
        assert!(run.report().integrity.complete, "the books are not doubted for it");
    }
    Ok(())
}

/// Where there are no counters, that is said.
fn no_counters() -> Result<(), Failed> {
    let off = |command: &mut Command| {
        command.env("TT_METAL_SHM_TRACKING_DISABLED", "1");
    };
    let runs = [
        cross_checked("0.66.0", ["interleaved", "1"], |_| {})?,
        cross_checked("0.81.1", ["interleaved", "1"], off)?,
    ];
    for (run, check) in runs {
        assert_eq!((check.state, check.compared), (CrossCheckState::Unavailable, 0), "{check:?}");
        let [reason] = &*check.reasons else { return Err(format!("{check:?}").into()) };
        assert!(reason.contains("no counters on chips [0, 1, 2, 3, 4, 5, 6, 7]"), "{reason}");
        assert!(run.stderr().contains(&format!("ttalloc: cross-check: {reason}")));
    }
    Ok(())
}

/// On a mesh a tensor costs a record to allocate and one to free, however many chips it lies on; and so
/// does a program for what it is made of, each time it runs and when it ends.
fn two_records_a_tensor() -> Result<(), Failed> {
    let events = |chips: u32, release: &str| -> Result<(u64, u64), Failed> {
        let cluster = Cluster::of(Arch::Wormhole, chips).ok_or("no cluster")?;
        let run = scenario(release, cluster, &["mixed", "1"], |_| {});
        let report = run.report();
        let memory = report.devices[0].memory.iter();
        let pairs = memory.map(|memory| memory.allocations + memory.frees + memory.failed);
        let hooks = &report.processes[0].runtime.as_ref().ok_or("no runtime")?.hooks;
        let of_programs = hooks.iter().map(|hook| match &*hook.role {
            "add_kernel" | "add_circular_buffer" | "enlist" | "enqueue" | "program_end" => {
                hook.calls.unwrap_or(0)
            }
            _ => 0,
        });
        Ok((report.integrity.events, pairs.sum::<u64>() + of_programs.sum::<u64>()))
    };
    for (release, _) in RELEASES {
        let ((one, expected), (many, same)) = (events(1, release)?, events(8, release)?);
        // Some programs are one for each chip in 0.66.0.
        assert!(same >= expected && same - expected < 100, "{release}: {expected}, {same}");
        // Beside these there are a few records of the process, its devices and its allocators.
        assert!(many - same < 100, "{release}: {many} records instead of {same}");
        assert!(one - expected < 100, "{release}: {one} records instead of {expected}");
    }
    Ok(())
}

/// However a program ends, its report says what the runtime said last.
fn ends(release: &str) -> Result<(), Failed> {
    let cluster = Cluster::of(Arch::Wormhole, 8).ok_or("no cluster")?;
    let signal = |name: &str| Exit::Signal(name.to_owned());
    // When Python ends, later releases close the devices whoever still holds them.
    let by_python = release != "0.66.0";
    for (name, exit, closes) in [
        ("_exit", Exit::Code(5), false),
        ("return", Exit::Code(0), by_python),
        ("exit", Exit::Code(4), by_python),
        ("exception", Exit::Code(1), by_python),
        ("aborted", signal("SIGABRT"), false),
        ("killed", signal("SIGKILL"), false),
    ] {
        let run = workload(ENDINGS, &[], release, cluster, &[name], |_| {});
        let said = printed(&run)?;
        let [books] = said.as_slice() else { return Err(run.describe().into()) };
        let report = run.report();
        let mut wrong = Vec::new();
        if report.exit != exit || report.processes.len() != 1 {
            wrong.push(format!("{:?}, {} processes", report.exit, report.processes.len()));
        }
        if closes {
            compare_closed(report, books, &mut |what| wrong.push(what));
        } else {
            compare(report, report.processes[0].pid, books, &mut |what| wrong.push(what));
        }
        integrity(report, &mut |what| wrong.push(what));
        if !wrong.is_empty() {
            return Err(format!("{name}: {}\n{}", wrong.join("\n"), run.stderr()).into());
        }
    }
    Ok(())
}

/// Holds what was left when the devices closed, as they do when Python ends, against what the runtime said
/// before that.
fn compare_closed(report: &Report, books: &Value, wrong: &mut dyn FnMut(String)) {
    let memory = books["memory"].as_object().expect("the books have memory");
    if report.devices.len() != memory.len() {
        wrong(format!("{} chips instead of {}", report.devices.len(), memory.len()));
    }
    for device in &report.devices {
        for memory in &device.memory {
            let (chip, kind) = (device.chip.to_string(), memory.kind.to_string());
            let expected = Some(number(&books["memory"][&chip][&kind]));
            let left = memory.live_at_close.map(|left| left.bytes_per_bank);
            if left != expected || memory.live.bytes_per_bank != 0 {
                wrong(format!("{memory:?} of chip {chip}, the runtime says {expected:?}"));
            }
        }
    }
}

/// A child that is forked with an open device has books of its own, if it uses it.
fn forks(release: &str) -> Result<(), Failed> {
    let cluster = Cluster::of(Arch::Wormhole, 8).ok_or("no cluster")?;
    for (name, processes, inherited_frees) in [("child_exits", 1, 0), ("forked", 2, 1)] {
        let run = workload(ENDINGS, &[], release, cluster, &[name], |_| {});
        let said = printed(&run)?;
        let report = run.report();
        let mut wrong = Vec::new();
        for books in &said {
            let pid = number(&books["pid"]) as u32;
            compare(report, pid, books, &mut |what| wrong.push(format!("{pid}: {what}")));
        }
        let tracked = report.processes.iter().filter(|process| process.runtime.is_some()).count();
        if (said.len(), report.processes.len(), tracked) != (processes, processes, processes) {
            wrong.push(format!("{said:?} from {:?}", report.processes));
        }
        let found = &report.integrity;
        if !found.complete || (found.inherited_frees, found.unknown_frees) != (inherited_frees, 0) {
            wrong.push(format!("{found:?}"));
        }
        if !wrong.is_empty() {
            return Err(format!("{name}: {}\n{}", wrong.join("\n"), run.stderr()).into());
        }
    }
    Ok(())
}

/// Two processes that use the same chips at once, each with what the runtime told it.
fn two_processes(release: &str) -> Result<(), Failed> {
    let cluster = Cluster::of(Arch::Wormhole, 8).ok_or("no cluster")?;
    let run = workload(ENDINGS, &[], release, cluster, &["two"], |_| {});
    let said = printed(&run)?;
    let report = run.report();
    let mut wrong = Vec::new();
    for books in &said {
        let pid = number(&books["pid"]) as u32;
        compare(report, pid, books, &mut |what| wrong.push(format!("{pid}: {what}")));
    }
    integrity(report, &mut |what| wrong.push(what));
    let dram = |books: &Value| books["memory"]["0"]["DRAM"].clone();
    if said.len() != 2 || dram(&said[0]) == dram(&said[1]) {
        wrong.push(format!("{said:?}"));
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

fn printed(run: &Run) -> Result<Vec<Value>, Failed> {
    let parse = |line: &str| serde_json::from_str(line).map_err(|why| format!("{why}: {line}"));
    let lines = run.stdout();
    let lines = lines.lines().filter(|line| line.starts_with('{'));
    Ok(lines.map(parse).collect::<Result<_, _>>()?)
}

/// Holds the report's figures for `pid` against what the runtime said.
fn compare(report: &Report, pid: u32, books: &Value, wrong: &mut dyn FnMut(String)) {
    let devices = || report.devices.iter().filter(|device| device.pid == pid);
    let memory = books["memory"].as_object().expect("the books have memory");
    for chip in memory.keys() {
        if !devices().any(|device| device.chip.to_string() == *chip) {
            wrong(format!("chip {chip} is missing"));
        }
    }
    for device in devices() {
        let chip = device.chip.to_string();
        // What lies in the chip's own allocator, on single cores: none of it is in a mesh's books.
        let alone = &books["per_core"][&chip];
        let said = memory.get(&chip);
        for memory in &device.memory {
            let (kind, live) = (memory.kind, memory.live);
            let expected = said.map_or(0, |said| number(&said[kind.to_string()]));
            if live.bytes_per_bank != expected {
                wrong(format!(
                    "{kind} of chip {chip}: {} bytes per bank, the runtime says {expected}",
                    live.bytes_per_bank
                ));
            }
            let mut expected = expected * u64::from(memory.banks);
            if kind == MemoryType::L1 {
                expected += alone["bytes"].as_u64().unwrap_or(0);
            }
            if live.reserved_bytes != expected {
                wrong(format!(
                    "{kind} of chip {chip}: {live:?} over {} banks, the runtime says {expected}",
                    memory.banks
                ));
            }
            let capacity = &books["capacity"][&chip][kind.to_string()];
            if capacity.as_u64().is_some_and(|capacity| capacity != memory.bank_bytes_now) {
                wrong(format!(
                    "{kind} of chip {chip}: {} bytes in a bank, the runtime says {capacity}",
                    memory.bank_bytes_now
                ));
            }
        }
    }
    if let Some(buffers) = books["buffers"].as_array() {
        compare_places(report, pid, buffers, &books["per_core"], wrong);
    }
}

/// Holds the report's live buffers against the runtime's list, and the number of those on single cores,
/// which aren't in that.
fn compare_places(
    report: &Report,
    pid: u32,
    buffers: &[Value],
    per_core: &Value,
    wrong: &mut dyn FnMut(String),
) {
    let mut places: BTreeMap<(BTreeSet<i32>, String, u64), usize> = BTreeMap::new();
    let mut on_chip: BTreeMap<(i32, String), u64> = BTreeMap::new();
    for buffer in buffers {
        let kind = buffer["type"].as_str().expect("a type").to_owned();
        // A mesh that is reshaped may have its chips in another order afterwards.
        let chips = buffer["chips"].as_array().expect("chips").iter();
        let chips: BTreeSet<_> = chips.map(|chip| number(chip) as i32).collect();
        let place = (chips, kind.clone(), number(&buffer["address"]));
        *places.entry(place).or_default() += 1;
        for chip in buffer["chips"].as_array().expect("chips") {
            *on_chip.entry((number(chip) as i32, kind.clone())).or_default() += 1;
        }
    }
    let alone = |chip: i32| number(&per_core[chip.to_string()]["buffers"]);
    for device in report.devices.iter().filter(|device| device.pid == pid) {
        for memory in &device.memory {
            let (chip, kind) = (device.chip, memory.kind);
            let mut expected = on_chip.get(&(chip, kind.to_string())).copied().unwrap_or(0);
            if kind == MemoryType::L1 && per_core.is_object() {
                expected += alone(chip);
            }
            if memory.live.buffers != expected {
                wrong(format!(
                    "{kind} of chip {chip}: {} buffers, the runtime says {expected}",
                    memory.live.buffers
                ));
            }
        }
    }
    let mut others: BTreeMap<i32, u64> = BTreeMap::new();
    for buffer in report.live_buffers.iter().filter(|buffer| buffer.pid == pid) {
        let place =
            (buffer.chips.iter().copied().collect(), buffer.kind.to_string(), buffer.address);
        match (places.get_mut(&place), buffer.chips.as_slice()) {
            (Some(count), _) if *count > 0 => *count -= 1,
            (_, &[chip]) if per_core.is_object() => *others.entry(chip).or_default() += 1,
            _ => wrong(format!("a live buffer that the runtime does not have: {place:?}")),
        }
    }
    for (chip, count) in others {
        if count != alone(chip) {
            wrong(format!("{count} buffers on cores of chip {chip} instead of {}", alone(chip)));
        }
    }
    for (place, count) in places.into_iter().filter(|&(_, count)| count > 0) {
        wrong(format!("{count} live buffers are missing at {place:?}"));
    }
}

/// What a program lays out on which cores: address, bytes on each core, and the cores.
type Layout = BTreeSet<(u64, u64, BTreeSet<(u64, u64)>)>;

/// The report's programs against what the runtime says of the same: by graph capture, and in the
/// exceptions with which it refuses programs that clash with a tensor.
fn agrees_on_programs(release: &str, cluster: Cluster) -> Result<(), Failed> {
    let run = on_hardware(PROGRAMS, release, cluster, &[], |_| {})?;
    if !run.output.status.success() {
        return Err(run.describe().into());
    }
    let said = printed(&run)?;
    let report = run.report();
    let l1: Vec<_> = said.iter().filter_map(|line| line["l1"].as_array()).flatten().collect();
    let mut wrong = Vec::new();
    let (mut runs, mut largest, mut headroom, mut all_known) = (0, 0, i64::MAX, true);
    let refusals = said.iter().filter(|line| line["run"] == "again");
    for again in refusals {
        let op = &again["op"];
        let of = |run: &str| {
            let mut lines = said.iter().filter(|line| line["op"] == *op && line["run"] == run);
            lines.next().ok_or(format!("{op} has no {run} run"))
        };
        let (first, cached) = (of("first")?, of("cached")?);
        let dispatched = [first, cached].map(|line| number(&line["dispatched"]));
        runs += dispatched[0] + dispatched[1];
        let layout = layout_said(first);
        let mut end = layout.iter().map(|(address, bytes, _)| address + bytes).max();
        let mut tell = |what: String| wrong.push(format!("{op}: {what}"));
        let clash = &again["clash"];
        if clash.is_object() {
            let id = number(&clash["program"]);
            let Some(program) = report.programs.iter().find(|program| program.id == Some(id))
            else {
                tell(format!("program {id} is missing"));
                continue;
            };
            let its = layout_of(program);
            let its_end = its.iter().map(|(address, bytes, _)| address + bytes).max();
            let said_end = clash["region_end"].as_u64();
            if program.region_end_address != said_end || its_end != said_end {
                let found = program.region_end_address;
                tell(format!("ends at {found:?}, {its_end:?}, the runtime says {said_end:?}"));
            }
            let kind = match clash["kind"].as_str() {
                Some("dataflow") => BufferKind::DataflowBuffer,
                _ => BufferKind::CircularBuffer,
            };
            if program.circular_buffers.iter().any(|buffer| buffer.kind != kind) {
                tell(format!("not all of kind {kind:?}"));
            }
            let cores: BTreeSet<_> = its.iter().flat_map(|(.., cores)| cores).copied().collect();
            if !cores_said(&clash["cores"]).is_subset(&cores) {
                tell(format!("on cores {cores:?}, the runtime says {}", clash["cores"]));
            }
            if program.refused != 1 {
                tell(format!("refused {} times instead of once", program.refused));
            }
            // A program that was made anew never ran.
            if program.runs != 0 {
                end = end.max(said_end);
                if program.runs != 2 {
                    tell(format!("{} runs instead of 2", program.runs));
                }
                if !layout.is_empty() && dispatched[0] == 1 && its != layout {
                    tell(format!("{its:?}, the runtime says {layout:?}"));
                }
            }
        } else if again["refused"].is_null() {
            runs += dispatched[1];
        }
        if !layout.is_empty() {
            let like =
                |program: &&Program| program.runs > 0 && layout_of(program).is_subset(&layout);
            let found = report.programs.iter().filter(like).flat_map(layout_of);
            if found.collect::<Layout>() != layout {
                tell(format!("no programs with {layout:?}"));
            }
        }
        // What is refused by the op itself, and has no circular buffers to capture, is known to nobody.
        all_known &= again["refused"].is_null() || !layout.is_empty();
        if let Some(end) = end {
            largest = largest.max(end);
            for line in [first, cached] {
                headroom = headroom.min(number(&line["lowest"]).cast_signed() - end.cast_signed());
            }
        }
    }
    let found = report.programs.iter().map(|program| program.runs).sum::<u64>();
    if found != runs {
        wrong.push(format!("{found} runs, the runtime says {runs}"));
    }
    for device in &report.devices {
        let programs = device.circular_buffers.as_ref().ok_or("no programs on a chip")?;
        let found = programs.largest.as_ref().map_or(0, |region| region.end_address);
        if found < largest || all_known && found != largest {
            wrong.push(format!("largest region ends at {found}, the runtime says {largest}"));
        }
        let here =
            report.programs.iter().filter(|one| one.runs > 0 && one.chips.contains(&device.chip));
        let (objects, runs) =
            here.fold((0, 0), |(objects, runs), one| (objects + one.objects, runs + one.runs));
        if (programs.programs, programs.runs) != (objects, runs) {
            wrong.push(format!("{programs:?} instead of {objects} programs in {runs} runs"));
        }
        let below = device.reserved.as_ref().map_or(0, |reserved| reserved.l1_below_bytes);
        let bytes = programs.largest.as_ref().map_or(0, |region| region.bytes);
        if below == 0 || below + bytes != found {
            wrong.push(format!("a region of {bytes} bytes above {below} ends at {found}"));
        }
        let found = programs.headroom.as_ref().map_or(i64::MAX, |headroom| headroom.bytes);
        if found > headroom || all_known && found != headroom {
            wrong.push(format!("headroom of {found} bytes, the runtime says {headroom}"));
        }
    }
    let views: Vec<_> = report
        .programs
        .iter()
        .flat_map(|program| &program.circular_buffers)
        .filter(|buffer| buffer.kind == BufferKind::GlobalCircularBuffer)
        .collect();
    if views.len() < 3 {
        wrong.push(format!("{} circular buffers in tensors' memory", views.len()));
    }
    for view in views {
        if !l1.iter().any(|address| address.as_u64() == view.address) {
            wrong.push(format!("{view:?} is in no tensor's memory: {l1:?}"));
        }
    }
    integrity(report, &mut |what| wrong.push(what));
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// What a program of the report takes for itself.
fn layout_of(program: &Program) -> Layout {
    let own = program.circular_buffers.iter().filter_map(|buffer| {
        let ranges = buffer.core_ranges.iter().map(|range| range.map(u64::from));
        let cores: BTreeSet<_> = ranges.flat_map(cores_in).collect();
        let is_view = buffer.kind == BufferKind::GlobalCircularBuffer;
        (!is_view).then_some((buffer.address?, buffer.bytes_per_core, cores))
    });
    own.collect()
}

/// What a graph capture told.
fn layout_said(line: &Value) -> Layout {
    let buffers = line["circular_buffers"].as_array().expect("circular buffers").iter();
    let own = buffers.filter(|buffer| buffer["view"] == false);
    let own = own.map(|buffer| {
        (number(&buffer["address"]), number(&buffer["bytes"]), cores_said(&buffer["cores"]))
    });
    own.collect()
}

fn cores_said(ranges: &Value) -> BTreeSet<(u64, u64)> {
    let ranges = ranges.as_array().expect("ranges").iter();
    let ranges = ranges.map(|range| [0, 1, 2, 3].map(|at| number(&range[at])));
    ranges.flat_map(cores_in).collect()
}

fn cores_in([left, top, right, bottom]: [u64; 4]) -> impl Iterator<Item = (u64, u64)> {
    (left..=right).flat_map(move |x| (top..=bottom).map(move |y| (x, y)))
}

fn integrity(report: &Report, wrong: &mut dyn FnMut(String)) {
    let found = &report.integrity;
    let all = found.unknown_frees + found.dropped + found.torn + found.bad_records;
    if !found.complete || all + found.unattributed + found.inherited_frees != 0 {
        wrong(format!("{found:?}"));
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a number")
}
