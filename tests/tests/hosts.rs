//! Several processes that a launch engine starts, Open MPI's mpirun: a report of each, and one of all.
//!
//! The ranks run `programs/rank.cpp` on the stand-in runtime, and `workloads/rank.py` on the real one. Each
//! prints the runtime's own books, which the report of that rank must equal.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a case fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;
use tempfile::TempDir;
use ttalloc::demo::cluster::{Arch, Cluster};
use ttalloc::demo::set_up;
use ttalloc::report::{Exit, Process, Report};
use ttalloc_symbols::Era;
use ttalloc_tests::standin::{Compiler, Standin};
use ttalloc_tests::{programs, read_report, real};

type Case = fn(&Ranks);

/// The cases on the stand-in runtime.
const CASES: &[(&str, Case)] = &[
    ("a_report_of_each_rank", a_report_of_each_rank),
    ("a_report_of_all_ranks", a_report_of_all_ranks),
    ("mpi_works_as_without", mpi_works_as_without),
    ("names_of_their_own_by_default", names_of_their_own_by_default),
    ("exit_codes", exit_codes),
    ("a_rank_that_is_killed", a_rank_that_is_killed),
];

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/rank.cpp");
const WORKLOAD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/rank.py");
/// The release of the case on the real runtime.
const RELEASE: &str = "0.81.1";

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mpi = find_mpi();
    let compiler = Compiler::find();
    let python = real::available();
    let missing = [
        ("OPEN MPI", mpi.as_ref().err()),
        ("A C++ COMPILER", compiler.as_ref().err()),
        ("A PYTHON, ONE OF THEM", python.as_ref().err()),
    ];
    for (what, why) in missing {
        let Some(why) = why else { continue };
        eprintln!("\nTHE TESTS WITH SEVERAL RANKS NEED {what}, AND ARE IGNORED: {why}\n");
        if std::env::var_os("CI").is_some() {
            return ExitCode::FAILURE;
        }
    }
    let cannot_start = mpi.is_err();
    let mut trials = Vec::new();
    for &(name, case) in CASES {
        let compiler = compiler.clone();
        let is_ignored = cannot_start || compiler.is_err();
        let runner = move || compiler.map(|one| case(&Ranks::new(&one))).map_err(Failed::from);
        trials.push(Trial::test(name, runner).with_ignored_flag(is_ignored));
    }
    let runner = || {
        real_runtime();
        Ok(())
    };
    let is_ignored = cannot_start || python.is_err();
    trials.push(Trial::test("ranks_of_the_real_runtime", runner).with_ignored_flag(is_ignored));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Whether there is a mpirun, and Open MPI's.
fn find_mpi() -> Result<(), String> {
    let output = Command::new("mpirun").arg("--version").output();
    let output = output.map_err(|why| format!("mpirun: {why}; install openmpi-bin"))?;
    let version = String::from_utf8_lossy(&output.stdout).into_owned();
    match version.contains("Open MPI") {
        true => Ok(()),
        false => Err(format!("mpirun is not Open MPI's: {version}")),
    }
}

/// `mpirun` for so many ranks, in `folder`, with nothing of ttalloc in its environment.
fn mpirun(folder: &Path, ranks: u32) -> Command {
    let mut command = Command::new("mpirun");
    for name in ["LD_PRELOAD", "TTALLOC_SHIM", "TTALLOC_RING"] {
        command.env_remove(name);
    }
    command
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .args(["--oversubscribe", "-np", &ranks.to_string()])
        .current_dir(folder)
        .stdin(Stdio::null());
    command
}

