//! Passes the intermediate tensors and weights of a module to the observer of the forward pass: a
//! probe reads the tensors, and a substitute replaces tensors and weights.

use std::ops::Deref;

use tch::{Kind, Tensor};

use super::{Context, Observer};
use crate::{Result, ffi, nn::Casts};

/// A weight for one use in a matrix product or a convolution.
pub(in crate::nn) enum Weight<'t> {
    /// The module's own tensor.
    Own(&'t Tensor),
    /// The tensor by which a substitute replaces the weight.
    Replaced(Tensor),
}

impl Deref for Weight<'_> {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        match self {
            Self::Own(tensor) => tensor,
            Self::Replaced(tensor) => tensor,
        }
    }
}

impl Context {
    /// Returns whether the observer replaces tensors. In this case, a module that otherwise
    /// computes several operations in one fused call computes them one by one, and passes each
    /// result to [`within`](Self::within).
    pub(in crate::nn) fn has_substitutes(&self) -> bool {
        matches!(self.observer, Observer::Substitutes(_))
    }

    /// Passes an intermediate tensor of the running module to the observer, and returns the tensor
    /// with which the module must continue. This is the same tensor, unless the observer is a
    /// [`Substitute`](crate::nn::Substitute) that replaces it. `name` must be the same in each
    /// forward pass.
    ///
    /// To learn how large the error of a layer may be, `cargo amp layers` and the gate run the layer
    /// in a wide dtype and round its parameters, its output and the tensors that it passes to this
    /// method, as the precision would. In your own layer, call this method for each result that the
    /// layer computes outside of its children and uses in a further operation:
    ///
    /// ```no_run,standalone_crate
    /// use amp_core::prelude::*;
    ///
    /// /// A gated linear layer.
    /// #[derive(Module)]
    /// #[forward(|x| {
    ///     let open = cx.within("gate", &gate(x)?.f_sigmoid()?)?;
    ///     Ok(value(x)?.f_mul(&open)?)
    /// })]
    /// struct Gated {
    ///     #[layer(linear(64, 64))]
    ///     gate: Linear,
    ///     #[layer(linear(64, 64))]
    ///     value: Linear,
    /// }
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    /// When the observer fails.
    pub fn within(&self, name: &str, inner: &Tensor) -> Result<Tensor> {
        match &self.observer {
            Observer::Substitutes(other) => other.within(&self.path.borrow(), name, inner),
            Observer::Tensors(probe) => {
                probe.inner(&self.path.borrow(), name, inner);
                Ok(inner.shallow_clone())
            }
            _ => Ok(inner.shallow_clone()),
        }
    }

    /// Returns the tensor that the running module must use in place of `inner` when it uses `inner`
    /// once more; see [`Substitute::next_use`](crate::nn::Substitute::next_use). Call this method
    /// in the order of the uses. If the gradient of one use must be rounded before the gradients of
    /// later uses are added to it, call this method twice: once for this use, and once for the
    /// later uses.
    pub(in crate::nn) fn next_use(&self, inner: &Tensor) -> Result<Tensor> {
        match &self.observer {
            Observer::Substitutes(other) => other.next_use(&self.path.borrow(), inner),
            _ => Ok(inner.shallow_clone()),
        }
    }

    /// Returns the weight with which the running module must compute one matrix product or
    /// convolution: `weight` itself, or the tensor by which a substitute replaces it.
    pub(in crate::nn) fn weight<'t>(&self, weight: &'t Tensor, casts: Casts) -> Result<Weight<'t>> {
        match &self.observer {
            Observer::Substitutes(other) => {
                other.weight(&self.path.borrow(), weight, casts).map(Weight::Replaced)
            }
            _ => Ok(Weight::Own(weight)),
        }
    }

    /// Returns the weight and the bias of a layer as [`weight`](Self::weight) returns them for
    /// [`Casts::Once`], that is, if all calls of the layer share one cast to 16 bits.
    pub(in crate::nn) fn weight_and_bias<'t>(
        &self,
        weight: &'t Tensor,
        bias: Option<&'t Tensor>,
    ) -> Result<(Weight<'t>, Option<Weight<'t>>)> {
        let bias = bias.map(|bias| self.weight(bias, Casts::Once)).transpose()?;
        Ok((self.weight(weight, Casts::Once)?, bias))
    }
}

/// Returns an alias of `tensor` with the same values. The backward pass adds up the gradients from
/// all uses of the alias, and rounds the sum to the dtype `to` before it reaches `tensor`. The gate
/// (`cargo amp gate`) uses this function to emulate how a precision rounds gradients.
///
/// # Errors
/// When `to` is not a floating-point dtype.
#[doc(hidden)]
pub fn with_rounded_gradient(tensor: &Tensor, to: Kind) -> Result<Tensor> {
    ffi::round_gradient(tensor, to)
}
