//! The ring: records from any number of threads and processes to one launcher, through a sealed memfd.
//!
//! # Protocol
//!
//! The memory is a header and `slots` slots of 64 bytes. Positions count slots and never wrap; position
//! `p` lies in slot `p % slots`. A record takes consecutive slots. Its producer
//!
//! 1. waits until `tail + n <= head + slots`, so that it holds nothing while it waits,
//! 2. claims its slots by moving `tail`,
//! 3. writes them, and last writes `p + 1` into the first word of the first slot: the commit.
//!
//! The consumer reads from `head` while the commit there is the expected one, then moves `head`. No slot
//! before `head + slots` is ever written twice, so a commit can't be mistaken for an older one.
//!
//! A producer that finds the ring full waits as long as a consumer lives: the consumer holds a robust
//! mutex in the header, whose word the kernel marks when its thread dies, however it dies. A producer
//! that dies between 2 and 3 leaves a hole, which the consumer passes with [`Consumer::skip_torn`].
//!
//! Every access to the shared memory is atomic, and the consumer copies before it looks: what another
//! process writes at the wrong moment gives a bad record, not undefined behaviour.

use std::cell::UnsafeCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};

use crate::VERSION;
use crate::errno::KeepErrno;
use crate::record::MAX_BYTES;

/// The number of slots that the launcher uses: 8 MiB.
pub const DEFAULT_SLOTS: usize = 1 << 17;

/// How many processes the header knows the pids and counts the calls of; later ones are tracked without.
pub const KNOWN_PROCESSES: usize = 256;
/// How many symbols have counters of calls.
pub const COUNTED_SYMBOLS: usize = 64;

const MAGIC: u64 = u64::from_le_bytes(*b"ttalloc\0");
const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
const WORDS: usize = 8;
/// Bytes of a record in its first slot, after the commit and the length.
const FIRST_BYTES: usize = 8 * (WORDS - 2);
/// Bytes of a record in each further slot, after a word that is zero.
const NEXT_BYTES: usize = 8 * (WORDS - 1);
/// How often the consumer tells producers how far it is, in slots.
const PUBLISH_EVERY: u64 = 256;

/// A value on a cache line of its own.
#[repr(C, align(64))]
struct Line<T>(T);

#[repr(C)]
struct Header {
    magic: AtomicU64,
    version: AtomicU64,
    slots: AtomicU64,
    closed: AtomicU64,
    dropped: AtomicU64,
    processes: AtomicU64,
    tail: Line<AtomicU64>,
    head: Line<AtomicU64>,
    life: Line<Life>,
    pids: [AtomicU32; KNOWN_PROCESSES],
    calls: [Line<[AtomicU64; COUNTED_SYMBOLS]>; KNOWN_PROCESSES],
}

type Slot = Line<[AtomicU64; WORDS]>;

/// A robust mutex that the consumer's thread holds while it lives.
#[repr(C)]
struct Life(UnsafeCell<libc::pthread_mutex_t>);

impl Life {
    /// Initializes the mutex and takes it for the calling thread.
    fn begin(&self) -> io::Result<()> {
        let mut attributes = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        let attributes = attributes.as_mut_ptr();
        let check = |code: i32| match code {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code)),
        };
        // SAFETY: `attributes` points to memory of the right size for the object to be made there.
        check(unsafe { libc::pthread_mutexattr_init(attributes) })?;
        // SAFETY: initialized by the call above.
        check(unsafe {
            libc::pthread_mutexattr_setpshared(attributes, libc::PTHREAD_PROCESS_SHARED)
        })?;
        // SAFETY: as above.
        check(unsafe {
            libc::pthread_mutexattr_setrobust(attributes, libc::PTHREAD_MUTEX_ROBUST)
        })?;
        // SAFETY: the mutex's memory is the header's, zeroed and not yet known to anybody else.
        check(unsafe { libc::pthread_mutex_init(self.0.get(), attributes) })?;
        // SAFETY: initialized above and not used again.
        check(unsafe { libc::pthread_mutexattr_destroy(attributes) })?;
        // SAFETY: initialized above; `end` unlocks it on this thread before the memory goes.
        check(unsafe { libc::pthread_mutex_lock(self.0.get()) })
    }

    /// Gives the mutex up. To be called by the thread that called `begin`.
    fn end(&self) {
        // SAFETY: `begin` initialized it, and this thread holds it, since `Consumer` is not `Send`.
        // The result can only be EPERM for another thread.
        unsafe { libc::pthread_mutex_unlock(self.0.get()) };
    }

    /// Whether the thread that held the mutex has died.
    fn ended(&self) -> bool {
        const FUTEX_OWNER_DIED: u32 = 0x4000_0000;
        // SAFETY: glibc's pthread_mutex_t begins with its futex word (struct __pthread_mutex_s in
        // sysdeps/nptl/bits/struct_mutex.h), a u32 that kernel and libc change atomically.
        let word = unsafe { AtomicU32::from_ptr(self.0.get().cast()) };
        word.load(Ordering::Relaxed) & FUTEX_OWNER_DIED != 0
    }
}

