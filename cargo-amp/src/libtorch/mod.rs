//! Finds the libtorch with which the project is built and run. It is either one that the user has
//! chosen, or the copy in the user's cache.

mod cache;
mod disk;
mod driver;
mod foreign;
mod installed;
mod link;
mod manifest;
mod provision;
mod variant;
pub(crate) mod version;
mod wheels;

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Error;
use cache::Cache;
use installed::Look;
pub(crate) use variant::Variant;

/// A libtorch that is complete and has the required version.
pub(crate) enum Libtorch {
    /// The libtorch in the user's cache, with the path of its folder `torch`. The project's
    /// `.libtorch` is a link to the parent of this folder. `.cargo/config.toml` passes the path of
    /// the link to cargo and the linker.
    Provisioned(PathBuf, Variant),
    /// A folder that the user has chosen, with `lib` and `include`.
    Foreign(PathBuf),
}

impl Libtorch {
    /// Returns the libtorch that the user has chosen with `LIBTORCH_USE_PYTORCH` or `LIBTORCH`,
    /// which the build script of the bindings reads in the same order. If the user has chosen none,
    /// downloads libtorch into the user's cache if it is not there, and creates the link
    /// `.libtorch` in `project`.
    pub(crate) fn find_or_provision(project: &Path) -> Result<Self, Error> {
        Self::find(project, None, Look::Quick)
    }

    /// Finds or downloads libtorch for `cargo amp setup`. Unlike
    /// [`find_or_provision`](Self::find_or_provision), checks every file. If the libtorch in the
    /// cache lacks the variant `wanted`, adds this variant.
    pub(crate) fn setup(project: &Path, wanted: Option<Variant>) -> Result<Self, Error> {
        let found = Self::find(project, wanted, Look::Thorough)?;
        if let (Libtorch::Foreign(folder), Some(_)) = (&found, wanted) {
            note!(
                "note: nothing is fetched, because LIBTORCH or LIBTORCH_USE_PYTORCH is set and \
                 {} is used",
                folder.display()
            );
        }
        Ok(found)
    }

    fn find(project: &Path, wanted: Option<Variant>, look: Look) -> Result<Self, Error> {
        // Any value counts as set, even 0, because the build script of the bindings does the same.
        if env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
            return foreign::of_python().map(Libtorch::Foreign);
        }
        let own = project.join(".libtorch/torch");
        // If the user does not set LIBTORCH, `.cargo/config.toml` sets it to the project's link.
        let set = env::var_os("LIBTORCH").filter(|set| !set.is_empty()).map(PathBuf::from);
        if let Some(folder) = set.filter(|folder| !same_folder(folder, &own)) {
            return foreign::of_variable(&folder).map(Libtorch::Foreign);
        }
        let cache = Cache::of_user()?;
        link::check(project, &cache.home())?;
        let variant = provision::ensure(&cache, wanted, look)?;
        link::ensure(project, &cache.home())?;
        if variant == Variant::Cpu && wanted.is_none() && driver::is_present() {
            note!(
                "note: this machine has an NVIDIA driver, but its libtorch is for CPUs alone: \
                 `cargo amp setup --cuda` adds CUDA"
            );
        }
        Ok(Libtorch::Provisioned(cache.home().join("torch"), variant))
    }

    /// Returns whether this libtorch contains more than the variant `wanted`.
    pub(crate) fn exceeds(&self, wanted: Option<Variant>) -> bool {
        matches!(self, Libtorch::Provisioned(_, found) if wanted.is_some_and(|w| *found > w))
    }

    /// Sets the environment variables with which `command` builds with this libtorch and loads it.
    pub(crate) fn apply(&self, command: &mut Command) {
        match self {
            // `.cargo/config.toml` sets the environment. A plain `cargo` therefore has the same
            // environment as `cargo amp`, and neither rebuilds what the other has built.
            Libtorch::Provisioned(..) => {
                command.env_remove("LIBTORCH");
            }
            Libtorch::Foreign(torch) => {
                command.env("LIBTORCH", torch).env("LD_LIBRARY_PATH", library_path(torch));
            }
        }
    }

    /// Sets the environment variables for a `command` that runs a built program or `cargo test`.
    /// Unlike `apply`, always sets LD_LIBRARY_PATH. Without it, a program finds libtorch through
    /// the run-time search path in the binary, which works only in the project's own `target`
    /// folder. Documentation tests are built elsewhere, and so is everything if CARGO_TARGET_DIR or
    /// `build.target-dir` is set.
    pub(crate) fn apply_to_run(&self, command: &mut Command) {
        self.apply(command);
        let (Libtorch::Provisioned(torch, _) | Libtorch::Foreign(torch)) = self;
        command.env("LD_LIBRARY_PATH", library_path(torch));
    }
}

impl fmt::Display for Libtorch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Libtorch::Provisioned(torch, variant) => write!(f, "{} ({variant})", torch.display()),
            Libtorch::Foreign(torch) => torch.display().fmt(f),
        }
    }
}

fn same_folder(one: &Path, other: &Path) -> bool {
    let resolve = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path)).ok();
    resolve(one) == resolve(other)
}

/// Returns the value for `LD_LIBRARY_PATH`: the library folders of `torch` and of the CUDA wheels
/// next to `torch`, followed by the folders that the variable already contains.
fn library_path(torch: &Path) -> OsString {
    let mut folders = vec![torch.join("lib")];
    if let Some(site) = torch.parent() {
        // The folders are nvidia/<package>/lib, or in older layouts nvidia/<package>/<part>/lib.
        for package in subfolders(&site.join("nvidia")) {
            folders.push(package.join("lib"));
            folders.extend(subfolders(&package).into_iter().map(|part| part.join("lib")));
        }
    }
    folders.retain(|folder| folder.is_dir());
    let set = env::var_os("LD_LIBRARY_PATH").filter(|set| !set.is_empty());
    folders.extend(set.iter().flat_map(env::split_paths));
    // The separator of the list is a colon, so a folder with a colon in its name cannot be added.
    folders.retain(|folder| env::join_paths([folder]).is_ok());
    env::join_paths(folders).unwrap_or_default()
}

/// Returns the subfolders of `folder` in sorted order, so that the search path is the same in every
/// run.
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
