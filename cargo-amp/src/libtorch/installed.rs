//! Tells a whole provisioned folder from a broken one.

use std::fs;
use std::io;
use std::path::Path;

use super::version::{self, REQUIRED};

/// A header of CUDA that the torch wheel includes but does not bring.
const CRT_HEADER: &str = "nvidia/cu13/include/crt/host_config.h";

/// What pip is asked for. A change here provisions again.
pub(super) fn requirements() -> [String; 2] {
    [format!("torch=={REQUIRED}"), "nvidia-cuda-crt<13.1".into()]
}

/// How a provisioned folder was found.
pub(super) enum State {
    Absent,
    /// Its stamp vouches for it.
    Complete,
    /// Nothing vouches for it, but every file is there: made by hand with the same pip command.
    Unstamped,
    /// Cannot be used, and why.
    Unusable(String),
}

pub(super) fn inspect(folder: &Path) -> State {
    if !folder.is_dir() {
        return State::Absent;
    }
    match fs::read_to_string(folder.join("amp-stamp")) {
        Ok(stamp) if stamp != stamp_text() => State::Unusable("made for other packages".into()),
        Ok(_) => match check(folder) {
            Ok(()) => State::Complete,
            Err(problem) => State::Unusable(problem),
        },
        Err(_) => match check(folder).and_then(|()| check_every_file(folder)) {
            Ok(()) => State::Unstamped,
            Err(problem) => State::Unusable(problem),
        },
    }
}

/// Vouches for `folder`. Written last: a folder with a stamp is whole.
pub(super) fn stamp(folder: &Path) -> io::Result<()> {
    fs::write(folder.join("amp-stamp"), stamp_text())
}

/// The quick look, taken at every start.
pub(super) fn check(folder: &Path) -> Result<(), String> {
    match version::of(&folder.join("torch")) {
        Some(found) if version::is_required(&found) => {}
        Some(found) => return Err(format!("torch is version {found}, not {REQUIRED}")),
        None => return Err("torch is missing".into()),
    }
    if !folder.join(CRT_HEADER).is_file() {
        return Err(format!("{CRT_HEADER} is missing"));
    }
    Ok(())
}

/// Holds every file of every package against the size that the package's RECORD gives.
fn check_every_file(folder: &Path) -> Result<(), String> {
    if !folder.join(format!("torch-{REQUIRED}.dist-info/RECORD")).is_file() {
        return Err("the list of torch's files is missing".into());
    }
    for package in super::subfolders(folder) {
        let Ok(record) = fs::read_to_string(package.join("RECORD")) else { continue };
        for (path, size) in record.lines().filter_map(recorded) {
            if fs::metadata(folder.join(path)).map(|found| found.len()).ok() != Some(size) {
                return Err(format!("{path} is missing or cut short"));
            }
        }
    }
    Ok(())
}

/// A line of RECORD, `path,hash,size`. Compiled Python has no size, and scripts (`../…`) are
/// recorded where `pip install --target` does not put them: both are passed over.
fn recorded(line: &str) -> Option<(&str, u64)> {
    let mut from_the_end = line.rsplitn(3, ',');
    let size = from_the_end.next()?.parse().ok()?;
    let path = from_the_end.nth(1)?.trim_matches('"');
    (!path.starts_with("../")).then_some((path, size))
}

fn stamp_text() -> String {
    requirements().join("\n") + "\n"
}
