//! Computes a linear layer followed by the cross entropy, in chunks of rows
//! (`csrc/linear_cross_entropy.cpp`).

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
    /// The class that the loss ignores.
    pub(crate) left_out: i64,
    /// The factor of the penalty (log Σ exp(logits))².
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

/// A function that reads the logits of one chunk, `[rows, classes]`. The second argument is the
/// index of the chunk's first row. The next chunk overwrites the logits.
pub(crate) type EachChunk<'a> = dyn FnMut(&Tensor, i64) -> Result<()> + 'a;

/// The state of [`read_chunk`]: the caller's function, and its first error. C++ passes a pointer to
/// this struct.
struct Chunks<'a, 'b> {
    each: &'a mut EachChunk<'b>,
    /// The error of the first chunk that failed. Later chunks are not read.
    error: Option<Error>,
}

/// Returns the mean cross entropy of `input`·Wᵀ + b against int64 classes, on the CPU or CUDA.
/// Under autocast, computes in the autocast dtype. Without autocast, computes in the weight's
/// dtype. Only the logits of one chunk are in memory at a time. `each` reads these logits.
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
    // If a target is not a valid class index, both the loss and `each` may fail. The error of the
    // loss is returned, because it names the cause.
    let loss = loss?;
    match chunks.error {
        Some(error) => Err(error),
        None => Ok(loss),
    }
}

/// Passes the logits of a chunk to the caller's function. Keeps an error or a panic of the
/// function, because neither may reach C++.
unsafe extern "C" fn read_chunk(state: *mut c_void, logits: Handle, first: i64) {
    // SAFETY: `state` is the pointer to the `Chunks` of `linear_cross_entropy`, which live until
    // that function returns and which nothing else uses during this call. C++ keeps the tensor
    // `logits` alive during this call, and the clone is a separate handle.
    let (chunks, logits) = unsafe {
        (&mut *state.cast::<Chunks<'_, '_>>(), Tensor::clone_from_ptr(logits.cast_mut()))
    };
    if chunks.error.is_some() {
        return;
    }
    chunks.error = match catch_unwind(AssertUnwindSafe(|| (chunks.each)(&logits, first))) {
        Ok(outcome) => outcome.err(),
        Err(_) => Some(Error::config("the computation of a metric from the logits panicked")),
    };
}
