//! Elementwise losses. Output and target have the same shape, and the mean is over all elements.

use tch::{Device, Reduction, Tensor};

use super::{
    Loss, MeanOver,
    shapes::{are_log_probabilities, elementwise, misfit, of_one_example, option},
};
use crate::Result;

/// Implements `reduced` and `Loss` for an elementwise loss. The generated code checks that output
/// and target have the same shape, and converts the two tensors to the wider of their dtypes.
macro_rules! of_elements {
    ($loss:ident $name:literal, |$own:ident, $output:ident, $target:ident, $reduction:ident| $computed:expr) => {
        impl $loss {
            /// Computes the loss with the given reduction. With `Reduction::None` the result is the
            /// loss of each element, in the shape of the output.
            ///
            /// # Errors
            #[doc = concat!("The errors of [`", stringify!($loss), "`].")]
            pub fn reduced(
                &self,
                output: &Tensor,
                target: &Tensor,
                reduction: Reduction,
            ) -> Result<Tensor> {
                const NAME: &str = $name;
                let (output, target) = elementwise(NAME, output, target)?;
                let ($own, $output, $target, $reduction) = (self, &output, &target, reduction);
                $computed
            }
        }

        impl Loss for $loss {
            fn compute(&self, output: &Tensor, target: &Tensor) -> Result<Tensor> {
                self.reduced(output, target, Reduction::Mean)
            }

            fn mean_over(&self) -> MeanOver<'_> {
                MeanOver::Examples
            }
        }
    };
}

/// The squared error (x − y)² of output x and target y.
///
/// ```
/// use amp_core::{loss::{Loss, Mse}, tch::Tensor};
///
/// let (output, target) = (Tensor::from_slice(&[1.0_f32, 3.0]), Tensor::from_slice(&[0.0_f32, 0.0]));
/// assert_eq!(Mse.compute(&output, &target)?.double_value(&[]), 5.0);
/// # Ok::<(), amp_core::Error>(())
/// ```
///
/// # Errors
/// When the shapes differ or a dtype is not floating-point.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mse;

of_elements!(Mse "mse_loss", |_own, x, y, reduction| Ok(x.f_mse_loss(y, reduction)?));

/// The absolute error |x − y| of output x and target y.
///
/// ```
/// use amp_core::{loss::{L1, Loss}, tch::Tensor};
///
/// let (output, target) = (Tensor::from_slice(&[1.0_f32, 3.0]), Tensor::from_slice(&[0.0_f32, 0.0]));
/// assert_eq!(L1.compute(&output, &target)?.double_value(&[]), 2.0);
/// # Ok::<(), amp_core::Error>(())
/// ```
///
/// # Errors
/// When the shapes differ or a dtype is not floating-point.
#[derive(Debug, Clone, Copy, Default)]
pub struct L1;

of_elements!(L1 "l1_loss", |_own, x, y, reduction| Ok(x.f_l1_loss(y, reduction)?));

/// Huber's loss. With d = x − y it is d²/2 for |d| < δ, and δ (|d| − δ/2) otherwise.
///
/// ```
/// use amp_core::{loss::{Huber, Loss}, tch::Tensor};
///
/// // |d| = 1 is quadratic, 1²/2; |d| = 3 is linear, 2·(3 − 2/2).
/// let (output, target) = (Tensor::from_slice(&[1.0_f32, 3.0]), Tensor::from_slice(&[0.0_f32, 0.0]));
/// let loss = Huber { delta: 2.0 }.compute(&output, &target)?;
/// assert_eq!(loss.double_value(&[]), (0.5 + 4.0) / 2.0);
/// # Ok::<(), amp_core::Error>(())
/// ```
///
/// # Errors
/// When the shapes differ, a dtype is not floating-point, or an option is out of range.
#[derive(Debug, Clone, Copy)]
pub struct Huber {
    /// The threshold δ between the quadratic and the linear part, above 0. The default is 1.
    pub delta: f64,
}

impl Default for Huber {
    fn default() -> Self {
        Self { delta: 1.0 }
    }
}

