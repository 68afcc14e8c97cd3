//! What an ELF file has of tt-metal: the catalogue's symbols, and how the file's own code gets to them.
//!
//! A call can be interposed if the dynamic linker binds it, that is, if it goes through the PLT, the
//! global offset table, or a relocated word such as a virtual table's. A call whose target is written
//! into the code can't. Of the latter, calls and jumps with a 32-bit displacement and addresses taken by
//! `lea` are found by looking at every byte of the executable segments, so that none is missed. That one
//! is seen where there is none takes four random bytes to be a certain displacement: with 50 functions
//! in 10 MB of random code, one time in a thousand. A function that the compiler has inlined into its
//! caller leaves nothing to find.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use object::elf::{
    self, DF_SYMBOLIC, DT_FLAGS, DT_SYMBOLIC, ELFCLASS64, ELFMAG, EM_X86_64, ET_DYN, ET_EXEC, PF_X,
    PT_LOAD, R_X86_64_64, R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT, R_X86_64_RELATIVE, SHN_UNDEF,
    SHT_RELR, STV_DEFAULT,
};
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader, SectionHeader, Sym};
use object::{
    LittleEndian, Object, ObjectSection, ObjectSymbol, ReadCache, RelocationFlags,
    RelocationTarget, SymbolIndex,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ttalloc_symbols::{COUNT, Era, SYMBOLS, Symbol, SymbolSet};

/// Why a file can't be judged.
#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    /// There is none.
    #[error("{0}: no such file; check its name")]
    Missing(PathBuf),
    /// It is a folder.
    #[error("{0} is a folder; name a program, or the library with tt-metal in it (libtt_metal.so)")]
    Folder(PathBuf),
    /// It can't be read.
    #[error("{path} can't be read: {why}; check its rights")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
    /// It is a script.
    #[error(
        "{path} is a script, which {interpreter} runs; name what that loads: a Python with --python, or the library with tt-metal in it"
    )]
    Script {
        /// The script.
        path: PathBuf,
        /// What stands behind its `#!`.
        interpreter: String,
    },
    /// It is neither program nor library.
    #[error(
        "{path} is {what}; name a program, or the library with tt-metal in it (libtt_metal.so, in releases before 0.62.0 _ttnncpp.so)"
    )]
    Other {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// It is of another architecture.
    #[error(
        "{path} is made for {machine}, and ttalloc tracks x86-64 programs only; name an x86-64 build"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// For which.
        machine: String,
    },
    /// Its structure is broken.
    #[error("{path} is damaged ({why}); install or build it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It has no section headers.
    #[error(
        "{0} has no section headers, without which its symbols and calls can't be read; use a build that went through no more than strip(1)"
    )]
    NoSections(PathBuf),
}

/// What kind of file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A program that the dynamic linker starts.
    Program,
    /// A program without a dynamic linker.
    StaticProgram,
    /// A shared library.
    Library,
}

/// Where a symbol stands.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// In `.dynsym`: the dynamic linker knows it, and other objects can use it.
    Dynsym,
    /// In `.symtab` only, which strip removes: nobody but the file itself uses it.
    Symtab,
}

/// How a file's own code and data get to one of its symbols.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// By calls through the PLT (`R_X86_64_JUMP_SLOT`).
    Plt,
    /// By a word of the global offset table (`R_X86_64_GLOB_DAT`).
    Got,
    /// By a word of data that the dynamic linker fills in, as in virtual tables (`R_X86_64_64`).
    Data,
    /// By an address that was fixed when the file was linked: past the dynamic linker.
    Direct,
}

/// A symbol of the catalogue that a file defines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its index in the catalogue.
    pub index: usize,
    /// Where it stands.
    pub table: Table,
    /// Whether the file's own uses of it may be bound to another definition, as far as its visibility
    /// goes (`STV_DEFAULT`).
    pub preemptible: bool,
    /// How the file itself gets to it, each way once; empty if it doesn't.
    pub ways: Vec<Way>,
}

impl Found {
    /// Its entry in the catalogue.
    pub fn symbol(&self) -> &'static Symbol {
        &SYMBOLS[self.index]
    }
}

