//! Joining the reports of ranks and hosts into one, of the same schema.
//!
//! What is listed is listed on, each process with its own; what is counted is summed. Times are moved so
//! that they count from the earliest start. They are those of the hosts' clocks: nothing is done about
//! clocks that differ.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::report::{
    CrossCheck, CrossCheckState, Exit, Integrity, LeftOut, Peak, Reconciled, Report, SCHEMA, Source,
};

/// How many sources of a problem are named.
const NAMED: usize = 3;

/// Why reports can't be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A file can't be read.
    #[error("{} can't be read: {why}", .file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        why: io::Error,
    },
    /// A folder was named.
    #[error("{} is a folder; name the reports in it: {}", .0.display(), .0.join("*.json").display())]
    Folder(PathBuf),
    /// A file ends in the middle.
    #[error("{} ends in the middle of a report ({why}); copy it again, or leave it out", .file.display())]
    Cut {
        /// Which.
        file: PathBuf,
        /// Where.
        why: serde_json::Error,
    },
    /// A file is none of ttalloc's.
    #[error("{} is no report of ttalloc: {why}", .file.display())]
    NoReport {
        /// Which.
        file: PathBuf,
        /// Why.
        why: String,
    },
    /// A report has another schema.
    #[error(
        "{} has the schema {found}, but only reports of {SCHEMA} can be merged by this ttalloc; use the ttalloc that wrote it", .file.display()
    )]
    Schema {
        /// Which.
        file: PathBuf,
        /// Its schema.
        found: String,
    },
    /// What a report says does not fit together.
    #[error("{} can't be merged: {why}; an older ttalloc may have written it, or something else than ttalloc", .file.display())]
    Inconsistent {
        /// Which.
        file: PathBuf,
        /// What.
        why: String,
    },
    /// A process is in two reports.
    #[error(
        "{} and {} are both about process {pid} on {host}, started in the run of {started}: its figures would count twice. Name one of them", .first.display(), .second.display()
    )]
    Twice {
        /// The one.
        first: PathBuf,
        /// The other; it can be the same file.
        second: PathBuf,
        /// The process.
        pid: u32,
        /// Its host.
        host: String,
        /// When the run started that it belongs to.
        started: String,
    },
}

/// The reports that are to be merged.
#[derive(Debug, Default)]
pub struct Merge {
    inputs: Vec<Input>,
    /// Which file a process was in: by its host, its pid, when it was started, and when its run was.
    seen: HashMap<(String, u32, u64, String), PathBuf>,
    /// The files, by device and inode.
    files: HashMap<(u64, u64), PathBuf>,
}

#[derive(Debug)]
struct Input {
    file: PathBuf,
    started: jiff::Timestamp,
    report: Report,
}

impl Merge {
    /// Reads a report.
    pub fn read(&mut self, file: &Path) -> Result<(), MergeError> {
        let cannot = |why| MergeError::Read { file: file.to_owned(), why };
        let metadata = fs::metadata(file).map_err(cannot)?;
        if metadata.is_dir() {
            return Err(MergeError::Folder(file.to_owned()));
        }
        let json = fs::read(file).map_err(cannot)?;
        let report = parse(file, &json)?;
        self.files.insert((metadata.dev(), metadata.ino()), file.to_owned());
        self.add(file, report)
    }

    /// Adds a report that was read from `file`.
    pub fn add(&mut self, file: &Path, report: Report) -> Result<(), MergeError> {
        let inconsistent = |why| MergeError::Inconsistent { file: file.to_owned(), why };
        check(&report).map_err(inconsistent)?;
        let time = |started: &str| {
            started.parse::<jiff::Timestamp>().map_err(|why| {
                inconsistent(format!("\"{started}\" is not when a program was started ({why})"))
            })
        };
        let started = time(&report.started)?;
        let mut run = report.sources.iter().flat_map(|source| {
            std::iter::repeat_n(&source.started, source.processes.try_into().unwrap_or(usize::MAX))
        });
        // What exec kept the pid of is listed several times in one report.
        let mut own = Vec::new();
        for process in report.processes.iter() {
            let run = run.next().unwrap_or(&report.started);
            // A process that nothing is known of can't be told from others.
            if process.pid == 0 {
                continue;
            }
            let key = (process.host.clone(), process.pid, process.start_ticks, run.clone());
            if let Some(first) = self.seen.get(&key) {
                return Err(MergeError::Twice {
                    first: first.clone(),
                    second: file.to_owned(),
                    pid: process.pid,
                    host: process.host.clone(),
                    started: run.clone(),
                });
            }
            own.push(key);
        }
        self.seen.extend(own.into_iter().map(|key| (key, file.to_owned())));
        self.inputs.push(Input { file: file.to_owned(), started, report });
        Ok(())
    }

