//! Accuracy metrics, the F1 score, and the mean of a user's function.

use tch::{Kind, Tensor};

use super::{
    Metric, MetricState, Mode, Reduction,
    counts::{as_floating, class_counts, have_nan, weights_of_elements},
    scores::{Average, Score},
};
use crate::{
    Result, ffi,
    loss::{IGNORED, classes, elementwise, misfit},
    precision::is_floating,
};

/// The fraction of examples in which the class with the largest logit is the target class. Targets
/// of class -100 are ignored. A NaN logit makes the value of the epoch NaN, and so does, on CUDA, a
/// class that is out of range.
///
/// If there is a single logit per example, or for masks, use [`BinaryAccuracy`]. If the targets are
/// probabilities, use [`SoftAccuracy`].
///
/// ```
/// use amp_core::{metric::{Accuracy, Metric}, tch::Tensor};
///
/// // The second example is wrong, and the third is ignored.
/// let logits = Tensor::from_slice(&[2.0_f32, 1.0, 2.0, 1.0, 2.0, 1.0]).view([3, 2]);
/// let classes = Tensor::from_slice(&[0_i64, 1, -100]);
/// assert_eq!(Accuracy.measure(&logits, &classes)?.double_value(&[]), 0.5);
/// # Ok::<(), amp_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Accuracy;

impl Metric for Accuracy {
    fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
        const NAME: &str = "accuracy";
        let same = output.size() == target.size();
        if is_floating(target.kind()) && same && output.dim() > 1 {
            let why = "for targets that are probabilities of classes use soft_accuracy, and for \
                       masks or several labels per example use binary_accuracy";
            return Err(misfit(NAME, output, target, why));
        }
        let (logits, of) = classes(NAME, output, target)?;
        let counts = ffi::correct_counts(&logits, &of);
        let counts = counts.map_err(|error| misfit(NAME, output, target, &error.to_string()))?;
        MetricState::sum(&counts)
    }

    fn reduction(&self) -> Reduction {
        Reduction::Ratio
    }

    fn mode(&self) -> Option<Mode> {
        Some(Mode::Max)
    }
}

/// The fraction of examples in which the class with the largest logit is the class with the largest
/// probability in the target. Output and target have the shape `[N, C, …]`. Use this metric if
/// labels are smoothed or mixed. A NaN in the output or the target makes the metric NaN.
#[derive(Debug, Clone, Copy, Default)]
pub struct SoftAccuracy;

impl Metric for SoftAccuracy {
    fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
        const NAME: &str = "soft_accuracy";
        if !is_floating(target.kind()) && output.dim() == target.dim() + 1 {
            let why = "the target must have a probability for each class; for targets that are \
                       classes use accuracy";
            return Err(misfit(NAME, output, target, why));
        }
        let (logits, of) = elementwise(NAME, output, target)?;
        if logits.dim() < 2 || logits.size()[1] < 2 {
            let why = "both must be [N, C, …] with at least two classes";
            return Err(misfit(NAME, output, target, why));
        }
        let nan = |of: &Tensor| of.f_amax([1].as_slice(), false)?.f_isnan();
        let nan = nan(&logits)?.f_logical_or(&nan(&of)?)?;
        let correct = logits.f_argmax(1, false)?.f_eq_tensor(&of.f_argmax(1, false)?)?;
        let correct = correct.f_to_kind(Kind::Double)?.f_masked_fill(&nan, f64::NAN)?;
        MetricState::mean(&correct.f_sum(Kind::Double)?, correct.numel() as f64)
    }

    fn mode(&self) -> Option<Mode> {
        Some(Mode::Max)
    }
}

/// The fraction of elements that are classified correctly: logit > 0 and target > ½, or logit ≤ 0
/// and target ≤ ½. Output and target have the same shape. An element with the target -100 is
/// ignored. A NaN logit or target makes the metric NaN.
///
/// ```
/// use amp_core::{metric::{BinaryAccuracy, Metric}, tch::Tensor};
///
/// let (logits, labels) = (Tensor::from_slice(&[2.0_f32, -1.0]), Tensor::from_slice(&[1_i64, 1]));
/// assert_eq!(BinaryAccuracy.measure(&logits, &labels)?.double_value(&[]), 0.5);
/// # Ok::<(), amp_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct BinaryAccuracy;

