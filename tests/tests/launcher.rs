//! The launcher with programs that know nothing of tt-metal: they run as they do without it, and what
//! can't be done is told in one line before anything starts.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on says so")]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::thread;

use tempfile::TempDir;
use ttalloc::report::{Exit, Report};
use ttalloc_ring::{STAMP, STAMP_SYMBOL};
use ttalloc_tests::{programs, read_report};

/// A user without rights.
const NOBODY: u32 = 65534;
const REPORT: &str = "ttalloc-report.json";

// Helpers.

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder can be made")
}

/// `program`, in `folder`, with nothing of ttalloc in its environment.
fn bare(program: impl AsRef<OsStr>, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder);
    for name in ["LD_PRELOAD", "TTALLOC_SHIM", "TTALLOC_RING", "TTALLOC_REPORT"] {
        command.env_remove(name);
    }
    command
}

/// The launcher, in `folder`.
fn launcher(folder: &Path) -> Command {
    bare(&programs().run, folder)
}

/// Runs `command` to its end, with `input` at its standard input. Nothing may ever panic.
#[track_caller]
fn finish_with(command: &mut Command, input: &[u8]) -> Output {
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap_or_else(|why| panic!("{command:?}: {why}"));
    let mut stdin = child.stdin.take().unwrap();
    let output = thread::scope(|scope| {
        // A program need not read what it is given.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().unwrap()
    });
    assert!(!text(&output.stderr).contains("panicked"), "{}", text(&output.stderr));
    output
}

#[track_caller]
fn finish(command: &mut Command) -> Output {
    finish_with(command, b"")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The exit code by which the launcher, like a shell, says how a program ended.
fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
}

#[track_caller]
fn report(path: &Path) -> Report {
    read_report(&fs::read(path).unwrap_or_else(|why| panic!("{}: {why}", path.display())))
}

/// The names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let name = |entry: std::io::Result<fs::DirEntry>| text(entry.unwrap().file_name().as_bytes());
    let mut names: Vec<_> = entries.map(name).collect();
    names.sort();
    names
}

/// Runs `words` without and with a quiet launcher: the two can't be told apart. Returns the output.
#[track_caller]
fn same(words: &[&str], prepare: impl Fn(&mut Command)) -> Output {
    let folder = folder();
    let mut without = bare(words[0], folder.path());
    prepare(without.args(&words[1..]));
    let without = finish(&mut without);
    let mut with = launcher(folder.path());
    prepare(with.args(["--quiet", "--no-report"]).args(words));
    let with = finish(&mut with);
    assert_eq!(text(&with.stdout), text(&without.stdout), "{words:?}");
    assert_eq!(text(&with.stderr), text(&without.stderr), "{words:?}");
    assert_eq!(with.status.code(), Some(code(without.status)), "{words:?}");
    without
}

/// Runs a launcher that refuses its work with `expected` as its exit code. Returns the one line it prints.
#[track_caller]
fn refused(command: &mut Command, expected: i32) -> String {
    let output = finish(command);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(expected), "{}: {message}", output.status);
    assert_eq!(text(&output.stdout), "", "{message}");
    assert!(message.starts_with("ttalloc-run: "), "{message}");
    assert!(message.lines().count() == 1 && message.ends_with('\n'), "{message}");
    message
}

/// Runs a launcher, with `prepare`'s options, that refuses its work with 125 before it starts the program.
#[track_caller]
fn not_started(prepare: impl FnOnce(&mut Command)) -> String {
    let folder = folder();
    let mut command = launcher(folder.path());
    prepare(&mut command);
    let message = refused(command.args(["touch", "started"]), 125);
    assert_eq!(names(folder.path()), [""; 0], "{message}");
    message
}

/// A program that runs, with its standard streams.
struct Running {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    fn start(command: &mut Command) -> Running {
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = pipes.spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Running { child, stdin, stdout }
    }

