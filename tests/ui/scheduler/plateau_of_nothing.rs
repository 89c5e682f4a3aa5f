//! `reduce_lr_on_plateau` without a value to monitor is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[scheduler(reduce_lr_on_plateau, patience = 3)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
