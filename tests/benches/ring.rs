//! What a record costs the program, and how many a second come into the books: `cargo bench --bench ring`.
//!
//! 1. A record through the ring, against a message of 112 bytes through a Unix socket and one through a
//!    pipe, each with a reader at the other end, and 1, 2, 4 and 8 producers: threads of one process, and
//!    processes. Half a microsecond of other work lies between two of them. Each is timed alone, by the
//!    processor's time stamp counter, without what it takes to read that.
//! 2. The same without a pause: how many a second come through in all.
//! 3. How many records a second the ledger enters: from memory, and out of the ring.
//!
//! The records are those of allocations and frees, in turn, as the hooks write them.

#![allow(clippy::panic, reason = "a benchmark that can't go on says so")]

use std::arch::x86_64::{_mm_lfence, _rdtsc};
use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use ttalloc::ledger::Ledger;
use ttalloc_ring::clock::now_ns;
use ttalloc_ring::record::{self, Body, Head, TYPES};
use ttalloc_ring::ring::{Consumer, Producer, RingOptions};

/// Records that each producer writes.
const COUNT: u64 = 100_000;
/// Work between two of them, in nanoseconds.
const WORK: u64 = 500;
/// The message of a monitor that is told by a socket.
const MESSAGE: usize = 112;
/// Records that the launcher takes at a time.
const BATCH: usize = 1 << 16;
/// How often each figure is taken; the one in the middle counts.
const TURNS: usize = 5;
/// Buffers that are live at a time in the ledger.
const LIVE: u64 = 10_000;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Transport {
    Ring,
    Socket,
    Pipe,
}

const TRANSPORTS: [Transport; 3] = [Transport::Ring, Transport::Socket, Transport::Pipe];

fn main() {
    let words: Vec<_> = std::env::args().collect();
    if let Some(at) = words.iter().position(|word| word == "producer") {
        return child(&words[at + 1..]);
    }
    describe_the_machine();
    println!(
        "\na record, {WORK} ns of other work between two: nanoseconds in the median (99 of 100), mean"
    );
    table(["thread", "threads"], true, in_threads);
    table(["process", "processes"], true, in_processes);
    stamped();
    println!("\nwithout a pause: millions a second in all");
    table(["thread", "threads"], false, in_threads);
    println!("\ninto the ledger, {LIVE} live buffers: millions of records a second");
    for chips in [1, 8, 32] {
        println!(
            "{chips:3} chips: {:.1} from memory, {:.1} out of the ring",
            entered(chips),
            drained(chips)
        );
    }
}

fn describe_the_machine() {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let processor = read("/proc/cpuinfo");
    let line = processor.lines().find(|line| line.starts_with("model name"));
    let model = line.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown processor");
    let count = thread::available_parallelism().map_or(0, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    println!(
        "{model}, {count} processors, Linux {}, load {}",
        kernel.trim(),
        read("/proc/loadavg").trim()
    );
}

// What is measured.

/// Ticks of the time stamp counter, after all that was begun before.
fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has it.
    unsafe { _mm_lfence() };
    // SAFETY: likewise.
    let ticks = unsafe { _rdtsc() };
    // SAFETY: likewise.
    unsafe { _mm_lfence() };
    ticks
}

/// The clock that single records are timed by.
#[derive(Clone, Copy)]
struct Clock {
    ticks_per_ns: f64,
    /// What it takes to look at it twice.
    overhead: u64,
}

impl Clock {
    fn get() -> Clock {
        static CLOCK: OnceLock<Clock> = OnceLock::new();
        *CLOCK.get_or_init(|| {
            let (begun, first) = (Instant::now(), ticks());
            thread::sleep(Duration::from_millis(100));
            let ticks_per_ns = (ticks() - first) as f64 / begun.elapsed().as_nanos() as f64;
            let mut empty: Vec<_> =
                (0..10_000).map(|_| (ticks(), ticks())).map(|(a, b)| b - a).collect();
            empty.sort_unstable();
            Clock { ticks_per_ns, overhead: empty[empty.len() / 2] }
        })
    }

    fn ns(self, ticks: u64) -> f64 {
        ticks as f64 / self.ticks_per_ns
    }

    /// Passes some time as a program does that computes.
    fn work(self) {
        let end = ticks() + (WORK as f64 * self.ticks_per_ns) as u64;
        while ticks() < end {
            std::hint::spin_loop();
        }
    }
}

