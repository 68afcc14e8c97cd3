//! The processes that write to the ring: who still lives, and how the others ended.
//!
//! A pid alone says little, since pids come back. With the time at which its process was started (in clock
//! ticks since the machine was) it is one process; a process that calls exec stays the same one, and comes
//! to the ring again. A pidfd that was opened while the process lived tells its end at once, and from Linux
//! 6.15 on how it ended, whoever its parent is. There are as many of these as this process may have open;
//! the rest is looked up in /proc.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use procfs::ProcError;
use procfs::process::Process as Proc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Resource, getrlimit, pidfd_open};

use super::memory::Kills;
use super::signals;
use crate::report::Exit;

/// Descriptors that are left for other uses.
const SPARE: u64 = 64;
/// The most that are kept open.
const MOST: u64 = 4096;
/// How long a process that ended may stay unreaped before it is settled that how it ended can't be known.
const UNREAPED: Duration = Duration::from_secs(3600);
/// How often processes without a descriptor are looked up.
const LOOK_UP: Duration = Duration::from_millis(50);
/// How often the others are, since no descriptor tells of exec: where there are many, and few.
const LOOK_AROUND: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(20)];
/// How many few are.
const FEW: usize = 8;
/// What the ring's memory is called in /proc.
const RING: &str = "/memfd:ttalloc-ring";
/// The number of one that is watched for itself. The ring has fewer.
const PROGRAM: u32 = u32::MAX;

/// What is known of a process's end.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// How it ended.
    pub how: How,
    /// What speaks for the kernel's having killed it for want of memory.
    pub out_of_memory: Option<String>,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq)]
pub enum How {
    /// It has not.
    Running,
    /// It has, and how can't be known.
    Unknown,
    /// It has so.
    Exited(Exit),
    /// It called exec; the program in its place is the process of this number in the ring, if it is one.
    Replaced(Option<u32>),
}

/// A process, as the ring's table has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its number in the ring.
    pub number: u32,
    /// Its pid.
    pub pid: u32,
    /// When it was started, in clock ticks since the machine was; 0 if it did not tell.
    pub start_ticks: u64,
}

#[derive(Debug)]
struct Watched {
    row: Row,
    state: State,
    image: Option<Image>,
    /// As of when it came.
    kills: Option<Kills>,
    out_of_memory: Option<String>,
}

/// One who has ended, or whose program has.
#[derive(Debug)]
struct Closed {
    row: Row,
    end: End,
}

#[derive(Debug)]
enum State {
    /// It lives, as far as is known.
    Running(Option<OwnedFd>),
    /// It has ended, and its parent hasn't asked how.
    Ended(Option<OwnedFd>, Instant),
    /// It ended so.
    Settled(Option<Exit>),
    /// It called exec: its program ended, and a later one runs in the process, which may have come to the
    /// ring by this number.
    Replaced(Option<u32>),
}

/// Watches processes.
#[derive(Debug)]
pub struct Watch {
    /// Those of whom more is to be learned, by their numbers.
    open: BTreeMap<u32, Watched>,
    /// The others.
    closed: HashMap<u32, Closed>,
    /// The numbers of those that were closed since this was last asked.
    just_closed: Vec<u32>,
    /// The numbers of those that have not said yet who they are.
    fresh: Vec<u32>,
    /// The inode of the ring's memory, if processes are to have it.
    ring: Option<u64>,
    /// How many more descriptors may be opened.
    room: u64,
    looked_up: Instant,
    looked_around: Instant,
}

impl Watch {
    /// Watches nobody yet. `ring` is the inode of the ring's memory, which every process in the ring has
    /// mapped.
    pub fn new(ring: u64) -> Watch {
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let room = files.saturating_sub(SPARE).min(MOST);
        Watch { ring: Some(ring), ..Watch::with_room(room) }
    }

    fn with_room(room: u64) -> Watch {
        let now = Instant::now();
        Watch {
            open: BTreeMap::new(),
            closed: HashMap::new(),
            just_closed: Vec::new(),
            fresh: Vec::new(),
            ring: None,
            room,
            looked_up: now,
            looked_around: now,
        }
    }

