//! An option of `sequential` is refused, because options belong to the layers inside.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(sequential(linear(64, 10), bias = false))]
    model: Sequential,
}

fn main() {}
