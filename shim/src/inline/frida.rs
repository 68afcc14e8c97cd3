//! Frida's engine in the place of our own jumps, for those who have its devkit: `replace_fast` is the one
//! of its ways that lets exceptions pass. What may be patched is decided before, as without it.

use frida_gum::interceptor::Interceptor;
use frida_gum::{Gum, NativePointer};
use ttalloc_ring::record::Refusal;

/// Makes calls of the function at `at` go to `entry`; returns the way to the original.
pub fn replace(at: usize, entry: usize) -> Result<usize, Refusal> {
    // Never given up: what it has written stays as long as the process.
    let gum = std::mem::ManuallyDrop::new(Gum::obtain());
    let mut interceptor = Interceptor::obtain(&gum);
    let replaced =
        interceptor.replace_fast(NativePointer(at as *mut _), NativePointer(entry as *mut _));
    replaced.map(|original| original.0 as usize).map_err(|_| Refusal::Protected)
}
