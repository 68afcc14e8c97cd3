//! The tt-metal runtime that this process has loaded: where its functions are, and which era it is of.

use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use ttalloc_symbols::{COUNT, Era, SYMBOLS, SymbolSet};

use crate::calls;
use crate::elf;
use crate::session::KeepErrno;

/// The address of each of the catalogue's symbols in the library that defines it; 0 until looked for.
static ADDRESSES: [AtomicUsize; COUNT] = [const { AtomicUsize::new(0) }; COUNT];
static RUNTIME: AtomicPtr<Runtime> = AtomicPtr::new(std::ptr::null_mut());

/// A runtime, as found in this process.
pub struct Runtime {
    /// The library that defines it.
    pub path: CString,
    /// Its build id.
    pub build_id: Option<Vec<u8>>,
    /// What it defines of the catalogue.
    pub present: SymbolSet,
    /// Its era; None where tracking is impossible.
    pub era: Option<Era>,
    /// Where its virtual tables have `IDevice::id()` and `IDevice::arch()`, in bytes.
    pub id_slot: usize,
    pub arch_slot: usize,
    /// Where its own calls of `operator delete` go, or 0.
    pub operator_delete: usize,
}

impl Runtime {
    /// The runtime that this process called first; None before it called any.
    pub fn get() -> Option<&'static Runtime> {
        // SAFETY: either null or a leaked box, published with release ordering and never changed.
        unsafe { RUNTIME.load(Ordering::Acquire).as_ref() }
    }

    /// Whether the symbol at `index` has its role in this runtime's era.
    #[inline]
    pub fn uses(&self, index: usize) -> bool {
        self.era.is_some_and(|era| SYMBOLS[index].eras.contains(era))
    }

    /// Whether it defines a symbol of `role` that its era uses.
    pub fn has(&self, role: &str) -> bool {
        self.present.iter().any(|(index, symbol)| symbol.role == role && self.uses(index))
    }
}

/// The address of the real function behind the hook of the symbol at `index`.
#[inline]
pub fn original(index: usize) -> usize {
    match ADDRESSES[index].load(Ordering::Acquire) {
        0 => locate(index),
        address => address,
    }
}

/// The address of a symbol that is looked up; 0 where the runtime has none.
#[inline]
pub fn address(index: usize) -> usize {
    ADDRESSES[index].load(Ordering::Acquire)
}

/// Finds the library that defines the symbol at `index`, and all other symbols it defines. Threads may
/// do so at once: they find the same.
#[cold]
fn locate(index: usize) -> usize {
    let _errno = KeepErrno::new();
    let here = locate as *const () as usize;
    let found = elf::find(|object| {
        let symbols = object.symbols().filter(|_| !object.contains(here))?;
        symbols.address_of(SYMBOLS[index].name)?;
        let mut present = SymbolSet::default();
        for (index, symbol) in SYMBOLS.iter().enumerate() {
            if let Some(address) = symbols.address_of(symbol.name) {
                present.insert(index);
                // The first library wins, as it does for the dynamic linker.
                let _ = ADDRESSES[index].compare_exchange(
                    0,
                    address,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
            }
        }
        // Not what dlsym finds: a library that is loaded with RTLD_LOCAL may bring its own.
        let delete = ["_ZdlPvm", "_ZdlPv"].into_iter().find_map(|name| object.bound(name));
        let build_id = object.build_id().map(<[u8]>::to_vec);
        Some((object.path.to_owned(), build_id, present, delete.unwrap_or(0)))
    });
    let Some((path, build_id, present, operator_delete)) = found else {
        undefined(SYMBOLS[index].name);
    };
    publish(path, build_id, present, operator_delete);
    ADDRESSES[index].load(Ordering::Acquire)
}

fn publish(path: CString, build_id: Option<Vec<u8>>, present: SymbolSet, operator_delete: usize) {
    if !RUNTIME.load(Ordering::Acquire).is_null() {
        return;
    }
    keep_loaded(&path);
    let era = Era::of(&present).filter(|&era| present.missing(era).next().is_none());
    let mut runtime =
        Runtime { path, build_id, present, era, id_slot: 0, arch_slot: 0, operator_delete };
    if era.is_some() {
        let slot = |function| calls::slot_of(&runtime, function);
        match slot(calls::mesh_id(&runtime)).zip(slot(calls::mesh_arch(&runtime))) {
            Some((id, arch)) => (runtime.id_slot, runtime.arch_slot) = (id, arch),
            None => runtime.era = None,
        }
    }
    let runtime = Box::into_raw(Box::new(runtime));
    let published = RUNTIME.compare_exchange(
        std::ptr::null_mut(),
        runtime,
        Ordering::AcqRel,
        Ordering::Acquire,
    );
    if published.is_err() {
        // SAFETY: this box was made above and given to nobody.
        drop(unsafe { Box::from_raw(runtime) });
    }
}

/// Keeps the library loaded, since its functions' addresses are kept.
fn keep_loaded(path: &CStr) {
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
