use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// Records stay in memory until they have this number of bytes. They are then written to the file.
const BUFFER: usize = 1 << 16;

/// A file of records. Only whole records are written. If the run is killed, all records up to the
/// last flush remain.
#[derive(Debug)]
pub(super) struct RecordFile {
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
}

impl RecordFile {
    /// Creates the file. Replaces an earlier file of this name.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|error| Error::io(path, error))?;
        Ok(Self { path: path.to_owned(), file, buffer: Vec::new() })
    }

    /// Adds one or more records. Writes the records to the file when the buffer is full.
    pub(super) fn write(&mut self, records: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(records);
        if self.buffer.len() < BUFFER { Ok(()) } else { self.flush() }
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        self.file.write_all(&self.buffer).map_err(|error| Error::io(&self.path, error))?;
        self.buffer.clear();
        Ok(())
    }
}
