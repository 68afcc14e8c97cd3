//! The ring: records from any number of threads and processes to one launcher, through a sealed memfd.
//!
//! The memory is a header and lanes, whose protocol is [`crate::lane`]'s. A producer that finds no room
//! waits, if the launcher said so, as long as the launcher lives (`life`, `room`).
//!
//! Every access to the shared memory is atomic, and the consumer copies before it looks: what another
//! process writes at the wrong moment gives a bad record, not undefined behaviour.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};

use crate::VERSION;
use crate::errno::KeepErrno;
use crate::lane::{Lane, Memory, Reader, Refused, Writer};
use crate::life::{self, Life};
use crate::record::MAX_BYTES;
use crate::room::Room;

pub use crate::lane::Held;

/// How many processes the header has a row for; later ones are tracked without.
pub const KNOWN_PROCESSES: usize = 4096;
/// How many processes' calls are counted; later ones are tracked without.
pub const COUNTED_PROCESSES: usize = 256;
/// How many symbols have counters of calls.
pub const COUNTED_SYMBOLS: usize = 128;

const MAGIC: u64 = u64::from_le_bytes(*b"ttalloc\0");
const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
/// Lanes and their sizes that are accepted.
const MOST_LANES: u64 = 4096;
const LEAST_LANE_BYTES: u64 = 2 * MAX_BYTES as u64;
const MOST_LANE_BYTES: u64 = 1 << 32;

/// What producers do when there is no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFull {
    /// They wait as long as the consumer lives.
    #[default]
    Wait,
    /// They drop the record, and count it.
    Drop,
}

/// Which processes are tracked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Follow {
    /// Those that inherit the environment.
    #[default]
    Inherit,
    /// The one that the launcher started, through all that it calls exec for.
    None,
    /// Also those that are started with another environment.
    Always,
}

/// What a ring is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingOptions {
    /// How many lanes: a power of two up to 4,096.
    pub lanes: usize,
    /// Each lane's size in bytes: a power of two from 16 KiB to 4 GiB.
    pub lane_bytes: usize,
    /// What producers do when there is no room.
    pub on_full: OnFull,
    /// Which processes are tracked.
    pub follow: Follow,
}

impl Default for RingOptions {
    /// 64 lanes of 128 KiB.
    fn default() -> RingOptions {
        let (on_full, follow) = (OnFull::default(), Follow::default());
        RingOptions { lanes: 64, lane_bytes: 128 << 10, on_full, follow }
    }
}

/// A value on a cache line of its own.
#[repr(C, align(64))]
struct Line<T>(T);

#[repr(C)]
struct Header {
    magic: AtomicU64,
    version: AtomicU64,
    id: AtomicU64,
    lanes: AtomicU64,
    lane_bytes: AtomicU64,
    /// What is read for each record and seldom changed.
    rare: Line<Rare>,
    order: Line<AtomicU64>,
    room: Line<Room>,
    /// One for the consumer's thread, one for that of a process that goes on with it.
    lives: Line<[AtomicU32; 2]>,
    dropped: Line<AtomicU64>,
    processes: Line<AtomicU64>,
    rows: Line<[Row; KNOWN_PROCESSES]>,
    calls: [Line<[AtomicU64; COUNTED_SYMBOLS]>; COUNTED_PROCESSES],
}

#[repr(C)]
struct Rare {
    closed: AtomicU32,
    /// Which of the lives counts.
    keeper: AtomicU32,
    /// An [`OnFull`].
    on_full: AtomicU32,
    /// A [`Follow`].
    follow: AtomicU32,
    /// The pid of the only process to be tracked; 0 if it isn't known yet.
    only: AtomicU32,
    /// How many threads have been given a lane to begin with.
    threads: AtomicU32,
}

/// What is known of a process.
#[repr(C)]
struct Row {
    pid: AtomicU32,
    /// 1 when the row is in use.
    used: AtomicU32,
    start_ticks: AtomicU64,
}

/// What of a lane isn't its records.
#[repr(C)]
struct LaneHeader {
    state: Line<AtomicU64>,
    head: Line<AtomicU64>,
}

const _: () = assert!(size_of::<Header>().is_multiple_of(align_of::<LaneHeader>()));

/// The mapped memory, seen by either side.
struct Shared {
    map: MmapRaw,
    lanes: usize,
    lane_bytes: usize,
}

impl Shared {
    /// How many bytes a ring of these sizes takes; None if they are not accepted.
    fn bytes(lanes: u64, lane_bytes: u64) -> Option<u64> {
        let fits = lanes.is_power_of_two()
            && lanes <= MOST_LANES
            && lane_bytes.is_power_of_two()
            && (LEAST_LANE_BYTES..=MOST_LANE_BYTES).contains(&lane_bytes);
        let headers = || (size_of::<Header>() + lanes as usize * size_of::<LaneHeader>()) as u64;
        fits.then(|| headers() + lanes * lane_bytes)
    }

    /// Maps `file`, which has as many bytes as these sizes take.
    fn map(file: &File, lanes: u64, lane_bytes: u64) -> io::Result<Shared> {
        let bytes = Shared::bytes(lanes, lane_bytes).ok_or(io::ErrorKind::InvalidInput)?;
        let map = MmapOptions::new().len(bytes as usize).populate().map_raw(file)?;
        Ok(Shared { map, lanes: lanes as usize, lane_bytes: lane_bytes as usize })
    }

    #[inline]
    fn header(&self) -> &Header {
        // SAFETY: the mapping is page-aligned and at least as long as `Shared::bytes`, which counts a
        // header; its file is sealed against shrinking. All fields are atomics, and any bytes are valid
        // for them.
        unsafe { &*self.map.as_ptr().cast::<Header>() }
    }

