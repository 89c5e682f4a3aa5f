//! What generated steps compute: losses and metrics.

use super::{Entry, Key, any, fraction, not_negative, positive, tensor};

/// Losses, by torch.nn.functional's names where it has them. Its `binary_cross_entropy` is refused by a rule.
pub(crate) const LOSSES: &[Entry] = &[
    loss(
        "cross_entropy",
        "CrossEntropy",
        &[fraction("label_smoothing"), tensor("weight"), any("ignore_index")],
    ),
    loss("nll_loss", "Nll", &[tensor("weight"), any("ignore_index")]),
    loss("mse_loss", "Mse", &[]),
    loss("l1_loss", "L1", &[]),
    loss("huber_loss", "Huber", &[positive("delta")]),
    loss("smooth_l1_loss", "SmoothL1", &[not_negative("beta")]),
    loss(
        "binary_cross_entropy_with_logits",
        "BinaryCrossEntropyWithLogits",
        &[tensor("weight"), tensor("pos_weight")],
    ),
    loss("kl_div", "KlDiv", &[any("log_target"), any("batchmean")]),
    loss("poisson_nll_loss", "PoissonNll", &[any("log_input"), any("full"), positive("eps")]),
    loss("hinge_embedding_loss", "HingeEmbedding", &[any("margin")]),
    loss("ctc_loss", "Ctc", &[not_negative("blank"), any("zero_infinity")]),
    loss("cosine_similarity", "CosineSimilarity", &[positive("eps")]),
    loss("info_nce", "InfoNce", &[positive("temperature"), any("symmetric")]),
    loss("dice", "Dice", &[not_negative("smooth"), any("batch")]),
    loss("focal", "Focal", &[any("alpha"), not_negative("gamma")]),
];

const fn loss(name: &'static str, ty: &'static str, options: &'static [Key]) -> Entry {
    Entry { name, ty, required: &[], options }
}

pub(crate) const METRICS: &[Entry] = &[
    Entry { name: "accuracy", ty: "Accuracy", required: &[], options: &[] },
    Entry { name: "binary_accuracy", ty: "BinaryAccuracy", required: &[], options: &[] },
    Entry { name: "soft_accuracy", ty: "SoftAccuracy", required: &[], options: &[] },
    Entry { name: "top_k", ty: "TopK", required: &[positive("k")], options: &[] },
    Entry { name: "mean", ty: "Mean", required: &[any("of")], options: &[] },
    Entry { name: "f1", ty: "F1", required: &[positive("num_classes")], options: &[] },
];
