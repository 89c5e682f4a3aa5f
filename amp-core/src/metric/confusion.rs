//! Confusion matrices.

use tch::{Kind, Tensor};

use super::{
    Metric, MetricState, Reduction,
    counts::{binary_counts, predictions},
};
use crate::{Result, loss::IGNORED};

/// The confusion matrix of classes. `NAME_i_j` is logged for each entry: the number of targets of
/// class i that are predicted as class j. Logits have the shape `[N, C, …]` and int64 classes the
/// shape `[N, …]`.
#[derive(Debug, Clone, Copy)]
pub struct ConfusionMatrix {
    /// Targets of this class are ignored, as those of class -100 always are.
    pub ignore_index: i64,
    /// The number of classes. If it is given, the output must have this number of classes.
    pub num_classes: Option<i64>,
}

impl Default for ConfusionMatrix {
    fn default() -> Self {
        Self { ignore_index: IGNORED, num_classes: None }
    }
}

impl Metric for ConfusionMatrix {
    fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
        let Self { num_classes, ignore_index } = *self;
        let (predicted, of, kept, classes) =
            predictions("confusion_matrix", output, target, num_classes, ignore_index)?;
        let places = of.f_mul_scalar(classes)?.f_add(&predicted)?;
        // If a logit is NaN, its predicted class is unknown, so all counts are NaN.
        let all = kept.f_sum(Kind::Double)?.f_mul_scalar(0.0)?;
        let all = all.f_expand([classes * classes], false)?.f_contiguous()?;
        MetricState::sum(&all.f_index_add(0, &places, &kept)?.f_reshape([classes, classes])?)
    }

    fn reduction(&self) -> Reduction {
        Reduction::of(|state| match state {
            [counts] => Ok(counts.shallow_clone()),
            _ => Err(super::other_state(1, state)),
        })
    }
}

/// The confusion matrix of the labels 0 and 1. `NAME_i_j` is logged for each entry: the number of
/// elements with label i that are predicted as j. Logits and labels have the same shape.
#[derive(Debug, Clone, Copy)]
pub struct BinaryConfusionMatrix {
    /// The probability above which a prediction is 1. The default is ½.
    pub threshold: f64,
    /// Elements with this label are ignored, as those with label -100 always are.
    pub ignore_index: i64,
}

impl Default for BinaryConfusionMatrix {
    fn default() -> Self {
        Self { threshold: 0.5, ignore_index: IGNORED }
    }
}

impl Metric for BinaryConfusionMatrix {
    fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
        let Self { threshold, ignore_index } = *self;
        let counts =
            binary_counts("binary_confusion_matrix", output, target, threshold, ignore_index)?;
        // The entries 0_0, 0_1, 1_0 and 1_1: true negatives, false positives, false negatives and
        // true positives.
        let order = Tensor::f_stack(
            &[counts.f_get(2)?, counts.f_get(1)?, counts.f_get(3)?, counts.f_get(0)?],
            0,
        )?;
        MetricState::sum(&order.f_reshape([2, 2])?)
    }

    fn reduction(&self) -> Reduction {
        ConfusionMatrix::default().reduction()
    }
}
