//! What each role of the catalogue is for, and what a user loses where a runtime has no symbol of it.

use crate::{Era, Eras};

/// What ttalloc wants a kind of symbol for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role {
    /// Its name in the catalogue.
    pub name: &'static str,
    /// What it is for: the end of "ttalloc needs it …".
    pub purpose: &'static str,
    /// What is lost without it, as a clause of a sentence.
    pub cost: &'static str,
    /// Whether nothing can be tracked without it, where the catalogue has a symbol of it.
    pub required: bool,
    /// The eras in which every release has it, if the catalogue has a symbol of it there. In others
    /// there are releases that never had it, and lose nothing: its absence is no gap.
    pub expected: Eras,
}

const EVERY: Eras = Eras::NONE.and(Era::A).and(Era::B).and(Era::C);
const NOTHING_TRACKED: &str = "nothing can be tracked";

/// A role without which nothing can be tracked.
const fn required(name: &'static str, purpose: &'static str) -> Role {
    Role { name, purpose, cost: NOTHING_TRACKED, required: true, expected: EVERY }
}

/// A role without which `cost` is lost.
const fn wanted(name: &'static str, purpose: &'static str, cost: &'static str) -> Role {
    Role { name, purpose, cost, required: false, expected: EVERY }
}

impl Role {
    /// The same role, expected in these eras only.
    const fn from(mut self, eras: Eras) -> Role {
        self.expected = eras;
        self
    }
}