/// The same under the launcher.
fn run_mpirun(folder: &Path, ranks: u32) -> Command {
    let plain = mpirun(folder, ranks);
    let mut command = Command::new(&programs().run);
    command
        .arg(plain.get_program())
        .args(plain.get_args())
        .current_dir(folder)
        .stdin(Stdio::null());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// What each rank prints goes into a file of its own.
fn into_files(command: &mut Command) -> &mut Command {
    command.args(["sh", "-c", r#"exec "$0" "$@" > "out-$OMPI_COMM_WORLD_RANK""#])
}

/// Runs a command to its end.
fn finish(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|why| panic!("{command:?}: {why}"));
    assert!(!text(&output.stderr).contains("panicked"), "{}", describe(&output));
    output
}

#[track_caller]
fn succeed(command: &mut Command) -> Output {
    let output = finish(command);
    assert!(output.status.success(), "{command:?}\n{}", describe(&output));
    output
}

fn describe(output: &Output) -> String {
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    format!("{}\nstdout:\n{stdout}\nstderr:\n{stderr}", output.status)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn report(path: &Path) -> Report {
    read_report(&fs::read(path).unwrap_or_else(|why| panic!("{}: {why}", path.display())))
}

/// Merges reports in `folder` into `all.json`. Returns that, and what was printed.
fn merge(folder: &Path, files: &[String]) -> (Report, String) {
    let mut command = Command::new(&programs().ttalloc);
    let output = succeed(
        command.arg("merge").args(files).args(["--output", "all.json"]).current_dir(folder),
    );
    assert_eq!(text(&output.stdout), "");
    (report(&folder.join("all.json")), text(&output.stderr))
}

/// What a rank printed last: the runtime's books.
#[track_caller]
fn books(folder: &Path, rank: u32) -> Value {
    let printed = fs::read_to_string(folder.join(format!("out-{rank}"))).unwrap();
    let line = printed.lines().rfind(|line| line.starts_with('{'));
    serde_json::from_str(line.unwrap_or_else(|| panic!("rank {rank} printed {printed}"))).unwrap()
}

/// The process of a rank that called tt-metal.
#[track_caller]
fn of_rank(report: &Report, rank: u32) -> &Process {
    let is_meant = |one: &&Process| one.rank == Some(rank) && one.runtime.is_some();
    let found: Vec<_> = report.processes.iter().filter(is_meant).collect();
    let [process] = &*found else { panic!("rank {rank}: {:?}", report.processes) };
    process
}

/// What a report says of a rank are the runtime's own figures.
#[track_caller]
fn assert_books(report: &Report, rank: u32, books: &Value) {
    const FIGURES: [&str; 6] =
        ["allocations", "frees", "released", "failed", "live", "allocated_bytes_total"];
    let process = of_rank(report, rank);
    assert_eq!(report.processes[process.process as usize].pid, process.pid);
    let devices: Vec<_> =
        report.devices.iter().filter(|device| device.process == process.process).collect();
    let expected = books["devices"].as_array().unwrap();
    assert_eq!(devices.len(), expected.len(), "rank {rank}");
    for books in expected {
        let device = devices.iter().find(|device| books["chip"] == device.chip).unwrap();
        assert_eq!(device.pid, process.pid);
        let found = serde_json::to_value(&device.memory).unwrap();
        let (found, expected) = (found.as_array().unwrap(), books["memory"].as_array().unwrap());
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            for figure in FIGURES {
                let what = format!("{figure} of {} of rank {rank}", found["type"]);
                assert!(!expected[figure].is_null(), "{what}");
                assert_eq!(found[figure], expected[figure], "{what}");
            }
        }
    }
    let live = report.live_buffers.iter().filter(|one| one.process == process.process);
    assert_eq!(live.count(), books["live_buffers"].as_array().unwrap().len());
}

/// Ranks on the stand-in runtime.
struct Ranks {
    program: PathBuf,
    folder: TempDir,
}

impl Ranks {
    fn new(compiler: &Compiler) -> Ranks {
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let program = Standin::new(compiler, cache, Era::C, &[]).further_program(PROGRAM.as_ref());
        Ranks { program, folder: tempfile::tempdir().unwrap() }
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A launcher for each of so many ranks, with these options.
    fn each(&self, ranks: u32, options: &[&str]) -> Command {
        let mut command = mpirun(self.folder(), ranks);
        into_files(command.arg(&programs().run).args(options)).arg(&self.program);
        command
    }

    /// One launcher for all of them.
    fn all(&self, ranks: u32) -> Command {
        let mut command = run_mpirun(self.folder(), ranks);
        into_files(&mut command).arg(&self.program);
        command
    }

    /// None.
    fn alone(&self, ranks: u32) -> Command {
        let mut command = mpirun(self.folder(), ranks);
        into_files(&mut command).arg(&self.program);
        command
    }

    fn report(&self, name: &str) -> Report {
        report(&self.folder().join(name))
    }
}

fn names(ranks: u32) -> Vec<String> {
    (0..ranks).map(|rank| format!("r-{rank}.json")).collect()
}

/// The allocations of every chip and type.
fn allocations(report: &Report) -> u64 {
    let memory = report.devices.iter().flat_map(|device| &device.memory);
    memory.map(|memory| memory.allocations).sum()
}

fn a_report_of_each_rank(ranks: &Ranks) {
    succeed(&mut ranks.each(4, &["--quiet", "--report", "r-%r.json"]));
    let host = text(&Command::new("uname").arg("-n").output().unwrap().stdout).trim().to_owned();
    let mut all = Vec::new();
    for (rank, name) in (0..).zip(names(4)) {
        let report = ranks.report(&name);
        assert!(report.integrity.complete, "{:?}", report.integrity.problems);
        assert_eq!((&report.host, report.rank), (&host, Some(rank)));
        assert_books(&report, rank, &books(ranks.folder(), rank));
        let process = of_rank(&report, rank);
        assert_eq!(process.host, host);
        assert!(report.devices.iter().all(|device| device.host == host));
        assert!(process.start_ticks != 0, "{process:?}");
        all.push(report);
    }
    // The order in which they are named makes no difference.
    let mut files = names(4);
    files.reverse();
    let (merged, summary) = merge(ranks.folder(), &files);
    assert!(summary.contains(" rank  chip  type "), "{summary}");
    assert!(summary.starts_with("ttalloc: 4 reports of sh -c "), "{summary}");
    for rank in 0..4 {
        assert_books(&merged, rank, &books(ranks.folder(), rank));
    }
    let chips: BTreeSet<_> = merged.devices.iter().map(|device| device.chip).collect();
    assert_eq!(chips, (0..8).collect());
    let of_ranks: Vec<_> = merged.sources.iter().map(|source| source.rank).collect();
    assert_eq!(of_ranks, [0, 1, 2, 3].map(Some));
    assert!(merged.integrity.complete && merged.exit == Exit::Code(0));
    let sum = |figure: fn(&Report) -> u64| all.iter().map(figure).sum::<u64>();
    // Each rank makes 2R + 5 buffers on both of its chips.
    assert_eq!((allocations(&merged), sum(allocations)), (64, 64));
    for figure in [
        (|report| report.integrity.events) as fn(&Report) -> u64,
        |report| report.live_buffers.len() as u64,
        |report| report.devices.len() as u64,
        |report| report.processes.len() as u64,
        |report| report.meshes.len() as u64,
    ] {
        assert!(figure(&merged) != 0);
        assert_eq!(figure(&merged), sum(figure));
    }
    // What was merged has them all: each would count twice.
    let output = finish(
        Command::new(&programs().ttalloc)
            .args(["merge", "r-0.json", "all.json"])
            .current_dir(ranks.folder()),
    );
    assert_eq!((output.status.code(), &*output.stdout), (Some(2), &b""[..]));
    assert!(text(&output.stderr).contains("r-0.json and all.json are both about process "));
}

fn a_report_of_all_ranks(ranks: &Ranks) {
    let alone = succeed(&mut ranks.alone(4));
    let output = succeed(ranks.all(4).env("TTALLOC_ENGINE", "auto"));
    assert_eq!(text(&output.stdout), text(&alone.stdout));
    let summary = text(&output.stderr);
    assert!(summary.contains(" rank  chip  type "), "{summary}");
    let report = ranks.report("ttalloc-report.json");
    assert!(report.integrity.complete, "{:?}", report.integrity.problems);
    assert_eq!(report.rank, None);
    for rank in 0..4 {
        assert_books(&report, rank, &books(ranks.folder(), rank));
    }
    assert_eq!(allocations(&report), 64);
    // mpirun is the program, and calls nothing of tt-metal.
    let first = &report.processes[0];
    assert_eq!((first.rank, &first.runtime, report.processes.len()), (None, &None, 5));
    assert_eq!(first.exit, Some(Exit::Code(0)));
}

/// Under a launcher each, and under one for all, ranks find each other.
fn mpi_works_as_without(ranks: &Ranks) {
    for mut command in
        [ranks.alone(3), ranks.each(3, &["-q", "--report", "r-%r.json"]), ranks.all(3)]
    {
        succeed(command.arg("mpi"));
        for rank in 0..3 {
            fs::rename(
                ranks.folder().join(format!("out-{rank}")),
                ranks.folder().join(format!("last-{rank}")),
            )
            .unwrap();
        }
    }
    for rank in 0..3 {
        let printed = fs::read_to_string(ranks.folder().join(format!("last-{rank}"))).unwrap();
        let books: Value = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
        assert_books(&ranks.report(&format!("r-{rank}.json")), rank, &books);
        assert_books(&ranks.report("ttalloc-report.json"), rank, &books);
    }
}

fn names_of_their_own_by_default(ranks: &Ranks) {
    let output = succeed(&mut ranks.each(2, &[]));
    for rank in 0..2 {
        let name = format!("ttalloc-report.{rank}.json");
        assert_books(&ranks.report(&name), rank, &books(ranks.folder(), rank));
        assert!(text(&output.stderr).contains(&format!("/{name}\n")), "{}", describe(&output));
    }
    // One rank alone is a program like any other.
    succeed(&mut ranks.each(1, &[]));
    assert_books(&ranks.report("ttalloc-report.json"), 0, &books(ranks.folder(), 0));
    assert_eq!(ranks.report("ttalloc-report.json").rank, Some(0));
    // The pid in a name is the program's.
    succeed(&mut ranks.each(2, &["--report", "p-%p.json"]));
    let names: Vec<_> = fs::read_dir(ranks.folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("p-"))
        .collect();
    assert_eq!(names.len(), 2);
    for name in names {
        let pid = ranks.report(&name).processes[0].pid;
        assert_eq!(name, format!("p-{pid}.json"));
    }
}

fn exit_codes(ranks: &Ranks) {
    let each = ranks.each(2, &["--quiet", "--report", "r-%r.json"]);
    for (mut command, is_each) in [(ranks.alone(2), false), (each, true), (ranks.all(2), false)] {
        let output = finish(command.args(["exit", "3", "1"]));
        assert_eq!(output.status.code(), Some(3), "{}", describe(&output));
        if is_each {
            assert_eq!(ranks.report("r-1.json").exit, Exit::Code(3));
        }
    }
    let report = ranks.report("ttalloc-report.json");
    assert_eq!(report.exit, Exit::Code(3), "mpirun's");
}

fn a_rank_that_is_killed(ranks: &Ranks) {
    let mut command = ranks.each(3, &["--quiet", "--report", "r-%r.json"]);
    let output = finish(command.args(["kill", "1", "r-0.json", "r-2.json"]));
    // As a shell has it, 128 and the signal.
    assert_eq!(output.status.code(), Some(137), "{}", describe(&output));
    let (merged, _) = merge(ranks.folder(), &names(3));
    for rank in 0..3 {
        assert_books(&merged, rank, &books(ranks.folder(), rank));
    }
    let killed = || Exit::Signal("SIGKILL".to_owned());
    let ends: Vec<_> = merged.sources.iter().map(|source| source.exit.clone()).collect();
    assert_eq!(ends, [Exit::Code(0), killed(), Exit::Code(0)]);
    assert_eq!(merged.exit, killed());
    assert_eq!(of_rank(&merged, 1).exit, Some(killed()));
    assert!(merged.integrity.complete, "{:?}", merged.integrity.problems);

    let output = finish(ranks.all(3).args(["kill", "1", "out-0", "out-2"]));
    assert_eq!(output.status.code(), Some(137), "{}", describe(&output));
    let report = ranks.report("ttalloc-report.json");
    assert_eq!(report.exit, Exit::Code(137), "mpirun's");
    // mpirun ends the others, wherever they are.
    assert_books(&report, 1, &books(ranks.folder(), 1));
    assert_eq!((report.integrity.dropped, report.integrity.unknown_frees), (0, 0));
}

/// Two ranks of ttnn, with a mock chip each.
fn real_runtime() {
    let runtime = real::runtime(RELEASE);
    let cluster = Cluster::of(Arch::Wormhole, 2).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let each = {
        let mut command = mpirun(folder.path(), 2);
        command.arg(&programs().run).args(["--quiet", "--report", "r-%r.json"]);
        command
    };
    for mut command in [each, run_mpirun(folder.path(), 2)] {
        set_up(&mut command, &runtime, cluster, folder.path()).unwrap();
        // Its counters would stay in /dev/shm for good.
        command.env("TT_METAL_SHM_TRACKING_DISABLED", "1");
        into_files(&mut command).arg(&runtime.python).arg(WORKLOAD);
        succeed(&mut command);
        let report = match folder.path().join("ttalloc-report.json").exists() {
            true => report(&folder.path().join("ttalloc-report.json")),
            false => merge(folder.path(), &names(2)).0,
        };
        assert!(report.integrity.complete, "{:?}", report.integrity.problems);
        for rank in 0..2 {
            let said = books(folder.path(), rank);
            let process = of_rank(&report, rank);
            let mut devices =
                report.devices.iter().filter(|device| device.process == process.process);
            let (Some(device), None) = (devices.next(), devices.next()) else {
                panic!("rank {rank}: {:?}", report.devices)
            };
            assert_eq!(said["chips"], serde_json::json!([device.chip]));
            for (kind, bytes) in said["bytes_per_bank"].as_object().unwrap() {
                let memory = device.memory.iter().find(|one| one.kind.to_string() == *kind);
                let memory = memory.unwrap_or_else(|| panic!("no {kind}"));
                assert!(bytes.as_u64() > Some(0));
                assert_eq!(*bytes, memory.live.bytes_per_bank, "{kind} of rank {rank}");
            }
        }
    }
}
