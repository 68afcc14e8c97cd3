//! The records: what a hook saw, in a fixed layout.
//!
//! A record is a [`Head`], a body of a fixed size for its [`Kind`], and for some kinds a tail of
//! variable length. [`Record::decode`] takes nothing on trust: any bytes give a record or an error.

use bytemuck::{Pod, Zeroable};
use ttalloc_symbols::{Era, SymbolSet};

/// The longest record in bytes, head and tail included.
pub const MAX_BYTES: usize = 8 * 1024;

/// The number of memory types that tt-metal's `BufferType` knows.
pub const TYPES: usize = 5;

/// What every record starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Head {
    /// A [`Kind`].
    pub kind: u32,
    /// The process that wrote it, as numbered by the ring (not a pid).
    pub process: u32,
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time_ns: u64,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $number:literal),+ $(,)?) => {
        /// What a record tells.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Kind { $($(#[$doc])* $kind = $number),+ }

        impl Kind {
            fn from_number(number: u32) -> Option<Kind> {
                match number { $($number => Some(Kind::$kind),)+ _ => None }
            }
        }

        /// A decoded record.
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub enum Record<'a> { $($(#[$doc])* $kind($kind, Tail<'a>)),+ }

        impl<'a> Record<'a> {
            /// Reads one record out of `bytes`.
            pub fn decode(bytes: &'a [u8]) -> Result<(Head, Record<'a>), DecodeError> {
                let (head, rest) = take::<Head>(bytes)?;
                let kind = Kind::from_number(head.kind).ok_or(DecodeError::Kind(head.kind))?;
                Ok((head, match kind {
                    $(Kind::$kind => {
                        let (body, tail) = take::<$kind>(rest)?;
                        Record::$kind(body, Tail(tail))
                    })+
                }))
            }
        }

        $(impl Body for $kind { const KIND: Kind = Kind::$kind; })+
    };
}

kinds! {
    /// A process that uses tt-metal was first seen.
    Process = 1,
    /// The runtime that a process loaded.
    Runtime = 2,
    /// A MeshDevice or Device was seen for the first time.
    Device = 3,
    /// An allocator was seen for the first time.
    Allocator = 4,
    /// An allocator handed out memory.
    Allocate = 5,
    /// An allocator is about to take memory back.
    Free = 6,
    /// An allocation ended in an exception.
    Failed = 7,
    /// An allocator is about to take all of its memory back, or to end.
    Release = 8,
    /// A device is about to close, or has failed to.
    Close = 9,
    /// A buffer was made at a given address, without an allocation.
    Placement = 10,
    /// A kernel was added to a program.
    Kernel = 11,
    /// A buffer of a program's own was laid out in L1: a circular buffer or its like.
    Local = 12,
    /// A program was dispatched, or refused.
    Run = 13,
    /// A program ends.
    ProgramEnd = 14,
    /// A buffer was kept from being allocated, by a graph capture without dispatch.
    Planned = 15,
    /// A planned buffer ends.
    Unplanned = 16,
    /// A trace is captured, replayed or released.
    Trace = 17,
    /// An allocator takes over ranges of memory.
    Regions = 18,
    /// A program was put into a workload.
    Enlisted = 19,
    /// An allocator was asked how much it has given.
    Statistics = 20,
    /// Functions of the runtime were patched, since calls of them can't be interposed.
    Patched = 30,
    /// A function whose calls can't be interposed, or not all, and that could not be patched either.
    Refused = 31,
}

/// The body of one kind of record.
pub trait Body: Pod {
    /// Its kind.
    const KIND: Kind;
}

/// What follows a record's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail<'a>(pub &'a [u8]);

impl<'a> Tail<'a> {
    /// The tail as entries of one kind; None if they don't fill it.
    pub fn entries<T: Pod>(self) -> Option<impl Iterator<Item = T> + 'a> {
        let entries = self.0.chunks_exact(size_of::<T>());
        entries.remainder().is_empty().then(|| entries.map(bytemuck::pod_read_unaligned))
    }
}

/// Why some bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end before the record does.
    #[error("the record ends after {0} bytes")]
    Short(usize),
    /// No such kind.
    #[error("{0} is not a kind of record")]
    Kind(u32),
}

fn take<T: Pod>(bytes: &[u8]) -> Result<(T, &[u8]), DecodeError> {
    let (head, rest) =
        bytes.split_at_checked(size_of::<T>()).ok_or(DecodeError::Short(bytes.len()))?;
    Ok((bytemuck::pod_read_unaligned(head), rest))
}

