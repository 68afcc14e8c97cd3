//! The program to run: where it is, and whether a preload library can work in it.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use object::elf::{ELFCLASS64, EM_X86_64, FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, elf};

/// Why the program can't be run, or not be tracked.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// There is no such program.
    #[error("{0}: no such program; check its name, or give a path if it isn't in PATH")]
    Missing(String),
    /// It is no program.
    #[error("{0} can't be run: {1}; check that it is a program and may be executed")]
    Unrunnable(String, String),
    /// LD_PRELOAD has no effect on it.
    #[error("{path} can't be tracked: {why}")]
    Untrackable {
        /// The executable, perhaps a script's interpreter.
        path: PathBuf,
        /// Why, and what to do.
        why: &'static str,
    },
}

/// Finds `program` as the shell would, and makes sure that LD_PRELOAD has an effect on it.
pub fn check(program: &OsStr) -> Result<(), ProgramError> {
    let name = || program.to_string_lossy().into_owned();
    // Where there is no PATH, execvp(3) has this one.
    let folders = env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let here = env::current_dir().unwrap_or_default();
    let path = match which::which_in(program, Some(folders), here) {
        Ok(path) => path,
        Err(_) => {
            let path = Path::new(program);
            let is_path = program.as_bytes().contains(&b'/');
            return Err(match fs::metadata(path) {
                Ok(found) if is_path && found.is_dir() => {
                    ProgramError::Unrunnable(name(), "it is a folder".to_owned())
                }
                Ok(_) if is_path => {
                    ProgramError::Unrunnable(name(), "permission denied".to_owned())
                }
                Err(error) if is_path && error.kind() != io::ErrorKind::NotFound => {
                    ProgramError::Unrunnable(name(), error.to_string())
                }
                _ => ProgramError::Missing(name()),
            });
        }
    };
    let path = path.canonicalize().unwrap_or(path);
    check_file(&path, 0)
}

fn check_file(path: &Path, depth: u32) -> Result<(), ProgramError> {
    // Linux follows at most four interpreters (BINPRM recursion, fs/exec.c).
    const MOST_INTERPRETERS: u32 = 5;
    let fail = |why| Err(ProgramError::Untrackable { path: path.to_owned(), why });
    let start = read_start(path).ok();
    let interpreter = start.as_deref().and_then(interpreter);
    if let Some(interpreter) = interpreter.filter(|_| depth < MOST_INTERPRETERS) {
        // A script has its interpreter's rights, whatever its own mode says (execve(2)).
        return match interpreter.canonicalize() {
            Ok(interpreter) => check_file(&interpreter, depth + 1),
            Err(_) => {
                let why = format!("its interpreter {} is missing", interpreter.display());
                Err(ProgramError::Unrunnable(path.display().to_string(), why))
            }
        };
    }
    if raises_privileges(path) {
        return fail(
            "it runs with other rights than yours (setuid, setgid or capabilities), where LD_PRELOAD has no effect; run ttalloc-run inside it, as in: sudo ttalloc-run PROGRAM",
        );
    }
    // Where a file can be run but not read, running it will tell.
    let Some(start) = start else { return Ok(()) };
    if path.file_name().is_some_and(|name| is_glibc_linker(name.as_bytes())) {
        // The dynamic linker itself, with the program as its argument.
        return Ok(());
    }
    match kind(&start) {
        Kind::Dynamic | Kind::NotElf => Ok(()),
        Kind::Static => fail(
            "it is statically linked, so LD_PRELOAD has no effect; link it dynamically, tt-metal too",
        ),
        Kind::OtherLibc => fail(
            "it isn't linked with glibc, which the preload library is; link it with glibc, as tt-metal is",
        ),
        Kind::Foreign => fail("it isn't an x86-64 program, and tt-metal programs are"),
    }
}

/// The first 64 KiB: ELF headers and program headers lie there.
fn read_start(path: &Path) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    File::open(path)?.take(64 * 1024).read_to_end(&mut start)?;
    Ok(start)
}

/// The interpreter of a script.
fn interpreter(start: &[u8]) -> Option<PathBuf> {
    let line = start.strip_prefix(b"#!")?.split(|&byte| byte == b'\n').next()?;
    let word = line.trim_ascii().split(|byte| byte.is_ascii_whitespace()).next()?;
    Some(PathBuf::from(OsStr::from_bytes(word)))
}

