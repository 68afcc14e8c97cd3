//! `ttalloc doctor` and `ttalloc facts` on stand-ins that are built in every way, on the real runtime, and
//! on what is neither.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a case fails by panicking")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

use libtest_mimic::{Arguments, Failed, Trial};
use ttalloc::binary::{Table, Way};
use ttalloc::demo::python;
use ttalloc::doctor::{Diagnosis, Reach};
use ttalloc::facts::Facts;
use ttalloc_symbols::{Era, ROLES, role};
use ttalloc_tests::releases::facts;
use ttalloc_tests::standin::{Compiler, Standin};
use ttalloc_tests::{programs, real};

type Build = fn(&Compiler, Era);
type Other = fn(&Compiler);

const PROGRAM: &str = "matmul_multicore_reuse";

/// On stand-ins; they need a C++ compiler.
const BUILDS: &[(&str, Build)] = &[
    ("ordinary", ordinary),
    ("symbolic", symbolic),
    ("hidden", hidden),
    ("in_the_program", in_the_program),
    ("optional_missing", optional_missing),
    ("required_missing", required_missing),
];
const OTHERS: &[(&str, Other)] = &[
    ("first_release", first_release),
    ("statically_linked", statically_linked),
    ("library_not_found", library_not_found),
    ("nothing_named", nothing_named),
];
/// On anything else.
const INPUTS: &[(&str, fn())] = &[
    ("no_such_file", no_such_file),
    ("folder", folder),
    ("script", script),
    ("not_elf", not_elf),
    ("other_architectures", other_architectures),
    ("damaged", damaged),
    ("without_tt_metal", without_tt_metal),
    ("bad_python", bad_python),
];
/// The releases that the tests on the real runtime install.
const RELEASES: [&str; 4] = ["0.66.0", "0.76.0", "0.80.0", "0.81.1"];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let compiler = Compiler::find();
    let in_ci = std::env::var_os("CI").is_some();
    if let Err(why) = &compiler {
        eprintln!("\nTHE TESTS ON THE STAND-IN RUNTIME NEED A C++ COMPILER: {why}\n");
        if in_ci {
            return ExitCode::FAILURE;
        }
    }
    let no_python = real::available().err();
    if let Some(why) = &no_python {
        eprintln!("\nTHE TESTS ON THE REAL RUNTIME ARE IGNORED: {why}\n");
    }
    let mut trials = Vec::new();
    let no_compiler = compiler.is_err();
    let with_compiler = |name: String, case: Box<dyn FnOnce(&Compiler) + Send>| {
        let compiler = compiler.clone();
        let runner = move || compiler.map(|compiler| case(&compiler)).map_err(Failed::from);
        Trial::test(name, runner).with_ignored_flag(no_compiler)
    };
    for &(name, case) in BUILDS {
        for era in Era::ALL {
            let name = format!("{name}::{}", era.letter().to_lowercase());
            trials.push(with_compiler(name, Box::new(move |compiler| case(compiler, era))));
        }
    }
    for &(name, case) in OTHERS {
        trials.push(with_compiler(name.to_owned(), Box::new(case)));
    }
    for &(name, case) in INPUTS {
        trials.push(Trial::test(name, move || {
            case();
            Ok(())
        }));
    }
    let with_python = |name: String, case: Box<dyn FnOnce() + Send>| {
        let runner = move || {
            case();
            Ok(())
        };
        Trial::test(name, runner).with_ignored_flag(no_python.is_some())
    };
    for release in RELEASES {
        let name = format!("release::{release}");
        trials.push(with_python(name, Box::new(move || real_release(release))));
    }
    trials.push(with_python("python_without_ttnn".to_owned(), Box::new(python_without_ttnn)));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs a command of `ttalloc`.
fn ttalloc<A: AsRef<OsStr>>(arguments: &[A], prepare: impl FnOnce(&mut Command)) -> Output {
    let mut command = Command::new(&programs().ttalloc);
    command.args(arguments);
    prepare(&mut command);
    command.output().unwrap()
}