/// Sends [`COUNT`] by `send`, which is told their numbers. Returns what each took, in ticks, if it pauses
/// between them; none otherwise.
fn produce(pauses: bool, mut send: impl FnMut(u64)) -> Vec<u32> {
    let clock = Clock::get();
    let mut samples = Vec::new();
    if pauses {
        samples.reserve(COUNT as usize);
    }
    for number in 0..COUNT {
        if pauses {
            clock.work();
            let begun = ticks();
            send(number);
            let taken = (ticks() - begun).saturating_sub(clock.overhead);
            samples.push(taken.min(u64::from(u32::MAX)) as u32);
        } else {
            send(number);
        }
    }
    samples
}

/// Writes [`COUNT`] records to a ring, as the producer of that number.
fn produce_records(ring: &Producer, producer: u64, pauses: bool, stamped: bool) -> Vec<u32> {
    let process = ring.new_process(std::process::id(), 0);
    let hint = Cell::new(0);
    produce(pauses, |number| {
        let time_ns = if stamped { now_ns() } else { number };
        let written = with_record(process, time_ns, producer, number, |words| {
            ring.write(&hint, process, words, b"")
        });
        assert!(written, "the ring takes every record");
    })
}

/// Sends [`COUNT`] messages to a socket or a pipe.
fn produce_messages(mut to: impl Write, pauses: bool) -> Vec<u32> {
    let mut message = [0; MESSAGE];
    produce(pauses, |number| {
        message[..8].copy_from_slice(&number.to_le_bytes());
        to.write_all(&message).expect("the reader is there");
    })
}

/// The longest record's words.
const WORDS: usize = (size_of::<Head>() + size_of::<record::Allocate>()) / 8;

/// Makes a record as a hook does, and hands its words over.
#[inline]
fn with_words<B: Body, T>(
    process: u32,
    time_ns: u64,
    body: &B,
    then: impl FnOnce(&[u64]) -> T,
) -> T {
    let head = Head { kind: B::KIND as u32, process, time_ns };
    let mut words = [0_u64; WORDS];
    let length = size_of::<Head>() + size_of::<B>();
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
    bytes[..size_of::<Head>()].copy_from_slice(bytemuck::bytes_of(&head));
    bytes[size_of::<Head>()..length].copy_from_slice(bytemuck::bytes_of(body));
    then(&words[..length / 8])
}

/// The same for a producer's record of that number: allocations and frees in turn.
#[inline]
fn with_record<T>(
    process: u32,
    time_ns: u64,
    producer: u64,
    number: u64,
    then: impl FnOnce(&[u64]) -> T,
) -> T {
    let address = producer << 40 | (number / 2) << 12;
    if number.is_multiple_of(2) {
        with_words(process, time_ns, &allocate(address), then)
    } else {
        with_words(process, time_ns, &free(address), then)
    }
}

fn allocate(address: u64) -> record::Allocate {
    record::Allocate {
        allocator: ALLOCATOR,
        buffer: address,
        address,
        bytes: 4096,
        bytes_per_bank: 4096,
        page_bytes: 2048,
        buffer_type: 0,
        purpose: 0,
        cores: 0,
    }
}

fn free(address: u64) -> record::Free {
    record::Free { allocator: ALLOCATOR, buffer: address, address }
}

// The readers.

/// What producers sent, and how long it took from the first to the last.
struct Sent {
    samples: Vec<u32>,
    time: Duration,
}

/// The reading end of a transport.
enum Receiver {
    Ring(Box<Consumer>),
    /// One for each producer, or the one that all share.
    Files(Vec<OwnedFd>),
}

impl Receiver {
    /// A transport for so many producers: its reading end, and what each of them gets as its standard
    /// input, if it gets anything.
    fn new(transport: Transport, producers: u64) -> io::Result<(Receiver, Vec<OwnedFd>)> {
        Ok(match transport {
            Transport::Ring => {
                (Receiver::Ring(Box::new(Consumer::create(&RingOptions::default())?)), Vec::new())
            }
            Transport::Socket => {
                let (mut ours, mut theirs) = (Vec::new(), Vec::new());
                for _ in 0..producers {
                    let (one, other) = UnixStream::pair()?;
                    ours.push(one.into());
                    theirs.push(other.into());
                }
                (Receiver::Files(ours), theirs)
            }
            Transport::Pipe => {
                let (ours, theirs) = io::pipe()?;
                let copies = (0..producers).map(|_| theirs.as_fd().try_clone_to_owned());
                (Receiver::Files(vec![ours.into()]), copies.collect::<io::Result<_>>()?)
            }
        })
    }

