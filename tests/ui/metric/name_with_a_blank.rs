//! A metric's name that contains a space is refused, because `#[log]` could not contain it.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[metric(accuracy, name = "top 1")]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
