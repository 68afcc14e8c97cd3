//! How processes end, and when: the report has what they did until then, and says how it was. On the
//! stand-in runtime.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a case fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Output, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use tempfile::TempDir;
use ttalloc::report::{Exit, Process, Report};
use ttalloc_symbols::Era;
use ttalloc_tests::standin::{Compiler, Standin};
use ttalloc_tests::{Run, programs, read_report, run};

type Case = fn();

const CASES: &[(&str, Case)] = &[
    ("every_way", every_way),
    ("every_way_of_a_child", every_way_of_a_child),
    ("short_lives", short_lives),
    ("signals", signals),
    ("exec", exec),
    ("exec_of_another", exec_of_another),
    ("left_behind", left_behind),
    ("left_behind_and_told_to_end", left_behind_and_told_to_end),
    ("left_behind_without_a_file", left_behind_without_a_file),
    ("two_hundred_at_once", two_hundred_at_once),
    ("more_than_descriptors", more_than_descriptors),
    ("snapshots", snapshots),
    ("snapshots_when_asked", snapshots_when_asked),
    ("snapshots_that_fail", snapshots_that_fail),
    ("snapshots_that_cannot_be", snapshots_that_cannot_be),
    ("a_killed_launcher_leaves_nothing", a_killed_launcher_leaves_nothing),
    ("full_rings", full_rings),
    ("newcomers", newcomers),
    ("late_comers", late_comers),
    ("nobody_comes", nobody_comes),
    ("no_descriptors_are_kept", no_descriptors_are_kept),
    ("every_way_by_hand", every_way_by_hand),
    ("children_by_hand", children_by_hand),
    ("named_by_hand", named_by_hand),
    ("exec_by_hand", exec_by_hand),
    ("left_behind_by_hand", left_behind_by_hand),
    ("collectors_that_end", collectors_that_end),
    ("switched_off", switched_off),
    ("followed", followed),
];

const REPORT: &str = "ttalloc-report.json";
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let compiler = Compiler::find();
    if let Err(why) = &compiler {
        eprintln!("\nTHE TESTS ON THE STAND-IN RUNTIME NEED A C++ COMPILER: {why}\n");
        if std::env::var_os("CI").is_some() {
            return ExitCode::FAILURE;
        }
    }
    let none = compiler.is_err();
    let mut trials: Vec<_> = CASES
        .iter()
        .map(|&(name, case)| {
            let runner = move || {
                case();
                Ok::<_, Failed>(())
            };
            Trial::test(name, runner).with_ignored_flag(none)
        })
        .collect();
    let group = Group::make();
    if let Err(why) = &group {
        eprintln!("\nNO PROCESS CAN BE KILLED FOR WANT OF MEMORY HERE: {why}\n");
    }
    let ignored = none || group.is_err();
    let name = match &group {
        Ok(_) => "out_of_memory".to_owned(),
        Err(why) => format!("out_of_memory (no cgroup of its own: {why})"),
    };
    let runner = move || {
        out_of_memory(&group?);
        Ok(())
    };
    trials.push(Trial::test(name, runner).with_ignored_flag(ignored));
    let unshared = can_unshare();
    let name = match &unshared {
        Ok(()) => "pid_namespace".to_owned(),
        Err(why) => format!("pid_namespace (none can be made: {why})"),
    };
    let runner = || {
        pid_namespace();
        Ok::<_, Failed>(())
    };
    trials.push(Trial::test(name, runner).with_ignored_flag(none || unshared.is_err()));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The program.
fn ends() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let compiler = Compiler::find().unwrap();
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
        Standin::new(&compiler, cache, Era::C, &[]).program("ends")
    })
}

fn run_ends(words: &[&str]) -> Run {
    run(ends(), |command| {
        command.args(words);
    })
}

/// The ways that need nobody else, and what they are.
fn ways() -> [(&'static str, Exit); 7] {
    let signal = |name: &str| Exit::Signal(name.to_owned());
    [
        ("return", Exit::Code(11)),
        ("exit", Exit::Code(12)),
        ("_exit", Exit::Code(13)),
        ("quick_exit", Exit::Code(14)),
        ("abort", signal("SIGABRT")),
        ("exception", signal("SIGABRT")),
        ("overflow", signal("SIGSEGV")),
    ]
}

/// Asserts that nothing is missing of the process at `place`, which made so many buffers. Where it
/// destroyed none, all are live.
#[track_caller]
fn assert_whole(report: &Report, place: usize, made: u64) {
    let integrity = &report.integrity;
    assert!(integrity.complete, "{:?}", integrity.problems);
    assert_eq!(integrity.dropped + integrity.torn + integrity.late + integrity.bad_records, 0);
    assert_eq!(allocations(report, report.processes[place].pid), made);
}

fn allocations(report: &Report, pid: u32) -> u64 {
    let devices = report.devices.iter().filter(|device| device.pid == pid);
    devices.flat_map(|device| &device.memory).map(|memory| memory.allocations).sum()
}

fn live(report: &Report) -> usize {
    report.live_buffers.len()
}

/// Whether this kernel tells how a process ended that is another's child.
fn kernel_tells() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(15))
}