/// A program or library, as far as ttalloc cares.
#[derive(Clone, Debug)]
pub struct Binary {
    /// Its path.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// The dynamic linker that it asks for.
    pub interpreter: Option<PathBuf>,
    /// Its GNU build id, in hexadecimal.
    pub build_id: Option<String>,
    /// Whether the dynamic linker binds what it uses to its own definitions first (`DT_SYMBOLIC`).
    pub symbolic: bool,
    /// Whether it has a symbol table that lists what it doesn't export.
    pub has_symtab: bool,
    /// Whether names of tt-metal's classes are in its data, which no stripping removes. They are in
    /// what uses tt-metal too.
    pub names_tt_metal: bool,
    /// What it defines of the catalogue, in the catalogue's order.
    pub found: Vec<Found>,
}

/// What the reader of an ELF file is.
type Elf<'a> = ElfFile64<'a, LittleEndian, &'a ReadCache<File>>;

impl Binary {
    /// Reads the file at `path`.
    pub fn read(path: &Path) -> Result<Binary, BinaryError> {
        let file = open(path)?;
        let cache = ReadCache::new(file);
        let damaged = |why: object::read::Error| BinaryError::Damaged {
            path: path.to_owned(),
            why: why.to_string(),
        };
        let elf = Elf::parse(&cache).map_err(damaged)?;
        if elf.sections().next().is_none() {
            return Err(BinaryError::NoSections(path.to_owned()));
        }
        let interpreter = interpreter(&elf, &cache);
        let kind = match elf.elf_header().e_type(LittleEndian) {
            ET_EXEC | ET_DYN if interpreter.is_some() => Kind::Program,
            ET_EXEC => Kind::StaticProgram,
            // A static program that can lie anywhere has neither interpreter nor name.
            ET_DYN if is_static_pie(&elf) => Kind::StaticProgram,
            ET_DYN => Kind::Library,
            _ => {
                let what = "an object file or a core dump";
                return Err(BinaryError::Other { path: path.to_owned(), what });
            }
        };
        let build_id = elf.build_id().map_err(damaged)?;
        let mut definitions = Definitions::of(&elf);
        definitions.find_ways(&elf, &cache);
        Ok(Binary {
            path: path.to_owned(),
            kind,
            interpreter,
            build_id: build_id.map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect()),
            symbolic: is_symbolic(&elf),
            has_symtab: elf.symbols().next().is_some(),
            names_tt_metal: names_tt_metal(&elf),
            found: definitions.found.into_values().map(|one| one.found).collect(),
        })
    }

    /// What it defines of the catalogue.
    pub fn present(&self) -> SymbolSet {
        let mut present = SymbolSet::default();
        self.found.iter().for_each(|found| present.insert(found.index));
        present
    }

    /// Its era, if it has something of tt-metal that ttalloc knows.
    pub fn era(&self) -> Option<Era> {
        Era::of(&self.present())
    }

    /// What it defines of `role` in `era`.
    pub fn of_role(&self, role: &str, era: Era) -> impl Iterator<Item = &Found> {
        self.found
            .iter()
            .filter(move |found| found.symbol().role == role && found.symbol().eras.contains(era))
    }
}

/// Opens a file that is a 64-bit ELF file for x86-64, from its first bytes.
fn open(path: &Path) -> Result<File, BinaryError> {
    let unreadable = |why: io::Error| match why.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            BinaryError::Missing(path.to_owned())
        }
        _ => BinaryError::Unreadable { path: path.to_owned(), why },
    };
    let about = fs::metadata(path).map_err(unreadable)?;
    if about.is_dir() {
        return Err(BinaryError::Folder(path.to_owned()));
    }
    let other = |what| BinaryError::Other { path: path.to_owned(), what };
    if !about.is_file() {
        // To open a pipe would wait for its writer.
        return Err(other("not a regular file"));
    }
    let mut file = File::open(path).map_err(unreadable)?;
    let mut start = Vec::new();
    file.by_ref().take(1024).read_to_end(&mut start).map_err(unreadable)?;
    file.rewind().map_err(unreadable)?;
    if let Some(line) = start.strip_prefix(b"#!") {
        let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let interpreter = String::from_utf8_lossy(line.trim_ascii()).into_owned();
        return Err(BinaryError::Script { path: path.to_owned(), interpreter });
    }
    if !start.starts_with(&ELFMAG) {
        return Err(other("not an ELF file"));
    }
    let foreign = |machine: String| Err(BinaryError::Foreign { path: path.to_owned(), machine });
    // EI_CLASS, EI_DATA and e_machine (System V gABI, chapter 4).
    let (class, order, machine) = (start.get(4), start.get(5), start.get(18..20));
    let Some(machine) = machine.and_then(|bytes| <[u8; 2]>::try_from(bytes).ok()) else {
        let why = "it ends within its header".to_owned();
        return Err(BinaryError::Damaged { path: path.to_owned(), why });
    };
    if class != Some(&ELFCLASS64.0) {
        return foreign("a 32-bit processor".to_owned());
    }
    const LITTLE: u8 = 1;
    if order != Some(&LITTLE) {
        return foreign("a big-endian processor".to_owned());
    }
    match elf::Machine(u16::from_le_bytes(machine)) {
        EM_X86_64 => Ok(file),
        elf::EM_AARCH64 => foreign("AArch64".to_owned()),
        elf::EM_RISCV => foreign("RISC-V".to_owned()),
        elf::Machine(number) => foreign(format!("another processor (e_machine {number})")),
    }
}

