//! The user's own metric needs a name under which it is logged.

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