/// Waits until `is` gives something.
#[track_caller]
fn until<T>(what: &str, mut is: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = is() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} does not come");
        sleep(Duration::from_millis(5));
    }
}

fn read(folder: &Path) -> Option<Report> {
    fs::read(folder.join(REPORT)).ok().map(|json| read_report(&json))
}

fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn kill(pid: u32, signal: i32) {
    // SAFETY: a plain system call, for a process that a test started.
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0, "{pid}");
}

/// A run that goes on.
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    folder: TempDir,
}

impl Running {
    fn start(options: &[&str], words: &[&str]) -> Running {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(&programs().run);
        command.args(options).arg(ends()).args(words).current_dir(folder.path());
        let stderr = fs::File::create(folder.path().join("stderr")).unwrap();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let stdin = child.stdin.take();
        Running { child, stdin, stdout, folder }
    }

    #[track_caller]
    fn expect(&mut self, line: &str) {
        let mut found = String::new();
        self.stdout.read_line(&mut found).unwrap();
        assert_eq!(found, format!("{line}\n"), "{}", self.stderr());
    }

    /// Has the program make one more buffer.
    #[track_caller]
    fn step(&mut self) {
        self.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        self.expect("made");
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.folder.path().join("stderr")).unwrap()
    }

    /// Ends the program's input, and waits for the launcher.
    #[track_caller]
    fn end(&mut self, code: i32) {
        drop(self.stdin.take());
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(code), "{status}: {}", self.stderr());
    }

    /// The files in its folder, but for its output.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "stderr").collect()
    }
}

// Every end.

fn every_way() {
    for (way, exit) in ways() {
        let run = run_ends(&["end", way]);
        let report = run.report();
        assert_eq!((&report.exit, report.snapshot), (&exit, false), "{way}");
        assert_eq!(report.processes.len(), 1);
        assert_eq!(report.processes[0].exit.as_ref(), Some(&exit), "{way}");
        assert_eq!(report.processes[0].out_of_memory, None);
        assert_whole(report, 0, 3);
        // Without destructors, as without static ones.
        let destroyed = matches!(way, "return" | "exit");
        assert_eq!(live(report), if destroyed { 0 } else { 3 }, "{way}");
    }
}

fn every_way_of_a_child() {
    for (way, exit) in ways() {
        let run = run_ends(&["child", way]);
        let report = run.report();
        assert_eq!(report.exit, Exit::Code(0), "{way}: {}", run.describe());
        assert_eq!(report.processes.len(), 2, "{way}");
        if kernel_tells() {
            assert_eq!(report.processes[1].exit, Some(exit), "{way}");
        } else {
            assert!([None, Some(exit)].contains(&report.processes[1].exit), "{way}");
        }
        assert_whole(report, 1, 2);
    }
}

/// One that is gone before anybody looks. What it did is known all the same.
fn short_lives() {
    let mut known = 0;
    for _ in 0..20 {
        let run = run_ends(&["short_child", "_exit"]);
        let report = run.report();
        assert_eq!(report.processes.len(), 2, "{}", run.describe());
        let exit = report.processes[1].exit.as_ref();
        assert!(exit.is_none_or(|exit| *exit == Exit::Code(13)), "{exit:?}");
        known += u32::from(exit.is_some());
        assert_whole(report, 1, 2);
        assert_eq!(live(report), 3 + 2);
    }
    println!("how it ended was known of {known} of 20");
}

fn signals() {
    for (signal, name) in
        [(libc::SIGTERM, "SIGTERM"), (libc::SIGINT, "SIGINT"), (libc::SIGKILL, "SIGKILL")]
    {
        let mut running = Running::start(&[], &["end", "pause"]);
        running.expect("ready");
        // To the program itself, whose parent the launcher is.
        let pid = until("the program", || child_of(running.child.id()));
        kill(pid, signal);
        running.end(128 + signal);
        let report = read(running.folder.path()).unwrap();
        assert_eq!(report.exit, Exit::Signal(name.to_owned()));
        assert_eq!(report.processes[0].exit, Some(report.exit.clone()));
        assert_eq!(report.processes[0].out_of_memory, None);
        assert_whole(&report, 0, 3);
        assert_eq!(live(&report), 3);
    }
}

