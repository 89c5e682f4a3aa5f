//! A monitored value in quotes is refused: its name is written without quotes.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[scheduler(reduce_lr_on_plateau, monitor = "val_loss")]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
