//! An eps that is zero in float16 is warned about; here the warning is an error.

#![deny(deprecated)]

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3, eps = 1e-8)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