    /// The ring's name.
    fn variable(&self) -> String {
        match self {
            Receiver::Ring(ring) => ring.variable(),
            Receiver::Files(_) => String::new(),
        }
    }

    /// Reads until `is_done` and there is nothing left; how many records or messages came.
    fn receive(&mut self, is_done: impl Fn() -> bool) -> u64 {
        match self {
            Receiver::Ring(ring) => {
                // As the launcher does.
                let mut count = 0;
                let mut sum = 0_u64;
                loop {
                    let was_done = is_done();
                    let now = ring.drain(BATCH, |record| sum += record.len() as u64);
                    count += now as u64;
                    if now == 0 && was_done {
                        break;
                    }
                    // The launcher looks again at once only if there is sure to be more.
                    if now < BATCH {
                        thread::sleep(Duration::from_millis(1));
                    }
                }
                let lost = [ring.dropped(), ring.torn(), ring.late(), ring.spoiled()];
                assert_eq!(lost, [0; 4], "nothing is dropped, torn, late or spoiled");
                assert!(sum > 0);
                count
            }
            Receiver::Files(files) => receive(files, is_done),
        }
    }
}

/// Reads files until they end.
fn receive(files: &mut Vec<OwnedFd>, is_done: impl Fn() -> bool) -> u64 {
    let mut bytes = vec![0; 1 << 16];
    let mut sum = 0;
    loop {
        let poll = |file: &OwnedFd| libc::pollfd {
            fd: file.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let mut polls: Vec<_> = files.iter().map(poll).collect();
        // SAFETY: so many entries.
        let ready = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as u64, 100) };
        if ready <= 0 {
            if is_done() {
                return sum / MESSAGE as u64;
            }
            continue;
        }
        for (at, one) in polls.iter().enumerate().rev().filter(|(_, one)| one.revents != 0) {
            // SAFETY: a buffer of that length.
            let count = unsafe { libc::read(one.fd, bytes.as_mut_ptr().cast(), bytes.len()) };
            match count {
                1.. => sum += count as u64,
                _ => drop(files.swap_remove(at)),
            }
        }
        if files.is_empty() {
            return sum / MESSAGE as u64;
        }
    }
}

fn in_threads(transport: Transport, producers: u64, pauses: bool) -> io::Result<Sent> {
    let (mut receiver, files) = Receiver::new(transport, producers)?;
    let variable = receiver.variable();
    let begun = Instant::now();
    let mut files = files.into_iter();
    let ring = match transport {
        Transport::Ring => Some(Producer::attach(&variable).expect("a ring that was just made")),
        _ => None,
    };
    let ring = ring.as_ref();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..producers)
            .map(|producer| {
                let file = files.next();
                scope.spawn(move || match (ring, file) {
                    (Some(ring), _) => produce_records(ring, producer, pauses, false),
                    (None, Some(file)) => produce_messages(File::from(file), pauses),
                    (None, None) => Vec::new(),
                })
            })
            .collect();
        let count = receiver.receive(|| threads.iter().all(|thread| thread.is_finished()));
        let time = begun.elapsed();
        assert_eq!(count, producers * COUNT, "nothing is lost");
        let samples = threads.into_iter().flat_map(|thread| thread.join().expect("it ends well"));
        Ok(Sent { samples: samples.collect(), time })
    })
}

fn in_processes(transport: Transport, producers: u64, pauses: bool) -> io::Result<Sent> {
    let (mut receiver, files) = Receiver::new(transport, producers)?;
    let variable = receiver.variable();
    let begun = Instant::now();
    let mut files = files.into_iter();
    let mut children = Vec::new();
    for producer in 0..producers {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["producer", &variable, &producer.to_string(), &pauses.to_string()]);
        command.stdin(files.next().map_or(Stdio::null(), Stdio::from)).stdout(Stdio::piped());
        children.push(command.spawn()?);
    }
    thread::scope(|scope| {
        // Their samples, which they print when they are done.
        let readers: Vec<_> = children
            .iter_mut()
            .map(|child| {
                let mut output = child.stdout.take();
                scope.spawn(move || {
                    let mut bytes = Vec::new();
                    output.as_mut().map(|output| output.read_to_end(&mut bytes));
                    bytes
                })
            })
            .collect();
        let count = receiver.receive(|| readers.iter().all(|reader| reader.is_finished()));
        let time = begun.elapsed();
        assert_eq!(count, producers * COUNT, "nothing is lost");
        let bytes: Vec<u8> =
            readers.into_iter().flat_map(|reader| reader.join().expect("it ends well")).collect();
        let samples = bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
        Ok(Sent { samples: samples.collect(), time })
    })
    .inspect(|_| {
        for child in &mut children {
            assert!(child.wait().is_ok_and(|status| status.success()));
        }
    })
}

