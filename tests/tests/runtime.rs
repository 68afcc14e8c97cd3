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
use ttalloc::report::{CrossCheck, CrossCheckState, Exit, Program, Report};
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
const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/programs.py");
const CLOSING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/closing.py");
/// How many checkpoints the scenarios have together.
const CHECKPOINTS: usize = 42;

const HARDWARE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/hardware.py");
/// The scenarios of that, and how many checkpoints each has.
const ON_HARDWARE: [(&str, usize); 8] = [
    ("programs", 7),
    ("leaks", 6),
    ("traces", 6),
    ("sub_devices", 8),
    ("captures", 8),
    ("l1_small", 5),
    ("families", 6),
    ("no_events", 10),
];
/// The one that needs the mode HYBRID, which there is from 0.70.1 on.
const PER_CORE: (&str, usize) = ("per_core", 7);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = available().err();
    if let Some(why) = &missing {
        eprintln!("\nTHE TESTS ON THE REAL RUNTIME ARE IGNORED: {why}\n");
    }
    let trials = cases().into_iter().map(|trial| trial.with_ignored_flag(missing.is_some()));
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn cases() -> Vec<Trial> {
    let mut cases = Vec::new();
    for (release, era) in RELEASES {
        for (arch, chips) in CLUSTERS {
            for counters in [true, false] {
                let Some(cluster) = Cluster::of(arch, chips) else { continue };
                let with = if counters { "counters" } else { "no_counters" };
                let name = format!("equal::{release}::{arch:?}_{chips}::{with}").to_lowercase();
                let case = move || agrees_with_the_runtime(release, era, cluster, counters);
                cases.push(Trial::test(name, case));
            }
        }
    }
    for (release, era) in RELEASES {
        for (arch, chips) in CLUSTERS {
            let Some(cluster) = Cluster::of(arch, chips) else { continue };
            let name = format!("hardware::{release}::{arch:?}_{chips}").to_lowercase();
            cases.push(Trial::test(name, move || agrees_on_hardware(release, era, cluster)));
            if release != "0.66.0" {
                let name = format!("per_core::{release}::{arch:?}_{chips}").to_lowercase();
                cases.push(Trial::test(name, move || agrees_per_core(release, era, cluster)));
            }
        }
    }
    for (release, _) in RELEASES {
        for (arch, chips) in CLUSTERS {
            let Some(cluster) = Cluster::of(arch, chips) else { continue };
            let name = format!("programs::{release}::{arch:?}_{chips}").to_lowercase();
            cases.push(Trial::test(name, move || programs_as_captured(release, cluster)));
        }
    }
    for (release, _) in RELEASES {
        let case = move || reconciled(release);
        cases.push(Trial::test(format!("reconciled::{release}"), case));
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
    release: &str,
    cluster: Cluster,
    arguments: &[&str],
    prepare: impl FnOnce(&mut Command),
) -> Result<Run, Failed> {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = hardware::library(&Compiler::find()?, cache);
    Ok(workload(HARDWARE, &[], release, cluster, arguments, |command| {
        command.env("LD_PRELOAD", library);
        prepare(command);
    }))
}

fn agrees_with_the_runtime(
    release: &str,
    era: &str,
    cluster: Cluster,
    counters: bool,
) -> Result<(), Failed> {
    let run = scenario(release, cluster, &["all"], |command| {
        if !counters {
            command.env("TT_METAL_SHM_TRACKING_DISABLED", "1");
        }
    });
    agrees(&run, era, CHECKPOINTS)
}

fn agrees_on_hardware(release: &str, era: &str, cluster: Cluster) -> Result<(), Failed> {
    let names: Vec<_> = ON_HARDWARE.iter().map(|(name, _)| *name).collect();
    let run = on_hardware(release, cluster, &[&["all"], names.as_slice()].concat(), |_| {})?;
    agrees(&run, era, ON_HARDWARE.iter().map(|(_, checkpoints)| checkpoints).sum())
}

fn agrees_per_core(release: &str, era: &str, cluster: Cluster) -> Result<(), Failed> {
    let (name, checkpoints) = PER_CORE;
    let run = on_hardware(release, cluster, &["all", name], |command| {
        command.env("TT_METAL_ALLOCATOR_MODE_HYBRID", "1");
    })?;
    agrees(&run, era, checkpoints)
}

/// Holds a run against all that it printed, `checkpoints` lines.
fn agrees(run: &Run, era: &str, checkpoints: usize) -> Result<(), Failed> {
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

/// A circular buffer in the words of both sides: its address, bytes on each core, and cores.
type Laid = (u64, u64, Vec<[u16; 4]>);

/// What programs lay out, where they ran and when they were refused is what graph capture and the
/// runtime's own error messages say.
fn programs_as_captured(release: &str, cluster: Cluster) -> Result<(), Failed> {
    let run = workload(PROGRAMS, &[], release, cluster, &[], |_| {});
    let said = printed(&run)?;
    let report = run.report();
    integrity(report, &mut |what| panic!("{what}"));
    let laid = |program: &Program, kind: BufferKind| -> Vec<Laid> {
        let of_kind = program.circular_buffers.iter().filter(|one| one.kind == kind);
        let mut laid: Vec<_> = of_kind
            .map(|one| (one.address.unwrap_or(0), one.bytes_per_core, one.core_ranges.clone()))
            .collect();
        laid.sort();
        laid
    };
    let mut seen = BTreeSet::new();
    let (mut runs, mut clashes, mut kinds) = (0, 0, BTreeSet::new());
    for line in said.iter().filter(|line| line["run"] == "first") {
        let op = &line["op"];
        let of = |run: &str| {
            let line = said.iter().find(|line| line["op"] == *op && line["run"] == run);
            line.unwrap_or_else(|| panic!("{op} has no {run} run"))
        };
        let again = of("again");
        let cached = number(&of("cached")["dispatched"]);
        let ran_again = again["clash"].is_null() && again["refused"].is_null();
        runs += number(&line["dispatched"]) + cached + if ran_again { cached } else { 0 };

        // Its circular buffers, on each chip, are those of a program, or of several that are the same.
        let mut by_chip: BTreeMap<i64, Vec<Laid>> = BTreeMap::new();
        for one in line["circular_buffers"].as_array().ok_or("no circular buffers")? {
            let cores =
                serde_json::from_value(one["cores"].clone()).map_err(|why| why.to_string())?;
            let place = (number(&one["address"]), number(&one["bytes"]), cores);
            seen.insert(place.clone());
            by_chip.entry(one["chip"].as_i64().ok_or("no chip")?).or_default().push(place);
        }
        for (chip, mut places) in by_chip {
            places.sort();
            let is_so = |program: &Program| {
                let one = laid(program, BufferKind::CircularBuffer);
                let times = places.len().checked_div(one.len()).unwrap_or(0);
                let mut expected: Vec<_> = (0..times).flat_map(|_| one.clone()).collect();
                expected.sort();
                times > 0 && expected == places
            };
            assert!(report.programs.iter().any(is_so), "{op} on chip {chip}: {places:?}");
        }

        let clash = &again["clash"];
        if !clash.is_null() {
            clashes += 1;
            kinds.insert(clash["kind"].to_string());
            let id = number(&clash["program"]);
            let program = report.programs.iter().find(|program| program.id == Some(id));
            let program = program.ok_or_else(|| format!("{op}: no program {id}"))?;
            let cores: Vec<[u16; 4]> =
                serde_json::from_value(clash["cores"].clone()).map_err(|why| why.to_string())?;
            let ends = program.circular_buffers.iter().filter_map(|one| {
                let meets = |a: &[u16; 4]| cores.iter().any(|b| intersect(*a, *b));
                let is_there = one.kind != BufferKind::GlobalCircularBuffer
                    && one.core_ranges.iter().any(meets);
                one.address.filter(|_| is_there).map(|address| address + one.bytes_per_core)
            });
            assert_eq!(ends.max(), clash["region_end"].as_u64(), "{op}: {program:?}");
            assert!(program.refused > 0, "{op}: {program:?}");
        }
    }
    let chips = u64::from(cluster.rows) * u64::from(cluster.columns);
    // Capture does not see a program that was refused outside it, nor, from 0.72.0 on, what is laid out on
    // other threads: programs for parts of a mesh.
    let is_captured = |program: &&Program| program.runs > 0 && program.chips.len() as u64 == chips;
    let of = |programs: &mut dyn Iterator<Item = &Program>| -> BTreeSet<Laid> {
        programs.flat_map(|program| laid(program, BufferKind::CircularBuffer)).collect()
    };
    let all = of(&mut report.programs.iter());
    let captured = of(&mut report.programs.iter().filter(is_captured));
    let unknown: Vec<_> = seen.difference(&all).collect();
    let unseen: Vec<_> = captured.difference(&seen).collect();
    assert_eq!((unknown, unseen), (vec![], vec![]), "circular buffers of all programs");
    assert_eq!(report.programs.iter().map(|program| program.runs).sum::<u64>(), runs);
    assert!(clashes >= 3, "{clashes} clashes");
    // Some of these ops have dataflow buffers where there are any.
    let has_dataflow =
        report.programs.iter().any(|program| !laid(program, BufferKind::DataflowBuffer).is_empty());
    assert!(has_dataflow || !kinds.contains("\"dataflow\""), "{kinds:?}");
    assert!(has_dataflow || release == "0.66.0");

    // Views lie over buffers that are there; the lowest buffer is the runtime's.
    let live = || report.live_buffers.iter().filter(|one| one.kind == MemoryType::L1);
    let views: Vec<Laid> = report
        .programs
        .iter()
        .flat_map(|program| laid(program, BufferKind::GlobalCircularBuffer))
        .collect();
    assert!(!views.is_empty());
    for view in views {
        assert!(live().any(|one| one.address == view.0), "{view:?} lies over nothing");
    }
    let lowest = said.iter().find_map(|line| line["lowest_buffer"].as_u64());
    assert_eq!(live().map(|one| one.address).min(), lowest);

    assert_eq!(report.devices.len() as u64, chips);
    for device in &report.devices {
        let found = device.circular_buffers.as_ref().ok_or("no programs on a chip")?;
        let here = || {
            report.programs.iter().filter(|one| one.chips.contains(&device.chip) && one.runs > 0)
        };
        assert_eq!(found.programs, here().map(|_| 1).sum::<u64>());
        let largest = found.largest.as_ref().ok_or("no region")?;
        assert_eq!(
            Some(largest.end_address),
            here().filter_map(|one| one.region_end_address).max()
        );
        let reserved = device.reserved.as_ref().ok_or("no reserved memory")?;
        assert_eq!(largest.bytes, largest.end_address - reserved.l1_below_bytes);
        let headroom = found.headroom.as_ref().ok_or("no headroom")?;
        let lowest = headroom.lowest_buffer_address.ok_or("no buffer in L1")?;
        assert_eq!(headroom.bytes, lowest as i64 - headroom.region_end_address as i64);
        assert!(headroom.bytes >= 0, "tt-metal would have refused it: {headroom:?}");
    }
    Ok(())
}

fn intersect(a: [u16; 4], b: [u16; 4]) -> bool {
    a[0] <= b[2] && b[0] <= a[2] && a[1] <= b[3] && b[1] <= a[3]
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

/// On a mesh a tensor costs a record to allocate and one to free, however many chips it lies on.
fn two_records_a_tensor() -> Result<(), Failed> {
    let events = |chips: u32, release: &str| -> Result<(u64, u64), Failed> {
        let cluster = Cluster::of(Arch::Wormhole, chips).ok_or("no cluster")?;
        let run = scenario(release, cluster, &["mixed", "1"], |_| {});
        let report = run.report();
        let memory = report.devices[0].memory.iter();
        let pairs = memory.map(|memory| memory.allocations + memory.frees + memory.failed).sum();
        Ok((report.integrity.events, pairs))
    };
    for (release, _) in RELEASES {
        let ((one, pairs), (many, same)) = (events(1, release)?, events(8, release)?);
        assert_eq!(pairs, same);
        // Beside the pairs there are a few records of the process, its devices and its allocators.
        assert!(many - same < 100, "{release}: {many} records for {same} allocations and frees");
        assert!(one - pairs < 100, "{release}: {one} records for {pairs} allocations and frees");
    }
    Ok(())
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
            let capacity = books["capacity"][&chip][kind.to_string()].as_u64();
            if capacity.is_some_and(|capacity| capacity != memory.bank_bytes_now) {
                wrong(format!(
                    "{kind} of chip {chip}: {} bytes in a bank, the runtime says {capacity:?}",
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
