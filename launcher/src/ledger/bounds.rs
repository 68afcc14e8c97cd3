//! What keeps the books small, however long a run takes: what is live is kept, and of what has been, a
//! part that does not grow, the largest first. What is left out is counted, and no figure misses it.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};

use hashbrown::{HashMap, HashSet};
use ttalloc_ring::record::{Record, Refusal, TYPES};
use ttalloc_symbols::SYMBOLS;

use super::allocator::Allocation;
use super::{Ledger, Process, Totals};

/// How many allocators of a process are known at a time: more than there are chips.
pub(super) const MOST_ALLOCATORS: usize = 4096;
/// How many devices of a process are known after they have closed, in case the close fails after all.
pub(super) const MOST_CLOSED: usize = 64;
/// How many meshes of a process are listed, beside those that are open.
const MOST_MESHES: usize = 256;
/// How many processes are remembered that have ended and are no longer in the books.
const MOST_FOLDED: usize = 4096;
/// How many processes may go on after their end without harm.
const MOST_UNSETTLED: usize = 32;
/// How often the books are weighed, in records, at most.
const WEIGH_EVERY: u64 = 4096;
/// What the books may take, about, in bytes: some four million live buffers.
const MOST_WEIGHT: usize = 1 << 30;

/// How much is listed one by one. The largest are; figures include the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Live buffers, those that reserve most.
    pub buffers: usize,
    /// Programs, those with the largest regions in L1. Until the report is written, each process that
    /// has not ended keeps as many.
    pub programs: usize,
    /// Processes, those that reserved most at their peak.
    pub processes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { buffers: 10_000, programs: 4_096, processes: 256 }
    }
}

/// What one process's books are missing of what was listed one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Meshes that have closed.
    pub meshes: u64,
    /// Buffers that were live when the process ended.
    pub buffers: u64,
    /// What they reserve, in bytes on all of their chips.
    pub reserved_bytes: u64,
    /// Buffer objects whose memory the runtime had let go. If one still asks to free it, that counts as
    /// a free of unknown memory.
    pub released: u64,
}

/// What is left of processes that are not listed: sums over them and their chips.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folded {
    /// How many processes.
    pub processes: u64,
    /// How many of them were not tracked whole.
    pub troubled: u64,
    /// The meshes that they opened.
    pub meshes: u64,
    /// The program objects that ran, or were refused.
    pub programs: u64,
    /// How often programs ran, once for each chip.
    pub runs: u64,
    /// The traces that were captured.
    pub traces: u64,
    /// The overlaps between allocators.
    pub overlaps: u64,
    /// The buffers that were live when they ended.
    pub buffers: u64,
    /// What those reserved, in bytes on all of their chips.
    pub reserved_bytes: u64,
    /// Memory, by [`MemoryType::ALL`](super::MemoryType::ALL).
    pub memory: [FoldedMemory; TYPES],
}

/// One type of memory of all chips of processes that are not listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FoldedMemory {
    /// What was allocated when the processes ended, over all chips.
    pub live: Totals,
    /// The most that was allocated on one chip of one process.
    pub peak: Totals,
    /// Successful allocations.
    pub allocations: u64,
    /// Buffers freed one by one.
    pub frees: u64,
    /// Buffers that the runtime let go all at once.
    pub released: u64,
    /// Allocations that ended in an exception.
    pub failed: u64,
    /// The bytes asked for by all successful allocations.
    pub allocated_bytes_total: u64,
}

impl Folded {
    /// Adds a process.
    pub fn add(&mut self, process: &Process) {
        self.processes += 1;
        self.troubled += u64::from(process.is_troubled());
        self.meshes += process.meshes.len() as u64 + process.left_out.meshes;
        self.programs += process.programs.objects();
        self.traces += process.programs.traces().len() as u64 + process.programs.traces_left_out;
        self.overlaps += process.overlap_count;
        self.buffers += process.left_out.buffers;
        self.reserved_bytes = self.reserved_bytes.saturating_add(process.left_out.reserved_bytes);
        for (chips, one) in process.live() {
            self.buffers += 1;
            self.reserved_bytes = self.reserved_bytes.saturating_add(on_all(chips, one));
        }
        for (chips, chip) in process.chips.figures() {
            let chips = chips as u64;
            self.runs = self.runs.saturating_add(chip.programs.runs.saturating_mul(chips));
            for (sum, memory) in self.memory.iter_mut().zip(&chip.memory) {
                sum.live.add(memory.live.times(chips));
                if memory.peak.reserved_bytes > sum.peak.reserved_bytes {
                    sum.peak = memory.peak;
                }
                let of_all = |sum: &mut u64, one: u64| {
                    *sum = sum.saturating_add(one.saturating_mul(chips));
                };
                of_all(&mut sum.allocations, memory.allocations);
                of_all(&mut sum.frees, memory.frees);
                of_all(&mut sum.released, memory.released);
                of_all(&mut sum.failed, memory.failed);
                of_all(&mut sum.allocated_bytes_total, memory.allocated_bytes_total);
            }
        }
    }
}

