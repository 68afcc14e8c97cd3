//! A Python that ttnn has wheels for, and an environment of its own with a pinned ttnn in it.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::compiler;

/// The environment variable that names the Python to use.
pub const VARIABLE: &str = "TTALLOC_PYTHON";
/// The release that the demo runs.
pub const RELEASE: &str = "0.81.1";
/// The versions of CPython that ttnn has wheels for.
const SERVING: [&str; 2] = ["3.10", "3.12"];

/// Why there is no runtime to run.
#[derive(Debug, thiserror::Error)]
pub enum PythonError {
    /// TTALLOC_PYTHON names something that won't do.
    #[error("{VARIABLE} names {0}, {1}; name a CPython {versions}", versions = serving())]
    Named(String, String),
    /// There is none.
    #[error(
        "no usable Python was found: ttnn {RELEASE} has wheels for CPython {versions} only; install one of them (with its venv module), or name one in {VARIABLE}",
        versions = serving()
    )]
    NotFound,
    /// A step of the installation failed.
    #[error("{0} failed; what it printed stands above")]
    Step(String),
    /// A file could not be made.
    #[error("{path}: {why}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
}

fn serving() -> String {
    SERVING.join(" or ")
}

/// A Python that serves.
#[derive(Clone, Debug)]
pub struct Python {
    /// What to run.
    pub path: PathBuf,
    /// Its version, such as 3.10.
    pub version: String,
}

/// An installed ttnn.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// The Python that has it.
    pub python: PathBuf,
    /// The release of ttnn.
    pub release: String,
    /// The folder of everything that belongs to it.
    pub folder: PathBuf,
}

/// Finds a Python that serves: the one that TTALLOC_PYTHON names, or one on PATH, or one that pyenv or
/// uv keeps in the home folder.
pub fn find() -> Result<Python, PythonError> {
    if let Some(named) = env::var_os(VARIABLE).filter(|named| !named.is_empty()) {
        return match version(Path::new(&named)) {
            Ok(version) if SERVING.contains(&version.as_str()) => {
                Ok(Python { path: PathBuf::from(named), version })
            }
            Ok(found) => {
                Err(PythonError::Named(lossy(&named), format!("which is CPython {found}")))
            }
            Err(why) => Err(PythonError::Named(lossy(&named), why)),
        };
    }
    let on_path = SERVING.iter().rev().map(|version| PathBuf::from(format!("python{version}")));
    let mut candidates: Vec<PathBuf> = on_path.chain([PathBuf::from("python3")]).collect();
    if let Some(home) = env::home_dir() {
        for kept in [".pyenv/versions", ".local/share/uv/python"] {
            let Ok(entries) = fs::read_dir(home.join(kept)) else { continue };
            let mut found: Vec<_> =
                entries.flatten().map(|entry| entry.path().join("bin/python3")).collect();
            found.sort();
            candidates.extend(found);
        }
    }
    let serving = |path: PathBuf| {
        let version = version(&path).ok().filter(|found| SERVING.contains(&found.as_str()))?;
        Some(Python { path, version })
    };
    candidates.into_iter().find_map(serving).ok_or(PythonError::NotFound)
}

/// The version of the Python at `path`, if it runs and can make virtual environments.
fn version(path: &Path) -> Result<String, String> {
    const ASK: &str = "import sys, venv, ensurepip; assert sys.implementation.name == 'cpython'; \
                       print('%d.%d' % sys.version_info[:2])";
    let output = Command::new(path)
        .args(["-c", ASK])
        .stdin(Stdio::null())
        .output()
        .map_err(|why| format!("which can't be run ({why})"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or("it said nothing");
        return Err(format!("which is no CPython that can make virtual environments ({last})"));
    }
    let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if found.is_empty() { Err("which is no CPython".to_owned()) } else { Ok(found) }
}

/// Prepares the given release of ttnn in the user's cache, if that wasn't done: a virtual environment,
/// the wheel with its dependencies, and the stand-in for the kernel compiler. What pip says goes to
/// standard error, with its progress.
pub fn prepare(release: &str) -> Result<Runtime, PythonError> {
    let base = find()?;
    let cache = cache();
    fs::create_dir_all(&cache).map_err(|why| PythonError::File { path: cache.clone(), why })?;
    let name = format!("ttnn-{release}-python{}", base.version);
    let folder = cache.join(&name);
    let python = folder.join("bin/python3");
    // To be renamed when what is prepared changes.
    let done = folder.join("ttalloc-prepared-1");

    // One at a time: tests and demos may come together.
    let lock_path = cache.join(format!("{name}.lock"));
    let lock = File::create(&lock_path).and_then(|file| file.lock().map(|()| file));
    let _lock = lock.map_err(|why| PythonError::File { path: lock_path, why })?;

    if !done.exists() || version(&python).is_err() {
        install(release, &base.path, &folder, &python)?;
        fs::write(&done, "").map_err(|why| PythonError::File { path: done, why })?;
    }
    Ok(Runtime { python, release: release.to_owned(), folder })
}

fn install(release: &str, base: &Path, folder: &Path, python: &Path) -> Result<(), PythonError> {
    eprintln!(
        "ttalloc: installing ttnn {release} for {} in {} (100 MB to download, once)",
        base.display(),
        folder.display()
    );
    let mut venv = Command::new(base);
    venv.args(["-m", "venv", "--clear"]).arg(folder);
    step(&mut venv, "making a virtual environment")?;
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--only-binary=:all:"])
        .arg(format!("ttnn=={release}"));
    step(&mut pip, &format!("installing ttnn {release} with pip"))?;
    let package = package(python)?;
    compiler::install(&package).map_err(|why| PythonError::File { path: package, why })
}

/// Where the package ttnn is installed, without importing it.
fn package(python: &Path) -> Result<PathBuf, PythonError> {
    const ASK: &str = "import importlib.util; print(importlib.util.find_spec('ttnn').submodule_search_locations[0])";
    let failed = || PythonError::Step("looking for the installed ttnn".to_owned());
    let output = Command::new(python).args(["-c", ASK]).output().map_err(|_| failed())?;
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() && !path.is_empty() {
        Ok(PathBuf::from(path))
    } else {
        Err(failed())
    }
}

/// Runs one step of the installation, its output on standard error.
fn step(command: &mut Command, what: &str) -> Result<(), PythonError> {
    let status = command.stdin(Stdio::null()).stdout(io::stderr()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(PythonError::Step(format!("{what} ({status})"))),
        Err(why) => Err(PythonError::Step(format!("{what} ({why})"))),
    }
}

/// ttalloc's folder in the user's cache (XDG Base Directory Specification).
fn cache() -> PathBuf {
    let absolute = |path: &PathBuf| path.is_absolute();
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(absolute);
    let cache = cache.or_else(|| Some(env::home_dir()?.join(".cache")));
    cache.unwrap_or_else(env::temp_dir).join("ttalloc")
}

fn lossy(text: &OsStr) -> String {
    text.to_string_lossy().into_owned()
}