/// A process's only child.
fn child_of(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

fn exec() {
    let run = run_ends(&["exec"]);
    let report = run.report();
    assert_eq!(report.exit, Exit::Code(11));
    let exits: Vec<_> = report.processes.iter().map(|process| process.exit.clone()).collect();
    assert_eq!(exits, [Some(Exit::Exec(Some(1))), Some(Exit::Code(11))]);
    let [before, after] = [&report.processes[0], &report.processes[1]];
    assert_eq!(before.pid, after.pid);
    assert_eq!(before.argv[1..], ["exec"]);
    assert_eq!(after.argv[1..], ["end", "return"]);
    assert!(report.integrity.complete, "{:?}", report.integrity.problems);
}

/// What takes the program's place knows nothing of tt-metal.
fn exec_of_another() {
    let mut running = Running::start(&["--snapshot-every", "0.05"], &["exec_other"]);
    let exited = |report: &Report| report.processes.first().and_then(|one| one.exit.clone());
    until("exec", || {
        read(running.folder.path()).filter(|report| exited(report) == Some(Exit::Exec(None)))
    });
    running.end(5);
    let report = read(running.folder.path()).unwrap();
    assert_eq!(report.exit, Exit::Code(5));
    assert_eq!(exited(&report), Some(Exit::Exec(None)));
    assert_whole(&report, 0, 3);
}

fn out_of_memory(group: &Group) {
    for what in ["end", "child"] {
        let script = format!("echo $$ > {} && exec \"$@\"", group.0.join("cgroup.procs").display());
        let run = run(Path::new("sh"), |command| {
            command.args(["-c", &script, "sh"]).arg(ends()).args([what, "memory"]);
        });
        let report = run.report();
        let place = usize::from(what == "child");
        let process = &report.processes[place];
        let killed = Exit::Signal("SIGKILL".to_owned());
        assert_eq!(report.exit == killed, what == "end", "{}", run.describe());
        if what == "end" || kernel_tells() {
            assert_eq!(process.exit, Some(killed), "{}", run.describe());
            let why = process.out_of_memory.as_deref().unwrap();
            assert!(why.contains("killed 1 process for want of memory in its cgroup"), "{why}");
            let line =
                format!("process {} was ended by SIGKILL, and the kernel killed 1", process.pid);
            assert!(run.stderr().contains(&line), "{}", run.describe());
        }
        assert_whole(report, place, if what == "child" { 2 } else { 3 });
    }
}

/// A cgroup in which there is little memory.
struct Group(PathBuf);

impl Group {
    fn make() -> Result<Group, String> {
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|why| why.to_string())?;
        let mut found = Err("no cgroup accounts for memory".to_owned());
        for line in own.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next().unwrap(), fields.next().unwrap());
            let (base, limit) = match controllers {
                "" => ("/sys/fs/cgroup", "memory.max"),
                "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
                _ => continue,
            };
            let parent = Path::new(base).join(path.trim_start_matches('/'));
            let group = Group(parent.join(format!("ttalloc-{}", std::process::id())));
            found = match group.fill(limit) {
                Ok(()) => return Ok(group),
                Err(why) => Err(format!("{}: {why}", group.0.display())),
            };
        }
        found
    }

    fn fill(&self, limit: &str) -> std::io::Result<()> {
        fs::create_dir(&self.0)?;
        fs::write(self.0.join(limit), (64 << 20).to_string())?;
        // So that memory isn't swapped out instead; where there is no swap there is nothing to limit.
        for swap in ["memory.swap.max", "memory.memsw.limit_in_bytes"] {
            let _ = fs::write(self.0.join(swap), (64 << 20).to_string());
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

// What outlives the program.

/// Starts a program that leaves a process behind; returns the run, the pid of that process, and the
/// file that it waits for.
fn leave(options: &[&str]) -> (Running, u32, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.keep().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut running = Running::start(options, &["leave", fifo.to_str().unwrap()]);
    running.end(3);
    let mut pid = String::new();
    // Ends only when nobody else has it: neither the process that was left nor the one that follows it.
    running.stdout.read_to_string(&mut pid).unwrap();
    (running, pid.trim().parse().unwrap(), fifo)
}

fn process(report: &Report, pid: u32) -> &Process {
    report.processes.iter().find(|process| process.pid == pid).unwrap()
}

/// The pid of the process that goes on, as standard error has it.
fn follower(running: &Running, pid: u32) -> u32 {
    let stderr = running.stderr();
    let lines: Vec<_> =
        stderr.lines().filter(|line| line.contains("goes on in the background")).collect();
    let [line] = lines[..] else { panic!("{stderr}") };
    let rest = line.strip_prefix(&format!("ttalloc: process {pid} still runs; process "));
    rest.unwrap_or_else(|| panic!("{line}")).split(' ').next().unwrap().parse().unwrap()
}

fn left_behind() {
    let (running, pid, fifo) = leave(&["--quiet"]);
    let folder = running.folder.path();
    let report = read(folder).unwrap();
    assert_eq!((&report.exit, report.snapshot), (&Exit::Code(3), true));
    assert_eq!(process(&report, pid).exit, Some(Exit::Running(true)));
    assert_eq!(allocations(&report, pid), 1);
    assert!(report.integrity.complete, "{:?}", report.integrity.problems);
    let follower = follower(&running, pid);
    assert!(is_there(follower));
    // A snapshot when it is asked for, and no other.
    fs::remove_file(folder.join(REPORT)).unwrap();
    kill(follower, libc::SIGUSR2);
    let report = until("a snapshot", || read(folder));
    assert!(report.snapshot);
    fs::write(&fifo, "go on").unwrap();
    let report = until("the last report", || read(folder).filter(|report| !report.snapshot));
    until("the follower's end", || (!is_there(follower)).then_some(()));
    assert_eq!(report.exit, Exit::Code(3));
    assert_eq!(allocations(&report, pid), 3);
    assert!(report.integrity.complete, "{:?}", report.integrity.problems);
    let expected = kernel_tells().then_some(Exit::Code(7));
    assert_eq!(process(&report, pid).exit, expected);
    assert_eq!(running.files(), [REPORT]);
    fs::remove_dir_all(fifo.parent().unwrap()).unwrap();
}

fn left_behind_and_told_to_end() {
    let (running, pid, fifo) = leave(&["--snapshot-every", "3600"]);
    let folder = running.folder.path();
    let follower = follower(&running, pid);
    kill(follower, libc::SIGTERM);
    let report = until("the last report", || read(folder).filter(|report| !report.snapshot));
    until("the follower's end", || (!is_there(follower)).then_some(()));
    assert_eq!(process(&report, pid).exit, Some(Exit::Running(true)));
    let problem = format!("process {pid} was still running when the report was written");
    assert!(report.integrity.problems[0].starts_with(&problem), "{:?}", report.integrity.problems);
    // The process goes on as if nothing had been.
    assert!(is_there(pid));
    fs::write(&fifo, "go on").unwrap();
    until("its end", || (!is_there(pid)).then_some(()));
    fs::remove_dir_all(fifo.parent().unwrap()).unwrap();
}

fn left_behind_without_a_file() {
    for options in [&["--no-report"][..], &["--report", "/dev/null"]] {
        let (running, pid, fifo) = leave(options);
        let stderr = running.stderr();
        assert!(!stderr.contains("background"), "{stderr}");
        assert!(
            stderr.contains(&format!("incomplete: process {pid} was still running")),
            "{stderr}"
        );
        fs::write(&fifo, "go on").unwrap();
        until("its end", || (!is_there(pid)).then_some(()));
        fs::remove_dir_all(fifo.parent().unwrap()).unwrap();
    }
}

/// A process that comes when the launcher is gone finds the one that goes on.
fn newcomers() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let script =
        "(read line < later; \"$0\" end _exit) > /dev/null 2>&1 & \"$0\" leave fifo; exit 9";
    assert!(Command::new("mkfifo").arg(folder.path().join("later")).status().unwrap().success());
    let mut command = Command::new(&programs().run);
    command.args(["--quiet", "sh", "-c", script]).arg(ends()).current_dir(folder.path());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(9), "{output:?}");
    let left: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    let first = read(folder.path()).unwrap();
    assert_eq!((first.snapshot, first.processes.len()), (true, 3));
    fs::write(folder.path().join("later"), "go on\n").unwrap();
    // It is in the next snapshot, at the latest when it has ended.
    let stderr = String::from_utf8(output.stderr).unwrap();
    let follower = stderr.split("; process ").nth(1).unwrap().split(' ').next().unwrap();
    let report = until("the newcomer", || {
        kill(follower.parse().unwrap(), libc::SIGUSR2);
        sleep(Duration::from_millis(50));
        read(folder.path()).filter(|report| report.processes.len() == 4)
    });
    assert!(is_there(left) && report.snapshot);
    fs::write(&fifo, "go on").unwrap();
    let report = until("the last report", || read(folder.path()).filter(|report| !report.snapshot));
    assert_eq!(allocations(&report, report.processes[3].pid), 3);
    assert_eq!(report.processes[0].parent_pid, first.processes[0].parent_pid);
    assert!(report.integrity.complete, "{:?}", report.integrity.problems);
}

