//! Converts f16 and bf16 values to tensors and back, bit for bit.
//!
//! tch declares `half::bf16` as f16 ([`Element::KIND`](tch::kind::Element), tch #995).
//! `Tensor::from_slice` therefore copies the right bits but gives the tensor the wrong dtype, so
//! that the bits stand for other numbers. The functions of this module copy the bytes and set the
//! dtype explicitly.

pub use half::{bf16, f16};

use tch::{Kind, Tensor};

use crate::{Error, Result, precision::dtype_name};

/// Returns a one-dimensional bf16 tensor with the elements of `values`.
///
/// # Errors
/// When there is not enough memory.
pub fn from_bf16(values: &[bf16]) -> Result<Tensor> {
    from_words(values.iter().map(|value| value.to_bits()), Kind::BFloat16)
}

/// Returns a one-dimensional f16 tensor with the elements of `values`.
///
/// # Errors
/// When there is not enough memory.
pub fn from_f16(values: &[f16]) -> Result<Tensor> {
    from_words(values.iter().map(|value| value.to_bits()), Kind::Half)
}

/// Returns the values of a bf16 tensor, row-major, from any device.
///
/// # Errors
/// When the tensor is not bf16.
pub fn to_bf16(tensor: &Tensor) -> Result<Vec<bf16>> {
    Ok(to_words(tensor, Kind::BFloat16)?.map(bf16::from_bits).collect())
}

/// Returns the values of an f16 tensor, row-major, from any device.
///
/// # Errors
/// When the tensor is not f16.
pub fn to_f16(tensor: &Tensor) -> Result<Vec<f16>> {
    Ok(to_words(tensor, Kind::Half)?.map(f16::from_bits).collect())
}

fn from_words(words: impl Iterator<Item = u16>, kind: Kind) -> Result<Tensor> {
    let bytes: Vec<u8> = words.flat_map(u16::to_ne_bytes).collect();
    Ok(Tensor::f_from_data_size(&bytes, &[(bytes.len() / 2) as i64], kind)?)
}

fn to_words(tensor: &Tensor, kind: Kind) -> Result<impl Iterator<Item = u16>> {
    if tensor.kind() != kind {
        return Err(Error::config(format!(
            "a {} tensor cannot be read as {}: convert it first",
            dtype_name(tensor.kind()),
            dtype_name(kind)
        )));
    }
    let mut bytes = vec![0_u8; 2 * tensor.numel()];
    tensor.f_contiguous()?.f_copy_data_u8(&mut bytes, tensor.numel())?;
    let words: Vec<u16> =
        bytes.chunks_exact(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]])).collect();
    Ok(words.into_iter())
}
