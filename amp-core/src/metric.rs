//! Metrics, computed on the device from counts that add up over batches.
//!
//! What the loss leaves out, they leave out: classes of -100 count nowhere. Logits and classes fit as in
//! [`loss::cross_entropy`](crate::loss::cross_entropy); shapes and dtypes that do not fit are errors.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{
    Result, ffi,
    loss::{IGNORED, classes, elementwise, misfit},
    precision::is_floating,
};

/// How an epoch's counts become the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Reduction {
    /// The one count over the weight.
    Mean,
    /// The first of two counts over the second.
    Ratio,
    /// F1 averaged over classes, from `[3, C]` counts: true positives, predicted, actual.
    MacroF1,
}

/// A metric of one batch.
pub trait Metric {
    /// Counts of one batch, f64 on the device, and their weight, known on the host.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    fn counts(&self, output: &Tensor, target: &Tensor) -> Result<(Tensor, f64)>;

    /// How counts become the metric.
    fn reduction(&self) -> Reduction {
        Reduction::Mean
    }
}

/// The fraction of examples whose largest logit is the target class. Classes of -100 do not count. On CUDA
/// a class out of range makes the epoch's value NaN.
///
/// For one logit an example, and for masks, see [`BinaryAccuracy`]; for targets that are probabilities
/// [`SoftAccuracy`].
#[derive(Debug, Clone, Copy)]
pub struct Accuracy;

impl Metric for Accuracy {
    fn counts(&self, output: &Tensor, target: &Tensor) -> Result<(Tensor, f64)> {
        const NAME: &str = "accuracy";
        let same = output.size() == target.size();
        if is_floating(target.kind()) && same && output.dim() > 1 {
            let why = "for probabilities of classes use soft_accuracy, for masks and several labels an \
                       example binary_accuracy";
            return Err(misfit(NAME, output, target, why));
        }
        let (logits, of) = classes(NAME, output, target)?;
        let counts = ffi::hits(&logits, &of);
        let counts = counts.map_err(|error| misfit(NAME, output, target, &error.to_string()))?;
        Ok((counts, target.numel() as f64))
    }

    fn reduction(&self) -> Reduction {
        Reduction::Ratio
    }
}

/// The fraction of examples whose largest logit is at the largest probability of the target, both
/// `[N, C, …]`, as of labels that were smoothed or mixed.
#[derive(Debug, Clone, Copy)]
pub struct SoftAccuracy;

impl Metric for SoftAccuracy {
    fn counts(&self, output: &Tensor, target: &Tensor) -> Result<(Tensor, f64)> {
        const NAME: &str = "soft_accuracy";
        let (logits, of) = elementwise(NAME, output, target)?;
        if logits.dim() < 2 || logits.size()[1] < 2 {
            let why = "both are [N, C, …] with at least two classes";
            return Err(misfit(NAME, output, target, why));
        }
        let hits = logits.f_argmax(1, false)?.f_eq_tensor(&of.f_argmax(1, false)?)?;
        Ok((hits.f_sum(Kind::Double)?, hits.numel() as f64))
    }
}

/// The fraction of elements whose logit is above 0 where the target is above ½, and not above 0 where it
/// is not; output and target have one shape. An element whose target is -100 does not count, and one whose
/// logit is NaN is no hit.
#[derive(Debug, Clone, Copy)]
pub struct BinaryAccuracy;

impl Metric for BinaryAccuracy {
    fn counts(&self, output: &Tensor, target: &Tensor) -> Result<(Tensor, f64)> {
        const NAME: &str = "binary_accuracy";
        let of = match is_floating(target.kind()) {
            true => target.shallow_clone(),
            false => target.f_to_kind(Kind::Float)?,
        };
        let (logits, of) = elementwise(NAME, output, &of)?;
        let counted = of.f_ne(IGNORED)?;
        let hits = logits.f_gt(0.0)?.f_eq_tensor(&of.f_gt(0.5)?)?;
        let hits = hits.f_logical_and(&logits.f_isnan()?.f_logical_not()?)?;
        let hits = hits.f_logical_and(&counted)?;
        let counts = [hits.f_sum(Kind::Double)?, counted.f_sum(Kind::Double)?];
        Ok((Tensor::f_stack(&counts, 0)?, target.numel() as f64))
    }

    fn reduction(&self) -> Reduction {
        Reduction::Ratio
    }
}

/// The fraction of examples whose target class is among the `k` largest logits. Classes of -100 do not
/// count.
#[derive(Debug, Clone, Copy)]
pub struct TopK {
    /// How many classes count.
    pub k: i64,
}

