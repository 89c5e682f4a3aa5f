//! What stands in a sequential is a module.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(sequential(linear(64, 10), String::new()))]
    model: Sequential,
}

fn main() {}
