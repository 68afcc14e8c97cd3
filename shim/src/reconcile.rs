//! What the runtime's allocators say of themselves, for the launcher to hold its books against.
//!
//! An allocator is asked at two times: when its device is about to close, and when an allocation has
//! failed. Its functions take its lock, which is not recursive, so it is never asked from within a call
//! of it: a close is no call of an allocator, and an exception has given the lock up by the time that it
//! leaves `allocate_buffer`, which could not have taken the lock had its caller held it.
//!
//! Other threads may allocate meanwhile. An answer therefore comes with the number of operations that it
//! is about: allocations and frees that were over, and written down, when it was given. If one was under
//! way, or one began before the answer was complete, the answer counts for nothing. If one's record came
//! before the answer's, the launcher sees that it has read more records than the answer is about.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

use ttalloc_ring::errno::KeepErrno;
use ttalloc_ring::record::{self, StatisticsCause, StatisticsOfType, StatisticsState};
use ttalloc_symbols::Era;

use crate::calls::{self, DeviceKind};
use crate::elf;
use crate::runtime::Runtime;
use crate::session::Recorder;

/// The types that have banks: DRAM, L1, L1_SMALL and TRACE. SYSTEM_MEMORY (2) has none.
pub const TYPES_WITH_BANKS: [usize; 4] = [0, 1, 3, 4];
/// How often an allocator is asked that other threads use at the time.
const TRIES: usize = 3;
/// Stands in an entry's address while it is being filled in: no object lies there.
const CLAIMED: usize = 1;

/// The allocators that were described and have not ended. All zero is an empty one.
#[repr(C)]
pub struct Watch {
    sets: [[Entry; 4]; 16],
    /// How many ends were seen.
    ends: AtomicU64,
    /// 1 if chips' own allocators give L1 core by core.
    per_core: AtomicU64,
}

/// One allocator.
#[repr(C)]
pub struct Entry {
    allocator: AtomicUsize,
    device: AtomicUsize,
    /// Operations that began, and of these the ones that are over. Each has written one record.
    started: AtomicU64,
    finished: AtomicU64,
    /// Of [`WHOLE`] and [`OF_CHIP`], what applies.
    flags: AtomicU64,
}

/// All that the allocator has given was given by this process.
pub const WHOLE: u64 = 1;
/// It is a chip's own, not a mesh's.
pub const OF_CHIP: u64 = 2;

impl Watch {
    fn set(&self, allocator: usize) -> &[Entry; 4] {
        // Heap objects differ above their lowest four bits.
        let hash = (allocator as u64 >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60;
        &self.sets[hash as usize]
    }

    #[inline]
    fn find(&self, allocator: usize) -> Option<&Entry> {
        self.entries_of(allocator).next()
    }

    /// Begins to watch an allocator of `device`, if there is room.
    pub fn begin(&self, allocator: usize, device: usize, flags: u64) {
        if let Some(known) = self.find(allocator) {
            if known.device.load(Ordering::Acquire) == device {
                known.flags.fetch_or(flags, Ordering::AcqRel);
                return;
            }
            // It ended unseen.
            known.allocator.store(0, Ordering::Release);
        }
        let claimed = self.set(allocator).iter().find(|entry| {
            let address = &entry.allocator;
            address.compare_exchange(0, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        });
        let Some(entry) = claimed else { return };
        entry.device.store(device, Ordering::Relaxed);
        entry.started.store(0, Ordering::Relaxed);
        entry.finished.store(0, Ordering::Relaxed);
        entry.flags.store(flags, Ordering::Relaxed);
        entry.allocator.store(allocator, Ordering::Release);
        // Two threads may have described it at once. What happens is counted in the first entry.
        for twin in self.entries_of(allocator).skip(1) {
            twin.allocator.store(0, Ordering::Release);
        }
    }

    fn entries_of(&self, allocator: usize) -> impl Iterator<Item = &Entry> {
        let is_its = move |entry: &&Entry| entry.allocator.load(Ordering::Acquire) == allocator;
        self.set(allocator).iter().filter(is_its)
    }

    /// An allocator is about to end: it is not asked any more.
    pub fn end(&self, allocator: usize) {
        self.ends.fetch_add(1, Ordering::AcqRel);
        for entry in self.entries_of(allocator) {
            entry.allocator.store(0, Ordering::Release);
        }
    }

    /// From now on, chips' own allocators give L1 core by core.
    pub fn give_core_by_core(&self) {
        self.per_core.store(1, Ordering::Release);
    }

    /// An operation of an allocator begins; it ends when the result is dropped. It must write one
    /// record, before it frees or after it has allocated.
    #[inline]
    pub fn operation(&self, allocator: usize) -> Option<Operation<'_>> {
        let entry = self.find(allocator)?;
        entry.started.fetch_add(1, Ordering::AcqRel);
        Some(Operation(entry))
    }
}

/// An allocation or free that is under way.
pub struct Operation<'a>(&'a Entry);

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        self.0.finished.fetch_add(1, Ordering::AcqRel);
    }
}

