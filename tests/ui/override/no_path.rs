//! A call instead of a function's path is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[optimizer(adamw, lr = 1e-3)]
#[loss(cross_entropy)]
#[training_step(Self::step())]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