of_elements!(Huber "huber_loss", |own, x, y, reduction| {
    option(NAME, "delta", own.delta, own.delta > 0.0, "above 0")?;
    Ok(x.f_huber_loss(y, reduction, own.delta)?)
});

/// The smooth absolute error. With d = x − y it is d²/(2β) for |d| < β, and |d| − β/2 otherwise.
/// With β = 0 it equals [`L1`].
///
/// # Errors
/// When the shapes differ, a dtype is not floating-point, or an option is out of range.
#[derive(Debug, Clone, Copy)]
pub struct SmoothL1 {
    /// The threshold β between the quadratic and the linear part, at least 0. The default is 1.
    pub beta: f64,
}

impl Default for SmoothL1 {
    fn default() -> Self {
        Self { beta: 1.0 }
    }
}

of_elements!(SmoothL1 "smooth_l1_loss", |own, x, y, reduction| {
    option(NAME, "beta", own.beta, own.beta >= 0.0, "at least 0")?;
    match own.beta == 0.0 {
        true => Ok(x.f_l1_loss(y, reduction)?),
        false => Ok(x.f_smooth_l1_loss(y, reduction, own.beta)?),
    }
});

/// Binary cross entropy of predicted probabilities p and targets y: −w (y ln p + (1 − y) ln(1 −
/// p)), where w is `weight`. Autocast on CUDA refuses this loss; [`BinaryCrossEntropyWithLogits`]
/// computes the same loss from logits and runs under autocast.
///
/// # Errors
/// When the shapes of output and target differ, a dtype is not floating-point, the shape of the
/// weight does not fit the output, or CUDA autocast is on.
#[derive(Debug, Default)]
pub struct BinaryCrossEntropy {
    /// The weight w: a single number, or a tensor with the shape of one example. Dimensions of size
    /// 1 are broadcast.
    pub weight: Option<Tensor>,
}

of_elements!(BinaryCrossEntropy "binary_cross_entropy", |own, p, y, reduction| {
    let weight = of_one_example(NAME, "weight", own.weight.as_ref(), p)?;
    Ok(p.f_binary_cross_entropy(y, weight, reduction)?)
});

/// Binary cross entropy of logits x against probabilities y from 0 to 1: −w (q y ln σ(x) + (1 − y)
/// ln(1 − σ(x))). Here w is `weight`, and q is `pos_weight`. The mean divides by the number of
/// elements, whatever the weights are.
///
/// A weight is a single number, or has the shape of one example. For outputs of shape `[N, C]`, its
/// shape is `[C]`. For outputs of shape `[N, C, H, W]`, its shape may be `[C, 1, 1]`.
///
/// ```
/// use amp_core::{loss::{BinaryCrossEntropyWithLogits, Loss}, tch::Tensor};
///
/// // A logit of 0 is a probability of 1/2. Positive targets count three times: 3·ln 2.
/// let (logits, labels) = (Tensor::from_slice(&[0.0_f64]), Tensor::from_slice(&[1.0_f64]));
/// let loss = BinaryCrossEntropyWithLogits {
///     pos_weight: Some(Tensor::from_slice(&[3.0_f64])),
///     ..Default::default()
/// };
/// let loss = loss.compute(&logits, &labels)?.double_value(&[]);
/// assert!((loss - 3.0 * 2.0_f64.ln()).abs() < 1e-12);
/// # Ok::<(), amp_core::Error>(())
/// ```
///
/// # Errors
/// When the shapes of output and target differ, a dtype is not floating-point, or the shape of a
/// weight does not fit the output.
///
/// On the CPU, a target that is not from 0 to 1 is an error. For labels such as -1 the loss would
/// have no minimum. On CUDA the targets are not checked.
#[derive(Debug, Default)]
pub struct BinaryCrossEntropyWithLogits {
    /// The factor w by which the loss of each element is multiplied.
    pub weight: Option<Tensor>,
    /// The weight q of positive targets relative to negative ones.
    pub pos_weight: Option<Tensor>,
}

