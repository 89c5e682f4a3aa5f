//! A folder that is filled at a temporary path and then moved into place in one step.

use std::fs;
use std::io;
use std::path::{self, Path, PathBuf};

use crate::error::Error;

/// The folder that `cargo amp pack` is writing. Dropping this value removes the folder, unless
/// [`finish`](Folder::finish) was called before.
pub(crate) struct Folder {
    output: PathBuf,
    partial: PathBuf,
    replaced: PathBuf,
}

impl Folder {
    /// Prepares to write the folder `output`, without creating anything. If `output` exists, it
    /// must be empty or an earlier packed folder, because `finish` replaces it. Otherwise this is
    /// an error.
    pub(crate) fn new(output: PathBuf) -> Result<Self, Error> {
        let output = path::absolute(&output).map_err(|e| unwritable(&output, &e))?;
        let refuse = |what: &str| {
            Err(Error::new(format!(
                "{} {what}: give another folder with --output",
                output.display()
            )))
        };
        let Some(name) = output.file_name() else { return refuse("has no name") };
        let with = |ending: &str| {
            let mut name = name.to_owned();
            name.push(ending);
            output.with_file_name(name)
        };
        let (partial, replaced) = (with(".partial"), with(".replaced"));
        let is_empty = || fs::read_dir(&output).is_ok_and(|mut found| found.next().is_none());
        if output.symlink_metadata().is_ok()
            && !(output.join("run.sh").is_file() && output.join("bin/amp").is_file())
            && !is_empty()
        {
            return refuse("exists and is not a packed folder, so it is not replaced");
        }
        Ok(Self { output, partial, replaced })
    }

    /// Creates an empty temporary folder. Folders that an interrupted run has left are removed.
    pub(crate) fn begin(&self) -> Result<(), Error> {
        remove(&self.partial)
            .and_then(|()| remove(&self.replaced))
            .and_then(|()| fs::create_dir_all(&self.partial))
            .map_err(|e| unwritable(&self.partial, &e))
    }

    /// Returns the path at which to write the file `path` of the packed folder. Creates the parent
    /// folder of that path.
    pub(crate) fn place(&self, path: impl AsRef<Path>) -> Result<PathBuf, Error> {
        let place = self.partial.join(path);
        fs::create_dir_all(place.parent().unwrap_or(&place)).map_err(|e| unwritable(&place, &e))?;
        Ok(place)
    }

    /// Writes a file.
    pub(crate) fn write(&self, path: &str, text: &str) -> Result<PathBuf, Error> {
        let place = self.place(path)?;
        fs::write(&place, text).map_err(|e| unwritable(&place, &e))?;
        Ok(place)
    }

    /// Writes a shell script that can be executed.
    pub(crate) fn script(&self, path: &str, text: &str) -> Result<(), Error> {
        let place = self.write(path, text)?;
        make_executable(&place).map_err(|e| unwritable(&place, &e))
    }

    /// Copies a file, or a folder with all files in it.
    pub(crate) fn copy(&self, from: &Path, to: &Path) -> Result<(), Error> {
        let cannot = |e: io::Error| {
            Error::new(format!(
                "{} could not be copied ({e}): make it readable, and make room for it",
                from.display()
            ))
        };
        if !from.is_dir() {
            return fs::copy(from, self.place(to)?).map(drop).map_err(cannot);
        }
        for entry in fs::read_dir(from).map_err(cannot)? {
            let entry = entry.map_err(cannot)?;
            self.copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        Ok(())
    }

    /// Moves the finished folder to its final path. Returns this path and the folder's size in
    /// bytes.
    pub(crate) fn finish(&mut self) -> Result<(PathBuf, u64), Error> {
        let bytes = size(&self.partial).map_err(|e| unwritable(&self.partial, &e))?;
        let put = || {
            if self.output.exists() {
                fs::rename(&self.output, &self.replaced)?;
            }
            fs::rename(&self.partial, &self.output)?;
            remove(&self.replaced)
        };
        put().map_err(|e| unwritable(&self.output, &e))?;
        Ok((self.output.clone(), bytes))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Does nothing after `finish`. Otherwise packing has failed, and only its error is
        // reported, so an error while the folder is removed is ignored.
        let _ = remove(&self.partial);
    }
}

fn remove(folder: &Path) -> io::Result<()> {
    if folder.exists() { fs::remove_dir_all(folder) } else { Ok(()) }
}

fn size(path: &Path) -> io::Result<u64> {
    if !path.is_dir() {
        return Ok(fs::metadata(path)?.len());
    }
    fs::read_dir(path)?.map(|entry| size(&entry?.path())).sum()
}

#[cfg(unix)]
fn make_executable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;

    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> io::Result<()> {
    Ok(())
}

fn unwritable(path: &Path, error: &io::Error) -> Error {
    Error::new(format!(
        "{} cannot be written ({error}): make its folder writable and make room there",
        path.display()
    ))
}
