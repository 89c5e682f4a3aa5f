//! The loss `binary_cross_entropy` is refused, because CUDA's autocast refuses it.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(binary_cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
