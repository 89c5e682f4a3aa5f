//! Finds out whether the examples of a set are padded when a batch is made of them.

use super::{AnyBatch, SharedDataset};
use crate::{Error, Result, random::Draws};

/// Checks that each example has the same tensors, sizes and dtypes in a batch of its own as in
/// `all`, the batch of all examples. The sizes differ if the set pads examples to the longest one of
/// a batch. Reads each example once more.
///
/// # Errors
/// When an example differs, or cannot be read.
pub(super) fn check_unpadded(set: &SharedDataset, all: &AnyBatch, draws: Draws) -> Result<()> {
    for index in 0..all.len() {
        let (own, row) = (set.gather_drawing(&[index], draws)?, all.narrow(index, 1)?);
        if !own.is_like(&row) {
            return Err(Error::config(format!(
                "`placement = device` makes each batch from one copy of the dataset, but this \
                 dataset pads its examples: example {index} is {} in a batch of its own, and {} in \
                 the copy. Choose `auto` or `host`, or pad all examples to one length (`Pad::to`)",
                described(&own),
                described(&row)
            )));
        }
    }
    Ok(())
}

/// Returns the names and sizes of the batch's tensors.
fn described(batch: &AnyBatch) -> String {
    let tensors: Vec<String> =
        batch.tensors().map(|(name, tensor)| format!("`{name}` {:?}", tensor.size())).collect();
    tensors.join(", ")
}
