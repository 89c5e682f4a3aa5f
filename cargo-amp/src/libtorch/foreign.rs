//! Checks a libtorch installation that the user has chosen.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::version::{self, REQUIRED};
use crate::error::Error;

/// A Python program that prints the folder of torch. The program does not import torch, because an
/// import takes seconds.
const FIND_TORCH: &str = "\
import importlib.util, os
spec = importlib.util.find_spec('torch')
print(os.path.dirname(spec.origin) if spec and spec.origin else '')
";

/// Returns the absolute path of the folder in `LIBTORCH`. A relative path would be wrong in builds,
/// which run in other working directories.
pub(super) fn of_variable(folder: &Path) -> Result<PathBuf, Error> {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    check(&folder).map_err(|problem| {
        Error::new(format!(
            "LIBTORCH is {}, {problem}: set it to a libtorch {REQUIRED} folder, or unset it to \
             have one fetched",
            folder.display()
        ))
    })?;
    Ok(folder)
}

/// Returns the folder of the torch package of the user's Python. Called if `LIBTORCH_USE_PYTORCH` is
/// set.
pub(super) fn of_python() -> Result<PathBuf, Error> {
    // The build script of the bindings chooses `python` or `python3` in the same way, so both use
    // the same Python.
    let python = if env::var_os("VIRTUAL_ENV").is_some() { "python" } else { "python3" };
    let asked = "LIBTORCH_USE_PYTORCH is set";
    let fix = format!(
        "run `{python} -m pip install torch=={REQUIRED}`, or unset LIBTORCH_USE_PYTORCH to have \
         libtorch fetched"
    );
    let output = Command::new(python)
        .args(["-c", FIND_TORCH])
        .output()
        .map_err(|e| Error::new(format!("{asked}, but {python} cannot be run ({e}): {fix}")))?;
    let answer = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() || answer.trim().is_empty() {
        return Err(Error::new(format!("{asked}, but {python} has no torch: {fix}")));
    }
    let folder = PathBuf::from(answer.trim());
    check(&folder).map_err(|problem| {
        Error::new(format!(
            "{asked} and the torch of {python} is {}, {problem}: {fix}",
            folder.display()
        ))
    })?;
    Ok(folder)
}

/// Checks a torch folder. The error text begins with "which", because error messages append it to
/// the folder's path.
fn check(torch: &Path) -> Result<(), String> {
    if !torch.is_dir() {
        return Err("which is not a folder".into());
    }
    let library = ["lib/libtorch.so", "lib/libtorch_cpu.so"];
    if !library.iter().any(|name| torch.join(name).is_file()) {
        return Err("which has no lib/libtorch.so".into());
    }
    if !torch.join("include").is_dir() {
        return Err("which has no include folder".into());
    }
    match version::of(torch) {
        Some(found) if version::is_required(&found) => Ok(()),
        Some(found) => Err(format!("which is version {found}, but {REQUIRED} is needed")),
        None => {
            Err("which has neither build-version nor version.py, so its version is unknown".into())
        }
    }
}
