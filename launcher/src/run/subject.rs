//! The program whose run is kept, and what its report needs beside the books.

use std::io;
use std::path::Path;

use procfs::process::Process;
use ttalloc_ring::clock::now_ns;

use super::counters::{self, Counters};
use super::keeper::Keeper;
use super::memory::Kills;
use crate::report::{CrossCheck, Exit, Report, Run};

/// The program, from its start on.
pub struct Subject {
    /// Its command line.
    pub command: Vec<String>,
    /// Its pid.
    pub pid: u32,
    parent_pid: u32,
    /// When it was started, in clock ticks since the machine was.
    pub start_ticks: u64,
    started: jiff::Timestamp,
    started_ns: u64,
    kills: Option<Kills>,
    /// Once it has ended: how, and how long it had run.
    end: Option<(Exit, u64)>,
    /// tt-metal's own counters before it was started, if they are wanted.
    counters: Option<io::Result<Counters>>,
}

/// When a report is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage<'a> {
    /// Another will follow.
    Snapshot,
    /// It is the last, though these processes still run.
    Last(&'a [u32]),
}

impl Subject {
    /// A program that is started now, or was just now.
    pub fn started(command: Vec<String>, counters: Option<io::Result<Counters>>) -> Subject {
        Subject {
            command,
            pid: 0,
            parent_pid: 0,
            start_ticks: 0,
            started: jiff::Timestamp::now(),
            started_ns: now_ns(),
            kills: None,
            end: None,
            counters,
        }
    }

    /// A program that runs, as /proc shows it; returns when it was started, too, in clock ticks since the
    /// machine was.
    pub fn running(pid: u32) -> io::Result<(Subject, u64)> {
        let number = i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
        let other = |why| io::Error::other(format!("/proc/{pid}: {why}"));
        let process = Process::new(number).map_err(other)?;
        let stat = process.stat().map_err(other)?;
        let command = process.cmdline().unwrap_or_else(|_| vec![stat.comm.clone()]);
        let mut subject = Subject::started(command, None);
        let age = age(stat.starttime);
        subject.started_ns = subject.started_ns.saturating_sub(age);
        let age = jiff::SignedDuration::from_nanos(i64::try_from(age).unwrap_or_default());
        subject.started = subject.started.checked_sub(age).unwrap_or(subject.started);
        subject.is(pid);
        Ok((subject, stat.starttime))
    }

    /// Tells which process it is, which lives or is still to be waited for.
    pub fn is(&mut self, pid: u32) {
        self.pid = pid;
        self.kills = Kills::of(pid);
        let stat = i32::try_from(pid).ok().and_then(|pid| Process::new(pid).ok()?.stat().ok());
        if let Some(stat) = stat {
            self.parent_pid = u32::try_from(stat.ppid).unwrap_or_default();
            self.start_ticks = stat.starttime;
        }
    }

    /// Tells how it ended, just now.
    pub fn ended(&mut self, exit: Exit) {
        self.end = Some((exit, now_ns().saturating_sub(self.started_ns)));
    }

    /// The report, as of now.
    pub fn report(&self, keeper: &Keeper, stage: Stage) -> Report {
        let Keeper { ring, ledger, watch, .. } = keeper;
        let now = || (Exit::Running(true), now_ns().saturating_sub(self.started_ns));
        let (exit, duration_ns) = self.end.clone().unwrap_or_else(now);
        let is_kill = exit == Exit::Signal("SIGKILL".to_owned());
        let run = Run {
            command: self.command.clone(),
            started: self.started,
            started_ns: self.started_ns,
            duration_ns,
            pid: self.pid,
            parent_pid: self.parent_pid,
            start_ticks: self.start_ticks,
            out_of_memory: self.kills.as_ref().filter(|_| is_kill).and_then(Kills::since),
            exit,
            snapshot: stage == Stage::Snapshot,
            dropped: ring.dropped(),
            torn: ring.torn(),
            late: ring.late(),
            spoiled: ring.spoiled(),
            ends: watch.ends(),
            still_running: match stage {
                Stage::Snapshot => Vec::new(),
                Stage::Last(running) => running.to_vec(),
            },
        };
        let mut report = Report::new(&run, ledger, |process| ring.calls(process).map(Vec::from));
        if let Some(before) = self.counters.as_ref().filter(|_| self.end.is_some()) {
            report.integrity.cross_check = Some(cross_check(before, &run, keeper));
        }
        report
    }
}

fn cross_check(before: &io::Result<Counters>, run: &Run, keeper: &Keeper) -> CrossCheck {
    let unavailable = |why: &io::Error| {
        let folder = counters::FOLDER;
        CrossCheck::unavailable(vec![format!(
            "{folder} can't be read: {why}; mount it as tmpfs, as tt-metal needs it"
        )])
    };
    match (before, counters::read(Path::new(counters::FOLDER))) {
        (Ok(before), Ok(after)) => CrossCheck::new(before, &after, run, &keeper.ledger),
        (Err(why), _) => unavailable(why),
        (_, Err(why)) => unavailable(&why),
    }
}

/// How long ago that was, in nanoseconds of the records' clock, which stands still while the machine is
/// suspended.
fn age(start_ticks: u64) -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let now = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
    let started = u128::from(start_ticks) * 1_000_000_000 / u128::from(procfs::ticks_per_second());
    now.saturating_sub(u64::try_from(started).unwrap_or(u64::MAX))
}
