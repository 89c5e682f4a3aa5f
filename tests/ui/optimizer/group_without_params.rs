//! A parameter group that selects no parameters is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3, group(weight_decay = 0.0))]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
