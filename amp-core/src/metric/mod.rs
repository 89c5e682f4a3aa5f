//! Metrics. For each batch, a metric computes a state (for example counts) on the device. The
//! states of all batches are merged, and the metric's value is computed from the merged state.
//!
//! Metrics ignore the same targets as the loss: those of class -100, and in a model that derives
//! `LightningModule` also those of the loss's `ignore_index`. Logits and classes have the shapes
//! that [`loss::cross_entropy`](crate::loss::cross_entropy) accepts; other shapes and dtypes are
//! errors.
//!
//! The values equal those of torchmetrics, with three differences. If all targets are ignored, or a
//! class that the metric needs does not occur, for example the positives of [`Auroc`], the value is
//! NaN, where torchmetrics returns 0. The mean over classes or labels (`macro`) of a curve's area,
//! such as [`Auroc`], leaves out the classes without targets. torchmetrics counts them as 0 in the
//! mean of [`Auroc`], and in that of [`AveragePrecision`] if thresholds are given. If an output or a
//! target that is not ignored is NaN, the value is NaN, where many metrics of torchmetrics return a
//! number.
//!
//! ```
//! use amp_core::{metric::{FBeta, Metric}, tch::Tensor};
//!
//! # fn main() -> amp_core::Result<()> {
//! let f2 = FBeta { beta: 2.0, ..Default::default() };
//! let logits = Tensor::from_slice(&[2.0, 0.0, 0.0, 1.0, 3.0, 0.0]).view([3, 2]);
//! let mut state = f2.update(&logits, &Tensor::from_slice(&[0_i64, 1, 1]))?;
//! state.merge(&f2.update(&logits, &Tensor::from_slice(&[0_i64, 1, 0]))?)?;
//! let value = f2.reduction().compute(&state)?;
//! assert!((value.double_value(&[]) - 0.8259).abs() < 1e-4);
//! # Ok(())
//! # }
//! ```

mod classes;
mod confusion;
mod counts;
mod curves;
mod dice;
mod images;
mod read_as;
mod regression;
mod retrieval;
mod scores;
mod state;

pub use classes::{Accuracy, BinaryAccuracy, F1, Mean, SoftAccuracy, TopK};
pub use confusion::{BinaryConfusionMatrix, ConfusionMatrix};
pub use curves::{Auroc, AveragePrecision, MultilabelAuroc, MultilabelAveragePrecision};
pub use dice::Dice;
pub use images::{Psnr, Ssim};
pub use read_as::ReadAs;
pub use regression::{Mae, Mse, Perplexity, R2, Rmse};
pub use retrieval::RecallAtK;
pub use scores::{
    Average, BinaryFBeta, BinaryJaccard, BinaryPrecision, BinaryRecall, BinarySpecificity, FBeta,
    Jaccard, MultilabelFBeta, MultilabelJaccard, MultilabelPrecision, MultilabelRecall,
    MultilabelSpecificity, Precision, Recall, Specificity,
};
pub use state::MetricState;
pub(crate) use state::{Merge, Part};

use std::{fmt, sync::Arc};

use tch::{Device, Kind, Tensor};

use crate::{Error, Result, monitor::Mode};

/// A metric with its options. To use your own metric, implement this trait, and name the metric in
/// `#[metric(with = …, name = …)]`.
///
/// ```
/// use amp_core::{Result, metric::{Metric, MetricState}, tch::{Kind, Tensor}};
///
/// /// The share of examples whose error is at most 1/2.
/// struct Close;
///
/// impl Metric for Close {
///     fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
///         let close = output.f_sub(target)?.f_abs()?.f_le(0.5)?;
///         MetricState::mean(&close.f_sum(Kind::Double)?, close.numel() as f64)
///     }
/// }
///
/// let (output, target) = (Tensor::from_slice(&[0.2_f32, 3.0]), Tensor::from_slice(&[0.0_f32, 0.0]));
/// assert_eq!(Close.measure(&output, &target)?.double_value(&[]), 0.5);
/// # Ok::<(), amp_core::Error>(())
/// ```
pub trait Metric {
    /// Computes the state of one batch. Do not read values back from the device here: the step
    /// would wait, and could not run as a CUDA graph.
    ///
    /// # Errors
    /// When shapes or dtypes are invalid.
    fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState>;

