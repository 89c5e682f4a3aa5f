//! For the unknown stage `validate`, the error suggests `val`.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[metric(accuracy, stage = validate)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
