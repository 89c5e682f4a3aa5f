//! Areas under the ROC curve and the precision-recall curve.

use tch::{Kind, Tensor};

use super::{
    Average, Metric, MetricState, Mode, Reduction,
    counts::{as_floating, rows_of_labels},
};
use crate::{
    Error, Result, ffi,
    loss::{IGNORED, classes, elementwise, misfit},
    precision::f32_or_f64,
};

/// The curve under which the area is computed.
#[derive(Debug, Clone, Copy)]
enum Area {
    Roc,
    PrecisionRecall,
}

macro_rules! curve {
    (
        $(#[$doc:meta])* $metric:ident $name:literal,
        $of_labels:ident $label_name:literal,
        $area:expr
    ) => {
        $(#[$doc])*
        ///
        /// For logits of shape `[N, C, …]` and int64 classes of shape `[N, …]`, the score of a
        /// class is its softmax probability, and the areas of all classes that occur in the targets
        /// are averaged. For labels 0 and 1 in the shape of the logits, there is one area over all
        /// elements. Targets that are -100 are ignored. The area is NaN if a logit or a label is
        /// NaN. It is also NaN if no label is positive or, for [`Auroc`], if no label is negative.
        ///
        /// If `thresholds` is `None`, the area is exact, and the scores of all examples stay on the
        /// device until the end of the epoch. If `thresholds` is a number T, the curve has T
        /// points, at the thresholds 0, 1/(T−1), …, 1. The device then keeps only 2 (T + 1) counts
        /// for each class.
        ///
        /// # Errors
        /// When shapes or dtypes are invalid, or a class on the CPU or an option is out of range.
        /// When each example has several labels and `average` is not [`Average::Micro`].
        #[derive(Debug, Clone, Copy, Default)]
        pub struct $metric {
            /// How the areas of the classes are averaged. The default is [`Average::Macro`]. If
            /// each example has several labels 0 and 1, only [`Average::Micro`] is possible: one
            /// area over all labels. If each example has one label 0 or 1, the option has no
            /// effect.
            pub average: Average,
            /// T, the number of thresholds, at least 2.
            pub thresholds: Option<i64>,
        }

        impl Metric for $metric {
            fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
                let Self { average, thresholds } = *self;
                let (scores, labels) = match of_classes(output, target) {
                    true => classes_of($name, average, output, target)?,
                    false => {
                        let labels = output.size().get(1).copied().unwrap_or(1);
                        if labels > 1 && average != Average::Micro {
                            let why = format!(
                                concat!(
                                    "each example has {} labels: use ", $label_name,
                                    " for an average over the labels, or average = micro for ",
                                    "one area of all labels together"
                                ),
                                labels
                            );
                            return Err(misfit($name, output, target, &why));
                        }
                        let (scores, labels) = scores_of_labels($name, thresholds, output, target)?;
                        (scores.f_reshape([-1, 1])?, labels.f_reshape([-1])?)
                    }
                };
                state($name, thresholds, [output, target], &scores, &labels)
            }

            fn reduction(&self) -> Reduction {
                let Self { average, thresholds } = *self;
                Reduction::of(move |state| compute($area, average, thresholds, state))
            }

            fn mode(&self) -> Option<Mode> {
                Some(Mode::Max)
            }
        }

        $(#[$doc])*
        ///
        /// Logits and labels have the shape `[N, C, …]`, with C labels per example, each with its
        /// own area. Labels are 0 or 1, as integers or floating-point numbers. Elements with label
        /// -100 are ignored. The area of a label without positives, or for [`MultilabelAuroc`]
        /// without negatives, is NaN and is left out of averages. A NaN logit or label makes the
        /// area NaN. `thresholds` has the same meaning as in [`Auroc`].
        ///
        /// # Errors
        /// When shapes or dtypes are invalid, or an option is out of range.
        #[derive(Debug, Clone, Copy, Default)]
        pub struct $of_labels {
            /// How the areas of the labels are averaged. The default is [`Average::Macro`].
            pub average: Average,
            /// T, the number of thresholds, at least 2.
            pub thresholds: Option<i64>,
        }

        impl Metric for $of_labels {
            fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
                let Self { average, thresholds } = *self;
                let (scores, labels) = scores_of_labels($label_name, thresholds, output, target)?;
                let rows = |values| rows_of_labels($label_name, output, target, values);
                let (scores, labels) = (rows(&scores)?, rows(&labels)?);
                let (scores, labels) = match average {
                    Average::Micro => (scores.f_reshape([-1, 1])?, labels.f_reshape([-1, 1])?),
                    _ => (scores, labels),
                };
                state($label_name, thresholds, [output, target], &scores, &labels)
            }

            fn reduction(&self) -> Reduction {
                let Self { average, thresholds } = *self;
                Reduction::of(move |state| compute($area, average, thresholds, state))
            }

            fn mode(&self) -> Option<Mode> {
                Some(Mode::Max)
            }
        }
    };
}

curve!(
    /// The area under the receiver operating characteristic (ROC). It is the probability that a
    /// positive example has a larger score than a negative example, where equal scores count half.
    Auroc "auroc",
    MultilabelAuroc "multilabel_auroc",
    Area::Roc
);
curve!(
    /// The average precision, Σ (Rᵢ − Rᵢ₋₁) Pᵢ. Rᵢ and Pᵢ are recall and precision at the i-th
    /// threshold, from the highest threshold to the lowest.
    AveragePrecision "average_precision",
    MultilabelAveragePrecision "multilabel_average_precision",
    Area::PrecisionRecall
);

/// Returns whether the targets are classes, and not labels 0 and 1 in the shape of the logits.
fn of_classes(output: &Tensor, target: &Tensor) -> bool {
    target.kind() == Kind::Int64 && target.size() != output.size()
}

/// Returns the softmax probabilities, of shape `[n, C]`, and the int64 classes, of shape `[n]`,
/// where n is the number of targets.
fn classes_of(
    what: &str,
    average: Average,
    output: &Tensor,
    target: &Tensor,
) -> Result<(Tensor, Tensor)> {
    if average == Average::Micro {
        let why = "average is micro, but must be macro, weighted or none";
        return Err(misfit(what, output, target, why));
    }
    let (logits, of) = classes(what, output, target)?;
    let count = logits.size()[1];
    let counted = ffi::counted_classes(&of, count);
    let counted = counted.map_err(|error| misfit(what, output, target, &error.to_string()))?;
    let kind = f32_or_f64(logits.kind());
    // `nothing` is 0, but NaN if a class is out of range on CUDA, where this is no error. All
    // scores are then NaN, too.
    let nothing = counted.f_mul_scalar(0.0)?.f_to_kind(kind)?;
    let scores = logits.f_softmax(1, kind)?.f_add(&nothing)?;
    let scores = scores.f_movedim([1].as_slice(), [-1].as_slice())?.f_reshape([-1, count])?;
    Ok((scores, of.f_reshape([-1])?))
}

/// Returns the scores and the int64 labels (0, 1, or -100 for an ignored element), both in the shape
/// of the logits.
fn scores_of_labels(
    what: &str,
    thresholds: Option<i64>,
    output: &Tensor,
    target: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let (logits, of) = elementwise(what, output, &as_floating(target)?)?;
    let kind = f32_or_f64(logits.kind());
    let label = of.f_gt(0.5)?.f_to_kind(Kind::Int64)?;
    let label = label.f_masked_fill(&of.f_eq(IGNORED)?, IGNORED)?;
    // An element with a NaN label gets a NaN score, so that the area is NaN.
    let logits = logits.f_to_kind(kind)?.f_masked_fill(&of.f_isnan()?, f64::NAN)?;
    // Sigmoids of different large logits are equal in floating point, so the logits
    // themselves are compared. Sigmoids are used only with given thresholds.
    Ok((if thresholds.is_some() { logits.f_sigmoid()? } else { logits }, label))
}

/// Computes the metric's state for a batch from scores of shape `[n, C]` and int64 labels. The
/// labels are classes of shape `[n]`, or 0 and 1 of shape `[n, C]`, or of shape `[n]` if C is 1.
/// Labels that are -100 are ignored.
///
/// Without thresholds, the state consists of the scores and the labels. With T thresholds, the
/// state consists of counts of shape `[C, T + 1, 2]`. Element `[c, k]` contains the number of
/// negatives and the number of positives of column c whose scores reach exactly k thresholds.
fn state(
    what: &str,
    thresholds: Option<i64>,
    [output, target]: [&Tensor; 2],
    scores: &Tensor,
    labels: &Tensor,
) -> Result<MetricState> {
    let Some(count) = thresholds else {
        return Ok(MetricState::concat(scores).and_concat(labels));
    };
    if count < 2 {
        let why = format!("thresholds is {count}, but must be at least 2");
        return Err(misfit(what, output, target, &why));
    }
    let columns = scores.size()[1];
    let bins = count + 1;
    let edges = Tensor::f_linspace(0.0, 1.0, count, (scores.kind(), scores.device()))?;
    let reached = scores.f_contiguous()?.f_bucketize(&edges, false, true)?;
    let positive = positives(labels, columns)?.f_to_kind(Kind::Int64)?;
    let of_column =
        Tensor::f_arange(columns, (Kind::Int64, scores.device()))?.f_mul_scalar(bins)?;
    let places = reached.f_add(&of_column)?.f_mul_scalar(2)?.f_add(&positive)?.f_reshape([-1])?;
    let kept = kept(labels)?.f_expand(scores.size(), false)?;
    // A NaN score adds NaN instead of 1 to its count, so that the metric is NaN.
    let nan = scores.f_isnan()?.f_logical_and(&kept)?;
    let kept = kept.f_to_kind(Kind::Double)?.f_masked_fill(&nan, f64::NAN)?;
    let counts = Tensor::f_zeros([columns * bins * 2], (Kind::Double, scores.device()))?;
    let counts = counts.f_index_add(0, &places, &kept.f_reshape([-1])?)?;
    MetricState::sum(&counts.f_reshape([columns, bins, 2])?)
}

/// Returns a mask of the labels that are not ignored, of shape `[n, C]`, or `[n, 1]` for one label
/// per row.
fn kept(labels: &Tensor) -> Result<Tensor> {
    let kept = labels.f_ne(IGNORED)?;
    if labels.dim() == 1 { Ok(kept.f_unsqueeze(1)?) } else { Ok(kept) }
}

/// Returns a mask of shape `[n, C]`. For labels `[n, C]`, it is true where the label is 1. For
/// labels `[n]`, it is true in the column of each row's label or, if C is 1, in the rows with label
/// 1.
fn positives(labels: &Tensor, columns: i64) -> Result<Tensor> {
    if labels.dim() == 2 {
        return Ok(labels.f_eq(1)?);
    }
    let labels = labels.f_unsqueeze(1)?;
    match columns {
        1 => Ok(labels.f_eq(1)?),
        _ => Ok(labels.f_eq_tensor(&Tensor::f_arange(columns, (Kind::Int64, labels.device()))?)?),
    }
}

fn compute(
    area: Area,
    average: Average,
    thresholds: Option<i64>,
    state: &[Tensor],
) -> Result<Tensor> {
    let curves = match (thresholds, state) {
        (None, [scores, labels]) => exact(scores, labels)?,
        (Some(_), [counts]) => binned(counts)?,
        (None, _) => return Err(super::other_state(2, state)),
        (Some(_), _) => return Err(super::other_state(1, state)),
    };
    let mut areas = Vec::with_capacity(curves.len());
    let mut positives = Vec::with_capacity(curves.len());
    for curve in &curves {
        areas.push(curve.area(area)?);
        positives.push(curve.positives());
    }
    if let [one] = areas.as_slice() {
        return Ok(Tensor::from(*one));
    }
    // A class without positives or, for the ROC curve, without negatives is left out of the
    // average.
    let present: Vec<usize> =
        (0..areas.len()).filter(|at| !curves[*at].is_undefined(area)).collect();
    let weight = |at: usize| if average == Average::Weighted { positives[at] } else { 1.0 };
    let all: f64 = present.iter().map(|at| weight(*at)).sum();
    match average {
        Average::None => Ok(Tensor::from_slice(&areas)),
        _ => Ok(Tensor::from(present.iter().map(|at| weight(*at) * areas[*at]).sum::<f64>() / all)),
    }
}

/// The points of a curve, one for each threshold, from the highest to the lowest. A point consists
/// of the number of positives and the number of negatives whose scores are at or above the
/// threshold. The last point counts all positives and negatives.
struct Curve {
    tp: Vec<f64>,
    fp: Vec<f64>,
    /// Whether the curve is computed from counts at given thresholds.
    binned: bool,
}

impl Curve {
    fn positives(&self) -> f64 {
        self.tp.last().copied().unwrap_or(0.0)
    }

    fn negatives(&self) -> f64 {
        self.fp.last().copied().unwrap_or(0.0)
    }

    /// Returns whether the curve has no area, because there are no positives or, for the ROC curve,
    /// no negatives. Returns false if a count is NaN: such a curve is not left out of averages, but
    /// makes them NaN.
    fn is_undefined(&self, area: Area) -> bool {
        let (positives, negatives) = (self.positives(), self.negatives());
        let is_empty = positives == 0.0 || matches!(area, Area::Roc) && negatives == 0.0;
        is_empty && !positives.is_nan() && !negatives.is_nan()
    }

    fn area(&self, area: Area) -> Result<f64> {
        let (positives, negatives) = (self.positives(), self.negatives());
        if self.is_undefined(area) {
            return Ok(f64::NAN);
        }
        let mut sum = 0.0;
        // As in torchmetrics, a ROC curve at given thresholds begins with the counts at the highest
        // threshold. All other curves begin with zero positives and zero negatives.
        let first = match (area, self.binned) {
            (Area::Roc, true) => (self.tp[0], self.fp[0]),
            _ => (0.0, 0.0),
        };
        let (mut tp, mut fp) = first;
        for (own_tp, own_fp) in self.tp.iter().zip(&self.fp) {
            sum += match area {
                Area::Roc => (own_fp - fp) * (own_tp + tp) / 2.0,
                Area::PrecisionRecall if own_tp + own_fp == 0.0 => 0.0,
                Area::PrecisionRecall => (own_tp - tp) * own_tp / (own_tp + own_fp),
            };
            (tp, fp) = (*own_tp, *own_fp);
        }
        Ok(match area {
            Area::Roc => sum / (positives * negatives),
            Area::PrecisionRecall => sum / positives,
        })
    }
}

/// Computes a curve for each column of scores. A curve has a point for every distinct score.
fn exact(scores: &Tensor, labels: &Tensor) -> Result<Vec<Curve>> {
    let positive = positives(labels, scores.size()[1])?.f_to_kind(Kind::Double)?;
    let kept = kept(labels)?.f_expand(scores.size(), false)?.f_to_kind(Kind::Double)?;
    let columns = 0..scores.size()[1];
    let curves = columns.map(|column| {
        let (own, kept) = (scores.f_select(1, column)?, kept.f_select(1, column)?);
        // The score of an ignored example may be NaN, which must not make the area NaN.
        let own = own.f_masked_fill(&kept.f_eq(0.0)?, f64::NEG_INFINITY)?;
        let (sorted, order) = own.f_sort(0, true)?;
        let of = positive.f_select(1, column)?.f_mul(&kept)?.f_index_select(0, &order)?;
        let all = kept.f_index_select(0, &order)?;
        let (tp, all) = (of.f_cumsum(0, Kind::Double)?, all.f_cumsum(0, Kind::Double)?);
        let host = |tensor: Tensor| {
            Ok::<_, Error>(Vec::<f64>::try_from(&tensor.f_to_kind(Kind::Double)?)?)
        };
        let (sorted, tp, all) = (host(sorted)?, host(tp)?, host(all)?);
        let mut curve = Curve { tp: Vec::new(), fp: Vec::new(), binned: false };
        for at in 0..sorted.len() {
            if at + 1 == sorted.len() || sorted[at + 1] != sorted[at] {
                curve.tp.push(tp[at]);
                curve.fp.push(all[at] - tp[at]);
            }
        }
        if sorted.iter().any(|score| score.is_nan()) {
            curve.tp = vec![f64::NAN];
            curve.fp = vec![f64::NAN];
        }
        Ok(curve)
    });
    curves.collect()
}

/// Makes a curve for each class from counts of shape `[C, T + 1, 2]`, where T is the number of
/// thresholds.
fn binned(counts: &Tensor) -> Result<Vec<Curve>> {
    let classes = 0..counts.size()[0];
    let curves = classes.map(|class| {
        // The count of scores that reach no threshold is left out. It is always zero, because all
        // scores are at least 0, the lowest threshold.
        let falling = counts.f_get(class)?.f_flip([0])?.f_cumsum(0, Kind::Double)?;
        let bins = falling.size()[0] - 1;
        let column = |at: i64| {
            Ok::<_, Error>(Vec::<f64>::try_from(&falling.f_narrow(0, 0, bins)?.f_select(1, at)?)?)
        };
        Ok(Curve { tp: column(1)?, fp: column(0)?, binned: true })
    });
    curves.collect()
}
