//! What the report lists, and what it only counts: of more than was asked for, the largest are listed.
//! No figure depends on it.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Run;
use crate::ledger::{Allocation, Folded, Largest, Ledger, MemoryType, Process, Totals};
use crate::programs::Program;

/// How many problems are told one by one.
const MOST_PROBLEMS: usize = 100;

/// How much is not listed. Figures include it, but for those of `processes`, which
/// `further_processes` has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LeftOut {
    /// Processes: those that reserved least at their peak. What they opened is not in `devices` either.
    #[serde(default)]
    pub processes: u64,
    /// Meshes that have closed, the oldest.
    #[serde(default)]
    pub meshes: u64,
    /// Live buffers: those that reserve least on all of their chips together.
    #[serde(default)]
    pub buffers: u64,
    /// What those reserve on all of their chips together.
    #[serde(default)]
    pub buffers_reserved_bytes: u64,
    /// Program objects: those with the smallest regions in L1, and of equals those that ran least.
    #[serde(default)]
    pub programs: u64,
    /// Traces that were released, those with the smallest buffers.
    #[serde(default)]
    pub traces: u64,
    /// Overlaps, all but the first of each process.
    #[serde(default)]
    pub overlaps: u64,
    /// Buffer objects whose memory the runtime had let go, and which were forgotten since then. If one
    /// still asks to free it, that is among `unknown_frees`.
    #[serde(default)]
    pub released_objects: u64,
}

/// The sums over the processes that are not listed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FurtherProcesses {
    /// How many there are.
    pub processes: u64,
    /// How often programs ran, once for each chip.
    pub runs: u64,
    /// Their memory, by type, over all chips. A type is left out if nothing asked for it.
    pub memory: Vec<FurtherMemory>,
}

/// One type of memory of all chips of the processes that are not listed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FurtherMemory {
    /// The type.
    #[serde(rename = "type")]
    pub kind: MemoryType,
    /// What was allocated when they ended, over all chips.
    pub live: Totals,
    /// The most that was allocated at once on one chip by one process.
    pub peak: Totals,
    /// Successful allocations.
    pub allocations: u64,
    /// Buffers freed one by one.
    pub frees: u64,
    /// Buffers let go all at once.
    pub released: u64,
    /// Allocations that ended in an exception.
    pub failed: u64,
    /// The bytes asked for by all successful allocations.
    pub allocated_bytes_total: u64,
}

impl FurtherProcesses {
    /// Adds those of another report.
    pub(crate) fn add(&mut self, other: FurtherProcesses) {
        let add = |sum: &mut u64, count: u64| *sum = sum.saturating_add(count);
        add(&mut self.processes, other.processes);
        add(&mut self.runs, other.runs);
        for one in other.memory {
            let same = self.memory.iter_mut().find(|same| same.kind == one.kind);
            let Some(same) = same else {
                self.memory.push(one);
                continue;
            };
            same.live.add(one.live);
            if one.peak.reserved_bytes > same.peak.reserved_bytes {
                same.peak = one.peak;
            }
            add(&mut same.allocations, one.allocations);
            add(&mut same.frees, one.frees);
            add(&mut same.released, one.released);
            add(&mut same.failed, one.failed);
            add(&mut same.allocated_bytes_total, one.allocated_bytes_total);
        }
        self.memory.sort_by_key(|one| one.kind);
    }
}

impl LeftOut {
    /// Adds those of another report.
    pub(crate) fn add(&mut self, other: &LeftOut) {
        for (sum, count) in [
            (&mut self.processes, other.processes),
            (&mut self.meshes, other.meshes),
            (&mut self.buffers, other.buffers),
            (&mut self.buffers_reserved_bytes, other.buffers_reserved_bytes),
            (&mut self.programs, other.programs),
            (&mut self.traces, other.traces),
            (&mut self.overlaps, other.overlaps),
            (&mut self.released_objects, other.released_objects),
        ] {
            *sum = sum.saturating_add(count);
        }
    }