/// Body of [`Kind::Process`]; the tail is its argument vector, each argument ended by a zero byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Process {
    /// Its pid in the launcher's pid namespace; 0 if that could not be told.
    pub pid: u32,
    /// Its pid in its own pid namespace, which differs in a container.
    pub inner_pid: u32,
    /// Its parent's pid there; 0 if the parent is in none that it sees.
    pub parent_pid: u32,
    /// 1 if it was forked from a process that was being tracked and has not called exec since.
    pub forked: u32,
    /// When it was started, in clock ticks (of 10 ms) since the machine was: field 22 of
    /// /proc/self/stat (proc_pid_stat(5)). With the pid it names the process. 0 if it can't be told.
    pub start_ticks: u64,
    /// The number of the tracked process that it was forked from, perhaps by way of others, plus one; 0
    /// if it wasn't.
    pub parent_process: u32,
    /// Its rank among the processes that mpirun or Slurm started; -1 if it has none.
    pub rank: i32,
    /// 1 if the argument vector was cut to fit.
    pub argv_cut: u32,
    /// Zero.
    pub reserved: u32,
}

/// Body of [`Kind::Runtime`]; the tail is the path of the library that defines the allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Runtime {
    /// Which of the catalogue's symbols that library defines.
    pub present: [u64; 4],
    /// The ELF build id, `build_id_len` bytes of it.
    pub build_id: [u8; 28],
    /// The build id's length in bytes; 0 if it has none.
    pub build_id_len: u32,
    /// The era as which it is tracked: 1 for A, 2 for B, 3 for C; 0 if it can't be tracked.
    pub era: u32,
    /// Zero.
    pub reserved: u32,
}

/// What [`Runtime::era`] holds for an era.
pub fn era_number(era: Option<Era>) -> u32 {
    era.map_or(0, |era| era as u32 + 1)
}

impl Runtime {
    /// Which of the catalogue's symbols that library defines.
    pub fn symbols(&self) -> SymbolSet {
        SymbolSet(self.present)
    }

    /// The era as which it is tracked.
    pub fn era(&self) -> Option<Era> {
        [Era::A, Era::B, Era::C].into_iter().find(|&era| era_number(Some(era)) == self.era)
    }

    /// The ELF build id, if it has one.
    pub fn build_id(&self) -> Option<&[u8]> {
        self.build_id.get(..self.build_id_len as usize).filter(|id| !id.is_empty())
    }
}

/// Body of [`Kind::Device`]; the tail is the ids of its chips, as little-endian `i32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Device {
    /// The object's address: its name until it closes.
    pub device: u64,
    /// A mesh's own id, or the chip's.
    pub id: i32,
    /// tt-metal's `ARCH`.
    pub arch: u32,
    /// 1 for a MeshDevice, 0 for a Device, which is one chip.
    pub is_mesh: u32,
    /// How many dimensions a mesh has; 0 if its shape is not known.
    pub dims: u32,
    /// How many chips one step in each dimension is, in the order of the chips.
    pub strides: [u32; MESH_DIMS],
}

/// Body of [`Kind::Allocator`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Allocator {
    /// The object's address: its name until it ends.
    pub allocator: u64,
    /// The device it allocates on.
    pub device: u64,
    /// Bytes in each bank that may be allocated, per memory type.
    pub bank_bytes: [u64; TYPES],
    /// Banks per memory type.
    pub banks: [u32; TYPES],
    /// What every allocation in a bank is rounded up to, in bytes.
    pub alignment: u32,
    /// The first address that may be allocated in L1 and in DRAM, in bytes; 0 if that is not known.
    pub base: [u64; 2],
    /// The L1 of one core, in bytes; 0 if that is not known.
    pub l1_bytes: u32,
    /// Zero.
    pub reserved: u32,
}

/// Body of [`Kind::Allocate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Allocate {
    /// Who handed the memory out.
    pub allocator: u64,
    /// The Buffer object that has it.
    pub buffer: u64,
    /// Where it is, in each bank.
    pub address: u64,
    /// What was asked for: `Buffer::size()`, in bytes.
    pub bytes: u64,
    /// `Buffer::aligned_size_per_bank()`, before the allocator's own rounding.
    pub bytes_per_bank: u64,
    /// The page's size in bytes.
    pub page_bytes: u64,
    /// tt-metal's `BufferType`.
    pub buffer_type: u32,
    /// A [`Purpose`].
    pub purpose: u16,
    /// If every core has an address of its own, how many banks it takes; 0 if it takes all.
    pub cores: u16,
}

