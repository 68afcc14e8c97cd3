//! Where the report goes: checked before the program starts, written when it is done.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tempfile::NamedTempFile;

/// A place for the report.
#[derive(Debug)]
pub enum Destination {
    /// Standard output.
    Stdout,
    /// A regular file, written whole or not at all.
    File(PathBuf),
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
        // Made and removed at once: the program must not find it.
        drop(Self::beside(&path)?);
        Ok(Destination::File(path))
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
            Destination::File(path) => {
                let mut file = Self::beside(path)?;
                write(&mut file)?;
                let existing = fs::metadata(path).ok();
                if let Some(existing) = &existing {
                    // As if it had been written over.
                    file.as_file().set_permissions(existing.permissions())?;
                }
                file.persist(path).map_err(|error| error.error)?;
                let path = path.clone();
                Ok(if existing.is_some() { Written::Replaced(path) } else { Written::New(path) })
            }
        }
    }

    /// A temporary file in the same folder, with the mode that a new file would have.
    fn beside(path: &Path) -> io::Result<NamedTempFile> {
        use std::os::unix::fs::PermissionsExt;
        let folder = path.parent().unwrap_or(Path::new("/"));
        tempfile::Builder::new()
            .prefix(".ttalloc-report-")
            .permissions(fs::Permissions::from_mode(0o666))
            .tempfile_in(folder)
    }
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