    /// The next line that it prints.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    /// Gives it a line.
    fn tell(&mut self, line: &str) {
        self.stdin.write_all(line.as_bytes()).unwrap();
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a plain system call; the child is ours and not waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Ends its input and waits for it: how it ended, and what else it printed to either stream.
    fn end(mut self) -> (ExitStatus, String, String) {
        drop(self.stdin);
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        self.stdout.read_to_end(&mut stdout).unwrap();
        self.child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
        (self.child.wait().unwrap(), text(&stdout), text(&stderr))
    }
}

/// Makes `command` start with `signals` ignored.
fn ignore(command: &mut Command, signals: &'static [i32]) {
    let ignore = move || {
        for &signal in signals {
            // SAFETY: SIG_IGN, for a signal that exists.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        Ok(())
    };
    // SAFETY: only makes calls that are safe in a forked child of a threaded process.
    unsafe { command.pre_exec(ignore) };
}

/// Makes `command` start with SIGUSR1 and SIGWINCH blocked.
fn block(command: &mut Command) {
    let block = || {
        let mut mask = std::mem::MaybeUninit::zeroed();
        // SAFETY: memory of the right size.
        unsafe { libc::sigemptyset(mask.as_mut_ptr()) };
        for signal in [libc::SIGUSR1, libc::SIGWINCH] {
            // SAFETY: a mask, made above, and a signal that exists.
            unsafe { libc::sigaddset(mask.as_mut_ptr(), signal) };
        }
        // SAFETY: as above.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, mask.as_ptr(), std::ptr::null_mut()) };
        Ok(())
    };
    // SAFETY: as in `ignore`.
    unsafe { command.pre_exec(block) };
}

fn is_root() -> bool {
    // SAFETY: only returns a number.
    unsafe { libc::geteuid() == 0 }
}

/// Takes root's rights away, if there are any.
fn without_rights(command: &mut Command) {
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
}

/// Copies a file by another process: where this one had it open for writing, a fork on another thread
/// could keep it open, and it could not be run.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "cp {} {}", from.display(), to.display());
}

/// Writes a file that can be run.
fn write_program(path: &Path, bytes: &[u8]) {
    let draft = path.with_extension("draft");
    fs::write(&draft, bytes).unwrap();
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
    copy(&draft, path);
    fs::remove_file(draft).unwrap();
}

/// Compiles `programs/NAME.c`; None where the linker lacks something.
fn try_compile(name: &str, flags: &[&str]) -> Option<PathBuf> {
    let source = format!("{}/programs/{name}.c", env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join(name);
    let mut cc = Command::new("cc");
    cc.args(["-Wall", "-Wextra", "-Werror", "-o"]).arg(&path).arg(source).args(flags);
    let output = cc.output().expect("cc, a C compiler, is needed");
    if !output.status.success() {
        eprintln!("{cc:?}: {}", text(&output.stderr));
        return None;
    }
    // Moved there whole: tests that need the same one may come together.
    let kept = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("launcher");
    fs::create_dir_all(&kept).unwrap();
    let kept = kept.join(format!("{name}{}", flags.concat()));
    fs::rename(&path, &kept).unwrap();
    Some(kept)
}

fn compile(name: &str, flags: &[&str]) -> PathBuf {
    try_compile(name, flags).unwrap_or_else(|| panic!("{name}.c does not compile"))
}

/// An installation in a folder that everybody may read: `bin/ttalloc-run` and `lib/libttalloc_shim.so`.
fn installed() -> TempDir {
    let folder = folder();
    for (name, from) in [("bin", &programs().run), ("lib", &programs().shim)] {
        fs::create_dir(folder.path().join(name)).unwrap();
        copy(from, &folder.path().join(name));
    }
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

// Programs that have nothing to do with tt-metal.

#[test]
fn the_engine_comes_from_the_option_or_the_environment() {
    let folder = folder();
    let said = |engine: &[&str], variable: Option<&str>| {
        let mut command = launcher(folder.path());
        command.args(["--quiet", "--no-report"]).args(engine);
        command.args(["sh", "-c", "echo ${TTALLOC_ENGINE-none}"]).env_remove("TTALLOC_ENGINE");
        command.envs(variable.map(|value| ("TTALLOC_ENGINE", value)));
        finish(&mut command)
    };
    for (engine, variable, expected) in [
        // Unset, it is auto.
        (&[][..], None, "none\n"),
        (&[][..], Some("auto"), "none\n"),
        (&[][..], Some("preload"), "preload\n"),
        (&["--engine", "inline"][..], None, "inline\n"),
        (&["--engine", "auto"][..], Some("preload"), "none\n"),
    ] {
        assert_eq!(text(&said(engine, variable).stdout), expected, "{engine:?} {variable:?}");
    }
    for (engine, variable) in [(&["--engine", "frida"][..], None), (&[][..], Some("frida"))] {
        let output = said(engine, variable);
        assert_eq!((code(output.status), output.stdout.len()), (125, 0));
        let message = text(&output.stderr);
        assert!(
            message.contains("frida") && message.contains("auto, preload or inline"),
            "{message}"
        );
    }
}

#[test]
fn unrelated_programs_run_as_they_do_alone() {
    let cases: [(&[&str], Exit); 14] = [
        (&["ls"], Exit::Code(0)),
        (&["ls", "-la"], Exit::Code(0)),
        (&["ls", "/no/such"], Exit::Code(2)),
        (&["bash", "-c", "echo one; echo two >&2"], Exit::Code(0)),
        (&["python3", "-c", "import sys; print(sys.argv)", "a b", ""], Exit::Code(0)),
        (&["python3", "-c", "raise SystemExit('gone wrong')"], Exit::Code(1)),
        (&["sh", "-c", "echo out; echo err >&2; printf 'no newline'; exit 3"], Exit::Code(3)),
        (&["sh", "-c", "exit 125"], Exit::Code(125)),
        (&["sh", "-c", "exit 255"], Exit::Code(255)),
        (&["python3", "-c", "import ctypes; ctypes.string_at(0)"], Exit::Signal("SIGSEGV".into())),
        (&["sh", "-c", "echo dying; kill -SEGV $$"], Exit::Signal("SIGSEGV".into())),
        (&["sh", "-c", "kill -KILL $$"], Exit::Signal("SIGKILL".into())),
        (&["sh", "-c", "kill -TERM $$"], Exit::Signal("SIGTERM".into())),
        (&["sh", "-c", "kill -HUP $$"], Exit::Signal("SIGHUP".into())),
    ];
    for (words, exit) in cases {
        // The report lies elsewhere, so that `ls -la` sees the same folder each time.
        let (base, reports) = (folder(), folder());
        let work = base.path().join("work");
        fs::create_dir(&work).unwrap();
        fs::write(work.join("a file"), "text").unwrap();
        let path = reports.path().join("report.json");

        let mut without = bare(words[0], &work);
        let without = finish(without.args(&words[1..]));
        let run = |options: &[&str]| {
            finish(launcher(&work).args(options).arg("--report").arg(&path).args(words))
        };
        let quiet = run(&["--quiet"]);
        let told = run(&[]);

        for with in [&quiet, &told] {
            assert_eq!(with.stdout, without.stdout, "{words:?}");
            assert_eq!(with.status.code(), Some(code(without.status)), "{words:?}");
        }
        assert_eq!(text(&quiet.stderr), text(&without.stderr), "{words:?}");
        let stderr = text(&told.stderr);
        let summary = stderr.strip_prefix(&text(&without.stderr)).unwrap_or_else(|| {
            panic!("{words:?}: the program's own comes first, but this came: {stderr}")
        });
        assert!(summary.lines().all(|line| line.starts_with("ttalloc: ")), "{stderr}");
        assert!(summary.contains("no call into tt-metal was seen"), "{stderr}");
        assert!(summary.contains(&path.display().to_string()), "{stderr}");

        let report = report(&path);
        assert_eq!(report.command, words);
        assert_eq!(report.exit, exit, "{words:?}");
        assert!(report.integrity.complete && report.integrity.problems.is_empty());
        assert_eq!(report.integrity.events, 0);
        assert_eq!(report.processes.len(), 1);
        assert_eq!(report.processes[0].argv, words);
        assert_eq!(report.processes[0].exit, Some(exit));
        assert_eq!(report.processes[0].runtime, None);
        assert!(report.devices.is_empty() && report.live_buffers.is_empty());
    }
}

#[test]
fn exit_codes_and_signals_keep_their_numbers() {
    for code in [0, 1, 2, 64, 124, 125, 126, 127, 128, 200, 255] {
        same(&["sh", "-c", &format!("exit {code}")], |_| ());
    }
    // The real-time signals too.
    for signal in [1, 2, 3, 4, 6, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 31, 34, 40, 64] {
        same(&["bash", "-c", &format!("kill -{signal} $$")], |_| ());
    }
}

#[test]
fn arguments_after_the_program_are_the_programs() {
    let words =
        ["printf", "%s\\n", "--", "-q", "--quiet", "--report", "x", "--no-report", "--", "-"];
    same(&words, |_| ());
    same(&["printf", "%s|", "", "a b", "*", "$HOME", "\"", "line\nbreak", "ü"], |_| ());
    let folder = folder();
    let output =
        finish(launcher(folder.path()).args(["-q", "--", "printf", "%s ", "--help", "--"]));
    assert_eq!(text(&output.stdout), "--help -- ");
}

#[test]
fn arguments_need_not_be_text() {
    let folder = folder();
    let odd = OsStr::from_bytes(b"\xff\xfe odd \x80");
    write_program(&folder.path().join(odd), b"#!/bin/sh\nprintf %s \"$1\"\n");
    let program = Path::new(".").join(odd);
    let output = finish(launcher(folder.path()).arg(&program).arg(odd));
    assert_eq!(output.stdout, odd.as_bytes(), "{}", text(&output.stderr));
    let report = report(&folder.path().join(REPORT));
    assert_eq!(report.command, [text(program.as_os_str().as_bytes()), text(odd.as_bytes())]);
}

#[test]
fn bytes_pass_through_unchanged() {
    // Longer than any pipe holds, and every byte is there.
    let bytes: Vec<u8> =
        (0..5_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let folder = folder();
    let output = finish_with(launcher(folder.path()).args(["-q", "cat"]), &bytes);
    assert!(output.status.success());
    assert!(output.stdout == bytes);
    assert_eq!(output.stderr, b"");
    let to_stderr = ["-q", "--no-report", "sh", "-c", "cat >&2"];
    let output = finish_with(launcher(folder.path()).args(to_stderr), &bytes);
    assert!(output.stderr == bytes);
}

#[test]
fn input_that_is_not_read_is_left() {
    // The next program of the same shell reads on where the first one stopped.
    let folder = folder();
    let mut command = bare("sh", folder.path());
    let script = r#""$0" -q --no-report head -c 4 && cat"#;
    let input = folder.path().join("input");
    fs::write(&input, "onetwo").unwrap();
    command.args(["-c", script]).arg(&programs().run);
    let output = command.stdin(File::open(input).unwrap()).output().unwrap();
    assert_eq!(text(&output.stdout), "onetwo");
}

#[test]
fn a_reader_that_leaves_ends_the_program_by_sigpipe() {
    let folder = folder();
    let mut running = Running::start(launcher(folder.path()).arg("yes"));
    assert_eq!(running.line(), "y\n");
    let Running { mut child, stdout, .. } = running;
    drop(stdout);
    assert_eq!(child.wait().unwrap().code(), Some(128 + libc::SIGPIPE));
    let report = report(&folder.path().join(REPORT));
    assert_eq!(report.exit, Exit::Signal("SIGPIPE".to_owned()));
}

#[test]
fn summary_lines_are_marked_whatever_the_arguments_are() {
    let folder = folder();
    let output = finish(launcher(folder.path()).args(["sh", "-c", "true\ntrue", "\x1b[31m\r"]));
    let stderr = text(&output.stderr);
    assert!(stderr.lines().all(|line| line.starts_with("ttalloc: ")), "{stderr:?}");
    assert!(!stderr.trim_end().lines().any(|line| line.contains(char::is_control)), "{stderr:?}");
}

#[test]
fn programs_are_found_as_a_shell_finds_them() {
    let folder = folder();
    // Without a first line that names an interpreter it is the shell's.
    write_program(&folder.path().join("plain"), b"echo plain $0\n");
    let output = finish(launcher(folder.path()).args(["-q", "--no-report", "./plain"]));
    assert_eq!(text(&output.stdout), "plain ./plain\n", "{}", text(&output.stderr));
    // PATH's folders may be relative; what lies there and can't be run is passed over.
    fs::create_dir_all(folder.path().join("tools")).unwrap();
    fs::write(folder.path().join("tools/ls"), "").unwrap();
    write_program(&folder.path().join("tools/tool"), b"#!/bin/sh\necho tool\n");
    for (name, found) in [("tool", "tool\n"), ("ls", "plain\ntools\n")] {
        let mut command = launcher(folder.path());
        let output =
            finish(command.args(["-q", "--no-report", name]).env("PATH", "tools:/usr/bin:/bin"));
        assert_eq!(text(&output.stdout), found, "{}", text(&output.stderr));
    }
}

#[test]
fn an_empty_environment_will_do() {
    // execvp(3) looks in /bin and /usr/bin where there is no PATH.
    same(&["/usr/bin/env", "ls", "/"], |command| {
        command.env_clear();
    });
    let folder = folder();
    let output = finish(launcher(folder.path()).args(["-q", "ls"]).env_clear());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

// What the program inherits.

#[test]
fn two_variables_are_all_that_the_environment_gains() {
    let theirs = compile("user", &["-shared", "-fPIC"]);
    let folder = folder();
    let variables = |command: &mut Command, preload: Option<&OsStr>| {
        command.env("EMPTY", "").env("ODD", OsStr::from_bytes(b"\xff\n=x")).env("ZZ", "1");
        if let Some(preload) = preload {
            command.env("LD_PRELOAD", preload);
        }
        let output = finish(command);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let entries = output.stdout.split(|&byte| byte == 0).filter(|entry| !entry.is_empty());
        let pair = |entry: &[u8]| {
            let at = entry.iter().position(|&byte| byte == b'=').unwrap();
            (text(&entry[..at]), entry[at + 1..].to_vec())
        };
        entries.map(pair).collect::<BTreeMap<_, _>>()
    };
    let shim = programs().shim.canonicalize().unwrap();
    for preload in [None, Some(theirs.as_os_str())] {
        let mut without = variables(bare("env", folder.path()).arg("-0"), preload);
        let mut command = launcher(folder.path());
        let mut with = variables(command.args(["-q", "--no-report", "env", "-0"]), preload);
        let mut expected = shim.clone().into_os_string();
        if let Some(preload) = preload {
            expected.push(":");
            expected.push(preload);
        }
        assert_eq!(with.remove("LD_PRELOAD").as_deref(), Some(expected.as_bytes()));
        assert!(with.remove("TTALLOC_RING").is_some_and(|path| path.starts_with(b"/proc/")));
        without.remove("LD_PRELOAD");
        assert_eq!(with, without);
    }
}

#[test]
fn a_library_that_the_user_preloads_still_works() {
    let theirs = compile("user", &["-shared", "-fPIC"]);
    let output = same(&["id", "-u"], |command| {
        command.env("LD_PRELOAD", &theirs);
    });
    assert_eq!(text(&output.stdout), "4242\n");
    // Two of them, and the separator that is a space.
    let mut two = theirs.clone().into_os_string();
    two.push(" ");
    two.push(&theirs);
    let output = same(&["id", "-u"], |command| {
        command.env("LD_PRELOAD", &two);
    });
    assert_eq!(text(&output.stdout), "4242\n");
}

#[test]
fn no_descriptor_is_added_or_taken() {
    same(&["ls", "/proc/self/fd"], |_| ());
    // One that the caller gives on purpose.
    let output = same(&["ls", "/proc/self/fd"], |command| {
        // SAFETY: dup2 is safe in a forked child; 1 is open.
        let give = || match unsafe { libc::dup2(1, 77) } {
            77 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        };
        // SAFETY: as said.
        unsafe { command.pre_exec(give) };
    });
    assert!(text(&output.stdout).lines().any(|line| line == "77"));
}

#[test]
fn closed_standard_streams_stay_closed() {
    let seen =
        "for fd in 0 1 2; do test -e /proc/$$/fd/$fd && open=$open$fd; done; echo $open > seen";
    for (closed, open) in
        [("<&-", "12\n"), (">&-", "02\n"), ("2>&-", "01\n"), ("<&- >&- 2>&-", "\n")]
    {
        let folder = folder();
        let mut command = bare("sh", folder.path());
        command.args(["-c", &format!("exec \"$@\" {closed}"), "sh"]).arg(&programs().run);
        let output = finish(command.args(["-q", "sh", "-c", seen]));
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert_eq!(fs::read_to_string(folder.path().join("seen")).unwrap(), open, "with {closed}");
        assert_eq!(report(&folder.path().join(REPORT)).exit, Exit::Code(0));
    }
}

#[test]
fn the_process_is_as_the_caller_made_it() {
    const IGNORED: &[i32] =
        &[libc::SIGHUP, libc::SIGINT, libc::SIGPIPE, libc::SIGCHLD, libc::SIGTTOU, libc::SIGXFSZ];
    type Prepare = fn(&mut Command);
    let prepares: [(&str, Prepare); 4] = [
        ("plain", |_| ()),
        ("ignored signals", |command| ignore(command, IGNORED)),
        ("blocked signals", block),
        ("both", |command| {
            ignore(command, IGNORED);
            block(command);
        }),
    ];
    // Uids, umask, signals, capabilities; then process group, session, terminal, niceness.
    let status = "^(Uid|Gid|Groups|Umask|Sig(Blk|Ign|Cgt)|Cap.*|NoNewPrivs|Seccomp|Cpus_allowed):";
    for (name, prepare) in prepares {
        let output = same(&["grep", "-E", status, "/proc/self/status"], prepare);
        let seen = text(&output.stdout);
        let mask = |field: &str| {
            let line = seen.lines().find_map(|line| line.strip_prefix(field)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        let has = |mask: u64, signal: i32| mask >> (signal - 1) & 1 == 1;
        let ignored = matches!(name, "ignored signals" | "both");
        assert_eq!(has(mask("SigIgn:"), libc::SIGCHLD), ignored, "{name}");
        assert_eq!(has(mask("SigIgn:"), libc::SIGPIPE), ignored, "{name}");
        let blocked = matches!(name, "blocked signals" | "both");
        assert_eq!(has(mask("SigBlk:"), libc::SIGUSR1), blocked, "{name}");
        same(&["awk", "{print $5, $6, $7, $8, $19}", "/proc/self/stat"], prepare);
    }
    same(&["cat", "/proc/self/limits"], |_| ());
    same(&["readlink", "/proc/self/cwd", "/proc/self/exe", "/proc/self/root"], |_| ());
    same(&["cat", "/proc/self/cmdline"], |_| ());
}

#[test]
fn limits_umask_and_niceness_pass() {
    let set = "ulimit -c 0; ulimit -n 300; ulimit -s 4096; umask 027; exec nice -n 5 \"$@\"";
    let folder = folder();
    for probe in ["cat /proc/self/limits", "umask", "nice"] {
        let run = |words: &[&OsStr]| {
            let mut command = bare("sh", folder.path());
            text(&finish(command.args(["-c", set, "sh"]).args(words)).stdout)
        };
        let words = ["sh", "-c", probe].map(OsStr::new);
        let mut with =
            vec![programs().run.as_os_str(), OsStr::new("-q"), OsStr::new("--no-report")];
        with.extend(words);
        assert_eq!(run(&with), run(&words));
    }
}

#[test]
fn the_program_keeps_its_name() {
    let folder = folder();
    symlink("/bin/cat", folder.path().join("another name")).unwrap();
    let mut command = launcher(folder.path());
    let output = finish(command.args(["-q", "./another name", "/proc/self/cmdline"]));
    assert_eq!(text(&output.stdout), "./another name\0/proc/self/cmdline\0");
}

#[test]
fn no_file_of_ours_is_there_during_the_run() {
    let folder = folder();
    let output = finish(launcher(folder.path()).args(["ls", "-A"]));
    assert_eq!(text(&output.stdout), "");
    assert_eq!(names(folder.path()), [REPORT]);
}

// Signals.

#[test]
fn signals_reach_the_program() {
    let program = compile("signals", &[]);
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1] {
        let folder = folder();
        let mut running = Running::start(launcher(folder.path()).arg(&program));
        assert_eq!(running.line(), "ready\n");
        running.signal(signal);
        let (status, stdout, stderr) = running.end();
        assert_eq!(stdout, format!("caught {signal}\n"));
        assert_eq!(status.code(), Some(40 + signal), "{stderr}");
        assert!(stderr.contains(&format!("exited with code {}", 40 + signal)), "{stderr}");
        assert_eq!(report(&folder.path().join(REPORT)).exit, Exit::Code(40 + signal));
    }
}

#[test]
fn a_signal_that_ends_the_program_is_reported() {
    for (signal, name) in [(libc::SIGTERM, "SIGTERM"), (libc::SIGINT, "SIGINT")] {
        let folder = folder();
        let mut running = Running::start(launcher(folder.path()).arg("cat"));
        running.tell("ready\n");
        assert_eq!(running.line(), "ready\n");
        running.signal(signal);
        assert_eq!(running.child.wait().unwrap().code(), Some(128 + signal));
        assert_eq!(report(&folder.path().join(REPORT)).exit, Exit::Signal(name.to_owned()));
    }
}

#[test]
fn an_ignored_signal_stays_ignored() {
    let folder = folder();
    let mut command = launcher(folder.path());
    ignore(command.arg("cat"), &[libc::SIGHUP, libc::SIGCHLD]);
    let mut running = Running::start(&mut command);
    for line in ["one\n", "two\n"] {
        running.tell(line);
        assert_eq!(running.line(), line);
        running.signal(libc::SIGHUP);
    }
    let (status, ..) = running.end();
    assert_eq!(status.code(), Some(0));
    assert_eq!(report(&folder.path().join(REPORT)).exit, Exit::Code(0));
}

#[test]
fn an_exit_code_is_known_where_sigchld_is_ignored() {
    let folder = folder();
    let mut command = launcher(folder.path());
    ignore(command.args(["sh", "-c", "exit 9"]), &[libc::SIGCHLD]);
    assert_eq!(finish(&mut command).status.code(), Some(9));
    assert_eq!(report(&folder.path().join(REPORT)).exit, Exit::Code(9));
}

#[test]
fn the_program_survives_a_killed_launcher() {
    let folder = folder();
    let mut running = Running::start(launcher(folder.path()).args(["sh", "-c", "cat; echo $?"]));
    running.tell("one\n");
    assert_eq!(running.line(), "one\n");
    running.signal(libc::SIGKILL);
    assert_eq!(running.child.wait().unwrap().signal(), Some(libc::SIGKILL));
    running.tell("two\n");
    assert_eq!(running.line(), "two\n");
    let Running { stdin, mut stdout, .. } = running;
    drop(stdin);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "0\n");
}

// What can't be done.

#[test]
fn a_missing_program_is_127() {
    let folder = folder();
    for name in ["no-such-program", "./no-such-program", "/no/such/program", ""] {
        let message = refused(launcher(folder.path()).arg(name), 127);
        assert!(message.contains(&format!("{name}: no such program")), "{message}");
    }
    symlink("nowhere", folder.path().join("dangling")).unwrap();
    refused(launcher(folder.path()).arg("./dangling"), 127);
    assert_eq!(names(folder.path()), ["dangling"]);
}

#[test]
fn what_is_no_program_is_126() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("text"), "echo no").unwrap();
    fs::create_dir(path("folder")).unwrap();
    symlink("loop", path("loop")).unwrap();
    write_program(&path("script"), b"#!/no/such/interpreter -x\n");
    write_program(&path("nested"), b"#!./script\n");
    write_program(&path("wrong"), b"#!/etc/passwd\n");
    let cases = [
        ("./text", "permission denied"),
        ("./folder", "is a folder"),
        ("./loop", "symbolic links"),
        ("./text/program", "Not a directory"),
        ("./script", "interpreter /no/such/interpreter is missing"),
        ("./nested", "interpreter /no/such/interpreter is missing"),
        ("./wrong", "ermission denied"),
    ];
    let before = names(folder.path());
    for (name, why) in cases {
        let message = refused(launcher(folder.path()).arg(name), 126);
        assert!(message.contains(why), "{name}: {message}");
    }
    assert_eq!(names(folder.path()), before);
}

#[test]
fn a_static_program_is_125() {
    let folder = folder();
    let message = |program: &Path| refused(launcher(folder.path()).arg(program), 125);
    let mut elf = vec![0; 64];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    (elf[16], elf[18]) = (2, 62);
    let mut programs = vec![folder.path().join("crafted")];
    write_program(&programs[0], &elf);
    for flag in ["-static", "-static-pie"] {
        match try_compile("nothing", &[flag]) {
            Some(program) => programs.push(program),
            None => eprintln!("\nSKIPPED: cc {flag} DOES NOT WORK HERE; is libc.a there?\n"),
        }
    }
    let script = folder.path().join("script");
    write_program(&script, format!("#!{}\n", programs[0].display()).as_bytes());
    programs.push(script);
    for program in programs {
        let message = message(&program);
        assert!(message.contains("can't be tracked: it is statically linked"), "{message}");
    }
    elf[18] = 183;
    write_program(&folder.path().join("arm"), &elf);
    assert!(message(&folder.path().join("arm")).contains("x86-64"));
}

#[test]
fn a_setuid_program_is_125() {
    if !is_root() {
        eprintln!("\nSKIPPED: A SETUID PROGRAM OF ANOTHER USER CAN ONLY BE MADE BY ROOT\n");
        return;
    }
    let folder = folder();
    for (name, mode) in [("setuid", 0o4755), ("setgid", 0o2755)] {
        let path = folder.path().join(name);
        copy(Path::new("/bin/true"), &path);
        chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let message = refused(launcher(folder.path()).arg(&path), 125);
        assert!(message.contains("setuid"), "{message}");
    }
    // Neither is read for it, where only its owner may.
    let unreadable = folder.path().join("unreadable");
    copy(Path::new("/bin/true"), &unreadable);
    fs::set_permissions(&unreadable, fs::Permissions::from_mode(0o4111)).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut as_nobody = launcher(folder.path());
    as_nobody.arg("--no-report").arg(&unreadable).uid(NOBODY).gid(NOBODY);
    let message = refused(&mut as_nobody, 125);
    assert!(message.contains("setuid"), "{message}");
    // One's own is no obstacle.
    let own = folder.path().join("own");
    copy(Path::new("/bin/true"), &own);
    fs::set_permissions(&own, fs::Permissions::from_mode(0o4755)).unwrap();
    assert!(finish(launcher(folder.path()).arg(&own)).status.success());
}

#[test]
fn the_library_is_found_where_it_may_lie() {
    let folder = installed();
    let path = |name: &str| folder.path().join(name);
    let run = path("bin/ttalloc-run");
    let preloaded = |command: &mut Command| {
        let output = finish(command.args(["-q", "--no-report", "printenv", "LD_PRELOAD"]));
        assert!(output.status.success(), "{}", text(&output.stderr));
        PathBuf::from(text(&output.stdout).trim_end())
    };
    let real = |name: &str| path(name).canonicalize().unwrap();
    let library = "libttalloc_shim.so";
    assert_eq!(preloaded(&mut bare(&run, folder.path())), real("lib/libttalloc_shim.so"));
    // A link to the program is followed.
    symlink(&run, path("link")).unwrap();
    assert_eq!(preloaded(&mut bare(path("link"), folder.path())), real("lib/libttalloc_shim.so"));
    // TTALLOC_SHIM may be relative; what it names is preloaded by its whole path.
    fs::create_dir(path("other")).unwrap();
    copy(&programs().shim, &path("other/mine.so"));
    let mut command = bare(&run, folder.path());
    command.env("TTALLOC_SHIM", "other/mine.so");
    assert_eq!(preloaded(&mut command), real("other/mine.so"));
    // Beside the program, and then nowhere.
    fs::rename(path("lib").join(library), path("bin").join(library)).unwrap();
    assert_eq!(preloaded(&mut bare(&run, folder.path())), real("bin/libttalloc_shim.so"));
    fs::remove_file(path("bin").join(library)).unwrap();
    let message = refused(bare(&run, folder.path()).args(["touch", "started"]), 125);
    assert!(message.contains("libttalloc_shim.so was not found in"), "{message}");
    assert!(message.contains("TTALLOC_SHIM"), "{message}");
    assert!(!path("started").exists());
}

#[test]
fn a_library_that_does_not_fit_is_125() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let message = |path: &Path| {
        let message = not_started(|command| {
            command.env("TTALLOC_SHIM", path);
        });
        assert!(message.contains(&*path.to_string_lossy()), "{message}");
        message
    };
    for missing in [path("missing.so"), path("")] {
        assert!(message(&missing).contains("is not a file"));
    }
    fs::write(path("text.so"), "nonsense").unwrap();
    fs::write(path("empty.so"), "").unwrap();
    let theirs = compile("user", &["-shared", "-fPIC"]);
    for other in [path("text.so"), path("empty.so"), theirs, programs().run.clone()] {
        assert!(message(&other).contains("is not ttalloc's preload library"));
    }
    // Cut off in the middle.
    let ours = fs::read(&programs().shim).unwrap();
    fs::write(path("half.so"), &ours[..ours.len() / 2]).unwrap();
    assert!(message(&path("half.so")).contains("is not ttalloc's preload library"));
    // Another version's.
    let stamp = STAMP.trim_end_matches('\0');
    let other = format!("{}9", &stamp[..stamp.len() - 1]);
    let mut bytes = ours.clone();
    let mut found = 0;
    for at in 0..bytes.len() - stamp.len() {
        if bytes[at..].starts_with(stamp.as_bytes()) {
            bytes[at..at + other.len()].copy_from_slice(other.as_bytes());
            found += 1;
        }
    }
    assert!(found > 0, "{STAMP_SYMBOL} holds {stamp:?}");
    fs::write(path("other.so"), bytes).unwrap();
    let message = message(&path("other.so"));
    assert!(message.contains(&format!("\"{other}\"")), "{message}");
    assert!(message.contains(&format!("\"{stamp}\"")), "{message}");
}

#[test]
fn a_library_path_that_ld_so_cannot_read_is_125() {
    // A dollar begins what ld.so replaces, such as $LIB.
    for name in ["a space", "a:colon", "a$LIB"] {
        let folder = folder();
        let path = folder.path().join(name).join("shim.so");
        fs::create_dir(path.parent().unwrap()).unwrap();
        copy(&programs().shim, &path);
        let message = not_started(|command| {
            command.env("TTALLOC_SHIM", &path);
        });
        assert!(message.contains("LD_PRELOAD"), "{message}");
    }
}

#[test]
fn a_report_that_cannot_be_written_is_known_before() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("file"), "").unwrap();
    let cases = [
        (path("no/such/report.json"), "No such file"),
        (folder.path().to_owned(), "it is a folder"),
        (path("file/report.json"), "Not a directory"),
        (path("x".repeat(300).as_str()), "too long"),
        (path("new/"), ""),
        (PathBuf::from("/proc/report.json"), "o such file"),
    ];
    for (path, why) in cases {
        let message = not_started(|command| {
            command.arg("--report").arg(&path);
        });
        assert!(message.contains("the report can't be written to"), "{message}");
        assert!(message.contains(why), "{message}");
        assert!(message.contains("--no-report"), "{message}");
    }
    assert_eq!(names(folder.path()), ["file"]);
}

