//! The dtype in which gradients are stored between the backward pass and the optimizer step.

use std::slice;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{
    Result,
    ffi::{self, Grads},
    named::named,
    parameter::Parameter,
};

/// How gradients of f32 weights are stored between the backward pass and the optimizer step if
/// matrix products run in 16 bits. In both variants, the matrix product that computes a gradient
/// accumulates in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GradientStorage {
    /// Gradients are stored in f32. On CUDA, the f32 result of the matrix product is stored as it
    /// is. PyTorch first rounds it to 16 bits.
    #[default]
    Full,
    /// Gradients are rounded to 16 bits, as in PyTorch, and stored in 2 bytes per element. This
    /// applies to the weights of [`Linear`](crate::nn::Linear) on CUDA. The dtype is bf16 under
    /// `bf16-mixed`, and f16 under `16-mixed`: scaled gradients beyond the range of f16 then
    /// overflow. Only the optimizer kernels of this crate read 16-bit gradients. Hooks before the
    /// step, clipping by value and other optimizers get gradients in f32. With gradient
    /// accumulation the gradients are stored in f32.
    SixteenBit,
}

named!(GradientStorage, "gradient storage", {
    Full => "full",
    SixteenBit => "16-bit",
});

/// A guard for a list of f32 parameters. While it exists, backward passes may store the gradients
/// of these parameters in 16 bits.
#[derive(Debug)]
pub(crate) struct NarrowGradients(Vec<Tensor>);

impl NarrowGradients {
    pub(crate) fn allow<'a>(parameters: impl Iterator<Item = &'a Parameter>) -> Result<Self> {
        let full = parameters.map(|parameter| &parameter.tensor);
        let full = full.filter(|tensor| tensor.kind() == Kind::Float).map(Tensor::shallow_clone);
        let allowed = Self(full.collect());
        ffi::allow_any_grad_dtype(&allowed.0, true)?;
        Ok(allowed)
    }
}

impl Drop for NarrowGradients {
    fn drop(&mut self) {
        // From here on, a gradient must have the dtype of its parameter again. The error is
        // ignored, because `drop` cannot return it.
        let _ = ffi::allow_any_grad_dtype(&self.0, false);
    }
}

/// Converts gradients that have fewer bits than their parameters to the parameters' dtype.
pub(crate) fn upcast_gradients(parameters: &[Parameter]) -> Result<()> {
    // Gradients are converted one by one, so that each 16-bit gradient is freed before the next one
    // is converted.
    for parameter in parameters {
        let kind = parameter.tensor.kind();
        let narrow = Grads::of(slice::from_ref(parameter))?;
        for grad in narrow.iter().filter(|grad| grad.kind() != kind) {
            ffi::set_grads([&parameter.tensor], &[grad.f_to_kind(kind)?])?;
        }
    }
    Ok(())
}
