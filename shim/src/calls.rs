//! The runtime's own functions, as far as ttalloc calls them to learn a fact.
//!
//! Each is a function of the catalogue's name, arguments and meaning, that calls whichever symbol has
//! that role in the runtime's era. They may throw where tt-metal says so; the exception then goes on to
//! the program, so hooks call only what cannot throw in the state at hand.

use std::mem;

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
        /// Calls the function of this role.
        ///
        /// # Safety
        /// The arguments must be what the catalogue's C++ signature asks for, alive.
        #[inline]
        pub unsafe fn $role(runtime: &Runtime, $($argument: usize),+) -> usize {
            let address = address_of(runtime, &[$(const { index_of($name) }),+]);
            // SAFETY: the address of a function with this signature, by the catalogue; it isn't zero,
            // because a runtime with an era has every required role, and callers check the others.
            let function = unsafe {
                mem::transmute::<usize, unsafe extern "C-unwind" fn($(lookup!(@word $argument)),+) -> usize>(address)
            };
            // SAFETY: as the caller promises.
            unsafe { function($($argument),+) }
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

/// The address of the one of these symbols that the runtime's era uses; 0 if it has none.
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

/// `IDevice::id()` and `IDevice::arch()` of a device of either kind.
///
/// # Safety
/// `device` must point to a live object of class MeshDevice or Device.
pub unsafe fn id_and_arch(runtime: &Runtime, device: usize) -> (i32, u32) {
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
    (call(runtime.id_slot) as i32, call(runtime.arch_slot) as u32)
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
