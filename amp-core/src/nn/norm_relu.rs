//! Batch norm followed by ReLU, or by the addition of a residual and then ReLU.

use tch::Tensor;

use super::{BatchNorm, Child, Context, Module};
use crate::Result;

impl BatchNorm {
    /// Computes max(norm(input), 0).
    ///
    /// In training on CUDA, one fused operation computes the norm and ReLU. It reads the input
    /// twice: for the statistics, and for the result. It supports inputs `[N, C]`, and 16-bit
    /// images `[N, C, H, W]` in channels_last with a multiple of eight channels, as a
    /// [`Conv2d`](super::Conv2d) in f16 or bf16 returns them. In all other cases the norm and ReLU
    /// run one after the other. In a [`Sequential`](super::Sequential), a `batch_norm2d` with a
    /// following `relu` is fused in the same way.
    ///
    /// ```no_run,standalone_crate
    /// use amp_core::prelude::*;
    ///
    /// #[derive(Module)]
    /// #[forward(|x| self.bn.forward_relu(&conv(x)?, cx))]
    /// struct Block {
    ///     #[layer(conv2d(64, 64, 3, padding = 1, bias = false))]
    ///     conv: Conv2d,
    ///     #[layer(batch_norm2d(64))]
    ///     bn: BatchNorm,
    /// }
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    /// When [`Module::forward`] would fail.
    pub fn forward_relu(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        match self.forward_with(input, cx, true, 0.0)? {
            Some(output) => Ok(output),
            None => Ok(self.forward(input, cx)?.f_relu()?),
        }
    }

    /// Computes max(norm(input) + residual, 0), the end of a residual block. Input and residual
    /// have the shape `[N, C, …]`.
    ///
    /// For the 16-bit images that [`forward_relu`](Self::forward_relu) supports, its fused kernels
    /// compute the sum too, if the residual has the layout and dtype of the input. For the backward
    /// pass, these kernels keep one bit for each element of the sum instead of the sum itself.
    ///
    /// ```no_run,standalone_crate
    /// use amp_core::prelude::*;
    ///
    /// /// Two convolutions with a residual around them.
    /// #[derive(Module)]
    /// #[forward(|x| {
    ///     let y = self.bn1.forward_relu(&conv1(x)?, cx)?;
    ///     self.bn2.forward_add_relu(&conv2(&y)?, x, cx)
    /// })]
    /// struct Residual {
    ///     #[layer(conv2d(64, 64, 3, padding = 1, bias = false))]
    ///     conv1: Conv2d,
    ///     #[layer(batch_norm2d(64))]
    ///     bn1: BatchNorm,
    ///     #[layer(conv2d(64, 64, 3, padding = 1, bias = false))]
    ///     conv2: Conv2d,
    ///     #[layer(batch_norm2d(64))]
    ///     bn2: BatchNorm,
    /// }
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    /// When [`Module::forward`] would fail, or the two tensors cannot be added.
    pub fn forward_add_relu(
        &self,
        input: &Tensor,
        residual: &Tensor,
        cx: &Context,
    ) -> Result<Tensor> {
        match self.forward_sum(input, residual, cx)? {
            Some(output) => Ok(output),
            None => Ok(self.forward(input, cx)?.f_add(residual)?.f_relu()?),
        }
    }
}

impl Child<'_, BatchNorm> {
    /// Calls [`BatchNorm::forward_relu`] as a child module: adds the child's name to the module
    /// path, and applies the child's precision region.
    ///
    /// # Errors
    /// When the layer fails; the error contains the path of the module that failed.
    pub fn forward_relu(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        let together =
            |[x]: [&Tensor; 1], cx: &Context| self.module().forward_with(x, cx, true, 0.0);
        let apart = |[x]: [&Tensor; 1], cx: &Context| Ok(self.forward(x, cx)?.f_relu()?);
        self.run_with(cx, [input], together, apart)
    }

    /// Calls [`BatchNorm::forward_add_relu`] as a child module: adds the child's name to the module
    /// path, and applies the child's precision region.
    ///
    /// # Errors
    /// When the layer fails; the error contains the path of the module that failed.
    pub fn forward_add_relu(
        &self,
        input: &Tensor,
        residual: &Tensor,
        cx: &Context,
    ) -> Result<Tensor> {
        let together =
            |[x, residual]: [&Tensor; 2], cx: &Context| self.module().forward_sum(x, residual, cx);
        let apart = |[x, residual]: [&Tensor; 2], cx: &Context| {
            Ok(self.forward(x, cx)?.f_add(residual)?.f_relu()?)
        };
        self.run_with(cx, [input, residual], together, apart)
    }
}
