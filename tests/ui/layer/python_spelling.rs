//! For a class name of PyTorch's, the error gives the name here.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(sequential(Linear(64, 32), nn.ReLU(), nn::Linear(32, 10)))]
    model: Sequential,
}

fn main() {}
