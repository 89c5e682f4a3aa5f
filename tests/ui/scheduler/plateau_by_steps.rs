//! `reduce_lr_on_plateau` with an interval is refused: it reads its value at the end of an epoch.

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
