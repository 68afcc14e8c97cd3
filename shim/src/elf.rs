//! The loaded objects of this process, and what their dynamic symbol tables define.
//!
//! `dlsym` would not do: Python loads the runtime with RTLD_LOCAL, so neither RTLD_NEXT nor RTLD_DEFAULT
//! finds it, and a failed `dlsym` leaves a message for the program's `dlerror`. Reading the tables that
//! the dynamic linker itself uses (System V gABI, chapter 5; GNU hash table) has no such effect.

use std::ffi::{CStr, c_int, c_void};
use std::slice;

use libc::{Elf64_Phdr, Elf64_Rela, Elf64_Sym, dl_phdr_info};

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_NOTE: u32 = 4;
const DT_NULL: i64 = 0;
const DT_PLTRELSZ: i64 = 2;
const DT_HASH: i64 = 4;
const DT_SYMBOLIC: i64 = 16;
const DT_FLAGS: i64 = 30;
const DF_SYMBOLIC: usize = 2;
const PF_X: u32 = 1;
const PF_W: u32 = 2;
const PT_GNU_RELRO: u32 = 0x6474_e552;
const STV_PROTECTED: u8 = 3;
const DT_STRTAB: i64 = 5;
const DT_SYMTAB: i64 = 6;
const DT_RELA: i64 = 7;
const DT_RELASZ: i64 = 8;
const DT_JMPREL: i64 = 23;
const DT_GNU_HASH: i64 = 0x6fff_fef5;
const R_X86_64_GLOB_DAT: u32 = 6;
const R_X86_64_JUMP_SLOT: u32 = 7;
const SHN_UNDEF: u16 = 0;
const NT_GNU_BUILD_ID: u32 = 3;

/// One loaded object: an executable or a shared library.
#[derive(Clone, Copy)]
pub struct Object<'a> {
    /// Its path as the dynamic linker knows it; empty for the program itself.
    pub path: &'a CStr,
    base: usize,
    headers: &'a [Elf64_Phdr],
}

/// Calls `visit` for every loaded object in the order of loading until it returns something.
///
/// `visit` runs under the dynamic linker's lock: it must not load or look up anything through it.
pub fn find<T>(mut visit: impl FnMut(&Object) -> Option<T>) -> Option<T> {
    struct State<'a, T> {
        visit: &'a mut dyn FnMut(&Object) -> Option<T>,
        found: Option<T>,
    }

    unsafe extern "C" fn each<T>(info: *mut dl_phdr_info, _: usize, state: *mut c_void) -> c_int {
        // SAFETY: `state` is the pointer given to dl_iterate_phdr below, to a live State<T>.
        let state = unsafe { &mut *state.cast::<State<T>>() };
        // SAFETY: dl_iterate_phdr passes a valid description, which lives during this call.
        let info = unsafe { &*info };
        // SAFETY: the name is a C string of the dynamic linker, never null, as long-lived as `info`.
        let path = unsafe { CStr::from_ptr(info.dlpi_name) };
        // SAFETY: the dynamic linker counts `dlpi_phnum` headers at `dlpi_phdr`.
        let headers = unsafe { slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
        let object = Object { path, base: info.dlpi_addr as usize, headers };
        state.found = (state.visit)(&object);
        c_int::from(state.found.is_some())
    }

    let mut state = State { visit: &mut visit, found: None };
    // SAFETY: `each` matches the callback's type and gets the State it expects, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(each::<T>), (&raw mut state).cast()) };
    state.found
}

/// How many objects have been loaded so far, those that are gone again included.
pub fn loads() -> u64 {
    unsafe extern "C" fn first(info: *mut dl_phdr_info, _: usize, loads: *mut c_void) -> c_int {
        // SAFETY: dl_iterate_phdr passes a valid description.
        let adds = unsafe { (*info).dlpi_adds };
        // SAFETY: `loads` is the pointer given to dl_iterate_phdr below.
        unsafe { *loads.cast::<u64>() = adds };
        1
    }
    let mut loads = 0_u64;
    // SAFETY: `first` matches the callback's type and gets the number it expects.
    unsafe { libc::dl_iterate_phdr(Some(first), (&raw mut loads).cast()) };
    loads
}

