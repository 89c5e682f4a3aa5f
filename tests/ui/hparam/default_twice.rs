//! Two defaults of one hyperparameter are refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[hparam(default = 64, default = 32)]
    width: i64,
    #[layer(linear(width, 10))]
    model: Linear,
}

fn main() {}
