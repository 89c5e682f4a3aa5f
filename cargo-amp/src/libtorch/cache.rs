//! The cache folder with libtorch. All projects of a user share one cache folder.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::version::REQUIRED;
use crate::error::Error;

/// The user's folder for everything that `cargo amp` downloads.
pub(super) struct Cache(PathBuf);

impl Cache {
    /// Returns the folder `cargo-amp` in the cache folder that the XDG base directory specification
    /// defines.
    pub(super) fn of_user() -> Result<Self, Error> {
        folder(env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")).map(Cache).ok_or_else(|| {
            Error::new(format!(
                "there is no folder to keep libtorch in, because neither HOME nor XDG_CACHE_HOME \
                 is set to an absolute path: set one of them, or set LIBTORCH to a libtorch \
                 {REQUIRED} folder"
            ))
        })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.0
    }

    /// Returns the folder of libtorch. Its subfolders `torch` and `nvidia` have the same layout as
    /// Python's packages `torch` and `nvidia`.
    pub(super) fn home(&self) -> PathBuf {
        self.0.join(format!("libtorch-{REQUIRED}"))
    }

    /// Returns the folder for a download that is not complete. If the download is interrupted, the
    /// folder keeps the complete wheels.
    pub(super) fn partial(&self) -> PathBuf {
        self.0.join(format!("libtorch-{REQUIRED}.partial"))
    }

    /// Returns the path of the file that is locked during a download.
    pub(super) fn lock_file(&self) -> PathBuf {
        self.0.join(format!("libtorch-{REQUIRED}.lock"))
    }

    pub(super) fn create(&self) -> Result<(), Error> {
        fs::create_dir_all(&self.0).map_err(|e| self.unwritable(&e))
    }

    pub(super) fn unwritable(&self, error: &io::Error) -> Error {
        let fix = if error.kind() == io::ErrorKind::StorageFull {
            "make room there"
        } else {
            "make it writable, or set XDG_CACHE_HOME to a writable folder"
        };
        Error::new(format!("libtorch could not be put into {} ({error}): {fix}", self.0.display()))
    }
}

/// Returns the user's cache folder. A relative path is ignored, as the specification says.
fn folder(cache: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    let cache = cache.and_then(absolute);
    cache.or_else(|| Some(home.and_then(absolute)?.join(".cache"))).map(|c| c.join("cargo-amp"))
}

#[cfg(test)]
mod tests {
    use super::folder;
    use std::path::Path;

    #[test]
    fn the_cache_is_where_the_specification_puts_it() {
        let found = |cache: &str, home: &str| folder(Some(cache.into()), Some(home.into()));
        assert_eq!(found("/c", "/h").as_deref(), Some(Path::new("/c/cargo-amp")));
        for unset in ["", "relative"] {
            let in_home = found(unset, "/h");
            assert_eq!(in_home.as_deref(), Some(Path::new("/h/.cache/cargo-amp")));
            assert_eq!(found(unset, unset), None);
        }
        assert_eq!(folder(None, None), None);
    }
}
