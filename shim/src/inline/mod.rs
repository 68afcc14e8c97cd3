//! Calls that can't be interposed: a library that is linked with `-Bsymbolic` calls its own functions
//! directly, and so does everything whose runtime is hidden in a module or in the program itself. Here
//! such a runtime is found as it is loaded, and its functions are patched before they run: a jump leads
//! to the hook, and the original's first instructions, moved, lead back.
//!
//! It is the loading itself that calls: every object that a C compiler links begins (`_init`, from
//! glibc's crti.o) with a call of `__gmon_start__` if anyone defines that, and otherwise nobody does.
//! So the runtime is looked at before its constructors run, whoever loads it and however.
//!
//! Nothing is looked at if that is switched off, and no file is opened unless the runtime is found.

mod arguments;
mod decode;
mod file;
#[cfg(feature = "frida-gum")]
mod frida;
mod guard;
mod patch;
mod scan;

use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use ttalloc_ring::Engine;
use ttalloc_ring::errno::KeepErrno;
use ttalloc_ring::record::Refusal;
use ttalloc_symbols::{COUNT, Era, SYMBOLS, SymbolSet, Use};

use self::decode::Plan;
use self::file::ObjectFile;
pub use self::guard::Guarded;
use self::patch::{Near, Prepared};
use self::scan::Functions;
use crate::elf::{self, Object};
use crate::runtime::{self, Runtime};
use crate::{environment, hooks, session};

/// A hook that a patched function jumps to.
pub struct Entry {
    /// Its symbol's index in the catalogue.
    pub index: usize,
    /// Itself, and its arguments on the stack.
    pub guarded: Guarded,
    /// The words of all its arguments.
    pub words: usize,
}

// SAFETY: the pointer is a function's.
unsafe impl Sync for Entry {}

/// How many of a function's arguments lie on the stack, in words, given the words of each (System V
/// x86-64 ABI, 3.2.3: six words in registers; what is larger than a word goes whole or not at all).
pub const fn stack_words(arguments: &[usize]) -> usize {
    let (mut registers, mut stack, mut at) = (6, 0, 0);
    while at < arguments.len() {
        if arguments[at] <= registers {
            registers -= arguments[at];
        } else {
            stack += arguments[at];
        }
        at += 1;
    }
    stack
}

/// Where the original functions behind patched ones go on, by the catalogue's index.
static ORIGINALS: [AtomicUsize; COUNT] = [const { AtomicUsize::new(0) }; COUNT];
/// Which functions are patched.
static PATCHED: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
/// What could not be patched.
static REFUSED: AtomicPtr<Vec<Refused>> = AtomicPtr::new(std::ptr::null_mut());

/// A function whose calls are not seen, or not all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Refused {
    /// Its symbol's index in the catalogue.
    pub index: usize,
    /// Why.
    pub why: Refusal,
    /// Whether the calls that other libraries make are interposed.
    pub interposed: bool,
    /// Whether there are calls that can't be.
    pub lossy: bool,
}

/// Whether the function at `index` is patched, so that a call of its hook isn't the last that is seen
/// of the call.
#[inline]
pub fn is_patched(index: usize) -> bool {
    PATCHED[index / 64].load(Ordering::Relaxed) >> (index % 64) & 1 == 1
}

fn set_patched(index: usize, is_patched: bool) {
    let (word, bit) = (&PATCHED[index / 64], 1 << (index % 64));
    match is_patched {
        true => word.fetch_or(bit, Ordering::AcqRel),
        false => word.fetch_and(!bit, Ordering::AcqRel),
    };
}

/// Which functions are patched.
pub fn patched() -> SymbolSet {
    SymbolSet([0, 1, 2, 3].map(|at| PATCHED[at].load(Ordering::Acquire)))
}

/// What could not be patched.
pub fn refused() -> &'static [Refused] {
    // SAFETY: null, or a leaked box that is never changed.
    unsafe { REFUSED.load(Ordering::Acquire).as_ref() }.map_or(&[], |refused| refused.as_slice())
}

/// The way to the original of the patched function at `index`.
#[inline]
pub fn original(index: usize) -> usize {
    ORIGINALS[index].load(Ordering::Acquire)
}

const NEW: u8 = 0;
const LOOKING: u8 = 1;
const DONE: u8 = 2;
/// Whether there is anything to look for.
static STATE: AtomicU8 = AtomicU8::new(NEW);
/// How many objects had been loaded at the last look.
static LOADS: AtomicU64 = AtomicU64::new(0);
/// The process that is looking, or 0.
static LOOKER: AtomicU32 = AtomicU32::new(0);
/// The objects that were looked at; 0 where there is room.
static SEEN: [AtomicUsize; 4096] = [const { AtomicUsize::new(0) }; 4096];

