//! What the runtime's allocators said of themselves: agreement, differences, and how much room there was
//! when an allocation failed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Run, process_places};
use crate::ledger::{Cause, Ledger, MemoryType};

/// How often the runtime's allocators were asked what they have given, and what came of it.
///
/// An allocator is asked before its device closes, and after an allocation failed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reconciled {
    /// Answers that were compared with this report's books.
    pub compared: u64,
    /// Of these, the ones that said the same.
    pub agreed: u64,
    /// And the ones that did not.
    pub differed: u64,
    /// Answers that could not be compared: another thread allocated or freed at the time, a record was
    /// lost, the allocator came with a fork, or it gives L1 core by core.
    pub skipped: u64,
    /// The first 100 differences.
    pub differences: Vec<Difference>,
}

/// An allocator that has given more or less than the books say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Difference {
    /// The number of the process; null if that one is not listed.
    #[serde(default)]
    pub process: Option<u64>,
    /// Its pid.
    pub pid: u32,
    /// The allocator's chips.
    pub chips: Vec<i32>,
    /// The type of memory.
    #[serde(rename = "type")]
    pub kind: MemoryType,
    /// What the books have as allocated in each bank.
    pub bytes_per_bank: u64,
    /// What the allocator has.
    pub runtime_bytes_per_bank: u64,
    /// When it was asked.
    pub at: Occasion,
    /// The same as a time.
    pub time_ns: u64,
}

/// When an allocator is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Occasion {
    /// Before its device closed.
    Close,
    /// After an allocation failed.
    FailedAllocation,
}

/// An allocation that ended in an exception.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FailedAllocation {
    /// The number of the process; null if that one is not listed.
    #[serde(default)]
    pub process: Option<u64>,
    /// Its pid.
    pub pid: u32,
    /// The chips it was for.
    pub chips: Vec<i32>,
    /// The type of memory.
    #[serde(rename = "type")]
    pub kind: MemoryType,
    /// What was asked for, on each chip.
    pub bytes: u64,
    /// The page's size.
    pub page_bytes: u64,
    /// The number of banks.
    pub banks: u32,
    /// What was free in each bank; null if the allocator could not be asked.
    pub free_bytes_per_bank: Option<u64>,
    /// The largest piece of that: what a buffer takes in a bank must fit into it; null likewise.
    pub largest_free_block_per_bank: Option<u64>,
    /// When.
    pub time_ns: u64,
}

impl Reconciled {
    /// What is wrong, in a sentence.
    pub(super) fn problem(&self) -> Option<String> {
        let first = self.differences.first()?;
        let times = if self.differed == 1 {
            "once, an allocator had".to_owned()
        } else {
            format!("{} times, an allocator had", self.differed)
        };
        Some(format!(
            "{times} given more or less than is known here; first, process {} had {} bytes of {} in each bank of chips {:?} where {} were known",
            first.pid, first.runtime_bytes_per_bank, first.kind, first.chips, first.bytes_per_bank
        ))
    }
}

fn pid(ledger: &Ledger, process: u32) -> u32 {
    let identity = ledger.processes.get(&process).and_then(|books| books.identity.as_ref());
    identity.map_or(0, |identity| identity.pid)
}

/// The number that a process has in the report.
fn place(run: &Run, ledger: &Ledger, process: u32) -> Option<u64> {
    let mut places = process_places(run, ledger);
    places.find(|(number, _)| *number == process).map(|(_, place)| place)
}

/// The comparisons of a run.
pub(super) fn reconciled(
    run: &Run,
    ledger: &Ledger,
    since_start: impl Fn(u64) -> u64,
) -> Reconciled {
    let found = &ledger.reconciliation;
    let differences = found.differences.iter().map(|difference| Difference {
        process: place(run, ledger, difference.process),
        pid: pid(ledger, difference.process),
        chips: difference.chips.clone(),
        kind: difference.kind,
        bytes_per_bank: difference.booked,
        runtime_bytes_per_bank: difference.allocated,
        at: match difference.cause {
            Cause::Close => Occasion::Close,
            Cause::Failure => Occasion::FailedAllocation,
        },
        time_ns: since_start(difference.time_ns),
    });
    Reconciled {
        compared: found.compared,
        agreed: found.compared - found.differed,
        differed: found.differed,
        skipped: found.skipped,
        differences: differences.collect(),
    }
}

/// The failed allocations of a run.
pub(super) fn failures(
    run: &Run,
    ledger: &Ledger,
    since_start: impl Fn(u64) -> u64,
) -> Vec<FailedAllocation> {
    let failures = ledger.reconciliation.failures.iter();
    failures
        .map(|failure| FailedAllocation {
            process: place(run, ledger, failure.process),
            pid: pid(ledger, failure.process),
            chips: failure.chips.clone(),
            kind: failure.kind,
            bytes: failure.bytes,
            page_bytes: failure.page_bytes,
            banks: failure.banks,
            free_bytes_per_bank: failure.room.map(|room| room.free),
            largest_free_block_per_bank: failure.room.map(|room| room.largest_free),
            time_ns: since_start(failure.time_ns),
        })
        .collect()
}