/// The doctor's diagnosis of a file, and its exit code.
#[track_caller]
fn doctor(file: &Path) -> (Diagnosis, i32) {
    diagnosed(&[OsStr::new("doctor"), file.as_os_str(), OsStr::new("--json")])
}

#[track_caller]
fn diagnosed(arguments: &[&OsStr]) -> (Diagnosis, i32) {
    let output = ttalloc(arguments, |_| {});
    let code = output.status.code().unwrap();
    match serde_json::from_slice::<Diagnosis>(&output.stdout) {
        Ok(diagnosis) => {
            assert_eq!(code, i32::from(!diagnosis.complete));
            (diagnosis, code)
        }
        Err(why) => panic!("{why}: {output:?}"),
    }
}

/// What the doctor tells a person.
#[track_caller]
fn text(file: &Path) -> String {
    let output = ttalloc(&[OsStr::new("doctor"), file.as_os_str()], |_| {});
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The message of a doctor that has nothing to judge.
#[track_caller]
fn refused<A: AsRef<OsStr>>(arguments: &[A], prepare: impl FnOnce(&mut Command)) -> String {
    let arguments: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
    let output = ttalloc(&[&[OsStr::new("doctor")], &*arguments].concat(), prepare);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(output.stdout.is_empty());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("ttalloc: ") && said.lines().count() == 1, "{said}");
    said
}

#[track_caller]
fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

fn cache() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

fn standin(compiler: &Compiler, era: Era, further: &[&str]) -> Standin {
    Standin::new(compiler, cache(), era, further)
}

/// The reach of each role that this runtime has, by whether it is hooked.
fn reaches(diagnosis: &Diagnosis, hooked: bool) -> Vec<Reach> {
    let verdicts = diagnosis.roles.iter();
    verdicts
        .filter(|verdict| verdict.hooked == hooked && verdict.reach != Reach::Unneeded)
        .map(|verdict| verdict.reach)
        .collect()
}

#[track_caller]
fn assert_all(reaches: &[Reach], expected: Reach) {
    assert!(reaches.len() >= 10 && reaches.iter().all(|&reach| reach == expected), "{reaches:?}");
}

/// The ways to a role's symbols.
fn ways(diagnosis: &Diagnosis, role: &str) -> Vec<Way> {
    let verdict = diagnosis.roles.iter().find(|verdict| verdict.role == role).unwrap();
    verdict.symbols.iter().flat_map(|symbol| symbol.ways.clone()).collect()
}

fn ordinary(compiler: &Compiler, era: Era) {
    let standin = standin(compiler, era, &[]);
    let library = standin.library();
    // The program leads to the library.
    for file in [standin.program(PROGRAM), standin.module(PROGRAM), library.clone()] {
        check_ordinary(&file, &library, era);
    }
}

fn first_release(compiler: &Compiler) {
    let standin = Standin::first_release(compiler, cache());
    let library = standin.library();
    assert!(library.ends_with("_ttnncpp.so"));
    for file in [standin.program(PROGRAM), library.clone()] {
        check_ordinary(&file, &library, Era::A);
    }
}

#[track_caller]
fn check_ordinary(file: &Path, library: &Path, era: Era) {
    let (diagnosis, code) = doctor(file);
    assert_eq!(code, 0, "{diagnosis:?}");
    assert_eq!(fs::canonicalize(&diagnosis.runtime).unwrap(), fs::canonicalize(library).unwrap());
    assert_eq!(diagnosis.era.as_deref(), Some(era.letter()));
    assert!(diagnosis.build_id.is_some() && diagnosis.gaps.is_empty());
    assert_all(&reaches(&diagnosis, true), Reach::Preload);
    assert_all(&reaches(&diagnosis, false), Reach::Call);
    assert_eq!(ways(&diagnosis, "allocate"), [Way::Plt]);
    assert_eq!(diagnosis.roles.len(), ROLES.len());
    let text = text(file);
    assert!(text.contains("by LD_PRELOAD") && text.ends_with("Everything can be tracked.\n"));
    assert!(!text.contains("--engine"));
}

