//! Changing code: the memory near an object that takes its place, and the jumps to that.

use std::ffi::c_int;

use ttalloc_ring::record::Refusal;

use super::decode::{JUMP, Plan, Stub};
use super::guard::{self, Guarded};
use crate::elf::Object;

const PAGE: usize = 4096;
/// What one function has at most: a way into its hook, and its first instructions.
const SLOT: usize = 256;
const ENTRY: usize = 64;
/// What stays writable at a mapping's end: a word for each function where Frida writes the jumps.
const DATA: usize = if cfg!(feature = "frida-gum") { PAGE } else { 0 };
/// How far a jump reaches, with some to spare for the object's own size.
const REACH: usize = 0x7000_0000;

/// A mapping near an object that stubs are written to, and that becomes code with the first patch.
pub struct Near {
    start: usize,
    size: usize,
    used: usize,
}

impl Near {
    /// Room for `count` functions of `object`.
    pub fn map(object: &Object, count: usize) -> Result<Near, Refusal> {
        let size = (count * SLOT).next_multiple_of(PAGE);
        let (mut low, mut high) = (usize::MAX, 0);
        for code in object.code() {
            low = low.min(code.as_ptr() as usize);
            high = high.max(code.as_ptr() as usize + code.len());
        }
        let in_reach = |start: usize| {
            start + size > start && start.max(high).abs_diff(start.min(low)) + size + DATA < REACH
        };
        // Further and further away on both sides, until something is free.
        let mut distance = 16 * PAGE;
        while distance < REACH {
            let below = low.checked_sub(distance + size).map(|start| start / PAGE * PAGE);
            let above = high.checked_add(distance).map(|end| end.next_multiple_of(PAGE));
            for hint in [below, above].into_iter().flatten().filter(|&hint| in_reach(hint)) {
                let protection = libc::PROT_READ | libc::PROT_WRITE;
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                // SAFETY: a new mapping; the address is but a wish, so that nothing is replaced.
                let start =
                    unsafe { libc::mmap(hint as *mut _, size + DATA, protection, flags, -1, 0) };
                if start == libc::MAP_FAILED {
                    return Err(Refusal::Memory);
                }
                if in_reach(start as usize) {
                    return Ok(Near { start: start as usize, size, used: 0 });
                }
                // SAFETY: the mapping that was just made; nobody knows it.
                unsafe { libc::munmap(start, size + DATA) };
            }
            distance += distance / 4 / PAGE * PAGE + PAGE;
        }
        Err(Refusal::Memory)
    }

    /// Writes what stands in for a function: a way into its hook, and the original's first instructions
    /// with a jump to the rest. Returns where both are.
    pub fn prepare(&mut self, plan: &Plan, hook: &'static Guarded) -> Result<Prepared, Refusal> {
        let slot = self.start + self.used;
        if self.used + SLOT > self.size {
            return Err(Refusal::Memory);
        }
        let mut entry = Stub::at(slot);
        if plan.guarded {
            let its: *const Guarded = hook;
            entry.push_and_jump(its as u64, guard::ttalloc_guard as *const () as u64)?;
        } else {
            entry.jump(hook.hook as u64)?;
        }
        let mut original = Stub::at(slot + ENTRY);
        if plan.guarded {
            original.push(&guard::restore_rax().ok_or(Refusal::Reach)?)?;
        }
        plan.write(&mut original)?;
        #[cfg(feature = "frida-gum")]
        let way_past = self.start + self.size + self.used / SLOT * size_of::<usize>();
        #[cfg(feature = "frida-gum")]
        {
            original = Stub::at(slot + ENTRY);
            if plan.guarded {
                original.push(&guard::restore_rax().ok_or(Refusal::Reach)?)?;
            }
            original.jump_at(way_past)?;
        }
        for (at, stub) in [(slot, &entry), (slot + ENTRY, &original)] {
            let code = stub.code();
            // SAFETY: inside this mapping, which is still writable and known to nobody: a stub has less
            // than SLOT - ENTRY bytes, and an entry less than ENTRY.
            unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), at as *mut u8, code.len()) };
        }
        self.used += SLOT;
        Ok(Prepared {
            plan: *plan,
            entry: slot,
            original: slot + ENTRY,
            #[cfg(feature = "frida-gum")]
            way_past,
        })
    }

    /// Makes code of it.
    pub fn finish(&self) -> Result<(), Refusal> {
        protect(self.start, self.size, libc::PROT_READ | libc::PROT_EXEC)
    }
}

/// A function that is ready to be patched.
pub struct Prepared {
    plan: Plan,
    /// The way into its hook.
    entry: usize,
    /// The way past the jump.
    original: usize,
    /// Where the address of Frida's way past it is to stand.
    #[cfg(feature = "frida-gum")]
    way_past: usize,
}

impl Prepared {
    /// Where the original function goes on.
    pub fn original(&self) -> usize {
        self.original
    }

    /// Writes the jump over the function of `object`. Nothing may be running there.
    pub fn patch(&self, object: &Object) -> Result<(), Refusal> {
        let at = self.plan.at;
        let (expected, length) = (&self.plan.moved.0, self.plan.moved.1);
        // SAFETY: the function's own code, which was read before.
        let found = unsafe { std::slice::from_raw_parts(at as *const u8, length) };
        if expected.get(..length) != Some(found) {
            return Err(Refusal::Changed);
        }
        #[cfg(feature = "frida-gum")]
        return self.replace(object);
        #[cfg(not(feature = "frida-gum"))]
        self.jump(object)
    }

    /// Has Frida write the jump, and the way past it.
    #[cfg(feature = "frida-gum")]
    fn replace(&self, _: &Object) -> Result<(), Refusal> {
        let original = super::frida::replace(self.plan.at, self.entry)?;
        // SAFETY: this function's word of the mapping's last page, which stays writable.
        unsafe { (self.way_past as *mut usize).write(original) };
        Ok(())
    }

    #[cfg_attr(feature = "frida-gum", expect(dead_code, reason = "Frida writes the jump"))]
    fn jump(&self, object: &Object) -> Result<(), Refusal> {
        let at = self.plan.at;
        let distance = (self.entry as i64).wrapping_sub((at + JUMP) as i64);
        let distance = i32::try_from(distance).map_err(|_| Refusal::Reach)?;
        let start = at / PAGE * PAGE;
        let size = (at + JUMP).next_multiple_of(PAGE) - start;
        let before = object.protection(at).ok_or(Refusal::Code)?;
        // It stays executable meanwhile: if the system allows no change, then at this step, before
        // anything has changed.
        protect(start, size, before | libc::PROT_WRITE)?;
        let mut jump = [0xe9; JUMP];
        jump[1..].copy_from_slice(&distance.to_le_bytes());
        // SAFETY: writable now; whole instructions of a function in which nothing is running.
        unsafe { std::ptr::copy_nonoverlapping(jump.as_ptr(), at as *mut u8, JUMP) };
        // Where this is refused it stays writable, and works.
        let _ = protect(start, size, before);
        Ok(())
    }
}

fn protect(start: usize, size: usize, protection: c_int) -> Result<(), Refusal> {
    // SAFETY: whole pages: those of a mapping of ours, or of code that stays readable and executable.
    let done = unsafe { libc::mprotect(start as *mut _, size, protection) };
    if done == 0 { Ok(()) } else { Err(Refusal::Protected) }
}
