//! The books: who holds how much of which chip's memory, from the records alone.
//!
//! Memory is handed out by allocators. An allocation occupies every chip of the device whose allocator
//! gave it: all chips of a MeshDevice, or the one of a Device. It is live from the allocator's return to
//! the allocator's free, or to the allocator's end, whatever the program still holds.
//!
//! An allocation has an identity of its own. Neither its Buffer object nor its (allocator, type,
//! address) will do: a buffer that is freed under a graph capture without dispatch stays allocated while
//! its object dies, so the pointer comes back; and two per-core buffers may have one address. Both are
//! ways to find it. Objects are known by address, and addresses are reused: an allocator or device that
//! ends takes its entry along, so that the next at that address is another.
//!
//! What is live is kept, and of what has been, a part that does not grow (`bounds`). Chips to which the
//! same has happened have one set of figures (`chips`). Records that come late are put right (`late`).
//!
//! Nothing here does I/O, and no record can make it panic.

mod allocator;
mod bounds;
mod chips;
mod late;
mod reconcile;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashMap};
use indexmap::IndexMap;

use serde::{Deserialize, Serialize};
use ttalloc_ring::record::{self, Head, Purpose, Record, Refusal, TYPES, TraceStep};
use ttalloc_symbols::{COUNT, Era, SymbolSet};

use self::allocator::Allocator;
use self::chips::Place;
use self::late::{EarlyFree, Late, TakenFor};
use crate::programs::{Closed, Programs, Running, Shape};

/// How many overlaps are told one by one.
const MOST_OVERLAPS: usize = 100;
/// How many overlaps of one allocation are counted.
const MOST_OVERLAPS_OF_ONE: u64 = 256;
/// How many purposes memory may have.
const PURPOSES: usize = Purpose::ALL.len();

pub use self::allocator::Allocation;
pub(crate) use self::bounds::Largest;
pub use self::bounds::{Folded, FoldedMemory, LeftOut, Limits};
pub use self::chips::Chips;
pub use self::reconcile::{Cause, Difference, Failure, Reconciliation};

/// tt-metal's `BufferType`: the kind of memory.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MemoryType {
    /// The chip's DRAM.
    Dram,
    /// The L1 of the worker cores.
    L1,
    /// Host memory that the device can reach.
    SystemMemory,
    /// The part of L1 set apart by `l1_small_size`.
    L1Small,
    /// The part of DRAM set apart by `trace_region_size`.
    Trace,
}

impl MemoryType {
    /// All types, in the order of their numbers in tt-metal.
    pub const ALL: [MemoryType; TYPES] = [
        MemoryType::Dram,
        MemoryType::L1,
        MemoryType::SystemMemory,
        MemoryType::L1Small,
        MemoryType::Trace,
    ];

    fn from_number(number: u32) -> Option<MemoryType> {
        MemoryType::ALL.get(number as usize).copied()
    }
}

impl fmt::Display for MemoryType {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            MemoryType::Dram => "DRAM",
            MemoryType::L1 => "L1",
            MemoryType::SystemMemory => "SYSTEM_MEMORY",
            MemoryType::L1Small => "L1_SMALL",
            MemoryType::Trace => "TRACE",
        })
    }
}

/// How much some allocations take on one chip.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
pub struct Totals {
    /// How many buffers.
    pub buffers: u64,
    /// What was asked for: the sum of `Buffer::size()`, in bytes.
    pub bytes: u64,
    /// What the allocator charges in every bank, its rounding included, in bytes. Equal to
    /// `get_memory_view(...).total_bytes_allocated_per_bank`.
    pub bytes_per_bank: u64,
    /// Bytes per bank times the number of banks: what runs out. It includes buffers that have an
    /// address of their own on each core, which take some banks only and are not in `bytes_per_bank`.
    pub reserved_bytes: u64,
}

/// What some allocations took, and when it was most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// What there is now.
    pub live: Totals,
    /// What there was when most was reserved.
    pub peak: Totals,
    /// When that was, in nanoseconds of the records' clock.
    pub peak_ns: u64,
    /// How many there were in all.
    pub count: u64,
}

impl Usage {
    fn add(&mut self, totals: Totals, time_ns: u64) {
        self.count += 1;
        self.live.add(totals);
        if self.live.reserved_bytes > self.peak.reserved_bytes {
            self.peak = self.live;
            self.peak_ns = time_ns;
        }
    }
}

impl Totals {
    const NONE: Totals = Totals { buffers: 0, bytes: 0, bytes_per_bank: 0, reserved_bytes: 0 };

    /// Those of one buffer.
    fn of_one(bytes: u64, bytes_per_bank: u64, banks: u64) -> Totals {
        let reserved_bytes = bytes_per_bank.saturating_mul(banks);
        Totals { buffers: 1, bytes, bytes_per_bank, reserved_bytes }
    }

    /// Adds others.
    pub(crate) fn add(&mut self, other: Totals) {
        self.buffers = self.buffers.saturating_add(other.buffers);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.bytes_per_bank = self.bytes_per_bank.saturating_add(other.bytes_per_bank);
        self.reserved_bytes = self.reserved_bytes.saturating_add(other.reserved_bytes);
    }

    /// That many times as much.
    fn times(self, times: u64) -> Totals {
        Totals {
            buffers: self.buffers.saturating_mul(times),
            bytes: self.bytes.saturating_mul(times),
            bytes_per_bank: self.bytes_per_bank.saturating_mul(times),
            reserved_bytes: self.reserved_bytes.saturating_mul(times),
        }
    }

    fn subtract(&mut self, other: Totals) {
        self.buffers = self.buffers.saturating_sub(other.buffers);
        self.bytes = self.bytes.saturating_sub(other.bytes);
        self.bytes_per_bank = self.bytes_per_bank.saturating_sub(other.bytes_per_bank);
        self.reserved_bytes = self.reserved_bytes.saturating_sub(other.reserved_bytes);
    }
}

/// One chip's memory of one type.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// The number of banks.
    pub banks: u32,
    /// What can be allocated in each, in bytes, as of when the device was opened.
    pub bank_bytes: u64,
    /// The same at last, and at least: sub-devices with memory of their own take some.
    pub bank_bytes_last: u64,
    /// See `bank_bytes_last`; None before any is known.
    pub bank_bytes_least: Option<u64>,
    /// What was allocated for something else than data, by [`Purpose::ALL`].
    pub purposes: Purposes,
    /// What graph captures without dispatch planned, and never allocated.
    pub planned: Usage,
    /// What is allocated now.
    pub live: Totals,
    /// What was allocated when most was reserved.
    pub peak: Totals,
    /// When that was, in nanoseconds of the records' clock.
    pub peak_ns: u64,
    /// What was live when the chip's devices last closed.
    pub live_at_close: Option<Totals>,
    /// Successful allocations.
    pub allocations: u64,
    /// Buffers freed one by one.
    pub frees: u64,
    /// Buffers that the runtime let go all at once, as it does when a device closes.
    pub released: u64,
    /// Allocations that ended in an exception.
    pub failed: u64,
    /// The bytes asked for by all successful allocations.
    pub allocated_bytes_total: u64,
}

/// What memory was allocated for, by [`Purpose::ALL`]. It takes no room where that is data alone.
#[derive(Clone, Debug, Default)]
pub struct Purposes(Option<Box<[Usage; PURPOSES]>>);

impl Deref for Purposes {
    type Target = [Usage; PURPOSES];

    fn deref(&self) -> &[Usage; PURPOSES] {
        const NONE: Usage = Usage { live: Totals::NONE, peak: Totals::NONE, peak_ns: 0, count: 0 };
        const NOTHING: [Usage; PURPOSES] = [NONE; PURPOSES];
        self.0.as_deref().unwrap_or(&NOTHING)
    }
}

impl DerefMut for Purposes {
    fn deref_mut(&mut self) -> &mut [Usage; PURPOSES] {
        self.0.get_or_insert_default()
    }
}

impl Memory {
    fn subtract(&mut self, allocation: &Allocation) {
        self.live.subtract(allocation.totals);
        if allocation.purpose != Purpose::Data {
            self.purposes[allocation.purpose as usize].live.subtract(allocation.totals);
        }
    }
}

/// One chip, as one process used it.
#[derive(Clone, Debug, Default)]
pub struct Chip {
    /// tt-metal's `ARCH`.
    pub arch: u32,
    /// Its memory, by [`MemoryType::ALL`].
    pub memory: [Memory; TYPES],
    /// The first addresses that may be allocated in L1 and in DRAM; 0 if that is not known.
    pub base: [u64; 2],
    /// The L1 of one core, in bytes; 0 if that is not known.
    pub l1_bytes: u32,
    /// The programs that ran on it.
    pub programs: ChipPrograms,
    /// The devices that are open over it.
    open: BTreeSet<u64>,
    /// Whether it was reopened since `live_at_close` was taken.
    reopened: bool,
    /// How many devices over it have closed.
    closes: u64,
    /// The lowest buffer in L1, while programs that run are entered.
    lowest_buffer: Option<u64>,
}

impl Chip {
    /// The type's memory.
    pub fn memory(&self, kind: MemoryType) -> &Memory {
        &self.memory[kind as usize]
    }
}

/// What programs did with the L1 of one chip.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChipPrograms {
    /// How many program objects ran on it.
    pub programs: u64,
    /// How often one ran.
    pub runs: u64,
    /// The program whose region in L1 reached farthest.
    pub largest: Option<Reach>,
    /// When the least was left between a program's region and the lowest buffer.
    pub headroom: Option<Headroom>,
}

/// How far a program's region reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The program's number.
    pub program: u64,
    /// One past the last byte, in the L1 of a core.
    pub end: u64,
    /// When it first ran, in nanoseconds of the records' clock.
    pub time_ns: u64,
}

/// What was left in L1 when a program ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headroom {
    /// The program.
    pub reach: Reach,
    /// The lowest buffer's address; None if there was none, and L1's end is meant.
    pub lowest_buffer: Option<u64>,
    /// From the region's end to there, in bytes.
    pub bytes: i64,
}

/// Two allocations of different allocators that have the same memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// The chips on which they meet.
    pub chips: Vec<i32>,
    /// The type of memory.
    pub kind: MemoryType,
    /// The later one, and the earlier one, which was live.
    pub allocations: [Overlapping; 2],
    /// When the later one was made, in nanoseconds of the records' clock.
    pub time_ns: u64,
}