/// The library's calls of its own functions are fixed.
fn symbolic(compiler: &Compiler, era: Era) {
    let standin = standin(compiler, era, &["-Wl,-Bsymbolic"]);
    let (diagnosis, code) = doctor(&standin.program(PROGRAM));
    assert_eq!(code, 0, "{diagnosis:?}");
    assert_eq!(ways(&diagnosis, "allocate"), [Way::Direct]);
    let allocate = &diagnosis.roles[0];
    assert_eq!((&*allocate.role, allocate.reach), ("allocate", Reach::Inline));
    assert_eq!(allocate.symbols[0].table, Table::Dynsym);
    // What only other files call is bound as ever; look-ups are calls of our own.
    for verdict in diagnosis.roles.iter().filter(|verdict| verdict.hooked) {
        let used = verdict.symbols.iter().any(|symbol| !symbol.ways.is_empty());
        let expected = match (verdict.symbols.is_empty(), used) {
            (true, _) => Reach::Unneeded,
            (_, true) => Reach::Inline,
            (_, false) => Reach::Preload,
        };
        assert_eq!(verdict.reach, expected, "{}", verdict.role);
    }
    assert_all(&reaches(&diagnosis, false), Reach::Call);
    assert_says(
        &text(&standin.library()),
        &["direct", "--engine auto", "Everything can be tracked"],
    );
    // Functions alone, as a build may choose: virtual tables are still bound by the dynamic linker.
    let functions = standin_with(compiler, era, "-Wl,-Bsymbolic-functions");
    let (of_functions, code) = doctor(&functions.library());
    assert_eq!((code, ways(&of_functions, "allocate")), (0, vec![Way::Direct]));
    // The words of virtual tables may be packed.
    let packed = ["-Wl,-Bsymbolic", "-Wl,-z,pack-relative-relocs"];
    let (of_packed, _) = doctor(&self::standin(compiler, era, &packed).library());
    assert_eq!(of_packed.roles, diagnosis.roles);
    assert_eq!(ways(&of_packed, "mesh_arch"), [Way::Direct]);
}

fn standin_with(compiler: &Compiler, era: Era, option: &str) -> Standin {
    standin(compiler, era, &[option])
}

/// Nothing is exported: the symbol table has it, until it is stripped.
fn hidden(compiler: &Compiler, era: Era) {
    let (diagnosis, code) = doctor(&standin_with(compiler, era, "-fvisibility=hidden").library());
    assert_eq!(code, 0, "{diagnosis:?}");
    assert_eq!(diagnosis.era.as_deref(), Some(era.letter()));
    assert_all(&reaches(&diagnosis, true), Reach::Inline);
    assert_all(&reaches(&diagnosis, false), Reach::Inline);
    assert_eq!(diagnosis.roles[0].symbols[0].table, Table::Symtab);
    let stripped = standin(compiler, era, &["-fvisibility=hidden", "-s"]).library();
    let said = refused(&[&stripped], |_| {});
    assert_says(&said, &["libtt_metal.so", "tt-metal's classes", "without stripping"]);
    // What is exported is there after stripping too.
    let stripped = standin_with(compiler, era, "-s").library();
    check_ordinary(&stripped, &stripped, era);
}

/// The runtime is linked into the program, where the dynamic linker looks first.
fn in_the_program(compiler: &Compiler, era: Era) {
    let standin = standin(compiler, era, &[]);
    for (options, table) in [(&[][..], Table::Symtab), (&["-rdynamic"], Table::Dynsym)] {
        let program = standin.whole_program(PROGRAM, options);
        let (diagnosis, code) = doctor(&program);
        assert_eq!(code, 0, "{diagnosis:?}");
        assert_eq!(Path::new(&diagnosis.runtime), program);
        assert_all(&reaches(&diagnosis, true), Reach::Inline);
        assert_eq!(diagnosis.roles[0].symbols[0].table, table);
    }
    let said = refused(&[&standin.whole_program(PROGRAM, &["-s"])], |_| {});
    assert_says(&said, &["tt-metal's classes", "without stripping"]);
}

