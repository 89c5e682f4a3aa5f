//! Residual connections around a norm and a branch, as in pre-norm transformers.

use std::cell::RefCell;

use tch::Tensor;

use super::{Child, Context, LayerNorm};
use crate::{Result, ffi};

impl Child<'_, LayerNorm> {
    /// Computes x + branch(norm(x)), with the shape of x. The gradient of x is the sum of two
    /// gradients, one from the norm and one from the addition. In training on CUDA, the kernel for
    /// the gradient of the norm also computes this sum, if the size of the last dimension is a
    /// multiple of 128 and at most 1024.
    ///
    /// ```no_run,standalone_crate
    /// use amp_core::prelude::*;
    ///
    /// /// A pre-norm block.
    /// #[derive(Module)]
    /// #[forward(|x| {
    ///     let x = self.norm1.residual(x, attention, cx)?;
    ///     self.norm2.residual(&x, |x| dropout(&perceptron(x)?), cx)
    /// })]
    /// struct Block {
    ///     #[layer(layer_norm(256))]
    ///     norm1: LayerNorm,
    ///     #[layer(multihead_attention(256, 8, causal = true))]
    ///     attention: MultiheadAttention,
    ///     #[layer(layer_norm(256))]
    ///     norm2: LayerNorm,
    ///     #[layer(sequential(linear(256, 1024), gelu, linear(1024, 256)))]
    ///     perceptron: Sequential,
    ///     #[layer(dropout(0.1))]
    ///     dropout: Dropout,
    /// }
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    /// When the norm or the branch fails, or the output of the branch cannot be added to x.
    pub fn residual(
        &self,
        x: &Tensor,
        branch: impl FnOnce(&Tensor) -> Result<Tensor>,
        cx: &Context,
    ) -> Result<Tensor> {
        self.around(x, branch, cx, false)
    }

    /// Computes what [`residual`](Self::residual) computes, for a branch that uses the output of
    /// the norm only in matrix products, such as attention or a feed-forward network. Under
    /// autocast, these products round their input to the autocast dtype. Therefore the kernel of
    /// the norm writes its output in this dtype instead of f32. The results are the same as those
    /// of `residual`, unless the branch has its own `#[precision(…)]`; in this case use
    /// [`residual`](Self::residual).
    ///
    /// ```no_run,standalone_crate
    /// use amp_core::prelude::*;
    ///
    /// #[derive(Module)]
    /// #[forward(|x| self.norm.residual_of_products(x, |x| second(&first(x)?.f_relu()?), cx))]
    /// struct Perceptron {
    ///     #[layer(layer_norm(256))]
    ///     norm: LayerNorm,
    ///     #[layer(linear(256, 1024))]
    ///     first: Linear,
    ///     #[layer(linear(1024, 256))]
    ///     second: Linear,
    /// }
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    /// When [`residual`](Self::residual) would fail.
    pub fn residual_of_products(
        &self,
        x: &Tensor,
        branch: impl FnOnce(&Tensor) -> Result<Tensor>,
        cx: &Context,
    ) -> Result<Tensor> {
        self.around(x, branch, cx, true)
    }

    fn around(
        &self,
        x: &Tensor,
        branch: impl FnOnce(&Tensor) -> Result<Tensor>,
        cx: &Context,
        narrow: bool,
    ) -> Result<Tensor> {
        // If there are precision overrides, a matrix product in the branch may run in a wider dtype
        // than that of autocast. In this case the input of the product must not be rounded.
        let narrow = narrow && !cx.has_overrides();
        let stream = RefCell::new(None);
        let together = |[x]: [&Tensor; 1], cx: &Context| {
            let made = self.module().forward_residual(x, cx, narrow)?;
            Ok(made.map(|(again, normal)| {
                stream.borrow_mut().get_or_insert(again);
                normal
            }))
        };
        let normal = self.run_with(cx, [x], together, |[x], cx| self.forward(x, cx))?;
        let branch = branch(&normal)?;
        match stream.into_inner() {
            Some(stream) => ffi::residual_add(&stream, &branch),
            None => Ok(x.f_add(&branch)?),
        }
    }
}
