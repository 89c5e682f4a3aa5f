//! The project's `.libtorch`, a symbolic link to the libtorch in the user's cache.
//! `.cargo/config.toml` and the run-time search path of binaries contain the path of the link and
//! not that of the cache, so they are the same for every user.

use std::fs;
use std::io;
use std::path::Path;

use crate::error::Error;

const NAME: &str = ".libtorch";

/// Returns an error if something other than a link is at the path of the link. Called before
/// libtorch is fetched, so that a long download does not end in this error.
pub(super) fn check(project: &Path, home: &Path) -> Result<(), Error> {
    let path = project.join(NAME);
    match path.symlink_metadata() {
        Ok(found) if !found.is_symlink() => Err(Error::new(format!(
            "{} is not a link to libtorch, which is kept once per user in {}: remove it, or move \
             it there",
            path.display(),
            home.display()
        ))),
        _ => Ok(()),
    }
}

/// Creates the link, or replaces a link to another folder.
pub(super) fn ensure(project: &Path, home: &Path) -> Result<(), Error> {
    check(project, home)?;
    let path = project.join(NAME);
    if fs::read_link(&path).is_ok_and(|target| target == home) {
        return Ok(());
    }
    // The new link is created under a temporary name and then renamed, so that a build that runs at
    // the same time always finds a link.
    let new = project.join(format!("{NAME}.{}", std::process::id()));
    let made = symlink(home, &new).and_then(|()| fs::rename(&new, &path));
    made.map_err(|e| {
        // If only the renaming failed, the temporary link exists. An error while it is removed is
        // ignored.
        let _ = fs::remove_file(&new);
        Error::new(format!(
            "the link {} to libtorch could not be made ({e}): make the folder writable, or set \
             LIBTORCH={}",
            path.display(),
            home.join("torch").display()
        ))
    })
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Returns an error, because this system has no symbolic links. `cargo amp` does not download
/// libtorch on such a system.
#[cfg(not(unix))]
fn symlink(_target: &Path, _link: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::ensure;
    use std::path::Path;

    #[test]
    fn a_project_in_which_no_link_can_be_made_is_refused() {
        // Even root cannot create a link in this folder.
        let refused = ensure(Path::new("/proc/self"), Path::new("/cache/libtorch"));
        let line = refused.expect_err("refused").to_string();
        for part in ["/proc/self/.libtorch", "writable", "LIBTORCH=/cache/libtorch/torch"] {
            assert!(line.contains(part), "`{part}` is missing: {line}");
        }
    }
}
