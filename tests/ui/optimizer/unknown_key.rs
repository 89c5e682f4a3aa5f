//! For a key of another optimizer, the error lists the optimizer's own keys.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3, momentum = 0.9)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
