//! A third positional argument of `linear` is refused: options are given by name.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10, false))]
    model: Linear,
}

fn main() {}
