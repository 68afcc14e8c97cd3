//! The hooks: what is written down at each call, and the definitions that the catalogue asks for.
//!
//! A hook is a function of the catalogue's role. It gets a recorder (None when nothing is to be
//! recorded), a closure that makes the real call, and the call's arguments. An exception that leaves
//! the real call unwinds through the hook, which keeps nothing that isn't undone on the way.

use std::cell::Cell;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};

use ttalloc_ring::record::{self, Body, MESH_DIMS, TYPES};
use ttalloc_symbols::{catalogue, index_of};

use crate::calls::{self, DeviceKind};
use crate::elf;
use crate::inline::{self, Entry};
use crate::programs::*;
use crate::reconcile::{self, OF_CHIP, Operation, TYPES_WITH_BANKS, WHOLE};
use crate::runtime;
use crate::session::Recorder;

/// `std::span<uint32_t const>`, passed by value in two words.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Span {
    start: usize,
    length: usize,
}

/// The hooks of the symbol at an index of the catalogue.
struct Hooked<const INDEX: usize>;

/// The hook that calls come to by a patch of the function itself.
trait Patched {
    const ENTRY: Entry;
}

macro_rules! hook {
    ($role:ident ($($argument:ident: $type:ty),+) $name:literal) => {
        const _: () = {
            const INDEX: usize = index_of($name);

            hook!(
                $role ($($argument: $type),+) $name
                hook runtime::original, Recorder::for_call, #[unsafe(export_name = $name)]
            );
            hook!(
                $role ($($argument: $type),+) $name
                patched inline::original, Recorder::for_patched,
            );

            impl Patched for Hooked<INDEX> {
                const ENTRY: Entry = Entry {
                    index: INDEX,
                    guarded: inline::Guarded {
                        hook: patched as *const std::ffi::c_void,
                        stack_words: inline::stack_words(&[$(mem::size_of::<$type>() / 8),+]),
                    },
                    words: 0 $(+ mem::size_of::<$type>() / 8)+,
                };
            }
        };
    };
    (
        $role:ident ($($argument:ident: $type:ty),+) $name:literal
        $hook:ident $original:path, $recorder:path, $(#[$export:meta])*
    ) => {
        $(#[$export])*
        unsafe extern "C-unwind" fn $hook($($argument: $type),+) -> usize {
            let original = $original(INDEX);
            // SAFETY: the address of the function that this one stands in for, which has the same
            // signature by the catalogue.
            let original = unsafe {
                mem::transmute::<usize, unsafe extern "C-unwind" fn($($type),+) -> usize>(original)
            };
            // SAFETY: the caller's own arguments.
            let forward = || unsafe { original($($argument),+) };
            // SAFETY: the caller is tt-metal or its user, whose arguments fit the C++ signature.
            unsafe { $role($recorder(INDEX), forward, $($argument),+) }
        }
    };
}

macro_rules! hooks_of_role {
    ($role:ident $arguments:tt [$($name:literal)+]) => {
        $(hook!($role $arguments $name);)+
    };
}

macro_rules! hooks {
    (
        hooks { $($role:ident $arguments:tt = { $([$($era:ident)+] $name:literal;)+ })+ }
        lookups { $($lookups:tt)+ }
    ) => {
        $(hooks_of_role!($role $arguments [$($name)+]);)+

        /// Every hook as the inline engine needs it.
        pub static ENTRIES: &[Entry] =
            &[$($(<Hooked<{ index_of($name) }> as Patched>::ENTRY,)+)+];
    };
}
catalogue!(hooks);

/// What `Buffer::create` was asked for. Before era C only its arguments tell.
#[derive(Clone, Copy)]
struct Wanted {
    device: usize,
    bytes: usize,
    page_bytes: usize,
    buffer_type: u8,
}

/// A place where this thread knows memory to be taken.
#[derive(Clone, Copy)]
struct Place {
    address: usize,
    buffer_type: u8,
    /// The device on which a buffer was made there at a given address; 0 if it was allocated.
    device: usize,
}

const NOWHERE: Place = Place { address: usize::MAX, buffer_type: u8::MAX, device: 0 };

/// What this thread is about.
struct Here {
    /// The innermost `Buffer::create` under way.
    creating: Cell<Option<Wanted>>,
    /// Whether a view is being made.
    viewing: Cell<bool>,
    /// The latest allocation, or buffer at a given address that was told.
    latest: Cell<Place>,
}

thread_local! {
    static HERE: Here = const {
        Here { creating: Cell::new(None), viewing: Cell::new(false), latest: Cell::new(NOWHERE) }
    };
}

/// Sets a cell until dropped, also by an exception.
pub struct Meanwhile<'a, T: Copy> {
    cell: &'a Cell<T>,
    before: T,
}

impl<T: Copy> Meanwhile<'_, T> {
    pub fn set(cell: &Cell<T>, value: T) -> Meanwhile<'_, T> {
        Meanwhile { cell, before: cell.replace(value) }
    }
}

