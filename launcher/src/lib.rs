//! ttalloc's launcher: it runs a program with the preload library, keeps the books from what that
//! reports, and shows them.

pub mod binary;
pub mod cli;
pub mod demo;
pub mod doctor;
pub mod facts;
pub mod host;
pub mod ledger;
pub mod merge;
pub mod programs;
pub mod report;
pub mod run;
pub mod shim;
pub mod summary;
