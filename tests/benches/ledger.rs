//! What the books cost: records entered in a second, and the memory that a long run takes:
//! `cargo bench -p ttalloc-tests --bench ledger`.
//!
//! 1. 100 million records of all sorts, with 10,000 live buffers all the time, devices and traces that
//!    come and go, programs that nobody caches and short processes; then what is resident.
//! 2. Records of one sort on meshes of 1, 8 and 32 chips, read from memory: of several rounds the
//!    median, with the slowest and the fastest.
//!
//! `-- RECORDS` has another number of them in the first part.
//!
//! Times are those that this thread had a processor, so that a busy machine makes little difference.

use bytemuck::Zeroable;
use ttalloc::ledger::Ledger;
use ttalloc_ring::record::{self, Body, Head, LocalKind, TraceStep};

const LIVE: u64 = 10_000;
const LONG_RUN: u64 = 100_000_000;
const ROUNDS: usize = 7;
/// Records after one another in memory: about as much as the ring holds, so that they come from the
/// processor's caches as often as there.
const RECORDS: usize = 100_000;
/// How often they are entered in a round.
const TIMES: usize = 10;
const MESH: u64 = 0x7f00_0000_1000;
const ALLOCATOR: u64 = 0x7f00_0000_2000;
/// What a buffer takes in a bank.
const BYTES: u64 = 2048;

fn main() {
    let records = std::env::args().filter_map(|word| word.parse().ok()).next();
    long_run(records.unwrap_or(LONG_RUN));
    println!("{:<34}{:>7}{:>22}", "million records a second", "chips", "median (worst-best)");
    for (name, write) in MIXES {
        for chips in [1, 8, 32] {
            measure(name, chips, *write);
        }
    }
}

/// Writes some records after one another, each with its length before it.
#[derive(Default)]
struct Tape {
    bytes: Vec<u8>,
    count: usize,
    process: u32,
    time_ns: u64,
}

impl Tape {
    fn tell<B: Body>(&mut self, body: &B, tail: &[u8]) {
        self.time_ns += 100;
        let head = Head { kind: B::KIND as u32, process: self.process, time_ns: self.time_ns };
        let length = size_of::<Head>() + size_of::<B>() + tail.len();
        self.bytes.extend((length as u64).to_le_bytes());
        self.bytes.extend(bytemuck::bytes_of(&head));
        self.bytes.extend(bytemuck::bytes_of(body));
        self.bytes.extend(tail);
        self.count += 1;
    }

    fn enter(&self, ledger: &mut Ledger) {
        let mut rest = self.bytes.as_slice();
        while let Some((length, after)) = rest.split_first_chunk() {
            let (record, after) = after.split_at(u64::from_le_bytes(*length) as usize);
            ledger.enter(record);
            rest = after;
        }
    }

    /// Everything happens again, later.
    fn again(&mut self) {
        const TIME: std::ops::Range<usize> = 16..24;
        let mut at = 0;
        while let Some(length) = self.bytes[at..].first_chunk() {
            let next = at + 8 + u64::from_le_bytes(*length) as usize;
            let time = &mut self.bytes[at + TIME.start..at + TIME.end];
            let time_ns = u64::from_le_bytes(time.try_into().expect("it has eight bytes"));
            time.copy_from_slice(&(time_ns + self.time_ns).to_le_bytes());
            at = next;
        }
    }

    /// What was written is entered, and room made for more.
    fn flush(&mut self, ledger: &mut Ledger) {
        self.enter(ledger);
        self.bytes.clear();
        self.count = 0;
    }

    fn open(&mut self, device: u64, allocator: u64, id: i32, chips: i32) {
        let chips: Vec<i32> = (0..chips).collect();
        let body =
            record::Device { device, id, arch: 2, is_mesh: 1, dims: 1, strides: [1, 0, 0, 0] };
        self.tell(&body, bytemuck::cast_slice(&chips));
        let mut body: record::Allocator = Zeroable::zeroed();
        (body.allocator, body.device, body.alignment) = (allocator, device, 32);
        (body.banks[0], body.bank_bytes[0]) = (12, 1 << 30);
        (body.banks[1], body.bank_bytes[1]) = (64, 1 << 20);
        (body.base, body.l1_bytes) = ([1024, 32], 1 << 21);
        self.tell(&body, b"");
    }