const NAMESPACE: [&str; 4] = ["unshare", "--pid", "--fork", "--mount-proc"];

/// Whether a pid namespace can be made here.
fn can_unshare() -> Result<(), String> {
    let output = Command::new(NAMESPACE[0]).args(&NAMESPACE[1..]).arg("true").output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(why) => Err(format!("unshare: {why}")),
    }
}

/// Where the program has other pids than the launcher knows, and does not see the launcher's.
fn pid_namespace() {
    let run = run(Path::new(NAMESPACE[0]), |command| {
        command.args(&NAMESPACE[1..]).arg(ends()).args(["child", "_exit"]);
    });
    let report = run.report();
    assert_eq!(report.exit, Exit::Code(0), "{}", run.describe());
    // The first is unshare's own.
    let [_, parent, child] = &report.processes[..] else { panic!("{}", run.describe()) };
    assert_eq!((parent.inner_pid, child.inner_pid, child.parent_pid), (1, 2, 1));
    assert!(parent.pid > 2 && child.pid > parent.pid);
    assert_eq!(child.parent_process, Some(1));
    assert_eq!(child.exit, kernel_tells().then_some(Exit::Code(13)));
    assert_whole(report, 1, 3);
    assert_whole(report, 2, 2);
}

/// What goes on has none of the launcher's descriptors, neither its terminal nor its folder.
fn no_descriptors_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let other = fs::File::create(folder.path().join("other")).unwrap();
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut command = Command::new(&programs().run);
    command.arg(ends()).arg("leave").arg(&fifo).current_dir(folder.path());
    let fd = std::os::fd::AsRawFd::as_raw_fd(&other);
    // SAFETY: dup2 is safe in a forked child, and the file is open.
    let give = move || match unsafe { libc::dup2(fd, 77) } {
        77 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    // SAFETY: as said.
    unsafe { command.pre_exec(give) };
    let output = command.output().unwrap();
    let pid: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let follower: u32 =
        stderr.split("; process ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    let proc = PathBuf::from(format!("/proc/{follower}"));
    assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), Path::new("/"));
    let mut open: Vec<_> = fs::read_dir(proc.join("fd"))
        .unwrap()
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap().display().to_string())
        .collect();
    open.sort();
    open.dedup_by_key(|path| path.split(':').next().unwrap().to_owned());
    let expected = ["/dev/null", "/memfd:ttalloc-ring (deleted)", "anon_inode:[pidfd]", "socket:"];
    let is_expected = |path: &String| expected.iter().any(|one| path.starts_with(one));
    assert!(open.iter().all(is_expected), "{open:?}");
    let stat = fs::read_to_string(proc.join("stat")).unwrap();
    let session: u32 =
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().parse().unwrap();
    assert_eq!(session, follower, "{stat}");
    fs::write(&fifo, "go on").unwrap();
    until("their end", || (!is_there(pid) && !is_there(follower)).then_some(()));
}

