use tch::Tensor;

use super::{Context, Module, Op, Role, Visitor, init};
use crate::Result;

/// The options of a [`Conv2d`].
#[derive(Debug, Clone, Copy)]
pub struct Conv2dConfig {
    /// Input channels.
    pub in_channels: i64,
    /// Output channels.
    pub out_channels: i64,
    /// Side of the square kernel.
    pub kernel_size: i64,
    /// Step between windows.
    pub stride: i64,
    /// Zeros added on every side.
    pub padding: i64,
    /// Whether to add a bias.
    pub bias: bool,
}

impl Conv2dConfig {
    /// Stride 1, no padding, with a bias.
    pub fn new(in_channels: i64, out_channels: i64, kernel_size: i64) -> Self {
        Self { in_channels, out_channels, kernel_size, stride: 1, padding: 0, bias: true }
    }
}

/// A square convolution of `[N, C, H, W]`; nn.Conv2d.
#[derive(Debug)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: i64,
    padding: i64,
}

impl Conv2d {
    /// Draws weight, then bias, from U(±1/√fan_in).
    ///
    /// # Errors
    /// When a size is negative.
    pub fn new(config: Conv2dConfig) -> Result<Self> {
        let Conv2dConfig { in_channels, out_channels, kernel_size: k, .. } = config;
        let fan_in = in_channels * k * k;
        let shape = [out_channels, in_channels, k, k];
        let weight = init::uniform(&shape, init::kaiming_bound(fan_in))?;
        let bias = match config.bias {
            true => Some(init::uniform(&[out_channels], init::bias_bound(fan_in))?),
            false => None,
        };
        Ok(Self { weight, bias, stride: config.stride, padding: config.padding })
    }
}

impl Module for Conv2d {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        Ok(input.f_conv2d(&self.weight, self.bias.as_ref(), stride, padding, [1, 1], 1)?)
    }

    fn visit(&self, visitor: &mut dyn Visitor) {
        visitor.tensor("weight", &self.weight, Role::Parameter);
        if let Some(bias) = &self.bias {
            visitor.tensor("bias", bias, Role::Parameter);
        }
    }

    fn op(&self) -> Op {
        Op::Matmul
    }
}

/// The options of a [`MaxPool2d`].
#[derive(Debug, Clone, Copy)]
pub struct MaxPool2dConfig {
    /// Side of the square window.
    pub kernel_size: i64,
    /// Step between windows.
    pub stride: i64,
}

impl MaxPool2dConfig {
    /// Windows side by side.
    pub fn new(kernel_size: i64) -> Self {
        Self { kernel_size, stride: kernel_size }
    }
}

/// The largest value of each square window; nn.MaxPool2d.
#[derive(Debug, Clone, Copy)]
pub struct MaxPool2d {
    config: MaxPool2dConfig,
}

impl MaxPool2d {
    /// A pool of this shape.
    ///
    /// # Errors
    /// Never; the result has the form of the other layers.
    pub fn new(config: MaxPool2dConfig) -> Result<Self> {
        Ok(Self { config })
    }
}

impl Module for MaxPool2d {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        let (size, stride) = ([self.config.kernel_size; 2], [self.config.stride; 2]);
        Ok(input.f_max_pool2d(size, stride, [0, 0], [1, 1], false)?)
    }

    fn visit(&self, _: &mut dyn Visitor) {}
}
