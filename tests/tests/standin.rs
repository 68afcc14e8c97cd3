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
use ttalloc::ledger::MemoryType;
use ttalloc::report::{Exit, HookEngine, Occasion, Process, Report};
use ttalloc_symbols::{Era, SYMBOLS, Symbol, Use};
use ttalloc_tests::releases::facts;
use ttalloc_tests::standin::{Compiler, Standin};
use ttalloc_tests::{Run, programs, read_report, run};

type Case = fn(&Compiler, Era);
type FirstCase = fn(&Standin);

const CASES: &[(&str, Case)] = &[
    ("exports_what_the_release_does", exports_what_the_release_does),
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
    ("optional_symbols_missing", optional_symbols_missing),
    ("device_missing", device_missing),
    ("reconciled", reconciled),
    ("reconciled_with_less", reconciled_with_less),
    ("reconciled_under_capture", reconciled_under_capture),
    ("reconciled_in_a_race", reconciled_in_a_race),
    ("reconciled_after_a_fork", reconciled_after_a_fork),
    ("a_difference_is_reported", a_difference_is_reported),
    ("nothing_is_lost_by_asking", nothing_is_lost_by_asking),
    ("core_by_core", core_by_core),
    ("other_hash_table", other_hash_table),
    ("other_interposer", other_interposer),
    ("nested", nested),
    ("endless", endless),
    ("laid_out", laid_out),
    ("program_exceptions", program_exceptions),
    ("program_exceptions_out_of_sight", program_exceptions_out_of_sight),
];

/// The same with the names of 0.60.1.
const FIRST_RELEASE: &[(&str, FirstCase)] = &[
    ("exports_what_the_release_does", |standin| check_exports(standin, "0.60.1")),
    ("matmul", |standin| check_matmul(standin, Era::A)),
    ("storm", |standin| check_storm(&run(&standin.program("storm"), |_| {}), Era::A)),
    ("lifecycle", |standin| {
        check_lifecycle(&run(&standin.program("lifecycle"), |_| {}), Era::A);
    }),
    ("lifecycle_out_of_sight", |standin| check_lifecycle(&out_of_sight(standin), Era::A)),
    ("exceptions", |standin| {
        let program = standin.program("exceptions");
        let alone = Command::new(&program).output().unwrap();
        check_exceptions(&run(&program, |_| {}), &alone, Era::A, 1);
    }),
    ("laid_out", |standin| check_laid_out(standin, Era::A)),
    ("program_exceptions", |standin| {
        let program = standin.program("program_exceptions");
        let alone = Command::new(&program).output().unwrap();
        check_exceptions(&run(&program, |_| {}), &alone, Era::A, 0);
    }),
];

/// What the stand-in's chips are.
const ARCH: &str = "wormhole_b0";

/// What a build in which calls don't go through the PLT is tested with.
type BuildCase = fn(&Compiler, Era, Build);

const BUILD_CASES: &[(&str, BuildCase)] = &[
    ("storm", built_storm),
    ("lifecycle", built_lifecycle),
    ("exceptions", built_exceptions),
    ("forked", built_forked),
];

/// What a compiler puts into the callers of a hidden function nobody can see, and it would be counted here.
const NOT_INLINED: &str = "-fno-inline";

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
    for &(name, case) in FIRST_RELEASE {
        let compiler = compiler.clone();
        let runner = move || {
            let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
            let standin = compiler.map(|compiler| Standin::first_release(&compiler, folder));
            standin.map(|standin| case(&standin)).map_err(Failed::from)
        };
        trials.push(Trial::test(format!("{name}::0.60.1"), runner));
    }
    let no_compiler = compiler.is_err();
    let trials = trials.into_iter().map(|trial| trial.with_ignored_flag(no_compiler)).collect();
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

fn exports_what_the_release_does(compiler: &Compiler, era: Era) {
    let release = match era {
        Era::A => "0.65.0",
        Era::B => "0.76.0",
        Era::C => "0.81.1",
    };
    check_exports(&standin(compiler, era, &[]), release);
}