impl<'a> Object<'a> {
    /// The same for as long as the object stays loaded, which the caller must see to.
    ///
    /// # Safety
    /// The object must stay loaded while the result is used.
    pub unsafe fn lasting(&self) -> Object<'static> {
        // SAFETY: the dynamic linker keeps the name as long as the object.
        let path = unsafe { CStr::from_ptr(self.path.as_ptr()) };
        // SAFETY: so it does the headers.
        let headers = unsafe { slice::from_raw_parts(self.headers.as_ptr(), self.headers.len()) };
        Object { path, base: self.base, headers }
    }

    /// A number by which it can be told from others.
    pub fn identity(&self) -> usize {
        let name = self.path.as_ptr() as usize;
        (self.base ^ (self.headers.as_ptr() as usize).rotate_left(17) ^ name.rotate_left(34)) | 1
    }

    /// What its addresses are counted from.
    pub fn base(&self) -> usize {
        self.base
    }

    /// Its program headers.
    pub fn headers(&self) -> &'a [Elf64_Phdr] {
        self.headers
    }

    /// Whether its calls of its own functions can't be interposed.
    pub fn is_symbolic(&self) -> bool {
        self.dynamic()
            .any(|(tag, value)| tag == DT_SYMBOLIC || tag == DT_FLAGS && value & DF_SYMBOLIC != 0)
    }

    /// Its code.
    pub fn code(&self) -> impl Iterator<Item = &'a [u8]> {
        self.loaded(|flags| flags & PF_X != 0)
    }

    /// What is neither code nor writable; where the linker made no difference, all that isn't writable.
    pub fn constants(&self) -> impl Iterator<Item = &'a [u8]> {
        let is_constant = |flags| flags & (PF_W | PF_X) == 0;
        let has_constants = self.loaded(is_constant).next().is_some();
        self.loaded(move |flags| is_constant(flags) || !has_constants && flags & PF_W == 0)
    }

    /// The words of its data that the dynamic linker writes once, such as virtual tables.
    pub fn relocated_words(&self) -> impl Iterator<Item = usize> {
        const WORD: usize = size_of::<usize>();
        self.segments(PT_GNU_RELRO).flat_map(|(start, size)| {
            let first = start.next_multiple_of(WORD);
            // SAFETY: the segment lies in a loaded one, and stays readable.
            (first..(start + size).saturating_sub(WORD - 1))
                .step_by(WORD)
                .map(|at| unsafe { read(at) })
        })
    }

    /// How the page at `address` may be used (PROT_READ and so on), by its segment.
    pub fn protection(&self, address: usize) -> Option<c_int> {
        let header = self.headers.iter().find(|header| {
            let start = self.base + header.p_vaddr as usize;
            header.p_type == PT_LOAD && (start..start + header.p_memsz as usize).contains(&address)
        })?;
        let flag = |flag, protection| if header.p_flags & flag != 0 { protection } else { 0 };
        Some(flag(4, libc::PROT_READ) | flag(PF_W, libc::PROT_WRITE) | flag(PF_X, libc::PROT_EXEC))
    }

    /// The eight bytes at an address in a segment of the file that isn't written to.
    pub fn constant(&self, address: usize) -> Option<u64> {
        let is_there = |header: &&Elf64_Phdr| {
            let start = self.base + header.p_vaddr as usize;
            let end = start + (header.p_filesz as usize).saturating_sub(7);
            header.p_type == PT_LOAD
                && header.p_flags & PF_W == 0
                && (start..end).contains(&address)
        };
        self.headers.iter().find(is_there)?;
        // SAFETY: in a loaded, readable segment, as was just found.
        Some(unsafe { read(address) })
    }

    /// The bytes of loaded segments with such flags, as far as they come from the file.
    fn loaded(&self, fits: impl Fn(u32) -> bool) -> impl Iterator<Item = &'a [u8]> {
        let base = self.base;
        let loaded = move |header: &&Elf64_Phdr| {
            header.p_type == PT_LOAD && header.p_flags & 4 != 0 && fits(header.p_flags)
        };
        self.headers.iter().filter(loaded).map(move |header| {
            let start = (base + header.p_vaddr as usize) as *const u8;
            // SAFETY: a loaded, readable segment, of an object that stays loaded.
            unsafe { slice::from_raw_parts(start, header.p_filesz as usize) }
        })
    }

    /// Whether `address` lies in it.
    pub fn contains(&self, address: usize) -> bool {
        self.segments(PT_LOAD).any(|(start, size)| (start..start + size).contains(&address))
    }

    /// Its GNU build id.
    pub fn build_id(&self) -> Option<&[u8]> {
        self.segments(PT_NOTE).find_map(|(start, size)| {
            // SAFETY: a PT_NOTE segment lies in a loaded, readable one, and the object is not unloaded
            // while dl_iterate_phdr's lock is held.
            build_id(unsafe { slice::from_raw_parts(start as *const u8, size) })
        })
    }

    /// Its dynamic symbols, if it has a hash table for them.
    pub fn symbols(&self) -> Option<Symbols> {
        let (mut names, mut symbols, mut hash) = (0, 0, None);
        for (tag, value) in self.dynamic() {
            match tag {
                DT_STRTAB => names = self.relocated(value),
                DT_SYMTAB => symbols = self.relocated(value),
                DT_GNU_HASH => hash = Some(Hash::Gnu(self.relocated(value))),
                DT_HASH if hash.is_none() => hash = Some(Hash::Sysv(self.relocated(value))),
                _ => {}
            }
        }
        let hash = hash.filter(|_| names != 0 && symbols != 0)?;
        Some(Symbols { base: self.base, names, symbols, hash })
    }

    /// Where this object's own calls of the function `name` go: to what the dynamic linker bound them
    /// to, or, if it has not yet, to a stub that lets it.
    pub fn bound(&self, name: &str) -> Option<usize> {
        let symbols = self.symbols()?;
        let (mut tables, mut sizes) = ([0; 2], [0; 2]);
        for (tag, value) in self.dynamic() {
            match tag {
                DT_JMPREL => tables[0] = self.relocated(value),
                DT_PLTRELSZ => sizes[0] = value,
                DT_RELA => tables[1] = self.relocated(value),
                DT_RELASZ => sizes[1] = value,
                _ => {}
            }
        }
        tables.into_iter().zip(sizes).filter(|(table, _)| *table != 0).find_map(|(table, size)| {
            (0..size / size_of::<Elf64_Rela>()).find_map(|index| {
                // SAFETY: the table is loaded and holds as many entries.
                let entry = unsafe { read::<Elf64_Rela>(table + index * size_of::<Elf64_Rela>()) };
                let (symbol, kind) = ((entry.r_info >> 32) as usize, entry.r_info as u32);
                let is_call = matches!(kind, R_X86_64_JUMP_SLOT | R_X86_64_GLOB_DAT);
                if !is_call {
                    return None;
                }
                // SAFETY: the dynamic linker has looked the same symbol up.
                let its = unsafe { symbols.name(symbol) };
                // SAFETY: the dynamic linker has written this word, or was to.
                (its.to_bytes() == name.as_bytes())
                    .then(|| unsafe { read::<usize>(self.base + entry.r_offset as usize) })
            })
        })
    }

    /// The entries of its dynamic section.
    fn dynamic(&self) -> impl Iterator<Item = (i64, usize)> {
        let start = self.segments(PT_DYNAMIC).next().map(|(start, _)| start);
        (0..).map_while(move |index| {
            let entry = start? + index * size_of::<[i64; 2]>();
            // SAFETY: the section is loaded, an array of (tag, value) that ends with DT_NULL.
            let [tag, value] = unsafe { read::<[i64; 2]>(entry) };
            (tag != DT_NULL).then_some((tag, value as usize))
        })
    }

    /// An address in a dynamic section: glibc has relocated it where the section is writable, and not
    /// elsewhere.
    fn relocated(&self, value: usize) -> usize {
        if value < self.base { self.base + value } else { value }
    }

    fn segments(&self, kind: u32) -> impl Iterator<Item = (usize, usize)> {
        self.headers
            .iter()
            .filter(move |header| header.p_type == kind)
            .map(|header| (self.base + header.p_vaddr as usize, header.p_memsz as usize))
    }
}

