//! `reduce_lr_on_plateau` needs a value to monitor.

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