impl Metric for BinaryAccuracy {
    fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
        const NAME: &str = "binary_accuracy";
        let (logits, of) = elementwise(NAME, output, &as_floating(target)?)?;
        let counted = weights_of_elements(&logits, &of, &of.f_ne(IGNORED)?)?;
        let correct = logits.f_gt(0.0)?.f_eq_tensor(&of.f_gt(0.5)?)?;
        let correct = correct.f_to_kind(Kind::Double)?.f_mul(&counted)?;
        let counts = [correct.f_sum(Kind::Double)?, counted.f_sum(Kind::Double)?];
        MetricState::sum(&Tensor::f_stack(&counts, 0)?)
    }

    fn reduction(&self) -> Reduction {
        Reduction::Ratio
    }

    fn mode(&self) -> Option<Mode> {
        Some(Mode::Max)
    }
}

/// The fraction of examples in which the target class is among the classes with the `k` largest
/// logits. Targets of class -100 are ignored. A NaN logit makes the metric NaN.
///
/// ```
/// use amp_core::{metric::{Metric, TopK}, tch::Tensor};
///
/// let logits = Tensor::from_slice(&[3.0_f32, 2.0, 1.0, 3.0, 2.0, 1.0]).view([2, 3]);
/// let classes = Tensor::from_slice(&[1_i64, 2]);
/// assert_eq!(TopK { k: 2 }.measure(&logits, &classes)?.double_value(&[]), 0.5);
/// # Ok::<(), amp_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct TopK {
    /// The number k: the classes with the k largest logits count as predicted.
    pub k: i64,
}

impl Metric for TopK {
    fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
        const NAME: &str = "top_k";
        let (logits, of) = classes(NAME, output, target)?;
        let classes = logits.size()[1];
        if !(1..=classes).contains(&self.k) {
            let why = format!("k is {}, but there are {classes} classes", self.k);
            return Err(misfit(NAME, output, target, &why));
        }
        let (_, best) = logits.f_topk(self.k, 1, true, false)?;
        let correct = best.f_eq_tensor(&of.f_unsqueeze(1)?)?.f_sum(Kind::Double)?;
        let correct = correct.f_masked_fill(&have_nan(&logits, &of)?.f_any()?, f64::NAN)?;
        let counted = ffi::counted_classes(&of, classes);
        let counted = counted.map_err(|error| misfit(NAME, output, target, &error.to_string()))?;
        MetricState::sum(&Tensor::f_stack(&[correct, counted], 0)?)
    }

    fn reduction(&self) -> Reduction {
        Reduction::Ratio
    }

    fn mode(&self) -> Option<Mode> {
        Some(Mode::Max)
    }
}

/// The F1 score, averaged over the classes that occur in targets or predictions. The score of a
/// class is 2·TP / (P + T), where TP is the number of its correct predictions, P the number of its
/// predictions and T the number of its targets. The score of a class without a correct prediction
/// is 0. Targets of class -100 are ignored. [`FBeta`](super::FBeta) has other averages.
#[derive(Debug, Clone, Copy)]
pub struct F1 {
    /// The number of classes.
    pub num_classes: i64,
}

impl Metric for F1 {
    fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
        MetricState::sum(&class_counts("f1", output, target, Some(self.num_classes), IGNORED)?)
    }

    fn reduction(&self) -> Reduction {
        Score::FBeta(1.0).over_classes(Average::Macro, IGNORED)
    }

    fn mode(&self) -> Option<Mode> {
        Some(Mode::Max)
    }
}

/// The mean of a function of output and target over examples (torchmetrics' MeanMetric), as in
/// `#[metric(mean, of = confidence, name = "confidence")]`.
#[derive(Debug, Clone, Copy)]
pub struct Mean<F> {
    /// The function, which returns one value per example or per element, in any shape.
    pub of: F,
}

impl<F: Fn(&Tensor, &Tensor) -> Result<Tensor>> Metric for Mean<F> {
    fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
        let values = (self.of)(output, target)?;
        let (count, examples) =
            (values.numel() as i64, output.size().first().copied().unwrap_or(1));
        if values.dim() == 0 || examples == 0 || count % examples != 0 {
            // One value for the whole batch is an error. Otherwise small and large batches would
            // have equal weights in the mean.
            let why = format!(
                "the function returned {:?}, but must return one or several values for each \
                 example",
                values.size()
            );
            return Err(misfit("mean", output, target, &why));
        }
        MetricState::mean(&values.f_sum(Kind::Double)?, values.numel() as f64)
    }
}
