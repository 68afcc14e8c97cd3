//! The runtime's own functions, as far as ttalloc calls them to learn a fact.
//!
//! Each is a function of the catalogue's name, arguments and meaning, that calls whichever symbol has
//! that role in the runtime's era. They may throw where tt-metal says so; the exception then goes on to
//! the program, so hooks call only what cannot throw in the state at hand.

use std::mem;

use ttalloc_ring::record::MESH_DIMS;
use ttalloc_symbols::{catalogue, index_of};

use crate::elf;
use crate::runtime::{Runtime, VTABLE_HEAD};

macro_rules! lookup {
    ($role:ident at [$($name:literal)+]) => {
        /// The address of what has this role.
        #[allow(dead_code, reason = "the runtime reads some of them as it is found")]
        pub fn $role(runtime: &Runtime) -> usize {
            address_of(runtime, &[$(const { index_of($name) }),+])
        }
    };
    ($role:ident ($($argument:ident: usize),+) [$($name:literal)+]) => {
        /// Calls the function of this role; 0 if the runtime has none.
        ///
        /// # Safety
        /// The arguments must be what the catalogue's C++ signature asks for, alive.
        #[inline]
        pub unsafe fn $role(runtime: &Runtime, $($argument: usize),+) -> usize {
            let address = address_of(runtime, &[$(const { index_of($name) }),+]);
            if address == 0 {
                return 0;
            }
            // SAFETY: the address of a function with this signature, by the catalogue.
            let function = unsafe {
                mem::transmute::<usize, unsafe extern "C-unwind" fn($(lookup!(@word $argument)),+) -> usize>(address)
            };
            // SAFETY: as the caller promises.
            unsafe { function($($argument),+) }
        }

        /// Whether there is a function of this role.
        pub mod $role {
            /// Whether the runtime has it.
            #[allow(dead_code, reason = "of most roles a known runtime has one")]
            #[inline]
            pub fn exists(runtime: &crate::runtime::Runtime) -> bool {
                super::address_of(runtime, &[$(const { ttalloc_symbols::index_of($name) }),+]) != 0
            }
        }
    };
    (@word $argument:ident) => { usize };
}

macro_rules! lookups {
    (
        hooks { $($hooks:tt)+ }
        lookups { $($role:ident: $need:ident $arguments:tt = { $([$($era:ident)+] $name:literal;)+ })+ }
    ) => {
        $(lookup!($role $arguments [$($name)+]);)+
    };
}
catalogue!(lookups);

/// The address of the one of these symbols that the runtime uses; 0 if it has none.
#[inline]
fn address_of(runtime: &Runtime, indices: &[usize]) -> usize {
    let index = indices.iter().find(|&&index| runtime.uses(index));
    index.map_or(0, |&index| runtime.addresses[index])
}

/// What kind of `IDevice` an object is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    Mesh,
    Chip,
}

/// The kind of the object at `device`; None if it is neither.
///
/// # Safety
/// `device` must be null or point to a live `IDevice`.
pub unsafe fn device_kind(runtime: &Runtime, device: usize) -> Option<DeviceKind> {
    if device == 0 {
        return None;
    }
    // SAFETY: an IDevice begins with the pointer to its class's virtual table.
    match unsafe { elf::read::<usize>(device) }.wrapping_sub(VTABLE_HEAD) {
        table if table == mesh_vtable(runtime) => Some(DeviceKind::Mesh),
        table if table == device_vtable(runtime) => Some(DeviceKind::Chip),
        _ => None,
    }
}

/// `IDevice::id()` and `IDevice::arch()` of a device of either kind; None and 0 where the runtime
/// doesn't export MeshDevice's, by which they are found.
///
/// # Safety
/// `device` must point to a live object of class MeshDevice or Device.
pub unsafe fn id_and_arch(runtime: &Runtime, device: usize) -> (Option<i32>, u32) {
    let call = |slot: usize| {
        // SAFETY: an IDevice begins with a pointer to its functions.
        let table = unsafe { elf::read::<usize>(device) };
        // SAFETY: MeshDevice has the function in this slot of its table, and since that overrides one
        // of IDevice's, so has every IDevice.
        let function = unsafe { elf::read::<usize>(table + slot) };
        // SAFETY: both functions take the object and return an integer.
        let function = unsafe {
            mem::transmute::<usize, unsafe extern "C-unwind" fn(usize) -> usize>(function)
        };
        // SAFETY: the object is alive, as the caller promises.
        unsafe { function(device) }
    };
    (runtime.id_slot.map(|slot| call(slot) as i32), runtime.arch_slot.map_or(0, call) as u32)
}

