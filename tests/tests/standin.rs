//! ttalloc against a runtime of our own, for what the real one can't show without hardware: every era, every
//! exception, threads, and books to compare with.
//!
//! The programs of `standin/` print the runtime's own books with the fields of the report.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a case fails by panicking")]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode, Output};

use libtest_mimic::{Arguments, Failed, Trial};
use object::{Object, ObjectSymbol};
use serde_json::Value;
use ttalloc::report::{Exit, HookEngine, Process, Report};
use ttalloc_symbols::{Era, SYMBOLS, Symbol, Use};
use ttalloc_tests::standin::{Compiler, Standin};
use ttalloc_tests::{Run, programs, read_report, run};

type Case = fn(&Compiler, Era);

const CASES: &[(&str, Case)] = &[
    ("exports_what_the_catalogue_has", exports_what_the_catalogue_has),
    ("matmul", matmul),
    ("storm", storm),
    ("lifecycle", lifecycle),
    ("lifecycle_out_of_sight", lifecycle_out_of_sight),
    ("forked", forked),
    ("full_ring", full_ring),
    ("exceptions", exceptions),
    ("exceptions_out_of_sight", exceptions_out_of_sight),
    ("no_ring", no_ring),
    ("symbol_missing", symbol_missing),
    ("other_hash_table", other_hash_table),
    ("other_interposer", other_interposer),
    ("nested", nested),
    ("endless", endless),
];

/// What a build in which calls don't go through the PLT is tested with.
type BuildCase = fn(&Compiler, Era, Build);

const BUILD_CASES: &[(&str, BuildCase)] = &[
    ("storm", built_storm),
    ("lifecycle", built_lifecycle),
    ("exceptions", built_exceptions),
    ("forked", built_forked),
];

const BUILDS: &[(&str, Build)] = &[
    ("symbolic", Build::Symbolic),
    ("symbolic_functions", Build::SymbolicFunctions),
    ("hidden_module", Build::HiddenModule),
    ("whole_program", Build::WholeProgram),
];

