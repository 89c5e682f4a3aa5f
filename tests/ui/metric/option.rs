//! Options of metrics that are unknown, missing, in quotes or out of range are refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[metric(f_beta, beta = 2.0, average = macros)]
#[optimizer(adamw, lr = 1e-3)]
struct Misspelt {
    #[layer(linear(64, 10))]
    model: Linear,
}

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[metric(recall, average = "macro")]
#[optimizer(adamw, lr = 1e-3)]
struct InQuotes {
    #[layer(linear(64, 10))]
    model: Linear,
}

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[metric(binary_recall, threshold = 1.5)]
#[metric(psnr, data_range = 0.0)]
#[metric(recall_at_k)]
#[metric(auroc, bins = 100)]
#[optimizer(adamw, lr = 1e-3)]
struct OutOfRange {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
