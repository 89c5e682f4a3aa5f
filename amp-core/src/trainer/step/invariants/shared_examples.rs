//! Checks that no example is used both for training and for validation.

use super::{Invariant, Moment, Rule, run_state::RunView};
use crate::{
    Result,
    data::{DataModule, share_memory, shared_part},
};

/// The fraction of validation examples that may have the same contents as training examples,
/// because data usually has some duplicates.
const DUPLICATES: f64 = 0.05;

/// Checks that no validation example is a training example.
pub(super) struct SetsAreDisjoint {
    data: DataModule,
    /// The seed of the order of the training examples.
    seed: u64,
    /// Whether the contents of examples are compared, or only the memory addresses of their
    /// tensors.
    by_value: bool,
}

impl SetsAreDisjoint {
    pub(super) fn new(data: &DataModule, seed: u64, by_value: bool) -> Self {
        Self { data: data.clone(), seed, by_value }
    }
}

impl Rule for SetsAreDisjoint {
    fn invariant(&self) -> Invariant {
        Invariant::SetsAreDisjoint
    }

    fn moments(&self) -> &'static [Moment] {
        &[Moment::Start]
    }

    fn violation(&mut self, _: Moment, _: &RunView<'_>) -> Result<Option<String>> {
        let train = &self.data.train;
        // A sampler may select some of the examples, so that the others are free for validation.
        let read = self.data.trained_on(self.seed)?;
        for (name, set) in self.data.val.iter() {
            let seen = if share_memory(train, read.as_deref(), set)? {
                "is, or overlaps with, the training set in memory".to_owned()
            } else if self.by_value
                && let Some(part) = shared_part(train, read.as_deref(), set)?
                && part > DUPLICATES
            {
                format!("shares {:.0} % of its examples with the training set", 100.0 * part)
            } else {
                continue;
            };
            let name = if name.is_empty() { String::new() } else { format!(" `{name}`") };
            return Ok(Some(format!(
                "the validation set{name} {seen}: it measures memorization, not learning; give it \
                 other examples, or allow this with loops.overfit_batches or \
                 checks.shared_examples"
            )));
        }
        Ok(None)
    }
}
