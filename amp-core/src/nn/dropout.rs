use tch::Tensor;

use super::{Context, Fusable, Module, Visit, Visitor};
use crate::{Error, Result, ffi};

/// In training, sets each element to zero with probability p, and multiplies all other elements by
/// 1/(1−p). On CUDA no mask is stored. The backward pass computes again which elements were set to
/// zero, from the saved state of libtorch's generator.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    p: f64,
}

impl Dropout {
    /// Creates a layer that sets an element to zero with probability `p`.
    ///
    /// # Errors
    /// When `p` is outside `[0, 1]`.
    pub fn new(p: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&p) {
            return Err(Error::config(format!("dropout({p}): the probability must be in [0, 1]")));
        }
        Ok(Self { p })
    }

    /// Returns the probability of dropout in this forward pass: `p` in training, and otherwise 0.
    pub(super) fn active(&self, cx: &Context) -> f64 {
        if cx.drops_out() { self.p } else { 0.0 }
    }
}

impl Visit for Dropout {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Dropout {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        let p = self.active(cx);
        if input.device().is_cuda() && p > 0.0 && p < 1.0 && ffi::own_kernels() {
            return ffi::dropout(input, p, 1);
        }
        Ok(input.f_dropout(p, true)?)
    }

    fn fusable(&self) -> Fusable<'_> {
        Fusable::Dropout(self)
    }
}

/// Dropout that preserves the mean and the variance of the outputs of [`Selu`](super::Selu);
/// nn.AlphaDropout. In training, sets each element to −1.7581, the lowest value of SELU, with
/// probability p. Then scales and shifts all elements, which restores the mean and the variance.
#[derive(Debug, Clone, Copy)]
pub struct AlphaDropout(Dropout);

impl AlphaDropout {
    /// Creates a layer. With probability `p`, the layer replaces an element by −1.7581.
    ///
    /// # Errors
    /// When `p` is outside `[0, 1]`.
    pub fn new(p: f64) -> Result<Self> {
        Dropout::new(p).map(Self)
    }
}

impl Visit for AlphaDropout {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for AlphaDropout {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        Ok(input.f_alpha_dropout(self.0.active(cx), true)?)
    }
}

/// Drops whole channels of each example of `[N, C, …]` as [`AlphaDropout`] drops elements;
/// nn.FeatureAlphaDropout.
#[derive(Debug, Clone, Copy)]
pub struct FeatureAlphaDropout(Dropout);

impl FeatureAlphaDropout {
    /// Creates a layer that drops a channel with probability `p`.
    ///
    /// # Errors
    /// When `p` is outside `[0, 1]`.
    pub fn new(p: f64) -> Result<Self> {
        Dropout::new(p).map(Self)
    }
}

impl Visit for FeatureAlphaDropout {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for FeatureAlphaDropout {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        has_channels("feature_alpha_dropout", "alpha_dropout", input)?;
        Ok(input.f_feature_alpha_dropout(self.0.active(cx), true)?)
    }
}

/// In training, drops the branch of a residual block for random examples, before the branch is
/// added to the block's input (Huang et al., arXiv:1603.09382). Sets each example of the branch's
/// output `[N, …]` to zero with probability p, and multiplies all other examples by 1/(1−p). Equals
/// torchvision's `StochasticDepth(p, "row")` and timm's `DropPath(p)`.
///
/// ```no_run,standalone_crate
/// # use amp_core::prelude::*;
/// #[derive(Module)]
/// #[forward(|x| Ok(x.f_add(&path(&branch(x)?)?)?))]
/// struct Block {
///     #[hparam]
///     drop: f64,
///     #[layer(sequential(layer_norm(64), linear(64, 256), gelu, linear(256, 64)))]
///     branch: Sequential,
///     #[layer(stochastic_depth(drop))]
///     path: StochasticDepth,
/// }
/// # fn main() {}
/// ```
#[derive(Debug, Clone, Copy)]
pub struct StochasticDepth(Dropout);

impl StochasticDepth {
    /// Creates a layer that sets an example to zero with probability `p`.
    ///
    /// # Errors
    /// When `p` is outside `[0, 1]`.
    pub fn new(p: f64) -> Result<Self> {
        Dropout::new(p).map(Self)
    }
}

impl Visit for StochasticDepth {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for StochasticDepth {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        let (p, size) = (self.0.active(cx), input.size());
        let [examples, ..] = size[..] else {
            return Err(Error::config(
                "stochastic_depth: the input is a scalar, but must be [batch, …]",
            ));
        };
        if p == 0.0 {
            return Ok(input.shallow_clone());
        }
        let shape: Vec<i64> =
            (0..size.len()).map(|at| if at == 0 { examples } else { 1 }).collect();
        let kept =
            Tensor::f_empty(shape, (input.kind(), input.device()))?.f_bernoulli_float_(1.0 - p)?;
        Ok(match p < 1.0 {
            true => input.f_mul(&kept.f_div_scalar(1.0 - p)?)?,
            false => input.f_mul(&kept)?,
        })
    }
}

/// In training, sets each channel of each example of `[N, C, …]` to zero with probability p, and
/// multiplies all other channels by 1/(1−p); nn.Dropout1d, nn.Dropout2d and nn.Dropout3d.
#[derive(Debug, Clone, Copy)]
pub struct ChannelDropout(Dropout);

impl ChannelDropout {
    /// Creates a layer that sets a channel to zero with probability `p`.
    ///
    /// # Errors
    /// When `p` is outside `[0, 1]`.
    pub fn new(p: f64) -> Result<Self> {
        Dropout::new(p).map(Self)
    }
}

impl Visit for ChannelDropout {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for ChannelDropout {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        has_channels("dropout of channels", "dropout", input)?;
        Ok(input.f_feature_dropout(self.0.active(cx), true)?)
    }
}

/// Checks that the input is `[N, C, …]` with at least three dimensions. The error message of
/// `layer` suggests the layer `of_elements` instead, which drops single elements.
fn has_channels(layer: &str, of_elements: &str, input: &Tensor) -> Result<()> {
    match input.dim() >= 3 {
        true => Ok(()),
        false => Err(Error::config(format!(
            "{layer}: the input is {:?}, but must be [batch, channels, …]: use `{of_elements}` to drop single elements",
            input.size()
        ))),
    }
}