    /// Begins to watch those that have come, and sees who has ended. `announced` tells whether a process
    /// of that number has said who it is: one that has not may withdraw its number.
    pub fn look(&mut self, rows: impl Iterator<Item = Row>, announced: impl Fn(u32) -> bool) {
        for row in rows.filter(|row| row.number != PROGRAM && row.pid != 0) {
            // What is written later in a row is none of a writer's that can be trusted.
            if !self.open.contains_key(&row.number) && !self.closed.contains_key(&row.number) {
                self.begin(row);
                self.fresh.push(row.number);
            }
        }
        self.see_exec(announced);
        self.see_ended();
        self.close();
    }

    /// The numbers of those that have ended since this was last asked, or whose programs have.
    pub fn take_ended(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.just_closed)
    }

    /// Forgets those of the ended that nobody will ask about.
    pub fn forget(&mut self, is_unneeded: impl Fn(u32) -> bool) {
        self.closed.retain(|&number, _| number == PROGRAM || !is_unneeded(number));
    }

    /// Begins to watch a process for itself. Whether it is in the ring or not makes no difference.
    pub fn begin_with(&mut self, pid: u32, start_ticks: u64) {
        self.begin(Row { number: PROGRAM, pid, start_ticks });
    }

    /// How that process ended.
    pub fn program(&self) -> How {
        let closed = || self.closed.get(&PROGRAM).map(|one| one.end.how.clone());
        self.open.get(&PROGRAM).map(Watched::how).or_else(closed).unwrap_or(How::Unknown)
    }

    /// Tells how a process ended that has been waited for.
    pub fn reaped(&mut self, pid: u32, status: ExitStatus) {
        for one in self.open.values_mut().filter(|one| one.row.pid == pid) {
            self.room += u64::from(one.state.has_fd());
            one.settle(Some(exit(status)));
        }
        self.close();
        // It may have been seen to be gone before.
        let unknown = |one: &&mut Closed| one.row.pid == pid && one.end.how == How::Unknown;
        for one in self.closed.values_mut().filter(unknown) {
            one.end.how = How::Exited(exit(status));
        }
    }

    /// Whether it can't write any more.
    pub fn is_dead(&self, number: u32) -> bool {
        let is_ended = |one: &Watched| matches!(one.state, State::Ended(..));
        self.closed.contains_key(&number) || self.open.get(&number).is_some_and(is_ended)
    }

    /// The pids of those that still run, each once.
    pub fn running(&self) -> Vec<u32> {
        let running = |one: &&Watched| matches!(one.state, State::Running(_));
        let mut pids: Vec<_> = self.open.values().filter(running).map(|one| one.row.pid).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Whether somebody has ended of whom it may soon be known how.
    pub fn is_unsettled(&self) -> bool {
        self.open.values().any(|one| matches!(one.state, State::Ended(Some(_), _)))
    }

    /// How each ended, by its number.
    pub fn ends(&self) -> BTreeMap<u32, End> {
        let closed = self.closed.iter().map(|(&number, one)| (number, one.end.clone()));
        let open = |(&number, one): (&u32, &Watched)| {
            (number, End { how: one.how(), out_of_memory: None })
        };
        closed.chain(self.open.iter().map(open)).collect()
    }

    /// Waits until a process ends, `other` has something to read, a signal comes, or the time is over.
    pub fn wait(&self, other: Option<BorrowedFd>, time: Duration) {
        let running = self.open.values().filter_map(|one| match &one.state {
            State::Running(fd) => fd.as_ref(),
            _ => None,
        });
        let mut fds: Vec<_> = running
            .map(AsFd::as_fd)
            .chain(other)
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        // However it ends, the caller looks at everything again.
        let _ = poll(&mut fds, Timespec::try_from(time).ok().as_ref());
    }

    fn begin(&mut self, row: Row) {
        let pidfd = (self.room > 0).then(|| open(row.pid)).flatten();
        let ring = self.ring.filter(|_| row.number != PROGRAM);
        let (state, image) = match look_up(row) {
            Seen::Gone => (State::Settled(None), None),
            Seen::Ended(Some(exit)) => (State::Settled(Some(exit)), None),
            Seen::Ended(None) => (State::Ended(pidfd, Instant::now()), None),
            // It has called exec since. But one that ends while its maps are read shows only the first of them.
            Seen::Running(_)
                if ring.is_some_and(|ring| maps(row.pid, ring) == Some(false))
                    && matches!(look_up(row), Seen::Running(Some(_))) =>
            {
                (State::Replaced(None), None)
            }
            Seen::Running(image) => (State::Running(pidfd), image),
        };
        self.room -= u64::from(state.has_fd());
        let kills = Kills::of(row.pid);
        let one = Watched { row, state, image, kills, out_of_memory: None };
        self.open.insert(row.number, one);
    }

    /// A process that has come again under a later number has called exec in between.
    fn see_exec(&mut self, announced: impl Fn(u32) -> bool) {
        let (known, fresh) =
            std::mem::take(&mut self.fresh).into_iter().partition(|&one| announced(one));
        self.fresh = fresh;
        let known: Vec<u32> = known;
        for by in known {
            let row = self.open.get(&by).map(|one| one.row);
            let Some(row) = row.or_else(|| Some(self.closed.get(&by)?.row)) else { continue };
            let is_earlier = |one: &Row| {
                one.number < by && (one.pid, one.start_ticks) == (row.pid, row.start_ticks)
            };
            for one in self.open.values_mut().filter(|one| is_earlier(&one.row)) {
                self.room += u64::from(one.state.has_fd());
                one.state = State::Replaced(Some(by));
            }
            // What was taken for its end was that of the program that took its place.
            let is_known = |one: &Closed| matches!(one.end.how, How::Replaced(Some(_)));
            let earlier = |one: &&mut Closed| is_earlier(&one.row) && !is_known(one);
            for one in self.closed.values_mut().filter(earlier) {
                one.end = End { how: How::Replaced(Some(by)), out_of_memory: None };
            }
            self.close();
        }
    }

    /// Leaves those of whom no more can be learned.
    fn close(&mut self) {
        let is_over = |one: &Watched| matches!(one.state, State::Settled(_) | State::Replaced(_));
        let over: Vec<_> =
            self.open.values().filter(|one| is_over(one)).map(|one| one.row).collect();
        for row in over {
            if let Some(one) = self.open.remove(&row.number) {
                let end = End { how: one.how(), out_of_memory: one.out_of_memory };
                self.closed.insert(row.number, Closed { row, end });
                self.just_closed.push(row.number);
            }
        }
    }

    fn see_ended(&mut self) {
        let now = Instant::now();
        let look_up = now - self.looked_up >= LOOK_UP;
        let often = usize::from(self.open.len() <= FEW);
        let look_around = now - self.looked_around >= LOOK_AROUND[often];
        if look_up {
            self.looked_up = now;
        }
        if look_around {
            self.looked_around = now;
        }
        let readable = self.readable();
        for (number, one) in &mut self.open {
            let had_fd = one.state.has_fd();
            match &mut one.state {
                State::Running(Some(_)) if readable.contains(number) => {
                    let State::Running(fd) =
                        std::mem::replace(&mut one.state, State::Settled(None))
                    else {
                        continue;
                    };
                    one.state = State::Ended(fd, now);
                    one.see_how(now);
                }
                State::Running(fd) if if fd.is_some() { look_around } else { look_up } => {
                    one.look_up(now);
                }
                State::Ended(Some(_), _) => one.see_how(now),
                State::Ended(None, _) if look_up => one.see_how(now),
                _ => {}
            }
            self.room += u64::from(had_fd && !one.state.has_fd());
        }
    }

    /// The numbers of those whose descriptors say that they have ended.
    fn readable(&self) -> Vec<u32> {
        let (numbers, mut fds): (Vec<u32>, Vec<PollFd>) = self
            .open
            .iter()
            .filter_map(|(&number, one)| match &one.state {
                State::Running(Some(fd)) => Some((number, PollFd::new(fd, PollFlags::IN))),
                _ => None,
            })
            .unzip();
        if poll(&mut fds, Some(&Timespec::default())).is_err() {
            return Vec::new();
        }
        let ended = numbers.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        ended.map(|(number, _)| number).collect()
    }
}