/// One side of an overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlapping {
    /// The id of the mesh whose allocator gave it; None if it was a single chip's.
    pub mesh: Option<i32>,
    /// Its address in each bank.
    pub address: u64,
    /// What it takes in each.
    pub bytes_per_bank: u64,
}

/// A MeshDevice that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// Its id: counted by the process, and no chip's id.
    pub id: i32,
    /// The ids of its chips, in the mesh's order.
    pub chips: Vec<i32>,
}

#[derive(Debug)]
struct Device {
    id: i32,
    is_mesh: bool,
    place: Place,
    shape: Shape,
    /// When it was last described, in nanoseconds of the records' clock.
    described_ns: u64,
    /// Once it is closed: what that changed, in case the close fails after all.
    closed: Option<Closing>,
}

/// What closing a device changes.
#[derive(Debug)]
struct Closing {
    /// What was still allocated on each of its chips.
    left: [Totals; TYPES],
    /// What each of its chips was before, those with the same figures once.
    before: Vec<BeforeClose>,
    /// Its traces.
    programs: Closed,
    /// What was planned for it, by the Buffer object.
    planned: Vec<(u64, (u64, MemoryType, Totals))>,
}

#[derive(Debug)]
struct BeforeClose {
    ids: BTreeSet<i32>,
    closes: u64,
    reopened: bool,
    live_at_close: [Option<Totals>; TYPES],
}

/// The runtime that a process loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// The library that defines the allocator.
    pub path: String,
    /// Its build id, in hexadecimal.
    pub build_id: Option<String>,
    /// What it defines of the catalogue.
    pub symbols: SymbolSet,
    /// The era as which it was tracked; None if it could not be.
    pub era: Option<Era>,
}

/// One process's books.
#[derive(Debug, Default)]
pub struct Process {
    /// Its pid, parent's pid and argument vector; None if the record was lost.
    pub identity: Option<Identity>,
    /// Its runtime; None if the record was lost.
    pub runtime: Option<Runtime>,
    /// The functions that were patched, since calls of them can't be interposed.
    pub patched: SymbolSet,
    /// Those that could not be, by their index in the catalogue.
    pub refused: BTreeMap<usize, Refused>,
    /// The meshes it opened, in order, without those that were left out.
    pub meshes: Vec<Mesh>,
    /// The chips it opened, by their ids.
    pub chips: Chips,
    /// Its programs.
    pub programs: Programs,
    /// The first overlaps between its allocators.
    pub overlaps: Vec<Overlap>,
    /// How many there were.
    pub overlap_count: u64,
    /// What is planned, by the Buffer object: its device, type and size.
    planned: HashMap<u64, (u64, MemoryType, Totals)>,
    devices: HashMap<u64, Device>,
    allocators: IndexMap<u64, Allocator, DefaultHashBuilder>,
    /// What is not kept of it, for want of room.
    pub left_out: LeftOut,
    late: Late,
    /// The devices that have closed, in order; some are open again, or gone.
    closed: VecDeque<u64>,
    /// Where programs last ran.
    ran_at: Option<Place>,
    has_ended: bool,
    /// How many meshes were listed after some had been left out.
    meshes_kept: usize,
}

/// A function whose calls are not seen, or not all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub why: Refusal,
    /// Whether the calls that other libraries make are seen.
    pub interposed: bool,
    /// Whether there are calls that can't be.
    pub lossy: bool,
}

/// Who a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its pid, as the launcher sees it.
    pub pid: u32,
    /// Its pid as it sees it itself.
    pub inner_pid: u32,
    /// Its parent's pid when it first used tt-metal, as it sees it itself.
    pub parent_pid: u32,
    /// The number of the process that it was forked from, if that one was tracked.
    pub parent_process: Option<u32>,
    /// When it was started, in clock ticks since the host's start; 0 if that is not known.
    pub start_ticks: u64,
    /// Its rank.
    pub rank: Option<u32>,
    /// Its argument vector.
    pub argv: Vec<String>,
    /// Whether arguments are missing at the end, for want of room in the record.
    pub argv_cut: bool,
    /// Whether it was forked from a tracked process and has the runtime's state from there.
    pub forked: bool,
}

/// What did not add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Anomalies {
    /// Records that could not be read, or made no sense.
    pub bad_records: u64,
    /// Frees of memory that was not known to be allocated.
    pub unknown_frees: u64,
    /// Frees, in a forked child, of what its parent had allocated.
    pub inherited_frees: u64,
    /// Allocations by an allocator whose chips are not known.
    pub unattributed: u64,
    /// Dispatches of programs that are not known, or to a device that is not.
    pub unattributed_runs: u64,
    /// The same in a forked child, of what its parent had made.
    pub inherited_runs: u64,
    /// Buffers made at a given address where nothing was allocated.
    pub external_placements: u64,
    /// Records for which there was no room, because more is live than any program has.
    pub crowded: u64,
    /// Records of processes that had ended, and are no longer in the books.
    pub after_end: u64,
}

/// The books of a run.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Each process's, by its number in the ring.
    pub processes: BTreeMap<u32, Process>,
    /// Records read.
    pub events: u64,
    /// What did not add up.
    pub anomalies: Anomalies,
    /// What the runtime said of the same memory.
    pub reconciliation: Reconciliation,
    /// What is left of the processes that have ended and are no longer in `processes`.
    pub folded: Folded,
    limits: Limits,
    ends: bounds::Ends,
    is_crowded: bool,
    /// After how many records the books are weighed next.
    weigh_at: u64,
}

impl Ledger {
    /// Enters one record.
    pub fn enter(&mut self, bytes: &[u8]) {
        self.events += 1;
        self.weigh_now_and_then();
        let Ok((head, record)) = Record::decode(bytes) else {
            self.anomalies.bad_records += 1;
            return;
        };
        if self.is_crowded && bounds::takes_room(&record) {
            self.anomalies.crowded += 1;
            return;
        }
        if let Record::Process(body, _) = &record {
            self.announced(head.process, body.pid);
        }
        let process = match self.processes.get_mut(&head.process) {
            Some(process) => process,
            None if self.ends.is_folded(head.process) => {
                self.anomalies.after_end += 1;
                return;
            }
            None => self.processes.entry(head.process).or_default(),
        };
        let mut entry = Entry {
            head,
            process,
            anomalies: &mut self.anomalies,
            reconciliation: &mut self.reconciliation,
            most_programs: self.limits.programs,
        };
        entry.count_operation(&record);
        match record {
            Record::Process(body, tail) => entry.process(body, tail.0),
            Record::Runtime(body, tail) => entry.runtime(body, tail.0),
            Record::Device(body, tail) => entry.device(body, tail.0),
            Record::Allocator(body, _) => entry.allocator(body),
            Record::Allocate(body, _) => entry.allocate(body),
            Record::Free(body, _) => entry.free(body),
            Record::Failed(body, _) => entry.failed(body),
            Record::Release(body, _) => entry.released(body),
            Record::Close(body, _) if body.failed != 0 => entry.close_failed(body.device),
            Record::Close(body, _) => entry.close(body.device),
            Record::Placement(body, _) => entry.placement(body),
            Record::Kernel(body, name) => {
                entry.process.programs.kernel(body.program, text(name.0));
            }
            Record::Local(body, ranges) => {
                if !entry.process.programs.local(&body, ranges.0) {
                    entry.anomalies.bad_records += 1;
                }
            }
            Record::Enlisted(body, _) => {
                if !entry.process.programs.enlist(&body) {
                    entry.anomalies.bad_records += 1;
                }
            }
            Record::Run(body, _) => entry.run(&body),
            Record::ProgramEnd(body, _) => entry.program_end(body.program),
            Record::Planned(body, _) => entry.planned(&body),
            Record::Unplanned(body, _) => entry.unplanned(body.buffer),
            Record::Trace(body, _) => entry.trace(&body),
            Record::Regions(body, regions) => entry.regions(&body, regions.0),
            Record::Statistics(body, tail) => entry.statistics(body, tail),
            Record::Patched(body, _) => entry.process.patched = SymbolSet(body.symbols),
            Record::Refused(body, _) => entry.refused(body),
        }
    }
}

impl Process {
    /// The live allocations with their chips, in no particular order.
    pub fn live(&self) -> impl Iterator<Item = (&[i32], &Allocation)> {
        self.allocators
            .values()
            .flat_map(|allocator| allocator.live.values().map(|one| (allocator.chips(), one)))
    }
}

/// One record being entered.
struct Entry<'a> {
    head: Head,
    process: &'a mut Process,
    anomalies: &'a mut Anomalies,
    reconciliation: &'a mut Reconciliation,
    most_programs: usize,
}