impl<T: Copy> Drop for Meanwhile<'_, T> {
    fn drop(&mut self) {
        self.cell.set(self.before);
    }
}

/// What was allocated or placed last on this thread says nothing any more.
fn forget_latest() {
    HERE.with(|here| here.latest.set(NOWHERE));
}

/// Writes a record if it is dropped, as it is when an exception passes.
pub struct OnException<B: Body> {
    pub recorder: Recorder,
    pub record: B,
}

impl<B: Body> Drop for OnException<B> {
    fn drop(&mut self) {
        self.recorder.write(&self.record);
    }
}

/// An allocation that is being tried. If it is dropped, as by an exception, it has failed.
struct Attempt {
    recorder: Recorder,
    failed: record::Failed,
    operation: Option<Operation<'static>>,
}

impl Attempt {
    /// It went well. The operation is over when its record is written.
    fn succeed(mut self) -> Option<Operation<'static>> {
        let operation = self.operation.take();
        mem::forget(self);
        operation
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.recorder.write(&self.failed);
        drop(self.operation.take());
        let allocator = self.failed.allocator as usize;
        // SAFETY: the allocator is alive, being the argument of a call that is only now being left; the
        // exception that leaves it has unlocked it.
        unsafe { reconcile::at_failure(&self.recorder, allocator, &self.failed) };
    }
}

unsafe fn allocate(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    allocator: usize,
    buffer: usize,
) -> usize {
    let Some(recorder) = recorder else { return forward() };
    // SAFETY: the allocator and the buffer are alive, being the call's arguments, and neither is
    // locked by this thread yet.
    let wanted = unsafe { wanted(&recorder, buffer) };
    // SAFETY: as above; the buffer's device is alive while the buffer is being allocated on it.
    unsafe { describe_allocator(&recorder, allocator, wanted.device) };
    let failed = record::Failed {
        allocator: allocator as u64,
        bytes: wanted.bytes as u64,
        page_bytes: wanted.page_bytes as u64,
        buffer_type: wanted.buffer_type.into(),
        reserved: 0,
    };
    let operation = recorder.watch().operation(allocator);
    let attempt = Attempt { recorder, failed, operation };
    let address = forward();
    let _operation = attempt.succeed();
    // SAFETY: the buffer is alive, and the allocator has given up its lock.
    let bytes_per_bank = unsafe { calls::bytes_per_bank(recorder.runtime(), buffer) };
    recorder.write(&record::Allocate {
        allocator: allocator as u64,
        buffer: buffer as u64,
        address: address as u64,
        bytes: failed.bytes,
        bytes_per_bank: bytes_per_bank as u64,
        page_bytes: failed.page_bytes,
        buffer_type: failed.buffer_type,
        purpose: purpose() as u16,
        // SAFETY: the buffer is alive.
        cores: unsafe { cores(&recorder, buffer, wanted.device) },
    });
    let place = Place { address, buffer_type: wanted.buffer_type, device: 0 };
    HERE.with(|here| here.latest.set(place));
    address
}

unsafe fn deallocate(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    allocator: usize,
    buffer: usize,
) -> usize {
    let mut _operation = None;
    if let Some(recorder) = recorder {
        // SAFETY: the buffer is alive and allocated; were it not, this would throw as the real call
        // does, which asks for the address too.
        let address = unsafe { calls::address(recorder.runtime(), buffer) } as u32;
        _operation = recorder.watch().operation(allocator);
        recorder.write(&record::Free {
            allocator: allocator as u64,
            buffer: buffer as u64,
            address: address.into(),
        });
        forget_latest();
    }
    forward()
}

unsafe fn deallocate_all(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    allocator: usize,
) -> usize {
    let mut _operation = None;
    if let Some(recorder) = recorder {
        _operation = recorder.watch().operation(allocator);
        recorder.write(&record::Release { allocator: allocator as u64, ends: 0 });
        forget_latest();
    }
    forward()
}

unsafe fn clear(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    allocator: usize,
) -> usize {
    // SAFETY: the same call in what matters here.
    unsafe { deallocate_all(recorder, forward, allocator) }
}

