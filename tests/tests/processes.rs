//! Programs that start programs: what is followed, and that nothing changes for those who look.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on says so")]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use tempfile::TempDir;
use ttalloc_ring::record::{self, Record};
use ttalloc_ring::ring::{Consumer, Follow, RingOptions};
use ttalloc_symbols::Era;
use ttalloc_tests::standin::{Compiler, Standin};
use ttalloc_tests::{programs, read_report};

/// A ring's name that leads nowhere.
const RING: &str = "/proc/1/fd/999999@0123456789abcdef";

const CASES: &[(&str, fn())] = &[
    (
        "a_cleaned_environment_gets_what_it_lacks_only_under_always",
        a_cleaned_environment_gets_what_it_lacks_only_under_always,
    ),
    ("large_environments_are_completed_too", large_environments_are_completed_too),
    (
        "a_program_that_cannot_be_started_is_the_callers_to_hear_of",
        a_program_that_cannot_be_started_is_the_callers_to_hear_of,
    ),
    (
        "a_collector_is_started_behind_the_programs_back",
        a_collector_is_started_behind_the_programs_back,
    ),
    (
        "without_a_collector_the_program_runs_untracked_and_says_why_once",
        without_a_collector_the_program_runs_untracked_and_says_why_once,
    ),
    ("a_subreaper_gets_no_collector", a_subreaper_gets_no_collector),
    ("nobody_needs_to_hear_why", nobody_needs_to_hear_why),
    ("switched_off_nothing_is_started", switched_off_nothing_is_started),
    ("threads_that_begin_together_lose_nothing", threads_that_begin_together_lose_nothing),
    ("closed_standard_streams_stay_closed", closed_standard_streams_stay_closed),
    ("children_are_told_by_what_they_do", children_are_told_by_what_they_do),
    ("a_ring_is_looked_at_before_it_is_used", a_ring_is_looked_at_before_it_is_used),
    (
        "where_the_path_leads_nowhere_the_socket_hands_the_ring",
        where_the_path_leads_nowhere_the_socket_hands_the_ring,
    ),
    (
        "a_launcher_that_does_not_answer_is_not_waited_for",
        a_launcher_that_does_not_answer_is_not_waited_for,
    ),
    (
        "none_but_the_launchers_own_process_is_tracked",
        none_but_the_launchers_own_process_is_tracked,
    ),
    ("programs_that_programs_start_are_tracked", programs_that_programs_start_are_tracked),
    ("by_hand_there_is_a_report_too", by_hand_there_is_a_report_too),
    ("a_collector_that_dies_takes_nothing_with_it", a_collector_that_dies_takes_nothing_with_it),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let compiler = Compiler::find().err();
    if let Some(why) = &compiler {
        eprintln!("\nTHE TESTS OF PROCESSES NEED A C++ COMPILER, AND ARE IGNORED: {why}\n");
        if std::env::var_os("CI").is_some() {
            return ExitCode::FAILURE;
        }
    }
    let trial = |name: &str, case: fn()| {
        let runner = move || {
            case();
            Ok::<_, Failed>(())
        };
        Trial::test(name, runner)
    };
    let is_missing = compiler.is_some();
    let cases = CASES.iter().map(|&(name, case)| trial(name, case).with_ignored_flag(is_missing));
    // SAFETY: takes nothing.
    let is_root = unsafe { libc::geteuid() } == 0;
    let anothers = match is_root {
        true => "another_users_ring_is_out_of_reach",
        false => "another_users_ring_is_out_of_reach (needs root)",
    };
    let anothers = trial(anothers, another_users_ring_is_out_of_reach);
    let anothers = anothers.with_ignored_flag(is_missing || !is_root);
    libtest_mimic::run(&arguments, cases.chain([anothers]).collect()).exit_code()
}

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

/// Copies a file by another process: where this one had it open for writing, a fork on another thread
/// could keep it open, and it could not be run.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "cp {} {}", from.display(), to.display());
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

