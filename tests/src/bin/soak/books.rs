//! What the writers say of themselves: in memory that they share with the reader, and that no signal can
//! take from it.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::MmapRaw;

/// At most so many writers in a round; those beyond do not begin.
pub const WRITERS: usize = 4096;

/// One thread's own count.
#[repr(C, align(64))]
pub struct Writer {
    /// Records that it began to write.
    pub begun: AtomicU64,
    /// Records that it was told are written.
    pub done: AtomicU64,
    /// How often it was told that one is not.
    pub refused: AtomicU64,
    /// 1 once it has ended of itself.
    pub ended: AtomicU64,
}

#[repr(C, align(64))]
struct Header {
    writers: AtomicU64,
    forks: AtomicU64,
    stop: AtomicU64,
}

/// The memory.
pub struct Books {
    map: MmapRaw,
}

impl Books {
    /// New ones, which forked children share.
    pub fn new() -> io::Result<Books> {
        let bytes = size_of::<Header>() + WRITERS * size_of::<Writer>();
        let file = tempfile::tempfile()?;
        file.set_len(bytes as u64)?;
        Ok(Books { map: MmapRaw::map_raw(&file)? })
    }

    fn header(&self) -> &Header {
        // SAFETY: the mapping is page-aligned, longer than that, zeroed, and lives as long as `self`;
        // atomics may be shared.
        unsafe { &*self.map.as_ptr().cast::<Header>() }
    }

    /// All that can be.
    pub fn writers(&self) -> &[Writer] {
        // SAFETY: a header lies before it in the mapping.
        let start = unsafe { self.map.as_ptr().add(size_of::<Header>()) };
        // SAFETY: so many fit, and all else is as in `header`.
        unsafe { std::slice::from_raw_parts(start.cast::<Writer>(), WRITERS) }
    }

    /// Those that have begun.
    pub fn begun(&self) -> &[Writer] {
        let count = self.header().writers.load(Ordering::Acquire) as usize;
        &self.writers()[..count.min(WRITERS)]
    }

    /// A place for one more writer, with its number.
    pub fn begin(&self) -> Option<(u64, &Writer)> {
        let number = self.header().writers.fetch_add(1, Ordering::AcqRel);
        Some((number, self.writers().get(number as usize)?))
    }

    /// Counts a fork.
    pub fn count_fork(&self) {
        self.header().forks.fetch_add(1, Ordering::Relaxed);
    }

    /// How often writers forked.
    pub fn forks(&self) -> u64 {
        self.header().forks.load(Ordering::Relaxed)
    }

    /// Tells all writers to end.
    pub fn stop(&self) {
        self.header().stop.store(1, Ordering::Release);
    }

    /// Whether they were told so.
    pub fn is_stopped(&self) -> bool {
        self.header().stop.load(Ordering::Acquire) != 0
    }
}
