//! Losses for segmentation masks, which compare overlapping areas.

use tch::{Kind, Reduction, Tensor};

use super::{
    IGNORED, Loss, MeanOver,
    shapes::{elementwise, in_f32, misfit, option, reduce},
};
use crate::{Result, ffi, precision::is_floating};

/// The Dice loss of logits of shape `[N, C, …]` (Milletari et al. 2016): 1 − (2 Σ p t + s) / (Σ p +
/// Σ t + s), averaged over classes and examples. Here p is the prediction, t is the target, and s
/// is `smooth`. For each class, the sums are over the positions of one example, or with `batch`
/// over the positions of all examples.
///
/// For int64 classes of shape `[N, …]`, p is the softmax of the logits over dimension 1, and t is
/// the one-hot encoding of the class. Positions of class -100 are ignored. For a floating-point
/// mask with the shape of the logits, p is the sigmoid of the logits and t is the mask.
///
/// With `batch` the loss depends on all positions of the batch together. Therefore a batch is never
/// split into micro-batches.
///
/// # Errors
/// When shapes or dtypes are invalid, `smooth` is below 0, or a class on the CPU is out of range.
#[derive(Debug, Clone, Copy)]
pub struct Dice {
    /// The number s that is added to numerator and denominator, at least 0. If it is above 0, the
    /// loss is 0 instead of NaN where prediction and target are 0 everywhere. The default is 1.
    pub smooth: f64,
    /// Whether the sums are over the positions of all examples of the batch.
    pub batch: bool,
}

impl Default for Dice {
    fn default() -> Self {
        Self { smooth: 1.0, batch: false }
    }
}

impl Dice {
    /// Computes the loss with the given reduction. With `Reduction::None` the result has the shape
    /// `[N, C]`, or `[C]` with `batch`.
    ///
    /// # Errors
    /// When output, target or options are not as [`Dice`] requires.
    pub fn reduced(
        &self,
        output: &Tensor,
        target: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor> {
        const NAME: &str = "dice";
        option(NAME, "smooth", self.smooth, self.smooth >= 0.0, "at least 0")?;
        let sizes = output.size();
        if sizes.len() < 2 {
            return Err(misfit(NAME, output, target, "logits must be [N, C, …]"));
        }
        if is_floating(target.kind()) {
            let (logits, mask) = elementwise(NAME, output, target)?;
            return in_f32([&logits, &mask], |[logits, mask]| {
                self.of(&logits.f_sigmoid()?, &mask, reduction)
            });
        }
        let of_classes = [&sizes[..1], &sizes[2..]].concat();
        if target.kind() != Kind::Int64 || target.size() != of_classes {
            let why = "logits must be [N, C, …], and targets int64 classes [N, …] or a \
                       floating-point mask of the logits' shape";
            return Err(misfit(NAME, output, target, why));
        }
        if sizes[1] < 2 {
            let why = "with one logit for each position, the target must be a floating-point mask \
                       of the logits' shape";
            return Err(misfit(NAME, output, target, why));
        }
        let counted = ffi::counted_classes(target, sizes[1]);
        // `nothing` is 0, but NaN if a class is out of range on CUDA, where this is no error. The
        // loss is then NaN, too.
        let nothing = counted
            .and_then(|counted| Ok(counted.f_mul_scalar(0.0)?))
            .map_err(|error| misfit(NAME, output, target, &error.to_string()))?;
        in_f32([output], |[logits]| {
            let kept = target.f_ne(IGNORED)?.f_unsqueeze(1)?;
            let places = Tensor::f_arange(sizes[1], (Kind::Int64, target.device()))?;
            let shape: Vec<i64> =
                (0..sizes.len()).map(|at| if at == 1 { sizes[1] } else { 1 }).collect();
            let one_hot = target.f_unsqueeze(1)?.f_eq_tensor(&places.f_reshape(&shape)?)?;
            let p = logits.f_softmax(1, logits.kind())?.f_mul(&kept)?;
            let p = p.f_add(&nothing.f_to_kind(p.kind())?)?;
            self.of(&p, &one_hot.f_to_kind(logits.kind())?, reduction)
        })
    }

    fn of(&self, p: &Tensor, t: &Tensor, reduction: Reduction) -> Result<Tensor> {
        let positions = 2..p.dim() as i64;
        let over: Vec<i64> =
            if self.batch { Some(0) } else { None }.into_iter().chain(positions).collect();
        let sum = |x: &Tensor| match over.is_empty() {
            // For an empty list of dimensions, libtorch would sum over all dimensions.
            true => Ok(x.shallow_clone()),
            false => x.f_sum_dim_intlist(over.as_slice(), false, x.kind()),
        };
        let shared = sum(&p.f_mul(t)?)?.f_mul_scalar(2.0)?.f_add_scalar(self.smooth)?;
        let all = sum(p)?.f_add(&sum(t)?)?.f_add_scalar(self.smooth)?;
        reduce(&shared.f_div(&all)?.f_neg()?.f_add_scalar(1.0)?, reduction)
    }
}

impl Loss for Dice {
    fn compute(&self, output: &Tensor, target: &Tensor) -> Result<Tensor> {
        self.reduced(output, target, Reduction::Mean)
    }

