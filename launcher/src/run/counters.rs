//! The counters that tt-metal keeps itself, in `/dev/shm/tt_device_<id>_memory`, one file for each chip.
//!
//! They are there from 0.70.1 on, unless TT_METAL_SHM_TRACKING_DISABLED is 1. The layout is that of
//! `DeviceMemoryRegion` in tt-metal's `impl/memory_tracking/memory_stats_shm.hpp`: version 3, and
//! version 4, which by its own words leaves all fields of version 3 where they were. Anyone may write
//! to these files, and processes do while they are read, so nothing in them is taken on trust.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Where the files are.
pub const FOLDER: &str = "/dev/shm";

/// How many files are looked at.
const MOST_FILES: usize = 4096;
/// The size of a file in bytes.
const BYTES: usize = 8576;
const VERSIONS: [u32; 2] = [3, 4];
const CHIPS: usize = 16;
const CHIP_BYTES: usize = 48;
const CHIPS_AT: usize = 88;
const UNUSED_CHIP: u32 = u32::MAX;
const SLOTS: usize = 64;
const SLOT_BYTES: usize = 120;
const SLOTS_AT: usize = CHIPS_AT + CHIPS * CHIP_BYTES;
const _: () = assert!(SLOTS_AT + SLOTS * SLOT_BYTES <= BYTES);

/// All files, each with its counters or why they can't be had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// By their paths.
    pub files: BTreeMap<PathBuf, Result<Region, String>>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// When it was last changed, in nanoseconds of a clock of the runtime's.
    pub updated: u64,
    /// The ids that processes have for the chip.
    pub chips: Vec<i32>,
    /// What the processes have, as far as there was room for them.
    pub slots: Vec<Slot>,
}

/// One process's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its pid, in its own pid namespace.
    pub pid: u32,
    /// What its buffers hold, in bytes as asked for: of DRAM, L1, L1_SMALL and TRACE.
    pub bytes: [u64; 4],
    /// When that last changed, like [`Region::updated`].
    pub updated: u64,
}

impl Region {
    /// Whether no other process can be counted.
    pub fn is_full(&self) -> bool {
        self.slots.len() == SLOTS
    }

    /// The counters of a process.
    pub fn slot(&self, pid: u32) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.pid == pid)
    }
}

/// Reads the counters of all chips in `folder`.
pub fn read(folder: &Path) -> io::Result<Counters> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder)?.take(MOST_FILES) {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_name) {
            let path = entry.path();
            let region =
                read_file(&path).map_err(|why| why.to_string()).and_then(|bytes| parse(&bytes));
            files.insert(path, region);
        }
    }
    Ok(Counters { files })
}