    fn close(&mut self, device: u64, allocator: u64) {
        self.tell(&record::Close { device, failed: 0 }, b"");
        self.tell(&record::Release { allocator, ends: 1 }, b"");
    }

    /// One of the buffers: each has an address of its own, in L1 or in DRAM.
    fn allocate(&mut self, buffer: u64) {
        let body = record::Allocate {
            allocator: ALLOCATOR,
            buffer: 0x5500_0000_0000 + buffer * 0x150,
            address: (1 << 19) + buffer / 2 * BYTES,
            bytes: 4096,
            bytes_per_bank: BYTES,
            page_bytes: 2048,
            buffer_type: (buffer % 2) as u32,
            purpose: 0,
            cores: 0,
        };
        self.tell(&body, b"");
    }

    fn free(&mut self, buffer: u64) {
        let body = record::Free {
            allocator: ALLOCATOR,
            buffer: 0x5500_0000_0000 + buffer * 0x150,
            address: (1 << 19) + buffer / 2 * BYTES,
        };
        self.tell(&body, b"");
    }

    /// A program of its own layout, with a workload.
    fn compile(&mut self, program: u64, chips: u32, layout: u64) {
        let body = record::Enlisted {
            workload: program + 8,
            program,
            id: layout,
            dims: 1,
            reserved: 0,
            start: [0; 4],
            end: [chips - 1, 0, 0, 0],
        };
        self.tell(&body, b"");
        for name in ["reader_unary_interleaved", "writer_unary_interleaved", "eltwise_sfpu"] {
            let name = format!("{name}_{}", layout % 10_000);
            self.tell(&record::Kernel { program }, name.as_bytes());
        }
        for at in 0..4 {
            let body = record::Local {
                program,
                address: 1024 + at * 4096,
                bytes: 4096,
                layout,
                kind: LocalKind::Circular as u32,
                cores: 64,
            };
            self.tell(&body, bytemuck::cast_slice(&[0_u16, 0, 7, 7]));
        }
    }

    fn run(&mut self, program: u64) {
        let body = record::Run { workload: program + 8, program: 0, device: MESH, refused: 0 };
        self.tell(&body, b"");
    }

    fn trace(&mut self, trace: u32, step: TraceStep) {
        self.tell(&record::Trace { device: MESH, trace, step: step as u32 }, b"");
    }
}

/// Numbers that are as good as random, the same ones every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        // Knuth's MMIX generator.
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % sides
    }
}

/// Writes records, of which a round starts as another has ended.
type Mix = fn(&mut Tape, u32);

const MIXES: &[(&str, Mix)] = &[
    ("allocate, free the same", |tape, _| {
        while tape.count < RECORDS {
            tape.allocate(LIVE);
            tape.free(LIVE);
        }
    }),
    ("free any, allocate it again", |tape, _| {
        let mut dice = Dice(1);
        while tape.count < RECORDS {
            let buffer = dice.roll(LIVE);
            tape.free(buffer);
            tape.allocate(buffer);
        }
    }),
    ("the same with placements", |tape, chips| {
        let mut dice = Dice(1);
        while tape.count < RECORDS {
            let buffer = dice.roll(LIVE);
            tape.free(buffer);
            tape.allocate(buffer);
            let body = record::Placement {
                device: MESH,
                address: (1 << 19) + buffer / 2 * BYTES,
                bytes: 2048,
                buffer_type: (buffer % 2) as u32,
                reserved: 0,
            };
            (0..chips).for_each(|_| tape.tell(&body, b""));
        }
    }),
    ("allocate, run a program, free any", |tape, chips| {
        let mut dice = Dice(1);
        let programs = 0x6600_0000_0000;
        for at in 0..500 {
            tape.compile(programs + at * 0x100, chips, at);
        }
        while tape.count < RECORDS {
            let buffer = dice.roll(LIVE);
            tape.free(buffer);
            tape.allocate(buffer);
            tape.run(programs + dice.roll(500) * 0x100);
        }
    }),
    ("programs that nobody caches", |tape, chips| {
        let program = 0x6600_0000_0000;
        let mut dice = Dice(1);
        while tape.count < RECORDS {
            tape.compile(program, chips, dice.roll(100));
            tape.run(program);
            tape.tell(&record::ProgramEnd { program }, b"");
        }
    }),
];

