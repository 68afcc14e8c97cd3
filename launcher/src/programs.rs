//! The books of programs: what each lays out in the L1 of its cores, and where and how often it ran.
//!
//! A program's circular buffers, dataflow buffers and scratchpads lie at the same place on all of its
//! cores and chips. They take memory only while the program runs: programs share the L1 below the lowest
//! buffer, so that their sizes are never added up.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ttalloc_ring::record::{self, LocalKind, MESH_DIMS};

/// How many different programs are told apart among those that have ended.
const MOST_ENDED: usize = 4096;
/// How many kernels of a program are named.
const MOST_KERNELS: usize = 64;
/// How many local buffers of a program are told.
const MOST_LOCAL: usize = 1024;

/// What kind of memory a program lays out.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum BufferKind {
    /// A circular buffer.
    CircularBuffer,
    /// A circular buffer over an L1 buffer that an allocator gave: a view, which takes nothing.
    GlobalCircularBuffer,
    /// A dataflow buffer.
    DataflowBuffer,
    /// A scratchpad.
    Scratchpad,
}

impl BufferKind {
    fn of(kind: LocalKind) -> BufferKind {
        match kind {
            LocalKind::Circular => BufferKind::CircularBuffer,
            LocalKind::Global => BufferKind::GlobalCircularBuffer,
            LocalKind::Dataflow => BufferKind::DataflowBuffer,
            LocalKind::Scratchpad => BufferKind::Scratchpad,
        }
    }
}

/// A rectangle of cores: x and y of the first, x and y of the last.
pub type CoreRange = [u16; 4];

/// One buffer of a program's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LocalBuffer {
    /// What it is.
    pub kind: BufferKind,
    /// Where it is in the L1 of each core; None if that was not known yet.
    pub address: Option<u64>,
    /// Its size on each core, in bytes.
    pub bytes: u64,
    /// The cores it lies on.
    pub ranges: Vec<CoreRange>,
    /// How many those are.
    pub cores: u64,
    /// What it was told under: an address of the runtime's, for a view.
    handle: u64,
}

/// How many cores some ranges have together.
fn cores_of(ranges: &[CoreRange]) -> u64 {
    let side = |first: u16, last: u16| u64::from(last.saturating_sub(first)) + 1;
    ranges.iter().map(|range| side(range[0], range[2]) * side(range[1], range[3])).sum()
}

/// What makes two programs the same to a reader.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Signature {
    kernels: Vec<String>,
    local: Vec<(BufferKind, Option<u64>, u64, Vec<CoreRange>)>,
    chips: Vec<i32>,
}

/// A program, or several that are the same to a reader.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// tt-metal's id of the first of them, as its messages have it.
    pub id: Option<u64>,
    /// The kernels' names, without those that came twice.
    pub kernels: Vec<String>,
    /// What it lays out.
    pub local: Vec<LocalBuffer>,
    /// The chips it ran on.
    pub chips: BTreeSet<i32>,
    /// How often it ran, replays of traces included.
    pub runs: u64,
    /// How often it was refused, because its region clashed with a buffer or was too large.
    pub refused: u64,
    /// How many program objects were the same.
    pub objects: u64,
    /// How many of them are still there.
    pub live: u64,
    /// When it first ran, in nanoseconds of the records' clock.
    pub first_ns: u64,
    /// When it last ran.
    pub last_ns: u64,
    /// The layout that its buffers of each kind belong to.
    layouts: [u64; LocalKind::ALL.len()],
    /// One past its last byte in L1; 0 if it lays out nothing.
    end: u64,
}

impl Program {
    /// One past its last byte in the L1 of a core; None if it has nothing there.
    pub fn region_end(&self) -> Option<u64> {
        (self.end != 0).then_some(self.end)
    }

    fn signature(&self) -> Signature {
        let local = |one: &LocalBuffer| (one.kind, one.address, one.bytes, one.ranges.clone());
        Signature {
            kernels: self.kernels.clone(),
            local: self.local.iter().map(local).collect(),
            chips: self.chips.iter().copied().collect(),
        }
    }

    fn merge(&mut self, other: Program) {
        let first = |a: u64, b: u64| if a == 0 || b != 0 && b < a { b } else { a };
        self.runs = self.runs.saturating_add(other.runs);
        self.refused += other.refused;
        self.objects += other.objects;
        self.live += other.live;
        self.first_ns = first(self.first_ns, other.first_ns);
        self.last_ns = self.last_ns.max(other.last_ns);
    }
}