impl State {
    fn has_fd(&self) -> bool {
        matches!(self, State::Running(Some(_)) | State::Ended(Some(_), _))
    }
}

impl Watched {
    fn how(&self) -> How {
        match &self.state {
            State::Running(_) => How::Running,
            State::Settled(Some(exit)) => How::Exited(exit.clone()),
            State::Settled(None) | State::Ended(..) => How::Unknown,
            State::Replaced(by) => How::Replaced(*by),
        }
    }

    /// Looks in /proc. What a descriptor can tell better is left to it.
    fn look_up(&mut self, now: Instant) {
        match look_up(self.row) {
            Seen::Running(Some(image)) if self.image.is_some_and(|before| before != image) => {
                self.state = State::Replaced(None);
            }
            Seen::Running(_) => {}
            _ if self.state.has_fd() => {}
            Seen::Ended(None) => self.state = State::Ended(None, now),
            Seen::Ended(Some(exit)) => self.settle(Some(exit)),
            Seen::Gone => self.settle(None),
        }
    }

    /// Asks how it ended.
    fn see_how(&mut self, now: Instant) {
        let State::Ended(fd, since) = &self.state else { return };
        if let Some(status) = fd.as_ref().and_then(|fd| pidfd::exit_status(fd.as_fd())) {
            self.settle(Some(exit(status)));
            return;
        }
        let late = now - *since > UNREAPED;
        match look_up(self.row) {
            Seen::Ended(Some(exit)) => self.settle(Some(exit)),
            Seen::Gone => {
                // Reaped just now, perhaps.
                let status = fd.as_ref().and_then(|fd| pidfd::exit_status(fd.as_fd()));
                self.settle(status.map(exit));
            }
            _ if late => self.settle(None),
            _ => {}
        }
    }

