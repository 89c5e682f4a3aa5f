//! A metric's name cannot be a number.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[metric(accuracy, name = 1)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
