//! Where the checkout is, and the names of what is kept in it.

use std::env;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// The folder that holds the workspace.
pub(crate) struct Checkout {
    root: PathBuf,
}

impl Checkout {
    /// Finds the checkout this program belongs to.
    ///
    /// `cargo run` says where the package lies; the program started by its own path is looked
    /// for upwards from the working directory.
    pub(crate) fn find() -> Result<Self, Error> {
        let of_package = env::var_os("CARGO_MANIFEST_DIR")
            .and_then(|package| Path::new(&package).parent().map(Path::to_owned));
        let working = env::current_dir()
            .map_err(|e| Error::new(format!("the working directory cannot be read: {e}")))?;
        of_package
            .iter()
            .map(PathBuf::as_path)
            .chain(working.ancestors())
            .find(|folder| is_checkout(folder))
            .map(|root| Checkout { root: root.to_owned() })
            .ok_or_else(|| {
                Error::new(format!(
                    "{} is not inside a checkout of this workspace: change into one and run \
                     `cargo amp` there",
                    working.display()
                ))
            })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// TensorBoard's reader, which a test runs; apart from libtorch, so that neither is fetched
    /// again for the other's sake.
    pub(crate) fn tensorboard(&self) -> PathBuf {
        self.root.join(".tensorboard")
    }
}

fn is_checkout(folder: &Path) -> bool {
    folder.join(".cargo/config.toml").is_file() && folder.join("amp-core").is_dir()
}
