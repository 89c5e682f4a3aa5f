//! Metrics from a confusion matrix: precision, recall, F-beta, specificity and Jaccard index.

use tch::{Kind, Tensor};

use super::{
    Metric, MetricState, Mode, Reduction,
    counts::{binary_counts, class_counts, counts_of_labels},
};
use crate::{Result, loss::IGNORED};

/// How the scores of classes are averaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Average {
    /// One score, computed from the sums of all classes' counts.
    Micro,
    /// The mean over the classes that occur in targets or predictions.
    #[default]
    Macro,
    /// The mean over classes, weighted by their numbers of targets.
    Weighted,
    /// One value for each class, logged as `NAME_0`, `NAME_1` and so on. The value of a class that
    /// does not occur is 0.
    None,
}

/// A score that is computed from the counts of one class.
#[derive(Debug, Clone, Copy)]
pub(super) enum Score {
    Precision,
    Recall,
    FBeta(f64),
    Specificity,
    Jaccard,
}

impl Score {
    /// Returns the score's numerator and denominator, computed from the numbers of true positives,
    /// false positives, true negatives and false negatives.
    fn of(self, [tp, fp, tn, fn_]: [&Tensor; 4]) -> Result<[Tensor; 2]> {
        let own = tp.shallow_clone();
        Ok(match self {
            Self::Precision => [own, tp.f_add(fp)?],
            Self::Recall => [own, tp.f_add(fn_)?],
            Self::Specificity => [tn.shallow_clone(), tn.f_add(fp)?],
            Self::Jaccard => [own, tp.f_add(fp)?.f_add(fn_)?],
            Self::FBeta(beta) => {
                let square = beta * beta;
                let hits = own.f_mul_scalar(1.0 + square)?;
                let all = hits.f_add(&fn_.f_mul_scalar(square)?)?.f_add(fp)?;
                [hits, all]
            }
        })
    }

    /// Returns the reduction that computes the average score of the classes from the counts of
    /// [`class_counts`], to which the targets of the class `ignored` were not added.
    pub(super) fn over_classes(self, average: Average, ignored: i64) -> Reduction {
        Reduction::of(move |state| {
            let [counts] = state else { return Err(super::other_state(1, state)) };
            let [tp, predicted, actual] = [0, 1, 2].map(|at| counts.f_get(at));
            let (tp, predicted, actual) = (tp?, predicted?, actual?);
            // As in torchmetrics, the IoU of the ignored class does not count predictions of this
            // class.
            let predicted = match self {
                Self::Jaccard => {
                    let classes = (Kind::Int64, predicted.device());
                    let places = Tensor::f_arange(predicted.size()[0], classes)?;
                    predicted.f_masked_fill(&places.f_eq(ignored)?, 0.0)?
                }
                _ => predicted,
            };
            let fp = predicted.f_sub(&tp)?;
            let fn_ = actual.f_sub(&tp)?;
            let all = actual.f_sum(Kind::Double)?;
            let tn = all.f_sub(&predicted)?.f_sub(&fn_)?;
            let counts = match average {
                Average::Micro => [&tp, &fp, &tn, &fn_].map(|counts| counts.f_sum(Kind::Double)),
                _ => [&tp, &fp, &tn, &fn_].map(|counts| Ok(counts.shallow_clone())),
            };
            let [a, b, c, d] = counts;
            let [part, whole] = self.of([&a?, &b?, &c?, &d?])?;
            let each = part.f_div(&whole)?;
            if average == Average::Micro {
                return Ok(each);
            }
            // Replaces only a NaN that comes from a denominator of 0. NaN counts, for example
            // because a class is out of range, give a NaN score.
            let each = each.f_masked_fill(&whole.f_eq(0.0)?, 0.0)?;
            let weight = match average {
                Average::Weighted => actual,
                _ => predicted.f_add(&fn_)?.f_ne(0.0)?.f_to_kind(Kind::Double)?,
            };
            match average {
                // If nothing was counted, `all / all` is NaN, and so is the result.
                Average::None => Ok(each.f_add(&all.f_div(&all)?)?.f_sub_scalar(1.0)?),
                _ => Ok(Tensor::from(in_order(&each.f_mul(&weight)?)? / in_order(&weight)?)),
            }
        })
    }

    /// Returns the reduction that computes the score from the counts of [`binary_counts`].
    fn of_two(self) -> Reduction {
        Reduction::of(move |state| {
            let [counts] = state else { return Err(super::other_state(1, state)) };
            let [tp, fp, tn, fn_] = [0, 1, 2, 3].map(|at| counts.f_get(at));
            let [part, whole] = self.of([&tp?, &fp?, &tn?, &fn_?])?;
            let all = counts.f_sum(Kind::Double)?;
            let value = part.f_div(&whole)?.f_masked_fill(&whole.f_eq(0.0)?, 0.0)?;
            Ok(value.f_add(&all.f_div(&all)?)?.f_sub_scalar(1.0)?)
        })
    }

