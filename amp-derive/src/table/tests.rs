//! The table against its documentation and itself.

use super::*;

const DOCS: &str = include_str!("../../docs/lightning_module.md");

/// Each row has a line in the documentation, with its name and all its keys.
#[test]
fn every_name_and_key_is_documented() {
    let entries = LAYERS
        .iter()
        .map(Named::entry)
        .chain(METRICS)
        .chain(LOSSES)
        .chain(OPTIMIZERS)
        .chain(SCHEDULERS.iter().map(Named::entry));
    for entry in entries {
        let is_told = |line: &&str| {
            let names = |name: &str| {
                line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name)
            };
            // `lr` is in the heading of the table.
            let keys = || entry.keys().map(|key| key.name).filter(|key| *key != "lr");
            line.starts_with('|') && names(entry.name) && keys().all(names)
        };
        assert!(DOCS.lines().any(|line| is_told(&line)), "`{}` with its keys", entry.name);
    }
    for entry in DRAWS.iter().map(Named::entry) {
        let line =
            DOCS.lines().find(|line| line.starts_with("| `shape") && line.contains(entry.name));
        let line = line.unwrap_or_else(|| panic!("`{}` is told", entry.name));
        assert!(entry.keys().all(|key| line.contains(key.name)), "`{}` with its keys", entry.name);
    }
    for hook in HOOKS {
        let line = format!("| `#[{}(…)]` | `{}` |", hook.name, hook.signature);
        assert!(DOCS.contains(&line), "{line}");
    }
}
