//! Two values in one `#[state]` are refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
    #[state(0, 0)]
    seen: (u64, u64),
}

fn main() {}