/// An object's dynamic symbol table.
pub struct Symbols {
    base: usize,
    names: usize,
    symbols: usize,
    hash: Hash,
}

/// Where an object's hash table is.
enum Hash {
    /// The GNU one.
    Gnu(usize),
    /// That of the System V ABI, which older linkers make.
    Sysv(usize),
}

impl Symbols {
    /// The address and size of the symbol `name`, if this object defines it.
    pub fn find(&self, name: &str) -> Option<(usize, usize)> {
        let index = self.index(name)?;
        // SAFETY: an index of the symbol table.
        let symbol = unsafe { self.symbol(index) };
        Some((self.base + symbol.st_value as usize, symbol.st_size as usize))
    }

    /// Whether its object's own calls of `name` go to its own definition, whoever else has one.
    pub fn is_protected(&self, name: &str) -> bool {
        // SAFETY: an index of the symbol table.
        self.index(name)
            .is_some_and(|index| unsafe { self.symbol(index) }.st_other & 3 == STV_PROTECTED)
    }

    /// Whether its object refers to `name` without defining it.
    pub fn refers(&self, name: &str) -> bool {
        let count = match self.hash {
            Hash::Gnu(table) => {
                // SAFETY: the table is loaded. Those that aren't defined stand before what is hashed.
                let [_, first, ..] = unsafe { read::<[u32; 4]>(table) };
                first as usize
            }
            Hash::Sysv(table) => self.count(table),
        };
        (1..count).any(|index| {
            // SAFETY: there are so many.
            let is_undefined = unsafe { self.symbol(index) }.st_shndx == SHN_UNDEF;
            // SAFETY: as above.
            is_undefined && unsafe { self.name(index) }.to_bytes() == name.as_bytes()
        })
    }

