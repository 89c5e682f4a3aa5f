//! For a misspelt key, the error suggests the right one.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1, wieght_decay = 1e-4)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
