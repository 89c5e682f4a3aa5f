//! A key of an optimizer without a value is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(sgd, lr)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
