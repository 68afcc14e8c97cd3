//! Going on as two processes.

use std::fs;
use std::io;

use rustix::process::Pid;

/// Where the caller finds itself.
pub enum Fork {
    /// In the process that there was, with the child's pid.
    Parent(Pid),
    /// In the child.
    Child,
    /// There is no child.
    Failed(io::Error),
}

/// Forks, if this process has one thread: then its child may do whatever it may.
pub fn fork() -> Fork {
    // A lock that another thread holds would never be given up in the child.
    match fs::read_dir("/proc/self/task").map(Iterator::count) {
        Ok(1) => {}
        Ok(_) => return Fork::Failed(io::Error::other("there is more than one thread")),
        Err(why) => return Fork::Failed(why),
    }
    // SAFETY: there is no other thread, so memory and locks are the child's as they are this thread's.
    match unsafe { libc::fork() } {
        0 => Fork::Child,
        pid => match Pid::from_raw(pid) {
            Some(pid) if pid.as_raw_nonzero().get() > 0 => Fork::Parent(pid),
            _ => Fork::Failed(io::Error::last_os_error()),
        },
    }
}

/// Ends this process, a child, without anything that its parent would do at its end.
pub fn leave(code: i32) -> ! {
    // SAFETY: takes a number, and does not return.
    unsafe { libc::_exit(code) }
}