fn is_name(name: &str) -> bool {
    let id = name.strip_prefix("tt_device_").and_then(|rest| rest.strip_suffix("_memory"));
    id.is_some_and(|id| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()))
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    // Not through a link, and not waiting for the writer of a pipe.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Result<Region, String> {
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let long = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let cut = || format!("it has {} bytes, where {BYTES} are expected", bytes.len());
    let version = word(0).ok_or_else(cut)?;
    if !VERSIONS.contains(&version) {
        return Err(format!("its layout is version {version}, and only 3 and 4 are known here"));
    }
    if bytes.len() != BYTES {
        return Err(cut());
    }
    let chip = |at: usize| word(at).filter(|&id| id != UNUSED_CHIP).map(|id| id as i32);
    let mut chips: Vec<_> = chip(40).into_iter().collect();
    chips.extend((0..CHIPS).filter_map(|at| chip(CHIPS_AT + at * CHIP_BYTES)));
    chips.sort_unstable();
    chips.dedup();
    let slots = (0..SLOTS).filter_map(|at| {
        let at = SLOTS_AT + at * SLOT_BYTES;
        let pid = word(at).filter(|&pid| pid != 0)?;
        let bytes = [long(at + 8)?, long(at + 16)?, long(at + 24)?, long(at + 32)?];
        Some(Slot { pid, bytes, updated: long(at + 48)? })
    });
    Ok(Region { updated: long(8).ok_or_else(cut)?, chips, slots: slots.collect() })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A file as the runtime writes it.
    pub fn file(version: u32, chip: u32, updated: u64, slots: &[Slot]) -> Vec<u8> {
        let mut bytes = vec![0; BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &version.to_le_bytes());
        put(8, &updated.to_le_bytes());
        put(40, &chip.to_le_bytes());
        for at in 0..CHIPS {
            put(CHIPS_AT + at * CHIP_BYTES, &UNUSED_CHIP.to_le_bytes());
        }
        put(CHIPS_AT, &chip.to_le_bytes());
        for (at, slot) in slots.iter().enumerate() {
            let at = SLOTS_AT + at * SLOT_BYTES;
            put(at, &slot.pid.to_le_bytes());
            for (of_type, bytes) in slot.bytes.iter().enumerate() {
                put(at + 8 + of_type * 8, &bytes.to_le_bytes());
            }
            put(at + 48, &slot.updated.to_le_bytes());
            put(at + 56, b"python3\0");
        }
        bytes
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let slots = [
            Slot { pid: 7, bytes: [1, 2, 3, 4], updated: 5 },
            Slot { pid: 8, bytes: [1 << 40, 0, 0, 0], updated: 6 },
        ];
        for version in VERSIONS {
            let region = parse(&file(version, 4, 9, &slots)).unwrap();
            assert_eq!((region.updated, &*region.chips), (9, &[4][..]));
            assert_eq!(region.slots, slots);
            assert_eq!(region.slot(8), Some(&slots[1]));
            assert!(!region.is_full());
        }
        let many = [Slot { pid: 9, bytes: [0; 4], updated: 0 }; SLOTS];
        assert!(parse(&file(3, 0, 0, &many)).unwrap().is_full());
    }

    #[test]
    fn what_is_no_file_of_the_runtime_is_said_to_be_none() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
        put("tt_device_1_memory", &file(3, 0, 1, &[]));
        put("tt_device_2_memory", &file(7, 0, 1, &[]));
        put("tt_device_3_memory", b"short");
        put("tt_device_4_memory", &[file(3, 0, 1, &[]), vec![0]].concat());
        put("tt_device_x_memory", b"");
        put("tt_device__memory", b"");
        put("sm_segment", b"");
        let link = folder.path().join("tt_device_5_memory");
        std::os::unix::fs::symlink("tt_device_1_memory", link).unwrap();
        fs::create_dir(folder.path().join("tt_device_6_memory")).unwrap();
        let pipe = folder.path().join("tt_device_7_memory");
        let status = std::process::Command::new("mkfifo").arg(pipe).status().unwrap();
        assert!(status.success());
        let found: Vec<_> = read(folder.path())
            .unwrap()
            .files
            .into_iter()
            .map(|(path, region)| {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, region.map(drop))
            })
            .collect();
        let error = |at: usize| found[at].1.clone().unwrap_err();
        assert_eq!(found.len(), 7, "{found:?}");
        assert_eq!(found[0], ("tt_device_1_memory".to_owned(), Ok(())));
        assert_eq!(error(1), "its layout is version 7, and only 3 and 4 are known here");
        assert!(error(2).contains("version"), "{}", error(2));
        assert_eq!(error(3), "it has 8577 bytes, where 8576 are expected");
        assert!(error(4).contains("symbolic link"), "{}", error(4));
        assert_eq!(error(5), "it is no regular file");
        assert_eq!(error(6), "it is no regular file");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            mut bytes in prop::collection::vec(any::<u8>(), 0..9000),
            version in 2..5_u32,
        ) {
            let _ = parse(&bytes);
            bytes.resize(BYTES, 0xff);
            bytes[..4].copy_from_slice(&version.to_le_bytes());
            prop_assert_eq!(parse(&bytes).is_ok(), version > 2);
        }
    }
}
