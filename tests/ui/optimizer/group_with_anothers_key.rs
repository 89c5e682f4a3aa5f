//! A parameter group with a key that its optimizer does not have is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3, group(params = ["*.bias"], momentum = 0.0))]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
