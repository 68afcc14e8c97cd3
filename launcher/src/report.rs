//! The JSON report, schema `ttalloc.report/1`. The types here are the schema; `docs/report.md` explains.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ttalloc_ring::record::Refusal;
use ttalloc_symbols::{Era, SYMBOLS, Use};

use crate::ledger::{Ledger, MemoryType, Process as Books, Totals};

/// The schema's name and version.
pub const SCHEMA: &str = "ttalloc.report/1";

/// What one run of a program did with the memory of its chips.
///
/// Sizes are in bytes. Times are in nanoseconds since the launcher started the program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// The schema's name and version: `ttalloc.report/1`.
    pub schema: String,
    /// The version of ttalloc that wrote the report.
    pub ttalloc_version: String,
    /// The program and its arguments, as given to the launcher.
    pub command: Vec<String>,
    /// When the program was started, as RFC 3339 in UTC.
    pub started: String,
    /// How long it ran.
    pub duration_ns: u64,
    /// How it ended.
    pub exit: Exit,
    /// Whether the figures can be relied on.
    pub integrity: Integrity,
    /// The program's process, and every process below it that used tt-metal.
    pub processes: Vec<Process>,
    /// The meshes that were opened. A mesh is not a device: its id is counted apart from the chips'.
    pub meshes: Vec<Mesh>,
    /// The chips that were opened, per process.
    pub devices: Vec<Device>,
    /// What was still allocated when the processes ended.
    pub live_buffers: Vec<LiveBuffer>,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// It was ended by this signal, for example `SIGKILL`.
    Signal(String),
}

/// Whether the figures can be relied on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Integrity {
    /// Records read.
    pub events: u64,
    /// Calls that the program could not record.
    pub dropped: u64,
    /// Records that were begun and never finished, since their writer died or called exec.
    pub torn: u64,
    /// Records that made no sense.
    pub bad_records: u64,
    /// Frees of memory that was not known to be allocated.
    pub unknown_frees: u64,
    /// Frees, in a forked child, of memory that its parent had allocated. They change no figure.
    pub inherited_frees: u64,
    /// Allocations that could not be assigned to a chip.
    pub unattributed: u64,
    /// Buffers that were made at a given address where no allocator had given anything. They take
    /// memory that no figure here includes. A mesh's buffer counts once, not once per chip.
    pub external_placements: u64,
    /// What is missing or doubtful, in words, one sentence each. Empty if `complete`.
    pub problems: Vec<String>,
    /// Whether nothing is known to be missing.
    pub complete: bool,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// Its parent's pid.
    pub parent_pid: u32,
    /// Its argument vector.
    pub argv: Vec<String>,
    /// Whether the last arguments are left out, because they are longer than 8 KB together.
    pub argv_cut: bool,
    /// How it ended; null where the launcher is not its parent and can't know.
    pub exit: Option<Exit>,
    /// The runtime it called; null if it called none.
    pub runtime: Option<Runtime>,
}

/// A tt-metal runtime.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Runtime {
    /// The library that defines the allocator.
    pub path: String,
    /// Its ELF build id in hexadecimal; null if it has none.
    pub build_id: Option<String>,
    /// The family of releases: A (0.62.0 to 0.65.0), B (0.65.1 to 0.78.0) or C (0.79.0 on); null if it
    /// is none of these and was not tracked.
    pub era: Option<String>,
    /// The functions that were hooked.
    pub hooks: Vec<Hook>,
    /// The functions whose calls could not be seen, or not all of them.
    #[serde(default)]
    pub refused: Vec<Refused>,
}

/// A hooked function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Hook {
    /// What it is to ttalloc.
    pub role: String,
    /// Its mangled name.
    pub symbol: String,
    /// How often it was called; null if that was not counted, as for the 257th process and later ones.
    pub calls: Option<u64>,
    /// How its calls were seen.
    #[serde(default)]
    pub engine: HookEngine,
}

