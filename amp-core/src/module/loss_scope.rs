//! The examples over which a loss takes its mean.

use crate::loss::MeanOver;

/// The examples over which a loss takes its mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LossScope {
    /// The mean is over the batch's examples, by weight. The weighted mean of the micro-batches'
    /// losses equals the batch's loss.
    Examples,
    /// The mean is over the whole batch, whose examples the loss compares with each other, as in a
    /// contrastive loss. A batch with such a loss is never split.
    Batch,
    /// Not known. If memory is short, the batch is split, and a note reports this.
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
