use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use crate::{
    Error, Result,
    event::{Event, Subscriber},
};

/// Writes every event but single batches as one JSON object a line.
#[derive(Debug)]
pub struct JsonLinesLogger {
    path: PathBuf,
    file: BufWriter<File>,
}

impl JsonLinesLogger {
    /// Creates the file, replacing an earlier one.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let file = File::create(&path).map_err(|error| Error::io(&path, error))?;
        Ok(Self { path, file: BufWriter::new(file) })
    }
}

impl Subscriber for JsonLinesLogger {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        if matches!(event, Event::Batch { .. }) {
            return Ok(());
        }
        serde_json::to_writer(&mut self.file, event)
            .map_err(std::io::Error::from)
            .and_then(|()| writeln!(self.file))
            .and_then(|()| match event {
                Event::EpochEnd(_) | Event::FitEnd(_) => self.file.flush(),
                _ => Ok(()),
            })
            .map_err(|error| Error::io(&self.path, error))
    }
}
