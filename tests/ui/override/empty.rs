//! A hook without a function is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[on_train_start]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