/// How a function's calls are seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HookEngine {
    /// By interposition: the preload library defines the function too.
    #[default]
    Preload,
    /// By a jump that was written over the function's first bytes.
    Inline,
}

/// A function whose calls could not be seen, or not all of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Refused {
    /// What it is to ttalloc.
    pub role: String,
    /// Its mangled name.
    pub symbol: String,
    /// Why it was not patched.
    pub reason: String,
    /// Whether the calls that other libraries make were seen.
    pub interposed: bool,
}

/// A mesh that was opened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Mesh {
    /// The process that opened it.
    pub pid: u32,
    /// tt-metal's id of it, counted by the process.
    pub mesh: i32,
    /// Its chips, in its own order.
    pub chips: Vec<i32>,
}

/// A chip that a process opened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Device {
    /// The process.
    pub pid: u32,
    /// The chip's id.
    pub chip: i32,
    /// Its architecture, for example `wormhole_b0`.
    pub arch: String,
    /// Its memory, by type. A type is left out if the chip has none of it and nothing asked for it.
    pub memory: Vec<Memory>,
}

/// One chip's memory of one type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Memory {
    /// The type.
    #[serde(rename = "type")]
    pub kind: MemoryType,
    /// The number of banks.
    pub banks: u32,
    /// What can be allocated in each bank, as of when the device was opened.
    pub bank_bytes: u64,
    /// What was allocated when the process ended.
    pub live: Totals,
    /// What was allocated when the devices over the chip last closed, summed over them; null if none
    /// closed.
    pub live_at_close: Option<Totals>,
    /// What was allocated when most was reserved.
    pub peak: Peak,
    /// Successful allocations.
    pub allocations: u64,
    /// Buffers freed one by one.
    pub frees: u64,
    /// Buffers let go all at once, as when a device closes. `allocations` is `frees`, `released` and
    /// `live.buffers` together.
    pub released: u64,
    /// Allocations that ended in an exception.
    pub failed: u64,
    /// The bytes asked for by all successful allocations.
    pub allocated_bytes_total: u64,
}

/// The most that was reserved at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Peak {
    /// What was allocated then.
    #[serde(flatten)]
    pub totals: Totals,
    /// When; 0 if nothing was ever allocated.
    pub time_ns: u64,
}

/// A buffer that was still allocated when its process ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LiveBuffer {
    /// The process.
    pub pid: u32,
    /// The chips it occupies, at the same address on each.
    pub chips: Vec<i32>,
    /// The type of memory.
    #[serde(rename = "type")]
    pub kind: MemoryType,
    /// Its address in each bank.
    pub address: u64,
    /// What was asked for, on each chip.
    pub bytes: u64,
    /// What it takes in every bank, the allocator's rounding included.
    pub bytes_per_bank: u64,
    /// The page's size.
    pub page_bytes: u64,
    /// When it was allocated.
    pub allocated_ns: u64,
}

/// What the launcher knows of a run beside the records.
#[derive(Clone, Debug)]
pub struct Run {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// When it was started.
    pub started: jiff::Timestamp,
    /// The same on the records' clock.
    pub started_ns: u64,
    /// How long it ran.
    pub duration_ns: u64,
    /// Its pid.
    pub pid: u32,
    /// How it ended.
    pub exit: Exit,
    /// Records lost on the way.
    pub dropped: u64,
    /// Records begun and never finished.
    pub torn: u64,
    /// Tracked processes that went on after the program.
    pub still_running: Vec<u32>,
}

