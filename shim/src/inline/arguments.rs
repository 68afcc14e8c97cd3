//! Which arguments a function uses. One that it ignores need not be passed by callers that know the
//! function: clang leaves whatever the register holds (its dead argument elimination), also where the
//! function itself stays as it was declared. A hook must not take that for an argument.

use std::collections::BTreeSet;

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, OpAccess, OpKind, Register,
};

/// The registers of the first six words of arguments (System V x86-64 ABI, 3.2.3).
const REGISTERS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];
/// The most instructions that are looked at for one argument.
const MOST_INSTRUCTIONS: usize = 20_000;
/// How deep functions are followed to which an argument is handed on.
const MOST_CALLS: usize = 8;

/// The words of a role's arguments that its hook needs; None if that is all of them.
fn needed(role: &str) -> Option<&'static [usize]> {
    Some(match role {
        "allocate" | "deallocate" => &[0, 1],
        "deallocate_all" | "clear" | "allocator_end" => &[0],
        "create" => &[1, 2, 3, 4],
        "create_at_address" => &[1, 2, 3, 5],
        "view" => &[],
        "mesh_open" | "mesh_close" | "device_close" => &[0],
        "mesh_impl_open" | "mesh_impl_close" => &[1],
        "override_state" | "add_kernel" | "add_circular_buffer" | "validate_region" => &[0, 1],
        "load_sub_devices" | "clear_sub_devices" | "reshape" | "program_end" => &[0],
        "plan" | "unplan" | "compile" | "enqueue" => &[1],
        "lay_out_circular" | "lay_out_dataflow" | "lay_out_scratchpads" => &[0],
        "circular_buffer" => &[1, 2, 3, 4, 5],
        "mark_address" | "enlist" => &[0, 1, 2],
        "launch" | "release_trace" => &[0, 1],
        "begin_trace" | "end_trace" | "replay_trace" => &[0, 2],
        "begin_new_trace" => &[0],
        "load_binaries" | "global_semaphore" | "global_circular_buffer" | "hybrid" => &[],
        _ => return None,
    })
}

/// Whether the function at `address` uses all that a hook of `role`, with so many words of arguments,
/// has to know. `code` gives the code from an address of its object on.
pub fn are_used<'a>(
    role: &str,
    words: usize,
    address: usize,
    code: &dyn Fn(usize) -> Option<&'a [u8]>,
) -> bool {
    let is_used = |word: usize| {
        let Some(&register) = REGISTERS.get(word) else { return true };
        let mut left = MOST_INSTRUCTIONS;
        is_register_used(register, address, code, MOST_CALLS, &mut left)
    };
    match needed(role) {
        Some(needed) => needed.iter().all(|&word| is_used(word)),
        None => (0..words).all(is_used),
    }
}

