//! Encodes and decodes optimizer state in 8 bits on the CPU (`csrc/quantized_state.cpp`).

use std::ffi::c_int;

use tch::Tensor;

use super::{Handle, take_error};
use crate::Result;

unsafe extern "C" {
    fn amp_moments_decode(codes: Handle, scales: Handle, values: Handle, out: Handle) -> c_int;
    fn amp_moments_encode(
        from: Handle,
        bounds: Handle,
        positive: c_int,
        codes: Handle,
        scales: Handle,
    ) -> c_int;
}

/// Decodes optimizer state: for each code in `codes` (u8), writes `values[code]` multiplied by the
/// scale of the code's block of 256 elements. `values` is f32 `[256]`, and `out` is f32. All
/// tensors are contiguous.
pub(crate) fn moments_decode(
    codes: &Tensor,
    scales: &Tensor,
    values: &Tensor,
    out: &Tensor,
) -> Result<()> {
    checked!(amp_moments_decode(codes.as_ptr(), scales.as_ptr(), values.as_ptr(), out.as_ptr()))
}

/// Encodes optimizer state: writes `from` (f32) to `codes` (u8) and `scales`. Each element is
/// divided by the largest magnitude of its block, which is the block's scale. The element's code is
/// the number of `bounds` (f32 `[255]`) that are below the quotient. With `positive`, an element
/// above zero has at least code 1, so that it does not become zero.
pub(crate) fn moments_encode(
    from: &Tensor,
    bounds: &Tensor,
    positive: bool,
    codes: &Tensor,
    scales: &Tensor,
) -> Result<()> {
    checked!(amp_moments_encode(
        from.as_ptr(),
        bounds.as_ptr(),
        c_int::from(positive),
        codes.as_ptr(),
        scales.as_ptr(),
    ))
}