#[test]
fn rights_to_write_are_checked_before() {
    let installed = installed();
    let folder = folder();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let closed = folder.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    fs::write(folder.path().join("kept.json"), "kept").unwrap();
    fs::set_permissions(folder.path().join("kept.json"), fs::Permissions::from_mode(0o444))
        .unwrap();
    for name in ["closed/report.json", "kept.json"] {
        let mut command = bare(installed.path().join("bin/ttalloc-run"), folder.path());
        without_rights(command.args(["--report", name, "touch", "started"]));
        let message = refused(&mut command, 125);
        assert!(message.contains("ermission denied"), "{message}");
    }
    assert_eq!(fs::read(folder.path().join("kept.json")).unwrap(), b"kept");
    assert_eq!(names(folder.path()), ["closed", "kept.json"]);
    // And a report that may be written is.
    let mut command = bare(installed.path().join("bin/ttalloc-run"), folder.path());
    without_rights(command.args(["--report", "report.json", "true"]));
    assert!(finish(&mut command).status.success());
    report(&folder.path().join("report.json"));
}

#[test]
fn a_refused_run_leaves_the_last_report() {
    let folder = folder();
    fs::write(folder.path().join(REPORT), "the last one").unwrap();
    refused(launcher(folder.path()).arg("no-such-program"), 127);
    refused(launcher(folder.path()).arg("true").env("TTALLOC_SHIM", "/no/such"), 125);
    assert_eq!(fs::read(folder.path().join(REPORT)).unwrap(), b"the last one");
    assert_eq!(names(folder.path()), [REPORT]);
}