    /// The file among those that were read that is also at `path`, if one is.
    pub fn has_read(&self, path: &Path) -> Option<&Path> {
        let metadata = fs::metadata(path).ok()?;
        self.files.get(&(metadata.dev(), metadata.ino())).map(PathBuf::as_path)
    }

    /// The reports as one, in the order of their ranks, hosts and starts. None if there are none.
    pub fn finish(mut self) -> Option<Report> {
        self.inputs.sort_by(|a, b| {
            let key = |input: &Input| (input.report.rank.is_none(), input.report.rank);
            (key(a).cmp(&key(b)))
                .then_with(|| a.report.host.cmp(&b.report.host))
                .then_with(|| (a.started, &a.file).cmp(&(b.started, &b.file)))
        });
        let start = self.inputs.iter().map(|input| input.started).min()?;
        let mut all = All::new(start);
        for input in self.inputs {
            all.append(input);
        }
        Some(all.finish())
    }
}

/// Writes a merged report: on one line, since there is no end to the lines it would take otherwise.
pub fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let mut out = io::BufWriter::new(out);
    serde_json::to_writer(&mut out, report)?;
    out.write_all(b"\n")?;
    out.flush()
}

fn parse(file: &Path, json: &[u8]) -> Result<Report, MergeError> {
    let cut = |why| MergeError::Cut { file: file.to_owned(), why };
    let no_report = |why: String| MergeError::NoReport { file: file.to_owned(), why };
    let other = |found: String| MergeError::Schema { file: file.to_owned(), found };
    let misfit = match serde_json::from_slice::<Report>(json) {
        Ok(report) if report.schema == SCHEMA => return Ok(report),
        Ok(report) => return Err(other(report.schema)),
        Err(why) if why.is_eof() => return Err(cut(why)),
        Err(why) => why,
    };
    let value: Value = serde_json::from_slice(json).map_err(|why| match why.is_eof() {
        true => cut(why),
        false => no_report(format!("it is no JSON ({why})")),
    })?;
    Err(match value.get("schema") {
        None => no_report("it is no JSON object that names its schema".to_owned()),
        Some(schema) if schema == SCHEMA => no_report(format!(
            "it says it is {SCHEMA}, but does not fit that ({misfit}); ttalloc schema prints what does"
        )),
        Some(schema) => other(schema.to_string()),
    })
}

/// Whether the numbers in a report refer to what is in it.
fn check(report: &Report) -> Result<(), String> {
    let (processes, programs) = (report.processes.len() as u64, report.programs.len() as u64);
    if (0..).zip(&report.processes).any(|(place, process)| process.process != place) {
        return Err("its processes are not numbered in their order".to_owned());
    }
    let reconciled = &report.integrity.reconciled;
    let check = report.integrity.cross_check.iter();
    let mut numbers = (report.meshes.iter().map(|one| one.process))
        .chain(report.devices.iter().map(|one| one.process))
        .chain(report.live_buffers.iter().map(|one| one.process))
        .chain(report.programs.iter().map(|one| one.process))
        .chain(report.traces.iter().map(|one| one.process))
        .chain(report.overlaps.iter().map(|one| one.process))
        .chain(report.failures.iter().filter_map(|one| one.process))
        .chain(report.processes.iter().filter_map(|one| one.parent_process))
        .chain(report.processes.iter().filter_map(|one| match one.exit {
            Some(Exit::Exec(by)) => by,
            _ => None,
        }))
        .chain(reconciled.differences.iter().filter_map(|one| one.process))
        .chain(check.flat_map(|check| &check.differences).filter_map(|one| one.process));
    if let Some(number) = numbers.find(|&number| number >= processes) {
        return Err(format!("it refers to process number {number}, and lists {processes}"));
    }
    let used = report.devices.iter().filter_map(|device| device.circular_buffers.as_ref());
    let mut places = used.flat_map(|used| {
        let largest = used.largest.as_ref().and_then(|one| one.program);
        largest.into_iter().chain(used.headroom.as_ref().and_then(|one| one.program))
    });
    if let Some(place) = places.find(|&place| place >= programs) {
        return Err(format!("it refers to program number {place}, and lists {programs}"));
    }
    let of_sources = report.sources.iter().map(|one| one.processes);
    if !report.sources.is_empty() && of_sources.fold(0, u64::saturating_add) != processes {
        return Err("its sources and its processes don't fit together".to_owned());
    }
    Ok(())
}

/// The merged report, as far as it is.
struct All {
    start: jiff::Timestamp,
    report: Report,
    problems: Sentences,
    /// The same of the comparison with tt-metal's counters.
    reasons: Sentences,
    cross_check: CrossCheck,
    /// What came of it in each report; None where it was not asked for.
    states: Vec<Option<CrossCheckState>>,
}