    fn settle(&mut self, exit: Option<Exit>) {
        if exit == Some(Exit::Signal(signals::name(libc::SIGKILL))) {
            self.out_of_memory = self.kills.as_ref().and_then(Kills::since);
        }
        self.state = State::Settled(exit);
    }
}

/// How a wait status says that a process ended.
pub fn exit(status: ExitStatus) -> Exit {
    match status.signal() {
        Some(signal) => Exit::Signal(signals::name(signal)),
        None => Exit::Code(status.code().unwrap_or_default()),
    }
}

/// A descriptor of the process `pid`, whoever that is now.
pub fn open(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

enum Seen {
    Gone,
    /// Its parent hasn't asked for it yet.
    Ended(Option<Exit>),
    /// With this program; None if nothing is known but that it runs.
    Running(Option<Image>),
}

/// Where a process's program and stack lie, as far as may be seen. It changes with exec.
type Image = [u64; 3];

/// What /proc says of a process.
fn look_up(row: Row) -> Seen {
    let Ok(pid) = i32::try_from(row.pid) else { return Seen::Gone };
    let stat = match Proc::new(pid).and_then(|process| process.stat()) {
        Ok(stat) => stat,
        Err(ProcError::NotFound(_)) => return Seen::Gone,
        // Not allowed to look, or no descriptor to do it with.
        Err(_) => return Seen::Running(None),
    };
    if row.start_ticks != 0 && stat.starttime != row.start_ticks {
        return Seen::Gone;
    }
    // Where its first thread has ended and others haven't, it is shown as ended too.
    if !matches!(stat.state, 'Z' | 'X') || stat.num_threads > 1 {
        // Without a stack it is about to end, or may not be looked into.
        let image = [stat.startcode, stat.endcode, stat.startstack];
        return Seen::Running(Some(image).filter(|_| stat.startstack != 0));
    }
    // Who may not see it sees 0 (proc_pid_stat(5)); the same right is needed for this link.
    let may_see = fs::read_link(format!("/proc/{pid}/ns/user")).is_ok();
    Seen::Ended(stat.exit_code.filter(|_| may_see).map(|code| exit(ExitStatus::from_raw(code))))
}

/// Whether a process has the ring's memory mapped; None if that can't be seen.
pub fn maps(pid: u32, ring: u64) -> Option<bool> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    // None are shown of one that is about to end (proc_pid_maps(5)).
    let is_rings = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(4);
        fields.next() == Some(&ring.to_string())
            && fields.next().is_some_and(|name| name.starts_with(RING))
    };
    (!maps.is_empty()).then(|| maps.lines().any(is_rings))
}