impl Report {
    /// The report of a run. `calls` tells how often a process (by its number) called each hook.
    pub fn new(run: &Run, ledger: &Ledger, calls: impl Fn(u32) -> Option<Vec<u64>>) -> Report {
        let since_start = |time_ns: u64| time_ns.saturating_sub(run.started_ns);
        let pid_of = |books: &Books| books.identity.as_ref().map_or(0, |identity| identity.pid);
        let mut report = Report {
            schema: SCHEMA.to_owned(),
            ttalloc_version: env!("CARGO_PKG_VERSION").to_owned(),
            command: run.command.clone(),
            started: run.started.to_string(),
            duration_ns: run.duration_ns,
            exit: run.exit.clone(),
            integrity: integrity(run, ledger),
            processes: processes(run, ledger, calls),
            meshes: Vec::new(),
            devices: Vec::new(),
            live_buffers: Vec::new(),
        };
        for books in ledger.processes.values() {
            let pid = pid_of(books);
            report.meshes.extend(books.meshes.iter().map(|mesh| Mesh {
                pid,
                mesh: mesh.id,
                chips: mesh.chips.clone(),
            }));
            for (&id, chip) in &books.chips {
                let memory = MemoryType::ALL.into_iter().filter_map(|kind| {
                    let memory = chip.memory(kind);
                    (memory.banks != 0 || memory.allocations + memory.failed != 0).then(|| Memory {
                        kind,
                        banks: memory.banks,
                        bank_bytes: memory.bank_bytes,
                        live: memory.live,
                        live_at_close: memory.live_at_close,
                        peak: Peak { totals: memory.peak, time_ns: since_start(memory.peak_ns) },
                        allocations: memory.allocations,
                        frees: memory.frees,
                        released: memory.released,
                        failed: memory.failed,
                        allocated_bytes_total: memory.allocated_bytes_total,
                    })
                });
                let arch = arch_name(chip.arch);
                report.devices.push(Device { pid, chip: id, arch, memory: memory.collect() });
            }
            report.live_buffers.extend(books.live().map(|(chips, one)| LiveBuffer {
                pid,
                chips: chips.to_vec(),
                kind: one.kind,
                address: one.address,
                bytes: one.totals.bytes,
                bytes_per_bank: one.totals.bytes_per_bank,
                page_bytes: one.page_bytes,
                allocated_ns: since_start(one.time_ns),
            }));
        }
        report.live_buffers.sort_by(|a, b| {
            let key = |one: &LiveBuffer| (one.pid, one.kind, one.address, one.allocated_ns);
            key(a).cmp(&key(b)).then_with(|| a.chips.cmp(&b.chips))
        });
        report
    }

    /// The JSON Schema of a report.
    pub fn json_schema() -> serde_json::Value {
        let settings = schemars::generate::SchemaSettings::default().for_serialize();
        let mut schema = settings.into_generator().into_root_schema_for::<Report>().to_value();
        if let Some(object) = schema.as_object_mut() {
            object.insert("$id".to_owned(), SCHEMA.into());
            object.insert("title".to_owned(), "ttalloc report".into());
        }
        if let Some(name) = schema.pointer_mut("/properties/schema") {
            name["const"] = SCHEMA.into();
        }
        schema
    }
}

fn processes(run: &Run, ledger: &Ledger, calls: impl Fn(u32) -> Option<Vec<u64>>) -> Vec<Process> {
    let mut processes: Vec<Process> = Vec::new();
    // exec keeps the pid: only the last program of the first process has the run's exit.
    let last_of_pid: BTreeMap<u32, u32> = ledger
        .processes
        .iter()
        .filter_map(|(&number, books)| Some((books.identity.as_ref()?.pid, number)))
        .collect();
    for (&number, books) in &ledger.processes {
        let identity = books.identity.as_ref();
        let pid = identity.map_or(0, |identity| identity.pid);
        let is_first = pid == run.pid && last_of_pid.get(&pid) == Some(&number);
        processes.push(Process {
            pid,
            parent_pid: identity.map_or(0, |identity| identity.parent_pid),
            argv: identity.map_or_else(Vec::new, |identity| identity.argv.clone()),
            argv_cut: identity.is_some_and(|identity| identity.argv_cut),
            exit: is_first.then(|| run.exit.clone()),
            runtime: books.runtime.as_ref().map(|runtime| {
                let era = runtime.era;
                Runtime {
                    path: runtime.path.clone(),
                    build_id: runtime.build_id.clone(),
                    era: era.map(|era| era.letter().to_owned()),
                    hooks: hooks(books, runtime, era, calls(number)),
                    refused: refused(books),
                }
            }),
        });
    }
    if !last_of_pid.contains_key(&run.pid) {
        let first = Process {
            pid: run.pid,
            parent_pid: std::process::id(),
            argv: run.command.clone(),
            argv_cut: false,
            exit: Some(run.exit.clone()),
            runtime: None,
        };
        processes.insert(0, first);
    }
    processes
}

