//! The project's `.libtorch`, a link to the user's libtorch. `.cargo/config.toml` and the run-time
//! search path of binaries use this link, so that they are the same in every project.

use std::fs;
use std::io;
use std::path::Path;

use crate::error::Error;

const NAME: &str = ".libtorch";

/// Refuses a project in which the link cannot be made, before libtorch is fetched.
pub(super) fn check(project: &Path, home: &Path) -> Result<(), Error> {
    let path = project.join(NAME);
    match path.symlink_metadata() {
        Ok(found) if !found.is_symlink() => Err(Error::new(format!(
            "{} is not a link, but libtorch is now kept once per user in {}: remove it, or move it \
             there",
            path.display(),
            home.display()
        ))),
        _ => Ok(()),
    }
}

/// Makes the link, or replaces one that leads elsewhere.
pub(super) fn ensure(project: &Path, home: &Path) -> Result<(), Error> {
    check(project, home)?;
    let path = project.join(NAME);
    if fs::read_link(&path).is_ok_and(|target| target == home) {
        return Ok(());
    }
    // The new link is renamed into place, so that a build running at the same time always finds a
    // link.
    let new = project.join(format!("{NAME}.{}", std::process::id()));
    let made = symlink(home, &new).and_then(|()| fs::rename(&new, &path));
    made.map_err(|e| {
        // The temporary link may not exist.
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

/// Systems without symbolic links: libtorch is not fetched there either.
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
        // A path at which not even root can make a link.
        let refused = ensure(Path::new("/proc/self"), Path::new("/cache/libtorch"));
        let line = refused.expect_err("refused").to_string();
        for part in ["/proc/self/.libtorch", "writable", "LIBTORCH=/cache/libtorch/torch"] {
            assert!(line.contains(part), "`{part}` is missing: {line}");
        }
    }
}
