//! Where the report goes: checked before the program starts, written when it is done.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::report::Report;
use anyhow::{Context, bail};
use rustix::fs::{AtFlags, CWD, linkat};
use rustix::io::Errno;
use tempfile::NamedTempFile;

/// What the names of temporary files begin with.
const PREFIX: &str = ".ttalloc-report-";

/// A place for the report.
#[derive(Debug)]
pub enum Destination {
    /// Standard output.
    Stdout,
    /// A regular file, written whole or not at all.
    File(PathBuf),
    /// The same long after the program's end, when the report of another run may have come there. That one
    /// stays, and this one gets a name with its program's pid.
    Late {
        /// The file.
        path: PathBuf,
        /// The program's pid.
        pid: u32,
        /// When that was started, in clock ticks since the machine was.
        start_ticks: u64,
    },
    /// Something else that is written to as it is, such as a pipe. It stays open, since the reader of
    /// a pipe meets the end when its last writer leaves.
    Device(File),
}

/// What became of a report.
#[derive(Debug, PartialEq, Eq)]
pub enum Written {
    /// It went where its reader gets it, or was not wanted.
    Nowhere,
    /// It is a new file.
    New(PathBuf),
    /// It took the place of an older file.
    Replaced(PathBuf),
}

impl Destination {
    /// The destination that `name` means (`-` is standard output), if it can be written.
    pub fn check(name: &Path) -> anyhow::Result<Destination> {
        if name == Path::new("-") {
            return Ok(Destination::Stdout);
        }
        // The program may change its folder, and we may outlive ours.
        if name.as_os_str().is_empty() {
            bail!("it has no name");
        }
        let path = std::path::absolute(name).context("the current folder is gone")?;
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => bail!("it is a folder; name a file in it"),
            Ok(found) if !found.is_file() => {
                return Ok(Destination::Device(OpenOptions::new().append(true).open(&path)?));
            }
            Ok(_) => {
                // Replaced whole, but only where it could have been written.
                OpenOptions::new().append(true).open(&path)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if path.as_os_str().as_bytes().ends_with(b"/") {
                    bail!("it names a folder; name a file in it");
                }
            }
            Err(error) => return Err(error.into()),
        }
        let path = follow(path);
        // The program must not find it, nor anybody else.
        if unnamed(&path)?.is_none() {
            drop(named(&path)?);
        }
        Ok(Destination::File(path))
    }

    /// Whether it can be written more than once, each time in the last one's place.
    pub fn is_file(&self) -> bool {
        matches!(self, Destination::File(_) | Destination::Late { .. })
    }

    /// The same for later, of a run whose program is that process.
    pub fn late(&self, pid: u32, start_ticks: u64) -> Option<Destination> {
        let path = match self {
            Destination::File(path) | Destination::Late { path, .. } => path.clone(),
            Destination::Stdout | Destination::Device(_) => return None,
        };
        Some(Destination::Late { path, pid, start_ticks })
    }

    /// Writes the report.
    pub fn write(&self, report: &[u8]) -> io::Result<Written> {
        self.write_by(|out| out.write_all(report))
    }

    /// Writes what `write` writes, or leaves what was there if that ends in an error.
    pub fn write_by(
        &self,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<Written> {
        match self {
            Destination::Stdout => {
                let mut out = io::stdout().lock();
                write(&mut out)?;
                out.flush()?;
                Ok(Written::Nowhere)
            }
            Destination::Device(file) => {
                write(&mut &*file)?;
                Ok(Written::Nowhere)
            }
            Destination::Late { path, pid, start_ticks } => {
                let is_free = !path.exists() || is_report_of(path, *pid, *start_ticks);
                let own = path.with_extension(match path.extension() {
                    Some(extension) => format!("{pid}.{}", extension.display()),
                    None => pid.to_string(),
                });
                let path = if is_free { path.clone() } else { own };
                Destination::File(path).write_by(write)
            }
            Destination::File(path) => {
                let file = match unnamed(path)? {
                    Some(mut file) => {
                        write(&mut file)?;
                        let existing = keep_mode(&file, path)?;
                        if name(&file, path).is_ok() {
                            return Ok(Written::to(path, existing));
                        }
                        // Not every file system gives names later.
                        let mut copy = named(path)?;
                        file.rewind()?;
                        io::copy(&mut file, &mut copy)?;
                        copy
                    }
                    None => {
                        let mut file = named(path)?;
                        write(&mut file)?;
                        file
                    }
                };
                let existing = keep_mode(file.as_file(), path)?;
                file.persist(path).map_err(|error| error.error)?;
                Ok(Written::to(path, existing))
            }
        }
    }
}

