//! Where libtorch is put, and the names of what is kept there.

use std::path::{Path, PathBuf};

/// The folder that holds the project.
pub(crate) struct Checkout {
    root: PathBuf,
}

impl Checkout {
    pub(crate) fn at(root: &Path) -> Self {
        Checkout { root: root.to_owned() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The provisioned libtorch. It lies outside `target` so that `cargo clean` leaves it alone.
    pub(crate) fn libtorch(&self) -> PathBuf {
        self.root.join(".libtorch")
    }

    /// Where a provisioning works until it is whole.
    pub(crate) fn partial(&self) -> PathBuf {
        self.root.join(".libtorch.partial")
    }

    /// The file whose lock a provisioning holds.
    pub(crate) fn lock_file(&self) -> PathBuf {
        self.root.join(".libtorch.lock")
    }
}
