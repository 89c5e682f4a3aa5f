//! A scheduler before two optimizers is refused: it is unclear to which one it belongs.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[scheduler(step_lr, step_size = 5)]
#[optimizer(adamw, lr = 1e-3, params = ["model.*"])]
#[optimizer(sgd, lr = 0.1)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
