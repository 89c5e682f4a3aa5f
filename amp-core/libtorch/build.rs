//! Searches for libtorch in the same places as torch-sys's build script.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// The version of libtorch that tch 0.24 needs.
const VERSION: &str = "2.11.0";

/// The environment variables that torch-sys's build script reads.
const VARIABLES: [&str; 5] =
    ["LIBTORCH", "LIBTORCH_LIB", "LIBTORCH_USE_PYTORCH", BYPASS, "DOCS_RS"];

const BYPASS: &str = "LIBTORCH_BYPASS_VERSION_CHECK";

fn main() {
    println!("cargo::rustc-env=AMP_LIBTORCH_VERSION={VERSION}");
    println!("cargo::rerun-if-changed=build.rs");
    for variable in VARIABLES {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    // With LIBTORCH_USE_PYTORCH, torch-sys uses the libtorch of Python's torch, and checks the
    // version itself.
    let unneeded = ["CARGO_FEATURE_DOC_ONLY", "DOCS_RS", "LIBTORCH_USE_PYTORCH"];
    if unneeded.iter().any(|variable| env::var_os(variable).is_some()) {
        return;
    }
    if let Err(problem) = check() {
        println!("cargo::error={problem}");
    }
}

/// Checks that the library exists and has the right version. The error is one line with the cause
/// and the fix.
fn check() -> Result<(), String> {
    let Some(folder) = env::var_os("LIBTORCH").map(PathBuf::from) else {
        // Without LIBTORCH, torch-sys looks for an installed libtorch.
        return if Path::new("/usr/lib/libtorch.so").exists() {
            Ok(())
        } else {
            Err(format!(
                "LIBTORCH is not set: run `cargo amp init`, or set it to the folder of a libtorch {VERSION}"
            ))
        };
    };
    let library = env::var_os("LIBTORCH_LIB").map_or_else(|| folder.clone(), PathBuf::from);
    let library = library.join("lib/libtorch_cpu.so");
    println!("cargo::rerun-if-changed={}", library.display());
    let linux = env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system == "linux");
    if linux && !library.exists() {
        let folder = folder.display();
        return Err(format!("libtorch {VERSION} is not at {folder}: run `cargo amp setup`"));
    }
    match version(&folder) {
        Some(found) if found != VERSION && env::var_os(BYPASS).is_none() => {
            let folder = folder.display();
            Err(format!(
                "the libtorch at {folder} is {found}, and {VERSION} is needed: run `cargo amp setup`, or set LIBTORCH to another folder"
            ))
        }
        _ => Ok(()),
    }
}

/// Returns the version from the folder's own version file, without a suffix such as `+cu130`.
fn version(folder: &Path) -> Option<String> {
    // The version is in the file `build-version` of PyTorch's C++ archive, and in `version.py` of
    // its Python wheel.
    let plain = fs::read_to_string(folder.join("build-version")).ok();
    let python = || {
        let text = fs::read_to_string(folder.join("version.py")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
        Some(line.trim_matches(['\'', '"']).to_owned())
    };
    let full = plain.or_else(python)?;
    full.trim().split('+').next().map(str::to_owned)
}
