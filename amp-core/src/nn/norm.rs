use tch::{Device, Kind, Tensor};

use super::{Context, Fusable, Module, Role, Visit, Visitor, init};
use crate::{
    Error, Result,
    ffi::{self, BatchNormOptions, ImageNormOptions, LayerNormOptions, Statistics},
};

/// The options of a [`BatchNorm`]; the defaults are nn.BatchNorm1d's.
#[derive(Debug, Clone, Copy)]
pub struct BatchNormConfig {
    /// Size of dimension 1 of the input.
    pub num_features: i64,
    /// Added to the variance.
    pub eps: f64,
    /// The weight of the newest batch in the running statistics.
    pub momentum: f64,
}

impl BatchNormConfig {
    /// With eps 1e-5 and momentum 0.1.
    pub fn new(num_features: i64) -> Self {
        Self { num_features, eps: 1e-5, momentum: 0.1 }
    }

    fn check(&self) -> Result<()> {
        let Self { num_features, eps, momentum } = *self;
        eps_is_positive("batch norm", eps)?;
        if num_features < 1 {
            return Err(Error::config(format!(
                "batch norm: {num_features} features, but 1 is least"
            )));
        }
        if !(0.0..=1.0).contains(&momentum) {
            return Err(Error::config(format!(
                "batch norm: momentum is {momentum}, but must be in [0, 1]"
            )));
        }
        Ok(())
    }
}

/// Rule: eps is above zero, because it may be the only summand of a divisor.
pub(super) fn eps_is_positive(norm: &str, eps: f64) -> Result<()> {
    match eps > 0.0 && eps.is_finite() {
        true => Ok(()),
        false => Err(Error::config(format!("{norm}: eps is {eps}, but must be above 0"))),
    }
}

/// Rule: a variance needs at least two values, as in torch.nn.functional's batch_norm. For one
/// value the running variance would silently become NaN.
fn has_a_variance(input: &Tensor) -> Result<()> {
    let sizes = input.size();
    let per_channel = sizes.iter().product::<i64>() / sizes.get(1).copied().unwrap_or(1).max(1);
    if per_channel > 1 {
        return Ok(());
    }
    Err(Error::config(format!(
        "batch norm cannot train on {sizes:?}: a variance is of two values for each channel at least; \
         choose a batch size that leaves no such last batch, or set drop_last"
    )))
}

/// Normalizes each feature over the batch, for `[N, C]`, `[N, C, L]` or `[N, C, H, W]`.
#[derive(Debug)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
    eps: f64,
    momentum: f64,
}

impl BatchNorm {
    /// Weight 1, bias 0, running mean 0, running variance 1.
    ///
    /// # Errors
    /// When the size is below 1, eps is not above 0, or the momentum is not in [0, 1].
    pub fn new(config: BatchNormConfig) -> Result<Self> {
        config.check()?;
        let shape = [config.num_features];
        Ok(Self {
            weight: init::constant(&shape, 1.0)?,
            bias: init::constant(&shape, 0.0)?,
            running_mean: init::buffer(&shape, 0.0)?,
            running_var: init::buffer(&shape, 1.0)?,
            num_batches_tracked: Tensor::f_zeros([], (Kind::Int64, Device::Cpu))?,
            eps: config.eps,
            momentum: config.momentum,
        })
    }
}

impl BatchNorm {
    /// A training pass fused with ReLU and dropout of probability `p`; `None` if the kernel does
    /// not support this input or pass.
    pub(super) fn forward_with(
        &self,
        input: &Tensor,
        cx: &Context,
        relu: bool,
        p: f64,
    ) -> Result<Option<Tensor>> {
        if !cx.is_training() {
            return Ok(None);
        }
        has_a_variance(input)?;
        if p >= 1.0 || !input.device().is_cuda() {
            return Ok(None);
        }
        let (parameters, statistics) = ([&self.weight, &self.bias], self.statistics(cx));
        if input.dim() == 2 {
            let options =
                BatchNormOptions { momentum: self.momentum, eps: self.eps, p, relu: relu.into() };
            return ffi::batch_norm(input, parameters, statistics, &options);
        }
        match p == 0.0 {
            true => ffi::batch_norm_images(input, None, parameters, statistics, &self.images(relu)),
            false => Ok(None),
        }
    }

    /// max(norm(input) + residual, 0) in training: one pass for the statistics and one for the
    /// rest. `None` if the kernel does not support these images or this pass.
    pub(super) fn forward_sum(
        &self,
        input: &Tensor,
        residual: &Tensor,
        cx: &Context,
    ) -> Result<Option<Tensor>> {
        if !cx.is_training() {
            return Ok(None);
        }
        has_a_variance(input)?;
        if !input.device().is_cuda() {
            return Ok(None);
        }
        let (parameters, statistics) = ([&self.weight, &self.bias], self.statistics(cx));
        ffi::batch_norm_images(input, Some(residual), parameters, statistics, &self.images(true))
    }

    fn images(&self, relu: bool) -> ImageNormOptions {
        ImageNormOptions { momentum: self.momentum, eps: self.eps, relu: relu.into() }
    }

