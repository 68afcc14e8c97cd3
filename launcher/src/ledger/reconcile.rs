//! The runtime's own figures beside the books'.
//!
//! An allocator's answer is about the state after so many of its operations. If as many of their records
//! were read when the answer comes, the books are about the same state, and must say the same. If not,
//! another thread was faster, or records were lost, and the answer is skipped.

use ttalloc_ring::record::{
    self, Record, StatisticsCause, StatisticsOfType, StatisticsState, Tail,
};

use super::{Entry, MemoryType};

/// How many differences, and how many failed allocations, are kept.
const MOST: usize = 100;

/// What came of asking the allocators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciliation {
    /// Answers that were compared with the books.
    pub compared: u64,
    /// Of these, the ones that differed from them.
    pub differed: u64,
    /// Answers that could not be compared.
    pub skipped: u64,
    /// The first differences.
    pub differences: Vec<Difference>,
    /// The first allocations that failed.
    pub failures: Vec<Failure>,
    /// How many failed allocations are not among them.
    pub further_failures: u64,
}

/// When an allocator was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Before its device closed.
    Close,
    /// After an allocation failed.
    Failure,
}

/// An allocator said something else than the books.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The process, by its number in the ring.
    pub process: u32,
    /// The allocator's chips.
    pub chips: Vec<i32>,
    /// The type of memory.
    pub kind: MemoryType,
    /// What the books have as allocated in each bank, in bytes.
    pub booked: u64,
    /// What the allocator has.
    pub allocated: u64,
    /// When it was asked.
    pub cause: Cause,
    /// The same in nanoseconds of the records' clock.
    pub time_ns: u64,
}

/// An allocation that ended in an exception.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The process, by its number in the ring.
    pub process: u32,
    allocator: u64,
    /// The chips it was for.
    pub chips: Vec<i32>,
    /// The type of memory.
    pub kind: MemoryType,
    /// What was asked for, in bytes on each chip.
    pub bytes: u64,
    /// The page's size in bytes.
    pub page_bytes: u64,
    /// The number of banks; 0 if it is not known.
    pub banks: u32,
    /// When, in nanoseconds of the records' clock.
    pub time_ns: u64,
    /// What the allocator said then.
    pub room: Option<Room>,
}

/// How much an allocator could still give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// In each bank, in bytes.
    pub free: u64,
    /// The largest piece of it, in bytes.
    pub largest_free: u64,
}

impl Entry<'_> {
    /// Counts the record if it is of an allocator's operation.
    pub(super) fn count_operation(&mut self, record: &Record) {
        let allocator = match record {
            Record::Allocate(body, _) => body.allocator,
            Record::Free(body, _) => body.allocator,
            Record::Failed(body, _) => body.allocator,
            Record::Release(body, _) if body.ends == 0 => body.allocator,
            _ => return,
        };
        if let Some(allocator) = self.process.allocators.get_mut(&allocator) {
            allocator.operations += 1;
        }
    }

    /// Keeps a failed allocation, if there is room.
    pub(super) fn note_failure(&mut self, body: record::Failed, kind: MemoryType) {
        if self.reconciliation.failures.len() == MOST {
            self.reconciliation.further_failures += 1;
            return;
        }
        let allocator = self.process.allocators.get(&body.allocator);
        self.reconciliation.failures.push(Failure {
            process: self.head.process,
            allocator: body.allocator,
            chips: allocator.map_or_else(Vec::new, |allocator| allocator.chips().to_vec()),
            kind,
            bytes: body.bytes,
            page_bytes: body.page_bytes,
            banks: allocator.map_or(0, |allocator| allocator.banks[kind as usize]),
            time_ns: self.head.time_ns,
            room: None,
        });
    }

    pub(super) fn statistics(&mut self, body: record::Statistics, answers: Tail) {
        let with_kind = |answer: StatisticsOfType| {
            let kind = MemoryType::from_number(u32::try_from(answer.buffer_type).ok()?)?;
            Some((kind, answer))
        };
        let answers: Option<Vec<_>> =
            answers.entries().and_then(|answers| answers.map(with_kind).collect());
        let cause = match body.cause {
            cause if cause == StatisticsCause::Close as u32 => Some(Cause::Close),
            cause if cause == StatisticsCause::Failure as u32 => Some(Cause::Failure),
            _ => None,
        };
        let (Some(answers), Some(cause)) = (answers, cause) else {
            self.anomalies.bad_records += 1;
            return;
        };
        if cause == Cause::Failure {
            self.complete_failure(&body, &answers);
        }
        let known = self.process.allocators.get(&body.allocator);
        let is_comparable = body.state == StatisticsState::Quiet as u32;
        let same_state = known.filter(|known| is_comparable && known.operations == body.operations);
        let Some(allocator) = same_state.filter(|_| !answers.is_empty()) else {
            self.reconciliation.skipped += 1;
            return;
        };
        self.reconciliation.compared += 1;
        let mut is_same = true;
        for (kind, answer) in answers {
            let booked = allocator.bytes_per_bank[kind as usize];
            if booked == answer.allocated {
                continue;
            }
            is_same = false;
            if self.reconciliation.differences.len() < MOST {
                self.reconciliation.differences.push(Difference {
                    process: self.head.process,
                    chips: allocator.chips().to_vec(),
                    kind,
                    booked,
                    allocated: answer.allocated,
                    cause,
                    time_ns: self.head.time_ns,
                });
            }
        }
        self.reconciliation.differed += u64::from(!is_same);
    }

    /// Adds what the allocator said to the failed allocation that it was asked after.
    fn complete_failure(
        &mut self,
        body: &record::Statistics,
        answers: &[(MemoryType, StatisticsOfType)],
    ) {
        let Some((kind, answer)) = answers.first() else { return };
        let failed = self.reconciliation.failures.iter_mut().rev().find(|failed| {
            failed.room.is_none()
                && (failed.process, failed.allocator) == (self.head.process, body.allocator)
                && (failed.kind, failed.bytes) == (*kind, body.failed_bytes)
        });
        if let Some(failed) = failed {
            failed.room = Some(Room { free: answer.free, largest_free: answer.largest_free });
        }
    }
}
