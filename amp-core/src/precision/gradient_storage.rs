//! The dtype that gradients have between the backward pass and the step.

use std::slice;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{
    Result,
    ffi::{self, Grads},
    named::named,
    parameter::Parameter,
};

/// How gradients of f32 weights that are multiplied in 16 bits are kept from the backward pass to the
/// step. Both are products that are summed in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GradientStorage {
    /// In f32, as they are summed on CUDA. PyTorch rounds them to 16 bits, and holds that in f32.
    #[default]
    Full,
    /// Rounded to the 16 bits that PyTorch rounds them to, in 2 bytes each, for weights of
    /// [`Linear`](crate::nn::Linear) on CUDA: under `16-mixed` f16, whose range the scale has to keep,
    /// and under `bf16-mixed` bf16. They are made f32 where anything but an optimizer's kernel takes
    /// them: a hook before the step, clipping by value, an optimizer whose step is not one kernel of
    /// ours. Where the gradients of several passes add up, each is f32.
    SixteenBit,
}

named!(GradientStorage, "gradient storage", {
    Full => "full",
    SixteenBit => "16-bit",
});

/// While it lives, backward passes may leave narrower gradients on f32 parameters.
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
        // What was allowed can be taken back.
        let _ = ffi::allow_any_grad_dtype(&self.0, false);
    }
}

/// Makes gradients that are narrower than their parameters as wide.
pub(crate) fn widen_gradients(parameters: &[Parameter]) -> Result<()> {
    // One by one, so that the narrow ones go.
    for parameter in parameters {
        let kind = parameter.tensor.kind();
        let narrow = Grads::of(slice::from_ref(parameter))?;
        for grad in narrow.iter().filter(|grad| grad.kind() != kind) {
            ffi::set_grads([&parameter.tensor], &[grad.f_to_kind(kind)?])?;
        }
    }
    Ok(())
}
