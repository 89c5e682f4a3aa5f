//! A convolution at the start of a residual block.

use std::cell::RefCell;

use tch::Tensor;

use super::{Conv, Conv2d, ConvConfig, PaddingMode};
use crate::{
    Result, ffi,
    nn::{Child, Context},
};

impl Child<'_, Conv2d> {
    /// Computes the convolution of x, and also returns x for the shortcut of a residual block that
    /// begins with this convolution.
    ///
    /// The first result is the output of the convolution, and the second is x. The gradient of x is
    /// the sum of the gradients from these two results. In training on CUDA in f16 or bf16, one
    /// matrix product computes the sum, if the convolution has stride 1, a 1 × 1 kernel and no
    /// bias. In other cases the two gradients are computed separately and then added.
    ///
    /// ```no_run,standalone_crate
    /// use amp_core::prelude::*;
    ///
    /// /// Two convolutions with a residual around them.
    /// #[derive(Module)]
    /// #[forward(|x| {
    ///     let (y, x) = self.conv1.and_input(x, cx)?;
    ///     let y = self.bn1.forward_relu(&y, cx)?;
    ///     self.bn2.forward_add_relu(&conv2(&y)?, &x, cx)
    /// })]
    /// struct Residual {
    ///     #[layer(conv2d(256, 64, 1, bias = false))]
    ///     conv1: Conv2d,
    ///     #[layer(batch_norm2d(64))]
    ///     bn1: BatchNorm,
    ///     #[layer(conv2d(64, 256, 1, bias = false))]
    ///     conv2: Conv2d,
    ///     #[layer(batch_norm2d(256))]
    ///     bn2: BatchNorm,
    /// }
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    /// When [`forward`](crate::nn::Module::forward) would fail; the error contains the path of the
    /// module that failed.
    pub fn and_input(&self, x: &Tensor, cx: &Context) -> Result<(Tensor, Tensor)> {
        let again = RefCell::new(None);
        let together = |[x]: [&Tensor; 1], cx: &Context| {
            let made = self.module().forward_and_input(x, cx)?;
            Ok(made.map(|(out, input)| {
                again.borrow_mut().get_or_insert(input);
                out
            }))
        };
        let out = self.run_with(cx, [x], together, |[x], cx| self.forward(x, cx))?;
        Ok((out, again.into_inner().unwrap_or_else(|| x.shallow_clone())))
    }
}

impl Conv<2> {
    fn forward_and_input(&self, input: &Tensor, cx: &Context) -> Result<Option<(Tensor, Tensor)>> {
        let ConvConfig { kernel_size, stride, padding, dilation, groups, padding_mode, .. } =
            self.config;
        let [before, after] = padding.sides(kernel_size, dilation);
        let is_plain = cx.is_training()
            && input.device().is_cuda()
            && self.bias.is_none()
            && groups == 1
            && padding_mode == PaddingMode::Zeros
            && before == after;
        match (dilation.common(), stride.common(), before.common()) {
            (Some(1), Some(stride), Some(padding)) if is_plain => {
                ffi::conv2d_and_input(input, &self.weight, [stride, padding])
            }
            _ => Ok(None),
        }
    }
}
