//! The Dice score of a segmentation.

use tch::{Kind, Tensor};

use super::{Average, Metric, MetricState, Mode, Reduction, counts::predictions};
use crate::{Result, loss::IGNORED};

/// The Dice score 2 |P ∩ T| / (|P| + |T|), as in torchmetrics' DiceScore. P are the positions that
/// the model predicts as a class, and T are the positions whose target is this class. Logits have
/// the shape `[N, C, …]` and int64 classes the shape `[N, …]`, as in
/// [`CrossEntropy`](crate::loss::CrossEntropy).
///
/// With `per_example`, the score is computed for each example and class. The scores are averaged
/// over the classes of each example, and then over the examples. Without `per_example`, the score
/// is computed from all positions together. The result then equals that of [`FBeta`](super::FBeta)
/// with β = 1. With `per_example`, a class that occurs neither in the targets nor in the
/// predictions of an example is left out of the example's average. An example without any remaining
/// class is left out of the average over examples.
#[derive(Debug, Clone, Copy)]
pub struct Dice {
    /// How the scores of the classes are averaged. The default is [`Average::Macro`].
    pub average: Average,
    /// Whether the score is computed for each example and averaged, instead of from all positions
    /// together. The default is true.
    pub per_example: bool,
    /// Whether class 0 (the background) counts in the average. The default is true.
    pub include_background: bool,
    /// Targets of this class are ignored, as those of class -100 always are.
    pub ignore_index: i64,
    /// The number of classes; `None` takes the number from the output. If a number is given, an
    /// output with another number of classes is an error.
    pub num_classes: Option<i64>,
}

impl Default for Dice {
    fn default() -> Self {
        Self {
            average: Average::Macro,
            per_example: true,
            include_background: true,
            ignore_index: IGNORED,
            num_classes: None,
        }
    }
}

impl Metric for Dice {
    fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
        let Self { num_classes, ignore_index, .. } = *self;
        let (predicted, of, kept, classes) =
            predictions("dice", output, target, num_classes, ignore_index)?;
        let examples = target.size().first().copied().unwrap_or(1).max(1);
        let positions = (of.numel() as i64 / examples).max(1);
        // The counts have an element for each pair of an example and a class. Its index is the
        // class plus `example`, which is the example's index times the number of classes.
        let example = Tensor::f_arange(of.numel() as i64, (Kind::Int64, of.device()))?
            .f_div_scalar_mode(positions, "floor")?
            .f_mul_scalar(classes)?;
        // `nothing` is NaN if a logit is NaN or, on CUDA, a class is out of range, and otherwise 0.
        // All counts start from `nothing` and become NaN with it, because the average may leave out
        // the one class whose count is NaN.
        let nothing = kept.f_sum(Kind::Double)?.f_mul_scalar(0.0)?;
        let counted = |places: &Tensor, counts: &Tensor| -> Result<Tensor> {
            let zeros = nothing.f_expand([examples * classes], false)?.f_contiguous()?;
            let counted = zeros.f_index_add(0, &places.f_add(&example)?, counts)?;
            Ok(counted.f_view([examples, classes])?)
        };
        let hits = predicted.f_eq_tensor(&of)?.f_to_kind(Kind::Double)?.f_mul(&kept)?;
        let counts = [counted(&of, &hits)?, counted(&predicted, &kept)?, counted(&of, &kept)?];
        let counts = match self.include_background {
            true => counts,
            false => {
                let [hits, predicted, actual] =
                    counts.map(|counts| counts.f_narrow(1, 1, classes - 1));
                [hits?, predicted?, actual?]
            }
        };
        match self.per_example {
            true => {
                let [score, present] = self.of(&counts)?;
                let sum =
                    |of: &Tensor| of.f_sum_dim_intlist([0_i64].as_slice(), false, Kind::Double);
                MetricState::sum(&Tensor::f_stack(&[sum(&score)?, sum(&present)?], 0)?)
            }
            false => MetricState::sum(&Tensor::f_stack(&counts, 0)?.f_sum_dim_intlist(
                [1_i64].as_slice(),
                false,
                Kind::Double,
            )?),
        }
    }

    fn reduction(&self) -> Reduction {
        let own = *self;
        Reduction::of(move |state| {
            let [state] = state else { return Err(super::other_state(1, state)) };
            if own.per_example {
                return Ok(state.f_get(0)?.f_div(&state.f_get(1)?)?);
            }
            let counts = [0, 1, 2].map(|at| state.f_get(at)?.f_unsqueeze(0));
            let [hits, predicted, actual] = counts;
            let [score, present] = own.of(&[hits?, predicted?, actual?])?;
            Ok(score.f_div(&present)?.f_squeeze_dim(0)?)
        })
    }

    fn mode(&self) -> Option<Mode> {
        Some(Mode::Max)
    }
}

impl Dice {
    /// Computes the mean score of each example. The three tensors, of shape `[N, C]`, contain the
    /// numbers of correct, predicted and actual positions of each class. Returns two tensors of
    /// shape `[N]`, or `[N, C]` for [`Average::None`]. The first contains the scores, with 0 where
    /// there is no score. The second contains 1 where there is a score and 0 elsewhere. If a count
    /// is NaN, for example because a logit is NaN, the score is NaN.
    fn of(&self, [hits, predicted, actual]: &[Tensor; 3]) -> Result<[Tensor; 2]> {
        let classes = |of: &Tensor| of.f_sum_dim_intlist([1_i64].as_slice(), false, Kind::Double);
        let (both, all) = (hits.f_mul_scalar(2.0)?, predicted.f_add(actual)?);
        let quotient = |part: &Tensor, whole: &Tensor| -> Result<[Tensor; 2]> {
            let none = whole.f_eq(0.0)?;
            let present = none.f_logical_not()?.f_to_kind(Kind::Double)?;
            Ok([part.f_div(whole)?.f_masked_fill(&none, 0.0)?, present])
        };
        if self.average == Average::Micro {
            return quotient(&classes(&both)?, &classes(&all)?);
        }
        let [each, present] = quotient(&both, &all)?;
        match self.average {
            Average::None => Ok([each, present]),
            Average::Weighted => {
                let [mean, _] = quotient(&classes(&each.f_mul(actual)?)?, &classes(actual)?)?;
                Ok([mean, classes(&present)?.f_gt(0.0)?.f_to_kind(Kind::Double)?])
            }
            _ => quotient(&classes(&each)?, &classes(&present)?),
        }
    }
}
