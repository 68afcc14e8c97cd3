//! Reports that are written while the program runs, so that nothing depends on the end.
//!
//! A report of many buffers takes its time. So that nobody waits for it, a forked child writes it: it has
//! the books as they are at that moment, while this process goes on.

use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitOptions, waitpid};

use super::destination::Destination;
use super::fork::{Fork, fork};
use super::signals;

/// Writes snapshots.
pub struct Snapshots {
    every: Option<Duration>,
    last: Instant,
    wished: bool,
    writer: Option<Pid>,
    told: bool,
}

impl Snapshots {
    /// One in each period, or only when they are asked for.
    pub fn new(every: Option<Duration>) -> Snapshots {
        Snapshots { every, last: Instant::now(), wished: false, writer: None, told: false }
    }

    /// Asks for one.
    pub fn ask(&mut self) {
        self.wished = true;
    }

    /// Has one written if it is time. What goes wrong is returned the first time only.
    pub fn tend(
        &mut self,
        destination: Option<&Destination>,
        report: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> Result<(), String> {
        let mut problem = None;
        if let Some(writer) = self.writer {
            match waitpid(Some(writer), WaitOptions::NOHANG) {
                // Not yet.
                Ok(None) => return Ok(()),
                Ok(Some((_, status))) => problem = problem_of(status.exit_status()),
                Err(why) => problem = Some(why.to_string()),
            }
            self.writer = None;
        }
        let due = self.every.is_some_and(|every| self.last.elapsed() >= every);
        if self.wished || due {
            self.wished = false;
            self.last = Instant::now();
            problem = match destination.filter(|destination| destination.is_file()) {
                Some(destination) => {
                    self.write(destination, report).err().map(|why| why.to_string()).or(problem)
                }
                None => Some("there is no file for the report".to_owned()),
            };
        }
        match problem {
            Some(problem) if !std::mem::replace(&mut self.told, true) => Err(problem),
            _ => Ok(()),
        }
    }

    /// Waits until the last one is written, so that it can't take a later report's place.
    pub fn finish(&mut self) {
        if let Some(writer) = self.writer.take() {
            let _ = waitpid(Some(writer), WaitOptions::empty());
        }
    }

    fn write(
        &mut self,
        destination: &Destination,
        report: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> io::Result<()> {
        let write = || report().and_then(|json| destination.write(&json)).map(drop);
        // What is sent to all of a process group is not meant for the child, which would pass it on too.
        let mask = signals::block_all();
        match fork() {
            Fork::Child => {
                // ENOSPC and the like fit in an exit code.
                let code =
                    write().map_or_else(|why| why.raw_os_error().unwrap_or(libc::EIO), |()| 0);
                super::fork::leave(code)
            }
            Fork::Parent(pid) => {
                signals::restore(&mask);
                self.writer = Some(pid);
                Ok(())
            }
            Fork::Failed(_) => {
                signals::restore(&mask);
                write()
            }
        }
    }
}

/// What went wrong, by the exit code of the process that was to write.
fn problem_of(code: Option<i32>) -> Option<String> {
    match code {
        Some(0) => None,
        Some(code) => Some(io::Error::from_raw_os_error(code).to_string()),
        None => Some("the process that wrote it was killed".to_owned()),
    }
}
