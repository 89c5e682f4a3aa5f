//! A model without an optimizer is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
