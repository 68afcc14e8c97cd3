//! Processes that the program has left behind and that may yet use tt-metal: those that have inherited the
//! ring, or its name.

use procfs::process::{Process, Stat, all_processes};

use std::os::unix::fs::MetadataExt;

use ttalloc_ring::RING_VARIABLE;
use ttalloc_ring::ring::Consumer;

use super::watch::maps;

/// The processes that have inherited a ring.
pub struct Heirs {
    /// The variable that names the ring, as it is in an environment.
    entry: Vec<u8>,
    /// The inode of its memory.
    ring: u64,
    /// When the program was started, in clock ticks since the machine was: all of them are younger.
    since: u64,
    /// Those that were found last: their pids, and when they were started.
    found: Vec<(i32, u64)>,
}

impl Heirs {
    /// Those of a ring, of a program that was started at `since`.
    pub fn of(ring: &Consumer, since: u64) -> Heirs {
        let inode = ring.file().metadata().map_or(0, |metadata| metadata.ino());
        Heirs::new(&ring.variable(), inode, since)
    }

    /// None at all.
    pub fn none() -> Heirs {
        Heirs::new("", 0, u64::MAX)
    }

    fn new(variable: &str, ring: u64, since: u64) -> Heirs {
        let entry = [RING_VARIABLE.to_bytes(), b"=", variable.as_bytes()].concat();
        Heirs { entry, ring, since, found: Vec::new() }
    }

    /// The pids of those that run. Only when the ones found before are gone, it looks for others.
    pub fn running(&mut self) -> Vec<u32> {
        self.found.retain(|&(pid, start)| {
            let stat = Process::new(pid).and_then(|process| process.stat());
            stat.is_ok_and(|stat| stat.starttime == start && is_alive(&stat))
        });
        if self.found.is_empty() {
            let all = all_processes().into_iter().flatten().flatten();
            self.found = all.filter_map(|process| self.look_at(&process)).collect();
        }
        self.found.iter().filter_map(|&(pid, _)| u32::try_from(pid).ok()).collect()
    }

    /// The process, if it is one of them. Those of others can't be looked into, and are none.
    fn look_at(&self, process: &Process) -> Option<(i32, u64)> {
        let stat = process.stat().ok()?;
        let pid = u32::try_from(process.pid).ok().filter(|&pid| pid != std::process::id())?;
        if stat.starttime < self.since || !is_alive(&stat) {
            return None;
        }
        let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
        let has_entry = environment.split(|&byte| byte == 0).any(|entry| entry == self.entry);
        // What we have forked ourselves has the ring too, but not its name.
        let is_ours = u32::try_from(stat.ppid) == Ok(std::process::id());
        let has_ring = || !is_ours && maps(pid, self.ring) == Some(true);
        (has_entry || has_ring()).then_some((process.pid, stat.starttime))
    }
}

fn is_alive(stat: &Stat) -> bool {
    !matches!(stat.state, 'Z' | 'X')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    fn start(name: &str) -> Child {
        let variable = RING_VARIABLE.to_str().unwrap();
        Command::new("sleep").arg("60").env(variable, name).spawn().unwrap()
    }

    #[test]
    fn who_has_the_rings_name_is_one_while_it_lives() {
        let name = format!("/proc/{}/fd/3@0123456789abcdef", std::process::id());
        let mut heirs = Heirs::new(&name, 0, 0);
        assert!(heirs.running().is_empty());
        let (mut heir, mut other) = (start(&name), start("/proc/1/fd/3@0123456789abcdef"));
        // Between fork and exec it has another's environment.
        while heirs.running().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(heirs.running(), [heir.id()]);
        let start = Process::new(heir.id() as i32).unwrap().stat().unwrap().starttime;
        assert!(Heirs::new(&name, 0, start + 1).running().is_empty(), "it was started before");
        heir.kill().unwrap();
        while !heirs.running().is_empty() {
            std::thread::yield_now();
        }
        heir.wait().unwrap();
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
