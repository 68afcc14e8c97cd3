//! Whether a function can be patched, and the code that stands in for the bytes that a jump replaces.
//!
//! A function is decoded whole before anything is touched. What cannot be moved without a change in
//! meaning is refused, for whatever reason stands in [`Refusal`].

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};
use ttalloc_ring::record::Refusal;

/// The bytes of the jump that is written over a function: `jmp rel32`.
pub const JUMP: usize = 5;
/// The most bytes that must make room for it: all of it but one, and the longest instruction.
const MOST_MOVED: usize = JUMP - 1 + 15;
/// The most bytes of a [`Stub`].
const MOST_STUB: usize = 160;
/// The most entries of a jump table that are looked at.
const MOST_ENTRIES: usize = 256;

/// How a function is to be patched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Where the jump goes: the function's start, or what follows its `endbr64`.
    pub at: usize,
    /// The bytes that must be there when it is written, and their number; whole instructions.
    pub moved: ([u8; MOST_MOVED], usize),
    /// Whether the callers may rely on registers that a call usually spoils, as gcc's `-fipa-ra` lets
    /// them if it knows all of what the function does. It can't know that of a function which calls
    /// another library or through a pointer.
    pub guarded: bool,
}

/// How an instruction is carried out at another address.
enum Move {
    /// As it is.
    Plain,
    /// With another displacement, which stands at this offset, for the same operand.
    Operand(usize, usize),
    /// By a jump to this address.
    Jump(usize),
    /// By a conditional jump to this address; the number is the condition's.
    Branch(u8, usize),
    /// By a jump to this function, with the return address that the call would have left: an exception
    /// that comes back must find the original function there.
    Call(usize),
    /// The same with a function whose address stands here.
    CallAt(usize),
}

/// Makes a plan for the function with this code at `address`. `memory` gives the eight bytes at an
/// address of its object, and None elsewhere.
pub fn plan(
    code: &[u8],
    address: usize,
    memory: &dyn Fn(usize) -> Option<u64>,
) -> Result<Plan, Refusal> {
    let mut at = address;
    let mut moved = 0;
    for instruction in Decoder::with_ip(64, code, address as u64, DecoderOptions::NONE).iter() {
        if instruction.code() == Code::Endbr64 && moved == 0 && at == address {
            at += instruction.len();
            continue;
        }
        how_to_move(&instruction, bytes_of(code, address, &instruction))?;
        moved += instruction.len();
        if moved >= JUMP {
            break;
        }
    }
    if moved < JUMP {
        return Err(Refusal::Short);
    }
    let guarded = look_through(code, address, at + moved, memory)?;
    let bytes = code.get(at - address..at - address + moved).ok_or(Refusal::Code)?;
    let mut plan = Plan { at, moved: ([0; MOST_MOVED], moved), guarded };
    plan.moved.0.get_mut(..moved).ok_or(Refusal::Code)?.copy_from_slice(bytes);
    Ok(plan)
}

/// The bytes of an instruction of this code.
fn bytes_of<'a>(code: &'a [u8], address: usize, instruction: &Instruction) -> &'a [u8] {
    let start = instruction.ip() as usize - address;
    code.get(start..start + instruction.len()).unwrap_or_default()
}

