//! Reads from given offsets of a file, so that several threads can read at once. Clones of a
//! [`fs::File`] share one offset, so a thread that moves the offset would make other threads read
//! the wrong bytes.

use std::{
    fs,
    io::{self, BufReader, Read},
    os::unix::fs::FileExt,
    sync::Arc,
};

use parquet::{
    errors::{ParquetError, Result},
    file::reader::{ChunkReader, Length},
};
use prost::bytes::Bytes;

#[derive(Debug, Clone)]
pub(super) struct Positioned(Arc<fs::File>);

impl Positioned {
    pub(super) fn new(file: fs::File) -> Self {
        Self(Arc::new(file))
    }
}

impl Length for Positioned {
    fn len(&self) -> u64 {
        self.0.metadata().map_or(0, |metadata| metadata.len())
    }
}

impl ChunkReader for Positioned {
    type T = BufReader<BytesFrom>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        Ok(BufReader::new(BytesFrom { file: self.0.clone(), at: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let mut bytes = vec![0; length];
        match self.0.read_exact_at(&mut bytes, start) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(ParquetError::EOF(
                format!("the file ends before the {length} bytes at offset {start} are complete"),
            )),
            outcome => Ok(outcome.map(|()| bytes.into())?),
        }
    }
}

/// A reader of a file that begins at an offset.
#[derive(Debug)]
pub(super) struct BytesFrom {
    file: Arc<fs::File>,
    at: u64,
}

impl Read for BytesFrom {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
