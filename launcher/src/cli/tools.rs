//! The command line of `ttalloc`.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::binary::Binary;
use crate::cli;
use crate::demo::cluster::{Arch, Cluster};
use crate::demo::{self, python};
use crate::doctor::{Diagnosis, locate};
use crate::facts::Facts;
use crate::merge::{self, Merge};
use crate::report::Report;
use crate::run::collect::{self, Collection};
use crate::run::destination::{Destination, Written};
use crate::run::name::literal;
use crate::summary::{one_line, summary};
use anyhow::Context;
use clap::{Parser, Subcommand};
use serde::Serialize;

const AFTER_HELP: &str = "\
Examples:
  ttalloc demo
  ttalloc demo --arch blackhole --chips 1
  ttalloc doctor --python python3
  ttalloc doctor ./matmul_multicore_reuse
  ttalloc merge r-*.json --output all.json
  ttalloc schema > ttalloc.report.schema.json

To run a program of your own, see ttalloc-run --help.

Exit code: 0, or 2 when what was asked for can't be done, and a line on standard error says why.
1 from doctor when something can't be tracked.";

const MERGE_EXAMPLES: &str = "\
Examples:
  mpirun -np 4 ttalloc-run --report 'r-%r.json' ./prog; ttalloc merge r-*.json -o all.json
  srun ttalloc-run --report '/shared/run7/%h-%r.json' ./prog
  ttalloc merge /shared/run7/*.json | jq '.processes[] | [.host, .rank, .pid]'";

/// ttalloc's tools: a demo, what can be tracked of a tt-metal, reports as one, and their schema. Programs are run by ttalloc-run.
#[derive(Parser)]
#[command(name = "ttalloc", version, after_help = AFTER_HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Tool,
}

#[derive(Subcommand)]
enum Tool {
    /// Run a small ttnn program on mock chips under ttalloc-run: the real tt-metal, no hardware
    ///
    /// Needs CPython 3.10 or 3.12, found on PATH or named in TTALLOC_PYTHON. Installs ttnn in the user's
    /// cache the first time, which downloads about 100 MB.
    Demo {
        /// How many mock chips: 1, 2, 4, 8, or 32 of Wormhole
        #[arg(long, default_value_t = 8)]
        chips: u32,
        /// Their architecture
        #[arg(long, value_enum, default_value_t = Arch::Wormhole)]
        arch: Arch,
        /// Where the JSON report goes
        #[arg(long, value_name = "FILE", default_value = crate::run::DEFAULT_REPORT)]
        report: PathBuf,
    },
    /// Tell what ttalloc can track of a tt-metal, and what to do about the rest
    ///
    /// Finds the tt-metal that a program, a library or a Python loads, without running any of it, and
    /// says for each function that ttalloc needs whether it is there and how it is called. Without an
    /// argument it looks at the package ttnn of python3, or else for libtt_metal.so in LD_LIBRARY_PATH,
    /// in TT_METAL_HOME/build/lib, and among the system's libraries.
    ///
    /// Exit code: 0 when everything can be tracked, 1 when something can't, 2 when there is nothing to
    /// judge.
    Doctor {
        /// A program that is linked with tt-metal, or the library that tt-metal is in
        #[arg(value_name = "PROGRAM | LIBRARY")]
        file: Option<OsString>,
        /// A Python that has the package ttnn
        #[arg(long, value_name = "PYTHON", conflicts_with = "file")]
        python: Option<OsString>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print what a library has of tt-metal, as JSON: the facts that symbols/releases/ keeps of a release
    ///
    /// For every role of ttalloc's catalogue: the symbols that the library defines, and how its own code
    /// gets to them: through the PLT ("plt"), a word that the dynamic linker fills in ("got", "data"), or
    /// past the dynamic linker ("direct"). A symbol without any is used by other libraries only.
    Facts {
        /// The release that the library is of
        #[arg(long, value_name = "RELEASE")]
        release: Option<String>,
        /// The library that tt-metal is in: libtt_metal.so, in releases before 0.62.0 _ttnncpp.so
        library: PathBuf,
    },
    /// Join the reports of ranks and hosts into one
    ///
    /// Lists are joined and counts summed; processes are numbered anew, each with its host and rank, and
    /// times count from the earliest start. The hosts' clocks are taken as they are. Prints the summary
    /// on standard error. The output is a report too, on one line, and can be merged further.
    ///
    /// Nothing is written if a file is no whole report, or if two are about the same process.
    #[command(after_help = MERGE_EXAMPLES)]
    Merge {
        /// The reports
        #[arg(required = true, value_name = "REPORT")]
        reports: Vec<PathBuf>,
        /// Where the merged report goes; "-" is standard output
        #[arg(short, long, value_name = "FILE", default_value = "-")]
        output: PathBuf,
        /// Print no summary. Problems are still told, and that a file was replaced
        #[arg(short, long)]
        quiet: bool,
    },
    /// Print the JSON Schema of the report
    Schema,
    /// Keep the books of a program that has the preload library and no launcher. The library starts it
    #[command(hide = true)]
    Collect {
        /// The program's pid
        #[arg(long)]
        pid: u32,
        /// The descriptor on which the program waits for the ring's name
        #[arg(long)]
        reply: i32,
    },
}

/// Does what the command line asks for.
pub fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Tool::Demo { chips, arch, report } => run_demo(chips, arch, &report),
        Tool::Doctor { file, python, json } => run_doctor(file.as_deref(), python.as_deref(), json),
        Tool::Facts { release, library } => print_facts(&library, release.as_deref()),
        Tool::Merge { reports, output, quiet } => run_merge(&reports, &output, quiet),
        Tool::Schema => print_json(&Report::json_schema(), "the schema"),
        Tool::Collect { pid, reply } => run_collect(pid, reply),
    };
    done.unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "ttalloc: {error:#}");
        ExitCode::from(2)
    })
}

fn run_demo(chips: u32, arch: Arch, report: &Path) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::of(arch, chips).with_context(|| {
        format!("no mesh of {chips} chips; ask for 1, 2, 4, 8, or 32 of Wormhole")
    })?;
    let runtime = python::prepare(python::RELEASE)?;
    let ttalloc = std::env::current_exe().context("this program can't find itself")?;
    // The program runs in a folder of its own: tt-metal leaves files in the current one.
    let report = std::path::absolute(report).context("the current folder is gone")?;
    let folder = tempfile::Builder::new()
        .prefix("ttalloc-demo-")
        .tempdir()
        .context("a temporary folder can't be made")?;
    let report = literal(&report);
    let options = ["--report".as_ref(), report.as_os_str()];
    let status = demo::run(&runtime, cluster, &ttalloc, folder.path(), &options)
        .context("ttalloc-run can't be run")?;
    anyhow::ensure!(status.success(), "the demo failed ({status}); what it printed stands above");
    Ok(ExitCode::SUCCESS)
}

fn run_collect(pid: u32, reply: RawFd) -> anyhow::Result<ExitCode> {
    // SAFETY: only asks.
    let is_open = unsafe { libc::fcntl(reply, libc::F_GETFD) } >= 0;
    anyhow::ensure!(reply > 2 && is_open, "--reply {reply} is no descriptor that was handed over");
    // SAFETY: it is open, was handed over for this, and nothing of this program has opened it.
    let mut reply = Some(unsafe { OwnedFd::from_raw_fd(reply) });
    let collection = Collection { pid, reply: &mut reply, report: cli::run::named_report() };
    let done = collect::collect(collection, |outcome| cli::run::tell_outcome(outcome, false));
    match done {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(why) => {
            // The program tells that it isn't tracked, once it has no answer.
            cli::run::tell(&format!("ttalloc: {why}"));
            drop(reply);
            Ok(ExitCode::from(2))
        }
    }
}

fn run_doctor(
    file: Option<&OsStr>,
    python: Option<&OsStr>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let located = match (file, python) {
        (Some(file), _) => locate::of_file(file)?,
        (None, Some(python)) => locate::of_python(python)?,
        (None, None) => {
            let (located, whence) = locate::anywhere()?;
            writeln!(io::stderr(), "ttalloc: nothing was named; this is {whence}")?;
            located
        }
    };
    let diagnosis = Diagnosis::of(&located);
    if json {
        print_json(&diagnosis, "the diagnosis")?;
    } else {
        print(&diagnosis.text(), "the diagnosis")?;
    }
    Ok(ExitCode::from(u8::from(!diagnosis.complete)))
}

fn print_facts(library: &Path, release: Option<&str>) -> anyhow::Result<ExitCode> {
    let binary = Binary::read(library)?;
    anyhow::ensure!(
        !binary.found.is_empty(),
        "{} defines nothing of tt-metal that ttalloc knows; name the library that tt-metal is in",
        library.display()
    );
    print_json(&Facts::of(&binary, release), "the facts")
}

fn run_merge(files: &[PathBuf], output: &Path, quiet: bool) -> anyhow::Result<ExitCode> {
    let destination = Destination::check(output).with_context(|| {
        let output = output.display();
        format!("the merged report can't be written to {output}; name another file with --output")
    })?;
    let mut merge = Merge::default();
    for file in files {
        merge.read(file)?;
    }
    if let Some(file) = merge.has_read(output).filter(|_| output != Path::new("-")) {
        anyhow::bail!(
            "the merged report would replace {}, which it is made of; name another file with --output",
            file.display()
        );
    }
    let report = merge.finish().context("no report was named")?;
    let written = match destination.write_by(|out| merge::write(&report, out)) {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Written::Nowhere,
        written => written.with_context(|| {
            format!("the merged report can't be written to {}", output.display())
        })?,
    };
    let mut text = if quiet { problems(&report) } else { summary(&report) };
    match written {
        Written::New(path) if !quiet => {
            text += &one_line(&format!("ttalloc: report written to {}", path.display()));
            text.push('\n');
        }
        Written::Replaced(path) => {
            text += &one_line(&format!("ttalloc: report replaced {}", path.display()));
            text.push('\n');
        }
        Written::New(_) | Written::Nowhere => {}
    }
    // Where standard error is closed, there is nobody to tell.
    let _ = io::stderr().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

fn problems(report: &Report) -> String {
    let problems = report.integrity.problems.iter();
    problems.map(|problem| one_line(&format!("ttalloc: incomplete: {problem}")) + "\n").collect()
}

fn print_json(value: &impl Serialize, what: &str) -> anyhow::Result<ExitCode> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    print(&text, what)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes to standard output.
fn print(text: &str, what: &str) -> anyhow::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.with_context(|| format!("{what} can't be written")),
    }
}
