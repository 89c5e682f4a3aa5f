//! Losses for classification.

use tch::{Kind, Reduction, Tensor};

use super::{
    IGNORED, Loss, MeanOver, explained,
    probabilities::look,
    shapes::{ClassDim, are_log_probabilities, classes, computed_in, elementwise, misfit, option},
};
use crate::{
    Result, ffi,
    precision::{dtype_name, f32_or_f64, is_floating},
};

/// Cross entropy of logits against int64 classes. The logits have the shape `[N, C, …]` for N
/// examples and C classes, and the targets have the shape `[N, …]`. The loss of a target yᵢ with
/// the logits xᵢ is `lᵢ = −log softmax(xᵢ)[yᵢ]`. The mean is Σ wᵢ lᵢ / Σ wᵢ over the targets that
/// are not `ignore_index`, where wᵢ is the weight of the target's class, or 1 without weights.
///
/// With label smoothing ε, the target distribution is 1 − ε for the target's class plus ε/C for
/// every class. With `z_loss` = z, z·log²(Σ exp xᵢ) is added to each lᵢ, where the sum is over the
/// classes. This keeps the logits of large vocabularies near zero (PaLM, arXiv:2204.02311, uses z =
/// 1e-4).
///
/// Logits with the classes in the last dimension are accepted, too, as in logits `[N, L, C]` for
/// targets `[N, L]`. If the shapes do not show whether the second or the last dimension holds the
/// classes, as in logits `[N, 5, 5]` for targets `[N, 5]`, the loss is an error unless `classes`
/// names the dimension. A floating-point target with the shape of the logits, `[N, C, …]`, contains
/// the probability of each class.
///
/// # Errors
/// When shapes or dtypes are invalid, the number of weights is not the number of classes, or an
/// option or a class is out of range. On CUDA, a class out of range is instead a device-side error,
/// as in PyTorch.
///
/// ```no_run,standalone_crate
/// # use amp_core::prelude::*;
/// #[derive(LightningModule)]
/// #[loss(cross_entropy, label_smoothing = 0.1, weight = self.rare)]
/// #[optimizer(sgd, lr = 0.1)]
/// struct Net {
///     #[buffer(shape = [10], init = ones)]
///     rare: Tensor,
///     #[layer(linear(64, 10))]
///     head: Linear,
/// }
/// # fn main() {}
/// ```
#[derive(Debug)]
pub struct CrossEntropy {
    /// The label smoothing ε, from 0 to 1.
    pub label_smoothing: f64,
    /// The weight of each class, a floating-point tensor of shape `[C]`. The loss of a target is
    /// multiplied by the weight of its class.
    pub weight: Option<Tensor>,
    /// The class whose targets are ignored. The default is -100.
    pub ignore_index: i64,
    /// The factor z of the term z·log²(Σ exp xᵢ), at least 0. The default is 0, which adds nothing.
    pub z_loss: f64,
    /// The dimension of the logits that holds the classes, for shapes in which it may be either the
    /// second or the last dimension. By default such shapes are an error.
    pub classes: ClassDim,
}

const NAME: &str = "cross_entropy";

impl Default for CrossEntropy {
    fn default() -> Self {
        Self {
            label_smoothing: 0.0,
            weight: None,
            ignore_index: IGNORED,
            z_loss: 0.0,
            classes: ClassDim::Either,
        }
    }
}

