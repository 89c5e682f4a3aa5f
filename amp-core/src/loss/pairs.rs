//! Losses that compare vectors: the two vectors of a pair, the three vectors of a triplet, or each
//! vector of a batch with all others.

use std::f64::consts::PI;

use tch::{Device, Kind, Reduction, Tensor};

use super::{
    IGNORED, Loss, MeanOver,
    shapes::{elementwise, in_f32, misfit, option, reduce},
};
use crate::Result;

/// The loss 1 − cos(x, y) of outputs x and targets y. Both have the shape `[N, D, …]`. The cosine
/// is computed along dimension 1.
///
/// # Errors
/// When the shapes differ, there is no dimension 1, or a dtype is not floating-point.
#[derive(Debug, Clone, Copy)]
pub struct CosineSimilarity {
    /// The lower limit of the norms by which the dot product of x and y is divided. The default is
    /// 1e-8.
    pub eps: f64,
}

impl Default for CosineSimilarity {
    fn default() -> Self {
        Self { eps: 1e-8 }
    }
}

impl CosineSimilarity {
    /// Computes the loss with the given reduction. With `Reduction::None` the result has the shape
    /// of the output without dimension 1, `[N, …]`.
    ///
    /// # Errors
    /// When output and target are not as [`CosineSimilarity`] requires.
    pub fn reduced(
        &self,
        output: &Tensor,
        target: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor> {
        const NAME: &str = "cosine_similarity";
        option(NAME, "eps", self.eps, self.eps > 0.0, "above 0")?;
        let (x, y) = vectors(NAME, output, target)?;
        in_f32([&x, &y], |[x, y]| {
            let cosine = Tensor::f_cosine_similarity(&x, &y, 1, self.eps)?;
            reduce(&cosine.f_neg()?.f_add_scalar(1.0)?, reduction)
        })
    }
}

impl Loss for CosineSimilarity {
    fn compute(&self, output: &Tensor, target: &Tensor) -> Result<Tensor> {
        self.reduced(output, target, Reduction::Mean)
    }

    fn mean_over(&self) -> MeanOver<'_> {
        MeanOver::Examples
    }
}

/// The cosine embedding loss of N pairs of vectors with D elements. For a pair with the label 1 it
/// is 1 − cos, and for a pair with the label -1 it is max(0, cos − margin), where cos is the cosine
/// of the two vectors. Use it in `#[loss(with =
/// |(one, other), target| …, of = examples)]`.
#[derive(Debug, Clone, Copy, Default)]
pub struct CosineEmbedding {
    /// The margin, from -1 to 1. The default is 0.
    pub margin: f64,
}

