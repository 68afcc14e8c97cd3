//! The JSON report, schema `ttalloc.report/1`. The types here are the schema; `docs/report.md` explains.

mod cross_check;
mod limits;
mod reconcile;

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ttalloc_ring::record::{self as ring, Refusal};
use ttalloc_symbols::{Era, ROLES, SYMBOLS, Use};

use crate::host::{self, Rank};
use crate::ledger::{self, Ledger, MemoryType, Process as Books, Totals, Usage};
use crate::programs::{self, BufferKind};
use crate::run::watch::{End, How};

use self::limits::Listed;

pub use self::cross_check::{CounterDifference, CrossCheck, CrossCheckState};
pub use self::limits::{FurtherMemory, FurtherProcesses, LeftOut};
pub use self::reconcile::{Difference, FailedAllocation, Occasion, Reconciled};

/// The schema's name and version.
pub const SCHEMA: &str = "ttalloc.report/1";

/// What one run of a program did with the memory of its chips.
///
/// Sizes are in bytes. Times are in nanoseconds since the launcher started the program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// The schema's name and version: `ttalloc.report/1`.
    pub schema: String,
    /// The version of ttalloc that wrote the report.
    pub ttalloc_version: String,
    /// The program and its arguments, as given to the launcher.
    pub command: Vec<String>,
    /// When the program was started, as RFC 3339 in UTC.
    pub started: String,
    /// How long it ran.
    pub duration_ns: u64,
    /// How it ended. Of several reports that were merged: the first end that was not with code 0, if any.
    pub exit: Exit,
    /// Whether processes were still to be followed when this was written, so that a later report takes its
    /// place: all figures are as of then.
    #[serde(default)]
    pub snapshot: bool,
    /// The host's name (`uname -n`); empty if it is not known, or if reports of several were merged.
    #[serde(default)]
    pub host: String,
    /// The rank that the launcher was started as; null if it was none, or if reports of several were
    /// merged.
    #[serde(default)]
    pub rank: Option<u32>,
    /// The reports that were merged into this one, in the order of their processes; empty if none were.
    #[serde(default)]
    pub sources: Vec<Source>,
    /// Whether the figures can be relied on.
    pub integrity: Integrity,
    /// The program's process, and every process below it that used tt-metal: of more than
    /// `--max-processes`, those that reserved most.
    pub processes: Vec<Process>,
    /// The meshes that were opened. A mesh is not a device: its id is counted apart from the chips'.
    pub meshes: Vec<Mesh>,
    /// The chips that were opened, per process.
    pub devices: Vec<Device>,
    /// What was still allocated when the processes ended: of more than `--max-buffers`, those that reserve
    /// most.
    pub live_buffers: Vec<LiveBuffer>,
    /// The programs that ran, or were refused. Those that are the same, kernels, layout and chips, are
    /// listed once. Of more than `--max-programs`, those with the largest regions in L1.
    #[serde(default)]
    pub programs: Vec<Program>,
    /// The traces that were captured.
    #[serde(default)]
    pub traces: Vec<Trace>,
    /// Allocations of different allocators that had the same memory of a chip at the same time: the
    /// first 100 of a process.
    #[serde(default)]
    pub overlaps: Vec<Overlap>,
    /// The first 100 allocations that ended in an exception, in order.
    #[serde(default)]
    pub failures: Vec<FailedAllocation>,
    /// How many more there were.
    #[serde(default)]
    pub further_failures: u64,
    /// The sums over the processes that are not listed; null if all are.
    #[serde(default)]
    pub further_processes: Option<FurtherProcesses>,
}

/// A report that was merged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Source {
    /// Its file, as it was named.
    pub file: String,
    /// Its host's name.
    pub host: String,
    /// The rank that its launcher was started as; null if it was none.
    pub rank: Option<u32>,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// When the program was started, as RFC 3339 in UTC, by its host's clock.
    pub started: String,
    /// How long it ran.
    pub duration_ns: u64,
    /// How it ended.
    pub exit: Exit,
    /// Whether nothing is known to be missing in it.
    pub complete: bool,
    /// How many of `processes` are its own. They follow those of the sources before it.
    pub processes: u64,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// It was ended by this signal, for example `SIGKILL`.
    Signal(String),
    /// It called exec, which ended its program but not the process. The program that took its place has this
    /// number in `processes`; null if that one did not use tt-metal.
    Exec(Option<u64>),
    /// It had not ended when the report was written. Always true.
    Running(bool),
    /// It ended, and how can't be known. Always true.
    Unknown(bool),
}

