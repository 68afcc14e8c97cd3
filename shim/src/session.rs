//! Recording: from the first call that is worth a record to the last.
//!
//! Nothing runs before tt-metal is called. The first call reaches the ring; calls of other threads wait
//! for it then, so that nothing is lost, but not for ever: what has waited in vain is counted. Nobody
//! waits in any other case, and there is no lock that a signal handler, a fork or an exit could leave
//! behind.

use std::cell::Cell;
use std::sync::atomic::{
    AtomicI32, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};
use std::time::{Duration, Instant};

use ttalloc_ring::clock::now_ns;
use ttalloc_ring::errno::KeepErrno;
use ttalloc_ring::record::{self, Body, Head, MAX_BYTES};
use ttalloc_ring::ring::{Follow, Producer};
use ttalloc_symbols::{SYMBOLS, SymbolSet};

use crate::reach::{self, Name, Reached, Unreachable};
use crate::reconcile::Watch;
use crate::runtime::{MOST_BUILD_ID, Runtime};
use crate::{collector, environment, inline, notice, process};

const NEW: u8 = 0;
const ON: u8 = 1;
const OFF: u8 = 2;
static STATE: AtomicU8 = AtomicU8::new(NEW);
static SESSION: AtomicPtr<Session> = AtomicPtr::new(std::ptr::null_mut());
/// The thread that is reaching the ring, by its id; 0 if none is.
static STARTER: AtomicI32 = AtomicI32::new(0);
/// How long other threads wait for it: longer than it takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often they look whether it is still there.
const LOOK: Duration = Duration::from_millis(10);
/// Calls that could not be recorded, because the ring could not be reached yet.
static MISSED: AtomicU64 = AtomicU64::new(0);
/// The number plus one of this process, or of the nearest that it was forked from and that was
/// announced; 0 if none was.
static LINE: AtomicU32 = AtomicU32::new(0);

thread_local! {
    /// The ring's lane that this thread used last.
    static LANE: Cell<u32> = const { Cell::new(0) };
}

/// What a process that uses tt-metal under a launcher has.
struct Session {
    producer: Producer,
    name: Name,
    /// Whether the ring was handed over the socket, which then tells the pid too.
    by_socket: bool,
    runtime: &'static Runtime,
    own: &'static PerProcess,
}

/// What stands for a number in a process that is not to be tracked.
const NOBODY: u32 = u32::MAX;

