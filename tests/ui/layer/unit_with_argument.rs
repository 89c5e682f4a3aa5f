//! An argument of a layer that takes no arguments is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(sequential(linear(64, 10), relu(0.1)))]
    model: Sequential,
}

fn main() {}
