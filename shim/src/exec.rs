//! The functions that start a program: under `--follow=always` they put back what the environment that
//! the program is given lacks to be tracked. In any other mode they pass straight through.
//!
//! They may be called between vfork and exec, on the parent's memory and perhaps its stack: nothing is
//! allocated, locked or kept, `errno` is the real function's, and what the real function finds out on
//! the way is as it would be. What must be written down lies on the stack; only where that would take
//! more than [`LARGE`] words is memory mapped, which an exec that succeeds in a child of vfork leaves
//! with the parent.
//!
//! redhook defines the functions, and finds the real ones. These are asked for when this library is
//! loaded, since the dynamic linker may not be asked in a child of vfork. Where redhook does not fit,
//! the function says so. Not one of them throws, so that its catch of a panic is no matter.
//!
//! Not reached are `system`, `popen` and `wordexp`, which call nothing that can be interposed; they pass
//! on the program's own environment, which is whole unless the program itself has cleaned that.

use std::arch::naked_asm;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use redhook::{hook, real};
use ttalloc_ring::errno::KeepErrno;

use crate::environment::{self, FILE_NAME, FOLLOWS_ALWAYS, PRELOAD_VARIABLE};

/// An array of strings that ends with a null, as `argv` and `environ` are; null for an empty one.
type Strings = *const *const c_char;

/// So many words are kept on the stack for most calls, and for one with a large environment.
const SMALL: usize = 512;
const LARGE: usize = 8192;

/// Finds the real functions. Runs when this library is loaded.
pub fn prepare() {
    let _errno = KeepErrno::new();
    let _ = real!(execve);
    let _ = real!(execv);
    let _ = real!(execvp);
    let _ = real!(execvpe);
    let _ = real!(fexecve);
    let _ = real!(posix_spawn);
    let _ = real!(posix_spawnp);
    for (original, name) in [(&EXECL, "execl\0"), (&EXECLP, "execlp\0"), (&EXECLE, "execle\0")] {
        // SAFETY: a name that ends with a zero byte; every glibc has it.
        let address = unsafe { redhook::ld_preload::dlsym_next(name) };
        original.store(address as usize, Ordering::Release);
    }
}

fn is_always() -> bool {
    FOLLOWS_ALWAYS.load(Ordering::Relaxed)
}

unsafe extern "C" {
    /// The program's own environment; null if it has cleared that.
    static environ: Strings;
}

/// The program's own environment.
fn own_environment() -> Strings {
    // SAFETY: glibc's variable. Whoever calls exec looks at it too.
    unsafe { environ }
}

hook! {
    unsafe fn execve(path: *const c_char, argv: Strings, envp: Strings) -> c_int => execve_hook {
        // SAFETY: the caller's arguments.
        let call = |envp| unsafe { real!(execve)(path, argv, envp) };
        // SAFETY: as above.
        unsafe { with_environment(envp, call) }
    }
}

hook! {
    unsafe fn execv(path: *const c_char, argv: Strings) -> c_int => execv_hook {
        if !is_always() {
            // SAFETY: the caller's arguments.
            return unsafe { real!(execv)(path, argv) };
        }
        // SAFETY: as above; the function does this with the program's own environment.
        let call = |envp| unsafe { real!(execve)(path, argv, envp) };
        // SAFETY: as above.
        unsafe { with_environment(own_environment(), call) }
    }
}

hook! {
    unsafe fn execvp(file: *const c_char, argv: Strings) -> c_int => execvp_hook {
        if !is_always() {
            // SAFETY: the caller's arguments.
            return unsafe { real!(execvp)(file, argv) };
        }
        // SAFETY: as above. Both search the PATH of the program's own environment.
        let call = |envp| unsafe { real!(execvpe)(file, argv, envp) };
        // SAFETY: as above.
        unsafe { with_environment(own_environment(), call) }
    }
}

hook! {
    unsafe fn execvpe(file: *const c_char, argv: Strings, envp: Strings) -> c_int => execvpe_hook {
        // SAFETY: the caller's arguments.
        let call = |envp| unsafe { real!(execvpe)(file, argv, envp) };
        // SAFETY: as above.
        unsafe { with_environment(envp, call) }
    }
}

hook! {
    unsafe fn fexecve(fd: c_int, argv: Strings, envp: Strings) -> c_int => fexecve_hook {
        if envp.is_null() {
            // To glibc's function, unlike the others, that is an error.
            // SAFETY: the caller's arguments.
            return unsafe { real!(fexecve)(fd, argv, envp) };
        }
        // SAFETY: the caller's arguments.
        let call = |envp| unsafe { real!(fexecve)(fd, argv, envp) };
        // SAFETY: as above.
        unsafe { with_environment(envp, call) }
    }
}

