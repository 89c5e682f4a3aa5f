//! Metrics, computed on the device from counts that add up over batches.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{Result, ffi, loss::with_flat_classes};

/// How an epoch's counts become the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reduction {
    /// The one count over the weight.
    Mean,
    /// F1 averaged over classes, from `[3, C]` counts: true positives, predicted, actual.
    MacroF1,
}

/// A metric of one batch.
pub trait Metric {
    /// Counts of one batch, f64 on the device, and their weight, known on the host.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn counts(&self, output: &Tensor, target: &Tensor) -> Result<(Tensor, f64)>;

    /// How counts become the metric.
    fn reduction(&self) -> Reduction {
        Reduction::Mean
    }
}

/// The fraction of examples whose largest logit is the target class.
#[derive(Debug, Clone, Copy)]
pub struct Accuracy;

impl Metric for Accuracy {
    fn counts(&self, output: &Tensor, target: &Tensor) -> Result<(Tensor, f64)> {
        with_flat_classes(output, target, |output, target| {
            Ok((ffi::hits(output, target)?, target.numel() as f64))
        })
    }
}

/// The fraction of examples whose target class is among the `k` largest logits.
#[derive(Debug, Clone, Copy)]
pub struct TopK {
    /// How many classes count.
    pub k: i64,
}

impl Metric for TopK {
    fn counts(&self, output: &Tensor, target: &Tensor) -> Result<(Tensor, f64)> {
        with_flat_classes(output, target, |output, target| {
            let (_, best) = output.f_topk(self.k, 1, true, false)?;
            let hits = best.f_eq_tensor(&target.f_unsqueeze(1)?)?;
            Ok((hits.f_sum(Kind::Double)?, target.numel() as f64))
        })
    }
}

/// F1 = 2·TP / (predicted + actual), averaged over the classes that occur; 0 for one never hit.
#[derive(Debug, Clone, Copy)]
pub struct F1 {
    /// Number of classes.
    pub num_classes: i64,
}

impl Metric for F1 {
    fn counts(&self, output: &Tensor, target: &Tensor) -> Result<(Tensor, f64)> {
        with_flat_classes(output, target, |output, target| {
            let predicted = output.f_argmax(1, false)?.f_one_hot(self.num_classes)?;
            let actual = target.f_one_hot(self.num_classes)?;
            let per_class =
                |x: &Tensor| x.f_sum_dim_intlist([0_i64].as_slice(), false, Kind::Double);
            let hits = per_class(&predicted.f_mul(&actual)?)?;
            let counts = Tensor::f_stack(&[hits, per_class(&predicted)?, per_class(&actual)?], 0)?;
            Ok((counts, target.numel() as f64))
        })
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
        Ok((values.f_sum(Kind::Double)?, values.numel() as f64))
    }
}

impl Reduction {
    /// The metric of summed counts; NaN without any.
    pub fn compute(self, counts: &[f64], weight: f64) -> f64 {
        match self {
            Self::Mean => counts.first().copied().unwrap_or(0.0) / weight,
            Self::MacroF1 => {
                let classes = counts.len() / 3;
                let scores: Vec<f64> = (0..classes)
                    .map(|c| (counts[c], counts[classes + c] + counts[2 * classes + c]))
                    .filter(|(_, total)| *total > 0.0)
                    .map(|(hits, total)| 2.0 * hits / total)
                    .collect();
                scores.iter().sum::<f64>() / scores.len() as f64
            }
        }
    }
}
