//! For a misspelt `group`, the error suggests the right word.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3, gropu(params = ["*.bias"], lr = 1e-2))]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
