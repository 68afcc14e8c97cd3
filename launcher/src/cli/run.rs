//! The command line of `ttalloc-run`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::ledger::Limits;
use crate::report::CrossCheckState;
use crate::run::{self, Follower, Options, Outcome, Written, name};
use crate::summary::{one_line, summary};
use clap::error::ErrorKind;
use clap::{Parser, ValueEnum};
use ttalloc_ring::ring::{Follow, OnFull, RingOptions};
use ttalloc_ring::{Engine, REPORT_VARIABLE};

const AFTER_HELP: &str = "\
Examples:
  ttalloc-run ./matmul_multicore_reuse
  ttalloc-run python3 model.py --layers 2
  ttalloc-run --quiet --report runs/today.json python3 -m pytest tests
  mpirun -np 4 ttalloc-run --report 'r-%r.json' ./prog && ttalloc merge r-*.json -o all.json

Exit code: the program's own, or 128 and the number of the signal that ended it. 127 when the
program isn't found, 126 when it can't be run, 125 when ttalloc-run itself fails; then a line on
standard error says why, and the program was not started, unless it says that the report is lost.

Environment:
  TTALLOC_SHIM    the preload library, if it is not beside ttalloc-run, in deps/ or in ../lib/
  TTALLOC_ENGINE  the engine, where --engine doesn't name one
  TTALLOC_REPORT  the report, where --report doesn't name one

Signals: SIGUSR2 has the report written as it is then. SIGHUP, SIGINT, SIGQUIT, SIGTERM and SIGUSR1
are passed on to the program.";

/// The shortest time between snapshots.
const SHORTEST: Duration = Duration::from_millis(10);
/// How many pids are told one by one.
const MOST_PIDS: usize = 10;
/// [`ttalloc_ring::ENGINE_VARIABLE`], as clap needs it.
const ENGINE: &str = "TTALLOC_ENGINE";

/// Runs a program that uses tt-metal or ttnn, and reports what every chip's memory held: a summary on
/// standard error, and a JSON report.
///
/// The program needs no rebuilding. Its output, input, signals and exit code stay its own.
#[derive(Parser)]
#[command(name = "ttalloc-run", version, after_help = AFTER_HELP)]
struct Arguments {
    /// Print no summary. Problems are still told, and that a report was replaced
    #[arg(short, long)]
    quiet: bool,

    /// Write the JSON report to this file, or to standard output if it is "-". In its name, %p stands for
    /// the program's pid, %h for the host's name, %r for the rank that mpirun or srun gave, %% for %
    /// [default: TTALLOC_REPORT, or ttalloc-report.json; of one of several ranks ttalloc-report.%r.json]
    #[arg(short, long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// Write no report
    #[arg(long, conflicts_with = "report")]
    no_report: bool,

    /// Compare what is live at the end with the counters that tt-metal keeps itself, from 0.70.1 on
    #[arg(long)]
    cross_check: bool,

    /// List so many live buffers in the report, those that reserve most: a number, or "all". Figures
    /// include the rest; integrity.left_out counts it
    #[arg(long, value_name = "N", value_parser = most, default_value_t = Most(Limits::default().buffers))]
    max_buffers: Most,

    /// List so many programs, those with the largest regions in L1
    #[arg(long, value_name = "N", value_parser = most, default_value_t = Most(Limits::default().programs))]
    max_programs: Most,

    /// List so many processes, those that reserved most: at least the program's own
    #[arg(long, value_name = "N", value_parser = most, default_value_t = Most(Limits::default().processes))]
    max_processes: Most,

    /// How calls are seen: by interposition, and by patching the functions that it can't reach (auto);
    /// by interposition alone (preload); or by patching wherever that can be done (inline)
    #[arg(long, value_name = "ENGINE", env = ENGINE, value_parser = engine, default_value = "auto")]
    engine: Engine,

    /// Which processes below the program are followed: none; those that inherit its environment
    /// (inherit); or those that are started with another one too (always)
    #[arg(long, value_name = "WHICH", value_enum, default_value_t = Followed::Inherit)]
    follow: Followed,

