//! Running a program under the preload library: from its start to the report.

pub mod counters;
pub mod destination;
pub mod name;
pub mod program;
mod signals;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use ttalloc_ring::clock::now_ns;
use ttalloc_ring::ring::{Consumer, RingOptions};
use ttalloc_ring::{ENGINE_VARIABLE, Engine, RING_VARIABLE};

use self::destination::Destination;
use self::name::Name;
use self::program::ProgramError;
use self::signals::Signals;
use crate::ledger::Ledger;
use crate::report::{CrossCheck, Exit, Report, Run};
use crate::shim::{self, ShimError};

pub use self::destination::Written;
pub use self::name::DEFAULT as DEFAULT_REPORT;

const PRELOAD_VARIABLE: &str = "LD_PRELOAD";
/// How long to wait for records: from the first, at the start and when many are coming, to the last.
const IDLE: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(10)];
/// Many records at once: with as many again in the same time, the ring would still be far from full.
const BUSY: usize = 1 << 13;
/// How long a record may stay half-written before its writer's life is looked into.
const STALL: Duration = Duration::from_millis(500);
/// How long to wait for what can only be an error.
const PATIENCE: Duration = Duration::from_secs(10);
/// Records taken at a time, before signals and the program's end are looked for again.
const BATCH: usize = 1 << 16;

/// What to run, and what to do with what was seen.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// Where the report goes (`-`: standard output; [`Name`] has the placeholders); None for no report.
    pub report: Option<PathBuf>,
    /// Whether to compare with the counters that tt-metal keeps itself.
    pub cross_check: bool,
    /// How calls are seen.
    pub engine: Engine,
}

/// A run that took place.
pub struct Outcome {
    /// What was seen.
    pub report: Report,
    /// The program's exit code, or 128 and the number of the signal that ended it.
    pub code: u8,
    /// What became of the report, or why it could not be written.
    pub written: io::Result<Written>,
}

/// Why a run did not take place.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The program can't be run or tracked.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// There is nothing to preload.
    #[error(transparent)]
    Shim(#[from] ShimError),
    /// The report could not be written at the end.
    #[error(
        "the report can't be written to {path}: {why}; choose another place with --report, or none with --no-report"
    )]
    Report {
        /// Where.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The system refused something.
    #[error("{what}: {why}; {advice}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        why: io::Error,
        /// What to do.
        advice: &'static str,
    },
}

impl RunError {
    /// The exit code that says so: as `env` and `timeout` have it, 125 for the launcher's own errors,
    /// 126 for a program that can't be run, 127 for one that isn't found.
    pub fn code(&self) -> u8 {
        match self {
            RunError::Program(ProgramError::Missing(_)) => 127,
            RunError::Program(ProgramError::Unrunnable(..)) => 126,
            _ => 125,
        }
    }
}

/// Runs a program to its end.
pub fn run(options: &Options) -> Result<Outcome, RunError> {
    let program = options.command.first().map(OsString::as_os_str).unwrap_or_default();
    program::check(program)?;
    let library = shim::find()?;
    let name = options.report.as_deref().map(name_of).transpose()?;
    // The pid is not known yet; but where a report of any pid can be written, so can this one.
    let destination = name.as_ref().map(|name| check_destination(&name.path(0))).transpose()?;
    // Before the ring is made, which may be too large a file for this session.
    let signals = Signals::take().map_err(|why| RunError::System {
        what: "signals can't be taken",
        why,
        advice: "raise the limit of open files (ulimit -n)",
    })?;
    let ring = Consumer::create(&RingOptions::default()).map_err(|why| RunError::System {
        what: "the shared memory for events can't be made",
        why,
        advice: "free some memory (it takes 9 MiB), or raise the limits of this session",
    })?;

    let counters = || counters::read(Path::new(counters::FOLDER));
    let counters_before = options.cross_check.then(counters);
    let mut command = Command::new(program);
    command
        .args(&options.command[1..])
        .env(PRELOAD_VARIABLE, preload(&library))
        .env(OsStr::new(RING_VARIABLE.to_str().unwrap_or_default()), ring.variable());
    let variable = OsStr::new(ENGINE_VARIABLE.to_str().unwrap_or_default());
    match options.engine {
        // What the preload library does unasked.
        Engine::Auto => command.env_remove(variable),
        engine => command.env(variable, engine.name()),
    };
    signals.pass_on(&mut command);
    let (started, started_ns) = (jiff::Timestamp::now(), now_ns());
    let child = command.spawn().map_err(|why| {
        ProgramError::Unrunnable(program.to_string_lossy().into_owned(), why.to_string())
    })?;
    let pid = child.id();
    let destination = match name {
        Some(name) if name.has_pid() => {
            let checked = Destination::check(&name.path(pid));
            Some(checked.map_err(|why| io::Error::other(format!("{why:#}"))))
        }
        _ => destination.map(Ok),
    };
    let mut session = Session { ring, ledger: Ledger::default(), stalled: None };
    let status = session.follow(child, signals).map_err(|why| RunError::System {
        what: "the program can't be waited for",
        why,
        advice: "look whether something else reaps this session's processes",
    })?;
    let duration_ns = now_ns().saturating_sub(started_ns);
    let counters = counters_before.map(|before| Ok((before?, counters()?)));
    let still_running = session.finish(pid);

    let Session { ring, ledger, .. } = session;
    let run = Run {
        command: options.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        started,
        started_ns,
        duration_ns,
        pid,
        exit: exit(status),
        dropped: ring.dropped(),
        torn: ring.torn(),
        still_running,
    };
    let mut report = Report::new(&run, &ledger, |process| ring.calls(process).map(Vec::from));
    report.integrity.cross_check = counters.map(|counters| match counters {
        Ok((before, after)) => CrossCheck::new(&before, &after, &run, &ledger),
        Err(why) => CrossCheck::unavailable(vec![cannot_be_read(&why)]),
    });
    let written = match destination {
        Some(destination) => {
            destination.and_then(|destination| destination.write(&to_json(&report)?))
        }
        None => Ok(Written::Nowhere),
    };
    Ok(Outcome { report, code: code(status), written })
}

