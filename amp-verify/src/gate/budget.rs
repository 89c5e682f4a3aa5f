//! Limits how much the gate computes to check the rules for one model, so that a large model takes
//! only minutes. A large model is judged on fewer examples, fewer steps and fewer draws. A draw is
//! a training run of the first steps in which rounding is emulated. The gate computes its bounds
//! from the draws.
//!
//! The work for a model is measured by the number of multiplications with weights in the forward
//! pass of one example. This number depends only on the model and its data. The numbers of
//! examples, steps and draws for a model are therefore the same in each call of the gate.
//!
//! A bound is mean + k·s, where s is the standard deviation. Both are computed from the measured
//! values of the draws. With fewer draws, the factor k is larger. A bound from [`FEWEST_DRAWS`]
//! draws is 1.08 times as wide as a bound from [`DRAWS`] draws if s is a tenth of the mean, the
//! smallest s that the gate uses. It is 1.16 times as wide if s is half of the mean.

use amp_core::{Result, data::AnyBatch, precision::Precision};

use super::job::Job;
use crate::{
    case::Case,
    layers::{self, Subject, Wrap},
};

/// The number of draws (runs of the first steps with emulated rounding) for a small model.
const DRAWS: u64 = 20;
/// The smallest number of draws, for a large model.
const FEWEST_DRAWS: u64 = 12;
/// The largest number of steps of an epoch that the gate observes.
const EPOCH_STEPS: i64 = 40;
/// The gate observes at least this many steps of an epoch, or all of them if the epoch is shorter.
/// Each observed step runs two more times with emulated rounding. So 16 steps give 32 emulated
/// steps, from which a bound is computed.
const FEWEST_STEPS: i64 = 16;
/// The number of forward passes per observed step of the epoch, in addition to the step's own: one
/// under 32-true, and two with emulated rounding.
const PASSES: f64 = 3.0;
/// The smallest number of examples from which batch statistics can be computed.
const FEWEST_EXAMPLES: i64 = 2;
/// The largest number of multiplications in one forward pass. If a whole batch needs more, only its
/// first examples are used.
const OF_PASS: f64 = 17_179_869_184.0;
/// The largest number of multiplications in all forward passes together. If the full numbers of
/// draws and steps need more, the gate uses fewer draws and steps.
const OF_RULES: f64 = 128.0 * OF_PASS;

/// How many examples, steps and runs with emulated rounding ("draws") the gate uses to judge a
/// model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// The number of examples in the batch with which the gate checks the first steps, the layers,
    /// the fused layers and the device's kernels.
    pub(super) examples: i64,
    /// The number of runs of the first steps with emulated rounding.
    pub(super) draws: u64,
    /// The largest number of steps of an epoch that the gate observes.
    pub(super) epoch_steps: i64,
}

impl Budget {
    /// Computes the budget for the model of `case`. Runs the model once on [`FEWEST_EXAMPLES`]
    /// examples, to count its multiplications. If this fails, runs it on a whole batch, and the
    /// gate then judges the model on whole batches. `steps` is how many of the first steps of
    /// training the gate compares with 32-true.
    ///
    /// # Errors
    /// When the model does not run on a batch.
    pub(super) fn of(case: &Case, steps: u64) -> Result<Self> {
        let batch = case.data.batch_size;
        let build = || case.build();
        let products = |examples: i64| -> Result<f64> {
            let few = case.data.train.head(examples)?;
            let products = layers::products(&Subject::new(case, &build, &few))?;
            Ok(products / few.len().max(1) as f64)
        };
        let few = FEWEST_EXAMPLES.min(batch);
        let (products, fewest) = match products(few) {
            Ok(products) => (products, few),
            Err(_) => (products(batch)?, batch),
        };
        let window = case.trainer.optimization.accumulate_grad_batches;
        Ok(Self::for_work(products, (fewest, batch), window, steps))
    }

    /// Computes the budget from the number of multiplications per example (`products`), the
    /// smallest number of examples in a pass (`fewest`), the number of examples in a batch
    /// (`batch`), and the number of batches in an optimizer step (`window`).
    fn for_work(products: f64, (fewest, batch): (i64, i64), window: i64, steps: u64) -> Self {
        let within = |limit: f64, work: f64, fewest: i64, most: i64| -> i64 {
            // If `work` is 0, the quotient is infinite, so that the result is `most`.
            ((limit / work).min(most as f64) as i64).clamp(fewest, most)
        };
        let examples = within(OF_PASS, products, fewest, batch);
        let of_step = |examples: i64| products * (examples * window) as f64;
        let draw = of_step(examples) * steps as f64;
        let draws = within(OF_RULES, draw, FEWEST_DRAWS as i64, DRAWS as i64).cast_unsigned();
        let epoch_steps = within(OF_RULES, PASSES * of_step(batch), FEWEST_STEPS, EPOCH_STEPS);
        Self { examples, draws, epoch_steps }
    }

    /// Returns the first examples of the training set: a whole batch, or fewer examples for a large
    /// model.
    pub(super) fn sample(self, case: &Case) -> Result<AnyBatch> {
        case.data.train.head(self.examples)
    }

    /// Calls `measure` with the model and the first training examples. If the self-test has put a
    /// fault into the job, the model has this fault.
    pub(super) fn measured<T>(
        self,
        job: &Job,
        case: &Case,
        precision: Precision,
        measure: impl FnOnce(&Subject<'_>) -> Result<T>,
    ) -> Result<T> {
        let batch = self.sample(case)?;
        let build = || case.build();
        let wrap: &Wrap<'_> = &|model| job.with_fault(model, precision);
        measure(&Subject::new(case, &build, &batch).wrapped(wrap))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::verdict::tolerance_factor;

    #[rstest]
    #[case::no_products(0.0, 16, (16, 20, 40))]
    #[case::small(1e6, 128, (128, 20, 40))]
    #[case::resnet50(4.1e9, 32, (4, 20, 16))]
    #[case::gpt2(8.7e10, 4, (2, 12, 16))]
    #[case::one_example(8.7e10, 1, (1, 12, 16))]
    fn a_large_model_is_judged_on_less(
        #[case] products: f64,
        #[case] batch: i64,
        #[case] (examples, draws, epoch_steps): (i64, u64, i64),
    ) {
        let found = Budget::for_work(products, (batch.min(2), batch), 1, 6);
        assert_eq!(found, Budget { examples, draws, epoch_steps });
        // If each step accumulates two batches, it needs twice as many multiplications. The budget
        // then has at most as many draws and steps as without accumulation.
        let twice = Budget::for_work(products, (batch.min(2), batch), 2, 6);
        assert!(twice.draws <= draws && twice.epoch_steps <= epoch_steps);
    }

    /// Checks how much wider a bound becomes if it is computed from the smallest number of draws
    /// (runs with emulated rounding) in place of the full number. The documentation of this module
    /// states the factors.
    #[test]
    fn few_draws_widen_a_bound_little() {
        let bound = |draws: u64, share: f64| {
            (1.0 + share * tolerance_factor(1e-5, 0.95, draws as usize)).powf(1.5)
        };
        for (share, expected) in [(0.1, 1.08), (0.5, 1.16)] {
            let found = bound(FEWEST_DRAWS, share) / bound(DRAWS, share);
            assert!((found - expected).abs() < 0.02, "{share}: {found}, not {expected}");
        }
    }
}
