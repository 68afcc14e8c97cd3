//! Whether the kernel kills processes for want of memory: it counts them, for each cgroup and in all, and
//! tells nobody which.

use std::fs;
use std::path::{Path, PathBuf};

use procfs::process::{MountInfo, Process};

/// What the kernel counts for the whole machine (`proc_vmstat(5)`), since Linux 4.13.
const MACHINE: &str = "/proc/vmstat";
/// The field in each of the files.
const FIELD: &str = "oom_kill";

/// How many processes the kernel had killed for want of memory, where a process belongs.
#[derive(Clone, Debug)]
pub struct Kills {
    file: PathBuf,
    before: u64,
}

impl Kills {
    /// The count as it is now for the process `pid`: of its cgroup if that counts, else of the machine.
    /// None if the kernel is too old to count, or the process is gone.
    pub fn of(pid: u32) -> Option<Kills> {
        let process = Process::new(i32::try_from(pid).ok()?).ok()?;
        let groups = process.cgroups().ok();
        let mounts = Process::myself().and_then(|own| own.mountinfo()).ok();
        let files = mounts.iter().flatten().flat_map(|mount| {
            groups.iter().flatten().filter_map(|group| {
                counter_file(mount, &group.controllers, Path::new(&group.pathname))
            })
        });
        // The cgroup that accounts for memory is in one of the two hierarchies.
        let counted = |file: PathBuf| Some(Kills { before: read(&file)?, file });
        files.filter_map(counted).next().or_else(|| counted(PathBuf::from(MACHINE)))
    }

    /// How many there have been since, and by which count, in words; None if there were none.
    pub fn since(&self) -> Option<String> {
        let more = read(&self.file)?.checked_sub(self.before).filter(|&more| more > 0)?;
        let where_ =
            if self.file == Path::new(MACHINE) { "on this machine" } else { "in its cgroup" };
        let processes =
            if more == 1 { "1 process".to_owned() } else { format!("{more} processes") };
        Some(format!(
            "the kernel killed {processes} for want of memory {where_} meanwhile ({FIELD} in {})",
            self.file.display()
        ))
    }
}

/// The file with the count of a cgroup, if `mount` is where its hierarchy can be seen.
fn counter_file(mount: &MountInfo, controllers: &[String], group: &Path) -> Option<PathBuf> {
    let name = match &*mount.fs_type {
        "cgroup2" if controllers.iter().all(String::is_empty) => "memory.events",
        "cgroup" if mount.super_options.contains_key("memory") => {
            controllers.iter().find(|name| *name == "memory")?;
            "memory.oom_control"
        }
        _ => return None,
    };
    // A mount may show a part of the hierarchy only (proc_pid_mountinfo(5)).
    let below = group.strip_prefix(&mount.root).ok()?;
    Some(mount.mount_point.join(below).join(name))
}

fn read(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(field, _)| *field == FIELD)?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use procfs::FromBufRead;
    use procfs::process::MountInfos;

    fn mount(line: &str) -> MountInfo {
        MountInfos::from_buf_read(line.as_bytes()).unwrap().into_iter().next().unwrap()
    }

    #[test]
    fn a_cgroups_count_is_found_in_either_hierarchy() {
        let path = |mount: &MountInfo, controllers: &[&str], group: &str| {
            let controllers: Vec<_> = controllers.iter().map(|name| (*name).to_owned()).collect();
            counter_file(mount, &controllers, Path::new(group))
        };
        let two = mount("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n");
        let found = path(&two, &[""], "/user.slice/x").unwrap();
        assert_eq!(found, Path::new("/sys/fs/cgroup/user.slice/x/memory.events"));
        let one = mount("35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
        let found = path(&one, &["memory"], "/").unwrap();
        assert_eq!(found, Path::new("/sys/fs/cgroup/memory/memory.oom_control"));
        assert_eq!(path(&one, &["cpu"], "/"), None);
        assert_eq!(path(&one, &[""], "/"), None);
        // A container's: a part of the hierarchy, or an own view of it.
        let part = mount("35 31 0:32 /docker/1f /mnt rw - cgroup cgroup rw,memory\n");
        assert_eq!(
            path(&part, &["memory"], "/docker/1f/a").unwrap(),
            Path::new("/mnt/a/memory.oom_control")
        );
        assert_eq!(path(&part, &["memory"], "/docker/2e"), None);
        let other = mount("36 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n");
        assert_eq!(path(&other, &["memory"], "/"), None);
    }

    #[test]
    fn a_count_that_rises_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let write = |count: u64| {
            fs::write(file.path(), format!("oom_kill_disable 0\nunder_oom 0\noom_kill {count}\n"))
                .unwrap();
        };
        write(4);
        let kills = Kills { before: read(file.path()).unwrap(), file: file.path().to_owned() };
        assert_eq!(kills.since(), None);
        write(5);
        assert!(
            kills
                .since()
                .unwrap()
                .starts_with("the kernel killed 1 process for want of memory in its cgroup")
        );
        write(7);
        assert!(kills.since().unwrap().contains("3 processes"));
        // A group of the same name that was made anew.
        write(0);
        assert_eq!(kills.since(), None);
        fs::write(file.path(), "low 0\n").unwrap();
        assert_eq!(kills.since(), None);
    }

    #[test]
    fn one_that_is_gone_has_none() {
        assert!(Kills::of(u32::MAX).is_none());
        assert!(Kills::of(std::process::id()).is_some(), "this kernel counts");
    }
}