    /// The life that counts.
    fn life(&self) -> &AtomicU32 {
        let header = self.header();
        // Acquire pairs with the release in `Consumer::succeed`: the new life has begun.
        &header.lives.0[header.rare.0.keeper.load(Ordering::Acquire) as usize & 1]
    }

    /// Whether the consumer is gone, orderly or not.
    fn is_closed(&self) -> bool {
        // Twice, since it may be handed on between the look at who counts and the one at that life.
        let is_over = || life::is_over(self.life());
        self.header().rare.0.closed.load(Ordering::Relaxed) != 0 || is_over() && is_over()
    }
}

impl Memory for Shared {
    #[inline]
    fn lanes(&self) -> usize {
        self.lanes
    }

    #[inline]
    fn lane(&self, index: usize) -> Lane<'_> {
        debug_assert!(index < self.lanes);
        let headers = size_of::<Header>() + index * size_of::<LaneHeader>();
        // SAFETY: inside the mapping (see `bytes`), since `index` is less than `lanes`.
        let header = unsafe { self.map.as_ptr().add(headers) }.cast::<LaneHeader>();
        // SAFETY: as above; a header's size is a multiple of a lane header's alignment. Atomics may be
        // shared and hold any bytes.
        let header = unsafe { &*header };
        let words =
            size_of::<Header>() + self.lanes * size_of::<LaneHeader>() + index * self.lane_bytes;
        // SAFETY: inside the mapping, as above.
        let words = unsafe { self.map.as_ptr().add(words) }.cast::<AtomicU64>();
        // SAFETY: `lane_bytes` bytes from there on are the lane's (see `bytes`), aligned to words.
        let words = unsafe { std::slice::from_raw_parts(words, self.lane_bytes / 8) };
        Lane { state: &header.state.0, head: &header.head.0, words }
    }

    #[inline]
    fn order(&self) -> &AtomicU64 {
        &self.header().order.0
    }

    fn freed(&self) {
        self.header().room.0.tell(life::wake);
    }
}

/// The launcher's end of the ring. It stays on the thread that made it, by whose life producers tell
/// whether waiting makes sense.
pub struct Consumer {
    /// Before the memory, of which it holds a word.
    life: ManuallyDrop<Life>,
    /// Which of the lives that is, and the process it belongs to.
    keeper: u32,
    pid: u32,
    shared: Shared,
    file: File,
    id: u64,
    reader: Reader,
}

