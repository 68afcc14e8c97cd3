//! The demo.
pub mod compiler;
