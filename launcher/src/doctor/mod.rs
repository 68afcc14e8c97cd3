//! `ttalloc doctor`: what ttalloc can track of a tt-metal, judged from its file alone.

pub mod locate;

use std::fmt::Write;
use std::path::Path;

use comfy_table::{Table as Columns, presets};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ttalloc_symbols::{Era, ROLES, Role, Use};

use self::locate::Located;
use crate::binary::{Binary, Found, Kind, Table, Way};
use crate::run::program;

/// The name and version of what `--json` prints.
pub const SCHEMA: &str = "ttalloc.doctor/1";

/// What ttalloc can track of a runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Diagnosis {
    /// `ttalloc.doctor/1`.
    pub schema: String,
    /// The file that tt-metal is in: a library, or the program itself.
    pub runtime: String,
    /// Its GNU build id, in hexadecimal; null if it has none.
    pub build_id: Option<String>,
    /// The family of releases, as in the report; null if it has nothing that ttalloc knows.
    pub era: Option<String>,
    /// Why the program can't be tracked, whatever its runtime; null if nothing is in the way.
    pub obstacle: Option<String>,
    /// Every role of ttalloc's catalogue.
    pub roles: Vec<Verdict>,
    /// What can't be tracked.
    pub gaps: Vec<Gap>,
    /// Whether everything can be tracked.
    pub complete: bool,
}

/// What ttalloc can do for one role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// The role.
    pub role: String,
    /// What ttalloc needs it for.
    pub purpose: String,
    /// Whether ttalloc hooks it or calls it itself.
    pub hooked: bool,
    /// What can be done.
    pub reach: Reach,
    /// The symbols that the runtime has for it.
    pub symbols: Vec<Definition>,
}

/// A symbol that the runtime has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Definition {
    /// The mangled name.
    pub symbol: String,
    /// Where it stands.
    pub table: Table,
    /// How the runtime's own code and data get to it; empty if only other files use it.
    pub ways: Vec<Way>,
}

/// Something that can't be tracked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Gap {
    /// The role.
    pub role: String,
    /// What is lost.
    pub cost: String,
    /// What to do about it.
    pub advice: String,
}

/// What ttalloc can do for a role or a symbol. The order is from the best to the worst.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// The runtime has no need of it: releases of its era may lack it, or all do.
    Unneeded,
    /// It is exported, and ttalloc calls it itself.
    Call,
    /// All its calls go through the dynamic linker, to the preload library.
    Preload,
    /// Some of its calls don't: it is hooked where it begins (`--engine auto` or `inline`).
    Inline,
    /// It was not found.
    Missing,
}

/// How ttalloc gets at a symbol that `runtime` defines. All that the doctor says of what can be tracked
/// follows from this.
pub fn reach(found: &Found, runtime: &Binary) -> Reach {
    let exported = found.table == Table::Dynsym && runtime.kind == Kind::Library;
    match found.symbol().usage {
        Use::LookUp if exported => Reach::Call,
        Use::LookUp => Reach::Inline,
        // Before any preloaded library the dynamic linker looks into the program, and into a library
        // that is linked with -Bsymbolic for what that uses itself.
        Use::Hook if !exported || (runtime.symbolic && !found.ways.is_empty()) => Reach::Inline,
        Use::Hook if !found.preemptible && !found.ways.is_empty() => Reach::Inline,
        Use::Hook if found.ways.contains(&Way::Direct) => Reach::Inline,
        Use::Hook => Reach::Preload,
    }
}

impl Diagnosis {
    /// The diagnosis of a runtime and the program that loads it.
    pub fn of(located: &Located) -> Diagnosis {
        let runtime = &located.runtime;
        let era = runtime.era();
        let obstacle = located.program.as_deref().and_then(obstacle);
        let roles: Vec<_> = ROLES.iter().map(|role| verdict(role, runtime, era)).collect();
        let missing =
            ROLES.iter().zip(&roles).filter(|(_, verdict)| verdict.reach == Reach::Missing);
        let gaps: Vec<_> = missing
            .map(|(role, _)| Gap {
                role: role.name.to_owned(),
                cost: role.cost.to_owned(),
                advice: advice(runtime),
            })
            .collect();
        Diagnosis {
            schema: SCHEMA.to_owned(),
            runtime: runtime.path.display().to_string(),
            build_id: runtime.build_id.clone(),
            era: era.map(|era| era.letter().to_owned()),
            complete: obstacle.is_none() && gaps.is_empty(),
            obstacle,
            roles,
            gaps,
        }
    }

