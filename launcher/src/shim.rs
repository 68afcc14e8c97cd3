//! The preload library: where it is, and whether it fits this launcher.

use std::env;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use object::{Object, ObjectSection, ObjectSymbol};
use ttalloc_ring::{STAMP, STAMP_SYMBOL};

/// The environment variable that names the library.
pub const VARIABLE: &str = "TTALLOC_SHIM";
/// The library's file name.
pub const FILE_NAME: &str = "libttalloc_shim.so";

/// Why there is no library to preload.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// TTALLOC_SHIM names something that isn't there.
    #[error("{VARIABLE} names {0}, which is not a file; correct it or unset it")]
    Named(PathBuf),
    /// It is in none of the usual places.
    #[error(
        "{FILE_NAME} was not found in {}; build or install it there, or name it in {VARIABLE}",
        .0.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NotFound(Vec<PathBuf>),
    /// It can't be looked into.
    #[error("{path} can't be read: {why}; check its rights, and this session's limits")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        why: std::io::Error,
    },
    /// It is another version's.
    #[error(
        "{path} is {found}, but this launcher needs \"{needed}\"; install both from one build",
        needed = stamp()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// The dynamic linker could not read the path in LD_PRELOAD.
    #[error(
        "{0} has a space, a colon or a dollar sign in its path, which LD_PRELOAD can't hold; copy it elsewhere and name the copy in {VARIABLE}"
    )]
    Unspeakable(PathBuf),
}

fn stamp() -> &'static str {
    STAMP.trim_end_matches('\0')
}

/// Finds the library that fits this launcher: the one that TTALLOC_SHIM names, or the first of
/// `deps/`, beside the launcher, and `../lib/`. (Cargo builds it in `deps/`; what lies beside the
/// launcher may then be an older copy.)
pub fn find() -> Result<PathBuf, ShimError> {
    let path = match env::var_os(VARIABLE).filter(|named| !named.is_empty()) {
        Some(named) => {
            let path = PathBuf::from(named);
            path.canonicalize().ok().filter(|path| path.is_file()).ok_or(ShimError::Named(path))?
        }
        None => search()?,
    };
    check(&path)?;
    if path.as_os_str().as_bytes().iter().any(|byte| matches!(byte, b' ' | b':' | b'$')) {
        return Err(ShimError::Unspeakable(path));
    }
    Ok(path)
}

fn search() -> Result<PathBuf, ShimError> {
    let here = env::current_exe().and_then(|path| path.canonicalize()).unwrap_or_default();
    let folder = here.parent().unwrap_or(Path::new("/"));
    let folders = [folder.join("deps"), folder.to_owned(), folder.join("../lib")];
    let found = folders.iter().find_map(|folder| {
        folder.join(FILE_NAME).canonicalize().ok().filter(|path| path.is_file())
    });
    found.ok_or_else(|| ShimError::NotFound(folders.into()))
}

/// Whether the library at `path` was built with this launcher.
fn check(path: &Path) -> Result<(), ShimError> {
    let bytes =
        std::fs::read(path).map_err(|why| ShimError::Unreadable { path: path.to_owned(), why })?;
    let found = match stamp_in(&bytes) {
        Some(found) if found == stamp() => return Ok(()),
        Some(found) => format!("\"{found}\""),
        None => "not ttalloc's preload library".to_owned(),
    };
    Err(ShimError::Foreign { path: path.to_owned(), found })
}

fn stamp_in(bytes: &[u8]) -> Option<String> {
    let file = object::File::parse(bytes).ok()?;
    let symbol = file.dynamic_symbols().find(|symbol| symbol.name() == Ok(STAMP_SYMBOL))?;
    let section = file.section_by_index(symbol.section_index()?).ok()?;
    let data = section.data_range(symbol.address(), symbol.size()).ok()??;
    let text = data.split(|&byte| byte == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}