hook! {
    unsafe fn execveat(
        folder: c_int, path: *const c_char, argv: Strings, envp: Strings, flags: c_int
    ) -> c_int => execveat_hook {
        // Not the real function, which glibc has since 2.34 only, and which is this system call.
        // SAFETY: the caller's arguments.
        let call = |envp: Strings| unsafe {
            libc::syscall(libc::SYS_execveat, folder, path, argv, envp, flags) as c_int
        };
        // SAFETY: as above.
        unsafe { with_environment(envp, call) }
    }
}

hook! {
    unsafe fn posix_spawn(
        pid: *mut libc::pid_t, path: *const c_char, actions: *const c_void,
        attributes: *const c_void, argv: Strings, envp: Strings
    ) -> c_int => posix_spawn_hook {
        // SAFETY: the caller's arguments.
        let call = |envp| unsafe {
            real!(posix_spawn)(pid, path, actions, attributes, argv, envp)
        };
        // SAFETY: as above.
        unsafe { with_environment(envp, call) }
    }
}

hook! {
    unsafe fn posix_spawnp(
        pid: *mut libc::pid_t, file: *const c_char, actions: *const c_void,
        attributes: *const c_void, argv: Strings, envp: Strings
    ) -> c_int => posix_spawnp_hook {
        // SAFETY: the caller's arguments.
        let call = |envp| unsafe {
            real!(posix_spawnp)(pid, file, actions, attributes, argv, envp)
        };
        // SAFETY: as above.
        unsafe { with_environment(envp, call) }
    }
}

/// The real functions that take their arguments as a list. redhook can't define such a function, and
/// neither can Rust.
static EXECL: AtomicUsize = AtomicUsize::new(0);
static EXECLP: AtomicUsize = AtomicUsize::new(0);
static EXECLE: AtomicUsize = AtomicUsize::new(0);

macro_rules! listed {
    ($name:ident, $original:ident, $call:ident) => {
        /// Goes on to the real function with everything as it is, unless the environment may need
        /// something. Then the list's words in registers are laid beside those on the stack (System V
        /// x86-64 ABI, 3.2.3), and its two parts handed on.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            naked_asm!(
                "cmp byte ptr [rip + {always}], 0",
                "jne 2f",
                "mov r11, qword ptr [rip + {original}]",
                "test r11, r11",
                "jz 2f",
                "jmp r11",
                "2:",
                "push r9",
                "push r8",
                "push rcx",
                "push rdx",
                "push rsi",
                "mov rsi, rsp",
                "lea rdx, [rsp + 48]",
                "call {call}",
                "add rsp, 40",
                "ret",
                always = sym FOLLOWS_ALWAYS,
                original = sym $original,
                call = sym $call,
            )
        }
    };
}

listed!(execl, EXECL, execl_listed);
listed!(execlp, EXECLP, execlp_listed);
listed!(execle, EXECLE, execle_listed);

unsafe extern "C" fn execl_listed(path: *const c_char, first: Strings, rest: Strings) -> c_int {
    // SAFETY: the caller's arguments.
    let call = |argv| unsafe { execv_hook(path, argv) };
    // SAFETY: the parts of the caller's list.
    unsafe { with_list(List { first, rest }, call) }
}

unsafe extern "C" fn execlp_listed(file: *const c_char, first: Strings, rest: Strings) -> c_int {
    // SAFETY: the caller's arguments.
    let call = |argv| unsafe { execvp_hook(file, argv) };
    // SAFETY: the parts of the caller's list.
    unsafe { with_list(List { first, rest }, call) }
}

unsafe extern "C" fn execle_listed(path: *const c_char, first: Strings, rest: Strings) -> c_int {
    let list = List { first, rest };
    // SAFETY: the parts of the caller's list.
    let count = unsafe { list.len() };
    // SAFETY: the environment follows the list's end.
    let envp = unsafe { list.at(count + 1) }.cast::<*const c_char>();
    // SAFETY: the caller's arguments.
    let call = |argv| unsafe { execve_hook(path, argv, envp) };
    // SAFETY: as above.
    unsafe { with_list(list, call) }
}

/// Arguments as a C function with a variable number of them finds them, behind its first.
#[derive(Clone, Copy)]
struct List {
    /// Those that came in registers.
    first: Strings,
    /// Those on the stack.
    rest: Strings,
}

impl List {
    /// How many came in registers.
    const REGISTERS: usize = 5;

