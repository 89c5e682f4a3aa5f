//! A dropout of 20 is refused, because the argument is a probability.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(sequential(linear(64, 10), dropout(20)))]
    model: Sequential,
}

fn main() {}
