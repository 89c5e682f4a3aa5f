//! The default is the user's expression, so rustc points at it.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[hparam(default = "64")]
    width: i64,
    #[layer(linear(width, 10))]
    model: Linear,
}

fn main() {}