/// Called by every object as it is loaded, before its constructors.
#[unsafe(export_name = "__gmon_start__")]
extern "C" fn object_loaded() {
    look(true);
}

/// Looks for a runtime among the objects that have come, and patches what must be. `loading` tells that
/// the newest of them are being loaded right now, so that their code isn't running yet.
pub fn look(loading: bool) {
    if STATE.load(Ordering::Acquire) == DONE {
        return;
    }
    let _errno = KeepErrno::new();
    environment::copy();
    if !environment::is_on() {
        STATE.store(DONE, Ordering::Release);
        return;
    }
    STATE.store(LOOKING, Ordering::Release);
    let loads = elf::loads();
    if LOADS.load(Ordering::Acquire) == loads || !begin() {
        return;
    }
    LOADS.store(loads, Ordering::Release);
    let found = new_runtime();
    LOOKER.store(0, Ordering::Release);
    let Some(object) = found else { return };
    STATE.store(DONE, Ordering::Release);
    if !loading {
        // Nothing else keeps it from being unloaded meanwhile.
        runtime::keep_loaded(object.path);
    }
    if !settle(&object, loading) {
        return;
    }
    session::announce_early();
}

/// Becomes the only one that looks. Gives up if another takes impossibly long.
fn begin() -> bool {
    let own = std::process::id();
    for _ in 0..5000 {
        match LOOKER.compare_exchange(0, own, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return true,
            // One that was left behind by a fork.
            Err(other) if other != own => {
                let taken =
                    LOOKER.compare_exchange(other, own, Ordering::AcqRel, Ordering::Relaxed);
                if taken.is_ok() {
                    return true;
                }
            }
            Err(_) => std::thread::sleep(Duration::from_micros(200)),
        }
    }
    false
}

/// The first runtime among the objects that were not looked at before. What is not one is not looked at
/// again.
fn new_runtime() -> Option<Object<'static>> {
    let table = runtime::of_role("mesh_vtable")?;
    // The name that goes with a class's type information (Itanium C++ ABI, 2.9.5): it is there even
    // where all symbols are hidden and stripped.
    let mut name = [0; 128];
    let class = table.strip_prefix("_ZTV")?.as_bytes();
    name.get_mut(1..=class.len())?.copy_from_slice(class);
    let name = name.get(..class.len() + 2)?;
    let here = new_runtime as *const () as usize;
    elf::find(|object| {
        if object.contains(here) || !remember(object.identity()) {
            return None;
        }
        let exports = object.symbols().is_some_and(|symbols| symbols.find(table).is_some());
        let is_runtime = exports || object.constants().any(|bytes| contains(bytes, name));
        // SAFETY: nothing is unloaded while an object is being loaded, which holds the dynamic linker's
        // lock; in other cases `look` keeps it loaded.
        is_runtime.then(|| unsafe { object.lasting() })
    })
}

