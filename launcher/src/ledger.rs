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
//! Nothing here does I/O, and no record can make it panic.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use serde::{Deserialize, Serialize};
use ttalloc_ring::record::{self, Head, Record, Refusal, TYPES};
use ttalloc_symbols::{COUNT, Era, SymbolSet};

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
    /// Bytes per bank times the number of banks: what runs out.
    pub reserved_bytes: u64,
}

impl Totals {
    fn add(&mut self, other: Totals) {
        self.buffers = self.buffers.saturating_add(other.buffers);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.bytes_per_bank = self.bytes_per_bank.saturating_add(other.bytes_per_bank);
        self.reserved_bytes = self.reserved_bytes.saturating_add(other.reserved_bytes);
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
    /// What can be allocated in each, in bytes.
    pub bank_bytes: u64,
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

/// One chip, as one process used it.
#[derive(Clone, Debug, Default)]
pub struct Chip {
    /// tt-metal's `ARCH`.
    pub arch: u32,
    /// Its memory, by [`MemoryType::ALL`].
    pub memory: [Memory; TYPES],
    /// The devices that are open over it.
    open: BTreeSet<u64>,
    /// Whether it was reopened since `live_at_close` was taken.
    reopened: bool,
    /// How many devices over it have closed.
    closes: u64,
}

impl Chip {
    /// The type's memory.
    pub fn memory(&self, kind: MemoryType) -> &Memory {
        &self.memory[kind as usize]
    }
}

/// A MeshDevice that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// Its id: counted by the process, and no chip's id.
    pub id: i32,
    /// The ids of its chips, in the mesh's order.
    pub chips: Vec<i32>,
}

/// One live allocation.
#[derive(Clone, Debug)]
pub struct Allocation {
    /// The Buffer object.
    buffer: u64,
    /// Where it is, in each bank.
    pub address: u64,
    /// The type of memory.
    pub kind: MemoryType,
    /// What it takes on each of its chips.
    pub totals: Totals,
    /// The page's size in bytes.
    pub page_bytes: u64,
    /// When it was made, in nanoseconds of the records' clock.
    pub time_ns: u64,
}

/// What an allocator gave and has not taken back.
#[derive(Debug, Default)]
struct Allocator {
    device: u64,
    chips: Vec<i32>,
    banks: [u32; TYPES],
    alignment: u64,
    live: HashMap<u64, Allocation>,
    /// By the Buffer object and the address, so that objects that come back cost no search.
    by_buffer: HashMap<(u64, u64), Vec<u64>>,
    by_address: BTreeMap<(MemoryType, u64), Vec<u64>>,
    /// What was let go all at once, and whose objects may still ask to free it: by object and address.
    released: HashMap<(u64, u64), MemoryType>,
}

impl Allocator {
    /// The allocation that freeing `buffer` at `address` ends, if any; None if the buffer is not known.
    fn find(&mut self, buffer: u64, address: u64) -> Option<Option<u64>> {
        if let Some(id) = self.by_buffer.get(&(buffer, address)).and_then(|ids| ids.last()) {
            return Some(Some(*id));
        }
        // A destructor that runs after `deallocate_buffers`: the runtime frees whatever lies there now.
        let kind = self.released.remove(&(buffer, address))?;
        Some(self.by_address.get(&(kind, address)).and_then(|ids| ids.last()).copied())
    }

    fn insert(&mut self, id: u64, allocation: Allocation) {
        let object = (allocation.buffer, allocation.address);
        self.released.remove(&object);
        self.by_buffer.entry(object).or_default().push(id);
        self.by_address.entry((allocation.kind, allocation.address)).or_default().push(id);
        self.live.insert(id, allocation);
    }

    fn remove(&mut self, id: u64) -> Option<Allocation> {
        let allocation = self.live.remove(&id)?;
        let object = (allocation.buffer, allocation.address);
        if let Some(ids) = self.by_buffer.get_mut(&object) {
            ids.retain(|&other| other != id);
            if ids.is_empty() {
                self.by_buffer.remove(&object);
            }
        }
        let place = (allocation.kind, allocation.address);
        if let Some(ids) = self.by_address.get_mut(&place) {
            ids.retain(|&other| other != id);
            if ids.is_empty() {
                self.by_address.remove(&place);
            }
        }
        Some(allocation)
    }