/// Runs a command to its end, and returns its output and what came through the ring.
fn run(ring: &mut Consumer, command: &mut Command) -> (Output, Vec<Vec<u8>>) {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = child.spawn().unwrap();
    let output = std::thread::spawn(|| child.wait_with_output().unwrap());
    let mut records = Vec::new();
    loop {
        let done = output.is_finished();
        let count = ring.drain(usize::MAX, |record| records.push(record.to_vec()));
        if done && count == 0 {
            return (output.join().unwrap(), records);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
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
        copy(&programs().shim, &folder.path().join("libttalloc_shim.so"));
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
        let draft = self.path("draft");
        fs::write(&draft, script).unwrap();
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
        copy(&draft, &self.path("ttalloc"));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = bare(program);
        command.env("LD_PRELOAD", self.path("libttalloc_shim.so")).current_dir(self.folder.path());
        command
    }

    fn run(&mut self, command: &mut Command) -> (Output, Vec<Vec<u8>>) {
        run(&mut self.ring, command)
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

fn allocations(records: &[Vec<u8>]) -> usize {
    let is = |record: &&Vec<u8>| matches!(Record::decode(record).unwrap().1, Record::Allocate(..));
    records.iter().filter(is).count()
}

/// The pids in the lines that begin so.
fn pids(output: &Output, start: &str) -> BTreeSet<u32> {
    let lines = text(&output.stdout);
    let pids = lines.lines().filter_map(|line| line.strip_prefix(start)?.parse().ok());
    pids.collect()
}

/// Without a launcher a collector is started, once, and the program can't tell.
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

/// What a program prints that isn't tracked, with the line of why in two pieces.
#[track_caller]
fn not_tracked(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    assert_eq!(pids(output, "used ").len(), 1, "{output:?}");
    let line = text(&output.stderr);
    assert!(line.ends_with('\n') && line.lines().count() == 1, "{line:?}");
    let (start, why) = line.trim_end().split_once(" is not tracked: ").expect(&line);
    let pid = *pids(output, "used ").first().unwrap();
    assert_eq!(start, format!("ttalloc: process {pid}"));
    why.to_owned()
}

fn without_a_collector_the_program_runs_untracked_and_says_why_once() {
    let program = standin();
    let mut by_hand = ByHand::new();
    let folder = by_hand.folder.path().canonicalize().unwrap().display().to_string();
    let mut why = |prepare: &dyn Fn(&ByHand)| {
        prepare(&by_hand);
        let mut command = by_hand.command(&program);
        let (output, records) = by_hand.run(command.arg("leaf"));
        assert!(records.is_empty(), "{records:?}");
        not_tracked(&output).replace(&folder, "F")
    };
    let start = "F/ttalloc, its collector, ";
    let advice = "run the program under ttalloc-run instead";
    let silent =
        |what| format!("{start}did not answer: {what}; look at what it printed above, or {advice}");
    assert_eq!(why(&|by_hand| by_hand.collector("exit 3")), silent("unexpected end of file"));
    assert_eq!(why(&|by_hand| by_hand.collector("exec sleep 20")), silent("timed out"));
    assert_eq!(
        why(&|by_hand| by_hand.collector("echo nonsense >&3")),
        "its collector answered what makes no sense; install the library and ttalloc from one build"
    );
    let broken = |by_hand: &ByHand| {
        fs::write(by_hand.path("draft"), b"\x7fELF").unwrap();
        copy(&by_hand.path("draft"), &by_hand.path("ttalloc"));
    };
    assert_eq!(
        why(&broken),
        format!("{start}can't be started: Exec format error (os error 8); {advice}")
    );
    let missing = format!(
        "its collector, the program ttalloc, was not found in F, F/.. or F/../bin; install it there, {advice}, or unset LD_PRELOAD"
    );
    let closed = fs::Permissions::from_mode(0o644);
    assert_eq!(
        why(&|by_hand| fs::set_permissions(by_hand.path("ttalloc"), closed.clone()).unwrap()),
        missing
    );
    assert_eq!(why(&|by_hand| fs::remove_file(by_hand.path("ttalloc")).unwrap()), missing);
}

/// Who adopts orphans would be the collector's parent, and might wait for it for ever.
fn a_subreaper_gets_no_collector() {
    let program = standin();
    let mut by_hand = ByHand::new();
    let mut command = by_hand.command(&program);
    let adopt = || {
        // SAFETY: plain numbers.
        match unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: a system call only.
    unsafe { command.pre_exec(adopt) };
    let (output, records) = by_hand.run(command.arg("leaf"));
    let why = not_tracked(&output);
    assert!(why.starts_with("it adopts orphans, "), "{why}");
    assert!(why.ends_with("; run the program under ttalloc-run instead"), "{why}");
    assert!(records.is_empty() && !by_hand.path("log").exists());
}

/// The line is not worth the program's life.
fn nobody_needs_to_hear_why() {
    let program = standin();
    let by_hand = ByHand::new();
    fs::remove_file(by_hand.path("ttalloc")).unwrap();
    let output = |line: &str| {
        let mut command = by_hand.command("/bin/sh");
        command.args(["-c", line]).arg(&program);
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        assert_eq!(pids(&output, "used ").len(), 1, "{line}: {output:?}");
        text(&output.stderr)
    };
    assert!(output("exec $0 leaf").contains("is not tracked"));
    assert_eq!(output("exec $0 leaf 2>&-"), "");
    // A pipe that nobody reads, and one that is full.
    assert_eq!(output("{ sleep 0.2; exec $0 leaf 2>&1 >&3 | :; } 3>&1"), "");
    assert_eq!(
        output("mkfifo fifo; exec 4<>fifo; head -c 65536 /dev/zero >&4; exec $0 leaf 2>&4"),
        ""
    );
}

fn switched_off_nothing_is_started() {
    let program = standin();
    for off in ["off", "0"] {
        let mut by_hand = ByHand::new();
        let mut command = by_hand.command(&program);
        let (output, records) = by_hand.run(command.arg("leaf").env("TTALLOC", off));
        assert!(output.status.success() && records.is_empty(), "{output:?}");
        assert_eq!(text(&output.stderr), "");
        assert!(!by_hand.path("log").exists());
        // Under a launcher too.
        let mut command = preloaded(&program, "always");
        command.arg("leaf").env("TTALLOC", off).env("TTALLOC_RING", by_hand.ring.variable());
        let (output, records) = by_hand.run(&mut command);
        assert!(output.status.success() && records.is_empty(), "{output:?}");
    }
}

/// Threads that come while the collector is being started wait for it, so that nothing is lost.
fn threads_that_begin_together_lose_nothing() {
    let program = standin();
    for answer in ["", "sleep 1; "] {
        let mut by_hand = ByHand::new();
        let variable = by_hand.ring.variable();
        by_hand.collector(&format!("echo start >>LOG; {answer}echo '{variable}' >&3"));
        let mut command = by_hand.command(&program);
        let (output, records) = by_hand.run(command.arg("together"));
        assert!(output.status.success(), "{output:?}");
        assert_eq!(text(&output.stderr), "");
        assert_eq!(allocations(&records), 800);
        assert_eq!(announced(&records).len(), 1);
        assert_eq!(by_hand.ring.dropped(), 0);
        assert_eq!(fs::read_to_string(by_hand.path("log")).unwrap(), "start\n");
    }
}

/// What others write to a standard stream that is closed must not come to the pipe or the ring.
fn closed_standard_streams_stay_closed() {
    let program = standin();
    let streams = ["<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"];
    for closed in streams {
        let mut by_hand = ByHand::new();
        let variable = by_hand.ring.variable();
        let look = "for fd in 0 1 2; do readlink /proc/$3/fd/$fd; done >LOG";
        by_hand.collector(&format!("{look}; echo '{variable}' >&3"));
        let line = format!("exec $0 leaf {closed}");
        let mut command = by_hand.command("/bin/sh");
        let (_, records) = by_hand.run(command.args(["-c", &line]).arg(&program));
        assert_eq!(announced(&records).len(), 1, "{closed}");
        assert_eq!(allocations(&records), 3, "{closed}");
        let log = fs::read_to_string(by_hand.path("log")).unwrap();
        let found: Vec<_> = log.lines().map(|link| link == "/").collect();
        let is_closed = ["<", ">", "2"].map(|stream| match stream {
            ">" => closed.starts_with('>') || closed.contains(" >"),
            stream => closed.contains(stream) && (stream != "<" || closed.starts_with('<')),
        });
        assert_eq!(found, is_closed, "{closed}: {log}");
    }
}

fn children_are_told_by_what_they_do() {
    let program = standin();
    let mut by_hand = ByHand::new();
    let mut command = by_hand.command(&program);
    let (output, records) = by_hand.run(command.arg("children"));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stderr), "");
    let announced = announced(&records);
    let found: BTreeSet<_> = announced.iter().map(|(_, process, _)| process.pid).collect();
    assert_eq!(found, pids(&output, "used "), "{output:?}");
    assert_eq!(pids(&output, "did not ").len(), 4);
    let [(0, first, _), rest @ ..] = &*announced else { panic!("{announced:?}") };
    assert_eq!((first.forked, first.parent_process), (0, 0));
    assert_eq!(rest.len(), 3);
    for (number, process, argv) in rest {
        assert_eq!((process.forked, process.parent_process), (1, 1), "{number}");
        assert!(process.start_ticks >= first.start_ticks && first.start_ticks > 0);
        assert_eq!(argv, &[program.to_str().unwrap(), "children"]);
    }
    assert_eq!([rest[0].1.parent_pid, rest[1].1.parent_pid], [first.pid; 2]);
    assert_ne!(rest[2].1.parent_pid, first.pid);
    // Nobody wrote anything who did nothing of its own; what is inherited and freed after an own
    // allocation would be told, and here comes before.
    assert!(records.iter().all(|bytes| {
        let number = Record::decode(bytes).unwrap().0.process;
        announced.iter().any(|(known, ..)| *known == number)
    }));
    assert_eq!(allocations(&records), 3 + 1 + 2 + 1);
}

/// A program that is told of a ring that is gone says nothing; of something else, one line.
fn a_ring_is_looked_at_before_it_is_used() {
    let program = standin();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, vec![0; 1 << 20]).unwrap();
    let output = |variable: &str| {
        let mut command = preloaded(&program, "inherit");
        command.arg("leaf").env("TTALLOC_RING", variable).output().unwrap()
    };
    for gone in ["/no/such/file@0123456789abcdef", RING] {
        let output = output(gone);
        assert!(output.status.success() && output.stderr.is_empty(), "{gone}: {output:?}");
    }
    for nonsense in ["nonsense", "/dev/null", "/dev/null@", "/dev/null@1", "a@0123456789abcdef"] {
        let why = not_tracked(&output(nonsense));
        assert!(why.contains("TTALLOC_RING does not name a launcher's ring; unset it"), "{why}");
    }
    let long = format!("/{}@0123456789abcdef", "x".repeat(5000));
    assert!(not_tracked(&output(&long)).contains("does not name a launcher's ring"));
    let ring = Consumer::create(&RingOptions::default()).unwrap();
    let variable = ring.variable();
    let (path, _) = variable.split_once('@').unwrap();
    for (path, what) in [
        ("/dev/null", "not sealed memory"),
        (folder.path().to_str().unwrap(), "Is a directory"),
        (file.to_str().unwrap(), "not sealed memory"),
        (path, "another ring"),
    ] {
        let variable = format!("{path}@0123456789abcdef");
        let output = output(&variable);
        if what.starts_with("Is") {
            // Not what a launcher has there: it is gone.
            assert_eq!(text(&output.stderr), "");
            continue;
        }
        let why = not_tracked(&output);
        assert!(
            why.starts_with(&format!("what is at {path} can't be used: {what}; run it")),
            "{why}"
        );
        assert!(why.ends_with(&format!("belongs to {}, or unset TTALLOC_RING", shim())), "{why}");
    }
    assert!(fs::read(&file).unwrap().iter().all(|&byte| byte == 0), "a file was written to");
}

/// Only root can try this: another user's program, which finds the launcher, but may not look at it.
fn another_users_ring_is_out_of_reach() {
    let ring = Consumer::create(&RingOptions::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    // Where anybody may read it.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copied = |path: &Path| {
        let to = folder.path().join(path.file_name().unwrap());
        copy(path, &to);
        to
    };
    let (program, shim) = (copied(&standin()), copied(&programs().shim));
    copied(&standin().with_file_name("libtt_metal.so"));
    let mut command = bare(&program);
    command.arg("leaf").env("LD_PRELOAD", &shim).env("TTALLOC_RING", ring.variable());
    let output = command.uid(65534).gid(65534).current_dir("/").output().unwrap();
    let why = not_tracked(&output);
    let variable = ring.variable();
    let (path, _) = variable.split_once('@').unwrap();
    let expected = format!("{path}, the launcher's ring, can't be opened: Permission denied");
    assert!(why.starts_with(&expected), "{why}");
    assert!(why.ends_with("; start it as the user who runs ttalloc-run"), "{why}");
}

/// A launcher's socket, by which a program gets the ring that can't get to its path.
struct Door(UnixListener);

impl Door {
    fn open(id: u64) -> Door {
        let name = SocketAddr::from_abstract_name(format!("ttalloc-{id:016x}")).unwrap();
        Door(UnixListener::bind_addr(&name).unwrap())
    }

    /// Hands `count` processes the ring, and tells each this pid.
    fn answer(&self, count: usize, ring: &File, pid: u32) {
        for _ in 0..count {
            let (peer, _) = self.0.accept().unwrap();
            send(&peer, &pid.to_le_bytes(), Some(ring));
        }
    }
}

/// Sends bytes, and perhaps a descriptor.
fn send(to: &UnixStream, bytes: &[u8], file: Option<&File>) {
    let mut control = [0_u64; 4];
    let mut part = libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: bytes.len() };
    // SAFETY: plain numbers and pointers, which may all be zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    if let Some(file) = file {
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: computes a number.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(4) } as usize;
        // SAFETY: the message is whole.
        let head = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        // SAFETY: the message has room for a head.
        let head = unsafe { &mut *head };
        (head.cmsg_level, head.cmsg_type) = (libc::SOL_SOCKET, libc::SCM_RIGHTS);
        // SAFETY: computes a number.
        head.cmsg_len = unsafe { libc::CMSG_LEN(4) } as usize;
        // SAFETY: the head is followed by its data.
        let data = unsafe { libc::CMSG_DATA(head) };
        // SAFETY: room for a descriptor.
        unsafe { data.cast::<i32>().write_unaligned(file.as_raw_fd()) };
    }
    // SAFETY: a message whose parts have the lengths that it says.
    let sent = unsafe { libc::sendmsg(to.as_raw_fd(), &raw const message, 0) };
    assert_eq!(sent, bytes.len() as isize, "{}", std::io::Error::last_os_error());
}

