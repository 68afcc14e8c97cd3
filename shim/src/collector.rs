//! Starting a collector, where this library was preloaded without a launcher: `ttalloc collect`, which
//! makes the ring, reads it, and writes the report when all that was tracked has ended.
//!
//! The program is not to notice. The collector is the child of a child that ends at once, so that it is
//! adopted by the system; that child is made by clone without a signal for its end, so that neither
//! `wait` nor a handler of SIGCHLD sees it, and no handler of fork runs. Both run on memory of their own
//! in the program's address space, while the thread that called waits, as in vfork: nothing is copied,
//! however large the program is. They hold nothing that other threads might wait for.

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_void};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use crate::descriptors::Low;
use crate::environment;

/// How long the collector may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most bytes of its answer.
const MOST: usize = 256;
/// The descriptor at which the collector finds the pipe for its answer.
const REPLY: c_int = 3;
/// Bytes of a child's stack.
const STACK: usize = 64 * 1024;
/// Bytes of the kernel's set of signals, and how many signals there are (signal(7)).
const SET: usize = 8;
const SIGNALS: c_int = 64;

/// Starts a collector, and returns its ring's name; or says why there is none.
pub fn start() -> Result<Vec<u8>, String> {
    if std::process::id() == 1 {
        return Err(format!(
            "this process is the first of its container, to which every orphan comes, also its collector; {BY_RUN}"
        ));
    }
    let program = find()?;
    let shown = program.display().to_string();
    let failed =
        |why: io::Error| format!("{shown}, its collector, can't be started: {why}; {BY_RUN}");
    let path = CString::new(program.into_os_string().into_vec());
    let path = path.map_err(|why| failed(why.into()))?;
    // SAFETY: looks at a number that may or may not be a descriptor.
    let has_error = unsafe { libc::fcntl(libc::STDERR_FILENO, libc::F_GETFD) } >= 0;
    let _low = Low::take();
    let (from_collector, reply) = pipe().map_err(failed)?;
    let numbers = [std::process::id(), REPLY as u32].map(|number| number.to_string());
    let [pid, descriptor] = numbers.map(|number| CString::new(number).unwrap_or_default());
    let argv = [&path, c"collect", c"--pid", &pid, c"--reply", &descriptor].map(CStr::as_ptr);
    let argv: Vec<*const c_char> = argv.into_iter().chain([ptr::null()]).collect();
    let environment = environment::untracked();
    let envp = environment.iter().map(|entry| entry.as_ptr());
    let envp: Vec<*const c_char> = envp.chain([ptr::null()]).collect();
    let what = Start {
        path: path.as_ptr(),
        argv: argv.as_ptr(),
        envp: envp.as_ptr(),
        reply: reply.as_raw_fd(),
        has_error,
        stack: ptr::null_mut(),
        error: AtomicI32::new(0),
    };
    spawn(what).map_err(failed)?;
    drop(reply);
    let answer = read_line(&from_collector).map_err(|why| {
        format!("{shown}, its collector, did not answer: {why}; look at what it printed above, or {BY_RUN}")
    })?;
    Ok(answer)
}

const BY_RUN: &str = "run the program under ttalloc-run instead";

/// Where the launcher lies whose library this is: beside it, above it as Cargo builds them, or in `bin`
/// beside its folder.
fn find() -> Result<PathBuf, String> {
    let library = environment::library_path();
    let folder = library.parent().unwrap_or(Path::new("/"));
    let places = ["ttalloc", "../ttalloc", "../bin/ttalloc"].map(|place| folder.join(place));
    let is_program = |path: &&PathBuf| {
        let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
        // SAFETY: a C string.
        unsafe { libc::access(path.as_ptr(), libc::X_OK) == 0 }
    };
    let found = places.iter().filter(|path| path.is_file()).find(is_program);
    found.cloned().ok_or_else(|| {
        let folder = folder.display();
        format!(
            "its collector, the program ttalloc, was not found in {folder}, {folder}/.. or {folder}/../bin; install it there, {BY_RUN}, or unset LD_PRELOAD"
        )
    })
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned them, and nobody else has them.
    Ok(ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) }).into())
}

