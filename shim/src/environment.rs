//! What this library is told by its environment, copied when it is loaded: the program may change the
//! variables, and a child of vfork can't ask for them.

use std::ffi::{CStr, CString, c_char, c_void};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};

use ttalloc_ring::{
    ENGINE_VARIABLE, Engine, FOLLOW_VARIABLE, RANK_VARIABLES, REPORT_VARIABLE, RING_VARIABLE,
};

/// The variable that switches this library off, by `off` or `0`.
pub const SWITCH_VARIABLE: &CStr = c"TTALLOC";
/// The variable by which the dynamic linker finds this library.
pub const PRELOAD_VARIABLE: &CStr = c"LD_PRELOAD";
/// This library's file name.
pub const FILE_NAME: &[u8] = b"libttalloc_shim.so";

/// A string that is written while this library is loaded and not changed any more; empty until then.
/// The last byte is always zero.
pub struct Text<const ROOM: usize>([AtomicU8; ROOM]);

impl<const ROOM: usize> Text<ROOM> {
    const fn new() -> Text<ROOM> {
        Text([const { AtomicU8::new(0) }; ROOM])
    }

    /// Writes the parts one after the other; whether they fit. What doesn't is left out whole.
    fn write(&self, parts: &[&[u8]]) -> bool {
        let fits = parts.iter().map(|part| part.len()).sum::<usize>() < ROOM;
        if fits {
            for (to, from) in self.0.iter().zip(parts.iter().copied().flatten()) {
                to.store(*from, Ordering::Relaxed);
            }
        }
        fits
    }

    /// The string.
    pub fn get(&self) -> &CStr {
        // SAFETY: the bytes end with a zero, and are not written any more once anybody asks for them.
        unsafe { CStr::from_ptr(self.0.as_ptr().cast()) }
    }

    /// The string, without what it begins with.
    fn after(&self, start: usize) -> &CStr {
        let bytes = self.get().to_bytes_with_nul();
        CStr::from_bytes_with_nul(bytes.get(start..).unwrap_or(b"\0")).unwrap_or_default()
    }
}

/// `TTALLOC_RING=` and its value; empty if there is none.
static RING: Text<128> = Text::new();
/// `TTALLOC_ENGINE=` and its value; likewise.
static ENGINE: Text<64> = Text::new();
/// `LD_PRELOAD=` and this library's path.
static PRELOAD: Text<{ libc::PATH_MAX as usize + 16 }> = Text::new();
/// `TTALLOC_REPORT=` and its value; empty if there is none.
static REPORT: Text<{ libc::PATH_MAX as usize + 32 }> = Text::new();
/// `TTALLOC_FOLLOW=always`.
const FOLLOW_ALWAYS: &CStr = c"TTALLOC_FOLLOW=always";

/// The process's rank among those that were started with it; -1 if it has none.
static RANK: AtomicI32 = AtomicI32::new(-1);

/// Whether all of it was copied.
static COPIED: AtomicBool = AtomicBool::new(false);
/// Whether this library does nothing.
static OFF: AtomicBool = AtomicBool::new(false);
/// Whether there is a ring's name, be it none that makes sense.
static HAS_RING: AtomicBool = AtomicBool::new(false);
/// Whether programs are followed whose environment was cleaned.
pub static FOLLOWS_ALWAYS: AtomicBool = AtomicBool::new(false);

/// Copies what is needed, the first time. Runs when the first library is loaded.
pub fn copy() {
    if COPIED.swap(true, Ordering::AcqRel) {
        return;
    }
    if is_off() {
        OFF.store(true, Ordering::Release);
        return;
    }
    copy_path();
    if let Some(value) = variable(RING_VARIABLE) {
        HAS_RING.store(true, Ordering::Release);
        // One that is too long is none of ours; left empty, it leads nowhere.
        RING.write(&[RING_VARIABLE.to_bytes(), b"=", value]);
    }
    if let Some(value) = variable(ENGINE_VARIABLE) {
        ENGINE.write(&[ENGINE_VARIABLE.to_bytes(), b"=", value]);
    }
    if let Some(value) = variable(REPORT_VARIABLE) {
        REPORT.write(&[REPORT_VARIABLE.to_bytes(), b"=", value]);
    }
    let ranks = RANK_VARIABLES.into_iter().filter_map(variable);
    RANK.store(ranks.filter_map(number).next().unwrap_or(-1), Ordering::Release);
    let always = variable(FOLLOW_VARIABLE) == Some(b"always") && !PRELOAD.get().is_empty();
    FOLLOWS_ALWAYS.store(always, Ordering::Release);
}

