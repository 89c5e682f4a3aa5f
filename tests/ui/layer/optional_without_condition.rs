//! An `optional` layer without a condition is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(optional(linear(64, 64)))]
    model: Option<Linear>,
}

fn main() {}