    /// Counts the batch, unless the pass is a recomputation, because the batch was already counted.
    fn statistics(&self, cx: &Context) -> Option<Statistics<'_>> {
        let Self { running_mean, running_var, num_batches_tracked, .. } = self;
        (!cx.is_recomputing()).then_some([running_mean, running_var, num_batches_tracked])
    }
}

impl Visit for BatchNorm {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visitor.tensor("weight", &self.weight, Role::Parameter);
        visitor.tensor("bias", &self.bias, Role::Parameter);
        visitor.tensor("running_mean", &self.running_mean, Role::Buffer);
        visitor.tensor("running_var", &self.running_var, Role::Buffer);
        visitor.tensor("num_batches_tracked", &self.num_batches_tracked, Role::Buffer);
    }
}

impl Module for BatchNorm {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        if let Some(output) = self.forward_with(input, cx, false, 0.0)? {
            return Ok(output);
        }
        // As above.
        let tracks = !cx.is_recomputing();
        if cx.is_training() && tracks {
            let _ = self.num_batches_tracked.shallow_clone().f_add_scalar_(1)?;
        }
        Ok(input.f_batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            tracks.then_some(&self.running_mean),
            tracks.then_some(&self.running_var),
            cx.is_training(),
            self.momentum,
            self.eps,
            true,
        )?)
    }

    fn fusable(&self) -> Fusable<'_> {
        Fusable::BatchNorm(self)
    }
}

/// The options of a [`LayerNorm`].
#[derive(Debug, Clone, Copy)]
pub struct LayerNormConfig {
    /// Size of the last dimension.
    pub normalized_shape: i64,
    /// Added to the variance.
    pub eps: f64,
}

impl LayerNormConfig {
    /// With eps 1e-5.
    pub fn new(normalized_shape: i64) -> Self {
        Self { normalized_shape, eps: 1e-5 }
    }
}

/// Normalizes the last dimension of `[…, normalized_shape]`; nn.LayerNorm.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Weight 1, bias 0.
    ///
    /// # Errors
    /// When the size is below 1 or eps is not above 0.
    pub fn new(config: LayerNormConfig) -> Result<Self> {
        eps_is_positive("layer norm", config.eps)?;
        if config.normalized_shape < 1 {
            let size = config.normalized_shape;
            return Err(Error::config(format!("layer norm: a size of {size}, but 1 is least")));
        }
        let shape = [config.normalized_shape];
        Ok(Self {
            weight: init::constant(&shape, 1.0)?,
            bias: init::constant(&shape, 0.0)?,
            eps: config.eps,
        })
    }
}

impl LayerNorm {
    /// A layer with the same values.
    pub(super) fn copied(&self) -> Result<Self> {
        let Self { weight, bias, eps } = self;
        Ok(Self { weight: init::copied(weight)?, bias: init::copied(bias)?, eps: *eps })
    }

    /// A training pass fused with GELU and dropout of probability `p`; `None` if the kernel does
    /// not support this input or pass.
    pub(super) fn forward_with(
        &self,
        input: &Tensor,
        cx: &Context,
        gelu: bool,
        p: f64,
    ) -> Result<Option<Tensor>> {
        self.kernel(
            input,
            None,
            cx,
            LayerNormOptions { after: p, gelu: gelu.into(), ..self.options() },
        )
    }

    /// A training pass over residual + dropout(branch) with probability `p`, in one kernel;
    /// otherwise `None`.
    pub(super) fn forward_sum(
        &self,
        residual: &Tensor,
        branch: &Tensor,
        cx: &Context,
        p: f64,
    ) -> Result<Option<Tensor>> {
        self.kernel(branch, Some(residual), cx, LayerNormOptions { before: p, ..self.options() })
    }

    /// A training pass over a residual stream: returns the stream, to which [`ffi::residual_add`]
    /// adds the branch's output, and its norm; otherwise `None`.
    pub(super) fn forward_residual(
        &self,
        input: &Tensor,
        cx: &Context,
    ) -> Result<Option<(Tensor, Tensor)>> {
        if !cx.is_training() || !input.device().is_cuda() {
            return Ok(None);
        }
        ffi::residual_norm(input, [&self.weight, &self.bias], self.eps)
    }

    fn options(&self) -> LayerNormOptions {
        LayerNormOptions { eps: self.eps, ..LayerNormOptions::default() }
    }

    fn kernel(
        &self,
        input: &Tensor,
        residual: Option<&Tensor>,
        cx: &Context,
        options: LayerNormOptions,
    ) -> Result<Option<Tensor>> {
        let dropped = options.before.max(options.after);
        if !cx.is_training() || dropped >= 1.0 || !input.device().is_cuda() {
            return Ok(None);
        }
        ffi::layer_norm(input, residual, [&self.weight, &self.bias], &options)
    }
}

impl Visit for LayerNorm {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visitor.tensor("weight", &self.weight, Role::Parameter);
        visitor.tensor("bias", &self.bias, Role::Parameter);
    }
}

impl Module for LayerNorm {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        if let Some(output) = self.forward_with(input, cx, false, 0.0)? {
            return Ok(output);
        }
        let shape = self.weight.size();
        Ok(input.f_layer_norm(&shape, Some(&self.weight), Some(&self.bias), self.eps, true)?)
    }

    fn fusable(&self) -> Fusable<'_> {
        Fusable::LayerNorm(self)
    }
}
