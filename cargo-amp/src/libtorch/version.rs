//! The required version of libtorch, and the version of the libtorch in a folder.

use std::fs;
use std::path::Path;

/// The libtorch version for which the bindings (crate `tch` 0.24) are written. The bindings refuse
/// all other versions.
pub(crate) const REQUIRED: &str = "2.11.0";

/// Returns whether `version` is the required one, with any local version, for example
/// `2.11.0+cu130`.
pub(crate) fn is_required(version: &str) -> bool {
    version.split('+').next() == Some(REQUIRED)
}

/// Returns the version of the torch in a folder. A libtorch archive stores the version in the file
/// `build-version`. A wheel stores it in `version.py`.
pub(crate) fn of(torch: &Path) -> Option<String> {
    if let Ok(version) = fs::read_to_string(torch.join("build-version")) {
        return Some(version.trim().to_owned());
    }
    fs::read_to_string(torch.join("version.py"))
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix("__version__"))
        .map(|rest| rest.trim_matches(|c: char| c.is_whitespace() || "='\"".contains(c)).to_owned())
}

#[cfg(test)]
mod tests {
    use super::is_required;

    #[test]
    fn the_build_does_not_matter_but_every_digit_does() {
        assert!(is_required("2.11.0"));
        assert!(is_required("2.11.0+cu130"));
        assert!(!is_required("2.11.01"));
        assert!(!is_required("2.11.0a0+git"));
        assert!(!is_required("2.1.0"));
        assert!(!is_required(""));
    }
}
