//! The way into a hook from callers that know the function they call: gcc's `-fipa-ra` lets them keep
//! values in registers that a call usually spoils, if the function doesn't touch them.
//!
//! The guard saves all such registers, calls the hook with a copy of the arguments on the stack, and
//! restores them but `rax`, which holds the result. It has unwind data, so that exceptions pass: then
//! nothing needs restoring, since no caller relies on these registers where it catches.

use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::arch::{asm, global_asm};
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// What the guard has to know of a hook. Its layout is that which the assembly below reads.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Guarded {
    /// The hook.
    pub hook: *const c_void,
    /// Words of its arguments that lie on the stack.
    pub stack_words: usize,
}

/// The parts of the processor's state that hold vector and mask registers (Intel's manual, volume 1,
/// 13.1): SSE, AVX, the masks, and two of AVX-512.
const VECTORS: u32 = 0b1110_0110;
/// Those beyond what SSE has: if none is in use, the sixteen xmm registers are all there is.
const WIDE: u32 = 0b1110_0100;

/// How to find out whether wide registers are in use: [`NEVER`], [`ASK`] or [`ALWAYS`].
static WIDTH: AtomicU32 = AtomicU32::new(ALWAYS);
/// They can't be: the system doesn't know them.
const NEVER: u32 = 0;
/// XGETBV with 1 tells.
const ASK: u32 = 1;
/// Nothing tells.
const ALWAYS: u32 = 2;
/// The bytes that XSAVE writes for [`VECTORS`], in its standard format.
static AREA: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    /// Where [`Guarded`] functions enter, with a pointer to it on the stack, before the return address.
    pub fn ttalloc_guard();
    /// The place of a word in every thread's storage where the guard puts `rax`: its distance from the
    /// thread's pointer, in bytes.
    fn ttalloc_guard_rax() -> isize;
}

/// Code that gives the original function the `rax` that the hook's caller had, which a function that
/// returns nothing may leave alone: `mov rax, fs:[…]`.
pub fn restore_rax() -> Option<[u8; 9]> {
    // SAFETY: reads a word of the global offset table.
    let place = i32::try_from(unsafe { ttalloc_guard_rax() }).ok()?;
    let [a, b, c, d] = place.to_le_bytes();
    Some([0x64, 0x48, 0x8b, 0x04, 0x25, a, b, c, d])
}

/// Looks at what the processor has. To be called before any function is guarded.
pub fn prepare() {
    const OSXSAVE: u32 = 1 << 27;
    const XGETBV_1: u32 = 1 << 2;
    let leaf = __cpuid(1);
    if leaf.ecx & OSXSAVE == 0 {
        WIDTH.store(NEVER, Ordering::Relaxed);
        return;
    }
    let (enabled, high): (u32, u32);
    // SAFETY: the system has enabled XGETBV.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") enabled, out("edx") high, options(nomem, nostack));
    }
    let _ = high;
    if enabled & WIDE == 0 {
        WIDTH.store(NEVER, Ordering::Relaxed);
        return;
    }
    // The legacy region and the header; then each part where the processor has it.
    let mut area = 576;
    for part in 2..8 {
        if enabled & VECTORS & 1 << part != 0 {
            let place = __cpuid_count(0xd, part);
            area = area.max((place.ebx + place.eax) as usize);
        }
    }
    AREA.store(area.next_multiple_of(64), Ordering::Relaxed);
    let tells = __cpuid_count(0xd, 1).eax & XGETBV_1 != 0;
    WIDTH.store(if tells { ASK } else { ALWAYS }, Ordering::Relaxed);
}

