use tch::Tensor;

use super::{
    Context, Fusable, Module, Role, Visit, Visitor,
    group_norm::{
        both, momentum_is_a_fraction, running_statistics, visit, visit_running, weight_and_bias,
    },
    init,
};
use crate::{
    Error, Result,
    ffi::{self, BatchNormOptions, ImageNormOptions, LayerNormOptions, Statistics},
};

/// The options of a [`BatchNorm`]. The defaults are those of nn.BatchNorm1d.
#[derive(Debug, Clone, Copy)]
pub struct BatchNormConfig {
    /// The number of features, which is the size of the input's dimension 1.
    pub num_features: i64,
    /// The number that is added to the variance, so that the divisor is not zero.
    pub eps: f64,
    /// The weight of the newest batch when the running statistics are updated.
    pub momentum: f64,
    /// Whether each feature has a weight and a bias.
    pub affine: bool,
    /// Whether the layer keeps running statistics. Without running statistics, evaluation
    /// normalizes with the statistics of the batch, as training does.
    pub track_running_stats: bool,
}

impl BatchNormConfig {
    /// Returns options with weight, bias and running statistics, with 1e-5 as `eps` and 0.1 as
    /// `momentum`.
    pub fn new(num_features: i64) -> Self {
        Self { num_features, eps: 1e-5, momentum: 0.1, affine: true, track_running_stats: true }
    }

    fn check(&self) -> Result<()> {
        let Self { num_features, eps, momentum, .. } = *self;
        eps_is_positive("batch norm", eps)?;
        if num_features < 1 {
            return Err(Error::config(format!(
                "batch norm: num_features is {num_features}, but must be at least 1"
            )));
        }
        momentum_is_a_fraction("batch norm", momentum)
    }
}

/// Checks that `eps` is above zero, because √eps is the divisor if the variance is zero.
pub(super) fn eps_is_positive(norm: &str, eps: f64) -> Result<()> {
    match eps > 0.0 && eps.is_finite() {
        true => Ok(()),
        false => Err(Error::config(format!("{norm}: eps is {eps}, but must be above 0"))),
    }
}

/// Checks that there are at least two values for each variance, as torch.nn.functional's batch_norm
/// does. With only one value the running variance would silently become NaN.
fn has_a_variance(input: &Tensor) -> Result<()> {
    let sizes = input.size();
    let per_channel = sizes.iter().product::<i64>() / sizes.get(1).copied().unwrap_or(1).max(1);
    if per_channel > 1 {
        return Ok(());
    }
    Err(Error::config(format!(
        "batch norm cannot train on an input {sizes:?}: a variance needs at least two values for \
         each channel; choose a batch size with which the last batch of an epoch is larger, or set \
         drop_last"
    )))
}

/// Normalizes each feature over the batch; nn.BatchNorm1d, nn.BatchNorm2d and nn.BatchNorm3d. The
/// input is `[N, C]`, `[N, C, L]`, `[N, C, H, W]` or `[N, C, D, H, W]`.
#[derive(Debug)]
pub struct BatchNorm {
    affine: Option<[Tensor; 2]>,
    /// The running mean, the running variance and the number of batches.
    running: Option<[Tensor; 3]>,
    eps: f64,
    momentum: f64,
}

impl BatchNorm {
    /// Creates the layer. The weight and the running variance start at 1, and the bias and the
    /// running mean at 0.
    ///
    /// # Errors
    /// When `num_features` is below 1, `eps` is not above 0, or `momentum` is not in [0, 1].
    pub fn new(config: BatchNormConfig) -> Result<Self> {
        config.check()?;
        let running = || running_statistics(config.num_features);
        Ok(Self {
            affine: weight_and_bias(config.num_features, config.affine)?,
            running: config.track_running_stats.then(running).transpose()?,
            eps: config.eps,
            momentum: config.momentum,
        })
    }
}

impl BatchNorm {
    /// Returns whether the layer normalizes by the batch's statistics in this forward pass.
    fn is_of_batch(&self, cx: &Context) -> bool {
        cx.is_training() || self.running.is_none()
    }

