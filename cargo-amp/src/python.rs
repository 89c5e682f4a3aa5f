//! Installs the Python packages that a project's tests need. They are installed once for each
//! project. An interrupted installation is not used: its folder is not renamed to `.amp/python`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::lock::lock;
use crate::pip::{Pip, Wanted};
use crate::project::Project;

const WANTED: Wanted = Wanted {
    name: "the tests' Python packages",
    package: "tested version of these packages",
    otherwise: "or run `cargo test --workspace`, where the tests that need these packages fail",
};

/// Returns whether the project lists packages that are not installed.
pub(crate) fn is_missing(project: &Project) -> bool {
    let requirements = project.test_python_packages();
    !requirements.is_empty() && !is_complete(&home(project), requirements)
}

fn home(project: &Project) -> PathBuf {
    project.root().join(".amp/python")
}

/// Installs the packages that `test-python-packages` lists, if they are missing. Returns the folder
/// with the packages, or `None` if the project lists no packages.
pub(crate) fn ensure(project: &Project) -> Result<Option<PathBuf>, Error> {
    let requirements = project.test_python_packages();
    if requirements.is_empty() {
        return Ok(None);
    }
    let home = home(project);
    let kept = project.root().join(".amp");
    let unwritable = |error: io::Error| {
        Error::new(format!(
            "the tests' Python packages could not be put into {} ({error}): make it writable and \
             make room in it",
            kept.display()
        ))
    };
    if is_complete(&home, requirements) {
        return Ok(Some(home));
    }
    fs::create_dir_all(&kept).map_err(unwritable)?;
    let _lock = lock(&home.with_extension("lock"), "the tests' Python packages")?;
    // The state is checked again, because another process may have fetched the packages while this
    // process waited for the lock.
    if is_complete(&home, requirements) {
        return Ok(Some(home));
    }
    let pip = Pip::find(WANTED)?;
    let partial = home.with_extension("partial");
    // An interrupted installation may have left this folder.
    remove(&partial).map_err(unwritable)?;
    let fetched = fetch(&pip, project, &partial);
    let placed = fetched.and_then(|()| place(&partial, &home, requirements).map_err(unwritable));
    let removed = remove(&partial);
    placed?;
    removed.map_err(unwritable)?;
    Ok(Some(home))
}

fn fetch(pip: &Pip, project: &Project, partial: &Path) -> Result<(), Error> {
    let temporary = partial.join("tmp");
    fs::create_dir_all(&temporary)
        .map_err(|error| Error::new(format!("{} cannot be made ({error})", temporary.display())))?;
    let requirements = project.test_python_packages();
    note!("fetching {} for the tests into .amp/python, once", requirements.join(", "));
    let arguments = Pip::install(Path::new(".amp/python.partial/packages"), requirements);
    pip.run(project.root(), &temporary, &arguments)
}

/// Writes a file that marks the packages as complete, and then moves the folder `partial` to
/// `home`.
fn place(partial: &Path, home: &Path, requirements: &[String]) -> io::Result<()> {
    let packages = partial.join("packages");
    fs::write(packages.join("amp-stamp"), stamp(requirements))?;
    if home.symlink_metadata().is_ok() {
        fs::rename(home, partial.join("replaced"))?;
    }
    fs::rename(packages, home)
}

fn is_complete(home: &Path, requirements: &[String]) -> bool {
    fs::read_to_string(home.join("amp-stamp")).is_ok_and(|found| found == stamp(requirements))
}

fn stamp(requirements: &[String]) -> String {
    requirements.join("\n") + "\n"
}

fn remove(folder: &Path) -> io::Result<()> {
    if folder.exists() { fs::remove_dir_all(folder) } else { Ok(()) }
}
