//! `#[log]` without arguments is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[log]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
