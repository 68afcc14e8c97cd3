//! The hooks of programs and traces: what a program lays out in L1, when it is dispatched, and what
//! memory is for.
//!
//! A program's layout is told piece by piece, inside the call that lays it out; which call is under way
//! on this thread stands in [`HERE`].

use std::cell::Cell;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};

use ttalloc_ring::record::{self, LocalKind, MESH_DIMS, Purpose, TraceStep};

use crate::calls;
use crate::elf;
use crate::hooks::{Meanwhile, OnException, describe_device};
use crate::session::Recorder;

/// A layout under way.
#[derive(Clone, Copy)]
struct Layout {
    program: usize,
    number: u64,
    kind: LocalKind,
}

impl Layout {
    fn local(&self, kind: LocalKind, address: usize, bytes: usize) -> record::Local {
        record::Local {
            program: self.program as u64,
            address: address as u64,
            bytes: bytes as u64,
            layout: self.number,
            kind: kind as u32,
            cores: 0,
        }
    }
}

/// What this thread is about.
struct Here {
    layout: Cell<Option<Layout>>,
    /// The first device that the layout under way was told for; 0 before.
    first_chip: Cell<usize>,
    /// The mesh that the workload is for whose dispatch is under way; 0 before that is known.
    mesh: Cell<usize>,
    purpose: Cell<Purpose>,
    /// Whether a function is under way that may call another of the same purpose.
    nested: Cell<bool>,
}

thread_local! {
    static HERE: Here = const {
        Here {
            layout: Cell::new(None),
            first_chip: Cell::new(0),
            mesh: Cell::new(0),
            purpose: Cell::new(Purpose::Data),
            nested: Cell::new(false),
        }
    };
}

/// The number of the next layout.
static LAYOUTS: AtomicU64 = AtomicU64::new(1);

/// What this thread allocates for at the moment.
pub fn purpose() -> Purpose {
    HERE.with(|here| here.purpose.get())
}

/// The part of a CircularBufferAllocator or vector of CoreRange that is read: two `xy_pair`s of words.
type CoreRange = [usize; 4];

/// The most ranges of cores that a record has room for.
const MOST_RANGES: usize = 256;

pub unsafe fn add_kernel(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    program: usize,
    kernel: usize,
    _core_type: usize,
) -> usize {
    let result = forward();
    if let Some(recorder) = recorder {
        // SAFETY: a reference to a shared_ptr, which begins with the pointer to its object.
        let kernel = unsafe { elf::read::<usize>(kernel) };
        let body = record::Kernel { program: program as u64 };
        // SAFETY: the program has just taken the kernel, which is alive.
        unsafe {
            calls::with_kernel_name(recorder.runtime(), kernel, |name| {
                recorder.write_with_tail(&body, &name[..name.len().min(256)]);
            });
        }
    }
    result
}

fn lay_out(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    program: usize,
    kind: LocalKind,
) -> usize {
    if recorder.is_none() {
        return forward();
    }
    let number = LAYOUTS.fetch_add(1, Ordering::Relaxed);
    HERE.with(|here| {
        let _layout = Meanwhile::set(&here.layout, Some(Layout { program, number, kind }));
        let _first_chip = Meanwhile::set(&here.first_chip, 0);
        forward()
    })
}

pub unsafe fn lay_out_circular(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    program: usize,
    _device: usize,
) -> usize {
    lay_out(recorder, forward, program, LocalKind::Circular)
}

pub unsafe fn lay_out_dataflow(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    program: usize,
    _device: usize,
) -> usize {
    lay_out(recorder, forward, program, LocalKind::Dataflow)
}

pub unsafe fn lay_out_scratchpads(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    program: usize,
    _device: usize,
) -> usize {
    lay_out(recorder, forward, program, LocalKind::Scratchpad)
}