    /// What is not listed, in words; None if everything is.
    pub fn sentence(&self) -> Option<String> {
        let parts = [
            (self.processes, "process", "processes"),
            (self.buffers, "live buffer", "live buffers"),
            (self.programs, "program", "programs"),
            (self.traces, "trace", "traces"),
            (self.meshes, "mesh", "meshes"),
            (self.overlaps, "overlap", "overlaps"),
        ];
        let parts: Vec<_> = parts
            .into_iter()
            .filter(|(count, ..)| *count != 0)
            .map(|(count, one, many)| format!("{count} {}", if count == 1 { one } else { many }))
            .collect();
        (!parts.is_empty()).then(|| {
            format!(
                "The report counts, but doesn't list, the smallest or oldest: {} (--max-buffers, --max-programs and --max-processes list more).",
                parts.join(", ")
            )
        })
    }
}

/// Which of the processes in the books are listed.
pub(super) struct Listed {
    numbers: BTreeSet<u32>,
    folded: Folded,
}

impl Listed {
    /// The program's own process, and the largest others.
    pub(super) fn new(run: &Run, ledger: &Ledger) -> Listed {
        let pid = |process: &Process| process.identity.as_ref().map(|identity| identity.pid);
        let of_pid = ledger.processes.iter().filter(|(_, one)| pid(one) == Some(run.pid));
        let own = of_pid.map(|(&number, _)| number).next_back();
        let size = |number: u32, process: &Process| (Some(number) == own, process.size());
        let all = || ledger.processes.iter().map(|(&number, one)| (number, one));
        let sizes = all().map(|(number, process)| size(number, process)).collect();
        let mut largest = Largest::of(sizes, ledger.limits().processes.max(1));
        let (mut numbers, mut folded) = (BTreeSet::new(), ledger.folded.clone());
        for (number, process) in all() {
            match largest.keeps(&size(number, process)) {
                true => {
                    numbers.insert(number);
                }
                false => folded.add(process),
            }
        }
        Listed { numbers, folded }
    }

    pub(super) fn has(&self, number: u32) -> bool {
        self.numbers.contains(&number)
    }

