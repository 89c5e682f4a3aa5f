//! For `#[loss]` without an argument, the error lists all losses.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
