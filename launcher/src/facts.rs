//! The facts of a release: which symbols its library has for each role, and how it calls them. They are
//! kept in `symbols/releases/`, and a test holds the catalogue against them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ttalloc_symbols::ROLES;

use crate::binary::{Binary, Table, Way};

/// The facts of a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Facts {
    /// The release; null if it wasn't told.
    pub release: Option<String>,
    /// The library's file name.
    pub file: String,
    /// Its GNU build id, in hexadecimal.
    pub build_id: Option<String>,
    /// The letter of its era; null if it has nothing of the catalogue.
    pub era: Option<String>,
    /// Whether it is bound to its own definitions first (`DT_SYMBOLIC`).
    pub symbolic: bool,
    /// Every role of the catalogue, in its order.
    pub roles: Vec<RoleFacts>,
}

/// What a library has for one role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RoleFacts {
    /// The role.
    pub role: String,
    /// The symbols of the library's era that it defines; none, if it has nothing for this role.
    pub symbols: Vec<SymbolFacts>,
}

/// A symbol that a library defines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SymbolFacts {
    /// The mangled name.
    pub symbol: String,
    /// Where it stands.
    pub table: Table,
    /// How the library's own code and data get to it; empty if only other libraries use it.
    pub ways: Vec<Way>,
}

impl Facts {
    /// The facts of `library`, which is of `release`.
    pub fn of(library: &Binary, release: Option<&str>) -> Facts {
        let era = library.era();
        let file = library.path.file_name().unwrap_or_default();
        let symbols = |role: &str| {
            let found = era.into_iter().flat_map(|era| library.of_role(role, era));
            let facts = found.map(|found| SymbolFacts {
                symbol: found.symbol().name.to_owned(),
                table: found.table,
                ways: found.ways.clone(),
            });
            facts.collect()
        };
        Facts {
            release: release.map(str::to_owned),
            file: file.to_string_lossy().into_owned(),
            build_id: library.build_id.clone(),
            era: era.map(|era| era.letter().to_owned()),
            symbolic: library.symbolic,
            roles: ROLES
                .iter()
                .map(|role| RoleFacts { role: role.name.to_owned(), symbols: symbols(role.name) })
                .collect(),
        }
    }
}
