//! How a writer without room and the reader that makes some don't miss each other.

use crate::sync::{AtomicU32, Ordering, fence};

/// Whether somebody waits for room, and when room was made.
#[repr(C)]
pub struct Room {
    /// Another value each time those who wait were woken. It is this word that they wait for.
    made: AtomicU32,
    /// Whether anybody may be waiting. A flag, not a count: whoever dies while waiting leaves it set, which
    /// costs the reader one call of the system for nothing.
    wanted: AtomicU32,
}

/// What [`Room::made`] was before somebody looked for room in vain.
#[derive(Clone, Copy)]
pub struct Ticket(pub u32);

impl Room {
    #[cfg(all(test, any(loom, shuttle)))]
    pub fn new() -> Room {
        Room { made: AtomicU32::new(0), wanted: AtomicU32::new(0) }
    }

    /// The word to wait for.
    pub fn made(&self) -> &AtomicU32 {
        &self.made
    }

    /// To be called before looking for room once more. If there still is none, [`Room::made`] is waited
    /// for as long as it has the ticket's value.
    pub fn announce(&self) -> Ticket {
        // Acquire pairs with the release in `wake`: who sees that room was made finds it.
        let ticket = Ticket(self.made.load(Ordering::Acquire));
        self.wanted.store(1, Ordering::Relaxed);
        // Pairs with the fence in `tell`: either the reader sees that room is wanted, or the room that it
        // has made is seen after this.
        fence(Ordering::SeqCst);
        ticket
    }

    /// To be called after room was made, or the ring was closed. `wake` wakes all who wait for a word.
    pub fn tell(&self, wake: impl FnOnce(&AtomicU32)) {
        // Pairs with the fence in `announce`.
        fence(Ordering::SeqCst);
        // Relaxed: who announces itself between these two has a ticket that ends with what follows.
        if self.wanted.load(Ordering::Relaxed) != 0 {
            self.wanted.store(0, Ordering::Relaxed);
            self.wake(wake);
        }
    }

    /// Has all who wait look again.
    pub fn wake(&self, wake: impl FnOnce(&AtomicU32)) {
        // Release pairs with the acquire in `announce`.
        self.made.fetch_add(1, Ordering::Release);
        wake(&self.made);
    }
}