/// Other cases of such builds, of one era.
const OTHER_BUILD_CASES: &[(&str, Case)] = &[
    ("stripped_program", stripped_program),
    ("lto_program", lto_program),
    ("lto_library", lto_library),
    ("inline_where_not_needed", inline_where_not_needed),
    ("preload_where_not_enough", preload_where_not_enough),
    ("ignored_arguments", ignored_arguments),
    ("patched_without_ring", patched_without_ring),
    ("patched_and_interposed", patched_and_interposed),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let (compiler, clang) = (Compiler::find(), Compiler::clang());
    for (compiler, what) in [(&compiler, "A C++ COMPILER"), (&clang, "CLANG, SOME OF THEM")] {
        if let Err(why) = compiler {
            eprintln!("\nTHE TESTS ON THE STAND-IN RUNTIME NEED {what}: {why}\n");
            if std::env::var_os("CI").is_some() {
                return ExitCode::FAILURE;
            }
        }
    }
    let no_compiler = compiler.is_err();
    let mut trials = build_trials("cxx", &compiler);
    trials.extend(build_trials("clang", &clang));
    for &(name, case) in CASES {
        for era in [Era::A, Era::B, Era::C] {
            let compiler = compiler.clone();
            let runner =
                move || compiler.map(|compiler| case(&compiler, era)).map_err(Failed::from);
            let name = format!("{name}::{}", era.letter().to_lowercase());
            trials.push(Trial::test(name, runner).with_ignored_flag(no_compiler));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The cases of builds in which calls don't go through the PLT.
fn build_trials(name: &str, compiler: &Result<Compiler, String>) -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut add = |case: String, run: Box<dyn FnOnce(&Compiler) + Send>| {
        let compiler = compiler.clone();
        let is_missing = compiler.is_err();
        let runner = move || compiler.map(|compiler| run(&compiler)).map_err(Failed::from);
        let name = format!("built::{name}::{case}");
        trials.push(Trial::test(name, runner).with_ignored_flag(is_missing));
    };
    for &(of_build, build) in BUILDS {
        for &(of_case, case) in BUILD_CASES {
            // The eras differ by name, which it takes one build and case to show.
            let eras: &[Era] = match (build, of_case) {
                (Build::WholeProgram, "lifecycle") => &[Era::A, Era::B, Era::C],
                _ => &[Era::C],
            };
            for &era in eras {
                let case_name = format!("{of_build}::{of_case}::{}", era.letter().to_lowercase());
                add(case_name, Box::new(move |compiler| case(compiler, era, build)));
            }
        }
    }
    for &(of_case, case) in OTHER_BUILD_CASES {
        add(format!("{of_case}::c"), Box::new(move |compiler| case(compiler, Era::C)));
    }
    trials
}

fn standin(compiler: &Compiler, era: Era, further: &[&str]) -> Standin {
    Standin::new(compiler, Path::new(env!("CARGO_TARGET_TMPDIR")), era, further)
}

fn exports_what_the_catalogue_has(compiler: &Compiler, era: Era) {
    let bytes = std::fs::read(standin(compiler, era, &[]).library()).unwrap();
    let library = object::File::parse(&*bytes).unwrap();
    let exported: BTreeSet<_> = library
        .dynamic_symbols()
        .filter(|symbol| symbol.is_definition())
        .map(|symbol| symbol.name().unwrap())
        .collect();
    for symbol in SYMBOLS {
        let (name, expected) = (symbol.name, symbol.eras.contains(era));
        assert_eq!(exported.contains(name), expected, "{}: {name}", symbol.role);
    }
}

fn matmul(compiler: &Compiler, era: Era) {
    let run = run(&standin(compiler, era, &[]).program("matmul_multicore_reuse"), |_| {});
    let report = whole(&run, era);
    assert_books(&books_of(report, report.processes[0].pid), &printed(&run.output)[0]);
    // A hidden parent, and the mesh of one chip that the program asked for.
    let meshes: Vec<_> = report.meshes.iter().map(|mesh| (mesh.mesh, &*mesh.chips)).collect();
    assert_eq!(meshes, [(0, &[0][..]), (1, &[0])]);
    let dram = &report.devices[0].memory[0];
    // 400 pages of 2,048 bytes over 12 banks are 34 pages in the fullest.
    assert_eq!(dram.peak.totals.bytes_per_bank, 3 * 34 * 2048);
    assert_eq!(dram.peak.totals.bytes, 3 * 819_200);
    assert_eq!((dram.allocations, dram.frees, dram.live.buffers), (3, 3, 0));
}

fn storm(compiler: &Compiler, era: Era) {
    check_storm(&run(&standin(compiler, era, &[]).program("storm"), |_| {}), era);
}

#[track_caller]
fn check_storm(run: &Run, era: Era) {
    let report = whole(run, era);
    let mut expected = printed(&run.output).remove(0);
    let mut found = books_of(report, report.processes[0].pid);
    // Between the runtime's doing and our record of it another thread may act, so that our peak may be
    // lower: an allocation is recorded after it was made, a free before.
    let (theirs, ours) = (take_peaks(&mut expected), take_peaks(&mut found));
    assert_books(&found, &expected);
    for (theirs, ours) in theirs.iter().zip(&ours) {
        assert!(ours <= theirs && *ours >= theirs / 2, "{ours} of {theirs}");
    }
    assert_eq!(report.meshes[0].chips, [4, 0, 2, 6]);
    assert!(!report.live_buffers.is_empty());
}

fn lifecycle(compiler: &Compiler, era: Era) {
    check_lifecycle(&run(&standin(compiler, era, &[]).program("lifecycle"), |_| {}), era);
}

/// As in Python, where dlsym finds neither the runtime nor the C++ library.
fn lifecycle_out_of_sight(compiler: &Compiler, era: Era) {
    let standin = standin(compiler, era, &[]);
    let module = standin.module("lifecycle");
    let run = run(&standin.host(), |command| {
        command.arg(module);
    });
    check_lifecycle(&run, era);
}

#[track_caller]
fn check_lifecycle(run: &Run, era: Era) {
    let report = whole_but(run, era, 2);
    assert_books(&books_of(report, report.processes[0].pid), &printed(&run.output)[0]);
    assert_eq!(report.meshes.len(), 22);
}

fn forked(compiler: &Compiler, era: Era) {
    check_forked(&run(&standin(compiler, era, &[]).program("fork"), |_| {}), era);
}

#[track_caller]
fn check_forked(run: &Run, era: Era) {
    let report = tracked(run, era);
    let [parent, child] = &*report.processes else { panic!("{:?}", report.processes) };
    assert_eq!(child.parent_pid, parent.pid);
    let [of_child, of_parent] = &*printed(&run.output) else { panic!("{}", run.describe()) };
    assert_books(&books_of(report, parent.pid), of_parent);
    assert_books(&books_of(report, child.pid), of_child);
    assert_eq!((report.integrity.inherited_frees, report.integrity.unknown_frees), (3, 0));
    assert!(report.integrity.complete, "{:?}", report.integrity.problems);
}

fn full_ring(compiler: &Compiler, era: Era) {
    // The argument has the program stop ttalloc-run until it comes to a halt itself.
    let run = run(&standin(compiler, era, &[]).program("thrash"), |command| {
        command.arg("stop");
    });
    let report = whole(&run, era);
    let mut expected = printed(&run.output).remove(0);
    let mut found = books_of(report, report.processes[0].pid);
    take_peaks(&mut expected);
    take_peaks(&mut found);
    assert_books(&found, &expected);
    assert_eq!(report.devices[0].memory[0].allocations, 250_001);
}

fn exceptions(compiler: &Compiler, era: Era) {
    let program = standin(compiler, era, &[]).program("exceptions");
    let alone = Command::new(&program).output().unwrap();
    check_exceptions(&run(&program, |_| {}), &alone, era);
}

fn exceptions_out_of_sight(compiler: &Compiler, era: Era) {
    let standin = standin(compiler, era, &[]);
    let (host, module) = (standin.host(), standin.module("exceptions"));
    let alone = Command::new(&host).arg(&module).output().unwrap();
    let run = run(&host, |command| {
        command.arg(&module);
    });
    check_exceptions(&run, &alone, era);
}

#[track_caller]
fn check_exceptions(run: &Run, alone: &Output, era: Era) {
    assert_eq!(alone.status.code(), Some(3), "{alone:?}");
    assert_same(&run.output, alone);
    let report = tracked(run, era);
    assert_books(&books_of(report, report.processes[0].pid), &printed(&run.output)[0]);
    // A free is recorded before it is tried. One failed, so its repetition finds nothing.
    let integrity = &report.integrity;
    assert_eq!((integrity.unknown_frees, integrity.bad_records, integrity.unattributed), (1, 0, 0));
}

/// The preload library without a ring, or with something else in its place, does nothing.
fn no_ring(compiler: &Compiler, era: Era) {
    let standin = standin(compiler, era, &[]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, vec![0; 1 << 20]).unwrap();
    let rings: [Option<OsString>; 8] = [
        None,
        Some("".into()),
        Some("nonsense".into()),
        Some("/no/such/file".into()),
        Some("/dev/null".into()),
        Some(folder.path().into()),
        Some(file.clone().into()),
        Some("x".repeat(5000).into()),
    ];
    for name in ["exceptions", "lifecycle"] {
        let program = standin.program(name);
        let alone = Command::new(&program).output().unwrap();
        for ring in &rings {
            let mut command = Command::new(&program);
            command.env("LD_PRELOAD", &programs().shim);
            if let Some(ring) = ring {
                command.env("TTALLOC_RING", ring);
            }
            assert_same(&command.output().unwrap(), &alone);
        }
    }
    assert!(std::fs::read(&file).unwrap().iter().all(|&byte| byte == 0), "a file was written to");
}

/// A library with the older kind of hash table is tracked as well.
fn other_hash_table(compiler: &Compiler, era: Era) {
    let standin = standin(compiler, era, &["-Wl,--hash-style=sysv"]);
    let run = run(&standin.program("matmul_multicore_reuse"), |_| {});
    assert_eq!(whole(&run, era).devices.len(), 1);
}

/// Another library that is preloaded for the same function keeps its calls.
fn other_interposer(compiler: &Compiler, era: Era) {
    let standin = standin(compiler, era, &[]);
    let is_allocate = |symbol: &&Symbol| symbol.role == "allocate" && symbol.eras.contains(era);
    let name = SYMBOLS.iter().find(is_allocate).unwrap().name;
    let library = standin.preloaded("interposer", &[&format!("-DNAME=\"{name}\"")]);
    let program = standin.program("matmul_multicore_reuse");
    let alone = Command::new(&program).env("LD_PRELOAD", &library).output().unwrap();
    let said = String::from_utf8_lossy(&alone.stderr).into_owned();
    assert!(said.contains("3 calls"), "{said}");
    let run = run(&program, |command| {
        command.env("LD_PRELOAD", &library);
    });
    assert!(run.stderr().contains("3 calls"), "{}", run.describe());
    assert_eq!(whole(&run, era).devices[0].memory[0].allocations, 3);
    // So does one that the program puts before ours.
    let script =
        format!("exec env LD_PRELOAD={}:$LD_PRELOAD {}", library.display(), program.display());
    let run = ttalloc_tests::run(Path::new("sh"), |command| {
        command.args(["-c", &script]);
    });
    assert!(run.stderr().contains("3 calls"), "{}", run.describe());
    assert_eq!(whole(&run, era).devices[0].memory[0].allocations, 3);
}

/// A launcher within a launcher: the inner one reports, whichever copies of the library they have.
fn nested(compiler: &Compiler, era: Era) {
    let program = standin(compiler, era, &[]).program("matmul_multicore_reuse");
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("libttalloc_shim.so");
    std::fs::copy(&programs().shim, &copy).unwrap();
    let inner = folder.path().join("inner.json");
    let output = Command::new(&programs().run)
        .env("TTALLOC_SHIM", &copy)
        .args(["--no-report", "env", "--unset=TTALLOC_SHIM"])
        .arg(&programs().run)
        .args(["--report".as_ref(), inner.as_os_str(), program.as_os_str()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = read_report(&std::fs::read(inner).unwrap());
    assert!(report.integrity.complete);
    assert_eq!(report.devices[0].memory[0].allocations, 3);
}

/// The launcher ends with the program, whatever a process that was left behind goes on writing.
fn endless(compiler: &Compiler, era: Era) {
    let run = run(&standin(compiler, era, &[]).program("endless"), |_| {});
    let child: i32 = run.stdout().trim().parse().unwrap();
    // SAFETY: ends a process that the program left behind, if it is still there.
    let still_there = unsafe { libc::kill(child, libc::SIGKILL) } == 0;
    assert!(still_there, "the launcher waited for it");
    let integrity = &run.report().integrity;
    let expected = format!("process {child} was still running when the program had ended");
    assert_eq!(integrity.problems, [expected]);
    assert_eq!(integrity.dropped + integrity.torn + integrity.unknown_frees, 0);
}

/// How the runtime is built.
#[derive(Clone, Copy, PartialEq)]
enum Build {
    /// A library that is linked with -Bsymbolic.
    Symbolic,
    /// One that is linked with -Bsymbolic-functions, which leaves no mark in the file.
    SymbolicFunctions,
    /// All in one library that is loaded with RTLD_LOCAL and exports nothing of tt-metal.
    HiddenModule,
    /// All in one program.
    WholeProgram,
}

impl Build {
    /// Runs a program of the stand-in's, without the launcher and with it.
    fn run(self, compiler: &Compiler, era: Era, name: &str) -> (Output, Run) {
        let (program, arguments) = match self {
            Build::Symbolic => (optimised(compiler, era, "-Wl,-Bsymbolic").program(name), vec![]),
            Build::SymbolicFunctions => {
                let standin = optimised(compiler, era, "-Wl,-Bsymbolic-functions");
                (standin.program(name), vec![])
            }
            Build::HiddenModule => {
                let standin = optimised(compiler, era, "-fvisibility=hidden");
                (standin.host(), vec![standin.whole_module(name)])
            }
            Build::WholeProgram => {
                // In era B a function that is called once has another do its work. What a compiler
                // puts into its callers nobody can see.
                let inlining: &[&str] = if era == Era::B { &["-fno-inline"] } else { &[] };
                let options = [&["-O2", "-fvisibility=hidden"][..], inlining].concat();
                (standin(compiler, era, &options).whole_program(name, &[]), vec![])
            }
        };
        let alone = Command::new(&program).args(&arguments).output().unwrap();
        let run = run(&program, |command| {
            command.args(&arguments);
        });
        (alone, run)
    }
}

/// As released software is compiled; gcc has -fipa-ra with it.
fn optimised(compiler: &Compiler, era: Era, option: &str) -> Standin {
    standin(compiler, era, &["-O2", option])
}

fn built_storm(compiler: &Compiler, era: Era, build: Build) {
    let (_, run) = build.run(compiler, era, "storm");
    check_storm(&run, era);
    check_patched(&run, build);
}

fn built_lifecycle(compiler: &Compiler, era: Era, build: Build) {
    let (alone, run) = build.run(compiler, era, "lifecycle");
    assert_same(&run.output, &alone);
    check_lifecycle(&run, era);
    check_patched(&run, build);
}

fn built_exceptions(compiler: &Compiler, era: Era, build: Build) {
    let (alone, run) = build.run(compiler, era, "exceptions");
    check_exceptions(&run, &alone, era);
    check_patched(&run, build);
}

fn built_forked(compiler: &Compiler, era: Era, build: Build) {
    let (_, run) = build.run(compiler, era, "fork");
    check_forked(&run, era);
    check_patched(&run, build);
}

/// Every function was patched. Where the runtime is hidden, those that nothing calls are named.
#[track_caller]
fn check_patched(run: &Run, build: Build) {
    let is_hidden = matches!(build, Build::HiddenModule | Build::WholeProgram);
    for process in &run.report().processes {
        let runtime = process.runtime.as_ref().unwrap();
        for hook in &runtime.hooks {
            // -Bsymbolic-functions is known by what calls directly.
            let by_others = build == Build::SymbolicFunctions && hook.engine == HookEngine::Preload;
            assert!(by_others || hook.engine == HookEngine::Inline, "{hook:?}");
        }
        let roles: BTreeSet<_> = runtime.hooks.iter().map(|hook| &*hook.role).collect();
        for role in ["allocate", "deallocate", "mesh_impl_open", "mesh_open"] {
            let hook = runtime.hooks.iter().find(|hook| hook.role == role);
            assert!(roles.contains(role) || role.starts_with("mesh"), "{role}");
            assert!(hook.is_none_or(|hook| hook.engine == HookEngine::Inline || !is_hidden));
        }
        for refused in &runtime.refused {
            let is_uncalled = refused.reason.contains("is never called where it is defined");
            assert!(is_hidden && is_uncalled, "{refused:?}");
        }
    }
}

/// Without symbols there is nothing to patch, which the report says.
fn stripped_program(compiler: &Compiler, era: Era) {
    let program =
        optimised(compiler, era, "-fvisibility=hidden").whole_program("exceptions", &["-s"]);
    let alone = Command::new(&program).output().unwrap();
    let run = run(&program, |_| {});
    assert_same(&run.output, &alone);
    let report = run.report();
    let [problem] = &*report.integrity.problems else { panic!("{:?}", report.integrity) };
    let path = program.canonicalize().unwrap();
    assert!(problem.contains(path.to_str().unwrap()), "{problem}");
    assert!(problem.contains("the symbol table (.symtab) was stripped"), "{problem}");
    assert!(!report.integrity.complete);
    let runtime = report.processes[0].runtime.as_ref().unwrap();
    assert_eq!((&runtime.era, runtime.hooks.len()), (&None, 0));
    let refused: BTreeSet<_> = runtime.refused.iter().map(|refused| &*refused.role).collect();
    let hooked = |symbol: &&Symbol| symbol.usage == Use::Hook && symbol.eras.contains(era);
    let all: BTreeSet<_> = SYMBOLS.iter().filter(hooked).map(|symbol| symbol.role).collect();
    assert_eq!(refused, all);
    assert!(run.stderr().contains("stripped"), "{}", run.describe());
}

/// Link-time optimisation of all in one: what it left of each function is tracked, what it did away with
/// is named.
fn lto_program(compiler: &Compiler, era: Era) {
    let standin = standin(compiler, era, &["-O2", "-flto", "-fvisibility=hidden"]);
    check_lto(&standin.whole_program("lifecycle", &[]), era);
}

/// The same of a library, which keeps its functions for others, but need not call them itself.
fn lto_library(compiler: &Compiler, era: Era) {
    let standin = standin(compiler, era, &["-O2", "-flto", "-Wl,-Bsymbolic"]);
    check_lto(&standin.program("lifecycle"), era);
}

#[track_caller]
fn check_lto(program: &Path, era: Era) {
    let alone = Command::new(program).output().unwrap();
    let run = run(program, |_| {});
    assert_same(&run.output, &alone);
    let report = run.report();
    let problems = report.integrity.problems.join("\n");
    let runtime = report.processes[0].runtime.as_ref().unwrap();
    if runtime.era.is_none() {
        assert!(problems.contains("was not tracked"), "{problems}");
        assert!(report.devices.is_empty());
        return;
    }
    assert_eq!(runtime.era.as_deref(), Some(era.letter()));
    let calls = &lines_of_books(&run.output)[0]["calls"];
    let mut lost = 0;
    for (role, expected) in calls.as_object().unwrap() {
        let expected = expected.as_u64().unwrap();
        let found = calls_of(&report.processes[0], role).unwrap_or(0);
        assert!(found <= expected, "{role} was called {expected} times, and recorded {found}");
        if found < expected && role != "create" {
            lost += 1;
            let is_named = runtime.refused.iter().any(|refused| refused.role == *role);
            assert!(is_named, "{found} of {expected} calls of {role} were seen: {problems}");
        }
    }
    if lost == 0 {
        assert_books(&books_of(report, report.processes[0].pid), &printed(&run.output)[0]);
    }
}

/// The user may have everything patched, also what interposition reaches.
fn inline_where_not_needed(compiler: &Compiler, era: Era) {
    let program = optimised(compiler, era, "-fsemantic-interposition").program("lifecycle");
    let run = ttalloc_tests::run(Path::new("env"), |command| {
        command.arg(&program).env("TTALLOC_ENGINE", "inline");
    });
    check_lifecycle(&run, era);
    let hooks = &run.report().processes[0].runtime.as_ref().unwrap().hooks;
    assert!(hooks.iter().all(|hook| hook.engine == HookEngine::Inline), "{hooks:?}");
    let run = ttalloc_tests::run(&program, |_| {});
    check_lifecycle(&run, era);
    let hooks = &run.report().processes[0].runtime.as_ref().unwrap().hooks;
    assert!(hooks.iter().all(|hook| hook.engine == HookEngine::Preload), "{hooks:?}");
}

/// Nor does anybody have to have anything patched; but the report says what that costs.
fn preload_where_not_enough(compiler: &Compiler, era: Era) {
    let standin = optimised(compiler, era, "-fvisibility=hidden");
    for (program, module) in [
        (standin.whole_program("exceptions", &[]), None),
        (standin.host(), Some(standin.whole_module("exceptions"))),
    ] {
        let alone = Command::new(&program).args(&module).output().unwrap();
        let run = run(&program, |command| {
            command.args(&module).env("TTALLOC_ENGINE", "preload");
        });
        assert_same(&run.output, &alone);
        let report = run.report();
        let [problem, ..] = &*report.integrity.problems else { panic!("{}", run.describe()) };
        assert!(problem.starts_with("calls of allocate, deallocate, "), "{problem}");
        assert!(problem.contains("the engine `preload` patches nothing"), "{problem}");
        assert!(problem.contains("allocations are missing"), "{problem}");
        assert!(report.devices.is_empty() && !report.integrity.complete);
        let runtime = report.processes[0].runtime.as_ref().unwrap();
        assert!(runtime.hooks.is_empty(), "{:?}", runtime.hooks);
    }
}

/// A function that ignores what its hook needs to know is refused: callers need not pass that. The rest
/// is tracked.
fn ignored_arguments(compiler: &Compiler, era: Era) {
    let options = ["-O2", "-fvisibility=hidden", "-DIGNORES_ITS_MESH"];
    let program = standin(compiler, era, &options).whole_program("storm", &[]);
    let run = run(&program, |_| {});
    assert_eq!(run.report().exit, Exit::Code(0), "{}", run.describe());
    let runtime = run.report().processes[0].runtime.as_ref().unwrap();
    let ignoring = runtime.refused.iter().filter(|one| one.reason.contains("ignores an argument"));
    let roles: BTreeSet<_> = ignoring.map(|one| &*one.role).collect();
    assert_eq!(roles, BTreeSet::from(["mesh_impl_close", "mesh_impl_open"]));
    let problems = run.report().integrity.problems.join("\n");
    assert!(problems.contains("calls of mesh_impl_open, mesh_impl_close"), "{problems}");
    let calls = &lines_of_books(&run.output)[0]["calls"];
    let found = calls_of(&run.report().processes[0], "allocate");
    assert_eq!(found, calls["allocate"].as_u64());
}

/// Without a launcher nothing is touched, whatever the engine.
fn patched_without_ring(compiler: &Compiler, era: Era) {
    let program = optimised(compiler, era, "-fvisibility=hidden").whole_program("exceptions", &[]);
    let alone = Command::new(&program).output().unwrap();
    for engine in ["auto", "preload", "inline", "nonsense", ""] {
        for ring in [None, Some("/no/such/file"), Some("/dev/null")] {
            let mut command = Command::new(&program);
            command.env("LD_PRELOAD", &programs().shim).env("TTALLOC_ENGINE", engine);
            command.envs(ring.map(|ring| ("TTALLOC_RING", ring)));
            assert_same(&command.output().unwrap(), &alone);
        }
    }
}

/// What another preloaded library interposes it sees, and we see it once, although both the PLT and a
/// patch lead to us.
fn patched_and_interposed(compiler: &Compiler, era: Era) {
    let standin = optimised(compiler, era, "-fsemantic-interposition");
    let is_allocate = |symbol: &&Symbol| symbol.role == "allocate" && symbol.eras.contains(era);
    let name = SYMBOLS.iter().find(is_allocate).unwrap().name;
    let library = standin.preloaded("interposer", &[&format!("-DNAME=\"{name}\"")]);
    let run = run(&standin.program("matmul_multicore_reuse"), |command| {
        command.env("LD_PRELOAD", &library).env("TTALLOC_ENGINE", "inline");
    });
    assert!(run.stderr().contains("3 calls"), "{}", run.describe());
    assert_eq!(whole(&run, era).devices[0].memory[0].allocations, 3);
}

/// A runtime that lacks something required is left alone, and the report says what it lacks.
fn symbol_missing(compiler: &Compiler, era: Era) {
    let program = standin(compiler, era, &["-DWITHOUT_BANK_SIZE", "-s"]).program("exceptions");
    let alone = Command::new(&program).output().unwrap();
    let run = run(&program, |_| {});
    assert_same(&run.output, &alone);
    let report = run.report();
    let [problem] = &*report.integrity.problems else { panic!("{:?}", report.integrity) };
    assert!(problem.contains("libtt_metal.so"), "{problem}");
    assert!(problem.ends_with("does not export what is needed for: bank_size"), "{problem}");
    assert!(!report.integrity.complete);
    assert_eq!(report.processes[0].runtime.as_ref().unwrap().era, None);
    assert!(report.devices.is_empty() && report.live_buffers.is_empty());
}

/// The report of a run of one process, in which all is known.
#[track_caller]
fn whole(run: &Run, era: Era) -> &Report {
    whole_but(run, era, 0)
}

/// The same with so many buffers where nothing was allocated.
#[track_caller]
fn whole_but(run: &Run, era: Era, external_placements: u64) -> &Report {
    let report = tracked(run, era);
    assert_eq!(report.exit, Exit::Code(0), "{}", run.describe());
    let integrity = &report.integrity;
    assert!(integrity.complete, "{:?}", integrity.problems);
    assert_eq!(integrity.inherited_frees, 0);
    assert_eq!(integrity.external_placements, external_placements);
    let [process] = &*report.processes else { panic!("{:?}", report.processes) };
    let calls = &lines_of_books(&run.output)[0]["calls"];
    for (role, calls) in calls.as_object().unwrap() {
        // There the compiler is free to enter one destructor through another.
        if let Some(found) = calls_of(process, role).filter(|_| role != "allocator_end") {
            assert_eq!(found, calls.as_u64().unwrap(), "calls of {role}");
        }
    }
    report
}

/// The report of a run in which every process had a runtime of this era and nothing was lost.
#[track_caller]
fn tracked(run: &Run, era: Era) -> &Report {
    let report = run.report();
    assert_eq!((report.integrity.dropped, report.integrity.torn), (0, 0));
    for process in &report.processes {
        let runtime = process.runtime.as_ref().unwrap_or_else(|| panic!("{}", run.describe()));
        assert_eq!(runtime.era.as_deref(), Some(era.letter()));
        assert!(Path::new(&runtime.path).is_file() && runtime.build_id.is_some());
    }
    assert!(report.devices.iter().all(|device| device.arch == "wormhole_b0"));
    report
}

/// How often the functions of a role were called; None if none is hooked in this era.
fn calls_of(process: &Process, role: &str) -> Option<u64> {
    let hooks = &process.runtime.as_ref()?.hooks;
    let of_role = hooks.iter().filter(|hook| hook.role == role).map(|hook| hook.calls);
    of_role.reduce(|a, b| Some(a? + b?))?
}

/// What the report says of one process, in the form of the runtime's books.
fn books_of(report: &Report, pid: u32) -> Value {
    let report = serde_json::to_value(report).unwrap();
    let of_process = |field: &str, other: &str| -> Vec<Value> {
        let mut entries = report[field].as_array().unwrap().clone();
        entries.retain(|entry| entry["pid"] == pid);
        for entry in &mut entries {
            entry.as_object_mut().unwrap().retain(|key, _| key != "pid" && key != other);
        }
        entries
    };
    let mut devices = of_process("devices", "arch");
    for memory in devices.iter_mut().flat_map(|device| device["memory"].as_array_mut().unwrap()) {
        memory["peak"].as_object_mut().unwrap().remove("time_ns");
    }
    sorted(devices, of_process("live_buffers", "allocated_ns"))
}

/// The runtime's books, as often as the program printed them.
fn printed(output: &Output) -> Vec<Value> {
    let lines = lines_of_books(output);
    let list = |value: &Value| value.as_array().unwrap().clone();
    lines
        .iter()
        .map(|books| sorted(list(&books["devices"]), list(&books["live_buffers"])))
        .collect()
}

fn sorted(devices: Vec<Value>, mut live_buffers: Vec<Value>) -> Value {
    live_buffers.sort_by_key(|buffer| buffer.to_string());
    serde_json::json!({ "devices": devices, "live_buffers": live_buffers })
}

#[track_caller]
fn lines_of_books(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().filter(|line| line.starts_with('{'));
    let books: Vec<_> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!books.is_empty(), "{output:?}");
    books
}

/// Two books are the same; if not, the message holds only what differs.
#[track_caller]
fn assert_books(found: &Value, expected: &Value) {
    fn differences(place: &str, found: &Value, expected: &Value, into: &mut Vec<String>) {
        let entries = |value: &Value| match value {
            Value::Object(fields) => fields.clone().into_iter().collect(),
            Value::Array(values) => values
                .iter()
                .enumerate()
                .map(|(at, value)| (at.to_string(), value.clone()))
                .collect(),
            _ => Vec::new(),
        };
        let (ours, theirs) = (entries(found), entries(expected));
        let keys =
            |entries: &[(String, Value)]| entries.iter().map(|(key, _)| key.clone()).collect();
        let (our_keys, their_keys): (BTreeSet<_>, BTreeSet<_>) = (keys(&ours), keys(&theirs));
        if ours.is_empty() || our_keys != their_keys {
            if found != expected {
                into.push(format!("{place}: {found}, but the runtime has {expected}"));
            }
            return;
        }
        for (key, value) in &ours {
            let other = theirs.iter().find(|(other, _)| other == key).map(|(_, value)| value);
            differences(&format!("{place}/{key}"), value, other.unwrap_or(&Value::Null), into);
        }
    }
    let mut different = Vec::new();
    differences("", found, expected, &mut different);
    assert!(different.is_empty(), "the books differ:\n{}", different.join("\n"));
}

/// Takes the peaks out of some books; returns the bytes that were reserved at each.
fn take_peaks(books: &mut Value) -> Vec<u64> {
    let devices = books["devices"].as_array_mut().unwrap();
    let memory = devices.iter_mut().flat_map(|device| device["memory"].as_array_mut().unwrap());
    memory.map(|memory| memory["peak"].take()["reserved_bytes"].as_u64().unwrap()).collect()
}

/// The same exit code, output and books.
#[track_caller]
fn assert_same(output: &Output, expected: &Output) {
    let text = |output: &Output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().filter(|line| !line.starts_with('{')).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(output.status, expected.status, "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text(output), text(expected));
    assert_eq!(printed(output), printed(expected));
}
