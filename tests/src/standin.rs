//! The stand-in runtime of `standin/`, and programs that use it, compiled with the system's C++ compiler.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ttalloc_symbols::Era;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/standin");
/// What the library is made of; every other `.cpp` file is a program.
const LIBRARY: [&str; 8] = [
    "allocator.cpp",
    "buffer.cpp",
    "device.cpp",
    "books.cpp",
    "graph.cpp",
    "trace.cpp",
    "program.cpp",
    "program_books.cpp",
];
const FLAGS: [&str; 4] = [
    "-std=c++20",
    "-O1",
    // Also where that is not the default: a call may be bound to another library's definition, so none
    // may be inlined.
    "-fsemantic-interposition",
    "-pthread",
];

/// A C++ compiler.
#[derive(Clone, Debug)]
pub struct Compiler {
    /// Its command, with first arguments.
    words: Vec<String>,
    version: Vec<u8>,
}

impl Compiler {
    /// The compiler of `$CXX`, or `c++`; or why there is none.
    pub fn find() -> Result<Compiler, String> {
        let named = std::env::var("CXX").unwrap_or_default();
        let mut words: Vec<_> = named.split_whitespace().map(str::to_owned).collect();
        if words.is_empty() {
            words.push("c++".to_owned());
        }
        Compiler::named(words)
    }

    /// clang, which compiles tt-metal's own releases; or why there is none.
    pub fn clang() -> Result<Compiler, String> {
        Compiler::named(vec!["clang++".to_owned()])
    }

    fn named(words: Vec<String>) -> Result<Compiler, String> {
        let mut compiler = Compiler { words, version: Vec::new() };
        match compiler.command().arg("--version").output() {
            Ok(output) if output.status.success() => {
                compiler.version = output.stdout;
                Ok(compiler)
            }
            Ok(output) => Err(format!("{} --version: {}", compiler.words[0], output.status)),
            Err(error) => Err(format!("{}: {error}; install it, or set CXX", compiler.words[0])),
        }
    }

