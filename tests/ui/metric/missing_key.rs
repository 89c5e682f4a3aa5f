//! The metric `top_k` without the key `k` is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[metric(top_k, name = top5)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
