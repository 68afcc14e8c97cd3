//! The tt-metal runtime that this process has loaded: where its functions are, and which era it is of.

use std::ffi::CStr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use ttalloc_ring::errno::KeepErrno;
use ttalloc_symbols::{COUNT, Era, SYMBOLS, SymbolSet, Use};

use crate::elf::{self, Object};
use crate::inline;

/// Bytes of a virtual table before its first function, where objects point (Itanium C++ ABI, 2.5.2).
pub const VTABLE_HEAD: usize = 16;

/// A record's room for a build id, in bytes; those of SHA-1 have 20.
pub const MOST_BUILD_ID: usize = 28;

/// The address of the real function behind each hook, by the catalogue's index; 0 until looked for.
static ORIGINALS: [AtomicUsize; COUNT] = [const { AtomicUsize::new(0) }; COUNT];
/// The runtime. It is there before any original is.
static RUNTIME: AtomicPtr<Runtime> = AtomicPtr::new(std::ptr::null_mut());

/// A runtime, as found in this process.
pub struct Runtime {
    /// The library that defines it: its path, ended by a zero byte.
    path: [u8; libc::PATH_MAX as usize],
    /// Whether it is part of the program itself.
    is_program: bool,
    /// Its build id, as far as it fits, and the length of that.
    build_id: ([u8; MOST_BUILD_ID], usize),
    /// What it defines of the catalogue.
    pub present: SymbolSet,
    /// Where, by the catalogue's index; 0 for what it doesn't define.
    pub addresses: [usize; COUNT],
    /// Its era; None where tracking is impossible.
    pub era: Option<Era>,
    /// The symbols that it defines and that have their role in its era.
    used: SymbolSet,
    /// Where its virtual tables have `IDevice::id()` and `IDevice::arch()`, in bytes; None for what it
    /// doesn't export.
    pub id_slot: Option<usize>,
    pub arch_slot: Option<usize>,
    /// Where its own calls of `operator delete` go, or 0.
    pub operator_delete: usize,
}

impl Runtime {
    /// The library that defines it.
    pub fn path(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.path).unwrap_or_default()
    }

    /// Keeps it loaded, since its functions' addresses are kept.
    pub fn keep_loaded(&self) {
        if !self.is_program {
            keep_loaded(self.path());
        }
    }

    /// Its build id; empty if it has none.
    pub fn build_id(&self) -> &[u8] {
        &self.build_id.0[..self.build_id.1]
    }

    /// The runtime that this process called first; None before it called any.
    pub fn get() -> Option<&'static Runtime> {
        // SAFETY: either null or a leaked box, published with release ordering and never changed.
        unsafe { RUNTIME.load(Ordering::Acquire).as_ref() }
    }

    /// Whether it defines the symbol at `index`, which has its role in its era.
    #[inline]
    pub fn uses(&self, index: usize) -> bool {
        self.used.contains(index)
    }

    /// The runtime that `object` is. `find` gives the address and size of a symbol, `own_delete` is the
    /// `operator delete` that it defines itself, or 0. Allocates nothing, since it runs under the dynamic
    /// linker's lock.
    pub fn of(
        object: &Object,
        find: &dyn Fn(&str) -> Option<(usize, usize)>,
        own_delete: usize,
    ) -> Runtime {
        let mut present = SymbolSet::default();
        let mut addresses = [0; COUNT];
        for (index, symbol) in SYMBOLS.iter().enumerate() {
            if let Some((address, _)) = find(symbol.name) {
                present.insert(index);
                addresses[index] = address;
            }
        }
        let era = Era::of(&present).filter(|&era| present.missing(era).next().is_none());
        let mut used = SymbolSet::default();
        for (index, symbol) in present.iter() {
            if era.is_some_and(|era| symbol.eras.contains(era)) {
                used.insert(index);
            }
        }
        // The address of what has a role, with its size.
        let of = |role| {
            let mut its = used.iter().filter(|(_, symbol)| symbol.role == role);
            its.find_map(|(_, symbol)| find(symbol.name))
        };
        // A function that is exported and not in the table is a layout that isn't known: no era then.
        let slot_of = |role| match of(role).zip(of("mesh_vtable")) {
            Some(((function, _), table)) => slot(table, function).map(Some),
            None => Some(None),
        };
        let slots = slot_of("mesh_id").zip(slot_of("mesh_arch"));
        let (id_slot, arch_slot) = slots.unwrap_or_default();
        let era = era.filter(|_| slots.is_some());
        if era.is_none() {
            used = SymbolSet::default();
        }
        // Not what dlsym finds: a library that is loaded with RTLD_LOCAL may bring its own.
        let delete = ["_ZdlPvm", "_ZdlPv"].into_iter().find_map(|name| object.bound(name));
        let mut path = [0; libc::PATH_MAX as usize];
        let its = object.path.to_bytes();
        if its.is_empty() {
            // The program itself.
            let (link, room) = (c"/proc/self/exe".as_ptr(), path.len() - 1);
            // SAFETY: a C string, and so much room, of which it says how much it used.
            unsafe { libc::readlink(link, path.as_mut_ptr().cast(), room) };
        } else {
            let length = its.len().min(path.len() - 1);
            path[..length].copy_from_slice(&its[..length]);
        }
        let mut build_id = [0; MOST_BUILD_ID];
        let id = object.build_id().unwrap_or_default();
        let length = id.len().min(build_id.len());
        build_id[..length].copy_from_slice(&id[..length]);
        Runtime {
            path,
            is_program: its.is_empty(),
            build_id: (build_id, length),
            present,
            addresses,
            era,
            used,
            id_slot,
            arch_slot,
            operator_delete: delete.unwrap_or(own_delete),
        }
    }
}

