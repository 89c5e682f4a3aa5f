//! Reads and writes tensors in the format of the recordings: bit patterns as hexadecimal digits,
//! row by row.

use amp_core::tch::{Device, Kind, Tensor};
use sha2::{Digest, Sha256};

/// Returns the dtype with this name in the recordings.
pub(crate) fn kind_of(name: &str) -> Kind {
    match name {
        "f16" => Kind::Half,
        "bf16" => Kind::BFloat16,
        "f32" => Kind::Float,
        "f64" => Kind::Double,
        "int64" => Kind::Int64,
        other => panic!("no dtype is called {other}"),
    }
}

/// Returns the recordings' name of a dtype.
pub(crate) fn name_of(kind: Kind) -> &'static str {
    ["f16", "bf16", "f32", "f64", "int64"]
        .into_iter()
        .find(|name| kind_of(name) == kind)
        .expect("a dtype that the oracles name")
}

/// Returns a one-dimensional tensor whose elements have these bit patterns.
pub(crate) fn from_bits(kind: Kind, text: &str) -> Tensor {
    let digits = 2 * kind.elt_size_in_bytes();
    let mut bytes = Vec::with_capacity(text.len() / 2);
    for word in text.as_bytes().chunks(digits) {
        // In the hexadecimal text, the first digits are the highest byte. In memory, the lowest
        // byte comes first.
        for pair in word.chunks(2).rev() {
            let pair = str::from_utf8(pair).expect("ASCII");
            bytes.push(u8::from_str_radix(pair, 16).expect("hex digits"));
        }
    }
    let count = (text.len() / digits) as i64;
    Tensor::f_from_data_size(&bytes, &[count], kind).expect("a tensor of these bytes")
}

/// Returns the bit patterns of a tensor.
pub(crate) fn bits(tensor: &Tensor) -> String {
    let digits = tensor.kind().elt_size_in_bytes();
    let bytes = bytes(tensor);
    bytes.chunks(digits).flat_map(|word| word.iter().rev()).map(|b| format!("{b:02x}")).collect()
}

/// Returns the little-endian bytes of a tensor, row-major.
fn bytes(tensor: &Tensor) -> Vec<u8> {
    let tensor = tensor.detach().contiguous();
    let mut bytes = vec![0_u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

/// Returns the SHA-256 of the tensor's bytes, which the recordings contain for large tensors.
pub(crate) fn sha256(tensor: &Tensor) -> String {
    Sha256::digest(bytes(tensor)).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns whether the tensor has the expected bits. All NaNs count as equal.
pub(crate) fn has_bits(tensor: &Tensor, expected: &str) -> bool {
    let seen = bits(tensor);
    if seen == expected {
        return true;
    }
    let digits = 2 * tensor.kind().elt_size_in_bytes();
    let expected_nan = nans(&from_bits(tensor.kind(), expected));
    let seen_nan = nans(&tensor.detach().flatten(0, -1));
    seen.len() == expected.len()
        && (0..seen.len() / digits).all(|at| {
            let word = at * digits..(at + 1) * digits;
            seen[word.clone()] == expected[word] || (seen_nan[at] && expected_nan[at])
        })
}

fn nans(tensor: &Tensor) -> Vec<bool> {
    Vec::try_from(tensor.isnan()).expect("one flag an element")
}

/// Returns the elements of the tensor as f64.
pub(crate) fn values(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.detach().to_kind(Kind::Double).flatten(0, -1);
    Vec::try_from(flat).expect("one number an element")
}

/// Asserts that the tensor has the expected bits (see [`has_bits`]). If not, the message shows the
/// bits of the tensor and the expected bits in full.
#[track_caller]
pub(crate) fn assert_bits(tensor: &Tensor, expected: &str, what: &str) {
    assert!(
        has_bits(tensor, expected),
        "{what}: the bits are {}, but torch has {expected}",
        bits(tensor)
    );
}

/// Returns the tensor as f64 on the CPU.
pub(crate) fn wide(tensor: &Tensor) -> Tensor {
    tensor.detach().to(Device::Cpu).to_kind(Kind::Double)
}

/// Returns the largest absolute difference, divided by the largest absolute value of `exact`.
pub(crate) fn relative(seen: &Tensor, exact: &Tensor) -> f64 {
    let exact = wide(exact);
    ((wide(seen) - &exact).abs().max() / exact.abs().max()).double_value(&[])
}
