//! Determines whether a folder has a complete libtorch.

use std::fs;
use std::io;
use std::path::Path;

use super::manifest::{Found, Manifest, check_sizes};
use super::variant::Variant;
use super::version::{self, REQUIRED};

/// The state of a folder that should contain a libtorch.
pub(super) enum State {
    Absent,
    /// All files of the manifest that [`Look`] asks to check exist and have the listed size.
    Complete(Variant),
    /// The files are complete, but there is no manifest, because the user created the folder with
    /// `pip install --target`.
    Unstamped,
    /// The folder cannot be used. The value contains the reason and, if it is known, the variant.
    Unusable(String, Option<Variant>),
}

/// How thoroughly the files of a libtorch folder are checked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Checks only the libraries (a few dozen files) and skips the headers. Used at every start of
    /// `cargo amp`.
    Quick,
    /// Checks every file, about ten thousand.
    Thorough,
}

pub(super) fn inspect(folder: &Path, look: Look) -> State {
    if !folder.is_dir() {
        return State::Absent;
    }
    match Manifest::find(folder) {
        Found::Manifest(manifest) => {
            let looked_at = |path: &str| look == Look::Thorough || !is_header(path);
            match check(folder, manifest.variant).and_then(|()| manifest.check(folder, looked_at)) {
                Ok(()) => State::Complete(manifest.variant),
                Err(problem) => State::Unusable(problem, Some(manifest.variant)),
            }
        }
        Found::Unusable(problem) => State::Unusable(problem, None),
        Found::Nothing => match from_records(folder) {
            Ok(_) => State::Unstamped,
            Err(problem) => State::Unusable(problem, None),
        },
    }
}

fn is_header(path: &str) -> bool {
    path.starts_with("torch/include/")
}

/// Checks the version of libtorch, and that the files that the variant needs exist.
pub(super) fn check(folder: &Path, variant: Variant) -> Result<(), String> {
    match version::of(&folder.join("torch")) {
        Some(found) if version::is_required(&found) => {}
        Some(found) => return Err(format!("torch is version {found}, not {REQUIRED}")),
        None => return Err("torch is missing".into()),
    }
    match variant.needed().iter().find(|path| !folder.join(path).is_file()) {
        Some(path) => Err(format!("{path} is missing")),
        None => Ok(()),
    }
}

/// Checks that a folder that the user filled with pip is complete, and then writes a manifest for
/// it.
pub(super) fn take_over(folder: &Path) -> io::Result<Variant> {
    let manifest = from_records(folder).map_err(io::Error::other)?;
    manifest.write(folder)?;
    Ok(manifest.variant)
}

/// Creates a manifest from the list of files that pip recorded for each package.
///
/// Checks the sizes of all files of the packages, but puts only libraries and headers into the
/// manifest.
fn from_records(folder: &Path) -> Result<Manifest, String> {
    let has_cuda = folder.join("torch/lib/libtorch_cuda.so").is_file();
    let variant = if has_cuda { Variant::Cuda } else { Variant::Cpu };
    check(folder, variant)?;
    if !folder.join(format!("torch-{REQUIRED}.dist-info/RECORD")).is_file() {
        return Err("the list of torch's files is missing".into());
    }
    let mut files = Vec::new();
    for package in super::subfolders(folder) {
        let Ok(record) = fs::read_to_string(package.join("RECORD")) else { continue };
        files.extend(record.lines().filter_map(recorded));
    }
    check_sizes(folder, &files)?;
    files.retain(|(_, path)| path.contains("/lib/") || is_header(path));
    Ok(Manifest { variant, files })
}

/// Parses a line of RECORD, `path,hash,size`. Returns `None` for compiled Python, which has no
/// size, and for scripts (`../…`), which `pip install --target` stores elsewhere.
fn recorded(line: &str) -> Option<(u64, String)> {
    let mut from_the_end = line.rsplitn(3, ',');
    let size = from_the_end.next()?.parse().ok()?;
    let path = from_the_end.nth(1)?.trim_matches('"');
    (!path.starts_with("../")).then(|| (size, path.to_owned()))
}