fn where_the_path_leads_nowhere_the_socket_hands_the_ring() {
    let program = standin();
    let mut ring = Consumer::create(&RingOptions::default()).unwrap();
    let door = Door::open(ring.id());
    let file = ring.file().try_clone().unwrap();
    let mut command = preloaded(&program, "inherit");
    command.arg("look").env("TTALLOC_RING", format!("/no/such@{:016x}", ring.id()));
    let answers = std::thread::spawn(move || door.answer(1, &file, 77));
    let (output, records) = run(&mut ring, &mut command);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    answers.join().unwrap();
    assert_eq!(allocations(&records), 3);
    let [(0, process, _)] = &*announced(&records) else { panic!("{output:?}") };
    let pid = *pids(&output, "used ").first().unwrap();
    assert_eq!((process.pid, process.inner_pid), (77, pid));

    // Each forked child asks for its own pid.
    drop(ring);
    let mut ring = Consumer::create(&RingOptions::default()).unwrap();
    let door = Door::open(ring.id());
    let file = ring.file().try_clone().unwrap();
    let mut command = preloaded(&program, "inherit");
    command.arg("children").env("TTALLOC_RING", format!("/no/such@{:016x}", ring.id()));
    let answers = std::thread::spawn(move || {
        for pid in [101, 102, 103, 104] {
            door.answer(1, &file, pid);
        }
    });
    let (output, records) = run(&mut ring, &mut command);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    answers.join().unwrap();
    let pids: BTreeSet<_> = announced(&records).iter().map(|(_, one, _)| one.pid).collect();
    assert_eq!(pids, [101, 102, 103, 104].into());
}