/// What an allocation reserves on all of its chips, in bytes.
pub(super) fn on_all(chips: &[i32], allocation: &Allocation) -> u64 {
    allocation.totals.reserved_bytes.saturating_mul(chips.len() as u64)
}

/// The `most` that are largest: those above a size, and as many of that size as there is room for.
#[derive(Debug)]
pub(crate) struct Largest<T> {
    above: Option<T>,
    of_it: usize,
}

impl<T: Ord + Clone> Largest<T> {
    pub(crate) fn of(mut sizes: Vec<T>, most: usize) -> Largest<T> {
        if sizes.len() <= most {
            return Largest { above: None, of_it: 0 };
        }
        if most == 0 {
            return Largest { above: sizes.iter().max().cloned(), of_it: 0 };
        }
        let (larger, last, _) = sizes.select_nth_unstable_by(most - 1, |a, b| b.cmp(a));
        let equal = larger.iter().filter(|one| **one == *last).count() + 1;
        Largest { above: Some(last.clone()), of_it: equal }
    }

    /// Whether one is among them; to be asked once for each.
    pub(crate) fn keeps(&mut self, size: &T) -> bool {
        let Some(above) = &self.above else { return true };
        if size == above && self.of_it > 0 {
            self.of_it -= 1;
            return true;
        }
        size > above
    }
}

/// Which processes have ended.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// The number of the process that last had a pid.
    by_pid: HashMap<u32, u32>,
    /// Those that are still in the books, the smallest first, and among equals the last.
    kept: BinaryHeap<Reverse<(u64, Reverse<u32>)>>,
    /// Those that still have all that they need to go on, in order.
    unsettled: VecDeque<u32>,
    /// The process that announced itself first.
    first: Option<u32>,
    /// How many live buffers, and programs, they have.
    buffers: usize,
    programs: usize,
    folded: HashSet<u32>,
    folded_in_order: VecDeque<u32>,
}

impl Ends {
    /// Whether a process has ended and is no longer in the books.
    pub(super) fn is_folded(&self, number: u32) -> bool {
        self.folded.contains(&number)
    }
}

/// Whether a record adds to what is remembered.
pub(super) fn takes_room(record: &Record) -> bool {
    !matches!(
        record,
        Record::Free(..)
            | Record::Release(..)
            | Record::Close(..)
            | Record::ProgramEnd(..)
            | Record::Unplanned(..)
            | Record::Failed(..)
            | Record::Placement(..)
            | Record::Statistics(..)
    )
}

impl Ledger {
    /// Books that list so much.
    pub fn new(limits: Limits) -> Ledger {
        Ledger { limits, ..Ledger::default() }
    }

    /// How much they list.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A process has ended, and all of its records were entered. What was live then is kept as such; of
    /// many processes, only those are kept that had most, and the first.
    pub fn end(&mut self, number: u32) {
        let Some(process) = self.processes.get_mut(&number) else { return };
        if std::mem::replace(&mut process.has_ended, true) {
            return;
        }
        // The launcher may have been wrong about its end: what is needed to go on is kept for a while.
        self.ends.unsettled.push_back(number);
        self.ends.buffers += process.live_count();
        self.ends.programs += process.programs.len();
        // The first is the program itself, and stays.
        if *self.ends.first.get_or_insert(number) != number {
            self.ends.kept.push(Reverse((process.size(), Reverse(number))));
        }
        if self.ends.unsettled.len() > MOST_UNSETTLED
            && let Some(oldest) = self.ends.unsettled.pop_front()
            && let Some(process) = self.processes.get_mut(&oldest)
        {
            process.settle();
        }
        while self.ends.kept.len() > self.limits.processes.max(1) {
            let Some(Reverse((_, Reverse(smallest)))) = self.ends.kept.pop() else { break };
            self.fold(smallest);
        }
        if self.ends.buffers > with_slack(self.limits.buffers) {
            self.leave_out_buffers();
        }
        if self.ends.programs > with_slack(self.limits.programs) {
            self.leave_out_programs();
        }
    }

