//! The summary that a person reads at the end of a run.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};
use humansize::{BINARY, format_size};

use crate::ledger::Totals;
use crate::report::{Exit, Report};

/// The summary of a report, ended by a newline.
pub fn summary(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut text, report);
    text
}

fn write(out: &mut String, report: &Report) -> std::fmt::Result {
    let integrity = &report.integrity;
    writeln!(out, "ttalloc: {}, {}", report.command.join(" "), ending(&report.exit))?;
    for problem in &integrity.problems {
        writeln!(out, "ttalloc: incomplete: {problem}")?;
    }
    if report.processes.iter().all(|process| process.runtime.is_none()) {
        writeln!(out, "ttalloc: no call into tt-metal was seen; there is nothing to report")?;
        return Ok(());
    }
    if report.devices.is_empty() {
        writeln!(out, "ttalloc: tt-metal was loaded, but no device was opened")?;
        return Ok(());
    }
    let several = report.devices.iter().any(|device| device.pid != report.devices[0].pid);
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut header = vec![
        "chip",
        "type",
        "live at exit",
        "left at close",
        "peak",
        "of",
        "allocations",
        "frees",
        "released",
        "failed",
    ];
    if several {
        header.insert(0, "pid");
    }
    let numbers_from = header.len() - 8;
    table.set_header(header);
    let mut all = Sum::default();
    for device in &report.devices {
        let mut name = device.chip.to_string();
        let used = |memory: &&crate::report::Memory| memory.allocations + memory.failed != 0;
        let mut rows: Vec<_> = device.memory.iter().filter(used).collect();
        if rows.is_empty() {
            rows.extend(device.memory.first());
        }
        for memory in rows {
            all.add(memory);
            let mut row = vec![
                std::mem::take(&mut name),
                memory.kind.to_string(),
                size(memory.live),
                memory.live_at_close.map_or_else(|| "-".to_owned(), size),
                size(memory.peak.totals),
                format_size(memory.bank_bytes.saturating_mul(memory.banks.into()), BINARY),
                memory.allocations.to_string(),
                memory.frees.to_string(),
                memory.released.to_string(),
                memory.failed.to_string(),
            ];
            if several {
                row.insert(0, device.pid.to_string());
            }
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
    if several {
        row.insert(0, String::new());
    }
    table.add_row(row);
    for column in numbers_from..numbers_from + 8 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    writeln!(out, "{}", table.trim_fmt())?;
    writeln!(out, "Sizes are reserved bytes: bytes per bank times banks, which is what runs out.")?;
    if integrity.external_placements != 0 {
        writeln!(
            out,
            "{} buffers were made at given addresses that no allocator had given; they are not counted.",
            integrity.external_placements
        )?;
    }
    Ok(())
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

/// How the program ended, in words.
fn ending(exit: &Exit) -> String {
    match exit {
        Exit::Code(0) => "exited normally".to_owned(),
        Exit::Code(code) => format!("exited with code {code}"),
        Exit::Signal(name) => format!("was ended by {name}"),
    }
}
