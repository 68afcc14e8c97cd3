//! The summary that a person reads at the end of a run.

use std::collections::BTreeSet;
use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};
use humansize::{BINARY, format_size};

use crate::ledger::Totals;
use crate::report::{Exit, Process, Report};

/// The summary of a report, ended by a newline.
pub fn summary(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut text, report);
    text
}

fn write(out: &mut String, report: &Report) -> std::fmt::Result {
    let integrity = &report.integrity;
    let command = one_line(&words(&report.command));
    let merged = match report.sources.len() {
        0 => String::new(),
        1 => "1 report of ".to_owned(),
        reports => format!("{reports} reports of {}", on_hosts(report)),
    };
    writeln!(out, "ttalloc: {merged}{command}, {}", ending(&report.exit))?;
    for process in &report.processes {
        if let Some(why) = &process.out_of_memory {
            writeln!(
                out,
                "ttalloc: process {} was ended by SIGKILL, and {}",
                process.pid,
                one_line(why)
            )?;
        }
    }
    for problem in &integrity.problems {
        writeln!(out, "ttalloc: incomplete: {}", one_line(problem))?;
    }
    if report.processes.iter().all(|process| process.runtime.is_none()) {
        writeln!(out, "ttalloc: no call into tt-metal was seen; there is nothing to report")?;
        return Ok(());
    }
    if report.devices.is_empty() {
        // What could not be seen may have opened some.
        if integrity.complete {
            writeln!(out, "ttalloc: tt-metal was loaded, but no device was opened")?;
        }
        return Ok(());
    }
    let owners = Owners::of(report);
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut header = vec![
        "chip",
        "type",
        "live at exit",
        "left at close",
        "peak",
        "capacity",
        "allocations",
        "frees",
        "released",
        "failed",
    ];
    header.splice(0..0, owners.header());
    let numbers_from = header.len() - 8;
    table.set_header(header);
    let mut all = Sum::default();
    for (place, device) in report.devices.iter().enumerate() {
        let mut name = device.chip.to_string();
        let used = |memory: &&crate::report::Memory| memory.allocations + memory.failed != 0;
        let mut rows: Vec<_> = device.memory.iter().filter(used).collect();
        if rows.is_empty() {
            rows.extend(device.memory.first());
        }
        for memory in rows {
            all.add(memory);
            if place >= MOST_DEVICES {
                continue;
            }
            let mut row = vec![
                std::mem::take(&mut name),
                memory.kind.to_string(),
                size(memory.live),
                memory.live_at_close.map_or_else(|| "-".to_owned(), size),
                size(memory.peak.totals),
                capacity(memory),
                memory.allocations.to_string(),
                memory.frees.to_string(),
                memory.released.to_string(),
                memory.failed.to_string(),
            ];
            row.splice(0..0, owners.cells(device.process));
            table.add_row(row);
        }
    }
    let mut row = vec![
        "all".to_owned(),
        String::new(),
        size(all.live),
        String::new(),
        String::new(),
        String::new(),
        all.allocations.to_string(),
        all.frees.to_string(),
        all.released.to_string(),
        all.failed.to_string(),
    ];
    row.splice(0..0, owners.header().map(|_| String::new()));
    table.add_row(row);
    for column in numbers_from..numbers_from + 8 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    writeln!(out, "{}", table.trim_fmt())?;
    if let further @ 1.. = report.devices.len().saturating_sub(MOST_DEVICES) {
        writeln!(out, "{further} more chips are in the report; the last row has them too.")?;
    }
    writeln!(out, "Sizes are reserved bytes: bytes per bank times banks, which is what runs out.")?;
    write_programs(out, report, &owners)?;
    write_planned(out, report)?;
    if integrity.overlaps != 0 {
        writeln!(
            out,
            "{} allocations were given memory of a chip that another of tt-metal's allocators had given: see overlaps in the report.",
            integrity.overlaps
        )?;
    }
    if integrity.external_placements != 0 {
        writeln!(
            out,
            "{} buffers were made at given addresses that no allocator had given; they are not counted.",
            integrity.external_placements
        )?;
    }
    Ok(())
}

