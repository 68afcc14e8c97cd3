//! A program that is tracked sees nothing of it: what `self` of the stand-in prints of its descriptors,
//! signals, limits, threads, children and settings is the same to the letter with ttalloc and without.

#![expect(clippy::unwrap_used, reason = "a case fails by panicking")]

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use ttalloc::report::{Exit, Report};
use ttalloc_symbols::Era;
use ttalloc_tests::standin::{Compiler, Standin};
use ttalloc_tests::{programs, read_report};

/// How long a collector may take to write its report, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the program ends with.
const EXIT_CODE: i32 = 9;

type Case = fn(&Path);

const CASES: &[(&str, Case)] = &[
    ("under_the_launcher", under_the_launcher),
    ("patched", patched),
    ("followed_always", followed_always),
    ("by_sh", by_sh),
    ("by_hand", by_hand),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let compiler = Compiler::find();
    if let Err(why) = &compiler {
        eprintln!(
            "\nTHE TESTS OF WHAT A PROGRAM SEES NEED A C++ COMPILER, AND ARE IGNORED: {why}\n"
        );
        if std::env::var_os("CI").is_some() {
            return ExitCode::FAILURE;
        }
    }
    let trials = CASES.iter().map(|&(name, case)| {
        let compiler = compiler.clone();
        let is_missing = compiler.is_err();
        let runner = move || {
            let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
            let standin = Standin::new(&compiler?, folder, Era::C, &[]);
            case(&standin.program("self"));
            Ok::<_, Failed>(())
        };
        Trial::test(name, runner).with_ignored_flag(is_missing)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// What a run of the program showed.
#[derive(Debug, PartialEq)]
struct Seen {
    output: Vec<String>,
    errors: String,
    code: Option<i32>,
}

/// A place to run in: an empty folder for the program, and another for its output.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("work")).unwrap();
        Place { folder }
    }

    /// Runs a command here, with an environment that is the same each time but for what `prepare` adds.
    #[track_caller]
    fn run(&self, words: &[&Path], prepare: impl FnOnce(&mut Command)) -> Seen {
        let path = |name: &str| self.folder.path().join(name);
        let file = |name: &str| File::create(path(name)).unwrap();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env_clear().env("PATH", "/usr/bin:/bin").env("EMPTY", "");
        command.current_dir(path("work"));
        command.stdin(Stdio::null()).stdout(file("output")).stderr(file("errors"));
        prepare(&mut command);
        let code = command.status().unwrap().code();
        let text = |name: &str| fs::read_to_string(path(name)).unwrap();
        let output = text("output").lines().map(str::to_owned).collect();
        Seen { output, errors: text("errors"), code }
    }

    /// Holds what was seen against a run alone; the message has only what differs.
    #[track_caller]
    fn compare(&self, words: &[&Path], seen: &Seen) {
        let alone = self.run(words, |_| ());
        assert_eq!(alone.code, Some(EXIT_CODE), "{}", alone.output.join("\n"));
        let pairs = alone.output.iter().zip(&seen.output).filter(|(alone, seen)| alone != seen);
        // Further ones may come of the first.
        let different: Vec<_> = pairs.take(5).collect();
        assert!(different.is_empty(), "alone, and with ttalloc: {different:#?}");
        assert_eq!(seen, &alone);
        // It looks eight times, and a few lines are as they are because something looked.
        let has = |line: &str| alone.output.iter().filter(|one| *one == line).count();
        assert_eq!((has("threads: 1"), has("threads: 2")), (7, 1));
        assert_eq!(has("errno was changed 0 times"), 3);
        assert_eq!(has("waited for: 0, No child processes"), 8);
        assert_eq!(has("at the end: No child processes"), 1);
    }

    fn report(&self) -> Report {
        read_report(&fs::read(self.folder.path().join("report.json")).unwrap())
    }

    /// Runs it under the launcher with some options, and compares.
    #[track_caller]
    fn under_launcher(&self, options: &[&str], words: &[&Path]) -> Report {
        let report = self.folder.path().join("report.json");
        let mut all = vec![programs().run.as_path(), Path::new("--quiet"), Path::new("--report")];
        all.push(&report);
        all.extend(options.iter().map(Path::new));
        all.extend(words);
        let seen = self.run(&all, |_| ());
        self.compare(words, &seen);
        self.report()
    }
}

/// The program and its child were tracked, with all that they did.
#[track_caller]
fn assert_tracked(report: &Report) {
    assert!(report.integrity.complete, "{:?}", report.integrity);
    assert_eq!(report.exit, Exit::Code(EXIT_CODE));
    let tracked = report.processes.iter().filter(|process| process.runtime.is_some());
    assert_eq!(tracked.count(), 2);
    let allocations = report.devices.iter().flat_map(|device| &device.memory);
    // In the program twice, in its child once and one more; on two chips.
    assert_eq!(allocations.map(|memory| memory.allocations).sum::<u64>(), 2 * (3 * 2000 + 1));
}

fn under_the_launcher(program: &Path) {
    assert_tracked(&Place::new().under_launcher(&[], &[program]));
}

fn patched(program: &Path) {
    assert_tracked(&Place::new().under_launcher(&["--engine=inline"], &[program]));
}

fn followed_always(program: &Path) {
    assert_tracked(&Place::new().under_launcher(&["--follow=always"], &[program]));
}

/// Without a launcher: the collector that the library starts is not to be seen either. It prints its
/// summary when the program is gone.
fn by_hand(program: &Path) {
    let place = Place::new();
    let report = place.folder.path().join("report.json");
    let mut seen = place.run(&[program], |command| {
        command.env("LD_PRELOAD", &programs().shim).env("TTALLOC_REPORT", &report);
    });
    let begun = Instant::now();
    while !report.exists() {
        assert!(begun.elapsed() < PATIENCE, "there is no report: {}", seen.errors);
        thread::sleep(Duration::from_millis(5));
    }
    // The collector may have begun to print.
    seen.errors.clear();
    place.compare(&[program], &seen);
    assert_tracked(&place.report());
}

/// As a child of what the launcher starts.
fn by_sh(program: &Path) {
    let words = ["/bin/sh", "-c", "\"$0\"; exit $?"].map(Path::new);
    assert_tracked(&Place::new().under_launcher(&[], &[&words[..], &[program]].concat()));
}