#[test]
fn wrong_usage_is_125() {
    let cases: [(&[&str], &str); 9] = [
        (&[], "<PROGRAM>"),
        (&["--"], "<PROGRAM>"),
        (&["--bogus", "touch", "started"], "--bogus"),
        (&["--quite", "touch", "started"], "--quite"),
        (&["-x", "touch", "started"], "-x"),
        (&["--report"], "--report"),
        (&["--report=", "touch", "started"], "--report"),
        (&["--no-report", "--report", "x", "touch", "started"], "--no-report"),
        (&["--report=x", "--no-report", "touch", "started"], "--no-report"),
    ];
    for (words, named) in cases {
        let folder = folder();
        let output = finish(launcher(folder.path()).args(words));
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{words:?}: {message}");
        assert!(message.contains(named), "{words:?}: {message}");
        assert_eq!(text(&output.stdout), "");
        assert_eq!(names(folder.path()), [""; 0], "{words:?}");
    }
}

/// Runs the launcher with `true` under a limit of bash's `ulimit`.
fn limited(limit: &str, options: &[&str]) -> Output {
    let folder = folder();
    let mut command = bare("bash", folder.path());
    command.args(["-c", &format!("ulimit {limit} && exec \"$@\""), "bash"]).arg(&programs().run);
    finish(command.args(options).arg("true"))
}

