//! A field cannot be both a hyperparameter and state.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[hparam]
    #[state]
    width: i64,
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