// Many.

fn two_hundred_at_once() {
    let run = run_ends(&["children", "200"]);
    let report = run.report();
    assert_eq!(report.exit, Exit::Code(0), "{}", run.describe());
    assert_eq!(report.processes.len(), 201);
    let mut codes: Vec<_> = report.processes[1..]
        .iter()
        .map(|process| match process.exit {
            Some(Exit::Code(code)) => code,
            None if !kernel_tells() => -1,
            ref other => panic!("{other:?}"),
        })
        .collect();
    if kernel_tells() {
        codes.sort_unstable();
        assert!(codes.into_iter().eq((0..100).flat_map(|code| [code, code])));
    }
    for place in 1..201 {
        assert_whole(report, place, 1);
    }
}

/// Those for whom there is no descriptor are followed all the same; how they ended may not be known.
fn more_than_descriptors() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 90; exec \"$@\"", "sh"]).arg(&programs().run).arg(ends());
    command.args(["children", "120"]).current_dir(folder.path());
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let report = read(folder.path()).unwrap();
    assert_eq!(report.processes.len(), 121);
    assert!(!report.snapshot && report.integrity.complete, "{:?}", report.integrity.problems);
    let is_right = |process: &Process| matches!(process.exit, None | Some(Exit::Code(0..100)));
    assert!(report.processes.iter().all(is_right));
    assert_eq!(report.integrity.torn + report.integrity.dropped, 0);
}

// Snapshots.

fn snapshots() {
    let mut running = Running::start(&["--quiet", "--snapshot-every", "0.05"], &["steps"]);
    running.expect("ready");
    for buffers in 4..8 {
        running.step();
        let folder = running.folder.path();
        let report = until("a snapshot", || read(folder).filter(|report| live(report) == buffers));
        assert!(report.snapshot);
        assert_eq!(report.exit, Exit::Running(true));
        assert_eq!(report.processes[0].exit, Some(Exit::Running(true)));
        assert_whole(&report, 0, buffers as u64);
    }
    running.end(0);
    let report = read(running.folder.path()).unwrap();
    assert!(!report.snapshot);
    assert_eq!((&report.exit, live(&report)), (&Exit::Code(0), 7));
    assert_eq!(running.files(), [REPORT]);
    let replaced =
        format!("ttalloc: report replaced {}\n", running.folder.path().join(REPORT).display());
    assert_eq!(running.stderr(), replaced);
}

