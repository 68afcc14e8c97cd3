//! The command line of `ttalloc-run`.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::report::CrossCheckState;
use crate::run::{self, Options, Written, name};
use crate::summary::{one_line, summary};
use clap::Parser;
use clap::error::ErrorKind;
use ttalloc_ring::Engine;

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
  TTALLOC_ENGINE  the engine, where --engine doesn't name one";

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
    /// [default: ttalloc-report.json; of one of several ranks ttalloc-report.%r.json]
    #[arg(short, long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// Write no report
    #[arg(long, conflicts_with = "report")]
    no_report: bool,

    /// Compare what is live at the end with the counters that tt-metal keeps itself, from 0.70.1 on
    #[arg(long)]
    cross_check: bool,

    /// How calls are seen: by interposition, and by patching the functions that it can't reach (auto);
    /// by interposition alone (preload); or by patching wherever that can be done (inline)
    #[arg(long, value_name = "ENGINE", env = ENGINE, value_parser = engine, default_value = "auto")]
    engine: Engine,

    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    command: Vec<OsString>,
}

fn engine(name: &str) -> Result<Engine, String> {
    // An empty variable is as good as none.
    let name = if name.is_empty() { Engine::default().name() } else { name };
    let found = Engine::ALL.into_iter().find(|engine| engine.name() == name);
    found.ok_or_else(|| "--engine, or TTALLOC_ENGINE, is auto, preload or inline".to_owned())
}

/// Runs the program that the command line names.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            let is_answer =
                matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return ExitCode::from(if is_answer { 0 } else { 125 });
        }
    };
    let options = Options {
        command: arguments.command,
        report: (!arguments.no_report).then(|| arguments.report.unwrap_or_else(name::default)),
        cross_check: arguments.cross_check,
        engine: arguments.engine,
    };
    let outcome = match run::run(&options) {
        Ok(outcome) => outcome,
        Err(error) => {
            tell(&format!("ttalloc-run: {error}"));
            return ExitCode::from(error.code());
        }
    };
    if !arguments.quiet {
        print(&summary(&outcome.report));
    } else {
        for problem in &outcome.report.integrity.problems {
            tell(&format!("ttalloc: incomplete: {problem}"));
        }
    }
    if let Some(check) = &outcome.report.integrity.cross_check {
        let all_agree = check.state == CrossCheckState::Compared && check.differed == 0;
        for sentence in check.sentences().iter().filter(|_| !(arguments.quiet && all_agree)) {
            tell(&format!("ttalloc: cross-check: {sentence}"));
        }
    }
    match outcome.written {
        Ok(written) => {
            match written {
                Written::New(path) if !arguments.quiet => {
                    tell(&format!("ttalloc: report written to {}", path.display()));
                }
                Written::Replaced(path) => {
                    tell(&format!("ttalloc: report replaced {}", path.display()));
                }
                Written::New(_) | Written::Nowhere => {}
            }
            ExitCode::from(outcome.code)
        }
        Err(error) => {
            tell(&format!("ttalloc-run: the report is lost: {error}"));
            ExitCode::from(if outcome.code == 0 { 125 } else { outcome.code })
        }
    }
}

/// Writes one line to standard error.
fn tell(text: &str) {
    print(&format!("{}\n", one_line(text)));
}

/// Writes to standard error. Where that is closed, there is nobody to tell.
fn print(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_engines_variable_is_the_preload_librarys() {
        assert_eq!(ttalloc_ring::ENGINE_VARIABLE.to_str(), Ok(super::ENGINE));
    }
}