#[expect(clippy::too_many_arguments, reason = "the C++ function has as many")]
pub unsafe fn circular_buffer(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    _tracker: usize,
    cores: usize,
    address: usize,
    bytes: usize,
    global: usize,
    device: usize,
) -> usize {
    // A bool fills the lowest byte alone. What lies over a buffer is told as the program gets it.
    let layout = HERE.with(|here| here.layout.get()).filter(|_| global as u8 == 0);
    if let (Some(recorder), Some(layout)) = (recorder, layout) {
        // It comes for each chip of the mesh, with the same place.
        let of_first = HERE.with(|here| {
            let first = here.first_chip.get();
            here.first_chip.set(if first == 0 { device } else { first });
            first == 0 || first == device
        });
        if of_first {
            let body = layout.local(layout.kind, address, bytes);
            // SAFETY: a reference to a live CoreRangeSet.
            unsafe { write_local(&recorder, body, cores) };
        }
    }
    forward()
}

pub unsafe fn add_circular_buffer(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    program: usize,
    circular: usize,
) -> usize {
    if let Some(recorder) = recorder {
        // SAFETY: a reference to a shared_ptr, which begins with the pointer to its object.
        let circular = unsafe { elf::read::<usize>(circular) };
        // SAFETY: a live CircularBufferImpl.
        let view = unsafe { elf::read::<CircularBuffer>(circular) };
        // Its id is its own address: if not, the class has changed.
        if view.id == circular && view.buffer != 0 {
            let layout = Layout { program, number: circular as u64, kind: LocalKind::Global };
            let address = if view.has_address as u8 != 0 { view.address } else { 0 };
            let body = layout.local(LocalKind::Global, address as usize, view.bytes as usize);
            // SAFETY: the CoreRangeSet is the object's second member.
            unsafe { write_local(&recorder, body, circular + size_of::<usize>()) };
        }
    }
    forward()
}

/// What a CircularBufferImpl begins with.
#[derive(Clone, Copy)]
#[repr(C)]
struct CircularBuffer {
    id: usize,
    _cores: [usize; 3],
    /// The buffer that it lies over, or 0.
    buffer: usize,
    bytes: u32,
    /// An `optional<uint32_t>`.
    address: u32,
    has_address: u32,
}

/// Tells of a local buffer on a set of cores.
///
/// # Safety
/// `cores` must point to a live CoreRangeSet.
unsafe fn write_local(recorder: &Recorder, mut body: record::Local, cores: usize) {
    let runtime = recorder.runtime();
    if calls::core_count::exists(runtime) {
        // SAFETY: as the caller promises.
        body.cores = unsafe { calls::core_count(runtime, cores) } as u32;
    }
    let ranges: &[CoreRange] = if calls::core_ranges::exists(runtime) {
        // SAFETY: as the caller promises.
        let vector = unsafe { calls::core_ranges(runtime, cores) };
        // SAFETY: the result refers to a vector of CoreRange, which is two pairs of words.
        unsafe { elements(vector) }
    } else {
        &[]
    };
    write_ranges(recorder, &body, ranges);
}

/// The elements of a vector, which begins with their start and end.
///
/// # Safety
/// `vector` must point to a live one, whose elements are laid out as `T` is.
pub unsafe fn elements<'a, T>(vector: usize) -> &'a [T] {
    // SAFETY: as the caller promises.
    let [start, end] = unsafe { elf::read::<[usize; 2]>(vector) };
    let bytes = end.saturating_sub(start);
    if start == 0 || !bytes.is_multiple_of(size_of::<T>()) {
        return &[];
    }
    // SAFETY: as the caller promises.
    unsafe { std::slice::from_raw_parts(start as *const T, bytes / size_of::<T>()) }
}

fn write_ranges(recorder: &Recorder, body: &record::Local, ranges: &[CoreRange]) {
    let mut tail = [[0_u16; 4]; MOST_RANGES];
    let ranges = &ranges[..ranges.len().min(MOST_RANGES)];
    for (to, from) in tail.iter_mut().zip(ranges) {
        *to = from.map(|word| word.min(u16::MAX.into()) as u16);
    }
    recorder.write_with_tail(body, bytemuck::cast_slice(&tail[..ranges.len()]));
}

