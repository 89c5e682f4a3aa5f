//! Reads TensorBoard's event files with code that was written from their specification: the framing
//! of TFRecord, CRC-32C computed from its polynomial, and the wire format of protobuf.

/// Returns the records of a file. Panics if a length or checksum is wrong.
pub(crate) fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_at(8);
        let (length_crc, rest) = rest.split_at(4);
        assert_eq!(length_crc, masked_crc(length), "checksum of a length");
        let length = u64::from_le_bytes(length.try_into().expect("eight bytes"));
        let (data, rest) = rest.split_at(length as usize);
        let (data_crc, rest) = rest.split_at(4);
        assert_eq!(data_crc, masked_crc(data), "checksum of the data");
        records.push(data.to_vec());
        bytes = rest;
    }
    records
}

/// Masks a CRC in the same way as TensorFlow.
fn masked_crc(data: &[u8]) -> [u8; 4] {
    let crc = crc32c(data);
    crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// Computes the CRC of Castagnoli's polynomial, reflected, bit by bit.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
    })
}

/// The checksums of 32 zero bytes, and of the bytes from 0 to 31, equal those in RFC 3720, B.4.
#[test]
fn the_checksum_is_the_standards() {
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c(&std::array::from_fn::<u8, 32, _>(|at| at as u8)), 0x46dd_794e);
}

/// The value of a field in a protobuf message.
#[derive(Debug, PartialEq)]
pub(crate) enum Field {
    Varint(u64),
    F64(f64),
    F32(f32),
    Bytes(Vec<u8>),
}

/// Returns the fields of a message by their numbers, in order.
pub(crate) fn fields(mut bytes: &[u8]) -> Vec<(u64, Field)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let field = match key & 7 {
            0 => Field::Varint(varint(&mut bytes)),
            1 => Field::F64(f64::from_le_bytes(*take(&mut bytes))),
            5 => Field::F32(f32::from_le_bytes(*take(&mut bytes))),
            2 => {
                let count = varint(&mut bytes) as usize;
                let (taken, rest) = bytes.split_at(count);
                bytes = rest;
                Field::Bytes(taken.to_vec())
            }
            other => panic!("wire type {other}"),
        };
        fields.push((key >> 3, field));
    }
    fields
}

fn take<'a, const N: usize>(bytes: &mut &'a [u8]) -> &'a [u8; N] {
    let (taken, rest) = bytes.split_first_chunk().expect("a whole number");
    *bytes = rest;
    taken
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let (first, rest) = bytes.split_first().expect("a byte");
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            break;
        }
    }
    value
}
