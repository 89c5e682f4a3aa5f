//! How much the rules of one model compute: a large model is judged on fewer examples, steps and draws, so that its
//! rules take minutes.
//!
//! The measure is the number of multiplications of one example's forward pass by the layers' weights. It depends on the
//! model and its data alone, so that a repeated gate judges by the same bounds.
//!
//! A bound is mean + k·s of the draws' figures, and k depends on their number n. With the least s, a tenth of the mean, a
//! bound of [`FEWEST_DRAWS`] is 1.12 times as wide as one of [`DRAWS`]; with s of half the mean it is 1.26 times as wide.

use std::rc::Rc;

use amp_core::{Result, data::AnyBatch};

use super::job::Job;
use crate::{
    case::Case,
    layers::{self, Subject},
};

/// The draws of the first steps with emulated rounding, and the fewest.
const DRAWS: u64 = 32;
const FEWEST_DRAWS: u64 = 12;
/// The most observed steps of an epoch, and the fewest: with two draws for each of these a bound has 32.
const EPOCH_STEPS: i64 = 64;
const FEWEST_STEPS: i64 = 16;
/// The passes of a step of the observed epoch by which it is held against rounding: 32-true's and two draws.
const PASSES: f64 = 3.0;
/// The fewest examples over which statistics of a batch can be taken.
const FEWEST_EXAMPLES: i64 = 2;
/// The multiplications of a forward pass up to which all examples of a batch are used.
const OF_PASS: f64 = 17_179_869_184.0;
/// The multiplications of all forward passes up to which no draw and no step is left out.
const OF_RULES: f64 = 128.0 * OF_PASS;

/// The sizes of a model's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// The examples of a batch on which first steps, layers, groups of layers and devices are compared.
    pub(super) examples: i64,
    /// The runs of the first steps with emulated rounding.
    pub(super) draws: u64,
    /// The observed steps of an epoch.
    pub(super) epoch_steps: i64,
}

impl Budget {
    /// Computes the budget of the case's model, which runs once on a few examples. `steps` is the
    /// number of the first steps.
    pub(super) fn of(job: &Job, case: &Case, steps: u64) -> Result<Self> {
        let batch = case.data.batch_size;
        let few = case.data.train.head(batch.min(FEWEST_EXAMPLES))?;
        let build = || case.build();
        let subject = Subject {
            build: &build,
            batch: &few,
            device: case.trainer.device,
            seed: case.trainer.seed,
            overrides: Rc::new(job.overrides.clone()),
        };
        // A model whose layers cannot run one by one is judged on everything.
        let products = layers::products(&subject).unwrap_or(0.0) / few.len().max(1) as f64;
        let window = case.trainer.optimization.accumulate_grad_batches;
        Ok(Self::for_work(products, batch, window, steps))
    }

    /// Computes the budget for this number of multiplications per example.
    fn for_work(products: f64, batch: i64, window: i64, steps: u64) -> Self {
        let fewest = FEWEST_EXAMPLES.min(batch);
        let within = |limit: f64, work: f64, fewest: i64, most: i64| -> i64 {
            // Without any multiplication there is no limit.
            ((limit / work).min(most as f64) as i64).clamp(fewest, most)
        };
        let examples = within(OF_PASS, products, fewest, batch);
        let of_step = |examples: i64| products * (examples * window) as f64;
        let draw = of_step(examples) * steps as f64;
        let draws = within(OF_RULES, draw, FEWEST_DRAWS as i64, DRAWS as i64).cast_unsigned();
        let epoch_steps = within(OF_RULES, PASSES * of_step(batch), FEWEST_STEPS, EPOCH_STEPS);
        Self { examples, draws, epoch_steps }
    }

    /// Returns the first examples of the training set: a batch, or fewer for a large model.
    pub(super) fn sample(self, case: &Case) -> Result<AnyBatch> {
        case.data.train.head(self.examples)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::verdict::tolerance_factor;

    #[rstest]
    #[case::no_products(0.0, 16, (16, 32, 64))]
    #[case::small(1e6, 128, (128, 32, 64))]
    #[case::resnet50(4.1e9, 32, (4, 22, 16))]
    #[case::gpt2(8.7e10, 4, (2, 12, 16))]
    #[case::one_example(8.7e10, 1, (1, 12, 16))]
    fn a_large_model_is_judged_on_less(
        #[case] products: f64,
        #[case] batch: i64,
        #[case] (examples, draws, epoch_steps): (i64, u64, i64),
    ) {
        let found = Budget::for_work(products, batch, 1, 6);
        assert_eq!(found, Budget { examples, draws, epoch_steps });
        // Two batches for each step take twice as long.
        let twice = Budget::for_work(products, batch, 2, 6);
        assert!(twice.draws <= draws && twice.epoch_steps <= epoch_steps);
    }

    /// What the documentation says of bounds with few draws.
    #[test]
    fn few_draws_widen_a_bound_little() {
        let bound = |draws: u64, share: f64| {
            (1.0 + share * tolerance_factor(1e-5, 0.95, draws as usize)).powf(1.5)
        };
        for (share, expected) in [(0.1, 1.12), (0.5, 1.26)] {
            let found = bound(FEWEST_DRAWS, share) / bound(DRAWS, share);
            assert!((found - expected).abs() < 0.02, "{share}: {found}, not {expected}");
        }
    }
}
