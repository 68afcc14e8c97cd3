//! Which tt-metal a program, a library or a Python would load. Nothing of it is run: the dynamic linker
//! is asked what it would load, and Python where a package lies.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::binary::{Binary, BinaryError, Kind};

/// The library that tt-metal is in.
const LIBRARY: &str = "libtt_metal.so";
/// The same before 0.62.0.
const OLD_LIBRARY: &str = "_ttnncpp.so";
/// The dynamic linker of glibc for x86-64 (System V ABI, AMD64 supplement); for libraries, which name none.
const LINKER: &str = "/lib64/ld-linux-x86-64.so.2";
/// What tt-metal's own build calls the folder of its checkout.
const HOME_VARIABLE: &str = "TT_METAL_HOME";

/// Why there is no runtime to judge.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// The file can't be judged.
    #[error(transparent)]
    Binary(#[from] BinaryError),
    /// There is no such program.
    #[error("{0}: no such program; check its name, or give a path if it isn't in PATH")]
    NoProgram(String),
    /// It loads nothing of tt-metal.
    #[error(
        "{path} has no tt-metal in it and is not linked with one{missing}; if it loads tt-metal later, as Python does, name that library, or the Python with --python"
    )]
    None {
        /// The program or library.
        path: PathBuf,
        /// Which libraries could not be found, in words.
        missing: String,
    },
    /// Its symbols are gone.
    #[error(
        "{0} has tt-metal's classes in it, but neither exports their functions nor has a symbol table; link tt-metal dynamically, or build without stripping (no -s, no strip)"
    )]
    Stripped(PathBuf),
    /// The dynamic linker didn't answer.
    #[error("{linker} can't list what {path} loads: {why}; check that the file is whole")]
    Linker {
        /// The dynamic linker.
        linker: PathBuf,
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The Python didn't answer.
    #[error("{python} can't be asked for its packages: {why}; name a working Python")]
    Python {
        /// Its command.
        python: String,
        /// Why.
        why: String,
    },
    /// The Python has no ttnn.
    #[error(
        "{0} has no package ttnn; install it there (pip install ttnn), or name the Python that has it"
    )]
    NoPackage(String),
    /// The package has no tt-metal.
    #[error("the package {0} has neither _ttnn*.so nor a {LIBRARY} in it; install it again")]
    EmptyPackage(PathBuf),
    /// Nothing was asked for, and nothing was found.
    #[error(
        "no tt-metal was found: {0}; name a program, the library ({LIBRARY}), or a Python with --python"
    )]
    Nowhere(String),
}

/// A runtime, and what would load it.
#[derive(Clone, Debug)]
pub struct Located {
    /// The library or program that tt-metal is in.
    pub runtime: Binary,
    /// The program that was named, if it was one.
    pub program: Option<PathBuf>,
}

/// The runtime that the program or library `named` loads. A name without a slash is that of a file
/// here, or else of a program in PATH.
pub fn of_file(named: &OsStr) -> Result<Located, LocateError> {
    let mut path = PathBuf::from(named);
    if !named.as_bytes().contains(&b'/') && !path.exists() {
        path = which::which(named)
            .map_err(|_| LocateError::NoProgram(named.to_string_lossy().into_owned()))?;
    }
    let binary = Binary::read(&path)?;
    let program = (binary.kind != Kind::Library).then(|| path.clone());
    Ok(Located { runtime: runtime_of(binary)?, program })
}

/// The runtime that the package ttnn of a Python loads.
pub fn of_python(python: &OsStr) -> Result<Located, LocateError> {
    let package = package(python)?;
    let mut entries: Vec<PathBuf> = std::fs::read_dir(&package)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    entries.sort();
    let is_module = |path: &&PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("_ttnn") && !name.starts_with("_ttnncpp") && name.ends_with(".so")
    };
    let module = entries.iter().find(is_module).cloned();
    let libraries = [LIBRARY, OLD_LIBRARY].map(|name| package.join("build/lib").join(name));
    let first = module.into_iter().chain(libraries).find(|path| path.exists());
    let first = first.ok_or(LocateError::EmptyPackage(package))?;
    Ok(Located { runtime: runtime_of(Binary::read(&first)?)?, program: None })
}