mod pidfd {
    use std::os::fd::BorrowedFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use rustix::ioctl::{Updater, ioctl, opcode};

    /// `struct pidfd_info` of `linux/pidfd.h`, in its first version.
    #[derive(Default)]
    #[repr(C)]
    struct Info {
        mask: u64,
        cgroup: u64,
        pids: [u32; 3],
        ids: [u32; 8],
        exit_code: i32,
    }

    /// `PIDFD_INFO_EXIT`
    const EXIT: u64 = 1 << 3;
    /// `PIDFD_GET_INFO`
    const GET_INFO: rustix::ioctl::Opcode = opcode::read_write::<Info>(0xff, 11);

    /// How the process ended, once its parent has been told; None on kernels before Linux 6.15.
    pub fn exit_status(fd: BorrowedFd) -> Option<ExitStatus> {
        let mut info = Info { mask: EXIT, ..Info::default() };
        // SAFETY: the opcode has the size of `Info`, in which the kernel may write anything.
        let updater = unsafe { Updater::<GET_INFO, Info>::new(&mut info) };
        // SAFETY: any descriptor will do, and the kernel writes nothing but `info`.
        unsafe { ioctl(fd, updater) }.ok()?;
        (info.mask & EXIT != 0).then(|| ExitStatus::from_raw(info.exit_code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::{Child, Command, Stdio};

    fn row(number: u32, pid: u32) -> Row {
        let stat = Proc::new(pid as i32).unwrap().stat().unwrap();
        Row { number, pid, start_ticks: stat.starttime }
    }

    fn start(script: &str) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("echo; {script}")]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // Before, it may not be the shell yet.
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        child
    }

    /// Looks until all have ended.
    fn until_ended(watch: &mut Watch, rows: &[Row]) {
        while !watch.running().is_empty() {
            watch.look(rows.iter().copied(), |_| true);
            watch.wait(None, Duration::from_millis(5));
        }
    }

    fn how(watch: &Watch, number: u32) -> How {
        watch.ends()[&number].how.clone()
    }

    #[test]
    fn an_end_is_known_before_its_parent_asks_and_after() {
        // With descriptors, and without.
        for room in [100, 0] {
            for script in ["exit 7", "kill -KILL $$"] {
                let mut watch = Watch::with_room(room);
                let mut child = start(&format!("sleep 0.1; {script}"));
                let rows = [row(3, child.id())];
                watch.look(rows.into_iter(), |_| true);
                until_ended(&mut watch, &rows);
                let expected = match script {
                    "exit 7" => Exit::Code(7),
                    _ => Exit::Signal("SIGKILL".to_owned()),
                };
                assert_eq!(how(&watch, 3), How::Exited(expected), "{script} {room}");
                assert!(watch.is_dead(3) && !watch.is_dead(4));
                assert_eq!(watch.room, room);
                child.wait().unwrap();
            }
        }
    }

    #[test]
    fn one_that_is_reaped_at_once_is_known_where_the_kernel_tells() {
        let mut watch = Watch::with_room(10);
        let mut child = start("sleep 0.1; exit 9");
        let rows = [row(0, child.id())];
        watch.look(rows.into_iter(), |_| true);
        child.wait().unwrap();
        until_ended(&mut watch, &rows);
        let kernel = procfs::sys::kernel::Version::current().unwrap();
        let tells = kernel >= procfs::sys::kernel::Version::new(6, 15, 0);
        let expected = if tells { How::Exited(Exit::Code(9)) } else { How::Unknown };
        assert_eq!(how(&watch, 0), expected);
    }

    #[test]
    fn one_that_was_waited_for_is_known() {
        let mut watch = Watch::with_room(10);
        let mut child = start("sleep 0.1; exit 4");
        let rows = [row(0, child.id())];
        watch.look(rows.into_iter(), |_| true);
        let status = child.wait().unwrap();
        watch.reaped(child.id(), status);
        assert_eq!(how(&watch, 0), How::Exited(Exit::Code(4)));
        assert_eq!(watch.room, 10);
    }

    #[test]
    fn another_process_of_the_same_pid_is_another() {
        let mut watch = Watch::with_room(10);
        let own = row(0, std::process::id());
        let earlier = Row { number: 1, start_ticks: own.start_ticks - 1, ..own };
        let nobody = Row { number: 2, pid: u32::MAX, start_ticks: 5 };
        let unknown = Row { number: 3, pid: 0, start_ticks: 0 };
        watch.look([own, earlier, nobody, unknown].into_iter(), |_| true);
        assert_eq!(how(&watch, 0), How::Running);
        assert_eq!((how(&watch, 1), how(&watch, 2)), (How::Unknown, How::Unknown));
        assert!(watch.is_dead(1) && watch.is_dead(2));
        // Of whom nothing is known it can't be said.
        assert!(!watch.is_dead(3) && !watch.ends().contains_key(&3));
        assert_eq!(watch.running(), [own.pid]);
    }

    #[test]
    fn one_that_comes_again_has_called_exec() {
        let mut watch = Watch::with_room(10);
        let own = row(0, std::process::id());
        let again = Row { number: 5, ..own };
        watch.look([own, again].into_iter(), |number| number == 0);
        assert!(!watch.is_dead(0), "the second has not said anything, and may withdraw");
        watch.look([own, again].into_iter(), |_| true);
        assert_eq!((how(&watch, 0), how(&watch, 5)), (How::Replaced(Some(5)), How::Running));
        assert!(watch.is_dead(0) && !watch.is_dead(5));
        assert_eq!(watch.running(), [own.pid]);
        assert_eq!(watch.room, 9);
    }

    #[test]
    fn exec_is_noticed_though_nobody_comes_again() {
        for room in [10, 0] {
            let mut watch = Watch::with_room(room);
            let mut child = start("sleep 0.3; exec sleep 3");
            // It is itself in the middle of exec when it is a child that is known of.
            std::thread::sleep(Duration::from_millis(100));
            let rows = [row(0, child.id())];
            watch.look(rows.into_iter(), |_| true);
            until_ended(&mut watch, &rows);
            assert_eq!(how(&watch, 0), How::Replaced(None), "{room}");
            assert!(child.try_wait().unwrap().is_none(), "the process runs on");
            watch.look([rows[0], Row { number: 1, ..rows[0] }].into_iter(), |_| true);
            assert_eq!((how(&watch, 0), how(&watch, 1)), (How::Replaced(Some(1)), How::Running));
            child.kill().unwrap();
            watch.reaped(child.id(), child.wait().unwrap());
            assert_eq!(how(&watch, 1), How::Exited(Exit::Signal("SIGKILL".to_owned())));
            assert_eq!(how(&watch, 0), How::Replaced(Some(1)));
            assert_eq!(watch.room, room);
        }
    }

    #[test]
    fn more_than_there_are_descriptors_for() {
        let mut watch = Watch::with_room(3);
        let mut children: Vec<_> =
            (0..20).map(|code| start(&format!("sleep 0.3; exit {code}"))).collect();
        let rows: Vec<_> =
            (0..).zip(&children).map(|(number, child)| row(number, child.id())).collect();
        watch.look(rows.iter().copied(), |_| true);
        until_ended(&mut watch, &rows);
        for code in 0..20 {
            assert_eq!(how(&watch, code), How::Exited(Exit::Code(code as i32)));
        }
        assert_eq!(watch.room, 3);
        for child in &mut children {
            child.wait().unwrap();
        }
    }
}
