//! An option that is given twice is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10, bias = false, bias = true))]
    model: Linear,
}

fn main() {}
