//! What is told of this process: who it is, and what it runs.

use std::fs;
use std::os::unix::ffi::OsStringExt;

use ttalloc_ring::record::{self, Head, MAX_BYTES};

/// This process's pid as /proc has it. If the ring was found through /proc, that is the launcher's
/// view, from another pid namespace too. 0 if it can't be told.
pub fn visible_pid() -> u32 {
    let own = fs::read_link("/proc/self").ok();
    own.and_then(|path| path.to_str()?.parse().ok()).unwrap_or(0)
}

/// When this process was started, in clock ticks since the machine was; 0 if it can't be told.
pub fn start_ticks() -> u64 {
    fs::read("/proc/self/stat").ok().and_then(|stat| start_in(&stat)).unwrap_or(0)
}

/// Field 22 of a process's `stat` (proc_pid_stat(5)). The second is the program's name in parentheses,
/// which may hold any bytes.
fn start_in(stat: &[u8]) -> Option<u64> {
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// The record's body, and its argument vector: whole arguments, as far as they fit.
pub fn describe(
    pid: u32,
    start_ticks: u64,
    rank: i32,
    parent_process: u32,
) -> (record::Process, Vec<u8>) {
    let room = MAX_BYTES - size_of::<Head>() - size_of::<record::Process>();
    let mut argv = Vec::new();
    let mut cut = false;
    for argument in std::env::args_os() {
        let argument = argument.into_vec();
        cut |= argv.len() + argument.len() + 1 > room;
        if !cut {
            argv.extend(argument);
            argv.push(0);
        }
    }
    let body = record::Process {
        pid,
        inner_pid: std::process::id(),
        parent_pid: std::os::unix::process::parent_id(),
        forked: (parent_process != 0).into(),
        start_ticks,
        parent_process,
        rank,
        argv_cut: cut.into(),
        reserved: 0,
    };
    (body, argv)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let rest = (4..=22).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        for name in ["ls", "a b", ") R 1 (", "\n", ""] {
            let stat = format!("7 ({name}) S {rest} 0 0\n");
            assert_eq!(start_in(stat.as_bytes()), Some(22), "{stat}");
        }
        let mut stat = b"7 (\xff) S ".to_vec();
        stat.extend(rest.as_bytes());
        assert_eq!(start_in(&stat), Some(22));
        for stat in
            ["", "7", "7 (ls", "7 (ls) S 1 2", "7 (ls) S x x x x x x x x x x x x x x x x x x x"]
        {
            assert_eq!(start_in(stat.as_bytes()), None, "{stat}");
        }
    }

    #[test]
    fn this_process_has_a_start() {
        assert!(start_ticks() > 0);
        assert_eq!(visible_pid(), std::process::id());
    }
}
