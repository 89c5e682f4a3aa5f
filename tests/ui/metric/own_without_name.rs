//! A user's own metric without a name is refused, because metrics are logged by name.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[metric(with = metric::Accuracy)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
