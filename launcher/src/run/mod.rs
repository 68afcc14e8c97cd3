//! Running a program under the preload library: from its start to the report.

mod background;
pub mod collect;
pub mod counters;
pub mod destination;
mod door;
mod fork;
mod heirs;
mod keeper;
mod memory;
pub mod name;
pub mod program;
mod signals;
mod snapshot;
mod subject;
pub mod watch;

use std::env;
use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use ttalloc_ring::ring::{Follow, RingOptions};
use ttalloc_ring::{ENGINE_VARIABLE, Engine, FOLLOW_VARIABLE, RING_VARIABLE};

use self::background::Left;
use self::destination::Destination;
use self::heirs::Heirs;
use self::keeper::Keeper;
use self::name::Name;
use self::program::ProgramError;
use self::signals::Signals;
use self::snapshot::Snapshots;
use self::subject::{Stage, Subject};
use crate::ledger::Limits;
use crate::report::Report;
use crate::shim::{self, ShimError};

pub use self::destination::Written;
pub use self::name::DEFAULT as DEFAULT_REPORT;

const PRELOAD_VARIABLE: &str = "LD_PRELOAD";
/// How long the program's children have to end after it, before they are said to run on.
const GRACE: Duration = Duration::from_millis(100);

/// What to run, and what to do with what was seen.
pub struct Options<'a> {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// Where the report goes (`-`: standard output; [`Name`] has the placeholders); None for no report.
    pub report: Option<PathBuf>,
    /// Whether to compare with the counters that tt-metal keeps itself.
    pub cross_check: bool,
    /// How calls are seen.
    pub engine: Engine,
    /// How much the report lists.
    pub limits: Limits,
    /// How often the report is written while the program runs; None to do it only when SIGUSR2 asks for it.
    pub snapshot_every: Option<Duration>,
    /// What ring there is.
    pub ring: RingOptions,
    /// Is told what goes wrong meanwhile.
    pub tell: &'a dyn Fn(&str),
}

/// A run that took place.
pub struct Outcome {
    /// What was seen.
    pub report: Report,
    /// The program's exit code, or 128 and the number of the signal that ended it.
    pub code: u8,
    /// What became of the report, or why it could not be written.
    pub written: io::Result<Written>,
    /// Tracked processes that still run.
    pub running: Vec<u32>,
    /// Who goes on with these, and then replaces the report.
    pub follower: Option<Follower>,
}

