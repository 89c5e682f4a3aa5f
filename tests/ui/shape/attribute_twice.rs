//! An attribute that is given twice is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(mse_loss)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
