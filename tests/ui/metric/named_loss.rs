//! A metric cannot be called `loss`, because the loss is logged under this name.

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