/// Every role of the catalogue, once. What is missing here does not compile.
pub const ROLES: &[Role] = &[
    required("allocate", "to see every allocation"),
    required("deallocate", "to see every free"),
    wanted(
        "deallocate_all",
        "to see an allocator let all its buffers go",
        "buffers that the runtime lets go all at once stay in the live figures",
    ),
    wanted(
        "clear",
        "to see an allocator being emptied",
        "buffers of an emptied allocator stay in the live figures",
    ),
    wanted(
        "allocator_end",
        "to see an allocator end",
        "what an allocator still held at its end stays in the live figures",
    ),
    required("create", "to learn a buffer's size, type and device before it is allocated"),
    wanted(
        "create_at_address",
        "to see buffers that are made at a given address",
        "memory that is used without an allocator is not noticed (external_placements)",
    ),
    wanted(
        "view",
        "to tell a view of a buffer from a buffer at a given address",
        "views can be counted as buffers at a given address (external_placements)",
    ),
    wanted(
        "mesh_open",
        "to see a mesh being opened",
        "a mesh is listed when memory is first allocated on it, and not at all if none is",
    ),
    // A release without it enters through `mesh_open`: those up to 0.65.1.
    wanted(
        "mesh_impl_open",
        "to see a mesh being opened, one level down",
        "a mesh is listed when memory is first allocated on it, and not at all if none is",
    )
    .from(Eras::NONE.and(Era::C)),
    wanted(
        "mesh_close",
        "to see a mesh being closed",
        "what was left when a mesh closed is unknown (live_at_close)",
    ),
    // Likewise.
    wanted(
        "mesh_impl_close",
        "to see a mesh being closed, one level down",
        "what was left when a mesh closed by its destructor is unknown (live_at_close)",
    )
    .from(Eras::NONE.and(Era::C)),
    wanted(
        "device_close",
        "to see a chip's device being closed",
        "what was left when a device of the single-chip API closed is unknown (live_at_close)",
    ),
    required("bytes_per_bank", "to learn what a buffer takes in every bank"),
    required("address", "to learn what is freed"),
    wanted("page_size", "to learn a buffer's page size", "page sizes are given as 0"),
    wanted(
        "size",
        "to learn what was asked for",
        "the payload of buffers is given as 0 bytes; what they take is known",
    ),
    required("buffer_type", "to learn which memory a buffer lies in"),
    wanted(
        "device",
        "to learn which chips an allocator is for",
        "memory from another allocator than a mesh's own can't be assigned to chips",
    ),
    required("num_banks", "to learn how often a buffer takes its bytes"),
    wanted("bank_size", "to learn a memory's capacity", "capacities are given as 0"),
    wanted(
        "alignment",
        "to learn what an allocator rounds up to",
        "sizes are given without the allocator's last rounding, up to 64 bytes in a bank too low",
    ),
    wanted(
        "mesh_allocator",
        "to describe a mesh's memory when it opens",
        "a mesh's memory is listed when something is first allocated in it, and not at all if nothing is",
    ),
    wanted(
        "mesh_id",
        "to learn the ids of meshes and single chips",
        "a mesh's id is given as -1, and memory of the single-chip API can't be assigned to chips",
    ),
    required("mesh_chips", "to learn which chips a mesh has"),
    wanted("mesh_arch", "to learn the chips' architecture", "the architecture is given as unknown"),
    required("mesh_vtable", "to recognise a mesh, and the runtime"),
    wanted(
        "device_vtable",
        "to recognise a single chip's device",
        "memory of the single-chip API can't be assigned to chips",
    ),
    wanted(
        "override_state",
        "to see an allocator take over what another had",
        "after such an exchange the live figures are the old allocator's",
    )
    .from(Eras::NONE.and(Era::B).and(Era::C)),
    wanted(
        "load_sub_devices",
        "to see a sub-device manager take memory of its own",
        "capacities stay those of the opening while sub-devices have memory of their own",
    ),
    wanted(
        "clear_sub_devices",
        "to see that memory given back",
        "capacities stay those of the loaded sub-devices after they are cleared",
    ),
    wanted(
        "plan",
        "to see what a capture without dispatch plans",
        "what captures without dispatch plan is unknown (planned)",
    ),
    wanted(
        "unplan",
        "to see a planned buffer end",
        "planned buffers count as live until their device closes (planned)",
    ),
    wanted(
        "add_kernel",
        "to learn the names of a program's kernels",
        "programs have no kernels' names",
    ),
    wanted(
        "lay_out_circular",
        "to learn which program a circular buffer is of",
        "circular buffers are unknown, and with them the L1 headroom",
    ),
    wanted(
        "lay_out_dataflow",
        "to learn which program a dataflow buffer is of",
        "dataflow buffers are unknown, and the L1 headroom is too large where programs have some",
    )
    .from(Eras::NONE.and(Era::C)),
    wanted(
        "lay_out_scratchpads",
        "to learn which program a scratchpad is of",
        "scratchpads are unknown, and the L1 headroom is too large where programs have some",
    )
    .from(Eras::NONE.and(Era::C)),
    wanted(
        "circular_buffer",
        "to learn where circular buffers lie",
        "circular buffers are unknown, and with them the L1 headroom",
    ),
    wanted(
        "mark_address",
        "to learn where dataflow buffers and scratchpads lie",
        "dataflow buffers and scratchpads are unknown, and the L1 headroom is too large where programs have some",
    ),
    wanted(
        "add_circular_buffer",
        "to learn of circular buffers that lie over a tensor",
        "circular buffers that lie over another buffer are not listed; they take no memory",
    )
    .from(Eras::NONE.and(Era::C)),
    wanted(
        "validate_region",
        "to see a program refused for want of L1",
        "programs that clash with L1 buffers are not counted (refused)",
    ),
    wanted(
        "enlist",
        "to learn the programs of a workload",
        "it is unknown which programs ran, and with it the L1 headroom",
    ),
    wanted(
        "enqueue",
        "to see a workload dispatched",
        "it is unknown which programs ran, and with it the L1 headroom",
    ),
    wanted(
        "compile",
        "to learn where a workload is dispatched",
        "it is unknown where programs ran, and with it the L1 headroom",
    ),
    wanted(
        "launch",
        "to see a program dispatched without a queue",
        "programs that are dispatched without a queue are not seen to run",
    ),
    wanted(
        "reshape",
        "to see a mesh's chips get other coordinates",
        "programs on a part of a reshaped mesh are assigned to wrong chips",
    ),
    wanted("program_end", "to see a program end", "programs that ended count as still there"),
    wanted(
        "load_binaries",
        "to tell the binaries of kernels from other memory",
        "the binaries of kernels are counted as data",
    ),
    wanted(
        "global_semaphore",
        "to tell global semaphores from other memory",
        "global semaphores are counted as data",
    ),
    wanted(
        "global_circular_buffer",
        "to tell global circular buffers from other memory",
        "global circular buffers are counted as data",
    ),
    wanted(
        "begin_new_trace",
        "to see the capture of a trace begin",
        "what is captured counts as run",
    )
    .from(Eras::NONE.and(Era::B).and(Era::C)),
    wanted(
        "begin_trace",
        "to see the capture of a trace with a given id begin",
        "what is captured counts as run",
    ),
    wanted(
        "end_trace",
        "to see the capture of a trace end",
        "traces are unknown, and their memory counts as data",
    ),
    wanted("replay_trace", "to see a trace replayed", "what traces run is unknown"),
    wanted("release_trace", "to see a trace released", "it is unknown when traces are released"),
    wanted(
        "base_address",
        "to learn where the memory of allocators begins",
        "the reserved memory and the size of programs' regions are given wrongly, as from address 0",
    ),
    wanted(
        "mesh_l1_bytes",
        "to learn the size of a core's L1",
        "the reserved memory is unknown (reserved)",
    ),
    wanted(
        "device_l1_bytes",
        "to learn the size of a core's L1 on a single chip's device",
        "the reserved memory is unknown for the single-chip API (reserved)",
    ),
    wanted(
        "device_allocator",
        "to read a single chip's capacity again",
        "capacities of the single-chip API stay those of the opening",
    ),
    wanted(
        "allocated_regions",
        "to learn what an allocator takes over",
        "what an allocator takes over from another is missing in the live figures",
    )
    .from(Eras::NONE.and(Era::B).and(Era::C)),
    wanted(
        "has_regions",
        "to learn of which memories it takes something over",
        "what an allocator takes over from another is missing in the live figures",
    )
    .from(Eras::NONE.and(Era::B).and(Era::C)),
    wanted(
        "is_per_core",
        "to tell buffers that have an address of their own on each core",
        "buffers with an address of their own on each core are charged to all banks",
    )
    .from(Eras::NONE.and(Era::C)),
    wanted(
        "buffer_cores",
        "to learn on how many cores such a buffer lies",
        "buffers with an address of their own on each core are charged to all banks",
    ),
    wanted(
        "core_ranges",
        "to learn on which cores a circular buffer lies",
        "the cores of circular buffers are unknown",
    ),
    wanted(
        "core_count",
        "to learn on how many cores a circular buffer lies",
        "the number of a circular buffer's cores is that of its ranges",
    ),
    wanted(
        "mesh_shape",
        "to learn a mesh's shape",
        "programs on a part of a mesh are assigned to all of its chips",
    ),
    wanted(
        "shape_dims",
        "to learn a mesh's number of dimensions",
        "programs on a part of a mesh are assigned to all of its chips",
    ),
    wanted(
        "shape_stride",
        "to learn where a mesh's rows begin",
        "programs on a part of a mesh are assigned to all of its chips",
    ),
    wanted(
        "range_start",
        "to learn where a program's part of a mesh begins",
        "programs on a part of a mesh are assigned to all of its chips",
    ),
    wanted(
        "range_end",
        "to learn where a program's part of a mesh ends",
        "programs on a part of a mesh are assigned to all of its chips",
    ),
    wanted(
        "range_dims",
        "to learn the dimensions of a program's part of a mesh",
        "programs on a part of a mesh are assigned to all of its chips",
    ),
    wanted(
        "coordinate",
        "to read the coordinates of a program's part of a mesh",
        "programs on a part of a mesh are assigned to all of its chips",
    ),
    wanted("program_id", "to learn a program's id", "programs have no ids"),
    wanted("kernel_name", "to learn the names of kernels", "programs have no kernels' names"),
    wanted(
        "hybrid",
        "to know that a chip's L1 is given core by core, which statistics leave out",
        "the books of single chips' allocators can seem to differ from the runtime's (reconciled)",
    )
    .from(Eras::NONE.and(Era::C)),
    wanted(
        "statistics",
        "to ask an allocator for its own figures",
        "the books are not held against the runtime's (reconciled)",
    ),
];

/// The role called `name`.
///
/// # Panics
/// If there is none; used in constants, that is an error at compile time.
#[expect(clippy::panic, reason = "for constants, where it ends the build")]
pub const fn role(name: &str) -> &'static Role {
    let mut index = 0;
    while index < ROLES.len() {
        if crate::same(ROLES[index].name.as_bytes(), name.as_bytes()) {
            return &ROLES[index];
        }
        index += 1;
    }
    panic!("a role of the catalogue has no purpose: describe it in roles.rs")
}
