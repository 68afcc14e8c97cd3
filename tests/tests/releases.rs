//! The catalogue against the facts of every release: what it says of an era must be what releases have.
//!
//! If a release fails here after the catalogue has changed: `symbols/releases/regenerate` first.

#![allow(clippy::panic, reason = "a test that can't go on says so")]

use std::collections::{BTreeMap, BTreeSet};

use ttalloc::facts::Facts;
use ttalloc_symbols::{Era, ROLES, SYMBOLS, SymbolSet};
use ttalloc_tests::releases::all;

fn era(facts: &Facts) -> Era {
    let letter = facts.era.as_deref();
    let era = Era::ALL.into_iter().find(|era| Some(era.letter()) == letter);
    era.unwrap_or_else(|| panic!("{}: {letter:?} is no era", name(facts)))
}

fn name(facts: &Facts) -> &str {
    facts.release.as_deref().unwrap_or("?")
}

fn symbols(facts: &Facts) -> BTreeSet<&str> {
    facts.roles.iter().flat_map(|role| &role.symbols).map(|one| &*one.symbol).collect()
}

fn present(facts: &Facts) -> SymbolSet {
    let mut present = SymbolSet::default();
    for symbol in symbols(facts) {
        present.insert(index(facts, symbol));
    }
    present
}

fn index(facts: &Facts, symbol: &str) -> usize {
    let index = SYMBOLS.iter().position(|known| known.name == symbol);
    index.unwrap_or_else(|| panic!("{}: {symbol} is not in the catalogue", name(facts)))
}

#[test]
fn every_release_is_there_and_of_the_era_that_its_symbols_tell() {
    let all = all();
    assert!(all.len() >= 28, "{} releases", all.len());
    assert_eq!((name(&all[0]), &*all[0].file), ("0.60.1", "_ttnncpp.so"));
    assert!(all[1..].iter().all(|facts| facts.file == "libtt_metal.so"));
    let build_ids: BTreeSet<_> = all.iter().map(|facts| facts.build_id.as_deref()).collect();
    assert_eq!(build_ids.len(), all.len());
    assert!(!build_ids.contains(&None));
    let eras: Vec<_> = all.iter().map(era).collect();
    for (facts, &era) in all.iter().zip(&eras) {
        assert_eq!(Era::of(&present(facts)), Some(era), "{}", name(facts));
    }
    // Eras follow on each other, and none is made up.
    assert!(eras.is_sorted_by_key(|&era| era.letter()));
    assert!(Era::ALL.into_iter().all(|era| eras.contains(&era)));
}

#[test]
fn every_role_of_the_catalogue_is_told() {
    let roles: Vec<_> = ROLES.iter().map(|role| role.name).collect();
    for facts in all() {
        let told: Vec<_> = facts.roles.iter().map(|role| &*role.role).collect();
        assert_eq!(told, roles, "{}: run symbols/releases/regenerate", name(&facts));
    }
}

#[test]
fn what_a_release_has_is_in_the_catalogue_of_its_era_for_that_role() {
    for facts in all() {
        let era = era(&facts);
        for role in &facts.roles {
            for symbol in &role.symbols {
                let known = &SYMBOLS[index(&facts, &symbol.symbol)];
                let (release, symbol) = (name(&facts), &symbol.symbol);
                assert_eq!(known.role, role.role, "{release}: {symbol}");
                assert!(known.eras.contains(era), "{release}: {symbol} is not of era {era:?}");
            }
        }
    }
}

#[test]
fn what_the_catalogue_has_of_an_era_is_in_a_release_of_it() {
    let mut seen: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for facts in all() {
        seen.entry(era(&facts).letter())
            .or_default()
            .extend(symbols(&facts).into_iter().map(str::to_owned));
    }
    for symbol in SYMBOLS {
        for era in Era::ALL.into_iter().filter(|&era| symbol.eras.contains(era)) {
            let (role, name) = (symbol.role, symbol.name);
            assert!(
                seen[era.letter()].contains(name),
                "{role}: no release of era {era:?} has {name}"
            );
        }
    }
}

/// A release lacks what its era should have only where `ROLES` declares that it may; and what is declared
/// so is true.
#[test]
fn no_release_has_a_gap_and_no_role_is_excused_for_nothing() {
    let all = all();
    for facts in &all {
        let gaps: Vec<_> = present(facts).gaps(era(facts)).map(|role| role.name).collect();
        assert!(
            gaps.is_empty(),
            "{}: {gaps:?}; if that costs nothing there, say so in ROLES",
            name(facts)
        );
    }
    for role in ROLES {
        for one in
            Era::ALL.into_iter().filter(|&one| role.is_in(one) && !role.expected.contains(one))
        {
            let lacks = |facts: &&Facts| era(facts) == one && !present(facts).has(role.name, one);
            assert!(
                all.iter().any(|facts| lacks(&facts)),
                "{} is in all releases of {one:?}",
                role.name
            );
        }
    }
}

/// What docs/engines.md says: that a preload library reaches everything in every release.
#[test]
fn every_release_calls_through_the_dynamic_linker() {
    use ttalloc::binary::{Table, Way};
    for facts in all() {
        assert!(!facts.symbolic, "{}", name(&facts));
        for role in &facts.roles {
            for symbol in &role.symbols {
                let direct = symbol.ways.contains(&Way::Direct) || symbol.table != Table::Dynsym;
                assert!(!direct, "{}: {} is reached directly", name(&facts), symbol.symbol);
            }
        }
    }
}
