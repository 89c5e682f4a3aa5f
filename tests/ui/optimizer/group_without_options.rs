//! A parameter group without options is refused, because it would change nothing.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3, group(params = ["*.bias"]))]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
