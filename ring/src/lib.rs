//! How the preload library tells the launcher what happened: [`record`]s, carried by a shared-memory
//! [`ring`] of many producers and one consumer.
//!
//! Both sides are built together; [`VERSION`] changes with anything that either side assumes.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")))]
compile_error!("ttalloc supports x86-64 Linux with glibc only, as tt-metal's releases do");

pub mod clock;
pub mod errno;
pub mod lane;
// A model checker's atomics can't lie in shared memory, nor the kernel wait for them.
#[cfg(not(any(loom, shuttle)))]
mod life;
#[cfg(all(test, any(loom, shuttle)))]
mod model;
pub mod record;
#[cfg(not(any(loom, shuttle)))]
pub mod ring;
mod room;
mod sync;

/// The version of the records and of the shared memory's layout. The catalogue of symbols is part of
/// it, since records carry indices into that.
pub const VERSION: u32 = 3;

/// The environment variable through which the preload library finds the ring: the path of its memory,
/// an `@`, and its id as 16 hexadecimal digits.
pub const RING_VARIABLE: &std::ffi::CStr = c"TTALLOC_RING";

/// The environment variable that tells the preload library which [`Engine`] to use.
pub const ENGINE_VARIABLE: &std::ffi::CStr = c"TTALLOC_ENGINE";

/// The environment variable by which the preload library knows that children whose environment was cleaned
/// are to be followed too: it is `always` then.
pub const FOLLOW_VARIABLE: &std::ffi::CStr = c"TTALLOC_FOLLOW";

/// The environment variable that names the report.
pub const REPORT_VARIABLE: &std::ffi::CStr = c"TTALLOC_REPORT";

/// The environment variables in which a launch engine tells a process its rank: Open MPI's, PMIx's, MPICH's
/// and Intel MPI's, MVAPICH2's, Slurm's. The first that is set to a number counts: what is started by one
/// inside another has its rank from the inner one.
pub const RANK_VARIABLES: [&std::ffi::CStr; 5] =
    [c"OMPI_COMM_WORLD_RANK", c"PMIX_RANK", c"PMI_RANK", c"MV2_COMM_WORLD_RANK", c"SLURM_PROCID"];

/// How the preload library comes to see the calls of a function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// By interposition, and by patching what that can't reach.
    #[default]
    Auto,
    /// By interposition alone.
    Preload,
    /// By patching wherever that can be done.
    Inline,
}

impl Engine {
    /// All of them.
    pub const ALL: [Engine; 3] = [Engine::Auto, Engine::Preload, Engine::Inline];

    /// Its name, as the environment variable and the launcher's option have it.
    pub const fn name(self) -> &'static str {
        match self {
            Engine::Auto => "auto",
            Engine::Preload => "preload",
            Engine::Inline => "inline",
        }
    }
}

/// What the preload library exports under [`STAMP_SYMBOL`], so that a launcher can tell before a run
/// whether the two fit. It ends with [`VERSION`] and a zero byte.
pub const STAMP: &str = concat!("ttalloc ", env!("CARGO_PKG_VERSION"), " ring 3\0");

/// The exported symbol that holds [`STAMP`].
pub const STAMP_SYMBOL: &str = "ttalloc_shim_stamp";

#[cfg(test)]
mod tests {
    #[test]
    fn the_stamp_names_the_version() {
        assert!(super::STAMP.ends_with(&format!(" ring {}\0", super::VERSION)));
    }
}
