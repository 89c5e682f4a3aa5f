//! An optimizer without a learning rate is refused, because the rate has no default.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