/// Whether what is there is a report of that process.
pub fn is_report_of(path: &Path, pid: u32, start_ticks: u64) -> bool {
    let is_regular = fs::metadata(path).is_ok_and(|found| found.is_file());
    let json = is_regular.then(|| fs::read(path).ok()).flatten();
    let report: Option<Report> = json.and_then(|json| serde_json::from_slice(&json).ok());
    let mut processes = report.iter().flat_map(|report| &report.processes);
    processes.any(|one| (one.pid, one.start_ticks) == (pid, start_ticks))
}

impl Written {
    fn to(path: &Path, existing: bool) -> Written {
        if existing { Written::Replaced(path.to_owned()) } else { Written::New(path.to_owned()) }
    }
}

/// Gives a file the mode of the one at `path`, if there is one, as if that had been written over. Returns
/// whether there is.
fn keep_mode(file: &File, path: &Path) -> io::Result<bool> {
    let Ok(existing) = fs::metadata(path) else { return Ok(false) };
    file.set_permissions(existing.permissions())?;
    Ok(true)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// A file in the same folder that has no name, with the mode that a new file would have: whenever we may
/// be killed, nothing is left of it. None where the file system has no such files.
fn unnamed(path: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o666).custom_flags(libc::O_TMPFILE);
    match options.open(folder_of(path)) {
        Ok(file) => Ok(Some(file)),
        // Not supported, or not known (open(2)); or a folder that another file than ours shows better.
        Err(error) => match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL | libc::ENOSYS) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Gives a file without a name the name `path`, which may be another's.
fn name(file: &File, path: &Path) -> io::Result<()> {
    // As open(2) has it for those without CAP_DAC_READ_SEARCH.
    let link = |to: &Path| {
        linkat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), CWD, to, AtFlags::SYMLINK_FOLLOW)
    };
    match link(path) {
        Err(Errno::EXIST) => {}
        done => return Ok(done?),
    }
    // A name cannot be taken over in one step. Killed between these two, we leave the first.
    let draft = tempfile::Builder::new()
        .prefix(PREFIX)
        .make_in(folder_of(path), |draft| Ok(link(draft)?))?;
    draft.into_temp_path().persist(path).map_err(|error| error.error)
}

/// A temporary file in the same folder, with the mode that a new file would have.
fn named(path: &Path) -> io::Result<NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    tempfile::Builder::new()
        .prefix(PREFIX)
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(folder_of(path))
}

/// Where a path's links lead: a file is replaced in its own folder and file system, and links stay.
/// Those of /proc are left, so that an open file isn't replaced behind its user's back.
fn follow(mut path: PathBuf) -> PathBuf {
    // The kernel follows at most 40 (path_resolution(7)).
    for _ in 0..40 {
        match fs::read_link(&path) {
            Ok(target) if !path.starts_with("/proc") => {
                path = path.parent().unwrap_or(Path::new("/")).join(target);
            }
            _ => break,
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_written_whole_and_replacing_one_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let destination = Destination::check(&path).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left by the check");
        assert!(matches!(destination.write(b"one").unwrap(), Written::New(_)));
        assert!(matches!(destination.write(b"two").unwrap(), Written::Replaced(_)));
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_late_report_leaves_another_runs_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let late = Destination::check(&path).unwrap().late(7, 70).unwrap();
        assert!(late.is_file());
        assert_eq!(late.write(b"first").unwrap(), Written::New(path.clone()));
        // What can't be read is not known to be its own.
        let own = folder.path().join("report.7.json");
        assert_eq!(late.write(b"second").unwrap(), Written::New(own.clone()));
        assert_eq!(late.write(b"third").unwrap(), Written::Replaced(own));
        assert_eq!(fs::read(&path).unwrap(), b"first");
    }

    #[test]
    fn what_cannot_be_written_is_known_before() {
        let folder = tempfile::tempdir().unwrap();
        let error = |path: &Path| Destination::check(path).unwrap_err().to_string();
        assert!(error(folder.path()).contains("it is a folder"));
        assert!(error(&folder.path().join("no/such/report.json")).contains("No such file"));
        assert!(error(Path::new("/proc/report.json")).to_lowercase().contains("no such file"));
    }

    #[test]
    fn devices_are_written_as_they_are() {
        let destination = Destination::check(Path::new("/dev/null")).unwrap();
        assert!(matches!(destination, Destination::Device(_)));
        assert_eq!(destination.write(b"gone").unwrap(), Written::Nowhere);
    }
}
