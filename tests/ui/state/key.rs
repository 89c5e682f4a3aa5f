//! A key in `#[state]` is refused: the attribute takes only a value.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
    #[state(default = 0)]
    seen: u64,
}

fn main() {}