/// Asserts that the launcher refused its work in one line that says what there was too little of.
#[track_caller]
fn refused_for(what: &str, limit: &str, output: &Output) {
    let message = text(&output.stderr);
    assert!(
        matches!(output.status.code(), Some(125 | 126)),
        "{limit}: {} {message}",
        output.status
    );
    assert!(
        message.starts_with("ttalloc-run: ") && message.lines().count() == 1,
        "{limit}: {message}"
    );
    assert!(message.contains(what), "{limit}: {message}");
}

#[test]
fn too_little_memory_is_told() {
    let mut told = 0;
    for kibibytes in (5_000..=16_000).step_by(500) {
        let limit = format!("-v {kibibytes}");
        let output = limited(&limit, &["-q"]);
        assert_eq!(output.status.signal(), None, "{limit}: {}", text(&output.stderr));
        let unloaded = text(&output.stderr).contains("error while loading shared libraries");
        if !unloaded && output.status.code() != Some(0) {
            refused_for("memory", &limit, &output);
            told += 1;
        }
    }
    assert!(told > 0);
}

#[test]
fn too_small_a_limit_of_file_size_is_told() {
    for limit in ["-f 0", "-f 1", "-f 1000"] {
        let output = limited(limit, &["-q"]);
        refused_for("File too large", limit, &output);
    }
    // The program keeps the limit, and its signal.
    let folder = folder();
    let mut command = bare("bash", folder.path());
    command.args(["-c", "ulimit -f 20000; exec \"$@\"", "bash"]).arg(&programs().run);
    command.args(["sh", "-c", "exec head -c 30000000 /dev/zero > big"]);
    assert_eq!(finish(&mut command).status.code(), Some(128 + libc::SIGXFSZ));
    let report = report(&folder.path().join(REPORT));
    assert_eq!(report.exit, Exit::Signal("SIGXFSZ".to_owned()));
}

