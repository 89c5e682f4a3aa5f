//! An interval in quotes is refused: it is written without quotes.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[scheduler(step_lr, step_size = 5, interval = "epoch")]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