unsafe fn allocator_end(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    allocator: usize,
) -> usize {
    if let Some(recorder) = recorder {
        recorder.forget(allocator);
        recorder.watch().end(allocator);
        recorder.write(&record::Release { allocator: allocator as u64, ends: 1 });
        forget_latest();
    }
    forward()
}

#[expect(clippy::too_many_arguments, reason = "the C++ function has as many")]
unsafe fn create(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    _result: usize,
    device: usize,
    bytes: usize,
    page_bytes: usize,
    buffer_type: usize,
    _sharding: usize,
    _bottom_up: usize,
    _sub_device: usize,
) -> usize {
    let wanted = Wanted { device, bytes, page_bytes, buffer_type: buffer_type as u8 };
    if recorder.is_none() {
        return forward();
    }
    HERE.with(|here| {
        let _creating = Meanwhile::set(&here.creating, Some(wanted));
        forward()
    })
}

#[expect(clippy::too_many_arguments, reason = "the C++ function has as many")]
unsafe fn create_at_address(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    _result: usize,
    device: usize,
    address: usize,
    bytes: usize,
    _page_bytes: usize,
    buffer_type: usize,
    _sharding: usize,
    _bottom_up: usize,
    _sub_device: usize,
) -> usize {
    let result = forward();
    let Some(recorder) = recorder else { return result };
    let place = Place { address, buffer_type: buffer_type as u8, device };
    if HERE.with(|here| is_known(here, place)) {
        return result;
    }
    // SAFETY: the device is alive: a buffer was just made on it.
    unsafe { describe_device(&recorder, device) };
    recorder.write(&record::Placement {
        device: device as u64,
        address: address as u64,
        bytes: bytes as u64,
        buffer_type: place.buffer_type.into(),
        reserved: 0,
    });
    result
}

/// Whether there is nothing to tell of a buffer that was made at `place`.
fn is_known(here: &Here, place: Place) -> bool {
    let latest = here.latest.get();
    // The chips' buffers of a mesh's tensor follow its allocation on the same thread and lie in it: the
    // commonest case by far. A mesh's buffer at a given address comes once for each chip too, and is
    // told for the first. Address 0 is no place: it stands for buffers that a graph capture keeps from
    // being allocated.
    let is_latest = (latest.address, latest.buffer_type) == (place.address, place.buffer_type)
        && latest.device != place.device;
    let is_known = is_latest || here.viewing.get() || place.address == 0;
    if !is_known {
        here.latest.set(place);
    }
    is_known
}

unsafe fn view(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    _result: usize,
    _buffer: usize,
    _region: usize,
) -> usize {
    if recorder.is_none() {
        return forward();
    }
    HERE.with(|here| {
        let _viewing = Meanwhile::set(&here.viewing, true);
        forward()
    })
}

#[expect(clippy::too_many_arguments, reason = "the C++ function has as many")]
unsafe fn mesh_open(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    mesh: usize,
    _command_queues: usize,
    _l1_small: usize,
    _trace: usize,
    _worker_l1: usize,
    _bank_remap: Span,
    _minimal: usize,
) -> usize {
    let result = forward();
    // The function returns a bool, which fills the lowest byte alone.
    if let Some(recorder) = recorder.filter(|_| result as u8 != 0) {
        // Whatever was here before is gone, even if its end was not seen.
        recorder.forget(mesh);
        // SAFETY: the mesh is the call's argument and now open.
        unsafe { describe_opened(&recorder, mesh) };
        // SAFETY: as above.
        let allocator = unsafe { allocator_of(&recorder, mesh) };
        if allocator != 0 {
            // It is as new as the mesh, also in a forked process.
            recorder.watch().begin(allocator, mesh, WHOLE);
        }
    }
    result
}

#[expect(clippy::too_many_arguments, reason = "the C++ function has as many")]
unsafe fn mesh_impl_open(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    _implementation: usize,
    mesh: usize,
    command_queues: usize,
    l1_small: usize,
    trace: usize,
    worker_l1: usize,
    bank_remap: Span,
    minimal: usize,
) -> usize {
    // SAFETY: the same call, one level down.
    unsafe {
        mesh_open(
            recorder,
            forward,
            mesh,
            command_queues,
            l1_small,
            trace,
            worker_l1,
            bank_remap,
            minimal,
        )
    }
}

