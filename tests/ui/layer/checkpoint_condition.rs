//! The condition of `checkpoint` is refused without its name, as in `checkpoint(layer, true)`.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(checkpoint(linear(64, 64), true))]
    model: Checkpoint<Linear>,
}

fn main() {}
