//! A group's key must be a key of its optimizer.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3, group(params = ["*.bias"], momentum = 0.0))]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
