//! Programs that start programs: what is followed, and that nothing changes for those who look.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on says so")]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;
use ttalloc_ring::record::{self, Record};
use ttalloc_ring::ring::{Consumer, RingOptions};
use ttalloc_symbols::Era;
use ttalloc_tests::programs;
use ttalloc_tests::standin::{Compiler, Standin};

/// A ring's name that leads nowhere.
const RING: &str = "/proc/1/fd/999999@0123456789abcdef";

/// Compiles `programs/NAME.c`.
fn compiled(name: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let source = format!("{}/programs/{name}.c", env!("CARGO_MANIFEST_DIR"));
    let path = folder.path().join(name);
    let mut cc = Command::new("cc");
    let output = cc.args(["-O1", "-pthread", &source, "-o"]).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (folder, path)
}

/// `program`, with nothing of ttalloc in its environment.
fn bare(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name == "LD_PRELOAD" || name.to_string_lossy().starts_with("TTALLOC") {
            command.env_remove(name);
        }
    }
    command
}

/// The same with the preload library, as a launcher with `--follow=FOLLOW` starts it.
fn preloaded(program: impl AsRef<OsStr>, follow: &str) -> Command {
    let mut command = bare(program);
    command.env("LD_PRELOAD", &programs().shim).env("TTALLOC_RING", RING);
    if follow == "always" {
        command.env("TTALLOC_FOLLOW", follow);
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What `env -0` printed, sorted.
#[track_caller]
fn entries(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{output:?}");
    let mut entries: Vec<_> =
        output.stdout.split(|&byte| byte == 0).filter(|one| !one.is_empty()).map(text).collect();
    entries.sort();
    entries
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

const FUNCTIONS: [&str; 11] = [
    "execve",
    "execv",
    "execvp",
    "execvpe",
    "fexecve",
    "execveat",
    "execl",
    "execlp",
    "execle",
    "posix_spawn",
    "posix_spawnp",
];
/// What each of them gives `env` besides an environment.
const ARGUMENTS: [&str; 6] = ["A=1", "B=2", "C=3", "D=4", "E=5", "F=6"];

fn shim() -> String {
    programs().shim.canonicalize().unwrap().to_str().unwrap().to_owned()
}

/// The environment that a program gets which `function` starts with one of these words.
#[track_caller]
fn given(program: &Path, function: &str, words: &[&str], follow: &str) -> Vec<String> {
    let mut command = preloaded(program, follow);
    let entries = entries(&command.arg(function).args(words).output().unwrap());
    let is_argument = |entry: &String| ARGUMENTS.contains(&entry.as_str());
    let (arguments, environment): (Vec<_>, Vec<_>) = entries.into_iter().partition(is_argument);
    assert_eq!(arguments, ARGUMENTS, "{function} {words:?} {follow}");
    environment
}

#[test]
fn a_cleaned_environment_gets_what_it_lacks_only_under_always() {
    let (_folder, program) = compiled("exec");
    let shim = shim();
    let ring = format!("TTALLOC_RING={RING}");
    let own = format!("LD_PRELOAD={shim}");
    let before_another = format!("LD_PRELOAD={shim}:libm.so.6:libdl.so.2");
    let ours = [own.as_str(), "TTALLOC_FOLLOW=always", &ring];
    let with = |further: &[&str]| {
        let mut all = strings(&[&ours, further].concat());
        all.sort();
        all
    };
    for function in FUNCTIONS {
        for child in [None, Some("fork"), Some("vfork")] {
            let given = |words: &[&str], follow| {
                let words: Vec<&str> = words.iter().copied().chain(child).collect();
                given(&program, function, &words, follow)
            };
            let given_always = |words: &[&str]| given(words, "always");
            if function == "fexecve" {
                // To glibc's function, unlike the others, no environment is an error.
                for follow in ["inherit", "always"] {
                    let mut command = preloaded(&program, follow);
                    let output = command.args([function, "null"]).output().unwrap();
                    assert_eq!(text(&output.stdout), "fexecve: EINVAL\n", "{follow}");
                }
            } else {
                let nothing: [&str; 0] = [];
                assert_eq!(given(&["null"], "inherit"), nothing, "{function} {child:?}");
                assert_eq!(given_always(&["null"]), with(&[]), "{function} {child:?}");
            }
            assert_eq!(given(&["X=1"], "inherit"), ["X=1"], "{function} {child:?}");
            assert_eq!(given_always(&["X=1", "Y="]), with(&["X=1", "Y="]), "{function} {child:?}");
            // What isn't whole is made so; other libraries stay, and ours is there once.
            let stale = ["TTALLOC_FOLLOW=x", "TTALLOC_ENGINE=inline", "LD_PRELOAD="];
            assert_eq!(given_always(&stale), with(&[]), "{function} {child:?}");
            let mut expected = with(&[]);
            expected[0] = before_another.clone();
            let others = ["LD_PRELOAD=nobody.so", "LD_PRELOAD=libm.so.6 libdl.so.2"];
            assert_eq!(given_always(&others), expected, "{function} {child:?}");
            let twice = "LD_PRELOAD=libm.so.6:/no/such/libttalloc_shim.so";
            assert_eq!(given_always(&[twice, &ring]), strings(&[twice, &ring]), "{function}");
            // Whose environment names a ring has a launcher of its own.
            let theirs = "TTALLOC_RING=/proc/2/fd/3@0";
            assert_eq!(given_always(&[theirs]), strings(&[&own, theirs]), "{function} {child:?}");
        }
    }
}

#[test]
fn large_environments_are_completed_too() {
    let (_folder, program) = compiled("exec");
    for function in FUNCTIONS {
        for (many, child) in [(600, "fork"), (600, "vfork"), (20_000, "fork"), (20_000, "vfork")] {
            let many = format!("many={many}");
            let found = given(&program, function, &[&many, child], "always");
            let others = found.iter().filter(|entry| !entry.starts_with('M')).count();
            assert_eq!(others, 3, "{function} {many} {child}");
            assert_eq!(found.len(), 3 + many[5..].parse::<usize>().unwrap());
        }
    }
}

/// A call that fails leaves the memory as it was, and `errno` to be the real function's.
#[test]
fn a_program_that_cannot_be_started_is_the_callers_to_hear_of() {
    let (_folder, program) = compiled("exec");
    for function in FUNCTIONS {
        let error = if function == "fexecve" { "EINVAL" } else { "ENOENT" };
        for words in
            [&["fail"][..], &["fail", "null"], &["fail", "many=600"], &["fail", "many=20000"]]
        {
            for child in [None, Some("fork"), Some("vfork")] {
                for follow in ["inherit", "always"] {
                    let mut command = preloaded(&program, follow);
                    let output = command.arg(function).args(words).args(child).output().unwrap();
                    let told = (output.status.code(), text(&output.stdout), text(&output.stderr));
                    let expected = (Some(3), format!("{function}: {error}\n"), String::new());
                    assert_eq!(told, expected, "{words:?} {child:?} {follow}");
                }
            }
        }
    }
}

/// The program of `standin/processes.cpp`.
fn standin() -> PathBuf {
    let compiler = Compiler::find().unwrap();
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    Standin::new(&compiler, cache, Era::C, &[]).program("processes")
}

/// A folder with the preload library and what stands in for the collector beside it: a script that
/// notes how it was started, and answers with the name of `ring`.
struct ByHand {
    folder: TempDir,
    ring: Consumer,
}

impl ByHand {
    fn new() -> ByHand {
        let folder = tempfile::tempdir().unwrap();
        let ring = Consumer::create(&RingOptions::default()).unwrap();
        fs::copy(&programs().shim, folder.path().join("libttalloc_shim.so")).unwrap();
        let by_hand = ByHand { folder, ring };
        let answer = format!("echo '{}' >&3", by_hand.ring.variable());
        by_hand.collector(&format!(
            "exec 4>LOG; echo \"$@\" >&4; tr '\\0' '\\n' </proc/$$/environ >&4; \
             (ls -l /proc/$$/fd >&4); cat /proc/$$/status /proc/$$/stat >&4; {answer}"
        ));
        by_hand
    }

    /// Puts a script in the collector's place. LOG stands for a file's path.
    fn collector(&self, script: &str) {
        let log = self.path("log");
        let script = format!("#!/bin/sh\n{}\n", script.replace("LOG", log.to_str().unwrap()));
        fs::write(self.path("ttalloc"), script).unwrap();
        fs::set_permissions(self.path("ttalloc"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = bare(program);
        command.env("LD_PRELOAD", self.path("libttalloc_shim.so")).current_dir(self.folder.path());
        command
    }

    /// Runs a command to its end, and returns its output and what came through the ring.
    fn run(&mut self, command: &mut Command) -> (Output, Vec<Vec<u8>>) {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = child.spawn().unwrap();
        let output = std::thread::spawn(|| child.wait_with_output().unwrap());
        let mut records = Vec::new();
        loop {
            let done = output.is_finished();
            let count = self.ring.drain(usize::MAX, |record| records.push(record.to_vec()));
            if done && count == 0 {
                return (output.join().unwrap(), records);
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

/// The processes that were announced, in order.
fn announced(records: &[Vec<u8>]) -> Vec<(u32, record::Process, Vec<String>)> {
    let announced = records.iter().filter_map(|bytes| match Record::decode(bytes).unwrap() {
        (head, Record::Process(body, argv)) => {
            let argv = argv.0.strip_suffix(b"\0").unwrap().split(|&byte| byte == 0).map(text);
            Some((head.process, body, argv.collect()))
        }
        _ => None,
    });
    announced.collect()
}

/// The pids in the lines that begin so.
fn pids(output: &Output, start: &str) -> BTreeSet<u32> {
    let lines = text(&output.stdout);
    let pids = lines.lines().filter_map(|line| line.strip_prefix(start)?.parse().ok());
    pids.collect()
}

/// Without a launcher a collector is started, once, and the program can't tell.
#[test]
fn a_collector_is_started_behind_the_programs_back() {
    let program = standin();
    let mut by_hand = ByHand::new();
    let mut command = by_hand.command(&program);
    command.arg("look").env("TTALLOC_REPORT", "r-%p.json").env("TTALLOC_ENGINE", "auto");
    let (output, records) = by_hand.run(command.env("OMPI_COMM_WORLD_RANK", "3"));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stderr), "");
    let pid = *pids(&output, "used ").first().unwrap();
    let announced = announced(&records);
    let [(0, process, argv)] = &*announced else { panic!("{announced:?}") };
    assert_eq!((process.pid, process.inner_pid), (pid, pid));
    assert_eq!(process.parent_pid, std::process::id());
    assert_eq!((process.forked, process.parent_process, process.rank), (0, 0, 3));
    assert_eq!(argv, &[program.to_str().unwrap(), "look"]);
    let allocations = records
        .iter()
        .filter(|record| matches!(Record::decode(record).unwrap().1, Record::Allocate(..)));
    assert_eq!(allocations.count(), 3);

    let log = fs::read_to_string(by_hand.path("log")).unwrap();
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines[0], format!("collect --pid {pid} --reply 3"));
    let ours = |line: &&&str| line.starts_with("TTALLOC") || line.starts_with("LD_PRELOAD");
    assert_eq!(lines.iter().filter(ours).collect::<Vec<_>>(), [&"TTALLOC_REPORT=r-%p.json"]);
    assert!(lines.contains(&"OMPI_COMM_WORLD_RANK=3"));
    let links: Vec<_> = lines.iter().filter_map(|line| line.split_once(" -> ")).collect();
    let link = |number: &str| {
        let mut its = links.iter().filter(|(left, _)| left.ends_with(&format!(" {number}")));
        its.next().map(|link| link.1)
    };
    assert_eq!((link("0"), link("1")), (Some("/dev/null"), Some("/dev/null")), "{log}");
    assert!(link("2").unwrap().starts_with("pipe:") && link("3").unwrap().starts_with("pipe:"));
    assert_ne!(link("2"), link("3"));
    for line in ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"] {
        assert!(lines.contains(&line), "{log}");
    }
    let stat: Vec<_> = lines.last().unwrap().rsplit_once(") ").unwrap().1.split(' ').collect();
    let own: Vec<_> = lines.last().unwrap().split(' ').collect();
    // Its parent is not the program, and it has a session of its own (proc_pid_stat(5)).
    assert_ne!(stat[1], pid.to_string());
    assert_eq!((stat[2], stat[3]), (own[0], own[0]));
}
