//! Signals: the program gets what was meant for it, and starts with what the launcher was given.

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::Cause;

/// Signals that one process sends another to tell it something.
const FORWARDED: [i32; 5] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1];
/// The signal that asks for a snapshot of the report.
const SNAPSHOT: i32 = SIGUSR2;
/// The signals that ask one who runs by itself to come to an end.
const END: [i32; 3] = [SIGHUP, SIGINT, SIGTERM];

/// Whether SIGPIPE was ignored when this process started. Rust's start-up code ignores it, so `main`
/// can't tell any more.
static PIPE_IGNORED: AtomicBool = AtomicBool::new(false);
/// Which standard streams were closed then. Rust's start-up code opens /dev/null in their place.
static CLOSED: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = note_inherited;

extern "C" fn note_inherited() {
    PIPE_IGNORED.store(is_ignored(libc::SIGPIPE), Ordering::Relaxed);
    for (fd, closed) in (0..).zip(&CLOSED) {
        // SAFETY: only asks.
        closed.store(unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0, Ordering::Relaxed);
    }
}

fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: reads the signal's action into memory of the right size.
    let result = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: zeroed memory is a valid action, and so is what the kernel wrote.
    result == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

fn set(signal: i32, handler: libc::sighandler_t) {
    // SAFETY: SIG_IGN or SIG_DFL, for a signal that exists.
    unsafe { libc::signal(signal, handler) };
}

/// The signals of a run.
pub struct Signals {
    arriving: SignalsInfo<WithOrigin>,
    taken: Vec<i32>,
    mask: libc::sigset_t,
    child_ignored: bool,
    file_size_ignored: bool,
}

impl Signals {
    /// Takes the signals that are to be forwarded, and the one for a snapshot, except those that this
    /// process was told to ignore (by nohup, for example), which the program inherits as ignored.
    pub fn take() -> io::Result<Signals> {
        let mut mask = MaybeUninit::zeroed();
        // SAFETY: only reads this thread's mask, into memory of the right size.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), mask.as_mut_ptr()) };
        // SAFETY: zeroed memory is a valid mask, and so is what the call wrote.
        let mask = unsafe { mask.assume_init() };
        let child_ignored = is_ignored(libc::SIGCHLD);
        if child_ignored {
            // Ignored, it would reap the program before its exit code is read.
            set(libc::SIGCHLD, libc::SIG_DFL);
        }
        // A file that grows too large is to be an error, not the launcher's end.
        let file_size_ignored = is_ignored(libc::SIGXFSZ);
        set(libc::SIGXFSZ, libc::SIG_IGN);
        let all = FORWARDED.into_iter().chain([SNAPSHOT]);
        let taken: Vec<_> = all.filter(|&signal| !is_ignored(signal)).collect();
        let arriving = SignalsInfo::new(&taken)?;
        Ok(Signals { arriving, taken, mask, child_ignored, file_size_ignored })
    }

    /// Makes `command` start with the mask, the ignored signals and the closed standard streams that
    /// this process started with.
    pub fn pass_on(&self, command: &mut Command) {
        let Signals { mask, child_ignored, file_size_ignored, .. } = *self;
        let pipe_ignored = PIPE_IGNORED.load(Ordering::Relaxed);
        let restore = move || {
            let handler = |ignored| if ignored { libc::SIG_IGN } else { libc::SIG_DFL };
            set(libc::SIGPIPE, handler(pipe_ignored));
            set(libc::SIGCHLD, handler(child_ignored));
            set(libc::SIGXFSZ, handler(file_size_ignored));
            for (fd, closed) in (0..).zip(&CLOSED) {
                if closed.load(Ordering::Relaxed) {
                    // SAFETY: what Rust's start-up code has opened there, which nothing uses before exec.
                    unsafe { libc::close(fd) };
                }
            }
            // SAFETY: a mask that the kernel gave us.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &mask, std::ptr::null_mut()) };
            Ok(())
        };
        // SAFETY: only makes calls that are safe in a forked child of a threaded process.
        unsafe { command.pre_exec(restore) };
    }

    /// Forwards what has arrived to the process `pid`, which must not have been waited for yet. Returns
    /// whether a snapshot was asked for.
    pub fn forward_to(&mut self, pid: u32) -> bool {
        let mut snapshot = false;
        for signal in self.arriving.pending() {
            if signal.signal == SNAPSHOT {
                snapshot = true;
                continue;
            }
            // What the terminal sends, it sends to the program too.
            if signal.cause == Cause::Kernel {
                continue;
            }
            // SAFETY: a plain system call; the pid is our child's, which is not reaped.
            unsafe { libc::kill(pid as i32, signal.signal) };
        }
        snapshot
    }
}

impl Signals {
    /// When there is no program to forward to, a signal is the launcher's own again.
    pub fn release(&mut self) {
        for signal in self.taken.drain(..) {
            set(signal, libc::SIG_DFL);
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.release();
    }
}

/// What a signal asks of one who runs by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// To write a snapshot of the report.
    Snapshot,
    /// To write the report, and to end.
    End,
}

/// The signals of one who runs by itself: they are kept until they are asked for.
pub struct Wishes {
    set: libc::sigset_t,
}

impl Wishes {
    /// Takes the signals.
    pub fn take() -> Wishes {
        let set = signal_set(END.into_iter().chain([SNAPSHOT]));
        change_mask(libc::SIG_BLOCK, &set);
        Wishes { set }
    }

    /// What has been wished for.
    pub fn next(&self) -> Option<Wish> {
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: a set and a time, and nothing to be told beside the signal's number.
        match unsafe { libc::sigtimedwait(&self.set, std::ptr::null_mut(), &now) } {
            SNAPSHOT => Some(Wish::Snapshot),
            signal if END.contains(&signal) => Some(Wish::End),
            _ => None,
        }
    }
}

/// Blocks all signals for this thread; returns what was blocked before.
pub fn block_all() -> libc::sigset_t {
    let mut all = MaybeUninit::zeroed();
    // SAFETY: memory of the right size.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: zeroed memory is a valid set, and so is what the call wrote.
    change_mask(libc::SIG_BLOCK, &unsafe { all.assume_init() })
}

/// Blocks what was blocked before.
pub fn restore(mask: &libc::sigset_t) {
    change_mask(libc::SIG_SETMASK, mask);
}

fn signal_set(signals: impl Iterator<Item = i32>) -> libc::sigset_t {
    let mut set = MaybeUninit::zeroed();
    // SAFETY: memory of the right size.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in signals {
        // SAFETY: a set, made above, and a signal that exists.
        unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    }
    // SAFETY: zeroed memory is a valid set, and so is what the calls wrote.
    unsafe { set.assume_init() }
}

fn change_mask(how: i32, set: &libc::sigset_t) -> libc::sigset_t {
    let mut before = MaybeUninit::zeroed();
    // SAFETY: a set that was made by the calls for it, and memory for another.
    unsafe { libc::pthread_sigmask(how, set, before.as_mut_ptr()) };
    // SAFETY: zeroed memory is a valid set, and so is what the call wrote.
    unsafe { before.assume_init() }
}

/// The name of a signal, such as `SIGKILL`.
pub fn name(signal: i32) -> String {
    let known = signal_hook::low_level::signal_name(signal);
    known.map_or_else(|| format!("signal {signal}"), str::to_owned)
}
