//! Checks that no example is used both for training and for validation.

use super::{Invariant, Moment, Rule, run_state::RunView};
use crate::{
    Result,
    data::{DataModule, SharedDataset, share_memory, shared_part},
};

/// The fraction of validation examples that may have the same contents as training examples,
/// because data usually has some duplicates.
const DUPLICATES: f64 = 0.05;

/// Checks that no validation example is a training example.
pub(super) struct SetsAreDisjoint {
    train: SharedDataset,
    val: Vec<(String, SharedDataset)>,
    /// Whether the contents of examples are compared, or only the memory addresses of their
    /// tensors.
    by_value: bool,
}

impl SetsAreDisjoint {
    pub(super) fn new(data: &DataModule, by_value: bool) -> Self {
        let val = data.val.iter().map(|(name, set)| (name.to_owned(), set.clone()));
        Self { train: data.train.clone(), val: val.collect(), by_value }
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
        for (name, set) in &self.val {
            let seen = if share_memory(&self.train, set)? {
                "is, or overlaps with, the training set in memory".to_owned()
            } else if self.by_value
                && let Some(part) = shared_part(&self.train, set)?
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