fn snapshots_when_asked() {
    let mut running = Running::start(&["--quiet"], &["steps"]);
    running.expect("ready");
    assert_eq!(running.files(), [""; 0]);
    for buffers in 4..6 {
        running.step();
        kill(running.child.id(), libc::SIGUSR2);
        let folder = running.folder.path();
        let report = until("a snapshot", || read(folder).filter(|report| live(report) == buffers));
        assert!(report.snapshot);
    }
    running.end(0);
    assert!(!read(running.folder.path()).unwrap().snapshot);
}

/// The first problem is told, and the run goes on.
fn snapshots_that_fail() {
    let place = tempfile::tempdir().unwrap().keep();
    let path = place.join("report.json");
    let options = ["--quiet", "--snapshot-every", "0.02", "--report", path.to_str().unwrap()];
    let mut running = Running::start(&options, &["steps"]);
    running.expect("ready");
    until("a snapshot", || path.exists().then_some(()));
    // The next ones find no folder.
    until("its end", || fs::remove_dir_all(&place).ok());
    until("a complaint", || (!running.stderr().is_empty()).then_some(()));
    sleep(Duration::from_millis(100));
    running.step();
    let stderr = running.stderr();
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("ttalloc: no snapshot was written: No such file"), "{stderr}");
    running.end(125);
    assert!(running.stderr().contains("the report is lost: "), "{}", running.stderr());

    // One that is asked for where there can be none.
    let mut running = Running::start(&["--quiet", "--no-report"], &["steps"]);
    running.expect("ready");
    for _ in 0..2 {
        kill(running.child.id(), libc::SIGUSR2);
        until("a complaint", || (!running.stderr().is_empty()).then_some(()));
    }
    running.step();
    running.end(0);
    let stderr = running.stderr();
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("no file for the report"), "{stderr}");
}

fn snapshots_that_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |options: &[&str], named: &str| {
        let mut command = Command::new(&programs().run);
        let output = command.args(options).args(["touch", "x"]).current_dir(folder.path()).output();
        let output = output.unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{options:?}: {stderr}");
        assert!(stderr.contains("--snapshot-every") && stderr.contains(named), "{stderr}");
        assert!(!folder.path().join("x").exists());
    };
    for seconds in ["0", "-1", "0.001", "often", "", "inf", "NaN", "1e30"] {
        refused(&[&format!("--snapshot-every={seconds}")], "a number of seconds");
    }
    refused(&["--snapshot-every", "1", "--no-report"], "--no-report");
    for place in ["-", "/dev/null"] {
        refused(&["--snapshot-every", "1", "--report", place], "a file");
    }
}

/// Whenever it is killed, there is no report or a whole one, and nothing else.
fn a_killed_launcher_leaves_nothing() {
    for round in 0..40 {
        let mut running = Running::start(&["--quiet", "--snapshot-every", "0.01"], &["steps"]);
        running.expect("ready");
        sleep(Duration::from_micros(1370 * round));
        running.child.kill().unwrap();
        assert_eq!(running.child.wait().unwrap().signal(), Some(libc::SIGKILL));
        running.step();
        drop(running.stdin.take());
        let mut rest = String::new();
        running.stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "", "the program goes on as it would");
        // The one that was being written is finished.
        sleep(Duration::from_millis(20));
        let files = running.files();
        assert!(files.is_empty() || files == [REPORT], "{files:?}");
        let report = read(running.folder.path());
        assert!(report.is_none_or(|report| report.snapshot && live(&report) <= 3));
    }
}

// Without a launcher.

/// The program with the preload library alone, in `folder`.
fn by_hand(folder: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(ends());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TTALLOC") {
            command.env_remove(name);
        }
    }
    command.args(words).current_dir(folder).env("LD_PRELOAD", &programs().shim);
    command
}

/// The names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Runs it to the end of both, the program and its collector.
fn finish(command: &mut Command) -> (u32, Output) {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    (child.id(), child.wait_with_output().unwrap())
}