/// The mapped memory, seen by either side.
struct Shared {
    map: MmapRaw,
    slots: u64,
}

impl Shared {
    fn bytes(slots: u64) -> Option<u64> {
        slots.checked_mul(size_of::<Slot>() as u64)?.checked_add(size_of::<Header>() as u64)
    }

    fn map(file: &File, slots: u64) -> io::Result<Shared> {
        let bytes = Shared::bytes(slots).and_then(|bytes| usize::try_from(bytes).ok());
        let bytes = bytes.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Shared { map: MmapOptions::new().len(bytes).populate().map_raw(file)?, slots })
    }

    fn header(&self) -> &Header {
        // SAFETY: the mapping is page-aligned and at least as long as `Shared::bytes`, which counts a
        // header; its file is sealed against shrinking. All fields are atomics or an UnsafeCell, and
        // any bytes are valid for them.
        unsafe { &*self.map.as_ptr().cast::<Header>() }
    }

    fn slot(&self, position: u64) -> &[AtomicU64; WORDS] {
        let index = (position % self.slots) as usize;
        let offset = size_of::<Header>() + index * size_of::<Slot>();
        // SAFETY: `index < slots`, and the mapping holds `slots` slots after the header (see `bytes`).
        let slot = unsafe { self.map.as_ptr().add(offset) };
        // SAFETY: inside the mapping as said; a header's size is a multiple of a slot's alignment.
        // Atomics may be shared and hold any bytes.
        unsafe { &(*slot.cast::<Slot>()).0 }
    }
}

const _: () = assert!(size_of::<Header>().is_multiple_of(align_of::<Slot>()));

// SAFETY: all fields are atomics, but for the mutex, whose functions are made for sharing.
unsafe impl Sync for Life {}

/// The launcher's end of the ring. It stays on the thread that made it, by whose life producers tell
/// whether waiting makes sense.
pub struct Consumer {
    shared: Shared,
    file: File,
    head: u64,
    published: u64,
    torn: u64,
    _not_send: PhantomData<*const ()>,
}