fn a_launcher_that_does_not_answer_is_not_waited_for() {
    let program = standin();
    let why = |answer: &dyn Fn(&UnixStream)| {
        // Each has a name of its own: a child that another test forks may hold a socket for a moment.
        let ring = Consumer::create(&RingOptions::default()).unwrap();
        let door = Door::open(ring.id());
        let mut command = preloaded(&program, "inherit");
        command.arg("leaf").env("TTALLOC_RING", format!("/no/such@{:016x}", ring.id()));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let start = Instant::now();
        let (peer, _) = door.0.accept().unwrap();
        answer(&peer);
        let output = child.wait_with_output().unwrap();
        assert!(start.elapsed() < Duration::from_secs(5));
        drop(peer);
        let socket = format!("the launcher at the socket @ttalloc-{:016x} ", ring.id());
        not_tracked(&output).replace(&socket, "")
    };
    assert_eq!(why(&|_| ()), "did not answer in time; look whether it is stopped");
    let no_ring = "gave no ring; start it as the user who runs ttalloc-run";
    assert_eq!(why(&|peer| peer.shutdown(std::net::Shutdown::Both).unwrap()), no_ring);
    assert_eq!(why(&|peer| send(peer, b"1234", None)), no_ring);
    let null = File::open("/dev/null").unwrap();
    let short = |peer: &UnixStream| {
        send(peer, b"12", Some(&null));
        peer.shutdown(std::net::Shutdown::Both).unwrap();
    };
    assert_eq!(why(&short), no_ring);
    let other = why(&|peer| send(peer, b"1234", Some(&null)));
    assert!(other.contains("can't be used: not sealed memory"), "{other}");
}

