//! `#[loss = …]` is refused, because arguments are in parentheses.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss = "cross_entropy"]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
