//! Malformed arguments of `#[batch]`, and `#[batch]` on a block, are refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[batch(inputs(ids), labels, target = 3)]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

#[derive(LightningModule)]
#[batch]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1)]
struct Bare {
    #[layer(linear(64, 10))]
    model: Linear,
}

#[derive(Module)]
#[batch(Tokens)]
struct Block {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