/// A process that follows what the program has left behind.
pub struct Follower {
    /// Its pid.
    pub pid: u32,
    /// Processes that still run and may yet use tt-metal, or do.
    pub heirs: Vec<u32>,
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
        "the report can't be written to {path}: {why}; choose another place with --report or TTALLOC_REPORT, or none with --no-report"
    )]
    Report {
        /// Where.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The same where there is no command line.
    #[error("the report can't be written to {path}: {why}; name another place in TTALLOC_REPORT")]
    NamedReport {
        /// Where.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// There is no place for snapshots.
    #[error(
        "--snapshot-every needs a report that is a file, to be replaced each time; name one with --report"
    )]
    Snapshots,
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
    let inherited = background::inherited();
    let program = options.command.first().map(OsString::as_os_str).unwrap_or_default();
    program::check(program)?;
    let library = shim::find()?;
    let name = options.report.as_deref().map(name_of).transpose()?;
    // The pid is not known yet; but where a report of any pid can be written, so can this one.
    let destination = name.as_ref().map(|name| check_destination(&name.path(0))).transpose()?;
    if options.snapshot_every.is_some() && !destination.as_ref().is_some_and(Destination::is_file) {
        return Err(RunError::Snapshots);
    }
    // Before the ring is made, which may be too large a file for this session.
    // Until the report is written: what ends the program is often sent twice.
    let mut signals = Signals::take().map_err(|why| RunError::System {
        what: "signals can't be taken",
        why,
        advice: "raise the limit of open files (ulimit -n)",
    })?;
    let mut keeper = Keeper::new(&options.ring, options.limits).map_err(no_ring)?;
    let mut command = Command::new(program);
    command
        .args(&options.command[1..])
        .env(PRELOAD_VARIABLE, preload(&library))
        .env(text(RING_VARIABLE), keeper.ring.variable());
    match options.engine {
        // What the preload library does unasked.
        Engine::Auto => command.env_remove(text(ENGINE_VARIABLE)),
        engine => command.env(text(ENGINE_VARIABLE), engine.name()),
    };
    match options.ring.follow {
        Follow::Always => command.env(text(FOLLOW_VARIABLE), "always"),
        Follow::Inherit | Follow::None => command.env_remove(text(FOLLOW_VARIABLE)),
    };
    signals.pass_on(&mut command);
    let counters = options.cross_check.then(|| counters::read(Path::new(counters::FOLDER)));
    let words = options.command.iter().map(|word| word.to_string_lossy().into_owned());
    let mut subject = Subject::started(words.collect(), counters);
    let child = command.spawn().map_err(|why| {
        ProgramError::Unrunnable(program.to_string_lossy().into_owned(), why.to_string())
    })?;
    let pid = child.id();
    keeper.ring.set_only(pid);
    subject.is(pid);
    let destination = match name {
        Some(name) if name.has_pid() => {
            let checked = Destination::check(&name.path(pid));
            Some(checked.map_err(|why| io::Error::other(format!("{why:#}"))))
        }
        _ => destination.map(Ok),
    };
    let place = destination.as_ref().and_then(|destination| destination.as_ref().ok());
    let mut snapshots = Snapshots::new(options.snapshot_every);
    let snapshot = |snapshots: &mut Snapshots, keeper: &Keeper| {
        let report = || to_json(&subject.report(keeper, Stage::Snapshot));
        if let Err(why) = snapshots.tend(place, report) {
            (options.tell)(&format!("no snapshot was written: {why}; the run goes on"));
        }
    };
    let status =
        follow(&mut keeper, child, &mut signals, &mut snapshots, snapshot).map_err(|why| {
            RunError::System {
                what: "the program can't be waited for",
                why,
                advice: "look whether something else reaps this session's processes",
            }
        })?;
    subject.ended(watch::exit(status));
    // Before that end is anybody's: its process may have called exec, and begun to use tt-metal anew.
    keeper.catch_up();
    keeper.watch.reaped(subject.pid, status);
    snapshots.finish();
    let mut heirs = match options.ring.follow {
        Follow::None => Heirs::none(),
        Follow::Inherit | Follow::Always => Heirs::of(&keeper.ring, subject.start_ticks),
    };
    let (running, heirs_running) = keeper.until_gone(GRACE, &mut heirs);
    if !place.is_some_and(Destination::is_file) {
        // Whoever is to read the report may keep it waiting.
        signals.release();
    }
    let code = code(status);
    if !(running.is_empty() && heirs_running.is_empty())
        && let Some(place) = place.filter(|place| place.is_file())
    {
        let left = Left::new(heirs, &running, &keeper);
        let stage = left.stage();
        match background::follow(&mut keeper, &subject, place, &mut snapshots, &inherited, left) {
            Ok(follower) => {
                let report = subject.report(&keeper, stage);
                let written = to_json(&report).and_then(|json| place.write(&json));
                // It is the other's now.
                std::mem::forget(keeper);
                let follower = Some(Follower { pid: follower, heirs: heirs_running });
                return Ok(Outcome { report, code, written, running, follower });
            }
            Err(why) => (options.tell)(&format!("what still runs can't be followed: {why}")),
        }
    }
    keeper.finish();
    let report = subject.report(&keeper, Stage::Last(&running));
    let written = match destination {
        Some(destination) => {
            destination.and_then(|destination| destination.write(&to_json(&report)?))
        }
        None => Ok(Written::Nowhere),
    };
    Ok(Outcome { report, code, written, running, follower: None })
}

/// Keeps the books until the program ends.
fn follow(
    keeper: &mut Keeper,
    mut child: Child,
    signals: &mut Signals,
    snapshots: &mut Snapshots,
    mut tend: impl FnMut(&mut Snapshots, &Keeper),
) -> io::Result<ExitStatus> {
    loop {
        let count = keeper.round();
        // On one thread, so that the pid can't be reaped, and reused, before a signal is sent.
        if signals.forward_to(child.id()) {
            snapshots.ask();
        }
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        tend(snapshots, keeper);
        keeper.rest(count);
    }
}

fn no_ring(why: io::Error) -> RunError {
    RunError::System {
        what: "the shared memory for events can't be made",
        why,
        advice: "free some memory (it takes 9 MiB), or raise the limits of this session",
    }
}

/// The name of an environment variable, as the standard library takes it.
fn text(variable: &CStr) -> &OsStr {
    OsStr::from_bytes(variable.to_bytes())
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

fn code(status: ExitStatus) -> u8 {
    let code = status.signal().map_or(status.code().unwrap_or_default(), |signal| 128 + signal);
    code as u8
}
