//! The books beside the counters that tt-metal keeps itself, at the program's end.
//!
//! The counters say for each process and chip what its buffers hold, in bytes as asked for, not what the
//! allocator charges. They are kept beside the allocator, not in it, and go their own ways in some
//! cases; those that can be told from the books are named with a difference.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Run, process_places};
use crate::ledger::{Ledger, MemoryType, Process as Books};
use crate::run::counters::{Counters, Region};

/// How many differences are listed.
const MOST: usize = 100;
/// The types that are counted, in the counters' order.
const COUNTED: [MemoryType; 4] =
    [MemoryType::Dram, MemoryType::L1, MemoryType::L1Small, MemoryType::Trace];

/// What came of comparing the live bytes with tt-metal's own counters at the program's end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CrossCheck {
    /// Whether there was anything to compare with.
    pub state: CrossCheckState,
    /// Why not, for all or some of the chips: one sentence each.
    pub reasons: Vec<String>,
    /// Figures that were compared: one for each process, chip and type of memory that was used.
    pub compared: u64,
    /// Of these, the ones that were the same.
    pub agreed: u64,
    /// And the ones that were not.
    pub differed: u64,
    /// The first 100 differences.
    pub differences: Vec<CounterDifference>,
}

/// Whether figures were compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CrossCheckState {
    /// All that there were.
    Compared,
    /// Some of them; `reasons` says what is missing.
    Partly,
    /// None; `reasons` says why.
    Unavailable,
}

/// A counter that says something else than the books.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CounterDifference {
    /// The number of the process; null if that one is not listed.
    #[serde(default)]
    pub process: Option<u64>,
    /// Its pid.
    pub pid: u32,
    /// The chips that the counter is of: one, unless the runtime can't tell some apart.
    pub chips: Vec<i32>,
    /// The type of memory.
    #[serde(rename = "type")]
    pub kind: MemoryType,
    /// What the books have as allocated, in bytes as asked for.
    pub bytes: u64,
    /// What the counter has.
    pub counter_bytes: u64,
    /// The counter's file.
    pub file: String,
    /// What is known to make them differ, one sentence each.
    pub reasons: Vec<String>,
}

impl CrossCheck {
    /// Compares what the processes held at the program's end with the counters of that time. `before`
    /// are those from before the program started.
    pub fn new(before: &Counters, after: &Counters, run: &Run, ledger: &Ledger) -> CrossCheck {
        let mut check = CrossCheck::unavailable(Vec::new());
        for (number, process) in process_places(run, ledger) {
            let Some(books) = ledger.processes.get(&number) else { continue };
            check.add(process, number, books, &Context { before, after, run, ledger });
        }
        if check.compared == 0 && check.reasons.is_empty() {
            check.reasons.push("no process allocated any memory that could be counted".to_owned());
        }
        check.state = match (check.compared, check.reasons.is_empty()) {
            (0, _) => CrossCheckState::Unavailable,
            (_, false) => CrossCheckState::Partly,
            (_, true) => CrossCheckState::Compared,
        };
        check
    }

    /// Nothing could be compared.
    pub fn unavailable(reasons: Vec<String>) -> CrossCheck {
        CrossCheck {
            state: CrossCheckState::Unavailable,
            reasons,
            compared: 0,
            agreed: 0,
            differed: 0,
            differences: Vec::new(),
        }
    }

    /// What a person should know of it, one sentence each. With nothing to worry about, one.
    pub fn sentences(&self) -> Vec<String> {
        const SHOWN: usize = 5;
        let mut sentences = self.reasons.clone();
        if self.compared != 0 {
            sentences.push(format!(
                "{} of {} figures agree with tt-metal's own counters",
                self.agreed, self.compared
            ));
        }
        for one in self.differences.iter().take(SHOWN) {
            sentences.push(format!(
                "process {} holds {} bytes of {} on chips {:?}, but the counter says {}: {}",
                one.pid,
                one.bytes,
                one.kind,
                one.chips,
                one.counter_bytes,
                one.reasons.join("; ")
            ));
        }
        if self.differed > SHOWN as u64 {
            sentences.push("further differences are in the report".to_owned());
        }
        sentences
    }

