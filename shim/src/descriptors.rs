//! Descriptors that this library has for a moment: never one of the first three, even if the program
//! has closed those. What another thread writes to such a one must not come to the ring.

use std::fs::File;
use std::os::fd::FromRawFd;

/// Descriptors below 3 that were free, taken until this is dropped. Whoever reads or writes them
/// meanwhile finds them as good as closed.
pub struct Low(
    #[expect(dead_code, reason = "they are closed when it is dropped")] [Option<File>; 3],
);

impl Low {
    /// Takes those that are free.
    pub fn take() -> Low {
        let mut taken = [None, None, None];
        for (descriptor, place) in taken.iter_mut().enumerate() {
            // SAFETY: looks at a number that may or may not be a descriptor.
            if unsafe { libc::fcntl(descriptor as i32, libc::F_GETFD) } >= 0 {
                continue;
            }
            // SAFETY: a C string and flags. With O_PATH it can be neither read nor written.
            let lowest = unsafe { libc::open(c"/".as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
            if lowest >= 0 {
                // SAFETY: the kernel has just returned it, and nobody else has it.
                *place = Some(unsafe { File::from_raw_fd(lowest) });
            }
        }
        Low(taken)
    }
}
