//! The books of programs: what each lays out in the L1 of its cores, and where and how often it ran.
//!
//! A program's circular buffers, dataflow buffers and scratchpads lie at the same place on all of its
//! cores and chips. They take memory only while the program runs: programs share the L1 below the lowest
//! buffer, so that their sizes are never added up.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ttalloc_ring::record::{self, LocalKind, MESH_DIMS};

use crate::ledger::Largest;

/// How many kernels of a program are named.
const MOST_KERNELS: usize = 64;
/// How many local buffers of a program are told.
const MOST_LOCAL: usize = 1024;
/// How many ranges of cores a buffer may have, and programs a workload: far more than there are cores and
/// chips.
const MOST_RANGES: usize = 1024;
const MOST_MEMBERS: usize = 4096;
/// How many ranges of cores all buffers of a program may have together.
const MOST_RANGES_OF_ALL: usize = 1 << 16;
/// How many traces are told, beside those that can still be replayed.
const MOST_TRACES: usize = 256;
/// How long a kernel's name may be, in letters.
const MOST_LETTERS: usize = 256;

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
#[derive(PartialEq, Eq, Hash)]
struct Key<'a> {
    kernels: &'a [String],
    local: Vec<(BufferKind, Option<u64>, u64, &'a [CoreRange])>,
    chips: &'a BTreeSet<i32>,
}

/// How large a program is beside others: whether figures refer to it, its region's end, its runs.
pub(crate) type Size = (bool, u64, u64);

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
    /// The chips it ran on last.
    last: Option<Arc<[i32]>>,
    /// About how much its kernels and buffers take to remember, in bytes.
    weight: usize,
}

impl Program {
    /// One past its last byte in the L1 of a core; None if it has nothing there.
    pub fn region_end(&self) -> Option<u64> {
        (self.end != 0).then_some(self.end)
    }