/// A producer in a process of its own.
fn child(words: &[String]) {
    let [variable, producer, pauses] = words else { panic!("producer RING NUMBER PAUSES") };
    let pauses = pauses == "true";
    let samples = if variable.is_empty() {
        let input = io::stdin().as_fd().try_clone_to_owned().expect("a descriptor");
        let null = File::open("/dev/null").expect("there is one");
        // The reader is to see the end when the messages end.
        // SAFETY: replaces a descriptor that nobody reads.
        unsafe { libc::dup2(null.as_raw_fd(), 0) };
        produce_messages(File::from(input), pauses)
    } else {
        let ring = Producer::attach(variable).expect("the ring that was named");
        produce_records(&ring, producer.parse().expect("a number"), pauses, false)
    };
    let bytes: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
    io::stdout().write_all(&bytes).expect("the parent reads");
}

// The figures.

type Run = fn(Transport, u64, bool) -> io::Result<Sent>;

fn table([one, many]: [&str; 2], pauses: bool, run: Run) {
    for producers in [1, 2, 4, 8] {
        let what = if producers == 1 { one } else { many };
        let mut line = format!("{producers} {what}:");
        let (mut medians, mut means) = (Vec::new(), Vec::new());
        for transport in TRANSPORTS {
            // Turns, of which the one in the middle counts.
            let mut figures: Vec<[f64; 3]> = (0..TURNS)
                .map(|_| {
                    let sent = run(transport, producers, pauses).expect("it can be had");
                    match pauses {
                        true => self::figures(sent.samples),
                        false => {
                            [(producers * COUNT) as f64 / sent.time.as_secs_f64() / 1e6, 0.0, 0.0]
                        }
                    }
                })
                .collect();
            figures.sort_by(|a, b| a[0].total_cmp(&b[0]));
            let [figure, high, mean] = figures[TURNS / 2];
            medians.push(figure);
            means.push(mean);
            let high = if pauses { format!(" ({high:.0}), {mean:.0}") } else { String::new() };
            let digits = if pauses { 0 } else { 1 };
            line +=
                &format!("  {} {figure:.digits$}{high}", format!("{transport:?}").to_lowercase());
        }
        let times = |of: &[f64], at: usize| of[at].max(of[0]) / of[at].min(of[0]);
        line += &format!("  better {:.0} and {:.0} times", times(&medians, 1), times(&medians, 2));
        if pauses {
            line += &format!(", in the mean {:.0} and {:.0}", times(&means, 1), times(&means, 2));
        }
        println!("{line}");
    }
}

/// The median, what 99 of 100 are below, and the mean, in nanoseconds.
fn figures(mut samples: Vec<u32>) -> [f64; 3] {
    samples.sort_unstable();
    let [median, high] = [samples.len() / 2, samples.len() * 99 / 100]
        .map(|at| Clock::get().ns(u64::from(samples[at])));
    let sum: u64 = samples.iter().copied().map(u64::from).sum();
    [median, high, Clock::get().ns(sum) / samples.len() as f64]
}

/// What it costs when the time of the record is asked for as well, as every hook does.
fn stamped() {
    let ring = Consumer::create(&RingOptions::default()).expect("a ring");
    let mut receiver = Receiver::Ring(Box::new(ring));
    let producer = Producer::attach(receiver.variable()).expect("a ring that was just made");
    let samples = thread::scope(|scope| {
        let thread = scope.spawn(|| produce_records(&producer, 0, true, true));
        receiver.receive(|| thread.is_finished());
        thread.join().expect("it ends well")
    });
    let [median, high, mean] = figures(samples);
    println!("1 thread, with the time stamp of each record: {median:.0} ({high:.0}), {mean:.0}");
}

