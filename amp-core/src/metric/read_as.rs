//! A wrapper that gives a classification metric the options `ignore_index` and `classes` of a loss.

use tch::{Kind, Tensor};

use super::{Metric, MetricState, Mode, Reduction, counts::as_floating};
use crate::{
    Result,
    loss::{ClassDim, IGNORED},
};

/// A classification metric with the options `ignore_index` and `classes`, which have the same
/// meaning as in [`CrossEntropy`](crate::loss::CrossEntropy). The derive macro wraps a metric for
/// which one of these options is set, if the metric itself does not have the option.
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
    /// Targets of this class are ignored, as those of class -100 always are.
    pub ignore_index: i64,
    /// The dimension of the logits that holds the classes, for shapes in which it may be either the
    /// second or the last dimension.
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
        // Labels 0 and 1 of a dtype such as bool, which cannot represent -100, are converted to
        // floating-point numbers.
        let target = if target.kind() == Kind::Int64 { target } else { as_floating(&target)? };
        self.metric.update(&output, &target.f_masked_fill(&ignored, IGNORED)?)
    }

    fn reduction(&self) -> Reduction {
        self.metric.reduction()
    }

    fn mode(&self) -> Option<Mode> {
        self.metric.mode()
    }
}
