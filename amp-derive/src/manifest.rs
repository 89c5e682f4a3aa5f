//! Reads the name under which the user's crate depends on amp-core, from its Cargo.toml.

use proc_macro_crate::{Error, FoundCrate, crate_name};

/// The name that the crate that is being compiled uses for amp-core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Manifest {
    Named(String),
    /// The user's crate does not depend on amp-core.
    Missing,
}

/// The name of amp-core's package.
const PACKAGE: &str = "amp-core";
/// The name of amp-core's library.
const LIBRARY: &str = "amp_core";

/// Reads the Cargo.toml of the crate that is being compiled.
pub(crate) fn read() -> Manifest {
    match crate_name(PACKAGE) {
        Ok(FoundCrate::Name(name)) => Manifest::Named(name),
        Err(Error::CrateNotFound { .. }) => Manifest::Missing,
        // amp-core refers to itself by the name `amp_core`. Its examples and doc tests are separate
        // crates, but use the same name.
        Ok(FoundCrate::Itself) => Manifest::Named(LIBRARY.to_owned()),
        // A build without Cargo has no manifest, so the usual name is assumed.
        Err(_) => Manifest::Named(LIBRARY.to_owned()),
    }
}
