//! A hyperparameter cannot be called `build`, because the builder has a method of this name.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[hparam]
    build: i64,
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
