//! The way to the launcher: finding the ring, announcing this process, writing records.
//!
//! Nothing here waits for another thread, and nothing runs before tt-metal is called, so there is no
//! lock that a signal handler, a fork or an exit could leave behind.

use std::cell::Cell;
use std::ffi::{CStr, OsStr, c_char};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use ttalloc_ring::clock::now_ns;
use ttalloc_ring::errno::KeepErrno;
use ttalloc_ring::record::{self, Body, Head};
use ttalloc_ring::ring::{AttachError, Producer};
use ttalloc_ring::{ENGINE_VARIABLE, Engine, RING_VARIABLE, record::MAX_BYTES};
use ttalloc_symbols::SymbolSet;

use crate::inline;
use crate::reconcile::Watch;
use crate::runtime::{MOST_BUILD_ID, Runtime};

/// The variable that names the ring, copied when this library is loaded: the program may change its environment.
static RING_PATH: [AtomicU8; 64] = [const { AtomicU8::new(0) }; 64];
/// The engine, copied with it: its place in [`Engine::ALL`].
static ENGINE: AtomicU8 = AtomicU8::new(0);
/// Whether both were copied.
static REMEMBERED: AtomicU8 = AtomicU8::new(0);

const NEW: u8 = 0;
const ON: u8 = 1;
const OFF: u8 = 2;
static STATE: AtomicU8 = AtomicU8::new(NEW);
static SESSION: AtomicPtr<Session> = AtomicPtr::new(std::ptr::null_mut());
/// Calls that could not be recorded, because the ring could not be reached yet.
static MISSED: AtomicU64 = AtomicU64::new(0);
/// Whether this process or one that it was forked from was announced.
static ANNOUNCED: AtomicU8 = AtomicU8::new(0);

thread_local! {
    /// The ring's lane that this thread used last.
    static LANE: Cell<u32> = const { Cell::new(0) };
}

/// What a process that uses tt-metal under a launcher has.
struct Session {
    producer: Producer,
    runtime: &'static Runtime,
    own: &'static PerProcess,
}

/// State that a forked child must not inherit. It lives on pages that the kernel clears on fork.
#[repr(C)]
struct PerProcess {
    /// The process's number in the ring plus one; 0 until announced.
    number: AtomicU32,
    /// 1 if this process was forked from one that was announced.
    forked: AtomicU32,
    /// Allocators and devices that were described to the launcher.
    described: [[AtomicUsize; 8]; 32],
    /// The allocators among them that may be asked what they have given.
    watch: Watch,
}

