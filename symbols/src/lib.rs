//! What tt-metal exports that ttalloc hooks or calls: the one place where a mangled name stands.
//!
//! The table is the [`catalogue!`] macro. The preload library expands it into its exported hooks and
//! its run-time look-ups; [`SYMBOLS`] is the same table as data, for the launcher and diagnostics.
//!
//! A release belongs to one of three [`Era`]s, told apart by the names of the classes that allocate.
//! Eras go by symbol and never by version number: the class was renamed within 0.65. The names were
//! read off the dynamic symbol tables of the `ttnn` wheels on PyPI, 0.62.0 to 0.81.1.
#![no_std]

#[macro_use]
mod catalogue;

/// A family of tt-metal releases that use the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Era {
    /// 0.62.0 to 0.65.0: class `Allocator`, `Buffer::create`.
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

    /// The era of a runtime that defines `present`, if it is one that ttalloc knows.
    ///
    /// It is decided by who allocates and who creates buffers; nothing else differs enough to matter.
    pub fn of(present: &SymbolSet) -> Option<Era> {
        let defines = |role: &str, era: Era| {
            SYMBOLS.iter().enumerate().any(|(index, symbol)| {
                symbol.role == role && symbol.eras.contains(era) && present.contains(index)
            })
        };
        // `create_at_address` tells B from C, `allocate` tells A from both.
        [Era::C, Era::B, Era::A]
            .into_iter()
            .find(|&era| defines("allocate", era) && defines("create_at_address", era))
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

    /// The required roles of `era` for which the set holds no symbol, each once.
    pub fn missing(&self, era: Era) -> impl Iterator<Item = &'static str> {
        let has_role = move |index: usize, role| {
            SYMBOLS[index].role == role && SYMBOLS[index].eras.contains(era)
        };
        (0..COUNT).filter_map(move |index| {
            let role = SYMBOLS[index].role;
            let first = (0..COUNT).find(|&other| has_role(other, role)) == Some(index);
            let found = (0..COUNT).any(|other| has_role(other, role) && self.contains(other));
            (SYMBOLS[index].required && first && !found).then_some(role)
        })
    }
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
                required: false,
            },)+)+
            $($(Symbol {
                role: stringify!($lookup),
                name: $lookup_name,
                eras: Eras::NONE$(.and(Era::$lookup_era))+,
                usage: Use::LookUp,
                required: same(stringify!($need).as_bytes(), b"required"),
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
        for era in [Era::A, Era::B, Era::C] {
            assert_eq!(Era::of(&whole(era)), Some(era));
            assert_eq!(whole(era).missing(era).count(), 0);
        }
    }

    #[test]
    fn a_library_without_an_allocator_has_no_era() {
        assert_eq!(Era::of(&SymbolSet::default()), None);
        assert_eq!(Era::of(&set(&["_ZNK2tt8tt_metal6Buffer7addressEv"])), None);
    }

    #[test]
    fn what_is_missing_is_named_by_role_once() {
        let mut names: Vec<_> = SYMBOLS
            .iter()
            .filter(|symbol| symbol.eras.contains(Era::C) && symbol.role != "bank_size")
            .map(|symbol| symbol.name)
            .collect();
        names.dedup();
        let missing: Vec<_> = set(&names).missing(Era::C).collect();
        assert_eq!(missing, ["bank_size"]);
    }
}