impl CosineEmbedding {
    /// Computes the loss of two tensors of shape `[N, D]` and of labels of shape `[N]`, which are 1
    /// or -1. With `Reduction::None`, the result is the loss of each pair, of shape `[N]`.
    ///
    /// # Errors
    /// When shapes or dtypes are invalid, or the margin is out of range.
    pub fn reduced(
        &self,
        one: &Tensor,
        other: &Tensor,
        label: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor> {
        const NAME: &str = "cosine_embedding_loss";
        option(NAME, "margin", self.margin, self.margin.abs() <= 1.0, "from -1 to 1")?;
        let (one, other) = vectors(NAME, one, other)?;
        if one.dim() != 2 || label.size() != [one.size()[0]] {
            return Err(misfit(NAME, &one, label, "vectors must be [N, D], and labels [N]"));
        }
        Ok(Tensor::f_cosine_embedding_loss(&one, &other, label, self.margin, reduction)?)
    }
}

/// The triplet margin loss of anchors a, positives p and negatives n. It is max(0, ‖a − p + ε‖ₚ −
/// ‖a − n + ε‖ₚ + margin), where the norms are along the last dimension and have the degree of the
/// option `p`. Use it in `#[loss(with = |(anchor, positive, negative), target| …, of = examples)]`.
#[derive(Debug, Clone, Copy)]
pub struct TripletMargin {
    /// The margin, above 0. The default is 1.
    pub margin: f64,
    /// The degree p of the norm. The default is 2.
    pub p: f64,
    /// The number ε that is added to each difference. The default is 1e-6.
    pub eps: f64,
    /// Whether to apply the distance swap: in a triplet whose negative is nearer to the positive
    /// than to the anchor, the distance between negative and positive replaces the distance between
    /// negative and anchor.
    pub swap: bool,
}

impl Default for TripletMargin {
    fn default() -> Self {
        Self { margin: 1.0, p: 2.0, eps: 1e-6, swap: false }
    }
}

impl TripletMargin {
    /// Computes the loss of three tensors of the same shape `[…, D]`. With `Reduction::None`, the
    /// result is the loss of each triplet, of shape `[…]`.
    ///
    /// # Errors
    /// When shapes or dtypes are invalid, or the margin is out of range.
    pub fn reduced(
        &self,
        anchor: &Tensor,
        positive: &Tensor,
        negative: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor> {
        const NAME: &str = "triplet_margin_loss";
        let Self { margin, p, eps, swap } = *self;
        option(NAME, "margin", margin, margin > 0.0, "above 0")?;
        let (anchor, positive) = elementwise(NAME, anchor, positive)?;
        let (anchor, negative) = elementwise(NAME, &anchor, negative)?;
        Ok(Tensor::f_triplet_margin_loss(
            &anchor, &positive, &negative, margin, p, eps, swap, reduction,
        )?)
    }
}

/// The negative log likelihood of targets y under a normal distribution with mean μ and variance v:
/// (ln max(v, ε) + (μ − y)² / max(v, ε)) / 2. With `full`, ln(2π)/2 is added. Use it in
/// `#[loss(with = |(mean, variance), target| …, of = examples)]`.
#[derive(Debug, Clone, Copy)]
pub struct GaussianNll {
    /// Whether the constant ln(2π)/2 is added.
    pub full: bool,
    /// The lower limit ε of the variance, above 0. The default is 1e-6. The gradient of the
    /// variance is computed as if there were no limit.
    pub eps: f64,
}

impl Default for GaussianNll {
    fn default() -> Self {
        Self { full: false, eps: 1e-6 }
    }
}

impl GaussianNll {
    /// Computes the loss of three tensors of the same shape. With `Reduction::None`, the result has
    /// this shape, too.
    ///
    /// # Errors
    /// When shapes or dtypes are invalid, or a variance on the CPU is below 0. On CUDA this is not
    /// checked.
    pub fn reduced(
        &self,
        mean: &Tensor,
        target: &Tensor,
        variance: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor> {
        const NAME: &str = "gaussian_nll_loss";
        option(NAME, "eps", self.eps, self.eps > 0.0, "above 0")?;
        let (mean, target) = elementwise(NAME, mean, target)?;
        let (mean, variance) = elementwise(NAME, &mean, variance)?;
        if variance.device() == Device::Cpu && variance.f_lt(0.0)?.f_any()?.f_int64_value(&[])? != 0
        {
            let why = "a variance must be at least 0; if the model computes its logarithm, pass \
                       `log_variance.exp()`";
            return Err(misfit(NAME, &mean, &variance, why));
        }
        in_f32([&mean, &target, &variance], |[mean, target, variance]| {
            // As in torch, the gradient of the variance is computed as if there were no lower
            // limit.
            let least =
                tch::no_grad(|| variance.f_clamp_min(self.eps)?.f_sub(&variance.f_detach()?))?;
            let variance = variance.f_add(&least)?;
            let squares = mean.f_sub(&target)?.f_square()?.f_div(&variance)?;
            let each = variance.f_log()?.f_add(&squares)?.f_mul_scalar(0.5)?;
            let each = match self.full {
                true => each.f_add_scalar(0.5 * (2.0 * PI).ln())?,
                false => each,
            };
            reduce(&each, reduction)
        })
    }
}

/// InfoNCE, a contrastive loss in which the other examples of the batch are the negatives (Oord et
/// al. 2018; symmetric in CLIP). Outputs x and targets y have the shape `[N, D]`. The loss is the
/// cross entropy of an `[N, N]` matrix of logits. The logit in row i and column j is the cosine of
/// xᵢ and yⱼ, divided by the temperature τ. The class of row i is i.
///
/// If the model computes both vectors of each pair, its output has the shape `[N, 2, D]`, and the
/// target is not used.
///
/// A batch is never split into micro-batches, because each of them would have fewer negatives. With
/// gradient accumulation, the losses of the batches are averaged. The result differs from the loss
/// of one large batch, in which each example has more negatives. Under autocast the loss, including
/// its matrix products, is computed in f32, because rounding a cosine to bf16 changes its logit by
/// up to 1/(512 τ).
///
/// # Errors
/// When the shapes are neither `[N, D]` for output and target nor `[N, 2, D]` for the output, a
/// dtype is not floating-point, or τ is not above 0.
#[derive(Debug, Clone, Copy)]
pub struct InfoNce {
    /// The temperature τ, above 0. The default is 0.07.
    pub temperature: f64,
    /// Whether the loss is averaged with the loss in which outputs and targets are exchanged (as in
    /// CLIP).
    pub symmetric: bool,
}

impl Default for InfoNce {
    fn default() -> Self {
        Self { temperature: 0.07, symmetric: false }
    }
}

impl InfoNce {
    /// Computes the loss with the given reduction. With `Reduction::None` the result is the loss of
    /// each example, of shape `[N]`.
    ///
    /// # Errors
    /// When output, target or options are not as [`InfoNce`] requires.
    pub fn reduced(
        &self,
        output: &Tensor,
        target: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor> {
        const NAME: &str = "info_nce";
        option(NAME, "temperature", self.temperature, self.temperature > 0.0, "above 0")?;
        let (x, y) = match output.size().as_slice() {
            [_, 2, _] => vectors(NAME, &output.f_select(1, 0)?, &output.f_select(1, 1)?)?,
            _ => vectors(NAME, output, target)?,
        };
        if x.dim() != 2 {
            let why = "both must be [N, D], or the output must be [N, 2, D]";
            return Err(misfit(NAME, output, target, why));
        }
        in_f32([&x, &y], |[x, y]| {
            let scores = unit(&x)?.f_matmul(&unit(&y)?.f_tr()?)?.f_div_scalar(self.temperature)?;
            let own = Tensor::f_arange(x.size()[0], (Kind::Int64, x.device()))?;
            let of = |scores: &Tensor| {
                scores.f_cross_entropy_loss(&own, None::<Tensor>, reduction, IGNORED, 0.0)
            };
            match self.symmetric {
                true => Ok(of(&scores)?.f_add(&of(&scores.f_tr()?)?)?.f_mul_scalar(0.5)?),
                false => Ok(of(&scores)?),
            }
        })
    }
}

impl Loss for InfoNce {
    fn compute(&self, output: &Tensor, target: &Tensor) -> Result<Tensor> {
        self.reduced(output, target, Reduction::Mean)
    }

    fn mean_over(&self) -> MeanOver<'_> {
        MeanOver::Batch
    }
}

/// Divides each row by its 2-norm. A row whose norm is below 1e-12 is divided by 1e-12.
fn unit(rows: &Tensor) -> Result<Tensor> {
    let norm = rows.f_norm_scalaropt_dim(2.0, [1].as_slice(), true)?;
    Ok(rows.f_div(&norm.f_clamp_min(1e-12)?)?)
}

/// Checks that two tensors are floating-point and have the same shape `[N, D, …]`. Returns them in
/// the wider of their dtypes.
fn vectors(what: &str, one: &Tensor, other: &Tensor) -> Result<(Tensor, Tensor)> {
    let (x, y) = elementwise(what, one, other)?;
    match x.dim() < 2 {
        true => Err(misfit(what, one, other, "both must be vectors, [N, D, …]")),
        false => Ok((x, y)),
    }
}
