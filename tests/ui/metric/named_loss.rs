//! The loss is logged already.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[metric(accuracy, name = loss)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