    /// What the program does when it is faster than ttalloc for long: it waits, or drops events, which are
    /// counted (drop)
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = WhenFull::Wait)]
    on_full: WhenFull,

    /// Write the report, as it is then, every so many seconds while the program runs. The signal SIGUSR2
    /// does it once
    #[arg(long, value_name = "SECONDS", value_parser = period, conflicts_with = "no_report")]
    snapshot_every: Option<Duration>,

    /// The ring's lanes and the size of each in bytes, as LANESxBYTES. For tests
    #[arg(long, hide = true, value_parser = lanes)]
    ring: Option<(usize, usize)>,

    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    command: Vec<OsString>,
}

/// How many of something are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Most(usize);

impl fmt::Display for Most {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.0 {
            usize::MAX => f.write_str("all"),
            most => most.fmt(f),
        }
    }
}

fn most(text: &str) -> Result<Most, String> {
    if text == "all" {
        return Ok(Most(usize::MAX));
    }
    text.parse().map(Most).map_err(|_| "give a number, or \"all\"".to_owned())
}

fn engine(name: &str) -> Result<Engine, String> {
    // An empty variable is as good as none.
    let name = if name.is_empty() { Engine::default().name() } else { name };
    let found = Engine::ALL.into_iter().find(|engine| engine.name() == name);
    found.ok_or_else(|| "--engine, or TTALLOC_ENGINE, is auto, preload or inline".to_owned())
}

#[derive(Clone, Copy, ValueEnum)]
enum Followed {
    None,
    Inherit,
    Always,
}

#[derive(Clone, Copy, ValueEnum)]
enum WhenFull {
    Wait,
    Drop,
}

/// A number of seconds.
fn period(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let possible = seconds.filter(|&period| period >= SHORTEST);
    possible
        .ok_or_else(|| "a number of seconds from 0.01 on is needed, such as 60 or 0.5".to_owned())
}

fn lanes(text: &str) -> Result<(usize, usize), String> {
    let numbers = text
        .split_once('x')
        .and_then(|(lanes, bytes)| Some((lanes.parse().ok()?, bytes.parse().ok()?)));
    numbers.ok_or_else(|| "two numbers are needed, such as 64x131072".to_owned())
}

/// The report that the environment names. An empty variable is as good as none.
pub fn named_report() -> Option<PathBuf> {
    std::env::var_os(OsStr::from_bytes(REPORT_VARIABLE.to_bytes()))
        .filter(|name| !name.is_empty())
        .map(PathBuf::from)
}

/// Runs the program that the command line names.
pub fn main() -> ExitCode {
    if let Err(why) = room() {
        // The kind, since there is no memory for more.
        let _ = writeln!(
            io::stderr(),
            "ttalloc-run: there is too little memory: {}; {NEEDED}",
            why.kind()
        );
        return ExitCode::from(125);
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            let is_answer =
                matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return ExitCode::from(if is_answer { 0 } else { 125 });
        }
    };
    let report = || arguments.report.or_else(named_report).unwrap_or_else(name::default);
    let mut ring = RingOptions {
        on_full: match arguments.on_full {
            WhenFull::Wait => OnFull::Wait,
            WhenFull::Drop => OnFull::Drop,
        },
        follow: match arguments.follow {
            Followed::None => Follow::None,
            Followed::Inherit => Follow::Inherit,
            Followed::Always => Follow::Always,
        },
        ..RingOptions::default()
    };
    if let Some((lanes, lane_bytes)) = arguments.ring {
        (ring.lanes, ring.lane_bytes) = (lanes, lane_bytes);
    }
    let options = Options {
        report: (!arguments.no_report).then(report),
        command: arguments.command,
        cross_check: arguments.cross_check,
        engine: arguments.engine,
        limits: Limits {
            buffers: arguments.max_buffers.0,
            programs: arguments.max_programs.0,
            processes: arguments.max_processes.0.max(1),
        },
        snapshot_every: arguments.snapshot_every,
        ring,
        tell: &|text| tell(&format!("ttalloc: {text}")),
    };
    let outcome = match run::run(&options) {
        Ok(outcome) => outcome,
        Err(error) => {
            tell(&format!("ttalloc-run: {error}"));
            return ExitCode::from(error.code());
        }
    };
    tell_outcome(&outcome, arguments.quiet);
    let code = if outcome.written.is_err() && outcome.code == 0 { 125 } else { outcome.code };
    ExitCode::from(code)
}

