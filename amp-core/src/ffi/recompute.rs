//! Activation checkpointing: recomputes activations in the backward pass (`csrc/recompute.cpp`).

use std::ffi::{c_int, c_void};

use tch::Tensor;
use torch_sys::C_tensor;

use super::{Handle, take_error};
use crate::Result;

unsafe extern "C" {
    fn amp_surroundings(input: Handle, out: *mut *mut c_void) -> c_int;
    fn amp_surroundings_drop(surroundings: *mut c_void);
    fn amp_checkpoint(
        surroundings: *mut c_void,
        state: *mut c_void,
        run: unsafe extern "C" fn(*mut c_void, Handle) -> *mut C_tensor,
        drop: unsafe extern "C" fn(*mut c_void),
        input: Handle,
        output: Handle,
    ) -> c_int;
    fn amp_checkpoint_failed(text: *const u8, length: usize);
}

/// Computes a module's output from its input.
type Run = dyn Fn(&Tensor) -> Result<Tensor>;

/// A module that is recomputed in the backward pass. The C++ node in the autograd graph owns this
/// struct.
struct Recompute {
    run: Box<Run>,
}

/// Runs `first` on `input` without keeping activations, and adds a node to the autograd graph. In
/// the backward pass, the node runs `again` with the same autocast state and random numbers. On
/// CUDA, threads of libtorch run and free `again`, so it may share values with the caller only
/// through an `Arc`.
pub(crate) fn checkpoint(
    input: &Tensor,
    first: impl FnOnce() -> Result<Tensor>,
    again: impl Fn(&Tensor) -> Result<Tensor> + 'static,
) -> Result<Tensor> {
    let mut surroundings = std::ptr::null_mut();
    checked!(amp_surroundings(input.as_ptr(), &mut surroundings))?;
    // A module may return its input unchanged. The output is detached, so that the new node becomes
    // the `grad_fn` of the output but not of the input.
    let output = match tch::no_grad(|| Ok(first()?.f_detach()?)) {
        Ok(output) => output,
        Err(error) => {
            // SAFETY: `amp_surroundings` made the pointer, and only this code owns it.
            unsafe { amp_surroundings_drop(surroundings) };
            return Err(error);
        }
    };
    let state = Box::into_raw(Box::new(Recompute { run: Box::new(again) })).cast();
    checked!(amp_checkpoint(
        surroundings,
        state,
        recompute,
        drop_recompute,
        input.as_ptr(),
        output.as_ptr(),
    ))?;
    Ok(output)
}

/// Runs a module again. C++ calls this function in the backward pass. Returns null if the module
/// fails or panics, because neither errors nor panics may reach C++.
unsafe extern "C" fn recompute(state: *mut c_void, input: Handle) -> *mut C_tensor {
    // SAFETY: `state` is the pointer that `checkpoint` passed to C++, and lives until
    // `drop_recompute`. C++ keeps the tensor `input` alive during this call, and the clone is a
    // separate handle.
    let (state, input) =
        unsafe { (&*state.cast::<Recompute>(), Tensor::clone_from_ptr(input.cast_mut())) };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (state.run)(&input)));
    let failure = match outcome {
        Ok(Ok(mut output)) => {
            let shared = output.as_mut_ptr();
            // SAFETY: the tensor is live; C++ frees the copy, and `output` frees the original.
            return unsafe { torch_sys::at_shallow_clone(shared) };
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the module panicked".to_owned(),
    };
    // SAFETY: C++ copies the text before it returns.
    unsafe { amp_checkpoint_failed(failure.as_ptr(), failure.len()) };
    std::ptr::null_mut()
}

unsafe extern "C" fn drop_recompute(state: *mut c_void) {
    // SAFETY: `Box::into_raw` in `checkpoint` made the pointer; C++ calls this function once.
    drop(unsafe { Box::from_raw(state.cast::<Recompute>()) });
}
