//! The layer of `repeat` must be a closure with an index.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(repeat(6, linear(64, 64)))]
    model: Vec<Linear>,
}

fn main() {}