    /// Returns how the metric's value is computed from the merged state.
    fn reduction(&self) -> Reduction {
        Reduction::Mean
    }

    /// Returns whether smaller or larger values of the metric are better, for early stopping.
    /// `None`, the default, means that the metric does not say it.
    fn mode(&self) -> Option<Mode> {
        None
    }

    /// Computes the metric's value for a single batch.
    ///
    /// # Errors
    /// When shapes or dtypes are invalid.
    fn measure(&self, output: &Tensor, target: &Tensor) -> Result<Tensor> {
        self.reduction().compute(&self.update(output, target)?)
    }
}

/// A function that computes a metric's value from the merged tensors of its state.
type Compute = Arc<dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync>;

/// How the value of a metric is computed from its state.
#[derive(Clone)]
#[non_exhaustive]
pub enum Reduction {
    /// The sum in the state, divided by the state's weight. [`MetricState::mean`] makes such a
    /// state.
    Mean,
    /// The first of the state's two sums, divided by the second. The state has one tensor that
    /// contains both sums, for example `MetricState::sum(&Tensor::f_stack(&[errors, known], 0)?)`.
    Ratio,
    /// The result of a function of the state's merged tensors; see [`Reduction::of`].
    Of(Compute),
}

impl Reduction {
    /// Makes a reduction from a function that computes the metric's value from the merged tensors
    /// of all batches. The tensors have the order in which they were added to the
    /// [state](MetricState).
    ///
    /// The value is a number, or a tensor of any shape. The elements of a vector are logged as
    /// `NAME_0` and so on, and those of a matrix as `NAME_0_1` and so on. Sums are on the host when
    /// the function gets them. Concatenated rows are on the device, and the function may read them
    /// back.
    pub fn of(compute: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static) -> Self {
        Self::Of(Arc::new(compute))
    }

    /// Computes the metric's value from its state, as f64 on the host. For [`Mean`](Self::Mean) and
    /// [`Ratio`](Self::Ratio), the value of a state without examples is NaN.
    ///
    /// # Errors
    /// When the state lacks the sums that the reduction needs, the function of the reduction fails,
    /// or an earlier operation on the device failed.
    pub fn compute(&self, state: &MetricState) -> Result<Tensor> {
        let on_host =
            |tensor: &Tensor| tensor.f_to_device_(Device::Cpu, Kind::Double, false, false);
        let mut tensors = state.tensors()?;
        // Moves sums to the host, so that the last digit of the value is the same for CPU and GPU.
        // On a GPU, libtorch divides by multiplying by the reciprocal, and adds numbers in another
        // order than on the CPU.
        for (tensor, part) in tensors.iter_mut().zip(&state.parts) {
            if part.merge == Merge::Sum {
                *tensor = on_host(tensor)?;
            }
        }
        let first = |what: &str| {
            let first = tensors.first();
            first.ok_or_else(|| {
                Error::config(format!("a {what} needs a sum, but the metric's state is empty"))
            })
        };
        let value = match self {
            Self::Mean => first("mean")?.f_div_scalar(state.weight)?,
            Self::Ratio => {
                let counts = first("ratio")?;
                if counts.size() != [2] {
                    let sizes = counts.size();
                    return Err(Error::config(format!(
                        "a ratio needs a tensor of two sums, but the state's tensor has the shape \
                          {sizes:?}"
                    )));
                }
                counts.f_get(0)?.f_div(&counts.f_get(1)?)?
            }
            Self::Of(compute) => tch::no_grad(|| compute(&tensors))?,
        };
        Ok(on_host(&value)?)
    }

    /// Returns the name that stands for this kind of reduction in saved runs.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Mean => "Mean",
            Self::Ratio => "Ratio",
            Self::Of(_) => "Of",
        }
    }

    /// Returns the reduction with this name; `None` for a reduction by a function, because
    /// functions cannot be saved.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "Mean" => Some(Self::Mean),
            "Ratio" => Some(Self::Ratio),
            _ => None,
        }
    }
}

impl fmt::Debug for Reduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Builds the error for a state that does not have the `expected` number of tensors, for example
/// because another metric of the same name saved it in a checkpoint.
fn other_state(expected: usize, state: &[Tensor]) -> Error {
    Error::config(format!(
        "the metric is computed from {expected} tensors, but its state has {}: another metric has the same name; rename one of them",
        state.len()
    ))
}
