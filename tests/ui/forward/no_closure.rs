//! `#[forward(…)]` is refused if its argument is neither a closure nor the path of a function.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[forward(model(x))]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
