//! A syntax error in `#[optimizer(…)]` is the only error: the optimizer is not reported as missing.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = )]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
