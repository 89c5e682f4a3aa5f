//! One tensor in.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[forward(|x, y| model(x))]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