    /// The number of symbols that a System V hash table counts.
    fn count(&self, table: usize) -> usize {
        // SAFETY: the table is loaded, as it was for the dynamic linker; its second word is the number.
        let [_, count] = unsafe { read::<[u32; 2]>(table) };
        count as usize
    }

    /// Where `name` is, if this object defines it.
    fn index(&self, name: &str) -> Option<usize> {
        match self.hash {
            Hash::Gnu(table) => self.hashed(table, name),
            // Rare enough to look at each.
            Hash::Sysv(table) => (0..self.count(table)).find(|&index| self.defines(index, name)),
        }
    }

    fn hashed(&self, table: usize, name: &str) -> Option<usize> {
        const HEADER: usize = 16;
        let hash = gnu_hash(name.as_bytes());
        // SAFETY (all reads here): the GNU hash table, the symbol table and the string table are
        // loaded and consistent with each other, or the dynamic linker could not have loaded the
        // object; the indices are computed as it computes them.
        // SAFETY: as said.
        let [buckets, first, bloom_words, bloom_shift] = unsafe { read::<[u32; 4]>(table) };
        let bloom = table + HEADER;
        let bucket_list = bloom + bloom_words as usize * 8;
        let chains = bucket_list + buckets as usize * 4;
        let bloom_index = (hash / 64) % bloom_words.max(1);
        // SAFETY: as said.
        let word = unsafe { read::<u64>(bloom + bloom_index as usize * 8) };
        if word >> (hash % 64) & 1 == 0 || word >> ((hash >> (bloom_shift % 32)) % 64) & 1 == 0 {
            return None;
        }
        // SAFETY: as said.
        let mut index = unsafe { read::<u32>(bucket_list + (hash % buckets.max(1)) as usize * 4) };
        if index < first {
            return None;
        }
        loop {
            // SAFETY: as said.
            let chained = unsafe { read::<u32>(chains + (index - first) as usize * 4) };
            if chained | 1 == hash | 1 && self.defines(index as usize, name) {
                return Some(index as usize);
            }
            if chained & 1 == 1 {
                return None;
            }
            index += 1;
        }
    }

    /// Whether the symbol at `index` is called `name` and defined.
    fn defines(&self, index: usize, name: &str) -> bool {
        // SAFETY: callers take the index from the object's own hash table.
        let symbol = unsafe { self.symbol(index) };
        // SAFETY: as above.
        let its = unsafe { self.name(index) };
        symbol.st_shndx != SHN_UNDEF && its.to_bytes() == name.as_bytes()
    }

