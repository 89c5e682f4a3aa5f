//! For a misspelt option, the error suggests the right one.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10, biais = false))]
    model: Linear,
}

fn main() {}
