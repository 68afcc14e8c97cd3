//! ttalloc's figures against the real runtime's own, at every checkpoint of every scenario.
//!
//! A case is a release on a cluster of mock chips. It runs `workloads/scenarios.py` under `ttalloc-run`,
//! which ends in a forked process at each checkpoint, after it printed what the runtime says. The
//! report's figures for that process must be the same.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;
use ttalloc::demo::cluster::{Arch, Cluster};
use ttalloc::ledger::MemoryType;
use ttalloc::report::{Exit, HookEngine, Report};
use ttalloc_tests::Run;
use ttalloc_tests::real::{available, run_python, runtime};

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
/// How many checkpoints the scenarios have together.
const CHECKPOINTS: usize = 42;

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
    let (rows, columns) = (cluster.rows.to_string(), cluster.columns.to_string());
    let all = [&[SCENARIOS, &rows, &columns], arguments].concat();
    let all: Vec<_> = all.into_iter().map(OsStr::new).collect();
    run_python(&runtime(release), cluster, &all, prepare)
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
    if !run.output.status.success() {
        return Err(run.describe().into());
    }
    let said = checkpoints(&run)?;
    if said.len() != CHECKPOINTS {
        return Err(format!("{} checkpoints instead of {CHECKPOINTS}", said.len()).into());
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
        let expected = if engine == "inline" { HookEngine::Inline } else { HookEngine::Preload };
        let hooks = process.and_then(|process| Some(&process.runtime.as_ref()?.hooks));
        for hook in hooks.into_iter().flatten().filter(|hook| hook.engine != expected) {
            wrong.push(format!("{at}: {hook:?}"));
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
        let said = checkpoints(&run)?;
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

fn checkpoints(run: &Run) -> Result<Vec<Value>, Failed> {
    let parse = |line: &str| serde_json::from_str(line).map_err(|why| format!("{why}: {line}"));
    let lines = run.stdout();
    let lines = lines.lines().filter(|line| line.starts_with('{'));
    Ok(lines.map(parse).collect::<Result<_, _>>()?)
}

/// Holds the report's figures for `pid` against what the runtime said.
fn compare(report: &Report, pid: u32, books: &Value, wrong: &mut dyn FnMut(String)) {
    let devices = || report.devices.iter().filter(|device| device.pid == pid);
    let memory = books["memory"].as_object().expect("the books have memory");
    let mut places: BTreeMap<(String, String, u64), usize> = BTreeMap::new();
    let mut on_chip: BTreeMap<(i32, String), u64> = BTreeMap::new();
    for buffer in books["buffers"].as_array().expect("the books have buffers") {
        let kind = buffer["type"].as_str().expect("a type").to_owned();
        let place = (buffer["chips"].to_string(), kind.clone(), number(&buffer["address"]));
        *places.entry(place).or_default() += 1;
        for chip in buffer["chips"].as_array().expect("chips") {
            *on_chip.entry((number(chip) as i32, kind.clone())).or_default() += 1;
        }
    }
    for chip in memory.keys() {
        if !devices().any(|device| device.chip.to_string() == *chip) {
            wrong(format!("chip {chip} is missing"));
        }
    }
    for device in devices() {
        let said = memory.get(&device.chip.to_string());
        for memory in &device.memory {
            let expected = said.map_or(0, |said| number(&said[memory.kind.to_string()]));
            let (chip, kind, live) = (device.chip, memory.kind, memory.live);
            if live.bytes_per_bank != expected {
                wrong(format!(
                    "{kind} of chip {chip}: {} bytes per bank, the runtime says {expected}",
                    live.bytes_per_bank
                ));
            }
            let expected = on_chip.get(&(chip, kind.to_string())).copied().unwrap_or(0);
            if live.buffers != expected {
                wrong(format!(
                    "{kind} of chip {chip}: {} buffers, the runtime says {expected}",
                    live.buffers
                ));
            }
            if live.reserved_bytes != live.bytes_per_bank * u64::from(memory.banks) {
                wrong(format!("{kind} of chip {chip}: {live:?} over {} banks", memory.banks));
            }
        }
    }
    for buffer in report.live_buffers.iter().filter(|buffer| buffer.pid == pid) {
        let chips = format!("{:?}", buffer.chips).replace(' ', "");
        let place = (chips, buffer.kind.to_string(), buffer.address);
        match places.get_mut(&place) {
            Some(count) if *count > 0 => *count -= 1,
            _ => wrong(format!("a live buffer that the runtime does not have: {place:?}")),
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