/// Whether the figures can be relied on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Integrity {
    /// Records read.
    pub events: u64,
    /// Calls that the program could not record.
    pub dropped: u64,
    /// Records that were begun and never finished, since their writer died or called exec.
    pub torn: u64,
    /// Records that came so late that they could not be entered in their order any more.
    #[serde(default)]
    pub late: u64,
    /// Records that made no sense.
    pub bad_records: u64,
    /// Frees of memory that was not known to be allocated.
    pub unknown_frees: u64,
    /// Frees, in a forked child, of memory that its parent had allocated. They change no figure.
    pub inherited_frees: u64,
    /// Allocations that could not be assigned to a chip.
    pub unattributed: u64,
    /// Dispatches of programs that could not be assigned to a program and its chips.
    #[serde(default)]
    pub unattributed_runs: u64,
    /// The same in a forked child, of programs that its parent had made.
    #[serde(default)]
    pub inherited_runs: u64,
    /// Buffers that were made at a given address where no allocator had given anything. They take
    /// memory that no figure here includes. A mesh's buffer counts once, not once per chip.
    pub external_placements: u64,
    /// Allocations that were given memory of a chip that another allocator had given already. It is not
    /// an error of the figures: tt-metal's allocators do not know of each other.
    #[serde(default)]
    pub overlaps: u64,
    /// Program objects that are not in `programs`, for there were too many different ones; the same as
    /// `left_out.programs`.
    #[serde(default)]
    pub programs_left_out: u64,
    /// How much is not listed in this report. It is in the figures.
    #[serde(default)]
    pub left_out: LeftOut,
    /// How often the runtime's allocators were asked what they have given, and what came of it.
    #[serde(default)]
    pub reconciled: Reconciled,
    /// What came of comparing with tt-metal's own counters; null if that was not asked for.
    #[serde(default)]
    pub cross_check: Option<CrossCheck>,
    /// What is missing or doubtful, in words, one sentence each. Empty if `complete`.
    pub problems: Vec<String>,
    /// Whether nothing is known to be missing.
    pub complete: bool,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Process {
    /// Its number: its place in `processes`, by which the other lists name it.
    #[serde(default)]
    pub process: u64,
    /// Its pid, as the launcher sees it.
    pub pid: u32,
    /// Its pid as it sees it itself: another one if it is in a pid namespace of its own.
    #[serde(default)]
    pub inner_pid: u32,
    /// Its parent's pid, as the process itself sees it.
    pub parent_pid: u32,
    /// The number of the process that it was forked from, if that one is listed too; else null.
    #[serde(default)]
    pub parent_process: Option<u64>,
    /// Whether it was forked from a process that was tracked, and has called no exec since.
    #[serde(default)]
    pub forked: bool,
    /// When it was started, in clock ticks since the host's start, as /proc has it: what tells it from
    /// others with its pid. 0 if it is not known.
    #[serde(default)]
    pub start_ticks: u64,
    /// Its rank, from the environment that MPI or Slurm gave it; null if it has none.
    #[serde(default)]
    pub rank: Option<u32>,
    /// The name of the host it ran on; empty if it is not known.
    #[serde(default)]
    pub host: String,
    /// Its argument vector.
    pub argv: Vec<String>,
    /// Whether the last arguments are left out, because they are longer than 8 KB together.
    pub argv_cut: bool,
    /// How it ended; null where that can't be known, since the launcher is not its parent and the kernel
    /// doesn't tell.
    pub exit: Option<Exit>,
    /// If it was ended by SIGKILL, and the kernel killed processes for want of memory meanwhile: what the
    /// kernel counted. It is likely, then, that this was one of them.
    #[serde(default)]
    pub out_of_memory: Option<String>,
    /// The runtime it called; null if it called none.
    pub runtime: Option<Runtime>,
}

/// A tt-metal runtime.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Runtime {
    /// The library that defines the allocator.
    pub path: String,
    /// Its ELF build id in hexadecimal; null if it has none.
    pub build_id: Option<String>,
    /// The family of releases: A (0.60.1 to 0.65.0), B (0.65.1 to 0.78.0) or C (0.79.0 on); null if it
    /// is none of these and was not tracked.
    pub era: Option<String>,
    /// The functions that were hooked.
    pub hooks: Vec<Hook>,
    /// The functions that were not patched though they were wanted.
    #[serde(default)]
    pub refused: Vec<Refused>,
    /// What ttalloc looked for and did not find, though every release of this era has it.
    #[serde(default)]
    pub gaps: Vec<Gap>,
}

/// Something that a runtime should have and hasn't.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Gap {
    /// What it would be to ttalloc.
    pub role: String,
    /// What is lost without it.
    pub cost: String,
}

/// A hooked function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Hook {
    /// What it is to ttalloc.
    pub role: String,
    /// Its mangled name.
    pub symbol: String,
    /// How often it was called; null if that was not counted, as for the 257th process and later ones.
    pub calls: Option<u64>,
    /// How its calls were seen.
    #[serde(default)]
    pub engine: HookEngine,
}

/// How a function's calls are seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HookEngine {
    /// By interposition: the preload library defines the function too.
    #[default]
    Preload,
    /// By a jump that was written over the function's first bytes.
    Inline,
}

/// A function that was not patched though it was wanted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Refused {
    /// What it is to ttalloc.
    pub role: String,
    /// Its mangled name.
    pub symbol: String,
    /// Why it was not patched.
    pub reason: String,
    /// Whether the calls that other libraries make were seen.
    pub interposed: bool,
    /// Whether there are calls that were not.
    pub lossy: bool,
}

/// A mesh that was opened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Mesh {
    /// The number of the process that opened it.
    #[serde(default)]
    pub process: u64,
    /// Its pid.
    pub pid: u32,
    /// tt-metal's id of it, counted by the process.
    pub mesh: i32,
    /// Its chips, in its own order.
    pub chips: Vec<i32>,
}

