//! The writers: processes of some threads, which may fork on the way, and one that spoils what it can.

use std::cell::Cell;
use std::fs::OpenOptions;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use memmap2::MmapRaw;
use ttalloc_ring::record::MAX_BYTES;
use ttalloc_ring::ring::{Producer, parse_variable};
use ttalloc_tests::random::Random;

use crate::books::Books;
use crate::round::Plan;

/// The exit code of a process that found no ring.
pub const NO_RING: i32 = 2;

/// Ends this process at once.
pub fn exit(code: i32) -> ! {
    // SAFETY: has no requirement.
    unsafe { libc::_exit(code) }
}

/// A record as it is written and as it comes out.
pub struct Content {
    words: Box<[u64; MAX_BYTES / 8]>,
    bytes: Box<[u8; MAX_BYTES]>,
    length: usize,
}

impl Content {
    /// An empty one.
    pub fn new() -> Content {
        Content { words: Box::new([0; MAX_BYTES / 8]), bytes: Box::new([0; MAX_BYTES]), length: 0 }
    }

    /// Becomes a writer's record: its number in that writer, from which all the rest follows.
    pub fn set(&mut self, writer: u64, number: u64) {
        let mut random = Random::new(writer << 40 | number);
        let words = self.words.len() as u64;
        // Most are as short as an allocation's, and a few as long as can be.
        let count = 2 + match random.below(2000) {
            0 => random.below(words - 2 + 1),
            1..40 => random.below(60),
            _ => random.below(8),
        } as usize;
        (self.words[0], self.words[1]) = (writer, number);
        self.words[2..count].fill_with(|| random.number());
        // Not all of them end with a word.
        self.length = 8 * count - if count > 2 { random.below(8) as usize } else { 0 };
        for (bytes, word) in self.bytes.as_chunks_mut::<8>().0.iter_mut().zip(&self.words[..count])
        {
            *bytes = word.to_le_bytes();
        }
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Its first words, as many as told, and the rest.
    fn parts(&self, words: usize) -> (&[u64], &[u8]) {
        (&self.words[..words], &self.bytes[8 * words..self.length])
    }
}

/// The writer and the number in a record, if it has both.
pub fn name(record: &[u8]) -> Option<(u64, u64)> {
    let ([writer, number, ..], _) = record.as_chunks::<8>() else { return None };
    Some((u64::from_le_bytes(*writer), u64::from_le_bytes(*number)))
}

/// A writing process, in a child that was just forked; its exit code.
pub fn run(plan: &Plan, books: &Books, variable: &str, seed: u64) -> i32 {
    let Ok(producer) = Producer::attach(variable) else { return NO_RING };
    let process = producer.new_process(std::process::id(), 0);
    let mut random = Random::new(seed);
    let threads = 1 + random.below(plan.threads);
    thread::scope(|scope| {
        for _ in 0..threads {
            let (producer, seed) = (&producer, random.number());
            scope.spawn(move || write(plan, books, producer, process, seed));
        }
    });
    0
}

/// Writes until it is told to stop, or there is nobody to read. Goes on as another writer wherever it
/// forks.
fn write(plan: &Plan, books: &Books, producer: &Producer, mut process: u32, seed: u64) {
    let mut random = Random::new(seed);
    let Some((mut writer, mut own)) = books.begin() else { return };
    let mut is_forked = false;
    let hint = Cell::new(0);
    let mut content = Content::new();
    let mut number = 0;
    while !books.is_stopped() && !producer.is_closed() {
        content.set(writer, number);
        let most = content.bytes().len() as u64 / 8;
        let (head, tail) = content.parts(random.below(most + 1) as usize);
        own.begun.store(number + 1, Ordering::Release);
        if producer.write(&hint, process, head, tail) {
            number += 1;
            own.done.store(number, Ordering::Release);
        } else {
            // The next one has the same number.
            own.refused.fetch_add(1, Ordering::Release);
        }
        if plan.forks && random.below(20_000) == 0 {
            // SAFETY: the child uses nothing that another thread may have been at work on, but for the
            // allocator and the ring, which are made for it.
            if unsafe { libc::fork() } == 0 {
                process = producer.new_process(std::process::id(), 0);
                let Some((new, place)) = books.begin() else { exit(0) };
                books.count_fork();
                (writer, own, number, is_forked) = (new, place, 0, true);
            }
        }
        if plan.pauses && random.below(200) == 0 {
            thread::sleep(random.time_below(Duration::from_millis(1)));
        }
    }
    own.ended.store(1, Ordering::Release);
    if is_forked {
        // Nobody waits for this thread in this process.
        exit(0);
    }
}

/// A process that writes nonsense anywhere into the ring; its exit code.
pub fn spoil(books: &Books, variable: &str, seed: u64) -> i32 {
    match try_to_spoil(books, variable, seed) {
        Ok(()) => 0,
        Err(_) => NO_RING,
    }
}

fn try_to_spoil(books: &Books, variable: &str, seed: u64) -> io::Result<()> {
    let (path, _) = parse_variable(variable.as_ref()).ok_or(io::ErrorKind::InvalidInput)?;
    let map = MmapRaw::map_raw(&OpenOptions::new().read(true).write(true).open(path)?)?;
    let words = map.len() as u64 / 8;
    let mut random = Random::new(seed);
    while !books.is_stopped() {
        // Near the beginning is what matters most.
        let end = if random.below(2) == 0 { words } else { words.min(1 << (3 + random.below(18))) };
        let at = random.below(end) as usize;
        // SAFETY: within the mapping.
        let word = unsafe { map.as_mut_ptr().cast::<u64>().add(at) };
        // SAFETY: aligned, since the mapping is page-aligned; others access it as an atomic too.
        let word = unsafe { AtomicU64::from_ptr(word) };
        match random.below(4) {
            0 => word.store(random.number(), Ordering::Relaxed),
            1 => word.store(random.below(1 << 16), Ordering::Relaxed),
            2 => word.store(0, Ordering::Relaxed),
            _ => {
                word.fetch_xor(1 << random.below(64), Ordering::Relaxed);
            }
        }
        thread::sleep(random.time_below(Duration::from_micros(300)));
    }
    Ok(())
}