    /// Runs the layer in training, with ReLU if `relu` is set and dropout of probability `p`, in
    /// one fused operation. Returns `None` outside training, or if no kernel supports this input.
    pub(super) fn forward_with(
        &self,
        input: &Tensor,
        cx: &Context,
        relu: bool,
        p: f64,
    ) -> Result<Option<Tensor>> {
        if !self.is_of_batch(cx) {
            return Ok(None);
        }
        has_a_variance(input)?;
        let Some([weight, bias]) = &self.affine else { return Ok(None) };
        if p >= 1.0 || !input.device().is_cuda() || !cx.is_training() {
            return Ok(None);
        }
        let (parameters, statistics) = ([weight, bias], self.statistics(cx));
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

    /// Computes max(norm(input) + residual, 0) in training by a fused kernel. The kernel reads the
    /// images twice: for the statistics, and for the result. Returns `None` outside training, or if
    /// no kernel supports these images.
    pub(super) fn forward_sum(
        &self,
        input: &Tensor,
        residual: &Tensor,
        cx: &Context,
    ) -> Result<Option<Tensor>> {
        if !self.is_of_batch(cx) {
            return Ok(None);
        }
        has_a_variance(input)?;
        let Some([weight, bias]) = &self.affine else { return Ok(None) };
        if !input.device().is_cuda() || !cx.is_training() {
            return Ok(None);
        }
        let (parameters, statistics) = ([weight, bias], self.statistics(cx));
        ffi::batch_norm_images(input, Some(residual), parameters, statistics, &self.images(true))
    }

    fn images(&self, relu: bool) -> ImageNormOptions {
        ImageNormOptions { momentum: self.momentum, eps: self.eps, relu: relu.into() }
    }

    /// Returns the running statistics to use or update. Returns `None` if the layer has none, and
    /// for a recomputation in training, because the first forward pass has already updated them. A
    /// recomputation in evaluation gets the statistics that the first pass used.
    fn statistics(&self, cx: &Context) -> Option<Statistics<'_>> {
        let running = self.running.as_ref();
        running.filter(|_| !(self.is_of_batch(cx) && cx.is_recomputing())).map(<[_; 3]>::each_ref)
    }
}

impl Visit for BatchNorm {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visit(self.affine.as_ref(), visitor);
        visit_running(self.running.as_ref(), visitor);
    }
}

impl Module for BatchNorm {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        if let Some(output) = self.forward_with(input, cx, false, 0.0)? {
            return Ok(output);
        }
        let statistics = self.statistics(cx);
        if let (true, Some([.., batches])) = (cx.is_training(), statistics) {
            let _ = batches.shallow_clone().f_add_scalar_(1)?;
        }
        let [weight, bias] = both(self.affine.as_ref());
        let [mean, variance] = match statistics {
            Some([mean, variance, _]) => [Some(mean), Some(variance)],
            None => [None, None],
        };
        Ok(input.f_batch_norm(
            weight,
            bias,
            mean,
            variance,
            self.is_of_batch(cx),
            self.momentum,
            self.eps,
            true,
        )?)
    }

    fn fusable(&self) -> Fusable<'_> {
        Fusable::BatchNorm(self)
    }
}

/// The sizes of the last dimensions, over which a layer normalizes: one number for one dimension,
/// or an array for several dimensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormalizedShape(pub Vec<i64>);

impl From<i64> for NormalizedShape {
    fn from(size: i64) -> Self {
        Self(vec![size])
    }
}

impl<const N: usize> From<[i64; N]> for NormalizedShape {
    fn from(sizes: [i64; N]) -> Self {
        Self(sizes.to_vec())
    }
}

impl NormalizedShape {
    pub(super) fn check(&self, norm: &str) -> Result<()> {
        match self.0.is_empty() || self.0.iter().any(|size| *size < 1) {
            false => Ok(()),
            true => Err(Error::config(format!(
                "{norm}: normalized_shape is {:?}, but must have at least one size, and each size \
                 must be at least 1",
                self.0
            ))),
        }
    }
}

/// The options of a [`LayerNorm`].
#[derive(Debug, Clone)]
pub struct LayerNormConfig {
    /// The sizes of the last dimensions, over which the layer normalizes.
    pub normalized_shape: NormalizedShape,
    /// The number that is added to the variance.
    pub eps: f64,
    /// Whether the layer has a weight and a bias.
    pub elementwise_affine: bool,
    /// Whether the layer has a bias in addition to the weight.
    pub bias: bool,
}

impl LayerNormConfig {
    /// Returns options with weight and bias, and with 1e-5 as `eps`.
    pub fn new(normalized_shape: impl Into<NormalizedShape>) -> Self {
        let normalized_shape = normalized_shape.into();
        Self { normalized_shape, eps: 1e-5, elementwise_affine: true, bias: true }
    }
}