/// A chip that a process opened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Device {
    /// The number of the process.
    #[serde(default)]
    pub process: u64,
    /// Its pid.
    pub pid: u32,
    /// The host that has the chip: chips of different hosts may have the same id.
    #[serde(default)]
    pub host: String,
    /// The chip's id.
    pub chip: i32,
    /// Its architecture, for example `wormhole_b0`.
    pub arch: String,
    /// Its memory, by type. A type is left out if the chip has none of it and nothing asked for it.
    pub memory: Vec<Memory>,
    /// What programs laid out in the L1 of its cores; null if none ran.
    #[serde(default)]
    pub circular_buffers: Option<CircularBuffers>,
    /// What graph captures without dispatch planned, and no allocator gave, by type.
    #[serde(default)]
    pub planned: Vec<Planned>,
    /// What of its memory no allocator manages; null if the runtime does not tell.
    #[serde(default)]
    pub reserved: Option<Reserved>,
}

/// What programs laid out in the L1 of one chip's cores: circular buffers, dataflow buffers and
/// scratchpads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CircularBuffers {
    /// How many program objects ran on the chip.
    pub programs: u64,
    /// How often one ran, replays of traces included.
    pub runs: u64,
    /// The largest region of any program that ran; null if none had one.
    pub largest: Option<Region>,
    /// The least that was left between a program's region and the lowest buffer in L1 when the program
    /// ran; null if none had a region.
    pub headroom: Option<Headroom>,
}

/// The part of a core's L1 that a program takes: from the first address that programs may use to the end
/// of its last buffer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Region {
    /// Its size in each core.
    pub bytes: u64,
    /// One past its last byte.
    pub end_address: u64,
    /// Whose it is: a place in `programs`; null if that one is left out.
    pub program: Option<u64>,
    /// When that one first ran on the chip.
    pub time_ns: u64,
}

/// What was left in L1 when a program ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Headroom {
    /// The bytes from the end of the program's region to the lowest buffer in L1, in each core.
    pub bytes: i64,
    /// The lowest buffer's address; null if there was none, and the end of L1 was meant.
    pub lowest_buffer_address: Option<u64>,
    /// One past the last byte of the program's region.
    pub region_end_address: u64,
    /// Which program: a place in `programs`; null if that one is left out.
    pub program: Option<u64>,
    /// When.
    pub time_ns: u64,
}

/// What graph captures without dispatch planned on one chip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Planned {
    /// The type.
    #[serde(rename = "type")]
    pub kind: MemoryType,
    /// How many buffers in all.
    pub buffers: u64,
    /// What was planned when the process ended.
    pub live: Totals,
    /// What was planned when most was.
    pub peak: Peak,
}

/// What of a chip's memory no allocator manages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reserved {
    /// The L1 of one core, in bytes.
    pub l1_bytes_per_core: u64,
    /// What lies below the first address that may be allocated in L1, in each core: firmware, and the
    /// kernels' code, arguments and semaphores.
    pub l1_below_bytes: u64,
    /// What lies above all that may be allocated in L1, in each core.
    pub l1_above_bytes: u64,
    /// What lies below the first address that may be allocated in DRAM, in each bank.
    pub dram_below_bytes: u64,
}

/// A program that ran, or several that are the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Program {
    /// The number of the process.
    #[serde(default)]
    pub process: u64,
    /// Its pid.
    pub pid: u32,
    /// tt-metal's id of it (of the first, if several), as its messages have it; null if not known.
    pub id: Option<u64>,
    /// The names of its kernels, each once.
    pub kernels: Vec<String>,
    /// The chips it ran on.
    pub chips: Vec<i32>,
    /// How often it ran, replays of traces included.
    pub runs: u64,
    /// How often tt-metal's check of its region ended in an exception, as it does if the region clashes with
    /// a buffer or is too large.
    pub refused: u64,
    /// How many program objects were the same.
    pub objects: u64,
    /// How many of them were still there when the process ended.
    pub live: u64,
    /// When it first ran; 0 if it never did.
    pub first_ns: u64,
    /// When it last ran.
    pub last_ns: u64,
    /// One past the last byte of its region in L1; null if it has none.
    pub region_end_address: Option<u64>,
    /// What it lays out in L1.
    pub circular_buffers: Vec<CircularBuffer>,
}

/// A buffer that a program lays out in the L1 of its cores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CircularBuffer {
    /// What it is. A `global_circular_buffer` is a view of a buffer in L1 and takes nothing itself.
    pub kind: BufferKind,
    /// Its address in each core; null where it was not known yet.
    pub address: Option<u64>,
    /// Its size in each core.
    pub bytes_per_core: u64,
    /// How many cores it lies on.
    pub cores: u64,
    /// Which: rectangles, each with x and y of its first and of its last core.
    pub core_ranges: Vec<[u16; 4]>,
}

/// A trace that was captured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Trace {
    /// The number of the process.
    #[serde(default)]
    pub process: u64,
    /// Its pid.
    pub pid: u32,
    /// tt-metal's id of it.
    pub id: u32,
    /// The id of its mesh.
    pub mesh: i32,
    /// The chips.
    pub chips: Vec<i32>,
    /// What its buffer takes in every bank.
    pub bytes_per_bank: u64,
    /// The same over all banks of a chip.
    pub reserved_bytes: u64,
    /// How many dispatches of programs it holds.
    pub dispatches: u64,
    /// How often it was replayed.
    pub replays: u64,
    /// When its capture began.
    pub captured_ns: u64,
    /// When it was released; null if it never was.
    pub released_ns: Option<u64>,
}

