//! For the name of a PyTorch loss class, the error suggests the name of the function.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(huber)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
