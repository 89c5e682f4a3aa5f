//! The TFRecord format (tensorflow/core/lib/io/record_writer.h): the data's length as little-endian
//! u64, the masked CRC of the length, the data, the masked CRC of the data.

/// Encodes `data` as one record.
pub(super) fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend_from_slice(&length);
    record.extend_from_slice(&masked_crc(&length).to_le_bytes());
    record.extend_from_slice(data);
    record.extend_from_slice(&masked_crc(data).to_le_bytes());
    record
}

/// Computes the CRC of `data` and masks it as in tensorflow/core/lib/hash/crc32c.h: rotates it and
/// adds a constant. The mask is needed because a CRC over data that contains CRCs detects errors
/// poorly.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}
