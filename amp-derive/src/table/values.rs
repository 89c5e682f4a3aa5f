//! The tables of losses and metrics that generated steps can compute.

use super::{Entry, Key, any, choice, fraction, not_negative, optional, positive, tensor};
use crate::symbol;

/// The table of losses. If torch.nn.functional has the same loss, the names are equal.
/// `binary_cross_entropy` is missing, because the derive macro refuses it: CUDA autocast forbids
/// it.
pub(crate) const LOSSES: &[Entry] = &[
    loss(
        "cross_entropy",
        "CrossEntropy",
        &[
            fraction("label_smoothing"),
            tensor("weight"),
            any("ignore_index"),
            not_negative("z_loss"),
            CLASSES,
        ],
    ),
    loss("nll_loss", "Nll", &[tensor("weight"), any("ignore_index"), CLASSES]),
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

/// Losses whose types have the field `classes`, which says which axis of the logits holds the
/// classes.
const WITH_CLASSES: &[&str] = &["CrossEntropy", "Nll"];

/// Metrics whose types have no field `ignore_index`.
const WITHOUT_IGNORE_INDEX: &[&str] = &[
    "Accuracy",
    "TopK",
    "F1",
    "Auroc",
    "AveragePrecision",
    "MultilabelAuroc",
    "MultilabelAveragePrecision",
];

impl Entry {
    /// Returns whether this is a classification loss, whose targets are class numbers.
    pub(crate) fn is_loss_of_classes(&self) -> bool {
        WITH_CLASSES.contains(&self.ty)
    }

    /// Returns whether this is a classification metric, whose targets are class numbers.
    pub(crate) fn is_of_classes(&self) -> bool {
        self.ty == "Dice" || self.keys().any(|key| key.name == symbol::CLASSES)
    }

    /// Returns whether the type of this loss or metric has a field named `key`. If a metric's type
    /// lacks the field, generated code wraps the metric in `ReadAs`, which has it.
    pub(crate) fn has_field(&self, key: &str) -> bool {
        match key {
            symbol::CLASSES => self.is_loss_of_classes(),
            symbol::IGNORE_INDEX => !WITHOUT_IGNORE_INDEX.contains(&self.ty),
            _ => true,
        }
    }
}

pub(crate) const METRICS: &[Entry] = &[
    metric("accuracy", "Accuracy", &[], READ),
    metric("binary_accuracy", "BinaryAccuracy", &[], &[]),
    metric("soft_accuracy", "SoftAccuracy", &[], &[]),
    metric("top_k", "TopK", &[positive("k")], READ),
    metric("mean", "Mean", &[any("of")], &[]),
    metric("f1", "F1", &[positive("num_classes")], READ),
    metric("precision", "Precision", &[], OF_CLASSES),
    metric("recall", "Recall", &[], OF_CLASSES),
    metric("specificity", "Specificity", &[], OF_CLASSES),
    metric("jaccard", "Jaccard", &[], OF_CLASSES),
    metric(
        "f_beta",
        "FBeta",
        &[],
        &[positive("beta"), AVERAGE, any("ignore_index"), optional("num_classes"), CLASSES],
    ),
    metric(
        "confusion_matrix",
        "ConfusionMatrix",
        &[],
        &[any("ignore_index"), optional("num_classes"), CLASSES],
    ),
    metric(
        "dice",
        "Dice",
        &[],
        &[
            AVERAGE,
            any("per_example"),
            any("include_background"),
            any("ignore_index"),
            optional("num_classes"),
        ],
    ),
    metric("binary_precision", "BinaryPrecision", &[], OF_LABELS),
    metric("binary_recall", "BinaryRecall", &[], OF_LABELS),
    metric("binary_specificity", "BinarySpecificity", &[], OF_LABELS),
    metric("binary_jaccard", "BinaryJaccard", &[], OF_LABELS),
    metric(
        "binary_f_beta",
        "BinaryFBeta",
        &[],
        &[positive("beta"), fraction("threshold"), any("ignore_index")],
    ),
    metric("binary_confusion_matrix", "BinaryConfusionMatrix", &[], OF_LABELS),
    metric("multilabel_precision", "MultilabelPrecision", &[], OF_SEVERAL_LABELS),
    metric("multilabel_recall", "MultilabelRecall", &[], OF_SEVERAL_LABELS),
    metric("multilabel_specificity", "MultilabelSpecificity", &[], OF_SEVERAL_LABELS),
    metric("multilabel_jaccard", "MultilabelJaccard", &[], OF_SEVERAL_LABELS),
    metric(
        "multilabel_f_beta",
        "MultilabelFBeta",
        &[],
        &[positive("beta"), AVERAGE, fraction("threshold"), any("ignore_index")],
    ),
    metric("multilabel_auroc", "MultilabelAuroc", &[], OF_LABEL_CURVES),
    metric("multilabel_average_precision", "MultilabelAveragePrecision", &[], OF_LABEL_CURVES),
    metric("auroc", "Auroc", &[], OF_CURVES),
    metric("average_precision", "AveragePrecision", &[], OF_CURVES),
    metric("mae", "Mae", &[], &[]),
    metric("mse", "Mse", &[], &[]),
    metric("rmse", "Rmse", &[], &[]),
    metric("r2", "R2", &[], &[]),
    metric("perplexity", "Perplexity", &[], &[any("ignore_index"), CLASSES]),
    metric("recall_at_k", "RecallAtK", &[positive("k")], &[]),
    metric("psnr", "Psnr", &[], &[positive("data_range")]),
    metric("ssim", "Ssim", &[], &[positive("data_range")]),
];

const AVERAGE: Key = choice(
    "average",
    &[
        ("micro", "__amp::metric::Average::Micro"),
        ("macro", "__amp::metric::Average::Macro"),
        ("weighted", "__amp::metric::Average::Weighted"),
        ("none", "__amp::metric::Average::None"),
    ],
);

const OF_CLASSES: &[Key] = &[AVERAGE, any("ignore_index"), optional("num_classes"), CLASSES];

const READ: &[Key] = &[any("ignore_index"), CLASSES];

const CLASSES: Key = choice(
    symbol::CLASSES,
    &[("second", "__amp::loss::ClassDim::Second"), ("last", "__amp::loss::ClassDim::Last")],
);

const OF_LABELS: &[Key] = &[fraction("threshold"), any("ignore_index")];

const OF_SEVERAL_LABELS: &[Key] = &[AVERAGE, fraction("threshold"), any("ignore_index")];

const OF_LABEL_CURVES: &[Key] = &[AVERAGE, optional("thresholds"), any("ignore_index")];

const OF_CURVES: &[Key] = &[AVERAGE, optional("thresholds"), any("ignore_index"), CLASSES];

const fn metric(
    name: &'static str,
    ty: &'static str,
    required: &'static [Key],
    options: &'static [Key],
) -> Entry {
    Entry { name, ty, required, options }
}