    /// The processes that are listed, in order.
    pub(super) fn of<'a>(&self, ledger: &'a Ledger) -> impl Iterator<Item = (u32, &'a Process)> {
        let all = ledger.processes.iter().map(|(&number, process)| (number, process));
        all.filter(|(number, _)| self.has(*number))
    }

    /// The place in the report's `processes` of each, by its number.
    pub(super) fn places(&self, run: &Run, ledger: &Ledger) -> impl Iterator<Item = (u32, u64)> {
        // Where nothing was heard of the program's own process, it is put before the others.
        let first = u64::from(!self.of(ledger).any(|(_, books)| super::is_of(run.pid, books)));
        self.numbers.iter().copied().zip(first..)
    }

    /// What is not listed, apart from live buffers and programs of those that are.
    pub(super) fn left_out(&self, ledger: &Ledger) -> LeftOut {
        let mut left_out = LeftOut {
            processes: self.folded.processes,
            meshes: self.folded.meshes,
            buffers: self.folded.buffers,
            buffers_reserved_bytes: self.folded.reserved_bytes,
            programs: self.folded.programs,
            traces: self.folded.traces,
            overlaps: self.folded.overlaps,
            released_objects: 0,
        };
        for (_, process) in self.of(ledger) {
            left_out.meshes += process.left_out.meshes;
            left_out.add_buffers(process.left_out.buffers, process.left_out.reserved_bytes);
            left_out.programs += process.programs.left_out;
            left_out.traces += process.programs.traces_left_out;
            left_out.overlaps +=
                process.overlap_count.saturating_sub(process.overlaps.len() as u64);
            left_out.released_objects += process.left_out.released;
        }
        left_out
    }

    /// The sums over the processes that are not; None if there is none.
    pub(super) fn further(&self) -> Option<FurtherProcesses> {
        let memory = MemoryType::ALL.into_iter().zip(&self.folded.memory);
        let memory = memory.filter(|(_, one)| one.allocations + one.failed != 0);
        let memory = memory.map(|(kind, one)| FurtherMemory {
            kind,
            live: one.live,
            peak: one.peak,
            allocations: one.allocations,
            frees: one.frees,
            released: one.released,
            failed: one.failed,
            allocated_bytes_total: one.allocated_bytes_total,
        });
        (self.folded.processes != 0).then(|| FurtherProcesses {
            processes: self.folded.processes,
            runs: self.folded.runs,
            memory: memory.collect(),
        })
    }

    /// The largest live buffers of the processes that are listed, each with its process.
    pub(super) fn buffers<'a>(
        &self,
        ledger: &'a Ledger,
        left_out: &mut LeftOut,
    ) -> Vec<(u32, &'a [i32], &'a Allocation)> {
        let size = |chips: &[i32], one: &Allocation| {
            one.totals.reserved_bytes.saturating_mul(chips.len() as u64)
        };
        let all = || {
            self.of(ledger).flat_map(|(number, process)| {
                process.live().map(move |(chips, one)| (number, chips, one))
            })
        };
        let sizes = all().map(|(_, chips, one)| size(chips, one)).collect();
        let mut largest = Largest::of(sizes, ledger.limits().buffers);
        let mut listed = Vec::new();
        for (number, chips, one) in all() {
            let size = size(chips, one);
            match largest.keeps(&size) {
                true => listed.push((number, chips, one)),
                false => left_out.add_buffers(1, size),
            }
        }
        listed
    }

    /// The largest programs of the processes that are listed, each with its process and the numbers that
    /// it stands for.
    pub(super) fn programs(
        &self,
        ledger: &Ledger,
        left_out: &mut LeftOut,
    ) -> Vec<(u32, Vec<u64>, Program)> {
        let mut all = Vec::new();
        for (process, books) in self.of(ledger) {
            let needed = books.needed_programs();
            for (numbers, program) in books.programs.all() {
                let is_needed = numbers.iter().any(|number| needed.contains(number));
                all.push((program.size(is_needed), process, numbers, program));
            }
        }
        let sizes = all.iter().map(|(size, ..)| *size).collect();
        let mut largest = Largest::of(sizes, ledger.limits().programs);
        let mut listed = Vec::new();
        for (size, process, numbers, program) in all {
            match largest.keeps(&size) {
                true => listed.push((process, numbers, program)),
                false => left_out.programs += program.objects,
            }
        }
        listed
    }
}

impl LeftOut {
    fn add_buffers(&mut self, buffers: u64, reserved_bytes: u64) {
        self.buffers += buffers;
        self.buffers_reserved_bytes = self.buffers_reserved_bytes.saturating_add(reserved_bytes);
    }
}

/// What is missing in the books for want of room, in sentences.
pub(super) fn problems(ledger: &Ledger) -> Vec<String> {
    let mut problems = Vec::new();
    let mut say = |count: u64, what: &str| {
        if count != 0 {
            problems.push(format!("{count} {what}"));
        }
    };
    say(
        ledger.folded.troubled,
        "of the processes that are not listed were not tracked, or not all of their calls; --max-processes lists more",
    );
    say(
        ledger.anomalies.crowded,
        "records were left out, because the books were full: no program is known to have so much live at a time",
    );
    say(ledger.anomalies.after_end, "records came from processes that had ended");
    problems
}