fn interpreter<'a>(elf: &Elf<'a>, cache: &'a ReadCache<File>) -> Option<PathBuf> {
    let headers = elf.elf_program_headers().iter();
    let name = headers.filter_map(|header| header.interpreter(LittleEndian, cache).ok()?).next()?;
    Some(PathBuf::from(String::from_utf8_lossy(name).into_owned()))
}

/// The values of a tag of the dynamic section.
fn dynamic(elf: &Elf, tag: elf::DynamicTag) -> impl Iterator<Item = u64> {
    let table = elf.elf_dynamic_table().unwrap_or_default();
    table.iter().filter(move |entry| entry.tag == tag).map(|entry| entry.val)
}

fn is_symbolic(elf: &Elf) -> bool {
    let flags = dynamic(elf, DT_FLAGS).fold(0, |all, flags| all | flags);
    dynamic(elf, DT_SYMBOLIC).next().is_some() || flags & DF_SYMBOLIC.0 != 0
}

fn is_static_pie(elf: &Elf) -> bool {
    let flags = dynamic(elf, elf::DT_FLAGS_1).fold(0, |all, flags| all | flags);
    flags & elf::DF_1_PIE.0 != 0
}

/// Whether the type names that exceptions and virtual tables bring along (`_ZTS`) have a MeshDevice.
fn names_tt_metal(elf: &Elf) -> bool {
    const NAME: &[u8] = b"N2tt8tt_metal11distributed10MeshDeviceE\0";
    let has_it = |data: &[u8]| data.windows(NAME.len()).any(|window| window == NAME);
    let constant = elf.sections().filter(|section| {
        section.name().is_ok_and(|name| name.starts_with(".rodata") || name == ".data.rel.ro")
    });
    constant.filter_map(|section| section.data().ok()).any(has_it)
}

/// A definition, while the ways to it are looked for.
struct Definition {
    found: Found,
    address: u64,
    size: u64,
}

impl Definition {
    fn add(&mut self, way: Way) {
        if let Err(place) = self.found.ways.binary_search(&way) {
            self.found.ways.insert(place, way);
        }
    }
}

/// What a file defines of the catalogue.
#[derive(Default)]
struct Definitions {
    /// By their index in the catalogue.
    found: BTreeMap<usize, Definition>,
    /// Which of them a dynamic symbol is.
    dynamic: HashMap<SymbolIndex, usize>,
    /// Which lie at an address: constructors and destructors often share one.
    at: HashMap<u64, Vec<usize>>,
}