pub unsafe fn mark_address(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    range: usize,
    address: usize,
    bytes: usize,
    _base: usize,
) -> usize {
    let layout = HERE.with(|here| here.layout.get());
    // A circular buffer is told by `circular_buffer`, with all its cores at once.
    let layout = layout.filter(|layout| layout.kind != LocalKind::Circular);
    if let (Some(recorder), Some(layout)) = (recorder, layout) {
        // SAFETY: a live CircularBufferAllocator, which begins with its range.
        let range = unsafe { elf::read::<CoreRange>(range) };
        write_ranges(&recorder, &layout.local(layout.kind, address, bytes), &[range]);
    }
    forward()
}

pub unsafe fn validate_region(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    program: usize,
    device: usize,
) -> usize {
    let Some(recorder) = recorder else { return forward() };
    // SAFETY: the device is alive, and open: the program is to run on it.
    unsafe { describe_device(&recorder, device) };
    let record =
        record::Run { workload: 0, program: program as u64, device: device as u64, refused: 1 };
    let refused = OnException { recorder, record };
    let result = forward();
    mem::forget(refused);
    result
}

pub unsafe fn enlist(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    workload: usize,
    range: usize,
    program: usize,
) -> usize {
    let Some(recorder) = recorder else { return forward() };
    let runtime = recorder.runtime();
    // SAFETY: a Program, which begins with the shared_ptr to its implementation; it is moved from below.
    let program = unsafe { elf::read::<usize>(program) };
    let mut body = record::Enlisted {
        workload: workload as u64,
        program: program as u64,
        id: u64::MAX,
        dims: 0,
        reserved: 0,
        start: [0; MESH_DIMS],
        end: [0; MESH_DIMS],
    };
    if program != 0 && calls::program_id::exists(runtime) {
        // SAFETY: a live ProgramImpl.
        body.id = unsafe { calls::program_id(runtime, program) } as u64;
    }
    // SAFETY: a reference to a live MeshCoordinateRange.
    if let Some((dims, start, end)) = unsafe { calls::coordinates(runtime, range) } {
        (body.dims, body.start, body.end) = (dims, start, end);
    }
    let result = forward();
    if program != 0 {
        recorder.write(&body);
    }
    result
}

pub unsafe fn enqueue(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    _queue: usize,
    workload: usize,
    _blocking: usize,
) -> usize {
    let Some(recorder) = recorder else { return forward() };
    // SAFETY: a MeshWorkload, which begins with the pointer to its implementation.
    let workload = unsafe { elf::read::<usize>(workload) };
    HERE.with(|here| {
        let before = Meanwhile::set(&here.mesh, 0);
        let result = forward();
        let mesh = here.mesh.get();
        drop(before);
        if mesh != 0 {
            // SAFETY: the mesh that the workload was just compiled for, alive and open.
            unsafe { describe_device(&recorder, mesh) };
        }
        // Without a mesh the launcher counts a dispatch that it can't assign.
        let (workload, device) = (workload as u64, mesh as u64);
        recorder.write(&record::Run { workload, program: 0, device, refused: 0 });
        result
    })
}

pub unsafe fn compile(
    _recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    _workload: usize,
    mesh: usize,
) -> usize {
    HERE.with(|here| here.mesh.set(mesh));
    forward()
}

pub unsafe fn launch(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    device: usize,
    program: usize,
    _wait: usize,
    _slow: usize,
) -> usize {
    let is_inner = HERE.with(|here| here.nested.get());
    let Some(recorder) = recorder.filter(|_| !is_inner) else { return forward() };
    let result = HERE.with(|here| {
        let _nested = Meanwhile::set(&here.nested, true);
        forward()
    });
    // SAFETY: a Program, which begins with the shared_ptr to its implementation.
    let program = unsafe { elf::read::<usize>(program) } as u64;
    // SAFETY: the device is alive, and open: the program was launched on it.
    unsafe { describe_device(&recorder, device) };
    recorder.write(&record::Run { workload: 0, program, device: device as u64, refused: 0 });
    result
}