    /// The diagnosis for a person, ended by a newline.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let era = self.era.as_deref().unwrap_or("unknown");
        let build_id = self.build_id.as_deref().unwrap_or("none");
        writeln!(out, "tt-metal: {}", self.runtime)?;
        writeln!(out, "era: {era}, build id: {build_id}")?;
        let mut table = Columns::new();
        table.load_style(presets::NOTHING);
        table.set_header(["role", "used by its own code", "ttalloc"]);
        for verdict in &self.roles {
            if verdict.reach != Reach::Unneeded {
                table.add_row([&*verdict.role, &verdict.ways(), verdict.reach.words()]);
            }
        }
        writeln!(out, "{}", table.trim_fmt())?;
        if let Some(obstacle) = &self.obstacle {
            writeln!(out, "Can't be tracked: {obstacle}")?;
        }
        let inline = self.roles.iter().filter(|verdict| verdict.reach == Reach::Inline).count();
        if inline != 0 {
            writeln!(
                out,
                "{inline} of these are used past the dynamic linker, where a preload library sees nothing. \
                 ttalloc-run hooks them inline, with --engine auto, which is the default, or inline, but for \
                 functions whose code can't be patched safely: those it names when it runs the program."
            )?;
        }
        for gap in &self.gaps {
            writeln!(out, "Missing {}: {}.", gap.role, gap.cost)?;
        }
        // The same for all.
        if let Some(gap) = self.gaps.first() {
            writeln!(out, "What to do: {}.", gap.advice)?;
        }
        if self.complete {
            writeln!(out, "Everything can be tracked.")?;
        } else if self.obstacle.is_none() {
            let nothing = ROLES
                .iter()
                .any(|role| role.required && self.gaps.iter().any(|gap| gap.role == role.name));
            writeln!(
                out,
                "{}",
                if nothing { "Nothing can be tracked." } else { "The rest can be tracked." }
            )?;
        }
        Ok(())
    }
}

impl Verdict {
    /// How the runtime's own code gets to it, in words.
    fn ways(&self) -> String {
        let mut ways: Vec<_> = self.symbols.iter().flat_map(|symbol| &symbol.ways).collect();
        ways.sort();
        ways.dedup();
        let names = ways.into_iter().map(|way| match way {
            Way::Plt => "PLT",
            Way::Got => "GOT",
            Way::Data => "data",
            Way::Direct => "direct",
        });
        match (self.symbols.is_empty(), names.collect::<Vec<_>>().join(", ")) {
            (true, _) => "not found".to_owned(),
            (false, names) if names.is_empty() => "no".to_owned(),
            (false, names) => names,
        }
    }
}

impl Reach {
    fn words(self) -> &'static str {
        match self {
            Reach::Unneeded => "needs it not",
            Reach::Call => "looks it up",
            Reach::Preload => "hooks it by LD_PRELOAD",
            Reach::Inline => "hooks it inline, or reads its symbol table",
            Reach::Missing => "lacks it",
        }
    }
}

fn verdict(role: &Role, runtime: &Binary, era: Option<Era>) -> Verdict {
    let found: Vec<_> = era.into_iter().flat_map(|era| runtime.of_role(role.name, era)).collect();
    let symbols = found.iter().map(|found| Definition {
        symbol: found.symbol().name.to_owned(),
        table: found.table,
        ways: found.ways.clone(),
    });
    let is_gap = match era {
        Some(era) => runtime.present().gaps(era).any(|gap| gap.name == role.name),
        None => true,
    };
    let worst = found.iter().map(|found| reach(found, runtime)).max();
    Verdict {
        role: role.name.to_owned(),
        purpose: role.purpose.to_owned(),
        hooked: role.is_hooked(),
        reach: worst.unwrap_or(if is_gap { Reach::Missing } else { Reach::Unneeded }),
        symbols: symbols.collect(),
    }
}

/// What is in the way of tracking a program, whatever it loads.
fn obstacle(program: &Path) -> Option<String> {
    program::check(program.as_os_str()).err().map(|why| why.to_string())
}

/// What to do about functions that were not found.
fn advice(runtime: &Binary) -> String {
    if !runtime.has_symtab {
        "build tt-metal with its functions exported (default visibility), or don't strip its symbol table"
            .to_owned()
    } else {
        let build = match &runtime.build_id {
            Some(id) => format!("build id {id}"),
            None => "this build".to_owned(),
        };
        format!(
            "use a ttalloc that knows {build}, or a release of tt-metal that this one knows; if there is none, \
             run `ttalloc facts` on the library and report what it prints"
        )
    }
}
