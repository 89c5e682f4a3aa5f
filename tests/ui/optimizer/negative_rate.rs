//! A negative learning rate is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = -0.1)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
