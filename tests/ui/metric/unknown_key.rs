//! For an unknown key, the error lists the metric's keys.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[metric(accuracy, num_classes = 10)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