/// Two allocations that had the same memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Overlap {
    /// The number of the process.
    #[serde(default)]
    pub process: u64,
    /// Its pid.
    pub pid: u32,
    /// The chips on which they met.
    pub chips: Vec<i32>,
    /// The type of memory.
    #[serde(rename = "type")]
    pub kind: MemoryType,
    /// The one that was made later.
    pub later: Overlapping,
    /// The one that was there.
    pub earlier: Overlapping,
    /// When the later one was made.
    pub time_ns: u64,
}

/// One of two allocations that had the same memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Overlapping {
    /// The id of the mesh whose allocator gave it; null if it was the allocator of a single chip.
    pub mesh: Option<i32>,
    /// Its address in each bank.
    pub address: u64,
    /// What it takes in each bank.
    pub bytes_per_bank: u64,
}

/// One chip's memory of one type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Memory {
    /// The type.
    #[serde(rename = "type")]
    pub kind: MemoryType,
    /// The number of banks.
    pub banks: u32,
    /// What can be allocated in each bank, as of when the device was opened.
    pub bank_bytes: u64,
    /// The same as of the last time that it may have changed: a sub-device manager that is loaded, and
    /// has L1 of its own, takes it from here.
    #[serde(default)]
    pub bank_bytes_now: u64,
    /// The least that it ever was.
    #[serde(default)]
    pub bank_bytes_least: u64,
    /// What was allocated when the process ended.
    pub live: Totals,
    /// What was allocated when the devices over the chip last closed, summed over them; null if none
    /// closed.
    pub live_at_close: Option<Totals>,
    /// What was allocated when most was reserved.
    pub peak: Peak,
    /// Successful allocations.
    pub allocations: u64,
    /// Buffers freed one by one.
    pub frees: u64,
    /// Buffers let go all at once, as when a device closes. `allocations` is `frees`, `released` and
    /// `live.buffers` together.
    pub released: u64,
    /// Allocations that ended in an exception.
    pub failed: u64,
    /// The bytes asked for by all successful allocations.
    pub allocated_bytes_total: u64,
    /// What of it was for something else than the program's data, if anything was.
    #[serde(default)]
    pub purposes: Vec<ForPurpose>,
}

/// What was allocated for one purpose; it is part of the memory's other figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ForPurpose {
    /// What for.
    pub purpose: Purpose,
    /// What was allocated when the process ended.
    pub live: Totals,
    /// What was allocated when most was reserved for it.
    pub peak: Peak,
    /// Successful allocations.
    pub allocations: u64,
}

/// What memory is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// A tensor, or anything else that is not one of the others.
    #[default]
    Data,
    /// The binaries of kernels.
    KernelBinaries,
    /// The commands of a trace.
    Trace,
    /// A GlobalCircularBuffer.
    GlobalCircularBuffer,
    /// A GlobalSemaphore.
    GlobalSemaphore,
}

impl From<ring::Purpose> for Purpose {
    fn from(purpose: ring::Purpose) -> Purpose {
        match purpose {
            ring::Purpose::Data => Purpose::Data,
            ring::Purpose::Binaries => Purpose::KernelBinaries,
            ring::Purpose::Trace => Purpose::Trace,
            ring::Purpose::GlobalCircularBuffer => Purpose::GlobalCircularBuffer,
            ring::Purpose::GlobalSemaphore => Purpose::GlobalSemaphore,
        }
    }
}

/// The most that was reserved at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Peak {
    /// What was allocated then.
    #[serde(flatten)]
    pub totals: Totals,
    /// When; 0 if nothing was ever allocated.
    pub time_ns: u64,
}

/// A buffer that was still allocated when its process ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LiveBuffer {
    /// The number of the process.
    #[serde(default)]
    pub process: u64,
    /// Its pid.
    pub pid: u32,
    /// The chips it occupies, at the same address on each.
    pub chips: Vec<i32>,
    /// The type of memory.
    #[serde(rename = "type")]
    pub kind: MemoryType,
    /// Its address in each bank.
    pub address: u64,
    /// What was asked for, on each chip.
    pub bytes: u64,
    /// What it takes in every bank, the allocator's rounding included.
    pub bytes_per_bank: u64,
    /// The number of banks it takes, if it has an address of its own on each core, of which `address`
    /// is the first; null if it takes all banks at one address.
    #[serde(default)]
    pub cores: Option<u64>,
    /// What it is for.
    #[serde(default)]
    pub purpose: Purpose,
    /// The page's size.
    pub page_bytes: u64,
    /// When it was allocated.
    pub allocated_ns: u64,
}

/// What the launcher knows of a run beside the records.
#[derive(Clone, Debug)]
pub struct Run {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// When it was started.
    pub started: jiff::Timestamp,
    /// The same on the records' clock.
    pub started_ns: u64,
    /// How long it ran.
    pub duration_ns: u64,
    /// Its pid.
    pub pid: u32,
    /// Its parent's pid.
    pub parent_pid: u32,
    /// When it was started, in clock ticks since the host's start; 0 if that is not known.
    pub start_ticks: u64,
    /// How it ended.
    pub exit: Exit,
    /// What speaks for the kernel's having killed it for want of memory.
    pub out_of_memory: Option<String>,
    /// Whether this is not the last report.
    pub snapshot: bool,
    /// Records lost on the way.
    pub dropped: u64,
    /// Records begun and never finished.
    pub torn: u64,
    /// Records that came out of their order.
    pub late: u64,
    /// Records of the ring that made no sense.
    pub spoiled: u64,
    /// How the processes ended, by their number in the ring.
    pub ends: BTreeMap<u32, End>,
    /// Tracked processes that went on after the program, and are not followed.
    pub still_running: Vec<u32>,
}

