//! `repeat` is refused if its layer is not written as a closure, as in `|i| linear(64, 64)`.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(repeat(6, linear(64, 64)))]
    model: Vec<Linear>,
}

fn main() {}
