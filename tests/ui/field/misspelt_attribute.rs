//! For a misspelt attribute, the error suggests the right one; rustc reports it too.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layr(linear(64, 10))]
    model: Linear,
    #[layer(relu)]
    act: Relu,
}

fn main() {}
