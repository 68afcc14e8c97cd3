//! What is left when something is killed at a random moment: the program, whose report must hold all that
//! it did; or the launcher, of which the program must not notice anything.
//!
//! `TTALLOC_KILLS` says how often each case kills, where its own number is not enough, and `TTALLOC_SEED`
//! repeats a sequence of moments. Every case prints its seed and what it found.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a case fails by panicking")]

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use ttalloc::report::Exit;
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

type Case = fn(&Path);

const CASES: &[(&str, Case)] = &[
    ("program_killed", program_killed),
    ("launcher_killed", launcher_killed),
    ("launcher_killed_with_a_full_ring", launcher_killed_when_full),
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
    let trials = CASES.iter().map(|&(name, case)| {
        let compiler = compiler.clone();
        let is_missing = compiler.is_err();
        let runner = move || {
            let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
            let standin = Standin::new(&compiler?, folder, Era::C, &[]);
            case(&standin.program("busy"));
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

/// The report has all that the program did before the kill, and is marred by no more than the records that
/// were being written.
fn program_killed(busy: &Path) {
    let (seed, kills) = (Random::any_seed(), kills(PROGRAM_KILLS));
    println!("program_killed: seed {seed}, {kills} kills");
    let mut random = Random::new(seed);
    let (mut operations, mut in_flight, mut torn, mut early) = (0, 0, 0, 0);
    for number in 0..kills {
        let folder = tempfile::tempdir().unwrap();
        let (file, path) = (folder.path().join("books"), folder.path().join("report.json"));
        let threads = 2 + random.below(7);
        let mut command = Command::new(&programs().run);
        command.arg("--quiet").arg("--report").arg(&path).arg(busy).arg(&file);
        command.arg(threads.to_string()).arg(random.below(1 << 30).to_string());
        let mut launcher = command.stdin(Stdio::null()).spawn().unwrap();
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
        let status = wait(&mut launcher);
        let books = Books::read(&file);
        let at = format!("seed {seed}, kill {number}, {threads} threads, after {moment:?}");
        assert_eq!(status, Some(128 + libc::SIGKILL), "{at}");
        let report = read_report(&std::fs::read(&path).unwrap());
        let mut wrong = Vec::new();
        books.compare(&report, &mut |what| wrong.push(what));
        let found = &report.integrity;
        let others = found.dropped + found.bad_records + found.unknown_frees + found.unattributed;
        if others > 0 || found.torn > threads || found.complete != (found.torn == 0) {
            wrong.push(format!("{found:?}"));
        }
        if report.exit != Exit::Signal("SIGKILL".to_owned()) || report.processes.len() != 1 {
            wrong.push(format!("{:?}, {:?}", report.exit, report.processes));
        }
        assert!(wrong.is_empty(), "{at}:\n{}", wrong.join("\n"));
        operations += books.done();
        in_flight += books.in_flight();
        torn += found.torn;
        early += u64::from(books.done() == 0);
    }
    println!(
        "program_killed: {operations} operations, {in_flight} in flight when killed, {torn} records \
         torn; {early} programs had done nothing yet"
    );
    // Where nothing was under way, nothing was shown.
    assert!(in_flight > 0 && early < kills);
}

/// The exit code of a child, once it ends.
#[track_caller]
fn wait(child: &mut Child) -> Option<i32> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        thread::sleep(Duration::from_micros(200));
    }
    child.kill().unwrap();
    panic!("the launcher hangs");
}

/// A program of some threads and steps, and how it ends.
struct Work {
    busy: PathBuf,
    threads: u64,
    steps: u64,
}

/// A run of it.
struct Ended {
    /// What it printed, with its exit code as the last line.
    output: String,
    /// How long its work took.
    time: Duration,
}

impl Work {
    /// The words of the command that runs it. Its exit code comes through a shell, since nobody can wait
    /// for it when the launcher is gone.
    fn words(&self, file: &Path, seed: u64) -> Vec<String> {
        let script = "\"$@\"; code=$?; echo \"exited with $code\"; exit $code";
        let words = ["sh", "-c", script, "sh"].map(str::to_owned);
        let paths = [self.busy.as_path(), file].map(|path| path.to_str().unwrap().to_owned());
        let numbers = [self.threads, seed, self.steps].map(|number| number.to_string());
        words.into_iter().chain(paths).chain(numbers).collect()
    }

    /// Runs it alone.
    fn alone(&self, seed: u64) -> Ended {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("books");
        let words = self.words(&file, seed);
        let output = Command::new(&words[0]).args(&words[1..]).output().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        let expected = format!("exited with {EXIT_CODE}\n");
        assert!(output.ends_with(&expected) && output.lines().count() > 1, "{output}");
        Ended { output, time: Duration::from_nanos(Books::read(&file).elapsed_ns) }
    }

    /// Runs it under a launcher that `end` kills, which is given the launcher and the file. Returns also
    /// what `end` does.
    fn orphaned<T>(
        &self,
        seed: u64,
        options: &[&str],
        end: impl FnOnce(&mut Child, &Path) -> T,
    ) -> (Ended, T) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("books");
        let mut command = Command::new(&programs().run);
        command.args(["--quiet", "--no-report"]).args(options).args(self.words(&file, seed));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut launcher = command.spawn().unwrap();
        let mut streams = (launcher.stdout.take().unwrap(), launcher.stderr.take().unwrap());
        let (say, said) = mpsc::channel();
        // They end when the last process that has them does.
        let reader = thread::spawn(move || {
            let (mut output, mut errors) = (String::new(), String::new());
            streams.0.read_to_string(&mut output).unwrap();
            streams.1.read_to_string(&mut errors).unwrap();
            say.send((output, errors)).unwrap();
        });
        let ended = end(&mut launcher, &file);
        let status = launcher.wait().unwrap();
        // It may have been done before.
        assert!(status.signal() == Some(libc::SIGKILL) || status.code() == Some(EXIT_CODE));
        let Ok((output, errors)) = said.recv_timeout(PATIENCE) else {
            let books = Books::read(&file);
            kill(books.pid, libc::SIGKILL);
            panic!("seed {seed}: the program hangs without its launcher: {books:?}");
        };
        reader.join().unwrap();
        assert_eq!(errors, "", "seed {seed}");
        (Ended { output, time: Duration::from_nanos(Books::read(&file).elapsed_ns) }, ended)
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn launcher_killed(busy: &Path) {
    check_launcher_killed("launcher_killed", busy, &[]);
}

/// The program prints the same, ends the same, and takes no longer than it should.
fn check_launcher_killed(name: &str, busy: &Path, options: &[&str]) {
    let (seed, kills) = (Random::any_seed(), kills(LAUNCHER_KILLS));
    println!("{name}: seed {seed}, {kills} kills");
    let mut random = Random::new(seed);
    let mut ratios = Vec::new();
    let mut whole = 0;
    for _ in 0..kills {
        let work = Work { busy: busy.to_owned(), threads: 1 + random.below(8), steps: 20_000 };
        let seed = random.below(1 << 30);
        let alone = work.alone(seed);
        let (ended, was_done) = work.orphaned(seed, options, |launcher, file| {
            // A quarter of them while the program starts.
            let at_work = u64::from(random.below(4) > 0);
            Books::wait(file, |books| books.pid != 0 && books.working >= at_work);
            thread::sleep(random.time_below(alone.time));
            let is_done = Books::read(file).elapsed_ns > 0;
            launcher.kill().unwrap();
            is_done
        });
        assert_eq!(ended.output, alone.output, "seed {seed}");
        ratios.push(ended.time.as_secs_f64() / alone.time.as_secs_f64());
        whole += u64::from(was_done);
    }
    let most = ratios.iter().copied().fold(0.0, f64::max);
    println!(
        "{name}: run time against alone, median {:.2}, most {most:.2}; {whole} programs were done \
         before the kill",
        median(ratios)
    );
    assert!(whole < kills, "nothing was killed in time");
}

/// A program that waits because the ring is full goes on when there is nobody left to empty it.
fn launcher_killed_when_full(busy: &Path) {
    let (seed, kills) = (Random::any_seed(), kills(LAUNCHER_KILLS));
    println!("launcher_killed_with_a_full_ring: seed {seed}, {kills} kills");
    let mut random = Random::new(seed);
    let mut waits = Vec::new();
    for _ in 0..kills {
        let threads = 1 + random.below(8);
        let work = Work { busy: busy.to_owned(), threads, steps: 240_000 / threads };
        let seed = random.below(1 << 30);
        let alone = work.alone(seed);
        let (ended, wait) = work.orphaned(seed, &[], |launcher, file| {
            Books::wait(file, |books| books.working > 0);
            kill(launcher.id(), libc::SIGSTOP);
            let full = standstill(file);
            thread::sleep(random.time_below(Duration::from_millis(20)));
            let begun = Instant::now();
            launcher.kill().unwrap();
            Books::wait(file, |books| books.done() > full);
            begun.elapsed().as_secs_f64()
        });
        assert_eq!(ended.output, alone.output, "seed {seed}");
        waits.push(wait);
    }
    let most = waits.iter().copied().fold(0.0, f64::max);
    println!(
        "launcher_killed_with_a_full_ring: went on after {:.1} ms in the median, {:.1} ms at most",
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