impl CrossEntropy {
    /// Computes the loss with the given reduction. With `Reduction::None` the result is the loss of
    /// each target, of shape `[N, …]`. The loss of an ignored target is 0.
    ///
    /// # Errors
    /// When output, target or options are not as [`CrossEntropy`] requires.
    pub fn reduced(
        &self,
        output: &Tensor,
        target: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor> {
        self.check_options()?;
        let Self { weight, ignore_index: ignored, .. } = self;
        if is_floating(target.kind()) && output.size() == target.size() && output.dim() > 1 {
            if *ignored != IGNORED {
                let why =
                    "ignore_index applies to int64 targets, but this target holds probabilities";
                return Err(misfit(NAME, output, target, why));
            }
            let (logits, of) = elementwise(NAME, output, target)?;
            let weight = class_weights(NAME, weight.as_ref(), &logits, output, target)?;
            return self.of_logits(&logits, &of, weight.as_ref(), reduction);
        }
        let (rows, of_rows) = self.classes.resolve(output, target)?;
        let (logits, of) = classes(NAME, &rows, &of_rows)?;
        let weight = class_weights(NAME, weight.as_ref(), &logits, output, target)?;
        let loss = self.of_logits(&logits, &of, weight.as_ref(), reduction);
        let loss = loss.map_err(|error| explained(NAME, *ignored, error, output, target))?;
        like_target(loss, reduction, target)
    }

    /// Returns an error if an option is out of range.
    pub(super) fn check_options(&self) -> Result<()> {
        let Self { label_smoothing, z_loss, .. } = self;
        let is_share = (0.0..=1.0).contains(label_smoothing);
        option(NAME, "label_smoothing", *label_smoothing, is_share, "from 0 to 1")?;
        option(NAME, "z_loss", *z_loss, *z_loss >= 0.0, "at least 0")
    }

    /// Computes the loss of logits of shape `[N, C, …]`. `of` contains classes of shape `[N, …]` or
    /// probabilities of shape `[N, C, …]`.
    fn of_logits(
        &self,
        logits: &Tensor,
        of: &Tensor,
        weight: Option<&Tensor>,
        reduction: Reduction,
    ) -> Result<Tensor> {
        let Self { label_smoothing: smoothing, ignore_index: ignored, z_loss: z, .. } = *self;
        look(logits)?;
        let entropy = |reduction| -> Result<Tensor> {
            if let (Reduction::Mean, None) = (reduction, weight)
                && let Some(loss) = ffi::cross_entropy(logits, of, smoothing, ignored, z)?
            {
                return Ok(loss);
            }
            let loss = logits.f_cross_entropy_loss(of, weight, reduction, ignored, smoothing)?;
            match z {
                0.0 => Ok(loss),
                _ => {
                    let term = self.z_term(logits, of, weight, reduction)?;
                    Ok(loss.f_add(&term.f_to_kind(loss.kind())?)?)
                }
            }
        };
        in_fixed_order(logits, of, weight, ignored, reduction, entropy)
    }

    /// Computes z·log²(Σ exp xᵢ) for each target, multiplied by the weight of the target, and
    /// applies the reduction.
    fn z_term(
        &self,
        logits: &Tensor,
        of: &Tensor,
        weight: Option<&Tensor>,
        reduction: Reduction,
    ) -> Result<Tensor> {
        let wide = logits.f_to_kind(computed_in(logits)?)?;
        let squares = wide.f_logsumexp([1].as_slice(), false)?.f_square()?;
        let counts = match is_floating(of.kind()) {
            true => squares.f_ones_like()?,
            false => weights_of(of, weight, self.ignore_index, squares.kind())?,
        };
        let each = squares.f_mul(&counts)?.f_mul_scalar(self.z_loss)?;
        Ok(match reduction {
            Reduction::None => each,
            Reduction::Mean => each.f_sum(each.kind())?.f_div(&counts.f_sum(each.kind())?)?,
            _ => each.f_sum(each.kind())?,
        })
    }
}

impl Loss for CrossEntropy {
    fn compute(&self, output: &Tensor, target: &Tensor) -> Result<Tensor> {
        self.reduced(output, target, Reduction::Mean)
    }

    fn mean_over(&self) -> MeanOver<'_> {
        MeanOver::Classes { ignored: self.ignore_index, weight: self.weight.as_ref() }
    }
}

/// The negative log likelihood of log probabilities against int64 classes, in the shapes of
/// [`CrossEntropy`]. The loss of a target is `lᵢ = −xᵢ[yᵢ]`. The mean is Σ wᵢ lᵢ / Σ wᵢ over the
/// targets that are not `ignore_index`, where wᵢ is the weight of the target's class, or 1 without
/// weights.
///
/// # Errors
/// The errors of [`CrossEntropy`]. On the CPU, a value above 0.001 is an error too, because it is
/// not a log probability. For logits, use [`CrossEntropy`].
#[derive(Debug)]
pub struct Nll {
    /// The weight of each class, a floating-point tensor of shape `[C]`. The loss of a target is
    /// multiplied by the weight of its class.
    pub weight: Option<Tensor>,
    /// The class whose targets are ignored. The default is -100.
    pub ignore_index: i64,
    /// The dimension of the logits that holds the classes, for shapes in which it may be either the
    /// second or the last dimension. By default such shapes are an error.
    pub classes: ClassDim,
}

impl Default for Nll {
    fn default() -> Self {
        Self { weight: None, ignore_index: IGNORED, classes: ClassDim::Either }
    }
}

