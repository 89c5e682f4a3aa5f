//! `#[loss = …]` is refused, and the error asks for parentheses.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss = "cross_entropy"]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