impl Definitions {
    fn of<'a>(elf: &Elf<'a>) -> Definitions {
        let names: HashMap<&str, usize> =
            SYMBOLS.iter().enumerate().map(|(index, symbol)| (symbol.name, index)).collect();
        let mut all = Definitions::default();
        let dynamic = elf.dynamic_symbols().map(|symbol| (Table::Dynsym, symbol));
        let others = elf.symbols().map(|symbol| (Table::Symtab, symbol));
        for (table, symbol) in dynamic.chain(others) {
            let Some(&index) = symbol.name().ok().and_then(|name| names.get(name)) else {
                continue;
            };
            let raw = symbol.elf_symbol();
            if raw.st_shndx(LittleEndian) == SHN_UNDEF {
                continue;
            }
            if table == Table::Dynsym {
                all.dynamic.insert(symbol.index(), index);
            }
            // What is exported is in both tables; the first counts.
            all.found.entry(index).or_insert_with(|| Definition {
                found: Found {
                    index,
                    table,
                    preemptible: table == Table::Dynsym && raw.st_visibility() == STV_DEFAULT,
                    ways: Vec::new(),
                },
                address: symbol.address(),
                size: symbol.size(),
            });
        }
        for (&index, definition) in &all.found {
            all.at.entry(definition.address).or_default().push(index);
        }
        debug_assert!(all.found.len() <= COUNT);
        all
    }

    /// Notes that something at `from` has the address `to` in it.
    fn note(&mut self, from: Option<u64>, to: u64) {
        let Some(indices) = self.at.get(&to) else { return };
        for index in indices {
            let Some(definition) = self.found.get_mut(index) else { continue };
            // A loop back to a function's first instruction is no call.
            let own = definition.address..definition.address.saturating_add(definition.size);
            if !from.is_some_and(|from| own.contains(&from)) {
                definition.add(Way::Direct);
            }
        }
    }

    fn find_ways<'a>(&mut self, elf: &Elf<'a>, cache: &'a ReadCache<File>) {
        if self.found.is_empty() {
            return;
        }
        for (_, relocation) in elf.dynamic_relocations().into_iter().flatten() {
            let RelocationFlags::Elf { r_type } = relocation.flags() else { continue };
            let way = match r_type {
                R_X86_64_JUMP_SLOT => Way::Plt,
                R_X86_64_GLOB_DAT => Way::Got,
                R_X86_64_64 => Way::Data,
                R_X86_64_RELATIVE => {
                    self.note(None, relocation.addend() as u64);
                    continue;
                }
                _ => continue,
            };
            let RelocationTarget::Symbol(symbol) = relocation.target() else { continue };
            let index = self.dynamic.get(&symbol);
            if let Some(definition) = index.and_then(|index| self.found.get_mut(index)) {
                definition.add(way);
            }
        }
        self.find_packed(elf, cache);
        for header in elf.elf_program_headers() {
            let is_code = header.p_type(LittleEndian) == PT_LOAD
                && header.p_flags(LittleEndian).contains(PF_X);
            if let Some(code) = header.data(LittleEndian, cache).ok().filter(|_| is_code) {
                self.find_calls(header.p_vaddr(LittleEndian), code);
            }
        }
    }

    /// Packed relative relocations (`.relr.dyn`): their addends stand in the words that they relocate.
    fn find_packed<'a>(&mut self, elf: &Elf<'a>, cache: &'a ReadCache<File>) {
        let sections = elf.elf_section_table().iter();
        for section in sections.filter(|section| section.sh_type(LittleEndian) == SHT_RELR) {
            let Ok(Some(places)) = section.relr(LittleEndian, cache) else { continue };
            for place in places {
                let word = elf.elf_program_headers().iter().find_map(|header| {
                    header.data_range(LittleEndian, cache, place, 8).ok().flatten()
                });
                if let Some(word) = word.and_then(|bytes| <[u8; 8]>::try_from(bytes).ok()) {
                    self.note(None, u64::from_le_bytes(word));
                }
            }
        }
    }

    /// Calls and jumps with a 32-bit displacement, `E8`, `E9` and `0F 80` to `0F 8F`, and addresses that
    /// are taken relative to the instruction, `REX.W 8D /r` with `[rip + disp32]` (Intel's manual,
    /// volume 2).
    fn find_calls(&mut self, start: u64, code: &[u8]) {
        for (at, window) in code.windows(4).enumerate() {
            // What stands before the displacement.
            let before = &code[..at];
            let is_reference = match before {
                [.., 0xe8 | 0xe9] => true,
                [.., 0x0f, 0x80..=0x8f] => true,
                [.., 0x48 | 0x4c, 0x8d, modrm] => modrm & 0xc7 == 0x05,
                _ => false,
            };
            if !is_reference {
                continue;
            }
            let displacement = i32::from_le_bytes([window[0], window[1], window[2], window[3]]);
            let from = start.wrapping_add(at as u64);
            let to = from.wrapping_add(4).wrapping_add_signed(displacement.into());
            self.note(Some(from), to);
        }
    }
}