/// What memory was allocated for, as far as the call tells inside which it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u16)]
pub enum Purpose {
    /// A tensor, or anything else that the program asked for.
    #[default]
    Data = 0,
    /// The binaries of kernels.
    Binaries = 1,
    /// The commands of a trace.
    Trace = 2,
    /// A GlobalCircularBuffer.
    GlobalCircularBuffer = 3,
    /// A GlobalSemaphore.
    GlobalSemaphore = 4,
}

impl Purpose {
    /// All of them, by number.
    pub const ALL: [Purpose; 5] = [
        Purpose::Data,
        Purpose::Binaries,
        Purpose::Trace,
        Purpose::GlobalCircularBuffer,
        Purpose::GlobalSemaphore,
    ];
}

/// Body of [`Kind::Free`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Free {
    /// Who takes it back.
    pub allocator: u64,
    /// The Buffer object that has it.
    pub buffer: u64,
    /// Where it is, in each bank.
    pub address: u64,
}

/// Body of [`Kind::Failed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Failed {
    /// Who refused.
    pub allocator: u64,
    /// What was asked for, in bytes.
    pub bytes: u64,
    /// The page's size in bytes.
    pub page_bytes: u64,
    /// tt-metal's `BufferType`.
    pub buffer_type: u32,
    /// Zero.
    pub reserved: u32,
}

/// Body of [`Kind::Release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Release {
    /// Which allocator.
    pub allocator: u64,
    /// 1 if the allocator ends with it.
    pub ends: u64,
}

/// Body of [`Kind::Close`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Close {
    /// Which device.
    pub device: u64,
    /// 1 if it did not close after all: an exception came out of the call.
    pub failed: u64,
}

/// Body of [`Kind::Placement`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Placement {
    /// The device it lies on, usually one chip of a mesh.
    pub device: u64,
    /// Where it is, in each bank.
    pub address: u64,
    /// Its size in bytes, over all banks.
    pub bytes: u64,
    /// tt-metal's `BufferType`.
    pub buffer_type: u32,
    /// Zero.
    pub reserved: u32,
}

/// Body of [`Kind::Kernel`]; the tail is the kernel's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Kernel {
    /// The ProgramImpl's address: the program's name until it ends.
    pub program: u64,
}

/// Body of [`Kind::Local`]; the tail is the ranges of cores, each four `u16`, little-endian: x and y of
/// the first core, x and y of the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Local {
    /// Which program.
    pub program: u64,
    /// Where it is in the L1 of each of its cores.
    pub address: u64,
    /// Its size on each of its cores, in bytes.
    pub bytes: u64,
    /// Which layout it belongs to. A later layout of the same kind replaces an earlier one.
    pub layout: u64,
    /// A [`LocalKind`].
    pub kind: u32,
    /// On how many cores it lies, as the runtime counts them; 0 if that is not known.
    pub cores: u32,
}

/// What a program lays out in L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LocalKind {
    /// A circular buffer.
    Circular = 0,
    /// A circular buffer over a buffer that an allocator gave: a view, which takes no memory.
    Global = 1,
    /// A dataflow buffer.
    Dataflow = 2,
    /// A scratchpad.
    Scratchpad = 3,
}

impl LocalKind {
    /// All of them, by number.
    pub const ALL: [LocalKind; 4] =
        [LocalKind::Circular, LocalKind::Global, LocalKind::Dataflow, LocalKind::Scratchpad];
}

/// Body of [`Kind::Run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Run {
    /// The workload, all of whose programs were dispatched; 0 if it was `program` alone.
    pub workload: u64,
    /// Which program, if `workload` is 0.
    pub program: u64,
    /// The mesh or device that it was dispatched to; 0 if that was not seen.
    pub device: u64,
    /// 1 if it was refused, by an exception.
    pub refused: u64,
}

/// The most dimensions of a mesh that are told.
pub const MESH_DIMS: usize = 4;

/// Body of [`Kind::Enlisted`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Enlisted {
    /// The workload.
    pub workload: u64,
    /// The program.
    pub program: u64,
    /// tt-metal's id of the program, as its messages have it.
    pub id: u64,
    /// How many dimensions the mesh has; 0 if the program's part of it is not known.
    pub dims: u32,
    /// Zero.
    pub reserved: u32,
    /// The first coordinate of the program's part of the mesh.
    pub start: [u32; MESH_DIMS],
    /// The last.
    pub end: [u32; MESH_DIMS],
}

