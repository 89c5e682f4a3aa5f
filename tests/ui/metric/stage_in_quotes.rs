//! A stage in quotes is refused: it is written without quotes.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[metric(accuracy, stage = "val")]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