/// Asks the allocators of a device that is about to close.
///
/// # Safety
/// `device` must point to a live MeshDevice or Device whose close has not begun unless it was forgotten,
/// and this thread must be in no call of an allocator.
pub unsafe fn at_close(recorder: &Recorder, device: usize) {
    let runtime = recorder.runtime();
    // What was forgotten is closed, or closing: one call of close makes another.
    if !recorder.knows(device) || !calls::statistics::exists(runtime) {
        return;
    }
    let _errno = KeepErrno::new();
    // SAFETY: the device is alive.
    let is_mesh = unsafe { calls::device_kind(runtime, device) } == Some(DeviceKind::Mesh);
    let own = if is_mesh && calls::mesh_allocator::exists(runtime) {
        // SAFETY: an open mesh; the result refers to a unique_ptr of it.
        let owner = unsafe { calls::mesh_allocator(runtime, device) };
        // SAFETY: a unique_ptr with the default deleter is the pointer itself.
        unsafe { elf::read::<usize>(owner) }
    } else {
        0
    };
    let watch = recorder.watch();
    // The mesh's own is certainly alive. Another is if its end would have been seen: in a process where
    // none ever was (each open has some), ends go by unseen.
    let sees_ends = watch.ends.load(Ordering::Acquire) != 0;
    for entry in watch.sets.iter().flatten() {
        let allocator = entry.allocator.load(Ordering::Acquire);
        let is_its = allocator > CLAIMED && entry.device.load(Ordering::Acquire) == device;
        if is_its && (allocator == own || sees_ends) {
            let question = Question { entry, allocator, cause: StatisticsCause::Close };
            // SAFETY: alive, as said above.
            unsafe { question.ask(recorder, &TYPES_WITH_BANKS, (0, 0)) };
        }
    }
}

/// Asks an allocator that could not give some memory how much it has. It may run while an exception
/// passes, so that nothing may throw: and what is asked does only where a mutex can't be locked, or up
/// to 0.68 where the host has no memory for a few addresses.
///
/// # Safety
/// `allocator` must point to a live allocator, and this thread must be in no call of it.
pub unsafe fn at_failure(recorder: &Recorder, allocator: usize, failed: &record::Failed) {
    let buffer_type = failed.buffer_type as usize;
    if !TYPES_WITH_BANKS.contains(&buffer_type) || !calls::statistics::exists(recorder.runtime()) {
        return;
    }
    let Some(entry) = recorder.watch().find(allocator) else { return };
    let _errno = KeepErrno::new();
    let question = Question { entry, allocator, cause: StatisticsCause::Failure };
    // SAFETY: as the caller promises.
    unsafe { question.ask(recorder, &[buffer_type], (failed.bytes, failed.buffer_type)) };
}

/// One allocator to ask.
struct Question<'a> {
    entry: &'a Entry,
    allocator: usize,
    cause: StatisticsCause,
}

