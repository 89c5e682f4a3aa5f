//! Transposed convolutions.

use tch::Tensor;

use super::{groups_divide, visit, weights};
use crate::{
    Result,
    nn::{Context, Module, Op, Sizes, Visit, Visitor},
};

/// The options of a [`ConvTranspose`] over `N` dimensions. The defaults are those of
/// nn.ConvTranspose2d.
#[derive(Debug, Clone, Copy)]
pub struct ConvTransposeConfig<const N: usize> {
    /// The number of input channels.
    pub in_channels: i64,
    /// The number of output channels.
    pub out_channels: i64,
    /// The kernel's size.
    pub kernel_size: Sizes<N>,
    /// The distance between neighbouring positions of the kernel, in elements of the output.
    pub stride: Sizes<N>,
    /// The number of elements that are removed from the start and from the end of each dimension of
    /// the output.
    pub padding: Sizes<N>,
    /// The number of elements that are added at the end of each dimension of the output. With a
    /// stride above 1, a convolution maps inputs of several sizes to outputs of one size. This
    /// number selects which of these input sizes the transposed convolution returns.
    pub output_padding: Sizes<N>,
    /// The number of groups of channels. Each group has its own filters. The number must divide
    /// `in_channels` and `out_channels`.
    pub groups: i64,
    /// Whether the convolution adds a bias.
    pub bias: bool,
    /// The distance between neighbouring elements of the kernel, in elements of the output.
    pub dilation: Sizes<N>,
}

/// The options of a [`ConvTranspose1d`].
pub type ConvTranspose1dConfig = ConvTransposeConfig<1>;
/// The options of a [`ConvTranspose2d`].
pub type ConvTranspose2dConfig = ConvTransposeConfig<2>;
/// The options of a [`ConvTranspose3d`].
pub type ConvTranspose3dConfig = ConvTransposeConfig<3>;

impl<const N: usize> ConvTransposeConfig<N> {
    /// Returns options with stride 1, without padding and with a bias.
    pub fn new(in_channels: i64, out_channels: i64, kernel_size: impl Into<Sizes<N>>) -> Self {
        Self {
            in_channels,
            out_channels,
            kernel_size: kernel_size.into(),
            stride: Sizes([1; N]),
            padding: Sizes([0; N]),
            output_padding: Sizes([0; N]),
            groups: 1,
            bias: true,
            dilation: Sizes([1; N]),
        }
    }
}

/// A transposed convolution, which computes the gradient of a convolution with respect to its
/// input; nn.ConvTranspose1d, nn.ConvTranspose2d and nn.ConvTranspose3d. The input is `[N, C, L]`,
/// `[N, C, H, W]` or `[N, C, D, H, W]`. The output is larger than the input by about the factor
/// `stride`.
#[derive(Debug)]
pub struct ConvTranspose<const N: usize> {
    weight: Tensor,
    bias: Option<Tensor>,
    config: ConvTransposeConfig<N>,
}

/// A transposed convolution of sequences; nn.ConvTranspose1d.
pub type ConvTranspose1d = ConvTranspose<1>;
/// A transposed convolution of images; nn.ConvTranspose2d.
pub type ConvTranspose2d = ConvTranspose<2>;
/// A transposed convolution of volumes; nn.ConvTranspose3d.
pub type ConvTranspose3d = ConvTranspose<3>;

impl<const N: usize> ConvTranspose<N> {
    /// Creates the layer. Draws the weight, and then the bias, from U(±1/√fan). As in torch.nn, fan
    /// is the number of output channels of one group, multiplied by the number of elements of the
    /// kernel.
    ///
    /// # Errors
    /// When a size is not positive, or `groups` does not divide the numbers of channels.
    pub fn new(config: ConvTransposeConfig<N>) -> Result<Self> {
        let ConvTransposeConfig { in_channels, out_channels, kernel_size, groups, .. } = config;
        groups_divide("conv_transpose", groups, in_channels, out_channels)?;
        super::are_positive("conv_transpose", "kernel_size", &kernel_size.0)?;
        super::are_positive("conv_transpose", "stride", &config.stride.0)?;
        super::are_positive("conv_transpose", "dilation", &config.dilation.0)?;
        let fan = out_channels / groups * kernel_size.product();
        let shape = [&[in_channels, out_channels / groups][..], &kernel_size.0].concat();
        let (weight, bias) = weights(&shape, fan, config.bias.then_some(out_channels))?;
        Ok(Self { weight, bias, config })
    }
}

impl<const N: usize> Visit for ConvTranspose<N> {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visit(&self.weight, self.bias.as_ref(), visitor);
    }
}

impl<const N: usize> Module for ConvTranspose<N> {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        let ConvTransposeConfig { stride, padding, output_padding, groups, dilation, .. } =
            self.config;
        let (weight, bias) = cx.weight_and_bias(&self.weight, self.bias.as_ref())?;
        let (weight, bias) = (&*weight, bias.as_deref());
        let (stride, padding, extra, dilation) =
            (stride.0, padding.0, output_padding.0, dilation.0);
        Ok(match N {
            1 => {
                input.f_conv_transpose1d(weight, bias, stride, padding, extra, groups, dilation)?
            }
            2 => {
                input.f_conv_transpose2d(weight, bias, stride, padding, extra, groups, dilation)?
            }
            _ => {
                input.f_conv_transpose3d(weight, bias, stride, padding, extra, groups, dilation)?
            }
        })
    }

    fn op(&self) -> Op {
        Op::Matmul
    }
}