impl Consumer {
    /// Makes a ring, all of its memory reserved.
    ///
    /// # Errors
    /// `InvalidInput` if the sizes are not accepted; `ResourceBusy` if the calling thread has a ring
    /// already; what the system says otherwise, when memory or descriptors are short.
    pub fn create(options: &RingOptions) -> io::Result<Consumer> {
        let (lanes, lane_bytes) = (options.lanes as u64, options.lane_bytes as u64);
        let Some(bytes) = Shared::bytes(lanes, lane_bytes) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{lanes} lanes of {lane_bytes} bytes: powers of two are needed, at most \
                     {MOST_LANES} of {LEAST_LANE_BYTES} to {MOST_LANE_BYTES} bytes"
                ),
            ));
        };
        let file = memory()?;
        let fd = file.as_raw_fd();
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
        let shared = Shared::map(&file, lanes, lane_bytes)?;
        let id = random()?;
        let header = shared.header();
        // SAFETY: the life is dropped before the memory, in `Consumer::drop`.
        let life = ManuallyDrop::new(unsafe { Life::begin(&header.lives.0[0]) }?);
        header.id.store(id, Ordering::Relaxed);
        header.lanes.store(lanes, Ordering::Relaxed);
        header.lane_bytes.store(lane_bytes, Ordering::Relaxed);
        header.rare.0.on_full.store(options.on_full as u32, Ordering::Relaxed);
        header.rare.0.follow.store(options.follow as u32, Ordering::Relaxed);
        header.version.store(u64::from(VERSION), Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Relaxed);
        let reader = Reader::new(options.lanes, 0);
        let pid = std::process::id();
        Ok(Consumer { life, keeper: 0, pid, shared, file, id, reader })
    }

    /// The value of [`crate::RING_VARIABLE`] by which processes find this ring: the path of its memory,
    /// for any process of this machine that may look at this one, and its name. It needs no inherited
    /// descriptor.
    pub fn variable(&self) -> String {
        format!("/proc/{}/fd/{}@{:016x}", std::process::id(), self.file.as_raw_fd(), self.id)
    }

    /// The ring's memory, to be handed to processes that can't open it by its path.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// A random number: the ring's name.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Names the only process that is to be tracked, with [`Follow::None`].
    pub fn set_only(&self, pid: u32) {
        self.shared.header().rare.0.only.store(pid, Ordering::Relaxed);
    }

    /// Hands every record that is there to `each`, in the order in which they were begun, `most` at the
    /// most; returns how many.
    pub fn drain(&mut self, most: usize, mut each: impl FnMut(&[u8])) -> usize {
        let mut count = 0;
        while count < most
            && let Some(bytes) = self.reader.read(&self.shared)
        {
            each(bytes);
            count += 1;
        }
        self.reader.publish_all(&self.shared);
        count
    }

    /// Whether at the end of the last [`Consumer::drain`] a record was due that wasn't there, since its
    /// writer had begun it and not finished. Later ones have to wait for it.
    pub fn is_waiting(&self) -> bool {
        self.reader.is_waiting()
    }

    /// The lanes that a writer holds now.
    pub fn held(&self) -> impl Iterator<Item = Held> {
        Reader::held(&self.shared)
    }

    /// Frees a lane whose writer is known to be dead, and counts its record as torn.
    pub fn recover(&mut self, lane: usize) {
        self.reader.recover(&self.shared, lane);
    }

    /// Goes on without the record that is due, after it was waited for long enough. If it comes after
    /// all, it is delivered then, and counted as late.
    pub fn pass(&mut self) {
        self.reader.pass();
    }

    /// Whether producers may have to wait for room.
    pub fn is_full(&self) -> bool {
        Reader::is_full(&self.shared)
    }

    /// Leaves what was not read, and counts it as torn.
    pub fn abandon(&mut self) {
        self.reader.abandon(&self.shared);
    }

    /// Tells producers to stop. Records that were begun before may still come.
    pub fn close(&self) {
        let header = self.shared.header();
        header.rare.0.closed.store(1, Ordering::Release);
        header.room.0.tell(life::wake);
    }

    /// How many records producers could not deliver.
    pub fn dropped(&self) -> u64 {
        self.shared.header().dropped.0.load(Ordering::Relaxed)
    }

    /// How many records were begun and never finished.
    pub fn torn(&self) -> u64 {
        self.reader.torn()
    }

    /// How many records came after [`Consumer::pass`].
    pub fn late(&self) -> u64 {
        self.reader.late()
    }

    /// How often a lane, or the order of the records, made no sense: no producer of ours does that.
    pub fn spoiled(&self) -> u64 {
        self.reader.spoiled()
    }

    /// How often `process` called the hook of each of the first [`COUNTED_SYMBOLS`] symbols.
    pub fn calls(&self, process: u32) -> Option<[u64; COUNTED_SYMBOLS]> {
        let counters = self.shared.header().calls.get(process as usize)?;
        Some(std::array::from_fn(|symbol| counters.0[symbol].load(Ordering::Relaxed)))
    }

    /// The processes that have come to the ring, the first [`KNOWN_PROCESSES`] of them: number, pid
    /// (0: unknown), and start time in clock ticks since the machine's start.
    pub fn processes(&self) -> impl Iterator<Item = (u32, u32, u64)> {
        let rows = self.shared.header().rows.0.iter().zip(0..);
        rows.filter(|(row, _)| row.used.load(Ordering::Acquire) != 0).map(|(row, number)| {
            let pid = row.pid.load(Ordering::Relaxed);
            (number, pid, row.start_ticks.load(Ordering::Relaxed))
        })
    }

    /// Makes a process that was forked from the consumer's the one by whose life producers go on. To be
    /// called there, while the consumer's own thread lives and does nothing more with the ring.
    ///
    /// # Errors
    /// `ResourceBusy` if the ring was handed on before, and the first thread still lives; what the
    /// system says otherwise.
    pub fn succeed(&mut self) -> io::Result<()> {
        let header = self.shared.header();
        let keeper = 1 - self.keeper;
        let word = &header.lives.0[keeper as usize];
        if !life::is_over(word) {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "the ring was handed on before, by a process that still lives",
            ));
        }
        // SAFETY: in this process, nobody uses the life again: the new one takes its place.
        let inherited = unsafe { ManuallyDrop::take(&mut self.life) };
        inherited.forget_in_child();
        // SAFETY: the life is dropped before the memory, in `Consumer::drop`.
        self.life = ManuallyDrop::new(unsafe { Life::begin(word) }?);
        self.keeper = keeper;
        self.pid = std::process::id();
        // Release pairs with the acquire in `Shared::life`.
        header.rare.0.keeper.store(keeper, Ordering::Release);
        // Who waits has to wait for the new life's end from now on.
        header.room.0.wake(life::wake);
        Ok(())
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // In a forked child that did not succeed it, it is still the parent's.
        if self.pid != std::process::id() {
            return;
        }
        if self.shared.header().rare.0.keeper.load(Ordering::Relaxed) == self.keeper {
            self.close();
        }
        // SAFETY: taken here only, and never used again.
        drop(unsafe { ManuallyDrop::take(&mut self.life) });
    }
}