impl Metric for TopK {
    fn counts(&self, output: &Tensor, target: &Tensor) -> Result<(Tensor, f64)> {
        const NAME: &str = "top_k";
        let (logits, of) = classes(NAME, output, target)?;
        let classes = logits.size()[1];
        if !(1..=classes).contains(&self.k) {
            let why = format!("k is {}, but there are {classes} classes", self.k);
            return Err(misfit(NAME, output, target, &why));
        }
        let (_, best) = logits.f_topk(self.k, 1, true, false)?;
        let hits = best.f_eq_tensor(&of.f_unsqueeze(1)?)?.f_sum(Kind::Double)?;
        let counted = ffi::counted_classes(&of, classes);
        let counted = counted.map_err(|error| misfit(NAME, output, target, &error.to_string()))?;
        Ok((Tensor::f_stack(&[hits, counted], 0)?, target.numel() as f64))
    }

    fn reduction(&self) -> Reduction {
        Reduction::Ratio
    }
}

/// F1 = 2·TP / (predicted + actual), averaged over the classes that occur; 0 for one never hit. Examples
/// of class -100 do not count.
#[derive(Debug, Clone, Copy)]
pub struct F1 {
    /// Number of classes.
    pub num_classes: i64,
}

impl Metric for F1 {
    fn counts(&self, output: &Tensor, target: &Tensor) -> Result<(Tensor, f64)> {
        const NAME: &str = "f1";
        let (logits, of) = classes(NAME, output, target)?;
        let classes = logits.size()[1];
        if classes != self.num_classes {
            let why =
                format!("num_classes is {}, but there are {classes} logits", self.num_classes);
            return Err(misfit(NAME, output, target, &why));
        }
        let counted = ffi::counted_classes(&of, classes);
        let counted = counted.map_err(|error| misfit(NAME, output, target, &error.to_string()))?;
        let places = Tensor::f_arange(classes, (Kind::Int64, of.device()))?;
        let of = of.f_reshape([-1, 1])?;
        let actual = of.f_eq_tensor(&places)?;
        let predicted = logits.f_argmax(1, false)?.f_reshape([-1, 1])?.f_eq_tensor(&places)?;
        let predicted = predicted.f_logical_and(&of.f_ne(IGNORED)?)?;
        let per_class = |x: &Tensor| x.f_sum_dim_intlist([0_i64].as_slice(), false, Kind::Double);
        let hits = per_class(&predicted.f_logical_and(&actual)?)?;
        let counts = Tensor::f_stack(&[hits, per_class(&predicted)?, per_class(&actual)?], 0)?;
        // NaN where a class is out of range, otherwise 0.
        let counts = counts.f_add(&counted.f_mul_scalar(0.0)?)?;
        Ok((counts, target.numel() as f64))
    }

    fn reduction(&self) -> Reduction {
        Reduction::MacroF1
    }
}

/// The mean over examples of what a function makes of output and target (torchmetrics'
/// MeanMetric), as in `#[metric(mean, of = confidence, name = "confidence")]`.
#[derive(Debug, Clone, Copy)]
pub struct Mean<F> {
    /// One value per example, or per element of any shape.
    pub of: F,
}

impl<F: Fn(&Tensor, &Tensor) -> Result<Tensor>> Metric for Mean<F> {
    fn counts(&self, output: &Tensor, target: &Tensor) -> Result<(Tensor, f64)> {
        let values = (self.of)(output, target)?;
        let (count, examples) =
            (values.numel() as i64, output.size().first().copied().unwrap_or(1));
        if values.dim() == 0 || examples == 0 || count % examples != 0 {
            // Batches of another size would count as much.
            let why = format!(
                "its function gave {:?}, but must give one value for each example, or several",
                values.size()
            );
            return Err(misfit("mean", output, target, &why));
        }
        Ok((values.f_sum(Kind::Double)?, values.numel() as f64))
    }
}

impl Reduction {
    /// The metric of summed counts; NaN without any.
    pub fn compute(self, counts: &[f64], weight: f64) -> f64 {
        match self {
            Self::Mean => counts.first().copied().unwrap_or(0.0) / weight,
            Self::Ratio => {
                counts.first().copied().unwrap_or(0.0) / counts.get(1).copied().unwrap_or(0.0)
            }
            Self::MacroF1 => {
                let classes = counts.len() / 3;
                let scores: Vec<f64> = (0..classes)
                    .map(|c| (counts[c], counts[classes + c] + counts[2 * classes + c]))
                    // A NaN stays: it is no class without examples.
                    .filter(|(_, total)| *total != 0.0)
                    .map(|(hits, total)| 2.0 * hits / total)
                    .collect();
                scores.iter().sum::<f64>() / scores.len() as f64
            }
        }
    }
}
