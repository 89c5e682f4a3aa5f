//! The examples over which a loss takes its mean.

use crate::loss::MeanOver;

/// The examples over which a loss takes its mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LossScope {
    /// The loss is a weighted mean over the batch's examples. If the batch is split, the weighted
    /// mean of the micro-batches' losses equals the loss of the whole batch.
    Examples,
    /// The loss compares the examples of the batch with each other, as a contrastive loss does. A
    /// batch with such a loss is never split.
    Batch,
    /// The scope of the loss is not known. If a batch does not fit into memory, the batch is split,
    /// and a note reports the split.
    #[default]
    Unknown,
}

impl LossScope {
    /// Returns the scope of a loss whose mean has the denominator `over`.
    pub fn of(over: &MeanOver<'_>) -> Self {
        match over {
            MeanOver::Batch => Self::Batch,
            MeanOver::Examples | MeanOver::Classes { .. } | MeanOver::Weights(_) => Self::Examples,
        }
    }
}
