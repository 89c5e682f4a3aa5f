//! A loss of one's own has options.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy, label_smoothing = 0.1)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
