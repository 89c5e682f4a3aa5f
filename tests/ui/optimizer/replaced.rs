//! `#[optimizer]` next to `#[configure_optimizers]` is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1)]
#[configure_optimizers(Self::optimizers)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