impl Question<'_> {
    /// Asks it for some types, and writes down what it says. `failed` is what it could not give.
    ///
    /// # Safety
    /// The allocator must be alive and not locked by this thread; the types must be among
    /// [`TYPES_WITH_BANKS`].
    unsafe fn ask(&self, recorder: &Recorder, types: &[usize], failed: (u64, u32)) {
        let flags = self.entry.flags.load(Ordering::Acquire);
        let mut answers =
            [StatisticsOfType { buffer_type: 0, total: 0, allocated: 0, free: 0, largest_free: 0 };
                TYPES_WITH_BANKS.len()];
        let (mut count, mut operations, mut is_quiet) = (0, 0, false);
        // At a close in a forked process its lock may be some thread's that is not there any more.
        let tries =
            if flags & WHOLE == 0 && self.cause == StatisticsCause::Close { 0 } else { TRIES };
        for _ in 0..tries {
            // In this order: what began between the two reads is seen.
            let finished = self.entry.finished.load(Ordering::Acquire);
            operations = self.entry.started.load(Ordering::Acquire);
            is_quiet = operations == finished;
            // SAFETY: as the caller promises.
            count = unsafe { self.answers(recorder.runtime(), types, &mut answers) };
            fence(Ordering::AcqRel);
            is_quiet &= self.entry.started.load(Ordering::Acquire) == operations;
            if is_quiet {
                break;
            }
        }
        let is_per_core = recorder.watch().per_core.load(Ordering::Acquire) != 0;
        let state = if flags & WHOLE == 0 {
            StatisticsState::Inherited
        } else if flags & OF_CHIP != 0 && is_per_core {
            StatisticsState::PerCore
        } else if is_quiet {
            StatisticsState::Quiet
        } else {
            StatisticsState::Busy
        };
        let body = record::Statistics {
            allocator: self.allocator as u64,
            operations,
            cause: self.cause as u32,
            state: state as u32,
            failed_bytes: failed.0,
            failed_type: failed.1,
            reserved: 0,
        };
        recorder.write_with_tail(&body, bytemuck::cast_slice(&answers[..count]));
    }

    /// Fills in what the allocator says of some types, and returns of how many.
    ///
    /// # Safety
    /// As for [`Question::ask`].
    unsafe fn answers(
        &self,
        runtime: &Runtime,
        types: &[usize],
        answers: &mut [StatisticsOfType],
    ) -> usize {
        let mut count = 0;
        for &buffer_type in types {
            // A word holds the enumeration's value whatever its width.
            let reference = (&raw const buffer_type) as usize;
            // It throws when asked about a type that it has no banks of.
            // SAFETY: as the caller promises.
            if unsafe { calls::num_banks(runtime, self.allocator, reference) } as u32 == 0 {
                continue;
            }
            // SAFETY: as the caller promises, and there are banks.
            answers[count] = unsafe { statistics(runtime, self.allocator, buffer_type) };
            count += 1;
        }
        count
    }
}

/// `get_statistics` of an allocator for one type.
///
/// # Safety
/// `allocator` must point to a live allocator that this thread has not locked, with banks of the type.
unsafe fn statistics(runtime: &Runtime, allocator: usize, buffer_type: usize) -> StatisticsOfType {
    // No size, and no pointer.
    const UNTOUCHED: usize = 0xa5a5_a5a5_a5a5_a5a5;
    // Some more room than the structure has ever needed.
    let mut result = [UNTOUCHED; 64];
    // SAFETY: room for the structure that is returned by value, a live allocator, and a reference.
    unsafe {
        calls::statistics(
            runtime,
            (&raw mut result) as usize,
            allocator,
            (&raw const buffer_type) as usize,
        )
    };
    let [total, allocated, free, largest_free, begin, _, end_of_memory, after, ..] = result;
    // Up to 0.68 the sizes are followed by a std::vector<uint32_t>; from 0.70 on by nothing, which era C
    // has only. What an unknown release may put there is left alone.
    let has_vector = runtime.era != Some(Era::C) && begin != UNTOUCHED && after == UNTOUCHED;
    if has_vector && begin != 0 {
        // SAFETY: the vector is ours, and nobody else has its memory.
        unsafe { calls::operator_delete(runtime, begin, end_of_memory.wrapping_sub(begin)) };
    }
    StatisticsOfType {
        buffer_type: buffer_type as u64,
        total: total as u64,
        allocated: allocated as u64,
        free: free as u64,
        largest_free: largest_free as u64,
    }
}