fn cannot_be_read(why: &io::Error) -> String {
    format!("{} can't be read: {why}; mount it as tmpfs, as tt-metal needs it", counters::FOLDER)
}

fn name_of(path: &Path) -> Result<Name, RunError> {
    Name::new(path).map_err(|why| RunError::Report { path: path.to_owned(), why: why.to_string() })
}

fn check_destination(path: &Path) -> Result<Destination, RunError> {
    Destination::check(path)
        .map_err(|why| RunError::Report { path: path.to_owned(), why: format!("{why:#}") })
}

fn to_json(report: &Report) -> io::Result<Vec<u8>> {
    let mut json = serde_json::to_vec_pretty(report)?;
    json.push(b'\n');
    Ok(json)
}

/// Our library before whatever the user preloads, but for another copy of it, which a launcher around
/// this one has put there.
fn preload(library: &Path) -> OsString {
    let others = env::var_os(PRELOAD_VARIABLE).unwrap_or_default();
    let is_ours = |path: &&[u8]| path.ends_with(shim::FILE_NAME.as_bytes());
    let mut value = library.as_os_str().to_owned();
    // ld.so(8) splits at both.
    for other in others.as_bytes().split(|byte| matches!(byte, b':' | b' ')) {
        if !other.is_empty() && !is_ours(&other) {
            value.push(":");
            value.push(OsStr::from_bytes(other));
        }
    }
    value
}

/// The ring and the books of a run.
struct Session {
    ring: Consumer,
    ledger: Ledger,
    /// Since when the next record has been half-written.
    stalled: Option<Instant>,
}

impl Session {
    /// Keeps the books until the program ends.
    fn follow(&mut self, mut child: Child, mut signals: Signals) -> io::Result<ExitStatus> {
        let mut idle = IDLE[0];
        loop {
            let count = self.drain();
            // On one thread, so that the pid can't be reaped, and reused, before a signal is sent.
            signals.forward_to(child.id());
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if count == BATCH {
                continue;
            }
            self.pass_torn();
            // The fewer times it wakes, the less it takes from the program.
            idle = if count > BUSY { IDLE[0] } else { (idle * 2).min(IDLE[1]) };
            thread::sleep(idle);
        }
    }

    /// Tells later writers to stop, and enters what is left. Returns which tracked processes still run.
    fn finish(&mut self, first: u32) -> Vec<u32> {
        // The program's own records are all there. Whoever else is writing one has a little time.
        self.ring.close();
        let closed = Instant::now();
        while self.drain() > 0 || self.ring.is_waiting() {
            match closed.elapsed() {
                // A writer that doesn't stop is none of ours.
                time if time > PATIENCE => {
                    self.ring.abandon();
                    break;
                }
                time if time > STALL => self.give_up(),
                _ if self.ring.is_waiting() => thread::sleep(IDLE[0]),
                _ => {}
            }
        }
        let mut running: Vec<_> =
            self.pids().filter(|&pid| pid != first && is_alive(pid)).collect();
        running.sort_unstable();
        running.dedup();
        running
    }

    fn drain(&mut self) -> usize {
        let ledger = &mut self.ledger;
        self.ring.drain(BATCH, |record| ledger.enter(record))
    }

    /// Goes on without a record that has been half-written for long. As far as can be told, its writer is
    /// dead if any process is, or if one has called exec, which ends its threads; and no writer needs
    /// [`PATIENCE`].
    fn pass_torn(&mut self) {
        if !self.ring.is_waiting() {
            self.stalled = None;
            return;
        }
        let time = self.stalled.get_or_insert_with(Instant::now).elapsed();
        if time > PATIENCE || time > STALL && self.has_lost_writers() {
            self.give_up();
            self.stalled = None;
        }
    }

    /// Frees the lanes of processes that are gone, and goes on without what the others are writing.
    fn give_up(&mut self) {
        let gone: Vec<u32> = self
            .ring
            .processes()
            .filter(|&(_, pid, _)| !is_alive(pid))
            .map(|(number, ..)| number)
            .collect();
        let held: Vec<_> = self.ring.held().filter(|held| gone.contains(&held.process)).collect();
        held.iter().for_each(|held| self.ring.recover(held.lane));
        if held.is_empty() {
            self.ring.pass();
        }
    }

    fn pids(&self) -> impl Iterator<Item = u32> {
        self.ring.processes().map(|(_, pid, _)| pid)
    }

    /// Whether some process has ended since it came to the ring, or its program has, by exec.
    fn has_lost_writers(&self) -> bool {
        let mut pids: Vec<_> = self.pids().collect();
        let count = pids.len();
        pids.sort_unstable();
        pids.dedup();
        pids.len() < count || pids.into_iter().any(|pid| !is_alive(pid))
    }
}

/// Whether the process runs or could run: a zombie can't.
fn is_alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The state follows the program's name, which is in parentheses and may hold any character
    // (proc_pid_stat(5)).
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, Some('Z' | 'X'))
}

fn exit(status: ExitStatus) -> Exit {
    match status.signal() {
        Some(signal) => Exit::Signal(signals::name(signal)),
        None => Exit::Code(status.code().unwrap_or_default()),
    }
}

fn code(status: ExitStatus) -> u8 {
    let code = status.signal().map_or(status.code().unwrap_or_default(), |signal| 128 + signal);
    code as u8
}
