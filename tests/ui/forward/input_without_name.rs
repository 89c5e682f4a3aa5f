//! An input that is a pattern is refused, because every input needs a name.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[forward(|x, (scale, _)| model(x))]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