    /// The symbol at `index`.
    ///
    /// # Safety
    /// The symbol table must have that many, and its object must stay loaded.
    unsafe fn symbol(&self, index: usize) -> Elf64_Sym {
        // SAFETY: what the caller promises.
        unsafe { read(self.symbols + index * size_of::<Elf64_Sym>()) }
    }

    /// The name of the symbol at `index`.
    ///
    /// # Safety
    /// The symbol table must have that many, and its object must stay loaded.
    unsafe fn name(&self, index: usize) -> &CStr {
        // SAFETY: what the caller promises.
        let symbol = unsafe { self.symbol(index) };
        // SAFETY: a name in the string table, which ends with a zero byte.
        unsafe { CStr::from_ptr((self.names + symbol.st_name as usize) as *const _) }
    }
}

/// Reads a value of this process's memory.
///
/// # Safety
/// `size_of::<T>()` readable bytes that are valid for `T` must lie at `address`.
pub unsafe fn read<T: Copy>(address: usize) -> T {
    // SAFETY: what the caller promises.
    unsafe { (address as *const T).read_unaligned() }
}

fn gnu_hash(name: &[u8]) -> u32 {
    name.iter().fold(5381, |hash: u32, &byte| hash.wrapping_mul(33).wrapping_add(byte.into()))
}

/// The build id among the notes of one segment.
fn build_id(mut notes: &[u8]) -> Option<&[u8]> {
    loop {
        let (header, rest) = notes.split_at_checked(12)?;
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (name_size, size, kind) = (word(0) as usize, word(4) as usize, word(8));
        let (name, rest) = rest.split_at_checked(name_size.checked_next_multiple_of(4)?)?;
        if kind == NT_GNU_BUILD_ID && name.starts_with(b"GNU\0") {
            return rest.get(..size);
        }
        notes = rest.get(size.checked_next_multiple_of(4)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn libc_symbols<T>(then: impl Fn(&Object, Symbols) -> T) -> T {
        find(|object| {
            let is_libc = object.path.to_str().unwrap().contains("libc.so");
            is_libc.then(|| then(object, object.symbols().unwrap()))
        })
        .expect("this test links libc")
    }

    #[test]
    fn finds_what_dlsym_finds() {
        for name in [c"malloc", c"qsort", c"environ", c"pthread_mutex_lock"] {
            // SAFETY: a plain look-up of a C string.
            let expected = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) } as usize;
            let found = libc_symbols(|_, symbols| symbols.find(name.to_str().unwrap()));
            assert_eq!(found.map(|(address, _)| address), Some(expected), "{name:?}");
        }
    }

    #[test]
    fn finds_nothing_that_is_not_defined() {
        let undefined = ["", "no such symbol", "_ZN2tt8tt_metal13AllocatorImpl5clearEv"];
        for name in undefined {
            assert_eq!(libc_symbols(|_, symbols| symbols.find(name)), None);
        }
    }

    #[test]
    fn an_object_contains_its_own_functions() {
        let inside = libc::qsort as *const () as usize;
        assert!(libc_symbols(|object, _| object.contains(inside)));
        assert!(!libc_symbols(|object, _| object.contains(gnu_hash as *const () as usize)));
    }

    #[test]
    fn reads_build_ids_among_other_notes() {
        let note = |name: &[u8], kind: u32, body: &[u8]| {
            let mut note = [
                (name.len() as u32).to_le_bytes(),
                (body.len() as u32).to_le_bytes(),
                kind.to_le_bytes(),
            ]
            .concat();
            for part in [name, body] {
                note.extend(part);
                note.resize(note.len().next_multiple_of(4), 0);
            }
            note
        };
        let other = note(b"GNU\0", 1, b"abi");
        let id = note(b"GNU\0", 3, b"\x01\x02\x03");
        assert_eq!(build_id(&[other.clone(), id].concat()), Some(&b"\x01\x02\x03"[..]));
        assert_eq!(build_id(&other), None);
        assert_eq!(build_id(&[0xff; 16]), None);
        assert!(libc_symbols(|object, _| object.build_id().map(<[u8]>::len)).is_some());
    }
}
