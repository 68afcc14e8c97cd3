//! What is left when something is killed at a random moment: the program, whose report must hold all that
//! it did; or the launcher, of which the program must not notice anything.
//!
//! `TTALLOC_KILLS` says how often each case kills, where its own number is not enough, and `TTALLOC_SEED`
//! repeats a sequence of moments. Every case prints its seed and what it found.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a case fails by panicking")]

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use ttalloc::report::{Exit, Report};
use ttalloc_symbols::Era;
use ttalloc_tests::busy::{Books, EXIT_CODE};
use ttalloc_tests::random::Random;
use ttalloc_tests::standin::{Compiler, Standin};
use ttalloc_tests::{programs, read_report};

/// How often the program is killed.
const PROGRAM_KILLS: u64 = 100;
/// How often the launcher is killed in each case.
const LAUNCHER_KILLS: u64 = 10;
/// How long anything may take, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a program comes to be tracked.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// By the launcher, with these options.
    Launcher(&'static [&'static str]),
    /// By the preload library alone, which starts a collector.
    ByHand,
}

/// With a ring as it usually is.
const USUAL: Way = Way::Launcher(&[]);
/// With rings that are full before a thread can turn round.
const TINY: Way = Way::Launcher(&["--ring", "1x16384"]);
const SMALL: Way = Way::Launcher(&["--ring", "4x16384"]);

type Case = fn(&str, &Path, &[Way]);

const CASES: &[(&str, Case, &[Way])] = &[
    ("program_killed", program_killed, &[USUAL, USUAL, TINY, SMALL]),
    ("program_killed_by_hand", program_killed, &[Way::ByHand]),
    ("launcher_killed", launcher_killed, &[USUAL, TINY]),
    ("launcher_killed_with_a_full_ring", launcher_killed_when_full, &[USUAL, TINY, SMALL]),
    ("collector_killed", launcher_killed, &[Way::ByHand]),
    ("collector_killed_with_a_full_ring", launcher_killed_when_full, &[Way::ByHand]),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let compiler = Compiler::find();
    if let Err(why) = &compiler {
        eprintln!("\nTHE TESTS WITH KILLS NEED A C++ COMPILER, AND ARE IGNORED: {why}\n");
        if std::env::var_os("CI").is_some() {
            return ExitCode::FAILURE;
        }
    }
    let trials = CASES.iter().map(|&(name, case, ways)| {
        let compiler = compiler.clone();
        let is_missing = compiler.is_err();
        let runner = move || {
            let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
            let standin = Standin::new(&compiler?, folder, Era::C, &[]);
            case(name, &standin.program("busy"), ways);
            Ok::<_, Failed>(())
        };
        Trial::test(name, runner).with_ignored_flag(is_missing)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// How often to kill.
fn kills(usual: u64) -> u64 {
    let wanted = std::env::var("TTALLOC_KILLS").ok();
    wanted.map_or(usual, |kills| kills.parse().expect("TTALLOC_KILLS is a number"))
}

fn kill(pid: u32, signal: i32) {
    // SAFETY: a plain system call.
    let result = unsafe { libc::kill(pid as i32, signal) };
    assert_eq!(result, 0, "{pid}: {}", std::io::Error::last_os_error());
}

/// The pid of the collector of a program, as long as it runs.
fn collector(program: u32) -> Option<u32> {
    let program = program.to_string();
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|&byte| byte == 0).collect();
        let [_, collect, option, of, ..] = &*words else { return false };
        (*collect, *option, *of) == (b"collect", b"--pid", program.as_bytes())
    })
}

/// A command that runs `words` in some way; the report goes to a file.
fn command(way: Way, words: &[&OsStr], report: Option<&Path>) -> Command {
    match way {
        Way::Launcher(options) => {
            let mut command = Command::new(&programs().run);
            command.arg("--quiet").args(options);
            match report {
                Some(path) => command.arg("--report").arg(path),
                None => command.arg("--no-report"),
            };
            command.args(words);
            command
        }
        Way::ByHand => {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).env("LD_PRELOAD", &programs().shim);
            command.env("TTALLOC_REPORT", report.unwrap_or(Path::new("/dev/null")));
            command
        }
    }
}