    /// What tells it from other compilers.
    pub(crate) fn identity(&self) -> impl Hash {
        (&self.words, &self.version)
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]);
        command
    }

    /// What a compiled file depends on: the compiler, its flags and all sources.
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.words, &self.version, FLAGS).hash(&mut hasher);
        let entries = fs::read_dir(SOURCES).expect("the sources are there");
        let mut paths: Vec<_> =
            entries.map(|entry| entry.expect("the folder can be read").path()).collect();
        paths.sort();
        for path in paths {
            path.hash(&mut hasher);
            fs::read(&path).expect("a source can be read").hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// The stand-in of one era. Files are compiled when first asked for, and kept for later runs.
pub struct Standin {
    compiler: Compiler,
    folder: PathBuf,
    options: Vec<String>,
    library: &'static str,
}

impl Standin {
    /// The stand-in of `era`, compiled with these further options and kept below `cache`.
    pub fn new(compiler: &Compiler, cache: &Path, era: Era, further: &[&str]) -> Standin {
        let mut options = vec![format!("-DERA={}", era as u32 + 1)];
        options.extend(further.iter().map(|&option| option.to_owned()));
        let variant = [&[era.letter()], further].concat().join("_");
        let folder = cache.join(format!("standin-{:016x}", compiler.fingerprint())).join(variant);
        fs::create_dir_all(&folder).expect("a folder for compiled files can be made");
        Standin { compiler: compiler.clone(), folder, options, library: "libtt_metal.so" }
    }

    /// The stand-in of 0.60.1, which is of era A: the runtime is in `_ttnncpp.so`, some functions are
    /// spelled otherwise, and some are not there yet.
    pub fn first_release(compiler: &Compiler, cache: &Path) -> Standin {
        let standin = Standin::new(compiler, cache, Era::A, &["-DFIRST_RELEASE"]);
        Standin { library: "_ttnncpp.so", ..standin }
    }

    /// The library that the runtime is in.
    pub fn library(&self) -> PathBuf {
        let name = format!("-Wl,-soname,{}", self.library);
        let flags = ["-fPIC", "-shared", &name, "-Wl,--build-id", "-Wl,--hash-style=gnu"];
        // All at once, which takes half the time: every file needs the same headers. The books of
        // programs have names that others have too.
        let [together @ .., apart] = LIBRARY;
        let include = |source: &str| format!("#include \"{SOURCES}/{source}\"\n");
        let text: String = together.into_iter().map(include).collect();
        let all = self.folder.join("all.cpp");
        if fs::read_to_string(&all).ok().as_ref() != Some(&text) {
            fs::write(&all, text).expect("a source can be written");
        }
        self.compiled(self.library, &[all.to_str().expect("UTF-8"), apart], &flags)
    }

    /// A program, which is linked with the library.
    pub fn program(&self, name: &str) -> PathBuf {
        let library = self.library();
        let flags = [library.to_str().expect("UTF-8"), "-Wl,-rpath,$ORIGIN"];
        self.compiled(name, &[&format!("{name}.cpp")], &flags)
    }

    /// A program whose source is elsewhere, which is linked likewise.
    pub fn further_program(&self, source: &Path) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        fs::read(source).expect("a source can be read").hash(&mut hasher);
        let stem = source.file_stem().unwrap_or_default().to_string_lossy();
        let library = self.library();
        let include = format!("-I{SOURCES}");
        let flags =
            [library.to_str().expect("UTF-8"), "-Wl,-rpath,$ORIGIN", "-ldl", include.as_str()];
        let source = source.to_str().expect("UTF-8");
        self.compiled(&format!("{stem}-{:016x}", hasher.finish()), &[source], &flags)
    }

    /// The same as a module for [`Standin::host`].
    pub fn module(&self, name: &str) -> PathBuf {
        let library = self.library();
        let flags = [library.to_str().expect("UTF-8"), "-Wl,-rpath,$ORIGIN", "-fPIC", "-shared"];
        self.compiled(&format!("{name}.so"), &[&format!("{name}.cpp")], &flags)
    }

    /// A library for LD_PRELOAD, compiled with further options.
    pub fn preloaded(&self, name: &str, further: &[&str]) -> PathBuf {
        let flags = [&["-fPIC", "-shared", "-ldl"], further].concat();
        self.compiled(&format!("{name}.so"), &[&format!("{name}.cpp")], &flags)
    }

    /// A program that loads a module with RTLD_LOCAL, and has neither the runtime nor a C++ library.
    pub fn host(&self) -> PathBuf {
        self.compiled("host", &["host.cpp"], &["-Wl,--as-needed", "-ldl"])
    }

    /// A program that holds the runtime. `further` are options for the linker.
    pub fn whole_program(&self, name: &str, further: &[&str]) -> PathBuf {
        let file = [&[name, "whole"], further].concat().join("_");
        self.linked(&file, name, &[&["-Wl,--build-id"], further].concat())
    }

    /// The same as a module for [`Standin::host`], from which only its `main` can be seen.
    pub fn whole_module(&self, name: &str) -> PathBuf {
        let flags = ["-Wl,--build-id", "-shared"];
        self.linked(&format!("{name}_whole.so"), name, &flags)
    }

    /// The file that a program and the runtime are together.
    fn linked(&self, file: &str, program: &str, flags: &[&str]) -> PathBuf {
        let program = format!("{program}.cpp");
        let sources = LIBRARY.iter().copied().chain([program.as_str()]);
        let objects: Vec<_> = sources
            .map(|source| {
                let flags = ["-c", "-fPIC", "-Dmain=__attribute__((visibility(\"default\")))main"];
                self.compiled(&format!("{source}.o"), &[source], &flags)
            })
            .collect();
        let objects = objects.iter().map(|object| object.to_str().expect("UTF-8"));
        self.compiled(file, &[], &objects.chain(flags.iter().copied()).collect::<Vec<_>>())
    }

    /// The file `name`, which is compiled unless it is there: once, whoever asks at the same time.
    fn compiled(&self, name: &str, sources: &[&str], flags: &[&str]) -> PathBuf {
        static FILES: Mutex<BTreeMap<PathBuf, Arc<OnceLock<()>>>> = Mutex::new(BTreeMap::new());
        let path = self.folder.join(name);
        let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
        let file = Arc::clone(files.entry(path.clone()).or_default());
        drop(files);
        file.get_or_init(|| {
            if path.exists() {
                return;
            }
            // Under its name only when it is whole; another process may be compiling the same.
            let unfinished = self.folder.join(format!("{name}.{}", std::process::id()));
            let mut command = self.compiler.command();
            command.args(FLAGS).arg("-o").arg(&unfinished);
            command.args(sources.iter().map(|source| Path::new(SOURCES).join(source)));
            command.args(flags).args(&self.options);
            let output = command.output().expect("the compiler starts");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name} does not compile: {command:?}\n{errors}");
            fs::rename(&unfinished, &path).expect("a compiled file can be renamed");
        });
        path
    }
}