    fn fold(&mut self, number: u32) {
        let Some(process) = self.processes.remove(&number) else { return };
        self.ends.buffers = self.ends.buffers.saturating_sub(process.live_count());
        self.ends.programs = self.ends.programs.saturating_sub(process.programs.len());
        self.folded.add(&process);
        if let Some(pid) = process.identity.map(|identity| identity.pid)
            && self.ends.by_pid.get(&pid) == Some(&number)
        {
            self.ends.by_pid.remove(&pid);
        }
        if self.ends.folded.insert(number) {
            self.ends.folded_in_order.push_back(number);
        }
        if self.ends.folded_in_order.len() > MOST_FOLDED
            && let Some(oldest) = self.ends.folded_in_order.pop_front()
        {
            self.ends.folded.remove(&oldest);
        }
    }

    /// A process announces itself. If another had its pid, that one has ended, or called exec.
    pub(super) fn announced(&mut self, number: u32, pid: u32) {
        if pid == 0 || self.ends.is_folded(number) {
            return;
        }
        self.ends.first.get_or_insert(number);
        match self.ends.by_pid.get(&pid).copied() {
            Some(other) if other > number => {}
            Some(other) if other < number => {
                self.ends.by_pid.insert(pid, number);
                self.end(other);
            }
            _ => {
                self.ends.by_pid.insert(pid, number);
            }
        }
    }

    fn leave_out_buffers(&mut self) {
        let ended = || self.processes.values().filter(|process| process.has_ended);
        let live = ended().flat_map(|process| process.live());
        let sizes = live.map(|(chips, one)| on_all(chips, one)).collect();
        let mut largest = Largest::of(sizes, self.limits.buffers);
        self.ends.buffers = 0;
        for process in self.processes.values_mut().filter(|process| process.has_ended) {
            let left_out = &mut process.left_out;
            for allocator in process.allocators.values_mut() {
                let chips = allocator.place.chips.clone();
                allocator.settle(|one| {
                    let size = on_all(&chips, one);
                    let keeps = largest.keeps(&size);
                    if !keeps {
                        left_out.buffers += 1;
                        left_out.reserved_bytes = left_out.reserved_bytes.saturating_add(size);
                    }
                    keeps
                });
            }
            self.ends.buffers += process.live_count();
        }
    }

    fn leave_out_programs(&mut self) {
        let ended = || self.processes.values().filter(|process| process.has_ended);
        let sizes = ended().flat_map(|process| {
            let needed = process.needed_programs();
            process.programs.iter().map(move |(number, one)| one.size(needed.contains(&number)))
        });
        let mut largest = Largest::of(sizes.collect(), self.limits.programs);
        self.ends.programs = 0;
        for process in self.processes.values_mut().filter(|process| process.has_ended) {
            let needed = process.needed_programs();
            process
                .programs
                .retain(|number, program| largest.keeps(&program.size(needed.contains(&number))));
            self.ends.programs += process.programs.len();
        }
    }

    /// Weighs the books. While they are too heavy, nothing is added to them.
    pub(super) fn weigh_now_and_then(&mut self) {
        if self.events >= self.weigh_at {
            // Where there are very many processes, that takes its time.
            let records = WEIGH_EVERY.max(2 * self.processes.len() as u64);
            self.weigh_at = self.events + records;
            let weights = self.processes.values().map(Process::weight);
            self.is_crowded = weights.fold(0, usize::saturating_add) > MOST_WEIGHT;
        }
    }
}

/// How many are kept before those are left out that are too many: not each time anew.
fn with_slack(most: usize) -> usize {
    most.saturating_add(most / 4).saturating_add(64)
}

impl Process {
    /// How much it reserved, by its chips' peaks, in bytes.
    pub fn size(&self) -> u64 {
        let of_chip = |(chips, chip): (usize, &super::Chip)| {
            let peaks = chip.memory.iter().map(|memory| memory.peak.reserved_bytes);
            peaks.fold(0, u64::saturating_add).saturating_mul(chips as u64)
        };
        self.chips.figures().map(of_chip).fold(0, u64::saturating_add)
    }

    fn live_count(&self) -> usize {
        self.allocators.values().map(|allocator| allocator.live.len()).sum()
    }