    /// Whether one of its live allocations has `address` in its memory.
    fn covers(&self, kind: MemoryType, address: u64) -> bool {
        let below = self.by_address.range((kind, 0)..=(kind, address)).next_back();
        below.into_iter().flat_map(|(_, ids)| ids).any(|id| {
            self.live.get(id).is_some_and(|one| address - one.address < one.totals.bytes_per_bank)
        })
    }
}

#[derive(Debug)]
struct Device {
    id: i32,
    is_mesh: bool,
    chips: Vec<i32>,
    /// Once it is closed: what that changed, in case the close fails after all.
    closed: Option<Closing>,
}

/// What closing a device changes.
#[derive(Debug)]
struct Closing {
    /// What was still allocated on each of its chips.
    left: [Totals; TYPES],
    /// What each of its chips was before.
    before: Vec<BeforeClose>,
}

#[derive(Debug)]
struct BeforeClose {
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
    /// The meshes it opened, in order.
    pub meshes: Vec<Mesh>,
    /// The chips it opened, by their ids.
    pub chips: BTreeMap<i32, Chip>,
    devices: HashMap<u64, Device>,
    allocators: BTreeMap<u64, Allocator>,
}

/// A function whose calls are not seen, or not all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub why: Refusal,
    /// Whether the calls that other libraries make are seen.
    pub interposed: bool,
}

/// Who a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its pid.
    pub pid: u32,
    /// Its parent's pid when it first used tt-metal.
    pub parent_pid: u32,
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
    /// Buffers made at a given address where nothing was allocated.
    pub external_placements: u64,
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
    next_id: u64,
}

impl Ledger {
    /// Enters one record.
    pub fn enter(&mut self, bytes: &[u8]) {
        self.events += 1;
        let Ok((head, record)) = Record::decode(bytes) else {
            self.anomalies.bad_records += 1;
            return;
        };
        let process = self.processes.entry(head.process).or_default();
        let mut entry =
            Entry { head, process, anomalies: &mut self.anomalies, next_id: &mut self.next_id };
        match record {
            Record::Process(body, tail) => entry.process(body, tail.0),
            Record::Runtime(body, tail) => entry.runtime(body, tail.0),
            Record::Device(body, tail) => entry.device(body, tail.0),
            Record::Allocator(body, _) => entry.allocator(body),
            Record::Allocate(body, _) => entry.allocate(body),
            Record::Free(body, _) => entry.free(body),
            Record::Failed(body, _) => entry.failed(body),
            Record::Release(body, _) => entry.release(body.allocator, body.ends != 0),
            Record::Close(body, _) if body.failed != 0 => entry.close_failed(body.device),
            Record::Close(body, _) => entry.close(body.device),
            Record::Placement(body, _) => entry.placement(body),
            Record::Patched(body, _) => entry.process.patched = SymbolSet(body.symbols),
            Record::Refused(body, _) => entry.refused(body),
        }
    }
}

impl Process {
    /// The live allocations with their chips, in no particular order.
    pub fn live(&self) -> impl Iterator<Item = (&[i32], &Allocation)> {
        self.allocators.values().flat_map(|allocator| {
            allocator.live.values().map(|one| (allocator.chips.as_slice(), one))
        })
    }
}

/// One record being entered.
struct Entry<'a> {
    head: Head,
    process: &'a mut Process,
    anomalies: &'a mut Anomalies,
    next_id: &'a mut u64,
}