    fn key(&self) -> Key<'_> {
        fn local(one: &LocalBuffer) -> (BufferKind, Option<u64>, u64, &[CoreRange]) {
            (one.kind, one.address, one.bytes, &one.ranges)
        }
        // Which was laid out first says nothing.
        let mut all: Vec<_> = self.local.iter().map(local).collect();
        all.sort_unstable();
        Key { kernels: &self.kernels, local: all, chips: &self.chips }
    }

    /// Whether there is anything to tell of it.
    fn was_used(&self) -> bool {
        self.runs != 0 || self.refused != 0
    }

    pub(crate) fn size(&self, is_needed: bool) -> Size {
        (is_needed, self.end, self.runs)
    }

    fn weigh(&self) -> usize {
        let kernels = self.kernels.iter().map(|name| size_of::<String>() + name.len());
        let local = self.local.iter().map(|one| size_of_val(one) + 8 * one.ranges.len());
        kernels.sum::<usize>() + local.sum::<usize>()
    }

    fn merge(&mut self, other: Program) {
        let first = |a: u64, b: u64| if a == 0 || b != 0 && b < a { b } else { a };
        self.id = self.id.into_iter().chain(other.id).min();
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

/// Some chips' ids.
type Chips = Arc<[i32]>;

/// A program in a workload.
#[derive(Clone, Debug)]
struct Member {
    number: u64,
    part: Part,
    /// Its chips, of those of a mesh.
    of: Option<(Chips, Chips)>,
}

impl Member {
    fn chips(&mut self, of: &Arc<[i32]>, shape: Shape) -> Arc<[i32]> {
        if let Some((whole, part)) = &self.of
            && Arc::ptr_eq(whole, of)
        {
            return part.clone();
        }
        let part = self.part.of(of, shape);
        let part = if part == **of { of.clone() } else { part.into() };
        self.of = Some((of.clone(), part.clone()));
        part
    }
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
        let in_order = |dim: usize| self.start[dim] <= self.end[dim];
        let fits = self.dims != 0 && self.dims == shape.dims && (0..self.dims).all(in_order);
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
                    (self.start[dim]..=self.end[dim])
                        .map(move |at| index.saturating_add(u64::from(at).saturating_mul(stride)))
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
    /// How many dispatches it holds.
    pub dispatches: u64,
    /// How often each program was dispatched during the capture, and on which chips, while the trace is
    /// there.
    programs: BTreeMap<u64, (u64, Arc<[i32]>)>,
    /// Whether it is there.
    is_there: bool,
}

/// A program on the chips that it now runs on.
pub struct Running {
    /// The program's number.
    pub program: u64,
    /// One past its last byte in L1, if it has any there.
    pub end: Option<u64>,
    /// The chips.
    pub chips: Arc<[i32]>,
    /// Which of them it had not run on before.
    pub new: Vec<i32>,
    /// How often it runs there: a trace may hold it several times.
    pub runs: u64,
}

/// What a device's close takes along.
#[derive(Debug)]
pub struct Closed {
    captured: Option<u64>,
    last: Option<u64>,
    kept: Vec<((u64, u32), u64)>,
}

/// Programs that turned out to be the same as others: their numbers, and those of the ones that stand for
/// them from now on.
pub type Merged = Vec<(u64, u64)>;

/// One process's programs.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    /// By the program's address.
    by_address: HashMap<u64, u64>,
    /// By number.
    programs: HashMap<u64, Program>,
    /// The programs of each workload.
    workloads: HashMap<u64, Vec<Member>>,
    /// The workload of a program.
    workload_of: HashMap<u64, u64>,
    /// The ended programs that stand for all of their kind, by what makes them the same.
    ended: HashTable<(u64, u64)>,
    hasher: DefaultHashBuilder,
    /// The traces, in order.
    traces: BTreeMap<u64, Trace>,
    /// The trace that a device captures, by the device's address.
    capturing: HashMap<u64, u64>,
    /// The trace that a device began to capture last.
    last: HashMap<u64, u64>,
    /// The traces of a device that were not released.
    kept: HashMap<(u64, u32), u64>,
    /// How many traces hold a program that can still be replayed.
    traced: HashMap<u64, u64>,
    /// How many traces are still there.
    traces_there: usize,
    /// Program objects that are not told of, for want of room.
    pub left_out: u64,
    /// Traces that are not told of, for want of room.
    pub traces_left_out: u64,
    next: u64,
    next_trace: u64,
    /// About how much the programs' parts take to remember, in bytes.
    weight: usize,
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

    /// A program's parts have changed.
    fn weigh(&mut self, address: u64) {
        let number = self.by_address.get(&address);
        let Some(program) = number.and_then(|number| self.programs.get_mut(number)) else { return };
        let weight = program.weigh();
        self.weight = (self.weight + weight).saturating_sub(program.weight);
        program.weight = weight;
    }

    fn remove(&mut self, number: u64) -> Option<Program> {
        let program = self.programs.remove(&number)?;
        self.weight = self.weight.saturating_sub(program.weight);
        Some(program)
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
        let name: String = name.chars().take(MOST_LETTERS).collect();
        let kernels = &mut self.program(address).kernels;
        if !name.is_empty() && kernels.len() < MOST_KERNELS && !kernels.contains(&name) {
            kernels.push(name);
            self.weigh(address);
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
        if ranges.iter().any(|range| range[0] > range[2] || range[1] > range[3]) {
            return false;
        }
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
        // A dataflow buffer or scratchpad comes once for each range of its cores.
        let same = program.local.iter().position(|one| {
            matches!(kind, LocalKind::Dataflow | LocalKind::Scratchpad)
                && (one.kind, one.address, one.bytes) == (buffer.kind, buffer.address, buffer.bytes)
        });
        let ranges_of_all: usize = program.local.iter().map(|one| one.ranges.len()).sum();
        let has_room = program.local.len() < MOST_LOCAL
            && ranges_of_all + buffer.ranges.len() <= MOST_RANGES_OF_ALL;
        let known = same.and_then(|at| program.local.get(at)).map_or(0, |one| one.ranges.len());
        if known + buffer.ranges.len() > MOST_RANGES {
            return false;
        }
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
        self.weigh(body.program);
        true
    }

    /// A program was put into a workload. False if it has too many to make sense.
    pub fn enlist(&mut self, body: &record::Enlisted) -> bool {
        if self.workloads.get(&body.workload).is_some_and(|of| of.len() >= MOST_MEMBERS) {
            return false;
        }
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
        let member = Member { number, part, of: None };
        self.workloads.entry(body.workload).or_default().push(member);
        self.weight += size_of::<Member>();
        true
    }

    fn leave(&mut self, number: u64, workload: u64) {
        if let Some(members) = self.workloads.get_mut(&workload) {
            let before = members.len();
            members.retain(|member| member.number != number);
            let gone = (before - members.len()) * size_of::<Member>();
            self.weight = self.weight.saturating_sub(gone);
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
        chips: &Arc<[i32]>,
        shape: Shape,
        time_ns: u64,
    ) -> Vec<Running> {
        let alone = (body.workload == 0).then(|| (self.number(body.program), chips.clone()));
        let members = self.workloads.get_mut(&body.workload).filter(|_| body.workload != 0);
        let members = members.into_iter().flatten();
        let members = members.map(|member| (member.number, member.chips(chips, shape)));
        let members = alone.into_iter().chain(members);
        let capturing = self.capturing.get(&body.device);
        if let Some(trace) = capturing.and_then(|at| self.traces.get_mut(at)) {
            for (number, chips) in members {
                trace.dispatches += 1;
                if !trace.is_there {
                    continue;
                }
                let (runs, on) = trace.programs.entry(number).or_insert_with(|| {
                    *self.traced.entry(number).or_default() += 1;
                    (0, chips.clone())
                });
                *runs += 1;
                *on = chips;
            }
            return Vec::new();
        }
        let programs = &mut self.programs;
        members.filter_map(|(number, chips)| start(programs, number, chips, 1, time_ns)).collect()
    }

    /// A trace's capture begins.
    pub fn begin(
        &mut self,
        device: u64,
        id: u32,
        mesh: i32,
        chips: &[i32],
        time_ns: u64,
    ) -> Merged {
        self.next_trace += 1;
        let number = self.next_trace;
        let chips = chips.to_vec();
        let trace =
            Trace { id, mesh, chips, captured_ns: time_ns, is_there: true, ..Trace::default() };
        self.traces.insert(number, trace);
        self.traces_there += 1;
        self.capturing.insert(device, number);
        self.last.insert(device, number);
        match self.kept.insert((device, id), number) {
            Some(other) => self.forget_trace(other),
            None => Vec::new(),
        }
    }

    /// A trace's capture is about to end. Whether its beginning was seen.
    pub fn end(&mut self, device: u64, id: u32) -> bool {
        self.capturing.remove(&device);
        self.kept.contains_key(&(device, id))
    }

    /// Memory was allocated for the trace whose capture ended last on a device.
    pub fn trace_memory(&mut self, device: u64, bytes_per_bank: u64, reserved_bytes: u64) {
        let last = self.last.get(&device).and_then(|at| self.traces.get_mut(at));
        if let Some(trace) = last.filter(|trace| trace.is_there) {
            trace.bytes_per_bank = trace.bytes_per_bank.saturating_add(bytes_per_bank);
            trace.reserved_bytes = trace.reserved_bytes.saturating_add(reserved_bytes);
        }
    }

    /// A trace is replayed: what now runs.
    pub fn replay(&mut self, device: u64, id: u32, time_ns: u64) -> Vec<Running> {
        let found = self.kept.get(&(device, id)).and_then(|at| self.traces.get_mut(at));
        let Some(trace) = found else { return Vec::new() };
        trace.replays += 1;
        let programs = &mut self.programs;
        let members = trace.programs.iter();
        let running = members.filter_map(|(&number, (runs, chips))| {
            start(programs, number, chips.clone(), *runs, time_ns)
        });
        running.collect()
    }

    /// A trace is released.
    pub fn release(&mut self, device: u64, id: u32, time_ns: u64) -> Merged {
        let Some(number) = self.kept.remove(&(device, id)) else { return Vec::new() };
        if let Some(trace) = self.traces.get_mut(&number) {
            trace.released_ns = Some(time_ns);
        }
        self.forget_trace(number)
    }

    /// A trace can't be replayed any more, and the programs that ended meanwhile are needed no longer.
    fn forget_trace(&mut self, number: u64) -> Merged {
        let Some(trace) = self.traces.get_mut(&number).filter(|trace| trace.is_there) else {
            return Vec::new();
        };
        trace.is_there = false;
        self.traces_there = self.traces_there.saturating_sub(1);
        let mut merged = Vec::new();
        for program in std::mem::take(&mut trace.programs).into_keys() {
            match self.traced.get_mut(&program) {
                Some(traces) if *traces > 1 => *traces -= 1,
                _ => {
                    self.traced.remove(&program);
                    if self.programs.get(&program).is_some_and(|program| program.live == 0) {
                        merged.extend(self.retire(program));
                    }
                }
            }
        }
        self.leave_out_traces();
        merged
    }

    fn leave_out_traces(&mut self) {
        if self.traces.len().saturating_sub(self.traces_there) <= 2 * MOST_TRACES {
            return;
        }
        let gone = self.traces.iter().filter(|(_, trace)| !trace.is_there);
        let size = |trace: &Trace| (trace.reserved_bytes, trace.replays);
        let mut sizes: Vec<_> = gone.map(|(&number, trace)| (size(trace), number)).collect();
        sizes.sort_unstable();
        let too_many = sizes.len().saturating_sub(MOST_TRACES);
        for (_, number) in sizes.iter().take(too_many) {
            self.traces.remove(number);
        }
        self.traces_left_out += too_many as u64;
    }

    /// The traces that are told of, in order.
    pub fn traces(&self) -> impl ExactSizeIterator<Item = &Trace> {
        self.traces.values()
    }

    /// Whether a workload has programs.
    pub fn knows(&self, workload: u64) -> bool {
        self.workloads.contains_key(&workload)
    }

    /// A device closes, and takes its traces along: those that were not released, and the one that is
    /// being captured.
    pub fn close(&mut self, device: u64) -> Closed {
        let captured = self.capturing.remove(&device);
        let last = self.last.remove(&device);
        let kept = self.kept.extract_if(|(of, _), _| *of == device).collect();
        Closed { captured, last, kept }
    }

    /// It did not close after all.
    pub fn close_failed(&mut self, device: u64, closed: Closed) {
        self.kept.extend(closed.kept);
        self.capturing.extend(closed.captured.map(|at| (device, at)));
        self.last.extend(closed.last.map(|at| (device, at)));
    }

    /// It did, and that is long ago.
    pub fn has_closed(&mut self, closed: Closed) -> Merged {
        closed.kept.into_iter().flat_map(|(_, number)| self.forget_trace(number)).collect()
    }

    /// A program ends.
    pub fn ended(&mut self, address: u64) -> Merged {
        let Some(number) = self.by_address.remove(&address) else { return Vec::new() };
        if let Some(workload) = self.workload_of.remove(&number) {
            self.leave(number, workload);
        }
        if let Some(program) = self.programs.get_mut(&number) {
            program.live = 0;
        }
        // What a trace will replay stays itself.
        match self.traced.contains_key(&number) {
            true => Vec::new(),
            false => self.retire(number).into_iter().collect(),
        }
    }

    /// A program can't run any more. If it is one of several that are the same, returns its number and
    /// that of the one that stands for them all.
    fn retire(&mut self, number: u64) -> Option<(u64, u64)> {
        let program = self.programs.get_mut(&number)?;
        if !program.was_used() {
            // It never was more than a plan.
            self.remove(number);
            return None;
        }
        program.last = None;
        let program = self.programs.get(&number)?;
        let key = program.key();
        let hash = self.hasher.hash_one(&key);
        let is_same =
            |(_, other): &(u64, u64)| self.programs.get(other).is_some_and(|one| one.key() == key);
        if let Some(&(_, first)) = self.ended.find(hash, is_same) {
            let program = self.remove(number)?;
            self.programs.get_mut(&first)?.merge(program);
            return Some((number, first));
        }
        self.ended.insert_unique(hash, (hash, number), |(hash, _)| *hash);
        None
    }

    /// How many different programs have ended, and are told of.
    pub(crate) fn ended_count(&self) -> usize {
        self.ended.len()
    }

    /// Leaves out all but the largest of the programs that have ended, and those that are needed.
    pub(crate) fn leave_out_ended(&mut self, most: usize, is_needed: impl Fn(u64) -> bool) {
        let size = |number: u64| {
            let program = self.programs.get(&number);
            program.map_or((false, 0, 0), |one| one.size(is_needed(number)))
        };
        let sizes = self.ended.iter().map(|&(_, number)| size(number)).collect();
        let mut largest = Largest::of(sizes, most);
        let goes = |number: u64, largest: &mut Largest<Size>| {
            let size = size(number);
            !largest.keeps(&size) && !size.0
        };
        let gone: BTreeSet<u64> = self
            .ended
            .iter()
            .map(|&(_, number)| number)
            .filter(|&number| goes(number, &mut largest))
            .collect();
        self.ended.retain(|(_, number)| !gone.contains(number));
        for number in gone {
            self.left_out += self.remove(number).map_or(0, |program| program.objects);
        }
    }

    /// Keeps some of the programs of a process that has ended.
    pub(crate) fn retain(&mut self, mut keeps: impl FnMut(u64, &Program) -> bool) {
        let mut left_out = 0;
        self.programs.retain(|&number, program| {
            let stays = keeps(number, program);
            left_out += if stays { 0 } else { program.objects };
            stays
        });
        self.left_out += left_out;
        self.programs.shrink_to_fit();
        self.weight = self.programs.values().map(|program| program.weight).sum();
    }

    /// The process has ended: what was only there to find things goes, and what never ran.
    pub(crate) fn settle(&mut self) {
        for trace in self.traces.values_mut() {
            trace.programs = BTreeMap::default();
        }
        let mut programs = std::mem::take(&mut self.programs);
        programs.retain(|_, program| program.was_used());
        programs.shrink_to_fit();
        programs.values_mut().for_each(|program| program.last = None);
        *self = Programs {
            weight: programs.values().map(|program| program.weight).sum(),
            programs,
            traces: std::mem::take(&mut self.traces),
            left_out: self.left_out,
            traces_left_out: self.traces_left_out,
            next: self.next,
            next_trace: self.next_trace,
            ..Programs::default()
        };
    }

    /// How many there are, those included that did not run yet.
    pub(crate) fn len(&self) -> usize {
        self.programs.len()
    }

    /// The programs that ran or were refused, in no particular order, by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Program)> {
        let all = self.programs.iter().map(|(&number, program)| (number, program));
        all.filter(|(_, program)| program.was_used())
    }

    /// How many program objects ran or were refused, those included that are not told of.
    pub(crate) fn objects(&self) -> u64 {
        self.iter().map(|(_, program)| program.objects).sum::<u64>() + self.left_out
    }

    /// The programs that ran or were refused, the same ones as one, in the order in which they came;
    /// each with the numbers it stands for.
    pub fn all(&self) -> Vec<(Vec<u64>, Program)> {
        let mut all: Vec<(Vec<u64>, Program)> = Vec::new();
        let mut places: HashMap<Key, usize> = HashMap::new();
        let mut in_order: Vec<_> = self.iter().collect();
        in_order.sort_unstable_by_key(|&(number, _)| number);
        for (number, program) in in_order {
            let place = *places.entry(program.key()).or_insert(all.len());
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

    /// About how much it takes to remember them, in bytes.
    pub(crate) fn weight(&self) -> usize {
        const LINKS: usize = 160;
        self.weight
            + self.programs.len() * (size_of::<Program>() + LINKS)
            + self.traces.len() * (size_of::<Trace>() + LINKS)
            + self.traced.len() * LINKS
    }
}

fn start(
    programs: &mut HashMap<u64, Program>,
    number: u64,
    chips: Arc<[i32]>,
    runs: u64,
    time_ns: u64,
) -> Option<Running> {
    let program = programs.get_mut(&number)?;
    program.runs = program.runs.saturating_add(runs);
    if program.first_ns == 0 {
        program.first_ns = time_ns;
    }
    program.last_ns = time_ns;
    let mut new = Vec::new();
    if !program.last.as_ref().is_some_and(|last| Arc::ptr_eq(last, &chips)) {
        if program.chips.is_empty() {
            new = chips.to_vec();
            program.chips = chips.iter().copied().collect();
        } else {
            new.extend(chips.iter().copied().filter(|&chip| program.chips.insert(chip)));
        }
        program.last = Some(chips.clone());
    }
    Some(Running { program: number, end: program.region_end(), chips, new, runs })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WORKLOAD: u64 = 0x100;
    const DEVICE: u64 = 0x200;
    const SQUARE: Shape = Shape { dims: 2, strides: [2, 1, 0, 0] };
    const CHIPS: [i32; 4] = [4, 5, 6, 7];

    fn local(program: u64, kind: LocalKind, layout: u64, address: u64) -> record::Local {
        record::Local { program, address, bytes: 64, layout, kind: kind as u32, cores: 0 }
    }

    fn ranges(ranges: &[CoreRange]) -> Vec<u8> {
        ranges.iter().flatten().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn enlisted(workload: u64, program: u64, start: [u32; 2], end: [u32; 2]) -> record::Enlisted {
        let coordinate = |at: [u32; 2]| [at[0], at[1], 0, 0];
        record::Enlisted {
            workload,
            program,
            id: program,
            dims: 2,
            reserved: 0,
            start: coordinate(start),
            end: coordinate(end),
        }
    }

    fn of_workload(workload: u64) -> record::Run {
        record::Run { workload, program: 0, device: DEVICE, refused: 0 }
    }

    fn alone(program: u64) -> record::Run {
        record::Run { workload: 0, program, device: DEVICE, refused: 0 }
    }

    impl Programs {
        fn runs(&mut self, body: &record::Run) -> Vec<Running> {
            self.run(body, &Arc::from(CHIPS), SQUARE, 1)
        }

        fn only(&self) -> Program {
            let [(_, program)] = &*self.all() else { panic!("{:?}", self.all()) };
            program.clone()
        }
    }

    #[test]
    fn a_part_is_the_chips_between_two_coordinates() {
        let part = |start: [u32; 2], end: [u32; 2]| {
            let body = enlisted(1, 1, start, end);
            Part { dims: 2, start: body.start, end: body.end }.of(&CHIPS, SQUARE)
        };
        assert_eq!(part([0, 0], [1, 1]), CHIPS);
        assert_eq!(part([1, 0], [1, 1]), [6, 7]);
        assert_eq!(part([0, 1], [1, 1]), [5, 7]);
        assert_eq!(part([1, 0], [1, 0]), [6]);
    }

    #[test]
    fn coordinates_that_do_not_fit_stand_for_all_chips() {
        let max = u32::MAX;
        let part = |dims, start, end, shape| Part { dims, start, end }.of(&CHIPS, shape);
        assert_eq!(part(0, [0; 4], [0; 4], SQUARE), CHIPS);
        assert_eq!(part(1, [0; 4], [1; 4], SQUARE), CHIPS);
        assert_eq!(part(2, [0; 4], [0; 4], Shape::default()), CHIPS);
        assert_eq!(part(2, [2, 0, 0, 0], [2, 1, 0, 0], SQUARE), CHIPS, "beyond the last row");
        assert_eq!(part(2, [1, 1, 0, 0], [0, 0, 0, 0], SQUARE), CHIPS, "the last before the first");
        assert_eq!(part(2, [0; 4], [max; 4], SQUARE), CHIPS);
        let steep = Shape { dims: 4, strides: [max; 4] };
        assert_eq!(part(4, [max; 4], [max; 4], steep), CHIPS);
        assert!(Part { dims: 2, start: [0; 4], end: [0; 4] }.of(&[], SQUARE).is_empty());
    }

    #[test]
    fn a_later_layout_takes_the_place_of_an_earlier_one_of_its_kind() {
        let mut programs = Programs::default();
        for (kind, layout, address) in [
            (LocalKind::Circular, 1, 1000),
            (LocalKind::Circular, 1, 5000),
            (LocalKind::Dataflow, 2, 2000),
            (LocalKind::Circular, 3, 1000),
        ] {
            assert!(programs.local(&local(1, kind, layout, address), &ranges(&[[0, 0, 1, 1]])));
        }
        programs.runs(&alone(1));
        let program = programs.only();
        let places: Vec<_> = program.local.iter().map(|one| (one.kind, one.address)).collect();
        let (circular, dataflow) = (BufferKind::CircularBuffer, BufferKind::DataflowBuffer);
        assert_eq!(places, [(dataflow, Some(2000)), (circular, Some(1000))]);
        assert_eq!(program.region_end(), Some(2064));
    }

    #[test]
    fn what_comes_range_by_range_is_one_buffer() {
        for kind in [LocalKind::Dataflow, LocalKind::Scratchpad] {
            let mut programs = Programs::default();
            let body = local(1, kind, 1, 1000);
            for range in [[0, 0, 7, 0], [0, 3, 4, 3], [0, 0, 7, 0]] {
                assert!(programs.local(&body, &ranges(&[range])));
            }
            programs.runs(&alone(1));
            let [one] = &*programs.only().local else { panic!("{programs:?}") };
            assert_eq!((one.cores, one.ranges.len()), (13, 2));
        }
    }

    #[test]
    fn a_view_takes_nothing() {
        let mut programs = Programs::default();
        assert!(programs.local(&local(1, LocalKind::Global, 77, 1 << 20), &ranges(&[[0; 4]])));
        assert!(programs.local(&local(1, LocalKind::Global, 77, 0), &ranges(&[[0; 4]])));
        programs.runs(&alone(1));
        let program = programs.only();
        assert_eq!((program.region_end(), program.local.len()), (None, 1));
        assert_eq!(program.local[0].address, None);
    }

    #[test]
    fn nonsense_is_refused_and_changes_nothing() {
        let mut programs = Programs::default();
        let good = local(1, LocalKind::Circular, 1, 1000);
        let square = ranges(&[[0, 0, 1, 1]]);
        assert!(!programs.local(&record::Local { kind: 4, ..good }, &square));
        assert!(!programs.local(&record::Local { address: u64::MAX, ..good }, &square));
        assert!(!programs.local(&good, &square[..7]));
        assert!(!programs.local(&good, &square[..6]));
        assert!(
            !programs.local(&good, &ranges(&[[0, 0, 1, 1], [3, 0, 2, 0]])),
            "from right to left"
        );
        assert!(!programs.local(&good, &ranges(&[[0, 3, 0, 2]])), "upside down");
        assert!(programs.all().is_empty() && programs.by_address.is_empty());
    }

    #[test]
    fn programs_that_are_the_same_are_one() {
        let mut programs = Programs::default();
        for program in [3, 2, 1] {
            programs.kernel(program, "kernel".to_owned());
            programs.enlist(&enlisted(WORKLOAD + program, program, [0, 0], [0, 1]));
            programs.runs(&of_workload(WORKLOAD + program));
            programs.refused(program);
        }
        assert_eq!(programs.ended(3), [], "the first to end stands for the others");
        assert_eq!(programs.ended(2), [(2, 1)]);
        let program = programs.only();
        assert_eq!((program.objects, program.live, program.runs, program.refused), (3, 1, 3, 3));
        assert_eq!(program.chips.into_iter().collect::<Vec<_>>(), [4, 5]);
        assert_eq!(program.id, Some(1), "the least");
        assert_eq!(programs.left_out, 0);
    }

    #[test]
    fn the_order_of_layouts_makes_no_difference() {
        let mut programs = Programs::default();
        for program in [1, 2] {
            let circular = local(program, LocalKind::Circular, 1, 1000);
            let dataflow = local(program, LocalKind::Dataflow, 2, 2000);
            for body in if program == 1 { [circular, dataflow] } else { [dataflow, circular] } {
                assert!(programs.local(&body, &ranges(&[[0; 4]])));
            }
            programs.runs(&alone(program));
        }
        assert_eq!(programs.only().objects, 2);
    }

    #[test]
    fn of_too_many_different_programs_the_largest_are_kept_and_what_is_needed() {
        let mut programs = Programs::default();
        for program in 1..=100 {
            programs.kernel(program, format!("kernel {program}"));
            let body = local(program, LocalKind::Circular, 1, 1000 * (program % 50));
            assert!(programs.local(&body, &ranges(&[[0; 4]])));
            programs.runs(&alone(program));
            programs.runs(&alone(program));
            if program != 100 {
                programs.ended(program);
            }
        }
        let weight = programs.weight();
        programs.leave_out_ended(10, |number| number == 1);
        let kept: Vec<_> = programs.all().into_iter().flat_map(|(numbers, _)| numbers).collect();
        let of_the_largest = |number: &u64| (45..50).contains(number) || (95..100).contains(number);
        assert!(kept.contains(&1), "it is needed");
        assert!(kept.contains(&100), "it has not ended");
        assert_eq!(kept.iter().filter(|number| of_the_largest(number)).count(), 9);
        assert_eq!((kept.len(), programs.left_out), (11, 89));
        assert_eq!((programs.objects(), programs.ended_count()), (100, 10));
        assert!(programs.weight() < weight / 5, "{} of {weight}", programs.weight());
        // One that was left out comes again, and is another.
        programs.kernel(2, "kernel 2".to_owned());
        programs.runs(&alone(2));
        assert_eq!((programs.ended(2), programs.objects()), (vec![], 101));
    }

    #[test]
    fn traces_that_are_gone_are_left_out_the_smallest_first_and_their_programs_with_them() {
        let mut programs = Programs::default();
        for at in 0..10_000_u64 {
            programs.kernel(1, format!("kernel {}", at % 3));
            programs.begin(DEVICE, at as u32, 0, &CHIPS, 1);
            programs.runs(&alone(1));
            assert!(programs.end(DEVICE, at as u32));
            programs.trace_memory(DEVICE, 1, at % 5000);
            programs.replay(DEVICE, at as u32, 1);
            programs.ended(1);
            if at != 7 {
                programs.release(DEVICE, at as u32, 2);
            }
        }
        let (count, left_out) = (programs.traces().len(), programs.traces_left_out);
        assert!(count <= 2 * MOST_TRACES + 1, "{count}");
        assert_eq!(count as u64 + left_out, 10_000);
        assert!(programs.traces().any(|trace| trace.id == 7), "it is still there");
        assert!([4999, 9999].map(|id| programs.traces().any(|trace| trace.id == id)) == [true; 2]);
        // The one that can be replayed holds its own program.
        assert_eq!((programs.all().len(), programs.programs.len()), (3, 4));
        assert_eq!((programs.objects(), programs.traced.len()), (10_000, 1));
    }

    #[test]
    fn a_program_whose_address_comes_back_is_another() {
        let mut programs = Programs::default();
        for name in ["one", "two"] {
            programs.kernel(1, name.to_owned());
            programs.runs(&alone(1));
            programs.ended(1);
        }
        let names: Vec<_> = programs.all().into_iter().map(|(_, one)| one.kernels).collect();
        assert_eq!(names, [["one"], ["two"]]);
    }

    #[test]
    fn a_trace_runs_its_programs_when_it_is_replayed() {
        let mut programs = Programs::default();
        programs.enlist(&enlisted(WORKLOAD, 1, [1, 0], [1, 1]));
        programs.begin(DEVICE, 9, 0, &CHIPS, 1);
        assert!(programs.runs(&of_workload(WORKLOAD)).is_empty());
        assert!(programs.runs(&of_workload(WORKLOAD)).is_empty());
        assert!(programs.end(DEVICE, 9));
        assert!(programs.all().is_empty(), "it only was recorded");
        // Its program ends, and its replay runs it all the same.
        assert_eq!(programs.ended(1), []);
        let running = programs.replay(DEVICE, 9, 5);
        assert_eq!((&*running[0].chips, running[0].new.len()), (&[6, 7][..], 2));
        assert_eq!(running[0].runs, 2);
        assert_eq!(programs.only().runs, 2);
        programs.release(DEVICE, 9, 6);
        assert!(programs.replay(DEVICE, 9, 7).is_empty());
        let trace = programs.traces().next().unwrap();
        assert_eq!((trace.dispatches, trace.replays, trace.released_ns), (2, 1, Some(6)));
    }

    /// A step of a random story.
    #[derive(Clone, Debug)]
    enum Step {
        Kernel(u64, u8),
        Lay(u64, usize, u64, u64),
        Enlist(u64, u64, u32),
        Run(u64),
        Alone(u64),
        Refused(u64),
        End(u64),
        Begin(u32),
        Ended,
        Replay(u32),
        Release(u32),
        Close,
    }

    fn step() -> impl Strategy<Value = Step> {
        let (program, workload, trace) = (1..5_u64, 101..104_u64, 0..3_u32);
        prop_oneof![
            1 => (program.clone(), 0..3_u8).prop_map(|(program, name)| Step::Kernel(program, name)),
            1 => (program.clone(), 0..4_usize, 1..4_u64, 0..3_u64)
                .prop_map(|(program, kind, layout, place)| Step::Lay(program, kind, layout, place)),
            1 => (program.clone(), workload.clone(), 0..4_u32)
                .prop_map(|(program, workload, chip)| Step::Enlist(program, workload, chip)),
            3 => workload.prop_map(Step::Run),
            1 => program.clone().prop_map(Step::Alone),
            1 => program.clone().prop_map(Step::Refused),
            2 => program.prop_map(Step::End),
            1 => trace.clone().prop_map(Step::Begin),
            1 => Just(Step::Ended),
            2 => trace.clone().prop_map(Step::Replay),
            1 => trace.prop_map(Step::Release),
            1 => Just(Step::Close),
        ]
    }

    proptest! {
        /// However programs come, go and come back at an address: what is listed are all that ran or
        /// were refused, each once, with all of their runs.
        #[test]
        fn nothing_that_ran_is_lost(steps in prop::collection::vec(step(), 0..150)) {
            #[derive(Default)]
            struct Naive { runs: u64, refused: u64, live: bool }
            let mut programs = Programs::default();
            // All programs there ever were, and which is now at an address.
            let mut naive: Vec<Naive> = Vec::new();
            let mut here: HashMap<u64, usize> = HashMap::new();
            let mut members: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
            let mut traces: HashMap<u32, Vec<usize>> = HashMap::new();
            let mut capturing: Option<u32> = None;
            for step in steps {
                let mut at = |naive: &mut Vec<Naive>, program: u64| *here.entry(program).or_insert_with(|| {
                    naive.push(Naive { live: true, ..Naive::default() });
                    naive.len() - 1
                });
                match step {
                    Step::Kernel(program, name) => {
                        at(&mut naive, program);
                        programs.kernel(program, format!("kernel {name}"));
                    }
                    Step::Lay(program, kind, layout, place) => {
                        at(&mut naive, program);
                        let body = local(program, LocalKind::ALL[kind], layout, place * 100);
                        prop_assert!(programs.local(&body, &ranges(&[[0, 0, 1, 1]])));
                    }
                    Step::Enlist(program, workload, chip) => {
                        let number = at(&mut naive, program);
                        members.values_mut().for_each(|all| all.retain(|&one| one != number));
                        members.entry(workload).or_default().push(number);
                        let chip = [chip / 2, chip % 2];
                        programs.enlist(&enlisted(workload, program, chip, chip));
                    }
                    Step::Run(workload) => {
                        let now = members.get(&workload).cloned().unwrap_or_default();
                        match capturing {
                            Some(trace) => traces.entry(trace).or_default().extend(now),
                            None => now.iter().for_each(|&one| naive[one].runs += 1),
                        }
                        programs.runs(&of_workload(workload));
                    }
                    Step::Alone(program) => {
                        let number = at(&mut naive, program);
                        match capturing {
                            Some(trace) => traces.entry(trace).or_default().push(number),
                            None => naive[number].runs += 1,
                        }
                        programs.runs(&alone(program));
                    }
                    Step::Refused(program) => {
                        let number = at(&mut naive, program);
                        naive[number].refused += 1;
                        programs.refused(program);
                    }
                    Step::End(program) => {
                        if let Some(number) = here.remove(&program) {
                            naive[number].live = false;
                            members.values_mut().for_each(|all| all.retain(|&one| one != number));
                        }
                        programs.ended(program);
                    }
                    Step::Begin(trace) => {
                        traces.insert(trace, Vec::new());
                        capturing = Some(trace);
                        programs.begin(DEVICE, trace, 0, &CHIPS, 1);
                    }
                    Step::Ended => {
                        if let Some(trace) = capturing.take() {
                            programs.end(DEVICE, trace);
                        }
                    }
                    Step::Replay(_) | Step::Release(_) if capturing.is_some() => {}
                    Step::Replay(trace) => {
                        let now = traces.get(&trace).cloned().unwrap_or_default();
                        now.iter().for_each(|&one| naive[one].runs += 1);
                        programs.replay(DEVICE, trace, 1);
                    }
                    Step::Release(trace) => {
                        traces.remove(&trace);
                        programs.release(DEVICE, trace, 1);
                    }
                    Step::Close => {
                        (traces, capturing) = (HashMap::new(), None);
                        programs.close(DEVICE);
                    }
                }
                let all = programs.all();
                let sum = |of: fn(&Program) -> u64| all.iter().map(|(_, one)| of(one)).sum::<u64>();
                let known = || naive.iter().filter(|one| one.runs + one.refused != 0);
                prop_assert_eq!(sum(|one| one.runs), known().map(|one| one.runs).sum::<u64>());
                prop_assert_eq!(sum(|one| one.refused), known().map(|one| one.refused).sum::<u64>());
                prop_assert_eq!(sum(|one| one.objects), known().count() as u64);
                prop_assert_eq!(sum(|one| one.live), known().filter(|one| one.live).count() as u64);
            }
        }

        #[test]
        fn no_part_of_a_mesh_panics(
            dims in (0..5_usize, 0..5_usize),
            words in prop::array::uniform12(prop_oneof![0..3_u32, any::<u32>()]),
            count in 0..9_i32,
        ) {
            let four = |at: usize| -> [u32; 4] { std::array::from_fn(|i| words[at + i]) };
            let chips: Vec<_> = (0..count).collect();
            let part = Part { dims: dims.0, start: four(0), end: four(4) };
            let of = part.of(&chips, Shape { dims: dims.1, strides: four(8) });
            prop_assert!(of.iter().all(|chip| chips.contains(chip)));
            prop_assert_eq!(of.is_empty(), chips.is_empty());
        }
    }
}