/// Whether some way through the function at `address` reads a register before it writes it.
fn is_register_used<'a>(
    register: Register,
    address: usize,
    code: &dyn Fn(usize) -> Option<&'a [u8]>,
    calls: usize,
    left: &mut usize,
) -> bool {
    let mut information = InstructionInfoFactory::new();
    let mut seen = BTreeSet::new();
    let mut ways = vec![address];
    while let Some(start) = ways.pop() {
        let Some(code_here) = code(start) else { continue };
        let mut decoder = Decoder::with_ip(64, code_here, start as u64, DecoderOptions::NONE);
        while decoder.can_decode() && *left > 0 && seen.insert(decoder.ip()) {
            *left -= 1;
            let instruction = decoder.decode();
            let is_near =
                instruction.op_count() > 0 && instruction.op0_kind() == OpKind::NearBranch64;
            let target = is_near.then(|| instruction.near_branch_target() as usize);
            let mut is_written = false;
            for used in information.info(&instruction).used_registers() {
                if used.register().full_register() != register {
                    continue;
                }
                match used.access() {
                    OpAccess::Write => is_written |= used.register().size() >= 4,
                    OpAccess::None | OpAccess::CondWrite | OpAccess::NoMemAccess => {}
                    _ => return true,
                }
            }
            if instruction.is_invalid() || is_written {
                break;
            }
            match instruction.flow_control() {
                FlowControl::Next => {}
                FlowControl::ConditionalBranch => ways.extend(target),
                FlowControl::UnconditionalBranch => {
                    ways.extend(target);
                    break;
                }
                // Handed on, perhaps; after the call nobody relies on it.
                FlowControl::Call if instruction.code() == Code::Call_rel32_64 => {
                    let Some(callee) = target else { break };
                    if code(callee).is_none() {
                        return true;
                    }
                    if calls > 0 && is_register_used(register, callee, code, calls - 1, left) {
                        return true;
                    }
                    break;
                }
                // To whom can't be told: another library, or a table of cases within the function.
                FlowControl::IndirectCall | FlowControl::IndirectBranch => return true,
                _ => break,
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: usize = 0x1000;

    fn uses(register: Register, code: &[u8]) -> bool {
        let code = |address: usize| code.get(address.checked_sub(START)?..);
        is_register_used(register, START, &code, MOST_CALLS, &mut MOST_INSTRUCTIONS.clone())
    }

    #[test]
    fn an_argument_is_used_if_it_is_read_on_any_way() {
        // mov rax, rdi; ret
        let code = [0x48, 0x89, 0xf8, 0xc3];
        assert!(uses(Register::RDI, &code));
        assert!(!uses(Register::RSI, &code));
        // xor esi, esi; mov rax, rsi; ret
        assert!(!uses(Register::RSI, &[0x31, 0xf6, 0x48, 0x89, 0xf0, 0xc3]));
        // test edi, edi; je +3; xor esi, esi; ret; mov rax, rsi; ret
        let code = [0x85, 0xff, 0x74, 3, 0x31, 0xf6, 0xc3, 0x48, 0x89, 0xf0, 0xc3];
        assert!(uses(Register::RSI, &code));
        // The same, but it is written on the other way too.
        let code = [0x85, 0xff, 0x74, 3, 0x31, 0xf6, 0xc3, 0x31, 0xf6, 0xc3];
        assert!(!uses(Register::RSI, &code));
        // A loop ends.
        assert!(!uses(Register::RSI, &[0xeb, 0xfe]));
    }

    #[test]
    fn an_argument_that_is_handed_on_is_used_if_it_is_there() {
        // call +1; ret; then what is called
        let calling = |callee: &[u8]| [&[0xe8, 1, 0, 0, 0, 0xc3][..], callee].concat();
        assert!(uses(Register::RSI, &calling(&[0x48, 0x89, 0xf0, 0xc3])));
        assert!(!uses(Register::RSI, &calling(&[0x48, 0x89, 0xf8, 0xc3])));
        // What is called lies elsewhere, or can't be told.
        assert!(uses(Register::RSI, &[0xe8, 0, 1, 0, 0, 0xc3]));
        assert!(uses(Register::RSI, &[0xff, 0xd0, 0xc3]));
        // jmp +0: to what follows, as a last call
        assert!(uses(Register::RSI, &[0xe9, 0, 0, 0, 0, 0x48, 0x89, 0xf0, 0xc3]));
        assert!(!uses(Register::RSI, &[0xe9, 0, 0, 0, 0, 0x48, 0x89, 0xf8, 0xc3]));
    }

    #[test]
    fn what_a_role_needs_is_known() {
        // Reads its first argument only.
        let code = [0x48, 0x89, 0xf8, 0xc3];
        let code = |address: usize| code.get(address.checked_sub(START)?..);
        assert!(are_used("mesh_close", 1, START, &code));
        assert!(!are_used("mesh_impl_close", 2, START, &code));
        assert!(are_used("a role that is new", 1, START, &code));
        assert!(!are_used("a role that is new", 2, START, &code));
    }
}
