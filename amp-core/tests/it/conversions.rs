//! Tests of converting slices of f16 and bf16 numbers to tensors and back.

use amp_core::{
    Result, convert,
    convert::{bf16, f16},
    tch::{Device, Kind, Tensor, kind::Element},
};

use crate::support::{bits::values, message};

/// tch #995: tch declares `half::bf16` as f16, so a tensor that is made from bf16 numbers has wrong
/// values. If this test fails, tch has fixed the bug, and `convert` can be removed.
#[test]
fn tchs_fault_with_bf16_still_exists() {
    assert_eq!(<bf16 as Element>::KIND, Kind::Half);
    let tensor = Tensor::from_slice(&[bf16::from_f32(1.0)]);
    assert_eq!(tensor.kind(), Kind::Half);
    assert_eq!(tensor.double_value(&[0]), 1.875, "the bits of the bf16 number 1, read as f16");
}

/// Each of the 65,536 bit patterns of bf16, including every NaN, is the same after conversion to
/// libtorch and back. libtorch and `half` agree on its value.
#[test]
fn every_bf16_survives_both_ways() -> Result<()> {
    let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    let tensor = convert::from_bf16(&all)?;
    assert_eq!((tensor.kind(), tensor.size()), (Kind::BFloat16, vec![65536]));
    let back: Vec<u16> = convert::to_bf16(&tensor)?.into_iter().map(bf16::to_bits).collect();
    assert!(back.into_iter().eq(0..=u16::MAX));
    let same = |(seen, bits): (f64, &bf16)| seen == bits.to_f64() || seen.is_nan() && bits.is_nan();
    assert!(values(&tensor).into_iter().zip(&all).all(same));
    Ok(())
}

/// Each of the 65,536 bit patterns of f16, including every NaN, is the same after conversion to
/// libtorch and back. libtorch and `half` agree on its value.
#[test]
fn every_f16_survives_both_ways() -> Result<()> {
    let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    let tensor = convert::from_f16(&all)?;
    assert_eq!((tensor.kind(), tensor.size()), (Kind::Half, vec![65536]));
    let back: Vec<u16> = convert::to_f16(&tensor)?.into_iter().map(f16::to_bits).collect();
    assert!(back.into_iter().eq(0..=u16::MAX));
    let same = |(seen, bits): (f64, &f16)| seen == bits.to_f64() || seen.is_nan() && bits.is_nan();
    assert!(values(&tensor).into_iter().zip(&all).all(same));
    Ok(())
}

/// The elements of a tensor are read row by row, whatever its strides are.
#[test]
fn a_transposed_tensor_is_read_row_by_row() -> Result<()> {
    let tensor =
        Tensor::arange(6, (Kind::Float, Device::Cpu)).reshape([2, 3]).to_kind(Kind::BFloat16);
    let read: Vec<f32> =
        convert::to_bf16(&tensor.transpose(0, 1))?.into_iter().map(bf16::to_f32).collect();
    assert_eq!(read, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    Ok(())
}

/// A tensor whose dtype is not the requested one is refused and not converted.
#[test]
fn another_dtype_is_refused() {
    let f16 = Tensor::zeros([1], (Kind::Half, Device::Cpu));
    let said = message(convert::to_bf16(&f16));
    assert!(said.contains("float16 tensor cannot be read as bfloat16"), "{said}");
    let f32 = Tensor::zeros([1], (Kind::Float, Device::Cpu));
    assert!(message(convert::to_f16(&f32)).contains("float32 tensor cannot be read as float16"));
}

#[test]
fn an_empty_slice_converts_to_an_empty_tensor() -> Result<()> {
    assert_eq!(convert::from_bf16(&[])?.numel(), 0);
    assert!(convert::to_f16(&convert::from_f16(&[])?)?.is_empty());
    Ok(())
}
