//! `ttalloc merge` and the names of reports, as they are used: what is written, and what is refused in one line
//! with nothing written. `hosts.rs` has the same with ranks that mpirun starts.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on says so")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;
use ttalloc::report::{Exit, Report};
use ttalloc_tests::{programs, read_report};

/// A folder with reports, and without anything of a launch engine in the environment.
struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    /// A folder with the reports `r-0.json` and `r-1.json`, of two ranks.
    fn with_reports() -> Folder {
        let folder = Folder::new();
        for rank in ["0", "1"] {
            folder.run(&["--quiet", "--report", "r-%r.json", "sh", "-c", "exit 0"], |command| {
                command.env("PMI_RANK", rank);
            });
        }
        assert_eq!(folder.names(), ["r-0.json", "r-1.json"]);
        folder
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.0.path());
        let of_ranks = ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"];
        for name in of_ranks.into_iter().chain(["SLURM_PROCID", "LD_PRELOAD", "TTALLOC_RING"]) {
            command.env_remove(name);
        }
        command
    }

    /// Runs the launcher.
    fn run(&self, words: &[&str], prepare: impl FnOnce(&mut Command)) -> Output {
        let mut command = self.command(&programs().run);
        prepare(command.args(words));
        command.output().unwrap()
    }

    fn merge(&self, words: &[&str]) -> Output {
        let output = self.command(&programs().ttalloc).arg("merge").args(words).output().unwrap();
        assert!(!text(&output.stderr).contains("panicked"), "{}", text(&output.stderr));
        output
    }

    /// Merges in vain: one line says why, and no file comes, goes or changes.
    #[track_caller]
    fn refused(&self, words: &[&str]) -> String {
        let contents = |names: &[String]| -> Vec<_> {
            names.iter().map(|name| fs::read(self.0.path().join(name)).ok()).collect()
        };
        let names = self.names();
        let before = contents(&names);
        let output = self.merge(words);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert_eq!(text(&output.stdout), "", "{message}");
        assert!(message.starts_with("ttalloc: ") && message.lines().count() == 1, "{message}");
        assert_eq!(self.names(), names, "{message}");
        assert_eq!(contents(&names), before, "{message}");
        message
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.0.path().join(name), content).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.0.path().join(name)).unwrap_or_else(|why| panic!("{name}: {why}"))
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_merged_report_goes_where_it_is_wanted() {
    let folder = Folder::with_reports();
    let files = ["r-0.json", "r-1.json"];
    let output = folder.merge(&files);
    assert_eq!(output.status.code(), Some(0));
    let report = read_report(&output.stdout);
    assert_eq!(report.sources.iter().map(|one| &*one.file).collect::<Vec<_>>(), files);
    assert_eq!(report.sources.iter().map(|one| one.rank).collect::<Vec<_>>(), [Some(0), Some(1)]);
    assert_eq!(report.processes.len(), 2);
    let summary = text(&output.stderr);
    assert!(
        summary.starts_with("ttalloc: 2 reports of sh -c exit 0, exited normally\n"),
        "{summary}"
    );

    let words = [&files[..], &["-o", "all.json"]].concat();
    let output = folder.merge(&words);
    assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b""[..]));
    assert!(text(&output.stderr).ends_with("/all.json\n"));
    assert_eq!(read_report(&folder.read("all.json")), report);
    // Silence, but for what has been replaced.
    let output = folder.merge(&[&words[..], &["--quiet"]].concat());
    let message = text(&output.stderr);
    assert!(
        message.starts_with("ttalloc: report replaced ") && message.lines().count() == 1,
        "{message}"
    );
    assert_eq!(folder.names(), ["all.json", "r-0.json", "r-1.json"]);
}

#[test]
fn what_is_no_whole_report_is_named_and_nothing_written() {
    let folder = Folder::with_reports();
    let whole = folder.read("r-1.json");
    let mut value: Value = serde_json::from_slice(&whole).unwrap();
    value["schema"] = "ttalloc.report/2".into();
    folder.write("newer.json", value.to_string());
    folder.write("cut.json", &whole[..whole.len() / 2]);
    folder.write("empty.json", "");
    folder.write("other.json", "{\"name\": \"ttnn\"}");
    folder.write("text.json", "all: tests\n");
    folder.write("binary.json", [0xff, 0, 0x7f]);
    fs::create_dir(folder.0.path().join("runs")).unwrap();
    for (file, what) in [
        ("newer.json", "has the schema ttalloc.report/2"),
        ("cut.json", "ends in the middle"),
        ("empty.json", "ends in the middle"),
        ("other.json", "is no report of ttalloc: it is no JSON object that names its schema"),
        ("text.json", "is no report of ttalloc: it is no JSON"),
        ("binary.json", "is no report of ttalloc: it is no JSON"),
        ("runs", "is a folder; name the reports in it: runs/*.json"),
        ("missing.json", "can't be read: No such file"),
    ] {
        // Wherever among the others it stands.
        for words in [["r-0.json", file], [file, "r-0.json"]] {
            let message = folder.refused(&[&words[..], &["-o", "all.json"]].concat());
            assert!(message.starts_with(&format!("ttalloc: {file} {what}")), "{message}");
        }
    }
}

