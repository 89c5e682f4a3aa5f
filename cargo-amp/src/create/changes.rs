//! Writes several files. If one of the files cannot be written, restores all of them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// The changes that were made so far. Dropping this value undoes all of the changes, unless
/// [`keep`](Changes::keep) was called before.
#[derive(Default)]
pub(crate) struct Changes(Vec<Change>);

enum Change {
    MadeFolder(PathBuf),
    MadeFile(PathBuf),
    Replaced(PathBuf, Vec<u8>),
}

impl Changes {
    /// Writes `text` to `path` atomically, and creates missing parent folders.
    pub(crate) fn write(&mut self, path: &Path, text: &str) -> Result<(), Error> {
        self.try_write(path, text).map_err(|e| unwritable(path, &e))
    }

    /// Saves the state of `path` before another program changes the file. The state is the text of
    /// the file, or the fact that no file exists.
    pub(crate) fn remember(&mut self, path: &Path) -> Result<(), Error> {
        self.0.push(
            before(path)
                .map_err(|e| Error::new(format!("{} cannot be read: {e}", path.display())))?,
        );
        Ok(())
    }

    pub(crate) fn keep(mut self) {
        self.0.clear();
    }

    fn try_write(&mut self, path: &Path, text: &str) -> io::Result<()> {
        let folder = path.parent().unwrap_or(path);
        let mut missing: Vec<_> =
            folder.ancestors().take_while(|folder| !folder.exists()).collect();
        while let Some(folder) = missing.pop() {
            fs::create_dir(folder)?;
            self.0.push(Change::MadeFolder(folder.into()));
        }
        let change = before(path)?;
        write_whole(path, text.as_bytes())?;
        self.0.push(change);
        Ok(())
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        // An error while undoing is ignored, because the error that caused the undoing is reported.
        while let Some(change) = self.0.pop() {
            let _ = match change {
                Change::MadeFolder(folder) => fs::remove_dir(folder),
                Change::MadeFile(file) => fs::remove_file(file),
                Change::Replaced(file, bytes) => write_whole(&file, &bytes),
            };
        }
    }
}

/// Returns the entry for [`Changes`] from which the current state of `path` can be restored.
fn before(path: &Path) -> io::Result<Change> {
    match fs::read(path) {
        Ok(bytes) => Ok(Change::Replaced(path.into(), bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Change::MadeFile(path.into())),
        Err(e) => Err(e),
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let written = fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        // A second error, from removing the partial file, is ignored: only the first error is
        // reported.
        let _ = fs::remove_file(&partial);
    }
    written
}

pub(crate) fn unwritable(path: &Path, error: &io::Error) -> Error {
    Error::new(format!(
        "{} cannot be written ({error}): make its folder writable and make room there",
        path.display()
    ))
}
