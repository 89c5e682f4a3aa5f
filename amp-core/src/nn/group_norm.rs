//! Group norm, instance norm and RMS norm.

use tch::{Device, Kind, Tensor};

use super::{
    Context, Module, Role, Visit, Visitor,
    check::are_positive,
    init,
    norm::{NormalizedShape, eps_is_positive},
};
use crate::{Error, Result};

/// The options of a [`GroupNorm`]. The defaults are those of nn.GroupNorm.
#[derive(Debug, Clone, Copy)]
pub struct GroupNormConfig {
    /// The number of groups into which the channels are divided.
    pub num_groups: i64,
    /// The number of channels, which is the size of the input's dimension 1.
    pub num_channels: i64,
    /// The number that is added to the variance, so that the divisor is not zero.
    pub eps: f64,
    /// Whether each channel has a weight and a bias.
    pub affine: bool,
}

impl GroupNormConfig {
    /// Returns options with weight and bias, and with 1e-5 as `eps`.
    pub fn new(num_groups: i64, num_channels: i64) -> Self {
        Self { num_groups, num_channels, eps: 1e-5, affine: true }
    }
}

/// Divides the channels of `[N, C, …]` into groups, and normalizes each group of each example by
/// its mean and variance; nn.GroupNorm.
#[derive(Debug)]
pub struct GroupNorm {
    affine: Option<[Tensor; 2]>,
    num_groups: i64,
    eps: f64,
}

impl GroupNorm {
    /// Creates the layer. The weight starts at 1 and the bias at 0.
    ///
    /// # Errors
    /// When `num_channels` is below 1, `num_groups` does not divide `num_channels`, or `eps` is not
    /// above 0.
    pub fn new(config: GroupNormConfig) -> Result<Self> {
        let GroupNormConfig { num_groups, num_channels, eps, affine } = config;
        eps_is_positive("group_norm", eps)?;
        are_positive("group_norm", "num_channels", &[num_channels])?;
        if num_groups < 1 || num_channels % num_groups != 0 {
            return Err(Error::config(format!(
                "group_norm: num_groups is {num_groups}, but must divide num_channels, \
                 {num_channels}"
            )));
        }
        Ok(Self { affine: weight_and_bias(num_channels, affine)?, num_groups, eps })
    }
}

impl Visit for GroupNorm {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visit(self.affine.as_ref(), visitor);
    }
}

impl Module for GroupNorm {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        let size = input.size();
        if size.iter().skip(1).product::<i64>() == self.num_groups {
            // torch accepts groups of one value, although the output of such a group is always the
            // bias. This crate returns an error.
            return Err(Error::config(format!(
                "group_norm: each of the {} groups of an input {size:?} has only one value, so its \
                 variance cannot be computed",
                self.num_groups
            )));
        }
        let [weight, bias] = both(self.affine.as_ref());
        Ok(input.f_group_norm(self.num_groups, weight, bias, self.eps, true)?)
    }
}

/// The options of an [`InstanceNorm`]. The defaults are those of nn.InstanceNorm2d.
#[derive(Debug, Clone, Copy)]
pub struct InstanceNormConfig {
    /// The number of channels, which is the size of the input's dimension 1.
    pub num_features: i64,
    /// The number that is added to the variance, so that the divisor is not zero.
    pub eps: f64,
    /// The weight of the newest batch when the running statistics are updated.
    pub momentum: f64,
    /// Whether each channel has a weight and a bias.
    pub affine: bool,
    /// Whether the layer keeps running statistics. If so, evaluation uses the running statistics
    /// instead of each example's mean and variance.
    pub track_running_stats: bool,
}

impl InstanceNormConfig {
    /// Returns options without weight, bias and running statistics, with 1e-5 as `eps` and 0.1 as
    /// `momentum`.
    pub fn new(num_features: i64) -> Self {
        Self { num_features, eps: 1e-5, momentum: 0.1, affine: false, track_running_stats: false }
    }
}

/// Normalizes each channel of each example of `[N, C, L]`, `[N, C, H, W]` or `[N, C, D, H, W]` by
/// the mean and variance of that channel; nn.InstanceNorm1d, nn.InstanceNorm2d and
/// nn.InstanceNorm3d. If the layer keeps running statistics, evaluation uses the running statistics
/// instead. As in torch, num_batches_tracked stays 0.
#[derive(Debug)]
pub struct InstanceNorm {
    affine: Option<[Tensor; 2]>,
    running: Option<[Tensor; 3]>,
    num_features: i64,
    eps: f64,
    momentum: f64,
}

impl InstanceNorm {
    /// Creates the layer. If the options ask for weight and bias, the weight starts at 1 and the
    /// bias at 0. If the options ask for running statistics, the running mean starts at 0 and the
    /// running variance at 1.
    ///
    /// # Errors
    /// When `num_features` is below 1, `eps` is not above 0 or `momentum` is not in [0, 1].
    pub fn new(config: InstanceNormConfig) -> Result<Self> {
        let InstanceNormConfig { num_features, eps, momentum, affine, track_running_stats } =
            config;
        eps_is_positive("instance_norm", eps)?;
        are_positive("instance_norm", "num_features", &[num_features])?;
        momentum_is_a_fraction("instance_norm", momentum)?;
        let running = track_running_stats.then(|| running_statistics(num_features)).transpose()?;
        let affine = weight_and_bias(num_features, affine)?;
        Ok(Self { affine, running, num_features, eps, momentum })
    }
}

