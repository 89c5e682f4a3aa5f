use tch::Tensor;

use super::{Context, Module, Visit, Visitor};
use crate::{Error, Result};

/// The options of a [`LocalResponseNorm`]; the defaults are nn.LocalResponseNorm's.
#[derive(Debug, Clone, Copy)]
pub struct LocalResponseNormConfig {
    /// The number of channels in the window over which the squares are averaged.
    pub size: i64,
    /// The factor α by which the mean square is multiplied.
    pub alpha: f64,
    /// The exponent β of the divisor.
    pub beta: f64,
    /// The number k that is added to the scaled mean square.
    pub k: f64,
}

impl LocalResponseNormConfig {
    /// Returns options that average over `size` channels, with PyTorch's defaults for the other
    /// options.
    pub fn new(size: i64) -> Self {
        Self { size, alpha: 1e-4, beta: 0.75, k: 1.0 }
    }
}

/// Computes x / (k + α·m)^β for `[N, C, …]`; nn.LocalResponseNorm. For each channel, m is the mean
/// of x² over a window of `size` channels around it. x counts as zero before the first and after
/// the last channel. AlexNet and GoogLeNet use this layer.
#[derive(Debug, Clone, Copy)]
pub struct LocalResponseNorm {
    config: LocalResponseNormConfig,
}

impl LocalResponseNorm {
    /// Creates a layer with these options.
    ///
    /// # Errors
    /// When `size` is not positive.
    pub fn new(config: LocalResponseNormConfig) -> Result<Self> {
        match config.size {
            1.. => Ok(Self { config }),
            size => Err(Error::config(format!(
                "local_response_norm: size is {size}, but must be at least 1"
            ))),
        }
    }
}

impl Visit for LocalResponseNorm {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for LocalResponseNorm {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        let LocalResponseNormConfig { size, alpha, beta, k } = self.config;
        let [batch, channels, ..] = input.size()[..] else {
            return Err(Error::config(format!(
                "local_response_norm: the input is {:?}, but must be [batch, channels, …]",
                input.size()
            )));
        };
        // Reshapes the squares to [batch, 1, channels, positions], so that 2D pooling can average
        // over channels.
        let squares = cx.within("squares", &input.f_square()?)?;
        let squares = squares.f_reshape([batch, 1, channels, -1])?;
        let padded = squares.f_constant_pad_nd([0, 0, size / 2, (size - 1) / 2])?;
        let means = padded.f_avg_pool2d([size, 1], [1, 1], [0, 0], false, true, None)?;
        let share = cx.within("means", &means)?.f_mul_scalar(alpha)?;
        let sum = cx.within("share", &share)?.f_add_scalar(k)?;
        let scale = cx.within("sum", &sum)?.f_pow_tensor_scalar(beta)?;
        let scale = cx.within("scale", &scale)?;
        Ok(input.f_div(&scale.f_reshape(input.size())?)?)
    }
}
