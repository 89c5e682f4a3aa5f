//! For the name of PyTorch's module, the error suggests the name of its function.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(huber)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