impl Report {
    /// The report of a run. `calls` tells how often a process (by its number) called each hook.
    pub fn new(run: &Run, ledger: &Ledger, calls: impl Fn(u32) -> Option<Vec<u64>>) -> Report {
        let since_start = |time_ns: u64| time_ns.saturating_sub(run.started_ns);
        let pid_of = |books: &Books| books.identity.as_ref().map_or(0, |identity| identity.pid);
        let listed = Listed::new(run, ledger);
        let mut left_out = listed.left_out(ledger);
        let live = listed.buffers(ledger, &mut left_out);
        let mut programs: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        for (process, numbers, program) in listed.programs(ledger, &mut left_out) {
            programs.entry(process).or_default().push((numbers, program));
        }
        let mut report = Report {
            schema: SCHEMA.to_owned(),
            ttalloc_version: env!("CARGO_PKG_VERSION").to_owned(),
            command: run.command.clone(),
            started: run.started.to_string(),
            duration_ns: run.duration_ns,
            exit: run.exit.clone(),
            snapshot: run.snapshot,
            host: host::name(),
            rank: Rank::of_this_process().map(|rank| rank.rank),
            sources: Vec::new(),
            integrity: integrity(run, ledger, left_out),
            processes: processes(run, ledger, &listed, calls),
            meshes: Vec::new(),
            devices: Vec::new(),
            live_buffers: Vec::new(),
            programs: Vec::new(),
            traces: Vec::new(),
            overlaps: Vec::new(),
            failures: reconcile::failures(run, ledger, since_start),
            further_failures: ledger.reconciliation.further_failures,
            further_processes: listed.further(),
        };
        let peak = |usage: &Usage| Peak { totals: usage.peak, time_ns: since_start(usage.peak_ns) };
        let process_of: BTreeMap<u32, u64> = listed.places(run, ledger).collect();
        for (number, books) in listed.of(ledger) {
            let process = process_of.get(&number).copied().unwrap_or_default();
            let pid = pid_of(books);
            let mut places = BTreeMap::new();
            for (numbers, program) in programs.remove(&number).unwrap_or_default() {
                let place = report.programs.len() as u64;
                places.extend(numbers.into_iter().map(|number| (number, place)));
                report.programs.push(Program::new(process, pid, &program, since_start));
            }
            report.traces.extend(books.programs.traces().map(|trace| Trace {
                process,
                pid,
                id: trace.id,
                mesh: trace.mesh,
                chips: trace.chips.clone(),
                bytes_per_bank: trace.bytes_per_bank,
                reserved_bytes: trace.reserved_bytes,
                dispatches: trace.dispatches,
                replays: trace.replays,
                captured_ns: since_start(trace.captured_ns),
                released_ns: trace.released_ns.map(since_start),
            }));
            report.overlaps.extend(books.overlaps.iter().map(|overlap| {
                let [later, earlier] = overlap.allocations.each_ref().map(|one| Overlapping {
                    mesh: one.mesh,
                    address: one.address,
                    bytes_per_bank: one.bytes_per_bank,
                });
                Overlap {
                    process,
                    pid,
                    chips: overlap.chips.clone(),
                    kind: overlap.kind,
                    later,
                    earlier,
                    time_ns: since_start(overlap.time_ns),
                }
            }));
            report.meshes.extend(books.meshes.iter().map(|mesh| Mesh {
                process,
                pid,
                mesh: mesh.id,
                chips: mesh.chips.clone(),
            }));
            for (&id, chip) in &books.chips {
                let memory = MemoryType::ALL.into_iter().filter_map(|kind| {
                    let memory = chip.memory(kind);
                    (memory.banks != 0 || memory.allocations + memory.failed != 0).then(|| Memory {
                        kind,
                        banks: memory.banks,
                        bank_bytes: memory.bank_bytes,
                        bank_bytes_now: memory.bank_bytes_last,
                        bank_bytes_least: memory.bank_bytes_least.unwrap_or(0),
                        live: memory.live,
                        live_at_close: memory.live_at_close,
                        peak: Peak { totals: memory.peak, time_ns: since_start(memory.peak_ns) },
                        allocations: memory.allocations,
                        frees: memory.frees,
                        released: memory.released,
                        failed: memory.failed,
                        allocated_bytes_total: memory.allocated_bytes_total,
                        purposes: ring::Purpose::ALL
                            .into_iter()
                            .zip(memory.purposes.iter())
                            .filter(|(_, usage)| usage.count != 0)
                            .map(|(purpose, usage)| ForPurpose {
                                purpose: purpose.into(),
                                live: usage.live,
                                peak: peak(usage),
                                allocations: usage.count,
                            })
                            .collect(),
                    })
                });
                let planned = MemoryType::ALL.into_iter().filter_map(|kind| {
                    let usage = &chip.memory(kind).planned;
                    (usage.count != 0).then(|| Planned {
                        kind,
                        buffers: usage.count,
                        live: usage.live,
                        peak: peak(usage),
                    })
                });
                report.devices.push(Device {
                    process,
                    pid,
                    host: report.host.clone(),
                    chip: id,
                    arch: arch_name(chip.arch),
                    memory: memory.collect(),
                    circular_buffers: circular_buffers(chip, &places, since_start),
                    planned: planned.collect(),
                    reserved: reserved(chip),
                });
            }
        }
        report.live_buffers.extend(live.into_iter().map(|(number, chips, one)| LiveBuffer {
            process: process_of.get(&number).copied().unwrap_or_default(),
            pid: ledger.processes.get(&number).map_or(0, pid_of),
            chips: chips.to_vec(),
            kind: one.kind,
            address: one.address,
            bytes: one.totals.bytes,
            bytes_per_bank: one.bytes_per_bank,
            cores: one.cores,
            purpose: one.purpose.into(),
            page_bytes: one.page_bytes,
            allocated_ns: since_start(one.time_ns),
        }));
        report.live_buffers.sort_by(|a, b| {
            let key = |one: &LiveBuffer| (one.process, one.kind, one.address, one.allocated_ns);
            key(a).cmp(&key(b)).then_with(|| a.chips.cmp(&b.chips))
        });
        report
    }