unsafe fn mesh_close(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    mesh: usize,
) -> usize {
    let Some(recorder) = recorder else { return forward() };
    // SAFETY: the mesh is the call's argument. It is open as long as it is known.
    unsafe { reconcile::at_close(&recorder, mesh) };
    recorder.forget(mesh);
    let device = mesh as u64;
    recorder.write(&record::Close { device, failed: 0 });
    let on_exception = OnException { recorder, record: record::Close { device, failed: 1 } };
    let result = forward();
    mem::forget(on_exception);
    result
}

unsafe fn mesh_impl_close(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    _implementation: usize,
    mesh: usize,
) -> usize {
    // SAFETY: the same call, one level down.
    unsafe { mesh_close(recorder, forward, mesh) }
}

unsafe fn device_close(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    device: usize,
) -> usize {
    // SAFETY: the same in what matters here.
    unsafe { mesh_close(recorder, forward, device) }
}

unsafe fn hybrid(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    _allocator: usize,
    _allocators: usize,
) -> usize {
    if let Some(recorder) = recorder {
        recorder.watch().give_core_by_core();
    }
    forward()
}

/// What a buffer is that is about to be allocated.
///
/// # Safety
/// `buffer` must point to a live Buffer.
unsafe fn wanted(recorder: &Recorder, buffer: usize) -> Wanted {
    if let Some(wanted) = HERE.with(|here| here.creating.get()) {
        return wanted;
    }
    let runtime = recorder.runtime();
    // SAFETY: plain accessors of a live buffer.
    let page_bytes = unsafe { calls::page_size(runtime, buffer) };
    if !calls::buffer_type::exists(runtime) {
        // No create under way and no accessor: the launcher counts what has no type.
        return Wanted { device: 0, bytes: 0, page_bytes, buffer_type: u8::MAX };
    }
    // SAFETY: as above.
    let bytes = unsafe { calls::size(runtime, buffer) };
    // SAFETY: as above.
    let buffer_type = unsafe { calls::buffer_type(runtime, buffer) } as u8;
    // SAFETY: as above.
    let device = unsafe { calls::device(runtime, buffer) };
    Wanted { device, bytes, page_bytes, buffer_type }
}

/// On how many cores a buffer lies that has an address of its own on each; 0 for any other.
///
/// # Safety
/// `buffer` must point to a live Buffer, and `device` must be null or point to its live device.
unsafe fn cores(recorder: &Recorder, buffer: usize, device: usize) -> u16 {
    let runtime = recorder.runtime();
    // Only the allocator of a single chip gives such addresses.
    // SAFETY: as the caller promises.
    let is_chip = unsafe { calls::device_kind(runtime, device) } == Some(DeviceKind::Chip);
    if !is_chip || !calls::is_per_core::exists(runtime) || !calls::buffer_cores::exists(runtime) {
        return 0;
    }
    // SAFETY: as the caller promises. A bool fills the lowest byte alone.
    if unsafe { calls::is_per_core(runtime, buffer) } as u8 == 0 {
        return 0;
    }
    // SAFETY: as above. The value is followed by whether there is one.
    let cores = unsafe { calls::buffer_cores(runtime, buffer) } as u64;
    if (cores >> 32) as u8 == 0 { 0 } else { cores as u16 }
}

/// Describes an allocator and its device to the launcher, unless that was done.
///
/// # Safety
/// `allocator` must point to a live allocator that this thread has not locked, and `device` must be
/// null or point to a live, open IDevice.
unsafe fn describe_allocator(recorder: &Recorder, allocator: usize, device: usize) {
    if !recorder.knows(allocator) {
        // SAFETY: as the caller promises.
        unsafe { write_allocator(recorder, allocator, device) };
    }
}

