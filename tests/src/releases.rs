//! The facts of releases, as `symbols/releases/` has them.

use std::fs;
use std::path::Path;

use ttalloc::facts::Facts;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../symbols/releases");

/// The facts of one release.
///
/// # Panics
/// If there are none.
pub fn facts(release: &str) -> Facts {
    read(&Path::new(FOLDER).join(format!("{release}.json")))
}

/// The facts of all releases, the oldest first.
///
/// # Panics
/// If they can't be read.
pub fn all() -> Vec<Facts> {
    let entries = fs::read_dir(FOLDER).expect("the folder can be read");
    let paths = entries.map(|entry| entry.expect("the folder can be read").path());
    let is_facts = |path: &std::path::PathBuf| path.extension().is_some_and(|end| end == "json");
    let mut all: Vec<_> = paths.filter(is_facts).map(|path| read(&path)).collect();
    all.sort_by_key(|facts| {
        let release = facts.release.as_deref().unwrap_or_default();
        release.split('.').map(|number| number.parse::<u32>().ok()).collect::<Vec<_>>()
    });
    all
}

fn read(path: &Path) -> Facts {
    let json = match fs::read(path) {
        Ok(json) => json,
        Err(why) => panic!("{}: {why}", path.display()),
    };
    let facts: Facts = match serde_json::from_slice(&json) {
        Ok(facts) => facts,
        Err(why) => panic!("{}: {why}; run symbols/releases/regenerate", path.display()),
    };
    let name = path.file_stem().and_then(|name| name.to_str());
    assert_eq!(facts.release.as_deref(), name, "{}: another release's", path.display());
    facts
}