global_asm!(
    ".pushsection .tbss.ttalloc_guard_slot,\"awT\",@nobits",
    ".balign 8",
    "ttalloc_guard_slot: .zero 8",
    ".popsection",
    ".pushsection .text.ttalloc_guard,\"ax\",@progbits",
    ".balign 16",
    ".hidden ttalloc_guard_rax",
    ".globl ttalloc_guard_rax",
    ".type ttalloc_guard_rax,@function",
    "ttalloc_guard_rax:",
    ".cfi_startproc",
    "mov rax, qword ptr [rip + ttalloc_guard_slot@GOTTPOFF]",
    "ret",
    ".cfi_endproc",
    ".size ttalloc_guard_rax, . - ttalloc_guard_rax",
    ".balign 16",
    ".hidden ttalloc_guard",
    ".globl ttalloc_guard",
    ".type ttalloc_guard,@function",
    "ttalloc_guard:",
    ".cfi_startproc",
    // [rsp]: the Guarded; [rsp + 8]: the return address; then the arguments on the stack.
    ".cfi_def_cfa rsp, 16",
    "push rbp",
    ".cfi_def_cfa_offset 24",
    ".cfi_offset rbp, -24",
    "mov rbp, rsp",
    ".cfi_def_cfa_register rbp",
    "push rax", // rbp - 8, later the result
    "push rcx", // rbp - 16
    "push rdx", // rbp - 24
    "push rsi", // rbp - 32
    "push rdi", // rbp - 40
    "push r8",  // rbp - 48
    "push r9",  // rbp - 56
    "push r10", // rbp - 64
    "push r11", // rbp - 72
    "mov rcx, qword ptr [rip + ttalloc_guard_slot@GOTTPOFF]",
    "mov qword ptr fs:[rcx], rax",
    "sub rsp, 24", // rbp - 80: whether XSAVE was used; rbp - 88: where
    "mov eax, dword ptr [rip + {width}]",
    "test eax, eax",
    "jz 2f",
    "cmp eax, 1",
    "jne 1f",
    "mov ecx, 1",
    "xgetbv",
    "test eax, {wide}",
    "jz 2f",
    // All vector and mask registers.
    "1:",
    "mov qword ptr [rbp - 80], 1",
    "sub rsp, qword ptr [rip + {area}]",
    "and rsp, -64",
    "xor eax, eax",
    // The header, of which XSAVE writes no more than it needs.
    "mov qword ptr [rsp + 512], rax",
    "mov qword ptr [rsp + 520], rax",
    "mov qword ptr [rsp + 528], rax",
    "mov qword ptr [rsp + 536], rax",
    "mov qword ptr [rsp + 544], rax",
    "mov qword ptr [rsp + 552], rax",
    "mov qword ptr [rsp + 560], rax",
    "mov qword ptr [rsp + 568], rax",
    "mov eax, {vectors}",
    "xor edx, edx",
    "xsave64 [rsp]",
    "jmp 3f",
    // The sixteen that SSE has.
    "2:",
    "mov qword ptr [rbp - 80], 0",
    "sub rsp, 256",
    "and rsp, -64",
    "movaps xmmword ptr [rsp], xmm0",
    "movaps xmmword ptr [rsp + 16], xmm1",
    "movaps xmmword ptr [rsp + 32], xmm2",
    "movaps xmmword ptr [rsp + 48], xmm3",
    "movaps xmmword ptr [rsp + 64], xmm4",
    "movaps xmmword ptr [rsp + 80], xmm5",
    "movaps xmmword ptr [rsp + 96], xmm6",
    "movaps xmmword ptr [rsp + 112], xmm7",
    "movaps xmmword ptr [rsp + 128], xmm8",
    "movaps xmmword ptr [rsp + 144], xmm9",
    "movaps xmmword ptr [rsp + 160], xmm10",
    "movaps xmmword ptr [rsp + 176], xmm11",
    "movaps xmmword ptr [rsp + 192], xmm12",
    "movaps xmmword ptr [rsp + 208], xmm13",
    "movaps xmmword ptr [rsp + 224], xmm14",
    "movaps xmmword ptr [rsp + 240], xmm15",
    "3:",
    "mov qword ptr [rbp - 88], rsp",
    // The arguments that lie on the stack, the last first.
    "mov r10, qword ptr [rbp + 8]",
    "mov rcx, qword ptr [r10 + 8]",
    "lea rax, [rcx * 8]",
    "sub rsp, rax",
    "and rsp, -16",
    "4:",
    "test rcx, rcx",
    "jz 5f",
    "mov rax, qword ptr [rbp + 16 + rcx * 8]",
    "mov qword ptr [rsp + rcx * 8 - 8], rax",
    "dec rcx",
    "jmp 4b",
    "5:",
    "mov rcx, qword ptr [rbp - 16]",
    "mov rdx, qword ptr [rbp - 24]",
    "call qword ptr [r10]",
    "mov qword ptr [rbp - 8], rax",
    "mov rsp, qword ptr [rbp - 88]",
    "cmp qword ptr [rbp - 80], 0",
    "je 6f",
    "mov eax, {vectors}",
    "xor edx, edx",
    "xrstor64 [rsp]",
    "jmp 7f",
    "6:",
    "movaps xmm0, xmmword ptr [rsp]",
    "movaps xmm1, xmmword ptr [rsp + 16]",
    "movaps xmm2, xmmword ptr [rsp + 32]",
    "movaps xmm3, xmmword ptr [rsp + 48]",
    "movaps xmm4, xmmword ptr [rsp + 64]",
    "movaps xmm5, xmmword ptr [rsp + 80]",
    "movaps xmm6, xmmword ptr [rsp + 96]",
    "movaps xmm7, xmmword ptr [rsp + 112]",
    "movaps xmm8, xmmword ptr [rsp + 128]",
    "movaps xmm9, xmmword ptr [rsp + 144]",
    "movaps xmm10, xmmword ptr [rsp + 160]",
    "movaps xmm11, xmmword ptr [rsp + 176]",
    "movaps xmm12, xmmword ptr [rsp + 192]",
    "movaps xmm13, xmmword ptr [rsp + 208]",
    "movaps xmm14, xmmword ptr [rsp + 224]",
    "movaps xmm15, xmmword ptr [rsp + 240]",
    "7:",
    "lea rsp, [rbp - 72]",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "pop rbp",
    ".cfi_def_cfa rsp, 16",
    ".cfi_restore rbp",
    "lea rsp, [rsp + 8]",
    ".cfi_def_cfa_offset 8",
    "ret",
    ".cfi_endproc",
    ".size ttalloc_guard, . - ttalloc_guard",
    ".popsection",
    width = sym WIDTH,
    area = sym AREA,
    vectors = const VECTORS,
    wide = const WIDE,
);