impl Consumer {
    /// Makes a ring of `slots` slots (64 bytes each, a power of two), all of its memory reserved.
    pub fn create(slots: usize) -> io::Result<Consumer> {
        if !slots.is_power_of_two() || slots < 2 * slots_for(MAX_BYTES) as usize {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{slots} slots: a power of two of at least {} is needed",
                    (2 * slots_for(MAX_BYTES)).next_power_of_two()
                ),
            ));
        }
        // SAFETY: a C string literal and flags; the call has no other requirement.
        let fd = unsafe {
            libc::memfd_create(
                c"ttalloc-ring".as_ptr(),
                libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just returned by the kernel and belongs to nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        let bytes = Shared::bytes(slots as u64).ok_or(io::ErrorKind::InvalidInput)?;
        let length = i64::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        // Reserved now, so that a writer never meets SIGBUS for want of memory later.
        // SAFETY: plain system calls on a descriptor we own.
        let reserved = unsafe { libc::posix_fallocate(fd, 0, length) };
        if reserved != 0 {
            return Err(io::Error::from_raw_os_error(reserved));
        }
        // SAFETY: as above.
        if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, SEALS) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let shared = Shared::map(&file, slots as u64)?;
        let header = shared.header();
        header.life.0.begin()?;
        header.slots.store(slots as u64, Ordering::Relaxed);
        header.version.store(u64::from(VERSION), Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
        Ok(Consumer { shared, file, head: 0, published: 0, torn: 0, _not_send: PhantomData })
    }

    /// The path by which any process of this machine that may look at this one finds the ring. It
    /// needs no inherited descriptor.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Hands every committed record to `each`, oldest first, `most` at the most; returns how many.
    pub fn drain(&mut self, most: usize, mut each: impl FnMut(&[u8])) -> usize {
        let mut bytes = Vec::with_capacity(MAX_BYTES);
        let mut count = 0;
        while count < most && self.read(&mut bytes) {
            each(&bytes);
            count += 1;
        }
        self.publish();
        count
    }

    /// Whether a record was begun but not yet committed at the place where the next one is due.
    pub fn is_stalled(&self) -> bool {
        self.claimed() > 0 && !self.is_committed(self.head)
    }

    /// Gives up the record that is due and goes on with the next committed one. For use when its
    /// writer is known to be gone.
    pub fn skip_torn(&mut self) {
        if self.is_stalled() {
            self.skip();
            self.publish();
        }
    }

    /// Whether producers have to wait for room.
    pub fn is_full(&self) -> bool {
        self.claimed() + slots_for(MAX_BYTES) > self.shared.slots
    }

    /// Leaves what was not read, and counts it as torn.
    pub fn abandon(&mut self) {
        self.torn += u64::from(self.claimed() > 0);
    }

    /// Tells producers to stop. Records that were begun before may still come.
    pub fn close(&self) {
        self.shared.header().closed.store(1, Ordering::Release);
    }

    /// How many records producers could not deliver.
    pub fn dropped(&self) -> u64 {
        self.shared.header().dropped.load(Ordering::Relaxed)
    }

    /// How many records were begun and never finished, or made no sense as a record of the ring.
    pub fn torn(&self) -> u64 {
        self.torn
    }

    /// How often `process` called the hook of each of the first [`COUNTED_SYMBOLS`] symbols.
    pub fn calls(&self, process: u32) -> Option<[u64; COUNTED_SYMBOLS]> {
        let counters = self.shared.header().calls.get(process as usize)?;
        Some(std::array::from_fn(|symbol| counters.0[symbol].load(Ordering::Relaxed)))
    }

    /// The pids of the processes that have come to the ring, the first [`KNOWN_PROCESSES`] of them.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        let pids = self.shared.header().pids.iter().map(|pid| pid.load(Ordering::Relaxed));
        pids.filter(|&pid| pid != 0)
    }

    /// Slots between the consumer and the producers; a count that can't be is the ring's end.
    fn claimed(&self) -> u64 {
        let tail = self.shared.header().tail.0.load(Ordering::Acquire);
        tail.saturating_sub(self.head).min(self.shared.slots)
    }

    fn is_committed(&self, position: u64) -> bool {
        // Pairs with the release store at the end of `Producer::write`.
        self.shared.slot(position)[0].load(Ordering::Acquire) == position + 1
    }

    /// Copies the next record into `bytes`, if there is one.
    fn read(&mut self, bytes: &mut Vec<u8>) -> bool {
        loop {
            let claimed = self.claimed();
            if claimed == 0 || !self.is_committed(self.head) {
                return false;
            }
            let length = self.shared.slot(self.head)[1].load(Ordering::Relaxed);
            let slots = usize::try_from(length).map(slots_for).unwrap_or(u64::MAX);
            if length > MAX_BYTES as u64 || slots > claimed {
                // Not something our producers write. Its slots are unknown, so look for the next one.
                self.skip();
                continue;
            }
            bytes.clear();
            for index in 0..slots {
                let words = &self.shared.slot(self.head + index)[if index == 0 { 2 } else { 1 }..];
                for word in words {
                    bytes.extend_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
                }
            }
            bytes.truncate(length as usize);
            self.head += slots;
            if self.head - self.published >= PUBLISH_EVERY {
                self.publish();
            }
            return true;
        }
    }

    /// Leaves the record at `head` for the next committed one, or for the end.
    fn skip(&mut self) {
        let end = self.head + self.claimed();
        self.torn += 1;
        self.head += 1;
        while self.head < end && !self.is_committed(self.head) {
            self.head += 1;
        }
    }

    fn publish(&mut self) {
        // Pairs with the acquire load in `Producer::claim`: the slots were read before they are reused.
        self.shared.header().head.0.store(self.head, Ordering::Release);
        self.published = self.head;
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.close();
        self.shared.header().life.0.end();
    }
}

