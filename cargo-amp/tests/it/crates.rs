//! Helpers for the tests of `cargo amp new` and `cargo amp init`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{Checkout, stderr, stdout};

/// Creates a folder that looks like a checkout of this repository with amp-core and amp-verify.
/// Returns the folder's path.
pub(crate) fn amp_source(project: &Checkout) -> String {
    for name in ["amp-core", "amp-verify"] {
        let manifest =
            format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n");
        project.write(&format!("source/{name}/Cargo.toml"), &manifest);
        project.write(&format!("source/{name}/src/lib.rs"), "");
    }
    project.write("source/Cargo.toml", "[workspace]\nmembers = [\"amp-*\"]\nresolver = \"3\"\n");
    project.path("source").display().to_string()
}

/// Returns the texts of all files below `folder`. The keys are the files' relative paths.
pub(crate) fn files(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below it").display().to_string();
                found.insert(name, fs::read_to_string(&path).expect("text"));
            }
        }
    }
    found
}

/// Returns the names of all entries of `folder`, including hidden ones.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let name = |entry: fs::DirEntry| entry.file_name().into_string().expect("UTF-8");
    let mut names: Vec<_> = entries.map(|entry| name(entry.expect("an entry"))).collect();
    names.sort();
    names
}

/// Returns the metadata that the real cargo prints about the crate in `folder`, as JSON.
pub(crate) fn metadata(folder: &Path) -> serde_json::Value {
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--no-deps", "--format-version", "1"]).current_dir(folder);
    let output = command.output().expect("cargo runs");
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).expect("JSON")
}

/// Asserts that the Rust files of the crate in `folder` are formatted with rustfmt's default
/// settings.
#[track_caller]
pub(crate) fn assert_formatted(project: &Checkout, folder: &Path) {
    // An empty rustfmt.toml selects the default settings. Without it, rustfmt would use the
    // rustfmt.toml of this repository.
    project.write("plain/rustfmt.toml", "");
    for name in files(folder).keys().filter(|name| name.ends_with(".rs")) {
        let mut command = Command::new("rustfmt");
        command.args(["--check", "--edition", "2024", "--config-path"]);
        command.arg(project.path("plain")).arg(folder.join(name));
        let output =
            command.output().expect("rustfmt runs: `rustup component add rustfmt` installs it");
        assert!(output.status.success(), "{name}: {}{}", stdout(&output), stderr(&output));
    }
}
