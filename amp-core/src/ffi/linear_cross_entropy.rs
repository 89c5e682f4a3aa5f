//! The cross entropy of a linear layer in chunks of rows (`csrc/linear_cross_entropy.cpp`).

use std::{
    ffi::{c_double, c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
};

use tch::Tensor;
use torch_sys::C_tensor;

use super::{Handle, handle, layers::made, take_error};
use crate::{Error, Result};

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
        each: Option<unsafe extern "C" fn(*mut c_void, Handle, i64)>,
        state: *mut c_void,
        out: *mut *mut C_tensor,
    ) -> c_int;
}

/// Reads the logits of a chunk, `[rows, classes]`, which begins at the given row. Afterwards other values are
/// written to the memory of the logits.
pub(crate) type EachChunk<'a> = dyn FnMut(&Tensor, i64) -> Result<()> + 'a;

/// The state that C++ passes to [`read_chunk`].
struct Chunks<'a, 'b> {
    each: &'a mut EachChunk<'b>,
    /// The error of the first chunk that failed; no later chunk is read.
    error: Option<Error>,
}

/// Returns the mean cross entropy of `input`·Wᵀ + b against int64 classes, on the CPU or CUDA. It
/// computes in the dtype of the autocast region, or without one in the weight's dtype. Only the
/// logits of one chunk are in memory at a time; `each` reads them.
pub(crate) fn linear_cross_entropy(
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    targets: &Tensor,
    options: &LinearCrossEntropyOptions,
    each: Option<&mut EachChunk<'_>>,
) -> Result<Tensor> {
    let (input, weight, bias) = (input.as_ptr(), weight.as_ptr(), handle(bias));
    let (targets, options) = (targets.as_ptr(), &raw const *options);
    let Some(each) = each else {
        return made(|out| {
            let state = std::ptr::null_mut();
            checked!(amp_linear_cross_entropy(
                input, weight, bias, targets, options, None, state, out
            ))
        });
    };
    let mut chunks = Chunks { each, error: None };
    let state = (&raw mut chunks).cast();
    let run = Some(read_chunk as unsafe extern "C" fn(_, _, _));
    let loss = made(|out| {
        checked!(amp_linear_cross_entropy(input, weight, bias, targets, options, run, state, out))
    });
    // If a target is not a class, the caller gets the error of the loss, not the error that `each`
    // may have had with it.
    let loss = loss?;
    match chunks.error {
        Some(error) => Err(error),
        None => Ok(loss),
    }
}

/// Passes the logits of a chunk to the caller's function. Neither an error nor a panic may reach
/// C++.
unsafe extern "C" fn read_chunk(state: *mut c_void, logits: Handle, first: i64) {
    // SAFETY: C++ passes the state that it was given, which lives during the call of `linear_cross_entropy` and which
    // nothing else uses meanwhile, and a tensor that lives during this call; the clone is a separate handle.
    let (chunks, logits) = unsafe {
        (&mut *state.cast::<Chunks<'_, '_>>(), Tensor::clone_from_ptr(logits.cast_mut()))
    };
    if chunks.error.is_some() {
        return;
    }
    chunks.error = match catch_unwind(AssertUnwindSafe(|| (chunks.each)(&logits, first))) {
        Ok(outcome) => outcome.err(),
        Err(_) => Some(Error::config("a metric of the logits panicked")),
    };
}
