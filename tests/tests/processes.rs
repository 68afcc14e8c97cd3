//! Programs that start programs: what is followed, and that nothing changes for those who look.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on says so")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;
use ttalloc_tests::programs;

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