/// The runtime that is most likely meant where nothing is named: that of the package ttnn of `python3`
/// in PATH, or else the first `libtt_metal.so` in LD_LIBRARY_PATH, below TT_METAL_HOME, or among the
/// system's libraries. With it, in words, where it was found.
pub fn anywhere() -> Result<(Located, String), LocateError> {
    let python = OsStr::new("python3");
    let why = match of_python(python) {
        Ok(located) => return Ok((located, "ttnn of python3".to_owned())),
        Err(LocateError::Python { .. }) => "python3 is not in PATH or doesn't run".to_owned(),
        Err(LocateError::NoPackage(_)) => "python3 has no package ttnn".to_owned(),
        Err(error) => return Err(error),
    };
    let folders = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let in_folders = env::split_paths(&folders).map(|folder| (folder, "LD_LIBRARY_PATH"));
    let home = env::var_os(HOME_VARIABLE).filter(|home| !home.is_empty());
    let in_home = home.map(|home| (PathBuf::from(home).join("build/lib"), HOME_VARIABLE));
    let listed = in_folders.chain(in_home).map(|(folder, whence)| (folder.join(LIBRARY), whence));
    let system = system_library().map(|path| (path, "the system's libraries"));
    match listed.chain(system).find(|(path, _)| path.exists()) {
        Some((path, whence)) => {
            let located = Located { runtime: runtime_of(Binary::read(&path)?)?, program: None };
            Ok((located, format!("{LIBRARY} in {whence}")))
        }
        None => Err(LocateError::Nowhere(format!(
            "{why}, and {LIBRARY} is not in LD_LIBRARY_PATH, {HOME_VARIABLE}/build/lib or the system's libraries"
        ))),
    }
}

/// What `ldconfig -p` has: the libraries that any program finds (ldconfig(8)).
fn system_library() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/sbin".into(), "/usr/sbin".into()]);
    let ldconfig = folders.map(|folder| folder.join("ldconfig")).find(|path| path.is_file())?;
    let output = Command::new(ldconfig).arg("-p").stdin(Stdio::null()).output().ok()?;
    let list = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = list.lines().find(|line| line.trim_start().starts_with(LIBRARY))?;
    Some(PathBuf::from(line.rsplit_once(" => ")?.1))
}

/// The one among `first` and what it loads that tt-metal is in.
fn runtime_of(first: Binary) -> Result<Binary, LocateError> {
    let (path, names_tt_metal, has_symtab) =
        (first.path.clone(), first.names_tt_metal, first.has_symtab);
    let mut missing = Vec::new();
    let loaded = if allocates(&first) || first.kind == Kind::StaticProgram {
        Vec::new()
    } else {
        loaded_with(&first)?
    };
    // Of several, the first that allocates, as the dynamic linker would take it. Without any, that with
    // the most of tt-metal.
    let mut best = first;
    for (name, path) in loaded {
        let Some(path) = path else {
            missing.push(name);
            continue;
        };
        // What the dynamic linker has read is a library; if it can't be read here, it is not the one.
        let Ok(library) = Binary::read(&path) else { continue };
        let key = |binary: &Binary| (allocates(binary), binary.found.len());
        if key(&library) > key(&best) && !allocates(&best) {
            best = library;
        }
    }
    if !best.found.is_empty() {
        return Ok(best);
    }
    if names_tt_metal && missing.is_empty() && !has_symtab {
        return Err(LocateError::Stripped(path));
    }
    let missing = match missing.as_slice() {
        [] => String::new(),
        names => {
            format!(" ({} can't be found: set LD_LIBRARY_PATH as for running it)", names.join(", "))
        }
    };
    Err(LocateError::None { path, missing })
}

/// Whether it has the function that all of tt-metal's memory comes from.
fn allocates(binary: &Binary) -> bool {
    binary.found.iter().any(|found| found.symbol().role == "allocate")
}