    fn mean_over(&self) -> MeanOver<'_> {
        match self.batch {
            true => MeanOver::Batch,
            false => MeanOver::Examples,
        }
    }
}

/// The focal loss of logits against probabilities y from 0 to 1 (Lin et al. 2017, torchvision's
/// `sigmoid_focal_loss`). It is α_t (1 − p_t)^γ times the binary cross entropy. Here p is the
/// sigmoid of the logit, p_t = p y + (1 − p)(1 − y), and α_t = α y + (1 − α)(1 − y). The mean is
/// over all elements.
///
/// ```
/// use amp_core::{loss::{Focal, Loss}, tch::Tensor};
///
/// // p_t = 1/2 for a logit of 0: α (1/2)^γ ln 2.
/// let (logits, labels) = (Tensor::from_slice(&[0.0_f64]), Tensor::from_slice(&[1.0_f64]));
/// let loss = Focal { alpha: 0.25, gamma: 2.0 }.compute(&logits, &labels)?.double_value(&[]);
/// assert!((loss - 0.25 * 0.25 * 2.0_f64.ln()).abs() < 1e-12);
/// # Ok::<(), amp_core::Error>(())
/// ```
///
/// # Errors
/// When the shapes differ, a dtype is not floating-point, or an option is out of range.
#[derive(Debug, Clone, Copy)]
pub struct Focal {
    /// The weight α of positive elements, from 0 to 1; negative elements have the weight 1 − α. A
    /// negative α means no weights. The default is 0.25.
    pub alpha: f64,
    /// The exponent γ, at least 0. The default is 2.
    pub gamma: f64,
}

impl Default for Focal {
    fn default() -> Self {
        Self { alpha: 0.25, gamma: 2.0 }
    }
}

impl Focal {
    /// Computes the loss with the given reduction. With `Reduction::None` the result is the loss of
    /// each element, in the shape of the output.
    ///
    /// # Errors
    /// When output, target or options are not as [`Focal`] requires.
    pub fn reduced(
        &self,
        output: &Tensor,
        target: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor> {
        const NAME: &str = "focal";
        option(NAME, "alpha", self.alpha, self.alpha <= 1.0, "at most 1")?;
        option(NAME, "gamma", self.gamma, self.gamma >= 0.0, "at least 0")?;
        let (output, target) = elementwise(NAME, output, target)?;
        in_f32([&output, &target], |[logits, y]| {
            let (p, none) = (logits.f_sigmoid()?, None::<Tensor>);
            let entropy = logits.f_binary_cross_entropy_with_logits(
                &y,
                none,
                None::<Tensor>,
                Reduction::None,
            )?;
            // 1 − p_t = p + y − 2 p y
            let wrong = p.f_add(&y)?.f_sub(&p.f_mul(&y)?.f_mul_scalar(2.0)?)?;
            let mut each = entropy.f_mul(&wrong.f_pow_tensor_scalar(self.gamma)?)?;
            if self.alpha >= 0.0 {
                let weight =
                    y.f_mul_scalar(2.0 * self.alpha - 1.0)?.f_add_scalar(1.0 - self.alpha)?;
                each = each.f_mul(&weight)?;
            }
            reduce(&each, reduction)
        })
    }
}

impl Loss for Focal {
    fn compute(&self, output: &Tensor, target: &Tensor) -> Result<Tensor> {
        self.reduced(output, target, Reduction::Mean)
    }

    fn mean_over(&self) -> MeanOver<'_> {
        MeanOver::Examples
    }
}