    fn add(&mut self, process: u64, number: u32, books: &Books, context: &Context) {
        let Some(identity) = &books.identity else { return };
        let pid = identity.pid;
        if context.is_replaced(number, pid) {
            // exec: the counters go on under the pid of the program that came after.
            return;
        }
        let used = books
            .chips
            .iter()
            .filter(|(_, chip)| COUNTED.into_iter().any(|kind| chip.memory(kind).allocations != 0));
        let mut files: BTreeMap<&PathBuf, (&Region, Vec<i32>)> = BTreeMap::new();
        let mut missing = Vec::new();
        for (&chip, _) in used {
            match context.file_of(chip, pid) {
                Some((path, region)) => {
                    files.entry(path).or_insert((region, Vec::new())).1.push(chip);
                }
                None => missing.push(chip),
            }
        }
        if !missing.is_empty() {
            self.reasons.push(format!(
                "process {pid} had no counters on chips {missing:?}: tt-metal keeps them from 0.70.1 on, unless TT_METAL_SHM_TRACKING_DISABLED is 1"
            ));
            self.reasons.extend(context.errors());
        }
        for (path, (region, chips)) in files {
            if context.slot(path, region, pid).is_none() && region.is_full() {
                self.reasons.push(format!(
                    "{} has no room for process {pid}: dead processes fill it; remove the file when no process uses the chip",
                    path.display()
                ));
                continue;
            }
            for (at, kind) in COUNTED.into_iter().enumerate() {
                let sum = |figure: fn(&crate::ledger::Memory) -> u64| -> u64 {
                    let figures = chips.iter().map(|chip| figure(books.chips[chip].memory(kind)));
                    figures.fold(0, u64::saturating_add)
                };
                let bytes = sum(|memory| memory.live.bytes);
                let slot = context.slot(path, region, pid);
                let counter_bytes = slot.map_or(0, |slot| slot[at]);
                if sum(|memory| memory.allocations) == 0 && counter_bytes == 0 {
                    continue;
                }
                self.compared += 1;
                if bytes == counter_bytes {
                    self.agreed += 1;
                    continue;
                }
                self.differed += 1;
                if self.differences.len() < MOST {
                    let mut reasons = context.reasons(path, pid, identity.forked);
                    if sum(|memory| memory.released) != 0 {
                        reasons.push("buffers were let go all at once, as when a submesh closes, which the counters do not see".to_owned());
                    }
                    if reasons.is_empty() {
                        reasons.push(generic(bytes, counter_bytes).to_owned());
                    }
                    self.differences.push(CounterDifference {
                        process: Some(process),
                        pid,
                        chips: chips.clone(),
                        kind,
                        bytes,
                        counter_bytes,
                        file: path.display().to_string(),
                        reasons,
                    });
                }
            }
        }
    }
}

/// What makes counters differ that the books don't tell of.
fn generic(bytes: u64, counter_bytes: u64) -> &'static str {
    if counter_bytes > bytes {
        "the counters include buffers that a graph capture without dispatch only planned"
    } else {
        "the counters may miss what other threads allocate than the one that opened the device, and leave out what is freed under a graph capture without dispatch, though it stays allocated"
    }
}

struct Context<'a> {
    before: &'a Counters,
    after: &'a Counters,
    run: &'a Run,
    ledger: &'a Ledger,
}

impl<'a> Context<'a> {
    /// Whether a later program had the pid.
    fn is_replaced(&self, number: u32, pid: u32) -> bool {
        self.programs_of(pid).any(|other| other > number)
    }

    fn programs_of(&self, pid: u32) -> impl Iterator<Item = u32> {
        self.ledger.processes.iter().filter_map(move |(&number, books)| {
            (books.identity.as_ref()?.pid == pid).then_some(number)
        })
    }

    fn region_before(&self, path: &PathBuf) -> Option<&Region> {
        self.before.files.get(path)?.as_ref().ok()
    }

    /// The file with the counters of a process's chip, if the run has written to one.
    fn file_of(&self, chip: i32, pid: u32) -> Option<(&'a PathBuf, &'a Region)> {
        let files = self.after.files.iter().filter_map(|(path, region)| {
            let region = region.as_ref().ok()?;
            let was_written =
                self.region_before(path).is_none_or(|before| before.updated != region.updated);
            (was_written && region.chips.contains(&chip)).then_some((path, region))
        });
        // Processes that see different chips have different ids for them.
        files.max_by_key(|(path, region)| self.slot(path, region, pid).is_some())
    }

    /// Why some files could not be read.
    fn errors(&self) -> impl Iterator<Item = String> {
        let errors = self.after.files.iter().filter_map(|(path, region)| {
            Some(format!("{} can't be used: {}", path.display(), region.as_ref().err()?))
        });
        errors.take(3)
    }