/// Whether the user, or the system, wants nothing done.
fn is_off() -> bool {
    // SAFETY: takes a number. A program with more rights than its user must not do what that one says.
    let is_secure = unsafe { libc::getauxval(libc::AT_SECURE) } != 0;
    is_secure || matches!(variable(SWITCH_VARIABLE), Some(b"off" | b"0"))
}

/// The value of an environment variable; None if it is empty, too.
fn variable(name: &CStr) -> Option<&'static [u8]> {
    // SAFETY: a C string; at this time no other thread can be changing the environment.
    let value: *const c_char = unsafe { libc::getenv(name.as_ptr()) };
    // SAFETY: getenv returned it, and nothing changes the environment until it was copied.
    let value = (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) })?;
    Some(value.to_bytes()).filter(|value| !value.is_empty())
}

/// A number that is not negative.
fn number(value: &[u8]) -> Option<i32> {
    str::from_utf8(value).ok()?.parse().ok().filter(|&number| number >= 0)
}

/// Copies this library's own path, as it is now: the program may go to another folder.
fn copy_path() {
    let mut found = MaybeUninit::<libc::Dl_info>::uninit();
    let here = copy_path as *const c_void;
    // SAFETY: any address may be asked for, and there is room for the answer.
    if unsafe { libc::dladdr(here, found.as_mut_ptr()) } == 0 {
        return;
    }
    // SAFETY: dladdr succeeded.
    let found = unsafe { found.assume_init() };
    if found.dli_fname.is_null() {
        return;
    }
    let mut whole = [0 as c_char; libc::PATH_MAX as usize];
    // SAFETY: the object's name as the dynamic linker has it, and PATH_MAX bytes.
    if unsafe { libc::realpath(found.dli_fname, whole.as_mut_ptr()) }.is_null() {
        return;
    }
    // SAFETY: realpath ended it with a zero byte.
    let whole = unsafe { CStr::from_ptr(whole.as_ptr()) }.to_bytes();
    // The dynamic linker splits at both, and expands the third.
    if !whole.iter().any(|byte| matches!(byte, b' ' | b':' | b'$')) {
        PRELOAD.write(&[PRELOAD_VARIABLE.to_bytes(), b"=", whole]);
    }
}

/// Whether this library is to see anything: not if it is switched off.
pub fn is_on() -> bool {
    COPIED.load(Ordering::Acquire) && !OFF.load(Ordering::Acquire)
}

/// Whether a launcher named a ring, be it one that makes no sense.
pub fn has_ring() -> bool {
    HAS_RING.load(Ordering::Acquire)
}

/// The ring's name; empty if there is none, or none that makes sense.
pub fn ring() -> &'static CStr {
    RING.after(RING_VARIABLE.count_bytes() + 1)
}

/// The engine that the environment named. A name that is none stands for the default: the launcher
/// refuses it.
pub fn engine() -> Engine {
    let name = ENGINE.after(ENGINE_VARIABLE.count_bytes() + 1).to_bytes();
    let mut all = Engine::ALL.into_iter();
    all.find(|engine| engine.name().as_bytes() == name).unwrap_or_default()
}

/// This process's rank among those that mpirun or Slurm started; -1 if it has none.
pub fn rank() -> i32 {
    RANK.load(Ordering::Acquire)
}

/// This library's own path; empty if it isn't known.
pub fn library() -> &'static CStr {
    PRELOAD.after(PRELOAD_VARIABLE.count_bytes() + 1)
}

/// The same, for files near it.
pub fn library_path() -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(library().to_bytes().to_vec()))
}

/// `LD_PRELOAD=` and this library's path.
pub fn preload_entry() -> &'static CStr {
    PRELOAD.get()
}

/// What a program's environment must have, besides LD_PRELOAD, to be tracked as this one is.
pub fn entries() -> impl Iterator<Item = &'static CStr> {
    [RING.get(), FOLLOW_ALWAYS, ENGINE.get()].into_iter().filter(|entry| !entry.is_empty())
}

/// The environment that this process was started with, for a program that is not to be tracked: without
/// LD_PRELOAD and this library's variables, but for the one that names the report. It is the kernel's
/// copy, which no thread is changing.
pub fn untracked() -> Vec<CString> {
    let all = std::fs::read("/proc/self/environ").unwrap_or_default();
    let is_kept = |entry: &&[u8]| {
        let ours = [PRELOAD_VARIABLE, SWITCH_VARIABLE].map(CStr::to_bytes);
        let name = entry.split(|&byte| byte == b'=').next().unwrap_or_default();
        name.len() < entry.len() && !ours.contains(&name) && !name.starts_with(b"TTALLOC_")
    };
    let kept = all.split(|&byte| byte == 0).filter(is_kept);
    let kept = kept.filter_map(|entry| CString::new(entry).ok());
    kept.chain(Some(REPORT.get().to_owned()).filter(|entry| !entry.is_empty())).collect()
}
