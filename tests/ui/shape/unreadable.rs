//! An attribute that cannot be parsed causes one error; the optimizer is not reported missing as well.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = )]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