/// With `--follow=none`, the launcher's process is tracked, also when it has become another program.
fn none_but_the_launchers_own_process_is_tracked() {
    let program = standin();
    let options = RingOptions { follow: Follow::None, ..RingOptions::default() };
    for (word, expected) in [("children", 1), ("exec", 2), ("leaf", 1)] {
        let mut ring = Consumer::create(&options).unwrap();
        let mut command = preloaded(&program, "inherit");
        command.arg(word).env("TTALLOC_RING", ring.variable());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let pid = child.id();
        // It may be late.
        std::thread::sleep(Duration::from_millis(100));
        ring.set_only(pid);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let mut records = Vec::new();
        ring.drain(usize::MAX, |record| records.push(record.to_vec()));
        let found: Vec<_> = announced(&records).iter().map(|(_, one, _)| one.pid).collect();
        assert_eq!(found, vec![pid; expected], "{word}");
    }
    // And nobody else.
    let mut ring = Consumer::create(&options).unwrap();
    ring.set_only(1);
    let mut command = preloaded(&program, "inherit");
    command.arg("leaf").env("TTALLOC_RING", ring.variable());
    let (output, records) = run(&mut ring, &mut command);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(records.len(), 0);
}

/// Programs that are started in whatever way inherit the ring, but for a cleaned environment, which
/// takes `--follow=always`.
fn programs_that_programs_start_are_tracked() {
    let program = standin();
    let found = |words: &[&str], follow: &str| {
        let mut ring = Consumer::create(&RingOptions::default()).unwrap();
        let mut command = preloaded(&program, follow);
        command.args(words).env("TTALLOC_RING", ring.variable());
        let (output, records) = run(&mut ring, &mut command);
        assert!(output.status.success() && output.stderr.is_empty(), "{words:?}: {output:?}");
        let used = pids(&output, "used ");
        let announced = announced(&records);
        let pids: BTreeSet<_> = announced.iter().map(|(_, process, _)| process.pid).collect();
        assert!(pids.is_subset(&used), "{words:?}: {output:?}");
        assert_eq!((ring.dropped(), ring.torn()), (0, 0));
        (announced.len(), used.len())
    };
    for follow in ["inherit", "always"] {
        assert_eq!(found(&["exec"], follow), (2, 1), "one process, two programs");
        assert_eq!(found(&["threads"], follow), (21, 21));
        assert_eq!(found(&["children"], follow), (4, 4));
        // Until all have gone, nobody closes the pipe.
        assert_eq!(found(&["daemon"], follow), (2, 2));
    }
    for way in ["posix_spawn", "vfork", "clearenv", "env", "sh"] {
        assert_eq!(found(&["cleaned", way], "inherit"), (1, 2), "{way}");
        assert_eq!(found(&["cleaned", way], "always"), (2, 2), "{way}");
    }
}

