//! A model with hyperparameters but without layers is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[hparam(default = 64)]
    width: i64,
}

fn main() {}