impl PerProcess {
    fn set(&self, object: usize) -> &[AtomicUsize; 8] {
        // Heap objects differ above their lowest four bits.
        let hash = (object as u64 >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 59;
        &self.described[hash as usize]
    }

    fn knows(&self, object: usize) -> bool {
        self.set(object).iter().any(|entry| entry.load(Ordering::Acquire) == object)
    }

    /// Remembers `object`, where there is room: what is not remembered is described again.
    fn remember(&self, object: usize) {
        let _ = self.set(object).iter().find(|entry| {
            entry.compare_exchange(0, object, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        });
    }

    fn forget(&self, object: usize) {
        for entry in self.set(object) {
            let _ = entry.compare_exchange(object, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

/// Copies the ring's path and the engine out of the environment, the first time. Runs when the first
/// library is loaded.
pub extern "C" fn remember_environment() {
    if REMEMBERED.swap(1, Ordering::AcqRel) != 0 {
        return;
    }
    if let Some(value) = variable(RING_VARIABLE) {
        let value = value.to_bytes_with_nul();
        // A value that is too long is none of ours; left empty, it leads nowhere.
        if value.len() <= RING_PATH.len() {
            for (to, from) in RING_PATH.iter().zip(value) {
                to.store(*from, Ordering::Relaxed);
            }
        }
    }
    // A name that is none stands for the default. The launcher refuses it.
    let named = variable(ENGINE_VARIABLE).and_then(|value| {
        Engine::ALL.iter().position(|engine| engine.name().as_bytes() == value.to_bytes())
    });
    ENGINE.store(named.unwrap_or_default() as u8, Ordering::Release);
}

/// The value of an environment variable.
fn variable(name: &CStr) -> Option<&'static CStr> {
    // SAFETY: a C string; at this time no other thread can be changing the environment.
    let value: *const c_char = unsafe { libc::getenv(name.as_ptr()) };
    // SAFETY: getenv returned it, and nothing changes the environment until it was copied.
    (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) })
}

/// Whether there was a ring's path in the environment.
pub fn has_ring() -> bool {
    RING_PATH[0].load(Ordering::Relaxed) != 0
}

/// The engine that the environment named.
pub fn engine() -> Engine {
    let at = ENGINE.load(Ordering::Acquire);
    Engine::ALL.get(usize::from(at)).copied().unwrap_or_default()
}

/// Announces this process before any hook is called: what can't be hooked may be all that it calls.
pub fn announce_early() {
    if STATE.load(Ordering::Acquire) == NEW && start() {
        // SAFETY: set to a leaked box before STATE became ON, and never changed.
        let session = unsafe { SESSION.load(Ordering::Acquire).as_ref() };
        if let Some(session) = session.filter(|one| one.own.number.load(Ordering::Acquire) == 0) {
            announce(session);
        }
    }
}

/// Writes the records of one call of a hook.
#[derive(Clone, Copy)]
pub struct Recorder {
    session: &'static Session,
    process: u32,
}

impl Recorder {
    /// A recorder for a call of the hook of the symbol at `index`, which came by way of the dynamic linker;
    /// None when nothing is to be recorded. A patched function records for itself.
    #[inline]
    pub fn for_call(index: usize) -> Option<Recorder> {
        if inline::is_patched(index) { None } else { Recorder::for_patched(index) }
    }

    /// A recorder for a call of the patched function of the symbol at `index`.
    #[inline]
    pub fn for_patched(index: usize) -> Option<Recorder> {
        match STATE.load(Ordering::Acquire) {
            ON => {}
            OFF => return None,
            _ => {
                if !start() {
                    return None;
                }
                // Not before: while it is being loaded, asking for it would begin to use it too soon.
                if let Some(runtime) = Runtime::get() {
                    runtime.keep_loaded();
                }
            }
        }
        // SAFETY: set to a leaked box before STATE became ON, and never changed.
        let session = unsafe { SESSION.load(Ordering::Acquire).as_ref() }?;
        let process = match session.own.number.load(Ordering::Acquire) {
            0 => announce(session),
            number => number - 1,
        };
        if !session.runtime.uses(index) {
            return None;
        }
        session.producer.count_call(process, index);
        Some(Recorder { session, process })
    }

    /// The runtime that was called.
    #[inline]
    pub fn runtime(&self) -> &'static Runtime {
        self.session.runtime
    }

    /// Writes a record that is stamped now.
    #[inline]
    pub fn write<B: Body>(&self, body: &B) {
        self.write_with_tail(body, &[]);
    }

    /// Writes a record with a tail.
    #[inline]
    pub fn write_with_tail<B: Body>(&self, body: &B, tail: &[u8]) {
        let head = Head { kind: B::KIND as u32, process: self.process, time_ns: now_ns() };
        const WORDS: usize = 16;
        const { assert!((size_of::<Head>() + size_of::<B>()).is_multiple_of(size_of::<u64>())) };
        const { assert!(size_of::<Head>() + size_of::<B>() <= WORDS * size_of::<u64>()) };
        let mut words = [0_u64; WORDS];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
        let (start, rest) = bytes.split_at_mut(size_of::<Head>());
        start.copy_from_slice(bytemuck::bytes_of(&head));
        rest[..size_of::<B>()].copy_from_slice(bytemuck::bytes_of(body));
        let words = &words[..(size_of::<Head>() + size_of::<B>()) / size_of::<u64>()];
        let producer = &self.session.producer;
        if !LANE.with(|lane| producer.write(lane, self.process, words, tail))
            && producer.is_closed()
        {
            STATE.store(OFF, Ordering::Release);
        }
    }

    /// Whether `object` was described to the launcher, as far as remembered.
    #[inline]
    pub fn knows(&self, object: usize) -> bool {
        self.session.own.knows(object)
    }

    /// Remembers that `object` was described.
    pub fn remember(&self, object: usize) {
        self.session.own.remember(object);
    }

    /// Forgets `object`, which ends: another may come to its address.
    pub fn forget(&self, object: usize) {
        self.session.own.forget(object);
    }

    /// The allocators that may be asked what they have given.
    #[inline]
    pub fn watch(&self) -> &'static Watch {
        &self.session.own.watch
    }

    /// Whether this process was forked from one that was tracked.
    pub fn is_forked(&self) -> bool {
        self.session.own.forked.load(Ordering::Acquire) != 0
    }
}

/// Attaches to the ring, if there is one; whether recording is on.
#[cold]
fn start() -> bool {
    let _errno = KeepErrno::new();
    let Some(runtime) = Runtime::get() else { return false };
    let session = match attach() {
        Ok(producer) => per_process().map(|own| Session { producer, runtime, own }),
        // The program may have descriptors or memory to spare at the next call.
        Err(AttachError::Io(why)) if is_passing(&why) => {
            MISSED.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        Err(_) => None,
    };
    let Some(session) = session else {
        let _ = STATE.compare_exchange(NEW, OFF, Ordering::AcqRel, Ordering::Relaxed);
        return STATE.load(Ordering::Acquire) == ON;
    };
    let session = Box::into_raw(Box::new(session));
    let published = SESSION.compare_exchange(
        std::ptr::null_mut(),
        session,
        Ordering::AcqRel,
        Ordering::Acquire,
    );
    if published.is_err() {
        // Another thread was faster.
        // SAFETY: this box was made above and given to nobody.
        drop(unsafe { Box::from_raw(session) });
    }
    let _ = STATE.compare_exchange(NEW, ON, Ordering::AcqRel, Ordering::Relaxed);
    STATE.load(Ordering::Acquire) == ON
}

fn attach() -> Result<Producer, AttachError> {
    let path: Vec<u8> = RING_PATH
        .iter()
        .map(|byte| byte.load(Ordering::Relaxed))
        .take_while(|&byte| byte != 0)
        .collect();
    Producer::attach(OsStr::from_bytes(&path))
}

/// Whether an error may be gone at the next try.
fn is_passing(why: &std::io::Error) -> bool {
    matches!(why.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EINTR))
}

/// This process's pid as /proc has it, through which the ring was found: the launcher's view, also from
/// another pid namespace.
fn visible_pid() -> u32 {
    let own = std::fs::read_link("/proc/self").ok();
    let pid = own.and_then(|path| path.to_str()?.parse().ok());
    pid.unwrap_or_else(std::process::id)
}

/// Maps the pages of [`PerProcess`].
fn per_process() -> Option<&'static PerProcess> {
    const BYTES: usize = 2 * 4096;
    const { assert!(size_of::<PerProcess>() <= BYTES) };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), BYTES, protection, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the pages that were just mapped, whole.
    if unsafe { libc::madvise(page, BYTES, libc::MADV_WIPEONFORK) } != 0 {
        // Before Linux 4.14. A forked child would write as its parent, so step aside.
        // SAFETY: as above; nobody else knows the page.
        unsafe { libc::munmap(page, BYTES) };
        return None;
    }
    // SAFETY: zeroed, page-aligned, large enough, never unmapped; atomics may be zero and shared.
    Some(unsafe { &*page.cast::<PerProcess>() })
}