/// Runs a program with the preload library, which finds the collector by itself, to the end of both.
#[track_caller]
fn collected(words: &[&str], prepare: impl FnOnce(&mut Command)) -> (Output, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = bare(standin());
    command.args(words).env("LD_PRELOAD", &programs().shim).current_dir(folder.path());
    prepare(command.stdin(Stdio::null()));
    // The collector has the program's standard error, which ends with it.
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    (output, folder)
}

fn by_hand_there_is_a_report_too() {
    let (output, folder) = collected(&["children"], |_| ());
    let pids = pids(&output, "used ");
    let first: u32 = text(&output.stdout).lines().next().unwrap()[5..].parse().unwrap();
    let path = folder.path().join(format!("ttalloc-report.{first}.json"));
    let report = read_report(&fs::read(&path).unwrap());
    let found: BTreeSet<_> = report.processes.iter().map(|process| process.pid).collect();
    assert_eq!(found, pids, "{output:?}");
    assert!(report.integrity.complete, "{:?}", report.integrity.problems);
    let told = text(&output.stderr);
    assert!(told.contains("children, exited normally\n") && told.contains(" chip "), "{told}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

    let (output, folder) = collected(&["leaf"], |command| {
        command.env("TTALLOC_REPORT", "of-%p.json");
    });
    let pid = pids_of(&output);
    assert!(folder.path().join(format!("of-{pid}.json")).exists(), "{output:?}");

    // Nothing tracked, nothing started.
    let folder = tempfile::tempdir().unwrap();
    let mut command = bare("ls");
    command.env("LD_PRELOAD", &programs().shim).current_dir(folder.path());
    let output = command.output().unwrap();
    assert_eq!((text(&output.stdout), text(&output.stderr)), (String::new(), String::new()));
}

/// The pid of the only process that used the device.
fn pids_of(output: &Output) -> u32 {
    *pids(output, "used ").first().unwrap()
}

/// The collector may be killed at any time, also when it has let the ring run full.
fn a_collector_that_dies_takes_nothing_with_it() {
    let program = standin();
    let kill = |signal: &str, pid: &str| {
        assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
    };
    for (wait, stopped) in [(0, 0), (5, 0), (200, 0), (100, 500)] {
        let by_hand = ByHand::new();
        let real = programs().ttalloc.display();
        by_hand.collector(&format!("echo $$ >LOG; exec {real} \"$@\""));
        let mut command = by_hand.command(&program);
        command.arg("busy").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let since = Instant::now();
        let collector = loop {
            match fs::read_to_string(by_hand.path("log")) {
                Ok(pid) if pid.ends_with('\n') => break pid.trim().to_owned(),
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
            assert!(since.elapsed() < Duration::from_secs(20));
        };
        std::thread::sleep(Duration::from_millis(wait));
        if stopped > 0 {
            kill("-STOP", &collector);
            std::thread::sleep(Duration::from_millis(stopped));
        }
        kill("-KILL", &collector);
        std::thread::sleep(Duration::from_millis(50));
        let since = Instant::now();
        drop(child.stdin.take());
        let output = child.wait_with_output().unwrap();
        assert!(since.elapsed() < Duration::from_secs(5), "{wait} {stopped}");
        assert!(output.status.success(), "{output:?}");
        assert!(text(&output.stdout).ends_with("\ndone\n"), "{output:?}");
        // If it was killed before it had answered, that is said; otherwise nothing is.
        let told = text(&output.stderr);
        assert!(told.is_empty() || told.contains("is not tracked: ") && wait < 200, "{told}");
    }
}
