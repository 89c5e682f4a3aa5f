//! A default value of a hyperparameter without `default =` is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[hparam(64)]
    width: i64,
    #[layer(linear(width, 10))]
    model: Linear,
}

fn main() {}