/// Why a producer could not use the ring it was told of.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// It could not be opened or mapped.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What is there is not a ring of this version.
    #[error("not a ring of version {VERSION}")]
    Foreign,
}

/// A program's end of the ring; shared by its threads.
pub struct Producer {
    shared: Shared,
    /// Where the consumer was when last looked: never ahead of it.
    head: AtomicU64,
}

impl Producer {
    /// Maps the ring at `path`. No descriptor stays open.
    pub fn attach(path: &Path) -> Result<Producer, AttachError> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        // SAFETY: a plain system call on a descriptor we own.
        let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
        let bytes = file.metadata()?.len();
        let slots = bytes.saturating_sub(size_of::<Header>() as u64) / size_of::<Slot>() as u64;
        if seals < 0 || seals & SEALS != SEALS || slots == 0 || Shared::bytes(slots) != Some(bytes)
        {
            return Err(AttachError::Foreign);
        }
        let shared = Shared::map(&file, slots)?;
        let header = shared.header();
        let fits = header.magic.load(Ordering::Acquire) == MAGIC
            && header.version.load(Ordering::Relaxed) == u64::from(VERSION)
            && header.slots.load(Ordering::Relaxed) == slots
            && slots.is_power_of_two();
        if !fits {
            return Err(AttachError::Foreign);
        }
        let head = AtomicU64::new(header.head.0.load(Ordering::Relaxed));
        Ok(Producer { shared, head })
    }

    /// A number for the process `pid`, this one, that no other of this ring has.
    pub fn new_process(&self, pid: u32) -> u32 {
        let header = self.shared.header();
        let process = header.processes.fetch_add(1, Ordering::Relaxed) as u32;
        if let Some(place) = header.pids.get(process as usize) {
            place.store(pid, Ordering::Relaxed);
        }
        process
    }

    /// Gives back a number that no record was written with.
    pub fn forget_process(&self, process: u32) {
        if let Some(place) = self.shared.header().pids.get(process as usize) {
            place.store(0, Ordering::Relaxed);
        }
    }

    /// Counts records that could not even be tried to write.
    pub fn count_dropped(&self, records: u64) {
        self.shared.header().dropped.fetch_add(records, Ordering::Relaxed);
    }

    /// Counts a call of the hook of `symbol`.
    #[inline]
    pub fn count_call(&self, process: u32, symbol: usize) {
        let calls = &self.shared.header().calls;
        if let Some(counter) = calls.get(process as usize).and_then(|row| row.0.get(symbol)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the consumer is gone, orderly or not.
    pub fn is_closed(&self) -> bool {
        let header = self.shared.header();
        header.closed.load(Ordering::Relaxed) != 0 || header.life.0.ended()
    }

    /// Writes one record of `head` and `tail`, [`MAX_BYTES`] together at the most. Waits while the ring
    /// is full; returns whether it was written. It isn't when the record is too long, or the consumer
    /// is gone: both are counted as dropped, but for records that are begun after it closed.
    ///
    /// Allocates nothing and takes no lock. A signal handler that interrupts it may call it too, but
    /// must not fill the ring: the consumer can't pass the record that was interrupted.
    #[inline]
    pub fn write(&self, head: &[u64], tail: &[u8]) -> bool {
        // Nobody reads any more, so it isn't counted either.
        if self.shared.header().closed.load(Ordering::Relaxed) != 0 {
            return false;
        }
        let length = size_of_val(head) + tail.len();
        let slots = slots_for(length);
        let position = if length <= MAX_BYTES { self.claim(slots) } else { None };
        let Some(position) = position else {
            self.shared.header().dropped.fetch_add(1, Ordering::Relaxed);
            return false;
        };
        let mut bytes = Words { head, tail };
        let first = self.shared.slot(position);
        first[1].store(length as u64, Ordering::Relaxed);
        first[2..].iter().for_each(|word| word.store(bytes.next(), Ordering::Relaxed));
        for index in 1..slots {
            let next = self.shared.slot(position.wrapping_add(index));
            next[0].store(0, Ordering::Relaxed);
            next[1..].iter().for_each(|word| word.store(bytes.next(), Ordering::Relaxed));
        }
        first[0].store(position.wrapping_add(1), Ordering::Release);
        true
    }

    #[inline]
    fn claim(&self, slots: u64) -> Option<u64> {
        let header = self.shared.header();
        let mut position = header.tail.0.load(Ordering::Relaxed);
        loop {
            // Wrapping and saturating, since another process may have spoiled what is read here.
            let end = position.wrapping_add(slots);
            if end.saturating_sub(self.head.load(Ordering::Acquire)) > self.shared.slots {
                // Pairs with the release store in `Consumer::publish`.
                let head = header.head.0.load(Ordering::Acquire);
                self.head.store(head, Ordering::Release);
                if end.saturating_sub(head) > self.shared.slots {
                    if !self.wait() {
                        return None;
                    }
                    position = header.tail.0.load(Ordering::Relaxed);
                    continue;
                }
            }
            match header.tail.0.compare_exchange_weak(
                position,
                end,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(position),
                Err(now) => position = now,
            }
        }
    }

    /// Waits a little for the consumer; false if there is none any more.
    #[cold]
    fn wait(&self) -> bool {
        if self.is_closed() {
            return false;
        }
        let _errno = KeepErrno::new();
        std::thread::sleep(Duration::from_micros(100));
        true
    }
}

/// Slots that a record of `bytes` bytes takes.
const fn slots_for(bytes: usize) -> u64 {
    1 + bytes.saturating_sub(FIRST_BYTES).div_ceil(NEXT_BYTES) as u64
}

/// The words of a record, zeros after its end.
struct Words<'a> {
    head: &'a [u64],
    tail: &'a [u8],
}

