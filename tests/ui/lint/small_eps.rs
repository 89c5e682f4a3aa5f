//! Advice, here made an error: float16 has no such number.

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