fn every_way_by_hand() {
    for (way, exit) in ways() {
        let folder = tempfile::tempdir().unwrap();
        let alone = Command::new(ends()).args(["end", way]).output().unwrap();
        let (pid, output) = finish(&mut by_hand(folder.path(), &["end", way]));
        assert_eq!((output.status, &output.stdout), (alone.status, &alone.stdout), "{way}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        let name = format!("ttalloc-report.{pid}.json");
        assert_eq!(names(folder.path()), [name.as_str()], "{stderr}");
        let report = read_report(&fs::read(folder.path().join(&name)).unwrap());
        let exit = if kernel_tells() { exit } else { report.exit.clone() };
        assert_eq!((&report.exit, report.snapshot), (&exit, false), "{way}");
        assert_eq!(report.processes[0].pid, pid);
        assert_eq!(report.command[1..], ["end", way]);
        assert_whole(&report, 0, 3);
        assert_eq!(live(&report), if matches!(way, "return" | "exit") { 0 } else { 3 });
        // Buffers are made after the start, and before the end.
        let times = report.live_buffers.iter().map(|buffer| buffer.allocated_ns);
        assert!(times.into_iter().all(|time| time <= report.duration_ns), "{stderr}");
        let summary = stderr.strip_prefix(&*String::from_utf8_lossy(&alone.stderr)).unwrap();
        assert!(summary.starts_with(&format!("ttalloc: {} end {way}, ", ends().display())));
        assert!(summary.contains("report written to ") && summary.contains(&name), "{summary}");
    }
}

/// A program that waits for all its children, and many of them.
fn children_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let (pid, output) = finish(&mut by_hand(folder.path(), &["children", "20"]));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let name = format!("ttalloc-report.{pid}.json");
    assert_eq!(names(folder.path()), [name.as_str()]);
    let report = read_report(&fs::read(folder.path().join(name)).unwrap());
    assert_eq!(report.processes.len(), 21);
    for place in 1..21 {
        assert_whole(&report, place, 1);
    }
}

fn named_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = by_hand(folder.path(), &["end", "return"]);
    let (pid, output) = finish(command.env("TTALLOC_REPORT", "named-%p.json"));
    assert_eq!(names(folder.path()), [format!("named-{pid}.json")], "{output:?}");
    // It is said why there is none; the program runs.
    for place in ["no/such/folder/r.json", "%x"] {
        let mut command = by_hand(folder.path(), &["end", "return"]);
        let (_, output) = finish(command.env("TTALLOC_REPORT", place));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(11), "{stderr}");
        let lines: Vec<_> = stderr.lines().collect();
        let [first, second] = lines[..] else { panic!("{stderr}") };
        assert!(first.starts_with("ttalloc: the report can't be written to "), "{stderr}");
        assert!(first.ends_with("; name another place in TTALLOC_REPORT"), "{stderr}");
        assert!(second.contains(" is not tracked: "), "{stderr}");
    }
}

/// Each program of a process has its own.
fn exec_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let (pid, output) = finish(&mut by_hand(folder.path(), &["exec"]));
    assert_eq!(output.status.code(), Some(11), "{output:?}");
    let [first, second] = ["", "-2"].map(|number| format!("ttalloc-report.{pid}{number}.json"));
    assert_eq!(names(folder.path()), [second.clone(), first.clone()]);
    let reports =
        [first, second].map(|name| read_report(&fs::read(folder.path().join(name)).unwrap()));
    let mut last: Vec<_> =
        reports.iter().map(|report| report.processes[0].argv[1].clone()).collect();
    last.sort();
    assert_eq!(last, ["end", "exec"]);
    for report in &reports {
        assert_whole(report, 0, 3);
    }
}

/// The collector of a program that waits, which has said that it is ready.
fn collector(program: u32) -> u32 {
    let is_collector = |pid: &u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let pid = format!("collect\0--pid\0{program}\0");
        words.windows(pid.len()).any(|found| found == pid.as_bytes())
    };
    let entries = fs::read_dir("/proc").unwrap();
    let pids = entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.into_iter().find(is_collector).unwrap()
}

fn collectors_that_end() {
    for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGUSR2] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = by_hand(folder.path(), &["steps"]);
        let stderr = fs::File::create(folder.path().join("stderr")).unwrap();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let stdin = child.stdin.take();
        let name = format!("ttalloc-report.{}.json", child.id());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        let collector = collector(child.id());
        kill(collector, signal);
        let path = folder.path().join(&name);
        let read = || fs::read(&path).ok().map(|json| read_report(&json));
        if signal != libc::SIGUSR2 {
            until("its end", || (!is_there(collector)).then_some(()));
        }
        match signal {
            libc::SIGKILL => assert_eq!(names(folder.path()), ["stderr"]),
            libc::SIGUSR2 => {
                let report = until("a snapshot", read);
                assert!(report.snapshot && live(&report) <= 3);
            }
            _ => {
                let report = read().unwrap();
                assert_eq!((&report.exit, live(&report)), (&Exit::Running(true), 3));
                assert!(!report.snapshot && !report.integrity.complete);
            }
        }
        let mut running = Running { child, stdin, stdout, folder };
        running.step();
        running.step();
        running.end(0);
        if signal == libc::SIGUSR2 {
            until("its end", || (!is_there(collector)).then_some(()));
            let report = read_report(&fs::read(running.folder.path().join(name)).unwrap());
            assert!(!report.snapshot && live(&report) == 5);
        }
    }
}

