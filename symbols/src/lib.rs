//! What tt-metal exports that ttalloc hooks or calls: the one place where a mangled name stands.
//!
//! The table is the [`catalogue!`] macro. The preload library expands it into its exported hooks and
//! its run-time look-ups; [`SYMBOLS`] is the same table as data, for the launcher and diagnostics.
//!
//! A release belongs to one of three [`Era`]s, told apart by the names of the classes that allocate.
//! Eras go by symbol and never by version number: the class was renamed within 0.65. The names were
//! read off the dynamic symbol tables of the `ttnn` wheels on PyPI, 0.60.1 to 0.81.1. What each of them
//! defines, and how it calls it, is kept in `releases/`, which a test holds the catalogue against.
#![no_std]

#[macro_use]
mod catalogue;
mod roles;

pub use roles::{ROLES, Role, role};

/// A family of tt-metal releases that use the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Era {
    /// 0.60.1 to 0.65.0: class `Allocator`, `Buffer::create`.
    A,
    /// 0.65.1 to 0.78.0: class `AllocatorImpl`, `Buffer::create`.
    B,
    /// 0.79.0 on: class `AllocatorImpl`, `BufferImpl::create`.
    C,
}

impl Era {
    /// The era's letter, as the report names it.
    pub const fn letter(self) -> &'static str {
        match self {
            Era::A => "A",
            Era::B => "B",
            Era::C => "C",
        }
    }

    /// All eras, the oldest first.
    pub const ALL: [Era; 3] = [Era::A, Era::B, Era::C];

    /// The era that a runtime is most like, if it defines something of the catalogue: that whose
    /// allocator it has, and of several that of which it has the most symbols. Newer releases count as
    /// the newest era that fits.
    ///
    /// Whether it can be tracked as such is another matter: see [`SymbolSet::missing`].
    pub fn of(present: &SymbolSet) -> Option<Era> {
        let count = |era: Era| present.iter().filter(|(_, one)| one.eras.contains(era)).count();
        let has = |role: &str, era: Era| {
            present.iter().any(|(_, one)| one.role == role && one.eras.contains(era))
        };
        Era::ALL
            .into_iter()
            .filter(|&era| count(era) != 0)
            .max_by_key(|&era| (has("allocate", era), has("create_at_address", era), count(era)))
    }
}

/// Which eras a symbol belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eras {
    a: bool,
    b: bool,
    c: bool,
}

impl Eras {
    /// No era; the start of the chain that [`catalogue!`] builds.
    pub const NONE: Eras = Eras { a: false, b: false, c: false };

    /// These eras and `era`.
    pub const fn and(mut self, era: Era) -> Eras {
        match era {
            Era::A => self.a = true,
            Era::B => self.b = true,
            Era::C => self.c = true,
        }
        self
    }

    /// Whether `era` is one of them.
    pub const fn contains(self, era: Era) -> bool {
        match era {
            Era::A => self.a,
            Era::B => self.b,
            Era::C => self.c,
        }
    }
}

/// What ttalloc does with a symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The preload library defines it, so that calls reach ttalloc first.
    Hook,
    /// ttalloc calls it (or reads it, if it is data) to learn a fact.
    LookUp,
}

/// One exported symbol of tt-metal.
#[derive(Clone, Copy, Debug)]
pub struct Symbol {
    /// What it is to ttalloc, for example `allocate`; several symbols may share a role.
    pub role: &'static str,
    /// The mangled name, byte for byte.
    pub name: &'static str,
    /// The eras in which it has that role.
    pub eras: Eras,
    /// Hooked or looked up.
    pub usage: Use,
    /// Whether tracking is impossible without one symbol of this role.
    pub required: bool,
}

/// The number of symbols in the catalogue.
pub const COUNT: usize = SYMBOLS.len();

/// Where `name` stands in [`SYMBOLS`].
///
/// # Panics
/// If the catalogue does not hold it; used in constants, that is an error at compile time.
#[expect(clippy::panic, reason = "for constants, where it ends the build")]
pub const fn index_of(name: &str) -> usize {
    let mut index = 0;
    while index < SYMBOLS.len() {
        if same(SYMBOLS[index].name.as_bytes(), name.as_bytes()) {
            return index;
        }
        index += 1;
    }
    panic!("no such symbol in the catalogue")
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// A set of symbols, by their index in [`SYMBOLS`]; fixed in size, so that a record can carry it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SymbolSet(pub [u64; 4]);

const _: () = assert!(COUNT <= 256, "SymbolSet holds 256 symbols");

impl SymbolSet {
    /// Adds the symbol at `index`.
    pub fn insert(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    /// Whether the symbol at `index` is in the set.
    #[inline]
    pub fn contains(&self, index: usize) -> bool {
        self.0.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// The symbols in the set, in the catalogue's order.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &'static Symbol)> {
        SYMBOLS.iter().enumerate().filter(|&(index, _)| self.contains(index))
    }

    /// Whether the set holds a symbol of `role` that `era` uses.
    pub fn has(&self, role: &str, era: Era) -> bool {
        self.iter().any(|(_, symbol)| symbol.role == role && symbol.eras.contains(era))
    }

    /// The roles of which the catalogue has a symbol in `era`, but this set none, though every release
    /// of that era should. Each costs the user something.
    pub fn gaps(&self, era: Era) -> impl Iterator<Item = &'static Role> {
        ROLES.iter().filter(move |role| {
            role.expected.contains(era) && role.is_in(era) && !self.has(role.name, era)
        })
    }

    /// The names of those among the gaps without which nothing can be tracked.
    pub fn missing(&self, era: Era) -> impl Iterator<Item = &'static str> {
        self.gaps(era).filter(|role| role.required).map(|role| role.name)
    }
}

