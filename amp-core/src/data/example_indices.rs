//! Finds data with a shared tensor that contains indices of examples of the whole set, such as the
//! edges of a graph. If a batch has only some of the examples, or has them in another order, these
//! indices refer to the wrong examples.

use super::{DataModule, Order};
use crate::Result;

impl DataModule {
    /// Returns a warning about a shared tensor that may contain indices of training examples, if
    /// shuffling the set or splitting it into batches makes these indices wrong. Returns `None` if
    /// there is no such tensor, or if the training set is not in memory.
    pub(crate) fn misleading_numbers(&self) -> Result<Option<String>> {
        let Some(all) = self.train.in_memory()? else { return Ok(None) };
        let examples = self.train.len();
        let why = match &self.order {
            Order::InOrder if self.batch_size >= examples => return Ok(None),
            Order::InOrder => "each batch has only some of the examples",
            Order::Shuffled | Order::Sampled(_) => "the examples are shuffled",
        };
        Ok(all.numbering(examples)?.map(|(name, most)| {
            format!(
                "the shared tensor `{name}` holds whole numbers up to {most}: if these are indices \
                 of the {examples} examples, as the edges of a graph are, they refer to wrong \
                 examples in a batch, because {why}: make the whole graph one example, or use one \
                 batch with `in_order()`"
            )
        }))
    }
}