/// Tells the first problems one by one, and how many more there are.
pub(super) fn bound(problems: &mut Vec<String>) {
    let further = problems.len().saturating_sub(MOST_PROBLEMS);
    if further > 1 {
        problems.truncate(MOST_PROBLEMS);
        problems.push(format!("{further} further problems are not listed"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Limits;
    use crate::report::{Exit, Report};
    use crate::summary::summary;
    use bytemuck::Zeroable;
    use std::collections::BTreeMap;
    use ttalloc_ring::record::{self, Body, Head, LocalKind};

    const MESH: u64 = 0x1000;
    const ALLOCATOR: u64 = 0x2000;

    fn tell<B: Body>(ledger: &mut Ledger, process: u32, body: &B, tail: &[u8]) {
        let time_ns = 100 + ledger.events;
        let head = Head { kind: B::KIND as u32, process, time_ns };
        ledger.enter(&[bytemuck::bytes_of(&head), bytemuck::bytes_of(body), tail].concat());
    }

    /// Processes 10, 11, … each with twenty buffers, ten programs and a mesh, the later the larger.
    fn ledger(limits: Limits, processes: u32) -> Ledger {
        let mut ledger = Ledger::new(limits);
        for process in 0..processes {
            let mut say = |body: &record::Process| tell(&mut ledger, process, body, b"python3\0");
            say(&record::Process { pid: 10 + process, parent_pid: 1, ..Zeroable::zeroed() });
            let mut runtime = record::Runtime::zeroed();
            (runtime.era, runtime.present) = (3, [u64::MAX; 4]);
            tell(&mut ledger, process, &runtime, b"libtt_metal.so");
            let strides = [1, 0, 0, 0];
            let device =
                record::Device { device: MESH, id: 0, arch: 2, is_mesh: 1, dims: 1, strides };
            tell(&mut ledger, process, &device, bytemuck::cast_slice(&[0_i32, 1]));
            let mut allocator = record::Allocator::zeroed();
            (allocator.allocator, allocator.device) = (ALLOCATOR, MESH);
            (allocator.banks[0], allocator.alignment) = (10, 32);
            tell(&mut ledger, process, &allocator, b"");
            for at in 0..20_u64 {
                let mut buffer = record::Allocate::zeroed();
                (buffer.allocator, buffer.buffer, buffer.address) = (ALLOCATOR, at, at << 20);
                buffer.bytes_per_bank = 32 * (at + 1 + 20 * u64::from(process));
                tell(&mut ledger, process, &buffer, b"");
            }
            for at in 0..10_u64 {
                let (kind, layout) = (LocalKind::Circular as u32, 1);
                let bytes = 100 * (at + 1) + u64::from(process);
                let local =
                    record::Local { program: at, address: 0, bytes, layout, kind, cores: 1 };
                tell(&mut ledger, process, &local, bytemuck::cast_slice(&[0_u16; 4]));
                let run = record::Run { workload: 0, program: at, device: MESH, refused: 0 };
                tell(&mut ledger, process, &run, b"");
            }
        }
        assert_eq!(ledger.anomalies, Default::default());
        ledger
    }

    fn report(ledger: &Ledger) -> Report {
        let run = Run {
            command: vec!["mpirun".to_owned()],
            started: jiff::Timestamp::UNIX_EPOCH,
            started_ns: 0,
            duration_ns: 1,
            pid: 10,
            parent_pid: 1,
            start_ticks: 0,
            exit: Exit::Code(0),
            snapshot: false,
            out_of_memory: None,
            dropped: 0,
            torn: 0,
            late: 0,
            spoiled: 0,
            ends: BTreeMap::new(),
            still_running: Vec::new(),
        };
        let report = Report::new(&run, ledger, |_| None);
        let json = serde_json::to_value(&report).unwrap();
        let schema = jsonschema::validator_for(&Report::json_schema()).unwrap();
        assert!(schema.is_valid(&json), "{:?}", schema.iter_errors(&json).next());
        report
    }

    #[test]
    fn without_limits_everything_is_listed() {
        let all = Limits { buffers: usize::MAX, programs: usize::MAX, processes: usize::MAX };
        let report = report(&ledger(all, 5));
        assert_eq!(report.integrity.left_out, LeftOut::default());
        assert_eq!((report.processes.len(), report.devices.len()), (5, 10));
        assert_eq!((report.live_buffers.len(), report.programs.len()), (100, 50));
        assert_eq!(report.further_processes, None);
        assert!(!summary(&report).contains("doesn't list"));
    }

    #[test]
    fn the_largest_are_listed_and_the_rest_is_counted() {
        let whole = report(&ledger(Limits::default(), 5));
        let limits = Limits { buffers: 30, programs: 7, processes: 3 };
        let mut ledger = ledger(limits, 5);
        for ended in [false, true] {
            if ended {
                (0..5).for_each(|process| ledger.end(process));
            }
            let report = report(&ledger);
            let pids: Vec<_> = report.processes.iter().map(|process| process.pid).collect();
            assert_eq!(pids, [10, 13, 14], "the program's own has least, and is listed");
            let buffers: Vec<_> =
                report.live_buffers.iter().map(|one| one.bytes_per_bank / 32).collect();
            assert_eq!(buffers, (71..=100).collect::<Vec<_>>());
            let ends = report.programs.iter().filter_map(|one| one.region_end_address);
            let ends: Vec<_> = ends.collect();
            assert_eq!(ends, [900, 1000, 903, 1003, 804, 904, 1004]);
            let left_out = &report.integrity.left_out;
            assert_eq!((left_out.processes, left_out.meshes), (2, 2));
            assert_eq!((left_out.buffers, left_out.programs), (70, 43));
            assert_eq!(left_out.buffers_reserved_bytes, (1..=70).sum::<u64>() * 32 * 10 * 2);
            assert_eq!(report.integrity.programs_left_out, 43);
            // Every chip refers to its largest program, which is therefore listed.
            for device in &report.devices {
                let used = device.circular_buffers.as_ref().unwrap();
                let largest = used.largest.as_ref().unwrap();
                let place = largest.program.unwrap() as usize;
                let end = report.programs[place].region_end_address;
                assert_eq!(end, Some(largest.end_address));
            }
            // The figures are whole.
            type Figure = fn(&crate::report::Memory) -> u64;
            let further = report.further_processes.as_ref().unwrap();
            let listed = |report: &Report, figure: Figure| {
                report.devices.iter().flat_map(|device| &device.memory).map(figure).sum::<u64>()
            };
            let dram = &further.memory[0];
            let figures: [(Figure, u64); 3] = [
                (|memory| memory.allocations, dram.allocations),
                (|memory| memory.live.reserved_bytes, dram.live.reserved_bytes),
                (|memory| memory.allocated_bytes_total, dram.allocated_bytes_total),
            ];
            for (figure, of_further) in figures {
                assert_eq!(listed(&report, figure) + of_further, listed(&whole, figure));
            }
            assert_eq!((further.processes, further.runs), (2, 2 * 2 * 10));
            let text = summary(&report);
            let sentence = "2 processes, 70 live buffers, 43 programs, 2 meshes (--max-buffers";
            assert!(text.contains(sentence) && text.contains(" 2 more "), "{text}");
            assert!(report.integrity.complete, "{:?}", report.integrity.problems);
        }
    }

    #[test]
    fn reports_that_are_merged_have_both_their_rests() {
        let rest = |processes: u32| {
            let report = report(&ledger(Limits { processes: 1, ..Limits::default() }, processes));
            (report.further_processes.unwrap(), report.integrity.left_out)
        };
        let ((mut sum, mut left_out), (other, of_other)) = (rest(4), rest(3));
        let reserved = [&sum, &other].map(|one| one.memory[0].live.reserved_bytes);
        sum.add(other.clone());
        left_out.add(&of_other);
        assert_eq!((sum.processes, sum.memory.len(), left_out.buffers), (3 + 2, 1, 60 + 40));
        assert_eq!(sum.memory[0].live.reserved_bytes, reserved[0] + reserved[1]);
        assert_eq!(sum.memory[0].allocations, 2 * 20 * 5);
        assert!(sum.memory[0].peak.reserved_bytes > other.memory[0].peak.reserved_bytes);
    }

    #[test]
    fn nothing_need_be_listed() {
        let limits = Limits { buffers: 0, programs: 0, processes: 0 };
        let report = report(&ledger(limits, 3));
        assert_eq!((report.processes.len(), report.live_buffers.len()), (1, 0));
        assert_eq!((report.programs.len(), report.integrity.left_out.programs), (0, 30));
        let used = report.devices[0].circular_buffers.as_ref().unwrap();
        assert_eq!(used.largest.as_ref().unwrap().program, None);
    }

    #[test]
    fn problems_without_end_are_not_told_one_by_one() {
        let mut problems: Vec<_> = (0..500).map(|at| at.to_string()).collect();
        bound(&mut problems);
        assert_eq!(problems.len(), 101);
        assert_eq!(problems[100], "400 further problems are not listed");
        let mut problems = vec![String::new(); 101];
        bound(&mut problems);
        assert_eq!(problems.len(), 101);
    }
}