fn measure(name: &str, chips: u32, write: Mix) {
    let mut ledger = Ledger::default();
    let mut tape = Tape::default();
    tape.open(MESH, ALLOCATOR, 0, chips as i32);
    (0..LIVE).for_each(|buffer| tape.allocate(buffer));
    tape.flush(&mut ledger);
    write(&mut tape, chips);
    let mut figures: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let mut seconds = 0.0;
            for _ in 0..TIMES {
                let start = processor_seconds();
                tape.enter(&mut ledger);
                seconds += processor_seconds() - start;
                tape.again();
            }
            (TIMES * tape.count) as f64 / seconds / 1e6
        })
        .collect();
    figures.sort_by(f64::total_cmp);
    assert_eq!(ledger.anomalies, Default::default());
    let (worst, median, best) = (figures[0], figures[ROUNDS / 2], figures[ROUNDS - 1]);
    println!("{name:<34}{chips:>7}{median:>9.1} ({worst:.1}-{best:.1})");
}

fn long_run(records: u64) {
    const CHIPS: u32 = 8;
    let mut ledger = Ledger::default();
    let mut tape = Tape::default();
    let mut dice = Dice(1);
    tape.open(MESH, ALLOCATOR, 0, CHIPS as i32);
    (0..LIVE).for_each(|buffer| tape.allocate(buffer));
    tape.flush(&mut ledger);
    let before = resident();
    let (mut written, start) = (0, processor_seconds());
    for turn in 0_u64.. {
        if written >= records {
            break;
        }
        for _ in 0..2000 {
            let buffer = dice.roll(LIVE);
            tape.free(buffer);
            tape.allocate(buffer);
        }
        // Addresses come back now and then, as they do.
        let program = 0x6600_0000_0000 + dice.roll(1000) * 0x100;
        tape.compile(program, CHIPS, turn);
        tape.trace(turn as u32, TraceStep::Begin);
        tape.run(program);
        tape.trace(turn as u32, TraceStep::End);
        tape.trace(turn as u32, TraceStep::Replay);
        tape.run(program);
        tape.tell(&record::ProgramEnd { program }, b"");
        tape.trace(turn as u32, TraceStep::Release);
        let at = 0x7700_0000_0000 + turn * 0x1000;
        tape.open(at, at + 8, 1 + turn as i32, CHIPS as i32);
        tape.close(at, at + 8);
        tape.process = 1 + turn as u32;
        short_process(&mut tape);
        written += tape.count as u64;
        tape.flush(&mut ledger);
        ledger.end(tape.process);
        tape.process = 0;
    }
    let seconds = processor_seconds() - start;
    assert_eq!(ledger.anomalies, Default::default());
    println!(
        "{written} records with {LIVE} live buffers in {seconds:.1} s, writing them included; resident: {} before, {} after, {} at most\n",
        before[0],
        resident()[0],
        resident()[1]
    );
}

fn short_process(tape: &mut Tape) {
    let mut body: record::Process = Zeroable::zeroed();
    (body.pid, body.parent_pid) = (1000 + tape.process % 30_000, 1);
    tape.tell(&body, b"python3\0test.py\0");
    let mut body: record::Runtime = Zeroable::zeroed();
    body.era = 3;
    tape.tell(&body, b"libtt_metal.so");
    tape.open(MESH, ALLOCATOR, 0, 1);
    tape.allocate(1);
}

/// How long this thread has had a processor.
fn processor_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec that may be written to.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(failed, 0, "the thread's clock can't be read");
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// What of this process is in memory, and the most that was.
fn resident() -> [String; 2] {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    ["VmRSS:", "VmHWM:"].map(|name| line(name).unwrap_or("unknown").trim().to_owned())
}