    /// The JSON Schema of a report.
    pub fn json_schema() -> serde_json::Value {
        let settings = schemars::generate::SchemaSettings::default().for_serialize();
        let mut schema = settings.into_generator().into_root_schema_for::<Report>().to_value();
        if let Some(object) = schema.as_object_mut() {
            object.insert("$id".to_owned(), SCHEMA.into());
            object.insert("title".to_owned(), "ttalloc report".into());
        }
        if let Some(name) = schema.pointer_mut("/properties/schema") {
            name["const"] = SCHEMA.into();
        }
        schema
    }
}

impl Program {
    fn new(
        process: u64,
        pid: u32,
        program: &programs::Program,
        since_start: impl Fn(u64) -> u64,
    ) -> Program {
        let time = |time_ns: u64| if time_ns == 0 { 0 } else { since_start(time_ns) };
        Program {
            process,
            pid,
            id: program.id,
            kernels: program.kernels.clone(),
            chips: program.chips.iter().copied().collect(),
            runs: program.runs,
            refused: program.refused,
            objects: program.objects,
            live: program.live,
            first_ns: time(program.first_ns),
            last_ns: time(program.last_ns),
            region_end_address: program.region_end(),
            circular_buffers: program
                .local
                .iter()
                .map(|one| CircularBuffer {
                    kind: one.kind,
                    address: one.address,
                    bytes_per_core: one.bytes,
                    cores: one.cores,
                    core_ranges: one.ranges.clone(),
                })
                .collect(),
        }
    }
}

/// What programs did on a chip. `places` has the place in the report of each program, by its number.
fn circular_buffers(
    chip: &ledger::Chip,
    places: &BTreeMap<u64, u64>,
    since_start: impl Fn(u64) -> u64,
) -> Option<CircularBuffers> {
    let of = &chip.programs;
    let program = |reach: ledger::Reach| places.get(&reach.program).copied();
    (of.runs != 0).then(|| CircularBuffers {
        programs: of.programs,
        runs: of.runs,
        largest: of.largest.map(|reach| Region {
            bytes: reach.end.saturating_sub(chip.base[0]),
            end_address: reach.end,
            program: program(reach),
            time_ns: since_start(reach.time_ns),
        }),
        headroom: of.headroom.map(|headroom| Headroom {
            bytes: headroom.bytes,
            lowest_buffer_address: headroom.lowest_buffer,
            region_end_address: headroom.reach.end,
            program: program(headroom.reach),
            time_ns: since_start(headroom.reach.time_ns),
        }),
    })
}

/// What of a chip's memory no allocator manages.
fn reserved(chip: &ledger::Chip) -> Option<Reserved> {
    let l1 = u64::from(chip.l1_bytes);
    let managed = [MemoryType::L1, MemoryType::L1Small].map(|kind| chip.memory(kind).bank_bytes);
    let below = chip.base[0].saturating_add(managed[0]).saturating_add(managed[1]);
    (l1 != 0).then(|| Reserved {
        l1_bytes_per_core: l1,
        l1_below_bytes: chip.base[0],
        l1_above_bytes: l1.saturating_sub(below),
        dram_below_bytes: chip.base[1],
    })
}

/// The place in `processes` of each process that is listed, by its number in the books.
fn process_places(run: &Run, ledger: &Ledger) -> BTreeMap<u32, u64> {
    Listed::new(run, ledger).places(run, ledger).collect()
}

fn is_of(pid: u32, books: &Books) -> bool {
    books.identity.as_ref().is_some_and(|identity| identity.pid == pid)
}