/// Looks at every instruction of a function whose bytes before `end` are to be moved, and refuses it if
/// any leads among them. Returns [`Plan::guarded`].
fn look_through(
    code: &[u8],
    address: usize,
    end: usize,
    memory: &dyn Fn(usize) -> Option<u64>,
) -> Result<bool, Refusal> {
    let inside = |target: usize| (address..end).contains(&target);
    let mut guarded = true;
    let mut has_table = false;
    for instruction in Decoder::with_ip(64, code, address as u64, DecoderOptions::NONE).iter() {
        if instruction.is_invalid() {
            return Err(Refusal::Code);
        }
        let near = near_target(&instruction);
        match instruction.flow_control() {
            FlowControl::Call => match near {
                // A function may call itself.
                Some(target) if target == address => {}
                Some(target) if inside(target) => return Err(Refusal::Target),
                Some(target) => guarded &= !is_elsewhere(target, memory),
                None => {}
            },
            FlowControl::IndirectCall => guarded = false,
            FlowControl::IndirectBranch => {
                has_table = true;
                let absolute = instruction.memory_displacement64() as usize;
                let is_table = instruction.op0_kind() == OpKind::Memory
                    && instruction.memory_base() == Register::None
                    && instruction.memory_index() != Register::None;
                let entry = |at: usize| memory(absolute + at * 8).map(|word| word as usize);
                if is_table && (0..MOST_ENTRIES).map_while(entry).any(inside) {
                    return Err(Refusal::Target);
                }
            }
            // To the very start, too: each round of a loop would look like a call.
            _ if near.is_some_and(inside) => return Err(Refusal::Target),
            _ => {}
        }
    }
    if !has_table {
        return Ok(guarded);
    }
    // Position-independent jump tables: the offsets of their targets from their own start.
    for instruction in Decoder::with_ip(64, code, address as u64, DecoderOptions::NONE).iter() {
        if instruction.code() != Code::Lea_r64_m || !instruction.is_ip_rel_memory_operand() {
            continue;
        }
        let table = instruction.memory_displacement64() as usize;
        let entry = |at: usize| {
            let offset = memory(table + at * 4)? as i32;
            Some(table.wrapping_add_signed(offset as isize))
        };
        if (0..MOST_ENTRIES).map_while(entry).any(inside) {
            return Err(Refusal::Target);
        }
    }
    Ok(guarded)
}

/// Where a branch or call with a target in itself leads.
fn near_target(instruction: &Instruction) -> Option<usize> {
    (instruction.op_count() > 0 && instruction.op0_kind() == OpKind::NearBranch64)
        .then(|| instruction.near_branch_target() as usize)
}

/// Whether a call of `target` leaves the object: for another one, or through the PLT, whose entries are
/// jumps through memory.
fn is_elsewhere(target: usize, memory: &dyn Fn(usize) -> Option<u64>) -> bool {
    const ENDBR64: u64 = 0xfa1e_0ff3;
    const JUMP_AT: u64 = 0x25ff;
    const BOUND_JUMP_AT: u64 = 0x25_fff2;
    let Some(word) = memory(target) else { return true };
    let word = if word & 0xffff_ffff == ENDBR64 { memory(target + 4) } else { Some(word) };
    word.is_some_and(|word| word & 0xffff == JUMP_AT || word & 0xff_ffff == BOUND_JUMP_AT)
}

/// How to carry an instruction out elsewhere.
fn how_to_move(instruction: &Instruction, bytes: &[u8]) -> Result<Move, Refusal> {
    if instruction.is_invalid() || bytes.is_empty() {
        return Err(Refusal::Code);
    }
    let operand = || instruction.memory_displacement64() as usize;
    let relative = instruction.is_ip_rel_memory_operand();
    match instruction.flow_control() {
        FlowControl::Next | FlowControl::Return | FlowControl::IndirectBranch => {
            if !relative {
                return Ok(Move::Plain);
            }
            let mut decoder = Decoder::with_ip(64, bytes, instruction.ip(), DecoderOptions::NONE);
            let instruction = decoder.decode();
            let offsets = decoder.get_constant_offsets(&instruction);
            if !offsets.has_displacement() || offsets.displacement_size() != 4 {
                return Err(Refusal::Instruction);
            }
            Ok(Move::Operand(offsets.displacement_offset(), operand()))
        }
        FlowControl::UnconditionalBranch => {
            near_target(instruction).map(Move::Jump).ok_or(Refusal::Instruction)
        }
        FlowControl::ConditionalBranch => {
            let target = near_target(instruction).ok_or(Refusal::Instruction)?;
            // Prefixes here are hints.
            let mut opcode = bytes.iter().skip_while(|&byte| matches!(byte, 0xf2 | 0x2e | 0x3e));
            match (opcode.next(), opcode.next()) {
                (Some(&short @ 0x70..=0x7f), _) => Ok(Move::Branch(short & 15, target)),
                (Some(0x0f), Some(&long @ 0x80..=0x8f)) => Ok(Move::Branch(long & 15, target)),
                _ => Err(Refusal::Instruction),
            }
        }
        // Either is as long as the jump, so it is the last to be moved, and returns behind that.
        FlowControl::Call if instruction.code() == Code::Call_rel32_64 => {
            near_target(instruction).map(Move::Call).ok_or(Refusal::Call)
        }
        FlowControl::IndirectCall if relative && bytes.starts_with(&[0xff]) => {
            Ok(Move::CallAt(operand()))
        }
        FlowControl::Call | FlowControl::IndirectCall => Err(Refusal::Call),
        FlowControl::Interrupt => Err(Refusal::Changed),
        _ => Err(Refusal::Instruction),
    }
}