    /// Returns the reduction that computes the average score of the labels from the counts of
    /// [`counts_of_labels`]. As in torchmetrics, a label that occurs in neither targets nor
    /// predictions has the score 0, which is part of the mean.
    fn over_labels(self, average: Average) -> Reduction {
        Reduction::of(move |state| {
            let [counts] = state else { return Err(super::other_state(1, state)) };
            let counts = match average {
                Average::Micro => counts.f_sum_dim_intlist([1].as_slice(), true, Kind::Double)?,
                _ => counts.shallow_clone(),
            };
            let [tp, fp, tn, fn_] = [0, 1, 2, 3].map(|at| counts.f_get(at));
            let (tp, fn_) = (tp?, fn_?);
            let [part, whole] = self.of([&tp, &fp?, &tn?, &fn_])?;
            let each = part.f_div(&whole)?.f_masked_fill(&whole.f_eq(0.0)?, 0.0)?;
            // If nothing was counted, `all / all` is NaN, and so is the result.
            let all = counts.f_sum(Kind::Double)?;
            let each = each.f_add(&all.f_div(&all)?)?.f_sub_scalar(1.0)?;
            let weight = match average {
                Average::None => return Ok(each),
                Average::Weighted => tp.f_add(&fn_)?,
                Average::Micro | Average::Macro => each.f_ones_like()?,
            };
            // If no target is 1, all weights are 0, and so is the weighted score.
            let total = in_order(&weight)?;
            let sum = in_order(&each.f_mul(&weight)?)?;
            Ok(Tensor::from(if total == 0.0 { sum } else { sum / total }))
        })
    }
}

/// Adds up numbers on the host, one after the other. In libtorch's sum, the order of addition, and
/// so the last digit, depends on the CPU.
fn in_order(numbers: &Tensor) -> Result<f64> {
    Ok(Vec::<f64>::try_from(numbers)?.iter().sum())
}