/// The report has all that the program did before the kill, and is marred by no more than the records that
/// were being written.
fn program_killed(name: &str, busy: &Path, ways: &[Way]) {
    let (seed, kills) = (Random::any_seed(), kills(PROGRAM_KILLS));
    println!("{name}: seed {seed}, {kills} kills");
    let mut random = Random::new(seed);
    let (mut operations, mut in_flight, mut torn, mut early) = (0, 0, 0, 0);
    for number in 0..kills {
        let folder = tempfile::tempdir().unwrap();
        let (file, path) = (folder.path().join("books"), folder.path().join("report.json"));
        let threads = 2 + random.below(7);
        let way = ways[random.below(ways.len() as u64) as usize];
        let numbers = [threads, random.below(1 << 30)].map(|number| number.to_string());
        let words = [busy.as_os_str(), file.as_os_str(), numbers[0].as_ref(), numbers[1].as_ref()];
        let mut command = command(way, &words, Some(&path));
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // A quarter of them while it starts.
        let moment = if random.below(4) == 0 {
            Books::wait(&file, |books| books.pid != 0);
            random.time_below(Duration::from_millis(8))
        } else {
            Books::wait(&file, |books| books.working == threads);
            random.time_below(Duration::from_millis(15))
        };
        thread::sleep(moment);
        kill(Books::read(&file).pid, libc::SIGKILL);
        let status = wait(&mut child);
        let books = Books::read(&file);
        let at = format!("seed {seed}, kill {number}, {way:?}, {threads} threads, {moment:?}");
        assert_eq!(exit_code(status), 128 + libc::SIGKILL, "{at}");
        operations += books.done();
        in_flight += books.in_flight();
        early += u64::from(books.done() == 0);
        let Some(report) = report(way, &books, &path) else { continue };
        let mut wrong = Vec::new();
        books.compare(&report, &mut |what| wrong.push(what));
        let found = &report.integrity;
        let others = found.dropped + found.bad_records + found.unknown_frees + found.unattributed;
        // Killed while it introduced itself, a program may not have told all of that.
        let may_lack = found.torn > 0 || books.done() == 0;
        if others > 0 || found.torn > threads || !(found.complete || may_lack) {
            wrong.push(format!("{found:?}"));
        }
        if report.exit != Exit::Signal("SIGKILL".to_owned()) || report.processes.len() != 1 {
            wrong.push(format!("{:?}, {:?}", report.exit, report.processes));
        }
        assert!(wrong.is_empty(), "{at}:\n{}", wrong.join("\n"));
        torn += found.torn;
    }
    println!(
        "{name}: {operations} operations, {in_flight} in flight when killed, {torn} records torn; {early} \
         programs had done nothing yet"
    );
    // Where nothing was under way, nothing was shown.
    assert!(in_flight > 0 && early < kills);
}

/// The report of a program that has ended. By hand there is none if it ended before there was a collector.
#[track_caller]
fn report(way: Way, books: &Books, path: &Path) -> Option<Report> {
    let begun = Instant::now();
    // The launcher has written it before it ends.
    while way == Way::ByHand && !path.exists() {
        let has_collector = collector(books.pid).is_some();
        if books.done() == 0 && !has_collector && !path.exists() {
            return None;
        }
        assert!(begun.elapsed() < PATIENCE, "no report: {books:?}, collector: {has_collector}");
        thread::sleep(Duration::from_millis(1));
    }
    Some(read_report(&std::fs::read(path).unwrap()))
}

/// The exit code as a shell tells it.
fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
}

/// How a child ends.
#[track_caller]
fn wait(child: &mut Child) -> ExitStatus {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        thread::sleep(Duration::from_micros(200));
    }
    child.kill().unwrap();
    panic!("it hangs: {child:?}");
}

/// A program of some threads and steps.
struct Work {
    busy: PathBuf,
    threads: u64,
    steps: u64,
    seed: u64,
}

/// A run of it.
struct Ended {
    /// What it printed, with its exit code as the last line.
    output: String,
    errors: String,
    /// How long its work took.
    time: Duration,
}

/// A run that goes on.
struct Running {
    way: Way,
    child: Child,
    /// The program's books.
    file: PathBuf,
}

impl Running {
    /// Sends a signal to the launcher or the collector, if it is there; whether it is.
    fn signal(&mut self, signal: i32) -> bool {
        let pid = match self.way {
            Way::Launcher(_) => Some(self.child.id()),
            Way::ByHand => collector(Books::read(&self.file).pid),
        };
        // SAFETY: a plain system call.
        pid.is_some_and(|pid| unsafe { libc::kill(pid as i32, signal) } == 0)
    }
}

impl Work {
    fn new(busy: &Path, threads: u64, steps: u64, seed: u64) -> Work {
        Work { busy: busy.to_owned(), threads, steps, seed }
    }

    /// The words of the command that runs it. Its exit code comes through a shell, since nobody can wait
    /// for it when the launcher is gone.
    fn words(&self, file: &Path) -> Vec<OsString> {
        let script = "\"$@\"; code=$?; echo \"exited with $code\"; exit $code";
        let mut words = ["sh", "-c", script, "sh"].map(OsString::from).to_vec();
        words.extend([self.busy.as_os_str(), file.as_os_str()].map(OsStr::to_owned));
        words.extend([self.threads, self.seed, self.steps].map(|one| one.to_string().into()));
        words
    }

    /// Runs it alone.
    fn alone(&self) -> Ended {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("books");
        let words = self.words(&file);
        let output = Command::new(&words[0]).args(&words[1..]).output().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        let expected = format!("exited with {EXIT_CODE}\n");
        assert!(output.ends_with(&expected) && output.lines().count() > 1, "{output}");
        let time = Duration::from_nanos(Books::read(&file).elapsed_ns);
        Ended { output, errors: String::new(), time }
    }