/// Describes an allocator as it is now.
///
/// # Safety
/// As for [`describe_allocator`].
unsafe fn write_allocator(recorder: &Recorder, allocator: usize, device: usize) {
    // SAFETY: as the caller promises.
    unsafe { describe_device(recorder, device) };
    let runtime = recorder.runtime();
    let mut described = record::Allocator {
        allocator: allocator as u64,
        device: device as u64,
        bank_bytes: [0; TYPES],
        banks: [0; TYPES],
        alignment: 0,
        base: [0; 2],
        l1_bytes: 0,
        reserved: 0,
    };
    // DRAM, L1, L1_SMALL and TRACE. The allocator throws when asked for the banks of SYSTEM_MEMORY (2).
    // A word holds the enumeration's value whatever its width.
    for at in TYPES_WITH_BANKS {
        let reference = (&raw const at) as usize;
        // SAFETY: a live allocator and a reference to one of its types.
        described.banks[at] = unsafe { calls::num_banks(runtime, allocator, reference) } as u32;
        // SAFETY: as above.
        described.bank_bytes[at] =
            unsafe { calls::bank_size(runtime, allocator, reference) } as u64;
    }
    // Every free list rounds up to DRAM's alignment, whatever its own type.
    // SAFETY: as above; this one takes the type by value.
    described.alignment = unsafe { calls::alignment(runtime, allocator, 0) } as u32;
    if calls::base_address::exists(runtime) {
        // tt-metal's HalMemType: L1 is 0, DRAM 1.
        for (memory, base) in described.base.iter_mut().enumerate() {
            let reference = (&raw const memory) as usize;
            // SAFETY: a live allocator and a reference to one of its memories.
            *base = unsafe { calls::base_address(runtime, allocator, reference) } as u64;
        }
    }
    // SAFETY: as the caller promises.
    described.l1_bytes = match unsafe { calls::device_kind(runtime, device) } {
        Some(DeviceKind::Mesh) if calls::mesh_l1_bytes::exists(runtime) => {
            // SAFETY: an open mesh.
            unsafe { calls::mesh_l1_bytes(runtime, device) as u32 }
        }
        Some(DeviceKind::Chip) if calls::device_l1_bytes::exists(runtime) => {
            // SAFETY: an open device.
            unsafe { calls::device_l1_bytes(runtime, device) as u32 }
        }
        _ => 0,
    };
    recorder.write(&described);
    recorder.remember(allocator);
    // SAFETY: as the caller promises.
    let is_of_chip = unsafe { calls::device_kind(runtime, device) } == Some(DeviceKind::Chip);
    let whole = if recorder.is_forked() { 0 } else { WHOLE };
    let flags = whole | if is_of_chip { OF_CHIP } else { 0 };
    recorder.watch().begin(allocator, device, flags);
}

/// Describes a device to the launcher, if it is of a known kind and that wasn't done.
///
/// # Safety
/// `device` must be null or point to a live, open IDevice.
pub unsafe fn describe_device(recorder: &Recorder, device: usize) {
    if recorder.knows(device) {
        return;
    }
    let runtime = recorder.runtime();
    // SAFETY: as the caller promises.
    let Some(kind) = (unsafe { calls::device_kind(runtime, device) }) else { return };
    // SAFETY: of a known kind, and alive.
    let (id, arch) = unsafe { calls::id_and_arch(runtime, device) };
    let is_mesh = kind == DeviceKind::Mesh;
    let id = match id {
        Some(id) => id,
        None if is_mesh => -1,
        // A chip without an id can't be named: its memory is counted as unattributed.
        None => return,
    };
    let (dims, strides) = match kind {
        // SAFETY: an open mesh.
        DeviceKind::Mesh => unsafe { calls::shape(runtime, device) },
        DeviceKind::Chip => (0, [0; MESH_DIMS]),
    };
    let described =
        record::Device { device: device as u64, id, arch, is_mesh: is_mesh.into(), dims, strides };
    if is_mesh {
        // SAFETY: an open mesh.
        unsafe {
            calls::with_chips(runtime, device, |chips| recorder.write_with_tail(&described, chips));
        }
    } else {
        recorder.write_with_tail(&described, &id.to_le_bytes());
    }
    recorder.remember(device);
}

/// Describes a device that was opened, or whose allocator may have changed, and that allocator.
///
/// # Safety
/// `device` must be null or point to a live, open IDevice, whose allocator this thread has not locked.
unsafe fn describe_opened(recorder: &Recorder, device: usize) {
    // SAFETY: as the caller promises.
    match unsafe { allocator_of(recorder, device) } {
        // SAFETY: as above.
        0 => unsafe { describe_device(recorder, device) },
        // SAFETY: a live allocator of the device.
        allocator => unsafe { write_allocator(recorder, allocator, device) },
    }
}

/// The allocator of an open device; 0 if that can't be told.
///
/// # Safety
/// `device` must be null or point to a live, open IDevice.
unsafe fn allocator_of(recorder: &Recorder, device: usize) -> usize {
    let runtime = recorder.runtime();
    // SAFETY: as the caller promises.
    let owner = match unsafe { calls::device_kind(runtime, device) } {
        Some(DeviceKind::Mesh) if calls::mesh_allocator::exists(runtime) => {
            // SAFETY: an open mesh; the result refers to a unique_ptr of it.
            unsafe { calls::mesh_allocator(runtime, device) }
        }
        Some(DeviceKind::Chip) if calls::device_allocator::exists(runtime) => {
            // SAFETY: an open device; likewise.
            unsafe { calls::device_allocator(runtime, device) }
        }
        _ => return 0,
    };
    // SAFETY: a unique_ptr with the default deleter is the pointer itself.
    unsafe { elf::read::<usize>(owner) }
}