    /// The argument at `index`.
    ///
    /// # Safety
    /// There must be one.
    unsafe fn at(self, index: usize) -> *const c_char {
        let place = match index.checked_sub(List::REGISTERS) {
            None => self.first.wrapping_add(index),
            Some(index) => self.rest.wrapping_add(index),
        };
        // SAFETY: as the caller promises.
        unsafe { *place }
    }

    /// How many there are before the null that ends them.
    ///
    /// # Safety
    /// There must be such a null.
    unsafe fn len(self) -> usize {
        // SAFETY: nothing behind the null is looked at.
        (0..).take_while(|&index| !unsafe { self.at(index) }.is_null()).count()
    }
}

/// Makes an array of a list, for `call`.
///
/// # Safety
/// The list must end with a null.
unsafe fn with_list(list: List, call: impl FnOnce(Strings) -> c_int) -> c_int {
    // SAFETY: as the caller promises.
    let count = unsafe { list.len() };
    with_words(count + 1, |words| {
        let Some(words) = words else { return out_of_memory() };
        for (index, word) in words.iter_mut().enumerate() {
            // SAFETY: not beyond the null.
            word.write(unsafe { list.at(index) });
        }
        call(words.as_ptr().cast())
    })
}

/// What exec fails with when there is no memory for its arguments.
fn out_of_memory() -> c_int {
    // SAFETY: takes nothing.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: this thread's errno is always there.
    unsafe { *errno = libc::ENOMEM };
    -1
}

/// Calls `call` with so many words of memory, which nobody has initialized; with none if there is none.
fn with_words<R>(
    count: usize,
    call: impl FnOnce(Option<&mut [MaybeUninit<*const c_char>]>) -> R,
) -> R {
    if count <= SMALL {
        on_stack::<SMALL, R>(count, call)
    } else if count <= LARGE {
        on_stack::<LARGE, R>(count, call)
    } else {
        in_mapping(count, call)
    }
}

#[inline(never)]
fn on_stack<const WORDS: usize, R>(
    count: usize,
    call: impl FnOnce(Option<&mut [MaybeUninit<*const c_char>]>) -> R,
) -> R {
    let mut words = [MaybeUninit::uninit(); WORDS];
    call(words.get_mut(..count))
}

#[cold]
fn in_mapping<R>(
    count: usize,
    call: impl FnOnce(Option<&mut [MaybeUninit<*const c_char>]>) -> R,
) -> R {
    let Some(bytes) = count.checked_mul(size_of::<*const c_char>()) else { return call(None) };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let memory = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if memory == libc::MAP_FAILED {
        return call(None);
    }
    // SAFETY: the mapping, which nobody else knows, in whole words; page-aligned.
    let result = call(Some(unsafe { std::slice::from_raw_parts_mut(memory.cast(), count) }));
    let _errno = KeepErrno::new();
    // SAFETY: as above; what `call` had of it is gone.
    unsafe { libc::munmap(memory, bytes) };
    result
}

/// Calls `call` with an environment in which the program will be tracked: `envp` itself if that is
/// one, or if nothing is to be done about it.
///
/// # Safety
/// `envp` must be null or an array of strings that ends with a null.
unsafe fn with_environment(envp: Strings, call: impl FnOnce(Strings) -> c_int) -> c_int {
    if !is_always() {
        return call(envp);
    }
    // SAFETY: as the caller promises.
    let given = unsafe { Given::look(envp) };
    if !given.lacks_library && !given.lacks_entries {
        return call(envp);
    }
    let pointers = given.count + environment::entries().count() + 2;
    let bytes = given.preload_bytes();
    with_words(pointers + bytes.div_ceil(size_of::<usize>()), |words| match words {
        // SAFETY: as the caller promises, and there is room for all.
        Some(words) => call(unsafe { given.completed(words, pointers) }),
        // Better not followed than not run.
        None => call(envp),
    })
}

/// What there is in an environment.
struct Given {
    envp: Strings,
    count: usize,
    /// LD_PRELOAD's value, the last one as for the dynamic linker; null if there is none.
    preload: *const c_char,
    lacks_library: bool,
    /// Whether the ring isn't named, or what goes with it. If one is, whoever named it knows why: it may
    /// be another launcher.
    lacks_entries: bool,
}