impl Entry<'_> {
    fn process(&mut self, body: record::Process, argv: &[u8]) {
        let argv = argv.strip_suffix(b"\0").unwrap_or(argv);
        self.process.identity = Some(Identity {
            pid: body.pid,
            inner_pid: body.inner_pid,
            parent_pid: body.parent_pid,
            parent_process: body.parent_process.checked_sub(1),
            start_ticks: body.start_ticks,
            rank: u32::try_from(body.rank).ok(),
            argv: argv.split(|&byte| byte == 0).map(text).collect(),
            argv_cut: body.argv_cut != 0,
            forked: body.forked != 0,
        });
    }

    fn runtime(&mut self, body: record::Runtime, path: &[u8]) {
        let hex = |id: &[u8]| id.iter().map(|byte| format!("{byte:02x}")).collect();
        self.process.runtime = Some(Runtime {
            path: text(path),
            build_id: body.build_id().map(hex),
            symbols: body.symbols(),
            era: body.era(),
        });
    }

    fn refused(&mut self, body: record::Refused) {
        let index = body.symbol as usize;
        let Some(why) = Refusal::from_number(body.reason).filter(|_| index < COUNT) else {
            self.anomalies.bad_records += 1;
            return;
        };
        self.process.refused.insert(
            index,
            Refused { why, interposed: body.interposed != 0, lossy: body.lossy != 0 },
        );
    }

    fn device(&mut self, body: record::Device, chips: &[u8]) {
        let (ids, rest) = chips.as_chunks::<4>();
        if !rest.is_empty() {
            self.anomalies.bad_records += 1;
            return;
        }
        let chips: Arc<[i32]> = ids.iter().map(|&id| i32::from_le_bytes(id)).collect();
        let is_mesh = body.is_mesh != 0;
        let shape = Shape { dims: body.dims as usize, strides: body.strides };
        let described_ns = self.head.time_ns;
        if let Some(known) = self.process.devices.get_mut(&body.device) {
            // It is late, and another has come there since.
            if known.described_ns > described_ns {
                return;
            }
            if known.closed.is_none()
                && known.id == body.id
                && known.is_mesh == is_mesh
                && same_chips(&known.place.chips, &chips)
            {
                // A mesh that was reshaped has its chips in another order.
                if known.place.chips != chips {
                    known.place = Place::new(chips);
                }
                (known.shape, known.described_ns) = (shape, described_ns);
                return;
            }
        }
        self.forget_device(body.device);
        let mut place = Place::new(chips.clone());
        self.process.chips.add(&chips);
        self.process.chips.change(&mut place, |chip| {
            chip.arch = body.arch;
            chip.reopened |= chip.open.is_empty();
            chip.open.insert(body.device);
        });
        if is_mesh {
            self.process.meshes.push(Mesh { id: body.id, chips: chips.to_vec() });
            self.process.leave_out_meshes();
        }
        let device = Device { id: body.id, is_mesh, place, shape, described_ns, closed: None };
        self.process.devices.insert(body.device, device);
        for (time_ns, allocator) in self.process.late.take_allocators(body.device, described_ns) {
            self.at(time_ns).allocator(allocator);
        }
    }

    /// The same process's books, for a record that came before and makes sense only now.
    fn at(&mut self, time_ns: u64) -> Entry<'_> {
        Entry {
            head: Head { time_ns, ..self.head },
            process: self.process,
            anomalies: self.anomalies,
            reconciliation: self.reconciliation,
            most_programs: self.most_programs,
        }
    }

    fn forget_device(&mut self, address: u64) {
        let Some(mut gone) = self.process.devices.remove(&address) else { return };
        if let Some(closing) = gone.closed.take() {
            let merged = self.process.programs.has_closed(closing.programs);
            self.process.now_stands_for(&merged);
        }
        self.process.chips.change(&mut gone.place, |chip| {
            chip.open.remove(&address);
        });
    }

    fn allocator(&mut self, body: record::Allocator) {
        let time_ns = self.head.time_ns;
        let known = self.process.allocators.get(&body.allocator);
        // It is late, and another has come there since.
        if known.is_some_and(|known| known.described_ns > time_ns) {
            return;
        }
        // One that is told again may have banks of another size than when its device was opened.
        let is_known = known.is_some_and(|known| known.device == body.device);
        let mut place = match self.process.devices.get(&body.device) {
            Some(device) => Place::new(device.place.chips.clone()),
            None => {
                self.process.late.keep_allocator(time_ns, body);
                Place::default()
            }
        };
        // The allocator of a sub-device has no DRAM, and banks of another size.
        let is_whole = body.banks[MemoryType::Dram as usize] != 0;
        self.process.chips.change(&mut place, |chip| {
            for (kind, memory) in chip.memory.iter_mut().enumerate() {
                if is_whole || memory.banks == 0 {
                    let bytes = body.bank_bytes[kind];
                    memory.banks = body.banks[kind];
                    if !is_known {
                        memory.bank_bytes = bytes;
                    }
                    let least = memory.bank_bytes_least.map_or(bytes, |least| least.min(bytes));
                    memory.bank_bytes_least = Some(least);
                    memory.bank_bytes_last = bytes;
                }
            }
            if is_whole {
                (chip.base, chip.l1_bytes) = (body.base, body.l1_bytes);
            }
        });
        match self.process.allocators.get_mut(&body.allocator) {
            Some(known)
                if known.device == body.device && same_chips(known.chips(), &place.chips) =>
            {
                known.described_ns = time_ns;
                return;
            }
            // Described again by a runtime that can't tell its device.
            Some(_) if body.device == 0 => return,
            // It ended unseen.
            Some(_) => self.release(body.allocator, true, u64::MAX),
            None => {}
        }
        if self.process.allocators.len() >= bounds::MOST_ALLOCATORS {
            self.anomalies.crowded += 1;
            return;
        }
        let allocator = Allocator {
            device: body.device,
            place,
            banks: body.banks,
            alignment: body.alignment.into(),
            described_ns: time_ns,
            ..Allocator::default()
        };
        let has_chips = !allocator.chips().is_empty();
        self.process.allocators.insert(body.allocator, allocator);
        if has_chips {
            for (time_ns, late) in self.process.late.take_allocations(body.allocator, time_ns) {
                self.anomalies.unattributed = self.anomalies.unattributed.saturating_sub(1);
                self.at(time_ns).allocate(late);
            }
        }
    }

    fn allocate(&mut self, body: record::Allocate) {
        let time_ns = self.head.time_ns;
        let Some(kind) = MemoryType::from_number(body.buffer_type) else {
            self.anomalies.bad_records += 1;
            return;
        };
        let known = self.process.allocators.get_mut(&body.allocator);
        let Some(allocator) = known.filter(|allocator| !allocator.chips().is_empty()) else {
            self.anomalies.unattributed += 1;
            self.process.late.keep_allocation(time_ns, body);
            return;
        };
        let bytes_per_bank = allocator.rounded(body.bytes_per_bank);
        let Some(&purpose) = Purpose::ALL.get(body.purpose as usize) else {
            self.anomalies.bad_records += 1;
            return;
        };
        let banks = u64::from(allocator.banks[kind as usize]);
        let cores = (body.cores != 0).then_some(u64::from(body.cores));
        let mut totals = Totals::of_one(body.bytes, bytes_per_bank, cores.unwrap_or(banks));
        if cores.is_some() {
            totals.bytes_per_bank = 0;
        }
        let allocation = Allocation {
            buffer: body.buffer,
            address: body.address,
            kind,
            totals,
            bytes_per_bank,
            cores,
            purpose,
            adopted: false,
            page_bytes: body.page_bytes,
            time_ns,
        };
        let released_ns = allocator.released_ns;
        if purpose == Purpose::Trace {
            let device = allocator.device;
            self.process.programs.trace_memory(device, bytes_per_bank, totals.reserved_bytes);
        }
        let object = (body.allocator, body.buffer, body.address);
        if let Some(free) = self.process.late.take_free(object, time_ns) {
            let counted = match free.taken_for {
                TakenFor::Unknown => Some(&mut self.anomalies.unknown_frees),
                TakenFor::Inherited => Some(&mut self.anomalies.inherited_frees),
                TakenFor::Stale { .. } => None,
            };
            if let Some(counted) = counted {
                *counted = counted.saturating_sub(1);
            }
            self.was_there(body.allocator, &allocation, |memory| memory.frees += 1);
            return;
        }
        if time_ns < released_ns {
            if let Some(allocator) = self.process.allocators.get_mut(&body.allocator) {
                self.process.left_out.released += allocator.let_go(&allocation, released_ns);
            }
            self.was_there(body.allocator, &allocation, |memory| memory.released += 1);
            return;
        }
        self.overlaps(body.allocator, &allocation);
        self.insert(body.allocator, allocation);
    }

    /// An allocation whose end was read before it is entered together with that.
    fn was_there(&mut self, address: u64, allocation: &Allocation, end: impl Fn(&mut Memory)) {
        let Some(allocator) = self.process.allocators.get_mut(&address) else { return };
        self.process.chips.change(&mut allocator.place, |chip| {
            let memory = &mut chip.memory[allocation.kind as usize];
            memory.allocations += 1;
            memory.allocated_bytes_total =
                memory.allocated_bytes_total.saturating_add(allocation.totals.bytes);
            if allocation.purpose != Purpose::Data {
                memory.purposes[allocation.purpose as usize].count += 1;
            }
            end(memory);
        });
    }

    /// Enters an allocation.
    fn insert(&mut self, address: u64, allocation: Allocation) {
        let Some(allocator) = self.process.allocators.get_mut(&address) else { return };
        let (kind, totals, purpose) = (allocation.kind, allocation.totals, allocation.purpose);
        let time_ns = self.head.time_ns;
        if !allocator.insert(allocation) {
            self.anomalies.crowded += 1;
            return;
        }
        self.process.chips.change(&mut allocator.place, |chip| {
            let memory = &mut chip.memory[kind as usize];
            memory.allocations += 1;
            memory.allocated_bytes_total =
                memory.allocated_bytes_total.saturating_add(totals.bytes);
            memory.live.add(totals);
            if memory.live.reserved_bytes > memory.peak.reserved_bytes {
                memory.peak = memory.live;
                memory.peak_ns = time_ns;
            }
            if purpose != Purpose::Data {
                memory.purposes[purpose as usize].add(totals, time_ns);
            }
        });
    }

    /// Looks for live allocations of other allocators over the same chips that have the same memory.
    fn overlaps(&mut self, address: u64, allocation: &Allocation) {
        // On each core another address: none that could be compared.
        if allocation.cores.is_some() || allocation.bytes_per_bank == 0 {
            return;
        }
        let Some(own) = self.process.allocators.get(&address) else { return };
        let end = allocation.address.saturating_add(allocation.bytes_per_bank);
        let side = |allocator: &Allocator, one: &Allocation| {
            let device = self.process.devices.get(&allocator.device);
            Overlapping {
                mesh: device.filter(|device| device.is_mesh).map(|device| device.id),
                address: one.address,
                bytes_per_bank: one.bytes_per_bank,
            }
        };
        let (mut found, mut count) = (Vec::new(), 0);
        for (&of, other) in &self.process.allocators {
            if of == address || other.live.is_empty() || !other.place.meets(&own.place) {
                continue;
            }
            let known = other.between(allocation.kind, allocation.address, end);
            for one in known.filter(|one| one.cores.is_none() && !one.adopted) {
                if count == MOST_OVERLAPS_OF_ONE {
                    break;
                }
                count += 1;
                if self.process.overlaps.len() + found.len() < MOST_OVERLAPS {
                    let chips = own.chips().iter().filter(|chip| other.chips().contains(chip));
                    found.push(Overlap {
                        chips: chips.copied().collect(),
                        kind: allocation.kind,
                        allocations: [side(own, allocation), side(other, one)],
                        time_ns: self.head.time_ns,
                    });
                }
            }
        }
        self.process.overlap_count += count;
        self.process.overlaps.extend(found);
    }

    /// An allocator took over ranges of memory, whose buffers are another's.
    fn regions(&mut self, body: &record::Regions, tail: &[u8]) {
        let (words, rest) = tail.as_chunks::<8>();
        let (ranges, odd) = words.as_chunks::<2>();
        let kind = MemoryType::from_number(body.buffer_type);
        let (Some(kind), true, true) = (kind, rest.is_empty(), odd.is_empty()) else {
            self.anomalies.bad_records += 1;
            return;
        };
        let Some(allocator) = self.process.allocators.get(&body.allocator) else {
            self.anomalies.unattributed += ranges.len() as u64;
            return;
        };
        let banks = u64::from(allocator.banks[kind as usize]);
        for range in ranges {
            let [start, end] = range.map(u64::from_le_bytes);
            let Some(bytes_per_bank) = end.checked_sub(start) else {
                self.anomalies.bad_records += 1;
                continue;
            };
            let reserved_bytes = bytes_per_bank.saturating_mul(banks);
            let totals = Totals::of_one(reserved_bytes, bytes_per_bank, banks);
            let allocation = Allocation {
                buffer: 0,
                address: start,
                kind,
                totals,
                bytes_per_bank,
                cores: None,
                purpose: Purpose::Data,
                adopted: true,
                page_bytes: 0,
                time_ns: self.head.time_ns,
            };
            self.insert(body.allocator, allocation);
        }
    }

    fn run(&mut self, body: &record::Run) {
        if body.refused != 0 {
            self.process.programs.refused(body.program);
            return;
        }
        let device = self.process.devices.get(&body.device);
        let knows = body.workload == 0 || self.process.programs.knows(body.workload);
        let Some(device) = device.filter(|_| knows) else {
            // A workload without programs runs nowhere.
            match &self.process.identity {
                _ if body.device == 0 && !knows => {}
                Some(identity) if identity.forked => self.anomalies.inherited_runs += 1,
                _ => self.anomalies.unattributed_runs += 1,
            }
            return;
        };
        let programs = &mut self.process.programs;
        let running = programs.run(body, &device.place.chips, device.shape, self.head.time_ns);
        self.running(&running);
    }

    /// Programs run now: how far do they reach into L1, and what do they leave?
    fn running(&mut self, running: &[Running]) {
        let time_ns = self.head.time_ns;
        let Process { chips, allocators, ran_at, .. } = &mut *self.process;
        let mut places: Vec<Place> = running
            .iter()
            .map(|one| match ran_at.take_if(|place| Arc::ptr_eq(&place.chips, &one.chips)) {
                Some(place) => place,
                None => Place::new(one.chips.clone()),
            })
            .collect();
        for (one, place) in running.iter().zip(&mut places) {
            chips.change(place, |chip| {
                chip.programs.runs = chip.programs.runs.saturating_add(one.runs);
                chip.lowest_buffer = None;
            });
            let mut count = |place: &mut Place| {
                chips.change(place, |chip| chip.programs.programs += 1);
            };
            match one.new.as_slice() {
                [] => {}
                new if *new == *one.chips => count(place),
                new => count(&mut Place::new(new.into())),
            }
        }
        let have_regions = running.iter().any(|one| one.end.is_some());
        for allocator in allocators.values_mut().filter(|_| have_regions) {
            let Some(lowest) = allocator.lowest_l1() else { continue };
            if places.iter().any(|place| place.meets(&allocator.place)) {
                chips.change(&mut allocator.place, |chip| {
                    let least = chip.lowest_buffer.map_or(lowest, |least| least.min(lowest));
                    chip.lowest_buffer = Some(least);
                });
            }
        }
        for (one, place) in running.iter().zip(&mut places) {
            let Some(end) = one.end else { continue };
            let reach = Reach { program: one.program, end, time_ns };
            chips.change(place, |chip| {
                if chip.programs.largest.is_none_or(|largest| largest.end < end) {
                    chip.programs.largest = Some(reach);
                }
                let l1 = &chip.memory[MemoryType::L1 as usize];
                let lowest_buffer = chip.lowest_buffer;
                let limit = lowest_buffer.unwrap_or(chip.base[0].saturating_add(l1.bank_bytes));
                let bytes = i64::try_from(i128::from(limit) - i128::from(end)).unwrap_or(i64::MIN);
                if chip.programs.headroom.is_none_or(|least| bytes < least.bytes) {
                    chip.programs.headroom = Some(Headroom { reach, lowest_buffer, bytes });
                }
            });
        }
        *ran_at = places.pop();
    }

    fn program_end(&mut self, address: u64) {
        let merged = self.process.programs.ended(address);
        self.process.now_stands_for(&merged);
        self.process.leave_out_programs(self.most_programs);
    }

    fn trace(&mut self, body: &record::Trace) {
        let Some(&step) = TraceStep::ALL.get(body.step as usize) else {
            self.anomalies.bad_records += 1;
            return;
        };
        let (device, id, time_ns) = (body.device, body.trace, self.head.time_ns);
        let programs = &mut self.process.programs;
        let mut merged = Vec::new();
        if step == TraceStep::Begin || step == TraceStep::End && !programs.end(device, id) {
            let known = self.process.devices.get(&device);
            let (mesh, chips) =
                known.map(|known| (known.id, &*known.place.chips)).unwrap_or_default();
            merged = programs.begin(device, id, mesh, chips, time_ns);
        }
        match step {
            TraceStep::Begin => {}
            TraceStep::End => {
                programs.end(device, id);
            }
            TraceStep::Replay => {
                let running = programs.replay(device, id, time_ns);
                self.running(&running);
            }
            TraceStep::Release => merged = programs.release(device, id, time_ns),
        }
        self.process.now_stands_for(&merged);
        self.process.leave_out_programs(self.most_programs);
    }

    fn planned(&mut self, body: &record::Planned) {
        let Some(kind) = MemoryType::from_number(body.buffer_type) else {
            self.anomalies.bad_records += 1;
            return;
        };
        self.unplanned(body.buffer);
        let Some(device) = self.process.devices.get_mut(&body.device) else {
            self.anomalies.unattributed += 1;
            return;
        };
        // Not a sub-device's, which has some L1 alone.
        let is_whole = |one: &&Allocator| one.banks[MemoryType::Dram as usize] != 0;
        let mut whole = self.process.allocators.values().filter(is_whole);
        let of_device = whole.find(|one| one.device == body.device);
        let (bytes_per_bank, banks) = of_device.map_or((body.bytes_per_bank, 0), |one| {
            (one.rounded(body.bytes_per_bank), one.banks[kind as usize])
        });
        let totals = Totals::of_one(body.bytes, bytes_per_bank, banks.into());
        self.process.planned.insert(body.buffer, (body.device, kind, totals));
        let time_ns = self.head.time_ns;
        self.process.chips.change(&mut device.place, |chip| {
            chip.memory[kind as usize].planned.add(totals, time_ns);
        });
    }

    fn unplanned(&mut self, buffer: u64) {
        let Some((device, kind, totals)) = self.process.planned.remove(&buffer) else { return };
        let Some(device) = self.process.devices.get_mut(&device) else { return };
        self.process.chips.change(&mut device.place, |chip| {
            chip.memory[kind as usize].planned.live.subtract(totals);
        });
    }

    fn free(&mut self, body: record::Free) {
        let time_ns = self.head.time_ns;
        let allocator = self.process.allocators.get_mut(&body.allocator);
        let found = allocator.and_then(|allocator| {
            let freed = allocator.free(body.buffer, body.address, time_ns)?;
            Some((freed, &mut allocator.place))
        });
        let object = (body.allocator, body.buffer, body.address);
        let Some((freed, place)) = found else {
            let taken_for = match &self.process.identity {
                Some(identity) if identity.forked => {
                    self.anomalies.inherited_frees += 1;
                    TakenFor::Inherited
                }
                _ => {
                    self.anomalies.unknown_frees += 1;
                    TakenFor::Unknown
                }
            };
            self.process.late.keep_free(object, EarlyFree { time_ns, taken_for });
            return;
        };
        if let Some(let_go_ns) = freed.let_go_ns {
            let taken_for = TakenFor::Stale { let_go_ns };
            self.process.late.keep_free(object, EarlyFree { time_ns, taken_for });
        }
        self.process.left_out.released += freed.forgotten;
        if let Some(kind) = freed.was_free {
            self.process.chips.change(place, |chip| {
                let memory = &mut chip.memory[kind as usize];
                memory.frees += 1;
                memory.released = memory.released.saturating_sub(1);
            });
        }
        let Some(allocation) = freed.allocation else { return };
        self.process.chips.change(place, |chip| {
            let memory = &mut chip.memory[allocation.kind as usize];
            memory.frees += 1;
            memory.subtract(&allocation);
        });
    }

    fn failed(&mut self, body: record::Failed) {
        let Some(kind) = MemoryType::from_number(body.buffer_type) else {
            self.anomalies.bad_records += 1;
            return;
        };
        self.note_failure(body, kind);
        let known = self.process.allocators.get_mut(&body.allocator);
        let Some(allocator) = known.filter(|allocator| !allocator.chips().is_empty()) else {
            self.anomalies.unattributed += 1;
            return;
        };
        self.process.chips.change(&mut allocator.place, |chip| {
            chip.memory[kind as usize].failed += 1;
        });
    }

    fn released(&mut self, body: record::Release) {
        let time_ns = self.head.time_ns;
        // One that has come to the address since stays, if the record is late.
        let has_ended = |one: &Allocator| one.described_ns <= time_ns;
        let known = self.process.allocators.get(&body.allocator);
        let ends = body.ends != 0 && known.is_some_and(has_ended);
        self.release(body.allocator, ends, time_ns);
    }

    /// An allocator lets go of all that was there at a time.
    fn release(&mut self, address: u64, ends: bool, time_ns: u64) {
        let Some(allocator) = self.process.allocators.get_mut(&address) else { return };
        let mut place = std::mem::take(&mut allocator.place);
        let chips = &mut self.process.chips;
        self.process.left_out.released += allocator.release(time_ns, |allocation| {
            chips.change(&mut place, |chip| {
                let memory = &mut chip.memory[allocation.kind as usize];
                memory.released += 1;
                memory.subtract(allocation);
            });
        });
        allocator.place = place;
        if ends {
            self.process.allocators.swap_remove(&address);
        }
    }

    fn close(&mut self, address: u64) {
        let Some(device) = self.process.devices.get_mut(&address) else { return };
        // Or it is late, and another has come to the address since.
        if device.closed.is_some() || device.described_ns > self.head.time_ns {
            return;
        }
        let mut left = [Totals::default(); TYPES];
        for allocator in self.process.allocators.values() {
            if allocator.device == address {
                for allocation in allocator.live.values() {
                    left[allocation.kind as usize].add(allocation.totals);
                }
            }
        }
        let mut before = Vec::new();
        self.process.chips.change_with_ids(&mut device.place, |ids, chip| {
            chip.open.remove(&address);
            let reopened = std::mem::take(&mut chip.reopened);
            let live_at_close = chip.memory.each_ref().map(|memory| memory.live_at_close);
            let ids = ids.clone();
            before.push(BeforeClose { ids, closes: chip.closes, reopened, live_at_close });
            chip.closes += 1;
            for (memory, left) in chip.memory.iter_mut().zip(left) {
                let at_close = memory.live_at_close.get_or_insert_default();
                if reopened {
                    *at_close = Totals::default();
                }
                at_close.add(left);
            }
        });
        let of_it = self.process.planned.iter().filter(|(_, (device, ..))| *device == address);
        let planned: Vec<_> = of_it.map(|(&buffer, &planned)| (buffer, planned)).collect();
        let programs = self.process.programs.close(address);
        device.closed = Some(Closing { left, before, programs, planned: planned.clone() });
        for (buffer, _) in planned {
            self.unplanned(buffer);
        }
        self.process.closed.push_back(address);
        if self.process.closed.len() > bounds::MOST_CLOSED
            && let Some(oldest) = self.process.closed.pop_front()
        {
            let devices = &self.process.devices;
            let is_closed = devices.get(&oldest).is_some_and(|device| device.closed.is_some());
            if is_closed && !self.process.closed.contains(&oldest) {
                self.forget_device(oldest);
                self.process.leave_out_programs(self.most_programs);
            }
        }
    }

    /// The close ended in an exception: the device is open as before.
    fn close_failed(&mut self, address: u64) {
        let Some(device) = self.process.devices.get_mut(&address) else { return };
        let Some(closing) = device.closed.take() else { return };
        self.process.programs.close_failed(address, closing.programs);
        for (buffer, planned) in closing.planned {
            let (_, kind, totals) = planned;
            self.process.planned.insert(buffer, planned);
            self.process.chips.change(&mut device.place, |chip| {
                chip.memory[kind as usize].planned.live.add(totals);
            });
        }
        self.process.chips.change_with_ids(&mut device.place, |ids, chip| {
            chip.open.insert(address);
            // Since then, chips with the same figures may have parted, but none have met.
            let was = closing.before.iter().find(|was| ids.is_subset(&was.ids));
            let Some(before) = was else { return };
            if chip.closes == before.closes + 1 {
                chip.closes = before.closes;
                chip.reopened = before.reopened;
                for (memory, live_at_close) in chip.memory.iter_mut().zip(before.live_at_close) {
                    memory.live_at_close = live_at_close;
                }
                return;
            }
            // Another device over the chip has closed since, and that stands.
            for (memory, left) in chip.memory.iter_mut().zip(closing.left) {
                memory.live_at_close.get_or_insert_default().subtract(left);
            }
        });
    }

    fn placement(&mut self, body: record::Placement) {
        let Some(kind) = MemoryType::from_number(body.buffer_type) else {
            self.anomalies.bad_records += 1;
            return;
        };
        let device = self.process.devices.get(&body.device);
        let covered = device.is_some_and(|device| {
            self.process.allocators.values().any(|allocator| {
                allocator.place.meets(&device.place) && allocator.covers(kind, body.address)
            })
        });
        if !covered {
            self.anomalies.external_placements += 1;
        }
    }
}