/// Tells what is to be told at the end: the summary unless it is to be quiet, and what went wrong.
pub fn tell_outcome(outcome: &Outcome, quiet: bool) {
    if !quiet {
        print(&summary(&outcome.report));
    } else {
        for problem in &outcome.report.integrity.problems {
            tell(&format!("ttalloc: incomplete: {problem}"));
        }
    }
    if let Some(check) = &outcome.report.integrity.cross_check {
        let all_agree = check.state == CrossCheckState::Compared && check.differed == 0;
        for sentence in check.sentences().iter().filter(|_| !(quiet && all_agree)) {
            tell(&format!("ttalloc: cross-check: {sentence}"));
        }
    }
    match &outcome.written {
        Ok(Written::New(path)) if !quiet => {
            tell(&format!("ttalloc: report written to {}", path.display()));
        }
        Ok(Written::Replaced(path)) => {
            tell(&format!("ttalloc: report replaced {}", path.display()));
        }
        Ok(Written::New(_) | Written::Nowhere) => {}
        Err(error) => tell(&format!("ttalloc-run: the report is lost: {error}")),
    }
    if let Some(Follower { pid: follower, heirs }) = &outcome.follower {
        let is_tracked = !outcome.running.is_empty();
        let (who, when) = match if is_tracked { &*outcome.running } else { heirs } {
            [pid] => (format!("process {pid} still runs"), ["it ends", "it uses tt-metal"]),
            pids => {
                let shown: Vec<_> = pids.iter().take(MOST_PIDS).map(u32::to_string).collect();
                let more = pids.len() - shown.len();
                let more = if more == 0 { String::new() } else { format!(" and {more} more") };
                let who = format!("processes {}{more} still run", shown.join(", "));
                (who, ["they end", "they use tt-metal"])
            }
        };
        let when = match is_tracked {
            true => format!("when {}", when[0]),
            false => format!("if {}", when[1]),
        };
        tell(&format!(
            "ttalloc: {who}; process {follower} goes on in the background, and replaces the report {when}"
        ));
    }
}

const NEEDED: &str = "it takes 16 MiB; free some, or raise the limits of this session (ulimit -v)";

/// Whether there is as much memory as is needed in any case: where an allocation fails, Rust's standard
/// library ends the process.
fn room() -> io::Result<()> {
    memmap2::MmapOptions::new().len(16 << 20).map_anon().map(drop)
}

/// Writes one line to standard error.
pub fn tell(text: &str) {
    print(&format!("{}\n", one_line(text)));
}

/// Writes to standard error. Where that is closed, there is nobody to tell.
fn print(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_many_are_listed_is_a_number_or_all() {
        for text in ["0", "10000", "all"] {
            assert_eq!(most(text).map(|most| most.to_string()).as_deref(), Ok(text));
        }
        for text in ["", "-1", "many", "1e4", "All"] {
            assert_eq!(most(text), Err("give a number, or \"all\"".to_owned()));
        }
        let parsed = Arguments::try_parse_from(["ttalloc-run", "--max-buffers", "all", "true"]);
        assert_eq!(parsed.ok().map(|arguments| arguments.max_buffers), Some(Most(usize::MAX)));
    }

    #[test]
    fn the_engines_variable_is_the_preload_librarys() {
        assert_eq!(ttalloc_ring::ENGINE_VARIABLE.to_str(), Ok(super::ENGINE));
    }
}
