//! How records are stored in a `.wandb` file: in LevelDB's log format (leveldb/doc/log_format.md),
//! but with W&B's header, and with a plain CRC-32 instead of LevelDB's masked CRC-32C.

/// The beginning of a file: the bytes `:W&B`, 0xBEE1 as little-endian u16, and version 0.
pub(super) const HEADER: [u8; 7] = *b":W&B\xe1\xbe\x00";

/// The size of a block in bytes. No chunk crosses the end of a block.
const BLOCK: usize = 32768;
/// The size of a chunk's CRC, length and kind in bytes.
const CHUNK_HEADER: usize = 7;

/// Divides records into chunks. The first record of a file follows the [header](HEADER).
#[derive(Debug)]
pub(super) struct Framing {
    /// The position in the current block, in bytes.
    place: usize,
}

impl Default for Framing {
    fn default() -> Self {
        Self { place: HEADER.len() }
    }
}

impl Framing {
    /// Encodes `data` as the next record of the file. A record is one chunk, or a first chunk, any
    /// number of middle chunks, and a last chunk.
    pub(super) fn framed(&mut self, mut data: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(data.len() + CHUNK_HEADER);
        let mut is_first = true;
        loop {
            let left = BLOCK - self.place;
            if left < CHUNK_HEADER {
                out.resize(out.len() + left, 0);
                self.place = 0;
                continue;
            }
            let (part, rest) = data.split_at(data.len().min(left - CHUNK_HEADER));
            let kind: u8 = match (is_first, rest.is_empty()) {
                (true, true) => 1,
                (true, false) => 2,
                (false, false) => 3,
                (false, true) => 4,
            };
            let mut crc = crc32fast::Hasher::new();
            crc.update(&[kind]);
            crc.update(part);
            out.extend_from_slice(&crc.finalize().to_le_bytes());
            // A chunk is shorter than a block (32,768 bytes), so its length fits into 16 bits.
            out.extend_from_slice(&(part.len() as u16).to_le_bytes());
            out.push(kind);
            out.extend_from_slice(part);
            self.place = (self.place + CHUNK_HEADER + part.len()) % BLOCK;
            (data, is_first) = (rest, false);
            if data.is_empty() {
                return out;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the records of a file, following LevelDB's description of the format.
    fn records(file: &[u8]) -> Vec<Vec<u8>> {
        let (mut place, mut records) = (HEADER.len(), Vec::new());
        while place < file.len() {
            let left = BLOCK - place % BLOCK;
            if left < 7 {
                assert!(file[place..(place + left).min(file.len())].iter().all(|byte| *byte == 0));
                place += left;
                continue;
            }
            let chunk = &file[place..];
            let length = usize::from(u16::from_le_bytes([chunk[4], chunk[5]]));
            let kind = chunk[6];
            assert!(7 + length <= left, "a chunk crosses a block");
            if kind == 1 || kind == 2 {
                records.push(Vec::new());
            }
            let last: &mut Vec<u8> = records.last_mut().expect("a first chunk");
            assert_eq!(kind == 1 || kind == 2, last.is_empty(), "kind {kind}");
            last.extend_from_slice(&chunk[7..7 + length]);
            place += 7 + length;
        }
        records
    }

    /// Checks that framed records of many lengths are read back unchanged. Blocks end at many
    /// positions within the records.
    #[test]
    fn records_are_read_again() {
        let lengths =
            (1..40).map(|at| at * 997).chain([BLOCK - 14, 3 * BLOCK, 1]).chain(32740..32775);
        let expected: Vec<Vec<u8>> =
            lengths.map(|length| (0..length).map(|at| (at % 251) as u8).collect()).collect();
        let mut framing = Framing::default();
        let mut file = HEADER.to_vec();
        for record in &expected {
            file.extend(framing.framed(record));
        }
        assert!(records(&file) == expected);
    }
}