impl Plan {
    /// The function's first instructions, made for `to`, and a jump to what follows them.
    pub fn write(&self, stub: &mut Stub) -> Result<(), Refusal> {
        let (bytes, length) = (&self.moved.0, self.moved.1);
        let code = bytes.get(..length).ok_or(Refusal::Code)?;
        for instruction in Decoder::with_ip(64, code, self.at as u64, DecoderOptions::NONE).iter() {
            let its = bytes_of(code, self.at, &instruction);
            let next = instruction.next_ip();
            match how_to_move(&instruction, its)? {
                Move::Plain => stub.push(its)?,
                Move::Operand(offset, target) => stub.push_with_operand(its, offset, target)?,
                Move::Jump(target) => stub.jump(target as u64)?,
                Move::Branch(condition, target) => {
                    // Past the jump, on the opposite condition.
                    stub.push(&[0x70 | condition ^ 1, JUMP_FAR as u8])?;
                    stub.jump(target as u64)?;
                }
                Move::Call(target) => stub.push_and_jump(next, target as u64)?,
                Move::CallAt(slot) => {
                    // push [rip + 6]; jmp [slot]
                    stub.push(&[0xff, 0x35, 6, 0, 0, 0])?;
                    stub.push_with_operand(&[0xff, 0x25, 0, 0, 0, 0], 2, slot)?;
                    stub.push(&next.to_le_bytes())?;
                }
            }
        }
        stub.jump((self.at + length) as u64)
    }
}

/// The bytes of a jump to anywhere.
const JUMP_FAR: usize = 14;

/// Code that is made for one address.
pub struct Stub {
    address: usize,
    code: [u8; MOST_STUB],
    length: usize,
}

impl Stub {
    /// An empty one, to be put at `address`.
    pub fn at(address: usize) -> Stub {
        Stub { address, code: [0; MOST_STUB], length: 0 }
    }

    /// Its code so far.
    pub fn code(&self) -> &[u8] {
        self.code.get(..self.length).unwrap_or_default()
    }

    /// The address of what comes next.
    pub fn next(&self) -> usize {
        self.address + self.length
    }