impl All {
    fn new(start: jiff::Timestamp) -> All {
        All {
            start,
            report: Report {
                schema: SCHEMA.to_owned(),
                ttalloc_version: env!("CARGO_PKG_VERSION").to_owned(),
                command: Vec::new(),
                started: start.to_string(),
                duration_ns: 0,
                exit: Exit::Code(0),
                snapshot: false,
                host: String::new(),
                rank: None,
                sources: Vec::new(),
                integrity: Integrity {
                    events: 0,
                    dropped: 0,
                    torn: 0,
                    late: 0,
                    bad_records: 0,
                    unknown_frees: 0,
                    inherited_frees: 0,
                    unattributed: 0,
                    unattributed_runs: 0,
                    inherited_runs: 0,
                    external_placements: 0,
                    overlaps: 0,
                    programs_left_out: 0,
                    left_out: LeftOut::default(),
                    reconciled: Reconciled::default(),
                    cross_check: None,
                    problems: Vec::new(),
                    complete: true,
                },
                processes: Vec::new(),
                meshes: Vec::new(),
                devices: Vec::new(),
                live_buffers: Vec::new(),
                programs: Vec::new(),
                traces: Vec::new(),
                overlaps: Vec::new(),
                failures: Vec::new(),
                further_failures: 0,
                further_processes: None,
            },
            problems: Sentences::default(),
            reasons: Sentences::default(),
            cross_check: CrossCheck::unavailable(Vec::new()),
            states: Vec::new(),
        }
    }

    fn append(&mut self, input: Input) {
        // All fields by name, so that none that is added later is forgotten here.
        let Report {
            schema: _,
            ttalloc_version: _,
            command,
            started,
            duration_ns,
            exit,
            snapshot,
            host,
            rank,
            sources,
            integrity,
            mut processes,
            mut meshes,
            mut devices,
            mut live_buffers,
            mut programs,
            mut traces,
            mut overlaps,
            mut failures,
            further_failures,
            further_processes,
        } = input.report;
        let all = &mut self.report;
        let (base, programs_base) = (all.processes.len() as u64, all.programs.len() as u64);
        let shift = input.started.duration_since(self.start).as_nanos();
        let shift = u64::try_from(shift).unwrap_or(u64::MAX);
        let moved = Moved { base, shift };

        all.duration_ns = all.duration_ns.max(shift.saturating_add(duration_ns));
        let (is_first, is_merged) = (all.sources.is_empty(), !sources.is_empty());
        if is_first {
            (all.host, all.rank) = (host.clone(), rank);
        } else if all.host != host {
            all.host = String::new();
        }
        if all.rank != rank {
            all.rank = None;
        }
        let file = input.file.to_string_lossy().into_owned();
        let who = match rank {
            // What was merged before has said it.
            _ if is_merged => None,
            Some(rank) if host.is_empty() => Some(format!("rank {rank}")),
            Some(rank) => Some(format!("rank {rank} on {host}")),
            None if host.is_empty() => Some(file.clone()),
            None => Some(format!("{file} of {host}")),
        };
        if is_merged {
            all.sources.extend(sources);
        } else {
            all.sources.push(Source {
                file,
                host,
                rank,
                command,
                started,
                duration_ns,
                exit,
                complete: integrity.complete,
                processes: processes.len() as u64,
            });
        }

        all.snapshot |= snapshot;
        for process in &mut processes {
            moved.number(&mut process.process);
            if let Some(Exit::Exec(Some(by))) = &mut process.exit {
                moved.number(by);
            }
            moved.number_if_any(&mut process.parent_process);
        }
        for mesh in &mut meshes {
            moved.number(&mut mesh.process);
        }
        for device in &mut devices {
            moved.number(&mut device.process);
            for memory in &mut device.memory {
                moved.peak(&mut memory.peak);
                memory.purposes.iter_mut().for_each(|one| moved.peak(&mut one.peak));
            }
            device.planned.iter_mut().for_each(|one| moved.peak(&mut one.peak));
            if let Some(used) = &mut device.circular_buffers {
                if let Some(largest) = &mut used.largest {
                    moved.time(&mut largest.time_ns);
                    largest.program.iter_mut().for_each(|place| *place += programs_base);
                }
                if let Some(headroom) = &mut used.headroom {
                    moved.time(&mut headroom.time_ns);
                    headroom.program.iter_mut().for_each(|place| *place += programs_base);
                }
            }
        }
        for buffer in &mut live_buffers {
            moved.number(&mut buffer.process);
            moved.time(&mut buffer.allocated_ns);
        }
        for program in &mut programs {
            moved.number(&mut program.process);
            moved.time_if_any(&mut program.first_ns);
            moved.time_if_any(&mut program.last_ns);
        }
        for trace in &mut traces {
            moved.number(&mut trace.process);
            moved.time(&mut trace.captured_ns);
            trace.released_ns.iter_mut().for_each(|time| moved.time(time));
        }
        for overlap in &mut overlaps {
            moved.number(&mut overlap.process);
            moved.time(&mut overlap.time_ns);
        }
        for failure in &mut failures {
            moved.number_if_any(&mut failure.process);
            moved.time(&mut failure.time_ns);
        }
        all.processes.append(&mut processes);
        all.meshes.append(&mut meshes);
        all.devices.append(&mut devices);
        all.live_buffers.append(&mut live_buffers);
        all.programs.append(&mut programs);
        all.traces.append(&mut traces);
        all.overlaps.append(&mut overlaps);
        all.failures.append(&mut failures);
        add(&mut all.further_failures, further_failures);
        if let Some(further) = further_processes {
            all.further_processes.get_or_insert_default().add(further);
        }
        self.add_integrity(integrity, who.as_deref(), &moved);
    }