impl Entry<'_> {
    fn process(&mut self, body: record::Process, argv: &[u8]) {
        let argv = argv.strip_suffix(b"\0").unwrap_or(argv);
        self.process.identity = Some(Identity {
            pid: body.pid,
            parent_pid: body.parent_pid,
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
        self.process.refused.insert(index, Refused { why, interposed: body.interposed != 0 });
    }

    fn device(&mut self, body: record::Device, chips: &[u8]) {
        let (ids, rest) = chips.as_chunks::<4>();
        if !rest.is_empty() {
            self.anomalies.bad_records += 1;
            return;
        }
        let chips: Vec<i32> = ids.iter().map(|&id| i32::from_le_bytes(id)).collect();
        let is_mesh = body.is_mesh != 0;
        let same = self.process.devices.get(&body.device).is_some_and(|known| {
            known.closed.is_none()
                && known.id == body.id
                && known.is_mesh == is_mesh
                && known.chips == chips
        });
        if same {
            return;
        }
        if let Some(gone) = self.process.devices.remove(&body.device) {
            for id in gone.chips {
                self.process.chips.entry(id).or_default().open.remove(&body.device);
            }
        }
        for &id in &chips {
            let chip = self.process.chips.entry(id).or_default();
            chip.arch = body.arch;
            chip.reopened |= chip.open.is_empty();
            chip.open.insert(body.device);
        }
        if is_mesh {
            self.process.meshes.push(Mesh { id: body.id, chips: chips.clone() });
        }
        let device = Device { id: body.id, is_mesh, chips, closed: None };
        self.process.devices.insert(body.device, device);
    }

    fn allocator(&mut self, body: record::Allocator) {
        let chips = match self.process.devices.get(&body.device) {
            Some(device) => device.chips.clone(),
            None => Vec::new(),
        };
        // The allocator of a sub-device has no DRAM, and banks of another size.
        let is_whole = body.banks[MemoryType::Dram as usize] != 0;
        for id in &chips {
            let Some(chip) = self.process.chips.get_mut(id) else { continue };
            for (kind, memory) in chip.memory.iter_mut().enumerate() {
                if is_whole || memory.banks == 0 {
                    memory.banks = body.banks[kind];
                    memory.bank_bytes = body.bank_bytes[kind];
                }
            }
        }
        match self.process.allocators.get(&body.allocator) {
            Some(known) if known.device == body.device && known.chips == chips => return,
            // It ended unseen.
            Some(_) => self.release(body.allocator, true),
            None => {}
        }
        let allocator = Allocator {
            device: body.device,
            chips,
            banks: body.banks,
            alignment: body.alignment.into(),
            ..Allocator::default()
        };
        self.process.allocators.insert(body.allocator, allocator);
    }

    fn allocate(&mut self, body: record::Allocate) {
        let Some(kind) = MemoryType::from_number(body.buffer_type) else {
            self.anomalies.bad_records += 1;
            return;
        };
        let known = self.process.allocators.get_mut(&body.allocator);
        let Some(allocator) = known.filter(|allocator| !allocator.chips.is_empty()) else {
            self.anomalies.unattributed += 1;
            return;
        };
        // The free list rounds up once more: to the allocator's own alignment.
        let bytes_per_bank = body
            .bytes_per_bank
            .checked_next_multiple_of(allocator.alignment.max(1))
            .unwrap_or(u64::MAX);
        let banks = u64::from(allocator.banks[kind as usize]);
        let totals = Totals {
            buffers: 1,
            bytes: body.bytes,
            bytes_per_bank,
            reserved_bytes: bytes_per_bank.saturating_mul(banks),
        };
        let allocation = Allocation {
            buffer: body.buffer,
            address: body.address,
            kind,
            totals,
            page_bytes: body.page_bytes,
            time_ns: self.head.time_ns,
        };
        *self.next_id += 1;
        allocator.insert(*self.next_id, allocation);
        for id in &allocator.chips {
            let Some(chip) = self.process.chips.get_mut(id) else { continue };
            let memory = &mut chip.memory[kind as usize];
            memory.allocations += 1;
            memory.allocated_bytes_total = memory.allocated_bytes_total.saturating_add(body.bytes);
            memory.live.add(totals);
            if memory.live.reserved_bytes > memory.peak.reserved_bytes {
                memory.peak = memory.live;
                memory.peak_ns = self.head.time_ns;
            }
        }
    }

    fn free(&mut self, body: record::Free) {
        let allocator = self.process.allocators.get_mut(&body.allocator);
        let found = allocator.and_then(|allocator| {
            let id = allocator.find(body.buffer, body.address)?;
            Some((id.and_then(|id| allocator.remove(id)), &allocator.chips))
        });
        let Some((freed, chips)) = found else {
            match &self.process.identity {
                Some(identity) if identity.forked => self.anomalies.inherited_frees += 1,
                _ => self.anomalies.unknown_frees += 1,
            }
            return;
        };
        let Some(allocation) = freed else { return };
        for id in chips {
            let Some(chip) = self.process.chips.get_mut(id) else { continue };
            let memory = &mut chip.memory[allocation.kind as usize];
            memory.frees += 1;
            memory.live.subtract(allocation.totals);
        }
    }

    fn failed(&mut self, body: record::Failed) {
        let Some(kind) = MemoryType::from_number(body.buffer_type) else {
            self.anomalies.bad_records += 1;
            return;
        };
        let known = self.process.allocators.get(&body.allocator);
        let Some(allocator) = known.filter(|allocator| !allocator.chips.is_empty()) else {
            self.anomalies.unattributed += 1;
            return;
        };
        for id in &allocator.chips {
            if let Some(chip) = self.process.chips.get_mut(id) {
                chip.memory[kind as usize].failed += 1;
            }
        }
    }

    fn release(&mut self, address: u64, ends: bool) {
        let Some(allocator) = self.process.allocators.get_mut(&address) else { return };
        // Oldest first: where several had one object, only the newest's is still there to ask.
        let mut released: Vec<_> = allocator.live.drain().collect();
        released.sort_unstable_by_key(|&(id, _)| id);
        for (_, allocation) in released {
            let object = (allocation.buffer, allocation.address);
            allocator.released.insert(object, allocation.kind);
            for id in &allocator.chips {
                let Some(chip) = self.process.chips.get_mut(id) else { continue };
                let memory = &mut chip.memory[allocation.kind as usize];
                memory.released += 1;
                memory.live.subtract(allocation.totals);
            }
        }
        allocator.by_buffer.clear();
        allocator.by_address.clear();
        if ends {
            self.process.allocators.remove(&address);
        }
    }

    fn close(&mut self, address: u64) {
        let Some(device) = self.process.devices.get_mut(&address) else { return };
        if device.closed.is_some() {
            return;
        }
        let mut left = [Totals::default(); TYPES];
        for allocator in self.process.allocators.values() {
            for allocation in allocator.live.values().filter(|_| allocator.device == address) {
                left[allocation.kind as usize].add(allocation.totals);
            }
        }
        let mut before = Vec::new();
        for id in &device.chips {
            let chip = self.process.chips.entry(*id).or_default();
            chip.open.remove(&address);
            let reopened = std::mem::take(&mut chip.reopened);
            let live_at_close = chip.memory.each_ref().map(|memory| memory.live_at_close);
            before.push(BeforeClose { closes: chip.closes, reopened, live_at_close });
            chip.closes += 1;
            for (memory, left) in chip.memory.iter_mut().zip(left) {
                let at_close = memory.live_at_close.get_or_insert_default();
                if reopened {
                    *at_close = Totals::default();
                }
                at_close.add(left);
            }
        }
        device.closed = Some(Closing { left, before });
    }

    /// The close ended in an exception: the device is open as before.
    fn close_failed(&mut self, address: u64) {
        let Some(device) = self.process.devices.get_mut(&address) else { return };
        let Some(closing) = device.closed.take() else { return };
        for (id, before) in device.chips.iter().zip(closing.before) {
            let chip = self.process.chips.entry(*id).or_default();
            chip.open.insert(address);
            if chip.closes == before.closes + 1 {
                chip.closes = before.closes;
                chip.reopened = before.reopened;
                for (memory, live_at_close) in chip.memory.iter_mut().zip(before.live_at_close) {
                    memory.live_at_close = live_at_close;
                }
                continue;
            }
            // Another device over the chip has closed since, and that stands.
            for (memory, left) in chip.memory.iter_mut().zip(closing.left) {
                memory.live_at_close.get_or_insert_default().subtract(left);
            }
        }
    }

    fn placement(&mut self, body: record::Placement) {
        let Some(kind) = MemoryType::from_number(body.buffer_type) else {
            self.anomalies.bad_records += 1;
            return;
        };
        let device = self.process.devices.get(&body.device);
        let chips = device.map(|device| device.chips.as_slice()).unwrap_or_default();
        let covered = self.process.allocators.values().any(|allocator| {
            allocator.chips.iter().any(|chip| chips.contains(chip))
                && allocator.covers(kind, body.address)
        });
        if !covered {
            self.anomalies.external_placements += 1;
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ttalloc_ring::record::Body;

    const MESH: u64 = 0x1000;
    const ALLOCATOR: u64 = 0x2000;
    const DRAM_BANKS: u32 = 12;

    /// Records of one process, one nanosecond apart.
    #[derive(Default)]
    struct Story {
        ledger: Ledger,
        time_ns: u64,
    }

    impl Story {
        /// A process with a mesh of `chips` chips and its allocator.
        fn with_mesh(chips: i32) -> Story {
            let mut story = Story::default();
            story.mesh(MESH, 0, &(0..chips).collect::<Vec<_>>());
            story.allocator(ALLOCATOR, MESH);
            story
        }

        fn tell<B: Body>(&mut self, body: &B, tail: &[u8]) {
            self.time_ns += 1;
            let head = Head { kind: B::KIND as u32, process: 0, time_ns: self.time_ns };
            let bytes = [bytemuck::bytes_of(&head), bytemuck::bytes_of(body), tail].concat();
            self.ledger.enter(&bytes);
        }

        fn mesh(&mut self, device: u64, id: i32, chips: &[i32]) {
            let body = record::Device { device, id, arch: 2, is_mesh: 1, reserved: 0 };
            self.tell(&body, bytemuck::cast_slice(chips));
        }

        fn allocator(&mut self, allocator: u64, device: u64) {
            let mut body = record::Allocator {
                allocator,
                device,
                bank_bytes: [0; TYPES],
                banks: [0; TYPES],
                alignment: 32,
            };
            (body.banks[0], body.bank_bytes[0]) = (DRAM_BANKS, 1 << 30);
            (body.banks[1], body.bank_bytes[1]) = (64, 1 << 20);
            self.tell(&body, b"");
        }

        fn allocate(
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
                    reserved: 0,
                },
                b"",
            );
        }

        fn free(&mut self, allocator: u64, buffer: u64, address: u64) {
            self.tell(&record::Free { allocator, buffer, address }, b"");
        }

        fn release(&mut self, allocator: u64, ends: u64) {
            self.tell(&record::Release { allocator, ends }, b"");
        }

        fn close(&mut self, device: u64) {
            self.tell(&record::Close { device, failed: 0 }, b"");
        }

        fn memory(&self, chip: i32, kind: MemoryType) -> &Memory {
            self.ledger.processes[&0].chips[&chip].memory(kind)
        }

        fn dram(&self, chip: i32) -> &Memory {
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
        let body = record::Device { device: 0x5000, id: 1, arch: 2, is_mesh: 0, reserved: 0 };
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
    fn a_forked_childs_free_of_its_parents_buffer_is_no_mystery() {
        let mut story = Story::default();
        let body = record::Process { pid: 2, parent_pid: 1, forked: 1, argv_cut: 0 };
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
        story.tell(&record::Device { device: 9, id: 0, arch: 0, is_mesh: 1, reserved: 0 }, b"abc");
        story.ledger.enter(b"");
        let found = story.ledger.anomalies;
        assert_eq!((found.unattributed, found.bad_records), (1, 3));
        assert_eq!(story.dram(0).live.buffers, 2);
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
                    }
                }
            }
            prop_assert_eq!(story.dram(0).peak.bytes_per_bank, peak);
            prop_assert_eq!(story.ledger.anomalies, Anomalies::default());
        }

        #[test]
        fn no_record_panics(records in prop::collection::vec(
            (0..12_u32, prop::collection::vec(prop_oneof![Just(0_u8), Just(1), any::<u8>()], 0..120)),
            0..60,
        )) {
            let mut story = Story::with_mesh(2);
            for (kind, bytes) in records {
                let head = Head { kind, process: 0, time_ns: 0 };
                story.ledger.enter(&[bytemuck::bytes_of(&head), bytes.as_slice()].concat());
            }
        }
    }
}
