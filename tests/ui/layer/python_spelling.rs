//! For the class name of a PyTorch layer, the error gives the name to write here.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(sequential(Linear(64, 32), nn.ReLU(), nn::Linear(32, 10)))]
    model: Sequential,
}

fn main() {}
