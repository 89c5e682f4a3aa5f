//! A metric is refused if the user has written the step that would log it.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[training_step(Self::step)]
#[metric(accuracy, stage = train)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