unsafe fn load_sub_devices(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    device: usize,
    _manager: usize,
) -> usize {
    let result = forward();
    if let Some(recorder) = recorder {
        // SAFETY: the device is the call's own, and open.
        unsafe { describe_opened(&recorder, device) };
    }
    result
}

unsafe fn clear_sub_devices(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    device: usize,
) -> usize {
    // SAFETY: the same in what matters here.
    unsafe { load_sub_devices(recorder, forward, device, 0) }
}

unsafe fn reshape(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    mesh: usize,
    _shape: usize,
) -> usize {
    let result = forward();
    if let Some(recorder) = recorder {
        recorder.forget(mesh);
        // SAFETY: the mesh is the call's own, and open.
        unsafe { describe_device(&recorder, mesh) };
    }
    result
}

unsafe fn override_state(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    allocator: usize,
    state: usize,
) -> usize {
    let Some(recorder) = recorder else { return forward() };
    let runtime = recorder.runtime();
    let _operation = recorder.watch().operation(allocator);
    recorder.write(&record::Release { allocator: allocator as u64, ends: 0 });
    forget_latest();
    let result = forward();
    if !calls::allocated_regions::exists(runtime) || !calls::has_regions::exists(runtime) {
        return result;
    }
    for buffer_type in TYPES_WITH_BANKS {
        // SAFETY: a live AllocatorState and one of tt-metal's types.
        if unsafe { calls::has_regions(runtime, state, buffer_type) } as u8 == 0 {
            continue;
        }
        // SAFETY: as above.
        let vector = unsafe { calls::allocated_regions(runtime, state, buffer_type) };
        // SAFETY: the result refers to a vector of pairs of addresses.
        let regions: &[[u64; 2]] = unsafe { elements(vector) };
        for some in regions.chunks(MOST_REGIONS) {
            let body = record::Regions {
                allocator: allocator as u64,
                buffer_type: buffer_type as u32,
                reserved: 0,
            };
            recorder.write_with_tail(&body, bytemuck::cast_slice(some));
        }
    }
    result
}

/// The most ranges of memory that one record tells of.
const MOST_REGIONS: usize = 256;

/// Whether any buffer was planned in this process.
static HAS_PLANS: AtomicBool = AtomicBool::new(false);

unsafe fn plan(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    _tracker: usize,
    buffer: usize,
) -> usize {
    let result = forward();
    // A bool fills the lowest byte alone.
    if let Some(recorder) = recorder.filter(|_| result as u8 != 0) {
        HAS_PLANS.store(true, Ordering::Relaxed);
        // SAFETY: the buffer is the call's argument, and alive.
        let wanted = unsafe { wanted(&recorder, buffer) };
        // SAFETY: as above, and so is the device that it is made for, whose allocator nobody has asked yet.
        match unsafe { allocator_of(&recorder, wanted.device) } {
            // SAFETY: as above.
            0 => unsafe { describe_device(&recorder, wanted.device) },
            // SAFETY: as above. How many banks it has and what it rounds up to is needed.
            allocator => unsafe { describe_allocator(&recorder, allocator, wanted.device) },
        }
        // SAFETY: as above.
        let bytes_per_bank = unsafe { calls::bytes_per_bank(recorder.runtime(), buffer) };
        recorder.write(&record::Planned {
            device: wanted.device as u64,
            buffer: buffer as u64,
            bytes: wanted.bytes as u64,
            bytes_per_bank: bytes_per_bank as u64,
            buffer_type: wanted.buffer_type.into(),
            reserved: 0,
        });
    }
    result
}

unsafe fn unplan(
    recorder: Option<Recorder>,
    forward: impl FnOnce() -> usize,
    _tracker: usize,
    buffer: usize,
) -> usize {
    if let Some(recorder) = recorder.filter(|_| HAS_PLANS.load(Ordering::Relaxed)) {
        // A planned buffer has address 0, and no other has.
        // SAFETY: the buffer is alive, and counts as allocated.
        if unsafe { calls::address(recorder.runtime(), buffer) } as u32 == 0 {
            recorder.write(&record::Unplanned { buffer: buffer as u64 });
        }
    }
    forward()
}