    fn add_integrity(&mut self, integrity: Integrity, who: Option<&str>, moved: &Moved) {
        let Integrity {
            events,
            dropped,
            torn,
            late,
            bad_records,
            unknown_frees,
            inherited_frees,
            unattributed,
            unattributed_runs,
            inherited_runs,
            external_placements,
            overlaps,
            programs_left_out,
            left_out,
            reconciled,
            cross_check,
            problems,
            complete,
        } = integrity;
        let all = &mut self.report.integrity;
        for (sum, count) in [
            (&mut all.events, events),
            (&mut all.dropped, dropped),
            (&mut all.torn, torn),
            (&mut all.late, late),
            (&mut all.bad_records, bad_records),
            (&mut all.unknown_frees, unknown_frees),
            (&mut all.inherited_frees, inherited_frees),
            (&mut all.unattributed, unattributed),
            (&mut all.unattributed_runs, unattributed_runs),
            (&mut all.inherited_runs, inherited_runs),
            (&mut all.external_placements, external_placements),
            (&mut all.overlaps, overlaps),
            (&mut all.programs_left_out, programs_left_out),
            (&mut all.reconciled.compared, reconciled.compared),
            (&mut all.reconciled.agreed, reconciled.agreed),
            (&mut all.reconciled.differed, reconciled.differed),
            (&mut all.reconciled.skipped, reconciled.skipped),
        ] {
            add(sum, count);
        }
        all.left_out.add(&left_out);
        all.complete &= complete;
        let mut differences = reconciled.differences;
        for difference in &mut differences {
            moved.number_if_any(&mut difference.process);
            moved.time(&mut difference.time_ns);
        }
        all.reconciled.differences.append(&mut differences);
        self.problems.extend(who, problems);

        self.states.push(cross_check.as_ref().map(|check| check.state));
        let Some(mut check) = cross_check else {
            let why =
                "tt-metal's own counters were not looked at, since --cross-check was not given";
            self.reasons.extend(who, vec![why.to_owned()]);
            return;
        };
        check.differences.iter_mut().for_each(|one| moved.number_if_any(&mut one.process));
        self.reasons.extend(who, check.reasons);
        add(&mut self.cross_check.compared, check.compared);
        add(&mut self.cross_check.agreed, check.agreed);
        add(&mut self.cross_check.differed, check.differed);
        self.cross_check.differences.append(&mut check.differences);
    }

    fn finish(self) -> Report {
        let mut report = self.report;
        let ends = || report.sources.iter().map(|source| &source.exit);
        let is_bad = |exit: &&Exit| match exit {
            Exit::Code(code) => *code != 0,
            Exit::Signal(_) => true,
            Exit::Exec(_) | Exit::Running(_) | Exit::Unknown(_) => false,
        };
        let end = ends().find(is_bad).or_else(|| ends().find(|&exit| *exit != Exit::Code(0)));
        report.exit = end.map_or(Exit::Code(0), Exit::clone);
        report.command = report.sources.first().map_or_else(Vec::new, |one| one.command.clone());
        // Each report has its own in order.
        report.failures.sort_by_key(|failure| failure.time_ns);
        report.integrity.problems = self.problems.finish();
        if self.states.iter().any(Option::is_some) {
            let mut check = self.cross_check;
            check.reasons = self.reasons.finish();
            let is_whole = |state: &Option<_>| *state == Some(CrossCheckState::Compared);
            check.state = match check.compared {
                0 => CrossCheckState::Unavailable,
                _ if self.states.iter().all(is_whole) => CrossCheckState::Compared,
                _ => CrossCheckState::Partly,
            };
            report.integrity.cross_check = Some(check);
        }
        report
    }
}

/// What becomes of a report's numbers.
struct Moved {
    /// How many processes come before its own.
    base: u64,
    /// How much later it began than the first.
    shift: u64,
}

impl Moved {
    fn number(&self, process: &mut u64) {
        *process += self.base;
    }

    fn number_if_any(&self, process: &mut Option<u64>) {
        process.iter_mut().for_each(|process| self.number(process));
    }

