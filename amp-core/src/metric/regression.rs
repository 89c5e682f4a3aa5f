//! Metrics of regression, and perplexity.

use tch::{Kind, Reduction as Of, Tensor};

use super::{Metric, MetricState, Mode, Reduction};
use crate::{
    Result,
    loss::{IGNORED, classes, elementwise, misfit},
};

/// Checks that two tensors have the same shape, and converts them to f64.
pub(super) fn doubles(what: &str, output: &Tensor, target: &Tensor) -> Result<(Tensor, Tensor)> {
    let (x, y) = elementwise(what, output, target)?;
    Ok((x.f_to_kind(Kind::Double)?, y.f_to_kind(Kind::Double)?))
}

/// The mean absolute error |x − y| of outputs x and targets y over all elements. Both are
/// floating-point tensors of the same shape.
///
/// ```
/// use amp_core::{metric::{Mae, Metric}, tch::Tensor};
///
/// let (output, target) = (Tensor::from_slice(&[1.0_f32, 3.0]), Tensor::from_slice(&[0.0_f32, 0.0]));
/// assert_eq!(Mae.measure(&output, &target)?.double_value(&[]), 2.0);
/// # Ok::<(), amp_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Mae;

impl Metric for Mae {
    fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
        let (x, y) = doubles("mae", output, target)?;
        MetricState::mean(&x.f_sub(&y)?.f_abs()?.f_sum(Kind::Double)?, target.numel() as f64)
    }

    fn mode(&self) -> Option<Mode> {
        Some(Mode::Min)
    }
}

/// The mean squared error (x − y)² of outputs x and targets y over all elements. Both are
/// floating-point tensors of the same shape.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mse;

impl Metric for Mse {
    fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
        let (x, y) = doubles("mse", output, target)?;
        MetricState::mean(&x.f_sub(&y)?.f_square()?.f_sum(Kind::Double)?, target.numel() as f64)
    }

    fn mode(&self) -> Option<Mode> {
        Some(Mode::Min)
    }
}

/// The square root of the [mean squared error](Mse) over all batches. It has the unit of the
/// target.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rmse;

impl Metric for Rmse {
    fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
        let (x, y) = doubles("rmse", output, target)?;
        MetricState::sum(&sum_and_count(&x.f_sub(&y)?.f_square()?)?)
    }

    fn reduction(&self) -> Reduction {
        Reduction::of(|state| match state {
            [counts] => Ok(counts.f_get(0)?.f_div(&counts.f_get(1)?)?.f_sqrt()?),
            _ => Err(super::other_state(1, state)),
        })
    }

    fn mode(&self) -> Option<Mode> {
        Some(Mode::Min)
    }
}

/// Returns a tensor of two elements: the sum of the elements of `values`, and their number.
pub(super) fn sum_and_count(values: &Tensor) -> Result<Tensor> {
    let sum = values.f_sum(Kind::Double)?;
    Ok(Tensor::f_stack(&[&sum, &sum.f_full_like(values.numel() as f64)?], 0)?)
}

/// The coefficient of determination R² = 1 − Σ(x − y)² / Σ(y − ȳ)² of outputs x and targets y,
/// where ȳ is the mean of the targets. Both are floating-point tensors of shape `[N]` or `[N, D]`.
/// For the shape `[N, D]`, the value is the mean of the coefficients of the D columns.
///
/// If all targets of a column are equal, its coefficient is 1 if every output equals its target,
/// and otherwise 0. The value is NaN for fewer than two examples, or if an output or a target is
/// NaN.
///
/// ```
/// use amp_core::{metric::{Metric, R2}, tch::Tensor};
///
/// // Every output is the mean of the targets, so the outputs explain none of their variance.
/// let (output, target) = (Tensor::from_slice(&[2.0_f64, 2.0]), Tensor::from_slice(&[1.0_f64, 3.0]));
/// assert_eq!(R2.measure(&output, &target)?.double_value(&[]), 0.0);
/// # Ok::<(), amp_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct R2;

impl Metric for R2 {
    fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
        let (x, y) = doubles("r2", output, target)?;
        if !(1..=2).contains(&x.dim()) {
            return Err(misfit("r2", output, target, "both must be [N] or [N, D]"));
        }
        let examples = x.size()[0];
        let (x, y) = (x.f_reshape([examples, -1])?, y.f_reshape([examples, -1])?);
        let sum = |of: &Tensor| of.f_sum_dim_intlist([0].as_slice(), false, Kind::Double);
        let errors = sum(&x.f_sub(&y)?.f_square()?)?;
        let count = errors.f_full_like(examples as f64)?;
        MetricState::sum(&Tensor::f_stack(&[errors, sum(&y)?, sum(&y.f_square()?)?, count], 0)?)
    }

    fn reduction(&self) -> Reduction {
        Reduction::of(|state| {
            let [counts] = state else { return Err(super::other_state(1, state)) };
            let [errors, sum, squares, count] = [0, 1, 2, 3].map(|at| counts.f_get(at));
            let (errors, sum, squares, count) = (errors?, sum?, squares?, count?);
            let spread = squares.f_sub(&sum.f_square()?.f_div(&count)?)?.f_clamp_min(0.0)?;
            // If all targets are equal, rounding errors may make `spread` slightly larger than 0.
            let constant = spread.f_le_tensor(&squares.f_mul_scalar(1e-14)?)?;
            let exact = errors.f_eq(0.0)?.f_to_kind(Kind::Double)?;
            let exact = exact.f_masked_fill(&errors.f_isnan()?, f64::NAN)?;
            let each = errors.f_div(&spread)?.f_neg()?.f_add_scalar(1.0)?;
            let each = exact.f_where_self(&constant, &each)?;
            let each = each.f_masked_fill(&count.f_lt(2.0)?, f64::NAN)?;
            Ok(each.f_mean(Kind::Double)?)
        })
    }

    fn mode(&self) -> Option<Mode> {
        Some(Mode::Max)
    }
}

/// The perplexity: the exponential of the mean of `−log softmax(x)[y]`, for logits x and targets y,
/// over the targets that are not ignored. Logits and int64 classes have the shapes of
/// [`CrossEntropy`](crate::loss::CrossEntropy).
#[derive(Debug, Clone, Copy)]
pub struct Perplexity {
    /// Targets of this class are ignored, as those of class -100 always are.
    pub ignore_index: i64,
}

impl Default for Perplexity {
    fn default() -> Self {
        Self { ignore_index: IGNORED }
    }
}

impl Metric for Perplexity {
    fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
        const NAME: &str = "perplexity";
        let (logits, of) = classes(NAME, output, target)?;
        let of = match self.ignore_index {
            IGNORED => of,
            own => of.f_masked_fill(&of.f_eq(own)?, IGNORED)?,
        };
        let log = logits.f_log_softmax(1, Kind::Double)?;
        let sum = log
            .f_nll_loss_nd(&of, None::<Tensor>, Of::Sum, IGNORED)
            .map_err(|error| misfit(NAME, output, target, &error.to_string()))?;
        let count = of.f_ne(IGNORED)?.f_sum(Kind::Double)?;
        MetricState::sum(&Tensor::f_stack(&[sum.f_to_kind(Kind::Double)?, count], 0)?)
    }

    fn reduction(&self) -> Reduction {
        Reduction::of(|state| match state {
            [counts] => Ok(counts.f_get(0)?.f_div(&counts.f_get(1)?)?.f_exp()?),
            _ => Err(super::other_state(1, state)),
        })
    }

    fn mode(&self) -> Option<Mode> {
        Some(Mode::Min)
    }
}