/// The part of a mesh that a program runs on: from one coordinate to another.
#[derive(Clone, Copy, Debug)]
struct Part {
    dims: usize,
    start: [u32; MESH_DIMS],
    end: [u32; MESH_DIMS],
}

/// What a mesh looks like: how many chips a step in each dimension is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// How many dimensions; 0 if that is not known.
    pub dims: usize,
    /// The chips a step is.
    pub strides: [u32; MESH_DIMS],
}

impl Part {
    /// The chips of this part of a mesh; all, if its coordinates don't fit the mesh.
    fn of(&self, chips: &[i32], shape: Shape) -> Vec<i32> {
        let fits = self.dims != 0 && self.dims == shape.dims;
        let count = |dim: usize| u64::from(self.end[dim].saturating_sub(self.start[dim])) + 1;
        let size = (0..self.dims).map(count).try_fold(1, u64::checked_mul);
        if !fits || size.is_none_or(|size| size > chips.len() as u64) {
            return chips.to_vec();
        }
        let mut indices = vec![0_u64];
        for dim in 0..self.dims {
            let stride = u64::from(shape.strides[dim]);
            indices = indices
                .iter()
                .flat_map(|index| {
                    (self.start[dim]..=self.end[dim]).map(move |at| index + u64::from(at) * stride)
                })
                .collect();
        }
        let part: Option<Vec<i32>> =
            indices.iter().map(|&index| chips.get(index as usize).copied()).collect();
        part.unwrap_or_else(|| chips.to_vec())
    }
}

/// A trace: a recorded run of programs.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// tt-metal's id of it.
    pub id: u32,
    /// The mesh's id.
    pub mesh: i32,
    /// Its chips.
    pub chips: Vec<i32>,
    /// How often it was replayed.
    pub replays: u64,
    /// When its capture began, in nanoseconds of the records' clock.
    pub captured_ns: u64,
    /// When it was released; None if it never was.
    pub released_ns: Option<u64>,
    /// What it took in every bank, and over all banks of a chip, in bytes.
    pub bytes_per_bank: u64,
    /// See `bytes_per_bank`.
    pub reserved_bytes: u64,
    /// How often each program was dispatched during the capture.
    programs: BTreeMap<u64, u64>,
    /// The chips of each.
    parts: BTreeMap<u64, Vec<i32>>,
}

impl Trace {
    /// How many dispatches it holds.
    pub fn dispatches(&self) -> u64 {
        self.programs.values().sum()
    }
}

/// A program on the chips that it now runs on.
pub struct Running {
    /// The program's number.
    pub program: u64,
    /// One past its last byte in L1, if it has any there.
    pub end: Option<u64>,
    /// The chips.
    pub chips: Vec<i32>,
    /// Which of them it had not run on before.
    pub new: Vec<i32>,
}

/// One process's programs.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    /// By the program's address.
    by_address: HashMap<u64, u64>,
    /// By number.
    programs: BTreeMap<u64, Program>,
    /// The programs of each workload, with their parts of the mesh.
    workloads: HashMap<u64, Vec<(u64, Part)>>,
    /// The workload of a program.
    workload_of: HashMap<u64, u64>,
    /// The ended program that stands for all of its kind.
    ended: HashMap<Signature, u64>,
    /// All traces, in order.
    pub traces: Vec<Trace>,
    /// The trace that a device captures, by the device's address.
    capturing: HashMap<u64, usize>,
    /// The traces of a device that were not released.
    kept: HashMap<(u64, u32), usize>,
    /// Programs that ended and are not told apart, for want of room.
    pub left_out: u64,
    next: u64,
}

impl Programs {
    fn number(&mut self, address: u64) -> u64 {
        *self.by_address.entry(address).or_insert_with(|| {
            self.next += 1;
            let program = Program { objects: 1, live: 1, ..Program::default() };
            self.programs.insert(self.next, program);
            self.next
        })
    }

    fn program(&mut self, address: u64) -> &mut Program {
        let number = self.number(address);
        self.programs.entry(number).or_default()
    }

    /// A program by its number.
    pub fn get(&self, number: u64) -> Option<&Program> {
        self.programs.get(&number)
    }

    /// A kernel was added.
    pub fn kernel(&mut self, address: u64, name: String) {
        let kernels = &mut self.program(address).kernels;
        if !name.is_empty() && kernels.len() < MOST_KERNELS && !kernels.contains(&name) {
            kernels.push(name);
        }
    }

