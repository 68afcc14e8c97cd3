//! Going on behind a program that has ended, while processes of its still run.

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::{chdir, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use super::destination::Destination;
use super::fork::{Fork, fork, leave};
use super::heirs::Heirs;
use super::keeper::Keeper;
use super::signals::{Wish, Wishes};
use super::snapshot::Snapshots;
use super::subject::{Stage, Subject};
use super::to_json;
use super::watch::Watch;

/// How often it is looked whether processes still run that may yet use tt-metal.
const LOOK: Duration = Duration::from_millis(500);

/// The descriptors that this process was given beside the standard streams, by the time of this call.
pub fn inherited() -> Vec<RawFd> {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    let listed: Vec<RawFd> = entries.filter_map(number).collect();
    // One of them was the listing's own.
    // SAFETY: only asks.
    listed
        .into_iter()
        .filter(|&fd| fd > 2 && unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0)
        .collect()
}

/// What a program has left behind.
pub struct Left {
    /// Processes that may yet use tt-metal.
    heirs: Heirs,
    looked: Instant,
    /// Whether tracked processes ran, of whom there is more to report, if only how they end.
    ran: bool,
    /// How many records there were.
    events: u64,
}

impl Left {
    /// What there is now. `running` are the tracked processes that run.
    pub fn new(heirs: Heirs, running: &[u32], keeper: &Keeper) -> Left {
        let (ran, events) = (!running.is_empty(), keeper.ledger.events);
        Left { heirs, looked: Instant::now(), ran, events }
    }

    /// Which report is written now: not the last one, if there is sure to be more to report.
    pub fn stage(&self) -> Stage<'static> {
        if self.ran { Stage::Snapshot } else { Stage::Last(&[]) }
    }

    /// Whether nobody is left that could write to the ring.
    pub fn is_gone(&mut self, watch: &Watch) -> bool {
        if !watch.running().is_empty() || self.looked.elapsed() < LOOK {
            return false;
        }
        self.looked = Instant::now();
        self.heirs.running().is_empty()
    }

    /// Whether there is more to report than there was.
    pub fn has_news(&self, keeper: &Keeper) -> bool {
        self.ran || keeper.ledger.events != self.events
    }
}

/// Forks a process that keeps the ring until nobody writes to it any more, nor may begin to, and then
/// writes the report, if there is news. It has none of the descriptors in `inherited`. Returns its pid. In
/// this process the keeper must not be used to read any more, nor be dropped.
pub fn follow(
    keeper: &mut Keeper,
    subject: &Subject,
    destination: &Destination,
    snapshots: &mut Snapshots,
    inherited: &[RawFd],
    left: Left,
) -> io::Result<u32> {
    let (mut here, there) = UnixStream::pair()?;
    match fork() {
        Fork::Failed(why) => Err(why),
        Fork::Child => {
            drop(here);
            leave(i32::from(
                go_on(keeper, subject, destination, snapshots, inherited, left, there).is_err(),
            ))
        }
        Fork::Parent(pid) => {
            drop(there);
            // Until then the ring's reader is this process.
            match here.read_exact(&mut [0]) {
                Ok(()) => {
                    // By its end the other knows that this process is gone.
                    std::mem::forget(here);
                    Ok(pid.as_raw_nonzero().get().unsigned_abs())
                }
                Err(_) => Err(io::Error::other("the process for it failed at its start")),
            }
        }
    }
}

fn go_on(
    keeper: &mut Keeper,
    subject: &Subject,
    destination: &Destination,
    snapshots: &mut Snapshots,
    inherited: &[RawFd],
    left: Left,
    mut line: UnixStream,
) -> io::Result<()> {
    let wishes = Wishes::take();
    keeper.ring.succeed()?;
    setsid()?;
    detach(inherited)?;
    line.write_all(&[1])?;
    let late = || destination.late(subject.pid, subject.start_ticks);
    let destination = late().ok_or(io::ErrorKind::InvalidInput)?;
    let left = RefCell::new(left);
    let gone = |watch: &Watch| left.borrow_mut().is_gone(watch);
    let running = keep_until(keeper, &wishes, snapshots, gone, |snapshots, keeper| {
        if left.borrow().has_news(keeper) {
            tend(snapshots, &destination, subject, keeper);
        }
    });
    keeper.finish();
    snapshots.finish();
    // Its report comes first: this one takes its place.
    let _ = line.read(&mut [0]);
    if !left.borrow().has_news(keeper) {
        return Ok(());
    }
    destination.write(&to_json(&subject.report(keeper, Stage::Last(&running)))?).map(drop)
}

/// Writes a snapshot if it is time. There is nobody to be told of what goes wrong.
pub fn tend(
    snapshots: &mut Snapshots,
    destination: &Destination,
    subject: &Subject,
    keeper: &Keeper,
) {
    let report = || to_json(&subject.report(keeper, Stage::Snapshot));
    let _ = snapshots.tend(Some(destination), report);
}

/// Keeps the ring until `is_over` says so, or a signal asks for the end. Returns who still runs then.
pub fn keep_until(
    keeper: &mut Keeper,
    wishes: &Wishes,
    snapshots: &mut Snapshots,
    mut is_over: impl FnMut(&Watch) -> bool,
    mut tend: impl FnMut(&mut Snapshots, &Keeper),
) -> Vec<u32> {
    loop {
        let count = keeper.round();
        while let Some(wish) = wishes.next() {
            match wish {
                Wish::Snapshot => snapshots.ask(),
                Wish::End => return keeper.watch.running(),
            }
        }
        if is_over(&keeper.watch) {
            return keeper.watch.running();
        }
        tend(snapshots, keeper);
        keeper.rest(count);
    }
}

/// Leaves what was the caller's: its terminal, its folder, its descriptors.
fn detach(inherited: &[RawFd]) -> io::Result<()> {
    chdir("/")?;
    let nothing = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    forget_streams(&nothing)?;
    for &fd in inherited {
        // SAFETY: it was there before anything of this program's, which therefore has no use for it.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// Puts something else in the place of the standard streams.
pub fn forget_streams(other: &File) -> io::Result<()> {
    dup2_stdin(other)?;
    dup2_stdout(other)?;
    dup2_stderr(other)?;
    Ok(())
}
