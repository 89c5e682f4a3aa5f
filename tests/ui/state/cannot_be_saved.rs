//! `#[state]` with a type that cannot be saved is refused; `#[transient]` is accepted.

use amp_core::prelude::*;

#[derive(Default)]
struct Cache;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
    #[state]
    cache: Cache,
    #[transient]
    fine: Cache,
}

fn main() {}