/// Tells the launcher of this process and its runtime; returns the process's number.
#[cold]
fn announce(session: &'static Session) -> u32 {
    let _errno = KeepErrno::new();
    let pid = visible_pid();
    let process = session.producer.new_process(pid, 0);
    let number = &session.own.number;
    match number.compare_exchange(0, process + 1, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        Err(other) => {
            session.producer.forget_process(process);
            return other - 1;
        }
    }
    session.producer.count_dropped(MISSED.swap(0, Ordering::Relaxed));
    let forked = ANNOUNCED.swap(1, Ordering::Relaxed);
    session.own.forked.store(forked.into(), Ordering::Release);
    let recorder = Recorder { session, process };
    let room = MAX_BYTES - size_of::<Head>() - size_of::<record::Process>();
    let mut argv = Vec::new();
    let mut cut = false;
    for argument in std::env::args_os() {
        let argument = argument.into_vec();
        // Whole arguments, as far as they fit.
        cut |= argv.len() + argument.len() + 1 > room;
        if !cut {
            argv.extend(argument);
            argv.push(0);
        }
    }
    let body = record::Process {
        pid,
        parent_pid: std::os::unix::process::parent_id(),
        forked: forked.into(),
        argv_cut: cut.into(),
    };
    recorder.write_with_tail(&body, &argv);

    let runtime = session.runtime;
    let mut build_id = [0; MOST_BUILD_ID];
    let id = runtime.build_id();
    build_id[..id.len()].copy_from_slice(id);
    let body = record::Runtime {
        present: runtime.present.0,
        build_id,
        build_id_len: id.len() as u32,
        era: record::era_number(runtime.era),
        reserved: 0,
    };
    let path = runtime.path().to_bytes();
    recorder.write_with_tail(&body, &path[..path.len().min(MAX_BYTES / 2)]);
    let patched = inline::patched();
    if patched != SymbolSet::default() {
        recorder.write(&record::Patched { symbols: patched.0 });
    }
    for refused in inline::refused() {
        recorder.write(&record::Refused {
            symbol: refused.index as u32,
            reason: refused.why as u32,
            interposed: refused.interposed.into(),
            lossy: refused.lossy.into(),
        });
    }
    process
}
