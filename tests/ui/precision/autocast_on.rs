//! `autocast = on` is refused: a precision region can only switch autocast off.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    #[precision(autocast = on)]
    model: Linear,
}

fn main() {}
