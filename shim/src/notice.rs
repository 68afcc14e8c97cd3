//! The one line that this library may print: why a program is not tracked that was meant to be.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};

use ttalloc_ring::errno::KeepErrno;

/// Whether it was printed, in this process or one that it was forked from.
static PRINTED: AtomicBool = AtomicBool::new(false);

/// Prints to standard error that this process isn't tracked, why, and what to do about it. Once; and
/// not where that would stop or end the program, because nobody reads what it prints.
pub fn untracked(why: &str) {
    if PRINTED.swap(true, Ordering::Relaxed) {
        return;
    }
    let _errno = KeepErrno::new();
    let line = format!("ttalloc: process {} is not tracked: {why}\n", std::process::id());
    let mut ready = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one pollfd.
    let count = unsafe { libc::poll(&raw mut ready, 1, 0) };
    if count != 1 || ready.revents & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0 {
        return;
    }
    without_sigpipe(|| {
        // SAFETY: the pointer and length are those of a string.
        unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
    });
}

/// Does something that may raise SIGPIPE for this thread, which the program is not to see.
fn without_sigpipe(what: impl FnOnce()) {
    let Some(pipe) = set_of(libc::SIGPIPE) else { return };
    let Some(before) = change_mask(libc::SIG_BLOCK, &pipe) else { return };
    let is_pending = || {
        let mut pending = pipe;
        // SAFETY: room for a set of signals.
        unsafe { libc::sigpending(&raw mut pending) };
        // SAFETY: a set of signals.
        unsafe { libc::sigismember(&raw const pending, libc::SIGPIPE) == 1 }
    };
    let was_pending = is_pending();
    what();
    if !was_pending && is_pending() {
        let time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: a set of signals, no room for what is told of the signal, and a time.
        unsafe { libc::sigtimedwait(&raw const pipe, std::ptr::null_mut(), &raw const time) };
    }
    change_mask(libc::SIG_SETMASK, &before);
}

fn set_of(signal: i32) -> Option<libc::sigset_t> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: room for a set of signals.
    if unsafe { libc::sigemptyset(set.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: a set of signals, as made above.
    if unsafe { libc::sigaddset(set.as_mut_ptr(), signal) } != 0 {
        return None;
    }
    // SAFETY: initialized by the first call.
    Some(unsafe { set.assume_init() })
}

/// Changes which signals this thread blocks; returns what it was.
fn change_mask(how: i32, set: &libc::sigset_t) -> Option<libc::sigset_t> {
    let mut before = *set;
    // SAFETY: a set of signals, and room for one.
    let failed = unsafe { libc::pthread_sigmask(how, set, &raw mut before) };
    (failed == 0).then_some(before)
}