    /// A process's counters, unless an older process of its pid left them.
    fn slot(&self, path: &PathBuf, region: &'a Region, pid: u32) -> Option<&'a [u64; 4]> {
        let slot = region.slot(pid)?;
        let older = self.region_before(path).and_then(|before| before.slot(pid));
        (older != Some(slot)).then_some(&slot.bytes)
    }

    /// What is known of a process and its counters that makes them differ from the books.
    fn reasons(&self, path: &PathBuf, pid: u32, forked: bool) -> Vec<String> {
        let mut reasons = Vec::new();
        let mut say = |holds: bool, what: &str| {
            if holds {
                reasons.push(what.to_owned());
            }
        };
        let older = self.region_before(path).and_then(|before| before.slot(pid));
        say(older.is_some(), "an older process of the same pid has left its counters behind");
        say(
            self.programs_of(pid).count() > 1,
            "the process has called exec, and the earlier program's counters went on",
        );
        say(forked, "the process was forked, and frees what its parent has allocated");
        say(self.run.dropped != 0, "events were dropped");
        say(self.run.still_running.contains(&pid), "the process was still running");
        reasons
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Exit;
    use crate::run::counters::Slot;
    use ttalloc_ring::record::{self, Body, Head, TYPES};

    const PID: u32 = 7;
    const MESH: u64 = 0x1000;
    const ALLOCATOR: u64 = 0x2000;

    #[derive(Default)]
    struct Story(Ledger);

    impl Story {
        fn tell<B: Body>(&mut self, process: u32, body: &B, tail: &[u8]) {
            let head = Head { kind: B::KIND as u32, process, time_ns: 1 };
            let bytes = [bytemuck::bytes_of(&head), bytemuck::bytes_of(body), tail].concat();
            self.0.enter(&bytes);
        }

        /// A process that holds so many bytes of DRAM on these chips, and has freed some L1.
        fn process(mut self, process: u32, pid: u32, chips: &[i32], bytes: u64) -> Story {
            let body = record::Process { pid, parent_pid: 1, ..bytemuck::Zeroable::zeroed() };
            self.tell(process, &body, b"python3\0");
            let body = record::Device {
                device: MESH,
                id: 0,
                arch: 2,
                is_mesh: 1,
                dims: 0,
                strides: [0; 4],
            };
            self.tell(process, &body, bytemuck::cast_slice(chips));
            let body = record::Allocator {
                allocator: ALLOCATOR,
                device: MESH,
                bank_bytes: [1 << 30; TYPES],
                banks: [12; TYPES],
                alignment: 32,
                base: [0; 2],
                l1_bytes: 0,
                reserved: 0,
            };
            self.tell(process, &body, b"");
            for (buffer, buffer_type) in [(1, 1), (2, 0)] {
                let body = record::Allocate {
                    allocator: ALLOCATOR,
                    buffer,
                    address: 32,
                    bytes,
                    bytes_per_bank: 32,
                    page_bytes: 32,
                    buffer_type,
                    purpose: 0,
                    cores: 0,
                };
                self.tell(process, &body, b"");
            }
            let body = record::Free { allocator: ALLOCATOR, buffer: 1, address: 32 };
            self.tell(process, &body, b"");
            self
        }

        fn check(&self, before: &[(&str, Region)], after: &[(&str, Region)]) -> CrossCheck {
            let counters = |files: &[(&str, Region)]| Counters {
                files: files
                    .iter()
                    .map(|(name, region)| (name.into(), Ok(region.clone())))
                    .collect(),
            };
            CrossCheck::new(&counters(before), &counters(after), &run(), &self.0)
        }
    }

    fn run() -> Run {
        Run {
            command: Vec::new(),
            started: jiff::Timestamp::UNIX_EPOCH,
            started_ns: 0,
            duration_ns: 1,
            pid: PID,
            parent_pid: 1,
            start_ticks: 0,
            exit: Exit::Code(0),
            out_of_memory: None,
            snapshot: false,
            dropped: 0,
            torn: 0,
            late: 0,
            spoiled: 0,
            ends: BTreeMap::new(),
            still_running: Vec::new(),
        }
    }

    fn region(chip: i32, updated: u64, slots: &[(u32, u64)]) -> Region {
        let slot = |&(pid, bytes)| Slot { pid, bytes: [bytes, 0, 0, 0], updated };
        Region { updated, chips: vec![chip], slots: slots.iter().map(slot).collect() }
    }

    fn counts(check: &CrossCheck) -> [u64; 3] {
        [check.compared, check.agreed, check.differed]
    }

    #[test]
    fn every_chip_and_type_that_was_used_is_compared() {
        let story = Story::default().process(0, PID, &[0, 1], 4096);
        let check = story.check(
            &[],
            &[
                ("zero", region(0, 5, &[(PID, 4096)])),
                ("one", region(1, 5, &[(9, 1), (PID, 4096)])),
            ],
        );
        assert_eq!((counts(&check), check.state), ([4, 4, 0], CrossCheckState::Compared));
        assert_eq!(check.sentences(), ["4 of 4 figures agree with tt-metal's own counters"]);
    }

    #[test]
    fn a_difference_names_its_file_and_what_may_cause_it() {
        let story = Story::default().process(0, PID, &[0], 4096);
        let differing = |before: &[(&str, Region)], after: Region| {
            let check = story.check(before, &[("zero", after)]);
            assert_eq!((counts(&check), check.state), ([2, 1, 1], CrossCheckState::Compared));
            let one = check.differences[0].clone();
            assert_eq!(
                (one.pid, &*one.chips, one.kind, &*one.file),
                (PID, &[0][..], MemoryType::Dram, "zero")
            );
            assert_eq!(one.bytes, 4096);
            assert!(check.sentences()[1].contains(&one.reasons[0]));
            (one.counter_bytes, one.reasons[0].clone())
        };
        let (bytes, why) = differing(&[], region(0, 5, &[(PID, 8192)]));
        assert!(bytes == 8192 && why.contains("only planned"), "{why}");
        let (bytes, why) = differing(&[], region(0, 5, &[(PID, 96)]));
        assert!(bytes == 96 && why.contains("other threads"), "{why}");
        let older = [("zero", region(0, 4, &[(PID, 96)]))];
        let (bytes, why) = differing(&older, region(0, 5, &[(PID, 96 + 4096)]));
        assert!(bytes == 96 + 4096 && why.contains("older process"), "{why}");
    }

    #[test]
    fn counters_without_room_are_not_compared() {
        let story = Story::default().process(0, PID, &[0], 4096);
        let dead: Vec<_> = (100..164).map(|pid| (pid, 1)).collect();
        let check = story.check(&[], &[("zero", region(0, 5, &dead))]);
        assert_eq!((counts(&check), check.state), ([0, 0, 0], CrossCheckState::Unavailable));
        assert!(check.reasons[0].contains("no room"), "{:?}", check.reasons);
    }

    #[test]
    fn an_older_processs_counters_are_not_taken_for_this_ones() {
        let story = Story::default().process(0, PID, &[0], 4096);
        let mut after = region(0, 4, &[(PID, 4096)]);
        let before = [("zero", after.clone())];
        after.updated = 5;
        let check = story.check(&before, &[("zero", after)]);
        assert_eq!((counts(&check), check.differences[0].counter_bytes), ([2, 1, 1], 0));
    }

    #[test]
    fn the_later_of_two_programs_with_one_pid_has_the_counters() {
        let story = Story::default().process(0, PID, &[0], 4096).process(1, PID, &[0], 512);
        let check = story.check(&[], &[("zero", region(0, 5, &[(PID, 4096 + 512)]))]);
        assert_eq!(counts(&check), [2, 1, 1]);
        assert_eq!(check.differences[0].bytes, 512);
        assert!(check.differences[0].reasons[0].contains("exec"));
    }

    #[test]
    fn processes_that_see_other_chips_have_their_own_files() {
        // Each calls its only chip 0.
        let story = Story::default().process(0, PID, &[0], 64).process(1, 8, &[0], 128);
        let files = [("a", region(0, 5, &[(PID, 64)])), ("b", region(0, 5, &[(8, 128)]))];
        assert_eq!(counts(&story.check(&[], &files)), [4, 4, 0]);
    }

    #[test]
    fn a_file_with_several_chips_is_compared_with_their_sum() {
        let story = Story::default().process(0, PID, &[0, 1], 64);
        let mut both = region(0, 5, &[(PID, 128)]);
        both.chips.push(1);
        assert_eq!(counts(&story.check(&[], &[("both", both)])), [2, 2, 0]);
    }

    #[test]
    fn what_is_not_there_is_said() {
        let story = Story::default().process(0, PID, &[0, 1], 64);
        let old = region(1, 5, &[]);
        let check = story
            .check(&[("one", old.clone())], &[("zero", region(0, 5, &[(PID, 64)])), ("one", old)]);
        assert_eq!((counts(&check), check.state), ([2, 2, 0], CrossCheckState::Partly));
        assert!(check.reasons[0].starts_with("process 7 had no counters on chips [1]: "));
        let check = story.check(&[], &[]);
        assert_eq!((counts(&check), check.state), ([0, 0, 0], CrossCheckState::Unavailable));
        assert!(check.sentences()[0].contains("from 0.70.1 on"));

        let mut files = Counters::default();
        files.files.insert("odd".into(), Err("its layout is version 9".to_owned()));
        let check = CrossCheck::new(&Counters::default(), &files, &run(), &story.0);
        assert_eq!(check.reasons[1], "odd can't be used: its layout is version 9");

        let check = Story::default().check(&[], &[]);
        assert_eq!(check.reasons, ["no process allocated any memory that could be counted"]);
    }
}