/// The name of a kernel, given to `then`.
///
/// # Safety
/// `kernel` must point to a live Kernel.
pub unsafe fn with_kernel_name(runtime: &Runtime, kernel: usize, then: impl FnOnce(&[u8])) {
    if !kernel_name::exists(runtime) {
        return then(b"");
    }
    // A std::string of libstdc++: the text, its length, and its capacity or the text itself.
    let mut string = [0_usize; 4];
    let result = (&raw mut string) as usize;
    // SAFETY: room for the string that is returned by value, and the kernel is alive.
    unsafe { kernel_name(runtime, result, kernel) };
    let [text, length, capacity, _] = string;
    // SAFETY: the string's text, which we own until it is deleted below.
    then(unsafe { std::slice::from_raw_parts(text as *const u8, length) });
    if text != result + 2 * size_of::<usize>() {
        // SAFETY: memory from the matching operator new, which nobody else has.
        unsafe { operator_delete(runtime, text, capacity + 1) };
    }
}

/// The number of dimensions, the first and the last coordinate of a MeshCoordinateRange, where they can
/// be told and there are few.
///
/// # Safety
/// `range` must point to a live MeshCoordinateRange.
pub unsafe fn coordinates(
    runtime: &Runtime,
    range: usize,
) -> Option<(u32, [u32; MESH_DIMS], [u32; MESH_DIMS])> {
    let all = range_dims::exists(runtime)
        && range_start::exists(runtime)
        && range_end::exists(runtime)
        && coordinate::exists(runtime);
    if !all {
        return None;
    }
    // SAFETY: as the caller promises.
    let dims = unsafe { range_dims(runtime, range) };
    if dims > MESH_DIMS {
        return None;
    }
    let read = |point: usize| {
        let mut words = [0; MESH_DIMS];
        for (dimension, word) in words.iter_mut().enumerate().take(dims) {
            // SAFETY: a MeshCoordinate of the range, which has as many dimensions.
            *word = unsafe { coordinate(runtime, point, dimension) } as u32;
        }
        words
    };
    // SAFETY: as the caller promises; the results refer to members of the range.
    let start = unsafe { range_start(runtime, range) };
    // SAFETY: as above.
    let end = unsafe { range_end(runtime, range) };
    Some((dims as u32, read(start), read(end)))
}

/// The number of dimensions of a mesh, and how many chips a step in each is; none where they can't be
/// told.
///
/// # Safety
/// `mesh` must point to a live, open MeshDevice.
pub unsafe fn shape(runtime: &Runtime, mesh: usize) -> (u32, [u32; MESH_DIMS]) {
    let mut strides = [0; MESH_DIMS];
    let all =
        mesh_shape::exists(runtime) && shape_dims::exists(runtime) && shape_stride::exists(runtime);
    if !all {
        return (0, strides);
    }
    // SAFETY: as the caller promises; the result refers to a MeshShape of the mesh.
    let shape = unsafe { mesh_shape(runtime, mesh) };
    // SAFETY: a live MeshShape.
    let dims = unsafe { shape_dims(runtime, shape) };
    if dims > MESH_DIMS {
        return (0, strides);
    }
    for (dimension, stride) in strides.iter_mut().enumerate().take(dims) {
        // SAFETY: a live MeshShape of as many dimensions.
        *stride = unsafe { shape_stride(runtime, shape, dimension) } as u32;
    }
    (dims as u32, strides)
}

/// The ids of a mesh's chips, given to `then` as bytes in the machine's order, which is little-endian.
///
/// # Safety
/// `mesh` must point to a live, open MeshDevice.
pub unsafe fn with_chips(runtime: &Runtime, mesh: usize, then: impl FnOnce(&[u8])) {
    // A std::vector of libstdc++: begin, end, end of the memory.
    let mut vector = [0_usize; 3];
    // SAFETY: room for the vector that is returned by value, and the mesh is open.
    unsafe { mesh_chips(runtime, (&raw mut vector) as usize, mesh) };
    let [begin, end, end_of_memory] = vector;
    if begin == 0 {
        return;
    }
    // SAFETY: the vector's elements, which we own until they are deleted below.
    then(unsafe { std::slice::from_raw_parts(begin as *const u8, end.saturating_sub(begin)) });
    // SAFETY: the vector's memory, and nobody else has it.
    unsafe { operator_delete(runtime, begin, end_of_memory - begin) };
}

/// Gives the runtime back some memory of `bytes` bytes; leaves it be if it isn't known how.
///
/// # Safety
/// The memory must come from the runtime's `operator new`, and nobody may use it any more.
pub unsafe fn operator_delete(runtime: &Runtime, memory: usize, bytes: usize) {
    if runtime.operator_delete == 0 {
        return;
    }
    // SAFETY: `operator delete(void*, size_t)`, or the one without a size, which ignores the second
    // register.
    let delete = unsafe {
        mem::transmute::<usize, unsafe extern "C" fn(usize, usize)>(runtime.operator_delete)
    };
    // SAFETY: as the caller promises.
    unsafe { delete(memory, bytes) };
}