    fn time(&self, time_ns: &mut u64) {
        add(time_ns, self.shift);
    }

    /// The same where 0 means that it never was.
    fn time_if_any(&self, time_ns: &mut u64) {
        if *time_ns != 0 {
            self.time(time_ns);
        }
    }

    fn peak(&self, peak: &mut Peak) {
        self.time_if_any(&mut peak.time_ns);
    }
}

/// The counts come from files: they may be anything.
fn add(sum: &mut u64, count: u64) {
    *sum = sum.saturating_add(count);
}

/// Sentences, each once, with those whose it is.
#[derive(Default)]
struct Sentences {
    all: Vec<Sentence>,
    places: HashMap<String, usize>,
}

#[derive(Default)]
struct Sentence {
    text: String,
    /// The first few.
    whose: Vec<String>,
    others: usize,
}

impl Sentences {
    /// `who` is None where the sentences say it themselves.
    fn extend(&mut self, who: Option<&str>, texts: Vec<String>) {
        for text in texts {
            let next = self.all.len();
            let place = *self.places.entry(text.clone()).or_insert(next);
            if place == next {
                self.all.push(Sentence { text, ..Sentence::default() });
            }
            let Some((sentence, who)) = self.all.get_mut(place).zip(who) else { continue };
            match sentence.whose.len() < NAMED {
                true => sentence.whose.push(who.to_owned()),
                false => sentence.others += 1,
            }
        }
    }

