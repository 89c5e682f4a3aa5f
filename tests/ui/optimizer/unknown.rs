//! For an unknown optimizer, the error lists all optimizers.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(shampoo, lr = 1e-4)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