/// The names of an allocator and its mesh in the records.
const ALLOCATOR: u64 = 0x2000;
const MESH: u64 = 0x1000;

/// Hands over the records that come before allocations on a mesh of so many chips.
fn set_up(chips: i32, mut tell: impl FnMut(&[u64], &[u8])) {
    let ids: Vec<i32> = (0..chips).collect();
    let device =
        record::Device { device: MESH, id: 0, arch: 2, is_mesh: 1, dims: 1, strides: [1, 0, 0, 0] };
    with_words(0, 0, &device, |words| tell(words, bytemuck::cast_slice(&ids)));
    let mut body = record::Allocator {
        allocator: ALLOCATOR,
        device: MESH,
        bank_bytes: [0; TYPES],
        banks: [0; TYPES],
        alignment: 32,
        base: [1024, 32],
        l1_bytes: 1 << 21,
        reserved: 0,
    };
    (body.banks[0], body.bank_bytes[0]) = (12, 1 << 40);
    let head = Head { kind: record::Allocator::KIND as u32, process: 0, time_ns: 0 };
    let bytes = [bytemuck::bytes_of(&head), bytemuck::bytes_of(&body)].concat();
    let words: Vec<_> =
        bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    tell(&words, &[]);
}

/// The records of a program that has [`LIVE`] buffers and goes on allocating and freeing: that of a number.
fn steady(number: u64, then: impl FnOnce(&[u64])) {
    // An address comes back when the buffer there is long gone, as memory does.
    let address = |buffer: u64| (buffer % (2 * LIVE)) << 12;
    if number < LIVE {
        with_words(0, number, &allocate(address(number)), then);
    } else if number.is_multiple_of(2) {
        with_words(0, number, &allocate(address(LIVE + (number - LIVE) / 2)), then);
    } else {
        with_words(0, number, &free(address((number - LIVE) / 2)), then);
    }
}

/// The middle one of some rates.
fn middle(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// Millions of records a second that the ledger enters from memory.
fn entered(chips: i32) -> f64 {
    const RECORDS: u64 = 2_000_000;
    let mut bytes = Vec::new();
    let mut ends = Vec::new();
    let mut put = |words: &[u64], tail: &[u8]| {
        bytes.extend_from_slice(bytemuck::cast_slice(words));
        bytes.extend_from_slice(tail);
        ends.push(bytes.len());
    };
    set_up(chips, &mut put);
    (0..RECORDS).for_each(|number| steady(number, |words| put(words, &[])));
    let rate = || {
        let mut ledger = Ledger::default();
        let mut start = 0;
        let begun = Instant::now();
        for &end in &ends {
            ledger.enter(&bytes[start..end]);
            start = end;
        }
        let rate = RECORDS as f64 / begun.elapsed().as_secs_f64() / 1e6;
        assert_entered(&ledger, chips);
        rate
    };
    middle((0..TURNS).map(|_| rate()).collect())
}

/// The books are those of what was entered, not of what was refused.
fn assert_entered(ledger: &Ledger, chips: i32) {
    let live = ledger.processes.values().map(|process| process.live().count() as u64);
    let live: u64 = live.sum();
    assert!(live == LIVE || live == LIVE + 1, "{live} live buffers on {chips} chips");
}

/// The same out of the ring, which is filled while nobody reads.
fn drained(chips: i32) -> f64 {
    const FILLS: usize = 30;
    const RECORDS: u64 = 60_000;
    let mut ring = Consumer::create(&RingOptions::default()).expect("a ring");
    let producer = Producer::attach(ring.variable()).expect("a ring that was just made");
    producer.new_process(std::process::id(), 0);
    let hint = Cell::new(0);
    let mut ledger = Ledger::default();
    set_up(chips, |words, tail| assert!(producer.write(&hint, 0, words, tail)));
    let mut number = 0;
    let rates = (0..FILLS).map(|_| {
        for _ in 0..RECORDS {
            steady(number, |words| assert!(producer.write(&hint, 0, words, b"")));
            number += 1;
        }
        let begun = Instant::now();
        let count = ring.drain(usize::MAX, |record| ledger.enter(record));
        count as f64 / begun.elapsed().as_secs_f64() / 1e6
    });
    let rate = middle(rates.collect());
    assert_entered(&ledger, chips);
    rate
}