impl Nll {
    /// Computes the loss with the given reduction. With `Reduction::None` the result is the loss of
    /// each target, of shape `[N, …]`. The loss of an ignored target is 0.
    ///
    /// # Errors
    /// When output, target or options are not as [`Nll`] requires.
    pub fn reduced(
        &self,
        output: &Tensor,
        target: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor> {
        const NAME: &str = "nll_loss";
        let Self { weight, ignore_index, .. } = self;
        let (rows, of_rows) = self.classes.resolve(output, target)?;
        let (logits, of) = classes(NAME, &rows, &of_rows)?;
        are_log_probabilities(NAME, "the output", &logits, [output, target])?;
        let weight = class_weights(NAME, weight.as_ref(), &logits, output, target)?;
        let weight = weight.as_ref();
        let likelihood =
            |reduction| Ok(logits.f_nll_loss_nd(&of, weight, reduction, *ignore_index)?);
        let loss = in_fixed_order(&logits, &of, weight, *ignore_index, reduction, likelihood);
        let loss = loss.map_err(|error| explained(NAME, *ignore_index, error, output, target))?;
        like_target(loss, reduction, target)
    }
}

impl Loss for Nll {
    fn compute(&self, output: &Tensor, target: &Tensor) -> Result<Tensor> {
        self.reduced(output, target, Reduction::Mean)
    }

    fn mean_over(&self) -> MeanOver<'_> {
        MeanOver::Classes { ignored: self.ignore_index, weight: self.weight.as_ref() }
    }
}

/// Computes the loss by calling `of_reduction` with the reduction. If the logits have more than two
/// dimensions and the targets are classes, calls `of_reduction` with `Reduction::None` and reduces
/// the losses itself, because libtorch's CUDA kernel for such logits (nll_loss2d) adds up the
/// losses in an order that differs from run to run.
fn in_fixed_order(
    logits: &Tensor,
    of: &Tensor,
    weight: Option<&Tensor>,
    ignored: i64,
    reduction: Reduction,
    of_reduction: impl Fn(Reduction) -> Result<Tensor>,
) -> Result<Tensor> {
    let is_plain = logits.dim() < 3 || is_floating(of.kind());
    if is_plain || matches!(reduction, Reduction::None) {
        return of_reduction(reduction);
    }
    let each = of_reduction(Reduction::None)?;
    // 16-bit losses are added up in f32, because their sum may exceed the largest 16-bit number.
    let wide = f32_or_f64(each.kind());
    let sum = each.f_sum(wide)?;
    let loss = match reduction {
        Reduction::Mean => sum.f_div(&weights_of(of, weight, ignored, wide)?.f_sum(wide)?)?,
        _ => sum,
    };
    Ok(loss.f_to_kind(each.kind())?)
}

/// Returns the weight of each target's class, or 1 without weights. The weight of an ignored target
/// is 0.
fn weights_of(of: &Tensor, weight: Option<&Tensor>, ignored: i64, kind: Kind) -> Result<Tensor> {
    let counted = of.f_ne(ignored)?;
    Ok(match weight {
        Some(weight) => {
            let classes = of.f_masked_fill(&counted.f_logical_not()?, 0)?;
            weight.f_to_kind(kind)?.f_take(&classes)?.f_mul(&counted)?
        }
        None => counted.f_to_kind(kind)?,
    })
}

/// Reshapes an unreduced loss to the shape of the targets. If the logits have their classes in the
/// last dimension, the loss was computed from logits flattened to `[M, C]`, and has the shape
/// `[M]`.
fn like_target(loss: Tensor, reduction: Reduction, target: &Tensor) -> Result<Tensor> {
    match reduction {
        Reduction::None => Ok(loss.f_reshape(target.size())?),
        _ => Ok(loss),
    }
}

/// Checks the class weights, and converts them to the dtype in which the loss of these logits is
/// computed.
fn class_weights(
    what: &str,
    weight: Option<&Tensor>,
    logits: &Tensor,
    output: &Tensor,
    target: &Tensor,
) -> Result<Option<Tensor>> {
    let Some(weight) = weight else { return Ok(None) };
    let (count, sizes) = (logits.size()[1], weight.size());
    if sizes != [count] || !is_floating(weight.kind()) {
        let kind = dtype_name(weight.kind());
        let why =
            format!("the class weights are {kind} {sizes:?}, but must be floating-point [{count}]");
        return Err(misfit(what, output, target, &why));
    }
    Ok(Some(weight.f_to_device(logits.device())?.f_to_kind(computed_in(logits)?)?))
}
