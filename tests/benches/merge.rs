//! What it takes to merge the reports of many hosts: made-up reports of hosts with 32 chips each, shaped as
//! real ones, merged by the real program.
//!
//!     cargo bench -p ttalloc-tests --bench merge -- [HOSTS [BUFFERS [PROGRAMS]]]
//!
//! Without arguments, 1,000 hosts with 500 live buffers and 200 different programs each. The reports take
//! about 1 MB each in the folder for temporary files.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a benchmark that can't go on says so")]

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};
use ttalloc::report::Report;
use ttalloc_symbols::{Era, SYMBOLS, Use};
use ttalloc_tests::programs;

const CHIPS: i32 = 32;

fn main() {
    // cargo bench adds options for a test harness.
    let numbers: Vec<usize> =
        std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let number = |at: usize, default: usize| numbers.get(at).copied().unwrap_or(default);
    let (hosts, buffers, of_programs) = (number(0, 1000), number(1, 500), number(2, 200));

    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    let mut bytes = 0;
    for host in 0..hosts {
        let report = report(host, buffers, of_programs);
        let name = format!("r-{host}.json");
        write(&folder.path().join(&name), &report);
        bytes += fs::metadata(folder.path().join(&name)).unwrap().len();
        files.push(name);
    }
    println!(
        "{hosts} hosts, {CHIPS} chips, {buffers} live buffers, {of_programs} programs: {:.2} MB a report, {:.0} MB in all",
        megabytes(bytes) / hosts as f64,
        megabytes(bytes)
    );

    let merge = |files: &[String], output: &str| {
        let mut command = Command::new(&programs().ttalloc);
        command.arg("merge").args(files).args(["--quiet", "--output", output]);
        measured(command.current_dir(folder.path()))
    };
    let (seconds, peak) = merge(&files, "all.json");
    let merged = fs::metadata(folder.path().join("all.json")).unwrap().len();
    println!(
        "merged: {:.0} MB, in {seconds:.1} s, {:.0} MB resident at most",
        megabytes(merged),
        megabytes(peak)
    );
    check(&folder.path().join("all.json"), hosts, buffers, of_programs);
    let report = serde_json::to_value(report(0, buffers, of_programs)).unwrap();
    for (what, list) in [
        ("chip", "devices"),
        ("live buffer", "live_buffers"),
        ("program", "programs"),
        ("process", "processes"),
    ] {
        let (bytes, count) =
            (report[list].to_string().len(), report[list].as_array().unwrap().len());
        println!("  of that a {what}: {:.2} kB", bytes as f64 / count as f64 / 1e3);
    }

    let packed = Command::new("gzip").args(["-k", "all.json"]).current_dir(folder.path()).status();
    if packed.is_ok_and(|status| status.success()) {
        let size = fs::metadata(folder.path().join("all.json.gz")).unwrap().len();
        println!("the same by gzip: {:.0} MB", megabytes(size));
    }
    // Reading it is what everything that comes after has to do.
    let started = Instant::now();
    let text = fs::read(folder.path().join("all.json")).unwrap();
    let report: Report = serde_json::from_slice(&text).unwrap();
    assert_eq!(report.sources.len(), hosts);
    println!("read again: in {:.1} s", started.elapsed().as_secs_f64());
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// As ttalloc-run writes it.
fn write(path: &Path, report: &Report) {
    let mut file = BufWriter::new(File::create(path).unwrap());
    serde_json::to_writer_pretty(&mut file, report).unwrap();
    file.write_all(b"\n").unwrap();
    file.flush().unwrap();
}

fn check(path: &Path, hosts: usize, buffers: usize, of_programs: usize) {
    let report: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let count = |list: &str| report[list].as_array().unwrap().len();
    assert_eq!(count("sources"), hosts);
    assert_eq!(count("processes"), hosts);
    assert_eq!(count("devices"), hosts * CHIPS as usize);
    assert_eq!(count("live_buffers"), hosts * buffers);
    assert_eq!(count("programs"), hosts * of_programs);
}

/// Runs a command to its end. Returns how many seconds it took, and how many bytes it had resident at most.
fn measured(command: &mut Command) -> (f64, u64) {
    let started = Instant::now();
    #[expect(clippy::zombie_processes, reason = "wait4 waits for it")]
    let child = command.spawn().unwrap();
    let mut status = 0;
    // SAFETY: all zeroes is a value of this struct of integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: waits for a child of this process, with two places to write to.
    let pid = unsafe { libc::wait4(child.id() as i32, &raw mut status, 0, &raw mut usage) };
    assert_eq!(pid, child.id() as i32);
    assert_eq!(status, 0, "{command:?}");
    // ru_maxrss is in kilobytes of 1,024 bytes (getrusage(2)).
    (started.elapsed().as_secs_f64(), usage.ru_maxrss as u64 * 1024)
}

/// A host's report: a training job's, say, with all its buffers and programs on all chips.
fn report(host: usize, buffers: usize, of_programs: usize) -> Report {
    let all: Vec<i32> = (0..CHIPS).collect();
    let pid = 4000 + host;
    let name = format!("node-{host:04}");
    let totals = |buffers: u64| {
        let per_bank = 94_208 * buffers;
        json!({
            "buffers": buffers, "bytes": 1_048_576 * buffers, "bytes_per_bank": per_bank,
            "reserved_bytes": 12 * per_bank,
        })
    };
    let memory = |kind: &str, live: u64| {
        let mut peak = totals(2 * live);
        peak["time_ns"] = 83_179_137_048_u64.into();
        json!({
            "type": kind, "banks": 12, "bank_bytes": 1_072_693_184, "bank_bytes_now": 1_072_693_184,
            "bank_bytes_least": 1_072_693_184, "live": totals(live), "live_at_close": totals(0),
            "peak": peak, "allocations": 7_103_114, "frees": 7_103_114 - live, "released": 0, "failed": 0,
            "allocated_bytes_total": 9_007_199_254_740_993_u64,
            "purposes": [{
                "purpose": "kernel_binaries", "live": totals(1), "peak": peak, "allocations": of_programs,
            }],
        })
    };
    let hooks = SYMBOLS.iter().filter(|one| one.usage == Use::Hook && one.eras.contains(Era::C));
    let hooks: Vec<_> = hooks
        .map(|one| {
            json!({"role": one.role, "symbol": one.name, "calls": 71_031_140, "engine": "preload"})
        })
        .collect();
    let devices: Vec<_> = all
        .iter()
        .map(|chip| {
            let program = (*chip as usize).min(of_programs - 1);
            json!({
                "process": 0, "pid": pid, "chip": chip, "arch": "wormhole_b0",
                "memory": [
                    memory("DRAM", buffers as u64), memory("L1", 0), memory("L1_SMALL", 0),
                    memory("TRACE", 0),
                ],
                "circular_buffers": {
                    "programs": of_programs, "runs": 15_315_254,
                    "largest": {
                        "bytes": 786_432, "end_address": 892_256, "program": program,
                        "time_ns": 3_706_231_546_u64,
                    },
                    "headroom": {
                        "bytes": 475_808, "lowest_buffer_address": 1_368_064,
                        "region_end_address": 892_256, "program": program,
                        "time_ns": 3_706_231_546_u64,
                    },
                },
                "planned": [],
                "reserved": {
                    "l1_bytes_per_core": 1_499_136, "l1_below_bytes": 105_824, "l1_above_bytes": 0,
                    "dram_below_bytes": 1_048_640,
                },
            })
        })
        .collect();
    let live_buffers: Vec<_> = (0..buffers)
        .map(|at| {
            json!({
                "process": 0, "pid": pid, "chips": all, "type": "DRAM",
                "address": 1_048_640 + 94_208 * at, "bytes": 1_048_576, "bytes_per_bank": 94_208,
                "cores": null, "purpose": "data", "page_bytes": 2048,
                "allocated_ns": 1_245_116_496 + 1_315_254 * at,
            })
        })
        .collect();
    let ranges = [[0, 0, 7, 6], [0, 7, 3, 7]];
    let programs: Vec<_> = (0..of_programs)
        .map(|at| {
            let buffers: Vec<_> = (0..5)
                .map(|buffer| {
                    json!({
                        "kind": "circular_buffer", "address": 105_824 + 131_072 * buffer,
                        "bytes_per_core": 131_072, "cores": 60, "core_ranges": ranges,
                    })
                })
                .collect();
            json!({
                "process": 0, "pid": pid, "id": at,
                "kernels": [
                    "reader_bmm_tile_layout_in0_sender_padding_metal2",
                    "reader_bmm_tile_layout_in1_sender_writer_padding_metal2",
                    format!("bmm_large_block_zm_fused_bias_activation_{at}"),
                ],
                "chips": all, "runs": 71_031, "refused": 0, "objects": 1, "live": 1,
                "first_ns": 1_245_116_496, "last_ns": 95_315_254_087_u64,
                "region_end_address": 892_256, "circular_buffers": buffers,
            })
        })
        .collect();
    let report = json!({
        "schema": ttalloc::report::SCHEMA, "ttalloc_version": "0.1.0",
        "command": ["python3", "train.py", "--config", "pod.yaml"],
        "started": format!("2026-11-22T08:45:{:02}.123456789Z", host % 60),
        "duration_ns": 96_912_345_678_u64, "exit": {"code": 0}, "host": name, "rank": host,
        "sources": [],
        "integrity": {
            "events": 41_031_140, "dropped": 0, "torn": 0, "bad_records": 0, "unknown_frees": 0,
            "inherited_frees": 0, "unattributed": 0, "external_placements": 0, "problems": [],
            "complete": true,
        },
        "processes": [{
            "process": 0, "pid": pid, "inner_pid": pid, "parent_pid": pid - 1, "start_ticks": 88_112,
            "rank": host, "host": name, "argv": ["python3", "train.py", "--config", "pod.yaml"],
            "argv_cut": false, "exit": {"code": 0},
            "runtime": {
                "path": "/opt/venv/lib/python3.10/site-packages/ttnn.libs/libtt_metal.so",
                "build_id": "23bb0e5b7ad1c2f04a5be3c3d1f30a1cbb1cd2ef", "era": "C", "hooks": hooks,
            },
        }],
        "meshes": [{"process": 0, "pid": pid, "mesh": 0, "chips": all}],
        "devices": devices, "live_buffers": live_buffers, "programs": programs, "traces": [],
        "overlaps": [], "failures": [],
    });
    match serde_json::from_value(report) {
        Ok(report) => report,
        Err(why) => panic!("what is made up is no report: {why}"),
    }
}