/// How many chips have rows of their own.
const MOST_DEVICES: usize = 256;

/// A column's head, and what stands in it for a process.
type Column = (&'static str, fn(&Process) -> String);

/// What tells the processes with chips apart: as little as does.
struct Owners<'a> {
    report: &'a Report,
    columns: Vec<Column>,
}

impl<'a> Owners<'a> {
    fn of(report: &'a Report) -> Owners<'a> {
        let mut numbers: Vec<_> = report.devices.iter().map(|device| device.process).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut owners = Owners { report, columns: Vec::new() };
        let distinct = |columns: &[fn(&Process) -> String]| {
            let tell = |process: Option<&Process>| -> Vec<_> {
                process.map_or_else(Vec::new, |one| columns.iter().map(|tell| tell(one)).collect())
            };
            let told = numbers.iter().map(|&number| tell(owners.process(number)));
            told.collect::<BTreeSet<_>>().len()
        };
        let host: fn(&Process) -> String = |process| one_line(&process.host);
        let rank: fn(&Process) -> String =
            |process| process.rank.map_or_else(String::new, |rank| rank.to_string());
        let pid: fn(&Process) -> String = |process| process.pid.to_string();
        let mut columns = Vec::new();
        columns.extend((distinct(&[host]) > 1).then_some(("host", host)));
        columns.extend((distinct(&[rank]) > 1).then_some(("rank", rank)));
        if distinct(&[host, rank]) < numbers.len() {
            columns.push(("pid", pid));
        }
        owners.columns = columns;
        owners
    }

    fn process(&self, number: u64) -> Option<&'a Process> {
        self.report.processes.get(usize::try_from(number).ok()?)
    }

    fn header(&self) -> impl Iterator<Item = &'static str> {
        self.columns.iter().map(|(name, _)| *name)
    }

    fn cells(&self, number: u64) -> impl Iterator<Item = String> {
        let process = self.process(number);
        let cell = move |(_, tell): &Column| process.map_or_else(String::new, tell);
        self.columns.iter().map(cell)
    }
}

/// How many hosts a merged report is of, where there are several.
fn on_hosts(report: &Report) -> String {
    let hosts: BTreeSet<_> = report.sources.iter().map(|source| &source.host).collect();
    match hosts.len() {
        1 => String::new(),
        hosts => format!("{hosts} hosts: "),
    }
}