/// Of the catalogue's names, the stand-in has those that the release has: byte for byte.
fn check_exports(standin: &Standin, release: &str) {
    let facts = facts(release);
    assert_eq!(standin.library().file_name().unwrap(), &*facts.file);
    let bytes = std::fs::read(standin.library()).unwrap();
    let library = object::File::parse(&*bytes).unwrap();
    let names: BTreeSet<_> = SYMBOLS.iter().map(|symbol| symbol.name).collect();
    let exported: BTreeSet<_> = library
        .dynamic_symbols()
        .filter(|symbol| symbol.is_definition())
        .map(|symbol| symbol.name().unwrap())
        .filter(|name| names.contains(name))
        .collect();
    let symbols = facts.roles.iter().flat_map(|role| &role.symbols);
    let expected: BTreeSet<_> = symbols.map(|one| &*one.symbol).collect();
    let lacking: Vec<_> = expected.difference(&exported).collect();
    let beyond: Vec<_> = exported.difference(&expected).collect();
    assert!(
        lacking.is_empty() && beyond.is_empty(),
        "not {release}'s: lacks {lacking:#?}, has {beyond:#?}"
    );
}

/// Programs, traces, planned buffers, sub-devices and other allocators, in a process and a forked child.
fn laid_out(compiler: &Compiler, era: Era) {
    check_laid_out(&standin(compiler, era, &[]), era);
}

fn check_laid_out(standin: &Standin, era: Era) {
    let run = run(&standin.program("programs"), |_| {});
    let report = tracked(&run, era, ARCH);
    assert_eq!(report.exit, Exit::Code(0), "{}", run.describe());
    let [parent, child] = &*report.processes else { panic!("{}", run.describe()) };
    let [of_child, of_parent] = &*printed(&run.output) else { panic!("{}", run.describe()) };
    assert_books(&books_of(report, parent.pid), of_parent);
    assert_books(&books_of(report, child.pid), of_child);
    assert_calls(parent, &lines_of_books(&run.output)[1]);
    let integrity = &report.integrity;
    assert!(integrity.complete, "{:?}", integrity.problems);
    assert_eq!((integrity.external_placements, integrity.programs_left_out), (0, 0));
    let same: Vec<_> = report
        .programs
        .iter()
        .filter(|one| one.kernels == ["the same kernel", "another"])
        .collect();
    let [same] = &*same else { panic!("{same:?}") };
    assert_eq!((same.objects, same.runs, same.live), (400, 440, 5));
    // The programs that the figures of a chip name are those.
    let devices = || report.devices.iter().filter(|device| device.circular_buffers.is_some());
    assert_eq!(devices().count(), 4 + 1 + 4, "the mesh's and a single chip, and the child's");
    for device in devices() {
        let circular = device.circular_buffers.as_ref().unwrap();
        let named = |place: Option<u64>| &report.programs[usize::try_from(place.unwrap()).unwrap()];
        let (largest, headroom) = (circular.largest.as_ref(), circular.headroom.as_ref());
        for program in [largest.unwrap().program, headroom.unwrap().program].map(named) {
            assert!(program.pid == device.pid && program.chips.contains(&device.chip));
            assert!(program.runs > 0);
        }
    }
}

fn matmul(compiler: &Compiler, era: Era) {
    check_matmul(&standin(compiler, era, &[]), era);
}

fn check_matmul(standin: &Standin, era: Era) {
    let run = run(&standin.program("matmul_multicore_reuse"), |_| {});
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
    check_lifecycle(&out_of_sight(&standin(compiler, era, &[])), era);
}

fn out_of_sight(standin: &Standin) -> Run {
    let module = standin.module("lifecycle");
    run(&standin.host(), |command| {
        command.arg(module);
    })
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
    let report = tracked(run, era, ARCH);
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
    // A free is recorded before it is tried. One failed, so its repetition finds nothing.
    check_exceptions(&run(&program, |_| {}), &alone, era, 1);
}

fn exceptions_out_of_sight(compiler: &Compiler, era: Era) {
    let (run, alone) = with_and_without(&standin(compiler, era, &[]), "exceptions");
    check_exceptions(&run, &alone, era, 1);
}

fn program_exceptions(compiler: &Compiler, era: Era) {
    let program = standin(compiler, era, &[]).program("program_exceptions");
    let alone = Command::new(&program).output().unwrap();
    check_exceptions(&run(&program, |_| {}), &alone, era, 0);
}