impl Words<'_> {
    #[inline]
    fn next(&mut self) -> u64 {
        if let Some((word, rest)) = self.head.split_first() {
            self.head = rest;
            return *word;
        }
        let mut word = [0; 8];
        let (start, rest) = self.tail.split_at(self.tail.len().min(8));
        word[..start.len()].copy_from_slice(start);
        self.tail = rest;
        u64::from_le_bytes(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const SLOTS: usize = 512;

    fn ring() -> (Consumer, Producer) {
        let consumer = Consumer::create(SLOTS).unwrap();
        let producer = Producer::attach(Path::new(&consumer.path())).unwrap();
        (consumer, producer)
    }

    fn drain(consumer: &mut Consumer) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        consumer.drain(usize::MAX, |bytes| records.push(bytes.to_vec()));
        records
    }

    #[test]
    fn records_of_any_length_come_back_as_they_were() {
        let (mut consumer, producer) = ring();
        for length in (0..400).chain([MAX_BYTES - 1, MAX_BYTES]) {
            let bytes: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let (head, tail) = bytes.split_at(length / 3 / 8 * 8);
            let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
            let words: Vec<u64> = head.chunks(8).map(word).collect();
            assert!(producer.write(&words, tail));
            assert_eq!(drain(&mut consumer), [bytes]);
        }
        assert_eq!((consumer.torn(), consumer.dropped()), (0, 0));
    }

    #[test]
    fn a_record_that_is_too_long_is_dropped_and_counted() {
        let (mut consumer, producer) = ring();
        assert!(!producer.write(&[], &vec![1; MAX_BYTES + 1]));
        assert!(producer.write(&[], b"next"));
        assert_eq!(drain(&mut consumer), [b"next"]);
        assert_eq!(consumer.dropped(), 1);
    }

    #[test]
    fn threads_lose_nothing_through_a_ring_much_smaller_than_what_they_write() {
        const THREADS: u32 = 4;
        const EACH: u32 = 20_000;
        let (mut consumer, producer) = ring();
        let mut seen = vec![Vec::new(); THREADS as usize];
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let producer = &producer;
                scope.spawn(move || {
                    for count in 0..EACH {
                        let head = u64::from(count) << 32 | u64::from(thread);
                        assert!(producer.write(&[head], &vec![0; (count % 150) as usize]));
                    }
                });
            }
            while seen.iter().map(Vec::len).sum::<usize>() < (THREADS * EACH) as usize {
                consumer.drain(100, |bytes| {
                    let number =
                        |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
                    assert_eq!(bytes.len(), 8 + (number(4) % 150) as usize);
                    seen[number(0) as usize].push(number(4));
                });
            }
        });
        for counts in seen {
            assert!(counts.into_iter().eq(0..EACH), "each thread's records stay in order");
        }
        assert_eq!((consumer.torn(), consumer.dropped()), (0, 0));
    }

    #[test]
    fn a_producer_stops_waiting_when_the_consumer_closes() {
        let (consumer, producer) = ring();
        for _ in 0..SLOTS {
            assert!(producer.write(&[], b"full"));
        }
        thread::scope(|scope| {
            let waiting = scope.spawn(|| producer.write(&[], b"more"));
            thread::sleep(Duration::from_millis(20));
            assert!(!waiting.is_finished(), "it waits while the consumer lives");
            consumer.close();
            assert!(!waiting.join().unwrap());
        });
        assert_eq!(consumer.dropped(), 1);
    }

    #[test]
    fn a_producer_stops_waiting_when_the_consumers_thread_dies() {
        let (path_to_here, path) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let owner = thread::spawn(move || {
            let consumer = Consumer::create(SLOTS).unwrap();
            path_to_here.send(consumer.path()).unwrap();
            stopped.recv().unwrap_err();
            // As a kill would: the thread goes without closing the ring.
            std::mem::forget(consumer);
        });
        let producer = Producer::attach(Path::new(&path.recv().unwrap())).unwrap();
        while producer.shared.header().tail.0.load(Ordering::Relaxed) < SLOTS as u64 {
            assert!(producer.write(&[], b"full"));
        }
        assert!(!producer.is_closed());
        drop(stop);
        owner.join().unwrap();
        assert!(!producer.write(&[], b"more"));
    }

    #[test]
    fn a_hole_is_passed_when_asked_and_counted() {
        let (mut consumer, producer) = ring();
        assert!(producer.write(&[], b"before"));
        producer.claim(3).unwrap();
        assert!(producer.write(&[], b"after"));
        assert_eq!(drain(&mut consumer), [b"before".to_vec()]);
        assert!(consumer.is_stalled());
        consumer.skip_torn();
        assert_eq!(drain(&mut consumer), [b"after".to_vec()]);
        assert!(!consumer.is_stalled());
        assert_eq!(consumer.torn(), 1);
    }

    #[test]
    fn a_hostile_writer_costs_records_and_no_more() {
        let (mut consumer, producer) = ring();
        let position = producer.claim(1).unwrap();
        let slot = producer.shared.slot(position);
        slot[1].store(u64::MAX, Ordering::Relaxed);
        slot[0].store(position + 1, Ordering::Release);
        assert!(producer.write(&[], b"good"));
        assert_eq!(drain(&mut consumer), [b"good".to_vec()]);
        assert_eq!(consumer.torn(), 1);

        producer.shared.header().tail.0.store(u64::MAX, Ordering::Relaxed);
        assert!(drain(&mut consumer).is_empty());
        consumer.skip_torn();
        assert!(drain(&mut consumer).is_empty());
    }

    #[test]
    fn only_a_ring_is_attached() {
        let attach = |path: &str| Producer::attach(Path::new(path)).err().unwrap().to_string();
        assert_eq!(attach("/dev/null"), format!("not a ring of version {VERSION}"));
        assert!(attach("/proc/self/fd/999999").contains("No such file"));
        assert!(attach("").contains("No such file"));
        let (consumer, _) = ring();
        consumer.shared.header().version.store(0, Ordering::Relaxed);
        assert_eq!(attach(&consumer.path()), format!("not a ring of version {VERSION}"));
    }

    #[test]
    fn calls_are_counted_per_process_and_symbol() {
        let (consumer, producer) = ring();
        let (first, second) = (producer.new_process(11), producer.new_process(12));
        producer.count_call(first, 3);
        producer.count_call(second, 3);
        producer.count_call(second, 3);
        producer.count_call(second, COUNTED_SYMBOLS);
        producer.count_call(KNOWN_PROCESSES as u32, 3);
        assert_eq!(consumer.calls(first).unwrap()[3], 1);
        assert_eq!(consumer.calls(second).unwrap()[3], 2);
        assert_eq!(consumer.calls(KNOWN_PROCESSES as u32), None);
        assert!(consumer.pids().eq([11, 12]));
        producer.forget_process(first);
        assert!(consumer.pids().eq([12]));
    }
}