/// What the dynamic linker would load with a file, in its order: names, and where they are found.
fn loaded_with(file: &Binary) -> Result<Vec<(String, Option<PathBuf>)>, LocateError> {
    // Another than the system's could be any program.
    let is_the_systems = |path: &PathBuf| {
        let same = |a: &Path, b: &Path| Some(a.canonicalize().ok()? == b.canonicalize().ok()?);
        same(path, Path::new(LINKER)).unwrap_or(false)
    };
    let linker = file.interpreter.clone().filter(is_the_systems).unwrap_or_else(|| LINKER.into());
    let failed =
        |why: String| LocateError::Linker { linker: linker.clone(), path: file.path.clone(), why };
    // A name without a slash would be looked for among the libraries.
    let path = std::path::absolute(&file.path).map_err(|why| failed(why.to_string()))?;
    // As ldd(1) does it. Of its own, `--list` gives up at the first library that is missing.
    let output = Command::new(&linker)
        .arg(path)
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .env_remove("LD_PRELOAD")
        .env_remove("LD_AUDIT")
        .env_remove("LD_DEBUG")
        .stdin(Stdio::null())
        .output()
        .map_err(|why| failed(why.to_string()))?;
    let list = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    // Missing libraries stand in the list. Without a list, what was said stands on standard error.
    if list.is_empty() && !output.status.success() {
        return Err(failed(said.lines().next().unwrap_or("it said nothing").to_owned()));
    }
    Ok(list.lines().filter_map(listed).collect())
}

/// A line of the dynamic linker's list: a name, and where it is found.
fn listed(line: &str) -> Option<(String, Option<PathBuf>)> {
    let (name, rest) = line.trim().split_once(" => ")?;
    let path = rest.rsplit_once(" (0x").map(|(path, _)| PathBuf::from(path));
    Some((name.to_owned(), path))
}

/// Where the package ttnn of a Python lies, without importing it.
fn package(python: &OsStr) -> Result<PathBuf, LocateError> {
    // The current folder is not where a program's modules come from.
    const ASK: &str = "\
import sys
sys.path = [folder for folder in sys.path if folder]
import importlib.util
spec = importlib.util.find_spec('ttnn')
for folder in (spec.submodule_search_locations or []) if spec else []:
    print(folder)
";
    let failed =
        |why: String| LocateError::Python { python: python.to_string_lossy().into_owned(), why };
    let output = Command::new(python)
        .args(["-c", ASK])
        .stdin(Stdio::null())
        .output()
        .map_err(|why| failed(why.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or("it said nothing");
        return Err(failed(format!("{} ({last})", output.status)));
    }
    let said = output.stdout.strip_suffix(b"\n").unwrap_or(&output.stdout);
    let folders = said.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let folders: Vec<PathBuf> =
        folders.map(|line| PathBuf::from(OsString::from(OsStr::from_bytes(line)))).collect();
    // A package in several folders has its modules in any of them.
    let has_library = |folder: &&PathBuf| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_name().as_bytes().starts_with(b"_ttnn"))
    };
    let found = folders.iter().find(has_library).or(folders.first()).cloned();
    found.ok_or_else(|| LocateError::NoPackage(python.to_string_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linkers_list_is_understood() {
        let found =
            |line| listed(line).map(|(name, path)| (name, path.map(PathBuf::into_os_string)));
        let some = |name: &str, path: &str| Some((name.to_owned(), Some(path.into())));
        assert_eq!(
            found("\tlibm.so.6 => /lib/libm.so.6 (0x00007f83a2520000)"),
            some("libm.so.6", "/lib/libm.so.6")
        );
        assert_eq!(
            found("\ta.so => /a folder (0x1)/a.so (0x00007f83)"),
            some("a.so", "/a folder (0x1)/a.so")
        );
        assert_eq!(found("\tlibx.so => not found"), Some(("libx.so".to_owned(), None)));
        assert_eq!(found("\tlinux-vdso.so.1 (0x00007f83a805a000)"), None);
        assert_eq!(found("\tstatically linked"), None);
    }
}
