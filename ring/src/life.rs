//! What a writer without room waits for: that the reader makes room, or ends.
//!
//! # How the reader's end is known
//!
//! The reader's thread keeps a word in the shared memory on its list of robust futexes, which the kernel
//! goes through when a thread ends, however it ends: it marks the word and wakes one of those who wait
//! for it (the kernel's Documentation/locking/robust-futex-ABI.rst). The list itself lies in the reader's
//! own memory, where no writer can spoil it; that is why this isn't a robust `pthread_mutex_t`, whose
//! list goes through the mutexes.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::clock::now_ns;
use crate::room::{Room, Ticket};

thread_local! {
    /// Whether this thread keeps a word.
    static KEEPS: Cell<bool> = const { Cell::new(false) };
}

/// The kernel's `struct robust_list`.
#[repr(C)]
struct Entry {
    next: *const Entry,
}

/// The kernel's `struct robust_list_head`.
#[repr(C)]
struct List {
    head: Entry,
    /// From an entry to its futex, in bytes.
    offset: libc::c_long,
    pending: *const Entry,
}

/// A list and the only entry that it has.
struct Keeping {
    list: List,
    entry: Entry,
}

/// A word that the kernel marks when the thread that began it ends.
pub struct Life {
    word: *const AtomicU32,
    /// What the kernel knows of. Freed only after it was told to forget it.
    keeping: *mut Keeping,
    /// The C library's own list, which is for robust mutexes.
    previous: (*const libc::c_void, usize),
    _not_send: PhantomData<*const ()>,
}

impl Life {
    /// Begins to keep `word` for the calling thread, which can keep one at a time.
    ///
    /// # Errors
    /// `ResourceBusy` if the thread keeps one already; what the system says otherwise.
    ///
    /// # Safety
    /// The word must stay mapped until the life was dropped, or the thread has ended.
    pub unsafe fn begin(word: &AtomicU32) -> io::Result<Life> {
        if KEEPS.get() {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "this thread keeps a ring already, and can't keep two",
            ));
        }
        let mut previous: (*const libc::c_void, usize) = (ptr::null(), 0);
        // SAFETY: two valid places for the results; 0 is the calling thread.
        let got = unsafe {
            libc::syscall(libc::SYS_get_robust_list, 0, &raw mut previous.0, &raw mut previous.1)
        };
        if got != 0 {
            return Err(io::Error::last_os_error());
        }
        let none = || Entry { next: ptr::null() };
        let list = List { head: none(), offset: 0, pending: ptr::null() };
        let keeping = Box::into_raw(Box::new(Keeping { list, entry: none() }));
        // SAFETY: the box was just made; only this function knows it.
        let at = unsafe { &mut *keeping };
        let entry = &raw const at.entry;
        at.list.offset = ptr::from_ref(word).addr().wrapping_sub(entry.addr()) as libc::c_long;
        at.list.head.next = entry;
        at.entry.next = &raw const at.list.head;
        // SAFETY: takes nothing.
        let thread = unsafe { libc::gettid() } as u32;
        // Release pairs with the acquire load in `is_over`.
        word.store(thread, Ordering::Release);
        // SAFETY: the list stays until `drop` puts the previous one back, and so does the word.
        let set = unsafe {
            libc::syscall(libc::SYS_set_robust_list, &raw const at.list, size_of::<List>())
        };
        if set != 0 {
            let why = io::Error::last_os_error();
            word.store(0, Ordering::Release);
            // SAFETY: made above, and the kernel didn't take it.
            drop(unsafe { Box::from_raw(keeping) });
            return Err(why);
        }
        KEEPS.set(true);
        Ok(Life { word, keeping, previous, _not_send: PhantomData })
    }

    /// Forgets this life in a process that was forked from the thread's own: there, it never began.
    pub fn forget_in_child(self) {
        KEEPS.set(false);
        std::mem::forget(self);
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // SAFETY: mapped as long as this lives, says `begin`.
        let word = unsafe { &*self.word };
        // Release, so that what was done before is seen by who sees the end.
        let waited = word.swap(0, Ordering::Release) & libc::FUTEX_WAITERS != 0;
        // SAFETY: the list that the thread had when it began.
        unsafe { libc::syscall(libc::SYS_set_robust_list, self.previous.0, self.previous.1) };
        // SAFETY: made by `begin`; the kernel has another list now.
        drop(unsafe { Box::from_raw(self.keeping) });
        KEEPS.set(false);
        if waited {
            wake(word);
        }
    }
}

/// Whether the thread that kept `word` has ended, or has given it up.
pub fn is_over(word: &AtomicU32) -> bool {
    // Acquire pairs with the releases in `begin` and `drop`.
    is_marked(word.load(Ordering::Acquire))
}

/// Whether a word says that its thread has ended, or never began it.
fn is_marked(word: u32) -> bool {
    word & libc::FUTEX_OWNER_DIED != 0 || word & !libc::FUTEX_WAITERS == 0
}

/// How often to look whether the reader is alive where the kernel can't wait for two things.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The kernel's `struct futex_waitv`.
#[repr(C)]
struct Wait {
    value: u64,
    word: *const AtomicU32,
    flags: u32,
    reserved: u32,
}

impl Wait {
    /// For a word that is shared between processes, as long as it has `value`.
    fn new(word: &AtomicU32, value: u32) -> Wait {
        let flags = libc::FUTEX2_SIZE_U32 as u32;
        Wait { value: value.into(), word, flags, reserved: 0 }
    }
}

