//! The program's `errno`, which must not change by what is done on the way.

/// Restores `errno` when dropped.
pub struct KeepErrno(i32);

impl KeepErrno {
    /// Remembers `errno` as it is now.
    #[expect(clippy::new_without_default, reason = "it is made for what it does when dropped")]
    pub fn new() -> KeepErrno {
        // SAFETY: takes nothing.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: this thread's errno is always there.
        KeepErrno(unsafe { *errno })
    }
}

impl Drop for KeepErrno {
    fn drop(&mut self) {
        // SAFETY: takes nothing.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: this thread's errno is always there.
        unsafe { *errno = self.0 };
    }
}
