//! For Lightning's interval `batch`, the error suggests `step`.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[scheduler(step_lr, step_size = 5, interval = batch)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
