//! An option of `sequential` is refused, because it belongs to a layer inside.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(sequential(linear(64, 10), bias = false))]
    model: Sequential,
}

fn main() {}