/// Body of [`Kind::ProgramEnd`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ProgramEnd {
    /// Which program.
    pub program: u64,
}

/// Body of [`Kind::Planned`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Planned {
    /// The device that it would have been allocated on.
    pub device: u64,
    /// The Buffer object.
    pub buffer: u64,
    /// `Buffer::size()`, in bytes.
    pub bytes: u64,
    /// `Buffer::aligned_size_per_bank()`, before the allocator's own rounding.
    pub bytes_per_bank: u64,
    /// tt-metal's `BufferType`.
    pub buffer_type: u32,
    /// Zero.
    pub reserved: u32,
}

/// Body of [`Kind::Patched`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Patched {
    /// Which of the catalogue's symbols.
    pub symbols: [u64; 4],
}

/// Body of [`Kind::Refused`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Refused {
    /// Which of the catalogue's symbols, by its index.
    pub symbol: u32,
    /// A [`Refusal`].
    pub reason: u32,
    /// 1 if the calls that other libraries make are interposed all the same.
    pub interposed: u32,
    /// 1 if there are calls that can't be.
    pub lossy: u32,
}

/// Body of [`Kind::Unplanned`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Unplanned {
    /// The Buffer object.
    pub buffer: u64,
}

/// Body of [`Kind::Trace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Trace {
    /// The mesh.
    pub device: u64,
    /// tt-metal's id of the trace.
    pub trace: u32,
    /// A [`TraceStep`].
    pub step: u32,
}

/// What happens to a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum TraceStep {
    /// Its capture has begun.
    Begin = 0,
    /// Its capture is about to end, which allocates its buffer.
    End = 1,
    /// It was replayed.
    Replay = 2,
    /// It is about to be released.
    Release = 3,
}

impl TraceStep {
    /// All of them, by number.
    pub const ALL: [TraceStep; 4] =
        [TraceStep::Begin, TraceStep::End, TraceStep::Replay, TraceStep::Release];
}

/// Body of [`Kind::Regions`]; the tail is the ranges, each two `u64`, little-endian: the first address
/// and the one after the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Regions {
    /// Which allocator.
    pub allocator: u64,
    /// tt-metal's `BufferType`.
    pub buffer_type: u32,
    /// Zero.
    pub reserved: u32,
}

/// Body of [`Kind::Statistics`]; the tail is a [`StatisticsOfType`] for every type that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Statistics {
    /// Who was asked.
    pub allocator: u64,
    /// How many records of its allocations, frees and releases were written before it was asked. With
    /// any more or fewer, the answer is not about the state that the records give.
    pub operations: u64,
    /// A [`StatisticsCause`].
    pub cause: u32,
    /// A [`StatisticsState`].
    pub state: u32,
    /// What was asked for in vain, in bytes, if that was the cause.
    pub failed_bytes: u64,
    /// And its type.
    pub failed_type: u32,
    /// Zero.
    pub reserved: u32,
}

/// One type's part of [`Statistics`]: bytes in each bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct StatisticsOfType {
    /// tt-metal's `BufferType`.
    pub buffer_type: u64,
    /// What may be allocated at all.
    pub total: u64,
    /// What is allocated.
    pub allocated: u64,
    /// What is free.
    pub free: u64,
    /// The largest piece of that.
    pub largest_free: u64,
}

/// Why an allocator was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum StatisticsCause {
    /// Its device is about to close.
    Close = 0,
    /// It could not give what was asked for.
    Failure = 1,
}

