//! Finds the libtorch to build and run with: the user's own, or the checkout's.

mod disk;
mod foreign;
mod installed;
mod provision;
pub(crate) mod version;

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::checkout::Checkout;
use crate::error::Error;

/// A libtorch that was checked to be whole and of the required version.
pub(crate) enum Libtorch {
    /// The checkout's own, which `.cargo/config.toml` already points cargo and the linker at.
    Provisioned(PathBuf),
    /// The user's, a folder with `lib` and `include`.
    Foreign(PathBuf),
}

impl Libtorch {
    /// Looks where the build of the bindings will look, in the same order, and provisions the
    /// checkout's own libtorch if the user points nowhere else.
    pub(crate) fn find_or_provision(checkout: &Checkout) -> Result<Self, Error> {
        // Set to anything counts: the bindings do not look at the value either.
        if env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
            return foreign::of_python().map(Libtorch::Foreign);
        }
        let own = checkout.libtorch().join("torch");
        // `.cargo/config.toml` sets LIBTORCH to the checkout's own when the user has not.
        let set = env::var_os("LIBTORCH").filter(|set| !set.is_empty()).map(PathBuf::from);
        match set {
            Some(folder) if !same_folder(&folder, &own) => {
                foreign::of_variable(&folder).map(Libtorch::Foreign)
            }
            _ => provision::ensure(checkout).map(|()| Libtorch::Provisioned(own)),
        }
    }

    /// Gives `command` the environment it needs to build with, and to load, this libtorch.
    pub(crate) fn apply(&self, command: &mut Command) {
        match self {
            // Left to `.cargo/config.toml`, so that this cargo and a plain one see the same
            // environment and neither rebuilds what the other has built.
            Libtorch::Provisioned(_) => {
                command.env_remove("LIBTORCH");
            }
            Libtorch::Foreign(torch) => {
                command.env("LIBTORCH", torch).env("LD_LIBRARY_PATH", library_path(torch));
            }
        }
    }
}

impl fmt::Display for Libtorch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Libtorch::Provisioned(torch) | Libtorch::Foreign(torch)) = self;
        torch.display().fmt(f)
    }
}

fn same_folder(one: &Path, other: &Path) -> bool {
    let resolve = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path)).ok();
    resolve(one) == resolve(other)
}

/// The library folders of `torch`, of the CUDA wheels installed beside it, and what was set.
fn library_path(torch: &Path) -> OsString {
    let mut folders = vec![torch.join("lib")];
    if let Some(beside) = torch.parent() {
        // nvidia/<package>/lib, and nvidia/<package>/<part>/lib in some of the older layouts.
        for package in subfolders(&beside.join("nvidia")) {
            folders.push(package.join("lib"));
            folders.extend(subfolders(&package).into_iter().map(|part| part.join("lib")));
        }
    }
    folders.retain(|folder| folder.is_dir());
    let set = env::var_os("LD_LIBRARY_PATH").filter(|set| !set.is_empty());
    folders.extend(set.iter().flat_map(env::split_paths));
    // A folder with a colon in its name cannot be in the list at all.
    folders.retain(|folder| env::join_paths([folder]).is_ok());
    env::join_paths(folders).unwrap_or_default()
}

/// The folders in `folder`, sorted, so that the search path is the same in every run.
fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found
}
