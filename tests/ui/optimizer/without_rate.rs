//! The learning rate is required, because it has no default.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
