//! Advice is silenced where it is given.

#![deny(deprecated)]

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3, eps = 1e-8)]
#[allow(deprecated)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {
    let _ = Net::builder();
}
