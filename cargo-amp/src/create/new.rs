//! `cargo amp new`: creates a crate with a model.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{self, ExitCode};

use super::changes::{Changes, unwritable};
use super::source::Source;
use super::template;
use crate::cargo;
use crate::error::Error;

/// The dependencies of a new crate. The crate itself cannot have one of these names.
const DEPENDENCIES: [&str; 4] = ["amp-core", "amp-derive", "amp-verify", "fastrand"];

/// Crates that are part of the Rust distribution. `cargo new` accepts these names with a warning,
/// but `cargo amp new` refuses them.
const STANDARD: [&str; 4] = ["alloc", "core", "proc-macro", "std"];

/// Creates the crate `name` in a folder with that name.
pub(crate) fn new(name: &str, amp_source: Option<&str>) -> Result<ExitCode, Error> {
    check_name(name)?;
    let source = Source::find(amp_source)?;
    let working = env::current_dir()
        .map_err(|e| Error::new(format!("the working directory cannot be read: {e}")))?;
    let folder = working.join(name);
    if folder.symlink_metadata().is_ok() {
        return Err(Error::new(format!(
            "{} exists already: choose another name, or run `cargo amp init` in it",
            folder.display()
        )));
    }
    let partial = working.join(format!(".{name}.partial"));
    if partial.exists() {
        // An interrupted `cargo amp new` may have left this folder.
        fs::remove_dir_all(&partial).map_err(|e| unwritable(&partial, &e))?;
    }
    let mut changes = Changes::default();
    for (path, text) in template::new_crate(name, &source) {
        changes.write(&partial.join(path), &text)?;
    }
    check_manifest(&partial.join("Cargo.toml"))?;
    fs::rename(&partial, &folder).map_err(|e| unwritable(&folder, &e))?;
    changes.keep();
    say!(
        "made the crate {name}: its model is in {name}/src/lib.rs, its data in \
         {name}/src/data.rs\n    cd {name}\n    cargo amp verify"
    );
    if let Source::Path(folder) = source {
        say!(
            "amp-core comes from {}, which other machines do not have: for CI, put a git URL into \
             Cargo.toml and .github/workflows/amp.yml",
            folder.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses names that `cargo new` refuses and names that would clash with a dependency.
fn check_name(name: &str) -> Result<(), Error> {
    let another = "choose another name for `cargo amp new NAME`, for example my-model";
    let dashed = name.replace('_', "-");
    if STANDARD.contains(&&*dashed) {
        return Err(Error::new(format!("`{name}` is a crate of the Rust distribution: {another}")));
    }
    if dashed == "amp" {
        // If the crate were named `amp`, its library and its binary would have the same name, and
        // `cargo doc` would write the pages of both to the same folder.
        return Err(Error::new(format!("`{name}` is the name of the crate's binary: {another}")));
    }
    if DEPENDENCIES.contains(&&*dashed) {
        return Err(Error::new(format!("`{name}` is a dependency of the new crate: {another}")));
    }
    let scratch = env::temp_dir().join(format!("cargo-amp-new-{}", process::id()));
    let mut try_it = cargo::command();
    try_it.args(["new", "--lib", "--vcs", "none"]).arg(format!("--name={name}")).arg(&scratch);
    let answer = cargo::run(&mut try_it, |reason| format!("{reason}: {another}"));
    if scratch.exists() {
        // The folder is temporary, so an error while it is removed is ignored.
        let _ = fs::remove_dir_all(&scratch);
    }
    answer.map(drop)
}

/// Refuses a manifest that cargo cannot read, for example because of an invalid version.
fn check_manifest(manifest: &Path) -> Result<(), Error> {
    let mut command = cargo::command();
    command.args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"]);
    let explain = |reason| format!("{reason}: check --amp-source");
    cargo::run(command.arg(manifest), explain).map(drop)
}