/// Whether that is what the dynamic linker of glibc for x86-64 is called: by its own name, or as the
/// Linux Standard Base has it.
fn is_glibc_linker(name: &[u8]) -> bool {
    [&b"ld-linux-x86-64.so"[..], b"ld-lsb-x86-64.so"].iter().any(|known| name.starts_with(known))
}

enum Kind {
    Dynamic,
    Static,
    OtherLibc,
    Foreign,
    NotElf,
}

fn kind(start: &[u8]) -> Kind {
    if !start.starts_with(&elf::ELFMAG) {
        return Kind::NotElf;
    }
    let parsed = || {
        if start.get(4) != Some(&ELFCLASS64.0) {
            return None;
        }
        let header = FileHeader64::<Endianness>::parse(start).ok()?;
        let endian = header.endian().ok()?;
        if header.e_machine(endian) != EM_X86_64 {
            return None;
        }
        let headers = header.program_headers(endian, start).ok()?;
        let Some(header) = headers.iter().find(|header| header.p_type(endian) == PT_INTERP) else {
            return Some(Kind::Static);
        };
        // Where the name lies beyond what was read, running it will tell.
        let linker = header.interpreter(endian, start).ok().flatten();
        let name = linker.and_then(|path| path.rsplit(|&byte| byte == b'/').next());
        let is_glibc = name.is_none_or(is_glibc_linker);
        Some(if is_glibc { Kind::Dynamic } else { Kind::OtherLibc })
    };
    parsed().unwrap_or(Kind::Foreign)
}

/// Whether the kernel would start it in secure mode for this user (ld.so(8), secure-execution mode).
fn raises_privileges(path: &Path) -> bool {
    const SETUID: u32 = 0o4000;
    const SETGID: u32 = 0o2000;
    let Ok(file) = fs::metadata(path) else { return false };
    // SAFETY: takes nothing and can't fail.
    let user = unsafe { libc::getuid() };
    // SAFETY: as above.
    let group = unsafe { libc::getgid() };
    let by_user = file.mode() & SETUID != 0 && file.uid() != user;
    let by_group = file.mode() & SETGID != 0 && file.gid() != group;
    by_user || by_group || (user != 0 && has_capabilities(path))
}

fn has_capabilities(path: &Path) -> bool {
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    let name = c"security.capability";
    // SAFETY: two C strings, and no buffer, so that only the size is returned.
    unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) > 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn message(program: &str) -> String {
        check(OsStr::new(program)).unwrap_err().to_string()
    }

    #[test]
    fn ordinary_programs_pass() {
        for program in ["ls", "sh", "/bin/sh"] {
            check(OsStr::new(program)).unwrap();
        }
    }

    #[test]
    fn what_is_no_program_is_named() {
        assert!(message("no-such-program").starts_with("no-such-program: no such program"));
        assert!(message("./no/such").starts_with("./no/such: no such program"));
        assert!(message("/tmp").contains("it is a folder"));
        assert!(message("/etc/passwd").contains("permission denied"));
    }

    #[test]
    fn what_cannot_be_tracked_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let mut elf = vec![0; 64];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        elf[16] = 2;
        elf[18] = 62;
        assert!(message(&write("static", &elf)).contains("statically linked"));
        // A program header of type PT_INTERP, behind it the name.
        let mut musl = elf.clone();
        (musl[32], musl[54], musl[56]) = (64, 56, 1);
        let name = b"/lib/ld-musl-x86_64.so.1\0";
        let mut interp = vec![0; 56];
        (interp[0], interp[8], interp[32]) = (3, 120, name.len() as u8);
        musl.extend(interp);
        musl.extend(name);
        assert!(message(&write("musl", &musl)).contains("glibc"));
        elf[18] = 183;
        assert!(message(&write("arm", &elf)).contains("x86-64"));
        elf[4] = 1;
        assert!(message(&write("narrow", &elf)).contains("x86-64"));
        assert!(message(&write("script", b"#! /no/such\n")).contains("/no/such is missing"));
        let script = write("good", b"#!/bin/sh\n");
        check(OsStr::new(&script)).unwrap();
        check(OsStr::new(&write("indirect", format!("#!{script}\n").as_bytes()))).unwrap();
    }
}
