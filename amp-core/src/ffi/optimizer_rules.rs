//! Operations that optimizers compute on single tensors (`csrc/optimizer_rules.cpp`).

use std::ffi::{c_double, c_int};

use tch::Tensor;
use torch_sys::C_tensor;

use super::{Handle, layers::made, take_error};
use crate::Result;

unsafe extern "C" {
    fn amp_add_scaled(tensor: Handle, other: Handle, factor: c_double) -> c_int;
    fn amp_newton_schulz(
        update: Handle,
        coefficients: *const c_double,
        steps: i64,
        eps: c_double,
        out: *mut *mut C_tensor,
    ) -> c_int;
}

/// Adds `factor` · `other` to `tensor` in place. `other` may have another dtype than `tensor`.
pub(crate) fn add_scaled(tensor: &Tensor, other: &Tensor, factor: f64) -> Result<()> {
    checked!(amp_add_scaled(tensor.as_ptr(), other.as_ptr(), factor))
}

/// Replaces the matrix `update` by a matrix with singular values near 1, by Newton-Schulz iteration
/// in bfloat16.
pub(crate) fn newton_schulz(
    update: &Tensor,
    (a, b, c): (f64, f64, f64),
    steps: i64,
    eps: f64,
) -> Result<Tensor> {
    let coefficients = [a, b, c];
    made(|out| checked!(amp_newton_schulz(update.as_ptr(), coefficients.as_ptr(), steps, eps, out)))
}