    fn finish(self) -> Vec<String> {
        let whole = |one: Sentence| match (one.whose.is_empty(), one.others) {
            (true, _) => one.text,
            (_, 0) => format!("{}: {}", one.whose.join(", "), one.text),
            (_, others) => format!("{} and {others} more: {}", one.whose.join(", "), one.text),
        };
        self.all.into_iter().map(whole).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A report of a run with one process and one chip, with one of everything, changed by `change`.
    fn value(host: &str, rank: Value, second: u32, change: impl FnOnce(&mut Value)) -> Value {
        let totals = json!({"buffers": 1, "bytes": 8, "bytes_per_bank": 4, "reserved_bytes": 16});
        let peak = |time_ns: u64| {
            let mut peak = totals.clone();
            peak["time_ns"] = time_ns.into();
            peak
        };
        let allocation = json!({"mesh": 0, "address": 32, "bytes_per_bank": 4});
        let mut report = json!({
            "schema": SCHEMA, "ttalloc_version": "0", "command": ["prog", host],
            "started": format!("2026-01-01T00:00:{second:02}Z"), "duration_ns": 500,
            "exit": {"code": 0}, "host": host, "rank": rank, "sources": [],
            "integrity": {
                "events": 10, "dropped": 0, "torn": 0, "bad_records": 0, "unknown_frees": 0,
                "inherited_frees": 1, "unattributed": 0, "unattributed_runs": 0, "inherited_runs": 2,
                "external_placements": 3, "overlaps": 4, "programs_left_out": 5,
                "reconciled": {"compared": 6, "agreed": 5, "differed": 1, "skipped": 7, "differences": [{
                    "process": 0, "pid": 7, "chips": [0], "type": "L1", "bytes_per_bank": 1,
                    "runtime_bytes_per_bank": 2, "at": "close", "time_ns": 20,
                }]},
                "cross_check": null, "problems": [], "complete": true,
            },
            "processes": [{
                "process": 0, "pid": 7, "inner_pid": 7, "parent_pid": 1, "parent_process": null,
                "forked": false, "start_ticks": 99 + rank.as_u64().unwrap_or(0), "rank": rank, "host": host, "argv": [],
                "argv_cut": false, "exit": null, "runtime": null,
            }],
            "meshes": [{"process": 0, "pid": 7, "mesh": 0, "chips": [0]}],
            "devices": [{
                "process": 0, "pid": 7, "chip": 0, "arch": "blackhole",
                "memory": [{
                    "type": "DRAM", "banks": 4, "bank_bytes": 100, "bank_bytes_now": 100,
                    "bank_bytes_least": 100, "live": totals, "live_at_close": null, "peak": peak(10),
                    "allocations": 3, "frees": 2, "released": 0, "failed": 1,
                    "allocated_bytes_total": 24,
                    "purposes": [{
                        "purpose": "trace", "live": totals, "peak": peak(11), "allocations": 1,
                    }],
                }],
                "circular_buffers": {
                    "programs": 1, "runs": 1,
                    "largest": {"bytes": 1, "end_address": 2, "program": 0, "time_ns": 12},
                    "headroom": {
                        "bytes": -1, "lowest_buffer_address": null, "region_end_address": 2,
                        "program": null, "time_ns": 13,
                    },
                },
                "planned": [{"type": "L1", "buffers": 1, "live": totals, "peak": peak(0)}],
                "reserved": null,
            }],
            "live_buffers": [{
                "process": 0, "pid": 7, "chips": [0], "type": "DRAM", "address": 32, "bytes": 8,
                "bytes_per_bank": 4, "cores": null, "purpose": "data", "page_bytes": 8,
                "allocated_ns": 10,
            }],
            "programs": [{
                "process": 0, "pid": 7, "id": 3, "kernels": ["k"], "chips": [0], "runs": 1,
                "refused": 0, "objects": 1, "live": 0, "first_ns": 14, "last_ns": 0,
                "region_end_address": 2, "circular_buffers": [],
            }],
            "traces": [{
                "process": 0, "pid": 7, "id": 1, "mesh": 0, "chips": [0], "bytes_per_bank": 4,
                "reserved_bytes": 16, "dispatches": 1, "replays": 1, "captured_ns": 15,
                "released_ns": 16,
            }],
            "overlaps": [{
                "process": 0, "pid": 7, "chips": [0], "type": "L1", "later": allocation,
                "earlier": allocation, "time_ns": 17,
            }],
            "failures": [{
                "process": 0, "pid": 7, "chips": [0], "type": "L1", "bytes": 8, "page_bytes": 8,
                "banks": 4, "free_bytes_per_bank": null, "largest_free_block_per_bank": null,
                "time_ns": 18,
            }],
            "further_failures": 8,
        });
        report["devices"][0]["host"] = host.into();
        change(&mut report);
        report
    }

    fn report(host: &str, rank: impl Into<Value>, second: u32) -> Report {
        serde_json::from_value(value(host, rank.into(), second, |_| {})).unwrap()
    }

    fn merged(reports: &[Report]) -> Report {
        let mut merge = Merge::default();
        for (at, report) in reports.iter().enumerate() {
            merge.add(Path::new(&format!("{at}.json")), report.clone()).unwrap();
        }
        merge.finish().unwrap()
    }

    fn refused(change: impl FnOnce(&mut Value)) -> String {
        let report = serde_json::from_value(value("a", json!(0), 0, change)).unwrap();
        Merge::default().add(Path::new("r.json"), report).unwrap_err().to_string()
    }

    #[test]
    fn what_is_listed_is_listed_on_and_what_is_counted_is_summed() {
        let (a, b) = (report("a", 0, 0), report("b", 1, 2));
        let all = merged(&[a.clone(), b.clone()]);
        let mut later = serde_json::to_value(&b).unwrap();
        // The second report as it stands in the merged one: two seconds later, with the next numbers.
        move_on(&mut later, 2_000_000_000);
        let expected: Report = serde_json::from_value(later).unwrap();
        assert_eq!(all.processes, [&a.processes[..], &expected.processes].concat());
        assert_eq!(all.meshes, [&a.meshes[..], &expected.meshes].concat());
        assert_eq!(all.devices, [&a.devices[..], &expected.devices].concat());
        assert_eq!(all.live_buffers, [&a.live_buffers[..], &expected.live_buffers].concat());
        assert_eq!(all.programs, [&a.programs[..], &expected.programs].concat());
        assert_eq!(all.traces, [&a.traces[..], &expected.traces].concat());
        assert_eq!(all.overlaps, [&a.overlaps[..], &expected.overlaps].concat());
        assert_eq!(all.failures, [&a.failures[..], &expected.failures].concat());
        let differences = |report: &Report| report.integrity.reconciled.differences.clone();
        assert_eq!(differences(&all), [differences(&a), differences(&expected)].concat());

        let integrity = serde_json::to_value(&all.integrity).unwrap();
        let of_one = serde_json::to_value(&a.integrity).unwrap();
        for counts in ["", "/reconciled"] {
            for (name, count) in of_one.pointer(counts).unwrap().as_object().unwrap() {
                let Some(count) = count.as_u64() else { continue };
                let sum = integrity.pointer(&format!("{counts}/{name}")).unwrap();
                assert_eq!(*sum, json!(2 * count), "{name}");
            }
        }
        assert!(all.integrity.complete);
        assert_eq!(all.further_failures, 16);
        assert_eq!((&*all.started, all.duration_ns), ("2026-01-01T00:00:00Z", 2_000_000_500));
        assert_eq!((&*all.host, all.rank), ("", None));
        assert_eq!(all.sources.len(), 2);
        let source = &all.sources[1];
        assert_eq!((&*source.file, &*source.host, source.rank), ("1.json", "b", Some(1)));
        assert_eq!((&*source.started, source.duration_ns), ("2026-01-01T00:00:02Z", 500));
        assert_eq!((&source.command, source.processes), (&vec!["prog".into(), "b".into()], 1));
    }

    /// Every time that is one moved, and every number of a process or a program raised by one.
    fn move_on(value: &mut Value, shift: u64) {
        match value {
            Value::Array(values) => values.iter_mut().for_each(|value| move_on(value, shift)),
            Value::Object(fields) => {
                for (name, value) in fields {
                    match (name.as_str(), value.as_u64()) {
                        ("process" | "program", Some(number)) => *value = (number + 1).into(),
                        ("duration_ns", _) | (_, Some(0)) => {}
                        (name, Some(time)) if name.ends_with("_ns") => {
                            *value = (time + shift).into()
                        }
                        _ => move_on(value, shift),
                    }
                }
            }
            _ => {}
        }
    }

    #[test]
    fn the_order_of_the_files_makes_no_difference_but_to_their_names() {
        let all =
            [report("b", 10, 0), report("a", 2, 1), report("a", Value::Null, 2), report("c", 1, 3)];
        let hosts = |report: &Report| -> Vec<_> {
            report.sources.iter().map(|one| (one.rank, one.host.clone())).collect()
        };
        let mut backwards = all.to_vec();
        backwards.reverse();
        let (one, other) = (merged(&all), merged(&backwards));
        let expected = [(Some(1), "c"), (Some(2), "a"), (Some(10), "b"), (None, "a")];
        assert_eq!(hosts(&one), expected.map(|(rank, host)| (rank, host.to_owned())));
        assert_eq!((&one.processes, &one.devices), (&other.processes, &other.devices));
        let numbers: Vec<_> = one.processes.iter().map(|process| process.process).collect();
        assert_eq!(numbers, [0, 1, 2, 3]);
    }

    #[test]
    fn merged_reports_can_be_merged() {
        let all = [report("a", 0, 3), report("a", 1, 2), report("b", 2, 1), report("b", 3, 0)];
        let at_once = merged(&all);
        let mut in_steps = merged(&[merged(&all[..2]), merged(&all[2..])]);
        for (at, source) in in_steps.sources.iter_mut().enumerate() {
            source.file = format!("{at}.json");
        }
        assert_eq!(in_steps, at_once);
    }

    #[test]
    fn the_exit_is_the_first_that_is_not_good() {
        let end = |rank: u32, exit: Exit| Report { exit, ..report("a", rank, 0) };
        let good = |rank| end(rank, Exit::Code(0));
        assert_eq!(merged(&[good(0), good(1)]).exit, Exit::Code(0));
        let (killed, failed) = (Exit::Signal("SIGKILL".to_owned()), Exit::Code(3));
        assert_eq!(merged(&[end(2, failed.clone()), good(0), end(1, killed.clone())]).exit, killed);
        let inner = merged(&[good(0), end(1, failed.clone())]);
        assert_eq!(merged(&[good(2), inner]).exit, failed);
        let running = Exit::Running(true);
        assert_eq!(merged(&[good(0), end(1, running.clone())]).exit, running);
        assert_eq!(merged(&[end(0, running), end(1, failed.clone())]).exit, failed);
    }

    #[test]
    fn problems_say_whose_they_are_and_stand_once() {
        let with = |host: &str, rank: Value, problem: &str| {
            let mut report = report(host, rank, 0);
            report.integrity.problems.push(problem.to_owned());
            report.integrity.complete = false;
            report
        };
        let mut all = vec![report("a", 0, 0)];
        all.extend((1..7).map(|rank| with("b", rank.into(), "2 events were dropped")));
        all.push(with("c", Value::Null, "another"));
        let integrity = merged(&all).integrity;
        assert!(!integrity.complete);
        assert_eq!(
            integrity.problems,
            [
                "rank 1 on b, rank 2 on b, rank 3 on b and 3 more: 2 events were dropped",
                "7.json of c: another"
            ]
        );
        let again = merged(&[merged(&all), report("d", 0, 9)]).integrity;
        assert_eq!(again.problems, integrity.problems);
    }

    #[test]
    fn counters_are_compared_only_if_they_are_everywhere() {
        let with = |rank: u32, state: &str, compared: u64| {
            let check = json!({
                "state": state, "reasons": if state == "compared" { json!([]) } else { json!(["no file"]) },
                "compared": compared, "agreed": compared, "differed": 0, "differences": [],
            });
            let change = |report: &mut Value| report["integrity"]["cross_check"] = check;
            serde_json::from_value::<Report>(value("a", json!(rank), 0, change)).unwrap()
        };
        let check = |reports: &[Report]| merged(reports).integrity.cross_check;
        assert_eq!(check(&[report("a", 0, 0), report("a", 1, 0)]), None);
        let whole = check(&[with(0, "compared", 3), with(1, "compared", 4)]).unwrap();
        assert_eq!((whole.state, whole.compared, whole.agreed), (CrossCheckState::Compared, 7, 7));
        let partly = check(&[with(0, "compared", 3), report("a", 1, 0)]).unwrap();
        assert_eq!(partly.state, CrossCheckState::Partly);
        assert!(partly.reasons[0].starts_with("rank 1 on a: "), "{:?}", partly.reasons);
        let none = check(&[with(0, "unavailable", 0), with(1, "unavailable", 0)]).unwrap();
        assert_eq!(none.state, CrossCheckState::Unavailable);
        assert_eq!(none.reasons, ["rank 0 on a, rank 1 on a: no file"]);
    }

    #[test]
    fn a_process_counts_once() {
        let mut merge = Merge::default();
        merge.add(Path::new("a.json"), report("a", 0, 0)).unwrap();
        let error = merge.add(Path::new("b.json"), report("a", 0, 0)).unwrap_err().to_string();
        assert!(error.starts_with("a.json and b.json are both about process 7 on a, "), "{error}");
        // Another host, another start of the process, another run.
        merge.add(Path::new("b.json"), report("b", 0, 0)).unwrap();
        let mut other = report("a", 0, 0);
        other.processes[0].start_ticks += 1;
        merge.add(Path::new("c.json"), other).unwrap();
        merge.add(Path::new("d.json"), report("a", 0, 1)).unwrap();
        // What is merged knows what it is made of.
        let all = merged(&[report("a", 0, 5), report("a", 0, 1)]);
        let error = merge.add(Path::new("e.json"), all).unwrap_err().to_string();
        assert!(error.starts_with("d.json and e.json are both about "), "{error}");
        // exec keeps the pid.
        let mut twice = report("a", 0, 7);
        let again = twice.processes[0].clone();
        twice.processes.push(crate::report::Process { process: 1, ..again });
        merge.add(Path::new("f.json"), twice).unwrap();
        assert_eq!(merge.finish().unwrap().processes.len(), 6);
    }

    #[test]
    fn numbers_that_refer_to_nothing_are_refused() {
        for list in
            ["meshes", "devices", "live_buffers", "programs", "traces", "overlaps", "failures"]
        {
            let error = refused(|report| report[list][0]["process"] = 1.into());
            assert!(error.contains("refers to process number 1, and lists 1"), "{list}: {error}");
        }
        let error = refused(|report| {
            report["integrity"]["reconciled"]["differences"][0]["process"] = u64::MAX.into();
        });
        assert!(error.contains("refers to process number"), "{error}");
        refused(|report| report["processes"][0]["exit"] = serde_json::json!({"exec": 1}));
        let error = refused(|report| report["processes"][0]["parent_process"] = 1.into());
        assert!(error.contains("refers to process number"), "{error}");
        let error = refused(|report| report["processes"][0]["process"] = 1.into());
        assert!(error.contains("not numbered"), "{error}");
        for place in ["largest", "headroom"] {
            let error = refused(|report| {
                report["devices"][0]["circular_buffers"][place]["program"] = 1.into();
            });
            assert!(error.contains("refers to program number 1, and lists 1"), "{error}");
        }
        let error = refused(|report| report["started"] = "yesterday".into());
        assert!(error.contains("\"yesterday\""), "{error}");
        let error = refused(|report| {
            let mut all = serde_json::to_value(merged(&[super::tests::report("a", 0, 0)])).unwrap();
            all["sources"][0]["processes"] = u64::MAX.into();
            *report = all;
        });
        assert!(error.contains("don't fit together"), "{error}");
    }

    #[test]
    fn what_is_no_report_is_said_to_be_none() {
        let error =
            |json: &str| parse(Path::new("r.json"), json.as_bytes()).unwrap_err().to_string();
        let whole = serde_json::to_string(&report("a", 0, 0)).unwrap();
        assert!(parse(Path::new("r.json"), whole.as_bytes()).is_ok());
        for end in [0, 1, whole.len() / 2, whole.len() - 1] {
            let message = error(&whole[..end]);
            assert!(message.starts_with("r.json ends in the middle"), "{end}: {message}");
        }
        for (json, what) in [
            ("hello", "no JSON ("),
            ("[1]", "no JSON object"),
            ("3", "no JSON object"),
            ("{}", "no JSON object that names its schema"),
            ("{\"schema\": \"ttalloc.report/1\"}", "does not fit"),
            ("{\"schema\": \"ttalloc.report/2\"}", "has the schema \"ttalloc.report/2\""),
        ] {
            let message = error(json);
            assert!(message.starts_with("r.json ") && message.contains(what), "{json}: {message}");
        }
        let newer = whole.replacen(SCHEMA, "ttalloc.report/9", 1);
        assert!(error(&newer).contains("has the schema ttalloc.report/9"));
        assert!(error(&format!("{whole}x")).contains("no JSON ("));
    }

    #[test]
    fn a_report_alone_stays_what_it_is() {
        let one = report("a", 3, 0);
        let mut alone = merged(std::slice::from_ref(&one));
        assert_eq!(alone.sources.len(), 1);
        alone.sources.clear();
        alone.ttalloc_version = one.ttalloc_version.clone();
        assert_eq!(alone, one);
    }
}
