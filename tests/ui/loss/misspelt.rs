//! For a misspelt loss, the error suggests the right one.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entorpy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