    /// A local buffer was laid out. False if the record made no sense.
    pub fn local(&mut self, body: &record::Local, tail: &[u8]) -> bool {
        let Some(kind) = LocalKind::ALL.get(body.kind as usize).copied() else { return false };
        let (words, rest) = tail.as_chunks::<2>();
        let (ranges, incomplete) = words.as_chunks::<4>();
        let Some(end) = body.address.checked_add(body.bytes) else { return false };
        if !rest.is_empty() || !incomplete.is_empty() {
            return false;
        }
        let ranges: Vec<CoreRange> =
            ranges.iter().map(|range| range.map(u16::from_le_bytes)).collect();
        let is_view = kind == LocalKind::Global;
        let program = self.program(body.program);
        if is_view {
            program.local.retain(|one| one.handle != body.layout);
        } else if program.layouts[kind as usize] != body.layout {
            program.layouts[kind as usize] = body.layout;
            program.local.retain(|one| one.kind != BufferKind::of(kind));
        }
        let buffer = LocalBuffer {
            kind: BufferKind::of(kind),
            address: (!is_view || body.address != 0).then_some(body.address),
            bytes: body.bytes,
            cores: if body.cores == 0 { cores_of(&ranges) } else { body.cores.into() },
            ranges,
            handle: if is_view { body.layout } else { 0 },
        };
        // A dataflow buffer comes once for each range of its cores.
        let same = program.local.iter().position(|one| {
            kind == LocalKind::Dataflow
                && (one.kind, one.address, one.bytes) == (buffer.kind, buffer.address, buffer.bytes)
        });
        let has_room = program.local.len() < MOST_LOCAL;
        match same.and_then(|at| program.local.get_mut(at)) {
            Some(same) => {
                let is_new = |range: &CoreRange| !same.ranges.contains(range);
                let further: Vec<_> = buffer.ranges.into_iter().filter(is_new).collect();
                same.cores += cores_of(&further);
                same.ranges.extend(further);
            }
            None if has_room => program.local.push(buffer),
            None => {}
        }
        let ends = |one: &LocalBuffer| match one.kind {
            BufferKind::GlobalCircularBuffer => None,
            _ => one.address.map(|address| address.saturating_add(one.bytes)),
        };
        program.end = program.local.iter().filter_map(ends).max().unwrap_or(0);
        if !is_view {
            program.end = program.end.max(end);
        }
        true
    }

    /// A program was put into a workload.
    pub fn enlist(&mut self, body: &record::Enlisted) {
        let number = self.number(body.program);
        let program = self.programs.entry(number).or_default();
        if program.id.is_none() && body.id != u64::MAX {
            program.id = Some(body.id);
        }
        let dims = if body.dims as usize <= MESH_DIMS { body.dims as usize } else { 0 };
        let part = Part { dims, start: body.start, end: body.end };
        if let Some(other) = self.workload_of.insert(number, body.workload) {
            self.leave(number, other);
        }
        self.workloads.entry(body.workload).or_default().push((number, part));
    }

    fn leave(&mut self, number: u64, workload: u64) {
        if let Some(members) = self.workloads.get_mut(&workload) {
            members.retain(|&(member, _)| member != number);
            if members.is_empty() {
                self.workloads.remove(&workload);
            }
        }
    }

    /// A program was refused.
    pub fn refused(&mut self, address: u64) {
        self.program(address).refused += 1;
    }

    /// A workload, or a program alone, was dispatched to a device. What now runs; nothing while the
    /// device captures a trace.
    pub fn run(
        &mut self,
        body: &record::Run,
        chips: &[i32],
        shape: Shape,
        time_ns: u64,
    ) -> Vec<Running> {
        let members = match body.workload {
            0 => vec![(self.number(body.program), chips.to_vec())],
            workload => {
                let members = self.workloads.get(&workload).map(Vec::as_slice).unwrap_or_default();
                members.iter().map(|(number, part)| (*number, part.of(chips, shape))).collect()
            }
        };
        if let Some(trace) =
            self.capturing.get(&body.device).and_then(|&at| self.traces.get_mut(at))
        {
            for (number, chips) in members {
                *trace.programs.entry(number).or_default() += 1;
                trace.parts.insert(number, chips);
            }
            return Vec::new();
        }
        let running =
            members.into_iter().map(|(number, chips)| self.start(number, chips, 1, time_ns));
        running.collect()
    }

    fn start(&mut self, number: u64, chips: Vec<i32>, runs: u64, time_ns: u64) -> Running {
        let program = self.programs.entry(number).or_default();
        program.runs = program.runs.saturating_add(runs);
        if program.first_ns == 0 {
            program.first_ns = time_ns;
        }
        program.last_ns = time_ns;
        let new: Vec<i32> =
            chips.iter().copied().filter(|&chip| program.chips.insert(chip)).collect();
        Running { program: number, end: program.region_end(), chips, new }
    }

