//! A layer with a size of zero, as in `linear(0, 10)`, is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(0, 10))]
    model: Linear,
}

fn main() {}
