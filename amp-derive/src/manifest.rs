//! What Cargo.toml says about amp-core.

use proc_macro_crate::{Error, FoundCrate, crate_name};

/// Under which name the crate that is compiled has amp-core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Manifest {
    Named(String),
    /// It has dependencies, but not this one.
    Missing,
}

/// The package and its library.
const PACKAGE: &str = "amp-core";
const LIBRARY: &str = "amp_core";

/// Reads the Cargo.toml of the crate that is compiled.
pub(crate) fn read() -> Manifest {
    match crate_name(PACKAGE) {
        Ok(FoundCrate::Name(name)) => Manifest::Named(name),
        Err(Error::CrateNotFound { .. }) => Manifest::Missing,
        // amp-core calls itself by its name, so that its examples and doc tests, which are crates
        // of their own, need no other.
        Ok(FoundCrate::Itself) => Manifest::Named(LIBRARY.to_owned()),
        // Built by something else than Cargo.
        Err(_) => Manifest::Named(LIBRARY.to_owned()),
    }
}
