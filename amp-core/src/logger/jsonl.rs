use std::path::Path;

use super::{Background, Sink, file::RecordFile};
use crate::{
    Error, Result,
    event::{Event, Subscriber},
};

/// Writes every event as one JSON object per line, except the events of single batches and of
/// images, texts and histograms.
#[derive(Debug)]
pub struct JsonLinesLogger(Background);

impl JsonLinesLogger {
    /// Creates the file. Replaces an earlier file of this name.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        Background::start(Lines(RecordFile::create(path.as_ref())?)).map(Self)
    }
}

impl Subscriber for JsonLinesLogger {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Batch { .. } | Event::Media { .. } => Ok(()),
            _ => self.0.on_event(event),
        }
    }
}

struct Lines(RecordFile);

impl Sink for Lines {
    fn write(&mut self, event: &Event) -> Result<()> {
        let mut line = serde_json::to_vec(event).map_err(|error| {
            Error::config(format!("an event cannot be converted to JSON: {error}"))
        })?;
        line.push(b'\n');
        self.0.write(&line)
    }

    fn flush(&mut self) -> Result<()> {
        self.0.flush()
    }
}
