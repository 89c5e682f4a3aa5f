//! The folders of a project's files.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The environment variable that replaces the project's folder on a machine without the project's
/// sources. Its value is the folder to which `cargo amp pack` copied the project's files.
const PACKED: &str = "AMP_PROJECT";
/// The file in the project's folder that contains the recorded margins.
const MARGINS: &str = "margins.json";

/// The package that declares a registry: its name and its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    name: String,
    folder: PathBuf,
}

impl Project {
    /// Describes the package `name` in the folder `folder`. Use the macro
    /// [`project!`](crate::project) to describe the package that contains the call.
    pub fn new(name: impl Into<String>, folder: impl Into<PathBuf>) -> Self {
        Self { name: name.into(), folder: folder.into() }
    }

    /// Describes the package `name`, which was compiled in the folder `folder`. If the environment
    /// variable `AMP_PROJECT` is set, its value replaces `folder`.
    #[doc(hidden)]
    pub fn of_package(name: &str, folder: &str) -> Self {
        let packed = env::var_os(PACKED).filter(|folder| !folder.is_empty());
        Self::new(name, packed.unwrap_or_else(|| folder.into()))
    }

    /// Returns the name of the package.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the folder of the package.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the path of the file or folder `relative` in the package's folder.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.folder.join(relative)
    }

    /// Returns the path of `margins.json`, which `cargo amp margins` writes.
    pub(crate) fn margins_file(&self) -> PathBuf {
        self.path(MARGINS)
    }
}

/// Describes the package that contains this macro call, as a [`Project`](crate::Project).
///
/// ```no_run,standalone_crate
/// let project = amp_verify::project!();
/// assert_eq!(project.path("data/x.csv"), project.folder().join("data/x.csv"));
/// ```
#[macro_export]
macro_rules! project {
    () => {
        $crate::Project::of_package(
            ::core::env!("CARGO_PKG_NAME"),
            ::core::env!("CARGO_MANIFEST_DIR"),
        )
    };
}