/// Waits until room was made since the ticket, or the thread that keeps `life` ends, or for `limit`. May
/// return sooner, and for no reason. Changes `errno`.
pub fn wait(room: &Room, ticket: Ticket, life: &AtomicU32, limit: Option<Duration>) {
    /// Whether the system was found to be unable to wait for both.
    static CANNOT: AtomicBool = AtomicBool::new(false);
    if CANNOT.load(Ordering::Relaxed) || wait_for_both(room, ticket, life, limit).is_err() {
        CANNOT.store(true, Ordering::Relaxed);
        let limit = limit.map_or(LOOK_EVERY, |limit| limit.min(LOOK_EVERY));
        wait_for_room(room, ticket, limit);
    }
}

/// Waits for both words at once, which Linux can since 5.16.
fn wait_for_both(
    room: &Room,
    ticket: Ticket,
    life: &AtomicU32,
    limit: Option<Duration>,
) -> io::Result<()> {
    // The kernel wakes nobody without this. Relaxed: nothing else is told by it.
    life.fetch_or(libc::FUTEX_WAITERS, Ordering::Relaxed);
    let life_now = life.load(Ordering::Relaxed);
    if is_marked(life_now) {
        return Ok(());
    }
    let words = [Wait::new(room.made(), ticket.0), Wait::new(life, life_now)];
    let until = limit.map(|limit| {
        let until = now_ns().saturating_add(limit.as_nanos() as u64);
        let (tv_sec, tv_nsec) = ((until / 1_000_000_000) as i64, (until % 1_000_000_000) as i64);
        libc::timespec { tv_sec, tv_nsec }
    });
    let until = until.as_ref().map_or(ptr::null(), ptr::from_ref);
    let (call, clock) = (libc::SYS_futex_waitv, libc::CLOCK_MONOTONIC);
    // SAFETY: two words that stay mapped, their count, no flags, a time or none, and its clock.
    let woken = unsafe { libc::syscall(call, words.as_ptr(), words.len(), 0, until, clock) };
    if woken >= 0 {
        return Ok(());
    }
    let why = io::Error::last_os_error();
    match why.raw_os_error() {
        Some(libc::EAGAIN | libc::EINTR | libc::ETIMEDOUT) => Ok(()),
        // An older kernel, or a filter of system calls that doesn't know this one.
        _ => Err(why),
    }
}

/// Waits for room alone, for less than a second.
fn wait_for_room(room: &Room, ticket: Ticket, limit: Duration) {
    let time = libc::timespec { tv_sec: 0, tv_nsec: i64::from(limit.subsec_nanos()) };
    let word = room.made().as_ptr();
    // SAFETY: a word that stays mapped, the value it should have, and a time. Without
    // FUTEX_PRIVATE_FLAG, since it is shared between processes.
    unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAIT, ticket.0, &raw const time) };
}

/// Wakes all who wait for a word.
pub fn wake(word: &AtomicU32) {
    // SAFETY: a word that stays mapped, and how many to wake; shared between processes, as above.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(60);

    fn room() -> &'static Room {
        // SAFETY: any bytes are valid for its atomics.
        Box::leak(unsafe { Box::<Room>::new_zeroed().assume_init() })
    }

    fn word() -> &'static AtomicU32 {
        Box::leak(Box::new(AtomicU32::new(0)))
    }

    /// A thread that keeps a word until it is told to end, and ends as if it were killed.
    fn keeper(word: &'static AtomicU32) -> (mpsc::Sender<()>, thread::JoinHandle<()>) {
        let (stop, stopped) = mpsc::channel::<()>();
        let (begun, has_begun) = mpsc::channel();
        let keeper = thread::spawn(move || {
            // SAFETY: the word was leaked.
            std::mem::forget(unsafe { Life::begin(word) }.unwrap());
            begun.send(()).unwrap();
            stopped.recv().unwrap_err();
        });
        has_begun.recv().unwrap();
        (stop, keeper)
    }

    #[test]
    fn a_life_is_over_when_its_thread_ends_or_drops_it() {
        let word = word();
        assert!(is_over(word));
        let (stop, keeper) = keeper(word);
        assert!(!is_over(word));
        drop(stop);
        keeper.join().unwrap();
        assert!(is_over(word));
        // SAFETY: the word was leaked.
        let life = unsafe { Life::begin(word) }.unwrap();
        assert!(!is_over(word));
        drop(life);
        assert!(is_over(word));
    }

    /// Without a look in between: both are waited for at once, for a minute if nothing happens.
    #[test]
    fn who_waits_is_woken_by_either() {
        for by_room in [true, false] {
            let (room, word) = (room(), word());
            let (stop, _keeper) = keeper(word);
            let ticket = room.announce();
            let waiting = thread::spawn(move || {
                let begun = Instant::now();
                wait_for_both(room, ticket, word, Some(LONG)).map(|()| begun.elapsed())
            });
            thread::sleep(Duration::from_millis(50));
            let has_waited = !waiting.is_finished();
            if by_room {
                room.tell(wake);
            } else {
                drop(stop);
            }
            match waiting.join().unwrap() {
                Ok(time) => assert!(has_waited && time < LONG / 2, "{time:?}"),
                // A kernel that can't says so at once, and `wait` goes the other way.
                Err(why) => {
                    let why = why.raw_os_error();
                    assert!(matches!(why, Some(libc::ENOSYS | libc::EPERM)), "{why:?}");
                    continue;
                }
            }
            assert_eq!(is_over(word), !by_room);
        }
    }

    #[test]
    fn where_both_can_not_be_waited_for_one_looks_again_soon() {
        let room = room();
        let ticket = room.announce();
        let begun = Instant::now();
        wait_for_room(room, ticket, LOOK_EVERY);
        assert!(begun.elapsed() < LONG / 2);
        room.tell(wake);
        wait_for_room(room, ticket, LONG.min(Duration::from_millis(999)));
    }
}
