//! Two metrics with the same name are refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[metric(top_k, k = 3)]
#[metric(top_k, k = 5)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