/// What programs did with the L1, chips with the same figures in one row.
fn write_programs(out: &mut String, report: &Report, owners: &Owners) -> std::fmt::Result {
    let mut rows: Vec<(u64, Vec<String>, Vec<i32>)> = Vec::new();
    for device in report.devices.iter().take(MOST_DEVICES) {
        let Some(used) = &device.circular_buffers else { continue };
        let name = |program: Option<u64>| {
            let program = program.and_then(|at| report.programs.get(at as usize));
            program.map_or_else(|| "-".to_owned(), name_of)
        };
        let none = || "-".to_owned();
        let headroom = |bytes: i64| match u64::try_from(bytes) {
            Ok(bytes) => format_size(bytes, BINARY),
            Err(_) => format!("-{}", format_size(bytes.unsigned_abs(), BINARY)),
        };
        let row = vec![
            used.programs.to_string(),
            used.runs.to_string(),
            used.largest.as_ref().map_or_else(none, |one| format_size(one.bytes, BINARY)),
            used.largest.as_ref().map_or_else(none, |one| name(one.program)),
            used.headroom.as_ref().map_or_else(none, |one| headroom(one.bytes)),
            used.headroom.as_ref().map_or_else(none, |one| name(one.program)),
        ];
        let mine =
            |&(process, ref same, _): &(u64, _, _)| (process, same) == (device.process, &row);
        match rows.iter_mut().find(|row| mine(row)) {
            Some((.., chips)) => chips.push(device.chip),
            None => rows.push((device.process, row, vec![device.chip])),
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut header = vec![
        "chips",
        "programs",
        "runs",
        "most L1 a core",
        "in program",
        "least headroom",
        "in program",
    ];
    header.splice(0..0, owners.header());
    let chips_column = header.len() - 7;
    table.set_header(header);
    for (process, mut row, chips) in rows {
        row.insert(0, ranges(&chips));
        row.splice(0..0, owners.cells(process));
        table.add_row(row);
    }
    for column in [1, 2, 3, 5] {
        if let Some(column) = table.column_mut(chips_column + column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    writeln!(out, "{}", table.trim_fmt())?;
    writeln!(
        out,
        "Programs lay out circular and dataflow buffers in the L1 below all others; headroom is what was left between."
    )
}

/// A program's name: its id, and a kernel.
fn name_of(program: &crate::report::Program) -> String {
    const MOST: usize = 18;
    let id = program.id.map(|id| format!("#{id} ")).unwrap_or_default();
    // What computes says most; by custom, what moves data is called so.
    let moves = |name: &&String| name.starts_with("reader") || name.starts_with("writer");
    let kernel = program.kernels.iter().find(|name| !moves(name)).or(program.kernels.first());
    let kernel = kernel.map(|name| one_line(name)).unwrap_or_default();
    match kernel.char_indices().nth(MOST) {
        Some((end, _)) => format!("{id}{}…", &kernel[..end]),
        None => format!("{id}{kernel}"),
    }
}

/// Numbers in order, runs of them as ranges.
fn ranges(numbers: &[i32]) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let run = |&(first, last): &(i32, i32)| match last == first {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    runs.iter().map(run).collect::<Vec<_>>().join(",")
}

fn write_planned(out: &mut String, report: &Report) -> std::fmt::Result {
    let planned = || report.devices.iter().flat_map(|device| &device.planned);
    let most = planned().max_by_key(|one| one.peak.totals.reserved_bytes);
    let Some(most) = most else { return Ok(()) };
    let buffers = report
        .devices
        .iter()
        .map(|device| device.planned.iter().map(|one| one.buffers).sum::<u64>());
    writeln!(
        out,
        "Graph captures without dispatch planned up to {} buffers a chip, at most {} of {} at once; they are in no figure above.",
        buffers.max().unwrap_or(0),
        format_size(most.peak.totals.reserved_bytes, BINARY),
        most.kind
    )
}

#[derive(Default)]
struct Sum {
    live: Totals,
    allocations: u64,
    frees: u64,
    released: u64,
    failed: u64,
}

impl Sum {
    fn add(&mut self, memory: &crate::report::Memory) {
        self.live.buffers += memory.live.buffers;
        self.live.reserved_bytes =
            self.live.reserved_bytes.saturating_add(memory.live.reserved_bytes);
        self.allocations += memory.allocations;
        self.frees += memory.frees;
        self.released += memory.released;
        self.failed += memory.failed;
    }
}

fn size(totals: Totals) -> String {
    match totals.buffers {
        0 => "0".to_owned(),
        buffers => format!("{} ({buffers})", format_size(totals.reserved_bytes, BINARY)),
    }
}

/// What can be allocated; that is unknown of a runtime that doesn't tell.
fn capacity(memory: &crate::report::Memory) -> String {
    match memory.bank_bytes.saturating_mul(memory.banks.into()) {
        0 => "?".to_owned(),
        bytes => format_size(bytes, BINARY),
    }
}

/// A command, cut where it would fill the screen.
fn words(command: &[String]) -> String {
    const MOST: usize = 500;
    let whole = command.join(" ");
    match whole.char_indices().nth(MOST) {
        Some((end, _)) => format!("{} …", &whole[..end]),
        None => whole,
    }
}

/// A text on one line, and nothing in it that a terminal would obey.
pub fn one_line(text: &str) -> String {
    let mut line = String::new();
    for letter in text.chars() {
        match letter.is_control() {
            true => line.extend(letter.escape_default()),
            false => line.push(letter),
        }
    }
    line
}

/// How the program ended, in words.
fn ending(exit: &Exit) -> String {
    match exit {
        Exit::Code(0) => "exited normally".to_owned(),
        Exit::Code(code) => format!("exited with code {code}"),
        Exit::Signal(name) => format!("was ended by {name}"),
        Exit::Exec(_) => "called exec".to_owned(),
        Exit::Running(_) => "still runs".to_owned(),
        Exit::Unknown(_) => "has ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn totals(buffers: u64, per_bank: u64) -> Value {
        json!({"buffers": buffers, "bytes": per_bank, "bytes_per_bank": per_bank, "reserved_bytes": per_bank * 12})
    }

    fn memory(kind: &str, live: u64, left: Value, failed: u64) -> Value {
        let mut peak = totals(4, 4096);
        peak["time_ns"] = 5.into();
        json!({
            "type": kind, "banks": 12, "bank_bytes": 1 << 20, "bank_bytes_now": 1 << 20,
            "bank_bytes_least": 1 << 20, "purposes": [], "live": totals(live, live * 1024),
            "live_at_close": left, "peak": peak, "allocations": 4, "frees": 4 - live, "released": 0,
            "failed": failed, "allocated_bytes_total": 4096,
        })
    }

    fn report(change: impl FnOnce(&mut Value)) -> Report {
        let runtime = json!({"path": "libtt_metal.so", "build_id": null, "era": "C", "hooks": []});
        let mut report = json!({
            "schema": "ttalloc.report/1", "ttalloc_version": "0", "command": ["python3", "model.py"],
            "started": "2026-01-01T00:00:00Z", "duration_ns": 1, "exit": {"signal": "SIGKILL"},
            "integrity": {
                "events": 9, "dropped": 0, "torn": 0, "bad_records": 0, "unknown_frees": 0,
                "inherited_frees": 0, "unattributed": 0, "external_placements": 0,
                "overlaps": 0, "programs_left_out": 0, "problems": [],
                "complete": true,
            },
            "processes": [{"pid": 7, "parent_pid": 1, "argv": [], "argv_cut": false, "exit": null, "runtime": runtime}],
            "meshes": [],
            "devices": [
                {"pid": 7, "chip": 0, "arch": "blackhole", "memory": [
                    memory("DRAM", 1, Value::Null, 0), memory("L1", 0, Value::Null, 2),
                ], "circular_buffers": null, "planned": [], "reserved": null},
                {"pid": 7, "chip": 1, "arch": "blackhole", "memory": [memory("DRAM", 2, totals(1, 64), 0)],
                 "circular_buffers": null, "planned": [], "reserved": null},
            ],
            "live_buffers": [], "programs": [], "traces": [], "overlaps": [],
        });
        change(&mut report);
        serde_json::from_value(report).unwrap()
    }

    #[test]
    fn every_chip_has_its_rows_and_the_sum_stands_below() {
        let expected = "\
ttalloc: python3 model.py, was ended by SIGKILL
 chip  type  live at exit  left at close        peak  capacity  allocations  frees  released  failed
 0     DRAM    12 KiB (1)              -  48 KiB (4)    12 MiB            4      3         0       0
       L1               0              -  48 KiB (4)    12 MiB            4      4         0       2
 1     DRAM    24 KiB (2)      768 B (1)  48 KiB (4)    12 MiB            4      2         0       0
 all           36 KiB (3)                                                12      9         0       2
Sizes are reserved bytes: bytes per bank times banks, which is what runs out.
";
        assert_eq!(summary(&report(|_| {})), expected);
    }

    #[test]
    fn what_is_wrong_is_named_first() {
        let report = report(|report| {
            report["integrity"]["problems"] = json!(["3 events were dropped"]);
            report["integrity"]["external_placements"] = 2.into();
        });
        let text = summary(&report);
        assert_eq!(text.lines().nth(1), Some("ttalloc: incomplete: 3 events were dropped"));
        assert!(text.ends_with("2 buffers were made at given addresses that no allocator had given; they are not counted.\n"));
    }

    #[test]
    fn a_capacity_that_is_unknown_is_not_given_as_none() {
        let text =
            summary(&report(|report| report["devices"][0]["memory"][0]["bank_bytes"] = 0.into()));
        assert!(
            text.lines().nth(2).is_some_and(|row| row.contains("48 KiB (4)         ?  ")),
            "{text}"
        );
    }

    /// A report in which each of these processes, by host and rank, has a chip.
    fn of_processes(processes: &[(&str, Option<u32>)]) -> Report {
        report(|report| {
            let (process, device) = (report["processes"][0].take(), report["devices"][1].take());
            let all = || (0..).zip(processes);
            let process = |(at, (host, rank)): (u64, &(&str, _))| {
                let mut process = process.clone();
                process["process"] = at.into();
                process["pid"] = json!(7 + at);
                process["host"] = (*host).into();
                process["rank"] = json!(rank);
                process
            };
            report["processes"] = all().map(process).collect();
            let device = |(at, _)| {
                let mut device = device.clone();
                device["process"] = json!(at);
                device["pid"] = json!(7 + at);
                device
            };
            report["devices"] = all().map(device).collect();
        })
    }

    #[test]
    fn processes_are_told_apart_by_what_it_takes() {
        let expect = |processes: &[(&str, Option<u32>)], header: &str, last: &str| {
            let text = summary(&of_processes(processes));
            let line = |at| text.lines().nth(at).unwrap_or_default();
            assert!(line(1).starts_with(header), "{text}");
            assert!(line(1 + processes.len()).starts_with(last), "{text}");
        };
        expect(&[("a", Some(0))], " chip", " 1  ");
        expect(&[("a", None), ("a", None)], " pid  chip", " 8    1     DRAM");
        expect(&[("a", Some(0)), ("a", Some(1))], " rank  chip", " 1     1     DRAM");
        expect(&[("a", Some(0)), ("b", Some(1))], " host  rank  chip", " b     1     1     DRAM");
        expect(&[("a", None), ("b", None)], " host  chip", " b     1     DRAM");
        let forked = [("a", Some(0)), ("b", Some(1)), ("b", Some(1))];
        expect(&forked, " host  rank  pid  chip", " b     1     9    1     DRAM");
    }

    #[test]
    fn what_would_fill_the_screen_is_in_the_report() {
        let many: Vec<_> = (0..1000).map(|rank| ("a", Some(rank))).collect();
        let text = summary(&of_processes(&many));
        assert_eq!(text.lines().count(), MOST_DEVICES + 5, "{text}");
        assert!(text.contains("\n744 more chips are in the report;"), "{text}");
        let all = text.lines().find(|line| line.trim_start().starts_with("all ")).unwrap();
        assert!(all.contains(" 4000 "), "{all}");
    }

    #[test]
    fn chips_on_which_programs_did_the_same_share_a_row() {
        let text = summary(&report(|report| {
            report["programs"] = json!([{
                "pid": 7, "id": 4, "kernels": ["reader", "softmax"], "chips": [0, 1], "runs": 3,
                "refused": 0, "objects": 1, "live": 1, "first_ns": 1, "last_ns": 2,
                "region_end_address": 3072, "circular_buffers": [],
            }]);
            for device in 0..2 {
                report["devices"][device]["circular_buffers"] = json!({
                    "programs": 1, "runs": 3,
                    "largest": {"bytes": 2048, "end_address": 3072, "program": 0, "time_ns": 1},
                    "headroom": {"bytes": -512, "lowest_buffer_address": 2560,
                        "region_end_address": 3072, "program": null, "time_ns": 1},
                });
            }
        }));
        let expected = "\
 chips  programs  runs  most L1 a core  in program  least headroom  in program
 0-1           1     3           2 KiB  #4 softmax          -512 B  -
";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn what_was_planned_stands_apart() {
        let text = summary(&report(|report| {
            let mut peak = totals(3, 1024);
            peak["time_ns"] = 1.into();
            let planned = json!({"type": "DRAM", "buffers": 5, "live": totals(0, 0), "peak": peak});
            report["devices"][1]["planned"] = json!([planned]);
        }));
        let expected = "planned up to 5 buffers a chip, at most 12 KiB of DRAM at once";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn a_program_without_tt_metal_is_said_to_be_one() {
        let text = summary(&report(|report| report["processes"][0]["runtime"] = Value::Null));
        assert!(text.ends_with("no call into tt-metal was seen; there is nothing to report\n"));
    }
}
