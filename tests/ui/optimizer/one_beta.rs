//! Adam with one beta instead of two is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adam, lr = 1e-3, betas = 0.9)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