/// What there is to make of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum StatisticsState {
    /// Nothing happened meanwhile, as far as its writer saw.
    Quiet = 0,
    /// Other threads allocated or freed at that time.
    Busy = 1,
    /// The allocator has memory that no record tells of: it came with a fork.
    Inherited = 2,
    /// The allocator gives L1 core by core, which its statistics leave out.
    PerCore = 3,
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $refusal:ident = $number:literal $why:literal),+ $(,)?) => {
        /// Why a function is not patched. Its text goes on from "the function ".
        #[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
        #[repr(u32)]
        pub enum Refusal { $($(#[$doc])* #[error($why)] $refusal = $number),+ }

        impl Refusal {
            /// The refusal that has this number.
            pub fn from_number(number: u32) -> Option<Refusal> {
                match number { $($number => Some(Refusal::$refusal),)+ _ => None }
            }
        }
    };
}

refusals! {
    /// The user chose an engine that patches nothing.
    Engine = 1 "is called directly, and the engine `preload` patches nothing",
    /// The runtime is there, but its file has no table of its hidden functions.
    Stripped = 2 "can't be found: the symbol table (.symtab) was stripped",
    /// The runtime is there, but its file can't be read, or is not the one that was loaded.
    File = 3 "can't be found: the file can't be read, or was replaced since it was loaded",
    /// The symbol table doesn't have it.
    Missing = 4 "is in no symbol table: the compiler put its code into its callers, or this release has none",
    /// It is there, but nothing refers to it.
    NoCaller = 5 "is never called where it is defined: the compiler may have put its code into its callers",
    /// There is no room for a jump.
    Short = 6 "is shorter than the 5 bytes that a jump takes",
    /// A branch leads between the bytes that would be replaced.
    Target = 7 "has a branch into its first bytes, which would be replaced",
    /// Its first bytes hold a call that can't be carried out elsewhere.
    Call = 8 "has a call in its first bytes that can't be moved",
    /// Its first bytes refer to something too far away for a copy of them.
    Reach = 9 "refers to something that is out of reach for a copy of its first bytes",
    /// Its first bytes hold something that can't be moved.
    Instruction = 10 "has an instruction in its first bytes that can't be moved",
    /// Its code can't be decoded.
    Code = 11 "has code that can't be decoded",
    /// Another function has the same code.
    Shared = 12 "shares its code with a function of another role",
    /// There is no memory near it for the code that takes its place.
    Memory = 13 "has no free memory within reach for a copy of its first bytes",
    /// The system doesn't let code be changed.
    Protected = 14 "can't be changed: the system protects its code",
    /// Other threads might be running its code.
    Threads = 15 "was found when other threads were running, which might be in it",
    /// It ignores an argument that is needed.
    Argument = 17 "ignores an argument that is needed here, and that its callers may then leave out",
    /// Someone else patched it, or a debugger's breakpoint lies there.
    Changed = 16 "was changed since it was loaded, by a debugger perhaps",
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode<B: Body>(process: u32, body: &B, tail: &[u8]) -> Vec<u8> {
        let head = Head { kind: B::KIND as u32, process, time_ns: 7 };
        [bytemuck::bytes_of(&head), bytemuck::bytes_of(body), tail].concat()
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let free = Free { allocator: 1, buffer: 2, address: 3 };
        let bytes = encode(9, &free, b"");
        let (head, record) = Record::decode(&bytes).unwrap();
        assert_eq!((head.process, head.time_ns), (9, 7));
        assert_eq!(record, Record::Free(free, Tail(b"")));

        let process = Process { pid: 1, parent_pid: 2, ..Process::zeroed() };
        let bytes = encode(0, &process, b"ls\0-l\0");
        let (_, record) = Record::decode(&bytes).unwrap();
        assert_eq!(record, Record::Process(process, Tail(b"ls\0-l\0")));
    }

    #[test]
    fn a_short_or_unknown_record_is_an_error() {
        let bytes = encode(0, &Close { device: 1, failed: 0 }, b"");
        for end in 0..bytes.len() {
            assert!(matches!(Record::decode(&bytes[..end]), Err(DecodeError::Short(_))));
        }
        let mut unknown = bytes.clone();
        unknown[0] = 99;
        assert_eq!(Record::decode(&unknown), Err(DecodeError::Kind(99)));
    }

    #[test]
    fn a_tail_of_entries_comes_back_whole_or_not_at_all() {
        let one =
            StatisticsOfType { buffer_type: 1, total: 2, allocated: 3, free: 4, largest_free: 5 };
        let bytes = [bytemuck::bytes_of(&one), bytemuck::bytes_of(&one)].concat();
        let entries = |bytes| Tail(bytes).entries().map(Iterator::collect::<Vec<_>>);
        assert_eq!(entries(&bytes), Some(vec![one, one]));
        assert_eq!(entries(b""), Some(vec![]));
        assert_eq!(entries(&bytes[..79]), None);
    }

    #[test]
    fn the_commonest_records_are_small() {
        // One slot of the ring holds 56 bytes: a free takes one, an allocation two.
        assert_eq!(size_of::<Head>() + size_of::<Free>(), 40);
        assert_eq!(size_of::<Head>() + size_of::<Allocate>(), 72);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::decode(&bytes);
        }
    }
}