fn program_exceptions_out_of_sight(compiler: &Compiler, era: Era) {
    let (run, alone) = with_and_without(&standin(compiler, era, &[]), "program_exceptions");
    check_exceptions(&run, &alone, era, 0);
}

/// A program as a module, with ttalloc and without.
fn with_and_without(standin: &Standin, name: &str) -> (Run, Output) {
    let (host, module) = (standin.host(), standin.module(name));
    let alone = Command::new(&host).arg(&module).output().unwrap();
    let run = run(&host, |command| {
        command.arg(&module);
    });
    (run, alone)
}

#[track_caller]
fn check_exceptions(run: &Run, alone: &Output, era: Era, unknown_frees: u64) {
    assert_eq!(alone.status.code(), Some(3), "{alone:?}");
    assert_same(&run.output, alone);
    let report = tracked(run, era, ARCH);
    assert_books(&books_of(report, report.processes[0].pid), &printed(&run.output)[0]);
    let integrity = &report.integrity;
    let wrong = (integrity.unknown_frees, integrity.bad_records, integrity.unattributed);
    assert_eq!(wrong, (unknown_frees, 0, 0));
}

/// The preload library that is switched off, or is told of something that is no ring, does nothing; in the
/// second case it says so.
fn no_ring(compiler: &Compiler, era: Era) {
    let standin = standin(compiler, era, &[]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, vec![0; 1 << 20]).unwrap();
    let id = "@0123456789abcdef";
    let rings: [(OsString, bool); 7] = [
        (format!("/no/such/file{id}").into(), false),
        ("nonsense".into(), true),
        ("/no/such/file".into(), true),
        (format!("/dev/null{id}").into(), true),
        (format!("{}{id}", folder.path().display()).into(), false),
        (format!("{}{id}", file.display()).into(), true),
        ("x".repeat(5000).into(), true),
    ];
    for name in ["exceptions", "lifecycle", "program_exceptions"] {
        let program = standin.program(name);
        let alone = Command::new(&program).output().unwrap();
        let preloaded = || {
            let mut command = Command::new(&program);
            command.env("LD_PRELOAD", &programs().shim);
            command
        };
        assert_untouched(&preloaded().env("TTALLOC", "off").output().unwrap(), &alone, false);
        for (ring, is_told) in &rings {
            let output = preloaded().env("TTALLOC_RING", ring).output().unwrap();
            assert_untouched(&output, &alone, *is_told);
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
    let child: u32 = run.stdout().trim().parse().unwrap();
    // SAFETY: ends a process that the program left behind, if it is still there.
    let still_there = unsafe { libc::kill(child as i32, libc::SIGKILL) } == 0;
    assert!(still_there, "the launcher waited for it");
    let report = run.report();
    assert!(report.snapshot && report.integrity.complete, "{}", run.describe());
    let ending = |report: &Report| {
        let found = report.processes.iter().find(|process| process.pid == child);
        found.and_then(|process| process.exit.clone())
    };
    assert_eq!((&report.exit, ending(report)), (&Exit::Code(0), Some(Exit::Running(true))));
    let integrity = &report.integrity;
    assert_eq!(integrity.dropped + integrity.torn + integrity.unknown_frees, 0);
    assert!(run.stderr().contains(&format!("process {child} still runs; process ")));
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
                let options = ["-O2", "-fvisibility=hidden", NOT_INLINED];
                let standin = standin(compiler, era, &options);
                (standin.host(), vec![standin.whole_module(name)])
            }
            Build::WholeProgram => {
                let options = ["-O2", "-fvisibility=hidden", NOT_INLINED];
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
    check_exceptions(&run, &alone, era, 1);
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
    // clang has one destructor call another directly.
    let mut others = hooks.iter().filter(|hook| hook.role != "allocator_end");
    assert!(others.all(|hook| hook.engine == HookEngine::Preload), "{hooks:?}");
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
        assert!(problem.contains("nothing can be tracked"), "{problem}");
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
        let gone = "/no/such/file@0123456789abcdef";
        for (name, value) in
            [("TTALLOC", "off"), ("TTALLOC_RING", gone), ("TTALLOC_RING", "/dev/null")]
        {
            let mut command = Command::new(&program);
            command.env("LD_PRELOAD", &programs().shim).env("TTALLOC_ENGINE", engine);
            let output = command.env(name, value).output().unwrap();
            assert_untouched(&output, &alone, value == "/dev/null");
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
    let program = standin(compiler, era, &["-DWITHOUT_NUM_BANKS", "-s"]).program("exceptions");
    let alone = Command::new(&program).output().unwrap();
    let run = run(&program, |_| {});
    assert_same(&run.output, &alone);
    let report = run.report();
    let [problem] = &*report.integrity.problems else { panic!("{:?}", report.integrity) };
    assert!(problem.contains("libtt_metal.so"), "{problem}");
    assert!(problem.ends_with("does not export what is needed for: num_banks"), "{problem}");
    assert!(!report.integrity.complete);
    assert_eq!(report.processes[0].runtime.as_ref().unwrap().era, None);
    assert!(report.devices.is_empty() && report.live_buffers.is_empty());
    assert_eq!(gaps(report), ["num_banks"]);
}

/// Without what is not required the rest is tracked, and the report says what is lost.
fn optional_symbols_missing(compiler: &Compiler, era: Era) {
    let standin = standin(compiler, era, &["-DWITHOUT_OPTIONAL", "-s"]);
    let run = run(&standin.program("matmul_multicore_reuse"), |_| {});
    let report = tracked(&run, era, "unknown (0)");
    let mut expected = vec!["alignment", "bank_size", "mesh_allocator", "mesh_arch", "mesh_id"];
    expected.push("page_size");
    if era == Era::C {
        expected.push("size");
    }
    assert_eq!(gaps(report), expected);
    let problems = &report.integrity.problems;
    assert!(!report.integrity.complete && problems.len() == expected.len(), "{problems:?}");
    for (problem, role) in problems.iter().zip(&expected) {
        let cost = ttalloc_symbols::role(role).cost;
        assert!(problem.ends_with(&format!("libtt_metal.so has no symbol for {role}: {cost}")));
        assert!(run.stderr().contains(&format!("ttalloc: incomplete: {problem}")));
    }
    let dram = &report.devices[0].memory[0];
    assert_eq!((dram.banks, dram.bank_bytes), (12, 0));
    let payload = if era == Era::C { 0 } else { 3 * 819_200 };
    assert_eq!(dram.peak.totals.bytes_per_bank, 3 * 34 * 2048);
    assert_eq!((dram.peak.totals.buffers, dram.peak.totals.bytes), (3, payload));
    assert_eq!((dram.allocations, dram.frees, dram.live.buffers), (3, 3, 0));
    assert!(report.meshes.iter().all(|mesh| mesh.mesh == -1 && mesh.chips == [0]));
    assert!(!report.meshes.is_empty());
    let integrity = &report.integrity;
    assert_eq!((integrity.unattributed, integrity.bad_records, integrity.unknown_frees), (0, 0, 0));
}

/// Where a buffer can't tell its device, the mesh that has the allocator does.
fn device_missing(compiler: &Compiler, era: Era) {
    let standin = standin(compiler, era, &["-DWITHOUT_DEVICE", "-s"]);
    let run = run(&standin.program("storm"), |_| {});
    let report = tracked(&run, era, ARCH);
    let expected: &[&str] = if era == Era::C { &["device"] } else { &[] };
    assert_eq!(gaps(report), expected);
    let mut books = printed(&run.output).remove(0);
    let mut found = books_of(report, report.processes[0].pid);
    take_peaks(&mut books);
    take_peaks(&mut found);
    assert_books(&found, &books);
    assert_eq!(report.integrity.unattributed, 0);
}

/// The roles that the first process's runtime lacks, sorted.
fn gaps(report: &Report) -> Vec<&str> {
    let runtime = report.processes[0].runtime.as_ref().unwrap();
    let mut roles: Vec<_> = runtime.gaps.iter().map(|gap| &*gap.role).collect();
    roles.sort_unstable();
    roles
}

fn story(standin: &Standin, name: &str) -> Run {
    run(&standin.program("reconcile"), |command| {
        command.arg(name);
    })
}

/// Compared, agreed, differed, skipped.
fn counts(report: &Report) -> [u64; 4] {
    let found = &report.integrity.reconciled;
    [found.compared, found.agreed, found.differed, found.skipped]
}

#[track_caller]
fn ended_well(run: &Run) -> &Report {
    assert!(run.output.status.success(), "{}", run.describe());
    run.report()
}

fn reconciled(compiler: &Compiler, era: Era) {
    let mut variants = vec![standin(compiler, era, &[])];
    if era == Era::B {
        // The later releases of the era have a smaller structure.
        variants.push(standin(compiler, era, &["-DSHORT_STATISTICS"]));
    }
    for standin in variants {
        let run = story(&standin, "agree");
        let report = ended_well(&run);
        assert!(report.integrity.complete, "{:?}", report.integrity.problems);
        // Six failures of a type with banks; three devices with allocators that were used.
        assert_eq!(counts(report), [9, 9, 0, 0]);
        let rooms: Vec<_> = report
            .failures
            .iter()
            .map(|one| (one.kind, one.free_bytes_per_bank, one.largest_free_block_per_bank))
            .collect();
        // In a bank of DRAM 9 pages of 2,048 bytes are taken, and then given back.
        let dram = (1 << 30) - 32;
        let l1 = (1 << 20) - 13 * 2048;
        let of_device = (1 << 20) - 2048;
        assert_eq!(
            rooms,
            [
                (MemoryType::Dram, Some(dram - 9 * 2048), Some(dram - 9 * 2048)),
                (MemoryType::Dram, Some(dram), Some(dram)),
                (MemoryType::L1, Some(l1), Some(l1)),
                (MemoryType::L1Small, Some(32768 - 32), Some(32768 - 32)),
                (MemoryType::Trace, Some(0), Some(0)),
                (MemoryType::L1, Some(of_device), Some(of_device)),
                (MemoryType::SystemMemory, None, None),
            ]
        );
        assert_eq!(report.failures[0].chips, [0, 1]);
        assert_eq!((report.failures[0].bytes, report.failures[0].banks), (1 << 40, 12));
        assert_eq!(report.further_failures, 0);
    }
}

/// Without the function that is asked, all else is as with it.
fn reconciled_with_less(compiler: &Compiler, era: Era) {
    let run = story(&standin(compiler, era, &["-DWITHOUT_STATISTICS", "-s"]), "agree");
    let report = ended_well(&run);
    let [problem] = &*report.integrity.problems else { panic!("{:?}", report.integrity.problems) };
    assert!(problem.contains("has no symbol for statistics: "), "{problem}");
    assert_eq!(counts(report), [0, 0, 0, 0]);
    assert_eq!(report.failures.len(), 7);
    assert!(report.failures.iter().all(|one| one.free_bytes_per_bank.is_none()));
}

fn reconciled_under_capture(compiler: &Compiler, era: Era) {
    let run = story(&standin(compiler, era, &[]), "capture");
    let report = ended_well(&run);
    assert_eq!(counts(report), [1, 1, 0, 0]);
    assert_eq!(report.devices[0].memory[0].live_at_close.unwrap().buffers, 1);
}

fn reconciled_in_a_race(compiler: &Compiler, era: Era) {
    let run = story(&standin(compiler, era, &[]), "race");
    let report = ended_well(&run);
    assert!(report.integrity.complete, "{:?}", report.integrity.problems);
    let [compared, agreed, differed, skipped] = counts(report);
    assert_eq!((agreed, differed), (compared, 0));
    // Every failure is asked about, and so is every close: when nothing goes on the answer counts.
    assert_eq!(compared + skipped, 3000 + 10 + 1);
    assert!(compared > 10, "{compared}");
    assert_eq!(report.failures.len() as u64 + report.further_failures, 3000);
}

fn reconciled_after_a_fork(compiler: &Compiler, era: Era) {
    let run = story(&standin(compiler, era, &[]), "forked");
    let report = ended_well(&run);
    assert!(report.integrity.complete, "{:?}", report.integrity.problems);
    // The child's failure on what it inherited is skipped, and so is its close of that. What it opened
    // itself is compared, and so is what the parent opened.
    assert_eq!(counts(report), [2, 2, 0, 2]);
}

fn a_difference_is_reported(compiler: &Compiler, era: Era) {
    let run = story(&standin(compiler, era, &[]), "exaggerate");
    let report = ended_well(&run);
    assert_eq!(counts(report), [3, 1, 2, 0]);
    let differences = &report.integrity.reconciled.differences;
    let told: Vec<_> = differences
        .iter()
        .map(|one| (one.kind, one.at, one.bytes_per_bank, one.runtime_bytes_per_bank))
        .collect();
    let l1 = 2 * 2048;
    assert_eq!(
        told,
        [
            (MemoryType::Dram, Occasion::FailedAllocation, 0, 4096),
            (MemoryType::Dram, Occasion::Close, 0, 4096),
            (MemoryType::L1, Occasion::Close, l1, l1 + 4096),
            (MemoryType::L1Small, Occasion::Close, 0, 4096),
            (MemoryType::Trace, Occasion::Close, 0, 4096),
        ]
    );
    assert!(differences.iter().all(|one| one.chips == [0, 1]));
    assert!(!report.integrity.complete);
    let [problem] = &*report.integrity.problems else { panic!("{:?}", report.integrity.problems) };
    assert!(problem.contains("2 times") && problem.contains("4096 bytes of DRAM"), "{problem}");
    assert!(run.stderr().contains(&format!("ttalloc: incomplete: {problem}")), "{}", run.stderr());
}

fn nothing_is_lost_by_asking(compiler: &Compiler, era: Era) {
    let run = story(&standin(compiler, era, &[]), "memory");
    assert_eq!(counts(ended_well(&run)), [5002, 5002, 0, 0]);
}

fn core_by_core(compiler: &Compiler, era: Era) {
    let run = story(&standin(compiler, era, &[]), "hybrid");
    let report = ended_well(&run);
    assert!(report.integrity.complete, "{:?}", report.integrity.problems);
    // Era A knows nothing of it.
    let expected = if era == Era::A { [2, 2, 0, 0] } else { [1, 1, 0, 1] };
    assert_eq!(counts(report), expected);
}

/// The report of a run of one process, in which all is known.
#[track_caller]
fn whole(run: &Run, era: Era) -> &Report {
    whole_but(run, era, 0)
}

/// The same with so many buffers where nothing was allocated.
#[track_caller]
fn whole_but(run: &Run, era: Era, external_placements: u64) -> &Report {
    let report = tracked(run, era, ARCH);
    assert_eq!(report.exit, Exit::Code(0), "{}", run.describe());
    let integrity = &report.integrity;
    assert!(integrity.complete, "{:?}", integrity.problems);
    assert_eq!(integrity.inherited_frees, 0);
    assert_eq!(integrity.external_placements, external_placements);
    let [process] = &*report.processes else { panic!("{:?}", report.processes) };
    assert_calls(process, &lines_of_books(&run.output)[0]);
    report
}

/// Every call was seen.
#[track_caller]
fn assert_calls(process: &Process, books: &Value) {
    for (role, calls) in books["calls"].as_object().unwrap() {
        // There the compiler is free to enter one destructor through another.
        if let Some(found) = calls_of(process, role).filter(|_| role != "allocator_end") {
            assert_eq!(found, calls.as_u64().unwrap(), "calls of {role}");
        }
    }
}

/// The report of a run in which every process had a runtime of this era and nothing was lost.
#[track_caller]
fn tracked<'a>(run: &'a Run, era: Era, arch: &str) -> &'a Report {
    let report = run.report();
    assert_eq!((report.integrity.dropped, report.integrity.torn), (0, 0));
    for process in &report.processes {
        let runtime = process.runtime.as_ref().unwrap_or_else(|| panic!("{}", run.describe()));
        assert_eq!(runtime.era.as_deref(), Some(era.letter()));
        assert!(Path::new(&runtime.path).is_file() && runtime.build_id.is_some());
    }
    assert!(report.devices.iter().all(|device| device.arch == arch));
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
            entry
                .as_object_mut()
                .unwrap()
                .retain(|key, _| !["pid", "process", other].contains(&key.as_str()));
        }
        entries
    };
    let devices = of_process("devices", "arch");
    let mut traces = of_process("traces", "captured_ns");
    for trace in traces.iter_mut().map(|trace| trace.as_object_mut().unwrap()) {
        let released = trace.remove("released_ns").unwrap();
        trace.insert("released".to_owned(), (!released.is_null()).into());
    }
    let mut programs = of_process("programs", "first_ns");
    for program in &mut programs {
        program.as_object_mut().unwrap().remove("last_ns");
    }
    let mut books = serde_json::json!({
        "devices": devices,
        "live_buffers": of_process("live_buffers", "allocated_ns"),
        "programs": programs,
        "traces": traces,
        "overlaps": of_process("overlaps", "time_ns"),
    });
    for list in ["memory", "planned"] {
        for peak in peaks(&mut books, list) {
            peak.as_object_mut().unwrap().remove("time_ns");
        }
    }
    sorted(books)
}