/// The first line of what comes, without its end.
fn read_line(from: &OwnedFd) -> io::Result<Vec<u8>> {
    let until = Instant::now() + PATIENCE;
    let mut line = Vec::with_capacity(MOST);
    loop {
        if let Some(end) = line.iter().position(|&byte| byte == b'\n') {
            line.truncate(end);
            return Ok(line);
        }
        if line.len() >= MOST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let left = until.saturating_duration_since(Instant::now());
        let mut ready = libc::pollfd { fd: from.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd.
        match unsafe { libc::poll(&raw mut ready, 1, left.as_millis() as c_int) } {
            0 => return Err(io::ErrorKind::TimedOut.into()),
            count if count > 0 => {}
            _ => match io::Error::last_os_error() {
                why if why.kind() == io::ErrorKind::Interrupted => continue,
                why => return Err(why),
            },
        }
        let mut bytes = [0_u8; MOST];
        let room = MOST - line.len();
        // SAFETY: room for as many bytes.
        match unsafe { libc::read(from.as_raw_fd(), bytes.as_mut_ptr().cast(), room) } {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count if count > 0 => line.extend(&bytes[..count as usize]),
            _ => match io::Error::last_os_error() {
                why if why.kind() == io::ErrorKind::Interrupted => {}
                why => return Err(why),
            },
        }
    }
}

/// What the children are given. It outlives them both, since the thread that made them waits.
struct Start {
    path: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    reply: c_int,
    /// Whether the program has a standard error.
    has_error: bool,
    /// The top of the second child's stack.
    stack: *mut c_void,
    /// Why the collector could not be started, or 0.
    error: AtomicI32,
}

/// Makes the children, and waits until the second has become the collector.
fn spawn(mut start: Start) -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let stacks = unsafe { libc::mmap(ptr::null_mut(), 2 * STACK, protection, flags, -1, 0) };
    if stacks == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    start.stack = stacks.wrapping_byte_add(STACK);
    let top = stacks.wrapping_byte_add(2 * STACK);
    // A program that takes in its descendants' orphans must not get this one: it might wait for it.
    let _not_reaper = NotReaper::begin();
    // No handler may run in a child, as if it were the program. The C library's function would leave
    // two of its own signals.
    let (all, mut before) = (u64::MAX, 0_u64);
    change_mask(&all, &mut before);
    // SAFETY: a function that follows the rules of vfork, memory for its stack, and what it is given,
    // which lives until the child has ended.
    let child =
        unsafe { libc::clone(between, top, AS_VFORK, (&raw const start).cast_mut().cast()) };
    let why = io::Error::last_os_error();
    if child > 0 {
        // Made without a signal for its end, it needs a flag to be waited for. Another thread may have
        // done so, if it waits for all kinds.
        // SAFETY: plain numbers.
        unsafe { system_call(libc::SYS_wait4, [child.into(), 0, libc::__WCLONE.into(), 0, 0]) };
    }
    change_mask(&before, &mut 0);
    // SAFETY: the mapping made above. Its users are gone: each went, or called exec, before its parent
    // went on.
    unsafe { libc::munmap(stacks, 2 * STACK) };
    match (child, start.error.load(Ordering::Acquire)) {
        (..0, _) => Err(why),
        (_, 0) => Ok(()),
        (_, error) => Err(io::Error::from_raw_os_error(error)),
    }
}

/// While this lives, the process is not the one to which its descendants' orphans come, if it was.
struct NotReaper {
    was: bool,
}

impl NotReaper {
    fn begin() -> NotReaper {
        let mut is_reaper: c_int = 0;
        // SAFETY: room for the answer.
        unsafe { libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &raw mut is_reaper) };
        if is_reaper != 0 {
            // SAFETY: a plain number.
            unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 0) };
        }
        NotReaper { was: is_reaper != 0 }
    }
}

impl Drop for NotReaper {
    fn drop(&mut self) {
        if self.was {
            // SAFETY: a plain number.
            unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
        }
    }
}

/// The child has the parent's memory, and the parent's thread waits until it ends or calls exec. No
/// signal tells of its end.
const AS_VFORK: c_int = libc::CLONE_VM | libc::CLONE_VFORK;

fn change_mask(to: &u64, before: &mut u64) {
    let (to, before) = (ptr::from_ref(to) as c_long, ptr::from_mut(before) as c_long);
    let how = libc::SIG_SETMASK.into();
    // SAFETY: two sets of signals, of the size that follows.
    unsafe { system_call(libc::SYS_rt_sigprocmask, [how, to, before, SET as c_long, 0]) };
}

