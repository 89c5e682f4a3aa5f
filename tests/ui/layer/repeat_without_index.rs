//! A `repeat` whose layer is not a closure over the index is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(repeat(6, linear(64, 64)))]
    model: Vec<Linear>,
}

fn main() {}