/// Defines three metrics from one score. The first is for classes. The second is for labels 0 and
/// 1, with one score over all labels. The third is for several labels per example, with one score
/// for each label.
macro_rules! score {
    (
        $(#[$doc:meta])* $of_classes:ident $class_name:literal,
        $(#[$binary_doc:meta])* $of_two:ident $binary_name:literal,
        $(#[$label_doc:meta])* $of_labels:ident $label_name:literal,
        |$own:ident| $score:expr
        $(, $(#[$key_doc:meta])* $key:ident = $default:expr)?
    ) => {
        $(#[$doc])*
        ///
        /// Logits have the shape `[N, C, …]` and int64 classes the shape `[N, …]`, as in
        /// [`CrossEntropy`](crate::loss::CrossEntropy).
        #[derive(Debug, Clone, Copy)]
        pub struct $of_classes {
            $($(#[$key_doc])* pub $key: f64,)?
            /// How the scores of the classes are averaged. The default is [`Average::Macro`].
            pub average: Average,
            /// Targets of this class are ignored, as those of class -100 always are.
            pub ignore_index: i64,
            /// The number of classes. If it is given, the output must have this number of classes.
            pub num_classes: Option<i64>,
        }

        impl Default for $of_classes {
            fn default() -> Self {
                Self {
                    $($key: $default,)?
                    average: Average::Macro,
                    ignore_index: IGNORED,
                    num_classes: None,
                }
            }
        }

        impl Metric for $of_classes {
            fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
                let Self { num_classes, ignore_index, .. } = *self;
                let counts = class_counts($class_name, output, target, num_classes, ignore_index)?;
                MetricState::sum(&counts)
            }

            fn reduction(&self) -> Reduction {
                let $own = self;
                $score.over_classes(self.average, self.ignore_index)
            }

            fn mode(&self) -> Option<Mode> {
                Some(Mode::Max)
            }
        }

        $(#[$binary_doc])*
        ///
        /// Logits and labels have the same shape, for example for masks or several labels per
        /// example. Labels are 0 or 1, as integers or floating-point numbers. An element with label
        /// -100 is ignored; a NaN logit or label makes the metric NaN.
        #[derive(Debug, Clone, Copy)]
        pub struct $of_two {
            $($(#[$key_doc])* pub $key: f64,)?
            /// The probability above which a prediction is 1. The default is ½.
            pub threshold: f64,
            /// Elements with this label are ignored, as those with label -100 always are.
            pub ignore_index: i64,
        }

        impl Default for $of_two {
            fn default() -> Self {
                Self { $($key: $default,)? threshold: 0.5, ignore_index: IGNORED }
            }
        }

        impl Metric for $of_two {
            fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
                let Self { threshold, ignore_index, .. } = *self;
                let counts = binary_counts($binary_name, output, target, threshold, ignore_index)?;
                MetricState::sum(&counts)
            }

            fn reduction(&self) -> Reduction {
                let $own = self;
                $score.of_two()
            }

            fn mode(&self) -> Option<Mode> {
                Some(Mode::Max)
            }
        }

        $(#[$label_doc])*
        ///
        /// Logits and labels have the shape `[N, C, …]`, with C labels per example. Labels are 0 or
        /// 1, as integers or floating-point numbers. An element with label -100 is ignored; a NaN
        /// logit or label makes the metric NaN.
        #[derive(Debug, Clone, Copy)]
        pub struct $of_labels {
            $($(#[$key_doc])* pub $key: f64,)?
            /// The probability above which a prediction is 1. The default is ½.
            pub threshold: f64,
            /// How the scores of the labels are averaged. The default is [`Average::Macro`], the
            /// mean over all labels. The score of a label that does not occur is 0.
            pub average: Average,
            /// Elements with this label are ignored, as those with label -100 always are.
            pub ignore_index: i64,
        }

        impl Default for $of_labels {
            fn default() -> Self {
                Self {
                    $($key: $default,)?
                    threshold: 0.5,
                    average: Average::Macro,
                    ignore_index: IGNORED,
                }
            }
        }

        impl Metric for $of_labels {
            fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
                let Self { threshold, ignore_index, .. } = *self;
                let counts =
                    counts_of_labels($label_name, output, target, threshold, ignore_index)?;
                MetricState::sum(&counts)
            }

            fn reduction(&self) -> Reduction {
                let $own = self;
                $score.over_labels(self.average)
            }

            fn mode(&self) -> Option<Mode> {
                Some(Mode::Max)
            }
        }
    };
}

score!(
    /// TP / (TP + FP): the fraction of the predictions of a class that are correct.
    Precision "precision",
    /// TP / (TP + FP): the fraction of the predictions of label 1 that are correct.
    BinaryPrecision "binary_precision",
    /// TP / (TP + FP) of each label: the fraction of the predictions of the label that are correct.
    MultilabelPrecision "multilabel_precision",
    |_own| Score::Precision
);
score!(
    /// TP / (TP + FN): the fraction of a class's targets that the model finds. With
    /// [`Average::Macro`] this is the balanced accuracy, and with [`Average::Micro`] the accuracy.
    Recall "recall",
    /// TP / (TP + FN): the fraction of the elements with label 1 that are predicted as 1.
    BinaryRecall "binary_recall",
    /// TP / (TP + FN) of each label: the fraction of the label's targets that the model finds.
    MultilabelRecall "multilabel_recall",
    |_own| Score::Recall
);
score!(
    /// (1 + β²) TP / ((1 + β²) TP + β² FN + FP): recall has β times the weight of precision. With β
    /// = 1 this is the F1 score, for masks also called the Dice score.
    FBeta "f_beta",
    /// (1 + β²) TP / ((1 + β²) TP + β² FN + FP): recall has β times the weight of precision. With β
    /// = 1 this is the F1 score, for masks also called the Dice score.
    BinaryFBeta "binary_f_beta",
    /// (1 + β²) TP / ((1 + β²) TP + β² FN + FP) of each label. With β = 1 this is the F1 score.
    MultilabelFBeta "multilabel_f_beta",
    |own| Score::FBeta(own.beta),
    /// The weight β of recall relative to precision. The default is 1.
    beta = 1.0
);
score!(
    /// TN / (TN + FP): of the targets that are not of this class, the fraction that is not
    /// predicted as this class.
    Specificity "specificity",
    /// TN / (TN + FP): the fraction of the elements with label 0 that are predicted as 0.
    BinarySpecificity "binary_specificity",
    /// TN / (TN + FP) of each label: of the examples without the label, the fraction for which it
    /// is not predicted.
    MultilabelSpecificity "multilabel_specificity",
    |_own| Score::Specificity
);
score!(
    /// TP / (TP + FP + FN), the intersection over union (IoU). Averages do not include the class
    /// `ignore_index`.
    Jaccard "jaccard",
    /// TP / (TP + FP + FN), the intersection over union (IoU).
    BinaryJaccard "binary_jaccard",
    /// TP / (TP + FP + FN) of each label, the intersection over union (IoU).
    MultilabelJaccard "multilabel_jaccard",
    |_own| Score::Jaccard
);