/// The peaks in one of the lists of each chip, with those of its purposes.
fn peaks<'a>(books: &'a mut Value, list: &str) -> Vec<&'a mut Value> {
    let mut peaks = Vec::new();
    for device in books["devices"].as_array_mut().unwrap() {
        for one in device[list].as_array_mut().unwrap() {
            let one = one.as_object_mut().unwrap();
            for (key, value) in one {
                match key.as_str() {
                    "peak" => peaks.push(value),
                    "purposes" => {
                        let purposes = value.as_array_mut().unwrap().iter_mut();
                        peaks.extend(purposes.map(|purpose| &mut purpose["peak"]));
                    }
                    _ => {}
                }
            }
        }
    }
    peaks
}

/// The runtime's books, as often as the program printed them.
fn printed(output: &Output) -> Vec<Value> {
    let mut lines = lines_of_books(output);
    for books in &mut lines {
        books.as_object_mut().unwrap().remove("calls");
    }
    lines.into_iter().map(sorted).collect()
}

/// Lists whose order says nothing are put in one.
fn sorted(mut books: Value) -> Value {
    fn sort(list: &mut Value) {
        list.as_array_mut().unwrap().sort_by_key(|entry| entry.to_string());
    }
    for program in books["programs"].as_array_mut().unwrap() {
        sort(&mut program["circular_buffers"]);
    }
    for device in books["devices"].as_array_mut().unwrap() {
        for memory in device["memory"].as_array_mut().unwrap() {
            sort(&mut memory["purposes"]);
        }
    }
    ["live_buffers", "programs", "overlaps"].iter().for_each(|list| sort(&mut books[*list]));
    books
}