    /// Adds bytes as they are.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let end = self.length + bytes.len();
        let room = self.code.get_mut(self.length..end).ok_or(Refusal::Instruction)?;
        room.copy_from_slice(bytes);
        self.length = end;
        Ok(())
    }

    /// Adds an instruction whose displacement, at `offset`, is to lead to `target`.
    fn push_with_operand(
        &mut self,
        bytes: &[u8],
        offset: usize,
        target: usize,
    ) -> Result<(), Refusal> {
        let next = self.next() + bytes.len();
        let displacement = (target as i64).wrapping_sub(next as i64);
        let displacement = i32::try_from(displacement).map_err(|_| Refusal::Reach)?;
        let start = self.length + offset;
        self.push(bytes)?;
        let room = self.code.get_mut(start..start + 4).ok_or(Refusal::Instruction)?;
        room.copy_from_slice(&displacement.to_le_bytes());
        Ok(())
    }

    /// Adds a jump to anywhere: `jmp [rip]`, and the address.
    pub fn jump(&mut self, target: u64) -> Result<(), Refusal> {
        self.push(&[0xff, 0x25, 0, 0, 0, 0])?;
        self.push(&target.to_le_bytes())
    }

    /// Adds a jump to the address that stands at `place`.
    #[cfg(feature = "frida-gum")]
    pub fn jump_at(&mut self, place: usize) -> Result<(), Refusal> {
        self.push_with_operand(&[0xff, 0x25, 0, 0, 0, 0], 2, place)
    }

    /// Adds code that pushes a word and jumps, and changes no register: `push [rip + 6]`,
    /// `jmp [rip + 8]`, and both words.
    pub fn push_and_jump(&mut self, word: u64, target: u64) -> Result<(), Refusal> {
        self.push(&[0xff, 0x35, 6, 0, 0, 0, 0xff, 0x25, 8, 0, 0, 0])?;
        self.push(&word.to_le_bytes())?;
        self.push(&target.to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: usize = 0x40_0000;

    fn planned(code: &[u8]) -> Result<Plan, Refusal> {
        let code = code.to_vec();
        let own = code.clone();
        plan(&code, START, &move |address| {
            let bytes = own.get(address.checked_sub(START)?..)?;
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(bytes) {
                *to = *from;
            }
            Some(u64::from_le_bytes(word))
        })
    }

    fn refusal(code: &[u8]) -> Refusal {
        planned(code).unwrap_err()
    }

    fn stub(plan: &Plan, address: usize) -> Result<Vec<u8>, Refusal> {
        let mut stub = Stub::at(address);
        plan.write(&mut stub).map(|()| stub.code().to_vec())
    }

    /// The instructions of some code as iced prints their codes.
    fn codes(code: &[u8], address: usize) -> Vec<Code> {
        Decoder::with_ip(64, code, address as u64, DecoderOptions::NONE)
            .iter()
            .map(|instruction| instruction.code())
            .collect()
    }

    #[test]
    fn an_ordinary_prologue_is_copied() {
        // push rbp; mov rbp, rsp; push rbx; nop; ret
        let code = [0x55, 0x48, 0x89, 0xe5, 0x53, 0x90, 0xc3];
        let plan = planned(&code).unwrap();
        assert_eq!((plan.at, plan.moved.1, plan.guarded), (START, 5, true));
        let stub = stub(&plan, 0x50_0000).unwrap();
        assert_eq!(stub[..5], code[..5]);
        assert_eq!(stub[5..11], [0xff, 0x25, 0, 0, 0, 0]);
        assert_eq!(stub[11..], (START as u64 + 5).to_le_bytes());
    }

    #[test]
    fn the_jump_comes_after_endbr64() {
        let code = [0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x48, 0x89, 0xe5, 0x53, 0xc3];
        let plan = planned(&code).unwrap();
        assert_eq!((plan.at, plan.moved.1), (START + 4, 5));
        // It takes no part in the room that there is.
        assert_eq!(refusal(&code[..8]), Refusal::Short);
    }

    #[test]
    fn what_is_short_is_refused() {
        assert_eq!(refusal(&[]), Refusal::Short);
        assert_eq!(refusal(&[0xc3]), Refusal::Short);
        // xor eax, eax; ret
        assert_eq!(refusal(&[0x31, 0xc0, 0xc3]), Refusal::Short);
        // mov rax, rdi; ret
        assert_eq!(refusal(&[0x48, 0x89, 0xf8, 0xc3]), Refusal::Short);
    }

    #[test]
    fn a_loop_that_begins_in_the_first_bytes_is_refused() {
        // xor eax, eax; inc eax; cmp eax, edi; jne -6; ret
        let inside = [0x31, 0xc0, 0xff, 0xc0, 0x39, 0xf8, 0x75, 0xfa, 0xc3];
        assert_eq!(refusal(&inside), Refusal::Target);
        // inc eax; cmp eax, edi; nop; jne to the very start; ret
        let whole = [0xff, 0xc0, 0x39, 0xf8, 0x90, 0x75, 0xf9, 0xc3];
        assert_eq!(refusal(&whole), Refusal::Target);
        // The same loop after the first bytes: push rbp; mov rbp, rsp; push rbx; then the loop.
        let later = [&[0x55, 0x48, 0x89, 0xe5, 0x53][..], &inside].concat();
        assert!(planned(&later).is_ok());
    }

    #[test]
    fn a_branch_that_skips_within_the_first_bytes_is_refused() {
        // test edi, edi; je over nothing; nop; ret
        assert_eq!(refusal(&[0x85, 0xff, 0x74, 0x00, 0x90, 0xc3]), Refusal::Target);
        // Over a nop, it leads behind them.
        assert!(planned(&[0x85, 0xff, 0x74, 0x01, 0x90, 0xc3]).is_ok());
    }

    #[test]
    fn a_call_in_the_first_bytes_leaves_the_original_return_address() {
        // sub rsp, 8; call +0x100; add rsp, 8; ret
        let code = [0x48, 0x83, 0xec, 8, 0xe8, 0, 1, 0, 0, 0x48, 0x83, 0xc4, 8, 0xc3];
        let plan = planned(&code).unwrap();
        assert_eq!(plan.moved.1, 9);
        let stub = stub(&plan, 0x7000_0000).unwrap();
        assert_eq!(
            codes(&stub[..16], 0)[..3],
            [Code::Sub_rm64_imm8, Code::Push_rm64, Code::Jmp_rm64]
        );
        assert_eq!(stub[16..24], (START as u64 + 9).to_le_bytes());
        assert_eq!(stub[24..32], (START as u64 + 9 + 0x100).to_le_bytes());
    }

    #[test]
    fn a_call_through_memory_does_too() {
        // sub rsp, 8; call [rip + 0x100]; add rsp, 8; ret
        let code = [0x48, 0x83, 0xec, 8, 0xff, 0x15, 0, 1, 0, 0, 0x48, 0x83, 0xc4, 8, 0xc3];
        let plan = planned(&code).unwrap();
        let stub = stub(&plan, START + 0x1000).unwrap();
        let moved = Decoder::with_ip(64, &stub[10..], START as u64 + 0x100a, 0).decode();
        assert_eq!(moved.code(), Code::Jmp_rm64);
        assert_eq!(moved.memory_displacement64(), START as u64 + 10 + 0x100);
        assert_eq!(stub[16..24], (START as u64 + 10).to_le_bytes());
        assert!(!plan.guarded, "nobody can know what it calls");
    }

    #[test]
    fn a_call_through_a_register_is_refused() {
        // mov rax, [rdi]; call rax; ret
        assert_eq!(refusal(&[0x48, 0x8b, 0x07, 0xff, 0xd0, 0xc3]), Refusal::Call);
    }

    #[test]
    fn what_cannot_be_moved_is_refused() {
        // jrcxz +0x10; nop...
        assert_eq!(refusal(&[0xe3, 0x10, 0x90, 0x90, 0x90, 0xc3]), Refusal::Instruction);
        // A breakpoint.
        assert_eq!(refusal(&[0xcc, 0x48, 0x89, 0xe5, 0x53, 0xc3]), Refusal::Changed);
        // Not in 64-bit mode.
        assert_eq!(refusal(&[0x06, 0x90, 0x90, 0x90, 0x90, 0xc3]), Refusal::Code);
        // Nor further on.
        assert_eq!(refusal(&[0x55, 0x48, 0x89, 0xe5, 0x53, 0x06, 0xc3]), Refusal::Code);
    }

    #[test]
    fn an_operand_relative_to_the_code_keeps_its_meaning() {
        // mov rax, [rip + 0x1000]; ret
        let code = [0x48, 0x8b, 0x05, 0, 0x10, 0, 0, 0xc3];
        let plan = planned(&code).unwrap();
        let address = START + 0x20_0000;
        let moved = stub(&plan, address).unwrap();
        let instruction = Decoder::with_ip(64, &moved, address as u64, 0).decode();
        assert_eq!(instruction.memory_displacement64(), START as u64 + 7 + 0x1000);
        // mov dword ptr [rip + 0x1000], 5: here the displacement isn't at the end.
        let code = [0xc7, 0x05, 0, 0x10, 0, 0, 5, 0, 0, 0, 0xc3];
        let moved = stub(&planned(&code).unwrap(), address).unwrap();
        let instruction = Decoder::with_ip(64, &moved, address as u64, 0).decode();
        assert_eq!(instruction.memory_displacement64(), START as u64 + 10 + 0x1000);
        assert_eq!(instruction.immediate32(), 5);
        assert_eq!(stub(&plan, START + (3 << 30)), Err(Refusal::Reach));
    }

    #[test]
    fn branches_in_the_first_bytes_lead_where_they_did() {
        // test rdi, rdi; je +0x20; nop; ret, and more after it
        let mut code = vec![0x48, 0x85, 0xff, 0x74, 0x20, 0x90, 0xc3];
        code.resize(0x40, 0x90);
        let moved = stub(&planned(&code).unwrap(), 0x7000_0000).unwrap();
        // jne past the jump; jmp to where je led
        assert_eq!(moved[3..5], [0x75, 14]);
        assert_eq!(moved[11..19], (START as u64 + 5 + 0x20).to_le_bytes());
        assert_eq!(moved[25..33], (START as u64 + 5).to_le_bytes());
        // The long form, and a plain jump: a function that is nothing else.
        code.splice(3..5, [0x0f, 0x84, 0x20, 0, 0, 0]);
        let moved = stub(&planned(&code).unwrap(), 0x7000_0000).unwrap();
        assert_eq!(moved[3..5], [0x75, 14]);
        let moved = stub(&planned(&[0xe9, 0, 2, 0, 0]).unwrap(), 0x7000_0000).unwrap();
        assert_eq!(moved[6..14], (START as u64 + 5 + 0x200).to_le_bytes());
    }

    #[test]
    fn a_jump_table_that_leads_into_the_first_bytes_is_refused() {
        // push rbp; mov rbp, rsp; push rbx; lea rax, [rip + table]; movsxd rdx, [rax + rdi * 4];
        // add rdx, rax; jmp rdx; table: one offset
        let with_entry = |entry: i32| {
            let mut code = vec![0x55, 0x48, 0x89, 0xe5, 0x53];
            code.extend([0x48, 0x8d, 0x05, 9, 0, 0, 0]);
            code.extend([0x48, 0x63, 0x14, 0xb8, 0x48, 0x01, 0xc2, 0xff, 0xe2]);
            assert_eq!(code.len(), 21);
            let table = START + code.len();
            code.extend(entry.to_le_bytes());
            let function = code[..21].to_vec();
            plan(&function, START, &move |address| {
                let bytes = code.get(address.checked_sub(START)?..)?;
                (address >= table || bytes.len() >= 8).then(|| {
                    let mut word = [0; 8];
                    word.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
                    u64::from_le_bytes(word)
                })
            })
        };
        assert_eq!(with_entry(-20), Err(Refusal::Target));
        assert!(with_entry(-9).is_ok());
    }

    #[test]
    fn a_function_that_calls_other_libraries_needs_no_guard() {
        // push rbp; mov rbp, rsp; push rbx; call into code that begins with `first`; ret; that code
        let calling = |first: &[u8]| {
            let mut code = vec![0x55, 0x48, 0x89, 0xe5, 0x53, 0xe8, 1, 0, 0, 0, 0xc3];
            code.extend(first);
            code.resize(32, 0x90);
            planned(&code).unwrap().guarded
        };
        assert!(calling(&[0x55]));
        // PLT entries: jmp [rip + x], with endbr64, with a bnd prefix.
        assert!(!calling(&[0xff, 0x25, 0, 0, 0, 0]));
        assert!(!calling(&[0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0x25, 0, 0, 0, 0]));
        assert!(!calling(&[0xf3, 0x0f, 0x1e, 0xfa, 0xf2, 0xff, 0x25, 0, 0, 0, 0]));
        // A call of itself is no reason.
        let recursive = [0x55, 0x48, 0x89, 0xe5, 0x53, 0xe8, 0xf6, 0xff, 0xff, 0xff, 0xc3];
        assert!(planned(&recursive).unwrap().guarded);
        // Through a pointer: call [rdi]
        let virtual_call = [0x55, 0x48, 0x89, 0xe5, 0x53, 0xff, 0x17, 0xc3];
        assert!(!planned(&virtual_call).unwrap().guarded);
    }
}
