//! A wrapper with which a metric of classes reads output and target like a loss with options.

use tch::{Kind, Tensor};

use super::{Metric, MetricState, Reduction, counts::as_floating};
use crate::{
    Result,
    loss::{ClassDim, IGNORED},
};

/// A wrapper with which a metric of classes reads output and target like a loss with the options
/// `ignore_index` and `classes`. The derive macro wraps metrics that do not have an option
/// `ignore_index`, and metrics for which `classes` names the dimension of the classes.
///
/// ```
/// use amp_core::{metric::{Accuracy, Metric, ReadAs}, tch::Tensor};
///
/// // The second example is wrong, and the third is ignored.
/// let logits = Tensor::from_slice(&[2.0_f32, 1.0, 2.0, 1.0, 2.0, 1.0]).view([3, 2]);
/// let classes = Tensor::from_slice(&[0_i64, 1, -1]);
/// let accuracy = ReadAs { ignore_index: -1, ..ReadAs::from(Accuracy) };
/// assert_eq!(accuracy.measure(&logits, &classes)?.double_value(&[]), 0.5);
/// # Ok::<(), amp_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct ReadAs<M> {
    /// The metric.
    pub metric: M,
    /// A class whose targets are ignored, in addition to -100.
    pub ignore_index: i64,
    /// The dimension that holds the classes if the shapes allow two readings.
    pub classes: ClassDim,
}

impl<M> From<M> for ReadAs<M> {
    fn from(metric: M) -> Self {
        Self { metric, ignore_index: IGNORED, classes: ClassDim::Either }
    }
}

impl<M: Metric> Metric for ReadAs<M> {
    fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
        let (output, target) = self.classes.resolve(output, target)?;
        if self.ignore_index == IGNORED {
            return self.metric.update(&output, &target);
        }
        let ignored = target.f_eq(self.ignore_index)?;
        // Labels 0 and 1 may have a dtype that cannot represent -100, such as bool. Such labels
        // become floating-point numbers.
        let target = if target.kind() == Kind::Int64 { target } else { as_floating(&target)? };
        self.metric.update(&output, &target.f_masked_fill(&ignored, IGNORED)?)
    }

    fn reduction(&self) -> Reduction {
        self.metric.reduction()
    }
}
