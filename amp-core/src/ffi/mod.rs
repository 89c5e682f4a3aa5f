//! The only unsafe code of the crate: calls into the C++ code (the shim, in `csrc/`), and access to
//! the memory of tensors. Each module of this folder calls the C++ files that it names.
//!
//! Every call that may throw a C++ exception goes through [`checked!`], which turns the exception
//! into an [`Error`].

#![allow(unsafe_code)]

use tch::Tensor;
use torch_sys::C_tensor;

use crate::Error;

/// A tensor as it is passed to the C++ code. Rust owns the tensor.
type Handle = *const C_tensor;

unsafe extern "C" {
    fn amp_take_error(buffer: *mut u8, capacity: usize) -> usize;
}

/// Calls a shim function. A nonzero status becomes an error with the text of the C++ exception.
macro_rules! checked {
    ($call:ident($($argument:expr),* $(,)?)) => {{
        // SAFETY: the shim reads the pointers only during the call, every pointer comes from a live
        // reference or slice of the stated length, and no exception leaves the shim.
        let status = unsafe { $call($($argument),*) };
        if status == 0 { Ok(()) } else { Err(take_error()) }
    }};
}

// The modules are declared below the macro `checked!`, because they use this macro.
mod attention;
mod autocast_and_gradients;
mod broadcasts;
mod ctc;
mod cuda_library;
mod device;
mod dropped_weights;
mod flops;
mod generators_and_events;
mod gradient_figures;
mod graph;
mod host_values;
mod layers;
mod linear_cross_entropy;
mod matrix_products;
mod operator_dtypes;
mod optim;
mod optimizer_rules;
mod own_kernels;
mod quantized_state;
mod recompute;
mod training_modes;
mod transfer;

pub(crate) use attention::*;
pub(crate) use autocast_and_gradients::*;
pub(crate) use broadcasts::*;
pub(crate) use ctc::*;
pub use cuda_library::CudaLibrary;
pub(crate) use cuda_library::*;
pub(crate) use device::*;
pub(crate) use dropped_weights::weights_dropout;
pub use dropped_weights::{DroppedWeights, DroppedWeightsPass};
pub(crate) use flops::*;
pub(crate) use generators_and_events::*;
pub(crate) use gradient_figures::*;
pub(crate) use graph::*;
pub(crate) use host_values::*;
pub(crate) use layers::*;
pub(crate) use linear_cross_entropy::*;
pub(crate) use matrix_products::*;
pub(crate) use operator_dtypes::ModuleOfOperators;
pub use operator_dtypes::{OperatorDtypes, OperatorPass};
pub(crate) use optim::*;
pub(crate) use optimizer_rules::*;
pub(crate) use own_kernels::*;
pub(crate) use quantized_state::*;
pub(crate) use recompute::*;
pub(crate) use training_modes::*;
pub(crate) use transfer::*;

fn take_error() -> Error {
    let mut buffer = vec![0_u8; 4096];
    loop {
        // SAFETY: the shim writes at most `buffer.len()` bytes into the buffer.
        let length = unsafe { amp_take_error(buffer.as_mut_ptr(), buffer.len()) };
        let fits = length <= buffer.len();
        buffer.resize(length, 0);
        if fits {
            return Error::torch(&String::from_utf8_lossy(&buffer));
        }
    }
}

fn handle(tensor: Option<&Tensor>) -> Handle {
    tensor.map_or(std::ptr::null(), Tensor::as_ptr)
}

fn handles<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<Handle> {
    tensors.into_iter().map(Tensor::as_ptr).collect()
}