/// What was left behind and uses tt-metal only when nobody does any more: as a daemon that is made first.
fn late_comers() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Command::new("mkfifo").arg(folder.path().join("later")).status().unwrap().success());
    let script = "(read line < later; \"$0\" end _exit) > /dev/null 2>&1 & exit 9";
    let mut command = Command::new(&programs().run);
    command.args(["--quiet", "sh", "-c", script]).arg(ends()).current_dir(folder.path());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(9), "{output:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("and replaces the report if it uses tt-metal\n"), "{stderr}");
    let first = read(folder.path()).unwrap();
    assert_eq!((first.snapshot, first.devices.len()), (false, 0));
    // Another run's report stays.
    let mut other = Command::new(&programs().run);
    other.args(["--quiet", "true"]).current_dir(folder.path());
    assert!(other.status().unwrap().success());
    fs::write(folder.path().join("later"), "go on\n").unwrap();
    let own = folder.path().join(format!("ttalloc-report.{}.json", first.processes[0].pid));
    let report = until("the late report", || Some(read_report(&fs::read(&own).ok()?)));
    assert_eq!(allocations(&report, report.processes[1].pid), 3);
    assert!(!report.snapshot && report.integrity.complete, "{:?}", report.integrity.problems);
    assert_eq!(read(folder.path()).unwrap().command, ["true"]);
}

/// What was left behind and never uses tt-metal changes nothing, and its follower goes with it.
fn nobody_comes() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(&programs().run);
    command.args(["sh", "-c", "sleep 60 > /dev/null 2>&1 & echo $!"]).current_dir(folder.path());
    let output = command.output().unwrap();
    let left: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let line = format!("ttalloc: process {left} still runs; process ");
    let (_, rest) = stderr.split_once(&line).unwrap_or_else(|| panic!("{stderr}"));
    let follower: u32 = rest.split(' ').next().unwrap().parse().unwrap();
    assert!(is_there(follower));
    fs::remove_file(folder.path().join(REPORT)).unwrap();
    kill(left, libc::SIGKILL);
    until("the follower's end", || (!is_there(follower)).then_some(()));
    assert!(!folder.path().join(REPORT).exists());
}

fn left_behind_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // Standard error ends though the other goes on.
    let (pid, output) = finish(&mut by_hand(folder.path(), &["leave", fifo.to_str().unwrap()]));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    let left: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    assert!(stderr.contains(&format!("process {left} still runs; process ")), "{stderr}");
    let path = folder.path().join(format!("ttalloc-report.{pid}.json"));
    let read = || read_report(&fs::read(&path).unwrap());
    assert!(read().snapshot);
    fs::write(&fifo, "go on").unwrap();
    let report = until("the last report", || Some(read()).filter(|report| !report.snapshot));
    assert_eq!(allocations(&report, left), 3);
    assert!(report.integrity.complete, "{:?}", report.integrity.problems);
}

fn switched_off() {
    let folder = tempfile::tempdir().unwrap();
    let (_, output) = finish(by_hand(folder.path(), &["end", "return"]).env("TTALLOC", "off"));
    assert_eq!((output.status.code(), output.stderr), (Some(11), Vec::new()));
    assert_eq!(names(folder.path()), [""; 0]);
}

// What is followed.

fn followed() {
    let child = |options: &[&str], program: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(&programs().run);
        command.args(options).args(program).arg(ends()).args(["child", "_exit"]);
        let output = command.current_dir(folder.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let report = read(folder.path()).unwrap();
        assert!(report.integrity.complete, "{:?}", report.integrity.problems);
        let tracked = report.processes.iter().filter(|process| process.runtime.is_some());
        tracked.count()
    };
    assert_eq!(child(&["--follow", "none"], &[]), 1);
    assert_eq!(child(&[], &[]), 2);
    assert_eq!(child(&["--follow", "always"], &[]), 2);
    // Another program is between, which calls exec with an empty environment.
    assert_eq!(child(&[], &["env", "-i"]), 0);
    assert_eq!(child(&["--follow", "always"], &["env", "-i"]), 2);
    // The process that was started stays the one, whatever it runs.
    assert_eq!(child(&["--follow=none"], &["sh", "-c", "exec \"$@\"", "sh"]), 1);
    // And a child of it is none.
    assert_eq!(child(&["--follow=none"], &["sh", "-c", "\"$@\"; exit $?", "sh"]), 0);
}

// Rings.

fn full_rings() {
    let compiler = Compiler::find().unwrap();
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let thrash = Standin::new(&compiler, cache, Era::C, &[]).program("thrash");
    for what in ["wait", "drop"] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(&programs().run);
        command.args(["--ring", "1x16384", "--on-full", what]).arg(&thrash);
        let output = command.current_dir(folder.path()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        let report = read(folder.path()).unwrap();
        let made = allocations(&report, report.processes[0].pid);
        if what == "wait" {
            assert_whole(&report, 0, 250_001);
        } else {
            assert!(report.integrity.dropped > 0 && made < 250_001, "{stderr}");
            assert!(!report.integrity.complete);
            assert!(stderr.contains("events were dropped"), "{stderr}");
        }
    }
}
