//! Who refers to a function within its own object: by a call or jump, or by taking its address.

use std::arch::x86_64::{
    __m128i, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi8,
};

/// The bytes after a function's start that [`References::jumps_inside`] is about.
pub const HEAD: usize = 32;

/// What was found about one function.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct References {
    /// It is called, or jumped to, directly.
    pub called: bool,
    /// Its address is taken, in code or in a table such as a virtual one.
    pub pointed_at: bool,
    /// The lowest distance from its start to which a long jump leads, if that is within [`HEAD`]: what
    /// compilers split off a function may lead back into it.
    pub jumps_inside: Option<usize>,
}

/// A set of functions that references are looked for of.
pub struct Functions {
    /// Their addresses, in order.
    addresses: Vec<usize>,
    found: Vec<References>,
    /// Which 16-byte blocks of memory have one, by the low bits of their number.
    blocks: Box<[u64; 1024]>,
}

impl Functions {
    /// The set of those at these addresses.
    pub fn new(addresses: impl Iterator<Item = usize>) -> Functions {
        let mut addresses: Vec<_> = addresses.filter(|&address| address != 0).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let mut blocks = Box::new([0; 1024]);
        for &address in &addresses {
            for block in address >> 4..=(address + HEAD) >> 4 {
                blocks[block >> 6 & 1023] |= 1 << (block & 63);
            }
        }
        Functions { found: vec![References::default(); addresses.len()], addresses, blocks }
    }

    /// What was found about the function at `address`.
    pub fn references(&self, address: usize) -> References {
        let at = self.addresses.binary_search(&address).ok();
        at.and_then(|at| self.found.get(at)).copied().unwrap_or_default()
    }

    /// Looks at a word of data.
    pub fn word(&mut self, word: usize) {
        self.meet(word, |found, distance| found.pointed_at |= distance == 0);
    }

    /// Looks through code that lies at `address`. It is not decoded: bytes that happen to look like a
    /// call of a function are taken for one, at odds of one to millions.
    pub fn code(&mut self, code: &[u8], address: usize) {
        const CALL: u8 = 0xe8;
        const JUMP: u8 = 0xe9;
        const LONG: u8 = 0x0f;
        const LEA: u8 = 0x8d;
        let mut at = 0;
        while at < code.len() {
            // SAFETY: every x86-64 processor has SSE2.
            let mut candidates = unsafe { candidates(code, at) };
            while candidates != 0 {
                let here = at + candidates.trailing_zeros() as usize;
                candidates &= candidates - 1;
                let Some(&[first, second, a, b, c, d]) = window(code, here) else {
                    // A call may be the very last instruction.
                    if let Some(&[first @ (CALL | JUMP), a, b, c, d]) = window(code, here) {
                        let to = target(address + here + 5, [a, b, c, d]);
                        self.branch(first == CALL, to);
                    }
                    continue;
                };
                match first {
                    CALL | JUMP => {
                        let to = target(address + here + 5, [second, a, b, c]);
                        self.branch(first == CALL, to);
                    }
                    LONG if second & 0xf0 == 0x80 => {
                        self.branch(false, target(address + here + 6, [a, b, c, d]));
                    }
                    // lea reg, [rip + x]
                    LEA if second & 0xc7 == 5 => {
                        self.word(target(address + here + 6, [a, b, c, d]));
                    }
                    _ => {}
                }
            }
            at += 16;
        }
    }

    fn branch(&mut self, is_call: bool, to: usize) {
        self.meet(to, |found, distance| match distance {
            0 => found.called = true,
            _ if is_call => {}
            _ => {
                let lowest = found.jumps_inside.map_or(distance, |lowest| lowest.min(distance));
                found.jumps_inside = Some(lowest);
            }
        });
    }

    /// Calls `note` if `address` is in the first bytes of a function, with the distance.
    #[inline]
    fn meet(&mut self, address: usize, note: impl FnOnce(&mut References, usize)) {
        let block = address >> 4;
        if self.blocks[block >> 6 & 1023] >> (block & 63) & 1 == 0 {
            return;
        }
        let after = self.addresses.partition_point(|&start| start <= address);
        let Some(at) = after.checked_sub(1) else { return };
        let distance = address - self.addresses[at];
        if distance < HEAD {
            note(&mut self.found[at], distance);
        }
    }
}

fn target(next: usize, displacement: [u8; 4]) -> usize {
    next.wrapping_add_signed(i32::from_le_bytes(displacement) as isize)
}

/// The bytes at `at`, if there are so many.
fn window<const N: usize>(code: &[u8], at: usize) -> Option<&[u8; N]> {
    code.get(at..)?.first_chunk()
}

/// Which of the sixteen bytes at `at` may begin something of interest, as bits.
#[inline]
#[target_feature(enable = "sse2")]
fn candidates(code: &[u8], at: usize) -> u32 {
    const FIRST: [u8; 4] = [0xe8, 0xe9, 0x0f, 0x8d];
    let Some(bytes) = window::<16>(code, at) else {
        let rest = code.get(at..).unwrap_or_default();
        let bits = rest.iter().enumerate().filter(|(_, byte)| FIRST.contains(byte));
        return bits.fold(0, |bits, (place, _)| bits | 1 << place);
    };
    // SAFETY: sixteen readable bytes; the load needs no alignment.
    let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast::<__m128i>()) };
    let mut found = _mm_set1_epi8(0);
    for first in FIRST {
        found = _mm_or_si128(found, _mm_cmpeq_epi8(bytes, _mm_set1_epi8(first as i8)));
    }
    _mm_movemask_epi8(found) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relative(from: usize, to: usize) -> [u8; 4] {
        (to as i32 - from as i32).to_le_bytes()
    }

    #[test]
    fn every_way_to_refer_to_a_function_is_found() {
        const AT: usize = 0x1000;
        const ONE: usize = 0x5000;
        const OTHER: usize = 0x5010;
        for lead in [0, 3, 15, 16, 40] {
            let found = |code: &[u8]| {
                let code = [&vec![0x90; lead], code].concat();
                let mut functions = Functions::new([0, OTHER, ONE].into_iter());
                functions.code(&code, AT);
                assert_eq!(functions.references(OTHER), References::default());
                functions.references(ONE)
            };
            let next = |length: usize| AT + lead + length;
            let code =
                |opcode: &[u8], to: usize| [opcode, &relative(next(opcode.len() + 4), to)].concat();
            let called = References { called: true, ..References::default() };
            assert_eq!(found(&code(&[0xe8], ONE)), called);
            assert_eq!(found(&code(&[0xe9], ONE)), called);
            assert_eq!(found(&code(&[0x0f, 0x84], ONE)), called);
            let pointed_at = References { pointed_at: true, ..References::default() };
            assert_eq!(found(&code(&[0x48, 0x8d, 0x3d], ONE)), pointed_at);
            let inside = References { jumps_inside: Some(3), ..References::default() };
            assert_eq!(found(&code(&[0xe9], ONE + 3)), inside);
            // A call of something else that happens to lie there.
            assert_eq!(found(&code(&[0xe8], ONE + 3)), References::default());
            assert_eq!(found(&code(&[0xe8], AT)), References::default());
        }
    }

    #[test]
    fn words_of_data_may_be_pointers() {
        let mut functions = Functions::new([0x5000].into_iter());
        functions.word(0x5001);
        functions.word(0);
        assert_eq!(functions.references(0x5000), References::default());
        functions.word(0x5000);
        assert!(functions.references(0x5000).pointed_at);
        assert_eq!(functions.references(0x6000), References::default());
    }
}