#[test]
fn nothing_counts_twice() {
    let folder = Folder::with_reports();
    symlink("r-1.json", folder.0.path().join("link.json")).unwrap();
    fs::copy(folder.0.path().join("r-1.json"), folder.0.path().join("copy.json")).unwrap();
    for again in ["r-1.json", "link.json", "copy.json"] {
        let message = folder.refused(&["r-1.json", "r-0.json", again, "-o", "all.json"]);
        let expected = format!("ttalloc: r-1.json and {again} are both about process ");
        assert!(message.starts_with(&expected), "{message}");
        assert!(message.contains("Name one of them"), "{message}");
    }
}

#[test]
fn the_output_is_checked_first() {
    let folder = Folder::with_reports();
    let message = folder.refused(&["r-0.json", "missing.json", "-o", "no/such/all.json"]);
    assert!(message.contains("no/such/all.json") && message.contains("--output"), "{message}");
    symlink("r-0.json", folder.0.path().join("link.json")).unwrap();
    for output in ["r-0.json", "./r-0.json", "link.json"] {
        let message = folder.refused(&["r-1.json", "r-0.json", "-o", output]);
        assert!(message.contains("would replace r-0.json"), "{message}");
    }
    let output = folder.merge(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("<REPORT>"), "{}", text(&output.stderr));
}

#[test]
fn names_have_the_rank_the_host_and_the_pid() {
    let folder = Folder::new();
    let host = text(&Command::new("uname").arg("-n").output().unwrap().stdout).trim().to_owned();
    let output =
        folder.run(&["-q", "--report", "%h-%r-%p-%%.json", "sh", "-c", "echo $$"], |command| {
            command.env("SLURM_PROCID", "7");
        });
    let name = format!("{host}-7-{}-%.json", text(&output.stdout).trim());
    assert_eq!(folder.names(), [&*name]);
    let report = read_report(&folder.read(&name));
    assert_eq!((&report.host, report.rank), (&host, Some(7)));
    assert_eq!(report.processes[0].rank, Some(7));
}

#[test]
fn a_rank_has_a_name_of_its_own_unless_it_is_alone() {
    let folder = Folder::new();
    let run = |variables: &[(&str, &str)]| {
        let output = folder.run(&["-q", "true"], |command| {
            command.envs(variables.iter().copied());
        });
        assert!(output.status.success(), "{}", text(&output.stderr));
        let names = folder.names();
        names.iter().for_each(|name| fs::remove_file(folder.0.path().join(name)).unwrap());
        names
    };
    assert_eq!(run(&[]), ["ttalloc-report.json"]);
    assert_eq!(run(&[("PMIX_RANK", "3")]), ["ttalloc-report.3.json"]);
    let slurm = [("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2")];
    assert_eq!(run(&slurm), ["ttalloc-report.1.json"]);
    let alone = [("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "1")];
    assert_eq!(run(&alone), ["ttalloc-report.json"]);
}

#[test]
fn names_that_mean_nothing_are_refused_before_the_start() {
    let folder = Folder::new();
    for (name, what) in [
        (
            "r-%r.json",
            "has no rank: none of OMPI_COMM_WORLD_RANK, PMIX_RANK, PMI_RANK, MV2_COMM_WORLD_RANK, SLURM_PROCID is a number",
        ),
        ("r-%d.json", "%d means nothing in its name: %p is the program's pid"),
        ("100%", "ends in a lone %"),
        ("%p/r.json", "No such file"),
    ] {
        let output = folder.run(&["--report", name, "touch", "started"], |_| {});
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{message}");
        assert!(message.starts_with("ttalloc-run: ") && message.lines().count() == 1, "{message}");
        assert!(message.contains(what) && message.contains("--report"), "{message}");
        assert_eq!(folder.names(), [""; 0], "{message}");
    }
}

#[test]
fn a_name_with_the_pid_that_fails_after_all_is_told_as_a_lost_report() {
    let folder = Folder::new();
    let output =
        folder.run(&["-q", "--report", "%p.json", "sh", "-c", "mkdir $$.json; exit 3"], |_| {});
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(message.starts_with("ttalloc-run: the report is lost: "), "{message}");
}

#[test]
fn thousands_of_reports_are_named_on_one_command_line() {
    let folder = Folder::with_reports();
    let report: Report = read_report(&folder.read("r-0.json"));
    let names: Vec<_> = (0..3000).map(|host| format!("report-of-{host}.json")).collect();
    for (host, name) in (0u32..).zip(&names) {
        let mut report = report.clone();
        report.host = format!("node-{host}");
        report.rank = Some(host);
        report.exit = Exit::Code(i32::from(host == 2999));
        report.processes[0].host.clone_from(&report.host);
        folder.write(name, serde_json::to_vec(&report).unwrap());
    }
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let output = folder.merge(&[&names[..], &["-q", "-o", "all.json"]].concat());
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    let merged = read_report(&folder.read("all.json"));
    assert_eq!((merged.sources.len(), merged.processes.len()), (3000, 3000));
    assert_eq!((&*merged.processes[1234].host, merged.exit), ("node-1234", Exit::Code(1)));
}
