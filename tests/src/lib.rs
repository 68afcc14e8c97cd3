//! What the tests share: the programs under test, built as they are shipped, and runs of them.

#![allow(clippy::panic, reason = "a test that can't go on says so")]

pub mod busy;
pub mod hardware;
pub mod random;
pub mod real;
pub mod releases;
pub mod standin;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;
use ttalloc::report::Report;

/// The programs under test.
pub struct Programs {
    /// `ttalloc-run`.
    pub run: PathBuf,
    /// `ttalloc`.
    pub ttalloc: PathBuf,
    /// The preload library.
    pub shim: PathBuf,
}

/// Builds the launcher (and with it the preload library) in the release profile, once.
pub fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let build = |name: &str| {
            let run = escargot::CargoBuild::new()
                .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../launcher/Cargo.toml"))
                .release()
                .bin(name)
                .run();
            match run {
                Ok(run) => run.path().to_owned(),
                Err(error) => panic!("{name} does not build: {error}"),
            }
        };
        let run = build("ttalloc-run");
        let shim = run.with_file_name("deps").join(ttalloc::shim::FILE_NAME);
        Programs { ttalloc: build("ttalloc"), run, shim }
    })
}

/// A finished run under `ttalloc-run`.
pub struct Run {
    /// What it printed, and how it ended.
    pub output: Output,
    /// Its report, if it wrote one; checked against the published schema.
    pub report: Option<Report>,
    /// Its folder, which goes with this.
    pub folder: TempDir,
}

impl Run {
    /// The report.
    ///
    /// # Panics
    /// If there is none; the message holds what the run printed.
    #[track_caller]
    pub fn report(&self) -> &Report {
        match &self.report {
            Some(report) => report,
            None => panic!("no report; {}", self.describe()),
        }
    }

    /// What it printed to standard output.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    /// What it printed to standard error, the summary included.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// All of it, for the message of a failed test.
    pub fn describe(&self) -> String {
        format!("{}\nstdout:\n{}\nstderr:\n{}", self.output.status, self.stdout(), self.stderr())
    }
}

/// Runs `program` under `ttalloc-run` in a new folder. `prepare` may add arguments and environment.
pub fn run(program: &Path, prepare: impl FnOnce(&mut Command)) -> Run {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let mut command = Command::new(&programs().run);
    command.arg(program).current_dir(folder.path());
    prepare(&mut command);
    finish(command, folder)
}

/// Runs a command of `ttalloc-run` to its end, and reads the report that it left in `folder`.
pub(crate) fn finish(mut command: Command, folder: TempDir) -> Run {
    let output = command.output().expect("ttalloc-run starts");
    let report = std::fs::read(folder.path().join("ttalloc-report.json")).ok();
    Run { output, report: report.map(|json| read_report(&json)), folder }
}

/// Reads a report, and holds it against the published schema.
pub fn read_report(json: &[u8]) -> Report {
    static SCHEMA: OnceLock<jsonschema::Validator> = OnceLock::new();
    let schema = SCHEMA.get_or_init(|| {
        jsonschema::validator_for(&Report::json_schema()).expect("the schema is a JSON Schema")
    });
    let value: Value = serde_json::from_slice(json).expect("the report is JSON");
    let errors: Vec<_> = schema.iter_errors(&value).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "the report breaks its schema: {errors:?}");
    serde_json::from_value(value).expect("a report that fits the schema can be read")
}