#[cfg(test)]
#[expect(clippy::multiple_unsafe_ops_per_block, reason = "what belongs together stands together")]
mod tests {
    use super::*;

    // `probe(hook, words, results)` calls the guard with every register that a call may spoil set to a
    // value of its own, and nine arguments, and writes what they are afterwards. `probe_original` stands
    // for a function that returns nothing and leaves `rax` alone: it is entered through what
    // `restore_rax` gives.
    global_asm!(
        ".pushsection .text.ttalloc_guard_test,\"ax\",@progbits",
        ".globl ttalloc_test_probe",
        ".hidden ttalloc_test_probe",
        "ttalloc_test_probe:",
        ".cfi_startproc",
        "push rbx",
        ".cfi_def_cfa_offset 16",
        ".cfi_offset rbx, -16",
        "push rbp",
        ".cfi_def_cfa_offset 24",
        ".cfi_offset rbp, -24",
        "mov rbp, rsp",
        ".cfi_def_cfa_register rbp",
        "push rdi", // rbp - 8: the Guarded
        "push rsi", // rbp - 16: the results
        "push rdx", // rbp - 24: whether to use wide registers
        "sub rsp, 8",
        "test rdx, rdx",
        "jz 2f",
        "mov rax, 0x5151515151515151",
        "vmovq xmm3, rax",
        "vpunpcklqdq xmm3, xmm3, xmm3",
        "vinsertf128 ymm3, ymm3, xmm3, 1",
        "2:",
        "mov rax, 0x1515151515151515",
        "movq xmm15, rax",
        "movq xmm0, rax",
        "push 109",
        "push 108",
        "push 107",
        "mov edi, 101",
        "mov esi, 102",
        "mov edx, 103",
        "mov ecx, 104",
        "mov r8d, 105",
        "mov r9d, 106",
        "mov r10d, 110",
        "mov r11d, 111",
        "mov eax, 112",
        "lea rbx, [rip + 3f]",
        "push rbx",
        "push qword ptr [rbp - 8]",
        "jmp ttalloc_guard",
        "3:",
        "mov rbx, qword ptr [rbp - 16]",
        "mov [rbx], rdi",
        "mov [rbx + 8], rsi",
        "mov [rbx + 16], rdx",
        "mov [rbx + 24], rcx",
        "mov [rbx + 32], r8",
        "mov [rbx + 40], r9",
        "mov [rbx + 48], r10",
        "mov [rbx + 56], r11",
        "mov [rbx + 64], rax",
        "movq [rbx + 72], xmm15",
        "movq [rbx + 80], xmm0",
        "cmp qword ptr [rbp - 24], 0",
        "jz 4f",
        "vextractf128 xmm3, ymm3, 1",
        "vmovq [rbx + 88], xmm3",
        "vzeroupper",
        "4:",
        "lea rsp, [rbp]",
        "pop rbp",
        ".cfi_def_cfa rsp, 16",
        "pop rbx",
        ".cfi_def_cfa_offset 8",
        "ret",
        ".cfi_endproc",
        ".popsection",
    );

