//! Whether the loss of a batch is a mean over its examples.

use crate::loss::MeanOver;

/// Whether the loss of a batch is a mean over its examples, so that the batch may be split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LossScope {
    /// The loss is a weighted mean of the losses of the batch's examples. If the batch is split,
    /// the weighted mean of the micro-batches' losses equals the loss of the whole batch.
    Examples,
    /// The loss compares the examples of the batch with each other, as a contrastive loss does. A
    /// batch with such a loss is never split.
    Batch,
    /// It is not known whether the loss is a mean over the examples. A batch that does not fit into
    /// memory is split nevertheless, and a note reports the split.
    #[default]
    Unknown,
}

impl LossScope {
    /// Returns the scope of a loss that is a mean over `over`.
    pub fn of(over: &MeanOver<'_>) -> Self {
        match over {
            MeanOver::Batch => Self::Batch,
            MeanOver::Examples | MeanOver::Classes { .. } | MeanOver::Weights(_) => Self::Examples,
        }
    }
}