impl Given {
    /// # Safety
    /// As for [`with_environment`].
    unsafe fn look(envp: Strings) -> Given {
        let mut given = Given {
            envp,
            count: 0,
            preload: ptr::null(),
            lacks_library: true,
            lacks_entries: true,
        };
        // SAFETY: as the caller promises.
        for entry in unsafe { strings(envp) } {
            given.count += 1;
            if let Some(value) = value_of(entry, PRELOAD_VARIABLE) {
                given.preload = value.as_ptr();
                given.lacks_library = !parts(value).any(is_ours);
            }
            let is_named = value_of(entry, ttalloc_ring::RING_VARIABLE).is_some();
            given.lacks_entries &= !is_named;
        }
        // Without a launcher there is no ring's name that could have been taken away.
        given.lacks_entries &= environment::has_ring() || given.lacks_library;
        given
    }

    /// The other libraries to be preloaded.
    fn others(&self) -> impl Iterator<Item = &[u8]> {
        let value = match self.preload.is_null() {
            true => c"",
            // SAFETY: the rest of one of the caller's strings.
            false => unsafe { CStr::from_ptr(self.preload) },
        };
        parts(value).filter(|part| !is_ours(part))
    }

    /// The bytes that an entry for LD_PRELOAD takes with all of these; none if ours is the only one.
    fn preload_bytes(&self) -> usize {
        let others: usize = self.others().map(|other| 1 + other.len()).sum();
        match others {
            0 => 0,
            others => environment::preload_entry().count_bytes() + others + 1,
        }
    }

    /// Writes an environment into `words`, of which the first are for its array, with what was lacking.
    ///
    /// # Safety
    /// As for [`with_environment`], and there must be room.
    unsafe fn completed(
        &self,
        words: &mut [MaybeUninit<*const c_char>],
        pointers: usize,
    ) -> Strings {
        let (array, memory) = words.split_at_mut(pointers);
        let is_replaced = |entry: &&CStr| {
            let is = |name: &CStr| value_of(entry, name).is_some();
            self.lacks_library && is(PRELOAD_VARIABLE)
                || self.lacks_entries
                    && (is(ttalloc_ring::FOLLOW_VARIABLE) || is(ttalloc_ring::ENGINE_VARIABLE))
        };
        let preload = self.lacks_library.then(|| self.write_preload(memory));
        // SAFETY: as the caller promises.
        let kept = unsafe { strings(self.envp) }.filter(|entry| !is_replaced(entry));
        let added = environment::entries().filter(|_| self.lacks_entries);
        let all = kept.map(CStr::as_ptr).chain(preload).chain(added.map(CStr::as_ptr));
        for (word, entry) in array.iter_mut().zip(all.chain([ptr::null()])) {
            word.write(entry);
        }
        array.as_ptr().cast()
    }

    /// The entry for LD_PRELOAD with this library before all others.
    fn write_preload(&self, memory: &mut [MaybeUninit<*const c_char>]) -> *const c_char {
        let own = environment::preload_entry();
        if memory.is_empty() {
            return own.as_ptr();
        }
        let start = memory.as_mut_ptr().cast::<u8>();
        let mut at = 0;
        let mut write = |bytes: &[u8]| {
            let to = start.wrapping_add(at);
            // SAFETY: inside `memory`, which has room for as many bytes as `preload_bytes` counts.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
            at += bytes.len();
        };
        write(own.to_bytes());
        for other in self.others() {
            write(b":");
            write(other);
        }
        write(b"\0");
        start.cast()
    }
}

/// The strings of an array.
///
/// # Safety
/// It must be null, or end with a null.
unsafe fn strings<'a>(array: Strings) -> impl Iterator<Item = &'a CStr> {
    let mut next = array;
    std::iter::from_fn(move || {
        if next.is_null() {
            return None;
        }
        // SAFETY: not beyond the array's null.
        let entry = unsafe { *next };
        if entry.is_null() {
            return None;
        }
        next = next.wrapping_add(1);
        // SAFETY: one of the array's strings.
        Some(unsafe { CStr::from_ptr(entry) })
    })
}

/// The value of an entry of an environment, if it is one of that name.
fn value_of<'a>(entry: &'a CStr, name: &CStr) -> Option<&'a CStr> {
    let length = name.count_bytes();
    let bytes = entry.to_bytes_with_nul();
    let is_its = bytes.starts_with(name.to_bytes()) && bytes.get(length) == Some(&b'=');
    CStr::from_bytes_with_nul(bytes.get(length + 1..).filter(|_| is_its)?).ok()
}

/// The libraries that a value of LD_PRELOAD names (ld.so(8) splits at both).
fn parts(value: &CStr) -> impl Iterator<Item = &[u8]> {
    value.to_bytes().split(|byte| matches!(byte, b':' | b' ')).filter(|part| !part.is_empty())
}

/// Whether a library is this one, or another copy of it.
fn is_ours(path: &[u8]) -> bool {
    path.ends_with(FILE_NAME) || path == environment::library().to_bytes()
}
