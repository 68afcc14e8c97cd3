//! The report's name: what stands for the pid, the host and the rank in it, and the name where none is given.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::host::{self, Rank};

/// The report's name, in the current folder, where none is given.
pub const DEFAULT: &str = "ttalloc-report.json";
/// The same for one of several ranks, so that they don't replace each other's.
const DEFAULT_OF_RANK: &str = "ttalloc-report.%r.json";

/// What the placeholders stand for.
const KNOWN: &str =
    "%p is the program's pid, %h the host's name, %r the rank, and %% a percent sign";

/// A report's name, with its placeholders.
#[derive(Clone, Debug)]
pub struct Name {
    /// What is known beforehand, cut where the program's pid is to stand.
    parts: Vec<Vec<u8>>,
}

/// Why a name can't be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It has a placeholder that means nothing.
    #[error("%{0} means nothing in its name: {KNOWN}")]
    Unknown(char),
    /// It ends in a percent sign.
    #[error("its name ends in a lone %: {KNOWN}")]
    Lone,
    /// It has the rank, and this process has none.
    #[error(
        "its name has %r, but this process has no rank: none of {} is a number; start ttalloc-run by mpirun or srun (mpirun -np 4 ttalloc-run …), or use %p",
        Rank::variables().collect::<Vec<_>>().join(", ")
    )]
    NoRank,
}

impl Name {
    /// A name as the user gives it.
    pub fn new(name: &Path) -> Result<Name, NameError> {
        Name::of(name.as_os_str(), &host::name(), Rank::of_this_process())
    }

    fn of(name: &OsStr, host: &str, rank: Option<Rank>) -> Result<Name, NameError> {
        let mut parts = Vec::new();
        let mut part = Vec::new();
        let mut rest = name.as_bytes();
        while let Some(at) = rest.iter().position(|&byte| byte == b'%') {
            part.extend(&rest[..at]);
            let after = &rest[at + 1..];
            match after.first() {
                Some(b'%') => part.push(b'%'),
                // A host is one step of a path.
                Some(b'h') => part.extend(host.replace('/', "_").as_bytes()),
                Some(b'r') => {
                    part.extend(rank.ok_or(NameError::NoRank)?.rank.to_string().as_bytes());
                }
                Some(b'p') => parts.push(std::mem::take(&mut part)),
                Some(_) => {
                    let letter = String::from_utf8_lossy(after).chars().next();
                    return Err(NameError::Unknown(letter.unwrap_or_default()));
                }
                None => return Err(NameError::Lone),
            }
            rest = &after[1..];
        }
        part.extend(rest);
        parts.push(part);
        Ok(Name { parts })
    }

    /// The name when the program's pid is this.
    pub fn path(&self, pid: u32) -> PathBuf {
        OsString::from_vec(self.parts.join(pid.to_string().as_bytes())).into()
    }

    /// Whether the pid makes a difference.
    pub fn has_pid(&self) -> bool {
        self.parts.len() > 1
    }
}

/// The name where the user gives none. Only a rank among several needs another than [`DEFAULT`].
pub fn default() -> PathBuf {
    default_of(Rank::of_this_process()).into()
}

fn default_of(rank: Option<Rank>) -> &'static str {
    match rank {
        Some(rank) if rank.size != Some(1) => DEFAULT_OF_RANK,
        _ => DEFAULT,
    }
}

/// A path as a name that means it, whatever it has of percent signs.
pub fn literal(path: &Path) -> OsString {
    let mut name = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        name.extend(if byte == b'%' { &b"%%"[..] } else { std::slice::from_ref(&byte) });
    }
    OsString::from_vec(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANK: Option<Rank> = Some(Rank { rank: 12, size: Some(16) });

    fn path(name: &[u8], rank: Option<Rank>) -> Result<PathBuf, NameError> {
        Name::of(OsStr::from_bytes(name), "node/7", rank).map(|name| name.path(4711))
    }

    #[test]
    fn placeholders_stand_for_what_they_say() {
        let expect = |name: &[u8], expected: &[u8]| {
            let path = path(name, RANK).unwrap();
            assert_eq!(path.as_os_str().as_bytes(), expected);
        };
        expect(b"r.json", b"r.json");
        expect(b"", b"");
        expect(b"r-%r.json", b"r-12.json");
        expect(b"%h/%p-%r-%p", b"node_7/4711-12-4711");
        expect(b"%%p%%", b"%p%");
        expect(b"100%%/\xff%p", b"100%/\xff4711");
    }

    #[test]
    fn only_the_pid_is_not_known_before() {
        let has_pid = |name: &str| Name::of(name.as_ref(), "node", RANK).unwrap().has_pid();
        assert!(has_pid("%p") && has_pid("a%pb%p"));
        assert!(!has_pid("") && !has_pid("%%p") && !has_pid("%h%r"));
    }

    #[test]
    fn what_means_nothing_is_said_with_what_does() {
        let error = |name: &[u8], rank| path(name, rank).unwrap_err().to_string();
        for (name, what) in [(&b"%x"[..], "%x "), (b"50%.json", "%. "), (b"%\xff", "%\u{fffd} ")] {
            let message = error(name, RANK);
            assert!(
                message.starts_with(what) && message.contains("%h the host's name"),
                "{message}"
            );
        }
        assert!(error(b"a%", RANK).contains("lone %"));
        let message = error(b"r-%r.json", None);
        assert!(
            message.contains("OMPI_COMM_WORLD_RANK") && message.contains("mpirun"),
            "{message}"
        );
    }

    #[test]
    fn ranks_have_names_of_their_own_unless_there_is_one() {
        let rank = |size| Some(Rank { rank: 3, size });
        assert_eq!(default_of(None), DEFAULT);
        assert_eq!(default_of(rank(Some(1))), DEFAULT);
        assert_eq!(default_of(rank(Some(4))), DEFAULT_OF_RANK);
        assert_eq!(default_of(rank(None)), DEFAULT_OF_RANK);
        let name = Name::of(default_of(rank(None)).as_ref(), "node", rank(None)).unwrap();
        assert_eq!(name.path(1), Path::new("ttalloc-report.3.json"));
    }

    #[test]
    fn a_literal_path_means_itself() {
        let odd = OsStr::from_bytes(b"/tmp/100%p%%/\xff");
        let name = Name::of(&literal(Path::new(odd)), "node", None).unwrap();
        assert_eq!(name.path(1).as_os_str(), odd);
    }
}