/// A system call with nothing of the C library around it but `errno`, which is this thread's also in
/// the children: `start`'s caller keeps it.
///
/// # Safety
/// As the system call has it.
unsafe fn system_call(number: c_long, [a, b, c, d, e]: [c_long; 5]) -> c_long {
    // SAFETY: as the caller promises.
    unsafe { libc::syscall(number, a, b, c, d, e) }
}

/// The first child: makes the second and ends.
extern "C" fn between(start: *mut c_void) -> c_int {
    // SAFETY: `spawn`'s, which waits.
    let what = unsafe { &*start.cast::<Start>() };
    // SAFETY: as in `spawn`.
    if unsafe { libc::clone(collector, what.stack, AS_VFORK, start) } < 0 {
        what.fail();
    }
    0
}

/// The second child: becomes the collector.
extern "C" fn collector(start: *mut c_void) -> c_int {
    // SAFETY: `spawn`'s, which waits.
    let what = unsafe { &*start.cast::<Start>() };
    // SAFETY: system calls with plain numbers, and memory of `spawn`'s, by the rules of vfork.
    unsafe { what.run() };
    what.fail();
    127
}

impl Start {
    /// Notes the error of the latest call.
    fn fail(&self) {
        let code = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
        self.error.store(code, Ordering::Release);
    }

    /// Leaves what the program has, and starts the collector. Returns if that fails.
    ///
    /// # Safety
    /// To be called in a child of vfork, or one like it, only.
    unsafe fn run(&self) {
        // What a terminal sends to the program's group is not for the collector.
        // SAFETY: as the caller promises, here and below.
        unsafe { system_call(libc::SYS_setsid, [0; 5]) };
        // A child's own table of handlers: the program's stays as it is.
        let default = [0_u64; 4];
        for signal in 1..=SIGNALS {
            let action = (&raw const default) as c_long;
            // SAFETY: the kernel's structure: handler (SIG_DFL is 0), flags, restorer and mask.
            unsafe {
                system_call(libc::SYS_rt_sigaction, [signal.into(), action, 0, SET as c_long, 0])
            };
        }
        self.set_descriptors();
        change_mask(&0, &mut 0);
        let [path, argv, envp] = [self.path as c_long, self.argv as c_long, self.envp as c_long];
        // SAFETY: strings of `spawn`'s. Not the C library's function, which this library interposes.
        unsafe { system_call(libc::SYS_execve, [path, argv, envp, 0, 0]) };
    }

    /// Standard input and output lead nowhere, standard error stays, the answer's pipe gets its number,
    /// and all others go: pipes of the program's have other readers, who wait for their end.
    fn set_descriptors(&self) {
        let here = c_long::from(libc::AT_FDCWD);
        let nowhere = c"/dev/null".as_ptr() as c_long;
        // SAFETY: a C string and numbers. This child has descriptors of its own.
        let nowhere =
            unsafe { system_call(libc::SYS_openat, [here, nowhere, libc::O_RDWR.into(), 0, 0]) };
        let replaced: &[c_int] = if self.has_error { &[0, 1] } else { &[0, 1, 2] };
        for &descriptor in replaced {
            let descriptor = c_long::from(descriptor);
            let (call, arguments) = match nowhere {
                0.. => (libc::SYS_dup2, [nowhere, descriptor, 0, 0, 0]),
                _ => (libc::SYS_close, [descriptor, 0, 0, 0, 0]),
            };
            // SAFETY: numbers, as above.
            unsafe { system_call(call, arguments) };
        }
        let (reply, number) = (c_long::from(self.reply), c_long::from(REPLY));
        // Either leaves it open for the collector.
        let (call, arguments) = match reply == number {
            true => (libc::SYS_fcntl, [reply, libc::F_SETFD.into(), 0, 0, 0]),
            false => (libc::SYS_dup2, [reply, number, 0, 0, 0]),
        };
        // SAFETY: numbers, as above.
        unsafe { system_call(call, arguments) };
        let first = number + 1;
        let most = c_long::from(u32::MAX);
        // SAFETY: numbers, as above.
        if unsafe { system_call(libc::SYS_close_range, [first, most, 0, 0, 0]) } != 0 {
            // Before Linux 5.9.
            // SAFETY: numbers, which may all be zero.
            let mut limit: libc::rlimit = unsafe { mem::zeroed() };
            // SAFETY: room for a limit.
            unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
            for descriptor in first..limit.rlim_cur.min(1 << 16) as c_long {
                // SAFETY: a number, as above.
                unsafe { system_call(libc::SYS_close, [descriptor, 0, 0, 0, 0]) };
            }
        }
    }
}
