//! For a misspelt layer, the error suggests the right one.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(sequential(lienar(64, 32), rellu, linear(32, 10)))]
    model: Sequential,
}

fn main() {}