#[test]
fn too_few_open_files_are_told() {
    let mut told = 0;
    for files in 4..=12 {
        let limit = format!("-n {files}");
        let output = limited(&limit, &["-q"]);
        assert_eq!(output.status.signal(), None, "{limit}: {}", text(&output.stderr));
        if output.status.code() != Some(0) {
            refused_for("open files", &limit, &output);
            told += 1;
        }
    }
    assert!(told > 0);
}

// Reports.

#[test]
fn the_report_goes_where_it_is_wanted() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let say = |options: &[&str]| {
        let output = finish(launcher(folder.path()).args(options).args(["echo", "hi"]));
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        output
    };
    let written = format!("report written to {}", path(REPORT).display());
    let output = say(&[]);
    assert_eq!(report(&path(REPORT)).command, ["echo", "hi"]);
    assert!(text(&output.stderr).contains(&written), "{}", text(&output.stderr));

    // Replaced, and said so, in any case.
    for options in [&[][..], &["--quiet"]] {
        fs::write(path(REPORT), "old").unwrap();
        let stderr = text(&say(options).stderr);
        assert!(
            stderr.contains(&format!("report replaced {}", path(REPORT).display())),
            "{stderr}"
        );
        report(&path(REPORT));
    }
    fs::remove_file(path(REPORT)).unwrap();

    for options in [["--report", "a.json"], ["-r", "b.json"], ["-q", "--report=c.json"]] {
        say(&options);
    }
    assert_eq!(names(folder.path()), ["a.json", "b.json", "c.json"]);
    for name in names(folder.path()) {
        assert_eq!(report(&path(&name)).exit, Exit::Code(0));
    }
    say(&["--no-report"]);
    assert_eq!(say(&["-q", "--report", "/dev/null"]).stderr, b"");
    let output = say(&["--report", "-"]);
    let json = output.stdout.strip_prefix(b"hi\n").expect("the program's own comes first");
    assert_eq!(read_report(json).command, ["echo", "hi"]);
    assert_eq!(names(folder.path()), ["a.json", "b.json", "c.json"]);
}

