//! `reduce_lr_on_plateau` takes no interval, because the value exists only after an epoch.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[scheduler(reduce_lr_on_plateau, monitor = val_loss, interval = step)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