of_elements!(BinaryCrossEntropyWithLogits "binary_cross_entropy_with_logits", |own, x, y, reduction| {
    if y.device() == Device::Cpu && y.numel() > 0 {
        let [low, high] = [y.f_min()?, y.f_max()?];
        let (low, high) = (low.f_double_value(&[])?, high.f_double_value(&[])?);
        if low < 0.0 || high > 1.0 {
            let why = format!("targets must be from 0 to 1, but are from {low} to {high}");
            return Err(misfit(NAME, x, y, &why));
        }
    }
    let weight = of_one_example(NAME, "weight", own.weight.as_ref(), x)?;
    let pos_weight = of_one_example(NAME, "pos_weight", own.pos_weight.as_ref(), x)?;
    Ok(x.f_binary_cross_entropy_with_logits(y, weight, pos_weight, reduction)?)
});

/// The Kullback-Leibler divergence y (ln y − x). The output x contains log probabilities, and the
/// target y contains probabilities. If `log_target` is set, y contains log probabilities, too, and
/// the divergence is exp(y) (y − x). As in torch, the mean is over all elements. With `batchmean`
/// the sum is divided by the number of examples, which is the mathematical definition.
///
/// # Errors
/// When the shapes differ or a dtype is not floating-point.
///
/// On the CPU, a log probability above 0.001 is an error. The tensor then contains logits or
/// probabilities: apply a log softmax first. torch does not check this and returns a number without
/// meaning. On CUDA the values are not checked.
#[derive(Debug, Clone, Copy, Default)]
pub struct KlDiv {
    /// Whether the target contains log probabilities instead of probabilities.
    pub log_target: bool,
    /// Whether the mean divides by the number of examples (dimension 0) instead of the number of
    /// elements.
    pub batchmean: bool,
}

of_elements!(KlDiv "kl_div", |own, x, y, reduction| {
    are_log_probabilities(NAME, "the output", x, [x, y])?;
    if own.log_target {
        are_log_probabilities(NAME, "the target", y, [x, y])?;
    }
    match (own.batchmean, reduction) {
        (true, Reduction::Mean) => {
            let sum = x.f_kl_div(y, Reduction::Sum, own.log_target)?;
            let examples = x.size().first().copied().unwrap_or(1);
            Ok(sum.f_div_scalar(examples)?)
        }
        _ => Ok(x.f_kl_div(y, reduction, own.log_target)?),
    }
});

/// The negative log likelihood of the targets y, which are counts, under a Poisson distribution.
/// The output x determines the rate of this distribution. With `log_input`, x is the logarithm of
/// the rate, and the loss is exp(x) − y x. Without it, x is the rate, and the loss is x − y ln(x +
/// ε). With `full`, where y > 1, the loss also contains Stirling's approximation of ln y!, which is
/// y ln y − y + ln(2π y)/2.
///
/// # Errors
/// When the shapes differ, a dtype is not floating-point, or an option is out of range.
#[derive(Debug, Clone, Copy)]
pub struct PoissonNll {
    /// Whether the output is the logarithm of the rate. The default is true.
    pub log_input: bool,
    /// Whether the approximation of ln y! is added.
    pub full: bool,
    /// The number ε that is added to the rate before the logarithm, above 0. The default is 1e-8.
    pub eps: f64,
}

impl Default for PoissonNll {
    fn default() -> Self {
        Self { log_input: true, full: false, eps: 1e-8 }
    }
}

of_elements!(PoissonNll "poisson_nll_loss", |own, x, y, reduction| {
    option(NAME, "eps", own.eps, own.eps > 0.0, "above 0")?;
    let PoissonNll { log_input, full, eps } = *own;
    Ok(x.f_poisson_nll_loss(y, log_input, full, eps, reduction)?)
});

/// Hinge loss of distances x against labels 1 and -1. For the label 1 it is x, and for the label -1
/// it is max(0, margin − x).
///
/// # Errors
/// When the shapes differ or a dtype is not floating-point.
#[derive(Debug, Clone, Copy)]
pub struct HingeEmbedding {
    /// The margin. The default is 1.
    pub margin: f64,
}

impl Default for HingeEmbedding {
    fn default() -> Self {
        Self { margin: 1.0 }
    }
}

of_elements!(HingeEmbedding "hinge_embedding_loss", |own, x, y, reduction| {
    let margin = own.margin;
    Ok(x.f_hinge_embedding_loss(y, margin, reduction)?)
});
