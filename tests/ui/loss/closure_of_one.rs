//! A loss that is a closure with one argument is refused, because the target is missing.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(with = |output| output.f_mean(None))]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