#[test]
fn the_program_may_change_its_folder() {
    let folder = folder();
    let output = finish(launcher(folder.path()).args(["sh", "-c", "cd /; pwd"]));
    assert_eq!(text(&output.stdout), "/\n");
    assert_eq!(report(&folder.path().join(REPORT)).exit, Exit::Code(0));
}

#[test]
fn a_report_has_the_mode_of_any_new_file() {
    for (umask, mode) in [("022", 0o644), ("077", 0o600), ("002", 0o664)] {
        let folder = folder();
        let mut command = bare("sh", folder.path());
        command.args(["-c", &format!("umask {umask}; exec \"$@\""), "sh"]).arg(&programs().run);
        assert!(finish(command.arg("true")).status.success());
        let found = fs::metadata(folder.path().join(REPORT)).unwrap().mode();
        assert_eq!(found & 0o7777, mode, "umask {umask}");
    }
}

#[test]
fn a_report_goes_through_a_fifo() {
    let folder = folder();
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut reader = bare("cat", folder.path());
    let reader = reader.arg(&fifo).stdout(Stdio::piped()).spawn().unwrap();
    let mut running =
        Running::start(launcher(folder.path()).args(["-q", "--report", "fifo", "echo", "hi"]));
    let json = reader.wait_with_output().unwrap().stdout;
    if json.is_empty() {
        // It would wait for another reader, for ever.
        running.child.kill().unwrap();
    }
    let (status, stdout, stderr) = running.end();
    assert!(!json.is_empty(), "the reader met its end before the report came");
    assert_eq!((status.code(), stdout.as_str(), stderr.as_str()), (Some(0), "hi\n", ""));
    assert_eq!(read_report(&json).command, ["echo", "hi"]);
}

#[test]
fn a_link_in_the_reports_place_is_followed() {
    let base = folder();
    let device = base.path().metadata().unwrap().dev();
    // Within a file system, and from one to another.
    let mut places = vec![folder()];
    let others = ["/dev/shm", env!("CARGO_TARGET_TMPDIR")];
    let other = |place: &&str| fs::metadata(place).is_ok_and(|found| found.dev() != device);
    match others.iter().find(|place| other(place)) {
        Some(place) => places.push(tempfile::tempdir_in(place).unwrap()),
        None => eprintln!("\nSKIPPED: THERE IS NO SECOND FILE SYSTEM FOR A LINK TO LEAD TO\n"),
    }
    for place in places {
        for existing in [true, false] {
            let (target, link) = (place.path().join("target"), base.path().join("link"));
            if existing {
                fs::write(&target, "old").unwrap();
            }
            symlink(&target, &link).unwrap();
            let output = finish(launcher(base.path()).args(["--report", "link", "true"]));
            assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
            assert!(link.is_symlink(), "the link was replaced; existing: {existing}");
            assert_eq!(report(&target).exit, Exit::Code(0));
            assert_eq!(names(place.path()), ["target"]);
            fs::remove_file(link).unwrap();
            fs::remove_file(target).unwrap();
        }
    }
}

#[test]
fn a_lost_report_is_told() {
    // The program removes its folder, or the one for the report, or the disk is full.
    let cases = [
        (REPORT, "rmdir \"$PWD\""),
        ("reports/report.json", "rmdir reports"),
        ("report.json", "mkdir report.json"),
        ("/dev/full", "true"),
    ];
    for (path, script) in cases {
        for code in [0, 5] {
            let base = folder();
            let work = base.path().join("work");
            fs::create_dir_all(if path.contains("reports") {
                work.join("reports")
            } else {
                work.clone()
            })
            .unwrap();
            let mut command = launcher(&work);
            command.args(["-q", "--report", path, "sh", "-c", &format!("{script}; exit {code}")]);
            let message = refused(&mut command, if code == 0 { 125 } else { code });
            assert!(message.contains("the report is lost: "), "{message}");
        }
    }
}

#[test]
fn standard_output_may_be_gone_when_the_report_comes() {
    let folder = folder();
    let mut running = Running::start(launcher(folder.path()).args([
        "-q",
        "--report",
        "-",
        "sh",
        "-c",
        "echo hi; read x",
    ]));
    assert_eq!(running.line(), "hi\n");
    let Running { child, mut stdin, stdout } = running;
    drop(stdout);
    stdin.write_all(b"go\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{message}");
    assert!(message.contains("the report is lost: Broken pipe"), "{message}");
}

// More than one.

#[test]
fn a_launcher_runs_under_a_launcher() {
    let folder = folder();
    let script = "echo hi; echo oh >&2; exit 7";
    let mut command = launcher(folder.path());
    command.args(["-q", "--report", "outer.json"]).arg(&programs().run);
    let output = finish(command.args(["-q", "--report", "inner.json", "sh", "-c", script]));
    assert_eq!(output.status.code(), Some(7));
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("hi\n".into(), "oh\n".into()));
    let report = |name| report(&folder.path().join(name));
    assert_eq!(report("inner.json").command, ["sh", "-c", script]);
    assert_eq!(report("outer.json").command[1..4], ["-q", "--report", "inner.json"]);
    for name in ["inner.json", "outer.json"] {
        assert_eq!(report(name).exit, Exit::Code(7));
        assert!(report(name).integrity.complete);
    }
    let output =
        finish(launcher(folder.path()).arg(&programs().run).args(["ls", "/proc/self/fd/0"]));
    assert_eq!(text(&output.stdout), "/proc/self/fd/0\n");
}

