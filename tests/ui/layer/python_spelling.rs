//! For a layer's name in PyTorch, such as `nn.ReLU`, the error gives the name in `#[layer]`.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(sequential(Linear(64, 32), nn.ReLU(), nn::Linear(32, 10)))]
    model: Sequential,
}

fn main() {}