    unsafe extern "C-unwind" {
        fn ttalloc_test_probe(hook: *const Guarded, results: *mut u64, wide: u64);
    }

    /// Spoils what a hook may spoil, and returns the sum of its arguments in other weights.
    extern "C-unwind" fn spoil(
        a: u64,
        b: u64,
        c: u64,
        d: u64,
        e: u64,
        f: u64,
        g: u64,
        h: u64,
        i: u64,
    ) -> u64 {
        assert!(std::ptr::from_ref(&a).is_aligned());
        let zero = [0_u8; 256];
        // SAFETY: all of these may be spoiled by any function.
        unsafe {
            asm!(
                "movdqu xmm0, [{zero}]", "movdqu xmm15, [{zero}]", "xor r10d, r10d",
                "xor r11d, r11d", zero = in(reg) zero.as_ptr(),
                out("xmm0") _, out("xmm15") _, out("r10") _, out("r11") _,
            );
            if std::is_x86_feature_detected!("avx") {
                asm!("vzeroall", out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                    out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _, out("xmm8") _,
                    out("xmm9") _, out("xmm10") _, out("xmm11") _, out("xmm12") _,
                    out("xmm13") _, out("xmm14") _, out("xmm15") _);
            }
        }
        [a, b, c, d, e, f, g, h, i].iter().zip(1..).map(|(value, weight)| value * weight).sum()
    }

    fn probe(hook: *const c_void, wide: bool) -> [u64; 12] {
        let guarded = Guarded { hook, stack_words: 3 };
        let mut results = [0; 12];
        // SAFETY: the hook takes nine words, of which three lie on the stack, and there is room for
        // twelve results.
        unsafe { ttalloc_test_probe(&raw const guarded, results.as_mut_ptr(), wide.into()) };
        results
    }

    /// What each register holds if nothing but `rax` is changed.
    fn kept(rax: u64, wide: bool) -> [u64; 12] {
        let vector = 0x1515_1515_1515_1515;
        let upper = if wide { 0x5151_5151_5151_5151 } else { 0 };
        [101, 102, 103, 104, 105, 106, 110, 111, rax, vector, vector, upper]
    }

    #[test]
    fn the_callers_registers_are_kept_and_all_arguments_arrive() {
        prepare();
        let sum = (1..=9).map(|weight| (100 + weight) * weight).sum();
        let hook = spoil as *const c_void;
        assert_eq!(probe(hook, false), kept(sum, false));
        if std::is_x86_feature_detected!("avx") {
            assert_eq!(probe(hook, true), kept(sum, true));
            // However it was found out what has to be kept.
            for width in [ALWAYS, ASK] {
                WIDTH.store(width, Ordering::Relaxed);
                assert_eq!(probe(hook, true), kept(sum, true));
                assert_eq!(probe(hook, false), kept(sum, false));
            }
            prepare();
        }
    }

    #[test]
    fn a_function_without_a_result_gets_the_callers_rax() {
        prepare();
        extern "C-unwind" fn hook() -> u64 {
            let code = restore_rax().unwrap();
            let size = 4096;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a new mapping, written within its size, made code, called as what it is, unmapped.
            unsafe {
                let page = libc::mmap(std::ptr::null_mut(), size, protection, flags, -1, 0);
                assert_ne!(page, libc::MAP_FAILED);
                let bytes = page.cast::<u8>();
                bytes.copy_from_nonoverlapping(code.as_ptr(), code.len());
                bytes.add(code.len()).write(0xc3);
                assert_eq!(libc::mprotect(page, size, libc::PROT_READ | libc::PROT_EXEC), 0);
                let original: extern "C" fn() -> u64 = std::mem::transmute(page);
                let rax = original();
                libc::munmap(page, size);
                rax
            }
        }
        assert_eq!(probe(hook as *const c_void, false), kept(112, false));
    }

    #[test]
    fn a_panic_passes_as_an_exception_does() {
        prepare();
        extern "C-unwind" fn hook() -> u64 {
            std::panic::resume_unwind(Box::new(7))
        }
        let thrown = std::panic::catch_unwind(|| probe(hook as *const c_void, false)).unwrap_err();
        assert_eq!(thrown.downcast_ref(), Some(&7));
    }
}
