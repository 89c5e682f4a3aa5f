//! Tells a whole libtorch from a broken one.

use std::fs;
use std::io;
use std::path::Path;

use super::manifest::{Found, Manifest, check_sizes};
use super::variant::Variant;
use super::version::{self, REQUIRED};

/// How a folder was found.
pub(super) enum State {
    Absent,
    /// Its manifest vouches for it.
    Complete(Variant),
    /// Nothing vouches for it, but every file is there: made by hand with `pip install --target`.
    Unstamped,
    /// Cannot be used, why, and what it was if that can be told.
    Unusable(String, Option<Variant>),
}

/// How closely to look.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// At the libraries, a few dozen files: at every start.
    Quick,
    /// At each of some ten thousand files.
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

/// Whether there is what every libtorch must have, of the required version.
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

/// Vouches for a folder that was made by hand, once it was found whole.
pub(super) fn take_over(folder: &Path) -> io::Result<Variant> {
    let manifest = from_records(folder).map_err(io::Error::other)?;
    manifest.write(folder)?;
    Ok(manifest.variant)
}

/// The manifest of what pip installed, by the lists of files that each package brings.
///
/// Every file of every package is checked; of these only the libraries and the headers are of use.
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

/// A line of RECORD, `path,hash,size`. Compiled Python has no size, and scripts (`../…`) are
/// recorded where `pip install --target` does not put them: both are passed over.
fn recorded(line: &str) -> Option<(u64, String)> {
    let mut from_the_end = line.rsplitn(3, ',');
    let size = from_the_end.next()?.parse().ok()?;
    let path = from_the_end.nth(1)?.trim_matches('"');
    (!path.starts_with("../")).then(|| (size, path.to_owned()))
}