/// A program without a dynamic linker has nobody who would preload anything.
fn statically_linked(compiler: &Compiler) {
    let program = standin(compiler, Era::C, &[]).whole_program(PROGRAM, &["-static"]);
    let (diagnosis, code) = doctor(&program);
    assert_eq!((code, diagnosis.gaps.len()), (1, 0));
    assert_says(&diagnosis.obstacle.unwrap(), &["statically linked", "link it dynamically"]);
    assert_says(&text(&program), &["Can't be tracked: ", "statically linked"]);
}

/// What is lost is said, and the rest is tracked.
fn optional_missing(compiler: &Compiler, era: Era) {
    let library = standin(compiler, era, &["-DWITHOUT_OPTIONAL", "-s"]).library();
    let (diagnosis, code) = doctor(&library);
    assert_eq!(code, 1);
    let mut expected = vec!["page_size", "bank_size", "alignment"];
    if era == Era::C {
        expected.insert(1, "size");
    }
    expected.extend(["mesh_allocator", "mesh_id", "mesh_arch"]);
    let gaps: Vec<_> = diagnosis.gaps.iter().map(|gap| &*gap.role).collect();
    assert_eq!(gaps, expected);
    let text = text(&library);
    for gap in &diagnosis.gaps {
        assert_eq!(gap.cost, role(&gap.role).cost);
        assert_says(&gap.advice, &["don't strip"]);
        assert_says(&text, &[&format!("Missing {}: {}.", gap.role, gap.cost)]);
    }
    assert_says(&text, &["What to do: ", "The rest can be tracked."]);
    assert_all(&reaches(&diagnosis, true), Reach::Preload);
    // Their names are still to be had where the symbol table is kept.
    let library = standin_with(compiler, era, "-DWITHOUT_OPTIONAL").library();
    let (diagnosis, code) = doctor(&library);
    assert_eq!(code, 0, "{diagnosis:?}");
    let inline = diagnosis.roles.iter().filter(|verdict| verdict.reach == Reach::Inline);
    assert_eq!(inline.map(|verdict| &*verdict.role).collect::<Vec<_>>(), expected);
}

fn required_missing(compiler: &Compiler, era: Era) {
    let library = standin(compiler, era, &["-DWITHOUT_NUM_BANKS", "-s"]).library();
    let (diagnosis, code) = doctor(&library);
    let gaps: Vec<_> = diagnosis.gaps.iter().map(|gap| &*gap.role).collect();
    assert_eq!((code, gaps), (1, vec!["num_banks"]));
    assert_says(&text(&library), &["Missing num_banks: ", "Nothing can be tracked."]);
}

