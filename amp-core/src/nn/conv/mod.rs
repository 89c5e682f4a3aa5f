//! Convolutions.

mod and_input;
mod padding;
#[cfg(test)]
mod tests;
mod transpose;

pub(super) use padding::sides;
pub use padding::{Padding, PaddingMode};
pub use transpose::{
    ConvTranspose, ConvTranspose1d, ConvTranspose1dConfig, ConvTranspose2d, ConvTranspose2dConfig,
    ConvTranspose3d, ConvTranspose3dConfig, ConvTransposeConfig,
};

use tch::Tensor;

use super::{Context, Module, Op, Role, Sizes, Visit, Visitor, check::are_positive, init};
use crate::{Error, Result, ffi};

/// The options of a [`Conv`] over `N` dimensions. The defaults are those of nn.Conv2d.
#[derive(Debug, Clone, Copy)]
pub struct ConvConfig<const N: usize> {
    /// The number of input channels.
    pub in_channels: i64,
    /// The number of output channels.
    pub out_channels: i64,
    /// The kernel's size.
    pub kernel_size: Sizes<N>,
    /// The distance between neighbouring positions of the kernel, in elements of the input.
    pub stride: Sizes<N>,
    /// The padding at the start and at the end of each dimension.
    pub padding: Padding<N>,
    /// The distance between neighbouring elements of the kernel, in elements of the input.
    pub dilation: Sizes<N>,
    /// The number of groups of channels. Each group has its own filters. The number must divide
    /// `in_channels` and `out_channels`.
    pub groups: i64,
    /// Whether the convolution adds a bias.
    pub bias: bool,
    /// The values with which the input is padded.
    pub padding_mode: PaddingMode,
}

/// The options of a [`Conv1d`].
pub type Conv1dConfig = ConvConfig<1>;
/// The options of a [`Conv2d`].
pub type Conv2dConfig = ConvConfig<2>;
/// The options of a [`Conv3d`].
pub type Conv3dConfig = ConvConfig<3>;

impl<const N: usize> ConvConfig<N> {
    /// Returns options with stride 1, without padding and with a bias.
    pub fn new(in_channels: i64, out_channels: i64, kernel_size: impl Into<Sizes<N>>) -> Self {
        Self {
            in_channels,
            out_channels,
            kernel_size: kernel_size.into(),
            stride: Sizes([1; N]),
            padding: Padding::Sizes(Sizes([0; N])),
            dilation: Sizes([1; N]),
            groups: 1,
            bias: true,
            padding_mode: PaddingMode::Zeros,
        }
    }
}

/// A convolution over `N` dimensions; nn.Conv1d, nn.Conv2d and nn.Conv3d. The input is `[N, C, L]`,
/// `[N, C, H, W]` or `[N, C, D, H, W]`, or the same without the batch dimension.
///
/// On CUDA in f16 or bf16, a [`Conv2d`] uses the memory layout channels_last, which tensor cores
/// need, if it has one group, dilation 1, and equal strides and paddings for height and width. Its
/// output has this layout, and the following layers keep the layout until a
/// [`Flatten`](super::Flatten). The weight and the weight's gradient are contiguous.
///
/// ```no_run,standalone_crate
/// use amp_core::nn::{Conv2d, Conv2dConfig, Padding, Sizes};
///
/// // A depthwise convolution with windows of 3 × 5. The output is as large as the image.
/// let config = Conv2dConfig {
///     groups: 8,
///     padding: Padding::Same,
///     ..Conv2dConfig::new(8, 8, [3, 5])
/// };
/// let conv = Conv2d::new(config)?;
/// # Ok::<(), amp_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Conv<const N: usize> {
    weight: Tensor,
    bias: Option<Tensor>,
    config: ConvConfig<N>,
}

/// A convolution of sequences, `[N, C, L]`; nn.Conv1d.
pub type Conv1d = Conv<1>;
/// A convolution of images, `[N, C, H, W]`; nn.Conv2d.
pub type Conv2d = Conv<2>;
/// A convolution of volumes, `[N, C, D, H, W]`; nn.Conv3d.
pub type Conv3d = Conv<3>;

