//! Tests that the tables agree with the documentation and with each other.

use std::collections::BTreeSet;

use super::*;

const DOCS: &str = include_str!("../../docs/lightning_module.md");

/// Checks that for each entry in the tables of this crate, the documentation has a line with the
/// entry's name and all of its keys.
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
            // The documentation names `lr` in the heading of its table of optimizers, not in each
            // row.
            let keys = || entry.keys().map(|key| key.name).filter(|key| *key != "lr");
            line.starts_with('|') && names(entry.name) && keys().all(names)
        };
        assert!(DOCS.lines().any(|line| is_told(&line)), "`{}` with its keys", entry.name);
    }
    for entry in DRAWS.iter().map(Named::entry) {
        let line =
            DOCS.lines().find(|line| line.starts_with("| `shape") && line.contains(entry.name));
        let line = line.unwrap_or_else(|| panic!("`{}` is documented", entry.name));
        assert!(entry.keys().all(|key| line.contains(key.name)), "`{}` with its keys", entry.name);
    }
    for hook in HOOKS {
        let line = format!("| `#[{}(…)]` | `{}` |", hook.name, hook.signature);
        assert!(DOCS.contains(&line), "{line}");
    }
}

/// Returns the words that are in backticks in a table cell of the documentation.
fn words(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Finds the line `line` in the documentation. Returns the first two cells of each row of the table
/// after this line.
fn rows_after(line: &str) -> Vec<(Vec<String>, Vec<String>)> {
    let (_, behind) = DOCS.split_once(line).unwrap_or_else(|| panic!("`{line}` is there"));
    let lines = behind.lines().skip_while(|line| !line.starts_with("| ---")).skip(1);
    let rows = lines.take_while(|line| line.starts_with('|')).map(|line| {
        let mut cells = line.trim_start_matches("| ").split(" | ");
        let mut cell = || words(cells.next().unwrap_or_default());
        (cell(), cell())
    });
    rows.collect()
}

/// Checks the documentation's tables of missing arguments and missing layers against the signatures
/// of torch.nn, which fixtures/oracles/signatures.json records. If a layer of torch.nn is in
/// `LAYERS`, the table of missing arguments must list exactly those of its arguments that `LAYERS`
/// lacks. The table of missing layers must list exactly the layers of torch.nn that are not in
/// `LAYERS`.
#[test]
fn missing_arguments_of_torch_layers_are_documented() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/oracles/signatures.json");
    let recorded = std::fs::read_to_string(path).expect("the recorded signatures");
    let recorded: serde_json::Value = serde_json::from_str(&recorded).expect("JSON");
    let torchs = recorded["layers"].as_object().expect("layers");
    let (mut without, mut missing) = (BTreeSet::new(), BTreeSet::new());
    for (layer, arguments) in torchs {
        let is_here = |row: &&Layer| match row.entry.name {
            "gelu_tanh" => layer == "GELU",
            name => name.replace('_', "") == layer.to_lowercase(),
        };
        let here: Vec<&Layer> = LAYERS.iter().filter(is_here).collect();
        if here.is_empty() {
            without.insert(layer.clone());
            continue;
        }
        for argument in arguments.as_array().expect("arguments") {
            let argument = argument.as_str().expect("a name");
            let has = |row: &Layer| row.entry.keys().any(|key| key.name == argument);
            if !here.iter().all(|row| has(row)) {
                missing.insert((layer.clone(), argument.to_owned()));
            }
        }
    }
    let table = rows_after("## Arguments of torch.nn that layers do not have");
    let mut told = BTreeSet::new();
    for (layers, arguments) in &table {
        for layer in layers {
            told.extend(arguments.iter().map(|argument| (layer.clone(), argument.clone())));
        }
    }
    assert_eq!(told, missing);
    let table = rows_after("These layers of torch.nn have no name in `#[layer]`:");
    let told: BTreeSet<String> = table.into_iter().flat_map(|(layers, _)| layers).collect();
    assert_eq!(told, without);
}

/// Checks that the prelude exports the type of every layer in `LAYERS`, so that a user can write
/// the types of layer fields.
#[test]
fn the_type_of_every_layer_is_in_the_prelude() {
    let source = include_str!("../../../amp-core/src/lib.rs");
    let prelude = source.split("pub mod prelude").nth(1).expect("it is there");
    let prelude = prelude.split("pub mod __private").next().expect("it ends");
    let names: Vec<&str> = prelude.split(|c: char| !c.is_alphanumeric()).collect();
    for layer in LAYERS {
        let ty = layer.entry.ty;
        assert!(names.contains(&ty), "`{ty}` of `{}`", layer.entry.name);
    }
}
