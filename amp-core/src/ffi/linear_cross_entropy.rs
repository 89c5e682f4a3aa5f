//! The cross entropy of a linear layer in chunks of rows (`csrc/linear_cross_entropy.cpp`).

use std::ffi::{c_double, c_int};

use tch::Tensor;
use torch_sys::C_tensor;

use super::{Handle, handle, layers::made, take_error};
use crate::Result;

/// The options of a [`linear_cross_entropy`].
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinearCrossEntropyOptions {
    pub(crate) smoothing: c_double,
    /// The ignored class.
    pub(crate) left_out: i64,
    /// The factor of log²Σexp(logits).
    pub(crate) z: c_double,
    /// The number of rows in a chunk.
    pub(crate) rows: i64,
}

unsafe extern "C" {
    fn amp_linear_cross_entropy(
        input: Handle,
        weight: Handle,
        bias: Handle,
        targets: Handle,
        options: *const LinearCrossEntropyOptions,
        out: *mut *mut C_tensor,
    ) -> c_int;
}

/// Returns the mean cross entropy of `input`·Wᵀ + b against int64 classes, on the CPU or CUDA. It
/// computes in the dtype of the autocast region, or without one in the weight's dtype. Only the
/// logits of one chunk are in memory at a time.
pub(crate) fn linear_cross_entropy(
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    targets: &Tensor,
    options: &LinearCrossEntropyOptions,
) -> Result<Tensor> {
    let (input, weight, bias) = (input.as_ptr(), weight.as_ptr(), handle(bias));
    let targets = targets.as_ptr();
    made(|out| {
        checked!(amp_linear_cross_entropy(input, weight, bias, targets, &raw const *options, out))
    })
}
