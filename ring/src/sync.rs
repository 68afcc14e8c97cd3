//! The atomics of the ring's protocol: the standard library's, or those of a model checker.

#[cfg(not(any(loom, shuttle)))]
pub use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU64, Ordering};

#[cfg(all(shuttle, not(loom)))]
pub use shuttle::sync::atomic::{AtomicU64, Ordering};