    /// Runs it while `end` ends the launcher or the collector. Returns also what `end` does.
    fn orphaned<T>(&self, way: Way, end: impl FnOnce(&mut Running) -> T) -> (Ended, T) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("books");
        let words = self.words(&file);
        let words: Vec<_> = words.iter().map(OsString::as_os_str).collect();
        let mut command = command(way, &words, None);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut streams = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (say, said) = mpsc::channel();
        // They end when the last process that has them does.
        let reader = thread::spawn(move || {
            let (mut output, mut errors) = (String::new(), String::new());
            streams.0.read_to_string(&mut output).unwrap();
            streams.1.read_to_string(&mut errors).unwrap();
            say.send((output, errors)).unwrap();
        });
        let mut running = Running { way, child, file };
        let ended = end(&mut running);
        let code = exit_code(wait(&mut running.child));
        // The launcher may have been done before, and the program is none of the collector's.
        let is_killed = way != Way::ByHand && code == 128 + libc::SIGKILL;
        assert!(is_killed || code == EXIT_CODE, "{code}");
        let Ok((output, errors)) = said.recv_timeout(PATIENCE) else {
            let books = Books::read(&running.file);
            kill(books.pid, libc::SIGKILL);
            panic!("{way:?}, seed {}: the program hangs on its own: {books:?}", self.seed);
        };
        reader.join().unwrap();
        let time = Duration::from_nanos(Books::read(&running.file).elapsed_ns);
        (Ended { output, errors, time }, ended)
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The program prints the same, ends the same, and takes no longer than it should.
fn launcher_killed(name: &str, busy: &Path, ways: &[Way]) {
    let (seed, kills) = (Random::any_seed(), kills(LAUNCHER_KILLS));
    println!("{name}: seed {seed}, {kills} kills");
    let mut random = Random::new(seed);
    let mut ratios = Vec::new();
    let mut killed = 0;
    for _ in 0..kills {
        let work = Work::new(busy, 1 + random.below(8), 20_000, random.below(1 << 30));
        let way = ways[random.below(ways.len() as u64) as usize];
        let alone = work.alone();
        let (ended, was_killed) = work.orphaned(way, |running| {
            // A quarter of them while the program starts.
            let at_work = u64::from(random.below(4) > 0);
            Books::wait(&running.file, |books| books.pid != 0 && books.working >= at_work);
            thread::sleep(random.time_below(alone.time));
            running.signal(libc::SIGKILL) && Books::read(&running.file).elapsed_ns == 0
        });
        assert_eq!(ended.output, alone.output, "{way:?}, seed {seed}");
        // Without an answer from its collector the library says so, in one line.
        let is_told = ended.errors.contains(" is not tracked: ");
        let is_quiet = ended.errors.is_empty() || is_told && ended.errors.lines().count() == 1;
        assert!(is_quiet || !was_killed, "{way:?}, seed {seed}: {}", ended.errors);
        ratios.push(ended.time.as_secs_f64() / alone.time.as_secs_f64());
        killed += u64::from(was_killed);
    }
    let most = ratios.iter().copied().fold(0.0, f64::max);
    println!(
        "{name}: run time against alone, median {:.2}, most {most:.2}; {killed} were killed before the \
         program was done",
        median(ratios)
    );
    assert!(killed > 0, "nothing was killed in time");
}

/// A program that waits because the ring is full goes on when there is nobody left to empty it.
fn launcher_killed_when_full(name: &str, busy: &Path, ways: &[Way]) {
    let (seed, kills) = (Random::any_seed(), kills(LAUNCHER_KILLS));
    println!("{name}: seed {seed}, {kills} kills");
    let mut random = Random::new(seed);
    let mut waits = Vec::new();
    for _ in 0..kills {
        let threads = 1 + random.below(8);
        let work = Work::new(busy, threads, 240_000 / threads, random.below(1 << 30));
        let way = ways[random.below(ways.len() as u64) as usize];
        let alone = work.alone();
        let (ended, wait) = work.orphaned(way, |running| {
            Books::wait(&running.file, |books| books.done() > 0);
            running.signal(libc::SIGSTOP);
            let full = standstill(&running.file);
            thread::sleep(random.time_below(Duration::from_millis(20)));
            let begun = Instant::now();
            running.signal(libc::SIGKILL);
            Books::wait(&running.file, |books| books.done() > full);
            begun.elapsed().as_secs_f64()
        });
        assert_eq!((&*ended.output, &*ended.errors), (&*alone.output, ""), "{way:?}, seed {seed}");
        waits.push(wait);
    }
    let most = waits.iter().copied().fold(0.0, f64::max);
    println!(
        "{name}: went on after {:.1} ms in the median, {:.1} ms at most",
        1e3 * median(waits),
        1e3 * most
    );
}

/// Waits until the program does nothing any more, before it is done; how much it has done then.
#[track_caller]
fn standstill(file: &Path) -> u64 {
    let begun = Instant::now();
    let mut before = Books::read(file).done();
    loop {
        thread::sleep(Duration::from_millis(100));
        let books = Books::read(file);
        assert_eq!(books.elapsed_ns, 0, "the ring was never full");
        if books.done() == before && before > 0 {
            return before;
        }
        before = books.done();
        assert!(begun.elapsed() < PATIENCE, "{books:?}");
    }
}