impl<const N: usize> Conv<N> {
    /// Creates the layer. Draws the weight, and then the bias, from U(±1/√fan_in).
    ///
    /// # Errors
    /// When a size is not positive, `groups` does not divide the numbers of channels, or the
    /// padding is `Same` and the stride is not 1.
    pub fn new(config: ConvConfig<N>) -> Result<Self> {
        let ConvConfig { in_channels, out_channels, kernel_size, groups, .. } = config;
        groups_divide("conv", groups, in_channels, out_channels)?;
        are_positive("conv", "kernel_size", &kernel_size.0)?;
        are_positive("conv", "stride", &config.stride.0)?;
        are_positive("conv", "dilation", &config.dilation.0)?;
        config.padding.check(config.stride)?;
        let fan_in = in_channels / groups * kernel_size.product();
        let shape = [&[out_channels, in_channels / groups][..], &kernel_size.0].concat();
        let (weight, bias) = weights(&shape, fan_in, config.bias.then_some(out_channels))?;
        Ok(Self { weight, bias, config })
    }

    fn convolve(&self, input: &Tensor, padding: Sizes<N>, cx: &Context) -> Result<Tensor> {
        let ConvConfig { stride, dilation, groups, .. } = self.config;
        let (weight, bias) = cx.weight_and_bias(&self.weight, self.bias.as_ref())?;
        let (weight, bias) = (&*weight, bias.as_deref());
        if let (2, 1, Some(1), Some(stride), Some(padding)) =
            (N, groups, dilation.common(), stride.common(), padding.common())
        {
            let channels_last = input.device().is_cuda();
            return ffi::conv2d(input, weight, bias, [stride, padding], channels_last);
        }
        let (stride, padding, dilation) = (stride.0, padding.0, dilation.0);
        Ok(match N {
            1 => input.f_conv1d(weight, bias, stride, padding, dilation, groups)?,
            2 => input.f_conv2d(weight, bias, stride, padding, dilation, groups)?,
            _ => input.f_conv3d(weight, bias, stride, padding, dilation, groups)?,
        })
    }
}

/// Creates a weight of this shape and then, unless `bias` is `None`, a bias with `bias` elements.
/// The initial values are random, as in torch.nn's convolutions.
fn weights(shape: &[i64], fan_in: i64, bias: Option<i64>) -> Result<(Tensor, Option<Tensor>)> {
    let weight = init::uniform(shape, init::kaiming_bound(fan_in))?;
    let bias = bias.map(|size| init::uniform(&[size], init::bias_bound(fan_in))).transpose()?;
    Ok((weight, bias))
}

fn groups_divide(layer: &str, groups: i64, in_channels: i64, out_channels: i64) -> Result<()> {
    are_positive(layer, "channels", &[in_channels, out_channels])?;
    if groups > 0 && in_channels % groups == 0 && out_channels % groups == 0 {
        return Ok(());
    }
    Err(Error::config(format!(
        "{layer}: groups is {groups}, but must divide the numbers of input and output channels, \
         {in_channels} and {out_channels}"
    )))
}

fn visit(weight: &Tensor, bias: Option<&Tensor>, visitor: &mut dyn Visitor) {
    visitor.tensor("weight", weight, Role::Parameter);
    if let Some(bias) = bias {
        visitor.tensor("bias", bias, Role::Parameter);
    }
}

impl<const N: usize> Visit for Conv<N> {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visit(&self.weight, self.bias.as_ref(), visitor);
    }
}

impl<const N: usize> Module for Conv<N> {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        let ConvConfig { kernel_size, padding, dilation, padding_mode, .. } = self.config;
        let [before, after] = padding.sides(kernel_size, dilation);
        if padding_mode == PaddingMode::Zeros && before == after {
            return self.convolve(input, before, cx);
        }
        let padded = padding_mode.pad(input, before, after)?;
        self.convolve(&padded, Sizes([0; N]), cx)
    }

    fn op(&self) -> Op {
        Op::Matmul
    }
}