fn processes(
    run: &Run,
    ledger: &Ledger,
    listed: &Listed,
    calls: impl Fn(u32) -> Option<Vec<u64>>,
) -> Vec<Process> {
    let host = host::name();
    let places: BTreeMap<_, _> = listed.places(run, ledger).collect();
    let mut processes: Vec<Process> = Vec::new();
    // exec keeps the pid: only the last program of the first process has the run's exit.
    let last_of_pid: BTreeMap<u32, u32> = ledger
        .processes
        .iter()
        .filter_map(|(&number, books)| Some((books.identity.as_ref()?.pid, number)))
        .collect();
    for (number, books) in listed.of(ledger) {
        let identity = books.identity.as_ref();
        let pid = identity.map_or(0, |identity| identity.pid);
        let is_first = pid == run.pid && last_of_pid.get(&pid) == Some(&number);
        let end = run.ends.get(&number);
        let exit = match end.map(|end| &end.how) {
            Some(How::Exited(exit)) => Some(exit.clone()),
            Some(How::Running) => Some(Exit::Running(true)),
            Some(How::Replaced(by)) => {
                Some(Exit::Exec(by.as_ref().and_then(|by| places.get(by).copied())))
            }
            Some(How::Unknown) | None => is_first.then(|| run.exit.clone()),
        };
        processes.push(Process {
            process: places.get(&number).copied().unwrap_or_default(),
            pid,
            inner_pid: identity.map_or(0, |identity| identity.inner_pid),
            parent_pid: identity.map_or(0, |identity| identity.parent_pid),
            parent_process: identity
                .and_then(|identity| places.get(&identity.parent_process?).copied()),
            forked: identity.is_some_and(|identity| identity.forked),
            start_ticks: identity.map_or(0, |identity| identity.start_ticks),
            rank: identity.and_then(|identity| identity.rank),
            host: host.clone(),
            argv: identity.map_or_else(Vec::new, |identity| identity.argv.clone()),
            argv_cut: identity.is_some_and(|identity| identity.argv_cut),
            exit: exit.filter(|exit| *exit != Exit::Unknown(true)),
            out_of_memory: end
                .and_then(|end| end.out_of_memory.clone())
                .or_else(|| run.out_of_memory.clone().filter(|_| is_first)),
            runtime: books.runtime.as_ref().map(|runtime| {
                let era = runtime.era;
                Runtime {
                    path: runtime.path.clone(),
                    build_id: runtime.build_id.clone(),
                    era: era.map(|era| era.letter().to_owned()),
                    hooks: hooks(books, runtime, era, calls(number)),
                    refused: refused(books),
                    gaps: gaps(runtime),
                }
            }),
        });
    }
    if !last_of_pid.contains_key(&run.pid) {
        let first = Process {
            process: 0,
            pid: run.pid,
            inner_pid: run.pid,
            parent_pid: run.parent_pid,
            parent_process: None,
            forked: false,
            start_ticks: run.start_ticks,
            // It has the launcher's environment.
            rank: Rank::of_this_process().map(|rank| rank.rank),
            host,
            argv: run.command.clone(),
            argv_cut: false,
            exit: Some(run.exit.clone()).filter(|exit| *exit != Exit::Unknown(true)),
            out_of_memory: run.out_of_memory.clone(),
            runtime: None,
        };
        processes.insert(0, first);
    }
    processes
}

fn hooks(
    books: &Books,
    runtime: &crate::ledger::Runtime,
    era: Option<Era>,
    calls: Option<Vec<u64>>,
) -> Vec<Hook> {
    let Some(era) = era else { return Vec::new() };
    let hooked = |index: usize| {
        let symbol = &SYMBOLS[index];
        let is_seen = books.patched.contains(index)
            || books.refused.get(&index).is_none_or(|refused| refused.interposed);
        symbol.usage == Use::Hook && symbol.eras.contains(era) && is_seen
    };
    runtime
        .symbols
        .iter()
        .filter(|&(index, _)| hooked(index))
        .map(|(index, symbol)| Hook {
            role: symbol.role.to_owned(),
            symbol: symbol.name.to_owned(),
            calls: calls.as_ref().and_then(|calls| calls.get(index)).copied(),
            engine: match books.patched.contains(index) {
                true => HookEngine::Inline,
                false => HookEngine::Preload,
            },
        })
        .collect()
}

/// What a runtime lacks of the era that it is tracked as, or else is most like.
fn gaps(runtime: &crate::ledger::Runtime) -> Vec<Gap> {
    let era = runtime.era.or_else(|| Era::of(&runtime.symbols));
    let gaps = era.into_iter().flat_map(|era| runtime.symbols.gaps(era));
    gaps.map(|role| Gap { role: role.name.to_owned(), cost: role.cost.to_owned() }).collect()
}

fn refused(books: &Books) -> Vec<Refused> {
    let describe = |(&index, refused): (&usize, &crate::ledger::Refused)| {
        let symbol = SYMBOLS.get(index)?;
        Some(Refused {
            role: symbol.role.to_owned(),
            symbol: symbol.name.to_owned(),
            reason: format!("the function {}", refused.why),
            interposed: refused.interposed,
            lossy: refused.lossy,
        })
    };
    books.refused.iter().filter_map(describe).collect()
}

/// What is missing in a process's figures because of functions that could not be patched: a sentence for
/// each reason.
fn unseen(who: &str, books: &Books) -> Vec<String> {
    let path = books.runtime.as_ref().map_or("", |runtime| &runtime.path);
    let mut reasons: Vec<Unseen> = Vec::new();
    for (&index, refused) in &books.refused {
        let Some(symbol) = SYMBOLS.get(index).filter(|_| refused.lossy) else { continue };
        // It may well be that nobody needs it. But nothing is allocated without these.
        if refused.why == Refusal::NoCaller && !matches!(symbol.role, "allocate" | "deallocate") {
            continue;
        }
        let known = reasons.iter_mut().find(|one| one.refused == *refused);
        let roles = match known {
            Some(one) => &mut one.roles,
            None => {
                reasons.push(Unseen { refused: *refused, roles: Vec::new() });
                let Some(one) = reasons.last_mut() else { continue };
                &mut one.roles
            }
        };
        if !roles.contains(&symbol.role) {
            roles.push(symbol.role);
        }
    }
    let sentence = |one: Unseen| {
        let whose =
            if one.refused.interposed { "calls from within the library of" } else { "calls of" };
        let mut costs: Vec<_> = one.roles.iter().map(|role| cost(role)).collect();
        costs.dedup();
        let (roles, costs, why) = (one.roles.join(", "), costs.join(", "), one.refused.why);
        format!("{whose} {roles} were not seen in {who} ({path}): the function {why}. So {costs}")
    };
    reasons.into_iter().map(sentence).collect()
}

