//! A scheduler without an optimizer is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[scheduler(step_lr, step_size = 5)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