/// Normalizes over the last dimensions of `[…, normalized_shape]`; nn.LayerNorm. This crate's
/// kernels are used only if the layer normalizes over one dimension and has a weight and a bias.
#[derive(Debug)]
pub struct LayerNorm {
    shape: Vec<i64>,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
    eps: f64,
}

impl LayerNorm {
    /// Creates the layer. The weight starts at 1 and the bias at 0.
    ///
    /// # Errors
    /// When a size is below 1 or eps is not above 0.
    pub fn new(config: LayerNormConfig) -> Result<Self> {
        eps_is_positive("layer norm", config.eps)?;
        config.normalized_shape.check("layer norm")?;
        let LayerNormConfig { normalized_shape, eps, elementwise_affine, bias } = config;
        let NormalizedShape(shape) = normalized_shape;
        let constant = |has: bool, value: f64| -> Result<Option<Tensor>> {
            has.then(|| init::constant(&shape, value)).transpose()
        };
        let weight = constant(elementwise_affine, 1.0)?;
        let bias = constant(elementwise_affine && bias, 0.0)?;
        Ok(Self { shape, weight, bias, eps })
    }
}

impl LayerNorm {
    /// Returns a copy of the layer: new parameters with the same values.
    pub(super) fn copied(&self) -> Result<Self> {
        let copied = |tensor: &Option<Tensor>| tensor.as_ref().map(init::copied).transpose();
        let Self { shape, weight, bias, eps } = self;
        Ok(Self { shape: shape.clone(), weight: copied(weight)?, bias: copied(bias)?, eps: *eps })
    }

    /// Returns the weight and the bias, if the layer has both and normalizes over one dimension.
    /// The fused kernels support no other case.
    fn parameters(&self) -> Option<[&Tensor; 2]> {
        let both = [self.weight.as_ref()?, self.bias.as_ref()?];
        (self.shape.len() == 1).then_some(both)
    }

    /// Runs the layer in training, with GELU if `gelu` is set and dropout of probability `p`, in
    /// one fused operation. Returns `None` outside training, or if the kernel does not support this
    /// input.
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

    /// Computes the layer norm of residual + dropout(branch, p) in training, in one kernel. Returns
    /// `None` outside training, or if the kernel does not support this input.
    pub(super) fn forward_sum(
        &self,
        residual: &Tensor,
        branch: &Tensor,
        cx: &Context,
        p: f64,
    ) -> Result<Option<Tensor>> {
        self.kernel(branch, Some(residual), cx, LayerNormOptions { before: p, ..self.options() })
    }

    /// Computes norm(x) for a residual block x + branch(norm(x)). Returns an alias of x, and
    /// norm(x). The block must pass the alias, and not its input, to [`ffi::residual_add`]. Then the
    /// norm's backward kernel also adds the gradient of the skip connection. With `narrow`, norm(x)
    /// has the 16-bit dtype of autocast. Returns `None` unless the model trains on CUDA and the
    /// kernel supports the input.
    pub(super) fn forward_residual(
        &self,
        input: &Tensor,
        cx: &Context,
        narrow: bool,
    ) -> Result<Option<(Tensor, Tensor)>> {
        match self.parameters() {
            Some(parameters) if cx.is_training() && input.device().is_cuda() => {
                ffi::residual_norm(input, parameters, self.eps, narrow)
            }
            _ => Ok(None),
        }
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
        match self.parameters() {
            Some(parameters) if cx.is_training() && dropped < 1.0 && input.device().is_cuda() => {
                ffi::layer_norm(input, residual, parameters, &options)
            }
            _ => Ok(None),
        }
    }
}

impl Visit for LayerNorm {
    fn visit(&self, visitor: &mut dyn Visitor) {
        for (name, tensor) in [("weight", &self.weight), ("bias", &self.bias)] {
            if let Some(tensor) = tensor {
                visitor.tensor(name, tensor, Role::Parameter);
            }
        }
    }
}

impl Module for LayerNorm {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        if let Some(output) = self.forward_with(input, cx, false, 0.0)? {
            return Ok(output);
        }
        let Self { shape, weight, bias, eps } = self;
        Ok(input.f_layer_norm(shape, weight.as_ref(), bias.as_ref(), *eps, true)?)
    }

    fn fusable(&self) -> Fusable<'_> {
        Fusable::LayerNorm(self)
    }
}
