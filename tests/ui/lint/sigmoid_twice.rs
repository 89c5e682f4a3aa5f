//! A sigmoid before a loss that applies the sigmoid itself is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(binary_cross_entropy_with_logits)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(sequential(linear(64, 1), sigmoid))]
    model: Sequential,
}

fn main() {}
