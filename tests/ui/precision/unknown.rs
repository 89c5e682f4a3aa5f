//! For an unknown precision, the error lists all precisions.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    #[precision(int8)]
    model: Linear,
}

fn main() {}