/// Enters an object into those that were seen; whether it is new. Without room all are.
fn remember(identity: usize) -> bool {
    let start = (identity as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52;
    for step in 0..SEEN.len() {
        let place = &SEEN[(start as usize + step) % SEEN.len()];
        match place.compare_exchange(0, identity, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return true,
            Err(known) if known == identity => return false,
            Err(_) => {}
        }
    }
    true
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    // SAFETY: both are slices, given with their lengths.
    let found = unsafe {
        libc::memmem(bytes.as_ptr().cast(), bytes.len(), part.as_ptr().cast(), part.len())
    };
    !found.is_null()
}

/// A symbol of the catalogue as an object has it.
#[derive(Clone, Copy, Default)]
struct Found {
    address: usize,
    size: usize,
    /// Whether other objects can refer to it.
    exported: bool,
    /// Whether its own object doesn't go by what others define.
    protected: bool,
}

/// Does what is to be done about a runtime. Returns whether the launcher must hear of it even if no
/// hook is ever called.
fn settle(object: &Object, loading: bool) -> bool {
    let engine = environment::engine();
    let symbols = object.symbols();
    let mut found = [Found::default(); COUNT];
    if let Some(symbols) = &symbols {
        for (symbol, found) in SYMBOLS.iter().zip(&mut found) {
            if let Some((address, size)) = symbols.find(symbol.name) {
                let protected = symbols.is_protected(symbol.name);
                *found = Found { address, size, exported: true, protected };
            }
        }
    }
    let is_hidden = |found: &[Found]| !has(found, "mesh_vtable") || !has(found, "allocate");
    let is_hidden = is_hidden(&found);
    let mut delete = 0;
    let file = ObjectFile::open(object);
    let has_symbols = file.as_ref().is_some_and(|file| {
        let visit = |name: &[u8], address: usize, size: usize| match name {
            b"_ZdlPvm" => delete = address,
            b"_ZdlPv" if delete == 0 => delete = address,
            _ if !name.starts_with(b"_Z") => {}
            _ => {
                let index = SYMBOLS.iter().position(|symbol| symbol.name.as_bytes() == name);
                let found = index.and_then(|index| found.get_mut(index));
                if let Some(found) = found.filter(|found| found.address == 0) {
                    *found = Found { address, size, ..Found::default() };
                }
            }
        };
        file.each(visit).is_some()
    });
    let find = |name: &str| {
        let index = SYMBOLS.iter().position(|symbol| symbol.name == name)?;
        let found = found.get(index).filter(|found| found.address != 0)?;
        Some((found.address, found.size))
    };
    let runtime = Runtime::of(object, &find, delete);
    let mut refused = Vec::new();
    let Some(era) = runtime.era else {
        if !is_hidden && !object.is_symbolic() {
            // It can be interposed, which is where it is reported.
            return false;
        }
        let why = match (&file, has_symbols) {
            (None, _) => Some(Refusal::File),
            (Some(_), false) => Some(Refusal::Stripped),
            _ => None,
        };
        // The newest names stand for all: it can't be told which it has.
        if let Some(why) = why {
            refused = refuse_all(why, &found);
        }
        runtime::publish(runtime);
        set_refused(refused);
        return true;
    };
    let hooks: Vec<usize> = (0..COUNT)
        .filter(|&index| SYMBOLS[index].usage == Use::Hook && runtime.uses(index))
        .collect();
    let mut functions = Functions::new(hooks.iter().map(|&index| found[index].address));
    for code in object.code() {
        functions.code(code, code.as_ptr() as usize);
    }
    object.relocated_words().for_each(|word| functions.word(word));
    let is_symbolic = object.is_symbolic();
    let is_out_of_reach = |index: usize| {
        let one = found[index];
        let references = functions.references(one.address);
        !one.exported || one.protected || is_symbolic || references.called || references.pointed_at
    };
    let must_be_patched = |index: usize| engine == Engine::Inline || is_out_of_reach(index);
    let wanted: Vec<usize> = hooks
        .iter()
        .copied()
        .filter(|&index| found[index].address != 0 && must_be_patched(index))
        .collect();
    let found_all = found.iter().all(|one| one.address == 0 || one.exported);
    if is_hidden {
        refused.extend(missing(era, &found).map(|index| refuse(index, Refusal::Missing, &found)));
    }
    if wanted.is_empty() && refused.is_empty() {
        if !found_all {
            runtime::publish(runtime);
        }
        return false;
    }
    let may_run = !loading || !symbols.is_some_and(|symbols| symbols.refers("__gmon_start__"));
    let refuse_whole = match engine {
        Engine::Preload => Some(Refusal::Engine),
        _ if may_run && threads() != Some(1) => Some(Refusal::Threads),
        _ => None,
    };
    if let Some(why) = refuse_whole {
        refused.extend(wanted.iter().map(|&index| refuse(index, why, &found)));
        runtime::publish(runtime);
        set_refused(refused);
        return true;
    }
    guard::prepare();
    let memory = |address: usize| object.constant(address);
    let code_from = |address: usize| {
        object.code().find_map(|code| code.get(address.checked_sub(code.as_ptr() as usize)?..))
    };
    let mut plans: Vec<(usize, Result<Plan, Refusal>)> = Vec::new();
    let mut aliases: Vec<(usize, usize)> = Vec::new();
    for &index in &wanted {
        let Found { address, size, exported, .. } = found[index];
        // Two names of one function, as of a destructor, are patched once.
        if let Some(&(first, _)) = plans.iter().find(|(other, _)| found[*other].address == address)
        {
            match SYMBOLS[first].role == SYMBOLS[index].role {
                true => aliases.push((first, index)),
                false => refused.push(refuse(index, Refusal::Shared, &found)),
            }
            continue;
        }
        let references = functions.references(address);
        if !exported && !references.called && !references.pointed_at {
            refused.push(refuse(index, Refusal::NoCaller, &found));
        }
        let plan = code_of(object, file.as_ref(), address, size).and_then(|code| {
            let plan = decode::plan(code, address, &memory)?;
            let end = plan.at + plan.moved.1 - address;
            let words = hooks::ENTRIES.iter().find(|entry| entry.index == index);
            let words = words.map_or(0, |entry| entry.words);
            if !arguments::are_used(SYMBOLS[index].role, words, address, &code_from) {
                return Err(Refusal::Argument);
            }
            match references.jumps_inside {
                Some(lowest) if lowest < end => Err(Refusal::Target),
                _ => Ok(plan),
            }
        });
        plans.push((index, plan));
    }
    let near = Near::map(object, plans.len());
    let mut prepared: Vec<(usize, Prepared)> = Vec::new();
    let mut near = match near {
        Ok(near) => Some(near),
        Err(why) => {
            refused.extend(plans.drain(..).map(|(index, _)| refuse(index, why, &found)));
            None
        }
    };
    for (index, plan) in plans {
        let one = plan.and_then(|plan| {
            let entry = hooks::ENTRIES.iter().find(|entry| entry.index == index);
            let entry = entry.ok_or(Refusal::Missing)?;
            near.as_mut().ok_or(Refusal::Memory)?.prepare(&plan, &entry.guarded)
        });
        match one {
            Ok(one) => prepared.push((index, one)),
            Err(why) => refused.push(refuse(index, why, &found)),
        }
    }
    if let Some(Err(why)) = near.as_ref().map(Near::finish) {
        refused.extend(prepared.drain(..).map(|(index, _)| refuse(index, why, &found)));
    }
    // From the first jump on hooks may be called, so all that they need is there before.
    runtime::publish(runtime);
    for (index, one) in prepared {
        ORIGINALS[index].store(one.original(), Ordering::Release);
        // Calls of the function's other names come here too.
        let names = aliases.iter().filter(|(first, _)| *first == index).map(|(_, alias)| *alias);
        let names: Vec<usize> = names.chain([index]).collect();
        names.iter().for_each(|&name| set_patched(name, true));
        if let Err(why) = one.patch(object) {
            names.iter().for_each(|&name| set_patched(name, false));
            refused.extend(names.iter().map(|&name| refuse(name, why, &found)));
        }
    }
    let is_lossy = !refused.is_empty();
    for one in &mut refused {
        one.lossy = is_out_of_reach(one.index);
    }
    set_refused(refused);
    is_lossy
}

fn has(found: &[Found], role: &str) -> bool {
    SYMBOLS.iter().zip(found).any(|(symbol, found)| symbol.role == role && found.address != 0)
}

fn refuse(index: usize, why: Refusal, found: &[Found; COUNT]) -> Refused {
    Refused { index, why, interposed: found[index].exported, lossy: true }
}

/// The hooks of the newest era, one for each role, none of which can be had.
fn refuse_all(why: Refusal, found: &[Found; COUNT]) -> Vec<Refused> {
    missing(Era::C, &[Found::default(); COUNT]).map(|index| refuse(index, why, found)).collect()
}

/// The first symbol of every hooked role of `era` that has none.
fn missing(era: Era, found: &[Found; COUNT]) -> impl Iterator<Item = usize> {
    let of_role = move |index: usize, role: &str| {
        let symbol = &SYMBOLS[index];
        symbol.role == role && symbol.usage == Use::Hook && symbol.eras.contains(era)
    };
    (0..COUNT).filter(move |&index| {
        let role = SYMBOLS[index].role;
        (0..COUNT).find(|&other| of_role(other, role)) == Some(index)
            && !(0..COUNT).any(|other| of_role(other, role) && found[other].address != 0)
    })
}

fn set_refused(refused: Vec<Refused>) {
    REFUSED.store(Box::into_raw(Box::new(refused)), Ordering::Release);
}

/// The code of a function, if it is as its file has it.
fn code_of<'a>(
    object: &Object<'a>,
    file: Option<&ObjectFile>,
    address: usize,
    size: usize,
) -> Result<&'a [u8], Refusal> {
    let code = object.code().find_map(|code| {
        let start = address.checked_sub(code.as_ptr() as usize)?;
        code.get(start..start.checked_add(size)?)
    });
    let code = code.ok_or(Refusal::Code)?;
    let in_file = file.and_then(|file| file.bytes_at(address, size));
    if in_file.is_some_and(|in_file| in_file != code) { Err(Refusal::Changed) } else { Ok(code) }
}

/// The number of this process's threads.
fn threads() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/task").ok()?.count())
}