pub unsafe fn program_end(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    program: usize,
) -> usize {
    if let Some(recorder) = recorder {
        recorder.write(&record::ProgramEnd { program: program as u64 });
    }
    forward()
}

/// Makes the call, inside which memory is allocated for `purpose`.
fn allocating(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    purpose: Purpose,
) -> usize {
    if recorder.is_none() {
        return forward();
    }
    HERE.with(|here| {
        let _purpose = Meanwhile::set(&here.purpose, purpose);
        forward()
    })
}

pub unsafe fn load_binaries(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    _workload: usize,
    _queue: usize,
) -> usize {
    allocating(recorder, forward, Purpose::Binaries)
}

#[expect(clippy::too_many_arguments, reason = "the C++ function has as many")]
pub unsafe fn global_semaphore(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    _object: usize,
    _device: usize,
    _cores: usize,
    _initial: usize,
    _buffer_type: usize,
    _address: usize,
) -> usize {
    allocating(recorder, forward, Purpose::GlobalSemaphore)
}

#[expect(clippy::too_many_arguments, reason = "the C++ function has as many")]
pub unsafe fn global_circular_buffer(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    _object: usize,
    _device: usize,
    _mapping: usize,
    _bytes: usize,
    _buffer_type: usize,
    _more: usize,
) -> usize {
    allocating(recorder, forward, Purpose::GlobalCircularBuffer)
}

/// A function of a trace, whose id `id` tells from the call's result, before or after it by the step. A
/// function that is called by another of these tells nothing.
fn trace(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    device: usize,
    step: TraceStep,
    id: impl FnOnce(Option<usize>) -> u32,
) -> usize {
    let is_inner = HERE.with(|here| here.nested.get());
    let Some(recorder) = recorder.filter(|_| !is_inner) else { return forward() };
    // SAFETY: the mesh is alive, and open.
    unsafe { describe_device(&recorder, device) };
    let write = |trace| {
        recorder.write(&record::Trace { device: device as u64, trace, step: step as u32 });
    };
    let call = || {
        HERE.with(|here| {
            let _nested = Meanwhile::set(&here.nested, true);
            let _purpose = Meanwhile::set(&here.purpose, Purpose::Trace);
            forward()
        })
    };
    // A capture is over even if making the trace of it fails, as it does if that is too large.
    if matches!(step, TraceStep::End | TraceStep::Release) {
        write(id(None));
        return call();
    }
    let result = call();
    write(id(Some(result)));
    result
}

/// A MeshTraceId behind a reference.
fn trace_id(reference: usize) -> impl FnOnce(Option<usize>) -> u32 {
    // SAFETY: the call's argument, a reference to a MeshTraceId, which is an uint32_t.
    move |_| unsafe { elf::read::<u32>(reference) }
}

pub unsafe fn begin_new_trace(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    device: usize,
    _queue: usize,
) -> usize {
    trace(recorder, forward, device, TraceStep::Begin, |result| result.unwrap_or(0) as u32)
}

pub unsafe fn begin_trace(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    device: usize,
    _queue: usize,
    id: usize,
) -> usize {
    trace(recorder, forward, device, TraceStep::Begin, trace_id(id))
}

pub unsafe fn end_trace(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    device: usize,
    _queue: usize,
    id: usize,
) -> usize {
    trace(recorder, forward, device, TraceStep::End, trace_id(id))
}

pub unsafe fn replay_trace(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    device: usize,
    _queue: usize,
    id: usize,
    _blocking: usize,
) -> usize {
    trace(recorder, forward, device, TraceStep::Replay, trace_id(id))
}

pub unsafe fn release_trace(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    device: usize,
    id: usize,
) -> usize {
    trace(recorder, forward, device, TraceStep::Release, trace_id(id))
}