    /// A trace's capture begins.
    pub fn begin(&mut self, device: u64, id: u32, mesh: i32, chips: &[i32], time_ns: u64) {
        let at = self.traces.len();
        let chips = chips.to_vec();
        self.traces.push(Trace { id, mesh, chips, captured_ns: time_ns, ..Trace::default() });
        self.capturing.insert(device, at);
        self.kept.insert((device, id), at);
    }

    /// A trace's capture is about to end. Whether its beginning was seen.
    pub fn end(&mut self, device: u64, id: u32) -> bool {
        self.capturing.remove(&device);
        self.kept.contains_key(&(device, id))
    }

    /// Memory was allocated for the trace whose capture ended last on a device.
    pub fn trace_memory(&mut self, device: u64, bytes_per_bank: u64, reserved_bytes: u64) {
        let last = self.kept.iter().filter(|((of, _), _)| *of == device).map(|(_, &at)| at).max();
        if let Some(trace) = last.and_then(|at| self.traces.get_mut(at)) {
            trace.bytes_per_bank = trace.bytes_per_bank.saturating_add(bytes_per_bank);
            trace.reserved_bytes = trace.reserved_bytes.saturating_add(reserved_bytes);
        }
    }

    /// A trace is replayed: what now runs.
    pub fn replay(&mut self, device: u64, id: u32, time_ns: u64) -> Vec<Running> {
        let found = self.kept.get(&(device, id)).and_then(|&at| self.traces.get_mut(at));
        let Some(trace) = found else { return Vec::new() };
        trace.replays += 1;
        let members: Vec<_> = trace
            .programs
            .iter()
            .map(|(&number, &runs)| {
                (number, runs, trace.parts.get(&number).cloned().unwrap_or_default())
            })
            .collect();
        let running = members
            .into_iter()
            .map(|(number, runs, chips)| self.start(number, chips, runs, time_ns));
        running.collect()
    }

    /// A trace is released.
    pub fn release(&mut self, device: u64, id: u32, time_ns: u64) {
        if let Some(trace) = self.kept.remove(&(device, id)).and_then(|at| self.traces.get_mut(at))
        {
            trace.released_ns = Some(time_ns);
        }
    }

    /// A device closes, and takes its traces along.
    pub fn close(&mut self, device: u64) {
        self.capturing.remove(&device);
        self.kept.retain(|&(of, _), _| of != device);
    }

    /// A program ends. If it is one of several that are the same, returns its number and that of the one
    /// that stands for them all. `is_needed` tells of a program that must stay, however many there are.
    pub fn ended(&mut self, address: u64, is_needed: impl Fn(u64) -> bool) -> Option<(u64, u64)> {
        let number = self.by_address.remove(&address)?;
        if let Some(workload) = self.workload_of.remove(&number) {
            self.leave(number, workload);
        }
        let program = self.programs.get_mut(&number)?;
        program.live = 0;
        let is_traced = |programs: &Programs| {
            programs.kept.values().any(|&at| {
                programs.traces.get(at).is_some_and(|trace| trace.programs.contains_key(&number))
            })
        };
        if program.runs + program.refused == 0 {
            // It never was more than a plan.
            if !is_traced(self) {
                self.programs.remove(&number);
            }
            return None;
        }
        let signature = program.signature();
        if let Some(&first) = self.ended.get(&signature) {
            // What a trace will replay stays itself.
            if is_traced(self) {
                return None;
            }
            let program = self.programs.remove(&number)?;
            self.programs.get_mut(&first)?.merge(program);
            return Some((number, first));
        }
        if self.ended.len() < MOST_ENDED {
            self.ended.insert(signature, number);
        } else if !is_needed(number) && !is_traced(self) {
            self.programs.remove(&number);
            self.left_out += 1;
        }
        None
    }

    /// The programs that ran or were refused, the same ones as one, in the order in which they came;
    /// each with the numbers it stands for.
    pub fn all(&self) -> Vec<(Vec<u64>, Program)> {
        let mut all: Vec<(Vec<u64>, Program)> = Vec::new();
        let mut places: HashMap<Signature, usize> = HashMap::new();
        for (&number, program) in &self.programs {
            if program.runs + program.refused == 0 {
                continue;
            }
            let place = *places.entry(program.signature()).or_insert(all.len());
            match all.get_mut(place) {
                Some((numbers, same)) => {
                    numbers.push(number);
                    same.merge(program.clone());
                }
                None => all.push((vec![number], program.clone())),
            }
        }
        all
    }
}
