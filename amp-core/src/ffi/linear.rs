//! The product of a linear layer (`csrc/linear.cpp`).

use std::ffi::c_int;

use tch::Tensor;
use torch_sys::C_tensor;

use super::{Handle, take_error};
use crate::Result;

unsafe extern "C" {
    fn amp_linear(input: Handle, weight: Handle, bias: Handle, out: *mut *mut C_tensor) -> c_int;
}

/// x·Wᵀ + b. Under autocast on CUDA the gradients of an f32 weight and bias come from f32 sums of
/// products without being rounded to 16 bits in between.
pub(crate) fn linear(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let bias = bias.map_or(std::ptr::null(), Tensor::as_ptr);
    let mut out = std::ptr::null_mut();
    checked!(amp_linear(input.as_ptr(), weight.as_ptr(), bias, &mut out))?;
    // SAFETY: on success it is a new tensor that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(out) })
}