/// Roles whose calls are not seen for one reason.
struct Unseen {
    refused: crate::ledger::Refused,
    roles: Vec<&'static str>,
}

/// What is missing when a role's calls are.
fn cost(role: &str) -> &'static str {
    ROLES.iter().find(|one| one.name == role).map_or("what it tells is missing", |one| one.cost)
}

fn integrity(run: &Run, ledger: &Ledger, left_out: LeftOut) -> Integrity {
    let found = &ledger.anomalies;
    let mut problems = Vec::new();
    let mut count = |number: u64, one: &str, many: &str| {
        if number == 1 {
            problems.push(one.to_owned());
        } else if number > 1 {
            problems.push(format!("{number} {many}"));
        }
    };
    count(run.dropped, "1 event was dropped", "events were dropped");
    count(run.torn, "1 event was begun and never finished", "events were begun and never finished");
    let bad_records = found.bad_records.saturating_add(run.spoiled);
    count(bad_records, "1 record made no sense", "records made no sense");
    count(
        found.unknown_frees,
        "1 free was of memory not known to be allocated",
        "frees were of memory not known to be allocated",
    );
    count(
        found.unattributed,
        "1 allocation could not be assigned to a chip",
        "allocations could not be assigned to a chip",
    );
    count(
        found.unattributed_runs,
        "1 dispatch could not be assigned to a program and its chips",
        "dispatches could not be assigned to programs and their chips",
    );
    for books in ledger.processes.values() {
        let who = match &books.identity {
            Some(identity) => format!("process {}", identity.pid),
            None => "a process that was not announced".to_owned(),
        };
        match &books.runtime {
            Some(runtime) if runtime.era.is_none() => {
                problems.push(not_recognised(&who, runtime, &books.refused));
            }
            Some(_) if books.identity.is_some() => {}
            _ => problems.push(format!("{who} did not tell its runtime")),
        }
        if books.runtime.as_ref().is_some_and(|runtime| runtime.era.is_some()) {
            problems.extend(unseen(&who, books));
        }
    }
    // Once for a library, however many processes have it.
    let tracked = ledger.processes.values().filter_map(|books| books.runtime.as_ref());
    let lacking: BTreeSet<_> = tracked
        .filter(|runtime| runtime.era.is_some())
        .flat_map(|runtime| gaps(runtime).into_iter().map(|gap| (&*runtime.path, gap)))
        .map(|(path, gap)| format!("{path} has no symbol for {}: {}", gap.role, gap.cost))
        .collect();
    problems.extend(lacking);
    let reconciled =
        reconcile::reconciled(run, ledger, |time_ns| time_ns.saturating_sub(run.started_ns));
    problems.extend(reconciled.problem());
    for pid in &run.still_running {
        problems.push(format!(
            "process {pid} was still running when the report was written, and was not followed further"
        ));
    }
    problems.extend(limits::problems(ledger));
    limits::bound(&mut problems);
    Integrity {
        events: ledger.events,
        dropped: run.dropped,
        torn: run.torn,
        late: run.late,
        bad_records,
        unknown_frees: found.unknown_frees,
        inherited_frees: found.inherited_frees,
        unattributed: found.unattributed,
        unattributed_runs: found.unattributed_runs,
        inherited_runs: found.inherited_runs,
        external_placements: found.external_placements,
        overlaps: ledger.processes.values().map(|books| books.overlap_count).sum::<u64>()
            + ledger.folded.overlaps,
        programs_left_out: left_out.programs,
        left_out,
        reconciled,
        cross_check: None,
        complete: problems.is_empty(),
        problems,
    }
}

/// Why a runtime could not be tracked.
fn not_recognised(
    who: &str,
    runtime: &crate::ledger::Runtime,
    refused: &BTreeMap<usize, crate::ledger::Refused>,
) -> String {
    let is_whole = |refused: &&crate::ledger::Refused| {
        matches!(refused.why, Refusal::Stripped | Refusal::File)
    };
    if let Some(refused) = refused.values().find(is_whole) {
        return format!(
            "{who} was not tracked: its tt-metal ({}) is called directly, and each function {}; use a build that is not stripped, or tt-metal's shared library",
            runtime.path, refused.why
        );
    }
    let missing: Vec<_> = match Era::of(&runtime.symbols) {
        Some(era) => runtime.symbols.missing(era).collect(),
        None => vec!["allocate"],
    };
    let why = match missing.as_slice() {
        [] => "has no MeshDevice of the expected layout".to_owned(),
        missing => format!("does not export what is needed for: {}", missing.join(", ")),
    };
    format!("{who} was not tracked: its tt-metal ({}) {why}", runtime.path)
}

/// tt-metal's name of an architecture (`tt::ARCH` in tt-umd's `arch.hpp`).
fn arch_name(arch: u32) -> String {
    match arch {
        1 => "grayskull".to_owned(),
        2 => "wormhole_b0".to_owned(),
        3 => "blackhole".to_owned(),
        4 => "quasar".to_owned(),
        other => format!("unknown ({other})"),
    }
}
