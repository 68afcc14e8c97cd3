//! A stand-in for tt-metal's kernel compiler, which the `ttnn` wheel does not carry.
//!
//! Mock devices run no kernels, so what the compiler produces only has to be read by tt-metal's loader:
//! a RISC-V executable of one segment, with a symbol table and a relocation. The stand-in is a shell
//! script that answers every call with a copy of one such file.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use object::Endianness;
use object::elf;
use object::write::elf::{FileHeader, ProgramHeader, Rel, SectionHeader, Sym, Writer};

/// Where the package `ttnn` looks for its compiler, below its own folder.
const FOLDER: &str = "runtime/sfpi/compiler/bin";
const NAME: &str = "riscv-tt-elf-g++";
const KERNEL: &str = "kernel.elf";

const SCRIPT: &str = r#"#!/bin/sh
# Made by ttalloc, for mock devices: stands in for tt-metal's kernel compiler.
if [ "$1" = --version ]; then
    echo "riscv-tt-elf-g++ (stand-in by ttalloc, for mock devices) 15.1.0"
    exit 0
fi
kernel=${0%/*}/kernel.elf
output=
dependencies=
while [ $# -gt 0 ]; do
    case $1 in
        -o) output=$2; shift ;;
        -MF) dependencies=$2; shift ;;
    esac
    shift
done
[ -z "$output" ] || cp "$kernel" "$output" || exit 1
[ -z "$dependencies" ] || echo "$output: $kernel" > "$dependencies"
"#;

/// Puts the stand-in into an installed package `ttnn`, unless a compiler is there.
pub fn install(package: &Path) -> io::Result<()> {
    let folder = package.join(FOLDER);
    let script = folder.join(NAME);
    if script.exists() && !folder.join(KERNEL).exists() {
        return Ok(());
    }
    fs::create_dir_all(&folder)?;
    let kernel = kernel().map_err(io::Error::other)?;
    fs::write(folder.join(KERNEL), kernel)?;
    fs::write(&script, SCRIPT)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))
}

/// A RISC-V executable that does nothing.
fn kernel() -> object::write::Result<Vec<u8>> {
    const ADDRESS: u32 = 0x1000;
    const ALIGN: u64 = 4;
    // Two `addi x0, x0, 0` and a `jalr x0, 0(x1)`: nothing, and return.
    const CODE: [u32; 3] = [0x0000_0013, 0x0000_0013, 0x0000_8067];
    let code: Vec<u8> = CODE.iter().flat_map(|word| word.to_le_bytes()).collect();

    let mut bytes = Vec::new();
    let mut writer = Writer::new(Endianness::Little, false, &mut bytes);
    writer.reserve_null_section_index();
    let text_name = writer.add_section_name(b".text");
    let text = writer.reserve_section_index();
    let relocations_name = writer.add_section_name(b".rela.text");
    writer.reserve_section_index();
    writer.reserve_symtab_section_index();
    writer.reserve_strtab_section_index();
    writer.reserve_shstrtab_section_index();
    writer.reserve_null_symbol_index();
    let start_name = writer.add_string(b"_start");
    let start = writer.reserve_symbol_index(Some(text));

    writer.reserve_file_header();
    writer.reserve_program_headers(1);
    let code_at = writer.reserve(code.len() as u64, ALIGN);
    let relocations_at = writer.reserve_relocations(1, true);
    writer.reserve_symtab();
    writer.reserve_strtab()?;
    writer.reserve_shstrtab()?;
    writer.reserve_section_headers();

    writer.write_file_header(&FileHeader {
        os_abi: elf::ELFOSABI_NONE,
        abi_version: 0,
        e_type: elf::ET_EXEC,
        e_machine: elf::EM_RISCV,
        e_entry: ADDRESS.into(),
        e_flags: elf::FileFlags(0),
    })?;
    writer.write_align_program_headers();
    writer.write_program_header(&ProgramHeader {
        p_type: elf::PT_LOAD,
        p_flags: elf::PF_R | elf::PF_X,
        p_offset: code_at,
        p_vaddr: ADDRESS.into(),
        p_paddr: ADDRESS.into(),
        p_filesz: code.len() as u64,
        p_memsz: code.len() as u64,
        p_align: ALIGN,
    });
    writer.pad_until(code_at);
    writer.write(&code);
    writer.write_align_relocation();
    writer.write_relocation(
        true,
        &Rel { r_offset: ADDRESS.into(), r_sym: 0, r_type: elf::R_RISCV_RELAX, r_addend: 0 },
    );
    writer.write_null_symbol();
    let st_name = writer.string_offset(Some(start_name));
    writer.write_symbol(&Sym {
        section: Some(text.0),
        st_name,
        st_info: elf::SymbolInfo::new(elf::STB_GLOBAL, elf::STT_FUNC),
        st_other: elf::SymbolOther(0),
        st_shndx: elf::SymbolSection(0),
        st_value: ADDRESS.into(),
        st_size: code.len() as u64,
    });
    writer.write_strtab();
    writer.write_shstrtab();
    writer.write_null_section_header();
    let sh_name = writer.section_name_offset(Some(text_name));
    writer.write_section_header(&SectionHeader {
        sh_name,
        sh_type: elf::SHT_PROGBITS,
        sh_flags: elf::SHF_ALLOC | elf::SHF_EXECINSTR,
        sh_addr: ADDRESS.into(),
        sh_offset: code_at,
        sh_size: code.len() as u64,
        sh_link: 0,
        sh_info: 0,
        sh_addralign: ALIGN,
        sh_entsize: 0,
    });
    let symtab = writer.symtab_index();
    writer.write_relocation_section_header(relocations_name, text, symtab, relocations_at, 1, true);
    writer.write_symtab_section_header(start.0);
    writer.write_strtab_section_header();
    writer.write_shstrtab_section_header();
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::read::elf::{ElfFile32, ProgramHeader as _};
    use object::{Object, ObjectSection, ObjectSymbol};

    #[test]
    fn the_kernel_is_what_the_loader_asks_for() {
        let bytes = kernel().unwrap();
        let file = ElfFile32::<Endianness>::parse(&*bytes).unwrap();
        assert_eq!(file.architecture(), object::Architecture::Riscv32);
        assert_eq!(file.kind(), object::ObjectKind::Executable);
        let [segment] = file.elf_program_headers() else { panic!("one segment") };
        assert_eq!(segment.p_type(Endianness::Little), elf::PT_LOAD);
        assert_eq!(segment.data(Endianness::Little, &*bytes).unwrap().len(), 12);
        assert!(file.symbols().any(|symbol| symbol.name() == Ok("_start")));
        let text = file.section_by_name(".text").unwrap();
        assert_eq!(text.address(), file.entry());
        assert!(file.section_by_name(".rela.text").is_some());
    }

    #[test]
    fn the_script_answers_as_a_compiler() {
        let package = tempfile::tempdir().unwrap();
        install(package.path()).unwrap();
        install(package.path()).unwrap();
        let compiler = package.path().join(FOLDER).join(NAME);
        let (out, deps) = (package.path().join("k.o"), package.path().join("k.d"));
        let status = std::process::Command::new(&compiler)
            .args(["-O2", "-c", "-MF"])
            .arg(&deps)
            .arg("-o")
            .arg(&out)
            .arg("k.cc")
            .status()
            .unwrap();
        assert!(status.success());
        assert_eq!(fs::read(&out).unwrap(), kernel().unwrap());
        assert!(fs::read_to_string(deps).unwrap().starts_with(out.to_str().unwrap()));
        let version = std::process::Command::new(&compiler).arg("--version").output().unwrap();
        assert!(version.stdout.starts_with(b"riscv-tt-elf-g++"));
    }
}