/// As when a program is judged in another environment than it runs in.
fn library_not_found(compiler: &Compiler) {
    let standin = standin(compiler, Era::C, &[]);
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    fs::copy(standin.program(PROGRAM), &copy).unwrap();
    let said = refused(&[&copy], |_| {});
    assert_says(&said, &["libtt_metal.so can't be found", "LD_LIBRARY_PATH"]);
    let library = standin.library();
    let output = ttalloc(&[OsStr::new("doctor"), copy.as_os_str()], |command| {
        command.env("LD_LIBRARY_PATH", library.parent().unwrap());
    });
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

/// Without an argument the doctor looks around, and says where.
fn nothing_named(compiler: &Compiler) {
    let library = standin(compiler, Era::B, &[]).library();
    let folder = tempfile::tempdir().unwrap();
    let nowhere = |command: &mut Command| {
        command
            .env("PATH", folder.path())
            .env_remove("LD_LIBRARY_PATH")
            .env_remove("TT_METAL_HOME");
    };
    let said = refused::<&str>(&[], nowhere);
    assert_says(&said, &["no tt-metal was found", "python3", "LD_LIBRARY_PATH", "name a program"]);
    let output = ttalloc(&["doctor"], |command| {
        nowhere(command);
        command.env("LD_LIBRARY_PATH", library.parent().unwrap());
    });
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_says(&said, &["nothing was named", "libtt_metal.so in LD_LIBRARY_PATH"]);
    // And in the folder of a build.
    let build = folder.path().join("build/lib");
    fs::create_dir_all(&build).unwrap();
    std::os::unix::fs::symlink(&library, build.join("libtt_metal.so")).unwrap();
    let output = ttalloc(&["doctor"], |command| {
        nowhere(command);
        command.env("TT_METAL_HOME", folder.path());
    });
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

fn no_such_file() {
    assert_says(&refused(&["/no/such/file"], |_| {}), &["/no/such/file: no such file", "check"]);
    assert_says(&refused(&["no-such-program"], |_| {}), &["no such program", "PATH"]);
    let said = String::from_utf8(ttalloc(&["facts", "/no/such"], |_| {}).stderr).unwrap();
    assert_says(&said, &["no such file"]);
}

fn folder() {
    assert_says(&refused(&["/"], |_| {}), &["/ is a folder", "name a program"]);
}

fn written(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    (folder, path)
}

fn script() {
    let (_folder, path) = written("train", b"#!/usr/bin/env python3\nimport ttnn\n");
    let said = refused(&[&path], |_| {});
    assert_says(&said, &["is a script", "/usr/bin/env python3", "--python"]);
}

fn not_elf() {
    for bytes in [&b""[..], b"\x7f", b"hello", &[0; 4096]] {
        let (_folder, path) = written("file", bytes);
        assert_says(&refused(&[&path], |_| {}), &["is not an ELF file", "name a program"]);
    }
    assert_says(&refused(&["/dev/null"], |_| {}), &["not a regular file"]);
}

/// This test, as far as its header, for another machine.
fn header(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = fs::read(std::env::current_exe().unwrap()).unwrap();
    bytes.truncate(64);
    change(&mut bytes);
    bytes
}

fn other_architectures() {
    type Change = fn(&mut [u8]);
    let changes: [(Change, &str); 4] = [
        (|bytes| bytes[18] = 183, "AArch64"),
        (|bytes| bytes[18] = 243, "RISC-V"),
        (|bytes| bytes[4] = 1, "32-bit"),
        (|bytes| bytes[5] = 2, "big-endian"),
    ];
    for (change, name) in changes {
        let (_folder, path) = written("foreign", &header(change));
        assert_says(&refused(&[&path], |_| {}), &[name, "x86-64 programs only"]);
    }
}

/// A file that is cut anywhere, or has nonsense in it, is refused or judged, and nothing else.
fn damaged() {
    let (_folder, path) = written("cut", &header(|_| {}));
    assert_says(&refused(&[&path], |_| {}), &["is damaged", "again"]);
    let (_folder, path) = written("short", &header(|_| {})[..18]);
    assert_says(&refused(&[&path], |_| {}), &["ends within its header"]);
    let whole = fs::read("/bin/sh").unwrap();
    let mut object = whole.clone();
    object[16] = 1;
    let (_folder, path) = written("object.o", &object);
    assert_says(&refused(&[&path], |_| {}), &["object file"]);
    let mut without_sections = whole.clone();
    without_sections[0x28..0x30].fill(0);
    without_sections[0x3c..0x40].fill(0);
    let (_folder, path) = written("sstripped", &without_sections);
    assert_says(&refused(&[&path], |_| {}), &["no section headers", "strip(1)"]);
    for size in (64..whole.len()).step_by(whole.len() / 40) {
        let (_folder, path) = written("cut", &whole[..size]);
        refused(&[&path], |_| {});
        let mut bytes = whole.clone();
        bytes[size..].iter_mut().step_by(7).for_each(|byte| *byte = 0xff);
        let (_folder, path) = written("mixed", &bytes);
        refused(&[&path], |_| {});
    }
}

fn without_tt_metal() {
    let said = refused(&["ls"], |_| {});
    assert_says(&said, &["ls has no tt-metal in it", "--python"]);
    let own = std::env::current_exe().unwrap();
    assert_says(&refused(&[&own], |_| {}), &["has no tt-metal in it"]);
    let output = ttalloc(&[OsStr::new("facts"), own.as_os_str()], |_| {});
    assert_eq!(output.status.code(), Some(2));
    assert_says(&String::from_utf8(output.stderr).unwrap(), &["nothing of tt-metal"]);
}

fn bad_python() {
    let said = refused(&["--python", "/no/such/python"], |_| {});
    assert_says(&said, &["/no/such/python can't be asked", "name a working Python"]);
    let said = refused(&["--python", "false"], |_| {});
    assert_says(&said, &["false can't be asked", "exit status: 1"]);
    // Answers that are none.
    let (folder, path) = written("python", b"#!/bin/sh\necho /no/such/folder\n");
    let said = refused(&[OsStr::new("--python"), path.as_os_str()], |_| {});
    assert_says(&said, &["/no/such/folder", "install it again"]);
    fs::write(&path, format!("#!/bin/sh\necho {}\n", folder.path().display())).unwrap();
    fs::write(folder.path().join("_ttnn.so"), "no library").unwrap();
    let said = refused(&[OsStr::new("--python"), path.as_os_str()], |_| {});
    assert_says(&said, &["_ttnn.so is not an ELF file"]);
}

fn python_without_ttnn() {
    let python = python::find().unwrap().path;
    let folder = tempfile::tempdir().unwrap();
    let made =
        Command::new(python).args(["-m", "venv", "--without-pip"]).arg(folder.path()).status();
    assert!(made.unwrap().success());
    let python = folder.path().join("bin/python3");
    let said = refused(&[OsStr::new("--python"), python.as_os_str()], |_| {});
    assert_says(&said, &["has no package ttnn", "pip install ttnn"]);
}

/// The wheel's library is what its facts say, and all of it can be tracked.
fn real_release(release: &str) {
    let runtime = real::runtime(release);
    let python = runtime.python.as_os_str();
    let (diagnosis, code) =
        diagnosed(&["doctor".as_ref(), "--python".as_ref(), python, "--json".as_ref()]);
    assert_eq!(code, 0, "{diagnosis:?}");
    let facts = facts(release);
    assert_eq!((diagnosis.build_id, diagnosis.era), (facts.build_id.clone(), facts.era.clone()));
    assert!(Path::new(&diagnosis.runtime).ends_with("ttnn/build/lib/libtt_metal.so"));
    for verdict in &diagnosis.roles {
        let expected = match (verdict.symbols.is_empty(), verdict.hooked) {
            (true, _) => Reach::Unneeded,
            (false, true) => Reach::Preload,
            (false, false) => Reach::Call,
        };
        assert_eq!(verdict.reach, expected, "{}", verdict.role);
    }
    let output = ttalloc(&["facts", "--release", release, &diagnosis.runtime], |_| {});
    assert_eq!(serde_json::from_slice::<Facts>(&output.stdout).unwrap(), facts);
    // The same from the library that Python loads.
    let package = Path::new(&diagnosis.runtime).ancestors().nth(3).unwrap();
    let modules = fs::read_dir(package).unwrap().map(|entry| entry.unwrap().path());
    let module = modules.into_iter().find(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("_ttnn.") && name.ends_with(".so")
    });
    let (of_module, code) = doctor(&module.unwrap());
    assert_eq!((code, of_module.build_id), (0, facts.build_id));
}
