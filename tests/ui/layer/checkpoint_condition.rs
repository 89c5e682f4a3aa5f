//! The condition of `checkpoint` must be called `enabled`.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(checkpoint(linear(64, 64), true))]
    model: Checkpoint<Linear>,
}

fn main() {}