fn hooks(
    books: &Books,
    runtime: &crate::ledger::Runtime,
    era: Option<Era>,
    calls: Option<Vec<u64>>,
) -> Vec<Hook> {
    let Some(era) = era else { return Vec::new() };
    let hooked = |index: usize| {
        let symbol = &SYMBOLS[index];
        let is_seen = books.patched.contains(index)
            || books.refused.get(&index).is_none_or(|refused| refused.interposed);
        symbol.usage == Use::Hook && symbol.eras.contains(era) && is_seen
    };
    runtime
        .symbols
        .iter()
        .filter(|&(index, _)| hooked(index))
        .map(|(index, symbol)| Hook {
            role: symbol.role.to_owned(),
            symbol: symbol.name.to_owned(),
            calls: calls.as_ref().and_then(|calls| calls.get(index)).copied(),
            engine: match books.patched.contains(index) {
                true => HookEngine::Inline,
                false => HookEngine::Preload,
            },
        })
        .collect()
}

fn refused(books: &Books) -> Vec<Refused> {
    let describe = |(&index, refused): (&usize, &crate::ledger::Refused)| {
        let symbol = SYMBOLS.get(index)?;
        Some(Refused {
            role: symbol.role.to_owned(),
            symbol: symbol.name.to_owned(),
            reason: format!("the function {}", refused.why),
            interposed: refused.interposed,
        })
    };
    books.refused.iter().filter_map(describe).collect()
}

/// What is missing in a process's figures because of functions that could not be patched: a sentence for
/// each reason.
fn unseen(who: &str, books: &Books) -> Vec<String> {
    let path = books.runtime.as_ref().map_or("", |runtime| &runtime.path);
    let mut reasons: Vec<Unseen> = Vec::new();
    for (&index, refused) in &books.refused {
        let Some(symbol) = SYMBOLS.get(index) else { continue };
        // It may well be that nobody needs it. But nothing is allocated without these.
        if refused.why == Refusal::NoCaller && !matches!(symbol.role, "allocate" | "deallocate") {
            continue;
        }
        let known = reasons.iter_mut().find(|one| one.refused == *refused);
        let roles = match known {
            Some(one) => &mut one.roles,
            None => {
                reasons.push(Unseen { refused: *refused, roles: Vec::new() });
                let Some(one) = reasons.last_mut() else { continue };
                &mut one.roles
            }
        };
        if !roles.contains(&symbol.role) {
            roles.push(symbol.role);
        }
    }
    let sentence = |one: Unseen| {
        let whose =
            if one.refused.interposed { "calls from within the library of" } else { "calls of" };
        let mut costs: Vec<_> = one.roles.iter().map(|role| cost(role)).collect();
        costs.dedup();
        let (roles, costs, why) = (one.roles.join(", "), costs.join(", "), one.refused.why);
        format!("{whose} {roles} were not seen in {who} ({path}): the function {why}. So {costs}")
    };
    reasons.into_iter().map(sentence).collect()
}

/// Roles whose calls are not seen for one reason.
struct Unseen {
    refused: crate::ledger::Refused,
    roles: Vec<&'static str>,
}

/// What is missing when a role's calls are.
fn cost(role: &str) -> &'static str {
    match role {
        "allocate" => "allocations are missing",
        "deallocate" => "what was freed still counts as allocated",
        "deallocate_all" | "clear" | "allocator_end" => {
            "what was let go all at once may still count as allocated"
        }
        "create" => "allocations may lack their size and type",
        "create_at_address" => "buffers made at a given address are missing",
        "view" => "views may be taken for memory of their own",
        "mesh_open" | "mesh_impl_open" => "devices are known only once something is allocated",
        "mesh_close" | "mesh_impl_close" | "device_close" => {
            "what was left at close may be unknown"
        }
        _ => "what it tells is missing",
    }
}

