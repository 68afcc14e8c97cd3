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