    /// Whether something is known to be missing of it.
    fn is_troubled(&self) -> bool {
        let Some(runtime) = &self.runtime else { return true };
        let is_lossy = |(&index, refused): (&usize, &super::Refused)| {
            let role = SYMBOLS.get(index).map_or("", |symbol| symbol.role);
            // What nobody calls is needed by few.
            let is_needed = matches!(role, "allocate" | "deallocate");
            refused.lossy && (refused.why != Refusal::NoCaller || is_needed)
        };
        self.identity.is_none()
            || runtime.era.is_none_or(|era| runtime.symbols.gaps(era).next().is_some())
            || self.refused.iter().any(is_lossy)
    }

    /// It has ended: what was only there to find things goes.
    fn settle(&mut self) {
        for allocator in self.allocators.values_mut() {
            allocator.settle(|_| true);
        }
        self.allocators.retain(|_, allocator| !allocator.live.is_empty());
        self.allocators.shrink_to_fit();
        self.planned = HashMap::default();
        self.devices = HashMap::default();
        self.closed = VecDeque::default();
        self.late = super::Late::default();
        self.meshes.shrink_to_fit();
        self.programs.settle();
    }

    /// The programs that a chip's figures refer to, by their numbers.
    pub(crate) fn needed_programs(&self) -> BTreeSet<u64> {
        let of_chip = |(_, chip): (usize, &super::Chip)| {
            let headroom = chip.programs.headroom.map(|headroom| headroom.reach);
            [chip.programs.largest, headroom]
        };
        let reaches = self.chips.figures().flat_map(of_chip).flatten();
        reaches.map(|reach| reach.program).collect()
    }

    /// Of programs that turned out to be the same as others, those others have their figures now.
    pub(super) fn now_stands_for(&mut self, merged: &[(u64, u64)]) {
        if merged.is_empty() {
            return;
        }
        for chip in self.chips.figures_mut() {
            let headroom = chip.programs.headroom.as_mut().map(|headroom| &mut headroom.reach);
            for reach in chip.programs.largest.as_mut().into_iter().chain(headroom) {
                // They are few, and one after the other: the first may since have become a third.
                for (number, first) in merged {
                    if reach.program == *number {
                        reach.program = *first;
                    }
                }
            }
        }
    }

    /// Leaves out the smallest of the programs that have ended, if they are too many.
    pub(super) fn leave_out_programs(&mut self, most: usize) {
        if self.programs.ended_count() > with_slack(most) {
            let needed = self.needed_programs();
            self.programs.leave_out_ended(most, |number| needed.contains(&number));
        }
    }

    /// Leaves out the oldest of the meshes that have closed, if they are too many.
    pub(super) fn leave_out_meshes(&mut self) {
        if self.meshes.len() <= 2 * MOST_MESHES.max(self.meshes_kept) {
            return;
        }
        let open = self.devices.values().filter(|device| device.is_mesh && device.closed.is_none());
        let mut open: BTreeSet<i32> = open.map(|device| device.id).collect();
        // The one that came last is not among the devices yet.
        open.extend(self.meshes.last().map(|mesh| mesh.id));
        let mut too_many = self.meshes.len().saturating_sub(MOST_MESHES);
        let before = self.meshes.len();
        self.meshes.retain(|mesh| {
            let goes = too_many > 0 && !open.contains(&mesh.id);
            too_many -= usize::from(goes);
            !goes
        });
        self.left_out.meshes += (before - self.meshes.len()) as u64;
        self.meshes_kept = self.meshes.len();
    }

    /// About how much it takes to remember it, in bytes.
    pub(super) fn weight(&self) -> usize {
        const PLANNED: usize = 128;
        let argv = self.identity.iter().flat_map(|identity| &identity.argv);
        let allocators = self.allocators.values().map(|allocator| allocator.weight());
        let devices = self.devices.values().map(|device| {
            let planned = device.closed.as_ref().map_or(0, |closed| closed.planned.len());
            size_of_val(device) + device.place.weight() + planned * PLANNED
        });
        let mesh = size_of::<super::Mesh>() + 4 * self.chips.len();
        size_of::<Process>()
            + argv.map(|word| 32 + word.len()).sum::<usize>()
            + allocators.sum::<usize>()
            + devices.sum::<usize>()
            + self.meshes.len() * mesh
            + self.planned.len() * PLANNED
            + self.chips.weight()
            + self.programs.weight()
    }
}