/// An empty file in memory, the user's own.
fn memory() -> io::Result<File> {
    let create = |more| {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | more;
        // SAFETY: a C string literal and flags; the call has no other requirement.
        let fd = unsafe { libc::memfd_create(c"ttalloc-ring".as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just returned by the kernel and belongs to nobody else.
        Ok(unsafe { File::from_raw_fd(fd) })
    };
    let file = match create(libc::MFD_NOEXEC_SEAL) {
        // Before Linux 6.3. Later ones may insist on it (sysctl vm.memfd_noexec).
        Err(why) if why.raw_os_error() == Some(libc::EINVAL) => create(0)?,
        file => file?,
    };
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

fn random() -> io::Result<u64> {
    let mut number = 0_u64;
    let size = size_of_val(&number);
    // SAFETY: a place for as many bytes.
    let count = unsafe { libc::getrandom((&raw mut number).cast(), size, 0) };
    if count == size as isize { Ok(number) } else { Err(io::Error::last_os_error()) }
}

/// Why a producer could not use the ring it was told of.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// It could not be opened or mapped.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What it was told is not what a launcher says.
    #[error("not a ring's path and name")]
    Variable,
    /// Another user made what is there.
    #[error("another user's")]
    Owner,
    /// What is there is not memory that its owner can't change the size of.
    #[error("not sealed memory")]
    Unsealed,
    /// What is there is not a ring of this version.
    #[error("not a ring of version {VERSION}")]
    Foreign,
    /// What is there is another ring than the one that was named.
    #[error("another ring")]
    Other,
}

/// A program's end of the ring; shared by its threads.
pub struct Producer {
    shared: Shared,
}

/// The path and the id in a value of [`crate::RING_VARIABLE`].
pub fn parse_variable(variable: &OsStr) -> Option<(&Path, u64)> {
    let variable = variable.as_bytes();
    let at = variable.iter().rposition(|&byte| byte == b'@')?;
    let id = str::from_utf8(&variable[at + 1..]).ok()?;
    let is_id = id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = u64::from_str_radix(id, 16).ok().filter(|_| is_id)?;
    Some((Path::new(OsStr::from_bytes(&variable[..at])), id))
}

impl Producer {
    /// Maps the ring that `variable`, a value of [`crate::RING_VARIABLE`], names. No descriptor stays
    /// open.
    ///
    /// # Errors
    /// What there is instead of a ring that this process can use.
    pub fn attach(variable: impl AsRef<OsStr>) -> Result<Producer, AttachError> {
        let (path, id) = parse_variable(variable.as_ref()).ok_or(AttachError::Variable)?;
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        Producer::attach_file(file, id)
    }

    /// Maps the ring in `file`, if its name is `id`. No descriptor stays open.
    ///
    /// # Errors
    /// As [`Producer::attach`]'s.
    pub fn attach_file(file: File, id: u64) -> Result<Producer, AttachError> {
        let metadata = file.metadata()?;
        // SAFETY: a plain system call on a descriptor we own.
        let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
        // Only files in memory have seals.
        if !metadata.is_file() || seals < 0 || seals & SEALS != SEALS {
            return Err(AttachError::Unsealed);
        }
        // SAFETY: takes nothing.
        if metadata.uid() != unsafe { libc::geteuid() } {
            return Err(AttachError::Owner);
        }
        // What is mapped later has the same sizes, which nobody can change.
        let mut start = [0_u64; 5];
        let is_there = file.read_exact_at(bytemuck::cast_slice_mut(&mut start), 0).is_ok();
        let [magic, version, name, lanes, lane_bytes] = start;
        let is_ring = is_there && magic == MAGIC && version == u64::from(VERSION);
        if !is_ring || Shared::bytes(lanes, lane_bytes) != Some(metadata.len()) {
            return Err(AttachError::Foreign);
        }
        if name != id {
            return Err(AttachError::Other);
        }
        let shared = Shared::map(&file, lanes, lane_bytes)?;
        Ok(Producer { shared })
    }

    /// A number for a process that no other of this ring has. `pid` is this process's as the launcher
    /// sees it (0: unknown), and `start_ticks` its start in clock ticks since the machine's start.
    pub fn new_process(&self, pid: u32, start_ticks: u64) -> u32 {
        let header = self.shared.header();
        let process = header.processes.0.fetch_add(1, Ordering::Relaxed);
        // As if they were the last.
        let process = u32::try_from(process).unwrap_or(u32::MAX);
        if let Some(row) = header.rows.0.get(process as usize) {
            row.pid.store(pid, Ordering::Relaxed);
            row.start_ticks.store(start_ticks, Ordering::Relaxed);
            // Pairs with the acquire in `Consumer::processes`.
            row.used.store(1, Ordering::Release);
        }
        process
    }

    /// Gives back a number that no record was written with.
    pub fn forget_process(&self, process: u32) {
        if let Some(row) = self.shared.header().rows.0.get(process as usize) {
            row.used.store(0, Ordering::Relaxed);
        }
    }

    /// Counts records that could not even be tried to write.
    pub fn count_dropped(&self, records: u64) {
        self.shared.header().dropped.0.fetch_add(records, Ordering::Relaxed);
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
        self.shared.is_closed()
    }

    /// Which processes are tracked.
    pub fn follow(&self) -> Follow {
        match self.shared.header().rare.0.follow.load(Ordering::Relaxed) {
            follow if follow == Follow::None as u32 => Follow::None,
            follow if follow == Follow::Always as u32 => Follow::Always,
            _ => Follow::Inherit,
        }
    }

    /// The pid of the only process to be tracked, as the launcher sees it, with [`Follow::None`]; 0 if
    /// it isn't known yet.
    pub fn only(&self) -> u32 {
        self.shared.header().rare.0.only.load(Ordering::Relaxed)
    }

    /// Writes one record of `head` and `tail`, [`MAX_BYTES`] together at the most, for the process of
    /// that number. `lane_hint` is the calling thread's own, and 0 at first. Returns whether it was
    /// written. It isn't when the record is too long, or the consumer is gone, or there is no room and
    /// the consumer would rather have it dropped: all are counted as dropped, but for records that are
    /// begun after it closed. Otherwise it waits for room.
    ///
    /// Allocates nothing, takes no lock, and keeps `errno`. A signal handler that interrupts it may call
    /// it too.
    #[inline]
    pub fn write(&self, lane_hint: &Cell<u32>, process: u32, head: &[u64], tail: &[u8]) -> bool {
        // Nobody reads any more, so it isn't counted either.
        if self.shared.header().rare.0.closed.load(Ordering::Relaxed) != 0 {
            return false;
        }
        if size_of_val(head) + tail.len() > MAX_BYTES {
            self.count_dropped(1);
            return false;
        }
        if lane_hint.get() == 0 {
            self.give_lane(lane_hint);
        }
        match Writer::new(process).write(&self.shared, lane_hint, head, tail) {
            Ok(()) => true,
            Err(why) => self.write_later(why, lane_hint, process, head, tail),
        }
    }

    /// Gives a thread a lane to begin with. Threads that begin with different ones meet less often.
    #[cold]
    fn give_lane(&self, hint: &Cell<u32>) {
        let thread = self.shared.header().rare.0.threads.fetch_add(1, Ordering::Relaxed);
        // Not 0, but the same lane.
        let lanes = self.shared.lanes as u32;
        hint.set(thread % lanes + lanes);
    }

    /// Goes on where there was no room, or the lane was lost.
    #[cold]
    fn write_later(
        &self,
        why: Refused,
        hint: &Cell<u32>,
        process: u32,
        head: &[u64],
        tail: &[u8],
    ) -> bool {
        let _errno = KeepErrno::new();
        let header = self.shared.header();
        let mut refused = why;
        let mut yields = 0;
        loop {
            let Refused::NoRoom { held } = refused else {
                // Who took the lane away has counted it.
                return false;
            };
            // Other writers hold their lanes for a moment only.
            let is_brief = held && yields < YIELDS;
            if !is_brief && header.rare.0.on_full.load(Ordering::Relaxed) == OnFull::Drop as u32 {
                self.count_dropped(1);
                return false;
            }
            let mut ticket = None;
            if is_brief {
                yields += 1;
                std::thread::yield_now();
            } else {
                ticket = Some(header.room.0.announce());
            }
            match Writer::new(process).write(&self.shared, hint, head, tail) {
                Ok(()) => return true,
                Err(why) => refused = why,
            }
            if self.is_closed() {
                // The kernel wakes only one of those who wait.
                header.room.0.wake(life::wake);
                self.count_dropped(1);
                return false;
            }
            if let (Some(ticket), Refused::NoRoom { held }) = (ticket, refused) {
                let limit = held.then_some(HELD_LIMIT);
                life::wait(&header.room.0, ticket, self.shared.life(), limit);
            }
        }
    }
}

/// How often to let others run before waiting for a lane that another writer holds.
const YIELDS: u32 = 100;
/// How long to wait for one then.
const HELD_LIMIT: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::Step;
    use std::io::{PipeReader, PipeWriter, Read, Write};
    use std::sync::{OnceLock, mpsc};
    use std::thread;
    use std::time::Instant;

    const TINY: RingOptions = RingOptions {
        lanes: 2,
        lane_bytes: 16 << 10,
        on_full: OnFull::Wait,
        follow: Follow::Inherit,
    };

    fn ring() -> (Consumer, Producer) {
        let consumer = Consumer::create(&TINY).unwrap();
        let producer = Producer::attach(consumer.variable()).unwrap();
        (consumer, producer)
    }

    fn drain(consumer: &mut Consumer) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        consumer.drain(usize::MAX, |bytes| records.push(bytes.to_vec()));
        records
    }

    fn write(producer: &Producer, tail: &[u8]) -> bool {
        producer.write(&Cell::new(0), 0, &[], tail)
    }

    /// Writes until there is no room; how often.
    fn fill(producer: &Producer) -> usize {
        let hint = Cell::new(0);
        (0..)
            .take_while(|_| Writer::new(0).write(&producer.shared, &hint, &[], b"full").is_ok())
            .count()
    }

    #[test]
    fn records_of_any_length_come_back_as_they_were() {
        let (mut consumer, producer) = ring();
        for length in (0..400).chain([MAX_BYTES - 1, MAX_BYTES]) {
            let bytes: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let (head, tail) = bytes.split_at(length / 3 / 8 * 8);
            let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
            let words: Vec<u64> = head.chunks(8).map(word).collect();
            assert!(producer.write(&Cell::new(0), 0, &words, tail));
            assert_eq!(drain(&mut consumer), [bytes]);
        }
        assert_eq!((consumer.torn(), consumer.dropped(), consumer.spoiled()), (0, 0, 0));
    }

    #[test]
    fn a_record_that_is_too_long_is_dropped_and_counted() {
        let (mut consumer, producer) = ring();
        assert!(!write(&producer, &vec![1; MAX_BYTES + 1]));
        assert!(write(&producer, b"next"));
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
                    let hint = Cell::new(0);
                    for count in 0..EACH {
                        let head = u64::from(count) << 32 | u64::from(thread);
                        let tail = vec![0; (count % 150) as usize];
                        assert!(producer.write(&hint, thread, &[head], &tail));
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
        assert_eq!((consumer.torn(), consumer.dropped(), consumer.spoiled()), (0, 0, 0));
    }

    /// Has so many threads wait for room, sees to it that they do, runs `end`, and returns what their
    /// writing came to, and how long that took.
    fn waiting<T>(
        producer: &Producer,
        threads: usize,
        end: impl FnOnce() -> T,
    ) -> (Vec<bool>, Duration) {
        fill(producer);
        thread::scope(|scope| {
            let one = || {
                set_errno(77);
                let written = write(producer, b"more");
                assert_eq!(io::Error::last_os_error().raw_os_error(), Some(77));
                written
            };
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
            thread::sleep(Duration::from_millis(50));
            assert!(threads.iter().all(|one| !one.is_finished()), "they wait while it lives");
            let begun = Instant::now();
            end();
            let written = threads.into_iter().map(|one| one.join().unwrap()).collect();
            (written, begun.elapsed())
        })
    }

    fn set_errno(value: i32) {
        // SAFETY: takes nothing.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: this thread's errno is always there.
        unsafe { *errno = value };
    }

    #[test]
    fn producers_go_on_when_room_is_made() {
        let (mut consumer, producer) = ring();
        let mut count = 0;
        let (written, time) = waiting(&producer, 3, || count = consumer.drain(usize::MAX, |_| ()));
        assert_eq!(written, [true; 3]);
        assert!(time < Duration::from_secs(5), "{time:?}");
        // Some of what they write may have come to the first reading.
        count += drain(&mut consumer).len();
        assert_eq!(count, 2 * ((16 << 10) / 24) + 3);
        assert_eq!(consumer.dropped(), 0);
    }

    #[test]
    fn producers_stop_waiting_when_the_consumer_closes() {
        let (consumer, producer) = ring();
        let (written, time) = waiting(&producer, 3, || consumer.close());
        assert_eq!(written, [false; 3]);
        assert!(time < Duration::from_secs(5), "{time:?}");
        assert_eq!(consumer.dropped(), 3);
        assert!(!write(&producer, b"later"));
        assert_eq!(consumer.dropped(), 3, "what begins when nobody reads isn't counted");
    }

    #[test]
    fn producers_stop_waiting_when_the_consumers_thread_dies() {
        let (variable_to_here, variable) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        let owner = thread::spawn(move || {
            let consumer = Consumer::create(&TINY).unwrap();
            variable_to_here.send(consumer.variable()).unwrap();
            stopped.recv().unwrap_err();
            // As a kill would: the thread goes without closing the ring.
            std::mem::forget(consumer);
        });
        let producer = Producer::attach(variable.recv().unwrap()).unwrap();
        assert!(!producer.is_closed());
        let (written, time) = waiting(&producer, 3, || drop(stop));
        owner.join().unwrap();
        assert_eq!(written, [false; 3]);
        assert!(time < Duration::from_secs(5), "{time:?}");
        assert!(producer.is_closed());
    }

    #[test]
    fn producers_stop_waiting_when_the_consumers_process_is_killed() {
        let (to_parent, to_child) = (Pipe::new(), Pipe::new());
        let child = fork(|| {
            let consumer = Consumer::create(&TINY).unwrap();
            to_parent.write(consumer.variable().as_bytes());
            to_child.read();
        });
        let producer = Producer::attach(OsStr::from_bytes(&to_parent.read())).unwrap();
        let (written, time) = waiting(&producer, 3, || child.kill());
        assert_eq!(written, [false; 3]);
        assert!(time < Duration::from_secs(5), "{time:?}");
        assert!(producer.is_closed());
    }

    #[test]
    fn the_ring_goes_on_with_a_process_that_was_forked() {
        let (to_parent, to_child) = (Pipe::new(), Pipe::new());
        let parent = fork(|| {
            let mut consumer = Consumer::create(&TINY).unwrap();
            to_parent.write(consumer.variable().as_bytes());
            to_child.read();
            let heir = fork(|| {
                consumer.succeed().unwrap();
                assert_eq!(consumer.succeed().unwrap_err().kind(), io::ErrorKind::ResourceBusy);
                to_parent.write(b"mine");
                to_child.read();
                consumer.drain(usize::MAX, |_| ());
                to_parent.write(b"read");
                to_child.read();
            });
            to_parent.write(&heir.0.to_le_bytes());
            to_child.read();
        });
        let producer = Producer::attach(OsStr::from_bytes(&to_parent.read())).unwrap();
        to_child.write(b"fork");
        let answers = [to_parent.read(), to_parent.read()];
        let heir = answers.iter().find(|answer| *answer != b"mine").unwrap();
        let heir = Process(i32::from_le_bytes(
            [heir.as_slice(), &[0; 4]].concat()[..4].try_into().unwrap(),
        ));
        parent.kill();
        assert!(!producer.is_closed(), "it is the heir's");
        let read = || {
            to_child.write(b"read");
            assert_eq!(to_parent.read(), b"read");
        };
        let (written, _) = waiting(&producer, 3, read);
        assert_eq!(written, [true; 3]);
        let (written, time) = waiting(&producer, 3, || heir.kill());
        assert_eq!(written, [false; 3]);
        assert!(time < Duration::from_secs(5), "{time:?}");
        assert!(producer.is_closed());
    }

    #[test]
    fn a_child_that_only_ends_leaves_the_ring_as_it_is() {
        let (consumer, producer) = ring();
        let mut consumer = Some(consumer);
        fork(|| drop(consumer.take())).wait();
        assert!(!producer.is_closed());
        assert!(write(&producer, b"one"));
        assert_eq!(drain(consumer.as_mut().unwrap()), [b"one"]);
    }

    #[test]
    fn a_thread_keeps_one_ring_at_a_time() {
        let first = Consumer::create(&TINY).unwrap();
        let second = Consumer::create(&TINY).err().unwrap();
        assert_eq!(second.kind(), io::ErrorKind::ResourceBusy);
        drop(first);
        assert!(Consumer::create(&TINY).is_ok());
    }

    #[test]
    fn where_there_is_no_room_records_may_be_dropped_and_counted() {
        let options = RingOptions { on_full: OnFull::Drop, ..TINY };
        let mut consumer = Consumer::create(&options).unwrap();
        let producer = Producer::attach(consumer.variable()).unwrap();
        let room = fill(&producer);
        assert!(consumer.is_full());
        set_errno(77);
        assert!(!write(&producer, b"more"));
        assert_eq!(io::Error::last_os_error().raw_os_error(), Some(77));
        // Also if some lane is held, and stays so.
        assert_eq!(drain(&mut consumer).len(), room);
        assert_eq!(stop_at(&producer, 0, Step::Filled), Err(Refused::Stopped));
        fill(&producer);
        assert!(!write(&producer, b"more"));
        assert_eq!(consumer.dropped(), 2);
    }

    fn stop_at(producer: &Producer, process: u32, step: Step) -> Result<(), Refused> {
        let mut writer = Writer::new(process);
        writer.stop = Some(step);
        writer.write(&producer.shared, &Cell::new(2), &[2], b"torn")
    }

    /// The table in the documentation of [`crate::lane`], with processes that are really killed.
    #[test]
    fn a_writers_process_may_be_killed_at_every_step() {
        let steps =
            [Step::Picked, Step::Held, Step::Numbered, Step::Framed, Step::Filled, Step::Committed];
        for step in steps {
            let (mut consumer, producer) = ring();
            let living = producer.new_process(1, 0);
            let dying = producer.new_process(2, 0);
            let child = fork(|| {
                producer.write(&Cell::new(2), dying, &[1], b"");
                assert_eq!(stop_at(&producer, dying, step), Err(Refused::Stopped));
                // SAFETY: sends a signal to this process.
                unsafe { libc::raise(libc::SIGKILL) };
            });
            assert_eq!(child.wait(), libc::SIGKILL);
            for value in [3, 4] {
                assert!(producer.write(&Cell::new(2), living, &[value], b""));
            }
            let (is_held, has_number) = match step {
                Step::Picked | Step::Committed => (false, false),
                Step::Held => (true, false),
                Step::Numbered | Step::Framed | Step::Filled => (true, true),
            };
            let mut values: Vec<u8> = drain(&mut consumer).iter().map(|bytes| bytes[0]).collect();
            assert_eq!(consumer.is_waiting(), has_number, "{step:?}");
            assert_eq!(
                values.len(),
                if has_number { 1 } else { 3 + usize::from(!is_held && step != Step::Picked) }
            );
            let held: Vec<_> = consumer.held().collect();
            assert_eq!(held.len(), usize::from(is_held), "{step:?}");
            for held in held {
                assert_eq!(held.process, dying);
                consumer.recover(held.lane);
            }
            values.extend(drain(&mut consumer).iter().map(|bytes| bytes[0]));
            let expected: &[u8] = if step == Step::Committed { &[1, 2, 3, 4] } else { &[1, 3, 4] };
            assert_eq!(values, expected, "{step:?}");
            assert_eq!(consumer.torn(), u64::from(is_held));
            let others = (consumer.late(), consumer.spoiled(), consumer.dropped());
            assert_eq!(others, (0, 0, 0));
        }
    }

    #[test]
    fn a_signal_handler_may_write_while_it_interrupts_a_writer() {
        static PRODUCER: OnceLock<Producer> = OnceLock::new();
        static HANDLED: AtomicU64 = AtomicU64::new(0);
        thread_local! {
            static HINT: Cell<u32> = const { Cell::new(0) };
        }
        extern "C" fn handle(_: i32) {
            if let Some(producer) = PRODUCER.get() {
                let written = HINT.with(|hint| producer.write(hint, 1, &[1], b"handler"));
                HANDLED.fetch_add(written.into(), Ordering::Relaxed);
            }
        }
        let (mut consumer, producer) = ring();
        assert!(PRODUCER.set(producer).is_ok());
        let handler: extern "C" fn(i32) = handle;
        // SAFETY: zeros are a valid value: no flags and no blocked signals.
        let mut action = unsafe { std::mem::zeroed::<libc::sigaction>() };
        action.sa_sigaction = handler as *const () as usize;
        // SAFETY: the handler does only what a handler may; nobody else uses this signal.
        let set = unsafe { libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()) };
        assert_eq!(set, 0);

        const EACH: u64 = 20_000;
        let mut seen = [0, 0];
        let mut read = |consumer: &mut Consumer| {
            consumer.drain(usize::MAX, |bytes| seen[bytes[0] as usize] += 1);
        };
        let (thread_to_here, thread) = mpsc::channel();
        let writer = thread::spawn(move || {
            // SAFETY: takes nothing.
            thread_to_here.send(unsafe { libc::pthread_self() }).unwrap();
            let producer = PRODUCER.get().unwrap();
            for _ in 0..EACH {
                assert!(HINT.with(|hint| producer.write(hint, 0, &[0], b"interrupted")));
            }
        });
        let thread = thread.recv().unwrap();
        while !writer.is_finished() {
            // SAFETY: the thread was not joined yet, so that its name is good.
            unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
            read(&mut consumer);
        }
        writer.join().unwrap();
        read(&mut consumer);
        assert_eq!(seen, [EACH, HANDLED.load(Ordering::Relaxed)]);
        assert!(seen[1] > 0);
        assert_eq!((consumer.torn(), consumer.late(), consumer.spoiled()), (0, 0, 0));
        assert_eq!(consumer.held().count(), 0);
    }

    #[test]
    fn what_the_launcher_wants_is_known_to_the_producers() {
        for follow in [Follow::Inherit, Follow::None, Follow::Always] {
            let consumer = Consumer::create(&RingOptions { follow, ..TINY }).unwrap();
            let producer = Producer::attach(consumer.variable()).unwrap();
            assert_eq!((producer.follow(), producer.only()), (follow, 0));
            consumer.set_only(17);
            assert_eq!(producer.only(), 17);
        }
    }

    #[test]
    fn more_processes_than_there_are_rows_can_write() {
        let (mut consumer, producer) = ring();
        let count = KNOWN_PROCESSES as u32 + 1;
        assert!((0..count).map(|pid| producer.new_process(pid, 1)).eq(0..count));
        assert_eq!(consumer.processes().count(), KNOWN_PROCESSES);
        producer.shared.header().processes.0.store(u64::MAX - 1, Ordering::Relaxed);
        for process in [producer.new_process(1, 1), producer.new_process(1, 1)] {
            assert_eq!(process, u32::MAX);
            producer.count_call(process, 0);
            producer.forget_process(process);
            assert!(producer.write(&Cell::new(0), process, &[7], b""));
        }
        assert_eq!(drain(&mut consumer).len(), 2);
    }

    /// A child of the test.
    struct Process(i32);

    impl Process {
        fn kill(&self) {
            // SAFETY: sends a signal to a process that the test made.
            assert_eq!(unsafe { libc::kill(self.0, libc::SIGKILL) }, 0);
        }

        /// The signal that ended it, or 0.
        fn wait(&self) -> i32 {
            let mut status = 0;
            // SAFETY: a place for the status.
            assert_eq!(unsafe { libc::waitpid(self.0, &mut status, 0) }, self.0);
            if libc::WIFSIGNALED(status) {
                libc::WTERMSIG(status)
            } else {
                libc::WEXITSTATUS(status)
            }
        }
    }

    /// Runs something in another process. Its threads are not there, so it should do little.
    fn fork(child: impl FnOnce()) -> Process {
        // SAFETY: the C library makes its own locks fit for use in the child.
        match unsafe { libc::fork() } {
            0 => {
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
                // SAFETY: takes a number.
                unsafe { libc::_exit(i32::from(result.is_err())) }
            }
            pid => {
                assert!(pid > 0);
                Process(pid)
            }
        }
    }

    /// A pipe for short messages: each has the same length, so that they don't run into each other.
    struct Pipe(PipeReader, PipeWriter);

    impl Pipe {
        const BYTES: usize = 64;

        fn new() -> Pipe {
            let (reader, writer) = io::pipe().unwrap();
            Pipe(reader, writer)
        }

        fn write(&self, message: &[u8]) {
            let mut bytes = [0; Pipe::BYTES];
            bytes[..message.len()].copy_from_slice(message);
            (&self.1).write_all(&bytes).unwrap();
        }

        fn read(&self) -> Vec<u8> {
            let mut bytes = [0; Pipe::BYTES];
            (&self.0).read_exact(&mut bytes).unwrap();
            let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            bytes[..end].to_vec()
        }
    }

    #[test]
    fn only_a_ring_is_attached() {
        let attach = |variable: &str| Producer::attach(variable).err().unwrap().to_string();
        assert_eq!(attach("/dev/null@0123456789abcdef"), "not sealed memory");
        assert!(attach("/proc/self/fd/999999@0123456789abcdef").contains("No such file"));
        for none in ["", "@", "/dev/null", "/dev/null@12", "/dev/null@+123456789abcdef"] {
            assert_eq!(attach(none), "not a ring's path and name");
        }
        let (consumer, _) = ring();
        let variable = consumer.variable();
        let (path, _) = variable.split_once('@').unwrap();
        assert_eq!(attach(&format!("{path}@{:016x}", consumer.id() ^ 1)), "another ring");
        let header = consumer.shared.header();
        let foreign = format!("not a ring of version {VERSION}");
        for (field, bad) in [
            (&header.magic, 0),
            (&header.version, 2),
            (&header.lanes, 4),
            (&header.lanes, u64::MAX),
            (&header.lane_bytes, 0),
            (&header.lane_bytes, 1 << 63),
        ] {
            let good = field.swap(bad, Ordering::Relaxed);
            assert_eq!(attach(&variable), foreign);
            field.store(good, Ordering::Relaxed);
        }
        assert!(Producer::attach(&variable).is_ok());
        let mode = consumer.file().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "it is the user's own");

        let unsealed = memory().unwrap();
        unsealed.set_len(consumer.file().metadata().unwrap().len()).unwrap();
        let path = format!("/proc/self/fd/{}@{:016x}", unsealed.as_raw_fd(), consumer.id());
        assert_eq!(attach(&path), "not sealed memory");
        // Only root can give it to somebody else.
        if std::os::unix::fs::fchown(consumer.file(), Some(1), None).is_ok() {
            assert_eq!(attach(&variable), "another user's");
        }
    }

    #[test]
    fn only_sizes_that_make_sense_are_made() {
        for (lanes, lane_bytes) in
            [(0, 1 << 17), (3, 1 << 17), (64, 1 << 13), (64, 100_000), (1 << 13, 1 << 14)]
        {
            let options = RingOptions { lanes, lane_bytes, ..TINY };
            let why = Consumer::create(&options).err().unwrap();
            assert_eq!(why.kind(), io::ErrorKind::InvalidInput);
        }
        let consumer = Consumer::create(&RingOptions::default()).unwrap();
        let bytes = consumer.file().metadata().unwrap().len();
        assert!((8 << 20..9 << 20).contains(&bytes), "{bytes}");
    }

    #[test]
    fn calls_are_counted_per_process_and_symbol() {
        let (consumer, producer) = ring();
        let (first, second) = (producer.new_process(11, 5), producer.new_process(12, 6));
        producer.count_call(first, 3);
        producer.count_call(second, 3);
        producer.count_call(second, 3);
        producer.count_call(second, COUNTED_SYMBOLS);
        producer.count_call(COUNTED_PROCESSES as u32, 3);
        assert_eq!(consumer.calls(first).unwrap()[3], 1);
        assert_eq!(consumer.calls(second).unwrap()[3], 2);
        assert_eq!(consumer.calls(COUNTED_PROCESSES as u32), None);
        assert!(consumer.processes().eq([(0, 11, 5), (1, 12, 6)]));
        producer.forget_process(first);
        assert!(consumer.processes().eq([(1, 12, 6)]));
    }
}
