//! A positional argument after a named argument is refused, as in Python.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(in_features = 64, 10))]
    model: Linear,
}

fn main() {}
