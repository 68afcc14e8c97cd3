//! The collector: what keeps the books of a program that has the preload library and no launcher. The library
//! starts it, and waits for the name of the ring.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;

use ttalloc_ring::ring::RingOptions;

use super::background::{Left, forget_streams, keep_until, tend};
use super::destination::{Destination, is_report_of};
use super::fork::{Fork, fork, leave};
use super::heirs::Heirs;
use super::keeper::Keeper;
use super::name::Name;
use super::signals::Wishes;
use super::snapshot::Snapshots;
use super::subject::{Stage, Subject};
use super::watch::{How, Watch};
use super::{Follower, GRACE, Outcome, RunError, no_ring, to_json};
use crate::ledger::Limits;
use crate::report::Exit;

/// How many programs of one process get names of their own.
const MOST_NAMES: u32 = 100;

/// What to collect.
pub struct Collection<'a> {
    /// The program's pid.
    pub pid: u32,
    /// Where the ring's name goes. It stays open if there is none, so that this can be told first.
    pub reply: &'a mut Option<OwnedFd>,
    /// Where the report goes, with the placeholders of [`super::name::Name`]; None for a name of its own.
    pub report: Option<PathBuf>,
}

/// Keeps the books of a program that runs, and of its children, until all are gone. `told` gets what is to be
/// told at the program's end.
pub fn collect(collection: Collection, told: impl Fn(&Outcome)) -> Result<(), RunError> {
    let Collection { pid, reply, report } = collection;
    let wishes = Wishes::take();
    let system = |what, advice| move |why| RunError::System { what, why, advice };
    let (mut subject, start_ticks) = Subject::running(pid).map_err(system(
        "the program can't be found",
        "check that /proc is mounted and shows this user's processes",
    ))?;
    let (path, _name) = match report {
        Some(report) => {
            let name = Name::new(&report).map_err(|why| unnamed(report, why.to_string()))?;
            (name.path(pid), None)
        }
        None => own_name(pid, start_ticks),
    };
    let destination = Destination::check(&path).map_err(|why| unnamed(path, format!("{why:#}")))?;
    let mut keeper = Keeper::new(&RingOptions::default(), Limits::default()).map_err(no_ring)?;
    keeper.watch.begin_with(pid, start_ticks);
    let answer = format!("{}\n", keeper.ring.variable());
    let Some(reply) = reply.take() else { return Ok(()) };
    if File::from(reply).write_all(answer.as_bytes()).is_err() {
        // It waits no longer, and has said so.
        return Ok(());
    }

    let mut snapshots = Snapshots::new(None);
    let has_ended = |watch: &Watch| watch.program() != How::Running;
    keep_until(&mut keeper, &wishes, &mut snapshots, has_ended, |snapshots, keeper| {
        tend(snapshots, &destination, &subject, keeper);
    });
    keeper.catch_up();
    keeper.settle();
    match keeper.watch.program() {
        // The end was wished for.
        How::Running => {}
        How::Exited(exit) => subject.ended(exit),
        How::Replaced(_) => subject.ended(Exit::Exec(None)),
        How::Unknown => subject.ended(Exit::Unknown(true)),
    }
    let ended = has_ended(&keeper.watch);
    snapshots.finish();
    let mut heirs = Heirs::of(&keeper.ring, start_ticks);
    let (mut running, heirs_running) = match ended {
        true => keeper.until_gone(GRACE, &mut heirs),
        false => (keeper.watch.running(), Vec::new()),
    };
    let is_alone = running.is_empty() && heirs_running.is_empty();
    let late = destination.late(pid, start_ticks).filter(|_| ended && !is_alone);
    let left = RefCell::new(Left::new(heirs, &running, &keeper));
    if let Some(late) = &late {
        let report = subject.report(&keeper, left.borrow().stage());
        let written = to_json(&report).and_then(|json| destination.write(&json));
        let follower = Some(Follower { pid: std::process::id(), heirs: heirs_running });
        let outcome = Outcome { report, code: 0, written, running, follower };
        // Who does not read it must not keep those who write to the ring waiting.
        match fork() {
            Fork::Child => {
                told(&outcome);
                leave(0)
            }
            Fork::Parent(_) => {}
            Fork::Failed(_) => told(&outcome),
        }
        // Nobody shall wait for what this process might still print.
        let nothing = OpenOptions::new().read(true).write(true).open("/dev/null");
        nothing.and_then(|nothing| forget_streams(&nothing)).map_err(system(
            "/dev/null can't be put in the place of standard error",
            "check that /dev/null is there",
        ))?;
        let gone = |watch: &Watch| left.borrow_mut().is_gone(watch);
        running = keep_until(&mut keeper, &wishes, &mut snapshots, gone, |snapshots, keeper| {
            if left.borrow().has_news(keeper) {
                tend(snapshots, late, &subject, keeper);
            }
        });
    }
    keeper.finish();
    snapshots.finish();
    let report = subject.report(&keeper, Stage::Last(&running));
    match late {
        Some(late) if left.borrow().has_news(&keeper) => {
            // There is nobody to be told of what goes wrong.
            let _ = to_json(&report).and_then(|json| late.write(&json));
        }
        Some(_) => {}
        None => {
            let written = to_json(&report).and_then(|json| destination.write(&json));
            told(&Outcome { report, code: 0, written, running, follower: None });
        }
    }
    Ok(())
}

fn unnamed(path: PathBuf, why: String) -> RunError {
    RunError::NamedReport { path, why }
}

/// A name for the report, in the current folder, and what keeps it from others while this process lives. A
/// process that calls exec gets a collector for each program, and none shall take another's report away.
fn own_name(pid: u32, start_ticks: u64) -> (PathBuf, Option<UnixListener>) {
    let mut number = 1;
    loop {
        let name = match number {
            1 => format!("ttalloc-report.{pid}.json"),
            _ => format!("ttalloc-report.{pid}-{number}.json"),
        };
        let lock = SocketAddr::from_abstract_name(format!("ttalloc-{pid}-{start_ticks}-{number}"));
        let lock = lock.and_then(|name| UnixListener::bind_addr(&name));
        let is_taken = lock.as_ref().is_err_and(|why| why.kind() == io::ErrorKind::AddrInUse);
        let path = PathBuf::from(name);
        if number >= MOST_NAMES || !is_taken && !is_report_of(&path, pid, start_ticks) {
            return (path, lock.ok());
        }
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_nobody_elses() {
        // Of a process that isn't there, as no test's is.
        let (pid, start_ticks) = (u32::MAX, u64::from(std::process::id()));
        let name = |number: &str| PathBuf::from(format!("ttalloc-report.{pid}{number}.json"));
        let (first, lock) = own_name(pid, start_ticks);
        assert!(first == name("") && lock.is_some());
        let (second, other) = own_name(pid, start_ticks);
        assert!(second == name("-2") && other.is_some());
        drop(lock);
        assert_eq!(own_name(pid, start_ticks).0, name(""));
        // Another process that had the pid.
        assert_eq!(own_name(pid, start_ticks + 1).0, name(""));
    }
}
