//! The symbols of a loaded object that only its file has: hidden functions are in no table that is
//! loaded.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use memmap2::Mmap;
use object::read::elf::{FileHeader, ProgramHeader, Sym};
use object::{Endianness, elf};

use crate::elf::Object;

type Header = elf::FileHeader64<Endianness>;

/// The file of a loaded object.
pub struct ObjectFile {
    map: Mmap,
    base: usize,
}

impl ObjectFile {
    /// Opens the file of `object`; None if it can't be read, or isn't what was loaded.
    pub fn open(object: &Object) -> Option<ObjectFile> {
        let path = match object.path.to_bytes() {
            b"" => Path::new("/proc/self/exe"),
            path => Path::new(OsStr::from_bytes(path)),
        };
        let file = File::open(path).ok()?;
        // SAFETY: nothing keeps others from changing or cutting the file while it is read here; the
        // program's own code is mapped from it in the same way.
        let map = unsafe { Mmap::map(&file) }.ok()?;
        let found = ObjectFile { map, base: object.base() };
        found.is_of(object).then_some(found)
    }

    fn data(&self) -> &[u8] {
        &self.map
    }

    fn header(&self) -> Option<(&Header, Endianness)> {
        let header = Header::parse(self.data()).ok()?;
        Some((header, header.endian().ok()?))
    }

    /// Whether its segments are those that were loaded.
    fn is_of(&self, object: &Object) -> bool {
        let segments = || {
            let (header, endian) = self.header()?;
            let segments = header.program_headers(endian, self.data()).ok()?;
            let same = segments.len() == object.headers().len()
                && segments.iter().zip(object.headers()).all(|(one, other)| {
                    one.p_type(endian).0 == other.p_type
                        && one.p_offset(endian) == other.p_offset
                        && one.p_vaddr(endian) == other.p_vaddr
                        && one.p_filesz(endian) == other.p_filesz
                        && one.p_memsz(endian) == other.p_memsz
                });
            Some(same)
        };
        segments().unwrap_or(false)
    }

    /// Calls `visit` with the name, address and size of every symbol that it defines; None if it has no
    /// table of all symbols.
    pub fn each(&self, mut visit: impl FnMut(&[u8], usize, usize)) -> Option<()> {
        let (header, endian) = self.header()?;
        let sections = header.sections(endian, self.data()).ok()?;
        let symbols = sections.symbols(endian, self.data(), elf::SHT_SYMTAB).ok()?;
        if symbols.is_empty() {
            return None;
        }
        for symbol in symbols.iter() {
            let kind = symbol.st_type();
            let is_defined = symbol.st_shndx(endian) != elf::SHN_UNDEF
                && matches!(kind, elf::STT_FUNC | elf::STT_OBJECT);
            if !is_defined {
                continue;
            }
            let Ok(name) = symbols.symbol_name(endian, symbol) else { continue };
            let address = self.base.wrapping_add(symbol.st_value(endian) as usize);
            visit(name, address, symbol.st_size(endian) as usize);
        }
        Some(())
    }

    /// What the file has for the bytes that were loaded at `address`.
    pub fn bytes_at(&self, address: usize, length: usize) -> Option<&[u8]> {
        let (header, endian) = self.header()?;
        let segments = header.program_headers(endian, self.data()).ok()?;
        let place = address.checked_sub(self.base)? as u64;
        segments.iter().find_map(|segment| {
            let offset = place.checked_sub(segment.p_vaddr(endian))?;
            let end = offset.checked_add(length as u64)?;
            let is_it = segment.p_type(endian) == elf::PT_LOAD && end <= segment.p_filesz(endian);
            let start = segment.p_offset(endian).checked_add(offset)? as usize;
            is_it.then(|| self.data().get(start..start.checked_add(length)?))?
        })
    }
}
