//! Files a command writes.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use amp_core::{
    Error, Result,
    event::{Event, Subscriber},
    logger::{CsvLogger, JsonLinesLogger},
};
use tempfile::NamedTempFile;

/// A file that appears whole or not at all. Made before the work, so that a folder that cannot
/// be written to is found before and not after it.
pub struct Staged {
    path: PathBuf,
    file: NamedTempFile,
}

impl Staged {
    /// Reserves `path`.
    ///
    /// # Errors
    /// When its folder is missing or cannot be written to.
    pub fn create(path: &Path) -> Result<Self> {
        let file = NamedTempFile::new_in(folder(path)?).map_err(|error| Error::io(path, error))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Writes `text` and gives the file its name.
    ///
    /// # Errors
    /// When the disk is full, for example.
    pub fn write(mut self, text: &str) -> Result<()> {
        let written =
            self.file.write_all(text.as_bytes()).and_then(|()| self.file.as_file().sync_all());
        written.map_err(|error| Error::io(&self.path, error))?;
        self.file.persist(&self.path).map_err(|error| Error::io(&self.path, error.error))?;
        Ok(())
    }
}

/// The logs the user asked for.
pub struct Logs {
    loggers: Vec<Box<dyn Subscriber>>,
}

impl Logs {
    /// Opens them; none is created when the folder of one is missing.
    ///
    /// # Errors
    /// When a folder is missing or a file cannot be created.
    pub fn create(jsonl: Option<&Path>, csv: Option<&Path>) -> Result<Self> {
        for path in [jsonl, csv].into_iter().flatten() {
            folder(path)?;
        }
        let mut loggers: Vec<Box<dyn Subscriber>> = Vec::new();
        if let Some(path) = jsonl {
            loggers.push(Box::new(JsonLinesLogger::create(path)?));
        }
        if let Some(path) = csv {
            loggers.push(Box::new(CsvLogger::create(path)?));
        }
        Ok(Self { loggers })
    }
}

impl Subscriber for Logs {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        self.loggers.iter_mut().try_for_each(|logger| logger.on_event(event))
    }
}

fn folder(path: &Path) -> Result<&Path> {
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    if folder.is_dir() {
        return Ok(folder);
    }
    Err(Error::config(format!(
        "{}: there is no folder {}; create it first",
        path.display(),
        folder.display()
    )))
}
