//! The library that ttalloc preloads into a program: it defines functions of tt-metal, so that calls
//! to them arrive here first, writes down what they do, and passes them on.
//!
//! It lives in somebody else's process, and therefore
//! * does nothing at all until the program calls tt-metal, but copy some environment variables, and look
//!   for tt-metal in each library that is loaded; and under `--follow=always` sees to it that programs
//!   which this one starts are tracked;
//! * opens nothing but the ring and the file that has tt-metal in it, starts no thread, installs no
//!   handler; starts a process only where there is no launcher, and prints one line only where it can't
//!   do what it was preloaded for;
//! * lets C++ exceptions through, and keeps `errno`;
//! * becomes a plain forward when the launcher is gone, or the runtime is not one that it knows.
//!
//! `inline` patches the functions whose calls can't be interposed; `hooks` has what is hooked, `programs`
//! the part of it that is about programs, `calls` what is asked of the runtime, `reconcile` when its
//! allocators are asked for their own figures, `runtime` what was found in the program, and `elf` how it is
//! found. `session` is what records are written by; for it `environment` has what the launcher has told,
//! `reach` the way to the ring, `collector` how one is had without a launcher, `process` who this process is,
//! and `notice` what is said where all that fails. `exec` follows programs into other programs.

#[cfg(not(panic = "unwind"))]
compile_error!("C++ exceptions pass through these functions: build with panic = \"unwind\"");

mod calls;
mod collector;
mod descriptors;
mod elf;
mod environment;
mod exec;
mod hooks;
mod inline;
mod notice;
mod process;
mod programs;
mod reach;
mod reconcile;
mod runtime;
mod session;

use ttalloc_ring::STAMP;

/// What this library is, for the launcher to read from the file before a run.
// The name is `ttalloc_ring::STAMP_SYMBOL`; an attribute takes no constant, so a test compares them.
#[unsafe(export_name = "ttalloc_shim_stamp")]
pub static SHIM_STAMP: [u8; STAMP.len()] = match STAMP.as_bytes().first_chunk() {
    Some(bytes) => *bytes,
    None => [0; STAMP.len()],
};

#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = at_load;

/// Runs when the first library is loaded.
extern "C" fn at_load() {
    environment::copy();
    exec::prepare();
}