#[track_caller]
fn lines_of_books(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().filter(|line| line.starts_with('{'));
    let books: Vec<_> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!books.is_empty(), "{output:?}");
    books
}

/// Two books are the same in all that the runtime's have; if not, the message holds only what differs.
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
        let (mut ours, theirs) = (entries(found), entries(expected));
        let keys =
            |entries: &[(String, Value)]| entries.iter().map(|(key, _)| key.clone()).collect();
        let their_keys: BTreeSet<_> = keys(&theirs);
        if found.is_object() && !theirs.is_empty() {
            // The report tells more than the stand-in keeps books of.
            ours.retain(|(key, _)| their_keys.contains(key));
        }
        let our_keys: BTreeSet<_> = keys(&ours);
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
    let peaks = peaks(books, "memory").into_iter();
    peaks.map(|peak| peak.take()["reserved_bytes"].as_u64().unwrap()).collect()
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

/// Like [`assert_same`], with the same on standard error, but for a line of why a process isn't tracked.
#[track_caller]
fn assert_untouched(output: &Output, alone: &Output, is_told: bool) {
    assert_same(output, alone);
    let text = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let (found, expected) = (text(output), text(alone));
    let is_ours = |line: &&str| line.starts_with("ttalloc: process ");
    let (ours, others): (Vec<_>, Vec<_>) = found.lines().partition(is_ours);
    assert_eq!(others, expected.lines().collect::<Vec<_>>());
    assert_eq!(ours.len(), usize::from(is_told), "{found}");
}
