//! What generated steps compute: losses and metrics.

use super::{Entry, any, positive};

/// Loss functions, by torch.nn.functional's names. Its `binary_cross_entropy` is refused by a
/// rule.
pub(crate) const LOSSES: &[&str] = &[
    "cross_entropy",
    "nll_loss",
    "mse_loss",
    "l1_loss",
    "huber_loss",
    "binary_cross_entropy_with_logits",
];

/// Those whose mean is over the classes that are not left out.
pub(crate) const LOSSES_OF_CLASSES: &[&str] = &["cross_entropy", "nll_loss"];

pub(crate) const METRICS: &[Entry] = &[
    Entry { name: "accuracy", ty: "Accuracy", required: &[], options: &[] },
    Entry { name: "binary_accuracy", ty: "BinaryAccuracy", required: &[], options: &[] },
    Entry { name: "soft_accuracy", ty: "SoftAccuracy", required: &[], options: &[] },
    Entry { name: "top_k", ty: "TopK", required: &[positive("k")], options: &[] },
    Entry { name: "mean", ty: "Mean", required: &[any("of")], options: &[] },
    Entry { name: "f1", ty: "F1", required: &[positive("num_classes")], options: &[] },
];