impl Role {
    /// Whether ttalloc hooks its symbols, rather than calling or reading them.
    pub fn is_hooked(&self) -> bool {
        SYMBOLS.iter().any(|symbol| symbol.role == self.name && symbol.usage == Use::Hook)
    }

    /// Whether the catalogue has a symbol of this role in `era`.
    pub fn is_in(&self, era: Era) -> bool {
        SYMBOLS.iter().any(|symbol| symbol.role == self.name && symbol.eras.contains(era))
    }
}

/// What the catalogue says of a look-up, which its role must agree with.
const fn is_required(need: &str, role: &Role) -> bool {
    let required = same(need.as_bytes(), b"required");
    assert!(required == role.required, "the catalogue and roles.rs disagree on what is required");
    required
}

macro_rules! table {
    (
        hooks { $($hook:ident $hook_args:tt = {
            $([$($hook_era:ident)+] $hook_name:literal;)+
        })+ }
        lookups { $($lookup:ident: $need:ident $lookup_args:tt = {
            $([$($lookup_era:ident)+] $lookup_name:literal;)+
        })+ }
    ) => {
        /// The catalogue as data. The order is stable within one build and part of the ring's version.
        pub static SYMBOLS: &[Symbol] = &[
            $($(Symbol {
                role: stringify!($hook),
                name: $hook_name,
                eras: Eras::NONE$(.and(Era::$hook_era))+,
                usage: Use::Hook,
                required: role(stringify!($hook)).required,
            },)+)+
            $($(Symbol {
                role: stringify!($lookup),
                name: $lookup_name,
                eras: Eras::NONE$(.and(Era::$lookup_era))+,
                usage: Use::LookUp,
                required: is_required(stringify!($need), role(stringify!($lookup))),
            },)+)+
        ];
    };
}
catalogue!(table);

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::HashSet;
    use std::vec::Vec;

    fn set(names: &[&str]) -> SymbolSet {
        let mut set = SymbolSet::default();
        names.iter().for_each(|name| set.insert(index_of(name)));
        set
    }

    fn whole(era: Era) -> SymbolSet {
        let mut set = SymbolSet::default();
        for (index, symbol) in SYMBOLS.iter().enumerate() {
            if symbol.eras.contains(era) {
                set.insert(index);
            }
        }
        set
    }

    #[test]
    fn a_name_stands_in_the_catalogue_once() {
        let names: HashSet<_> = SYMBOLS.iter().map(|symbol| symbol.name).collect();
        assert_eq!(names.len(), COUNT);
        assert!(names.iter().all(|name| name.starts_with("_Z")));
    }

    #[test]
    fn every_era_is_told_by_its_own_symbols_and_misses_nothing() {
        for era in Era::ALL {
            assert_eq!(Era::of(&whole(era)), Some(era));
            assert_eq!(whole(era).gaps(era).count(), 0);
        }
    }

    #[test]
    fn a_library_with_nothing_of_it_has_no_era() {
        assert_eq!(Era::of(&SymbolSet::default()), None);
    }

    #[test]
    fn a_library_with_little_of_it_is_like_the_newest_era_that_fits_and_not_tracked() {
        let little = set(&["_ZNK2tt8tt_metal6Buffer7addressEv"]);
        assert_eq!(Era::of(&little), Some(Era::C));
        assert!(little.missing(Era::C).any(|role| role == "allocate"));
        // What only era A has outweighs any number of names that it shares with others.
        let mut older = whole(Era::C);
        for (index, symbol) in SYMBOLS.iter().enumerate() {
            if symbol.role == "allocate" {
                older.0[index / 64] &= !(1 << (index % 64));
                if symbol.eras.contains(Era::A) {
                    older.insert(index);
                }
            }
        }
        assert_eq!(Era::of(&older), Some(Era::A));
    }

    #[test]
    fn what_is_missing_is_named_by_role_once() {
        let without = |role| {
            let mut set = whole(Era::C);
            for (index, symbol) in SYMBOLS.iter().enumerate() {
                if symbol.role == role {
                    set.0[index / 64] &= !(1 << (index % 64));
                }
            }
            set
        };
        // An optional role is a gap and no more; of several symbols one is enough.
        let gaps = |role| without(role).gaps(Era::C).map(|gap| gap.name).collect::<Vec<_>>();
        assert_eq!(gaps("bank_size"), ["bank_size"]);
        assert_eq!(without("bank_size").missing(Era::C).count(), 0);
        assert_eq!(gaps("allocator_end"), ["allocator_end"]);
        // What is required makes tracking impossible.
        let missing: Vec<_> = without("num_banks").missing(Era::C).collect();
        assert_eq!(missing, ["num_banks"]);
        // Of an era that never had it, nothing is missing.
        assert!(!whole(Era::A).has("mesh_impl_open", Era::A));
        assert_eq!(
            without("mesh_impl_open")
                .gaps(Era::B)
                .filter(|gap| gap.name == "mesh_impl_open")
                .count(),
            0
        );
        assert_eq!(gaps("mesh_impl_open"), ["mesh_impl_open"]);
    }

    #[test]
    fn every_role_is_in_the_catalogue_once_and_says_what_it_is_for() {
        let names: HashSet<_> = ROLES.iter().map(|role| role.name).collect();
        assert_eq!(names.len(), ROLES.len());
        assert_eq!(names, SYMBOLS.iter().map(|symbol| symbol.role).collect());
        for role in ROLES {
            assert!(role.purpose.starts_with("to "), "{}", role.name);
            assert!(role.cost.len() > 10 && !role.cost.ends_with('.'), "{}", role.name);
            assert!(Era::ALL.into_iter().any(|era| role.is_in(era)), "{}", role.name);
        }
    }
}
