//! Connectionist temporal classification (`csrc/ctc.cpp`).

use std::ffi::c_int;

use tch::Tensor;
use torch_sys::C_tensor;

use super::{Handle, layers::optional_tensor, take_error};
use crate::Result;

unsafe extern "C" {
    fn amp_ctc_loss(
        log_probs: Handle,
        labels: Handle,
        lengths: Handle,
        counts: Handle,
        blank: i64,
        zero_infinity: c_int,
        out: *mut *mut C_tensor,
    ) -> c_int;
}

/// Returns the loss of each example, of shape `[N]`. The log probabilities are f32 or f64 of shape
/// `[N, T, C]`. The labels are int64 of shape `[N, S]`, padded with -100. All tensors are on one
/// CUDA device. For each example, `lengths` (int64) contains the number of time steps, and `counts`
/// (int64) contains the number of labels. The loss of an invalid example is NaN. Returns `None` if
/// the kernels do not support these sizes.
pub(crate) fn ctc_loss(
    log_probs: &Tensor,
    labels: &Tensor,
    [lengths, counts]: [&Tensor; 2],
    blank: i64,
    zero_infinity: bool,
) -> Result<Option<Tensor>> {
    let (log_probs, labels) = (log_probs.as_ptr(), labels.as_ptr());
    let (lengths, counts) = (lengths.as_ptr(), counts.as_ptr());
    let zero = zero_infinity.into();
    optional_tensor(|out| {
        checked!(amp_ctc_loss(log_probs, labels, lengths, counts, blank, zero, out))
    })
}
