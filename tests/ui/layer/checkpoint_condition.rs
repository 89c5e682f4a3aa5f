//! A condition of `checkpoint` is refused if it is given without its name `enabled`.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(checkpoint(linear(64, 64), true))]
    model: Checkpoint<Linear>,
}

fn main() {}