fn integrity(run: &Run, ledger: &Ledger) -> Integrity {
    let found = &ledger.anomalies;
    let mut problems = Vec::new();
    let mut count = |number: u64, one: &str, many: &str| {
        if number == 1 {
            problems.push(one.to_owned());
        } else if number > 1 {
            problems.push(format!("{number} {many}"));
        }
    };
    count(run.dropped, "1 event was dropped", "events were dropped");
    count(run.torn, "1 event was begun and never finished", "events were begun and never finished");
    count(found.bad_records, "1 record made no sense", "records made no sense");
    count(
        found.unknown_frees,
        "1 free was of memory not known to be allocated",
        "frees were of memory not known to be allocated",
    );
    count(
        found.unattributed,
        "1 allocation could not be assigned to a chip",
        "allocations could not be assigned to a chip",
    );
    for books in ledger.processes.values() {
        let who = match &books.identity {
            Some(identity) => format!("process {}", identity.pid),
            None => "a process that was not announced".to_owned(),
        };
        match &books.runtime {
            Some(runtime) if runtime.era.is_none() => {
                problems.push(not_recognised(&who, runtime, &books.refused));
            }
            Some(_) if books.identity.is_some() => {}
            _ => problems.push(format!("{who} did not tell its runtime")),
        }
        if books.runtime.as_ref().is_some_and(|runtime| runtime.era.is_some()) {
            problems.extend(unseen(&who, books));
        }
    }
    for pid in &run.still_running {
        problems.push(format!("process {pid} was still running when the program had ended"));
    }
    Integrity {
        events: ledger.events,
        dropped: run.dropped,
        torn: run.torn,
        bad_records: found.bad_records,
        unknown_frees: found.unknown_frees,
        inherited_frees: found.inherited_frees,
        unattributed: found.unattributed,
        external_placements: found.external_placements,
        complete: problems.is_empty(),
        problems,
    }
}

/// Why a runtime could not be tracked.
fn not_recognised(
    who: &str,
    runtime: &crate::ledger::Runtime,
    refused: &BTreeMap<usize, crate::ledger::Refused>,
) -> String {
    let is_whole = |refused: &&crate::ledger::Refused| {
        matches!(refused.why, Refusal::Stripped | Refusal::File)
    };
    if let Some(refused) = refused.values().find(is_whole) {
        return format!(
            "{who} was not tracked: its tt-metal ({}) is called directly, and each function {}; use a build that is not stripped, or tt-metal's shared library",
            runtime.path, refused.why
        );
    }
    let missing: Vec<_> = match Era::of(&runtime.symbols) {
        Some(era) => runtime.symbols.missing(era).collect(),
        None => {
            let roles = ["allocate", "create_at_address"];
            let is_there =
                |role: &str| runtime.symbols.iter().any(|(_, symbol)| symbol.role == role);
            let missing: Vec<_> = roles.into_iter().filter(|role| !is_there(role)).collect();
            if missing.is_empty() { roles.to_vec() } else { missing }
        }
    };
    let why = match missing.as_slice() {
        [] => "has no MeshDevice of the expected layout".to_owned(),
        missing => format!("does not export what is needed for: {}", missing.join(", ")),
    };
    format!("{who} was not tracked: its tt-metal ({}) {why}", runtime.path)
}

/// tt-metal's name of an architecture (`tt::ARCH` in tt-umd's `arch.hpp`).
fn arch_name(arch: u32) -> String {
    match arch {
        1 => "grayskull".to_owned(),
        2 => "wormhole_b0".to_owned(),
        3 => "blackhole".to_owned(),
        4 => "quasar".to_owned(),
        other => format!("unknown ({other})"),
    }
}
