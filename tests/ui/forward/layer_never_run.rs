//! A layer that `forward` never runs is refused, because its parameters would never be trained.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[forward(|x| body(x))]
struct Net {
    #[layer(linear(64, 32))]
    body: Linear,
    #[layer(linear(32, 10))]
    head: Linear,
}

fn main() {}
