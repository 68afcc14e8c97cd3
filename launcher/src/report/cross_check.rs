//! The books beside the counters that tt-metal keeps itself, at the program's end.
//!
//! The counters say for each process and chip what its buffers hold, in bytes as asked for, not what the
//! allocator charges. They are kept beside the allocator, not in it, and go their own ways in some
//! cases; those that can be told from the books are named with a difference.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Run;
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
    /// The process.
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
        for (&number, books) in &ledger.processes {
            check.add(number, books, &Context { before, after, run, ledger });
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

    fn add(&mut self, number: u32, books: &Books, context: &Context) {
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
            for (at, kind) in COUNTED.into_iter().enumerate() {
                let sum = |figure: fn(&crate::ledger::Memory) -> u64| -> u64 {
                    chips.iter().map(|chip| figure(books.chips[chip].memory(kind))).sum()
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
                    let mut reasons = context.reasons(path, region, pid, identity.forked);
                    if sum(|memory| memory.released) != 0 {
                        reasons.push("buffers were let go all at once, as when a submesh closes, which the counters do not see".to_owned());
                    }
                    if reasons.is_empty() {
                        reasons.push(generic(bytes, counter_bytes).to_owned());
                    }
                    self.differences.push(CounterDifference {
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
    fn reasons(&self, path: &PathBuf, region: &Region, pid: u32, forked: bool) -> Vec<String> {
        let mut reasons = Vec::new();
        let mut say = |holds: bool, what: &str| {
            if holds {
                reasons.push(what.to_owned());
            }
        };
        let older = self.region_before(path).and_then(|before| before.slot(pid));
        say(older.is_some(), "an older process of the same pid has left its counters behind");
        say(
            self.slot(path, region, pid).is_none() && region.is_full(),
            "there was no room for the process's counters: dead processes fill them; remove the file when no process uses the chip",
        );
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