/// Whether two devices have the same chips, in whatever order.
fn same_chips(a: &[i32], b: &[i32]) -> bool {
    a.len() == b.len() && a.iter().all(|chip| b.contains(chip))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod history;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ttalloc_ring::record::Body;

    pub(super) const MESH: u64 = 0x1000;
    pub(super) const ALLOCATOR: u64 = 0x2000;
    const DRAM_BANKS: u32 = 12;

    /// Records of one process, one nanosecond apart.
    #[derive(Default)]
    pub(super) struct Story {
        pub(super) ledger: Ledger,
        pub(super) time_ns: u64,
        pub(super) process: u32,
    }

    impl Story {
        /// A process with a mesh of `chips` chips and its allocator.
        pub(super) fn with_mesh(chips: i32) -> Story {
            let mut story = Story::default();
            story.mesh(MESH, 0, &(0..chips).collect::<Vec<_>>());
            story.allocator(ALLOCATOR, MESH);
            story
        }

        pub(super) fn tell<B: Body>(&mut self, body: &B, tail: &[u8]) {
            self.time_ns += 1;
            let Story { process, time_ns, .. } = *self;
            let head = Head { kind: B::KIND as u32, process, time_ns };
            let bytes = [bytemuck::bytes_of(&head), bytemuck::bytes_of(body), tail].concat();
            self.ledger.enter(&bytes);
        }

        pub(super) fn mesh(&mut self, device: u64, id: i32, chips: &[i32]) {
            let body =
                record::Device { device, id, arch: 2, is_mesh: 1, dims: 1, strides: [1, 0, 0, 0] };
            self.tell(&body, bytemuck::cast_slice(chips));
        }

        pub(super) fn allocator(&mut self, allocator: u64, device: u64) {
            let mut body = record::Allocator {
                allocator,
                device,
                bank_bytes: [0; TYPES],
                banks: [0; TYPES],
                alignment: 32,
                base: [1024, 32],
                l1_bytes: 1 << 21,
                reserved: 0,
            };
            (body.banks[0], body.bank_bytes[0]) = (DRAM_BANKS, 1 << 30);
            (body.banks[1], body.bank_bytes[1]) = (64, 1 << 20);
            self.tell(&body, b"");
        }

        pub(super) fn allocate(
            &mut self,
            allocator: u64,
            buffer: u64,
            kind: u32,
            address: u64,
            per_bank: u64,
        ) {
            self.tell(
                &record::Allocate {
                    allocator,
                    buffer,
                    address,
                    bytes: per_bank * 2,
                    bytes_per_bank: per_bank,
                    page_bytes: 32,
                    buffer_type: kind,
                    purpose: 0,
                    cores: 0,
                },
                b"",
            );
        }

        pub(super) fn free(&mut self, allocator: u64, buffer: u64, address: u64) {
            self.tell(&record::Free { allocator, buffer, address }, b"");
        }

        fn fail(&mut self, kind: u32) {
            let body = record::Failed {
                allocator: ALLOCATOR,
                bytes: 1 << 40,
                page_bytes: 32,
                buffer_type: kind,
                reserved: 0,
            };
            self.tell(&body, b"");
        }

        pub(super) fn release(&mut self, allocator: u64, ends: u64) {
            self.tell(&record::Release { allocator, ends }, b"");
        }

        pub(super) fn close(&mut self, device: u64) {
            self.tell(&record::Close { device, failed: 0 }, b"");
        }

        pub(super) fn memory(&self, chip: i32, kind: MemoryType) -> &Memory {
            self.ledger.processes[&0].chips[&chip].memory(kind)
        }

        pub(super) fn dram(&self, chip: i32) -> &Memory {
            self.memory(chip, MemoryType::Dram)
        }
    }

    #[test]
    fn a_mesh_tensor_occupies_every_chip_once() {
        let mut story = Story::with_mesh(8);
        story.allocate(ALLOCATOR, 1, 0, 1024, 100);
        for chip in 0..8 {
            let live = story.dram(chip).live;
            let expected = Totals {
                buffers: 1,
                bytes: 200,
                bytes_per_bank: 128,
                reserved_bytes: 128 * u64::from(DRAM_BANKS),
            };
            assert_eq!(live, expected, "rounded up to the allocator's 32 bytes");
        }
        story.free(ALLOCATOR, 1, 1024);
        assert_eq!(story.dram(3).live, Totals::default());
        assert_eq!(story.dram(3).frees, 1);
        assert_eq!(story.ledger.anomalies, Anomalies::default());
    }

    #[test]
    fn the_peak_is_the_most_that_was_reserved_at_once() {
        let mut story = Story::with_mesh(1);
        story.allocate(ALLOCATOR, 1, 0, 0, 64);
        story.allocate(ALLOCATOR, 2, 0, 64, 64);
        let at_peak = story.time_ns;
        story.free(ALLOCATOR, 1, 0);
        story.allocate(ALLOCATOR, 3, 0, 0, 32);
        let memory = story.dram(0);
        assert_eq!((memory.peak.bytes_per_bank, memory.peak_ns), (128, at_peak));
        assert_eq!(memory.live.bytes_per_bank, 96);
    }

    #[test]
    fn a_pointer_that_comes_back_names_the_newer_buffer() {
        let mut story = Story::with_mesh(1);
        story.allocate(ALLOCATOR, 7, 0, 0, 64);
        // Its object died without a free, and the next one came to the same place.
        story.allocate(ALLOCATOR, 7, 0, 64, 32);
        assert_eq!(story.dram(0).live.buffers, 2);
        story.free(ALLOCATOR, 7, 64);
        assert_eq!(story.dram(0).live.bytes_per_bank, 64);
        assert_eq!(story.ledger.anomalies.unknown_frees, 0);
    }

    #[test]
    fn a_description_without_a_device_changes_nothing() {
        let mut story = Story::with_mesh(2);
        story.allocate(ALLOCATOR, 1, 0, 0, 64);
        story.allocator(ALLOCATOR, 0);
        story.allocate(ALLOCATOR, 2, 0, 64, 64);
        assert_eq!((story.dram(1).live.buffers, story.dram(1).released), (2, 0));
        assert_eq!(story.ledger.anomalies, Anomalies::default());
    }

    #[test]
    fn two_buffers_may_share_type_and_address() {
        let mut story = Story::with_mesh(1);
        story.allocate(ALLOCATOR, 1, 1, 512, 64);
        story.allocate(ALLOCATOR, 2, 1, 512, 96);
        story.free(ALLOCATOR, 1, 512);
        assert_eq!(story.memory(0, MemoryType::L1).live.bytes_per_bank, 96);
    }

    #[test]
    fn a_stale_free_takes_what_lies_at_its_address_as_the_runtime_does() {
        let mut story = Story::with_mesh(1);
        story.allocate(ALLOCATOR, 1, 0, 0, 64);
        story.release(ALLOCATOR, 0);
        assert_eq!((story.dram(0).live.buffers, story.dram(0).released), (0, 1));
        story.allocate(ALLOCATOR, 2, 0, 0, 32);
        story.allocate(ALLOCATOR, 3, 1, 0, 32);
        story.free(ALLOCATOR, 1, 0);
        assert_eq!(story.dram(0).live.buffers, 0);
        assert_eq!(story.memory(0, MemoryType::L1).live.buffers, 1, "of its own type only");
        story.release(ALLOCATOR, 0);
        story.free(ALLOCATOR, 3, 0);
        assert_eq!(story.ledger.anomalies.unknown_frees, 0, "nothing lay there");
        story.free(ALLOCATOR, 3, 0);
        assert_eq!(story.ledger.anomalies.unknown_frees, 1);
    }

    #[test]
    fn what_a_stale_free_took_may_still_be_freed() {
        let mut story = Story::with_mesh(1);
        story.allocate(ALLOCATOR, 1, 0, 0, 64);
        story.release(ALLOCATOR, 0);
        story.allocate(ALLOCATOR, 2, 0, 0, 32);
        story.free(ALLOCATOR, 1, 0);
        story.allocate(ALLOCATOR, 3, 0, 0, 96);
        story.free(ALLOCATOR, 2, 0);
        assert_eq!(story.dram(0).live.buffers, 0, "it took the third one in turn");
        story.free(ALLOCATOR, 3, 0);
        assert_eq!(story.ledger.anomalies.unknown_frees, 0);
        assert_eq!((story.dram(0).frees, story.dram(0).released), (2, 1));
    }

    #[test]
    fn an_allocator_at_a_used_address_is_another() {
        let mut story = Story::with_mesh(1);
        story.allocate(ALLOCATOR, 1, 0, 0, 64);
        story.close(MESH);
        story.release(ALLOCATOR, 1);
        story.mesh(MESH, 1, &[0]);
        story.allocator(ALLOCATOR, MESH);
        story.allocate(ALLOCATOR, 1, 0, 0, 32);
        let memory = story.dram(0);
        assert_eq!(memory.live.bytes_per_bank, 32);
        assert_eq!(memory.live_at_close.unwrap().bytes_per_bank, 64);
        assert_eq!(story.ledger.processes[&0].meshes.len(), 2);
    }

    #[test]
    fn what_is_left_at_close_is_summed_over_a_chips_devices_and_starts_anew() {
        const SUBMESH: u64 = 0x3000;
        const ITS_ALLOCATOR: u64 = 0x4000;
        let mut story = Story::with_mesh(2);
        story.mesh(SUBMESH, 1, &[1]);
        story.allocator(ITS_ALLOCATOR, SUBMESH);
        story.allocate(ALLOCATOR, 1, 0, 0, 32);
        story.allocate(ITS_ALLOCATOR, 2, 0, 0, 64);
        story.close(SUBMESH);
        story.close(SUBMESH);
        assert_eq!(story.dram(0).live_at_close, None);
        story.close(MESH);
        let left = |story: &Story, chip| story.dram(chip).live_at_close.unwrap().bytes_per_bank;
        assert_eq!((left(&story, 0), left(&story, 1)), (32, 96));
        story.release(ALLOCATOR, 1);
        story.release(ITS_ALLOCATOR, 1);
        story.mesh(MESH, 2, &[0, 1]);
        story.close(MESH);
        assert_eq!((left(&story, 0), left(&story, 1)), (0, 0));
    }

    #[test]
    fn a_close_that_fails_was_none() {
        let mut story = Story::with_mesh(1);
        story.allocate(ALLOCATOR, 1, 0, 0, 32);
        story.close(MESH);
        story.tell(&record::Close { device: MESH, failed: 1 }, b"");
        assert_eq!(story.dram(0).live_at_close, None);
        story.allocate(ALLOCATOR, 2, 0, 32, 32);
        story.close(MESH);
        assert_eq!(story.dram(0).live_at_close.unwrap().buffers, 2);
    }

    #[test]
    fn a_close_within_one_that_fails_stands() {
        const SUBMESH: u64 = 0x3000;
        const ITS_ALLOCATOR: u64 = 0x4000;
        let mut story = Story::with_mesh(1);
        story.mesh(SUBMESH, 1, &[0]);
        story.allocator(ITS_ALLOCATOR, SUBMESH);
        story.allocate(ALLOCATOR, 1, 0, 0, 32);
        story.allocate(ITS_ALLOCATOR, 2, 0, 0, 64);
        story.close(MESH);
        story.close(SUBMESH);
        story.tell(&record::Close { device: MESH, failed: 1 }, b"");
        assert_eq!(story.dram(0).live_at_close.unwrap().bytes_per_bank, 64);
    }

    #[test]
    fn descriptions_may_be_repeated() {
        let mut story = Story::with_mesh(2);
        story.allocate(ALLOCATOR, 1, 0, 0, 32);
        story.mesh(MESH, 0, &[0, 1]);
        story.allocator(ALLOCATOR, MESH);
        assert_eq!(story.dram(1).live.buffers, 1);
        assert_eq!(story.ledger.processes[&0].meshes.len(), 1);
    }

    #[test]
    fn only_a_placement_that_nothing_covers_is_external() {
        let mut story = Story::with_mesh(2);
        let body =
            record::Device { device: 0x5000, id: 1, arch: 2, is_mesh: 0, dims: 0, strides: [0; 4] };
        story.tell(&body, &1_i32.to_le_bytes());
        story.allocate(ALLOCATOR, 1, 0, 1024, 64);
        let mut place = |kind, address| {
            let body = record::Placement {
                device: 0x5000,
                address,
                bytes: 32,
                buffer_type: kind,
                reserved: 0,
            };
            story.tell(&body, b"");
            story.ledger.anomalies.external_placements
        };
        assert_eq!([place(0, 1024), place(0, 1056), place(0, 1087)], [0, 0, 0]);
        assert_eq!([place(0, 1088), place(0, 1023), place(1, 1024)], [1, 2, 3]);
        assert_eq!(story.dram(1).live.buffers, 1, "a placement adds no memory");
    }

    #[test]
    fn a_planned_buffer_is_rounded_as_its_devices_allocator_would_do_it() {
        let mut story = Story::default();
        story.mesh(MESH, 0, &[0]);
        // The allocator of a sub-device comes first.
        let mut of_sub_device: record::Allocator = bytemuck::Zeroable::zeroed();
        (of_sub_device.allocator, of_sub_device.device) = (ALLOCATOR - 1, MESH);
        (of_sub_device.banks[1], of_sub_device.alignment) = (64, 16);
        story.tell(&of_sub_device, b"");
        story.allocator(ALLOCATOR, MESH);
        let plan = |story: &mut Story, buffer, bytes_per_bank| {
            let body = record::Planned {
                device: MESH,
                buffer,
                bytes: 200,
                bytes_per_bank,
                buffer_type: 0,
                reserved: 0,
            };
            story.tell(&body, b"");
        };
        plan(&mut story, 1, 100);
        plan(&mut story, 1, 20);
        plan(&mut story, 2, 40);
        let planned = story.dram(0).planned;
        assert_eq!((planned.live.bytes_per_bank, planned.live.buffers, planned.count), (96, 2, 3));
        assert_eq!(planned.peak.reserved_bytes, 128 * u64::from(DRAM_BANKS));
        story.tell(&record::Unplanned { buffer: 1 }, b"");
        story.tell(&record::Unplanned { buffer: 1 }, b"");
        assert_eq!(story.dram(0).planned.live.bytes_per_bank, 64);
        story.close(MESH);
        assert_eq!(story.dram(0).planned.live, Totals::default());
        assert_eq!(story.dram(0).live, Totals::default());
        assert_eq!(story.ledger.anomalies, Anomalies::default());
    }

    #[test]
    fn a_forked_childs_free_of_its_parents_buffer_is_no_mystery() {
        let mut story = Story::default();
        let body =
            record::Process { pid: 2, parent_pid: 1, forked: 1, ..bytemuck::Zeroable::zeroed() };
        story.tell(&body, b"python3\0");
        story.free(ALLOCATOR, 1, 0);
        assert_eq!(story.ledger.anomalies.inherited_frees, 1);
        assert_eq!(story.ledger.anomalies.unknown_frees, 0);
    }

    #[test]
    fn what_makes_no_sense_is_counted() {
        let mut story = Story::with_mesh(1);
        story.allocate(0xdead, 1, 0, 0, 32);
        story.allocate(ALLOCATOR, 1, 99, 0, 32);
        story.allocate(ALLOCATOR, 1, 0, 0, u64::MAX / 2);
        story.allocate(ALLOCATOR, 2, 0, 0, u64::MAX / 2);
        story.tell(
            &record::Device { device: 9, id: 0, arch: 0, is_mesh: 1, dims: 0, strides: [0; 4] },
            b"abc",
        );
        story.ledger.enter(b"");
        let found = story.ledger.anomalies;
        assert_eq!((found.unattributed, found.bad_records), (1, 3));
        assert_eq!(story.dram(0).live.buffers, 2);
    }

    /// An allocator's answer after `operations` records: bytes allocated per bank of DRAM and L1.
    fn answer(
        operations: u64,
        cause: record::StatisticsCause,
        state: record::StatisticsState,
        allocated: [u64; 2],
    ) -> (record::Statistics, Vec<u8>) {
        let body = record::Statistics {
            allocator: ALLOCATOR,
            operations,
            cause: cause as u32,
            state: state as u32,
            failed_bytes: 1 << 40,
            failed_type: 0,
            reserved: 0,
        };
        let of_type = |(kind, allocated): (usize, u64)| record::StatisticsOfType {
            buffer_type: kind as u64,
            total: 1 << 30,
            allocated,
            free: (1 << 30) - allocated,
            largest_free: 512,
        };
        let answers = allocated.into_iter().enumerate().map(of_type);
        (body, answers.flat_map(|one| bytemuck::bytes_of(&one).to_vec()).collect())
    }

    use record::StatisticsCause::{Close, Failure as AtFailure};
    use record::StatisticsState::{Busy, Inherited, PerCore, Quiet};

    /// Compared, differed, skipped.
    fn counts(story: &Story) -> [u64; 3] {
        let found = &story.ledger.reconciliation;
        [found.compared, found.differed, found.skipped]
    }

    #[test]
    fn an_answer_is_compared_if_it_is_about_the_records_that_were_read() {
        let mut story = Story::with_mesh(2);
        story.allocate(ALLOCATOR, 1, 0, 0, 100);
        story.allocate(ALLOCATOR, 2, 1, 0, 64);
        story.allocate(ALLOCATOR, 3, 0, 128, 32);
        story.free(ALLOCATOR, 1, 0);
        let mut ask = |operations, state, allocated| {
            let (body, tail) = answer(operations, Close, state, allocated);
            story.tell(&body, &tail);
            counts(&story)
        };
        assert_eq!(ask(4, Quiet, [32, 64]), [1, 0, 0]);
        // Another thread's record came between, or was lost.
        assert_eq!(ask(3, Quiet, [160, 64]), [1, 0, 1]);
        assert_eq!(ask(5, Quiet, [0, 0]), [1, 0, 2]);
        assert_eq!(ask(4, Busy, [0, 0]), [1, 0, 3]);
        assert_eq!(ask(4, Inherited, [0, 0]), [1, 0, 4]);
        assert_eq!(ask(4, PerCore, [0, 0]), [1, 0, 5]);
        assert_eq!(ask(4, Quiet, [32, 96]), [2, 1, 5]);
        let expected = Difference {
            process: 0,
            chips: vec![0, 1],
            kind: MemoryType::L1,
            booked: 64,
            allocated: 96,
            cause: Cause::Close,
            time_ns: story.time_ns,
        };
        assert_eq!(story.ledger.reconciliation.differences, [expected]);
    }

    #[test]
    fn a_release_and_a_failure_are_operations_and_an_end_begins_anew() {
        let mut story = Story::with_mesh(1);
        story.allocate(ALLOCATOR, 1, 0, 0, 64);
        story.fail(0);
        story.release(ALLOCATOR, 0);
        let (body, tail) = answer(3, Close, Quiet, [0, 0]);
        story.tell(&body, &tail);
        assert_eq!(counts(&story), [1, 0, 0]);
        story.release(ALLOCATOR, 1);
        story.tell(&body, &tail);
        assert_eq!(counts(&story), [1, 0, 1], "nobody knows it");
        story.allocator(ALLOCATOR, MESH);
        story.allocate(ALLOCATOR, 1, 0, 0, 64);
        let (body, tail) = answer(1, Close, Quiet, [64, 0]);
        story.tell(&body, &tail);
        assert_eq!(counts(&story), [2, 0, 1]);
    }

    #[test]
    fn a_failed_allocation_keeps_how_much_room_there_was() {
        let mut story = Story::with_mesh(2);
        story.fail(0);
        let (body, tail) = answer(9, AtFailure, Busy, [96, 0]);
        story.tell(&body, &tail[..tail.len() / 2]);
        story.fail(0);
        let [with, without] = &*story.ledger.reconciliation.failures else { panic!() };
        assert_eq!((&*with.chips, with.kind, with.bytes), (&[0, 1][..], MemoryType::Dram, 1 << 40));
        let room = with.room.map(|room| (room.free, room.largest_free));
        assert_eq!((room, with.banks), (Some(((1 << 30) - 96, 512)), DRAM_BANKS));
        assert_eq!(without.room, None);
    }

    #[test]
    fn what_is_kept_of_failures_and_differences_is_bounded() {
        let mut story = Story::with_mesh(1);
        for operations in 1..=150 {
            story.fail(0);
            let (body, tail) = answer(operations, AtFailure, Quiet, [96, 0]);
            story.tell(&body, &tail);
        }
        let found = &story.ledger.reconciliation;
        assert_eq!((found.compared, found.differed), (150, 150));
        assert_eq!((found.differences.len(), found.failures.len()), (100, 100));
        assert_eq!(found.further_failures, 50);
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_counted() {
        let mut story = Story::with_mesh(1);
        let (body, tail) = answer(0, Close, Quiet, [0, 0]);
        story.tell(&body, &tail[1..]);
        story.tell(&record::Statistics { cause: 7, ..body }, &tail);
        let mut unknown = tail.clone();
        unknown[0] = 5;
        story.tell(&body, &unknown);
        assert_eq!(story.ledger.anomalies.bad_records, 3);
        story.tell(&body, b"");
        assert_eq!(counts(&story), [0, 0, 1], "of no type");
    }

    /// A step of a random story, and what it does to the naive books.
    #[derive(Clone, Debug)]
    enum Step {
        Allocate { allocator: usize, kind: u32, per_bank: u64 },
        Free(prop::sample::Index),
        Release(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let allocator = 0..3_usize;
        prop_oneof![
            6 => (allocator.clone(), 0..2_u32, 1..5000_u64).prop_map(|(allocator, kind, per_bank)| {
                Step::Allocate { allocator, kind, per_bank }
            }),
            4 => any::<prop::sample::Index>().prop_map(Step::Free),
            1 => allocator.prop_map(Step::Release),
        ]
    }

    proptest! {
        /// Three meshes over two chips: {0, 1}, {0} and {1}. At every step each chip's live figures
        /// are the sum over a plain list of what is live.
        #[test]
        fn figures_are_the_sum_of_what_is_live(steps in prop::collection::vec(step(), 1..200)) {
            let meshes: [&[i32]; 3] = [&[0, 1], &[0], &[1]];
            let mut story = Story::default();
            for (at, chips) in meshes.iter().enumerate() {
                story.mesh(MESH + at as u64, at as i32, chips);
                story.allocator(ALLOCATOR + at as u64, MESH + at as u64);
            }
            let mut live: Vec<(usize, u32, u64, u64, u64)> = Vec::new();
            let mut peak = 0;
            for (at, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Allocate { allocator, kind, per_bank } => {
                        let (buffer, address) = (at as u64 % 50, at as u64 * 8192);
                        story.allocate(ALLOCATOR + allocator as u64, buffer, kind, address, per_bank);
                        live.push((allocator, kind, buffer, address, per_bank.next_multiple_of(32)));
                    }
                    Step::Free(_) if live.is_empty() => {}
                    Step::Free(index) => {
                        let (allocator, _, buffer, address, _) = live.remove(index.index(live.len()));
                        story.free(ALLOCATOR + allocator as u64, buffer, address);
                    }
                    Step::Release(allocator) => {
                        story.release(ALLOCATOR + allocator as u64, 0);
                        live.retain(|one| one.0 != allocator);
                    }
                }
                for chip in 0..2 {
                    for kind in 0..2_u32 {
                        let expected: u64 = live
                            .iter()
                            .filter(|one| meshes[one.0].contains(&chip) && one.1 == kind)
                            .map(|one| one.4)
                            .sum();
                        let memory = story.memory(chip, MemoryType::from_number(kind).unwrap());
                        prop_assert_eq!(memory.live.bytes_per_bank, expected);
                        prop_assert_eq!(
                            memory.allocations,
                            memory.frees + memory.released + memory.live.buffers
                        );
                        if (chip, kind) == (0, 0) {
                            peak = peak.max(expected);
                        }
                        let allocators = &story.ledger.processes[&0].allocators;
                        let of_chip = allocators.values().filter(|one| one.chips().contains(&chip));
                        let summed: u64 = of_chip.map(|one| one.bytes_per_bank[kind as usize]).sum();
                        prop_assert_eq!(summed, expected);
                    }
                }
            }
            prop_assert_eq!(story.dram(0).peak.bytes_per_bank, peak);
            prop_assert_eq!(story.ledger.anomalies, Anomalies::default());
        }

        #[test]
        fn no_record_panics(records in prop::collection::vec(
            (
                0..22_u32,
                prop_oneof![4 => Just(0_u32), 1 => 1..5_u32],
                0..9_u64,
                prop::collection::vec(prop_oneof![Just(0_u8), Just(1), any::<u8>()], 0..120),
            ),
            0..60,
        )) {
            let mut story = Story::with_mesh(2);
            story.ledger.limits = Limits { processes: 2, buffers: 1, programs: 1 };
            for (kind, process, time_ns, bytes) in records {
                let head = Head { kind, process, time_ns };
                story.ledger.enter(&[bytemuck::bytes_of(&head), bytes.as_slice()].concat());
                if kind == 0 {
                    story.ledger.end(process);
                }
            }
        }
    }

    pub(super) const PROGRAM: u64 = 0xA000;
    pub(super) const WORKLOAD: u64 = 0xB000;

    impl Story {
        pub(super) fn enlist(&mut self, program: u64, workload: u64, first: u32, last: u32) {
            let body = record::Enlisted {
                workload,
                program,
                id: program >> 4,
                dims: 1,
                reserved: 0,
                start: [first, 0, 0, 0],
                end: [last, 0, 0, 0],
            };
            self.tell(&body, b"");
        }

        pub(super) fn lay_out(&mut self, program: u64, layout: u64, buffers: &[(u64, u64)]) {
            for &(address, bytes) in buffers {
                let kind = record::LocalKind::Circular as u32;
                let body = record::Local { program, address, bytes, layout, kind, cores: 4 };
                self.tell(&body, bytemuck::cast_slice(&[0_u16, 0, 1, 1]));
            }
        }

        pub(super) fn run(&mut self, workload: u64) {
            let body = record::Run { workload, program: 0, device: MESH, refused: 0 };
            self.tell(&body, b"");
        }

        pub(super) fn trace(&mut self, step: TraceStep) {
            let body = record::Trace { device: MESH, trace: 3, step: step as u32 };
            self.tell(&body, b"");
        }

        fn programs(&self, chip: i32) -> &ChipPrograms {
            &self.ledger.processes[&0].chips[&chip].programs
        }

        fn headroom(&self, chip: i32) -> Option<(i64, Option<u64>)> {
            self.programs(chip).headroom.map(|headroom| (headroom.bytes, headroom.lowest_buffer))
        }
    }

    #[test]
    fn headroom_is_the_least_between_a_programs_region_and_the_lowest_buffer() {
        let mut story = Story::with_mesh(2);
        story.enlist(PROGRAM, WORKLOAD, 1, 1);
        story.lay_out(PROGRAM, 1, &[(1024, 512), (1536, 512)]);
        story.run(WORKLOAD);
        // The end of L1: the base and the bank.
        assert_eq!(story.headroom(1), Some((1024 + (1 << 20) - 2048, None)));
        story.allocate(ALLOCATOR, 1, 1, 4096, 64);
        story.run(WORKLOAD);
        assert_eq!(story.headroom(1), Some((2048, Some(4096))));
        story.free(ALLOCATOR, 1, 4096);
        story.run(WORKLOAD);
        assert_eq!(story.headroom(1), Some((2048, Some(4096))));
        // Another layout replaces the first.
        story.lay_out(PROGRAM, 2, &[(1024, 256)]);
        story.run(WORKLOAD);
        let programs = &story.ledger.processes[&0].programs;
        let (_, program) = &programs.all()[0];
        assert_eq!((program.runs, program.local.len(), program.region_end()), (4, 1, Some(1280)));
        let largest = story.programs(1).largest.unwrap();
        assert_eq!((largest.end, largest.time_ns), (2048, 6));
        assert_eq!((story.programs(1).programs, story.programs(1).runs), (1, 4));
        assert_eq!(story.programs(0), &ChipPrograms::default());
    }

    #[test]
    fn a_capture_runs_nothing_and_a_replay_all_of_it() {
        let mut story = Story::with_mesh(2);
        story.enlist(PROGRAM, WORKLOAD, 0, 1);
        story.lay_out(PROGRAM, 1, &[(1024, 512)]);
        story.trace(TraceStep::Begin);
        story.run(WORKLOAD);
        story.run(WORKLOAD);
        story.trace(TraceStep::End);
        assert_eq!(story.programs(0).runs, 0);
        story.trace(TraceStep::Replay);
        story.allocate(ALLOCATOR, 1, 1, 2048, 64);
        story.trace(TraceStep::Replay);
        story.trace(TraceStep::Release);
        story.trace(TraceStep::Replay);
        assert_eq!(story.headroom(0), Some((512, Some(2048))));
        let programs = &story.ledger.processes[&0].programs;
        assert_eq!(programs.all()[0].1.runs, 4);
        let trace = programs.traces().next().unwrap();
        assert_eq!((trace.dispatches, trace.replays, trace.chips.len()), (2, 2, 2));
        assert!(trace.released_ns.is_some());
    }

    #[test]
    fn equal_programs_become_one_when_they_end() {
        let mut story = Story::with_mesh(1);
        for at in 0..5 {
            let program = PROGRAM + at % 2;
            story.enlist(program, WORKLOAD, 0, 0);
            story.lay_out(program, at, &[(1024, 512)]);
            story.run(WORKLOAD);
            story.tell(&record::ProgramEnd { program }, b"");
        }
        let programs = story.ledger.processes[&0].programs.all();
        assert_eq!(programs.len(), 1);
        let (numbers, program) = &programs[0];
        assert_eq!((program.objects, program.live, program.runs), (5, 0, 5));
        let largest = story.programs(0).largest.unwrap();
        assert!(numbers.contains(&largest.program));
        assert_eq!(story.programs(0).programs, 5);
    }

    #[test]
    fn allocators_over_one_chip_may_give_the_same_memory() {
        let mut story = Story::with_mesh(2);
        let (other_mesh, other) = (0x3000, 0x4000);
        story.mesh(other_mesh, 1, &[1]);
        story.allocator(other, other_mesh);
        story.allocate(ALLOCATOR, 1, 0, 1024, 512);
        story.allocate(other, 2, 0, 1536, 512);
        story.allocate(other, 3, 1, 1024, 512);
        assert_eq!(story.ledger.processes[&0].overlap_count, 0);
        story.allocate(other, 4, 0, 1500, 32);
        story.free(ALLOCATOR, 1, 1024);
        story.allocate(other, 5, 0, 1024, 32);
        let books = &story.ledger.processes[&0];
        assert_eq!(books.overlap_count, 1);
        let overlap = &books.overlaps[0];
        assert_eq!((overlap.kind, overlap.chips.as_slice()), (MemoryType::Dram, &[1][..]));
        let sides = overlap.allocations.each_ref().map(|one| (one.mesh, one.address));
        assert_eq!(sides, [(Some(1), 1500), (Some(0), 1024)]);
    }

    #[test]
    fn what_is_planned_is_not_used() {
        let mut story = Story::with_mesh(2);
        for buffer in 1..=3 {
            let body = record::Planned {
                device: MESH,
                buffer,
                bytes: 100,
                bytes_per_bank: 40,
                buffer_type: 0,
                reserved: 0,
            };
            story.tell(&body, b"");
        }
        story.tell(&record::Unplanned { buffer: 2 }, b"");
        story.tell(&record::Unplanned { buffer: 2 }, b"");
        let planned = story.dram(1).planned;
        assert_eq!((planned.count, planned.live.buffers, planned.peak.buffers), (3, 2, 3));
        assert_eq!(planned.peak.reserved_bytes, 3 * 64 * u64::from(DRAM_BANKS));
        assert_eq!(story.dram(1).allocations, 0);
        story.close(MESH);
        assert_eq!(story.dram(0).planned.live, Totals::default());
    }

    #[test]
    fn an_allocator_takes_over_ranges_and_frees_them_for_whoever_asks() {
        let mut story = Story::with_mesh(1);
        story.allocate(ALLOCATOR, 1, 0, 1024, 64);
        story.release(ALLOCATOR, 0);
        let body = record::Regions { allocator: ALLOCATOR, buffer_type: 0, reserved: 0 };
        story.tell(&body, bytemuck::cast_slice(&[1024_u64, 1152, 4096, 4128]));
        let live = story.dram(0).live;
        assert_eq!((live.buffers, live.bytes_per_bank), (2, 160));
        // The object that was there before the override still asks to be freed.
        story.free(ALLOCATOR, 1, 1024);
        assert_eq!(story.dram(0).live.bytes_per_bank, 32);
        assert_eq!(story.ledger.anomalies, Anomalies::default());
        story.tell(&body, &[0; 24]);
        assert_eq!(story.ledger.anomalies.bad_records, 1);
    }

    #[test]
    fn a_bank_that_shrinks_is_told_beside_its_size_at_the_opening() {
        let mut story = Story::with_mesh(1);
        let sizes = |story: &Story| {
            let l1 = story.memory(0, MemoryType::L1);
            (l1.bank_bytes, l1.bank_bytes_last, l1.bank_bytes_least)
        };
        let mut body = record::Allocator {
            allocator: ALLOCATOR,
            device: MESH,
            bank_bytes: [1 << 30, 1 << 19, 0, 0, 0],
            banks: [DRAM_BANKS, 64, 0, 0, 0],
            alignment: 32,
            base: [1024, 32],
            l1_bytes: 1 << 21,
            reserved: 0,
        };
        story.allocate(ALLOCATOR, 1, 1, 4096, 64);
        story.tell(&body, b"");
        assert_eq!(sizes(&story), (1 << 20, 1 << 19, Some(1 << 19)));
        body.bank_bytes[1] = 1 << 20;
        story.tell(&body, b"");
        assert_eq!(sizes(&story), (1 << 20, 1 << 20, Some(1 << 19)));
        assert_eq!(story.memory(0, MemoryType::L1).live.buffers, 1);
    }

    #[test]
    fn an_address_on_each_core_takes_its_own_banks_alone() {
        let mut story = Story::with_mesh(1);
        let body = record::Allocate {
            allocator: ALLOCATOR,
            buffer: 1,
            address: 4096,
            bytes: 800,
            bytes_per_bank: 100,
            page_bytes: 100,
            buffer_type: 1,
            purpose: Purpose::GlobalSemaphore as u16,
            cores: 8,
        };
        story.tell(&body, b"");
        let l1 = story.memory(0, MemoryType::L1);
        let expected =
            Totals { buffers: 1, bytes: 800, bytes_per_bank: 0, reserved_bytes: 8 * 128 };
        assert_eq!(
            (l1.live, l1.purposes[Purpose::GlobalSemaphore as usize].live),
            (expected, expected)
        );
        story.free(ALLOCATOR, 1, 4096);
        let l1 = story.memory(0, MemoryType::L1);
        let purpose = l1.purposes[Purpose::GlobalSemaphore as usize];
        assert_eq!((l1.live, purpose.live), Default::default());
        assert_eq!((purpose.count, purpose.peak), (1, expected));
    }

    #[test]
    fn a_close_that_fails_keeps_traces_and_plans() {
        let mut story = Story::with_mesh(1);
        story.enlist(PROGRAM, WORKLOAD, 0, 0);
        story.trace(TraceStep::Begin);
        story.run(WORKLOAD);
        story.trace(TraceStep::End);
        let body = record::Planned {
            device: MESH,
            buffer: 7,
            bytes: 100,
            bytes_per_bank: 40,
            buffer_type: 0,
            reserved: 0,
        };
        story.tell(&body, b"");
        story.close(MESH);
        story.tell(&record::Close { device: MESH, failed: 1 }, b"");
        assert_eq!(story.dram(0).planned.live.buffers, 1);
        story.tell(&record::Unplanned { buffer: 7 }, b"");
        assert_eq!(story.dram(0).planned.live, Totals::default());
        story.trace(TraceStep::Replay);
        assert_eq!(story.programs(0).runs, 1);
    }

    #[test]
    fn a_dispatch_that_nobody_can_place_is_counted() {
        let mut story = Story::with_mesh(1);
        // A workload without programs, and not compiled: it ran nothing.
        let run = |workload, device| record::Run { workload, program: 0, device, refused: 0 };
        story.tell(&run(WORKLOAD, 0), b"");
        assert_eq!(story.ledger.anomalies, Anomalies::default());
        story.run(WORKLOAD);
        story.enlist(PROGRAM, WORKLOAD, 0, 0);
        story.tell(&run(WORKLOAD, 0), b"");
        assert_eq!(story.ledger.anomalies.unattributed_runs, 2);
        let child =
            record::Process { pid: 9, parent_pid: 1, forked: 1, ..bytemuck::Zeroable::zeroed() };
        story.tell(&child, b"child\0");
        story.run(0x99);
        assert_eq!(story.ledger.anomalies.inherited_runs, 1);
    }
}
