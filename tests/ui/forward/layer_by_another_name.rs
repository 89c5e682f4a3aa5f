//! For a misspelt layer, the error suggests the right one; rustc reports it too.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[forward(|x| modle(x))]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