impl Visit for InstanceNorm {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visit(self.affine.as_ref(), visitor);
        visit_running(self.running.as_ref(), visitor);
    }
}

impl Module for InstanceNorm {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        let is_of_input = cx.is_training() || self.running.is_none();
        let size = input.size();
        match size.as_slice() {
            [_, channels, rest @ ..] if *channels == self.num_features && !rest.is_empty() => {}
            _ => {
                return Err(Error::config(format!(
                    "instance_norm: the input is {size:?}, but must be [batch, {}, …]",
                    self.num_features
                )));
            }
        }
        if is_of_input && size.iter().skip(2).product::<i64>() == 1 {
            return Err(Error::config(format!(
                "instance_norm: each channel of an input {size:?} has only one value, so its \
                 variance cannot be computed"
            )));
        }
        let [weight, bias] = both(self.affine.as_ref());
        // In a recomputation the running statistics must not be updated again.
        let running = self.running.as_ref().filter(|_| !(is_of_input && cx.is_recomputing()));
        let (mean, variance) = (running.map(|own| &own[0]), running.map(|own| &own[1]));
        let (momentum, eps) = (self.momentum, self.eps);
        Ok(input.f_instance_norm(weight, bias, mean, variance, is_of_input, momentum, eps, true)?)
    }
}

/// The options of an [`RmsNorm`]. The defaults are those of nn.RMSNorm.
#[derive(Debug, Clone)]
pub struct RmsNormConfig {
    /// The sizes of the last dimensions, over which the layer normalizes.
    pub normalized_shape: NormalizedShape,
    /// The number that is added to the mean square, so that the divisor is not zero. `None` means
    /// the machine epsilon of the dtype.
    pub eps: Option<f64>,
    /// Whether the layer multiplies by a learned weight.
    pub elementwise_affine: bool,
}

impl RmsNormConfig {
    /// Returns options with a weight, and with the machine epsilon of the dtype as `eps`.
    pub fn new(normalized_shape: impl Into<NormalizedShape>) -> Self {
        Self { normalized_shape: normalized_shape.into(), eps: None, elementwise_affine: true }
    }
}

/// Computes x / √(mean(x²) + eps) · weight, with the mean over the last dimensions; nn.RMSNorm. The
/// mean is computed in at least f32.
#[derive(Debug)]
pub struct RmsNorm {
    shape: Vec<i64>,
    weight: Option<Tensor>,
    eps: Option<f64>,
}

impl RmsNorm {
    /// Creates the layer. The weight starts at 1.
    ///
    /// # Errors
    /// When a size is below 1 or eps is not above 0.
    pub fn new(config: RmsNormConfig) -> Result<Self> {
        config.eps.map_or(Ok(()), |eps| eps_is_positive("rms_norm", eps))?;
        config.normalized_shape.check("rms_norm")?;
        let RmsNormConfig { normalized_shape, eps, elementwise_affine } = config;
        let NormalizedShape(shape) = normalized_shape;
        let weight = elementwise_affine.then(|| init::constant(&shape, 1.0)).transpose()?;
        Ok(Self { shape, weight, eps })
    }
}

impl Visit for RmsNorm {
    fn visit(&self, visitor: &mut dyn Visitor) {
        if let Some(weight) = &self.weight {
            visitor.tensor("weight", weight, Role::Parameter);
        }
    }
}

impl Module for RmsNorm {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        Ok(input.f_rms_norm(&self.shape, self.weight.as_ref(), self.eps)?)
    }
}

pub(super) fn weight_and_bias(size: i64, affine: bool) -> Result<Option<[Tensor; 2]>> {
    let both = || Ok([init::constant(&[size], 1.0)?, init::constant(&[size], 0.0)?]);
    affine.then(both).transpose()
}

pub(super) fn both(affine: Option<&[Tensor; 2]>) -> [Option<&Tensor>; 2] {
    match affine {
        Some([weight, bias]) => [Some(weight), Some(bias)],
        None => [None, None],
    }
}

pub(super) fn visit(affine: Option<&[Tensor; 2]>, visitor: &mut dyn Visitor) {
    if let Some([weight, bias]) = affine {
        visitor.tensor("weight", weight, Role::Parameter);
        visitor.tensor("bias", bias, Role::Parameter);
    }
}

/// Checks that `momentum` is in [0, 1]. Otherwise the running statistics would not be weighted
/// means.
pub(super) fn momentum_is_a_fraction(norm: &str, momentum: f64) -> Result<()> {
    match (0.0..=1.0).contains(&momentum) {
        true => Ok(()),
        false => {
            Err(Error::config(format!("{norm}: momentum is {momentum}, but must be in [0, 1]")))
        }
    }
}

/// Returns the running mean (zeros), the running variance (ones) and the number of batches (0).
pub(super) fn running_statistics(num_features: i64) -> Result<[Tensor; 3]> {
    let batches = Tensor::f_zeros([], (Kind::Int64, Device::Cpu))?;
    Ok([init::buffer(&[num_features], 0.0)?, init::buffer(&[num_features], 1.0)?, batches])
}

pub(super) fn visit_running(running: Option<&[Tensor; 3]>, visitor: &mut dyn Visitor) {
    if let Some([mean, variance, batches]) = running {
        visitor.tensor("running_mean", mean, Role::Buffer);
        visitor.tensor("running_var", variance, Role::Buffer);
        visitor.tensor("num_batches_tracked", batches, Role::Buffer);
    }
}