#[test]
fn many_run_at_once() {
    thread::scope(|scope| {
        for number in 0..20 {
            scope.spawn(move || {
                let folder = folder();
                let script = format!("echo {number}; exit {number}");
                let output = finish(launcher(folder.path()).args(["sh", "-c", &script]));
                assert_eq!(output.status.code(), Some(number), "{}", text(&output.stderr));
                assert_eq!(text(&output.stdout), format!("{number}\n"));
                let report = report(&folder.path().join(REPORT));
                assert_eq!(report.exit, Exit::Code(number));
                assert!(report.integrity.complete);
            });
        }
    });
}

#[test]
fn what_outlives_the_program_is_not_waited_for() {
    let folder = folder();
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // The one in the background waits until it is told something, which is after the launcher's end.
    let script = "(read line < fifo; echo \"$line\" > told; echo > fifo) > /dev/null 2>&1 & exit 4";
    let output = finish(launcher(folder.path()).args(["-q", "sh", "-c", script]));
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(report(&folder.path().join(REPORT)).exit, Exit::Code(4));
    fs::write(&fifo, "the launcher is gone\n").unwrap();
    fs::read(&fifo).unwrap();
    assert_eq!(fs::read(folder.path().join("told")).unwrap(), b"the launcher is gone\n");
}

#[test]
fn the_library_alone_does_nothing() {
    let folder = folder();
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut rings: Vec<Option<OsString>> = vec![None];
    let named = ["", "nonsense", "/no/such", "/dev/null", "/etc/passwd", "/", "/proc/self/fd/0"];
    rings.extend(named.map(|ring| Some(ring.into())));
    rings.extend([Some("x".repeat(5000).into()), Some(OsString::from(fifo))]);
    for words in [["ls", "-d", "/"], ["python3", "-c", "print(6 * 7)"]] {
        let mut without = bare(words[0], folder.path());
        let without = finish(without.args(&words[1..]));
        for ring in &rings {
            let mut with = bare(words[0], folder.path());
            with.args(&words[1..]).env("LD_PRELOAD", &programs().shim);
            if let Some(ring) = ring {
                with.env("TTALLOC_RING", ring);
            }
            assert_eq!(finish(&mut with), without, "{words:?} with {ring:?}");
        }
    }
}

// Help, and the other program.

#[test]
fn help_and_version_are_answers() {
    let folder = folder();
    let ask = |program: &Path, words: &[&str]| {
        let output = finish(bare(program, folder.path()).args(words));
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}", text(&output.stderr));
        assert_eq!(text(&output.stderr), "", "{words:?}");
        text(&output.stdout)
    };
    let built = programs();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(ask(&built.run, &["--version"]), format!("ttalloc-run {version}\n"));
    assert_eq!(ask(&built.ttalloc, &["--version"]), format!("ttalloc {version}\n"));
    let all = |help: &str, words: &[&str]| {
        for word in words {
            assert!(help.contains(word), "{word} is missing in:\n{help}");
        }
    };
    for flag in ["-h", "--help"] {
        let options = ["--quiet", "--report <FILE>", "--no-report", "--help", "--version"];
        all(&ask(&built.run, &[flag]), &options);
        all(
            &ask(&built.run, &[flag]),
            &["Examples:\n  ttalloc-run ", "TTALLOC_SHIM", "125", "126", "127"],
        );
        all(
            &ask(&built.ttalloc, &[flag]),
            &["demo", "schema", "Examples:\n  ttalloc demo", "ttalloc-run"],
        );
        all(&ask(&built.ttalloc, &["demo", flag]), &["--chips", "--arch", "--report"]);
    }
    all(&ask(&built.ttalloc, &["demo", "--help"]), &["TTALLOC_PYTHON", "3.10", "3.12"]);
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn the_schema_is_printed() {
    let folder = folder();
    let output = finish(bare(&programs().ttalloc, folder.path()).arg("schema"));
    assert!(output.status.success());
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed, Report::json_schema());
    // A reader that has seen enough.
    let mut command = bare("bash", folder.path());
    command.args(["-c", "set -o pipefail; \"$0\" schema | head -1"]).arg(&programs().ttalloc);
    let output = finish(&mut command);
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("{\n".into(), "".into()));
    assert_eq!(output.status.code(), Some(0));
    // A full disk is no such reader.
    let mut command = bare(&programs().ttalloc, folder.path());
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = command.arg("schema").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).starts_with("ttalloc: the schema can't be written"));
}

#[test]
fn what_ttalloc_cannot_do_is_2() {
    let folder = folder();
    let cache = folder.path().join("cache");
    let refused = |words: &[&str], python: Option<&str>| {
        let mut command = bare(&programs().ttalloc, folder.path());
        command.args(words).env("XDG_CACHE_HOME", &cache).env_remove("TTALLOC_PYTHON");
        if let Some(python) = python {
            command.env("TTALLOC_PYTHON", python);
        }
        let output = finish(&mut command);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {message}");
        assert_eq!(text(&output.stdout), "", "{words:?}");
        message
    };
    for words in [
        &["nonsense"][..],
        &[],
        &["demo", "--chips", "many"],
        &["demo", "--bogus"],
        &["schema", "x"],
    ] {
        refused(words, None);
    }
    for words in [
        &["demo", "--chips", "3"][..],
        &["demo", "--chips", "0"],
        &["demo", "--arch", "blackhole", "--chips", "32"],
    ] {
        let message = refused(words, None);
        assert!(message.starts_with("ttalloc: ") && message.lines().count() == 1, "{message}");
        assert!(message.contains("1, 2, 4, 8, or 32 of Wormhole"), "{message}");
    }
    for python in ["/bin/true", "/bin/false", "/no/such/python", "/", "nonsense"] {
        let message = refused(&["demo"], Some(python));
        let start = format!("ttalloc: TTALLOC_PYTHON names {python}, which ");
        assert!(message.starts_with(&start) && message.lines().count() == 1, "{message}");
        assert!(message.contains("CPython 3.10 or 3.12"), "{message}");
        assert!(!message.contains("CPython ;"), "it is no CPython at all: {message}");
    }
    assert!(!folder.path().join(REPORT).exists());
}

#[test]
fn ttalloc_is_the_launcher_by_its_name() {
    let folder = folder();
    symlink(&programs().ttalloc, folder.path().join("ttalloc-run")).unwrap();
    let mut command = bare("./ttalloc-run", folder.path());
    let output = finish(command.args(["--quiet", "sh", "-c", "exit 6"]));
    assert_eq!(output.status.code(), Some(6), "{}", text(&output.stderr));
    assert_eq!(report(&folder.path().join(REPORT)).exit, Exit::Code(6));
}