/// The name of the only symbol of `role`.
pub fn of_role(role: &str) -> Option<&'static str> {
    SYMBOLS.iter().find(|symbol| symbol.role == role).map(|symbol| symbol.name)
}

/// Where a virtual table, given with its size, has `function`: in bytes after its first function.
fn slot((table, size): (usize, usize), function: usize) -> Option<usize> {
    (VTABLE_HEAD..size.saturating_sub(size_of::<usize>() - 1))
        .step_by(size_of::<usize>())
        // SAFETY: inside the table, which is data of a loaded library.
        .find(|at| unsafe { elf::read::<usize>(table + at) } == function)
        .map(|at| at - VTABLE_HEAD)
}

/// The address of the real function behind the hook of the symbol at `index`.
#[inline]
pub fn original(index: usize) -> usize {
    match ORIGINALS[index].load(Ordering::Acquire) {
        0 => locate(index),
        address => address,
    }
}

/// Finds the real functions behind all hooks, and the runtime. Threads may do so at once: they find the
/// same.
///
/// Behind a hook is what the program would have called without this library: the first definition
/// after this library's in the order of loading, which may be that of another preloaded library. (One
/// before this library has called us itself.) The facts come from the runtime.
#[cold]
fn locate(index: usize) -> usize {
    let _errno = KeepErrno::new();
    // Of what was loaded without a word.
    inline::look(false);
    let here = locate as *const () as usize;
    let vtable = of_role("mesh_vtable").unwrap_or_default();
    let mut originals = [0; COUNT];
    let (mut runtime, mut definer) = (None, None);
    let mut is_behind = false;
    elf::find(|object| {
        if object.contains(here) {
            is_behind = true;
            return None;
        }
        let symbols = object.symbols()?;
        for (symbol, original) in SYMBOLS.iter().zip(&mut originals) {
            if is_behind && *original == 0 && symbol.usage == Use::Hook {
                *original = symbols.find(symbol.name).map_or(0, |(address, _)| address);
            }
        }
        let defines_it = || is_behind && symbols.find(SYMBOLS[index].name).is_some();
        if runtime.is_none() && symbols.find(vtable).is_some() {
            runtime = Some(Runtime::of(object, &|name| symbols.find(name), 0));
        } else if definer.is_none() && defines_it() {
            definer = Some(Runtime::of(object, &|name| symbols.find(name), 0));
        }
        None::<()>
    });
    if originals[index] == 0 {
        undefined(SYMBOLS[index].name);
    }
    for found in [&runtime, &definer].into_iter().flatten() {
        found.keep_loaded();
    }
    if let Some(runtime) = runtime.or(definer) {
        publish(runtime);
    }
    for (to, from) in ORIGINALS.iter().zip(originals) {
        let _ = to.compare_exchange(0, from, Ordering::AcqRel, Ordering::Relaxed);
    }
    ORIGINALS[index].load(Ordering::Acquire)
}

/// Makes `runtime` the one that was found, unless there is one.
pub fn publish(runtime: Runtime) {
    let runtime = Box::into_raw(Box::new(runtime));
    let none = std::ptr::null_mut();
    if RUNTIME.compare_exchange(none, runtime, Ordering::AcqRel, Ordering::Acquire).is_err() {
        // SAFETY: this box was made above and given to nobody.
        drop(unsafe { Box::from_raw(runtime) });
    }
}

/// Keeps the library loaded, since its functions' addresses are kept.
pub fn keep_loaded(path: &CStr) {
    if path.is_empty() {
        return;
    }
    let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
    // SAFETY: a C string and flags; RTLD_NOLOAD runs no constructor.
    unsafe { libc::dlopen(path.as_ptr(), flags) };
}

/// A hook was called, but nothing defines its function: without this library the dynamic linker would
/// have ended the program here with these words and this code.
fn undefined(name: &str) -> ! {
    for part in ["symbol lookup error: undefined symbol: ", name, "\n"] {
        // SAFETY: the pointer and length are those of a string.
        unsafe { libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len()) };
    }
    // SAFETY: ends the process; nothing is left to hold.
    unsafe { libc::_exit(127) }
}
