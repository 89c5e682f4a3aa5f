//! Metrics: what a model is judged by, computed on the device from a state that merges over batches.
//!
//! What the loss leaves out, they leave out: classes of -100 count nowhere. Logits and classes fit as in
//! [`loss::cross_entropy`](crate::loss::cross_entropy); shapes and dtypes that do not fit are errors. Values equal
//! torchmetrics' where something counts; where nothing does, or a class that the metric needs is missing, the value
//! is NaN, where torchmetrics has 0.
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
mod curves;
mod images;
mod regression;
mod retrieval;
mod scores;
mod state;

pub use classes::{Accuracy, BinaryAccuracy, F1, Mean, SoftAccuracy, TopK};
pub use curves::{Auroc, AveragePrecision};
pub use images::{Psnr, Ssim};
pub use regression::{Mae, Mse, Perplexity, R2, Rmse};
pub use retrieval::RecallAtK;
pub use scores::{
    Average, BinaryConfusionMatrix, BinaryFBeta, BinaryJaccard, BinaryPrecision, BinaryRecall,
    BinarySpecificity, ConfusionMatrix, FBeta, Jaccard, Precision, Recall, Specificity,
};
pub use state::MetricState;
pub(crate) use state::{Merge, Part};

use std::{fmt, sync::Arc};

use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// A metric with its options. Implement it for a metric of your own, and name the value in
/// `#[metric(with = …, name = …)]`.
pub trait Metric {
    /// What is kept of one batch. Nothing may be read back from the device here: a step that waits for it is slow,
    /// and no CUDA graph.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState>;

    /// How what is kept becomes the metric.
    fn reduction(&self) -> Reduction {
        Reduction::Mean
    }

    /// The metric of one batch.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    fn measure(&self, output: &Tensor, target: &Tensor) -> Result<Tensor> {
        self.reduction().compute(&self.update(output, target)?)
    }
}

/// A function from the merged tensors of a state to a metric.
type Compute = Arc<dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync>;

/// How what a metric has kept becomes its value.
#[derive(Clone)]
#[non_exhaustive]
pub enum Reduction {
    /// The one sum over the weight.
    Mean,
    /// The first of two sums over the second.
    Ratio,
    /// What a function makes of the merged tensors, in the order they were added: see [`Reduction::of`].
    Of(Compute),
}

impl Reduction {
    /// A function from the merged tensors, in the order they were added to the [state](MetricState), to the value: a
    /// number, or a tensor of any shape, which is logged element by element as `NAME_0`, or `NAME_0_1` of a matrix.
    /// Sums are on the host, rows on the device, from which it may read.
    pub fn of(compute: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static) -> Self {
        Self::Of(Arc::new(compute))
    }

    /// The metric of what was kept, f64 on the host; NaN where nothing was.
    ///
    /// # Errors
    /// When the device reports an earlier failure.
    pub fn compute(&self, state: &MetricState) -> Result<Tensor> {
        let on_host =
            |tensor: &Tensor| tensor.f_to_device_(Device::Cpu, Kind::Double, false, false);
        let mut tensors = state.tensors()?;
        // A GPU divides by a number through its reciprocal, and adds up in another order: in the last digit the value
        // would depend on where it is computed.
        for (tensor, part) in tensors.iter_mut().zip(&state.parts) {
            if part.merge == Merge::Sum {
                *tensor = on_host(tensor)?;
            }
        }
        let first = |what: &str| {
            let first = tensors.first();
            first.ok_or_else(|| {
                Error::config(format!("a {what} needs a sum, but the state is empty"))
            })
        };
        let value = match self {
            Self::Mean => first("mean")?.f_div_scalar(state.weight)?,
            Self::Ratio => {
                let counts = first("ratio")?;
                if counts.size() != [2] {
                    let sizes = counts.size();
                    return Err(Error::config(format!(
                        "a ratio needs two counts, [2], but the state has {sizes:?}"
                    )));
                }
                counts.f_get(0)?.f_div(&counts.f_get(1)?)?
            }
            Self::Of(compute) => tch::no_grad(|| compute(&tensors))?,
        };
        Ok(on_host(&value)?)
    }

    /// Its kind, as saved runs name it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Mean => "Mean",
            Self::Ratio => "Ratio",
            Self::Of(_) => "Of",
        }
    }

    /// The one of this kind, unless it is a function.
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

/// What is wrong with a state that another metric, or another version of this one, has kept.
fn other_state(expected: usize, state: &[Tensor]) -> Error {
    Error::config(format!(
        "the metric is computed from {expected} tensors, but {} were kept: another metric has its name",
        state.len()
    ))
}
