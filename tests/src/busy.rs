//! The program `busy` of the stand-in, and the books that it keeps in a file, which no signal can take.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use ttalloc::ledger::MemoryType;
use ttalloc::report::Report;

/// Words of the file's header, and of a thread's block before its places.
const HEADER: usize = 8;
/// Places that a thread has for buffers.
const PLACES: usize = 56;
/// What the program ends with when it is left to end.
pub const EXIT_CODE: i32 = 7;
/// How long any of its states may take to come, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the program had done when the file was read.
#[derive(Clone, Debug, Default)]
pub struct Books {
    /// Its pid; 0 if it had not come to its `main`.
    pub pid: u32,
    /// How many threads were at work.
    pub working: u64,
    /// How long all the work took; 0 if it was not done.
    pub elapsed_ns: u64,
    threads: Vec<Thread>,
}

#[derive(Clone, Debug)]
struct Thread {
    allocations: Counts,
    frees: Counts,
    places: Vec<Place>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    begun: u64,
    done: u64,
}

/// A buffer: its type and address.
type Buffer = (MemoryType, u64);

#[derive(Clone, Copy, Debug)]
enum Place {
    Empty,
    Allocating,
    Held(Buffer),
    Freeing(Buffer),
}

impl Place {
    fn new(word: u64) -> Place {
        let kind = match word >> 8 & 0xff {
            0 => MemoryType::Dram,
            1 => MemoryType::L1,
            other => panic!("the program has no buffers of type {other}"),
        };
        let buffer = (kind, word >> 16);
        match word & 0xff {
            0 => Place::Empty,
            1 => Place::Allocating,
            2 => Place::Held(buffer),
            3 => Place::Freeing(buffer),
            other => panic!("there is no state {other}"),
        }
    }
}

impl Books {
    /// Reads the file; what the program has not made yet is zero.
    pub fn read(path: &Path) -> Books {
        let bytes = fs::read(path).unwrap_or_default();
        let (words, _) = bytes.as_chunks::<8>();
        let words: Vec<_> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let Some((&[pid, working, elapsed_ns, ..], blocks)) = words.split_first_chunk::<HEADER>()
        else {
            return Books::default();
        };
        let thread = |block: &[u64]| {
            let counts = |at: usize| Counts { begun: block[at], done: block[at + 1] };
            let places = block[HEADER..].iter().map(|&word| Place::new(word)).collect();
            Thread { allocations: counts(0), frees: counts(2), places }
        };
        let threads = blocks.chunks_exact(HEADER + PLACES).map(thread).collect();
        Books { pid: pid as u32, working, elapsed_ns, threads }
    }

    /// Waits until the books are as `wanted`.
    ///
    /// # Panics
    /// If that takes a minute.
    #[track_caller]
    pub fn wait(path: &Path, wanted: impl Fn(&Books) -> bool) -> Books {
        let begun = Instant::now();
        loop {
            let books = Books::read(path);
            if wanted(&books) {
                return books;
            }
            assert!(begun.elapsed() < PATIENCE, "{}: {books:?}", path.display());
            thread::sleep(Duration::from_micros(50));
        }
    }

    /// How many operations were done.
    pub fn done(&self) -> u64 {
        self.threads.iter().map(|thread| thread.allocations.done + thread.frees.done).sum()
    }

    /// How many operations were begun and not done.
    pub fn in_flight(&self) -> u64 {
        let counts = self.threads.iter().flat_map(|thread| [thread.allocations, thread.frees]);
        counts.map(|counts| counts.begun - counts.done).sum()
    }

    /// Holds a report against the books: what was done is in it, and what was not begun isn't. What was in
    /// flight may be. `wrong` is told of what differs.
    pub fn compare(&self, report: &Report, wrong: &mut dyn FnMut(String)) {
        let devices: Vec<_> = report.devices.iter().filter(|one| one.pid == self.pid).collect();
        if self.done() > 0 && devices.len() != 2 {
            wrong(format!("{} chips instead of 2", devices.len()));
        }
        for device in devices {
            let sum = |figure: fn(&ttalloc::report::Memory) -> u64| -> u64 {
                device.memory.iter().map(figure).sum()
            };
            let figures = [
                ("allocations", sum(|memory| memory.allocations), self.sum(|one| one.allocations)),
                ("frees", sum(|memory| memory.frees), self.sum(|one| one.frees)),
            ];
            for (what, found, Counts { begun, done }) in figures {
                if found < done || found > begun {
                    let chip = device.chip;
                    wrong(format!("{found} {what} on chip {chip} of {done} done, {begun} begun"));
                }
            }
            let live = sum(|memory| memory.live.buffers);
            let (allocations, frees) = (figures[0].1, figures[1].1);
            if Some(live) != allocations.checked_sub(frees) {
                wrong(format!("{live} live after {allocations} allocations and {frees} frees"));
            }
            if live != report.live_buffers.len() as u64 {
                wrong(format!("{live} live, {} listed", report.live_buffers.len()));
            }
        }
        self.compare_live(report, wrong);
    }

    fn sum(&self, of_thread: fn(&Thread) -> Counts) -> Counts {
        let counts = self.threads.iter().map(of_thread);
        counts.fold(Counts::default(), |all, one| Counts {
            begun: all.begun + one.begun,
            done: all.done + one.done,
        })
    }

    fn compare_live(&self, report: &Report, wrong: &mut dyn FnMut(String)) {
        let mut found = BTreeSet::new();
        for buffer in &report.live_buffers {
            if buffer.pid != self.pid || buffer.chips != [0, 1] {
                wrong(format!("a live buffer that is none of the program's: {buffer:?}"));
            }
            if !found.insert((buffer.kind, buffer.address)) {
                wrong(format!("a live buffer that is there twice: {buffer:?}"));
            }
        }
        let mut allocating = 0;
        let mut freeing = BTreeSet::new();
        for place in self.threads.iter().flat_map(|thread| &thread.places) {
            match place {
                Place::Empty => {}
                Place::Allocating => allocating += 1,
                Place::Held(buffer) => {
                    if !found.remove(buffer) {
                        wrong(format!("a live buffer is missing: {buffer:?}"));
                    }
                }
                Place::Freeing(buffer) => {
                    freeing.insert(*buffer);
                }
            }
        }
        let others = found.difference(&freeing).count();
        if others > allocating {
            wrong(format!("{others} more live buffers, but {allocating} in the making: {found:?}"));
        }
    }
}
