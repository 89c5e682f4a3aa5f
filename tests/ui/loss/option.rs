//! Options of losses that are misspelt, out of range, unsupported or without `self.` are refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy, label_smooting = 0.1)]
#[optimizer(adamw, lr = 1e-3)]
struct Misspelt {
    #[layer(linear(64, 10))]
    model: Linear,
}

#[derive(LightningModule)]
#[loss(cross_entropy, label_smoothing = 1.5)]
#[optimizer(adamw, lr = 1e-3)]
struct OutOfRange {
    #[layer(linear(64, 10))]
    model: Linear,
}

#[derive(LightningModule)]
#[loss(mse_loss, reduction = sum)]
#[optimizer(adamw, lr = 1e-3)]
struct WithoutOptions {
    #[layer(linear(64, 10))]
    model: Linear,
}

#[derive(LightningModule)]
#[loss(focal, gamma = strength)]
#[optimizer(adamw, lr = 1e-3)]
struct OfAField {
    #[hparam]
    strength: f64,
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
