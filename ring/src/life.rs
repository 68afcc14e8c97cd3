//! What a writer without room waits for: that the reader makes room, or ends.
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
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::time::Duration;

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
    let word = word.load(Ordering::Acquire);
    word & libc::FUTEX_OWNER_DIED != 0 || word & !libc::FUTEX_WAITERS == 0
}

/// Whether somebody waits for room, and when room was made.
#[repr(C)]
pub struct Room {
    /// Another value each time those who wait were woken.
    made: AtomicU32,
    /// Whether anybody may be waiting.
    wanted: AtomicU32,
}

/// What [`Room::made`] was before somebody looked for room in vain.
#[derive(Clone, Copy)]
pub struct Ticket(u32);

impl Room {
    /// To be called before looking for room once more, and then waiting with what it returns.
    pub fn announce(&self) -> Ticket {
        // Acquire pairs with the release in `wake`: who sees that room was made finds it.
        let ticket = Ticket(self.made.load(Ordering::Acquire));
        self.wanted.store(1, Ordering::Relaxed);
        // Pairs with the fence in `tell`: either the reader sees that room is wanted, or the room that it
        // has made is seen after this.
        fence(Ordering::SeqCst);
        ticket
    }

    /// Wakes those who wait, if there are any, after room was made or the ring was closed.
    pub fn tell(&self) {
        // Pairs with the fence in `announce`.
        fence(Ordering::SeqCst);
        if self.wanted.load(Ordering::Relaxed) != 0 {
            self.wanted.store(0, Ordering::Relaxed);
            self.wake();
        }
    }

    /// Wakes all who wait.
    pub fn wake(&self) {
        // Release pairs with the acquire in `announce`.
        self.made.fetch_add(1, Ordering::Release);
        wake(&self.made);
    }

    /// Waits until room was made since the ticket, or the thread that keeps `life` ends, for `limit` at
    /// the most. May return sooner, and for no reason.
    pub fn wait(&self, ticket: Ticket, life: &AtomicU32, limit: Option<Duration>) {
        static CANNOT: AtomicBool = AtomicBool::new(false);
        if !CANNOT.load(Ordering::Relaxed) {
            match self.wait_for_both(ticket, life, limit) {
                Ok(()) => return,
                Err(_) => CANNOT.store(true, Ordering::Relaxed),
            }
        }
        self.wait_for_room(ticket, limit);
    }

    /// Waits for both words at once, which Linux can since 5.16.
    fn wait_for_both(
        &self,
        ticket: Ticket,
        life: &AtomicU32,
        limit: Option<Duration>,
    ) -> io::Result<()> {
        // The kernel wakes nobody unless this is set.
        let life_now = life.fetch_or(libc::FUTEX_WAITERS, Ordering::Relaxed) | libc::FUTEX_WAITERS;
        if life_now & libc::FUTEX_OWNER_DIED != 0 || life_now & !libc::FUTEX_WAITERS == 0 {
            return Ok(());
        }
        /// The kernel's `struct futex_waitv`.
        #[repr(C)]
        struct Wait {
            value: u64,
            word: *const AtomicU32,
            flags: u32,
            reserved: u32,
        }
        let one = |word: &AtomicU32, value| Wait {
            value: u64::from(value),
            word,
            flags: libc::FUTEX2_SIZE_U32 as u32,
            reserved: 0,
        };
        let words = [one(&self.made, ticket.0), one(life, life_now)];
        let until = limit.map(|limit| {
            let now = crate::clock::now_ns();
            let until = now.saturating_add(limit.as_nanos() as u64);
            libc::timespec {
                tv_sec: (until / 1_000_000_000) as i64,
                tv_nsec: (until % 1_000_000_000) as i64,
            }
        });
        let until = until.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: two words that stay mapped, their count, no flags, a time or none, and its clock.
        let woken = unsafe {
            libc::syscall(
                libc::SYS_futex_waitv,
                words.as_ptr(),
                words.len(),
                0,
                until,
                libc::CLOCK_MONOTONIC,
            )
        };
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

    /// Waits for room alone, and not for long: the reader may end meanwhile.
    fn wait_for_room(&self, ticket: Ticket, limit: Option<Duration>) {
        let limit = limit.unwrap_or(LOOK_EVERY).min(LOOK_EVERY);
        let time = libc::timespec { tv_sec: 0, tv_nsec: i64::from(limit.subsec_nanos()) };
        let word = self.made.as_ptr();
        // SAFETY: a word that stays mapped, the value it should have, and a time. Shared between processes,
        // so without FUTEX_PRIVATE_FLAG.
        unsafe {
            libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAIT, ticket.0, &raw const time)
        };
    }
}

/// How often to look whether the reader is alive where the kernel can't wait for two things, and how
/// long to wait for a lane that another writer holds.
const LOOK_EVERY: Duration = Duration::from_millis(10);

fn wake(word: &AtomicU32) {
    // SAFETY: a word that stays mapped, and how many to wake; shared between processes.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}
