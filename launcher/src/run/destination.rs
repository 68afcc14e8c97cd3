//! Where the report goes: checked before the program starts, written when it is done.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tempfile::NamedTempFile;

/// The report's default name, in the current folder.
pub const DEFAULT: &str = "ttalloc-report.json";

/// A place for the report.
#[derive(Debug)]
pub enum Destination {
    /// Standard output.
    Stdout,
    /// A regular file, written whole or not at all.
    File(PathBuf),
    /// Something else that is written to as it is, such as a pipe.
    Device(PathBuf),
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
        let path = std::path::absolute(name).context("the current folder is gone")?;
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => bail!("it is a folder; name a file in it"),
            Ok(found) if !found.is_file() => {
                OpenOptions::new().append(true).open(&path)?;
                return Ok(Destination::Device(path));
            }
            Ok(_) => {
                // Replaced whole, but only where it could have been written.
                OpenOptions::new().append(true).open(&path)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        // Made and removed at once: the program must not find it.
        drop(Self::beside(&path)?);
        Ok(Destination::File(path))
    }

    /// Writes the report.
    pub fn write(&self, report: &[u8]) -> io::Result<Written> {
        match self {
            Destination::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(report)?;
                out.flush()?;
                Ok(Written::Nowhere)
            }
            Destination::Device(path) => {
                OpenOptions::new().append(true).open(path)?.write_all(report)?;
                Ok(Written::Nowhere)
            }
            Destination::File(path) => {
                let mut file = Self::beside(path)?;
                file.write_all(report)?;
                let existed = path.exists();
                let path = path.canonicalize().unwrap_or_else(|_| path.clone());
                file.persist(&path).map_err(|error| error.error)?;
                Ok(if existed { Written::Replaced(path) } else { Written::New(path) })
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
