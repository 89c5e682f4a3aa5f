//! `#[loss]` is refused if the user has written both the training step and the validation step.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[training_step(Self::train)]
#[validation_step(Self::val)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
