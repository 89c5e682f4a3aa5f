//! Losses of elements: output and target have the same shape, and the mean is over all elements.

use tch::{Device, Reduction, Tensor};

use super::{
    Loss, MeanOver,
    shapes::{elementwise, misfit, of_one_example, option},
};
use crate::{Result, precision::is_floating};

/// Implements `Loss` for a loss of elements by its `reduced`.
macro_rules! of_elements {
    ($($loss:ty),*) => {$(
        impl Loss for $loss {
            fn compute(&self, output: &Tensor, target: &Tensor) -> Result<Tensor> {
                self.reduced(output, target, Reduction::Mean)
            }

            fn mean_over(&self) -> MeanOver<'_> {
                MeanOver::Examples
            }
        }
    )*};
}

of_elements!(
    Mse,
    L1,
    Huber,
    SmoothL1,
    BinaryCrossEntropy,
    BinaryCrossEntropyWithLogits,
    KlDiv,
    PoissonNll,
    HingeEmbedding
);

/// Squared error, (x − y)².
///
/// # Errors
/// When the shapes differ or a dtype is not floating-point.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mse;

impl Mse {
    /// The loss under another reduction: `None` gives the output's shape.
    ///
    /// # Errors
    /// As [`Mse`]'s.
    pub fn reduced(
        &self,
        output: &Tensor,
        target: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor> {
        const NAME: &str = "mse_loss";
        let (output, target) = elementwise(NAME, output, target)?;
        Ok(output.f_mse_loss(&target, reduction)?)
    }
}

/// Absolute error, |x − y|.
///
/// # Errors
/// When the shapes differ or one is not floating.
#[derive(Debug, Clone, Copy, Default)]
pub struct L1;

impl L1 {
    /// The loss under another reduction: `None` gives the output's shape.
    ///
    /// # Errors
    /// As [`L1`]'s.
    pub fn reduced(
        &self,
        output: &Tensor,
        target: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor> {
        const NAME: &str = "l1_loss";
        let (output, target) = elementwise(NAME, output, target)?;
        Ok(output.f_l1_loss(&target, reduction)?)
    }
}

/// Huber's loss with d = x − y: d²/2 for |d| < δ, otherwise δ (|d| − δ/2).
///
/// # Errors
/// When the shapes differ, one is not floating, or an option is out of range.
#[derive(Debug, Clone, Copy)]
pub struct Huber {
    /// δ, above 0; 1 unless it is given.
    pub delta: f64,
}

impl Default for Huber {
    fn default() -> Self {
        Self { delta: 1.0 }
    }
}

impl Huber {
    /// The loss under another reduction: `None` gives the output's shape.
    ///
    /// # Errors
    /// As [`Huber`]'s.
    pub fn reduced(
        &self,
        output: &Tensor,
        target: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor> {
        const NAME: &str = "huber_loss";
        option(NAME, "delta", self.delta, self.delta > 0.0, "above 0")?;
        let (output, target) = elementwise(NAME, output, target)?;
        Ok(output.f_huber_loss(&target, reduction, self.delta)?)
    }
}

/// The smooth absolute error with d = x − y: d²/(2β) for |d| < β, otherwise |d| − β/2. With β = 0 it is [`L1`].
///
/// # Errors
/// When the shapes differ, one is not floating, or an option is out of range.
#[derive(Debug, Clone, Copy)]
pub struct SmoothL1 {
    /// β, at least 0; 1 unless it is given.
    pub beta: f64,
}

impl Default for SmoothL1 {
    fn default() -> Self {
        Self { beta: 1.0 }
    }
}

impl SmoothL1 {
    /// The loss under another reduction: `None` gives the output's shape.
    ///
    /// # Errors
    /// As [`SmoothL1`]'s.
    pub fn reduced(
        &self,
        output: &Tensor,
        target: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor> {
        const NAME: &str = "smooth_l1_loss";
        option(NAME, "beta", self.beta, self.beta >= 0.0, "at least 0")?;
        let (output, target) = elementwise(NAME, output, target)?;
        match self.beta == 0.0 {
            true => Ok(output.f_l1_loss(&target, reduction)?),
            false => Ok(output.f_smooth_l1_loss(&target, reduction, self.beta)?),
        }
    }
}

/// Binary cross entropy of probabilities, −w (y ln p + (1 − y) ln(1 − p)). CUDA autocast refuses it: use
/// [`BinaryCrossEntropyWithLogits`].
///
/// # Errors
/// When the shapes differ, one is not floating, the weight does not fit, or under CUDA autocast.
#[derive(Debug, Default)]
pub struct BinaryCrossEntropy {
    /// w: one number, or the shape of one example with 1 where a dimension has one weight.
    pub weight: Option<Tensor>,
}

impl BinaryCrossEntropy {
    /// The loss under another reduction: `None` gives the output's shape.
    ///
    /// # Errors
    /// As [`BinaryCrossEntropy`]'s.
    pub fn reduced(
        &self,
        output: &Tensor,
        target: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor> {
        const NAME: &str = "binary_cross_entropy";
        let (output, target) = elementwise(NAME, output, target)?;
        let weight = of_one_example(NAME, "weight", self.weight.as_ref(), &output)?;
        Ok(output.f_binary_cross_entropy(&target, weight, reduction)?)
    }
}

/// Binary cross entropy of logits x against probabilities y from 0 to 1: −w (q y ln σ(x) + (1 − y)
/// ln(1 − σ(x))). The mean is over all elements, independent of w.
///
/// Weights have the shape of one example, as `[C]` for outputs `[N, C]` and `[C, 1, 1]` for `[N,
/// C, H, W]`, or are one number.
///
/// # Errors
/// When the shapes differ, a dtype is not floating-point, or a weight does not fit.
///
/// A target outside 0 to 1 is an error on the CPU, because for labels such as -1 the loss has no
/// minimum. On CUDA this is not checked.
#[derive(Debug, Default)]
pub struct BinaryCrossEntropyWithLogits {
    /// w, the weight of each element.
    pub weight: Option<Tensor>,
    /// q, the weight of a positive target relative to a negative one.
    pub pos_weight: Option<Tensor>,
}

impl BinaryCrossEntropyWithLogits {
    /// The loss under another reduction: `None` gives the output's shape.
    ///
    /// # Errors
    /// As [`BinaryCrossEntropyWithLogits`]'s.
    pub fn reduced(
        &self,
        output: &Tensor,
        target: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor> {
        const NAME: &str = "binary_cross_entropy_with_logits";
        if target.device() == Device::Cpu && is_floating(target.kind()) && target.numel() > 0 {
            let [low, high] = [target.f_min()?, target.f_max()?];
            let (low, high) = (low.f_double_value(&[])?, high.f_double_value(&[])?);
            if low < 0.0 || high > 1.0 {
                let why = format!("targets are from 0 to 1, not from {low} to {high}");
                return Err(misfit(NAME, output, target, &why));
            }
        }
        let (output, target) = elementwise(NAME, output, target)?;
        let weight = of_one_example(NAME, "weight", self.weight.as_ref(), &output)?;
        let pos_weight = of_one_example(NAME, "pos_weight", self.pos_weight.as_ref(), &output)?;
        Ok(output.f_binary_cross_entropy_with_logits(&target, weight, pos_weight, reduction)?)
    }
}

/// The divergence y (ln y − x) of log probabilities x from probabilities y, or exp(y) (y − x) from
/// log probabilities y. The mean is over all elements, as in torch. With `batchmean` it is over
/// examples, which is the mathematical definition.
///
/// # Errors
/// When the shapes differ or one is not floating.
#[derive(Debug, Clone, Copy, Default)]
pub struct KlDiv {
    /// Whether the target holds log probabilities.
    pub log_target: bool,
    /// Whether a mean divides by the number of examples (dimension 0) instead of elements.
    pub batchmean: bool,
}

impl KlDiv {
    /// The loss under another reduction: `None` gives the output's shape.
    ///
    /// # Errors
    /// As [`KlDiv`]'s.
    pub fn reduced(
        &self,
        output: &Tensor,
        target: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor> {
        const NAME: &str = "kl_div";
        let (output, target) = elementwise(NAME, output, target)?;
        match (self.batchmean, reduction) {
            (true, Reduction::Mean) => {
                let sum = output.f_kl_div(&target, Reduction::Sum, self.log_target)?;
                let examples = output.size().first().copied().unwrap_or(1);
                Ok(sum.f_div_scalar(examples)?)
            }
            _ => Ok(output.f_kl_div(&target, reduction, self.log_target)?),
        }
    }
}

/// Negative log likelihood of counts y under a Poisson distribution of rate exp(x): exp(x) − y x; without
/// `log_input`, of rate x: x − y ln(x + ε). `full` adds Stirling's approximation of ln y!,
/// y ln y − y + ln(2π y)/2, where y > 1.
///
/// # Errors
/// When the shapes differ, one is not floating, or an option is out of range.
#[derive(Debug, Clone, Copy)]
pub struct PoissonNll {
    /// Whether the output is the rate's logarithm; true unless it is given.
    pub log_input: bool,
    /// Whether to add the approximation of ln y!.
    pub full: bool,
    /// ε, above 0; 1e-8 unless it is given.
    pub eps: f64,
}

impl Default for PoissonNll {
    fn default() -> Self {
        Self { log_input: true, full: false, eps: 1e-8 }
    }
}

impl PoissonNll {
    /// The loss under another reduction: `None` gives the output's shape.
    ///
    /// # Errors
    /// As [`PoissonNll`]'s.
    pub fn reduced(
        &self,
        output: &Tensor,
        target: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor> {
        const NAME: &str = "poisson_nll_loss";
        option(NAME, "eps", self.eps, self.eps > 0.0, "above 0")?;
        let (output, target) = elementwise(NAME, output, target)?;
        let Self { log_input, full, eps } = *self;
        Ok(output.f_poisson_nll_loss(&target, log_input, full, eps, reduction)?)
    }
}

/// Hinge loss of distances x against labels 1 and -1: x for 1, max(0, margin − x) for -1.
///
/// # Errors
/// When the shapes differ or one is not floating.
#[derive(Debug, Clone, Copy)]
pub struct HingeEmbedding {
    /// 1 unless it is given.
    pub margin: f64,
}

impl Default for HingeEmbedding {
    fn default() -> Self {
        Self { margin: 1.0 }
    }
}

impl HingeEmbedding {
    /// The loss under another reduction: `None` gives the output's shape.
    ///
    /// # Errors
    /// As [`HingeEmbedding`]'s.
    pub fn reduced(
        &self,
        output: &Tensor,
        target: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor> {
        const NAME: &str = "hinge_embedding_loss";
        let (output, target) = elementwise(NAME, output, target)?;
        Ok(output.f_hinge_embedding_loss(&target, self.margin, reduction)?)
    }
}