/// State that a forked child must not inherit. It lives on pages that the kernel clears on fork.
#[repr(C)]
struct PerProcess {
    /// The process's number in the ring plus one; 0 until announced. [`NOBODY`] if it never will be.
    number: AtomicU32,
    /// The pid that the launcher has told; 0 if it has not.
    told_pid: AtomicU32,
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

/// Announces this process before any hook is called: what can't be hooked may be all that it calls.
pub fn announce_early() {
    if STATE.load(Ordering::Acquire) == NEW && start() {
        // SAFETY: set to a leaked box before STATE became ON, and never changed.
        let session = unsafe { SESSION.load(Ordering::Acquire).as_ref() };
        if let Some(session) = session.filter(|one| one.own.number.load(Ordering::Acquire) == 0) {
            let _ = announce(session);
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
            0 if is_only_an_end(index) => return None,
            0 => announce(session)?,
            NOBODY => return None,
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

/// The roles of what a forked child may do to what it was forked with only because it ends, as by the
/// destructors that `exit` runs.
const ENDS: [&str; 11] = [
    "deallocate",
    "deallocate_all",
    "clear",
    "allocator_end",
    "mesh_close",
    "mesh_impl_close",
    "device_close",
    "clear_sub_devices",
    "program_end",
    "unplan",
    "release_trace",
];

/// Whether a call of the symbol at `index` is no reason to announce a process that was forked and has
/// done nothing else.
#[cold]
fn is_only_an_end(index: usize) -> bool {
    LINE.load(Ordering::Relaxed) != 0
        && SYMBOLS.get(index).is_some_and(|symbol| ENDS.contains(&symbol.role))
}

/// Reaches the ring, if there is one; whether recording is on.
#[cold]
fn start() -> bool {
    // A constructor of tt-metal's may run before ours.
    environment::copy();
    if !environment::is_on() {
        STATE.store(OFF, Ordering::Release);
        return false;
    }
    let Some(runtime) = Runtime::get() else { return false };
    let _errno = KeepErrno::new();
    if !begin() {
        return STATE.load(Ordering::Acquire) == ON;
    }
    // Another thread may have been here before.
    if STATE.load(Ordering::Acquire) == NEW {
        match reach() {
            Ok((Reached { producer, pid }, name)) => {
                let by_socket = pid.is_some();
                let session =
                    per_process().map(|own| Session { producer, name, by_socket, runtime, own });
                if let (Some(session), Some(pid)) = (&session, pid) {
                    session.own.told_pid.store(pid, Ordering::Release);
                }
                let state = if session.is_some() { ON } else { OFF };
                let session =
                    session.map_or(std::ptr::null_mut(), |one| Box::into_raw(Box::new(one)));
                SESSION.store(session, Ordering::Release);
                STATE.store(state, Ordering::Release);
            }
            // The program may have descriptors or memory to spare at the next call.
            Err(Unreachable::Passing) => {
                MISSED.fetch_add(1, Ordering::Relaxed);
            }
            Err(Unreachable::Gone) => STATE.store(OFF, Ordering::Release),
            Err(Unreachable::Refused(why)) => {
                STATE.store(OFF, Ordering::Release);
                notice::untracked(&why);
            }
        }
    }
    STARTER.store(0, Ordering::Release);
    STATE.load(Ordering::Acquire) == ON
}

/// Becomes the thread that reaches the ring; false if another has done so meanwhile, or this call has
/// to be missed.
fn begin() -> bool {
    // SAFETY: takes nothing.
    let own = unsafe { libc::gettid() };
    let until = Instant::now() + PATIENCE;
    loop {
        let Err(other) = STARTER.compare_exchange(0, own, Ordering::AcqRel, Ordering::Acquire)
        else {
            return true;
        };
        if STATE.load(Ordering::Acquire) != NEW {
            return false;
        }
        // A signal handler has interrupted this very thread there: waiting would be for ever.
        if other == own || Instant::now() > until {
            MISSED.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        if is_thread(other) {
            std::thread::sleep(LOOK);
        } else if STARTER.compare_exchange(other, own, Ordering::AcqRel, Ordering::Acquire).is_ok()
        {
            // It was the thread of a process that this one was forked from.
            return true;
        }
    }
}

/// Whether this process has a thread of that id.
fn is_thread(thread: i32) -> bool {
    let own = std::process::id();
    // SAFETY: plain numbers; signal 0 is none.
    unsafe { libc::syscall(libc::SYS_tgkill, own, thread, 0) == 0 }
}

/// Reaches the ring that a launcher has named, or that of a collector of our own.
fn reach() -> Result<(Reached, Name), Unreachable> {
    let name = if environment::has_ring() {
        Name::parse(environment::ring().to_bytes()).ok_or_else(|| {
            let what = "TTALLOC_RING does not name a launcher's ring";
            Unreachable::Refused(format!("{what}; unset it, or run it under ttalloc-run"))
        })?
    } else {
        let answer = collector::start()?;
        Name::parse(&answer).ok_or_else(|| {
            let what = "its collector answered what makes no sense";
            Unreachable::Refused(format!("{what}; install the library and ttalloc from one build"))
        })?
    };
    Ok((reach::ring(&name)?, name))
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

/// Tells the launcher of this process and its runtime; returns the process's number, or None if it is
/// not to be tracked.
#[cold]
fn announce(session: &'static Session) -> Option<u32> {
    let _errno = KeepErrno::new();
    let pid = pid(session);
    let number = &session.own.number;
    if !is_followed(&session.producer, pid) {
        number.store(NOBODY, Ordering::Release);
        return None;
    }
    let start_ticks = process::start_ticks();
    let process = session.producer.new_process(pid, start_ticks);
    match number.compare_exchange(0, process + 1, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        Err(other) => {
            session.producer.forget_process(process);
            return Some(other - 1);
        }
    }
    session.producer.count_dropped(MISSED.swap(0, Ordering::Relaxed));
    let parent_process = LINE.swap(process + 1, Ordering::Relaxed);
    session.own.forked.store((parent_process != 0).into(), Ordering::Release);
    let recorder = Recorder { session, process };
    let (body, argv) = process::describe(pid, start_ticks, environment::rank(), parent_process);
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
    Some(process)
}

/// This process's pid as the launcher sees it; 0 if that can't be told.
fn pid(session: &Session) -> u32 {
    if !session.by_socket {
        return process::visible_pid();
    }
    match session.own.told_pid.load(Ordering::Acquire) {
        // Forked since.
        0 => reach::told_pid(&session.name),
        pid => pid,
    }
}

/// Whether the process of that pid, this one, is to be tracked. Which one is, where only one is, the
/// launcher knows as soon as it has started it.
fn is_followed(producer: &Producer, pid: u32) -> bool {
    const PATIENCE: Duration = Duration::from_millis(500);
    let until = Instant::now() + PATIENCE;
    loop {
        match (producer.follow(), producer.only()) {
            (Follow::None, 0) if Instant::now() < until => std::thread::sleep(LOOK / 10),
            (Follow::None, only) if only != 0 => return only == pid,
            _ => return true,
        }
    }
}
